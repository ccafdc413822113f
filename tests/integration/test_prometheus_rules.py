"""Every alert fires when it should and stays quiet when it should not, as promtool works the rules out."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from bus.cli import app
from schemas.metrics import METRICS
from tests.prometheus_process import CONFIG, ROOT, RULES, promtool

BROKER = 'olympus_broker_requests_total{service="broker",worker="b"}'
UP = 'up{job="olympus",instance="i"}'


class Case(NamedTuple):
    """Series that fire an alert, and series that do not. `at`: when it must fire; `not_before`: when it must not yet."""

    alert: str
    bad: dict[str, str]
    good: dict[str, str]
    at: str
    not_before: str = ""
    count: int = 1


def info(service: str, worker: str) -> str:
    """A process that tells figures."""
    return f'olympus_build_info{{service="{service}",worker="{worker}",version="1",python="3.11"}}'


def of(name: str, labels: str = "", service: str = "s", worker: str = "w") -> str:
    """A series with the labels that the exporter adds."""
    return f'olympus_{name}{{service="{service}",worker="{worker}"{"," + labels if labels else ""}}}'


CASES = [
    Case("ExporterDown", {UP: "1x4 0x20"}, {UP: "1x4 0 0 1x20"}, "3m", "1m45s"),
    Case("ExporterDown", {}, {UP: "1x20"}, "2m", "45s"),
    Case("BrokerGone", {UP: "1x40", BROKER: "1x4 stale"}, {UP: "1x40", BROKER: "1x40"}, "2m", "1m15s"),
    Case(
        "ServiceDown",
        {BROKER: "1x60", info("memory", "m-1"): "1x8 stale"},
        {BROKER: "1x60", info("memory", "m-1"): "1x8 stale", info("memory", "m-2"): "_x8 1x60"},
        "4m",
        "2m45s",
    ),
    Case(
        "ServiceDown",
        {BROKER: "1x60", info("memory", "m"): "1x8 stale", info("model", "x"): "1x8 stale"},
        {BROKER: "1x8 stale", info("memory", "m"): "1x8 stale", info("model.runner", "x"): "1x8 stale"},
        "4m",
        count=2,
    ),
    Case(
        "ServiceCrashLoop",
        {info("memory", f"m-{n}"): f"_x{4 * n} 1 1 1 stale" for n in range(3)} | {info("memory", "m-9"): "_x13 1x40"},
        {info("memory", f"m-{n}"): f"_x{4 * n} 1 1 1 stale" for n in range(2)} | {info("memory", "m-9"): "_x13 1x40"},
        "5m",
        "2m",
    ),
    Case(
        "EventLoopSlow",
        {of("event_loop_lag_seconds"): "0.6x40"},
        {of("event_loop_lag_seconds"): "0.5x40"},
        "3m",
        "1m45s",
    ),
    Case(
        "FilesRunningOut",
        {of("process_open_fds"): "900x40", of("process_max_fds"): "1024x40"},
        {of("process_open_fds"): "700x40", of("process_max_fds"): "1024x40"},
        "3m",
        "1m45s",
    ),
    Case(
        "DependencyDegraded",
        {of("worker_degraded", 'dependency="redis"'): "1x40"},
        {of("worker_degraded", 'dependency="redis"'): "1x6 0x40"},
        "3m",
        "1m45s",
    ),
    Case(
        "FiguresRefused",
        {of("exporter_refused_total", 'reason="name"'): "0+1x40"},
        {of("exporter_refused_total", 'reason="name"'): "0 0 2x40"},
        "5m",
    ),
    Case(
        "FiguresStale", {of("exporter_oldest_seconds"): "31x40"}, {of("exporter_oldest_seconds"): "15x40"}, "2m", "45s"
    ),
    Case("LabelsOverflow", {of("metrics_dropped_total"): "0 0 0 3x40"}, {of("metrics_dropped_total"): "3x40"}, "3m"),
    Case(
        "QueueFilling",
        {of("broker_queued_requests", 'target="m"'): "400x40", of("broker_capacity_requests", 'target="m"'): "32x40"},
        {
            of("broker_queued_requests", 'target="m"'): "400 400 2x40",
            of("broker_capacity_requests", 'target="m"'): "32x40",
        },
        "3m",
        "45s",
    ),
    # A service that has no worker has no capacity: its queue counts all the same.
    Case(
        "QueueFilling",
        {of("broker_queued_requests", 'target="m"'): "11x40", of("broker_capacity_requests", 'target="m"'): "0x40"},
        {of("broker_queued_requests", 'target="m"'): "10x40", of("broker_capacity_requests", 'target="m"'): "0x40"},
        "3m",
    ),
    Case("BusOverloaded", {of("broker_overloaded_total"): "0 0 5x40"}, {of("broker_overloaded_total"): "5x40"}, "3m"),
    Case(
        "WorkersLost",
        {of("broker_workers_lost_total", 'target="m"'): "0 0 1x20"},
        {of("broker_workers_lost_total", 'target="m"'): "1x60"},
        "3m",
    ),
    Case("DeadLetters", {of("broker_dead_letters_total"): "4 4 5x40"}, {of("broker_dead_letters_total"): "5x40"}, "3m"),
    Case(
        "RequestsUnserved",
        {of("broker_unserved_total"): "0+3x60"},
        {of("broker_unserved_total"): "0 0 9x60"},
        "5m",
        "1m30s",
    ),
    Case("RequestsExpiring", {of("broker_expired_total"): "0+3x60"}, {of("broker_expired_total"): "0+1x60"}, "8m"),
    Case(
        "SubscribersLoseEvents",
        {of("broker_events_dropped_total"): "0 0 9x40"},
        {of("broker_events_dropped_total"): "9x40"},
        "3m",
    ),
    Case("EventLogFailed", {of("event_log_failed"): "0 0 1x40"}, {of("event_log_failed"): "0x40"}, "2m", "15s"),
    Case("EventLogFailed", {of("event_log_lost_total"): "0 0 1x40"}, {of("event_log_lost_total"): "1x40"}, "2m"),
    Case(
        "UnreadableMessages",
        {of("broker_rejected_messages_total"): "0+5x40"},
        {of("broker_rejected_messages_total"): "0 0 9x40"},
        "5m",
    ),
    Case("ErrorBurst", {of("error_reports_total"): "0+10x60"}, {of("error_reports_total"): "0 0 20x60"}, "5m", "45s"),
    Case(
        "ManyRequestsFail",
        {
            of("worker_requests_total", 'operation="o",outcome="ok"'): "0+10x80",
            of("worker_requests_total", 'operation="o",outcome="internal"'): "0+5x80",
        },
        {
            of("worker_requests_total", 'operation="o",outcome="ok"'): "0+10x80",
            of("worker_requests_total", 'operation="o",outcome="not_found"'): "0+90x80",
        },
        "8m",
        "1m45s",
    ),
    Case("ErrorsMissed", {of("errors_missed_total"): "0 0 2x40"}, {of("errors_missed_total"): "2x40"}, "3m"),
    Case(
        "NotificationsFail",
        {of("error_notifications_total", 'channel="webhook",outcome="failed"'): "0 0 2x40"},
        {of("error_notifications_total", 'channel="webhook",outcome="ok"'): "0+1x40"},
        "3m",
    ),
    Case(
        "SignInsFail",
        {
            of("auth_sign_ins_total", 'outcome="failed"'): "0+2x60",
            of("auth_sign_ins_total", 'outcome="slowed"'): "0+1x60",
        },
        {of("auth_sign_ins_total", 'outcome="ok"'): "0+9x60", of("auth_sign_ins_total", 'outcome="failed"'): "0 5x60"},
        "6m",
    ),
    Case(
        "ManyRefusals",
        {of("refusals_total", 'reason="forbidden"'): "0+10x60"},
        {of("refusals_total", 'reason="forbidden"'): "0+1x60"},
        "6m",
    ),
    Case(
        "ManyRefusals",
        {
            of("refusals_total", 'reason="rate"'): "0x60",
            of("broker_permission_refusals_total", 'action="request"'): "0+9x60",
        },
        {
            of("refusals_total", 'reason="rate"'): "0x60",
            of("broker_permission_refusals_total", 'action="request"'): "9x60",
        },
        "6m",
    ),
    # 20 GB of 100 are free, and half a GB goes every quarter of a minute; or nearly nothing does.
    Case(
        "DiskFilling",
        {
            'olympus_host_disk_free_bytes{host="h"}': "2e10-2e7x250",
            'olympus_host_disk_total_bytes{host="h"}': "1e11x250",
        },
        {
            'olympus_host_disk_free_bytes{host="h"}': "2e10-1e5x250",
            'olympus_host_disk_total_bytes{host="h"}': "1e11x250",
        },
        "45m",
        "35m",
    ),
    # The same pace on a disk that is mostly free.
    Case(
        "DiskFilling",
        {
            'olympus_host_disk_free_bytes{host="h"}': "2e10-2e7x250",
            'olympus_host_disk_total_bytes{host="h"}': "1e11x250",
        },
        {
            'olympus_host_disk_free_bytes{host="h"}': "9e10-2e7x250",
            'olympus_host_disk_total_bytes{host="h"}': "1e11x250",
        },
        "45m",
    ),
    Case(
        "DiskAlmostFull",
        {'olympus_host_disk_free_bytes{host="h"}': "4e9x40", 'olympus_host_disk_total_bytes{host="h"}': "1e11x40"},
        {'olympus_host_disk_free_bytes{host="h"}': "6e9x40", 'olympus_host_disk_total_bytes{host="h"}': "1e11x40"},
        "3m",
        "1m45s",
    ),
    Case(
        "DiskAlmostFull",
        {'olympus_host_disk_free_bytes{host="h"}': "1e9x40", 'olympus_host_disk_total_bytes{host="h"}': "8e9x40"},
        {'olympus_host_disk_free_bytes{host="h"}': "1.2e9x40", 'olympus_host_disk_total_bytes{host="h"}': "8e9x40"},
        "3m",
    ),
    Case(
        "MemoryLow",
        {
            'olympus_host_memory_available_bytes{host="h"}': "3e9x60",
            'olympus_host_memory_total_bytes{host="h"}': "3.2e10x60",
        },
        {
            'olympus_host_memory_available_bytes{host="h"}': "4e9x60",
            'olympus_host_memory_total_bytes{host="h"}': "3.2e10x60",
        },
        "6m",
        "4m45s",
    ),
    Case("RedisAway", {of("memory_hot_tier_away"): "1x40"}, {of("memory_hot_tier_away"): "1 1 0x40"}, "2m", "45s"),
    Case(
        "OutboxStuck",
        {of("memory_outbox_entries"): "80x100"},
        {of("memory_outbox_entries"): "9000-100x100"},
        "16m",
        "4m",
    ),
    Case(
        "OutboxStuck",
        {of("memory_outbox_entries"): "50+10x100", of("worker_degraded", 'dependency="redis"'): "1x100"},
        {of("memory_outbox_entries"): "50+10x100", of("worker_degraded", 'dependency="encoder"'): "1x100"},
        "16m",
    ),
    Case(
        "SearchSlow",
        {
            of("memory_search_duration_seconds_bucket", f'le="{le}"'): f"0+{n}x80"
            for le, n in (("1", 1), ("2.5", 10), ("+Inf", 10))
        },
        {
            of("memory_search_duration_seconds_bucket", f'le="{le}"'): f"0+{n}x80"
            for le, n in (("1", 10), ("2.5", 10), ("+Inf", 10))
        },
        "8m",
        "4m45s",
    ),
    Case(
        "WritesWaiting",
        {of("memory_writes_waiting"): "1001x40"},
        {of("memory_writes_waiting"): "5000 5000 9x40"},
        "3m",
        "45s",
    ),
    Case(
        "ModelLoadsFail",
        {of("model_loads_total", 'outcome="failed"'): "0 0 1 2 3x40"},
        {of("model_loads_total", 'outcome="failed"'): "0 0 1x40"},
        "4m",
    ),
    Case(
        "ModelRunnerCrashes",
        {of("model_runner_crashes_total"): "0 0 1x40"},
        {of("model_runner_crashes_total"): "1x40"},
        "3m",
    ),
    Case("ModelQuarantined", {of("models_quarantined"): "0 0 1x40"}, {of("models_quarantined"): "0x40"}, "2m", "15s"),
    Case(
        "ModelsAwaited",
        {of("model_requests_waiting"): "2x60"},
        {of("model_requests_waiting"): "2x6 0 2x6 0 2x40"},
        "6m",
        "2m45s",
    ),
    Case(
        "VramAlmostFull",
        {
            of("device_memory_used_bytes", 'device="gpu0"'): "98x60",
            of("device_memory_total_bytes", 'device="gpu0"'): "100x60",
        },
        {
            of("device_memory_used_bytes", 'device="gpu0"'): "96x60",
            of("device_memory_total_bytes", 'device="gpu0"'): "100x60",
        },
        "6m",
        "4m45s",
    ),
    # The machine's own memory is MemoryLow's.
    Case(
        "VramAlmostFull",
        {
            of("device_memory_reserved_bytes", 'device="gpu1"'): "98x60",
            of("device_memory_total_bytes", 'device="gpu1"'): "100x60",
        },
        {
            of("device_memory_used_bytes", 'device="cpu"'): "99x60",
            of("device_memory_total_bytes", 'device="cpu"'): "100x60",
        },
        "6m",
    ),
    Case(
        "GpuHot",
        {of("device_temperature_celsius", 'device="gpu0"'): "86x60"},
        {of("device_temperature_celsius", 'device="gpu0"'): "85x60"},
        "6m",
        "4m45s",
    ),
    Case(
        "DeviceLockHeld",
        {of("device_lock_waiting", 'device="gpu0"'): "1x99"},
        {of("device_lock_waiting", 'device="gpu0"'): "1x30 0 1x40"},
        "16m",
        "4m",
    ),
    Case(
        "LeasesRefused",
        {of("lease_events_total", 'event="refused"'): "0+3x60"},
        {of("lease_events_total", 'event="granted"'): "0+9x60"},
        "6m",
    ),
    Case(
        "GenerationsFail",
        {
            of("model_generations_total", 'model="m",outcome="ok"'): "0+2x60",
            of("model_generations_total", 'model="m",outcome="internal"'): "0+1x60",
        },
        {
            of("model_generations_total", 'model="m",outcome="ok"'): "0+2x60",
            of("model_generations_total", 'model="m",outcome="cancelled"'): "0+9x60",
        },
        "6m",
        "1m45s",
    ),
    Case(
        "TrainingFailed",
        {of("learning_trainings_total", 'outcome="failed"'): "0 0 1x40"},
        {of("learning_trainings_total", 'outcome="stopped"'): "0 0 1x40"},
        "3m",
    ),
    Case(
        "GateKeepsRefusing",
        {
            of("learning_gates_total", 'outcome="failed"'): "0 1 2 3x40",
            of("learning_gates_total", 'outcome="passed"'): "1x40",
        },
        {
            of("learning_gates_total", 'outcome="failed"'): "0 1 2 3x40",
            of("learning_gates_total", 'outcome="passed"'): "0 1x40",
        },
        "4m",
    ),
    Case("RolledBack", {of("learning_rollbacks_total"): "0 0 1x40"}, {of("learning_rollbacks_total"): "1x40"}, "3m"),
    Case(
        "LearningStuck",
        {of("learning_jobs", 'state="training"'): "1x200", of("learning_trained_tokens_total"): "7x200"},
        {of("learning_jobs", 'state="training"'): "1x200", of("learning_trained_tokens_total"): "0+1x200"},
        "36m",
        "4m",
    ),
]


def rules(kind: str) -> list[dict[str, Any]]:
    """Every alert, or every recording rule."""
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


ALERTS = {rule["alert"]: rule for rule in rules("alert")}


def expectation(alert: str, at: str, count: int) -> dict[str, Any]:
    """How many alerts of that name fire then."""
    samples = [{"labels": "{}", "value": count}] if count else []
    return {
        "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})',
        "eval_time": at,
        "exp_samples": samples,
    }


def a_test(series: dict[str, str], *expected: dict[str, Any]) -> dict[str, Any]:
    """One test as promtool reads it."""
    given = [{"series": name, "values": values} for name, values in series.items()]
    return {"interval": "15s", "input_series": given, "promql_expr_test": list(expected)}


def test_every_alert_fires_at_its_time_and_is_quiet_just_below(tmp_path: Path) -> None:
    """promtool works every case out: bad series fire it, not before its time, and good ones do not."""
    tests = []
    for case in CASES:
        early = [expectation(case.alert, case.not_before, 0)] if case.not_before else []
        tests.append(a_test(case.bad, *early, expectation(case.alert, case.at, case.count)))
        tests.append(a_test(case.good, expectation(case.alert, case.at, 0)))
    whole = {"rule_files": [str(path) for path in RULES], "evaluation_interval": "15s", "tests": tests}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(whole))

    said = promtool("test", "rules", tmp_path / "tests.yml")

    assert said.returncode == 0, said.stdout


def test_every_alert_has_a_case() -> None:
    """An alert that was never seen to fire is no alert."""
    assert {case.alert for case in CASES} == set(ALERTS)


def test_a_rule_that_never_fires_would_be_noticed(tmp_path: Path) -> None:
    """The cases above can fail: with a rule's threshold out of reach promtool says so."""
    broken = tmp_path / "alerts.yml"
    broken.write_text(
        (ROOT / "config/prometheus/rules/alerts.yml").read_text().replace("_celsius) > 85", "_celsius) > 850")
    )
    case = next(case for case in CASES if case.alert == "GpuHot")
    tests = [a_test(case.bad, expectation(case.alert, case.at, 1))]
    whole = {"rule_files": [str(broken)], "evaluation_interval": "15s", "tests": tests}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(whole))

    assert promtool("test", "rules", tmp_path / "tests.yml").returncode != 0


