"""The memory's operations on a real file, with a fake clock."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas.bodies.memory import (
    AllFacts,
    Changed,
    Fact,
    Find,
    Forget,
    KvDelete,
    KvGet,
    KvList,
    KvSet,
    KvVersion,
    Prompt,
    Recall,
    Remember,
)
from schemas.errors import BadRequest, Conflict, NotFound, TooLarge
from workers.memory import applied, facts
from workers.memory.clock import SteadyClock
from workers.memory.outcome import Outcome, Write
from workers.memory.records import Records
from workers.memory.store import MemoryStore


class Bench:
    """A store, the clock it runs on and the changes it has reported."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.wall_s = 1_000.0
        self.monotonic_s = 0.0
        self.changes: list[Any] = []
        self.records: Records
        self.store: MemoryStore

    async def open(self, **options: Any) -> None:
        """Open the store, as at the start of the process."""
        clock = SteadyClock(lambda: self.wall_s, lambda: self.monotonic_s)
        self.records = await Records.open(
            self.path,
            readers=2,
            on_committed=lambda events: self.changes.extend(event.body for event in events),
            now=clock,
            **options,
        )
        self.store = MemoryStore(self.records)
        await self.store.sweep(await self.records.newest_time())

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.wall_s += seconds
        self.monotonic_s += seconds

    def heard(self) -> list[tuple[str, str, int | None]]:
        """Action, key and version of what was reported since the last look."""
        heard = [(change.action, change.key, change.version) for change in self.changes]
        self.changes.clear()
        return heard

    async def stored_request_ids(self) -> list[str | None]:
        """The request ids in the events that wait for the bus."""
        rows = await self.records.read(lambda raw: raw.execute("SELECT body FROM events_outbox").fetchall())
        return [msgspec.msgpack.decode(body, type=Changed).request_id for (body,) in rows]

    async def set(self, key: str, value: Any = 1, **fields: Any) -> KvVersion:
        """Write an entry under a new request id."""
        return await self.store.kv_set(KvSet(key=key, value=value, **fields), os.urandom(16))

    async def delete(self, key: str, **fields: Any) -> bool:
        """Delete an entry under a new request id."""
        return (await self.store.kv_delete(KvDelete(key=key, **fields), os.urandom(16))).deleted

    async def get(self, key: str, **fields: Any) -> Any:
        """The value of an entry."""
        return (await self.store.kv_get(KvGet(key=key, **fields))).value

    async def keys(self, **fields: Any) -> list[str]:
        """Keys of a listing."""
        return [entry.key for entry in (await self.store.kv_list(KvList(**fields))).entries]

    async def remember(self, key: str, value: str = "v", **fields: Any) -> Fact:
        """Keep a fact under a new request id."""
        return await self.store.remember(Remember(key=key, value=value, **fields), os.urandom(16))

    async def recall(self, key: str) -> Fact:
        """Recall a fact under a new request id."""
        return await self.store.recall(Recall(key=key), os.urandom(16))

    async def find(self, query: str, **fields: Any) -> list[str]:
        """Keys of the facts found."""
        return [fact.key for fact in (await self.store.find(Find(query=query, **fields))).facts]


@asynccontextmanager
async def bench(tmp_path: Path, **options: Any) -> AsyncIterator[Bench]:
    """A bench on a new file."""
    made = Bench(tmp_path / "memory.db")
    await made.open(**options)
    try:
        yield made
    finally:
        await made.records.close()


# Key-value entries ----------------------------------------------------------------------------------------------


async def test_an_entry_comes_back_as_written(tmp_path: Path) -> None:
    """Value, version and times; a second write keeps the time of creation."""
    value = {"text": "a\0b ünï 🙂", "bytes": b"\x00\xff", "nested": [1, [2.5, None, True]], 7: 2**64 - 1}
    async with bench(tmp_path) as at:
        await at.set("k")
        at.wait(5)
        written = await at.set("k", value, ttl_s=60)
        entry = await at.store.kv_get(KvGet(key="k"))

    assert entry.value == value
    assert (written.version, written.created_at, written.updated_at, written.expires_at) == (2, 1000, 1005, 1065)
    assert (entry.version, entry.created_at, entry.updated_at, entry.expires_at) == (2, 1000, 1005, 1065)


