"""`olympus memory search`: what was found, best first, and why."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any, Final

from bus.cli import exits
from bus.cli.action import Action
from bus.cli.connection import run_with_client
from bus.cli.durations import instant
from bus.cli.failures import say
from bus.cli.memory_items import day_and_time
from bus.cli.output import milliseconds, plural, print_json, printable, table, terminal_width, write_line
from bus.client import Client
from schemas.bodies.search import Filters, Search, SearchHit, SearchReply, Understood

# Lines of a hit's text shown on a terminal; a pipe gets all of it.
_TEXT_LINES: Final = 3


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("query", metavar="QUERY", help="a question, or words")
    parser.add_argument("-k", "--hits", type=int, default=10, metavar="N", help="how many hits at most (10)")
    parser.add_argument("--ns", help="namespace (memory; kb holds documents, session conversations)")
    parser.add_argument("--mode", choices=("hybrid", "dense", "text", "symbolic"), help="by what signals (hybrid)")
    parser.add_argument(
        "--kind",
        action="append",
        choices=("memory", "document", "turn", "fact"),
        help="only this kind; repeatable",
    )
    parser.add_argument("--type", help="only memories of this type")
    parser.add_argument("--tag", action="append", default=[], metavar="TAG", help="only with this tag; repeatable")
    parser.add_argument("--speaker", metavar="NAME", help="only what this one said")
    parser.add_argument("--session", metavar="ID", help="only turns of this session")
    parser.add_argument("--since", type=instant, metavar="TIME", help="not before (2d ago as 2d, or ISO)")
    parser.add_argument("--until", type=instant, metavar="TIME", help="before (2d ago as 2d, or ISO)")
    parser.add_argument("--min-score", type=float, default=0.0, metavar="SCORE", help="leave out hits below this")
    parser.add_argument("--explain", action="store_true", help="say which signals found each hit")
    parser.add_argument("--json", action="store_true", help="one JSON document")


def _run(args: argparse.Namespace) -> int:
    request = Search(**_fields(args))

    async def ask(client: Client) -> int:
        reply: SearchReply = await client.request("memory.search", request)
        if args.json:
            print_json(reply, indent=2)
            return exits.OK
        if reply.understood is not None:
            write_line("\n".join((*understood_lines(reply.understood), "")))
        width = terminal_width()
        for hit in reply.hits:
            write_line("\n".join(hit_lines(hit, width)))
        say(f"{plural(len(reply.hits), 'hit')} in {milliseconds(reply.took_ms / 1000)} ms, by {reply.mode}")
        if reply.degraded:
            say(f"incomplete: {reply.degraded}")
        if reply.waiting:
            say(f"{plural(reply.waiting, 'text')} not embedded yet, found by their words only")
        return exits.OK

    return run_with_client(args, ask)


def _fields(args: argparse.Namespace) -> dict[str, Any]:
    filters = {
        "kinds": args.kind,
        "type": args.type,
        "speaker": args.speaker,
        "session_id": args.session,
        "since": args.since,
        "until": args.until,
    }
    fields = {"ns": args.ns, "mode": args.mode}
    return {
        "query": args.query,
        "k": args.hits,
        "min_score": args.min_score,
        "explain": args.explain,
        "filters": Filters(tags=args.tag, **{name: value for name, value in filters.items() if value is not None}),
        **{name: value for name, value in fields.items() if value is not None},
    }


def hit_lines(hit: SearchHit, width: int | None) -> list[str]:
    """A hit for people: score, time, kind, id and who said it; its text; its signals under `explain`."""
    about = [f"{hit.score:.3f}", day_and_time(hit.at), hit.kind, printable(hit.id)]
    about += [printable(part) for part in (hit.speaker, hit.title) if part]
    lines = ["  ".join(about), *_text(hit.text, width)]
    if hit.signals:
        rows = [
            (signal.name, f"{signal.share:.3f}", f"{signal.value:.3f}", printable(signal.note))
            for signal in hit.signals
        ]
        lines += [f"      {line}" for line in table(("SIGNAL", "SHARE", "VALUE", "WHY"), rows)]
    return lines


def understood_lines(query: Understood) -> list[str]:
    """How the query was read."""
    parts = [
        ("words", query.terms),
        ("phrases", query.phrases),
        ("speakers", query.speakers),
        ("names", query.entities),
    ]
    lines = [f"{name}: {', '.join(map(printable, words))}" for name, words in parts if words]
    if query.since is not None or query.until is not None:
        since, until = ("..." if at is None else day_and_time(at) for at in (query.since, query.until))
        words = f" ({printable(query.time_words)})" if query.time_words else ""
        lines.append(f"time: {since} to {until}{words}")
    return lines


def _text(text: str, width: int | None) -> list[str]:
    whole = printable(" ".join(text.split()))
    if width is None:
        return [f"    {whole}"]
    return textwrap.wrap(
        whole,
        max(width, 20),
        initial_indent="    ",
        subsequent_indent="    ",
        max_lines=_TEXT_LINES,
        placeholder=" ...",
    )


ACTIONS: Final = (
    Action(
        "search",
        "find what matters for a question",
        _configure,
        _run,
        """
olympus memory search 'who keeps bees'
olympus memory search 'what did Bob say last week' --speaker Bob -k 5
olympus memory search manual --ns kb --kind document --explain
olympus memory search bees --since 30d --json | jq '.hits[].id'
""",
    ),
)
