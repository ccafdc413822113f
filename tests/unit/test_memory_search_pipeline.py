"""Search over a real database, with an encoder and an index that a test can read."""

from __future__ import annotations

import asyncio
import math
import sqlite3
import uuid
import zlib
from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from bus.settings import SearchSettings
from schemas.bodies.items import DocPut, MemoryAdd, MemoryDelete, MemoryGet, MemoryLink
from schemas.bodies.memory import Forget, Remember
from schemas.bodies.search import Filters, Search, SearchReply
from schemas.bodies.sessions import NewTurn, SessionAppend, SessionCreate
from schemas.errors import BadRequest
from tests.sessions_bench import WordCounter
from workers.memory import facts
from workers.memory.items.documents import Documents
from workers.memory.items.memories import Memories
from workers.memory.records import Records
from workers.memory.search import filters, meaning, text_index
from workers.memory.search.pipeline import Searcher
from workers.memory.search.sight import Sight
from workers.memory.sessions.sessions import Sessions
from workers.memory.store import MemoryStore
from workers.memory.vectors.unavailable import EncoderUnavailable, IndexBusy

NOW = 1_700_000_000.0
DAY_S = 86_400.0

# What the encoder understands: words that mean the same share a number.
MEANINGS = {"dog": 0, "puppy": 0, "hound": 0, "car": 1, "automobile": 1, "rain": 2, "drizzle": 2, "cook": 3, "meal": 3}


# Components beside those, of which each text has one: what else it means.
OTHERS = 60


def vector(text: str) -> list[float]:
    """One component for each meaning, and one for everything else in the text; of length 1."""
    components = [0.0] * (4 + OTHERS)
    components[4 + zlib.crc32(text.encode()) % OTHERS] = 0.5
    for word in text.lower().replace("?", " ").replace(".", " ").split():
        if word in MEANINGS:
            components[MEANINGS[word]] += 1.0
    length = math.sqrt(sum(component * component for component in components))
    return [component / length for component in components]


class Meaning:
    """Encoder and index in one, over the chunks of the database."""

    name = "meanings"
    dimension = 4 + OTHERS
    search_here: Any = None

    def __init__(self, records: Records) -> None:
        self._records = records
        self.limits: list[int] = []
        self.problem: str | None = None

    async def encode(self, texts: Sequence[str], *, is_query: bool = False) -> list[bytes]:
        """As the protocol says."""
        if self.problem is not None:
            raise EncoderUnavailable(self.problem)
        return [array("f", vector(text)).tobytes() for text in texts]

    async def search(
        self, vector_bytes: bytes, *, ns: str, kinds: Sequence[str] | None, limit: int
    ) -> list[tuple[int, float]]:
        """As the protocol says."""
        self.limits.append(limit)
        asked = array("f", vector_bytes)
        rows = await self._records.read(
            lambda connection: connection.execute(
                "SELECT id, text, kind FROM chunks WHERE ns = ? ORDER BY id", (ns,)
            ).fetchall()
        )
        near = [
            (chunk, sum(one * other for one, other in zip(asked, vector(text), strict=True)))
            for chunk, text, kind in rows
            if kinds is None or kind in kinds
        ]
        return sorted(near, key=lambda entry: -entry[1])[:limit]


