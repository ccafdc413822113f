"""Runs a prepared encoder: texts to vectors through the tokenizer and onnxruntime. Encoder process only."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from workers.memory.vectors.bert import Floats

# Padded tokens run at once. Half as many are as fast, twice as many take 4 % more time: they pad more.
BATCH_TOKENS: Final = 512

# Tokens up to which a query is faster on one core (16 tokens: 2.0 ms on one, 2.7 on two; 64: equal; 128: 14.5 and 9.3).
# The service looks its words up on another core meanwhile.
_ONE_CORE_TOKENS: Final = 64

# Characters of a text that are looked at: 256 tokens of the longest words are no more. Bounds the work on huge texts.
_MAX_CHARACTERS: Final = 32_768

# Tokens of a text where the model's files do not say.
_DEFAULT_TOKENS: Final = 256


class _Limits(msgspec.Struct, frozen=True):
    """What counts of `sentence_bert_config.json`."""

    max_seq_length: int = _DEFAULT_TOKENS


class OnnxModel:
    """A loaded encoder. Its methods may be called from several threads at once.

    model: a graph of `graph.build_graph`, as a file or as its bytes. folder: where its tokenizer is. threads: 0 for all
    cores. workers: calls of `encode` that keep as many cores busy.

    A long query runs on all the cores at once, a short one on one. Other texts run on one core a batch, several batches
    at once: that takes 7 % less of the processor, and no core waits for another that is taken away.
    """

    def __init__(self, model: Path | bytes, folder: Path, *, threads: int) -> None:
        self.workers = threads or _cores()
        self._model = model
        self._session = _session(model, 1)
        self._all_cores: onnxruntime.InferenceSession | None = self._session if self.workers == 1 else None
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(_max_tokens(folder))
        self._tokenizer.no_padding()
        self.dimension: int = self._session.get_outputs()[0].shape[1]

    def encode(self, texts: Sequence[str]) -> Floats:
        """Vectors of length 1, (texts, dimension), in the order of the texts.

        The scale of each 8-bit multiplication is taken from the whole batch, so a text's vector depends a little on its
        neighbours (cosine 0.99).
        """
        return self._encode(self._tokens(texts), BATCH_TOKENS)

    def encode_queries(self, texts: Sequence[str]) -> Floats:
        """As `encode`, one text after the other: the same text always has the same vector. One thread asks."""
        return self._encode(self._tokens(texts), 1)

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch_fast([text[:_MAX_CHARACTERS] for text in texts])
        return [encoding.ids for encoding in encodings]

    def _encode(self, tokens: Sequence[Sequence[int]], most_tokens: int) -> Floats:
        vectors = np.empty((len(tokens), self.dimension), np.float32)
        for rows in _batches([len(ids) for ids in tokens], most_tokens):
            is_long_query = most_tokens == 1 and len(tokens[rows[0]]) > _ONE_CORE_TOKENS
            session = self._all_cores_session() if is_long_query else self._session
            vectors[rows] = _run(session, [tokens[row] for row in rows])
        return vectors

    def _all_cores_session(self) -> onnxruntime.InferenceSession:
        # Opened with the first long query: 0.1 s, and 33 MB that others never need.
        if self._all_cores is None:
            self._all_cores = _session(self._model, self.workers)
        return self._all_cores


def _session(model: Path | bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin while they wait take the cores from the service that waits for them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Plans of memory are kept per shape, and every batch has another one: 20 MB for nothing.
    options.enable_mem_pattern = False
    # Errors only.
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _run(session: onnxruntime.InferenceSession, tokens: Sequence[Sequence[int]]) -> Floats:
    lengths = np.array([len(ids) for ids in tokens], np.int32)
    padded: NDArray[np.int64] = np.zeros((len(tokens), int(lengths.max())), np.int64)
    for row, ids in enumerate(tokens):
        padded[row, : len(ids)] = ids
    vectors: Floats = session.run(None, {"ids": padded, "lengths": lengths})[0]
    return vectors


def _batches(lengths: Sequence[int], most_tokens: int) -> Iterator[list[int]]:
    """Rows of similar length, the shortest first, each batch of `most_tokens` once padded, or of one row."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[row] * (len(batch) + 1) > most_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _max_tokens(folder: Path) -> int:
    limits = folder / "sentence_bert_config.json"
    return (
        msgspec.json.decode(limits.read_bytes(), type=_Limits).max_seq_length if limits.is_file() else _DEFAULT_TOKENS
    )
