"""The REST edge as a whole: which ports are open, what each answers, and its life."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Set
from typing import Final, Literal

from bus.client import Client
from bus.metrics import Figures
from bus.settings import Settings, is_loopback
from schemas.bodies.gateway import PortInfo
from workers.gateway.console.routes import Console
from workers.gateway.rest import openapi, pages
from workers.gateway.rest.answers import Answers
from workers.gateway.rest.browsers import Browsers, names_of_house
from workers.gateway.rest.front import Application, Front
from workers.gateway.rest.health import Health, status_of
from workers.gateway.rest.metrics import Metrics
from workers.gateway.rest.operations import SERVICES, operation_routes, port_of
from workers.gateway.rest.request import BodyRoom, RestRequest
from workers.gateway.rest.response import Response, json_response
from workers.gateway.rest.routes import Route
from workers.gateway.rest.server import HttpServer

log = logging.getLogger("olympus.rest")

Purpose = Literal["rest", "health"]

# Largest bodies that are held at once, before anybody knows who sent them.
_BODIES_HELD: Final = 4


class RestEdge:
    """The HTTP ports of this process. client: sends no token of its own, for it speaks for whoever comes in.

    figures: those of the process, which every port's /metrics shows.
    """

    def __init__(self, settings: Settings, client: Client, figures: Figures) -> None:
        self._settings = settings
        self._client = client
        self._server = HttpServer(settings.rest)
        self._metrics = Metrics(figures, lambda: self._server.connections, SERVICES)
        self._health = Health(client)
        self._answers = Answers(client, settings)
        self._console = Console(settings, client, self._answers) if settings.rest.console else None
        self._room = BodyRoom(_BODIES_HELD * settings.rest.max_body_bytes)
        self._numbers: dict[str, int] = {}
        self._fronts = {service: self._front(service, settings.rest.host, has_pages=True) for service in SERVICES}
        for route in operation_routes():
            self._fronts[port_of(route.operation)].serve([route])
        if self._console is not None:
            for front in self._fronts.values():
                front.add(self._console.routes())

    def add_routes(self, service: str, routes: Iterable[Route]) -> None:
        """Answer `routes` on the port of a service, before those of the catalogue. Raises ValueError for a route twice."""
        self._fronts[service].add(routes)

    async def start(self) -> list[PortInfo]:
        """Open what `rest.services` names: first the REST ports, then those of health alone."""
        ports = []
        for service in SERVICES:
            ports.append(await self._open_setting(self._fronts[service], "rest", f"rest.{service}_port"))
            self._numbers[service] = ports[-1].port if ports[-1].state == "bound" else 0
        for service in SERVICES:
            front = self._front(service, self._settings.rest.host, has_pages=False)
            front.add([Route("GET", "/health", self._healthy)])
            ports.append(await self._open_setting(front, "health", f"rest.{service}_health_port"))
        return ports

    async def serve_extra(
        self, *, owner: str, purpose: Purpose, host: str, port: int, routes: Iterable[Route]
    ) -> PortInfo:
        """Open one more port, which answers `routes` and nothing of the catalogue, and asks nobody for a token."""
        front = self._front(owner, host, has_pages=False, is_open=True)
        front.add(routes)
        return await self._open(front, purpose, host, port, "legacy.ports", is_wanted=True)

    async def stop(self, drain_s: float) -> None:
        """Accept no more, let requests end within `drain_s` seconds, close every port."""
        if self._console is not None:
            # Those who watch would never end by themselves.
            await self._console.close()
        await self._server.stop(drain_s)
        await self._health.close()

    def _front(self, service: str, host: str, *, has_pages: bool, is_open: bool = False) -> Front:
        rest = self._settings.rest
        names: Set[str] | None = None
        if is_loopback(host):
            names = frozenset()
        elif is_open or not self._settings.auth.required:
            names = names_of_house(self._settings)
        application: Application | None = None
        paths: tuple[str, ...] = ()
        if has_pages:
            application, paths = self._pages(service)
        return Front(
            service,
            client=self._client,
            answers=self._answers,
            browsers=Browsers(host, rest.cors_origins, names),
            metrics=self._metrics,
            max_body_bytes=rest.max_body_bytes,
            room=self._room,
            elsewhere=self._elsewhere,
            pages=application,
            page_paths=paths,
        )

    def _pages(self, service: str) -> tuple[Application, tuple[str, ...]]:
        """What answers for the pages of a port, and their paths."""
        plain = pages.application(
            service,
            describe=lambda: self._described(service),
            health=self._health,
            metrics=self._metrics,
            has_console=self._console is not None,
        )
        if self._console is None:
            return plain, pages.PATHS
        files = self._console.pages(service, plain)
        return files, (*pages.PATHS, *files.paths)

    def _elsewhere(self, service: str, path: str) -> int | None:
        """The open REST port that knows a path: that of the service itself, for one of health alone, before others."""
        names = sorted(self._numbers, key=lambda name: name != service)
        knowing = (self._numbers[name] for name in names if self._numbers[name] and self._fronts[name].knows(path))
        return next(knowing, None)

    def _described(self, service: str) -> dict[str, object]:
        front = self._fronts[service]
        return openapi.document(service, front.operation_routes, front.added_routes)

    async def _healthy(self, request: RestRequest) -> Response:
        report = await self._health.report(request.service)
        return json_response(report, status_of(report))

    async def _open_setting(self, front: Front, purpose: Purpose, setting: str) -> PortInfo:
        """Open the port that a setting names, where `rest.services` has the service."""
        rest = self._settings.rest
        number = getattr(rest, setting.removeprefix("rest."))
        is_wanted = front.service in rest.services
        return await self._open(front, purpose, rest.host, number, f"{setting}=PORT", is_wanted=is_wanted)

    async def _open(
        self, front: Front, purpose: Purpose, host: str, port: int, setting: str, *, is_wanted: bool
    ) -> PortInfo:
        info = PortInfo(owner=front.service, purpose=purpose, protocol="http", host=host, port=0, state="off")
        if not is_wanted:
            return info
        try:
            number = await self._server.listen(front, host, port)
        except OSError as error:
            has_owner = error.errno == errno.EADDRINUSE
            why = "another program has it" if has_owner else error.strerror or str(error)
            note = f"{why}; {setting} gives another"
            return PortInfo(
                owner=front.service, purpose=purpose, protocol="http", host=host, port=port, state="taken", note=note
            )
        return PortInfo(owner=front.service, purpose=purpose, protocol="http", host=host, port=number, state="bound")
