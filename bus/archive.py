"""The archive of a backup: a tar file, compressed with gzip, whose first and last member say what is in it.

    olympus-backup.json     Head: format, versions, machine, time, and name, kind and size of every file that follows
    memory/memory.db ...    the files, in the order of the head; regular files only, below no other name than their own
    olympus-checksums.json  Checksums: size and SHA-256 of every file that is there, and which went while it was written

Both directions stream: memory stays flat however large the files. What is read may come from anybody, so nothing in it is
believed before it is checked: no more is read or written than the head declares, and no header is larger than a megabyte.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import tarfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, BinaryIO, Final, Literal, NamedTuple, Protocol, TypeVar

import msgspec
from msgspec import Meta

T = TypeVar("T")

# 1 is the one described above.
FORMAT: Final = 1

# memory: the database of the memory service, which is told after a restore that its vectors are gone. checkpoint: one file
# of a folder that is of use only whole. log: grows at its end, and a torn end is cut off by who opens it.
Kind = Literal["memory", "database", "checkpoint", "log", "keys", "file", "model"]

HEAD: Final = "olympus-backup.json"
CHECKSUMS: Final = "olympus-checksums.json"

_BLOCK_BYTES: Final = 1024 * 1024

# Of gzip. A memory.db of 60 MB packs at 163, 120 and 58 MB/s with 1, 3 and 6, to 23, 22 and 21 % of its size (one core).
_LEVEL: Final = 3

# Bytes of headers before one member, and of the two members that are ours: 200,000 files take 30 MB of them.
_HEADER_MAX_BYTES: Final = 1024 * 1024
_OURS_MAX_BYTES: Final = 64 * 1024 * 1024

FILES_MAX: Final = 200_000
_NAME_MAX: Final = 1_024
# Control characters, what separates folders elsewhere, and what is no UTF-8.
_FORBIDDEN: Final = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")

Size = Annotated[int, Meta(ge=0, le=1 << 62)]


def is_name(name: str) -> bool:
    """Whether a file below a home may have that name in an archive."""
    path = PurePosixPath(name)
    return (
        0 < len(name) <= _NAME_MAX
        and not _FORBIDDEN.search(name)
        and not path.is_absolute()
        and str(path) == name != "."
        and ".." not in path.parts
        and name not in (HEAD, CHECKSUMS)
    )


class BadArchive(Exception):
    """The file is no backup, or a damaged, cut off or hostile one; the message says what is wrong."""


class Entry(msgspec.Struct, frozen=True):
    """A file of the archive. size_bytes: what it has at most."""

    name: str
    kind: Kind
    size_bytes: Size


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The first member. state_format: of the home (bus/state.py). home: where it lay. left_out: names and reasons."""

    format: Annotated[int, Meta(ge=1)]
    version: str
    state_format: Annotated[int, Meta(ge=1)]
    machine: str
    home: str
    created_at: float
    files: list[Entry]
    left_out: dict[str, str] = {}


class Checksum(msgspec.Struct, frozen=True):
    """Of one file."""

    size_bytes: Size
    sha256: str


class Checksums(msgspec.Struct, frozen=True):
    """The last member. gone: files of the head that were deleted before they could be read."""

    files: dict[str, Checksum]
    gone: list[str]


class Source(NamedTuple):
    """A file to be written to an archive. group: it is taken with all that have the same, or not at all."""

    entry: Entry
    path: Path
    group: str


class Sink(Protocol):
    """Where the files of an archive go."""

    def open(self, entry: Entry) -> BinaryIO:
        """A new file for `entry`; it is closed when it is whole."""


# Told the name of the file at hand, and the bytes done so far.
Report = Callable[[str, int], None]


# Writing --------------------------------------------------------------------------------------------------------------


def write_archive(file: BinaryIO, head: Head, sources: Iterable[Source], report: Report) -> Checksums:
    """Write a whole archive to `file`, which is neither flushed nor closed.

    Raises OSError from either side, and OSError too for a file that became shorter while it was read.
    """
    facts: dict[str, Checksum] = {}
    gone: list[str] = []
    done = 0
    with (
        gzip.GzipFile("", "wb", _LEVEL, file, mtime=int(head.created_at)) as packed,
        tarfile.TarFile(
            fileobj=packed, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8", copybufsize=_BLOCK_BYTES
        ) as tar,
    ):
        _add_bytes(tar, HEAD, msgspec.json.encode(head), head.created_at)
        for group in _groups(sources):
            opened = _opened(group)
            if opened is None:
                gone += [source.entry.name for source in group]
                continue
            try:
                for source, content in zip(group, opened, strict=True):
                    facts[source.entry.name] = _add(tar, source.entry, content, done, report)
                    done += source.entry.size_bytes
            finally:
                for content in opened:
                    content.close()
        checksums = Checksums(facts, gone)
        _add_bytes(tar, CHECKSUMS, msgspec.json.encode(checksums), head.created_at)
    return checksums


