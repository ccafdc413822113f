"""Export and import: everything comes back as it was, and what does not fit is named."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas.bodies.items import DocPut, ExperienceRecord, MemoryAdd, MemoryDelete
from schemas.bodies.memory import Forget, KvDelete, KvGet, KvSet, Remember
from schemas.bodies.sessions import (
    ContextDelete,
    ContextGet,
    ContextPut,
    NewTurn,
    SessionAppend,
    SessionCreate,
    SessionGet,
    SessionList,
    SuggestList,
)
from schemas.bodies.upkeep import ExportPart, ExportRecord, Imported, MemoryExport, MemoryImport, NewRecord
from schemas.envelope import new_id
from schemas.errors import BadRequest, BusError, Conflict, TooLarge, Unprocessable
from workers.memory import facts
from workers.memory.items.documents import Documents
from workers.memory.items.experiences import Experiences
from workers.memory.items.memories import Memories
from workers.memory.outcome import Event
from workers.memory.records import Records
from workers.memory.sessions.contexts import Contexts
from workers.memory.sessions.proactive import Monitor
from workers.memory.sessions.sessions import Sessions
from workers.memory.sessions.tokens import Estimator
from workers.memory.store import MemoryStore
from workers.memory.upkeep import importing
from workers.memory.upkeep.export import PART_ROWS, export
from workers.memory.upkeep.importing import import_records
from workers.memory.upkeep.kinds import KINDS

NOW = 1_800_000_000.0

VALUES: list[Any] = [
    None,
    True,
    -1,
    2**64 - 1,
    0.1,
    float("inf"),
    "text with \0 and \u2028",
    b"\x00\xff",
    datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    msgspec.msgpack.Ext(7, b"\x01"),
    [1, [2, {"a": {1: b"x", "": None}}]],
]


def head(**fields: Any) -> dict[str, Any]:
    """Times that every kind has."""
    return {"created_at": NOW - 10.5, "updated_at": NOW - 5.25, **fields}


def samples() -> list[NewRecord]:
    """Some records of every kind, in the order of an export."""
    memory = head(
        type="note",
        tier="medium",
        importance=0.75,
        access_count=3,
        last_accessed_at=NOW - 1,
        decayed_at=NOW - 3,
        at=NOW - 100,
        version=4,
        expires_at=None,
        metadata={"colour": "red", "n": 2, "raw": b"\xfe"},
    )
    data: list[tuple[str, str, dict[str, Any]]] = [
        *(
            ("kv", "kv", head(key=f"k{number:02}", value=value, version=number + 1, expires_at=None))
            for number, value in enumerate(VALUES)
        ),
        ("kv", "other", head(key="k", value={"a": 1}, version=7, expires_at=NOW + 1e6)),
        ("fact", "user", {**head(key="city", value="Porto", category="fact", source="user"), **access(2, NOW - 4)}),
        ("fact", "user", {**head(key="tea", value="green", category="preference", source="model"), **access(0, None)}),
        (
            "document",
            "kb",
            head(
                doc_id="manual",
                title="Manual",
                content="Turn the key. " * 400,
                version=2,
                at=NOW - 50,
                tags=["help", "caf\u00e9"],
                metadata={},
            ),
        ),
        (
            "memory",
            "memory",
            {**memory, "id": "z-first", "content": "Ada keeps bees", "parent_id": None, "speaker": None, "tags": []},
        ),
        (
            "memory",
            "memory",
            {
                **memory,
                "id": "a-second",
                "content": "The bees swarmed",
                "parent_id": "z-first",
                "speaker": "Ada",
                "tags": ["bees", "may"],
            },
        ),
        (
            "relation",
            "memory",
            {"source_id": "z-first", "target_id": "a-second", "kind": "about", "strength": 0.5, "created_at": NOW},
        ),
        (
            "group",
            "memory",
            {
                "group_id": 5,
                "name": "garden",
                "description": "",
                "created_at": NOW,
                "members": [{"memory_id": "z-first"}, {"memory_id": "a-second"}],
            },
        ),
        (
            "experience",
            "experience",
            {
                "exp_id": "e1",
                "agent": "cook",
                "action": "boil",
                "outcome": "soft",
                "importance": 0.5,
                "at": NOW - 7,
                "created_at": NOW - 7,
                "reward": -1.5,
                "success": False,
                "context": {"minutes": 4},
                "tags": ["egg"],
                "expires_at": None,
                **access(1, NOW),
            },
        ),
        (
            "session",
            "session",
            {
                "session_id": "s/1",
                "user_id": "ada",
                "type": "conversation",
                "state": "closed",
                "created_at": NOW - 90,
                "last_used_at": NOW - 80,
                "expires_at": None,
                "ended_at": NOW - 79,
                "ttl_s": 60.0,
                "summary": "about bees",
                "metadata": {"device": "phone"},
                "turns": [turn(1, "user", "How are the bees?", "Ada"), turn(2, "assistant", "Busy.", None)],
            },
        ),
        (
            "context",
            "context",
            head(
                context_id="c",
                version=3,
                data=[1, {"x": b"y"}],
                system_prompt="Be brief.",
                session_id="s/1",
                user_id="ada",
                metadata={},
                expires_at=NOW + 1e6,
            ),
        ),
        (
            "suggestion",
            "session",
            {
                "suggestion_id": "sug-00112233445566778899aabbccddeeff",
                "kind": "related",
                "text": "There is a memory of this",
                "reason": "It is close",
                "confidence": 0.75,
                "evidence": [{"kind": "memory", "id": "a-second", "text": "The bees", "score": 1.5, "at": NOW - 100}],
                "made_at": NOW - 60,
                "user_id": "ada",
                "session_id": "s/1",
                "evidence_from": "memory memory/a-second",
                "dismissed_at": NOW - 50,
            },
        ),
        ("switch", "session", {"user_id": "", "is_on": True}),
        ("switch", "session", {"user_id": "ada", "is_on": False}),
    ]
    return [NewRecord(kind=kind, ns=ns, data=fields) for kind, ns, fields in data]  # type: ignore[arg-type]


def access(count: int, at: float | None) -> dict[str, Any]:
    """How often something was read, and when last."""
    return {"access_count": count, "last_accessed_at": at}


def turn(number: int, role: str, content: str, speaker: str | None) -> dict[str, Any]:
    """One turn of a session."""
    return {"number": number, "role": role, "content": content, "at": NOW + number, "speaker": speaker, "metadata": {}}


@asynccontextmanager
async def opened(folder: Path, events: list[Event] | None = None) -> AsyncIterator[Records]:
    """An empty memory in `folder`; `events` gathers what its writes announce."""
    heard = [] if events is None else events
    records = await Records.open(folder / "memory.db", readers=1, on_committed=heard.extend, now=lambda: NOW)
    try:
        yield records
    finally:
        await records.close()


async def everything(records: Records, **request: Any) -> list[ExportRecord]:
    """All records of an export."""
    parts: list[ExportPart] = []

    async def keep(part: ExportPart) -> None:
        parts.append(part)

    exported = await export(records, MemoryExport(**request), keep)
    assert [part.total for part in parts] == [sum(exported.counts.values())] * len(parts)
    assert not parts or parts[-1].done == parts[-1].total
    return [record for part in parts for record in part.records]


async def taken_in(records: Records, new: list[NewRecord], on_conflict: Any = "fail") -> Imported:
    """What an import under an id of its own answers."""
    return await import_records(records, MemoryImport(records=new, on_conflict=on_conflict), new_id())


def as_new(exported: list[ExportRecord]) -> list[NewRecord]:
    """Exported records as an import takes them."""
    return [NewRecord(kind=one.kind, ns=one.ns, data=one.data) for one in exported]  # type: ignore[arg-type]


def packed(records: Any) -> list[bytes]:
    """Records as bytes, in which 1, 1.0 and True differ."""
    return [msgspec.msgpack.encode((one.kind, one.ns, sorted(one.data.items()))) for one in records]


def row(connection: sqlite3.Connection, sql: str, *values: Any) -> Any:
    """The first row of a query."""
    return connection.execute(sql, values).fetchone()


async def test_everything_comes_back_as_it_was(tmp_path: Path) -> None:
    """Every kind, every type of value, with versions, counts and times: export, import, export are the same bytes."""
    async with opened(tmp_path / "one") as one, opened(tmp_path / "two") as two:
        assert await taken_in(one, samples()) == Imported(imported=len(samples()), skipped=0)
        first = await everything(one)

        await taken_in(two, as_new(first))

        assert packed(first) == packed(samples())
        assert packed(await everything(two)) == packed(first)


async def test_what_was_written_by_operations_comes_back_too(tmp_path: Path) -> None:
    """The samples are not the only ones who know the columns."""
    async with opened(tmp_path / "one") as one, opened(tmp_path / "two") as two:
        store = MemoryStore(one)
        await store.kv_set(KvSet(key="a", value=b"1"), new_id())
        await store.remember(Remember(key="city", value="Porto"), new_id())
        first = await everything(one)

        await taken_in(two, as_new(first))

        assert [record.kind for record in first] == ["kv", "fact"]
        assert packed(await everything(two)) == packed(first)


def test_no_column_is_left_out_of_the_export(tmp_path: Path) -> None:
    """A column that a migration adds is exported, or is named here because it can be worked out again."""
    worked_out = {
        "facts": {"id"},
        "memories": {"sequence"},
        "knowledge_base": {"characters", "chunks"},
        "experiences": {"sequence"},
        "sessions": {"turns"},
        "group_members": {"sequence", "group_id"},
        "turns": {"session_id"},
        "suggestions": {"fingerprint"},
    }
    tables = {kind.table: set(kind.columns) for kind in KINDS.values()}
    tables |= {kind.parts.table: set(kind.parts.data.__struct_fields__) for kind in KINDS.values() if kind.parts}

    async def columns() -> dict[str, set[str]]:
        async with opened(tmp_path / "one") as records:
            return await records.read(
                lambda raw: {
                    table: {name for _, name, *_ in raw.execute(f"PRAGMA table_info({table})")} for table in tables
                }
            )

    for table, found in asyncio.run(columns()).items():
        assert found - {"ns"} - worked_out.get(table, set()) == tables[table], table


async def test_an_import_is_found_by_search_and_waits_for_its_vectors(tmp_path: Path) -> None:
    """Chunks, tags and the order to embed are written with the records."""
    async with opened(tmp_path / "one") as records:
        await taken_in(records, samples())

        def look(raw: sqlite3.Connection) -> Any:
            kinds = raw.execute("SELECT kind, count(*) FROM chunks GROUP BY kind ORDER BY kind").fetchall()
            found = raw.execute(
                "SELECT source_id, stream, speaker FROM chunks WHERE id IN"
                " (SELECT rowid FROM chunks_text WHERE chunks_text MATCH 'bees') ORDER BY source_id"
            ).fetchall()
            tags = raw.execute("SELECT tag FROM memory_tags WHERE id = 'a-second' ORDER BY tag").fetchall()
            waiting = row(raw, "SELECT count(*) FROM outbox WHERE action = 'embed'")
            return dict(kinds), found, tags, waiting == row(raw, "SELECT count(*) FROM chunks")

        kinds, found, tags, all_wait = await records.read(look)

    assert kinds["memory"] == 2 and kinds["turn"] == 2 and kinds["fact"] == 2 and kinds["document"] > 2
    assert found == [("a-second", "z-first", "Ada"), ("s/1/1", "s/1", "Ada"), ("z-first", None, None)]
    assert tags == [("bees",), ("may",)]
    assert all_wait


async def test_an_export_is_one_state_of_the_memory(tmp_path: Path) -> None:
    """What is written while it runs is not in it, not even half."""
    async with opened(tmp_path / "one") as records:
        store = MemoryStore(records)
        await asyncio.gather(
            *(store.kv_set(KvSet(key=f"k{number:04}", value="v" * 2_000), new_id()) for number in range(1_200))
        )
        parts: list[ExportPart] = []

        async def write_and_keep(part: ExportPart) -> None:
            parts.append(part)
            await store.kv_delete(KvDelete(key="k1199"), new_id())
            await store.kv_set(KvSet(key=f"k1199-{len(parts)}", value=1), new_id())

        exported = await export(records, MemoryExport(), write_and_keep)

        assert exported.counts["kv"] == 1_200
        assert len(parts) > 2
        assert parts[-1].records[-1].data["key"] == "k1199"


async def test_kinds_and_namespace_choose_what_is_exported(tmp_path: Path) -> None:
    """Only what was asked for, and an empty export where there is nothing."""
    async with opened(tmp_path / "one") as records:
        await taken_in(records, samples())

        assert {one.kind for one in await everything(records, kinds=["fact", "memory"])} == {"fact", "memory"}
        assert [one.data["key"] for one in await everything(records, ns="other")] == ["k"]
        assert await everything(records, ns="nobody") == []


async def test_what_has_expired_is_not_exported(tmp_path: Path) -> None:
    """An entry nobody can read any more is gone from the export too."""
    async with opened(tmp_path / "one") as records:
        gone = NewRecord(kind="kv", ns="kv", data=head(key="old", value=1, version=1, expires_at=NOW - 1))
        await taken_in(records, [gone, *samples()[:1]])

        assert [one.data["key"] for one in await everything(records)] == ["k00"]


async def test_a_long_session_is_exported_in_several_records(tmp_path: Path) -> None:
    """Each stays small, and together they are the session."""
    async with opened(tmp_path / "one") as one, opened(tmp_path / "two") as two:
        session = next(record for record in samples() if record.kind == "session")
        turns = [turn(number, "user", f"turn {number}", None) for number in range(1, 2 * PART_ROWS + 2)]
        await taken_in(one, [NewRecord(kind="session", ns="session", data={**session.data, "turns": turns})])

        first = await everything(one)
        await taken_in(two, as_new(first))

        assert [len(record.data["turns"]) for record in first] == [PART_ROWS, PART_ROWS, 1]
        assert [record.data.get("continues") for record in first] == [None, True, True]
        assert packed(await everything(two)) == packed(first)
        assert await two.read(lambda raw: row(raw, "SELECT turns FROM sessions")) == (2 * PART_ROWS + 1,)


async def test_importing_again_changes_nothing(tmp_path: Path) -> None:
    """What is there already, field by field the same, is skipped in every mode: an import that broke off is resumed."""
    events: list[Event] = []
    async with opened(tmp_path / "one", events) as records:
        await taken_in(records, samples()[:5])
        first = len(events)

        again = [await taken_in(records, samples(), mode) for mode in ("fail", "skip", "replace")]

        assert [reply.skipped for reply in again] == [5, len(samples()), len(samples())]
        assert (first, len(events)) == (5, len(samples()))
        assert packed(await everything(records)) == packed(samples())


def other_fields(kind: str) -> dict[str, Any]:
    """What makes another content of the first sample of a kind."""
    other: dict[str, dict[str, Any]] = {"suggestion": {"made_at": 1.0}, "switch": {"is_on": False}}
    return other.get(kind, {"created_at": 1.0})


@pytest.mark.parametrize("kind", list(KINDS))
async def test_another_content_under_the_same_id_is_a_conflict(tmp_path: Path, kind: str) -> None:
    """By default nothing is overwritten; the error names the record, and the rest of the batch is not written."""
    async with opened(tmp_path / "one") as records:
        record = next(sample for sample in samples() if sample.kind == kind)
        await taken_in(records, [record])
        other = msgspec.structs.replace(record, data={**record.data, **other_fields(kind)})
        news = NewRecord(kind="kv", ns="kv", data=head(key="new", value=1, version=1))

        with pytest.raises(Conflict, match="record 1") as caught:
            await taken_in(records, [news, other])

        assert caught.value.details["record"] == 1
        assert packed(await everything(records)) == packed([record])


@pytest.mark.parametrize("kind", list(KINDS))
async def test_replace_and_skip_decide_about_a_conflict(tmp_path: Path, kind: str) -> None:
    """`skip` leaves what is there, `replace` writes every field; a version that was seen never fits another content."""
    async with opened(tmp_path / "one") as records:
        record = next(sample for sample in samples() if sample.kind == kind)
        await taken_in(records, [record])
        other = msgspec.structs.replace(record, data={**record.data, **other_fields(kind)})

        assert await taken_in(records, [other], "skip") == Imported(imported=0, skipped=1)
        assert packed(await everything(records)) == packed([record])

        assert await taken_in(records, [other], "replace") == Imported(imported=1, skipped=0)
        (found,) = await everything(records)
        assert found.data.items() >= other_fields(kind).items()
        if "version" in record.data:
            assert found.data.pop("version") == record.data["version"] + 1
            other.data.pop("version")
        assert packed([found]) == packed([other])
        assert await taken_in(
            records, [msgspec.structs.replace(other, data={**record.data, **other_fields(kind)})], "replace"
        ) == (Imported(imported=0, skipped=1))


async def test_a_replaced_session_has_the_turns_of_the_export_alone(tmp_path: Path) -> None:
    """Turns said since are gone, from search too."""
    async with opened(tmp_path / "one") as records:
        session = next(record for record in samples() if record.kind == "session")
        longer = {
            **session.data,
            "last_used_at": NOW,
            "turns": [*session.data["turns"], turn(3, "user", "Later", None)],
        }
        await taken_in(records, [NewRecord(kind="session", ns="session", data=longer)])

        await taken_in(records, [session], "replace")

        assert packed(await everything(records)) == packed([session])
        assert await records.read(lambda raw: row(raw, "SELECT count(*) FROM chunks")) == (2,)


async def test_a_session_replaced_by_one_without_turns_has_none(tmp_path: Path) -> None:
    """Its count says so, and the next turn is the first."""
    async with opened(tmp_path / "one") as records:
        sessions = Sessions(records, Estimator(), ttl_s=60.0, on_turns=lambda ns, session_id: None)
        session = next(record for record in samples() if record.kind == "session")
        await taken_in(records, [session])
        empty = {**session.data, "last_used_at": NOW, "turns": []}

        await taken_in(records, [NewRecord(kind="session", ns="session", data=empty)], "replace")

        session_id = session.data["session_id"]
        assert (await sessions.get(SessionGet(session_id=session_id))).turns == 0
        again = [NewTurn(role="user", content="Once more")]
        appended = await sessions.append(SessionAppend(session_id=session_id, turns=again, reopen=True), new_id())
        assert (appended.first_number, appended.last_number) == (1, 1)


@pytest.mark.parametrize(
    ("parents", "record"),
    [({"a": "a"}, 0), ({"a": "b", "b": "a"}, 1), ({"a": "b", "b": "c", "c": "a"}, 2)],
)
async def test_no_imported_memory_lies_below_itself(tmp_path: Path, parents: dict[str, str], record: int) -> None:
    """The record that closes the circle is named, and nothing of its batch is written."""
    memory = next(record for record in samples() if record.kind == "memory")
    circle = [
        NewRecord(kind="memory", ns="memory", data={**memory.data, "id": name, "parent_id": parent})
        for name, parent in parents.items()
    ]
    async with opened(tmp_path / "one") as records:
        with pytest.raises(Unprocessable, match=rf"record {record} \(memory\): .*itself or one of its desc") as caught:
            await taken_in(records, circle)

        assert caught.value.details["record"] == record
        assert caught.value.details["field"] == "parent_id"
        assert await everything(records) == []


async def test_replacing_closes_no_circle_and_a_parent_may_come_later(tmp_path: Path) -> None:
    """What is stored already counts as well as what the batch brings."""
    memory = next(record for record in samples() if record.kind == "memory")

    def under(name: str, parent: str | None) -> NewRecord:
        return NewRecord(kind="memory", ns="memory", data={**memory.data, "id": name, "parent_id": parent})

    async with opened(tmp_path / "one") as records:
        assert (await taken_in(records, [under("child", "top"), under("top", None)])).imported == 2
        with pytest.raises(Unprocessable, match="record 0"):
            await taken_in(records, [under("top", "child")], "replace")
        assert (await taken_in(records, [under("child", None), under("top", "child")], "replace")).imported == 2


@pytest.mark.parametrize("is_top_first", [True, False])
async def test_an_import_that_only_exchanges_parents_is_taken_in_any_order(tmp_path: Path, is_top_first: bool) -> None:
    """What is stored in the end decides, not what is between two records; nor a record that a later one replaces."""
    memory = next(record for record in samples() if record.kind == "memory")

    def under(name: str, parent: str | None) -> NewRecord:
        return NewRecord(kind="memory", ns="memory", data={**memory.data, "id": name, "parent_id": parent})

    async with opened(tmp_path / "one") as records:
        await taken_in(records, [under("top", None), under("child", "top"), under("grandchild", "child")])
        exchanged = [under("top", "child"), under("child", None)]
        batch = exchanged if is_top_first else exchanged[::-1]
        assert (await taken_in(records, batch, "replace")).imported == 2

        again = [under("child", "grandchild"), under("top", None), under("child", None)]
        assert (await taken_in(records, again, "replace")).imported == 3
        with pytest.raises(Unprocessable, match="record 1") as caught:
            await taken_in(records, [under("other", "top"), under("child", "grandchild")], "replace")
        assert caught.value.details["parent_id"] == "grandchild"


async def test_the_way_up_is_read_once_however_many_lie_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that is one chain costs no more than its records."""
    memory = next(record for record in samples() if record.kind == "memory")
    chain = [
        NewRecord(
            kind="memory", ns="memory", data={**memory.data, "id": str(n), "parent_id": str(n - 1) if n else None}
        )
        for n in range(50)
    ]
    asked: list[str] = []
    parent_of = importing._parent_of

    def note(connection: sqlite3.Connection, ns: str, memory_id: str, now: float) -> str | None:
        asked.append(memory_id)
        return parent_of(connection, ns, memory_id, now)

    monkeypatch.setattr(importing, "_parent_of", note)
    async with opened(tmp_path / "one") as records:
        await taken_in(records, chain)

    assert sorted(asked) == sorted(str(number) for number in range(50))


