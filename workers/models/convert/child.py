"""The process that converts, `python -m workers.models.convert.child quantise|export ...`; it says how far it is on stdout.

Apart from the service because of what it loads, because it takes every core for long, and because native code may crash.
It ends with the service.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bus.parent import die_with_parent
from schemas.errors import BusError
from workers.models.convert import saying

# Converting waits for those who talk to a model.
_NICENESS: Final = 10

# Seconds between two lines of progress at least.
_SAY_S: Final = 0.2

_HASH_BYTES: Final = 1024 * 1024


class _Speaker:
    """Says steps, not more often than anybody looks."""

    def __init__(self) -> None:
        self._said_at = 0.0
        # Libraries print what they like; the service reads only what comes from here.
        self._out = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def step(self, step: str, done_bytes: int, total_bytes: int) -> None:
        now = time.monotonic()
        if now - self._said_at >= _SAY_S or done_bytes >= total_bytes:
            self._said_at = now
            self._out.write(saying.encode(saying.Step(step, done_bytes, total_bytes)))

    def refuse(self, code: str, message: str) -> None:
        self._out.write(saying.encode(saying.Refusal(code, message)))

    def made(self, sha256: str) -> None:
        self._out.write(saying.encode(saying.Made(sha256)))


def main(argv: Sequence[str] | None = None) -> int:
    """Convert, and leave with 0; with 1 after a refusal."""
    parser = argparse.ArgumentParser(prog="python -m workers.models.convert.child", description=__doc__)
    parser.add_argument("what", choices=("quantise", "export"), help="what to do")
    parser.add_argument("--source", type=Path, required=True, help="GGUF file, or safetensors folder")
    parser.add_argument("--target", type=Path, required=True, help="GGUF file to write")
    parser.add_argument("--type", required=True, help="number format, such as Q4_K_M")
    parser.add_argument("--name", default="", help="name written into the file")
    parser.add_argument("--threads", type=int, default=1, help="threads to use")
    parser.add_argument("--adapter", type=Path, help="folder of a PEFT adapter to merge")
    parser.add_argument("--parent", type=int, required=True, help="process to end with")
    args = parser.parse_args(argv)
    die_with_parent(args.parent)
    os.nice(_NICENESS)
    speaker = _Speaker()
    try:
        if args.what == "quantise":
            from workers.models.convert.quantise import quantise

            quantise(
                args.source,
                args.target,
                args.type,
                threads=args.threads,
                report=lambda done, total: speaker.step("quantising", done, total),
            )
        else:
            from workers.models.convert.export import export

            export(
                args.source,
                args.target,
                args.type,
                name=args.name,
                adapter=args.adapter,
                report=lambda done, total: speaker.step("writing", done, total),
            )
        speaker.made(_hashed(args.target, speaker))
    except BusError as error:
        speaker.refuse(error.code, error.message)
        return 1
    except OSError as error:
        speaker.refuse("unprocessable", f"{error.filename or args.target}: {error.strerror or error}")
        return 1
    return 0


def _hashed(path: Path, speaker: _Speaker) -> str:
    sha256 = hashlib.sha256()
    total, done = path.stat().st_size, 0
    with path.open("rb") as file:
        while piece := file.read(_HASH_BYTES):
            sha256.update(piece)
            done += len(piece)
            speaker.step("hashing", done, total)
    return sha256.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
