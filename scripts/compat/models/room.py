"""Which models of this process leave for another one under its memory limit. It decides, and unloads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from models.config import MIB
from models.errors import MemoryLimit
from schemas.bodies.model import ModelInfo


def leaving(
    loaded: Iterable[ModelInfo], last_used: Mapping[str, float], *, needed_bytes: int, limit_bytes: float
) -> list[str]:
    """Names of those that leave so that `needed_bytes` fit beside the rest, the first to go first.

    loaded: this process' models in memory. last_used: when it last asked for each. Priority 5 goes before 1, among
    equals what was unused the longest; never what is pinned or answering. Raises MemoryLimit.
    """
    there = list(loaded)
    held = sum(one.memory_bytes for one in there)
    free = [one for one in there if not one.is_pinned and not one.in_flight]
    free.sort(key=lambda one: (-one.priority, last_used.get(one.name, 0.0)))
    chosen: list[str] = []
    while held + needed_bytes > limit_bytes:
        if needed_bytes > limit_bytes or not free:
            raise MemoryLimit(_refusal(there, needed_bytes, limit_bytes), needed_bytes=needed_bytes)
        gone = free.pop(0)
        held -= gone.memory_bytes
        chosen.append(gone.name)
    return chosen


def _refusal(loaded: list[ModelInfo], needed_bytes: int, limit_bytes: float) -> str:
    staying = ", ".join(f"{one.name} {one.memory_bytes / MIB:.0f} MB" for one in loaded) or "nothing"
    return (
        f"{needed_bytes / MIB:.0f} MB do not fit under the limit of {limit_bytes / MIB:.0f} MB (set_memory_limit);"
        f" loaded are {staying}"
    )
