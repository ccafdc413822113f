"""One HTTP request as a route sees it: its parts are read when they are asked for, and checked then."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, Protocol
from urllib.parse import unquote_to_bytes

import msgspec

from bus import traceparent
from bus.client import Client
from bus.context import Asked
from schemas.errors import BadRequest, Cancelled, Overloaded, TooLarge, Unauthenticated
from workers.gateway.rest.response import Response, UnsupportedMediaType

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

# Longest wait for a reply that a caller may ask for, seconds: what the broker takes at its word.
MAX_TIMEOUT_S: Final = 86_400.0

# Characters of a token; a signed one has some hundreds, and the headers of a bus message end at 8 KiB.
_TOKEN_CHARACTERS: Final = 4096

# Characters of an Idempotency-Key, which is hashed and so may be anything.
_KEY_CHARACTERS: Final = 255

_ID: Final = re.compile(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


# A body of up to so many bytes always has room: those of all connections together are no more than a few large ones.
_SMALL_BODY_BYTES: Final = 64 * 1024


class BodyRoom:
    """Bytes of large request bodies that are held at once, for everybody together: nobody has signed in yet."""

    __slots__ = ("held_bytes", "limit_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0

    def take(self, size_bytes: int) -> None:
        """Raises Overloaded where there is no room."""
        if self.held_bytes + size_bytes > self.limit_bytes:
            raise Overloaded(
                f"{self.held_bytes} bytes of large bodies are held, the limit is {self.limit_bytes}", retry_after_s=1.0
            )
        self.held_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """They are held no more."""
        self.held_bytes -= size_bytes


class AnswersNatively(Protocol):
    """What a route of the catalogue answers to a request, with its own body or another."""

    def __call__(
        self, request: RestRequest, body: bytes | None, query: list[tuple[str, str]] | None
    ) -> Awaitable[Response]: ...


class RestRequest:
    """`path` is as it was sent, `template` and `params` are those of the route that matched it; names of `headers` are
    in lower case. `asked`: the request on the bus that it became, or the one that stands for it; None while there is none.
    """

    __slots__ = (
        "_body",
        "_held_bytes",
        "_native",
        "_receive",
        "_room",
        "_scope",
        "asked",
        "client",
        "headers",
        "max_body_bytes",
        "method",
        "params",
        "path",
        "service",
        "template",
    )

    def __init__(
        self, scope: Scope, receive: Receive, *, service: str, client: Client, max_body_bytes: int, room: BodyRoom
    ) -> None:
        self._scope = scope
        self._room = room
        self._held_bytes = 0
        self._receive = receive
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self._body: bytes | None = None
        self._native: AnswersNatively | None = None
        self.asked: Asked | None = None
        self.service = service
        self.client = client
        self.max_body_bytes = max_body_bytes
        self.method: str = scope["method"]
        self.path: str = scope["raw_path"].decode("ascii")
        self.template = ""
        self.params: dict[str, str] = {}

    def routed(self, template: str, params: dict[str, str], native: AnswersNatively | None) -> None:
        """Tell which route matched, and what the catalogue's own would answer."""
        self.template, self.params, self._native = template, params, native

    async def native(self, body: bytes | None = None, query: list[tuple[str, str]] | None = None) -> Response:
        """What the catalogue's own route answers to this request, or to one with another JSON body or another query.

        Raises what that route raises; RuntimeError where the catalogue has no such route.
        """
        if self._native is None:
            raise RuntimeError(f"the catalogue has no route for {self.method} {self.path}")
        return await self._native(self, body, query)

    # Head

    def header(self, name: str) -> str | None:
        """A header by its lower-case name."""
        value = self.headers.get(name.encode("latin-1"))
        return None if value is None else value.decode("latin-1")

    @property
    def query(self) -> list[tuple[str, str]]:
        """Parameters after the `?`, decoded, in their order. Raises BadRequest for what is not UTF-8."""
        text: bytes = self._scope["query_string"]
        if not text:
            return []
        pairs = (part.partition(b"=") for part in text.split(b"&") if part)
        return [(_plain(name), _plain(value)) for name, _, value in pairs]

    def query_one(self, name: str) -> str | None:
        """The last value of a query parameter."""
        return next((value for known, value in reversed(self.query) if known == name), None)

    @property
    def client_host(self) -> str:
        """The caller's address; empty where it is unknown."""
        client = self._scope.get("client")
        return str(client[0]) if client else ""

    @property
    def token(self) -> str | None:
        """The Bearer token. Raises Unauthenticated for another kind of Authorization."""
        sent = self.headers.get(b"authorization")
        if sent is None:
            return None
        scheme, _, token = sent.partition(b" ")
        token = token.strip()
        if scheme.lower() != b"bearer" or not token or len(token) > _TOKEN_CHARACTERS or not token.isascii():
            raise Unauthenticated(
                f"Authorization must be 'Bearer TOKEN' with a token of at most {_TOKEN_CHARACTERS} ASCII characters",
                header="authorization",
            )
        return token.decode("ascii")

    @property
    def timeout_s(self) -> float | None:
        """X-Timeout-S: how long the caller waits for the reply. Raises BadRequest when it is out of range."""
        sent = self.headers.get(b"x-timeout-s")
        if sent is None:
            return None
        text = sent.decode("latin-1")
        try:
            timeout_s = float(text)
        except ValueError:
            timeout_s = -1.0
        if not 0 < timeout_s <= MAX_TIMEOUT_S:
            raise BadRequest(
                f"header X-Timeout-S is {text[:40]!r}, allowed: above 0 to {MAX_TIMEOUT_S:g} seconds",
                field="X-Timeout-S",
            )
        return timeout_s

    @property
    def request_id(self) -> bytes | None:
        """Idempotency-Key as a request id: itself where it is one, else hashed together with the caller's token."""
        sent = self.headers.get(b"idempotency-key")
        if sent is None:
            return None
        text = sent.decode("latin-1").strip('"')
        if not 0 < len(text) <= _KEY_CHARACTERS:
            raise BadRequest(
                f"header Idempotency-Key has {len(text)} characters, allowed: 1 to {_KEY_CHARACTERS}",
                field="Idempotency-Key",
            )
        if _ID.fullmatch(text):
            return bytes.fromhex(text.replace("-", ""))
        # Of two callers with the same key each means a request of its own.
        token = self.token or ""
        return hashlib.blake2b(f"{token}\n{text}".encode(), digest_size=16).digest()

    def bus_headers(self) -> dict[str, Any]:
        """What travels on the bus with this request. Raises Unauthenticated as `token` does."""
        headers: dict[str, Any] = self.trace_headers() if b"traceparent" in self.headers else {}
        if b"authorization" in self.headers:
            headers["token"] = self.token
        return headers

    def trace_headers(self) -> dict[str, Any]:
        """The headers of W3C Trace Context that came with it, where they are such."""
        header = self.header("traceparent")
        if traceparent.parse(header) is None:
            return {}
        state = traceparent.passable_state(self.header("tracestate"))
        return {"traceparent": header} if state is None else {"traceparent": header, "tracestate": state}

    # Body

    @property
    def has_body(self) -> bool:
        """True when the head announces a body."""
        return self.headers.get(b"content-length", b"0").strip(b"0 ") != b"" or b"transfer-encoding" in self.headers

    @property
    def is_read(self) -> bool:
        """False while announced bytes may still come: the connection cannot be used for another request then."""
        return self._body is not None or not self.has_body

    async def body(self) -> bytes:
        """The whole body. Raises TooLarge, before it is read where its length is told; Cancelled when the caller left."""
        if self._body is None:
            self._body = await self._read() if self.has_body else b""
        return self._body

    async def _read(self) -> bytes:
        limit = self.max_body_bytes
        told = int(self.headers.get(b"content-length", b"0"))
        if told > limit:
            raise _too_large(told, limit)
        pieces: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                raise Cancelled("the caller hung up before the body was whole")
            piece = message.get("body", b"")
            size += len(piece)
            if size > limit:
                raise _too_large(size, limit)
            if size > _SMALL_BODY_BYTES:
                self._room.take(size - self._held_bytes)
                self._held_bytes = size
            pieces.append(piece)
            if not message.get("more_body", False):
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def end(self) -> None:
        """The request is answered: its body is held no more."""
        self._room.give_back(self._held_bytes)
        self._held_bytes = 0

    async def json_text(self) -> bytes:
        """The body of a request that has none or JSON. Raises UnsupportedMediaType for what says that it is another."""
        if not self.has_body:
            return b""
        told = self.headers.get(b"content-type", b"")
        kind = told.partition(b";")[0].strip().lower()
        # What curl says of every -d, of itself; a form never begins like a JSON object, and browsers name their origin.
        is_curl = kind == b"application/x-www-form-urlencoded" and (await self.body()).lstrip()[:1] in (
            b"{",
            b"[",
            b'"',
        )
        if kind and kind != b"application/json" and not kind.endswith(b"+json") and not is_curl:
            raise UnsupportedMediaType(
                f"the body is {kind.decode('latin-1')[:80]!r}; send JSON with 'Content-Type: application/json'",
                content_type=kind.decode("latin-1")[:80],
            )
        return await self.body()

    async def json(self) -> Any:
        """The body's value. Raises BadRequest for what is not JSON, and as `json_text` and `body` do."""
        text = await self.json_text()
        if not text:
            raise BadRequest("the body is empty, it must be JSON", field="body")
        try:
            return msgspec.json.decode(text)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest(f"the body is not JSON: {error}", field="body") from error


def _too_large(size: int, limit: int) -> TooLarge:
    return TooLarge(f"the body has {size} bytes or more, the limit is {limit}", size_bytes=size, limit_bytes=limit)


def _plain(text: bytes) -> str:
    try:
        return unquote_to_bytes(text.replace(b"+", b" ")).decode()
    except UnicodeDecodeError as error:
        raise BadRequest(
            f"query parameter {text[:80]!r} is not UTF-8 once its %-escapes are read", field="query"
        ) from error
