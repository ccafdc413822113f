"""Makes of a backup the database that takes the place of the present one: checked, migrated, and fit to follow it.

A restored database goes on where the present one was, as far as others remember it: an entry's version never fits a
content it was not seen with, ids that grow are not given twice, and the vector index is told what changed.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec

from bus import sqlite_copy
from schemas.errors import NotFound, Unprocessable
from workers.memory.facts import call_off_forgettings
from workers.memory.migrations import Migration, migrate, version_of
from workers.memory.sqlite_errors import UnusableDatabase
from workers.memory.upkeep.backup import first_damage
from workers.memory.upkeep.reporting import Report
from workers.memory.vectors.agreement import MODEL_KEY, forget_stray_unencodable

# First bytes of every SQLite database (https://sqlite.org/fileformat2.html, section 1.3).
_MAGIC: Final = b"SQLite format 3\x00"

# Tables whose rows callers change by compare-and-set, with the columns of their key.
_VERSIONED: Final = {"kv": "key", "memories": "id", "knowledge_base": "doc_id", "contexts": "context_id"}

# Who may sign in, what they hold, and whose names are nobody's. Going back in these would revive passwords and tokens
# that were revoked since, and free the names of users deleted since.
_SIGN_IN: Final = ("users", "token_families", "tokens", "sign_ins", "deleted_users")

# Who was a user when the backup was made and is none now, or another one under the same name.
_GONE: Final = (
    "SELECT name FROM present.deleted_users UNION SELECT name FROM main.users AS mine WHERE NOT EXISTS"
    " (SELECT 1 FROM present.users AS other WHERE other.name = mine.name AND other.created_at = mine.created_at)"
)

# The same chunk in both databases, in all that its vector is made of: that can stay.
_IS_SAME_CHUNK: Final = (
    "mine.id = other.id AND mine.ns = other.ns AND mine.kind = other.kind AND mine.text = other.text"
    " AND mine.speaker IS other.speaker AND mine.at = other.at"
)

# An encoder that no vector is of: the index is emptied and filled anew.
_UNKNOWN_MODEL: Final = "unknown"


def stage(backup: Path, staged: Path, migrations: tuple[Migration, ...], report: Report) -> None:
    """Copy `backup` to `staged` and bring it to the newest schema. `staged` is scratch: it need not survive a crash.

    Raises NotFound, Unprocessable for what is no backup of this memory, OSError and sqlite3.Error from the disk.
    """
    _check_file(backup)
    sqlite_copy.discard(staged)
    sqlite_copy.begin(staged).replace(staged)
    try:
        with closing(_opened_to_read(backup)) as source:
            try:
                _check_content(source, backup, migrations, report)
            except sqlite3.DatabaseError as error:
                raise _useless(backup, str(error)) from error
            sqlite_copy.copy_into(source, staged, on_pages=lambda done, total: report("read", done, total))
        with closing(_scratch(staged)) as connection:
            migrate(connection, staged, migrations)
            _check_tables(connection, backup, migrations)
    except BaseException:
        sqlite_copy.discard(staged)
        raise


def reconcile(staged: Path, present: Path | None) -> list[str]:
    """Fit the staged database to what `present` was, which must have the same schema; None where that cannot be read.

    Returns the namespaces of both.
    """
    with closing(_scratch(staged)) as connection:
        if present is not None:
            connection.execute("ATTACH ? AS present", (present.absolute().as_uri(),))
        connection.execute("BEGIN")
        _forget_pending(connection)
        if present is not None:
            _keep_counters(connection)
            _keep_versions(connection)
            _keep_vectors(connection)
            _keep_sign_in(connection)
        else:
            _distrust_vectors(connection)
        # The orders that would have these keys forgotten may be forgotten themselves.
        forget_stray_unencodable(connection)
        # What the backup brings back is to stay, also where somebody was just having it forgotten.
        call_off_forgettings(connection)
        connection.execute(
            "INSERT INTO outbox (chunk_id, action)"
            " SELECT id, 'embed' FROM chunks WHERE vector_model IS NULL ORDER BY id"
        )
        schemas = ("main", "present") if present is not None else ("main",)
        namespaces = {ns for schema in schemas for ns in _namespaces(connection, schema)}
        connection.execute("COMMIT")
        if present is not None:
            _use_page_size(connection)
    return sorted(namespaces)


def _check_file(backup: Path) -> None:
    try:
        with backup.open("rb") as file:
            head = file.read(len(_MAGIC))
    except FileNotFoundError:
        raise NotFound(f"there is no backup {backup}", path=str(backup)) from None
    except OSError as error:
        raise Unprocessable(f"{backup} cannot be read: {error.strerror}", path=str(backup)) from error
    if head != _MAGIC:
        raise _useless(backup, "it is no SQLite database")


def _check_content(source: sqlite3.Connection, backup: Path, migrations: tuple[Migration, ...], report: Report) -> None:
    try:
        version = version_of(source, backup)
    except UnusableDatabase:
        raise _useless(backup, "it is a database of another program") from None
    newest = migrations[-1].number
    if not 0 < version <= newest:
        why = "it is empty" if not version else f"it has schema version {version}, this program knows up to {newest}"
        raise _useless(backup, why)
    damage = first_damage(source, report)
    if damage is not None:
        raise _useless(backup, f"it is damaged: {damage}")


def _check_tables(connection: sqlite3.Connection, backup: Path, migrations: tuple[Migration, ...]) -> None:
    """A database that only claims our schema version must not get into the place of a good one."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        migrate(fresh, backup, migrations)
        expected = _columns(fresh)
    found = _columns(connection)
    missing = sorted(f"{table}.{column}" for table, column in expected - found)
    if missing:
        raise _useless(backup, f"it lacks {', '.join(missing[:5])}")


