"""Vectors of texts with llama.cpp, in a context of their own that is made when the first text comes.

A model made for vectors pools as its file says; any other one gives the mean of its last hidden states. A long text is
read in pieces and its vector put together from theirs, except where every token looks at every other one: then it must
be read at once.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from schemas.errors import Internal, Unprocessable, Unsupported
from workers.models.backends.backend import LoadOptions
from workers.models.backends.unit_vector import unit_vector

# Texts of one decode.
_TEXTS: Final = 16
# Tokens of one decode, where a text may be read in pieces.
_PIECE_TOKENS: Final = 512

# enum llama_pooling_type in llama.h.
_NONE: Final = 0
_MEAN: Final = 1
_RANK: Final = 4


def is_embedder(library: Any, model: Any) -> bool:
    """Whether the model is made for vectors and nothing else: its file names a pooling."""
    return _pooling(library, model) is not None


def _pooling(library: Any, model: Any) -> int | None:
    family = _entry(library, model, "general.architecture")
    value = _entry(library, model, f"{family}.pooling_type")
    return int(value) if value.isdecimal() else None


def _entry(library: Any, model: Any, key: str) -> str:
    buffer = ctypes.create_string_buffer(64)
    found = library.llama_model_meta_val_str(model, key.encode(), buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace") if found >= 0 else ""


class Embedder:
    """Makes vectors; what it does is done by the decode thread, in steps."""

    def __init__(self, library: Any, model: Any, options: LoadOptions) -> None:
        self._lib = library
        self._model = model
        self._options = options
        self._context: Any = None
        self._batch: Any = None
        self._vocab = library.llama_model_get_vocab(model)
        self._dimension = int(library.llama_model_n_embd(model))
        pooling = _pooling(library, model)
        self._pooling = _MEAN if pooling is None or pooling == _NONE else pooling
        # A model with a pooling of its own may look both ways, which needs a text in one piece.
        window = options.context_tokens
        self._piece_tokens = min(window, _PIECE_TOKENS) if pooling is None else window

    def groups(self, prompts: Sequence[Sequence[int]]) -> Iterator[list[list[int]]]:
        """Texts that are read together, in their order. Raises Unsupported for a model that only ranks."""
        if self._pooling == _RANK:
            raise Unsupported("this model ranks texts, it makes no vectors of them", capability="embed")
        group: list[list[int]] = []
        room = self._piece_tokens
        for prompt in prompts:
            tokens = self._ended(prompt)
            if group and (len(tokens) > room or len(group) == _TEXTS):
                yield group
                group, room = [], self._piece_tokens
            group.append(tokens)
            room -= len(tokens)
        if group:
            yield group

    def steps(self, group: list[list[int]]) -> Iterator[Callable[[], list[bytes]]]:
        """What has to be done for a group, one after another; the last step gives its vectors, the others none."""
        if len(group) > 1 or len(group[0]) <= self._piece_tokens:
            yield lambda: self._together(group)
            return
        tokens, sums = group[0], array("d", bytes(8 * self._dimension))
        size = self._piece_tokens
        starts = range(0, len(tokens), size)
        for start in starts:
            yield lambda start=start: self._piece(tokens, start, sums)  # type: ignore[misc]

    def close(self) -> None:
        """Free the context."""
        if self._context is not None:
            self._lib.llama_batch_free(self._batch)
            self._lib.llama_free(self._context)
            self._context = None

    def _ended(self, prompt: Sequence[int]) -> list[int]:
        """`prompt` with the end token that some models want behind it."""
        lib = self._lib
        tokens = list(prompt)
        if not tokens:
            raise Unprocessable("a text has no token at all", field="texts")
        if lib.llama_vocab_get_add_sep(self._vocab):
            end = int(lib.llama_vocab_sep(self._vocab))
        elif lib.llama_vocab_get_add_eos(self._vocab):
            end = int(lib.llama_vocab_eos(self._vocab))
        else:
            return tokens
        return tokens if end < 0 or tokens[-1] == end else [*tokens, end]

    def _together(self, group: list[list[int]]) -> list[bytes]:
        self._begin()
        self._decode([(number, tokens, 0) for number, tokens in enumerate(group)])
        return [unit_vector(self._vector(number)) for number in range(len(group))]

    def _piece(self, tokens: list[int], start: int, sums: array[float]) -> list[bytes]:
        """Read one piece of a long text; its mean counts as much as it has tokens."""
        if start == 0:
            self._begin()
        piece = tokens[start : start + self._piece_tokens]
        self._decode([(0, piece, start)])
        for at, value in enumerate(self._vector(0)):
            sums[at] += value * len(piece)
        return [unit_vector(sums)] if start + len(piece) == len(tokens) else []

    def _begin(self) -> None:
        """Have a context in which nothing has been read; the group before may have been given up half-way."""
        if self._context is None:
            self._open()
        memory = self._lib.llama_get_memory(self._context)
        if memory:
            self._lib.llama_memory_clear(memory, False)

    def _open(self) -> None:
        lib, options = self._lib, self._options
        parameters = lib.llama_context_default_params()
        parameters.n_ctx = max(options.context_tokens, self._piece_tokens)
        parameters.n_batch = parameters.n_ubatch = self._piece_tokens
        parameters.n_seq_max = _TEXTS
        parameters.kv_unified = True
        parameters.embeddings = True
        parameters.pooling_type = self._pooling
        parameters.no_perf = True
        parameters.offload_kqv = parameters.op_offload = options.device != "cpu"
        if options.threads:
            parameters.n_threads = parameters.n_threads_batch = options.threads
        context = lib.llama_init_from_model(self._model, parameters)
        if not context:
            raise Internal("llama.cpp could not make a context for vectors")
        self._context = context
        self._batch = lib.llama_batch_init(self._piece_tokens, 0, 1)

    def _decode(self, parts: list[tuple[int, list[int], int]]) -> None:
        batch, at = self._batch, 0
        for sequence, tokens, start in parts:
            for position, token in enumerate(tokens, start):
                batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, position, 1
                batch.seq_id[at][0] = sequence
                batch.logits[at] = 1
                at += 1
        batch.n_tokens = at
        # Without a cache there is nothing to decode into; llama.cpp calls that encoding.
        is_cached = bool(self._lib.llama_get_memory(self._context))
        compute = self._lib.llama_decode if is_cached else self._lib.llama_encode
        status = compute(self._context, batch)
        if status != 0:
            raise Internal(f"llama.cpp could not compute vectors (status {status})", status=status)

    def _vector(self, sequence: int) -> list[float]:
        found = self._lib.llama_get_embeddings_seq(self._context, sequence)
        if not found:
            raise Internal("llama.cpp made no vector")
        return list(found[: self._dimension])