async def test_an_imported_version_starts_above_those_that_are_gone(tmp_path: Path) -> None:
    """Whoever saw a version of a deleted entry must not find it on another content."""
    async with opened(tmp_path / "one") as records:
        store = MemoryStore(records)
        for _ in range(5):
            await store.kv_set(KvSet(key="k", value="seen"), new_id())
        await store.kv_delete(KvDelete(key="k"), new_id())

        await taken_in(records, [NewRecord(kind="kv", ns="kv", data=head(key="k", value="new", version=2))])

        assert (await store.kv_get(KvGet(key="k"))).version == 6


@pytest.mark.parametrize("mode", ["fail", "skip", "replace"])
async def test_a_fact_that_is_being_forgotten_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Any
) -> None:
    """For an export, and for an import: what that brings stays, however old it says it is."""
    async with opened(tmp_path) as records:
        store = MemoryStore(records)
        await store.remember(Remember(key="city", value="Porto"), new_id())
        await store.remember(Remember(key="pet", value="a tortoise"), new_id())
        first = await everything(records)
        id = new_id()
        with monkeypatch.context() as patch:
            patch.setattr(facts, "FORGET_ROWS", 1)
            forget = Forget(everything=True)
            await records.write(lambda connection, _: facts.forget(connection, forget, id))
            assert await everything(records) == []

            assert (await taken_in(records, as_new(first[1:]), mode)).imported == 1
            await store.sweep(records.now())

        assert packed(await everything(records)) == packed(first[1:])
        assert await records.read(lambda raw: row(raw, "SELECT count(*) FROM facts")) == (1,)


