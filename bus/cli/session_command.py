"""`olympus session`: the conversations that memory keeps: list, read, go on with, look into and delete them."""

from __future__ import annotations

import argparse
import time
from pathlib import PurePath
from typing import Final

from bus.cli import exits
from bus.cli.action import Action, add_actions, configure_json, run_action
from bus.cli.chat import session_keeper
from bus.cli.confirming import confirm
from bus.cli.connection import run_with_client
from bus.cli.failures import UsageError, say
from bus.cli.hosting import hosted
from bus.cli.output import (
    day_and_time,
    duration,
    fit,
    number,
    one_line,
    plural,
    print_json,
    printable,
    table,
    terminal_width,
    write_line,
)
from bus.client import Client
from schemas.bodies.sessions import (
    Bridge,
    Session,
    SessionBridge,
    SessionClose,
    SessionClosed,
    SessionGet,
    SessionHistory,
    SessionList,
    Sessions,
    SessionTurns,
)
from schemas.errors import NotFound

HELP = "Look at the conversations that memory keeps, go on with one, or delete it."

EXAMPLES = """\
examples:
  olympus session list
  olympus session show chat-20261122-08
  olympus session resume chat-20261122-08
  olympus session bridge chat-20261122-08 'the release'
  olympus session delete chat-20261122-08

Of an id the first characters are enough.
"""

