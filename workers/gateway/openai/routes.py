"""The routes under /v1: read the request, ask the model service, write the answer, each in OpenAI's words."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, Final, Self

from bus.client import Priority, Stream
from schemas.bodies.model import Embeddings, Generation, GenerationPart, ModelInfo, ModelList, Models, ModelShow
from schemas.bodies.model_trials import ProfileList, Profiles
from schemas.errors import BadRequest, BusError, NotFound
from workers.gateway.openai import requests
from workers.gateway.openai.described import described
from workers.gateway.openai.errors import error_body, error_response
from workers.gateway.openai.replies import Writer, entry_of, listed, profile_entry, sse, vectors, whole
from workers.gateway.openai.requests import Wanted
from workers.gateway.rest.request import RestRequest
from workers.gateway.rest.response import Response, json_response
from workers.gateway.rest.routes import Route

# Seconds an answer may take where the request sets no limit: what the `openai` package waits. A client that hangs up
# ends it sooner.
ANSWER_S: Final = 600.0

# A model's name that can be an address on the bus; of another the service says what is wrong with it.
_INSTANCE: Final = re.compile(r"[A-Za-z0-9._:/+-]{1,128}")

# Pieces of an answer that may wait for a slow client before its streams wait too.
_AHEAD: Final = 64

# Proxies hold answers back to send them in larger pieces unless they are told not to.
_NO_BUFFER: Final = (("cache-control", "no-cache"), ("x-accel-buffering", "no"))

# Where the `openai` package looks for an answer's `_request_id`.
_REQUEST_ID: Final = "x-request-id"

_Handle = Callable[[RestRequest], Awaitable[Response]]


def openai_routes() -> list[Route]:
    """The routes of the models port."""
    served: tuple[tuple[str, str, _Handle, str], ...] = (
        ("GET", "/v1/models", list_models, "Models, aliases and routing profiles, as OpenAI lists them."),
        ("GET", "/v1/models/{id}", show_model, "One of them."),
        # Names of a hub hold a slash, which not every client writes as %2F.
        ("GET", "/v1/models/{owner}/{name}", show_model, "One of them, by a name with a slash."),
        ("POST", "/v1/chat/completions", chat, "Answer a conversation, in OpenAI's shape."),
        ("POST", "/v1/completions", complete, "Continue a prompt, in OpenAI's shape."),
        ("POST", "/v1/embeddings", embed, "Vectors of texts, in OpenAI's shape."),
    )
    return [
        Route(method, path, _bounded(handle), summary, describe=described(method, path), failed=error_response)
        for method, path, handle, summary in served
    ]


def _bounded(handle: _Handle) -> _Handle:
    """`handle` with a refusal of numbers that the bus cannot carry."""

    async def bounded(request: RestRequest) -> Response:
        try:
            return await handle(request)
        except OverflowError as error:
            # JSON knows no limit of numbers, the bus does; where in the body it stands nobody tells.
            raise BadRequest(f"a number in the body has more than 64 bits: {error}", field="body") from error

    return bounded


async def list_models(request: RestRequest) -> Response:
    """Everything that `model` may be."""
    models, profiles = await asyncio.gather(_ask(request, "model.list", ModelList()), _profiles(request))
    assert isinstance(models, Models)
    return json_response(listed(models, profiles.profiles))


async def show_model(request: RestRequest) -> Response:
    """One of them, by name, alias or profile."""
    name = "/".join(request.params.values())
    try:
        info = await _ask(request, "model.show", ModelShow(model=name))
    except (NotFound, BadRequest):
        found = next((one for one in (await _profiles(request)).profiles if one.name == name), None)
        if found is None:
            raise NotFound(f"The model '{name[:128]}' does not exist", model=name[:128]) from None
        return json_response(profile_entry(found))
    assert isinstance(info, ModelInfo)
    return json_response(entry_of(info, name))


async def _profiles(request: RestRequest) -> ProfileList:
    reply = await _ask(request, "model.profiles", Profiles())
    assert isinstance(reply, ProfileList)
    return reply


async def _ask(request: RestRequest, subject: str, body: Any) -> Any:
    return await request.client.request(subject, body, timeout_s=request.timeout_s, headers=request.bus_headers())


async def chat(request: RestRequest) -> Response:
    """/v1/chat/completions."""
    return await _generate(request, requests.chat_of(await request.json()))


async def complete(request: RestRequest) -> Response:
    """/v1/completions."""
    return await _generate(request, requests.completion_of(await request.json()))


async def embed(request: RestRequest) -> Response:
    """/v1/embeddings."""
    wanted = requests.vectors_of(await request.json())
    reply = await request.client.request(
        _address("model.embed", wanted.model),
        wanted.body,
        timeout_s=request.timeout_s or ANSWER_S,
        headers=request.bus_headers(),
    )
    assert isinstance(reply, Embeddings)
    return json_response(vectors(wanted, reply))


async def _generate(request: RestRequest, wanted: Wanted) -> Response:
    timeout_s, headers = request.timeout_s or ANSWER_S, request.bus_headers()
    priority: Priority = "batch" if wanted.is_batch else "interactive"
    created = int(time.time())
    subject, client = _address(wanted.subject, wanted.model), request.client
    if wanted.is_streamed:
        streams = [
            client.stream(subject, body, timeout_s=timeout_s, headers=headers, priority=priority)
            for body in wanted.bodies
        ]
        pieces = await Begun.of(_pieces(wanted, streams, created))
        head = (*_NO_BUFFER, (_REQUEST_ID, streams[0].id.hex()))
        return Response(media_type="text/event-stream", body=pieces, headers=head)
    headers = {**headers, "gather": True}
    generations = await _all(
        [
            client.request(subject, body, timeout_s=timeout_s, headers=headers, priority=priority)
            for body in wanted.bodies
        ]
    )
    return json_response(whole(wanted, generations, created), headers=((_REQUEST_ID, generations[0].reply_id),))


def _address(subject: str, model: str | None) -> str:
    """A request that names its model goes straight to its runner; where there is none, the broker asks the service."""
    return f"{subject}@{model}" if model and _INSTANCE.fullmatch(model) else subject


async def _all(asked: Sequence[Awaitable[Any]]) -> list[Generation]:
    """All of them; where one fails the others are taken back."""
    tasks = [asyncio.ensure_future(one) for one in asked]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await _end(tasks)


async def _end(tasks: Sequence[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _pieces(wanted: Wanted, streams: Sequence[Stream], created: int) -> AsyncGenerator[bytes, None]:
    """The events of a streamed answer. Raises BusError before the first of them, and writes it as an event after."""
    has_begun = False
    try:
        async with contextlib.AsyncExitStack() as open_ones:
            for stream in streams:
                await open_ones.enter_async_context(stream)
            writer = Writer(wanted, [stream.id.hex() for stream in streams], created)
            async with contextlib.aclosing(_merged(streams)) as parts:
                async for index, part in parts:
                    text = b"" if has_begun else writer.begin()
                    has_begun = True
                    text += writer.last(index, part) if isinstance(part, Generation) else writer.part(index, part)
                    if text:
                        yield text
            yield writer.end()
    except BusError as error:
        if not has_begun:
            raise
        yield sse(error_body(error))


async def _merged(streams: Sequence[Stream]) -> AsyncGenerator[tuple[int, GenerationPart | Generation], None]:
    """What comes of any of the streams with its number, the final reply of each as its last."""
    arrived: asyncio.Queue[tuple[int, GenerationPart | Generation | BusError]] = asyncio.Queue(_AHEAD)

    async def follow(index: int, stream: Stream) -> None:
        try:
            async for part in stream:
                await arrived.put((index, part))
            await arrived.put((index, stream.final))
        except BusError as error:
            await arrived.put((index, error))

    followers = [asyncio.ensure_future(follow(index, stream)) for index, stream in enumerate(streams)]
    try:
        running = len(followers)
        while running:
            index, part = await arrived.get()
            if isinstance(part, BusError):
                raise part
            running -= isinstance(part, Generation)
            yield index, part
    finally:
        await _end(followers)


class Begun(AsyncGenerator[bytes, None]):
    """The pieces of an answer whose first has come: what goes wrong before it can still be told by the status."""

    def __init__(self, first: bytes, pieces: AsyncGenerator[bytes, None]) -> None:
        self._first: bytes | None = first
        self._pieces = pieces

    @classmethod
    async def of(cls, pieces: AsyncGenerator[bytes, None]) -> Self:
        """Wait for the first piece. Raises what the pieces raise before it."""
        return cls(await anext(pieces), pieces)

    async def asend(self, value: None) -> bytes:
        """The next piece."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await anext(self._pieces)

    async def athrow(self, *error: Any) -> bytes:
        """As a generator has it."""
        return await self._pieces.athrow(*error)

    async def aclose(self) -> None:
        """End the answer, and with it what it was made from."""
        await self._pieces.aclose()
