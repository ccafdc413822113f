"""What the memory service does where it may not write, or cannot: a refusal at start, an error to the caller later."""

from __future__ import annotations

import asyncio
import os
import resource
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path

import pytest

from bus.client import Client
from bus.settings import EX_CONFIG, Settings
from schemas.bodies.items import DocPut, MemoryAdd, MemoryAddMany, MemoryGet, MemoryGetMany, MemoryList, NewMemory
from schemas.bodies.memory import KvSet, Recall, Remember
from schemas.bodies.sessions import NewTurn, SessionAppend, SessionCreate, SessionHistory
from schemas.errors import Internal
from tests.acceptance.test_memory_process import ROOT, settings_flags, started
from workers.memory.records import Records
from workers.memory.store import MemoryStore

Serve = Callable[..., AbstractAsyncContextManager[Settings]]

# The service without the rights that let root pass all file permissions: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH leave
# what a new program can have (PR_CAPBSET_DROP; numbers from linux/prctl.h and linux/capability.h).
BOUND_BY_PERMISSIONS = textwrap.dedent("""
    import ctypes, os, sys

    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in (1, 2):
            assert libc.prctl(24, capability, 0, 0, 0) == 0, os.strerror(ctypes.get_errno())
    os.execv(sys.executable, [sys.executable, "-m", "workers.memory", *sys.argv[1:]])
""")


def content(path: Path) -> list[tuple[str, bytes]]:
    """Files of a folder and what is in them."""
    return sorted((file.name, file.read_bytes()) for file in path.iterdir())


async def _fill(path: Path) -> None:
    records = await Records.open(path, readers=1, on_committed=lambda events: None)
    await MemoryStore(records).kv_set(KvSet(key="k", value="v"), os.urandom(16))
    await records.close()


@pytest.mark.parametrize(("file_mode", "folder_mode"), [(0o400, 0o700), (0o600, 0o500), (0o400, 0o500)])
def test_a_database_that_may_not_be_written_is_refused_with_instructions_and_left_alone(
    settings: Settings, file_mode: int, folder_mode: int
) -> None:
    """The file, its folder, where its log must stand, or both; then status 78, so that no supervisor tries again."""
    path = settings.path(settings.memory.path)
    asyncio.run(_fill(path))
    path.chmod(file_mode)
    path.parent.chmod(folder_mode)
    before = content(path.parent)

    command = [sys.executable, "-c", BOUND_BY_PERMISSIONS, *settings_flags(settings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=ROOT)
    path.parent.chmod(0o700)

    assert done.returncode == EX_CONFIG, done.stderr
    assert f"{path} cannot be" in done.stderr
    assert "give this user write access" in done.stderr
    assert "Traceback" not in done.stderr
    assert content(path.parent) == before


# Bytes that one file may have while the disk is full, and while it takes nothing more. The database starts with 0.3 MB.
FULL_BYTES = 1_500_000
PAGE_BYTES = 4_096


async def _write_until_refused(client: Client, told: list[str]) -> str:
    """Batches of memories until the service says no; the ids of those it took go to `told`."""
    for number in range(1_000):
        many = [NewMemory(id=f"{number}-{n}", content=f"{number} {n} " + "water " * 2_000) for n in range(3)]
        try:
            told += (await client.request("memory.add_many", MemoryAddMany(items=many))).ids
        except Internal as error:
            return error.message
    raise AssertionError("there was always room")


async def test_a_disk_that_fills_up_under_the_service_is_told_to_callers_and_costs_nothing_that_was_answered(
    serve_broker: Serve,
) -> None:
    """Every kind of write is refused whole, reading and the process go on, and with room again so does writing."""
    async with serve_broker() as settings, Client(settings) as client:
        async with started(settings, "--set", "memory.encoder=none-here") as process:
            soft, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (FULL_BYTES, hard))
            told: list[str] = []
            await client.request("memory.remember", Remember(key="city", value="Porto"))
            await client.request("memory.session.create", SessionCreate(session_id="s"))
            turns = [NewTurn(role="user", content="Is there room?")]
            await client.request("memory.session.append", SessionAppend(session_id="s", turns=turns))

            assert "nothing was written: the disk that holds memory.db failed or is full" in (
                await _write_until_refused(client, told)
            )
            with pytest.raises(Internal, match="nothing was written"):
                await client.request("memory.doc.put", DocPut(doc_id="d", content="water " * 20_000))
            assert (await client.request("memory.get", MemoryGet(id=told[0], touch=False))).id == told[0]

            # Not even the note that something was read has room.
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (PAGE_BYTES, hard))
            got = await client.request("memory.get", MemoryGet(id=told[0]))
            assert (got.id, got.access_count) == (told[0], 0)
            several = await client.request("memory.get_many", MemoryGetMany(ids=told[:2]))
            assert [one.id for one in several.memories] == told[:2]
            assert (await client.request("memory.recall", Recall(key="city"))).value == "Porto"
            said = await client.request("memory.session.history", SessionHistory(session_id="s"))
            assert [turn.content for turn in said.turns] == ["Is there room?"]

            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (soft, hard))
            told.append((await client.request("memory.add", MemoryAdd(content="room again"))).id)
            listed = (await client.request("memory.list", MemoryList(limit=1000))).memories
            assert [one.id for one in listed] == told
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 10) == 0

        with closing(sqlite3.connect(settings.path(settings.memory.path))) as connection:
            connection.execute("INSERT INTO chunks_text (chunks_text, rank) VALUES ('integrity-check', 1)")
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
