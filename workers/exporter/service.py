"""The exporter as a service: follows what processes tell, and serves it over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import time
from http import HTTPStatus
from typing import Final, Literal

import msgspec

from bus import exposition
from bus.exposition import Form
from bus.reminder import Reminder
from bus.serving import serve_until_told
from bus.settings import Settings
from bus.subscription import ReceivedEvent
from bus.version import VERSION
from bus.worker import Call, Worker
from schemas import metrics
from schemas.bodies.control import WorkerEvent
from schemas.bodies.telling import ExporterStatus, ExporterStatusReply
from schemas.errors import BusError
from workers.exporter.collection import Collection
from workers.exporter.http import Answer, PageServer, Request
from workers.exporter.spans import SpanExport

log = logging.getLogger("olympus.exporter")

# Seconds an answer is given again: twenty scrapers at once share one.
_SHARED_S: Final = 0.25

# Seconds between two rounds over what has fallen silent.
_ROUND_S: Final = 0.5

# Seconds between two attempts to bind a port that another program has, or to subscribe.
_RETRY_S: Final = 5.0

# Level of gzip: 1 takes 3 to 7 ms for the 1.3 MB of a house and leaves a twentieth; 6 takes four times as long.
_GZIP_LEVEL: Final = 1


class Dependency(msgspec.Struct, frozen=True, kw_only=True):
    """One thing the exporter needs; reason is empty where it is ok."""

    status: Literal["ok", "degraded", "failing"]
    reason: str = ""


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """As the REST ports answer (docs/rest.md)."""

    status: Literal["ok", "degraded", "failing"]
    service: str
    dependencies: dict[str, Dependency]
    version: str = VERSION
    uptime_s: float
    at: float


class ExporterService:
    """The worker `exporter`, the figures that it holds and the port that serves them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.exporter
        self._began_at = time.monotonic()
        self.collection = Collection(settings.exporter.max_series)
        self._server = PageServer({"/metrics": self._metrics, "/health": self._healthy})
        self._port = 0
        self._unbound = ""
        self._tasks: list[asyncio.Task[None]] = []
        self._reminder = Reminder()
        # The last answer of each kind: when it was made, and its bytes.
        self._made: dict[tuple[Form, bool], tuple[float, bytes]] = {}
        self.worker = Worker("exporter", settings)
        self.worker.handle("exporter.status", self._status)
        self.worker.degraded_by(self._missing)
        self._spans = SpanExport(settings, self.worker)
        self.worker.figures.tell(lambda: self.collection.told(time.monotonic()))
        self._scrapes = self.worker.figures.histogram(metrics.EXPORTER_SCRAPES)

    @property
    def address(self) -> str:
        """Where it is served; empty while the port is another program's."""
        host = self._settings.host
        return f"{f'[{host}]' if ':' in host else host}:{self._port}" if self._port else ""

    async def start(self) -> None:
        """Serve at once what there is, then join the bus. A port in use is tried again, for nothing else needs it."""
        self._add_own()
        loop = asyncio.get_running_loop()
        if not await self._bind():
            self._tasks.append(loop.create_task(self._bind_later(), name="exporter port"))
        self._tasks.append(loop.create_task(self._follow(), name="exporter events"))
        self._tasks.append(loop.create_task(self._forget(), name="exporter rounds"))
        await self._spans.start()
        await self.worker.start()

    async def stop(self) -> None:
        """Close the port, then leave the bus."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._spans.stop()
        await self._server.close()
        await self.worker.stop()

    def _missing(self) -> dict[str, str]:
        found = {"port": self._unbound, "collector": self._spans.trouble}
        return {name: reason for name, reason in found.items() if reason}

    # The port

    async def _bind(self) -> bool:
        exporter = self._settings
        try:
            self._port = await self._server.listen(exporter.host, exporter.port)
        except OSError as error:
            reason = (
                f"{exporter.host}:{exporter.port} cannot be bound ({error.strerror or error});"
                " exporter.port=PORT gives another"
            )
            if reason != self._unbound:
                log.warning("port taken", extra={"action": "exporter.port", "reason": reason})
            self._unbound = reason
            return False
        self._unbound = ""
        log.info("serving figures", extra={"action": "exporter.bound", "address": f"http://{self.address}/metrics"})
        return True

    async def _bind_later(self) -> None:
        is_bound = False
        while not is_bound:
            await asyncio.sleep(_RETRY_S)
            is_bound = await self._bind()

    # The bus

    async def _follow(self) -> None:
        client = self.worker.client
        while True:
            try:
                async with client.subscribe("metrics.>", "bus.worker.left", "bus.worker.lost") as events:
                    async for event in events:
                        self._on_event(event)
            except (BusError, ConnectionError):
                await asyncio.sleep(_RETRY_S)

    def _on_event(self, event: ReceivedEvent) -> None:
        if event.subject.startswith("metrics."):
            self._on_figures(event)
            return
        try:
            gone = msgspec.convert(event.body, type=WorkerEvent)
        except msgspec.ValidationError:
            return
        if (gone.service, gone.instance) == (self.worker.service, self.worker.instance):
            return
        end = self.collection.lost if event.subject.endswith(".lost") else self.collection.left
        end(gone.service, gone.instance)

    def _on_figures(self, event: ReceivedEvent) -> None:
        service = event.subject.removeprefix("metrics.")
        if service == self.worker.service and event.source.endswith(f"/{self.worker.instance}"):
            # What it tells of itself is here already, and newer.
            return
        refused = self.collection.take(service, event.raw, time.monotonic())
        if not refused:
            return
        what = ", ".join(f"{count} {why}" for why, count in sorted(refused.items()))
        if self._reminder.is_due(f"{event.source}: {', '.join(sorted(refused))}", time.monotonic()):
            log.warning(
                "figures refused", extra={"action": "exporter.refused", "source": event.source[:200], "refused": what}
            )

    async def _forget(self) -> None:
        while True:
            await asyncio.sleep(_ROUND_S)
            self.collection.forget_silent(time.monotonic())

    async def _status(self, request: ExporterStatus, call: Call) -> ExporterStatusReply:
        return ExporterStatusReply(
            address=self.address,
            processes=[f"{service}/{instance}" for service, instance in sorted(self.collection.processes)],
            series=self.collection.series,
            refused={str(why): count for why, count in self.collection.refused.items()},
        )

    # Pages

    def _add_own(self) -> None:
        self.collection.put(self.worker.told_figures(), time.monotonic())

    async def _metrics(self, request: Request) -> Answer:
        form = exposition.form_of(request.headers.get("accept", ""))
        is_packed = _takes_gzip(request.headers.get("accept-encoding", ""))
        headers = (("vary", "accept, accept-encoding"), *((("content-encoding", "gzip"),) if is_packed else ()))
        return Answer(self._text(form, is_packed), form.media_type, headers=headers)

    def _text(self, form: Form, is_packed: bool) -> bytes:
        now = time.monotonic()
        known = self._made.get((form, is_packed))
        if known is not None and now - known[0] < _SHARED_S:
            return known[1]
        began_at = time.perf_counter()
        self.collection.forget_silent(now)
        self._add_own()
        text = self.collection.page(form)
        if is_packed:
            text = gzip.compress(text, _GZIP_LEVEL, mtime=0)
        self._scrapes.observe(time.perf_counter() - began_at)
        self._made[(form, is_packed)] = (now, text)
        return text

    async def _healthy(self, request: Request) -> Answer:
        found = {"broker": Dependency(status="ok")}
        if not self.worker.is_welcome:
            found["broker"] = Dependency(status="failing", reason="not connected; only its own figures are served")
        for name, reason in self.worker.degraded().items():
            found[name] = Dependency(status="degraded", reason=reason)
        states = {each.status for each in found.values()}
        report = Health(
            status="failing" if "failing" in states else "degraded" if "degraded" in states else "ok",
            service=self.worker.service,
            dependencies=found,
            uptime_s=round(time.monotonic() - self._began_at, 3),
            at=time.time(),
        )
        status = HTTPStatus.SERVICE_UNAVAILABLE if report.status == "failing" else HTTPStatus.OK
        return Answer(msgspec.json.encode(report), "application/json", status)


def _takes_gzip(accepted: str) -> bool:
    """True for an Accept-Encoding header that allows gzip (RFC 9110, section 12.5.3)."""
    for choice in accepted.lower().split(","):
        name, _, weight = choice.partition(";")
        if name.strip() in ("gzip", "x-gzip"):
            _, _, share = weight.partition("=")
            with contextlib.suppress(ValueError):
                return float(share or 1) > 0
    return False


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    await serve_until_told(ExporterService(settings), log)
