"""`olympus compare` in a real terminal: columns that stream, a pick by key, and a terminal that is left as it was."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.cli import exits
from tests.chat_house import Say
from tests.golden_screen import assert_golden
from tests.tmux import Tmux
from tests.trial_house import TrialHouse

# What a key of the terminal sends that tmux has another name for.
PAGE_UP, PAGE_DOWN = "\x1b[5~", "\x1b[6~"

STORY = "".join(f"Line {number} of a long story.\n" for number in range(1, 61))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrialHouse]:
    """One house for all of these tests, each of which scripts its own answers."""
    with TrialHouse(tmp_path_factory.mktemp("compare") / "home") as house:
        yield house


@pytest.fixture(autouse=True)
def scripted(house: TrialHouse) -> None:
    """What the models say where a test wants nothing else."""
    house.scripts = {
        "tiny": Say(pieces=["The answer is **4**, ", "as 2 + 2 are 4.\n\n", "日本語 and \x1b[31mé are fine, too."]),
        "plain": Say(pieces=["Four."], tokens_per_s=1234.5),
        "big": Say(pieces=["I think"], error=("internal", "it fell over")),
    }


def compare(house: TrialHouse, *arguments: str, columns: int = 80, rows: int = 20) -> Tmux:
    """The command in a window, whose terminal outlives it."""
    command = shlex.join([sys.executable, "-m", "bus.cli.app", *house.flags, "compare", *arguments])
    told = (
        f"{command} & echo $! > {house.home}/pid; fg > /dev/null; code=$?; stty -a; echo ended by $code; exec sleep 600"
    )
    environment = {"PYTHONPATH": house.environment["PYTHONPATH"]}
    return Tmux(["sh", "-mc", told], columns=columns, rows=rows, environment=environment)


def ended(screen: Tmux) -> int:
    """The exit status, once the command has ended; the terminal is then as every program expects it."""
    screen.wait_for("ended by *[0-9]+")
    words = screen.everything().split()
    assert {"icanon", "echo", "isig", "ixon", "icrnl", "iexten"} <= set(words), words
    return int(words[-1])


def test_answers_stand_side_by_side_and_a_key_picks_the_best(house: TrialHouse) -> None:
    """The note goes with it; all of it is in the scrollback afterwards, and the pick is kept under the id that is said."""
    with compare(house, "What is 2 + 2?", "tiny", "plain", "big") as screen:
        screen.wait_for("1-3 best")
        assert_golden(screen, "compare-80x20")
        screen.keys("n", "short & clear", "Enter", "3")
        screen.wait_for("answer 3 failed")
        screen.keys("2")
        assert ended(screen) == exits.OK
        printed = screen.everything()

    assert "--- 2. plain\nFour." in printed
    assert "internal: it fell over" in printed
    assert "picked: plain is the best (short & clear)" in printed
    comparison_id = printed.split("recorded as ")[1].split()[0]
    kept = house.request("model.compare.get", {"comparison_id": comparison_id})
    assert (kept.picked, kept.note) == ("plain", "short & clear")


@pytest.mark.parametrize(("columns", "rows"), [(40, 16), (20, 12)])
def test_narrow_windows_stack_the_answers(house: TrialHouse, columns: int, rows: int) -> None:
    """Tab goes to those that have no room; q picks none."""
    with compare(house, "What is 2 + 2?", "tiny", "plain", "big", columns=columns, rows=rows) as screen:
        screen.wait_for("1-3 best")
        screen.keys("Tab", "Tab")
        screen.wait_for("3 big")
        assert_golden(screen, f"compare-{columns}x{rows}")
        screen.keys("q")
        assert ended(screen) == exits.OK
        assert "nothing was picked" in " ".join(screen.everything().split())


def test_a_long_answer_is_followed_while_it_streams_and_scrolled_afterwards(house: TrialHouse) -> None:
    """The window may change its size at any time."""
    house.scripts["tiny"] = Say(pieces=STORY.splitlines(keepends=True), waits=True)
    with compare(house, "Tell me a story.", "tiny", "plain") as screen:
        screen.until(lambda text: "Line 60 of" in text and "1 of 2 done" in text, "the end of the story")
        screen.keys(PAGE_UP)
        screen.until(lambda text: "Line 60 of" not in text, "an earlier page")
        screen.keys("Home")
        screen.wait_for("Line 1 of")
        screen.resize(50, 12)
        screen.until(lambda text: "Line 1 of" in text and len(text.splitlines()) == 12, "the frame of a smaller window")
        house.release()
        screen.wait_for("1-2 best")
        screen.keys("End")
        screen.wait_for("Line 60 of")
        screen.keys("t")
        assert ended(screen) == exits.OK
        printed = screen.everything()
    assert "Line 1 of a long story." in printed
    assert "picked: a tie" in printed


def test_ctrl_c_stops_every_model_and_keeps_nothing(house: TrialHouse) -> None:
    """The generations end on the bus, and the terminal is as it was."""
    house.scripts["tiny"] = house.scripts["plain"] = Say(pieces=["so far"], waits=True)
    before = house.cancelled
    with compare(house, "Think.", "tiny", "plain") as screen:
        screen.until(lambda text: text.count("so far") == 2, "both answers")
        screen.keys("C-c")
        assert ended(screen) == exits.INTERRUPTED
        assert "stopped: nothing of it is kept" in screen.everything()
    house.until(lambda: house.cancelled == before + 2, "the end of both generations")


def test_blind_columns_have_no_names_until_the_pick(house: TrialHouse) -> None:
    """Afterwards the names are printed in the order of the columns."""
    house.scripts = {name: Say(pieces=["the same"]) for name in ("tiny", "plain")}
    with compare(house, "Which one?", "tiny", "plain", "--blind") as screen:
        shown = screen.wait_for("1-2 best")
        assert "tiny" not in shown
        assert "plain" not in shown
        screen.keys("1")
        assert ended(screen) == exits.OK
        printed = screen.everything()
    first = printed.split("--- 1. ")[1].split()[0]
    assert f"picked: {first} is the best" in printed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_the_terminal_is_given_back_when_the_program_is_ended(house: TrialHouse, number: int) -> None:
    """By a signal that ends it; what was on the screen before is there again."""
    house.scripts["tiny"] = Say(pieces=["so far"], waits=True)
    with compare(house, "Think.", "tiny", "plain") as screen:
        screen.wait_for("so far")
        os.kill(int((house.home / "pid").read_text()), number)
        assert ended(screen) == 128 + number
        assert "so far" not in screen.screen()
    house.release()


def test_a_bus_that_goes_away_in_the_middle_ends_it_with_a_clear_word(
    house: TrialHouse, caplog: pytest.LogCaptureFixture
) -> None:
    """While it is away the view says so; once it is back the stream is known to be broken."""
    house.scripts["tiny"] = Say(pieces=["so far"], waits=True)
    with compare(house, "Think.", "tiny", "plain") as screen:
        screen.wait_for("so far")
        house.stop_broker()
        try:
            assert "so far" in screen.wait_for("! no broker for")
        finally:
            house.start_broker()
        assert ended(screen) == exits.UNREACHABLE
        printed = " ".join(screen.everything().split())
    assert "handler failed" not in caplog.messages
    assert "the bus went away in the middle of the comparison" in printed
    assert "nothing of it is kept" in printed


def test_an_unknown_model_is_named_with_the_nearest(house: TrialHouse) -> None:
    """Before anything is asked or drawn."""
    asked = len(house.asked)
    with compare(house, "Hi", "tiny", "plian") as screen:
        assert ended(screen) == exits.USAGE
        assert "'plian'; did you mean 'plain'?" in " ".join(screen.everything().split())
    assert len(house.asked) == asked


def test_without_a_terminal_the_answers_are_printed(house: TrialHouse, tmp_path: Path) -> None:
    """Into a pipe and with --json, and --show prints them again."""
    import json
    import subprocess

    def olympus(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bus.cli.app", *house.flags, *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, env=house.environment, input="", check=False
        )

    printed = olympus("compare", "2 + 2?", "--temperature", "0", "tiny", "plain")
    document = json.loads(olympus("models", "compare", "2 + 2?", "tiny", "plain", "--json").stdout)
    shown = olympus("compare", "--show", document["comparison_id"])

    assert printed.returncode == exits.OK
    assert "--- 2. plain\nFour." in printed.stdout
    assert "\x1b" not in printed.stdout
    assert [answer["model"] for answer in document["answers"]] == ["tiny", "plain"]
    assert shown.stdout.startswith("> 2 + 2?\n")
    assert f"id {document['comparison_id']}" in shown.stdout
    assert olympus("compare", "2 + 2?", "tiny").returncode == exits.USAGE
    assert olympus("compare", "2 + 2?", "tiny", "tiny").returncode == exits.USAGE
    assert olympus("compare", "--show", "../x").returncode == exits.USAGE
