"""ErrorBus, SystemDigitalTwin, ServiceRegistry and ResourceManager over real sockets, in their own words."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from tests.legacy_house import LegacyHouse
from workers.gateway.legacy.agents import digital_twin, error_bus, resource_manager, service_registry

AGENTS = [module.AGENT for module in (error_bus, digital_twin, service_registry, resource_manager)]

# What every old agent sent at its start.
REGISTRATION = {
    "action": "register_agent",
    "agent_name": "ChitChat",
    "status": "HEALTHY",
    "location": "MainPC",
    "registration_data": {
        "agent_id": "ChitChat",
        "agent_type": "chat",
        "host": "10.0.0.5",
        "port": 5711,
        "health_check_port": 6711,
        "capabilities": ["chat"],
        "dependencies": [],
        "metadata": {"python_version": "3.11"},
    },
    "source_agent": "ChitChat",
    "request_id": "0c7a0f0e-5b5a-4f5c-9a57-a6a4d9a0f2b1",
    "timestamp": "2025-08-19T12:00:00",
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LegacyHouse]:
    """The four agents with the services they need."""
    overrides = {"resources.nvml": "off", "resources.devices": "gpu0=8GiB"}
    with LegacyHouse(tmp_path_factory.mktemp("errors"), AGENTS, services=("memory", "resources"), **overrides) as house:
        yield house


def errors_port(house: LegacyHouse, request: dict[str, Any]) -> Any:
    return json.loads(house.raw("ErrorBus", [json.dumps(request).encode()], "errors")[0])


def subscribed(house: LegacyHouse) -> zmq.Socket[bytes]:
    """An old subscriber: prefix `ERROR:`, two frames; returns once it hears."""
    socket = house.socket(zmq.SUB, "ErrorBus", "errors")
    deadline = time.monotonic() + 10
    socket.setsockopt(zmq.RCVTIMEO, 100)
    while time.monotonic() < deadline:
        errors_port(house, {"action": "report_error", "data": {"source": "probe", "message": "are you there"}})
        try:
            socket.recv_multipart()
        except zmq.Again:
            continue
        while socket.poll(100):
            socket.recv_multipart()
        socket.setsockopt(zmq.RCVTIMEO, 10_000)
        return socket
    raise AssertionError("the subscriber heard nothing")


@pytest.mark.parametrize(
    "body",
    [
        rb'{"agent": "Odd", "message": "half \ud83d"}',
        rb'{"agent": "Odd\udc80", "message": "m", "context": {"a": "\udc80"}}',
        b'{"agent": "Odd", "message": "m", "context": {"a": 1180591620717411303424}}',
    ],
)
def test_a_report_that_the_bus_cannot_hold_as_it_is_costs_neither_itself_nor_the_next(
    house: LegacyHouse, body: bytes
) -> None:
    """Python's encoder writes half characters and numbers past 64 bits; the publisher is heard on."""
    heard = subscribed(house)
    publisher = house.socket(zmq.PUB, "ErrorBus", "errors")
    after = {"agent": "Odd", "message": "after"}
    messages: list[str] = []
    deadline = time.monotonic() + 20
    while messages.count("after") < 2 and time.monotonic() < deadline:
        # A publisher knows only after a moment that somebody listens.
        publisher.send_multipart([b"ERROR:", body])
        publisher.send_multipart([b"ERROR:", json.dumps(after).encode()])
        while heard.poll(100):
            messages.append(json.loads(heard.recv_multipart()[1])["message"])
    assert messages.count("after") >= 2
    assert set(messages) - {"after"} <= {"half ?", "m"}
    assert len(set(messages)) == 2


