"""The server of the web console over real sockets: its files, requests, the picture of the bus, and the tap."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest

from broker.server import Broker
from bus.client import Client
from bus.settings import Settings
from bus.tokens import local_token_path
from bus.worker import Call, Worker
from schemas.bodies.control import BrokerStats, BusStats
from schemas.bodies.gateway import GatewayPorts, PortInfo, PortList
from tests.conftest import settings_of
from tests.rest_house import SERVICES, House, rest_house
from workers.gateway.console import feeds, routes, tap
from workers.gateway.console.files import FOLDER
from workers.memory.service import service

Serve = Callable[..., AbstractAsyncContextManager[Settings]]

# Longest wait of any one step, seconds.
WITHIN_S = 10.0

ASK = "/console/api/request"


class Reader:
    """One tap, read event by event."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()
        self.hello: dict[str, Any] = {}

    async def next(self, *names: str) -> dict[str, Any]:
        """The data of the next event, or of the next with one of these names, and its name as `_name`."""
        name = ""
        async with asyncio.timeout(WITHIN_S):
            async for line in self._lines:
                if line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: ") and (not names or name in names):
                    return {**json.loads(line[6:]), "_name": name}
        raise AssertionError(f"the tap ended before {names}")

    async def is_over(self) -> bool:
        """True where nothing more comes."""
        async with asyncio.timeout(WITHIN_S):
            return [line async for line in self._lines if line.startswith("event: ")] == []


@asynccontextmanager
async def watching(house: House, query: str = "", **headers: str) -> AsyncIterator[Reader]:
    """A tap that has begun."""
    async with house.http.stream("GET", house.url(f"/console/api/tap?{query}"), headers=headers) as response:
        if response.status_code != 200:
            await response.aread()
            raise AssertionError(response.text)
        reader = Reader(response)
        reader.hello = await reader.next("hello")
        yield reader


