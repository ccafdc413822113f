"""Model files as requests meet them: hashes, versions, aliases, bringing in, deleting, verifying, mirroring."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bus.settings import Settings
from schemas.bodies.memory import KvEntry, KvPage
from schemas.bodies.model import ModelInfo, ModelList, ModelShow
from schemas.bodies.model_files import ModelAlias, ModelDelete, ModelImport, ModelRescan, ModelVerify
from schemas.errors import BadRequest, BusError, Conflict, Forbidden, NotFound, NoWorker, Unprocessable
from tests.gguf_files import write_parts
from workers.models.catalogue import SHIPPED_ROOT, Catalogue
from workers.models.files import hashes, kept, mirror, reading
from workers.models.files.files import Files
from workers.models.records import model_records

DEMO = SHIPPED_ROOT / "olympus-demo.gguf"
DEMO_SHA256 = hashlib.sha256(DEMO.read_bytes()).hexdigest()
WAIT_S = 20.0


class Memory:
    """A stand-in for the client: a key-value store that may be away, and what was written to it."""

    def __init__(self) -> None:
        self.is_away = False
        self.entries: dict[str, Any] = {}
        self.writes: list[tuple[str, str]] = []
        self.asked = asyncio.Event()

    async def request(self, subject: str, body: Any, *, timeout_s: float) -> Any:
        self.asked.set()
        if self.is_away:
            raise NoWorker("nobody serves memory")
        assert body.ns == "models"
        match subject:
            case "memory.kv.list":
                entries = [
                    KvEntry(key=key, value=value, ns="models", version=1, created_at=0, updated_at=0)
                    for key, value in self.entries.items()
                ]
                return KvPage(entries=entries)
            case "memory.kv.set":
                self.entries[body.key] = body.value
            case "memory.kv.delete":
                del self.entries[body.key]
        self.writes.append((subject.rpartition(".")[2], body.key))
        return None


class Call:
    """A stand-in for the request's other end: what was told on the way."""

    def __init__(self) -> None:
        self.parts: list[Any] = []
        self.on_part: Callable[[], None] | None = None

    async def partial(self, part: Any) -> None:
        self.parts.append(part)
        if self.on_part is not None:
            self.on_part()
            await asyncio.sleep(0)


class House:
    """The part with its records, a root, and stand-ins for the rest of the service."""

    def __init__(self, settings: Settings, memory: Memory) -> None:
        self.settings = settings
        self.memory = memory
        self.root = settings.path(settings.models.roots[0])
        self.loaded: set[str] = set()
        self.catalogue = Catalogue([self.root, SHIPPED_ROOT])
        self.records = model_records(settings.path("models.db"))
        self.files = Files(settings, self.catalogue, self.records, memory, self.overlay)  # type: ignore[arg-type]

    def overlay(self, info: ModelInfo) -> ModelInfo:
        return msgspec.structs.replace(info, state="loaded") if info.name in self.loaded else info

    async def show(self, name: str) -> ModelInfo:
        return await self.files.show(ModelShow(model=name))

    async def take(self, path: Path, call: Call | None = None, **more: Any) -> ModelInfo:
        return await self.files.import_model(ModelImport(path=str(path), **more), call or Call())  # type: ignore[arg-type]

    async def verify(self, name: str, call: Call | None = None, **more: Any) -> Any:
        return await self.files.verify(ModelVerify(model=name, **more), call or Call())  # type: ignore[arg-type]

    def names(self) -> list[str]:
        """Everything in the root, hidden or not."""
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*"))


@asynccontextmanager
async def house(settings: Settings, memory: Memory | None = None, *, rescan_s: float = 0.0) -> AsyncIterator[House]:
    changed = msgspec.structs.replace(settings, models=msgspec.structs.replace(settings.models, rescan_s=rescan_s))
    one = House(changed, memory or Memory())
    one.root.mkdir(parents=True, exist_ok=True)
    await one.records.open()
    try:
        await one.files.start()
        yield one
    finally:
        await one.files.stop()
        await one.records.close()


