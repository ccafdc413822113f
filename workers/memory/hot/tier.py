"""What a hot tier is: four spaces of short-lived bytes by key. Nothing durable lives here; knows no engine."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Literal, NamedTuple, Protocol, get_args

from schemas.errors import BadRequest, TooLarge

Space = Literal["cache", "sessions", "knowledge", "auth"]

# In the order of their Redis databases 0 to 3, which programs beside this one know.
SPACES: Final[tuple[Space, ...]] = get_args(Space)

# UTF-8 bytes of a key: 1,024 characters of four bytes, a namespace, a type and a generation fit.
MAX_KEY_BYTES: Final = 8_192

# Bytes of a value: over a network of 1 Gbit/s it takes a seventh of a second, well within the time of one request.
MAX_VALUE_BYTES: Final = 16 * 1024 * 1024

# Ten years, as for every time to live on the wire.
MAX_TTL_S: Final = 10 * 366 * 86_400.0


# What `increment` says of a value that is something else; the key is not named, as tiers put something before it.
NO_NUMBER: Final = "the value at this key is not a whole number, so it cannot be incremented"

# Hears, once per outage and in words for people, that the engine asked for cannot be used.
OnLost = Callable[[str], None]


class Entry(NamedTuple):
    """A value and the seconds it still has, None for one without an end."""

    value: bytes
    ttl_s: float | None


class Size(NamedTuple):
    """How much is stored: entries, and bytes of their keys and values."""

    keys: int
    size_bytes: int


class SpaceStats(NamedTuple):
    """One space: what is stored, and the reads since the tier was opened that found their key or did not."""

    keys: int
    size_bytes: int
    hits: int
    misses: int


class TierState(NamedTuple):
    """`engine` holds the entries now: "sqlite" or "redis"; `degraded` is why that is not as configured, or None."""

    engine: str
    degraded: str | None


class TierUnavailable(Exception):
    """The engine behind a tier cannot be used now; the message says why and holds no secret."""


class Spaces(Protocol):
    """The four spaces on one engine. Keys are text, values bytes, times to live seconds; None means without an end.

    Every method raises BadRequest for a key or time out of range. A key that has expired is absent at once. Prefixes
    are plain text: no character in them is special.
    """

    async def get(self, space: Space, key: str) -> bytes | None:
        """The value, None when absent."""
        ...

    async def look(self, space: Space, key: str) -> Entry | None:
        """The value with the time it has left."""
        ...

    async def set(self, space: Space, key: str, value: bytes, *, ttl_s: float | None) -> None:
        """Store the value, whatever was there. Raises TooLarge."""
        ...

    async def delete(self, space: Space, key: str) -> bool:
        """Remove the key; True when it was there."""
        ...

    async def delete_prefix(self, space: Space, *prefixes: str) -> int:
        """Remove every key that starts with one of them; how many those were."""
        ...

    async def increment(self, space: Space, key: str, *, ttl_s: float | None) -> int:
        """Add one and return the sum, at once; a key that is absent starts at 0 and gets `ttl_s`, one that is there
        keeps its own. Raises Conflict for a value that is not a whole number."""
        ...

    async def touch(self, space: Space, key: str, *, ttl_s: float) -> bool:
        """Give the key `ttl_s` from now; False when it is absent."""
        ...

    async def measure(self, space: Space, *prefixes: str) -> Size:
        """What is stored under any of the prefixes. Looks at each of those keys."""
        ...

    async def close(self) -> None:
        """Let go of the engine."""
        ...


class HotTier(Spaces, Protocol):
    """The spaces as the rest of the memory uses them: always there, whatever happens to an engine behind them."""

    def state(self) -> TierState:
        """Where the entries are now, and whether that is as configured."""
        ...

    def families(self) -> list[str]:
        """What the keys written to the cache start with, each up to its first colon."""
        ...

    async def stats(self, space: Space, *prefixes: str) -> SpaceStats:
        """What is stored under the prefixes, with the hits and misses of the whole space."""
        ...

    async def tend_forever(self) -> None:
        """The tier's upkeep, until cancelled; it must run as long as the tier is used."""
        ...


class Tally:
    """Hits and misses of each space."""

    def __init__(self) -> None:
        self.hits = dict.fromkeys(SPACES, 0)
        self.misses = dict.fromkeys(SPACES, 0)

    def count(self, space: Space, is_hit: bool) -> None:
        """One read."""
        if is_hit:
            self.hits[space] += 1
        else:
            self.misses[space] += 1

    def stats(self, space: Space, size: Size) -> SpaceStats:
        """The counts beside what is stored."""
        return SpaceStats(size.keys, size.size_bytes, self.hits[space], self.misses[space])


def key_bytes(key: str, limit_bytes: int = MAX_KEY_BYTES) -> bytes:
    """The key as engines store it. Raises BadRequest when it is empty, too long or not text."""
    try:
        packed = key.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"key is not text: a lone surrogate at character {error.start}", field="key") from error
    if not 0 < len(packed) <= limit_bytes:
        raise BadRequest(
            f"key has {len(packed)} bytes, allowed are 1 to {limit_bytes}",
            field="key",
            size_bytes=len(packed),
            limit_bytes=limit_bytes,
        )
    return packed


def prefix_bytes(prefix: str) -> bytes:
    """A prefix as engines compare it; the empty one fits every key. Raises BadRequest as `key_bytes` does."""
    return key_bytes(prefix) if prefix else b""


def ttl_ms(ttl_s: float) -> int:
    """Whole milliseconds, one at least. Raises BadRequest outside of 0 (excluded) to MAX_TTL_S."""
    if not 0 < ttl_s <= MAX_TTL_S:
        raise BadRequest(
            f"ttl_s = {ttl_s:g} is not allowed; allowed: above 0 to {MAX_TTL_S:.0f} seconds",
            field="ttl_s",
            ttl_s=ttl_s,
            limit_s=MAX_TTL_S,
        )
    return math.ceil(ttl_s * 1000)


def check_size(value: bytes, limit_bytes: int) -> None:
    """Raises TooLarge past the limit."""
    if len(value) > limit_bytes:
        raise TooLarge(
            f"value has {len(value)} bytes, the hot tier takes {limit_bytes}",
            field="value",
            size_bytes=len(value),
            limit_bytes=limit_bytes,
        )


def family_of(key: str) -> str:
    """What the key shares with its kin: everything up to and with its first colon, or the whole key."""
    head, colon, _ = key.partition(":")
    return head + colon
