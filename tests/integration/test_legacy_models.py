"""The model agents over real sockets, with the demo model: each action, each failure, and old clients as they behaved."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.legacy_house import LegacyHouse
from workers.gateway.legacy.agents import (
    evaluation_framework,
    gguf_models,
    model_manager,
    model_suite,
    predictive_loader,
)

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

GGUF, MMA, LOADER = "GGUFModelManager", "ModelManagerAgent", "PredictiveLoader"
MEF, SUITE = "ModelEvaluationFramework", "ModelManagerSuite"
ALL = (GGUF, MMA, LOADER, MEF, SUITE)
DEMO = "olympus-demo"

ENTRY = {
    "model_id", "display_name", "model_path", "n_ctx", "n_gpu_layers", "n_threads", "verbose", "estimated_vram_mb",
    "capabilities", "idle_timeout_seconds", "loaded",
}  # fmt: skip
LOADED = {"vram_usage_mb", "device", "last_used", "is_active", "quantization"}
SUITE_ENTRY = ENTRY | {"status", "type", "quantization", "use_case", "file_size_gb", "context_length"}
METRIC = {"metric_id", "agent_name", "metric_name", "value", "timestamp", "context"}
EVALUATION = {
    "evaluation_id", "model_name", "cycle_id", "trust_score", "accuracy", "f1_score", "avg_latency_ms",
    "evaluation_timestamp", "comparison_data",
}  # fmt: skip


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LegacyHouse]:
    """One house for all tests; each takes the demo model out of memory and in again as it likes."""
    agents = [
        gguf_models.AGENT,
        model_manager.AGENT,
        predictive_loader.AGENT,
        evaluation_framework.AGENT,
        model_suite.AGENT,
    ]
    ports = [
        *(f"{name}=0" for name in (GGUF, LOADER, MEF, SUITE)),
        # The second of its numbers is the one that the suite shares.
        f"{MMA}=0+{(shared := free_port())}",
        f"{SUITE}=0+{shared}",
        *(f"{name}.health=0" for name in ALL),
        f"{MMA}.events=0",
    ]
    home = tmp_path_factory.mktemp("models")
    with LegacyHouse(
        home, agents, services=("memory", "resources", "models"), **{"legacy.ports": json.dumps(ports)}
    ) as opened:
        yield opened


@pytest.fixture
def demo(house: LegacyHouse) -> None:
    """The demo model is loaded."""
    assert house.ask(SUITE, {"action": "load_model", "model_id": DEMO})["loaded"] is True


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def shared_port(house: LegacyHouse) -> int:
    """The port of two agents: what 7721 is."""
    return next(info.port for info in house.table if info.note == f"also answers for {SUITE}")


# Whatever comes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", ALL)
@pytest.mark.parametrize(
    "frames",
    [[b"{no json"], [b"\xff\xfe"], [b"[1, 2]"], [b"7"], [b"null"], [b'"text"'], [b"{}", b"{}"], [b""]],
    ids=["json", "utf8", "array", "number", "null", "text", "multipart", "empty"],
)
def test_what_is_no_request_gets_an_error(house: LegacyHouse, agent: str, frames: list[bytes]) -> None:
    """One frame comes back, an object that says error, in both keys."""
    [reply] = house.raw(agent, frames)
    told = json.loads(reply)
    assert told["status"] == "error"
    assert told["error"] == told["message"] != ""


@pytest.mark.parametrize("agent", ALL)
def test_unknown_actions_are_named(house: LegacyHouse, agent: str) -> None:
    """The exact words of all five."""
    reply = house.ask(agent, {"action": "fly"})
    assert (reply["status"], reply["message"], reply["error"]) == (
        "error",
        "Unknown action: fly",
        "Unknown action: fly",
    )


@pytest.mark.parametrize("agent", ALL)
@pytest.mark.parametrize("verb", ["health_check", "ping", "health"])
@pytest.mark.usefixtures("demo")
def test_pollers_find_every_agent_healthy(house: LegacyHouse, agent: str, verb: str) -> None:
    """On main ports in one of the words that pollers take for health."""
    assert house.ask(agent, {"action": verb})["status"].lower() in ("ok", "healthy")


@pytest.mark.parametrize("agent", ALL)
@pytest.mark.parametrize("frame", [b'{"action": "health_check"}', b'{"action": "ping"}'])
@pytest.mark.usefixtures("demo")
def test_health_ports_answer(house: LegacyHouse, agent: str, frame: bytes) -> None:
    """With an object that has a status."""
    assert house.health(agent, frame)["status"].lower() in ("ok", "healthy")


@pytest.mark.parametrize("agent", [GGUF, LOADER, MEF, SUITE])
@pytest.mark.usefixtures("demo")
def test_health_ports_answer_any_text(house: LegacyHouse, agent: str) -> None:
    """What is no JSON too."""
    assert house.health(agent, b"health")["status"].lower() in ("ok", "healthy")


# GGUFModelManager ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("demo")
def test_gguf_lists_models_with_every_key(house: LegacyHouse) -> None:
    """The demo model is there, loaded."""
    reply = house.ask(GGUF, {"action": "list_models"})
    assert set(reply) == {"status", "models"}
    demo = next(one for one in reply["models"] if one["model_id"] == DEMO)
    assert set(demo) >= ENTRY
    assert demo["loaded"] is True
    assert isinstance(demo["capabilities"], list) and isinstance(demo["n_ctx"], int)


def test_gguf_loads_and_unloads(house: LegacyHouse) -> None:
    """Loading twice is success, unloading twice is not."""
    assert house.ask(GGUF, {"action": "load_model", "model_id": DEMO}) == {"status": "success", "loaded": True}
    assert house.ask(GGUF, {"action": "unload_model", "model_id": DEMO}) == {"status": "success", "unloaded": True}
    again = house.ask(GGUF, {"action": "unload_model", "model_id": DEMO})
    assert (again["status"], again["unloaded"]) == ("error", False)
    assert house.ask(SUITE, {"action": "health_check"})["status"] == "degraded"
    assert house.ask(GGUF, {"action": "load_model", "model_id": DEMO}) == {"status": "success", "loaded": True}


@pytest.mark.parametrize(
    ("request_", "error", "more"),
    [
        ({"action": "load_model"}, "model_id required", {}),
        ({"action": "unload_model"}, "model_id required", {}),
        ({"action": "load_model", "model_id": "nobody"}, None, {"loaded": False}),
        ({"action": "unload_model", "model_id": "nobody"}, None, {"unloaded": False}),
        ({"action": "generate_text", "model_id": DEMO}, "model_id and prompt required", {}),
        ({"action": "generate_text", "prompt": "hi"}, "model_id and prompt required", {}),
        ({"action": "generate_text", "model_id": "nobody", "prompt": "hi"}, None, {}),
        ({"action": "generate_text", "model_id": "not a name", "prompt": "hi"}, None, {}),
        ({"action": "generate_text", "model_id": DEMO, "prompt": "hi", "max_tokens": "x"}, None, {}),
        ({"action": "load_model", "model_id": ["a"]}, None, {}),
    ],
)
def test_gguf_failures(house: LegacyHouse, request_: dict[str, Any], error: str | None, more: dict[str, Any]) -> None:
    """`error` is never left out."""
    reply = house.ask(GGUF, request_)
    assert reply["status"] == "error"
    assert reply["error"] if error is None else reply["error"] == error
    assert more.items() <= reply.items()


def test_gguf_generates(house: LegacyHouse) -> None:
    """The four keys, and the conversation that was asked with."""
    request = {"action": "generate_text", "model_id": DEMO, "prompt": "What is 7 + 5?", "temperature": 0}
    first = house.ask(GGUF, request)
    assert (first["status"], first["model_id"], first["text"]) == ("success", DEMO, "7 + 5 = 12.")
    assert first["using_kv_cache"] in (True, False)
    house.ask(GGUF, {**request, "conversation_id": "talk"})
    again = house.ask(GGUF, {**request, "conversation_id": "talk"})
    assert (again["using_kv_cache"], again["conversation_id"]) == (True, "talk")
    assert house.ask(GGUF, {"action": "health_check"})["kv_caches_count"] >= 1


@pytest.mark.usefixtures("demo")
def test_gguf_health_has_the_real_figures(house: LegacyHouse) -> None:
    """Without a GPU its memory is 0. The health port has the words of the old base class, whose pollers want `ok`."""
    asked, polled = house.ask(GGUF, {"action": "health_check"}), house.health(GGUF)
    for health, status in ((asked, "healthy"), (polled, "ok")):
        assert (health["status"], health["llama_cpp_available"], health["models_loaded"]) == (status, True, 1)
        assert health["total_models"] >= 1
        assert health["vram_usage"] == {"total_mb": 0, "used_mb": 0, "remaining_mb": 0}
    assert isinstance(asked["timestamp"], float)
    assert datetime.fromisoformat(polled["timestamp"])


@pytest.mark.parametrize(("name", "status"), [(DEMO, "loaded"), ("nobody", "not_found")])
@pytest.mark.usefixtures("demo")
def test_gguf_tells_the_status_of_a_model(house: LegacyHouse, name: str, status: str) -> None:
    """What was a call of its library is answered on the wire too."""
    reply = house.ask(GGUF, {"action": "get_model_status", "model_id": name})
    assert reply["status"] == status
    assert set(reply) == {"status", "model_info", "state", "vram_usage"}


# ModelManagerAgent: actions -----------------------------------------------------------------------------------------


def test_mma_generates(house: LegacyHouse) -> None:
    """`ok`, the text and the model; with a conversation also whether its state was there."""
    request = {"action": "generate", "prompt": "What is 7 + 5?", "params": {"temperature": 0}}
    reply = house.ask(MMA, request)
    assert (reply["status"], reply["response_text"], reply["model_used"]) == ("ok", "7 + 5 = 12.", DEMO)
    assert isinstance(reply["timestamp"], float)
    assert "conversation_id" not in reply
    talk = [house.ask(MMA, {**request, "conversation_id": "mma"}) for _ in range(2)][1]
    assert (talk["conversation_id"], talk["using_kv_cache"]) == ("mma", True)


@pytest.mark.parametrize("preference", ["fast", "quality", "fallback", "smart", "stt", "no such thing", DEMO])
def test_mma_understands_every_preference(house: LegacyHouse, preference: str) -> None:
    """An unknown one means fast, a model's name that model."""
    request = {"action": "generate", "prompt": "Hello", "model_pref": preference, "params": {"max_tokens": 4}}
    reply = house.ask(MMA, request)
    assert (reply["status"], reply["model_used"]) == ("ok", DEMO)
    assert reply["response_text"]


