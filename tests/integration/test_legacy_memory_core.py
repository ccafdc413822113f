"""MemoryOrchestratorService, MemoryClient, SessionMemoryAgent and KnowledgeBase as their clients meet them: over REQ."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from schemas.bodies import items
from tests.legacy_house import LegacyHouse
from workers.gateway.legacy.agents import knowledge_base, memory_client, orchestrator, session_memory
from workers.gateway.legacy.agents.memories import KEYS

CORE, CLIENT, SESSIONS, FACTS = (
    "MemoryOrchestratorService",
    "MemoryClient",
    "SessionMemoryAgent",
    "KnowledgeBase",
)
OTHERS = (CLIENT, SESSIONS, FACTS)
AGENTS = [orchestrator.AGENT, memory_client.AGENT, session_memory.AGENT, knowledge_base.AGENT]

BASE_HEALTH = {
    "status",
    "ready",
    "initialized",
    "message",
    "timestamp",
    "uptime",
    "active_threads",
    "health_checks",
    "health_details",
    "health_status",
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LegacyHouse]:
    """The four agents over a real memory service without an encoder."""
    home: Path = tmp_path_factory.mktemp("legacy")
    with LegacyHouse(home, AGENTS) as opened:
        yield opened


def core(house: LegacyHouse, action: str, **data: Any) -> Any:
    """One request in the envelope of 7140."""
    return house.ask(CORE, {"action": action, "data": data})


def add(house: LegacyHouse, content: str, **fields: Any) -> str:
    """The id of a new memory."""
    reply = core(house, "add_memory", content=content, **fields)
    assert reply["status"] == "success", reply
    memory_id: str = reply["memory_id"]
    return memory_id


def read(house: LegacyHouse, memory_id: str) -> dict[str, Any]:
    """The object of 13 keys."""
    memory: dict[str, Any] = core(house, "get_memory", memory_id=memory_id)["memory"]
    return memory


# MemoryOrchestratorService: the object


def test_a_new_memory_has_all_thirteen_keys_with_their_defaults(house: LegacyHouse) -> None:
    """Only the content is needed; the first reading is counted before the reply."""
    before = time.time()

    memory_id = add(house, "only content")
    memory = read(house, memory_id)

    assert memory_id.startswith("mem-")
    assert tuple(memory) == KEYS
    assert before - 1 <= memory.pop("created_at") <= memory.pop("last_accessed_at") <= time.time() + 1
    assert memory == {
        "memory_id": memory_id,
        "content": "only content",
        "memory_type": "general",
        "memory_tier": "short",
        "importance": 1.0,
        "access_count": 1,
        "expires_at": None,
        "metadata": {},
        "tags": [],
        "relationships": {},
        "parent_id": None,
    }


def test_every_field_that_a_client_gives_comes_back(house: LegacyHouse) -> None:
    """Also those that a memory of ours has no field for; unknown keys are dropped."""
    given: dict[str, Any] = {
        "memory_id": "given-1",
        "content": "Ünïcode, 日本",
        "memory_type": "episode",
        "memory_tier": "long",
        "importance": 0.25,
        "access_count": 7,
        "created_at": 1_700_000_000.5,
        "expires_at": 1_700_000_100.0,
        "metadata": {"a": [1, None, {"b": 2.5}], "legacy": "theirs"},
        "tags": ["x", "y"],
        "relationships": {"near": ["m1", "m2"]},
        "parent_id": "p",
    }

    assert add(house, **given, created_by="somebody", unknown=1) == "given-1"
    memory = read(house, "given-1")

    assert memory.pop("last_accessed_at") > 1_700_000_100
    assert memory == {**given, "access_count": 8}


def test_an_expires_at_to_come_is_kept_to(house: LegacyHouse) -> None:
    """It is a time to live of ours, and reads back as the time that was given."""
    end = time.time() + 3_600

    memory_id = add(house, "soon gone", expires_at=str(end))

    assert read(house, memory_id)["expires_at"] == pytest.approx(end, abs=5)


def test_an_existing_id_is_overwritten(house: LegacyHouse) -> None:
    """As the old table replaced its row."""
    add(house, "first", memory_id="twice", tags=["old"])
    read(house, "twice")

    add(house, "second", memory_id="twice")

    assert read(house, "twice") | {"created_at": 0, "last_accessed_at": 0} == {
        **dict.fromkeys(KEYS),
        "memory_id": "twice",
        "content": "second",
        "memory_type": "general",
        "memory_tier": "short",
        "importance": 1.0,
        "access_count": 1,
        "last_accessed_at": 0,
        "created_at": 0,
        "metadata": {},
        "tags": [],
        "relationships": {},
    }


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"content": 5},
        {"content": None},
        {"content": ""},
        {"content": "x", "tags": "none"},
        {"content": "x", "tags": [1]},
        {"content": "x", "metadata": []},
        {"content": "x", "importance": "much"},
        {"content": "x", "importance": True},
        {"content": "x", "memory_type": 5},
        {"content": "x", "memory_tier": 5},
        {"content": "x", "memory_id": 5},
        {"content": "x", "relationships": {"a": "b"}},
        {"content": "x", "expires_at": "tomorrow"},
        {"content": "x" * 20, "memory_id": "k" * 2_000},
    ],
)
def test_what_is_no_memory_is_refused(house: LegacyHouse, data: dict[str, Any]) -> None:
    """With the words that clients look for."""
    reply = house.ask(CORE, {"action": "add_memory", "data": data})

    assert reply["status"] == "error"
    assert reply["message"].startswith("Invalid memory format:")


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"importance": "0.5"}, {"importance": 0.5}),
        ({"importance": 7}, {"importance": 1.0}),
        ({"importance": -1}, {"importance": 0.0}),
        ({"memory_tier": "eternal"}, {"memory_tier": "short"}),
        ({"memory_type": ""}, {"memory_type": "general"}),
        ({"tags": ["", "a"]}, {"tags": ["a"]}),
        ({"metadata": None, "tags": None, "parent_id": None}, {"metadata": {}, "tags": [], "parent_id": None}),
    ],
)
def test_values_out_of_range_are_brought_into_it(
    house: LegacyHouse, fields: dict[str, Any], kept: dict[str, Any]
) -> None:
    """Old clients were never refused for them."""
    memory = read(house, add(house, "odd", **fields))

    assert {key: memory[key] for key in kept} == kept


# MemoryOrchestratorService: what goes wrong


@pytest.mark.parametrize(
    ("action", "data", "message"),
    [
        ("get_memory", {}, "memory_id is required."),
        ("get_memory", {"memory_id": ""}, "memory_id is required."),
        ("get_memory", {"memory_id": "nobody"}, "Memory with ID nobody not found."),
        ("get_children", {}, "parent_id is required."),
        ("add_relationship", {"source_id": "a"}, None),
        ("add_relationship", {"source_id": 1, "target_id": 2, "relationship_type": "x"}, None),
        ("get_related", {}, "memory_id is required."),
        ("search_memory", {}, "query is required."),
        ("search_memory", {"query": ""}, "query is required."),
        ("semantic_search", {"k": 3}, "query is required."),
        ("update_memory", {}, "memory_id is required."),
        ("update_memory", {"memory_id": "nobody"}, "Memory with ID nobody not found."),
        ("update_memory", {"memory_id": "nobody", "update_data": {"metadata": {}}}, "Memory with ID nobody not found."),
        ("update_memory", {"memory_id": "nobody", "update_data": []}, None),
        ("delete_memory", {}, "memory_id is required."),
        ("delete_memory", {"memory_id": "nobody"}, "Memory with ID nobody not found."),
        ("reinforce_memory", {}, "memory_id is required."),
        ("reinforce_memory", {"memory_id": "nobody"}, "Memory with ID nobody not found."),
        ("create_context_group", {"description": "x"}, "name is required."),
        ("add_to_group", {"memory_id": "x"}, None),
        ("add_to_group", {"memory_id": "x", "group_id": 0}, None),
        ("add_to_group", {"memory_id": 5, "group_id": 1}, None),
        ("add_to_group", {"memory_id": "x", "group_id": "many"}, None),
        ("add_to_group", {"memory_id": "x", "group_id": 999_999}, "Context group with ID 999999 not found."),
        ("get_memories_by_group", {}, "group_id is required."),
        ("get_memories_by_group", {"group_id": 999_999}, "Context group with ID 999999 not found."),
        ("batch_add_memories", {}, "No memories provided."),
        ("batch_add_memories", {"memories": []}, "No memories provided."),
        ("batch_get_memories", {}, "No memory_ids provided."),
        ("batch_get_memories", {"memory_ids": []}, "No memory_ids provided."),
        ("fly", {}, "Unknown action: fly"),
    ],
)
def test_refusals_of_the_orchestrator(
    house: LegacyHouse, action: str, data: dict[str, Any], message: str | None
) -> None:
    """In the words of the table; `error` says the same as `message`."""
    reply = house.ask(CORE, {"action": action, "data": data})

    assert reply["status"] == "error"
    assert isinstance(reply["message"], str) and reply["message"]
    assert reply["error"] == reply["message"]
    if message is not None:
        assert reply["message"] == message


@pytest.mark.parametrize("agent", [CORE, CLIENT, SESSIONS, FACTS])
@pytest.mark.parametrize(
    ("frames", "error"),
    [
        ([b"{nonsense"], "Invalid JSON request"),
        ([b""], "Invalid JSON request"),
        ([b"\xff\xfe"], "Invalid UTF-8 request"),
        ([b'{"action": "ping"}', b"more"], "Invalid JSON request"),
        ([b"[1, 2]"], None),
        ([b"null"], None),
        ([b'"text"'], None),
        ([b"{}"], None),
        ([b'{"action": "juggle"}'], None),
        ([b'{"action": ["ping"]}'], None),
        ([b'{"action": "get_memory", "data": 5}'], None),
        ([b"[" * 100_000], None),
    ],
)
def test_nonsense_is_answered_on_every_port(
    house: LegacyHouse, agent: str, frames: list[bytes], error: str | None
) -> None:
    """One reply of one frame, with a status; the port goes on serving."""
    (frame,) = house.raw(agent, frames)
    reply = json.loads(frame)

    assert reply["status"] == "error"
    if error is not None:
        assert reply["error"] == error
    assert house.ask(agent, {"action": "health_check"})["status"] in ("ok", "success")


def test_text_that_no_encoding_can_carry_is_refused_and_odd_numbers_are_kept(house: LegacyHouse) -> None:
    """Python's encoder writes lone surrogates and NaN; neither may cost a client its reply."""
    (surrogate,) = house.raw(CORE, [b'{"action": "add_memory", "data": {"content": "\\ud800"}}'])
    (odd,) = house.raw(CORE, [b'{"action": "add_memory", "data": {"content": "odd", "metadata": {"n": NaN}}}'])

    assert json.loads(surrogate)["status"] == "error"
    assert json.loads(odd)["status"] == "success"
    assert read(house, json.loads(odd)["memory_id"])["content"] == "odd"


