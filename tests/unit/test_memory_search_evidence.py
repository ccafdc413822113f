"""What brings a memory in besides its words and meaning, and what a query without a topic finds."""

from __future__ import annotations

import sqlite3
import uuid
from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from bus.settings import SearchSettings
from schemas.bodies.items import DocDelete, DocPut, MemoryAdd, MemoryDelete, MemoryLink, MemoryUpdate
from schemas.bodies.search import Filters, Search, SearchHit
from workers.memory.items.documents import Documents
from workers.memory.items.memories import Memories
from workers.memory.migrations import load_migrations, prepare
from workers.memory.records import Records
from workers.memory.search import candidates
from workers.memory.search.pipeline import Searcher

NOW = 1_700_000_000.0
DAY_S = 86_400.0


class Alike:
    """Encoder and index in one, to which every text is equally near to every query."""

    name = "alike"
    dimension = 1
    search_here = None

    def __init__(self, records: Records, cosine: float) -> None:
        self.cosine = cosine
        self._records = records

    async def encode(self, texts: Sequence[str], *, is_query: bool = False) -> list[bytes]:
        """As the protocol says."""
        return [array("f", [1.0]).tobytes() for _ in texts]

    async def search(
        self, vector_bytes: bytes, *, ns: str, kinds: Sequence[str] | None, limit: int
    ) -> list[tuple[int, float]]:
        """As the protocol says."""
        statement = "SELECT id FROM chunks WHERE ns = ? LIMIT ?"
        rows = await self._records.read(lambda connection: connection.execute(statement, (ns, limit)).fetchall())
        return [(chunk, self.cosine) for (chunk,) in rows]


class Hub:
    """Memories and documents, and the search over them; at first without meaning."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.meaning: Alike | None = None
        meaning: Any = lambda: self.meaning  # noqa: E731
        self.searcher = Searcher(records, meaning, meaning, SearchSettings())
        self.memories = Memories(records)
        self.documents = Documents(records)

    def set_meaning(self, cosine: float) -> None:
        """From now on every text has this cosine to every query."""
        self.meaning = Alike(self.records, cosine)

    async def add(self, content: str, **fields: Any) -> str:
        """A memory; returns its id."""
        fields.setdefault("at", NOW - DAY_S)
        return (await self.memories.add(MemoryAdd(content=content, **fields), uuid.uuid4().bytes)).id

    async def put(self, doc_id: str, content: str, *tags: str) -> None:
        """A document among the memories."""
        request = DocPut(doc_id=doc_id, content=content, tags=list(tags), ns="memory", at=NOW - DAY_S)
        await self.documents.put(request, uuid.uuid4().bytes)

    async def hits(self, query: str, **fields: Any) -> list[SearchHit]:
        """The hits, with what each signal gave."""
        return (await self.searcher.search(Search(query=query, **{"now": NOW, "explain": True, **fields}))).hits

    async def ids(self, query: str, **fields: Any) -> list[str]:
        """The ids of the hits, best first."""
        return [hit.id for hit in await self.hits(query, **fields)]

    async def indexed_tags(self) -> list[str]:
        """The tags that search knows, in alphabetical order; their index must fit them."""

        def read(connection: sqlite3.Connection) -> list[str]:
            connection.execute("INSERT INTO tags_text (tags_text, rank) VALUES ('integrity-check', 1)")
            return [tag for (tag,) in connection.execute("SELECT tag FROM tags ORDER BY tag")]

        return await self.records.database.exclusively(read)


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Hub]:
    """An empty hub."""
    records = await Records.open(folder / "memory.db", readers=2, on_committed=lambda events: None, now=lambda: NOW)
    try:
        yield Hub(records)
    finally:
        await records.close()


def shares(hit: SearchHit) -> dict[str, str]:
    """Signal -> its note."""
    return {signal.name: signal.note for signal in hit.signals or ()}


# Tags -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cosine", [None, 0.05])
@pytest.mark.parametrize(
    ("tag", "query"),
    [
        ("recipes", "recipes"),
        ("recipes", "Have I got a recipe?"),
        ("Woodworking", "woodworking"),
        ("CAFÉ", "which cafe"),
        ("machine learning", "machine learning"),
        ("machine-learning", "What about learning of machines?"),
        ("machine learning", '"machine learning"'),
        ("Applied machine learning", 'applied "machine learning"'),
        ("state of the art", "state of art"),
    ],
)
async def test_tag_that_stands_in_no_text_brings_its_memory_in(
    tmp_path: Path, tag: str, query: str, cosine: float | None
) -> None:
    """In any case and form of its words, with meaning to go by and without."""
    async with opened(tmp_path) as hub:
        if cosine is not None:
            hub.set_meaning(cosine)
        tagged = await hub.add("Two eggs, flour and milk", tags=["other", tag])
        await hub.add("The roof was painted")

        for mode in ("hybrid", "symbolic"):
            (hit,) = await hub.hits(query, mode=mode)
            assert hit.id == tagged
            assert shares(hit)["tag"] == tag


@pytest.mark.parametrize(
    ("tag", "query"),
    [
        ("machine learning", "a washing machine"),
        ("machine learning", '"machine washing"'),
        ("IT", "what was it?"),
        ("to do", "what to do"),
        ("recipes", "Which recipes of the chromosome carry the genes for blood clotting?"),
    ],
)
async def test_tag_that_says_too_little_of_the_query_brings_nothing_in(tmp_path: Path, tag: str, query: str) -> None:
    """All its words must be in the query, and they must be enough of it; function words are none."""
    async with opened(tmp_path) as hub:
        hub.set_meaning(0.05)
        await hub.add("Two eggs, flour and milk", tags=[tag])

        assert await hub.ids(query) == []


async def test_tag_counts_beside_the_words_of_the_text(tmp_path: Path) -> None:
    """Though the stem of the word is another one."""
    async with opened(tmp_path) as hub:
        await hub.add("Planning the trip", tags=["planning"])

        (hit,) = await hub.hits("planning")

        assert shares(hit)["tag"] == "planning"


@pytest.mark.parametrize("cosine", [None, 0.05, 0.3])
async def test_tagged_memory_is_no_stray_beside_texts_with_the_word(tmp_path: Path, cosine: float | None) -> None:
    """They come first; what was tagged with the word comes along."""
    async with opened(tmp_path) as hub:
        if cosine is not None:
            hub.set_meaning(cosine)
        tagged = await hub.add("Twice a week, in the morning", tags=["watering"])
        told = await hub.add("Ada does the watering, mostly")

        assert await hub.ids("watering") == [told, tagged]


async def test_tag_is_found_beside_many_newer_ones_with_its_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is spelled in the query, of several words too; a namespace may have a tag for each of its customers."""
    monkeypatch.setattr(candidates, "TAGS_MAX", 5)
    async with opened(tmp_path) as hub:
        one = await hub.add("asked for a refund", tags=["Customer"])
        two = await hub.add("pays late", tags=["customer-north-west"])
        for number in range(20):
            await hub.add(f"a call {number}", tags=[f"customer {number} south"])

        assert [hit.id for hit in await hub.hits("customer")] == [one]
        assert two in [hit.id for hit in await hub.hits("which customer north west?")]


