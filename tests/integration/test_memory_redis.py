"""Redis lost and found at run time: nobody waits, nothing stale comes back, and it is told."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bus.client import Client
from bus.settings import Settings, load_settings
from schemas.bodies.memory import CacheFlush, CacheGet, CacheSet, CacheStats
from tests.redis_process import RedisProcess, until, values_of
from workers.memory.clock import SteadyClock
from workers.memory.hot.cache import Cache
from workers.memory.hot.opening import FILE_NAME, open_hot_tier
from workers.memory.hot.tier import SPACES, HotTier, Space
from workers.memory.service import service

redis = pytest.importorskip("redis.asyncio", reason="the package redis is not installed")
from workers.memory.hot.redis_tier import RedisTier  # noqa: E402 - needs the package

Serve = Callable[..., AbstractAsyncContextManager[Settings]]

TIMEOUT_S = 0.3


class Opened:
    """A tier on a server, with what it told of losses."""

    def __init__(self, tier: HotTier, told: list[str]) -> None:
        self.tier = tier
        self.told = told

    async def until_joined(self) -> None:
        """Wait until Redis is in use."""
        await until(lambda: self.tier.state().engine == "redis", "the tier on Redis")


@asynccontextmanager
async def opened(home: Path, url: str, **changes: Any) -> AsyncIterator[Opened]:
    """A tier with its upkeep running, closed at the end."""
    overrides = {"home": str(home), "memory.redis_url": url, "memory.redis_timeout_s": TIMEOUT_S, **changes}
    told: list[str] = []
    tier = await open_hot_tier(load_settings(overrides=overrides), now=SteadyClock(), on_lost=told.append)
    tending = asyncio.create_task(tier.tend_forever())
    try:
        yield Opened(tier, told)
    finally:
        tending.cancel()
        with suppress(asyncio.CancelledError):
            await tending
        await tier.close()


@asynccontextmanager
async def looking_at(server: RedisProcess, database: int) -> AsyncIterator[Any]:
    """A client as another program would use one."""
    async with redis.Redis(unix_socket_path=str(server.socket), db=database) as client:
        yield client


async def lose(opened_tier: Opened, server: RedisProcess) -> None:
    """Kill the server and let the tier notice."""
    server.kill()
    await opened_tier.tier.get("cache", "anything")
    assert opened_tier.tier.state().engine == "sqlite"


# Losing and finding ---------------------------------------------------------------------------------------------------


async def test_killed_server_costs_no_request_and_is_told_once(tmp_path: Path) -> None:
    """Every request of every kind is answered while it is away; health and the callback say why."""
    with RedisProcess() as server:
        async with opened(tmp_path, server.url) as it:
            await it.tier.set("cache", "a:1", b"1", ttl_s=60)
            server.kill()

            results = await asyncio.gather(*(it.tier.set("cache", f"a:{n}", b"2", ttl_s=60) for n in range(50)))

            assert results == [None] * 50
            assert await values_of(it.tier, "cache", [f"a:{n}" for n in range(50)]) == [b"2"] * 50
            assert it.tier.state().degraded is not None
            assert "Redis cannot be used" in it.tier.state().degraded
            await until(lambda: it.told, "the loss was told")
            assert len(it.told) == 1
            assert "hot tier is on SQLite" in it.told[0]

            server.start()
            await it.until_joined()
            assert it.tier.state().degraded is None
            assert len(it.told) == 1


async def test_server_that_hangs_delays_no_request_by_more_than_one_timeout(tmp_path: Path) -> None:
    """Requests under way move over together, later ones do not wait at all; while the kernel still accepts."""
    with RedisProcess() as server:
        async with opened(tmp_path, server.url) as it:
            await it.tier.set("cache", "a:1", b"1", ttl_s=60)
            server.pause()
            loop = asyncio.get_running_loop()
            began = loop.time()
            async with asyncio.timeout(TIMEOUT_S * 10):
                await asyncio.gather(*(it.tier.set("cache", f"a:{n}", b"2", ttl_s=60) for n in range(100)))
                await asyncio.gather(*(it.tier.increment("auth", "n", ttl_s=60) for n in range(100)))
            assert loop.time() - began > TIMEOUT_S * 0.9
            assert it.tier.state().engine == "sqlite"

            server.resume()
            await it.until_joined()
            assert await it.tier.get("cache", "a:99") == b"2"
            assert await it.tier.get("auth", "n") == b"100"


async def test_idle_loss_is_noticed_without_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Health tells the truth although nobody asks for anything."""
    monkeypatch.setattr("workers.memory.hot.failover.IDLE_CHECK_S", 0.02)
    with RedisProcess() as server:
        async with opened(tmp_path, server.url) as it:
            server.kill()

            await until(lambda: it.told, "the loss was told")


