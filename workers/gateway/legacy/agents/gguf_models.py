"""GGUFModelManager (5575): loads, unloads and asks models by their name. A failure is told with `status` and text."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from schemas.bodies.model import ModelState, ModelUnload
from schemas.errors import BusError
from workers.gateway.legacy.agent import Action, Agent, Fields, Refused, Reply
from workers.gateway.legacy.agents.generation import GENERATE_S, generated, options_of
from workers.gateway.legacy.agents.model_entries import (
    Vram,
    entry_of,
    registry_of,
    status_object,
    usage_object,
)
from workers.gateway.legacy.agents.model_manager import loaded
from workers.gateway.legacy.agents.model_tally import tally_of
from workers.gateway.legacy.house import House


async def list_models(ask: Fields, house: House) -> Reply:
    registry = await registry_of(house)
    return {"status": "success", "models": [entry_of(one, registry) for one in registry.usable()]}


async def load_model(ask: Fields, house: House) -> Reply:
    await loaded(ask.text("model_id"), house, loaded=False)
    return {"status": "success", "loaded": True}


async def unload_model(ask: Fields, house: House) -> Reply:
    model = ask.text("model_id")
    try:
        state: ModelState = await house.ask("model.unload", ModelUnload(model=model), timeout_s=GENERATE_S)
    except BusError as error:
        raise Refused(error.message, unloaded=False) from error
    if state.took_s == 0:
        raise Refused(f"{model} is not loaded", unloaded=False)
    tally_of(house).models_unloaded += 1
    return {"status": "success", "unloaded": True}


async def generate_text(ask: Fields, house: House) -> Reply:
    options = options_of(ask, max_tokens=1024)
    model = ask.text("model_id")
    reply = await generated(house, [model], ask.text("prompt"), options, system=ask.text("system_prompt"))
    tally_of(house).converse(options.conversation_id, time.time())
    answer = {
        "status": "success",
        "model_id": model,
        "model_used": reply.model,
        "text": reply.text,
        "using_kv_cache": reply.usage.cached_tokens > 0,
        "tokens_generated": reply.usage.completion_tokens,
    }
    return answer | ({"conversation_id": options.conversation_id} if options.conversation_id else {})


async def get_model_status(ask: Fields, house: House) -> Reply:
    return status_object(ask.text("model_id"), await registry_of(house))


async def health(house: House) -> dict[str, Any]:
    own: dict[str, Any] = {"timestamp": time.time(), "kv_caches_count": tally_of(house).conversations(time.time())}
    try:
        registry = await registry_of(house)
    except BusError as error:
        return own | {
            "status": "unhealthy",
            "error": error.message,
            "llama_cpp_available": False,
            "models_loaded": 0,
            "total_models": 0,
            "vram_usage": usage_object(Vram()),
        }
    return own | {
        "status": "healthy",
        "llama_cpp_available": any(one.backend == "llama.cpp" for one in registry.usable()),
        "models_loaded": len(registry.loaded()),
        "total_models": len(registry.usable()),
        "vram_usage": usage_object(registry.vram),
    }


async def health_socket(message: Any, house: House) -> Reply:
    """The words of the old base class, which answered there: those who ask a health port want `ok`."""
    checked = await house.health_of(AGENT)
    status = "ok" if checked["ready"] else "degraded"
    return checked | {"status": status, "timestamp": datetime.now().isoformat()}


_MISSING = "model_id required"

AGENT = Agent(
    name="GGUFModelManager",
    service="model",
    kind="model_manager",
    ports=(5575,),
    health_ports=(5576,),
    actions={
        "list_models": Action(list_models),
        "load_model": Action(load_model, required=("model_id",), missing=_MISSING),
        "unload_model": Action(unload_model, required=("model_id",), missing=_MISSING),
        "generate_text": Action(generate_text, required=("model_id", "prompt"), missing="model_id and prompt required"),
        "get_model_status": Action(get_model_status, required=("model_id",), missing=_MISSING),
    },
    health=health,
    health_socket=health_socket,
)
