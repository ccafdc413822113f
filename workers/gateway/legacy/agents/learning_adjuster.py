"""LearningAdjusterAgent (5643): parameters that may be tuned, and what to change about an agent that does badly.

Both of its versions share the port: one kept parameters (`learning.parameter.*`), the other looked at agents. What is
known of an agent are the outcomes that were reported of it (`trust.get`), and, where one of our services answers for it,
that service's figures on the bus.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, get_args

from schemas.bodies.accounts import TrustGet, TrustOutcome, TrustScore
from schemas.bodies.control import BusServices, BusWorkers, ServiceList, WorkerList
from schemas.bodies.learning_tuning import (
    Adjustments,
    Parameter,
    ParameterAdjust,
    ParameterKind,
    ParameterList,
    ParameterOptimize,
    ParameterRegister,
    Parameters,
    PerformanceRecord,
)
from schemas.errors import BadRequest, BusError, NotFound, Rejected
from workers.gateway.legacy.agent import Action, Agent, Fields, Refused, Reply, Words
from workers.gateway.legacy.agents.asked import given, is_number
from workers.gateway.legacy.house import House

_KEYS: Final = ("name", "type", "min_value", "max_value", "current_value", "step_size", "description")

# What an agent is measured by, over the last day: seconds, shares, and the mean of its trust.
_DAY_S: Final = 86_400.0
_SLOW_S: Final = 1.0
_ERRORS: Final = 0.05
_BUSY: Final = 0.8
_TRUSTED: Final = 0.7

# Twice as far past a limit is severe.
_SEVERE: Final = 2.0

# Outcomes looked at, the newest.
_OUTCOMES: Final = 1_000

# Seconds that a health reply waits for the parameters to be counted.
_HEALTH_S: Final = 2.0

_MISSING: Final = "Missing required parameters"


# Parameters -----------------------------------------------------------------------------------------------------------


async def register_parameter(ask: Fields, house: House) -> Reply:
    """Keep a parameter; a known name is registered anew."""
    given(ask, "config")
    config = Fields(ask.mapping("config"))
    for key in _KEYS:
        given(config, key)
    word = config.text("type")
    kind = next((one for one in get_args(ParameterKind) if one == word), None)
    if kind is None:
        raise Refused(f"{word[:60]!r} is not a valid ParameterType; allowed are {', '.join(get_args(ParameterKind))}")
    await house.ask(
        "learning.parameter.register",
        ParameterRegister(
            name=config.text("name"),
            kind=kind,
            **{key: _number(config, key) for key in ("min_value", "max_value", "current_value", "step_size")},
            description=config.text("description"),
            metadata=config.mapping("metadata"),
        ),
    )
    return {"status": "ok"}


async def adjust_parameter(ask: Fields, house: House) -> Reply:
    """Change a parameter; of one that is unknown or out of its range nothing more is said than that."""
    given(ask, "parameter_name")
    given(ask, "new_value")
    body = ParameterAdjust(name=ask.text("parameter_name"), value=_number(ask, "new_value"), reason="adjust_parameter")
    try:
        await house.ask("learning.parameter.adjust", body)
    except (NotFound, BadRequest):
        return {"status": "error"}
    return {"status": "ok"}


async def record_performance(ask: Fields, house: House) -> Reply:
    """Keep a measurement with the parameters it was taken at; of these only numbers can be correlated."""
    given(ask, "metric_name")
    given(ask, "value")
    parameters = {str(name): value for name, value in ask.mapping("parameters").items() if is_number(value)}
    body = PerformanceRecord(metric=ask.text("metric_name"), value=_number(ask, "value"), parameters=parameters)
    await house.ask("learning.parameter.record", body)
    return {"status": "ok"}


async def optimize_parameters(ask: Fields, house: House) -> Reply:
    """Which parameters to move for a metric, and where to."""
    given(ask, "metric_name")
    try:
        found: Adjustments = await house.ask(
            "learning.parameter.optimize", ParameterOptimize(metric=ask.text("metric_name"))
        )
    except NotFound:
        raise Refused("No performance history available") from None
    adjustments = {
        name: {
            "current_value": one.current_value,
            "suggested_value": one.suggested_value,
            "correlation": one.correlation,
            "confidence": one.confidence,
        }
        for name, one in found.adjustments.items()
    }
    return {"status": "success", "adjustments": adjustments}


def _number(ask: Fields, name: str) -> float:
    if ask.get(name) is None:
        raise Refused(f"{name} must be a number, not null")
    return ask.number(name, math.nan)


# Agents ---------------------------------------------------------------------------------------------------------------


class Load(NamedTuple):
    """What is known of an agent over the last day; None for what is not. Shares are 0 to 1."""

    response_s: float | None = None
    errors: float | None = None
    cpu: float | None = None
    memory: float | None = None
    trust: float | None = None


def load_of(outcomes: Sequence[TrustOutcome], mean: float | None, now: float) -> Load:
    """From the outcomes that were reported of an agent; what is older than a day says nothing of today."""
    fresh = [one for one in outcomes if now - one.at <= _DAY_S]
    times = [one.response_time_s for one in fresh if one.response_time_s is not None]
    return Load(
        response_s=sum(times) / len(times) if times else None,
        errors=sum(not one.success for one in fresh) / len(fresh) if fresh else None,
        trust=mean if fresh else None,
    )


def suggestions_of(load: Load) -> list[dict[str, Any]]:
    """What to change about an agent; nothing while it does well."""
    found = [
        _above("performance", load.response_s, _SLOW_S, "mean response time is {:.2f} s", "response_time", "decrease"),
        _above("reliability", load.errors, _ERRORS, "{:.1%} of requests fail", "error_rate", "decrease"),
        _above("resource", load.cpu, _BUSY, "mean CPU use is {:.0%}", "cpu_usage", "decrease"),
        _above("resource", load.memory, _BUSY, "mean memory use is {:.0%}", "memory_usage", "decrease"),
    ]
    if load.trust is not None and load.trust < _TRUSTED:
        severity = "high" if load.trust < _TRUSTED / _SEVERE else "medium"
        words = f"mean trust is {load.trust:.2f}, under {_TRUSTED}"
        found.append(_suggestion("trust", severity, words, "trust_score", "increase"))
    return [one for one in found if one is not None]


def _above(
    kind: str, value: float | None, limit: float, words: str, parameter: str, direction: str
) -> dict[str, Any] | None:
    if value is None or value <= limit:
        return None
    is_severe = value > limit * _SEVERE or (limit == _BUSY and value > 0.95)
    return _suggestion(kind, "high" if is_severe else "medium", words.format(value), parameter, direction)


def _suggestion(kind: str, severity: str, words: str, parameter: str, direction: str) -> dict[str, Any]:
    adjustment = {"parameter": parameter, "current_value": None, "suggested_value": direction}
    return {"type": kind, "severity": severity, "message": words, "adjustment": adjustment}


async def analyze_agent(ask: Fields, house: House) -> Reply:
    """How an agent did over the last day, and what to change."""
    agent = ask.text("agent")
    reported = await _reported(agent, house)
    load = load_of(reported.history, reported.mean, time.time()) if reported is not None else Load()
    service = house.agents[agent].service if agent in house.agents else agent
    known = await _measured(service, house)
    load = Load(*(first if first is not None else second for first, second in zip(load, known, strict=True)))
    if all(value is None for value in load):
        return {"status": "warning", "message": f"No data available for agent {agent}", "suggestions": []}
    found = suggestions_of(load)
    words = f"{len(found)} suggestions for agent {agent}" if found else f"Agent {agent} does well"
    return {"status": "success", "message": words, "suggestions": found}


async def apply_adjustment(ask: Fields, house: House) -> Reply:
    """Move a registered parameter of an agent; what is not registered is only told of."""
    agent, adjustment = ask.text("agent"), Fields(ask.mapping("adjustment"))
    named = adjustment.text("parameter")
    try:
        found: Parameters = await house.ask("learning.parameter.list", ParameterList())
    except Rejected as error:
        return {"status": "success", "message": f"Nothing was changed: {error.message}"}
    names = (f"{agent}.{named}", named)
    parameter = next((one for name in names for one in found.parameters if one.name == name), None)
    if parameter is None:
        words = f"Nothing was changed: neither {names[0]!r} nor {named!r} is a registered parameter"
        return {"status": "success", "message": words}
    value = moved(parameter, adjustment.get("suggested_value"))
    if value is None:
        words = f"Nothing was changed: suggested_value is neither a number nor 'increase' or 'decrease' of {named!r}"
        return {"status": "success", "message": words}
    await house.ask(
        "learning.parameter.adjust", ParameterAdjust(name=parameter.name, value=value, reason=f"adjusted for {agent}")
    )
    return {"status": "success", "message": f"{parameter.name} of {agent} is {value:g} now"}


def moved(parameter: Parameter, suggested: object) -> float | None:
    """The value after a suggestion, within the parameter's range; None for one that says nothing."""
    steps: Mapping[object, float] = {"increase": parameter.step_size, "decrease": -parameter.step_size}
    if isinstance(suggested, str) and suggested in steps:
        wanted = parameter.current_value + steps[suggested]
    elif is_number(suggested):
        wanted = float(suggested)  # type: ignore[arg-type]
    else:
        return None
    return min(max(wanted, parameter.min_value), parameter.max_value)


