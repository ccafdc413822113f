"""Answers in the shapes of the first HTTP services: replies as they are, failures as `{"detail": ...}`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec

from schemas.errors import BY_CODE, BadRequest, BusError
from workers.gateway.phase1.fields import Invalid, Missing, error_of
from workers.gateway.rest.request import RestRequest
from workers.gateway.rest.response import Response, UnsupportedMediaType, json_response

_FAILED: Final = ("error", "ERROR")

Handle = Callable[[RestRequest], Awaitable[Response]]


def detail(status: int, what: Any) -> Response:
    """A failure."""
    return json_response({"detail": what}, status)


def answer_of(reply: Any, fails: int) -> Response:
    """The reply of an agent: as it is, or its failure with the status `fails`.

    Where the bus failed and not the agent, the status is that of the error: nobody serves, nobody is signed in.
    """
    if not has_failed(reply):
        return json_response(reply)
    known = BY_CODE.get(str(reply.get("code")))
    return detail(fails if known is None else known.http_status, failure_of(reply))


def has_failed(reply: Mapping[str, Any]) -> bool:
    """True for a reply that says so; one agent's replies have no status at all."""
    status = reply.get("status")
    return status in _FAILED or (status is None and "error" in reply)


def failure_of(reply: Mapping[str, Any]) -> str:
    """What went wrong, in the agent's words."""
    return str(reply.get("message") or reply.get("reason") or reply.get("error") or "failed")


def checked(handle: Handle) -> Handle:
    """`handle` with its refusals of what it cannot read in these shapes; for paths that the catalogue has, too."""

    async def answer(request: RestRequest) -> Response:
        try:
            return await handle(request)
        except Invalid as error:
            return detail(422, error.errors)
        except Missing as error:
            return detail(400, str(error))

    return answer


def worded(handle: Handle) -> Handle:
    """`handle` with all its failures in these shapes; for what only the first services had."""
    handle = checked(handle)

    async def answer(request: RestRequest) -> Response:
        try:
            return await handle(request)
        except BusError as error:
            return detail(error.http_status, error.message)

    return answer


async def body_of(request: RestRequest) -> Any:
    """The value of the body; None where there is none. Raises Invalid for what is no JSON."""
    if not request.has_body:
        return None
    try:
        found = await request.json()
        # JSON knows no limit of numbers, the bus does.
        msgspec.msgpack.encode(found)
    except UnsupportedMediaType:
        raise
    except BadRequest as error:
        raise Invalid([error_of(["body"], "json_invalid", error.message)]) from error
    except OverflowError as error:
        raise Invalid([error_of(["body"], "int_parsing_size", "Numbers have at most 64 bits")]) from error
    return found


def superset(native: Response, more: Mapping[str, Any]) -> Response:
    """The answer of a route of ours with further fields; where both have one, ours stays as it is."""
    if not isinstance(native.body, bytes) or native.status != 200:
        return native
    own = msgspec.json.decode(native.body)
    if not isinstance(own, dict):
        return native
    return msgspec.structs.replace(native, body=msgspec.json.encode({**more, **own}))


def joined(native: Response, reply: Mapping[str, Any]) -> Response:
    """The answer of a route of ours with the reply of an agent; without, where that says that it failed."""
    return native if has_failed(reply) else superset(native, reply)


def native_value(native: Response) -> dict[str, Any]:
    """What a route of ours answered; empty where it answered in pieces."""
    value = msgspec.json.decode(native.body) if isinstance(native.body, bytes) else {}
    return value if isinstance(value, dict) else {}
