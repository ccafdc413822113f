"""Rows of the table `memories` as their readers see them: what is alive, how it is read, how much a page holds."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec

from schemas.bodies.items import Memory
from schemas.errors import NotFound
from workers.memory.values import unpack

# What a reply carries beside the texts and the metadata of a memory: field names, numbers, times. Generous.
OVERHEAD_BYTES: Final = 1_024

# Expired memories are gone at once, whenever the sweep comes. Takes the time.
IS_LIVE: Final = "(memories.expires_at IS NULL OR memories.expires_at > ?)"

COLUMNS: Final = ", ".join(
    f"memories.{column}"
    for column in (
        "id",
        "ns",
        "type",
        "tier",
        "importance",
        "access_count",
        "created_at",
        "updated_at",
        "last_accessed_at",
        "at",
        "version",
        "sequence",
        "parent_id",
        "expires_at",
        "speaker",
        "tags",
        "metadata",
        "content",
    )
)

_decode_tags: Final = msgspec.json.Decoder(list[str]).decode
_encode: Final = msgspec.json.Encoder().encode

T = TypeVar("T")


def encode_tags(tags: list[str]) -> str:
    """The tags as their column holds them: JSON, as text, which is what SQLite's own functions read."""
    return _encode(tags).decode()


class Found(NamedTuple):
    """A memory that exists."""

    sequence: int
    version: int


def find(connection: sqlite3.Connection, ns: str, memory_id: str, now: float) -> Found | None:
    """Place and version of a memory, None where there is none."""
    row = connection.execute(
        f"SELECT sequence, version FROM memories WHERE ns = ? AND id = ? AND {IS_LIVE}", (ns, memory_id, now)
    ).fetchone()
    return None if row is None else Found(*row)


def read(connection: sqlite3.Connection, ns: str, memory_id: str, now: float) -> Memory:
    """The memory as it stands. Raises NotFound."""
    row = connection.execute(
        f"SELECT {COLUMNS} FROM memories WHERE ns = ? AND id = ? AND {IS_LIVE}", (ns, memory_id, now)
    ).fetchone()
    if row is None:
        raise not_found(ns, memory_id)
    return memory(row)


def not_found(ns: str, memory_id: str) -> NotFound:
    """The error for a memory that does not exist."""
    return NotFound(f"no memory {memory_id!r} in namespace {ns!r}", ns=ns, id=memory_id)


def memory(row: tuple[Any, ...]) -> Memory:
    """A row of COLUMNS as it is answered."""
    (
        memory_id,
        ns,
        kind,
        tier,
        importance,
        access_count,
        created_at,
        updated_at,
        last_accessed_at,
        at,
        version,
        sequence,
        parent_id,
        expires_at,
        speaker,
        tags,
        metadata,
        content,
    ) = row
    return Memory(
        id=memory_id,
        ns=ns,
        content=content,
        type=kind,
        tier=tier,
        importance=importance,
        access_count=access_count,
        created_at=created_at,
        updated_at=updated_at,
        last_accessed_at=last_accessed_at,
        at=at,
        version=version,
        sequence=sequence,
        tags=_decode_tags(tags),
        metadata=unpack(metadata),
        parent_id=parent_id,
        expires_at=expires_at,
        speaker=speaker,
    )


def tags_of(text: str) -> list[str]:
    """The tags of a column `tags`."""
    return _decode_tags(text)


def bytes_of(row: tuple[Any, ...]) -> int:
    """Bytes that a row of COLUMNS takes in a reply, from above."""
    texts = sum(len(value.encode()) for value in row if isinstance(value, str))
    return OVERHEAD_BYTES + texts + len(row[-2])


class Page(Generic[T]):
    """Collects what a reply can carry: at most `limit` items and, past the first one, at most `page_bytes`."""

    def __init__(self, limit: int, page_bytes: int) -> None:
        self.items: list[T] = []
        self._limit = limit
        self._left_bytes = page_bytes

    def has_room_for(self, item_bytes: int) -> bool:
        """Whether one more item of that size fits."""
        return not self.items or (len(self.items) < self._limit and item_bytes <= self._left_bytes)

    def add(self, item: T, item_bytes: int) -> None:
        """Take an item in."""
        self.items.append(item)
        self._left_bytes -= item_bytes


def by_sequence(connection: sqlite3.Connection, sequences: Iterable[int], page_bytes: int, limit: int) -> Page[Memory]:
    """The memories at these places, in that order, as far as a page holds them."""
    page: Page[Memory] = Page(limit, page_bytes)
    for sequence in sequences:
        row = connection.execute(f"SELECT {COLUMNS} FROM memories WHERE sequence = ?", (sequence,)).fetchone()
        size_bytes = bytes_of(row)
        if not page.has_room_for(size_bytes):
            break
        page.add(memory(row), size_bytes)
    return page
