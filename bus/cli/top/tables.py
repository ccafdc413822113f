"""What each view of `olympus top` lists: a sample in, rows of texts out. Knows neither window nor keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, NamedTuple, get_args

from bus.cli.output import duration, milliseconds, number, one_line, plural, printable, size
from bus.cli.status import degraded_lines, not_running
from bus.cli.top.looking import ERRORS_OVER_S, ROWS, Rates, Sample, worker_key
from schemas.bodies.control import ServiceInfo, Severity, WorkerInfo
from schemas.bodies.errors import ErrorGroup
from schemas.bodies.learning_jobs import JobInfo
from schemas.bodies.model import ModelInfo
from schemas.bodies.resource import DeviceStatus

View = Literal["overview", "services", "models", "jobs", "errors"]
VIEWS: Final[tuple[View, ...]] = get_args(View)

# States in which a job still does something, or will.
_RUNNING: Final = ("training", "evaluating", "promoting", "waiting", "queued")

_MODEL_ORDER: Final = ("loaded", "loading", "available", "unusable")

_SEVERITIES: Final = get_args(Severity)

# Columns of a bar that shows how full a device is.
_BAR: Final = 20

# Characters of a message in a row; the window cuts it further.
_TEXT_MAX: Final = 300

# Digits of a fingerprint that a list shows, as `olympus errors` does.
_DIGITS: Final = 8


class Entry(NamedTuple):
    """One row. key: the same in the next sample. order: what each cell is sorted by. below: key of the row it belongs to."""

    key: str
    cells: tuple[str, ...]
    order: tuple[Any, ...]
    below: str = ""


class Listing(NamedTuple):
    """A view: what stands above the table, the table, and what to say when it is empty."""

    summary: list[str]
    header: tuple[str, ...]
    entries: list[Entry]
    empty: str


def listing(view: View, now: Sample, rate: Rates | None) -> Listing:
    """What the view lists, in its own order; the overview is no list."""
    return _LISTINGS[view](now, rate)


def arranged(entries: Sequence[Entry], sort: int | None, *, is_reversed: bool, wanted: str) -> list[Entry]:
    """Those with `wanted` in a cell, sorted by a column (None: as they are); rows below another one stay below it."""
    text = wanted.casefold()
    matching = {entry.key for entry in entries if text in "\n".join(entry.cells).casefold()}
    above = {entry.below for entry in entries if entry.key in matching}
    kept = [entry for entry in entries if entry.key in matching | above or entry.below in matching]
    heads = [entry for entry in kept if not entry.below]
    if sort is not None:
        heads.sort(key=lambda entry: _sortable(entry.order[sort]))
    if is_reversed:
        heads.reverse()
    return [row for head in heads for row in (head, *(entry for entry in kept if entry.below == head.key))]


def _sortable(value: Any) -> tuple[int, Any]:
    """Numbers before texts before nothing; the largest number and the first text first."""
    if value is None:
        return (2, "")
    return (0, -value) if isinstance(value, int | float) else (1, str(value))


# Services -----------------------------------------------------------------------------------------------------------


def _services(now: Sample, rate: Rates | None) -> Listing:
    entries: list[Entry] = []
    for service in sorted(now.services, key=lambda each: each.service):
        workers = sorted((each for each in now.workers if each.service == service.service), key=worker_key)
        entries += [_service(service, workers, rate), *(_worker(each, rate) for each in workers)]
    for name in not_running(now.services):
        cells = (name, "not running", "", "", "", "", "", "", "", "")
        entries.append(Entry(name, cells, (name, "not running", *[None] * 8)))
    header = ("SERVICE", "STATE", "REQ/S", "BUSY", "QUEUED", "P50 MS", "P99 MS", "FAIL/S", "CPU %", "MEMORY")
    return Listing(_traffic(now, rate), header, entries, "no service is there; olympus up starts them")


def _service(each: ServiceInfo, workers: list[WorkerInfo], rate: Rates | None) -> Entry:
    answered = rate.answered.get(each.service) if rate else None
    failed = rate.failed.get(each.service) if rate else None
    cpu = sum(rate.worker_cpu.get(worker_key(worker), 0.0) for worker in workers) if rate else None
    rss = sum(worker.rss_bytes for worker in workers)
    state = "no instance" if not each.instances else "overrun" if each.queued else "serving"
    cells = (
        printable(each.service),
        state,
        number(answered),
        f"{each.in_flight}/{each.capacity}",
        number(each.queued),
        milliseconds(each.p50_s),
        milliseconds(each.p99_s),
        _small(failed),
        number(cpu),
        size(rss),
    )
    order = (each.service, state, answered, each.in_flight, each.queued, each.p50_s, each.p99_s, failed, cpu, rss)
    return Entry(each.service, cells, order)


def _worker(each: WorkerInfo, rate: Rates | None) -> Entry:
    key = worker_key(each)
    cells = (
        f"  {printable(each.instance)}",
        "degraded" if each.degraded else each.state,
        number(rate.worker_answered.get(key)) if rate else "-",
        f"{each.in_flight}/{each.capacity}",
        "",
        "",
        "",
        "",
        number(rate.worker_cpu.get(key)) if rate else "-",
        size(each.rss_bytes),
    )
    return Entry(key, cells, cells, each.service)


def _traffic(now: Sample, rate: Rates | None) -> list[str]:
    stats = now.stats
    per_s = (number(rate.requests), number(rate.events)) if rate else ("-", "-")
    return [
        f"requests {per_s[0]}/s · in flight {number(stats.in_flight)} · queued {number(stats.queued)}",
        f"events {per_s[1]}/s · dropped {number(stats.events_dropped)} · dead letters {number(stats.dead_letters)}",
    ]


def _small(value: float | None) -> str:
    """A rate that is mostly below one: 0, 0.3, 12."""
    return "-" if value is None else f"{value:.1f}" if 0 < value < 10 else number(value)


# Models and devices -------------------------------------------------------------------------------------------------


def _models(now: Sample, rate: Rates | None) -> Listing:
    header = ("MODEL", "STATE", "DEVICE", "MEMORY", "BUSY", "KEPT", "SIZE", "CONTEXT", "KIND")
    if now.models is None:
        return Listing(
            device_lines(now), header, [], "nobody says which models there are: the model service does not answer"
        )
    models = sorted(now.models, key=lambda each: (_MODEL_ORDER.index(each.state), each.name))
    return Listing(
        device_lines(now), header, [_model(each) for each in models], "there is no model; olympus models pull"
    )


def _model(each: ModelInfo) -> Entry:
    is_held = each.state in ("loaded", "loading")
    memory = each.memory_bytes if is_held else None
    kept = kept_for(each) if is_held or each.is_pinned else "-"
    cells = (
        printable(each.name),
        each.state,
        (each.device or "-") if is_held else "-",
        size(memory) if memory else "-",
        number(each.in_flight) if is_held else "-",
        kept,
        size(each.size_bytes),
        number(each.context_tokens),
        printable(" ".join(part for part in (each.family, each.quantisation) if part)),
    )
    order = (
        each.name,
        str(_MODEL_ORDER.index(each.state)),
        each.device,
        memory,
        each.in_flight,
        kept,
        each.size_bytes,
        each.context_tokens,
        each.family,
    )
    return Entry(each.name, cells, order)


def kept_for(model: ModelInfo) -> str:
    """How long it stays once it is idle."""
    if model.is_pinned:
        return "pinned"
    if model.keep_alive_s is None:
        return "-"
    return "for good" if model.keep_alive_s < 0 else duration(model.keep_alive_s)


def device_lines(now: Sample) -> list[str]:
    """A bar for each device's memory, and what is wrong with it."""
    if now.devices is None:
        return []
    lines = [_device(each) for each in now.devices.devices]
    lines += [
        f"! {each.device} is lost: {one_line(each.problem, _TEXT_MAX)}"
        for each in now.devices.devices
        if each.state == "lost"
    ]
    return lines + ([f"! {one_line(now.devices.problem, _TEXT_MAX)}"] if now.devices.problem else [])


