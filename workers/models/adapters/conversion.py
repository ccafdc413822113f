"""The model service's end of the program that makes an adapter ready to be kept: one process for each, then gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Final

import msgspec

from bus.settings import child_environment
from schemas.errors import Internal, Unprocessable
from workers.models.adapters.convert import Converted

# Seconds for one adapter; the largest are some GB, read and written once.
_LIMIT_S: Final = 600.0

# Of what the program says when it crashes, the end: the message of the error.
_SHOWN_CHARACTERS: Final = 300

_decode = msgspec.json.Decoder(Converted).decode


async def convert_apart(source: str, base: str, target: Path) -> Converted:
    """Make `target` from the adapter at `source` for the model at `base`.

    Raises Unprocessable with the reason, Internal when the program crashed or hung over it.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "workers.models.adapters.convert",
            "--parent",
            str(os.getpid()),
            source,
            base,
            str(target),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            # Ctrl-C in a terminal reaches the service, which then decides.
            start_new_session=True,
            env=child_environment(None, {}),
        )
    except OSError as error:
        raise Internal(f"the adapter could not be read: {error.strerror or error}") from error
    try:
        async with asyncio.timeout(_LIMIT_S):
            answer, said = await process.communicate()
    except TimeoutError as error:
        raise Internal(f"reading the adapter took longer than {_LIMIT_S:g} s") from error
    finally:
        await _end(process)
    if process.returncode != 0:
        how = said.decode("utf-8", "replace").strip()[-_SHOWN_CHARACTERS:]
        raise Internal(f"the program that reads adapters ended with status {process.returncode}: {how}")
    converted = _decode(answer)
    if converted.error:
        raise Unprocessable(f"{source} cannot be used as an adapter: {converted.error}", field="path")
    return converted


async def _end(process: Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
