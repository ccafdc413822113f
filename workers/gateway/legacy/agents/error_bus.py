"""ErrorBus (7150, 7151): errors that agents publish become `error.*` events, and every error goes out to its subscribers.

Both numbers take publishers, subscribers and askers, whatever socket they bring. What was reported lately is read from
the durable event log at the start and followed from there. Before that come the errors of the replaced bus, which the
migration keeps in `legacy.errors` and `legacy.error_agents`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any, Final

import msgspec

from schemas.bodies.control import ErrorReport, EventsRead
from schemas.errors import BusError
from workers.gateway.legacy.agent import Action, Agent, Fields, HttpAsk, HttpRoute, Refused, Reply
from workers.gateway.legacy.agents import framings
from workers.gateway.legacy.house import House

NAME: Final = "ErrorBus"

# Where the migration keeps the errors of the replaced bus, as a log, and the state of each agent.
OLD_ERRORS: Final = "errors"
OLD_AGENTS: Final = "error_agents"

# Errors remembered for `get_recent_errors`, and agents for `get_agent_health`.
_RECENT: Final = 1_000
_AGENTS: Final = 10_000

# Seconds until the memory service is asked again for what was migrated.
_RETRY_S: Final = 5.0

# Seconds of the event log that are read at the start.
_BACK_S: Final = 7 * 86_400.0


class _Seen:
    """What was reported: the newest last, and counts by agent."""

    def __init__(self) -> None:
        self.recent: deque[tuple[int, ErrorReport]] = deque(maxlen=_RECENT)
        self.agents: dict[str, dict[str, Any]] = {}
        self.collected = 0
        self.last_seq = 0

    def note(self, seq: int, report: ErrorReport) -> None:
        """Count a report once."""
        if seq <= self.last_seq:
            return
        self.last_seq = seq
        self.collected += 1
        self.recent.append((seq, report))
        known = self.agent(report.service)
        known["error_count"] += 1
        known["last_heartbeat"] = report.at

    def remember(self, agents: list[dict[str, Any]], errors: list[dict[str, Any]]) -> None:
        """Take in old states and old errors, the newest first. An old state has counted its errors already."""
        for state in agents:
            known = self.agent(state["agent"])
            known["status"] = state["status"]
            known["error_count"] += state["error_count"]
            known["last_heartbeat"] = max(known["last_heartbeat"], state["last_heartbeat"])
        counted = {state["agent"] for state in agents}
        for error in errors:
            report = framings.from_fields(error)
            self.collected += 1
            if len(self.recent) < _RECENT:
                self.recent.appendleft((error["id"], report))
            if report.service not in counted:
                known = self.agent(report.service)
                known["error_count"] += 1
                known["last_heartbeat"] = max(known["last_heartbeat"], report.at)

    def agent(self, name: str) -> dict[str, Any]:
        """What is told of an agent; a new record where nothing was reported so far."""
        known = self.agents.get(name)
        if known is None:
            if len(self.agents) >= _AGENTS:
                self.agents.pop(next(iter(self.agents)))
            known = self.agents[name] = {
                "id": len(self.agents) + 1,
                "agent": name,
                "status": "error",
                "last_heartbeat": 0.0,
                "error_count": 0,
            }
        return known


def seen(house: House) -> _Seen:
    """What this edge knows of errors."""
    return house.state(NAME, _Seen)


async def take(frames: list[bytes], house: House) -> None:
    """A message of a publisher becomes an event; what says nothing is dropped."""
    try:
        report = framings.parse(frames)
    except ValueError:
        return
    await report_error(report, house)


async def report_error(report: ErrorReport, house: House) -> None:
    """Publish an error on the bus, from where it comes back to subscribers. Raises BusError."""
    try:
        await house.client.publish(framings.subject_of(report), report)
    except (UnicodeEncodeError, OverflowError):
        await house.client.publish(framings.subject_of(report), framings.plain(report))


async def follow(house: House) -> None:
    """Read what was reported, then pass every error on as it comes."""
    known = seen(house)
    async with house.client.subscribe("error.*.*") as events:
        await _read_back(known, house)
        async for event in events:
            try:
                report = msgspec.convert(event.body, ErrorReport)
            except msgspec.ValidationError:
                continue
            known.note(event.seq, report)
            house.publish(NAME, [b"ERROR:", msgspec.json.encode(framings.to_legacy(report))])


async def recall(house: House) -> None:
    """Put what was migrated before what was reported here, once the memory service can be asked."""
    while True:
        try:
            agents = [state async for _, state in house.kept(OLD_AGENTS).each()]
            errors = await house.kept(OLD_ERRORS).newest(_RECENT)
        except BusError:
            await asyncio.sleep(_RETRY_S)
            continue
        seen(house).remember(agents, errors)
        return


async def _read_back(known: _Seen, house: House) -> None:
    query = EventsRead(subject="error.*.*", since_at=max(time.time() - _BACK_S, 0.0), limit=1_000_000)
    try:
        async with await house.stream("bus.events.read", query) as batches:
            async for batch in batches:
                for event in batch.events:
                    try:
                        known.note(event.seq, msgspec.convert(event.body, ErrorReport))
                    except msgspec.ValidationError:
                        continue
    except BusError:
        # Without a log the count begins now.
        return


def _listed(seq: int, report: ErrorReport) -> dict[str, Any]:
    # The context is JSON text there, as the old table kept it.
    return {"id": seq, **framings.to_legacy(report), "context": msgspec.json.encode(report.context).decode()}


def recent(house: House, limit: int) -> list[dict[str, Any]]:
    """The newest reports first."""
    newest = reversed(seen(house).recent)
    return [_listed(seq, report) for (seq, report), _ in zip(newest, range(limit), strict=False)]


async def get_recent_errors(ask: Fields, house: House) -> Reply:
    limit = Fields(ask.mapping("data")).whole("limit", 100, high=_RECENT)
    return {"status": "success", "data": recent(house, limit)}


async def get_agent_health(ask: Fields, house: House) -> Reply:
    return {"status": "success", "data": list(seen(house).agents.values())}


async def health_check(ask: Fields, house: House) -> Reply:
    return {"status": "success", "data": {"status": "ok", **_figures(house)}}


async def report(ask: Fields, house: House) -> Reply:
    """The direct report: flat, under `data` or under `error`."""
    fields = ask.mapping("error") or ask.mapping("data") or ask
    given = framings.from_fields(fields)
    if given.service == "unknown" and ask.get("source_agent"):
        given = msgspec.structs.replace(given, service=ask.text("source_agent")[:64])
    if not any(fields.get(name) for name in ("message", "reason", "details", "error_type", "type", "error_message")):
        raise Refused("an error needs a message, a reason, details or an error_type")
    await report_error(given, house)
    return {
        "status": "success",
        "message": "Error reported",
        "error_id": ask.text("error_id") or given.context.get("error_id", ""),
    }


def _figures(house: House) -> dict[str, Any]:
    return {
        "uptime": time.time() - house.started_at,
        "errors_collected": seen(house).collected,
        "db_path": "the event log of the bus",
    }


async def _http_health(ask: HttpAsk, house: House) -> tuple[int, Any]:
    return 200, {"status": "ok", **_figures(house)}


async def _http_report(ask: HttpAsk, house: House) -> tuple[int, Any]:
    if not isinstance(ask.body, dict):
        raise Refused("the body must be an object")
    return 200, await report(Fields(ask.body), house)


async def _http_recent(ask: HttpAsk, house: House) -> tuple[int, Any]:
    limit = Fields(ask.query).whole("limit", 100, high=_RECENT)
    return 200, {"status": "success", "data": recent(house, limit)}


async def _http_agents(ask: HttpAsk, house: House) -> tuple[int, Any]:
    return 200, {"status": "success", "data": list(seen(house).agents.values())}


AGENT = Agent(
    name=NAME,
    service="bus",
    kind="errors",
    intake_ports=(7150, 7151),
    health_ports=(8150,),
    http_ports=(9002,),
    actions={
        "health_check": Action(health_check),
        "get_recent_errors": Action(get_recent_errors),
        "get_agent_health": Action(get_agent_health),
        "report_error": Action(report),
    },
    intake=take,
    http=(
        HttpRoute("GET", "/health", _http_health),
        HttpRoute("POST", "/report", _http_report),
        HttpRoute("GET", "/recent", _http_recent),
        HttpRoute("GET", "/agent_health", _http_agents),
    ),
    tasks=(follow, recall),
)
