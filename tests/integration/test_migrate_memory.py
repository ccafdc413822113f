"""The migration of memory against a running system: old clients find their data, twice is once, a kill is survived."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.bodies.accounts import TrustGet, TrustRecord
from schemas.bodies.items import DocGet, ExperienceGet, GroupMembers, MemoryDelete, MemoryUpdate
from schemas.bodies.memory import KvGet, KvSet
from schemas.bodies.sessions import SessionGet
from tests import old_project
from tests.legacy_house import LegacyHouse
from tests.old_project import SCRIPTS, database, fingerprint, json_file, module, old_memory
from tests.redis_process import RedisProcess
from workers.gateway.legacy.agents import (
    error_bus,
    experience_tracker,
    knowledge_base,
    memory_client,
    orchestrator,
    reasoning,
    service_registry,
    session_memory,
    trust_scorer,
)

AGENTS = [
    part.AGENT
    for part in (
        error_bus,
        experience_tracker,
        knowledge_base,
        memory_client,
        orchestrator,
        reasoning,
        service_registry,
        session_memory,
        trust_scorer,
    )
]
SCRIPT = SCRIPTS / "migrate_memory_data.py"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LegacyHouse]:
    """The old ports over a real memory service."""
    with LegacyHouse(tmp_path_factory.mktemp("house"), AGENTS) as opened:
        yield opened


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An old project with every store of memory."""
    root = tmp_path_factory.mktemp("old") / "project"
    make_project(root)
    return root


@pytest.fixture(scope="module")
def moved(house: LegacyHouse, project: Path) -> dict[str, Any]:
    """The report of the first run over the whole project, which left the project as it was."""
    before = fingerprint(project)
    (project / "data").chmod(0o555)
    try:
        status, report = migrate(house, project)
    finally:
        (project / "data").chmod(0o755)

    assert (status, report["differs"], report["unreadable"]) == (3, [], [])
    assert fingerprint(project) == before
    return report


def flags(house: LegacyHouse) -> list[str]:
    """Options that lead the script to the bus of a house."""
    bus = house.settings.bus
    ports = [f"bus.{name}={getattr(bus, name)}" for name in ("request_port", "publish_port", "subscribe_port")]
    pairs = [f"home={house.settings.home}", f"bus.sequenced_port={bus.sequenced_port}", *ports]
    return [word for pair in pairs for word in ("--set", pair)]


def migrate(house: LegacyHouse, source: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Run the script as a user does; its exit code and its report."""
    command = [sys.executable, str(SCRIPT), str(source), "--json", *flags(house), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == "", done.stderr
    return done.returncode, json.loads(done.stdout)


def in_here(house: LegacyHouse, source: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """The same without a process of its own."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = module("migrate_memory_data").main([str(source), "--json", *flags(house), *options])
    return status, json.loads(out.getvalue())


def test_a_dry_run_counts_and_writes_nothing(house: LegacyHouse, tmp_path: Path) -> None:
    """It needs no bus: what would become of every row is said by the rows alone."""
    database(
        tmp_path / "data" / "unified_memory.db",
        old_project.UNIFIED,
        memories=[old_memory("dry"), old_memory("bad", metadata="{")],
    )

    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), "--dry-run", "--set", f"home={tmp_path / 'home'}",
         "--set", "bus.request_port=1"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 3
    assert "memories: 2 rows, 1 can be moved, 1 rejected" in done.stdout
    assert (tmp_path / "home" / "migrations" / "migrate_memory_data-rejects.jsonl").exists()