@pytest.mark.parametrize(
    "request_",
    [
        {"action": "generate"},
        {"action": "generate", "prompt": ""},
        {"action": "generate", "prompt": "hi", "params": [1]},
        {"action": "generate", "prompt": "hello " * 2_000},
        {"action": "generate", "params": {"batch_mode": True, "batch_data": "sound"}},
        {"action": "clear_conversation"},
        {"action": "generate_text"},
        {"action": "generate_text", "prompt": "hi", "model_name": "nobody"},
        {"action": "load_model"},
        {"action": "load_model", "model_name": "nobody"},
        {"action": "unload_model"},
    ],
)
def test_mma_failures_of_actions(house: LegacyHouse, request_: dict[str, Any]) -> None:
    """`error` with a text."""
    reply = house.ask(MMA, request_)
    assert (reply["status"], bool(reply["message"])) == ("error", True)


def test_mma_clears_a_conversation(house: LegacyHouse) -> None:
    """Also one that never was."""
    house.ask(MMA, {"action": "generate", "prompt": "Hello", "conversation_id": "gone", "params": {"max_tokens": 2}})
    for name in ("gone", "never"):
        reply = house.ask(MMA, {"action": "clear_conversation", "conversation_id": name})
        assert set(reply) == {"status", "message", "conversation_id"}
        assert (reply["status"], reply["conversation_id"]) == ("ok", name)


