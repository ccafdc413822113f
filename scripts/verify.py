#!/usr/bin/env python3
"""Check a running system line by line, and print what was sent, what came and how long it took.

    scripts/verify.py                          every line
    scripts/verify.py --only bus --only legacy
    scripts/verify.py --list                   the lines, nothing is asked

It may be run beside other users: it writes under names of its own and takes them away again, and unloads no model that
was loaded before. See docs/verify.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

# The script reads the tree it stands in, wherever it is called from.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bus.cli.arguments import settings_from
from bus.cli.connection import check_listening
from bus.cli.failures import Unreachable
from bus.cli.session import signed_in
from bus.client import Client
from bus.settings import Settings, SettingsError
from bus.sync import SyncClient
from schemas.errors import BusError
from verify_parts import checklist, of_bus, of_edges, of_errors, of_learning, of_legacy, of_memory, of_models
from verify_parts.checklist import Group, Line
from verify_parts.probe import Probe

GROUPS: Final = tuple(
    module.GROUP for module in (of_bus, of_memory, of_models, of_learning, of_errors, of_edges, of_legacy)
)

EXIT_CODES: Final = """exit codes: 0 nothing failed, 1 something failed, 2 wrong arguments, 130 ended by Ctrl-C
what the system does not have, or cannot be asked safely, is SKIP with the reason"""

# Seconds to reach the broker.
_CONNECT_S: Final = 3.0

# Seconds of one exchange, unless a check knows that it takes longer.
_TIMEOUT_S: Final = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checklist and return the exit code."""
    args = _arguments(argv)
    groups = [group for group in GROUPS if not args.only or group.name in args.only]
    if args.list:
        print("\n".join(_listed(groups, is_json=args.json)))
        return 0
    try:
        settings = settings_from(args)
    except SettingsError as error:
        print(f"verify: {error}", file=sys.stderr)
        return 2
    lines: list[Line] = []
    with contextlib.suppress(BrokenPipeError):
        try:
            for line in _run(groups, settings, args.timeout):
                lines.append(line)
                if not args.json:
                    print("\n".join(_shown(line)), flush=True)
        except KeyboardInterrupt:
            print("verify: ended by Ctrl-C", file=sys.stderr)
            return 130
        _sum_up(lines, is_json=args.json)
    return 1 if any(line.verdict == "FAIL" for line in lines) else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [group.name for group in GROUPS]
    parser.add_argument("--only", metavar="GROUP", action="append", choices=names, help=f"one of {', '.join(names)}")
    parser.add_argument("--list", action="store_true", help="print the lines and ask nothing")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=_seconds, default=_TIMEOUT_S, help="for one exchange, default %(default)g"
    )
    parser.add_argument("--config", metavar="FILE", help="settings file of the system")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change a setting")
    return parser.parse_args(argv)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not within 0.1 and 3600")
    return value


def _run(groups: Iterable[Group], settings: Settings, timeout_s: float) -> Iterable[Line]:
    try:
        settings = asyncio.run(_ready(settings))
    except (Unreachable, BusError, ConnectionError) as error:
        yield Line("bus", "the broker answers", "FAIL", str(error), [], 0.0)
        return
    with SyncClient(settings, name="verify") as client:
        yield from checklist.run(groups, Probe(settings, client, timeout_s=timeout_s))


async def _ready(settings: Settings) -> Settings:
    """With the sign-in of this home. Raises Unreachable, and BrokerUnreachable for what listens and is no broker."""
    await check_listening(settings)
    async with Client(settings, name="verify") as client:
        await client.connect(_CONNECT_S)
    return await signed_in(settings)


def _listed(groups: Sequence[Group], *, is_json: bool) -> Iterable[str]:
    if is_json:
        lines = [{"group": group.name, "name": check.name} for group in groups for check in group.checks]
        return [json.dumps(lines, indent=2)]
    return [
        line
        for group in groups
        for line in (f"{group.name}: {group.about}", *(f"  {check.name}" for check in group.checks))
    ]


def _shown(line: Line) -> list[str]:
    head = f"{line.verdict}  {line.group}: {line.name} ({line.took_s * 1e3:.1f} ms)"
    reason = [f"      {line.reason}"] if line.reason else []
    return [head, *reason, *(f"      {text}" for text in line.evidence)]


def _sum_up(lines: Sequence[Line], *, is_json: bool) -> None:
    counts = Counter(line.verdict for line in lines)
    totals = {"passed": counts["PASS"], "failed": counts["FAIL"], "skipped": counts["SKIP"]}
    if is_json:
        print(json.dumps({**totals, "lines": [line.as_json() for line in lines]}))
        return
    print("\n" + ", ".join(f"{count} {word}" for word, count in totals.items()))
    for line in lines:
        if line.verdict == "FAIL":
            print(f"FAIL  {line.group}: {line.name}: {line.reason}")


if __name__ == "__main__":
    sys.exit(main())
