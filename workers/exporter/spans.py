"""Hands the broker's traces on to an OpenTelemetry collector, where `exporter.otlp_endpoint` names one.

The broker's own memory of ended requests is the buffer: what a collector did not take is read again, and what the broker
has forgotten by then is counted. So a collector that is away costs nobody memory, and the bus a request now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from bus.reminder import Reminder
from bus.settings import Settings
from bus.worker import Worker
from schemas import metrics
from schemas.bodies.telling import Span, Spans, TraceRead
from schemas.errors import BusError

if TYPE_CHECKING:
    from workers.exporter.otlp import Collector

log = logging.getLogger("olympus.exporter")

# Seconds between two readings.
_ROUND_S: Final = 2.0

# Requests read at a time, and readings in one round at most: 2,500 requests a second are followed, which costs the broker
# under 1 % of a core. Of a busier bus the rest is counted as missed.
_PAGE: Final = 1_000
_PAGES: Final = 5

# Seconds until a batch that was not taken is sent again, doubled each time up to the second.
_RETRY_S: Final = 2.0
_RETRY_MAX_S: Final = 60.0

# A batch is given up after so many attempts, some seven minutes: a collector may refuse one for what is in it.
_ATTEMPTS: Final = 10

# Traces with an error that are remembered, so that what follows of them is sent as well.
_FAILED_MAX: Final = 10_000

# What reads the traces would otherwise be traced for ever.
_OWN: Final = "bus.trace.read"

_NO_ID: Final = "0" * 16


class Share:
    """Which requests are sent: a share of the traces, each whole, and those with an error from there on."""

    def __init__(self, share: float) -> None:
        # As OpenTelemetry's TraceIdRatioBased sampler has it, so that others who sample by it choose the same traces.
        self._bound = round(share * 2**64)
        self._failed: dict[str, None] = {}

    def of(self, spans: Sequence[Span]) -> list[Span]:
        """Those of `spans`, which ended in this order."""
        for span in spans:
            if span.outcome != "ok":
                self._failed[span.trace] = None
        while len(self._failed) > _FAILED_MAX:
            del self._failed[next(iter(self._failed))]
        return [span for span in spans if self._has(span)]

    def _has(self, span: Span) -> bool:
        # An id of zeros is none (W3C Trace Context, 3.2.2.3).
        if span.subject == _OWN or span.id[:16] == _NO_ID or not span.trace.strip("0"):
            return False
        return span.trace in self._failed or int(span.trace[16:], 16) < self._bound


class SpanExport:
    """Begins with what ends after `start`. `trouble`: why nothing is taken at the moment; empty while all is well."""

    def __init__(self, settings: Settings, worker: Worker) -> None:
        self._endpoint = settings.exporter.otlp_endpoint
        self._share = Share(settings.exporter.otlp_share)
        self._client = worker.client
        self._count = worker.figures.counter(metrics.SPANS_EXPORTED)
        self._collector: Collector | None = None
        self._task: asyncio.Task[None] | None = None
        self._reminder = Reminder()
        self._boot = ""
        self._after = 0
        self._attempts = 0
        self.trouble = ""

    async def start(self) -> None:
        """Nothing where no collector is configured; a warning where the packages are missing."""
        if not self._endpoint:
            return
        for outcome in ("ok", "failed", "missed"):
            self._count.add(outcome, by=0)
        try:
            from workers.exporter.otlp import Collector
        except ModuleNotFoundError as error:
            self.trouble = f"the package {error.name} is not installed: pip install 'olympus-bus[otel]'"
            log.warning(
                "traces are not exported",
                extra={"action": "exporter.otlp", "endpoint": self._endpoint, "reason": self.trouble},
            )
            return
        self._collector = Collector(self._endpoint)
        self._task = asyncio.get_running_loop().create_task(self._run_forever(self._collector), name="span export")

    async def stop(self) -> None:
        """End at once; what was not sent is not sent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._collector is not None:
            self._collector.close()

    async def _run_forever(self, collector: Collector) -> None:
        while True:
            wait_s = _ROUND_S
            try:
                if not await self._round(collector):
                    wait_s = min(_RETRY_S * 2**self._attempts, _RETRY_MAX_S)
            except BusError as error:
                # The broker is away, or does not let us: that is told elsewhere, and what ended meanwhile is read later.
                log.debug("traces not read", extra={"action": "exporter.otlp", "reason": error.message})
            await asyncio.sleep(wait_s)

    async def _round(self, collector: Collector) -> bool:
        """Read and send what has ended since; False when the collector did not take it."""
        if not self._boot:
            newest = await self._read(TraceRead(limit=1))
            self._boot, self._after = newest.boot, newest.last_number
        for _ in range(_PAGES):
            page = await self._read(TraceRead(after=self._after, limit=_PAGE))
            if page.boot != self._boot:
                self._boot, self._after, self._attempts = page.boot, 0, 0
                continue
            first = page.spans[0].number if page.spans else self._after + 1
            if not await self._sent(collector, self._share.of(page.spans)):
                return False
            self._count.add("missed", by=first - self._after - 1)
            self._after = page.spans[-1].number if page.spans else self._after
            if len(page.spans) < _PAGE:
                break
        return True

    async def _read(self, request: TraceRead) -> Spans:
        spans: Spans = await self._client.request(_OWN, request)
        return spans

    async def _sent(self, collector: Collector, spans: Sequence[Span]) -> bool:
        """False when they are to be sent again."""
        if not spans:
            return True
        if await _in_thread(lambda: collector.send(spans)):
            self._count.add("ok", by=len(spans))
            if self._reminder.was_said:
                log.info("traces are exported again", extra={"action": "exporter.otlp", "endpoint": self._endpoint})
            self._reminder.clear()
            self._attempts, self.trouble = 0, ""
            return True
        self._attempts += 1
        self.trouble = f"the collector at {self._endpoint} takes no traces"
        if self._reminder.is_due(self.trouble, time.monotonic()):
            log.warning("traces are not exported", extra={"action": "exporter.otlp", "reason": self.trouble})
        if self._attempts < _ATTEMPTS:
            return False
        self._count.add("failed", by=len(spans))
        self._attempts = 0
        return True


async def _in_thread(work: Callable[[], bool]) -> bool:
    """As `asyncio.to_thread`, in a thread that nobody waits for at the end: a collector may hang."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bool] = loop.create_future()

    def run() -> None:
        try:
            result = work()
        except Exception as error:
            # Whatever the library raises, it was not sent.
            log.debug("span export failed", exc_info=error, extra={"action": "exporter.otlp"})
            result = False
        # The loop may have ended meanwhile.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, done, result)

    threading.Thread(target=run, name="span export", daemon=True).start()
    return await done


def _settle(done: asyncio.Future[bool], result: bool) -> None:
    if not done.done():
        done.set_result(result)
