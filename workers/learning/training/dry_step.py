"""Chooses the micro-batch by trying: forward and backward of the longest rows, while as much memory is held as Adam will.

Nothing of the training changes by it: no weight, no moment, no random number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch

from bus.sizes import size_in_words
from workers.learning.training import state
from workers.learning.training.device import Peak, memory_bytes
from workers.learning.training.ladder import micro_batches
from workers.learning.training.loop import rng_now

# Part of the budget the dry step may take: later steps find the memory in pieces, and batches that are a little
# different in shape keep buffers of their own.
_SHARE: Final = 0.92


class DoesNotFit(Exception):
    """Not even the smallest step fits. micro_batch: what was tried, rows."""

    def __init__(self, micro_batch: int, peak_bytes: int, budget_bytes: int) -> None:
        super().__init__(
            f"a step of {micro_batch} of the longest rows takes {size_in_words(peak_bytes)}, the budget is {size_in_words(budget_bytes)}"
        )
        self.micro_batch = micro_batch


class Choice(NamedTuple):
    """Rows at a time, and what a step of them took at most, bytes."""

    micro_batch: int
    peak_bytes: int


def choose(
    trainer: Any, longest: Sequence[dict[str, Any]], *, rows_per_process: int, limit: int | None, budget_bytes: int
) -> Choice:
    """The largest micro-batch whose step stays within the budget.

    longest: the longest rows, the longest first, as the collator takes them. rows_per_process: of one step. limit: of the
    micro-batch, from the rung. Raises DoesNotFit.
    """
    allowed = budget_bytes * _SHARE
    candidates = [size for size in micro_batches(rows_per_process) if limit is None or size <= limit]
    before = memory_bytes(trainer.args.device.type == "cuda")
    # The smallest first: its peak tells about how many rows will fit, and a first guess seldom has to be corrected.
    least = candidates[-1]
    peak = _agreed(trainer, _peak_of(trainer, longest, least))
    if peak > allowed:
        raise DoesNotFit(least, peak, budget_bytes)
    best = Choice(least, peak)
    row_bytes = max((peak - before) / least, 1.0)
    for size in candidates:
        if size <= least:
            break
        if before + size * row_bytes <= allowed:
            peak = _agreed(trainer, _peak_of(trainer, longest, size))
            if peak <= allowed:
                return Choice(size, peak)
    return best


def _peak_of(trainer: Any, longest: Sequence[dict[str, Any]], rows: int) -> int:
    """Most memory held during one step of `rows` rows; more than there can be when it failed for want of it."""
    model, rng = trainer.model, rng_now()
    if trainer.args.gradient_checkpointing:
        # As the training will do when it begins.
        model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
    peak = Peak(trainer.args.device.type == "cuda")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    peak.reset()
    try:
        # Adam's two moments, which the first step makes and every later one keeps; written to, since memory that was
        # never touched is not there.
        moments = [torch.full_like(parameter, 0.5) for parameter in trained for _ in range(2)]
        batch = trainer.data_collator([longest[number % len(longest)] for number in range(rows)])
        model.train()
        with trainer.accelerator.autocast():
            loss = trainer.compute_loss(model, trainer._prepare_inputs(batch))
        trainer.accelerator.backward(loss)
        del loss, batch, moments
        return peak.read()
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return 2**62
    finally:
        model.zero_grad(set_to_none=True)
        trainer._metrics["train"].clear()
        trainer._total_train_tokens = 0
        state.set_rng_state(rng)


def is_out_of_memory(error: BaseException) -> bool:
    """True when an error of torch or Python says that memory could not be had."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The CPU allocator raises a plain RuntimeError: "DefaultCPUAllocator: can't allocate memory" or "not enough memory".
    words = str(error).lower()
    return isinstance(error, RuntimeError) and ("allocate memory" in words or "not enough memory" in words)


def _agreed(trainer: Any, peak_bytes: int) -> int:
    """The largest of all processes, so that they all choose the same."""
    if trainer.args.world_size == 1:
        return peak_bytes
    shared = torch.tensor([peak_bytes], device=trainer.args.device, dtype=torch.int64)
    torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
    return int(shared.item())