def _device(each: DeviceStatus) -> str:
    used = each.used_bytes if each.used_bytes is not None else each.reserved_bytes
    share = min(max(used / each.total_bytes, 0.0), 1.0) if each.total_bytes else 0.0
    filled = round(share * _BAR)
    facts = [f"{size(used)} of {size(each.total_bytes)}", f"{size(each.reserved_bytes)} reserved"]
    if each.utilisation is not None:
        facts.append(f"{each.utilisation:.0%} busy")
    if each.temperature_c is not None:
        facts.append(f"{each.temperature_c:.0f} C")
    if each.lock is not None:
        facts.append(f"locked for {one_line(f'{each.lock.purpose} {each.lock.model}', 60)}")
    return f"{each.device:<4} {share:4.0%} [{'#' * filled}{'.' * (_BAR - filled)}] {', '.join(facts)} · {printable(each.name)}"


# Jobs ---------------------------------------------------------------------------------------------------------------


def _jobs(now: Sample, rate: Rates | None) -> Listing:
    header = ("JOB", "STATE", "STEP", "LOSS", "TOK/S", "LEFT", "MODEL", "DATASET", "NOTE")
    if now.jobs is None:
        return Listing([], header, [], "nobody says which jobs there are: the learning service does not answer")
    order = {state: place for place, state in enumerate(_RUNNING)}
    jobs = sorted(now.jobs, key=lambda each: (order.get(each.state, len(order)), -each.created_at))
    counts = [
        f"{sum(each.state == state for each in jobs)} {state}" for state in dict.fromkeys(each.state for each in jobs)
    ]
    newest = "the newest " if len(jobs) >= ROWS else ""
    summary = [f"{newest}{plural(len(jobs), 'job')}: {', '.join(counts)}"] if jobs else []
    return Listing(summary, header, [_job(each) for each in jobs], "there is no job; olympus train start begins one")


