"""Follows the sessions that people delete in MemoryHub: what was said in them is forgotten here, too."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from bus.client import Client
from schemas.errors import BusError
from workers.learning.curation.references import gone

log = logging.getLogger("olympus.learning")

_RETRY_S: Final = 1.0

Forget = Callable[[str], Awaitable[object]]


class ForgottenSessions:
    """forget: deletes all of one session. Of what was deleted while this service was down the exchanges stay until
    `learning.keep_days`; examples made of them are asked for again before anything is trained."""

    def __init__(self, client: Client, forget: Forget) -> None:
        self._client = client
        self._forget = forget
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to follow."""
        self._task = asyncio.ensure_future(self._follow())

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        while True:
            try:
                async with self._client.subscribe("memory.session.closed", read_back=True) as events:
                    async for event in events:
                        reference = gone(event.subject, event.body)
                        if reference is not None:
                            await self._forget(reference.id)
            except (BusError, ConnectionError) as error:
                log.info("sessions not followed", extra={"action": "learning.sessions", "error": str(error)})
            await asyncio.sleep(_RETRY_S)
