"""The pages of one port as a Litestar application: what people and watching programs read, none of it hot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
from litestar import Litestar, MediaType, Request, Response, get
from litestar.response import Redirect

from workers.gateway.rest.docs_page import page
from workers.gateway.rest.health import Health, status_of
from workers.gateway.rest.metrics import MEDIA_TYPE, Metrics

PATHS: Final = ("/", "/docs", "/openapi.json", "/health", "/metrics")

# A page may hold nothing that runs, and nothing from elsewhere.
_POLICY: Final = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}


def application(
    service: str, *, describe: Callable[[], dict[str, Any]], health: Health, metrics: Metrics, has_console: bool
) -> Litestar:
    """describe: makes the OpenAPI document; it is asked once, at the first reader."""
    known: dict[str, Any] = {}
    encoded: list[bytes] = []

    def document() -> dict[str, Any]:
        if not known:
            known.update(describe())
            encoded.append(msgspec.json.encode(known))
        return known

    @get("/")
    async def root() -> Redirect:
        return Redirect("/docs")

    @get("/docs", media_type=MediaType.HTML)
    async def docs(request: Request[Any, Any, Any]) -> Response[str]:
        address = request.headers.get("host", service)
        return Response(page(document(), address, has_console=has_console), headers=_POLICY)

    @get("/openapi.json")
    async def openapi() -> Response[bytes]:
        document()
        return Response(encoded[0], media_type="application/json")

    @get("/health")
    async def healthy() -> Response[bytes]:
        report = await health.report(service)
        return Response(msgspec.json.encode(report), media_type="application/json", status_code=status_of(report))

    @get("/metrics")
    async def counted() -> Response[bytes]:
        return Response(metrics.text(), media_type=MEDIA_TYPE)

    return Litestar(route_handlers=[root, docs, openapi, healthy, counted], openapi_config=None, logging_config=None)
