"""The terminal as a live view has it to itself: keys in, frames out, and everything as it was afterwards.

Knows nothing of what is shown. It is left as it was found on every way out: the end of the block, an exception, SIGTERM,
SIGHUP, SIGQUIT, and for as long as the program is stopped (Ctrl-Z). Only what changed is written, in one piece, so nothing flickers.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import re
import select
import signal
import sys
import termios
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Final, Literal, NamedTuple, Self

from bus.cli.output import columns_of, fit, printable

Style = Literal["", "bold", "dim", "reverse"]

# Attributes and no colours: they are there on every terminal, and legible on every background.
_STYLES: Final[dict[Style, str]] = {"": "", "bold": "\x1b[1m", "dim": "\x1b[2m", "reverse": "\x1b[7m"}
_PLAIN: Final = "\x1b[0m"

# Alternate screen, no cursor, no wrapping at the right edge, pastes marked as such; and the way back.
_ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[?2004h"
_LEAVE: Final = "\x1b[0m\x1b[?2004l\x1b[?7h\x1b[?25h\x1b[?1049l"
_CLEAR: Final = "\x1b[2J"
# Whoever knows these shows a frame once it is whole; other terminals pass over them.
_BEGIN: Final = "\x1b[?2026h"
_END: Final = "\x1b[?2026l"

# Line breaks, and what turns the direction of writing (Unicode UAX 9, section 2), which would turn other cells as well.
_UNSEEN: Final = {
    ord("\n"): " ",
    ord("\t"): " ",
    **dict.fromkeys((0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\ufffd"),
}

# After this long an escape character is the key Esc and not the beginning of another key's sequence, seconds. Sequences come
# in one piece, over a slow network within some 20 ms.
_ESCAPE_S: Final = 0.05

# Characters of one paste that are taken; who edits a line needs no more.
_PASTE_MAX: Final = 65_536

_NAMED: Final = {
    "\r": "enter",
    "\n": "enter",
    "\t": "tab",
    "\x7f": "backspace",
    "\x08": "backspace",
    "\x03": "ctrl-c",
    "\x04": "ctrl-d",
    "\x0c": "ctrl-l",
    "\x15": "ctrl-u",
    "\x1a": "ctrl-z",
}

# By the last character of a sequence, and for "~" by its first number (xterm, VT220 and rxvt say some of them differently).
_FINALS: Final = {
    "A": "up",
    "B": "down",
    "C": "right",
    "D": "left",
    "H": "home",
    "F": "end",
    "Z": "back-tab",
    "M": "enter",
}
_NUMBERS: Final = {
    "1": "home",
    "3": "delete",
    "4": "end",
    "5": "page-up",
    "6": "page-down",
    "7": "home",
    "8": "end",
}
# What follows an escape character otherwise is a key of its own: Esc and then another one, however fast they were pressed.
_SEQUENCE: Final = re.compile(r"\x1b(?:\[(?P<numbers>[0-9;?<=>]*)[ -/]*(?P<final>[@-~])|O(?P<ss3>[ -~]))")
_UNFINISHED: Final = re.compile(r"\x1b(?:\[[0-9;?<=>]*[ -/]*|O)?")
_PASTE_BEGINS: Final = "200"
_PASTE_ENDS: Final = "\x1b[201~"


class Pasted(str):
    """A key that is a whole pasted text: it may be typed into a line and must not steer anything."""

    __slots__ = ()


class Cell(NamedTuple):
    """Text from column `at` on, counted from 0. It is neutralised when it is drawn."""

    text: str
    style: Style = ""
    at: int = 0


# One line of a frame: its cells from left to right. Each is put at its own column, so that a terminal that measures a
# character otherwise than we do shifts the rest of its own cell and nothing else.
Row = Sequence[Cell]


def line(text: str, style: Style = "") -> Row:
    """A row of one cell."""
    return (Cell(text, style),)


def plain(row: Row) -> str:
    """What a row shows, without styles."""
    text = ""
    for cell in row:
        text += " " * (cell.at - columns_of(text)) + cell.text
    return text


class Keys:
    """What a terminal sends, as keys: a character stands for itself, the others have names ("up", "page-down", "ctrl-c")."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._text = ""
        self._pasted: str | None = None

    def feed(self, data: bytes) -> list[str]:
        """The keys that are complete with `data`."""
        self._text += self._decode(data)
        keys: list[str] = []
        while self._text and (took := self._take(keys)):
            self._text = self._text[took:]
        return keys

    @property
    def is_waiting(self) -> bool:
        """True while an escape character may be a key of its own or the beginning of another one."""
        return bool(self._text) and self._pasted is None

    def flush(self) -> list[str]:
        """The keys that an unfinished sequence is after all."""
        if not self.is_waiting:
            return []
        rest, self._text = self._text[1:], ""
        return ["esc", *rest]

    def _take(self, keys: list[str]) -> int:
        """Add the next key; characters it took, 0 where more have to come."""
        if self._pasted is not None:
            return self._take_paste(keys)
        first = self._text[0]
        if first != "\x1b":
            if first >= " " or first in _NAMED:
                keys.append(_NAMED.get(first, first))
            return 1
        found = _SEQUENCE.match(self._text)
        if found is None:
            if _UNFINISHED.fullmatch(self._text):
                return 0
            keys.append("esc")
            return 1
        numbers, final = (found["numbers"] or "").split(";")[0], found["final"] or found["ss3"] or ""
        if final == "~" and numbers == _PASTE_BEGINS:
            self._pasted = ""
        elif name := _NUMBERS.get(numbers) if final == "~" else _FINALS.get(final):
            keys.append(name)
        return found.end()

    def _take_paste(self, keys: list[str]) -> int:
        assert self._pasted is not None
        end = self._text.find(_PASTE_ENDS)
        # The end of it may have come in part.
        took = end if end >= 0 else max(len(self._text) - len(_PASTE_ENDS), 0)
        self._pasted = (self._pasted + self._text[:took])[:_PASTE_MAX]
        if end < 0:
            return took
        keys.append(Pasted(self._pasted))
        self._pasted = None
        return end + len(_PASTE_ENDS)


