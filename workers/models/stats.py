"""Figures of models: what was counted of loads and answers, and when they were used, kept across restarts.

Counting is in memory; `save` writes what changed since the last one. It knows neither runners nor the bus.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from typing import Final

import msgspec

from bus.records import Records
from schemas.bodies.model import LatencyFigures, ModelFigures, UsageCount, UsageEvent
from schemas.errors import Internal
from workers.models.terms import Keep

# Answers over which latencies are shown (schemas.bodies.model.LatencyFigures).
RECENT: Final = 1_000

# Uses older than the longest window that can be asked for (schemas.bodies.model.ModelUsage) are dropped.
_KEPT_S: Final = 366 * 86_400.0


# Uses that are held back while they cannot be written, 100 bytes each.
_UNSAVED_USES: Final = 10_000


class Counts(msgspec.Struct):
    """What was counted of one model. Times are seconds; the latest are last."""

    loads: int = 0
    evictions: int = 0
    failures: int = 0
    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    last_used_at: float | None = None
    preloads: int = 0
    preload_hits: int = 0
    preload_wasted_s: float = 0.0
    estimated_bytes: int = 0
    measured_bytes: int = 0
    load_s: list[float] = []
    first_token_s: list[float] = []
    # Of the recent answers: tokens after the first, and the seconds they took.
    pace: list[tuple[int, float]] = []


class Stats:
    """The figures. `load` before the first use, `save` now and then and after the last."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._counts: dict[str, Counts] = {}
        self._changed: set[str] = set()
        self._uses: deque[tuple[str, float]] = deque()
        self.keeps: dict[str, Keep] = {}
        self.learned: bytes | None = None

    async def load(self) -> None:
        """Read what was kept. Raises schemas.errors.Internal."""

        def read(connection: sqlite3.Connection) -> None:
            for name, packed in connection.execute("SELECT model, counts FROM model_figures"):
                self._counts[name] = msgspec.msgpack.decode(packed, type=Counts)
            for name, is_pinned, priority, keep_alive_s in connection.execute("SELECT * FROM model_keeps"):
                pinned = None if is_pinned is None else bool(is_pinned)
                self.keeps[name] = Keep(is_pinned=pinned, priority=priority, keep_alive_s=keep_alive_s)
            row = connection.execute("SELECT learned FROM model_prediction").fetchone()
            self.learned = row[0] if row else None

        await self._records.run(read)

    async def save(self, now: float, learned: bytes | None = None) -> None:
        """Write what changed. `now`: Unix epoch seconds; `learned`: what prediction knows, None leaves it as it is.

        Raises Internal where it cannot be written; then it is tried again with the next one.
        """
        changed = {name: msgspec.msgpack.encode(self._counts[name]) for name in self._changed}
        uses, self._uses = self._uses, deque()
        self._changed.clear()

        def write(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT OR REPLACE INTO model_figures VALUES (?, ?)", changed.items())
            connection.executemany(
                "INSERT INTO model_uses VALUES (?, ?, 1, ?) ON CONFLICT (model, minute)"
                " DO UPDATE SET uses = uses + 1, last_at = max(last_at, excluded.last_at)",
                [(name, int(at // 60), at) for name, at in uses],
            )
            connection.execute("DELETE FROM model_uses WHERE minute < ?", (int((now - _KEPT_S) // 60),))
            if learned is not None:
                connection.execute("INSERT OR REPLACE INTO model_prediction VALUES (1, ?)", (learned,))

        if not changed and not uses and learned is None:
            return
        try:
            await self._records.run(write)
        except Internal:
            self._changed.update(changed)
            self._uses = deque([*uses, *self._uses][-_UNSAVED_USES:])
            raise

    # What happens

    def on_use(self, model: str, at: float) -> None:
        """Somebody used the model, at Unix epoch seconds."""
        self._of(model).last_used_at = at
        self._uses.append((model, at))

    def on_answer(self, model: str, usage: UsageEvent | None) -> None:
        """An answer ended; `usage` None with an error."""
        counts = self._of(model)
        counts.requests += 1
        if usage is None:
            counts.errors += 1
            return
        counts.prompt_tokens += usage.usage.prompt_tokens
        counts.completion_tokens += usage.usage.completion_tokens
        counts.cached_tokens += usage.usage.cached_tokens
        if usage.usage.completion_tokens:
            _append(counts.first_token_s, usage.timings.first_token_s)
        if usage.usage.completion_tokens > 1:
            counts.pace = [*counts.pace[1 - RECENT :], (usage.usage.completion_tokens - 1, usage.timings.generate_s)]

    def on_event(self, what: str, model: str, took_s: float | None, memory_bytes: int | None) -> None:
        """The scheduler announced `what` (loading, loaded, preloaded, evicted, failed or unloaded)."""
        counts = self._of(model)
        match what:
            case "loading":
                counts.estimated_bytes, counts.measured_bytes = memory_bytes or 0, 0
            case "loaded":
                counts.loads += 1
                _append(counts.load_s, took_s or 0.0)
            case "preloaded":
                counts.preloads += 1
            case "evicted":
                counts.evictions += 1
            case "failed":
                counts.failures += 1

    def on_measured(self, model: str, memory_bytes: int) -> None:
        """What its last load takes; 0 where nothing measures it."""
        self._of(model).measured_bytes = memory_bytes

    def on_judged(self, model: str, *, is_hit: bool, idle_s: float) -> None:
        """A load ahead of need was used, or lay there for `idle_s` unused."""
        counts = self._of(model)
        counts.preload_hits += is_hit
        counts.preload_wasted_s += idle_s

    # What is known

    def figures(self, model: str | None) -> list[ModelFigures]:
        """Figures of a model, or of all by name; nothing was counted of one that was never seen."""
        names = sorted(self._counts) if model is None else [model]
        return [_figures(name, self._counts.get(name) or Counts()) for name in names]

    async def uses(self, now: float, window_s: float) -> list[UsageCount]:
        """Uses in the `window_s` seconds before `now` (epoch seconds), the most used first. Older ones go by the minute."""
        await self.save(now)

        def read(connection: sqlite3.Connection) -> list[UsageCount]:
            rows = connection.execute(
                "SELECT model, sum(uses), max(last_at) FROM model_uses WHERE minute >= ? AND last_at >= ?"
                " GROUP BY model ORDER BY 2 DESC, 3 DESC",
                (int((now - window_s) // 60), now - window_s),
            )
            return [UsageCount(model=name, uses=uses, last_used_at=last) for name, uses, last in rows]

        return await self._records.run(read)

    # What is asked to be kept

    async def keep(self, model: str, keep: Keep) -> None:
        """Remember how a model is to be held; an empty wish is forgotten."""
        row = (model, keep.is_pinned, keep.priority, keep.keep_alive_s)
        is_empty = keep == Keep()

        def write(connection: sqlite3.Connection) -> None:
            if is_empty:
                connection.execute("DELETE FROM model_keeps WHERE model = ?", (model,))
            else:
                connection.execute("INSERT OR REPLACE INTO model_keeps VALUES (?, ?, ?, ?)", row)

        await self._records.run(write)
        if is_empty:
            self.keeps.pop(model, None)
        else:
            self.keeps[model] = keep

    def _of(self, model: str) -> Counts:
        self._changed.add(model)
        return self._counts.setdefault(model, Counts())


def _append(values: list[float], value: float) -> None:
    values.append(value)
    if len(values) > RECENT:
        del values[0]


def _latency(values: list[float]) -> LatencyFigures | None:
    if not values:
        return None
    ordered = sorted(values)
    last = len(ordered) - 1
    return LatencyFigures(p50_s=ordered[last // 2], p95_s=ordered[round(last * 0.95)], max_s=ordered[-1])


def _figures(model: str, counts: Counts) -> ModelFigures:
    tokens, seconds = sum(count for count, _ in counts.pace), sum(took_s for _, took_s in counts.pace)
    return ModelFigures(
        model=model,
        loads=counts.loads,
        evictions=counts.evictions,
        failures=counts.failures,
        requests=counts.requests,
        errors=counts.errors,
        prompt_tokens=counts.prompt_tokens,
        completion_tokens=counts.completion_tokens,
        cached_tokens=counts.cached_tokens,
        last_used_at=counts.last_used_at,
        load_s=_latency(counts.load_s),
        first_token_s=_latency(counts.first_token_s),
        tokens_per_s=tokens / seconds if seconds > 0 else None,
        preloads=counts.preloads,
        preload_hits=counts.preload_hits,
        preload_wasted_s=counts.preload_wasted_s,
        estimated_bytes=counts.estimated_bytes,
        measured_bytes=counts.measured_bytes,
    )
