"""The memory as tools of a model: what it is offered, and what becomes of its calls, right or wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from bus.authorize import Caller
from schemas.bodies.items import DocPut, MemoryAdd
from schemas.bodies.memory import Recall
from schemas.bodies.search import Search, SearchReply
from schemas.bodies.sessions import ToolCall, ToolResult, ToolSchemas
from schemas.errors import NotFound
from tests.sessions_bench import Bench, GivenFinder, bench, hit
from workers.memory.items.documents import Documents
from workers.memory.items.memories import Memories
from workers.memory.sessions.handlers import register_tool


async def call(at: Bench, name: str, arguments: Any = None, **more: Any) -> ToolResult:
    return await at.parts.tool.call(ToolCall(name=name, arguments=arguments, **more), os.urandom(16))


async def test_the_tools_are_described_as_a_chat_request_wants_them(tmp_path: Path) -> None:
    """Names, descriptions and JSON schemas that are JSON."""
    async with bench(tmp_path) as at:
        tools = (await at.parts.tool.schemas(ToolSchemas())).tools
        msgspec.json.encode(tools)
        functions = {tool["function"]["name"]: tool["function"] for tool in tools}
        assert list(functions) == ["remember", "recall", "search_memory", "forget"]
        remember = functions["remember"]["parameters"]
        assert (remember["type"], remember["required"], remember["additionalProperties"]) == (
            "object",
            ["key", "value"],
            False,
        )
        assert remember["properties"]["value"]["type"] == "string"
        assert all(each["description"] for each in remember["properties"].values())
        assert all(tool["type"] == "function" and tool["function"]["description"] for tool in tools)
        (only,) = (await at.parts.tool.schemas(ToolSchemas(names=["recall"]))).tools
        assert only == tools[1]
        with pytest.raises(NotFound, match="no tool 'x', there are: remember"):
            await at.parts.tool.schemas(ToolSchemas(names=["x"]))


@pytest.mark.parametrize("arguments", [{"key": "name", "value": "Ada"}, '{"key": "name", "value": "Ada"}'])
async def test_a_model_remembers_and_recalls(tmp_path: Path, arguments: Any) -> None:
    """With arguments as a map or as JSON text; who said it is kept."""
    async with bench(tmp_path) as at:
        assert await call(at, "remember", arguments) == ToolResult(
            name="remember", ok=True, content="Remembered 'name': Ada"
        )
        assert (await call(at, "recall", {"key": "name"})).content == "name: Ada"
        fact = await at.store.recall(Recall(key="name"), os.urandom(16))
        assert (fact.source, fact.category) == ("model", "fact")


async def test_a_call_happens_once_for_its_request(tmp_path: Path) -> None:
    """A call that comes again after a lost reply answers the same."""
    async with bench(tmp_path) as at:
        request_id = os.urandom(16)
        request = ToolCall(name="remember", arguments={"key": "k", "value": "1"})
        first = await at.parts.tool.call(request, request_id)
        await call(at, "remember", {"key": "k", "value": "2"})
        assert await at.parts.tool.call(request, request_id) == first
        assert (await call(at, "recall", {"key": "k"})).content == "k: 2"


async def test_what_was_remembered_is_found_and_forgotten(tmp_path: Path) -> None:
    """By the real search, in which a fact is a thing to be found."""
    async with bench(tmp_path) as at:
        await call(at, "remember", {"key": "favourite drink", "value": "rhubarb juice", "category": "preference"})
        found = await call(at, "search_memory", {"query": "rhubarb", "limit": "3"})
        assert found.ok
        assert "favourite drink: rhubarb juice" in found.content
        assert await call(at, "search_memory", {"query": "submarines"}) == ToolResult(
            name="search_memory", ok=True, content="Nothing was found."
        )
        assert (await call(at, "forget", {"key": "favourite drink"})).content == "Forgot 'favourite drink'."
        assert (await call(at, "search_memory", {"query": "rhubarb"})).content == "Nothing was found."
        assert await at.rows("SELECT 1 FROM chunks") == []


async def test_memories_and_documents_are_found_like_facts(tmp_path: Path) -> None:
    """A call that names no namespace finds them where they are kept; each text once, the best of all first."""
    async with bench(tmp_path) as at:
        memories, documents = Memories(at.records), Documents(at.records)
        await memories.add(MemoryAdd(content="Ada keeps bees"), os.urandom(16))
        await documents.put(DocPut(doc_id="hives", content="Bees winter in the hives."), os.urandom(16))
        await call(at, "remember", {"key": "bees", "value": "twelve"})
        found = (await call(at, "search_memory", {"query": "bees"})).content
        assert all(text in found for text in ("Ada keeps bees", "Bees winter in the hives.", "bees: twelve"))
        assert len((await call(at, "search_memory", {"query": "bees", "limit": 2})).content.splitlines()) == 2

        await memories.add(MemoryAdd(content="Ada keeps bees", ns="user"), os.urandom(16))
        assert (await call(at, "search_memory", {"query": "bees"})).content.count("Ada keeps bees") == 1


@pytest.mark.parametrize(
    ("fields", "namespaces", "searched"),
    [
        ({}, ("*",), ["user", "memory", "kb"]),
        ({}, ("user", "kb"), ["user", "kb"]),
        ({"ns": "user.ada"}, ("*",), ["user.ada"]),
        ({"ns": "user.ada", "search_ns": ["notes", "kb", "notes"]}, ("*",), ["notes", "kb"]),
    ],
)
async def test_a_search_reaches_where_it_is_told_to_and_never_past_its_caller(
    tmp_path: Path, fields: dict[str, Any], namespaces: tuple[str, ...], searched: list[str]
) -> None:
    """The usual places are for whoever names none; of them, those that the caller may read."""
    served: dict[str, Callable[..., Any]] = {}
    worker: Any = SimpleNamespace(handles=lambda subject: lambda handler: served.setdefault(subject, handler))
    caller = Caller("ada", ("memory:*",), namespaces)
    finder = GivenFinder(hit("m", "a memory"))
    async with bench(tmp_path, finder=finder) as at:
        register_tool(worker, at.parts.tool)
        request = ToolCall(name="search_memory", arguments={"query": "x"}, **fields)
        result = await served["memory.tool.call"](request, SimpleNamespace(id=os.urandom(16), caller=caller))
    assert [asked.ns for asked in finder.asked] == searched
    assert result.content == "- [2023-11-14] a memory"


async def test_the_search_shows_no_turns(tmp_path: Path) -> None:
    """A namespace may hold the sessions of several users, and a tool call names none."""
    finder = GivenFinder(hit("s/1", "private words", "turn"), hit("m", "a memory"))
    async with bench(tmp_path, finder=finder) as at:
        assert "private" not in (await call(at, "search_memory", {"query": "x"})).content
        assert [(asked.ns, asked.k) for asked in finder.asked] == [("user", 5), ("memory", 5), ("kb", 5)]


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("fly", {}, "There is no tool 'fly'. There are: remember, recall"),
        ("remember", {}, "missing required field `key`. Needed: key, value. Optional: category."),
        ("remember", {"key": "k"}, "missing required field `value`"),
        ("remember", {"key": "k", "value": ""}, "length >= 1"),
        ("remember", {"key": "k", "value": 7}, "Expected `str`, got `int` - at `$.value`"),
        ("remember", {"key": "k", "value": "v", "colour": "red"}, "unknown field `colour`"),
        ("remember", '{"key": "k", "value": ', "Input data was truncated"),
        ("remember", "[1]", "Expected `object`, got `array`"),
        ("remember", "no json", "JSON is malformed"),
        ("remember", "[" * 5_000, "were not understood"),
        ("remember", [1], "Expected `object`, got `array`"),
        ("remember", 7, "were not understood"),
        ("remember", None, "missing required field"),
        ("remember", {"key": "k", "value": "\ud800"}, "lone surrogate"),
        ("recall", "", "missing required field `key`"),
        ("search_memory", {"query": "x", "limit": 1_000}, "<= 20"),
    ],
)
async def test_a_wrong_call_is_answered_in_a_way_that_helps(
    tmp_path: Path, name: str, arguments: Any, says: str
) -> None:
    """Never an exception: the model reads what was wrong and tries again."""
    async with bench(tmp_path) as at:
        result = await call(at, name, arguments)
        assert not result.ok
        assert says in result.content
        assert await at.rows("SELECT 1 FROM facts") == []


async def test_an_unknown_key_is_answered_with_keys_like_it(tmp_path: Path) -> None:
    """Else with some that are known."""
    async with bench(tmp_path) as at:
        assert (await call(at, "recall", {"key": "x"})).content == "Nothing is known as 'x'."
        await call(at, "remember", {"key": "favourite colour", "value": "blue"})
        for key in ("colour", "submarine"):
            result = await call(at, "recall", {"key": key})
            assert result == ToolResult(
                name="recall",
                ok=False,
                content=f"Nothing is known as '{key}'. Keys that are known: 'favourite colour'.",
            )
        assert not (await call(at, "forget", {"key": "colour"})).ok


async def test_a_search_that_refuses_its_query_is_answered_too(tmp_path: Path) -> None:
    """Whatever the search says is wrong with it."""

    class Refusing:
        async def search(self, request: Search) -> SearchReply:
            raise NotFound("nothing of the kind")

    async with bench(tmp_path, finder=Refusing()) as at:
        assert await call(at, "search_memory", {"query": "x"}) == ToolResult(
            name="search_memory", ok=False, content="nothing of the kind."
        )
