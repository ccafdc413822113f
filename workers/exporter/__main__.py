"""Runs the exporter: `python -m workers.exporter [--config FILE] [--set KEY=VALUE]...`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from bus.logs import configure_logging
from bus.settings import settings_of_process
from bus.transport import install_fast_loop
from workers.exporter.service import serve


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM."""
    settings = settings_of_process("python -m workers.exporter", "One page for Prometheus.", argv)
    configure_logging(settings.log)
    install_fast_loop()
    asyncio.run(serve(settings))


if __name__ == "__main__":
    main()
