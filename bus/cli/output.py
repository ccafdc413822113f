"""How the command prints: tables, JSON, one-line bodies, times and sizes, fitted to a terminal when there is one."""

from __future__ import annotations

import shutil
import sys
import unicodedata
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from schemas.values import as_json

# What drives a terminal; what turns the direction of writing, so that a line reads as something that it is not; line ends
# that are none to a terminal; and bytes of file names that are no text, which no stream takes.
_ESCAPED = {
    **{code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"},
    **{code: f"\\u{code:04x}" for code in (*range(0x2028, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000))},
}


# The same in JSON, which has words of its own for those below a blank and no lone surrogates.
_ESCAPED_IN_JSON = {code: f"\\u{code:04x}" for code in _ESCAPED if code > 0x20 and not 0xD800 <= code < 0xE000}


def to_json(value: Any, *, indent: int = 0) -> str:
    """JSON text of any decoded value or Struct; bytes become base64. Nothing in it drives a terminal."""
    encoded = as_json(value)
    text = (msgspec.json.format(encoded, indent=indent) if indent else encoded).decode()
    return text if text.isascii() and "\x7f" not in text else text.translate(_ESCAPED_IN_JSON)


def print_json(value: Any, *, indent: int = 0) -> None:
    """One JSON document on stdout."""
    write_line(to_json(value, indent=indent))


def write_line(line: str) -> None:
    """A line on stdout, flushed, so that a pipe sees it now."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def printable(text: str) -> str:
    """`text` with control characters other than newline and tab spelt out, so that data cannot drive a terminal.

    So are characters that turn the direction of writing, and lone surrogates, which stand for bytes that are no text.
    """
    return text.translate(_ESCAPED)


def one_line(text: str, limit: int) -> str:
    """A text of any kind in one line of at most `limit` characters."""
    # Spelling out only lengthens, and takes long: what is cut off again need not be.
    line = printable(" ".join(text.split())[: limit + 1])
    return line if len(line) <= limit else line[: limit - 1] + "…"


def terminal_width() -> int | None:
    """Columns of the terminal on stdout; None when stdout is no terminal, where nothing may be cut."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def fit(line: str, width: int | None) -> str:
    """`line` cut to `width` columns, with an ellipsis where something was cut."""
    if width is None or (line.isascii() and len(line) <= width) or columns_of(line) <= width:
        return line
    used, kept = 0, []
    for character in line:
        used += columns_of(character)
        if used > width - 1:
            break
        kept.append(character)
    return "".join(kept) + "…"


def columns_of(text: str) -> int:
    """Terminal columns that `text` takes: wide characters take two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned lines under a header; a column of numbers, dashes and blanks stands to the right."""
    widths = [max(map(columns_of, column)) for column in zip(header, *rows, strict=True)]
    is_right = [
        bool(rows) and all(_is_number(row[index]) for row in rows) and index > 0 for index in range(len(header))
    ]

    def line(cells: Sequence[str]) -> str:
        padded = [
            " " * (width - columns_of(cell)) + cell if right else cell + " " * (width - columns_of(cell))
            for cell, width, right in zip(cells, widths, is_right, strict=True)
        ]
        return "  ".join(padded).rstrip()

    return [line(header), *map(line, rows)]


def number(value: float | None) -> str:
    """A count with thousands separators; a dash for nothing."""
    return "-" if value is None else f"{value:,.0f}"


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds with three significant digits; a dash for nothing."""
    if seconds is None:
        return "-"
    value = seconds * 1000
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def size(count: float | None) -> str:
    """Bytes in binary units: 512 B, 1.5 KiB, 23 MiB."""
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds in the two largest units: 42 s, 3 min 5 s, 2 h 10 min, 4 d 3 h."""
    whole = int(seconds)
    for unit, per, smaller, below in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1)):
        if whole >= per:
            rest = whole % per // below
            return f"{whole // per} {unit} {rest} {smaller}" if rest else f"{whole // per} {unit}"
    return f"{whole} s"


def clock(at: float) -> str:
    """Local time of day with milliseconds of an epoch instant."""
    return datetime.fromtimestamp(at).strftime("%H:%M:%S.%f")[:-3]


def day_and_time(at: float) -> str:
    """Local date and minute of an epoch instant."""
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M")


def plural(count: int, noun: str) -> str:
    """`1 event`, `2 events`, `1,000 events`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _is_number(cell: str) -> bool:
    return not cell.strip("-0123456789.,% ") or cell == ""
