"""A service's file of records: what failed is said as it was, and what was deleted is in no file."""

from __future__ import annotations

from pathlib import Path

import pytest

from bus.records import Records
from schemas.errors import Internal


async def test_an_error_is_told_as_it_was_where_sqlite_rolled_back_by_itself(tmp_path: Path) -> None:
    """As it does when a disk is full: that there is nothing to roll back any more is not the error."""
    records = Records(tmp_path / "some.db", tmp_path, "something")
    await records.open()
    try:
        await records.run(lambda c: c.execute("CREATE TABLE things (thing TEXT UNIQUE)"))
        with pytest.raises(Internal, match="UNIQUE"):
            await records.run(lambda c: [c.execute("INSERT OR ROLLBACK INTO things VALUES ('one')") for _ in range(2)])
        assert await records.run(lambda c: c.execute("SELECT count(*) FROM things").fetchone()) == (0,)
    finally:
        await records.close()


async def test_what_was_deleted_is_in_no_file_once_the_log_is_empty(tmp_path: Path) -> None:
    """While the file is open and goes on being used."""
    records = Records(tmp_path / "some.db", tmp_path, "something")
    await records.open()
    try:
        await records.run(lambda c: c.execute("CREATE TABLE things (thing TEXT)"))
        await records.run(lambda c: c.execute("INSERT INTO things VALUES ('the secret garden')"))
        await records.run(lambda c: c.execute("DELETE FROM things"))
        await records.empty_log()
        assert b"secret garden" not in kept(tmp_path)
    finally:
        await records.close()


def kept(folder: Path) -> bytes:
    """Bytes of all files of the records."""
    return b"".join(file.read_bytes() for file in folder.glob("some.db*"))
