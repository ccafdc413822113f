"""The memory service as a process, where the settings name a Redis that cannot be used as they say."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bus.settings import EX_CONFIG

ROOT = Path(__file__).parents[2]


def run_memory(home: Path, redis_url: str, *, search_first: str = "") -> subprocess.CompletedProcess[str]:
    """The service, started as a supervisor starts it, once it has ended. search_first: a folder to import from."""
    flags = ["--set", f"home={home}", "--set", f"memory.redis_url={redis_url}"]
    return subprocess.run(
        [sys.executable, "-m", "workers.memory", *flags],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": search_first},
    )


def test_redis_without_its_package_ends_the_process_with_status_78_and_instructions(tmp_path: Path) -> None:
    """No supervisor starts it again, and the person reads what to install or to leave empty."""
    (tmp_path / "first").mkdir()
    # In front of the package, if it is there: what an import says where it is not.
    (tmp_path / "first" / "redis.py").write_text("raise ModuleNotFoundError('No module named redis', name='redis')\n")

    done = run_memory(tmp_path / "home", "redis://127.0.0.1:1", search_first=str(tmp_path / "first"))

    assert done.returncode == EX_CONFIG
    assert "the package redis is missing: install the extra `search`, or leave memory.redis_url empty" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("redis") is None, reason="the package redis is not installed")
def test_unknown_argument_of_an_address_ends_the_process_with_status_78(tmp_path: Path) -> None:
    """It would fail at every request for ever."""
    done = run_memory(tmp_path / "home", "redis://127.0.0.1:1/?colour=red")

    assert done.returncode == EX_CONFIG
    assert "memory.redis_url cannot be used" in done.stderr
    assert "colour" in done.stderr
    assert "Traceback" not in done.stderr
