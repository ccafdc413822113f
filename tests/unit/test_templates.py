"""Templates: their text, their files, the shelf they are found on, and what untrusted ones may not do."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bus import sampling, template_file, template_text
from bus.projects import Project
from bus.settings import Settings
from bus.template_text import Include, Placeholder, TextError, escaped
from bus.templates import (
    RENDERED_MAX,
    SHIPPED,
    VARIABLES_MAX,
    Folder,
    Listed,
    Shelf,
    Template,
    TemplateError,
    Variable,
    WrongValue,
    shelf_for,
)

ROOT = Path(__file__).resolve().parents[2]

# A machine with other work takes what time it takes.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def put(folder: Path, **files: str) -> Shelf:
    """A shelf of one folder of a person's own templates, those given by name."""
    write(folder, **files)
    return Shelf([Folder(folder, "user")])


def write(folder: Path, **files: str) -> None:
    """The files of templates, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(textwrap.dedent(text), encoding="utf-8")


def refused(folder: Path, name: str = "one", **files: str) -> TemplateError:
    """The error of a template among those."""
    with pytest.raises(TemplateError) as raised:
        put(folder, **files).get(name)
    return raised.value


def rendered(text: str, **values: str) -> str:
    """A text with values put in, without files."""
    filling = template_text.Filling(values, {}, {}, lambda name, value: None, RENDERED_MAX)
    return filling.text(template_text.parse(text))


def names(variables: list[Variable]) -> list[str]:
    """Of variables."""
    return [one.name for one in variables]


# Text -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("{a}", "A"),
        ("{_b2:x}{a:x}", "xA"),
        ("{größe:7}", "7"),
        ("{b:}.", "."),
        ("{b:{c:{d:deep}}}", "deep"),
        ("{b:<{a}>}", "<A>"),
        ("{b:one\ntwo}", "one\ntwo"),
        ("{b:http://x/?y={a}}", "http://x/?y=A"),
        ("{{a}} {{{a}}}", "{a} {A}"),
        ("{b:{{x}}}", "{x}"),
        ("}} } {{ { {", "} } { { {"),
        ('{"a": {"b": {a}}}', '{"a": {"b": A}}'),
        ('{{"a": {{"b": 1}}}}', '{"a": {"b": 1}}'),
        ('{b:{"k": {"l": 1}}}', '{"k": {"l": 1}}'),
        (
            "p {color: red} f() {return 1;} ${{x}} {0} {} {a.b} {a b}",
            "p {color: red} f() {return 1;} ${x} {0} {} {a.b} {a b}",
        ),
        ("if (x) {\n  y = {a};\n}", "if (x) {\n  y = A;\n}"),
        ("{>", "{>"),
    ],
)
def test_placeholders_take_values_and_other_braces_stay(text: str, becomes: str) -> None:
    """Names and defaults are placeholders, doubled braces are braces, and JSON, code and CSS stay as they are."""
    assert rendered(text, a="A") == becomes


@pytest.mark.parametrize(
    ("text", "at", "why"),
    [
        ("ok {a:b", 3, "never closed"),
        ("{a:{b:x}", 0, "never closed"),
        ("x {> ../etc/passwd}", 2, "no name of a template"),
        ("{> }", 0, "no name of a template"),
        ("{a:" * 20 + "}" * 20, 48, "deeper than 16"),
    ],
)
def test_a_malformed_text_is_refused_where_it_is_wrong(text: str, at: int, why: str) -> None:
    """The error has the offset of the fault."""
    with pytest.raises(TextError, match=why) as raised:
        template_text.parse(text)

    assert raised.value.at == at


@unhurried
@given(st.text())
def test_any_text_with_its_braces_escaped_comes_back(text: str) -> None:
    """`escaped` undoes `parse`, in the middle of placeholders too."""
    assert "".join(map(str, template_text.parse(escaped(text)))) == text
    assert rendered(escaped(text) + "{a}" + escaped(text), a=text) == text * 3


BRACES = st.lists(
    st.sampled_from(["{", "}", "{{", "}}", "a", ":", "{a:", "{a}", "{> b}", "{>", " ", "\n", '"']), max_size=40
)


@unhurried
@given(st.one_of(st.text(), BRACES.map("".join)))
def test_no_text_raises_anything_but_its_own_error(text: str) -> None:
    """Whatever is read as parts consists of texts, placeholders and includes at offsets inside the text."""
    try:
        parts = template_text.parse(text)
    except TextError as error:
        assert 0 <= error.at < len(text)
        return
    assert all(isinstance(part, (str, Placeholder, Include)) for part in parts)
    assert all(text[part.at] == "{" for part in parts if not isinstance(part, str))


@unhurried
@given(st.dictionaries(st.sampled_from("abc"), st.text(alphabet="{}:abc> "), min_size=3))
def test_values_are_never_read_as_templates(values: dict[str, str]) -> None:
    """A value that holds `{b}` or `{> b}` stays as it is, also inside of a default."""
    assert rendered("{a}|{z:{b}}|{y:{x:{c}}}", **values) == f"{values['a']}|{values['b']}|{values['c']}"


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("prompt: [x", 1, "not valid YAML"),
        ("prompt: x\n\tmodel: y", 2, "not valid YAML"),
        ("prompt: hi\nprompt: ho", 2, "already set at line 1"),
        ("description: x", 1, "prompt is missing"),
        ("", 1, "lines of `key: value`"),
        ("- prompt", 1, "lines of `key: value`"),
        ("prompt:", 1, "prompt is empty"),
        ("prompt: ' '", 1, "prompt is empty"),
        ("prompt: {a: b}", 1, "a list of keys; allowed: a text, in quotes where it begins with {"),
        ("prompt: x\npromt: y", 2, "did you mean 'prompt'"),
        ("name: other\nprompt: x", 1, "the file is called 'one'"),
        ("prompt: x\nmodel: 'a b'", 2, "allowed: a model or a routing profile"),
        ("prompt: x\noptions:\n  seed: 1\n  temperature: 11", 4, "a number from 0 to 10"),
        ("prompt: x\noptions:\n  temprature: 1", 3, "did you mean 'temperature'"),
        ("prompt: x\noptions: 3", 2, "lines of `key: value`"),
        ("prompt: x\nextends: ../up", 2, "letter or digit first"),
        ("prompt: |\n  fine\n\n  {a:b", 4, "never closed"),
        ("# about\nprompt: >\n  folded\n\n  {a:b", 2, "never closed"),
        ("prompt: x\nvariables:\n  a:\n    default: {b: c}", 4, "variables.a.default"),
        ("prompt: x\nvariables:\n  a:\n    default: '{b:c'", 4, "never closed"),
        ("prompt: x\nvariables:\n  a b: x", 3, "cannot be the name of a variable"),
        ("prompt: x\nvariables:\n  a:\n    requird: true", 4, "did you mean 'required'"),
        ("prompt: x\nvariables:\n  a:\n    required: maybe", 4, "allowed: true, false"),
        ("prompt: x\nvariables:\n  a:\n    default: b\n    required: true", 5, "one of the two"),
        ("prompt: x\nvariables:\n  a:\n    choices: b", 4, "list of 1 to 100 texts"),
        ("prompt: x\nvariables:\n  a:\n    choices: []", 4, "list of 1 to 100 texts"),
        ("prompt: x\nvariables: [a]", 2, "lines of `key: value`"),
        ('prompt: "\\ud800"', 1, "half a character"),
        ('prompt: "\\UFFFFFFFF"', 1, "not valid YAML"),
        ("prompt: x\x07", 1, "control character"),
        ("prompt: !!python/object:os.system x", 1, "not a plain value"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_line(tmp_path: Path, text: str, line: int, why: str) -> None:
    """File, line, what is wrong and what is allowed."""
    error = refused(tmp_path, one=text)

    assert (error.path, error.line) == (tmp_path / "one.yaml", line)
    assert str(error).startswith(f"{tmp_path / 'one.yaml'}:{line}: ")
    assert why in str(error)


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), BRACES.map("".join))
KEYS = st.one_of(
    st.sampled_from([*template_file._KEYS, *template_file._OF_VARIABLES, *sampling.option_names()]), st.text()
)
TREES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5))


@unhurried
@given(TREES)
def test_no_yaml_raises_anything_but_a_template_error(tree: Any) -> None:
    """Whatever the keys hold: a template, or an error that names the file."""
    import yaml

    parsed_or_refused(yaml.safe_dump(tree, allow_unicode=True))


@unhurried
@given(
    st.one_of(
        st.text(),
        st.lists(
            st.sampled_from(
                [
                    "prompt:",
                    " x",
                    "\n",
                    "- ",
                    "&a ",
                    "*a",
                    "!!int ",
                    "{",
                    "}",
                    "[",
                    "'",
                    '"\\U',
                    "|",
                    ">",
                    "? ",
                    "%",
                    "#",
                    "\t",
                    "<<: ",
                ]
            )
        ).map("".join),
    )
)
def test_no_text_of_a_file_raises_anything_but_a_template_error(text: str) -> None:
    """Half-written YAML too."""
    parsed_or_refused(text)


def parsed_or_refused(text: str) -> None:
    """Reads a file's text; a template that comes of it has a prompt or extends another."""
    path = Path("one.yaml")
    try:
        parsed = template_file.parse(text, path)
    except TemplateError as error:
        assert error.path == path
        assert str(error).startswith("one.yaml:")
        return
    assert parsed.prompt is not None or parsed.extends is not None


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"prompt: caf\xe9", ":1: it is not UTF-8 text (byte 11)"),
        (b"prompt: x\n\xff", ":2: it is not UTF-8 text (byte 10)"),
        (b"\x7fELF\x02\x00\x00", ":1: it holds a control character"),
        (b"prompt: " + b"x" * (64 * 1024), ": the file is larger than 65,536 bytes"),
        (b"prompt: " + b"[" * 500, ":1: it is nested too deeply"),
        (b"x: &a [1]\n" + b"prompt: &b [*a, *b]", ":2: prompt holds itself"),
    ],
)
def test_a_file_that_is_no_text_or_too_much_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    """Named with line or byte where there is one."""
    (tmp_path / "one.yaml").write_bytes(content)

    with pytest.raises(TemplateError) as raised:
        put(tmp_path).get("one")

    assert str(raised.value) == f"{tmp_path / 'one.yaml'}{why}"


