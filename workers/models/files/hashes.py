"""SHA-256 of models: known ones at once, others computed on demand or in the background, one at a time and gently."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Final

from schemas.errors import BusError, Conflict
from workers.models.catalogue import Catalogue, Entry
from workers.models.files.kept import Kept
from workers.models.files.reading import Progress, Report, digest_of, hash_file
from workers.models.found import PART, Found, FoundFile, stamp_of

log = logging.getLogger("olympus.models")

# Bytes per second that hashing in the background reads. SHA-256 takes a tenth of a core for it, and a disk has room for
# a load beside it; 100 GB take half an hour, once.
BACKGROUND_RATE: Final = 64 * 1024 * 1024

# Seconds for which a file must not have changed before it is hashed in the background: a copy may be on its way.
_SETTLED_S: Final = 5.0

# Files of a folder that are for people: they may change, and the model is the same.
_FOR_PEOPLE: Final = ("README", "LICENSE", "NOTICE")


def content_of(found: Found) -> tuple[FoundFile, ...]:
    """The files of a model that its hash is about: weights, configuration, tokenizer and templates."""
    if found.format == "gguf":
        return found.files
    return tuple(
        file for file in found.files if not file.path.name.startswith(_FOR_PEOPLE) and file.path.suffix != ".md"
    )


def _label(file: FoundFile) -> str:
    """A file's name as it goes into the model's hash: of a split model's parts without the model's own name."""
    part = PART.fullmatch(file.path.name)
    return f"{part['number']}-of-{part['count']}.gguf" if part is not None else file.path.name


class Hashes:
    """The hashes of the catalogue's models."""

    def __init__(self, catalogue: Catalogue, kept: Kept) -> None:
        self._catalogue = catalogue
        self._kept = kept
        # Where models came from that have no hash yet, by what their files are.
        self._sources: dict[tuple[FoundFile, ...], str] = {}

    def known(self, entry: Entry) -> str | None:
        """The model's hash, if it is known for what its files are now."""
        if entry.found is None or entry.info.state == "unusable":
            return None
        hashes = []
        for file in content_of(entry.found):
            sha256 = self._kept.hash_of(file)
            if sha256 is None:
                return None
            hashes.append((_label(file), sha256))
        return digest_of(hashes) if hashes else None

    async def compute(self, found: Found, report: Report | None = None, *, fresh: bool = False) -> str:
        """The model's hash; files whose hash is known are read only when it must be `fresh`, and then nothing is kept.

        Raises Conflict when a file changes meanwhile, and OSError.
        """
        files = content_of(found)
        progress = Progress("hashing", sum(file.stamp.size for file in files if file.stamp is not None), report)
        return digest_of([(_label(file), await self._hash(file, progress, fresh=fresh)) for file in files])

    async def _hash(self, file: FoundFile, progress: Progress, *, fresh: bool, max_rate: float = 0.0) -> str:
        known = None if fresh else self._kept.hash_of(file)
        if known is not None and file.stamp is not None:
            await progress.add(file.stamp.size)
            return known
        sha256 = await hash_file(file.path, progress, max_rate=max_rate)
        stamp = await asyncio.to_thread(stamp_of, file.path)
        if stamp is None or stamp != file.stamp:
            raise Conflict(f"{file.path} changed while it was read", path=str(file.path))
        if not fresh:
            await self._kept.keep_hash(file.path, stamp, sha256)
        return sha256

    async def keep(self, entry: Entry, source: str = "") -> None:
        """Note the hash of `entry` as a version of its name; the source of what has none yet is noted with it later."""
        sha256 = self.known(entry)
        if sha256 is not None:
            source = source or self._sources.pop(entry.files, "")
            await self._kept.keep_version(entry.info.name, sha256, entry.info.size_bytes, entry.info.path, source)
        elif source:
            self._sources[entry.files] = source

    def source_of(self, entry: Entry) -> str:
        """Where the content came from, "" where nobody said."""
        return self._sources.get(entry.files) or self._kept.source_of(entry.info.name, self.known(entry))

    async def catch_up(self) -> None:
        """Hash what has no hash yet, small models first. What cannot be read or is being written waits for later."""
        waiting = [entry for entry in self._catalogue.all() if self._is_due(entry)]
        for entry in sorted(waiting, key=lambda entry: entry.info.size_bytes):
            assert entry.found is not None
            try:
                for file in content_of(entry.found):
                    await self._hash(file, Progress("hashing", 0, None), fresh=False, max_rate=BACKGROUND_RATE)
                await self.keep(entry)
            except (OSError, BusError) as error:
                log.info(
                    "model not hashed",
                    extra={"action": "model.hash.failed", "model": entry.info.name, "error": str(error)},
                )

    def _is_due(self, entry: Entry) -> bool:
        if entry.found is None or not entry.is_first or entry.info.state == "unusable":
            return False
        newest = max((file.stamp.mtime_ns for file in entry.files if file.stamp is not None), default=0)
        is_settled = abs(time.time() - newest / 1e9) >= _SETTLED_S
        return self.known(entry) is None and is_settled

    async def keep_hash(self, path: Path, sha256: str) -> None:
        """Remember the hash of the file that is at `path` now."""
        stamp = await asyncio.to_thread(stamp_of, path)
        if stamp is not None:
            await self._kept.keep_hash(path, stamp, sha256)