async def test_an_entry_that_has_expired_is_no_conflict(tmp_path: Path) -> None:
    """It is invisible to everybody, so it is in nobody's way."""
    async with opened(tmp_path / "one") as records:
        gone = NewRecord(kind="kv", ns="kv", data=head(key="k", value=1, version=3, expires_at=NOW - 1))
        await taken_in(records, [gone])

        await taken_in(records, [NewRecord(kind="kv", ns="kv", data=head(key="k", value=2, version=1))])

        assert (await MemoryStore(records).kv_get(KvGet(key="k"))).value == 2


async def test_a_groups_number_belongs_to_one_namespace(tmp_path: Path) -> None:
    """A group of the same number elsewhere is not the same group, and is never overwritten."""
    async with opened(tmp_path / "one") as records:
        group = next(record for record in samples() if record.kind == "group")
        await taken_in(records, [group])

        with pytest.raises(Conflict, match="is a group of namespace 'memory' already"):
            await taken_in(records, [msgspec.structs.replace(group, ns="elsewhere")], "replace")


async def test_what_was_dismissed_or_switched_off_stays_so_after_a_move(tmp_path: Path) -> None:
    """The monitor of the other memory knows it, and forgets on request what it quotes."""
    async with opened(tmp_path / "one") as one, opened(tmp_path / "two") as two:
        await taken_in(one, samples())
        await taken_in(two, as_new(await everything(one)))
        finder: Any = None
        monitor = Monitor(two, finder, lambda: None, is_enabled=True)

        assert (await monitor.listing(SuggestList(user_id="ada"))).suggestions == []
        assert not (await monitor.listing(SuggestList(user_id="ada"))).is_on
        assert (await monitor.listing(SuggestList(user_id="bob"))).is_on
        (kept,) = (await monitor.listing(SuggestList(include_dismissed=True))).suggestions
        assert kept.evidence[0].text == "The bees"

        await Memories(two).delete(MemoryDelete(id="a-second"), new_id())
        assert (await monitor.listing(SuggestList(include_dismissed=True))).suggestions == []
        forgotten = await everything(two, kinds=["suggestion"])
        async with opened(tmp_path / "three") as three:
            await taken_in(three, as_new(forgotten))
            assert packed(await everything(three)) == packed(forgotten)


