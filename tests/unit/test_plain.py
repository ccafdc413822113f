"""The plain form: whatever arrives, a request comes out or an error its sender can read."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import plain
from broker.plain import Form, PlainError
from schemas.envelope import Kind, Message, decode, encode, encode_raw
from schemas.errors import NotFound

FRAME = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([b"", b"test.echo", b"{}", b"[1]", b"\x80", b"\xc0", b'{"subject": "a.b"}', b'{"timeout_s": 1}']),
    st.dictionaries(st.sampled_from(["subject", "body", "headers", "timeout_s", "stream"]), st.none() | st.text()).map(
        lambda value: json.dumps(value).encode()
    ),
    st.sampled_from([b"[" * 20_000, b"\x91" * 20_000, b'{"a":' * 20_000]),
)


@settings(max_examples=400, deadline=None)
@given(frames=st.lists(FRAME, min_size=1, max_size=8))
def test_random_frames_become_a_valid_request_or_a_plain_error(frames: list[Any]) -> None:
    """A request that comes out decodes on the other side; an error can be written in its sender's form."""
    try:
        form, message = plain.parse(list(frames))
    except PlainError as failure:
        reply = plain.render_error(failure.form, failure.error)
        read = msgspec.json.decode if failure.form.encoding == "json" else msgspec.msgpack.decode
        read(reply[-1])
        return
    again = decode(message.frames)
    assert (again.kind, again.id, again.subject) == (Kind.REQUEST, message.id, message.subject)
    assert bytes(again.body_bytes()) == bytes(message.body_bytes())
    assert again.headers == message.headers
    assert again.encoding == form.encoding


REPLY = {"a": [1, "ü", None]}


def _reply(encoding: str, kind: Kind = Kind.FINAL) -> Message:
    if encoding == "msgpack":
        return decode(encode(kind, bytes(16), body=REPLY))
    return decode(encode_raw(kind, bytes(16), "", 0, {"encoding": "json"}, msgspec.json.encode(REPLY)))


@pytest.mark.parametrize("wrote", ["msgpack", "json"])
@pytest.mark.parametrize("reads", ["msgpack", "json"])
@pytest.mark.parametrize("is_single", [False, True])
@pytest.mark.parametrize("is_delimited", [False, True])
def test_reply_takes_the_form_of_its_request(wrote: str, reads: Any, is_single: bool, is_delimited: bool) -> None:
    """Whatever the worker wrote it in."""
    frames = plain.render(Form(is_delimited, is_single, reads), _reply(wrote))
    if is_delimited:
        assert frames.pop(0) == b""
    read = msgspec.json.decode if reads == "json" else msgspec.msgpack.decode

    if is_single:
        assert [read(frame) for frame in frames] == [{"status": "ok", "body": REPLY}]
    else:
        assert (frames[0], read(frames[1])) == (b"ok", REPLY)


@pytest.mark.parametrize("reads", ["msgpack", "json"])
def test_reply_that_cannot_be_recoded_is_internal(reads: Any) -> None:
    """A worker's nonsense does not reach the caller as nonsense, nor break the broker."""
    for body in (b"\xc1", b"\xff\xff", b"{" if reads == "msgpack" else b"\xc7\x01\x05\x00"):
        other = {"encoding": "json"} if reads == "msgpack" else None
        message = decode([*encode(Kind.FINAL, bytes(16), "", 0, other), body])
        status, error = plain.render(Form(False, False, reads), message)
        read = msgspec.json.decode if reads == "json" else msgspec.msgpack.decode
        assert (status, read(error)["code"]) == (b"error", "internal")


@pytest.mark.parametrize("kind", [Kind.PARTIAL, Kind.FINAL, Kind.ERROR])
def test_status_says_what_kind_of_reply_it_is(kind: Kind) -> None:
    """partial, ok, error."""
    status = plain.render(Form(False, False, "json"), _reply("json", kind))[0]
    assert status == {Kind.PARTIAL: b"partial", Kind.FINAL: b"ok", Kind.ERROR: b"error"}[kind]


def test_error_of_the_broker_takes_the_form_too() -> None:
    """Code, message and details."""
    (frame,) = plain.render_error(Form(False, True, "json"), NotFound("gone", id="x"))
    assert json.loads(frame) == {
        "status": "error",
        "body": {"code": "not_found", "message": "gone", "details": {"id": "x"}},
    }
