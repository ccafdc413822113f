"""The legacy ports whatever is sent to them: framing, vanished and slow peers, shared ports, signing in."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import zmq

from bus.client import Client
from bus.settings import SettingsError, load_settings
from bus.transport import Link
from schemas.bodies.accounts import KeyRotate, UserAdd
from schemas.errors import NotFound
from tests.legacy_house import LegacyHouse
from workers.gateway.legacy import sockets
from workers.gateway.legacy.agent import Action, Agent, Fields, Refused
from workers.gateway.legacy.agents.roster import roster
from workers.gateway.legacy.edge import LegacyEdge
from workers.gateway.legacy.house import House
from workers.gateway.ports import chosen
from workers.gateway.service import Gateway


async def _echo(ask: Fields, house: House) -> Any:
    return {"status": "success", "x": ask.get("x")}


async def _slow(ask: Fields, house: House) -> Any:
    await asyncio.sleep(1.0)
    return {"status": "success"}


async def _refuse(ask: Fields, house: House) -> Any:
    raise Refused("no", code=7)


async def _fail(ask: Fields, house: House) -> Any:
    raise ZeroDivisionError("a defect")


async def _missing(ask: Fields, house: House) -> Any:
    raise NotFound("there is none")


FIRST = Agent(
    name="First",
    service="memory",
    ports=(1,),
    health_ports=(2,),
    actions={
        "echo": Action(_echo, required=("x",)),
        "slow": Action(_slow),
        "refuse": Action(_refuse),
        "fail": Action(_fail),
        "missing": Action(_missing),
    },
    commands={"ECHO": Action(_echo)},
    texts={"hello": _echo},
)
NESTED = Agent(name="Nested", service="memory", ports=(3,), data_key="data", actions={"echo": Action(_echo)})


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LegacyHouse]:
    """Two agents that answer without any service."""
    with LegacyHouse(tmp_path_factory.mktemp("edge"), [FIRST, NESTED], services=()) as house:
        yield house


@pytest.mark.parametrize(
    ("request_", "reply"),
    [
        ({"action": "echo", "x": 1, "source_agent": "A"}, {"status": "success", "x": 1}),
        ({"command": "ECHO", "x": [1]}, {"status": "success", "x": [1]}),
        ({"action": "echo"}, {"status": "error", "message": "Missing x", "error": "Missing x"}),
        ({"action": "refuse"}, {"status": "error", "message": "no", "error": "no", "code": 7}),
        (
            {"action": "missing"},
            {"status": "error", "message": "there is none", "error": "there is none", "code": "not_found"},
        ),
        ({"action": "nope"}, {"status": "error", "message": "Unknown action: nope", "error": "Unknown action: nope"}),
        ({"command": "NOPE"}, {"status": "ERROR", "message": "Unknown action: NOPE", "error": "Unknown action: NOPE"}),
    ],
)
def test_each_kind_of_request_has_its_reply(house: LegacyHouse, request_: Any, reply: Any) -> None:
    """Actions, commands, refusals and errors of the bus, in the words of the agent."""
    assert house.ask("First", request_) == reply


def test_a_defect_is_told_and_the_next_request_works(house: LegacyHouse) -> None:
    """What a translation raises ends its request alone."""
    assert house.ask("First", {"action": "fail"})["message"] == "ZeroDivisionError: a defect"
    assert house.ask("First", {"action": "echo", "x": 2})["x"] == 2


def test_arguments_under_a_key_must_be_an_object(house: LegacyHouse) -> None:
    """Family B: missing arguments are none, others are refused."""
    assert house.ask("Nested", {"action": "echo", "data": {"x": 3}})["x"] == 3
    assert house.ask("Nested", {"action": "echo"})["x"] is None
    assert house.ask("Nested", {"action": "echo", "data": [1]})["message"] == "data must be an object, not an array"


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        ([b"{"], "Invalid JSON request"),
        ([b""], "Invalid JSON request"),
        ([b"\xff\xfe{}"], "Invalid UTF-8 request"),
        ([b"{}", b"{}"], "Invalid JSON request"),
        ([b"[" * 100_000], "Invalid JSON request"),
        ([b"[1]"], "Invalid request format"),
        ([b"null"], "Invalid request format"),
        ([b'"echo"'], "Invalid request format"),
        ([b"{}"], "Unknown action: None"),
        ([b'{"action": {"a": 1}}'], "Unknown action: {'a': 1}"),
    ],
)
def test_what_cannot_be_read_is_answered(house: LegacyHouse, frames: list[bytes], text: str) -> None:
    """Bad JSON, bad UTF-8, several frames, no object, no verb: an error reply, never silence."""
    reply = json.loads(house.raw("First", frames)[0])
    assert (reply["status"], reply["error"], reply["message"]) == ("error", text, text)


def test_numbers_and_texts_that_only_python_writes_are_read(house: LegacyHouse) -> None:
    """NaN, Infinity and half a surrogate pair come out of old encoders."""
    assert house.raw("First", [b'{"action": "echo", "x": "\\ud800"}'])[0] == b'{"status": "success", "x": "\\ud800"}'
    assert json.loads(house.raw("First", [b'{"action": "echo", "x": NaN}'])[0])["status"] == "success"


def test_text_and_health_ports_answer_frames_that_are_no_json(house: LegacyHouse) -> None:
    """Any frame on the health port; a known word on the main port."""
    assert json.loads(house.raw("First", [b"hello"])[0])["status"] == "success"
    for frame in (b"ping", b"", b"\xff", b'{"action": "health_check"}'):
        health = house.health("First", frame)
        assert (health["status"], health["service"], health["health_status"]) == ("degraded", "First", "degraded")


def test_a_health_check_says_whether_the_service_behind_is_there(house: LegacyHouse) -> None:
    """Degraded without its service; the command form then fails, a ping does not."""
    assert house.ask("First", {"action": "health_check"})["status"] == "degraded"
    assert house.ask("First", {"command": "HEALTH_CHECK"})["status"] == "ERROR"
    assert house.ask("First", {"command": "PING"})["status"] == "SUCCESS"


def test_a_slow_client_and_one_that_vanishes_delay_no_other(house: LegacyHouse) -> None:
    """While a request takes its second, others are answered; its peer may be gone when it ends."""
    slow, gone = house.socket(zmq.REQ, "First"), house.socket(zmq.REQ, "First")
    for one in (slow, gone):
        one.send_json({"action": "slow"})
    gone.close(0)
    answered = 0
    while not slow.poll(0):
        assert house.ask("First", {"action": "echo", "x": answered or 1})["status"] == "success"
        answered += 1
    assert slow.recv_json() == {"status": "success"}
    assert answered > 3


def test_a_dealer_may_send_many_at_once_and_a_req_may_number_its_requests(house: LegacyHouse) -> None:
    """Envelopes come back as they were sent: none, an empty frame, or a number before it."""
    dealer = house.socket(zmq.DEALER, "First")
    for number in range(200):
        dealer.send_multipart([b"", json.dumps({"action": "echo", "x": number + 1}).encode()])
    replies = [dealer.recv_multipart() for _ in range(200)]
    assert {json.loads(body)["x"] for _, body in replies} == set(range(1, 201))
    dealer.send(b'{"action": "echo", "x": 1}')
    assert json.loads(dealer.recv())["x"] == 1
    numbered = house._context.socket(zmq.REQ)
    house._opened.append(numbered)
    numbered.setsockopt(zmq.REQ_CORRELATE, 1)
    numbered.setsockopt(zmq.RCVTIMEO, 10_000)
    numbered.connect(f"tcp://127.0.0.1:{house.port('First')}")
    numbered.send_json({"action": "echo", "x": 5})
    assert numbered.recv_json()["x"] == 5  # type: ignore[index, call-overload]


def test_one_socket_is_answered_in_the_order_it_asked(house: LegacyHouse) -> None:
    """Replies name no request, so a DEALER tells them by their order; clients behind a proxy do not wait in one line."""
    dealer = house.socket(zmq.DEALER, "First")
    dealer.send_multipart([b"", b'{"action": "slow"}'])
    dealer.send_multipart([b"", b'{"action": "echo", "x": 1}'])
    assert [json.loads(dealer.recv_multipart()[1]).get("x") for _ in range(2)] == [None, 1]
    dealer.send_multipart([b"one", b"", b'{"action": "slow"}'])
    dealer.send_multipart([b"two", b"", b'{"action": "echo", "x": 2}'])
    assert [dealer.recv_multipart()[0] for _ in range(2)] == [b"two", b"one"]


def test_a_publisher_is_heard_on_after_a_message_that_fails_and_to_its_last_one(tmp_path: Path) -> None:
    """A defect costs one message, and what came before the publisher went away is not dropped with it."""
    heard: list[bytes] = []

    async def take(frames: list[bytes], house: House) -> None:
        await asyncio.sleep(0.05)
        if frames[0] == b"bad":
            raise ZeroDivisionError("a defect")
        heard.append(frames[0])

    listener = Agent(name="Listener", service="memory", intake_ports=(4,), intake=take)
    with LegacyHouse(tmp_path, [listener], services=()) as house:
        publisher = house.socket(zmq.PUB, "Listener", "errors")
        publisher.setsockopt(zmq.LINGER, 5_000)
        deadline = time.monotonic() + 10
        while not heard and time.monotonic() < deadline:
            publisher.send(b"hello")
            time.sleep(0.02)
        for message in (b"bad", b"good", b"last"):
            publisher.send(message)
        publisher.close()
        while b"last" not in heard and time.monotonic() < deadline:
            time.sleep(0.02)
    assert heard[-2:] == [b"good", b"last"]


class _Link:
    """A connection that only notes what is done with it."""

    is_open = True

    def __init__(self) -> None:
        self.done: list[str] = []

    def send(self, frames: list[Any]) -> None:
        """A reply."""
        self.done.append("send")

    def pause_reading(self) -> None:
        """Enough for now."""
        self.done.append("pause")

    def resume_reading(self) -> None:
        """Go on."""
        self.done.append("resume")

    def abort(self, reason: str) -> None:
        """Away with it."""
        self.done.append("abort")


async def test_one_connection_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not read while large requests of it wait, and not kept when it subscribes to everything one by one."""
    monkeypatch.setattr(sockets, "_AT_ONCE_BYTES", 1_000)
    go_on = asyncio.Event()

    async def answer(frames: list[bytes]) -> bytes:
        await go_on.wait()
        return b"{}"

    link = _Link()
    asker = sockets._Peer(cast(Link, link), b"DEALER", answer, None)
    for number in range(3):
        asker.on_message([b"%d" % number, b"", b"x" * 600])
    assert link.done == ["pause"]
    go_on.set()
    async with asyncio.timeout(10):
        while "resume" not in link.done:
            await asyncio.sleep(0)
        await asyncio.gather(*asker._tasks)
    assert link.done.count("send") == 3 and link.done.count("pause") == link.done.count("resume") == 1

    for subscription in (b"\1" + b"x" * 2_000, None):
        link = _Link()
        hearer = sockets._Peer(cast(Link, link), b"SUB", answer, None)
        for frame in [subscription] if subscription else [b"\1%d" % number for number in range(1_001)]:
            hearer.on_message([frame])
        assert link.done == ["abort"]


