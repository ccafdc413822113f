"""The dashboard Errors: what fails, who was refused, and whether these figures can be believed."""

from __future__ import annotations

from dashboard_parts.panels import (
    OK,
    Dashboard,
    Row,
    Variable,
    above,
    areas,
    bad_above,
    lines,
    quantiles,
    stat,
)

_S = 'service=~"$service"'

_NOW = Row(
    "Now",
    (
        stat(
            "Open groups",
            'sum(olympus_error_groups{state="open"})',
            "short",
            "Groups of like errors that nobody has acknowledged; `olympus errors` lists them.",
            steps=above(1, 20),
            width=4,
        ),
        stat(
            "Muted groups",
            'sum(olympus_error_groups{state="muted"})',
            "short",
            "Counted, and neither listed nor told.",
            steps=OK,
            width=4,
        ),
        stat(
            "Errors",
            "sum(rate(olympus_errors_total[$__rate_interval])) or vector(0)",
            "cps",
            "Taken in by the error service each second.",
            steps=above(0.05, 0.2),
            width=4,
        ),
        stat(
            "Dead letters",
            "sum(olympus_dead_letters)",
            "short",
            "`olympus deadletters` lists them.",
            steps=above(1),
            width=4,
        ),
        stat(
            "Errors missed",
            "sum(increase(olympus_errors_missed_total[$__range]))",
            "short",
            "Lost before they were read, in the time shown.",
            steps=bad_above(1),
            width=4,
            decimals=0,
        ),
        stat(
            "Refused",
            "sum(increase(olympus_refusals_total[$__range]))",
            "short",
            "Requests refused for who sent them, in the time shown.",
            steps=above(100),
            width=4,
            decimals=0,
        ),
    ),
)

_ERRORS = Row(
    "What fails",
    (
        lines(
            "Errors by reporter",
            'sum by (reporter) (rate(olympus_errors_total{reporter=~"$service"}[$__rate_interval])) -> {{reporter}}',
            "cps",
            "As the error service took them in.",
        ),
        areas(
            "Errors by severity",
            'sum by (severity) (rate(olympus_errors_total{reporter=~"$service"}[$__rate_interval])) -> {{severity}}',
            "cps",
            "The same, by how bad they are.",
        ),
        areas(
            "Groups",
            "sum by (state) (olympus_error_groups) -> {{state}}",
            "short",
            "Groups of like errors, by what people said of them.",
        ),
        lines(
            "Requests failed",
            f'sum by (service, outcome) (rate(olympus_worker_requests_total{{{_S}, outcome!="ok"}}[$__rate_interval]))'
            " -> {{service}} {{outcome}}",
            "reqps",
            "Answers that were no answer, by code.",
            width=12,
        ),
        lines(
            "Reported",
            (
                f"sum by (service) (rate(olympus_error_reports_total{{{_S}}}[$__rate_interval])) -> {{{{service}}}}",
                f"sum(rate(olympus_error_reports_damped_total{{{_S}}}[$__rate_interval])) -> damped",
            ),
            "cps",
            "Failures told by the processes themselves. Damped: counted in a later report, in a storm.",
            width=6,
        ),
        lines(
            "Dead letters",
            (
                "sum(olympus_dead_letters) -> kept",
                "sum(increase(olympus_broker_dead_letters_total[$__rate_interval])) -> new",
            ),
            "short",
            "Requests that nobody could finish.",
            width=6,
        ),
    ),
)

_LOGS = Row(
    "Logs and notifications",
    (
        areas(
            "Log lines",
            f"sum by (level) (rate(olympus_log_lines_total{{{_S}}}[$__rate_interval])) -> {{{{level}}}}",
            "cps",
            "By level.",
            width=6,
        ),
        lines(
            "Log lines not written",
            f"sum by (service) (rate(olympus_log_lines_dropped_total{{{_S}}}[$__rate_interval])) -> {{{{service}}}}",
            "cps",
            "Repeated in a storm, or there was no room on the disk.",
            width=6,
        ),
        lines(
            "Notifications",
            "sum by (channel, outcome) (increase(olympus_error_notifications_total[$__rate_interval])) -> {{channel}} {{outcome}}",
            "short",
            "To webhooks and the desktop.",
            width=6,
        ),
        lines(
            "Errors missed",
            "sum(increase(olympus_errors_missed_total[$__rate_interval])) -> missed",
            "short",
            "Lost before the error service could read them.",
            width=6,
        ),
    ),
)

_SAFETY = Row(
    "Who was refused",
    (
        lines(
            "Refusals",
            f"sum by (service, reason) (rate(olympus_refusals_total{{{_S}}}[$__rate_interval])) -> {{{{service}}}} {{{{reason}}}}",
            "ops",
            "No token, a bad one, one that does not allow it, or too many requests.",
            width=6,
        ),
        lines(
            "Sign-ins",
            "sum by (outcome) (rate(olympus_auth_sign_ins_total[$__rate_interval])) -> {{outcome}}",
            "ops",
            "Slowed: refused for a while after too many that failed.",
            width=6,
        ),
        lines(
            "Audit log",
            "sum by (kind, outcome) (increase(olympus_audit_events_total[$__rate_interval])) -> {{kind}} {{outcome}}",
            "short",
            "What was written down: sign-ins, refusals, deletions, promotions.",
            width=6,
        ),
        lines(
            "Not allowed for their key",
            "sum by (action) (rate(olympus_broker_permission_refusals_total[$__rate_interval])) -> {{action}}",
            "ops",
            "Messages that the permissions of the sender's key do not cover.",
            width=6,
        ),
    ),
)

_FIGURES = Row(
    "Can these figures be believed",
    (
        lines(
            "Processes that tell",
            "sum by (reporter) (olympus_exporter_processes) -> {{reporter}}",
            "short",
            "Processes whose figures are served, by service.",
            width=6,
        ),
        lines(
            "Age of the oldest",
            "max(olympus_exporter_oldest_seconds) -> oldest",
            "s",
            "Processes tell every bus.metrics_interval_s.",
            width=4,
            steps=above(30),
            has_line_at_steps=True,
        ),
        lines(
            "Series",
            "sum(olympus_exporter_series) -> series",
            "short",
            "Served; at most exporter.max_series.",
            width=4,
        ),
        lines(
            "Not taken",
            (
                "sum by (reason) (rate(olympus_exporter_refused_total[$__rate_interval])) -> {{reason}}",
                "sum(rate(olympus_metrics_dropped_total[$__rate_interval])) -> counted as other",
            ),
            "cps",
            "Figures that were malformed or too many.",
            width=4,
        ),
        lines(
            "Time of one answer",
            quantiles("olympus_exporter_scrape_duration_seconds_bucket", which=(0.5, 0.95)),
            "s",
            "To Prometheus; 50 ms is much.",
            width=3,
        ),
        lines(
            "Spans exported",
            "sum by (outcome) (rate(olympus_exporter_spans_total[$__rate_interval])) -> {{outcome}}",
            "cps",
            "To the OpenTelemetry collector, where there is one.",
            width=3,
        ),
    ),
)

DASHBOARD = Dashboard(
    "olympus-errors",
    "Olympus: Errors",
    "What fails, who was refused, and whether the figures can be believed.",
    (_NOW, _ERRORS, _LOGS, _SAFETY, _FIGURES),
    (Variable("service", "Service", "label_values(olympus_build_info, service)"),),
)
