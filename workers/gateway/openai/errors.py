"""Errors of the bus in OpenAI's words: the status and the body from which its clients choose their exceptions.

Source: OpenAI's API reference ("Error codes"), and the `openai` package, which tells errors apart by their status and
asks again on 408, 409, 429 and from 500 on, unless the header x-should-retry says not to.
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from schemas.errors import (
    BadRequest,
    BusError,
    Forbidden,
    NotFound,
    QuotaExceeded,
    Retryable,
    Unauthenticated,
    Unprocessable,
    Unsupported,
    WorkerLost,
)
from workers.gateway.rest.response import HeaderPairs, Response

_INVALID: Final = "invalid_request_error"

# Type and code of errors that have words of their own there.
_WORDS: Final[dict[type[BusError], tuple[str, str]]] = {
    BadRequest: (_INVALID, "invalid_value"),
    Unprocessable: (_INVALID, "unprocessable"),
    Unsupported: (_INVALID, "unsupported_value"),
    Unauthenticated: ("authentication_error", "invalid_api_key"),
    Forbidden: ("permission_error", "insufficient_permissions"),
    QuotaExceeded: ("rate_limit_error", "rate_limit_exceeded"),
}

# What OpenAI answers with 400 alike; a 5xx would be asked again and again.
_STATUS: Final[dict[type[BusError], int]] = {Unprocessable: 400, Unsupported: 400}

# Seconds a client is asked to wait where the error names none.
_RETRY_S: Final = 1


def error_body(error: BusError) -> dict[str, Any]:
    """`{"error": {"message", "type", "param", "code"}}`."""
    kind, code = _words(error)
    field = error.details.get("field")
    param = field if isinstance(field, str) else "model" if code == "model_not_found" else None
    return {"error": {"message": error.message, "type": kind, "param": param, "code": code}}


def error_response(error: BusError) -> Response:
    """The whole answer to a request that failed before its answer began."""
    return Response(
        status=_STATUS.get(type(error), error.http_status),
        body=msgspec.json.encode(error_body(error)),
        headers=_headers(error),
    )


def _headers(error: BusError) -> HeaderPairs:
    if isinstance(error, WorkerLost):
        # A generation that was begun is no request that may run twice unasked.
        return (("x-should-retry", "false"),)
    if isinstance(error, Retryable | QuotaExceeded):
        return (("retry-after", str(_wait_s(error))),)
    return ()


def _words(error: BusError) -> tuple[str, str]:
    details = error.details
    if isinstance(error, NotFound):
        return _INVALID, "model_not_found" if "model" in details else "not_found"
    if isinstance(error, Unprocessable) and details.get("prompt_tokens") and "context_tokens" in details:
        return _INVALID, "context_length_exceeded"
    kind, code = _WORDS.get(type(error), (_INVALID if error.http_status < 500 else "server_error", error.code))
    reason = details.get("reason")
    return kind, reason if isinstance(error, BadRequest) and isinstance(reason, str) else code


def _wait_s(error: BusError) -> int:
    wait_s = error.details.get("retry_after_s")
    return max(math.ceil(wait_s), _RETRY_S) if isinstance(wait_s, int | float) else _RETRY_S
