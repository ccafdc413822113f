"""Old stores, opened so that nothing in them can change: SQLite files and JSON files below a project's root."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

# Folders that the old programs were started in; what they wrote lies below one of them.
_STARTED_IN: Final = ("", "pc2_code/", "main_pc_code/")

# What SQLite keeps beside a file that was not closed.
LOGS: Final = ("-wal", "-journal")


class UnusableStore(Exception):
    """A store cannot be read; the message names the file and the reason."""


class Found(NamedTuple):
    """A store that exists. name: how reports call it, its path below the root."""

    name: str
    path: Path


def find(root: Path, *candidates: str) -> list[Found]:
    """The files among `candidates` that exist below `root`, or `root` itself where it is a file of that name.

    The old programs joined the data folder twice in places, so `data/X.db` is looked for in `data/data/` too.
    """
    found: dict[Path, Found] = {}
    for candidate in candidates:
        if root.is_file():
            if root.name == Path(candidate).name:
                found[root.resolve()] = Found(root.name, root)
            continue
        doubled = (f"data/{candidate}",) if candidate.startswith("data/") else ()
        for relative in (f"{folder}{name}" for folder in _STARTED_IN for name in (candidate, *doubled)):
            path = root / relative
            if path.is_file():
                found.setdefault(path.resolve(), Found(relative, path))
    return list(found.values())


class Database:
    """A SQLite file, read only."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self.path = path

    @property
    def written_at(self) -> float:
        """Epoch seconds that stand for a time that a row lacks: the same in every run."""
        return self.path.stat().st_mtime

    def columns(self, table: str) -> frozenset[str]:
        """Its columns; empty where there is no such table."""
        return frozenset(row[1] for row in self._ask(f'PRAGMA table_info("{table}")'))

    def count(self, table: str) -> int:
        """Rows of a table; 0 where there is none of the name."""
        return int(next(self._ask(f'SELECT count(*) FROM "{table}"'))[0]) if self.columns(table) else 0

    def rows(self, table: str, *wanted: str) -> Iterator[dict[str, Any]]:
        """Rows in their order of insertion; a column that the table lacks is None in every row."""
        there = self.columns(table)
        if not there:
            return
        names = [name for name in wanted if name in there]
        selected = ", ".join(f'"{name}"' for name in names) or "rowid"
        for row in self._ask(f'SELECT {selected} FROM "{table}" ORDER BY rowid'):
            yield {**dict.fromkeys(wanted), **dict(zip(names, row, strict=False))}

    def _ask(self, query: str) -> Iterator[Any]:
        try:
            yield from self._connection.execute(query)
        except sqlite3.Error as error:
            raise UnusableStore(f"{self.path}: {error}") from error


@contextmanager
def opened(path: Path) -> Iterator[Database]:
    """The database as it was last written.

    Where a log lies beside it, that is the file and the log together, read from a copy: SQLite would write beside them
    even to read. Raises UnusableStore.
    """
    with tempfile.TemporaryDirectory(prefix="olympus-migrate-") as folder:
        try:
            if _has_log(path):
                connection = sqlite3.connect(_copied(path, Path(folder)))
            else:
                # Immutable: SQLite takes no lock and makes no file, whatever the header says.
                connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
        except (OSError, sqlite3.Error) as error:
            raise UnusableStore(f"{path}: {error}") from error
        try:
            connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
            yield Database(connection, path)
        finally:
            connection.close()


def _has_log(path: Path) -> bool:
    parts = (path.with_name(path.name + suffix) for suffix in LOGS)
    return any(part.is_file() and part.stat().st_size > 0 for part in parts)


def _copied(path: Path, folder: Path) -> Path:
    for suffix in ("", *LOGS):
        part = path.with_name(path.name + suffix)
        if part.is_file():
            shutil.copyfile(part, folder / part.name)
    return folder / path.name


def read_json(path: Path) -> Any:
    """A JSON file, also one with NaN or a byte order mark. Raises UnusableStore."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UnusableStore(f"{path}: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises UnusableStore."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UnusableStore(f"{path}: holds {type(value).__name__} where an object is expected")
    return value


def packed(text: Any, kind: type[Any]) -> Any:
    """JSON text of a column as a `kind` (dict or list); empty for NULL and ''. Raises ValueError for anything else."""
    if text is None or text == "":
        return kind()
    value = text if isinstance(text, kind) else json.loads(text)
    if not isinstance(value, kind):
        raise ValueError(f"holds {type(value).__name__} where {kind.__name__} is expected")
    return value


def packed_or_text(text: Any, name: str) -> dict[str, Any]:
    """An object in a column as it is; any other text, or other JSON, as `{name: ...}`; empty for NULL and ''."""
    try:
        value = json.loads(text) if isinstance(text, str) and text else text
    except ValueError:
        value = text
    if value is None or value == "":
        return {}
    return value if isinstance(value, dict) else {name: value}
