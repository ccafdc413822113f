"""The broker's own operations, `bus.*` and `deadletter.*`, served by an ordinary worker inside its process."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from typing import Any

import msgspec

from broker import loopback, traces
from broker.deadletters import DeadLetters, is_secret
from broker.eventlog import EventLog
from broker.exchange import Exchange
from broker.figures import broker_figures
from bus import traceparent
from bus.permissions import Action
from bus.version import VERSION
from bus.worker import Call, Handler, Worker
from schemas import subjects
from schemas.bodies import control, telling
from schemas.errors import Forbidden, Internal, NotFound, Unprocessable, Unsupported
from schemas.values import decode_any

# How many of these requests are answered at once; reading the log waits for the disk, the others do not.
_CAPACITY = 64


class Control:
    """Answers about one exchange."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.worker = Worker(
            "bus",
            exchange.settings,
            capacity=_CAPACITY,
            instance=f"broker-{exchange.boot}",
            dial=loopback.dialer(exchange, "broker"),
        )
        handlers: dict[str, Handler] = {
            "bus.ping": self._ping,
            "bus.services": self._services,
            "bus.workers": self._workers,
            "bus.stats": self._stats,
            "bus.events.read": self._events_read,
            "bus.trace.read": self._trace_read,
            "deadletter.list": self._dead_letters,
            "deadletter.show": self._dead_letter,
            "deadletter.redrive": self._redrive,
            "deadletter.purge": self._purge,
        }
        for subject, handler in handlers.items():
            self.worker.handle(subject, handler)
        self.worker.figures.tell(lambda: broker_figures(exchange))

    async def _ping(self, request: control.Ping, call: Call) -> control.Pong:
        exchange = self._exchange
        uptime_s = exchange.clock() - exchange.started_at
        return control.Pong(
            payload=request.payload, boot=exchange.boot, version=VERSION, uptime_s=uptime_s, at=exchange.wall()
        )

    async def _services(self, request: control.BusServices, call: Call) -> control.ServiceList:
        return control.ServiceList(services=self._exchange.core.services(self._exchange.clock()))

    async def _workers(self, request: control.BusWorkers, call: Call) -> control.WorkerList:
        workers = self._exchange.core.workers(self._exchange.clock())
        return control.WorkerList(workers=[w for w in workers if request.service in (None, w.service)])

    async def _stats(self, request: control.BusStats, call: Call) -> control.BrokerStats:
        return self._exchange.stats()

    async def _events_read(self, request: control.EventsRead, call: Call) -> control.EventsPage:
        subjects.validate_pattern(request.subject)
        self._check(call, "subscribe", request.subject)
        event_log = self._log()
        batches = event_log.read(request)
        count = 0
        last: control.LoggedEvent | None = None
        while (events := await asyncio.to_thread(_next, batches)) is not None:
            count += len(events)
            last = events[-1]
            await call.partial(control.EventBatch(events=events))
        has_more = count == request.limit and last is not None
        return control.EventsPage(
            count=count,
            oldest_seq=event_log.oldest_seq,
            last_seq=event_log.last_seq,
            next_seq=last.seq + 1 if has_more and last is not None else None,
        )

    async def _trace_read(self, request: telling.TraceRead, call: Call) -> telling.Spans:
        exchange = self._exchange
        return await traces.read(
            exchange.core.ended, request, boot=exchange.boot, epoch_offset=exchange.wall() - exchange.clock()
        )

    async def _dead_letters(self, request: control.DeadLetterList, call: Call) -> control.DeadLetterPage:
        subjects.validate_pattern(request.subject)
        self._check(call, "request", request.subject)
        store = await self._store()
        letters, total = await asyncio.to_thread(store.newest, request.subject, request.limit, request.before_at)
        return control.DeadLetterPage(dead_letters=letters, total=total)

    async def _dead_letter(self, request: control.DeadLetterShow, call: Call) -> control.DeadLetterWhole:
        stored = await asyncio.to_thread((await self._store()).get, request.id)
        if stored is None:
            raise NotFound(f"no dead letter has the id {request.id!r}", field="id")
        self._check(call, "request", stored.letter.subject)
        return control.DeadLetterWhole(
            dead_letter=stored.letter,
            headers=stored.headers,
            body=None if is_secret(stored.letter.subject) else decode_any(stored.body),
        )

    async def _redrive(self, request: control.DeadLetterRedrive, call: Call) -> control.DeadLetterRedriven:
        store = await self._store()
        stored = await asyncio.to_thread(store.get, request.id)
        if stored is None:
            raise NotFound(f"no dead letter has the id {request.id!r}", field="id")
        self._check(call, "request", stored.letter.subject)
        if is_secret(stored.letter.subject):
            raise Unprocessable(f"{stored.letter.subject} held a password or a token, which was not kept: ask anew")
        headers = {name: value for name, value in stored.headers.items() if name in ("traceparent", "tracestate")}
        if traceparent.parse(headers.get("traceparent")) is None:
            # It stays in the trace that it began, and says what sent it again.
            headers["traceparent"] = traceparent.written(stored.letter.id, call.id[:8].hex())
        # Sent again with the rights of whoever does so: those of the first sender were not kept.
        if "token" in call.headers:
            headers["token"] = call.headers["token"]
        reply = await self.worker.client.request(
            stored.letter.subject,
            _body(stored),
            timeout_s=request.timeout_s,
            headers=headers,
            raw=True,
            id=bytes.fromhex(stored.letter.id),
        )
        await asyncio.to_thread(store.mark_redriven, stored.letter)
        return control.DeadLetterRedriven(id=request.id, reply=reply)

    async def _purge(self, request: control.DeadLetterPurge, call: Call) -> control.DeadLetterPurged:
        subjects.validate_pattern(request.subject)
        self._check(call, "request", request.subject)
        store = await self._store()
        try:
            purged = await asyncio.to_thread(store.purge, request.subject, request.id, request.older_than_s)
        except sqlite3.Error as error:
            raise Internal(f"dead letters cannot be deleted: {error}") from error
        return control.DeadLetterPurged(purged=purged)

    def _check(self, call: Call, action: Action, pattern: str) -> None:
        """Raise Forbidden where the caller's key may not do itself what it asks the broker to do or show."""
        name = call.headers.get("via")
        if name is None:
            return
        rights = self._exchange.rights_named(str(name))
        if rights is None:
            raise Forbidden(f"the key of {name} has no connection any more", identity=name)
        if not rights.may_all(action, pattern):
            raise rights.refusal(action, pattern)

    def _log(self) -> EventLog:
        if self._exchange.event_log is None:
            raise Unsupported("this bus keeps no event log")
        return self._exchange.event_log

    async def _store(self) -> DeadLetters:
        if self._exchange.dead_letters is None:
            raise Unsupported("this bus keeps no dead letters")
        await self._exchange.settle()
        return self._exchange.dead_letters


def _next(batches: Iterator[list[control.LoggedEvent]]) -> list[control.LoggedEvent] | None:
    return next(batches, None)


def _body(stored: Any) -> Any:
    decode = msgspec.json.decode if stored.encoding == "json" else msgspec.msgpack.decode
    return decode(stored.body)
