"""One reader of the tap: what waits for it, and the server-sent events it gets; a slow one loses the oldest and is told."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any, Final

from bus.authorize import KNOWN_S
from bus.subscription import Missed
from schemas.errors import BusError, Retryable
from workers.gateway.console.feeds import Item, Kind, written
from workers.gateway.console.sight import Sight
from workers.gateway.rest.response import problem_body
from workers.gateway.rest.streaming import HEARTBEAT_S

# What waits for one reader at most, events and bytes; with 64 readers 64 MiB.
_WAITING: Final = 1_000
_WAITING_BYTES: Final = 1024 * 1024

# Events written at once, and seconds between two writes: 1,000/s to one reader, more than any page can show.
_AT_ONCE: Final = 100
_BETWEEN_S: Final = 0.1

# Seconds after which a reader's rights are looked at again.
_CHECK_S: Final = 5.0

# Subjects for which it is remembered whether the reader wants them.
_REMEMBERED: Final = 1_000

# No subject of the bus: what the tap itself tells.
_NOTE: Final = ""

_REQUEST: Final = b"event: request\n"

Look = Callable[[], Awaitable[Sight]]


class Lost:
    """Events that a reader does not get, of one kind and for one reason."""

    __slots__ = ("count", "first_seq", "last_seq")

    def __init__(self) -> None:
        self.count = 0
        self.first_seq = 0
        self.last_seq = 0

    def add(self, first_seq: int, last_seq: int, count: int) -> None:
        """`count` more, between two sequence numbers."""
        self.count += count
        self.first_seq = min(self.first_seq or first_seq, first_seq)
        self.last_seq = max(self.last_seq, last_seq)


class Tap:
    """Pieces of a response that does not end by itself. wants: whether a subject is asked for. look: the reader's rights now.

    hello: what the reader is told first. leave: called once the reader has gone. It is a `feeds.Listener`.
    """

    def __init__(
        self,
        *,
        user: str,
        wants: Callable[[str], bool],
        sight: Sight,
        look: Look,
        leave: Callable[[Tap], None],
        hello: dict[str, Any],
    ) -> None:
        self.user = user
        self._wants = lru_cache(maxsize=_REMEMBERED)(wants)
        self._sight = sight
        self._look = look
        self._leave = leave
        self._waiting: deque[Item] = deque()
        self._bytes = 0
        # Told before what waits: notes whose place in the row was lost, and what else was.
        self._notes: list[bytes] = [written("hello", hello)]
        self._lost: dict[tuple[Kind, str], Lost] = {}
        self._ending: bytes | None = None
        self._is_over = False
        self._is_away = False
        self._news = asyncio.Event()
        self._write_at = 0.0
        self._checked_at = self._known_at = time.monotonic()

    # What the feeds call

    def take(self, item: Item) -> None:
        """Keep an item for the reader, if it is for it."""
        if self._wants(item.subject) and self._sight.shows(item.scope, item.namespaces):
            self._keep(item)

    def miss(self, kind: Kind, missed: Missed) -> None:
        """The bus lost some: how many of them this reader would have seen nobody knows."""
        count = missed.last_seq - missed.first_seq + 1
        self._lost.setdefault((kind, "bus"), Lost()).add(missed.first_seq, missed.last_seq, count)
        self._news.set()

    def link(self, broken: str | None) -> None:
        """The broker went or came. Two feeds may tell the same."""
        if self._is_away is (broken is not None):
            return
        self._is_away = broken is not None
        now = time.time()
        text = written("back", {"at": now}) if broken is None else written("away", {"at": now, "reason": broken})
        self._keep(Item(_NOTE, "", None, 0, text))
        # Who may see what may have changed meanwhile.
        self._checked_at = 0.0

    def fail(self, error: BusError) -> None:
        """End with an error."""
        self._end(b"event: error\ndata: %b\n\n" % problem_body(error))

    def stop(self, reason: str) -> None:
        """End in good order."""
        self._end(written("end", {"reason": reason}))

    def _end(self, text: bytes) -> None:
        self._ending = self._ending or text
        self._news.set()

    def _keep(self, item: Item) -> None:
        self._waiting.append(item)
        self._bytes += len(item.text)
        while len(self._waiting) > _WAITING or (self._bytes > _WAITING_BYTES and len(self._waiting) > 1):
            oldest = self._waiting.popleft()
            self._bytes -= len(oldest.text)
            if oldest.subject == _NOTE:
                self._notes.append(oldest.text)
            else:
                kind: Kind = "requests" if oldest.text.startswith(_REQUEST) else "events"
                self._lost.setdefault((kind, "console"), Lost()).add(oldest.seq, oldest.seq, 1)
        self._news.set()

    # What the response calls

    def __aiter__(self) -> Tap:
        return self

    async def __anext__(self) -> bytes:
        if self._is_over:
            raise StopAsyncIteration
        while not (self._notes or self._waiting or self._lost or self._ending):
            self._news.clear()
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._news.wait()
            except TimeoutError:
                await self._check()
                if self._ending is None:
                    return b": waiting\n\n"
        if (early_s := self._write_at - time.monotonic()) > 0:
            await asyncio.sleep(early_s)
        if self._waiting and not self._is_away:
            await self._check()
        self._write_at = time.monotonic() + _BETWEEN_S
        return self._piece()

    async def aclose(self) -> None:
        """The reader has gone."""
        self._is_over = True
        self._leave(self)

    def _piece(self) -> bytes:
        parts, self._notes = self._notes, []
        parts += [
            written(
                "missed",
                {
                    "count": lost.count,
                    "first_seq": lost.first_seq,
                    "last_seq": lost.last_seq,
                    "where": where,
                    "what": kind,
                },
            )
            for (kind, where), lost in self._lost.items()
        ]
        self._lost.clear()
        for _ in range(min(_AT_ONCE, len(self._waiting))):
            item = self._waiting.popleft()
            self._bytes -= len(item.text)
            parts.append(item.text)
        if self._ending is not None and not self._waiting:
            self._is_over = True
            parts.append(self._ending)
        return b"".join(parts)

    async def _check(self) -> None:
        """Look at the reader's rights, if it is time; what it may no longer see goes, and so does a reader without any."""
        now = time.monotonic()
        if self._is_away or now - self._checked_at < _CHECK_S:
            return
        try:
            self._sight = await self._look()
        except Retryable as error:
            # The service that knows is away: what it said last holds as long as it does everywhere.
            if time.monotonic() - self._known_at > KNOWN_S + _CHECK_S:
                self._refuse(error)
            self._checked_at = time.monotonic()
            return
        except BusError as error:
            self._refuse(error)
            return
        self._checked_at = self._known_at = time.monotonic()
        seen = [one for one in self._waiting if one.subject == _NOTE or self._sight.shows(one.scope, one.namespaces)]
        self._waiting = deque(seen)
        self._bytes = sum(len(one.text) for one in seen)

    def _refuse(self, error: BusError) -> None:
        self._waiting.clear()
        self._bytes = 0
        self.fail(error)
