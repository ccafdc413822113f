"""What passes between the loop and the decode thread of llama.cpp: answers and scores under way, and where they are.

Knows nothing of llama.cpp: which sequence holds which tokens is told here, what is in them is not.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from schemas.bodies.model import TokenChoice
from schemas.errors import BusError
from workers.models.backends.backend import Chunk, Options, Outcome
from workers.models.backends.llama_sampling import Sampler
from workers.models.stopping import TextAssembler

Event = Chunk | Outcome | BusError | list[float]


class Job:
    """One answer or score on its way through the decode thread. The consumer side lives in the asyncio thread.

    first_scored: where the tokens begin whose log-probabilities are wanted; None for an answer.
    """

    def __init__(
        self, prompt: list[int], options: Options, *, grammar: str | None = None, first_scored: int | None = None
    ) -> None:
        self.prompt = prompt
        self.options = options
        self.grammar = grammar
        self.first_scored = first_scored
        self.submitted_at = time.perf_counter()
        self.is_cancelled = False
        self.conversation_id = options.conversation_id
        self.events: deque[Event] = deque()
        self.woken = asyncio.Event()
        # Below: the decode thread's own.
        self.assembler = TextAssembler(options.stop)
        self.token_ids: list[int] = []
        self.text_parts: list[str] = []
        self.unsent: list[int] = []
        self.choices: list[TokenChoice] = []
        self.unsent_choices: list[TokenChoice] = []
        self.scores: list[float] = []
        self.logprob_sum = self.logprob_min = 0.0
        self.judged = 0
        # Of a score the last token is judged, not read.
        self.length = len(prompt) - (first_scored is not None)
        self.read = 0
        self.reused = 0
        self.next_token = -1
        self.started_at = 0.0
        self.first_at = 0.0

    @property
    def is_read(self) -> bool:
        return self.read == self.length

    def put(self, event: Event) -> None:
        self.events.append(event)
        self.woken.set()

    async def next(self) -> Event:
        """The next event; chunks that piled up come as one."""
        while not self.events:
            self.woken.clear()
            await self.woken.wait()
        event = self.events.popleft()
        while isinstance(event, Chunk) and self.events and isinstance(self.events[0], Chunk):
            more = self.events.popleft()
            assert isinstance(more, Chunk)
            event = Chunk(event.text + more.text, event.token_ids + more.token_ids, event.logprobs + more.logprobs)
        return event


class Order(msgspec.Struct, frozen=True):
    """Something to be done between two decodes."""

    work: Callable[[], Any]
    future: asyncio.Future[Any]


class Slot:
    """One of the context's sequences: what its cache holds, and the job that uses it."""

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        self.cached: list[int] = []
        self.adapter: str | None = None
        self.conversation_id: str | None = None
        self.used_at = 0.0
        self.job: Job | None = None
        self.sampler: Sampler | None = None


class Row(msgspec.Struct, frozen=True):
    """A row of a decode whose logits are wanted; target: the token to be judged by them, -1 to draw the next one."""

    slot: Slot
    row: int
    target: int = -1


def take_logprob(job: Job, logprob: float) -> None:
    """Count one token's natural log-probability towards the answer's mean and lowest."""
    job.judged += 1
    job.logprob_sum += logprob
    job.logprob_min = min(job.logprob_min, logprob)


def is_urgent_event(job: Job, event: Event) -> bool:
    """The first of an answer, and its end."""
    return not isinstance(event, Chunk) or len(job.token_ids) == len(event.token_ids)


def common_prefix(left: list[int], right: list[int]) -> int:
    size = min(len(left), len(right))
    if left[:size] == right[:size]:
        return size
    return next(at for at in range(size) if left[at] != right[at])


def outcome_of(job: Job, reason: Literal["stop", "length"], now: float) -> Outcome:
    return Outcome(
        text="".join(job.text_parts),
        token_ids=job.token_ids,
        finish_reason=reason,
        prompt_tokens=len(job.prompt),
        prompt_s=job.first_at - job.started_at,
        generate_s=now - job.first_at,
        first_token_s=job.first_at - job.submitted_at,
        cached_tokens=job.reused,
        logprobs=tuple(job.choices),
        mean_logprob=job.logprob_sum / job.judged if job.judged else None,
        min_logprob=job.logprob_min if job.judged else None,
    )
