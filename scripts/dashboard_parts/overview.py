"""The dashboard Overview: what is wrong, and why, at one look."""

from __future__ import annotations

from typing import Final

from dashboard_parts.panels import (
    OK,
    Dashboard,
    Panel,
    Row,
    Variable,
    above,
    areas,
    bad_above,
    bad_below,
    lines,
    stat,
    table,
)

_FAILING: Final = (
    "sum(service:olympus_worker_failures:rate5m) / (sum(service:olympus_worker_requests:rate5m) > 0) or vector(0)"
)

_NOW = Row(
    "Now",
    (
        stat(
            "Alerts",
            'count(ALERTS{alertstate="firing"}) or vector(0)',
            "short",
            "Alerts that fire; the table below names them.",
            steps=bad_above(1),
        ),
        stat(
            "Services",
            "count(service:olympus_processes:count)",
            "short",
            "Services of which at least one process tells figures.",
            steps=bad_below(1),
            link="olympus-bus",
        ),
        stat(
            "Requests",
            "sum(rate(olympus_broker_requests_total[$__rate_interval]))",
            "reqps",
            "Requests that the broker takes in.",
            steps=OK,
            link="olympus-bus",
        ),
        stat(
            "Failing",
            _FAILING,
            "percentunit",
            "Share of the answers of five minutes that are the system's fault; what callers did wrong is not counted.",
            steps=above(0.01, 0.1),
            link="olympus-errors",
        ),
        stat(
            "Slowest service",
            "max(target:olympus_broker_request_duration_seconds:p95_5m > 0) or vector(0)",
            "s",
            "Of each service the time within which 95 % of its requests are answered; this is the longest. Generations of"
            " large models take seconds, so look at the dashboard Bus for which it is.",
            steps=above(10, 60),
            link="olympus-bus",
        ),
        stat(
            "Open errors",
            'sum(olympus_error_groups{state="open"})',
            "short",
            "Groups of like errors that nobody has acknowledged.",
            steps=above(1, 20),
            link="olympus-errors",
        ),
        stat(
            "Dead letters",
            "sum(olympus_dead_letters)",
            "short",
            "Requests that nobody could finish, kept until they are sent again or purged.",
            steps=above(1),
            link="olympus-errors",
        ),
        stat(
            "Models loaded",
            'sum(olympus_models_loaded{state="serving"})',
            "short",
            "Models in memory.",
            steps=OK,
            link="olympus-models",
        ),
    ),
)

_WRONG = Row(
    "What is wrong, and why",
    (
        table(
            "Alerts",
            'ALERTS{alertstate=~"firing|pending"}',
            "short",
            "What fires, and what soon may. docs/alerts.md has a section for each with what to do.",
            {
                "severity": "severity",
                "alertname": "alert",
                "alertstate": "state",
                "service": "service",
                "target": "for",
                "device": "device",
                "dependency": "without",
                "host": "machine",
            },
            width=14,
            nothing="Nothing is wrong",
        ),
        table(
            "Working without",
            "olympus_worker_degraded > 0",
            "short",
            "Who does without something it should have. `olympus status` shows the reason.",
            {"service": "service", "dependency": "without", "worker": "process"},
            width=10,
            nothing="Everybody has what they need",
        ),
    ),
)

_SERVICES = Row(
    "Services",
    (
        Panel(
            "Processes",
            ("service:olympus_processes:count -> {{service}}",),
            "short",
            "Processes of each service that tell figures; a gap is a time when there was none.",
            "state-timeline",
            width=12,
            steps=bad_below(1),
        ),
        lines(
            "Requests answered",
            "sum by (service) (rate(olympus_worker_requests_total[$__rate_interval])) -> {{service}}",
            "reqps",
            "By the service that answered.",
            width=6,
        ),
        lines(
            "Requests failed",
            "service:olympus_worker_failures:rate5m -> {{service}}",
            "reqps",
            "Over five minutes, without what callers did wrong.",
            width=6,
        ),
        lines(
            "Processor time",
            "sum by (service) (rate(olympus_process_cpu_seconds_total[$__rate_interval])) -> {{service}}",
            "percentunit",
            "100 % is one core.",
            width=6,
        ),
        areas(
            "Resident memory",
            "sum by (service) (olympus_process_resident_memory_bytes) -> {{service}}",
            "bytes",
            "Models in the machine's memory are part of model.runner.",
            width=6,
        ),
        lines(
            "Event loop lag",
            "max by (service) (olympus_event_loop_lag_seconds) -> {{service}}",
            "s",
            "How late a process gets to what it should do now, at worst. Above 0.5 s callers notice.",
            width=6,
            steps=above(0.5),
            has_line_at_steps=True,
        ),
        lines(
            "Open files and sockets",
            "max by (service) (olympus_process_open_fds / (olympus_process_max_fds > 0)) -> {{service}}",
            "percentunit",
            "Of those that the process may have; at 100 % it can take no more connections.",
            width=6,
            steps=above(0.8),
            has_line_at_steps=True,
        ),
    ),
)

_MACHINES = Row(
    "Machines",
    (
        lines(
            "Processors",
            (
                'sum by (host) (rate(olympus_host_cpu_seconds_total{host=~"$host", mode!="idle"}[$__rate_interval]))'
                " / on (host) olympus_host_cores -> {{host}}",
            ),
            "percentunit",
            "Share of all cores that is busy, whoever keeps them busy.",
            width=6,
            most=1,
        ),
        lines(
            "Load for each core",
            'olympus_host_load1{host=~"$host"} / on (host) olympus_host_cores -> {{host}}',
            "short",
            "Above 1, something waits for a processor or a disk.",
            width=6,
            steps=above(1, 2),
            has_line_at_steps=True,
        ),
        lines(
            "Memory available",
            'host:olympus_host_memory_available:ratio{host=~"$host"} -> {{host}}',
            "percentunit",
            "What can be had without swapping. Below 10 % everything gets slow.",
            width=6,
            most=1,
            steps=bad_below(0.1, 0.2),
        ),
        lines(
            "Disk",
            (
                'olympus_host_disk_free_bytes{host=~"$host"} -> {{host}} free',
                'olympus_host_disk_total_bytes{host=~"$host"} -> {{host}} total',
            ),
            "bytes",
            "The disk that holds the state (OLYMPUS_HOME).",
            width=6,
        ),
    ),
)

_PROCESSES = Row(
    "Processes",
    (
        table(
            "Versions",
            "olympus_build_info",
            "short",
            "What runs. After an update all should show the same version.",
            {"service": "service", "worker": "process", "version": "version", "python": "Python"},
            width=9,
        ),
        Panel(
            "Running for",
            ("time() - min by (service) (olympus_process_start_time_seconds) -> {{service}}",),
            "s",
            "Since its last start; of several processes, the oldest.",
            "bargauge",
            width=5,
            steps=OK,
        ),
        Panel(
            "Restarts",
            ("max by (service) (olympus_process_restarts_total) -> {{service}}",),
            "short",
            "How often a supervisor has started it again since `olympus up`.",
            "bargauge",
            width=5,
            steps=above(1, 3),
        ),
        lines(
            "Threads",
            "sum by (service) (olympus_process_threads) -> {{service}}",
            "short",
            "A number that only grows is a leak.",
            width=5,
        ),
    ),
)

DASHBOARD = Dashboard(
    "olympus-overview",
    "Olympus: Overview",
    "What is wrong and why, at one look.",
    (_NOW, _WRONG, _SERVICES, _MACHINES, _PROCESSES),
    (Variable("host", "Machine", "label_values(olympus_host_cores, host)"),),
)