def _columns(connection: sqlite3.Connection) -> set[tuple[str, str]]:
    return set(
        connection.execute(
            "SELECT tables.name, columns.name FROM sqlite_master AS tables, pragma_table_info(tables.name) AS columns"
            " WHERE tables.type = 'table' AND tables.name NOT LIKE 'sqlite_%'"
        )
    )


def _useless(backup: Path, why: str) -> Unprocessable:
    return Unprocessable(f"{backup} is no backup of this memory: {why}; nothing was changed", path=str(backup))


def _opened_to_read(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)


def _scratch(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path.absolute().as_uri(), uri=True, isolation_level=None)
    # After a crash the file is thrown away, so nothing is synced; the copy that takes its place is.
    connection.execute("PRAGMA synchronous = OFF")
    return connection


def _forget_pending(connection: sqlite3.Connection) -> None:
    """What waited when the backup was made was done long ago."""
    connection.execute("DELETE FROM outbox")
    connection.execute("DELETE FROM events_outbox")


def _keep_counters(connection: sqlite3.Connection) -> None:
    """Ids that only grow go on behind those of the present database; its events that wait are still to be published."""
    connection.execute(
        "UPDATE main.sqlite_sequence SET seq = max(seq, coalesce("
        "(SELECT other.seq FROM present.sqlite_sequence AS other WHERE other.name = main.sqlite_sequence.name), 0))"
    )
    connection.execute(
        "INSERT INTO main.sqlite_sequence (name, seq) SELECT name, seq FROM present.sqlite_sequence"
        " WHERE name NOT IN (SELECT name FROM main.sqlite_sequence)"
    )
    connection.execute(
        "INSERT INTO main.events_outbox (sequence, subject, body)"
        " SELECT sequence, subject, body FROM present.events_outbox ORDER BY sequence"
    )


