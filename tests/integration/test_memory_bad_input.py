"""Bad input to every operation of the memory service: each field of each body, on a real broker and the whole service."""

from __future__ import annotations

import asyncio
import json
import math
import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from functools import partial
from typing import Any, Final, NamedTuple

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
from workers.memory.clock import SteadyClock
from workers.memory.service import service
from workers.memory.upkeep.kinds import KINDS

Serve = Callable[..., AbstractAsyncContextManager[Settings]]

OPERATIONS = [operation for operation in catalog.OPERATIONS.values() if operation.service == "memory"]

# What a request that makes no sense may end in besides BadRequest: the sentence is whole, but nothing fits it.
REFUSALS = (NotFound, Conflict, Unprocessable, TooLarge, Unauthenticated, Forbidden, QuotaExceeded)

# Seconds for one answer; what takes longer hangs.
ANSWER_S = 20.0


def nested(levels: int) -> list[Any]:
    """Lists in lists."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


TEXTS: Final = (
    "",
    " ",
    "\0",
    "a\0b",
    "known\n",
    '" OR 1=1; DROP TABLE memories; --',
    "'; DROP TABLE kv; --",
    "NEAR(",
    "NEAR(a b, 99999999999)",
    "*",
    "col:",
    "text: {speaker text}: -speaker: x",
    '"unbalanced',
    '"""',
    "AND OR NOT",
    "a AND (b OR",
    "^a + b",
    "%_\\",
    "../../../etc/passwd",
    "..",
    "-",
    "\ufffe\uffff \U0010ffff",
    "e\u0301" * 40,
    "{}[]$[*]",
)
NO_TEXTS: Final[tuple[Any, ...]] = (7, 1.5, True, None, b"known", ["known"], {"known": 1}, msgspec.msgpack.Ext(9, b"x"))

NUMBERS: Final = (
    math.nan,
    math.inf,
    -math.inf,
    -1,
    -0.5,
    0,
    0.5,
    1e-320,
    1e308,
    -1e308,
    1e12,
    2**31,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
    -(2**63),
)
NO_NUMBERS: Final[tuple[Any, ...]] = (True, False, None, "1", "nan", b"1", [1], {})
MAPS: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"": ""},
    {"\0": "\0"},
    {"k": math.nan},
    {"k": math.inf},
    {"k": 2**64 - 1},
    {"k": -(2**63)},
    {"k": b"\xff"},
    {"k": msgspec.msgpack.Ext(9, b"x")},
    {"time": "no time", "timestamp": 1e308, "speaker": ["x"], "summary": 1},
    {"time": "9999-12-31T23:59:59+23:59", "speaker": ""},
    {"time": -1e300},
    {"time": math.nan},
    {'"; DROP TABLE memories; --': "' OR ''='"},
    {"k": [[[[[[[[{}]]]]]]]]},
    {"k": nested(100)},
)
NO_MAPS: Final[tuple[Any, ...]] = (7, "known", None, ["known"], {1: 2}, {None: None}, {b"k": 1})


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


class Case(NamedTuple):
    """One bad request: which field is bad, and the bytes of the body."""

    field: str
    what: str
    body: bytes
    is_undecodable: bool = False


# Examples ---------------------------------------------------------------------------------------------------------

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


def example(type_: inspect.Type, name: str = "") -> Any:
    """A value that a type allows."""
    match type_:
        case inspect.Metadata(type=inner) | inspect.UnionType(types=(inner, *_)):
            return example(inner, name)
        case inspect.LiteralType(values=values):
            if "relation" in values:
                return "relation"
            return sorted(values, key=str)[0]
        case inspect.StructType(fields=fields):
            return {field.name: example(field.type, field.name) for field in fields if field.required}
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
            return BY_NAME.get(name) or [example(item, name)]
        case _ if name in BY_NAME:
            return BY_NAME[name]
        case inspect.BoolType():
            return False
        case inspect.IntType() | inspect.FloatType():
            return 1
        case inspect.DictType() | inspect.AnyType():
            return {"k": "v"}
    return "known"


# What a body of this operation needs besides, whatever else is in it.
ALWAYS: Final = {"memory.forget": {"key": "known"}}


# Bad values -------------------------------------------------------------------------------------------------------


def nameless(*values: Any) -> Iterator[tuple[str, Any]]:
    """Values for the field itself."""
    return (("", value) for value in values)


