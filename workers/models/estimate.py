"""How much memory a model will take, told from its shape before it is loaded.

    weights    tensor data; on a CPU once more for the types that llama.cpp re-arranges (_REPACKED)
    kv cache   layers x kv_heads x (head_dim_k + head_dim_v) x tokens of all sequences x bytes of an element
    overhead   buffers of one computation, logits, vocabulary, the runner's process, the driver's context on a GPU

The KV cache is attention's own memory (arXiv:1911.02150, with the shared heads of arXiv:2305.13245). What
the buffers of a computation hold was found by fitting what llama.cpp (llama-cpp-python 0.3.36) reports for eight shapes,
within 2 % for dense models: with flash attention the mask, four rows of the stream and three of the feed-forward part
for each token of a piece; without it the scores of all heads besides. Layers with a window count as whole ones under
llama.cpp, which by default keeps all their tokens (`swa_full`).

Measured against the resident memory of a process that loaded and used the model with llama.cpp on a CPU, eleven cases
of eight shapes from 3 M to 8 B parameters: the estimate was never below. From 350 MiB on it was 2.6 to 8.7 % above, for
smaller ones 13 to 41 MiB, and once 156 MiB: the scores of a window of 16,384 tokens, counted whole and used in part.
Under transformers and on GPUs it has not been measured. What comes with use is not in it: states of conversations that
are kept in main memory (up to KEPT_BYTES of the backend), and a second context once vectors are asked for; renewals of
the lease with measured sizes tell of those.

It knows no device and no lease, and opens no file.
"""

from __future__ import annotations

from typing import Final

import msgspec

from bus.sizes import MAX_BYTES
from workers.models.backends.llama_cpp import (
    BATCH_TOKENS,
    SCORED_BYTES,
    SCORED_ROWS,
    SMALL_MODEL_CACHE_TOKENS,
    SMALL_MODEL_PARAMETERS,
    SMALL_MODEL_PIECE_TOKENS,
)
from workers.models.facts import Facts

_MIB: Final = 1024 * 1024

# A runner with llama.cpp imported, its code touched and its threads running, without a model (measured: 38 MiB before
# the first load, 5 more in use).
_LLAMA_PROCESS_BYTES: Final = 48 * _MIB
# The same with torch and transformers imported (measured: 403 MiB before a model, 433 with the demo model in use), and
# PEFT for adapters.
_TORCH_PROCESS_BYTES: Final = 512 * _MIB
# What CUDA keeps on the device for a process that uses it: its context, kernels and the work space of cuBLAS. Not
# measured here; NVIDIA's own tools show 300 to 500 MiB on cards of the last years.
_GPU_CONTEXT_BYTES: Final = 512 * _MIB
# Of one token of the vocabulary: its text twice, its score, and its merges (measured: 140 bytes for SentencePiece, 410
# for BPE with two merges to a token).
_TOKEN_BYTES: Final = 450

# llama.cpp rounds the cache of a sequence up to this many tokens.
_CACHE_STEP_TOKENS: Final = 256
_F16_BYTES: Final = 2
_F32_BYTES: Final = 4

# Types that llama.cpp copies into another order for the vector units of a CPU; the copy is beside the mapped file. Seen
# with AVX-512; fewer on others. Source: ggml `src/ggml-cpu/repack.cpp`.
_REPACKED: Final = ("Q4_0", "Q4_K", "Q2_K", "IQ4_NL", "MXFP4")

# Of each part. Files may claim any shape; what they claim must still fit on the wire, all parts together.
_PART_MAX: Final = MAX_BYTES // 8