@pytest.mark.usefixtures("demo")
def test_mma_tells_its_status(house: LegacyHouse) -> None:
    """The keys of the table, and those of an older test of it."""
    reply = house.ask(MMA, {"action": "status"})
    assert set(reply) >= {
        "status", "loaded_models", "total_models", "total_vram_used_mb", "total_vram_mb", "routing_policy", "health",
        "timestamp", "service", "known_models", "load_policy",
    }  # fmt: skip
    assert (reply["status"], reply["health"], reply["service"]) == ("ok", "ok", MMA)
    assert set(reply["loaded_models"][DEMO]) >= LOADED
    assert (reply["total_vram_mb"], reply["total_vram_used_mb"]) == (0, 0)
    assert reply["routing_policy"]["fast"] == DEMO
    assert DEMO in reply["known_models"]


# ModelManagerAgent: commands ----------------------------------------------------------------------------------------


def test_mma_loads_and_unloads_by_command(house: LegacyHouse) -> None:
    """An object each time, success also where nothing was to do."""
    for _ in range(2):
        reply = house.ask(MMA, {"command": "UNLOAD_MODEL", "model_name": DEMO})
        assert (set(reply), reply["status"]) == ({"status", "message"}, "SUCCESS")
    assert house.ask(MMA, {"command": "UNLOAD_MODEL", "model_name": "nobody"})["status"] == "SUCCESS"
    for _ in range(2):
        reply = house.ask(
            MMA, {"command": "LOAD_MODEL", "model_name": DEMO, "device": "PC2", "quantization_level": "FP16"}
        )
        assert (set(reply), reply["status"]) == ({"status", "message"}, "SUCCESS")


@pytest.mark.parametrize(
    "request_",
    [
        {"command": "LOAD_MODEL"},
        {"command": "LOAD_MODEL", "model_name": "nobody"},
        {"command": "LOAD_MODEL", "model_name": "not a name"},
        {"command": "UNLOAD_MODEL"},
        {"command": "FLY"},
        {"hello": "there"},
        {},
    ],
)
def test_mma_failures_of_commands(house: LegacyHouse, request_: dict[str, Any]) -> None:
    """In upper case, with a text."""
    reply = house.ask(MMA, request_)
    assert (reply["status"], bool(reply["message"])) == ("ERROR", True)


@pytest.mark.usefixtures("demo")
def test_mma_reads_by_command(house: LegacyHouse) -> None:
    """What is loaded, what to choose, health, and services of a second machine."""
    loaded = house.ask(MMA, {"command": "GET_LOADED_MODELS_STATUS"})
    assert set(loaded) == {"status", "loaded_models", "total_models", "total_vram_used_mb", "total_vram_mb"}
    assert loaded["status"] == "SUCCESS" and set(loaded["loaded_models"][DEMO]) >= LOADED
    name, info = house.ask(MMA, {"command": "SELECT_MODEL", "task_type": "chat", "context_size": 100})
    assert (name, info["status"], info["serving_method"]) == (DEMO, "online", "gguf_direct")
    assert house.ask(MMA, {"command": "HEALTH_CHECK"})["status"] == "SUCCESS"
    assert house.ask(MMA, {"command": "VERIFY_SERVICES"}) == {}


