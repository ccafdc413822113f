"""Sessions, contexts, suggestions and the memory tool over a real bus, with the demo model's own tokenizer."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import msgspec
import pytest

from bus.authorize import Verifier
from bus.client import Client
from bus.settings import Settings
from bus.worker import Worker
from schemas.bodies.accounts import TokenState
from schemas.bodies.control import EventsRead
from schemas.bodies.model import Chat, ChatMessage, ModelTokenize
from schemas.bodies.sessions import (
    ContextBuild,
    Evidence,
    NewTurn,
    SessionAppend,
    SessionBridge,
    SessionClose,
    SessionCreate,
    SessionHistory,
    SuggestList,
    ToolCall,
    ToolSchemas,
)
from schemas.envelope import Headers
from schemas.errors import NotFound, Unprocessable
from workers.memory.event_outbox import EventOutbox
from workers.memory.records import Records
from workers.memory.search.pipeline import Searcher
from workers.memory.sessions.handlers import register
from workers.memory.sessions.parts import SessionParts
from workers.memory.sessions.tokens import MESSAGE_TOKENS, BusTokenCounter
from workers.memory.store import MemoryStore
from workers.models.service import ModelService

Serve = Callable[..., AbstractAsyncContextManager[Settings]]

WAIT_S = 30.0

# Evidence as it is kept: a memory.
QUOTE = msgspec.msgpack.encode([Evidence(kind="memory", id="m", text="of the payroll", score=1.0, at=0.0)])
NAME = "olympus-demo"


@asynccontextmanager
async def memory(settings: Settings, verify: Verifier | None = None) -> AsyncIterator[Client]:
    """A worker with the parts of this folder and nothing else, its monitor running, and a client.

    verify: whose a token is, where everybody has to sign in.
    """
    worker = Worker("memory", settings)
    if worker.authorizer is not None and verify is not None:
        worker.authorizer.verify_with(verify)
    woken = asyncio.Event()
    records = await Records.open(settings.path("memory.db"), readers=2, on_committed=lambda events: woken.set())
    outbox = EventOutbox(records, worker.client)

    async def wake() -> None:
        while True:
            await woken.wait()
            woken.clear()
            outbox.wake()

    counter = BusTokenCounter(worker.client.request)
    store = MemoryStore(records, counter)
    searcher = Searcher(records, lambda: None, lambda: None, settings.search)
    parts = SessionParts(records, settings.memory, store, searcher, counter, lambda: None)
    register(worker, parts)
    running = [asyncio.create_task(one) for one in (outbox.publish_forever(), parts.monitor.watch_forever(), wake())]
    await worker.start(10)
    try:
        async with Client(settings, name="test") as client:
            yield client
    finally:
        await worker.stop()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await records.close()


@asynccontextmanager
async def models(settings: Settings) -> AsyncIterator[None]:
    """The model service with nothing loaded."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    changed = msgspec.structs.replace(settings, models=msgspec.structs.replace(settings.models, default=NAME))
    service = ModelService(changed)
    await service.start()
    try:
        yield
    finally:
        await service.stop()


def turns(*contents: str) -> list[NewTurn]:
    return [
        NewTurn(role="user" if number % 2 == 0 else "assistant", content=text) for number, text in enumerate(contents)
    ]


async def test_a_conversation_lives_on_the_bus(serve_broker: Serve) -> None:
    """Opened, spoken in, read, bridged to, deleted; each step as its caller sees it."""
    async with serve_broker() as settings, memory(settings) as client, client.subscribe("memory.session.>") as events:
        await client.request("memory.session.create", SessionCreate(session_id="old", user_id="ada"))
        await client.request(
            "memory.session.append", SessionAppend(session_id="old", turns=turns("the rhubarb froze", "what a pity"))
        )
        created = await client.request("memory.session.create", SessionCreate(user_id="ada"))
        bridged = await client.request(
            "memory.session.bridge", SessionBridge(session_id=created.session_id, query="rhubarb")
        )
        assert bridged.sessions == ["old"]
        assert "the rhubarb froze" in bridged.text
        history = await client.request("memory.session.history", SessionHistory(session_id="old", max_tokens=1_000))
        assert [turn.content for turn in history.turns] == ["the rhubarb froze", "what a pity"]
        closed = await client.request("memory.session.close", SessionClose(session_id="old", delete=True))
        assert closed.deleted
        with pytest.raises(NotFound):
            await client.request("memory.session.history", SessionHistory(session_id="old"))
        async with asyncio.timeout(WAIT_S):
            heard = [(await anext(events)).body["state"] for _ in range(3)]
        assert heard == ["open", "open", "deleted"]


