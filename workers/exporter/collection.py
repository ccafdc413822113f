"""The newest figures of every process: what may be served of them, for how long, and as which lines.

It knows no socket and no clock. Whoever may publish on the bus may tell anything here, so everything is bounded, and what
is refused is counted by why.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Final, Literal

import msgspec

from bus import exposition
from bus.exposition import Form
from bus.metrics import LABEL_MAX, Told
from schemas import metrics
from schemas.bodies.telling import Figures, Series
from schemas.metrics import METRICS, Metric

Key = tuple[str, str]
Refusal = Literal["name", "label", "series", "value", "body"]
REFUSALS: Final[tuple[Refusal, ...]] = ("name", "label", "series", "value", "body")

# A process is silent when nothing came of it for this many of its own intervals.
_SILENT_AFTER: Final = 3

# Intervals that are believed, seconds: as bus.metrics_interval_s may be.
_INTERVAL_MIN_S: Final = 0.1
_INTERVAL_MAX_S: Final = 3600.0

# Bytes of one telling that are looked at. The largest of the house, memory's and the broker's, have some 30 KiB.
BODY_MAX_BYTES: Final = 4 * 1024 * 1024

# Processes whose figures are held, and machines, at most: a house has about a dozen, and two.
_PROCESSES_MAX: Final = 1_000

# Share of all series, and of all processes, that one service may have, so that none of them can keep out the others: a key
# may tell figures of its own services alone, but of as many processes as it likes.
_SHARE: Final = 4

# Counts past it are no counts (see schemas.bodies.base.Whole).
_COUNT_MAX: Final = 2**53

_decode = msgspec.msgpack.Decoder(Figures).decode
_decode_json = msgspec.json.Decoder(Figures).decode


def is_of_host(metric: Metric) -> bool:
    """True for figures of a machine: every process of it tells them, and they are served once."""
    return "host" in metric.labels


def weight(metric: Metric) -> int:
    """Time series that one of its label sets is in Prometheus."""
    return len(metric.buckets) + 3 if metric.kind == "histogram" else 1


class _Process:
    """What is held of one process. lines: its samples by the name of the metric, as they are served."""

    __slots__ = ("every_s", "heard_at", "is_leaving", "lines", "weight")

    def __init__(self, lines: dict[str, bytes], weight: int, every_s: float, heard_at: float) -> None:
        self.lines = lines
        self.weight = weight
        self.every_s = every_s
        self.heard_at = heard_at
        self.is_leaving = False

    def is_silent(self, now: float) -> bool:
        return now - self.heard_at > _SILENT_AFTER * self.every_s


class _Host:
    """What is held of one machine: what was told last of it, by the process `teller`, whichever that is."""

    __slots__ = ("counted", "every_s", "heard_at", "lines", "teller")

    def __init__(self, figures: Mapping[str, list[Series]], teller: Key, every_s: float, heard_at: float) -> None:
        self.teller = teller
        self.counted = {
            (name, one.labels): one.value
            for name, series in figures.items()
            if METRICS[name].kind == "counter"
            for one in series
        }
        self.lines = _lines(figures, {})
        self.every_s = every_s
        self.heard_at = heard_at

    def is_silent(self, now: float) -> bool:
        return now - self.heard_at > _SILENT_AFTER * self.every_s

    def goes_back_to(self, before: _Host) -> bool:
        """True where a counter is below what was told before, as it is when two processes look at the same moment."""
        return any(before.counted.get(key, value) > value for key, value in self.counted.items())


class _Taken:
    """What may be served of one telling. Raises nothing: what may not be is counted in `refused`."""

    def __init__(self, figures: Figures, room: int) -> None:
        self.own: dict[str, list[Series]] = {}
        self.of_host: dict[str, list[Series]] = {}
        self.weight = 0
        self.refused: dict[Refusal, int] = {}
        self._host = figures.host
        self._room = room
        self._looked_at = 0
        for name, series in figures.metrics.items():
            metric = METRICS.get(name)
            if metric is None:
                self._refuse("name")
            elif self._looked_at <= room:
                self._take(metric, series)
            else:
                self._refuse("series", len(series))

    def _take(self, metric: Metric, series: list[Series]) -> None:
        taken: dict[tuple[str, ...], Series] = {}
        cost = weight(metric)
        for one in series:
            self._looked_at += 1
            if self._looked_at > self._room or self.weight + cost > self._room:
                self._refuse("series")
            elif one.labels in taken or not self._may_be_labels(metric, one.labels):
                self._refuse("label")
            elif not _is_value(metric, one):
                self._refuse("value")
            else:
                taken[one.labels] = one
                self.weight += cost
        if taken:
            held = self.of_host if is_of_host(metric) else self.own
            held[metric.name] = list(taken.values())

    def _may_be_labels(self, metric: Metric, labels: tuple[str, ...]) -> bool:
        if len(labels) != len(metric.labels) or not all(map(_is_label, labels)):
            return False
        # A process tells of the machine it runs on and of no other.
        return not is_of_host(metric) or labels[metric.labels.index("host")] == self._host

    def _refuse(self, why: Refusal, count: int = 1) -> None:
        self.refused[why] = self.refused.get(why, 0) + count


class Collection:
    """Figures by process and by machine. Times are seconds of a monotonic clock."""

    def __init__(self, max_series: int) -> None:
        self._max_series = max_series
        self._processes: dict[Key, _Process] = {}
        self._hosts: dict[str, _Host] = {}
        self.refused: dict[Refusal, int] = dict.fromkeys(REFUSALS, 0)

    # What comes in

    def take(self, service: str, body: bytes, now: float) -> dict[Refusal, int]:
        """Figures that were published by `service`; returns what was refused of them, by why."""
        figures = None if len(body) > BODY_MAX_BYTES else _decoded(body)
        # By the subject, because that is what the broker checks a key's permissions by.
        if figures is None or figures.service.replace(".", "-") != service or not _is_whole(figures):
            self.refused["body"] += 1
            return {"body": 1}
        return self.put(figures, now)

    def put(self, figures: Figures, now: float) -> dict[Refusal, int]:
        """Figures in place of those that this process told before."""
        key = (figures.service, figures.instance)
        others = [(service, one.weight) for (service, name), one in self._processes.items() if (service, name) != key]
        siblings = [weight for service, weight in others if service == figures.service]
        if len(others) >= _PROCESSES_MAX or len(siblings) >= _PROCESSES_MAX // _SHARE:
            self.refused["series"] += 1
            return {"series": 1}
        room = min(self._max_series // _SHARE - sum(siblings), self._max_series - sum(weight for _, weight in others))
        taken = _Taken(figures, max(room, 0))
        for why, count in taken.refused.items():
            self.refused[why] += count
        every_s = min(max(figures.every_s, _INTERVAL_MIN_S), _INTERVAL_MAX_S)
        labels = {"service": figures.service, "worker": figures.instance}
        self._processes[key] = _Process(_lines(taken.own, labels), taken.weight, every_s, now)
        if taken.of_host:
            self._put_host(figures.host, _Host(taken.of_host, key, every_s, now), now)
        return taken.refused

    def _put_host(self, name: str, host: _Host, now: float) -> None:
        # A process runs on one machine: it does not fill the page with those it invents.
        for other in [other for other, held in self._hosts.items() if held.teller == host.teller and other != name]:
            del self._hosts[other]
        before = self._hosts.get(name)
        if before is None and len(self._hosts) >= _PROCESSES_MAX:
            self.refused["series"] += 1
            return
        # A counter that goes back by a tick is a restart to Prometheus, and the rate a jump. Past an interval it is no
        # tick: the machine began anew, or what was told before was a lie, which must not keep out the truth for longer.
        if before is None or now - before.heard_at > host.every_s or not host.goes_back_to(before):
            self._hosts[name] = host

    # What goes

    def lost(self, service: str, instance: str) -> None:
        """A process is gone: its series end now."""
        self._processes.pop((service, instance), None)

    def left(self, service: str, instance: str) -> None:
        """A process left in good order: its last figures are served once more."""
        process = self._processes.get((service, instance))
        if process is not None:
            process.is_leaving = True

    def forget_silent(self, now: float) -> None:
        """Let go of processes and machines that tell nothing any more."""
        for key in [key for key, process in self._processes.items() if process.is_silent(now)]:
            del self._processes[key]
        for name in [name for name, host in self._hosts.items() if host.is_silent(now)]:
            del self._hosts[name]

    # What is served

    def page(self, form: Form) -> bytes:
        """Every figure in one format; metrics in the order of their declaration."""
        made = [process.lines for process in self._processes.values()] + [host.lines for host in self._hosts.values()]
        samples: dict[str, list[bytes]] = {}
        for name in METRICS:
            parts = [each[name] for each in made if name in each]
            if parts:
                samples[name] = parts
        for key in [key for key, process in self._processes.items() if process.is_leaving]:
            del self._processes[key]
        return exposition.page(form, samples)

    @property
    def series(self) -> int:
        """Time series held."""
        return sum(process.weight for process in self._processes.values())

    @property
    def processes(self) -> list[Key]:
        """Service and instance of every process whose figures are held."""
        return list(self._processes)

    def told(self, now: float) -> Iterator[Told]:
        """Figures of the collection itself."""
        by_service: dict[str, int] = {}
        for service, _ in self._processes:
            by_service[service] = by_service.get(service, 0) + 1
        for service, count in by_service.items():
            yield metrics.EXPORTER_PROCESSES, Series((service,), count)
        oldest = min((process.heard_at for process in self._processes.values()), default=now)
        yield metrics.EXPORTER_AGE, Series((), max(now - oldest, 0.0))
        yield metrics.EXPORTER_SERIES, Series((), self.series)
        for why, count in self.refused.items():
            yield metrics.EXPORTER_REFUSED, Series((why,), count)


def _lines(figures: Mapping[str, list[Series]], labels: Mapping[str, str]) -> dict[str, bytes]:
    """Samples by the name of the metric; made when they are told, not while a scraper waits."""
    return {name: exposition.lines(METRICS[name], series, labels) for name, series in figures.items()}


def _decoded(body: bytes) -> Figures | None:
    try:
        return _decode_json(body) if body[:1] == b"{" else _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _is_whole(figures: Figures) -> bool:
    """True where what is said of the process itself may be a label."""
    names = (figures.service, figures.instance, figures.host)
    return all(name and _is_label(name) for name in names) and math.isfinite(figures.every_s)


def _is_label(value: str) -> bool:
    return len(value) <= LABEL_MAX and (value.isprintable() or not value)


def _is_value(metric: Metric, one: Series) -> bool:
    if not math.isfinite(one.value):
        return False
    if metric.kind == "gauge":
        return not one.counts
    if one.value < 0:
        return False
    if metric.kind == "counter":
        return not one.counts
    return (
        len(one.counts) == len(metric.buckets) + 1
        and all(0 <= count <= _COUNT_MAX for count in one.counts)
        and sum(one.counts) <= _COUNT_MAX
    )
