"""The synchronous face of the client, for scripts: one `bus.client.Client` in a background thread with its own loop.

    with SyncClient(load_settings()) as client:
        client.request("memory.recall", {"key": "city"})

The same calls and the same errors as the asyncio client, without `await`. For an asyncio program it is the wrong one: it
blocks the loop that calls it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Final, Self

from bus.client import Client, Priority, Stream
from bus.settings import Settings
from bus.subscription import ReceivedEvent, Subscription
from schemas.envelope import Headers
from schemas.errors import Cancelled

_END: Final = object()


class _Running:
    """The loop in its thread, from start to end."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._started: concurrent.futures.Future[asyncio.AbstractEventLoop] = concurrent.futures.Future()
        # A daemon: a `with` block that is never left (inside a forgotten generator) must not keep the process alive.
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="bus-sync", daemon=True)
        self._thread.start()
        self.loop = self._started.result()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        async with self.client:
            self._started.set_result(asyncio.get_running_loop())
            await self._stop.wait()

    def end(self) -> None:
        """Close the client; returns once the thread is gone."""
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def submit(self, work: Coroutine[Any, Any, Any]) -> concurrent.futures.Future[Any]:
        """Begin `work` in the loop. Raises Cancelled when another thread has closed the client meanwhile."""
        try:
            return asyncio.run_coroutine_threadsafe(work, self.loop)
        except RuntimeError:
            work.close()
            raise Cancelled("the client was closed") from None


class SyncClient:
    """Speaks to the bus from ordinary code; use it as `with SyncClient(settings) as client:`. Threads may share it.

    Ctrl-C during a call takes the request back and raises KeyboardInterrupt. A client that is not open raises Cancelled.
    """

    def __init__(self, settings: Settings | None = None, *, name: str = "script") -> None:
        self.settings = settings or Settings()
        self.name = name
        self._running: _Running | None = None

    def __enter__(self) -> Self:
        self._running = _Running(Client(self.settings, name=self.name))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Send what is queued and end the connections and the thread; calls still waiting raise Cancelled."""
        running, self._running = self._running, None
        if running is not None:
            running.end()

    def connect(self, timeout_s: float | None = None) -> None:
        """Wait for the broker; see `Client.connect`."""
        self._call(lambda client: client.connect(timeout_s))

    def request(
        self,
        subject: str,
        body: Any = None,
        *,
        timeout_s: float | None = None,
        headers: Headers | None = None,
        priority: Priority | None = None,
        raw: bool = False,
        id: bytes | None = None,
    ) -> Any:
        """The final reply; see `Client.request`."""
        return self._call(
            lambda client: client.request(
                subject, body, timeout_s=timeout_s, headers=headers, priority=priority, raw=raw, id=id
            )
        )

    def stream(
        self,
        subject: str,
        body: Any = None,
        *,
        timeout_s: float | None = None,
        headers: Headers | None = None,
        priority: Priority | None = None,
        raw: bool = False,
    ) -> SyncStream:
        """The reply piece by piece: `for part in client.stream(...)`; see `Client.stream`.

        The request is sent at once. `with` around the loop takes it back when the loop is left early.
        """

        async def begin(client: Client) -> Stream:
            stream = client.stream(subject, body, timeout_s=timeout_s, headers=headers, priority=priority, raw=raw)
            return await stream.__aenter__()

        return SyncStream(self, self._call(begin))

    def publish(self, subject: str, body: Any = None, *, headers: Headers | None = None) -> None:
        """Publish one event; see `Client.publish`."""
        self._call(lambda client: client.publish(subject, body, headers=headers))

    def flush(self) -> None:
        """Wait until the broker has read every event published so far; see `Client.flush`."""
        self._call(lambda client: client.flush())

    def subscribe(self, *patterns: str, timeout_s: float | None = None, read_back: bool = False) -> SyncSubscription:
        """Events under any pattern: `with client.subscribe("memory.>") as events: for event in events: ...`.

        Every matching event published after the return arrives. The loop ends when none came for `timeout_s` seconds;
        another loop goes on where it ended. Without a timeout it waits for ever. `read_back` as in `Client.subscribe`.
        """

        async def begin(client: Client) -> Subscription:
            return await client.subscribe(*patterns, read_back=read_back).__aenter__()

        return SyncSubscription(self, self._call(begin), timeout_s)

    def _submit(self, work: Callable[[Client], Coroutine[Any, Any, Any]]) -> concurrent.futures.Future[Any]:
        running = self._running
        if running is None:
            raise Cancelled("the client is not open; use it as `with SyncClient(settings) as client:`")
        return running.submit(work(running.client))

    def _call(self, work: Callable[[Client], Coroutine[Any, Any, Any]]) -> Any:
        future = self._submit(work)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise Cancelled("the client was closed") from None
        except BaseException:
            # Ctrl-C arrives here, in the main thread: the request in the other thread is taken back.
            future.cancel()
            raise


class SyncStream:
    """Partial replies as they come; `final` after the last. `close`, or leaving a `with` block, takes the request back."""

    def __init__(self, client: SyncClient, stream: Stream) -> None:
        self._client = client
        self._stream = stream

    @property
    def final(self) -> Any:
        """The final reply; raises RuntimeError before the partial replies are consumed."""
        return self._stream.final

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            part = self._client._call(lambda client: _next(self._stream))
        except KeyboardInterrupt:
            self.close()
            raise
        if part is _END:
            raise StopIteration
        return part

    def close(self) -> None:
        """Take the request back; nothing happens once it has ended."""

        async def cancel(client: Client) -> None:
            self._stream.cancel()

        if self._client._running is not None:
            self._client._call(cancel)


class SyncSubscription:
    """Events in order; see `SyncClient.subscribe`."""

    def __init__(self, client: SyncClient, subscription: Subscription, timeout_s: float | None) -> None:
        self._client = client
        self._subscription = subscription
        self._timeout_s = timeout_s
        # What was not there in time is not taken back, or an event could be lost between two loops.
        self._coming: concurrent.futures.Future[Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[ReceivedEvent]:
        return self

    def __next__(self) -> ReceivedEvent:
        coming = self._coming or self._client._submit(lambda client: _next(self._subscription))
        self._coming = coming
        concurrent.futures.wait([coming], self._timeout_s)
        if not coming.done():
            raise StopIteration
        self._coming = None
        try:
            event = coming.result()
        except concurrent.futures.CancelledError:
            raise Cancelled("the client was closed") from None
        if event is _END:
            raise StopIteration
        assert isinstance(event, ReceivedEvent)
        return event

    def close(self) -> None:
        """Unsubscribe."""
        if self._client._running is not None:
            self._client._call(lambda client: self._subscription.close())


async def _next(pieces: Stream | Subscription) -> Any:
    return await anext(pieces, _END)
