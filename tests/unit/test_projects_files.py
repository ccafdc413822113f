"""Project files, profiles and preferences: what they may say, and the file and line of each mistake."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import known_projects, preferences
from bus.project_file import MAX_BYTES, Asked, Kind, ProjectError, as_tree, parse_file, read
from bus.project_init import content
from bus.projects import Project, find
from bus.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
FILE = Path("project.yaml")


def parsed(text: str, kind: Kind = "project") -> Asked:
    """What a file with that text says."""
    return parse_file(text, FILE, kind)


def refused(text: str, kind: Kind = "project") -> str:
    """The message of the error that a file with that text is."""
    with pytest.raises(ProjectError) as caught:
        parse_file(text, FILE, kind)
    return str(caught.value)


WHOLE = """\
name: shop
profile: python
model: qwen2.5-coder:7b
system: |
  You know this shop.
system_append: Be brief.
tools: [recall, read_file]
routing:
  default: code
  review: deepseek-r1
options:
  temperature: 0.5
  stop: [END]
memory: {prompt: false, context: true, prompt_tokens: 100, context_tokens: 900}
templates: prompts
"""


def test_a_project_file_says_all_that_it_may_say_and_where() -> None:
    """Every key, with the line of each value."""
    asked = parsed(WHOLE)

    assert (asked.name, asked.profile, asked.model, asked.folder) == ("shop", "python", "qwen2.5-coder:7b", "prompts")
    assert (asked.system, asked.system_append) == ("You know this shop.", "Be brief.")
    assert asked.tools == ("recall", "read_file")
    assert (asked.routing, asked.routes) == ("code", {"review": "deepseek-r1"})
    assert asked.options == {"temperature": 0.5, "stop": ["END"]}
    assert (asked.memory, asked.memory_prompt, asked.memory_context) == (None, False, True)
    assert (asked.prompt_tokens, asked.context_tokens) == (100, 900)
    lines = {name: int(where.rpartition(" line ")[2]) for name, where in asked.origins.items()}
    assert lines == {
        "name": 1,
        "profile": 2,
        "model": 3,
        "system": 4,
        "system_append": 6,
        "tools": 7,
        "routing": 9,
        "routes.review": 10,
        "routes": 8,
        "options.temperature": 12,
        "options.stop": 13,
        "memory_prompt": 14,
        "memory_context": 14,
        "prompt_tokens": 14,
        "context_tokens": 14,
        "folder": 15,
    }


@pytest.mark.parametrize("text", ["", "\n\n", "# a comment\n", "---\n", "model:\nsystem: ~\n"])
def test_a_file_without_values_says_nothing(text: str) -> None:
    """Empty files, comments, and keys that nobody filled in."""
    assert parsed(text) == Asked()


def test_none_is_something_else_than_nothing() -> None:
    """No tools, no system prompt and no memory can be wished for."""
    asked = parsed("tools: []\nsystem: ''\nmemory: false\n")

    assert (asked.tools, asked.system, asked.memory) == ((), "", False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "project.yaml line 1: not valid YAML"),
        ("name: x\n\tmodel: y\n", "project.yaml line 2: not valid YAML"),
        ("just words", "project.yaml line 1: the file must hold 'key: value' lines, not 'just words'"),
        ("- a\n- b\n", "project.yaml line 1: the file must hold 'key: value' lines, not ['a', 'b']"),
        ("name: a\nmodle: b\n", "project.yaml line 2: unknown key 'modle'; did you mean 'model'?"),
        ("\n\nzzz: 1\n", "project.yaml line 3: unknown key 'zzz'; there are: name, profile, model, system,"),
        ("model: a\nmodel: b\n", "project.yaml line 2: model is already set at line 1"),
        ("model: [a]\n", "project.yaml line 1: model = ['a'] is not allowed; allowed: a model or a routing profile"),
        ("model: 'rm -rf /'\n", "project.yaml line 1: model = 'rm -rf /' is not allowed"),
        ("model: 4\n", "project.yaml line 1: model = 4 is not allowed"),
        ("name: 'a\\nb'\nsystem: 3\n", "project.yaml line 2: system = 3 is not allowed; allowed: text"),
        (
            'name: "a\\e[2Jb"\n',
            "project.yaml line 1: name = 'a\\x1b[2Jb' is not allowed; allowed: one line of 1 to 100",
        ),
        ("profile: ../../etc\n", "project.yaml line 1: profile = '../../etc' is not allowed"),
        ("tools: shell\n", "project.yaml line 1: tools = 'shell' is not allowed; allowed: a list of remember, recall,"),
        ("tools:\n  - recall\n  - shell\n", "project.yaml line 3: tools = 'shell' is not allowed; allowed: a list of"),
        (
            "options:\n  temperature: hot\n",
            "project.yaml line 2: options: temperature = 'hot' is not allowed: it is a number",
        ),
        ("options: {temperature: 11}\n", "options: temperature = 11 is not allowed: it is a number from 0 to 10"),
        ("options: {temperature: .nan}\n", "temperature = nan is not allowed"),
        ("options: {temprature: 1}\n", "there is no option 'temprature'; did you mean 'temperature'?"),
        ("options: {grammar: x}\n", "options.grammar belongs to one question"),
        ("options: [a]\n", "project.yaml line 1: options must hold 'key: value' lines, not ['a']"),
        ("memory: maybe\n", "memory must hold 'key: value' lines or be true or false, not 'maybe'"),
        ("memory:\n  prompt: 3\n", "project.yaml line 2: memory.prompt = 3 is not allowed; allowed: true, false"),
        ("memory: {prompt_tokens: 0}\n", "memory.prompt_tokens = 0 is not allowed; allowed: 1 to 1,000,000"),
        ("memory: {prompt_tokens: true}\n", "memory.prompt_tokens = True is not allowed"),
        ("memory: {promt: true}\n", "unknown key 'memory.promt'; did you mean 'prompt'?"),
        ("routing:\n  default: code\n  'a b': x\n", "project.yaml line 3: routing: 'a b' is no name of a task"),
        ("routing: {review: [x]}\n", "routing.review = ['x'] is not allowed"),
        ("templates: [a]\n", "templates = ['a'] is not allowed; allowed: a folder below the project"),
        # What a stranger's file may not touch, whatever it is called.
        ("auth: {required: false}\n", "unknown key 'auth'"),
        ("provider: openai\n", "unknown key 'provider'"),
        ("run: make\n", "unknown key 'run'"),
        ("user: mallory\n", "unknown key 'user'"),
        ("name: !!python/object/apply:os.system [id]\n", "name is not a plain value"),
    ],
)
def test_a_mistake_is_told_with_file_line_and_what_is_allowed(text: str, message: str) -> None:
    """One message for each way to be wrong."""
    assert message in refused(text)


# Files that are there already -------------------------------------------------------------------------------------


def test_the_file_of_another_program_is_read_in_its_own_words() -> None:
    """Synonyms in either case, lists of allowed tools, and options by other names."""
    asked = parsed(
        """\
