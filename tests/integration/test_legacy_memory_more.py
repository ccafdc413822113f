"""The legacy agents around memory as their clients meet them: reasoning, contexts, caches, sign-in, trust; over REQ."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import zmq

from bus.client import Client
from schemas.bodies.accounts import Logout, TrustRecord, UserAdd
from schemas.bodies.items import ExperienceList
from schemas.bodies.memory import CacheGet, KvList
from tests.legacy_house import LegacyHouse
from workers.gateway.legacy.agent import Agent
from workers.gateway.legacy.agents import (
    authentication,
    cache_manager,
    context_manager,
    experience_tracker,
    proactive_monitor,
    reasoning,
    trust_scorer,
    utils_agent,
)

UMRA, CONTEXT, TRACKER, CACHE = (
    "UnifiedMemoryReasoningAgent",
    "ContextManager",
    "ExperienceTracker",
    "CacheManager",
)
MONITOR, UTILS, AUTH, TRUST = (
    "ProactiveContextMonitor",
    "UnifiedUtilsAgent",
    "AuthenticationAgent",
    "AgentTrustScorer",
)
AGENTS: list[Agent] = [
    reasoning.AGENT,
    context_manager.AGENT,
    experience_tracker.AGENT,
    cache_manager.AGENT,
    proactive_monitor.AGENT,
    utils_agent.AGENT,
    authentication.AGENT,
    trust_scorer.AGENT,
]
NAMES = [agent.name for agent in AGENTS]

BASE_HEALTH = {"status", "ready", "initialized", "message", "timestamp", "uptime", "health_checks", "health_status"}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LegacyHouse]:
    """The eight agents over a real memory service. Access tokens are so short that each use renews them."""
    with LegacyHouse(tmp_path_factory.mktemp("legacy"), AGENTS, **{"auth.access_ttl_s": 5}) as opened:
        yield opened


def ask(house: LegacyHouse, agent: str, action: str, **fields: Any) -> Any:
    """One request with the fields at its top."""
    return house.ask(agent, {"action": action, **fields})


def order(house: LegacyHouse, command: str, **fields: Any) -> Any:
    """One command of the reasoning agent's older form."""
    return house.ask(UMRA, {"command": command, **fields})


# What holds for all


@pytest.mark.parametrize("agent", NAMES)
@pytest.mark.parametrize(
    ("frames", "text"),
    [
        ([b"{"], "Invalid JSON request"),
        ([b""], "Invalid JSON request"),
        ([b"ping"], "Invalid JSON request"),
        ([b"\xff\xfe"], "Invalid UTF-8 request"),
        ([b"{}", b"{}"], "Invalid JSON request"),
        ([b"[1]"], None),
        ([b"null"], None),
        ([b'"text"'], None),
        ([b"{}"], None),
        ([b'{"action": {"a": 1}}'], None),
        ([b'{"action": "no such thing"}'], None),
    ],
    ids=["broken", "empty", "plain", "latin", "two frames", "array", "null", "text", "no action", "odd", "unknown"],
)
def test_what_no_agent_understands_gets_an_error_reply(
    house: LegacyHouse, agent: str, frames: list[bytes], text: str | None
) -> None:
    """One object, with the text under `error` too."""
    replies = house.raw(agent, frames)

    assert len(replies) == 1
    reply = json.loads(replies[0])
    assert reply["status"] == "error"
    assert reply["error"]
    assert text is None or reply["error"] == text


@pytest.mark.parametrize("agent", NAMES)
@pytest.mark.parametrize("action", ["health_check", "health", "ping"])
def test_every_main_port_tells_its_health(house: LegacyHouse, agent: str, action: str) -> None:
    """Pollers ask for `ok` and the keys of the old base class."""
    reply = ask(house, agent, action)

    assert reply["status"] == "ok"
    assert set(reply) >= BASE_HEALTH


@pytest.mark.parametrize("agent", [name for name in NAMES if name not in (CONTEXT, TRACKER)])
@pytest.mark.parametrize("frame", [b'{"action": "health_check"}', b"ping", b"", b"\xff", b'{"request_type": "x"}'])
def test_every_health_port_answers_any_frame(house: LegacyHouse, agent: str, frame: bytes) -> None:
    """JSON or not."""
    assert set(house.health(agent, frame)) >= BASE_HEALTH


@pytest.mark.parametrize("agent", [CONTEXT, TRACKER])
def test_two_health_ports_answer_health_check_alone(house: LegacyHouse, agent: str) -> None:
    """In words of their own."""
    reply = house.health(agent)

    assert datetime.fromisoformat(reply.pop("timestamp")) <= datetime.now()
    assert reply == {
        "status": "ok",
        "service": agent,
        "initialization_status": "complete",
        "port": house.port(agent),
        "health_port": house.port(agent, "health"),
    }
    for frame in (b"ping", b'{"action": "ping"}', b"\xff"):
        other = house.health(agent, frame)
        assert set(other) == {"status", "message"}
        assert other["status"] == "unknown_action"