async def test_a_suggestion_is_exported_without_what_its_reader_may_not_read(tmp_path: Path) -> None:
    """It quotes a memory of another namespace; the one that quotes its own session's turns comes whole."""
    async with opened(tmp_path / "one") as one, opened(tmp_path / "two") as two:
        await taken_in(one, samples())
        (whole,) = await everything(one, kinds=["suggestion"])
        turn = {"kind": "turn", "id": "s/1/1", "text": "The bees?", "score": 1.0, "at": NOW}
        own = {**whole.data, "suggestion_id": f"sug-{'1' * 32}", "evidence": [turn], "evidence_from": "s/1"}
        await taken_in(one, [NewRecord(kind="suggestion", ns="session", data=own)])

        async def exported(*namespaces: str) -> dict[str, ExportRecord]:
            parts: list[ExportPart] = []

            async def send(part: ExportPart) -> None:
                parts.append(part)

            request = MemoryExport(ns="session", kinds=["suggestion"])
            await export(one, request, send, namespaces.__contains__)
            return {record.data["suggestion_id"]: record for part in parts for record in part.records}

        seen = await exported("session")
        assert seen[own["suggestion_id"]].data == own
        (other,) = (record for id, record in seen.items() if id != own["suggestion_id"])
        gone = {"text": "", "reason": "", "evidence": [], "evidence_from": None}
        assert other.data == {**whole.data, **gone}
        assert (await exported("session", "memory"))[whole.data["suggestion_id"]] == whole

        await taken_in(two, as_new(list(seen.values())))
        assert await everything(two, kinds=["suggestion"]) == sorted(
            seen.values(), key=lambda one: one.data["suggestion_id"]
        )


