"""Completion scripts, run by the shells themselves where they are installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from bus.cli import completion

SCRIPTS = {"bash": completion.bash, "zsh": completion.zsh, "fish": completion.fish}

ASK_BASH = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _olympus
printf '%s\\n' "${COMPREPLY[@]}"
"""


def in_shell(*argv: str) -> str:
    """stdout of a shell that must succeed."""
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script of each shell."""
    folder = tmp_path_factory.mktemp("completion")
    vocabulary = list(completion.vocabulary())
    for shell, make in SCRIPTS.items():
        (folder / shell).write_text(make(vocabulary))
    return folder


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_script_is_valid_in_its_shell(scripts: Path, shell: str) -> None:
    """The shell itself parses it."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")

    in_shell(shell, "-n", str(scripts / shell))


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["st"], {"status"}),
        (["req", "memory.kv.g"], {"memory.kv.get"}),
        (["--set", "bus.timeout_s", "=", "5", "tap", "memory.ch"], {"memory.changed.\\*"}),
        (["tap", "'memory.ch"], {"memory.changed.*"}),
        (["tap", "--he"], {"--help", "--headers-only"}),
        (["tap", "--ignore", "model.us"], {"model.usage"}),
        (["req", "--priority", ""], {"interactive", "batch"}),
        (["--set", "bus.request"], {"bus.request_port="}),
        (["completion", ""], {"bash", "zsh", "fish", "--help", "--config", "--set"}),
    ],
)
def test_bash_completes_commands_options_subjects_and_settings(
    scripts: Path, words: list[str], found: set[str]
) -> None:
    """What bash would offer, asked of bash."""
    offered = in_shell("bash", "-c", ASK_BASH, "bash", str(scripts / "bash"), "olympus", *words)

    assert set(offered.split()) == found


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_registers_the_completion(scripts: Path) -> None:
    """`complete -p` knows the command after sourcing."""
    asked = in_shell("bash", "-c", 'source "$1"; complete -p olympus', "bash", str(scripts / "bash"))

    assert "-F _olympus olympus" in asked


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes_subjects(scripts: Path) -> None:
    """What fish would offer, asked of fish."""
    offered = in_shell("fish", "-c", f"source {scripts / 'fish'}; complete -C 'olympus req memory.kv.g'")

    assert offered.split() == ["memory.kv.get"]
