"""Runs a command's coroutine with a client, after making sure that a broker is there at all."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable

from bus.cli.arguments import settings_from
from bus.cli.failures import Unreachable
from bus.cli.session import signed_in
from bus.client import Client
from bus.settings import Settings

# A broker on the same machine accepts at once and one in the same network within milliseconds. Seconds.
_CONNECT_S = 3.0


def run_with_client(args: argparse.Namespace, work: Callable[[Client], Awaitable[int]]) -> int:
    """The exit code of `work`, given a connected client. Raises Unreachable or BrokerUnreachable without a broker."""
    settings = settings_from(args)

    async def main() -> int:
        await check_listening(settings)
        async with Client(await signed_in(settings), name="olympus") as client:
            await client.connect(_CONNECT_S)
            return await work(client)

    return asyncio.run(main())


async def check_listening(settings: Settings) -> None:
    """Return when something accepts connections on the request port; raise Unreachable otherwise.

    The client itself tries again until its time is up, as a broker may come back; a person wants to know at once.
    """
    host, port = settings.bus.host, settings.bus.request_port
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), _CONNECT_S)
    except (OSError, TimeoutError) as error:
        why = "refused" if isinstance(error, ConnectionRefusedError) else str(error) or "no answer"
        raise Unreachable(f"no broker at {host}:{port} ({why}); 'olympus up' starts one") from error
    writer.close()