# MemoryOrchestratorService: the actions


def test_readings_are_counted_before_the_reply_and_listings_are_not(house: LegacyHouse) -> None:
    """get_memory and batch_get_memories count; search and children do not."""
    memory_id = add(house, "counted walrus", parent_id="walrus house")

    core(house, "search_memory", query="counted walrus")
    core(house, "get_children", parent_id="walrus house")
    first = read(house, memory_id)
    second = core(house, "batch_get_memories", memory_ids=[memory_id])["memories"][0]

    assert (first["access_count"], second["access_count"]) == (1, 2)
    assert first["last_accessed_at"] <= second["last_accessed_at"]


def test_search_finds_substrings_in_any_case_the_most_important_first(house: LegacyHouse) -> None:
    """`%` and `_` stand for themselves; the type and the parent narrow it down."""
    low = add(house, "The MoonStone 100%_pure", importance=0.2, memory_type="episode")
    high = add(house, "a moonstone", importance=0.9, parent_id="gems")
    late = add(house, "another moonstone", importance=0.2)
    read(house, late)

    def ids(query: str, **more: Any) -> list[str]:
        reply = core(house, "search_memory", query=query, **more)
        assert reply["status"] == "success"
        assert reply["count"] == len(reply["results"])
        assert all(tuple(one) == KEYS for one in reply["results"])
        return [one["memory_id"] for one in reply["results"]]

    assert ids("OONSTON") == [high, late, low]
    assert ids("moonstone", limit=1) == [high]
    assert ids("moonstone", limit="2") == [high, late]
    assert ids("moonstone", memory_type="episode") == [low]
    assert ids("moonstone", parent_id="gems") == [high]
    assert ids("100%_P") == [low]
    assert ids("100__pure") == ids("m%stone") == ids("moonstone", limit=0) == []