@pytest.mark.parametrize(
    ("fields", "keys"),
    [
        ({"type": "load_model", "model_name": DEMO}, {"status", "message", "model_status"}),
        (
            {"type": "get_model_status", "model_name": DEMO},
            {"status", "model_name", "model_info", "is_loaded", "last_used_timestamp", "current_memory_usage_mb"},
        ),
        ({"type": "get_all_models"}, {"status", "models"}),
        ({"type": "get_memory_status"}, {"status", "device", "message", "loaded_model_instances"}),
        (
            {"type": "cache_response", "prompt": "p", "model": "m", "response": "r", "request_id": "7"},
            {"status", "message", "request_id"},
        ),
        (
            {"type": "get_cached_response", "prompt": "p", "model": "m", "request_id": "7"},
            {"status", "cached", "response", "request_id"},
        ),
        (
            {"type": "get_cached_response", "prompt": "p", "model": "m", "system_prompt": "s"},
            {"status", "cached", "request_id"},
        ),
    ],
)
@pytest.mark.usefixtures("demo")
def test_mma_process_types(house: LegacyHouse, fields: dict[str, Any], keys: set[str]) -> None:
    """Exactly the keys of each; the four that were encoded twice are plain objects."""
    reply = house.ask(MMA, {"command": "PROCESS", **fields})
    assert (reply["status"], set(reply)) == ("success", keys)
    assert reply.get("response", "r") == "r"
    assert reply.get("request_id", "N/A") == fields.get("request_id", "N/A")


def test_mma_process_health_and_unload(house: LegacyHouse) -> None:
    """The number of the request comes back; a model that is not loaded is unloaded."""
    health = house.ask(MMA, {"command": "PROCESS", "type": "health_check", "request_id": "r"})
    assert (health["status"], health["request_id_received"]) == ("ok", "r")
    assert set(health["details"]) == {"models", "loaded_models", "vram_usage"}
    for _ in range(2):
        reply = house.ask(MMA, {"command": "PROCESS", "type": "unload_model", "model_name": DEMO})
        assert (reply["status"], reply["model_status"]) == ("success", "unloaded")


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "load_model", "model_name": "nobody"},
        {"type": "load_model"},
        {"type": "get_model_status", "model_name": "nobody"},
        {"type": "cache_response", "prompt": "p", "model": "m"},
        {"type": "get_cached_response", "prompt": "p"},
        {"type": "fly", "request_id": "7"},
        {},
    ],
)
def test_mma_process_failures(house: LegacyHouse, fields: dict[str, Any]) -> None:
    """`error` in lower case; an unknown type gives the number of the request back."""
    reply = house.ask(MMA, {"command": "PROCESS", **fields})
    assert (reply["status"], bool(reply["error"])) == ("error", True)
    if fields.get("type") in (None, "fly"):
        assert reply["request_id"] == fields.get("request_id", "N/A")


# ModelManagerAgent: health and broadcasts ---------------------------------------------------------------------------


def test_mma_health_port_wants_json(house: LegacyHouse) -> None:
    """Its own shape, and an error for a text."""
    health = house.health(MMA)
    assert (health["status"], set(health["details"])) == ("ok", {"status_message", "uptime_seconds"})
    bad = house.health(MMA, b"health")
    assert (bad["status"], bad["error"]) == ("error", "Invalid JSON")


def test_mma_broadcasts_every_load_and_unload(house: LegacyHouse) -> None:
    """One frame without a topic, for who subscribed to everything."""
    subscriber = house.socket(zmq.SUB, MMA, "events")
    for action, loaded in [("load_model", [DEMO]), ("unload_model", []), ("load_model", [DEMO])]:
        house.ask(SUITE, {"action": action, "model_id": DEMO})
        # What was published before the subscription came through is not heard; the next sweep is.
        while (update := _heard(subscriber))["loaded_models"] != loaded:
            pass
        assert set(update) == {"event", "models", "loaded_models", "vram_usage", "timestamp"}
        assert update["event"] == "model_status_update"
        assert set(update["vram_usage"]) == {"total_budget_mb", "used_mb", "remaining_mb"}


def _heard(subscriber: zmq.Socket[bytes]) -> dict[str, Any]:
    [frame] = subscriber.recv_multipart()
    update: dict[str, Any] = json.loads(frame)
    return update


# PredictiveLoader ---------------------------------------------------------------------------------------------------


def test_loader_predicts_what_was_used_most(house: LegacyHouse) -> None:
    """At most three, the most used first; names that nobody serves are counted too."""
    for name, times in {"a": 40, "not a name": 39, "c": 38, "d": 1}.items():
        for _ in range(times):
            assert house.ask(LOADER, {"action": "record_usage", "model_id": name})["status"] == "success"
    reply = house.ask(LOADER, {"action": "predict_models"})
    assert set(reply) == {"status", "predicted_models"}
    assert reply["predicted_models"] == ["a", "not a name", "c"]
    for _ in range(45):
        house.ask(LOADER, {"action": "record_usage", "model_id": DEMO})
    assert house.ask(SUITE, {"action": "predict_models"})["predicted_models"][0] == DEMO
    usage = house.bus("model.usage")
    assert [one.uses >= 45 for one in usage.models if one.model == DEMO] == [True]


def test_loader_refuses_a_use_of_nothing(house: LegacyHouse) -> None:
    """In its exact words."""
    reply = house.ask(LOADER, {"action": "record_usage"})
    assert (reply["status"], reply["message"]) == ("error", "No model_id provided")