def _job(each: JobInfo) -> Entry:
    progress = each.progress
    step = f"{progress.step}/{progress.steps}" if progress is not None and progress.steps else "-"
    loss = progress.loss if progress is not None else None
    speed = progress.tokens_per_s if progress is not None else None
    left = progress.eta_s if progress is not None else None
    dataset = f"{each.dataset}:{each.version}" if each.dataset else "-"
    note = one_line(each.reason or each.adapter, _TEXT_MAX)
    cells = (
        printable(each.job_id),
        each.state,
        step,
        f"{loss:.4g}" if loss is not None else "-",
        number(speed),
        duration(left) if left is not None else "-",
        printable(each.model),
        printable(dataset),
        note,
    )
    done = progress.step / progress.steps if progress is not None and progress.steps else None
    return Entry(each.job_id, cells, (each.job_id, each.state, done, loss, speed, left, each.model, dataset, note))


def is_running(job: JobInfo) -> bool:
    """Whether there is anything left to stop."""
    return job.state in _RUNNING


# Errors -------------------------------------------------------------------------------------------------------------


def _errors(now: Sample, rate: Rates | None) -> Listing:
    header = ("ID", "LAST", "COUNT", "A MIN", "SEVERITY", "SERVICE", "WHAT")
    if now.groups is None:
        return Listing(error_lines(now), header, [], "nobody says what failed: the error service does not answer")
    groups = sorted(now.groups, key=lambda each: -each.last_at)
    lines = error_lines(now)
    if now.groups_total > len(groups):
        lines.append(f"the newest {len(groups):,} of {now.groups_total:,} open groups")
    return Listing(lines, header, [_group(each, now.wall) for each in groups], "no open errors")


