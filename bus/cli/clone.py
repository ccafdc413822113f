"""Where the clone lies that this command runs from, and what its project file declares."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def benches() -> dict[str, Path]:
    """The measuring scripts `scripts/bench_NAME.py` by name; empty outside a clone."""
    found = sorted((ROOT / "scripts").glob("bench_*.py"))
    return {path.stem.removeprefix("bench_"): path for path in found}


def requirements() -> dict[str, list[str]]:
    """Names of the packages each extra asks for; "" holds those every installation needs. Empty outside a clone.

    An extra that names another extra of this project takes over what that one asks for.
    """
    path = ROOT / "pyproject.toml"
    if not path.is_file():
        return {}
    project: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    declared = {"": project.get("dependencies", []), **project.get("optional-dependencies", {})}
    own = project["name"].lower()
    return {extra: _names(entries, declared, own) for extra, entries in declared.items()}


def procfile(machine: str = "") -> Path:
    """The Procfile of a machine, by `machine.name`."""
    return ROOT / (f"Procfile.{machine}" if machine else "Procfile")


def workers_of_procfile(machine: str = "") -> list[str]:
    """Names that the `worker NAME` lines of a machine's Procfile start; empty outside a clone."""
    path = procfile(machine)
    if not path.is_file():
        return []
    return re.findall(r"^[^#\n]*\bworker\s+([a-z][a-z0-9_-]*)", path.read_text(encoding="utf-8"), re.MULTILINE)


def _names(entries: list[str], declared: dict[str, list[str]], own: str) -> list[str]:
    names: list[str] = []
    for entry in entries:
        requirement = entry.partition(";")[0].strip()
        name = _NAME.match(requirement)
        if name is None:
            continue
        if name[0].lower() != own:
            names.append(name[0])
            continue
        extras = re.findall(r"\[([^\]]*)\]", requirement)
        for extra in (part.strip() for group in extras for part in group.split(",")):
            names += _names(declared.get(extra, []), declared, own)
    return list(dict.fromkeys(names))