def test_an_old_client_finds_its_memories(house: LegacyHouse, moved: dict[str, Any]) -> None:
    """The 13 keys over 7140, relations, groups and children; facts over 5715; what was said over 5574."""
    asked = house.ask("MemoryOrchestratorService", {"action": "get_memory", "data": {"memory_id": "mem-a"}})
    memory = asked["memory"]
    assert (memory["content"], memory["memory_type"], memory["memory_tier"]) == (
        "The hives were moved",
        "episode",
        "long",
    )
    assert (memory["importance"], memory["created_at"], memory["tags"]) == (0.7, 1_700_000_000.0, ["bees"])
    assert memory["relationships"] == {"about": ["mem-b"]} and memory["metadata"] == {"where": "hill"}
    assert memory["access_count"] == 4, "three of before, and this one"

    related = house.ask("MemoryOrchestratorService", {"action": "get_related", "data": {"memory_id": "mem-a"}})
    assert [one["memory"]["memory_id"] for one in related["related_memories"]] == ["mem-b"]
    children = house.ask("MemoryOrchestratorService", {"action": "get_children", "data": {"parent_id": "mem-a"}})
    assert [one["memory_id"] for one in children["children"]] == ["mem-b"]
    group = house.ask("MemoryOrchestratorService", {"action": "get_memories_by_group", "data": {"group_id": 1}})
    assert [one["memory_id"] for one in group["memories"]] == ["mem-a"]

    fact = house.ask("KnowledgeBase", {"action": "get_fact", "topic": "oslo"})
    assert fact["fact"]["content"] == "Oslo lies at a fjord"

    said = house.ask("SessionMemoryAgent", {"action": "get_context", "session_id": "session-1"})
    assert said["context"] == [{"role": "user", "content": "Good morning"}]


def test_an_old_client_finds_its_experiences_and_numbered_memories(house: LegacyHouse, moved: dict[str, Any]) -> None:
    """Whole numbers as ids, the most important first, times in UTC."""
    found = house.ask("ExperienceTracker", {"action": "get_experiences", "limit": 5})
    (one,) = [one for one in found["memories"] if one["content"] == "It rained"]
    assert (one["memory_id"], one["importance_score"], one["access_count"]) == (2, 0.9, 4)
    assert one["created_at"] == "2025-03-01 10:00:00" and one["metadata"]["mood"] == "grey"

    stored = house.ask("ExperienceTracker", {"action": "retrieve_memory", "query": "numbered"})
    assert [(one["memory_id"], one["metadata"]["a"]) for one in stored["memories"]] == [(1, 1)]


def test_an_old_client_finds_episodes_with_what_was_said_in_them(house: LegacyHouse, moved: dict[str, Any]) -> None:
    """An episode is a memory, its interactions lie under it, and its groups do not meet those of the orchestrator."""
    said = house.ask("SessionMemoryAgent", {"action": "get_context", "session_id": "episode-legacy-1"})
    assert said["context"] == [{"role": "Ann", "content": "What is honey?"}, {"role": "Bot", "content": "Food of bees"}]
    members = house.bus("memory.group.members", GroupMembers(group_id=100_001, ns="memory"))
    assert [memory.id for memory in members.memories] == ["episode-legacy-1"]
    assert members.memories[0].tags == ["honey"]


def test_an_old_client_finds_sessions_patterns_and_twins(house: LegacyHouse, moved: dict[str, Any]) -> None:
    """As the reasoning agent kept them in its files."""
    umra = "UnifiedMemoryReasoningAgent"
    context = house.ask(umra, {"action": "get_context", "session_id": "ann_project"})["context"]
    assert context["conversation_summary"] == "they talked"
    assert [one["content"] for one in context["interactions"]] == ["first", "second"]
    solved = house.ask(umra, {"action": "get_error_solution", "error_message": "disk is full today"})
    assert solved["solution"] == "free some"
    assert house.ask(umra, {"action": "get_twin", "user_id": "ann"})["twin"] == {"likes": "bees"}


def test_an_old_client_finds_trust_as_it_was(house: LegacyHouse, moved: dict[str, Any]) -> None:
    """The score of the old formula, and the history with its old times."""
    asked = {"action": "get_trust_score", "model_id": "phi"}
    assert house.ask("AgentTrustScorer", asked)["trust_score"] == pytest.approx(0.7 * 2 / 3 + 0.3 * 0.8)
    history = house.ask("AgentTrustScorer", {"action": "get_performance_history", "model_id": "phi"})["history"]
    assert history[0] == {"success": True, "response_time": 1.0, "timestamp": "2025-03-01 10:00:02.000001"}
    assert [one["success"] for one in history] == [True, False, True]
    only_counted = house.ask("AgentTrustScorer", {"action": "get_trust_score", "model_id": "counted"})
    assert only_counted["trust_score"] == pytest.approx(0.74)


