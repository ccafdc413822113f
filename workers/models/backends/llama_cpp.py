"""llama.cpp behind llama-cpp-python's low-level API: one thread that answers several sequences in common batches.

    asyncio thread                        decode thread
    generate() -- _Job into the inbox --> admit to a free sequence (first come, first served)
    closing it -- job.is_cancelled -----> looked at before every decode
               <- events of one step ---- decode one batch: a token of every running answer, then pieces of prompts;
                  (one wake-up)           sample each finished row with its own sampler chain

The package's own `Llama` class answers one caller at a time and copies logits through numpy; this loop does neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from schemas.errors import BusError, Internal
from workers.models.backends.backend import Chunk, LoadFailed, LoadOptions, Options, Outcome
from workers.models.backends.llama_library import load_library, log_router, reason_of_failure, tokenize
from workers.models.stopping import TextAssembler

# Tokens of one decode. Prompts are read in pieces of this size, ...
BATCH_TOKENS: Final = 512
# ... or of this size while other answers are streaming, so that a long prompt does not make them stutter.
SHARED_PROMPT_TOKENS: Final = 128
# Tokens the repeat penalty looks back on; llama.cpp's own default.
PENALTY_TOKENS: Final = 64
# A model is small below this many parameters, if its caches together also hold at most this many tokens. On a CPU a
# small model is bound by the number of operations, not by arithmetic, which turns three choices around (measured with a
# 2.7 M model, one decode of one / of four sequences): one thread 0.46 / 0.70 ms, two 0.47 / 1.6 ms; flash attention
# 0.44 / 1.4 ms, without 0.46 / 0.70 ms; a cache of its own for every sequence 0.46 / 1.6 ms, a common one 0.46 / 0.70.
SMALL_MODEL_PARAMETERS: Final = 50_000_000
SMALL_MODEL_CACHE_TOKENS: Final = 16_384
# Without flash attention the scores of a whole piece of prompt are held at once; this bounds them.
SMALL_MODEL_PIECE_TOKENS: Final = 128

_Event = Chunk | Outcome | BusError


class _Job:
    """One generation on its way through the decode thread. The consumer side lives in the asyncio thread."""

    def __init__(self, prompt: list[int], options: Options) -> None:
        self.prompt = prompt
        self.options = options
        self.submitted_at = time.perf_counter()
        self.is_cancelled = False
        self.events: deque[_Event] = deque()
        self.woken = asyncio.Event()
        # Below: the decode thread's own.
        self.assembler = TextAssembler(options.stop)
        self.token_ids: list[int] = []
        self.text_parts: list[str] = []
        self.unsent: list[int] = []
        self.read = 0
        self.next_token = -1
        self.started_at = 0.0
        self.first_at = 0.0

    def put(self, event: _Event) -> None:
        self.events.append(event)
        self.woken.set()

    async def next(self) -> _Event:
        """The next event; chunks that piled up come as one."""
        while not self.events:
            self.woken.clear()
            await self.woken.wait()
        event = self.events.popleft()
        while isinstance(event, Chunk) and self.events and isinstance(self.events[0], Chunk):
            more = self.events.popleft()
            assert isinstance(more, Chunk)
            event = Chunk(event.text + more.text, event.token_ids + more.token_ids)
        return event


class _Slot:
    """One of the context's sequences: the tokens its cache holds, and the job that uses it."""

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        self.cached: list[int] = []
        self.job: _Job | None = None
        self.chain: Any = None