async def _reported(agent: str, house: House) -> TrustScore | None:
    try:
        score: TrustScore = await house.ask("trust.get", TrustGet(user_id=agent, history=_OUTCOMES))
    except BusError:
        # Without the memory service, or for a name nobody can have, there are no outcomes.
        return None
    return score if score.outcomes else None


async def _measured(service: str, house: House) -> Load:
    """The figures of one of our services on the bus; nothing for any other name."""
    try:
        services: ServiceList = await house.ask("bus.services", BusServices())
        of_name = next((one for one in services.services if one.service == service), None)
        if of_name is None:
            return Load()
        workers: WorkerList = await house.ask("bus.workers", BusWorkers(service=service))
    except BusError:
        return Load()
    now = time.time()
    # What a service refused is counted as failed, too, so that figure says nothing about it.
    return Load(
        response_s=of_name.p50_s,
        cpu=_mean(one.cpu_s / max(now - one.joined_at, 1.0) for one in workers.workers),
    )


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None


# The agent ------------------------------------------------------------------------------------------------------------


async def health(house: House) -> dict[str, Any]:
    """What both versions told beside the common keys."""
    try:
        found: Parameters = await house.ask("learning.parameter.list", ParameterList(), timeout_s=_HEALTH_S)
        count, database = len(found.parameters), "ok"
    except BusError:
        count, database = 0, "unavailable"
    return {
        "service": "learning_adjuster_agent",
        "active_parameters": count,
        "database_status": database,
        "agent_type": "learning_adjuster",
        "threads": {"analysis_thread": True, "health_thread": True},
    }


AGENT = Agent(
    name="LearningAdjusterAgent",
    service="learning",
    kind="learning",
    ports=(5643,),
    health_ports=(5644,),
    actions={
        "register_parameter": Action(register_parameter),
        "adjust_parameter": Action(adjust_parameter),
        "record_performance": Action(record_performance),
        "optimize_parameters": Action(optimize_parameters),
        "analyze_agent": Action(analyze_agent, required=("agent",), missing=_MISSING),
        "apply_adjustment": Action(apply_adjustment, required=("agent", "adjustment"), missing=_MISSING),
    },
    words=Words(unknown="Unknown action", no_verb="Unknown action", bad_json="Invalid JSON"),
    health=health,
)