async def test_entries_survive_closing_and_opening(tmp_path: Path) -> None:
    """What was acknowledged is in the file."""
    async with bench(tmp_path) as at:
        await at.set("k", [1, 2])
        await at.records.close()
        await at.open()

        assert await at.get("k") == [1, 2]


async def test_a_missing_entry_is_not_found_by_namespace_and_key(tmp_path: Path) -> None:
    """The error says what was looked for and where."""
    async with bench(tmp_path) as at:
        await at.set("k", ns="mine")

        with pytest.raises(NotFound, match="no entry 'k' in namespace 'kv'") as caught:
            await at.get("k")

    assert caught.value.details == {"ns": "kv", "key": "k"}


async def test_namespaces_keep_callers_apart(tmp_path: Path) -> None:
    """The same key in two namespaces is two entries, with versions of their own."""
    async with bench(tmp_path) as at:
        await at.set("k", "a", ns="one")
        assert (await at.set("k", "b", ns="two")).version == 1

        await at.delete("k", ns="two")

        assert await at.get("k", ns="one") == "a"
        assert await at.keys(ns="two") == []


async def test_compare_and_set_refuses_a_stale_version_and_says_the_actual_one(tmp_path: Path) -> None:
    """0 asks for no entry, a number for that version; the store is left as it was."""
    async with bench(tmp_path) as at:
        assert (await at.set("k", "a", if_version=0)).version == 1
        with pytest.raises(Conflict, match="is at version 1, the request asked for no entry") as caught:
            await at.set("k", "b", if_version=0)
        assert caught.value.details["version"] == 1
        assert (await at.set("k", "c", if_version=1)).version == 2
        with pytest.raises(Conflict, match="is at version 2, the request asked for version 1"):
            await at.delete("k", if_version=1)
        with pytest.raises(Conflict, match="does not exist, the request asked for version 5") as caught:
            await at.set("other", if_version=5)
        assert caught.value.details["version"] == 0

        assert await at.get("k") == "c"
        assert await at.delete("k", if_version=2)
        assert not await at.delete("k", if_version=0)


async def test_a_version_seen_before_a_delete_never_fits_what_comes_after(tmp_path: Path) -> None:
    """Deleting or expiring an entry and making it again cannot fool compare-and-set."""
    async with bench(tmp_path) as at:
        seen = (await at.set("k", ttl_s=10)).version
        await at.delete("k")
        again = (await at.set("k", ttl_s=10)).version
        at.wait(10)
        third = (await at.set("k", if_version=0)).version

        assert seen < again < third
        with pytest.raises(Conflict):
            await at.set("k", if_version=seen)

        await at.set("young")
        await at.delete("k")
        await at.delete("young")
        assert (await at.set("k")).version > third


async def test_one_of_many_racing_compare_and_sets_wins(tmp_path: Path) -> None:
    """Fifty callers with the same version: one write, forty-nine conflicts."""
    async with bench(tmp_path) as at:
        answers = await asyncio.gather(*(at.set("k", n, if_version=0) for n in range(50)), return_exceptions=True)

    assert sum(isinstance(answer, KvVersion) for answer in answers) == 1
    assert sum(isinstance(answer, Conflict) for answer in answers) == 49


async def test_an_expired_entry_is_invisible_at_once(tmp_path: Path) -> None:
    """Before any sweep: not read, not listed, not there for compare-and-set and delete."""
    async with bench(tmp_path) as at:
        await at.set("k", ttl_s=10)
        await at.set("other", ttl_s=10)
        at.wait(9.999)
        assert await at.get("k") == 1

        at.wait(0.001)

        with pytest.raises(NotFound):
            await at.get("k")
        assert await at.keys() == []
        assert not await at.delete("k")
        assert (await at.set("other", if_version=0)).created_at == 1010


