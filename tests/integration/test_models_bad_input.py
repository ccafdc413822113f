"""Bad input to every operation of the model and resource services: each field of each body, on the whole of both."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import msgspec
import pytest
import zmq
import zmq.asyncio

from bus.client import Client
from bus.settings import Settings
from schemas import catalog
from schemas.bodies.model import Generate, ModelList
from schemas.catalog import Operation
from schemas.errors import (
    BadRequest,
    BusError,
    Conflict,
    ErrorBody,
    Forbidden,
    NotFound,
    Overloaded,
    QuotaExceeded,
    TooLarge,
    Unprocessable,
    Unsupported,
    from_body,
)
from tests.bad_values import Bodies, Case, names_the_field
from workers.models.catalogue import SHIPPED_ROOT
from workers.models.service import ModelService
from workers.resources.service import ResourceService

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

Serve = Callable[..., AbstractAsyncContextManager[Settings]]

OPERATIONS = [one for one in catalog.OPERATIONS.values() if one.service in ("model", "resource")]

# What a request that makes no sense may end in besides BadRequest.
REFUSALS = (NotFound, Conflict, Unprocessable, TooLarge, Forbidden, QuotaExceeded, Unsupported, Overloaded)

# Seconds for one answer; what takes longer hangs.
ANSWER_S = 20.0

# Operations that would work for minutes on a model that is there: to them "known" is none.
LONG: Final = ("model.evaluate", "model.benchmark", "model.compare", "model.quantize", "model.export", "model.verify")

# Of two fields one has to be given; the error about that names the first.
EITHER: Final = {("ram_bytes", "vram_bytes"), ("messages", "prompt")}

BODIES: Final = Bodies(
    {
        "model": "olympus-demo",
        "models": ["olympus-demo", "known"],
        "sha256": "a" * 64,
        "device": "cpu",
        "messages": [{"role": "user", "content": "Hello"}],
        "role": "user",
        "confidence": 0.9,
        "alpha": 0.05,
        "type": "Q8_0",
        "lease_id": "known",
        "source": "ollama:known",
        "path": "/known",
        "scores": {"k": 0.5},
        "variants": [{"name": name, "model": "olympus-demo"} for name in "ab"],
    },
    {
        "model.generate": {"max_tokens": 2},
        "model.chat": {"max_tokens": 2},
        "resource.lease.acquire": {"ram_bytes": 1, "ttl_s": 1},
        **{subject: {"model": "known"} for subject in LONG if subject != "model.compare"},
        "model.compare": {"models": ["known", "unknown"], "messages": [{"role": "user", "content": "Hello"}]},
    },
    # Some 2 MB a second are tokenized; ten would only take longer.
    large_bytes=2_000_000,
)


class House:
    """A client of both services, and a plain peer who speaks JSON."""

    def __init__(self, client: Client, socket: zmq.asyncio.Socket) -> None:
        self._client = client
        self._socket = socket

    async def ask(self, subject: str, body: Any) -> Any:
        """One request, with an answer or BusError soon."""
        return await self._client.request(subject, body, timeout_s=ANSWER_S)

    async def send(self, subject: str, body: bytes) -> None:
        """Send bytes as a body, JSON through the plain peer. Raises BusError."""
        if body[:1] != b"{":
            await self.ask(subject, msgspec.Raw(body))
            return
        async with asyncio.timeout(ANSWER_S):
            await self._socket.send_multipart([subject.encode(), body, json.dumps({"timeout_s": ANSWER_S}).encode()])
            status, reply = await self._socket.recv_multipart()
        if status != b"ok":
            raise from_body(msgspec.json.decode(reply, type=ErrorBody))


@asynccontextmanager
async def house(settings: Settings) -> AsyncIterator[House]:
    """Both services, with the demo model loaded and a copy of it that may be deleted."""
    root = settings.path("models")
    root.mkdir(parents=True)
    shutil.copy(SHIPPED_ROOT / "olympus-demo.gguf", root / "spare.gguf")
    resources = ResourceService(
        msgspec.structs.replace(settings, resources=msgspec.structs.replace(settings.resources, nvml="off"))
    )
    quiet = msgspec.structs.replace(settings.models, predict=False, is_offline=True, rescan_s=0.0)
    models = ModelService(msgspec.structs.replace(settings, models=quiet))
    await resources.start()
    await models.start()
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
        await models.stop()
        await resources.stop()


async def answer(house: House, operation: Operation, case: Case) -> str:
    """What is wrong with the answer to a case, "" where nothing is."""
    try:
        await house.send(operation.subject, case.body)
    except BadRequest as error:
        if not (names_the_field(error, case) or (case.field, error.details.get("field")) in EITHER):
            return f"does not name the field: {error.message} {error.details}"
    except REFUSALS:
        return ""
    except (BusError, TimeoutError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize("cases_of", [BODIES.wrong_and_hostile, BODIES.no_text, BODIES.large])
async def test_bad_input_to_any_field_is_answered_or_refused_by_name(
    serve_broker: Serve, cases_of: Callable[[Operation], Iterator[Case]]
) -> None:
    """Never an internal error, never silence; afterwards both services answer as before."""
    wrong = []
    async with serve_broker() as settings, house(settings) as whole:
        for operation in OPERATIONS:
            for case in cases_of(operation):
                if said := await answer(whole, operation, case):
                    wrong.append(f"{operation.subject} {case.field} = {case.what}: {said[:300]}")
        models = (await whole.ask("model.list", ModelList())).models
        reply = await whole.ask("model.generate", Generate(prompt="a", model="olympus-demo", max_tokens=1))

    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong)
    assert "olympus-demo" in {one.name for one in models}
    assert reply.usage.completion_tokens <= 1


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


async def test_a_word_that_is_none_of_few_is_told_which_there_are(serve_broker: Serve) -> None:
    """The field, the word and the choices, also within a list."""
    async with serve_broker() as settings, house(settings) as whole:
        with pytest.raises(BadRequest) as wrong:
            await whole.ask("model.generate", {"prompt": "a", "truncate": "tail"})
        with pytest.raises(BadRequest) as below:
            await whole.ask("model.chat", {"messages": [{"role": "king", "content": "a"}]})

    assert "one of middle, refuse, start, it is 'tail' (field 'truncate')" in wrong.value.message
    assert "one of assistant, system, tool, user, it is 'king' (field 'messages[0].role')" in below.value.message
