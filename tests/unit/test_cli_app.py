"""The command's table, its global options, its help texts and its exit codes."""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from bus.cli import app, exits, failures
from bus.client import BrokerUnreachable
from bus.settings import SettingsError
from bus.version import VERSION
from schemas import errors

# Modules that only a command that needs them may load.
HEAVY = ("asyncio", "msgspec", "yaml", "tenacity", "uvloop", "bus.client", "bus.settings", "schemas.catalog")


def test_help_loads_no_command_and_nothing_heavy() -> None:
    """`olympus --help` answers from the table alone."""
    program = f"""
import sys
from bus.cli import app
try:
    app.main(["--help"])
except SystemExit:
    pass
loaded = [name for name in {HEAVY!r} if name in sys.modules]
loaded += [command.module for command in app.COMMANDS if command.module in sys.modules]
sys.exit(" ".join(loaded) or 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)

    assert done.returncode == 0, done.stderr
    assert "exit codes:" in done.stdout


@pytest.mark.parametrize("command", app.COMMANDS, ids=lambda command: command.name)
def test_every_help_ends_with_examples_that_call_the_command(command: app.Command) -> None:
    """Each command's help has an "examples:" part that shows the command itself."""
    text = app.command_parser(command).format_help()

    examples = text.partition("examples:\n")[2]
    assert "olympus" in examples
    assert command.name in examples
    assert "--set KEY=VALUE" in text
    assert "--config FILE" in text


def test_version_is_told_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """One line, for scripts and for reports."""
    with pytest.raises(SystemExit) as ended:
        app.main(["--version"])

    assert ended.value.code == exits.OK
    assert capsys.readouterr().out == f"olympus {VERSION}\n"


def test_unknown_command_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    """A typing error is answered with the command that was meant."""
    with pytest.raises(SystemExit) as ended:
        app.main(["statsu"])

    assert ended.value.code == exits.USAGE
    assert "did you mean 'status'?" in capsys.readouterr().err


def test_no_command_prints_help_and_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """`olympus` alone shows what there is."""
    assert app.main([]) == exits.USAGE
    assert "commands:" in capsys.readouterr().out


def run_recording(monkeypatch: pytest.MonkeyPatch, argv: list[str], run: Any) -> int:
    """Run `argv` with a stand-in for every command module."""

    def configure(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("words", nargs="*")

    monkeypatch.setattr(app, "_load", lambda command: SimpleNamespace(HELP="h", configure=configure, run=run))
    return app.main(argv)


def test_global_options_stand_before_and_after_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--set` adds up from both places, and the later `--config` wins."""
    seen: list[argparse.Namespace] = []

    code = run_recording(
        monkeypatch,
        ["--config", "a.yaml", "--set", "x=1", "status", "word", "--set", "y=2", "--config", "b.yaml"],
        lambda args: seen.append(args) or exits.OK,
    )

    assert code == exits.OK
    assert (seen[0].config, seen[0].set, seen[0].words) == ("b.yaml", ["x=1", "y=2"], ["word"])


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        (errors.NotFound("no key 'a'", field="key"), exits.FAILED, "not_found: no key 'a'\n  field: key"),
        (errors.DeadlineExceeded("after 5 s"), exits.TIMED_OUT, "deadline_exceeded: after 5 s"),
        (SettingsError("bus.timeout_s = 'x'"), exits.CONFIGURATION, "settings: bus.timeout_s"),
        (failures.UsageError("--no-follow needs --since"), exits.USAGE, "needs --since"),
        (failures.Unreachable("no broker at h:1"), exits.UNREACHABLE, "no broker at h:1"),
        (BrokerUnreachable("no connection to the broker"), exits.UNREACHABLE, "no connection to the broker"),
        (KeyboardInterrupt(), exits.INTERRUPTED, ""),
    ],
)
def test_each_failure_has_its_exit_code_and_its_words(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: BaseException,
    code: int,
    says: str,
) -> None:
    """What a command raises becomes one code and a text on stderr, nothing on stdout."""

    def run(args: argparse.Namespace) -> int:
        raise raised

    assert run_recording(monkeypatch, ["status"], run) == code

    printed = capsys.readouterr()
    assert says in printed.err
    assert printed.out == ""


def test_a_fault_in_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error nobody declared is not dressed up as a failed request."""

    def run(args: argparse.Namespace) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_recording(monkeypatch, ["status"], run)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A command whose package is not installed says which one and how to get it."""

    def run(args: argparse.Namespace) -> int:
        raise ModuleNotFoundError("No module named 'honcho'", name="honcho")

    assert run_recording(monkeypatch, ["up"], run) == exits.FAILED
    assert "honcho is not installed; scripts/start installs it" in capsys.readouterr().err


def test_a_reader_that_leaves_ends_the_command_quietly() -> None:
    """`olympus req --list | head -n 1` prints one line and no traceback."""
    # The pipe is nearly full when the command begins, so that it still writes when the reader has left.
    program = (
        "from bus.cli import app; import os, sys; os.write(1, b'x' * 65_000); sys.exit(app.main(['req', '--list']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        os.read(process.stdout.fileno(), 1)
        process.stdout.close()
        code = process.wait(timeout=30)
        talk = process.stderr.read()

    assert code == exits.BROKEN_PIPE
    assert "Traceback" not in talk
    assert "BrokenPipe" not in talk


def test_a_terminal_that_knows_fewer_characters_gets_question_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stdout cannot encode stops no command."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with pytest.raises(SystemExit):
        app.main(["--help"])
    sys.stdout.write("café ›")
    sys.stdout.flush()
    assert raw.getvalue().endswith(b"caf? ?")
