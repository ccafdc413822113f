"""Figures of one process: what may be counted, what is told, and what a part that fails costs the others."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.latency import LatencyWindow
from bus import machine
from bus.metrics import LABEL_MAX, OTHER, SERIES_MAX, Figures, Told, by_label, only
from bus.tally import OK, Tallies
from schemas import metrics
from schemas.bodies.telling import Series


def values(figures: Figures, metric: metrics.Metric) -> dict[tuple[str, ...], float]:
    """What is told of one metric."""
    return {series.labels: series.value for series in figures.series().get(metric.name, [])}


def test_what_was_counted_is_told() -> None:
    """Counters and gauges by their labels, histograms with a count for each bucket and one for what is above."""
    figures = Figures()
    figures.counter(metrics.MODEL_LOADS).add("ok", by=2)
    figures.counter(metrics.MODEL_LOADS).add("failed")
    figures.read(metrics.MODELS_KNOWN, lambda: only(7))
    figures.read(metrics.MODELS_LOADED, lambda: by_label([("serving", 1), ("loading", 1), ("serving", 1)]))
    loads = figures.histogram(metrics.MODEL_LOAD_SECONDS)
    for seconds in (0.05, 0.1, 1e9):
        loads.observe(seconds)

    assert values(figures, metrics.MODEL_LOADS) == {("ok",): 2, ("failed",): 1}
    assert values(figures, metrics.MODELS_KNOWN) == {(): 7}
    assert values(figures, metrics.MODELS_LOADED) == {("serving",): 2, ("loading",): 1}
    (told,) = figures.series()[metrics.MODEL_LOAD_SECONDS.name]
    place = metrics.DURATIONS.index(0.1)
    assert (told.counts[place - 1], told.counts[place], told.counts[-1]) == (1, 1, 1)
    assert told.value == 1e9 + 0.15 and len(told.counts) == len(metrics.DURATIONS) + 1


def test_a_counter_without_labels_begins_at_nought() -> None:
    """A rate sees the first of something only where it saw none before."""
    figures = Figures()
    figures.counter(metrics.MODEL_CRASHES)
    figures.histogram(metrics.MODEL_LOAD_SECONDS)

    assert values(figures, metrics.MODEL_CRASHES) == {(): 0}
    assert figures.series()[metrics.MODEL_LOAD_SECONDS.name][0].counts[-1] == 0


def test_label_sets_past_the_bound_share_one_and_are_counted() -> None:
    """Whoever makes up names fills nobody's memory; what was known before goes on under its own name."""
    figures = Figures()
    counter = figures.counter(metrics.MODEL_LOADS)
    for number in range(SERIES_MAX + 10):
        counter.add(f"made-up-{number}")
    counter.add("made-up-0")

    told = values(figures, metrics.MODEL_LOADS)
    assert len(told) == SERIES_MAX + 1
    assert told[(OTHER,)] == 10 and told[("made-up-0",)] == 2
    assert values(figures, metrics.METRICS_DROPPED) == {(): 10}

    figures = Figures()
    figures.read(metrics.MODELS_LOADED, lambda: {(f"state-{number}",): 1 for number in range(SERIES_MAX + 5)})
    told = values(figures, metrics.MODELS_LOADED)
    assert len(told) == SERIES_MAX + 1 and told[(OTHER,)] == 5


def test_labels_are_short_and_on_one_line() -> None:
    """Whatever they were made of."""
    figures = Figures()
    figures.counter(metrics.MODEL_LOADS).add("a\nb\x1b[2J" + "x" * 500)

    ((label,),) = values(figures, metrics.MODEL_LOADS)
    assert label.startswith("a?b?[2Jxx") and len(label) == LABEL_MAX


def test_wrong_labels_are_the_mistake_of_whoever_counts() -> None:
    """Said at once, where the line stands."""
    figures = Figures()
    with pytest.raises(TypeError, match="olympus_model_loads_total has the labels"):
        figures.counter(metrics.MODEL_LOADS).add()


