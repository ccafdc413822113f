"""ModelManagerAgent (5570; 5555 of an old client): the four dialects that its clients speak on one socket.

Actions (`ok`), commands (`SUCCESS`), `PROCESS` with a type (`success`), and the bare request of the speech agents
(`MODEL_READY`). It stands on 7721 too, where a test of the old system compares its words with those of ModelManagerSuite.
It does not tell SystemDigitalTwin about video memory: the twin reads the devices itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

from schemas.bodies.memory import CacheEntry, CacheGet, CacheSet
from schemas.bodies.model import ConversationClear, ConversationCleared, ModelInfo, ModelLoad, ModelState, ModelUnload
from schemas.errors import BusError, NotFound, Overloaded
from workers.gateway.legacy.agent import Action, Agent, Fields, Handle, Refused, Reply
from workers.gateway.legacy.agents.generation import (
    FAST,
    GENERATE_S,
    answer_of,
    generated,
    no_speech,
    options_of,
    preferred,
)
from workers.gateway.legacy.agents.model_entries import (
    Registry,
    info_object,
    is_model_name,
    loaded_object,
    mb,
    registry_of,
    select,
    state_of,
    suite_entry_of,
    usage_object,
    vram_mb,
)
from workers.gateway.legacy.agents.model_tally import ran_for_s, tally_of
from workers.gateway.legacy.house import House

_NAME: Final = "ModelManagerAgent"

# What `model_pref` may say. Those for speech mean nothing here.
_PREFERENCES: Final = ("fast", "quality", "fallback", "smart")

# Seconds between two broadcasts without a change, as the old health sweep.
_SWEEP_S: Final = 5.0

# Where the response cache of `PROCESS` lies.
_CACHE_NS: Final = "legacy.responses"

# Tokens: the largest window that a request may ask for.
WINDOW_MAX: Final = 16_777_216

_OUR_DEVICE: Final = re.compile(r"cpu|gpu[0-9]{1,3}")


# Actions


async def generate(ask: Fields, house: House) -> Reply:
    params = Fields(ask.mapping("params"))
    if params.flag("batch_mode", False) and params.get("batch_data") is not None:
        return transcribed(params.items_of("batch_data"))
    if not ask.get("prompt"):
        raise Refused("Missing 'prompt' in request")
    names = [ask.text("model_pref", FAST), FAST]
    return await _answered(Fields({**_conversation(ask), **params}), house, names, ask.text("prompt"), status="ok")


async def generate_text(ask: Fields, house: House) -> Reply:
    """What no server of old answered and two kinds of clients send: a model by name, by preference, or none."""
    if ask.get("audio_data") is not None:
        raise no_speech("transcription")
    if not ask.get("prompt"):
        raise Refused("Missing 'prompt' in request")
    name = named(ask)
    names = [name] if name else [ask.text("model_pref", FAST), FAST]
    options = Fields({**ask, **ask.mapping("params")})
    return await _answered(options, house, names, ask.text("prompt"), status="success")


async def generate_speech(ask: Fields, house: House) -> Reply:
    raise no_speech("synthesis")


async def clear_conversation(ask: Fields, house: House) -> Reply:
    conversation = ask.text("conversation_id")
    if not conversation:
        raise Refused("Missing 'conversation_id' in request")
    cleared: ConversationCleared = await house.ask(
        "model.conversation.clear", ConversationClear(conversation_id=conversation)
    )
    tally_of(house).forget(conversation)
    found = "cleared" if cleared.was_kept else "held nothing"
    return {"status": "ok", "message": f"Conversation {conversation} {found}", "conversation_id": conversation}


async def status(ask: Fields, house: House) -> Reply:
    registry, policy = await asyncio.gather(registry_of(house), preferred(house, _PREFERENCES))
    return {
        "status": "ok",
        **loaded_figures(registry),
        "routing_policy": policy,
        "load_policy": policy,
        "known_models": [one.name for one in registry.usable()],
        "service": _NAME,
        "health": "ok",
        "timestamp": time.time(),
    }


async def load_model(ask: Fields, house: House) -> Reply:
    state = await loaded(_required(ask), house, loaded=False)
    return {"status": "success", "loaded": True, "message": f"{state.model} is loaded on {state.device or 'cpu'}"}


async def unload_model(ask: Fields, house: House) -> Reply:
    """Success also of a model that is not loaded, or unknown: what is asked for is the case."""
    name = _required(ask)
    return {"status": "success", "unloaded": True, "message": await unloaded(name, house)}


async def list_models(ask: Fields, house: House) -> Reply:
    registry = await registry_of(house)
    return {"status": "success", "models": [suite_entry_of(one, registry) for one in registry.models]}


async def health_check(ask: Fields, house: House) -> Reply:
    """Its own, so that 7721 answers as 5570 does."""
    return await house.health_of(AGENT)


# Commands


async def load_command(ask: Fields, house: House) -> Reply:
    device = ask.text("device")
    state = await loaded(ask.text("model_name"), house, device=device if _OUR_DEVICE.fullmatch(device) else None)
    return {"status": "SUCCESS", "message": f"{state.model} is loaded on {state.device or 'cpu'}"}


async def unload_command(ask: Fields, house: House) -> Reply:
    return {"status": "SUCCESS", "message": await unloaded(ask.text("model_name"), house)}


async def loaded_command(ask: Fields, house: House) -> Reply:
    return {"status": "SUCCESS", **loaded_figures(await registry_of(house))}


async def select_command(ask: Fields, house: House) -> Reply:
    registry = await registry_of(house)
    model = select(registry, ask.text("task_type"), ask.whole("context_size", 0, high=WINDOW_MAX))
    return [None, None] if model is None else [model.name, info_object(model, registry)]


async def health_command(ask: Fields, house: House) -> Reply:
    registry = await registry_of(house)
    return {**await health_check(ask, house), "status": "SUCCESS", "loaded_models": len(registry.loaded())}


async def verify_services(ask: Fields, house: House) -> Reply:
    """Which services of the second machine answer: this agent watches none."""
    return {}


# PROCESS


async def process(ask: Fields, house: House) -> Reply:
    request_id = ask.get("request_id", "N/A")
    handle = _PROCESSES.get(str(ask.get("type")))
    if handle is None:
        raise Refused(f"Unknown PROCESS type: {ask.get('type')}", request_id=request_id)
    return await handle(ask, house)


async def process_load(ask: Fields, house: House) -> Reply:
    state = await loaded(_required(ask), house, model_status="error")
    return {"status": "success", "message": f"{state.model} is loaded", "model_status": "loaded"}


async def process_unload(ask: Fields, house: House) -> Reply:
    name = _required(ask)
    return {"status": "success", "message": await unloaded(name, house), "model_status": "unloaded"}


async def process_status(ask: Fields, house: House) -> Reply:
    name, registry = _required(ask), await registry_of(house)
    model = registry.find(name)
    if model is None:
        raise Refused(f"Model {name} not found", model_name=name)
    return {"status": "success", "model_name": name, **_process_entry(model, registry, "model_info")}


async def process_models(ask: Fields, house: House) -> Reply:
    registry = await registry_of(house)
    return {
        "status": "success",
        "models": {one.name: _process_entry(one, registry, "info") for one in registry.models},
    }


async def process_memory(ask: Fields, house: House) -> Reply:
    registry = await registry_of(house)
    names = [one.name for one in registry.loaded()]
    vram = registry.vram
    if not vram.total_mb:
        message = f"There is no GPU; {len(names)} models are in main memory"
        return {"status": "success", "device": "cpu", "message": message, "loaded_model_instances": names}
    return {
        "status": "success",
        "device": "cuda",
        "total_gpu_memory_mb": vram.total_mb,
        "vram_budget_mb": vram.total_mb,
        "mma_estimated_used_vram_mb": vram.used_mb,
        "mma_estimated_free_vram_mb_in_budget": vram.free_mb,
        "torch_allocated_vram_mb": sum(vram_mb(one) for one in registry.loaded()),
        "torch_free_total_vram_mb": vram.free_mb,
        "usage_percent_of_budget": round(100 * vram.used_mb / vram.total_mb, 2),
        "loaded_model_instances": names,
    }


async def process_health(ask: Fields, house: House) -> Reply:
    registry = await registry_of(house)
    return {
        "status": "ok",
        "message": "models are served",
        "details": {
            "models": len(registry.usable()),
            "loaded_models": len(registry.loaded()),
            "vram_usage": usage_object(registry.vram),
        },
        "request_id_received": ask.get("request_id", "N/A"),
        "timestamp": time.time(),
    }


async def cached_response(ask: Fields, house: House) -> Reply:
    entry: CacheEntry = await house.ask("memory.cache.get", CacheGet(key=cache_key(ask), ns=_CACHE_NS))
    found = {"response": entry.value} if entry.hit else {}
    return {"status": "success", "cached": entry.hit, **found, "request_id": ask.get("request_id", "N/A")}


async def cache_response(ask: Fields, house: House) -> Reply:
    if ask.get("response") is None:
        raise Refused("Missing 'response'", request_id=ask.get("request_id", "N/A"))
    await house.ask("memory.cache.set", CacheSet(key=cache_key(ask), value=ask["response"], ns=_CACHE_NS))
    return {"status": "success", "message": "Response cached", "request_id": ask.get("request_id", "N/A")}


# The bare request


async def bare(ask: Fields, house: House) -> Reply:
    """What speech agents send to have their model in memory; whatever else has no verb is an unknown command."""
    if not ask.keys() & {"model_id", "request_id", "context"}:
        raise Refused("Unknown command: None", status="ERROR")
    model = ask.get("model_id")
    if not isinstance(model, str) or not model:
        return _not_ready(ask, "MISSING_MODEL_ID", "Missing model_id in request")
    try:
        state = await loaded(model, house)
        registry = await registry_of(house)
    except Refused as refused:
        return _not_ready(ask, why_not(refused.__cause__), refused.text, model_id=model)
    except BusError as error:
        return _not_ready(ask, why_not(error), error.message, model_id=model)
    entry = registry.find(state.model)
    return {
        "status": "MODEL_READY",
        "request_id": ask.get("request_id"),
        "model_id": model,
        "access_info": {
            "message": f"{state.model} is loaded on {state.device or 'cpu'}",
            "model_path_from_config": entry.path if entry else "",
            "vram_allocated_mb": vram_mb(entry) if entry else 0.0,
            "quantization_level": (entry.quantisation if entry else "") or "none",
            "priority": entry.priority if entry else 5,
        },
        "timestamp": _utc(),
    }


def why_not(error: BaseException | None) -> str:
    """The `error_code` of a load that failed."""
    if isinstance(error, NotFound):
        return "MODEL_NOT_FOUND"
    is_short = isinstance(error, Overloaded) or (isinstance(error, BusError) and "needed_bytes" in error.details)
    return "INSUFFICIENT_VRAM" if is_short else "PROCESSING_ERROR"


# What several of them need


async def loaded(name: str, house: House, *, device: str | None = None, **extra: Any) -> ModelState:
    """Load a model. Raises Refused with `extra` and the bus error as its cause."""
    try:
        if not is_model_name(name):
            raise NotFound(f"there is no model {name!r}", model=name)
        state: ModelState = await house.ask("model.load", ModelLoad(model=name, device=device), timeout_s=GENERATE_S)
    except BusError as error:
        raise Refused(error.message, **extra) from error
    tally_of(house).models_loaded += state.took_s > 0
    return state


async def unloaded(name: str, house: House) -> str:
    """Take a model out of memory, if it is there; says which was the case. Raises BusError."""
    state = None
    if is_model_name(name):
        with suppress(NotFound):
            state = await house.ask("model.unload", ModelUnload(model=name), timeout_s=GENERATE_S)
    if state is None or state.took_s == 0:
        return f"{name} was not loaded"
    tally_of(house).models_unloaded += 1
    return f"{name} is unloaded"


def named(ask: Fields) -> str:
    """The model that a request names, under either key; "" for none. Raises Refused."""
    return ask.text("model_id") or ask.text("model_name")


def loaded_figures(registry: Registry) -> dict[str, Any]:
    """What is loaded, and the video memory."""
    return {
        "loaded_models": {one.name: loaded_object(one, registry) for one in registry.loaded()},
        "total_models": len(registry.usable()),
        "total_vram_used_mb": registry.vram.used_mb,
        "total_vram_mb": registry.vram.total_mb,
    }


def transcribed(items: list[Any]) -> dict[str, Any]:
    """The answer to a batch of sounds: each item gets an error, for no model here hears.

    The batch as a whole fails as soon as one item held a sound; what was no sound was always an error of its own.
    """
    began = time.perf_counter()
    results = [{"text": "", "confidence": 0.0, "error": _why_no_text(item)} for item in items]
    batch = {"results": results, "batch_size": len(items), "model_used": ""}
    if not any(map(_is_sound, items)):
        return {"status": "success", **batch, "processing_time": time.perf_counter() - began}
    text = no_speech("transcription").text
    return {"status": "error", "message": text, "error": text, "partial_results": results, **batch}


def cache_key(ask: Fields) -> str:
    """The key of a cached response: the same for the same model, prompt and system prompt, today and tomorrow.

    Raises Refused where prompt or model is missing.
    """
    for name in ("prompt", "model"):
        if not ask.get(name):
            raise Refused(f"Missing '{name}'", request_id=ask.get("request_id", "N/A"))
    asked = [ask.text("model"), ask.text("prompt"), ask.text("system_prompt")]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


async def _answered(options: Fields, house: House, names: list[str], prompt: str, *, status: str) -> Reply:
    chosen = options_of(options, max_tokens=256)
    reply = await generated(house, names, prompt, chosen, system=options.text("system_prompt"))
    tally_of(house).converse(chosen.conversation_id, time.time())
    return answer_of(reply, chosen, status=status)


def _conversation(ask: Fields) -> Mapping[str, Any]:
    return {key: ask[key] for key in ("conversation_id", "system_prompt") if ask.get(key) is not None}


def _required(ask: Fields) -> str:
    name = named(ask)
    if not name:
        raise Refused("Missing model_name or model_id")
    return name


def _is_sound(item: Any) -> bool:
    return isinstance(item, dict) and bool(item.get("audio_data"))


def _why_no_text(item: Any) -> str:
    return no_speech("transcription").text if _is_sound(item) else "No audio data provided"


def _process_entry(model: ModelInfo, registry: Registry, key: str) -> dict[str, Any]:
    return {
        key: info_object(model, registry),
        "is_loaded": model.state == "loaded",
        "last_used_timestamp": registry.last_used(model),
        "current_memory_usage_mb": mb(model.memory_bytes) if model.state == "loaded" else 0.0,
    }


def _not_ready(ask: Fields, code: str, text: str, **extra: Any) -> dict[str, Any]:
    return {
        "status": "ERROR_LOADING_MODEL",
        "request_id": ask.get("request_id"),
        **extra,
        "error_message": text,
        "message": text,
        "error": text,
        "error_code": code,
        "timestamp": _utc(),
    }


def _utc() -> str:
    return datetime.now(UTC).replace(tzinfo=None).isoformat()


# Health and broadcasts


async def health_socket(message: Any, house: House) -> Reply:
    if message is None:
        return {"status": "error", "error": "Invalid JSON", "message": "Invalid JSON"}
    is_up = await house.is_up("model")
    text = "models are served" if is_up else "the model service has not joined the bus"
    return {
        "status": "ok" if is_up else "error",
        "details": {"status_message": text, "uptime_seconds": ran_for_s(house)},
    }


async def broadcast(house: House) -> None:
    """Publish what is loaded after every load and unload, and every few seconds without one."""
    async with house.client.subscribe("model.loaded", "model.unloaded", "model.evicted") as events:
        while True:
            with suppress(BusError):
                house.publish(_NAME, [json.dumps(update_of(await registry_of(house))).encode()])
            with suppress(TimeoutError):
                async with asyncio.timeout(_SWEEP_S):
                    await anext(events)


def update_of(registry: Registry) -> dict[str, Any]:
    """One broadcast: a single frame without a topic."""
    vram = registry.vram
    return {
        "event": "model_status_update",
        "models": {
            one.name: {"status": state_of(one), "estimated_vram_mb": mb(one.memory_bytes)} for one in registry.models
        },
        "loaded_models": [one.name for one in registry.loaded()],
        "vram_usage": {"total_budget_mb": vram.total_mb, "used_mb": vram.used_mb, "remaining_mb": vram.free_mb},
        "timestamp": time.time(),
    }


def _command(handle: Handle, required: str = "") -> Action:
    """A command, whose failures are `ERROR`."""

    async def run(ask: Fields, house: House) -> Reply:
        try:
            if required and not ask.get(required):
                raise Refused(f"Missing {required}")
            return await handle(ask, house)
        except Refused as refused:
            raise Refused(refused.text, **{**refused.extra, "status": "ERROR"}) from refused
        except BusError as error:
            raise Refused(error.message, status="ERROR", code=error.code) from error

    return Action(run)


_PROCESSES: Final[dict[str, Handle]] = {
    "load_model": process_load,
    "unload_model": process_unload,
    "get_model_status": process_status,
    "get_all_models": process_models,
    "get_memory_status": process_memory,
    "health_check": process_health,
    "get_cached_response": cached_response,
    "cache_response": cache_response,
}

AGENT = Agent(
    name=_NAME,
    service="model",
    kind="model_manager",
    ports=(5570, 5555, 7721),
    health_ports=(5571,),
    event_ports=(5572,),
    actions={
        "generate": Action(generate),
        "clear_conversation": Action(clear_conversation),
        "status": Action(status),
        "generate_text": Action(generate_text),
        "generate_speech": Action(generate_speech),
        "load_model": Action(load_model),
        "unload_model": Action(unload_model),
        "list_models": Action(list_models),
        "health_check": Action(health_check),
    },
    commands={
        "LOAD_MODEL": _command(load_command, "model_name"),
        "UNLOAD_MODEL": _command(unload_command, "model_name"),
        "GET_LOADED_MODELS_STATUS": _command(loaded_command),
        "SELECT_MODEL": _command(select_command),
        "HEALTH_CHECK": _command(health_command),
        "VERIFY_SERVICES": _command(verify_services),
        "PROCESS": Action(process),
    },
    typeless=bare,
    health_socket=health_socket,
    tasks=(broadcast,),
)
