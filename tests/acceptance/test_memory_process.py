"""The memory service as a process: kill -9 under load, a disk that fills up, refusals to start, a clean stop."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path

from bus.client import Client
from bus.settings import EX_CONFIG, Settings
from schemas.bodies.memory import AllFacts, KvGet, KvSet, Recall
from workers.memory.records import Records
from workers.memory.store import MemoryStore

Serve = Callable[..., AbstractAsyncContextManager[Settings]]

ROOT = Path(__file__).parents[2]

KILLS = 5
ACKNOWLEDGED_BEFORE_KILL = 400

# Writes without end from sixteen callers; a line is printed only once the store has acknowledged the write.
WRITER = textwrap.dedent("""
    import asyncio, os, sys
    from pathlib import Path
    from schemas.bodies.memory import KvSet, Remember
    from workers.memory.records import Records
    from workers.memory.store import MemoryStore

    async def main(path, run):
        records = await Records.open(Path(path), readers=1, on_committed=lambda events: None)
        store = MemoryStore(records)

        async def write_for_ever(caller):
            number = 0
            while True:
                name = f"{run}-{caller}-{number}"
                await store.kv_set(KvSet(key=name, value=name * 50), os.urandom(16))
                await store.remember(Remember(key=name, value=f"{name} searchable"), os.urandom(16))
                os.write(1, f"{name}\\n".encode())
                number += 1

        await asyncio.gather(*(write_for_ever(caller) for caller in range(16)))

    asyncio.run(main(sys.argv[1], sys.argv[2]))