def test_health_that_fails_and_a_reply_nobody_can_write_are_answered(tmp_path: Path) -> None:
    """A REQ socket that gets no reply is of no use any more."""

    async def away(house: House) -> dict[str, Any]:
        raise NotFound("it is away")

    unwell = Agent(name="Unwell", service="memory", ports=(5,), health_ports=(6,), echoes=("echo",), health=away)
    with LegacyHouse(tmp_path, [unwell], services=()) as house:
        assert json.loads(house.raw("Unwell", [b"{}"], "health")[0])["message"] == "it is away"
        nested = b'{"echo": ' + b"[" * 950 + b"]" * 950 + b"}"
        assert json.loads(house.raw("Unwell", [nested])[0])["status"] == "error"
        assert json.loads(house.raw("Unwell", [b"{}"])[0])["status"] == "error"


def test_an_address_that_is_not_here_is_told_and_ends_nothing(tmp_path: Path) -> None:
    """192.0.2.1 belongs to nobody (RFC 5737)."""
    settings = load_settings(
        "/dev/null",
        {
            "home": str(tmp_path),
            "legacy.enabled": "true",
            "legacy.insecure": "true",
            "legacy.host": "192.0.2.1",
            "legacy.agents": "CacheManager",
        },
    )

    async def start() -> list[Any]:
        async with Client(settings, name="edge", signs=False) as client:
            house = House(settings, client, roster())
            edge = LegacyEdge(house, chosen(roster(), ("CacheManager",)))
            try:
                return await edge.start()
            finally:
                await edge.stop()

    table = asyncio.run(start())
    assert {info.state for info in table} == {"taken"} and "legacy.host" in table[0].note


