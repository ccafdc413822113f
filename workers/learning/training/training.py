"""The service's end of a training: start its process warm or cold, hear it, end it, and climb the ladder.

It knows what processes say and how they end; queues, leases and what becomes of the adapter are others' business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import msgspec

from bus.settings import child_environment
from workers.learning.training import nest as nests
from workers.learning.training.ladder import next_rung
from workers.learning.training.messages import (
    EXIT_OUT_OF_MEMORY,
    AnyMessage,
    CheckpointSaved,
    Climbed,
    Failed,
    Finished,
    Planned,
    Progress,
    Stopped,
    decode,
)
from workers.learning.training.spec import LOG, MAX_LENGTH, TrainSpec, write_spec

log = logging.getLogger("olympus.learning")

# Nothing is fetched and nobody is told. OpenMP threads sleep while they wait, since others use the cores too. GPUs are
# numbered as the driver does it, as their leases and locks are. Without the third of these, asking whether there is a GPU
# would touch it, and a forked child could not use it any more. Processes of one training speak over loopback, and torchrun opens
# no port for them: they meet at a file.
ENVIRONMENT: Final = {
    "OMP_WAIT_POLICY": "passive",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "GLOO_SOCKET_IFNAME": "lo",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}

# Of a message; sentences on rows that were left out are the longest.
_LINE_BYTES: Final = 1 << 20
_MESSAGE_BYTES: Final = 65_536

# Seconds from SIGTERM until a trainer is killed: one step of a large model on a small machine, and a checkpoint.
STOP_LIMIT_S: Final = 30.0

# A process that was killed while it held this part of its budget was killed for it.
_NEAR_BUDGET: Final = 0.8

# Bytes of the log's end looked at for the reason of a death.
_LAST_WORDS_BYTES: Final = 4_000
_LAST_WORDS_CHARACTERS: Final = 300

OnMessage = Callable[[AnyMessage], None]
How = Literal["finished", "stopped", "out_of_memory", "failed", "lost"]


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How a training ended.

    finished       the adapter is whole                      failed   for a reason that another try does not change (kind)
    stopped        asked to; goes on at its checkpoint        lost     killed or crashed: goes on at its checkpoint
    out_of_memory  the ladder is at its end: needs a larger budget

    checkpoint: name of the last one it told of, None for none. exit_status: negative for a signal. spec: with the rung it
    ended on.
    """

    how: How
    reason: str
    kind: str
    finished: Finished | None
    checkpoint: str | None
    exit_status: int
    spec: TrainSpec


class NestLost(Exception):
    """The warm parent is gone, or never came up."""