async def problem(asking: Awaitable[httpx.Response], status: int, code: str) -> dict[str, Any]:
    """The body of an error, checked to be one."""
    async with asyncio.timeout(WITHIN_S):
        response = await asking
    assert response.headers["content-type"] == "application/problem+json", response.text
    body: dict[str, Any] = response.json()
    assert (response.status_code, body["status"], body["code"]) == (status, status, code), body
    return body


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something to become so."""
    async with asyncio.timeout(WITHIN_S):
        while not await holds():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def memory(settings: Settings, **rest: Any) -> AsyncIterator[House]:
    """The edge over the memory service."""
    async with service(settings) as worker, rest_house(settings, **rest) as house:
        await worker.start(10)
        try:
            yield house
        finally:
            await worker.stop(drain_s=0)


def signed(settings: Settings) -> Settings:
    """Where everybody has to sign in."""
    return msgspec.structs.replace(settings, auth=msgspec.structs.replace(settings.auth, required=True))


def bearer(token: str) -> dict[str, str]:
    """The header of a request."""
    return {"authorization": f"Bearer {token}"}


async def ask(house: House, subject: str, body: Any = None, **headers: str) -> httpx.Response:
    """An operation, as the page asks it."""
    return await house.ask("POST", ASK, json={"subject": subject, "body": body or {}}, headers=headers)


async def person(house: House, name: str, settings: Settings, **rights: Any) -> dict[str, str]:
    """The headers of a user who has just signed in."""
    admin = bearer(local_token_path(settings).read_text().strip())
    body = {"user_id": name, "password": "correct horse", **rights}
    assert (await ask(house, "auth.user.add", body, **admin)).status_code == 200
    tokens = (await ask(house, "auth.login", {"user_id": name, "password": "correct horse"})).json()
    return bearer(tokens["access_token"])


async def subscribers(client: Client) -> list[list[str]]:
    """The patterns of everybody whom the broker tells events."""
    stats: BrokerStats = await client.request("bus.stats", BusStats())
    return [one.patterns for one in stats.subscribers]


# Files ----------------------------------------------------------------------------------------------------------


async def test_every_file_of_the_page_is_served_on_every_port_by_its_type_and_known_again(settings: Settings) -> None:
    """Also while the bus is away; a browser that has it already gets 304; nothing inline and nothing foreign may run."""
    away = msgspec.structs.replace(settings, bus=msgspec.structs.replace(settings.bus, request_port=9))
    types = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    names = [path for path in FOLDER.rglob("*") if path.suffix in types]
    assert FOLDER / "index.html" in names
    async with rest_house(away) as house:
        for port in SERVICES:
            assert (await house.ask("GET", "/console", port)).headers["location"] == "console/"
            about = (await house.ask("GET", "/console/api/about", port)).json()
            assert (about["service"], about["auth_required"]) == (port, False)
        for path in names:
            got = await house.ask("GET", f"/console/{path.relative_to(FOLDER).as_posix()}")
            assert (got.status_code, got.content) == (200, path.read_bytes()), path
            assert got.headers["content-type"].startswith(types[path.suffix])
            assert got.headers["x-content-type-options"] == "nosniff"
        page = await house.ask("GET", "/console/")
        assert page.content == (FOLDER / "index.html").read_bytes()
        policy = page.headers["content-security-policy"]
        assert all(part in policy for part in ("default-src 'none'", "frame-ancestors 'none'", "form-action 'none'"))
        assert "unsafe" not in policy and "http" not in policy
        again = await house.ask("GET", "/console/", headers={"if-none-match": f'"x", W/{page.headers["etag"]}'})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", page.headers["etag"])
        head = await house.ask("HEAD", "/console/")
        assert (head.content, int(head.headers["content-length"])) == (b"", len(page.content))
        assert 'href="/console/"' in (await house.ask("GET", "/docs")).text
        link = await house.ask("GET", "/console/", headers={"sec-fetch-site": "cross-site"})
        assert link.status_code == 200, "a link of another site may lead here"


OUTSIDE = (
    "/console/../routes.py",
    "/console/..%2Froutes.py",
    "/console/%2e%2e/routes.py",
    "/console//etc/passwd",
    "/console/../../../../etc/passwd",
    "/console/views",
    "/console/index.html/",
    "/console/INDEX.html",
    "/consoleindex.html",
)


async def test_no_path_leads_out_of_the_folder(settings: Settings) -> None:
    """Only what was found below it at the start is there, whatever a path says."""
    away = msgspec.structs.replace(settings, bus=msgspec.structs.replace(settings.bus, request_port=9))
    async with rest_house(away) as house:
        for path in OUTSIDE:
            # Not by a client that would make the path a good one first.
            reader, writer = await asyncio.open_connection("127.0.0.1", house.port())
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            answer = await asyncio.wait_for(reader.read(), WITHIN_S)
            writer.close()
            assert answer.startswith(b"HTTP/1.1 404 "), path


async def test_the_console_can_be_left_out(settings: Settings) -> None:
    """`rest.console: false` leaves neither page nor interface."""
    away = msgspec.structs.replace(settings, bus=msgspec.structs.replace(settings.bus, request_port=9))
    async with rest_house(away, console=False) as house:
        for path in ("/console", "/console/", "/console/api/about", "/console/api/topology", "/console/api/tap"):
            await problem(house.ask("GET", path), 404, "not_found")
        await problem(house.ask("POST", ASK, json={"subject": "bus.ping"}), 404, "not_found")
        assert "/console" not in (await house.ask("GET", "/docs")).text


# Requests -------------------------------------------------------------------------------------------------------


async def test_any_operation_is_asked_with_its_reply_as_it_is(serve_broker: Serve) -> None:
    """Those without a route too, on any port; a stream comes in pieces; what a route refuses is refused alike."""
    async with serve_broker() as settings, memory(settings) as house:
        done = await ask(house, "memory.kv.set", {"key": "a", "value": [1, None]}, **{"idempotency-key": "k"})
        assert done.json()["version"] == 1 and len(done.headers["x-request-id"]) == 32
        other = await house.ask("POST", ASK, "learning", json={"subject": "memory.kv.get", "body": {"key": "a"}})
        assert other.json()["value"] == [1, None]
        await ask(house, "memory.remember", {"key": "tea", "value": "green"})
        assert (await ask(house, "memory.recall", {"key": "tea"})).json()["value"] == "green"
        assert (await house.ask("POST", ASK, json={"subject": "bus.ping"})).json()["version"]
        streamed = await ask(house, "memory.export", {}, accept="text/event-stream")
        assert streamed.headers["content-type"] == "text/event-stream"
        names = [line[7:] for line in streamed.text.splitlines() if line.startswith("event: ")]
        assert names[0] == "partial" and names[-1] == "final"
        missing = await problem(ask(house, "memory.kv.get", {"key": "b"}), 404, "not_found")
        assert missing["details"] == {"ns": "kv", "key": "b"}
        await problem(ask(house, "model.list", {}, **{"x-timeout-s": "0.5"}), 503, "no_worker")


GARBAGE = (
    (b"", 400),
    (b"{", 400),
    (b"[]", 400),
    (b"\xff\xfe", 400),
    (b"{}", 400),
    (b'{"subject": 1}', 400),
    (b'{"subject": "bus.ping", "extra": 1}', 400),
    (b'{"subject": "bus.ping", "body": []}', 400),
    (b'{"subject": "bus.ping", "body": null}', 400),
    (b'{"subject": "memory.kv.get", "body": {"key": "a", "key": "b"}}', 400),
    (b'{"subject": "memory.kv.get", "body": {"kez": "a"}}', 400),
    (b'{"subject": "memory.kv.gett"}', 404),
    (b'{"subject": "bus.trace.>"}', 404),
    (b'{"subject": "memory.kv.get@other"}', 404),
    (b'{"subject": "' + b"a" * 300 + b'"}', 400),
    (b'{"subject": "bus.ping", "body": ' + b"[" * 100_000, 400),
)


async def test_garbage_is_refused_in_so_many_words(serve_broker: Serve) -> None:
    """Never a 500, and the next request on the connection works."""
    async with serve_broker() as settings, memory(settings) as house:
        headers = {"content-type": "application/json"}
        for content, status in GARBAGE:
            code = "not_found" if status == 404 else "bad_request"
            await problem(house.ask("POST", ASK, content=content, headers=headers), status, code)
        assert (await ask(house, "bus.ping")).status_code == 200


FORMS = (None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data")


async def test_no_plain_form_can_ask(serve_broker: Serve) -> None:
    """A form of another site sends one of these types without asking first; JSON it cannot."""
    async with serve_broker() as settings, rest_house(settings) as house:
        for kind in FORMS:
            headers = {} if kind is None else {"content-type": kind}
            asking = house.ask("POST", ASK, content=b'{"subject": "bus.ping"}', headers=headers)
            await problem(asking, 415, "bad_request")


async def test_pages_of_other_sites_and_foreign_names_are_refused(serve_broker: Serve) -> None:
    """By the rules of every port; the tap does not open for a neighbour's port either, which could not read it."""
    async with serve_broker() as settings, rest_house(settings) as house:
        ping: dict[str, Any] = {"json": {"subject": "bus.ping"}}
        evil = {"origin": "https://evil.example"}
        await problem(house.ask("POST", ASK, headers=evil, **ping), 403, "forbidden")
        await problem(house.ask("POST", ASK, headers={"host": "evil.example"}, **ping), 421, "forbidden")
        for path in ("/console/api/tap", "/console/api/topology"):
            await problem(house.ask("GET", path, headers={"sec-fetch-site": "cross-site"}), 403, "forbidden")
            await problem(house.ask("GET", path, headers={"host": "evil.example:7010"}), 421, "forbidden")
        await problem(house.ask("GET", "/console/", headers={"host": "evil.example"}), 421, "forbidden")
        await problem(house.ask("GET", "/console/api/tap", headers={"sec-fetch-site": "same-site"}), 403, "forbidden")
        mine = {"origin": house.url(""), "sec-fetch-site": "same-origin"}
        assert (await house.ask("POST", ASK, headers=mine, **ping)).status_code == 200
        async with watching(house, "", **mine):
            pass