def _keep_versions(connection: sqlite3.Connection) -> None:
    """Whoever saw a version in the present database must not find it fitting another content in the restored one."""
    for table, key in _VERSIONED.items():
        other = f"FROM present.{table} AS other WHERE other.ns = mine.ns AND other.{key} = mine.{key}"
        connection.execute(
            f"UPDATE main.{table} AS mine SET version = (SELECT other.version + 1 {other})"
            f" WHERE EXISTS (SELECT 1 {other} AND (other.version > mine.version"
            " OR (other.version = mine.version AND other.updated_at <> mine.updated_at)))"
        )
    connection.execute(
        "INSERT INTO main.kv_floors (ns, version)"
        " SELECT ns, max(version) FROM"
        " (SELECT ns, version FROM present.kv_floors UNION ALL SELECT ns, version FROM present.kv)"
        " WHERE true GROUP BY ns ON CONFLICT (ns) DO UPDATE SET version = max(version, excluded.version)"
    )
    connection.execute(
        "INSERT INTO main.version_floors (ns, kind, version)"
        " SELECT ns, kind, max(version) FROM (SELECT ns, kind, version FROM present.version_floors"
        " UNION ALL SELECT ns, 'memory', version FROM present.memories"
        " UNION ALL SELECT ns, 'document', version FROM present.knowledge_base"
        " UNION ALL SELECT ns, 'context', version FROM present.contexts)"
        " WHERE true GROUP BY ns, kind ON CONFLICT (ns, kind) DO UPDATE SET version = max(version, excluded.version)"
    )


def _keep_vectors(connection: sqlite3.Connection) -> None:
    """Order the index to drop the vectors of chunks that are not, or no longer, what they were."""
    # The index is the present one's, and so is what the service knows of it.
    connection.execute("DELETE FROM main.service_state")
    connection.execute("INSERT INTO main.service_state SELECT * FROM present.service_state")
    connection.execute(
        "INSERT INTO main.outbox (chunk_id, action)"
        " SELECT chunk_id, 'remove' FROM present.outbox WHERE action = 'remove'"
        " UNION SELECT other.id, 'remove' FROM present.chunks AS other"
        f" WHERE NOT EXISTS (SELECT 1 FROM main.chunks AS mine WHERE {_IS_SAME_CHUNK})"
    )
    connection.execute(
        "UPDATE main.chunks AS mine SET vector_model ="
        f" (SELECT other.vector_model FROM present.chunks AS other WHERE {_IS_SAME_CHUNK})"
    )


def _distrust_vectors(connection: sqlite3.Connection) -> None:
    """What the index holds cannot be told from what it should hold."""
    connection.execute("UPDATE chunks SET vector_model = NULL")
    connection.execute(
        "INSERT INTO service_state (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (MODEL_KEY, msgspec.msgpack.encode(_UNKNOWN_MODEL)),
    )


def _keep_sign_in(connection: sqlite3.Connection) -> None:
    """Users and tokens stay as they are; only where there never was anybody do those of the backup come."""
    known = connection.execute("SELECT 1 FROM present.users UNION ALL SELECT 1 FROM present.deleted_users LIMIT 1")
    if known.fetchone() is None:
        return
    for table in ("trust_scores", "trust_outcomes"):
        connection.execute(f"DELETE FROM main.{table} WHERE user_id IN ({_GONE})")
    for table in _SIGN_IN:
        connection.execute(f"DELETE FROM main.{table}")
        connection.execute(f"INSERT INTO main.{table} SELECT * FROM present.{table}")


def _namespaces(connection: sqlite3.Connection, schema: str) -> list[str]:
    tables = [
        table
        for (table,) in connection.execute(
            f"SELECT tables.name FROM {schema}.sqlite_master AS tables, pragma_table_info(tables.name, '{schema}')"
            " AS columns WHERE tables.type = 'table' AND columns.name = 'ns'"
        )
    ]
    return [ns for table in tables for (ns,) in connection.execute(f"SELECT DISTINCT ns FROM {schema}.{table}")]


def _use_page_size(connection: sqlite3.Connection) -> None:
    """SQLite copies into a database with a log only pages of the size it has."""
    (present,) = connection.execute("PRAGMA present.page_size").fetchone()
    (mine,) = connection.execute("PRAGMA main.page_size").fetchone()
    connection.execute("DETACH present")
    if mine != present:
        connection.execute(f"PRAGMA page_size = {present}")
        connection.execute("VACUUM")


def sync_staged(staged: Path) -> None:
    """Make a staged database durable, before it becomes the real one by its name alone."""
    sqlite_copy.sync(staged)
    os.chmod(staged, 0o600)
