"""`olympus doctor`: what this machine has, what is missing, and how to get it. Imports nothing heavy to find out."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from bus import state
from bus.cli import clone, exits, safety
from bus.cli.arguments import settings_from
from bus.cli.output import print_json, size, table, write_line
from bus.cli.status import not_running
from bus.client import Client
from bus.keys import Keys, UnusableKey
from bus.needs import in_words, missing
from bus.settings import Settings, SettingsError, parse_services
from schemas.bodies.control import BusServices, Ping, Pong, ServiceInfo, ServiceList
from schemas.errors import BusError

HELP = "Check this machine and say how to get what is missing. Ends with 1 when something required is missing."

EXAMPLES = """\
examples:
  olympus doctor
  olympus doctor --json
  olympus --config config/olympus.yaml doctor
"""

_PYTHON: Final = (3, 11)

# Below the first the state folder is as good as full, below the second a model or a log will soon fill it, bytes.
_SPACE_REQUIRED: Final = 100 * 1024**2
_SPACE_ADVISED: Final = 2 * 1024**3

# A broker on this machine answers within milliseconds; one that needs longer than this is not well, seconds.
_PING_S: Final = 2.0

_PORTS: Final = ("request_port", "publish_port", "subscribe_port", "sequenced_port")


class Check(msgspec.Struct, frozen=True):
    """One thing looked at. "missing" is required and ends the command with 1; "absent" is optional or not running."""

    name: str
    state: Literal["ok", "missing", "absent"]
    found: str
    advice: str = ""


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `olympus doctor`."""
    parser.epilog = EXAMPLES
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(args: argparse.Namespace) -> int:
    """Look at everything and print what was found."""
    checks = list(examine(args))
    is_well = all(check.state != "missing" for check in checks)
    if args.json:
        print_json({"is_well": is_well, "checks": checks}, indent=2)
    else:
        write_line("\n".join(report(checks)))
    return exits.OK if is_well else exits.FAILED


def examine(args: argparse.Namespace) -> Iterator[Check]:
    """All checks, those that others rest on first."""
    yield check_python()
    problem: SettingsError | None = None
    try:
        settings = settings_from(args)
    except SettingsError as error:
        problem, settings = error, Settings()
    yield from check_packages(settings.machine.name)
    yield check_compiler()
    if problem is not None:
        yield Check("settings", "missing", str(problem), "correct it; olympus config show prints what is in effect")
    else:
        yield Check("settings", "ok", "valid")
        yield check_home(settings.home_path)
        yield from check_keys(settings)
        yield from (Check(*finding) for finding in safety.findings(settings))
        yield from asyncio.run(check_bus(settings))
    yield check_program("redis-server", "the hot tier and a peer in olympus bench; memory runs on SQLite without it")
    yield check_program("nats-server", "only a peer in olympus bench")
    yield check_gpu()


def report(checks: list[Check]) -> list[str]:
    """The checks as a table, with advice below for all that is not in order."""
    lines = table(("CHECK", "STATE", "FOUND"), [(check.name, check.state, check.found) for check in checks])
    advice = [f"{check.name}: {check.advice}" for check in checks if check.state == "missing"]
    hints = [f"{check.name}: {check.advice}" for check in checks if check.state == "absent" and check.advice]
    if advice:
        lines += ["", "missing:", *(f"  {line}" for line in advice)]
    if hints:
        lines += ["", "optional, or not running:", *(f"  {line}" for line in hints)]
    return lines


def check_python() -> Check:
    """The interpreter's version."""
    wanted = ".".join(map(str, _PYTHON))
    if sys.version_info[:2] < _PYTHON:
        return Check("python", "missing", platform.python_version(), f"install Python {wanted} or later")
    return Check("python", "ok", platform.python_version())


def check_packages(machine: str = "") -> Iterator[Check]:
    """The packages of the base and of each extra, by their metadata alone.

    An extra is required when the machine's Procfile starts a worker of its name.
    """
    required = {"", *clone.workers_of_procfile(machine)}
    for extra, names in clone.requirements().items():
        absent = [name for name in names if not is_installed(name)]
        label = f"extra {extra}" if extra else "packages"
        if not absent:
            yield Check(label, "ok", f"{len(names)} installed")
            continue
        target = f"'.[{extra}]'" if extra else "."
        state: Literal["missing", "absent"] = "missing" if extra in required else "absent"
        yield Check(
            label,
            state,
            f"not installed: {', '.join(absent)}",
            f"pip install -c constraints.txt -e {target} in the clone",
        )


def is_installed(distribution: str) -> bool:
    """True when the package's metadata is here."""
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def check_compiler() -> Check:
    """A C++ compiler, needed once, while llama-cpp-python is being installed."""
    found = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    if found:
        return Check("compiler", "ok", found)
    if is_installed("llama-cpp-python"):
        return Check("compiler", "ok", "none, and none is needed: llama-cpp-python is installed")
    return Check("compiler", "missing", "none", "install g++ or clang++ (package build-essential on Debian and Ubuntu)")


