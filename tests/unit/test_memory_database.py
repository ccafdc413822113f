"""The database file: group commit, failures, migrations, and refusals at start."""

from __future__ import annotations

import asyncio
import logging
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from bus.metrics import Figures
from schemas.bodies.memory import KvGet
from schemas.bodies.upkeep import MemoryBackup, MemoryRestore
from schemas.envelope import new_id
from schemas.errors import Conflict, Internal
from schemas.metrics import MEMORY_COMMIT_SECONDS, MEMORY_COMMITS, MEMORY_WRITES, MEMORY_WRITES_WAITING
from workers.memory import database as database_module
from workers.memory import kv, migrations
from workers.memory.connection import Connection
from workers.memory.database import HERE_MAX_BYTES, MAX_BATCH, Database
from workers.memory.migrations import Migration, load_migrations
from workers.memory.outcome import Event, Outcome, changed
from workers.memory.records import Records
from workers.memory.sqlite_errors import UnusableDatabase
from workers.memory.upkeep.backup import Backups
from workers.memory.upkeep.restore import Restores
from workers.memory.values import pack, unpack

# Half a minute at the least, and no more than some, so that a thread which nobody ends does end.
LONG_QUERY = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 300000000) SELECT count(*) FROM n"

PROBE = Migration(
    load_migrations()[-1].number + 1,
    "probe",
    "CREATE TABLE probe (\n  x INTEGER\n);\n-- a trigger; with semicolons\n"
    + ("CREATE TRIGGER t AFTER INSERT ON probe BEGIN\n  SELECT 1;\n  SELECT 2;\nEND;\n"),
)


@asynccontextmanager
async def opened(
    path: Path,
    *,
    committed: list[Event] | None = None,
    migrations: Sequence[Migration] | None = None,
    figures: Figures | None = None,
) -> AsyncIterator[Database]:
    """The database at `path`; `committed` gathers what it reports."""
    heard = [] if committed is None else committed
    database = await Database.open(
        path, readers=2, now=lambda: 100.0, on_committed=heard.extend, migrations=migrations, figures=figures
    )
    try:
        yield database
    finally:
        await database.close()


def insert(key: str, *, failure: Exception | None = None) -> Any:
    """A write that stores a fact and, with `failure`, raises afterwards."""

    def write(connection: sqlite3.Connection, now: float) -> Outcome:
        connection.execute(
            "INSERT INTO facts (ns, key, value, category, source, created_at, updated_at)"
            " VALUES ('n', ?, 'v', 'c', 's', ?, ?)",
            (key, now, now),
        )
        if failure is not None:
            raise failure
        return Outcome(key, [changed("n", key, "remember")])

    return write


def stored_keys(path: Path) -> list[str]:
    """The facts in the file, read by a connection of our own."""
    with closing(sqlite3.connect(path)) as connection:
        return [key for (key,) in connection.execute("SELECT key FROM facts ORDER BY key")]


def damage(path: Path, table: str) -> None:
    """Overwrite the page at which a table begins, in a file that nobody has open."""
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * page_bytes)
        file.write(b"\xff" * page_bytes)


def names(folder: Path) -> list[str]:
    """The files in `folder`."""
    return [entry.name for entry in folder.iterdir()]


async def test_a_write_is_on_file_before_it_is_answered(tmp_path: Path) -> None:
    """A second connection sees it the moment the first caller has its reply."""
    path = tmp_path / "memory.db"
    async with opened(path) as database:
        assert await database.write(insert("a")) == "a"

        assert stored_keys(path) == ["a"]