def test_one_port_takes_publishers_subscribers_and_askers(house: LegacyHouse) -> None:
    """A PUB that connects is heard, SUBs get two frames, and a REQ on the same number is answered."""
    subscriber = subscribed(house)
    publisher = house.socket(zmq.PUB, "ErrorBus", "errors")
    body = {"agent": "KnowledgeBase", "error_type": "io", "message": "disk", "severity": "CRITICAL", "timestamp": 7.0}
    # A PUB drops what it sends before the subscription of its peer is there.
    for _ in range(100):
        publisher.send_multipart([b"ERROR:" + json.dumps(body).encode()])
        if subscriber.poll(100):
            break
    topic, text = subscriber.recv_multipart()
    assert topic == b"ERROR:"
    assert json.loads(text) == {
        "timestamp": 7.0,
        "agent": "KnowledgeBase",
        "error_type": "io",
        "message": "disk",
        "severity": "critical",
        "context": {},
    }
    newest = errors_port(house, {"action": "get_recent_errors", "data": {"limit": 1}})
    assert newest["status"] == "success"
    assert {"id", "timestamp", "agent", "error_type", "message", "severity", "context"} == set(newest["data"][0])
    assert (newest["data"][0]["agent"], newest["data"][0]["context"]) == ("KnowledgeBase", "{}")
    health = errors_port(house, {"action": "get_agent_health"})["data"]
    known = next(one for one in health if one["agent"] == "KnowledgeBase")
    assert (known["status"], known["last_heartbeat"]) == ("error", 7.0)
    assert known["error_count"] >= 1


def test_an_error_on_the_old_bus_is_an_event_on_ours_and_the_other_way_round(house: LegacyHouse) -> None:
    """Both sides hear of every error once."""
    subscriber = subscribed(house)

    async def publish() -> None:
        await house.edge.house.client.publish(
            "error.model.warning",
            {"service": "model", "severity": "warning", "kind": "Slow", "message": "late", "at": 3.0},
        )

    house.run(publish)
    _, text = subscriber.recv_multipart()
    assert json.loads(text)["error_type"] == "Slow"


def test_the_error_bus_says_what_it_does_not_know(house: LegacyHouse) -> None:
    """Its own health, an unknown action, and a report that says nothing."""
    assert errors_port(house, {"action": "health_check"})["data"]["status"] == "ok"
    assert errors_port(house, {"action": "nope"})["message"] == "Unknown action: nope"
    assert errors_port(house, {"action": "report_error"})["status"] == "error"
    assert errors_port(house, {"action": "report_error", "source": "A", "reason": "r"})["status"] == "success"


def test_agents_register_and_are_found_by_both_directories(house: LegacyHouse) -> None:
    """The start-up message of every old agent, then the three ways to look somebody up."""
    assert house.ask("SystemDigitalTwin", REGISTRATION)["status"] == "success"
    found = house.ask("ServiceRegistry", {"action": "get_agent_endpoint", "agent_name": "ChitChat"})
    assert (found["status"], found["host"], found["port"], found["health_check_port"]) == (
        "success",
        "10.0.0.5",
        5711,
        6711,
    )
    discovered = house.ask("SystemDigitalTwin", {"command": "DISCOVER", "payload": {"name": "ChitChat"}})
    assert (discovered["status"], discovered["payload"]["ip"], discovered["payload"]["port"]) == (
        "SUCCESS",
        "10.0.0.5",
        5711,
    )
    assert "ChitChat" in house.ask("ServiceRegistry", {"action": "list_agents"})["agents"]
    unknown = house.ask("SystemDigitalTwin", {"command": "DISCOVER", "payload": {"name": "Nobody"}})
    assert unknown["status"] == "NOT_FOUND"


def test_the_agents_of_this_edge_are_found_where_they_are_bound(house: LegacyHouse) -> None:
    """By their old names, on the port that answers for them; a client can go on from there."""
    found = house.ask("ServiceRegistry", {"action": "get_agent_endpoint", "agent_name": "ResourceManager"})
    assert (found["host"], found["port"]) == ("127.0.0.1", house.port("ResourceManager"))
    assert found["health_check_port"] == house.port("ResourceManager", "health")


def test_the_error_bus_is_found_under_both_its_names(house: LegacyHouse) -> None:
    """Discovery tells where others publish to it, which is where it is asked, too."""
    named = house.ask("ServiceRegistry", {"action": "list_agents"})["agents"]
    for name in ("ErrorBus", "ErrorBusService"):
        found = house.ask("ServiceRegistry", {"action": "get_agent_endpoint", "agent_name": name})
        assert (name in named, found["port"]) == (True, house.port("ErrorBus", "errors"))


def test_a_flat_registration_without_a_type_is_taken(house: LegacyHouse) -> None:
    """The discovery client of old sends none and was refused."""
    flat = {"action": "register_agent", "agent_id": "Flat", "host": "h", "port": 1}
    assert house.ask("ServiceRegistry", flat) == {"status": "success"}
    missing = house.ask("ServiceRegistry", {"action": "register_agent", "host": "h"})
    assert missing["error"] == "Missing required field: agent_id"


