"""The flags of models: short for `--set`, checked and handed on like it."""

from __future__ import annotations

import argparse

import pytest

from bus.cli import app
from bus.cli.arguments import overrides_from, settings_flags
from bus.cli.model_flags import add_model_flags
from bus.settings import OTHER_VARIABLES


def parsed(*argv: str) -> argparse.Namespace:
    """What a command with these flags gets."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    parser.add_argument("--set", action="append", default=[])
    add_model_flags(parser)
    return parser.parse_args(argv)


def test_flags_are_settings() -> None:
    """Each one sets its key, in the order in which they are written."""
    args = parsed("--model", "a", "--set", "models.parallel=2", "--temperature", "0.2", "--max-tokens", "9")

    assert overrides_from(args) == {
        "models.default": "a",
        "models.parallel": "2",
        "models.temperature": "0.2",
        "models.max_tokens": "9",
    }


def test_flags_reach_child_processes() -> None:
    """A service started elsewhere reads the same settings."""
    assert settings_flags(parsed("--provider", "ollama", "--host", "http://127.0.0.1:1")) == [
        "--set",
        "models.provider=ollama",
        "--set",
        "models.host=http://127.0.0.1:1",
    ]


def test_every_shared_variable_has_a_flag() -> None:
    """What OLLM_* sets can be set by a flag, and the other way round."""
    flags = ("--model", "--provider", "--host", "--temperature", "--max-tokens", "--context-size")
    args = parsed(*(part for flag in flags for part in (flag, "1")))

    assert set(overrides_from(args)) == set(OTHER_VARIABLES.values())


@pytest.mark.parametrize("argv", [["--temperature", "99", "worker", "models"], ["up", "--temperature", "99"]])
def test_wrong_value_ends_the_command_with_the_range(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Before and behind the command, a wrong value starts nothing and says what is allowed."""
    assert app.main(argv) != 0

    assert "models.temperature = '99' is not allowed; allowed: -1 to 10" in capsys.readouterr().err
