"""Turns the bytes of tokens into text that may be shown: whole characters only, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextAssembler:
    """Text of one generation.

    Bytes of an unfinished character are held until the rest comes. Text that may be the beginning of a stop string is
    held until it cannot be one any more, so that a stop string is never shown in part, however tokens cut it.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.is_stopped = False
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, piece: bytes) -> str:
        """Add the bytes of one token; return the text that became certain. Sets `is_stopped` at a stop string."""
        return self._release(self._decoder.decode(piece))

    def finish(self) -> str:
        """What was held when the generation ends by itself; an unfinished character becomes U+FFFD."""
        text = self._release(self._decoder.decode(b"", final=True))
        if self.is_stopped:
            return text
        held, self._held = self._held, ""
        return text + held

    def _release(self, text: str) -> str:
        if not self._stop or self.is_stopped:
            return text if not self.is_stopped else ""
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return text[: min(found)]
        keep = max(overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
