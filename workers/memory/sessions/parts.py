"""Puts sessions, contexts, suggestions and the memory tool together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from bus.settings import MemorySettings
from workers.memory.records import Records
from workers.memory.sessions import build, tool
from workers.memory.sessions.bridge import Bridger
from workers.memory.sessions.build import ContextBuilder, Shares
from workers.memory.sessions.contexts import Contexts
from workers.memory.sessions.finder import Finder
from workers.memory.sessions.proactive import Marks, Monitor, TopicEncoder
from workers.memory.sessions.sessions import Sessions
from workers.memory.sessions.tokens import TokenCounter
from workers.memory.sessions.tool import MemoryTool


class FactStore(tool.Facts, build.FactPrompts, Protocol):
    """The facts, as contexts and the tool need them: `MemoryStore`."""


class SessionParts:
    """Everything of this folder on one set of records.

    encoder: answers the encoder once it is loaded, None before. marks: where the monitor keeps how far it is, so that a
    restart does not make it look at everything again. Run `monitor.watch_forever` and call `sweep` regularly.
    """

    def __init__(
        self,
        records: Records,
        settings: MemorySettings,
        facts: FactStore,
        finder: Finder,
        counter: TokenCounter,
        encoder: Callable[[], TopicEncoder | None],
        marks: Marks | None = None,
    ) -> None:
        self.monitor = Monitor(records, finder, encoder, is_enabled=settings.proactive, marks=marks)
        self.sessions = Sessions(records, counter, ttl_s=settings.session_ttl_s, on_turns=self.monitor.heard)
        self.contexts = Contexts(records)
        self.bridger = Bridger(records, finder, counter)
        shares = Shares(settings.context_facts, settings.context_bridge, settings.context_memories)
        self.builder = ContextBuilder(records, self.contexts, facts, self.bridger, finder, counter, shares)
        self.tool = MemoryTool(facts, finder)

    async def expire(self, now: float) -> None:
        """End sessions and contexts whose time is over at `now`. Costs a few reads when there are none."""
        await self.sessions.expire(now)
        await self.contexts.sweep(now)

    async def sweep(self, now: float) -> None:
        """`expire`, and finish deletions of sessions that were cut off."""
        await self.sessions.sweep(now)
        await self.contexts.sweep(now)
