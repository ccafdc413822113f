"""The memory object of the replaced agents and what was declared of four of them, without a socket."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.bodies.items import Memory, MemoryAdd
from workers.gateway.legacy.agent import Agent, Refused
from workers.gateway.legacy.agents import knowledge_base, memory_client, orchestrator, session_memory
from workers.gateway.legacy.agents.memories import (
    KEPT,
    KEYS,
    from_legacy,
    mode_of,
    moment,
    needs_before,
    time_in,
    to_legacy,
    update_of,
)
from workers.gateway.legacy.agents.memory_client import RESET_S, Breaker, item_of
from workers.gateway.legacy.agents.session_memory import IDLE_S, Sessions

NOW = 1_750_000_000.0

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def stored(request: MemoryAdd, **more: Any) -> Memory:
    """What the memory service makes of a request that adds."""
    return Memory(
        id=request.id or "mem-1",
        ns=request.ns,
        content=request.content,
        type=request.type,
        tier=request.tier,
        importance=request.importance,
        access_count=0,
        created_at=NOW,
        updated_at=NOW,
        last_accessed_at=NOW,
        at=NOW if request.at is None else request.at,
        version=3,
        sequence=1,
        tags=list(request.tags),
        metadata=request.metadata,
        parent_id=request.parent_id,
        expires_at=None if request.ttl_s is None else NOW + request.ttl_s,
        **more,
    )


@given(
    fields=st.fixed_dictionaries(
        {"content": TEXT.filter(bool)},
        optional={
            "memory_type": TEXT.filter(bool),
            "memory_tier": st.sampled_from(["short", "medium", "long"]),
            "importance": st.floats(0, 1),
            "access_count": st.integers(0, 1_000),
            "created_at": st.floats(0, 1e10),
            "expires_at": st.none() | st.floats(0, NOW - 1),
            "metadata": st.dictionaries(TEXT, JSON, max_size=4),
            "tags": st.lists(TEXT.filter(bool), max_size=4),
            "relationships": st.dictionaries(TEXT, st.lists(TEXT, max_size=3), max_size=3),
            "parent_id": st.none() | TEXT.filter(bool),
            "memory_id": TEXT.filter(bool),
        },
    )
)
def test_what_a_client_gives_comes_back(fields: dict[str, Any]) -> None:
    """For every field that a client may set, and the request is one that the service takes."""
    request = from_legacy(fields, now=NOW)

    taken = msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=MemoryAdd)
    told = to_legacy(stored(taken))

    assert tuple(told) == KEYS
    assert told | fields == told
    assert told.keys() == set(KEYS)


@given(fields=st.dictionaries(st.sampled_from(KEYS), JSON))
def test_any_fields_are_understood_or_refused(fields: dict[str, Any]) -> None:
    """With the words that clients look for; never with another error."""
    try:
        told = to_legacy(stored(from_legacy(fields, now=NOW)))
    except Refused as refused:
        assert refused.text.startswith("Invalid memory format:")
    else:
        assert 0 <= told["importance"] <= 1
        assert told["memory_tier"] in ("short", "medium", "long")
        assert KEPT not in told["metadata"] or not isinstance(fields["metadata"][KEPT], dict)


def test_defaults_depend_on_the_action_alone() -> None:
    """1.0 for one, 0.5 for several."""
    assert from_legacy({"content": "x"}, now=NOW).importance == 1.0
    assert from_legacy({"content": "x"}, importance=0.5, now=NOW).importance == 0.5
    assert from_legacy({"content": "x", "importance": None}, importance=0.5, now=NOW).importance == 0.5


@pytest.mark.parametrize(
    ("expires_at", "ttl_s", "told"),
    [
        (None, None, None),
        (NOW + 60, 60.0, NOW + 60),
        (NOW - 60, None, NOW - 60),
        (0, None, 0.0),
        (NOW + 1e9, None, NOW + 1e9),
    ],
)
def test_only_an_end_within_reach_is_kept_to(expires_at: float | None, ttl_s: float | None, told: float | None) -> None:
    """An end that is past or centuries away is told as it was given: no old client expected it to be enforced."""
    request = from_legacy({"content": "x", "expires_at": expires_at}, now=NOW)

    assert request.ttl_s == ttl_s
    assert to_legacy(stored(request))["expires_at"] == told


def test_times_without_a_zone_are_local() -> None:
    """The old agents wrote them so; a number is epoch seconds."""
    here = datetime.fromisoformat("2024-05-06T07:08:09")

    assert moment(here.isoformat()) == here.timestamp()
    assert moment("2024-05-06 07:08:09.5") == here.timestamp() + 0.5
    assert moment("2024-05-06T07:08:09+00:00") == datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC).timestamp()
    assert moment(12) == 12.0
    nothing: tuple[object, ...] = ("soon", None, True, [])
    assert [moment(value) for value in nothing] == [None] * 4
    assert time_in({"timestamp": here.isoformat()}) == here.timestamp()
    assert time_in({"time": -5, "timestamp": math.inf}) is None
    assert from_legacy({"content": "x", "metadata": {"timestamp": here.isoformat()}}, now=NOW).at == here.timestamp()


def test_an_update_keeps_what_stands_beside_the_metadata() -> None:
    """Replacing the metadata loses no relationships; the version guards against another update in between."""
    before = stored(from_legacy({"content": "x", "metadata": {"a": 1}, "relationships": {"near": ["y"]}}, now=NOW))

    replaced = update_of("m", {"metadata": {"b": 2}}, before, now=NOW)
    counted = update_of("m", {"access_count": 9}, msgspec.structs.replace(before, access_count=4), now=NOW)
    cleared = update_of("m", {"relationships": {}, "expires_at": None}, before, now=NOW)

    assert replaced.metadata == {"b": 2, KEPT: {"relationships": {"near": ["y"]}}}
    assert (replaced.if_version, replaced.merge_metadata) == (3, False)
    assert counted.metadata == {"a": 1, KEPT: {"relationships": {"near": ["y"]}, "access_count": 5}}
    assert (cleared.metadata, cleared.clear) == ({"a": 1}, ["expires_at"])


def test_an_update_reads_first_only_where_it_must() -> None:
    """A content or an importance is one request."""
    assert not needs_before({"content": "x", "importance": 1, "tags": [], "memory_id": "m", "junk": 1})
    assert all(needs_before({key: None}) for key in ("metadata", "relationships", "expires_at"))
    request = update_of("m", {"content": "x", "parent_id": None, "junk": 1, "memory_id": "other"}, None, now=NOW)
    assert (request.id, request.content, request.clear, request.metadata) == ("m", "x", ["parent_id"], None)
    assert request.if_version is None


def test_the_breaker_opens_after_three_failures_in_a_row() -> None:
    """A success closes it, a minute half opens it."""
    breaker = Breaker()
    states = []
    for is_failure in (True, True, False, True, True, True):
        breaker.note(is_failure, NOW)
        states.append(breaker.state(NOW))

    assert states == ["CLOSED"] * 5 + ["OPEN"]
    assert breaker.state(NOW + RESET_S) == "HALF_OPEN"
    breaker.note(False, NOW)
    assert (breaker.state(NOW), breaker.failures) == ("CLOSED", 0)


def test_sessions_are_idle_an_hour_after_their_last_use() -> None:
    """One that was not opened here is not watched."""
    sessions = Sessions()
    sessions.used_at["s"] = NOW
    sessions.use("stranger")

    assert sessions.idle(NOW + IDLE_S) == []
    assert sessions.idle(NOW + IDLE_S + 1) == ["s"]
    sessions.use("s")
    assert sessions.used_at.keys() == {"s"} and sessions.used_at["s"] != NOW


def test_items_of_the_default_kind_get_every_field() -> None:
    """Others are kept as they come."""
    item = item_of("k", {"content": ["x"], "tags": ["t"], "key": "other"}, now=0)

    assert item == {
        "key": "k",
        "content": ["x"],
        "memory_type": "conversation",
        "metadata": {},
        "tags": ["t"],
        "source_agent": None,
        "expiry_timestamp": None,
        "timestamp": "1970-01-01T00:00:00",
        "updated_at": "1970-01-01T00:00:00",
    }
    assert item_of("k", {"event_id": 5}, now=0) == {"event_id": 5, "key": "k"}


@pytest.mark.parametrize(
    ("agent", "ports", "health_ports", "actions"),
    [
        (
            orchestrator.AGENT,
            (7140,),
            (8140, 7141),
            "add_memory get_memory get_children add_relationship get_related search_memory semantic_search"
            " update_memory delete_memory reinforce_memory create_context_group add_to_group get_memories_by_group"
            " batch_add_memories batch_get_memories create_session",
        ),
        (
            session_memory.AGENT,
            (5574,),
            (6574, 6583),
            "create_session add_interaction get_context delete_session search_interactions",
        ),
        (knowledge_base.AGENT, (5715,), (6715,), "add_fact get_fact update_fact search_facts"),
        (
            memory_client.AGENT,
            (5713,),
            (6713,),
            " ".join(orchestrator.AGENT.actions)
            + " health_check reset_circuit_breaker get put delete exists list_keys batch_get health ping",
        ),
    ],
)
def test_what_is_declared(agent: Agent, ports: tuple[int, ...], health_ports: tuple[int, ...], actions: str) -> None:
    """The ports and words under which their clients know them."""
    assert (agent.ports, agent.health_ports) == (ports, health_ports)
    assert sorted(agent.actions) == sorted(actions.split())


@pytest.mark.parametrize(
    ("query", "mode"),
    [
        ("where do the bees live", "hybrid"),
        ("covid19 in 2023 on iphone15, a decade of facades", "hybrid"),
        ("unknown_topic_e720e8b5", "text"),
        ("zz 0f94836e4e0d41c69c687e51cb0899c8", "text"),
        ("550e8400-e29b-41d4-a716-446655440000", "text"),
        ("job 1732243200", "text"),
    ],
)
def test_codes_are_not_looked_for_by_meaning(query: str, mode: str) -> None:
    """Vectors of two hashes are near each other, so an unknown one would find a fact about any other."""
    assert mode_of(query) == mode