async def test_a_write_without_a_time_to_live_makes_the_entry_permanent(tmp_path: Path) -> None:
    """Each write says anew how long the entry lives."""
    async with bench(tmp_path) as at:
        await at.set("k", ttl_s=10)
        await at.set("k")
        at.wait(1e9)

        assert await at.get("k") == 1


async def test_the_sweep_removes_expired_entries_and_reports_them(tmp_path: Path) -> None:
    """Also more of them than one transaction takes."""
    async with bench(tmp_path) as at:
        await asyncio.gather(*(at.set(f"k{number:04}", ttl_s=1 + number) for number in range(1_200)))
        await at.set("stays")
        at.wait(1_100)
        at.heard()

        await at.store.sweep(at.records.now())

        heard = at.heard()
        assert [action for action, _, _ in heard] == ["expire"] * 1_100
        assert len(await at.keys(limit=1_000)) == 101
        await at.store.sweep(at.records.now())
        assert at.heard() == []


async def test_a_wall_clock_set_back_does_not_bring_expired_entries_back(tmp_path: Path) -> None:
    """Neither while the process runs nor across a restart."""
    async with bench(tmp_path) as at:
        await at.set("k", ttl_s=10)
        at.wait(20)
        await at.set("later")
        at.wall_s = 5.0

        with pytest.raises(NotFound):
            await at.get("k")

        await at.records.close()
        await at.open()
        with pytest.raises(NotFound):
            await at.get("k")
        assert await at.get("later") == 1
        assert (await at.set("later", 2)).version == 2


async def test_listing_goes_by_prefix_in_key_order_page_by_page(tmp_path: Path) -> None:
    """`%` and `_` are characters like others, `after` continues, the last page says so."""
    async with bench(tmp_path) as at:
        for key in ("a%1", "a%2", "a_1", "ab", "b", "a\uffff", "a\U0010ffff", "a", "é", "a%\0"):
            await at.set(key)

        assert await at.keys() == ["a", "a%\0", "a%1", "a%2", "a_1", "ab", "a\uffff", "a\U0010ffff", "b", "é"]
        assert await at.keys(prefix="a%") == ["a%\0", "a%1", "a%2"]
        assert await at.keys(prefix="a_") == ["a_1"]
        assert await at.keys(prefix="a\U0010ffff") == ["a\U0010ffff"]
        assert await at.keys(prefix="zz") == []
        assert await at.keys(prefix="a%", after="A") == ["a%\0", "a%1", "a%2"]
        page = await at.store.kv_list(KvList(prefix="a%", limit=2, keys_only=True))
        assert ([entry.key for entry in page.entries], page.next_after) == (["a%\0", "a%1"], "a%1")
        assert page.entries[0].value is None
        rest = await at.store.kv_list(KvList(prefix="a%", limit=2, after=page.next_after))
        assert ([entry.key for entry in rest.entries], rest.next_after) == (["a%2"], None)


async def test_a_page_of_large_values_ends_before_it_outgrows_a_message(tmp_path: Path) -> None:
    """Fewer entries than asked for, and `next_after` to go on; one large entry still comes."""
    async with bench(tmp_path, max_body_bytes=100_000) as at:
        for key in "abc":
            await at.set(key, b"x" * 40_000)

        page = await at.store.kv_list(KvList())
        assert ([entry.key for entry in page.entries], page.next_after) == (["a"], "a")
        assert await at.keys(keys_only=True) == ["a", "b", "c"]


