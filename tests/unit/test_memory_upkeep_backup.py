"""Backup and restore: nothing half, nothing lost, and nobody fooled by what came back."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from schemas.bodies.memory import AllFacts, Forget, KvDelete, KvGet, KvSet, Remember
from schemas.bodies.upkeep import BackedUp, MemoryBackup, MemoryRestore, Restored, UpkeepProgress
from schemas.envelope import new_id
from schemas.errors import BadRequest, BusError, Conflict, Internal, NotFound, Unprocessable
from workers.memory import facts
from workers.memory.accounts import users
from workers.memory.migrations import load_migrations
from workers.memory.outcome import Event, Outcome
from workers.memory.records import Records
from workers.memory.sqlite_errors import UnusableDatabase
from workers.memory.store import MemoryStore
from workers.memory.upkeep import staging
from workers.memory.upkeep.offline import restore_offline
from workers.memory.upkeep.stats import Around
from workers.memory.upkeep.upkeep import Upkeep
from workers.memory.vectors.agreement import read_counts

NOW = 1_800_000_000.0


async def around() -> Around:
    """Nothing beside the database."""
    return Around(0, "", "off", "", "", [])


async def unheard(progress: UpkeepProgress) -> None:
    """Nobody listens."""


class Memory:
    """A memory with its upkeep, on a file of its own."""

    def __init__(self, records: Records, home: Path, events: list[Event]) -> None:
        self.records = records
        self.store = MemoryStore(records)
        self.events = events
        self.replaced = 0
        self.upkeep = Upkeep(records, home=home, around=around, on_replaced=(self._count,))
        self.path = records.database.path
        self.folder = self.path.parent / "backups"

    async def _count(self) -> None:
        self.replaced += 1

    async def set(self, **values: Any) -> None:
        """Write entries."""
        for key, value in values.items():
            await self.store.kv_set(KvSet(key=key, value=value), new_id())

    async def get(self, key: str) -> Any:
        """An entry's value; None where it is not there."""
        try:
            return (await self.store.kv_get(KvGet(key=key))).value
        except NotFound:
            return None

    async def version(self, key: str) -> int:
        """An entry's version."""
        return (await self.store.kv_get(KvGet(key=key))).version

    async def backup(self, name: str | None = None) -> BackedUp:
        """Make a backup."""
        return await self.upkeep.backup(MemoryBackup(name=name), new_id(), unheard)

    async def restore(self, path: str, request_id: bytes | None = None) -> Restored:
        """Go back to a backup."""
        return await self.upkeep.restore(MemoryRestore(path=path), request_id or new_id(), unheard)

    async def ask(self, sql: str) -> list[Any]:
        """The rows of a query."""
        return await self.records.read(lambda raw: raw.execute(sql).fetchall())

    async def tell(self, *statements: str) -> None:
        """Statements in one transaction."""

        def write(connection: sqlite3.Connection, now: float) -> Outcome:
            for statement in statements:
                connection.execute(statement)
            return Outcome(None, [])

        await self.records.write(write)


@asynccontextmanager
async def opened(home: Path) -> AsyncIterator[Memory]:
    """A memory below `home`."""
    events: list[Event] = []
    records = await Records.open(home / "memory" / "memory.db", readers=2, on_committed=events.extend, now=lambda: NOW)
    try:
        yield Memory(records, home, events)
    finally:
        await records.close()


def files(folder: Path) -> list[str]:
    """Names in a folder."""
    return sorted(path.name for path in folder.iterdir())