def _group(each: ErrorGroup, wall: float) -> Entry:
    what = one_line(": ".join(part for part in (each.kind, each.message) if part), _TEXT_MAX)
    since = max(wall - each.last_at, 0.0)
    cells = (
        each.fingerprint[:_DIGITS],
        " ".join(duration(since).split()[:2]),
        number(each.count),
        f"{each.per_minute:g}",
        each.severity,
        one_line(each.service, 30),
        what,
    )
    severity = _SEVERITIES.index(each.severity)
    return Entry(
        each.fingerprint, cells, (each.fingerprint, -since, each.count, each.per_minute, severity, each.service, what)
    )


def error_lines(now: Sample) -> list[str]:
    """How many errors a minute, of whom, and how many groups nobody has seen."""
    stats = now.errors
    if stats is None:
        return []
    per_minute = stats.count / (ERRORS_OVER_S / 60)
    lines = [
        f"errors {per_minute:.2g} a minute · {number(stats.count)} in {duration(ERRORS_OVER_S)} ·"
        f" {stats.open_groups:,} of {plural(stats.groups, 'group')} open"
    ]
    worst = sorted((each for each in stats.services if each.count), key=lambda each: -each.count)
    if worst:
        lines.append("of " + ", ".join(f"{one_line(each.service, 30)} {each.count:,}" for each in worst))
    return lines


# Overview -----------------------------------------------------------------------------------------------------------


class Section(NamedTuple):
    """A part of the overview: plain lines, or a table."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def overview(now: Sample, rate: Rates | None) -> tuple[list[str], list[Section]]:
    """Lines that stand above, what is wrong first (with a !), and tables: services, models in memory, jobs, workers."""
    lines = [f"! {text}" for text in degraded_lines(now.workers)]
    lines += [*_traffic(now, rate), *error_lines(now)[:1], *device_lines(now)]
    sections = [_service_section(now, rate)]
    models = [_model(each).cells[:6] for each in now.models or [] if each.state in ("loaded", "loading")]
    if models:
        sections.append(Section(("MODEL", "STATE", "DEVICE", "MEMORY", "BUSY", "KEPT"), models))
    jobs = [_job(each).cells[:7] for each in now.jobs or [] if is_running(each)]
    if jobs:
        sections.append(Section(("JOB", "STATE", "STEP", "LOSS", "TOK/S", "LEFT", "MODEL"), jobs))
    if now.workers:
        sections.append(_worker_section(now.workers, rate))
    return lines, sections


def _service_section(now: Sample, rate: Rates | None) -> Section:
    rows = [
        (
            printable(each.service),
            number(each.instances),
            number(rate.answered.get(each.service)) if rate else "-",
            f"{each.in_flight}/{each.capacity}",
            number(each.queued),
            milliseconds(each.p50_s),
            milliseconds(each.p99_s),
        )
        for each in sorted(now.services, key=lambda each: each.service)
    ]
    rows += [(name, "not running", "", "", "", "", "") for name in not_running(now.services)]
    return Section(("SERVICE", "INST", "REQ/S", "BUSY", "QUEUED", "P50 MS", "P99 MS"), rows)


def _worker_section(workers: list[WorkerInfo], rate: Rates | None) -> Section:
    rows = [
        (
            printable(each.service),
            number(rate.worker_answered.get(worker_key(each))) if rate else "-",
            f"{each.in_flight}/{each.capacity}",
            number(rate.worker_cpu.get(worker_key(each))) if rate else "-",
            size(each.rss_bytes),
            printable(f"{each.instance}{' (draining)' if each.state == 'draining' else ''}"),
        )
        for each in sorted(workers, key=worker_key)
    ]
    return Section(("WORKER", "REQ/S", "BUSY", "CPU %", "MEMORY", "INSTANCE"), rows)


_LISTINGS: Final[dict[View, Callable[[Sample, Rates | None], Listing]]] = {
    "services": _services,
    "models": _models,
    "jobs": _jobs,
    "errors": _errors,
}