async def test_commits_are_counted_and_what_keeps_the_disk_from_taking_writes_is_said_until_it_is_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A write that is refused for itself is no problem of the database; one that nobody could do better is."""
    caplog.set_level(logging.INFO, logger="olympus.memory")
    figures = Figures()
    async with opened(tmp_path / "memory.db", figures=figures) as database:
        await asyncio.gather(*(database.write(insert(key)) for key in "abc"))
        with pytest.raises(Conflict):
            await database.write(insert("d", failure=Conflict("no")))
        told = figures.series()
        assert told[MEMORY_WRITES.name][0].value == 4
        assert told[MEMORY_COMMITS.name][0].value == sum(told[MEMORY_COMMIT_SECONDS.name][0].counts) < 4
        assert told[MEMORY_WRITES_WAITING.name][0].value == 0
        assert database.problem == ""

        await database.exclusively(lambda connection: connection.execute("PRAGMA query_only = ON").close())
        for _ in range(2):
            with pytest.raises(Internal):
                await database.write(insert("e"))
        assert "check the permissions" in database.problem
        assert figures.series()[MEMORY_WRITES.name][0].value == 4

        await database.exclusively(lambda connection: connection.execute("PRAGMA query_only = OFF").close())
        await database.write(insert("e"))
        assert database.problem == ""
    told_in_log = [getattr(record, "action", "") for record in caplog.records]
    assert told_in_log == ["memory.database.failed", "memory.database.recovered"]


async def test_a_failing_write_leaves_its_neighbours_in_the_batch_alone(tmp_path: Path) -> None:
    """Each write of a batch stands or falls by itself, and only committed ones are reported."""
    committed: list[Event] = []
    async with opened(tmp_path / "memory.db", committed=committed) as database:
        answers = await asyncio.gather(
            database.write(insert("a")),
            database.write(insert("b", failure=Conflict("no", version=3))),
            database.write(insert("c", failure=ZeroDivisionError())),
            database.write(insert("a")),
            database.write(insert("d")),
            return_exceptions=True,
        )

    assert [type(answer) for answer in answers] == [str, Conflict, ZeroDivisionError, Internal, str]
    assert stored_keys(tmp_path / "memory.db") == ["a", "d"]
    assert [event.body.key for event in committed] == ["a", "d"]


async def test_writes_that_wait_together_share_one_commit(tmp_path: Path) -> None:
    """A hundred callers at once cost a handful of transactions, not a hundred."""
    async with opened(tmp_path / "memory.db") as database:
        begun: list[str] = []
        await database._writer.set_trace_callback(lambda sql: begun.append(sql) if sql == "COMMIT" else None)

        await asyncio.gather(*(database.write(insert(f"k{number}")) for number in range(MAX_BATCH)))

        assert len(begun) <= 2


async def test_a_commit_that_fails_fails_every_waiter_and_the_next_write_works(tmp_path: Path) -> None:
    """Nobody in the batch gets an answer for what the disk did not take."""
    committed: list[Event] = []

    def break_commit(connection: sqlite3.Connection, now: float) -> Outcome:
        # A foreign key that is only checked by COMMIT stands in for a disk that fails there.
        connection.execute("CREATE TABLE parents (id INTEGER PRIMARY KEY)")
        connection.execute("CREATE TABLE kids (id INTEGER REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED)")
        connection.execute("INSERT INTO kids VALUES (1)")
        return Outcome(None, [])

    async with opened(tmp_path / "memory.db", committed=committed) as database:
        answers = await asyncio.gather(
            database.write(insert("a")),
            database.write(break_commit),
            database.write(insert("b")),
            return_exceptions=True,
        )
        assert [type(answer) for answer in answers] == [Internal, Internal, Internal]
        assert committed == []

        assert await database.write(insert("c")) == "c"

    assert stored_keys(tmp_path / "memory.db") == ["c"]


async def test_a_full_disk_is_said_plainly_and_the_store_stays_usable(tmp_path: Path) -> None:
    """The caller learns that nothing was written; with room again, writing goes on."""
    path = tmp_path / "memory.db"

    def fill(connection: sqlite3.Connection, now: float) -> Outcome:
        connection.execute("INSERT INTO kv VALUES ('n', 'big', 1, 0, 0, NULL, zeroblob(5000000))")
        return Outcome("big", [])

    async with opened(path) as database:
        await database._writer.run(lambda connection: connection.execute("PRAGMA max_page_count = 100").fetchall())
        with pytest.raises(Internal, match=r"nothing was written: the disk that holds memory\.db is full"):
            await database.write(fill)
        assert await database.write(insert("small")) == "small"
        await database._writer.run(lambda connection: connection.execute("PRAGMA max_page_count = 99999").fetchall())

        assert await database.write(fill) == "big"


async def test_a_lock_held_by_another_process_is_waited_for(tmp_path: Path) -> None:
    """SQLITE_BUSY is tried again until the other one has finished."""
    path = tmp_path / "memory.db"
    attempts = 0
    tried_again = asyncio.Event()
    loop = asyncio.get_running_loop()

    def count_attempts(sql: str) -> None:
        nonlocal attempts
        attempts += sql == "BEGIN IMMEDIATE"
        if attempts == 2:
            loop.call_soon_threadsafe(tried_again.set)

    async with opened(path) as database:
        await database._writer.run(lambda connection: connection.execute("PRAGMA busy_timeout = 0").fetchall())
        await database._writer.set_trace_callback(count_attempts)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            write = asyncio.create_task(database.write(insert("a")))
            await asyncio.wait_for(tried_again.wait(), 10)
            assert not write.done()
            other.execute("ROLLBACK")

        assert await asyncio.wait_for(write, 20) == "a"


async def test_a_caller_that_gives_up_in_the_queue_takes_its_write_back(tmp_path: Path) -> None:
    """A write cancelled before its batch began is not done."""
    path = tmp_path / "memory.db"
    async with opened(path) as database:
        cancelled = asyncio.create_task(database.write(insert("a")))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        await database.write(insert("b"))

    assert stored_keys(path) == ["b"]


async def test_closing_finishes_what_was_handed_in(tmp_path: Path) -> None:
    """Writes in the queue are committed and answered before the file closes; later ones are refused."""
    path = tmp_path / "memory.db"
    async with opened(path) as database:
        writes = [asyncio.create_task(database.write(insert(f"k{number:03}"))) for number in range(300)]
        await asyncio.sleep(0)

    assert len(await asyncio.gather(*writes)) == len(stored_keys(path)) == 300
    with pytest.raises(Internal, match="stopping"):
        await database.write(insert("late"))


async def test_readers_cannot_write(tmp_path: Path) -> None:
    """A statement that would write on a reader is refused by SQLite itself."""
    async with opened(tmp_path / "memory.db") as database:
        with pytest.raises(Internal, match="cannot be written"):
            await database.read(lambda connection: connection.execute("DELETE FROM facts"))


async def test_every_connection_syncs_at_commit(tmp_path: Path) -> None:
    """WAL with synchronous FULL (2) is what makes `ok` mean `on disk`."""
    connection = Connection(tmp_path / "memory.db", cache_kib=100)
    async with opened(tmp_path / "memory.db"):
        await connection
        pragmas = await connection.run(
            lambda raw: [
                raw.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous", "foreign_keys")
            ]
        )
        await connection.close()

    assert pragmas == ["wal", 2, 1]


def test_migrations_are_numbered_without_gaps() -> None:
    """The file names say the version each step leads to."""
    assert [step.number for step in load_migrations()] == list(range(1, len(load_migrations()) + 1))


async def test_file_and_folder_are_for_their_owner_alone(tmp_path: Path) -> None:
    """What people tell a memory is private."""
    path = tmp_path / "new" / "memory.db"
    async with opened(path) as database:
        await database.write(insert("a"))

        modes = [entry.stat().st_mode & 0o777 for entry in (path.parent, path, path.with_name("memory.db-wal"))]

    assert modes == [0o700, 0o600, 0o600]


async def test_an_existing_database_is_backed_up_before_it_is_migrated(tmp_path: Path) -> None:
    """The old file stands beside the new one under its version, whole and by itself."""
    path = tmp_path / "memory.db"
    newest = load_migrations()[-1].number
    async with opened(path) as database:
        await database.write(insert("old"))

    async with opened(path, migrations=(*load_migrations(), PROBE)) as database:
        await database.write(insert("new"))

    backup = tmp_path / f"memory.db.v{newest}-backup"
    assert stored_keys(backup) == ["old"]
    assert stored_keys(path) == ["new", "old"]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT max(version) FROM schema_version").fetchone() == (newest + 1,)
        connection.execute("INSERT INTO probe VALUES (1)")
    assert not [name for name in names(tmp_path) if "partial" in name]


async def test_a_new_database_is_made_without_a_backup(tmp_path: Path) -> None:
    """There is nothing to back up in a file that did not exist."""
    async with opened(tmp_path / "memory.db", migrations=(*load_migrations(), PROBE)):
        assert not [name for name in names(tmp_path) if "backup" in name]


async def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    """All of a step or none of it; the old program still opens the file."""
    path = tmp_path / "memory.db"
    broken = Migration(PROBE.number, "broken", "CREATE TABLE half (x);\nCREATE TABLE facts (x);\n")
    async with opened(path) as database:
        await database.write(insert("a"))

    with pytest.raises(UnusableDatabase, match="already exists"):
        async with opened(path, migrations=(*load_migrations(), broken)):
            pass

    async with opened(path) as database:
        tables = await database.read(lambda raw: raw.execute("SELECT name FROM sqlite_master").fetchall())
    assert ("half",) not in tables


async def test_a_database_newer_than_the_program_is_refused_with_instructions(tmp_path: Path) -> None:
    """A program that does not know the schema must not touch it."""
    path = tmp_path / "memory.db"
    newest = PROBE.number - 1
    async with opened(path, migrations=(*load_migrations(), PROBE)):
        pass
    shutil.copy(path, tmp_path / "memory.db.v1-backup")

    with pytest.raises(
        UnusableDatabase, match=f"version {newest + 1}, this program knows versions up to {newest}"
    ) as caught:
        async with opened(path):
            pass

    assert f"copy {tmp_path / 'memory.db.v1-backup'} to {path}" in str(caught.value)


async def test_a_file_that_is_no_database_is_refused_with_instructions(tmp_path: Path) -> None:
    """Text where the database should be: said at start, and the file is left as it was."""
    path = tmp_path / "memory.db"
    path.write_text("this is not a database, " * 100)

    with pytest.raises(UnusableDatabase, match=r"damaged or not a database.*\nTo restore: stop the service"):
        async with opened(path):
            pass

    assert path.read_text().startswith("this is not a database")


async def test_a_damaged_database_is_refused_with_instructions(tmp_path: Path) -> None:
    """Pages overwritten in the middle of the file are found at start."""
    path = tmp_path / "memory.db"
    async with opened(path) as database:
        await asyncio.gather(*(database.write(insert(f"k{number}" * 20)) for number in range(500)))
    content = bytearray(path.read_bytes())
    content[4096 * 3 : 4096 * 20] = b"\xff" * (4096 * 17)
    path.write_bytes(content)

    with pytest.raises(UnusableDatabase, match="is damaged") as caught:
        async with opened(path):
            pass

    assert "To restore" in str(caught.value)


async def test_damage_in_a_file_too_large_for_the_start_is_told_while_it_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once, how to restore with it, and a write that succeeds elsewhere in the file does not take it back."""
    path = tmp_path / "memory.db"
    async with opened(path):
        pass
    damage(path, "kv")
    monkeypatch.setattr(migrations, "QUICK_CHECK_MAX_BYTES", 0)
    monkeypatch.setattr(database_module, "CHECK_AFTER_S", 0.0)

    with caplog.at_level(logging.ERROR, logger="olympus.memory"):
        async with opened(path) as database:
            assert database._checking is not None
            await asyncio.wait_for(asyncio.shield(database._checking), 10)
            assert database.problem.startswith("memory.db is damaged (")
            assert "olympus memory restore" in database.problem

            await database.write(insert("a"))
            assert "is damaged" in database.problem

    assert [getattr(record, "action", "") for record in caplog.records] == ["memory.database.damaged"]


