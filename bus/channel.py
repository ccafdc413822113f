"""A connection to the broker that comes back by itself."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import random
from collections.abc import Callable
from typing import Final

from bus.transport import Dial, Link, Role
from schemas.envelope import Buffer

log = logging.getLogger("olympus.bus")

_FIRST_RETRY_S: Final = 0.02

# A connection that ends sooner was no success, seconds: who is sent away each time must not ask fifty times a second.
_STEADY_S: Final = 0.5

# How often an idle connection is checked; a peer silent for two checks is given up.
_KEEP_ALIVE_S: Final = 5.0

# How long a closing connection may take to hand over what is queued.
_CLOSE_S: Final = 2.0

OnMessages = Callable[[list[list[Buffer]]], None]


class Channel:
    """One role of one client: dials, dials again with full jitter after a loss, and says when it is up.

    `on_up` is called in the event loop each time the handshake is done; `on_down` with the reason each time it ends, and
    `on_failure` each time an attempt came to nothing.
    """

    def __init__(
        self,
        dial: Dial,
        role: Role,
        *,
        reconnect_max_s: float,
        on_messages: OnMessages,
        on_up: Callable[[Link], None] | None = None,
        on_down: Callable[[str], None] | None = None,
        on_failure: Callable[[str], None] | None = None,
    ) -> None:
        self.link: Link | None = None
        self.failure = "not connected yet"
        self._dial = dial
        self._role = role
        self._reconnect_max_s = reconnect_max_s
        self._on_messages = on_messages
        self._on_up = on_up
        self._on_down = on_down
        self._on_failure = on_failure
        self._up: asyncio.Event = asyncio.Event()
        self._down: asyncio.Event = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._keeper: asyncio.TimerHandle | None = None
        self._dialled: Link | None = None
        self._was_up = False
        self._is_closing = False

    def start(self) -> None:
        """Begin to connect; calling it again does nothing."""
        if self._task is None:
            # It outlives the request in whose handler it may begin, and is no part of it.
            self._task = asyncio.get_running_loop().create_task(
                self._keep_connected(), name=f"bus-{self._role}", context=contextvars.Context()
            )

    async def ready(self, timeout_s: float | None = None) -> Link:
        """The open connection, waiting for it. Raises TimeoutError."""
        self.start()
        link = self.link
        while link is None or not link.is_open:
            async with asyncio.timeout(timeout_s):
                await self._up.wait()
            link = self.link
        return link

    async def close(self) -> None:
        """Send what is queued and end for good."""
        self._is_closing = True
        if self._dialled is not None:
            self._dialled.close("closed here")
            try:
                async with asyncio.timeout(_CLOSE_S):
                    await self._down.wait()
            except TimeoutError:
                self._dialled.abort("the broker reads no more")
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_connected(self) -> None:
        loop = asyncio.get_running_loop()
        attempt = 0
        while not self._is_closing:
            self._down.clear()
            self._was_up = False
            try:
                self._dialled = await self._dial(self._role, self)
            except OSError as error:
                self.failure = _in_words(error)
            else:
                opened_at = loop.time()
                await self._down.wait()
                self._dialled = None
                if self._was_up and loop.time() - opened_at >= _STEADY_S:
                    attempt = 0
            if not self._was_up and not self._is_closing and self._on_failure is not None:
                self._on_failure(self.failure)
            ceiling = min(_FIRST_RETRY_S * 2**attempt, self._reconnect_max_s)
            attempt = min(attempt + 1, 16)
            if not self._is_closing:
                await asyncio.sleep(random.uniform(ceiling / 2, ceiling))

    # bus.transport.Handler

    def on_open(self, connection: Link) -> None:
        self.link = connection
        self._was_up = True
        self._up.set()
        self._schedule_keep_alive()
        if self._on_up is not None:
            self._on_up(connection)

    def on_messages(self, connection: Link, messages: list[list[Buffer]]) -> None:
        self._on_messages(messages)

    def on_oversize(self, connection: Link, frames: list[Buffer], size_bytes: int) -> None:
        # Who waits for it gets deadline_exceeded; the broker refuses such a message before it comes this far.
        log.warning("message over the limit skipped", extra={"action": "bus.oversize", "size_bytes": size_bytes})

    def on_close(self, connection: Link, reason: str) -> None:
        was_up = self.link is connection
        self.link = None
        # Not later: whoever waits for the next connection would find this set and spin without yielding.
        self._up.clear()
        self.failure = reason
        if self._keeper is not None:
            self._keeper.cancel()
        self._down.set()
        if was_up and self._on_down is not None:
            self._on_down(reason)

    def _schedule_keep_alive(self) -> None:
        self._keeper = asyncio.get_running_loop().call_later(_KEEP_ALIVE_S, self._keep_alive)

    def _keep_alive(self) -> None:
        link = self.link
        if link is None:
            return
        if link.keep_alive():
            self._schedule_keep_alive()
        else:
            link.abort("the broker is silent")


def _in_words(error: OSError) -> str:
    """`Connection refused`, whatever event loop says it; other errors, of names and keys, in their own words."""
    is_system = error.errno is not None and error.errno > 0
    return os.strerror(error.errno or 0) if is_system else error.strerror or str(error)
