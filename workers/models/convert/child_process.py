"""The service's end of a converting child: starts it, hears how far it is, and ends it with whoever waits."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable, Sequence

import msgspec

from bus.settings import child_environment
from schemas.errors import BY_CODE, Internal, Unprocessable
from workers.models.convert import saying

# Bytes of the child's stderr kept for an error message.
_LAST_WORDS_BYTES = 2_000


async def convert(arguments: Sequence[str], on_step: Callable[[saying.Step], None]) -> str:
    """Run the child to its end; returns the sha256 of what it made. Raises what it refused with, and Internal when it crashed; killed when cancelled."""
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "workers.models.convert.child",
            *arguments,
            "--parent",
            str(os.getpid()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            # Ctrl-C in a terminal reaches the service, which then decides.
            start_new_session=True,
            env=child_environment(None, {}),
        )
    except OSError as error:
        raise Internal(f"the converting process could not be started: {error.strerror or error}") from error
    assert process.stdout is not None
    assert process.stderr is not None
    last_words = asyncio.create_task(_tail(process.stderr))
    refusal, sha256 = None, None
    try:
        while line := await process.stdout.readline():
            match _decoded(line):
                case saying.Refusal() as said:
                    refusal = said
                case saying.Made(made):
                    sha256 = made
                case saying.Step() as step:
                    on_step(step)
        status = await process.wait()
        words = await last_words
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        last_words.cancel()
    if refusal is not None:
        raise BY_CODE.get(refusal.code, Unprocessable)(refusal.message)
    if status != 0 or sha256 is None:
        how = f"signal {-status}" if status < 0 else f"exit code {status}"
        raise Internal(f"the converting process crashed ({how}): {words or 'it said nothing'}")
    return sha256


def _decoded(line: bytes) -> saying.Said | None:
    try:
        return saying.decode(line)
    except msgspec.DecodeError:
        # Cut off by the child's death, of which its status tells.
        return None


async def _tail(stream: asyncio.StreamReader) -> str:
    kept = b""
    while piece := await stream.read(65_536):
        kept = (kept + piece)[-_LAST_WORDS_BYTES:]
    return kept.decode("utf-8", "replace").strip()
