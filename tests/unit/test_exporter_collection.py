"""What the exporter holds and serves: bounds on what anybody tells, staleness, restarts, and both formats."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from bus.exposition import OPEN_METRICS, TEXT, form_of
from schemas import metrics
from schemas.bodies.telling import Figures, Series
from workers.exporter.collection import BODY_MAX_BYTES, Collection
from workers.exporter.http import Malformed, parse

Told = dict[metrics.Metric, list[Series]]

OPERATION = ("memory.kv.get", "ok")


def figures(told: Told | None = None, **more: Any) -> Figures:
    """What one process tells."""
    plain: dict[str, Any] = {
        "service": "memory",
        "instance": "pc-1-4711",
        "host": "pc-1",
        "pid": 4711,
        "started_at": 1.0,
        "at": 2.0,
        "every_s": 5.0,
        "metrics": {metric.name: series for metric, series in (told or {}).items()},
    }
    return Figures(**{**plain, **more})


def body(told: Told | None = None, **more: Any) -> bytes:
    """The same as it is published."""
    return msgspec.msgpack.encode(figures(told, **more))


def samples(collection: Collection, name: str) -> dict[tuple[str, ...], float]:
    """Values of one metric on the page, by the values of their labels in the order of the labels' names."""
    families = text_string_to_metric_families(collection.page(TEXT).decode())
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if sample.name == name
    }


def requests(count: float) -> Told:
    """Requests that a worker answered."""
    return {metrics.WORKER_REQUESTS: [Series(OPERATION, count)]}


# Rendering ------------------------------------------------------------------------------------------------------


def every_metric() -> Told:
    """Each metric that is declared, with a value."""
    return {
        metric: [
            Series(
                tuple("pc-1" if label == "host" else 'quo"te\\ ünd' for label in metric.labels),
                12.5,
                tuple(range(len(metric.buckets) + 1)) if metric.kind == "histogram" else (),
            )
        ]
        for metric in metrics.METRICS.values()
    }


def test_both_formats_are_read_by_the_librarys_own_parsers_and_say_the_same() -> None:
    """Every declared metric, with odd characters in its labels, as Prometheus reads it and as OpenMetrics demands."""
    collection = Collection(50_000)
    assert collection.take("memory", body(every_metric()), 0.0) == {}
    assert collection.take("bus", body(every_metric(), service="bus", instance="broker-1"), 0.0) == {}

    plain = list(text_string_to_metric_families(collection.page(TEXT).decode()))
    strict = list(openmetrics.text_string_to_metric_families(collection.page(OPEN_METRICS).decode()))

    def read(families: list[Any]) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
        }

    assert read(plain) == read(strict)
    names = {name for name, _ in read(plain)}
    for metric in metrics.METRICS.values():
        assert (f"{metric.name}_bucket" if metric.kind == "histogram" else metric.name) in names
    kinds = {f"{family.name}{'_total' if family.type == 'counter' else ''}": family.type for family in strict}
    assert kinds == {metric.name: metric.kind for metric in metrics.METRICS.values()}
    assert [family.documentation for family in strict] == [metric.help for metric in metrics.METRICS.values()]


def test_buckets_are_cumulative_and_end_with_the_count() -> None:
    """A request in the first bucket, one in the last, one above all."""
    collection = Collection(50_000)
    counts = [0] * (len(metrics.DURATIONS) + 1)
    counts[0] = counts[-2] = counts[-1] = 1
    collection.take("memory", body({metrics.WORKER_SECONDS: [Series(("memory.kv.get",), 9.0, tuple(counts))]}), 0.0)

    found = samples(collection, "olympus_worker_request_duration_seconds_bucket")
    by_bound = {labels[0]: value for labels, value in found.items()}
    assert (by_bound["0.0001"], by_bound["60.0"], by_bound["300.0"], by_bound["+Inf"]) == (1, 1, 2, 3)
    count = samples(collection, "olympus_worker_request_duration_seconds_count")
    assert count == {("memory.kv.get", "memory", "pc-1-4711"): 3}


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/plain;version=0.0.4", TEXT),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1", OPEN_METRICS),
    ],
)
def test_the_format_is_the_one_that_was_asked_for(accept: str, form: Any) -> None:
    """Prometheus names OpenMetrics first; a browser gets text."""
    assert form_of(accept) is form


# Bounds ---------------------------------------------------------------------------------------------------------


