"""Texts to vectors, made in a process of their own that starts when first needed and ends when idle."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import sys
import time
from asyncio.subprocess import Process
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Final, Literal, Protocol

from bus.metrics import Figures
from schemas.metrics import MEMORY_ENCODE_SECONDS, MEMORY_ENCODED
from workers.memory.vectors.frames import Encode, EncoderOptions, Failed, Ready, Said, Unusable, Vectors
from workers.memory.vectors.index import COMPONENT_BYTES
from workers.memory.vectors.model_files import EncoderModel
from workers.memory.vectors.unavailable import EncoderUnavailable, TextsNotEncoded
from workers.memory.vectors.wire import NO_BELL, Wire

log = logging.getLogger("olympus.memory")

State = Literal["idle", "loading", "ready", "unusable"]

# Seconds a query waits for the encoder to load, 0.4 s for the default model. Search goes on without meaning then, while
# the loading continues; only the very first start of a model takes longer.
QUERY_WAIT_S: Final = 2.0

# Seconds a loaded encoder has for a query, which takes milliseconds: one that hangs must not make every search hang.
QUERY_ANSWER_S: Final = 10.0

# Seconds it has for other texts: these, and so many for each character that it was asked for and has not answered. The
# default model takes 0.00001 s for a character on two cores; a large one on a small machine that has other work, hundreds
# of times as long.
BULK_ANSWER_S: Final = 60.0
BULK_CHARACTER_S: Final = 0.01

# Seconds a process has to load its model. The first start of a large one reads gigabytes, and prepares them.
LOAD_S: Final = 900.0

# Query vectors kept, least recently used first out: 1.5 KB each.
RECENT_QUERIES: Final = 1_024

# Seconds before an encoder that cannot be loaded is tried again: somebody may install what is missing.
UNUSABLE_S: Final = 30.0

# Seconds before an encoder that died is started again: at once, then twice as long with every death in a row.
_BACKOFF_S: Final = 0.2
_BACKOFF_MAX_S: Final = 10.0

# Seconds before one that hung and was ended is started again, from the second time in a row on: each time costs a query
# QUERY_ANSWER_S, and in between queries are answered by words at once.
_HUNG_S: Final = 30.0

# Seconds the process has to leave once it was told that nothing follows.
_LEAVE_S: Final = 2.0


class Encoder(Protocol):
    """Makes vectors. name: of the model, kept with each vector. dimension: components of a vector.

    Raises EncoderUnavailable; TextsNotEncoded where the cause may lie in the texts.
    """

    name: str
    dimension: int

    async def encode(self, texts: Sequence[str], *, is_query: bool = False) -> list[bytes]:
        """Vectors in the order of the texts: float32 little-endian, of length 1. Raises EncoderUnavailable.

        A query goes ahead of other texts and does not wait long for a model that is still loading.
        """
        ...


class QueryCache(Protocol):
    """A place for query vectors outside this process, for instance a space of the hot tier. Never raises."""

    async def get(self, key: str) -> bytes | None:
        """What was set, None when it is not there."""
        ...

    async def set(self, key: str, value: bytes) -> None:
        """Keep the value for a while."""
        ...


class ProcessEncoder:
    """Encodes in a child process. `close` ends it.

    model: whose files. cache: folder of prepared models. threads: 0 for all cores. idle_s: seconds without work after
    which the process ends; -1 keeps it. The process is started again when it dies, and what was in it is done again,
    once. One that gives no answer in time is ended, and counts as dead. What it encodes is counted in `figures`.
    """

    def __init__(
        self,
        model: EncoderModel,
        cache: Path,
        *,
        threads: int,
        idle_s: float,
        queries: QueryCache | None = None,
        figures: Figures | None = None,
    ) -> None:
        self.name = model.name
        self.dimension = model.dimension
        self._options = EncoderOptions(
            folder=str(model.folder),
            sha256=model.sha256,
            dimension=model.dimension,
            cache=str(cache),
            threads=threads,
        )
        self._idle_s = idle_s
        self._queries = queries
        self._recent: OrderedDict[str, bytes] = OrderedDict()
        self._kept: set[str] = set()
        self._making: dict[str, asyncio.Future[bytes | None]] = {}
        self._child: _Child | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._idle_timer: asyncio.TimerHandle | None = None
        self._deaths = 0
        self._not_before = 0.0
        self._why_not = ""
        self._is_closed = False
        figures = figures or Figures()
        self._encoded = figures.counter(MEMORY_ENCODED)
        self._encode_s = figures.histogram(MEMORY_ENCODE_SECONDS)

    @property
    def state(self) -> State:
        """idle: no process. loading, ready: there is one. unusable: it cannot be had now; see `problem`."""
        child = self._child
        if child is not None and not child.has_ended:
            return "ready" if child.is_ready else "loading"
        return "unusable" if self.problem else "idle"

    @property
    def problem(self) -> str:
        """Why there are no vectors now, "" when nothing is known to be wrong.

        A process that died twice in a row is known to be wrong until one has encoded something.
        """
        is_waiting = asyncio.get_running_loop().time() < self._not_before
        return self._why_not if is_waiting or self._deaths > 1 else ""

    async def load(self) -> None:
        """Return once the model is loaded. Raises EncoderUnavailable."""
        try:
            await self._ready_child(None)
        except _Ended as error:
            raise EncoderUnavailable(str(error)) from error
        self._rest()

    async def encode(self, texts: Sequence[str], *, is_query: bool = False) -> list[bytes]:
        """Vectors in the order of the texts: float32 little-endian, of length 1. Raises EncoderUnavailable."""
        if not is_query:
            return await self._encode(texts, is_query=False)
        return [await self._query(text) for text in texts]

    async def close(self) -> None:
        """End the process; what is being encoded raises EncoderUnavailable."""
        self._is_closed = True
        self._end_child()
        for task in list(self._leaving):
            await task

    # The process -------------------------------------------------------------------------------------------------

    async def _encode(self, texts: Sequence[str], *, is_query: bool) -> list[bytes]:
        if not texts:
            return []
        try:
            return await self._encode_once(texts, is_query)
        except _Ended:
            # The next process gets the same texts. If they are what ended this one, the caller hears of it.
            try:
                return await self._encode_once(texts, is_query)
            except _Ended as error:
                raise TextsNotEncoded(str(error)) from error

    async def _encode_once(self, texts: Sequence[str], is_query: bool) -> list[bytes]:
        child = await self._ready_child(QUERY_WAIT_S if is_query else None)
        self._be_busy()
        characters = 0 if is_query else sum(map(len, texts))
        limit_s = QUERY_ANSWER_S
        if not is_query:
            limit_s = BULK_ANSWER_S + BULK_CHARACTER_S * (child.characters + characters)
        began = time.perf_counter()
        child.characters += characters
        try:
            async with asyncio.timeout(limit_s):
                vectors = await child.encode(texts, is_query)
        except TimeoutError as error:
            how = f"the encoder process was ended: no answer within {limit_s:g} s"
            self._end_hung(child, how)
            raise TextsNotEncoded(how) from error
        finally:
            child.characters -= characters
            self._rest()
        self._deaths = 0
        self._why_not = ""
        self._encoded.add(by=len(texts))
        self._encode_s.observe(time.perf_counter() - began)
        return vectors

    async def _ready_child(self, wait_s: float | None) -> _Child:
        if wait_s is None:
            await self._let_pass()
        child = self._started_child()
        if child.is_ready:
            return child
        try:
            async with asyncio.timeout(wait_s):
                await asyncio.shield(child.ready)
        except TimeoutError as error:
            # It may be that nobody else waits for it, and then nothing would begin its idle time.
            child.ready.add_done_callback(lambda _: self._rest())
            raise EncoderUnavailable("the encoder is still loading") from error
        return child

    async def _let_pass(self) -> None:
        """Wait until a process that died may be started again. Who has time for that need not be told and ask again."""
        wait_s = self._not_before - asyncio.get_running_loop().time()
        if self._deaths and wait_s > 0:
            await asyncio.sleep(wait_s)

    def _started_child(self) -> _Child:
        if self._is_closed:
            raise EncoderUnavailable("the encoder is closed")
        if self._child is None or self._child.has_ended:
            if asyncio.get_running_loop().time() < self._not_before:
                raise EncoderUnavailable(self._why_not)
            child = self._child = _Child(self._options, self._on_ready, self._on_end)
            how = f"the encoder process was ended: not loaded within {LOAD_S:g} s"
            limit = asyncio.get_running_loop().call_later(LOAD_S, self._end_hung, child, how)
            child.ready.add_done_callback(lambda _: limit.cancel())
        return self._child

    def _on_ready(self, ready: Ready) -> None:
        if self._deaths < 2:
            self._why_not = ""
        log.info(
            "encoder loaded",
            extra={
                "action": "memory.encoder.loaded",
                "model": self.name,
                "backend": ready.backend,
                "load_s": round(ready.load_s, 2),
                "prepared": ready.prepared,
            },
        )

    def _on_end(self, child: _Child, how: str, unusable: str) -> None:
        if child is not self._child:
            return
        now = asyncio.get_running_loop().time()
        if unusable:
            # Waiting does not help, so nobody waits.
            self._deaths = 0
            self._why_not, self._not_before = unusable, now + UNUSABLE_S
        else:
            self._deaths += 1
            self._why_not = how
            wait_s = 0.0
            if self._deaths > 1:
                in_a_row = min(_BACKOFF_MAX_S, _BACKOFF_S * 2.0 ** min(self._deaths - 2, 16))
                wait_s = _HUNG_S if child.has_hung else in_a_row
            self._not_before = now + wait_s
        log.warning("encoder ended", extra={"action": "memory.encoder.ended", "reason": self._why_not})

    def _be_busy(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _rest(self) -> None:
        self._be_busy()
        if self._idle_s >= 0 and self._child is not None and not self._child.is_busy:
            self._idle_timer = asyncio.get_running_loop().call_later(self._idle_s, self._end_child)

    def _end_hung(self, child: _Child, how: str) -> None:
        """Kill a process that does not answer; whoever waits for it asks the next one."""
        if not child.has_ended:
            child.kill(how)
            self._let_leave(child)

    def _end_child(self) -> None:
        self._be_busy()
        child, self._child = self._child, None
        if child is not None:
            self._let_leave(child)

    def _let_leave(self, child: _Child) -> None:
        leaving = asyncio.ensure_future(child.end())
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    # Queries asked before ----------------------------------------------------------------------------------------

    async def _query(self, text: str) -> bytes:
        """The query's vector, made once for all who ask at the same time."""
        while (making := self._making.get(text)) is not None:
            vector = await asyncio.shield(making)
            if vector is not None:
                return vector
        vector = self._recent.get(text)
        if vector is not None:
            await self._know(text, vector)
            return vector
        # Made here and not in a task of its own: so the process has the query before anything else gets its turn.
        made: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._making[text] = made
        try:
            vector = await self._make_query(text)
        except EncoderUnavailable as error:
            # For all of them: one after the other they would each wait as long again.
            made.set_exception(error)
            # There may be nobody else.
            made.exception()
            raise
        finally:
            del self._making[text]
            if not made.done():
                # None where this caller left: the next one makes it.
                made.set_result(vector)
        return vector

    async def _make_query(self, text: str) -> bytes:
        vector = None
        if self._queries is not None and self.state != "ready":
            # Loading takes longer than looking, encoding does not.
            vector = await self._queries.get(self._key(text))
        if vector is None or len(vector) != self.dimension * COMPONENT_BYTES:
            (vector,) = await self._encode([text], is_query=True)
        self._recent[text] = vector
        if len(self._recent) > RECENT_QUERIES:
            self._forget(next(iter(self._recent)))
        return vector

    async def _know(self, text: str, vector: bytes) -> None:
        """A query is asked again: it is kept longest here, and from its second time on outside this process."""
        self._recent.move_to_end(text)
        if self._queries is not None and text not in self._kept:
            self._kept.add(text)
            await self._queries.set(self._key(text), vector)

    def _forget(self, text: str) -> None:
        del self._recent[text]
        self._kept.discard(text)

    def _key(self, text: str) -> str:
        return f"vector:{self.name}:{hashlib.sha256(text.encode()).hexdigest()}"


