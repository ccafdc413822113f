"""A blocking ZeroMQ socket for one peer, as programs that know nothing of Olympus have them; needs no libzmq.

It sends what a stock REQ, PUB or SUB socket sends, and gives up after the time it was given.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Literal, Self

from bus import zmtp
from schemas.envelope import Buffer

Kind = Literal["REQ", "PUB", "SUB"]

# Bytes of one read.
_READ_BYTES: Final = 64 * 1024

# Replies to a check are small; what is larger than this is no reply to one.
_MAX_BYTES: Final = 64 * 1024 * 1024


class NoAnswer(Exception):
    """Nothing came in time, or the peer is not there or speaks something else; the message says which."""


class PlainSocket:
    """`with PlainSocket("REQ", host, port, timeout_s=5) as peer: peer.ask([b"..."])`.

    Raises NoAnswer, on entry too. timeout_s: seconds for the connection, and for each message that is waited for.
    """

    def __init__(self, kind: Kind, host: str, port: int, *, timeout_s: float) -> None:
        self._kind = kind
        self._host, self._port = host, port
        self._timeout_s = timeout_s
        # A REQ socket is a DEALER that puts an empty frame before each request (RFC 28, "The REQ Socket Type").
        self._codec = zmtp.Codec(b"DEALER" if kind == "REQ" else kind.encode(), max_body_bytes=_MAX_BYTES)
        self._waiting: list[list[bytes]] = []

    def __enter__(self) -> Self:
        try:
            self._socket = socket.create_connection((self._host, self._port), self._timeout_s)
        except OSError as error:
            raise NoAnswer(f"{self._host}:{self._port}: {error.strerror or error}") from error
        try:
            self._until(lambda: self._codec.is_ready, "greeting")
            if self._kind == "SUB":
                self._send(zmtp.subscription(b""))
                self._settle()
        except BaseException:
            self._socket.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def ask(self, frames: list[bytes]) -> list[bytes]:
        """The frames of the reply."""
        self._send([b"", *frames])
        reply = self.receive()
        return reply[1:] if reply and not reply[0] else reply

    def publish(self, frames: list[bytes]) -> None:
        """Send an event; returns when the peer has read it."""
        self._send([*frames])
        self._settle()

    def receive(self) -> list[bytes]:
        """The next message."""
        self._until(lambda: bool(self._waiting), "answer")
        return self._waiting.pop(0)

    def _send(self, frames: list[Buffer]) -> None:
        out: list[Buffer] = []
        self._codec.encode(frames, out)
        self._write(b"".join(out))

    def _settle(self) -> None:
        """Wait until the peer has read everything so far; one of ZMTP 3.0 cannot say so."""
        if self._codec.peer_minor >= 1:
            known = len(self._codec.pongs)
            self._write(self._codec.ping(b"verify"))
            self._until(lambda: len(self._codec.pongs) > known, "PONG")

    def _write(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise NoAnswer(f"{self._host}:{self._port}: {error.strerror or error}") from error

    def _until(self, is_there: Callable[[], bool], what: str) -> None:
        ends_at = time.monotonic() + self._timeout_s
        while True:
            if self._codec.outgoing:
                self._write(bytes(self._codec.outgoing))
                self._codec.outgoing.clear()
            if is_there():
                return
            left_s = ends_at - time.monotonic()
            if left_s <= 0:
                raise NoAnswer(f"{self._host}:{self._port}: no {what} in {self._timeout_s:g} s")
            self._socket.settimeout(left_s)
            try:
                self._read()
            except TimeoutError:
                continue
            except (OSError, zmtp.ProtocolError) as error:
                raise NoAnswer(f"{self._host}:{self._port}: {error}") from error

    def _read(self) -> None:
        large = self._codec.large
        if large is not None:
            count = self._socket.recv_into(large)
            messages = self._codec.large_filled(count) if count else []
        else:
            data = self._socket.recv(_READ_BYTES)
            count = len(data)
            messages = self._codec.feed(data) if data else []
        if not count:
            raise ConnectionError(self._codec.when_closed())
        self._waiting += [[bytes(frame) for frame in message] for message in messages]
