"""The archive of a backup: read back as written, and refused whenever it is not exactly that."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import archive
from bus.archive import Archive, BadArchive, Checksum, Checksums, Entry, Head, Source, write_archive

CONTENT = {"a.txt": b"first" * 40, "deep/er/b.bin": bytes(range(256)) * 300}


class Kept:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def open(self, entry: Entry) -> BinaryIO:
        kept, files = io.BytesIO(), self.files
        close = kept.close

        def keep() -> None:
            files[entry.name] = kept.getvalue()
            close()

        kept.close = keep  # type: ignore[method-assign]
        return kept


def head_of(files: list[Entry], **changes: Any) -> Head:
    """A head that fits."""
    head = Head(
        format=archive.FORMAT, version="0.1.0", state_format=2, machine="m", home="/h", created_at=1e9, files=files
    )
    return msgspec.structs.replace(head, **changes)


def written(folder: Path, **changes: Any) -> bytes:
    """The archive of CONTENT."""
    sources = []
    for number, (name, data) in enumerate(CONTENT.items()):
        path = folder / str(number)
        path.write_bytes(data)
        sources.append(Source(Entry(name, "file", len(data)), path, name))
    file = io.BytesIO()
    write_archive(file, head_of([source.entry for source in sources], **changes), sources, lambda name, done: None)
    return file.getvalue()


def read(data: bytes) -> dict[str, bytes]:
    """The files in an archive."""
    kept = Kept()
    Archive(io.BytesIO(data), newest_state=2).read(kept, lambda name, done: None)
    return kept.files


def forged(
    files: list[Entry],
    members: list[tuple[tarfile.TarInfo, bytes]],
    change: Callable[[Checksums], Checksums] = lambda sums: sums,
    **changes: Any,
) -> bytes:
    """An archive with a head, any members, and checksums that fit them."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", format=tarfile.GNU_FORMAT) as tar:

        def add(member: tarfile.TarInfo, data: bytes) -> None:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

        add(tarfile.TarInfo(archive.HEAD), msgspec.json.encode(head_of(files, **changes)))
        for member, data in members:
            add(member, data)
        sums = {member.name: Checksum(len(data), hashlib.sha256(data).hexdigest()) for member, data in members}
        add(tarfile.TarInfo(archive.CHECKSUMS), msgspec.json.encode(change(Checksums(sums, []))))
    return file.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """A member of some kind."""
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


def test_archive_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    """Names and contents, and any tar program can list it."""
    data = written(tmp_path)

    assert read(data) == CONTENT
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == [archive.HEAD, *CONTENT, archive.CHECKSUMS]


def test_file_that_went_meanwhile_is_named_with_its_whole_group(tmp_path: Path) -> None:
    """Half a checkpoint is not taken, nor missed."""
    (tmp_path / "there").write_bytes(b"x")
    sources = [
        Source(Entry("c/1", "checkpoint", 1), tmp_path / "there", "c"),
        Source(Entry("c/2", "checkpoint", 1), tmp_path / "gone", "c"),
        Source(Entry("d", "file", 1), tmp_path / "there", "d"),
    ]
    file = io.BytesIO()

    sums = write_archive(file, head_of([one.entry for one in sources]), sources, lambda name, done: None)

    assert sums.gone == ["c/1", "c/2"]
    assert read(file.getvalue()) == {"d": b"x"}


def test_file_that_grows_is_taken_as_long_as_it_was_declared(tmp_path: Path) -> None:
    """What a log gains meanwhile belongs to the next backup."""
    (tmp_path / "log").write_bytes(b"0123456789")
    source = Source(Entry("log", "log", 4), tmp_path / "log", "log")
    file = io.BytesIO()
    write_archive(file, head_of([source.entry]), [source], lambda name, done: None)

    assert read(file.getvalue()) == {"log": b"0123"}


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/.", "", ".", "..", "a\nb", "a\0b", "a\\b", "x" * 2000],
)
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    """Before anything is written."""
    with pytest.raises(BadArchive, match="no place below a home"):
        read(forged([Entry(name, "file", 1)], []))


