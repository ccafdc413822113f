"""LearningOpportunityDetector (7200): hears interactions, keeps those worth learning from, and tells of all there are.

It connects to the publishers on 5701 and 5702, which bind there, and tries again quietly while there is none. Publishers
that connect themselves are heard on ports opened for them: `legacy.ports: [LearningOpportunityDetector.errors=PORT]`.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

from bus import zmtp
from bus.channel import Channel
from bus.transport import Handler as LinkHandler
from bus.transport import Link, Role, connect
from schemas.bodies.learning import (
    ExchangeList,
    Exchanges,
    Opportunities,
    Opportunity,
    OpportunityAdd,
    OpportunityClose,
    OpportunityList,
    OpportunityState,
)
from schemas.envelope import Buffer
from schemas.errors import BusError
from workers.gateway.legacy.agent import Action, Agent, Fields, Reply, decode
from workers.gateway.legacy.agents.asked import iso_utc
from workers.gateway.legacy.agents.interactions import worth_of
from workers.gateway.legacy.house import House

log = logging.getLogger("olympus.legacy")

NAME: Final = "LearningOpportunityDetector"
_SOURCE: Final = "learning_opportunity_detector"

# Publishers of interactions bind here: UnifiedMemoryReasoningAgent and RequestCoordinator did.
_PUBLISHERS: Final = (5701, 5702)
_PUBLISHER_HOST: Final = "127.0.0.1"

# Longest pause between two attempts to reach a publisher, and between two at a service that is away.
_AGAIN_S: Final = 2.0

# Interactions that wait to be looked at; past it the oldest go.
_BUFFER: Final = 1_000

# Nobody says as much in one interaction.
_MAX_BYTES: Final = 4 * 1024 * 1024

# Opportunities that are looked through for the highest scores.
_LOOKED_AT: Final = 1_000

# Those in the old view: `learned` ones are the processed.
_LISTED: Final[tuple[OpportunityState | None, ...]] = (None, "learned")


class _Desk:
    """Interactions that wait, and counts since the start."""

    def __init__(self) -> None:
        self.waiting: deque[dict[str, Any]] = deque(maxlen=_BUFFER)
        self.came = asyncio.Event()
        self.heard = 0
        self.looked_at = 0
        self.kept = 0


async def get_top_opportunities(ask: Fields, house: House) -> Reply:
    """What there is to learn, the highest score first."""
    category, limit = ask.text("category"), ask.whole("limit", 10)
    found: list[dict[str, Any]] = []
    for state in _LISTED:
        page: Opportunities = await house.ask(
            "learning.opportunity.list", OpportunityList(state=state, limit=_LOOKED_AT)
        )
        found += map(_shown, page.opportunities)
    wanted = [one for one in found if not category or one["category"] == category]
    return {"status": "success", "opportunities": sorted(wanted, key=lambda one: -one["score"])[:limit]}


async def mark_processed(ask: Fields, house: House) -> Reply:
    """Somebody dealt with an opportunity."""
    body = OpportunityClose(opportunity_id=ask.text("opportunity_id"), reason="marked as processed")
    closed: Opportunity = await house.ask("learning.opportunity.close", body)
    return {"status": "success", "message": f"Opportunity {closed.opportunity_id} marked as processed"}


async def get_stats(ask: Fields, house: House) -> Reply:
    """Counts: interactions heard here and exchanges the learning service keeps, and what was made of them."""
    desk = house.state(NAME, _Desk)
    exchanges: Exchanges = await house.ask("learning.exchange.list", ExchangeList(limit=1))
    return {
        "status": "success",
        "stats": {
            "monitored_events": desk.heard + exchanges.total,
            "processed_items": desk.looked_at + exchanges.total,
            "valuable_opportunities": await _opportunities(house),
            "buffer_size": len(desk.waiting),
        },
    }


async def health(house: House) -> dict[str, Any]:
    """The figures beside the common keys."""
    desk = house.state(NAME, _Desk)
    try:
        known, is_kept = await _opportunities(house), True
    except BusError:
        known, is_kept = 0, False
    return {
        "agent_specific_metrics": {
            "uptime_sec": time.time() - house.started_at,
            "buffer_size": len(desk.waiting),
            "db_connected": is_kept,
            "opportunity_count": known,
            "valuable_opportunities": desk.kept,
            "zmq_ready": True,
        }
    }


async def intake(frames: list[bytes], house: House) -> None:
    """A message of a publisher."""
    hear(frames, house.state(NAME, _Desk))


def hear(frames: list[bytes], desk: _Desk) -> None:
    """Take an interaction into the buffer; everything else said on these ports is passed over."""
    if len(frames) != 1:
        return
    try:
        said = decode(frames[0])
    except (UnicodeDecodeError, ValueError):
        return
    desk.heard += 1
    if isinstance(said, dict) and said.get("type") == "interaction":
        desk.waiting.append(said)
        desk.came.set()


async def look(house: House) -> None:
    """Look at what was heard, as it comes."""
    desk = house.state(NAME, _Desk)
    while True:
        await desk.came.wait()
        desk.came.clear()
        while desk.waiting:
            said = desk.waiting.popleft()
            try:
                await _look_at(said, desk, house)
            except BusError as error:
                log.warning("interaction lost", extra={"action": "legacy.interaction", "error": str(error)})


async def _look_at(said: dict[str, Any], desk: _Desk, house: House) -> None:
    desk.looked_at += 1
    user_input, response = said.get("user_input"), said.get("assistant_response")
    text = user_input if isinstance(user_input, str) else ""
    worth = worth_of(text, response if isinstance(response, str) else "")
    if worth.score < house.settings.legacy.opportunity_score:
        return
    opportunity_id = str(uuid.uuid4())
    await house.ask(
        "learning.opportunity.add",
        OpportunityAdd(
            title=text.strip()[:1_024] or worth.category,
            category=worth.category,
            source=_SOURCE,
            score=min(worth.score, 1.0),
            evidence=[opportunity_id],
            opportunity_id=opportunity_id,
        ),
    )
    desk.kept += 1
    # As the old detector told the orchestration service: no action, and these three.
    told = {"opportunity_id": opportunity_id, "score": worth.score, "category": worth.category}
    if "LearningOrchestrationService" in house.agents:
        await house.agent("LearningOrchestrationService").answer(told)


async def _opportunities(house: House) -> int:
    total = 0
    for state in _LISTED:
        page: Opportunities = await house.ask("learning.opportunity.list", OpportunityList(state=state, limit=1))
        total += page.total
    return total


def _shown(one: Opportunity) -> dict[str, Any]:
    return {
        "id": one.opportunity_id,
        "source": one.source or one.kind,
        "score": one.priority if one.score is None else one.score,
        "category": one.category or one.kind,
        "created_at": iso_utc(one.created_at),
        "processed": one.state == "learned",
    }


def listen_to(port: int, host: str = _PUBLISHER_HOST) -> Callable[[House], Awaitable[None]]:
    """The task that hears the publisher bound to a port, and waits for one while there is none."""

    async def dial(role: Role, handler: LinkHandler) -> Link:
        return await connect(host, port, b"SUB", handler, max_body_bytes=_MAX_BYTES)

    async def listen(house: House) -> None:
        desk = house.state(NAME, _Desk)
        channel = Channel(
            dial,
            Role.EVENTS,
            reconnect_max_s=_AGAIN_S,
            on_messages=lambda messages: _hear_all(messages, desk),
            on_up=lambda link: link.send([*zmtp.subscription(b"")]),
        )
        channel.start()
        try:
            await asyncio.Event().wait()
        finally:
            await channel.close()

    return listen


def _hear_all(messages: list[list[Buffer]], desk: _Desk) -> None:
    for frames in messages:
        hear([bytes(frame) for frame in frames], desk)


AGENT = Agent(
    name=NAME,
    service="learning",
    kind="learning",
    ports=(7200, 7202),
    health_ports=(7201, 8202),
    actions={
        "get_top_opportunities": Action(get_top_opportunities),
        "mark_processed": Action(
            mark_processed, required=("opportunity_id",), missing="Missing opportunity_id parameter"
        ),
        "get_stats": Action(get_stats),
    },
    health=health,
    intake=intake,
    tasks=(look, *map(listen_to, _PUBLISHERS)),
)
