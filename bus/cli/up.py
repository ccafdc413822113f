"""`olympus up`: starts every line of the Procfile with honcho and says when the whole of it is ready."""

from __future__ import annotations

import argparse
import asyncio
import errno
import os
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Final

from bus.cli import clone, exits
from bus.cli.arguments import overrides_from, settings_flags, settings_from
from bus.cli.failures import UsageError, say
from bus.cli.model_flags import add_model_flags
from bus.cli.output import plural
from bus.client import Client
from bus.keys import Keys, UnusableKey
from bus.needs import in_words, needs_of, service_of
from bus.needs import missing as needed_and_missing
from bus.readiness import say_ready
from bus.reminder import Reminder
from bus.settings import Need, Settings, SettingsError, child_environment, parse_services
from bus.state import enter
from bus.supervisor import STOP_SIGNALS, describe_status, die_with_parent
from schemas.bodies.control import BusWorkers, WorkerList
from schemas.bodies.gateway import GatewayPorts, PortInfo, PortList
from schemas.errors import BusError

HELP = "start everything: the broker and every service"

_EPILOG = """\
Stops everything on Ctrl-C or SIGTERM, and leaves with 0 then. Settings given here reach every process. With
machine.name set it starts the lines of Procfile.NAME, and waits for what runs on other machines (docs/two-machines.md).

examples:
  olympus up
  olympus up --only broker,memory
  olympus --config config/pc2.yaml up
  olympus --set bus.request_port=7400 up
  olympus up --model olympus-demo --temperature 0.2
  OLYMPUS_HOME=/tmp/olympus olympus up
"""

# Seconds after which a service that is not ready is named; nothing is stopped then, it may still come.
_PATIENCE_S: Final = 60.0
_LOOK_EVERY_S: Final = 0.1
_ASK_S: Final = 2.0

# honcho fails in its signal handler when it is stopped before it has started every line; it takes 0.2 s for that.
_HONCHO_START_S: Final = 1.0

# honcho kills what is still there 5 s after the first process ended; past that honcho itself is stuck.
_HONCHO_STOP_S: Final = 7.0

