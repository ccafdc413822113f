"""Asks a running system over the bus, over HTTP and over its plain ports, and writes down what was said."""

from __future__ import annotations

import http.client
import json
import secrets
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from bus.settings import Settings
from bus.subscription import ReceivedEvent
from bus.sync import SyncClient, SyncSubscription
from bus.tokens import LocalToken, token_source
from schemas.errors import BusError
from verify_parts.checklist import Skipped, Wrong
from verify_parts.plain import Kind, NoAnswer, PlainSocket

# Characters of a request, of a reply and of a note that evidence shows.
_SENT: Final = 120
_CAME: Final = 200
_NOTED: Final = 500

# Seconds between two looks for what is to come.
_LOOK_AGAIN_S: Final = 0.05

_T = TypeVar("_T")

_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_EVERYWHERE: Final = frozenset({"0.0.0.0", "::", ""})


class Port(NamedTuple):
    """A bound port of a gateway. host: the address it is reached at from here, "" for none."""

    owner: str
    purpose: str
    protocol: str
    host: str
    port: int


class Answer(NamedTuple):
    """An HTTP answer. body: its JSON where it is JSON, else its text."""

    status: int
    media_type: str
    body: Any


class Probe:
    """What checks ask with. ns: a namespace of this run alone. timeout_s: of each exchange, seconds."""

    def __init__(self, settings: Settings, client: SyncClient, *, timeout_s: float) -> None:
        self.settings = settings
        self.client = client
        self.timeout_s = timeout_s
        self.ns = f"verify.{secrets.token_hex(4)}"
        self.evidence: list[str] = []
        self._after: list[Callable[[], object]] = []
        self._at_end: list[Callable[[], object]] = []

    # Evidence and cleaning up

    def note(self, text: str) -> None:
        """Say something about the line that no exchange says."""
        self.evidence.append(_short(text, _NOTED))

    def expect(self, is_so: object, what: str) -> None:
        """Raises Wrong unless it is so."""
        if not is_so:
            raise Wrong(what)

    def afterwards(self, work: Callable[[], object]) -> None:
        """Do this when the line is done, whatever came of it; the last one first."""
        self._after.append(work)

    def at_the_end(self, work: Callable[[], object]) -> None:
        """Do this when all lines are done."""
        self._at_end.append(work)

    def clean_up(self) -> list[str]:
        """Do what was put off until the line is done; what could not be done. It is no evidence."""
        shown = self.evidence[:]
        left = _done(self._after)
        self.evidence[:] = shown
        return left

    def close(self) -> list[str]:
        """Do what was put off until the end; what could not be done."""
        return _done(self._at_end)

    def until(self, look: Callable[[], _T | None], what: str, *, within_s: float | None = None) -> _T:
        """What `look` finds, asked again and again; only the last time is evidence. Raises Wrong."""
        ends_at = time.monotonic() + (within_s or self.timeout_s)
        count = len(self.evidence)
        while (found := look()) is None:
            if time.monotonic() > ends_at:
                raise Wrong(what)
            time.sleep(_LOOK_AGAIN_S)
            del self.evidence[count:]
        return found

    # The bus

    def ask(self, subject: str, body: dict[str, Any] | None = None, *, timeout_s: float | None = None) -> Any:
        """The reply of an operation as plain values. Raises BusError."""
        with self._timed(f"{subject} {_short(body or {}, _SENT)}") as done:
            try:
                reply = self.client.request(subject, body or {}, timeout_s=timeout_s or self.timeout_s, raw=True)
            except BusError as error:
                done(error.code)
                raise
            done(_short(reply, _CAME))
        return reply

    def refused(self, subject: str, body: dict[str, Any], code: str) -> None:
        """Raises Wrong unless the operation answers this error."""
        try:
            self.ask(subject, body)
        except BusError as error:
            self.expect(error.code == code, f"{subject} was to be refused with {code}, not {error.code}")
            return
        raise Wrong(f"{subject} was to be refused with {code}, and was answered")

    # HTTP

    def http(
        self, method: str, port: Port, path: str, body: Any = None, *, timeout_s: float | None = None, token: str = ""
    ) -> Answer:
        """An HTTP answer. Raises NoAnswer."""
        within_s = timeout_s or self.timeout_s
        sent = "" if body is None else f" {_short(body, _SENT)}"
        with self._timed(f"{method} {port.host}:{port.port}{path}{sent}") as done:
            status, media_type, text = _fetched(method, port, path, body, token or self.token, within_s)
            read = _read(media_type, text)
            done(f"{status} {_short(read, _CAME)}")
        return Answer(status, media_type, read)

    @cached_property
    def token(self) -> str:
        """What HTTP requests are signed with; "" where nobody has to sign in."""
        source = token_source(self.settings)
        return source() if source is not None else ""

    @cached_property
    def own_token(self) -> str:
        """The secret of this home, which may do everything. Raises Skipped where it cannot be read."""
        token = self.settings.bus.token or LocalToken(self.settings).read()
        if not token:
            raise Skipped(f"there is no token of an admin: neither bus.token nor the secret of {self.settings.home}")
        return token

    # Plain sockets

    @contextmanager
    def plain(self, kind: Kind, host: str, port: int) -> Any:
        """A ZeroMQ socket that knows nothing of Olympus."""
        if port in self._bus_ports and self.settings.bus.server_key:
            raise Skipped("the bus is encrypted here (bus.server_key); a plain socket cannot join")
        with PlainSocket(kind, host, port, timeout_s=self.timeout_s) as peer:
            yield peer

    def said(self, peer: PlainSocket, frames: list[bytes], shown: str = "") -> list[bytes]:
        """The reply to a request on a plain socket."""
        with self._timed(f"REQ {shown or _frames(frames)}") as done:
            reply = peer.ask(frames)
            done(_frames(reply))
        return reply

    def legacy(self, port: Port, request: Any) -> Any:
        """The decoded reply of a replaced agent's port."""
        with PlainSocket("REQ", port.host, port.port, timeout_s=self.timeout_s) as peer:
            frames = self.said(peer, [json.dumps(request).encode()])
        self.expect(len(frames) == 1, f"one frame was expected, {len(frames)} came")
        return json.loads(frames[0])

    @cached_property
    def _bus_ports(self) -> frozenset[int]:
        bus = self.settings.bus
        return frozenset({bus.request_port, bus.publish_port, bus.subscribe_port, bus.sequenced_port})

    # Ports

    @cached_property
    def ports(self) -> list[Port]:
        """What the gateways have bound. Raises BusError."""
        found: list[Port] = []
        workers = self.client.request("bus.workers", {"service": "gateway"}, timeout_s=self.timeout_s, raw=True)
        for worker in workers["workers"]:
            subject = f"gateway.ports@{worker['instance']}"
            for info in self.client.request(subject, {}, timeout_s=self.timeout_s, raw=True)["ports"]:
                if info["state"] == "bound":
                    host = reached_at(info["host"], worker["host"])
                    found.append(Port(info["owner"], info["purpose"], info["protocol"], host, info["port"]))
        return found

    def port(self, owner: str, purpose: str, protocol: str) -> Port:
        """A bound port. Raises Skipped where there is none that can be reached."""
        found = [one for one in self.ports if (one.owner, one.purpose, one.protocol) == (owner, purpose, protocol)]
        if not found:
            raise Skipped(f"no gateway has bound {owner} {purpose} ({protocol}); olympus ports --all says why")
        here = next((one for one in found if one.host), None)
        if here is None:
            raise Skipped(f"{owner} {purpose} is bound to the loopback address of another machine")
        return here

    def owners(self, purposes: Iterable[str], protocol: str) -> list[tuple[str, str]]:
        """Owner and purpose of the bound ports of some purposes, each once."""
        wanted = set(purposes)
        found = ((one.owner, one.purpose) for one in self.ports if one.protocol == protocol and one.purpose in wanted)
        return list(dict.fromkeys(found))

    @contextmanager
    def _timed(self, sent: str) -> Any:
        began_at = time.monotonic()
        came: list[str] = []
        try:
            yield came.append
        except NoAnswer as error:
            came.append(str(error))
            raise
        finally:
            took_ms = (time.monotonic() - began_at) * 1e3
            self.evidence.append(f"{sent} -> {came[0] if came else 'nothing'} ({took_ms:.1f} ms)")