async def test_a_suggestion_belongs_to_one_namespace(tmp_path: Path) -> None:
    """Its id says which; one made up for another is a conflict."""
    async with opened(tmp_path / "one") as records:
        suggestion = next(record for record in samples() if record.kind == "suggestion")
        await taken_in(records, [suggestion])

        with pytest.raises(Conflict, match="is a suggestion of namespace 'session' already"):
            await taken_in(records, [msgspec.structs.replace(suggestion, ns="elsewhere")], "replace")


async def test_an_imported_write_is_an_event(tmp_path: Path) -> None:
    """Subscribers hear of it as of every other write, with the record's id and version."""
    events: list[Event] = []
    async with opened(tmp_path / "one", events) as records:
        await taken_in(records, [record for record in samples() if record.kind in ("memory", "relation")])

    heard = [(event.subject, event.body.key, event.body.action, event.body.version) for event in events]  # type: ignore[attr-defined]
    assert heard == [
        ("memory.changed.memory", "z-first", "import", 4),
        ("memory.changed.memory", "a-second", "import", 4),
        ("memory.changed.memory", "z-first/about/a-second", "import", None),
    ]


async def test_an_import_under_one_id_happens_once(tmp_path: Path) -> None:
    """A batch sent again after a lost connection answers what it answered."""
    async with opened(tmp_path / "one") as records:
        request, request_id = MemoryImport(records=samples()), new_id()
        first = await import_records(records, request, request_id)

        assert await import_records(records, request, request_id) == first