def test_an_old_client_finds_errors_and_the_state_of_agents(house: LegacyHouse, moved: dict[str, Any]) -> None:
    """As the error bus tells them once it starts anew."""
    house.run(lambda: error_bus.recall(house.edge.house))

    def asked(action: str) -> list[dict[str, Any]]:
        request = json.dumps({"action": action, "data": {"limit": 1000}}).encode()
        data: list[dict[str, Any]] = json.loads(house.raw("ErrorBus", [request], "errors")[0])["data"]
        return data

    old = [one for one in asked("get_recent_errors") if one["agent"] in ("Ear", "Mouth")]
    assert [(one["id"], one["agent"], one["message"], one["severity"]) for one in old] == [
        (2, "Mouth", "no sound", "critical"),
        (1, "Ear", "deaf", "error"),
    ]
    assert json.loads(old[1]["context"]) == {"port": 5} and old[1]["timestamp"] == 1_700_000_000.0
    states = {one["agent"]: one for one in asked("get_agent_health")}
    assert (states["Ear"]["status"], states["Ear"]["error_count"]) == ("degraded", 7)
    assert states["Mouth"]["error_count"] == 1


def test_what_the_later_services_kept_is_found(house: LegacyHouse, moved: dict[str, Any]) -> None:
    """Documents, sessions, experiences and embeddings of the unified service; items of MemoryFusionHub."""
    document = house.bus("memory.doc.get", DocGet(doc_id="d1", ns="knowledge_base"))
    assert (document.title, document.content, document.metadata) == ("Bees", "Bees make honey", {"by": "ann"})
    session = house.bus("memory.session.get", SessionGet(session_id="s1", ns="session_memory"))
    assert (session.user_id, session.metadata) == ("ann", {"step": 2})
    experience = house.bus("memory.experience.get", ExperienceGet(exp_id="x1", ns="experience_tracker"))
    assert (experience.action, experience.context) == ("tried", {"category": "c", "learning": "less"})
    item = house.ask("MemoryClient", {"action": "get", "key": "k1"})["result"]
    assert item["found"] and item["item"]["content"] == "fused"
    assert house.bus("memory.kv.get", KvGet(key="k2", ns="legacy.fusion")).value["session_id"] == "z"


def test_a_second_run_changes_nothing_and_keeps_what_was_changed_since(
    house: LegacyHouse, project: Path, moved: dict[str, Any]
) -> None:
    """Also without the marks: ids and notes tell what is there. What Olympus changed differs, and stays until --replace."""
    before = house.bus("trust.get", TrustGet(user_id="phi"))
    house.bus("memory.update", MemoryUpdate(id="mem-b", ns="memory", content="changed since"))

    for options in ((), ("--again",)):
        status, report = in_here(house, project, *options)
        assert status == 3 and sum(report["written"].values()) == 0
        # The pattern was asked for above, which counts.
        differs = {one["key"]: one["reason"] for one in report["differs"]}
        assert set(differs) <= {"mem-b", "disk"} and "content is 'changed since'" in differs["mem-b"]
    after = house.bus("trust.get", TrustGet(user_id="phi"))
    assert (after.outcomes, after.history) == (before.outcomes, before.history)

    _, report = in_here(house, project, "--replace")
    assert report["differs"] == []
    assert {place: count for place, count in report["written"].items() if "memories" in place} == {
        "data/unified_memory.db:memories": 1
    }
    asked = house.ask("MemoryOrchestratorService", {"action": "get_memory", "data": {"memory_id": "mem-b"}})
    assert asked["memory"]["content"] == "Something else"


def written_at(report: dict[str, Any], place: str) -> int:
    """Rows that a run wrote."""
    return int(report["written"].get(place, 0))


def test_what_was_deleted_since_is_not_brought_back(house: LegacyHouse, tmp_path: Path) -> None:
    """By a second run with its marks; the comparison says that it is gone, and --again brings it."""
    database(tmp_path / "data" / "unified_memory.db", old_project.UNIFIED, memories=[old_memory("short-lived")])
    assert in_here(house, tmp_path)[0] == 0
    house.bus("memory.delete", MemoryDelete(id="short-lived", ns="memory"))

    _, report = in_here(house, tmp_path)
    assert [(one["key"], one["reason"]) for one in report["differs"]] == [("short-lived", "not there")]
    assert in_here(house, tmp_path, "--again")[0] == 0


