"""Runs the error service: `python -m workers.errors [--config FILE] [--set KEY=VALUE]...`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from bus.logs import configure_logging
from bus.settings import settings_of_process
from bus.transport import install_fast_loop
from workers.errors.service import serve


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM. A file of errors that cannot be used is no reason to end: it is said, and tried again."""
    settings = settings_of_process("python -m workers.errors", "What fails on the bus, put together and told.", argv)
    configure_logging(settings.log)
    install_fast_loop()
    asyncio.run(serve(settings))


if __name__ == "__main__":
    main()
