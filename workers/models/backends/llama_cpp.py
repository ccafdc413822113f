"""llama.cpp behind llama-cpp-python's low-level API: one thread that answers several sequences in common batches.

    asyncio thread                        decode thread
    generate() -- Job into the inbox --> admit to a free sequence (first come, first served)
    closing it -- job.is_cancelled -----> looked at before every decode
    embed(), adapters -- Order --------> carried out between two decodes
               <- events of one step ---- decode one batch: a token of every running answer, then pieces of prompts;
                  (one wake-up)           sample each finished row with its own sampler chain

The package's own `Llama` class answers one caller at a time and copies logits through numpy; this loop does neither.

Adapters: a decode computes with one LoRA adapter or none, so only sequences with the same one share a batch; those with
different ones take turns. What one adapter read is of no use to another: a sequence's cache carries its adapter's
content hash, and is thrown away when the next answer in it has another (logits are off by 12 otherwise).

Follow-ups: a sequence keeps its cache when its answer ends, and the next prompt reads on from what they have in common.
Where the place is needed, or leaving it would slow the others down, a conversation's state is copied out instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from schemas.errors import BusError, Internal, Unsupported
from workers.models.backends.backend import AdapterFile, Chunk, LoadFailed, LoadOptions, Options, Outcome
from workers.models.backends.grammars import grammar_of
from workers.models.backends.llama_adapters import Adapters
from workers.models.backends.llama_embedding import Embedder, is_embedder
from workers.models.backends.llama_jobs import Event, Job, Order, Row, Slot, is_urgent_event, outcome_of, take_logprob
from workers.models.backends.llama_library import load_library, log_router, reason_of_failure, tokenize
from workers.models.backends.llama_likelihood import Likelihood, likelihood_of
from workers.models.backends.llama_sampling import Candidates, Sampler
from workers.models.backends.llama_sequences import Sequences
from workers.models.tool_calls import SHOWN_CONTROL_TEXTS

log = logging.getLogger("olympus.models.llama")

T = TypeVar("T")

# Tokens of one decode. Prompts are read in pieces of this size, ...
BATCH_TOKENS: Final = 512
# ... or of this size while other answers are streaming, so that a long prompt does not make them stutter.
SHARED_PROMPT_TOKENS: Final = 128
# A model is small below this many parameters, if its caches together also hold at most this many tokens. On a CPU a
# small model is bound by the number of operations, not by arithmetic, which turns three choices around (measured with a
# 2.7 M model, one decode of one / of four sequences): one thread 0.46 / 0.70 ms, two 0.47 / 1.6 ms; flash attention
# 0.44 / 1.4 ms, without 0.46 / 0.70 ms; a cache of its own for every sequence 0.46 / 1.6 ms, a common one 0.46 / 0.70.
SMALL_MODEL_PARAMETERS: Final = 50_000_000
SMALL_MODEL_CACHE_TOKENS: Final = 16_384
# Without flash attention the scores of a whole piece of prompt are held at once; this bounds them.
SMALL_MODEL_PIECE_TOKENS: Final = 128
# Steps for one adapter before another's answers get theirs. After a change llama.cpp builds its graph anew: three adapters
# in turn, demo model, four callers: 960 tokens/s with 1 step each, 2,110 with 8, 2,420 with 32.
STEPS_PER_ADAPTER: Final = 8
# Rows of a decode whose logits are wanted when texts are scored, within these bytes of logits.
SCORED_ROWS: Final = 128
SCORED_BYTES: Final = 16 * 1024 * 1024
# Tokens that come within this many seconds are told together: to wake the loop and send a message for each takes 0.1 ms,
# which a model of 0.5 ms a token feels: 0.945 of its speed in process, with this 0.96 to 0.98. Never the first of an answer.
TELL_S: Final = 0.004


class LlamaCpp:
    """A model loaded by llama.cpp. Create it with `load`; use it from one asyncio loop."""

    def __init__(self, library: Any, model: Any, context: Any, options: LoadOptions, *, is_cache_common: bool) -> None:
        self._lib = library
        self._model = model
        # None for a model that only makes vectors.
        self._context = context
        self._vocab = library.llama_model_get_vocab(model)
        self._batch = library.llama_batch_init(BATCH_TOKENS, 0, 1)
        self._pieces: dict[int, bytes] = {}
        self.context_tokens = options.context_tokens
        can = {"generate", "grammar", "json_schema", "adapters", "embed"} if context else {"embed"}
        self.capabilities = frozenset(can)
        # In a cache common to all sequences, every cell left behind is one more that everybody's attention looks at.
        self._is_cache_common = is_cache_common
        self.bos = int(library.llama_vocab_bos(self._vocab))
        self.bos_text = self._token_text(self.bos)
        self.eos_text = self._token_text(int(library.llama_vocab_eos(self._vocab)))
        self._adds_bos = bool(library.llama_vocab_get_add_bos(self._vocab))
        self._vocab_tokens = int(library.llama_vocab_n_tokens(self._vocab))
        self._scored_rows = _scored_rows(self._vocab_tokens, options.parallel)
        self._slots = [Slot(sequence) for sequence in range(options.parallel if context else 0)]
        if context:
            self._sequences = Sequences(library, model, context, self._slots, is_common=is_cache_common)
        self._adapters = Adapters(library, model, context)
        self._embedder = Embedder(library, model, options)
        self._embedding = asyncio.Lock()
        self._steps_left = 0
        self._untold: list[tuple[Job, Event]] = []
        self._told_at = 0.0
        self._ends: dict[int, bool] = {}
        self._waiting: deque[Job] = deque()
        self._inbox: queue.SimpleQueue[Job | Order | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    # Tokens -----------------------------------------------------------------------------------------------------

    def tokenize(self, text: str, *, with_special: bool) -> list[int]:
        """Token ids of `text`, nothing added. With `with_special`, the text of a control token becomes that token."""
        return tokenize(self._lib, self._vocab, text, with_special=with_special)

    def begin(self, tokens: list[int]) -> list[int]:
        """`tokens` with the begin-of-text token in front, if the model wants one and it is not there yet."""
        if self._adds_bos and tokens[:1] != [self.bos]:
            return [self.bos, *tokens]
        return tokens

    def control_texts(self, text: str) -> set[str]:
        """Texts within `text` that would become control tokens."""
        tokens = set(self.tokenize(text, with_special=True))
        return {self._token_text(token) for token in tokens if self._lib.llama_vocab_is_control(self._vocab, token)}

    def _token_text(self, token: int) -> str:
        if token < 0:
            return ""
        text: bytes = self._lib.llama_vocab_get_text(self._vocab, token) or b""
        return text.decode("utf-8", "replace")

    def _piece(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            is_shown = self._token_text(token) in SHOWN_CONTROL_TEXTS
            room = 64
            buffer = ctypes.create_string_buffer(room)
            length = self._lib.llama_token_to_piece(self._vocab, token, buffer, room, 0, is_shown)
            if length < 0:
                room = -length
                buffer = ctypes.create_string_buffer(room)
                length = self._lib.llama_token_to_piece(self._vocab, token, buffer, room, 0, is_shown)
            piece = self._pieces[token] = buffer.raw[: max(length, 0)]
        return piece

    def _shown_text(self, token: int) -> str:
        return self._piece(token).decode("utf-8", "replace")

    @functools.cached_property
    def _likelihood(self) -> Likelihood | None:
        return likelihood_of(self._lib, self._vocab_tokens)

    @functools.cached_property
    def _candidates(self) -> Candidates:
        return Candidates(self._lib, self._vocab_tokens)

    # The asyncio side -------------------------------------------------------------------------------------------

    async def generate(self, prompt: Sequence[int], options: Options) -> AsyncGenerator[Chunk | Outcome, None]:
        """Chunks as they come, then one Outcome. Closing the generator stops it before its next token.

        `prompt` must be shorter than `context_tokens` and not empty. Raises Unprocessable for a grammar that is wrong
        or cannot go on, Unsupported for an adapter that is not attached, Internal when llama.cpp fails.
        """
        job = Job(list(prompt), options, grammar=await grammar_of(options))
        self._inbox.put(job)
        try:
            while True:
                event = await job.next()
                if isinstance(event, BusError):
                    raise event
                assert not isinstance(event, list)
                yield event
                if isinstance(event, Outcome):
                    return
        finally:
            job.is_cancelled = True

    async def score(self, prompt: Sequence[int], tokens: Sequence[int], adapter: str | None) -> list[float]:
        """Natural log-probability of each of `tokens` after `prompt`, which must not be empty, and those before it."""
        job = Job([*prompt, *tokens], _scoring(adapter), first_scored=len(prompt))
        self._inbox.put(job)
        try:
            event = await job.next()
            if isinstance(event, BusError):
                raise event
            assert isinstance(event, list)
            return event
        finally:
            job.is_cancelled = True

    async def embed(self, prompts: Sequence[Sequence[int]]) -> list[bytes]:
        """A vector of length 1 for each, float32 little-endian. Raises Unsupported, Internal when llama.cpp fails."""
        vectors: list[bytes] = []
        for group in self._embedder.groups(prompts):
            # One group at a time, so that answers and other callers come between; a group's pieces belong together.
            async with self._embedding:
                steps = self._embedder.steps(group)
                for step in steps:
                    vectors += await self._order(step)
        return vectors

    async def set_adapters(self, adapters: Sequence[AdapterFile]) -> None:
        """Have exactly these attached; one that is left out goes when the last answer with it has ended.

        Raises LoadFailed for one that does not fit, and then nothing has changed; Unsupported.
        """
        if not self._context:
            if adapters:
                raise Unsupported("this model only makes vectors; adapters are for models that continue text")
            return
        await self._order(lambda: self._attach(adapters))

    def forget(self, conversation_id: str) -> bool:
        """Drop what is kept for a conversation; False when there was nothing."""
        if not self._context:
            return False
        was_kept = self._sequences.kept.drop(conversation_id)
        # Taken from the slots before the decode thread has cleared them: from now on nobody finds it there.
        for slot in self._slots:
            if slot.conversation_id == conversation_id:
                was_kept = True
        self._inbox.put(Order(lambda: self._forget_conversation(conversation_id), self._loop.create_future()))
        return was_kept

    def close(self) -> None:
        """Stop every generation, end the thread and free the model. Waits for the decode that is running."""
        self._inbox.put(None)
        self._thread.join()
        if "_candidates" in self.__dict__:
            self._candidates.close()
        self._adapters.close()
        self._embedder.close()
        self._lib.llama_batch_free(self._batch)
        if self._context:
            self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)

    async def _order(self, work: Callable[[], T]) -> T:
        order = Order(work, self._loop.create_future())
        self._inbox.put(order)
        result: T = await order.future
        return result

    def _deliver(self, events: list[tuple[Job, Event]]) -> None:
        for job, event in events:
            job.put(event)

    # The decode thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._take_inbox():
            try:
                self._go_on()
            # A thread that ended would leave every caller waiting for ever.
            except Exception as error:
                log.exception("decoding failed", extra={"action": "model.decode.failed"})
                self._report(self._fail(Internal(f"the answer could not be computed: {error}")), is_urgent=True)

    def _go_on(self) -> None:
        """Begin what can begin, and decode one batch."""
        self._drop_cancelled()
        if self._adapters.has_left_out:
            self._drop_adapters()
        self._report(self._admit())
        rows = self._fill_batch()
        if self._batch.n_tokens > len(rows):
            # A piece of a prompt takes longer than a token: what there is to tell does not wait for it.
            self._report([], is_urgent=True)
        if self._batch.n_tokens:
            self._report(self._step(rows))

    def _report(self, events: list[tuple[Job, Event]], *, is_urgent: bool = False) -> None:
        """Tell the jobs what they have to be told; tokens that follow each other quickly together, see TELL_S."""
        untold = self._untold
        untold += events
        if not untold:
            return
        now = time.perf_counter()
        if is_urgent or now - self._told_at >= TELL_S or any(is_urgent_event(job, event) for job, event in events):
            self._told_at, self._untold = now, []
            self._tell(self._deliver, untold)

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        # The loop is gone only when the process is ending.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)

    def _take_inbox(self) -> bool:
        """Take new jobs, waiting for one if there is nothing to do; False when the model is being closed."""
        is_idle = not self._waiting and all(slot.job is None for slot in self._slots)
        if not is_idle and self._inbox.empty():
            return True
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._inbox.get(block=is_idle)
                if job is None:
                    for slot in self._slots:
                        self._release(slot)
                    return False
                if isinstance(job, Order):
                    self._carry_out(job)
                else:
                    self._waiting.append(job)
                    is_idle = False
        return True

    def _carry_out(self, order: Order) -> None:
        try:
            result = order.work()
        except Exception as error:  # noqa: BLE001 - it belongs to the one who asked, not to this thread
            self._tell(_settle, order.future, None, error)
        else:
            self._tell(_settle, order.future, result, None)

    def _drop_cancelled(self) -> None:
        for slot in self._slots:
            if slot.job is not None and slot.job.is_cancelled:
                self._release(slot)

    # Sequences ------------------------------------------------------------------------------------------------------

    def _admit(self) -> list[tuple[Job, Event]]:
        """Start waiting jobs in free sequences; what some of them have to be told at once."""
        events: list[tuple[Job, Event]] = []
        while self._waiting:
            free = [slot for slot in self._slots if slot.job is None]
            if not free:
                break
            job = self._waiting.popleft()
            if job.is_cancelled:
                continue
            try:
                self._start(max(free, key=lambda slot: self._sequences.fitness(slot, job)), job)
            except BusError as error:
                events.append((job, error))
        return events

    def _start(self, slot: Slot, job: Job) -> None:
        """Give `slot` to `job`, with as much of the prompt as is known from before.

        Raises Unsupported for an adapter that is not attached, Unprocessable for a grammar llama.cpp does not take.
        """
        self._adapters.check(job.options.adapter)
        sampler = None
        if job.first_scored is None:
            sampler = Sampler(
                self._lib,
                self._vocab,
                job.options,
                job.grammar,
                job.prompt,
                lambda: self._candidates,
                self._shown_text,
            )
        keep = self._sequences.prepare(slot, job)
        slot.cached = job.prompt[:keep]
        slot.adapter, slot.conversation_id = job.options.adapter, job.conversation_id
        slot.job, slot.sampler = job, sampler
        job.read = job.reused = keep
        job.started_at = time.perf_counter()

    def _release(self, slot: Slot) -> None:
        """End the use of `slot`. Its cache stays for a follow-up where it costs the others nothing."""
        if slot.sampler is not None:
            slot.sampler.free()
        slot.job = slot.sampler = None
        slot.used_at = time.perf_counter()
        if self._is_cache_common:
            self._sequences.put_aside(slot)
            self._sequences.forget(slot)

    def _forget_conversation(self, conversation_id: str) -> None:
        for job in [*self._waiting, *(slot.job for slot in self._slots if slot.job is not None)]:
            if job.conversation_id == conversation_id:
                job.conversation_id = None
        for slot in self._slots:
            if slot.conversation_id == conversation_id:
                slot.conversation_id = None
                if slot.job is None:
                    self._sequences.forget(slot)
        self._sequences.kept.drop(conversation_id)

    def _attach(self, adapters: Sequence[AdapterFile]) -> None:
        self._adapters.attach(adapters)
        self._drop_adapters()

    def _drop_adapters(self) -> None:
        """Free the adapters that were left out and that no answer uses any more, with all they have computed."""
        used = {job.options.adapter for job in self._waiting}
        used |= {slot.job.options.adapter for slot in self._slots if slot.job is not None}
        for adapter in self._adapters.free_unused(used):
            self._sequences.kept.drop_adapter(adapter)
            for slot in self._slots:
                if slot.adapter == adapter:
                    self._sequences.forget(slot)

    # One decode -----------------------------------------------------------------------------------------------------

    def _turn(self) -> list[Slot]:
        """The busy slots of the adapter whose turn it is, which is set."""
        busy = [slot for slot in self._slots if slot.job is not None]
        if self._adapters.is_empty:
            return busy
        wanted = {slot.adapter for slot in busy} or {self._adapters.current}
        current = self._adapters.current
        self._steps_left -= 1
        if current not in wanted or (self._steps_left <= 0 and len(wanted) > 1):
            # The one after the current in a fixed order, so that each comes round.
            order = sorted(wanted, key=lambda one: one or "")
            current = next((one for one in order if (one or "") > (current or "")), order[0])
            self._adapters.use(current)
            self._steps_left = STEPS_PER_ADAPTER
        return [slot for slot in busy if slot.adapter == current]

    def _fill_batch(self) -> list[Row]:
        """Fill the batch; return the rows whose logits are wanted."""
        batch, at = self._batch, 0
        rows: list[Row] = []
        busy = self._turn()
        running: list[Slot] = []
        reading: list[Slot] = []
        for slot in busy:
            job = slot.job
            assert job is not None
            if not job.is_read:
                reading.append(slot)
                continue
            running.append(slot)
            self._put(at, job.next_token, len(slot.cached), slot.sequence, True)
            slot.cached.append(job.next_token)
            rows.append(Row(slot, at))
            at += 1
        room = at + min(BATCH_TOKENS - at, SHARED_PROMPT_TOKENS if running else BATCH_TOKENS)
        for slot in sorted(reading, key=_admitted_at):
            at = self._put_piece(slot, at, room, rows)
        batch.n_tokens = at
        return rows

    def _put_piece(self, slot: Slot, at: int, room: int, rows: list[Row]) -> int:
        """Put the next piece of a slot's prompt into the batch, from row `at` to `room`; returns the row after it."""
        job = slot.job
        assert job is not None
        end = min(job.read + room - at, job.length)
        first = job.first_scored
        if first is not None:
            # Every row from the one that judges the first scored token gives logits, of which there is limited room.
            left = self._scored_rows - len(rows) - len(self._slots)
            end = min(end, max(first - 1, job.read) + max(left, 1))
        for position in range(job.read, end):
            judged = first is not None and position >= first - 1
            if judged:
                rows.append(Row(slot, at, job.prompt[position + 1]))
            self._put(at, job.prompt[position], position, slot.sequence, judged)
            at += 1
        if end > job.read:
            slot.cached += job.prompt[job.read : end]
            job.read = end
            if first is None and job.is_read:
                self._batch.logits[at - 1] = 1
                rows.append(Row(slot, at - 1))
        return at

    def _put(self, at: int, token: int, position: int, sequence: int, wants_logits: bool) -> None:
        batch = self._batch
        batch.token[at] = token
        batch.pos[at] = position
        batch.n_seq_id[at] = 1
        batch.seq_id[at][0] = sequence
        batch.logits[at] = wants_logits

    def _step(self, rows: list[Row]) -> list[tuple[Job, Event]]:
        """Decode the batch and sample; return what the jobs have to be told."""
        status = self._lib.llama_decode(self._context, self._batch)
        if status != 0:
            return self._fail(Internal(f"llama.cpp could not decode a batch (status {status})", status=status))
        now = time.perf_counter()
        events: list[tuple[Job, Event]] = []
        for row in rows:
            job = row.slot.job
            if job is None or job.is_cancelled:
                continue
            if row.target >= 0:
                self._judge(row, job, events)
                continue
            job.first_at = job.first_at or now
            try:
                self._advance(row, job, now, events)
            except BusError as error:
                events.append((job, error))
                self._release(row.slot)
        return events

    def _judge(self, row: Row, job: Job, events: list[tuple[Job, Event]]) -> None:
        """Take one log-probability of a text that is scored; the last one ends the job."""
        logits = self._candidates.logits(self._context, row.row)
        total, _ = self._candidates.likeliest(logits, 0)
        job.scores.append(logits[row.target] - total)
        if job.first_scored is not None and len(job.scores) == len(job.prompt) - job.first_scored:
            events.append((job, job.scores))
            self._release(row.slot)

    def _advance(self, row: Row, job: Job, now: float, events: list[tuple[Job, Event]]) -> None:
        """Draw the next token into the job's answer; tell its new chunk and, at the end, its outcome."""
        slot = row.slot
        assert slot.sampler is not None
        picked = slot.sampler.next(self._context, row.row)
        token = picked.token
        is_end = self._ends.get(token)
        if is_end is None:
            is_end = self._ends[token] = bool(self._lib.llama_vocab_is_eog(self._vocab, token))
        text = ""
        if not is_end:
            job.token_ids.append(token)
            job.unsent.append(token)
            if picked.choice is not None:
                job.choices.append(picked.choice)
                job.unsent_choices.append(picked.choice)
                take_logprob(job, picked.choice.logprob)
            elif self._likelihood is not None:
                take_logprob(job, self._likelihood.logprob(self._context, row.row, token))
            job.next_token = token
            text = job.assembler.feed(self._piece(token))
        is_full = len(job.token_ids) >= min(job.options.max_tokens, self.context_tokens - len(job.prompt))
        is_over = is_end or job.assembler.is_stopped or is_full
        if is_over:
            text += job.assembler.finish()
        if text or (is_over and job.unsent):
            job.text_parts.append(text)
            events.append((job, Chunk(text, job.unsent, job.unsent_choices)))
            job.unsent, job.unsent_choices = [], []
        if is_over:
            reason: Literal["stop", "length"] = "stop" if is_end or job.assembler.is_stopped else "length"
            events.append((job, outcome_of(job, reason, now)))
            self._release(slot)

    def _fail(self, error: BusError) -> list[tuple[Job, Event]]:
        """End every job of a batch that could not be decoded; their caches are in an unknown state and are cleared."""
        events: list[tuple[Job, Event]] = []
        for slot in self._slots:
            if slot.job is None:
                continue
            events.append((slot.job, error))
            self._sequences.forget(slot)
            self._release(slot)
        return events


