"""The model service's end of one runner process: start it, talk to it, end it, hear of its end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable

from bus.settings import child_environment
from workers.models.control import Command, News, RunnerBusy, RunnerLoaded, decode_news, encode_line

log = logging.getLogger("olympus.models")

# OpenMP threads that spin while they wait are fastest on an idle machine and ruinous on a busy one: with two threads on
# two cores that others use too, a step of an 85 M model took 250 to 1500 ms instead of 15. Sleeping threads: 23 ms.
# GPUs are numbered as the driver does it, so that "gpu1" is the card that was leased; CUDA's own order is by speed.
_ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}

# Of a line of news; errors of libraries are the longest.
_LINE_BYTES = 1 << 20


class RunnerProcess:
    """One runner. Commands given before the process runs wait for it.

    model: what it was told to load, "" for a spare one. is_told_to_serve: with which adapters, too, so that it
    has to be told of every change. loaded: what it said when it served. in_flight: answers it is at work on, as of the
    news before the present one.
    """

    def __init__(self, id: int, on_news: Callable[[int, News], None], on_exit: Callable[[int, str], None]) -> None:
        self.id = id
        self.model = ""
        self.is_told_to_serve = False
        self.loaded: RunnerLoaded | None = None
        self.loaded_at: float | None = None
        self.in_flight = 0
        self._on_news = on_news
        self._on_exit = on_exit
        self._process: Process | None = None
        self._unsent: list[Command] = []
        self._is_killed = False
        self._life = asyncio.get_running_loop().create_task(self._live(), name=f"runner {id}")

    @property
    def pid(self) -> int | None:
        """Its process id, None before it runs."""
        return self._process.pid if self._process is not None else None

    def send(self, command: Command) -> None:
        """Tell it something."""
        if self._process is None:
            self._unsent.append(command)
        elif self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(encode_line(command))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; a process that has ended takes no harm."""
        self._is_killed = self._is_killed or number is signal.SIGKILL
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def ended(self) -> None:
        """Wait until the process has ended and `on_exit` was called."""
        await asyncio.shield(self._life)

    async def _live(self) -> None:
        try:
            process = await self._start()
        except OSError as error:
            self._on_exit(self.id, f"could not be started: {error.strerror or error}")
            return
        if self._is_killed:
            process.kill()
        for command in self._unsent:
            self.send(command)
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
                if not line:
                    break
                news = decode_news(line)
            except ValueError as error:
                # No news of ours, or a line without an end.
                log.warning("runner says nonsense", extra={"action": "model.runner.nonsense", "error": str(error)})
                continue
            if isinstance(news, RunnerLoaded):
                self.loaded, self.loaded_at = news, time.time()
            self._on_news(self.id, news)
            if isinstance(news, RunnerBusy):
                self.in_flight = news.in_flight
        status = await process.wait()
        self._on_exit(self.id, f"signal {-status}" if status < 0 else f"exit code {status}")

    async def _start(self) -> Process:
        # A session of its own: Ctrl-C in a terminal and honcho's group signals reach the service, which then decides.
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "workers.models.runner",
            "--parent",
            str(os.getpid()),
            stdin=PIPE,
            stdout=PIPE,
            limit=_LINE_BYTES,
            start_new_session=True,
            env=child_environment(None, {}, **_ENVIRONMENT),
        )
        return self._process
