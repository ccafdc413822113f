"""The native envelope: how one message looks in bytes, with no opinion about sockets.

    frame 0   "OL"     2 bytes   magic
              version  1 byte    1
              kind     1 byte    see Kind
              array    msgpack   [id, subject, deadline_ms, headers or nil, body or nil]
    frame 1   body     only when the body is over INLINE_BODY_BYTES; frame 0 then holds nil

`id` is 16 random bytes chosen by the client; control kinds leave it empty. `deadline_ms` is Unix epoch milliseconds,
0 for none. The body inside the array is any msgpack value; when the header `encoding` is "json" it is a msgpack bin
holding JSON text. The body in a frame of its own is the encoded bytes themselves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from schemas.errors import BadRequest, TooLarge
from schemas.limits import ID_BYTES, INLINE_BODY_BYTES, MAX_HEADER_BYTES, MAX_SUBJECT_BYTES

Buffer = bytes | bytearray | memoryview
Encoding = Literal["json", "msgpack"]
HeaderValue = str | int | float | bool | None
Headers = dict[str, HeaderValue]

MAGIC: Final = b"OL"
VERSION: Final = 1
PREFIX_BYTES: Final = 4
NIL: Final = b"\xc0"


class Kind(IntEnum):
    """What a message is.

    | kind                  | from            | carries                                   |
    |-----------------------|-----------------|-------------------------------------------|
    | REQUEST, CANCEL       | client, broker  | the request; only its id                  |
    | PARTIAL, FINAL, ERROR | worker, broker  | a piece of the reply; its end; ErrorBody  |
    | READY, HEARTBEAT      | worker          | schemas.bodies.control.Ready, Heartbeat   |
    | CREDIT                | worker          | Credit                                    |
    | BYE                   | worker, broker  | nothing: I drain; no request follows this |
    | WELCOME               | broker          | Welcome                                   |
    """

    REQUEST = 1
    PARTIAL = 2
    FINAL = 3
    ERROR = 4
    CANCEL = 5
    READY = 16
    HEARTBEAT = 17
    CREDIT = 18
    BYE = 19
    WELCOME = 20


REPLIES: Final = frozenset({Kind.PARTIAL, Kind.FINAL, Kind.ERROR})
_LAST_REQUEST_KIND: Final = int(Kind.CANCEL)
_PREFIX: Final = {kind: MAGIC + bytes((VERSION, kind)) for kind in Kind}
# With the byte that starts a msgpack array of five.
_KIND_OF_PREFIX: Final = {prefix + b"\x95": kind for kind, prefix in _PREFIX.items()}
_ARRAY_BYTES: Final = PREFIX_BYTES + 1


class _First(msgspec.Struct, array_like=True, gc=False):
    id: bytes


class Message(msgspec.Struct, array_like=True, gc=False):
    """One decoded native message. The first five fields are the array on the wire, the others are set by `decode`.

    `body` is the encoded body as the sender wrote it: a msgpack value, or (encoding "json") a msgpack bin holding
    JSON text when it came inline. `frames` are the bytes it arrived as, kept so that forwarding costs no encoding.
    """

    id: bytes
    subject: str
    deadline_ms: int
    headers: Headers | None
    if TYPE_CHECKING:
        body: Buffer
        kind: Kind
        frames: list[Buffer]
        is_inline: bool = True
    else:
        # What msgspec decodes into: the body stays as it is. `decode` lets no array through that is longer than this.
        body: msgspec.Raw
        kind: Kind = None
        frames: Any = ()
        is_inline: bool = True

    @property
    def encoding(self) -> Encoding:
        """What the body is written in."""
        return "json" if self.headers and self.headers.get("encoding") == "json" else "msgpack"

    @property
    def size_bytes(self) -> int:
        """Bytes of all frames."""
        return sum(map(len, self.frames))

    def body_bytes(self) -> Buffer:
        """The body in its own encoding, unwrapped: msgpack bytes or JSON text."""
        if self.is_inline and self.headers and self.headers.get("encoding") == "json":
            return _decode_bin(self.body)
        return self.body


_encoder = msgspec.msgpack.Encoder()
_encode = _encoder.encode
_encode_into = _encoder.encode_into
_decode_array = msgspec.msgpack.Decoder(Message).decode
_decode_first = msgspec.msgpack.Decoder(_First).decode
_decode_bin = msgspec.msgpack.Decoder(bytes).decode


class _Ids:
    """Random ids cut from one block: a call of the kernel for each costs as much as encoding the whole request."""

    _BLOCK: Final = 256 * ID_BYTES

    def __init__(self) -> None:
        self._left: Iterator[bytes] = iter(())
        # Two processes must not go on with the same block.
        os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> bytes:
        """The first id of a new block."""
        block = os.urandom(self._BLOCK)
        self._left = iter([block[at : at + ID_BYTES] for at in range(0, self._BLOCK, ID_BYTES)])
        return next(self._left)

    def next(self) -> bytes:
        """One id. Threads may share this: `next` of a list iterator is atomic."""
        return next(self._left, b"") or self.renew()


new_id: Final = _Ids().next


def encode(
    kind: Kind,
    id: bytes = b"",
    subject: str = "",
    deadline_ms: int = 0,
    headers: Headers | None = None,
    body: Any = None,
) -> list[Buffer]:
    """Frames of a message whose body is a Struct or builtin value, encoded as msgpack.

    One pass for small bodies; a body over INLINE_BODY_BYTES goes to a second frame.
    """
    frame = bytearray(_PREFIX[kind])
    _encode_into((id, subject, deadline_ms, headers, body), frame, PREFIX_BYTES)
    if len(frame) <= INLINE_BODY_BYTES:
        return [frame]
    # The body is the last element, so frame 0 without it ends where the encoded body starts.
    head = _PREFIX[kind] + _encode((id, subject, deadline_ms, headers, None))
    encoded = memoryview(frame)[len(head) - len(NIL) :]
    return [head, encoded] if len(encoded) > INLINE_BODY_BYTES else [frame]


def encode_raw(
    kind: Kind,
    id: bytes,
    subject: str,
    deadline_ms: int,
    headers: Headers | None,
    body: Buffer,
) -> list[Buffer]:
    """Frames of a message whose body is already encoded, in the encoding the headers name (msgpack without)."""
    prefix = _PREFIX[kind]
    if len(body) > INLINE_BODY_BYTES:
        return [prefix + _encode((id, subject, deadline_ms, headers, None)), body]
    is_json = headers is not None and headers.get("encoding") == "json"
    inline = bytes(body) if is_json else msgspec.Raw(bytes(body) if body else NIL)
    return [prefix + _encode((id, subject, deadline_ms, headers, inline))]


def decode(frames: list[Buffer]) -> Message:
    """The message in `frames`.

    Raises BadRequest for anything that is not one (short, wrong magic or version, unknown kind, wrong types) and
    TooLarge for a subject or header block over its limit. Never raises anything else, whatever the bytes.
    """
    head = frames[0]
    if type(head) is not bytes:
        head = bytes(head)
    kind = _KIND_OF_PREFIX.get(head[:_ARRAY_BYTES])
    if kind is None:
        raise _prefix_error(head)
    try:
        message = _decode_array(head[PREFIX_BYTES:])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadRequest(f"envelope does not decode: {error}") from error
    message.kind = kind
    message.frames = frames
    if len(message.id) != ID_BYTES and (message.id or kind <= _LAST_REQUEST_KIND):
        raise BadRequest(f"id has {len(message.id)} bytes, it must have {ID_BYTES}", field="id")
    if len(message.subject) > MAX_SUBJECT_BYTES:
        size = len(message.subject)
        raise TooLarge(
            f"subject has {size} bytes, the limit is {MAX_SUBJECT_BYTES}",
            field="subject",
            size_bytes=size,
            limit_bytes=MAX_SUBJECT_BYTES,
        )
    if message.headers is not None:
        _check_headers(message.headers, message.body, len(head), is_inline=len(frames) == 1)
    if len(frames) > 1:
        _take_second_frame(message, frames)
    return message


def _take_second_frame(message: Message, frames: list[Buffer]) -> None:
    if len(frames) > 2:
        raise BadRequest(f"a native message has one or two frames, not {len(frames)}", frames=len(frames))
    if bytes(message.body) != NIL:
        raise BadRequest("body stands both in frame 0 and in frame 1", field="body")
    message.body = frames[1]
    message.is_inline = False


def with_headers(message: Message, headers: Headers) -> list[Buffer]:
    """Frames of `message` with other headers, which must name the same encoding."""
    inline = msgspec.Raw(bytes(message.body)) if message.is_inline else None
    head = _PREFIX[message.kind] + _encode((message.id, message.subject, message.deadline_ms, headers, inline))
    return [head, *message.frames[1:]]


def id_of(frames: list[Buffer]) -> bytes:
    """The id in a message that `decode` refuses, so that its sender can be told which one; empty when unreadable."""
    try:
        id = _decode_first(memoryview(frames[0])[PREFIX_BYTES:]).id
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return b""
    return id if len(id) == ID_BYTES else b""


def _check_headers(headers: Headers, body: Buffer, head_bytes: int, *, is_inline: bool) -> None:
    if head_bytes > MAX_HEADER_BYTES and (header_bytes := len(_encode(headers))) > MAX_HEADER_BYTES:
        raise TooLarge(
            f"headers have {header_bytes} bytes, the limit is {MAX_HEADER_BYTES}",
            field="headers",
            size_bytes=header_bytes,
            limit_bytes=MAX_HEADER_BYTES,
        )
    if is_inline and headers.get("encoding") == "json" and memoryview(body)[0] not in _BINS:
        raise BadRequest("a body with the encoding json is a msgpack bin that holds JSON text", field="body")


def _prefix_error(head: Buffer) -> BadRequest:
    if len(head) < PREFIX_BYTES or head[:2] != MAGIC:
        return BadRequest("not an Olympus message: frame 0 does not start with 'OL'", size_bytes=len(head))
    if head[2] != VERSION:
        return BadRequest(
            f"wire version {head[2]} is not spoken here, version {VERSION} is", version=head[2], supported=VERSION
        )
    if head[3] not in {int(kind) for kind in Kind}:
        return BadRequest(f"unknown message kind {head[3]}", kind=head[3])
    return BadRequest("envelope does not decode: no msgpack array of five follows the kind")


# First bytes of a msgpack bin: of 8, 16 and 32 bits of length.
_BINS: Final = frozenset((0xC4, 0xC5, 0xC6))

# JSON text starts with one of these bytes. Read as msgpack they would be the integers 9 to 123, which no body is.
_JSON_FIRST: Final = frozenset(b'{["-0123456789tfn \t\r\n')


def encoding_of(body: Buffer) -> Encoding:
    """The encoding of a body from outside, told apart by its first byte; an empty one counts as msgpack."""
    return "json" if len(body) and body[0] in _JSON_FIRST else "msgpack"


def encode_any(body: Any) -> bytes:
    """A body as msgpack that `decode_any` reads as such: an integer that looks like JSON is written one byte longer."""
    encoded = _encode(body)
    return b"\xcc" + encoded if len(encoded) == 1 and encoded[0] in _JSON_FIRST else encoded
