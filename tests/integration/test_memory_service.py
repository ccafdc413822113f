"""The memory service on a real broker: operations, errors and events as callers see them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import zmq
import zmq.asyncio

from bus.client import Client
from bus.settings import Settings
from schemas.bodies.memory import (
    AllFacts,
    Find,
    Forget,
    KvDelete,
    KvGet,
    KvList,
    KvSet,
    Prompt,
    Recall,
    Remember,
)
from schemas.envelope import Kind, decode, encode, new_id
from schemas.errors import BadRequest, BusError, Conflict, NotFound
from workers.memory.service import service

Serve = Callable[..., AbstractAsyncContextManager[Settings]]


@asynccontextmanager
async def memory(settings: Settings) -> AsyncIterator[Client]:
    """The service, registered with the broker of `settings`, and a client."""
    async with service(settings) as worker, Client(settings, name="test") as client:
        await worker.start(10)
        try:
            yield client
        finally:
            await worker.stop()


async def test_entries_are_written_read_listed_and_deleted_over_the_bus(serve_broker: Serve) -> None:
    """Each key-value operation answers with the reply its catalogue entry declares."""
    value = {"a": [1, None, 2.5], "b": b"\x00\xff", "c": "ünï\0"}
    async with serve_broker() as settings, memory(settings) as client:
        written = await client.request("memory.kv.set", KvSet(key="k", value=value, ttl_s=60))
        entry = await client.request("memory.kv.get", KvGet(key="k"))
        page = await client.request("memory.kv.list", KvList(prefix="k"))
        deleted = await client.request("memory.kv.delete", KvDelete(key="k", if_version=1))

        assert (written.version, entry.value, entry.expires_at) == (1, value, written.expires_at)
        assert [found.key for found in page.entries] == ["k"]
        assert deleted.deleted
        with pytest.raises(NotFound, match="no entry 'k' in namespace 'kv'"):
            await client.request("memory.kv.get", KvGet(key="k"))


async def test_facts_are_remembered_found_rendered_and_forgotten_over_the_bus(serve_broker: Serve) -> None:
    """The way a fact takes from a person's sentence to the system prompt and out again."""
    async with serve_broker() as settings, memory(settings) as client:
        await client.request("memory.remember", Remember(key="favourite colour", value="blue", category="preference"))
        await client.request("memory.remember", Remember(key="name", value="Ada"))

        assert (await client.request("memory.recall", Recall(key="name"))).access_count == 1
        assert [fact.key for fact in (await client.request("memory.find", Find(query="colours"))).facts] == [
            "favourite colour"
        ]
        assert [fact.key for fact in (await client.request("memory.all", AllFacts())).facts] == [
            "favourite colour",
            "name",
        ]
        prompt = await client.request("memory.prompt", Prompt())
        assert prompt.text == "Known facts about the user:\n- name: Ada\n- favourite colour: blue"
        assert (await client.request("memory.forget", Forget(everything=True))).forgotten == 2


@pytest.mark.parametrize(
    ("subject", "body", "error", "words"),
    [
        ("memory.kv.set", {"key": "k"}, BadRequest, "value"),
        ("memory.kv.set", {"key": "", "value": 1}, BadRequest, "key"),
        ("memory.kv.set", {"key": "k", "value": 1, "ttl_s": -1}, BadRequest, "ttl_s"),
        ("memory.kv.set", {"key": "k", "value": 1, "ns": "a b"}, BadRequest, "ns"),
        ("memory.kv.set", {"key": "k", "value": 1, "tll_s": 5}, BadRequest, "tll_s"),
        ("memory.kv.set", {"key": "k", "value": 1, "if_version": 3}, Conflict, "does not exist"),
        ("memory.kv.get", {"key": 7}, BadRequest, "key"),
        ("memory.kv.list", {"limit": 0}, BadRequest, "limit"),
        ("memory.remember", {"key": "k", "value": "x" * 70_000}, BadRequest, "value"),
        ("memory.recall", {"key": "unknown"}, NotFound, "unknown"),
        ("memory.find", {"query": ""}, BadRequest, "query"),
        ("memory.forget", {}, BadRequest, "exactly one of key, category and everything"),
        ("memory.prompt", {"max_tokens": 0}, BadRequest, "max_tokens"),
    ],
)
async def test_a_bad_request_is_named_and_the_next_good_one_works(
    serve_broker: Serve, subject: str, body: dict[str, Any], error: type[BusError], words: str
) -> None:
    """The error says which field; the service goes on."""
    async with serve_broker() as settings, memory(settings) as client:
        with pytest.raises(error, match=words):
            await client.request(subject, body)

        assert (await client.request("memory.kv.set", KvSet(key="k", value=1))).version == 1