class Nest:
    """The warm parent of trainers: one process, some 350 MB, that has imported what takes a cold trainer seconds.

    It may be opened again after it was closed or lost.
    """

    def __init__(self) -> None:
        self._process: Process | None = None
        self._socket: socket.socket | None = None
        self._reading: asyncio.Task[None] | None = None
        self._forked: dict[int, asyncio.Future[int]] = {}
        self._ended: dict[int, asyncio.Future[int]] = {}
        self._number = 0
        self._ready = asyncio.Event()
        self._opening = asyncio.Lock()

    @property
    def is_open(self) -> bool:
        """True from `open` until it is closed or lost."""
        return self._socket is not None

    @property
    def is_busy(self) -> bool:
        """True while a child of it runs, which would end with it."""
        return bool(self._ended)

    @property
    def pid(self) -> int | None:
        """Its process, None when it is not open."""
        return self._process.pid if self._process is not None and self.is_open else None

    async def open(self) -> None:
        """Start it; its imports go on behind. Nothing when it is open. Raises OSError."""
        async with self._opening:
            if not self.is_open:
                await self._open()

    async def _open(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        try:
            with theirs:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "workers.learning.training.nest",
                    "--parent",
                    str(os.getpid()),
                    stdin=theirs.fileno(),
                    stdout=DEVNULL,
                    start_new_session=True,
                    env=child_environment(None, {}, **ENVIRONMENT),
                )
        except OSError:
            ours.close()
            raise
        self._socket = ours
        self._reading = asyncio.create_task(self._read(ours), name="nest")

    async def ready(self) -> None:
        """Wait until everything is imported. Raises NestLost."""
        if self._reading is None:
            raise NestLost("the warm parent of trainers is not open")
        waiting = asyncio.create_task(self._ready.wait())
        await asyncio.wait({waiting, self._reading}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not self._ready.is_set():
            raise NestLost("the warm parent of trainers ended while it imported")

    async def close(self) -> None:
        """End it, and with it the trainers it forked."""
        process, reading = self._process, self._reading
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        if reading is not None:
            await reading
        if process is not None:
            await process.wait()

    async def fork(self, folder: Path, pipe: int) -> tuple[int, asyncio.Future[int]]:
        """Have it train the job in `folder`, which says what it has to say into `pipe`.

        Returns the process id and a future of its exit status, negative for a signal. Raises NestLost.
        """
        return await self._order(lambda number: nests.Fork(number=number, folder=_absolute(folder)), pipe)

    async def compare(self, end: socket.socket) -> tuple[int, asyncio.Future[int]]:
        """Have it answer one task of `promotion.reference` that comes through the other end of `end`. As `fork`."""
        return await self._order(lambda number: nests.Compare(number=number), end.fileno())

    async def _order(
        self, order: Callable[[int], nests.Fork | nests.Compare], descriptor: int
    ) -> tuple[int, asyncio.Future[int]]:
        if self._socket is None:
            raise NestLost("the warm parent of trainers is gone")
        self._number += 1
        number, loop = self._number, asyncio.get_running_loop()
        self._forked[number], self._ended[number] = loop.create_future(), loop.create_future()
        ended = self._ended[number]
        try:
            socket.send_fds(self._socket, [msgspec.json.encode(order(number))], [descriptor])
            pid = await self._forked[number]
        except OSError as error:
            self._ended.pop(number, None)
            raise NestLost(f"the warm parent of trainers does not take orders: {error}") from error
        finally:
            self._forked.pop(number, None)
        return pid, ended

    async def _read(self, ours: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(ours, _MESSAGE_BYTES):
                match nests.decode_news(data):
                    case nests.Ready():
                        self._ready.set()
                    case nests.Forked(number=number, pid=pid):
                        if (forked := self._forked.get(number)) is not None and not forked.done():
                            forked.set_result(pid)
                        else:
                            # Whoever asked for it has gone in the meantime.
                            with contextlib.suppress(ProcessLookupError):
                                os.kill(pid, signal.SIGKILL)
                    case nests.Ended(number=number, status=status):
                        if (ended := self._ended.pop(number, None)) is not None and not ended.done():
                            ended.set_result(status)
        except OSError as error:
            log.warning("nest lost", extra={"action": "learning.nest.lost", "error": str(error)})
        finally:
            ours.close()
            self._socket = None
            self._ready.clear()
            for forked in self._forked.values():
                if not forked.done():
                    forked.set_exception(NestLost("the warm parent of trainers is gone"))
            for ended in self._ended.values():
                if not ended.done():
                    # The kernel kills its children with it.
                    ended.set_result(-signal.SIGKILL)
            self._ended.clear()


class TrainingProcess:
    """One process, or one group of them, that trains the job in a folder. Its messages go to `on_message`."""

    def __init__(self, nest: Nest | None, on_message: OnMessage, *, stop_limit_s: float = STOP_LIMIT_S) -> None:
        self.pid: int | None = None
        self.planned: Planned | None = None
        self._nest = nest
        self._on_message = on_message
        self._stop_limit_s = stop_limit_s
        self._end: Finished | Failed | Stopped | None = None
        self._checkpoint: str | None = None
        self._memory_bytes = 0
        self._is_asked = False
        self._is_killed = False
        self._killing: asyncio.TimerHandle | None = None

    async def run(self, spec: TrainSpec, folder: Path) -> Ended:
        """Run it to its end; what is cancelled is killed. The folder holds spec.json already. Raises OSError."""
        read, write = os.pipe()
        try:
            exited = await self._start(spec, folder, write)
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        if self._is_killed:
            self._signal(signal.SIGKILL)
        elif self._is_asked:
            self.stop()
        try:
            await self._listen(read)
            status = await asyncio.shield(exited)
        except BaseException:
            self.kill()
            await asyncio.wait({exited})
            raise
        finally:
            self.pid = None
            if self._killing is not None:
                self._killing.cancel()
        return self._ended(spec, folder, status)

    def stop(self) -> None:
        """Ask it to stop with a checkpoint; it is killed when it has not after `stop_limit_s`."""
        self._is_asked = True
        if self.pid is not None and self._killing is None:
            self._signal(signal.SIGTERM)
            self._killing = asyncio.get_running_loop().call_later(self._stop_limit_s, self.kill)

    def kill(self) -> None:
        """End it at once."""
        self._is_killed = True
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def _start(self, spec: TrainSpec, folder: Path, write: int) -> asyncio.Future[int]:
        if spec.processes == 1 and self._nest is not None and self._nest.is_open:
            try:
                self.pid, ended = await self._nest.fork(folder, write)
                return ended
            except NestLost as error:
                log.warning("training starts cold", extra={"action": "learning.nest.lost", "error": str(error)})
        arguments = ["--folder", _absolute(folder), "--parent", str(os.getpid())]
        module = "trainer"
        if spec.processes > 1:
            module = "launch"
            arguments += ["--processes", str(spec.processes)]
        descriptor = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                f"workers.learning.training.{module}",
                *arguments,
                stdin=DEVNULL,
                stdout=write,
                stderr=descriptor,
                # Ctrl-C in a terminal reaches the service, which then decides.
                start_new_session=True,
                env=child_environment(None, {}, **ENVIRONMENT),
            )
        finally:
            os.close(descriptor)
        self.pid = process.pid
        return asyncio.ensure_future(process.wait())

    async def _listen(self, read: int) -> None:
        reader = asyncio.StreamReader(limit=_LINE_BYTES)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read, "rb", buffering=0)
        )
        try:
            while True:
                try:
                    line = await reader.readline()
                    if not line:
                        return
                    message = decode(line)
                except ValueError as error:
                    # Cut off by the process's death, or a line without an end.
                    log.warning(
                        "trainer says nonsense", extra={"action": "learning.trainer.nonsense", "error": str(error)}
                    )
                    continue
                self._note(message)
                self._on_message(message)
        finally:
            transport.close()

    def _note(self, message: AnyMessage) -> None:
        match message:
            case Planned():
                self.planned = message
            case Progress():
                self._memory_bytes = message.memory_bytes
            case CheckpointSaved():
                self._checkpoint = message.name
            case Finished() | Failed() | Stopped():
                # The first: what the other processes of a group say then only follows from it.
                self._end = self._end or message

    def _ended(self, spec: TrainSpec, folder: Path, status: int) -> Ended:
        how, reason, kind, finished = judge(
            self._end,
            status,
            is_asked=self._is_asked,
            is_killed=self._is_killed,
            is_near_budget=bool(spec.memory_budget_bytes)
            and self._memory_bytes >= _NEAR_BUDGET * (spec.memory_budget_bytes or 0),
        )
        if how == "lost" and not self._is_killed and (words := _last_words(folder / LOG)):
            reason = f"{reason}: {words}"
        checkpoint = self._checkpoint
        if isinstance(self._end, Failed | Stopped):
            checkpoint = self._end.checkpoint or checkpoint
        return Ended(
            how=how,
            reason=reason,
            kind=kind,
            finished=finished,
            checkpoint=checkpoint,
            exit_status=status,
            spec=spec,
        )

    def tried(self, spec: TrainSpec) -> tuple[int, int]:
        """Micro-batch and tokens of a row that were tried last, as far as it came."""
        micro, tokens = None, None
        if isinstance(self._end, Failed):
            micro, tokens = self._end.micro_batch, self._end.max_length
        if self.planned is not None:
            micro, tokens = micro or self.planned.micro_batch, tokens or self.planned.max_length
        per_process = spec.effective_batch // spec.processes
        return (
            micro or spec.rung.micro_batch or per_process,
            tokens or spec.rung.max_length or spec.max_length or MAX_LENGTH,
        )


