"""Tracebacks as text at a fraction of the standard library's price, and in two steps.

`capture` takes what is needed from an exception, in microseconds and without reading a file; it holds no frame, and so
none of the values that a request brought. `Captured.text` makes the text of it, later, where there is time.
"""

from __future__ import annotations

import linecache
from types import CodeType, TracebackType
from typing import Any, Final

import msgspec

# Frames of one exception that are kept: the outermost show who asked, the innermost what failed.
_OUTER: Final = 12
_INNER: Final = 28

# Exceptions told in one text: those that led to it, and those within a group.
_EXCEPTIONS: Final = 6

# Characters of one exception's message, and of the whole text, which is cut at its front.
MESSAGE_MAX: Final = 4_096
TEXT_MAX: Final = 16_384

_CAUSED: Final = "\nThe above exception was the direct cause of the following exception:\n\n"
_MEANWHILE: Final = "\nDuring handling of the above exception, another exception occurred:\n\n"
_WITHIN: Final = "\nOne of the exceptions in the following group:\n\n"


class Captured(msgspec.Struct):
    """What is told of one exception and those that led to it, the first of them first."""

    parts: list[_Part]

    def text(self) -> str:
        """As Python prints it, without the marks under the failing words; at most TEXT_MAX characters."""
        return _sendable("".join(line for part in self.parts for line in part.lines())[-TEXT_MAX:])


class _Part(msgspec.Struct):
    """One exception. places: code and the number of its failing line. link: how it led to the next."""

    title: str
    places: list[tuple[CodeType, int]]
    left_out: int
    link: str = ""

    def lines(self) -> list[str]:
        lines = ["Traceback (most recent call last):\n"] if self.places else []
        for number, (code, line) in enumerate(self.places):
            if self.left_out and number == _OUTER:
                lines.append(f"  [{self.left_out} more calls]\n")
            lines.append(f'  File "{code.co_filename}", line {line}, in {code.co_name}\n')
            source = linecache.getline(code.co_filename, line).strip()
            if source:
                lines.append(f"    {source[:200]}\n")
        return [*lines, f"{self.title}\n", self.link]


def capture(error: BaseException, *, with_messages: bool = True) -> Captured:
    """What is needed to tell of `error`. Without messages where they may quote what must not be told."""
    parts: list[_Part] = []
    _add(error, "", with_messages, parts, set())
    return Captured(parts)


def message_of(error: BaseException) -> str:
    """What `error` says, at most MESSAGE_MAX characters; an exception that cannot say it is named all the same."""
    try:
        return _sendable(str(error)[:MESSAGE_MAX])
    except Exception as failure:  # noqa: BLE001 - its __str__ is anybody's code
        return f"(its message cannot be told: {type(failure).__name__})"


def _sendable(text: str) -> str:
    """`text` with halves of characters, which no encoding holds, written as escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _add(error: BaseException, link: str, with_messages: bool, parts: list[_Part], seen: set[int]) -> None:
    if id(error) in seen or len(seen) >= _EXCEPTIONS:
        return
    seen.add(id(error))
    if error.__cause__ is not None:
        _add(error.__cause__, _CAUSED, with_messages, parts, seen)
    elif error.__context__ is not None and not error.__suppress_context__:
        _add(error.__context__, _MEANWHILE, with_messages, parts, seen)
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            _add(inner, _WITHIN, with_messages, parts, seen)
    places, left_out = _places(error.__traceback__)
    parts.append(_Part(_title(error, with_messages), places, left_out, link))


def _title(error: BaseException, with_messages: bool) -> str:
    kind = type(error)
    name = (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )
    if not with_messages:
        return name
    message = message_of(error)
    notes: Any = getattr(error, "__notes__", ())
    told = "".join(f"\n{note}"[:MESSAGE_MAX] for note in notes if isinstance(note, str))
    return f"{name}: {message}{told}" if message else f"{name}{told}"


def _places(trace: TracebackType | None) -> tuple[list[tuple[CodeType, int]], int]:
    places: list[tuple[CodeType, int]] = []
    while trace is not None:
        places.append((trace.tb_frame.f_code, trace.tb_lineno))
        trace = trace.tb_next
    left_out = len(places) - _OUTER - _INNER
    if left_out <= 0:
        return places, 0
    return [*places[:_OUTER], *places[-_INNER:]], left_out
