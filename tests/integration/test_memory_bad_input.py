"""Bad input to every operation of the memory service: each field of each body, on a real broker and the whole service."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from functools import partial
from typing import Any, Final

import msgspec
import pytest
import zmq
import zmq.asyncio
from argon2 import PasswordHasher
from msgspec import inspect

from bus.client import Client
from bus.settings import Settings
from bus.tokens import local_token_path
from schemas import catalog
from schemas.bodies.memory import KvGet, KvSet
from schemas.catalog import Operation
from schemas.envelope import Headers
from schemas.errors import (
    BadRequest,
    BusError,
    Conflict,
    ErrorBody,
    Forbidden,
    NotFound,
    QuotaExceeded,
    TooLarge,
    Unauthenticated,
    Unprocessable,
    from_body,
)
from tests.bad_values import Bodies, Case, names_the_field
from workers.memory.clock import SteadyClock
from workers.memory.service import service
from workers.memory.upkeep.kinds import KINDS

Serve = Callable[..., AbstractAsyncContextManager[Settings]]

OPERATIONS = [operation for operation in catalog.OPERATIONS.values() if operation.service == "memory"]

# What a request that makes no sense may end in besides BadRequest: the sentence is whole, but nothing fits it.
REFUSALS = (NotFound, Conflict, Unprocessable, TooLarge, Unauthenticated, Forbidden, QuotaExceeded)

# Seconds for one answer; what takes longer hangs.
ANSWER_S = 20.0


class House:
    """A client of the service, who may do everything, and a plain peer who speaks JSON."""

    def __init__(self, client: Client, socket: zmq.asyncio.Socket, token: str) -> None:
        self._client = client
        self._socket = socket
        self._headers: Headers = {"token": token}

    async def ask(self, subject: str, body: Any) -> Any:
        """One request, with an answer or BusError soon."""
        return await self._client.request(subject, body, timeout_s=ANSWER_S, headers=self._headers)

    async def send(self, subject: str, body: bytes) -> None:
        """Send bytes as a body, JSON through the plain peer. Raises BusError."""
        if body[:1] != b"{":
            await self.ask(subject, msgspec.Raw(body))
            return
        async with asyncio.timeout(ANSWER_S):
            await self._socket.send_multipart([subject.encode(), body, json.dumps(self._headers).encode()])
            status, reply = await self._socket.recv_multipart()
        if status != b"ok":
            raise from_body(msgspec.json.decode(reply, type=ErrorBody))


# Examples -------------------------------------------------------------------------------------------------------------

BY_NAME: Final[dict[str, Any]] = {
    "user_id": "ada",
    "password": "correct horse",
    "new_password": "battery staple",
    "scopes": ["memory:read"],
    "namespaces": ["user.ada"],
    "name": "known",
    "role": "user",
    "kind": "about",
    "suggestion_id": f"sug-{0:032x}",
    "clear": ["parent_id"],
    "data": {"source_id": "known", "target_id": "known", "kind": "about", "strength": 0.5, "created_at": 1},
}


BODIES: Final = Bodies(BY_NAME, {"memory.forget": {"key": "known"}})


def wrong_and_hostile(operation: Operation) -> Iterator[Case]:
    """Every field with every bad value, as msgpack."""
    yield from BODIES.wrong_and_hostile(operation)
    if operation.subject == "memory.import":
        yield from imported()


def imported() -> Iterator[Case]:
    """Every field of every kind of record with every bad value."""
    for kind in KINDS.values():
        for path, value in BODIES.bad_values(inspect.type_info(kind.data)):
            record = {"kind": kind.name, "ns": "known", "data": value}
            body = {"records": [record], "on_conflict": "replace"}
            yield Case(f"records.data{path}", repr(value)[:60], msgspec.msgpack.encode(body))


# The house --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def memory(settings: Settings) -> AsyncIterator[House]:
    """The whole service without an encoder, and a client; afterwards the files must be sound."""
    without = msgspec.structs.replace(settings.memory, encoder="no-such-encoder")
    changed = msgspec.structs.replace(settings, memory=without)
    async with service(changed) as worker, Client(changed, name="test") as client:
        await worker.start(10)
        try:
            with (
                zmq.asyncio.Context() as context,
                context.socket(zmq.REQ, socket_class=zmq.asyncio.Socket) as socket,
            ):
                socket.linger = 0
                socket.connect(f"tcp://127.0.0.1:{settings.bus.request_port}")
                yield House(client, socket, local_token_path(settings).read_text())
        finally:
            await worker.stop()
    assert_sound(settings)


def assert_sound(settings: Settings) -> None:
    """The database and its full-text indexes agree with themselves."""
    with closing(sqlite3.connect(settings.path(settings.memory.path))) as connection:
        for index in ("chunks_text", "facts_text"):
            connection.execute(f"INSERT INTO {index} ({index}, rank) VALUES ('integrity-check', 1)")
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


SEED: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("memory.kv.set", {"key": "known", "value": "v"}),
    ("memory.remember", {"key": "known", "value": "a known thing"}),
    ("memory.add", {"id": "known", "content": "a known thing", "replace": True, "tags": ["known"]}),
    ("memory.doc.put", {"doc_id": "known", "content": "a known thing"}),
    ("memory.context.put", {"context_id": "known", "session_id": "known"}),
    ("memory.experience.record", {"exp_id": "known", "agent": "known", "action": "a known thing"}),
    ("memory.cache.set", {"key": "known", "value": "v"}),
    ("memory.group.create", {"name": "known"}),
    ("memory.session.create", {"session_id": "known", "user_id": "ada"}),
    ("auth.user.add", {"user_id": "ada", "password": "correct horse"}),
)


async def seed(house: House) -> None:
    """What examples name is there."""
    for subject, body in SEED:
        try:
            await house.ask(subject, body)
        except Conflict:
            continue


async def answer(house: House, operation: Operation, case: Case) -> str:
    """What is wrong with the answer to a case, "" where nothing is."""
    try:
        await house.send(operation.subject, case.body)
    except BadRequest as error:
        if not names_the_field(error, case):
            return f"does not name the field: {error.message} {error.details}"
    except REFUSALS:
        return ""
    except BusError as error:
        return f"{type(error).__name__}: {error.message}"
    return ""


@pytest.fixture(autouse=True)
def cheap_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand passwords are hashed here."""
    cheap = partial(PasswordHasher, time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr("argon2.PasswordHasher", cheap)


@pytest.mark.parametrize("cases_of", [wrong_and_hostile, BODIES.no_text, BODIES.large])
async def test_bad_input_to_any_field_is_answered_or_refused_by_name(
    serve_broker: Serve, cases_of: Callable[[Operation], Iterator[Case]]
) -> None:
    """Never an internal error, never silence; the service goes on, and its files are sound."""
    wrong = []
    async with serve_broker() as settings, memory(settings) as house:
        for operation in OPERATIONS:
            await seed(house)
            for case in cases_of(operation):
                if said := await answer(house, operation, case):
                    wrong.append(f"{operation.subject} {case.field} = {case.what}: {said[:300]}")
        await house.ask("memory.kv.set", KvSet(key="after", value=1))
        assert (await house.ask("memory.kv.get", KvGet(key="after"))).value == 1

    assert not wrong, "\n".join(wrong)


async def test_the_examples_that_bad_values_are_put_into_are_good(serve_broker: Serve) -> None:
    """Else a refusal would say nothing about the field."""
    refused = []
    async with serve_broker() as settings, memory(settings) as house:
        for operation in OPERATIONS:
            await seed(house)
            body = BODIES.good(operation)
            try:
                await house.ask(operation.subject, body)
            except BusError as error:
                refused.append(f"{operation.subject} {error.code}")

    # Well understood all of them, but there is no such suggestion, backup, token, and no encoder; and ada is there.
    assert refused == [
        "memory.suggest.dismiss not_found",
        "memory.verify unsupported",
        "memory.rebuild unsupported",
        "memory.restore not_found",
        "auth.register conflict",
        "auth.refresh unauthenticated",
        "auth.logout unauthenticated",
        "auth.user.add conflict",
    ]


# Sense, but of the wrong kind -------------------------------------------------------------------------------------

EXPIRING: Final[tuple[tuple[str, dict[str, Any], str, dict[str, Any]], ...]] = (
    ("memory.kv.set", {"key": "k", "value": 1, "ttl_s": 10}, "memory.kv.get", {"key": "k"}),
    ("memory.add", {"id": "k", "content": "tea", "ttl_s": 10}, "memory.get", {"id": "k", "touch": False}),
    ("memory.context.put", {"context_id": "k", "ttl_s": 10}, "memory.context.get", {"context_id": "k"}),
    (
        "memory.experience.record",
        {"exp_id": "k", "agent": "a", "action": "b", "ttl_s": 10},
        "memory.experience.get",
        {"exp_id": "k"},
    ),
)


async def test_the_clock_set_back_before_a_start_brings_nothing_back(
    serve_broker: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written at 0 for 10 s, the service stopped at 100 and was started at 5: gone is gone, for every kind of thing."""
    wall = 1_000_000.0
    monkeypatch.setattr("workers.memory.records.SteadyClock", lambda: SteadyClock(lambda: wall, lambda: 0.0))
    async with serve_broker() as settings:
        async with memory(settings) as house:
            for write, body, _, _ in EXPIRING:
                await house.ask(write, body)
            await house.ask("memory.session.create", {"session_id": "k", "ttl_s": 10})
            wall += 100
            await house.ask("memory.kv.set", {"key": "later", "value": 1})
        wall -= 95
        async with memory(settings) as house:
            for _, _, read, body in EXPIRING:
                with pytest.raises(NotFound):
                    await house.ask(read, body)
            assert (await house.ask("memory.session.get", {"session_id": "k"})).state == "expired"
            assert (await house.ask("memory.search", {"query": "tea"})).hits == []


async def test_circles_of_parents_are_refused_and_those_of_relations_are_followed_once(serve_broker: Serve) -> None:
    """Reading, searching, ageing and deleting end, however memories hang together."""
    async with serve_broker() as settings, memory(settings) as house:
        names = ["a", "b", "c"]
        for name in names:
            await house.ask("memory.add", {"id": name, "content": f"tea {name}", "importance": 0.1})
        for near, far in zip(names, [*names[1:], "a"], strict=True):
            await house.ask("memory.link", {"source_id": near, "target_id": far, "kind": "about"})
        await house.ask("memory.link", {"source_id": "a", "target_id": "a", "kind": "about"})
        await house.ask("memory.update", {"id": "b", "parent_id": "a"})
        await house.ask("memory.update", {"id": "c", "parent_id": "b"})
        for parent in ("a", "b", "c"):
            with pytest.raises(Unprocessable, match="parent"):
                await house.ask("memory.update", {"id": "a", "parent_id": parent})
        with pytest.raises(Unprocessable, match="parent"):
            await house.ask(
                "memory.add_many",
                {
                    "items": [
                        {"content": "x", "id": "x", "parent_id": "y"},
                        {"content": "y", "id": "y", "parent_id": "x"},
                    ]
                },
            )

        related = (await house.ask("memory.related", {"id": "a", "depth": 8, "direction": "both"})).related
        found = [(one.relation.source_id, one.relation.target_id) for one in related]
        assert sorted(found) == [("a", "a"), ("a", "b"), ("b", "c"), ("c", "a")]
        assert {hit.id for hit in (await house.ask("memory.search", {"query": "tea"})).hits} == {"a", "b", "c"}
        await house.ask("memory.decay", {})
        assert (await house.ask("memory.delete", {"id": "a", "cascade": True})).deleted == 3
