"""`olympus models ps`, `load`, `unload`, `keep` and `route`: what is in memory, and which model answers."""

from __future__ import annotations

import argparse
import time
from typing import Any, Final, get_args

from bus.cli import exits
from bus.cli.action import Action, configure_json
from bus.cli.arguments import settings_from
from bus.cli.connection import run_with_client
from bus.cli.durations import duration as seconds_of
from bus.cli.failures import UsageError, say
from bus.cli.memory_upkeep import LONG_S
from bus.cli.output import duration, fit, number, plural, print_json, printable, size, table, terminal_width, write_line
from bus.client import Client
from schemas.bodies.model import (
    Capability,
    ModelInfo,
    ModelKeep,
    ModelKept,
    ModelList,
    ModelLoad,
    Models,
    ModelState,
    ModelUnload,
)
from schemas.bodies.model_trials import ProfileList, Profiles, Route, Routed
from schemas.bodies.resource import DeviceStatus, GpuStatus, GpuStatusReply
from schemas.errors import DeadlineExceeded, NoWorker

# Seconds to wait for the figures of the devices, which only adorn an answer.
_DEVICES_S: Final = 1.0

# Seconds that a load may wait for room, beside the time it takes itself (models.load_timeout_s): then the service says
# what is in the way, instead of a terminal that says nothing.
_ROOM_S: Final = 30.0


async def _devices(client: Client) -> GpuStatusReply | None:
    """The devices; None where the resource service does not run."""
    try:
        reply: GpuStatusReply = await client.request("gpu.status", GpuStatus(), timeout_s=_DEVICES_S)
    except (NoWorker, DeadlineExceeded):
        return None
    return reply


async def status_line(client: Client, models: Models | None = None) -> str:
    """What is in memory, in one line."""
    known: Models = models or await client.request("model.list", ModelList())
    return in_memory(known, await _devices(client))


def in_memory(models: Models, devices: GpuStatusReply | None) -> str:
    """`in memory: olympus-demo 53 MiB on cpu; cpu 53 MiB of 18 GiB reserved`."""
    held = [one for one in models.models if one.state in ("loaded", "loading")]
    names = [
        f"{one.name} {size(one.memory_bytes)} on {one.device or 'cpu'}"
        + (" (loading)" if one.state == "loading" else "")
        for one in held
    ]
    reserved = [
        f"{one.device} {size(one.reserved_bytes)} of {size(one.total_bytes)} reserved"
        for one in (devices.devices if devices else [])
    ]
    return "; ".join([f"in memory: {', '.join(names) or 'nothing'}", *reserved])


# ps ---------------------------------------------------------------------------------------------------------------


def _run_ps(args: argparse.Namespace) -> int:
    async def ask(client: Client) -> int:
        models: Models = await client.request("model.list", ModelList())
        devices = await _devices(client)
        held = [one for one in models.models if one.state in ("loaded", "loading")]
        if args.json:
            print_json({"models": held, "devices": devices.devices if devices else []}, indent=2)
            return exits.OK
        width = terminal_width()
        for line in [*ps_lines(held, time.time()), "", *device_lines(devices)]:
            write_line(fit(line, width))
        return exits.OK

    return run_with_client(args, ask)


def ps_lines(held: list[ModelInfo], now: float) -> list[str]:
    """A row for each model in memory. now: epoch seconds."""
    if not held:
        return ["no model is in memory"]
    rows = [
        (
            printable(one.name),
            one.state,
            one.device or "-",
            size(one.memory_bytes) if one.memory_bytes else "-",
            number(one.in_flight),
            str(one.priority),
            "pinned"
            if one.is_pinned
            else "-"
            if one.keep_alive_s is None
            else "for good"
            if one.keep_alive_s < 0
            else duration(one.keep_alive_s),
            duration(max(now - one.loaded_at, 0)) if one.loaded_at else "-",
            printable(", ".join(one.adapters)) or "-",
        )
        for one in held
    ]
    return table(("NAME", "STATE", "DEVICE", "MEMORY", "BUSY", "PRIORITY", "KEPT", "LOADED FOR", "ADAPTERS"), rows)