def test_loader_health(house: LegacyHouse) -> None:
    """HEALTHY, on both ports."""
    for health in (house.ask(LOADER, {"action": "health_check"}), house.health(LOADER)):
        assert (health["status"], health["agent"]) == ("HEALTHY", LOADER)
        assert isinstance(health["uptime"], float)
        time.strptime(health["timestamp"], "%Y-%m-%d %H:%M:%S")


@pytest.mark.parametrize(("agent", "action"), [(GGUF, "generate_text"), (MMA, "generate"), (SUITE, "generate")])
def test_an_answer_nobody_waits_for_is_not_worked_out(
    house: LegacyHouse, monkeypatch: pytest.MonkeyPatch, agent: str, action: str
) -> None:
    """A client that gave up asks again; the model works for that request alone."""
    began, ended = threading.Event(), threading.Event()
    ask = house.edge.house.ask

    async def slow(subject: str, body: Any = None, **more: Any) -> Any:
        if subject != "model.chat":
            return await ask(subject, body, **more)
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr(house.edge.house, "ask", slow)
    client = house.socket(zmq.REQ, agent)
    client.send_json({"action": action, "model_id": DEMO, "prompt": "What is 7 + 5?"})
    assert began.wait(20) and not ended.is_set()
    client.close(0)
    assert ended.wait(20)


# ModelEvaluationFramework -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", [MEF, SUITE])
@pytest.mark.parametrize("form", ["object", "flat"])
def test_measurements_are_kept_and_read_back(house: LegacyHouse, agent: str, form: str) -> None:
    """Both forms on both ports; ids and times are text, the newest first."""
    name = f"Agent-{agent}-{form}"
    for value in (0.25, 0.5):
        fields = {"agent_name": name, "metric_name": "latency", "value": value, "context": {"n": 1}}
        wrapped = {"metric": fields} if form == "object" else fields
        logged = house.ask(agent, {"action": "log_performance_metric", **wrapped})
        assert (logged["status"], str(uuid.UUID(logged["metric_id"]))) == ("success", logged["metric_id"])
    reply = house.ask(agent, {"action": "get_performance_metrics", "agent_name": name})
    assert reply["status"] == "success"
    assert [one["value"] for one in reply["metrics"]] == [0.5, 0.25]
    assert set(reply["metrics"][0]) >= METRIC
    assert reply["metrics"][0]["context"] == {"n": 1}
    assert abs(datetime.fromisoformat(reply["metrics"][0]["timestamp"]) - datetime.now()) < timedelta(minutes=10)
    one = house.ask(agent, {"action": "get_performance_metrics", "agent_name": name, "limit": 1})
    assert len(one["metrics"]) == 1


def test_the_suite_reads_measurements_of_a_time(house: LegacyHouse) -> None:
    """From start to end; `metadata` is its word for the context."""
    for day in ("01", "02", "03"):
        metric = {"agent_name": "dated", "metric_name": "m", "value": 1.0, "timestamp": f"2025-05-{day}T12:00:00"}
        house.ask(MEF, {"action": "log_performance_metric", "metric": metric})
    house.ask(
        SUITE,
        {
            "action": "log_performance_metric",
            "agent_name": "dated",
            "metric_name": "n",
            "value": 2,
            "metadata": {"k": 1},
        },
    )
    asked = {"action": "get_performance_metrics", "agent_name": "dated"}
    between = house.ask(SUITE, {**asked, "start_time": "2025-05-02T00:00:00", "end_time": "2025-05-03T23:00:00"})
    assert [one["timestamp"] for one in between["metrics"]] == ["2025-05-03T12:00:00", "2025-05-02T12:00:00"]
    assert house.ask(SUITE, {**asked, "metric_name": "n"})["metrics"][0]["metadata"] == {"k": 1}
    one = house.ask(SUITE, {**asked, "start_time": "2025-05-02T12:00:00", "end_time": "2025-05-02T12:00:00"})
    assert [one["timestamp"] for one in one["metrics"]] == ["2025-05-02T12:00:00"]


@pytest.mark.parametrize(
    ("asked", "days"),
    [
        ({"start_time": "2025-06", "end_time": "2025-06-02T23"}, [2, 1]),
        ({"start_time": "2025-06-02", "limit": 1}, [3]),
        ({"start_time": "yesterday"}, []),
        ({"end_time": "2025"}, []),
    ],
)
def test_a_part_of_a_time_bounds_measurements_as_text(
    house: LegacyHouse, asked: dict[str, Any], days: list[int]
) -> None:
    """Bounds were compared with times as text, so a month or an hour is one."""
    for day in (1, 2, 3):
        stamp = f"2025-06-0{day}T12:00:00.{day}"
        metric = {"agent_name": "texts", "metric_name": "m", "value": 1, "timestamp": stamp, "metric_id": f"text-{day}"}
        house.ask(MEF, {"action": "log_performance_metric", "metric": metric})
    reply = house.ask(SUITE, {"action": "get_performance_metrics", "agent_name": "texts", **asked})
    assert [int(one["timestamp"][9]) for one in reply["metrics"]] == days