def test_aliases_cannot_stand_for_more_than_the_bound(tmp_path: Path) -> None:
    """Nine lines of YAML that stand for 10^9 values end soon, with an error."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]

    assert "stands for more than" in str(refused(tmp_path, one="\n".join(["prompt: x", *lines])))


def test_a_pipe_named_as_a_template_holds_nobody(tmp_path: Path) -> None:
    """Opening it would wait for a writer for ever."""
    os.mkfifo(tmp_path / "one.yaml")

    assert "no regular file" in str(refused(tmp_path))


# Keys -----------------------------------------------------------------------------------------------------------------


def test_a_template_says_what_is_asked_and_with_what(tmp_path: Path) -> None:
    """Prompt and system take the values; model and options are handed on; the line end of a block is no part of it."""
    shelf = put(
        tmp_path,
        one="""\
            name: one
            description: about a thing
            prompt: |
              Explain {thing}.
            system: You are {role:kind}.
            model: code
            options: {temperature: 0.2, stop: [END]}
            """,
    )

    template = shelf.get("one")
    asked = template.render({"thing": "tea"})

    assert (template.description, template.origin, template.path) == ("about a thing", "user", tmp_path / "one.yaml")
    assert (asked.prompt, asked.system, asked.model) == ("Explain tea.", "You are kind.", "code")
    assert asked.options == {"temperature": 0.2, "stop": ["END"]}
    assert put(tmp_path, two="prompt: x").get("two").render({}).system is None


def test_variables_are_required_unless_something_stands_for_them(tmp_path: Path) -> None:
    """A default in the text, a declared one, or `required: false`, which is an empty text."""
    template = put(
        tmp_path,
        one="""\
            prompt: "{a} {b:B} {c} {d}| {e:{f}}"
            variables:
              a: the first
              c: {default: "<{b:2}{g}>", description: the third}
              d: {required: false, multiline: true}
              unused: x
            """,
    ).get("one")

    assert names(template.asked({})) == ["a", "g", "f"]
    assert names(template.asked({"a": "1", "e": "5", "c": "3"})) == []
    assert template.render({"a": "1", "g": "7", "e": "5"}).prompt == "1 B <27> | 5"
    assert {one.name: one.is_required for one in template.variables()} == {
        **dict.fromkeys("afg", True),
        **dict.fromkeys("bcde", False),
        "unused": False,
    }
    assert [one.description for one in template.variables() if one.name in "ac"] == ["the first", "the third"]
    assert template.unused == ("unused",)


def test_numbers_and_truth_values_stand_for_what_is_written(tmp_path: Path) -> None:
    """YAML reads `no` as false and 010 as 8; a text is meant."""
    template = put(
        tmp_path,
        one="""\
            prompt: "{a} {b}"
            variables:
              a: {default: 010}
              b: {choices: [yes, no], default: no}
            """,
    ).get("one")

    assert template.render({}).prompt == "010 no"


def test_values_are_checked(tmp_path: Path) -> None:
    """Missing ones, unknown ones, those not among the choices (also as a default) and halves of characters are named."""
    shelf = put(
        tmp_path,
        one="prompt: '{a}{size}'\nvariables:\n  size:\n    choices: [short, long]",
        two="prompt: '{size:tiny}'\nvariables:\n  size:\n    choices: [short, long]",
        three="prompt: '{a:}'",
    )
    good = {"a": "x", "size": "long"}

    for name, values, why in (
        ("one", {"size": "long"}, "needs a value for: a"),
        ("one", {**good, "sise": "x"}, "has no variable 'sise'; did you mean 'size'?"),
        ("one", {**good, "size": "tiny"}, "one.yaml:3: size is 'tiny'; allowed: short, long"),
        ("one", {**good, "a": "\udcff"}, "the value of a is no UTF-8 text (character 0)"),
        ("two", {}, "size is 'tiny'; allowed: short, long"),
        ("three", {}, "empty prompt"),
    ):
        with pytest.raises(WrongValue) as raised:
            shelf.get(name).render(values)
        assert why in str(raised.value)


# Other templates --------------------------------------------------------------------------------------------------------


def test_a_template_takes_in_the_prompt_and_the_variables_of_another(tmp_path: Path) -> None:
    """What both declare is the outer one's; values are shared by name."""
    template = put(
        tmp_path,
        one="prompt: 'A {x} {> two} {> two}'\nvariables: {x: outer}",
        two="prompt: |\n  B {x} {y} {> three}\nsystem: not taken\nvariables: {x: inner, y: {default: Y}}",
        three="prompt: C",
    ).get("one")

    assert template.render({"x": "{> three}"}).prompt == "A {> three} B {> three} Y C B {> three} Y C"
    assert template.render({"x": "1"}).system is None
    assert [(one.name, one.description) for one in template.variables()] == [("x", "outer"), ("y", "")]


