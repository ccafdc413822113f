"""Text broken into lines of a given number of terminal columns, at words where it can be; also while it grows.

Knows no terminal. Columns are those of `bus.cli.output.columns_of`.
"""

from __future__ import annotations

import re
from typing import Final

from bus.cli.output import columns_of, printable

_TAB_COLUMNS: Final = 4

# Fewer columns hold one or two words each, and a text in them is hard to read.
_ROOM_COLUMNS: Final = 24

# How far a row goes on to the right of its beginning where its last column begins too far to the right.
_HANG_COLUMNS: Final = 4

# What is between two columns of a row, and before an indented one.
_GAP: Final = re.compile(r"(?:^|(?<=\S) ) +(?=\S)")

# Lines of a paragraph that is still growing after which those before its last one are not made anew: a frame of eight
# answers of 100 KB without a line break took 0.3 s and takes 1 ms (2.5 GHz).
_SETTLED_LINES: Final = 64

# Words with the blanks before them.
_WORD: Final = re.compile(r"\s*\S+|\s+")


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns, 1 or more. Line breaks and indentation stay; other control characters are spelt out."""
    lines: list[str] = []
    for paragraph in text.replace("\r\n", "\n").split("\n"):
        lines += _wrap_paragraph(printable(paragraph.expandtabs(_TAB_COLUMNS)), width)
    return lines


def wrap_hanging(text: str, width: int) -> list[str]:
    """As `wrap`, but what goes on of a row of columns stands below its last column, where that leaves room for words."""
    lines: list[str] = []
    for line in text.split("\n"):
        shown = printable(line.expandtabs(_TAB_COLUMNS)).rstrip()
        first, *rest = _wrap_paragraph(shown, width)
        lines.append(first)
        if rest:
            *_, gap = [0, *(found.end() for found in _GAP.finditer(shown))]
            hang = columns_of(shown[:gap])
            hang = hang if not gap or width - hang >= _ROOM_COLUMNS else min(_HANG_COLUMNS, width // 2)
            lines += [" " * hang + each for each in wrap(shown[len(first) :].lstrip(), width - hang)]
    return lines


def _wrap_paragraph(paragraph: str, width: int) -> list[str]:
    if columns_of(paragraph) <= width:
        return [paragraph.rstrip()]
    lines: list[str] = []
    current, used = "", 0
    for word in _WORD.findall(paragraph):
        columns = columns_of(word)
        if used + columns > width and current.strip():
            lines.append(current.rstrip())
            word = word.lstrip()
            current, used, columns = "", 0, columns_of(word)
        if used + columns > width:
            *whole, word = _cut(current + word, width)
            lines += whole
            current, used = "", 0
            columns = columns_of(word)
        current += word
        used += columns
    return [*lines, current.rstrip()]


def _cut(word: str, width: int) -> list[str]:
    """A word that is too long for a line, in pieces that are not."""
    pieces, piece, used = [], "", 0
    for character in word:
        columns = columns_of(character)
        if columns > width:
            # Two columns wide, in a window of one.
            character, columns = "?", 1
        if used + columns > width:
            pieces.append(piece)
            piece, used = "", 0
        piece += character
        used += columns
    return [*pieces, piece]


class Flow:
    """A text that grows: only the end of its last paragraph is wrapped anew when something is added."""

    def __init__(self, text: str = "") -> None:
        self._paragraphs: list[str] = []
        self._open = ""
        self._width = 0
        # Lines of the paragraphs before the open one, at that width.
        self._lines: list[str] = []
        self._wrapped = 0
        # Lines of the open one that nothing added can change, and the characters of it that they hold.
        self._settled: list[str] = []
        self._settled_characters = 0
        self.add(text)

    @property
    def text(self) -> str:
        """All of it."""
        return "\n".join([*self._paragraphs, self._open])

    def add(self, text: str) -> None:
        """Put `text` at its end."""
        *whole, self._open = (self._open + text).replace("\r\n", "\n").split("\n")
        self._paragraphs += whole

    def lines(self, width: int) -> list[str]:
        """The lines at this width; the one after the last line break is there too, even if it is empty."""
        if width != self._width:
            self._width, self._lines, self._wrapped = width, [], 0
            self._settled, self._settled_characters = [], 0
        for paragraph in self._paragraphs[self._wrapped :]:
            self._lines += wrap(paragraph, width)
            # It was the open one.
            self._settled, self._settled_characters = [], 0
        self._wrapped = len(self._paragraphs)
        rest = self._rest(width)
        return [*self._lines, *self._settled, *rest]

    def _rest(self, width: int) -> list[str]:
        """The lines of the open paragraph that are not settled; settles all but the last one of many."""
        rest = self._open[self._settled_characters :]
        if "\t" in rest:
            # Where it leads to depends on all that stands before it.
            self._settled, self._settled_characters = [], 0
            return wrap(self._open, width)
        lines = wrap(rest, width)
        # The last line goes on. Where it is not what the text ends with, something in it was spelt out.
        end = rest.rstrip()
        if len(lines) <= _SETTLED_LINES or not lines[-1] or not end.endswith(lines[-1]):
            return lines
        self._settled += lines[:-1]
        self._settled_characters += len(end) - len(lines[-1])
        return lines[-1:]