class Hub:
    """Everything that can be found, and the search."""

    def __init__(self, records: Records, search_settings: SearchSettings, *, has_meaning: bool) -> None:
        self.records = records
        self.meaning = Meaning(records)
        found: Any = self.meaning if has_meaning else None
        self.searcher = Searcher(records, lambda: found, lambda: found, search_settings)
        self.memories = Memories(records)
        self.documents = Documents(records)
        self.facts = MemoryStore(records)
        self.sessions = Sessions(records, WordCounter(), ttl_s=3600.0, on_turns=lambda ns, session_id: None)

    async def add(self, content: str, **fields: Any) -> str:
        """A memory; returns its id."""
        fields.setdefault("at", NOW - DAY_S)
        return (await self.memories.add(MemoryAdd(content=content, **fields), uuid.uuid4().bytes)).id

    async def say(self, session_id: str, *said: tuple[str, str], ns: str = "memory", at: float = NOW - DAY_S) -> None:
        """A session with turns: speaker and content."""
        await self.sessions.create(SessionCreate(session_id=session_id, ns=ns), uuid.uuid4().bytes)
        turns = [NewTurn(role="user", speaker=speaker, content=content, at=at) for speaker, content in said]
        await self.sessions.append(SessionAppend(session_id=session_id, turns=turns, ns=ns), uuid.uuid4().bytes)

    async def search(self, query: str, **fields: Any) -> SearchReply:
        """The reply."""
        return await self.searcher.search(Search(query=query, **{"now": NOW, **fields}))

    async def ids(self, query: str, **fields: Any) -> list[str]:
        """The ids of the hits, best first."""
        return [hit.id for hit in (await self.search(query, **fields)).hits]


@asynccontextmanager
async def opened(
    folder: Path, search_settings: SearchSettings | None = None, *, has_meaning: bool = True
) -> AsyncIterator[Hub]:
    """An empty hub."""
    records = await Records.open(folder / "memory.db", readers=2, on_committed=lambda events: None, now=lambda: NOW)
    try:
        yield Hub(records, search_settings or SearchSettings(), has_meaning=has_meaning)
    finally:
        await records.close()


# Words and meaning ----------------------------------------------------------------------------------------------


async def test_words_and_meaning_both_find(tmp_path: Path) -> None:
    """The chunk with the word first, then the one that means it."""
    async with opened(tmp_path) as hub:
        word = await hub.add("The hound slept all afternoon")
        meant = await hub.add("Our puppy slept all afternoon")
        await hub.add("The automobile is in the garage")

        assert await hub.ids("Where is the hound?") == [word, meant]
        assert await hub.ids("Where is the hound?", mode="text") == [word]
        assert (await hub.ids("Where is the hound?", mode="dense"))[-1] in (word, meant)


async def test_hit_cites_its_chunk(tmp_path: Path) -> None:
    """Its characters in the source are its text."""
    filler = " ".join(f"Paragraph {number} speaks of nothing in particular." for number in range(400))
    content = f"{filler}\n\nThe rhubarb grows behind the greenhouse.\n\n{filler}"
    async with opened(tmp_path) as hub:
        await hub.documents.put(DocPut(doc_id="d", title="Garden", content=content, ns="memory"), uuid.uuid4().bytes)

        hit = (await hub.search("rhubarb greenhouse")).hits[0]

        assert (hit.id, hit.kind, hit.title) == ("d", "document", "Garden")
        assert "rhubarb" in hit.text
        assert hit.start > 0
        assert content[hit.start : hit.end] == hit.text


async def test_facts_are_found_too(tmp_path: Path) -> None:
    """In their namespace."""
    async with opened(tmp_path) as hub:
        await hub.facts.remember(Remember(key="favourite_colour", value="turquoise"), uuid.uuid4().bytes)

        (hit,) = (await hub.search("turquoise", ns="user")).hits

        assert (hit.id, hit.kind, hit.type) == ("favourite_colour", "fact", "fact")


async def test_answer_is_found_by_the_question_before_it(tmp_path: Path) -> None:
    """Though it holds no word of the query."""
    async with opened(tmp_path, has_meaning=False) as hub:
        await hub.say(
            "s", ("Ada", "Good morning"), ("Ada", "Which style of dance do you like?"), ("Bo", "Mostly contemporary.")
        )
        await hub.say("t", ("Ada", "I like the old style of houses"))

        assert (await hub.ids("favourite style of dance"))[:2] == ["s/2", "s/3"] or (
            await hub.ids("favourite style of dance")
        )[:2] == ["s/3", "s/2"]