async def test_service_starts_without_its_server_and_joins_it_later(tmp_path: Path) -> None:
    """What was written meanwhile is there afterwards, and other programs see it."""
    with RedisProcess() as server:
        server.kill()
        async with opened(tmp_path, server.url) as it:
            assert it.tier.state().engine == "sqlite"
            await it.tier.set("cache", "tool_responses:1", b'{"a":1}', ttl_s=60)
            server.start()
            await it.until_joined()

            assert await it.tier.get("cache", "tool_responses:1") == b'{"a":1}'
            async with looking_at(server, 0) as client:
                assert await client.get("tool_responses:1") == b'{"a":1}'
                assert 50_000 < await client.pttl("tool_responses:1") <= 60_000


async def test_server_that_takes_no_writes_is_not_used(tmp_path: Path) -> None:
    """A full server would refuse invalidations one day; reads alone do not make it usable."""
    with RedisProcess() as server:
        async with opened(tmp_path, server.url) as it, looking_at(server, 0) as client:
            await client.config_set("maxmemory", "1")

            await it.tier.set("cache", "a:1", b"1", ttl_s=60)

            assert it.tier.state().engine == "sqlite"
            assert it.tier.state().degraded is not None
            assert "maxmemory" in it.tier.state().degraded
            await client.config_set("maxmemory", "0")
            await it.until_joined()
            assert await it.tier.get("cache", "a:1") == b"1"


async def test_server_with_too_few_databases_is_named_as_the_reason(tmp_path: Path) -> None:
    """Its own words reach the operator."""
    with RedisProcess("--databases", "2") as server:
        async with opened(tmp_path, server.url) as it:
            assert it.tier.state().degraded is not None
            assert "DB index is out of range" in it.tier.state().degraded


