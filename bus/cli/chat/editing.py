"""The line that a person writes on: keys, several lines, pasted texts of any size, history and completion."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import select
import stat
from collections.abc import AsyncGenerator, Callable, Iterable
from pathlib import Path
from typing import BinaryIO, Final, Protocol, TextIO

import msgspec
from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import AnyFormattedText
from prompt_toolkit.history import History
from prompt_toolkit.input.vt100 import Vt100Input
from prompt_toolkit.key_binding import KeyBindings, KeyPress, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout.processors import TabsProcessor
from prompt_toolkit.output import Output
from prompt_toolkit.styles import Style

from bus.cli.output import size

# A pasted text that is longer, in characters or lines, is shown by its label: it could be neither read nor edited here.
_SHOWN_CHARACTERS: Final = 2_000
_SHOWN_LINES: Final = 30

# Pasted texts that are kept for calling a question up again, characters in all.
_KEPT_CHARACTERS: Final = 64 * 2**20

# Bytes taken from the terminal at once; the kernel gives 4 KiB at most.
_CHUNK_BYTES: Final = 65_536

# Of a pasted text as many chunks are read before anything else gets its turn.
_CHUNKS: Final = 64

# Characters that come at once with a line end among them were not typed: a terminal that does not mark what is pasted.
# What follows within this time belongs to it, seconds.
_BURST_CHARACTERS: Final = 512
_BURST_S: Final = 0.03

_PASTE_BEGINS: Final = "\x1b[200~"
_PASTE_ENDS: Final = "\x1b[201~"

# Entries of the history, and characters of one that are worth calling up again.
_HISTORY_ENTRIES: Final = 1_000
_ENTRY_CHARACTERS: Final = 8_192

# Of its file the end that is read, bytes: more than twice as many entries of usual length. A longer one is cut.
_HISTORY_BYTES: Final = 8 * 2**20

# What names of models and the like may take to be looked up before a menu is drawn without them, seconds.
_NAMES_S: Final = 0.2

# Rows kept free below a command that is being written, for what may follow.
_MENU_ROWS: Final = 6

_LABEL: Final = re.compile(r"\[pasted [0-9.]+ [KMGT]?i?B, [0-9,]+ lines?(?: #[0-9]+)?\]")
_FENCE: Final = re.compile(r"^ {0,3}(```|~~~)", re.MULTILINE)

STYLE: Final = Style.from_dict(
    {
        "mark": "bold ansicyan",
        "continuation": "ansicyan",
        # The terminal's own colours alone, which are readable on its background, light or dark.
        "bottom-toolbar": "noreverse",
        "status": "dim",
        "status.away": "ansired bold",
        "completion-menu": "noreverse bg:default fg:default",
        "completion-menu.completion": "bg:default fg:default",
        "completion-menu.completion.current": "reverse",
        "completion-menu.meta.completion": "bg:default fg:default italic",
        "completion-menu.meta.completion.current": "reverse",
        "scrollbar.background": "bg:default",
        "scrollbar.button": "reverse",
    }
)


class Words(Protocol):
    """What may follow in a slash command."""

    def completions(self, text: str) -> list[tuple[str, str]]:
        """(word, help) for the last word of the text before the cursor."""


class PasteInput(Vt100Input):
    """Keys of a terminal, with a pasted text of megabytes taken in one piece instead of character by character."""

    def __init__(self, stdin: TextIO) -> None:
        super().__init__(stdin)
        self._pasted: list[str] | None = None
        self._tail = ""

    def read_keys(self) -> list[KeyPress]:
        """The keys that came; a pasted text is one of them."""
        self._feed(self._tail + self.stdin_reader.read(_CHUNK_BYTES))
        for _ in range(_CHUNKS):
            if self._pasted is None or not self._has_more(0):
                break
            self._feed(self._tail + self.stdin_reader.read(_CHUNK_BYTES))
        return self._taken()

    def flush_keys(self) -> list[KeyPress]:
        """The keys that were held because more might follow."""
        if self._pasted is None:
            self.vt100_parser.feed(self._tail)
            self._tail = ""
        return super().flush_keys()

    def _taken(self) -> list[KeyPress]:
        taken, self._buffer = self._buffer, []
        return taken

    def _has_more(self, within_s: float) -> bool:
        return not self.closed and bool(select.select([self.fileno()], [], [], within_s)[0])

    def _feed(self, text: str) -> None:
        self._tail = ""
        if self._pasted is None and is_burst(text):
            parts = [text]
            while self._has_more(_BURST_S):
                parts.append(self.stdin_reader.read(_CHUNK_BYTES))
            self._buffer.append(KeyPress(Keys.BracketedPaste, "".join(parts)))
            return
        while text:
            mark = _PASTE_BEGINS if self._pasted is None else _PASTE_ENDS
            before, found, text = text.partition(mark)
            if not found:
                kept = _beginning_of(mark, before)
                self._tail = before[len(before) - kept :]
                before = before[: len(before) - kept]
            if self._pasted is None:
                self.vt100_parser.feed(before)
                self._pasted = [] if found else None
            else:
                self._pasted.append(before)
                if found:
                    self._buffer.append(KeyPress(Keys.BracketedPaste, "".join(self._pasted)))
                    self._pasted = None


def is_burst(text: str) -> bool:
    """Whether text that came at once is a pasted one without the marks of it."""
    return len(text) >= _BURST_CHARACTERS and "\x1b" not in text and "\r" in text[:-1]


def _beginning_of(mark: str, text: str) -> int:
    """Characters at the end of `text` that may be the beginning of `mark`."""
    return next((count for count in range(len(mark) - 1, 0, -1) if text.endswith(mark[:count])), 0)


class Pastes:
    """Long pasted texts, each with the label that stands for it on the line."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def shown(self, text: str) -> str:
        """What stands on the line for a pasted text: itself, or the label of a long one."""
        lines = text.count("\n") + 1
        if len(text) <= _SHOWN_CHARACTERS and lines <= _SHOWN_LINES:
            return text
        what = f"pasted {size(len(text.encode(errors='replace')))}, {lines:,} line{'s' if lines > 1 else ''}"
        label, number = f"[{what}]", 2
        while self._texts.get(label, text) != text:
            label, number = f"[{what} #{number}]", number + 1
        self._texts[label] = text
        while len(self._texts) > 1 and sum(map(len, self._texts.values())) > _KEPT_CHARACTERS:
            del self._texts[next(iter(self._texts))]
        return label

    def whole(self, line: str) -> str:
        """A line with the texts that its labels stand for."""
        if not self._texts:
            return line
        return re.sub("|".join(map(re.escape, self._texts)), lambda found: self._texts[found[0]], line)

    def is_gone(self, line: str) -> bool:
        """Whether a line, called up from the history, has the label of a text that is no longer here."""
        return any(label not in self._texts for label in _LABEL.findall(line))

    def label_before(self, text: str) -> str:
        """The label that `text` ends with, "" for none."""
        return next((label for label in self._texts if text.endswith(label)), "")


