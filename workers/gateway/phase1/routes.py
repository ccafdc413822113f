"""Every route of the first HTTP services, by the port it belongs to."""

from __future__ import annotations

from typing import Final

from workers.gateway.legacy.house import House
from workers.gateway.phase1.agents import RAW, agent_routes, raw_routes
from workers.gateway.phase1.models import model_routes
from workers.gateway.phase1.shared import shared_routes
from workers.gateway.phase1.unified import unified_routes
from workers.gateway.rest.request import RestRequest
from workers.gateway.rest.response import Response
from workers.gateway.rest.routes import Route

_TEXT: Final = "text/plain; charset=utf-8"


def phase1_routes(house: House) -> dict[str, list[Route]]:
    """Routes by service."""
    return {
        "memory": [
            Route("GET", "/", _greet),
            *agent_routes(house),
            *raw_routes(house, RAW),
            *unified_routes(house),
            *shared_routes(house),
        ],
        "models": [Route("GET", "/", _greet), *model_routes(house)],
    }


async def _greet(request: RestRequest) -> Response:
    """The text that says that somebody is there; people with a browser go on to the page that describes the port."""
    if "text/html" in (request.header("accept") or ""):
        return Response(status=302, media_type=_TEXT, headers=(("location", "/docs"),))
    return Response(body=f"Olympus {request.service}\n".encode(), media_type=_TEXT)