async def test_speaker_who_is_named_comes_first(tmp_path: Path) -> None:
    """A name is looked for among the speakers, not in the texts."""
    async with opened(tmp_path) as hub:
        await hub.say("s", ("Ada", "I was fishing at the lake"))
        await hub.say("t", ("Bo", "I was fishing at the lake"))

        assert (await hub.ids("Was Ada fishing?"))[0] == "s/1"
        reply = await hub.search("was bo fishing?", explain=True)
        assert reply.hits[0].id == "t/1"
        assert reply.understood is not None
        assert reply.understood.speakers == ["bo"]


async def test_time_that_is_named_decides_between_equals(tmp_path: Path) -> None:
    """Against the reference time of the request."""
    async with opened(tmp_path) as hub:
        old = await hub.add("We went fishing at the lake", at=NOW - 40 * DAY_S)
        new = await hub.add("We went fishing at the lake", at=NOW - DAY_S)

        assert await hub.ids("fishing yesterday") == [new, old]
        assert await hub.ids("fishing yesterday", now=NOW - 39 * DAY_S) == [old, new]


async def test_query_of_a_time_alone_gives_what_was_then(tmp_path: Path) -> None:
    """And nothing else."""
    async with opened(tmp_path) as hub:
        await hub.add("We went fishing at the lake", at=NOW - 40 * DAY_S)
        new = await hub.add("The roof was painted", at=NOW - DAY_S)

        assert await hub.ids("What happened yesterday?") == [new]
        assert await hub.ids("What happened yesterday?", mode="symbolic") == [new]


async def test_function_words_alone_still_find(tmp_path: Path) -> None:
    """A query need not name a topic."""
    async with opened(tmp_path) as hub:
        found = await hub.add("to be or not to be")

        assert await hub.ids("to be or not to be") == [found]


async def test_hopeless_query_finds_nothing(tmp_path: Path) -> None:
    """Neither by a stray word nor by the least far meaning."""
    async with opened(tmp_path) as hub:
        await hub.add("The dog chased the automobile in the rain")
        await hub.add("Rain again, and the meal was cold")

        assert await hub.ids("Which chromosome carries the gene for blood clotting?") == []
        assert await hub.ids("xqzv wkkp") == []


async def test_min_score_raises_the_floor(tmp_path: Path) -> None:
    """A caller may want only sure hits."""
    async with opened(tmp_path) as hub:
        await hub.add("The hound slept")
        best = (await hub.search("hound")).hits[0].score

        assert await hub.ids("hound", min_score=best + 0.01) == []


# Evidence of memories -------------------------------------------------------------------------------------------


async def test_tag_that_is_a_word_of_the_query_brings_a_memory_in(tmp_path: Path) -> None:
    """Though its text does not hold the word."""
    async with opened(tmp_path) as hub:
        tagged = await hub.add("Twice a week, in the morning", tags=["watering"])
        await hub.add("Twice a week, in the evening")

        assert await hub.ids("watering", mode="symbolic") == [tagged]


async def test_related_memory_comes_along(tmp_path: Path) -> None:
    """With the relation as the reason."""
    async with opened(tmp_path) as hub:
        leader = await hub.add("The boiler makes a noise")
        follower = await hub.add("Call Mr Brown, he knows what to do")
        await hub.memories.link(MemoryLink(source_id=leader, target_id=follower, kind="solved_by"), uuid.uuid4().bytes)

        reply = await hub.search("boiler noise", explain=True)

        assert [hit.id for hit in reply.hits] == [leader, follower]
        assert reply.hits[1].signals is not None
        relation = next(signal for signal in reply.hits[1].signals if signal.name == "relation")
        assert relation.note == f"solved_by {leader}"


async def test_importance_decides_between_equals(tmp_path: Path) -> None:
    """By its share."""
    async with opened(tmp_path) as hub:
        low = await hub.add("The boiler makes a noise", importance=0.1)
        high = await hub.add("The boiler makes a noise", importance=0.9)
        middle = await hub.add("The boiler makes a noise")

        assert await hub.ids("boiler") == [high, middle, low]


