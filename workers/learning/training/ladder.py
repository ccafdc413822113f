"""What to try next when a training ran out of memory. Pure: it knows no process and no device.

    smaller micro-batch with more accumulation   the same rows per step, so the same steps
    activation checkpointing                     activations are computed twice: about a third more time
    shorter sequences                            longer rows are left out, down to _LEAST_TOKENS
    nothing                                      the job goes back into the queue, for a larger budget

Source of the second: T. Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174.
"""

from __future__ import annotations

from typing import Final

import msgspec

from workers.learning.training.spec import Rung

# Rows shorter than this hold no question with its answer.
_LEAST_TOKENS: Final = 64


def micro_batches(rows_per_process: int) -> tuple[int, ...]:
    """Micro-batches that divide the rows of one process and step, the largest first."""
    return tuple(size for size in range(rows_per_process, 0, -1) if rows_per_process % size == 0)


def next_rung(rung: Rung, *, micro_batch: int, max_length: int, rows_per_process: int) -> Rung | None:
    """The next rung after one that did not fit; None when there is no other.

    micro_batch, max_length: what was tried, rows and tokens. rows_per_process: effective batch over processes.
    """
    level = rung.level + 1
    smaller = [size for size in micro_batches(rows_per_process) if size <= micro_batch // 2]
    if smaller:
        return msgspec.structs.replace(rung, level=level, micro_batch=smaller[0])
    if not rung.activation_checkpointing:
        return msgspec.structs.replace(rung, level=level, micro_batch=micro_batch, activation_checkpointing=True)
    if max_length // 2 >= _LEAST_TOKENS:
        return msgspec.structs.replace(rung, level=level, micro_batch=micro_batch, max_length=max_length // 2)
    return None