def good(**more: Any) -> dict[str, Any]:
    """A body as builtin values."""
    return {**msgspec.to_builtins(figures(requests(1))), **more}


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "body"),
        (b"\xff" * 100, "body"),
        (b"{" * 10_000, "body"),
        (b"\x91" * 100_000, "body"),
        (bytes(BODY_MAX_BYTES + 1), "body"),
        (msgspec.msgpack.encode({**good(), "metrics": None}), "body"),
        (msgspec.msgpack.encode(good(metrics={"olympus_errors_total": "many"})), "body"),
        (msgspec.msgpack.encode(good(metrics={"olympus_models_known": [[[], True]]})), "body"),
        (msgspec.msgpack.encode(good(service="learning")), "body"),
        (msgspec.msgpack.encode(good(instance="")), "body"),
        (msgspec.msgpack.encode(good(instance="a\nb")), "body"),
        (msgspec.msgpack.encode(good(instance="x" * 200)), "body"),
        (msgspec.msgpack.encode(good(every_s=float("nan"))), "body"),
    ],
)
def test_a_telling_that_is_none_is_refused_whole(raw: bytes, reason: str) -> None:
    """And what the process told before is served on."""
    collection = Collection(50_000)
    collection.take("memory", body(requests(1)), 0.0)

    assert collection.take("memory", raw, 1.0) == {reason: 1}
    assert collection.refused[reason] == 1  # type: ignore[index]
    assert samples(collection, "olympus_worker_requests_total") == {(*OPERATION, "memory", "pc-1-4711"): 1}


@pytest.mark.parametrize(
    ("metric", "series", "reason"),
    [
        (metrics.MODELS_KNOWN, Series((), float("nan")), "value"),
        (metrics.MODELS_KNOWN, Series((), float("inf")), "value"),
        (metrics.MODELS_KNOWN, Series((), 1.0, (1, 2)), "value"),
        (metrics.MODEL_CRASHES, Series((), -1.0), "value"),
        (metrics.WORKER_SECONDS, Series(("a",), 1.0), "value"),
        (metrics.WORKER_SECONDS, Series(("a",), 1.0, (1,) * 5), "value"),
        (metrics.WORKER_SECONDS, Series(("a",), 1.0, (-1,) * 20), "value"),
        (metrics.WORKER_SECONDS, Series(("a",), 1.0, (2**53,) * 20), "value"),
        (metrics.WORKER_SECONDS, Series(("a",), -1.0, (1,) * 20), "value"),
        (metrics.MODELS_KNOWN, Series(("too", "many"), 1.0), "label"),
        (metrics.WORKER_REQUESTS, Series(("one",), 1.0), "label"),
        (metrics.WORKER_REQUESTS, Series(("a\nolympus_models_known 666", "ok"), 1.0), "label"),
        (metrics.WORKER_REQUESTS, Series(("\x1b[2J", "ok"), 1.0), "label"),
        (metrics.WORKER_REQUESTS, Series(("x" * 129, "ok"), 1.0), "label"),
        (metrics.HOST_LOAD, Series(("another-machine",), 1.0), "label"),
    ],
)
def test_one_figure_that_is_none_is_left_out_and_the_others_are_served(
    metric: metrics.Metric, series: Series, reason: str
) -> None:
    """Counted by why; the page stays readable."""
    collection = Collection(50_000)

    assert collection.take("memory", body({**requests(3), metric: [series]}), 0.0) == {reason: 1}
    found = samples(collection, "olympus_worker_requests_total")
    assert metric is metrics.WORKER_REQUESTS or found == {(*OPERATION, "memory", "pc-1-4711"): 3}
    list(openmetrics.text_string_to_metric_families(collection.page(OPEN_METRICS).decode()))


def test_a_label_set_that_comes_twice_is_served_once() -> None:
    """Prometheus would refuse the whole page."""
    collection = Collection(50_000)
    twice = {metrics.WORKER_REQUESTS: [Series(OPERATION, 1), Series(OPERATION, 2)]}

    assert collection.take("memory", body(twice), 0.0) == {"label": 1}
    assert samples(collection, "olympus_worker_requests_total") == {(*OPERATION, "memory", "pc-1-4711"): 1}


def test_names_that_nobody_declared_are_refused() -> None:
    """Thousands of them cost nothing that lasts."""
    collection = Collection(50_000)
    made_up = {f"made_up_{number}": [[[], 1.0]] for number in range(5_000)}

    assert collection.take("memory", msgspec.msgpack.encode(good(metrics=made_up)), 0.0) == {"name": 5_000}
    assert collection.page(TEXT) == b""


