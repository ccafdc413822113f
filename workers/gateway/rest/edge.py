"""The REST edge as a whole: which ports are open, what each answers, and its life."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Literal

from bus.client import Client
from bus.settings import Settings
from schemas.bodies.gateway import PortInfo
from workers.gateway.rest import openapi, pages
from workers.gateway.rest.answers import Answers
from workers.gateway.rest.browsers import Browsers
from workers.gateway.rest.front import Front
from workers.gateway.rest.health import Health, status_of
from workers.gateway.rest.metrics import Metrics
from workers.gateway.rest.operations import SERVICES, operation_routes, port_of
from workers.gateway.rest.request import RestRequest
from workers.gateway.rest.response import Response, json_response
from workers.gateway.rest.routes import Route
from workers.gateway.rest.server import HttpServer

log = logging.getLogger("olympus.rest")

Purpose = Literal["rest", "health"]


class RestEdge:
    """The HTTP ports of this process. client: sends no token of its own, for it speaks for whoever comes in."""

    def __init__(self, settings: Settings, client: Client) -> None:
        self._settings = settings
        self._client = client
        self._server = HttpServer(settings.rest)
        self._metrics = Metrics(lambda: self._server.connections)
        self._health = Health(settings, client)
        self._answers = Answers(client, settings)
        self._fronts = {service: self._front(service, settings.rest.host, has_pages=True) for service in SERVICES}
        for route in operation_routes():
            self._fronts[port_of(route.operation)].serve([route])

    def add_routes(self, service: str, routes: Iterable[Route]) -> None:
        """Answer `routes` on the port of a service, before those of the catalogue. Raises ValueError for a route twice."""
        self._fronts[service].add(routes)

    async def start(self) -> list[PortInfo]:
        """Open what `rest.services` names: first the REST ports, then those of health alone."""
        rest = self._settings.rest
        ports = []
        for service in SERVICES:
            number = getattr(rest, f"{service}_port")
            ports.append(
                await self._open(self._fronts[service], "rest", rest.host, number, is_wanted=service in rest.services)
            )
        for service in SERVICES:
            number = getattr(rest, f"{service}_health_port")
            front = self._front(service, rest.host, has_pages=False)
            front.add([Route("GET", "/health", self._healthy)])
            ports.append(await self._open(front, "health", rest.host, number, is_wanted=service in rest.services))
        return ports

    async def serve_extra(
        self, *, owner: str, purpose: Purpose, host: str, port: int, routes: Iterable[Route]
    ) -> PortInfo:
        """Open one more port, which answers `routes` and nothing of the catalogue."""
        front = self._front(owner, host, has_pages=False)
        front.add(routes)
        return await self._open(front, purpose, host, port, is_wanted=True)

    async def stop(self, drain_s: float) -> None:
        """Accept no more, let requests end within `drain_s` seconds, close every port."""
        await self._server.stop(drain_s)
        await self._health.close()

    def _front(self, service: str, host: str, *, has_pages: bool) -> Front:
        rest = self._settings.rest
        application = None
        if has_pages:
            application = pages.application(
                service, describe=lambda: self._described(service), health=self._health, metrics=self._metrics
            )
        return Front(
            service,
            client=self._client,
            answers=self._answers,
            browsers=Browsers(host, rest.cors_origins),
            metrics=self._metrics,
            max_body_bytes=rest.max_body_bytes,
            pages=application,
            page_paths=pages.PATHS if has_pages else (),
        )

    def _described(self, service: str) -> dict[str, object]:
        front = self._fronts[service]
        return openapi.document(service, front.operation_routes, front.added_routes)

    async def _healthy(self, request: RestRequest) -> Response:
        report = await self._health.report(request.service)
        return json_response(report, status_of(report))

    async def _open(self, front: Front, purpose: Purpose, host: str, port: int, *, is_wanted: bool) -> PortInfo:
        info = PortInfo(owner=front.service, purpose=purpose, protocol="http", host=host, port=0, state="off")
        if not is_wanted:
            return info
        try:
            number = await self._server.listen(front, host, port)
        except OSError as error:
            note = f"port {port}: {error.strerror or error}"
            return PortInfo(
                owner=front.service, purpose=purpose, protocol="http", host=host, port=0, state="taken", note=note
            )
        return PortInfo(owner=front.service, purpose=purpose, protocol="http", host=host, port=number, state="bound")
