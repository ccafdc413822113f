"""Runs the gateway: `python -m workers.gateway [--config FILE] [--set KEY=VALUE]...`."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Sequence

from bus.logs import configure_logging
from bus.settings import SettingsError, leave_misconfigured, settings_of_process
from bus.transport import install_fast_loop
from workers.gateway.service import serve


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM. Leaves with status 78 when the settings are unusable."""
    settings = settings_of_process("python -m workers.gateway", "HTTP, and the ports of replaced agents.", argv)
    configure_logging(settings.log)
    # Every peer takes a descriptor, and the customary soft limit of 1,024 is soon reached.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    install_fast_loop()
    try:
        asyncio.run(serve(settings))
    except SettingsError as error:
        leave_misconfigured(str(error))


if __name__ == "__main__":
    main()
