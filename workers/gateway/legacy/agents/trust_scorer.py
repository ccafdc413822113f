"""AgentTrustScorer (7122): how far a model can be trusted, by its successes and by how fast it answered last.

The outcomes are those of `trust.*`: what is logged here counts there and the other way round, only the formula is the
old one. It keeps nothing of its own.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from schemas.bodies.accounts import TrustGet, TrustOutcome, TrustRecord
from workers.gateway.legacy.agent import Action, Agent, Fields, Refused, Reply
from workers.gateway.legacy.house import House

NAME: Final = "AgentTrustScorer"

# The score of a model nobody reported on.
UNKNOWN: Final = 0.5

# Weights of success and of speed; seconds from which an answer is too slow to count for anything.
_SUCCESS_WEIGHT: Final = 0.7
_SPEED_WEIGHT: Final = 0.3
_SLOW_S: Final = 5.0

# Outcomes that trust keeps of each one.
_HISTORY_MAX: Final = 1_000
_DEFAULT_LIMIT: Final = 10

# A migrated outcome says in its note when it was logged, in the form of the history, and then which row it was.
LOGGED_AT: Final = "legacy_at="
SOURCE: Final = " from "

_NOTE_CHARACTERS: Final = 4_096


def score(successes: int, outcomes: int, response_time_s: float) -> float:
    """0 to 1, after `outcomes` of which the last one took `response_time_s`; 0.5 before the first."""
    if outcomes == 0:
        return UNKNOWN
    return _SUCCESS_WEIGHT * (successes / outcomes) + _SPEED_WEIGHT * max(0.0, 1.0 - response_time_s / _SLOW_S)


async def log_performance(ask: Fields, house: House) -> Reply:
    model_id = _model(ask)
    if ask.get("success") is None:
        raise Refused("'success'")
    response_time_s = max(0.0, ask.number("response_time", 0.0))
    after = await house.ask(
        "trust.record",
        TrustRecord(
            user_id=model_id,
            success=ask.flag("success", False),
            response_time_s=response_time_s,
            note=str(ask.get("error_message") or "")[:_NOTE_CHARACTERS],
        ),
    )
    return {"status": "success", "new_trust_score": score(after.successes, after.outcomes, response_time_s)}


async def get_trust_score(ask: Fields, house: House) -> Reply:
    known = await house.ask("trust.get", TrustGet(user_id=_model(ask), history=1))
    last_s = (known.history[0].response_time_s if known.history else None) or 0.0
    return {"status": "success", "trust_score": score(known.successes, known.outcomes, last_s)}


async def get_performance_history(ask: Fields, house: House) -> Reply:
    limit = int(ask.number("limit", _DEFAULT_LIMIT))
    limit = _HISTORY_MAX if limit < 0 else min(limit, _HISTORY_MAX)
    known = await house.ask("trust.get", TrustGet(user_id=_model(ask), history=limit))
    return {"status": "success", "history": [logged(outcome) for outcome in known.history]}


def _model(ask: Fields) -> str:
    """A missing field is told by its name in quotes alone, as ever."""
    model_id = ask.text("model_id")
    if not model_id:
        raise Refused("'model_id'")
    return model_id


def logged(outcome: TrustOutcome) -> dict[str, Any]:
    """One outcome of a history."""
    at = datetime.fromtimestamp(outcome.at).strftime("%Y-%m-%d %H:%M:%S.%f")
    if outcome.note.startswith(LOGGED_AT):
        at = outcome.note.removeprefix(LOGGED_AT).partition(SOURCE)[0]
    return {"success": outcome.success, "response_time": outcome.response_time_s or 0.0, "timestamp": at}


async def health(house: House) -> dict[str, Any]:
    return {"additional_info": {}}


AGENT = Agent(
    name=NAME,
    service="memory",
    kind="trust_scorer",
    ports=(7122, 5626),
    health_ports=(8122, 5627, 8626),
    actions={
        "log_performance": Action(log_performance),
        "get_trust_score": Action(get_trust_score),
        "get_performance_history": Action(get_performance_history),
    },
    health=health,
)