@pytest.mark.parametrize(
    ("agent", "keys"),
    [
        (
            UMRA,
            {
                "request_count",
                "error_count",
                "last_request_time",
                "health_check_count",
                "update_count",
                "get_count",
                "delete_count",
                "successful_updates",
                "failed_updates",
                "total_twins",
                "total_sessions",
                "total_error_patterns",
            },
        ),
        (
            CACHE,
            {"redis_available", "name", "version", "port", "health_port", "error_reporting", "redis_info"},
        ),
        (MONITOR, {"service", "context_history_length", "request_count"}),
        (UTILS, {"agent", "port", "uptime_seconds", "request_count"}),
        (AUTH, {"agent_type", "active_sessions", "registered_users", "cleanup_thread_alive", "uptime_seconds"}),
        (TRUST, {"service", "additional_info"}),
    ],
    ids=[UMRA, CACHE, MONITOR, UTILS, AUTH, TRUST],
)
def test_health_has_the_keys_of_its_agent(house: LegacyHouse, agent: str, keys: set[str]) -> None:
    """Beside the common ones."""
    assert set(ask(house, agent, "health_check")) >= keys


MISSING = [
    (UMRA, "update_twin", {"user_id": "u"}, "No twin data provided"),
    (UMRA, "update_twin", {"twin_data": {}}, "No twin data provided"),
    (UMRA, "update_twin", {"twin_data": [1]}, "twin_data must be an object, not an array"),
    (UMRA, "delete_twin", {"user_id": "nobody"}, "User not found"),
    (UMRA, "add_interaction", {"session_id": "s", "interaction_type": "code"}, "Missing required fields"),
    (UMRA, "add_interaction", {"session_id": "s", "content": "c"}, "Missing required fields"),
    (UMRA, "add_interaction", {"interaction_type": "code", "content": "c"}, "Missing required fields"),
    (UMRA, "get_context", {}, "Missing session_id"),
    (UMRA, "add_error_pattern", {"error_type": "t"}, "Missing required fields"),
    (UMRA, "add_error_pattern", {"pattern": "p"}, "Missing required fields"),
    (UMRA, "get_error_solution", {}, "Missing error_message"),
    (UMRA, "nonsense", {}, "Unknown action"),
    (UMRA, None, {}, "Unknown action"),
    (CONTEXT, "nonsense", {}, "Unknown action: nonsense"),
    (TRACKER, "nonsense", {}, "Unknown action: nonsense"),
    (CACHE, "get", {"cache_type": "t"}, "Missing required parameters"),
    (CACHE, "get", {"key": "k"}, "Missing required parameters"),
    (CACHE, "get", {"cache_type": "t", "key": "no"}, "Cache miss"),
    (CACHE, "put", {"cache_type": "t", "key": "k"}, "Missing required parameters"),
    (CACHE, "put", {"cache_type": "t", "key": "k", "value": None}, "Missing required parameters"),
    (CACHE, "put", {"cache_type": "t", "value": 1}, "Missing required parameters"),
    (CACHE, "put", {"cache_type": "t", "key": "k", "value": 1, "ttl": 0}, "ttl is 0; allowed: seconds above 0"),
    (CACHE, "put", {"cache_type": "t", "key": "k", "value": 1, "ttl": -5}, "ttl is -5; allowed: seconds above 0"),
    (CACHE, "invalidate", {"cache_type": "t"}, "Missing required parameters"),
    (CACHE, "flush", {}, "Missing required parameters"),
    (CACHE, "get_cached_memory", {}, "Missing required parameters"),
    (CACHE, "get_cached_memory", {"memory_id": "no"}, "Cache miss"),
    (CACHE, "cache_memory", {"memory_id": "m"}, "Missing required parameters"),
    (CACHE, "cache_memory", {"data": 1}, "Missing required parameters"),
    (CACHE, "invalidate_memory_cache", {}, "Missing required parameters"),
    (MONITOR, "add_context", {}, "Missing context data"),
    (MONITOR, "add_context", {"context": []}, "Missing context data"),
    (UTILS, "nonsense", {}, "Unknown action: nonsense"),
    (AUTH, "register", {"user_id": "x"}, "Missing user_id or password"),
    (AUTH, "login", {"password": "x"}, "Missing user_id or password"),
    (AUTH, "login", {"user_id": "nobody", "password": "x"}, "User not found"),
    (AUTH, "logout", {}, "Missing token"),
    (AUTH, "logout", {"token": "0" * 64}, "Invalid token"),
    (AUTH, "logout", {"token": "x"}, "Invalid token"),
    (AUTH, "logout", {"token": "x" * 9000}, "Invalid token"),
    (AUTH, "validate_token", {}, "Missing token"),
    (TRUST, "log_performance", {"success": True}, "'model_id'"),
    (TRUST, "log_performance", {"model_id": "m"}, "'success'"),
    (TRUST, "get_trust_score", {}, "'model_id'"),
    (TRUST, "get_performance_history", {}, "'model_id'"),
    (TRACKER, "store_memory", {}, "Missing content"),
    (TRACKER, "update_importance", {"memory_id": 999}, "Memory not found: 999"),
]


@pytest.mark.parametrize(("agent", "action", "fields", "text"), MISSING)
def test_a_failure_has_the_words_of_its_agent(
    house: LegacyHouse, agent: str, action: str, fields: dict[str, Any], text: str
) -> None:
    """Under every key that a client may read."""
    reply = ask(house, agent, action, **fields)

    assert reply["status"] == "error"
    assert reply["message"] == reply["error"] == text
    assert agent != UMRA or reply["reason"] == text
    assert text != "Cache miss" or reply["data"] is None


@pytest.mark.parametrize("value", ["\ud800", 10**30])
def test_what_cannot_be_kept_is_refused_in_words(house: LegacyHouse, value: Any) -> None:
    """Half a character, or a number past 64 bits."""
    reply = ask(house, UMRA, "update_twin", twin_data={"a": value})

    assert reply["status"] == "error"
    assert "cannot be kept" in reply["reason"]


