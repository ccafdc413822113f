"""A transformers model as a TokenModel: one thread that answers several sequences in common batches.

    asyncio thread                        decode thread
    generate() -- _Job into the inbox --> admit, first come first served, up to `parallel` at once
    closing it -- job.is_cancelled -----> looked at between steps
               <- events of one step ---- read a piece of one prompt; then one token of every running answer, in batches
                  (one wake-up)           of those with the same adapter (see `torch_cache`)

Everything that touches the model runs in that thread, between two steps. It does not know files; see `transformers`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import inspect
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final, Literal, TypeVar

import torch
from torch import Tensor

from schemas.bodies.model import TokenChoice
from schemas.errors import BusError, Internal, Unprocessable, Unsupported, WorkerLost
from workers.models.backends import torch_cache
from workers.models.backends.backend import AdapterFile, Chunk, LoadFailed, LoadOptions, Options, Outcome
from workers.models.backends.torch_adapters import TorchAdapters
from workers.models.backends.torch_sampling import Sampler, report
from workers.models.backends.torch_tokens import TorchTokens
from workers.models.backends.unit_vector import unit_vector
from workers.models.stopping import TextAssembler

log = logging.getLogger("olympus.models.torch")

# Tokens of a prompt read in one pass; answers that are streaming wait for it.
PIECE_TOKENS: Final = 512
# Texts whose vectors are made in one pass; other work gets its turn between passes.
EMBED_TEXTS: Final = 16
# Below this many parameters one thread is faster than several: they spend their time waiting for each other. Measured
# with a 2.7 M model, a step of one / of four sequences: one thread 3.1 / 5.3 ms, two 4.4 / 7.5 ms.
SMALL_MODEL_PARAMETERS: Final = 50_000_000

_T = TypeVar("_T")
_Event = Chunk | Outcome | BusError


class _Job:
    """One generation on its way through the decode thread. `events` belongs to the asyncio thread."""

    def __init__(self, prompt: list[int], options: Options, text: Any) -> None:
        self.prompt = prompt
        self.options = options
        self.submitted_at = time.perf_counter()
        self.is_cancelled = False
        self.events: asyncio.Queue[_Event] = asyncio.Queue()
        # Below: the decode thread's own.
        self.text = text
        self.assembler = TextAssembler(options.stop)
        self.sampler = Sampler(options, prompt)
        self.cache: Any = None
        # Tokens of `tokens` that its cache holds, and of those the ones it did not have to read.
        self.held = 0
        self.cached = 0
        self.token_ids: list[int] = []
        self.text_parts: list[str] = []
        self.unsent: list[int] = []
        self.unsent_logprobs: list[TokenChoice] = []
        self.logprobs: list[TokenChoice] = []
        self.logprob_sum = self.logprob_min = 0.0
        self.started_at = 0.0
        self.first_at = 0.0

    @property
    def tokens(self) -> list[int]:
        """Prompt and answer."""
        return self.prompt + self.token_ids


class _Batch:
    """Running answers that take their steps together."""

    def __init__(self, job: _Job) -> None:
        self.adapter = job.options.adapter
        self.jobs = [job]
        self.cache = job.cache
        self.can_join = torch_cache.can_join(job.cache)

    def add(self, job: _Job) -> None:
        self.cache = torch_cache.join(self.cache, job.cache)
        self.jobs.append(job)

    def keep(self, jobs: list[_Job]) -> None:
        """Go on with these only."""
        if len(jobs) == len(self.jobs) or not jobs:
            self.jobs = jobs
            return
        rows = [self.jobs.index(job) for job in jobs]
        torch_cache.select(self.cache, rows, max(job.held for job in jobs))
        self.jobs = jobs


class _Kept:
    """What is kept of a conversation: the tokens that its cache holds."""

    def __init__(self, adapter: str | None, tokens: list[int], cache: Any) -> None:
        self.adapter = adapter
        self.tokens = tokens
        self.cache = cache


class TorchModel(TorchTokens):
    """A loaded model. Create it in the loop that will use it; `model` is in its evaluation mode, on `device`."""

    def __init__(self, model: Any, tokenizer: Any, options: LoadOptions, device: str) -> None:
        super().__init__(tokenizer)
        self.context_tokens = options.context_tokens
        has_peft = importlib.util.find_spec("peft") is not None
        self.capabilities = frozenset({"generate", "embed"} | ({"adapters"} if has_peft else set()))
        self._model = model
        self._device = device
        self._parallel = options.parallel
        self._adapters = TorchAdapters(model, device)
        self._takes_rows = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._ends = _end_tokens(model, self.eos)
        self._waiting: deque[_Job] = deque()
        self._reading: list[_Job] = []
        self._batches: list[_Batch] = []
        self._kept: dict[str, _Kept] = {}
        self._inbox: queue.SimpleQueue[_Job | Callable[[], None] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        small = sum(parameter.numel() for parameter in model.parameters()) < SMALL_MODEL_PARAMETERS
        if options.threads or small:
            torch.set_num_threads(options.threads or 1)
        self._try_once()
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    # The asyncio side -------------------------------------------------------------------------------------------

    async def generate(self, prompt: Sequence[int], options: Options) -> AsyncGenerator[Chunk | Outcome, None]:
        """Chunks as they come, then one Outcome. Closing the generator stops it before its next token.

        `prompt` must be shorter than `context_tokens` and not empty. Raises Unsupported for an adapter that is not
        attached, Unprocessable when the memory is not enough for the prompt, Internal when a computation fails.
        """
        if options.grammar is not None or options.json_schema is not None:
            raise Unsupported("transformers cannot be held to a grammar or a JSON Schema; llama.cpp and vLLM can")
        self._adapters.check(options.adapter)
        job = _Job(list(prompt), options, self.stream())
        self._inbox.put(job)
        try:
            while True:
                event = await job.events.get()
                if isinstance(event, BusError):
                    raise event
                yield event
                if isinstance(event, Outcome):
                    return
        finally:
            job.is_cancelled = True

    async def embed(self, prompts: Sequence[Sequence[int]]) -> list[bytes]:
        """The mean of the last hidden states of each prompt, at length 1, float32 little-endian."""
        vectors: list[bytes] = []
        for start in range(0, len(prompts), EMBED_TEXTS):
            some = prompts[start : start + EMBED_TEXTS]
            vectors += await self._in_thread(lambda some=some: self._embed(some))  # type: ignore[misc]
        return vectors

    async def score(self, prompt: Sequence[int], tokens: Sequence[int], adapter: str | None) -> list[float]:
        """Natural log-probability of each of `tokens` after `prompt` and those before it. `prompt` must not be empty."""
        return await self._in_thread(lambda: self._score(list(prompt), list(tokens), adapter))

    async def set_adapters(self, adapters: Sequence[AdapterFile]) -> None:
        """Have exactly these attached. Raises LoadFailed for one that does not fit, and then nothing has changed.

        Answers that run with one that goes away end with it; new ones cannot name it any more.
        """
        await self._in_thread(lambda: self._set_adapters(list(adapters)))

    def forget(self, conversation_id: str) -> bool:
        """Drop what is kept for a conversation; False when there was nothing."""
        return self._kept.pop(conversation_id, None) is not None

    def close(self) -> None:
        """Stop every generation, end the thread and free the model. Waits for the step that is running."""
        self._inbox.put(None)
        self._thread.join()
        self._model = None
        _free_memory(self._device)

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        future: Future[_T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            # Whatever it raises belongs to the one who waits for it; this thread has others to serve.
            except Exception as error:  # noqa: BLE001
                self._adapters.forget_active()
                is_ours = isinstance(error, (BusError, LoadFailed))
                future.set_exception(error if is_ours else self._error(error, "the work", Unprocessable))

        self._inbox.put(run)
        return await asyncio.wrap_future(future)

    def _deliver(self, events: list[tuple[_Job, _Event]]) -> None:
        for job, event in events:
            job.events.put_nowait(event)

    # The decode thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with torch.inference_mode():
            while self._take_inbox():
                self._drop_cancelled()
                self._admit()
                events = self._read_piece()
                for batch in list(self._batches):
                    events += self._step(batch)
                self._batches = [batch for batch in self._batches if batch.jobs]
                self._tell(events)
        self._end()

    def _tell(self, events: list[tuple[_Job, _Event]]) -> None:
        if events:
            # The loop is gone only when the process is ending.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._deliver, events)

    def _end(self) -> None:
        """The model is being closed: whoever waits for it is told so."""
        left = [*self._waiting, *self._reading, *self._running]
        self._waiting.clear()
        self._reading, self._batches, self._kept = [], [], {}
        self._tell([(job, WorkerLost("the model is being unloaded")) for job in left])

    @property
    def _running(self) -> list[_Job]:
        return [job for batch in self._batches for job in batch.jobs]

    def _take_inbox(self) -> bool:
        """Take new jobs and do other work, waiting for some if there is nothing to do; False when all is to end."""
        is_idle = not (self._waiting or self._reading or self._batches)
        with contextlib.suppress(queue.Empty):
            while True:
                entry = self._inbox.get(block=is_idle)
                if entry is None:
                    return False
                if not isinstance(entry, _Job):
                    entry()
                    continue
                self._waiting.append(entry)
                is_idle = False
        return True

    def _drop_cancelled(self) -> None:
        self._reading = [job for job in self._reading if not job.is_cancelled]
        for batch in self._batches:
            self._leave(batch, [job for job in batch.jobs if job.is_cancelled])
        self._batches = [batch for batch in self._batches if batch.jobs]

    def _admit(self) -> None:
        while self._waiting and len(self._reading) + len(self._running) < self._parallel:
            job = self._waiting.popleft()
            if job.is_cancelled:
                continue
            job.started_at = time.perf_counter()
            self._resume(job)
            self._reading.append(job)
            # What is kept counts as a sequence, so that the memory has an upper bound; the oldest goes first.
            over = len(self._reading) + len(self._running) + len(self._kept) - self._parallel
            for name in list(self._kept)[: max(over, 0)]:
                self._kept.pop(name, None)

    def _resume(self, job: _Job) -> None:
        """Take over what is kept of the job's conversation, as far as the prompt begins with it."""
        kept = self._kept.pop(job.options.conversation_id or "", None)
        if kept is None or kept.adapter != job.options.adapter:
            return
        # The last token is read in any case: its logits are what the answer begins with.
        size = min(_common_prefix(kept.tokens, job.prompt), len(job.prompt) - 1)
        if size:
            torch_cache.cut(kept.cache, size)
            job.cache, job.held, job.cached = kept.cache, size, size

    def _read_piece(self) -> list[tuple[_Job, _Event]]:
        """Read the next piece of the oldest prompt; one that is read whole gives its first token and joins a batch."""
        if not self._reading:
            return []
        job = self._reading[0]
        piece = job.prompt[job.held : job.held + PIECE_TOKENS]
        try:
            logits, job.cache = self._forward(piece, job.cache, job.options.adapter)
            job.held += len(piece)
            if job.held < len(job.prompt):
                return []
            job.first_at = time.perf_counter()
            events = self._advance(job, logits[0, -1].float(), job.first_at)
        # Whatever torch raises ends this one answer; the caches of the others were not touched.
        except Exception as error:  # noqa: BLE001
            self._reading.remove(job)
            job.cache = None
            return [(job, self._error(error, f"a prompt of {len(job.prompt)} tokens", Unprocessable))]
        self._reading.remove(job)
        if events and isinstance(events[-1][1], Outcome):
            self._keep(job, job.cache)
        else:
            self._join(job)
        return events

    def _join(self, job: _Job) -> None:
        if torch_cache.can_join(job.cache):
            for batch in self._batches:
                if batch.can_join and batch.adapter == job.options.adapter:
                    batch.add(job)
                    job.cache = None
                    return
        self._batches.append(_Batch(job))
        job.cache = None

    def _step(self, batch: _Batch) -> list[tuple[_Job, _Event]]:
        """One token of every answer of the batch."""
        jobs = batch.jobs
        sizes = [job.held + 1 for job in jobs]
        width = torch_cache.tokens_of(batch.cache) + 1 if batch.can_join else sizes[0]
        try:
            more: dict[str, Any] = {}
            if len(jobs) > 1:
                more["attention_mask"] = torch_cache.mask_of(sizes, width, self._device)
                more["position_ids"] = torch.tensor([[size - 1] for size in sizes], device=self._device)
            tokens = torch.tensor([[job.token_ids[-1]] for job in jobs], device=self._device)
            self._adapters.activate(batch.adapter)
            told = self._model(input_ids=tokens, past_key_values=batch.cache, use_cache=True, **more)
            batch.cache = told.past_key_values
            rows = told.logits[:, -1].float()
            now = time.perf_counter()
            events: list[tuple[_Job, _Event]] = []
            for job, row in zip(jobs, rows, strict=True):
                job.held += 1
                events += self._advance(job, row, now)
        # Whatever torch raises leaves the batch's cache in an unknown state, so all of its answers end.
        except Exception as error:  # noqa: BLE001
            batch.jobs, batch.cache = [], None
            failed = self._error(error, f"a step of {len(jobs)} answers", Internal)
            return [(job, failed) for job in jobs]
        self._leave(batch, [job for job, event in events if isinstance(event, Outcome)])
        return events

    def _leave(self, batch: _Batch, leaving: list[_Job]) -> None:
        for job in leaving:
            if batch.can_join and job.options.conversation_id is not None:
                row = batch.jobs.index(job)
                self._keep(job, torch_cache.row_of(batch.cache, row, job.held))
        if leaving:
            batch.keep([job for job in batch.jobs if job not in leaving])
            self._drop_adapters()

    def _keep(self, job: _Job, cache: Any) -> None:
        name = job.options.conversation_id
        if name is not None and torch_cache.can_join(cache) and self._adapters.has(job.options.adapter):
            self._kept.pop(name, None)
            self._kept[name] = _Kept(job.options.adapter, job.tokens[: job.held], cache)

    def _advance(self, job: _Job, logits: Tensor, now: float) -> list[tuple[_Job, _Event]]:
        """Take the next token of an answer; return its new chunk and, at the end, its outcome."""
        options = job.options
        token = job.sampler.choose(logits.clone())
        is_end = token in self._ends
        text = ""
        if not is_end:
            job.token_ids.append(token)
            job.unsent.append(token)
            logprob = float(logits[token] - logits.logsumexp(0))
            job.logprob_sum += logprob
            job.logprob_min = min(job.logprob_min, logprob)
            if options.logprobs is not None:
                job.unsent_logprobs.append(report(logits, token, options.logprobs, self))
            text = job.assembler.feed(job.text.feed(token).encode())
        is_full = len(job.token_ids) >= min(options.max_tokens, self.context_tokens - len(job.prompt))
        is_over = is_end or job.assembler.is_stopped or is_full
        if is_over and not job.assembler.is_stopped:
            text += job.assembler.feed(job.text.finish().encode()) + job.assembler.finish()
        events: list[tuple[_Job, _Event]] = []
        if text or (is_over and job.unsent):
            job.text_parts.append(text)
            job.logprobs += job.unsent_logprobs
            events.append((job, Chunk(text, job.unsent, job.unsent_logprobs)))
            job.unsent, job.unsent_logprobs = [], []
        if is_over:
            reason: Literal["stop", "length"] = "stop" if is_end or job.assembler.is_stopped else "length"
            events.append((job, _outcome(job, reason, now)))
        return events

    # The model --------------------------------------------------------------------------------------------------

    def _try_once(self) -> None:
        """Read one token: a model without the cache that all of this rests on is found out now."""
        with torch.inference_mode():
            _, cache = self._forward([next(iter(self._ends), 0)], None, None)
        if cache is None or not hasattr(cache, "get_seq_length"):
            raise ValueError("this kind of model keeps no cache that transformers' generation could use")

    def _forward(self, tokens: Sequence[int], cache: Any, adapter: str | None, rows: int = 1) -> tuple[Tensor, Any]:
        """Logits of the last `rows` tokens (1, rows or more, vocabulary), and the cache with `tokens` in it."""
        self._adapters.activate(adapter)
        more = {"logits_to_keep": rows} if self._takes_rows else {}
        ids = torch.tensor([list(tokens)], device=self._device)
        told = self._model(input_ids=ids, past_key_values=cache, use_cache=True, **more)
        return told.logits, told.past_key_values

    def _embed(self, prompts: Sequence[Sequence[int]]) -> list[bytes]:
        self._adapters.activate(None)
        width = max(len(prompt) for prompt in prompts)
        # Padded on the right: no token ever looks there.
        ids = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts], device=self._device)
        sizes = torch.tensor([len(prompt) for prompt in prompts], device=self._device)
        mask = (torch.arange(width, device=self._device)[None, :] < sizes[:, None]).long()
        states = self._model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        means = (states.float() * mask[:, :, None]).sum(1) / sizes[:, None]
        return [unit_vector(mean) for mean in means.tolist()]

    def _score(self, prompt: list[int], tokens: list[int], adapter: str | None) -> list[float]:
        self._adapters.check(adapter)
        whole = prompt + tokens
        cache, scores = None, []
        # The last token is judged, not read.
        for start in range(0, len(whole) - 1, PIECE_TOKENS):
            end = min(start + PIECE_TOKENS, len(whole) - 1)
            rows = min(end - start, max(end - (len(prompt) - 1), 0))
            logits, cache = self._forward(whole[start:end], cache, adapter, max(rows, 1))
            if rows:
                judged = torch.tensor(whole[end - rows + 1 : end + 1], device=self._device)
                logprobs = logits[0, -rows:].float().log_softmax(-1)
                scores += logprobs.gather(1, judged[:, None])[:, 0].tolist()
        return scores

    def _set_adapters(self, adapters: list[AdapterFile]) -> None:
        self._adapters.attach(adapters)
        gone = [name for name, kept in list(self._kept.items()) if not self._adapters.has(kept.adapter)]
        for name in gone:
            self._kept.pop(name, None)
        self._drop_adapters()

    def _drop_adapters(self) -> None:
        self._adapters.drop_unused({job.options.adapter for job in [*self._waiting, *self._reading, *self._running]})

    def _error(self, error: Exception, what: str, kind: type[BusError]) -> BusError:
        """`error` as ours; what it took of the memory is given back, so that the model stays usable."""
        if isinstance(error, BusError):
            return error
        if not is_out_of_memory(error):
            log.error("torch failed", exc_info=error, extra={"action": "model.failed"})
            return Internal(f"torch failed: {' '.join(str(error).split())[:400] or type(error).__name__}")
        # Its traceback holds on to the tensors of the pass.
        error.__traceback__ = None
        _free_memory(self._device)
        return kind(f"{what} did not fit into the memory of {self._device}", device=self._device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or the system had no memory left; on a CPU torch says so in words only."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and ("can't allocate memory" in str(error) or "out of memory" in str(error))


def _free_memory(device: str) -> None:
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()


def _end_tokens(model: Any, eos: int | None) -> frozenset[int]:
    """Tokens that end an answer, by the model's and the tokenizer's configuration."""
    told = [eos, model.config.get_text_config().eos_token_id]
    if model.generation_config is not None:
        told.append(model.generation_config.eos_token_id)
    flat = [token for each in told for token in (each if isinstance(each, list) else [each])]
    return frozenset(token for token in flat if token is not None)


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    size = min(len(left), len(right))
    return next((at for at in range(size) if left[at] != right[at]), size)


def _outcome(job: _Job, reason: Literal["stop", "length"], now: float) -> Outcome:
    return Outcome(
        text="".join(job.text_parts),
        token_ids=job.token_ids,
        finish_reason=reason,
        prompt_tokens=len(job.prompt),
        prompt_s=job.first_at - job.started_at,
        generate_s=now - job.first_at,
        first_token_s=job.first_at - job.submitted_at,
        cached_tokens=job.cached,
        logprobs=tuple(job.logprobs),
        mean_logprob=job.logprob_sum / len(job.token_ids) if job.token_ids else None,
        min_logprob=job.logprob_min if job.token_ids else None,
    )