def check_home(home: Path) -> Check:
    """The state folder can be written, is of a format that is known here, and has room."""
    try:
        state.check(home)
    except state.UnusableHome as error:
        return Check("home", "missing", f"{home} cannot be used", str(error))
    existing = next(path for path in (home, *home.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Check("home", "missing", f"{home} cannot be written", "set OLYMPUS_HOME to a folder you may write")
    free = shutil.disk_usage(existing).free
    found = f"{home}, {size(free)} free"
    if free < _SPACE_REQUIRED:
        return Check("home", "missing", found, f"make room: at least {size(_SPACE_REQUIRED)} is needed")
    if free < _SPACE_ADVISED:
        return Check("home", "absent", found, f"less than {size(_SPACE_ADVISED)} is free; models and logs will fill it")
    return Check("home", "ok", found)


def check_keys(settings: Settings) -> Iterator[Check]:
    """This machine's key and the broker's, where the bus is encrypted."""
    bus, keys = settings.bus, Keys(settings)
    if not bus.listen and not bus.server_key:
        return
    checks: list[tuple[str, Callable[[], object]]] = [("key", keys.own)]
    if bus.server_key:
        checks.append(("key of the broker", lambda: keys.of_server(bus.server_key)))
    for name, check in checks:
        try:
            check()
        except UnusableKey as error:
            yield Check(name, "missing", str(error), "docs/two-machines.md")
        else:
            yield Check(name, "ok", f"below {keys.folder}")


def check_needs(settings: Settings, services: list[ServiceInfo]) -> Iterator[Check]:
    """What the services of this machine wait for (`machine.services`)."""
    joined = {service.service for service in services if service.instances}
    for name, needs in parse_services(settings.machine.services).items():
        absent = missing(needs, joined)
        if absent:
            advice = "start it; what waits for it goes on by itself"
            yield Check(f"needs of {name}", "absent", f"waits for {in_words(absent)}", advice)
        elif needs:
            yield Check(f"needs of {name}", "ok", in_words(needs))


async def check_bus(settings: Settings) -> list[Check]:
    """Who holds the ports, and if it is our broker, what runs."""
    if "broker" not in parse_services(settings.machine.services or ("broker",)):
        return await check_bus_elsewhere(settings)
    ports = {key: getattr(settings.bus, key) for key in _PORTS}
    held = {key: is_held(settings.bus.host, port) for key, port in ports.items()}
    if not held["request_port"]:
        return [
            *(check_port(key, port, is_taken=held[key], is_ours=False) for key, port in ports.items()),
            Check("broker", "absent", "not running", "olympus up starts everything"),
        ]
    async with Client(settings, name="doctor") as client:
        try:
            pong: Pong = await client.request("bus.ping", Ping(), timeout_s=_PING_S)
        except BusError as error:
            return [
                *(check_port(key, port, is_taken=held[key], is_ours=False) for key, port in ports.items()),
                Check("broker", "absent", f"no answer: {error.message}", "olympus up starts everything"),
            ]
        services: ServiceList = await client.request("bus.services", BusServices(), timeout_s=_PING_S)
    return [
        *(check_port(key, port, is_taken=held[key], is_ours=True) for key, port in ports.items()),
        *_running(settings, pong, services),
    ]


async def check_bus_elsewhere(settings: Settings) -> list[Check]:
    """Whether the broker of another machine takes us in, and if so, what runs."""
    async with Client(settings, name="doctor") as client:
        try:
            pong: Pong = await client.request("bus.ping", Ping(), timeout_s=_PING_S)
            services: ServiceList = await client.request("bus.services", BusServices(), timeout_s=_PING_S)
        except BusError as error:
            return [Check("broker", "absent", error.message, "start it there; services here wait for it")]
    return _running(settings, pong, services)


def _running(settings: Settings, pong: Pong, services: ServiceList) -> list[Check]:
    return [
        Check("broker", "ok", f"version {pong.version}, up {pong.uptime_s:.0f} s"),
        *check_needs(settings, services.services),
        *(Check(f"service {each.service}", "ok", f"{each.instances} running") for each in services.services),
        *(
            Check(f"service {service}", "absent", "not running", "olympus up starts it; its log says why it ended")
            for service in not_running(services.services)
        ),
    ]


def check_port(key: str, port: int, *, is_taken: bool, is_ours: bool) -> Check:
    """A port is free, ours, or somebody else's."""
    name = f"port {port}"
    if not is_taken:
        if is_ours:
            return Check(
                name, "missing", "the running broker does not listen here", f"is bus.{key} what it started with?"
            )
        return Check(name, "ok", "free")
    if is_ours:
        return Check(name, "ok", "held by Olympus")
    return Check(name, "missing", "held by another program", f"stop that program, or change bus.{key}")


def is_held(host: str, port: int) -> bool:
    """True when something accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=_PING_S):
            return True
    except OSError:
        return False


def check_program(name: str, use: str) -> Check:
    """An optional program on the PATH."""
    found = shutil.which(name)
    return Check(name, "ok", found) if found else Check(name, "absent", "not found", f"optional: {use}")


def check_gpu() -> Check:
    """An NVIDIA GPU and the package that reads its state."""
    tool = shutil.which("nvidia-smi")
    if tool is None and not Path("/dev/nvidia0").exists():
        return Check("gpu", "absent", "none", "optional: models run on the CPU without one")
    if not is_installed("nvidia-ml-py"):
        return Check("gpu", "absent", "present, nvidia-ml-py is not installed", "pip install nvidia-ml-py")
    return Check("gpu", "ok", tool or "/dev/nvidia0")
