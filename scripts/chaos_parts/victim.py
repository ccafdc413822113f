"""A worker to break: it fails, dies, blocks or dawdles when it is asked to. Run as `python -m chaos_parts.victim`."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from bus.logs import configure_logging
from bus.settings import load_settings
from bus.worker import Call, Worker

# How long it blocks its event loop when asked to, seconds: longer than EventLoopSlow allows in the mean, though the lag
# that is told between two heartbeats is 0, and shorter than the three heartbeats after which a worker is lost.
_BLOCK_S = 2.0


async def fail(body: Any, call: Call) -> None:
    """Raise, always from the same place."""
    raise RuntimeError("the chaos script asked for this")


async def die(body: Any, call: Call) -> None:
    """End the process as a crash does."""
    os._exit(139)


async def block(body: Any, call: Call) -> None:
    """Keep everybody else waiting."""
    time.sleep(_BLOCK_S)  # noqa: ASYNC251 - the fault itself


async def dawdle(body: Any, call: Call) -> None:
    """Hold a place until the request is taken back or runs out."""
    await asyncio.Event().wait()


async def main() -> None:
    """Serve `chaos.>` one request at a time, until killed."""
    settings = load_settings()
    configure_logging(settings.log)
    worker = Worker("chaos", settings, capacity=1)
    for subject, handler in {"fail": fail, "die": die, "block": block, "dawdle": dawdle}.items():
        worker.handle(f"chaos.{subject}", handler)
    await worker.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
