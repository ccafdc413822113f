"""A file that is not whole yet, and the note beside it that lets a later process go on with it. Knows no network.

    NAME.part    what has come
    NAME.state   which content that is of, and how much of it is surely on disk; replaced whole

After a crash of the machine a file may be longer than what was written to its disk: what lies behind the noted length is
then cut off before going on. The death of a process alone takes nothing away that it had written.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path
from typing import Final

import msgspec

# Seconds between two syncs: at most so much of a download is fetched again after a power cut.
SYNC_S: Final = 2.0

# Bytes of one read, and of one step of hashing: between two steps a cancel is heard. A second of a slow disk.
_HASH_BYTES: Final = 1024 * 1024
_STEP_BYTES: Final = 64 * 1024 * 1024

# Source: random(4).
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class PartState(msgspec.Struct, frozen=True, kw_only=True):
    """What the part is of.

    identity: its digest, or the hash of its URL. validator: its strong ETag or its date, "" for none. boot: which run of
    the kernel wrote it.
    """

    identity: str
    validator: str = ""
    total_bytes: int | None = None
    synced_bytes: int = 0
    boot: str = ""


class PartFile:
    """One file on its way. Every method blocks on the disk; one thread at a time."""

    def __init__(self, folder: Path, name: str, identity: str) -> None:
        self.path = folder / f"{name}.part"
        self.final_path = folder / name
        self.state = PartState(identity=identity, boot=_boot())
        self.bytes = 0
        self._state_path = folder / f"{name}.state"
        self._hash = hashlib.sha256()
        self._synced_at = time.monotonic()
        self._file = -1
        self._is_taken_up = False

    def open(self) -> None:
        """Find what is here of this content, which `take_up` goes on with; begin anew where it is of another one."""
        if self.final_path.exists():
            # Whole, and left behind by a pull that ended before it was adopted.
            os.replace(self.final_path, self.path)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        state = self._read_state()
        if state is None or state.identity != self.state.identity:
            self.restart()
            return
        if not state.boot or state.boot != self.state.boot:
            os.ftruncate(self._file, min(state.synced_bytes, os.fstat(self._file).st_size))
        self.state = msgspec.structs.replace(state, boot=self.state.boot)

    def take_up(self) -> bool:
        """Hash a step of what is here; False when all of it is, and the next bytes can be appended."""
        end = self.bytes + _STEP_BYTES
        while not self._is_taken_up and self.bytes < end:
            piece = os.read(self._file, _HASH_BYTES)
            self._hash.update(piece)
            self.bytes += len(piece)
            self._is_taken_up = not piece
        return not self._is_taken_up

    def restart(self) -> None:
        """Forget what has come."""
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        self._hash = hashlib.sha256()
        self.bytes = 0
        self._is_taken_up = True
        self.note(validator="", total_bytes=None)

    def note(self, *, validator: str, total_bytes: int | None) -> None:
        """Write down which content this is."""
        self.state = msgspec.structs.replace(self.state, validator=validator, total_bytes=total_bytes)
        self.sync()

    def append(self, data: bytes | bytearray) -> None:
        """Add what came; sync now and then. Raises OSError when the disk is full."""
        view = memoryview(data)
        while view:
            written = os.write(self._file, view)
            self._hash.update(view[:written])
            self.bytes += written
            view = view[written:]
        if time.monotonic() - self._synced_at >= SYNC_S:
            self.sync()

    def sync(self) -> None:
        """Have the disk hold what has come, then say so."""
        os.fsync(self._file)
        self.state = msgspec.structs.replace(self.state, synced_bytes=self.bytes)
        temporary = self._state_path.with_suffix(".new")
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(self.state))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._state_path)
        self._synced_at = time.monotonic()

    def close(self) -> None:
        """Keep what has come for a later pull."""
        if self._file >= 0:
            try:
                # The older note is as true where the disk is full, or where not all of it was looked at.
                with contextlib.suppress(OSError):
                    if self._is_taken_up:
                        self.sync()
            finally:
                os.close(self._file)
                self._file = -1

    def sha256(self) -> str:
        """The digest of what has come, in hex."""
        return self._hash.hexdigest()

    def _read_state(self) -> PartState | None:
        try:
            return msgspec.json.decode(self._state_path.read_bytes(), type=PartState)
        except (OSError, msgspec.DecodeError):
            # Without a readable note nobody knows what the part is of.
            return None


def _boot() -> str:
    """A name for this run of the kernel; "" where it has none."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""
