"""Brings the vectors of chunks into the index: what the table `outbox` orders is encoded, stored and ticked off.

    outbox --> pages --> encoder (another process, always pages ahead) --> index --> ticked off in one write

A page is ticked off only after the index has it, so that a crash in between repeats work and loses none. While the
outbox is empty neither the encoder nor the index is opened. A page that cannot be encoded is halved until the text that
is the cause stands alone; that one is noted, and the others go on.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from schemas.errors import BusError
from workers.memory.outcome import Outcome
from workers.memory.records import Records
from workers.memory.vectors import agreement
from workers.memory.vectors.encoder import Encoder
from workers.memory.vectors.index import Point, VectorIndex
from workers.memory.vectors.unavailable import IndexTaken, TextsNotEncoded

log = logging.getLogger("olympus.memory")

# Orders read at once. Sorted by length before they are cut into pages, they waste less on padding: pages cut as they come
# take 4 % more time per text.
READ_ORDERS: Final = 1_024

# Chunks encoded and stored together, and their characters: 0.35 s of work for the encoder, and 10 ms for the service, in
# which a search waits.
PAGE_CHUNKS: Final = 256
PAGE_CHARACTERS: Final = 32_768

# Pages the encoder has at once: the one that it works on, and two so that it never waits for us.
_PAGES_AHEAD: Final = 3

# Seconds without a commit after which the outbox is looked at all the same.
POLL_S: Final = 30.0

# Seconds before work that failed is tried again, at first and at most.
RETRY_S: Final = 0.5
RETRY_MAX_S: Final = 30.0


# Encoded after texts that could not be: where this fails too, they are not the cause.
_HARMLESS_TEXT: Final = "hello"


class _Row(NamedTuple):
    """One order. `text` is None for a chunk that is gone."""

    sequence: int
    chunk_id: int
    action: str
    text: str | None
    ns: str
    kind: str
    speaker: str | None
    at: float

    @property
    def is_to_embed(self) -> bool:
        return self.action == "embed" and self.text is not None


class _Page(NamedTuple):
    """Orders, and the vectors of those to embed on their way."""

    rows: list[_Row]
    encoding: asyncio.Task[list[bytes]]


class OutboxPump:
    """Works through the outbox. `wake` after commits; `run_forever` does the work.

    storing: held while index and table are changed together; whoever holds it sees them agree.
    problem: why the work stands still, "" while it does not.
    is_index_taken: the index holds the vectors of another database, so nobody may search it.
    """

    def __init__(self, records: Records, encoder: Encoder, index: VectorIndex) -> None:
        self.storing = asyncio.Lock()
        self.problem = ""
        self.is_index_taken = False
        self._records = records
        self._encoder = encoder
        self._index = index
        self._woken = asyncio.Event()
        self._is_adopted = False
        self._is_settled = False
        self._is_index_in_use = False
        self._is_to_begin_anew = False

    def wake(self) -> None:
        """There may be something new."""
        self._woken.set()

    def index_is_used(self) -> None:
        """Somebody searches the index, so it must hold what the table says: see that it does, once."""
        if not self._is_index_in_use:
            self._is_index_in_use = True
            self._woken.set()

    def begin_anew(self) -> None:
        """Database or index was replaced: forget what was read of them, and see again whether they agree."""
        self._is_to_begin_anew = True
        # Whoever waits for the new beginning must not take what was wrong before for its end.
        self.problem = ""
        self._woken.set()

    async def run_forever(self) -> None:
        """Embed until cancelled. What fails stands in `problem` and is tried again, more and more seldom."""
        wait_s = RETRY_S
        while True:
            self._woken.clear()
            try:
                await self._work()
            except BusError as error:
                self.is_index_taken = self.is_index_taken or isinstance(error, IndexTaken)
                self._say(error.message)
                # What is back after a failure may have lost something.
                self._is_settled = False
                await asyncio.sleep(wait_s)
                wait_s = min(RETRY_MAX_S, 2 * wait_s)
                continue
            self._say("")
            wait_s = RETRY_S
            try:
                async with asyncio.timeout(POLL_S):
                    await self._woken.wait()
            except TimeoutError:
                # Nothing was heard; look all the same.
                continue

    def _say(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.warning("vectors wait", extra={"action": "memory.vectors.waiting", "reason": problem})
        elif self.problem and not problem:
            log.info("vectors go on", extra={"action": "memory.vectors.going_on"})
        self.problem = problem

    async def _work(self) -> None:
        is_done = False
        while not is_done:
            if self._is_to_begin_anew:
                self._is_to_begin_anew = self._is_adopted = self._is_settled = False
            if not self._is_adopted:
                await agreement.adopt_model(self._records, self._index, self._encoder.name)
                self._is_adopted = True
            if not self._is_settled and (self._is_index_in_use or await self._records.read(_has_orders)):
                async with self.storing:
                    await agreement.settle(self._records, self._index, self._encoder.name)
                self._is_settled = True
                self.is_index_taken = False
            if not self._is_settled:
                # What is written from now on wakes this again.
                return
            is_done = await self._drain()

    async def _drain(self) -> bool:
        """Everything ordered so far; False when orders are left that were overtaken while they were carried out."""
        ahead: deque[_Page] = deque()
        orders = _Orders(self._records)
        is_done = True
        try:
            while not self._is_to_begin_anew:
                while len(ahead) < _PAGES_AHEAD and (rows := await orders.next_page()):
                    ahead.append(_Page(rows, asyncio.create_task(self._encode(rows), name="memory vectors page")))
                if not ahead:
                    return is_done
                try:
                    is_done = await self._store(ahead[0]) and is_done
                except TextsNotEncoded as error:
                    # The others may have failed with it; when it is their turn, they are tried again.
                    await asyncio.wait([page.encoding for page in ahead])
                    is_done = await self._store_apart(ahead[0].rows, error.message) and is_done
                ahead.popleft()
        finally:
            for page in ahead:
                page.encoding.cancel()
            await asyncio.gather(*(page.encoding for page in ahead), return_exceptions=True)
        return False

    async def _encode(self, rows: Sequence[_Row]) -> list[bytes]:
        texts = [embedded_text(row.text or "", row.speaker, row.at) for row in rows if row.is_to_embed]
        return await self._encoder.encode(texts) if texts else []

    async def _store(self, page: _Page) -> bool:
        """True when every order of the page is ticked off."""
        return await self._keep(page.rows, await page.encoding)

    async def _store_apart(self, rows: list[_Row], reason: str) -> bool:
        """Store a page that could not be encoded: alone, in halves where it fails again, without the text that does.

        True when every order is ticked off. Raises EncoderUnavailable where the encoder is the cause and not a text.
        """
        log.warning(
            "texts not encoded, looking for the cause",
            extra={"action": "memory.vectors.not_encoded", "chunks": len(rows), "reason": reason},
        )
        is_done = True
        parts = [rows]
        while parts and not self._is_to_begin_anew:
            part = parts.pop()
            try:
                vectors = await self._encode(part)
            except TextsNotEncoded as error:
                await self._encoder.encode([_HARMLESS_TEXT])
                middle = len(part) // 2
                if middle:
                    parts += [part[middle:], part[:middle]]
                else:
                    is_done = await self._do_without(part[0], error.message) and is_done
            else:
                is_done = await self._keep(part, vectors) and is_done
        return is_done and not parts

    async def _do_without(self, row: _Row, reason: str) -> bool:
        """Note that a text has no vector. True when its order is ticked off."""
        log.warning(
            "text cannot be encoded, found by its words only",
            extra={
                "action": "memory.vectors.unencodable",
                "chunk": row.chunk_id,
                "kind": row.kind,
                "model": self._encoder.name,
                "reason": reason,
            },
        )
        async with self.storing:
            await self._index.remove([row.chunk_id])
            return await self._tick_off([row], is_encoded=False)

    async def _keep(self, rows: Sequence[_Row], vectors: Sequence[bytes]) -> bool:
        """Store the vectors of `rows`, remove what they order to, and tick them off: True when all of them are."""
        embedded = [row for row in rows if row.is_to_embed]
        points = [Point(row.chunk_id, vector, row.ns, row.kind) for row, vector in zip(embedded, vectors, strict=True)]
        async with self.storing:
            await self._index.upsert(points)
            await self._index.remove(await self._gone(rows))
            return await self._tick_off(rows)

    async def _gone(self, rows: Sequence[_Row]) -> list[int]:
        """Chunks that are to be removed and are not there.

        One that is there bears an id of another database's, which was restored: it has an order of its own to be embedded.
        """
        ids = [row.chunk_id for row in rows if row.action == "remove"]
        return await self._records.read(lambda connection: _absent(connection, ids)) if ids else []

    async def _tick_off(self, rows: Sequence[_Row], *, is_encoded: bool = True) -> bool:
        """Note in table and index that the orders are carried out; True when none of them stays."""
        model = self._encoder.name
        ticked: _Ticked = await self._records.write(
            lambda connection, now: _tick_off(connection, rows, model, is_encoded=is_encoded)
        )
        # After the table: an index that is a page behind has lost something, one that is ahead belongs to a newer table.
        if ticked.mark is not None:
            await self._index.write_mark(str(ticked.mark))
        return ticked.is_done


class _Orders:
    """The orders of the outbox, page by page: in their order, but what is new overtakes the documents before it.

    Somebody asks for what was just said; a document of a thousand chunks takes half a minute.
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        self._pages: deque[list[_Row]] = deque()
        self._read_to = 0
        self._seen_to = 0
        self._overtook: set[int] = set()

    async def next_page(self) -> list[_Row]:
        """Orders to carry out now, empty when there are none left."""
        if self._pages and any(row.kind == "document" for row in self._pages[0]):
            await self._overtake()
        while not self._pages:
            rows = await self._records.read(lambda connection: _read_orders(connection, self._read_to))
            if not rows:
                return []
            self._read_to = rows[-1].sequence
            self._seen_to = max(self._seen_to, self._read_to)
            self._pages.extend(_pages([row for row in rows if row.sequence not in self._overtook]))
            self._overtook = {sequence for sequence in self._overtook if sequence > self._read_to}
        return self._pages.popleft()

    async def _overtake(self) -> None:
        rows = await self._records.read(lambda connection: _read_orders(connection, self._seen_to))
        if rows:
            self._seen_to = rows[-1].sequence
        # Not what is to be removed: that comes after what was ordered of it before.
        first = [row for row in rows if row.is_to_embed and row.kind != "document"]
        self._overtook.update(row.sequence for row in first)
        self._pages.extendleft(reversed(list(_pages(first))))


