"""What `memory.list` finds and in which order: substrings, metadata, the newest, the most important."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas.bodies import items as bodies
from workers.memory.items import reading
from workers.memory.items.memories import Memories
from workers.memory.records import Records


@asynccontextmanager
async def kept(folder: Path, *contents: dict[str, Any]) -> AsyncIterator[Memories]:
    """A store with these memories, added one after the other."""
    records = await Records.open(folder / "memory.db", readers=1, on_committed=lambda _: None)
    try:
        memories = Memories(records)
        for number, fields in enumerate(contents):
            await memories.add(bodies.MemoryAdd(**fields), number.to_bytes(16, "big"))
        yield memories
    finally:
        await records.close()


async def found(memories: Memories, **asked: Any) -> list[str]:
    """Contents of every page, by pages of two."""
    contents: list[str] = []
    after = None
    while True:
        page = await memories.list(msgspec.convert({"limit": 2, "after": after, **asked}, bodies.MemoryList))
        contents += [memory.content for memory in page.memories]
        after = page.next_after
        if after is None:
            return contents
        assert len(page.memories) == 2


@pytest.mark.parametrize(
    ("contains", "expected"),
    [
        ("E", ["One", "three", "FIVE", "Ärger"]),
        ("one", ["One"]),
        ("%", ["100%_\\"]),
        ("0%_", ["100%_\\"]),
        ("_", ["100%_\\"]),
        ("\\", ["100%_\\"]),
        ("Ä", ["Ärger"]),
        ("ä", []),
        ("nothing", []),
    ],
)
async def test_contains_is_a_substring_in_any_case_of_a_to_z(
    tmp_path: Path, contains: str, expected: list[str]
) -> None:
    """And nothing in it stands for anything else."""
    contents = ("One", "three", "FIVE", "100%_\\", "Ärger")
    async with kept(tmp_path, *({"content": content} for content in contents)) as memories:
        assert await found(memories, contains=contains) == expected


async def test_metadata_must_have_the_values_asked_for(tmp_path: Path) -> None:
    """All of them, nested ones too; a key without a value is not one that has none."""
    async with kept(
        tmp_path,
        {"content": "a", "metadata": {"status": "open", "n": {"x": [1]}}},
        {"content": "b", "metadata": {"status": "open"}},
        {"content": "c", "metadata": {"status": "done", "n": None}},
        {"content": "d"},
    ) as memories:
        assert await found(memories, metadata={"status": "open"}) == ["a", "b"]
        assert await found(memories, metadata={"status": "open", "n": {"x": [1]}}) == ["a"]
        assert await found(memories, metadata={"n": None}) == ["c"]
        assert await found(memories) == ["a", "b", "c", "d"]


async def test_every_order_goes_on_over_pages(tmp_path: Path) -> None:
    """The most important, then the last accessed, then the first added; or the newest first."""
    importances = (0.1, 0.9, 0.5, 0.9, 0.5)
    async with kept(
        tmp_path,
        *({"content": str(number), "importance": one, "id": str(number)} for number, one in enumerate(importances)),
    ) as memories:
        await memories.get(bodies.MemoryGet(id="4"), b"x" * 16)

        assert await found(memories, sort="newest") == ["4", "3", "2", "1", "0"]
        by_importance = await found(memories, sort="importance")

    assert by_importance[2:] == ["4", "2", "0"]
    assert set(by_importance[:2]) == {"1", "3"}


@pytest.mark.parametrize("others", [0, 30])
async def test_tags_are_found_whether_rare_or_common(
    tmp_path: Path, others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way to them differs, what is found and its order do not."""
    monkeypatch.setattr(reading, "_RARE_TAG", 10)
    tagged = [{"content": str(number), "tags": ["t", "u"]} for number in range(3 + others)]
    async with kept(
        tmp_path, {"content": "x", "tags": ["u"]}, *tagged, {"content": "y", "tags": ["t"], "ns": "other"}
    ) as memories:
        expected = [one["content"] for one in tagged]
        assert await found(memories, tag="t") == expected
        assert await found(memories, tag="t", sort="newest") == expected[::-1]
        assert await found(memories, tag="t", contains="2", type="general") == [one for one in expected if "2" in one]
        assert await found(memories, tag="none") == []