name: my-web-app
type: typescript
version: 1.0.0
default_model: llama3.1:8b
systemPrompt: You are a React expert.
tools:
  allowed: [read_file, write_file, shell, recall]
  denied: [recall, web_fetch]
routing:
  defaultProfile: code
  review: big
  preferred_families: [llama]
options: {temperature: 0.3, maxTokens: 4096, numCtx: 8192, nonsense: 1}
memory: {enabled: true, system_prompt_budget: 500, file: /etc/passwd}
context_size: 8192
top_p: 0.9
hooks: {before: rm}
""",
        "foreign",
    )

    assert (asked.name, asked.profile, asked.model) == ("my-web-app", "typescript", "llama3.1:8b")
    assert (asked.system, asked.tools) == ("You are a React expert.", ("read_file",))
    assert (asked.routing, asked.routes) == ("code", {"review": "big"})
    assert asked.options == {"temperature": 0.3, "max_tokens": 4096, "top_p": 0.9}
    assert (asked.memory, asked.prompt_tokens) == (True, 500)
    notes = "\n".join(asked.notes)
    for line, what in (
        (6, "there is no 'write_file', 'shell' here"),
        (12, "preferred_families"),
        (13, "num_ctx"),
        (13, "nonsense"),
        (14, "memory.file"),
        (15, "'context_size' is passed over: the length of the window is that of the loaded model"),
        (17, "'hooks' is passed over"),
    ):
        assert what in notes
        assert any(f"line {line}: " in note and what in note for note in asked.notes), (line, what)
    assert len(asked.notes) == 7


@pytest.mark.parametrize(
    ("text", "tools"),
    [
        ("tools: [read_file]", ("read_file",)),
        ("tools: []", ()),
        ("tools: {enabled: [shell]}", ()),
        ("tools: {denied: [web_fetch]}", None),
        ("tools: {disabled: [forget, read_file]}", ("remember", "recall", "search_memory", "list_files")),
        ("model: {name: tiny, temperature: 0.1}", None),
    ],
)
def test_tools_of_another_program_come_to_those_that_are_here(text: str, tools: tuple[str, ...] | None) -> None:
    """What it allows and we have; what it forbids of ours is not given; what it says of others says nothing."""
    assert parsed(text, "foreign").tools == tools


def test_a_wrong_value_in_another_programs_file_is_an_error_too() -> None:
    """Unknown keys are passed over, a model that is none is not."""
    assert refused("\nmodel: [a, b]\n", "foreign").startswith("project.yaml line 2: model = ['a', 'b'] is not allowed")


# Any file ---------------------------------------------------------------------------------------------------------


@given(
    st.text(max_size=200) | st.text("ab:-[]{}#&*!|>'\"\n \t?,%@`~0.1eEn", max_size=60),
    st.sampled_from(("project", "foreign")),
)
def test_any_text_is_read_or_refused_with_file_and_line(text: str, kind: Kind) -> None:
    """Nothing else comes of any text whatever."""
    try:
        asked = parse_file(text, FILE, kind)
    except ProjectError as error:
        assert str(error).startswith("project.yaml line ")
    else:
        assert isinstance(asked, Asked)


KEYS = st.sampled_from(
    ("name", "profile", "model", "system", "tools", "routing", "options", "memory", "templates", "x")
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(("default", "temperature", "prompt", "stop", "allowed", "a")), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@given(st.dictionaries(KEYS, VALUES, max_size=5), st.sampled_from(("project", "foreign")))
def test_any_values_are_taken_or_refused_with_file_and_line(tree: dict[str, object], kind: Kind) -> None:
    """Right keys with values of every sort."""
    text = msgspec.json.encode(tree, enc_hook=str).decode()
    try:
        parse_file(text, FILE, kind)
    except ProjectError as error:
        assert str(error).startswith("project.yaml line ")


def test_a_file_that_stands_for_more_than_it_says_is_refused_at_once() -> None:
    """Nine lines of aliases would be 10^9 values, and thousands of brackets more depth than there is."""
    laughs = "a0: &a0 [l, l, l, l, l, l, l, l, l]\n" + "".join(
        f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 9)}]\n" for number in range(1, 10)
    )

    assert "stands for more than" in refused(laughs)
    assert "nested too deeply" in refused("[" * 5_000)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    """The error tells its size and what is allowed; a thousand times more takes no longer."""
    file = tmp_path / "project.yaml"
    with file.open("wb") as opened:
        opened.truncate(3_000_000_000)

    with pytest.raises(ProjectError, match=f"it has 3,000,000,000 bytes; allowed: {MAX_BYTES:,}"):
        read(file, "project")


def test_what_is_no_plain_file_is_refused_without_waiting(tmp_path: Path) -> None:
    """A folder, a named pipe that nobody writes into, and nothing at all."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "bytes").write_bytes(b"name: x\nsystem: \xff\n")
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbfname: x\n")
    begun = time.monotonic()

    for name, why in (
        ("pipe", "it is no plain file"),
        ("folder", "it cannot be read: Is a directory"),
        ("missing", "it cannot be read: No such file"),
        ("bytes", "bytes line 2: it is not UTF-8 text"),
    ):
        with pytest.raises(ProjectError, match=why):
            read(tmp_path / name, "project")

    assert read(tmp_path / "marked", "project").name == "x"
    assert time.monotonic() - begun < 10