# State of a recurrent layer, one sequence, in units of the embedding width: 4 bytes x the state of 128 for each of twice
# as many channels, and 3 columns of its convolution. Mamba-2's sizes (arXiv:2405.21060), the largest in use;
# Mamba's own are an eighth.
_RECURRENT_STATE: Final = _F32_BYTES * (2 * 128 + 3 * 2)


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes by what they are for, and by where they are: `vram_bytes` on the GPU, `ram_bytes` in main memory."""

    weights_bytes: int
    kv_bytes: int
    overhead_bytes: int
    vram_bytes: int
    ram_bytes: int

    @property
    def total_bytes(self) -> int:
        """Of both memories; also the sum of the three parts."""
        return self.vram_bytes + self.ram_bytes


_NOTHING: Final = Estimate(weights_bytes=0, kv_bytes=0, overhead_bytes=0, vram_bytes=0, ram_bytes=0)


def estimate(
    facts: Facts,
    *,
    context_tokens: int,
    parallel: int,
    device: str = "cpu",
    gpu_layers: int = -1,
    backend: str = "llama.cpp",
    quantisation: str = "",
) -> Estimate:
    """What `backend` will take for this model with `parallel` windows of `context_tokens` tokens each.

    device: "cpu", or a GPU that gets `gpu_layers` layers (-1 for all). quantisation: as the catalogue shows it, for
    what a CPU copies. backend "openai": nothing, the model is elsewhere. In all it is at most bus.sizes.MAX_BYTES, also
    for a shape that makes no sense.
    """
    if backend == "openai":
        return _NOTHING
    is_llama = backend == "llama.cpp"
    share = _share_on_gpu(facts, device, gpu_layers)
    weights = min(facts.weights_bytes, _PART_MAX)
    kv = min(_kv_bytes(facts, context_tokens, parallel, is_llama) + _state_bytes(facts, parallel), _PART_MAX)
    buffers = min(_buffer_bytes(facts, context_tokens, parallel, is_llama, device), _PART_MAX)
    vocabulary = min(facts.vocabulary * _TOKEN_BYTES, _PART_MAX)
    process = _LLAMA_PROCESS_BYTES if is_llama else _TORCH_PROCESS_BYTES
    overhead = buffers + vocabulary + process

    if share == 0:
        if is_llama and quantisation.startswith(_REPACKED):
            weights *= 2
        return _estimate(weights, kv, overhead, vram=0)
    # Both sides compute something, so both have buffers; the table of embeddings stays with the CPU.
    table = min(_table_bytes(facts), weights) if is_llama else 0
    vram = int(weights * share) + int(kv * share) + buffers + _GPU_CONTEXT_BYTES
    return _estimate(weights + (table if share == 1 else 0), kv, overhead + buffers + _GPU_CONTEXT_BYTES, vram=vram)


def _estimate(weights: int, kv: int, overhead: int, *, vram: int) -> Estimate:
    return Estimate(
        weights_bytes=weights,
        kv_bytes=kv,
        overhead_bytes=overhead,
        vram_bytes=vram,
        ram_bytes=weights + kv + overhead - vram,
    )


def _share_on_gpu(facts: Facts, device: str, gpu_layers: int) -> float:
    if device == "cpu" or gpu_layers == 0:
        return 0.0
    if gpu_layers < 0 or gpu_layers >= facts.layers:
        return 1.0
    return gpu_layers / facts.layers


def _cache_tokens(context_tokens: int) -> int:
    return -(-context_tokens // _CACHE_STEP_TOKENS) * _CACHE_STEP_TOKENS


def _element_bytes(facts: Facts, is_llama: bool) -> int:
    """Bytes of one cached element: llama.cpp caches F16, transformers what the weights are."""
    if is_llama or facts.weights_bytes < 3 * facts.parameters:
        return _F16_BYTES
    return _F32_BYTES


def _kv_bytes(facts: Facts, context_tokens: int, parallel: int, is_llama: bool) -> int:
    tokens = _cache_tokens(context_tokens)
    layer_tokens = facts.layers * tokens
    if not is_llama and facts.sliding_window is not None:
        layer_tokens -= facts.sliding_layers * max(tokens - facts.sliding_window, 0)
    element = _element_bytes(facts, is_llama)
    return layer_tokens * parallel * facts.kv_heads * (facts.head_dim_k + facts.head_dim_v) * element


def _state_bytes(facts: Facts, parallel: int) -> int:
    return facts.layers * facts.embedding * _RECURRENT_STATE * parallel if facts.recurrent else 0


def _buffer_bytes(facts: Facts, context_tokens: int, parallel: int, is_llama: bool, device: str) -> int:
    cells = _cache_tokens(context_tokens)
    # A mixture of experts holds the rows of several experts at once; how many its shape here does not tell.
    row = max(3 * facts.feed_forward + 4 * facts.embedding, 16 * facts.embedding)
    if not is_llama:
        # A prompt is read whole.
        logits = parallel * facts.vocabulary * _F32_BYTES
        return context_tokens * row * _element_bytes(facts, is_llama) + logits
    is_small = facts.parameters < SMALL_MODEL_PARAMETERS and context_tokens * parallel <= SMALL_MODEL_CACHE_TOKENS
    if is_small and device == "cpu":
        scores = cells * parallel * (facts.heads + 1)
        return SMALL_MODEL_PIECE_TOKENS * _F32_BYTES * (row + scores) + _logit_bytes(facts, parallel)
    return BATCH_TOKENS * (row * _F32_BYTES + cells * _F16_BYTES) + _logit_bytes(facts, parallel)


def _logit_bytes(facts: Facts, parallel: int) -> int:
    """Rows of logits that the backend has llama.cpp keep: those of answers, and of texts that are scored."""
    row = facts.vocabulary * _F32_BYTES
    rows = max(2 * parallel, min(SCORED_ROWS, SCORED_BYTES // max(row, 1)))
    return rows * row


def _table_bytes(facts: Facts) -> int:
    """The table of embeddings, if its elements are as large as the mean."""
    elements = min(facts.vocabulary * facts.embedding, facts.parameters)
    return facts.weights_bytes * elements // facts.parameters if facts.parameters else 0