def test_a_template_extends_another(tmp_path: Path) -> None:
    """What it does not say is the other's; options and variables are merged."""
    template = put(
        tmp_path,
        one="extends: two\nsystem: mine\noptions: {seed: 2}\nvariables: {a: {default: mine}}",
        two="prompt: 'P {a} {b}'\nextends: three\noptions: {seed: 1, top_k: 5}\nvariables: {a: theirs, b: {default: B}}",
        three="description: far\nprompt: not seen\nsystem: not seen\nmodel: m",
    ).get("one")
    asked = template.render({})

    assert (asked.prompt, asked.system, asked.model) == ("P mine B", "mine", "m")
    assert asked.options == {"seed": 2, "top_k": 5}
    assert template.description == "far"


@pytest.mark.parametrize(
    ("files", "line", "why"),
    [
        ({"one": "prompt: |\n  x\n  {> one}"}, 3, "{> one} -> {> one}"),
        ({"one": "prompt: 'x {> two}'", "two": "prompt: 'y {> one}'"}, 1, "{> one} -> {> two} -> {> one}"),
        ({"one": "prompt: x\nsystem: '{> one}'"}, 2, "{> one} -> {> one}"),
        ({"one": "prompt: x\nextends: one"}, 2, "one -> one"),
        ({"one": "extends: two", "two": "extends: one"}, 1, "one -> two -> one"),
        ({"one": "prompt: '{a:{a}}'"}, 1, "{a} -> {a}"),
        ({"one": "prompt: '{a}'\nvariables:\n  a:\n    default: '{b}'\n  b: {default: '{a}'}"}, 5, "{a} -> {b} -> {a}"),
        ({"one": "prompt: '{a:{> two}}'", "two": "prompt: '{a}'"}, 1, "{a} -> {> two} -> {a}"),
        ({"one": "extends: two", "two": "prompt: '{> one}'"}, 1, "{> one} -> {> one}"),
    ],
)
def test_what_leads_back_to_itself_is_refused_with_the_way(
    tmp_path: Path, files: dict[str, str], line: int, why: str
) -> None:
    """Templates that include or extend themselves, and defaults that need themselves; the chain is named."""
    error = refused(tmp_path, **files)

    assert why in str(error)
    assert error.line == line