class TrainingRun:
    """A training with its ladder: after out of memory a new process goes on with less, from the last checkpoint."""

    def __init__(self, nest: Nest | None, on_message: OnMessage, *, stop_limit_s: float = STOP_LIMIT_S) -> None:
        self._nest = nest
        self._on_message = on_message
        self._stop_limit_s = stop_limit_s
        self._process: TrainingProcess | None = None
        self._is_asked = False
        self._is_killed = False

    @property
    def pid(self) -> int | None:
        """Of the process that trains now, None between two."""
        return self._process.pid if self._process is not None else None

    async def run(self, spec: TrainSpec, folder: Path) -> Ended:
        """Train to an end; what is cancelled is killed. Writes spec.json. Raises OSError when nothing can be started."""
        while True:
            write_spec(folder, spec)
            process = self._process = TrainingProcess(self._nest, self._on_message, stop_limit_s=self._stop_limit_s)
            if self._is_killed:
                process.kill()
            elif self._is_asked:
                process.stop()
            ended = await process.run(spec, folder)
            if ended.how != "out_of_memory" or self._is_asked or self._is_killed:
                return ended
            micro_batch, max_length = process.tried(spec)
            rung = next_rung(
                spec.rung,
                micro_batch=micro_batch,
                max_length=max_length,
                rows_per_process=spec.effective_batch // spec.processes,
            )
            if rung is None:
                return ended
            self._on_message(Climbed(rung=rung, reason=ended.reason))
            spec = msgspec.structs.replace(spec, rung=rung)

    def stop(self) -> None:
        """Ask it to stop with a checkpoint."""
        self._is_asked = True
        if self._process is not None:
            self._process.stop()

    def kill(self) -> None:
        """End it at once."""
        self._is_killed = True
        if self._process is not None:
            self._process.kill()


