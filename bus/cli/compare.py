"""`olympus compare`: one question to several models, their answers side by side as they stream, and a pick that is kept."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from bus.cli import exits
from bus.cli.action import configure_json
from bus.cli.arguments import settings_from
from bus.cli.compare_view import TIE, Board, Pick
from bus.cli.connection import run_with_client
from bus.cli.failures import Unreachable, UsageError, say
from bus.cli.memory_upkeep import LONG_S
from bus.cli.model_names import check_model
from bus.cli.output import milliseconds, number, one_line, print_json, printable, table, write_line
from bus.cli.progress import Progress
from bus.cli.screen import Screen
from bus.client import Client
from bus.settings import Settings
from schemas.bodies.model import ChatMessage
from schemas.bodies.model_trials import Compare, CompareGet, ComparePick, Comparison
from schemas.errors import BusError, WorkerLost

HELP = "Ask several models the same, read their answers side by side as they stream, and pick the best by a key."

EXAMPLES = """\
examples:
  olympus compare 'What is 7 + 5?' olympus-demo qwen3
  olympus compare --blind --temperature 0 'Tell me a story.' olympus-demo qwen3 llama3
  olympus compare - qwen3 llama3 --one-by-one < question.txt
  olympus compare --show 0198c0de000070008000000000000000

keys: 1-8 pick the best, t a tie, n a note, q none; arrows, PgUp and PgDn scroll, left and right go to another answer,
Enter shows one alone, Ctrl-C stops. Where stdout is no terminal the answers are printed when they are all there.
"""

_LEAST: Final = 2
_MOST: Final = 8

# Frames a second while answers stream: more are not read, and a slow ssh line keeps up.
_FRAME_S: Final = 0.08

# Without a frame to draw, the clock in the head is drawn this often, seconds.
_TICK_S: Final = 0.5

# A comparison whose bus stays away this long has ended, seconds: nobody works on it any more.
_AWAY_S: Final = 10.0

# The service writes a pick within milliseconds, seconds.
_PICK_S: Final = 5.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `olympus compare`, and of `olympus models compare`."""
    # The second has its examples already.
    parser.epilog = parser.epilog or EXAMPLES
    prompt = parser.add_argument("prompt", metavar="PROMPT", help="what to ask; '-' reads it from stdin")
    models = parser.add_argument("models", nargs="+", metavar="MODEL", help="two to eight models or routing profiles")
    # Not asked for with --show. With nargs "?" and "*" argparse takes no models after an option: compare '2?' --blind a b.
    prompt.required = models.required = False
    parser.add_argument("--max-tokens", type=int, metavar="N", help="tokens of each answer at most")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 always takes the likeliest token")
    parser.add_argument("--seed", type=int, metavar="N", help="of the sampling")
    parser.add_argument("--one-by-one", action="store_true", help="one after the other, which times them fairly")
    parser.add_argument("--raw", action="store_true", help="continue the prompt as it stands, not as a chat")
    parser.add_argument("--blind", action="store_true", help="columns in any order and without names until the pick")
    parser.add_argument("--plain", action="store_true", help="no live view: print the answers when all are there")
    parser.add_argument("--show", metavar="ID", help="print a comparison that is kept, with what was picked")
    configure_json(parser)


def run(args: argparse.Namespace) -> int:
    """Ask, show and let pick; or show what is kept."""
    if args.show is not None:
        if args.prompt is not None:
            raise UsageError("--show ID takes neither a PROMPT nor models")
        return run_with_client(args, lambda client: _show(client, args.show, is_json=args.json))
    if args.prompt is None or args.models is None:
        raise UsageError("compare needs a PROMPT and two to eight models, or --show ID")
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    options = {
        name: value for name in ("max_tokens", "temperature", "seed") if (value := getattr(args, name)) is not None
    }

    async def ask(client: Client) -> int:
        await check_models(client, args.models)
        body = _body(args.models, prompt, options, is_raw=args.raw, at_once=not args.one_by_one)
        if args.json:
            comparison: Comparison | None = await _gathered(client, body, is_quiet=True)
            print_json(comparison, indent=2)
        elif args.plain or not Screen.is_possible():
            comparison = await _gathered(client, body, is_quiet=False)
            write_line("\n".join(comparison_lines(comparison)))
            say(f"olympus models pick {comparison.comparison_id} MODEL records the best")
        else:
            comparison = await _live(client, settings_from(args), body, is_blind=args.blind)
        if comparison is None:
            return exits.INTERRUPTED
        return exits.OK if any(not answer.error for answer in comparison.answers) else exits.FAILED

    return run_with_client(args, ask)