async def test_password_is_used_and_never_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With the right one it works; with a wrong one the reason says so without it."""
    with RedisProcess("--requirepass", "s3cret-right") as server:
        async with opened(tmp_path, f"{server.url}?password=s3cret-right") as it:
            assert it.tier.state().engine == "redis"
        async with opened(tmp_path, f"{server.url}?password=s3cret-wrong") as it:
            assert it.tier.state().degraded is not None
            assert "password" in it.tier.state().degraded
            await until(lambda: it.told, "the loss was told")
            assert "s3cret" not in it.tier.state().degraded + it.told[0] + caplog.text
            assert "s3cret" not in repr([vars(record) for record in caplog.records])


async def test_broken_connections_alone_are_no_loss(tmp_path: Path) -> None:
    """A server that closed idle connections is asked again."""
    with RedisProcess() as server:
        async with opened(tmp_path, server.url) as it, looking_at(server, 0) as client:
            for _ in range(5):
                await it.tier.set("cache", "a:1", b"1", ttl_s=60)
                await client.client_kill_filter(_type="normal", skipme=True)

                assert await it.tier.get("cache", "a:1") == b"1"

            assert it.told == []


async def test_loss_is_published_and_shown_over_the_bus(serve_broker: Serve) -> None:
    """The cache answers throughout; the warning, the figures and the health say where it is."""
    with RedisProcess() as server:
        async with serve_broker() as found:
            settings = msgspec.structs.replace(
                found, memory=msgspec.structs.replace(found.memory, redis_url=server.url, redis_timeout_s=TIMEOUT_S)
            )
            async with (
                service(settings) as worker,
                Client(settings, name="test") as client,
                client.subscribe("error.memory.*") as warnings,
            ):
                await worker.start(10)
                await client.request("memory.cache.set", CacheSet(key="k", value=[1, None], type="tool_responses"))
                async with looking_at(server, 0) as other:
                    assert await other.get("tool_responses:k") == b"[1,null]"
                    assert (await client.request("memory.cache.stats", CacheStats())).tier == "redis"
                server.kill()

                await client.request("memory.cache.set", CacheSet(key="k", value=2, type="tool_responses"))
                entry = await client.request("memory.cache.get", CacheGet(key="k", type="tool_responses"))
                figures = await client.request("memory.cache.stats", CacheStats())
                stats = await client.request("memory.stats")
                async with asyncio.timeout(10):
                    warning = await anext(aiter(warnings))

                assert (entry.hit, entry.value, figures.tier, stats.hot_tier) == (True, 2, "sqlite", "sqlite")
                assert any("Redis cannot be used" in reason for reason in stats.degraded)
                assert warning.subject == "error.memory.warning"
                assert "hot tier is on SQLite: Redis cannot be used" in warning.body["message"]
                await worker.stop()


# Nothing stale ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["paused", "restarted with its old state"])
async def test_what_was_dropped_or_replaced_meanwhile_stays_so(tmp_path: Path, how: str) -> None:
    """Deletes, prefix deletes and replacements of an outage hold after it, in every space."""
    with RedisProcess(persistent=True) as server:
        async with opened(tmp_path, server.url) as it:
            for space in SPACES:
                for name in ("deleted", "flushed:1", "replaced", "kept"):
                    await it.tier.set(space, f"t:{name}", b"old", ttl_s=600)
            async with looking_at(server, 0) as client:
                await client.save()
            if how == "paused":
                server.pause()
            else:
                server.kill()
            for space in SPACES:
                await it.tier.delete(space, "t:deleted")
                await it.tier.delete_prefix(space, "t:flushed")
                await it.tier.set(space, "t:replaced", b"new", ttl_s=600)
            if how == "paused":
                server.resume()
            else:
                server.start()
            await it.until_joined()

            for space in SPACES:
                found = await values_of(it.tier, space, ["t:deleted", "t:flushed:1", "t:replaced"])
                assert found == [None, None, b"new"]
            assert await it.tier.get("auth", "t:kept") == b"old"
            assert await it.tier.get("sessions", "t:kept") is None


async def test_restart_with_an_old_state_is_noticed_although_nobody_asked_meanwhile(tmp_path: Path) -> None:
    """The server forgot a delete; what the service then reads is not what was deleted."""
    with RedisProcess(persistent=True) as server:
        async with opened(tmp_path, server.url) as it:
            for space in SPACES:
                await it.tier.set(space, "t:1", b"old", ttl_s=600)
            async with looking_at(server, 0) as client:
                await client.save()
            for space in SPACES:
                await it.tier.delete(space, "t:1")
            server.kill()
            server.start()

            assert [await it.tier.get(space, "t:1") for space in SPACES] == [None] * 4
            await it.until_joined()
            assert [await it.tier.get(space, "t:1") for space in SPACES] == [None] * 4
            await until(lambda: it.told, "the loss was told")


async def test_request_given_up_on_is_not_carried_out_later(tmp_path: Path) -> None:
    """A value that waited in the buffers of a hanging server does not come back after it was deleted."""
    with RedisProcess() as server:
        async with opened(tmp_path, server.url) as it:
            await it.tier.set("cache", "big:1", b"0", ttl_s=600)
            server.pause()
            await asyncio.gather(
                *(it.tier.set("cache", f"big:{number}", b"x" * 2_000_000, ttl_s=600) for number in range(6))
            )
            for number in range(6):
                await it.tier.delete("cache", f"big:{number}")
            server.resume()
            await it.until_joined()

            async with looking_at(server, 0) as client:
                for _ in range(50):
                    assert await client.keys("big:*") == []


async def test_outage_is_remembered_by_the_next_process(tmp_path: Path) -> None:
    """A service that ends while Redis is away leaves nothing stale to the one after it."""
    with RedisProcess(persistent=True) as server:
        async with opened(tmp_path, server.url) as it:
            await it.tier.set("cache", "t:1", b"old", ttl_s=600)
            await it.tier.set("cache", "t:2", b"old", ttl_s=600)
            await it.tier.set("auth", "count", b"5", ttl_s=600)
            server.pause()
            await it.tier.delete("cache", "t:1")
            await it.tier.set("cache", "t:2", b"new", ttl_s=600)
            await it.tier.increment("auth", "count", ttl_s=600)
        server.resume()

        async with opened(tmp_path, server.url) as it:
            await it.until_joined()
            assert await values_of(it.tier, "cache", ["t:1", "t:2"]) == [None, b"new"]
            assert await it.tier.get("auth", "count") == b"6"


async def test_lost_file_of_an_outage_leaves_nothing_stale_of_the_usual_types(tmp_path: Path) -> None:
    """Redis away and the file damaged at once: what may be old is dropped all the same."""
    with RedisProcess() as server:
        async with opened(tmp_path, server.url) as it:
            await it.tier.set("cache", "nlu_results:1", b"old", ttl_s=600)
            server.pause()
            await it.tier.delete("cache", "nlu_results:1")
        server.resume()
        hot = tmp_path / "memory" / FILE_NAME
        hot.write_bytes(b"no database at all" * 1_000)

        async with opened(tmp_path, server.url) as it:
            await it.until_joined()
            assert await it.tier.get("cache", "nlu_results:1") is None


async def fill_and_let_join(it: Opened, server: RedisProcess, count: int) -> None:
    """Lose the server, write so many entries to two spaces, and return while they are on their way to it again."""
    await lose(it, server)
    for number in range(count):
        await it.tier.set("cache", f"t:{number}", b"v", ttl_s=600)
        await it.tier.set("auth", f"t:{number}", b"v", ttl_s=600)
    server.start()
    async with looking_at(server, 0) as client, asyncio.timeout(10):
        while not await client.exists("t:0"):
            await asyncio.sleep(0)
    assert it.tier.state().engine == "sqlite", "the hand-over was over too soon to be tested"


async def test_drop_by_prefix_during_a_hand_over_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flush that comes while entries are on their way starts the hand-over again."""
    monkeypatch.setattr("workers.memory.hot.failover.STEP_ROWS", 5)
    with RedisProcess() as server:
        async with opened(tmp_path, server.url) as it:
            await fill_and_let_join(it, server, 300)

            flushed = [await it.tier.delete_prefix(space, "t:") for space in ("cache", "auth")]
            await it.until_joined()

            assert flushed[1] == 300
            for space in ("cache", "auth"):
                assert await values_of(it.tier, space, [f"t:{number}" for number in range(300)]) == [None] * 300


