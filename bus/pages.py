"""Memory for large frames: huge pages where the system has them, and used again once nobody looks at it any more.

Fresh memory costs more than the copy into it: the kernel clears every page first. Of a 16 MiB echo through the broker
that was a third of the time (scripts/bench_bus.py --only echo16).
"""

from __future__ import annotations

import contextlib
import mmap
import sys
import threading
from typing import Final

# Below this size ordinary memory is as quick.
_MAPPED_BYTES: Final = 1024 * 1024

# Sizes are rounded up to whole huge pages, so that bodies of nearly one size share their buffers.
_HUGE_PAGE_BYTES: Final = 2 * 1024 * 1024

# Kept for reuse at most; what is in use counts too.
_KEPT_MAX_BYTES: Final = 128 * 1024 * 1024

# References to a buffer in `_kept` that nobody uses: the list's, the loop variable's, and getrefcount's argument.
_IDLE_REFERENCES: Final = 3

_kept: list[mmap.mmap] = []
_lock = threading.Lock()


def room(size: int) -> memoryview:
    """A writable buffer of `size` bytes, its content undefined. Dropping every view of it gives it back."""
    if size < _MAPPED_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return memoryview(bytearray(size))
    whole = -(-size // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES
    with _lock:
        for pages in _kept:
            if len(pages) == whole and sys.getrefcount(pages) == _IDLE_REFERENCES:
                return memoryview(pages)[:size]
        pages = mmap.mmap(-1, whole, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):
            pages.madvise(mmap.MADV_HUGEPAGE)
        if sum(map(len, _kept)) + whole <= _KEPT_MAX_BYTES:
            _kept.append(pages)
        return memoryview(pages)[:size]


def release_idle() -> bool:
    """Give the system back what nobody uses; True when something is still in use and kept."""
    with _lock:
        _kept[:] = [pages for pages in _kept if sys.getrefcount(pages) > _IDLE_REFERENCES]
        return bool(_kept)
