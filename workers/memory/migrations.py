"""Brings a database file to the newest schema: numbered, forward only, with a backup before an existing one changes.

A migration is a file `schema/NNNN_what_it_brings.sql`; a file once released is never edited.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from bus.sqlite_copy import copy_database
from workers.memory.sqlite_errors import UnusableDatabase, how_to_restore, refusal

SCHEMA_FOLDER: Final = Path(__file__).parent / "schema"

# Largest file checked page by page at start, bytes: 200 MB take 0.12 s when cached, and start-up has a few seconds. A
# larger one is checked while it serves.
QUICK_CHECK_MAX_BYTES: Final = 512 * 1024 * 1024


class Migration(NamedTuple):
    """One step of the schema; `number` is the version it leads to."""

    number: int
    name: str
    sql: str


def load_migrations() -> tuple[Migration, ...]:
    """The steps this program knows, in order."""
    steps = []
    for file in sorted(SCHEMA_FOLDER.glob("*.sql")):
        number, _, name = file.stem.partition("_")
        steps.append(Migration(int(number), name, file.read_text(encoding="utf-8")))
    return tuple(steps)


def prepare(connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration]) -> None:
    """Check the file behind `connection`, unless it is too large, and bring it to the last of `migrations`.

    Raises UnusableDatabase, with what to do, for a file that is damaged, not ours, not writable or too new.
    """
    try:
        _check_pages(connection, path)
        version = version_of(connection, path)
        newest = migrations[-1].number
        if version > newest:
            raise UnusableDatabase(
                f"{path} has schema version {version}, this program knows versions up to {newest}: start the program"
                f" that wrote it, or go back to an older database.\n{how_to_restore(path)}"
            )
        _use_write_ahead_log(connection, path)
        if 0 < version < newest:
            _back_up_before_migrating(connection, path, version)
        migrate(connection, path, migrations)
    except sqlite3.Error as error:
        raise refusal(error, path) from error


def migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration]) -> None:
    """Take the steps of `migrations` that the file has not taken yet, each in a transaction of its own."""
    for migration in migrations:
        _apply(connection, path, migration)


def _back_up_before_migrating(connection: sqlite3.Connection, path: Path, version: int) -> None:
    target = path.with_name(f"{path.name}.v{version}-backup")
    try:
        copy_database(connection, target)
    except (OSError, sqlite3.Error) as error:
        raise UnusableDatabase(
            f"{path} has to be migrated from schema version {version}, and no backup could be written to {target}"
            f" ({error}): make room there and start again; nothing was changed"
        ) from error


def _check_pages(connection: sqlite3.Connection, path: Path) -> None:
    if not is_checked_at_start(path):
        return
    damage = find_damage(connection)
    if damage:
        raise UnusableDatabase(f"{path} is damaged ({damage}).\n{how_to_restore(path)}")


def is_checked_at_start(path: Path) -> bool:
    """Whether `prepare` reads every page of the file; False for one that would keep the start waiting."""
    return path.stat().st_size <= QUICK_CHECK_MAX_BYTES


def find_damage(connection: sqlite3.Connection) -> str:
    """The first thing that is broken in the file, in SQLite's words, on one line; "" where nothing is. Reads every page."""
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    return "" if found == "ok" else " ".join(str(found).split())


def _use_write_ahead_log(connection: sqlite3.Connection, path: Path) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise UnusableDatabase(
            f"{path} cannot have a write-ahead log (journal mode stays {mode!r}): put it on a local disk, not on a"
            " network share, with memory.path"
        )
    # The log shrinks back to this after a large write instead of keeping its largest size for ever.
    connection.execute("PRAGMA journal_size_limit = 67108864")


def version_of(connection: sqlite3.Connection, path: Path) -> int:
    """The schema version of a database, 0 for an empty one. Raises UnusableDatabase for one that is not ours."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        return 0
    if "schema_version" not in tables:
        raise UnusableDatabase(
            f"{path} is an SQLite database of another program (it has no table schema_version): name another file with"
            " memory.path"
        )
    (version,) = connection.execute("SELECT max(version) FROM schema_version").fetchone()
    return int(version or 0)


def _apply(connection: sqlite3.Connection, path: Path, migration: Migration) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Read again under the lock: another process may have done this step in between.
        if version_of(connection, path) < migration.number:
            for statement in _statements(migration.sql):
                connection.execute(statement)
            connection.execute(
                "INSERT INTO schema_version (version, name, applied_at) VALUES (?, ?, ?)",
                (migration.number, migration.name, time.time()),
            )
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _statements(sql: str) -> Iterator[str]:
    """The statements of a script; `executescript` would commit between them."""
    statement = ""
    for line in sql.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