class Screen:
    """`with Screen() as screen:` in a running loop: `await screen.keys(...)`, then `screen.draw(...)`, until it is over.

    Keys come from stdin, or from the controlling terminal where stdin is a pipe; Ctrl-C and Ctrl-Z are keys too, and the
    second is seen to here. Signals are taken in the main thread alone, where Python lets them be.
    """

    def __init__(self) -> None:
        self._out = sys.stdout.fileno()
        self._in = -1
        self._owns_in = False
        self._saved: list[Any] | None = None
        self._decoder = Keys()
        self._pressed: list[str] = []
        self._woken = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._handlers: dict[int, Any] = {}
        self._shown: list[str] = []
        self._shown_size = (0, 0)
        self._escape: asyncio.TimerHandle | None = None
        self._is_entered = False

    @staticmethod
    def is_possible() -> bool:
        """Whether stdout is a terminal that can move its cursor."""
        return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"

    def __enter__(self) -> Self:
        sys.stdout.flush()
        self._open_keyboard()
        with contextlib.suppress(ValueError):
            # ValueError: this is not the main thread.
            for number, handler in (
                (signal.SIGWINCH, self._on_resized),
                (signal.SIGTERM, self._on_ended),
                (signal.SIGHUP, self._on_ended),
                (signal.SIGQUIT, self._on_ended),
                (signal.SIGTSTP, self._on_stopped),
                (signal.SIGCONT, self._on_resumed),
            ):
                self._handlers[number] = signal.signal(number, handler)
        self._enter()
        if self._in >= 0:
            self._loop.add_reader(self._in, self._read)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._in >= 0:
            self._loop.remove_reader(self._in)
        if self._escape is not None:
            self._escape.cancel()
        self._leave()
        self._restore_handlers()
        if self._owns_in:
            os.close(self._in)

    def size(self) -> tuple[int, int]:
        """Columns and lines of the window now."""
        try:
            columns, lines = os.get_terminal_size(self._out)
        except OSError:
            columns = lines = 0
        # A terminal that does not know its size says 0.
        return columns or 80, lines or 24

    async def keys(self, timeout_s: float | None = None) -> list[str]:
        """Keys pressed since the last call; waits for one, for `wake`, for another size, and at most `timeout_s` seconds.

        "eof" says that the terminal has gone, or that the program is to end.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._woken.wait()
        self._woken.clear()
        pressed, self._pressed = self._pressed, []
        for key in pressed:
            if key == "ctrl-z":
                # To all processes of this job, as the terminal itself would: whoever waits for us has to stop as well.
                os.kill(0, signal.SIGTSTP)
            elif key == "ctrl-l":
                self._shown = []
        return [key for key in pressed if key not in ("ctrl-z", "ctrl-l")]

    def wake(self) -> None:
        """End the wait of `keys`."""
        self._woken.set()

    def draw(self, rows: Sequence[Row], cursor: tuple[int, int] | None = None) -> None:
        """Show a frame. cursor: (column, line) from 0 on, None hides it."""
        if not self._is_entered:
            return
        columns, lines = size = self.size()
        out = [_BEGIN, "\x1b[?25l"]
        if size != self._shown_size or not self._shown:
            self._shown_size, self._shown = size, [""] * lines
            out.append(_CLEAR)
        wanted = [_drawn(row, columns) for row in rows[:lines]]
        wanted += [""] * (lines - len(wanted))
        for number, (before, now) in enumerate(zip(self._shown, wanted, strict=True), 1):
            if before != now:
                out.append(f"\x1b[{number};1H\x1b[2K{now}")
        if cursor is not None:
            out.append(f"\x1b[{cursor[1] + 1};{cursor[0] + 1}H\x1b[?25h")
        self._shown = wanted
        out.append(_END)
        self._write("".join(out))

    # The terminal

    def _open_keyboard(self) -> None:
        if sys.stdin.isatty():
            self._in = sys.stdin.fileno()
            return
        with contextlib.suppress(OSError):
            self._in = os.open("/dev/tty", os.O_RDONLY | os.O_CLOEXEC)
            self._owns_in = True

    def _enter(self) -> None:
        if self._in >= 0:
            if self._saved is None:
                self._saved = termios.tcgetattr(self._in)
            self._make_raw()
        self._is_entered = True
        self._shown = []
        self._write(_ENTER)

    def _make_raw(self) -> None:
        """Keys at once, unechoed, and none that the terminal acts upon."""
        assert self._saved is not None
        mode = [*self._saved[:6], list(self._saved[6])]
        mode[0] &= ~(termios.IXON | termios.ICRNL | termios.INLCR)
        mode[3] &= ~(termios.ICANON | termios.ECHO | termios.ISIG | termios.IEXTEN)
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        with contextlib.suppress(termios.error):
            # It fails where the terminal has gone, which the next read says.
            termios.tcsetattr(self._in, termios.TCSADRAIN, mode)

    def _leave(self) -> None:
        if not self._is_entered:
            return
        self._is_entered = False
        self._write(_LEAVE)
        if self._saved is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._in, termios.TCSADRAIN, self._saved)

    def _write(self, text: str) -> None:
        data = text.encode("utf-8", "replace")
        try:
            while data:
                try:
                    data = data[os.write(self._out, data) :]
                except BlockingIOError:
                    # Somebody who shares this terminal made it non-blocking.
                    _wait_writable(self._out)
        except OSError:
            self._press("eof")

    def _read(self) -> None:
        try:
            data = os.read(self._in, 65_536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._in)
            self._press("eof")
            return
        if self._escape is not None:
            self._escape.cancel()
            self._escape = None
        self._press(*self._decoder.feed(data))
        if self._decoder.is_waiting:
            self._escape = self._loop.call_later(_ESCAPE_S, lambda: self._press(*self._decoder.flush()))

    def _press(self, *keys: str) -> None:
        self._pressed += keys
        if keys:
            self._woken.set()

    # Signals

    def _restore_handlers(self) -> None:
        handlers, self._handlers = self._handlers, {}
        for number, handler in handlers.items():
            # None: not set from Python, and cannot be set back from there.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _on_resized(self, number: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._woken.set)

    def _on_ended(self, number: int, frame: FrameType | None) -> None:
        """Give the terminal back, then let the signal do what it would have done."""
        self._leave()
        self._restore_handlers()
        self._loop.call_soon_threadsafe(self._press, "eof")
        os.kill(os.getpid(), number)

    def _on_stopped(self, number: int, frame: FrameType | None) -> None:
        self._leave()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        # Here it goes on after SIGCONT.
        signal.signal(signal.SIGTSTP, self._on_stopped)
        self._enter()
        self._loop.call_soon_threadsafe(self._woken.set)

    def _on_resumed(self, number: int, frame: FrameType | None) -> None:
        """Somebody stopped us in a way that cannot be noticed (SIGSTOP), and a shell has used the terminal since."""
        if self._is_entered and self._saved is not None:
            self._make_raw()
        self._shown = []
        self._loop.call_soon_threadsafe(self._woken.set)


def _drawn(row: Row, columns: int) -> str:
    """A row as it is written: each cell at its place, nothing beyond the window, no character that steers the terminal."""
    out = []
    for cell in row:
        if cell.at >= columns:
            break
        text = fit(printable(cell.text).translate(_UNSEEN), columns - cell.at)
        move = f"\x1b[{cell.at + 1}G" if cell.at else ""
        style = _STYLES[cell.style]
        out.append(f"{move}{style}{text}{_PLAIN if style else ''}")
    return "".join(out)


def _wait_writable(descriptor: int) -> None:
    select.select([], [descriptor], [])
