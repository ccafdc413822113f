"""Runs the memory service: `python -m workers.memory [--config FILE] [--set KEY=VALUE]...`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from bus.logs import configure_logging
from bus.settings import SettingsError, leave_misconfigured, settings_of_process
from bus.transport import install_fast_loop
from workers.memory.service import serve
from workers.memory.sqlite_errors import UnusableDatabase


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM. Leaves with status 78 when the settings or the database file are unusable."""
    settings = settings_of_process(
        "python -m workers.memory", "Key-value entries and facts, on disk before they are acknowledged.", argv
    )
    configure_logging(settings.log)
    install_fast_loop()
    try:
        asyncio.run(serve(settings))
    except (UnusableDatabase, SettingsError) as error:
        leave_misconfigured(str(error))


if __name__ == "__main__":
    main()
