"""The project a folder belongs to: what kind it is, what its own file says, and where each of that is from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """A project and what it asks for. None and empty: it says nothing about that.

    profile: built-in or the person's own, "" for none. evidence: why that one. file: the project file that was read.
    """

    root: Path
    name: str
    profile: str = ""
    evidence: tuple[str, ...] = ()
    file: Path | None = None
    model: str | None = None
    system: str = ""
    tools: tuple[str, ...] | None = None
    routing: str | None = None
    options: dict[str, Any] = {}
    templates: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
