"""What agents do unasked: broadcasts, sweeps, following events. One that fails is told of and begun again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from bus.reminder import Reminder
from workers.gateway.legacy.agent import Agent
from workers.gateway.legacy.house import House

# Seconds after which a chore that failed is begun again.
_AGAIN_S: Final = 5.0

# Seconds after which a chore had begun well, so that its next failure is news.
_STEADY_S: Final = 60.0


class Chores:
    """The tasks of some agents of a house, as long as it is started."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, agents: Iterable[Agent]) -> None:
        """Begin the tasks of each agent."""
        for agent in agents:
            self._tasks += [
                asyncio.create_task(self._keep_running(agent, task), name=f"{agent.name} chore") for task in agent.tasks
            ]

    async def stop(self) -> None:
        """End them all."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep_running(self, agent: Agent, task: Callable[[House], Awaitable[None]]) -> None:
        reminder = Reminder()
        while True:
            began_at = time.monotonic()
            try:
                await task(self._house)
                return
            except Exception as error:  # noqa: BLE001 - one agent's broadcast must not end the edge
                now = time.monotonic()
                if now - began_at > _STEADY_S:
                    reminder.clear()
                if reminder.is_due(str(error), now):
                    self._house.on_chore_failure(agent, error)
                await asyncio.sleep(_AGAIN_S)
