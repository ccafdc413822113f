"""Tells the bus what was asked and answered, as `model.answered`; never keeps an answer waiting, and keeps nothing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from bus.worker import Call
from schemas.bodies.learning import AnswerEvent
from schemas.bodies.model import Chat, Generate, Generation
from schemas.errors import BusError
from schemas.purpose import is_observed
from workers.models.backends.backend import Outcome
from workers.models.relay import caller_of, reply_id_of

log = logging.getLogger("olympus.models")

Publish = Callable[[str, AnswerEvent], Awaitable[None]]

# Bytes of question and answer together that an event carries. Broker and subscribers copy each one; more would be felt.
_TEXT_BYTES_MAX: Final = 64 * 1024

# Events on their way to a broker that takes none just now. With the bound above at most 16 MiB of texts.
_UNSENT_MAX: Final = 256

# Errors that are the caller's doing, and say nothing about a model.
_OF_CALLERS: Final = frozenset(
    {
        "bad_request",
        "unauthenticated",
        "forbidden",
        "not_found",
        "conflict",
        "too_large",
        "quota_exceeded",
        "cancelled",
        "unsupported",
    }
)


class Answers:
    """Publishes what becomes of requests to generate. observe: False tells nobody anything."""

    def __init__(self, publish: Publish, *, observe: bool) -> None:
        self._publish = publish
        self._observe = observe
        self._sending: set[asyncio.Task[None]] = set()
        self._dropped = 0

    def finished(self, request: Generate | Chat, generation: Generation, outcome: Outcome, call: Call) -> None:
        """An answer is complete."""
        if self._is_told(call):
            self._start(
                lambda: event_of(
                    request,
                    call,
                    model=generation.model,
                    text=generation.text,
                    adapter=generation.adapter,
                    finish_reason=generation.finish_reason,
                    tokens=generation.usage.completion_tokens,
                    mean_logprob=outcome.mean_logprob,
                    min_logprob=outcome.min_logprob,
                )
            )

    def failed(
        self, request: Generate | Chat, model: str, error: BusError, call: Call, adapter: str | None = None
    ) -> None:
        """There is an error in the place of an answer; what the caller did wrong is not told.

        adapter: that was to answer, "" for none, None where it is not known.
        """
        if error.code not in _OF_CALLERS and self._is_told(call):
            said = f"{error.code}: {error.message}"
            self._start(lambda: event_of(request, call, model=model, adapter=adapter, error=said))

    def late(self, request: Generate | Chat, model: str, call: Call, adapter: str | None = None) -> None:
        """The request was taken back. Told where its deadline did that, and not its caller."""
        if call.deadline_at and time.time() >= call.deadline_at and self._is_told(call):
            said = "deadline_exceeded: the answer was not complete in time"
            self._start(lambda: event_of(request, call, model=model, adapter=adapter, error=said))

    async def flush(self, timeout_s: float) -> None:
        """Wait until what was told is sent, `timeout_s` at most."""
        if self._sending:
            await asyncio.wait(set(self._sending), timeout=timeout_s)

    def _is_told(self, call: Call) -> bool:
        return self._observe and is_observed(call.headers)

    def _start(self, make: Callable[[], AnswerEvent]) -> None:
        if len(self._sending) >= _UNSENT_MAX:
            self._dropped += 1
            return
        # Made in the task, which runs when the answer has been sent.
        task = asyncio.get_running_loop().create_task(self._send(make))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self, make: Callable[[], AnswerEvent]) -> None:
        try:
            await self._publish("model.answered", make())
        except BusError as error:
            self._dropped += 1
            log.warning(
                "answer not published",
                extra={"action": "model.answered.unpublished", "error": str(error), "dropped": self._dropped},
            )


def event_of(
    request: Generate | Chat,
    call: Call,
    *,
    model: str,
    text: str = "",
    adapter: str | None = None,
    finish_reason: str = "",
    tokens: int = 0,
    mean_logprob: float | None = None,
    min_logprob: float | None = None,
    error: str = "",
) -> AnswerEvent:
    """The event of one request, its texts left out where they are too long together."""
    messages = request.messages if isinstance(request, Chat) else []
    prompt = request.prompt if isinstance(request, Generate) else None
    arguments = [call.arguments for message in messages for call in message.tool_calls]
    is_cut = _bytes_of([*(message.content for message in messages), *arguments, prompt or "", text]) > _TEXT_BYTES_MAX
    return AnswerEvent(
        reply_id=reply_id_of(call),
        model=model,
        operation="chat" if prompt is None else "generate",
        at=time.time(),
        messages=[] if is_cut else messages,
        prompt=None if is_cut else prompt,
        text="" if is_cut else text,
        adapter=adapter,
        finish_reason=finish_reason,
        tokens=tokens,
        mean_logprob=mean_logprob,
        min_logprob=min_logprob,
        conversation_id=request.conversation_id,
        caller=caller_of(call),
        error=error,
        is_cut=is_cut,
        is_adapter_asked=request.adapter is not None,
    )


def _bytes_of(texts: list[str]) -> int:
    characters = sum(map(len, texts))
    if characters > _TEXT_BYTES_MAX or characters * 4 <= _TEXT_BYTES_MAX:
        return characters
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