def test_names_that_meet_are_refused() -> None:
    """Twice the same, a file as a folder, and our own."""
    for names in (["a", "a"], ["a", "a/b"], [archive.HEAD]):
        with pytest.raises(BadArchive, match="names"):
            read(forged([Entry(name, "file", 1) for name in names], []))


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, b"Z"],
)
def test_members_that_are_no_plain_files_are_refused(kind: bytes) -> None:
    """Links, devices, pipes, folders, and what nobody knows."""
    with pytest.raises(BadArchive, match="no plain file"):
        read(forged([Entry("a", "file", 9)], [(member("a", kind, "/etc/passwd"), b"")]))


def test_member_beyond_its_declared_size_is_refused_before_it_is_read() -> None:
    """A bomb is as large as its head says, or not taken."""
    with pytest.raises(BadArchive, match="1000000 bytes, its head says 10"):
        read(forged([Entry("a", "file", 10)], [(member("a"), b"\0" * 1_000_000)]))


def test_members_nobody_declared_and_doubles_are_refused() -> None:
    """The head is the whole list."""
    with pytest.raises(BadArchive, match="does not name"):
        read(forged([], [(member("a"), b"x")]))
    with pytest.raises(BadArchive, match="twice"):
        read(forged([Entry("a", "file", 1)], [(member("a"), b"x"), (member("a"), b"y")]))


def test_wrong_checksum_and_missing_files_are_refused() -> None:
    """What the last member says must fit all that came."""
    wrong = Checksums({"a": Checksum(1, "0" * 64)}, [])
    with pytest.raises(BadArchive, match="checksum differs"):
        read(forged([Entry("a", "file", 1)], [(member("a"), b"x")], lambda sums: wrong))
    with pytest.raises(BadArchive, match="1 files are missing"):
        read(forged([Entry("a", "file", 1)], []))


def test_newer_formats_are_refused_with_the_version_to_use() -> None:
    """Of the archive, and of the home in it."""
    for changes in ({"format": 999}, {"state_format": 999}):
        with pytest.raises(BadArchive, match=r"made by Olympus 9\.9 in a newer format"):
            read(forged([], [], version="9.9", **changes))


def test_header_of_a_gigabyte_is_refused_without_reading_it() -> None:
    """Long names are headers of any size, which a library would read as a whole."""
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    data = gzip.compress(long.tobuf(tarfile.GNU_FORMAT) + b"a" * 5_000_000)

    with pytest.raises(BadArchive, match="headers is larger"):
        read(data)


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", gzip.compress(b""), gzip.compress(b"x" * 5000), gzip.compress(b"\0" * 99999)],
    # Their bytes hold the time at which they were packed.
    ids=["nothing", "text", "nothing packed", "text packed", "zeros packed"],
)
def test_what_is_no_archive_is_refused(data: bytes) -> None:
    """With words, not with a traceback."""
    with pytest.raises(BadArchive):
        read(data)


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    """However much of it is missing."""
    data = written(tmp_path)
    for end in [*range(0, len(data), 97), *range(len(data) - 12, len(data))]:
        with pytest.raises(BadArchive):
            read(data[:end])


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """One archive for every example: each is made with its time in it, and of a length of its own."""
    return written(tmp_path_factory.mktemp("archive"))


@given(st.data())
def test_no_change_of_a_byte_gets_through(before: bytes, data: st.DataObject) -> None:
    """Wherever a bit flips, the archive is refused, or says the same in what matters."""
    whole = bytearray(before)
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = read(bytes(whole))
    except BadArchive:
        return
    # Flags and time of the gzip header mean nothing, and the same bytes can be packed in more than one way.
    assert found == CONTENT
    assert gzip.decompress(bytes(whole)) == gzip.decompress(before)


@given(st.binary(max_size=3000))
def test_any_bytes_in_a_tar_are_refused_or_read(data: bytes) -> None:
    """Random headers never end in another error."""
    with pytest.raises(BadArchive):
        read(gzip.compress(data))
