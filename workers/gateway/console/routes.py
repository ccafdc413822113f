"""What the page of the console asks: any operation of the catalogue, the picture of the bus, and its events as they pass.

Nothing here has rights of its own: an operation is asked with the token that came, by the way every route takes.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Annotated, Final

import msgspec

from bus.authorize import Authorizer, Caller
from bus.client import BrokerUnreachable, Client
from bus.settings import Settings
from bus.version import VERSION
from bus.watching import subject_filter
from schemas import catalog, subjects
from schemas.bodies.gateway import GatewayPorts, PortInfo, PortList
from schemas.catalog import Operation
from schemas.errors import BadRequest, BusError, Forbidden, NotFound, NoWorker, Overloaded, Unauthenticated
from workers.gateway.console.feeds import MAX_BODY_BYTES, Feeds
from workers.gateway.console.files import FOLDER, ROOT, Files, file_of, files_below
from workers.gateway.console.sight import Sight
from workers.gateway.console.tap import Tap
from workers.gateway.console.topology import Looks, Topology
from workers.gateway.rest.answers import Answers
from workers.gateway.rest.front import Application
from workers.gateway.rest.operations import OperationRoute
from workers.gateway.rest.request import RestRequest
from workers.gateway.rest.response import JSON, HeaderPairs, Response, UnsupportedMediaType, json_response
from workers.gateway.rest.routes import Route
from workers.gateway.rest.streaming import HEARTBEAT_S

_API: Final = f"{ROOT}/api"

# Readers of the tap at once, of everybody and of one user who signed in.
MAX_TAPS: Final = 64
MAX_TAPS_OF_ONE: Final = 16

# Patterns of one tap, and as many to leave out.
_PATTERNS: Final = 32

# Seconds the gateway has to say which ports it holds.
_PORTS_S: Final = 1.0

_NO_STORE: Final[HeaderPairs] = (("cache-control", "no-store"),)

# Proxies that gather a response before they pass it on would keep every event back.
_STREAMED: Final[HeaderPairs] = (("cache-control", "no-cache"), ("x-accel-buffering", "no"))


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `api/request`. body: as the operation has it; left out it is empty."""

    subject: Annotated[str, msgspec.Meta(max_length=255)]
    body: msgspec.Raw = msgspec.Raw(b"{}")


class Picture(Topology, frozen=True, kw_only=True):
    """The picture of the bus with what the gateway adds. ports: None where the caller may not see them."""

    ports: list[PortInfo] | None
    watchers: dict[str, int]


_decode_asked = msgspec.json.Decoder(Asked).decode


