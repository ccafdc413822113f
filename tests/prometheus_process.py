"""A Prometheus and its tool promtool for tests: found and used, or the test is skipped with the reason."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "config" / "prometheus.yml"
RULES = sorted((ROOT / "config" / "prometheus" / "rules").glob("*.yml"))


def program(name: str) -> str:
    """The path of prometheus or promtool, which one Debian package holds."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian package prometheus)")
    return found


def promtool(*arguments: str | Path, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """What promtool says, with `given` as its input; stdout and stderr are one."""
    return subprocess.run(
        [program("promtool"), *map(str, arguments)],
        check=False,
        input=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
