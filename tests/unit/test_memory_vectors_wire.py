"""The socket to the encoder process, its far end held by the test; on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import sys
from collections.abc import Awaitable, Callable
from typing import BinaryIO

import pytest
import uvloop

from workers.memory.vectors.frames import LENGTH_BYTES, Encode, Failed, Said, Vectors, decode_encode, frame
from workers.memory.vectors.wire import NO_BELL, Wire

on_both_loops = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])

_Run = Callable[[Awaitable[None]], None]


def _read_word(stream: BinaryIO) -> Encode:
    return decode_encode(stream.read(int.from_bytes(stream.read(LENGTH_BYTES), "big")))


def _query(text: str) -> Encode:
    return Encode(id=1, is_query=True, texts=[text])


@on_both_loops
def test_word_lies_in_the_socket_when_the_bell_rings(run: _Run) -> None:
    """Whoever the bell wakes would else wait a second time."""

    async def main() -> None:
        wire = await Wire.open(lambda _: None)
        wire.say(_query("the key"))
        wire.say(_query("the lock"))
        assert select.select([wire.far], [], [], 0)[0]
        if sys.platform == "linux":
            assert [os.eventfd_read(wire.bell), os.eventfd_read(wire.bell)] == [1, 1]
            assert not select.select([wire.bell], [], [], 0)[0]
        assert wire.far.recv(1 << 16) == frame(_query("the key")) + frame(_query("the lock"))
        wire.abort()
        assert await wire.over

    run(main())


@on_both_loops
def test_opening_that_is_given_up_leaves_no_file_open(run: _Run) -> None:
    async def main() -> None:
        # A loop opens files of its own with its first connection.
        (await Wire.open(lambda _: None)).abort()
        await asyncio.sleep(0.01)
        before = sorted(os.listdir("/dev/fd"))
        for turns in range(4):
            opening = asyncio.ensure_future(Wire.open(lambda _: None))
            for _ in range(turns):
                await asyncio.sleep(0)
            opening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                (await opening).abort()
            await asyncio.sleep(0.01)
        assert sorted(os.listdir("/dev/fd")) == before

    run(main())


@on_both_loops
def test_word_that_the_socket_does_not_hold_arrives_whole(run: _Run) -> None:
    """And in order, while the process is slow to read."""

    async def main() -> None:
        heard: list[Said] = []
        wire = await Wire.open(heard.append)
        long = _query("w" * 3_000_000)
        wire.say(long)
        wire.say(_query("short"))
        far = wire.far.dup()
        words = far.makefile("rb")
        wire.handed_over()
        assert await asyncio.to_thread(_read_word, words) == long
        assert await asyncio.to_thread(_read_word, words) == _query("short")
        assert wire.is_open
        wire.say_no_more()
        assert not wire.is_open
        assert await asyncio.to_thread(words.read) == b""
        far.sendall(frame(Failed(id=1, reason="late, but heard")))
        words.close()
        far.close()
        assert await wire.over
        assert heard == [Failed(id=1, reason="late, but heard")]
        assert wire.bell == NO_BELL

    run(main())


@on_both_loops
def test_words_are_taken_apart_however_they_come(run: _Run) -> None:
    """And to who has said all of them and gone, nothing is said."""

    async def main() -> None:
        heard: list[Said] = []
        words = [Vectors(id=1, vectors=b"\1" * 700_000), Failed(id=2, reason="no"), Vectors(id=3, vectors=b"")]
        wire = await Wire.open(heard.append)
        data = b"".join(map(frame, words))
        for piece in (data[:1], data[1:5], data[5:9], data[9:]):
            await asyncio.to_thread(wire.far.sendall, piece)
            await asyncio.sleep(0.01)
        wire.handed_over()
        assert await wire.over
        wire.say(_query("the key"))
        wire.say_no_more()
        assert heard == words

    run(main())


@on_both_loops
@pytest.mark.parametrize("garbage", [b"\0\0\0\2{}", frame(_query("a question"))], ids=["no struct", "no answer"])
def test_what_is_no_word_ends_it(run: _Run, garbage: bytes) -> None:
    async def main() -> None:
        heard: list[Said] = []
        wire = await Wire.open(heard.append)
        wire.far.sendall(frame(Failed(id=1, reason="first")) + garbage + frame(Failed(id=2, reason="after it")))
        assert not await wire.over
        assert not wire.is_open
        assert heard == [Failed(id=1, reason="first")]
        assert wire.far.fileno() == -1

    run(main())