def test_an_error_in_another_template_names_both_places(tmp_path: Path) -> None:
    """The line that takes it in, and the line that is wrong; a template that is not there is named with the nearest."""
    files = {"one": "prompt: |\n\n  {> two}", "two": "prompt: x\nmodel: ' '", "three": "extends: tow\n"}

    error = refused(tmp_path, **files)
    assert f"one.yaml:3: includes two: {tmp_path / 'two.yaml'}:2: model" in str(error)
    assert "three.yaml:1: extends tow: there is no template 'tow'; did you mean 'two'?" in str(
        refused(tmp_path, "three", **files)
    )


def test_templates_that_double_each_other_are_bounded(tmp_path: Path) -> None:
    """Thirty that include each other twice would stand for 2^30 times the last one; defaults alike."""
    includes = {f"t{n}": f"prompt: '{{> t{n + 1}}}{{> t{n + 1}}}'" for n in range(30)}
    defaults = "\n".join(f"  v{n}: {{default: '{{v{n + 1}}}{{v{n + 1}}}'}}" for n in range(60))

    assert "longer than 4,194,304 characters" in str(refused(tmp_path, "t0", **includes, t30="prompt: xxxxxxxx"))
    error = refused(tmp_path, one=f"prompt: '{{v0}}'\nvariables:\n{defaults}\n  v60: {{default: xxxx}}")
    assert "longer than 4,194,304 characters" in str(error)


