"""`olympus auth`: users, signing in and out, and the keys that sign tokens."""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from bus.cli import exits, session
from bus.cli.arguments import settings_from
from bus.cli.connection import run_with_client
from bus.cli.durations import duration
from bus.cli.failures import UsageError, say
from bus.cli.output import duration as in_words
from bus.cli.output import plural, print_json, table, write_line
from bus.client import Client
from bus.settings import Settings
from bus.tokens import LocalToken, local_token_path
from schemas.bodies.accounts import (
    KeyRotate,
    Login,
    Logout,
    PasswordChange,
    TokenIssue,
    TokenState,
    UserAdd,
    UserDelete,
    UserList,
    UserUpdate,
    Verify,
)
from schemas.envelope import Headers
from schemas.errors import Unauthenticated

HELP = "Users, signing in, and the keys that sign tokens. Passwords are asked for, never written on the command line."

EXAMPLES = """\
actions:
  add-user NAME      add a user; the first one too: whoever can read this home's files is an admin
  users              list users
  passwd [NAME]      set a user's password as an admin; without NAME change one's own
  disable NAME       end a user's sign-ins and allow no new ones; 'enable NAME' takes it back
  delete-user NAME   delete a user; what it stored stays, and only 'add-user NAME --take-over' gives it to another
  login NAME         sign in on this machine
  logout             sign out here; --everywhere ends all of one's sign-ins
  whoami             who requests from here are made by, and what they may
  issue NAME         print a token for a program, to be set as bus.token
  rotate-keys        sign with a new key; --revoke drops the old ones and every access token

examples:
  olympus auth add-user ada --admin
  olympus auth add-user kiosk --scope memory:read --ns user.kiosk
  echo "$PASSWORD" | olympus auth add-user ada --password-stdin
  olympus auth login ada
  olympus auth users --json
  olympus auth issue kiosk --for 30d
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `olympus auth`."""
    parser.epilog = EXAMPLES
    parser.add_argument("action", choices=tuple(_ACTIONS), metavar="ACTION", help="what to do, see below")
    parser.add_argument("name", nargs="?", metavar="NAME", help="whom it is about")
    parser.add_argument("--admin", action="store_true", help="add-user: every scope on every namespace")
    parser.add_argument(
        "--scope", action="append", metavar="SCOPE", help="add-user: what the user may, e.g. memory:read; repeatable"
    )
    parser.add_argument(
        "--ns", action="append", metavar="PATTERN", help="add-user: where, e.g. 'user.ada.*' or '*'; repeatable"
    )
    parser.add_argument(
        "--take-over",
        action="store_true",
        help="add-user: give it the name of a deleted user, and what is stored by it",
    )
    parser.add_argument("--password-stdin", action="store_true", help="read the password from the first line of stdin")
    parser.add_argument("--for", dest="for_s", type=duration, metavar="TIME", help="issue: how long it is good (30d)")
    parser.add_argument("--everywhere", action="store_true", help="logout: all sign-ins of this user")
    parser.add_argument("--revoke", action="store_true", help="rotate-keys: drop the old keys at once")
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(args: argparse.Namespace) -> int:
    """Do one action."""
    takes_name, _ = _ACTIONS[args.action]
    if takes_name is True and args.name is None:
        raise UsageError(f"auth {args.action} needs a NAME")
    if takes_name is False and args.name is not None:
        raise UsageError(f"auth {args.action} takes no NAME")
    for option, action in _ONLY.items():
        if getattr(args, option) and args.action != action:
            flag = {"for_s": "for", "take_over": "take-over"}.get(option, option)
            raise UsageError(f"--{flag} goes with 'auth {action}' only")
    if args.admin and (args.scope or args.ns):
        raise UsageError("--admin is every scope on every namespace; leave out --scope and --ns")
    settings = settings_from(args)
    _, act = _ACTIONS[args.action]
    prepared = _passwords(args)

    async def work(client: Client) -> int:
        return await act(client, settings, args, prepared)

    return run_with_client(args, work)


# Actions --------------------------------------------------------------------------------------------------------


