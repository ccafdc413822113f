"""`olympus top` in a real terminal: its views and actions, a broker that goes away, and a terminal left as it was."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator

import msgspec
import pytest

from tests.golden_screen import assert_golden
from tests.tmux import Tmux
from tests.trial_house import ERROR, JOB, TrialHouse

# What differs from run to run: the rest of the first line.
_CLOCKS = "(?<=^olympus · paused).*|(?<= · )[0-9]+ req/s.*"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrialHouse]:
    """One house for all of these tests."""
    with TrialHouse(tmp_path_factory.mktemp("top") / "home") as house:
        yield house


def top(house: TrialHouse, *, columns: int = 80, rows: int = 20) -> Tmux:
    """The command in a window, started by a shell that controls its jobs, as people do."""
    command = shlex.join([sys.executable, "-m", "bus.cli.app", *house.flags, "top", "--every", "0.2"])
    environment = {"PYTHONPATH": house.environment["PYTHONPATH"], "PS1": "shell> ", "ENV": ""}
    screen = Tmux(["sh", "-i"], columns=columns, rows=rows, environment=environment)
    screen.wait_for("^shell>$")
    # The shell in between becomes the command, whose process id it tells.
    noted = shlex.join(["sh", "-c", f"echo $$ > {house.home}/pid; exec {command}"])
    screen.keys(f"{noted}; echo ended by $?", "Enter")
    screen.wait_for("^SERVICE")
    return screen


def assert_given_back(screen: Tmux, code: int) -> None:
    """The command ended with this status, and the terminal is the shell's as it was."""
    screen.wait_for(f"^ended by {code}$")
    screen.keys("echo typed", "Enter")
    screen.wait_for("^typed$")


def test_every_view_shows_its_part_and_q_gives_the_terminal_back(house: TrialHouse) -> None:
    """By number, Tab and arrows; ? explains the keys."""
    with top(house) as screen:
        screen.wait_for("^gpu0 .*8.0 GiB")
        screen.wait_for("^model +1 ")
        screen.keys("2")
        screen.wait_for("  model-house +serving")
        screen.keys("Tab")
        screen.wait_for("^tiny +loaded")
        screen.keys("Right")
        screen.wait_for("^job-1 +training +40/100")
        screen.keys("5")
        screen.wait_for("^5f0c2b66 .* DiskFull: no room for")
        screen.keys("Enter")
        screen.wait_for("^fingerprint +5f0c2b66aa")
        screen.keys("?")
        screen.wait_for("any key goes back")
        screen.keys("x", "Escape", "q")
        assert_given_back(screen, 0)


def test_models_are_loaded_unloaded_and_pinned_by_key_after_a_question(house: TrialHouse) -> None:
    """The next look shows what has become of it; a filter finds the model."""
    with top(house) as screen:
        screen.keys("3", "/", "big", "Enter")
        screen.until(lambda text: "big" in text and "tiny" not in text, "the filtered list")
        screen.keys("l")
        screen.wait_for(r"load big\? \[y/n\]")
        screen.keys("n")
        screen.wait_for("^not done")
        screen.keys("l", "y")
        screen.wait_for("^big is in memory")
        screen.wait_for("^big +loaded")
        screen.keys("u", "y")
        screen.wait_for("^big is out of memory")
        screen.wait_for("^big +available")
        screen.keys("k", "y")
        screen.wait_for("^big is pinned")


def test_a_job_is_stopped_and_an_error_acknowledged(house: TrialHouse) -> None:
    """Each is gone from what is open with the next look."""
    try:
        with top(house) as screen:
            screen.keys("4", "x")
            screen.wait_for(r"stop job-1\? \[y/n\]")
            screen.keys("y")
            screen.wait_for("^job-1 +stopped")
            screen.keys("5")
            screen.wait_for("^5f0c2b66")
            screen.keys("a", "y")
            screen.wait_for("^no open errors")
    finally:
        house.jobs, house.groups = [JOB], [ERROR]


def test_what_an_action_fails_with_is_said(house: TrialHouse) -> None:
    """The view goes on."""
    house.jobs = [msgspec.structs.replace(JOB, job_id="ghost")]
    try:
        with top(house) as screen:
            screen.keys("4")
            screen.wait_for("^ghost")
            house.jobs = []
            screen.keys("x", "y")
            screen.wait_for("! not_found: no job ghost|there is no job")
    finally:
        house.jobs = [JOB]


@pytest.mark.parametrize(("columns", "rows"), [(80, 12), (20, 10)])
def test_the_list_of_models_looks_as_it_is_meant_to(house: TrialHouse, columns: int, rows: int) -> None:
    """Golden screens; Space stands still, so that no clock changes them."""
    with top(house, columns=columns, rows=rows) as screen:
        screen.keys("3")
        screen.wait_for("^plain")
        screen.keys(" ", "Down", "?")
        screen.wait_for("1-5, Tab")
        assert_golden(screen, f"top-help-{columns}x{rows}", _CLOCKS)
        screen.keys("x")
        screen.wait_for("^plain")
        assert_golden(screen, f"top-models-{columns}x{rows}", _CLOCKS)


def test_a_broker_that_goes_away_is_said_and_the_view_comes_back_with_it(house: TrialHouse) -> None:
    """What was seen last stays on the screen meanwhile."""
    with top(house) as screen:
        screen.keys("3")
        screen.wait_for("^tiny")
        house.stop_broker()
        try:
            assert "tiny" in screen.wait_for("^! no broker for [0-9]+ s, asking again")
        finally:
            house.start_broker()
        screen.wait_for("^olympus · ")
        screen.keys("q")
        assert_given_back(screen, 0)


def test_it_is_stopped_and_goes_on_and_follows_the_window(house: TrialHouse) -> None:
    """Ctrl-Z gives the shell its terminal; fg brings the view back, in a window that has another size by then."""
    with top(house) as screen:
        screen.keys("3")
        screen.wait_for("^tiny")
        screen.keys("C-z")
        screen.wait_for("^shell>$")
        screen.keys("echo typed", "Enter")
        screen.wait_for("^typed$")
        screen.resize(40, 12)
        screen.keys("fg", "Enter")
        screen.until(lambda text: "tiny" in text and "shell>" not in text, "the view")
        screen.resize(20, 8)
        screen.until(lambda text: "tiny" in text and len(text.splitlines()) == 8, "the frame of a small window")
        screen.keys("q")
        screen.resize(80, 20)
        assert "typed" in screen.wait_for("^shell>$")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_that_ends_it_leaves_the_terminal_as_it_was(house: TrialHouse, number: int) -> None:
    """As if it had ended by itself, with the status of the signal."""
    with top(house) as screen:
        screen.keys("3")
        screen.wait_for("^tiny")
        os.kill(int((house.home / "pid").read_text()), number)
        assert_given_back(screen, 128 + number)