async def test_tags_of_documents_are_looked_up_too(tmp_path: Path) -> None:
    """Those that the document has now, with its first chunk."""
    filler = " ".join(f"Paragraph {number} speaks of nothing in particular." for number in range(400))
    async with opened(tmp_path) as hub:
        await hub.put("d", f"\n{filler}", "Recipes")
        hits = await hub.hits("recipe")
        assert {(hit.id, hit.kind, shares(hit)["tag"]) for hit in hits} == {("d", "document", "Recipes")}
        assert min(hit.start for hit in hits) == 1

        await hub.put("d", filler, "travel")
        assert await hub.ids("recipe") == []
        assert set(await hub.ids("travelling")) == {"d"}

        await hub.documents.delete(DocDelete(doc_id="d", ns="memory"), uuid.uuid4().bytes)
        assert await hub.ids("travelling") == []
        assert await hub.indexed_tags() == []


async def test_tag_is_forgotten_with_the_last_that_has_it(tmp_path: Path) -> None:
    """Be it a memory or a document."""
    async with opened(tmp_path) as hub:
        one = await hub.add("Two eggs", tags=["recipes", "food"])
        other = await hub.add("Flour", tags=["recipes"])
        await hub.put("d", "Milk", "food")

        await hub.memories.delete(MemoryDelete(id=one), uuid.uuid4().bytes)
        assert await hub.indexed_tags() == ["food", "recipes"]

        await hub.memories.update(MemoryUpdate(id=other, tags=["Flours"]), uuid.uuid4().bytes)
        await hub.put("d", "Milk")
        assert await hub.indexed_tags() == ["Flours"]


async def test_tags_of_others_bring_nothing_in(tmp_path: Path) -> None:
    """Of another namespace, and of what the filters leave out."""
    async with opened(tmp_path) as hub:
        await hub.add("Two eggs", tags=["recipes"], ns="private")
        await hub.add("Flour", tags=["recipes"], type="preference")
        fact = await hub.add("Milk", tags=["recipes"], type="fact")

        assert await hub.ids("recipes", filters=Filters(type="fact")) == [fact]


