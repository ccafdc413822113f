"""The parts of the memory service that only decide: clock, key ranges, packed values, prompt, subjects, search words."""

from __future__ import annotations

import contextlib
import datetime
import sqlite3
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.bodies.memory import KvGet, KvSet, Remember
from schemas.errors import BadRequest, TooLarge
from schemas.limits import MAX_VALUE_DEPTH
from workers.memory.clock import SteadyClock
from workers.memory.prompt import HEADING, PromptText
from workers.memory.text import check_texts, end_of_prefix
from workers.memory.usefulness import USEFULNESS, provide_functions
from workers.memory.values import depth_of, pack, unpack

TEXT = st.text(max_size=6)
DAY_S = 86_400.0


class Readings:
    """A wall clock and a monotonic clock that move when told to."""

    def __init__(self) -> None:
        self.wall_s = 1_000.0
        self.monotonic_s = 5.0

    def clock(self) -> SteadyClock:
        """A steady clock on these readings."""
        return SteadyClock(lambda: self.wall_s, lambda: self.monotonic_s)


def test_clock_follows_the_wall_clock_forward() -> None:
    """A jump ahead, as after a suspend, is believed."""
    readings = Readings()
    clock = readings.clock()

    readings.wall_s, readings.monotonic_s = 5_000.0, 6.0

    assert clock() == 5_000.0


def test_clock_goes_on_at_its_pace_when_the_wall_clock_is_set_back() -> None:
    """Time neither goes back nor stands still, so entries still expire."""
    readings = Readings()
    clock = readings.clock()

    readings.wall_s, readings.monotonic_s = 10.0, 8.0
    first = clock()
    readings.wall_s, readings.monotonic_s = 20.0, 18.0

    assert (first, clock()) == (1_003.0, 1_013.0)


@given(prefix=TEXT, key=TEXT)
def test_prefix_range_holds_exactly_the_keys_that_start_with_it(prefix: str, key: str) -> None:
    """Between a prefix and its end, in UTF-8 order, lie the keys with that prefix and no others."""
    end = end_of_prefix(prefix)
    is_inside = prefix.encode() <= key.encode() and (end is None or key.encode() < end.encode())

    assert is_inside == key.startswith(prefix)


@pytest.mark.parametrize("prefix", ["", "\U0010ffff", "a\U0010ffff", "\ud7ff", "a%_", "a\0", "\uffff"])
def test_prefix_range_is_right_at_the_edges_of_unicode(prefix: str) -> None:
    """Last characters, the gap of the surrogates and LIKE's wildcards need no special care from callers."""
    end = end_of_prefix(prefix)

    for key in (prefix, prefix + "x", prefix + "\U0010ffff\U0010ffff", prefix + "\0"):
        assert prefix <= key
        assert end is None or key < end


def test_a_lone_surrogate_is_refused_by_field_and_position() -> None:
    """Text that is not Unicode gets an error that says where, null bytes do not."""
    with pytest.raises(BadRequest, match=r"value holds a lone surrogate \(U\+D800\) at character 2") as caught:
        check_texts(Remember(key="k", value="ab\ud800"))

    assert caught.value.details == {"field": "value", "position": 2}
    check_texts(KvGet(key="null\0byte"))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4) | st.integers(-9, 9), inner),
    max_leaves=12,
)


@given(VALUES)
def test_packed_values_come_back_unchanged(value: object) -> None:
    """Whatever msgpack holds returns with its types."""
    again = unpack(pack(value, max_bytes=1_000_000))

    assert (again, repr(again)) == (value, repr(value))


def nested(depth: int) -> object:
    """Arrays and maps in turn, `depth` of them inside one another."""
    value: object = 1
    for level in range(depth):
        value = [value, 0] if level % 2 else {"k": value}
    return value


def test_depth_counts_arrays_and_maps_inside_one_another() -> None:
    """Scalars have no depth; keys that are arrays count too."""
    assert [depth_of(value) for value in (1, "a", [], [{}], {"a": [1]}, {(1, (2,)): 3})] == [0, 0, 1, 2, 2, 3]


def test_value_at_the_depth_limit_is_taken_and_one_past_it_refused_with_the_figures() -> None:
    """The error names field, depth and limit."""
    pack(nested(MAX_VALUE_DEPTH), max_bytes=10_000)

    with pytest.raises(BadRequest) as caught:
        pack(nested(MAX_VALUE_DEPTH + 1), max_bytes=10_000)

    assert caught.value.details == {"field": "value", "depth": MAX_VALUE_DEPTH + 1, "limit": MAX_VALUE_DEPTH}


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, {"a": "\ud800"}, [object()]])
def test_values_that_msgpack_cannot_hold_are_refused_as_such(value: object) -> None:
    """Numbers past 64 bits, broken text and foreign objects are the caller's mistake, not an internal error."""
    with pytest.raises(BadRequest, match="value cannot be stored as msgpack"):
        pack(value, max_bytes=1_000)


def test_value_past_the_byte_limit_is_refused_with_both_sizes() -> None:
    """A value that no reply could carry is not stored."""
    with pytest.raises(TooLarge) as caught:
        pack(b"x" * 100, max_bytes=64)

    assert caught.value.details == {"field": "value", "size_bytes": 102, "limit_bytes": 64}


def test_timestamps_survive_packing() -> None:
    """The msgpack timestamp extension is a value like any other."""
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)

    assert unpack(pack(KvSet(key="k", value=moment).value, max_bytes=100)) == moment


