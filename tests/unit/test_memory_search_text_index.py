"""Looking words up: what is remembered between searches, and what a filter leaves to look in."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pyroaring import BitMap64

from workers.memory.migrations import load_migrations, prepare
from workers.memory.search import text_index
from workers.memory.search.query import Term
from workers.memory.search.text_index import ChosenIds, Found, TextIndex

NS = "memory"


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """An empty database."""
    path = tmp_path / "memory.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        prepare(connection, path, load_migrations())
        yield connection


@pytest.fixture(autouse=True)
def _common_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words are common from the third chunk on."""
    monkeypatch.setattr(text_index, "COMMON_WORD_CHUNKS", 2)


def add(connection: sqlite3.Connection, *texts: str, ns: str = NS) -> list[int]:
    """Chunks with these texts; returns their ids."""
    return [
        int(
            connection.execute(
                "INSERT INTO chunks (ns, kind, source_id, position, start, end, text, at)"
                " VALUES (?, 'memory', ?, 0, 0, ?, ?, 0)",
                (ns, text, len(text), text),
            ).lastrowid
            or 0
        )
        for text in texts
    ]


def term(word: str) -> Term:
    """A word to look for."""
    return Term(word, f'"{word}"', word, False, True)


def holding(found: Found) -> dict[str, list[int]]:
    """Term -> the chunks that hold it, newest first."""
    return {one.label: list(holders)[::-1] for one, holders in zip(found.terms, found.holders, strict=True)}


class Clock:
    """A time that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def statements(connection: sqlite3.Connection, work: object) -> list[str]:
    """The statements on the full-text index that run while `work` is called."""
    seen: list[str] = []
    connection.set_trace_callback(seen.append)
    work()  # type: ignore[operator]
    connection.set_trace_callback(None)
    return [each for each in seen if "MATCH" in each and "json_group_array" in each]


def test_common_word_is_read_once(connection: sqlite3.Connection) -> None:
    ids = add(connection, *(f"hound {number}" for number in range(5)))
    index = TextIndex(100)

    first = statements(connection, lambda: index.find(connection, NS, [term("hound")]))
    again = statements(connection, lambda: index.find(connection, NS, [term("hound")]))

    assert len(first) == 1
    assert again == []
    assert holding(index.find(connection, NS, [term("hound")])) == {"hound": ids[::-1]}


def test_what_came_since_is_found_first(connection: sqlite3.Connection) -> None:
    ids = add(connection, *(f"hound {number}" for number in range(5)))
    index = TextIndex(6)
    index.find(connection, NS, [term("hound")])

    ids += add(connection, "one more hound", "a cat", "the last hound")

    # No more than the budget, the newest.
    assert holding(index.find(connection, NS, [term("hound")])) == {
        "hound": [ids[7], ids[5], ids[4], ids[3], ids[2], ids[1]]
    }


def test_what_has_gone_is_forgotten_after_a_while(connection: sqlite3.Connection) -> None:
    ids = add(connection, *(f"hound {number}" for number in range(5)))
    clock = Clock()
    index = TextIndex(100, clock)
    index.find(connection, NS, [term("hound")])
    connection.execute("DELETE FROM chunks WHERE id = ?", (ids[4],))

    clock.now = text_index.KEEP_S + 1

    assert holding(index.find(connection, NS, [term("hound")])) == {"hound": ids[3::-1]}


def test_a_replaced_database_is_read_anew(connection: sqlite3.Connection) -> None:
    ids = add(connection, *(f"hound {number}" for number in range(5)))
    index = TextIndex(100)
    index.find(connection, NS, [term("hound")])
    connection.execute("DELETE FROM chunks WHERE id = ?", (ids[0],))

    index.forget()

    assert holding(index.find(connection, NS, [term("hound")])) == {"hound": ids[:0:-1]}


def test_what_is_kept_is_bounded(connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """The word that was asked for longest ago leaves."""
    monkeypatch.setattr(text_index, "KEPT_BYTES_MAX", 1_100)
    add(connection, *(f"hound cat dog {number}" for number in range(5)))
    index = TextIndex(100)
    for word in ("hound", "cat", "hound", "dog"):
        index.find(connection, NS, [term(word)])

    read = {
        word: len(statements(connection, lambda word=word: index.find(connection, NS, [term(word)])))  # type: ignore[misc]
        for word in ("hound", "dog", "cat")
    }

    assert read == {"hound": 0, "dog": 0, "cat": 1}


def test_chosen_chunks_are_looked_through_beyond_the_budget(connection: sqlite3.Connection) -> None:
    old = add(connection, "the budget talk")
    add(connection, *(f"talk {number} about the budget" for number in range(50)))
    index = TextIndex(10)

    found = index.find(connection, NS, [term("budget"), term("talk"), term("absent")], ChosenIds(old))

    assert holding(found) == {"budget": old, "talk": old}
    assert found.mask(old[0]) == 0b11
    assert found.missing > 0


def test_masks_and_groups_are_those_of_the_chunks() -> None:
    """As if every chunk were looked at one by one."""
    chance = random.Random(3)
    for _ in range(50):
        held = [sorted(chance.sample(range(1, 40), chance.randint(1, 30)), reverse=True) for _ in range(4)]
        found = Found()
        for number, chunks in enumerate(held):
            assert not found.mask(chunks[0]) >> number
            found.add(term(f"w{number}"), 1.0, BitMap64(chunks))

        masks = {chunk: sum(1 << bit for bit, chunks in enumerate(held) if chunk in chunks) for chunk in range(1, 41)}

        assert {chunk: found.mask(chunk) for chunk in masks} == masks
        groups: dict[int, list[int]] = {}
        for chunk, mask in sorted(masks.items(), reverse=True):
            if mask:
                groups.setdefault(mask, []).append(chunk)
        assert {mask: list(chunks) for mask, chunks in found.groups().items() if mask in groups} == groups
        assert found.masks(masks) == {chunk: mask for chunk, mask in masks.items() if mask}
        assert {chunk: found.mask(chunk) for chunk in masks} == masks
        assert found.chunks() == {chunk for chunk, mask in masks.items() if mask}


def test_what_is_committed_between_two_looks_counts_once(connection: sqlite3.Connection) -> None:
    """The highest id is read first, and the chunks that hold a word a moment later."""
    ids = add(connection, *(f"hound {number}" for number in range(5)))
    index = TextIndex(100)
    holders = index._holders(connection, 'text:"hound"', 100, 5, ids[2])

    assert list(holders) == ids
    assert list(index._holders(connection, 'text:"hound"', 100, 5, ids[-1])) == ids
