"""What `olympus top` says of one row when it is opened. Knows neither window nor keys."""

from __future__ import annotations

from bus.cli.output import duration, milliseconds, number, one_line, printable, size
from bus.cli.top.looking import Sample, worker_key
from bus.cli.top.tables import View, kept_for
from schemas.bodies.control import ServiceInfo, WorkerInfo
from schemas.bodies.errors import ErrorWhole
from schemas.bodies.model import ModelInfo


def detail_lines(view: View, key: str, now: Sample, whole: ErrorWhole | None) -> list[str]:
    """All that is known of what `key` names."""
    lines: list[str] | None = None
    match view:
        case "services":
            lines = _service(key, now)
        case "models":
            lines = next((_model(each, now.wall) for each in now.models or [] if each.name == key), None)
        case "jobs":
            # Imported here: it brings the curves of a training along, which nothing else here needs.
            from bus.cli.train_jobs import status_lines

            lines = next((status_lines(each, now.wall) for each in now.jobs or [] if each.job_id == key), None)
        case "errors":
            lines = _error(key, now, whole)
    return lines if lines is not None else [f"{printable(key)} is not there any more"]


def _facts(facts: list[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in facts)
    return [f"{name:<{width}}  {printable(value)}" for name, value in facts if value]


def _service(key: str, now: Sample) -> list[str] | None:
    worker = next((each for each in now.workers if worker_key(each) == key), None)
    if worker is not None:
        return _worker(worker, now.wall)
    service = next((each for each in now.services if each.service == key), None)
    if service is None:
        return [f"{printable(key)} does not run; olympus up starts every service"]
    return _whole_service(service)


def _whole_service(each: ServiceInfo) -> list[str]:
    facts = [
        ("service", each.service),
        ("instances", number(each.instances)),
        ("in flight", f"{each.in_flight} of {each.capacity}"),
        ("queued", number(each.queued)),
        ("answered", f"{number(each.answered)}, {number(each.failed)} failed"),
        ("latency", f"p50 {milliseconds(each.p50_s)} ms, p99 {milliseconds(each.p99_s)} ms"),
    ]
    return [*_facts(facts), "", "serves:", *(f"  {printable(subject)}" for subject in each.subjects)]


def _worker(each: WorkerInfo, wall: float) -> list[str]:
    facts = [
        ("worker", f"{each.service} {each.instance}"),
        ("state", each.state),
        ("machine", f"{each.host}, process {each.pid}"),
        ("version", each.version),
        ("up", duration(max(wall - each.joined_at, 0))),
        ("in flight", f"{each.in_flight} of {each.capacity}"),
        ("answered", f"{number(each.answered)}, {number(each.failed)} failed"),
        ("memory", size(each.rss_bytes)),
        ("CPU", f"{each.cpu_s:,.1f} s"),
        ("heard", f"{each.heard_s:.1f} s ago"),
        ("loop lag", f"{each.loop_lag_s * 1000:,.0f} ms"),
    ]
    without = [f"! without {name}: {one_line(why, 1_000)}" for name, why in each.degraded.items()]
    return [*_facts(facts), *without]


def _model(each: ModelInfo, wall: float) -> list[str]:
    facts = [
        ("model", each.name),
        ("state", each.state),
        ("why", each.error or ""),
        ("device", each.device or ""),
        ("memory", size(each.memory_bytes) if each.memory_bytes else ""),
        ("answers now", number(each.in_flight) if each.state == "loaded" else ""),
        ("loaded", f"{duration(max(wall - each.loaded_at, 0))} ago" if each.loaded_at else ""),
        ("kept", kept_for(each)),
        ("priority", f"{each.priority} of 1, the last to leave, to 5"),
        ("family", each.family),
        ("format", f"{each.format} {each.quantisation}"),
        ("parameters", number(each.parameters)),
        ("size", size(each.size_bytes)),
        ("context", f"{number(each.context_tokens)} tokens"),
        ("can", ", ".join(each.capabilities)),
        ("adapters", ", ".join(each.adapters)),
        ("also called", ", ".join(each.aliases)),
        ("backend", each.backend),
        ("file", each.path),
        ("licence", one_line(each.license, 200)),
        ("about", one_line(each.description, 1_000)),
    ]
    return _facts(facts)


def _error(key: str, now: Sample, whole: ErrorWhole | None) -> list[str]:
    from bus.cli.errors import whole_lines

    if whole is None or whole.group.fingerprint != key:
        return ["asking ..."]
    return whole_lines(whole, now.wall)
