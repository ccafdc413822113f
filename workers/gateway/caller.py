"""Whose requests the legacy ports make: their clients cannot sign in, so one account stands for all of them."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from bus.client import Client
from schemas.bodies.accounts import TokenIssue, Tokens
from schemas.envelope import Headers
from schemas.errors import BusError

# Seconds a token is issued for, and before its end at which the next is fetched.
_TTL_S: Final = 3600.0
_EARLY_S: Final = 300.0

# Seconds the memory service has to issue one, and before it is asked again when it did not.
_ASK_S: Final = 5.0
_AGAIN_S: Final = 1.0


class StandIn:
    """Tokens for `user`, issued on the word of this home's own secret and renewed in time."""

    def __init__(self, client: Client, user: str) -> None:
        self._client = client
        self._user = user
        self._headers: Headers | None = None
        self._renew_at = float("-inf")
        # Why there is no token, until it is asked for again.
        self._refusal: BusError | None = None
        self._asking: asyncio.Task[None] | None = None

    async def headers(self) -> Headers | None:
        """Headers of a request made for the user. Raises BusError where there is no token yet and none is to be had."""
        if time.monotonic() < self._renew_at and self._refusal is not None:
            raise self._refusal
        if time.monotonic() >= self._renew_at:
            if self._asking is None or self._asking.done():
                self._asking = asyncio.ensure_future(self._renew())
            if self._headers is None:
                # Shielded: others may wait for the same token.
                await asyncio.shield(self._asking)
        return self._headers

    def forget(self) -> None:
        """The token was not accepted: the next request waits for another."""
        self._headers, self._refusal, self._renew_at = None, None, float("-inf")

    async def _renew(self) -> None:
        try:
            issued: Tokens = await self._client.request(
                "auth.issue", TokenIssue(user_id=self._user, ttl_s=_TTL_S), timeout_s=_ASK_S
            )
        except BusError as error:
            self._renew_at = time.monotonic() + _AGAIN_S
            if self._headers is None:
                self._refusal = type(error)(
                    f"no token for legacy.user {self._user!r}: {error.message}", **error.details
                )
                raise self._refusal from error
            return
        self._refusal = None
        self._headers = {"token": issued.access_token}
        self._renew_at = time.monotonic() + max(issued.expires_in_s - _EARLY_S, issued.expires_in_s / 2)
