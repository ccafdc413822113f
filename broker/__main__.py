"""`python -m broker [--config FILE] [--set KEY=VALUE]...`: run the broker until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import resource
import signal
import sqlite3
from typing import Final

from broker.server import Broker
from bus import transport
from bus.collector import spare_what_stays
from bus.keys import UnusableKey
from bus.logs import configure_logging
from bus.settings import Settings, leave_misconfigured, settings_of_process

# Of the time to leave, kept for closing connections and writing the log.
_LEAVE_S: Final = 1.5


async def serve(settings: Settings) -> None:
    """Run the broker until it is told to stop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    broker = Broker(settings)
    await broker.start()
    spare_what_stays()
    await stop.wait()
    await broker.drain(settings.supervisor.stop_s - _LEAVE_S)
    await broker.stop()


def _allow_connections() -> None:
    """Every peer takes a descriptor, and the customary soft limit of 1,024 is soon reached; the hard one is for this."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    """Entry point. Leaves with EX_CONFIG when a port is taken or the state folder cannot be used."""
    settings = settings_of_process("python -m broker", "Route requests and events between clients and workers.")
    configure_logging(settings.log)
    _allow_connections()
    transport.install_fast_loop()
    try:
        asyncio.run(serve(settings))
    except (transport.AddressInUse, UnusableKey) as error:
        leave_misconfigured(str(error))
    except (OSError, sqlite3.Error) as error:
        leave_misconfigured(f"the broker cannot use {settings.path('broker')} or its ports: {error}")


if __name__ == "__main__":
    main()
