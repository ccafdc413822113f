"""What a chat runs with: the order of the sources, where each value is from, and what is passed over."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bus import known_projects, preferences
from bus.cli.chat.choices import TOOLS, Choices, choose, configure_choices, resolved, with_profile
from bus.cli.failures import UsageError
from bus.project_file import Asked, ProjectError
from bus.settings import OTHER_VARIABLES, Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def nothing_in_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the machine's variables nor its home folder reaches these tests."""
    for name in list(os.environ):
        if name.startswith("OLYMPUS_") or name in OTHER_VARIABLES:
            monkeypatch.delenv(name)
    person = tmp_path / "person"
    person.mkdir()
    monkeypatch.setenv("HOME", str(person))


@pytest.fixture
def folder() -> Path:
    """A Python project with a file of its own, seen before."""
    root = Path.home() / "some"
    (root / ".olympus").mkdir(parents=True)
    (root / "pyproject.toml").write_text("")
    return root


def write(folder: Path, text: str) -> Path:
    """The project's own file."""
    file = folder / ".olympus/project.yaml"
    file.write_text(text)
    return file


def chosen(folder: Path, *flags: str, before: tuple[str, ...] = ()) -> Choices:
    """What a chat started with `flags` in `folder` runs with; `before` are `--set` options."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--config")
    configure_choices(parser)
    args = parser.parse_args([*flags, *(part for pair in before for part in ("--set", pair))])
    settings = load_settings(None, dict(pair.split("=") for pair in before))
    return choose(settings, args, folder)


def settings() -> Settings:
    """The settings of this test's person."""
    return load_settings()


# Order ------------------------------------------------------------------------------------------------------------


def test_nothing_said_gives_the_defaults(tmp_path: Path) -> None:
    """Outside of projects, without flags and files: the service's default model, memory, and its tools."""
    assert chosen(tmp_path) == Choices(layers=chosen(tmp_path).layers)


def test_each_source_goes_before_the_next_and_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """flag > environment > project file > preferences > detected profile."""
    assert (chosen(folder).model, chosen(folder).origins["model"]) == ("code", "profile python")

    preferences.save(settings(), Asked(model="liked"))
    mine = preferences.preferences_file(settings())
    assert (chosen(folder).model, chosen(folder).origins["model"]) == ("liked", f"{mine} line 3")

    file = write(folder, "name: x\nmodel: wanted\n")
    assert (chosen(folder).model, chosen(folder).origins["model"]) == ("wanted", f"{file} line 2")

    monkeypatch.setenv("OLLM_MODEL", "from-elsewhere")
    assert chosen(folder).model == "from-elsewhere"
    assert chosen(folder).origins["model"] == "environment variable OLLM_MODEL"

    monkeypatch.setenv("OLYMPUS_MODELS_DEFAULT", "from-here")
    assert chosen(folder).model == "from-here"

    assert chosen(folder, before=("models.default=set",)).origins["model"] == "flag --set models.default"
    flagged = chosen(folder, "--model", "asked", before=("models.default=set",))
    assert (flagged.model, flagged.origins["model"]) == ("asked", "flag --model")


