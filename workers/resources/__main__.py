"""Runs the resource service: `python -m workers.resources [--config FILE] [--set KEY=VALUE]...`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from bus.logs import configure_logging
from bus.settings import leave_misconfigured, settings_of_process
from bus.transport import install_fast_loop
from workers.resources.book import UnusableBook
from workers.resources.service import serve


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM. Leaves with status 78 when the settings or the file of leases are unusable."""
    settings = settings_of_process("python -m workers.resources", "Devices, and leases on their memory.", argv)
    configure_logging(settings.log)
    install_fast_loop()
    try:
        asyncio.run(serve(settings))
    except UnusableBook as error:
        leave_misconfigured(str(error))


if __name__ == "__main__":
    main()