def test_prompt_has_exactly_the_form_the_demo_model_reads() -> None:
    """Heading, then a line per fact, no newline at the end."""
    text = PromptText(max_tokens=100)
    text.offer("name", "Ada")
    text.offer("city", "London")

    addition = text.addition()

    assert addition.text == "Known facts about the user:\n- name: Ada\n- city: London"
    assert (addition.included, addition.left_out) == (["name", "city"], [])
    assert addition.tokens == -(-len(addition.text) // 3)


def test_prompt_flattens_values_of_several_lines() -> None:
    """A value cannot pose as another fact by holding a line break of any kind."""
    text = PromptText(max_tokens=100)
    text.offer("a\nb", "one\r\n- two: x\u2028three\x0bfour\x85five")

    assert text.addition().text == f"{HEADING}\n- a b: one - two: x three four five"


def test_prompt_leaves_out_what_does_not_fit_and_goes_on_with_what_does() -> None:
    """A long fact does not keep the shorter ones after it out, and is named."""
    text = PromptText(max_tokens=16)
    text.offer("long", "x" * 100)
    text.offer("name", "Ada")

    addition = text.addition()

    assert (addition.included, addition.left_out) == (["name"], ["long"])
    assert addition.tokens <= 16


def test_prompt_is_empty_when_nothing_fits() -> None:
    """A heading without facts would cost tokens and say nothing."""
    text = PromptText(max_tokens=1)
    text.offer("name", "Ada")

    addition = text.addition()

    assert (addition.text, addition.tokens, addition.left_out) == ("", 0, ["name"])


def test_prompt_says_when_no_further_fact_is_worth_reading() -> None:
    """Where no line fits any more, however short, or where a thousand facts did not."""
    text = PromptText(max_tokens=13)
    was_full = []
    for key in ("k", *map(str, range(1_000))):
        was_full.append(text.is_full)
        text.offer(key, "1")
    assert not any(was_full)
    assert text.is_full
    assert PromptText(max_tokens=10).is_full

    text.leave_out([f"unread {number}" for number in range(50)])
    addition = text.addition()
    assert (addition.included, addition.left_out) == (["k"], [f"{number}" for number in range(1_000)])
    assert addition.left_out_count == 1_050


@given(
    facts=st.lists(st.tuples(st.text(min_size=1, max_size=9), st.text(min_size=1, max_size=30)), max_size=8),
    max_tokens=st.integers(1, 80),
)
def test_prompt_never_exceeds_its_budget(facts: list[tuple[str, str]], max_tokens: int) -> None:
    """Whatever the texts, the estimate stays within the budget and every fact is accounted for."""
    text = PromptText(max_tokens)
    for key, value in facts:
        text.offer(key, value)

    addition = text.addition()

    assert addition.tokens <= max_tokens
    assert len(addition.text.encode()) <= 3 * max_tokens
    assert sorted([*addition.included, *addition.left_out]) == sorted(key for key, _ in facts)


class PlainSqlite(sqlite3.Connection):
    """SQLite as it is where it was built without the functions of mathematics."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._given: set[str] = set()

    def create_function(self, name: str, *arguments: Any, **more: Any) -> None:
        """Add one."""
        super().create_function(name, *arguments, **more)
        self._given.add(name)

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        """Run a statement, unless it needs what is not there."""
        for name in ("pow", "log2"):
            if f"{name}(" in statement and name not in self._given:
                raise sqlite3.OperationalError(f"no such function: {name}")
        return super().execute(statement, *values)


def rank(
    category: str = "fact",
    *,
    days: float = 0,
    recalls: int = 0,
    recalled_days: float | None = None,
    has_math: bool = True,
) -> float:
    """Usefulness at a fixed time of a fact written `days` ago. has_math: whether SQLite is built with such functions."""
    now = 1_000 * DAY_S
    recalled_at = None if recalled_days is None else now - recalled_days * DAY_S
    row = (category, now - days * DAY_S, recalled_at, recalls)
    factory = sqlite3.Connection if has_math else PlainSqlite
    with contextlib.closing(sqlite3.connect(":memory:", factory=factory)) as connection:
        provide_functions(connection)
        (score,) = connection.execute(
            f"SELECT {USEFULNESS} FROM (SELECT ? AS category, ? AS updated_at, ? AS last_accessed_at, ? AS access_count)",
            (now, *row),
        ).fetchone()
    return float(score)


def test_usefulness_prefers_lasting_recent_and_used_facts() -> None:
    """Each of the three parts decides when the others are equal."""
    assert rank("preference") == rank("fact") > rank("context")
    assert rank(days=1) > rank(days=30) > rank(days=300)
    assert rank(recalls=9) > rank(recalls=1) > rank(recalls=0)
    assert rank(days=300, recalled_days=1) > rank(days=300)


def test_usefulness_needs_no_functions_of_mathematics_in_sqlite() -> None:
    """Where it is built without them, Python's take their place."""
    assert rank("context", days=30, recalls=1_023, has_math=False) == 1.5
    assert rank("preference", days=45, recalls=7) == pytest.approx(
        rank("preference", days=45, recalls=7, has_math=False)
    )


def test_usefulness_has_the_documented_values() -> None:
    """The formula in the documentation is the one in use, and a clock set back breaks nothing."""
    assert rank("fact", days=30) == 1.5
    assert rank("context", days=0, recalls=1_023) == 2.0
    assert rank("context", days=0, recalls=10**9) == 2.0
    assert rank("fact", days=-400) == 2.0