def test_a_process_with_too_many_series_keeps_out_nobody() -> None:
    """It gets a quarter of the room; what is past it is refused and counted."""
    collection = Collection(1_000)
    flood = {metrics.WORKER_REQUESTS: [Series((f"made.up.{number}", "ok"), 1) for number in range(5_000)]}

    refused = collection.take("memory", body(flood), 0.0)
    assert collection.series == 250 and refused == {"series": 4_750}
    assert collection.take("model", body(requests(1), service="model"), 0.0) == {}
    # Told anew, it takes its own place and no more.
    collection.take("memory", body(flood), 1.0)
    assert collection.series == 251


def test_many_made_up_processes_stay_within_the_bound() -> None:
    """On series and on processes; those that were there first are served on, and those that come find room."""
    collection = Collection(1_000)
    collection.take("memory", body(requests(1)), 0.0)
    flood = {metrics.WORKER_REQUESTS: [Series((f"made.up.{number}", "ok"), 1) for number in range(100)]}
    for number in range(1_500):
        collection.take("liar", body(flood, service="liar", instance=f"liar-{number}"), 0.0)

    assert collection.take("memory", body(requests(1), instance="pc-1-4712"), 0.0) == {}
    assert collection.series == 252 and len(collection.processes) == 252
    assert (*OPERATION, "memory", "pc-1-4711") in samples(collection, "olympus_worker_requests_total")


# Life -----------------------------------------------------------------------------------------------------------


def test_a_silent_process_is_served_for_three_of_its_own_intervals() -> None:
    """Then its series end, and those of the others go on."""
    collection = Collection(50_000)
    collection.take("memory", body(requests(1)), 0.0)
    collection.take("model", body(requests(1), service="model", every_s=60.0), 0.0)

    collection.forget_silent(15.0)
    assert collection.processes == [("memory", "pc-1-4711"), ("model", "pc-1-4711")]
    collection.forget_silent(15.1)
    assert collection.processes == [("model", "pc-1-4711")]


@pytest.mark.parametrize(("every_s", "silent_at"), [(0.0, 0.31), (-5.0, 0.31), (1e300, 10_801.0)])
def test_an_interval_that_is_none_is_taken_as_the_nearest_that_is(every_s: float, silent_at: float) -> None:
    """Nobody is served for ever."""
    collection = Collection(50_000)
    collection.take("memory", body(requests(1), every_s=every_s), 0.0)
    collection.forget_silent(silent_at * 0.9)
    assert collection.processes
    collection.forget_silent(silent_at)
    assert not collection.processes


def test_a_lost_process_ends_at_once_and_one_that_left_is_served_once_more() -> None:
    """The last thing it told is worth having."""
    collection = Collection(50_000)
    collection.take("memory", body(requests(1)), 0.0)
    collection.take("model", body(requests(9), service="model"), 0.0)

    collection.lost("memory", "pc-1-4711")
    collection.left("model", "pc-1-4711")
    assert samples(collection, "olympus_worker_requests_total") == {(*OPERATION, "model", "pc-1-4711"): 9}
    assert collection.page(TEXT) == b""


def test_a_process_that_began_anew_has_series_of_its_own() -> None:
    """Another process number is another series: its counter begins at nought and never makes a rate of the old one's."""
    collection = Collection(50_000)
    collection.take("memory", body(requests(1_000)), 0.0)
    collection.lost("memory", "pc-1-4711")
    collection.take("memory", body(requests(2), instance="pc-1-4712", pid=4712), 1.0)

    assert samples(collection, "olympus_worker_requests_total") == {(*OPERATION, "memory", "pc-1-4712"): 2}


def cpu(seconds: float) -> Told:
    """Processor time of a machine."""
    return {metrics.HOST_CPU: [Series(("pc-1", "user"), seconds)], metrics.HOST_CORES: [Series(("pc-1",), 4)]}


def test_a_machine_is_served_once_whoever_tells_of_it() -> None:
    """Without the name of the process; the newest telling counts, and it outlives whoever told it."""
    collection = Collection(50_000)
    collection.take("memory", body(cpu(10)), 0.0)
    collection.take("model", body(cpu(11), service="model"), 1.0)
    elsewhere = {"service": "model", "instance": "pc-2-1", "host": "pc-2"}
    collection.take("model", body({metrics.HOST_CORES: [Series(("pc-2",), 8)]}, **elsewhere), 1.0)

    assert samples(collection, "olympus_host_cpu_seconds_total") == {("pc-1", "user"): 11}
    assert samples(collection, "olympus_host_cores") == {("pc-1",): 4, ("pc-2",): 8}
    collection.lost("model", "pc-1-4711")
    assert samples(collection, "olympus_host_cpu_seconds_total") == {("pc-1", "user"): 11}
    collection.forget_silent(16.1)
    assert samples(collection, "olympus_host_cpu_seconds_total") == {}


