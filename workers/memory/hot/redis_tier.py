"""The four spaces on a Redis server, one database each. Imported only where a server is configured: it needs `redis`.

One object is one acquaintance with one server process: it notices on every new connection when another answers, since
a restarted server may have come back with an older state. Once it has raised TierUnavailable it is of no more use, and
says so to everybody who still waits. What takes over is failover.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, Self, TypeVar

import tenacity
from redis import exceptions
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from schemas.errors import Conflict
from workers.memory.hot.entries import Row
from workers.memory.hot.tier import (
    MAX_VALUE_BYTES,
    NO_NUMBER,
    SPACES,
    Entry,
    Size,
    Space,
    TierUnavailable,
    check_size,
    key_bytes,
    prefix_bytes,
    ttl_ms,
)

T = TypeVar("T")

# One request, given the client; the library types each command as its sync and its async form at once.
Send = Callable[[Any], Awaitable[T]]

# Requests to one database at a time, each on a connection of its own. One connection answers some 5,000 a second; more
# than a few only cost the server.
AT_ONCE: Final = 8

# Times a request is sent when its connection breaks, within its time; the pauses start at RETRY_FIRST_S seconds.
ATTEMPTS: Final = 3
RETRY_FIRST_S: Final = 0.01

# Connections a pool would allow beyond what `AT_ONCE` bounds already.
NO_LIMIT: Final = 2**31

# Steps in which the time of a request passes, each begun when the one before it was noticed to be over: a request is
# given up after so many turns of the event loop without its answer.
LIMIT_STEPS: Final = 8

# Keys looked at in one step of a scan.
SCAN_KEYS: Final = 500

# Written by `open` into each database, to learn that the server takes writes; gone after this many milliseconds.
PROBE_KEY: Final = "olympus:probe"
PROBE_MS: Final = 1_000

_GLOB: Final = {ord(character): f"\\{character}" for character in "\\*?[]^-"}


class RedisTier:
    """`Spaces` on one server. `open` makes one; every method raises TierUnavailable when the server cannot do it.

    The server has `timeout_s` for a request from when it is sent: many callers at once wait for each other, in turn, and
    that is no fault of the server. A request that may be repeated is sent again when its connection breaks.
    """

    def __init__(self, url: str, timeout_s: float, name: str) -> None:
        self._timeout_s = timeout_s
        self._server: str | None = None
        self._failure: str | None = None
        # The library's own blocking pool gives a connection to whoever asks just then: of 64 callers 8 get everything.
        self._turns = {space: asyncio.Semaphore(AT_ONCE) for space in SPACES}
        self._clients = {space: self._client(url, number, name) for number, space in enumerate(SPACES)}

    @classmethod
    async def open(cls, url: str, timeout_s: float, name: str) -> Self:
        """The tier on the server at `url`, once each database took a write. Raises TierUnavailable, ValueError.

        `name` is what the server calls our connections.
        """
        tier = cls(url, timeout_s, name)
        try:
            for space in SPACES:
                await tier._command(space, lambda client: client.set(PROBE_KEY, name, px=PROBE_MS))
        except BaseException:
            await tier.close()
            raise
        return tier

    async def close(self) -> None:
        """Close every connection, also those in use: whoever waits for an answer hears that there is none."""
        self._failure = self._failure or "closed"
        for client in self._clients.values():
            # One whose bytes a dead server does not take would be waited for until the network gives up.
            with contextlib.suppress(TimeoutError, exceptions.RedisError):
                async with asyncio.timeout(self._timeout_s):
                    await client.connection_pool.disconnect()

    @property
    def server(self) -> str:
        """Which process of a server this is: another one after each of its starts."""
        return self._server or ""

    # The spaces -------------------------------------------------------------------------------------------------

    async def get(self, space: Space, key: str) -> bytes | None:
        """The value, None when absent or when another program keeps something else than text there."""
        packed = key_bytes(key)
        try:
            return await self._repeatable(space, lambda client: client.get(packed))
        except _OtherType:
            return None

    async def look(self, space: Space, key: str) -> Entry | None:
        """The value with the time it has left."""
        packed = key_bytes(key)
        try:
            value, left_ms = await self._repeatable(
                space, lambda client: client.pipeline(transaction=True).get(packed).pttl(packed).execute()
            )
        except _OtherType:
            return None
        return None if value is None else Entry(value, left_ms / 1000 if left_ms >= 0 else None)

    async def set(self, space: Space, key: str, value: bytes, *, ttl_s: float | None) -> None:
        """Store the value, whatever was there."""
        packed, ends_ms = key_bytes(key), _optional_ms(ttl_s)
        check_size(value, MAX_VALUE_BYTES)
        await self._repeatable(space, lambda client: client.set(packed, value, px=ends_ms))

    async def delete(self, space: Space, key: str) -> bool:
        """Remove the key; True when it was there."""
        packed = key_bytes(key)
        return bool(await self._repeatable(space, lambda client: client.unlink(packed)))

    async def delete_prefix(self, space: Space, *prefixes: str) -> int:
        """Remove every key that starts with one of them; how many those were."""
        removed = 0
        async for keys in self._scan(space, prefixes):
            removed += await self._repeatable(space, partial(_unlink, keys=keys))
        return removed

    async def increment(self, space: Space, key: str, *, ttl_s: float | None) -> int:
        """Add one and return the sum; `ttl_s` holds for a key that starts here. Raises Conflict."""
        packed, ends_ms = key_bytes(key), _optional_ms(ttl_s)
        try:
            _, total = await self._command(
                space,
                lambda client: (
                    client.pipeline(transaction=True).set(packed, 0, px=ends_ms, nx=True).incr(packed).execute()
                ),
            )
        except _OtherType:
            raise Conflict(NO_NUMBER, field="key") from None
        return int(total)

    async def touch(self, space: Space, key: str, *, ttl_s: float) -> bool:
        """Give the key `ttl_s` from now; False when it is absent."""
        packed, ends_ms = key_bytes(key), ttl_ms(ttl_s)
        return bool(await self._repeatable(space, lambda client: client.pexpire(packed, ends_ms)))

    async def measure(self, space: Space, *prefixes: str) -> Size:
        """What is stored under any of the prefixes. Scans the whole database."""
        count = size_bytes = 0
        async for keys in self._scan(space, prefixes):
            found = await self._repeatable(space, partial(_lengths, keys=keys))
            count += len(keys)
            size_bytes += sum(map(len, keys)) + sum(length for length in found if isinstance(length, int))
        return Size(count, size_bytes)

    # For the tier that stands before this one -------------------------------------------------------------------

    async def check(self) -> None:
        """Raises TierUnavailable when the server does not answer."""
        await self._repeatable("cache", lambda client: client.ping())

    async def set_rows(self, space: Space, rows: Sequence[Row], prefix: str) -> None:
        """Store many entries at once, under their keys with `prefix` before them."""

        def store(client: Redis) -> Awaitable[list[Any]]:
            pipeline = client.pipeline(transaction=False)
            for row in rows:
                pipeline.set(key_bytes(prefix + row.key), row.value, px=_optional_ms(row.ttl_s))
            return pipeline.execute()

        await self._repeatable(space, store)

    async def end_connections(self, prefix: str, but: str) -> None:
        """End every connection whose name starts with `prefix` and is not `but`.

        A request given up on may still lie in the server's buffers and would be carried out later.
        """
        for connection in await self._repeatable("cache", lambda client: client.client_list()):
            if connection["name"].startswith(prefix) and connection["name"] != but:
                await self._repeatable("cache", partial(_end_connection, number=connection["id"]))

    async def keep_only(self, space: Space, prefix: str, current: str) -> None:
        """Remove every key that starts with `prefix` and not with `current`."""
        spared = key_bytes(current)
        async for keys in self._scan(space, [prefix]):
            old = [key for key in keys if not key.startswith(spared)]
            if old:
                await self._repeatable(space, partial(_unlink, keys=old))

    # How it is done ---------------------------------------------------------------------------------------------

    def _client(self, url: str, number: int, name: str) -> Redis:
        pool = ConnectionPool.from_url(
            url,
            db=number,
            # One limit for the whole request, kept in `_command`, instead of one for each of its reads and waits.
            socket_timeout=None,
            socket_connect_timeout=None,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            client_name=name,
            redis_connect_func=self._greet,
        )
        # Numbers in the address would put every space into one database, and refuse connections that have their turn.
        pool.connection_kwargs["db"] = number
        pool.max_connections = NO_LIMIT
        return Redis(connection_pool=pool)

    async def _greet(self, connection: AbstractConnection) -> None:
        """Sign in, select the database, and make sure that the same server process answers as ever."""
        await connection.on_connect()
        await connection.send_command("INFO", "server")
        info = bytes(await connection.read_response(disable_decoding=True))
        run = next((line for line in info.splitlines() if line.startswith(b"run_id:")), b"").decode()
        if self._server is None:
            self._server = run
        if run != self._server:
            raise exceptions.ConnectionError("the server was restarted")
        if self._failure:
            # Given up while it was being made: what it would be used for is done elsewhere now.
            raise exceptions.ConnectionError(self._failure)

    async def _repeatable(self, space: Space, send: Send[T]) -> T:
        """As `_command`, for a request that may be carried out twice."""
        return await self._command(space, send, is_repeatable=True)

    async def _command(self, space: Space, send: Send[T], *, is_repeatable: bool = False) -> T:
        client = self._clients[space]

        # tenacity awaits what a coroutine function returns, and nothing else.
        async def attempt() -> T:
            return await send(client)

        async with self._turns[space]:
            with self._explained():
                async with _limit(self._timeout_s):
                    try:
                        return await send(client)
                    except exceptions.ConnectionError:
                        if not is_repeatable or self._failure:
                            raise
                    return await _retrying()(attempt)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what the library raises into our own errors. Refuses at once what comes after the first of them."""
        if self._failure:
            raise TierUnavailable(self._failure)
        try:
            yield
        except TimeoutError:
            raise self._given_up(f"no answer within {self._timeout_s:g} s") from None
        except exceptions.RedisError as error:
            # A pipeline puts the whole command before the server's words, and in it keys and values.
            reason = str(error).rpartition("caused error: ")[2].strip("(',)")
            if reason.startswith("WRONGTYPE") or "not an integer" in reason:
                raise _OtherType from None
            # Everything else the server says means that it cannot serve us now: starting, full, read-only, signed out.
            raise self._given_up(reason) from error

    def _given_up(self, reason: str) -> TierUnavailable:
        self._failure = self._failure or reason
        return TierUnavailable(self._failure)

    async def _scan(self, space: Space, prefixes: Sequence[str]) -> AsyncIterator[list[bytes]]:
        """The keys under any of the prefixes, step by step; one that changes meanwhile may come twice or not at all."""
        wanted = tuple(prefix_bytes(prefix) for prefix in prefixes)
        if not wanted:
            return
        pattern = f"{prefixes[0].translate(_GLOB)}*" if len(prefixes) == 1 else None
        cursor = 0
        while True:
            cursor, keys = await self._repeatable(space, partial(_scan_step, cursor=cursor, pattern=pattern))
            found = [key for key in keys if key.startswith(wanted)]
            if found:
                yield found
            if not cursor:
                return