async def test_expired_memory_is_gone_at_once(tmp_path: Path) -> None:
    """Whether or not the sweep has come."""
    async with opened(tmp_path) as hub:
        await hub.add("The boiler makes a noise", ttl_s=10.0)
        hub.records.now = lambda: NOW + 11.0

        assert await hub.ids("boiler") == []


async def test_touch_counts_the_access_of_the_hits(tmp_path: Path) -> None:
    """Only where it is asked for."""
    async with opened(tmp_path) as hub:
        memory = await hub.add("The boiler makes a noise")
        await hub.search("boiler")
        await hub.search("boiler", touch=True)

        read = await hub.memories.get(MemoryGet(id=memory, touch=False), uuid.uuid4().bytes)
        assert read.access_count == 1


# Filters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(type="note"), {"note"}),
        (Filters(tier="long"), {"long"}),
        (Filters(tags=["a"]), {"tags a", "tags a b"}),
        (Filters(tags=["a", "b"]), {"tags a b"}),
        (Filters(metadata={"room": 3}), {"room 3"}),
        (Filters(metadata={"room": 3, "floor": 1}), set()),
        (Filters(metadata={"deep": {"x": [1]}}), {"deep"}),
        (Filters(min_importance=0.8), {"important"}),
        (Filters(since=NOW - 10, until=NOW), {"now"}),
        (Filters(until=NOW - 300 * DAY_S), {"old"}),
        (Filters(parent_id="p"), {"child"}),
        (Filters(speaker="ADA"), {"ada", "turn"}),
        (Filters(kinds=["turn"]), {"turn"}),
        (Filters(session_id="s"), {"turn"}),
        (Filters(user_id="default"), {"turn"}),
        (Filters(not_session_id="s"), set()),
        (Filters(kinds=["memory"], speaker="Ada"), {"ada"}),
    ],
)
@pytest.mark.parametrize("mode", ["hybrid", "text", "dense", "symbolic"])
async def test_filters_let_through_what_fulfils_them_all(
    tmp_path: Path, filters: Filters, expected: set[str], mode: str
) -> None:
    """In every mode; symbolic needs no query."""
    async with opened(tmp_path, replace(SearchSettings(), candidates=10)) as hub:
        given: dict[str, dict[str, Any]] = {
            "note": {"type": "note"},
            "long": {"tier": "long"},
            "tags a": {"tags": ["a"]},
            "tags a b": {"tags": ["a", "b"]},
            "room 3": {"metadata": {"room": 3}},
            "deep": {"metadata": {"deep": {"x": [1]}}},
            "important": {"importance": 0.9},
            "now": {"at": NOW - 5},
            "old": {"at": NOW - 400 * DAY_S},
            "p": {"id": "p"},
            "child": {"parent_id": "p"},
            "ada": {"speaker": "Ada"},
        }
        names = {}
        for name, fields in given.items():
            names[await hub.add("the dog", **fields)] = name
        for _ in range(60):
            await hub.add("the dog")
        await hub.say("s", ("Ada", "the dog"))
        names["s/1"] = "turn"

        found = await hub.ids("" if mode == "symbolic" else "dog", filters=filters, mode=mode, k=50)

        assert {names[id] for id in found} == expected


async def test_far_chunks_that_fulfil_the_filters_are_still_found_by_meaning(tmp_path: Path) -> None:
    """The index knows no filter, so it is asked further where the nearest do not fulfil them."""
    async with opened(tmp_path, replace(SearchSettings(), nearest=2)) as hub:
        for _ in range(20):
            await hub.add("a dog dog dog dog")
        wanted = await hub.add("a puppy in the rain", tags=["kept"])

        assert await hub.ids("dog", mode="dense", k=1, filters=Filters(tags=["kept"])) == [wanted]
        assert hub.meaning.limits == [8, 10_000]


