"""`olympus template` where nobody is asked: lists, what is shown, and files written, checked and removed."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bus.cli import app
from bus.cli.chat.template_use import filled, question, values_of
from bus.cli.failures import UsageError
from bus.templates import Folder, Shelf, Template, Variable, WrongValue

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def olympus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`olympus template ...` in a project below tmp_path, with a home of its own and no terminal: code, stdout, stderr."""
    project = tmp_path / "project"
    (project / ".git").mkdir(parents=True)
    monkeypatch.chdir(project)
    monkeypatch.setenv("OLYMPUS_HOME", str(tmp_path / "home"))

    def call(*words: str, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = app.main(["template", *words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def template_of(tmp_path: Path, text: str) -> Template:
    """The template that a text describes."""
    (tmp_path / "one.yaml").write_text(text)
    return Shelf([Folder(tmp_path, "user")]).get("one")


# Values and questions -----------------------------------------------------------------------------------------------


def test_values_come_from_words_files_and_stdin(tmp_path: Path) -> None:
    """`@FILE` reads a file, `-` stdin, `@@` stands for @; everything after the first `=` is the value."""
    (tmp_path / "letter.txt").write_text("Dear\n")

    values = values_of(["a=1=2", f"b=@{tmp_path}/letter.txt", "c=-", "d=@@home", "e="], lambda: b"from stdin")

    assert values == {"a": "1=2", "b": "Dear\n", "c": "from stdin", "d": "@home", "e": ""}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["just words"], "is not name=value"),
        (["a=1", "a=2"], "a is given twice"),
        (["a=-", "b=-"], "b=-: stdin is not there"),
        (["a=@missing.txt"], "cannot read missing.txt"),
        (["a=@/"], "cannot read /"),
        (["a=@latin.txt"], r"latin.txt is not UTF-8 text \(byte 3\)"),
    ],
)
def test_words_that_give_no_value_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], why: str
) -> None:
    """Each names the word, or the file and the byte."""
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(UsageError, match=why):
        values_of(words, lambda: b"")


async def test_what_is_missing_is_asked_for_until_it_is_allowed(tmp_path: Path) -> None:
    """In the order of the text, only what is needed; a wrong answer is asked again with the reason."""
    template = template_of(
        tmp_path,
        "prompt: '{what} {size} {why:{reason}} {rest:}'\nvariables:\n  size: {choices: [short, long], description: how long}",
    )
    answers = iter([" ", "tea {size}", "tiny", "short"])
    asked: list[tuple[str, str]] = []

    async def ask(variable: Variable, problem: str) -> str | None:
        asked.append((question(variable), problem))
        return next(answers)

    rendered = await filled(template, {"why": "because"}, ask)

    assert rendered is not None
    assert rendered.prompt == "tea {size} short because "
    size = "size (how long; short, long): "
    again = "what must be given; the end of input (Ctrl-D) gives up"
    assert asked == [("what: ", ""), ("what: ", again), (size, ""), (size, "size is 'tiny'; allowed: short, long")]


async def test_whoever_gives_up_is_asked_no_more(tmp_path: Path) -> None:
    """Nothing is rendered then; a wrong value that came along is refused before the first question."""
    template = template_of(tmp_path, "prompt: '{a} {b}'")
    asked: list[str] = []

    async def give_up(variable: Variable, problem: str) -> str | None:
        asked.append(variable.name)
        return None

    assert await filled(template, {}, give_up) is None
    assert asked == ["a"]
    with pytest.raises(WrongValue):
        await filled(template, {"c": "x"}, give_up)
    assert asked == ["a"]


# The command ----------------------------------------------------------------------------------------------------------


def test_the_list_tells_where_each_is_from_and_what_it_hides(tmp_path: Path, olympus: Command) -> None:
    """Broken ones are in it too, with the reason on stderr; what a file holds cannot drive the terminal."""
    for folder in (tmp_path / "home" / "templates", tmp_path / "project" / ".olympus" / "templates"):
        folder.mkdir(parents=True)
        (folder / "review.yaml").write_text('prompt: x\ndescription: "a \\e[2J b"')
    (folder / "broken.yaml").write_text("prompt: [")

    code, out, err = olympus("list")
    rows = {line.split()[0]: line for line in out.splitlines()}

    assert code == 0
    assert rows["review"].split("  ")[-2:] == ["project, hides yours and shipped", "a \\x1b[2J b"]
    assert rows["explain"].split()[1] == "shipped"
    assert rows["broken"].endswith("cannot be used")
    assert f"broken cannot be used: {folder / 'broken.yaml'}:1: not valid YAML" in err
    entries = {one["name"]: one for one in json.loads(olympus("list", "--json")[1])["templates"]}
    assert entries["review"]["shadows"] == ["user", "shipped"]
    assert "not valid YAML" in entries["broken"]["error"]