def _groups(sources: Iterable[Source]) -> Iterator[list[Source]]:
    group: list[Source] = []
    for source in sources:
        if group and group[0].group != source.group:
            yield group
            group = []
        group.append(source)
    if group:
        yield group


def _opened(group: list[Source]) -> list[BinaryIO] | None:
    """All of them open, so that they stay readable when they are deleted; None where one is gone already."""
    opened: list[BinaryIO] = []
    try:
        for source in group:
            opened.append(source.path.open("rb"))  # noqa: PERF401 - what was opened before one fails is closed
    except FileNotFoundError:
        for file in opened:
            file.close()
        return None
    return opened


class _Hashed:
    """Reads a file and keeps count: of bytes, for the report, and of its SHA-256."""

    def __init__(self, file: BinaryIO, name: str, before: int, report: Report) -> None:
        self._file = file
        self._name = name
        self._done = before
        self._report = report
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.sha256.update(data)
        self._done += len(data)
        self._report(self._name, self._done)
        return data


def _add(tar: tarfile.TarFile, entry: Entry, file: BinaryIO, done: int, report: Report) -> Checksum:
    status = os.fstat(file.fileno())
    # What was added since the size was declared is not part of this backup.
    size = min(status.st_size, entry.size_bytes)
    content = _Hashed(file, entry.name, done, report)
    tar.addfile(_member(entry.name, size, status.st_mtime), content)
    return Checksum(size, content.sha256.hexdigest())


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes, at: float) -> None:
    tar.addfile(_member(name, len(data), at), io.BytesIO(data))


def _member(name: str, size: int, at: float) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = size, max(int(at), 0), 0o600
    return member


# Reading --------------------------------------------------------------------------------------------------------------

# What the libraries say of bytes that are no such archive.
_MALFORMED: Final = (
    tarfile.TarError,
    EOFError,
    zlib.error,
    gzip.BadGzipFile,
    ValueError,
    OverflowError,
    RecursionError,
)


class Archive:
    """An archive being read. `head` is checked when it is made; `read` goes through the files, once."""

    def __init__(self, file: BinaryIO, *, newest_state: int) -> None:
        """newest_state: the newest format of a home that can be used. Raises BadArchive, OSError."""
        self._stream = _Stream(gzip.GzipFile(fileobj=file, mode="rb"))
        with _explained():
            # Given to it open and typed for files: it reads, tells, and seeks forward.
            self._tar = tarfile.TarFile(fileobj=self._stream, mode="r", encoding="utf-8", errorlevel=2)  # type: ignore[arg-type]
            self.head = _head(self._next(), self._stream, newest_state)
        self._declared = {entry.name: entry for entry in self.head.files}

    @property
    def total_bytes(self) -> int:
        """What the files take together, at most."""
        return sum(entry.size_bytes for entry in self.head.files)

    def read(self, sink: Sink, report: Report) -> Checksums:
        """Give every file to `sink`, then compare all with the checksums. Raises BadArchive, OSError."""
        facts: dict[str, Checksum] = {}
        while (member := self._member()).name != CHECKSUMS:
            entry = self._checked(member, facts)
            with sink.open(entry) as target:
                sha256 = hashlib.sha256()
                for block in self._blocks(member.size):
                    sha256.update(block)
                    target.write(block)
                    report(entry.name, self._stream.done)
            facts[entry.name] = Checksum(member.size, sha256.hexdigest())
        checksums = self._checksums(member)
        self._compare(facts, checksums)
        with _explained():
            # To the end, where gzip keeps a checksum of everything.
            if self._next() is not None:
                raise BadArchive("it goes on behind its end")
            self._stream.drain()
        return checksums

    def _member(self) -> tarfile.TarInfo:
        with _explained():
            member = self._next()
        if member is None:
            raise BadArchive("it was cut off: its end is missing")
        return member

    def _next(self) -> tarfile.TarInfo | None:
        self._stream.header_bytes_left = _HEADER_MAX_BYTES
        return self._tar.next()

    def _checked(self, member: tarfile.TarInfo, facts: dict[str, Checksum]) -> Entry:
        entry = self._declared.get(member.name)
        if entry is None:
            raise BadArchive(f"it holds {member.name[:200]!r}, which its head does not name")
        if member.name in facts:
            raise BadArchive(f"it holds {member.name!r} twice")
        if not _is_plain(member):
            raise BadArchive(f"{member.name!r} in it is no plain file")
        if member.size > entry.size_bytes:
            raise BadArchive(f"{member.name!r} in it has {member.size} bytes, its head says {entry.size_bytes} at most")
        return entry

    def _blocks(self, size: int) -> Iterator[bytes]:
        while size:
            with _explained():
                block = self._stream.content(min(size, _BLOCK_BYTES))
            if not block:
                raise BadArchive("it was cut off in the middle of a file")
            size -= len(block)
            yield block

    def _checksums(self, member: tarfile.TarInfo) -> Checksums:
        with _explained():
            return _decoded(member, self._stream, Checksums)

    def _compare(self, facts: dict[str, Checksum], checksums: Checksums) -> None:
        for name, fact in facts.items():
            if checksums.files.get(name) != fact:
                raise BadArchive(f"{name!r} in it is damaged: its checksum differs")
        missing = self._declared.keys() - facts.keys() - set(checksums.gone)
        if missing or checksums.files.keys() - facts.keys():
            lost = sorted(missing or checksums.files.keys() - facts.keys())
            raise BadArchive(f"{len(lost)} files are missing in it, {lost[0]!r} among them")