# UnifiedMemoryReasoningAgent


def test_a_twin_is_replaced_whole_read_and_deleted(house: LegacyHouse) -> None:
    """Without a user it is that of `default`."""
    assert ask(house, UMRA, "get_twin") == {"status": "ok", "twin": {}}
    assert ask(house, UMRA, "update_twin", twin_data={"mood": "fine", "age": 3}) == {"status": "ok"}
    assert ask(house, UMRA, "update_twin", user_id="default", twin_data={"mood": "tired"}) == {"status": "ok"}
    assert ask(house, UMRA, "get_twin", user_id="default") == {"status": "ok", "twin": {"mood": "tired"}}
    assert ask(house, UMRA, "delete_twin") == {"status": "ok"}
    assert ask(house, UMRA, "get_twin") == {"status": "ok", "twin": {}}


def test_a_session_is_new_until_its_summary(house: LegacyHouse) -> None:
    """The fifty-first interaction makes it; `context` is an object either way."""
    new = ask(house, UMRA, "get_context", session_id="talk", max_tokens=10)
    assert new["status"] == "ok"
    assert new["context"]["context"] == "New session: talk"
    assert new["context"]["session_id"] == "talk"
    assert isinstance(new["context"]["last_updated"], float)
    kinds = ("user_query", "system_response", "code", "error")

    for number in range(51):
        reply = ask(
            house,
            UMRA,
            "add_interaction",
            session_id="talk",
            interaction_type=kinds[number % 4],
            content=f"connection lost {number}",
            metadata={"number": number},
        )
        assert reply == {"status": "ok"}

    context = ask(house, UMRA, "get_context", session_id="talk")["context"]
    assert set(context) == {
        "last_updated",
        "session_id",
        "code_context",
        "conversation_summary",
        "errors_encountered",
        "interactions",
    }
    assert context["errors_encountered"][-1] == {"type": "connection", "message": "connection lost 47"}
    assert [one["metadata"]["number"] for one in context["interactions"]] == list(range(1, 51))