def test_chains_of_templates_and_crowds_of_variables_are_bounded(tmp_path: Path) -> None:
    """Each bound has an error that names it."""
    extends = {f"e{n}": f"extends: e{n + 1}" for n in range(20)}
    includes = {f"i{n}": f"prompt: 'x {{> i{n + 1}}}'" for n in range(80)}
    many = " ".join(f"{{v{n}}}" for n in range(VARIABLES_MAX + 1))
    large = {f"l{n}": f"prompt: '{'x' * 65_000}{{> l{n + 1}}}'" for n in range(20)}

    assert "more than 16 deep" in str(refused(tmp_path, "e0", **extends))
    assert "more than 64 templates" in str(refused(tmp_path, "i0", **includes))
    assert "more than 100 variables" in str(refused(tmp_path, one=f"prompt: '{many}'"))
    assert "it is not read: those before it have more than 1,048,576 bytes" in str(refused(tmp_path, "l0", **large))


def test_large_values_are_put_in_whole_up_to_the_bound(tmp_path: Path) -> None:
    """A pasted megabyte is fine, and what is too long is refused before it is made."""
    template = put(tmp_path, one="prompt: '{a}{a}{a}'").get("one")

    assert len(template.render({"a": "x" * 1_000_000}).prompt) == 3_000_000
    with pytest.raises(WrongValue, match="longer than 4,194,304 characters"):
        template.render({"a": "x" * 2_000_000})