# Sessions that the beginning of an id is looked for in, the newest first.
_LOOKED_THROUGH: Final = 1000


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `olympus session`."""
    parser.epilog = EXAMPLES
    add_actions(parser, ACTIONS)


def run(args: argparse.Namespace) -> int:
    """Do the action."""
    return run_action(args)


async def session_named(client: Client, beginning: str) -> str:
    """The id of the session that begins so. Raises NotFound, and UsageError where several do."""
    try:
        found: Session = await client.request("memory.session.get", SessionGet(session_id=beginning))
    except NotFound:
        listed: Sessions = await client.request("memory.session.list", SessionList(limit=_LOOKED_THROUGH))
        fitting = [one.session_id for one in listed.sessions if one.session_id.startswith(beginning)]
        if len(fitting) > 1:
            raise UsageError(f"{beginning!r} fits {len(fitting)} sessions; more of the id tells them apart") from None
        if not fitting:
            raise
        return fitting[0]
    return found.session_id


# list -------------------------------------------------------------------------------------------------------------


def _configure_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--user", metavar="NAME", help="only of this person")
    parser.add_argument("--all", action="store_true", help="sessions of agents and programs, too")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="how many (20)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def _run_list(args: argparse.Namespace) -> int:
    if not 1 <= args.limit <= _LOOKED_THROUGH:
        raise UsageError(f"--limit {args.limit} is not allowed: 1 to {_LOOKED_THROUGH}")

    async def ask(client: Client) -> int:
        body = SessionList(user_id=args.user, limit=args.limit if args.all else _LOOKED_THROUGH)
        listed: Sessions = await client.request("memory.session.list", body)
        sessions = [one for one in listed.sessions if args.all or one.type == session_keeper.TYPE][: args.limit]
        if args.json:
            for session in sessions:
                print_json(session)
            return exits.OK
        host = hosted()
        width = terminal_width()
        for line in session_lines(sessions, time.time(), here=host.session_id if host is not None else None):
            write_line(fit(line, width))
        return exits.OK

    return run_with_client(args, ask)


def session_lines(sessions: list[Session], now: float, *, here: str | None = None) -> list[str]:
    """A row for each session, that of this chat marked. now: epoch seconds."""
    if not sessions:
        return ["no conversation is kept yet: olympus chat begins one"]
    rows = [
        (
            printable(one.session_id) + ("*" if one.session_id == here else ""),
            duration(max(now - one.last_used_at, 0)),
            number(one.turns),
            one.state,
            printable(PurePath(str(one.metadata.get("project") or "")).name) or "-",
            one_line(str(one.metadata.get("title") or one.summary), 60),
        )
        for one in sessions
    ]
    return table(("ID", "LAST USED", "TURNS", "STATE", "PROJECT", "ABOUT"), rows)


# show, resume, bridge, delete -------------------------------------------------------------------------------------


def _configure_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("session", metavar="ID")
    parser.add_argument("--limit", type=int, default=100, metavar="N", help="of its newest turns at most (100)")
    configure_json(parser)


def _run_show(args: argparse.Namespace) -> int:
    async def ask(client: Client) -> int:
        session_id = await session_named(client, args.session)
        session: Session = await client.request("memory.session.get", SessionGet(session_id=session_id))
        body = SessionHistory(session_id=session_id, limit=args.limit, touch=False)
        history: SessionTurns = await client.request("memory.session.history", body)
        if args.json:
            print_json({"session": session, "turns": history.turns}, indent=2)
            return exits.OK
        write_line("\n".join(session_lines([session], time.time())))
        for turn in history.turns:
            who = printable(turn.speaker or turn.role)
            write_line(f"\n{turn.number}  {day_and_time(turn.at)}  {who}:\n{printable(turn.content)}")
        if history.next_before is not None:
            say(f"there are earlier turns; --limit N shows up to {_LOOKED_THROUGH:,}")
        return exits.OK

    return run_with_client(args, ask)


def _configure_resume(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("session", metavar="ID", nargs="?", help="the last one of this folder, without")


def _run_resume(args: argparse.Namespace) -> int:
    # Imported here: app finds this module through its table, so the two would otherwise import each other.
    from bus.cli import app
    from bus.cli.arguments import settings_flags

    found: list[str] = []

    async def ask(client: Client) -> int:
        found.append(await session_named(client, args.session))
        return exits.OK

    if args.session is not None:
        run_with_client(args, ask)
    return app.main([*settings_flags(args), "chat", *(("--session", found[0]) if found else ("--resume",))])


def _configure_bridge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("session", metavar="ID", help="the session that it would be told to")
    parser.add_argument("about", metavar="ABOUT", nargs="*", help="what about; without, its latest turns decide")
    parser.add_argument("--max-tokens", type=int, default=512, metavar="N", help="how long it may be (512)")
    configure_json(parser)


def _run_bridge(args: argparse.Namespace) -> int:
    async def ask(client: Client) -> int:
        session_id = await session_named(client, args.session)
        query = " ".join(args.about) or None
        body = SessionBridge(session_id=session_id, query=query, max_tokens=args.max_tokens)
        bridge: Bridge = await client.request("memory.session.bridge", body)
        if args.json:
            print_json(bridge, indent=2)
            return exits.OK
        if not bridge.text:
            say("earlier sessions hold nothing about that")
            return exits.OK
        write_line(printable(bridge.text))
        left_out = f"; {plural(bridge.left_out, 'passage')} did not fit" if bridge.left_out else ""
        say(f"{plural(bridge.tokens, 'token')} from {plural(len(bridge.sessions), 'session')}{left_out}")
        return exits.OK

    return run_with_client(args, ask)


def _configure_delete(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sessions", metavar="ID", nargs="+")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    configure_json(parser)


def _run_delete(args: argparse.Namespace) -> int:
    found: list[str] = []

    async def look(client: Client) -> int:
        found.extend([await session_named(client, each) for each in args.sessions])
        return exits.OK

    async def delete(client: Client) -> int:
        gone: list[SessionClosed] = [
            await client.request("memory.session.close", SessionClose(session_id=each, delete=True)) for each in found
        ]
        if args.json:
            print_json(gone, indent=2)
        else:
            for one in gone:
                write_line(f"{printable(one.session_id)}  deleted, with {plural(one.turns, 'turn')}")
        return exits.OK

    run_with_client(args, look)
    host = hosted()
    if host is not None and host.session_id in found:
        raise UsageError("that is the session of this chat: /session new begins another one first")
    if not args.yes:
        confirm(f"Delete {', '.join(found)} with all that was said")
    return run_with_client(args, delete)


ACTIONS: Final = (
    Action(
        "list",
        "conversations, the one used last first",
        _configure_list,
        _run_list,
        """
olympus session list
olympus session list --all --json | jq -r .session_id
""",
    ),
    Action(
        "show",
        "one conversation, turn by turn",
        _configure_show,
        _run_show,
        """
olympus session show chat-20261122-08
""",
    ),
    Action(
        "resume",
        "go on with one in a chat; without ID, with the last one of this folder",
        _configure_resume,
        _run_resume,
        """
olympus session resume
olympus session resume chat-20261122-08
""",
    ),
    Action(
        "bridge",
        "what the person's earlier conversations hold that matters to one",
        _configure_bridge,
        _run_bridge,
        """
olympus session bridge chat-20261122-08
olympus session bridge chat-20261122-08 'what did we decide about the release'
""",
    ),
    Action(
        "delete",
        "delete conversations for good",
        _configure_delete,
        _run_delete,
        """
olympus session delete chat-20261122-08
""",
    ),
)
