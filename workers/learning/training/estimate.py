"""How much memory a training will take, told from the base's shape before it starts, for the lease.

    weights       elements x 4 bytes on a CPU (float32), x 2 on a GPU (bfloat16)
    adapter       rank x (in + out) of every adapted matrix, in float32: itself, its gradient, two moments of Adam
                  (arXiv:1412.6980, algorithm 1), and one copy of these while a checkpoint is written
    activations   what the backward pass needs of each token and layer (arXiv:2205.05198, section 4), on a CPU with the
                  scores of attention, which the fused kernels of GPUs do not keep; or with activation checkpointing
                  the input of each layer and all of one (section 5 there); rows are counted at their longest
    output        logits are made in pieces; the hidden rows and their gradient stay
    process       Python with torch, transformers, TRL and PEFT

DPO counts each row twice, chosen and rejected. Measured by dry steps on a CPU with a llama of 100 M parameters, rank 8,
float32: one row of 204 tokens 1,181 MiB; of 464 tokens one, two and four rows 1,871, 2,859 and 4,871 MiB, and four with
activation checkpointing 3,540 and 3,723. The estimate was 8 to 19 % above these. The trainer measures itself with a dry step and stays within the budget
it is given, so this only has to be a good first guess. It knows no device and no lease.
"""

from __future__ import annotations

from typing import Final

import msgspec

from workers.learning.training.base import Shape
from workers.learning.training.spec import ALL_LINEAR, Lora, Method

_MIB: Final = 1024 * 1024

# Python with everything imported (measured: 543 MiB resident with torch 2.13 for CPUs), threads and buffers of a step.
_PROCESS_BYTES: Final = 640 * _MIB
# What CUDA keeps on the device for a process that uses it; NVIDIA's own tools show 300 to 500 MiB. Not measured here.
_GPU_CONTEXT_BYTES: Final = 512 * _MIB

_F32_BYTES: Final = 4
_BF16_BYTES: Final = 2

# Of the adapter in float32: itself, gradient, two moments, and a copy of three of these in a checkpoint being written.
_ADAPTER_COPIES: Final = 7

# Rows of one token that a layer keeps for the backward pass, in units of its own widths: both norms keep input and
# result, each of the three inputs of adapted matrices is kept once more, and the residual stream. Heads: q, k and v,
# turned and unturned, and what attention gives. Feed-forward: gate, its activation, up, their product and its copy.
_HIDDEN_ROWS: Final = 9
_HEAD_ROWS: Final = 3
_FEED_FORWARD_ROWS: Final = 5

# Scores of one token in one layer of a CPU: this often heads x tokens of the row (measured: 60 for 12 heads).
_SCORE_ROWS: Final = 5

# Part of the activations that activation checkpointing leaves on a CPU, at least: measured 0.67 and 0.70 with the model
# below and four rows of 464 tokens, far more than the formula says. On GPUs the formula has not been measured.
_CHECKPOINTED_SHARE: Final = 0.7

# Rows of float32 of the hidden width at the end: the last norm, its gradient, and the pieces of the output.
_OUTPUT_ROWS: Final = 4
# Tokens whose logits exist at once; TRL 1.16 makes them in tiles.
_LOGIT_TOKENS: Final = 256


class TrainingEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes by what they are for. device_bytes: on the device that trains; ram_bytes: besides, in main memory."""

    weights_bytes: int
    adapter_bytes: int
    activation_bytes: int
    process_bytes: int
    device_bytes: int
    ram_bytes: int


def adapter_parameters(shape: Shape, lora: Lora) -> int:
    """Elements of the adapter: rank x (in + out) of each adapted matrix. An unknown name counts as the largest matrix."""
    heads, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sides = {
        "q_proj": shape.hidden + heads,
        "k_proj": shape.hidden + kv,
        "v_proj": shape.hidden + kv,
        "o_proj": shape.hidden + heads,
        "gate_proj": shape.hidden + shape.feed_forward,
        "up_proj": shape.hidden + shape.feed_forward,
        "down_proj": shape.hidden + shape.feed_forward,
    }
    targets = tuple(sides) if lora.targets == (ALL_LINEAR,) else lora.targets
    largest = max(sides.values())
    return lora.rank * shape.layers * sum(sides.get(target, largest) for target in targets)


def estimate(
    shape: Shape,
    *,
    lora: Lora,
    method: Method = "sft",
    tokens: int,
    micro_batch: int = 1,
    activation_checkpointing: bool = False,
    device: str = "cpu",
) -> TrainingEstimate:
    """Memory of one process that trains on rows of at most `tokens` tokens, `micro_batch` of them at a time."""
    is_gpu = device != "cpu"
    element = _BF16_BYTES if is_gpu else _F32_BYTES
    weights = shape.parameters * element
    adapter = adapter_parameters(shape, lora) * _F32_BYTES * _ADAPTER_COPIES
    length = min(tokens, shape.window)
    rows = micro_batch * (2 if method == "dpo" else 1)
    scores = 0 if is_gpu else _SCORE_ROWS * shape.heads * length
    activations = _activations(shape, rows * length, scores, element, activation_checkpointing)
    if is_gpu:
        on_device = weights + adapter + activations + _GPU_CONTEXT_BYTES
        # The file is read through main memory.
        return TrainingEstimate(
            weights_bytes=weights,
            adapter_bytes=adapter,
            activation_bytes=activations,
            process_bytes=_PROCESS_BYTES + _GPU_CONTEXT_BYTES,
            device_bytes=on_device,
            ram_bytes=_PROCESS_BYTES + adapter,
        )
    return TrainingEstimate(
        weights_bytes=weights,
        adapter_bytes=adapter,
        activation_bytes=activations,
        process_bytes=_PROCESS_BYTES,
        device_bytes=weights + adapter + activations + _PROCESS_BYTES,
        ram_bytes=0,
    )


def _activations(shape: Shape, tokens: int, scores: int, element: int, activation_checkpointing: bool) -> int:
    heads = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    row = _HIDDEN_ROWS * shape.hidden + _HEAD_ROWS * heads + _FEED_FORWARD_ROWS * shape.feed_forward + scores
    layers: float = shape.layers * row
    if activation_checkpointing:
        # There are scores on a CPU alone.
        layers = max(shape.layers * shape.hidden + row, layers * _CHECKPOINTED_SHARE if scores else 0)
    output = tokens * _OUTPUT_ROWS * shape.hidden * _F32_BYTES + _LOGIT_TOKENS * shape.vocabulary * _F32_BYTES
    return int(tokens * layers * element) + output
