"""The plain form: what an agent with any stock ZeroMQ library says and hears, translated to and from native messages.

    request   [subject, body]  or  [subject, body, headers]          body: JSON or msgpack, told apart by its first byte
    reply     [b"ok", body]    or  [b"error", {code, message, details}]        in the encoding of the request
    one frame {"subject": ..., "body": ..., "headers": {...}}  ->  {"status": "ok"|"error", "body": ...}

A REQ socket puts an empty frame before all of these and gets it back. `headers` may hold `timeout_s` or `deadline_ms`,
`priority`, `token`, `traceparent`, and `stream: true`, with which a DEALER gets every partial reply as
[b"partial", body] ({"status": "partial", ...}); without it partial replies are gathered into the one final reply.
"""

from __future__ import annotations

import time
from typing import Any, Final

import msgspec

from schemas import subjects
from schemas.envelope import MAGIC, NIL, Buffer, Encoding, Headers, Kind, Message, encode_raw, encoding_of, new_id
from schemas.errors import BadRequest, BusError, Internal, TooLarge
from schemas.limits import INLINE_BODY_BYTES, MAX_HEADER_BYTES

_FORBIDDEN_HEADERS: Final = frozenset({"encoding", "gather", "attempt", "via"})


class Form(msgspec.Struct, frozen=True, gc=False):
    """How a plain peer wrote its request, and so how it reads the reply."""

    is_delimited: bool
    is_single: bool
    encoding: Encoding


class PlainError(Exception):
    """A plain request is malformed; `form` says how to tell its sender."""

    def __init__(self, form: Form, error: BusError) -> None:
        super().__init__(error.message)
        self.form = form
        self.error = error


class _Single(msgspec.Struct):
    subject: str
    body: msgspec.Raw = msgspec.Raw(b"")
    headers: Headers | None = None


_decode_json = msgspec.json.Decoder(_Single).decode
_decode_msgpack = msgspec.msgpack.Decoder(_Single).decode
_decode_raw = msgspec.msgpack.Decoder(msgspec.Raw).decode
_decode_json_headers = msgspec.json.Decoder(Headers | None).decode
_decode_msgpack_headers = msgspec.msgpack.Decoder(Headers | None).decode


def is_native(frames: list[Buffer]) -> bool:
    """True when frame 0 starts like a native message, whatever follows."""
    return frames[0][:2] == MAGIC


def parse(frames: list[Buffer]) -> tuple[Form, Message]:
    """The native request that a plain message stands for. Raises PlainError, and nothing else, whatever the bytes."""
    is_delimited = len(frames) > 1 and not len(frames[0])
    if is_delimited:
        frames = frames[1:]
    if len(frames) == 1:
        return _parse_single(frames[0], is_delimited)
    body = frames[1]
    form = Form(is_delimited, False, encoding_of(body))
    if len(frames) > 3:
        raise PlainError(form, BadRequest(
            f"a request has 2 or 3 frames, subject, body and headers, not {len(frames)}", frames=len(frames)
        ))  # fmt: skip
    try:
        subject = bytes(frames[0][:1024]).decode("utf-8")
    except UnicodeDecodeError as error:
        raise PlainError(form, BadRequest(f"subject is not UTF-8: {error}", field="subject")) from error
    headers: Headers | None = None
    if len(frames) == 3:
        try:
            headers = decode_headers(frames[2])
        except BusError as error:
            raise PlainError(form, error) from error
    return form, _message(form, subject, body, headers)


def _parse_single(frame: Buffer, is_delimited: bool) -> tuple[Form, Message]:
    form = Form(is_delimited, True, encoding_of(frame))
    try:
        single = (_decode_json if form.encoding == "json" else _decode_msgpack)(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PlainError(form, BadRequest(
            f'a one-frame request is a map {{"subject": ..., "body": ..., "headers": {{...}}}}: {error}'
        )) from error  # fmt: skip
    return form, _message(form, single.subject, memoryview(single.body), single.headers)


def decode_headers(frame: Buffer) -> Headers | None:
    """A header frame in either encoding. Raises BadRequest and TooLarge."""
    if len(frame) > MAX_HEADER_BYTES:
        raise TooLarge(
            f"headers have {len(frame)} bytes, the limit is {MAX_HEADER_BYTES}",
            field="headers",
            size_bytes=len(frame),
            limit_bytes=MAX_HEADER_BYTES,
        )
    if not len(frame):
        return None
    decode = _decode_json_headers if encoding_of(frame) == "json" else _decode_msgpack_headers
    try:
        headers: Headers | None = decode(frame)
        return headers
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"headers are not a map of plain values: {error}", field="headers") from error