async def test_namespaces_do_not_see_one_another(tmp_path: Path) -> None:
    """Not even those whose names hold one another."""
    async with opened(tmp_path) as hub:
        mine = await hub.add("the dog", ns="a.b")
        await hub.add("the dog", ns="b")
        await hub.add("the dog", ns="x.a.b")

        for mode in ("hybrid", "text", "dense"):
            assert await hub.ids("dog", ns="a.b", mode=mode) == [mine]


async def test_small_namespace_in_a_large_store_is_searched_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Common words of the others neither hide its chunks nor use up its budget."""
    monkeypatch.setattr(text_index, "SMALL_STORE_CHUNKS", 10)
    async with opened(tmp_path, replace(SearchSettings(), postings=100), has_meaning=False) as hub:
        small = await hub.add("the hound and the puppy", ns="small")
        for _ in range(150):
            await hub.add("the hound", ns="large")

        assert await hub.ids("hound", ns="small") == [small]
        assert len(await hub.ids("hound", ns="large", k=1000)) == 100


async def test_newer_chunks_of_others_do_not_hide_those_of_a_large_namespace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the words of most of the store are looked up without the namespace."""
    monkeypatch.setattr(text_index, "SMALL_STORE_CHUNKS", 10)
    async with opened(tmp_path, replace(SearchSettings(), candidates=10), has_meaning=False) as hub:
        mine = [await hub.add(f"the hound {number}", ns="large") for number in range(80)]
        for _ in range(30):
            await hub.add("the hound", ns="other")

        assert set(await hub.ids("hound", ns="large", k=5)) <= set(mine)
        assert len(await hub.ids("hound", ns="large", k=5)) == 5


async def test_filter_that_many_chunks_fulfil_is_not_hidden_by_newer_ones_that_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many to be held in a set; and none of them among the best candidates without the filter."""
    monkeypatch.setattr(filters, "ALLOWED_MAX", 10)
    async with opened(tmp_path, replace(SearchSettings(), candidates=10), has_meaning=False) as hub:
        notes = [await hub.add(f"the hound {number}", type="note") for number in range(20)]
        for _ in range(80):
            await hub.add("the hound", type="log")

        found = await hub.ids("hound", filters=Filters(type="note"), k=5)

        assert len(found) == 5
        assert set(found) <= set(notes)


async def test_old_memory_that_fulfils_the_filter_is_found_by_words_that_many_newer_ones_hold(tmp_path: Path) -> None:
    """The entries that are read of a common word are spent on what the filter lets through."""
    async with opened(tmp_path, replace(SearchSettings(), postings=100), has_meaning=False) as hub:
        wanted = await hub.add("the budget meeting with Carla", type="note", tags=["carla"])
        for number in range(120):
            await hub.add(f"meeting number {number} about the budget")

        assert await hub.ids("budget meeting", filters=Filters(type="note")) == [wanted]
        assert await hub.ids("meeting", filters=Filters(tags=["carla"])) == [wanted]


async def test_so_are_many_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where those that fulfil the filter are too many to be held in a set."""
    monkeypatch.setattr(filters, "ALLOWED_MAX", 10)
    async with opened(tmp_path, replace(SearchSettings(), postings=100), has_meaning=False) as hub:
        notes = [await hub.add(f"meeting {number} about the budget", type="note") for number in range(30)]
        for number in range(120):
            await hub.add(f"meeting number {number} about the budget", type="log")

        found = await hub.ids("budget meeting", filters=Filters(type="note"), k=5)

        assert len(found) == 5
        assert set(found) <= set(notes)


