"""docs/metrics.md and the declarations of schemas/metrics.py."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from schemas.metrics import METRICS

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_of_metrics_is_up_to_date() -> None:
    """Every metric, in the order of its declaration."""
    script = ROOT / "scripts" / "make_metrics_doc.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, timeout=30, check=False)

    assert done.returncode == 0, done.stderr
    written = re.findall(r"^\| `(olympus_\w+)` \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    assert written == list(METRICS)


def test_names_follow_prometheus() -> None:
    """Base units at the end, `_total` for counters and for nothing else, no label that the exporter adds itself."""
    for metric in METRICS.values():
        assert re.fullmatch(r"olympus_[a-z][a-z0-9_]*", metric.name), metric.name
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert not re.search(r"_(ms|millis|kb|mb|minutes|percent)(_|$)", metric.name), metric.name
        assert not {"service", "worker", "instance", "job", "le"} & set(metric.labels), metric.name
        assert all(re.fullmatch(r"[a-z][a-z0-9_]*", label) for label in metric.labels), metric.name
        assert bool(metric.buckets) == (metric.kind == "histogram"), metric.name
        assert list(metric.buckets) == sorted(set(metric.buckets)), metric.name
        assert metric.help.endswith("."), metric.name
