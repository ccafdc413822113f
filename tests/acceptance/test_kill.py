"""Real processes, killed with -9 or told to stop in the middle of a request."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bus.client import Client
from bus.settings import Settings, load_settings
from schemas.bodies.memory import KvGet
from schemas.errors import WorkerLost

ROOT = Path(__file__).parents[2]
SOON_S = 30.0

# Waits while the file named "hold" is there, and notes every start of a request in the file named "ran".
WORKER = """
import asyncio, os, sys
from pathlib import Path
from bus.settings import load_settings
from bus.worker import Worker
from schemas.bodies.memory import KvEntry

folder = Path(sys.argv[1])
worker = Worker("test", load_settings(), capacity=4)

async def job(request, call):
    with (folder / "ran").open("a") as file:
        file.write(f"{call.id.hex()} {os.getpid()} {call.attempt}\\n")
    while (folder / "hold").exists():
        await asyncio.sleep(0.01)
    return os.getpid()

@worker.handles("memory.kv.get")
async def get(request, call):
    pid = await job(request, call)
    return KvEntry(key=request.key, value=pid, ns="kv", version=1, created_at=0.0, updated_at=0.0)

worker.handle("test.job", job)
asyncio.run(worker.run())
"""


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class House:
    """A broker process and worker processes over one home."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = ("request_port", "publish_port", "subscribe_port", "sequenced_port")
        ports = dict(zip(names, free_ports(4), strict=True))
        overrides: dict[str, Any] = {f"bus.{name}": port for name, port in ports.items()}
        overrides |= {"home": str(folder / "home"), "bus.heartbeat_s": 0.5, "bus.reconnect_max_s": 0.2}
        self.settings: Settings = load_settings(overrides=overrides)
        variables = {f"OLYMPUS_{key.upper().replace('.', '_')}": str(value) for key, value in overrides.items()}
        self._environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT)}
        self._running: list[subprocess.Popen[bytes]] = []
        self.broker_process: subprocess.Popen[bytes] | None = None
        (folder / "worker.py").write_text(WORKER)

    def broker(self) -> subprocess.Popen[bytes]:
        """Start `python -m broker`."""
        return self._start("-m", "broker")

    def worker(self) -> subprocess.Popen[bytes]:
        """Start a worker."""
        return self._start(str(self.folder / "worker.py"), str(self.folder))

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / "output").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, *arguments], env=self._environment, cwd=ROOT, stdout=output, stderr=output
            )
        self._running.append(process)
        return process

    def ran(self) -> list[tuple[str, int, int]]:
        """Every start of a request: its id, the process, the attempt."""
        path = self.folder / "ran"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(id, int(pid), int(attempt)) for id, pid, attempt in (line.split() for line in lines)]

    async def until(self, is_true: Callable[[], bool] | Callable[[], Awaitable[bool]], what: str) -> None:
        """Wait; a failure shows what the processes wrote."""
        try:
            async with asyncio.timeout(SOON_S):
                while True:
                    answer = is_true()
                    if answer if isinstance(answer, bool) else await answer:
                        return
                    await asyncio.sleep(0.02)
        except TimeoutError:
            pytest.fail(f"not within {SOON_S:g} s: {what}\n{(self.folder / 'output').read_text()}")

    def end(self) -> None:
        """Kill whatever still runs."""
        for process in self._running:
            process.kill()
            process.wait(10)


@asynccontextmanager
async def house(folder: Path) -> AsyncIterator[tuple[House, Client]]:
    """A running broker with a client."""
    home = House(folder)
    async with AsyncExitStack() as stack:
        stack.callback(home.end)
        home.broker_process = home.broker()
        client = await stack.enter_async_context(Client(home.settings))
        await client.connect(SOON_S)
        yield home, client


async def _serving(client: Client, count: int) -> bool:
    return len((await client.request("bus.workers", {"service": "test"})).workers) == count


async def _is_back(client: Client) -> bool:
    """False while the client still holds the broken connection."""
    try:
        await client.flush()
    except ConnectionError:
        return False
    return True


async def test_idempotent_request_of_a_killed_worker_is_answered_by_the_next(tmp_path: Path) -> None:
    """kill -9 in mid-request: whoever serves next gets it as its second attempt, and the caller gets the answer."""
    async with house(tmp_path) as (home, client):
        (tmp_path / "hold").touch()
        first = home.worker()
        await home.until(lambda: _serving(client, 1), "the worker is registered")
        asking = asyncio.create_task(client.request("memory.kv.get", KvGet(key="a"), timeout_s=SOON_S))
        await home.until(lambda: len(home.ran()) == 1, "the request is in flight")

        first.send_signal(signal.SIGKILL)
        second = home.worker()
        await home.until(lambda: len(home.ran()) == 2, "the request is in flight again")
        (tmp_path / "hold").unlink()

        assert (await asking).value == second.pid
        assert [(pid, attempt) for _, pid, attempt in home.ran()] == [(first.pid, 1), (second.pid, 2)]
        assert len({id for id, _, _ in home.ran()}) == 1


