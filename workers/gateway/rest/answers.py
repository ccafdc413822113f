"""What the catalogue's own routes answer: a request on the bus, its reply handed through as it came."""

from __future__ import annotations

from typing import Any, Final

from bus.client import Client, JsonText
from bus.context import asked_by
from bus.settings import Settings
from schemas.envelope import new_id
from schemas.errors import Conflict
from workers.gateway.rest.operations import OperationRoute
from workers.gateway.rest.request import MAX_TIMEOUT_S, RestRequest
from workers.gateway.rest.response import HeaderPairs, Response
from workers.gateway.rest.streaming import form_of, streamed

Query = list[tuple[str, str]]

# What a service says of one caller is for no cache between.
_HEADERS: Final[HeaderPairs] = (("cache-control", "no-store"),)


class Answers:
    """Asks the bus for everybody who comes in over HTTP."""

    def __init__(self, client: Client, settings: Settings) -> None:
        self._client = client
        self._settings = settings
        self._ids: set[bytes] = set()

    async def answer(
        self,
        route: OperationRoute,
        params: dict[str, str],
        request: RestRequest,
        body: bytes | None = None,
        query: Query | None = None,
    ) -> Response:
        """Raises the error the request ended with, BrokerUnreachable among them.

        body and query: in place of the request's own; the query of a request whose body is replaced is left out.
        """
        if query is None:
            query = request.query if body is None else []
        if body is None:
            body = await request.json_text() if route.takes_body else await request.body()
        text = JsonText(route.request(params, query, body))
        operation = route.operation
        headers: dict[str, Any] = request.bus_headers()
        if (operation.subject.startswith("auth.") or operation.audit) and request.client_host:
            # Who guesses passwords there does not slow down those who sign in from elsewhere; the audit log names it.
            headers["source"] = f"http {request.client_host}"
        timeout_s = request.timeout_s or self._patience_s(route)
        if operation.is_streaming:
            # Rather than wait long for a broker that is not there.
            await self._client.connect(min(timeout_s, self._settings.bus.timeout_s))
        if operation.is_streaming and (form := form_of(request.header("accept"))):
            id = new_id()
            request.asked = request.asked or asked_by(id, headers)
            stream = self._client.stream_json(operation.subject, text, timeout_s=timeout_s, headers=headers, id=id)
            return await streamed(stream, form)
        own_id = request.request_id
        id = own_id or new_id()
        request.asked = request.asked or asked_by(id, headers)
        if own_id is None:
            reply = await self._client.request_json(
                operation.subject, text, timeout_s=timeout_s, headers=headers, id=id
            )
        else:
            reply = await self._once(id, operation.subject, text, timeout_s, headers)
        return Response(body=reply, headers=_HEADERS)

    async def _once(self, id: bytes, subject: str, text: JsonText, timeout_s: float, headers: dict[str, Any]) -> bytes:
        """Under the caller's own id. Raises Conflict while another request with it runs."""
        if id in self._ids:
            raise Conflict("a request with this Idempotency-Key is running; repeat it when that has ended", id=id.hex())
        self._ids.add(id)
        try:
            return await self._client.request_json(subject, text, timeout_s=timeout_s, headers=headers, id=id)
        finally:
            self._ids.discard(id)

    def _patience_s(self, route: OperationRoute) -> float:
        """How long to wait where the caller does not say: whoever hangs up ends the wait anyway."""
        if route.operation.is_streaming:
            return MAX_TIMEOUT_S
        patience_s = self._settings.bus.timeout_s
        # A model may have to be loaded first.
        return patience_s + self._settings.models.load_timeout_s if route.may_load_a_model else patience_s