def test_a_project_file_behind_a_link_out_of_the_project_is_not_read(tmp_path: Path) -> None:
    """A cloned repository could else have any file of this person's shown in an error, or to a model."""
    secret = tmp_path / "secret"
    secret.write_text("hunter2: hunter2\n")
    root = tmp_path / "root"
    (root / ".git").mkdir(parents=True)
    (root / ".olympus").mkdir()
    (root / ".olympus/project.yaml").symlink_to(secret)

    with pytest.raises(ProjectError) as caught:
        find(root, Settings(home=str(tmp_path / "home")))

    assert "it is a link that leads out of" in str(caught.value)
    assert "hunter2" not in str(caught.value)


# Written files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [WHOLE, "name: x\n", "tools: []\nsystem: ''\nmemory: false\n", "memory: true\n", 'system: "a\\tb\\n  c: d"\n'],
)
def test_a_written_project_file_says_what_was_known(text: str) -> None:
    """`olympus project init` takes over what an older file said, to the last value."""
    asked = parsed(text)

    again = parsed(content(name=asked.name or "x", profile=asked.profile, because="why", asked=asked))

    assert as_tree(again) == as_tree(asked)
    assert (again.name, again.folder) == (asked.name or "x", asked.folder)


def test_a_written_project_file_shows_every_key(tmp_path: Path) -> None:
    """What is not known stands there as a comment that is valid once it is none."""
    text = content(name="x", profile="go", because="Found: go.mod.", asked=Asked())
    uncommented = (
        "\n".join(
            line.removeprefix("# ")
            if line.startswith(("# model:", "# routing:", "# tools:", "# options:", "# memory:"))
            else line
            for line in text.splitlines()
        )
        .replace("# system_append: |\n#   ", "system_append: |\n  ")
        .replace("# templates: prompts", "templates: prompts")
    )

    asked = parsed(uncommented)

    assert asked.system_append
    assert set(as_tree(asked)) == {"model", "system_append", "tools", "routing", "options", "memory"}
    assert asked.folder == "prompts"