async def test_a_sound_file_too_large_for_the_start_is_found_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check beside the work ends by itself and says nothing."""
    monkeypatch.setattr(migrations, "QUICK_CHECK_MAX_BYTES", -1)
    monkeypatch.setattr(database_module, "CHECK_AFTER_S", 0.0)
    async with opened(tmp_path / "memory.db") as database:
        assert database._checking is not None
        await asyncio.wait_for(asyncio.shield(database._checking), 10)

        assert database.problem == ""


async def test_closing_does_not_wait_for_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file takes it minutes, and a service has seconds to end."""
    began = asyncio.Event()
    loop = asyncio.get_running_loop()

    def check_long(connection: sqlite3.Connection) -> str:
        loop.call_soon_threadsafe(began.set)
        connection.execute(LONG_QUERY).fetchone()
        return ""

    monkeypatch.setattr(migrations, "QUICK_CHECK_MAX_BYTES", -1)
    monkeypatch.setattr(database_module, "CHECK_AFTER_S", 0.0)
    monkeypatch.setattr(database_module, "find_damage", check_long)
    async with asyncio.timeout(20), opened(tmp_path / "memory.db"):
        await began.wait()


@pytest.mark.parametrize("way", ["read", "read_here"])
async def test_damage_that_a_reading_meets_is_stays_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Not to its caller alone: the state of the service names it, whatever is written elsewhere."""
    path = tmp_path / "memory.db"
    async with opened(path):
        pass
    damage(path, "kv")
    monkeypatch.setattr(migrations, "QUICK_CHECK_MAX_BYTES", 0)
    async with opened(path) as database:
        assert database.problem == ""
        with pytest.raises(Internal, match="is damaged"):
            await getattr(database, way)(lambda connection: connection.execute("SELECT * FROM kv").fetchall())
        assert "is damaged" in database.problem

        await database.write(insert("a"))
        assert "is damaged" in database.problem


async def unheard(*_: Any) -> None:
    """Nobody listens to the progress."""


async def test_after_a_restore_no_damage_is_told_and_what_was_restored_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The damage is gone with the pages that had it; a check of them that was still going on says nothing either."""
    path = tmp_path / "memory.db"
    monkeypatch.setattr(migrations, "QUICK_CHECK_MAX_BYTES", 0)
    records = await Records.open(path, readers=2, on_committed=lambda _: None)
    await records.write(insert("a"))
    made = await Backups(records).backup(MemoryBackup(name="sound"), new_id(), unheard)
    await records.close()
    damage(path, "suggestions")

    records = await Records.open(path, readers=2, on_committed=lambda _: None)
    try:
        database = records.database
        with pytest.raises(Internal, match="is damaged"):
            await records.read(lambda connection: connection.execute("SELECT * FROM suggestions").fetchall())
        assert "is damaged" in database.problem
        before = database._checking
        monkeypatch.setattr(database_module, "CHECK_AFTER_S", 0.0)

        await Restores(records, []).restore(MemoryRestore(path=made.path), new_id(), unheard)

        assert database.problem == ""
        assert before is not None
        assert before.cancelled()
        assert database._checking is not None
        await asyncio.wait_for(asyncio.shield(database._checking), 10)
        assert database.problem == ""
        assert await records.read(lambda connection: connection.execute("SELECT key FROM facts").fetchall()) == [("a",)]
    finally:
        await records.close()