def test_a_large_value_is_not_copied_by_every_template_around_it(tmp_path: Path) -> None:
    """Three around it are fine; thirty would hold it thirty times while the prompt is made."""
    shelf = put(tmp_path, **{f"t{n}": f"prompt: 'x{{> t{n + 1}}}'" for n in range(30)}, t30="prompt: '{a}'")
    large = {"a": "a" * 1_000_000}

    assert shelf.get("t27").render(large).prompt == "xxx" + large["a"]
    with pytest.raises(WrongValue, match="longer than 4,194,304 characters"):
        shelf.get("t0").render(large)


# The shelf --------------------------------------------------------------------------------------------------------------


def shelf_of(tmp_path: Path) -> tuple[Shelf, Path, Path]:
    """A shelf of a project and a home, and the folders of the two."""
    settings = Settings(home=str(tmp_path / "home"))
    project = tmp_path / "project"
    shelf = shelf_for(settings, Project(root=project, name="shop"))
    return shelf, project / ".olympus" / "templates", settings.path("templates")


def listed(shelf: Shelf, name: str) -> Listed:
    """The entry of that name."""
    return next(one for one in shelf.list() if one.name == name)


def test_the_projects_template_hides_the_users_and_that_the_shipped_one(tmp_path: Path) -> None:
    """The list tells which are hidden; both folders of a project count."""
    shelf, project, user = shelf_of(tmp_path)
    write(user, review="prompt: mine", own="prompt: own")

    assert shelf.get("review").render({}).prompt == "mine"
    assert listed(shelf, "review").shadows == ("shipped",)

    write(project, review="prompt: theirs")
    write(project.parents[1] / ".ollm" / "templates", review="prompt: older", old="prompt: old")

    assert shelf.get("review").render({}).prompt == "theirs"
    entry = listed(shelf, "review")
    assert (entry.origin, entry.shadows) == ("project", ("project", "user", "shipped"))
    assert [listed(shelf, name).origin for name in ("own", "old", "explain")] == ["user", "project", "shipped"]
    assert {"explain", "old", "own", "review"} <= set(shelf.names())


def test_a_broken_template_is_listed_with_its_error_and_the_others_work(tmp_path: Path) -> None:
    """Also one whose file has no name for a template, and a folder that is none."""
    shelf, project, user = shelf_of(tmp_path)
    write(user, broken="prompt: [", good="prompt: x\ndescription: fine")
    (user / "a b.yaml").write_text("prompt: x")
    (user / "folder.yaml").mkdir()
    (user / ".hidden.yaml").write_text("[")
    (user / "notes.txt").write_text("[")
    project.parent.mkdir(parents=True)
    project.write_text("no folder")

    entries = {one.name: one for one in shelf.list()}

    assert f"{user / 'broken.yaml'}:1: not valid YAML" in entries["broken"].error
    assert (entries["good"].error, entries["good"].description) == ("", "fine")
    assert "cannot be the name of a template" in entries["a b"].error
    assert "Is a directory" in entries["folder"].error
    assert "the folder cannot be read" in entries[""].error
    assert not {".hidden", "notes"} & set(entries)
    assert shelf.get("good").render({}).prompt == "x"


def test_a_folder_with_too_many_templates_is_told(tmp_path: Path) -> None:
    """Somebody else's repository cannot make the list take minutes."""
    for number in range(501):
        (tmp_path / f"t{number}.yaml").touch()

    entries = put(tmp_path).list()

    assert [one.name for one in entries] == [""]
    assert "holds 501 templates; allowed: 500" in entries[0].error


