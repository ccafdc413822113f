"""The service's end of the socket to its encoder process. What is said over it: frames.py."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Callable
from typing import Final, Self, cast

import msgspec

from workers.memory.vectors.frames import LENGTH_BYTES, Said, decode_said, frame

# Stands for a bell where the system has none.
NO_BELL: Final = -1


class Wire(asyncio.Protocol):
    """Says words to the process, and calls `on_word` with each of its own. `open` makes one.

    far: the process's end of the socket, for `handed_over` to close. bell: an eventfd that is rung once for each word
    and once at the end, see `encoder_process.Words`. over: done once the process has closed its end; False where it said
    what is no word. What it said last may be lost where a word crosses it that it no longer reads.
    """

    def __init__(self, far: socket.socket, on_word: Callable[[Said], None]) -> None:
        self.far = far
        self.bell = NO_BELL
        self.over: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._on_word = on_word
        self._unread = bytearray()
        self._has_said_all = False
        self._is_garbled = False

    @classmethod
    async def open(cls, on_word: Callable[[Said], None]) -> Self:
        """A new one, of which the process has no end yet. Raises OSError."""
        near, far = socket.socketpair()
        wire = cls(far, on_word)
        try:
            if sys.platform == "linux":
                wire.bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
            await asyncio.get_running_loop().create_unix_connection(lambda: wire, sock=near)
        except BaseException:
            near.close()
            wire.connection_lost(None)
            raise
        return wire

    def handed_over(self) -> None:
        """The process has its end now, or never will: with the last copy of it the conversation is over."""
        self.far.close()

    @property
    def is_open(self) -> bool:
        """Whether the process may still hear."""
        return not (self._has_said_all or self._transport.is_closing())

    def say(self, word: msgspec.Struct) -> None:
        """Send one word, before the bell rings; nothing where the process no longer hears."""
        if self.is_open:
            self._transport.write(frame(word))
            self._ring()

    def say_no_more(self) -> None:
        """Tell the process that no word follows; what it still has to say is heard."""
        if self.is_open:
            self._has_said_all = True
            # Where it has closed its end, some systems have nothing left to shut.
            with contextlib.suppress(OSError):
                self._transport.write_eof()
            self._ring()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def _ring(self) -> None:
        if self.bell != NO_BELL:
            os.eventfd_write(self.bell, 1)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio.Transport, they only have its methods.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        unread = self._unread
        unread += data
        while len(unread) >= LENGTH_BYTES:
            end = LENGTH_BYTES + int.from_bytes(unread[:LENGTH_BYTES], "big")
            if len(unread) < end:
                return
            try:
                word = decode_said(unread[LENGTH_BYTES:end])
            except msgspec.DecodeError:
                self._is_garbled = True
                self._transport.abort()
                return
            del unread[:end]
            self._on_word(word)

    def connection_lost(self, exc: Exception | None) -> None:
        self.handed_over()
        if self.bell != NO_BELL:
            os.close(self.bell)
            self.bell = NO_BELL
        if not self.over.done():
            self.over.set_result(not self._is_garbled)
