"""What replaced agents answered over HTTP: a few routes of their own, and for each its health and counters."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from schemas.bodies.gateway import PortInfo
from schemas.errors import BusError
from workers.gateway.legacy.agent import Agent, HttpAsk, HttpRoute, Refused
from workers.gateway.legacy.house import House
from workers.gateway.ports import Planned
from workers.gateway.rest.edge import RestEdge
from workers.gateway.rest.request import RestRequest
from workers.gateway.rest.response import Response, json_response
from workers.gateway.rest.routes import Route

Handler = Callable[[RestRequest], Awaitable[Response]]


async def serve_agents(planned: list[Planned], house: House, edge: RestEdge) -> list[PortInfo]:
    """Open the HTTP ports of the agents on the HTTP edge; returns what became of each."""
    table = []
    for one in planned:
        agent = house.agents[one.agent]
        routes = [Route(route.method, route.path, _answering(agent, route, house)) for route in agent.http]
        table.append(
            await edge.serve_extra(
                owner=agent.name,
                purpose="rest" if agent.http else "health",
                host=house.settings.legacy.host,
                port=one.port,
                routes=routes or _health_routes(agent, house),
            )
        )
    return table


def _answering(agent: Agent, route: HttpRoute, house: House) -> Handler:
    async def answer(request: RestRequest) -> Response:
        house.count(agent.name)
        try:
            body = await request.json() if request.method == "POST" else None
            status, value = await route.handle(HttpAsk(dict(request.query), body), house)
            house.note(agent.name, "ok" if status < 400 else "failed")
            return json_response(value, status)
        except Refused as refused:
            house.note(agent.name, "failed")
            return json_response(agent.failure(refused.text, **refused.extra), 400)
        except BusError as error:
            house.note(agent.name, "failed")
            return json_response(agent.failure(error.message, code=error.code), error.http_status)

    return answer


def _health_routes(agent: Agent, house: House) -> list[Route]:
    """The three pages of the old base class."""

    async def health(request: RestRequest) -> Response:
        return json_response(await house.health_of(agent))

    async def metrics(request: RestRequest) -> Response:
        label = f'{{agent="{agent.name}"}}'
        lines = [
            "# HELP olympus_legacy_requests_total Requests answered for a replaced agent.",
            "# TYPE olympus_legacy_requests_total counter",
            f"olympus_legacy_requests_total{label} {house.requests_of(agent.name)}",
            "# HELP olympus_legacy_failures_total Requests that failed for a defect of the translation.",
            "# TYPE olympus_legacy_failures_total counter",
            f"olympus_legacy_failures_total{label} {house.failures_of(agent.name)}",
        ]
        return Response(body=("\n".join(lines) + "\n").encode(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def summary(request: RestRequest) -> Response:
        name = agent.name
        return json_response(
            {
                "agent": name,
                "requests": house.requests_of(name),
                "failures": house.failures_of(name),
                "last_request_at": house.last_request_at(name),
            }
        )

    return [
        Route("GET", "/health", health),
        Route("GET", "/metrics", metrics),
        Route("GET", "/metrics/summary", summary),
    ]
