"""What a command imports before it is needed costs everyone who waits for a prompt: here it is counted and forbidden."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chat_house import WAIT_S, ChatHouse

# Not before an answer is drawn, a file is read, a model runs.
HEAVY = {
    "aiosqlite",
    "httpx",
    "jinja2",
    "litestar",
    "markdown_it",
    "numpy",
    "onnxruntime",
    "pygments",
    "rich.markdown",
    "tokenizers",
    "torch",
    "transformers",
    "uvloop",
    "yaml",
    "zmq",
}

# What a terminal is drawn with: a pipe has no use for it.
TERMINAL = {"prompt_toolkit", "rich"}

# What speaks to the bus: a help text has no use for it.
BUS = {"asyncio", "bus.client", "bus.settings", "msgspec", "ssl", "tenacity", "uvloop"}

# Modules imported in all, the interpreter's own among them: as counted, and a sixth more for other versions of Python and
# of libraries. One that comes in unseen, with others behind it, fails the test.
HELP_MODULES = 90
PLAIN_MODULES = 320
TERMINAL_MODULES = 590


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatHouse]:
    """A broker and a scripted model."""
    with ChatHouse(tmp_path_factory.mktemp("house") / "home", has_memory=False) as house:
        yield house


def imported(listing: str) -> set[str]:
    """The modules of a listing that `python -X importtime` writes."""
    return set(re.findall(r"^import time: +\d+ \| +\d+ \| +([\w.]+)$", listing, re.MULTILINE))


def found(names: set[str], modules: set[str]) -> set[str]:
    """Those of `names` that are among the modules, or have a module below them there."""
    return {name for name in names if any(module == name or module.startswith(f"{name}.") for module in modules)}


def olympus(*arguments: str) -> list[str]:
    """The command, telling what it imports on stderr."""
    return [sys.executable, "-X", "importtime", "-m", "bus.cli.app", *arguments]


def test_help_imports_next_to_nothing() -> None:
    """`olympus --help` is argparse and a table of commands."""
    done = subprocess.run(olympus("--help"), check=True, capture_output=True, text=True, timeout=60)

    modules = imported(done.stderr)

    assert "argparse" in modules and "usage: olympus" in done.stdout
    assert found(HEAVY | TERMINAL | BUS, modules) == set()
    assert len(modules) <= HELP_MODULES


def test_a_question_in_a_pipe_imports_no_terminal(house: ChatHouse, tmp_path: Path) -> None:
    """Asked and answered, without what draws."""
    done = subprocess.run(
        olympus("chat", *house.flags, "hello"),
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env=house.environment,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
    )

    modules = imported(done.stderr)

    assert done.stdout.strip() == "You said: hello"
    assert found(HEAVY | TERMINAL, modules) == set()
    assert len(modules) <= PLAIN_MODULES


def test_a_chat_is_ready_before_anything_heavy_is_imported(house: ChatHouse, tmp_path: Path) -> None:
    """Up to the prompt, with the system up: no markdown, no colours for code, no file formats."""
    listing = tmp_path / "listing"
    keyboard, terminal = pty.openpty()
    with listing.open("w") as errors:
        chat = subprocess.Popen(
            olympus("chat", *house.flags),
            stdin=terminal,
            stdout=terminal,
            stderr=errors,
            env={**house.environment, "TERM": "xterm-256color"},
            cwd=tmp_path,
        )
    os.close(terminal)
    try:
        drawn = b""
        while "› ".encode() not in drawn:
            assert select.select([keyboard], [], [], WAIT_S)[0], f"no prompt within {WAIT_S:g} s: {drawn!r}"
            drawn += os.read(keyboard, 4096)
        modules = imported(listing.read_text())
        os.write(keyboard, b"\x04")
        assert chat.wait(WAIT_S) == 0
    finally:
        chat.kill()
        chat.wait()
        os.close(keyboard)

    assert "prompt_toolkit" in modules
    assert found(HEAVY, modules) == set()
    assert len(modules) <= TERMINAL_MODULES