@pytest.mark.parametrize(
    ("kind", "change", "field", "error"),
    [
        ("kv", {"version": "one"}, "version", BadRequest),
        ("kv", {"version": 0}, "version", BadRequest),
        ("kv", {"colour": "red"}, "colour", BadRequest),
        ("kv", {"key": ""}, "key", BadRequest),
        ("kv", {"key": "\ud800"}, "key", BadRequest),
        ("kv", {"updated_at": float("nan")}, "updated_at", BadRequest),
        ("kv", {"expires_at": float("inf")}, "expires_at", BadRequest),
        ("kv", {"value": object()}, "value", BadRequest),
        ("kv", {"value": b"x" * 70_000_000}, "value", TooLarge),
        ("memory", {"tier": "eternal"}, "tier", BadRequest),
        ("memory", {"importance": 2}, "importance", BadRequest),
        ("memory", {"metadata": []}, "metadata", BadRequest),
        ("memory", {"tags": ["\ud800"]}, "tags[0]", BadRequest),
        (
            "session",
            {"turns": [turn(1, "user", "x", None), {**turn(2, "user", "x", None), "at": "noon"}]},
            "turns[1].at",
            BadRequest,
        ),
        ("session", {"turns": "none"}, "turns", BadRequest),
        ("group", {"members": [{}]}, "members[0].memory_id", BadRequest),
        ("session", {"state": "deleting"}, "state", BadRequest),
        ("suggestion", {"suggestion_id": "sug-1"}, "suggestion_id", BadRequest),
        ("suggestion", {"evidence": [{"kind": "turn"}]}, "evidence[0].id", BadRequest),
        (
            "suggestion",
            {"evidence": [{"kind": "turn", "id": "s/1", "text": "", "score": float("nan"), "at": 1.0}]},
            "evidence[0].score",
            BadRequest,
        ),
    ],
)
async def test_a_field_that_does_not_fit_is_named_with_its_record(
    tmp_path: Path, kind: str, change: dict[str, Any], field: str, error: type[BusError]
) -> None:
    """The error says which record and which field; nothing of the batch is stored."""
    async with opened(tmp_path / "one") as records:
        good, bad = samples()[0], next(sample for sample in samples() if sample.kind == kind)
        broken = msgspec.structs.replace(bad, data={**bad.data, **change})

        with pytest.raises(error, match="record 1") as caught:
            await taken_in(records, [good, broken])

        assert (caught.value.details["record"], caught.value.details["field"]) == (1, field)
        assert await everything(records) == []


