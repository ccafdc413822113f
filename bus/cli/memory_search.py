"""`olympus memory search`: what was found, best first, and why."""

from __future__ import annotations

import argparse
import asyncio
import re
import textwrap
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from bus.cli import exits
from bus.cli.action import Action
from bus.cli.connection import run_with_client
from bus.cli.durations import instant
from bus.cli.failures import say
from bus.cli.output import day_and_time, milliseconds, plural, print_json, printable, table, terminal_width, write_line
from bus.client import Client
from schemas.bodies.search import Filters, Search, SearchHit, SearchReply, Understood
from schemas.errors import Forbidden

# Where each kind lies unless whoever wrote it said otherwise.
_USUAL_NS: Final = {"memory": "memory", "document": "kb", "turn": "session", "fact": "user"}

# Lines of a hit's text shown on a terminal; a pipe gets all of it.
_TEXT_LINES: Final = 3

# A word of the query has this many letters at least to be looked for in a hit, which leaves most function words out.
_WORD_LETTERS: Final = 4

# Characters shown before the place that a long text is shown from.
_LEAD: Final = 40


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("query", metavar="QUERY", nargs="+", help="a question, or words")
    parser.add_argument("-k", "--hits", type=int, default=10, metavar="N", help="how many hits at most (10)")
    parser.add_argument("--ns", help=f"only this namespace (the usual ones: {', '.join(_USUAL_NS.values())})")
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
    query = " ".join(args.query)
    request = Search(query=query, **_fields(args))

    async def ask(client: Client) -> int:
        reply = await _everywhere(client, request, args)
        if args.json:
            print_json(reply, indent=2)
            return exits.OK
        if reply.understood is not None:
            write_line("\n".join((*understood_lines(reply.understood), "")))
        width = terminal_width()
        for hit in reply.hits:
            write_line("\n".join(hit_lines(hit, width, query)))
        say(f"{plural(len(reply.hits), 'hit')} in {milliseconds(reply.took_ms / 1000)} ms, by {reply.mode}")
        if reply.degraded:
            say(f"incomplete: {reply.degraded}")
        if reply.waiting:
            say(f"{plural(reply.waiting, 'text')} not embedded yet, found by their words only")
        return exits.OK

    return run_with_client(args, ask)


async def _everywhere(client: Client, request: Search, args: argparse.Namespace) -> SearchReply:
    """What the namespace holds that was asked for, or each of the usual ones that the caller may read.

    Raises Forbidden where that is none.
    """
    spaces = [args.ns] if args.ns else [_USUAL_NS[kind] for kind in dict.fromkeys(args.kind or _USUAL_NS)]
    replies: list[SearchReply] = []
    refused: list[Forbidden] = []

    async def look(ns: str) -> None:
        try:
            replies.append(await client.request("memory.search", msgspec.structs.replace(request, ns=ns)))
        except Forbidden as error:
            refused.append(error)

    await asyncio.gather(*map(look, spaces))
    if not replies:
        raise refused[0]
    if refused:
        say(f"{len(refused)} of {len(spaces)} namespaces are not yours to read, and were left out")
    return merged(replies, args.hits)


def merged(replies: Sequence[SearchReply], k: int) -> SearchReply:
    """The `k` best hits of several namespaces: scores are sums of shares, which mean the same in each."""
    best = max(replies, key=lambda reply: max((hit.score for hit in reply.hits), default=-1.0))
    hits = sorted((hit for reply in replies for hit in reply.hits), key=lambda hit: hit.score, reverse=True)
    return SearchReply(
        hits=hits[:k],
        mode=best.mode,
        took_ms=max(reply.took_ms for reply in replies),
        degraded="; ".join(dict.fromkeys(reply.degraded for reply in replies if reply.degraded)),
        # Counted over the whole memory, whichever namespace was asked for.
        waiting=max(reply.waiting for reply in replies),
        understood=best.understood,
    )


def _fields(args: argparse.Namespace) -> dict[str, Any]:
    filters = {
        "kinds": args.kind,
        "type": args.type,
        "speaker": args.speaker,
        "session_id": args.session,
        "since": args.since,
        "until": args.until,
    }
    return {
        "k": args.hits,
        "min_score": args.min_score,
        "explain": args.explain,
        "filters": Filters(tags=args.tag, **{name: value for name, value in filters.items() if value is not None}),
        **({"mode": args.mode} if args.mode is not None else {}),
    }


def hit_lines(hit: SearchHit, width: int | None, query: str = "") -> list[str]:
    """A hit for people: score, time, kind, id and who said it; its text; its signals under `explain`.

    On a terminal of `width` columns a long text is cut to where the words of `query` stand.
    """
    about = [f"{hit.score:.3f}", day_and_time(hit.at), hit.kind, printable(hit.id)]
    about += [printable(part) for part in (hit.speaker, hit.title) if part]
    lines = ["  ".join(about), *_text(hit.text, width, query)]
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


def _text(text: str, width: int | None, query: str) -> list[str]:
    whole = printable(" ".join(text.split()))
    if width is None:
        return [f"    {whole}"]
    columns = max(width, 20)
    return textwrap.wrap(
        excerpt(whole, query, _TEXT_LINES * (columns - 4)),
        columns,
        initial_indent="    ",
        subsequent_indent="    ",
        max_lines=_TEXT_LINES,
        placeholder=" ...",
    )


def excerpt(text: str, query: str, length: int) -> str:
    """`text` from shortly before the place where the most words of the query begin within `length` characters."""
    if len(text) <= length:
        return text
    words = {word.lower() for word in re.findall(r"\w+", query) if len(word) >= _WORD_LETTERS}
    # Without its ending a word is found in its other forms.
    begins = [(word, re.escape(word[: max(_WORD_LETTERS, len(word) - 2)])) for word in sorted(words)]
    places = sorted(
        (match.start(), word) for word, begin in begins for match in re.finditer(rf"\b{begin}", text, re.IGNORECASE)
    )
    reach = length - 2 * _LEAD

    def gain(place: tuple[int, str]) -> int:
        return len({word for at, word in places if place[0] <= at < place[0] + reach})

    start = max(places, key=gain)[0] if places else 0
    if start <= _LEAD:
        return text
    return "... " + text[text.find(" ", start - _LEAD) + 1 :]


ACTIONS: Final = (
    Action(
        "search",
        "find what matters for a question",
        _configure,
        _run,
        """
olympus memory search 'who keeps bees'
olympus memory search 'what did Bob say last week' --speaker Bob -k 5
olympus memory search manual --kind document --explain
olympus memory search 'where is the key' --ns user.ada
olympus memory search bees --since 30d --json | jq '.hits[].id'
""",
    ),
)
