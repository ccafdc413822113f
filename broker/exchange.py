"""Carries out what the core decides, on whatever peers are attached: sockets in `server.py`, in-process links in tests."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import sqlite3
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

from broker import plain
from broker.core import (
    GRACE_S,
    Answer,
    Bury,
    ByeReceived,
    CancelReceived,
    Core,
    CreditReceived,
    Deliver,
    Disconnect,
    Effect,
    Emit,
    Event,
    Fail,
    HeartbeatReceived,
    Origin,
    PeerLost,
    ReadyReceived,
    Tick,
)
from broker.deadletters import DeadLetters
from broker.eventlog import EventLog
from broker.events import EventHub, Meta, Missed, Subscriber
from broker.rights import Guard, Rights
from bus import zmtp
from bus.audit import Auditor
from bus.deadlines import SLOT_S
from bus.machine import rss_bytes
from bus.permissions import ACTIONS, Action
from bus.settings import Settings
from schemas import catalog, subjects
from schemas.bodies import control
from schemas.bodies.telling import AuditEvent
from schemas.envelope import MAGIC, REPLIES, Buffer, Headers, Kind, Message, decode, encode, id_of, with_headers
from schemas.errors import BadRequest, BusError, Forbidden, TooLarge
from schemas.limits import ID_BYTES, MAX_HEADER_BYTES

log = logging.getLogger("olympus.broker")

# A client that lets this many bytes of replies pile up reads too slowly to be kept.
_UNREAD_MAX_BYTES: Final = 512 * 1024 * 1024

# Subjects known to be well-formed, remembered because checking costs more than routing; bounded.
_VALID_MAX: Final = 10_000

_REQUEST: Final = Kind.REQUEST
# Effects carried out at a time, so that the first of many messages is on its way while the next are read.
_BATCH: Final = 8

_NO_ID: Final = bytes(ID_BYTES)

# How often bad messages are worth a log line, seconds; those in between are counted in the next.
_COMPLAIN_S: Final = 1.0

# Families that the broker itself serves: what they show and do depends on who asks.
_OWN_FAMILIES: Final = ("bus.", "deadletter.")

# Services whose names no key may take that may not serve anything of theirs.
_SERVICES: Final[dict[str, set[str]]] = {"bus": {"bus", "deadletter"}}
for _one in catalog.OPERATIONS.values():
    _SERVICES.setdefault(_one.service, set()).add(_one.family)


class AttachedPeer(Protocol):
    """What the exchange needs of a connection."""

    peer: str

    def __hash__(self) -> int:
        """Peers are told apart by identity."""

    @property
    def pending_bytes(self) -> int:
        """Bytes accepted and not yet taken by the other end."""

    def send(self, frames: list[Buffer]) -> None:
        """Queue one message."""

    def send_prepared(self, frames: list[Buffer], wire: bytes) -> None:
        """Queue one message that goes to many."""

    def close(self, reason: str) -> None:
        """Send what is queued, then close."""

    def abort(self, reason: str) -> None:
        """Close at once."""


_encode = msgspec.msgpack.Encoder().encode
_decode_ready = msgspec.msgpack.Decoder(control.Ready).decode
_decode_beat = msgspec.msgpack.Decoder(control.Heartbeat).decode
_decode_credit = msgspec.msgpack.Decoder(control.Credit).decode


class Exchange:
    """One broker without its sockets.

    The event log and the dead letters may be None: then nothing is durable. `clock` is monotonic, `wall` Unix epoch
    seconds.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        event_log: EventLog | None = None,
        dead_letters: DeadLetters | None = None,
        last_seq: int = 0,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self.boot = os.urandom(8).hex()
        self.core = Core(
            settings.broker,
            boot=self.boot,
            heartbeat_s=settings.bus.heartbeat_s,
            max_body_bytes=settings.bus.max_body_bytes,
            # With a history, this broker was here before, and so were its workers.
            starting_until=clock() + GRACE_S if last_seq else float("-inf"),
        )
        self.hub = EventHub(last_seq)
        self.event_log = event_log
        self.dead_letters = dead_letters
        self.clock = clock
        self.wall = wall
        self.started_at = clock()
        self.rejected = 0
        self._complain_at = float("-inf")
        self._uncomplained = 0
        self._forbidden_told_at = float("-inf")
        self.dropped = 0
        # Peers of the request and publish ports; the value is where replies to a native peer go.
        self.peers: dict[AttachedPeer, Origin] = {}
        # Peers of encrypted connections, on any port; those on this machine have none and may do everything.
        self.guards: dict[AttachedPeer, Guard] = {}
        # What the keys' permissions refused, by action.
        self.refused: dict[Action, int] = dict.fromkeys(ACTIONS, 0)
        self.auditor = Auditor("bus", self._publish_audit, clock=clock, wall=wall)
        self._valid: set[str] = set()
        self._is_logged: dict[str, bool] = {}
        self._letters: list[tuple[control.DeadLetter, Message]] = []
        self._burying: asyncio.Task[None] | None = None
        self._stats_due = clock() + settings.broker.stats_interval_s
        self._unread_due = clock() + 1.0
        self._carry_out: dict[type, Callable[[Any], None]] = {
            Answer: self._answer,
            Fail: self._fail,
            Emit: self._emit,
            Bury: self._bury,
            Disconnect: self._disconnect,
        }
        self.tick()

    # What peers do

    def attach(self, peer: AttachedPeer) -> None:
        """A peer of the request port is there."""
        guard = self.guards.get(peer)
        self.peers[peer] = Origin(peer, name=peer.peer, owner=guard.rights.name if guard else "")

    def guard(self, peer: AttachedPeer, guard: Guard) -> None:
        """Hold a peer to what its key may do; call it before the peer is attached or subscribes."""
        self.guards[peer] = guard

    def on_rights_changed(self) -> None:
        """Some key may do more or less than before: events go by that, and workers that may not serve any more go."""
        self.hub.forget_matches()
        self._note_tracing()
        for peer, guard in list(self.guards.items()):
            worker = self.core.registry.workers.get(peer)
            if worker is not None and (error := self._why_not_serve(guard.rights, worker.ready)) is not None:
                self._on_forbidden(guard, "serve", error)
                self._disconnect(Disconnect(peer, error.message))

    def detach(self, peer: AttachedPeer, reason: str) -> None:
        """A peer of any port is gone."""
        self.peers.pop(peer, None)
        self.guards.pop(peer, None)
        self.hub.remove(peer)
        self._apply(self.core.handle(PeerLost(peer, reason), self.clock()))
        self._note_tracing()

    def on_requests(self, peer: AttachedPeer, messages: list[list[Buffer]]) -> None:
        """Messages of the request port, native and plain, in order."""
        now = self.clock()
        effects: list[Effect] = []
        core = self.core
        guard = self.guards.get(peer) if self.guards else None
        for frames in messages:
            try:
                if frames[0][:2] == MAGIC:
                    message = decode(frames)
                    kind = message.kind
                    if kind is _REQUEST:
                        if message.subject not in self._valid:
                            self._check_subject(message.subject)
                        if guard is not None:
                            message = self._permitted(guard, message)
                        core.on_request(self.peers[peer], message, now, effects)
                    elif kind in REPLIES:
                        core.on_reply(peer, message, now, effects)
                    else:
                        core.handle(self._control_event(peer, message), now, effects)
                    if len(effects) >= _BATCH:
                        self._apply(effects)
                        effects.clear()
                    continue
            except Forbidden as error:
                peer.send(encode(Kind.ERROR, message.id or _NO_ID, body=error.body()))
                continue
            except BusError as error:
                self._reject(peer, error)
                peer.send(encode(Kind.ERROR, id_of(frames) or _NO_ID, body=error.body()))
                continue
            try:
                form, message = plain.parse(frames)
            except plain.PlainError as failure:
                self._reject(peer, failure.error)
                peer.send(plain.render_error(failure.form, failure.error))
                continue
            if guard is not None:
                try:
                    message = self._permitted(guard, message)
                except BusError as error:
                    peer.send(plain.render_error(form, error))
                    continue
            core.on_request(Origin(peer, form, peer.peer), message, now, effects)
        self._apply(effects)

    def on_oversize(self, peer: AttachedPeer, frames: list[Buffer], size_bytes: int) -> None:
        """A message over the limit was skipped on the way in; its sender is told as well as the rest of it allows."""
        error = self._too_large(size_bytes)
        if frames and plain.is_native(frames):
            self._reject(peer, error)
            peer.send(encode(Kind.ERROR, id_of(frames) or _NO_ID, body=error.body()))
            return
        self._reject(peer, error)
        is_delimited = bool(frames) and not len(frames[0])
        is_single = len(frames) == int(is_delimited)
        peer.send(plain.render_error(plain.Form(is_delimited, is_single, "json"), error))

    def on_oversize_event(self, peer: AttachedPeer, size_bytes: int) -> None:
        """An event over the limit was skipped; a publisher cannot be told, so that it is only counted and logged."""
        self._reject(peer, self._too_large(size_bytes))

    def _too_large(self, size_bytes: int) -> TooLarge:
        limit = self.settings.bus.max_body_bytes
        return TooLarge(
            f"the message has {size_bytes} bytes, the limit of a body is {limit}",
            size_bytes=size_bytes,
            limit_bytes=limit,
        )

    def on_published(self, peer: AttachedPeer, messages: list[list[Buffer]]) -> None:
        """Messages of the publish port: [subject, body] or [subject, body, headers]."""
        for frames in messages:
            try:
                self._take_event(peer, frames)
            except BusError as error:
                self._reject(peer, error)

    def on_subscriptions(self, peer: AttachedPeer, messages: list[list[Buffer]]) -> None:
        """(Un)subscriptions of the event ports."""
        guard = self.guards.get(peer)
        for frames in messages:
            if guard is not None and len(frames) == 1:
                self._note_hopeless(guard, bytes(frames[0][:1024]))
            if len(frames) != 1 or not self.hub.change(peer, bytes(frames[0][:1024])):
                self._reject(peer, BadRequest("a subscriber may only send prefixes or patterns of at most 255 bytes"))
        self._note_tracing()

    def tick(self) -> None:
        """Let time pass; call every `SLOT_S` seconds."""
        now = self.clock()
        self._apply(self.core.handle(Tick(self.wall() - now), now))
        if now >= self._unread_due:
            self._unread_due = now + 1.0
            for peer in [peer for peer in self.peers if peer.pending_bytes > _UNREAD_MAX_BYTES]:
                peer.abort(f"{peer.pending_bytes} bytes of replies were not read")
        if now >= self._stats_due:
            self._stats_due = now + self.settings.broker.stats_interval_s
            self.auditor.tell_due()
            self.publish("bus.stats", _encode(self.stats()), source="broker")

    async def tick_forever(self) -> None:
        """Tick until cancelled."""
        while True:
            await asyncio.sleep(SLOT_S)
            try:
                self.tick()
            except Exception as error:
                log.error("tick failed", exc_info=error, extra={"action": "broker.failed"})

    # Requests

    def _control_event(self, peer: AttachedPeer, message: Message) -> Event:
        kind = message.kind
        if kind is Kind.CANCEL:
            return CancelReceived(peer, message.id, self.peers[peer].owner)
        try:
            if kind is Kind.HEARTBEAT:
                return HeartbeatReceived(peer, self._beat(peer, message))
            if kind is Kind.READY:
                ready = _decode_ready(message.body)
                subjects.validate(f"{ready.service}@{ready.instance}")
                for subject in ready.subjects:
                    subjects.validate_pattern(subject)
                self._check_serving(peer, ready)
                return ReadyReceived(peer, ready)
            if kind is Kind.CREDIT:
                return CreditReceived(peer, _decode_credit(message.body).capacity)
        except msgspec.MsgspecError as error:
            raise BadRequest(f"{kind.name.lower()} does not decode: {error}") from error
        if kind is Kind.BYE:
            return ByeReceived(peer)
        raise BadRequest(f"a {kind.name.lower()} message is the broker's to send")

    def _beat(self, peer: AttachedPeer, message: Message) -> control.Heartbeat | None:
        """What a worker says of itself; None, and a line in the log, where it cannot be so.

        Even then it lives: what it works on must not be lost for a figure that is wrong.
        """
        try:
            return _decode_beat(message.body)
        except msgspec.MsgspecError as error:
            self._reject(peer, BadRequest(f"heartbeat does not decode: {error}"))
            return None

    def _check_subject(self, subject: str) -> None:
        if subject in self._valid:
            return
        subjects.validate(subject)
        if len(self._valid) >= _VALID_MAX:
            self._valid.clear()
        self._valid.add(subject)

    # What keys may do

    def _permitted(self, guard: Guard, message: Message) -> Message:
        """The request where its sender's key may make it, with the name of that key where somebody asks for it.

        Raises Forbidden, and TooLarge where the headers have no room for that.
        """
        rights, subject = guard.rights, message.subject
        if not rights.may("request", subject):
            error = rights.refusal("request", subject)
            self._on_forbidden(guard, "request", error)
            raise error
        operation = catalog.lookup(subject)
        is_asked_for = subject.startswith(_OWN_FAMILIES) or (operation is not None and bool(operation.audit))
        headers = message.headers or {}
        # Also where the sender named a key itself: a refusal in the audit log would bear that name.
        if not is_asked_for and "via" not in headers:
            return message
        headers = {**headers, "via": rights.name}
        if (size := len(_encode(headers))) > MAX_HEADER_BYTES:
            # The worker would drop it, and its credit with it.
            room = MAX_HEADER_BYTES - (size - len(_encode(message.headers)))
            raise TooLarge(f"headers leave no room for the name of the key; {room} bytes fit", field="headers")
        frames = with_headers(message, headers)
        return Message(
            *(message.id, subject, message.deadline_ms, headers, message.body, message.kind, frames, message.is_inline)
        )

    def _check_serving(self, peer: AttachedPeer, ready: control.Ready) -> None:
        """Raise Forbidden, and end the connection, where the peer's key may not serve that."""
        guard = self.guards.get(peer)
        error = None if guard is None else self._why_not_serve(guard.rights, ready)
        if guard is None or error is None:
            return
        self._on_forbidden(guard, "serve", error)
        # It tries again by itself, and is let in as soon as it may serve.
        asyncio.get_running_loop().call_soon(peer.close, error.message)
        raise error

    def _why_not_serve(self, rights: Rights, ready: control.Ready) -> Forbidden | None:
        for subject in ready.subjects:
            if not rights.may_all("serve", subject):
                return rights.refusal("serve", subject)
        families = _SERVICES.get(ready.service, ())
        if families and not any(rights.may_some("serve", f"{family}.>") for family in families):
            # Whoever asks which services there are must not be told of one that is none.
            return rights.refusal("serve", f"{ready.service}.>")
        return None

    def _note_hopeless(self, guard: Guard, message: bytes) -> None:
        """A subscription to what its peer may never hear is told here: nothing can be answered to a subscriber."""
        topic = message[1:].decode("utf-8", "replace")
        pattern = topic if subjects.is_pattern(topic) else f"{topic.rpartition('.')[0]}.>".removeprefix(".")
        if message[:1] == b"\1" and not guard.rights.may_some("subscribe", pattern):
            self._on_forbidden(guard, "subscribe", guard.rights.refusal("subscribe", pattern))

    def _on_forbidden(self, guard: Guard, action: Action, error: Forbidden) -> None:
        """Count a refusal, write it down, and say it, but not each one of a flood."""
        self.refused[action] += 1
        self.auditor.tell_damped(
            "refusal",
            actor=guard.rights.name,
            action=f"{action} {error.details['subject']}",
            outcome=error.code,
            reason=error.message,
            address=guard.address,
        )
        now = self.clock()
        if now >= self._forbidden_told_at:
            self._forbidden_told_at = now + _COMPLAIN_S
            fields = {"action": "broker.forbidden", "identity": guard.rights.name, "address": guard.address}
            log.warning("forbidden by its key's permissions", extra={**fields, "reason": error.message})

    def rights_named(self, name: str) -> Rights | None:
        """Those of a key that has a connection now."""
        return next((guard.rights for guard in self.guards.values() if guard.rights.name == name), None)

    def _publish_audit(self, subject: str, event: AuditEvent) -> None:
        self.publish(subject, _encode(event), source="broker")

    def _reject(self, peer: AttachedPeer, error: BusError) -> None:
        """Count a message that is not one, and say so, but not for every one of a flood."""
        self.rejected += 1
        now = self.clock()
        if now < self._complain_at:
            self._uncomplained += 1
            return
        fields = {"action": "broker.refused", "peer": peer.peer, "code": error.code, "error": error.message}
        log.warning("message refused", extra={**fields, "unsaid": self._uncomplained})
        self._complain_at = now + _COMPLAIN_S
        self._uncomplained = 0

    # Effects

    def _apply(self, effects: list[Any]) -> None:
        for effect in effects:
            kind = type(effect)
            if kind is Deliver:
                effect.peer.send(effect.frames)
            elif kind is Answer and effect.origin.form is None:
                effect.origin.peer.send(effect.message.frames)
            else:
                self._carry_out[kind](effect)

    def _answer(self, effect: Answer) -> None:
        peer: Any = effect.origin.peer
        peer.send(plain.render(effect.origin.form, effect.message))

    def _fail(self, effect: Fail) -> None:
        origin = effect.origin
        peer: Any = origin.peer
        if origin.form is None:
            peer.send(encode(Kind.ERROR, effect.id, body=effect.error.body()))
        else:
            peer.send(plain.render_error(origin.form, effect.error))

    def _emit(self, effect: Emit) -> None:
        if effect.subject.startswith("bus.worker."):
            body = effect.body
            what = effect.subject.rpartition(".")[2]
            log.info(
                f"worker {what}",
                extra={
                    "action": effect.subject,
                    "service": body.service,
                    "instance": body.instance,
                    "reason": body.reason,
                },
            )
        self.publish(effect.subject, _encode(effect.body), source="broker")

    def _disconnect(self, effect: Disconnect) -> None:
        peer: Any = effect.peer
        # An error of no request: whoever is sent away can say why.
        peer.send(encode(Kind.ERROR, _NO_ID, body=BadRequest(effect.reason).body()))
        peer.close(effect.reason)

    def _bury(self, effect: Bury) -> None:
        if self.dead_letters is None:
            return
        self._letters.append((effect.letter, effect.message))
        if self._burying is None or self._burying.done():
            self._burying = asyncio.get_running_loop().create_task(self._bury_all())

    async def _bury_all(self) -> None:
        assert self.dead_letters is not None
        while self._letters:
            letters, self._letters = self._letters, []
            try:
                await asyncio.to_thread(self.dead_letters.add, letters)
            except sqlite3.Error as error:
                log.error(
                    "dead letters not stored",
                    extra={"action": "broker.unburied", "count": len(letters), "error": str(error)},
                )

    async def settle(self) -> None:
        """Wait until every dead letter so far is stored."""
        if self._burying is not None:
            await self._burying

    # Events

    def _take_event(self, peer: AttachedPeer, frames: list[Buffer]) -> None:
        if len(frames) not in (2, 3):
            raise BadRequest(f"an event has 2 or 3 frames, subject, body and headers, not {len(frames)}")
        try:
            subject = bytes(frames[0][:1024]).decode()
        except UnicodeDecodeError as error:
            raise BadRequest(f"subject is not UTF-8: {error}", field="subject") from error
        self._check_subject(subject)
        headers: Headers = {}
        if len(frames) == 3:
            headers = plain.decode_headers(frames[2]) or {}
        claimed = headers.get("source")
        source = peer.peer if claimed is None else str(claimed)
        guard = self.guards.get(peer)
        if guard is not None:
            if not guard.rights.may("publish", subject):
                self._on_forbidden(guard, "publish", guard.rights.refusal("publish", subject))
                return
            if claimed is not None:
                source = f"{source}@{guard.rights.name}"
        self.publish(subject, frames[1], source=source, id=str(headers.get("id", "")))

    def publish(self, subject: str, body: Buffer, *, source: str, id: str = "") -> None:
        """Number an event, hand it to every subscriber that keeps up, and to the log where it is configured."""
        seq = self.hub.next_seq()
        at = self.wall()
        id = id or f"{self.boot}-{seq}"
        wanting, wanting_sequenced = self.hub.match(subject)
        if wanting:
            self._fan_out(wanting, [subject.encode(), body], seq)
        if wanting_sequenced:
            meta = Meta(seq, at, source, id)
            self._fan_out(wanting_sequenced, [subject.encode(), _encode(meta), body], seq, meta)
        if self.event_log is not None:
            self.event_log.reserve(seq)
            if self._must_log(subject):
                self.event_log.append(seq, at, subject, source, id, bytes(body))

    def _fan_out(self, subscribers: list[Subscriber], frames: list[Buffer], seq: int, meta: Meta | None = None) -> None:
        parts: list[Buffer] = []
        zmtp.encode_message(frames, parts)
        wire = b"".join(parts)
        most = self.settings.broker.subscriber_max_bytes
        for subscriber in subscribers:
            peer = subscriber.peer
            if peer.pending_bytes > most:
                subscriber.miss(seq)
                self.dropped += 1
                continue
            subscriber.delivered += 1
            if subscriber.missed_first and meta is not None:
                missed = Missed(subscriber.missed_first, subscriber.missed_last)
                subscriber.missed_first = 0
                told = msgspec.structs.replace(meta, missed=missed)
                peer.send([frames[0], _encode(told), frames[2]])
                continue
            peer.send_prepared(frames, wire)

    def _must_log(self, subject: str) -> bool:
        is_logged = self._is_logged.get(subject)
        if is_logged is None:
            event = catalog.event_for(subject)
            is_logged = (event is None or event.is_kept) and any(
                subjects.matches(pattern, subject) for pattern in self.settings.broker.log_subjects
            )
            if len(self._is_logged) >= _VALID_MAX:
                self._is_logged.clear()
            self._is_logged[subject] = is_logged
        return is_logged

    def _note_tracing(self) -> None:
        self.core.is_traced = self.hub.is_asked_for("bus.trace.")

    # Telling

    def stats(self) -> control.BrokerStats:
        """Counters and gauges now."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        counters = msgspec.structs.asdict(self.core.counters)
        event_log = self.event_log
        return control.BrokerStats(
            boot=self.boot,
            uptime_s=self.clock() - self.started_at,
            rejected_messages=self.rejected,
            events=self.hub.published,
            events_dropped=self.dropped,
            last_seq=self.hub.last_seq,
            in_flight=self.core.in_flight,
            queued=self.core.queued,
            queued_bytes=self.core.queued_bytes,
            peers=len(self.peers),
            workers=len(self.core.registry.workers),
            subscribers=[
                control.SubscriberStats(
                    peer=subscriber.peer.peer,
                    patterns=[*subscriber.patterns, *(p.decode("utf-8", "replace") for p in subscriber.prefixes)],
                    delivered=subscriber.delivered,
                    dropped=subscriber.dropped,
                    pending_bytes=subscriber.peer.pending_bytes,
                )
                for subscriber in self.hub.subscribers.values()
            ],
            rss_bytes=rss_bytes(),
            cpu_s=usage.ru_utime + usage.ru_stime,
            log_last_seq=event_log.last_seq if event_log else 0,
            log_bytes=event_log.size_bytes if event_log else 0,
            log_lost=event_log.lost if event_log else 0,
            log_failed=event_log.failure if event_log else None,
            **counters,
        )