async def test_a_value_that_no_reply_could_carry_is_refused(tmp_path: Path) -> None:
    """The limit is the body limit less what stands around a value."""
    async with bench(tmp_path, max_body_bytes=100_000) as at:
        await at.set("k", b"x" * 99_000)

        with pytest.raises(TooLarge, match="value has 99905 bytes, the limit is 99485"):
            await at.set("k", b"x" * 99_900)
        assert len(await at.get("k")) == 99_000


async def test_text_that_is_not_unicode_is_refused_by_field_in_every_operation(tmp_path: Path) -> None:
    """A lone surrogate is the caller's mistake wherever it stands."""
    bad = "x\udfff"
    async with bench(tmp_path) as at:
        for field, call in (
            ("key", at.set(bad)),
            ("key", at.get(bad)),
            ("key", at.delete(bad)),
            ("prefix", at.keys(prefix=bad)),
            ("after", at.keys(after=bad)),
            ("value", at.set("k", bad)),
            ("value", at.remember("k", bad)),
            ("category", at.remember("k", category=bad)),
            ("query", at.find(bad)),
            ("key", at.recall(bad)),
        ):
            with pytest.raises(BadRequest) as caught:
                await call
            assert caught.value.details["field"] == field


async def test_every_write_reports_what_it_did_and_nothing_else_does(tmp_path: Path) -> None:
    """Set, delete and lazy expiry of an entry; a delete of nothing is silent."""
    async with bench(tmp_path) as at:
        await at.set("k", ttl_s=1)
        await at.set("k", ttl_s=1)
        at.wait(1)
        await at.set("k")
        await at.delete("k")
        await at.delete("k")

        assert at.heard() == [
            ("set", "k", 1), ("set", "k", 2), ("expire", "k", 2), ("set", "k", 3), ("delete", "k", 3)
        ]  # fmt: skip


# Exactly once ---------------------------------------------------------------------------------------------------


async def test_a_repeated_request_returns_its_first_reply_and_changes_nothing(tmp_path: Path) -> None:
    """Compare-and-set, delete and remember sent twice under one id happen once, also across a restart."""
    ids = [os.urandom(16) for _ in range(4)]
    async with bench(tmp_path) as at:
        first = await at.store.kv_set(KvSet(key="k", value=1, if_version=0), ids[0])
        assert await at.stored_request_ids() == [ids[0].hex()]
        deleted = await at.store.kv_delete(KvDelete(key="k"), ids[1])
        fact = await at.store.remember(Remember(key="f", value="v"), ids[2])
        await at.set("k", "of another caller")
        await at.records.close()
        at.heard()
        at.wait(10)
        await at.open()

        assert await at.store.kv_set(KvSet(key="k", value=1, if_version=0), ids[0]) == first
        assert await at.store.kv_delete(KvDelete(key="k"), ids[1]) == deleted
        assert await at.store.remember(Remember(key="f", value="v"), ids[2]) == fact

        assert await at.get("k") == "of another caller"
        assert at.heard() == []


async def test_a_request_repeated_in_the_same_batch_happens_once(tmp_path: Path) -> None:
    """Both copies waiting for the same commit get the same reply."""
    request_id = os.urandom(16)
    async with bench(tmp_path) as at:
        replies = await asyncio.gather(*(at.store.kv_set(KvSet(key="k", value=1), request_id) for _ in range(5)))

    assert [reply.version for reply in replies] == [1] * 5
    assert len(at.changes) == 1


async def test_a_refused_write_is_tried_anew_under_its_id(tmp_path: Path) -> None:
    """Only success is remembered."""
    request_id = os.urandom(16)
    async with bench(tmp_path) as at:
        with pytest.raises(Conflict):
            await at.store.kv_set(KvSet(key="k", value=1, if_version=1), request_id)
        await at.set("k")

        assert (await at.store.kv_set(KvSet(key="k", value=1, if_version=1), request_id)).version == 2


