"""The dashboard Bus: requests, queues, events, and the edges through which others come in."""

from __future__ import annotations

from dashboard_parts.panels import (
    Dashboard,
    Row,
    Variable,
    above,
    areas,
    bad_above,
    heat,
    lines,
    quantiles,
    stat,
    table,
)

_TRAFFIC = Row(
    "Traffic",
    (
        lines(
            "Messages",
            (
                "sum(rate(olympus_broker_requests_total[$__rate_interval])) -> requests",
                "sum(rate(olympus_broker_replies_total[$__rate_interval])) -> replies",
                "sum(rate(olympus_broker_partials_total[$__rate_interval])) -> partial replies",
                "sum(rate(olympus_broker_events_total[$__rate_interval])) -> events",
            ),
            "ops",
            "What the broker passes on. Partial replies are the pieces of streamed answers.",
        ),
        lines(
            "Time to the reply, by service",
            quantiles('olympus_broker_request_duration_seconds_bucket{target=~"$service"}', "target", (0.5, 0.95)),
            "s",
            "From the broker's receipt of a request to its final reply: p50 half, p95 all but one in twenty.",
        ),
        heat(
            "Time to the reply",
            'olympus_broker_request_duration_seconds_bucket{target=~"$service"}',
            "All requests of the chosen services; darker is more.",
        ),
        lines(
            "Requests by operation",
            "topk(12, sum by (operation)"
            ' (rate(olympus_worker_requests_total{service=~"$service"}[$__rate_interval]))) -> {{operation}}',
            "reqps",
            "The twelve most wanted.",
        ),
        lines(
            "Slowest operations",
            "topk(8, histogram_quantile(0.95, sum by (operation, le)"
            ' (rate(olympus_worker_request_duration_seconds_bucket{service=~"$service"}[$__rate_interval]))) >= 0) -> {{operation}}',
            "s",
            "Time within which a worker answers 95 % of them, waiting in the queue not included.",
        ),
        areas(
            "Answers by outcome",
            'sum by (outcome) (rate(olympus_worker_requests_total{service=~"$service"}[$__rate_interval])) -> {{outcome}}',
            "reqps",
            "`ok`, or the code of the error; docs/wire.md lists them.",
        ),
    ),
)

_QUEUES = Row(
    "Queues and workers",
    (
        lines(
            "Waiting",
            'sum by (target) (olympus_broker_queued_requests{target=~"$service"}) -> {{target}}',
            "short",
            "Requests that wait for a free place. At broker.queue_max_requests callers are refused.",
            width=6,
        ),
        lines(
            "Waiting bytes",
            'sum by (target) (olympus_broker_queued_bytes{target=~"$service"}) -> {{target}}',
            "bytes",
            "Of those requests. At broker.queue_max_bytes callers are refused.",
            width=6,
        ),
        lines(
            "Share of the places taken",
            'sum by (target) (olympus_broker_requests_in_flight{target=~"$service"})'
            ' / (sum by (target) (olympus_broker_capacity_requests{target=~"$service"}) > 0) -> {{target}}',
            "percentunit",
            "Requests being worked on, of those that the service takes at once. At 100 % the next ones wait.",
            width=6,
            most=1,
            steps=above(0.8, 1),
            has_line_at_steps=True,
        ),
        lines(
            "Workers joined",
            'sum by (target) (olympus_broker_instances{target=~"$service"}) -> {{target}}',
            "short",
            "Processes that serve, by service.",
            width=6,
        ),
        lines(
            "In flight, by process",
            (
                'olympus_worker_requests_in_flight{service=~"$service"} -> {{worker}}',
                'sum(olympus_worker_capacity_requests{service=~"$service"}) -> limit',
            ),
            "short",
            "Requests that a process works on, and how many all of them take at once.",
            width=6,
        ),
        lines(
            "What went wrong",
            (
                "sum(rate(olympus_broker_overloaded_total[$__rate_interval])) -> overloaded",
                "sum(rate(olympus_broker_expired_total[$__rate_interval])) -> expired",
                "sum(rate(olympus_broker_unserved_total[$__rate_interval])) -> nobody serves it",
                "sum(rate(olympus_broker_redispatched_total[$__rate_interval])) -> given to another worker",
                "sum(rate(olympus_broker_worker_lost_total[$__rate_interval])) -> worker_lost",
                "sum(rate(olympus_broker_cancelled_total[$__rate_interval])) -> cancelled",
            ),
            "reqps",
            "Requests that did not go the usual way. Cancelled ones were taken back by their caller and are no fault.",
            width=9,
        ),
        lines(
            "Workers lost",
            "sum by (target) (increase(olympus_broker_workers_lost_total[$__rate_interval])) -> {{target}}",
            "short",
            "Workers that vanished without leaving.",
            width=5,
            steps=bad_above(1),
        ),
        stat(
            "Dead letters",
            "sum(olympus_dead_letters)",
            "short",
            "Kept until sent again or purged.",
            width=2,
            height=8,
            steps=above(1),
            link="olympus-errors",
        ),
        lines(
            "New dead letters",
            "sum(increase(olympus_broker_dead_letters_total[$__rate_interval])) -> dead letters",
            "short",
            "Requests that nobody could finish.",
            width=2,
        ),
    ),
)

