"""`agent_trust_scores.db` of the AgentTrustScorer: every logged outcome becomes an outcome of `trust.record`.

An outcome has no id of ours and would count twice. So each carries in its note where it is from, and since they are
recorded in the order of the old log, the newest of them tells how far a run got.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from bus.sync import SyncClient
from migrate_parts.figures import number, text, truth, whole
from migrate_parts.moving import Asked, Becomes, Row, Store, row
from migrate_parts.stores import Database, Found, find, opened
from migrate_parts.times import default_epoch
from schemas.bodies.accounts import TrustGet, TrustOutcome, TrustRecord, TrustScore
from schemas.errors import Conflict
from workers.gateway.legacy.agents.trust_scorer import LOGGED_AT, SOURCE

_LOG: Final = ("id", "model_id", "success", "response_time", "error_message", "timestamp")
_SCORE: Final = ("model_id", "trust_score", "total_interactions", "successful_interactions", "last_updated")

# Outcomes that `trust.get` tells of each one.
_WINDOW: Final = 1_000

# Interactions that a score may count and the log does not have; more are no log that went missing.
_UNLOGGED_MAX: Final = 10_000

_RESPONSE_MAX_S: Final = 1e9


def stores(root: Path) -> list[Store]:
    """The store, where the project has one."""
    places = ("cache/agent_trust_scores.db", "data/agent_trust_scores.db", "data/cache/agent_trust_scores.db")
    return [_store(found) for found in find(root, *places)]


def _store(found: Found) -> Store:
    def total() -> int:
        with opened(found.path) as database:
            return database.count("performance_logs") + database.count("model_scores")

    def rows() -> Iterator[Row]:
        with opened(found.path) as database:
            recorded = _Recorded(_origin(database))
            outcomes: Counter[str] = Counter()
            successes: Counter[str] = Counter()
            for one in database.rows("performance_logs", "model_id", "success"):
                outcomes[text(one["model_id"])] += 1
                successes[text(one["model_id"])] += truth(one["success"])
            # What the log does not have comes first: it was before.
            for one in database.rows("model_scores", *_SCORE):
                name = text(one["model_id"])
                yield from _unlogged(one, outcomes[name], successes[name], recorded)
            for one in database.rows("performance_logs", *_LOG):
                yield row("performance_logs", one["id"], partial(_logged, one, recorded))
            yield from _scores(database, outcomes, successes)

    return Store(found.name, found.path, total, rows)


def _origin(database: Database) -> str:
    """What tells this store from another machine's, however far its log has grown: its first row."""
    first = next(database.rows("performance_logs", *_LOG), None) or next(database.rows("model_scores", "model_id"), {})
    return hashlib.sha256(repr(first).encode("utf-8", "replace")).hexdigest()[:8]


def _logged(one: dict[str, Any], recorded: _Recorded) -> Becomes:
    if one["success"] is None:
        return "does not say whether it was a success"
    return recorded.asked(
        text(one["model_id"]),
        place=int(one["id"]),
        is_success=truth(one["success"]),
        response_time_s=min(max(number(one["response_time"], 0.0), 0.0), _RESPONSE_MAX_S),
        at=one["timestamp"],
    )


def _unlogged(one: dict[str, Any], outcomes: int, successes: int, recorded: _Recorded) -> Iterator[Row]:
    """Interactions that only the counters of a model know, successes first."""
    missing = whole(one["total_interactions"]) - outcomes
    if missing > _UNLOGGED_MAX:
        reason = f"{missing} of its interactions are not in the log, at most {_UNLOGGED_MAX} are made up for"
        yield Row("model_scores", text(one["model_id"]), reason)
        return
    succeeded = whole(one["successful_interactions"]) - successes
    for at in range(max(missing, 0)):
        make = partial(
            recorded.asked,
            text(one["model_id"]),
            place=at - missing,
            is_success=at < succeeded,
            response_time_s=_last_s(one) if at == missing - 1 else None,
            at=one["last_updated"],
        )
        yield row("model_scores (not in the log)", f"{one['model_id']} {at + 1}", make)