def test_idle_connections_and_strangers_cost_nobody_anything(house: LegacyHouse) -> None:
    """500 idle peers, and ones that speak HTTP or nothing, beside requests that work."""
    port = house.port("First")
    strangers = []
    try:
        for number in range(500):
            stranger = socket.create_connection(("127.0.0.1", port))
            if number % 3 == 0:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            strangers.append(stranger)
        began = time.monotonic()
        assert house.ask("First", {"action": "echo", "x": 9})["x"] == 9
        assert time.monotonic() - began < 10
    finally:
        for stranger in strangers:
            stranger.close()


def test_a_message_that_is_too_large_is_answered(house: LegacyHouse) -> None:
    """Past 64 MiB a request is skipped, its sender told, and the next one answered."""
    reply = json.loads(house.raw("First", [b'"' + b"x" * (66 * 1024 * 1024) + b'"'])[0])
    assert (reply["status"], reply["message"]) == ("error", "the message is too large; the limit is 67108864 bytes")
    assert house.ask("First", {"action": "echo", "x": 1})["x"] == 1


def test_agents_that_share_a_port_answer_what_each_understands(tmp_path: Path) -> None:
    """The owner first; a number of another program is left out and told of."""
    second = Agent(name="Second", service="memory", ports=(4,), actions={"other": Action(_echo)})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            shared = probe.getsockname()[1]
        ports = [f"First={shared}", f"Second={shared}", f"Nested={taken.getsockname()[1]}", "First.health=off"]
        overrides = {"legacy.ports": json.dumps([*ports, "First.http=off"])}
        with LegacyHouse(tmp_path, [FIRST, second, NESTED], services=(), **overrides) as house:
            assert house.ask("First", {"action": "other"})["status"] == "success"
            assert house.ask("First", {"action": "echo", "x": 1})["status"] == "success"
            assert house.ask("First", {"action": "none"})["message"] == "Unknown action: none"
            states = {info.owner: (info.state, info.note) for info in house.table if info.purpose == "requests"}
    assert states["Second"] == ("yielded", "shared with First, which is asked first")
    assert states["Nested"][0] == "taken"
    assert "legacy.ports: Nested=PORT" in states["Nested"][1]


