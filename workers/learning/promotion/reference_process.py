"""The service's end of the program that asks PEFT: one process for each adapter, then gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import PIPE
from typing import Final

import msgspec

from bus.settings import child_environment
from schemas.errors import Internal, Unprocessable
from workers.learning.promotion.reference import Answer, Scored, Task

# Seconds: sixteen texts of a model with some billion parameters on a CPU take a few minutes.
_LIMIT_S: Final = 1_800.0

# Of what the program says when it crashes, the end: the message of the error.
_SHOWN_CHARACTERS: Final = 300
_REASON_CHARACTERS: Final = 600

_decode = msgspec.json.Decoder(Answer).decode


async def ask_peft(task: Task) -> list[Scored]:
    """What PEFT computes. Raises Unprocessable with its reason, Internal when the program crashed or hung."""
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
            env=child_environment(None, {}),
        )
    except OSError as error:
        raise Internal(
            f"the program that compares with PEFT could not be started: {error.strerror or error}"
        ) from error
    try:
        async with asyncio.timeout(_LIMIT_S):
            answer, said = await process.communicate(msgspec.json.encode(task))
    except TimeoutError as error:
        raise Internal(f"comparing with PEFT took longer than {_LIMIT_S:g} s") from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        how = said.decode("utf-8", "replace").strip()[-_SHOWN_CHARACTERS:]
        raise Internal(f"the program that compares with PEFT ended with status {process.returncode}: {how}")
    found = _decode(answer)
    if found.error:
        raise Unprocessable(f"PEFT cannot use the adapter on {task.base}: {found.error[:_REASON_CHARACTERS]}")
    return found.scored