async def test_who_hangs_up_takes_the_request_back(serve_broker: Serve) -> None:
    """The handler is cancelled where it runs."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work(request: Any, call: Call) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with serve_broker() as settings, rest_house(settings) as house:
        worker = Worker("model", settings)
        worker.handle("model.load", work)
        await worker.start(10)
        asking = asyncio.ensure_future(ask(house, "model.load", {"model": "a"}))
        await asyncio.wait_for(begun.wait(), WITHIN_S)
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
        await asyncio.wait_for(ended.wait(), WITHIN_S)
        await worker.stop(drain_s=0)


# Topology -------------------------------------------------------------------------------------------------------


async def test_one_call_draws_the_whole_bus(serve_broker: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broker with rates once there was an earlier look, services that are there and away, workers, machines, ports."""
    monkeypatch.setattr("workers.gateway.console.topology._RATE_FROM_S", 0.01)
    monkeypatch.setattr("workers.gateway.console.topology._KEPT_S", 0.0)
    async with serve_broker() as settings, memory(settings) as house:

        async def look() -> dict[str, Any]:
            found: dict[str, Any] = (await house.ask("GET", "/console/api/topology")).json()
            return found

        first = await look()
        assert first["window_s"] is None and first["broker"]["rates"] is None
        states = {one["service"]: one["state"] for one in first["services"]}
        assert states["memory"] in ("ok", "degraded") and states["learning"] == "away"
        assert "memory" in first["machines"][0]["services"] and first["ports"] is None
        assert first["watchers"] == {"taps": 0, "limit": routes.MAX_TAPS}

        async def has_rates() -> bool:
            seen = await look()
            mine = next(one for one in seen["services"] if one["service"] == "memory")
            return (
                seen["broker"]["rates"] is not None
                and seen["broker"]["rates"]["requests"] > 0
                and mine["rate"] is not None
            )

        await until(has_rates)
        assert all(one["rate"] is not None for one in (await look())["workers"])


