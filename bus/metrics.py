"""Figures of one process: plain numbers where they are counted, gathered only when they are told.

    figures = Figures()
    loads = figures.counter(metrics.MODEL_LOADS)
    loads.add("ok")                                    # labels in their declared order
    figures.read(metrics.MODELS_KNOWN, lambda: only(len(catalogue)))
    seconds = figures.histogram(metrics.MODEL_LOAD_SECONDS)
    seconds.observe(0.8)

Nothing here locks: count in the thread of the event loop, or in one thread per label set. What a metric may be called,
and its labels, stands in `schemas.metrics`; counting under labels that it does not have raises TypeError.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from schemas.bodies.telling import Series
from schemas.metrics import METRICS_DROPPED, Metric

log = logging.getLogger("olympus.metrics")

Labels = tuple[str, ...]
Told = tuple[Metric, Series]
Read = Callable[[], Mapping[Labels, float]]
Source = Callable[[], Iterable[Told]]

# Different label sets of one metric; what comes past it is counted under OTHER, so that nobody outside can fill this
# process's memory or Prometheus by naming things. The catalogue has some 330 operations, each with a few outcomes.
SERIES_MAX: Final = 2_000
OTHER: Final = "other"

# Characters of a label's value.
LABEL_MAX: Final = 128


class Counter:
    """Grows."""

    __slots__ = ("_figures", "_metric", "values")

    def __init__(self, metric: Metric, figures: Figures) -> None:
        self._metric = metric
        self._figures = figures
        self.values: dict[Labels, float] = {} if metric.labels else {(): 0.0}

    def add(self, *labels: str, by: float = 1.0) -> None:
        """Count `by` more."""
        try:
            self.values[labels] += by
        except KeyError:
            labels = self._figures.admitted(self._metric, labels, self.values)
            self.values[labels] = self.values.get(labels, 0.0) + by

    def told(self) -> Iterator[Told]:
        """Its values now."""
        for labels, value in self.values.items():
            yield self._metric, Series(labels, value)


class Histogram:
    """Counts observations by bucket."""

    __slots__ = ("_figures", "_metric", "values")

    def __init__(self, metric: Metric, figures: Figures) -> None:
        self._metric = metric
        self._figures = figures
        # Sum, then a count for each bucket and one for what is above them.
        self.values: dict[Labels, list[float]] = {}
        if not metric.labels:
            self.values[()] = self._empty()

    def observe(self, value: float, *labels: str) -> None:
        """Count one observation."""
        held = self.values.get(labels)
        if held is None:
            labels = self._figures.admitted(self._metric, labels, self.values)
            held = self.values.setdefault(labels, self._empty())
        held[0] += value
        held[1 + bisect_left(self._metric.buckets, value)] += 1

    def told(self) -> Iterator[Told]:
        """Its values now."""
        for labels, held in self.values.items():
            yield self._metric, Series(labels, held[0], tuple(int(one) for one in held[1:]))

    def _empty(self) -> list[float]:
        return [0.0] * (len(self._metric.buckets) + 2)


class Figures:
    """All figures of one process; every `Worker` has them as `worker.figures`."""

    def __init__(self) -> None:
        self._counted: dict[str, Counter | Histogram] = {}
        self._sources: list[Source] = []
        self._broken: set[int] = set()
        self._dropped = self.counter(METRICS_DROPPED)

    def counter(self, metric: Metric) -> Counter:
        """The counter of that metric, the same one every time."""
        held = self._counted.get(metric.name)
        if not isinstance(held, Counter):
            held = self._counted[metric.name] = Counter(metric, self)
            self._sources.append(held.told)
        return held

    def histogram(self, metric: Metric) -> Histogram:
        """The histogram of that metric, the same one every time."""
        held = self._counted.get(metric.name)
        if not isinstance(held, Histogram):
            held = self._counted[metric.name] = Histogram(metric, self)
            self._sources.append(held.told)
        return held

    def read(self, metric: Metric, read: Read) -> None:
        """Ask `read` for a gauge's or counter's values whenever figures are told; it must be quick and not block."""

        def told() -> Iterator[Told]:
            known: dict[Labels, float] = {}
            for labels, value in read().items():
                labels = self.admitted(metric, labels, known)
                known[labels] = known.get(labels, 0.0) + float(value)
            for labels, value in known.items():
                yield metric, Series(labels, value)

        self._sources.append(told)

    def tell(self, source: Source) -> None:
        """As `read`, for many metrics that come of one look, and for histograms counted elsewhere."""
        self._sources.append(source)

    def series(self) -> dict[str, list[Series]]:
        """Every figure now, by the name of its metric. What cannot be read is left out, and said once."""
        told: dict[str, list[Series]] = {}
        for number, source in enumerate(self._sources):
            try:
                for metric, series in source():
                    told.setdefault(metric.name, []).append(series)
            except Exception as error:
                if number not in self._broken:
                    self._broken.add(number)
                    log.warning("figures cannot be read", exc_info=error, extra={"action": "metrics.unread"})
            else:
                self._broken.discard(number)
        return told

    def admitted(self, metric: Metric, labels: Labels, known: Mapping[Labels, object]) -> Labels:
        """The labels to count a new series under."""
        if len(labels) != len(metric.labels):
            raise TypeError(f"{metric.name} has the labels {metric.labels}, not {labels}")
        if len(known) >= SERIES_MAX and labels not in known:
            self._dropped.add()
            return (OTHER,) * len(labels)
        return tuple(_clean(label) for label in labels)


def _clean(label: str) -> str:
    """What a label's value may be: short, and without what would break a line or a terminal."""
    label = label[:LABEL_MAX]
    return label if label.isprintable() else "".join(one if one.isprintable() else "?" for one in label)


def only(value: float) -> dict[Labels, float]:
    """What a `read` gives for a metric without labels."""
    return {(): value}


def by_label(values: Iterable[tuple[str, float]]) -> dict[Labels, float]:
    """What a `read` gives for a metric with one label; values of the same label are added up."""
    summed: dict[Labels, float] = {}
    for label, value in values:
        summed[(label,)] = summed.get((label,), 0.0) + value
    return summed