def test_semantic_search_puts_exact_hits_first_and_leaves_far_ones_out(house: LegacyHouse) -> None:
    """Then comes what shares words; nothing in common is no hit."""
    near = add(house, "A glacier of the north is melting fast", memory_type="note", importance=0.9)
    exact = add(house, "They say: melting glacier", memory_type="note", importance=0.1)

    reply = core(house, "semantic_search", query="melting glacier", k=5)
    typed = core(house, "semantic_search", query="melting glacier", filters={"memory_type": "other"})
    far = core(house, "semantic_search", query="submarine accountancy zeppelin")

    assert reply["status"] == "success" and isinstance(reply["message"], str)
    assert [one["memory_id"] for one in reply["results"]] == [exact, near]
    assert typed["results"] == far["results"] == []
    assert len(core(house, "semantic_search", query="melting glacier", k=1)["results"]) == 1


def test_updates_replace_what_is_given_and_ignore_the_rest(house: LegacyHouse) -> None:
    """Metadata is not merged; the id cannot be changed; what is kept beside the metadata stays."""
    memory_id = add(house, "before", metadata={"a": 1}, relationships={"near": ["x"]}, parent_id="up", tags=["t"])

    reply = core(
        house,
        "update_memory",
        memory_id=memory_id,
        update_data={"metadata": {"b": 2}, "memory_id": "other", "updated_at": 5, "importance": 0.3, "parent_id": None},
    )
    memory = read(house, memory_id)

    assert reply == {"status": "success"}
    assert memory["metadata"] == {"b": 2}
    assert memory["relationships"] == {"near": ["x"]}
    assert (memory["importance"], memory["parent_id"], memory["tags"]) == (0.3, None, ["t"])
    assert core(house, "get_memory", memory_id="other")["status"] == "error"

    core(
        house,
        "update_memory",
        memory_id=memory_id,
        update_data={
            "content": "after",
            "memory_type": "note",
            "memory_tier": "long",
            "tags": [],
            "relationships": {},
            "access_count": 40,
            "created_at": 12.5,
            "expires_at": 99.0,
        },
    )
    memory = read(house, memory_id)

    assert [memory[key] for key in ("content", "memory_type", "memory_tier", "tags", "relationships")] == [
        "after",
        "note",
        "long",
        [],
        {},
    ]
    assert [memory[key] for key in ("access_count", "created_at", "expires_at")] == [41, 12.5, 99.0]
    assert memory["metadata"] == {"b": 2}
    assert core(house, "update_memory", memory_id=memory_id, update_data={}) == {"status": "success"}
    assert core(house, "update_memory", memory_id=memory_id, update_data={"content": 5})["status"] == "error"


def test_reinforcing_multiplies_up_to_one(house: LegacyHouse) -> None:
    """By 1.2 unless a factor says otherwise."""
    memory_id = add(house, "grows", importance=0.5)

    by_default = core(house, "reinforce_memory", memory_id=memory_id)
    capped = core(house, "reinforce_memory", memory_id=memory_id, reinforcement_factor=5)
    halved = core(house, "reinforce_memory", memory_id=memory_id, reinforcement_factor="0.5")
    nothing = core(house, "reinforce_memory", memory_id=memory_id, reinforcement_factor=0)

    assert by_default["new_importance"] == pytest.approx(0.6)
    assert (capped["new_importance"], halved["new_importance"], nothing["new_importance"]) == (1.0, 0.5, 0.0)
    assert set(by_default) == {"status", "new_importance"}


