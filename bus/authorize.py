"""Whether a request may be served: whose token it carries, the scope and namespaces of that caller, and their rate.

Every worker asks here before its handlers when `auth.required` is set, so that the bus and every edge obey one rule.
What it does not guard: who may register as a worker, publish or subscribe. That takes the bus out of others' reach.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from bus.ratelimit import TokenBucket
from bus.settings import Settings
from bus.tokens import LocalToken
from schemas import catalog
from schemas.bodies.accounts import TokenState, Verify
from schemas.envelope import Headers
from schemas.errors import BusError, Forbidden, QuotaExceeded, Retryable, Unauthenticated

if TYPE_CHECKING:
    from bus.client import Client

Verifier = Callable[[str], Awaitable[TokenState]]

# Seconds for which a token is believed without asking again. A revocation is heard at once as `auth.revoked`; this
# bounds what a lost event costs.
KNOWN_S: Final = 30.0

# Callers remembered, at most. Only tokens that are good are, so nobody outside can fill this.
_KNOWN_MAX: Final = 10_000

# Seconds the memory service has to say whose a token is.
_ASK_S: Final = 5.0

# Seconds between two attempts to subscribe.
_RETRY_S: Final = 1.0

# Why a request is refused for who asks; the label of a metric, and so a closed set.
REFUSED: Final = ("missing", "invalid", "forbidden", "rate")


class Caller(msgspec.Struct, frozen=True):
    """Who sent a request. `rate_per_s` None: not limited."""

    user_id: str
    scopes: tuple[str, ...]
    namespaces: tuple[str, ...]
    rate_per_s: float | None = None

    @property
    def is_admin(self) -> bool:
        """True for who may do everything."""
        return "admin" in self.scopes

    def may(self, scope: str) -> bool:
        """True when the caller holds the scope itself, all of its service (`memory:*`), or `admin`."""
        return self.is_admin or scope in self.scopes or f"{scope.partition(':')[0]}:*" in self.scopes

    def may_touch(self, ns: str) -> bool:
        """True when a pattern of the caller's names the namespace, or its start with a trailing `*`."""
        return self.is_admin or any(
            ns.startswith(pattern[:-1]) if pattern.endswith("*") else ns == pattern for pattern in self.namespaces
        )

    @property
    def may_touch_all(self) -> bool:
        """True when no namespace is out of the caller's reach."""
        return self.is_admin or "*" in self.namespaces


# Memory operations that name no namespace because they answer everybody the same.
_SAME_FOR_ALL: Final = frozenset({"memory.tool.schemas"})

# Whoever holds the secret of this home (`bus.tokens`).
LOCAL: Final = Caller("local", ("admin",), ("*",))


class _Known(NamedTuple):
    caller: Caller
    until: float


