"""Figures as the text that Prometheus reads, in its own format and in OpenMetrics.

Both have the same lines for samples; their headers and what they are called come from prometheus-client, of the extras
`exporter` and `gateway`, so nothing that every process imports may import this. The samples are written here: the library
takes 14 microseconds for each and format, this takes one for both, and a house has 12,000 of them every five seconds.
Sources: prometheus.io/docs/instrumenting/exposition_formats, github.com/prometheus/OpenMetrics (version 1.0).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from itertools import accumulate
from typing import Any, Final, NamedTuple

from prometheus_client import exposition, metrics_core
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.utils import floatToGoString

from schemas.bodies.telling import Series
from schemas.metrics import METRICS, Metric


class Form(NamedTuple):
    """One of the two formats."""

    media_type: str
    generate: Callable[[Any], bytes]
    end: bytes


TEXT: Final = Form(exposition.CONTENT_TYPE_PLAIN_0_0_4, exposition.generate_latest, b"")
OPEN_METRICS: Final = Form(openmetrics.CONTENT_TYPE_LATEST, openmetrics.generate_latest, b"# EOF\n")

_in_go: Final[Callable[[float], str]] = floatToGoString


class _Family:
    """What the library writes out: one metric, here without a sample."""

    def __init__(self, metric: Metric) -> None:
        # Both formats write `_total` behind a counter's name themselves, where it belongs.
        self._family = metrics_core.Metric(metric.name.removesuffix("_total"), metric.help, metric.kind)

    def collect(self) -> Iterator[metrics_core.Metric]:
        """As the library's collectors do."""
        yield self._family


def form_of(accept: str) -> Form:
    """The format that an Accept header asks for; Prometheus names OpenMetrics first wherever it knows it."""
    return OPEN_METRICS if "application/openmetrics-text" in accept.lower() else TEXT


def lines(metric: Metric, series: Iterable[Series], labels: Mapping[str, str]) -> bytes:
    """The samples of one metric, each with `labels` beside its own."""
    written: list[str] = []
    fixed = [_pair(name, value) for name, value in labels.items()]
    for one in series:
        pairs = ",".join([*map(_pair, metric.labels, one.labels), *fixed])
        if metric.kind == "histogram":
            written += _histogram(metric, one, pairs)
        else:
            written.append(f"{metric.name}{_braced(pairs)} {_in_go(one.value)}\n")
    return "".join(written).encode()


def page(form: Form, samples: Mapping[str, Iterable[bytes]]) -> bytes:
    """A whole answer of what `lines` made, by the name of the metric."""
    parts: list[bytes] = []
    for name, made in samples.items():
        parts += (_header(form, METRICS[name]), *made)
    return b"".join((*parts, form.end))


def text(figures: Mapping[str, Iterable[Series]]) -> bytes:
    """The figures of one process, in the older format."""
    return page(TEXT, {name: [lines(METRICS[name], series, {})] for name, series in figures.items()})


@cache
def _header(form: Form, metric: Metric) -> bytes:
    """The lines that introduce a metric: its help and its kind."""
    return form.generate(_Family(metric)).removesuffix(form.end)


def _histogram(metric: Metric, one: Series, pairs: str) -> Iterator[str]:
    """Its buckets, each with everything below it counted in."""
    total = 0
    start = f"{metric.name}_bucket{{{pairs}{',' if pairs else ''}"
    for bound, total in zip(_bounds(metric), accumulate(one.counts), strict=True):
        yield f"{start}{bound}}} {total}\n"
    yield f"{metric.name}_count{_braced(pairs)} {total}\n"
    yield f"{metric.name}_sum{_braced(pairs)} {_in_go(one.value)}\n"


@cache
def _bounds(metric: Metric) -> tuple[str, ...]:
    return tuple(_pair("le", _in_go(bound)) for bound in (*metric.buckets, float("inf")))


def _pair(name: str, value: str) -> str:
    escaped = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return f'{name}="{escaped}"'


def _braced(pairs: str) -> str:
    return f"{{{pairs}}}" if pairs else ""