@pytest.mark.parametrize("agent", [MEF, SUITE])
@pytest.mark.parametrize("form", ["object", "flat"])
def test_marks_are_kept_and_read_back(house: LegacyHouse, agent: str, form: str) -> None:
    """A cycle may be any text; the newest first."""
    name = f"{agent}/{form} 7b"
    for trust in (0.25, 0.75):
        fields = {
            "model_name": name, "cycle_id": "cycle one", "trust_score": trust, "accuracy": 0.5, "avg_latency_ms": 12.5,
            "comparison_data": {"before": 0.1},
        }  # fmt: skip
        wrapped = {"evaluation": fields} if form == "object" else fields
        logged = house.ask(agent, {"action": "log_model_evaluation", **wrapped})
        assert (logged["status"], str(uuid.UUID(logged["evaluation_id"]))) == ("success", logged["evaluation_id"])
    reply = house.ask(agent, {"action": "get_model_evaluation_scores", "model_name": name})
    assert [one["trust_score"] for one in reply["evaluations"]] == [0.75, 0.25]
    newest = reply["evaluations"][0]
    assert set(newest) == EVALUATION
    assert (newest["model_name"], newest["cycle_id"], newest["f1_score"]) == (name, "cycle one", None)
    assert (newest["avg_latency_ms"], newest["comparison_data"]) == (12.5, {"before": 0.1})
    datetime.fromisoformat(newest["evaluation_timestamp"])
    limited = house.ask(agent, {"action": "get_model_evaluation_scores", "model_name": name, "limit": 1})
    assert len(limited["evaluations"]) == 1


@pytest.mark.parametrize(
    ("action", "fields", "text"),
    [
        ("log_performance_metric", {}, "'metric'"),
        ("log_performance_metric", {"metric": "x"}, None),
        ("log_performance_metric", {"metric": {"agent_name": "a", "metric_name": "m"}}, None),
        ("log_performance_metric", {"metric": {"agent_name": "a", "metric_name": "m", "value": "much"}}, None),
        ("log_model_evaluation", {}, "'evaluation'"),
        ("log_model_evaluation", {"evaluation": {"model_name": "m", "cycle_id": "c", "trust_score": 0.5}}, None),
        (
            "log_model_evaluation",
            {"evaluation": {"model_name": "m", "cycle_id": "", "trust_score": 0.5, "avg_latency_ms": 1}},
            None,
        ),
        (
            "log_model_evaluation",
            {"evaluation": {"model_name": "m", "cycle_id": "c", "trust_score": 2, "avg_latency_ms": 1}},
            None,
        ),
        ("get_performance_metrics", {"limit": "all"}, None),
    ],
)
def test_mef_failures(house: LegacyHouse, action: str, fields: dict[str, Any], text: str | None) -> None:
    """Missing objects in the words of the old agent."""
    reply = house.ask(MEF, {"action": action, **fields})
    assert (reply["status"], reply["message"] if text else None) == ("error", text)


def test_mef_counts_and_is_asked_for_health_by_command(house: LegacyHouse) -> None:
    """Whole numbers that grow; SUCCESS for the command."""
    before = house.ask(MEF, {"action": "get_stats"})["metrics"]
    metric = {"agent_name": "counted", "metric_name": "m", "value": 1}
    house.ask(MEF, {"action": "log_performance_metric", "metric": metric})
    after = house.ask(MEF, {"action": "get_stats"})["metrics"]
    assert set(after) == {"performance_logs", "trust_score_updates", "models_tracked"}
    assert after["performance_logs"] == before["performance_logs"] + 1
    assert house.ask(MEF, {"command": "HEALTH_CHECK"})["status"] == "SUCCESS"
    assert house.health(MEF)["health_status"] == "healthy"


# ModelManagerSuite --------------------------------------------------------------------------------------------------


def test_the_suite_loads_and_unloads(house: LegacyHouse) -> None:
    """What is not there is unloaded too."""
    assert house.ask(SUITE, {"action": "unload_model", "model_id": "nobody"})["unloaded"] is True
    assert house.ask(SUITE, {"action": "unload_model", "model_id": DEMO})["unloaded"] is True
    failed = house.ask(SUITE, {"action": "load_model", "model_id": "nobody"})
    assert (failed["status"], failed["loaded"]) == ("error", False)
    reply = house.ask(SUITE, {"action": "load_model", "model_id": DEMO})
    assert (reply["status"], reply["loaded"], bool(reply["message"])) == ("success", True, True)


@pytest.mark.parametrize(
    ("fields", "conversation"),
    [
        ({"action": "generate_text", "model_id": DEMO}, None),
        ({"action": "generate_text", "model_id": DEMO, "conversation_id": "s", "top_p": 0.9, "stop": ["zz"]}, "s"),
        ({"action": "generate_text", "model_id": DEMO, "params": {"conversation_id": "p", "max_tokens": 40}}, "p"),
        ({"action": "generate"}, None),
        ({"action": "generate", "model_pref": "smart", "params": {"temperature": 0}, "conversation_id": "g"}, "g"),
    ],
)
def test_the_suite_generates(house: LegacyHouse, fields: dict[str, Any], conversation: str | None) -> None:
    """`success` and `text` for both actions, options at the top or in `params`."""
    reply = house.ask(SUITE, {"prompt": "What is 7 + 5?", **fields})
    assert set(reply) >= {"status", "text", "model_id", "tokens_generated", "conversation_id"}
    assert (reply["status"], reply["model_id"], reply["conversation_id"]) == ("success", DEMO, conversation)
    assert reply["text"].startswith("7 + 5 = 12")
    assert reply["tokens_generated"] > 0


