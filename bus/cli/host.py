"""A chat that runs sub-commands in its own process, on its own connection; it knows nothing of what they do."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final, TypeVar

from bus.cli import exits
from bus.cli.hosting import HOST

if TYPE_CHECKING:
    from bus.client import Client
    from bus.settings import Settings

# Seconds that a cancelled sub-command has to end what it does outside the bus; then the chat goes on without it.
_LEAVE_S: Final = 2.0

T = TypeVar("T")


class Host:
    """What a sub-command runs on under a chat, and what it means by "this" model, session and answer.

    The sub-command's own code runs in a thread, so that it may wait as it does alone; what it does on the bus runs in
    the chat's loop. Made in that loop. `ask` gives the line that the person types as answer to a question.
    """

    def __init__(
        self,
        client: Client,
        settings: Settings,
        ask: Callable[[str], Awaitable[str]],
        *,
        model: str | None = None,
        session_id: str | None = None,
        reply_id: str | None = None,
    ) -> None:
        self.client = client
        self.settings = settings
        self.model = model
        self.session_id = session_id
        self.reply_id = reply_id
        self._ask = ask
        self._loop = asyncio.get_running_loop()
        # Both belong to the loop.
        self._running: asyncio.Task[Any] | None = None
        self._is_cancelled = False

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of `coroutine`, run in the chat's loop. Raises KeyboardInterrupt once the chat has cancelled it.

        To be called by the sub-command's thread alone: in the loop itself it would wait for itself.
        """
        ended: concurrent.futures.Future[T] = concurrent.futures.Future()

        def begin() -> None:
            self._running = self._loop.create_task(coroutine, name="sub-command")
            self._running.add_done_callback(end)
            if self._is_cancelled:
                self._running.cancel()

        def end(task: asyncio.Task[T]) -> None:
            if task.cancelled():
                ended.cancel()
            elif (error := task.exception()) is not None:
                ended.set_exception(error)
            else:
                ended.set_result(task.result())

        try:
            self._loop.call_soon_threadsafe(begin)
        except RuntimeError:
            # The loop is closed: the chat has ended without waiting for this.
            coroutine.close()
            raise KeyboardInterrupt from None
        try:
            return ended.result()
        except concurrent.futures.CancelledError:
            raise KeyboardInterrupt from None

    def asked(self, question: str) -> str:
        """What the person types as answer; "" where nobody can be asked. Raises KeyboardInterrupt as `run` does."""
        return self.run(self._put(question))

    def cancel(self) -> None:
        """End what runs, and let nothing go on any more. Called in the loop."""
        self._is_cancelled = True
        if self._running is not None:
            self._running.cancel()

    async def _put(self, question: str) -> str:
        return await self._ask(question)


async def run_hosted(host: Host, work: Callable[[], int]) -> int:
    """The exit code of `work`, run in a thread under `host`. Cancelling this cancels what `work` does on the bus.

    The thread is no pool's: the process may end while a sub-command that cannot be cancelled goes on.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()
    context = copy_context()
    context.run(HOST.set, host)

    def settle(code: int) -> None:
        if not ended.done():
            ended.set_result(code)

    def body() -> None:
        code = exits.FAILED
        try:
            code = context.run(work)
        finally:
            # A loop that is closed belongs to a chat that has ended without waiting.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, code)

    threading.Thread(target=body, name="sub-command", daemon=True).start()
    try:
        return await asyncio.shield(ended)
    except asyncio.CancelledError:
        host.cancel()
        await asyncio.wait([ended], timeout=_LEAVE_S)
        raise