class Authorizer:
    """Knows callers by their tokens. `verify` says whose a token is; without one the memory service is asked."""

    def __init__(self, settings: Settings, client: Client, *, now: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._now = now
        self._local = LocalToken(settings)
        self._verify: Verifier = self._ask
        self._known: dict[bytes, _Known] = {}
        self._asking: dict[bytes, asyncio.Task[Caller]] = {}
        self._buckets: dict[str, TokenBucket] = {}
        self._forgotten = 0

    def verify_with(self, verify: Verifier) -> None:
        """Ask this instead of the bus: the service that keeps the accounts."""
        self._verify = verify

    async def admit(self, subject: str, headers: Headers) -> Caller | None:
        """Who asks; None where the operation needs nobody. A subject the catalogue does not know takes any token.

        Raises Unauthenticated, Forbidden, QuotaExceeded, and Retryable where the token cannot be checked now.
        """
        operation = catalog.lookup(subject)
        scope = operation.scope if operation is not None else ""
        if operation is not None and not scope:
            return None
        token = headers.get("token")
        if not isinstance(token, str) or not token:
            raise Unauthenticated(f"{subject} needs a token: sign in first", scope=scope, reason="missing")
        caller = await self.whose(token)
        if scope and not caller.may(scope):
            raise Forbidden(
                f"{caller.user_id} may not use {subject}: it takes the scope {scope}",
                scope=scope,
                user_id=caller.user_id,
            )
        self._limit(caller)
        return caller

    async def whose(self, token: str) -> Caller:
        """The caller behind a token. Raises Unauthenticated with the reason, Retryable where nobody can say now."""
        encoded = token.encode(errors="replace")
        local = self._local.read()
        if local and hmac.compare_digest(encoded, local.encode()):
            return LOCAL
        digest = hashlib.sha256(encoded).digest()
        known = self._known.get(digest)
        if known is not None and known.until > self._now():
            return known.caller
        asking = self._asking.get(digest)
        if asking is None:
            asking = self._asking[digest] = asyncio.get_running_loop().create_task(self._find_out(digest, token))
            asking.add_done_callback(lambda asked: self._on_answer(digest, asked))
        # Shielded: others may wait for the same answer.
        return await asyncio.shield(asking)

    def forget(self) -> None:
        """Believe no token any more without asking."""
        self._known.clear()
        self._asking.clear()
        self._forgotten += 1

    async def listen(self) -> None:
        """Forget callers whenever tokens are revoked, until cancelled."""
        while True:
            try:
                async with self._client.subscribe("auth.revoked") as revocations:
                    self.forget()
                    async for _ in revocations:
                        self.forget()
            except (BusError, ConnectionError):
                await asyncio.sleep(_RETRY_S)

    async def _find_out(self, digest: bytes, token: str) -> Caller:
        forgotten = self._forgotten
        state = await self._verify(token)
        if not state.valid:
            raise Unauthenticated(f"the token is not accepted: {state.reason}", reason=state.reason)
        caller = Caller(state.user_id, tuple(state.scopes), tuple(state.namespaces), state.rate_per_s)
        # Not where tokens were revoked meanwhile: the answer may be from before.
        if forgotten == self._forgotten:
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            self._known[digest] = _Known(caller, self._now() + min(state.expires_in_s, KNOWN_S))
        return caller

    def _on_answer(self, digest: bytes, asked: asyncio.Task[Caller]) -> None:
        if self._asking.get(digest) is asked:
            del self._asking[digest]
        if not asked.cancelled():
            # Looked at, because everybody who asked may have gone.
            asked.exception()

    async def _ask(self, token: str) -> TokenState:
        try:
            state: TokenState = await self._client.request("auth.verify", Verify(token=token), timeout_s=_ASK_S)
        except Retryable as error:
            raise type(error)(f"the token cannot be checked now: {error.message}", **error.details) from error
        return state

    def _limit(self, caller: Caller) -> None:
        if caller.rate_per_s is None:
            return
        now = self._now()
        bucket = self._buckets.get(caller.user_id)
        if bucket is None:
            bucket = self._buckets[caller.user_id] = TokenBucket(now)
        wait_s = bucket.take(caller.rate_per_s, now)
        if wait_s:
            raise QuotaExceeded(
                f"{caller.user_id} may make {caller.rate_per_s:.0f} requests per second and has made them;"
                f" the next in {wait_s:.3f} s",
                user_id=caller.user_id,
                rate_per_s=caller.rate_per_s,
                retry_after_s=wait_s,
            )


def refusal_of(error: Unauthenticated | Forbidden | QuotaExceeded) -> str:
    """Which of REFUSED an error of `admit` or `check_namespaces` is."""
    if isinstance(error, Unauthenticated):
        return "missing" if error.details.get("reason") == "missing" else "invalid"
    return "forbidden" if isinstance(error, Forbidden) else "rate"


def check_namespaces(caller: Caller, subject: str, request: Any) -> None:
    """Raise Forbidden where a request reaches into a namespace that is not its caller's.

    The namespaces stand in `ns` and in fields that end in `_ns`. A memory operation without a namespace reaches all.
    """
    if caller.may_touch_all:
        return
    named = _namespaces_of(request)
    if not named and subject not in _SAME_FOR_ALL:
        operation = catalog.lookup(subject)
        if operation is not None and operation.scope.startswith("memory:"):
            named = [None]
    for ns in named:
        if ns is None:
            raise Forbidden(
                f"{caller.user_id} may not use {subject} on every namespace, only on {_listed(caller)}",
                user_id=caller.user_id,
                namespaces=list(caller.namespaces),
            )
        if not caller.may_touch(ns):
            raise Forbidden(
                f"{caller.user_id} may not use the namespace {ns!r}, only {_listed(caller)}",
                ns=ns,
                user_id=caller.user_id,
                namespaces=list(caller.namespaces),
            )


def _namespaces_of(request: Any) -> list[str | None]:
    """What a request names; None stands for every namespace."""
    named: list[str | None] = []
    for field in getattr(request, "__struct_fields__", ()):
        if field == "ns" or field.endswith("_ns"):
            value = getattr(request, field)
            if isinstance(value, (list, tuple)):
                named += value
            # Nil in `facts_ns` and the like leaves something out; in `ns` it leaves nothing out.
            elif value is not None or field == "ns":
                named.append(value)
    return named


def _listed(caller: Caller) -> str:
    return ", ".join(caller.namespaces) or "none"
