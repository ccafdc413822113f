"""Quantises a GGUF file with llama.cpp's own quantiser. Runs in a child process: native code, hours of every core."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from schemas.errors import Unprocessable, Unsupported
from workers.models.backends.llama_library import LibraryMissing, load_library, log_router
from workers.models.convert.types import QUANTISED

# "[  12/ 291]  blk.0.attn_q.weight - ..." in llama.cpp's log, one for each tensor.
_TENSOR: Final = re.compile(r"\[ *(\d+)/ *(\d+)\]")
_FAILED: Final = "failed to quantize: "

Report = Callable[[int, int], None]


def quantise(source: Path, target: Path, type: str, *, threads: int, report: Report) -> None:
    """Write `source` to `target` in `type`. report: bytes of the source that are done, and all of them.

    Raises Unsupported without llama-cpp-python, Unprocessable with llama.cpp's reason.
    """
    try:
        library = load_library()
    except LibraryMissing as error:
        raise Unsupported(str(error)) from error
    total = source.stat().st_size
    reasons: list[str] = []

    def on_line(line: str) -> None:
        tensor = _TENSOR.match(line)
        if tensor is not None:
            report(total * int(tensor.group(1)) // max(int(tensor.group(2)), 1), total)
        elif _FAILED in line:
            reasons.append(line.partition(_FAILED)[2].strip())

    params = library.llama_model_quantize_default_params()
    params.ftype = QUANTISED[type].ftype
    params.nthread = threads
    # A source that is quantised already loses more, and how much is measured afterwards.
    params.allow_requantize = True
    report(0, total)
    router = log_router(library)
    router.listener = on_line
    try:
        status = library.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    finally:
        router.listener = None
    if status != 0:
        raise Unprocessable(f"llama.cpp cannot quantise it: {'; '.join(reasons) or f'status {status}'}")
    report(total, total)