def test_counters_of_a_machine_never_go_back_by_a_tick() -> None:
    """Two processes look at the same moment: the lower of the two would be a restart, and the rate a jump.

    A machine that really began anew is served as soon as that can be no tick.
    """
    collection = Collection(50_000)
    collection.take("memory", body(cpu(10.01)), 0.0)
    collection.take("model", body(cpu(10.0), service="model"), 0.001)
    assert samples(collection, "olympus_host_cpu_seconds_total") == {("pc-1", "user"): 10.01}
    collection.take("memory", body(cpu(0.5)), 4.9)
    assert samples(collection, "olympus_host_cpu_seconds_total") == {("pc-1", "user"): 10.01}
    collection.take("memory", body(cpu(0.6)), 5.1)
    assert samples(collection, "olympus_host_cpu_seconds_total") == {("pc-1", "user"): 0.6}


def test_one_lie_about_a_machine_keeps_out_the_truth_for_one_interval() -> None:
    """Though it says that it holds for an hour, and that the machine's counters were as high as can be."""
    collection = Collection(50_000)
    collection.take("liar", body(cpu(1e300), service="liar", every_s=3600.0), 0.0)
    collection.take("memory", body(cpu(10)), 1.0)
    assert samples(collection, "olympus_host_cpu_seconds_total") == {("pc-1", "user"): 1e300}
    collection.take("memory", body(cpu(15)), 6.0)
    assert samples(collection, "olympus_host_cpu_seconds_total") == {("pc-1", "user"): 15}


def test_one_process_tells_of_one_machine() -> None:
    """Thousands that it invents do not fill the page, and the others' stay."""
    collection = Collection(50_000)
    collection.take("memory", body(cpu(10)), 0.0)
    for number in range(3_000):
        lie = {metrics.HOST_CORES: [Series((f"made-up-{number}",), 1)]}
        collection.take("liar", body(lie, service="liar", host=f"made-up-{number}"), 0.0)

    assert samples(collection, "olympus_host_cores") == {("made-up-2999",): 1, ("pc-1",): 4}


def test_the_collection_tells_of_itself() -> None:
    """Processes by service, the oldest telling, series, and what was refused."""
    collection = Collection(50_000)
    collection.take("memory", body(requests(1)), 2.0)
    collection.take("memory", body(requests(1), instance="pc-1-4712"), 4.0)
    collection.take("memory", b"?", 4.0)

    told = {(metric.name, series.labels): series.value for metric, series in collection.told(5.0)}
    assert told["olympus_exporter_processes", ("memory",)] == 2
    assert told["olympus_exporter_oldest_seconds", ()] == 3.0
    assert told["olympus_exporter_series", ()] == 2
    assert told["olympus_exporter_refused_total", ("body",)] == 1
    assert told["olympus_exporter_refused_total", ("name",)] == 0


# Heads ----------------------------------------------------------------------------------------------------------


def test_a_head_is_understood_or_refused() -> None:
    """Names in lower case, the query left out, and what keeps the connection open."""
    request = parse(b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\nACCEPT:  b \r\nAccept: c\r\n\r\n")
    assert (request.method, request.path, request.keeps_alive) == ("GET", "/metrics", True)
    assert request.headers == {"host": "a", "accept": "b"}
    assert not parse(b"GET / HTTP/1.0\r\n\r\n").keeps_alive
    assert not parse(b"GET / HTTP/1.1\r\nConnection: Close\r\n\r\n").keeps_alive


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"GET metrics HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n folded: 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nContent-Length: -0\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nhost: elsewhere\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\na: b\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 65 + b"\r\n", 431),
    ],
)
def test_a_head_that_is_none_is_refused(head: bytes, status: int) -> None:
    """With what is wrong."""
    with pytest.raises(Malformed) as refused:
        parse(head)
    assert refused.value.status == status


def test_any_bytes_are_a_head_or_refused() -> None:
    """Nothing else is raised."""
    chance = random.Random(7)
    for _ in range(2_000):
        head = bytes(chance.choices(b"GET /HTP1.:\r\n\x00\xff a", k=chance.randrange(80))) + b"\r\n\r\n"
        try:
            parse(head)
        except Malformed as refused:
            assert refused.status >= 400