@pytest.mark.parametrize("target", ["outside.yaml", "/etc/passwd", "loop.yaml", "missing.yaml"])
def test_a_link_in_a_project_reads_nothing_elsewhere(tmp_path: Path, target: str) -> None:
    """A cloned repository cannot show the model another file of this machine; neither by the name of a folder."""
    shelf, project, _ = shelf_of(tmp_path)
    write(tmp_path, outside="prompt: a secret")
    project.mkdir(parents=True)
    (project / "one.yaml").symlink_to(tmp_path / target if target == "outside.yaml" else target)
    (project / "loop.yaml").symlink_to("one.yaml")

    with pytest.raises(TemplateError) as raised:
        shelf.get("one")

    assert "secret" not in str(raised.value)
    assert "link" in str(raised.value)


def test_a_projects_folder_that_is_a_link_out_of_it_is_refused(tmp_path: Path) -> None:
    """The same link in a home of one's own is trusted."""
    shelf, project, user = shelf_of(tmp_path)
    write(tmp_path / "elsewhere", one="prompt: x")
    project.parent.mkdir(parents=True)
    project.symlink_to(tmp_path / "elsewhere")

    assert "leads out of the project" in listed(shelf, "").error
    with pytest.raises(TemplateError, match="there is no template 'one'"):
        shelf.get("one")

    user.parent.mkdir()
    user.symlink_to(tmp_path / "elsewhere")
    assert shelf.get("one").render({}).prompt == "x"


def test_a_link_inside_of_a_project_leads_to_templates_alone(tmp_path: Path) -> None:
    """Folders may share a template; .env is none."""
    shelf, project, _ = shelf_of(tmp_path)
    write(project.parents[1] / "shared", one="prompt: shared")
    (project.parents[1] / ".env").write_text("prompt: secret")
    project.mkdir(parents=True)
    (project / "one.yaml").symlink_to("../../shared/one.yaml")
    (project / "two.yaml").symlink_to("../../.env")

    assert shelf.get("one").render({}).prompt == "shared"
    assert "what is no .yaml or .yml file" in listed(shelf, "two").error


@pytest.mark.parametrize("name", ["../one", "/etc/passwd", "a/b", ".", "..", "", "one\0", "one\n", "x" * 65])
def test_names_are_no_paths(tmp_path: Path, name: str) -> None:
    """Whatever is asked for is looked up among the files of the shelf."""
    shelf = put(tmp_path / "templates")
    write(tmp_path, one="prompt: x")

    with pytest.raises(TemplateError, match="there is no template"):
        shelf.get(name)


def test_a_home_inside_of_a_project_is_no_project_folder(tmp_path: Path) -> None:
    """Where OLYMPUS_HOME is the project's .olympus, its templates are the user's and hide nothing."""
    shelf = shelf_for(Settings(home=str(tmp_path / ".olympus")), Project(root=tmp_path, name="shop"))
    write(tmp_path / ".olympus" / "templates", one="prompt: x")

    assert (listed(shelf, "one").origin, listed(shelf, "one").shadows) == ("user", ())


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_template_is_good(path: Path) -> None:
    """Each can be used, says what it is, and declares what it needs."""
    template: Template = Shelf([Folder(SHIPPED, "shipped")]).get(path.stem)
    required = template.asked({})

    assert template.description
    assert template.unused == ()
    assert [one.name for one in template.variables() if not one.description] in ([], ["width"])
    asked = template.render({one.name: one.choices[0] if one.choices else f"<{one.name}>" for one in required})
    assert all(f"<{one.name}>" in asked.prompt for one in required)
    assert "{" not in asked.prompt


def test_yaml_is_read_only_where_a_template_is() -> None:
    """The names, which a chat completes, need no YAML."""
    program = """
import sys
from bus.settings import Settings
from bus.templates import shelf_for
names = shelf_for(Settings()).names()
sys.exit("yaml" in sys.modules or "review" not in names)
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=30, check=True)
