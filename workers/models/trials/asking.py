"""Asks models over the bus for the trials: as a caller who can wait, and who is told what there is; knows no trial."""

from __future__ import annotations

import struct
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

from bus.client import Client, Stream
from bus.worker import Call
from schemas.bodies.model import (
    Chat,
    Embed,
    Embeddings,
    Generate,
    Generation,
    ModelInfo,
    ModelList,
    Models,
    ModelShow,
    Score,
    Scores,
    Usage,
)
from schemas.errors import DeadlineExceeded, NotFound
from schemas.purpose import UNOBSERVED

# Seconds for one answer where the caller set no deadline: a long answer of a slow model, and its loading.
_ANSWER_S: Final = 3_600.0

# Names shown of those that exist.
_SHOWN: Final = 40

Priority = Literal["interactive", "batch"]


class Asking:
    """The models as one request of ours sees them: nothing outlasts that request's deadline."""

    def __init__(self, client: Client, call: Call, priority: Priority) -> None:
        self._client = client
        self._deadline_at = call.deadline_at
        self._priority: Priority = priority

    def left_s(self) -> float:
        """Seconds an answer may take now. Raises DeadlineExceeded when there are none left."""
        if not self._deadline_at:
            return _ANSWER_S
        left_s = self._deadline_at - time.time()
        if left_s <= 0:
            raise DeadlineExceeded("the trial's deadline has passed")
        return min(left_s, _ANSWER_S)

    async def request(self, subject: str, body: Any) -> Any:
        """One whole reply."""
        return await self._client.request(
            subject, body, timeout_s=self.left_s(), headers=UNOBSERVED, priority=self._priority
        )

    @asynccontextmanager
    async def stream(self, subject: str, body: Any) -> AsyncIterator[Stream]:
        """A reply in pieces; leaving early takes the request back."""
        async with self._client.stream(
            subject, body, timeout_s=self.left_s(), headers=UNOBSERVED, priority=self._priority
        ) as parts:
            yield parts

    async def show(self, model: str) -> ModelInfo:
        """A model of the catalogue. Raises NotFound that names those there are."""
        try:
            shown: ModelInfo = await self.request("model.show", ModelShow(model=model))
        except NotFound as error:
            listed: Models = await self.request("model.list", ModelList())
            raise NotFound(f"no model {model!r}; there are: {names(one.name for one in listed.models)}") from error
        return shown

    async def answer(self, body: Generate | Chat) -> Generation:
        """The whole answer of a model."""
        subject = "model.generate" if isinstance(body, Generate) else "model.chat"
        generation: Generation = await self.request(subject, body)
        return generation

    async def score(self, body: Score) -> Scores:
        """Log-probabilities."""
        scores: Scores = await self.request("model.score", body)
        return scores

    async def vectors(self, model: str | None, texts: list[str]) -> tuple[str, list[tuple[float, ...]]]:
        """The embedding model's name and a vector of each text."""
        reply: Embeddings = await self.request("model.embed", Embed(texts=texts, model=model))
        return reply.model, [struct.unpack(f"<{reply.dimension}f", vector) for vector in reply.vectors]


def names(known: Iterable[str]) -> str:
    """Names for an error message, sorted and bounded."""
    ordered = sorted(known)
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return (", ".join(ordered[:_SHOWN]) or "none") + more


def added(first: Usage | None, second: Usage) -> Usage:
    """What two answers cost together."""
    if first is None:
        return second
    return Usage(
        prompt_tokens=first.prompt_tokens + second.prompt_tokens,
        completion_tokens=first.completion_tokens + second.completion_tokens,
        cached_tokens=first.cached_tokens + second.cached_tokens,
    )
