"""The native envelope and every body of the catalogue: golden bytes, round trips, and nonsense.

`PYTHONPATH=. python tests/unit/test_envelope.py` writes tests/unit/golden_envelopes.json anew; a changed line there is a changed wire.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import catalog, envelope
from schemas.bodies import control
from schemas.envelope import Kind, decode, encode, encode_any, encode_raw, id_of, new_id, with_headers
from schemas.errors import BadRequest, BusError, ErrorBody, TooLarge
from schemas.limits import INLINE_BODY_BYTES
from schemas.values import decode_any

GOLDEN = Path(__file__).with_name("golden_envelopes.json")
ID = bytes(range(16))


def example(kind: Any) -> Any:
    """A small value of a declared type, every field filled."""
    return _example(msgspec.inspect.type_info(kind))


def _example(info: Any) -> Any:
    inspect = msgspec.inspect
    if isinstance(info, inspect.StructType):
        return info.cls(**{field.name: _example(field.type) for field in info.fields})
    if isinstance(info, inspect.UnionType):
        return _example(next(one for one in info.types if not isinstance(one, inspect.NoneType)))
    if isinstance(info, inspect.ListType | inspect.VarTupleType):
        items = [_example(info.item_type)] * max(info.min_length or 0, 1)
        return items if isinstance(info, inspect.ListType) else tuple(items)
    if isinstance(info, inspect.DictType):
        return {_example(info.key_type): _example(info.value_type)}
    if isinstance(info, inspect.LiteralType):
        return info.values[0]
    if isinstance(info, inspect.IntType):
        return max(info.ge or 0, 1)
    if isinstance(info, inspect.FloatType):
        return 0.25 if info.lt == 0.5 else max(info.ge or 0, 0.5)
    if isinstance(info, inspect.BoolType):
        return True
    if isinstance(info, inspect.BytesType):
        return b"\x00\xff".ljust(info.min_length or 0, b"-")
    if isinstance(info, inspect.AnyType):
        return {"any": [1, None]}
    assert isinstance(info, inspect.StrType), info
    # A scope, a device, hashes and hours have forms of their own.
    texts = (
        text.ljust(info.min_length or 0, "-") for text in ("text", "admin", "gpu0", "abcd", "a" * 64, "22:00-06:00")
    )
    return next(text for text in texts if info.pattern is None or re.search(info.pattern, text))


def body_types() -> dict[str, Any]:
    """Every type the catalogue declares, and those of the worker protocol."""
    types: dict[str, Any] = {}
    for operation in catalog.OPERATIONS.values():
        for kind in (operation.request, operation.reply, operation.partial):
            if kind is not None:
                types[kind.__name__] = kind
    for event in catalog.EVENTS:
        types[event.body.__name__] = event.body
    for kind in (control.Ready, control.Welcome, control.Heartbeat, control.Credit, ErrorBody):
        types[kind.__name__] = kind
    return dict(sorted(types.items()))


def golden() -> dict[str, str]:
    """Name -> hex of one message of every kind and of every body."""
    lines = {
        f"kind {kind.name.lower()}": encode(
            kind, ID if kind <= Kind.CANCEL else b"", "a.b", 1, {"token": "t"}, {"k": 1}
        )
        for kind in Kind
    }
    lines |= {f"body {name}": encode(Kind.FINAL, ID, body=example(kind)) for name, kind in body_types().items()}
    lines["no headers, no body"] = encode(Kind.REQUEST, ID, "a.b")
    lines["json body"] = encode_raw(Kind.REQUEST, ID, "a.b", 0, {"encoding": "json"}, b'{"k": 1}')
    return {name: b"".join(frames).hex() for name, frames in lines.items()}


def test_every_kind_and_body_has_its_golden_bytes() -> None:
    """A difference is a change of the wire that other programs would feel."""
    assert golden() == json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("name", body_types())
def test_every_body_survives_its_round_trip_in_both_encodings(name: str) -> None:
    """What is declared can be sent, as msgpack and as JSON."""
    kind = body_types()[name]
    value = example(kind)
    message = decode(encode(Kind.FINAL, ID, body=value))

    assert msgspec.msgpack.decode(message.body, type=kind) == value
    assert msgspec.json.decode(msgspec.json.encode(value), type=kind) == value


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
HEADERS = st.none() | st.dictionaries(
    st.text(max_size=10).filter(lambda name: name != "encoding"),
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=20),
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(list(Kind)),
    subject=st.text(max_size=60),
    deadline_ms=st.integers(-(2**63), 2**64 - 1),
    headers=HEADERS,
    body=VALUES,
)
def test_message_comes_out_as_it_went_in(kind: Kind, subject: str, deadline_ms: int, headers: Any, body: Any) -> None:
    """Every field, whatever it holds."""
    message = decode(encode(kind, ID, subject, deadline_ms, headers, body))

    assert (message.kind, message.id, message.subject) == (kind, ID, subject)
    assert (message.deadline_ms, message.headers) == (deadline_ms, headers)
    assert msgspec.msgpack.decode(message.body) == body


@pytest.mark.parametrize(
    "size", [INLINE_BODY_BYTES - 200, INLINE_BODY_BYTES - 3, INLINE_BODY_BYTES, INLINE_BODY_BYTES + 1, 1 << 20]
)
@pytest.mark.parametrize("is_raw", [False, True])
def test_large_body_has_a_frame_of_its_own(size: int, is_raw: bool) -> None:
    """The border is exact for what is encoded here and for what comes encoded, and either way the body is whole."""
    body = b"\xa5" * size
    encoded = msgspec.msgpack.encode(body)
    frames = encode_raw(Kind.FINAL, ID, "", 0, None, encoded) if is_raw else encode(Kind.FINAL, ID, body=body)

    assert len(frames) == (2 if len(encoded) > INLINE_BODY_BYTES else 1)
    assert msgspec.msgpack.decode(decode(frames).body) == body


@settings(max_examples=300, deadline=None)
@given(
    start=st.sampled_from([b"", b"OL", b"OL\x01", b"OL\x01\x01", b"OL\x01\x03\x95\xc4\x10" + ID, b"OL\x02\x01"]),
    rest=st.binary(max_size=200),
    more=st.lists(st.binary(max_size=50), max_size=3),
)
def test_random_bytes_raise_only_errors_of_the_bus(start: bytes, rest: bytes, more: list[bytes]) -> None:
    """Decode, id, encoding and body: nothing else ever escapes."""
    frames: list[Any] = [start + rest, *more]
    assert len(id_of(frames)) in (0, 16)
    try:
        message = decode(frames)
    except (BadRequest, TooLarge):
        return
    message.body_bytes()
    with_headers(message, {**(message.headers or {}), "attempt": 2})


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_message_raises_only_errors_of_the_bus(data: st.DataObject) -> None:
    """Cut anywhere, with any byte changed."""
    whole = bytearray(encode(Kind.REQUEST, ID, "a.b", 5, {"encoding": "json", "token": "x"}, b'{"a": [1, 2]}')[0])
    whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    frames: list[Any] = [bytes(whole[: data.draw(st.integers(1, len(whole)))])]
    with contextlib.suppress(BadRequest, TooLarge):
        decode(frames).body_bytes()


@pytest.mark.parametrize(
    "deep", [b"\x91" * 100_000, b"\x81\xa1a" * 100_000, b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]
)
def test_deep_and_lying_containers_are_refused(deep: bytes) -> None:
    """Nesting past the decoder's depth and sizes past the end."""
    with pytest.raises(BusError):
        decode([b"OL\x01\x01\x95\xc4\x10" + ID + b"\xa3a.b\x00\xc0" + deep])