def test_children_come_in_the_order_asked_for_under_both_keys(house: LegacyHouse) -> None:
    """By order of adding without a limit where nothing is asked; `results` lifts what stands in the metadata."""
    ids = [
        add(house, f"child {number}", parent_id="family", importance=importance, metadata={"status": "active"})
        for number, importance in enumerate((0.3, 0.9, 0.6))
    ]

    def order(**more: Any) -> list[str]:
        reply = core(house, "get_children", parent_id="family", **more)
        return [child["memory_id"] for child in reply["results"]]

    reply = core(house, "get_children", parent_id="family")

    assert [child["memory_id"] for child in reply["children"]] == ids
    assert all(tuple(child) == KEYS for child in reply["children"])
    assert [child["status"] for child in reply["results"]] == ["active"] * 3
    assert order(limit=50, sort_field="created_at", sort_order="desc") == ids[::-1]
    assert order(sort_field="created_at", sort_order="asc", limit=2) == ids[:2]
    assert order(sort_field="importance", limit=1) == [ids[1]]
    assert order(sort_field="nothing we know", sort_order="asc") == ids
    assert core(house, "get_children", parent_id="nobody at all") == {
        "status": "success",
        "children": [],
        "results": [],
    }


def test_deleting_takes_along_relations_and_memberships_and_with_cascade_what_lies_below(house: LegacyHouse) -> None:
    """The old service stood still for ever on a cascade over children."""
    top = add(house, "top")
    middle = add(house, "middle", parent_id=top)
    bottom = add(house, "bottom", parent_id=middle)
    other = add(house, "other")
    group_id = core(house, "create_context_group", name="to be emptied")["group_id"]
    core(house, "add_to_group", memory_id=top, group_id=group_id)
    for source, target in ((other, top), (top, other)):
        core(house, "add_relationship", source_id=source, target_id=target, relationship_type="near")

    reply = core(house, "delete_memory", memory_id=top)

    assert reply["status"] == "success" and top in reply["message"]
    assert read(house, middle)["parent_id"] == top
    assert core(house, "get_related", memory_id=other)["related_memories"] == []
    assert core(house, "get_memories_by_group", group_id=group_id)["count"] == 0
    assert core(house, "delete_memory", memory_id=middle, cascade=True)["status"] == "success"
    assert core(house, "get_memory", memory_id=bottom)["status"] == "error"


def test_relations_are_followed_outwards_only(house: LegacyHouse) -> None:
    """Targets need not exist, and may be the memory itself; those that exist are shown with five keys."""
    here, there = add(house, "here"), add(house, "there", memory_tier="long", importance=0.7)
    made = core(
        house, "add_relationship", source_id=here, target_id=there, relationship_type="leads_to", strength="0.5"
    )
    core(house, "add_relationship", source_id=here, target_id=here, relationship_type="is")
    core(house, "add_relationship", source_id=here, target_id="nowhere", relationship_type="leads_to")

    related = core(house, "get_related", memory_id=here)["related_memories"]
    filtered = core(house, "get_related", memory_id=here, relationship_type="leads_to")["related_memories"]

    assert made == {"status": "success"}
    assert [one["memory"]["memory_id"] for one in related] == [here, there]
    (one,) = filtered
    assert set(one["relationship"]) == {"type", "strength", "created_at"}
    assert (one["relationship"]["type"], one["relationship"]["strength"]) == ("leads_to", 0.5)
    assert one["memory"] == {
        "memory_id": there,
        "content": "there",
        "memory_type": "general",
        "memory_tier": "long",
        "importance": 0.7,
    }
    assert core(house, "get_related", memory_id=there)["related_memories"] == []
    assert core(house, "get_related", memory_id="nobody") == {"status": "success", "related_memories": []}


def test_groups_hold_memories(house: LegacyHouse) -> None:
    """What could never be read back can be now."""
    memory_id = add(house, "grouped")
    group = core(house, "create_context_group", name="friends", description="of mine")

    assert set(group) == {"status", "group_id"} and isinstance(group["group_id"], int)
    assert core(house, "add_to_group", memory_id=memory_id, group_id=str(group["group_id"])) == {"status": "success"}
    reply = core(house, "get_memories_by_group", group_id=group["group_id"])

    assert reply["memories"] == reply["results"] and reply["count"] == 1
    assert reply["memories"][0]["memory_id"] == memory_id


def test_batches_keep_what_is_valid_in_order(house: LegacyHouse) -> None:
    """Importance is 0.5 by default here; what is no memory or cannot be kept is left out."""
    reply = core(
        house,
        "batch_add_memories",
        memories=[
            {"content": "one", "memory_id": "batch-1"},
            {"content": 5},
            "nonsense",
            {"content": "loop", "memory_id": "loop", "parent_id": "loop"},
            {"content": "two"},
            {"content": "one again", "memory_id": "batch-1"},
        ],
    )

    assert reply["status"] == "success" and isinstance(reply["message"], str)
    assert len(reply["memory_ids"]) == 3
    assert reply["memory_ids"][0] == reply["memory_ids"][2] == "batch-1"
    two = reply["memory_ids"][1]
    read_back = core(house, "batch_get_memories", memory_ids=[two, "missing", 5, "batch-1"])
    assert [one["content"] for one in read_back["memories"]] == ["two", "one again"]
    assert read_back["memories"][0]["importance"] == 0.5
    assert read_back["count"] == 2


def test_a_big_batch_goes_through(house: LegacyHouse) -> None:
    """More than one of our requests takes."""
    memories = [{"content": f"bulk {number}"} for number in range(1_200)]

    ids = core(house, "batch_add_memories", memories=memories)["memory_ids"]

    read_back = core(house, "batch_get_memories", memory_ids=ids)
    assert [one["content"] for one in read_back["memories"]] == [one["content"] for one in memories]


