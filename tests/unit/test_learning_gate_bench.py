"""The bench of the gate runs, and says what is beyond its limit; the demo model's retention suite is what its script writes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from workers.learning.gate.retention import SHIPPED

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module")
def scripts() -> Iterator[None]:
    """The scripts can be imported."""
    before = list(sys.path)
    sys.path.insert(0, str(SCRIPTS))
    try:
        yield
    finally:
        sys.path[:] = before


@pytest.fixture
def bench(scripts: None, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, with less of what takes long."""
    module = import_module("bench_gate")
    monkeypatch.setattr(module, "ATTEMPTS", 3)
    monkeypatch.setattr(module, "WATCHED_PAIRS", 500)
    return module


def test_the_bench_shows_every_kind_and_keeps_its_limits(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """A few runs of each kind: shares of the three verdicts, and the promised pairs."""
    assert bench.main(["--runs", "4", "--json"]) == 0

    *_, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert set(figures["gate"]) == {kind.name for kind in bench.KINDS}
    assert all(sum(shares.values()) == pytest.approx(1.0) for shares in figures["gate"].values())
    assert figures["gate"]["helps, harms by 10"]["refused"] == 1.0
    assert figures["watch"]["0.1"]["promised_pairs"] == 241


def test_the_bench_fails_where_a_gate_does(
    bench: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gate that asks for nothing is found out, kind by kind."""
    lax = msgspec.structs.replace(bench.TERMS, alpha=0.5, margin=0.9, min_target_items=1, min_retention_items=1)
    monkeypatch.setattr(bench, "TERMS", lax)

    assert bench.main(["--runs", "6"]) == 1
    said = capsys.readouterr().err
    assert "helps, harms by 10: 100.0% passed, 5% may" in said
    assert "helps, harms at margin: 100.0% passed, 5% may" in said


def test_the_shipped_retention_suite_is_what_its_script_writes(scripts: None, tmp_path: Path) -> None:
    """Byte for byte, on every machine."""
    make = import_module("make_retention_suite")

    assert make.main(["--out", str(tmp_path / "suite.jsonl")]) == 0

    assert (tmp_path / "suite.jsonl").read_bytes() == SHIPPED["olympus-demo"].read_bytes()