""")

# Fills the file up to the limit on its size, then gets room and goes on.
FILLER = textwrap.dedent("""
    import asyncio, os, resource, sys
    from pathlib import Path
    from schemas.bodies.memory import KvGet, KvList, KvSet
    from schemas.errors import Internal
    from workers.memory.records import Records
    from workers.memory.store import MemoryStore

    async def main(path):
        records = await Records.open(Path(path), readers=1, on_committed=lambda events: None)
        store = MemoryStore(records)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
        acknowledged = 0
        try:
            while True:
                await store.kv_set(KvSet(key=f"{acknowledged:05}", value=b"x" * 50_000), os.urandom(16))
                acknowledged += 1
        except Internal as error:
            print(error.message)
        await store.kv_get(KvGet(key="00000"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        await store.kv_set(KvSet(key=f"{acknowledged:05}", value=b"y"), os.urandom(16))
        page = await store.kv_list(KvList(limit=1000, keys_only=True))
        assert [entry.key for entry in page.entries] == [f"{n:05}" for n in range(acknowledged + 1)], page
        await records.close()

    asyncio.run(main(sys.argv[1]))
""")


def integrity(path: Path) -> str:
    """SQLite's own verdict on the file, the full-text index included."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO facts_text (facts_text, rank) VALUES ('integrity-check', 1)")
        verdict: str = connection.execute("PRAGMA integrity_check").fetchone()[0]
    return verdict


def test_every_acknowledged_write_survives_kill_9(tmp_path: Path) -> None:
    """Killed under load again and again, the file holds each acknowledged write, whole, and opens at once."""
    path = tmp_path / "memory.db"
    acknowledged: list[str] = []
    for run in range(KILLS):
        command = [sys.executable, "-c", WRITER, str(path), str(run)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as writer:
            assert writer.stdout is not None
            for _ in range(ACKNOWLEDGED_BEFORE_KILL):
                line = writer.stdout.readline()
                assert line, "the writer ended by itself"
                acknowledged.append(line.strip())
            writer.send_signal(signal.SIGKILL)
            # What it had printed before it died was acknowledged too; a torn last line was not.
            acknowledged += [line.strip() for line in writer.stdout if line.endswith("\n")]

    async def check() -> None:
        records = await Records.open(path, readers=1, on_committed=lambda events: None)
        store = MemoryStore(records)
        try:
            for name in acknowledged:
                assert (await store.kv_get(KvGet(key=name))).value == name * 50
                assert (await store.recall(Recall(key=name), os.urandom(16))).value == f"{name} searchable"
            assert len((await store.all(AllFacts(limit=1000))).facts) == 1000
        finally:
            await records.close()

    asyncio.run(check())
    assert len(acknowledged) >= KILLS * ACKNOWLEDGED_BEFORE_KILL
    assert integrity(path) == "ok"


def test_a_disk_that_fills_up_fails_the_write_and_leaves_the_store_intact(tmp_path: Path) -> None:
    """The caller is told; reads go on; with room again so do writes, and every acknowledged one is there."""
    path = tmp_path / "memory.db"

    done = subprocess.run(
        [sys.executable, "-c", FILLER, str(path)], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )

    assert done.returncode == 0, done.stderr
    assert "nothing was written: the disk that holds memory.db failed or is full" in done.stdout
    assert integrity(path) == "ok"


def settings_flags(settings: Settings) -> list[str]:
    """What a command of ours needs on its command line to use the home and the broker of `settings`."""
    ports = ("request_port", "publish_port", "subscribe_port", "sequenced_port")
    pairs = {"home": settings.home, **{f"bus.{name}": getattr(settings.bus, name) for name in ports}}
    return [part for key, value in pairs.items() for part in ("--set", f"{key}={value}")]


def service_command(settings: Settings) -> list[str]:
    """How a supervisor starts the service."""
    return [sys.executable, "-m", "workers.memory", *settings_flags(settings)]


def test_a_damaged_database_ends_the_process_with_status_78_and_instructions(settings: Settings) -> None:
    """A supervisor does not start it again, and the person reads what to do."""
    path = settings.path(settings.memory.path)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no database" * 1_000)

    done = subprocess.run(service_command(settings), capture_output=True, text=True, timeout=30, check=False, cwd=ROOT)

    assert done.returncode == EX_CONFIG
    assert f"{path} is damaged or not a database" in done.stderr
    assert "To restore: stop the service" in done.stderr
    assert "Traceback" not in done.stderr


@asynccontextmanager
async def started(settings: Settings, *flags: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The service as a process that has said it is ready."""
    command = [*service_command(settings), *flags]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE, cwd=ROOT)
    try:
        assert process.stderr is not None
        async with asyncio.timeout(30):
            while b"worker.ready" not in await process.stderr.readline():
                assert process.returncode is None, "the service ended before it was ready"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_sigterm_ends_the_process_cleanly_and_its_successor_knows_everything(serve_broker: Serve) -> None:
    """Status 0, the log folded back into the file, and what was written is there."""
    async with serve_broker() as settings, Client(settings, name="test") as client:
        async with started(settings) as process:
            await client.request("memory.kv.set", KvSet(key="k", value="v"))
            process.terminate()
            async with asyncio.timeout(10):
                assert await process.wait() == 0
        database = settings.path(settings.memory.path)
        # Neither a log nor an index of one: both are folded back into their files.
        assert not list(database.parent.glob("*-wal")) + list(database.parent.glob("*-shm"))

        async with started(settings):
            assert (await client.request("memory.kv.get", KvGet(key="k"))).value == "v"


async def test_the_idle_service_stays_small(serve_broker: Serve) -> None:
    """Less than 60 MB resident: nothing heavy is imported for keys and facts."""
    async with serve_broker() as settings, started(settings) as process:
        with open(f"/proc/{process.pid}/status") as status:  # noqa: ASYNC230 - procfs does not block
            resident_kib = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

    assert resident_kib < 60_000


async def test_the_examples_of_the_document_work_in_order(serve_broker: Serve) -> None:
    """Every `olympus req` line of docs/memory.md succeeds as printed, against a new database."""
    document = ROOT / "docs" / "memory.md"
    examples = [line for line in document.read_text().splitlines() if line.startswith("olympus req ")]
    async with serve_broker() as settings, started(settings):
        for example in examples:
            words = shlex.split(example, comments=True)[1:]
            command = [sys.executable, "-m", "bus.cli.app", *settings_flags(settings), *words]
            process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stderr=asyncio.subprocess.PIPE)
            _, complaint = await asyncio.wait_for(process.communicate(), 20)
            assert process.returncode == 0, f"{example}: {complaint.decode()}"

    assert len(examples) == 13