class _Stream:
    """What comes out of gzip, as tarfile wants it, forward only. Refuses headers beyond `header_bytes_left`."""

    def __init__(self, file: gzip.GzipFile) -> None:
        self._file = file
        self.done = 0
        self.header_bytes_left = _HEADER_MAX_BYTES

    def read(self, size: int) -> bytes:
        """For tarfile: bytes of a header."""
        self.header_bytes_left -= size
        if size < 0 or self.header_bytes_left < 0:
            raise BadArchive("one of its headers is larger than any of ours")
        parts = []
        while size and (part := self._file.read(size)):
            parts.append(part)
            size -= len(part)
            self.done += len(part)
        return b"".join(parts)

    def content(self, size: int) -> bytes:
        """Bytes of a file, `size` at most."""
        data = self._file.read(size)
        self.done += len(data)
        return data

    def tell(self) -> int:
        return self.done

    def seek(self, position: int) -> None:
        if position < self.done:
            raise BadArchive("it is not a plain series of files")
        self.read(position - self.done)

    def drain(self) -> None:
        """Read the zeros behind the last member, a few of them."""
        self.header_bytes_left = _HEADER_MAX_BYTES
        while data := self.read(10_240):
            if data.strip(b"\0"):
                raise BadArchive("it goes on behind its end")


class _explained:  # noqa: N801 - reads as a block
    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, _MALFORMED):
            what = "it was cut off" if isinstance(error, EOFError) else f"it cannot be read: {error}"
            raise BadArchive(what) from error


def _is_plain(member: tarfile.TarInfo) -> bool:
    return member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse() and member.size >= 0


def _head(member: tarfile.TarInfo | None, stream: _Stream, newest_state: int) -> Head:
    if member is None or member.name != HEAD:
        raise BadArchive("it is no backup of Olympus")
    head = _decoded(member, stream, Head)
    if head.format > FORMAT or head.state_format > newest_state:
        raise BadArchive(
            f"it was made by Olympus {head.version[:40]} in a newer format: restore it with that version or a newer one"
        )
    if len(head.files) > FILES_MAX:
        raise BadArchive(f"it names {len(head.files)} files, at most {FILES_MAX} are taken")
    _check_names([entry.name for entry in head.files])
    return head


def _decoded(member: tarfile.TarInfo, stream: _Stream, kind: type[T]) -> T:
    if not _is_plain(member) or member.size > _OURS_MAX_BYTES:
        raise BadArchive(f"its {member.name} is no plain file of at most {_OURS_MAX_BYTES} bytes")
    parts = []
    left = member.size
    while left and (part := stream.content(min(left, _BLOCK_BYTES))):
        parts.append(part)
        left -= len(part)
    if left:
        raise BadArchive("it was cut off")
    try:
        return msgspec.json.decode(b"".join(parts), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadArchive(f"its {member.name} is malformed: {error}") from error


def _check_names(names: list[str]) -> None:
    known = set(names)
    if len(known) < len(names):
        raise BadArchive("it names a file twice")
    for name in names:
        if not is_name(name):
            raise BadArchive(f"it names {name[:200]!r}, which is no place below a home")
        if any(str(above) in known for above in PurePosixPath(name).parents):
            raise BadArchive(f"it names {name[:200]!r} and a file that would be its folder")


def stamp(at: float) -> str:
    """An instant as part of a file name: 20260730T121314Z."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at))