@pytest.mark.parametrize(
    "wanted",
    [
        Filters(type="note"),
        Filters(tags=["carla"]),
        Filters(kinds=["document"]),
        Filters(kinds=["fact"], type="general"),
        Filters(parent_id="top"),
    ],
)
async def test_few_that_fulfil_a_filter_are_found_without_a_walk_over_all(tmp_path: Path, wanted: Filters) -> None:
    """By an index: the store is 40 times as large as what fulfils the filter."""
    async with opened(tmp_path, has_meaning=False) as hub:
        await hub.memories.add(MemoryAdd(content="the hound on top", id="top", type="other"), uuid.uuid4().bytes)
        await hub.add("the hound", type="note", tags=["carla"], parent_id="top")
        await hub.documents.put(DocPut(doc_id="d", content="the hound", ns="memory"), uuid.uuid4().bytes)
        await hub.facts.remember(
            Remember(key="k", value="the hound", ns="memory", category="general"), uuid.uuid4().bytes
        )
        for number in range(400):
            await hub.add(f"the cat {number}", type="log", tags=["otto"])
        asked = filters.condition("memory", wanted, NOW)
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        def walk(connection: sqlite3.Connection) -> list[int]:
            connection.set_progress_handler(count, 10)
            try:
                return filters.newest(connection, asked, 100)
            finally:
                connection.set_progress_handler(None, 0)

        found = await hub.records.read(walk)

        assert len(found) == 1
        assert steps < 100
        assert len(await hub.ids("hound", filters=wanted)) == 1


async def test_filter_that_most_fulfil_is_known_by_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not counted, and the next search knows it."""
    monkeypatch.setattr(filters, "ALLOWED_MAX", 20)
    counted: list[object] = []
    newest = filters.newest
    monkeypatch.setattr(filters, "newest", lambda *args: counted.append(args) or newest(*args))
    async with opened(tmp_path, has_meaning=False) as hub:
        for number in range(100):
            await hub.add(f"the hound {number}", type="note" if number else "log")

        assert len(await hub.ids("hound", filters=Filters(type="note"), k=5)) == 5
        assert counted == []
        assert len(await hub.ids("hound", filters=Filters(type="log"), k=5)) == 1
        assert len(counted) == 1


async def test_what_is_read_ahead_changes_no_hit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks read while the query is encoded, and chunks read once its vector is known, are ranked alike."""
    async with opened(tmp_path) as hub:
        for number in range(40):
            await hub.add(f"the {'hound' if number % 3 else 'puppy'} slept {number}", speaker="Ada", tags=["barn"])
        await hub.say(
            "s", *(("Ada", f"Where did the dog go {number}?" if number % 2 else "To the rain") for number in range(30))
        )
        queries = ("the puppy that slept", "Where did the dog go?", "what did Ada say of the drizzle yesterday?")

        ahead = [await hub.search(query, explain=True, k=20) for query in queries]
        monkeypatch.setattr(Sight, "look", lambda *args: None)
        afterwards = [await hub.search(query, explain=True, k=20) for query in queries]

        assert all(len(reply.hits) > 5 for reply in ahead)
        assert [reply.hits for reply in ahead] == [reply.hits for reply in afterwards]


async def test_what_is_deleted_while_the_query_is_encoded_is_not_shown(tmp_path: Path) -> None:
    """Who deleted it was told that it is gone."""
    async with opened(tmp_path) as hub:
        secret = await hub.add("the hound bit the postman")
        kept = await hub.add("the hound slept")
        encode = hub.meaning.encode

        async def late(*args: Any, **options: Any) -> list[bytes]:
            await asyncio.sleep(0.1)
            await hub.memories.delete(MemoryDelete(id=secret), uuid.uuid4().bytes)
            return await encode(*args, **options)

        hub.meaning.encode = late  # type: ignore[method-assign]

        assert await hub.ids("hound") == [kept]