async def test_the_picture_has_the_ports_that_the_gateway_holds(serve_broker: Serve) -> None:
    """Where the caller may see them and a gateway answers."""

    async def ports(request: GatewayPorts, call: Call) -> PortList:
        held = PortInfo(owner="memory", purpose="rest", protocol="http", host="127.0.0.1", port=7010, state="bound")
        return PortList(ports=[held])

    async with serve_broker() as settings, rest_house(settings) as house:
        worker = Worker("gateway", settings)
        worker.handle("gateway.ports", ports)
        await worker.start(10)
        picture = (await house.ask("GET", "/console/api/topology")).json()
        assert [(one["owner"], one["port"], one["state"]) for one in picture["ports"]] == [("memory", 7010, "bound")]
        await worker.stop(drain_s=0)


async def test_without_a_broker_the_picture_says_so(settings: Settings) -> None:
    """503 within the time that every route has."""
    away = msgspec.structs.replace(settings, bus=msgspec.structs.replace(settings.bus, request_port=9))
    async with rest_house(away) as house:
        await problem(house.ask("GET", "/console/api/topology", headers={"x-timeout-s": "0.1"}), 503, "no_worker")
        await problem(house.ask("GET", "/console/api/tap", headers={"x-timeout-s": "0.1"}), 503, "no_worker")


# Tap ------------------------------------------------------------------------------------------------------------


async def test_events_come_as_they_pass_and_only_those_asked_for(serve_broker: Serve) -> None:
    """By patterns, without what is ignored and without the noise nobody named; bytes and what is too large are marked."""
    async with (
        serve_broker() as settings,
        rest_house(settings) as house,
        Client(settings, name="pub") as client,
        watching(house, "patterns=kitchen.*,hall.>&ignore=kitchen.noise") as reader,
    ):
        assert reader.hello["patterns"] == ["kitchen.*", "hall.>"] and reader.hello["hidden"] == []
        await client.publish("garden.a", {"n": 0})
        await client.publish("kitchen.noise", {"n": 0})
        await client.publish("kitchen.a", {"n": 1, "b": b"\x00"})
        one = await reader.next("event")
        assert (one["subject"], one["source"], one["body"]) == ("kitchen.a", "pub", {"n": 1, "b": "AA=="})
        assert one["seq"] > 0 and one["at"] > 0 and one["id"] and one["body_bytes"] > 0
        await client.publish("hall.a.b", b"\xc1\xff")
        two = await reader.next("event")
        assert (base64.b64decode(two["body"]), two["encoding"]) == (b"\xc1\xff", "base64")
        await client.publish("hall.c", {"text": "x" * feeds.MAX_BODY_BYTES})
        three = await reader.next("event")
        assert (three["body"], three["cut"]) == (None, True) and three["body_bytes"] > feeds.MAX_BODY_BYTES
        await client.publish("hall.d", {"e": msgspec.msgpack.Ext(7, b"x"), "f": float("nan")})
        four = await reader.next("event")
        assert four["body"] == {"e": {"ext_code": 7, "ext_data": "eA=="}, "f": None}