async def test_an_id_used_by_another_operation_is_a_conflict(tmp_path: Path) -> None:
    """An answer of the wrong shape is never given."""
    request_id = os.urandom(16)
    async with bench(tmp_path) as at:
        await at.store.kv_set(KvSet(key="k", value=1), request_id)

        with pytest.raises(Conflict, match=r"already used for memory\.kv\.set"):
            await at.store.kv_delete(KvDelete(key="k"), request_id)


async def test_replies_are_forgotten_after_an_hour(tmp_path: Path) -> None:
    """The sweep removes outdated ones, more than one transaction's worth, and keeps the others."""
    request_id = os.urandom(16)
    async with bench(tmp_path) as at:
        await at.store.kv_set(KvSet(key="k", value=1), request_id)
        await asyncio.gather(*(at.set("k") for _ in range(applied.PRUNE_ROWS + 10)))
        at.wait(applied.KEEP_S - 1)
        late = os.urandom(16)
        kept = await at.store.kv_set(KvSet(key="k", value=1), late)
        at.wait(2)

        await at.store.sweep(at.records.now())

        assert (await at.store.kv_set(KvSet(key="k", value=1), request_id)).version == kept.version + 1
        assert await at.store.kv_set(KvSet(key="k", value=1), late) == kept


async def test_replies_given_by_a_clock_that_was_ahead_are_forgotten_too(tmp_path: Path) -> None:
    """From when the clock was set right and the service started again, not from the time it said."""
    async with bench(tmp_path) as at:
        at.wall_s += 10 * 366 * 86_400
        await at.set("k")
        await at.records.close()
        at.wall_s -= 10 * 366 * 86_400
        await at.open()
        await at.records.write(lambda connection, now: Outcome(applied.date_back(connection, now), []))
        await at.set("k")
        at.wait(applied.KEEP_S + 1)
        await at.set("k")

        await at.store.sweep(at.records.now())

        kept = await at.records.read(
            lambda connection: connection.execute("SELECT applied_at FROM applied_requests").fetchall()
        )
        assert [applied_at for (applied_at,) in kept] == [at.records.now()]


# Facts ----------------------------------------------------------------------------------------------------------


async def test_a_fact_is_replaced_by_key_and_keeps_its_age_and_count(tmp_path: Path) -> None:
    """Remembering again changes value, category, source and the time of the update."""
    async with bench(tmp_path) as at:
        await at.remember("name", "Ada")
        await at.recall("name")
        at.wait(5)

        fact = await at.remember("name", "Ada L.", category="preference", source="chat")

    assert fact == Fact(
        key="name",
        value="Ada L.",
        category="preference",
        source="chat",
        ns="user",
        created_at=1000,
        updated_at=1005,
        access_count=1,
        last_accessed_at=1000,
    )


async def test_recall_counts_the_access_and_says_so(tmp_path: Path) -> None:
    """Once per request id; a missing fact is not found; no change is reported."""
    request_id = os.urandom(16)
    async with bench(tmp_path) as at:
        await at.remember("name", "Ada")
        at.heard()
        at.wait(3)
        assert (await at.recall("name")).access_count == 1
        for _ in range(2):
            fact = await at.store.recall(Recall(key="name"), request_id)
            assert (fact.access_count, fact.last_accessed_at) == (2, 1003)
        with pytest.raises(NotFound, match="nothing is known as 'nobody' in namespace 'user'"):
            await at.recall("nobody")

        assert at.heard() == []


async def test_find_searches_key_value_and_category_by_stem(tmp_path: Path) -> None:
    """Words match in any form; a match in the key ranks first; namespace and category narrow."""
    async with bench(tmp_path) as at:
        await at.remember("favourite_colour", "blue like the sea", category="preference")
        await at.remember("note", "the colours of the house are red and favourite")
        await at.remember("colour", "elsewhere", ns="other")

        assert await at.find("colours") == ["favourite_colour", "note"]
        assert await at.find("favourite colour") == ["favourite_colour", "note"]
        assert await at.find("PREFERENCE") == ["favourite_colour"]
        assert await at.find("colour", category="fact") == ["note"]
        assert await at.find("colour", ns="other") == ["colour"]
        assert await at.find("colour", limit=1) == ["favourite_colour"]
        assert sorted(await at.find("houses sea")) == ["favourite_colour", "note"]
        assert await at.find("nothing") == []


