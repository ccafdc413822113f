"""A redis-server of a test's own: started in a folder of its own, killed, paused, started again."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from workers.memory.hot.tier import HotTier, Space

# How long anything that must happen may take before a test says what was missing.
SOON_S = 15.0


class RedisProcess:
    """A server on a unix socket; `persistent` makes it keep its state over a restart, as of the last `SAVE`."""

    def __init__(self, *options: str, persistent: bool = False) -> None:
        program = shutil.which("redis-server")
        if program is None:
            pytest.skip("redis-server is not installed")
        # A folder with a short name: the path of a unix socket has a hundred characters at most.
        self.folder = Path(tempfile.mkdtemp(prefix="redis-"))
        self.socket = self.folder / "s"
        # A time far away: nothing is saved unless a test says so.
        save = "31536000 1000000" if persistent else ""
        self._command = [program, "--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder)]
        self._command += ["--save", save, "--appendonly", "no", *options]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        """What `memory.redis_url` says."""
        return f"unix://{self.socket}"

    def start(self) -> None:
        """Run the server and wait until it listens."""
        self.socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + SOON_S
        while not self.socket.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail("redis-server did not start")
            time.sleep(0.005)

    def kill(self) -> None:
        """End the server without a chance to say or save anything."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Let it neither answer nor read, while the kernel still takes connections and bytes for it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on with whatever waits for it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait until `condition` holds, or fail with what was missing."""
    deadline = time.monotonic() + SOON_S
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"did not happen within {SOON_S:g} s: {what}")
        await asyncio.sleep(0.005)


async def values_of(tier: HotTier, space: Space, keys: Iterable[str]) -> list[bytes | None]:
    """The values in the order of their keys."""
    return [await tier.get(space, key) for key in keys]
