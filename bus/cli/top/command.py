"""`olympus top`: looks again and again, draws what the board says, and carries out what its keys ask for."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from typing import Any, Final

import msgspec

from bus.cli import exits
from bus.cli.connection import run_with_client
from bus.cli.failures import UsageError
from bus.cli.output import duration, one_line, print_json, size, write_line
from bus.cli.screen import Screen
from bus.cli.top.board import Board, Effect, Show
from bus.cli.top.frames import frame, overview_lines
from bus.cli.top.looking import look, rates
from bus.client import Client
from schemas.bodies.errors import ErrorShow
from schemas.errors import BusError

HELP = (
    "Live view of services, models, devices, jobs and errors, with keys that act on them. ? lists the keys, q ends it."
)

EXAMPLES = """\
examples:
  olympus top
  olympus top --every 0.5
  olympus top --once
  olympus top --once --json

keys: 1-5 the views, arrows and Enter to look closer, / filter, s sort, Space pause; l u k load, unload and pin a model,
x stops a job, a acknowledges an error, each after a question; ? help, q end.
"""

# Rates need two looks; `--once` takes them this many seconds apart.
_ONCE_GAP_S: Final = 0.5

# Loading a large model from a slow disk takes minutes, seconds.
_ACTION_S: Final = 1_800.0

# Reports of a group of errors that are shown.
_REPORTS: Final = 5

# The clocks in the head go on between two looks, seconds.
_TICK_S: Final = 1.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `olympus top`."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "--every", type=float, default=1.0, metavar="SECONDS", help="time between two looks (default 1)"
    )
    parser.add_argument("--once", action="store_true", help="print one frame and end; also when stdout is no terminal")
    parser.add_argument("--json", action="store_true", help="with --once: one JSON document")


def run(args: argparse.Namespace) -> int:
    """Show the live view, or one frame."""
    if not 0.1 <= args.every <= 3600:
        raise UsageError(f"--every {args.every} must be between 0.1 and 3600 seconds")
    is_once = args.once or not Screen.is_possible()
    if args.json and not is_once:
        raise UsageError("--json needs --once")

    async def show(client: Client) -> int:
        if is_once:
            await _once(client, is_json=args.json)
        else:
            await _Live(client, args.every).run()
        return exits.OK

    return run_with_client(args, show)


async def _once(client: Client, *, is_json: bool) -> None:
    before = await look(client)
    await asyncio.sleep(_ONCE_GAP_S)
    now = await look(client)
    rate = rates(before, now)
    if is_json:
        print_json({**msgspec.structs.asdict(now), "rates": rate}, indent=2)
    else:
        head = f"olympus · broker up {duration(now.stats.uptime_s)} · {size(now.stats.rss_bytes)}"
        write_line("\n".join([head, *overview_lines(now, rate, None)]))


class _Live:
    """The view until q: one task looks, one for each action asks, and the screen is drawn when any of them has news."""

    def __init__(self, client: Client, every_s: float) -> None:
        self._client = client
        self._every_s = every_s
        self._board = Board()
        self._tasks: set[asyncio.Task[None]] = set()
        self._soon = asyncio.Event()

    async def run(self) -> None:
        """Show it. Raises what a fault in the program raises; an error of the bus is shown."""
        with Screen() as screen:
            looking = asyncio.create_task(self._look(screen))
            try:
                while True:
                    screen.draw(*frame(self._board, *screen.size(), time.monotonic()))
                    for key in await screen.keys(_TICK_S):
                        wish = self._board.press(key)
                        if wish == "quit":
                            return
                        if wish is not None:
                            self._start(screen, wish)
                    for task in (looking, *self._tasks):
                        if task.done():
                            task.result()
                    self._tasks = {task for task in self._tasks if not task.done()}
            finally:
                left = [looking, *self._tasks]
                for task in left:
                    task.cancel()
                await asyncio.gather(*left, return_exceptions=True)

    async def _look(self, screen: Screen) -> None:
        board = self._board
        while True:
            if not board.is_paused:
                began_at = time.monotonic()
                try:
                    now = await look(self._client)
                except (BusError, TimeoutError) as error:
                    board.lost(began_at, one_line(str(error) or "it does not answer", 300))
                else:
                    # The last sample is the earlier look, also of one that was lost since.
                    board.took(now, rates(board.sample, now))
                screen.wake()
            self._soon.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._soon.wait()

    def _start(self, screen: Screen, wish: Effect | Show) -> None:
        task = asyncio.create_task(self._show(wish) if isinstance(wish, Show) else self._act(wish))
        task.add_done_callback(lambda _: screen.wake())
        self._tasks.add(task)

    async def _act(self, effect: Effect) -> None:
        self._board.said = effect.doing
        self._board.said = await self._asked(effect.subject, effect.body, effect.done)
        self._soon.set()

    async def _asked(self, subject: str, body: Any, done: str) -> str:
        try:
            await self._client.request(subject, body, timeout_s=_ACTION_S)
        except BusError as error:
            return f"! {error.code}: {one_line(error.message, 300)}"
        return done

    async def _show(self, wish: Show) -> None:
        try:
            self._board.whole = await self._client.request(
                "error.show", ErrorShow(fingerprint=wish.fingerprint, limit=_REPORTS)
            )
        except BusError as error:
            self._board.is_detail = False
            self._board.said = f"! {error.code}: {one_line(error.message, 300)}"