def test_a_session_is_a_memory_with_the_same_id(house: LegacyHouse) -> None:
    """Its agent later updates and deletes that id and hangs interactions below it."""
    reply = core(house, "create_session", user_id="ada", session_type="chat", created_by="x", metadata={"k": 1})

    assert set(reply) == {"status", "session_id"}
    memory = read(house, reply["session_id"])
    assert memory["memory_type"] == "session"
    assert memory["metadata"] == {"user_id": "ada", "session_type": "chat", "created_by": "x", "k": 1}
    assert core(house, "create_session")["status"] == "success"


def test_old_and_new_clients_see_the_same_memories(house: LegacyHouse) -> None:
    """What is added on one side is read, changed and deleted on the other."""
    memory_id = add(house, "shared", tags=["a"], metadata={"k": 1})

    native = house.bus("memory.get", items.MemoryGet(id=memory_id))
    house.bus("memory.update", items.MemoryUpdate(id=memory_id, content="changed natively"))
    made = house.bus("memory.add", items.MemoryAdd(content="made natively", speaker="Ada"))

    assert (native.content, native.tags, native.metadata) == ("shared", ["a"], {"k": 1})
    assert read(house, memory_id)["content"] == "changed natively"
    assert tuple(read(house, made.id)) == KEYS


# Health


@pytest.mark.parametrize("verb", ["health_check", "health", "ping"])
def test_health_of_every_main_port(house: LegacyHouse, verb: str) -> None:
    """The base object, with what each agent adds and its own word for well."""
    replies = {agent: house.ask(agent, {"action": verb}) for agent in (CORE, CLIENT, SESSIONS, FACTS)}

    assert all(reply.keys() >= BASE_HEALTH for reply in replies.values())
    assert replies[CORE]["status"] == "ok"
    assert all(replies[CORE][key] is True for key in ("db_connected", "redis_connected", "error_bus_ready"))
    assert replies[CLIENT]["status"] == ("success" if verb == "health_check" else "HEALTHY")
    assert replies[CLIENT]["service"] == replies[CLIENT]["agent"] == CLIENT
    assert replies[SESSIONS]["status"] == replies[FACTS]["status"] == "success"
    assert replies[SESSIONS]["agent"] == SESSIONS
    assert replies[SESSIONS]["healthy"] is replies[FACTS]["healthy"] is True


@pytest.mark.parametrize("frame", [b'{"action": "health_check"}', b"ping", b"", b"\xff", b"[]"])
def test_health_ports_answer_anything(house: LegacyHouse, frame: bytes) -> None:
    """KnowledgeBase with exactly five keys, the others with the base object."""
    for agent in (CORE, CLIENT, SESSIONS):
        assert house.health(agent, frame).keys() >= BASE_HEALTH
    reply = house.health(FACTS, frame)

    assert set(reply) == {"status", "service", "uptime_seconds", "request_count", "timestamp"}
    assert (reply["status"], reply["service"]) == ("HEALTHY", FACTS)
    assert isinstance(reply["uptime_seconds"], int) and isinstance(reply["request_count"], int)
    assert reply["timestamp"] == pytest.approx(time.time(), abs=60)


def test_the_breaker_is_told_and_reset(house: LegacyHouse) -> None:
    """All its keys, whatever the client reads."""
    reply = house.ask(CLIENT, {"action": "reset_circuit_breaker"})
    breaker = house.ask(CLIENT, {"action": "health_check"})["circuit_breaker"]

    assert reply["status"] == "success" and reply["new_state"] == "CLOSED" and reply["message"]
    assert breaker == {
        "state": "CLOSED",
        "failure_count": 0,
        "last_failure_time": breaker["last_failure_time"],
        "failure_threshold": 3,
        "reset_timeout": 60,
    }


def test_without_a_memory_service_every_request_is_answered_with_an_error(tmp_path: Path) -> None:
    """And the health says so: the breaker opens, the ports stay."""
    with LegacyHouse(tmp_path, AGENTS, services=(), **{"bus.timeout_s": 5}) as house:
        for _ in range(3):
            reply = house.ask(CLIENT, {"action": "get_memory", "data": {"memory_id": "x"}})
            assert reply["status"] == "error" and reply["message"]
        health = house.ask(CLIENT, {"action": "health_check"})
        facts = house.ask(FACTS, {"action": "get_fact", "topic": "bees"})
        put = house.ask(CLIENT, {"action": "put", "key": "k", "item": {"content": "v"}})

        assert (health["connected"], health["circuit_breaker"]["state"]) == (False, "OPEN")
        assert facts["status"] == "error"
        assert put["success"] is False
        assert all(house.ask(agent, {"action": "health_check"})["status"] == "degraded" for agent in (CORE, *OTHERS))
        assert house.health(FACTS)["status"] == "DEGRADED"


# MemoryClient


def test_the_client_port_hands_requests_on(house: LegacyHouse) -> None:
    """With arguments under `data`, or at the top where a client puts them there."""
    nested = house.ask(CLIENT, {"action": "add_memory", "data": {"content": "handed on"}})
    flat = house.ask(CLIENT, {"action": "get_memory", "memory_id": nested["memory_id"]})

    assert flat["memory"]["content"] == "handed on"
    assert house.ask(CLIENT, {"action": "get_memory", "data": {}})["message"] == "memory_id is required."


