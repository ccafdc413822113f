"""`olympus template use` and `create` as a person runs them: against a real broker, and on a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chat_house import ChatHouse

# What a program prints is there by then, seconds.
_WAIT_S = 30.0


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatHouse]:
    """A broker and a scripted model for all tests of this file."""
    with ChatHouse(tmp_path_factory.mktemp("house") / "home", has_memory=False) as running:
        yield running


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An empty project to work in."""
    (tmp_path / ".git").mkdir()
    return tmp_path


def put(house: ChatHouse, name: str, text: str) -> None:
    """A template of the person's own."""
    folder = house.home / "templates"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(text)


def arguments(house: ChatHouse, *words: str) -> list[str]:
    """The program that `olympus template ...` runs."""
    return [sys.executable, "-m", "bus.cli.app", *house.flags, "template", *words]


def olympus(house: ChatHouse, project: Path, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """`olympus template ...` in a pipe."""
    return subprocess.run(
        arguments(house, *words),
        cwd=project,
        env=house.environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=_WAIT_S,
        check=False,
    )


def typed(house: ChatHouse, project: Path, words: list[str], answers: list[tuple[str, str]], **more: str) -> str:
    """All that `olympus template ...` shows on a terminal, where each text once shown is answered with the next."""
    leader, follower = pty.openpty()
    environment = house.environment | {"TERM": "xterm"} | more
    with subprocess.Popen(
        arguments(house, *words), cwd=project, env=environment, stdin=follower, stdout=follower, stderr=follower
    ) as process:
        os.close(follower)
        shown, seen = "", 0
        give_up_at = time.monotonic() + _WAIT_S
        try:
            while True:
                assert time.monotonic() < give_up_at, f"waited {_WAIT_S:g} s for {answers}; shown: {shown!r}"
                if answers and answers[0][0] in shown[seen:]:
                    seen = shown.index(answers[0][0], seen) + len(answers[0][0])
                    os.write(leader, answers.pop(0)[1].encode())
                if not select.select([leader], [], [], 0.2)[0]:
                    continue
                try:
                    piece = os.read(leader, 65_536)
                # Linux says so when the last program has closed its end.
                except OSError:
                    break
                if not piece:
                    break
                shown += piece.decode()
        finally:
            process.kill()
            os.close(leader)
    assert answers == []
    return shown.replace("\r\n", "\n")


def test_the_answer_streams_and_the_template_says_with_what(house: ChatHouse, project: Path) -> None:
    """Prompt, system, model and options reach the model; the answer is on stdout, its figures on stderr."""
    put(house, "full", "prompt: 'Read {text}'\nsystem: You are {how:calm}.\nmodel: plain\noptions: {seed: 7}")
    house.answer("It ", "says ", "hello.")

    done = olympus(house, project, "use", "full", "text=-", stdin="a {how} b")

    assert (done.returncode, done.stdout) == (0, "It says hello.\n")
    assert "plain · " in done.stderr
    asked = house.asked[-1]
    assert [(one.role, one.content) for one in asked.messages] == [
        ("system", "You are calm."),
        ("user", "Read a {how} b"),
    ]
    assert (asked.model, asked.seed) == ("plain", 7)


def test_a_model_that_is_not_there_is_replaced_and_that_is_said(house: ChatHouse, project: Path) -> None:
    """The template's gives way to the default one; one named on the command line does not."""
    put(house, "elsewhere", "prompt: hi\nmodel: qwen9-70b")
    house.answer("Done.")

    done = olympus(house, project, "use", "elsewhere", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]

    assert done.returncode == 0
    assert "qwen9-70b" in done.stderr
    assert "the default model answers instead of the template's" in done.stderr
    assert lines[-1]["kind"] == "final"
    assert lines[-1]["body"]["text"] == "Done."
    refused = olympus(house, project, "use", "elsewhere", "--model", "also-absent")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "not_found" in refused.stderr


def test_a_projects_template_in_place_of_ones_own_is_told(house: ChatHouse, project: Path) -> None:
    """Before the answer, on stderr."""
    put(house, "same", "prompt: mine")
    folder = project / ".olympus" / "templates"
    folder.mkdir(parents=True)
    (folder / "same.yaml").write_text("prompt: theirs")
    house.answer("Yes.")

    done = olympus(house, project, "use", "same")

    assert done.stdout == "Yes.\n"
    assert f"this is the project's same ({folder / 'same.yaml'}), not yours" in done.stderr
    assert house.asked[-1].messages[-1].content == "theirs"


def test_what_is_missing_is_asked_for_on_a_terminal(house: ChatHouse, project: Path) -> None:
    """Choices are told and kept to; several lines end with a dot; a brace in an answer stays."""
    put(
        house,
        "asks",
        "prompt: '{size} {text}'\nvariables:\n  size: {choices: [short, long]}\n  text: {multiline: true}",
    )
    house.answer("Asked.")

    shown = typed(
        house,
        project,
        ["use", "asks"],
        [
            ("size (short, long): ", "tiny\n"),
            ("size (short, long): ", "long\n"),
            ("text: ", "one {size}\ntwo\n.\n"),
        ],
    )

    assert "size is 'tiny'; allowed: short, long" in shown
    assert "Asked.\n" in shown
    assert house.asked[-1].messages[-1].content == "long one {size}\ntwo"


def test_the_end_of_input_gives_up(house: ChatHouse, project: Path) -> None:
    """Ctrl-D at a question asks nobody."""
    put(house, "asks", "prompt: '{a}'")
    before = len(house.asked)

    assert "given up: nothing was asked" in typed(house, project, ["use", "asks"], [("a: ", "\x04")])
    assert len(house.asked) == before


def test_a_template_is_written_in_the_editor_until_it_is_right(house: ChatHouse, project: Path) -> None:
    """The first draft is wrong and edited again; the second is kept. A draft given up stays where it is."""
    editor = project / "editor"
    editor.write_text(
        '#!/bin/sh\nif grep -q WRONG "$1"; then echo \'prompt: right {a}\' > "$1"; else echo \'prompt: [WRONG\' > "$1"; fi\n'
    )
    editor.chmod(editor.stat().st_mode | stat.S_IXUSR)

    again = typed(house, project, ["create", "edited"], [("edit it again? [y/N] ", "y\n")], EDITOR=str(editor))
    given_up = typed(house, project, ["create", "other"], [("edit it again? [y/N] ", "\n")], EDITOR=str(editor))

    assert "not valid YAML" in again
    assert (house.home / "templates" / "edited.yaml").read_text() == "prompt: right {a}\n"
    assert "the draft is kept there" in given_up
    assert not (house.home / "templates" / "other.yaml").exists()
    kept = Path(next(line for line in given_up.splitlines() if "kept there" in line).split(": ")[1])
    assert kept.read_text() == "prompt: [WRONG\n"
    kept.unlink()
    kept.parent.rmdir()