def _message(form: Form, subject: str, body: Buffer, headers: Headers | None) -> Message:
    try:
        subjects.validate(subject)
    except BusError as error:
        raise PlainError(form, error) from error
    is_given = bool(headers)
    headers = dict(headers) if headers else {}
    for name in _FORBIDDEN_HEADERS & headers.keys():
        del headers[name]
    deadline_ms = _deadline_ms(form, headers)
    if form.encoding == "json":
        headers["encoding"] = "json"
    if headers.pop("stream", False) is not True:
        headers["gather"] = True
    if is_given and (size := len(msgspec.msgpack.encode(headers))) > MAX_HEADER_BYTES:
        # A worker could not read it, and would drop it.
        raise PlainError(form, TooLarge(
            f"headers have {size} bytes, the limit is {MAX_HEADER_BYTES}",
            field="headers", size_bytes=size, limit_bytes=MAX_HEADER_BYTES,
        ))  # fmt: skip
    id = new_id()
    encoded = body if len(body) else (b"null" if form.encoding == "json" else NIL)
    if form.encoding == "msgpack" and len(encoded) <= INLINE_BODY_BYTES:
        # It becomes part of the native message, which would not decode any more with a broken value in it.
        try:
            _decode_raw(encoded)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise PlainError(form, BadRequest(f"body is neither JSON nor msgpack: {error}", field="body")) from error
    frames = encode_raw(Kind.REQUEST, id, subject, deadline_ms, headers, encoded)
    is_inline = len(frames) == 1
    kept: Any = encoded
    if is_inline and form.encoding == "json":
        kept = msgspec.msgpack.encode(bytes(encoded))
    return Message(id, subject, deadline_ms, headers, kept, Kind.REQUEST, frames, is_inline)


def _deadline_ms(form: Form, headers: Headers) -> int:
    timeout_s = headers.pop("timeout_s", None)
    deadline_ms = headers.pop("deadline_ms", None)
    if timeout_s is not None:
        if not isinstance(timeout_s, int | float) or isinstance(timeout_s, bool) or not 0 < timeout_s <= 86_400:
            raise PlainError(form, BadRequest(
                f"header timeout_s is {timeout_s!r}; it must be a number of seconds above 0, at most 86400",
                field="headers.timeout_s",
            ))  # fmt: skip
        return int((time.time() + timeout_s) * 1000)
    if deadline_ms is None:
        return 0
    if not isinstance(deadline_ms, int) or isinstance(deadline_ms, bool) or not 0 <= deadline_ms < 2**62:
        raise PlainError(form, BadRequest(
            f"header deadline_ms is {deadline_ms!r}; it must be Unix epoch milliseconds", field="headers.deadline_ms"
        ))  # fmt: skip
    return deadline_ms


_STATUS: Final = {Kind.PARTIAL: "partial", Kind.FINAL: "ok", Kind.ERROR: "error"}


def render(form: Form, message: Message) -> list[Buffer]:
    """Frames of a worker's reply for a plain peer."""
    body = message.body_bytes()
    if message.encoding != form.encoding:
        try:
            body = _recode(body, form.encoding)
        except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
            return render_error(form, Internal(f"the reply cannot be written as {form.encoding}: {error}"))
    return _frames(form, _STATUS[message.kind], body)


def render_error(form: Form, error: BusError) -> list[Buffer]:
    """Frames of an error of the broker's own."""
    encode = msgspec.json.encode if form.encoding == "json" else msgspec.msgpack.encode
    return _frames(form, "error", encode(error.body()))


def _recode(body: Buffer, encoding: Encoding) -> bytes:
    """A worker that answered in the other encoding (an error raised before it knew better)."""
    if encoding == "json":
        return msgspec.json.encode(msgspec.msgpack.decode(body))
    return msgspec.msgpack.encode(msgspec.json.decode(body))


def _frames(form: Form, status: str, body: Buffer) -> list[Buffer]:
    frames: list[Buffer] = [b""] if form.is_delimited else []
    if not form.is_single:
        return [*frames, status.encode(), body]
    if form.encoding == "json":
        return [*frames, b"".join((b'{"status":"', status.encode(), b'","body":', body, b"}"))]
    return [*frames, msgspec.msgpack.encode({"status": status, "body": msgspec.Raw(bytes(body))})]
