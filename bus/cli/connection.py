"""Runs a command's coroutine with a client: the chat's where it runs under one, else its own once a broker is there."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from bus.cli.arguments import settings_from
from bus.cli.failures import Unreachable
from bus.cli.hosting import hosted
from bus.cli.session import signed_in
from bus.client import Client
from bus.settings import Settings

# A broker on the same machine accepts at once and one in the same network within milliseconds. Seconds.
_CONNECT_S = 3.0


def run_with_client(args: argparse.Namespace, work: Callable[[Client], Coroutine[Any, Any, int]]) -> int:
    """The exit code of `work`, given a connected client. Raises Unreachable or BrokerUnreachable without a broker."""
    settings = settings_from(args)
    host = hosted()
    if host is not None:
        check_connected(host.client)
        return host.run(work(host.client))

    async def main() -> int:
        await check_listening(settings)
        async with Client(await signed_in(settings), name="olympus") as client:
            await client.connect(_CONNECT_S)
            return await work(client)

    return asyncio.run(main())


def check_connected(client: Client) -> None:
    """Raise Unreachable while a chat's connection is broken: whoever sits there wants to know it now."""
    if not client.is_connected:
        raise Unreachable("the bus is away; this chat goes on as soon as it is back")


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
