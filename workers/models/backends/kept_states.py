"""Keeps what models have read for conversations whose place in the cache was needed: the latest ones, within a bound.

Knows nothing of the model: a state is bytes. Used by the decode thread and, for `drop`, by the loop's.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import msgspec


class KeptState(msgspec.Struct, frozen=True):
    """The cache of one sequence: the tokens it holds, the adapter that computed it, and its bytes."""

    tokens: list[int]
    adapter: str | None
    state: Any
    size_bytes: int


class KeptStates:
    """The states by conversation, least recently used first; together at most `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._states: OrderedDict[str, KeptState] = OrderedDict()
        self._lock = threading.Lock()
        self.size_bytes = 0

    def put(self, conversation_id: str, state: KeptState) -> None:
        """Keep a state in place of the conversation's last one; what is too large is not kept."""
        with self._lock:
            self._pop(conversation_id)
            if state.size_bytes > self._limit_bytes:
                return
            self._states[conversation_id] = state
            self.size_bytes += state.size_bytes
            while self.size_bytes > self._limit_bytes:
                self._pop(next(iter(self._states)))

    def get(self, conversation_id: str, adapter: str | None) -> KeptState | None:
        """The conversation's state, if the same adapter computed it."""
        with self._lock:
            state = self._states.get(conversation_id)
            if state is None or state.adapter != adapter:
                return None
            self._states.move_to_end(conversation_id)
            return state

    def drop(self, conversation_id: str) -> bool:
        """Forget a conversation; False when nothing was kept."""
        with self._lock:
            return self._pop(conversation_id)

    def drop_adapter(self, adapter: str) -> None:
        """Forget what an adapter computed."""
        with self._lock:
            for name in [name for name, state in self._states.items() if state.adapter == adapter]:
                self._pop(name)

    def _pop(self, conversation_id: str) -> bool:
        state = self._states.pop(conversation_id, None)
        self.size_bytes -= state.size_bytes if state is not None else 0
        return state is not None
