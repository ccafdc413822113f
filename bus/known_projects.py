"""What this person has seen and chosen of projects, OLYMPUS_HOME/chat/projects.json: their files, and their profiles.

A project file is somebody else's text when a repository was cloned, and it changes with every pull: this is how a chat
knows that it has not been seen as it is now.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from bus.private_file import write_private
from bus.projects import Project
from bus.settings import Settings

# Projects kept; those that changed longest ago go first.
_KEPT: Final = 1_000


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """One project. digest: SHA-256 of its file when it was last seen, "" for none. profile: chosen for good, or ""."""

    digest: str = ""
    profile: str = ""


def load(settings: Settings) -> dict[str, Known]:
    """Everything known, by root. A damaged file knows nothing: all it costs is that projects are told of once more."""
    try:
        return msgspec.json.decode(_file(settings).read_bytes(), type=dict[str, Known])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return {}


def chosen(known: Mapping[str, Known]) -> dict[str, str]:
    """Profiles that this person chose for good, by the root of the project."""
    return {root: one.profile for root, one in known.items() if one.profile}


def is_new(project: Project, known: Mapping[str, Known]) -> bool:
    """True for a project whose file has not been seen as it is now."""
    if project.file is None:
        return False
    return known.get(str(project.root), Known()).digest != _digest(project.file)


def see(project: Project, settings: Settings) -> None:
    """From now on the project's file is known as it is now; where the home cannot be written it stays new."""
    if project.file is None or not is_new(project, load(settings)):
        return
    try:
        _change(settings, project.root, digest=_digest(project.file))
    except OSError:
        # All that comes of it is that the file is told of once more.
        return


def choose(root: Path, profile: str, settings: Settings) -> None:
    """The project at `root` has this profile from now on; "" leaves it to its file and its looks. Raises OSError."""
    _change(settings, root, profile=profile)


def _change(settings: Settings, root: Path, **changes: str) -> None:
    known = load(settings)
    known[str(root)] = msgspec.structs.replace(known.pop(str(root), Known()), **changes)
    kept = dict(list(known.items())[-_KEPT:])
    try:
        content = msgspec.json.encode(kept)
    except UnicodeEncodeError as error:
        raise OSError(errno.EILSEQ, "the name of the folder is no UTF-8 text", str(root)) from error
    write_private(_file(settings), msgspec.json.format(content))


def _file(settings: Settings) -> Path:
    return settings.path("chat", "projects.json")


def _digest(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        # Gone since it was read: what is told of it once more is told in vain.
        return ""
