"""The sequences of a llama.cpp context and what their caches hold: who gets which, what is kept, what is thrown away.

Used by the decode thread alone. Knows nothing of batches and samplers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final

from workers.models.backends.kept_states import KeptState, KeptStates
from workers.models.backends.llama_jobs import Job, Slot, common_prefix

# Main memory for the states of conversations that had to leave the cache. A 7 B model needs some 0.13 MB for a token.
KEPT_BYTES: Final = 512 * 1024 * 1024
# Fewer common tokens are not worth a choice between sequences: every prompt of a model begins alike.
MIN_REUSED_TOKENS: Final = 16


class Sequences:
    """The caches of the sequences. `kept`: states of conversations that had to leave them.

    is_common: one cache for all sequences; there a beginning can be shared between them, unless the state is recurrent.
    """

    def __init__(self, library: Any, model: Any, context: Any, slots: Sequence[Slot], *, is_common: bool) -> None:
        self._lib = library
        self._context = context
        self._memory = library.llama_get_memory(context)
        self._slots = slots
        self._can_copy = is_common and not (
            library.llama_model_is_recurrent(model) or library.llama_model_is_hybrid(model)
        )
        self.kept = KeptStates(KEPT_BYTES)

    def fitness(self, slot: Slot, job: Job) -> tuple[int, bool, float]:
        """The more of the prompt is there the better; else one nobody will come back to, the longest unused first."""
        reused = self._reusable(slot, job)
        return (reused if reused >= MIN_REUSED_TOKENS else 0, slot.conversation_id is None, -slot.used_at)

    def _reusable(self, slot: Slot, job: Job) -> int:
        return common_prefix(slot.cached, job.prompt) if slot.adapter == job.options.adapter else 0

    def prepare(self, slot: Slot, job: Job) -> int:
        """Bring the beginning of the prompt into the slot's cache, from wherever it is; returns its tokens."""
        # At least one token is read anew, for its logits; of a score all whose logits judge others.
        most = len(job.prompt) - 1 if job.first_scored is None else max(job.first_scored - 1, 0)
        reused = min(self._reusable(slot, job), most)
        if job.conversation_id != slot.conversation_id and reused < len(slot.cached):
            self.put_aside(slot)
        kept = self.kept.get(job.conversation_id, job.options.adapter) if job.conversation_id else None
        if kept is not None and min(common_prefix(kept.tokens, job.prompt), most) > reused:
            self.forget(slot)
            if self._lib.llama_state_seq_set_data(self._context, kept.state, kept.size_bytes, slot.sequence):
                slot.cached, slot.adapter = list(kept.tokens), kept.adapter
                reused = min(common_prefix(slot.cached, job.prompt), most)
            else:
                self.forget(slot)
                reused = 0
        reused = self._copy_from_neighbour(slot, job, reused, most)
        return reused if self._cut(slot, reused) else 0

    def _copy_from_neighbour(self, slot: Slot, job: Job, reused: int, most: int) -> int:
        """Share the cells of another sequence that begins like this prompt; returns the tokens now there."""
        if not self._can_copy:
            return reused
        best = max(self._slots, key=lambda one: self._reusable(one, job))
        shared = min(self._reusable(best, job), most)
        if best is slot or shared < reused + MIN_REUSED_TOKENS:
            return reused
        self.forget(slot)
        self._lib.llama_memory_seq_cp(self._memory, best.sequence, slot.sequence, 0, shared)
        slot.cached = best.cached[:shared]
        return shared

    def _cut(self, slot: Slot, keep: int) -> bool:
        """Leave the first `keep` tokens in the slot's cache; False when it had to be emptied for it."""
        lib, memory = self._lib, self._memory
        if keep == len(slot.cached) and keep:
            return True
        # A recurrent cache cannot be cut, a sliding-window one has forgotten its beginning: both start afresh.
        if not lib.llama_memory_seq_rm(memory, slot.sequence, keep, -1) or (
            keep and lib.llama_memory_seq_pos_min(memory, slot.sequence) != 0
        ):
            self.forget(slot)
            return False
        return True

    def put_aside(self, slot: Slot) -> None:
        """Copy the state of the slot's conversation out of the cache, if it has one."""
        if slot.conversation_id is None or len(slot.cached) < MIN_REUSED_TOKENS:
            return
        size = int(self._lib.llama_state_seq_get_size(self._context, slot.sequence))
        if 0 < size <= KEPT_BYTES:
            state = (ctypes.c_uint8 * size)()
            written = int(self._lib.llama_state_seq_get_data(self._context, state, size, slot.sequence))
            if written:
                self.kept.put(slot.conversation_id, KeptState(list(slot.cached), slot.adapter, state, written))

    def forget(self, slot: Slot) -> None:
        self._lib.llama_memory_seq_rm(self._memory, slot.sequence, -1, -1)
        slot.cached = []
        slot.conversation_id = None
