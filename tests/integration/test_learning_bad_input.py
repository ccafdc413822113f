"""Bad input to every operation of the learning service: each field of each body, beside a model service that answers."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from typing import Any, Final

import msgspec
import pytest
import zmq
import zmq.asyncio

from bus.client import Client
from bus.settings import Settings
from schemas import catalog
from schemas.bodies.learning import ExchangeList, Feedback, OpportunityList
from schemas.catalog import Operation
from schemas.errors import (
    BadRequest,
    BusError,
    Conflict,
    ErrorBody,
    NotFound,
    TooLarge,
    Unprocessable,
    from_body,
)
from tests.bad_values import Bodies, Case, names_the_field
from workers.learning.service import LearningService
from workers.models.service import ModelService

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

Serve = Callable[..., AbstractAsyncContextManager[Settings]]

OPERATIONS = [one for one in catalog.OPERATIONS.values() if one.service == "learning"]

# What a request that makes no sense may end in besides BadRequest.
REFUSALS = (NotFound, Conflict, Unprocessable, TooLarge)

# Seconds for one answer; what takes longer hangs.
ANSWER_S = 20.0

# Requests under way at the same time; of megabytes each they are still some hundred.
AT_ONCE = 32

# Of several fields one has to be given, and not two that say the same; the error about that names one of them.
EITHER: Final = {
    (field, named)
    for named, others in {
        "reply_id": ("user", "session_id", "messages", "prompt", "model", "answer"),
        "rating": ("correction", "preferred"),
        "prompt": ("messages",),
        "lines": ("examples",),
        "min_value": ("max_value",),
        "dataset": ("opportunity_id",),
        "job_id": ("model", "adapter", "dataset", "evaluation_id"),
    }.items()
    for field in others
}

ANSWER: Final = {"model": "known", "prompt": "Capital of France?", "answer": "Lyon", "correction": "Paris"}

BODIES: Final = Bodies(
    {
        "messages": [{"role": "user", "content": "Hello"}],
        "role": "user",
        "dataset": "known",
        "job_id": "job-000000000000",
        "rating": 0.5,
        "score": 0.5,
        "progress": 0.5,
        "max_value": 2,
        "hours": "22:00-06:00",
        "sha256": "a" * 64,
    },
    {
        "learning.feedback": ANSWER,
        "learning.exchange.delete": {"user": "known"},
        "learning.dataset.import": {"lines": '{"prompt": "Capital of France?", "answer": "Paris"}'},
        "learning.training.start": {"dataset": "known"},
        "learning.evaluate": {"job_id": "job-000000000000"},
        "learning.gate.show": {"job_id": "job-000000000000"},
    },
    large_bytes=2_000_000,
)


# A second good body where there are two ways to ask.
OTHERWISE: Final = Bodies(
    {"messages": [{"role": "user", "content": "Hello"}], "role": "user", "rating": 0.5},
    {
        "learning.feedback": {
            "model": "known",
            "messages": [{"role": "user", "content": "Hello"}],
            "answer": "Bye",
            "correction": "Hello",
        },
        "learning.dataset.import": {"examples": [{"prompt": "Capital of France?", "answer": "Paris"}]},
        "learning.training.start": {"opportunity_id": "known"},
        "learning.evaluate": {"model": "olympus-demo", "adapter": "known", "dataset": "known"},
        "learning.gate.show": {"evaluation_id": "known"},
    },
    large_bytes=2_000_000,
)
ASKED_OTHERWISE: Final = frozenset(
    {
        "learning.feedback",
        "learning.dataset.import",
        "learning.training.start",
        "learning.evaluate",
        "learning.gate.show",
    }
)


def bad(kind: str) -> Iterator[tuple[Operation, Case]]:
    """All cases of a kind, as `Bodies` names it."""
    for operation in OPERATIONS:
        for bodies in (BODIES, OTHERWISE) if operation.subject in ASKED_OTHERWISE else (BODIES,):
            for case in getattr(bodies, kind)(operation):
                yield operation, case


def batched(cases: Iterator[tuple[Operation, Case]]) -> Iterator[list[tuple[Operation, Case]]]:
    """Some at a time."""
    while some := list(itertools.islice(cases, AT_ONCE)):
        yield some


class House:
    """A client, and a plain peer who speaks JSON."""

    def __init__(self, client: Client, socket: zmq.asyncio.Socket) -> None:
        self._client = client
        self._socket = socket
        self._turn = asyncio.Lock()

    async def ask(self, subject: str, body: Any) -> Any:
        """One request, with an answer or BusError soon."""
        return await self._client.request(subject, body, timeout_s=ANSWER_S)

    async def send(self, subject: str, body: bytes) -> None:
        """Send bytes as a body, JSON through the plain peer. Raises BusError."""
        if body[:1] != b"{":
            await self.ask(subject, msgspec.Raw(body))
            return
        async with self._turn, asyncio.timeout(ANSWER_S):
            await self._socket.send_multipart([subject.encode(), body, json.dumps({"timeout_s": ANSWER_S}).encode()])
            status, reply = await self._socket.recv_multipart()
        if status != b"ok":
            raise from_body(msgspec.json.decode(reply, type=ErrorBody))


@asynccontextmanager
async def house(settings: Settings) -> AsyncIterator[House]:
    """Both services, nothing trained unasked; afterwards the records must be sound."""
    quiet = msgspec.structs.replace(settings.models, predict=False, is_offline=True, rescan_s=0.0)
    unasked = msgspec.structs.replace(settings.learning, is_automatic=False)
    changed = msgspec.structs.replace(settings, models=quiet, learning=unasked)
    models, learning = ModelService(changed), LearningService(changed)
    await models.start()
    await learning.start()
    try:
        async with Client(settings, name="test") as client:
            with (
                zmq.asyncio.Context() as context,
                context.socket(zmq.REQ, socket_class=zmq.asyncio.Socket) as socket,
            ):
                socket.linger = 0
                socket.connect(f"tcp://127.0.0.1:{settings.bus.request_port}")
                yield House(client, socket)
    finally:
        await learning.stop()
        await models.stop()
    with closing(sqlite3.connect(settings.path("learning.db"))) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


async def answer(house: House, operation: Operation, case: Case) -> str:
    """What is wrong with the answer to a case, "" where nothing is."""
    try:
        await house.send(operation.subject, case.body)
    except BadRequest as error:
        given = re.split(r"[.\[]", case.field)[0]
        if not (names_the_field(error, case) or (given, error.details.get("field")) in EITHER):
            return f"does not name the field: {error.message} {error.details}"
    except REFUSALS:
        return ""
    except (BusError, TimeoutError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize("kind", ["wrong_and_hostile", "no_text", "large"])
async def test_bad_input_to_any_field_is_answered_or_refused_by_name(serve_broker: Serve, kind: str) -> None:
    """Never an internal error, never silence; afterwards the service answers as before and its records are sound."""
    wrong = []
    async with serve_broker() as settings, house(settings) as whole:
        # Side by side: feedback on an answer that nobody knows waits a second for it.
        for cases in batched(bad(kind)):
            for (operation, case), said in zip(
                cases, await asyncio.gather(*(answer(whole, *one) for one in cases)), strict=True
            ):
                if said:
                    wrong.append(f"{operation.subject} {case.field} = {case.what}: {said[:300]}")
        await whole.ask("learning.exchange.list", ExchangeList())
        await whole.ask("learning.opportunity.list", OpportunityList(limit=1))
        taken = await whole.ask(
            "learning.feedback", Feedback(model="olympus-demo", prompt="The end?", answer="No", correction="Yes")
        )

    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong)
    assert taken.opportunity_id


async def test_the_examples_that_bad_values_are_put_into_are_good(serve_broker: Serve) -> None:
    """Else a refusal would say nothing about the field."""
    refused = []
    async with serve_broker() as settings, house(settings) as whole:
        for operation in OPERATIONS:
            try:
                await whole.ask(operation.subject, BODIES.good(operation))
            except BusError as error:
                refused.append(f"{operation.subject} {error.code}: {error.message}")

    assert [line for line in refused if "bad_request" in line] == []