@pytest.mark.usefixtures("demo")
def test_the_suite_lists_and_tells_models(house: LegacyHouse) -> None:
    """Entries with status and registry fields, absolute paths; one model or all of them."""
    demo = next(one for one in house.ask(SUITE, {"action": "list_models"})["models"] if one["model_id"] == DEMO)
    assert set(demo) >= SUITE_ENTRY
    assert (demo["status"], demo["type"], Path(demo["model_path"]).is_absolute()) == ("online", "gguf", True)
    one = house.ask(SUITE, {"action": "get_model_status", "model_id": DEMO})["model"]
    assert one["loaded"] is True and one["last_used"] > 0
    assert DEMO in house.ask(SUITE, {"action": "get_model_status"})["models"]
    selected = house.ask(SUITE, {"action": "select_model", "task_type": "chat"})
    assert selected == {"status": "success", "selected_model": DEMO}
    loaded = house.ask(SUITE, {"action": "get_loaded_models_status"})
    assert set(loaded["loaded_models"][DEMO]) == {"status", "last_used", "vram_usage"}
    assert loaded["loaded_models"][DEMO]["status"] == "online"


@pytest.mark.usefixtures("demo")
def test_the_suite_loads_ahead_of_need(house: LegacyHouse) -> None:
    """It says how many were asked for, and of each what became of it."""
    reply = house.ask(SUITE, {"action": "preload_models", "model_ids": [DEMO, "nobody"]})
    assert (reply["status"], "2" in reply["message"]) == ("success", True)
    assert [one["started"] for one in reply["models"].values()] == [False, False]
    assert house.ask(SUITE, {"action": "preload_models"})["status"] == "success"


@pytest.mark.parametrize(
    "request_",
    [
        {"action": "load_model"},
        {"action": "load_model", "model_name": DEMO},
        {"action": "unload_model"},
        {"action": "generate_text", "prompt": "hi"},
        {"action": "generate_text", "model_id": DEMO},
        {"action": "generate_text", "model_id": "nobody", "prompt": "hi"},
        {"action": "generate"},
        {"action": "select_model"},
        {"action": "get_model_status", "model_id": "nobody"},
        {"action": "record_usage"},
        {"action": "preload_models", "model_ids": DEMO},
        {"action": "log_performance_metric", "metric_name": "m", "value": 1},
        {"action": "log_performance_metric", "agent_name": "a", "metric_name": "m"},
        {"action": "log_model_evaluation", "model_name": "m", "cycle_id": "c"},
    ],
)
def test_the_suite_failures(house: LegacyHouse, request_: dict[str, Any]) -> None:
    """`error` with a text."""
    reply = house.ask(SUITE, request_)
    assert (reply["status"], bool(reply["message"])) == ("error", True)


def test_the_suite_wants_an_action(house: LegacyHouse) -> None:
    """In its exact words."""
    assert house.ask(SUITE, {"model_id": DEMO})["message"] == "Missing action field"


def test_the_suite_counts(house: LegacyHouse) -> None:
    """Six figures, and those that the first form had beside them."""
    reply = house.ask(SUITE, {"action": "get_stats"})
    assert set(reply["metrics"]) == {
        "performance_logs", "trust_score_updates", "models_tracked", "predictions_made", "models_loaded",
        "models_unloaded",
    }  # fmt: skip
    assert {"models_loaded", "models_tracked", "commands_processed"} <= set(reply)
    assert all(isinstance(value, int) for value in reply["metrics"].values())


@pytest.mark.usefixtures("demo")
def test_the_suite_tells_its_health(house: LegacyHouse) -> None:
    """Healthy while a model is loaded; another object on the health port."""
    health = house.ask(SUITE, {"action": "health_check"})
    assert set(health) >= {
        "status", "total_models", "online_models", "loaded_models", "vram_used_mb", "vram_budget_mb", "model_details",
        "timestamp",
    }  # fmt: skip
    assert (health["status"], health["loaded_models"]) == ("healthy", 1)
    assert health["model_details"][DEMO]["status"] == "online"
    own = house.health(SUITE)
    assert set(own) == {
        "status", "agent", "uptime", "timestamp", "commands_processed", "loaded_models", "vram_used_mb",
        "vram_budget_mb", "device", "metrics",
    }  # fmt: skip
    assert (own["status"], own["agent"], own["device"]) == ("ok", SUITE, "cpu")


# Old clients --------------------------------------------------------------------------------------------------------