class Console:
    """The console of all ports of one edge."""

    def __init__(self, settings: Settings, client: Client, answers: Answers) -> None:
        self._settings = settings
        self._client = client
        self._answers = answers
        self._files = files_below(FOLDER)
        self._feeds = Feeds(client)
        self._looks = Looks(client, settings)
        self._authorizer = Authorizer(settings, client) if settings.auth.required else None
        self._listening: asyncio.Task[None] | None = None
        self._taps: set[Tap] = set()
        self._operations: dict[str, OperationRoute] = {}
        self._is_closed = False

    def pages(self, service: str, others: Application) -> Files:
        """The files of the page for the port of a service, before its other pages."""
        about = {
            "auth_required": self._settings.auth.required,
            "version": VERSION,
            "machine": socket.gethostname(),
            "service": service,
            "heartbeat_s": HEARTBEAT_S,
        }
        return Files({**self._files, f"{_API}/about": file_of(msgspec.json.encode(about), JSON)}, others)

    def routes(self) -> list[Route]:
        """What the page asks. Without a summary: these shapes are the page's own and may change with it."""
        return [
            Route("POST", f"{_API}/request", self._request),
            Route("GET", f"{_API}/topology", self._topology),
            Route("GET", f"{_API}/tap", self._tap),
        ]

    async def close(self) -> None:
        """Tell every reader that this is the end."""
        self._is_closed = True
        for tap in self._taps:
            tap.stop("the gateway stops")
        await self._looks.close()
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
        await self._feeds.close()

    # Requests

    async def _request(self, request: RestRequest) -> Response:
        asked = await _asked(request)
        route = self._operations.get(asked.subject)
        if route is None:
            route = self._operations[asked.subject] = OperationRoute(
                _operation(asked.subject), "POST", f"{_API}/request"
            )
        return await self._answers.answer(route, {}, request, bytes(asked.body), [])

    # Topology

    async def _topology(self, request: RestRequest) -> Response:
        try:
            found = await self._looks.picture()
        except BrokerUnreachable as error:
            raise _away() from error
        picture = Picture(
            **{name: getattr(found, name) for name in Topology.__struct_fields__},
            ports=await self._ports(request),
            watchers={"taps": len(self._taps), "limit": MAX_TAPS},
        )
        return json_response(picture, headers=_NO_STORE)

    async def _ports(self, request: RestRequest) -> list[PortInfo] | None:
        headers = request.bus_headers()
        try:
            known: PortList = await self._client.request(
                "gateway.ports", GatewayPorts(), timeout_s=_PORTS_S, headers=headers
            )
        except BusError:
            # Not for this caller, or not now: the picture is worth having without them.
            return None
        return known.ports

    # Tap

    async def _tap(self, request: RestRequest) -> Response:
        self._refuse_neighbours(request)
        asked = _given(request)
        patterns = _patterns(asked.pop("patterns", []), "patterns") or (">",)
        ignored = _patterns(asked.pop("ignore", []), "ignore")
        traces = (asked.pop("traces", None) or ["0"])[-1]
        if traces not in ("0", "1", "only"):
            raise BadRequest(f"parameter 'traces' is {traces[:40]!r}, allowed: 0, 1, only", field="traces")
        if asked:
            name = next(iter(asked))[:80]
            raise BadRequest(f"parameter {name!r} is none of patterns, ignore, traces", field=name)
        caller = await self._caller(request)
        sight = Sight(caller)
        sight.check(patterns, has_traces=traces != "0")
        user = caller.user_id if caller is not None else ""
        self._refuse_too_many(user)
        hello = {
            "at": time.time(),
            "patterns": patterns,
            "ignored": ignored,
            "traces": traces != "0",
            "events": traces != "only",
            "hidden": sight.hidden(patterns),
            "heartbeat_s": HEARTBEAT_S,
            "max_body_bytes": MAX_BODY_BYTES,
        }

        async def look() -> Sight:
            return Sight(await self._caller(request))

        tap = Tap(
            user=user,
            wants=subject_filter(patterns, ignored),
            sight=sight,
            look=look,
            leave=self._left,
            hello=hello,
        )
        self._taps.add(tap)
        try:
            if traces != "only":
                await self._feeds.events(patterns, tap)
            if traces != "0":
                await self._feeds.requests(tap)
        except BaseException as error:
            self._left(tap)
            if isinstance(error, BrokerUnreachable | ConnectionError):
                raise _away() from error
            raise
        return Response(body=tap, media_type="text/event-stream", headers=_STREAMED)

    async def _caller(self, request: RestRequest) -> Caller | None:
        """Who asks; None where nobody has to sign in. Raises Unauthenticated, Retryable where nobody can say now."""
        if self._authorizer is None:
            return None
        token = request.token
        if token is None:
            raise Unauthenticated("the tap needs a token: sign in first", reason="missing")
        if self._listening is None and not self._is_closed:
            self._listening = asyncio.get_running_loop().create_task(self._authorizer.listen())
        return await self._authorizer.whose(token)

    def _refuse_neighbours(self, request: RestRequest) -> None:
        """A page of this host on another port can start this, though not read it: it would hold a place for nothing."""
        site = request.headers.get(b"sec-fetch-site", b"none")
        origin = request.headers.get(b"origin", b"").decode("latin-1").lower()
        allowed = self._settings.rest.cors_origins
        if site not in (b"none", b"same-origin") and origin not in allowed and "*" not in allowed:
            raise Forbidden("a page of another origin may not watch; name it in rest.cors_origins to allow it")

    def _refuse_too_many(self, user: str) -> None:
        if self._is_closed:
            raise Overloaded("the gateway stops", retry_after_s=1.0)
        if len(self._taps) >= MAX_TAPS:
            raise Overloaded(f"{MAX_TAPS} taps are open, as many as may be", limit=MAX_TAPS, retry_after_s=5.0)
        if user and sum(tap.user == user for tap in self._taps) >= MAX_TAPS_OF_ONE:
            raise Overloaded(
                f"{user} has {MAX_TAPS_OF_ONE} taps open, as many as one may", limit=MAX_TAPS_OF_ONE, retry_after_s=5.0
            )

    def _left(self, tap: Tap) -> None:
        self._taps.discard(tap)
        self._feeds.leave(tap)


def _away() -> NoWorker:
    return NoWorker("the bus is away: its broker does not answer; try again", retry_after_s=1)


async def _asked(request: RestRequest) -> Asked:
    """What the page asks. Raises UnsupportedMediaType for what a plain form could send too, BadRequest."""
    kind = request.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        said = kind.decode("latin-1")[:80]
        raise UnsupportedMediaType(
            f"the body is {said!r}; send JSON with 'Content-Type: application/json'", content_type=said
        )
    try:
        return _decode_asked(await request.body())
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        what = str(error).removeprefix("JSON is malformed: ")
        raise BadRequest(f"the body is not {{subject, body}}: {what}", field="body") from error


def _operation(subject: str) -> Operation:
    known = catalog.OPERATIONS.get(subject)
    if known is None:
        near = catalog.nearest(subject)
        hint = f"; is it {' or '.join(near)}?" if near else ""
        raise NotFound(f"no operation {subject!r}{hint}", subject=subject, nearest=near)
    return known


def _given(request: RestRequest) -> dict[str, list[str]]:
    """The query's values by name."""
    given: dict[str, list[str]] = {}
    for name, value in request.query:
        given.setdefault(name, []).append(value)
    return given


def _patterns(values: list[str], field: str) -> tuple[str, ...]:
    """Patterns, commas between them. Raises BadRequest for one that is none, and for too many."""
    named = [part.strip() for value in values for part in value.split(",") if part.strip()]
    found = tuple(dict.fromkeys(named))
    if len(found) > _PATTERNS:
        raise BadRequest(f"parameter {field!r} has {len(found)} patterns, allowed: up to {_PATTERNS}", field=field)
    return tuple(subjects.validate_pattern(pattern) for pattern in found)
