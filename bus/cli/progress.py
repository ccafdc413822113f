"""A line on stderr that says how far long work is, on a terminal and only once the work takes long."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Final, Self

from bus.cli.output import columns_of, duration, fit, number, size

# Work shorter than this needs no bar, seconds.
_PATIENCE_S: Final = 1.0

# Seconds between two drawings: more are not seen.
_DRAW_EVERY_S: Final = 0.1

_BAR_COLUMNS: Final = 30


class Progress:
    """`with Progress(is_shown=...) as progress: progress.show("copy", 3, 10)`; the line is gone at the end."""

    def __init__(self, *, is_shown: bool = True) -> None:
        self._is_shown = is_shown and sys.stderr.isatty()
        self._began_at = time.monotonic()
        self._drawn_at = 0.0
        self._columns = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write("")

    def show(
        self, stage: str, done: int, total: int, eta_s: float | None = None, *, bytes_per_s: float | None = None
    ) -> None:
        """Draw how far the stage is; a total of 0 means that nobody knows. With `bytes_per_s` it counts bytes."""
        now = time.monotonic()
        if not self._is_shown or now - self._began_at < _PATIENCE_S or now - self._drawn_at < _DRAW_EVERY_S:
            return
        self._drawn_at = now
        self._write(fit(progress_line(stage, done, total, eta_s, bytes_per_s=bytes_per_s), _columns()))

    def _write(self, line: str) -> None:
        if not self._columns and not line:
            return
        blank = " " * (self._columns - columns_of(line))
        sys.stderr.write(f"\r{line}{blank}\r{line}")
        sys.stderr.flush()
        self._columns = columns_of(line)


def progress_line(
    stage: str, done: int, total: int, eta_s: float | None = None, *, bytes_per_s: float | None = None
) -> str:
    """`copy  [######........]  43 %  4,300 of 10,000, 12 s left`; in bytes `430 MiB of 1.0 GiB, 55 MiB/s, 12 s left`."""
    amount = number if bytes_per_s is None else size
    rate = f", {size(bytes_per_s)}/s" if bytes_per_s else ""
    if total <= 0:
        return f"{stage}  {amount(done)}{rate}" if done else f"{stage} ..."
    share = min(max(done / total, 0.0), 1.0)
    filled = int(share * _BAR_COLUMNS)
    left = f", {duration(eta_s)} left" if eta_s is not None and done < total else ""
    bar = "#" * filled + "." * (_BAR_COLUMNS - filled)
    return f"{stage}  [{bar}] {share * 100:3.0f} %  {amount(done)} of {amount(total)}{rate}{left}"


def _columns() -> int:
    import os

    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        columns = 0
    # A terminal that does not know its size says 0.
    return (columns or 80) - 1
