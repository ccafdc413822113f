"""Draws what happens while a question is answered: text by blocks, and talk about it in quiet lines; no I/O.

What is finished is given out once, for good; the unfinished block and a line of state are drawn anew for each frame.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from typing import Final

import msgspec
from rich.console import Console
from rich.style import Style
from rich.text import Text

from bus.cli.chat.blocks import Block, Splitter
from bus.cli.chat.events import Answered, Away, Back, Event, Failed, Stopped, ToolCalled
from bus.cli.chat.events import Text as Piece
from bus.cli.chat.region import Line
from bus.cli.chat.wording import Talk, Tone, talk_of
from bus.cli.output import columns_of, fit, one_line, printable

_STYLES: Final = {
    Tone.QUIET: Style(dim=True),
    Tone.WARNING: Style(color="yellow"),
    Tone.WRONG: Style(color="red", bold=True),
}
_SPEAKER: Final = Style(color="magenta", bold=True)

# Rows of an unfinished block that are shown, at most; the rest appears when it is finished. A window made lower pushes what
# does not fit into the scrollback, where it cannot be drawn over.
_OPEN_ROWS: Final = 12

# Characters of an unfinished block that are looked at for drawing it; more than fit into those rows of any window.
_OPEN_CHARACTERS: Final = 8_000

_EMPTY: Final = Line("", 0)


class Painter:
    """Lines for a window of `columns`, which may change at any time."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self._console = Console(file=io.StringIO(), force_terminal=True, highlight=False, markup=False, emoji=False)

    @property
    def width(self) -> int:
        """Columns that a line may take: one less than the window has."""
        return max(self.columns - 1, 1)

    def block(self, block: Block) -> list[Line]:
        """A block of an answer."""
        # Imported when there is something to draw: the parser and Pygments take as long as the prompt itself.
        from bus.cli.chat import markdown

        return [self.line(text) for text in markdown.draw(block, self.width, self._console)]

    def talk(self, talk: Talk) -> list[Line]:
        """Talk, wrapped between words."""
        text = Text(printable(talk.text), _STYLES[talk.tone])
        lines = text.wrap(self._console, self.width, overflow="fold")
        for line in lines:
            line.rstrip()
        return [self.line(line) for line in lines]

    def fitted(self, talk: Talk) -> Line:
        """Talk in one line, cut where the window ends."""
        return self.line(Text(fit(one_line(talk.text, 4 * self.width), self.width), _STYLES[talk.tone]))

    def speaker(self, name: str) -> Line:
        """Who speaks, above what is said."""
        return self.line(Text(fit(one_line(name, 4 * self.width), self.width), _SPEAKER))

    def line(self, text: Text) -> Line:
        """One line as the terminal takes it."""
        with self._console.capture() as captured:
            self._console.print(text, end="", soft_wrap=True)
        return Line(captured.get(), columns_of(text.plain))


class AnswerView:
    """One answer while it comes. `label`: who speaks. Times are of any one clock, seconds."""

    def __init__(self, painter: Painter, label: str, began_at: float) -> None:
        self._painter = painter
        self._label = label
        self._began_at = began_at
        self._first_at = 0.0
        self._pieces = 0
        self._state = "thinking"
        self._splitter = Splitter()
        self._held = ""
        self._waiting: list[Block | Talk] = []
        # What the last line was: talk, text, or nothing yet.
        self._last = ""
        self._is_over = False

    def take(self, event: Event, now: float) -> None:
        """Something happened; it is drawn with the next frame."""
        match event:
            case Piece():
                if not self._pieces:
                    self._first_at = now
                self._pieces += 1
                self._state = "answering"
                self._waiting += self._splitter.feed(self._clean(event.text))
            case _:
                self._cut()
                self._state = _state_after(event)
                self._waiting += talk_of(event)
                if isinstance(event, (Answered, Stopped, Failed)):
                    self.close()

    def close(self) -> None:
        """The answer is over; what is still open is finished as it stands."""
        self._cut()
        self._is_over = True

    def frame(self, rows: int, now: float) -> tuple[list[Line], list[Line]]:
        """Lines that stay, given once, and those to draw below them, fewer than `rows`."""
        finished = list(self._lines(_joined(self._waiting)))
        self._waiting = []
        if self._is_over:
            return finished, []
        live: list[Line] = []
        if rows > 2 and (open_block := self._splitter.open(_OPEN_CHARACTERS)) is not None:
            last = self._last
            live = list(self._lines([open_block]))
            self._last = last
            room = min(rows - 2, max(_OPEN_ROWS, rows // 2))
            live = live[-room:]
        return finished, [*live, self._painter.fitted(Talk(self._status(now)))]

    def _lines(self, items: Iterable[Block | Talk]) -> Iterable[Line]:
        """With the empty lines between talk and text, and the name of who speaks above the first text."""
        for item in items:
            kind = "talk" if isinstance(item, Talk) else "text"
            if not self._last:
                yield _EMPTY
                yield self._painter.speaker(self._label)
            elif self._last != kind or (not isinstance(item, Talk) and item.has_gap):
                yield _EMPTY
            self._last = kind
            yield from self._painter.talk(item) if isinstance(item, Talk) else self._painter.block(item)

    def _status(self, now: float) -> str:
        parts = [self._state, f"{math.floor(now - self._began_at)} s"]
        if self._state == "answering" and now - self._first_at >= 1:
            parts.append(f"~{self._pieces / (now - self._first_at):.0f} tok/s")
        return " · ".join((*parts, "Ctrl-C stops"))

    def _cut(self) -> None:
        """What came so far is a text of its own: what comes next does not continue it."""
        self._waiting += self._splitter.finish()
        self._splitter = Splitter()

    def _clean(self, text: str) -> str:
        """Without carriage returns before line ends, and with no character left that could drive the terminal."""
        text = self._held + text
        self._held = "\r" if text.endswith("\r") else ""
        return printable(text.removesuffix("\r").replace("\r\n", "\n"))


def _joined(items: Iterable[Block | Talk]) -> list[Block | Talk]:
    """Lines of one fence as one block: to colour a line takes reading those above it, and some come at once."""
    joined: list[Block | Talk] = []
    for item in items:
        last = joined[-1] if joined else None
        if isinstance(item, Block) and isinstance(last, Block) and item.is_code and last.is_code and not item.has_gap:
            joined[-1] = msgspec.structs.replace(last, text=f"{last.text}\n{item.text}")
        else:
            joined.append(item)
    return joined


def _state_after(event: Event) -> str:
    """What is going on after an event other than text."""
    match event:
        case Away():
            return "waiting for the bus"
        case ToolCalled():
            return f"running {event.name}"
        case Back():
            return "asking again"
        case _:
            return "thinking"