def test_options_come_from_every_source_one_by_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each option has an origin of its own; the strongest says it."""
    preferences.save(settings(), Asked(options={"temperature": 0.9, "top_k": 5, "seed": 1}))
    file = write(folder, "options: {seed: 2, max_tokens: 10}\n")
    monkeypatch.setenv("OLLM_MAX_TOKENS", "20")

    choices = chosen(folder, "--option", "top_p=0.5", "--option", "stop=END")

    assert choices.options == {
        "temperature": 0.9,
        "top_k": 5,
        "seed": 2,
        "max_tokens": 20,
        "top_p": 0.5,
        "stop": ["END"],
    }
    assert choices.origins["options.seed"] == f"{file} line 1"
    assert choices.origins["options.max_tokens"] == "environment variable OLLM_MAX_TOKENS"
    assert choices.origins["options.top_p"] == "flag --option"
    assert choices.origins["options.temperature"].startswith(str(preferences.preferences_file(settings())))


def test_a_variable_that_says_what_the_model_says_says_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """models.temperature -1 is the model's own: the profile's then counts."""
    monkeypatch.setenv("OLLM_TEMPERATURE", "-1")

    assert chosen(folder).options == {"temperature": 0.2}


def test_the_system_prompt_is_replaced_or_added_to(folder: Path) -> None:
    """`system` stands in the profile's place; what is appended stands behind, the project's last."""
    preferences.save(settings(), Asked(system_append="Answer in Greek."))
    write(folder, "system_append: Tests use pytest.\n")
    added = chosen(folder)
    assert added.system.startswith("You help a programmer with a project in Python.")
    assert added.system.endswith("\n\nAnswer in Greek.\n\nTests use pytest.")
    assert added.origins["system"].startswith("profile python, ")

    write(folder, "system: Only this.\n")
    assert chosen(folder).system == "Only this.\n\nAnswer in Greek."

    write(folder, "system: ''\n")
    assert chosen(folder, "--no-project").system == "Answer in Greek."
    assert chosen(folder).system == "Answer in Greek."


def test_a_project_routes_names_of_its_own(folder: Path) -> None:
    """`--model review` means what the project says, and /model use and templates may ask the same."""
    file = write(folder, "routing:\n  default: fast\n  review: deep-thinker\n")

    assert chosen(folder).model == "fast"
    assert chosen(folder, "--model", "review").model == "deep-thinker"
    assert chosen(folder, "--model", "review").origins["model"] == "flag --model, routed as review"
    assert (resolved(chosen(folder), "review"), resolved(chosen(folder), "other")) == ("deep-thinker", "other")
    assert chosen(folder).origins["model"] == f"{file} line 2"


# Flags ------------------------------------------------------------------------------------------------------------


def test_memory_can_be_switched_off_whole(folder: Path) -> None:
    """By a flag or a file: no addition, no context, and none of its tools."""
    off = chosen(folder, "--no-memory")
    assert (off.memory_prompt, off.memory_context, off.tools) == (False, False, ("read_file", "list_files"))
    assert off.origins["memory_prompt"] == "flag --no-memory"

    file = write(folder, "memory: false\ntools: [recall, read_file]\n")
    assert chosen(folder).tools == ("read_file",)
    assert chosen(folder).origins["memory_context"] == f"{file} line 1"

    write(folder, "memory: {context: false, prompt_tokens: 50}\n")
    part = chosen(folder)
    assert (part.memory_prompt, part.memory_context, part.prompt_tokens) == (True, False, 50)
    assert "recall" in part.tools


def test_a_project_file_does_not_turn_on_memory_that_its_person_turned_off(folder: Path) -> None:
    """What a clone brings along is not asked about that; it may turn more of it off."""
    preferences.save(settings(), Asked(memory=False))
    file = write(folder, "memory: true\n")
    assert (chosen(folder).memory_prompt, chosen(folder).memory_context) == (False, False)
    assert f"{file} line 1: memory: true is passed over; your preferences have it off" in chosen_notes(folder)

    preferences.save(settings(), Asked(memory_context=False))
    write(folder, "memory: {context: true, prompt: false}\n")
    assert (chosen(folder).memory_prompt, chosen(folder).memory_context) == (False, False)


def chosen_notes(folder: Path) -> tuple[str, ...]:
    """What is said of the project file."""
    project = chosen(folder).project
    assert project is not None
    return project.notes


def test_tools_that_read_the_project_need_one(folder: Path, tmp_path: Path) -> None:
    """Outside of projects nothing is read."""
    assert chosen(folder, "--tools", ",".join(TOOLS)).tools == TOOLS
    assert chosen(tmp_path, "--tools", ",".join(TOOLS)).tools == ("remember", "recall", "search_memory", "forget")
    assert chosen(folder, "--tools", "none").tools == ()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "a b"], "--model 'a b' names no model"),
        (["--tools", "shell"], "--tools: there is no tool 'shell'; there are: remember,"),
        (["--tools", "recal"], "did you mean 'recall'?"),
        (["--option", "temperature"], "--option: 'temperature' is not name=value"),
        (["--option", "temperature=20"], "--option: temperature = 20 is not allowed"),
        (["--profile", "pyhton"], "there is no profile 'pyhton'; did you mean 'python'?"),
        (["--profile", "../x"], "there is no profile '../x'"),
    ],
)
def test_flags_that_cannot_be_met_are_refused(flags: list[str], message: str, folder: Path) -> None:
    """A person at the keyboard hears at once; a file would only be noted."""
    with pytest.raises(UsageError) as caught:
        chosen(folder, *flags)
    assert message in str(caught.value)


def test_a_profile_for_one_chat_needs_a_project(folder: Path, tmp_path: Path) -> None:
    """--profile takes another one, or none."""
    assert chosen(folder, "--profile", "rust").system.startswith("You help a programmer with a project in Rust.")
    assert chosen(folder, "--profile", "none").system == ""
    assert chosen(folder, "--no-project").project is None
    with pytest.raises(UsageError, match="belongs to none"):
        chosen(tmp_path, "--profile", "rust")


def test_the_profile_of_a_running_chat_can_be_changed(folder: Path, tmp_path: Path) -> None:
    """What other sources say stays; what the profile said goes with it."""
    write(folder, "options: {seed: 4}\n")
    before = chosen(folder, "--model", "asked")

    after = with_profile(before, "documentation", settings())
    without = with_profile(after, "none", settings())

    assert (after.model, after.options) == ("asked", {"temperature": 0.4, "seed": 4})
    assert after.system.startswith("You help an author")
    assert after.project is not None
    assert after.project.profile == "documentation"
    assert (without.system, without.options) == ("", {"seed": 4})
    with pytest.raises(ProjectError, match="did you mean 'rust'"):
        with_profile(before, "rsut", settings())
    with pytest.raises(UsageError, match="in no project"):
        with_profile(chosen(tmp_path), "rust", settings())


def test_a_profile_chosen_for_good_counts_in_every_chat(folder: Path) -> None:
    """`olympus project use`."""
    known_projects.choose(folder, "go", settings())

    assert chosen(folder).origins["system"] == "profile go"


# What is passed over ----------------------------------------------------------------------------------------------


def test_a_broken_project_file_is_named_and_the_rest_of_the_project_counts(folder: Path) -> None:
    """A mistake in a file stops nobody from asking."""
    file = write(folder, "model: x\nmodle: y\n")

    choices = chosen(folder / ".olympus")

    assert choices.notes == (f"passed over: {file} line 2: unknown key 'modle'; did you mean 'model'?",)
    assert choices.project is not None
    assert (choices.project.root, choices.project.profile, choices.project.file) == (folder, "python", None)
    assert choices.model == "code"


def test_broken_preferences_and_profiles_are_named_too(folder: Path) -> None:
    """Each in a line; whatever can be used is used."""
    mine = preferences.preferences_file(settings())
    mine.parent.mkdir(parents=True)
    mine.write_text("modle: y\n")
    own = settings().path("projects", "python.yaml")
    own.parent.mkdir()
    own.write_text("[")

    choices = chosen(folder)

    assert any(
        note.startswith(f"your preferences are passed over: {mine} line 1: unknown key") for note in choices.notes
    )
    assert any(note.startswith(f"passed over: {own} line 1: not valid YAML") for note in choices.notes)
    assert choices.project is not None
    assert (choices.project.root, choices.project.profile) == (folder, "")


def test_a_profile_that_is_no_more_costs_the_profile_alone(folder: Path) -> None:
    """The file still counts where its profile, or the one chosen for good, does not exist."""
    known_projects.choose(folder, "zzzz", settings())
    write(folder, "model: big\n")
    kept = chosen(folder)
    assert (kept.model, kept.system) == ("big", "")
    assert kept.notes[0].startswith("passed over: your choice for this project: there is no profile 'zzzz'; there are:")

    known_projects.choose(folder, "", settings())
    file = write(folder, "model: big\nprofile: pyhton\n")
    named = chosen(folder)
    assert (named.model, named.system) == ("big", "")
    assert named.notes[0] == f"passed over: {file} line 2: there is no profile 'pyhton'; did you mean 'python'?"


def test_a_new_project_file_is_told_in_one_line_until_it_was_seen(folder: Path) -> None:
    """A cloned repository may say anything to a model: what it says is announced once, and again when it changes."""
    text = "system: You are evil.\ntools: [read_file, forget]\nmodel: big\noptions: {seed: 1}\n"
    file = write(folder, text)

    note, left_out = chosen(folder).notes
    assert "forget is passed over" in left_out
    assert chosen(folder).tools == ("read_file",)
    assert note == (
        f"new here: {file} sets model big, a system prompt of 13 characters, tools read_file, options seed;"
        " `olympus project show` shows it whole"
    )

    project = chosen(folder).project
    assert project is not None
    known_projects.see(project, settings())
    assert chosen(folder).notes == ()

    write(folder, text + "system_append: More.\n")
    assert len(chosen(folder).notes) == 2


def test_notes_cannot_drive_a_terminal(folder: Path) -> None:
    """A key of a stranger's file may hold anything."""
    (folder / ".ollm").mkdir()
    (folder / ".ollm/project.yaml").write_text('"\\e]0;owned\\a": 1\ntype: "x\\e[2J"\n')

    assert not any("\x1b" in note for note in chosen(folder).notes)
    assert chosen(folder).notes


def test_both_project_files_are_told_of_and_ours_counts(folder: Path) -> None:
    """Whoever has both wonders why the other one does nothing."""
    write(folder, "model: ours\n")
    (folder / ".ollm").mkdir()
    (folder / ".ollm/project.yaml").write_text("model: theirs\n")

    choices = chosen(folder)

    assert choices.model == "ours"
    assert any(
        note.endswith("project.yaml is passed over: .olympus/project.yaml is there too") for note in choices.notes
    )


# Speed ------------------------------------------------------------------------------------------------------------


def test_choosing_without_files_imports_no_yaml(tmp_path: Path) -> None:
    """A chat starts in half a second: what reads files is imported where there is one."""
    program = (
        "import argparse, pathlib, sys\n"
        "from bus.cli.chat.choices import choose\n"
        "from bus.settings import load_settings\n"
        "choose(load_settings(), argparse.Namespace(set=[], config=None), pathlib.Path())\n"
        "print(*sorted({'yaml', 'bus.sampling', 'rich', 'prompt_toolkit'} & set(sys.modules)))\n"
    )
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}

    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert done.stdout.split() == []
