"""The model service does not start on rules or records that it cannot use, says which and why, and is not started again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bus.settings import EX_CONFIG

ROOT = Path(__file__).resolve().parents[2]

# The bus cannot be reached there; it never gets that far.
NOWHERE = "--set", "bus.request_port=9"


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("models.toml", '[[rule]]\nmodels = ["a"]\npriority = 9\n', ("line 3", "priority", "9", "1 to 5")),
        ("models.toml", "[profile\n", ("models.toml", "TOML")),
        ("models.db", "no database, " * 100, ("models.db",)),
    ],
)
def test_the_service_leaves_with_one_line_that_says_what_is_wrong(
    tmp_path: Path, file: str, content: str, words: tuple[str, ...]
) -> None:
    """Status 78, which its supervisor takes for final, and no traceback."""
    (tmp_path / file).write_text(content)

    done = subprocess.run(
        [sys.executable, "-m", "workers.models", *NOWHERE],
        env={**os.environ, "OLYMPUS_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=ROOT,
    )

    assert done.returncode == EX_CONFIG, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr.strip().splitlines()[-1] for word in words), done.stderr