async def test_find_falls_back_to_the_beginning_of_the_last_word(tmp_path: Path) -> None:
    """So that typing helps, and a question finds what it is about."""
    async with bench(tmp_path) as at:
        await at.remember("birthday", "10 December")
        await at.remember("city", "London")

        assert await at.find("bir") == ["birthday"]
        assert await at.find("10 dec") == ["birthday"]
        assert await at.find("do you know my birthday?") == ["birthday"]
        assert await at.find("my lond") == ["city"]


@pytest.mark.parametrize(
    "query",
    ['"', '""', "*", "(", "a AND", "NOT", "NEAR(a b, 2)", "key:name", "-a", "^a", "a OR", "{x}", "a\0b", "'; --", "🙂", "_",
     "\\", "+", ",", "OR", "word " * 800, "a" * 4096, "\u0301", "हिन्दी"],
)  # fmt: skip
async def test_search_text_is_never_syntax(tmp_path: Path, query: str) -> None:
    """Whatever people type finds something or nothing, and is no error."""
    async with bench(tmp_path) as at:
        await at.remember("name", "Ada हिन्दी")

        assert await at.find(query) in ([], ["name"])


async def test_the_index_follows_updates_and_deletes(tmp_path: Path) -> None:
    """A replaced value is no longer found, a new one is, a forgotten fact is gone."""
    async with bench(tmp_path) as at:
        await at.remember("pet", "a cat")
        await at.remember("pet", "a dog")
        await at.recall("pet")
        assert (await at.find("cat"), await at.find("dog")) == ([], ["pet"])

        await at.store.forget(Forget(key="pet"), os.urandom(16))

        assert await at.find("dog") == []
        await at.records.write(check_index)


def check_index(connection: sqlite3.Connection, now: float) -> Outcome:
    """A write that raises when the full-text index and the table disagree."""
    connection.execute("INSERT INTO facts_text (facts_text, rank) VALUES ('integrity-check', 1)")
    return Outcome(None, [])


async def test_forget_takes_one_fact_a_category_or_everything(tmp_path: Path) -> None:
    """The reply names what went, and each is reported; other namespaces stay."""
    async with bench(tmp_path) as at:
        for key, category in (("a", "fact"), ("b", "context"), ("c", "context"), ("d", "fact")):
            await at.remember(key, category=category)
        await at.remember("a", ns="other")
        at.heard()

        async def forget(**fields: Any) -> tuple[int, list[str]]:
            reply = await at.store.forget(Forget(**fields), os.urandom(16))
            return reply.forgotten, reply.keys

        assert await forget(key="a") == (1, ["a"])
        assert await forget(key="a") == (0, [])
        assert await forget(category="context") == (2, ["b", "c"])
        assert await forget(everything=True) == (1, ["d"])
        assert [(action, key) for action, key, _ in at.heard()] == [("forget", key) for key in "abcd"]
        assert (await at.store.all(AllFacts(ns="other"))).facts[0].key == "a"


def fill(count: int, *, updated_at: float = 0.0) -> Write:
    """A write that keeps facts k000, k001 and so on, the odd ones as preferences."""

    def write(connection: sqlite3.Connection, now: float) -> Outcome:
        for number in range(count):
            key, category = f"k{number:03}", ("fact", "preference")[number % 2]
            facts.remember(connection, Remember(key=key, value=f"value {number}", category=category), now)
        connection.execute("UPDATE facts SET updated_at = max(updated_at, ?)", (updated_at,))
        return Outcome(None, [])

    return write