def _body(models: Sequence[str], prompt: str, options: Mapping[str, Any], *, is_raw: bool, at_once: bool) -> Compare:
    """The request. Raises UsageError for values that no model takes."""
    asked = {"prompt": prompt} if is_raw else {"messages": [ChatMessage(role="user", content=prompt)]}
    try:
        return msgspec.convert({**options, **asked, "models": list(models), "at_once": at_once}, Compare)
    except msgspec.ValidationError as error:
        raise UsageError(str(error)) from error


async def check_models(client: Client, models: Sequence[str]) -> None:
    """Raises UsageError unless these are two to eight different models or profiles that there are."""
    if not _LEAST <= len(models) <= _MOST:
        raise UsageError(
            f"{_LEAST} to {_MOST} models are compared, not {len(models)}; olympus models list shows those there are"
        )
    if twice := sorted({model for model in models if list(models).count(model) > 1}):
        raise UsageError(f"{', '.join(twice)} is there more than once: every model answers once")
    for model in models:
        await check_model(client, model)


# Without a terminal -----------------------------------------------------------------------------------------------------


async def _gathered(client: Client, body: Compare, *, is_quiet: bool) -> Comparison:
    with Progress(is_shown=not is_quiet) as progress:
        async with client.stream("model.compare", body, timeout_s=LONG_S) as parts:
            pieces = 0
            async for _ in parts:
                pieces += 1
                progress.show("answers, pieces", pieces, 0)
            comparison: Comparison = parts.final
    return comparison


def comparison_lines(result: Comparison, order: Sequence[int] | None = None) -> list[str]:
    """Each answer under its model's name, then the figures side by side. order: of the answers, as they were shown."""
    answers = [result.answers[index] for index in order or range(len(result.answers))]
    names = [f"{place}. {one_line(answer.model, 128)}" for place, answer in enumerate(answers, 1)]
    lines: list[str] = []
    for name, answer in zip(names, answers, strict=True):
        texts = [printable(text) for text in (answer.text, answer.error) if text]
        lines += [f"--- {name}", *texts, ""]
    rows = [
        (
            name,
            number(answer.usage.completion_tokens) if answer.usage else "-",
            f"{answer.timings.tokens_per_s:,.1f}" if answer.timings else "-",
            milliseconds(answer.timings.first_token_s if answer.timings else None),
            printable(answer.finish_reason) or "failed",
        )
        for name, answer in zip(names, answers, strict=True)
    ]
    lines += table(("MODEL", "TOKENS", "TOK/S", "FIRST MS", "ENDED BY"), rows)
    return [*lines, f"id {result.comparison_id}", *([picked_line(result)] if result.picked else [])]


def picked_line(result: Comparison) -> str:
    """What was said of it, as one line."""
    best = "a tie" if result.picked == TIE else f"{printable(result.picked or '')} is the best"
    return f"picked: {best}{f' ({one_line(result.note, 200)})' if result.note else ''}"


async def _show(client: Client, comparison_id: str, *, is_json: bool) -> int:
    try:
        body = msgspec.convert({"comparison_id": comparison_id}, CompareGet)
    except msgspec.ValidationError as error:
        raise UsageError(f"--show {comparison_id!r} is no id of a comparison") from error
    comparison: Comparison = await client.request("model.compare.get", body)
    if is_json:
        print_json(comparison, indent=2)
        return exits.OK
    question = comparison.prompt or (comparison.messages[-1].content if comparison.messages else "")
    write_line("\n".join([f"> {printable(question)}", "", *comparison_lines(comparison)]))
    return exits.OK


# In a terminal ----------------------------------------------------------------------------------------------------------


