"""`olympus memory stats`, `verify`, `rebuild`, `backup` and `restore`."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from bus.cli import exits
from bus.cli.action import Action, configure_json
from bus.cli.arguments import settings_flags
from bus.cli.confirming import confirm
from bus.cli.connection import run_with_client
from bus.cli.failures import Unreachable, say
from bus.cli.output import duration, number, plural, print_json, size, table, write_line
from bus.cli.progress import Progress
from bus.client import BrokerUnreachable, Client
from schemas.bodies.upkeep import (
    BackedUp,
    MemoryBackup,
    MemoryRebuild,
    MemoryRestore,
    MemoryStats,
    MemoryVerify,
    Rebuilt,
    Restored,
    StatsReply,
    UpkeepProgress,
    Verified,
)
from schemas.errors import NoWorker

# Seconds that work on the whole memory may take: a day. It is ended by Ctrl-C at any time.
LONG_S: Final = 86_400.0

# Restores where no service runs; a module of the memory service, which the command itself does not import.
_OFFLINE: Final = "workers.memory.upkeep.offline"


async def _followed(client: Client, args: argparse.Namespace, subject: str, body: Any) -> Any:
    """The final reply of long work, with a bar until it comes."""
    with Progress(is_shown=not args.json) as progress:
        async with client.stream(subject, body, timeout_s=LONG_S) as parts:
            async for part in parts:
                progress.show(part.stage, part.done, part.total, part.eta_s)
            return parts.final


# stats ------------------------------------------------------------------------------------------------------------


def _run_stats(args: argparse.Namespace) -> int:
    async def ask(client: Client) -> int:
        stats: StatsReply = await client.request("memory.stats", MemoryStats())
        if args.json:
            print_json(stats, indent=2)
        else:
            write_line("\n".join(stats_lines(stats)))
        return exits.OK

    return run_with_client(args, ask)


def stats_lines(stats: StatsReply) -> list[str]:
    """Counts by namespace and kind, then the parts of the memory, then what is wrong."""
    rows = [
        (one.ns, one.kind, number(one.count)) for one in sorted(stats.namespaces, key=lambda one: (one.ns, one.kind))
    ]
    lines = table(("NAMESPACE", "KIND", "COUNT"), rows) if rows else ["nothing is kept yet"]
    waiting = f", {plural(stats.waiting, 'text')} waiting" if stats.waiting else ""
    if stats.unencodable:
        waiting += f", {plural(stats.unencodable, 'text')} that cannot be encoded"
    lines += [
        "",
        f"database  {size(stats.database_bytes)}, schema version {stats.schema_version}",
        f"vectors   {number(stats.vectors)} in {stats.vector_engine or 'no index'}{waiting}",
        f"encoder   {stats.encoder or 'none'} ({stats.encoder_state})",
        f"hot tier  {stats.hot_tier or 'none'}",
    ]
    return lines + ([""] if stats.degraded else []) + [f"! {why}" for why in stats.degraded]


# verify and rebuild -----------------------------------------------------------------------------------------------


def _configure_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repair", action="store_true", help="make good what differs")
    configure_json(parser)


def _run_verify(args: argparse.Namespace) -> int:
    async def ask(client: Client) -> int:
        verified: Verified = await _followed(client, args, "memory.verify", MemoryVerify(repair=args.repair))
        if args.json:
            print_json(verified, indent=2)
        else:
            write_line("\n".join(verified_lines(verified)))
        return exits.OK if verified.agrees else exits.FAILED

    return run_with_client(args, ask)


def verified_lines(verified: Verified) -> list[str]:
    """Whether database and vectors agree, and where they do not."""
    lines = [
        f"{plural(verified.chunks, 'chunk')}, {plural(verified.vectors, 'vector')},"
        f" {number(verified.waiting)} waiting to be embedded",
    ]
    has_difference = verified.missing or verified.surplus or verified.outdated or verified.unencodable
    if verified.waiting and len(verified.problems) < 2 and not has_difference:
        return [*lines, "database and vectors agree but for what waits, which is embedded by and by: look again later"]
    lines.append("database and vectors agree" if verified.agrees else "database and vectors differ")
    for what, ids in (
        ("without their vector", verified.missing),
        ("vectors of nothing", verified.surplus),
        ("made by another encoder", verified.outdated),
        ("cannot be encoded", verified.unencodable),
    ):
        if ids:
            shown = ", ".join(map(str, ids[:10]))
            lines.append(f"  {what}: {shown}{', ...' if len(ids) > 10 else ''}")
    lines += [f"  {problem}" for problem in verified.problems]
    if verified.repaired:
        lines.append(f"{number(verified.repaired)} queued to be made good")
    elif not verified.agrees:
        lines.append("olympus memory verify --repair makes that good; olympus memory rebuild makes every vector anew")
    return lines


def _run_rebuild(args: argparse.Namespace) -> int:
    async def ask(client: Client) -> int:
        rebuilt: Rebuilt = await _followed(client, args, "memory.rebuild", MemoryRebuild())
        if args.json:
            print_json(rebuilt, indent=2)
        else:
            write_line(f"{plural(rebuilt.chunks, 'vector')} made anew in {duration(rebuilt.took_s)}")
        return exits.OK

    return run_with_client(args, ask)


# backup and restore -----------------------------------------------------------------------------------------------


def _configure_backup(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", help="of the file; the time by default")
    configure_json(parser)


def _run_backup(args: argparse.Namespace) -> int:
    async def ask(client: Client) -> int:
        made: BackedUp = await _followed(client, args, "memory.backup", MemoryBackup(name=args.name))
        if args.json:
            print_json(made, indent=2)
        else:
            write_line(made.path)
            say(f"{size(made.size_bytes)} in {made.took_s:.1f} s, sha256 {made.sha256}")
        return exits.OK

    return run_with_client(args, ask)


def _configure_restore(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="BACKUP", help="its name in the backups folder, or the path of a file")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    configure_json(parser)


def _run_restore(args: argparse.Namespace) -> int:
    path = _path_of(args.path)
    if not args.yes:
        confirm(f"Put {path} in the place of everything the memory holds now (that is kept as a backup)")

    async def ask(client: Client) -> int:
        restored: Restored = await _followed(client, args, "memory.restore", MemoryRestore(path=path))
        _show_restored(args, restored)
        return exits.OK

    try:
        return run_with_client(args, ask)
    except (Unreachable, BrokerUnreachable, NoWorker):
        say("the memory service does not run: restoring without it")
        return _restore_offline(args, path)


def _path_of(word: str) -> str:
    """A name stays one of the backups folder; a path that exists from here is made absolute, for the service."""
    path = Path(word).expanduser()
    return str(path.absolute()) if path.is_absolute() or ("/" in word and path.exists()) else word


def _restore_offline(args: argparse.Namespace, path: str) -> int:
    command = [sys.executable, "-P", "-m", _OFFLINE, path, *settings_flags(args)]
    with (
        Progress(is_shown=not args.json) as progress,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child,
    ):
        said = []
        for line in child.stderr or ():
            try:
                part = msgspec.json.decode(line, type=UpkeepProgress)
            except msgspec.MsgspecError:
                said.append(line.rstrip("\n"))
            else:
                progress.show(part.stage, part.done, part.total, part.eta_s)
        out = child.stdout.read() if child.stdout is not None else ""
    for line in said:
        say(line)
    if child.returncode:
        return exits.CONFIGURATION if child.returncode == exits.CONFIGURATION else exits.FAILED
    _show_restored(args, msgspec.json.decode(out, type=Restored))
    return exits.OK


def _show_restored(args: argparse.Namespace, restored: Restored) -> None:
    if args.json:
        print_json(restored, indent=2)
        return
    write_line(f"restored {restored.path}")
    if restored.kept_as:
        write_line(f"what was there is kept as {restored.kept_as}")


ACTIONS: Final = (
    Action(
        "stats",
        "what the memory holds, and how its parts are",
        configure_json,
        _run_stats,
        """
olympus memory stats
olympus memory stats --json | jq .waiting
""",
    ),
    Action(
        "verify",
        "check that every text has its vector; ends with 1 where they differ",
        _configure_verify,
        _run_verify,
        """
olympus memory verify
olympus memory verify --repair
""",
    ),
    Action(
        "rebuild",
        "make every vector anew, while the memory serves",
        configure_json,
        _run_rebuild,
        """
olympus memory rebuild
""",
    ),
    Action(
        "backup",
        "copy the database while it serves",
        _configure_backup,
        _run_backup,
        """
olympus memory backup
olympus memory backup --name before-the-move
""",
    ),
    Action(
        "restore",
        "go back to a backup; what is there is kept as another one",
        _configure_restore,
        _run_restore,
        """
olympus memory restore before-the-move
olympus memory restore /mnt/usb/memory.db --yes
""",
    ),
)