@pytest.mark.parametrize(
    ("fields", "step"), [({"everything": True}, 1), ({"category": "preference"}, 2)], ids=["everything", "category"]
)
async def test_many_facts_are_forgotten_in_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], step: int
) -> None:
    """No transaction takes more than its share; the answer, once all are gone, and the events are as of one."""
    monkeypatch.setattr(facts, "FORGET_ROWS", 7)
    monkeypatch.setattr(facts, "FORGOTTEN_KEYS_MAX", 10)
    expected = [f"k{number:03}" for number in range(40)][step - 1 :: step]
    request_id = os.urandom(16)
    async with bench(tmp_path) as at:
        await at.remember("k000", ns="other")
        # Dated ahead, as by an import from another clock: asked for like the others.
        await at.records.write(fill(40, updated_at=at.wall_s + 0.001))
        batches: list[int] = []
        at.records.database._on_committed = lambda events: batches.append(len(events))

        reply = await at.store.forget(Forget(**fields), request_id)
        again = await at.store.forget(Forget(**fields), request_id)

        assert again == reply
        assert (reply.forgotten, reply.keys) == (len(expected), expected[:10])
        assert max(batches) == 7
        rows = await at.records.read(lambda raw: raw.execute("SELECT body FROM events_outbox").fetchall())
        told = [msgspec.msgpack.decode(body, type=Changed) for (body,) in rows]
        assert [event.key for event in told if event.action == "forget"] == expected
        assert {event.request_id for event in told if event.action == "forget"} == {request_id.hex()}
        assert [fact.key for fact in (await at.store.all(AllFacts())).facts] == [
            f"k{number:03}" for number in range(40) if f"k{number:03}" not in expected
        ]
        assert await at.records.read(lambda raw: raw.execute("SELECT * FROM service_state").fetchall()) == []
        assert (await at.store.all(AllFacts(ns="other"))).facts[0].key == "k000"
        await at.records.write(check_index)


async def test_a_forgetting_that_was_cut_off_is_finished_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the next start or sweep; what was remembered since it was asked for stays, under an old key too."""
    monkeypatch.setattr(facts, "FORGET_ROWS", 7)
    request_id = os.urandom(16)

    async def cut_off(self: MemoryStore, request_id: bytes) -> None:
        await self._records.write(lambda connection, _: facts.forget_some(connection, request_id))
        raise RuntimeError("killed")

    async with bench(tmp_path) as at:
        await at.records.write(fill(40))
        with monkeypatch.context() as patch:
            patch.setattr(MemoryStore, "_forget_rest", cut_off)
            with pytest.raises(RuntimeError, match="killed"):
                await at.store.forget(Forget(everything=True), request_id)
        assert (await at.store.all(AllFacts())).facts == []
        await at.remember("k030", "said again")
        await at.remember("new")

        await at.records.close()
        await at.open()

        left = [(fact.key, fact.value) for fact in (await at.store.all(AllFacts())).facts]
        assert left == [("k030", "said again"), ("new", "v")]
        assert (await at.store.forget(Forget(everything=True), request_id)).forgotten == 40
        assert len((await at.store.all(AllFacts())).facts) == 2


async def test_what_is_being_forgotten_is_found_by_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the start on, though the rows are still there; who asks to forget them again forgets nothing."""
    monkeypatch.setattr(facts, "FORGET_ROWS", 7)
    request_id = os.urandom(16)
    request = Forget(category="preference")
    async with bench(tmp_path) as at:
        await at.records.write(fill(40))
        await at.records.write(lambda connection, _: facts.forget(connection, request, request_id))

        with pytest.raises(NotFound):
            await at.store.recall(Recall(key="k001"), os.urandom(16))
        found = await at.store.find(Find(query="value", limit=100))
        assert len(found.facts) == len((await at.store.all(AllFacts())).facts) == 20
        assert {fact.category for fact in found.facts} == {"fact"}
        assert "k001" not in (await at.store.prompt(Prompt(max_tokens=4_000))).text
        assert (await at.store.forget(Forget(key="k001"), os.urandom(16))).forgotten == 0
        assert (await at.store.forget(request, os.urandom(16))).forgotten == 0
        assert (await at.store.forget(Forget(everything=True), os.urandom(16))).forgotten == 20


