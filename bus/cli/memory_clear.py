"""`olympus memory clear`: forget all facts, memories, documents or sessions of a namespace, after asking."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from bus.cli import exits
from bus.cli.action import Action
from bus.cli.confirming import confirm
from bus.cli.connection import run_with_client
from bus.cli.failures import say
from bus.cli.output import print_json, printable
from bus.cli.progress import Progress
from bus.client import Client
from schemas.bodies.items import DocDelete, DocList, MemoryDelete, MemoryList
from schemas.bodies.memory import AllFacts, Forget
from schemas.bodies.sessions import SessionClose, SessionList
from schemas.errors import NotFound

# Entries asked for at a time, the most that an operation lists.
_PAGE: Final = 1000

# Deletions on their way at once: enough that the way there and back does not count.
_AT_ONCE: Final = 32


class _Kind(NamedTuple):
    """Something to clear: its words, its usual namespace, and the operations that list it and delete one of it.

    listing takes namespace and place, `items` are in that field of the reply, each known by its field `id`; deletion takes
    namespace and id.
    """

    one: str
    many: str
    ns: str
    list_subject: str
    listing: Callable[[str, Any], Any]
    items: str
    id: str
    delete_subject: str
    deletion: Callable[[str, str], Any]


_KINDS: Final = {
    "facts": _Kind(
        one="fact",
        many="facts",
        ns="user",
        list_subject="memory.all",
        listing=lambda ns, at: AllFacts(ns=ns, limit=_PAGE, after=at),
        items="facts",
        id="key",
        delete_subject="memory.forget",
        deletion=lambda ns, name: Forget(ns=ns, key=name),
    ),
    "memories": _Kind(
        one="memory",
        many="memories",
        ns="memory",
        list_subject="memory.list",
        listing=lambda ns, at: MemoryList(ns=ns, limit=_PAGE, after=at),
        items="memories",
        id="id",
        delete_subject="memory.delete",
        deletion=lambda ns, name: MemoryDelete(ns=ns, id=name),
    ),
    "documents": _Kind(
        one="document",
        many="documents",
        ns="kb",
        list_subject="memory.doc.list",
        listing=lambda ns, at: DocList(ns=ns, limit=_PAGE, after=at),
        items="documents",
        id="doc_id",
        delete_subject="memory.doc.delete",
        deletion=lambda ns, name: DocDelete(ns=ns, doc_id=name),
    ),
    "sessions": _Kind(
        one="session",
        many="sessions",
        ns="session",
        list_subject="memory.session.list",
        listing=lambda ns, at: SessionList(ns=ns, limit=_PAGE, offset=at or 0),
        items="sessions",
        id="session_id",
        delete_subject="memory.session.close",
        deletion=lambda ns, name: SessionClose(ns=ns, session_id=name, delete=True),
    ),
}


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", choices=tuple(_KINDS), default="facts", help="what to forget (facts)")
    usual = ", ".join(f"{kind.ns} for {name}" for name, kind in _KINDS.items())
    parser.add_argument("--ns", help=f"namespace ({usual})")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--json", action="store_true", help="one JSON document")


def _run(args: argparse.Namespace) -> int:
    kind = _KINDS[args.what]
    ns = args.ns or kind.ns
    found: list[str] = []

    async def look(client: Client) -> int:
        found.extend(await _names(client, kind, ns))
        return exits.OK

    async def clear(client: Client) -> int:
        with Progress(is_shown=not args.json) as progress:
            gone = await _forget(client, kind, ns, found, progress)
        if args.json:
            print_json({"what": args.what, "ns": ns, "forgotten": gone})
        else:
            say(f"forgot {gone:,} {kind.one if gone == 1 else kind.many} of namespace {printable(ns)}")
        return exits.OK

    run_with_client(args, look)
    if found and not args.yes:
        counted = f"the only {kind.one}" if len(found) == 1 else f"all {len(found):,} {kind.many}"
        confirm(f"Forget {counted} of namespace {printable(ns)} for good")
    return run_with_client(args, clear)


async def _names(client: Client, kind: _Kind, ns: str) -> list[str]:
    """Every id there is; all of them before the first goes, because a deletion would move the pages behind it."""
    names: list[str] = []
    at: Any = None
    while True:
        page = await client.request(kind.list_subject, kind.listing(ns, at))
        names += [getattr(one, kind.id) for one in getattr(page, kind.items)]
        # Sessions are counted through, everything else names what continues it.
        at = page.next_after if hasattr(page, "next_after") else len(names) if page.has_more else None
        if at is None:
            return names


async def _forget(client: Client, kind: _Kind, ns: str, names: list[str], progress: Progress) -> int:
    """How many went; what somebody else has deleted meanwhile is not counted."""

    async def one(name: str) -> bool:
        try:
            reply = await client.request(kind.delete_subject, kind.deletion(ns, name))
        except NotFound:
            return False
        return bool(getattr(reply, "forgotten", True))

    gone = 0
    for start in range(0, len(names), _AT_ONCE):
        gone += sum(await asyncio.gather(*map(one, names[start : start + _AT_ONCE])))
        progress.show(f"forget {kind.many}", start, len(names))
    return gone


ACTIONS: Final = (
    Action(
        "clear",
        "forget all facts, memories, documents or sessions of a namespace",
        _configure,
        _run,
        """
olympus memory clear
olympus memory clear memories --ns scratch --yes
olympus memory clear sessions
""",
    ),
)