async def test_requests_are_traced_only_while_somebody_watches(serve_broker: Serve) -> None:
    """One line for each, joined; the broker is asked for them by nobody else."""
    async with serve_broker() as settings, memory(settings) as house, Client(settings, name="other") as client:
        async with watching(house, "patterns=memory.>"):
            assert ["bus.trace.>"] not in await subscribers(client)
        async with watching(house, "patterns=memory.kv.*&traces=only") as reader:
            assert reader.hello["events"] is False
            assert ["bus.trace.>"] in await subscribers(client)
            await ask(house, "memory.kv.list")
            await ask(house, "memory.kv.get", {"key": "none"})
            told = [await reader.next() for _ in range(2)]
            assert [(one["_name"], one["subject"], one["outcome"]) for one in told] == [
                ("request", "memory.kv.list", "ok"),
                ("request", "memory.kv.get", "not_found"),
            ]
            assert told[0]["took_s"] > 0 and told[0]["reply_bytes"] > 0

        async def nobody() -> bool:
            return await subscribers(client) == []

        await until(nobody)


NONSENSE = (
    "patterns=a..b",
    "patterns=>.a",
    "patterns=" + ",".join(f"a{n}" for n in range(40)),
    "ignore=%20x%20y",
    "patterns=%ff",
    "patterns=" + "a" * 3000,
    "traces=yes",
    "pattern=a",
)


async def test_a_tap_that_makes_no_sense_is_refused(serve_broker: Serve) -> None:
    """Before it begins, naming the field."""
    async with serve_broker() as settings, rest_house(settings) as house:
        for query in NONSENSE:
            said = await problem(house.ask("GET", f"/console/api/tap?{query}"), 400, "bad_request")
            assert said["details"]["field"], query


async def test_fifty_readers_share_one_subscription_and_free_everything(serve_broker: Serve) -> None:
    """Each gets each event once; when they hang up nobody is subscribed, and one too many is told when to come again."""
    async with serve_broker() as settings, rest_house(settings) as house, Client(settings, name="pub") as client:
        async with contextlib.AsyncExitStack() as stack:
            readers = [await stack.enter_async_context(watching(house, "patterns=kitchen.>")) for _ in range(50)]
            assert await subscribers(client) == [["kitchen.>"]]
            await client.publish("kitchen.a", 1)
            await client.publish("kitchen.b", 2)
            for reader in readers:
                assert [(await reader.next("event"))["body"] for _ in range(2)] == [1, 2]
            for _ in range(50, routes.MAX_TAPS):
                await stack.enter_async_context(watching(house, "patterns=hall.>"))
            await problem(house.ask("GET", "/console/api/tap"), 503, "overloaded")

        async def nobody() -> bool:
            picture = (await house.ask("GET", "/console/api/topology")).json()
            return await subscribers(client) == [] and picture["watchers"]["taps"] == 0

        await until(nobody)