def test_the_key_value_words(house: LegacyHouse) -> None:
    """Each action with its result, in the envelope with `success`."""

    def ask(action: str, **fields: Any) -> Any:
        reply = house.ask(CLIENT, {"action": action, **fields})
        assert reply["success"] is True, reply
        assert reply["action"] == action
        assert isinstance(reply["timestamp"], str) and not reply["timestamp"].endswith("Z")
        return reply["result"]

    item = {"content": {"deep": [1]}, "tags": ["t"], "source_agent": "me"}
    assert ask("get", key="user:1") == {"found": False, "item": None}
    assert ask("put", key="user:1", item=item, agent_id="me") == {"stored": True}
    assert ask("put", key="user:2", item={"session_id": "s", "anything": 1}) == {"stored": True}
    kept = ask("get", key="user:1")

    assert kept["found"] is True
    assert kept["item"].items() >= {**item, "key": "user:1", "memory_type": "conversation", "metadata": {}}.items()
    assert {"timestamp", "updated_at", "source_agent", "expiry_timestamp"} <= set(kept["item"])
    assert ask("get", key="user:2")["item"] == {"session_id": "s", "anything": 1, "key": "user:2"}
    assert ask("exists", key="user:1") == {"exists": True}
    assert ask("exists", key="user:9") == {"exists": False}
    assert ask("list_keys", prefix="user:", limit="many") == {"keys": ["user:1", "user:2"], "count": 2}
    assert ask("list_keys", prefix="user:", limit=1)["keys"] == ["user:1"]
    batch = ask("batch_get", keys=["user:1", "user:9"])
    assert (batch["missing_keys"], batch["total_requested"], batch["found_count"]) == (["user:9"], 2, 1)
    assert list(batch["items"]) == ["user:1"]
    assert ask("delete", key="user:1") == {"deleted": True, "found": True}
    assert ask("delete", key="user:1") == {"deleted": False, "found": False}
    assert ask("ping")["pong"] is True
    assert ask("health")["status"] == "healthy"


@pytest.mark.parametrize(
    "request_",
    [
        {"action": "get"},
        {"action": "put", "key": "k"},
        {"action": "put", "key": "k", "item": []},
        {"action": "put", "key": "k", "item": {"content": 5}},
        {"action": "put", "key": "k", "item": {"content": "x", "memory_type": "dream"}},
        {"action": "put", "key": "k", "item": {"content": "x", "expiry_timestamp": "2001-01-01T00:00:00"}},
        {"action": "delete"},
        {"action": "exists", "key": ""},
        {"action": "batch_get", "keys": []},
        {"action": "batch_get", "keys": [1]},
    ],
)
def test_refusals_of_the_key_value_words(house: LegacyHouse, request_: dict[str, Any]) -> None:
    """`success` is false and `error` says why; `status` says it to whoever reads that."""
    reply = house.ask(CLIENT, request_)

    assert reply["success"] is False and reply["status"] == "error"
    assert reply["error"] and reply["timestamp"]


# SessionMemoryAgent


def test_a_conversation_is_kept_read_searched_and_deleted(house: LegacyHouse) -> None:
    """The last interactions come back, oldest first."""
    made = house.ask(SESSIONS, {"action": "create_session", "user_id": "ada", "metadata": {"topic": "tea"}})
    session_id = made["session_id"]
    assert set(made) == {"status", "session_id"}
    said = [("User", "Where is the oolong?"), ("assistant", "On the shelf."), ("User", "Thank you.")]
    added = [
        house.ask(
            SESSIONS,
            {"action": "add_interaction", "session_id": session_id, "role": role, "content": content},
        )
        for role, content in said
    ]

    assert all(set(one) == {"status", "message", "interaction_id"} for one in added)
    interaction = read(house, added[0]["interaction_id"])
    assert (interaction["memory_type"], interaction["memory_tier"], interaction["importance"]) == (
        "interaction",
        "short",
        0.5,
    )
    assert (interaction["parent_id"], interaction["tags"]) == (session_id, ["user"])
    assert set(interaction["metadata"]) == {"role", "timestamp"}
    about = read(house, session_id)["metadata"]
    assert about.items() >= {"topic": "tea", "agent": SESSIONS, "user_id": "ada"}.items()

    whole = house.ask(SESSIONS, {"action": "get_context", "session_id": session_id})
    last = house.ask(SESSIONS, {"action": "get_context", "session_id": session_id, "limit": 2})
    hits = house.ask(SESSIONS, {"action": "search_interactions", "query": "oolong", "session_id": session_id})
    elsewhere = house.ask(SESSIONS, {"action": "search_interactions", "query": "oolong", "session_id": "other"})

    assert whole == {"status": "success", "context": [{"role": role, "content": text} for role, text in said]}
    assert last["context"] == whole["context"][1:]
    assert hits["results"][0]["content"] == "Where is the oolong?"
    assert elsewhere["results"] == []

    deleted = house.ask(SESSIONS, {"action": "delete_session", "session_id": session_id})
    again = house.ask(SESSIONS, {"action": "delete_session", "session_id": session_id})

    assert deleted["status"] == "success" and deleted["message"]
    assert again["message"] == f"Memory with ID {session_id} not found."
    assert house.ask(SESSIONS, {"action": "get_context", "session_id": session_id})["context"] == []


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"action": "add_interaction", "session_id": "s", "role": "user"}, "Missing required parameters"),
        ({"action": "add_interaction", "session_id": "s", "role": "", "content": "x"}, "Missing required parameters"),
        ({"action": "get_context"}, "Missing session_id"),
        ({"action": "delete_session"}, "Missing session_id"),
        ({"action": "search_interactions"}, "Missing query"),
    ],
)
def test_refusals_of_the_session_agent(house: LegacyHouse, request_: dict[str, Any], message: str) -> None:
    """In the words of the table."""
    reply = house.ask(SESSIONS, request_)

    assert (reply["status"], reply["message"]) == ("error", message)