async def test_facts_that_are_being_forgotten_are_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asked was told that they are gone, although the last of their rows go later."""
    monkeypatch.setattr(facts, "FORGET_ROWS", 2)
    async with opened(tmp_path) as hub:
        for number in range(5):
            await hub.facts.remember(
                Remember(key=f"hound-{number}", value="the hound", ns="memory"), uuid.uuid4().bytes
            )
        assert len(await hub.ids("hound")) == 5

        await hub.records.write(
            lambda connection, now: facts.forget(connection, Forget(everything=True, ns="memory"), uuid.uuid4().bytes)
        )

        assert await hub.records.read(lambda connection: len(facts.find_forgettings(connection))) == 1
        assert await hub.ids("hound") == []
        assert await hub.ids("hound", filters=Filters(kinds=["fact"])) == []


async def test_an_index_that_is_busy_is_waited_for_without_a_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And after a while the search goes on without it."""

    def busy(*_: object) -> list[tuple[int, float]]:
        raise IndexBusy("it is busy")

    monkeypatch.setattr(Meaning, "search_here", busy)
    async with opened(tmp_path) as hub:
        dog = await hub.add("the hound slept")

        reply = await hub.search("puppy")
        assert ([hit.id for hit in reply.hits], reply.degraded) == ([dog], "")

        async def never(*args: object, **options: object) -> list[tuple[int, float]]:
            await asyncio.sleep(60)
            return []

        monkeypatch.setattr(meaning, "BUSY_WAIT_S", 0.05)
        hub.meaning.search = never  # type: ignore[method-assign]
        reply = await hub.search("puppy")
        assert (reply.hits, reply.degraded) == ([], "no search by meaning: the vector index has been busy for 0.05 s")


async def test_chance_makes_no_narrow_filter_a_broad_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the part of the store is that counts as many."""
    monkeypatch.setattr(filters, "ALLOWED_MAX", 10)
    monkeypatch.setattr(filters, "BREADTH_SAMPLE", 5)
    async with opened(tmp_path, has_meaning=False) as hub:
        for number in range(300):
            await hub.add("the hound", type="note" if number < 8 else "log")
        breadth = filters.Breadth()

        for asked, count in ((Filters(type="note"), 8), (Filters(type="log"), None)):
            condition = filters.condition("memory", asked, NOW)
            for _ in range(30):
                breadth.forget()
                found = await hub.records.read(
                    lambda connection, asked=asked, condition=condition: breadth.allowed(  # type: ignore[misc]
                        connection, "memory", asked, condition
                    )
                )
                assert (None if found is None else len(found)) == count


async def test_long_metadata_is_read_for_hits_alone_and_ends_them_in_time(tmp_path: Path) -> None:
    """A hit has its metadata however long; the hits end before the reply is longer than a message may be."""
    async with opened(tmp_path, has_meaning=False) as hub:
        content = "\n\n".join(f"Chapter {number} about the hound. " + "It slept. " * 60 for number in range(8))
        metadata = {"page": "x" * 100_000}
        await hub.documents.put(DocPut(doc_id="d", content=content, metadata=metadata, ns="memory"), uuid.uuid4().bytes)

        (hit,) = (await hub.search("hound", k=1)).hits
        assert hit.metadata == metadata
        assert len((await hub.search("hound", k=8)).hits) == 8
        hub.records.page_bytes = 350_000
        assert len((await hub.search("hound", k=8)).hits) == 3
        hub.records.page_bytes = 10
        assert len((await hub.search("hound", k=8)).hits) == 1


# Replies --------------------------------------------------------------------------------------------------------


async def test_explain_says_what_each_signal_gave(tmp_path: Path) -> None:
    """The shares make the score, the greatest first, and the query is told as it was understood."""
    async with opened(tmp_path) as hub:
        await hub.add('The hound slept in the "old barn" in Norway', speaker="Ada")

        reply = await hub.search('Which hound of Ada slept in the "old barn" in Norway last week?', explain=True)

        (hit,) = reply.hits
        assert hit.signals is not None
        shares = [signal.share for signal in hit.signals]
        assert sum(shares) == pytest.approx(hit.score)
        assert shares == sorted(shares, reverse=True)
        assert {"text", "dense", "speaker", "time", "recency", "importance"} <= {s.name for s in hit.signals}
        understood = reply.understood
        assert understood is not None
        assert understood.phrases == ["old barn"]
        assert understood.speakers == ["ada"]
        assert understood.entities == ["norway"]
        assert understood.time_words == "last week"
        assert understood.since is not None
        assert (await hub.search("hound")).hits[0].signals is None


async def test_explain_leaves_out_what_gave_nothing(tmp_path: Path) -> None:
    """A time in the query that is years away from a hit's own is no reason for it."""
    async with opened(tmp_path) as hub:
        await hub.add("The hound slept on the porch")

        (hit,) = (await hub.search("hound in 1987", explain=True)).hits

        assert hit.signals is not None
        assert "time" not in [signal.name for signal in hit.signals]