class PrivateHistory(History):
    """What was asked before, newest last, in a file of this user alone; it stays small whatever is asked.

    Several chats write to it at once: each line is one entry, as JSON, written in one piece under a lock.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def load_history_strings(self) -> Iterable[str]:
        """The entries, newest first; a line that is no entry is passed over."""
        try:
            with self._opened(os.O_RDONLY) as file:
                file.seek(max(os.fstat(file.fileno()).st_size - _HISTORY_BYTES, 0))
                lines = file.read(_HISTORY_BYTES).splitlines()
        except OSError:
            return
        for line in reversed(lines[-_HISTORY_ENTRIES:]):
            try:
                yield msgspec.json.decode(line, type=str)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue

    def append_string(self, string: str) -> None:
        """Add an entry, unless it repeats the last one."""
        if string.strip() and self._loaded_strings[:1] != [string]:
            super().append_string(string)

    def store_string(self, string: str) -> None:
        """Write an entry. A disk that is full or a home that may not be written costs the history, not the chat."""
        if len(string) > _ENTRY_CHARACTERS:
            return
        try:
            self._store(msgspec.json.encode(string.encode(errors="replace").decode()) + b"\n")
        except OSError:
            return

    def _store(self, line: bytes) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._opened(os.O_RDWR | os.O_CREAT | os.O_APPEND) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            os.fchmod(file.fileno(), 0o600)
            size_bytes = os.fstat(file.fileno()).st_size
            file.seek(max(size_bytes - _HISTORY_BYTES, 0))
            lines = file.read(_HISTORY_BYTES).splitlines(keepends=True)
            if lines and not lines[-1].endswith(b"\n"):
                # A disk that was full has cut the last one off, which must not take this one with it.
                line = b"\n" + line
            if len(lines) >= 2 * _HISTORY_ENTRIES or size_bytes > _HISTORY_BYTES:
                # In place: another chat may wait for the lock of this very file.
                file.truncate(0)
                line = b"".join([*lines[1 - _HISTORY_ENTRIES :], line])
            file.write(line)

    def _opened(self, flags: int) -> BinaryIO:
        """The file. Raises OSError, also for what is no plain file: a pipe would be waited for."""
        descriptor = os.open(self._path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "it is no plain file", str(self._path))
        return open(descriptor, "r+b" if flags & os.O_RDWR else "rb")


class SlashCompleter(Completer):
    """Words of slash commands."""

    def __init__(self, words: Words) -> None:
        self._words = words

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """What may stand in place of the last word."""
        before = document.text_before_cursor
        if not before.startswith("/"):
            return
        last = re.split(r"\s", before)[-1]
        for word, help in self._words.completions(before):
            yield Completion(word, start_position=-len(last), display_meta=help)

    async def get_completions_async(
        self, document: Document, complete_event: CompleteEvent
    ) -> AsyncGenerator[Completion, None]:
        """The same; where there are none the names may have been asked for just now, and are there in a moment."""
        found = list(self.get_completions(document, complete_event))
        if not found and document.text_before_cursor.startswith("/"):
            await asyncio.sleep(_NAMES_S)
            found = list(self.get_completions(document, complete_event))
        for each in found:
            yield each


def goes_on(text: str) -> bool:
    """Whether Enter begins a new line: after a backslash, and within a fence that is not closed."""
    return text.endswith("\\") or len(_FENCE.findall(text)) % 2 == 1


def prompt_session(
    terminal: PasteInput,
    output: Output,
    words: Words,
    pastes: Pastes,
    history: Path,
    status: Callable[[], AnyFormattedText],
) -> PromptSession[str]:
    """The line itself. Its result has labels in place of long pasted texts. Ctrl-C on an empty line raises KeyboardInterrupt."""
    is_command = Condition(lambda: get_app().current_buffer.text.startswith("/"))
    return PromptSession(
        input=terminal,
        output=output,
        multiline=True,
        key_bindings=_keys(pastes),
        history=PrivateHistory(history),
        completer=SlashCompleter(words),
        complete_while_typing=is_command,
        reserve_space_for_menu=_MENU_ROWS,
        bottom_toolbar=status,
        prompt_continuation=lambda width, line, wraps: [("class:continuation", "· ")],
        input_processors=[TabsProcessor(char1=" ", char2=" ")],
        style=STYLE,
        include_default_pygments_style=False,
        enable_suspend=True,
    )


def _keys(pastes: Pastes) -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if not goes_on(buffer.text):
            buffer.validate_and_handle()
        elif buffer.document.char_before_cursor == "\\" and buffer.document.is_cursor_at_the_end:
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.newline(copy_margin=False)

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("c-c")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    @keys.add("backspace")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        buffer.delete_before_cursor(len(pastes.label_before(buffer.document.text_before_cursor)) or event.arg)

    @keys.add(Keys.BracketedPaste)
    def _(event: KeyPressEvent) -> None:
        text = event.data.replace("\r\n", "\n").replace("\r", "\n")
        event.current_buffer.insert_text(pastes.shown(text))

    return keys
