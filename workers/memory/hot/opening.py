"""The hot tier that the settings ask for."""

from __future__ import annotations

from functools import partial
from typing import Final

from bus.settings import Settings, SettingsError
from workers.memory.clock import Now
from workers.memory.hot.cache import TTL_BY_TYPE_S
from workers.memory.hot.sqlite_tier import SqliteTier
from workers.memory.hot.tier import HotTier, OnLost

# The file beside the records, in the folder of `memory.path`.
FILE_NAME: Final = "hot.db"


async def open_hot_tier(settings: Settings, *, now: Now, on_lost: OnLost) -> HotTier:
    """Redis where `memory.redis_url` names one, else SQLite alone.

    `on_lost` hears that a Redis cannot be used. Raises SettingsError where the package for it is missing or
    the address has arguments that mean nothing, UnusableDatabase where no file can be made.
    """
    if settings.memory.redis_url:
        return await _with_redis(settings, now, on_lost)
    tier = await _sqlite(settings, now)
    # A Redis that was configured before, and will be again, misses what is written now.
    await tier.begin_outage()
    return tier


async def _sqlite(settings: Settings, now: Now) -> SqliteTier:
    return await SqliteTier.open(
        settings.path(settings.memory.path).with_name(FILE_NAME),
        max_bytes=settings.memory.cache_max_bytes,
        now=now,
        usual_families=[f"{kind}:" for kind in TTL_BY_TYPE_S],
    )


async def _with_redis(settings: Settings, now: Now, on_lost: OnLost) -> HotTier:
    try:
        from workers.memory.hot.failover import FailoverTier
        from workers.memory.hot.redis_tier import RedisTier
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"memory.redis_url is set, but the package {error.name} is missing: install the extra `search`, or leave"
            " memory.redis_url empty to keep the hot tier on SQLite"
        ) from error
    connect = partial(RedisTier.open, settings.memory.redis_url, settings.memory.redis_timeout_s)
    try:
        return await FailoverTier.open(await _sqlite(settings, now), connect, on_lost=on_lost, now=now)
    except (TypeError, ValueError) as error:
        # What the library says of an argument behind the `?` that it does not know.
        raise SettingsError(f"memory.redis_url cannot be used: {error}") from error