def device_lines(devices: GpuStatusReply | None) -> list[str]:
    """A row for each device, then who holds or waits for its lock, and what is wrong."""
    if devices is None:
        return ["the resource service does not run: nothing is known of devices"]
    rows = [
        (
            one.device,
            printable(one.name),
            size(one.total_bytes),
            size(one.used_bytes),
            size(one.reserved_bytes),
            size(one.free_bytes),
            "-" if one.temperature_c is None else f"{one.temperature_c:.0f} C",
            _lock(one),
        )
        for one in devices.devices
    ]
    lines = table(("DEVICE", "NAME", "TOTAL", "USED", "RESERVED", "FREE", "HEAT", "LOCK"), rows)
    lines += [f"! {one.device} is lost: {printable(one.problem)}" for one in devices.devices if one.state == "lost"]
    return lines + ([f"! {printable(devices.problem)}"] if devices.problem else [])


def _lock(device: DeviceStatus) -> str:
    if device.lock is None:
        return "free"
    waiting = f", {plural(len(device.waiting), 'process') if len(device.waiting) == 1 else f'{len(device.waiting)} processes'} waiting"
    return printable(
        f"{device.lock.purpose} {device.lock.model} by {device.lock.pid} on {device.lock.host}"
        + (waiting if device.waiting else "")
    )


# load, unload, keep -----------------------------------------------------------------------------------------------