def test_what_the_old_system_wrote_since_is_moved_by_another_run(house: LegacyHouse, tmp_path: Path) -> None:
    """Also outcomes, which would count twice: only the new one is recorded."""
    path = database(
        tmp_path / "cache" / "agent_trust_scores.db",
        old_project.TRUST,
        performance_logs=[{"model_id": "later", "success": 1, "response_time": 1.0}] * 3,
    )
    assert in_here(house, tmp_path)[0] == 0
    house.bus("trust.record", TrustRecord(user_id="later", success=True))
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO performance_logs (model_id, success, response_time) VALUES ('later', 0, 2.0)")
    connection.commit()
    connection.close()

    _, report = in_here(house, tmp_path)

    assert written_at(report, "cache/agent_trust_scores.db:performance_logs") == 1
    there = house.bus("trust.get", TrustGet(user_id="later"))
    assert (there.outcomes, there.successes) == (5, 4)


def test_the_comparison_finds_a_row_that_was_tampered_with(house: LegacyHouse, tmp_path: Path) -> None:
    """On either side: a value here, a row there."""
    json_file(tmp_path / "digital_twin_store.json", {"tampered": {"a": 1}, "fine": {"b": 2}})
    assert in_here(house, tmp_path)[0] == 0

    house.bus("memory.kv.set", KvSet(key="tampered", ns="legacy.twins", value={"a": 2}))
    status, report = in_here(house, tmp_path, "--verify-only")

    assert status == 3 and report["agrees"] == {"digital_twin_store.json:twins": 1}
    assert [(one["key"], one["reason"]) for one in report["differs"]] == [
        ("tampered", "value is {'a': 2}, in the old store {'a': 1}")
    ]


def test_a_run_that_was_killed_goes_on_where_it_was(house: LegacyHouse, tmp_path: Path) -> None:
    """Killed with -9 in the middle, at the first mark; the second run writes the rest and everything agrees."""
    count = 5_000
    database(
        tmp_path / "data" / "unified_memory.db",
        old_project.UNIFIED,
        memories=[old_memory(f"kill-{number}", metadata=json.dumps({"n": number})) for number in range(count)],
    )
    mark = Path(house.settings.home) / "migrations" / "migrate_memory_data.json"
    mark.unlink(missing_ok=True)
    command = [sys.executable, str(SCRIPT), str(tmp_path), *flags(house)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 30
        while not mark.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)

    done = json.loads(mark.read_text())["data/unified_memory.db"]["rows"]
    assert 0 < done < count
    status, report = in_here(house, tmp_path)

    place = "data/unified_memory.db:memories"
    assert status == 0 and report["agrees"] == {place: count}
    assert report["there"][place] >= done
    assert report["written"][place] + report["there"][place] == count


def test_registrations_and_keys_of_redis_are_moved_and_nothing_there_is_changed(
    house: LegacyHouse, tmp_path: Path
) -> None:
    """What users kept and who registered; caches stay. Only commands that read are sent."""
    redis = pytest.importorskip("redis")
    with RedisProcess() as server:
        clients = [redis.Redis.from_url(server.url, db=database) for database in (0, 1)]
        clients[0].set("service_registry:Hermit", json.dumps({"host": "10.0.0.9", "port": "5999", "agent_type": "x"}))
        clients[0].set("service_registry:Broken", b"\xff")
        clients[0].set("mc:city", "Oslo")
        clients[0].set("mc:soon", "gone", ex=3600)
        clients[0].hset("kb:table", mapping={"a": "1"})
        clients[0].rpush("mo:list", "x")
        clients[0].set("nlu_results:x", "cache")
        clients[1].set("sm:session_activity:1", "{}")
        clients[1].set("sm:mine", "kept")
        clients[0].config_resetstat()
        for client in clients:
            client.close()

        status, report = in_here(house, tmp_path, "--redis", server.url)
        again, second = in_here(house, tmp_path, "--redis", f"{server.url}?db=1")

        used = {name.removeprefix("cmdstat_") for name in redis.Redis.from_url(server.url).info("commandstats")}

    assert used <= {
        "scan",
        "type",
        "get",
        "hgetall",
        "ttl",
        "select",
        "info",
        "config|resetstat",
        "client|setinfo",
        "hello",
    }
    assert (status, again) == (3, 3) and not second["written"] and report["differs"] == second["differs"] == []
    assert {one["key"] for one in report["rejected"]} == {"Broken", "list"}
    assert report["agrees"] == {
        "redis:service_registry": 1, "redis:mc (database 0)": 2, "redis:kb (database 0)": 1, "redis:sm (database 1)": 1,
    }  # fmt: skip
    endpoint = house.ask("ServiceRegistry", {"action": "get_agent_endpoint", "agent_name": "Hermit"})
    assert (endpoint["host"], endpoint["port"], endpoint["agent_type"]) == ("10.0.0.9", 5999, "x")
    assert house.bus("memory.kv.get", KvGet(key="city", ns="memory_client")).value == "Oslo"
    soon = house.bus("memory.kv.get", KvGet(key="soon", ns="memory_client"))
    assert soon.expires_at == pytest.approx(time.time() + 3600, abs=60)