def test_preferences_are_kept_as_they_were_given(tmp_path: Path) -> None:
    """Written whole, for this person alone, and read again."""
    settings = Settings(home=str(tmp_path / "home"))
    wanted = Asked(model="big", options={"temperature": 0.5}, tools=(), user="ada", memory=False, system="")

    preferences.save(settings, wanted)

    kept = preferences.load(settings)
    assert as_tree(kept) == as_tree(wanted)
    assert kept.user == "ada"
    assert preferences.preferences_file(settings).stat().st_mode & 0o777 == 0o600
    assert kept.origins["model"].endswith("chat.yaml line 3")


def test_preferences_that_could_not_be_read_again_are_not_written(tmp_path: Path) -> None:
    """A mistake costs nothing of what was there."""
    settings = Settings(home=str(tmp_path / "home"))
    preferences.save(settings, Asked(model="big"))

    with pytest.raises(ProjectError):
        preferences.save(settings, Asked(model="no such name"))

    assert preferences.load(settings).model == "big"


def test_no_preferences_say_nothing(tmp_path: Path) -> None:
    """A person who never wrote any."""
    assert preferences.load(Settings(home=str(tmp_path))) == Asked()


@pytest.mark.parametrize(("kind", "number"), [("project", 0), ("preferences", 1)])
def test_the_files_that_the_document_shows_can_be_used(kind: Kind, number: int) -> None:
    """docs/projects.md shows every key of a project file, and preferences."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs/projects.md").read_text(), re.MULTILINE | re.DOTALL)

    asked = parsed(blocks[number], kind)

    assert asked.notes == ()
    if kind == "project":
        assert set(as_tree(asked)) == {"model", "system_append", "tools", "routing", "options", "memory"}
        assert (asked.name, asked.profile, asked.folder) == ("shop", "python", "prompts")


# What has been seen -----------------------------------------------------------------------------------------------


def test_a_project_file_is_new_until_it_is_seen_and_again_when_it_changes(tmp_path: Path) -> None:
    """A pull may bring another system prompt."""
    settings = Settings(home=str(tmp_path / "home"))
    file = tmp_path / "project.yaml"
    file.write_text("model: a\n")
    project = Project(root=tmp_path, name="x", file=file)
    assert known_projects.is_new(project, known_projects.load(settings))

    known_projects.see(project, settings)
    assert not known_projects.is_new(project, known_projects.load(settings))

    file.write_text("model: b\n")
    assert known_projects.is_new(project, known_projects.load(settings))


def test_chosen_profiles_outlive_seeing_and_can_be_forgotten(tmp_path: Path) -> None:
    """Both stand in one file, which may be damaged without harm."""
    settings = Settings(home=str(tmp_path / "home"))
    file = tmp_path / "project.yaml"
    file.write_text("")

    known_projects.choose(tmp_path, "rust", settings)
    known_projects.see(Project(root=tmp_path, name="x", file=file), settings)
    assert known_projects.chosen(known_projects.load(settings)) == {str(tmp_path): "rust"}

    known_projects.choose(tmp_path, "", settings)
    assert known_projects.chosen(known_projects.load(settings)) == {}

    settings.path("chat", "projects.json").write_text("{")
    assert known_projects.load(settings) == {}


def test_a_file_that_is_known_already_is_not_written_again(tmp_path: Path) -> None:
    """Every chat sees the file of its project; only the first one writes."""
    settings = Settings(home=str(tmp_path / "home"))
    file = tmp_path / "project.yaml"
    file.write_text("model: a\n")
    project = Project(root=tmp_path, name="x", file=file)
    known_projects.see(project, settings)
    before = settings.path("chat", "projects.json").stat().st_mtime_ns

    known_projects.see(project, settings)

    assert settings.path("chat", "projects.json").stat().st_mtime_ns == before


def test_a_project_may_be_called_like_a_number() -> None:
    """A name is text however it is written."""
    assert parsed("name: 2048\n").name == "2048"
