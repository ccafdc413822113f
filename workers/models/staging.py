"""Where files lie before they are adopted: below home, or in the first model root where that is another file system.

The last step to the catalogue is a rename, which needs one file system.
"""

from __future__ import annotations

from pathlib import Path

from bus.settings import Settings
from schemas.errors import Unprocessable


def staging_folder(settings: Settings, name: str) -> Path:
    """The folder for one kind of work, made if it is not there. Blocks on the disk.

    Raises OSError, and Unprocessable when the settings name no folder for models.
    """
    if not settings.models.roots:
        raise Unprocessable("models.roots names no folder, so there is none to write models to")
    root = settings.path(settings.models.roots[0])
    home = settings.path(name)
    root.mkdir(parents=True, exist_ok=True)
    home.mkdir(parents=True, exist_ok=True)
    if root.stat().st_dev == home.stat().st_dev:
        return home
    # Hidden, so that nobody takes what is half done for a model.
    folder = root / f".{name}"
    folder.mkdir(exist_ok=True)
    return folder