def test_a_bus_that_is_not_there_and_a_folder_without_stores_are_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line each, and exit code 1."""
    monkeypatch.setattr(module("migrate_parts.command"), "_CONNECT_S", 0.2)
    home = ["--set", f"home={tmp_path / 'home'}", "--set", "bus.request_port=1"]
    script, root = module("migrate_memory_data"), tmp_path / "old"
    root.mkdir()

    assert script.main([str(root), *home]) == 1
    assert capsys.readouterr().err == f"migrate_memory_data: {root} holds none of the old stores\n"
    json_file(root / "digital_twin_store.json", {"ann": {"a": 1}})
    assert script.main([str(root), *home]) == 1
    assert capsys.readouterr().err.endswith("; what was moved is kept, run it again to go on\n")


def make_project(root: Path) -> None:
    """Every store of memory, each with something that cannot be moved."""
    session = old_memory("session-1", "A conversation", memory_type="session")
    database(
        root / "data" / "unified_memory.db",
        old_project.UNIFIED,
        memories=[
            old_memory(
                "mem-a",
                "The hives were moved",
                memory_type="episode",
                memory_tier="long",
                metadata='{"where": "hill"}',
                tags='["bees"]',
                relationships='{"about": ["mem-b"]}',
            ),
            old_memory("mem-b", "Something else", parent_id="mem-a"),
            old_memory("fact", "Oslo lies at a fjord", memory_type="knowledge_fact", tags='["oslo"]'),
            session,
            old_memory(
                "said", "Good morning", memory_type="interaction", parent_id="session-1", metadata='{"role": "user"}'
            ),
            old_memory("bad", metadata="{"),
        ],
        memory_relationships=[
            {"source_memory_id": "mem-a", "target_memory_id": "mem-b", "relationship_type": "about", "created_at": 1.0},
            {"source_memory_id": "mem-a", "target_memory_id": "gone", "relationship_type": "about"},
        ],
        context_groups=[{"name": "garden", "created_at": 1.0}],
        memory_group_mappings=[{"memory_id": "mem-a", "group_id": 1}],
    )
    database(
        root / "data" / "memory_store.db",
        old_project.NUMBERED,
        memory_entries=[
            {"content": "a numbered one", "metadata": '{"a": 1}', "last_accessed": "2025-03-01T10:00:00"},
            {"content": "It rained", "memory_type": "experience", "importance_score": 0.9, "access_count": 4,
             "created_at": "2025-03-01 10:00:00", "metadata": '{"mood": "grey"}'},
        ],
        memory_relationships=[{"source_memory_id": 1, "target_memory_id": 2, "relationship_type": "r"}],
        memory_categories=[{"name": "weather"}],
        memory_category_assignments=[{"memory_id": 2, "category_id": 1}],
    )  # fmt: skip
    database(
        root / "episodic_memory.db",
        old_project.EPISODIC,
        episodes=[{"user_id": "ann", "start_time": "2025-03-01 10:00:00.5", "summary": "About honey"}],
        interactions=[
            {"episode_id": 1, "timestamp": "2025-03-01 10:00:01.5", "speaker": "Ann", "content": "What is honey?"},
            {"episode_id": 1, "timestamp": "2025-03-01 10:00:02.5", "speaker": "Bot", "content": "Food of bees",
             "sentiment": 0.5, "metadata": "[1]"},
        ],
        episode_tags=[{"episode_id": 1, "tag": "honey"}],
        episode_relationships=[{"source_episode_id": 1, "target_episode_id": 9, "relationship_type": "r"}],
        context_groups=[{"group_id": 1, "name": "talks"}],
        episode_context_groups=[{"episode_id": 1, "group_id": 1, "relevance_score": 0.4}],
    )  # fmt: skip
    json_file(
        root / "memory_store.json",
        {
            "sessions": {
                "ann_project": [
                    {"timestamp": 2.0, "type": "note", "content": "second"},
                    {"timestamp": 1.0, "type": "note", "content": "first"},
                ]
            },
            "summaries": {"ann_project": {"last_updated": 3.0, "conversation_summary": "they talked"}},
            "notes": [{"timestamp": 1.0, "task": "t", "tag": "g", "note": "buy sugar"}],
        },
    )
    patterns = {"disk": {"pattern": "disk .* full", "solution": "free some", "last_seen": 1.0, "occurrence_count": 2}}
    json_file(
        root / "error_patterns.json", {"patterns": patterns, "history": [{"timestamp": 1.0, "error_type": "disk"}]}
    )
    json_file(root / "digital_twin_store.json", {"ann": {"likes": "bees"}})
    database(
        root / "cache" / "agent_trust_scores.db",
        old_project.TRUST,
        model_scores=[
            {"model_id": "phi", "trust_score": 0.7, "total_interactions": 3, "successful_interactions": 2},
            {"model_id": "counted", "trust_score": 0.74, "total_interactions": 5, "successful_interactions": 4},
        ],
        performance_logs=[
            {"model_id": "phi", "success": success, "response_time": 1.0, "timestamp": f"2025-03-01 10:00:0{at}.000001"}
            for at, success in enumerate((1, 0, 1))
        ],
    )
    database(
        root / "memory_hub.db",
        old_project.HUB,
        documents=[
            {"namespace": "knowledge_base", "doc_id": "d1", "title": "Bees", "content": "Bees make honey",
             "metadata": '{"by": "ann"}', "created_at": "2025-03-01 10:00:00"},
            {"namespace": "not a namespace", "doc_id": "d2", "content": "x"},
        ],
        sessions=[{"namespace": "session_memory", "session_id": "s1", "user_id": "ann", "data": '{"step": 2}'}],
        experiences=[{"namespace": "experience_tracker", "experience_id": "x1", "category": "c", "context": "tried",
                      "learning": "less", "confidence_score": 0.5}],
    )  # fmt: skip
    json_file(
        root / "embeddings_metadata.json", [{"id": "e1", "namespace": "notes", "content": "embedded", "metadata": {}}]
    )
    database(
        root / "memory_fusion_hub" / "memory.db",
        old_project.FUSION,
        memory_items=[{"key": "k1", "data": '{"content": "fused"}', "updated_at": "2025-03-01 10:00:00"}],
        memory_events=[{"key": "k2", "data": '{"session_id": "z"}'}, {"key": "k1", "data": "{}"}],
    )
    database(
        root / "data" / "error_system.db",
        old_project.ERRORS,
        errors=[
            {"timestamp": 1_700_000_000.0, "agent": "Ear", "error_type": "X", "message": "deaf", "severity": "high",
             "context": '{"port": 5}'},
            {"timestamp": "2025-03-01T10:00:00", "agent": "Mouth", "error_type": "Y", "message": "no sound",
             "severity": "fatal", "context": "plain words"},
            {"timestamp": 1.0, "severity": "low"},
        ],
        agent_health=[
            {"agent": "Ear", "status": "ok", "last_heartbeat": 1.0, "error_count": 1},
            {"agent": "Ear", "status": "degraded", "last_heartbeat": 2.0, "error_count": 7},
        ],
        recovery_actions=[{"timestamp": 3.0, "agent": "Ear", "action": "restart", "success": 1, "details": "d"}],
    )  # fmt: skip