def _configure_load(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--context", type=int, metavar="TOKENS", help="length of its window")
    parser.add_argument("--device", help="cpu, gpu0, ... (chosen by the scheduler)")
    parser.add_argument("--adapter", metavar="NAME", help="attach this adapter")
    parser.add_argument("--keep", metavar="TIME", type=_keep_time, help="stay so long when idle (30m, forever)")
    configure_json(parser)


def _keep_time(text: str) -> float:
    return -1.0 if text == "forever" else seconds_of(text)


def _run_load(args: argparse.Namespace) -> int:
    body = ModelLoad(
        model=args.model,
        context_tokens=args.context,
        device=args.device,
        adapter=args.adapter,
        keep_alive_s=args.keep,
    )
    limit_s = settings_from(args).models.load_timeout_s + _ROOM_S
    return _change(args, "model.load", body, limit_s)


def _configure_unload(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--force", action="store_true", help="at once; answers in flight are lost")
    configure_json(parser)


def _run_unload(args: argparse.Namespace) -> int:
    return _change(args, "model.unload", ModelUnload(model=args.model, force=args.force), LONG_S)


def _change(args: argparse.Namespace, subject: str, body: Any, limit_s: float) -> int:
    async def ask(client: Client) -> int:
        state: ModelState = await client.request(subject, body, timeout_s=limit_s)
        if args.json:
            print_json(state, indent=2)
            return exits.OK
        write_line(state_line(state))
        say(await status_line(client))
        return exits.OK

    return run_with_client(args, ask)


def state_line(state: ModelState) -> str:
    """Where the model is now, and how long that took."""
    is_loaded = state.state == "loaded"
    if not state.took_s:
        return f"{state.model} {'is in memory already' if is_loaded else 'was not in memory'}"
    return f"{state.model} is {'in memory' if is_loaded else 'out of memory again'} after {state.took_s:.2f} s"


def _configure_keep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    pin = parser.add_mutually_exclusive_group()
    pin.add_argument("--pin", action="store_true", default=None, dest="is_pinned", help="never let it go")
    pin.add_argument("--unpin", action="store_false", default=None, dest="is_pinned", help="let it go again")
    parser.add_argument("--priority", type=int, metavar="1..5", help="1 leaves last, 5 first")
    parser.add_argument(
        "--for", dest="keep", metavar="TIME", type=_keep_time, help="stay so long when idle, or 'forever'"
    )
    parser.add_argument("--reset", action="store_true", help="go back to what the settings say")
    configure_json(parser)


def _run_keep(args: argparse.Namespace) -> int:
    body = ModelKeep(
        model=args.model,
        is_pinned=args.is_pinned,
        priority=args.priority,
        keep_alive_s=args.keep,
        is_reset=args.reset,
    )

    async def ask(client: Client) -> int:
        kept: ModelKept = await client.request("model.keep", body)
        if args.json:
            print_json(kept, indent=2)
        else:
            write_line(kept_line(kept))
        return exits.OK

    return run_with_client(args, ask)


def kept_line(kept: ModelKept) -> str:
    """How the model is held from now on."""
    stays = (
        "is pinned: it stays in memory"
        if kept.is_pinned
        else "stays for good, unless its memory is needed"
        if kept.keep_alive_s < 0
        else f"stays {duration(kept.keep_alive_s)} after its last request"
    )
    return f"{kept.model} {stays}; priority {kept.priority}"


# route ------------------------------------------------------------------------------------------------------------


def configure_route(parser: argparse.ArgumentParser) -> None:
    """Arguments of `olympus route`."""
    parser.add_argument("profile", nargs="?", metavar="PROFILE", help="fast, general, code, creative or your own")
    parser.add_argument("--task", help="what sort of work it is, instead of a profile")
    parser.add_argument(
        "--need",
        action="append",
        default=[],
        choices=get_args(Capability),
        help="what it must be able to do; repeatable",
    )
    parser.add_argument("--prompt-tokens", type=int, default=0, metavar="N", help="what must fit its window")
    parser.add_argument("--list", action="store_true", help="list the profiles instead")
    configure_json(parser)


def run_route(args: argparse.Namespace) -> int:
    """Ask which model a profile or a task gets, and say why."""
    if args.list and (args.profile or args.task or args.need):
        raise UsageError("--list lists every profile: leave the rest out")

    async def ask(client: Client) -> int:
        if args.list:
            profiles: ProfileList = await client.request("model.profiles", Profiles())
            if args.json:
                print_json(profiles, indent=2)
            else:
                width = terminal_width()
                for line in profile_lines(profiles):
                    write_line(fit(line, width))
            return exits.OK
        body = Route(profile=args.profile, task=args.task, capabilities=args.need, prompt_tokens=args.prompt_tokens)
        routed: Routed = await client.request("model.route", body)
        if args.json:
            print_json(routed, indent=2)
        else:
            write_line(routed.model)
            for line in routed_lines(routed):
                say(line)
        return exits.OK

    return run_with_client(args, ask)


def profile_lines(profiles: ProfileList) -> list[str]:
    """What each profile is for, and below it its candidates, which may be many."""
    width = max((len(printable(one.name)) for one in profiles.profiles), default=0)
    lines = []
    for one in profiles.profiles:
        lines += [
            f"{printable(one.name):<{width}}  {printable(one.description)}",
            f"{'':<{width}}  {printable(', '.join(one.models))}",
        ]
    return lines


def routed_lines(routed: Routed) -> list[str]:
    """Why this one, and why none before it."""
    state = "in memory" if routed.is_loaded else "not in memory yet"
    return [
        f"{printable(routed.reason)} ({state})",
        *(f"  passed over {one.model}: {printable(one.reason)}" for one in routed.passed_over),
    ]


ACTIONS: Final = (
    Action(
        "ps",
        "what is in memory, on which device, and who holds the locks",
        configure_json,
        _run_ps,
        """
olympus models ps
""",
    ),
    Action(
        "load",
        "bring a model into memory and wait until it serves",
        _configure_load,
        _run_load,
        """
olympus models load olympus-demo
olympus models load qwen3 --context 16384 --keep 2h
""",
    ),
    Action(
        "unload",
        "take a model out of memory, after what it answers now",
        _configure_unload,
        _run_unload,
        """
olympus models unload qwen3
""",
    ),
    Action(
        "keep",
        "how long a model stays, and what leaves before it",
        _configure_keep,
        _run_keep,
        """
olympus models keep olympus-demo --pin
olympus models keep qwen3 --priority 1 --for 2h
olympus models keep qwen3 --reset
""",
    ),
    Action(
        "route",
        "which model a profile or a task gets, and why",
        configure_route,
        run_route,
        """
olympus models route fast
olympus models route --task code --need tools
olympus models route --list
""",
    ),
)
