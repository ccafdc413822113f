"""HTTP as pulls need it: redirects that lose no safety, keys for one origin alone, and faults told apart by what helps.

It knows neither models nor files. httpx is imported when the first pull begins: the service that waits for one is small.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urljoin, urlsplit

import msgspec
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from bus.version import VERSION
from schemas.errors import BadRequest, BusError, Forbidden, Internal, NotFound, QuotaExceeded, Unprocessable
from workers.models.retry_after import retry_after_s

if TYPE_CHECKING:
    import httpx

# Hubs answer with two or three; more is a loop.
_MAX_REDIRECTS: Final = 10

# Seconds to a connection, and between two pieces of an answer. A line that is silent for longer is taken for dead; what
# came of the file is kept.
_CONNECT_S: Final = 10.0
_SILENCE_S: Final = 30.0

# Bytes of an index at most: the largest repositories list some thousand files, 300 bytes each.
_MAX_INDEX_BYTES: Final = 16 * 1024 * 1024

# Seconds a server may ask us to wait. Past that the caller is told instead.
_MAX_RETRY_AFTER_S: Final = 300.0

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_WORTH_ANOTHER_TRY: Final = frozenset({408, 425, 429})


class Trouble(Exception):
    """Something that may be over the next time. `error`: what the caller is told when it is not."""

    def __init__(self, error: BusError, retry_after_s: float | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.retry_after_s = retry_after_s


class Unreachable(Exception):
    """No server could be reached before anything was heard from one: this machine is probably offline."""


class Patience(msgspec.Struct, frozen=True):
    """How often to try again. attempts: in a row without a byte more. first_s, longest_s: bounds of the growing wait."""

    attempts: int = 8
    first_s: float = 0.5
    longest_s: float = 30.0

    def retrying(self, progress: Callable[[], int]) -> AsyncRetrying:
        """Tries again after Trouble, with full jitter, for as long as `progress()` grows between failures."""
        state = _Failures(self, progress)
        return AsyncRetrying(
            retry=retry_if_exception_type(Trouble), stop=state.is_enough, wait=state.wait_s, reraise=True
        )


class _Failures:
    """Counts the failures since more came than ever before: a server that always breaks off ends the tries, wherever."""

    def __init__(self, patience: Patience, progress: Callable[[], int]) -> None:
        self._patience = patience
        self._progress = progress
        self._most = progress()
        self._in_a_row = 0
        self._counted = 0

    def is_enough(self, state: RetryCallState) -> bool:
        self._count(state)
        return self._in_a_row >= self._patience.attempts or (_retry_after_s(state) or 0.0) > _MAX_RETRY_AFTER_S

    def wait_s(self, state: RetryCallState) -> float:
        self._count(state)
        longest = min(self._patience.longest_s, self._patience.first_s * 2.0 ** (self._in_a_row - 1))
        # Full jitter: many who were cut off by one restart do not come back at one instant.
        return max(random.uniform(0.0, longest), _retry_after_s(state) or 0.0)

    def _count(self, state: RetryCallState) -> None:
        """Once for each attempt: tenacity asks how long to wait also before it asks whether to go on."""
        if state.attempt_number == self._counted:
            return
        self._counted = state.attempt_number
        has = self._progress()
        self._in_a_row = 1 if has > self._most else self._in_a_row + 1
        self._most = max(self._most, has)


def _retry_after_s(state: RetryCallState) -> float | None:
    error = state.outcome.exception() if state.outcome is not None else None
    return error.retry_after_s if isinstance(error, Trouble) else None


class Web:
    """An HTTP client for one pull.

    keys: origin ("https://host:port") -> bearer token. A token goes to its own origin and, by redirects, nowhere else.
    """

    def __init__(self, keys: Mapping[str, str], patience: Patience) -> None:
        import httpx

        self.patience = patience
        self._keys = keys
        self._client = httpx.AsyncClient(
            follow_redirects=False,
            timeout=httpx.Timeout(_SILENCE_S, connect=_CONNECT_S),
            # Sizes and ranges are those of the file, so nothing may compress it on the way.
            headers={"user-agent": f"olympus/{VERSION}", "accept-encoding": "identity"},
        )
        self._has_heard = False

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    @asynccontextmanager
    async def get(self, url: str, headers: Mapping[str, str] | None = None) -> AsyncIterator[httpx.Response]:
        """The answer to a GET, its body not read yet, after redirects.

        Raises Trouble for what may pass, Unreachable, and a BusError for what stays: a redirect from https to http, too
        many of them, a URL that is none.
        """
        import httpx

        try:
            response = await self._follow(url, headers or {})
            try:
                yield response
            finally:
                await response.aclose()
        except httpx.ConnectError as error:
            if not self._has_heard:
                raise Unreachable(f"{_host(url)} cannot be reached ({error})") from error
            raise Trouble(Internal(f"{_host(url)} cannot be reached ({error})")) from error
        except httpx.TransportError as error:
            why = str(error) or type(error).__name__
            if isinstance(error, httpx.ConnectTimeout) and not self._has_heard:
                raise Unreachable(f"{_host(url)} did not answer within {_CONNECT_S:g} s") from error
            if isinstance(error, httpx.UnsupportedProtocol):
                raise Unprocessable(f"{_host(url)} leads to something that is neither http nor https") from error
            raise Trouble(Internal(f"the connection to {_host(url)} broke ({why})")) from error
        except httpx.InvalidURL as error:
            raise BadRequest(f"source is no URL: {error}", field="source") from error

    async def json(self, url: str, what: str, type: Any, headers: Mapping[str, str] | None = None) -> Any:
        """The JSON document at `url`, tried again while that helps. Raises a BusError, Unreachable."""
        try:
            async for attempt in self.patience.retrying(lambda: 0):
                with attempt:
                    return await self._json(url, what, type, headers)
        except Trouble as trouble:
            raise trouble.error from trouble
        raise AssertionError("tenacity ends with a result or an error")

    async def _json(self, url: str, what: str, type: Any, headers: Mapping[str, str] | None) -> Any:
        async with self.get(url, headers) as response:
            check_status(response, what)
            body = bytearray()
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > _MAX_INDEX_BYTES:
                    raise Unprocessable(f"{what}: {_host(url)} answers with more than {_MAX_INDEX_BYTES} bytes")
        try:
            return msgspec.json.decode(body, type=type)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Unprocessable(f"{what}: {_host(url)} answers with something else than expected: {error}") from error

    async def _follow(self, url: str, headers: Mapping[str, str]) -> httpx.Response:
        for _ in range(_MAX_REDIRECTS):
            sent = dict(headers)
            key = self._keys.get(origin(url))
            if key:
                sent["authorization"] = f"Bearer {key}"
            response = await self._client.send(self._client.build_request("GET", url, headers=sent), stream=True)
            self._has_heard = True
            location = response.headers.get("location")
            if response.status_code not in _REDIRECTS or not location:
                return response
            await response.aclose()
            target = _joined(url, location)
            if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
                raise Unprocessable(
                    f"{_host(url)} redirects to {_host(target)} without encryption, which is refused: anybody on the way"
                    " could replace the model"
                )
            url = target
        raise Unprocessable(f"{_host(url)} redirects more than {_MAX_REDIRECTS} times")


def check_status(response: httpx.Response, what: str) -> None:
    """Raises Trouble or a BusError unless the answer has a body that was asked for."""
    status = response.status_code
    host = response.url.host
    if status in (200, 206):
        encoding = response.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise Unprocessable(f"{what}: {host} sends it {encoding}-compressed, though that was not asked for")
        return
    details = {"status": status, "host": host}
    if status in (401, 403):
        raise Forbidden(
            f"{what}: {host} refuses access ({status}). It may not exist, or be for those only who accepted its terms;"
            " for a hub's private and gated models put your token into HF_TOKEN where the model service runs",
            **details,
        )
    if status in (404, 410):
        raise NotFound(f"{what}: {host} does not have it ({status})", **details)
    if status == 429:
        raise Trouble(
            QuotaExceeded(f"{what}: {host} allows no more requests for now ({status})", **details),
            retry_after_s(response.headers.get("retry-after"), time.time()),
        )
    if status >= 500 or status in _WORTH_ANOTHER_TRY:
        raise Trouble(
            Internal(f"{what}: {host} failed ({status})", **details),
            retry_after_s(response.headers.get("retry-after"), time.time()),
        )
    raise Unprocessable(f"{what}: {host} answers with status {status}", **details)


def origin(url: str) -> str:
    """Scheme, host and port of a URL: what a token is for."""
    parts = urlsplit(url)
    port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)
    return f"{parts.scheme}://{parts.hostname}:{port}"


def _joined(url: str, location: str) -> str:
    try:
        target = urljoin(url, location)
        # Reads host and port, which checks them.
        origin(target)
    except ValueError as error:
        raise Unprocessable(f"{_host(url)} redirects to {location[:120]!r}, which is no URL: {error}") from error
    return target


def _host(url: str) -> str:
    return urlsplit(url).hostname or "the server"