async def until(condition: Callable[[], Any], what: str) -> None:
    """Wait until `condition()`; fails naming what did not come about."""
    try:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        pytest.fail(f"waited {WAIT_S} s for {what}")


def demo_in(folder: Path, name: str = "small", *, age_s: float = 60.0) -> Path:
    """A copy of the demo model that has not been touched for a while."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.gguf"
    shutil.copyfile(DEMO, path)
    at = path.stat().st_mtime - age_s
    os.utime(path, (at, at))
    return path


async def hashed(house: House, name: str) -> ModelInfo:
    """The entry, once the background has its hash and noted it as a version."""
    async with asyncio.timeout(WAIT_S):
        while True:
            info = await house.show(name)
            if any(version.path and version.sha256 == info.sha256 for version in info.versions):
                return info
            await asyncio.sleep(0.01)


# Hashes and versions --------------------------------------------------------------------------------------------------


async def test_hashes_are_computed_in_the_background_and_kept_over_restarts(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is read once for its hash; after a restart it is known at once."""
    async with house(settings) as first:
        demo_in(first.root)
        await first.files.rescan(ModelRescan())
        info = await hashed(first, "small")
        assert info.sha256 == DEMO_SHA256
        assert [version.sha256 for version in info.versions] == [DEMO_SHA256]
        # The shipped models too, before the house is left.
        await hashed(first, "olympus-demo")

    def refuse(*_: Any) -> None:
        raise AssertionError("a file was read again")

    monkeypatch.setattr(reading, "_Reader", refuse)
    async with house(settings) as second:
        assert (await second.show("small")).sha256 == DEMO_SHA256


async def test_a_file_that_was_just_written_waits_for_its_hash(settings: Settings) -> None:
    """A copy may still be on its way into the root."""
    async with house(settings) as one:
        demo_in(one.root, age_s=0.0)
        await one.files.rescan(ModelRescan())
        await hashed(one, "olympus-demo")
        assert (await one.show("small")).sha256 is None


async def test_a_new_content_under_a_name_is_a_new_version(settings: Settings) -> None:
    """The earlier one stays known, without a place."""
    async with house(settings) as one:
        path = demo_in(one.root)
        await one.files.rescan(ModelRescan())
        await hashed(one, "small")
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x7f")
        os.utime(path, (1_000_000, 1_000_000))
        await one.files.rescan(ModelRescan())
        info = await hashed(one, "small")
        assert [(version.path != "", version.sha256 == DEMO_SHA256) for version in info.versions] == [
            (False, True),
            (True, False),
        ]


# Verify ---------------------------------------------------------------------------------------------------------------


async def test_verify_finds_a_file_that_rotted_in_place(settings: Settings) -> None:
    """Size, time and inode are as they were; the content is not, and says so every time."""
    async with house(settings) as one:
        path = demo_in(one.root)
        call = Call()
        first = await one.verify("small", call)
        assert (first.is_intact, first.expected, first.sha256) == (True, None, DEMO_SHA256)
        assert (call.parts[-1].step, call.parts[-1].done_bytes) == ("hashing", path.stat().st_size)
        times = path.stat()
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x7f")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        for _ in range(2):
            rotten = await one.verify("small")
            assert (rotten.is_intact, rotten.expected) == (False, DEMO_SHA256)
        assert rotten.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


async def test_verify_compares_with_what_was_asked_for(settings: Settings) -> None:
    """A checksum from elsewhere goes before the known one."""
    async with house(settings) as one:
        demo_in(one.root)
        assert (await one.verify("small", sha256=DEMO_SHA256)).is_intact
        wrong = await one.verify("small", sha256="0" * 64)
        assert (wrong.is_intact, wrong.expected) == (False, "0" * 64)


