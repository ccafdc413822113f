"""The documents hold every command, exit code and operation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bus.cli import app, exits
from schemas import catalog

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("command", app.COMMANDS, ids=lambda command: command.name)
def test_every_command_has_its_examples_in_the_document(command: app.Command) -> None:
    """docs/cli.md has a row and at least one example of each command."""
    text = (ROOT / "docs" / "cli.md").read_text()

    assert f"[`{command.name}`](#" in text
    assert any(line.startswith("olympus ") and f" {command.name}" in line for line in text.splitlines()) or (
        f"(olympus {command.name}" in text
    )


def test_every_exit_code_is_documented_in_the_same_words() -> None:
    """The table of docs/cli.md is the one of `olympus --help`."""
    text = (ROOT / "docs" / "cli.md").read_text()

    for code, meaning in exits.MEANINGS.items():
        assert f"| {code} | {meaning} |" in text
        assert f"{code:>3}  {meaning}" in app.root_parser().format_help()


def test_the_operations_document_is_up_to_date() -> None:
    """docs/operations.md is what the catalogue says now."""
    script = ROOT / "scripts" / "make_operations_doc.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, timeout=30, check=False)

    assert done.returncode == 0, done.stderr


def test_every_operation_and_event_is_in_the_operations_document() -> None:
    """Nothing of the catalogue is left out."""
    text = (ROOT / "docs" / "operations.md").read_text()

    assert [subject for subject in catalog.OPERATIONS if f"### `{subject}`" not in text] == []
    assert [event.pattern for event in catalog.EVENTS if f"| `{event.pattern}` |" not in text] == []
