"""The lines at the end of the screen that are drawn again and again, below those that are there for good; no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

_HIDE: Final = "\x1b[?25l"
_SHOW: Final = "\x1b[?25h"
_CLEAR_LINE: Final = "\x1b[K"
_ERASE_LINE: Final = "\x1b[2K"
_CLEAR_BELOW: Final = "\x1b[J"
# A line whose width was misjudged is cut at the edge, instead of making the region one line higher than it is thought.
_NO_WRAP: Final = "\x1b[?7l"
_WRAP: Final = "\x1b[?7h"
# Terminals that know it show a frame when it is whole; the others ignore it.
_BEGIN: Final = "\x1b[?2026h"
_END: Final = "\x1b[?2026l"


class Line(msgspec.Struct, frozen=True):
    """A line ready for the terminal, and the columns it takes."""

    text: str
    columns: int


class Region:
    """What to write so that the screen shows given lines at its end. The cursor is left at the end of the last one.

    Lines must be narrower than the window, as a full one leaves the cursor on its last character, and fewer than its
    rows: what has left the window at the top can never be drawn over.
    """

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._shown: list[Line] = []

    def draw(self, finished: Sequence[Line], live: Sequence[Line], columns: int) -> str:
        """Put `finished` above for good and `live` below it; "" when nothing changes. columns: the window's width now."""
        if not finished and list(live) == self._shown and columns == self._columns:
            return ""
        same = 0
        if not finished and columns == self._columns:
            while same < min(len(live), len(self._shown)) - 1 and live[same] == self._shown[same]:
                same += 1
        rows = self._rows(same, columns)
        parts = [_BEGIN, _HIDE, "\r", _up(rows - 1)]
        if finished or columns != self._columns or not live:
            parts.append(_erased(rows))
        parts += [f"{line.text}{_CLEAR_LINE}\r\n" for line in finished]
        if live:
            parts += [_NO_WRAP, "\r\n".join(f"{line.text}{_CLEAR_LINE}" for line in live[same:]), _CLEAR_BELOW, _WRAP]
        parts.append(_END)
        self._shown, self._columns = list(live), columns
        return "".join(parts)

    def end(self, finished: Sequence[Line], columns: int) -> str:
        """Take the region away; `finished` stays, and the cursor stands below it at the beginning of a line."""
        return self.draw(finished, [], columns) + _SHOW

    def _rows(self, first: int, columns: int) -> int:
        """Rows from shown line `first` to the one of the cursor.

        In a window made narrower the terminal has wrapped the lines that are too long for it, and moved the cursor along.
        """
        return max(sum(max(1, -(-line.columns // columns)) for line in self._shown[first:]), 1)


def _up(rows: int) -> str:
    return f"\x1b[{rows}A" if rows > 0 else ""


def _erased(rows: int) -> str:
    """Empty rows from the cursor's on, which stays where it is.

    One by one: a terminal that is told to clear everything below its first row may keep that in its scrollback (tmux does).
    """
    return _ERASE_LINE + f"\r\x1b[1B{_ERASE_LINE}" * (rows - 1) + _up(rows - 1)
