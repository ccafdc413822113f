"""The store of dead letters: requests that no attempt could finish, kept with their bodies until redriven or purged."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from schemas import catalog, subjects
from schemas.bodies.control import DeadLetter
from schemas.envelope import Headers, Message

_SCHEMA: Final = """
create table if not exists dead_letters (
    id text primary key, at real not null, subject text not null, letter blob not null,
    headers blob not null, encoding text not null, body blob not null
);
create index if not exists dead_letters_by_time on dead_letters (at);
"""


class Stored(msgspec.Struct, frozen=True):
    """A dead letter with what is needed to send it again; `body` is in `encoding` ("msgpack" or "json")."""

    letter: DeadLetter
    headers: dict[str, Any]
    encoding: str
    body: bytes


class DeadLetters:
    """A SQLite file behind a lock; every method blocks on the disk and belongs in a thread. Raises sqlite3.Error.

    `count` is how many there are.
    """

    def __init__(self, path: Path, *, max_count: int, max_age_s: float, clock: Callable[[], float] = time.time) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # What people ask is private.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self._max_count = max_count
        self._max_age_s = max_age_s
        self._clock = clock
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._connection.execute("pragma journal_mode = wal")
        self._connection.executescript(_SCHEMA)
        self.count = self._counted()

    def add(self, batch: list[tuple[DeadLetter, Message]]) -> None:
        """Keep some, then let go of what is too old or too many."""
        rows = [
            (
                letter.id,
                letter.at,
                letter.subject,
                msgspec.msgpack.encode(letter),
                msgspec.msgpack.encode(_without_token(message.headers)),
                message.encoding,
                b"" if is_secret(letter.subject) else bytes(message.body_bytes()),
            )
            for letter, message in batch
        ]
        with self._lock, self._connection:
            self._connection.execute("begin")
            self._connection.executemany("insert or replace into dead_letters values (?, ?, ?, ?, ?, ?, ?)", rows)
            self._connection.execute("delete from dead_letters where at < ?", (self._clock() - self._max_age_s,))
            self._connection.execute(
                "delete from dead_letters where id in"
                " (select id from dead_letters order by at desc, id limit -1 offset ?)",
                (self._max_count,),
            )
            self.count = self._counted()

    def newest(self, pattern: str, limit: int, before_at: float | None) -> tuple[list[DeadLetter], int]:
        """The newest that match, and how many match in all."""
        matching = [letter for letter in self._letters(before_at) if subjects.matches(pattern, letter.subject)]
        return matching[:limit], len(matching)

    def get(self, id: str) -> Stored | None:
        """One with its body."""
        with self._lock:
            row = self._connection.execute(
                "select letter, headers, encoding, body from dead_letters where id = ?", (id,)
            ).fetchone()
        if row is None:
            return None
        letter = msgspec.msgpack.decode(row[0], type=DeadLetter)
        return Stored(letter, msgspec.msgpack.decode(row[1]), row[2], row[3])

    def mark_redriven(self, letter: DeadLetter) -> None:
        """Note that one was sent again with success."""
        marked = msgspec.structs.replace(letter, redriven_at=self._clock())
        with self._lock:
            self._connection.execute(
                "update dead_letters set letter = ? where id = ?", (msgspec.msgpack.encode(marked), letter.id)
            )

    def purge(self, pattern: str, id: str | None, older_than_s: float) -> int:
        """Delete what matches all three; returns how many went."""
        until = self._clock() - older_than_s
        doomed = [
            (letter.id,)
            for letter in self._letters(None)
            if subjects.matches(pattern, letter.subject) and letter.at <= until and id in (None, letter.id)
        ]
        with self._lock, self._connection:
            self._connection.execute("begin")
            self._connection.executemany("delete from dead_letters where id = ?", doomed)
            self.count = self._counted()
        return len(doomed)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def _counted(self) -> int:
        (count,) = self._connection.execute("select count(*) from dead_letters").fetchone()
        return int(count)

    def _letters(self, before_at: float | None) -> list[DeadLetter]:
        with self._lock:
            rows = self._connection.execute(
                "select letter from dead_letters where ? is null or at < ? order by at desc, id", (before_at, before_at)
            ).fetchall()
        return [msgspec.msgpack.decode(row[0], type=DeadLetter) for row in rows]


def is_secret(subject: str) -> bool:
    """True for a subject whose bodies hold passwords or tokens: they are not kept, nor can they be sent again."""
    operation = catalog.lookup(subject)
    return operation is not None and operation.is_secret


def _without_token(headers: Headers | None) -> Headers:
    return {name: value for name, value in (headers or {}).items() if name != "token"}