async def test_a_slow_reader_loses_the_oldest_and_is_told(serve_broker: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for it is bounded; others get everything meanwhile, and what it gets is in order."""
    monkeypatch.setattr(tap, "_WAITING", 5)
    monkeypatch.setattr(tap, "_BETWEEN_S", 0.3)
    async with (
        serve_broker() as settings,
        rest_house(settings) as house,
        Client(settings, name="pub") as client,
        watching(house, "patterns=kitchen.>") as reader,
    ):
        for n in range(50):
            await client.publish("kitchen.a", n)
        got: list[int] = []
        lost = 0
        while lost + len(got) < 50:
            one = await reader.next("event", "missed")
            if one["_name"] == "missed":
                assert (one["where"], one["what"]) == ("console", "events") and one["first_seq"] <= one["last_seq"]
                lost += one["count"]
            else:
                got.append(one["body"])
        assert lost and got == sorted(got) and got[-1] == 49


async def test_a_reader_that_takes_nothing_holds_up_nobody(serve_broker: Serve) -> None:
    """Its connection fills; another reader of the same feed goes on."""
    async with serve_broker() as settings, rest_house(settings) as house, Client(settings, name="pub") as client:
        _, writer = await asyncio.open_connection("127.0.0.1", house.port(), limit=1024)
        writer.write(b"GET /console/api/tap?patterns=kitchen.> HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with watching(house, "patterns=kitchen.>") as reader:
            for n in range(300):
                await client.publish("kitchen.a", {"n": n, "text": "x" * 30_000})
                if n % 30 == 29:
                    async with asyncio.timeout(WITHIN_S):
                        while (await reader.next("event"))["body"]["n"] < n:
                            pass
            assert (await house.ask("GET", "/console/api/topology")).json()["watchers"]["taps"] == 2
        writer.transport.abort()

        async def nobody() -> bool:
            return await subscribers(client) == []

        await until(nobody)


async def test_a_broker_that_is_started_again_in_between_is_told(settings: Settings) -> None:
    """The stream stays open: away with the reason, back, and events as before."""
    broker = Broker(settings)
    await broker.start()
    fixed = settings_of(broker)
    again = Broker(fixed)
    async with (
        rest_house(fixed) as house,
        Client(fixed, name="pub") as client,
        watching(house, "patterns=kitchen.>&traces=1") as reader,
    ):
        await client.publish("kitchen.a", 1)
        assert (await reader.next("event"))["body"] == 1
        await broker.stop()
        assert (await reader.next())["_name"] == "away"
        await again.start()
        try:
            assert (await reader.next())["_name"] == "back"
            await client.connect(WITHIN_S)

            async def is_told() -> bool:
                return any("kitchen.>" in patterns for patterns in await subscribers(client))

            await until(is_told)
            await client.publish("kitchen.a", 2)
            assert (await reader.next("event"))["body"] == 2
        finally:
            await client.close()
            await house.edge.stop(1)
            await again.stop()


async def test_readers_are_told_when_the_gateway_stops(serve_broker: Serve) -> None:
    """At once, so that its stop does not wait for them."""
    async with serve_broker() as settings, rest_house(settings) as house, watching(house, "patterns=>") as reader:
        stopping = asyncio.ensure_future(house.edge.stop(WITHIN_S))
        assert (await reader.next("end"))["reason"] == "the gateway stops"
        assert await reader.is_over()
        await asyncio.wait_for(stopping, WITHIN_S)


async def test_a_silent_tap_says_that_it_waits(serve_broker: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comment, by which a page knows that the connection lives."""
    monkeypatch.setattr(tap, "HEARTBEAT_S", 0.05)
    async with (
        serve_broker() as settings,
        rest_house(settings) as house,
        house.http.stream("GET", house.url("/console/api/tap?patterns=kitchen.>")) as response,
        asyncio.timeout(WITHIN_S),
    ):
        async for line in response.aiter_lines():
            if line == ": waiting":
                break


# Who may see what -----------------------------------------------------------------------------------------------


async def test_a_tap_shows_what_a_token_may_read_and_nothing_else(serve_broker: Serve) -> None:
    """No token, no tap; no scope, no events of that family; of the memory only what is in the caller's namespaces."""
    async with serve_broker() as plain:
        settings = signed(plain)
        async with memory(settings) as house, Client(settings, name="house") as client:
            await problem(house.ask("GET", "/console/api/tap"), 401, "unauthenticated")
            await problem(house.ask("GET", "/console/api/tap", headers=bearer("forged")), 401, "unauthenticated")
            await problem(ask(house, "memory.kv.list", {}), 401, "unauthenticated")
            ada = await person(house, "ada", settings, scopes=["memory:read"], namespaces=["user.ada"])
            bob = await person(house, "bob", settings, scopes=["model:read"])
            await problem(ask(house, "memory.kv.list", {}, **ada), 403, "forbidden")
            for query in ("patterns=audit.>", "patterns=model.*", "patterns=memory.>,bus.trace.*", "traces=1"):
                said = await problem(house.ask("GET", f"/console/api/tap?{query}", headers=ada), 403, "forbidden")
                assert said["details"]["scope"]
            async with watching(house, "", **ada) as hers, watching(house, "", **bob) as his:
                assert "model.>" in hers.hello["hidden"] and "memory.>" not in hers.hello["hidden"]
                assert "memory.>" in his.hello["hidden"] and "model.answered" in his.hello["hidden"]
                for ns, key in (("user.bob", "private"), ("user.ada", "tea")):
                    await client.request("memory.kv.set", {"ns": ns, "key": key, "value": 1})
                for subject in ("model.answered", "memory.made_up", "audit.secret", "plugin.said"):
                    await client.publish(subject, {"model": "m", "text": "private"})
                await client.publish("model.loaded", {"model": "m"})
                await client.publish("bus.worker.joined", {"service": "end"})
                seen: dict[str, list[str]] = {"hers": [], "his": []}
                # The memory tells of its changes itself, and nothing says which of two publishers is heard first.
                for name, reader, missing in (("hers", hers, {"end", "changed"}), ("his", his, {"end"})):
                    while missing:
                        one = await reader.next("event")
                        assert "private" not in json.dumps(one)
                        if one["body"] == {"service": "end"}:
                            missing.discard("end")
                            continue
                        if one["subject"].startswith("memory.changed."):
                            missing.discard("changed")
                        seen[name].append(one["subject"])
                assert len([subject for subject in seen["hers"] if subject.startswith("memory.changed.")]) == 1
                assert {subject.partition(".")[0] for subject in seen["hers"]} <= {"memory", "bus"}
                assert "model.loaded" in seen["his"]
                assert {subject.partition(".")[0] for subject in seen["his"]} <= {"model", "bus"}
            # As the operations that tell of the bus itself, the picture takes no token; the ports do.
            picture = (await house.ask("GET", "/console/api/topology")).json()
            assert picture["ports"] is None and picture["broker"]["requests"] > 0


async def test_a_tap_ends_with_the_token_it_was_opened_with(
    serve_broker: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is disabled sees no further event, although the connection was open."""
    monkeypatch.setattr(tap, "_CHECK_S", 0.0)
    async with serve_broker() as plain:
        settings = signed(plain)
        async with memory(settings) as house, Client(settings, name="house") as client:
            ada = await person(house, "ada", settings, scopes=["memory:read"], namespaces=["*"])
            admin = bearer(local_token_path(settings).read_text().strip())
            async with watching(house, "patterns=memory.>", **ada) as reader:
                await client.request("memory.kv.set", {"key": "a", "value": 1})
                assert (await reader.next("event"))["body"]["key"] == "a"
                await ask(house, "auth.user.update", {"user_id": "ada", "disabled": True}, **admin)

                async def is_out() -> bool:
                    return (await ask(house, "memory.kv.list", {}, **ada)).status_code == 401

                await until(is_out)
                # The gateway hears of it as an event, like everybody.
                await asyncio.wait_for(_told_until_over(client, reader), WITHIN_S)


async def _told_until_over(client: Client, reader: Reader) -> None:
    async def write() -> None:
        while True:
            await client.request("memory.kv.set", {"key": "b", "value": 1})
            await asyncio.sleep(0.05)

    writing = asyncio.ensure_future(write())
    try:
        error = await reader.next("error")
        assert (error["status"], error["code"]) == (401, "unauthenticated")
        assert await reader.is_over()
    finally:
        writing.cancel()


async def test_one_user_cannot_take_every_place(serve_broker: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may still watch."""
    monkeypatch.setattr(routes, "MAX_TAPS_OF_ONE", 2)
    async with serve_broker() as plain:
        settings = signed(plain)
        async with memory(settings) as house:
            ada = await person(house, "ada", settings, scopes=["memory:read"], namespaces=["*"])
            bob = await person(house, "bob", settings, scopes=["memory:read"], namespaces=["*"])
            async with watching(house, "", **ada), watching(house, "", **ada):
                await problem(house.ask("GET", "/console/api/tap", headers=ada), 503, "overloaded")
                async with watching(house, "", **bob):
                    pass