# What a newcomer may ask a service first.
_FIRST_WORDS: Final = {
    "memory": """req memory.remember '{"key": "colour", "value": "blue"}'""",
    "models": "chat",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments and examples."""
    parser.add_argument("--only", metavar="NAMES", help="start only these lines of the Procfile, separated by commas")
    add_model_flags(parser)
    parser.epilog = _EPILOG


def run(args: argparse.Namespace) -> int:
    """Start, say when everything is ready, and wait for the end."""
    settings = settings_from(args)
    names = _chosen(settings, args.only)
    enter(settings.home_path)
    if "broker" in names:
        _check_ports(settings)
    _check_key(settings, names)
    return asyncio.run(_Run(args, settings, names).run())


def _chosen(settings: Settings, only: str | None) -> list[str]:
    """What to start: the Procfile's names, those of them that the settings list, or those in `only`."""
    from honcho.environ import parse_procfile

    procfile = clone.procfile(settings.machine.name)
    if not procfile.is_file():
        raise SettingsError(f"machine.name is {settings.machine.name!r}, and there is no {procfile}")
    known = list(parse_procfile(procfile.read_text(encoding="utf-8")).processes)
    listed = list(parse_services(settings.machine.services)) or known
    strange = [name for name in listed if name not in known]
    if strange:
        raise SettingsError(f"machine.services names {', '.join(strange)}, which {procfile.name} has no line for")
    known = listed
    if only is None:
        return known
    wanted = [name.strip() for name in only.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise UsageError(f"--only {only!r}: expected names from {', '.join(known)}, separated by commas")
    return [name for name in known if name in wanted]


def _check_ports(settings: Settings) -> None:
    """Raise SettingsError naming the key to change when a port of the broker cannot be had."""
    keys = ("request_port", "publish_port", "subscribe_port", "sequenced_port")
    for host, key in product((settings.bus.host, *settings.bus.listen), keys):
        port = getattr(settings.bus, key)
        try:
            _try_to_bind(host, port)
        except OSError as error:
            where = f"port {port} of {host} (bus.{key})"
            if error.errno == errno.EADDRNOTAVAIL:
                raise SettingsError(
                    f"{host} is no address of this machine, and the broker shall listen there: correct bus.listen,"
                    " bus.host or machine.addresses"
                ) from error
            if error.errno == errno.EADDRINUSE:
                raise SettingsError(
                    f"{where} is already taken, by another `olympus up` or by another program. Stop that one (`olympus"
                    f" status` says whether it is Olympus), or choose another port: olympus --set bus.{key}=PORT up"
                ) from error
            raise SettingsError(f"{where} cannot be used: {error.strerror or error}") from error


def _check_key(settings: Settings, names: Sequence[str]) -> None:
    """Raise SettingsError when something here speaks encrypted and this machine has no good key."""
    if settings.bus.server_key or (settings.bus.listen and "broker" in names):
        try:
            Keys(settings).own()
        except UnusableKey as error:
            raise SettingsError(str(error)) from error


def _try_to_bind(host: str, port: int) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        # As the broker does: connections of an earlier run that are still closing are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


class _Run:
    """One run of honcho, from its start to its end."""

    def __init__(self, args: argparse.Namespace, settings: Settings, names: Sequence[str]) -> None:
        self._args = args
        self._settings = settings
        self._names = names
        self._stop = asyncio.Event()
        self._started_at = time.monotonic()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for signum in STOP_SIGNALS:
            loop.add_signal_handler(signum, self._stop.set)
        honcho = await self._start_honcho()
        ended = asyncio.ensure_future(honcho.wait())
        asked = asyncio.ensure_future(self._stop.wait())
        watching = asyncio.ensure_future(self._watch())
        await asyncio.wait({ended, asked}, return_when=asyncio.FIRST_COMPLETED)
        watching.cancel()
        await asyncio.wait({watching})
        asked.cancel()
        if ended.done():
            return self._explain_end(ended.result())
        await self._stop_honcho(honcho, ended)
        return exits.OK

    async def _start_honcho(self) -> asyncio.subprocess.Process:
        """honcho in a process group of its own, so that Ctrl-C reaches us alone and honcho gets one clear SIGTERM.

        No .env file is read: settings come from the file, the environment and flags only.
        """
        binaries = str(Path(sys.executable).parent)
        environment = child_environment(self._args.config, overrides_from(self._args))
        procfile = clone.procfile(self._settings.machine.name)
        environment["PATH"] = os.pathsep.join([binaries, environment.get("PATH", os.defpath)])
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "bus.procfile", "-f", str(procfile), "-e", os.devnull, "start", *self._names),
            env=environment,
            process_group=0,
            preexec_fn=die_with_parent(signal.SIGTERM),
        )

    async def _stop_honcho(self, honcho: asyncio.subprocess.Process, ended: asyncio.Future[int]) -> None:
        await asyncio.wait({ended}, timeout=max(0.0, self._started_at + _HONCHO_START_S - time.monotonic()))
        if not ended.done():
            honcho.terminate()
            await asyncio.wait({ended}, timeout=_HONCHO_STOP_S + self._settings.supervisor.stop_s)
        if not ended.done():
            say("honcho does not stop and is killed; every supervisor ends its own process")
            honcho.kill()
            await ended

    def _explain_end(self, status: int) -> int:
        why = {
            exits.GAVE_UP: "a service kept dying and was given up; its last lines are above",
            exits.CONFIGURATION: "the settings or the home cannot be used; the line above says why",
        }.get(status, f"honcho {describe_status(status)}")
        say(f"everything has stopped: {why}")
        return status if status in (exits.GAVE_UP, exits.CONFIGURATION) else exits.FAILED

    # Readiness ---------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Say when every line is ready: whom it waits for elsewhere ever more rarely, and after `_PATIENCE_S` who is late."""
        was_named = False
        reminder = Reminder()
        async with Client(self._settings, name="up") as client:
            while True:
                missing, elsewhere = await self._look(client)
                if not missing and not elsewhere:
                    break
                if elsewhere and reminder.is_due("\n".join(elsewhere), time.monotonic()):
                    self._print("waiting for another machine; what runs here goes on by itself then:", elsewhere)
                elif missing and not was_named and time.monotonic() - self._started_at > _PATIENCE_S:
                    was_named = True
                    self._print_missing(missing)
                await asyncio.sleep(_LOOK_EVERY_S)
            edges = edge_lines(await self._edge_ports(client), has_console=self._settings.rest.console)
        self._print_ready(edges)
        say_ready()

    async def _look(self, client: Client) -> tuple[dict[str, str], list[str]]:
        """Names that are not ready, with the reason; and what is missing on other machines, in words."""
        bus = self._settings.bus
        try:
            reply: WorkerList = await client.request("bus.workers", BusWorkers(), timeout_s=_ASK_S)
        except BusError as error:
            if "broker" not in self._names and bus.server_key:
                return {}, [f"{', '.join(self._names)}: {error.message}"]
            where = f"{bus.host}:{bus.request_port}"
            return dict.fromkeys(self._names, f"the broker at {where} does not answer ({error.code})"), []
        here = socket.gethostname()
        joined = {worker.service for worker in reply.workers}
        joined_here = {"broker", *(worker.service for worker in reply.workers if worker.host == here)}
        missing = [name for name in self._names if service_of(name) not in joined_here]
        elsewhere = [
            f"{name} waits for {in_words(absent)}"
            for name in self._names
            if (absent := [need for need in self._absent_needs(name, joined) if need.machine])
        ]
        return dict.fromkeys(missing, "has not joined the bus; its own lines above say why"), elsewhere

    async def _edge_ports(self, client: Client) -> list[PortInfo]:
        """What the gateway here has bound and could not bind; nothing where none was started or it says nothing."""
        if "gateway" not in self._names:
            return []
        try:
            workers: WorkerList = await client.request("bus.workers", BusWorkers(service="gateway"), timeout_s=_ASK_S)
            here = [worker.instance for worker in workers.workers if worker.host == socket.gethostname()]
            if not here:
                return []
            reply: PortList = await client.request(f"gateway.ports@{here[0]}", GatewayPorts(), timeout_s=_ASK_S)
        except BusError:
            return []
        return reply.ports

    def _absent_needs(self, name: str, joined: set[str]) -> list[Need]:
        return needed_and_missing(needs_of(self._settings, service_of(name)), joined)

    def _print_missing(self, missing: dict[str, str]) -> None:
        late = [f"{name}: {why}" for name, why in missing.items()]
        self._print(f"not ready after {_PATIENCE_S:g} s, still waiting:", late)

    def _print_ready(self, edges: Sequence[str]) -> None:
        took_s = time.monotonic() - self._started_at
        commands = [_FIRST_WORDS[name] for name in reversed(self._names) if name in _FIRST_WORDS][:1]
        olympus = self._how_to_call()
        lines = "\n".join(f"  {olympus} {command}" for command in [*commands, "tap '>'", "status"])
        more = "".join(f"{line}\n" for line in edges)
        self._print(
            f"Olympus is ready: {', '.join(self._names)}, {took_s:.1f} s after the start. In a second terminal:\n\n"
            f"{lines}\n\n{more}Ctrl-C here stops everything."
        )

    def _how_to_call(self) -> str:
        """What to type in another terminal to reach this very installation with these very settings."""
        script = Path(sys.executable).parent / "olympus"
        on_path = shutil.which("olympus")
        if on_path and Path(on_path).resolve() == script.resolve():
            name = "olympus"
        elif script.is_relative_to(Path.cwd()):
            name = str(script.relative_to(Path.cwd()))
        else:
            name = str(script)
        return shlex.join([name, *settings_flags(self._args)])

    def _print(self, text: str, lines: Sequence[str] = ()) -> None:
        """A block that stands out among the services' own lines."""
        below = "".join(f"\n  {line}" for line in lines)
        print(f"\n{text}{below}\n", file=sys.stderr, flush=True)