async def test_what_is_remembered_along_with_a_forgetting_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one batch, so at the same instant; a key that was forgotten begins anew."""
    monkeypatch.setattr(facts, "FORGET_ROWS", 7)
    async with bench(tmp_path) as at:
        await at.records.write(fill(40))
        await at.store.recall(Recall(key="k030"), os.urandom(16))
        at.wait(5)

        forgetting, *_ = await asyncio.gather(
            at.store.forget(Forget(everything=True), os.urandom(16)), at.remember("k030", "again"), at.remember("zzz")
        )

        assert forgetting.forgotten == 40
        left = (await at.store.all(AllFacts())).facts
        assert [(fact.key, fact.value, fact.access_count) for fact in left] == [("k030", "again", 0), ("zzz", "v", 0)]
        assert left[0].created_at == left[0].updated_at
        await at.records.write(check_index)


@pytest.mark.parametrize(
    ("fields", "given"),
    [({}, "none of them"), ({"key": "a", "everything": True}, "key and everything"),
     ({"key": "a", "category": "b"}, "key and category")],
)  # fmt: skip
async def test_forget_wants_exactly_one_choice(tmp_path: Path, fields: dict[str, Any], given: str) -> None:
    """Nothing goes by accident: the request has to say what it means."""
    async with bench(tmp_path) as at:
        await at.remember("a")

        with pytest.raises(BadRequest, match=f"exactly one of key, category and everything; the request has {given}"):
            await at.store.forget(Forget(**fields), os.urandom(16))
        assert len((await at.store.all(AllFacts())).facts) == 1


async def test_all_lists_facts_by_key_page_by_page(tmp_path: Path) -> None:
    """With a category, and continued behind a key."""
    async with bench(tmp_path) as at:
        for key in "cab":
            await at.remember(key)
        await at.remember("x", category="context")

        page = await at.store.all(AllFacts(limit=2))
        assert ([fact.key for fact in page.facts], page.next_after) == (["a", "b"], "b")
        page = await at.store.all(AllFacts(limit=2, after="b"))
        assert ([fact.key for fact in page.facts], page.next_after) == (["c", "x"], None)
        assert [fact.key for fact in (await at.store.all(AllFacts(category="context"))).facts] == ["x"]


async def test_prompt_holds_the_most_useful_facts_within_its_budget(tmp_path: Path) -> None:
    """Lasting before passing, used before unused; the rest is named; categories narrow; nothing known is empty."""
    async with bench(tmp_path) as at:
        assert (await at.store.prompt(Prompt())).text == ""
        await at.remember("today", "shopping", category="context")
        await at.remember("city", "London")
        await at.remember("name", "Ada")
        await at.recall("name")

        whole = await at.store.prompt(Prompt())
        assert whole.text == "Known facts about the user:\n- name: Ada\n- city: London\n- today: shopping"
        small = await at.store.prompt(Prompt(max_tokens=14))
        assert (small.text, small.left_out) == ("Known facts about the user:\n- name: Ada", ["city", "today"])
        only = await at.store.prompt(Prompt(categories=["context"]))
        assert only.included == ["today"]
        assert (await at.store.prompt(Prompt(ns="other"))).text == ""


async def test_texts_with_null_bytes_are_kept_whole(tmp_path: Path) -> None:
    """SQLite and its index take them; nothing is cut off."""
    async with bench(tmp_path) as at:
        await at.remember("k\0ey", "va\0lue word", category="c\0")
        await at.set("k\0ey", "va\0lue")

        assert (await at.recall("k\0ey")).value == "va\0lue word"
        assert await at.find("word") == ["k\0ey"]
        assert await at.get("k\0ey") == "va\0lue"