def sha256_of(path: str) -> str:
    """Checksum of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def spoil(path: Path, make: Callable[[sqlite3.Connection], None]) -> None:
    """Break a backup's index, or put another database in its place."""
    if make is not break_index:
        path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        make(connection)
        connection.commit()


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """A disk that is full: no file may grow past `size_bytes`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Backup -----------------------------------------------------------------------------------------------------------


async def test_a_backup_is_a_whole_database_for_its_owner_alone(tmp_path: Path) -> None:
    """One file, without a log beside it, whose checksum is the one that was told."""
    async with opened(tmp_path) as memory:
        await memory.set(a=1)

        made = await memory.backup("monday")

    target = tmp_path / "memory" / "backups" / "monday.db"
    assert made.path == str(target)
    assert made.sha256 == hashlib.sha256(target.read_bytes()).hexdigest()
    assert (made.size_bytes, made.schema_version) == (target.stat().st_size, load_migrations()[-1].number)
    assert [path.stat().st_mode & 0o777 for path in (target, target.parent)] == [0o600, 0o700]
    assert files(target.parent) == ["monday.db"]
    with closing(sqlite3.connect(target)) as connection:
        assert connection.execute("SELECT key FROM kv").fetchall() == [("a",)]


async def test_a_backup_never_overwrites_another(tmp_path: Path) -> None:
    """The name that exists is a conflict; without a name each gets one of its own."""
    async with opened(tmp_path) as memory:
        first = await memory.backup("monday")
        await memory.set(a=1)

        with pytest.raises(Conflict, match=r"monday\.db"):
            await memory.backup("monday.db")
        unnamed = [Path((await memory.backup()).path).name for _ in range(3)]

        assert sha256_of(first.path) == first.sha256
    assert unnamed == ["20270115T080000Z.db", "20270115T080000Z-2.db", "20270115T080000Z-3.db"]


async def test_a_repeated_request_makes_one_backup(tmp_path: Path) -> None:
    """Given to another worker under its id, it answers what the first one made."""
    async with opened(tmp_path) as memory:
        request_id = new_id()
        first = await memory.upkeep.backup(MemoryBackup(name="a"), request_id, unheard)

        assert await memory.upkeep.backup(MemoryBackup(name="a"), request_id, unheard) == first


async def test_a_backup_made_under_writing_is_one_state(tmp_path: Path) -> None:
    """Writers go on meanwhile, the copy ends all the same, and holds a prefix of what they wrote."""
    async with opened(tmp_path) as memory:
        for number in range(40):
            await memory.set(**{f"big{number}": "x" * 500_000})
        written = 0
        is_done = asyncio.Event()

        async def write() -> None:
            nonlocal written
            while not is_done.is_set():
                await memory.set(**{f"n{written:06}": written})
                written += 1

        async def stop(progress: UpkeepProgress) -> None:
            if progress.stage == "checksum":
                is_done.set()

        writing = asyncio.create_task(write())
        made = await memory.upkeep.backup(MemoryBackup(name="a"), new_id(), stop)
        is_done.set()
        await writing

    with closing(sqlite3.connect(made.path)) as connection:
        keys = [key for (key,) in connection.execute("SELECT key FROM kv WHERE key LIKE 'n%' ORDER BY key")]
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert keys == [f"n{number:06}" for number in range(len(keys))]


async def test_a_backup_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage, pages done and pages in all, never beyond the end."""
    monkeypatch.setattr("workers.memory.upkeep.reporting.TELL_EVERY_S", 0.001)
    told: list[UpkeepProgress] = []

    async def tell(progress: UpkeepProgress) -> None:
        told.append(progress)

    async with opened(tmp_path) as memory:
        await memory.set(**{f"big{number}": "x" * 1_000_000 for number in range(30)})
        await memory.upkeep.backup(MemoryBackup(), new_id(), tell)

    stages = list(dict.fromkeys(progress.stage for progress in told))
    assert set(stages) <= {"copy", "check", "checksum"} and stages
    assert all(0 <= progress.done <= progress.total for progress in told)


async def test_a_disk_that_is_full_leaves_no_half_backup(tmp_path: Path) -> None:
    """The caller hears that the disk is full, nothing is left in the folder, and the memory goes on."""
    async with opened(tmp_path) as memory:
        await memory.set(big="x" * 3_000_000)
        await memory.records.database.exclusively(lambda raw: raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())

        with file_size_limit(1_000_000), pytest.raises(Internal, match=r"full\.db"):
            await memory.backup("full")

        assert files(memory.folder) == []
        await memory.set(a=1)
        assert await memory.get("a") == 1