def load(path: Path, options: LoadOptions) -> LlamaCpp:
    """Load the GGUF file at `path`. Raises LoadFailed with llama.cpp's reason, LibraryMissing without the library,
    Unsupported for a GPU where this build has none.

    Blocks; call it in the thread of the loop that will use the model.
    """
    library = load_library()
    router = log_router(library)
    router.errors = []
    model = library.llama_model_load_from_file(os.fsencode(path), _model_parameters(library, options))
    if not model:
        raise LoadFailed(reason_of_failure(router.errors, "llama.cpp gave no reason"))
    if library.llama_model_has_encoder(model) or not library.llama_model_has_decoder(model):
        library.llama_model_free(model)
        raise LoadFailed("this kind of model does not continue text (it has an encoder or no decoder)")
    if is_embedder(library, model):
        return LlamaCpp(library, model, None, options, is_cache_common=False)
    parameters = _context_parameters(library, options, model)
    context = library.llama_init_from_model(model, parameters)
    if not context:
        library.llama_model_free(model)
        raise LoadFailed(
            reason_of_failure(router.errors, "llama.cpp could not make a context")
            + f" (context of {options.context_tokens} tokens for each of {options.parallel} sequences)"
        )
    return LlamaCpp(library, model, context, options, is_cache_common=bool(parameters.kv_unified))