def test_promtool_finds_nothing_to_say_of_configuration_and_rules() -> None:
    """As Prometheus itself would read them."""
    for said in (promtool("check", "config", CONFIG), promtool("check", "rules", "--lint-fatal", *RULES)):
        assert said.returncode == 0, said.stdout


@pytest.mark.parametrize("name", ALERTS)
def test_alert_says_what_is_wrong_and_what_to_do(name: str) -> None:
    """Labels, texts, a section of docs/alerts.md, and commands that exist."""
    rule = ALERTS[name]
    document = (ROOT / "docs" / "alerts.md").read_text()

    assert set(rule["labels"]) == {"severity", "part"}
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert set(rule["annotations"]) == {"summary", "description", "todo", "runbook"}
    assert rule["annotations"]["runbook"] == f"docs/alerts.md#{name.lower()}"
    assert re.search(rf"^### {name}$", document, re.MULTILINE)
    for call in re.findall(r"`olympus ([^`]+)`", rule["annotations"]["todo"]):
        root = app.root_parser().parse_args(shlex.split(call))
        command = app.find(root.command)
        assert command is not None, f"olympus {call}: no such command"
        if not any(re.fullmatch(r"[A-Z]+", word) for word in root.rest):
            app.command_parser(command).parse_args(root.rest)


def test_every_section_of_the_page_is_of_an_alert() -> None:
    """An alert that is gone leaves no section behind."""
    document = (ROOT / "docs" / "alerts.md").read_text()

    assert set(re.findall(r"^### (\w+)$", document, re.MULTILINE)) == set(ALERTS)


def test_rules_ask_for_what_is_declared() -> None:
    """Each name is a metric of schemas/metrics.py, or one that a recording rule makes."""
    recorded = {rule["record"] for rule in rules("record")}
    for rule in [*rules("alert"), *rules("record")]:
        for name in re.findall(r"(?:[a-z]+:)?olympus_[a-z0-9_]+(?::[a-z0-9_]+)?", rule["expr"]):
            assert name in recorded or re.sub(r"_(bucket|sum|count)$", "", name) in METRICS or name in METRICS, name