async def _add_user(client: Client, settings: Settings, args: argparse.Namespace, passwords: list[str]) -> int:
    request = UserAdd(
        user_id=args.name,
        password=passwords[-1],
        admin=args.admin,
        scopes=args.scope,
        namespaces=args.ns,
        take_over=args.take_over,
    )
    user = await _as_admin(client, settings, "auth.user.add", request)
    if args.json:
        print_json(user, indent=2)
    else:
        say(f"added {user.user_id}: {', '.join(user.scopes)} on {', '.join(user.namespaces) or 'no namespace'}")
    return exits.OK


async def _users(client: Client, settings: Settings, args: argparse.Namespace, passwords: list[str]) -> int:
    users = (await _as_admin(client, settings, "auth.user.list", UserList())).users
    if args.json:
        print_json(users, indent=2)
        return exits.OK
    if not users:
        say("there are no users yet; 'olympus auth add-user NAME --admin' adds the first")
        return exits.OK
    rows = [
        (
            user.user_id,
            "disabled" if user.disabled else "ok",
            " ".join(user.scopes) or "-",
            " ".join(user.namespaces) or "-",
            str(user.sessions),
            str(user.failed_sign_ins),
        )
        for user in users
    ]
    write_line("\n".join(table(("USER", "STATE", "SCOPES", "NAMESPACES", "SIGN-INS", "FAILED"), rows)))
    return exits.OK


async def _passwd(client: Client, settings: Settings, args: argparse.Namespace, passwords: list[str]) -> int:
    if args.name is not None:
        request = UserUpdate(user_id=args.name, password=passwords[-1])
        user = await _as_admin(client, settings, "auth.user.update", request)
    else:
        own = session.load(settings)
        if own is None:
            raise UsageError("nobody is signed in here; name a user, or sign in with 'olympus auth login NAME'")
        change = PasswordChange(user_id=own.user_id, password=passwords[0], new_password=passwords[-1])
        user = await client.request("auth.password", change)
        session.forget(settings)
    if args.json:
        print_json(user, indent=2)
    else:
        say(f"{user.user_id} has a new password; every sign-in has ended")
    return exits.OK


async def _disable(client: Client, settings: Settings, args: argparse.Namespace, passwords: list[str]) -> int:
    request = UserUpdate(user_id=args.name, disabled=args.action == "disable")
    user = await _as_admin(client, settings, "auth.user.update", request)
    if args.json:
        print_json(user, indent=2)
    else:
        say(f"{user.user_id} is {'disabled' if user.disabled else 'enabled'}")
    return exits.OK


async def _delete_user(client: Client, settings: Settings, args: argparse.Namespace, passwords: list[str]) -> int:
    reply = await _as_admin(client, settings, "auth.user.delete", UserDelete(user_id=args.name))
    if args.json:
        print_json(reply, indent=2)
    else:
        say(f"deleted {reply.user_id}" if reply.deleted else f"there is no user {reply.user_id}")
    return exits.OK if reply.deleted else exits.FAILED


async def _login(client: Client, settings: Settings, args: argparse.Namespace, passwords: list[str]) -> int:
    tokens = await client.request("auth.login", Login(user_id=args.name, password=passwords[-1]))
    session.save(settings, tokens)
    if args.json:
        shown = msgspec.structs.asdict(tokens)
        print_json({name: value for name, value in shown.items() if not name.endswith("_token")}, indent=2)
    else:
        say(f"signed in as {tokens.user_id}: {', '.join(tokens.scopes)} on {', '.join(tokens.namespaces)}")
        if not settings.auth.required:
            say("auth.required is off in these settings: requests go without the token")
    return exits.OK


async def _logout(client: Client, settings: Settings, args: argparse.Namespace, passwords: list[str]) -> int:
    own = session.load(settings)
    if own is None:
        say("nobody is signed in here")
        return exits.FAILED
    ended = 0
    code = exits.OK
    try:
        reply = await client.request("auth.logout", Logout(token=own.refresh_token, everywhere=args.everywhere))
        ended = reply.sessions
    except Unauthenticated as error:
        say(f"the sign-in had ended before ({error.message})")
        if args.everywhere:
            say(f"other sign-ins of {own.user_id} go on: sign in, and sign out everywhere again")
            code = exits.FAILED
    session.forget(settings)
    if args.json:
        print_json({"user_id": own.user_id, "sessions": ended}, indent=2)
    else:
        say(f"signed out {own.user_id}" if code == exits.OK else f"signed out {own.user_id} here")
    return code


