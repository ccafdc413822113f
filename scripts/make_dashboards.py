#!/usr/bin/env python3
"""Writes the Grafana dashboards below config/grafana/dashboards; with --check only says whether they are up to date."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

# The script reads the tree it stands in, wherever it is called from.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from dashboard_parts import bus, errors, learning, memory, models, overview
from dashboard_parts.panels import Dashboard, as_json

FOLDER: Final = Path(__file__).resolve().parent.parent / "config" / "grafana" / "dashboards"

DASHBOARDS: Final[dict[str, Dashboard]] = {
    "overview": overview.DASHBOARD,
    "bus": bus.DASHBOARD,
    "memory": memory.DASHBOARD,
    "models": models.DASHBOARD,
    "learning": learning.DASHBOARD,
    "errors": errors.DASHBOARD,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files, or compare them; 1 when one differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 when a file is out of date")
    is_check = parser.parse_args(argv).check
    outdated = [path for path, text in texts().items() if not path.exists() or path.read_text() != text]
    if is_check and outdated:
        names = ", ".join(path.name for path in outdated)
        print(f"out of date: {names}; scripts/make_dashboards.py writes them", file=sys.stderr)
        return 1
    if not is_check:
        FOLDER.mkdir(parents=True, exist_ok=True)
        for path, text in texts().items():
            path.write_text(text)
    return 0


def texts() -> dict[Path, str]:
    """What each file should hold."""
    every = list(DASHBOARDS.values())
    return {
        FOLDER / f"{name}.json": json.dumps(as_json(one, every), indent=2, ensure_ascii=False) + "\n"
        for name, one in DASHBOARDS.items()
    }


if __name__ == "__main__":
    sys.exit(main())