async def test_a_continuation_without_its_beginning_is_refused(tmp_path: Path) -> None:
    """Turns of a session that is not there would be found by nobody."""
    async with opened(tmp_path / "one") as records:
        lost = {"session_id": "s", "continues": True, "turns": [turn(1_001, "user", "x", None)]}

        with pytest.raises(BadRequest, match="continues a session that is not there"):
            await taken_in(records, [NewRecord(kind="session", ns="session", data=lost)])


async def test_an_export_whose_reader_is_gone_ends(tmp_path: Path) -> None:
    """The connection that holds the state is closed, so the log can be folded in again."""
    async with opened(tmp_path / "one") as records:
        await taken_in(records, samples())

        async def fail(part: ExportPart) -> None:
            raise BadRequest("the caller is gone")

        with pytest.raises(BadRequest, match="gone"):
            await export(records, MemoryExport(), fail)

        blocked, *_ = await records.database.exclusively(lambda raw: row(raw, "PRAGMA wal_checkpoint(TRUNCATE)"))
        assert blocked == 0


async def test_an_import_is_found_as_what_was_written_first(tmp_path: Path) -> None:
    """Chunks and tags are the same whether a record came by its operation or by an import."""
    async with opened(tmp_path / "one") as one, opened(tmp_path / "two") as two:
        memories = Memories(one)
        await memories.add(
            MemoryAdd(content="Bees. " * 400, id="a", tags=["x", "y"], metadata={"speaker": "Ada"}), new_id()
        )
        await memories.add(MemoryAdd(content="Wax", parent_id="a", speaker="Bob", at=5.0), new_id())
        await Documents(one).put(DocPut(doc_id="d", content="Honey. " * 400, title="Honey"), new_id())
        await Experiences(one).record(ExperienceRecord(agent="cook", action="boil", tags=["egg"]), new_id())
        await MemoryStore(one).remember(Remember(key="city", value="Porto " * 400), new_id())
        sessions = Sessions(one, Uncounted(), ttl_s=60.0, on_turns=lambda ns, session_id: None)
        await sessions.create(SessionCreate(session_id="s"), new_id())
        turns = [
            NewTurn(role="user", content="Hello. " * 400, speaker="Ada"),
            NewTurn(role="system", content="Be brief"),
        ]
        await sessions.append(SessionAppend(session_id="s", turns=turns), new_id())

        first = await everything(one)
        await taken_in(two, as_new(first))

        found = [await records.read(searchable) for records in (one, two)]
        assert found[0] == found[1]
        assert len(found[0]) > 12
        assert packed(await everything(two)) == packed(first)


