"""The live view of one training: where it stands, its curves, and the newest lines of its log."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import time
from collections.abc import Collection, Iterator
from typing import Final

from bus.cli.curves import chart, curves_of
from bus.cli.output import clock, duration, fit, plural, printable, size
from bus.client import Client
from schemas.bodies.learning_jobs import CurvePoint, JobInfo, JobLog, LogEntry, TrainingLog
from schemas.errors import Retryable

_ENTER: Final = "\x1b[?1049h\x1b[?25l"  # alternate screen, no cursor
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"
_HOME: Final = "\x1b[H"
_CLEAR_LINE: Final = "\x1b[K"
_CLEAR_BELOW: Final = "\x1b[J"

# Seconds between two looks: a step of a small model takes a tenth of that.
_LOOK_EVERY_S: Final = 0.5

_CHART_LINES: Final = 7
_LOG_LINES: Final = 5
_POINTS: Final = 400


class TrainingView:
    """On a terminal a picture that is drawn anew; elsewhere each entry of the log as a line. is_quiet: neither."""

    def __init__(self, client: Client, job_id: str, *, is_quiet: bool = False) -> None:
        self._client = client
        self._job_id = job_id
        self._is_quiet = is_quiet
        self._is_terminal = sys.stdout.isatty() and not is_quiet
        self._entries: list[LogEntry] = []
        self._has_looked = False

    async def run(self, ended: Collection[str]) -> JobInfo:
        """Show until the job is in a state of `ended`, or q is pressed; returns the job."""
        with self._screen() as pressed:
            while True:
                log = await self._look()
                self._show(log)
                if log.job.state in ended:
                    return log.job
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(pressed.wait(), _LOOK_EVERY_S)
                if pressed.is_set():
                    return log.job

    async def _look(self) -> JobLog:
        """How the job stands; waits through a restart of the service."""
        after = self._entries[-1].number if self._entries else 0
        points = _POINTS if self._is_terminal else 0
        while True:
            try:
                log: JobLog = await self._client.request(
                    "learning.training.log", TrainingLog(job_id=self._job_id, after=after, points=points)
                )
            except Retryable:
                if not self._has_looked:
                    raise
                await asyncio.sleep(_LOOK_EVERY_S)
                continue
            self._has_looked = True
            return log

    def _show(self, log: JobLog) -> None:
        self._entries += log.entries
        if self._is_terminal:
            columns, rows = shutil.get_terminal_size()
            lines = frame(log.job, log.points, self._entries, columns, rows, time.time())
            drawn = "".join(f"{fit(line, columns)}{_CLEAR_LINE}\n" for line in lines[: rows - 1])
            sys.stdout.write(_HOME + drawn + _CLEAR_BELOW)
            sys.stdout.flush()
        elif not self._is_quiet:
            for entry in log.entries:
                print(f"{clock(entry.at)}  {entry.event:<12}  {printable(entry.message)}", flush=True)

    @contextlib.contextmanager
    def _screen(self) -> Iterator[asyncio.Event]:
        """The alternate screen, and an event that a q sets."""
        pressed = asyncio.Event()
        if not self._is_terminal:
            yield pressed
            return
        with _keys(pressed):
            sys.stdout.write(_ENTER)
            try:
                yield pressed
            finally:
                sys.stdout.write(_LEAVE)
                sys.stdout.flush()


@contextlib.contextmanager
def _keys(pressed: asyncio.Event) -> Iterator[None]:
    """Sets `pressed` at a q on a terminal; nothing where stdin is none."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    loop = asyncio.get_running_loop()
    tty.setcbreak(number)
    loop.add_reader(number, lambda: pressed.set() if "q" in sys.stdin.read(1).lower() else None)
    try:
        yield
    finally:
        loop.remove_reader(number)
        termios.tcsetattr(number, termios.TCSADRAIN, before)


def frame(
    job: JobInfo, points: list[CurvePoint], entries: list[LogEntry], columns: int, rows: int, now: float
) -> list[str]:
    """The lines of one picture: head, progress, curves as far as there is room, and the end of the log."""
    lines = [
        f"{job.job_id}  {job.model}  {job.dataset}:{job.version}  {job.state}",
        *([printable(job.reason)] if job.reason else []),
        _progress_line(job, columns, points[-1].step if points else 0),
        "",
    ]
    room = rows - len(lines) - _LOG_LINES - 2
    for curve in curves_of(points):
        if room < _CHART_LINES + 2:
            break
        lines += [*chart(curve, columns - 1, _CHART_LINES), ""]
        room -= _CHART_LINES + 2
    lines += [
        f"{clock(entry.at)[:8]}  {entry.event:<10}  {printable(entry.message)}" for entry in entries[-_LOG_LINES:]
    ]
    return [*lines, f"asked {duration(max(now - job.created_at, 0))} ago; q leaves, the job goes on"]


def _progress_line(job: JobInfo, columns: int, steps_taken: int) -> str:
    progress = job.progress
    if progress is None:
        return f"{plural(steps_taken, 'step')} taken, trained {duration(job.spent_s)}" if steps_taken else "no step yet"
    done, total = (progress.step, progress.steps) if progress.phase == "training" else (progress.done, progress.total)
    share = min(done / total, 1.0) if total else 0.0
    width = min(30, max(columns - 50, 10))
    filled = int(share * width)
    parts = [f"{progress.phase} [{'#' * filled}{'.' * (width - filled)}] {done:,}/{total:,}"]
    if progress.tokens_per_s:
        parts.append(f"{progress.tokens_per_s:,.0f} tok/s")
    if progress.memory_bytes:
        parts.append(size(progress.memory_bytes))
    if progress.eta_s is not None and done < total:
        parts.append(f"{duration(progress.eta_s)} left")
    return "  ".join(parts) + (f"  {printable(progress.note)}" if progress.note else "")
