"""The old ModelManagerSuite (7211, or 7212 when that was taken): five agents' actions on one port, in its own words.

What its two forms say differently stands side by side in one reply. It answers `status` and `clear_conversation` of
ModelManagerAgent too, for the shared client of old tries this port first. On 7721 that agent's words go before these.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any, Final

from schemas.bodies.model import ModelPreload, Preloading
from schemas.errors import BusError
from workers.gateway.legacy.agent import Action, Agent, Fields, Refused, Reply, Words
from workers.gateway.legacy.agents.evaluation_framework import (
    evaluations_of,
    log_model_evaluation,
    log_performance_metric,
    metrics_of,
)
from workers.gateway.legacy.agents.generation import FAST, Options, answer_of, generated, options_of
from workers.gateway.legacy.agents.model_entries import (
    Registry,
    Vram,
    registry_of,
    select,
    state_of,
    suite_entry_of,
    vram_mb,
)
from workers.gateway.legacy.agents.model_manager import (
    WINDOW_MAX,
    clear_conversation,
    list_models,
    load_model,
    status,
    unload_model,
)
from workers.gateway.legacy.agents.model_tally import ran_for_s, tally_of
from workers.gateway.legacy.agents.predictive_loader import predict_models, record_usage
from workers.gateway.legacy.house import House

_NAME: Final = "ModelManagerSuite"

# Models of one request to load ahead of need (schemas.bodies.model.ModelPreload).
_AT_ONCE: Final = 16

# Entries that the lists give where the request names no number.
_LISTED: Final = 100


async def generate_text(ask: Fields, house: House) -> Reply:
    """Options stand at the top, or in `params` as in the first form of the suite."""
    params = ask.mapping("params")
    options = options_of(Fields({**ask, **params}), max_tokens=256 if params else 1024)
    return await _answered(ask, house, [ask.text("model_id")], options)


async def generate(ask: Fields, house: House) -> Reply:
    conversation = {"conversation_id": ask.get("conversation_id")}
    options = options_of(Fields({**conversation, **ask.mapping("params")}), max_tokens=256)
    return await _answered(ask, house, [ask.text("model_pref", FAST), FAST], options)


async def get_model_status(ask: Fields, house: House) -> Reply:
    registry, name = await registry_of(house), ask.text("model_id")
    if not name:
        return {"status": "success", "models": {one.name: _status_entry(one.name, registry) for one in registry.models}}
    if registry.find(name) is None:
        raise Refused(f"Model {name} not found")
    return {"status": "success", "model": _status_entry(name, registry)}


async def select_model(ask: Fields, house: House) -> Reply:
    registry = await registry_of(house)
    model = select(registry, ask.text("task_type"), ask.whole("context_size", 0, high=WINDOW_MAX))
    if model is None:
        raise Refused(f"No suitable model for task {ask.text('task_type')}")
    return {"status": "success", "selected_model": model.name}


async def get_loaded_models_status(ask: Fields, house: House) -> Reply:
    registry = await registry_of(house)
    models = {
        one.name: {"status": "online", "last_used": registry.last_used(one), "vram_usage": vram_mb(one)}
        for one in registry.loaded()
    }
    return {"status": "success", "loaded_models": models}


async def preload_models(ask: Fields, house: House) -> Reply:
    """Answered before anything is loaded; `models` says of each whether its load has begun, and why not."""
    names = [str(one) for one in ask.items_of("model_ids")]
    begun: list[Preloading] = []
    for start in range(0, len(names), _AT_ONCE):
        reply = await house.ask("model.preload", ModelPreload(models=names[start : start + _AT_ONCE]))
        begun += reply.models
    models = {one.model: {"started": one.is_started, "reason": one.reason} for one in begun}
    return {"status": "success", "message": f"Preloading {len(names)} models", "models": models}


async def get_performance_metrics(ask: Fields, house: House) -> Reply:
    return {"status": "success", "metrics": await metrics_of(ask, house, limit=_LISTED)}


async def get_model_evaluation_scores(ask: Fields, house: House) -> Reply:
    return {"status": "success", "evaluations": await evaluations_of(ask, house, limit=_LISTED)}


async def get_stats(ask: Fields, house: House) -> Reply:
    metrics = stats(house)
    more = {key: metrics[key] for key in ("models_loaded", "models_tracked")}
    return {"status": "success", "metrics": metrics, **more, "commands_processed": house.requests_of(_NAME)}


async def health_check(ask: Fields, house: House) -> Reply:
    try:
        registry = await registry_of(house)
    except BusError as error:
        registry = Registry((), {}, Vram(), house.settings)
        problem: dict[str, Any] = {"error": error.message}
    else:
        problem = {}
    loaded = registry.loaded()
    return {
        "status": "healthy" if loaded else "degraded",
        "agent": _NAME,
        "total_models": len(registry.usable()),
        "online_models": len(loaded),
        "loaded_models": len(loaded),
        "models_loaded": len(loaded),
        "vram_used_mb": registry.vram.used_mb,
        "vram_budget_mb": registry.vram.total_mb,
        "model_details": {one.name: {"status": state_of(one), "message": one.error or ""} for one in registry.models},
        "models_tracked": stats(house)["models_tracked"],
        "commands_processed": house.requests_of(_NAME),
        "uptime": ran_for_s(house),
        "timestamp": time.time(),
        **problem,
    }


async def health_socket(message: Any, house: House) -> Reply:
    checked = await health_check(Fields(), house)
    return {
        "status": "error" if "error" in checked else "ok",
        "agent": _NAME,
        "uptime": ran_for_s(house),
        "timestamp": datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
        "commands_processed": house.requests_of(_NAME),
        "loaded_models": checked["loaded_models"],
        "vram_used_mb": checked["vram_used_mb"],
        "vram_budget_mb": checked["vram_budget_mb"],
        "device": "cuda" if checked["vram_budget_mb"] else "cpu",
        "metrics": stats(house),
    }


def stats(house: House) -> dict[str, int]:
    """What it counted since this process started."""
    tally = tally_of(house)
    return {
        **tally.stats(),
        "predictions_made": tally.predictions_made,
        "models_loaded": tally.models_loaded,
        "models_unloaded": tally.models_unloaded,
    }


async def _answered(ask: Fields, house: House, names: list[str], options: Options) -> Reply:
    system = ask.text("system_prompt")
    reply = await generated(house, names, ask.text("prompt"), options, system=system, is_labelled=True)
    tally_of(house).converse(options.conversation_id, time.time())
    return {"conversation_id": None, **answer_of(reply, options, status="success")}


def _status_entry(name: str, registry: Registry) -> dict[str, Any]:
    model = registry.find(name)
    assert model is not None
    return {**suite_entry_of(model, registry), "last_used": registry.last_used(model)}


AGENT = Agent(
    name=_NAME,
    service="model",
    kind="model_manager",
    ports=(7211, 7212, 7721),
    health_ports=(8211,),
    actions={
        "load_model": Action(load_model, required=("model_id",)),
        "unload_model": Action(unload_model, required=("model_id",)),
        "generate_text": Action(generate_text, required=("model_id", "prompt")),
        "generate": Action(generate, required=("prompt",)),
        "list_models": Action(list_models),
        "get_model_status": Action(get_model_status),
        "health_check": Action(health_check),
        "select_model": Action(select_model, required=("task_type",)),
        "get_loaded_models_status": Action(get_loaded_models_status),
        "predict_models": Action(predict_models),
        "record_usage": Action(record_usage, required=("model_id",), missing="No model_id provided"),
        "preload_models": Action(preload_models),
        "log_performance_metric": Action(log_performance_metric),
        "log_model_evaluation": Action(log_model_evaluation),
        "get_performance_metrics": Action(get_performance_metrics),
        "get_model_evaluation_scores": Action(get_model_evaluation_scores),
        "get_stats": Action(get_stats),
        "status": Action(status),
        "clear_conversation": Action(clear_conversation),
    },
    words=Words(no_verb="Missing action field"),
    health_socket=health_socket,
)