def test_idle_sessions_are_marked_and_nothing_else(house: LegacyHouse) -> None:
    """After an hour without use the metadata says so; what was used since, and the interactions, stay."""
    idle = house.ask(SESSIONS, {"action": "create_session"})["session_id"]
    gone = house.ask(SESSIONS, {"action": "create_session"})["session_id"]
    core(house, "delete_memory", memory_id=gone)
    said = {"action": "add_interaction", "session_id": idle, "role": "user", "content": "still here"}
    house.ask(SESSIONS, said)

    house.run(lambda: session_memory.expire_idle(house.edge.house, time.time() + 10))
    assert "expired" not in read(house, idle)["metadata"]
    house.run(lambda: session_memory.expire_idle(house.edge.house, time.time() + session_memory.IDLE_S + 10))

    metadata = read(house, idle)["metadata"]
    assert metadata == {"expired": True, "expired_at": metadata["expired_at"]}
    assert len(house.ask(SESSIONS, {"action": "get_context", "session_id": idle})["context"]) == 1
    assert house.ask(SESSIONS, {"action": "health_check"})["active_sessions"] == 0


# KnowledgeBase


def test_facts_are_added_found_changed_and_searched(house: LegacyHouse) -> None:
    """The topic finds a fact in any case, also where its text does not name it."""
    made = house.ask(FACTS, {"action": "add_fact", "topic": "Bees", "content": "They dance to tell the way."})
    assert set(made) == {"status", "memory_id"}

    fact = house.ask(FACTS, {"action": "get_fact", "topic": "bees"})["fact"]
    by_content = house.ask(FACTS, {"action": "get_fact", "topic": "dance"})["fact"]

    assert tuple(fact) == KEYS
    assert fact["memory_id"] == by_content["memory_id"] == made["memory_id"]
    assert (fact["memory_type"], fact["memory_tier"], fact["importance"]) == ("knowledge_fact", "long", 0.8)
    assert (fact["metadata"], fact["tags"]) == ({"topic": "Bees"}, ["bees"])

    by_topic = house.ask(FACTS, {"action": "update_fact", "topic": "BEES", "content": "They waggle."})
    by_id = {"action": "update_fact", "memory_id": made["memory_id"], "content": {"waggle": True}}

    assert by_topic["status"] == "success" and by_topic["message"]
    assert read(house, made["memory_id"])["content"] == "They waggle."
    assert house.ask(FACTS, by_id)["status"] == "success"
    assert json.loads(read(house, made["memory_id"])["content"]) == {"waggle": True}
    hits = house.ask(FACTS, {"action": "search_facts", "query": "waggle", "limit": 3})["results"]
    assert [hit["memory_id"] for hit in hits] == [made["memory_id"]]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"action": "add_fact", "topic": "x"}, "Missing topic or content"),
        ({"action": "add_fact", "content": "x"}, "Missing topic or content"),
        ({"action": "get_fact"}, "Missing topic"),
        ({"action": "get_fact", "topic": "quasars"}, "Fact not found"),
        ({"action": "update_fact", "content": "x"}, "Missing required parameters"),
        ({"action": "update_fact", "topic": "x"}, "Missing required parameters"),
        ({"action": "update_fact", "topic": "quasars", "content": "x"}, "Fact not found"),
        ({"action": "update_fact", "memory_id": "nobody", "content": "x"}, "Memory with ID nobody not found."),
        ({"action": "search_facts"}, "query is required."),
        ({"action": "search_facts", "query": ""}, "query is required."),
    ],
)
def test_refusals_of_the_knowledge_base(house: LegacyHouse, request_: dict[str, Any], message: str) -> None:
    """In the words of the table."""
    reply = house.ask(FACTS, request_)

    assert (reply["status"], reply["message"]) == ("error", message)


# Witnesses: programs of the old system, as they behaved


class OldClient:
    """The client library: one REQ socket, 5 s, replaced after a timeout; a breaker that opens after three failures."""

    def __init__(self, context: zmq.Context[Any], address: str, limit_ms: int = 5_000) -> None:
        self._context, self._address, self._limit_ms = context, address, limit_ms
        self._failures = 0
        self._connect()

    def _connect(self) -> None:
        self._socket = self._context.socket(zmq.REQ)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDTIMEO, self._limit_ms)
        self._socket.setsockopt(zmq.RCVTIMEO, self._limit_ms)
        self._socket.connect(self._address)

    @property
    def is_open(self) -> bool:
        return self._failures >= 3

    def call(self, action: str, **data: Any) -> dict[str, Any]:
        if self.is_open:
            return {"status": "error", "message": "Circuit breaker is open"}
        try:
            self._socket.send_json({"action": action, "data": data})
            reply = self._socket.recv_json()
        except zmq.Again:
            self._failures += 1
            self._socket.close(0)
            self._connect()
            return {"status": "error", "message": "timed out"}
        if not isinstance(reply, dict):
            self._failures += 1
            return {"status": "error", "message": "no object"}
        self._failures = 0
        return reply

    def close(self) -> None:
        self._socket.close(0)

    def leave_in_the_middle(self, action: str, **data: Any) -> None:
        """A request whose reply nobody waits for: the socket is thrown away."""
        self._socket.send_json({"action": action, "data": data})
        self._socket.close(0)
        self._connect()


@pytest.fixture
def old_client(house: LegacyHouse) -> Iterator[OldClient]:
    """One connected to 7140."""
    context: zmq.Context[Any] = zmq.Context()
    client = OldClient(context, f"tcp://127.0.0.1:{house.port(CORE)}")
    yield client
    client.close()
    context.destroy(linger=0)


