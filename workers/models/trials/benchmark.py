"""`model.benchmark`: throughput and latency of a model by prompt length and concurrency, as its callers see them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from bus.client import Client
from bus.worker import Call
from schemas.bodies.model import Generate, Generation, LatencyFigures, ModelLoad, ModelState, ModelTokenize, TokenCounts
from schemas.bodies.model_trials import Benchmark, Benchmarked, BenchmarkRow
from schemas.errors import BadRequest, BusError
from workers.models.trials.asking import Asking
from workers.models.trials.prompts import exact_prompts
from workers.models.trials.running import Running, all_or_first_error
from workers.models.trials.statistics import quantile

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")

_NO_LATENCY: Final = LatencyFigures(p50_s=0.0, p95_s=0.0, max_s=0.0)


class _Answer(NamedTuple):
    """One measured request. first_s: until its first token, the whole time where it made none."""

    first_s: float
    whole_s: float
    prompt_tokens: int
    completion_tokens: int


class Benchmarking:
    """Measures models on the bus, one benchmark at a time: two would measure each other."""

    def __init__(self, client: Client, running: Running) -> None:
        self._client = client
        self._running = running
        self._turn = asyncio.Lock()

    async def benchmark(self, request: Benchmark, call: Call) -> Benchmarked:
        """Measure; each row is streamed when it is done.

        Raises NotFound for a model that is not there, BadRequest when prompt and answer do not fit its window.
        """
        with self._running.entered():
            async with self._turn:
                return await self._measure(request, call)

    async def _measure(self, request: Benchmark, call: Call) -> Benchmarked:
        began_at = time.monotonic()
        asking = Asking(self._client, call, "interactive")
        await asking.show(request.model)
        state: ModelState = await asking.request("model.load", ModelLoad(model=request.model))
        _check_window(request, state.context_tokens)
        # Straight to the runner: what is measured is the model, as a caller who names it sees it.
        subject = f"model.generate@{state.instance}" if state.instance else "model.generate"
        rows = []
        for tokens in request.prompt_tokens:
            prompts = await _prompts(request, tokens, asking, seed=int.from_bytes(call.id[:8]))
            for concurrency in request.concurrency:
                row = await _row(request, tokens, concurrency, prompts, asking, subject, state.pid)
                await call.partial(row)
                rows.append(row)
        return Benchmarked(
            benchmark_id=call.id.hex(),
            model=request.model,
            rows=rows,
            load_s=state.took_s,
            took_s=time.monotonic() - began_at,
        )


def _check_window(request: Benchmark, context_tokens: int | None) -> None:
    needed = max(request.prompt_tokens) + request.output_tokens
    if context_tokens is not None and needed > context_tokens:
        raise BadRequest(
            f"prompts of {max(request.prompt_tokens)} tokens with answers of {request.output_tokens} need {needed},"
            f" the window of {request.model} has {context_tokens}",
            field="prompt_tokens",
            needed_tokens=needed,
            context_tokens=context_tokens,
        )


async def _prompts(request: Benchmark, tokens: int, asking: Asking, seed: int) -> Iterator[str]:
    """The prompts of all rows of one length, in the order of their use: no two begin alike, unless that is asked for."""
    needed = sum(request.requests + concurrency for concurrency in request.concurrency)

    async def count(texts: list[str]) -> list[int]:
        reply: TokenCounts = await asking.request("model.tokenize", ModelTokenize(model=request.model, texts=texts))
        return reply.counts

    prompts = await exact_prompts(count, tokens, 1 if request.same_prompt else needed, seed)
    return iter(prompts * needed if request.same_prompt else prompts)


async def _row(
    request: Benchmark,
    tokens: int,
    concurrency: int,
    prompts: Iterator[str],
    asking: Asking,
    subject: str,
    pid: int | None,
) -> BenchmarkRow:
    warm_up = [next(prompts) for _ in range(concurrency)]
    # Should it fail, so will what is measured, and that counts its errors.
    await _ask_all(warm_up, concurrency, request, asking, subject)
    measured = [next(prompts) for _ in range(request.requests)]
    began_at = time.monotonic()
    answers = await _ask_all(measured, concurrency, request, asking, subject)
    took_s = time.monotonic() - began_at
    return BenchmarkRow(
        prompt_tokens=tokens,
        output_tokens=request.output_tokens,
        concurrency=concurrency,
        requests=request.requests,
        errors=request.requests - len(answers),
        tokens_per_s=sum(answer.completion_tokens for answer in answers) / took_s,
        prompt_tokens_per_s=sum(answer.prompt_tokens for answer in answers) / took_s,
        first_token=_figures([answer.first_s for answer in answers]),
        whole=_figures([answer.whole_s for answer in answers]),
        memory_bytes=resident_bytes(pid),
    )


async def _ask_all(
    prompts: Sequence[str], concurrency: int, request: Benchmark, asking: Asking, subject: str
) -> list[_Answer]:
    """Ask every prompt, so many at a time; the answers that came. The deadline's end is raised, other errors are not."""
    answers: list[_Answer] = []
    waiting = iter(prompts)

    async def work() -> None:
        for prompt in waiting:
            asking.left_s()
            with contextlib.suppress(BusError):
                answers.append(await _ask(prompt, request, asking, subject))

    await all_or_first_error([work() for _ in range(concurrency)])
    return answers


async def _ask(prompt: str, request: Benchmark, asking: Asking, subject: str) -> _Answer:
    body = Generate(model=request.model, prompt=prompt, max_tokens=request.output_tokens, temperature=0.0)
    began_at = time.monotonic()
    first_at = None
    async with asking.stream(subject, body) as parts:
        async for part in parts:
            if first_at is None and part.token_ids:
                first_at = time.monotonic()
        final: Generation = parts.final
    now = time.monotonic()
    return _Answer(
        (first_at or now) - began_at, now - began_at, final.usage.prompt_tokens, final.usage.completion_tokens
    )


def _figures(times_s: Sequence[float]) -> LatencyFigures:
    if not times_s:
        return _NO_LATENCY
    ordered = sorted(times_s)
    return LatencyFigures(p50_s=quantile(ordered, 0.5), p95_s=quantile(ordered, 0.95), max_s=ordered[-1])


def resident_bytes(pid: int | None) -> int | None:
    """Main memory of a process of this machine; None where nothing says."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except OSError:
        return None