async def test_a_folder_has_one_hash_that_its_notes_do_not_change(settings: Settings) -> None:
    """It is over the lines of sha256sum, without what is for people."""
    async with house(settings) as one:
        source = shutil.copytree(SHIPPED_ROOT / one_folder(), one.root / "folder")
        first = await one.verify("folder")
        lines = "".join(
            f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(source.iterdir())
        )
        assert first.sha256 == hashlib.sha256(lines.encode()).hexdigest()
        (source / "README.md").write_text("notes")
        assert (await one.verify("folder")).is_intact
        (source / "config.json").write_text((source / "config.json").read_text() + " ")
        assert not (await one.verify("folder")).is_intact


def one_folder() -> str:
    """Where in the shipped root the folder of safetensors is."""
    return next(path.parent.name for path in SHIPPED_ROOT.rglob("model.safetensors"))


# Import ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["link", "copy", "move"])
async def test_a_file_is_imported_by_each_mode(settings: Settings, tmp_path: Path, mode: str) -> None:
    """The model is there under the name asked for, nothing else is in the root, and the source is as the mode says."""
    source = demo_in(tmp_path / "elsewhere")
    inode = source.stat().st_ino
    async with house(settings) as one:
        info = await one.take(source, name="mine", mode=mode)
        assert (info.name, info.state, info.source) == ("mine", "available", f"import:{source}")
        assert one.names() == ["mine.gguf"]
        assert source.exists() is (mode != "move")
        assert ((one.root / "mine.gguf").stat().st_ino == inode) is (mode != "copy")
        assert (info.sha256 == DEMO_SHA256) is (mode == "copy")
        versions = (await hashed(one, "mine")).versions
        assert [version.source for version in versions] == [f"import:{source}"]


