"""Key-value operations against a plain dict, in any order hypothesis can think of."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from schemas.bodies.memory import KvDelete, KvGet, KvList, KvSet
from schemas.errors import Conflict, NotFound
from workers.memory.records import Records
from workers.memory.store import MemoryStore

# One key and one namespace are drawn far more often: what can go wrong needs several steps on the same entry.
KEYS = st.sampled_from(["a"] * 10 + ["a%", "a_", "ab", "b", "a\0", "a\uffff", "a\U0010ffff", "é"])
NAMESPACES = st.sampled_from(["kv", "kv", "kv", "other"])
VALUES = st.none() | st.integers(-5, 2**64 - 1) | st.binary(max_size=3) | st.lists(st.text(max_size=2), max_size=2)
TTLS = st.sampled_from([None, 1.0, 2.5])
# The version to ask for, told relative to the one the model holds.
VERSIONS = st.sampled_from(["any", "any", "right", "right", "zero", "stale", "future"])


class Entry(NamedTuple):
    """What the model knows of an entry."""

    value: Any
    version: int
    expires_at: float | None


class KvMachine(RuleBasedStateMachine):
    """The store and the model take the same steps; after each they must hold the same."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="memory-model-"))
        self.now = 1_000.0
        self.entries: dict[tuple[str, str], Entry] = {}
        self.floors: dict[str, int] = {}
        self.changes: list[Any] = []
        self.last_write: tuple[KvSet, bytes, Any] | None = None
        self.runner = asyncio.Runner()
        self.open()

    def open(self) -> None:
        """Open the store on this example's file."""
        self.records = self.runner.run(
            Records.open(
                self.folder / "memory.db",
                readers=1,
                on_committed=lambda events: self.changes.extend(event.body for event in events),
                now=lambda: self.now,
            )
        )
        self.store = MemoryStore(self.records)
        self.runner.run(self.sweep_at_start())

    async def sweep_at_start(self) -> None:
        """What the service does before it serves."""
        await self.store.sweep(await self.records.newest_time())

    def teardown(self) -> None:
        """End the store's threads and remove its file."""
        self.runner.run(self.records.close())
        self.runner.close()
        shutil.rmtree(self.folder)

    def live(self, ns: str, key: str) -> Entry | None:
        """The model's entry, None when it has expired."""
        entry = self.entries.get((ns, key))
        is_live = entry is not None and (entry.expires_at is None or entry.expires_at > self.now)
        return entry if is_live else None

    def drop(self, ns: str, key: str) -> None:
        """Take an entry out of the model and raise the namespace's floor."""
        gone = self.entries.pop((ns, key), None)
        if gone is not None:
            self.floors[ns] = max(self.floors.get(ns, 0), gone.version)

    def asked_version(self, which: str, ns: str, key: str) -> int | None:
        """A value for `if_version`."""
        entry = self.live(ns, key)
        actual = entry.version if entry else 0
        return {"any": None, "right": actual, "zero": 0, "stale": max(0, actual - 1), "future": actual + 1}[which]

    @rule(ns=NAMESPACES, key=KEYS, value=VALUES, ttl_s=TTLS, which=VERSIONS)
    def set(self, ns: str, key: str, value: Any, ttl_s: float | None, which: str) -> None:
        """A write, plain or compare-and-set."""
        if_version = self.asked_version(which, ns, key)
        entry = self.live(ns, key)
        request = KvSet(key=key, value=value, ns=ns, ttl_s=ttl_s, if_version=if_version)
        request_id = os.urandom(16)
        if if_version is not None and if_version != (entry.version if entry else 0):
            with pytest.raises(Conflict) as caught:
                self.runner.run(self.store.kv_set(request, request_id))
            assert caught.value.details["version"] == (entry.version if entry else 0)
            return

        reply = self.runner.run(self.store.kv_set(request, request_id))

        if entry is None:
            self.drop(ns, key)
        version = entry.version + 1 if entry else self.floors.get(ns, 0) + 1
        self.entries[ns, key] = Entry(value, version, None if ttl_s is None else self.now + ttl_s)
        assert reply.version == version
        self.last_write = (request, request_id, reply)

    @rule(ns=NAMESPACES, key=KEYS, which=VERSIONS)
    def delete(self, ns: str, key: str, which: str) -> None:
        """A delete, plain or compared."""
        if_version = self.asked_version(which, ns, key)
        entry = self.live(ns, key)
        request = KvDelete(key=key, ns=ns, if_version=if_version)
        if if_version is not None and if_version != (entry.version if entry else 0):
            with pytest.raises(Conflict):
                self.runner.run(self.store.kv_delete(request, os.urandom(16)))
            return

        reply = self.runner.run(self.store.kv_delete(request, os.urandom(16)))

        assert reply.deleted == (entry is not None)
        self.drop(ns, key)

    @rule()
    def repeat_last_write(self) -> None:
        """The same request id again: the same reply, and nothing changes."""
        if self.last_write is not None:
            request, request_id, reply = self.last_write
            assert self.runner.run(self.store.kv_set(request, request_id)) == reply

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.5]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.now += seconds

    @rule()
    def sweep(self) -> None:
        """Expired entries leave for good."""
        self.runner.run(self.store.sweep(self.now))
        for ns, key in [place for place in self.entries if self.live(*place) is None]:
            self.drop(ns, key)

    @rule()
    def restart(self) -> None:
        """Close and open: opening sweeps too."""
        self.runner.run(self.records.close())
        self.open()
        for ns, key in [place for place in self.entries if self.live(*place) is None]:
            self.drop(ns, key)

    @rule(ns=NAMESPACES, key=KEYS)
    def get(self, ns: str, key: str) -> None:
        """One entry or not found."""
        entry = self.live(ns, key)
        request = KvGet(key=key, ns=ns)
        if entry is None:
            with pytest.raises(NotFound):
                self.runner.run(self.store.kv_get(request))
            return
        found = self.runner.run(self.store.kv_get(request))
        assert (found.value, found.version, found.expires_at) == entry

    @rule(ns=NAMESPACES, prefix=st.just("") | KEYS, after=st.none() | KEYS, limit=st.integers(1, 4))
    def list_all_pages(self, ns: str, prefix: str, after: str | None, limit: int) -> None:
        """The pages together are the model's keys in order."""
        expected = sorted(
            key
            for space, key in self.entries
            if space == ns and self.live(ns, key) and key.startswith(prefix) and (after is None or key > after)
        )
        listed: list[str] = []
        while True:
            request = KvList(prefix=prefix, ns=ns, limit=limit, after=after)
            page = self.runner.run(self.store.kv_list(request))
            assert len(page.entries) <= limit
            listed += [entry.key for entry in page.entries]
            after = page.next_after
            if after is None:
                break
        assert listed == expected

    @invariant()
    def events_tell_the_same_story(self) -> None:
        """Replaying the reported changes gives the versions of what is stored."""
        told: dict[tuple[str, str], int | None] = {}
        for change in self.changes:
            if change.action == "set":
                told[change.ns, change.key] = change.version
            else:
                assert told.pop((change.ns, change.key)) == change.version
        assert told == {place: entry.version for place, entry in self.entries.items()}


class TestKvAgainstModel(KvMachine.TestCase):  # type: ignore[misc]
    """Runs the machine: set, get, delete, list, expiry, compare-and-set, repeats and restarts agree with a dict."""

    settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