def test_the_client_library_makes_its_sixteen_calls(old_client: OldClient) -> None:
    """In the shapes it sends, through one socket, also after it left in the middle of a request."""
    call = old_client.call
    session_id = call("create_session", user_id="u", session_type="conversation", created_by="X")["session_id"]
    sent = {"memory_type": "general", "memory_tier": "short", "importance": 0.5, "created_by": "X"}
    memory_id = call("add_memory", content="of the library", parent_id=session_id, **sent)["memory_id"]
    for _ in range(5):
        old_client.leave_in_the_middle("search_memory", query="of the library", limit=10)
    group_id = call("create_context_group", name="g", description=None)["group_id"]
    batch = [{"content": "x", **sent}]

    replies = [
        call("get_memory", memory_id=memory_id),
        call("search_memory", query="of the library", memory_type=None, limit=10, parent_id=session_id),
        call("semantic_search", query="of the library", k=5, filters={"parent_id": session_id}),
        call("update_memory", memory_id=memory_id, update_data={"importance": 0.7}),
        call("get_children", parent_id=session_id, limit=50, sort_field="created_at", sort_order="desc"),
        call("add_relationship", source_id=memory_id, target_id=session_id, relationship_type="of", strength=1.0),
        call("get_related", memory_id=memory_id, relationship_type=None),
        call("reinforce_memory", memory_id=memory_id, reinforcement_factor=1.2),
        call("batch_add_memories", memories=batch),
        call("batch_get_memories", memory_ids=[memory_id, session_id]),
        call("add_to_group", memory_id=memory_id, group_id=group_id),
        call("get_memories_by_group", group_id=group_id),
        call("delete_memory", memory_id=session_id, cascade=True),
    ]

    assert [reply["status"] for reply in replies] == ["success"] * 13
    assert [len(replies[place]["results"]) for place in (1, 2, 4, 11)] == [1, 1, 1, 1]
    assert call("get_memory", memory_id=memory_id)["message"] == f"Memory with ID {memory_id} not found."
    assert not old_client.is_open


def test_an_assistant_keeps_a_conversation_through_the_session_agent(house: LegacyHouse) -> None:
    """Requests of the old base class carry three keys more; the planner's client sees the same interactions."""

    def ask(action: str, **fields: Any) -> Any:
        signed = {"source_agent": "Assistant", "request_id": "5f0c", "timestamp": "2025-08-01T10:00:00"}
        return house.ask(SESSIONS, {"action": action, **fields, **signed})

    session_id = ask("create_session", user_id="u", session_type="conversation", metadata={})["session_id"]
    for number in range(25):
        ask("add_interaction", session_id=session_id, role="user", content=f"turn {number}", metadata={"n": number})

    context = ask("get_context", session_id=session_id)["context"]
    children = core(house, "get_children", parent_id=session_id, limit=50, sort_field="created_at", sort_order="asc")[
        "results"
    ]

    assert [turn["content"] for turn in context] == [f"turn {number}" for number in range(5, 25)]
    assert [child["metadata"]["n"] for child in children] == list(range(25))
    assert (
        ask("search_interactions", query="turn 17", session_id=session_id, limit=5)["results"][0]["content"]
        == "turn 17"
    )


def test_a_planner_keeps_goals_and_tasks(old_client: OldClient) -> None:
    """It looks for goals by a pseudo query, and reads the state of tasks from the top of each child."""
    call = old_client.call

    def goal(description: str, status: str) -> str:
        metadata = {"description": description, "status": status, "user_id": "u", "priority": 5}
        reply = call(
            "add_memory",
            content=description,
            memory_type="goal",
            memory_tier="medium",
            importance=0.8,
            tags=["goal", "planning"],
            metadata=metadata,
        )
        return str(reply["memory_id"])

    planning, done = goal("plant a hedge", "planning"), goal("paint the fence", "completed")
    tasks = [
        call(
            "add_memory",
            content=f"task {number}",
            memory_type="task",
            importance=0.6,
            parent_id=planning,
            tags=["task", "dig"],
            metadata={"task_type": "dig", "status": "pending", "priority": number, "sequence": number},
        )["memory_id"]
        for number in range(3)
    ]

    live = call("search_memory", query="status:active OR status:pending OR status:planning", memory_type="goal")
    finished = call("search_memory", query="status:completed", memory_type="goal", limit=50)
    empty = call("search_memory", query="", memory_type="goal")
    children = call("get_children", parent_id=planning, limit=50)["results"]

    assert [one["memory_id"] for one in live["results"]] == [planning]
    assert [one["memory_id"] for one in finished["results"]] == [done]
    assert empty["message"] == "query is required."
    assert [(one["memory_id"], one["status"], one["priority"], one["task_type"]) for one in children] == [
        (tasks[number], "pending", number, "dig") for number in range(3)
    ]

    call("update_memory", memory_id=planning, update_data={"metadata": {"status": "active"}})
    active = call("search_memory", query="status:active", memory_type="goal")["results"]

    assert [one["metadata"] for one in active] == [{"status": "active"}]


def test_peers_that_come_and_go_cost_nobody_a_reply(house: LegacyHouse, old_client: OldClient) -> None:
    """While others ask and vanish, each request of a client that stays is answered."""
    context: zmq.Context[Any] = zmq.Context()

    def crowd() -> None:
        noisy = OldClient(context, f"tcp://127.0.0.1:{house.port(CORE)}")
        for _ in range(50):
            noisy.leave_in_the_middle("search_memory", query="moonstone")
        noisy.close()

    thread = threading.Thread(target=crowd)
    thread.start()
    try:
        replies = [old_client.call("add_memory", content=f"quiet {number}") for number in range(20)]
    finally:
        thread.join(30)
        context.destroy(linger=0)

    assert all(reply["status"] == "success" for reply in replies)
