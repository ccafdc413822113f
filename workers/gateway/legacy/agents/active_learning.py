"""ActiveLearningMonitor (5638, events on 5738): what happens in learning sessions, told topic by topic.

The monitor was a library with a publisher; its five calls are actions here. Every learning session of the bus is told of,
whoever feeds it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from schemas.bodies.learning_tuning import (
    Advice,
    LearningSession,
    LearningSessions,
    MetricTrend,
    SessionCreate,
    SessionEnd,
    SessionEvent,
    SessionGet,
    SessionsList,
    SessionUpdate,
)
from schemas.errors import NotFound, Rejected
from workers.gateway.legacy.agent import Action, Agent, Fields, Refused, Reply, encode
from workers.gateway.legacy.agents.asked import learning_id
from workers.gateway.legacy.house import House

NAME: Final = "ActiveLearningMonitor"

METRICS: Final = frozenset({"accuracy", "loss", "learning_rate", "convergence", "performance", "efficiency"})

# From here on a session is over its learning.
_CONVERGED_ACCURACY: Final = 0.95

# Sessions looked at for the statistics, the newest.
_LOOKED_AT: Final = 200

# How the monitor was set, and what it advised when.
_MONITORING: Final = {"interval": 30, "history_limit": 1000, "optimization_threshold": 0.95}
_STRATEGIES: Final = {
    "stagnation": ["learning_rate", "batch_size"],
    "decline": ["max_grad_norm", "learning_rate"],
    "convergence": ["prepare_for_consolidation"],
}

_FAILED: Final = frozenset({"failed", "error", "timeout", "aborted", "cancelled"})


class _Counts(msgspec.Struct):
    """Seen in events since the start; interventions: pieces of advice, by session."""

    measurements: int = 0
    interventions: dict[str, int] = {}


async def start(ask: Fields, house: House) -> Reply:
    """Begin a session."""
    parameters = ask.mapping("parameters")
    model = parameters.get("model") or parameters.get("model_id")
    session_id = f"learning_session_{uuid.uuid4().hex[:8]}_{int(time.time())}"
    body = SessionCreate(
        model=model[:256] if isinstance(model, str) else "unnamed", session_id=session_id, parameters=parameters
    )
    await house.ask("learning.session.create", body)
    return {"status": "success", "session_id": session_id}


async def add_metric(ask: Fields, house: House) -> Reply:
    """Tell of a measurement."""
    session_id, metric = ask.text("session_id"), ask.text("metric_type")
    if metric not in METRICS:
        raise Refused(f"metric_type is {metric[:60]!r}, allowed are {', '.join(sorted(METRICS))}", added=False)
    if ask.get("value") is None:
        raise Refused("Missing value", added=False)
    await _session(session_id, house, added=False)
    body = SessionUpdate(session_id=learning_id(session_id), metrics={metric: ask.number("value", 0.0)})
    try:
        await house.ask("learning.session.update", body)
    except Rejected as error:
        raise Refused(error.message, added=False) from error
    return {"status": "success", "added": True}


async def end(ask: Fields, house: House) -> Reply:
    """End a session, and sum it up."""
    before = await _session(ask.text("session_id"), house)
    body = SessionEnd(session_id=before.session_id, status=ask.text("status") or "completed")
    ended: LearningSession = await house.ask("learning.session.end", body)
    return {
        "status": "success",
        "summary": summary_of(
            session_id=ask.text("session_id"),
            took_s=(ended.ended_at or time.time()) - ended.created_at,
            status=ended.status,
            values=_values(ended),
            phase=before.phase,
            trends=ended.trends,
        ),
    }


async def status(ask: Fields, house: House) -> Reply:
    """How a session goes."""
    session = await _session(ask.text("session_id"), house, is_over_known=True)
    counts = house.state(NAME, _Counts)
    declining = [trend for trend in session.trends if trend.trend == "declining"]
    accuracy = next((trend.slope for trend in session.trends if trend.metric == "accuracy"), None)
    return {
        "status": "success",
        "session_id": ask.text("session_id"),
        "phase": session.phase,
        "duration": (session.ended_at or time.time()) - session.created_at,
        "metric_count": _values(session),
        "recent_trends": {trend.metric: trend.trend for trend in session.trends},
        "performance_indicators": {
            # Accuracy gained per measurement.
            "convergence_rate": accuracy or 0.0,
            "session_health": "concerning" if declining else "good",
            "optimization_interventions": counts.interventions.get(session.session_id, 0),
            # Part of the metrics that do not get worse.
            "stability_score": 1.0 - len(declining) / len(session.trends) if session.trends else 1.0,
        },
    }


async def statistics(ask: Fields, house: House) -> Reply:
    """Over all sessions that are kept; times and improvements over the newest."""
    found: LearningSessions = await house.ask("learning.session.list", SessionsList(limit=_LOOKED_AT))
    counts, sessions = house.state(NAME, _Counts), found.sessions
    converged = [
        (one.ended_at or one.last_active_at) - one.created_at
        for one in sessions
        if one.metrics.get("accuracy", 0.0) >= _CONVERGED_ACCURACY
    ]
    ended = [one for one in sessions if one.ended_at is not None]
    return {
        "status": "success",
        "timestamp": datetime.now().isoformat(),
        "active_sessions": len(sessions) - len(ended),
        "performance_stats": {
            "total_sessions": found.total,
            "successful_sessions": sum(one.status not in _FAILED for one in ended),
            "failed_sessions": sum(one.status in _FAILED for one in ended),
            "avg_convergence_time": sum(converged) / len(converged) if converged else 0.0,
            "optimization_interventions": sum(counts.interventions.values()),
            "performance_improvements": sum(
                trend.trend == "improving" for one in sessions for trend in one.trends if trend.metric in METRICS
            ),
        },
        "optimization_strategies": _STRATEGIES,
        "metric_history_size": counts.measurements,
        "monitoring_config": _MONITORING,
    }


def summary_of(
    *, session_id: str, took_s: float, status: str, values: int, phase: str, trends: Sequence[MetricTrend]
) -> dict[str, Any]:
    """What a session came to. values: measurements told. phase: the last before its end."""
    return {
        "session_id": session_id,
        "duration": took_s,
        "status": status,
        "total_metrics": values,
        "final_phase": phase,
        "performance_summary": {
            trend.metric: {
                "initial": trend.initial,
                "final": trend.latest,
                "best": trend.best,
                "average": trend.average,
                # Positive where it got better, also of a metric of which less is better.
                "improvement": abs(trend.latest - trend.initial) * (1 if _is_better(trend) else -1),
            }
            for trend in trends
        },
    }


def _is_better(trend: MetricTrend) -> bool:
    """True where the last value is no further from the best than the first was."""
    return abs(trend.best - trend.latest) <= abs(trend.best - trend.initial)


def told_of(what: str, event: SessionEvent) -> tuple[str, dict[str, Any]] | None:
    """Topic and fields of an event `learning.session.WHAT`; None for one that the monitor did not know."""
    metric = {"metric_type": event.metric}
    recommendations = [_recommended(one) for one in event.advice]
    known: Mapping[str, tuple[str, str, dict[str, Any]]] = {
        "started": ("LEARNING_SESSION_START", "session_start", {"parameters": event.parameters}),
        "measured": (
            "LEARNING_METRIC",
            "metric_update",
            {**metric, "value": event.value, "trend": event.trend, "phase": event.phase},
        ),
        "converged": (
            "LEARNING_CONVERGENCE",
            "convergence_detected",
            {"recommendation": "prepare_for_consolidation"},
        ),
        "stagnated": (
            "LEARNING_STAGNATION",
            "stagnation_detected",
            {**metric, "recommendations": recommendations},
        ),
        "declined": (
            "LEARNING_DECLINE",
            "performance_decline",
            {**metric, "current_value": event.value, "recommendations": recommendations},
        ),
        "phase": (
            "LEARNING_PHASE_TRANSITION",
            "phase_transition",
            {"old_phase": event.old_phase, "new_phase": event.phase},
        ),
        "ended": (
            "LEARNING_SESSION_END",
            "session_end",
            {
                "status": event.status,
                "summary": summary_of(
                    session_id=event.session_id,
                    took_s=event.took_s or 0.0,
                    status=event.status,
                    values=event.values,
                    phase=event.old_phase,
                    trends=event.trends,
                ),
            },
        ),
    }
    if what not in known:
        return None
    topic, event_type, fields = known[what]
    return topic, {"timestamp": event.at, "event_type": event_type, "session_id": event.session_id, **fields}


async def tell(house: House) -> None:
    """Publish what happens in learning sessions, as one frame `TOPIC JSON`."""
    async with house.client.subscribe("learning.session.*") as events:
        async for received in events:
            what = received.subject.rpartition(".")[2]
            try:
                event = msgspec.msgpack.decode(received.raw, type=SessionEvent)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                # Anybody may publish under any subject.
                continue
            _count(what, event, house.state(NAME, _Counts))
            told = told_of(what, event)
            if told is not None:
                house.publish(NAME, [told[0].encode() + b" " + encode(told[1])])


def _count(what: str, event: SessionEvent, counts: _Counts) -> None:
    counts.measurements += what == "measured"
    if what == "ended":
        counts.interventions.pop(event.session_id, None)
    elif what in ("stagnated", "declined"):
        counts.interventions[event.session_id] = counts.interventions.get(event.session_id, 0) + len(event.advice)


def _recommended(advice: Advice) -> dict[str, Any]:
    return {"type": advice.parameter, "value": advice.value, "factor": advice.factor, "reason": advice.reason}


async def _session(session_id: str, house: House, *, is_over_known: bool = False, **extra: Any) -> LearningSession:
    try:
        found: LearningSession = await house.ask("learning.session.get", SessionGet(session_id=learning_id(session_id)))
    except NotFound:
        raise Refused("Session not found", **extra) from None
    if found.ended_at is not None and not is_over_known:
        raise Refused("Session not found", **extra)
    return found


def _values(session: LearningSession) -> int:
    return sum(len(measured.metrics) for measured in session.history)


AGENT = Agent(
    name=NAME,
    service="learning",
    kind="learning",
    ports=(5638,),
    event_ports=(5738,),
    actions={
        "start": Action(start),
        "add_metric": Action(add_metric, required=("session_id", "metric_type")),
        "end": Action(end, required=("session_id",)),
        "status": Action(status, required=("session_id",)),
        "statistics": Action(statistics),
    },
    tasks=(tell,),
)