def bad_values(type_: inspect.Type) -> Iterator[tuple[str, Any]]:
    """Path below a field and a value that is bad there, or only just good."""
    match type_:
        case inspect.Metadata(type=inner):
            yield from bad_values(inner)
        case inspect.UnionType(types=types):
            for inner in types:
                if not isinstance(inner, inspect.NoneType):
                    yield from bad_values(inner)
        case inspect.StrType():
            yield from nameless(*TEXTS, *NO_TEXTS)
        case inspect.IntType() | inspect.FloatType():
            yield from nameless(*NUMBERS, *NO_NUMBERS)
        case inspect.BoolType():
            yield from nameless(0, 1, "true", None, b"", [], {})
        case inspect.LiteralType():
            yield from nameless("", "nonsense", "a\0", 7, None, b"", [], {})
        case inspect.DictType():
            yield from nameless(*MAPS, *NO_MAPS)
        case inspect.AnyType():
            yield from nameless(*MAPS, *TEXTS, *NUMBERS, None, [[]])
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
            yield from nameless([], "known", 7, {}, [None], [[]])
            yield from ((f"[0]{path}", [value]) for path, value in bad_values(item))
        case inspect.StructType(fields=fields):
            yield from nameless("known", 7, [], {"nonsense": 1})
            good = example(type_)
            for field in fields:
                for path, value in bad_values(field.type):
                    yield f".{field.name}{path}", {**good, field.name: value}
        case _:
            raise AssertionError(f"nothing bad is known for {type_}")


def texts_in(type_: inspect.Type, text: str) -> Iterator[tuple[str, Any]]:
    """Path of every text below a field, and a value that has `text` there."""
    match type_:
        case inspect.Metadata(type=inner):
            yield from texts_in(inner, text)
        case inspect.UnionType(types=types):
            for inner in types:
                yield from texts_in(inner, text)
        case inspect.StrType():
            yield "", text
        case inspect.DictType() | inspect.AnyType():
            yield ".k", {"k": [text]}
            yield " (a key)", {text: 1}
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
            yield from ((f"[0]{path}", [value]) for path, value in texts_in(item, text))
        case inspect.StructType(fields=fields):
            good = example(type_)
            for field in fields:
                for path, value in texts_in(field.type, text):
                    yield f".{field.name}{path}", {**good, field.name: value}


def body_type(operation: Operation) -> inspect.StructType:
    """The request body of an operation."""
    found = inspect.type_info(operation.request)
    assert isinstance(found, inspect.StructType)
    return found


def wrong_and_hostile(operation: Operation) -> Iterator[Case]:
    """Every field with every bad value, as msgpack."""
    body = body_type(operation)
    for path, value in bad_values(body):
        whole = {**ALWAYS.get(operation.subject, {}), **value} if isinstance(value, dict) else value
        yield Case(path.removeprefix("."), repr(value)[:60], msgspec.msgpack.encode(whole))
    if operation.subject == "memory.import":
        yield from imported()


def imported() -> Iterator[Case]:
    """Every field of every kind of record with every bad value."""
    for kind in KINDS.values():
        for path, value in bad_values(inspect.type_info(kind.data)):
            record = {"kind": kind.name, "ns": "known", "data": value}
            body = {"records": [record], "on_conflict": "replace"}
            yield Case(f"records.data{path}", repr(value)[:60], msgspec.msgpack.encode(body))


def no_text(operation: Operation) -> Iterator[Case]:
    """Every text with a lone surrogate: as JSON writes it, and as bytes that are no UTF-8 in msgpack."""
    for path, value in texts_in(body_type(operation), "known\ud800"):
        yield Case(path.removeprefix("."), "surrogate in JSON", json.dumps(value).encode(), is_undecodable=True)
    for path, value in texts_in(body_type(operation), "known???"):
        raw = msgspec.msgpack.encode(value).replace(b"???", b"\xed\xa0\x80")
        yield Case(path.removeprefix("."), "surrogate in msgpack", raw, is_undecodable=True)


def large(operation: Operation) -> Iterator[Case]:
    """Every text with ten megabytes."""
    for path, value in texts_in(body_type(operation), "Ten megabytes of it. " * 500_000):
        yield Case(path.removeprefix("."), "10 MB", msgspec.msgpack.encode(value))


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


def bare(path: str) -> str:
    """A path without places in lists and without keys of maps."""
    return re.sub(r"\[[^\]]*\]| \(a key\)", "", path).removesuffix(".k")


def names_the_field(error: BusError, case: Case) -> bool:
    """Whether the error says what was bad: the field, what it stands in, or what stands in it."""
    named = error.details.get("field")
    if not isinstance(named, str):
        return False
    if "record" in error.details:
        named = f"records.data.{named}".removesuffix(".data")
    named, field = bare(named), bare(case.field)
    if case.is_undecodable or not field:
        return True
    return named == field or named.startswith(f"{field}.") or field.startswith(f"{named}.")


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


@pytest.mark.parametrize("cases_of", [wrong_and_hostile, no_text, large])
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
            body = {**ALWAYS.get(operation.subject, {}), **example(body_type(operation))}
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
