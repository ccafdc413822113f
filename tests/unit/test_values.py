"""Counting values in bytes from outside: C and Python agree with each other and with what msgpack really holds."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import values
from schemas.errors import BadRequest, TooLarge
from schemas.limits import CHECKED_BODY_BYTES, MAX_BODY_DEPTH, MAX_BODY_VALUES
from schemas.values import as_json, check_values, decode_any, measure

compiled = pytest.importorskip("schemas._scan", reason="schemas/_scan.c is not compiled")

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=300)
    | st.binary(max_size=300)
    | st.builds(msgpack.ExtType, st.integers(0, 100), st.binary(max_size=40)),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=40), inner, max_size=20),
    max_leaves=40,
)


def count(value: Any) -> int:
    """Values in `value`, itself included."""
    if isinstance(value, list):
        return 1 + sum(map(count, value))
    if isinstance(value, dict):
        return 1 + sum(count(key) + count(inner) for key, inner in value.items())
    return 1


@given(VALUES)
def test_measure_counts_what_msgpack_holds(value: Any) -> None:
    """Both implementations count exactly the values that the msgpack package packed."""
    packed = msgpack.packb(value)

    assert measure(packed, 10**6, 64)[0] == compiled.measure(packed, 10**6, 64)[0] == count(value)


@given(st.binary(max_size=200), st.integers(0, 20), st.integers(0, 8))
def test_measure_agrees_with_its_c_twin_on_any_bytes(noise: bytes, most_values: int, most_depth: int) -> None:
    """Whatever the bytes and limits, C and Python say the same."""
    assert compiled.measure(noise, most_values, most_depth) == measure(noise, most_values, most_depth)


@given(VALUES, st.integers(1, 50))
def test_measure_refuses_a_value_that_is_cut_short(value: Any, cut: int) -> None:
    """Bytes that end before the value does are no value."""
    packed = msgpack.packb(value)
    short = packed[: max(len(packed) - cut, 0)]

    assert compiled.measure(short, 10**6, 64) == measure(short, 10**6, 64) == (-1, -1)


def test_a_body_of_millions_of_empty_lists_is_refused_before_it_is_decoded() -> None:
    """Two megabytes that would become over a hundred are too large, and the limit is named."""
    body = b"\xdd" + (2_000_000).to_bytes(4, "big") + b"\x90" * 2_000_000

    with pytest.raises(TooLarge, match=str(MAX_BODY_VALUES)):
        check_values(body, "msgpack")
    assert decode_any(body) == body


def test_json_of_millions_of_empty_lists_is_refused() -> None:
    """The same in JSON."""
    with pytest.raises(TooLarge):
        check_values(("[" + ",".join(["[]"] * (MAX_BODY_VALUES + 1)) + "]").encode(), "json")


def test_deep_nesting_in_a_large_body_is_refused() -> None:
    """A body that nests past the limit names it."""
    body = b"\x91" * (CHECKED_BODY_BYTES + 1) + b"\x90"

    with pytest.raises(BadRequest, match=str(MAX_BODY_DEPTH)):
        check_values(body, "msgpack")


def test_large_but_plain_bodies_pass() -> None:
    """A big blob, a long list of numbers and a large JSON text are no problem."""
    check_values(msgpack.packb({"data": b"x" * 20_000_000}), "msgpack")
    check_values(msgpack.packb(list(range(500_000))), "msgpack")
    check_values(json.dumps({"text": "lorem [ipsum] " * 20_000}).encode(), "json")


def test_the_python_loop_stands_in_where_nothing_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the C module the same limits hold."""
    monkeypatch.setattr(values, "_measure", None)

    with pytest.raises(BadRequest, match="nests deeper"):
        check_values(b"\x91" * (CHECKED_BODY_BYTES + 1) + b"\x90", "msgpack")


def test_json_of_what_json_has_no_form_for_is_still_readable() -> None:
    """An extension value and odd keys of a msgpack writer do not make an entry unreadable in JSON."""
    odd = {"a": msgspec.msgpack.Ext(5, b"x"), "b": {None: 1, (1, 2): [2]}}

    assert json.loads(as_json(odd)) == {"a": {"ext_code": 5, "ext_data": "eA=="}, "b": {"None": 1, "(1, 2)": [2]}}
