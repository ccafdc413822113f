"""The SQL function `has_metadata`: whether packed metadata has the values that a filter asks for."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

from workers.memory.values import unpack


def prepare(connection: sqlite3.Connection, wanted: Mapping[str, Any]) -> None:
    """Give the connection `has_metadata(packed)` for these values; nothing where none are asked for."""
    if not wanted:
        return

    def has_metadata(packed: bytes | None) -> bool:
        metadata = unpack(packed) if packed else None
        return isinstance(metadata, dict) and all(
            key in metadata and metadata[key] == value for key, value in wanted.items()
        )

    connection.create_function("has_metadata", 1, has_metadata)
