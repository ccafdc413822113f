"""Every replaced agent that this edge answers for. The order decides who is asked first on a shared port."""

from __future__ import annotations

import importlib
from typing import Final

from workers.gateway.legacy.agent import Agent

# Modules of this package; each declares its AGENT, or AGENTS where one module speaks for several.
_MODULES: Final = (
    "orchestrator",
    "memory_client",
    "session_memory",
    "knowledge_base",
    "reasoning",
    "context_manager",
    "experience_tracker",
    "cache_manager",
    "proactive_monitor",
    "utils_agent",
    "authentication",
    "trust_scorer",
    "gguf_models",
    "model_manager",
    "predictive_loader",
    "evaluation_framework",
    "model_suite",
    "self_training",
    "fine_tuner",
    "learning_manager",
    "learning_orchestration",
    "opportunity_detector",
    "active_learning",
    "learning_adjuster",
    "error_bus",
    "digital_twin",
    "service_registry",
    "resource_manager",
)


def roster() -> tuple[Agent, ...]:
    """All agents."""
    agents: list[Agent] = []
    for name in _MODULES:
        module = importlib.import_module(f"workers.gateway.legacy.agents.{name}")
        agents += getattr(module, "AGENTS", None) or (module.AGENT,)
    return tuple(agents)
