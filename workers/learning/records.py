"""The file of records of the learning service."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from bus.records import Records

_SCHEMA: Final = Path(__file__).parent / "schema"


def learning_records(path: Path) -> Records:
    """The records of learning at `path`, not yet open."""
    return Records(path, _SCHEMA, "answers kept for learning, examples, jobs, verdicts and what was put to work")