_EVENTS = Row(
    "Events and their log",
    (
        lines(
            "Subscribers",
            (
                "sum(olympus_broker_subscribers) -> subscribers",
                "sum(olympus_broker_peers) -> connections for requests",
            ),
            "short",
            "Who is connected.",
            width=6,
        ),
        lines(
            "Slowest subscriber",
            "max(olympus_broker_subscriber_pending_bytes) -> waiting for it",
            "bytes",
            "At broker.subscriber_max_bytes it loses its events.",
            width=6,
        ),
        lines(
            "Events lost",
            (
                "sum(rate(olympus_broker_events_dropped_total[$__rate_interval])) -> by slow subscribers",
                "sum(rate(olympus_event_log_lost_total[$__rate_interval])) -> by the log",
                "max(olympus_event_log_failed) -> log cannot be written",
            ),
            "ops",
            "Should be 0. The last curve is 1 while the log cannot be written.",
            width=6,
        ),
        lines(
            "Event log",
            "sum(olympus_event_log_bytes) -> size",
            "bytes",
            "The oldest events go when it reaches broker.log_max_bytes.",
            width=3,
        ),
        lines(
            "Events logged",
            "sum(rate(olympus_event_log_events_total[$__rate_interval])) -> events",
            "ops",
            "Events of broker.log_subjects.",
            width=3,
        ),
    ),
)

_EDGES = Row(
    "HTTP and ports of replaced agents",
    (
        lines(
            "HTTP requests",
            "sum by (api, status) (rate(olympus_rest_requests_total[$__rate_interval])) -> {{api}} {{status}}",
            "reqps",
            "By API and status.",
            width=6,
        ),
        lines(
            "Time of HTTP requests",
            quantiles("olympus_rest_request_duration_seconds_bucket", "api", (0.5, 0.95)),
            "s",
            "From a request's head to the end of its answer, streams included.",
            width=6,
        ),
        table(
            "Slowest routes",
            "topk(10, sum by (api, method, route) (rate(olympus_rest_request_duration_seconds_sum[$__range]))"
            " / (sum by (api, method, route) (rate(olympus_rest_request_duration_seconds_count[$__range])) > 0))",
            "s",
            "Mean time over the whole range shown.",
            {"api": "API", "method": "method", "route": "route", "Value": "mean"},
            width=12,
        ),
        lines(
            "HTTP now",
            (
                "sum(olympus_rest_requests_in_flight) -> requests",
                "sum(olympus_rest_connections) -> connections",
                "sum(rate(olympus_rest_requests_abandoned_total[$__rate_interval])) -> abandoned each second",
            ),
            "short",
            "Requests being answered, connections open, and callers that hung up before their answer.",
            width=6,
        ),
        lines(
            "Replaced agents: requests",
            "sum by (agent, outcome) (rate(olympus_legacy_requests_total[$__rate_interval])) -> {{agent}} {{outcome}}",
            "reqps",
            "On the ports of agents that Olympus stands in for.",
            width=9,
        ),
        lines(
            "Replaced agents: ports",
            (
                "sum(olympus_legacy_ports_bound) -> ports",
                "sum(olympus_legacy_connections) -> connections",
            ),
            "short",
            "Bound, and connections to them.",
            width=9,
        ),
    ),
)

_GUARD = Row(
    "Refused at the door",
    (
        lines(
            "Unreadable messages",
            "sum(rate(olympus_broker_rejected_messages_total[$__rate_interval])) -> messages",
            "ops",
            "What the broker could not read: another version, another protocol, or somebody who tries.",
            width=12,
        ),
        lines(
            "Not allowed for their key",
            "sum by (action) (rate(olympus_broker_permission_refusals_total[$__rate_interval])) -> {{action}}",
            "ops",
            "Messages that the permissions of the sender's key do not cover.",
            width=12,
        ),
    ),
)

DASHBOARD = Dashboard(
    "olympus-bus",
    "Olympus: Bus",
    "Requests, queues, events and edges.",
    (_TRAFFIC, _QUEUES, _EVENTS, _EDGES, _GUARD),
    (Variable("service", "Service", "label_values(olympus_broker_instances, target)"),),
)
