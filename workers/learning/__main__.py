"""Runs the learning service: `python -m workers.learning [--config FILE] [--set KEY=VALUE]...`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from bus.logs import configure_logging
from bus.records import UnusableRecords
from bus.settings import SettingsError, leave_misconfigured, settings_of_process
from bus.transport import install_fast_loop
from workers.learning.service import serve


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM. Leaves with status 78 when the settings or the file of records are unusable."""
    settings = settings_of_process(
        "python -m workers.learning", "Detection, datasets, training, the gate and promotion of adapters.", argv
    )
    configure_logging(settings.log)
    install_fast_loop()
    try:
        asyncio.run(serve(settings))
    except (UnusableRecords, SettingsError) as error:
        leave_misconfigured(str(error))


if __name__ == "__main__":
    main()
