"""A running REST edge for tests: on free ports, over a real broker, with a client that speaks HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec

from bus.client import Client
from bus.metrics import Figures
from bus.settings import Settings
from schemas.bodies.gateway import PortInfo
from workers.gateway.rest.edge import RestEdge
from workers.gateway.rest.routes import Route

SERVICES = ("memory", "models", "learning")


class House:
    """An edge and its ports."""

    def __init__(self, edge: RestEdge, ports: list[PortInfo], http: httpx.AsyncClient) -> None:
        self.edge = edge
        self.ports = ports
        self.http = http

    def port(self, service: str = "memory", purpose: str = "rest") -> int:
        """The number of a port."""
        return next(info.port for info in self.ports if (info.owner, info.purpose) == (service, purpose))

    def url(self, path: str, service: str = "memory", purpose: str = "rest") -> str:
        """An address on a port."""
        return f"http://127.0.0.1:{self.port(service, purpose)}{path}"

    async def ask(self, method: str, path: str, service: str = "memory", **more: Any) -> httpx.Response:
        """One request."""
        return await self.http.request(method, self.url(path, service), **more)


@asynccontextmanager
async def rest_house(
    settings: Settings, *, routes: dict[str, Iterable[Route]] | None = None, **rest: Any
) -> AsyncIterator[House]:
    """The edge as its process runs it; keywords change rest settings."""
    ports = {f"{service}_{kind}port": 0 for service in SERVICES for kind in ("", "health_")}
    changed = msgspec.structs.replace(settings, rest=msgspec.structs.replace(settings.rest, **{**ports, **rest}))
    async with Client(changed, name="rest", signs=False) as client:
        edge = RestEdge(changed, client, Figures())
        for service, added in (routes or {}).items():
            edge.add_routes(service, added)
        infos = await edge.start()
        try:
            async with httpx.AsyncClient(timeout=20, trust_env=False) as http:
                yield House(edge, infos, http)
        finally:
            await edge.stop(1)