async def test_without_an_encoder_search_goes_on_with_words(tmp_path: Path) -> None:
    """And says so."""
    async with opened(tmp_path, has_meaning=False) as hub:
        found = await hub.add("The hound slept")
        reply = await hub.search("hound")

        assert [hit.id for hit in reply.hits] == [found]
        assert reply.degraded == "no search by meaning: there is no encoder"
        assert (await hub.search("hound", mode="text")).degraded == ""


async def test_encoder_that_fails_degrades_the_search(tmp_path: Path) -> None:
    """With its reason."""
    async with opened(tmp_path) as hub:
        found = await hub.add("The hound slept")
        hub.meaning.problem = "the encoder is still loading"
        reply = await hub.search("hound")

        assert [hit.id for hit in reply.hits] == [found]
        assert "still loading" in reply.degraded
        assert reply.waiting == 1


async def test_search_without_meaning_is_logged_once_for_each_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path) as hub:
        for problem in ("it is away", "it is away", "it is broken", None, "it is broken"):
            hub.meaning.problem = problem
            await hub.search("hound")

        said = [record.message for record in caplog.records if record.levelname == "WARNING"]
        away, broken = (f"no search by meaning: it is {how}" for how in ("away", "broken"))
        assert said == [away, broken, broken]


@pytest.mark.parametrize("mode", ["hybrid", "dense", "text", "symbolic"])
async def test_empty_query_is_refused(tmp_path: Path, mode: str) -> None:
    """White space is no query either; only filters in symbolic mode do without."""
    async with opened(tmp_path) as hub:
        for query in ("", " \t\n"):
            with pytest.raises(BadRequest, match="query is empty"):
                await hub.search(query, mode=mode)
        with pytest.raises(BadRequest, match="lone surrogate"):
            await hub.search("a\ud800", mode=mode)


async def test_newest_come_first_where_only_filters_are_given(tmp_path: Path) -> None:
    """By recency, then by what was added last."""
    async with opened(tmp_path) as hub:
        ids = [await hub.add(f"entry {number}", type="log", at=NOW - 1000 + number) for number in range(30)]

        assert await hub.ids("", mode="symbolic", filters=Filters(type="log"), k=3) == ids[:-4:-1]


METACHARACTERS = """
    " ' * ( ) : ^ - + NEAR( AND OR NOT text: scope: ; -- % _ \\ { } '' \0 hound chunks_text DROP TABLE chunks
"""
HOSTILE = st.one_of(st.text(max_size=80), st.lists(st.sampled_from(METACHARACTERS.split()), max_size=12).map(" ".join))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(queries=st.lists(HOSTILE, min_size=1, max_size=8))
def test_no_query_is_syntax(tmp_path: Path, queries: list[str]) -> None:
    """Metacharacters of FTS5 and of SQL are characters: the reply is a reply, and the store is whole."""

    async def ask() -> None:
        async with opened(tmp_path / uuid.uuid4().hex) as hub:
            found = await hub.add("The hound slept")
            for query in queries:
                for mode in ("hybrid", "text", "symbolic"):
                    try:
                        await hub.search(query, mode=mode, explain=True)
                    except BadRequest:
                        assert not query.strip()

            assert await hub.ids("hound") == [found]

    asyncio.run(ask())