def test_a_part_that_cannot_tell_harms_no_other_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Until it works again: then its next failure is news."""
    figures = Figures()
    is_broken = True

    def broken() -> Iterator[Told]:
        yield metrics.MODELS_KNOWN, Series((), 3)
        if is_broken:
            raise OSError("the disk is gone")

    figures.tell(broken)
    figures.read(metrics.MODEL_WAITING, lambda: only(5))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert values(figures, metrics.MODEL_WAITING) == {(): 5}
            assert values(figures, metrics.MODELS_KNOWN) == {(): 3}
    assert [record.message for record in caplog.records] == ["figures cannot be read"]

    is_broken = False
    figures.series()
    is_broken = True
    figures.series()
    assert len(caplog.records) == 2


def test_a_tally_tells_outcomes_and_times_by_operation() -> None:
    """Those that were registered from the start; times only once there are some. Instances are one operation."""
    tallies = Tallies()
    tally = tallies.of("memory.kv.get")
    assert tallies.of("memory.kv.get@pc-1") is tally
    tallies.of("memory.kv.set")
    tally.ended(0.002, OK)
    tally.ended(1000.0, "not_found")
    tallies.unknown.ended(0.0, "no_worker")

    told: dict[str, dict[tuple[str, ...], Series]] = {}
    for metric, series in tallies.told():
        told.setdefault(metric.name, {})[series.labels] = series
    assert {labels: series.value for labels, series in told[metrics.WORKER_REQUESTS.name].items()} == {
        ("memory.kv.get", "ok"): 1,
        ("memory.kv.get", "internal"): 0,
        ("memory.kv.get", "not_found"): 1,
        ("memory.kv.set", "ok"): 0,
        ("memory.kv.set", "internal"): 0,
        ("other", "ok"): 0,
        ("other", "internal"): 0,
        ("other", "no_worker"): 1,
    }
    times = told[metrics.WORKER_SECONDS.name]
    assert set(times) == {("memory.kv.get",), ("other",)}
    assert times["memory.kv.get",].value == 1000.002 and times["memory.kv.get",].counts[-1] == 1


def test_process_and_machine_are_told_as_the_system_counts_them(tmp_path: Path) -> None:
    """Without anything installed, and of a state folder that is still to be made."""
    figures = Figures()
    figures.tell(machine.process_figures)
    figures.tell(lambda: machine.host_figures(tmp_path / "to" / "be" / "made"))
    told = figures.series()

    for metric in (metrics.PROCESS_RSS, metrics.PROCESS_FDS, metrics.PROCESS_THREADS, metrics.PROCESS_CPU):
        assert told[metric.name][0].value > 0, metric.name
    (host,) = {series.labels[0] for name, several in told.items() if "_host_" in name for series in several}
    assert host
    free, total = told[metrics.HOST_MEMORY_FREE.name][0].value, told[metrics.HOST_MEMORY.name][0].value
    assert 0 < free < total
    assert {series.labels[1] for series in told[metrics.HOST_CPU.name]} >= {"user", "system", "idle"}
    assert machine.started_at() == machine.started_at() > 1.6e9


def test_durations_of_the_broker_are_told_in_whole_buckets_of_theirs() -> None:
    """Cumulative since the start, whatever left the window of the quantiles."""
    window = LatencyWindow(0.0)
    for seconds in (0.0, 63e-6, 65e-6, 0.001, 3600.0):
        window.record(seconds, 0.0)
    window.record(0.001, 10_000.0)

    counts = window.counts()
    assert len(counts) == len(metrics.DOUBLINGS) + 1 and sum(counts) == 6
    assert (counts[0], counts[1], counts[-1]) == (2, 1, 1)
    bound = next(bound for bound, count in zip(metrics.DOUBLINGS, counts, strict=False) if count and bound > 0.0002)
    assert 0.001 <= bound <= 0.002
    assert math.isclose(window.seconds, 3600.002128)
    # What is past two spans is in no quantile.
    quantile = window.quantile(1.0, 10_000.0)
    assert quantile is not None and quantile < 0.01
