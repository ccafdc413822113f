"""`olympus ports`: what the gateways have bound, and what they could not have."""

from __future__ import annotations

import argparse

from bus.cli import exits
from bus.cli.connection import run_with_client
from bus.cli.output import plural, print_json, table, write_line
from bus.client import Client
from schemas.bodies.control import BusWorkers, WorkerList
from schemas.bodies.gateway import GatewayPorts, PortInfo, PortList
from schemas.errors import NoWorker

HELP = "Show the ports of HTTP and of the replaced agents: bound, off, or had by something else."

EXAMPLES = """\
examples:
  olympus ports
  olympus ports --all
  olympus ports --json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `olympus ports`."""
    parser.epilog = EXAMPLES
    parser.add_argument("--all", action="store_true", help="also what is not bound, and why")
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(args: argparse.Namespace) -> int:
    """Ask every gateway and print what it says."""

    async def ask(client: Client) -> int:
        workers: WorkerList = await client.request("bus.workers", BusWorkers(service="gateway"))
        if not workers.workers:
            raise NoWorker("no gateway has joined the bus; `olympus worker gateway` runs one", subject="gateway.ports")
        found: dict[str, list[PortInfo]] = {}
        for worker in workers.workers:
            reply: PortList = await client.request(f"gateway.ports@{worker.instance}", GatewayPorts())
            found[worker.instance] = reply.ports
        if args.json:
            print_json(found, indent=2)
            return exits.OK
        for instance, ports in found.items():
            write_line("\n".join(port_lines(instance, ports, is_all=args.all)))
        return exits.OK

    return run_with_client(args, ask)


def port_lines(instance: str, ports: list[PortInfo], *, is_all: bool) -> list[str]:
    """The table of one gateway, and how many ports it does not show."""
    shown = [info for info in ports if is_all or info.state == "bound"]
    rows = [
        [info.owner, info.purpose, f"{info.host}:{info.port}" if info.port else "-", info.protocol, _state(info)]
        for info in shown
    ]
    hidden = len(ports) - len(shown)
    more = [f"{plural(hidden, 'port')} not bound: olympus ports --all says why"] if hidden else []
    return [f"gateway {instance}", *table(["FOR", "WHAT", "ADDRESS", "SPEAKS", "STATE"], rows), *more]


def _state(info: PortInfo) -> str:
    return f"{info.state}: {info.note}" if info.note else info.state