def judge(
    end: Finished | Failed | Stopped | None, status: int, *, is_asked: bool, is_killed: bool, is_near_budget: bool
) -> tuple[How, str, str, Finished | None]:
    """How it ended, why, of which kind a failure was, and what it finished. Pure."""
    match end:
        case Finished():
            return "finished", "", "", end
        case Failed(kind="memory", reason=reason):
            return "out_of_memory", reason, "memory", None
        case Failed(kind=kind, reason=reason):
            return "failed", reason, kind, None
        case Stopped():
            return "stopped", "", "", None
    if is_asked:
        # Without a word: in its first moments, before it listened to signals, or killed after the time it had.
        return "stopped", "it did not stop in time and was killed" if is_killed else "", "", None
    if is_killed:
        return "lost", "killed", "", None
    if status == EXIT_OUT_OF_MEMORY or (status == -signal.SIGKILL and is_near_budget):
        return "out_of_memory", f"it was killed near its budget (status {status})", "memory", None
    how = f"signal {-status}" if status < 0 else f"exit code {status}"
    return "lost", f"the training process ended with {how}", "", None


def _absolute(folder: Path) -> str:
    """Where children look for it, whatever their working directory."""
    return str(folder.absolute())


def _last_words(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES, 0))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1].strip()[:_LAST_WORDS_CHARACTERS] if lines else ""
