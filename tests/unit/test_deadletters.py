"""The store of dead letters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.deadletters import DeadLetters
from schemas.bodies.control import DeadLetter
from schemas.envelope import Kind, Message, decode, encode, encode_raw


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DeadLetters]:
    """At most ten letters, at most 1000 s old, and it is 5000 s o'clock."""
    store = DeadLetters(tmp_path / "letters.db", max_count=10, max_age_s=1_000.0, clock=lambda: 5_000.0)
    yield store
    store.close()


def letter(index: int, *, at: float | None = None, subject: str = "a.b") -> tuple[DeadLetter, Message]:
    """One letter with its request."""
    id = index.to_bytes(16, "big")
    kept = DeadLetter(
        id=id.hex(),
        subject=subject,
        reason="worker_lost",
        message="m",
        attempts=3,
        at=4_900.0 + index if at is None else at,
    )
    return kept, decode(encode(Kind.REQUEST, id, subject, 0, {"token": "t", "traceparent": "p"}, {"index": index}))


def ids(letters: Any) -> list[int]:
    """Their numbers."""
    return [int(one.id, 16) for one in letters]


def test_letters_are_listed_newest_first_and_shown_whole(store: DeadLetters) -> None:
    """With body, headers and encoding, in either encoding."""
    in_json = decode(encode_raw(Kind.REQUEST, bytes(16), "a.c", 0, {"encoding": "json"}, b'{"k": 1}'))
    store.add([letter(1), letter(2), (letter(3, subject="a.c")[0], in_json)])

    letters, total = store.newest(">", 2, None)

    assert (ids(letters), total) == ([3, 2], 3)
    assert ids(store.newest("a.b", 10, None)[0]) == [2, 1]
    assert ids(store.newest(">", 10, letters[-1].at)[0]) == [1]
    first, third = store.get(letter(1)[0].id), store.get(letter(3)[0].id)
    assert first is not None
    assert third is not None
    assert (first.headers, first.encoding) == ({"traceparent": "p"}, "msgpack")
    assert (third.body, third.encoding) == (b'{"k": 1}', "json")
    assert store.get("nobody") is None


def test_too_many_and_too_old_ones_go(store: DeadLetters) -> None:
    """The newest stay."""
    store.add([letter(index) for index in range(1, 16)])
    assert ids(store.newest(">", 100, None)[0]) == list(range(15, 5, -1))

    store.add([letter(99, at=10.0)])

    assert 99 not in ids(store.newest(">", 100, None)[0])


def test_letter_that_dies_again_is_kept_once(store: DeadLetters) -> None:
    """Under its id."""
    store.add([letter(1)])
    store.add([letter(1)])
    assert store.newest(">", 10, None)[1] == 1


def test_purge_takes_what_matches_all_its_conditions(store: DeadLetters) -> None:
    """Pattern, id and age."""
    store.add([letter(1), letter(2, subject="c.d"), letter(3, at=4_100.0)])

    assert store.purge("a.>", None, 500.0) == 1
    assert store.purge(">", letter(2)[0].id, 0.0) == 1
    assert store.purge(">", "nobody", 0.0) == 0
    assert ids(store.newest(">", 10, None)[0]) == [1]
    assert store.purge(">", None, 0.0) == 1


def test_letters_survive_a_reopening(tmp_path: Path) -> None:
    """They are on disk."""
    for expected in (0, 1):
        store = DeadLetters(tmp_path / "l.db", max_count=10, max_age_s=1e10)
        assert store.newest(">", 10, None)[1] == expected
        store.add([letter(1)])
        store.close()
