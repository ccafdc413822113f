"""The file of records of the model service."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from bus.records import Records

_SCHEMA: Final = Path(__file__).parent / "schema"


def model_records(path: Path) -> Records:
    """The records of models at `path`, not yet open."""
    return Records(path, _SCHEMA, "hashes, adapters, usage and results of models; the models themselves are elsewhere")