def test_ports_past_loopback_and_without_an_account_are_refused() -> None:
    """In words that say what to do."""
    with pytest.raises(SettingsError, match=r"legacy.host = '192.0.2.1' is not allowed.*legacy.insecure: true"):
        load_settings(overrides={"legacy.enabled": "true", "legacy.host": "192.0.2.1"})
    with pytest.raises(SettingsError, match=r"needs legacy.user while auth.required is true"):
        load_settings(overrides={"legacy.enabled": "true", "auth.required": "true"})
    load_settings(overrides={"legacy.host": "192.0.2.1"})


async def _as_owner(house: LegacyHouse, subject: str, body: Any) -> Any:
    async with Client(house.settings, name="owner") as owner:
        return await owner.request(subject, body)


def test_where_people_sign_in_the_ports_act_for_one_account(tmp_path: Path) -> None:
    """What that account may not do is refused, its namespaces hold, and new keys are no end of it."""
    from workers.gateway.legacy.agents import cache_manager, knowledge_base

    agents = [knowledge_base.AGENT, cache_manager.AGENT]
    overrides = {"auth.required": "true", "legacy.user": "agents"}
    with LegacyHouse(tmp_path, agents, services=("memory",), **overrides) as house:
        for _ in range(2):
            refused = house.ask("KnowledgeBase", {"action": "add_fact", "topic": "t", "content": "c"})
            assert refused["message"].startswith("no token for legacy.user 'agents':")

        scopes = ["memory:read", "memory:write"]
        user = UserAdd(user_id="agents", password="correct horse", scopes=scopes, namespaces=["memory"])
        house.run(lambda: _as_owner(house, "auth.user.add", user))
        deadline = time.monotonic() + 10
        while (added := house.ask("KnowledgeBase", {"action": "add_fact", "topic": "t", "content": "c"}))[
            "status"
        ] != "success":
            assert time.monotonic() < deadline, added
            time.sleep(0.1)
        house.run(lambda: _as_owner(house, "auth.keys.rotate", KeyRotate(revoke=True)))
        assert house.ask("KnowledgeBase", {"action": "add_fact", "topic": "t", "content": "c"})["status"] == "success"
        cached = house.ask("CacheManager", {"action": "put", "cache_type": "memory", "key": "k", "value": 1})
        assert (cached["status"], cached["code"]) == ("error", "forbidden")


async def test_the_gateway_tells_what_it_has_bound(serve_broker: Any) -> None:
    """`gateway.ports` lists HTTP and old ports of a gateway that serves both."""
    import msgspec

    async with serve_broker() as settings:
        rest = msgspec.structs.replace(
            settings.rest, **{key: 0 for key in settings.rest.__struct_fields__ if key.endswith("_port")}
        )
        names = ("KnowledgeBase", "ContextManager")
        ports = tuple(
            f"{name}{kind}={value}" for name in names for kind, value in (("", 0), (".health", 0), (".http", 0))
        )
        legacy = msgspec.structs.replace(settings.legacy, enabled=True, agents=names, ports=ports)
        gateway = Gateway(msgspec.structs.replace(settings, rest=rest, legacy=legacy))
        await gateway.start()
        try:
            async with Client(settings) as client:
                listed = (await client.request("gateway.ports")).ports
        finally:
            await gateway.stop()
        assert {(info.owner, info.purpose, info.protocol) for info in listed if info.state == "bound"} == {
            *((name, purpose, "zeromq") for name in names for purpose in ("requests", "health")),
            *((name, "health", "http") for name in names),
            *(
                (service, purpose, "http")
                for service in ("memory", "models", "learning")
                for purpose in ("rest", "health")
            ),
        }
        assert all(info.port for info in listed)
