"""Lets paths below home that a database holds follow the home to another folder.

Paths are the columns named `path`, and in JSON the keys named `path` or `..._path`. What people wrote is left as it is,
also where it holds such a path. Knows nothing else of any schema.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec

# Names of columns that may hold JSON are not known here: whatever begins like it is looked at.
_JSON_START: Final = "{%"

_PATH_KEY: Final = re.compile(r"(?:.*_)?path")


def follow(database: Path, old: str, new: str) -> int:
    """Replace the folder `old` by `new` in the paths of `database`; how many values changed. Raises sqlite3.Error."""
    changed = 0
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        # Both parents and rows that refer to them may hold paths.
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("BEGIN IMMEDIATE")
        for table, column in _text_columns(connection):
            if _PATH_KEY.fullmatch(column):
                changed += _replace_prefix(connection, table, column, old, new)
            else:
                changed += _replace_in_json(connection, table, column, old, new)
        connection.execute("COMMIT")
    return changed


def moved(value: object, old: str, new: str, key: str = "") -> object:
    """The decoded JSON `value` with its paths below `old` put below `new`."""
    if isinstance(value, dict):
        return {name: moved(below, old, new, name) for name, below in value.items()}
    if isinstance(value, list):
        return [moved(below, old, new, key) for below in value]
    if isinstance(value, str) and _PATH_KEY.fullmatch(key) and value.startswith(f"{old}/"):
        return new + value[len(old) :]
    return value


def _text_columns(connection: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    rows = connection.execute(
        "SELECT tables.name, columns.name FROM sqlite_master AS tables, pragma_table_info(tables.name) AS columns"
        " WHERE tables.type = 'table' AND tables.sql NOT LIKE 'CREATE VIRTUAL%' AND columns.type = 'TEXT'"
    ).fetchall()
    yield from rows


def _replace_prefix(connection: sqlite3.Connection, table: str, column: str, old: str, new: str) -> int:
    return connection.execute(
        f'UPDATE "{table}" SET "{column}" = ? || substr("{column}", ?) WHERE substr("{column}", 1, ?) = ?',
        (new, len(old) + 1, len(old) + 1, f"{old}/"),
    ).rowcount


def _replace_in_json(connection: sqlite3.Connection, table: str, column: str, old: str, new: str) -> int:
    changed = 0
    found = connection.execute(
        f'SELECT DISTINCT "{column}" FROM "{table}" WHERE "{column}" LIKE ? AND instr("{column}", ?)',
        (_JSON_START, f'"{old}/'),
    ).fetchall()
    for (text,) in found:
        try:
            value = msgspec.json.decode(text)
        except msgspec.DecodeError:
            # Text that only looks like it.
            continue
        after = moved(value, old, new)
        if after != value:
            replaced = msgspec.json.encode(after).decode()
            changed += connection.execute(
                f'UPDATE "{table}" SET "{column}" = ? WHERE "{column}" = ?', (replaced, text)
            ).rowcount
    return changed
