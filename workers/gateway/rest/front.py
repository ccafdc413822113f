"""The ASGI application of one port: finds the route, applies the rules of the port, sends the answer, counts it.

Written for the way of a small request, which costs less here than one look-up in a framework; pages for people and
programs that watch (docs, metrics) are Litestar's.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import partial
from typing import Any, Final

from bus import traceparent
from bus.client import BrokerUnreachable, Client
from bus.context import Asked, asked_by, current
from schemas.envelope import new_id
from schemas.errors import BusError, Internal, NotFound, NoWorker
from workers.gateway.rest.answers import Answers
from workers.gateway.rest.browsers import Browsers
from workers.gateway.rest.metrics import UNKNOWN, Metrics
from workers.gateway.rest.operations import OperationRoute
from workers.gateway.rest.request import BodyRoom, Receive, RestRequest, Scope
from workers.gateway.rest.response import MethodNotAllowed, Pieces, Response, problem_response
from workers.gateway.rest.routes import Route, Table, is_more_literal, nearest, segments

log = logging.getLogger("olympus.rest")

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Any, Any, Any], Awaitable[None]]

# What would end a header and begin another.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

# Seconds that a request waits for a broker that is away; a restarted one is back in one.
_BROKER_S: Final = 2.0

# Said with every answer: nothing here is to be taken for anything but what its type says.
_ALWAYS: Final = ((b"x-content-type-options", b"nosniff"),)


class Front:
    """One port. service: its name in metrics and health. pages: the application that answers for `page_paths`.

    elsewhere: of a service and a path that its port does not know, the number of the port that does, or None.
    """

    def __init__(
        self,
        service: str,
        *,
        client: Client,
        answers: Answers,
        browsers: Browsers,
        metrics: Metrics,
        max_body_bytes: int,
        room: BodyRoom,
        elsewhere: Callable[[str, str], int | None],
        pages: Application | None = None,
        page_paths: Iterable[str] = (),
    ) -> None:
        self.service = service
        self._client = client
        self._answers = answers
        self._browsers = browsers
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._room = room
        self._elsewhere = elsewhere
        self._pages = pages
        self._page_paths = frozenset(page_paths)
        self._native: Table[OperationRoute] = Table()
        self._added: Table[Route] = Table()
        self.operation_routes: list[OperationRoute] = []
        self.added_routes: list[Route] = []

    def serve(self, routes: Iterable[OperationRoute]) -> None:
        """Answer these routes of the catalogue."""
        for route in routes:
            self._native.add(route.method, route.template, route)
            self.operation_routes.append(route)

    def add(self, routes: Iterable[Route]) -> None:
        """Answer these routes before those of the catalogue. Raises ValueError for one that is there already."""
        for route in routes:
            self._added.add(route.method, route.template, route)
            self.added_routes.append(route)

    def knows(self, path: str) -> bool:
        """True where some method of a path is answered here. Raises BadRequest for a path that is not UTF-8."""
        parts = segments(path)
        return path in self._page_paths or bool(self._native.methods(parts) or self._added.methods(parts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Raises only what pieces of a body raise while they are sent."""
        began_at = time.perf_counter()
        metrics = self._metrics
        metrics.in_flight += 1
        request = RestRequest(
            *(scope, receive),
            service=self.service,
            client=self._client,
            max_body_bytes=self._max_body_bytes,
            room=self._room,
        )
        try:
            response = await self._response(request, scope, send)
            status = response if isinstance(response, int) else await self._send(response, request, scope, send)
            metrics.answered(
                self.service, request.method, request.template or UNKNOWN, status, time.perf_counter() - began_at
            )
        except asyncio.CancelledError:
            # The caller hung up, or the edge stops: nobody is left to be told.
            metrics.abandoned(self.service)
        finally:
            request.end()
            metrics.in_flight -= 1

    async def _response(self, request: RestRequest, scope: Scope, send: Send) -> Response | int:
        """The answer; the status where it has been sent already."""
        try:
            return await self._answered(request, scope, send)
        except BusError as error:
            return problem_response(error)
        except Exception as error:
            log.error(
                "route failed",
                exc_info=error,
                extra={"action": "rest.failed", "service": self.service, "route": request.template},
            )
            kind = type(error).__name__
            return problem_response(Internal(f"{request.method} {request.template} failed: {kind}", kind=kind))

    async def _answered(self, request: RestRequest, scope: Scope, send: Send) -> Response | int:
        path = segments(request.path)
        is_page = request.path in self._page_paths
        method = request.method
        self._browsers.check(method, request.headers, scope["http_version"], is_page=is_page)
        wanted = "GET" if method == "HEAD" else method
        added = self._added.find(wanted, path) if self.added_routes else None
        native = self._native.find(wanted, path)
        if added is not None and (native is None or not is_more_literal(native.template, added.template)):
            ask = None if native is None else partial(self._ask, native.target, native.params)
            request.routed(added.template, added.params, ask)
            return await self._ask_added(added.target, request)
        if native is not None:
            request.routed(native.template, native.params, None)
            if not self._client.is_connected:
                await self._reach(request)
            return await self._answers.answer(native.target, native.params, request)
        if is_page and wanted == "GET" and self._pages is not None:
            request.template = request.path
            return await self._page(scope, request, send)
        return self._unserved(request, path, is_page)

    async def _ask_added(self, route: Route, request: RestRequest) -> Response:
        try:
            # What it asks the bus, be it several requests, is one trace, and is found by that.
            headers = request.trace_headers()
            known = traceparent.parse(headers.get("traceparent"))
            request.asked = asked_by(bytes.fromhex(known.trace) if known else new_id(), headers)
            current.set(request.asked)
            if not self._client.is_connected:
                await self._reach(request)
            return await route.handler(request)
        except BusError as error:
            return route.failed(error)

    async def _reach(self, request: RestRequest) -> None:
        """Wait a moment for the bus. Raises NoWorker: callers had rather hear that at once than at their deadline."""
        if self._pages is None:
            # What stands alone on a port tells of itself, and asks the bus as it sees fit.
            return
        try:
            await self._client.connect(min(_BROKER_S, request.timeout_s or _BROKER_S))
        except BrokerUnreachable as error:
            raise NoWorker("the bus is away: its broker does not answer; try again", retry_after_s=1) from error

    def _ask(
        self,
        route: OperationRoute,
        params: dict[str, str],
        request: RestRequest,
        body: bytes | None,
        query: list[tuple[str, str]] | None,
    ) -> Awaitable[Response]:
        return self._answers.answer(route, params, request, body, query)

    async def _page(self, scope: Scope, request: RestRequest, send: Send) -> int:
        """Let the other application answer; its own answer is completed with what every port says."""
        assert self._pages is not None
        status = 500
        more = [*_ALWAYS, *self._cors(request)]

        async def completed(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        await self._pages({**scope, "method": "GET"}, _nothing_to_read, completed)
        return status

    def _unserved(self, request: RestRequest, path: list[str], is_page: bool) -> Response:
        methods = {*self._added.methods(path), *self._native.methods(path), *(("GET",) if is_page else ())}
        if not methods:
            elsewhere = self._elsewhere(self.service, request.path)
            near = nearest(request.path, (*self._added.templates(), *self._native.templates(), *self._page_paths))
            hint = f"; is it {' or '.join(near)}?" if near else ""
            if elsewhere is not None:
                hint = f"; port {elsewhere} has it"
            raise NotFound(
                f"no route {request.method} {request.path[:200]} on the port of {self.service}{hint}"
                " (a slash within a name is written %2F)",
                path=request.path[:200],
                nearest=near,
            )
        allowed = sorted({*methods, *(("HEAD",) if "GET" in methods else ()), "OPTIONS"})
        allow = (("allow", ", ".join(allowed)),)
        if request.method == "OPTIONS":
            return Response(status=204, headers=(*allow, *self._browsers.preflight(request.headers, allowed)))
        error = MethodNotAllowed(
            f"{request.path[:200]} knows {', '.join(allowed)}, not {request.method}",
            path=request.path[:200],
            allowed=allowed,
        )
        return problem_response(error, headers=allow)

    def _cors(self, request: RestRequest) -> list[tuple[bytes, bytes]]:
        pairs = self._browsers.headers(request.headers.get(b"origin"))
        return [(name.encode(), value.encode("latin-1")) for name, value in pairs] if pairs else []

    async def _send(self, response: Response, request: RestRequest, scope: Scope, send: Send) -> int:
        body = response.body
        headers = [(b"content-type", response.media_type.encode("latin-1")), *_ALWAYS]
        for name, value in response.headers:
            if _CONTROL.search(value):
                raise ValueError(f"the header {name} of a response holds {value[:80]!r}")
            headers.append((name.encode("latin-1"), value.encode("latin-1")))
        headers += self._cors(request)
        if request.asked is not None:
            headers += _names(request.asked, response)
        if not request.is_read:
            # What is left of the body would be taken for the next request.
            headers.append((b"connection", b"close"))
        start = {"type": "http.response.start", "status": response.status, "headers": headers}
        if isinstance(body, bytes):
            if response.status == 204:
                del headers[0]
            else:
                headers.append((b"content-length", b"%d" % len(body)))
            await send(start)
            await send({"type": "http.response.body", "body": body})
        else:
            await _send_pieces(start, body, send, is_head=scope["method"] == "HEAD")
        return response.status


def _names(asked: Asked, response: Response) -> list[tuple[bytes, bytes]]:
    """By what `olympus trace` finds the request, and by what a caller's own traces name it."""
    trace, id = asked.trace, asked.id.hex()
    named = [(b"traceparent", traceparent.written(trace, id[:16]).encode())]
    if not any(name == "x-request-id" for name, _ in response.headers):
        named.append((b"x-request-id", id.encode()))
    return named


async def _send_pieces(start: MutableMapping[str, Any], pieces: Pieces, send: Send, *, is_head: bool) -> None:
    try:
        await send(start)
        # The head alone: the first piece may take its time.
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        if not is_head:
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        await pieces.aclose()


async def _nothing_to_read() -> MutableMapping[str, Any]:
    """The body of a request for a page."""
    return {"type": "http.request", "body": b"", "more_body": False}
