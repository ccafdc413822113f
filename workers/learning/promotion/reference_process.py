"""The service's end of the program that asks PEFT: one process for each adapter, warm where there is one, then gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE
from typing import Final

import msgspec

from bus.settings import child_environment
from schemas.errors import Internal, Unprocessable
from workers.learning.promotion.reference import Answer, Scored, Task
from workers.learning.training.training import ENVIRONMENT, Nest, NestLost

log = logging.getLogger("olympus.learning.promotion")

# Seconds: sixteen texts of a model with some billion parameters on a CPU take a few minutes.
_LIMIT_S: Final = 1_800.0

# Of what the program says when it crashes, the end: the message of the error.
_SHOWN_CHARACTERS: Final = 300
_REASON_CHARACTERS: Final = 600

_decode = msgspec.json.Decoder(Answer).decode


async def ask_peft(task: Task, nest: Nest) -> list[Scored]:
    """What PEFT computes. Raises Unprocessable with its reason, Internal when the program crashed or hung."""
    try:
        async with asyncio.timeout(_LIMIT_S):
            status, answer, said = await _asked_warm(task, nest)
    except TimeoutError as error:
        raise Internal(f"comparing with PEFT took longer than {_LIMIT_S:g} s") from error
    if status != 0:
        how = said.decode("utf-8", "replace").strip()[-_SHOWN_CHARACTERS:]
        raise Internal(f"the program that compares with PEFT ended with status {status}: {how}")
    found = _decode(answer)
    if found.error:
        raise Unprocessable(f"PEFT cannot use the adapter on {task.base}: {found.error[:_REASON_CHARACTERS]}")
    return found.scored


async def _asked_warm(task: Task, nest: Nest) -> tuple[int, bytes, bytes]:
    """Exit status, answer and what it said besides; from a process that has everything imported, where there is one."""
    if not nest.is_open:
        return await _asked_cold(task)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours:
        try:
            with theirs:
                pid, ended = await nest.compare(theirs)
        except NestLost as error:
            log.warning("comparing starts cold", extra={"action": "learning.nest.lost", "error": str(error)})
            return await _asked_cold(task)
        try:
            reader, writer = await asyncio.open_connection(sock=ours.dup())
            try:
                writer.write(msgspec.json.encode(task))
                writer.write_eof()
                answer = await reader.read()
            finally:
                writer.close()
            return await asyncio.shield(ended), answer, b""
        except OSError as error:
            raise Internal(f"the program that compares with PEFT does not listen: {error}") from error
        finally:
            if not ended.done():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                await asyncio.wait({ended})


async def _asked_cold(task: Task) -> tuple[int, bytes, bytes]:
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "workers.learning.promotion.reference",
            "--parent",
            str(os.getpid()),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            # Ctrl-C in a terminal reaches the service, which then decides.
            start_new_session=True,
            env=child_environment(None, {}, **ENVIRONMENT),
        )
    except OSError as error:
        raise Internal(
            f"the program that compares with PEFT could not be started: {error.strerror or error}"
        ) from error
    try:
        answer, said = await process.communicate(msgspec.json.encode(task))
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return process.returncode or 0, answer, said