class _OtherType(Exception):
    """The key holds something that the command cannot work on."""


def _unlink(client: Any, *, keys: list[bytes]) -> Awaitable[int]:
    removed: Awaitable[int] = client.unlink(*keys)
    return removed


def _lengths(client: Any, *, keys: list[bytes]) -> Awaitable[list[Any]]:
    """Bytes of each value; an error in the place of one that is no text."""
    pipeline = client.pipeline(transaction=False)
    for key in keys:
        pipeline.strlen(key)
    lengths: Awaitable[list[Any]] = pipeline.execute(raise_on_error=False)
    return lengths


def _scan_step(client: Any, *, cursor: int, pattern: str | None) -> Awaitable[tuple[int, list[bytes]]]:
    step: Awaitable[tuple[int, list[bytes]]] = client.scan(cursor, match=pattern, count=SCAN_KEYS)
    return step


def _end_connection(client: Any, *, number: str) -> Awaitable[int]:
    ended: Awaitable[int] = client.client_kill_filter(_id=number)
    return ended


def _retrying() -> tenacity.AsyncRetrying:
    return tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(exceptions.ConnectionError),
        wait=tenacity.wait_random_exponential(multiplier=RETRY_FIRST_S, max=10 * RETRY_FIRST_S),
        stop=tenacity.stop_after_attempt(ATTEMPTS - 1),
        reraise=True,
    )


@contextlib.asynccontextmanager
async def _limit(limit_s: float) -> AsyncIterator[None]:
    """As `asyncio.timeout`, but only time in which the event loop turned counts.

    A process that was itself held up, by its own work or by others on the machine, then still reads the answers that
    have come meanwhile.
    """
    loop = asyncio.get_running_loop()
    left = LIMIT_STEPS
    timer: asyncio.TimerHandle

    def step() -> None:
        nonlocal left, timer
        left -= 1
        if left:
            timer = loop.call_later(limit_s / LIMIT_STEPS, step)
        else:
            limit.reschedule(loop.time())

    async with asyncio.timeout(None) as limit:
        timer = loop.call_later(limit_s / LIMIT_STEPS, step)
        try:
            yield
        finally:
            timer.cancel()


def _optional_ms(ttl_s: float | None) -> int | None:
    return None if ttl_s is None else ttl_ms(ttl_s)
