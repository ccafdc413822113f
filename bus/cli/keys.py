"""`olympus keys`: this machine's key, and the machines whose keys it trusts."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Final

import msgspec

from bus import z85
from bus.cli import exits
from bus.cli.action import Action, add_actions, configure_json, run_action
from bus.cli.arguments import settings_from
from bus.cli.failures import UsageError, say
from bus.cli.output import print_json, table, write_line
from bus.keys import Keys, UnusableKey, parse_key
from bus.settings import MACHINE_NAME, SettingsError

HELP = "Keys of encrypted connections between machines: make one here, trade the public ones. No broker is needed."


class TrustedKey(msgspec.Struct, frozen=True):
    """A machine that may connect here, and that may be connected to."""

    name: str
    public_key: str
    fingerprint: str


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


def _configure_untrust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", type=_machine, help="the other machine")


def _configure_export(parser: argparse.ArgumentParser) -> None:
    """It takes nothing."""


def _list(args: argparse.Namespace) -> int:
    from bus.curve import fingerprint

    keys = Keys(settings_from(args))
    own = keys.own().public if keys.has_own() else None
    trusted = [TrustedKey(name, z85.encode(key), fingerprint(key)) for name, key in keys.trusted().items()]
    if args.json:
        key, mark = (None, None) if own is None else (z85.encode(own), fingerprint(own))
        print_json(KeyList(key, mark, trusted), indent=2)
        return exits.OK
    if own is None:
        say("this machine has no key yet; `olympus keys make` makes one")
    rows = [] if own is None else [("(this machine)", z85.encode(own), fingerprint(own))]
    rows += [(each.name, each.public_key, each.fingerprint) for each in trusted]
    if rows:
        write_line("\n".join(table(("MACHINE", "PUBLIC KEY", "FINGERPRINT"), rows)))
    return exits.OK


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
    keys.trust(args.name, public)
    say(f"{args.name} is trusted: {fingerprint(public)}")
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
        "ssh pc2 olympus keys export | olympus keys trust pc2 -",
    ),
    Action(
        "untrust",
        "trust a machine no more; its connections end within 5 s",
        _configure_untrust,
        _untrust,
        "olympus keys untrust pc2",
    ),
)