async def _whoami(client: Client, settings: Settings, args: argparse.Namespace, passwords: list[str]) -> int:
    token = client.settings.bus.token
    if not token:
        own = await session.renewed(settings)
        token = own.access_token if own is not None else LocalToken(settings).read()
    if not token:
        say("nobody is signed in here")
        return exits.FAILED
    state: TokenState = await client.request("auth.verify", Verify(token=token))
    if args.json:
        print_json(state, indent=2)
    elif state.valid:
        left = f", for {in_words(state.expires_in_s)}" if state.expires_in_s else ""
        limit = "" if state.rate_per_s is None else f", {state.rate_per_s:.0f} requests/s"
        write_line(f"{state.user_id}: {', '.join(state.scopes)} on {', '.join(state.namespaces)}{limit}{left}")
    else:
        say(f"the token is not accepted: {state.reason}")
    return exits.OK if state.valid else exits.FAILED


async def _issue(client: Client, settings: Settings, args: argparse.Namespace, passwords: list[str]) -> int:
    request = TokenIssue(user_id=args.name, ttl_s=args.for_s) if args.for_s else TokenIssue(user_id=args.name)
    tokens = await _as_admin(client, settings, "auth.issue", request)
    if args.json:
        print_json(tokens, indent=2)
    else:
        write_line(tokens.access_token)
        say(f"good for {in_words(tokens.expires_in_s)}; set it as OLYMPUS_BUS_TOKEN for the program")
    return exits.OK


async def _rotate_keys(client: Client, settings: Settings, args: argparse.Namespace, passwords: list[str]) -> int:
    reply = await _as_admin(client, settings, "auth.keys.rotate", KeyRotate(revoke=args.revoke))
    if args.json:
        print_json(reply, indent=2)
    else:
        say(f"{reply.kid} ({reply.algorithm}) signs now; tokens of {plural(len(reply.verifying), 'key')} are good")
    return exits.OK


_Action = Callable[[Client, Settings, argparse.Namespace, list[str]], Awaitable[int]]

# Whether an action takes a NAME (None: it may), and what does it.
_ACTIONS: Final[dict[str, tuple[bool | None, _Action]]] = {
    "add-user": (True, _add_user),
    "users": (False, _users),
    "passwd": (None, _passwd),
    "disable": (True, _disable),
    "enable": (True, _disable),
    "delete-user": (True, _delete_user),
    "login": (True, _login),
    "logout": (False, _logout),
    "whoami": (False, _whoami),
    "issue": (True, _issue),
    "rotate-keys": (False, _rotate_keys),
}

# Options that one action alone takes.
_ONLY: Final = {
    "admin": "add-user",
    "scope": "add-user",
    "ns": "add-user",
    "take_over": "add-user",
    "for_s": "issue",
    "everywhere": "logout",
    "revoke": "rotate-keys",
}


async def _as_admin(client: Client, settings: Settings, subject: str, request: Any) -> Any:
    """Ask with the token that is set, the secret of this home, or the sign-in of this person; the first there is."""
    token = settings.bus.token or LocalToken(settings).read()
    if not token:
        own = await session.renewed(settings)
        token = own.access_token if own is not None else ""
    if not token:
        raise UsageError(
            f"only an admin may do this: {local_token_path(settings)} cannot be read, and nobody is signed in here"
        )
    headers: Headers = {"token": token}
    return await client.request(subject, request, headers=headers)


def _passwords(args: argparse.Namespace) -> list[str]:
    """The passwords an action needs, read before anything is sent: the present one first where it is asked for."""
    if args.action == "login":
        return [_read(args, f"Password of {args.name}: ")]
    if args.action not in ("add-user", "passwd"):
        return []
    wants_present = args.action == "passwd" and args.name is None
    if args.password_stdin:
        lines = sys.stdin.read().splitlines()
        if len(lines) < 1 + wants_present:
            raise UsageError("stdin must hold the password, or the present one and the new one, each on its own line")
        return lines[: 1 + wants_present]
    present = [_read(args, "Present password: ")] if wants_present else []
    new = _read(args, "New password: ")
    if _read(args, "The same again: ") != new:
        raise UsageError("the two passwords differ; nothing was changed")
    return [*present, new]


def _read(args: argparse.Namespace, prompt: str) -> str:
    if args.password_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask for the password on; --password-stdin reads it from stdin")
    return getpass.getpass(prompt)