class ModelClient:
    """The shared client of the old agents: tries the suite's port, then the agent's, and hands the reply on as it is."""

    def __init__(self, ports: list[int]) -> None:
        self.ports = ports

    def _send(self, request: dict[str, Any]) -> dict[str, Any]:
        request |= {"request_id": str(uuid.uuid4()), "timestamp": datetime.now().isoformat()}
        context = zmq.Context()
        try:
            for port in self.ports:
                client = context.socket(zmq.REQ)
                client.setsockopt(zmq.RCVTIMEO, 10_000)
                client.setsockopt(zmq.LINGER, 0)
                client.connect(f"tcp://127.0.0.1:{port}")
                try:
                    client.send_string(json.dumps(request))
                    reply: dict[str, Any] = json.loads(client.recv_string())
                    return reply
                except zmq.Again:
                    continue
                finally:
                    client.close()
        finally:
            context.term()
        return {"status": "error", "message": "no model manager answers"}

    def generate(self, prompt: str, quality: str = "fast", **more: Any) -> dict[str, Any]:
        return self._send({"action": "generate", "prompt": prompt, "model_pref": quality, "params": {}, **more})

    def status(self) -> dict[str, Any]:
        return self._send({"action": "status"})

    def clear(self, conversation_id: str) -> dict[str, Any]:
        return self._send({"action": "clear_conversation", "conversation_id": conversation_id})


@pytest.mark.parametrize("agent", [SUITE, MMA])
@pytest.mark.usefixtures("demo")
def test_the_shared_client_works_with_either_port(house: LegacyHouse, agent: str) -> None:
    """Whichever it reaches first: its callers read `response_text`."""
    client = ModelClient([house.port(agent)])
    reply = client.generate("What is 7 + 5?", "quality", conversation_id="shared")
    assert reply["status"] in ("ok", "success")
    assert reply["response_text"] and reply["model_used"] == DEMO
    assert client.clear("shared")["status"] == "ok"
    assert client.status()["loaded_models"]


def test_the_vram_optimizer_gets_what_it_checks(house: LegacyHouse) -> None:
    """Exactly SUCCESS, an object of loaded models, `.get` on every reply."""

    def command(name: str, **fields: Any) -> dict[str, Any]:
        reply: dict[str, Any] = house.ask(MMA, {"command": name, **fields})
        return reply

    assert command("HEALTH_CHECK").get("status") == "SUCCESS"
    assert house.ask(MEF, {"command": "HEALTH_CHECK"}).get("status") == "SUCCESS"
    assert command("LOAD_MODEL", model_name=DEMO, device="MainPC", quantization_level="FP16").get("status") == "SUCCESS"
    reply = command("GET_LOADED_MODELS_STATUS")
    assert reply.get("status") == "SUCCESS"
    for info in reply.get("loaded_models", {}).values():
        assert info["vram_usage_mb"] <= reply["total_vram_mb"]
        assert info.get("device", "MainPC") == "MainPC"
    assert command("UNLOAD_MODEL", model_name=DEMO).get("status") == "SUCCESS"
    assert command("GET_LOADED_MODELS_STATUS").get("loaded_models") == {}
    assert command("LOAD_MODEL", model_name="nobody").get("message")


def test_the_model_orchestrator_gets_its_text(house: LegacyHouse) -> None:
    """It names no model, and reads `result.text` of a success."""
    reply = house.ask(MMA, {"action": "generate_text", "prompt": "What is 7 + 5?"})
    assert reply.get("status") == "success"
    assert reply.get("result", {}).get("text", "").startswith("7 + 5")
    assert reply["success"] is True


def test_the_parity_test_finds_both_ports_alike(house: LegacyHouse) -> None:
    """The same status, and on the shared port every key that the agent's own has; also by `model_name`."""
    with zmq.Context() as context, context.socket(zmq.REQ) as shared:
        shared.setsockopt(zmq.RCVTIMEO, 10_000)
        shared.setsockopt(zmq.LINGER, 0)
        shared.connect(f"tcp://127.0.0.1:{shared_port(house)}")
        for request in [
            {"action": "health_check"},
            {"action": "generate", "prompt": "Hello", "model_pref": "fast", "params": {"max_tokens": 4}},
            {"action": "load_model", "model_name": DEMO},
            {"action": "unload_model", "model_name": DEMO},
            {"action": "list_models"},
        ]:
            ours = house.ask(MMA, request)
            shared.send_json(request)
            theirs: Any = shared.recv_json()
            assert theirs["status"] == ours["status"] != "error", request
            assert set(ours) <= set(theirs), request
        shared.send_json({"action": "predict_models"})
        only_the_suite: Any = shared.recv_json()
        assert only_the_suite["status"] == "success"


def test_the_speech_agents_get_their_model_ready(house: LegacyHouse) -> None:
    """Without a verb; the number of the request comes back, the time is UTC without a zone."""
    request_id = str(uuid.uuid4())
    ready = house.ask(MMA, {"model_id": DEMO, "request_id": request_id, "context": {"quantization_level": "FP16"}})
    assert set(ready) == {"status", "request_id", "model_id", "access_info", "timestamp"}
    assert (ready["status"], ready["request_id"], ready["model_id"]) == ("MODEL_READY", request_id, DEMO)
    assert set(ready["access_info"]) == {
        "message", "model_path_from_config", "vram_allocated_mb", "quantization_level", "priority",
    }  # fmt: skip
    assert datetime.fromisoformat(ready["timestamp"]).tzinfo is None
    missing = house.ask(MMA, {"model_id": "whisper-large-v3", "request_id": request_id})
    assert (missing["status"], missing["error_code"]) == ("ERROR_LOADING_MODEL", "MODEL_NOT_FOUND")
    assert missing["error_message"]