def prepare() -> None:
    """Import and initialise llama.cpp ahead of a load. Raises LibraryMissing."""
    library = load_library()
    log_router(library)
    library.llama_backend_init()


def _model_parameters(library: Any, options: LoadOptions) -> Any:
    parameters = library.llama_model_default_params()
    parameters.n_gpu_layers = options.gpu_layers
    if options.device == "cpu":
        parameters.n_gpu_layers = 0
        return parameters
    if not library.llama_supports_gpu_offload():
        raise Unsupported(
            f"device {options.device} is asked for, this build of llama-cpp-python computes on the CPU alone",
            device=options.device,
        )
    # One device, so that a lease and a lock of it are what they say.
    parameters.split_mode = library.LLAMA_SPLIT_MODE_NONE
    parameters.main_gpu = int(options.device.removeprefix("gpu"))
    return parameters


def _context_parameters(library: Any, options: LoadOptions, model: Any) -> Any:
    cache_tokens = options.context_tokens * options.parallel
    is_small = (
        options.device == "cpu"
        and int(library.llama_model_n_params(model)) < SMALL_MODEL_PARAMETERS
        and cache_tokens <= SMALL_MODEL_CACHE_TOKENS
    )
    parameters = library.llama_context_default_params()
    parameters.n_ctx = cache_tokens
    parameters.n_batch = parameters.n_ubatch = BATCH_TOKENS
    parameters.n_seq_max = options.parallel
    # Of a prompt only the last row is ever sampled; without this the output buffer has a row per batch token.
    vocab_tokens = int(library.llama_vocab_n_tokens(library.llama_model_get_vocab(model)))
    parameters.n_outputs_max = _scored_rows(vocab_tokens, options.parallel)
    threads = options.threads or (1 if is_small else len(os.sched_getaffinity(0)))
    parameters.n_threads = parameters.n_threads_batch = threads
    parameters.kv_unified = is_small
    parameters.no_perf = True
    parameters.offload_kqv = parameters.op_offload = options.device != "cpu"
    if is_small:
        parameters.n_ubatch = SMALL_MODEL_PIECE_TOKENS
        parameters.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return parameters


def _scored_rows(vocab_tokens: int, parallel: int) -> int:
    """Rows of one decode that may have logits: twice those that answers need, more where a row is small."""
    return max(2 * parallel, min(SCORED_ROWS, SCORED_BYTES // (4 * vocab_tokens)))


def _scoring(adapter: str | None) -> Options:
    return Options(
        max_tokens=0, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0, seed=0, adapter=adapter
    )


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _admitted_at(slot: Slot) -> float:
    return slot.job.started_at if slot.job is not None else 0.0
