"""`olympus memory` against a real broker and the memory's own parts; only search and vectors are stood in for."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.server import Broker
from bus.cli import app, exits
from bus.cli.memory_lines import end, header
from bus.client import Client
from bus.settings import Settings, load_settings
from bus.worker import Call, Worker
from schemas.bodies.items import MemoryAdd, MemoryLink
from schemas.bodies.memory import KvGet, KvSet
from schemas.bodies.search import Search, SearchHit, SearchReply, Signal, Understood
from schemas.bodies.upkeep import MemoryRebuild, MemoryVerify, Rebuilt, UpkeepProgress, Verified
from workers.memory import handlers
from workers.memory.items import handlers as item_handlers
from workers.memory.items.documents import Documents
from workers.memory.items.experiences import Experiences
from workers.memory.items.memories import Memories
from workers.memory.records import Records
from workers.memory.store import MemoryStore
from workers.memory.upkeep import handlers as upkeep_handlers
from workers.memory.upkeep.stats import Around
from workers.memory.upkeep.upkeep import Upkeep

WAIT_S = 20.0


async def around() -> Around:
    """Parts that are not here."""
    return Around(0, "none", "off", "none", "none", ["no vectors in this test"])


async def search(request: Search, call: Call) -> SearchReply:
    """One hit that repeats the query, the better the earlier its namespace stands in the alphabet."""
    understood = Understood(terms=request.query.split()) if request.explain else None
    signals = [Signal(name="text", share=1.0, value=2.0, note="said so")] if request.explain else None
    hit = SearchHit(
        id="m",
        kind="memory",
        score=1 / ord(request.ns[0]),
        text=request.query,
        start=0,
        end=1,
        at=0.0,
        chunk=1,
        stream=request.ns,
        signals=signals,
    )
    return SearchReply(
        hits=[hit], mode=request.mode, took_ms=1.0, degraded="no encoder", waiting=2, understood=understood
    )


async def verify(request: MemoryVerify, call: Call) -> Verified:
    """Differs until it is repaired."""
    await call.partial(UpkeepProgress(stage="compare", done=1, total=2))
    repaired = 1 if request.repair else 0
    return Verified(
        agrees=request.repair, chunks=2, vectors=1, waiting=0, missing=[2], surplus=[], outdated=[], repaired=repaired
    )


async def rebuild(request: MemoryRebuild, call: Call) -> Rebuilt:
    """Done at once."""
    await call.partial(UpkeepProgress(stage="embed", done=2, total=2))
    return Rebuilt(chunks=2, took_s=61.0)


class LiveMemory:
    """A broker and a memory in a thread with a loop of its own; the command runs in the test's thread."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    async def start_bus(self) -> None:
        """Bring the broker up on free ports."""
        ports = {f"bus.{name}_port": 0 for name in ("request", "publish", "subscribe", "sequenced")}
        self.broker = Broker(load_settings(overrides={"home": str(self.home), **ports}))
        await self.broker.start()
        self.settings: Settings = load_settings(overrides=self.overrides)
        self.client = Client(self.settings, name="test")

    async def start_memory(self) -> None:
        """Bring the memory up on the broker."""
        settings = self.settings
        self.records = await Records.open(
            settings.path(settings.memory.path), readers=2, on_committed=lambda events: None
        )
        self.worker = Worker("memory", settings, capacity=8)
        handlers.register(self.worker, MemoryStore(self.records))
        item_handlers.register(self.worker, Memories(self.records), Documents(self.records), Experiences(self.records))
        upkeep_handlers.register(self.worker, Upkeep(self.records, home=settings.home_path, around=around))
        self.worker.handle("memory.search", search)
        self.worker.handle("memory.verify", verify)
        self.worker.handle("memory.rebuild", rebuild)
        await self.worker.start(WAIT_S)

    async def stop_memory(self) -> None:
        """End the memory; the broker stays."""
        await self.worker.stop()
        await self.records.close()

    async def stop_bus(self) -> None:
        """End the broker."""
        await self.client.close()
        await self.broker.stop()

    @property
    def overrides(self) -> dict[str, Any]:
        """Settings that lead to this bus and this memory."""
        return {
            "home": str(self.home),
            **{f"bus.{name}_port": port for name, port in self.broker.ports._asdict().items()},
        }

    @property
    def flags(self) -> list[str]:
        """The same for the command."""
        return [part for key, value in self.overrides.items() for part in ("--set", f"{key}={value}")]

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of a coroutine run beside the broker."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(WAIT_S)

    def ask(self, subject: str, body: Any) -> Any:
        """The reply to one request."""
        return self.call(self.client.request(subject, body))

    def close(self) -> None:
        """End the thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(WAIT_S)
        self.loop.close()


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[LiveMemory]:
    """A running bus with an empty memory."""
    live = LiveMemory(tmp_path / "home")
    live.call(live.start_bus())
    live.call(live.start_memory())
    yield live
    live.call(live.stop_memory())
    live.call(live.stop_bus())
    live.close()


Olympus = Callable[..., int]


@pytest.fixture
def olympus(memory: LiveMemory) -> Olympus:
    """Runs `olympus memory` against the bus and returns its exit code."""
    return lambda *argv: app.main([*memory.flags, "memory", *argv])


def test_a_memory_is_added_listed_shown_and_forgotten(
    memory: LiveMemory, olympus: Olympus, capsys: pytest.CaptureFixture[str]
) -> None:
    """`add` prints the id alone, so that a script can go on with it."""
    assert olympus("add", "Ada keeps bees", "--id", "bees", "--tag", "insects", "--meta", "n=2") == exits.OK
    assert olympus("add", "They swarm in May", "--parent", "bees", "--speaker", "Bob", "--ttl", "2h") == exits.OK
    first, second = capsys.readouterr().out.split()
    memory.ask("memory.link", MemoryLink(source_id=second, target_id=first, kind="about"))
    assert first == "bees"

    assert olympus("list") == exits.OK
    listed = capsys.readouterr().out
    assert "Ada keeps bees" in listed and second in listed

    assert olympus("show", "bees") == exits.OK
    shown = capsys.readouterr().out
    assert "Ada keeps bees" in shown and "1 under it" in shown and f"{second} -about-> bees" in shown
    assert olympus("show", second, "--json") == exits.OK
    document = json.loads(capsys.readouterr().out)
    assert (document["speaker"], document["parent_id"], len(document["related"])) == ("Bob", "bees", 1)

    assert olympus("forget", "bees", "--cascade", "--yes") == exits.OK
    assert "1 memory under it" in capsys.readouterr().out
    assert olympus("forget", "bees") == exits.FAILED
    assert olympus("show", "bees") == exits.FAILED


def test_documents_and_facts_are_added_and_shown(
    tmp_path: Path, olympus: Olympus, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file becomes a document under its name; the same again needs --replace."""
    notes = tmp_path / "notes.md"
    notes.write_text("Water the plants.")

    assert olympus("add", f"@{notes}", "--document") == exits.OK
    assert olympus("add", f"@{notes}", "--document") == exits.FAILED
    assert olympus("add", f"@{notes}", "--document", "--replace") == exits.OK
    assert olympus("show", "notes.md", "--kind", "document", "--json") == exits.OK
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{") :])["version"] == 2

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Porto")))
    assert olympus("add", "-", "--fact", "city") == exits.OK
    assert olympus("show", "city", "--kind", "fact") == exits.OK
    assert "Porto" in capsys.readouterr().out
    assert olympus("forget", "city", "--fact") == exits.OK
    assert olympus("forget", "city", "--fact") == exits.FAILED
    capsys.readouterr()
    assert olympus("add", "blue", "--fact", "colour", "--category", "preference", "--json") == exits.OK
    assert json.loads(capsys.readouterr().out)["category"] == "preference"

    assert olympus("forget", "notes.md", "--document") == exits.OK
    assert olympus("forget", "notes.md", "--document") == exits.FAILED
    assert olympus("show", "notes.md") == exits.FAILED
    assert "--kind shows other kinds" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ("Porto", "--fact", "city", "--ttl", "2h"),
        ("Porto", "--fact", "city", "--tag", "place"),
        ("Porto", "--title", "Places"),
        ("Porto", "--document", "--id", "d", "--importance", "0.5"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(olympus: Olympus, argv: tuple[str, ...]) -> None:
    """Nothing is kept without what was asked for: a fact has no time to live, a memory no title."""
    assert olympus("add", *argv) == exits.USAGE


def test_a_search_shows_hits_on_stdout_and_what_is_missing_on_stderr(
    olympus: Olympus, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under --explain the reading of the query and the signals; --json is the reply as it is."""
    assert olympus("search", "who keeps bees", "--explain", "--kind", "memory") == exits.OK
    said = capsys.readouterr()
    assert "words: who, keeps, bees" in said.out and "said so" in said.out
    assert "incomplete: no encoder" in said.err and "2 texts not embedded yet" in said.err

    assert olympus("search", "bees", "--json") == exits.OK
    found = json.loads(capsys.readouterr().out)
    assert [hit["stream"] for hit in found["hits"]] == ["kb", "memory", "session", "user"]
    assert (found["degraded"], found["waiting"]) == ("no encoder", 2)

    assert olympus("search", "bees", "--json", "--kind", "turn", "--kind", "fact") == exits.OK
    assert [hit["stream"] for hit in json.loads(capsys.readouterr().out)["hits"]] == ["session", "user"]
    assert olympus("search", "bees", "--json", "--ns", "own", "--kind", "turn") == exits.OK
    assert [hit["stream"] for hit in json.loads(capsys.readouterr().out)["hits"]] == ["own"]
    assert olympus("search", "bees", "--json", "-k", "1") == exits.OK
    assert len(json.loads(capsys.readouterr().out)["hits"]) == 1


def test_stats_and_verify_and_rebuild(olympus: Olympus, capsys: pytest.CaptureFixture[str]) -> None:
    """`verify` ends with 1 where database and vectors differ."""
    assert olympus("add", "Ada keeps bees") == exits.OK
    assert olympus("stats") == exits.OK
    out = capsys.readouterr().out
    assert "! no vectors in this test" in out and "1 text waiting" in out

    assert olympus("verify") == exits.FAILED
    assert "without their vector: 2" in capsys.readouterr().out
    assert olympus("verify", "--repair", "--json") == exits.OK
    assert json.loads(capsys.readouterr().out)["repaired"] == 1
    assert olympus("rebuild") == exits.OK
    assert capsys.readouterr().out == "2 vectors made anew in 1 min 1 s\n"


def test_an_export_is_imported_into_another_memory(
    tmp_path: Path, memory: LiveMemory, olympus: Olympus, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the file everything is as it was: the export of the copy is the same file."""
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    for number in range(700):
        memory.ask("memory.kv.set", KvSet(key=f"k{number:03}", value={"n": number, "raw": bytes([number % 256])}))
    memory.ask("memory.add", MemoryAdd(content="Ada keeps bees", id="bees", tags=["insects"]))

    assert olympus("export", str(first)) == exits.OK
    assert first.stat().st_mode & 0o777 == 0o600
    assert olympus("export", str(first)) == exits.USAGE
    other = LiveMemory(tmp_path / "other")
    other.call(other.start_bus())
    other.call(other.start_memory())
    try:
        there = [*other.flags, "memory"]
        assert app.main([*there, "import", str(first), "--json"]) == exits.OK
        assert app.main([*there, "import", str(first)]) == exits.OK
        assert app.main([*there, "export", str(second), "--json"]) == exits.OK
    finally:
        other.call(other.stop_memory())
        other.call(other.stop_bus())
        other.close()

    said = capsys.readouterr()
    assert second.read_bytes() == first.read_bytes()
    assert '"imported":701' in said.out
    assert "imported 0 records, skipped 701" in said.err


def test_an_import_that_breaks_off_says_where_and_goes_on_from_there(
    tmp_path: Path, memory: LiveMemory, olympus: Olympus, capsys: pytest.CaptureFixture[str]
) -> None:
    """What came before the broken line is there; mended, the same file is taken in to its end."""
    for number in range(600):
        memory.ask("memory.kv.set", KvSet(key=f"k{number:03}", value=number))
    export = tmp_path / "export.jsonl"
    assert olympus("export", str(export)) == exits.OK
    lines = export.read_bytes().splitlines(keepends=True)
    for number in range(600):
        memory.ask("memory.kv.delete", {"key": f"k{number:03}"})
    broken = tmp_path / "broken.jsonl"

    broken.write_bytes(b"".join([*lines[:550], lines[550].replace(b'"version":', b'"verzion":'), *lines[551:]]))
    assert olympus("import", str(broken)) == exits.FAILED
    said = capsys.readouterr().err
    assert "line 551: " in said and "verzion" in said and "imported 500 records" in said

    memory.ask("memory.kv.set", KvSet(key="k000", value="another"))
    assert olympus("import", str(export)) == exits.FAILED
    said = capsys.readouterr().err
    assert "conflict: line 2: " in said and "--on-conflict skip leaves what is there" in said
    assert olympus("import", str(export), "--on-conflict", "replace") == exits.OK
    assert memory.ask("memory.kv.get", KvGet(key="k599")).value == 599


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (header(1) + b'{"kind": "dream", "ns": "n", "data": {}}\n', "line 2: Expected one of"),
        (header(1) + b'{"kind": "kv", "ns": "a b", "data": {}}\n', "line 2: "),
        (header(1) + b'{"kind": "kv", "ns": "n", "data": {"key": "k"}}\n', "field: version"),
        (header(1) + b'{"kind": "kv", "ns": "n", "data": {' + b" " * 10_000_000 + b"\n", "line 2: it is not JSON"),
        (header(1), "it was cut off"),
        (header(1) + end({}) + b"{}\n", "line 3: it stands after the end"),
    ],
)
def test_a_bad_export_is_refused_with_its_line(
    tmp_path: Path, olympus: Olympus, capsys: pytest.CaptureFixture[str], text: bytes, said: str
) -> None:
    """Unknown kinds, names that cannot be, missing fields, lines of 10 MB."""
    file = tmp_path / "bad.jsonl"
    file.write_bytes(text)

    assert olympus("import", str(file)) == exits.FAILED
    assert said in capsys.readouterr().err


def test_a_backup_is_made_and_restored_while_it_serves(
    memory: LiveMemory, olympus: Olympus, capsys: pytest.CaptureFixture[str]
) -> None:
    """`backup` prints the path; `restore` goes back and says where the other state is kept."""
    memory.ask("memory.kv.set", KvSet(key="a", value="old"))
    assert olympus("backup", "--name", "monday") == exits.OK
    assert capsys.readouterr().out.strip() == str(memory.home / "memory" / "backups" / "monday.db")
    assert olympus("backup", "--name", "monday") == exits.FAILED
    memory.ask("memory.kv.set", KvSet(key="a", value="new"))

    assert olympus("restore", "monday", "--yes", "--json") == exits.OK

    kept_as = json.loads(capsys.readouterr().out)["kept_as"]
    assert memory.ask("memory.kv.get", KvGet(key="a")).value == "old"
    assert olympus("restore", kept_as, "--yes") == exits.OK
    assert memory.ask("memory.kv.get", KvGet(key="a")).value == "new"
    assert olympus("restore", "../memory.db", "--yes") == exits.FAILED


def test_a_restore_works_without_the_service(
    memory: LiveMemory, olympus: Olympus, capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged database, which no service opens, is replaced; the service then starts with the backup's content."""
    memory.ask("memory.kv.set", KvSet(key="a", value="old"))
    assert olympus("backup", "--name", "monday") == exits.OK
    memory.call(memory.stop_memory())
    database = memory.home / "memory" / "memory.db"
    database.write_bytes(b"damaged " * 5_000)

    status = olympus("restore", "monday", "--yes")
    missing = olympus("restore", "tuesday", "--yes")
    memory.call(memory.start_memory())

    said = capsys.readouterr()
    assert (status, missing) == (exits.OK, exits.FAILED)
    assert "what was there is kept as" in said.out
    assert "restoring without it" in said.err and "there is no backup" in said.err
    assert memory.ask("memory.kv.get", KvGet(key="a")).value == "old"


def test_without_a_broker_only_restore_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything else needs the service, and says how to start it."""
    flags = ["--set", f"home={tmp_path}", "--set", "bus.request_port=1"]

    assert app.main([*flags, "memory", "stats"]) == exits.UNREACHABLE
    assert app.main([*flags, "memory", "restore", "monday", "--yes"]) == exits.FAILED
    assert "there is no backup" in capsys.readouterr().err


def test_clean_up_is_confined_to_its_folders(memory: LiveMemory) -> None:
    """`utils.*` answers with what it removed, by folder."""
    old = memory.home / "tmp" / "old"
    old.parent.mkdir()
    old.write_text("x")
    os.utime(old, (0, 0))

    cleaned = memory.ask("utils.cleanup_system", {})

    assert (cleaned.temp_files.files_removed, cleaned.logs.files_removed, cleaned.cache.files_removed) == (1, 0, 0)
    assert memory.ask("utils.cleanup_temp_files", {"dry_run": True}).files_removed == 0


def test_a_terminal_is_asked_before_everything_is_replaced(memory: LiveMemory) -> None:
    """Anything but yes changes nothing."""
    memory.ask("memory.kv.set", KvSet(key="a", value="old"))
    memory.ask("memory.backup", {"name": "monday"})
    memory.ask("memory.kv.set", KvSet(key="a", value="new"))

    for answer, value in ((b"n\n", "new"), (b"y\n", "old")):
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "bus.cli.app", *memory.flags, "memory", "restore", "monday"]
        process = subprocess.Popen(command, stdin=theirs, stdout=subprocess.DEVNULL, stderr=theirs)
        os.close(theirs)
        try:
            assert b"[y/N]" in read_until(ours, b"[y/N]")
            os.write(ours, answer)
            process.wait(WAIT_S)
        finally:
            process.kill()
            process.wait(WAIT_S)
            os.close(ours)
        assert memory.ask("memory.kv.get", KvGet(key="a")).value == value


def read_until(descriptor: int, words: bytes) -> bytes:
    """What a terminal shows, up to `words`."""
    shown = b""
    while words not in shown:
        ready, _, _ = select.select([descriptor], [], [], WAIT_S)
        if not ready:
            raise AssertionError(f"the terminal never showed {words!r}, only {shown!r}")
        shown += os.read(descriptor, 4096)
    return shown