async def test_newest_with_a_tag_come_first(tmp_path: Path) -> None:
    """Where more have it than evidence may bring in."""
    async with opened(tmp_path) as hub:
        ids = [await hub.add(f"Number {number}", tags=["note", "Notes"]) for number in range(30)]

        found = await hub.ids("notes", k=100)

        assert sorted(found) == sorted(ids[-candidates.EVIDENCE_CHUNKS :])


def test_tags_stored_before_they_were_indexed_are_found(tmp_path: Path) -> None:
    """The migration takes them over, those of documents too."""
    steps = load_migrations()
    number = next(step.number for step in steps if step.name == "tags")
    path = tmp_path / "memory.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        prepare(connection, path, steps[: number - 1])
        connection.executescript(
            "INSERT INTO memory_tags (ns, tag, id) VALUES ('a', 'Recipes', 'one'), ('a', 'Recipes', 'two'),"
            " ('b', 'planning', 'one');"
            "INSERT INTO knowledge_base (ns, doc_id, title, characters, chunks, version, created_at, updated_at, at, tags,"
            " metadata, content) VALUES ('a', 'd', '', 1, 1, 1, 0, 0, 0, '[\"Recipes\", \"cake recipe\"]', x'80', 'x'),"
            " ('a', 'e', '', 1, 1, 1, 0, 0, 0, '[]', x'80', 'x')"
        )

        prepare(connection, path, steps)

        assert sorted(candidates.tags_with(connection, "a", ['"recipes"', '"plans"'], [])) == ["Recipes", "cake recipe"]
        assert candidates.tags_with(connection, "b", ['"plans"'], []) == ["planning"]
        assert connection.execute("SELECT * FROM document_tags ORDER BY tag").fetchall() == [
            ("a", "Recipes", "d"),
            ("a", "cake recipe", "d"),
        ]


# Relations ------------------------------------------------------------------------------------------------------


async def test_related_memory_that_begins_with_white_space_comes_along(tmp_path: Path) -> None:
    """Its first chunk begins behind that."""
    async with opened(tmp_path) as hub:
        leader = await hub.add("The boiler makes a noise")
        follower = await hub.add("\n  Call Mr Brown")
        await hub.memories.link(MemoryLink(source_id=leader, target_id=follower, kind="solved_by"), uuid.uuid4().bytes)

        assert await hub.ids("boiler noise") == [leader, follower]


# Queries without a topic ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["hybrid", "dense", "text", "symbolic"])
@pytest.mark.parametrize(
    "query", ["???", "!!! ...", "\N{PARTY POPPER}", "what was it?", "the of and", "it", "why?", "I know", "tell me"]
)
async def test_query_that_names_nothing_finds_nothing(tmp_path: Path, query: str, mode: str) -> None:
    """Neither the least far in meaning nor whatever holds one of its words."""
    async with opened(tmp_path) as hub:
        await hub.add("Ada knows what my bank PIN is; it was the year of the move, and they tell nobody")
        await hub.add("The roof was painted")

        assert await hub.ids(query, mode=mode) == []
        hub.set_meaning(0.05)
        assert await hub.ids(query, mode=mode) == []


async def test_query_that_names_nothing_finds_what_is_near_in_meaning(tmp_path: Path) -> None:
    """If it has a word at all."""
    async with opened(tmp_path) as hub:
        painted = await hub.add("The roof was painted")
        hub.set_meaning(SearchSettings().dense_floor)

        assert await hub.ids("what was it?") == [painted]
        assert await hub.ids("???") == []


async def test_query_of_function_words_finds_the_text_that_holds_them_together(tmp_path: Path) -> None:
    """In this order, whatever stands between them that is no word."""
    async with opened(tmp_path) as hub:
        hub.set_meaning(0.05)
        played = await hub.add("In 1999 we saw The Who, and they were loud")
        await hub.add("Who saw the play?")

        assert await hub.ids("the who?") == [played]


@pytest.mark.parametrize(
    "query",
    ["anything new?", "What did we talk about?", "What happened?", "tell me something", "what's the latest news"],
)
async def test_query_for_whatever_there_is_finds_the_newest(tmp_path: Path, query: str) -> None:
    """It names no topic, but it asks."""
    async with opened(tmp_path) as hub:
        hub.set_meaning(0.05)
        old = await hub.add("The roof was painted", at=NOW - 90 * DAY_S)
        new = await hub.add("Ada has moved")

        assert await hub.ids(query) == [new, old]


async def test_filters_choose_where_the_query_has_no_word(tmp_path: Path) -> None:
    """What fulfils them was asked for."""
    async with opened(tmp_path) as hub:
        hub.set_meaning(0.05)
        painted = await hub.add("The roof was painted", tags=["house"])
        await hub.add("Ada has moved")

        assert await hub.ids("???", filters=Filters(tags=["house"])) == [painted]
        assert await hub.ids("what was it?", filters=Filters(tags=["house"])) == []
