"""One generation of a model as it comes, asked again when the bus or the model went away in the middle.

It knows nothing of the conversation that the generation is for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from bus.cli.chat.events import Away, Back, Event, Text
from bus.client import BrokerUnreachable, Client
from schemas.bodies.model import Generation, ModelList
from schemas.errors import BusError, NoWorker, WorkerLost

# A person waits in front of an answer and can stop it; this only ends what nobody watches. Seconds.
_ANSWER_S: Final = 3_600.0

# How long a conversation waits for a bus or a model that went away in the middle, seconds.
_AWAY_S: Final = 60.0

# How often it looks whether the connection is still there, and whether what went away is back, seconds.
_LOOK_S: Final = 0.25

# A model that is lost this often over one answer is what breaks; asking again would break it again.
_LOST_MAX: Final = 3

# What a look at the catalogue may take, seconds.
LIST_S: Final = 3.0


class _BusAway(Exception):
    """The connection broke while an answer came."""


class Generating:
    """Asks for generations and tells `emit` what happens: text as it comes, and that the bus or the model is away."""

    def __init__(self, client: Client, emit: Callable[[Event], None]) -> None:
        self._client = client
        self._emit = emit

    async def generation(self, body: Mapping[str, Any], pieces: list[str]) -> Generation:
        """What the model makes of `body`, a request of `model.chat`; asked again where the bus or the model went away.

        pieces: takes its text as it comes; what came before an outage stays there until text comes anew. Raises BusError.
        """
        lost, lost_at = 0, 0.0
        while True:
            try:
                return await self._streamed(body, pieces)
            except NoWorker:
                # What was lost is started again, and serves nothing until it is there.
                if not lost or time.monotonic() - lost_at > _AWAY_S:
                    raise
                await asyncio.sleep(_LOOK_S)
            except (_BusAway, WorkerLost, BrokerUnreachable) as error:
                lost, lost_at = lost + 1, time.monotonic()
                why = error.message if isinstance(error, BusError) else "the bus went away"
                if lost >= _LOST_MAX and isinstance(error, WorkerLost):
                    raise
                self._emit(Away(reason=why))
                away_s = await self._back()
                self._emit(Back(away_s=away_s))

    async def _back(self) -> float:
        """Wait until bus and models answer again; how long that took, seconds. Raises what is still wrong at the end."""
        began_at = time.monotonic()
        while True:
            left_s = _AWAY_S - (time.monotonic() - began_at)
            try:
                await self._client.connect(max(left_s, 0.001))
                await self._client.request("model.list", ModelList(), timeout_s=LIST_S)
            except BusError as error:
                if isinstance(error, BrokerUnreachable) or left_s <= 0:
                    raise NoWorker(f"waited {_AWAY_S:g} s, and still: {error.message}") from error
                await asyncio.sleep(_LOOK_S)
            else:
                return time.monotonic() - began_at

    async def _streamed(self, body: Mapping[str, Any], pieces: list[str]) -> Generation:
        """One generation, its text told as it comes. Raises BusError, _BusAway."""
        model = body.get("model")
        subject = f"model.chat@{model}" if model else "model.chat"
        has_begun = False
        async with self._client.stream(subject, body, timeout_s=_ANSWER_S) as parts:
            while True:
                part = await self._next(parts)
                if part is None:
                    break
                if part.text:
                    if not has_begun:
                        has_begun = True
                        pieces.clear()
                    pieces.append(part.text)
                    self._emit(Text(text=part.text))
            final: Generation = parts.final
        if not has_begun:
            pieces.clear()
            if final.text:
                pieces.append(final.text)
                self._emit(Text(text=final.text))
        return final

    async def _next(self, parts: Any) -> Any:
        """The next piece, None after the last. Raises _BusAway as soon as the connection is gone: nothing else tells."""
        coming = asyncio.ensure_future(anext(parts, None))
        try:
            while not coming.done():
                await asyncio.wait({coming}, timeout=_LOOK_S)
                if not coming.done() and not self._client.is_connected:
                    raise _BusAway
            return coming.result()
        finally:
            if not coming.done():
                await ended(coming)


async def ended(task: asyncio.Future[Any]) -> None:
    """Cancel a task and wait for its end; what it ends with is looked at by whoever wants it."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
