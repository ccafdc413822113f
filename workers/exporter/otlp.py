"""Requests as OpenTelemetry spans, and the way to a collector over OTLP/HTTP; imported where that is configured alone.

Names and attributes follow OpenTelemetry's semantic conventions for RPC spans (opentelemetry.io/docs/specs/semconv/rpc):
a request is a SERVER span of the service that answered it, with the time that it waited for a worker in it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from bus.version import VERSION
from schemas.bodies.telling import Span

# Seconds for one batch, the library's own repetitions included.
_TIMEOUT_S: Final = 5.0

_PATH: Final = "/v1/traces"
_SCOPE: Final = InstrumentationScope("olympus", VERSION)
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)

# Instances whose resource is kept ready; they are few.
_RESOURCES_MAX: Final = 1_000


class Collector:
    """A collector at `endpoint`, http://HOST:4318 or a whole path. What it is told is in the broker's words."""

    def __init__(self, endpoint: str) -> None:
        # It would say every failure of every attempt; ours are told once.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        base = endpoint.rstrip("/")
        self._exporter = OTLPSpanExporter(base if base.endswith(_PATH) else base + _PATH, timeout=_TIMEOUT_S)
        self._resources: dict[tuple[str, str], Resource] = {}

    def send(self, spans: Sequence[Span]) -> bool:
        """Send a batch; blocks, for seconds where the collector does not answer. False when it did not take it."""
        made = [self._made(span) for span in spans]
        return self._exporter.export(made) is SpanExportResult.SUCCESS

    def close(self) -> None:
        """End a waiting `send` as soon as may be."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def _made(self, span: Span) -> ReadableSpan:
        return span_of(span, self._resource(span.service or "broker", span.worker))

    def _resource(self, service: str, instance: str) -> Resource:
        known = self._resources.get((service, instance))
        if known is None:
            if len(self._resources) >= _RESOURCES_MAX:
                self._resources.clear()
            attributes: dict[str, Any] = {"service.namespace": "olympus", "service.name": service}
            if instance:
                attributes["service.instance.id"] = instance
            known = self._resources[service, instance] = Resource(attributes)
        return known


def span_of(span: Span, resource: Resource) -> ReadableSpan:
    """One request as a span. Its id is the first half of the request's, which is what `traceparent` carries."""
    trace_id, own_id = int(span.trace, 16), span.id[:16]
    parent = None
    if span.parent and span.parent != own_id:
        parent = SpanContext(trace_id, int(span.parent, 16), is_remote=True, trace_flags=_SAMPLED)
    attributes: dict[str, Any] = {
        "rpc.system.name": "olympus",
        "rpc.method": span.subject,
        "rpc.response.status_code": span.outcome,
        "messaging.message.id": span.id,
        "messaging.message.body.size": span.body_bytes,
        "olympus.caller": span.caller,
        "olympus.attempts": span.attempts,
    }
    events: list[Event] = []
    if span.dispatched_at is not None:
        attributes["olympus.queue_s"] = max(span.dispatched_at - span.received_at, 0.0)
        events.append(Event("dispatched", timestamp=_nanoseconds(span.dispatched_at)))
    if span.outcome != "ok":
        attributes["error.type"] = span.outcome
    return ReadableSpan(
        name=span.subject,
        context=SpanContext(trace_id, int(own_id, 16), is_remote=False, trace_flags=_SAMPLED),
        parent=parent,
        resource=resource,
        attributes=attributes,
        events=events,
        kind=SpanKind.SERVER,
        status=Status(StatusCode.UNSET) if span.outcome == "ok" else Status(StatusCode.ERROR, span.outcome),
        start_time=_nanoseconds(span.received_at),
        end_time=max(_nanoseconds(span.ended_at), _nanoseconds(span.received_at)),
        instrumentation_scope=_SCOPE,
    )


def _nanoseconds(at: float) -> int:
    return int(at * 1e9)
