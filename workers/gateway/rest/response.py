"""What a route answers with; knows no socket."""

from __future__ import annotations

import http
import math
from collections.abc import AsyncIterator
from typing import Any, Final, Protocol

import msgspec

from schemas.errors import BadRequest, BusError, DeadlineExceeded, Forbidden, Overloaded, TooLarge
from schemas.values import as_json

JSON: Final = "application/json"

# RFC 9457, section 3.
PROBLEM: Final = "application/problem+json"

HeaderPairs = tuple[tuple[str, str], ...]


class Pieces(Protocol):
    """Parts of a body; an async generator is one."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None:
        """No more are wanted."""


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """One answer. body: whole, or pieces that are sent as they come; their `aclose` is called when the caller leaves."""

    status: int = 200
    body: bytes | Pieces = b""
    media_type: str = JSON
    headers: HeaderPairs = ()


class MethodNotAllowed(BadRequest):
    """The path exists, the method does not."""

    http_status = 405


class SlowCaller(DeadlineExceeded):
    """The request did not come in time."""

    http_status = 408


class UnsupportedMediaType(BadRequest):
    """The body is something else than JSON."""

    http_status = 415


class WrongHost(Forbidden):
    """The request names a host that is not this server."""

    http_status = 421


class HeadTooLarge(TooLarge):
    """Request line and headers are over their limit."""

    http_status = 431


class TooManyConnections(Overloaded):
    """As many connections are open as may be."""


def json_response(value: Any, status: int = 200, headers: HeaderPairs = ()) -> Response:
    """`value` as JSON."""
    return Response(status=status, body=as_json(value), headers=headers)


def problem_response(error: BusError, headers: HeaderPairs = ()) -> Response:
    """An error as RFC 9457 has it, with our code and details beside."""
    return Response(
        status=error.http_status,
        body=problem_body(error),
        media_type=PROBLEM,
        headers=(*headers, *_headers_of(error)),
    )


def problem_body(error: BusError) -> bytes:
    """`{type, title, status, detail, code, details}`."""
    status = error.http_status
    return as_json(
        {
            "type": "about:blank",
            "title": _title(status),
            "status": status,
            "detail": error.message,
            "code": error.code,
            "details": error.details,
        }
    )


def _title(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        # 499 is nobody's but nginx's.
        return "Client Closed Request"


def _headers_of(error: BusError) -> HeaderPairs:
    if error.http_status == 401:
        # RFC 6750, section 3.
        return (("www-authenticate", "Bearer"),)
    wait_s = error.details.get("retry_after_s")
    if isinstance(wait_s, int | float) and math.isfinite(wait_s) and wait_s >= 0:
        return (("retry-after", str(max(math.ceil(wait_s), 1))),)
    return ()
