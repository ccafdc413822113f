"""The benchmark of figures and scrapes runs and reports what it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_bench_reports_cost_and_scrapes_as_one_document() -> None:
    """One short round: every figure is there, every process told its figures, and none was refused."""
    command = [sys.executable, ROOT / "scripts" / "bench_observability.py", "--json"]
    short = ["--rounds", "1", "--seconds", "0.1", "--scrapes", "1"]
    done = subprocess.run([*command, *short], capture_output=True, text=True, timeout=100, check=False)

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bus"]["on_per_s"] > 0 and found["bus"]["on_cpu_us_ratio"] > 0
    assert found["scrape"]["processes"] >= 12 and found["scrape"]["series"] > 5_000
    assert found["scrape"]["refused"] == 0
    assert 0 < found["scrape"]["scrape_p50_ms"] <= found["scrape"]["scrape_p99_ms"]