async def test_a_context_is_counted_by_the_target_models_tokenizer(serve_broker: Serve) -> None:
    """What is built fits, goes to `model.chat` as it is, and costs there no more than was said."""
    async with serve_broker() as settings, models(settings), memory(settings) as client:
        await client.request("memory.session.create", SessionCreate(session_id="s"))
        lines = [f"Sentence number {number} about trains, tea and gardens." for number in range(40)]
        await client.request("memory.session.append", SessionAppend(session_id="s", turns=turns(*lines, "And now?")))
        request = ContextBuild(session_id="s", system_prompt="Be kind.", max_tokens=300, model=NAME)
        built = await client.request("memory.context.build", request, timeout_s=WAIT_S)
        assert built.counted_by == NAME
        assert built.tokens <= 300
        texts = [message.content for message in built.messages]
        counted = await client.request("model.tokenize", ModelTokenize(model=NAME, texts=texts), timeout_s=WAIT_S)
        assert sum(counted.counts) + MESSAGE_TOKENS * len(texts) == built.tokens
        assert texts[-1] == "And now?"
        assert any(part.part == "history" for part in built.left_out)

        messages = [ChatMessage(role=message.role, content=message.content) for message in built.messages]
        chat = Chat(model=NAME, messages=messages, max_tokens=1, temperature=0.0)
        generation = await client.request("model.chat", chat, timeout_s=WAIT_S)
        assert generation.usage.prompt_tokens <= built.tokens + MESSAGE_TOKENS

        with pytest.raises(Unprocessable, match=f"counted by {NAME}"):
            await client.request(
                "memory.context.build",
                ContextBuild(system_prompt="word " * 500, max_tokens=100, model=NAME),
                timeout_s=WAIT_S,
            )


async def test_without_a_model_service_the_estimate_counts(serve_broker: Serve) -> None:
    """And says so."""
    async with serve_broker() as settings, memory(settings) as client:
        await client.request("memory.session.create", SessionCreate(session_id="s"))
        await client.request("memory.session.append", SessionAppend(session_id="s", turns=turns("hello")))
        built = await client.request("memory.context.build", ContextBuild(session_id="s", model=NAME))
        assert built.counted_by == "estimate"


async def test_a_model_uses_the_memory_as_tools(serve_broker: Serve) -> None:
    """Schemas, a right call and a wrong one, as an agent loop would make them."""
    async with serve_broker() as settings, memory(settings) as client:
        offered = await client.request("memory.tool.schemas", ToolSchemas())
        assert len(offered.tools) == 4
        right = await client.request(
            "memory.tool.call", ToolCall(name="remember", arguments='{"key": "name", "value": "Ada"}')
        )
        wrong = await client.request("memory.tool.call", ToolCall(name="remember", arguments=["name"]))
        assert (right.ok, wrong.ok) == (True, False)


async def test_a_suggestion_comes_as_an_event_of_what_was_said(serve_broker: Serve) -> None:
    """Nobody asks for it; it is listed afterwards."""
    async with serve_broker() as settings, memory(settings) as client:
        async with client.subscribe("memory.suggestion.made") as events:
            await client.request("memory.session.create", SessionCreate(session_id="s", user_id="ada"))
            await client.request(
                "memory.session.append", SessionAppend(session_id="s", turns=turns("I prefer trains."))
            )
            async with asyncio.timeout(WAIT_S):
                event = await anext(events)
        listed = await client.request("memory.suggest.list", SuggestList(user_id="ada"))
        assert [one.suggestion_id for one in listed.suggestions] == [event.body["suggestion_id"]]
        assert listed.is_on


async def test_what_was_suggested_is_not_in_the_event_log(serve_broker: Serve) -> None:
    """Or its words would outlive the session they were said in, and be read by whoever may read the log."""
    async with (
        serve_broker(log_subjects=("memory.>",)) as settings,
        memory(settings) as client,
        client.subscribe("memory.suggestion.made") as made,
        client.subscribe("memory.session.closed") as closed,
    ):
        await client.request("memory.session.create", SessionCreate(session_id="s", user_id="ada"))
        request = SessionAppend(session_id="s", turns=turns("I prefer quiet trains."))
        await client.request("memory.session.append", request)
        async with asyncio.timeout(WAIT_S):
            assert "quiet trains" in (await anext(made)).body["text"]
            await client.request("memory.session.close", SessionClose(session_id="s", delete=True))
            await anext(closed)

        page = await client.request("bus.events.read", EventsRead(subject="memory.>"))
        subjects = {event.subject for event in page.events}
        assert "memory.session.closed" in subjects
        assert "memory.suggestion.made" not in subjects
        assert not [event for event in page.events if "quiet" in str(event.body)]


async def test_whoever_signs_in_reads_suggestions_of_their_own_namespaces_only(serve_broker: Serve) -> None:
    """The session that a suggestion was made in is not all that counts."""

    async def verify(token: str) -> TokenState:
        namespaces = {"all": ["*"], "kiosk": ["session"], "clerk": ["session", "memory"]}[token]
        scopes = ["memory:read", "memory:write"]
        return TokenState(valid=True, user_id=token, scopes=scopes, namespaces=namespaces, expires_in_s=60.0)

    async with serve_broker() as settings:
        auth = msgspec.structs.replace(settings.auth, required=True)
        async with memory(msgspec.structs.replace(settings, auth=auth), verify) as client:
            everything: Headers = {"token": "all"}
            for subject, body in (
                ("memory.session.create", SessionCreate(session_id="s", user_id="ada")),
                ("memory.session.append", SessionAppend(session_id="s", turns=turns("I prefer trains."))),
            ):
                await client.request(subject, body, headers=everything)
            async with asyncio.timeout(WAIT_S):
                while True:
                    reply = await client.request("memory.suggest.list", SuggestList(), headers=everything)
                    if reply.suggestions:
                        break
                    await asyncio.sleep(0.05)
            with sqlite3.connect(settings.path("memory.db")) as connection:
                connection.execute("UPDATE suggestions SET evidence = ?, evidence_from = 'memory memory/m'", (QUOTE,))
            connection.close()
            for token, count in (("all", 1), ("clerk", 1), ("kiosk", 0)):
                reply = await client.request("memory.suggest.list", SuggestList(), headers={"token": token})
                assert len(reply.suggestions) == count, token
