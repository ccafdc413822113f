"""`olympus keys`: this machine's key, and the machines whose keys it trusts."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Final

import msgspec

from bus import permissions, z85
from bus.cli import exits
from bus.cli.action import Action, add_actions, configure_json, run_action
from bus.cli.arguments import settings_from
from bus.cli.failures import UsageError, say
from bus.cli.output import print_json, table, write_line
from bus.keys import Keys, UnusableKey, parse_key
from bus.permissions import ROLES, BadPermissions, Permissions
from bus.settings import MACHINE_NAME, SettingsError

# Patterns shown of one action; --json has them all.
_SHOWN_MAX: Final = 12

HELP = "Keys of encrypted connections between machines: make one here, trade the public ones. No broker is needed."


class TrustedKey(msgspec.Struct, frozen=True):
    """A machine that may connect here, and that may be connected to. `allowed`: what it may do here; None: everything.

    problem: why nothing is allowed, where its permissions cannot be read.
    """

    name: str
    public_key: str
    fingerprint: str
    allowed: Permissions | None = None
    problem: str = ""


class KeyList(msgspec.Struct, frozen=True):
    """This machine's public key, None where there is none, and those it trusts."""

    public_key: str | None
    fingerprint: str | None
    trusted: list[TrustedKey]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the actions; without one the keys are listed."""
    add_actions(parser, _ACTIONS)
    parser.set_defaults(run_action=_list, json=False)
    parser.epilog = "examples:\n  olympus keys\n  olympus keys make\n  olympus keys list --json\n"


def run(args: argparse.Namespace) -> int:
    """Do one action."""
    try:
        return run_action(args)
    except UnusableKey as error:
        raise SettingsError(str(error)) from error


def _machine(text: str) -> str:
    if not re.fullmatch(MACHINE_NAME, text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a machine: lower-case letters, digits and -")
    return text


def _configure_make(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--replace", action="store_true", help="put a new key in place of the one that is there")


def _configure_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", type=_machine, help="what to call the other machine here, e.g. pc2")
    parser.add_argument("key", metavar="KEY", help="what `olympus keys export` prints there, in quotes; - reads stdin")
    parser.add_argument("--replace", action="store_true", help="also where NAME is trusted by another key")
    _add_permissions(parser)


def _configure_allow(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", type=_machine, help="the other machine")
    _add_permissions(parser)


def _add_permissions(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "what it may do",
        "Patterns of subjects: * is one token, a trailing > the rest, and one with ! in front takes out again. What is"
        " named here replaces what the role says of it; '' is nothing. Without any of these everything is allowed.",
    )
    group.add_argument("--role", choices=ROLES, help="client asks and listens, reader looks, worker serves --service")
    group.add_argument("--service", action="append", metavar="NAME", help="service of --role worker; repeatable")
    for action, what in _ACTION_HELP.items():
        group.add_argument(f"--allow-{action}", nargs="+", metavar="PATTERN", help=what)


_ACTION_HELP: Final[dict[permissions.Action, str]] = {
    "request": "operations it may ask for, e.g. 'memory.>' '!memory.restore'",
    "publish": "events it may publish",
    "subscribe": "events it may hear",
    "serve": "operations it may serve as a worker",
}


def _wanted(args: argparse.Namespace, now: Permissions | None) -> Permissions | None:
    """What the options say, with `now` for actions they do not name; None for everything."""
    if args.service and args.role != "worker":
        raise UsageError("--service goes with --role worker")
    if args.role == "worker" and not args.service:
        raise UsageError("--role worker needs --service NAME: what it is a worker of, e.g. memory")
    begun = now if args.role is None else permissions.of_role(args.role, args.service or ())
    try:
        given = {
            action: permissions.checked(action, [word for text in words for word in text.split()])
            for action in permissions.ACTIONS
            if (words := getattr(args, f"allow_{action}")) is not None
        }
    except BadPermissions as error:
        raise UsageError(str(error)) from error
    if not given:
        return begun
    return msgspec.structs.replace(begun if begun is not None else permissions.NOTHING, **given)


def _is_told(args: argparse.Namespace) -> bool:
    named = any(getattr(args, f"allow_{action}") is not None for action in permissions.ACTIONS)
    return named or args.role is not None or bool(args.service)


def _configure_untrust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", type=_machine, help="the other machine")


def _configure_export(parser: argparse.ArgumentParser) -> None:
    """It takes nothing."""


def _list(args: argparse.Namespace) -> int:
    from bus.curve import fingerprint

    keys = Keys(settings_from(args))
    own = keys.own().public if keys.has_own() else None
    trusted = [_described(keys, name, key) for name, key in keys.trusted().items()]
    if args.json:
        key, mark = (None, None) if own is None else (z85.encode(own), fingerprint(own))
        print_json(KeyList(key, mark, trusted), indent=2)
        return exits.OK
    if own is None:
        say("this machine has no key yet; `olympus keys make` makes one")
    rows = [] if own is None else [("(this machine)", z85.encode(own), fingerprint(own), "")]
    rows += [(each.name, each.public_key, each.fingerprint, _summary(each)) for each in trusted]
    if rows:
        write_line("\n".join(table(("MACHINE", "PUBLIC KEY", "FINGERPRINT", "MAY"), rows)))
    for each in trusted:
        if each.allowed is not None:
            write_line(f"\n{each.name} may")
            for action in permissions.ACTIONS:
                write_line(f"  {action:<9} {_shortened(each.allowed.of(action))}")
    return exits.OK


def _described(keys: Keys, name: str, key: bytes) -> TrustedKey:
    from bus.curve import fingerprint

    try:
        return TrustedKey(name, z85.encode(key), fingerprint(key), keys.permissions(name))
    except UnusableKey as error:
        say(f"{name} may do nothing: {error}")
        return TrustedKey(name, z85.encode(key), fingerprint(key), permissions.NOTHING, str(error))


def _summary(trusted: TrustedKey) -> str:
    if trusted.allowed is None:
        return "everything"
    may = [action for action in permissions.ACTIONS if trusted.allowed.of(action)]
    return "nothing" if not may else f"{', '.join(may)}, see below"


def _shortened(patterns: tuple[str, ...]) -> str:
    more = f" and {len(patterns) - _SHOWN_MAX} more" if len(patterns) > _SHOWN_MAX else ""
    return (" ".join(patterns[:_SHOWN_MAX]) + more) or "nothing"


def _make(args: argparse.Namespace) -> int:
    settings = settings_from(args)
    keys = Keys(settings)
    if keys.has_own() and not args.replace:
        raise UsageError(
            "this machine has a key already; `olympus keys` shows it. --replace makes a new one, which every other"
            " machine must then be told"
        )
    public = z85.encode(keys.make().public)
    write_line(public)
    name = settings.machine.name or "NAME"
    say(f"made {keys.folder}/secret. On the other machine: olympus keys trust {name} '{public}'")
    return exits.OK


def _export(args: argparse.Namespace) -> int:
    write_line(z85.encode(Keys(settings_from(args)).own().public))
    return exits.OK


def _trust(args: argparse.Namespace) -> int:
    from bus.curve import fingerprint, is_public_key

    text = (sys.stdin.readline() if args.key == "-" else args.key).strip()
    try:
        public = parse_key(text)
    except ValueError as error:
        raise UsageError(f"that is no public key: {error}; `olympus keys export` on {args.name} prints it") from error
    if not is_public_key(public):
        raise UsageError("that is no public key: nobody can own it")
    keys = Keys(settings_from(args))
    known = keys.trusted().get(args.name)
    if known not in (None, public) and not args.replace:
        raise UsageError(
            f"{args.name} is trusted by another key, {fingerprint(known or b'')}; --replace takes this one"
        )
    other = next((name for name, key in keys.trusted().items() if key == public and name != args.name), None)
    if other is not None:
        raise UsageError(f"{other} is trusted by that key; a machine has one name: olympus keys untrust {other}")
    if _is_told(args):
        # Before the key: it never has more rights than it is meant to have.
        keys.allow(args.name, _wanted(args, None))
    keys.trust(args.name, public)
    say(f"{args.name} is trusted: {fingerprint(public)}; it may do {_summary(_described(keys, args.name, public))}")
    return exits.OK


def _allow(args: argparse.Namespace) -> int:
    keys = Keys(settings_from(args))
    public = keys.trusted().get(args.name)
    if public is None:
        known = ", ".join(keys.trusted()) or "nobody"
        raise UsageError(f"{args.name} is not trusted here; trusted: {known}")
    if not _is_told(args):
        raise UsageError("say what is allowed: --role ROLE, or --allow-request PATTERN and the like")
    try:
        now = keys.permissions(args.name)
    except UnusableKey as error:
        if args.role is None:
            raise UsageError(f"{error}; --role ROLE writes it anew") from error
        now = None
    keys.allow(args.name, _wanted(args, now))
    say(f"{args.name} may do {_summary(_described(keys, args.name, public))}; it counts within 5 s")
    return exits.OK


def _untrust(args: argparse.Namespace) -> int:
    keys = Keys(settings_from(args))
    if not keys.untrust(args.name):
        known = ", ".join(keys.trusted()) or "nobody"
        raise UsageError(f"{args.name} is not trusted here; trusted: {known}")
    say(f"{args.name} is trusted no more")
    return exits.OK


_ACTIONS: Final = (
    Action(
        "list",
        "this machine's public key, and the machines it trusts (also without an action)",
        configure_json,
        _list,
        "olympus keys list\nolympus keys list --json",
    ),
    Action("make", "make this machine's key", _configure_make, _make, "olympus keys make\nolympus keys make --replace"),
    Action(
        "export",
        "print this machine's public key alone, for another machine",
        _configure_export,
        _export,
        "olympus keys export",
    ),
    Action(
        "trust",
        "let a machine connect here, and believe that it is the one",
        _configure_trust,
        _trust,
        "olympus keys trust pc2 'v4$u+{z?)$4x}oCAY#u=rI*V1@XR5tel*8lt-Dvq'\n"
        "ssh pc2 olympus keys export | olympus keys trust pc2 -\n"
        "olympus keys trust pc2 - --role worker --service memory\n"
        "olympus keys trust kiosk - --allow-request memory.recall --allow-subscribe 'memory.changed.>'",
    ),
    Action(
        "allow",
        "change what a trusted machine may do here, also while it is connected",
        _configure_allow,
        _allow,
        "olympus keys allow pc2 --role all\n"
        "olympus keys allow kiosk --role reader\n"
        "olympus keys allow kiosk --allow-request 'memory.>' '!memory.restore' --allow-publish ''",
    ),
    Action(
        "untrust",
        "trust a machine no more; its connections end within 5 s",
        _configure_untrust,
        _untrust,
        "olympus keys untrust pc2",
    ),
)