async def test_a_source_that_changes_under_its_copy_is_refused(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of one content and half of another is no model, and nothing of it stays."""
    source = demo_in(tmp_path / "elsewhere")
    step = reading._Reader.step

    def change(reader: Any) -> int:
        os.utime(source)
        return step(reader)

    async with house(settings) as one:
        monkeypatch.setattr(reading._Reader, "step", change)
        with pytest.raises(Conflict, match="changed while it was copied"):
            await one.take(source, name="mine", mode="copy")
        monkeypatch.undo()
        assert one.names() == []


async def test_an_import_falls_back_to_a_copy_where_links_cannot_be(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Progress is told, and the source of a move is gone at the end."""
    import errno

    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    source, call = demo_in(tmp_path / "elsewhere"), Call()
    size = source.stat().st_size
    async with house(settings) as one:
        monkeypatch.setattr(os, "link", refuse)
        info = await one.take(source, call, mode="move")
        assert (info.name, info.sha256) == ("small", DEMO_SHA256)
        assert not source.exists()
        assert (call.parts[-1].step, call.parts[-1].done_bytes, call.parts[-1].total_bytes) == ("copying", size, size)


async def test_a_folder_is_imported_without_code_and_pickles(settings: Settings, tmp_path: Path) -> None:
    """Only what a model of safetensors is made of comes along."""
    source = shutil.copytree(SHIPPED_ROOT / one_folder(), tmp_path / "theirs")
    for name in ("pytorch_model.bin", "modeling.py", ".secret"):
        (source / name).write_bytes(b"x")
    async with house(settings) as one:
        info = await one.take(source, mode="copy")
        assert (info.name, info.format, info.state) == ("theirs", "safetensors", "available")
        names = {path.name for path in (one.root / "theirs").iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
        assert not names & {"pytorch_model.bin", "modeling.py", ".secret"}


async def test_a_cancelled_import_leaves_nothing(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in the root nor of the source."""
    monkeypatch.setattr(reading, "STEP_BYTES", 1024 * 1024)
    source, call = demo_in(tmp_path / "elsewhere"), Call()
    async with house(settings) as one:
        task = asyncio.ensure_future(one.take(source, call, mode="copy"))
        call.on_part = task.cancel
        with pytest.raises(asyncio.CancelledError):
            await task
        assert call.parts
        assert one.names() == []
        assert source.read_bytes() == DEMO.read_bytes()
        with pytest.raises(NotFound):
            await one.show("small")


async def test_the_same_import_again_answers_the_same_and_another_content_is_refused(
    settings: Settings, tmp_path: Path
) -> None:
    """A request that is repeated after a lost answer does no harm; a name is never taken from another model."""
    source = demo_in(tmp_path / "elsewhere")
    other = tmp_path / "elsewhere" / "other.gguf"
    other.write_bytes(DEMO.read_bytes()[:-1] + b"\x7f")
    async with house(settings) as one:
        first = await one.take(source, mode="copy")
        assert (await one.take(source, mode="copy")).path == first.path
        with pytest.raises(Conflict, match="there is a model small already"):
            await one.take(other, name="small", mode="copy")
        with pytest.raises(Conflict, match="there is a model olympus-demo already"):
            await one.take(other, name="olympus-demo")
        assert one.names() == ["small.gguf"]


@pytest.mark.parametrize(
    ("content", "name", "error", "reason"),
    [
        (None, "x", NotFound, "there is no file or folder"),
        (b"not a model", "x", Unprocessable, "not a GGUF file"),
        (DEMO.read_bytes()[:-1], "x", Unprocessable, "truncated"),
        (DEMO.read_bytes(), "a/b", Unprocessable, "holds a slash"),
        (DEMO.read_bytes(), "..", Unprocessable, "no dot first"),
        (DEMO.read_bytes(), ".hidden", Unprocessable, "no dot first"),
    ],
)
async def test_what_cannot_become_a_model_is_refused_with_the_reason(
    settings: Settings, tmp_path: Path, content: bytes | None, name: str, error: type[BusError], reason: str
) -> None:
    """Nothing of it reaches the root."""
    source = tmp_path / "source.gguf"
    if content is not None:
        source.write_bytes(content)
    async with house(settings) as one:
        with pytest.raises(error, match=reason):
            await one.take(source, name=name)
        assert one.names() == []


async def test_an_import_needs_an_absolute_path_and_a_model(settings: Settings, tmp_path: Path) -> None:
    """A relative path would be one of the service's folder; a folder without a model is none."""
    async with house(settings) as one:
        with pytest.raises(BadRequest, match="must be absolute"):
            await one.take(Path("m.gguf"))
        with pytest.raises(Unprocessable, match=r"neither a \.gguf file nor a folder"):
            await one.take(tmp_path)


async def test_a_full_disk_is_said_before_anything_is_copied(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With both numbers."""
    from workers.models.files import placing

    source = demo_in(tmp_path / "elsewhere")
    async with house(settings) as one:
        monkeypatch.setattr(placing, "free_bytes", lambda folder: 1000)
        with pytest.raises(Unprocessable, match=f"takes {source.stat().st_size} bytes, and .* has 1000 free"):
            await one.take(source, mode="copy")
        assert one.names() == []


async def test_two_services_on_one_folder_never_overwrite_each_other(settings: Settings, tmp_path: Path) -> None:
    """Of two that bring in different contents under one name at once, one is told; nothing of it is left."""
    sources = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    for number, source in enumerate(sources):
        source.write_bytes(DEMO.read_bytes()[:-1] + bytes([number + 1]))
    other = msgspec.structs.replace(
        settings,
        home=str(tmp_path / "other home"),
        models=msgspec.structs.replace(settings.models, roots=(str(settings.path("models")),)),
    )
    async with house(settings) as one, house(other) as two:
        outcomes = await asyncio.gather(
            one.take(sources[0], name="m", mode="copy"),
            two.take(sources[1], name="m", mode="copy"),
            return_exceptions=True,
        )
        (winner,) = [outcome for outcome in outcomes if isinstance(outcome, ModelInfo)]
        (loser,) = [outcome for outcome in outcomes if not isinstance(outcome, ModelInfo)]
        assert isinstance(loser, Conflict)
        assert one.names() == ["m.gguf"]
        assert hashlib.sha256((one.root / "m.gguf").read_bytes()).hexdigest() == winner.sha256


# Adopt ----------------------------------------------------------------------------------------------------------------


async def test_an_adopted_file_is_there_with_its_source_and_hash(settings: Settings, tmp_path: Path) -> None:
    """Whatever it was called while it was fetched."""
    staged = demo_in(tmp_path / "staging", "blob").rename(tmp_path / "staging" / "sha256-abc.part")
    async with house(settings) as one:
        info = await one.files.adopt(staged, "fetched", "ollama:fetched", DEMO_SHA256)
        assert (info.name, info.sha256, info.source) == ("fetched", DEMO_SHA256, "ollama:fetched")
        assert one.files.find("fetched") == info
        assert not staged.exists()
        assert one.names() == ["fetched.gguf"]


async def test_adopting_replaces_what_had_the_name_and_keeps_its_version(settings: Settings, tmp_path: Path) -> None:
    """A pull of a newer file; also when it comes in more or fewer parts."""
    newer = DEMO.read_bytes()[:-1] + b"\x7f"
    async with house(settings) as one:
        await one.files.adopt(demo_in(tmp_path), "m", "first", DEMO_SHA256)
        second = tmp_path / "second.gguf"
        second.write_bytes(newer)
        info = await one.files.adopt(second, "m", "second", hashlib.sha256(newer).hexdigest())
        assert [(version.source, version.path == info.path) for version in info.versions] == [
            ("first", False),
            ("second", True),
        ]
        assert one.names() == ["m.gguf"]


async def test_a_split_model_is_imported_adopted_and_deleted_as_one(settings: Settings, tmp_path: Path) -> None:
    """Its parts take the new name, and those of the content before do not stay behind."""
    for count in (2, 3):
        (tmp_path / f"of{count}").mkdir()
        write_parts(tmp_path / f"of{count}", count)
    async with house(settings) as one:
        first = await one.take(tmp_path / "of3" / "big-00001-of-00003.gguf", name="mine", mode="copy")
        assert first.size_bytes == sum(path.stat().st_size for path in (tmp_path / "of3").iterdir())
        assert one.names() == [f"mine-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
        # The hash is of the content, whatever the parts are called.
        again = await one.take(tmp_path / "of3" / "big-00001-of-00003.gguf", name="mine", mode="copy")
        assert again.sha256 == first.sha256 is not None
        with pytest.raises(Unprocessable, match="name its first part"):
            await one.take(tmp_path / "of3" / "big-00002-of-00003.gguf")
        await one.files.adopt(tmp_path / "of2", "mine", "a pull")
        assert one.names() == [f"mine-{number:05}-of-00002.gguf" for number in (1, 2)]
        assert not (tmp_path / "of2").exists()
        await one.files.delete(ModelDelete(model="mine"))
        assert one.names() == []


async def test_an_adopted_folder_replaces_the_folder_before(settings: Settings, tmp_path: Path) -> None:
    """As a whole: no file of the old one is left between those of the new one."""
    async with house(settings) as one:
        for number in range(2):
            staged = shutil.copytree(SHIPPED_ROOT / one_folder(), tmp_path / "whole")
            (staged / f"extra{number}.json").write_text("{}")
            info = await one.files.adopt(staged, "folder", f"source {number}")
            assert info.state == "available"
            assert not staged.exists()
        names = {path.name for path in (one.root / "folder").iterdir()}
        assert "extra1.json" in names
        assert "extra0.json" not in names
        assert [path.name for path in one.root.iterdir()] == ["folder"]
        with pytest.raises(Conflict, match="of format safetensors"):
            await one.files.adopt(demo_in(tmp_path), "folder", "x")


async def test_what_is_not_adopted_stays_where_it_was_staged(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unusable file, and one that cannot be put in its place."""
    staged = demo_in(tmp_path / "staging")
    broken = tmp_path / "staging" / "broken.gguf"
    broken.write_bytes(b"GGUF")
    async with house(settings) as one:
        with pytest.raises(Unprocessable, match="cannot become a model here: truncated"):
            await one.files.adopt(broken, "m", "x")
        (one.root / "m.gguf").mkdir()
        with pytest.raises(Unprocessable, match="directory"):
            await one.files.adopt(staged, "m", "x")
        assert broken.exists()
        assert staged.read_bytes() == DEMO.read_bytes()
        assert one.names() == ["m.gguf"]


# Delete ---------------------------------------------------------------------------------------------------------------


async def test_delete_frees_the_files_and_forgets_the_aliases(settings: Settings) -> None:
    """The name's earlier contents stay known, without a place."""
    async with house(settings) as one:
        path = demo_in(one.root)
        size = path.stat().st_size
        await one.verify("small")
        await one.files.alias(ModelAlias(alias="s", model="small"))
        deleted = await one.files.delete(ModelDelete(model="s"))
        assert (deleted.model, deleted.freed_bytes) == ("small", size)
        assert one.names() == []
        with pytest.raises(NotFound):
            await one.show("s")
        demo_in(one.root)
        assert [version.path for version in (await one.show("small")).versions] == [""]


async def test_delete_waits_for_its_turn_and_looks_then_what_is_loaded(settings: Settings) -> None:
    """A load that began while something else was placed counts."""
    async with house(settings) as one:
        demo_in(one.root)
        async with one.files._intake.placing:
            deleting = asyncio.create_task(one.files.delete(ModelDelete(model="small")))
            await asyncio.sleep(0)
            one.loaded.add("small")
        with pytest.raises(Conflict, match="small is loaded"):
            await deleting
        assert one.names() == ["small.gguf"]


async def test_delete_of_one_of_two_names_frees_nothing(settings: Settings, tmp_path: Path) -> None:
    """An imported link shares its bytes with where it came from."""
    source = demo_in(tmp_path / "elsewhere")
    async with house(settings) as one:
        await one.take(source)
        assert (await one.files.delete(ModelDelete(model="small"))).freed_bytes == 0
        assert source.exists()


async def test_a_folder_is_deleted_as_a_whole_unless_it_holds_other_models(settings: Settings) -> None:
    """What lies beside the model's files goes with them; another model does not."""
    async with house(settings) as one:
        folder = shutil.copytree(SHIPPED_ROOT / one_folder(), one.root / "folder")
        inner = demo_in(folder, "inner")
        with pytest.raises(Conflict, match="also holds inner"):
            await one.files.delete(ModelDelete(model="folder"))
        inner.unlink()
        (folder / "notes.md").write_text("x")
        assert (await one.files.delete(ModelDelete(model="folder"))).freed_bytes > 1_000_000
        assert one.names() == []


async def test_what_must_not_be_deleted_is_not(settings: Settings) -> None:
    """A loaded model, the shipped one, a model root itself, what is not there."""
    async with house(settings) as one:
        demo_in(one.root)
        one.loaded.add("small")
        with pytest.raises(Conflict, match="small is loaded: unload it first"):
            await one.files.delete(ModelDelete(model="small"))
        # Not to be unloaded first either: it stays anyway.
        one.loaded.add("olympus-demo")
        with pytest.raises(Forbidden, match="shipped with Olympus"):
            await one.files.delete(ModelDelete(model="olympus-demo"))
        with pytest.raises(NotFound):
            await one.files.delete(ModelDelete(model="nobody"))
        assert one.names() == ["small.gguf"]
        shutil.copytree(SHIPPED_ROOT / one_folder(), one.root, dirs_exist_ok=True)
        with pytest.raises(Forbidden, match="is the model root"):
            await one.files.delete(ModelDelete(model="models"))
        assert DEMO.exists()


async def test_deleting_a_link_leaves_what_it_leads_to(settings: Settings, tmp_path: Path) -> None:
    """A link out of the root is listed as unusable, and may be taken away."""
    outside = demo_in(tmp_path / "elsewhere")
    async with house(settings) as one:
        (one.root / "linked.gguf").symlink_to(outside)
        assert (await one.show("linked")).state == "unusable"
        await one.files.delete(ModelDelete(model="linked"))
        assert one.names() == []
        assert outside.exists()


# Names and looking again ----------------------------------------------------------------------------------------------


async def test_aliases_are_kept_over_restarts_and_can_be_taken_away(settings: Settings) -> None:
    """A name with a slash or a tag may be an alias; the name of a model may not."""
    async with house(settings) as one:
        demo_in(one.root)
        info = await one.files.alias(ModelAlias(alias="owner/best:8b", model="small"))
        assert info.aliases == ["owner/best:8b"]
        with pytest.raises(Conflict, match="olympus-demo is a model's own name"):
            await one.files.alias(ModelAlias(alias="olympus-demo", model="small"))
        with pytest.raises(NotFound, match="no model 'nobody'"):
            await one.files.alias(ModelAlias(alias="x", model="nobody"))
    async with house(settings) as two:
        assert (await two.show("owner/best:8b")).name == "small"
        assert (await two.files.alias(ModelAlias(alias="owner/best:8b", model=None))).aliases == []
        with pytest.raises(NotFound, match="there is no alias"):
            await two.files.alias(ModelAlias(alias="owner/best:8b", model=None))
        with pytest.raises(NotFound):
            await two.show("owner/best:8b")


async def test_the_alias_of_a_model_that_is_gone_can_be_taken_away(settings: Settings) -> None:
    """A file that somebody removed by hand leaves its alias behind."""
    async with house(settings) as one:
        path = demo_in(one.root)
        await one.files.alias(ModelAlias(alias="best", model="small"))
        path.unlink()
        info = await one.files.alias(ModelAlias(alias="best", model=None))
        assert (info.name, info.state) == ("small", "unusable")
        with pytest.raises(NotFound, match="there is no alias"):
            await one.files.alias(ModelAlias(alias="best", model=None))


async def test_a_file_that_changes_between_the_scan_and_a_load_is_noticed(settings: Settings) -> None:
    """What is loaded is what is there now; what is broken or gone by now says so."""
    async with house(settings) as one:
        path = demo_in(one.root)
        assert (await one.catalogue.current("small")).info.size_bytes == path.stat().st_size
        path.write_bytes(DEMO.read_bytes()[:-1])
        assert (await one.catalogue.current("small")).info.state == "unusable"
        path.unlink()
        with pytest.raises(NotFound):
            await one.catalogue.current("small")


async def test_the_folders_are_watched(settings: Settings) -> None:
    """A file that is put there becomes a model without anybody asking."""
    async with house(settings, rescan_s=0.01) as one:
        demo_in(one.root)
        await until(lambda: "small" in [entry.info.name for entry in one.catalogue.all()], "the watcher's look")


async def test_listing_shows_everything_and_which_is_the_default(settings: Settings) -> None:
    """Unusable files too, and what is loaded."""
    async with house(settings) as one:
        demo_in(one.root)
        (one.root / "broken.gguf").write_bytes(b"GGUF")
        one.loaded.add("small")
        models = await one.files.rescan(ModelRescan())
        again = await one.files.list_models(ModelList())
        assert [info.path for info in again.models] == [info.path for info in models.models]
        states = {info.name: info.state for info in models.models}
        assert (states["small"], states["broken"], states["olympus-demo"]) == ("loaded", "unusable", "available")
        assert models.default == "olympus-demo"


# The copy in memory ---------------------------------------------------------------------------------------------------


async def test_only_the_newest_versions_of_a_name_are_kept(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is trained every night would fill every list of models; the one that is here stays, however old."""
    monkeypatch.setattr(kept, "_VERSIONS_MAX", 3)
    contents = [DEMO.read_bytes()[:-1] + bytes([number]) for number in range(5)]
    async with house(settings) as one:
        for number in (0, 1, 2, 3, 4, 2):
            (tmp_path / "m.gguf").write_bytes(contents[number])
            await one.files.adopt(
                tmp_path / "m.gguf", "m", f"source {number}", hashlib.sha256(contents[number]).hexdigest()
            )
        sources = [version.source for version in one.files.find("m").versions]
    assert sources == ["source 2", "source 3", "source 4"]
    async with house(settings) as again:
        assert [version.source for version in again.files.find("m").versions] == sources


async def test_a_list_holds_no_templates(settings: Settings) -> None:
    """A stranger's few hundred long ones would be more than a message holds, and nobody could list anything."""
    async with house(settings) as one:
        listed = (await one.files.list_models(ModelList())).models
        scanned = (await one.files.rescan(ModelRescan())).models
        assert [info.chat_template for info in (*listed, *scanned)] == [None] * (len(listed) + len(scanned))
        assert (await one.show("olympus-demo")).chat_template


async def test_the_catalogue_is_mirrored_and_only_changes_are_written(settings: Settings) -> None:
    """An entry per model, again when something about it changes, gone with the model."""
    memory = Memory()
    async with house(settings, memory) as one:
        await hashed(one, "olympus-demo")
        await until(lambda: memory.entries.get("olympus-demo", {}).get("sha256") == DEMO_SHA256, "the hash in memory")
        assert "chat_template" not in memory.entries["olympus-demo"]
        memory.writes.clear()
        path = demo_in(one.root)
        await one.files.rescan(ModelRescan())
        await hashed(one, "small")
        await until(lambda: memory.entries.get("small", {}).get("sha256"), "the new model in memory")
        assert {key for _, key in memory.writes} == {"small"}
        path.unlink()
        await one.files.rescan(ModelRescan())
        await until(lambda: "small" not in memory.entries, "the model's end in memory")


async def test_a_memory_that_comes_later_is_caught_up(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one nothing breaks; what it then lacks is written, what it holds of others stays."""
    monkeypatch.setattr(mirror, "_RETRY_S", 0.01)
    memory = Memory()
    memory.is_away = True
    memory.entries = {"theirs": {"host": "another"}, "gone": {"host": mirror.socket.gethostname()}, "odd": 7}
    async with house(settings, memory) as one:
        await asyncio.wait_for(memory.asked.wait(), WAIT_S)
        assert (await one.show("olympus-demo")).state == "available"
        memory.is_away = False
        await until(lambda: "olympus-demo" in memory.entries and "gone" not in memory.entries, "the catching up")
        assert memory.entries["theirs"] == {"host": "another"}


async def test_a_second_start_writes_nothing_that_memory_has(settings: Settings) -> None:
    """What is already there is compared, not written again."""
    memory = Memory()
    async with house(settings, memory) as one:
        for entry in one.catalogue.all():
            await hashed(one, entry.info.name)
        await until(
            lambda: all(memory.entries.get(entry.info.name, {}).get("sha256") for entry in one.catalogue.all()),
            "the whole catalogue in memory",
        )
    memory.writes.clear()
    memory.asked.clear()
    async with house(settings, memory):
        await asyncio.wait_for(memory.asked.wait(), WAIT_S)
    assert memory.writes == []


async def test_background_hashing_goes_gently(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads at most so many bytes a second, so that a load beside it has the disk."""
    asked: list[float] = []
    real = reading.hash_file

    async def recording(path: Path, progress: Any, *, max_rate: float = 0.0, **more: Any) -> str:
        asked.append(max_rate)
        return await real(path, progress, **more)

    monkeypatch.setattr(hashes, "hash_file", recording)
    async with house(settings) as one:
        await hashed(one, "olympus-demo")
    assert set(asked) == {hashes.BACKGROUND_RATE}
