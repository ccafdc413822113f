"""Where versions begin: above those of everything of the same kind that is gone from the namespace."""

from __future__ import annotations

import sqlite3
from typing import Literal

Kind = Literal["memory", "document", "context"]


def floor(connection: sqlite3.Connection, ns: str, kind: Kind) -> int:
    """The highest version of what is gone, 0 where nothing is."""
    row = connection.execute("SELECT version FROM version_floors WHERE ns = ? AND kind = ?", (ns, kind)).fetchone()
    return row[0] if row is not None else 0


def raise_floor(connection: sqlite3.Connection, ns: str, kind: Kind, version: int) -> None:
    """Note that something of this version goes."""
    connection.execute(
        "INSERT INTO version_floors (ns, kind, version) VALUES (?, ?, ?)"
        " ON CONFLICT (ns, kind) DO UPDATE SET version = max(version, excluded.version)",
        (ns, kind, version),
    )