class LlamaCpp:
    """A model loaded by llama.cpp. Create it with `load`; use it from one asyncio loop."""

    def __init__(self, library: Any, model: Any, context: Any, options: LoadOptions, *, is_cache_common: bool) -> None:
        self._lib = library
        self._model = model
        self._context = context
        self._vocab = library.llama_model_get_vocab(model)
        self._memory = library.llama_get_memory(context)
        self._batch = library.llama_batch_init(BATCH_TOKENS, 0, 1)
        self._pieces: dict[int, bytes] = {}
        self.context_tokens = options.context_tokens
        # In a cache common to all sequences, every cell left behind is one more that everybody's attention looks at.
        self._is_cache_common = is_cache_common
        self.bos = int(library.llama_vocab_bos(self._vocab))
        self.bos_text = self._token_text(self.bos)
        self.eos_text = self._token_text(int(library.llama_vocab_eos(self._vocab)))
        self._adds_bos = bool(library.llama_vocab_get_add_bos(self._vocab))
        self._vocab_tokens = int(library.llama_vocab_n_tokens(self._vocab))
        self._slots = [_Slot(sequence) for sequence in range(options.parallel)]
        self._waiting: deque[_Job] = deque()
        self._inbox: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
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
            room = 64
            buffer = ctypes.create_string_buffer(room)
            length = self._lib.llama_token_to_piece(self._vocab, token, buffer, room, 0, False)
            if length < 0:
                buffer = ctypes.create_string_buffer(-length)
                length = self._lib.llama_token_to_piece(self._vocab, token, buffer, -length, 0, False)
            piece = self._pieces[token] = buffer.raw[: max(length, 0)]
        return piece

    # The asyncio side -------------------------------------------------------------------------------------------

    async def generate(self, prompt: Sequence[int], options: Options) -> AsyncGenerator[Chunk | Outcome, None]:
        """Chunks as they come, then one Outcome. Closing the generator stops it before its next token.

        `prompt` must be shorter than `context_tokens` and not empty. Raises Internal when llama.cpp fails.
        """
        job = _Job(list(prompt), options)
        self._inbox.put(job)
        try:
            while True:
                event = await job.next()
                if isinstance(event, BusError):
                    raise event
                yield event
                if isinstance(event, Outcome):
                    return
        finally:
            job.is_cancelled = True

    def close(self) -> None:
        """Stop every generation, end the thread and free the model. Waits for the decode that is running."""
        self._inbox.put(None)
        self._thread.join()
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)

    def _deliver(self, events: list[tuple[_Job, _Event]]) -> None:
        for job, event in events:
            job.put(event)

    # The decode thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._take_inbox():
            self._drop_cancelled()
            self._admit()
            rows = self._fill_batch()
            if not rows:
                continue
            events = self._step(rows)
            if events:
                # The loop is gone only when the process is ending.
                with contextlib.suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._deliver, events)

    def _take_inbox(self) -> bool:
        """Take new jobs, waiting for one if there is nothing to do; False when the model is being closed."""
        is_idle = not self._waiting and all(slot.job is None for slot in self._slots)
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._inbox.get(block=is_idle)
                if job is None:
                    for slot in self._slots:
                        self._release(slot)
                    return False
                self._waiting.append(job)
                is_idle = False
        return True

    def _drop_cancelled(self) -> None:
        for slot in self._slots:
            if slot.job is not None and slot.job.is_cancelled:
                self._release(slot)

    def _admit(self) -> None:
        while self._waiting:
            free = [slot for slot in self._slots if slot.job is None]
            if not free:
                return
            job = self._waiting.popleft()
            if job.is_cancelled:
                continue
            slot = max(free, key=lambda slot: _common_prefix(slot.cached, job.prompt))
            self._start(slot, job)

    def _start(self, slot: _Slot, job: _Job) -> None:
        """Give `slot` to `job`, keeping what its cache shares with the prompt (a chat's earlier turns)."""
        keep = min(_common_prefix(slot.cached, job.prompt), len(job.prompt) - 1)
        lib, memory = self._lib, self._memory
        # A recurrent cache cannot be cut, a sliding-window one has forgotten its beginning: both start afresh.
        if not lib.llama_memory_seq_rm(memory, slot.sequence, keep, -1) or (
            keep and lib.llama_memory_seq_pos_min(memory, slot.sequence) != 0
        ):
            self._forget(slot)
            keep = 0
        slot.cached = job.prompt[:keep]
        slot.job, slot.chain = job, self._sampler(job)
        job.read, job.started_at = keep, time.perf_counter()

    def _release(self, slot: _Slot) -> None:
        """End the use of `slot`. Its cache stays for a follow-up where it costs the others nothing."""
        if slot.chain is not None:
            self._lib.llama_sampler_free(slot.chain)
        slot.job = slot.chain = None
        if self._is_cache_common:
            self._forget(slot)

    def _forget(self, slot: _Slot) -> None:
        self._lib.llama_memory_seq_rm(self._memory, slot.sequence, -1, -1)
        slot.cached = []

    def _sampler(self, job: _Job) -> Any:
        """A sampler chain in llama.cpp's order: penalties, top-k, top-p, min-p, temperature, draw."""
        lib, options = self._lib, job.options
        parameters = lib.llama_sampler_chain_default_params()
        parameters.no_perf = True
        chain = lib.llama_sampler_chain_init(parameters)
        links = []
        if options.repeat_penalty != 1.0:
            links.append(
                lib.llama_sampler_init_penalties(self._vocab_tokens, PENALTY_TOKENS, options.repeat_penalty, 0.0, 0.0)
            )
        if options.temperature == 0:
            links.append(lib.llama_sampler_init_greedy())
        else:
            links += [
                lib.llama_sampler_init_top_k(options.top_k),
                lib.llama_sampler_init_top_p(options.top_p, 1),
                lib.llama_sampler_init_min_p(options.min_p, 1),
                lib.llama_sampler_init_temp(options.temperature),
                lib.llama_sampler_init_dist(options.seed),
            ]
        for link in links:
            lib.llama_sampler_chain_add(chain, link)
        if options.repeat_penalty != 1.0:
            for token in job.prompt[-PENALTY_TOKENS:]:
                lib.llama_sampler_accept(chain, token)
        return chain

    def _fill_batch(self) -> list[tuple[_Slot, int]]:
        """Fill the batch; return the slots whose next token can be sampled, each with its row."""
        batch, rows, at = self._batch, [], 0
        busy = [slot for slot in self._slots if slot.job is not None]
        running = [slot for slot in busy if slot.job and slot.job.read == len(slot.job.prompt)]
        for slot in running:
            assert slot.job is not None
            self._put(at, slot.job.next_token, len(slot.cached), slot.sequence, True)
            slot.cached.append(slot.job.next_token)
            rows.append((slot, at))
            at += 1
        room = at + min(BATCH_TOKENS - at, SHARED_PROMPT_TOKENS if running else BATCH_TOKENS)
        reading = [slot for slot in busy if slot not in running]
        for slot in sorted(reading, key=_admitted_at):
            job = slot.job
            assert job is not None
            piece = job.prompt[job.read : job.read + room - at]
            job.read += len(piece)
            is_read = job.read == len(job.prompt)
            for offset, token in enumerate(piece):
                self._put(at + offset, token, len(slot.cached) + offset, slot.sequence, False)
            slot.cached += piece
            at += len(piece)
            if piece and is_read:
                batch.logits[at - 1] = 1
                rows.append((slot, at - 1))
        batch.n_tokens = at
        # A batch with prompt pieces only has no row to sample yet; it still has to be decoded.
        return rows if rows or not at else [(slot, -1) for slot in reading[:1]]

    def _put(self, at: int, token: int, position: int, sequence: int, wants_logits: bool) -> None:
        batch = self._batch
        batch.token[at] = token
        batch.pos[at] = position
        batch.n_seq_id[at] = 1
        batch.seq_id[at][0] = sequence
        batch.logits[at] = wants_logits

    def _step(self, rows: list[tuple[_Slot, int]]) -> list[tuple[_Job, _Event]]:
        """Decode the batch and sample; return what the jobs have to be told."""
        status = self._lib.llama_decode(self._context, self._batch)
        if status != 0:
            return self._fail(status)
        now = time.perf_counter()
        events: list[tuple[_Job, _Event]] = []
        for slot, row in rows:
            job = slot.job
            if row < 0 or job is None or job.is_cancelled:
                continue
            token = int(self._lib.llama_sampler_sample(slot.chain, self._context, row))
            job.first_at = job.first_at or now
            event = self._advance(slot, job, token, now)
            if event is not None:
                events += [(job, part) for part in event]
        return events

    def _advance(self, slot: _Slot, job: _Job, token: int, now: float) -> list[_Event] | None:
        """Take one sampled token into the job's answer; return its new chunk and, at the end, its outcome."""
        is_end = bool(self._lib.llama_vocab_is_eog(self._vocab, token))
        text = ""
        if not is_end:
            job.token_ids.append(token)
            job.unsent.append(token)
            job.next_token = token
            text = job.assembler.feed(self._piece(token))
        is_full = len(job.token_ids) >= min(job.options.max_tokens, self.context_tokens - len(job.prompt))
        is_over = is_end or job.assembler.is_stopped or is_full
        if is_over:
            text += job.assembler.finish()
        parts: list[_Event] = []
        if text or (is_over and job.unsent):
            job.text_parts.append(text)
            parts.append(Chunk(text, job.unsent))
            job.unsent = []
        if is_over:
            reason: Literal["stop", "length"] = "stop" if is_end or job.assembler.is_stopped else "length"
            parts.append(_outcome(job, reason, now))
            self._release(slot)
        return parts or None

    def _fail(self, status: int) -> list[tuple[_Job, _Event]]:
        """End every job of a batch that could not be decoded; their caches are in an unknown state and are cleared."""
        events: list[tuple[_Job, _Event]] = []
        for slot in self._slots:
            if slot.job is None:
                continue
            events.append((slot.job, Internal(f"llama.cpp could not decode a batch (status {status})", status=status)))
            self._forget(slot)
            self._release(slot)
        return events


