"""ZMTP 3.1 as a pure codec: bytes in, messages out, wire-compatible with any libzmq peer; it owns no socket.

Source: ZeroMQ RFC 37/ZMTP 3.1 (greeting section 3.1, framing 3.2, NULL mechanism 3.3, PING/PONG 3.5, publish-subscribe
3.6) and RFC 23/ZMTP 3.0 for older peers. Why we speak it ourselves instead of through libzmq: docs/adr/0002.

    greeting   signature FF 00*8 7F | version 03 01 | mechanism "NULL" padded to 20 | as-server 00 | filler 00*31
    frame      flags (1 MORE, 2 LONG, 4 COMMAND) | size, 1 byte or 8 bytes big-endian | payload
    command    name size, 1 byte | name | data;  READY data = { name size, 1 | name | value size, 4 | value }*
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from struct import Struct
from typing import ClassVar, Final, NoReturn

from bus.pages import room
from schemas.envelope import Buffer
from schemas.limits import MAX_BODY_BYTES, MAX_FRAMES

_MORE: Final = 1
_LONG: Final = 2
_COMMAND: Final = 4

_GREETING_BYTES: Final = 64
_AS_SERVER_AT: Final = 32

# Commands hold a name and a little metadata; anything larger is no command of this protocol.
MAX_COMMAND_BYTES: Final = 8 * 1024

# A frame from this size on is received straight into its own buffer instead of passing through the read buffer.
LARGE_FRAME_BYTES: Final = 64 * 1024

# Room beside the body for the subject, the headers and the envelope of one message.
_ENVELOPE_SLACK_BYTES: Final = 16 * 1024

# A frame that claims more than this many times the limit, and more than this many bytes, is not skipped but ends the
# connection: a program that sends too much is told so, and lies about sizes are not listened to for long.
_SKIP_FACTOR: Final = 16
_SKIP_BYTES: Final = 1024 * 1024 * 1024

# Which peers each of our socket types may meet, as libzmq checks it (RFC 23, "Socket-Type").
_PEERS: Final[dict[bytes, frozenset[bytes]]] = {
    b"ROUTER": frozenset({b"REQ", b"DEALER", b"ROUTER"}),
    b"DEALER": frozenset({b"REP", b"DEALER", b"ROUTER"}),
    b"XSUB": frozenset({b"PUB", b"XPUB"}),
    b"XPUB": frozenset({b"SUB", b"XSUB"}),
    b"PUB": frozenset({b"SUB", b"XSUB"}),
    b"SUB": frozenset({b"PUB", b"XPUB"}),
}

# A socket type of ours alone: it waits for what the peer is, and is the type that serves it.
ANY: Final = b"*"
_SERVES: Final[dict[bytes, bytes]] = {
    b"REQ": b"ROUTER",
    b"DEALER": b"ROUTER",
    b"PUB": b"XSUB",
    b"XPUB": b"XSUB",
    b"SUB": b"XPUB",
    b"XSUB": b"XPUB",
}

_unpack_long = Struct(">Q").unpack_from
_pack_long = Struct(">BQ").pack
_SHORT_LAST: Final = tuple(bytes((0, size)) for size in range(256))
_SHORT_MORE: Final = tuple(bytes((_MORE, size)) for size in range(256))


# The inner loop of `Codec.feed` in C, where it was compiled (hatch_build.py).
_scan: Callable[[bytes, int], tuple[list[list[Buffer]], int]] | None = None
with contextlib.suppress(ImportError):
    from schemas import _scan as _compiled

    _scan = _compiled.scan


class ProtocolError(Exception):
    """The peer does not speak ZMTP 3, or breaks it; the connection cannot go on."""


def encode_message(frames: list[Buffer], out: list[Buffer]) -> int:
    """Append the wire form of one message to `out`; returns its size in bytes. Frames are referenced, not copied."""
    total = 0
    last = len(frames) - 1
    for index, frame in enumerate(frames):
        size = len(frame)
        if size < 256:
            out.append(_SHORT_LAST[size] if index == last else _SHORT_MORE[size])
            total += size + 2
        else:
            out.append(_pack_long(_LONG if index == last else _LONG | _MORE, size))
            total += size + 9
        out.append(frame)
    return total


def greeting(mechanism: bytes, *, as_server: bool) -> bytes:
    """The first 64 bytes of a connection."""
    head = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + mechanism.ljust(20, b"\0") + bytes((as_server,))
    return head.ljust(_GREETING_BYTES, b"\0")


def printable(said: bytes) -> str:
    """What a stranger said, fit for a log and a terminal."""
    return "".join(each if each.isprintable() else "?" for each in said.decode("ascii", "replace"))


def frame_head(size: int, flags: int = 0) -> bytes:
    """What stands before `size` bytes of payload."""
    return bytes((flags, size)) if size < 256 else _pack_long(flags | _LONG, size)


def command(name: bytes, data: bytes) -> bytes:
    """A command as it is sent in clear."""
    body = bytes((len(name),)) + name + data
    return frame_head(len(body), _COMMAND) + body


def ping(context: bytes = b"") -> bytes:
    """A PING command; the peer answers PONG with the same context (at most 16 bytes)."""
    return command(b"PING", ping_data(context))


def ping_data(context: bytes = b"") -> bytes:
    """What a PING says: no time to live, and the context that the PONG repeats."""
    return b"\0\0" + context


def subscription(prefix: bytes, *, is_cancel: bool = False) -> list[Buffer]:
    """A (un)subscription as the message that every ZMTP 3 publisher understands."""
    return [(b"\0" if is_cancel else b"\1") + prefix]


class Codec:
    """One side of one connection.

    Feed received bytes to `feed`, or, while `large` is set, receive straight into it and call `large_filled`.
    Both return the complete messages, each a list of frames. Bytes the codec itself wants sent (greeting, READY, PONG)
    gather in `outgoing`. `oversize` holds (frames received before it, bytes claimed) for each message skipped for size.
    This one speaks the NULL mechanism; bus.curve has those that encrypt, `is_secure`.
    """

    mechanism: ClassVar[bytes] = b"NULL"
    as_server: ClassVar[bool] = False
    is_secure: ClassVar[bool] = False

    __slots__ = (
        "_discard",
        "_frames",
        "_frames_bytes",
        "_greeted",
        "_large_is_last",
        "_large_whole",
        "_limit",
        "_oversize_at",
        "_properties",
        "_scan_limit",
        "_socket_type",
        "_tail",
        "encode",
        "is_ready",
        "large",
        "outgoing",
        "oversize",
        "peer_key",
        "peer_minor",
        "peer_properties",
        "peer_type",
        "pongs",
        "refused_key",
        "subscriptions",
    )

    def __init__(
        self, socket_type: bytes, *, properties: Mapping[str, bytes] = {}, max_body_bytes: int = MAX_BODY_BYTES
    ) -> None:
        self._socket_type = socket_type
        self._properties = dict(properties)
        self._limit = max_body_bytes + _ENVELOPE_SLACK_BYTES
        self._scan_limit = min(self._limit, LARGE_FRAME_BYTES - 1)
        self._tail = b""
        self._frames: list[Buffer] = []
        self._frames_bytes = 0
        self._greeted = False
        self._discard = 0
        self._oversize_at = 0
        self._large_whole: memoryview | None = None
        self._large_is_last = True
        self.large: memoryview | None = None
        self.outgoing = bytearray(greeting(self.mechanism, as_server=self.as_server))
        self.oversize: list[tuple[list[Buffer], int]] = []
        self.is_ready = False
        # Appends the wire form of one message to a list, in the order of sending; returns its size in bytes.
        self.encode: Callable[[list[Buffer], list[Buffer]], int] = encode_message
        # Long-term public keys, where the connection is encrypted: the peer's, or that of a peer that was not let in.
        self.peer_key = b""
        self.refused_key = b""
        self.peer_minor = 0
        self.peer_type = b""
        self.peer_properties: dict[str, bytes] = {}
        self.pongs: list[bytes] = []
        self.subscriptions: list[tuple[bool, bytes]] = []

    def feed(self, data: bytes) -> list[list[Buffer]]:
        """Complete messages after `data`. Raises ProtocolError; the connection must then be closed."""
        if self._tail:
            data = self._tail + data
            self._tail = b""
        if not self._greeted:
            if len(data) < _GREETING_BYTES:
                self._check_signature(data)
                self._tail = data
                return []
            self._greet(data[:_GREETING_BYTES])
            data = data[_GREETING_BYTES:]

        messages: list[list[Buffer]] = []
        frames = self._frames
        position = 0
        end = len(data)
        if _scan is not None and self.is_ready and not frames and not self._discard and not self._oversize_at:
            messages, position = _scan(data, self._scan_limit)
            if position == end:
                return messages
        while True:
            if self._discard:
                skipped = min(self._discard, end - position)
                position += skipped
                self._discard -= skipped
                if self._discard:
                    return messages
            if end - position < 2:
                break
            flags = data[position]
            if flags & _LONG:
                if end - position < 9:
                    break
                size: int = _unpack_long(data, position + 1)[0]
                start = position + 9
            else:
                size = data[position + 1]
                start = position + 2
            if flags > 7:
                raise ProtocolError(f"reserved flag bits are set in frame flags {flags:#04x}")
            if flags & _COMMAND:
                if flags & _MORE or size > MAX_COMMAND_BYTES:
                    raise ProtocolError(f"a command of {size} bytes; the limit is {MAX_COMMAND_BYTES} in one frame")
                if start + size > end:
                    break
                position = start + size
                self._on_command(data[start:position])
                continue
            if not self.is_ready:
                raise ProtocolError("a message before the READY command")
            if size + self._frames_bytes > self._limit or len(frames) >= MAX_FRAMES or self._oversize_at:
                self._begin_discard(size, is_last=not flags & _MORE)
                frames = self._frames
                position = start
                if self.is_secure:
                    # What was skipped cannot be opened, and is accounted for before what comes after it.
                    self._tail = data[start:]
                    return messages
                continue
            stop = start + size
            if stop > end:
                if size < LARGE_FRAME_BYTES:
                    break
                self._begin_large(data, start, size, is_last=not flags & _MORE)
                return messages
            payload = data[start:stop]
            position = stop
            if flags:
                # LONG alone ends a message, MORE with or without LONG continues it.
                if flags & _MORE:
                    frames.append(payload)
                    self._frames_bytes += size
                    continue
            if frames:
                frames.append(payload)
                messages.append(frames)
                frames = self._frames = []
                self._frames_bytes = 0
            else:
                messages.append([payload])
        if position < end:
            self._tail = data[position:]
        return messages

    def large_filled(self, count: int) -> list[list[Buffer]]:
        """Say that `count` bytes were received into `large`; returns the message when it is complete."""
        large = self.large
        assert large is not None
        if count < len(large):
            self.large = large[count:]
            return []
        whole = self._large_whole
        self.large = self._large_whole = None
        assert whole is not None
        self._frames.append(whole)
        if not self._large_is_last:
            self._frames_bytes += len(whole)
            return []
        message = self._frames
        self._frames = []
        self._frames_bytes = 0
        return [message]

    def _begin_large(self, data: bytes, start: int, size: int, *, is_last: bool) -> None:
        whole = room(size)
        have = len(data) - start
        whole[:have] = data[start:]
        self._large_whole = whole
        self._large_is_last = is_last
        self.large = whole[have:]

    def _begin_discard(self, size: int, *, is_last: bool) -> None:
        if size > max(self._limit * _SKIP_FACTOR, _SKIP_BYTES):
            raise ProtocolError(f"a frame of {size} bytes; the limit of a message is {self._limit}")
        self._discard = size
        self._oversize_at += size + self._frames_bytes + 1
        self._frames_bytes = 0
        if is_last:
            self.oversize.append((self._frames, self._oversize_at))
            self._frames = []
            self._oversize_at = 0

    def _check_signature(self, data: bytes) -> None:
        if data[:1] != b"\xff" or (len(data) >= 10 and data[9] & 0x7F != 0x7F) or (len(data) > 10 and data[10] < 3):
            raise ProtocolError("the peer does not greet in ZMTP 3")

    def ping(self, context: bytes = b"") -> bytes:
        """A PING as it is sent now; the peer answers PONG with the same context (at most 16 bytes)."""
        return ping(context)

    def when_closed(self) -> str:
        """What it means that the peer closes the connection now."""
        return "closed by the peer"

    def _greet(self, data: bytes) -> None:
        self._check_signature(data)
        mechanism = data[12:_AS_SERVER_AT].rstrip(b"\0")
        if mechanism != self.mechanism:
            name, ours = mechanism.decode("ascii", "replace"), self.mechanism.decode()
            raise ProtocolError(f"the peer wants the security mechanism {name!r}, only {ours} is spoken on this port")
        self.peer_minor = data[11] if data[10] == 3 else 1
        self._greeted = True
        self._begin_handshake()

    def _begin_handshake(self) -> None:
        if self._socket_type != ANY:
            self._say_ready()

    def _say_ready(self) -> None:
        self._say(b"READY", self._metadata())

    def _metadata(self) -> bytes:
        properties = {"Socket-Type": self._socket_type, "Identity": b"", **self._properties}
        return b"".join(
            bytes((len(name),)) + name.encode("ascii") + len(value).to_bytes(4, "big") + value
            for name, value in properties.items()
        )

    def _say(self, name: bytes, data: bytes) -> None:
        """Send a command."""
        self.outgoing += command(name, data)

    def _refuse(self, reason: str) -> NoReturn:
        """Tell the peer why, and end."""
        self._say(b"ERROR", bytes((len(reason),)) + reason.encode("ascii", "replace"))
        raise ProtocolError(reason)

    def _on_command(self, body: bytes) -> None:
        name_end = 1 + body[0] if body else 0
        name, data = body[1:name_end], body[name_end:]
        if name == b"READY" and not self.is_ready:
            self._on_ready(data)
        elif name == b"ERROR":
            raise ProtocolError(f"the peer refused the connection: {printable(data[1:])}")
        elif not self.is_ready:
            raise ProtocolError(f"command {name[:16]!r} before READY")
        elif name == b"PING":
            self._say(b"PONG", data[2:18])
        elif name == b"PONG":
            self.pongs.append(data)
        elif name in (b"SUBSCRIBE", b"CANCEL"):
            self.subscriptions.append((name == b"SUBSCRIBE", data))
        else:
            raise ProtocolError(f"unknown command {name[:16]!r}")

    def _on_ready(self, data: bytes) -> None:
        position = 0
        while position < len(data):
            name_end = position + 1 + data[position]
            value_start = name_end + 4
            value_end = value_start + int.from_bytes(data[name_end:value_start], "big")
            if value_end > len(data):
                raise ProtocolError("the metadata of READY is cut short")
            name = data[position + 1 : name_end].decode("ascii", "replace").lower()
            self.peer_properties[name] = data[value_start:value_end]
            position = value_end
        self.peer_type = self.peer_properties.get("socket-type", b"")
        is_adapting = self._socket_type == ANY
        if is_adapting:
            self._socket_type = _SERVES.get(self.peer_type, b"ROUTER")
        if self.peer_type not in _PEERS[self._socket_type]:
            ours, theirs = self._socket_type.decode(), self.peer_type.decode("ascii", "replace")
            wanted = ", ".join(sorted(kind.decode() for kind in _PEERS[self._socket_type]))
            self._refuse(f"a {theirs[:64] or 'nameless'} socket cannot talk to this {ours} port, it serves {wanted}")
        if is_adapting:
            self._say_ready()
        self.is_ready = True