class _Ended(Exception):
    """The process ended with work in it."""


_OnReady = Callable[[Ready], None]
_OnEnd = Callable[["_Child", str, str], None]


class _Child:
    """One process and what it was asked. Calls `on_end` once, with its cause and why it is unusable, if it says so.

    characters: of the texts that are no queries and wait for their vectors. has_hung: it was killed for that.
    """

    def __init__(self, options: EncoderOptions, on_ready: _OnReady, on_end: _OnEnd) -> None:
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.has_ended = False
        self.has_hung = False
        self.characters = 0
        self._asked: dict[int, asyncio.Future[bytes]] = {}
        self._ids = count(1)
        self._options = options
        self._on_ready = on_ready
        self._on_end = on_end
        self._unusable = ""
        self._process: Process | None = None
        self._wire: Wire | None = None
        self._life = loop.create_task(self._live(), name="memory encoder")

    @property
    def is_ready(self) -> bool:
        return self.ready.done() and not self.ready.cancelled() and self.ready.exception() is None

    @property
    def is_busy(self) -> bool:
        return bool(self._asked)

    async def encode(self, texts: Sequence[str], is_query: bool) -> list[bytes]:
        """Raises _Ended, and TextsNotEncoded for texts that the process could not encode."""
        wire = self._wire
        if wire is None or not wire.is_open or self.has_ended:
            raise _Ended("the encoder process ended")
        id = next(self._ids)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked[id] = answer
        try:
            wire.say(Encode(id=id, is_query=is_query, texts=list(texts)))
            vectors = await answer
        finally:
            del self._asked[id]
        size = self._options.dimension * COMPONENT_BYTES
        return [vectors[at : at + size] for at in range(0, len(vectors), size)]

    def kill(self, how: str) -> None:
        """Take it for dead, whenever it really is: a process that waits for a disk may not even hear the signal."""
        self.has_hung = True
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
        self._give_up(how)

    async def end(self) -> None:
        """Tell it that nothing follows and wait until it is gone; kill it when it does not leave."""
        if self._wire is not None:
            self._wire.say_no_more()
        done, _ = await asyncio.wait({self._life}, timeout=_LEAVE_S)
        if not done:
            if self._process is not None and self._process.returncode is None:
                self._process.kill()
            await asyncio.wait({self._life})

    async def _live(self) -> None:
        how = "the encoder process ended"
        try:
            wire = self._wire = await Wire.open(self._on_word)
            try:
                how = await self._talk(wire)
            finally:
                wire.abort()
        except OSError as error:
            how = f"the encoder process could not be started: {error.strerror or error}"
        finally:
            self._give_up(how)

    async def _talk(self, wire: Wire) -> str:
        # A session of its own: Ctrl-C in a terminal and honcho's group signals reach the service, which then decides.
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "workers.memory.vectors.encoder_process",
            "--parent",
            str(os.getpid()),
            "--bell",
            str(wire.bell),
            stdin=wire.far.fileno(),
            stdout=wire.far.fileno(),
            pass_fds=() if wire.bell == NO_BELL else (wire.bell,),
            start_new_session=True,
        )
        try:
            wire.handed_over()
            wire.say(self._options)
            if not await wire.over and process.returncode is None:
                process.kill()
        except BaseException:
            process.kill()
            await process.wait()
            raise
        status = await process.wait()
        return f"the encoder process ended: {f'signal {-status}' if status < 0 else f'status {status}'}"

    def _on_word(self, word: Said) -> None:
        match word:
            case Ready() as ready:
                if not self.ready.done():
                    self.ready.set_result(None)
                self._on_ready(ready)
            case Vectors(id=id, vectors=vectors):
                self._answer(id, vectors)
            case Failed(id=id, reason=reason):
                self._answer(id, TextsNotEncoded(f"texts could not be encoded: {reason}"))
            case Unusable(reason=reason):
                self._unusable = reason

    def _answer(self, id: int, answer: bytes | Exception) -> None:
        asked = self._asked.get(id)
        if asked is None or asked.done():
            return
        if isinstance(answer, bytes):
            asked.set_result(answer)
        else:
            asked.set_exception(answer)

    def _give_up(self, how: str) -> None:
        if self.has_ended:
            return
        self.has_ended = True
        self._on_end(self, how, self._unusable)
        if not self.ready.done():
            error = EncoderUnavailable(self._unusable) if self._unusable else _Ended(how)
            self.ready.set_exception(error)
            # Nobody may wait for it any more.
            self.ready.exception()
        for id in list(self._asked):
            self._answer(id, _Ended(how))