def load(path: Path, options: LoadOptions) -> LlamaCpp:
    """Load the GGUF file at `path`. Raises LoadFailed with llama.cpp's reason, LibraryMissing without the library.

    Blocks; call it in the thread of the loop that will use the model.
    """
    library = load_library()
    router = log_router(library)
    router.errors = []
    parameters = library.llama_model_default_params()
    parameters.n_gpu_layers = options.gpu_layers
    model = library.llama_model_load_from_file(os.fsencode(path), parameters)
    if not model:
        raise LoadFailed(reason_of_failure(router.errors, "llama.cpp gave no reason"))
    if library.llama_model_has_encoder(model) or not library.llama_model_has_decoder(model):
        library.llama_model_free(model)
        raise LoadFailed("this kind of model does not continue text (it has an encoder or no decoder)")
    parameters = _context_parameters(library, options, int(library.llama_model_n_params(model)))
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


def _context_parameters(library: Any, options: LoadOptions, model_parameters: int) -> Any:
    cache_tokens = options.context_tokens * options.parallel
    is_small = model_parameters < SMALL_MODEL_PARAMETERS and cache_tokens <= SMALL_MODEL_CACHE_TOKENS
    parameters = library.llama_context_default_params()
    parameters.n_ctx = cache_tokens
    parameters.n_batch = parameters.n_ubatch = BATCH_TOKENS
    parameters.n_seq_max = options.parallel
    # Only the last row of a sequence is ever sampled; without this the output buffer has a row per batch token.
    parameters.n_outputs_max = options.parallel
    threads = options.threads or (1 if is_small else len(os.sched_getaffinity(0)))
    parameters.n_threads = parameters.n_threads_batch = threads
    parameters.kv_unified = is_small
    parameters.no_perf = True
    if is_small:
        parameters.n_ubatch = SMALL_MODEL_PIECE_TOKENS
        parameters.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return parameters


def _common_prefix(left: list[int], right: list[int]) -> int:
    size = min(len(left), len(right))
    if left[:size] == right[:size]:
        return size
    return next(at for at in range(size) if left[at] != right[at])


def _admitted_at(slot: _Slot) -> float:
    return slot.job.started_at if slot.job is not None else 0.0


def _outcome(job: _Job, reason: Literal["stop", "length"], now: float) -> Outcome:
    return Outcome(
        text="".join(job.text_parts),
        token_ids=job.token_ids,
        finish_reason=reason,
        prompt_tokens=len(job.prompt),
        prompt_s=job.first_at - job.started_at,
        generate_s=now - job.first_at,
        first_token_s=job.first_at - job.submitted_at,
    )
