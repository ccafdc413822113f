"""`olympus status`: what runs, how busy it is, and what is wrong, at one look."""

from __future__ import annotations

import argparse
from typing import Final

from bus.cli import exits
from bus.cli.connection import run_with_client
from bus.cli.output import duration, milliseconds, number, one_line, plural, print_json, size, table, write_line
from bus.client import Client
from schemas import catalog, subjects
from schemas.bodies.control import (
    BrokerStats,
    BusServices,
    BusStats,
    BusWorkers,
    ServiceInfo,
    ServiceList,
    WorkerInfo,
    WorkerList,
)

HELP = "Show every service with its instances, load and latency, and name what is wrong."

EXAMPLES = """\
examples:
  olympus status
  olympus status --workers
  olympus status --json
"""

# The broker answers these itself, without a worker.
BROKER_SERVICES: Final = frozenset({"bus", "deadletter"})

# A worker whose event loop was held up this long answers nobody meanwhile, seconds.
_LAG_S: Final = 0.25

# Of what a worker says of itself, at most.
_REASON_CHARACTERS: Final = 300


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `olympus status`."""
    parser.epilog = EXAMPLES
    parser.add_argument("--workers", action="store_true", help="also list every worker instance")
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(args: argparse.Namespace) -> int:
    """Ask the broker and print what it says."""

    async def ask(client: Client) -> int:
        services: ServiceList = await client.request("bus.services", BusServices())
        stats: BrokerStats = await client.request("bus.stats", BusStats())
        workers: WorkerList = await client.request("bus.workers", BusWorkers())
        wrong = problems(services.services, workers.workers, stats)
        if args.json:
            print_json(_document(services.services, workers.workers, stats, wrong), indent=2)
            return exits.OK
        lines = [_broker_line(stats), "", *service_lines(services.services)]
        if args.workers:
            lines += ["", *worker_lines(workers.workers)]
        if wrong:
            lines += ["", *(f"! {line}" for line in wrong)]
        write_line("\n".join(lines))
        return exits.OK

    return run_with_client(args, ask)


def unserved(services: list[ServiceInfo]) -> dict[str, list[str]]:
    """Operations of the catalogue that nobody serves, by service."""
    patterns = [pattern for service in services if service.instances for pattern in service.subjects]
    missing: dict[str, list[str]] = {}
    for operation in catalog.OPERATIONS.values():
        if operation.service not in BROKER_SERVICES and not any(
            subjects.matches(pattern, operation.subject) for pattern in patterns
        ):
            missing.setdefault(operation.service, []).append(operation.subject)
    return missing


def not_running(services: list[ServiceInfo]) -> list[str]:
    """Services of the catalogue of which not one operation is served."""
    declared: dict[str, int] = {}
    for operation in catalog.OPERATIONS.values():
        declared[operation.service] = declared.get(operation.service, 0) + 1
    return [service for service, missing in unserved(services).items() if len(missing) == declared[service]]


def problems(services: list[ServiceInfo], workers: list[WorkerInfo], stats: BrokerStats) -> list[str]:
    """What is wrong, one sentence each, the worst first; empty when all is well."""
    absent = not_running(services)
    found = [f"{service}: not running; olympus up starts every service" for service in absent]
    found += [
        f"{service}: nobody serves {', '.join(missing)}"
        for service, missing in unserved(services).items()
        if service not in absent
    ]
    found += [
        f"{service.service}: {plural(service.queued, 'request')} waiting, {service.in_flight} of {service.capacity} in use"
        for service in services
        if service.queued
    ]
    found += degraded_lines(workers)
    found += [
        f"{worker.service} {worker.instance}: its event loop was held up for {worker.loop_lag_s:.1f} s"
        for worker in workers
        if worker.loop_lag_s >= _LAG_S
    ]
    found += [
        f"subscriber {reader.peer} ({' '.join(reader.patterns) or 'no pattern'}) is slow"
        f" and lost {plural(reader.dropped, 'event')}"
        for reader in stats.subscribers
        if reader.dropped
    ]
    if stats.log_failed:
        found.append(f"the event log cannot be written: {stats.log_failed}")
    if stats.dead_letters:
        found.append(f"{plural(stats.dead_letters, 'dead letter')} since the broker started: olympus deadletters")
    return found


def degraded_lines(workers: list[WorkerInfo]) -> list[str]:
    """What workers do without, and why."""
    return [
        one_line(f"{worker.service} {worker.instance}: {dependency}: {reason}", _REASON_CHARACTERS)
        for worker in workers
        for dependency, reason in worker.degraded.items()
    ]


def service_lines(services: list[ServiceInfo]) -> list[str]:
    """The table of services, those that do not run at its end."""
    rows = [
        (
            each.service,
            _state(each),
            number(each.instances),
            number(each.capacity),
            number(each.in_flight),
            number(each.queued),
            number(each.answered),
            number(each.failed),
            milliseconds(each.p50_s),
            milliseconds(each.p99_s),
        )
        for each in sorted(services, key=lambda each: each.service)
    ]
    rows += [(service, "not running", "0", "0", "0", "0", "-", "-", "-", "-") for service in not_running(services)]
    header = (
        "SERVICE",
        "STATE",
        "INSTANCES",
        "CAPACITY",
        "IN FLIGHT",
        "QUEUED",
        "ANSWERED",
        "FAILED",
        "P50 MS",
        "P99 MS",
    )
    return table(header, rows)


def worker_lines(workers: list[WorkerInfo]) -> list[str]:
    """The table of worker instances."""
    rows = [
        (
            each.service,
            each.instance,
            each.state,
            f"{each.in_flight}/{each.capacity}",
            number(each.answered),
            number(each.failed),
            size(each.rss_bytes),
            f"{each.cpu_s:.1f}",
            f"{each.heard_s:.1f}",
            str(each.pid),
        )
        for each in sorted(workers, key=lambda each: (each.service, each.instance))
    ]
    header = (
        "SERVICE",
        "INSTANCE",
        "STATE",
        "IN FLIGHT",
        "ANSWERED",
        "FAILED",
        "MEMORY",
        "CPU S",
        "HEARD S AGO",
        "PID",
    )
    return table(header, rows)


def _state(service: ServiceInfo) -> str:
    if not service.instances:
        return "no instance"
    if service.queued:
        return "overrun"
    return "busy" if service.in_flight >= service.capacity else "serving"


def _broker_line(stats: BrokerStats) -> str:
    return (
        f"broker up {duration(stats.uptime_s)} · {plural(stats.workers, 'worker')} · {plural(stats.peers, 'peer')}"
        f" · {number(stats.in_flight)} in flight · {number(stats.queued)} queued"
        f" · {plural(stats.requests, 'request')} · {plural(stats.events, 'event')} · {size(stats.rss_bytes)}"
    )


def _document(
    services: list[ServiceInfo], workers: list[WorkerInfo], stats: BrokerStats, wrong: list[str]
) -> dict[str, object]:
    return {
        "broker": stats,
        "services": services,
        "not_running": not_running(services),
        "workers": workers,
        "problems": wrong,
    }
