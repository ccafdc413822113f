"""What is kept about model files beside the files: hashes, versions and aliases, in the records and in memory.

Nothing of it is written into a model root, which other machines may share.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from typing import Final

from bus.records import Records
from schemas.bodies.model import ModelVersion
from workers.models.found import FoundFile, Stamp

# Versions kept of a name, the newest: what is trained or written again and again would fill every list of models.
_VERSIONS_MAX: Final = 64


class Kept:
    """Read once by `load`, then answered from memory; every change is on disk before it is answered."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._hashes: dict[Path, tuple[str, str]] = {}
        self._versions: dict[str, dict[str, ModelVersion]] = {}
        self.aliases: dict[str, str] = {}

    async def load(self) -> None:
        """Read everything. Once, before anything else."""

        def read(connection: sqlite3.Connection) -> None:
            for path, stamp, sha256 in connection.execute("SELECT path, stamp, sha256 FROM file_hashes"):
                self._hashes[Path(os.fsdecode(path))] = (stamp, sha256)
            for row in connection.execute(
                "SELECT model, sha256, size_bytes, added_at, source, path FROM model_versions ORDER BY added_at"
            ):
                version = ModelVersion(sha256=row[1], size_bytes=row[2], added_at=row[3], source=row[4], path=row[5])
                self._versions.setdefault(row[0], {})[row[1]] = version
            self.aliases.update(connection.execute("SELECT alias, model FROM model_aliases"))

        await self._records.run(read)

    # Hashes

    def hash_of(self, file: FoundFile) -> str | None:
        """The file's SHA-256, if it is known for exactly this content."""
        known = self._hashes.get(file.path)
        return known[1] if known is not None and file.stamp is not None and known[0] == _text(file.stamp) else None

    async def keep_hash(self, path: Path, stamp: Stamp, sha256: str) -> None:
        """Remember the hash of what is at `path` with this stamp."""
        await self._records.run(
            lambda connection: connection.execute(
                "INSERT OR REPLACE INTO file_hashes VALUES (?, ?, ?)", (os.fsencode(path), _text(stamp), sha256)
            )
        )
        self._hashes[path] = (_text(stamp), sha256)

    async def forget_hashes(self, paths: list[Path]) -> None:
        """Forget what was at `paths`."""
        await self._records.run(
            lambda connection: connection.executemany(
                "DELETE FROM file_hashes WHERE path = ?", [(os.fsencode(path),) for path in paths]
            )
        )
        for path in paths:
            self._hashes.pop(path, None)

    # Versions

    def versions(self, model: str) -> list[ModelVersion]:
        """The contents that `model` has had, the oldest first."""
        return sorted(self._versions.get(model, {}).values(), key=lambda version: version.added_at)

    def source_of(self, model: str, sha256: str | None) -> str:
        """Where the content came from, "" where nobody said."""
        version = self._versions.get(model, {}).get(sha256 or "")
        return version.source if version is not None else ""

    async def keep_version(self, model: str, sha256: str, size_bytes: int, path: str, source: str = "") -> None:
        """Remember that `model` has this content now, at `path`; what was there before is no longer here."""
        known = self._versions.get(model, {}).get(sha256)
        if known is not None and known.path == path and source in ("", known.source):
            return
        version = ModelVersion(
            sha256=sha256,
            size_bytes=size_bytes,
            added_at=known.added_at if known is not None else time.time(),
            source=source or (known.source if known is not None else ""),
            path=path,
        )

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE model_versions SET path = '' WHERE model = ?", (model,))
            connection.execute(
                "INSERT OR REPLACE INTO model_versions VALUES (?, ?, ?, ?, ?, ?)",
                (model, sha256, size_bytes, version.added_at, version.source, path),
            )
            connection.execute(
                "DELETE FROM model_versions WHERE model = ? AND path = '' AND sha256 NOT IN"
                " (SELECT sha256 FROM model_versions WHERE model = ? ORDER BY added_at DESC LIMIT ?)",
                (model, model, _VERSIONS_MAX),
            )

        await self._records.run(write)
        self._leave(model)
        self._versions.setdefault(model, {})[sha256] = version
        for old in self.versions(model)[:-_VERSIONS_MAX]:
            if not old.path:
                del self._versions[model][old.sha256]

    async def end_versions(self, model: str) -> None:
        """Remember that no content of `model` is here any more."""
        await self._records.run(
            lambda connection: connection.execute("UPDATE model_versions SET path = '' WHERE model = ?", (model,))
        )
        self._leave(model)

    def _leave(self, model: str) -> None:
        for sha256, version in self._versions.get(model, {}).items():
            if version.path:
                self._versions[model][sha256] = ModelVersion(
                    sha256=sha256, size_bytes=version.size_bytes, added_at=version.added_at, source=version.source
                )

    # Aliases

    async def keep_alias(self, alias: str, model: str) -> None:
        """Let `alias` mean `model`."""
        await self._records.run(
            lambda connection: connection.execute("INSERT OR REPLACE INTO model_aliases VALUES (?, ?)", (alias, model))
        )
        self.aliases[alias] = model

    async def forget_aliases(self, aliases: list[str]) -> None:
        """Let these mean nothing."""
        await self._records.run(
            lambda connection: connection.executemany(
                "DELETE FROM model_aliases WHERE alias = ?", [(alias,) for alias in aliases]
            )
        )
        for alias in aliases:
            self.aliases.pop(alias, None)


def _text(stamp: Stamp) -> str:
    """As text, because inodes of some file systems do not fit SQLite's integers."""
    return f"{stamp.size} {stamp.mtime_ns} {stamp.inode}"