class Uncounted:
    """A counter of tokens that is not asked."""

    async def count(self, texts: Any, model: str | None) -> Any:
        raise NotImplementedError


def searchable(connection: sqlite3.Connection) -> list[Any]:
    """What search works on."""
    queries = (
        'SELECT ns, kind, source_id, start, stream, position, "end", text, speaker, at FROM chunks ORDER BY 1, 2, 3, 4',
        "SELECT ns, tag, id FROM memory_tags ORDER BY 1, 2, 3",
        "SELECT ns, id, typeof(tags) FROM memories ORDER BY 1, 2",
        "SELECT ns, doc_id, typeof(tags), characters, chunks FROM knowledge_base ORDER BY 1, 2",
    )
    return [row for query in queries for row in connection.execute(query)]


async def test_an_imported_context_starts_above_those_that_are_gone(tmp_path: Path) -> None:
    """As entries do."""
    async with opened(tmp_path / "one") as records:
        contexts = Contexts(records)
        for _ in range(5):
            await contexts.put(ContextPut(context_id="c"), new_id())
        await contexts.delete(ContextDelete(context_id="c"), new_id())

        await taken_in(records, [record for record in samples() if record.kind == "context"])

        assert (await contexts.get(ContextGet(context_id="c"))).version == 6


async def test_an_imported_session_without_an_end_lasts(tmp_path: Path) -> None:
    """It is read, listed and gone on with like any other."""
    async with opened(tmp_path / "one") as records:
        fields = {"session_id": "s", "user_id": "ada", "type": "conversation", "state": "open"}
        times = {"created_at": NOW - 90, "last_used_at": NOW - 80}
        await taken_in(records, [NewRecord(kind="session", ns="session", data={**fields, **times})])
        sessions = Sessions(records, Estimator(), ttl_s=60, on_turns=lambda *_: None)

        assert (await sessions.get(SessionGet(session_id="s", touch=True))).state == "open"
        turns = [NewTurn(role="user", content="Hello")]
        appended = await sessions.append(SessionAppend(session_id="s", turns=turns), new_id())
        await sessions.sweep(NOW + 1e6)

        assert appended.expires_at is None
        (listed,) = (await sessions.listing(SessionList())).sessions
        assert (listed.state, listed.expires_at, listed.turns, listed.last_used_at) == ("open", None, 1, NOW)