async def test_damage_in_what_was_restored_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a small file, which is checked at the start only otherwise."""
    monkeypatch.setattr(database_module, "CHECK_AFTER_S", 0.0)
    monkeypatch.setattr(database_module, "find_damage", lambda _: "page 7 is torn")
    async with opened(tmp_path / "memory.db") as database:
        assert database.problem == ""
        await database.replaced()

        assert database._checking is not None
        await asyncio.wait_for(asyncio.shield(database._checking), 10)
        assert "page 7 is torn" in database.problem


async def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    """Pointing memory.path at a foreign SQLite file adds no tables to it."""
    path = tmp_path / "memory.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")

    with pytest.raises(UnusableDatabase, match="another program"):
        async with opened(path):
            pass


async def test_a_path_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    """A folder where the file should be, or a file where the folder should be."""
    (tmp_path / "memory.db").mkdir()
    (tmp_path / "file").write_text("")

    for path in (tmp_path / "memory.db", tmp_path / "file" / "memory.db"):
        with pytest.raises(UnusableDatabase, match="cannot be opened for writing"):
            async with opened(path):
                pass


async def test_read_given_up_holds_up_no_other(tmp_path: Path) -> None:
    """Its thread goes on with it; the next read takes another, and later this one again."""
    began, may_end = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def read_long(connection: sqlite3.Connection) -> None:
        loop.call_soon_threadsafe(began.set)
        may_end.wait(20)

    async with opened(tmp_path / "m.db") as database:
        given_up = asyncio.create_task(database.read(read_long))
        await began.wait()
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        try:
            async with asyncio.timeout(10):
                assert await database.read(lambda connection: connection.execute("SELECT 1").fetchone()) == (1,)
        finally:
            may_end.set()
        async with asyncio.timeout(10):
            both = threading.Barrier(2)
            await asyncio.gather(*(database.read(lambda connection: both.wait(10)) for _ in range(2)))


async def test_reads_given_up_end_at_their_statement_and_leave_their_readers_to_others(tmp_path: Path) -> None:
    """As many as there are readers: the next one waits for none of them, and begins in no transaction of theirs."""
    began = asyncio.Queue[None]()
    loop = asyncio.get_running_loop()

    def read_long(connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN")
        loop.call_soon_threadsafe(began.put_nowait, None)
        connection.execute(LONG_QUERY).fetchone()

    async with opened(tmp_path / "m.db") as database:
        given_up = [asyncio.create_task(database.read(read_long)) for _ in range(2)]
        for _ in given_up:
            await began.get()
        for task in given_up:
            task.cancel()
        await asyncio.gather(*given_up, return_exceptions=True)

        async with asyncio.timeout(10):
            both = threading.Barrier(2)

            def state(connection: sqlite3.Connection) -> bool:
                both.wait(10)
                return connection.in_transaction

            assert await asyncio.gather(*(database.read(state) for _ in given_up)) == [False, False]
        assert database.problem == ""


@pytest.mark.parametrize("value_bytes", [HERE_MAX_BYTES // 2, HERE_MAX_BYTES * 2, 5_000_000])
async def test_a_look_up_in_the_event_loop_leaves_long_values_to_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value_bytes: int
) -> None:
    """Unpacking millions of numbers there would hold up every other request."""
    value = [1] * (value_bytes - 5)
    threads: list[threading.Thread] = []

    def unpack_and_note(packed: bytes) -> Any:
        threads.append(threading.current_thread())
        return unpack(packed)

    monkeypatch.setattr(kv, "unpack", unpack_and_note)

    def put(connection: sqlite3.Connection, now: float) -> Outcome:
        packed = pack(value, max_bytes=value_bytes)
        connection.execute("INSERT INTO kv VALUES ('user', 'k', 1, 0, 0, NULL, ?)", (packed,))
        return Outcome(None, [])

    async with opened(tmp_path / "m.db") as database:
        await database.write(put)
        entry = await database.read_here(lambda connection: kv.get_entry(connection, KvGet(key="k", ns="user"), 0.0))

    assert entry.value == value
    assert [thread is threading.main_thread() for thread in threads] == [value_bytes <= HERE_MAX_BYTES]
