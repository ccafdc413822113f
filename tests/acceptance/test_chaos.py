"""scripts/chaos.py breaks a real house, and the alerts that a real Prometheus works out tell of it."""

from __future__ import annotations

import json
import subprocess
import sys

import yaml

from tests.prometheus_process import ROOT, RULES, program

sys.path.insert(0, str(ROOT / "scripts"))
from chaos_parts import prometheus
from chaos_parts.faults import FAULTS

# Quick ones of two kinds: what stops, and what somebody lies about.
CHOSEN = {
    "kill the broker": {"BrokerGone"},
    "lie in figures": {"FiguresRefused"},
}


def alerts() -> set[str]:
    """Every alert there is."""
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}


def test_faults_are_told_by_their_alerts_which_end_when_they_are_healed() -> None:
    """As a person runs it, on two of its faults."""
    program("prometheus")
    only = [part for name in CHOSEN for part in ("--only", name)]

    said = subprocess.run(
        [sys.executable, "scripts/chaos.py", "--json", *only],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )

    assert said.returncode == 0, said.stdout + said.stderr
    outcomes = json.loads(said.stdout)
    assert {(one["fault"], one["alert"]) for one in outcomes} == {
        (fault, alert) for fault, alerts in CHOSEN.items() for alert in alerts
    }
    assert all(one["verdict"] == "ok" and one["said"] and "<" not in one["said"] for one in outcomes), outcomes


def test_there_is_a_fault_for_every_alert() -> None:
    """None has fired in unit tests alone."""
    assert {alert for fault in FAULTS for alert in fault.alerts} == alerts()


def test_durations_are_divided_and_thresholds_are_not() -> None:
    """`for` and windows; no window is too short for two scrapes."""
    rules = "      - expr: rate(a_total[10m]) > 10 and b > 5m\n        for: 1m\n"

    assert prometheus.shortened(rules, 30) == "      - expr: rate(a_total[20s]) > 10 and b > 5m\n        for: 2s\n"
    assert prometheus.shortened("rate(a_total[1m])", 30) == "rate(a_total[5s])"
    assert prometheus.shortened("predict_linear(a[6h], 24 * 3600) and a offset 30m", 30) == (
        "predict_linear(a[720s], 2880) and a offset 60s"
    )
    assert prometheus.shortened(rules, 1) == rules
    assert "1d" not in prometheus.shortened(RULES[0].read_text(), 30)