async def test_a_backup_that_nobody_waits_for_is_given_up(tmp_path: Path) -> None:
    """A cancelled request leaves no half file behind."""
    async with opened(tmp_path) as memory:
        await memory.set(**{f"big{number}": "x" * 1_000_000 for number in range(30)})
        began = asyncio.Event()

        async def tell(progress: UpkeepProgress) -> None:
            began.set()
            await asyncio.Event().wait()

        making = asyncio.create_task(memory.upkeep.backup(MemoryBackup(name="a"), new_id(), tell))
        waiting = asyncio.create_task(began.wait())
        await asyncio.wait({making, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        making.cancel()
        await asyncio.gather(making, return_exceptions=True)

        assert not any("partial" in name for name in files(memory.folder))


async def test_damage_in_the_database_is_found_by_its_backup(tmp_path: Path) -> None:
    """A backup that could not be restored is worth nothing, so it is refused when it is made."""
    async with opened(tmp_path) as memory:
        await memory.set(a=1)
        await memory.records.database.exclusively(break_index)

        with pytest.raises(Internal, match="damaged"):
            await memory.backup("a")

        assert files(memory.folder) == []


def break_index(connection: sqlite3.Connection) -> None:
    """Give an index a meaning that its content has not: damage that only a full check finds."""
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute("UPDATE sqlite_master SET sql = 'CREATE INDEX kv_expiry ON kv (key)' WHERE name = 'kv_expiry'")
    connection.execute("PRAGMA writable_schema = OFF")


# Restore ----------------------------------------------------------------------------------------------------------


async def test_a_restore_brings_back_what_the_backup_holds(tmp_path: Path) -> None:
    """What came after is gone from the memory, and is kept in a backup of its own."""
    async with opened(tmp_path) as memory:
        await memory.set(a="old", gone="old")
        await memory.store.remember(Remember(key="city", value="Porto"), new_id())
        await memory.backup("monday")
        await memory.set(a="new", b="new")
        await memory.store.kv_delete(KvDelete(key="gone"), new_id())

        restored = await memory.restore("monday")

        assert [await memory.get(key) for key in ("a", "b", "gone")] == ["old", None, "old"]
        assert memory.replaced == 1
        assert restored.path == str(memory.folder / "monday.db")
        await memory.restore(restored.kept_as)
        assert [await memory.get(key) for key in ("a", "b", "gone")] == ["new", "new", None]
        assert await memory.ask("PRAGMA journal_mode") == [("wal",)]


async def test_writes_go_on_after_a_restore(tmp_path: Path) -> None:
    """Every index follows, the full text too, whose state the writer's connection had in memory."""
    async with opened(tmp_path) as memory:
        for number in range(50):
            await memory.store.remember(Remember(key=f"before {number}", value="apple pie"), new_id())
        await memory.backup("monday")
        for number in range(300):
            await memory.store.remember(Remember(key=f"after {number}", value="plum cake"), new_id())
        await memory.restore("monday")

        for number in range(50):
            await memory.store.remember(Remember(key=f"later {number}", value="pear tart"), new_id())

        found = "SELECT count(*) FROM facts_text WHERE facts_text MATCH"
        assert [await memory.ask(f"{found} '{word}'") for word in ("apple", "plum", "pear")] == [
            [(50,)],
            [(0,)],
            [(50,)],
        ]
        await memory.tell("INSERT INTO facts_text (facts_text, rank) VALUES ('integrity-check', 1)")
        await memory.tell("INSERT INTO chunks_text (chunks_text, rank) VALUES ('integrity-check', 1)")
        assert await memory.ask("PRAGMA integrity_check") == [("ok",)]


async def test_readers_see_the_old_or_the_new_never_a_mix(tmp_path: Path) -> None:
    """While the content is replaced every read finds all of one state."""
    async with opened(tmp_path) as memory:
        await memory.set(**{f"k{number}": ["old", "x" * 20_000] for number in range(200)})
        await memory.backup("old")
        await memory.tell("UPDATE kv SET version = version + 10")

        seen: set[tuple[Any, ...]] = set()
        is_done = asyncio.Event()

        async def read() -> None:
            while not is_done.is_set():
                seen.add(tuple(await memory.ask("SELECT min(version), max(version), count(*) FROM kv")))

        reading = asyncio.create_task(read())
        await memory.restore("old")
        is_done.set()
        await reading
        seen.add(tuple(await memory.ask("SELECT min(version), max(version), count(*) FROM kv")))

    # 12 and not 1 after it: a version that was seen must not fit another content.
    assert seen == {((11, 11, 200),), ((12, 12, 200),)}


async def test_nothing_acknowledged_is_lost_between_keeping_and_replacing(tmp_path: Path) -> None:
    """A write answered before the switch is in the kept backup, one answered after it in the restored memory."""
    async with opened(tmp_path) as memory:
        await memory.backup("empty")
        acknowledged: list[str] = []
        is_done = asyncio.Event()

        async def write() -> None:
            while not is_done.is_set():
                key = f"n{len(acknowledged)}"
                await memory.set(**{key: 1})
                acknowledged.append(key)

        writing = asyncio.create_task(write())
        while len(acknowledged) < 20:
            await asyncio.sleep(0)
        restored = await memory.restore("empty")
        is_done.set()
        await writing
        after = {key for (key,) in await memory.ask("SELECT key FROM kv")}

    with closing(sqlite3.connect(restored.kept_as)) as connection:
        before = {key for (key,) in connection.execute("SELECT key FROM kv")}
    assert before | after == set(acknowledged)
    assert len(before) >= 20


async def test_a_version_seen_before_a_restore_fits_nothing_else_after_it(tmp_path: Path) -> None:
    """Compare-and-set by whoever does not know of the restore is a conflict, not a lost update."""
    async with opened(tmp_path) as memory:
        await memory.set(same=1, other=1)
        await memory.backup("monday")
        for value in range(5):
            await memory.set(other=value)
        await memory.set(new=1)
        seen = await memory.version("new")

        await memory.restore("monday")
        await memory.set(new=2)

        assert (await memory.version("same"), await memory.version("other")) == (1, 7)
        assert await memory.version("new") > seen


async def test_the_vector_index_is_told_what_changed(tmp_path: Path) -> None:
    """Vectors of chunks that stay are kept; of others they are dropped or made anew; no id is given twice."""
    async with opened(tmp_path) as memory:
        await memory.tell(
            *(chunk(number, f"text {number}") for number in (1, 2, 3)),
            "UPDATE chunks SET vector_model = 'm'",
            "DELETE FROM outbox",
        )
        await memory.backup("monday")
        await memory.tell(
            "DELETE FROM chunks WHERE id = 2",
            "INSERT INTO outbox (chunk_id, action) VALUES (2, 'remove')",
            chunk(4, "text 4"),
            "UPDATE chunks SET vector_model = 'm'",
        )
        ((highest,),) = await memory.ask("SELECT max(sequence) FROM outbox")

        restored = await memory.restore("monday")

        assert restored.chunks == 3
        assert await memory.ask("SELECT id, vector_model FROM chunks ORDER BY id") == [(1, "m"), (2, None), (3, "m")]
        assert await memory.ask("SELECT chunk_id, action FROM outbox ORDER BY sequence") == [
            (2, "remove"),
            (4, "remove"),
            (2, "embed"),
        ]
        assert (await memory.ask("SELECT min(sequence) FROM outbox"))[0][0] > highest
        assert await memory.ask("SELECT seq FROM sqlite_sequence WHERE name = 'chunks'") == [(4,)]


def chunk(number: int, text: str) -> str:
    """A statement that writes a chunk."""
    return (
        'INSERT INTO chunks (id, ns, kind, source_id, position, start, "end", text, at)'
        f" VALUES ({number}, 'n', 'memory', 'm{number}', 0, 0, 1, '{text}', 0)"
    )


async def test_another_text_under_the_same_chunk_is_embedded_anew(tmp_path: Path) -> None:
    """A backup of another memory uses the same ids for other things."""
    async with opened(tmp_path / "one") as one:
        await one.tell(chunk(1, "their text"), "UPDATE chunks SET vector_model = 'm'")
        foreign = (await one.backup("one")).path
    async with opened(tmp_path / "two") as two:
        await two.tell(chunk(1, "our text"), "UPDATE chunks SET vector_model = 'm'")

        await two.restore(foreign)

        assert await two.ask("SELECT text, vector_model FROM chunks") == [("their text", None)]
        assert await two.ask("SELECT chunk_id, action FROM outbox") == [(1, "remove"), (1, "embed")]


async def test_what_is_known_of_the_index_is_not_the_backups(tmp_path: Path) -> None:
    """The index was not restored, so the model it was made with is the present one."""
    state = "INSERT OR REPLACE INTO service_state VALUES ('vectors.model', CAST('{}' AS BLOB))"
    async with opened(tmp_path) as memory:
        await memory.tell(state.format("old"))
        await memory.backup("monday")
        await memory.tell(state.format("new"))

        await memory.restore("monday")

        assert await memory.ask("SELECT value FROM service_state") == [(b"new",)]


async def test_a_forgetting_under_way_takes_nothing_of_what_is_brought_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither one of the present memory nor one that the backup was made in the middle of."""
    state = "INSERT INTO service_state VALUES ('forgetting/{}', CAST('{{}}' AS BLOB))"
    async with opened(tmp_path) as memory:
        await memory.store.remember(Remember(key="pet", value="a tortoise"), new_id())
        kept = await memory.store.all(AllFacts())
        request = Forget(everything=True)
        with monkeypatch.context() as patch:
            patch.setattr(facts, "FORGET_ROWS", 0)
            await memory.records.write(lambda connection, _: facts.forget(connection, request, b"\x00"))
        assert (await memory.store.all(AllFacts())).facts == []
        await memory.backup("monday")
        await memory.tell(state.format("01"))

        await memory.restore("monday")

        assert await memory.ask("SELECT key FROM service_state") == []
        assert await memory.store.all(AllFacts()) == kept


async def test_who_may_sign_in_does_not_go_back(tmp_path: Path) -> None:
    """A password or a token revoked since the backup must not work again; where there never was a user they come."""
    user = "INSERT INTO users VALUES ('{}', '{}', '[]', '[]', 0, 0, 0)"
    async with opened(tmp_path / "one") as one:
        await one.tell(user.format("ada", "old hash"), user.format("eve", "hash"))
        backup = (await one.backup("one")).path
        await one.tell("UPDATE users SET password_hash = 'new hash'", "DELETE FROM users WHERE name = 'eve'")

        await one.restore(backup)

        assert await one.ask("SELECT name, password_hash FROM users") == [("ada", "new hash")]
    async with opened(tmp_path / "two") as two:
        await two.restore(backup)

        assert await two.ask("SELECT name FROM users ORDER BY name") == [("ada",), ("eve",)]


def deleted(name: str, connection: sqlite3.Connection, now: float) -> Outcome:
    """A write that deletes a user."""
    return users.delete(connection, name, now)


@pytest.mark.parametrize("stays", [True, False], ids=["others stay", "none stays"])
async def test_a_deleted_user_does_not_come_back(tmp_path: Path, stays: bool) -> None:
    """Neither the user nor the trust; the name is nobody's, also once the last user is gone. An agent's trust comes."""
    names = ["ada", "bob", *(["eve"] if stays else [])]
    async with opened(tmp_path) as memory:
        await memory.tell(
            *(f"INSERT INTO users VALUES ('{name}', 'hash', '[]', '[]', 0, 1, 1)" for name in names),
            *(f"INSERT INTO trust_scores VALUES ('{name}', 1, 1, 2, 1, 1)" for name in [*names, "agent"]),
            *(
                "INSERT INTO trust_outcomes (user_id, success, weight, note, reported_by, at)"
                f" VALUES ('{name}', 1, 1, '', '', 1)"
                for name in [*names, "agent"]
            ),
        )
        backup = (await memory.backup("one")).path
        for name in ("ada", "bob"):
            await memory.records.write(partial(deleted, name))
        # Somebody else has the name by now.
        other = users.Account("bob", "other hash", (), (), False)
        if stays:
            await memory.records.write(lambda connection, now: users.add(connection, other, now))

        await memory.restore(backup)

        left = [("agent",), ("eve",)] if stays else [("agent",)]
        assert await memory.ask("SELECT name, password_hash FROM users ORDER BY name") == (
            [("bob", "other hash"), ("eve", "hash")] if stays else []
        )
        assert await memory.ask("SELECT name FROM deleted_users ORDER BY name") == (
            [("ada",)] if stays else [("ada",), ("bob",)]
        )
        assert await memory.ask("SELECT user_id FROM trust_scores ORDER BY user_id") == left
        assert await memory.ask("SELECT user_id FROM trust_outcomes ORDER BY user_id") == left


async def test_a_restore_is_announced_in_every_namespace(tmp_path: Path) -> None:
    """Subscribers of each namespace, also of one that is gone now, hear that everything may be different."""
    async with opened(tmp_path) as memory:
        await memory.store.remember(Remember(key="city", value="Porto"), new_id())
        await memory.backup("monday")
        await memory.set(a=1)
        memory.events.clear()

        await memory.restore("monday")

        assert [(event.subject, event.body.action) for event in memory.events] == [  # type: ignore[attr-defined]
            ("memory.changed.kv", "restore"),
            ("memory.changed.user", "restore"),
        ]


async def test_an_older_backup_is_migrated_on_its_way(tmp_path: Path) -> None:
    """The memory as it was with the first schema comes back under the newest one; the backup itself stays as it is."""
    backup = tmp_path / "old.db"
    with closing(sqlite3.connect(backup)) as connection:
        connection.executescript(load_migrations()[0].sql)
        connection.execute("INSERT INTO schema_version VALUES (1, 'first', 0)")
        connection.execute("INSERT INTO facts VALUES (1, 'user', 'city', 'Porto', 'fact', 'user', 5, 5, 0, NULL)")
        connection.commit()
    before = backup.read_bytes()
    async with opened(tmp_path) as memory:
        restored = await memory.restore(str(backup))

        assert restored.chunks == 1
        assert await memory.ask("SELECT text FROM chunks") == [("city: Porto",)]
        assert await memory.ask("SELECT max(version) FROM schema_version") == [(load_migrations()[-1].number,)]
    assert backup.read_bytes() == before


async def test_pages_of_another_size_are_restored_too(tmp_path: Path) -> None:
    """A backup may come from a system with other defaults."""
    async with opened(tmp_path) as memory:
        await memory.set(a="old")
        made = await memory.backup("monday")
        with closing(sqlite3.connect(made.path)) as connection:
            connection.execute("PRAGMA page_size = 8192")
            connection.execute("VACUUM")
        await memory.set(a="new")

        await memory.restore("monday")

        assert await memory.get("a") == "old"
        assert await memory.ask("PRAGMA page_size") == [(4096,)]


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"", Unprocessable, "no SQLite database"),
        (b"this is not a database " * 400, Unprocessable, "no SQLite database"),
        (b"SQLite format 3\x00" + b"\xff" * 9_000, Unprocessable, "no backup of this memory"),
        (None, NotFound, "there is no backup"),
    ],
)
async def test_what_is_no_backup_is_refused(
    tmp_path: Path, content: bytes | None, error: type[BusError], words: str
) -> None:
    """The error says why, and nothing has changed."""
    async with opened(tmp_path) as memory:
        await memory.set(a=1)
        memory.folder.mkdir()
        if content is not None:
            (memory.folder / "bad.db").write_bytes(content)

        with pytest.raises(error, match=words):
            await memory.restore("bad")

        assert await memory.get("a") == 1
        assert files(memory.folder) == (["bad.db"] if content is not None else [])


def foreign(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE bookmarks (url TEXT)")


def pretender(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE schema_version (version INTEGER, name TEXT, applied_at REAL)")
    connection.execute("INSERT INTO schema_version VALUES (?, 'all', 0)", (load_migrations()[-1].number,))


def newer(connection: sqlite3.Connection) -> None:
    pretender(connection)
    connection.execute("UPDATE schema_version SET version = 9999")


@pytest.mark.parametrize(
    ("make", "words"),
    [(foreign, "another program"), (pretender, "it lacks"), (newer, "schema version 9999"), (break_index, "damaged")],
)
async def test_a_database_that_is_not_ours_is_refused(tmp_path: Path, make: Any, words: str) -> None:
    """Of another program, of a newer one, or one that only claims to be a memory."""
    async with opened(tmp_path) as memory:
        await memory.set(a=1)
        await memory.backup("bad")
        spoil(memory.folder / "bad.db", make)

        with pytest.raises(Unprocessable, match=words):
            await memory.restore("bad")

        assert await memory.get("a") == 1
        assert files(memory.folder) == ["bad.db"]


@pytest.mark.parametrize("path", ["../memory.db", "../../etc/passwd", "a/../../memory.db", "a\0b"])
async def test_a_relative_path_stays_in_the_backups_folder(tmp_path: Path, path: str) -> None:
    """Only an absolute path, written in full, names a file elsewhere."""
    async with opened(tmp_path) as memory:
        with pytest.raises(BadRequest, match="path"):
            await memory.restore(path)


async def test_the_database_itself_is_no_backup_of_it(tmp_path: Path) -> None:
    """Restoring it from itself would at best do nothing."""
    async with opened(tmp_path) as memory:
        with pytest.raises(BadRequest, match="the database itself"):
            await memory.restore(str(memory.path))


async def test_a_disk_that_is_full_leaves_the_memory_as_it_was(tmp_path: Path) -> None:
    """Whichever file does not fit, readers and writers find everything in its place."""
    async with opened(tmp_path) as memory:
        await memory.set(big="x" * 3_000_000)
        await memory.backup("big")
        await memory.tell("DELETE FROM kv")
        await memory.set(a=1)

        with file_size_limit(2_000_000), pytest.raises(Internal):
            await memory.restore("big")

        assert (await memory.get("a"), await memory.get("big")) == (1, None)
        assert await memory.ask("PRAGMA integrity_check") == [("ok",)]
        await memory.set(b=2)
        assert not any("partial" in name for name in files(memory.folder))


@pytest.mark.parametrize("is_compared", [True, False])
async def test_restore_counts_only_what_is_there_as_unencodable(tmp_path: Path, is_compared: bool) -> None:
    """Not what waits for another chance, nor what was gone while its order to be removed still waited."""
    async with opened(tmp_path) as memory:
        await memory.tell(
            *(chunk(id, f"text {id}") for id in (1, 2)),
            "UPDATE chunks SET vector_model = 'none'",
            "INSERT INTO service_state VALUES ('vectors.unencodable/1', x'a0'), ('vectors.unencodable/2', x'a0')",
            "DELETE FROM chunks WHERE id = 2",
            "DELETE FROM outbox",
            "INSERT INTO outbox (chunk_id, action) VALUES (2, 'remove')",
        )
        backup = Path((await memory.backup("monday")).path)

        await asyncio.to_thread(staging.reconcile, backup, memory.path if is_compared else None)

    with closing(sqlite3.connect(backup)) as connection:
        assert read_counts(connection) == ((1, 0, 1) if is_compared else (1, 1, 0))
        keys = connection.execute("SELECT key FROM service_state WHERE key GLOB 'vectors.unencodable/*'").fetchall()
    assert keys == ([("vectors.unencodable/1",)] if is_compared else [])


# Without a service ------------------------------------------------------------------------------------------------


def silent(stage: str, done: int, total: int) -> None:
    """Nobody listens."""


async def test_a_damaged_database_is_restored_without_the_service(tmp_path: Path) -> None:
    """The service refuses it; after the restore it starts, and the damaged file is kept."""
    async with opened(tmp_path) as memory:
        await memory.set(a="old")
        await memory.tell(chunk(1, "text"), "UPDATE chunks SET vector_model = 'm'", "DELETE FROM outbox")
        await memory.backup("monday")
    path = tmp_path / "memory" / "memory.db"
    path.write_bytes(b"damaged " * 4_000)
    with pytest.raises(UnusableDatabase, match="olympus memory restore"):
        async with opened(tmp_path):
            pass

    restored = await asyncio.to_thread(restore_offline, "monday", path, silent)

    assert sha256_of(restored.kept_as) == hashlib.sha256(b"damaged " * 4_000).hexdigest()
    async with opened(tmp_path) as memory:
        assert await memory.get("a") == "old"
        # Nobody knows what the index holds, so it is emptied and filled anew.
        assert await memory.ask("SELECT vector_model FROM chunks") == [(None,)]
        assert await memory.ask("SELECT chunk_id, action FROM outbox") == [(1, "embed")]
        assert await memory.ask("SELECT value FROM service_state WHERE key = 'vectors.model'") == [(b"\xa7unknown",)]


async def test_a_sound_database_is_compared_also_without_the_service(tmp_path: Path) -> None:
    """Versions that were seen, the newest in the log only, fit nothing else afterwards."""
    async with opened(tmp_path) as memory:
        await memory.set(a="old")
        await memory.backup("monday")
        for _ in range(3):
            await memory.set(a="new")
        # The log as a kill -9 leaves it.
        shutil.copytree(tmp_path / "memory", tmp_path / "killed" / "memory")
    path = tmp_path / "killed" / "memory" / "memory.db"

    restored = await asyncio.to_thread(restore_offline, "monday", path, silent)

    async with opened(tmp_path / "killed") as memory:
        assert (await memory.get("a"), await memory.version("a")) == ("old", 5)
    with closing(sqlite3.connect(restored.kept_as)) as connection:
        assert connection.execute("SELECT version FROM kv").fetchall() == [(4,)]


async def test_a_missing_database_is_restored(tmp_path: Path) -> None:
    """On a new machine there is nothing yet."""
    async with opened(tmp_path / "one") as memory:
        await memory.set(a="old")
        backup = (await memory.backup("monday")).path
    path = tmp_path / "two" / "memory" / "memory.db"

    restored = await asyncio.to_thread(restore_offline, backup, path, silent)

    assert restored.kept_as == ""
    async with opened(tmp_path / "two") as memory:
        assert await memory.get("a") == "old"


HOLDER = textwrap.dedent("""
    import asyncio, sys
    from pathlib import Path
    from workers.memory.records import Records

    async def main():
        await Records.open(Path(sys.argv[1]), readers=1, on_committed=lambda events: None)
        print("open", flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
""")


async def test_a_database_in_use_is_not_exchanged(tmp_path: Path) -> None:
    """A service in another process would go on writing into the file that was put aside."""
    async with opened(tmp_path) as memory:
        await memory.backup("monday")
        path = memory.path
    holder = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HOLDER, str(path)), stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    try:
        assert holder.stdout is not None
        await asyncio.wait_for(holder.stdout.readline(), 20)

        with pytest.raises(Conflict, match="is in use"):
            await asyncio.to_thread(restore_offline, "monday", path, silent)
    finally:
        holder.kill()
        await holder.wait()

    assert (await asyncio.to_thread(restore_offline, "monday", path, silent)).chunks == 0


def run_offline(home: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """The module as the command runs it."""
    environment: Sequence[tuple[str, str]] = [item for item in os.environ.items() if not item[0].startswith("OLYMPUS_")]
    return subprocess.run(
        [sys.executable, "-m", "workers.memory.upkeep.offline", *args, "--set", f"home={home}"],
        env=dict(environment),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def test_the_offline_program_tells_where_it_kept_what_was_there(tmp_path: Path) -> None:
    """One line of JSON on stdout; an error is one line with its code and status 1."""
    async with opened(tmp_path) as memory:
        await memory.backup("monday")

    done = await asyncio.to_thread(run_offline, tmp_path, "monday")
    failed = await asyncio.to_thread(run_offline, tmp_path, "tuesday")

    assert (done.returncode, failed.returncode) == (0, 1)
    assert '"kept_as":"' in done.stdout
    assert "not_found: there is no backup" in failed.stderr


async def test_a_repeated_request_restores_once(tmp_path: Path) -> None:
    """What was written after the restore is not taken back by its echo."""
    async with opened(tmp_path) as memory:
        await memory.set(a=1)
        await memory.backup("monday")
        request_id = new_id()
        first = await memory.restore("monday", request_id)
        await memory.set(a=2)

        assert await memory.restore("monday", request_id) == first
        assert await memory.get("a") == 2