def test_other_headers_leave_the_rest_alone() -> None:
    """One frame or two, msgpack or JSON."""
    for frames in (
        encode(Kind.REQUEST, ID, "a.b", 7, None, {"k": 1}),
        encode(Kind.REQUEST, ID, "a.b", 7, None, bytes(100_000)),
        encode_raw(Kind.REQUEST, ID, "a.b", 7, {"encoding": "json"}, b"[1]"),
        [*encode(Kind.REQUEST, ID, "a.b", 7), b"\xc1 no msgpack at all"],
    ):
        before = decode(frames)
        after = decode(with_headers(before, {**(before.headers or {}), "attempt": 2}))

        assert (after.id, after.subject, after.deadline_ms) == (ID, "a.b", 7)
        assert bytes(after.body_bytes()) == bytes(before.body_bytes())
        assert after.headers is not None
        assert after.headers["attempt"] == 2


def test_id_is_found_in_messages_that_are_refused() -> None:
    """So that the error reaches the request it belongs to."""
    for frames in (
        encode(Kind.REQUEST, ID, "x" * 300),
        encode(Kind.REQUEST, ID, "a.b", 0, {"token": "x" * 10_000}),
        [b"OL\x01\x01" + msgspec.msgpack.encode([ID, 5, "x"])],
        [b"OL\x01\x63" + msgspec.msgpack.encode([ID, "a.b", 0, None, None])],
    ):
        with pytest.raises(BusError):
            decode(frames)
        assert id_of(frames) == ID


@given(value=st.integers(-(2**63), 2**64 - 1) | st.booleans() | st.none() | st.lists(st.integers(0, 300)))
def test_body_written_for_strangers_is_read_as_msgpack(value: Any) -> None:
    """Integers whose one byte looks like JSON included."""
    assert decode_any(encode_any(value)) == value


@given(value=st.recursive(st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(), st.lists, max_leaves=5))
def test_json_text_is_read_as_json(value: Any) -> None:
    """Told apart from msgpack by its first byte."""
    assert decode_any(json.dumps(value).encode()) == value


@given(body=st.binary(max_size=100))
def test_any_body_is_something(body: bytes) -> None:
    """What is neither JSON nor msgpack stays bytes."""
    decode_any(body)
    assert envelope.encoding_of(body) in ("json", "msgpack")


def test_ids_do_not_repeat() -> None:
    """100,000 of them."""
    ids = {new_id() for _ in range(100_000)}
    assert len(ids) == 100_000
    assert {len(id) for id in ids} == {16}


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden(), indent=1) + "\n")
    sys.stdout.write(f"{GOLDEN}\n")
