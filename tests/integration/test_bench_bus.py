"""The bench itself: it runs to its end on few requests and reports every key it promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "scripts" / "bench_bus.py"

RATIOS = {
    "rr_ratio_to_proxy",
    "rr_ratio_to_nats",
    "p50_ratio_to_nats",
    "stream_ratio_to_nats",
    "echo16_ratio_to_nats",
    "pubsub_ratio_to_nats",
}
OWN = {"rr_per_s", "p50_us", "broker_rss_mb", "broker_idle_cpu_percent", "scale_p50_ratio"}


def _bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCH), *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_bench_measures_a_few_requests_and_reports_every_key() -> None:
    """A tiny run of request/reply ends with one JSON line; what was not measured is null."""
    ran = _bench("--quick", "--only", "rr", "--rounds", "1", "--requests", "200", "--peers", "ours,proxy", "--json")

    assert ran.returncode == 0, ran.stderr
    figures = json.loads(ran.stdout.splitlines()[-1])
    assert figures.keys() >= RATIOS | OWN
    assert figures["missing"] == {}
    assert figures["rr_per_s"] > 0
    assert figures["rr_ratio_to_proxy"] > 0
    assert figures["p50_us"] is None
    rounds = figures["peers"]["rr"]["ours"]["rounds"]
    assert [one["operations"] for one in rounds] == [200]
    assert "Request/reply" in ran.stdout


def test_bench_names_a_case_it_does_not_know() -> None:
    """A wrong name ends with status 2 and the names there are."""
    ran = _bench("--only", "speed")

    assert ran.returncode == 2
    assert "'speed' is none of rr," in ran.stderr


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="looks for children in /proc")
def test_bench_leaves_no_process_behind_when_it_is_stopped() -> None:
    """SIGTERM in the middle of a run ends every process that the bench started."""
    bench = subprocess.Popen(
        [sys.executable, str(BENCH), "--only", "rr", "--peers", "ours"], stderr=subprocess.PIPE, text=True
    )
    assert bench.stderr is not None
    with bench, bench.stderr as progress:
        assert any(line.startswith("rr: ours") for line in progress)
        children = Path(f"/proc/{bench.pid}/task/{bench.pid}/children").read_text().split()
        bench.terminate()

        assert bench.wait(timeout=20) == 128 + 15
        assert len(children) == 3
        assert not [child for child in children if Path(f"/proc/{child}").exists()]