@pytest.mark.parametrize("lacking", ["agent_id", "host", "port"])
def test_a_registration_that_nobody_could_reach_is_refused(house: LegacyHouse, lacking: str) -> None:
    """By either discovery agent, and what was registered before stays."""
    told = {"agent_id": "Unreachable", "host": "h", "port": 1}
    told.pop(lacking)
    for name in ("ServiceRegistry", "SystemDigitalTwin"):
        reply = house.ask(name, {"action": "register_agent", "agent_name": "ChitChat", "registration_data": told})
        if name == "ServiceRegistry" or lacking != "agent_id":  # the twin takes `agent_name` for the id
            assert (reply["status"], reply["error"]) == ("error", f"Missing required field: {lacking}")


@pytest.mark.parametrize(
    ("request_", "keys"),
    [
        ({"action": "ping"}, {"status", "message", "timestamp"}),
        ({"action": "get_metrics"}, {"status", "metrics"}),
        ({"action": "get_history"}, {"status", "history"}),
        ({"action": "get_all_agents"}, {"status", "agents"}),
        ({"action": "get_registered_agents"}, {"status", "agents"}),
        ({"action": "get_ok_agents"}, {"status", "count", "agents"}),
        ({"action": "get_agent_info", "agent_name": "ServiceRegistry"}, {"status", "agent_info"}),
        ({"action": "publish_event", "event": {"event_type": "A b", "source_agent": "x"}}, {"status", "event_id"}),
        ({"action": "report_error", "error": {"agent_id": "x", "message": "m"}}, {"status", "message", "error_id"}),
        ({"action": "update_vram_metrics", "payload": {"agent_name": "x"}}, {"status", "message"}),
        ({"command": "PING"}, {"status"}),
        ({"command": "REGISTER", "payload": {"name": "R", "ip": "1.1.1.1", "port": 3}}, {"status"}),
        ({"command": "REPORT_MODEL_VRAM", "payload": {"agent_name": "x"}}, {"status"}),
        ({"command": "GET_METRICS", "payload": {"metrics": ["vram_usage"]}}, {"status", "payload"}),
    ],
)
def test_the_twin_answers_each_of_its_verbs(house: LegacyHouse, request_: dict[str, Any], keys: set[str]) -> None:
    """Success in the word of the dialect, with the keys its callers read."""
    reply = house.ask("SystemDigitalTwin", request_)
    assert reply["status"] == (
        "SUCCESS" if "command" in request_ else "ok" if request_["action"] == "ping" else "success"
    )
    assert keys <= set(reply)


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ({"action": "get_agent_info"}, "Missing agent_name"),
        ({"action": "get_agent_info", "agent_name": "Nobody"}, "Agent not found: Nobody"),
        ({"action": "get_agent_endpoint", "agent_name": "Nobody"}, "Agent 'Nobody' not found"),
        ({"action": "publish_event", "event": {"source_agent": "x"}}, "Missing required field: event.event_type"),
        ({"action": "nope"}, "Unknown action: nope"),
    ],
)
def test_the_twin_refuses_under_its_own_key(house: LegacyHouse, request_: dict[str, Any], text: str) -> None:
    """`error`, with the same text under `message`."""
    reply = house.ask("SystemDigitalTwin", request_)
    assert (reply["status"], reply["error"], reply["message"]) == ("error", text, text)


def test_loads_are_judged_by_what_the_machine_has(house: LegacyHouse) -> None:
    """VRAM of the declared device, main memory, the CPU, and a request that makes no sense."""

    def judged(kind: str, value: float) -> str:
        load = {"action": "simulate_load", "load_type": kind, "value": value}
        return str(house.ask("SystemDigitalTwin", load)["recommendation"])

    assert judged("vram", 1024) == "proceed"
    assert judged("vram", 99_999) == "deny_insufficient_resources"
    assert judged("ram", 1e9) == "deny_insufficient_resources"
    assert judged("cpu", 200) == "caution_high_cpu"
    assert judged("tea", 1) == "error_invalid_request"


def test_frames_that_are_no_json_have_their_answers(house: LegacyHouse) -> None:
    """`ping` and `GET_ALL_STATUS` as the old scripts send them; other text is refused in the exact words."""
    assert json.loads(house.raw("SystemDigitalTwin", [b"ping"])[0])["status"] == "ok"
    assert json.loads(house.raw("SystemDigitalTwin", [b"GET_ALL_STATUS"])[0])["ServiceRegistry"] == "HEALTHY"
    assert json.loads(house.raw("SystemDigitalTwin", [b"{x"])[0])["error"] == "Invalid JSON format."