async def test_deletes_and_writes_during_a_hand_over_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries that are deleted, or deleted and written again, after they went over are so on the server too."""
    monkeypatch.setattr("workers.memory.hot.failover.STEP_ROWS", 5)
    with RedisProcess() as server:
        async with opened(tmp_path, server.url) as it:
            await fill_and_let_join(it, server, 300)

            for space in ("cache", "auth"):
                await asyncio.gather(*(it.tier.delete(space, f"t:{number}") for number in range(4)))
                await it.tier.set(space, "t:1", b"again", ttl_s=600)
            is_under_way = it.tier.state().engine == "sqlite"
            await it.until_joined()

            assert is_under_way
            for space in ("cache", "auth"):
                found = await values_of(it.tier, space, [f"t:{number}" for number in range(5)])
                assert found == [None, b"again", None, None, b"v"]


async def test_connections_of_an_earlier_time_are_ended(tmp_path: Path) -> None:
    """What they still had to say is never carried out; connections of others go on."""
    with RedisProcess() as server:
        async with looking_at(server, 0) as client:
            earlier, other, now = [
                await RedisTier.open(server.url, TIMEOUT_S, name) for name in ("ours-1", "others-1", "ours-2")
            ]
            await now.end_connections("ours-", but="ours-2")

            names = {connection["name"] for connection in await client.client_list()}
            assert {"others-1", "ours-2"} <= names
            assert "ours-1" not in names
            for tier in (earlier, other, now):
                await tier.close()


async def test_other_programs_keys_survive_loss_flush_and_hand_over(tmp_path: Path) -> None:
    """Database 0 is shared: only what has the form of our types is ever dropped."""
    others = {"service_registry:x": b"1", "agent:ready:y": b"2", "plain": b"3"}
    with RedisProcess() as server:
        async with opened(tmp_path, server.url) as it, looking_at(server, 0) as client:
            await client.mset(others)
            await client.rpush("tool_responses:list", "not text")
            cache = Cache(it.tier, max_body_bytes=2**26)
            await cache.set(CacheSet(key="1", value=1))
            server.pause()
            await cache.set(CacheSet(key="2", value=2))
            server.resume()
            await it.until_joined()
            assert (await cache.get(CacheGet(key="2"))).hit
            assert not (await cache.get(CacheGet(key="list", type="tool_responses"))).hit

            await cache.set(CacheSet(key="1", value=1))
            assert (await cache.flush(CacheFlush())).flushed >= 2

            assert await client.mget(others) == list(others.values())
            assert await client.keys("general:*") == []


async def test_old_generations_are_removed_from_the_server(tmp_path: Path) -> None:
    """What nobody can reach any more does not fill the server, and keys of others stay."""
    with RedisProcess() as server:
        async with looking_at(server, 1) as sessions, looking_at(server, 3) as auth:
            await sessions.set("sm:other", "x")
            async with opened(tmp_path, server.url) as it:
                for number in range(3):
                    await it.tier.set("sessions", f"s:{number}", b"v", ttl_s=600)
                    await it.tier.set("auth", "a:1", b"v", ttl_s=600)
                    server.pause()
                    await it.tier.get("cache", "anything")
                    server.resume()
                    await it.until_joined()
                async with asyncio.timeout(10):
                    while await sessions.keys("olympus:*:*") or len(await auth.keys("olympus:*:*")) != 1:
                        await asyncio.sleep(0.005)
            assert await sessions.get("sm:other") == b"x"


async def test_flushed_server_forgets_no_count(tmp_path: Path) -> None:
    """Somebody empties the server; marks and counts of sign-in go on."""
    with RedisProcess() as server:
        async with opened(tmp_path, server.url) as it, looking_at(server, 3) as auth:
            for _ in range(5):
                await it.tier.increment("auth", "failures", ttl_s=600)
            await it.tier.set("auth", "revoked", b"1", ttl_s=600)
            await auth.flushall()

            assert await it.tier.get("auth", "revoked") == b"1"
            assert await it.tier.increment("auth", "failures", ttl_s=600) == 6


async def test_server_that_evicts_forgets_no_count(tmp_path: Path) -> None:
    """A full cache pushes the marks and counts of sign-in out of the server, and out of nowhere else."""
    with RedisProcess("--maxmemory", "3mb", "--maxmemory-policy", "allkeys-lru") as server:
        async with opened(tmp_path, server.url) as it, looking_at(server, 3) as auth:
            for _ in range(5):
                await it.tier.increment("auth", "failures", ttl_s=600)
            await it.tier.set("auth", "until", b"soon", ttl_s=600)
            async with asyncio.timeout(30):
                number = 0
                while await auth.dbsize():
                    number += 1
                    await it.tier.set("cache", f"t:{number}", b"x" * 20_000, ttl_s=600)

            assert it.told == []
            assert await it.tier.get("auth", "until") == b"soon"
            assert await it.tier.increment("auth", "failures", ttl_s=600) == 6
            assert await it.tier.get("auth", "failures") == b"6"


async def test_what_changed_while_no_server_was_configured_is_not_read_from_it_later(tmp_path: Path) -> None:
    """Redis off for a while and on again: what it still holds is of before."""
    with RedisProcess() as server:
        async with opened(tmp_path, server.url) as it:
            for space in SPACES:
                await it.tier.set(space, "t:deleted", b"old", ttl_s=600)
                await it.tier.set(space, "t:replaced", b"old", ttl_s=600)
        async with opened(tmp_path, "") as it:
            for space in SPACES:
                await it.tier.delete(space, "t:deleted")
                await it.tier.set(space, "t:replaced", b"new", ttl_s=600)
        async with opened(tmp_path, server.url) as it:
            assert it.tier.state().engine == "redis"
            for space in SPACES:
                assert await values_of(it.tier, space, ["t:deleted", "t:replaced"]) == [None, b"new"]


async def test_server_restarted_with_an_old_state_between_two_processes_is_noticed(tmp_path: Path) -> None:
    """It forgot a delete while nobody of ours was there to see it restart."""
    with RedisProcess(persistent=True) as server:
        async with opened(tmp_path, server.url) as it, looking_at(server, 0) as client:
            for space in SPACES:
                await it.tier.set(space, "t:1", b"old", ttl_s=600)
            await client.save()
            for space in SPACES:
                await it.tier.delete(space, "t:1")
        server.kill()
        server.start()
        async with opened(tmp_path, server.url) as it:
            assert it.tier.state().engine == "redis"
            assert [await it.tier.get(space, "t:1") for space in SPACES] == [None] * 4


# Under load ---------------------------------------------------------------------------------------------------------


async def test_of_many_callers_each_gets_its_turn(tmp_path: Path) -> None:
    """More callers than connections: when the first has had twenty answers every other has had nearly as many."""
    with RedisProcess() as server:
        async with opened(tmp_path, server.url) as it:
            answers = [0] * 64

            async def call(caller: int) -> None:
                while max(answers) < 20:
                    await it.tier.get("cache", f"t:{caller}")
                    answers[caller] += 1

            await asyncio.gather(*(call(caller) for caller in range(len(answers))))

            assert min(answers) >= 18
            assert it.told == []


async def test_waiting_behind_others_is_no_loss(tmp_path: Path) -> None:
    """The server answers each request at once; that thousands wait for it longer than its limit is not its fault."""
    with RedisProcess() as server:
        async with opened(tmp_path, server.url) as it:
            await it.tier.set("cache", "t:1", b"v", ttl_s=600)

            found = await asyncio.gather(*(it.tier.get("cache", "t:1") for _ in range(20_000)))

            assert found == [b"v"] * 20_000
            assert it.tier.state().engine == "redis"
            assert it.told == []


async def test_own_process_held_up_is_no_loss(tmp_path: Path) -> None:
    """Answers that came while the event loop was busy with something else are read, although their time is over."""
    with RedisProcess() as server:
        async with opened(tmp_path, server.url) as it:
            for _ in range(3):
                # In the midst of requests that were sent and not answered yet.
                asyncio.get_running_loop().call_later(0.01, time.sleep, TIMEOUT_S * 1.5)
                await asyncio.gather(*(it.tier.set("cache", f"t:{n}", b"v", ttl_s=600) for n in range(2_000)))

            assert it.tier.state().engine == "redis"
            assert it.told == []


# All of it at random ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
async def test_no_read_is_ever_stale_whatever_happens_to_the_server(tmp_path: Path, seed: int) -> None:
    """Everything changes under load while the server is paused, killed and restarted: a value is the last one written
    or none, one that was deleted is never back, and a count never lower."""
    chance = random.Random(seed)
    counts = dict.fromkeys("xy", 0)
    is_over = False

    with RedisProcess(persistent=True) as server:
        async with opened(tmp_path, server.url) as it:

            async def keep(space: Space, key: str) -> None:
                number = 0
                while not is_over:
                    number += 1
                    await it.tier.set(space, f"t:{key}", b"%d" % number, ttl_s=60)
                    assert await it.tier.get(space, f"t:{key}") in (b"%d" % number, None)
                    assert await it.tier.delete(space, f"t:{key}") in (True, False)
                    assert await it.tier.get(space, f"t:{key}") is None

            async def count(key: str) -> None:
                while not is_over:
                    total = await it.tier.increment("auth", key, ttl_s=60)
                    assert total > counts[key]
                    counts[key] = total
                    await asyncio.sleep(chance.random() * 0.002)

            async with asyncio.TaskGroup() as tasks:
                for space in SPACES:
                    for key in "abcd":
                        tasks.create_task(keep(space, key))
                for key in counts:
                    tasks.create_task(count(key))
                for _ in range(6):
                    await asyncio.sleep(chance.random() * 0.2)
                    async with looking_at(server, 0) as client:
                        with suppress(redis.ConnectionError):
                            await client.save()
                    if chance.random() < 0.5:
                        server.pause()
                        await until(lambda: it.tier.state().engine == "sqlite", "the loss was noticed")
                        server.resume()
                    else:
                        server.kill()
                        await until(lambda: it.tier.state().engine == "sqlite", "the loss was noticed")
                        server.start()
                    await it.until_joined()
                is_over = True


async def test_hot_file_belongs_to_its_user_alone(tmp_path: Path) -> None:
    """Sessions and counters are private; the file stands beside the records."""
    with RedisProcess() as server:
        async with opened(tmp_path, server.url):
            hot = tmp_path / "memory" / FILE_NAME
            assert hot.stat().st_mode & 0o077 == 0
            with sqlite3.connect(hot) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            connection.close()
