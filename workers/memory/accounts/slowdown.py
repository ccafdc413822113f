"""Slows down who guesses passwords or signs up in numbers: each further time doubles the wait, up to a minute.

Wrong passwords count per user and per source, sign-ups per source.

The owner is never shut out for good: the wait has an end, and a source from which the user signed in before answers
for its own mistakes only, so that a stranger's guesses do not slow it (the device cookies of the OWASP Authentication
Cheat Sheet, without a cookie). Counts live in the hot tier and run out by themselves.
"""

from __future__ import annotations

from typing import Final

from schemas.errors import QuotaExceeded
from workers.memory.clock import Now
from workers.memory.hot.tier import Spaces

# Wrong passwords without a wait: people mistype. A source serves many people.
FREE_PER_USER: Final = 3
FREE_PER_SOURCE: Final = 20

# Sign-ups of one source without a wait: a household, or the agents of a program.
FREE_SIGN_UPS: Final = 20

# Seconds of the first wait; doubled by each further wrong password or sign-up, up to the longest.
FIRST_WAIT_S: Final = 1.0
LONGEST_WAIT_S: Final = 60.0

# Seconds after the last wrong password or sign-up when they are forgotten.
FORGIVEN_S: Final = 900.0

# Seconds for which a source is known to be a user's after a sign-in.
KNOWN_S: Final = 30 * 86_400.0


def wait_after(failures: int, free: int) -> float:
    """Seconds until the next attempt after so many wrong passwords, or sign-ups, in a row."""
    if failures <= free:
        return 0.0
    return min(FIRST_WAIT_S * 2.0 ** min(failures - free - 1, 30), LONGEST_WAIT_S)


class SlowDown:
    """Counts wrong passwords and sign-ups and says when the next attempt may be made."""

    def __init__(self, tier: Spaces, now: Now) -> None:
        self._tier = tier
        self._now = now

    async def check(self, user: str, source: str) -> None:
        """Raise QuotaExceeded with `retry_after_s` while the user or the source has to wait."""
        wait_s = await self._wait(user, source)
        if wait_s > 0:
            raise QuotaExceeded(
                f"too many wrong passwords; the next attempt in {wait_s:.0f} s", retry_after_s=round(wait_s, 3)
            )

    async def begin(self, user: str, source: str) -> None:
        """Count an attempt as wrong before its outcome is known, so that many at once gain nothing."""
        is_known = await self._is_known(user, source)
        await self._count(_pair(user, source) if is_known else _user(user), FREE_PER_USER)

    async def failed(self, user: str, source: str) -> float:
        """The attempt was wrong, which counts against a stranger's source too; the seconds to wait now."""
        if not await self._is_known(user, source):
            await self._count(_source(source), FREE_PER_SOURCE)
        return max(await self._wait(user, source), 0.0)

    async def succeeded(self, user: str, source: str) -> None:
        """The attempt was right: take it back, and know the source.

        The source's own count stays, or signing in as oneself would buy guesses at others.
        """
        await self._tier.set("auth", _known(user, source), b"1", ttl_s=KNOWN_S)
        for key in (_user(user), _pair(user, source)):
            await self._forget(key)

    async def forgive(self, user: str) -> None:
        """An admin set a new password: strangers' guesses at the old one are nobody's wait any more."""
        await self._forget(_user(user))

    async def check_sign_up(self, source: str) -> None:
        """Raise QuotaExceeded with `retry_after_s` while nobody may sign up from the source."""
        wait_s = await self._wait_of(_sign_ups(source))
        if wait_s > 0:
            raise QuotaExceeded(
                f"too many sign-ups from {source!r}; the next one in {wait_s:.0f} s", retry_after_s=round(wait_s, 3)
            )

    async def begin_sign_up(self, source: str) -> None:
        """Count a sign-up, however it ends: trying names is no cheaper than getting one."""
        await self._count(_sign_ups(source), FREE_SIGN_UPS)

    async def _wait(self, user: str, source: str) -> float:
        if await self._is_known(user, source):
            return await self._wait_of(_pair(user, source))
        return max(await self._wait_of(_user(user)), await self._wait_of(_source(source)))

    async def _is_known(self, user: str, source: str) -> bool:
        return await self._tier.get("auth", _known(user, source)) is not None

    async def _wait_of(self, key: str) -> float:
        until = await self._tier.get("auth", f"until:{key}")
        return 0.0 if until is None else float(until) - self._now()

    async def _count(self, key: str, free: int) -> None:
        failures = await self._tier.increment("auth", f"failed:{key}", ttl_s=FORGIVEN_S)
        await self._tier.touch("auth", f"failed:{key}", ttl_s=FORGIVEN_S)
        wait_s = wait_after(failures, free)
        if wait_s:
            await self._tier.set("auth", f"until:{key}", repr(self._now() + wait_s).encode(), ttl_s=wait_s)

    async def _forget(self, key: str) -> None:
        await self._tier.delete("auth", f"failed:{key}")
        await self._tier.delete("auth", f"until:{key}")


# Users' names hold no slash, so no two of these are the same key.


def _user(user: str) -> str:
    return f"user/{user}"


def _source(source: str) -> str:
    return f"source/{source}"


def _sign_ups(source: str) -> str:
    return f"sign-ups/{source}"


def _pair(user: str, source: str) -> str:
    return f"pair/{user}/{source}"


def _known(user: str, source: str) -> str:
    return f"known:{user}/{source}"