def edge_lines(ports: Sequence[PortInfo], *, has_console: bool) -> list[str]:
    """For a newcomer: pages to look at and to read, how many old ports are open, and what another program has."""
    lines = []
    open_ports = [f"http://{_reached(info)}" for info in ports if _is_rest(info) and info.state == "bound"]
    if open_ports:
        if has_console:
            lines.append(f"Web console: {open_ports[0]}/console")
        lines.append(f"HTTP, for a browser: {' '.join(f'{one}/docs' for one in open_ports)}")
    agents = {info.owner for info in ports if info.purpose in ("requests", "errors") and info.state == "bound"}
    if agents:
        lines.append(f"Answered on their old ports: {plural(len(agents), 'agent')}")
    taken = [f"{info.host}:{info.port} ({info.owner})" for info in ports if info.state == "taken"]
    if taken:
        lines.append(f"Not opened, because another program has them: {', '.join(taken)}")
    return [*lines, ""] if lines else []


def _is_rest(info: PortInfo) -> bool:
    return info.purpose == "rest" and info.owner in ("memory", "models", "learning")


def _reached(info: PortInfo) -> str:
    """Where a browser on this machine finds a port; one that is bound everywhere is on loopback, too."""
    host = "127.0.0.1" if info.host in ("0.0.0.0", "::") else info.host
    return f"[{host}]:{info.port}" if ":" in host else f"{host}:{info.port}"