def _last_s(one: dict[str, Any]) -> float:
    """Seconds that the last answer took, by the score: 0.7 successes / total + 0.3 max(0, 1 - seconds / 5)."""
    share = whole(one["successful_interactions"]) / max(whole(one["total_interactions"]), 1)
    speed = (number(one["trust_score"], 0.5) - 0.7 * share) / 0.3
    return 5.0 * (1.0 - min(max(speed, 0.0), 1.0))


def _scores(database: Database, outcomes: Counter[str], successes: Counter[str]) -> Iterator[Row]:
    """The counters, which the outcomes above must come to."""
    for one in database.rows("model_scores", *_SCORE):
        name, total, succeeded = (
            text(one["model_id"]),
            whole(one["total_interactions"]),
            whole(one["successful_interactions"]),
        )
        if total - outcomes[name] > _UNLOGGED_MAX:
            continue
        want = (max(total, outcomes[name]), max(min(succeeded, total), successes[name]))
        make = partial(_counted, name, *want)
        yield row("model_scores", name, make)


def _counted(name: str, total: int, succeeded: int) -> Becomes:
    def check(client: SyncClient) -> str | None:
        there: TrustScore = client.request("trust.get", TrustGet(user_id=name, history=0))
        if there.outcomes >= total and there.successes >= succeeded:
            return None
        return f"{there.successes} of {there.outcomes} succeeded, in the old store {succeeded} of {total}"

    # Nothing is written for it: the outcomes before it are the score.
    return Asked("trust.get", TrustGet(user_id=name, history=0), check, is_once=True)


class _Recorded:
    """What of one store has been recorded already, asked for once for each model."""

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._note = re.compile(f"{LOGGED_AT}.*{SOURCE}{origin}:(-?[0-9]+)")
        self._known: dict[str, tuple[dict[int, TrustOutcome], bool]] = {}

    def asked(self, name: str, *, place: int, is_success: bool, response_time_s: float | None, at: Any) -> Asked:
        """The outcome number `place` of the store."""
        body = TrustRecord(
            user_id=name,
            success=is_success,
            response_time_s=response_time_s,
            note=f"{LOGGED_AT}{_local(at)}{SOURCE}{self._origin}:{place}",
        )
        return Asked("trust.record", body, partial(self._difference, body, place), is_once=True)

    def _difference(self, body: TrustRecord, place: int, client: SyncClient) -> str | None:
        """None where it is there. Raises Conflict where it must not be recorded: it is there with another result, or nobody
        can tell any more whether it is."""
        if body.user_id not in self._known:
            self._known[body.user_id] = self._look(body.user_id, client)
        known, is_whole = self._known[body.user_id]
        there = known.get(place)
        if there is not None:
            if (there.success, there.response_time_s) == (body.success, body.response_time_s):
                return None
            raise Conflict(
                f"it is there as {'a success' if there.success else 'a failure'} in {there.response_time_s} s"
            )
        if is_whole:
            return "not there"
        if not known:
            raise Conflict(f"{body.user_id} has {_WINDOW} newer outcomes; whether this is an older one nobody can tell")
        # Those after it are there, and it came before them.
        return None if place < min(known) else "not there"

    def _look(self, name: str, client: SyncClient) -> tuple[dict[int, TrustOutcome], bool]:
        history = client.request("trust.get", TrustGet(user_id=name, history=_WINDOW)).history
        found = {}
        for outcome in history:
            if match := self._note.fullmatch(outcome.note):
                found[int(match[1])] = outcome
        return found, len(history) < _WINDOW


def _local(value: Any) -> str:
    """A time as the history tells it: local, `YYYY-MM-DD HH:MM:SS.ffffff`; as it stands where it is none."""
    at = default_epoch(value)
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S.%f") if at is not None else text(value)[:64]
