"""Counts what becomes of models, from what the scheduler announces; knows neither scheduler nor processes."""

from __future__ import annotations

from bus.metrics import Figures
from schemas.metrics import MODEL_CRASHES, MODEL_LOAD_SECONDS, MODEL_LOADS, MODEL_PRELOADS, MODEL_UNLOADS
from workers.models.decisions import Announce


class LoadFigures:
    """Loads, unloads, preloads and deaths of runners, counted in `figures`."""

    def __init__(self, figures: Figures) -> None:
        self._loads = figures.counter(MODEL_LOADS)
        self._load_s = figures.histogram(MODEL_LOAD_SECONDS)
        self._unloads = figures.counter(MODEL_UNLOADS)
        self._preloads = figures.counter(MODEL_PRELOADS)
        self._crashes = figures.counter(MODEL_CRASHES)
        for outcome in ("ok", "failed"):
            self._loads.add(outcome, by=0)
        for reason in ("asked", "room", "idle", "crash"):
            self._unloads.add(reason, by=0)
        for outcome in ("hit", "wasted", "cancelled"):
            self._preloads.add(outcome, by=0)

    def on_announce(self, told: Announce) -> None:
        """The scheduler announced something. A cause says that a model which was in memory leaves it."""
        if told.what == "loaded":
            self._loads.add("ok")
            self._load_s.observe(told.took_s or 0.0)
        elif told.cause:
            self._unloads.add(told.cause)
        elif told.what == "failed":
            self._loads.add("failed")
        elif told.what == "evicted":
            # Before it was in memory: a prediction that gave way to somebody who waits.
            self._preloads.add("cancelled")

    def on_judged(self, *, is_hit: bool) -> None:
        """A model that was loaded ahead of need was used, or left unused."""
        self._preloads.add("hit" if is_hit else "wasted")

    def on_crash(self) -> None:
        """A runner ended that nobody had told to."""
        self._crashes.add()