async def test_other_request_of_a_killed_worker_ends_in_worker_lost_and_a_dead_letter(tmp_path: Path) -> None:
    """It may have had its effect, so it does not run again until somebody says so."""
    async with house(tmp_path) as (home, client):
        (tmp_path / "hold").touch()
        first = home.worker()
        await home.until(lambda: _serving(client, 1), "the worker is registered")
        asking = asyncio.create_task(client.request("test.job", {"a": 1}, timeout_s=SOON_S))
        await home.until(lambda: len(home.ran()) == 1, "the request is in flight")

        first.send_signal(signal.SIGKILL)

        with pytest.raises(WorkerLost):
            await asking
        second = home.worker()
        await home.until(lambda: _serving(client, 1), "the next worker is registered")
        (tmp_path / "hold").unlink()
        assert len(home.ran()) == 1
        (letter,) = (await client.request("deadletter.list")).dead_letters
        assert (await client.request("deadletter.redrive", {"id": letter.id})).reply == second.pid


async def test_worker_told_to_stop_finishes_what_it_has(tmp_path: Path) -> None:
    """SIGTERM: its requests are answered and it leaves with status 0, well within the 4 s it is given."""
    async with house(tmp_path) as (home, client):
        (tmp_path / "hold").touch()
        worker = home.worker()
        await home.until(lambda: _serving(client, 1), "the worker is registered")
        asking = [asyncio.create_task(client.request("test.job", timeout_s=SOON_S)) for _ in range(4)]
        await home.until(lambda: len(home.ran()) == 4, "the requests are in flight")

        worker.terminate()
        (tmp_path / "hold").unlink()

        assert await asyncio.gather(*asking) == [worker.pid] * 4
        assert await asyncio.to_thread(worker.wait, 10) == 0


async def test_requests_in_flight_survive_a_killed_broker(tmp_path: Path) -> None:
    """Client and worker come back to the next broker; both kinds of request run once and are answered."""
    home = House(tmp_path)
    async with AsyncExitStack() as stack:
        stack.callback(home.end)
        broker = home.broker()
        client = await stack.enter_async_context(Client(home.settings))
        await client.connect(SOON_S)
        (tmp_path / "hold").touch()
        worker = home.worker()
        await home.until(lambda: _serving(client, 1), "the worker is registered")
        asking = [
            asyncio.create_task(client.request("test.job", timeout_s=SOON_S)),
            asyncio.create_task(client.request("memory.kv.get", KvGet(key="a"), timeout_s=SOON_S)),
        ]
        await home.until(lambda: len(home.ran()) == 2, "both are in flight")

        broker.send_signal(signal.SIGKILL)
        await asyncio.to_thread(broker.wait, 10)
        home.broker()
        await home.until(lambda: _serving(client, 1), "the worker is back")
        (tmp_path / "hold").unlink()

        job, entry = await asyncio.gather(*asking)
        assert (job, entry.value) == (worker.pid, worker.pid)
        assert len(home.ran()) == 2


async def test_logged_events_and_their_numbers_survive_a_killed_broker(tmp_path: Path) -> None:
    """What was on disk stays; the numbers after the kill are above all those before it."""
    home = House(tmp_path)
    async with AsyncExitStack() as stack:
        stack.callback(home.end)
        broker = home.broker()
        client = await stack.enter_async_context(Client(home.settings))
        for index in range(50):
            await client.publish("memory.changed.kv", {"index": index})
        await client.flush()

        async def logged() -> list[Any]:
            page = await client.request("bus.events.read", {"subject": "memory.>"})
            return [(event.seq, event.body["index"]) for event in page.events]

        before = await logged()
        assert [index for _, index in before] == list(range(50))
        broker.send_signal(signal.SIGKILL)
        await asyncio.to_thread(broker.wait, 10)
        home.broker()
        await home.until(lambda: _is_back(client), "the publisher is back")
        await client.publish("memory.changed.kv", {"index": 50})
        await client.flush()
        after = await logged()

        assert after[:50] == before
        assert after[50][0] > before[-1][0]


async def test_broker_on_a_taken_port_leaves_and_names_the_key(tmp_path: Path) -> None:
    """Exit status 78, which no supervisor retries, and one line that says what to change."""
    home = House(tmp_path)
    with socket.socket() as blocker:
        blocker.bind(("127.0.0.1", 0))
        blocker.listen()
        taken = msgspec.structs.replace(home.settings.bus, sequenced_port=blocker.getsockname()[1])
        home._environment["OLYMPUS_BUS_SEQUENCED_PORT"] = str(taken.sequenced_port)
        process = home.broker()
        try:
            assert await asyncio.to_thread(process.wait, SOON_S) == 78
        finally:
            home.end()
    assert "bus.sequenced_port" in (tmp_path / "output").read_text()


async def test_a_request_in_flight_is_answered_when_broker_and_worker_are_told_to_stop_together(
    tmp_path: Path,
) -> None:
    """SIGTERM reaches every process of the house at once; what is nearly done still reaches its caller."""
    async with house(tmp_path) as (home, client):
        (tmp_path / "hold").touch()
        worker, broker = home.worker(), home.broker_process
        assert broker is not None
        await home.until(lambda: _serving(client, 1), "the worker is registered")
        asking = asyncio.create_task(client.request("test.job", {"a": 1}, timeout_s=SOON_S))
        await home.until(lambda: len(home.ran()) == 1, "the request is in flight")

        for process in (broker, worker):
            process.send_signal(signal.SIGTERM)
        (tmp_path / "hold").unlink()

        assert await asking == worker.pid
        for process in (broker, worker):
            assert await asyncio.to_thread(process.wait, SOON_S) == 0
