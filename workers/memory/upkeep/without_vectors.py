"""Brings a database that came without its vector index up to date, and has every vector made anew.

`python -m workers.memory.upkeep.without_vectors FILE`; `olympus restore` runs it on the file before anybody serves it.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from schemas.errors import BusError
from workers.memory.migrations import load_migrations, migrate, version_of
from workers.memory.sqlite_errors import UnusableDatabase, refusal
from workers.memory.upkeep import staging


def main(argv: Sequence[str] | None = None) -> int:
    """Do it, and return the exit status; what is wrong with the file is said on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m workers.memory.upkeep.without_vectors", description="Have every vector of a database made anew."
    )
    parser.add_argument("path", metavar="FILE", type=Path, help="a database of the memory that nobody has open")
    path: Path = parser.parse_args(argv).path
    try:
        order_vectors(path)
    except UnusableDatabase as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except BusError as error:
        sys.stderr.write(f"{error.code}: {error.message}\n")
        return 1
    return 0


def order_vectors(path: Path) -> None:
    """Bring the database at `path` to the newest schema and order every vector. Raises UnusableDatabase."""
    migrations = load_migrations()
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)
        ) as connection:
            version = version_of(connection, path)
            if version > migrations[-1].number:
                raise UnusableDatabase(
                    f"{path.name} has schema version {version}, this program knows versions up to"
                    f" {migrations[-1].number}: restore it with the program that wrote it"
                )
            migrate(connection, path, migrations)
        staging.reconcile(path, None)
        staging.sync_staged(path)
    except sqlite3.Error as error:
        raise refusal(error, path) from error
    except OSError as error:
        raise UnusableDatabase(f"{path} cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