async def test_a_value_nested_too_deeply_is_refused_with_the_figures(serve_broker: Serve) -> None:
    """Field, depth and limit stand in the error's details."""
    value: Any = 0
    for _ in range(80):
        value = [value]
    async with serve_broker() as settings, memory(settings) as client:
        with pytest.raises(BadRequest) as caught:
            await client.request("memory.kv.set", KvSet(key="k", value=value))

    assert caught.value.details == {"field": "value", "depth": 80, "limit": 64}


async def test_every_committed_change_is_an_event_of_its_namespace(serve_broker: Serve) -> None:
    """In the order of the commits, with the id of the request; characters a subject cannot hold become `_`."""
    async with (
        serve_broker() as settings,
        memory(settings) as client,
        client.subscribe("memory.changed.>") as events,
    ):
        await client.request("memory.kv.set", KvSet(key="k", value=1, ns="team:a.b"))
        await client.request("memory.kv.delete", KvDelete(key="k", ns="team:a.b"))
        await client.request("memory.remember", Remember(key="name", value="Ada"))
        await client.request("memory.forget", Forget(key="name"))
        async with asyncio.timeout(10):
            heard = [await anext(aiter(events)) for _ in range(4)]

    assert [(event.subject, event.body["ns"], event.body["action"]) for event in heard] == [
        ("memory.changed.team_a_b", "team:a.b", "set"),
        ("memory.changed.team_a_b", "team:a.b", "delete"),
        ("memory.changed.user", "user", "remember"),
        ("memory.changed.user", "user", "forget"),
    ]
    assert all(len(event.body["request_id"]) == 32 for event in heard)


async def test_an_entry_that_expires_is_an_event(serve_broker: Serve) -> None:
    """The regular sweep tells subscribers, who did nothing themselves."""
    async with (
        serve_broker() as settings,
        memory(settings) as client,
        client.subscribe("memory.changed.kv") as events,
    ):
        await client.request("memory.kv.set", KvSet(key="k", value=1, ttl_s=0.01))
        async with asyncio.timeout(20):
            actions = [(await anext(aiter(events))).body["action"] for _ in range(2)]

    assert actions == ["set", "expire"]


async def test_memory_survives_a_restart_of_the_service(serve_broker: Serve) -> None:
    """A second instance on the same file knows what the first was told."""
    async with serve_broker() as settings:
        async with memory(settings) as client:
            await client.request("memory.remember", Remember(key="name", value="Ada"))
        async with memory(settings) as client:
            assert (await client.request("memory.recall", Recall(key="name"))).value == "Ada"


async def test_a_plain_json_peer_writes_and_reads(serve_broker: Serve) -> None:
    """A stock REQ socket needs no library of ours; a lone surrogate in its JSON is refused."""
    async with serve_broker() as settings, memory(settings):
        with zmq.asyncio.Context() as context, context.socket(zmq.REQ, socket_class=zmq.asyncio.Socket) as socket:
            socket.linger = 0
            socket.connect(f"tcp://127.0.0.1:{settings.bus.request_port}")

            async def ask(subject: str, body: bytes) -> tuple[bytes, Any]:
                async with asyncio.timeout(10):
                    await socket.send_multipart([subject.encode(), body])
                    status, reply = await socket.recv_multipart()
                return status, json.loads(reply)

            assert (await ask("memory.kv.set", b'{"key": "k", "value": {"a": [1, null]}}'))[0] == b"ok"
            status, entry = await ask("memory.kv.get", b'{"key": "k"}')
            assert (status, entry["value"]) == (b"ok", {"a": [1, None]})
            status, error = await ask("memory.kv.set", b'{"key": "\\ud800", "value": 1}')
            assert (status, error["code"]) == (b"error", "bad_request")
            status, error = await ask("memory.kv.set", b'{"key": "k", "value": 99999999999999999999999}')
            assert (status, error["code"], error["details"]["field"]) == (b"error", "bad_request", "value")


async def test_a_request_sent_again_by_id_is_applied_once(serve_broker: Serve) -> None:
    """As a client does after a broker restart: the same id gets the same reply, a new id sees one write."""
    async with serve_broker() as settings, memory(settings) as client:
        with zmq.asyncio.Context() as context, context.socket(zmq.DEALER, socket_class=zmq.asyncio.Socket) as socket:
            socket.linger = 0
            socket.connect(f"tcp://127.0.0.1:{settings.bus.request_port}")
            frames = encode(Kind.REQUEST, new_id(), "memory.kv.set", body=KvSet(key="k", value=1, if_version=0))
            replies = []
            for _ in range(2):
                async with asyncio.timeout(10):
                    await socket.send_multipart([bytes(frame) for frame in frames])
                    replies.append(decode(await socket.recv_multipart()))

        assert [reply.kind for reply in replies] == [Kind.FINAL, Kind.FINAL]
        assert bytes(replies[0].body) == bytes(replies[1].body)
        assert (await client.request("memory.kv.get", KvGet(key="k"))).version == 1
