"""The ports of the replaced agents: each says it is well in its own word, and answers one request in its own shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from verify_parts.checklist import Check, Group, Skipped
from verify_parts.probe import Port, Probe

# Words for "well", on main ports and on health ports (docs/legacy.md).
_WELL: Final = frozenset({"ok", "success", "healthy", "HEALTHY", "SUCCESS"})


class Line(NamedTuple):
    """An agent: a request that changes nothing, the status of its reply, and keys the reply has."""

    agent: str
    request: Mapping[str, Any]
    status: str
    keys: tuple[str, ...]
    well: frozenset[str] = frozenset({"ok"})


_NEVER: Final = "verify.x"

LINES: Final = (
    Line(
        "MemoryOrchestratorService",
        {"action": "batch_get_memories", "data": {"memory_ids": [_NEVER]}},
        "success",
        ("memories",),
    ),
    Line("MemoryClient", {"action": "exists", "key": _NEVER}, "success", ("result",), frozenset({"success"})),
    Line(
        "SessionMemoryAgent",
        {"action": "search_interactions", "query": _NEVER},
        "success",
        ("results",),
        frozenset({"success"}),
    ),
    Line("KnowledgeBase", {"action": "search_facts", "query": _NEVER}, "success", ("results",), frozenset({"success"})),
    Line("UnifiedMemoryReasoningAgent", {"action": "get_twin", "user_id": _NEVER}, "ok", ("twin",)),
    Line("ContextManager", {"action": "get_context"}, "success", ("context",)),
    Line("ExperienceTracker", {"action": "get_experiences", "limit": 1}, "success", ("memories",)),
    Line("CacheManager", {"action": "get", "cache_type": "tool_responses", "key": _NEVER}, "error", ("message",)),
    Line("ProactiveContextMonitor", {"action": "get_context_history"}, "success", ("history",)),
    # What it does is delete files; that it knows its words is all that is asked.
    Line("UnifiedUtilsAgent", {"action": "verify"}, "error", ("message",)),
    Line("AuthenticationAgent", {"action": "validate_token", "token": "0" * 64}, "success", ("valid",)),
    Line("AgentTrustScorer", {"action": "get_trust_score", "model_id": _NEVER}, "success", ("trust_score",)),
    Line("GGUFModelManager", {"action": "list_models"}, "success", ("models",), frozenset({"healthy"})),
    Line("ModelManagerAgent", {"command": "GET_LOADED_MODELS_STATUS"}, "SUCCESS", ("loaded_models",)),
    Line("PredictiveLoader", {"action": "predict_models"}, "success", ("predicted_models",), frozenset({"HEALTHY"})),
    Line("ModelEvaluationFramework", {"action": "get_stats"}, "success", ("metrics",)),
    # It is degraded while no model is loaded, as the old suite was.
    Line("ModelManagerSuite", {"action": "list_models"}, "success", ("models",), frozenset({"healthy", "degraded"})),
    Line("SelfTrainingOrchestrator", {"action": "get_status", "cycle_id": _NEVER}, "error", ("message",)),
    Line("LocalFineTunerAgent", {"action": "get_status", "job_id": _NEVER}, "error", ("message",)),
    Line(
        "LearningManager",
        {"action": "get_learning_rate", "request_id": "1"},
        "success",
        ("learning_rate", "request_id"),
    ),
    Line("LearningOrchestrationService", {"action": "get_stats"}, "success", ("metrics",)),
    Line("LearningOpportunityDetector", {"action": "get_stats"}, "success", ("stats",)),
    Line("ActiveLearningMonitor", {"action": "statistics"}, "success", ("performance_stats",)),
    Line("LearningAdjusterAgent", {"action": "optimize_parameters", "metric_name": _NEVER}, "error", ("message",)),
    Line("SystemDigitalTwin", {"action": "get_agent_info", "agent_name": _NEVER}, "error", ("message",)),
    Line("ServiceRegistry", {"action": "list_agents"}, "success", ("agents",)),
    Line("ResourceManager", {"action": "get_stats"}, "success", ("stats",)),
)


def _port(probe: Probe, agent: str, purpose: str) -> Port:
    """Raises Skipped."""
    if not any(one.protocol == "zeromq" for one in probe.ports):
        raise Skipped("the ports of the replaced agents are closed (legacy.enabled)")
    return probe.port(agent, purpose, "zeromq")


def _answers(line: Line) -> Callable[[Probe], None]:
    def check(probe: Probe) -> None:
        port = _port(probe, line.agent, "requests")
        health = probe.legacy(port, {"action": "health_check"})
        probe.expect(health["status"] in line.well, f"its health is {health['status']}: {health.get('message')}")
        reply = probe.legacy(port, line.request)
        probe.expect(reply["status"] == line.status, f"the status is {reply['status']}, not {line.status}")
        missing = [key for key in line.keys if key not in reply]
        probe.expect(not missing, f"the reply lacks {', '.join(missing)}")

    return check


def other_ports(probe: Probe) -> None:
    """Every bound port that takes requests, beside the first of each agent."""
    agents = {line.agent for line in LINES}
    ports = [one for one in probe.ports if one.protocol == "zeromq" and one.purpose in ("requests", "health")]
    if not ports:
        raise Skipped("the ports of the replaced agents are closed (legacy.enabled)")
    bad = []
    for port in ports:
        if not port.host:
            continue
        status = probe.legacy(port, {"action": "health_check"})["status"]
        if status not in _WELL and not (port.owner == "ModelManagerSuite" and status == "degraded"):
            bad.append(f"{port.owner} {port.purpose} {port.port} says {status}")
    unknown = sorted({one.owner for one in ports} - agents - {"ErrorBus"})
    probe.expect(not bad, "; ".join(bad))
    probe.expect(not unknown, f"this checklist has no line for {', '.join(unknown)}")


def nonsense(probe: Probe) -> None:
    port = _port(probe, "KnowledgeBase", "requests")
    with probe.plain("REQ", port.host, port.port) as peer:
        for frames in ([b'{"action": '], [b"\xff\xfe"], [b"[1, 2]"]):
            (reply,) = probe.said(peer, frames)
            probe.expect(b'"status":"error"' in reply.replace(b" ", b""), f"{frames} is not answered with an error")


def memories(probe: Probe) -> None:
    port = _port(probe, "MemoryOrchestratorService", "requests")
    added = probe.legacy(port, {"action": "add_memory", "data": {"content": probe.ns, "memory_type": "verify"}})
    probe.expect(added["status"] == "success", f"add_memory: {added}")
    asked = {"memory_id": added["memory_id"]}
    probe.afterwards(lambda: probe.legacy(port, {"action": "delete_memory", "data": asked}))
    found = probe.legacy(port, {"action": "get_memory", "data": asked})
    probe.expect(found["memory"]["content"] == probe.ns, "get_memory gives another content")


def twins(probe: Probe) -> None:
    port = _port(probe, "UnifiedMemoryReasoningAgent", "requests")
    user = {"user_id": probe.ns}
    probe.afterwards(lambda: probe.legacy(port, {"action": "delete_twin", **user}))
    probe.legacy(port, {"action": "update_twin", **user, "twin_data": {"mood": "calm"}})
    found = probe.legacy(port, {"action": "get_twin", **user})
    probe.expect(found["twin"].get("mood") == "calm", "get_twin gives another twin")


def cache(probe: Probe) -> None:
    port = _port(probe, "CacheManager", "requests")
    entry = {"cache_type": "tool_responses", "key": probe.ns}
    probe.afterwards(lambda: probe.legacy(port, {"action": "invalidate", **entry}))
    probe.legacy(port, {"action": "put", **entry, "value": {"n": 1}, "ttl": 60})
    found = probe.legacy(port, {"action": "get", **entry})
    probe.expect(found["status"] == "success" and found["data"] == {"n": 1}, "get gives another value")


GROUP = Group(
    "legacy",
    "the ports of the replaced agents, in their own words",
    (
        *(Check(f"{line.agent} is well and answers", _answers(line)) for line in LINES),
        Check("every bound port says it is well", other_ports),
        Check("nonsense is answered with an error", nonsense),
        Check("a memory goes in and comes back (MemoryOrchestratorService)", memories),
        Check("a twin goes in and comes back (UnifiedMemoryReasoningAgent)", twins),
        Check("a cached value goes in and comes back (CacheManager)", cache),
    ),
)
