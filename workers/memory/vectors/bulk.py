"""Encodes what is no query: jobs in their order, cut into parts of similar length, several parts at once.

Encoder process only. A core that is done with its part takes the next, of the next job where one is over, so that none
waits while there is work.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from workers.memory.vectors.frames import Encode, Failed, Vectors

if TYPE_CHECKING:
    from workers.memory.vectors.encoder_process import Model, Pipe

# Texts of one part: two or three batches of sentences.
PART_TEXTS: Final = 64

# How much these threads give way: queries and the service itself come first. Of two threads that want one core the nice
# one gets a tenth (sched(7)).
_NICENESS: Final = 10
_NICENESS_MAX: Final = 19


class _Job:
    """One `Encode` on its way. left: parts that are not done."""

    def __init__(self, word: Encode, dimension: int) -> None:
        self.id = word.id
        self.texts = word.texts
        self.vectors = np.empty((len(word.texts), dimension), np.float32)
        self.left = 0
        self.failure = ""


class _Part(NamedTuple):
    """Some rows of a job."""

    job: _Job
    rows: list[int]


class Bulk:
    """Threads that encode for ever what is added."""

    def __init__(self, model: Model, pipe: Pipe) -> None:
        self._model = model
        self._pipe = pipe
        self._parts: queue.SimpleQueue[_Part] = queue.SimpleQueue()
        self._lock = threading.Lock()
        for _ in range(model.workers):
            threading.Thread(target=self._work, daemon=True).start()

    def add(self, word: Encode) -> None:
        """Encode and answer it after what was added before. Returns at once."""
        job = _Job(word, self._model.dimension)
        # Texts of similar length together, so that little is padded.
        rows = sorted(range(len(job.texts)), key=lambda row: len(job.texts[row]))
        parts = [_Part(job, rows[at : at + PART_TEXTS]) for at in range(0, len(rows), PART_TEXTS)]
        job.left = len(parts)
        for part in parts:
            self._parts.put(part)

    def _work(self) -> None:
        if sys.platform == "linux":
            # Elsewhere niceness is the whole process's, and queries are in it too. Added to what the process has: less
            # than that takes a privilege.
            thread = threading.get_native_id()
            niceness = os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS
            os.setpriority(os.PRIO_PROCESS, thread, min(niceness, _NICENESS_MAX))
        while True:
            job, rows = self._parts.get()
            if not job.failure:
                try:
                    job.vectors[rows] = self._model.encode([job.texts[row] for row in rows])
                except Exception as error:  # noqa: BLE001 - told to whoever asked; the next job may be fine
                    job.failure = f"{type(error).__name__}: {error}"
            with self._lock:
                job.left -= 1
                is_done = not job.left
            if is_done:
                self._answer(job)

    def _answer(self, job: _Job) -> None:
        if job.failure:
            self._pipe.say(Failed(id=job.id, reason=job.failure))
        else:
            self._pipe.say(Vectors(id=job.id, vectors=job.vectors.tobytes()))