def first(events: SyncSubscription, what: str) -> ReceivedEvent:
    """The first event that is heard. Raises Wrong with `what` where none is in time."""
    for event in events:
        return event
    raise Wrong(what)


def told(event: ReceivedEvent) -> str:
    """An event as evidence shows it."""
    return f"number {event.seq} {event.subject} {_short(event.body, _CAME)}"


def reached_at(host: str, machine: str) -> str:
    """The address from here of what a machine has bound to `host`; "" where there is none."""
    is_here = machine == socket.gethostname()
    if host in _EVERYWHERE:
        return "127.0.0.1" if is_here else machine
    return "" if host in _LOOPBACK and not is_here else host


def _fetched(method: str, port: Port, path: str, body: Any, token: str, within_s: float) -> tuple[int, str, bytes]:
    """Status, media type and body, all of it within the time. Raises NoAnswer."""
    ends_at = time.monotonic() + within_s
    headers = {"Accept": "*/*", **({"Authorization": f"Bearer {token}"} if token else {})}
    payload = None
    if body is not None:
        payload = json.dumps(body).encode()
        headers["Content-Type"] = "application/json"
    connection = http.client.HTTPConnection(port.host, port.port, timeout=within_s)
    try:
        connection.request(method, path, payload, headers)
        response = connection.getresponse()
        pieces: list[bytes] = []
        while piece := response.read1(65_536):
            pieces.append(piece)
            left_s = ends_at - time.monotonic()
            if left_s <= 0:
                raise NoAnswer(f"{port.host}:{port.port}{path}: not all of the answer in {within_s:g} s")
            if connection.sock is not None:
                connection.sock.settimeout(left_s)
        media_type = response.headers.get_content_type()
        return response.status, media_type, b"".join(pieces)
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswer(f"{port.host}:{port.port}{path}: {error or type(error).__name__}") from error
    finally:
        connection.close()


def _read(media_type: str, text: bytes) -> Any:
    if media_type.endswith("json"):
        try:
            return json.loads(text)
        except ValueError:
            raise Wrong(f"{media_type} that is no JSON: {text[:80]!r}") from None
    return text.decode("utf-8", "replace")


def _done(work: list[Callable[[], object]]) -> list[str]:
    left: list[str] = []
    while work:
        try:
            work.pop()()
        except (BusError, NoAnswer, Wrong, OSError) as error:
            left.append(str(error))
    return left


def _short(value: Any, limit: int) -> str:
    whole = value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=repr).decode()
    # What a model or an old agent says may hold anything, and a terminal obeys some of it.
    text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in whole[: limit + 1])
    return text if len(whole) <= limit else f"{text[:limit]}... ({len(whole):,} characters)"


def _frames(frames: list[bytes]) -> str:
    """Frames as text where they are text."""
    shown = ", ".join(_short(frame.decode("utf-8", "backslashreplace"), _CAME) for frame in frames)
    return f"[{shown}]"
