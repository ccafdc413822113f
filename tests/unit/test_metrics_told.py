"""Every metric that is declared is counted or read somewhere: none is promised and never told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from schemas import metrics

ROOT = Path(__file__).resolve().parents[2]
DECLARED = sorted(name for name, value in vars(metrics).items() if isinstance(value, metrics.Metric))


@pytest.fixture(scope="module")
def words() -> set[str]:
    """Every name that a program uses."""
    files = (file for folder in ("broker", "bus", "workers") for file in (ROOT / folder).rglob("*.py"))
    return {word for file in files for word in re.findall(r"\b[A-Z][A-Z0-9_]+\b", file.read_text())}


@pytest.mark.parametrize("name", DECLARED)
def test_every_metric_is_told_by_some_process(name: str, words: set[str]) -> None:
    """Its constant stands in a program of broker, bus or workers."""
    assert name in words