def embedded_text(text: str, speaker: str | None, at: float) -> str:
    """What is encoded of a chunk. What somebody said is encoded with who said it and on which day.

    By meaning alone, 41 instead of 34 % of the turns that answer a question are then among the first ten
    (docs/adr/0009). Days are those of this machine's time zone.
    """
    if speaker is None:
        return text
    return f"{datetime.fromtimestamp(at).date().isoformat()} {speaker}: {text}"


def _has_orders(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM outbox LIMIT 1").fetchone() is not None


def _read_orders(connection: sqlite3.Connection, after: int) -> list[_Row]:
    rows = connection.execute(
        "SELECT sequence, chunk_id, action, text, ns, kind, speaker, at"
        " FROM outbox LEFT JOIN chunks ON chunks.id = outbox.chunk_id"
        " WHERE sequence > ? ORDER BY sequence LIMIT ?",
        (after, READ_ORDERS),
    )
    return [_Row(*row) for row in rows]


def _pages(orders: Sequence[_Row]) -> Iterator[list[_Row]]:
    """The orders in pages, the shortest texts first. What they order of one chunk is the same in any order.

    An id is never given twice, and a chunk that is to be removed has no text any more.
    """
    page: list[_Row] = []
    characters = 0
    for row in sorted(orders, key=lambda row: len(row.text or "")):
        length = len(row.text or "")
        if page and (len(page) == PAGE_CHUNKS or characters + length > PAGE_CHARACTERS):
            yield page
            page, characters = [], 0
        page.append(row)
        characters += length
    if page:
        yield page


def _absent(connection: sqlite3.Connection, ids: Sequence[int]) -> list[int]:
    return [id for id in ids if connection.execute("SELECT 1 FROM chunks WHERE id = ?", (id,)).fetchone() is None]


class _Ticked(NamedTuple):
    """is_done: no order stays. mark: what the index has to bear now."""

    is_done: bool
    mark: agreement.Mark | None


def _tick_off(connection: sqlite3.Connection, rows: Sequence[_Row], model: str, *, is_encoded: bool) -> Outcome:
    """Note what is in the index. An order whose chunk has become another one meanwhile stays.

    That happens when a database takes the place of this one: its orders may bear the same numbers. is_encoded: False for
    texts that `model` cannot encode.
    """
    is_done = True
    made_by = model if is_encoded else agreement.UNENCODABLE
    agreement.forget_unencodable(connection, [row.chunk_id for row in rows])
    for row in rows:
        if row.is_to_embed:
            marked = connection.execute(
                "UPDATE chunks SET vector_model = ? WHERE id = ? AND text = ?", (made_by, row.chunk_id, row.text)
            )
            if marked.rowcount == 0:
                is_done = False
                continue
            if not is_encoded:
                agreement.note_unencodable(connection, row.chunk_id, model)
        connection.execute(
            "DELETE FROM outbox WHERE sequence = ? AND chunk_id = ? AND action = ?",
            (row.sequence, row.chunk_id, row.action),
        )
    return Outcome(_Ticked(is_done, agreement.count_page(connection)), [])