def test_interactions_of_many_clients_at_once_are_all_kept(house: LegacyHouse) -> None:
    """Each is read, changed and written in its turn."""

    def tell(name: str) -> None:
        socket = house.socket(zmq.REQ, UMRA)
        for number in range(5):
            content = f"{name} {number}"
            socket.send_json(
                {"action": "add_interaction", "session_id": "many", "interaction_type": "code", "content": content}
            )
            socket.recv_json()
        socket.close()

    threads = [threading.Thread(target=tell, args=(f"client {number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    interactions = ask(house, UMRA, "get_context", session_id="many")["context"]["interactions"]
    assert len({one["content"] for one in interactions}) == 30


def test_the_first_pattern_in_the_message_gives_its_solution(house: LegacyHouse) -> None:
    """Added first, asked first; what never ends or is no pattern is passed over; null where none fits."""
    for error_type, pattern in (("endless", "(x+)+$"), ("broken", "("), ("b", "cuda.*memory"), ("a", "memory")):
        reply = ask(
            house, UMRA, "add_error_pattern", error_type=error_type, pattern=pattern, solution={"do": error_type}
        )
        assert reply == {"status": "ok"}

    message = f"CUDA out of Memory {'x' * 40}!"
    assert ask(house, UMRA, "get_error_solution", error_message=message) == {"status": "ok", "solution": {"do": "b"}}
    assert ask(house, UMRA, "get_error_solution", error_message="memory")["solution"] == {"do": "a"}
    assert ask(house, UMRA, "get_error_solution", error_message="fine") == {"status": "ok", "solution": None}
    entries = house.bus("memory.kv.list", KvList(ns="legacy.umra.patterns")).entries
    assert {entry.key: entry.value["occurrence_count"] for entry in entries}["b"] == 2
    too_long = ask(house, UMRA, "add_error_pattern", error_type="long", pattern="a" * 5000)
    assert too_long["reason"] == "pattern has 5000 characters, allowed are 4096"


def test_health_counts_what_was_done(house: LegacyHouse) -> None:
    """And what is kept."""
    before = ask(house, UMRA, "health_check")
    ask(house, UMRA, "update_twin", user_id="counted", twin_data={"a": 1})
    ask(house, UMRA, "update_twin", user_id="counted", twin_data={})
    ask(house, UMRA, "get_twin", user_id="counted")

    after = ask(house, UMRA, "health_check")

    risen = {key: after[key] - before[key] for key in before if key.endswith("_updates") or key.startswith("total_tw")}
    assert risen == {"successful_updates": 1, "failed_updates": 1, "total_twins": 1}
    assert after["get_count"] == before["get_count"] + 1
    assert after["request_count"] == before["request_count"] + 4
    assert after["service"] == "unified_memory_reasoning_agent"
    assert ask(house, UMRA, "delete_twin", user_id="counted") == {"status": "ok"}


# Its older form


def test_the_older_form_answers_its_commands(house: LegacyHouse) -> None:
    """As a web agent of that time used it."""
    ping = order(house, "TEST_PING", data={"from": "web"})
    assert ping["status"] == "SUCCESS"
    assert set(ping["data"]) == {"echo", "timestamp", "agent", "location"}
    assert ping["data"]["echo"] == {"from": "web"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", ping["data"]["timestamp"])

    page = {"type": "web", "content": "Fjords of the NORTH", "url": "u", "title": "t", "source": "web_agent"}
    memory_id = order(house, "STORE_MEMORY", data=page)["data"]["memory_id"]
    assert re.fullmatch(r"mem_\d+_[0-9a-f]{8}", memory_id)
    assert order(house, "STORE_MEMORY", data={"id": "own", "content": "south", "strength": 0.5})["data"] == {
        "memory_id": "own"
    }

    found = order(house, "QUERY_MEMORY", query={"keywords": ["nowhere", "north"]})["data"]["memories"]
    assert [memory["id"] for memory in found] == [memory_id]
    assert page.items() <= found[0].items()
    assert set(found[0]) == {*page, "id", "created_at", "last_accessed", "strength", "forgotten"}
    for query, ids in (
        ({"ids": ["own", "none", memory_id]}, ["own", memory_id]),
        ({"id": "own"}, ["own"]),
        ({"source": "web_agent"}, [memory_id]),
        ({"keywords": ["north"], "source": "unknown"}, []),
        ({"source": "unknown", "min_strength": 0.6}, []),
    ):
        reply = order(house, "QUERY_MEMORY", query=query)
        assert [memory["id"] for memory in reply["data"]["memories"]] == ids, query

    assert order(house, "REINFORCE_MEMORY", memory_id="own")["data"] == {"memory_id": "own", "strength": 0.6}
    later = {"id": "own", "content": "from elsewhere", "last_accessed": time.time() + 60}
    stale = {"id": memory_id, "content": "stale", "last_accessed": 1.0}
    synced = order(
        house, "SYNC_MEMORIES", memories=[later, stale, {"id": "third", "content": "3"}, {"content": "no id"}]
    )
    assert synced["data"] == {"synced_count": 2, "total_memories": 3}
    status = order(house, "GET_MEMORY_STATUS")["data"]
    assert (status["total_memories"], status["active_memories"], status["forgotten_memories"]) == (3, 3, 0)
    assert (status["total_reinforcements"], status["total_decays"]) == (1, 0)
    assert set(status) >= {"last_decay_check", "last_sync", "timestamp"}

    deleted = order(house, "DELETE_MEMORY", memory_id="own")
    assert deleted["status"] == "SUCCESS"
    assert "data" not in deleted
    health = order(house, "HEALTH_CHECK")
    assert health["status"] == "success"
    assert isinstance(health["health"], dict)
    assert isinstance(health["metrics"], dict)


@pytest.mark.parametrize(
    ("command", "fields"),
    [
        ("STORE_MEMORY", {}),
        ("STORE_MEMORY", {"data": {}}),
        ("STORE_MEMORY", {"data": [1]}),
        ("QUERY_MEMORY", {}),
        ("QUERY_MEMORY", {"query": {"min_strength": 1}}),
        ("QUERY_MEMORY", {"query": {"id": "none"}}),
        ("REINFORCE_MEMORY", {}),
        ("REINFORCE_MEMORY", {"memory_id": "none"}),
        ("SYNC_MEMORIES", {"memories": []}),
        ("DELETE_MEMORY", {}),
        ("DELETE_MEMORY", {"memory_id": "none"}),
        ("DELETE_MEMORY", {"memory_id": "x" * 2000}),
        ("NO_SUCH", {}),
    ],
)
def test_a_command_that_fails_says_error_in_capitals(house: LegacyHouse, command: str, fields: dict[str, Any]) -> None:
    """With a message and no data."""
    reply = order(house, command, **fields)

    assert reply["status"] == "ERROR"
    assert reply["message"]
    assert "data" not in reply


# ContextManager, ProactiveContextMonitor


def test_what_was_said_is_given_by_importance_and_as_text(house: LegacyHouse) -> None:
    """Nothing said is no error and adds nothing; clearing all leaves the speakers' own windows."""
    assert ask(house, CONTEXT, "clear_context")["status"] == "success"
    assert ask(house, CONTEXT, "add_to_context")["status"] == "success"
    assert ask(house, CONTEXT, "add_to_context", text="")["status"] == "success"
    assert ask(house, CONTEXT, "get_context") == {"status": "success", "context": []}

    ask(house, CONTEXT, "add_to_context", text="plain")
    ask(house, CONTEXT, "add_to_context", text="remember this", speaker="bo", metadata={"a": 1})

    items = ask(house, CONTEXT, "get_context")["context"]
    assert [set(item) for item in items] == [{"text", "timestamp", "speaker", "importance", "metadata"}] * 2
    assert [(item["text"], item["speaker"], item["metadata"]) for item in items] == [
        ("remember this", "bo", {"a": 1}),
        ("plain", None, {}),
    ]
    assert ask(house, CONTEXT, "get_context_text") == {
        "status": "success",
        "context_text": "[bo]: remember this\nplain",
    }
    assert len(ask(house, CONTEXT, "get_context", speaker="bo", max_items=1)["context"]) == 1
    assert set(ask(house, CONTEXT, "prune_context")) == {"status", "message"}
    ask(house, CONTEXT, "clear_context", speaker=None)
    assert ask(house, CONTEXT, "get_context_text", speaker="bo")["context_text"] == "[bo]: remember this"


def test_the_monitor_holds_the_last_hundred_contexts(house: LegacyHouse) -> None:
    """Oldest first; a limit of 0 or of another type gives all."""
    for number in range(102):
        assert ask(house, MONITOR, "add_context", context={"n": number})["status"] == "success"

    reply = ask(house, MONITOR, "get_context_history")
    assert (reply["count"], reply["total"]) == (10, 100)
    assert [one["data"]["n"] for one in reply["history"]] == list(range(92, 102))
    assert set(reply["history"][0]) == {"timestamp", "data"}
    for limit in (0, "5", None, 1000):
        assert ask(house, MONITOR, "get_context_history", limit=limit)["count"] == 100, limit
    assert ask(house, MONITOR, "health_check")["context_history_length"] == 100
    assert ask(house, MONITOR, "clear_context_history")["status"] == "success"
    assert ask(house, MONITOR, "get_context_history") == {"status": "success", "history": [], "count": 0, "total": 0}


# ExperienceTracker


def test_experiences_come_by_importance_and_count_their_readings(house: LegacyHouse) -> None:
    """A field of the wrong type is its default; what is over is hidden; native clients see the same ones."""
    first = ask(house, TRACKER, "track_experience", content="low", importance_score=0.2, metadata={"a": 1})
    assert set(first) == {"status", "memory_id", "message"}
    assert isinstance(first["memory_id"], int)
    high = ask(house, TRACKER, "track_experience", content="high", importance_score=0.9, source_agent="Planner")
    plain = ask(house, TRACKER, "track_experience", content=5, importance_score="x", metadata=[1], expires_at=3)
    over = (datetime.now() - timedelta(hours=1)).isoformat()
    assert ask(house, TRACKER, "track_experience", content="over", expires_at=over)["status"] == "success"

    reply = ask(house, TRACKER, "get_experiences")
    assert reply["count"] == 3
    assert [item["memory_id"] for item in reply["memories"]] == [
        high["memory_id"],
        plain["memory_id"],
        first["memory_id"],
    ]
    item = reply["memories"][2]
    assert datetime.fromisoformat(item.pop("last_accessed")) <= datetime.now()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", item.pop("created_at"))
    assert item == {
        "memory_id": first["memory_id"],
        "content": "low",
        "memory_type": "experience",
        "importance_score": 0.2,
        "access_count": 0,
        "metadata": {"a": 1},
    }
    again = ask(house, TRACKER, "get_experiences", limit=1)
    assert (again["count"], again["memories"][0]["access_count"]) == (1, 1)
    assert ask(house, TRACKER, "get_experiences", limit="all")["count"] == 3
    assert ask(house, TRACKER, "get_experiences", limit=0)["memories"] == []
    native = house.bus("memory.experience.list", ExperienceList(agent="Planner")).experiences
    assert [experience.action for experience in native] == ["high"]


def test_the_store_behind_the_tracker_keeps_memories_by_number(house: LegacyHouse) -> None:
    """Its own actions are answered beside the tracker's."""
    one = ask(house, TRACKER, "store_memory", content="the cat sleeps", metadata={"k": "v"})["memory_id"]
    two = ask(house, TRACKER, "store_memory", content="the dog barks", memory_type="fact", importance_score=0.9)
    assert two == {"status": "success", "memory_id": one + 1, "message": "Memory stored"}

    reply = ask(house, TRACKER, "retrieve_memory")
    assert [item["memory_id"] for item in reply["memories"]] == [one + 1, one]
    assert (reply["count"], reply["memories"][1]["metadata"]) == (2, {"k": "v"})
    assert [item["memory_id"] for item in ask(house, TRACKER, "retrieve_memory", query="CAT")["memories"]] == [one]
    assert ask(house, TRACKER, "retrieve_memory", memory_type="fact")["memories"][0]["access_count"] == 1
    assert ask(house, TRACKER, "update_importance", memory_id=one, importance_score=1.0)["status"] == "success"
    assert ask(house, TRACKER, "retrieve_memory", limit=1)["memories"][0]["memory_id"] == one
    assert ask(house, TRACKER, "delete_expired")["deleted_count"] == 0
    assert ask(house, TRACKER, "get_stats")["stats"] == {
        "total_memories": 2,
        "memories_by_type": {"general": 1, "fact": 1},
        "average_importance": pytest.approx(0.95),
        "expired_memories": 0,
    }
    ask(house, TRACKER, "store_memory", content="tracked", memory_type="experience", importance_score=1)
    assert ask(house, TRACKER, "retrieve_memory", memory_type="experience")["memories"][0]["content"] == "tracked"


# CacheManager


@pytest.mark.parametrize("value", [{"a": [1, None]}, "text", 0, "", [], False, 1.5])
@pytest.mark.parametrize("kind", ["nlu_results", "two words"])
def test_the_cache_keeps_any_value_but_null(house: LegacyHouse, kind: str, value: Any) -> None:
    """Also what counts as nothing."""
    assert ask(house, CACHE, "put", cache_type=kind, key="k", value=value)["status"] == "success"
    assert ask(house, CACHE, "get", cache_type=kind, key="k") == {"status": "success", "data": value}


def test_the_time_to_live_follows_from_the_type_unless_given(house: LegacyHouse) -> None:
    """The same entries are there for clients of the bus."""
    kinds = {"nlu_results": 300, "model_decisions": 600, "context_summaries": 3600, "tool_responses": 900, "else": 3600}
    for kind, expected_s in kinds.items():
        ask(house, CACHE, "put", cache_type=kind, key="ttl", value=1, ttl=None)
        entry = house.bus("memory.cache.get", CacheGet(key="ttl", type=kind))
        assert entry.ttl_s == pytest.approx(expected_s, abs=10), kind
    ask(house, CACHE, "put", cache_type="nlu_results", key="ttl", value=1, ttl=50)
    assert house.bus("memory.cache.get", CacheGet(key="ttl", type="nlu_results")).ttl_s == pytest.approx(50, abs=10)
    ask(house, CACHE, "put", cache_type="memory", key="ttl", value=1)
    assert house.bus("memory.cache.get", CacheGet(key="ttl", type="memory")).ttl_s == pytest.approx(43_200, abs=10)

    ask(house, CACHE, "put", cache_type="brief", key="k", value=1, ttl=0.05)
    until = time.monotonic() + 5
    while ask(house, CACHE, "get", cache_type="brief", key="k")["status"] == "success":
        assert time.monotonic() < until, "the entry outlived its time by seconds"
    assert ask(house, CACHE, "get", cache_type="brief", key="k")["message"] == "Cache miss"


def test_invalidating_and_flushing_succeed_also_where_nothing_is(house: LegacyHouse) -> None:
    """The text tells the difference."""
    ask(house, CACHE, "put", cache_type="gone", key="a", value=1)
    ask(house, CACHE, "put", cache_type="gone", key="b" * 2000, value=1)
    was_there = ask(house, CACHE, "invalidate", cache_type="gone", key="a")
    was_not = ask(house, CACHE, "invalidate", cache_type="gone", key="a")

    assert was_there["status"] == was_not["status"] == "success"
    assert was_there["message"] != was_not["message"]
    assert ask(house, CACHE, "flush", cache_type="gone") == {"status": "success", "message": "Flushed 1 cache entries"}
    assert ask(house, CACHE, "flush", cache_type="gone")["message"] == "Flushed 0 cache entries"


def test_memories_are_cached_by_id_for_an_hour(house: LegacyHouse) -> None:
    """Under the type `memory`."""
    assert ask(house, CACHE, "cache_memory", memory_id="m1", data={"a": 1})["status"] == "success"
    assert ask(house, CACHE, "get_cached_memory", memory_id="m1") == {"status": "success", "data": {"a": 1}}
    entry = house.bus("memory.cache.get", CacheGet(key="m1", type="memory"))
    assert entry.ttl_s == pytest.approx(3600, abs=10)
    assert ask(house, CACHE, "invalidate_memory_cache", memory_id="m1")["status"] == "success"
    assert ask(house, CACHE, "invalidate_memory_cache", memory_id="m1")["status"] == "success"
    assert ask(house, CACHE, "get_cached_memory", memory_id="m1")["message"] == "Cache miss"


# UnifiedUtilsAgent


def test_cleaning_up_touches_olympus_folders_alone(house: LegacyHouse) -> None:
    """Replies without a status, and old files gone."""
    old = house.settings.path("tmp", "old.txt")
    old.parent.mkdir(parents=True, exist_ok=True)
    old.write_text("x")
    long_ago = time.time() - 3 * 86_400
    os.utime(old, (long_ago, long_ago))

    assert ask(house, UTILS, "cleanup_temp_files", anything=1) == {"files_removed": 1, "bytes_freed": 1, "errors": []}
    assert not old.exists()
    for action in ("cleanup_logs", "cleanup_cache"):
        assert ask(house, UTILS, action) == {"files_removed": 0, "bytes_freed": 0, "errors": []}
    browser = {"browsers_cleaned": [], "files_removed": 0, "bytes_freed": 0, "errors": []}
    assert ask(house, UTILS, "cleanup_browser_cache") == browser
    windows = ask(house, UTILS, "run_windows_disk_cleanup")
    assert windows["status"] == "error"
    assert windows["errors"]
    system = ask(house, UTILS, "cleanup_system")
    assert set(system) == {"temp_files", "logs", "cache", "browser_cache"}
    assert system["browser_cache"] == browser


# AuthenticationAgent


def sign_in(house: LegacyHouse, user_id: str, password: str) -> str:
    """The token of a new user."""
    assert ask(house, AUTH, "register", user_id=user_id, password=password)["status"] == "success"
    reply = ask(house, AUTH, "login", user_id=user_id, password=password)
    assert reply["status"] == "success", reply
    token: str = reply["session"]["token"]
    return token


def test_a_user_signs_up_in_and_out(house: LegacyHouse) -> None:
    """With the exact words; any user id and any password will do."""
    token = sign_in(house, "ann@old.example", "pw")
    assert re.fullmatch(r"[0-9a-f]{64}", token)

    again = ask(house, AUTH, "register", user_id="ann@old.example", password="pw")
    assert again["message"] == "User already exists"
    wrong = ask(house, AUTH, "login", user_id="ann@old.example", password="no")
    assert wrong["message"] == "Invalid password"
    session = ask(house, AUTH, "login", user_id="ann@old.example", password="pw")["session"]
    left = datetime.fromisoformat(session["expires_at"]) - datetime.now()
    assert timedelta(hours=23, minutes=59) < left <= timedelta(hours=24)

    assert ask(house, AUTH, "validate_token", token=token) == {"status": "success", "valid": True}
    assert ask(house, AUTH, "logout", token=token)["status"] == "success"
    assert ask(house, AUTH, "validate_token", token=token) == {"status": "success", "valid": False}
    assert ask(house, AUTH, "logout", token=token)["message"] == "Invalid token"
    assert ask(house, AUTH, "validate_token", token=session["token"])["valid"] is True
    assert ask(house, AUTH, "validate_token", token="x")["valid"] is False
    assert ask(house, AUTH, "validate_token", token="y" * 9000)["valid"] is False


def test_a_legacy_token_stands_for_a_sign_in_of_ours(house: LegacyHouse) -> None:
    """Its access token is good everywhere; ending it there ends it here."""
    token = sign_in(house, "bert", "long enough")
    access_token = house.run(lambda: authentication.access_token_of(token, house.edge.house))
    assert ask(house, AUTH, "validate_token", token=access_token)["valid"] is True

    house.bus("auth.logout", Logout(token=access_token, everywhere=True))

    assert ask(house, AUTH, "validate_token", token=token)["valid"] is False
    assert house.run(lambda: authentication.access_token_of(token, house.edge.house)) == ""
    assert ask(house, AUTH, "logout", token=token)["message"] == "Invalid token"


def test_many_who_ask_for_a_token_at_once_renew_it_once_each(house: LegacyHouse) -> None:
    """A refresh token used twice would end the sign-in."""
    token = sign_in(house, "carl", "long enough")
    valid: list[bool] = []

    def validate() -> None:
        socket = house.socket(zmq.REQ, AUTH)
        for _ in range(3):
            socket.send_json({"action": "validate_token", "token": token})
            valid.append(socket.recv_json()["valid"])
        socket.close()

    threads = [threading.Thread(target=validate) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert valid == [True] * 15


def test_no_record_of_a_token_can_be_used_by_who_reads_it(house: LegacyHouse) -> None:
    """Neither the token nor what it stands for is in it."""
    token = sign_in(house, "dora", "long enough")
    access_token = house.run(lambda: authentication.access_token_of(token, house.edge.house))

    entries = house.bus("memory.kv.list", KvList(ns="legacy.auth.sessions", limit=1000)).entries
    text = json.dumps([[entry.key, entry.value] for entry in entries])

    assert "dora" in text
    assert token not in text
    assert access_token not in text
    assert max(entry.expires_at or 0 for entry in entries) == pytest.approx(time.time() + 86_400, abs=60)


# AgentTrustScorer


def test_trust_follows_the_old_formula_and_counts_for_ours(house: LegacyHouse) -> None:
    """By the share of successes and the latest time; outcomes reported on the bus count as well."""
    assert ask(house, TRUST, "get_trust_score", model_id="phi") == {"status": "success", "trust_score": 0.5}
    assert ask(house, TRUST, "get_performance_history", model_id="phi") == {"status": "success", "history": []}
    first = ask(house, TRUST, "log_performance", model_id="phi", success=True, response_time=1.0)
    assert first == {"status": "success", "new_trust_score": pytest.approx(0.94)}
    second = ask(house, TRUST, "log_performance", model_id="phi", success=False, response_time=9, error_message="late")
    assert second["new_trust_score"] == pytest.approx(0.35)
    assert ask(house, TRUST, "get_trust_score", model_id="phi")["trust_score"] == pytest.approx(0.35)

    history = ask(house, TRUST, "get_performance_history", model_id="phi")["history"]
    assert [(item["success"], item["response_time"]) for item in history] == [(False, 9.0), (True, 1.0)]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}", item["timestamp"]) for item in history)
    assert len(ask(house, TRUST, "get_performance_history", model_id="phi", limit=1)["history"]) == 1
    after = house.bus("trust.record", TrustRecord(user_id="phi", success=True))
    assert (after.outcomes, after.successes) == (3, 2)
    assert ask(house, TRUST, "get_trust_score", model_id="phi")["trust_score"] == pytest.approx(0.7 * 2 / 3 + 0.3)
    assert ask(house, TRUST, "log_performance", model_id="phi", success=True, response_time="no")["status"] == "error"


# Over a restart, without the memory service, and where everybody signs in


def test_what_clients_expect_again_outlives_a_restart(tmp_path: Path) -> None:
    """Twins, sessions, patterns, experiences, trust, users and their tokens."""
    with LegacyHouse(tmp_path, AGENTS) as before:
        ask(before, UMRA, "update_twin", user_id="u", twin_data={"a": 1})
        ask(before, UMRA, "add_interaction", session_id="s", interaction_type="code", content="c")
        ask(before, UMRA, "add_error_pattern", error_type="e", pattern="boom", solution="duck")
        order(before, "STORE_MEMORY", data={"id": "kept", "content": "c"})
        ask(before, TRACKER, "track_experience", content="kept")
        ask(before, TRUST, "log_performance", model_id="m", success=True, response_time=1)
        token = sign_in(before, "ella", "long enough")

    with LegacyHouse(tmp_path, AGENTS) as after:
        assert ask(after, UMRA, "get_twin", user_id="u")["twin"] == {"a": 1}
        assert len(ask(after, UMRA, "get_context", session_id="s")["context"]["interactions"]) == 1
        assert ask(after, UMRA, "get_error_solution", error_message="BOOM")["solution"] == "duck"
        assert order(after, "QUERY_MEMORY", query={"id": "kept"})["status"] == "SUCCESS"
        assert ask(after, TRACKER, "get_experiences")["memories"][0]["content"] == "kept"
        assert ask(after, TRUST, "get_trust_score", model_id="m")["trust_score"] == pytest.approx(0.94)
        assert ask(after, AUTH, "validate_token", token=token)["valid"] is True
        assert ask(after, AUTH, "login", user_id="ella", password="no")["message"] == "Invalid password"


def test_without_the_memory_service_every_agent_still_answers(tmp_path: Path) -> None:
    """Health says degraded; what needs the service is an error; what does not goes on."""
    with LegacyHouse(tmp_path, AGENTS, services=()) as house:
        for agent in NAMES:
            assert ask(house, agent, "health_check")["status"] == "degraded", agent
        miss = ask(house, CACHE, "get", cache_type="t", key="k")
        assert (miss["status"], miss["message"]) == ("error", "Redis is not available")
        assert ask(house, UMRA, "get_twin")["status"] == "error"
        assert order(house, "QUERY_MEMORY", query={"id": "x"})["status"] == "ERROR"
        assert ask(house, AUTH, "login", user_id="u", password="p")["status"] == "error"
        assert ask(house, CONTEXT, "add_to_context", text="x")["status"] == "success"


def test_where_everybody_signs_in_the_ports_act_for_their_account(tmp_path: Path) -> None:
    """Nobody signs up, and the reply says which setting would allow it; whoever has an account signs in."""
    account = UserAdd(
        user_id="agents", password="long enough", scopes=["memory:*", "trust:*"], namespaces=["legacy.*", "memory"]
    )
    user = UserAdd(user_id="fay", password="long enough")
    settings = {"auth.required": True, "legacy.user": "agents"}
    with LegacyHouse(tmp_path, AGENTS, **settings) as house:

        async def add_users() -> None:
            async with Client(house.settings) as admin:
                await admin.request("auth.user.add", account)
                await admin.request("auth.user.add", user)

        async def sign_in_over_http() -> Any:
            stranger = house.edge.house.acting_with("").agent(AUTH)
            return await stranger.answer({"action": "login", "user_id": "fay", "password": "long enough"})

        house.run(add_users)
        refused = ask(house, AUTH, "register", user_id="u", password="long enough")
        assert refused["status"] == "error"
        assert "auth.allow_register is off" in refused["message"]
        assert ask(house, UMRA, "update_twin", twin_data={"a": 1}) == {"status": "ok"}
        assert ask(house, TRUST, "log_performance", model_id="m", success=True)["status"] == "success"
        # An account without rights to the namespace of experiences.
        assert ask(house, TRACKER, "track_experience", content="c")["code"] == "forbidden"
        for session in (
            ask(house, AUTH, "login", user_id="fay", password="long enough"),
            house.run(sign_in_over_http),
        ):
            assert ask(house, AUTH, "validate_token", token=session["session"]["token"])["valid"] is True


# Old client programs


class OldWebAgent:
    """How the web agent kept pages: a new REQ socket for each call, five seconds, `None` on any failure."""

    def __init__(self, port: int) -> None:
        self._address = f"tcp://127.0.0.1:{port}"

    def call(self, message: dict[str, Any]) -> dict[str, Any] | None:
        context = zmq.Context()
        socket = context.socket(zmq.REQ)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, 5000)
        try:
            socket.connect(self._address)
            socket.send_string(json.dumps(message))
            return dict(json.loads(socket.recv_string()))
        except zmq.Again:
            return None
        finally:
            socket.close()
            context.term()

    def remember(self, url: str, text: str) -> bool:
        ping = self.call({"command": "TEST_PING", "data": {"agent": "web"}})
        if not ping or ping.get("status") != "SUCCESS":
            return False
        page = {"type": "web_content", "content": text, "url": url, "source_agent": "web", "metadata": {"depth": 1}}
        stored = self.call({"command": "STORE_MEMORY", "data": page})
        return bool(stored and stored.get("status") == "SUCCESS" and stored["data"]["memory_id"])


class OldSecurityGateway:
    """How a gateway of HTTP checked tokens and models: one REQ socket to each agent, made anew after a timeout."""

    def __init__(self, auth_port: int, trust_port: int) -> None:
        self._context = zmq.Context()
        self._sockets = {name: self._connect(port) for name, port in (("auth", auth_port), ("trust", trust_port))}

    def _connect(self, port: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.REQ)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, 5000)
        socket.connect(f"tcp://127.0.0.1:{port}")
        return socket

    def _call(self, name: str, **message: Any) -> Any:
        self._sockets[name].send_json(message)
        return self._sockets[name].recv_json()

    def login(self, user_id: str, password: str) -> str:
        self._call("auth", action="register", user_id=user_id, password=password)
        return str(self._call("auth", action="login", user_id=user_id, password=password)["session"]["token"])

    def trust(self, token: str, model_id: str) -> float | None:
        if not self._call("auth", action="validate_token", token=token).get("valid"):
            return None
        return float(self._call("trust", action="get_trust_score", model_id=model_id)["trust_score"])

    def close(self) -> None:
        self._context.destroy(linger=0)


def test_an_old_web_agent_keeps_its_pages(house: LegacyHouse) -> None:
    """It looks for SUCCESS and an id."""
    agent = OldWebAgent(house.port(UMRA))

    assert agent.remember("http://old.example/fjord", "A fjord seen by the web agent")
    found = agent.call({"command": "QUERY_MEMORY", "query": {"keywords": ["SEEN BY"]}})
    assert found is not None
    assert found["data"]["memories"][0]["metadata"] == {"depth": 1}


def test_an_old_security_gateway_checks_tokens_and_models(house: LegacyHouse) -> None:
    """With a password as short as they were."""
    gateway = OldSecurityGateway(house.port(AUTH), house.port(TRUST))
    try:
        token = gateway.login("gate", "secret")
        assert gateway.trust(token, "nobody knows it") == 0.5
        assert gateway.trust("0" * 64, "nobody knows it") is None
    finally:
        gateway.close()