async def _live(client: Client, settings: Settings, body: Compare, *, is_blind: bool) -> Comparison | None:
    """The view, then all of it on the ordinary screen, where it can be scrolled and copied."""
    order = list(range(len(body.models)))
    if is_blind:
        random.shuffle(order)
    question = body.prompt or (body.messages[-1].content if body.messages else "")
    board = Board(question, body.models, order=order, is_blind=is_blind)
    viewing = _Viewing(client, settings, body, board)
    comparison = await viewing.run()
    if comparison is None:
        say("stopped: nothing of it is kept")
        return None
    write_line("\n".join(comparison_lines(comparison, order)))
    if comparison.picked is None:
        say(f"nothing was picked; olympus models pick {comparison.comparison_id} MODEL does it later")
    else:
        say(f"recorded as {comparison.comparison_id}")
    return comparison


class _Viewing:
    """The board on a screen: draws it while the answers come, and until the person has said which is the best."""

    def __init__(self, client: Client, settings: Settings, body: Compare, board: Board) -> None:
        self._client = client
        self._bus = settings.bus
        self._body = body
        self._board = board
        self._began_at = time.monotonic()
        self._away_since: float | None = None
        self._comparison: Comparison | None = None

    async def run(self) -> Comparison | None:
        """The comparison with what was picked, None when it was stopped. Raises Unreachable, BusError."""
        with Screen() as screen:
            asking = asyncio.create_task(self._ask())
            asking.add_done_callback(lambda _: screen.wake())
            try:
                while True:
                    self._draw(screen)
                    began_at = time.monotonic()
                    for key in await screen.keys(_TICK_S if asking.done() else _FRAME_S):
                        intent = self._board.press(key)
                        if intent == "leave" or (isinstance(intent, Pick) and await self._pick(intent)):
                            return self._comparison
                    if not asking.done():
                        self._watch()
                    elif self._comparison is None:
                        self._comparison = _result(asking)
                        self._board.ended(self._comparison)
                    # A key held down must not draw more often than can be seen.
                    await asyncio.sleep(max(began_at + _FRAME_S / 4 - time.monotonic(), 0))
            finally:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)

    def _now_s(self) -> float:
        return time.monotonic() - self._began_at

    def _draw(self, screen: Screen) -> None:
        rows, cursor = self._board.frame(*screen.size(), self._now_s())
        screen.draw(rows, cursor)

    async def _ask(self) -> Comparison:
        async with self._client.stream("model.compare", self._body, timeout_s=LONG_S) as parts:
            async for part in parts:
                self._board.part(part, self._now_s())
            comparison: Comparison = parts.final
        return comparison

    def _watch(self) -> None:
        """Say that the bus is away; raises Unreachable when it stays so."""
        if self._client.is_connected:
            self._away_since = None
            return
        now_s = self._now_s()
        if self._away_since is None:
            self._away_since = now_s
        away_s = now_s - self._away_since
        if away_s > _AWAY_S:
            raise Unreachable(
                f"no broker at {self._bus.host}:{self._bus.request_port} for {_AWAY_S:.0f} s: the comparison has ended and"
                " nothing of it is kept"
            )
        if away_s > _TICK_S:
            self._board.said = f"no broker for {away_s:.0f} s; this ends after {_AWAY_S:.0f} s, or with Ctrl-C"

    async def _pick(self, pick: Pick) -> bool:
        """Record it; False where that failed, which the board then says."""
        assert self._comparison is not None
        board = self._board
        model = TIE if pick.column is None else board.columns[pick.column].model
        body = ComparePick(comparison_id=self._comparison.comparison_id, model=model, note=board.note)
        try:
            self._comparison = await self._client.request("model.compare.pick", body, timeout_s=_PICK_S)
        except BusError as error:
            board.said = f"not recorded: {one_line(error.message, 300)}; press it again to try once more"
            return False
        return True


def _result(asking: asyncio.Task[Comparison]) -> Comparison:
    """What came of it. Raises Unreachable where the bus went away, else the error it ended with."""
    try:
        return asking.result()
    except WorkerLost as error:
        raise Unreachable(
            f"the bus went away in the middle of the comparison ({error.message}): nothing of it is kept;"
            " olympus status says whether it is back"
        ) from error