def test_resources_are_given_out_once_and_taken_back(house: LegacyHouse) -> None:
    """The six actions of the resource manager with their failures."""

    def ask(**request: Any) -> Any:
        return house.ask("ResourceManager", request)

    assert (
        ask(action="set_thresholds", cpu_threshold=100, memory_threshold=100, gpu_threshold=100)["status"] == "success"
    )
    assert ask(action="check_resources") == {"status": "success", "available": True}
    assert ask(action="allocate_resources", resource_id="a", resource_type="cpu", amount=2)["resource_id"] == "a"
    assert (
        ask(action="allocate_resources", resource_id="a", resource_type="cpu")["message"]
        == "Resource a already allocated"
    )
    status = ask(action="get_status")
    assert (status["allocated_resources"]["a"]["amount"], status["thresholds"]["cpu"]) == (2.0, 100.0)
    assert ask(action="release_resources", resource_id="a")["status"] == "success"
    assert ask(action="release_resources", resource_id="a")["message"] == "Resource a not found"
    assert ask(action="allocate_resources", resource_id="b")["message"] == "Missing required field: resource_type"
    assert "0 to 100" in ask(action="set_thresholds", cpu_threshold=101)["message"]
    assert {"cpu_percent", "memory_percent", "memory_total", "disk_usage"} <= set(ask(action="get_stats")["stats"])
    assert ask(action="nope")["message"] == "Unknown action: nope"
    assert ask(action="health_check")["status"] == "ok"
    own = house.health("ResourceManager")
    assert (own["service"], own["initialization_status"]) == ("ResourceManager", "complete")
    assert house.health("ResourceManager", b"ping")["status"] == "unknown_action"


def http(house: LegacyHouse, method: str, path: str, body: Any = None) -> Any:
    """What a route of the resource manager's HTTP port gives; the HTTP edge itself has tests of its own."""
    from workers.gateway.legacy.agent import HttpAsk, Refused

    route = next(one for one in resource_manager.AGENT.http if (one.method, one.path) == (method, path))

    async def run() -> Any:
        try:
            return (await route.handle(HttpAsk({}, body), house.edge.house))[1]
        except Refused as refused:
            return {"status": "refused", "message": refused.text}

    return house.run(run)


def test_memory_asked_for_over_http_is_a_lease(house: LegacyHouse) -> None:
    """VRAM is really reserved, shares by priority hold, a task waits for what it needs, and release starts it."""
    given = http(house, "POST", "/allocate_resources", {"resources": {"vram_gb": 6}, "priority": "CRITICAL"})
    assert given["status"] == "success"
    held = house.bus("resource.lease.list").leases
    assert [lease.vram_bytes for lease in held if lease.service == "legacy"] == [6 * 1024**3]
    assert http(house, "GET", "/vram_status")["vram"]["allocations"] == {given["allocation_id"]: 6.0}
    over = http(house, "POST", "/allocate", {"resources": {"vram_gb": 3}, "priority": "HIGH"})
    assert (over["status"], "Insufficient vram_gb" in over["message"]) == ("failed", True)
    low = http(house, "POST", "/allocate", {"resources": {"vram_gb": 1.9}, "priority": "LOW"})
    assert "priority LOW may hold 20%" in low["message"]
    task = http(
        house, "POST", "/schedule_task", {"task_type": "train", "resources": {"vram_gb": 4}, "priority": "HIGH"}
    )
    assert [one["task_id"] for one in http(house, "GET", "/queue_status")["tasks"]] == [task["task_id"]]
    assert http(house, "POST", "/release_resources", {"allocation_id": given["allocation_id"]})["status"] == "success"
    assert http(house, "GET", "/queue_status")["queue_size"] == 0
    assert task["task_id"] in http(house, "GET", "/resource_status")["allocations"]
    assert http(house, "POST", "/release", {"allocation_id": task["task_id"]})["status"] == "success"
    assert "no pool; allowed" in http(house, "POST", "/allocate", {"resources": {"tea": 1}})["message"]
    assert "priority is 'X'" in http(house, "POST", "/allocate", {"priority": "x"})["message"]
    assert http(house, "POST", "/release", {"allocation_id": "none"})["status"] == "refused"