def test_a_template_is_shown_whole(olympus: Command) -> None:
    """Its variables with what they may be, where it lies, what is asked."""
    code, out, _ = olympus("show", "translate")

    assert code == 0
    assert "  language: the language to translate into (must be given)\n" in out
    assert '(as the original, formal, friendly, plain; "as the original" without)' in out
    assert "config/templates/translate.yaml (shipped)" in out
    assert "  {text}\n" in out
    shown = json.loads(olympus("show", "translate", "--json")[1])
    assert [one["name"] for one in shown["variables"] if one["is_required"]] == ["language", "text"]
    assert shown["options"] == {"temperature": 0.3}


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (("use", "translate"), 2, "translate needs a value for: language, text"),
        (("use", "translate", "txt=x"), 2, "no variable 'txt'; did you mean 'text'?"),
        (
            ("use", "translate", "text=x", "language=fr", "tone=odd"),
            2,
            "translate.yaml:15: tone is 'odd'; allowed: as the",
        ),
        (("use", "trnslate"), 1, "there is no template 'trnslate'; did you mean 'translate'?"),
        (("show", "../../etc/passwd"), 1, "there is no template"),
        (("rm", "review", "--yes"), 2, "there is no template 'review' in "),
        (("create", "a/b", "--prompt", "x"), 2, "cannot be the name of a template"),
        (("create", "one"), 2, "no terminal to edit on"),
        (("create", "one", "--prompt", "{a:b"), 1, "never closed"),
        (("create", "one", "--prompt", " "), 1, "prompt is empty"),
        (("create", "one", "--prompt", "x", "--model", "a b"), 1, "allowed: a model or a routing profile"),
        (("create", "one", "--prompt", "x", "--from", "review"), 2, "allowed: one of the two"),
    ],
)
def test_what_cannot_be_done_is_told(
    tmp_path: Path, olympus: Command, words: tuple[str, ...], code: int, why: str
) -> None:
    """With what is allowed, exit code 2 for the words and 1 for the template; nothing is written."""
    ended, out, err = olympus(*words)

    assert (ended, out) == (code, "")
    assert why in err
    assert not list(tmp_path.glob("**/templates/*"))


def test_a_created_template_can_be_used_and_removed(tmp_path: Path, olympus: Command) -> None:
    """Whole or not at all, for this user alone; an existing one is only replaced when that is asked for."""
    text = "What did I do?\n{notes:nothing: at all} # no comment"

    assert olympus("create", "standup", "--prompt", text, "--description", "a: b", "--system", "Be brief.")[0] == 0
    path = tmp_path / "home" / "templates" / "standup.yaml"
    assert olympus("use", "standup", "--print")[1] == "What did I do?\nnothing: at all # no comment\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert "prompt: |" in path.read_text()

    code, _, err = olympus("create", "standup", "--prompt", "x")
    assert (code, "--force replaces it" in err) == (2, True)
    assert olympus("create", "standup", "--prompt", "-", "--force", stdin="é {a}".encode())[0] == 0
    assert olympus("use", "standup", "a=-", "--print", stdin=b"{a}")[1] == "é {a}\n"

    assert olympus("rm", "standup")[0] == 2
    assert olympus("rm", "standup", "--yes")[0] == 0
    assert list(path.parent.iterdir()) == []


def test_literal_braces_of_a_prompt_stay(olympus: Command) -> None:
    """`--literal` makes no variables."""
    assert olympus("create", "json", "--prompt", 'Like {"a": {b}}', "--literal")[0] == 0
    assert olympus("use", "json", "--print")[1] == 'Like {"a": {b}}\n'


def test_a_template_is_created_in_the_project_and_never_outside_of_it(tmp_path: Path, olympus: Command) -> None:
    """A folder of the project that is a link elsewhere is not written to."""
    folder = tmp_path / "project" / ".olympus"

    assert olympus("create", "one", "--prompt", "x", "--project")[0] == 0
    assert (folder / "templates" / "one.yaml").stat().st_mode & 0o777 == 0o644
    assert olympus("rm", "one", "--project", "--yes")[0] == 0

    (folder / "templates").rmdir()
    (tmp_path / "elsewhere").mkdir()
    (folder / "templates").symlink_to(tmp_path / "elsewhere")
    code, _, err = olympus("create", "one", "--prompt", "x", "--project")
    assert (code, "leads out of the project" in err) == (1, True)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_check_tells_what_is_wrong_and_what_may_not_be_meant(tmp_path: Path, olympus: Command) -> None:
    """All templates, or those named by name or file; it ends with 1 where one cannot be used."""
    assert olympus("check")[0] == 0
    (tmp_path / "project" / "fine.yaml").write_text("prompt: 'Use {lang: python}.'\nvariables: {x: unused}")
    (tmp_path / "project" / "bad.yml").write_text("prompt: hi\nmodel: [")

    code, out, err = olympus("check", "fine.yaml", "review")
    assert (code, out) == (0, "fine.yaml: good\nreview: good\n")
    assert "fine: {lang: python} stays as it is" in err
    assert "fine: no text uses x" in err
    code, out, err = olympus("check", "review", "bad.yml")
    assert (code, out) == (1, "review: good\n")
    assert "bad.yml:2: not valid YAML" in err


def test_help_of_the_command_reads_no_yaml() -> None:
    """Only an action that reads a template pays for it."""
    program = "import sys, bus.cli.template; sys.exit('yaml' in sys.modules or 'prompt_toolkit' in sys.modules)"

    subprocess.run([sys.executable, "-c", program], timeout=30, check=True)
