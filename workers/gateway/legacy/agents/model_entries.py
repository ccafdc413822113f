"""Models in the words of the replaced agents: a model's entry, its status object, and the memory of GPUs in MB.

Shared by the model agents and the phase-1 routes. An MB is 2**20 bytes. Where there is no GPU every figure about video
memory is 0, also those of models in main memory. It answers no action and loads nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Final, NamedTuple

import msgspec

from bus.settings import ModelSettings, Settings
from schemas.bodies.model import ModelInfo, ModelList, ModelName, Models, ModelStats, ModelStatsReply
from workers.gateway.legacy.agents import host
from workers.gateway.legacy.agents.host import MIB, Memory
from workers.gateway.legacy.house import House

# Seconds for a look at models and devices: clients give up after 5.
LOOK_S: Final = 4.5

# What we call an ability, and what the old registries called it. Both are told.
_OLD_CAPABILITIES: Final = {"generate": "text-generation", "chat": "conversation", "code": "code-generation"}

# What we call a state, and what the old agents called it: loading is not there yet, unusable never will be.
_OLD_STATES: Final = {
    "loaded": "online",
    "loading": "available_not_loaded",
    "available": "available_not_loaded",
    "unusable": "error",
}


class Vram(NamedTuple):
    """Memory of all GPUs together, in MB. used_mb: what any program has or a lease reserves; free_mb: what is left."""

    total_mb: float = 0.0
    used_mb: float = 0.0
    free_mb: float = 0.0


class Registry(NamedTuple):
    """What the model service has at one moment. used_at: epoch seconds of each model's last use."""

    models: tuple[ModelInfo, ...]
    used_at: Mapping[str, float]
    vram: Vram
    settings: Settings

    def usable(self) -> list[ModelInfo]:
        """Models that can be loaded or are."""
        return [one for one in self.models if one.state != "unusable"]

    def loaded(self) -> list[ModelInfo]:
        """Models that serve."""
        return [one for one in self.models if one.state == "loaded"]

    def find(self, name: str) -> ModelInfo | None:
        """A model by its name or an alias."""
        return next((one for one in self.models if name == one.name or name in one.aliases), None)

    def last_used(self, model: ModelInfo) -> float | None:
        """Epoch seconds of its last use, else of its load; None for neither."""
        return self.used_at.get(model.name) or model.loaded_at


async def registry_of(house: House) -> Registry:
    """What is there now. Raises BusError where no model service answers; without a resource service there is no GPU."""
    models, figures, memory = await asyncio.gather(
        house.ask("model.list", ModelList(), timeout_s=LOOK_S),
        house.ask("model.stats", ModelStats(), timeout_s=LOOK_S),
        host.vram(house),
    )
    assert isinstance(models, Models) and isinstance(figures, ModelStatsReply)
    used_at = {one.model: one.last_used_at for one in figures.models if one.last_used_at is not None}
    return Registry(tuple(models.models), used_at, vram_of(memory), house.settings)


def vram_of(memory: Memory) -> Vram:
    """The same figures in MB."""
    return Vram(mb(memory.total_bytes), mb(memory.total_bytes - memory.free_bytes), mb(memory.free_bytes))


def mb(size_bytes: float) -> float:
    """Bytes in MB, to a tenth."""
    return round(size_bytes / MIB, 1)


def vram_mb(model: ModelInfo) -> float:
    """MB of video memory that a loaded model takes; 0 for one in main memory."""
    return mb(model.memory_bytes) if model.state == "loaded" and (model.device or "cpu") != "cpu" else 0.0


def state_of(model: ModelInfo) -> str:
    """`online`, `available_not_loaded` or `error`."""
    return _OLD_STATES[model.state]


def capabilities_of(model: ModelInfo) -> list[str]:
    """Our words for what it can do, then the old ones."""
    return [*model.capabilities, *(_OLD_CAPABILITIES[one] for one in model.capabilities if one in _OLD_CAPABILITIES)]


def usage_object(vram: Vram) -> dict[str, float]:
    """`vram_usage` of GGUFModelManager."""
    return {"total_mb": vram.total_mb, "used_mb": vram.used_mb, "remaining_mb": vram.free_mb}


def entry_of(model: ModelInfo, registry: Registry) -> dict[str, Any]:
    """A model as `list_models` of GGUFModelManager and `GET /models` of phase 1 tell it.

    `model_path` is relative to the models folder. n_threads 0: as many as the model service finds right.
    """
    settings = registry.settings.models
    entry: dict[str, Any] = {
        "model_id": model.name,
        "display_name": model.name,
        "model_path": _path_in(registry.settings, model.path),
        "n_ctx": _window(model, settings),
        "n_gpu_layers": settings.gpu_layers,
        "n_threads": settings.threads,
        "verbose": False,
        "estimated_vram_mb": mb(model.memory_bytes or model.size_bytes),
        "capabilities": capabilities_of(model),
        "idle_timeout_seconds": settings.keep_alive_s if model.keep_alive_s is None else model.keep_alive_s,
        "loaded": model.state == "loaded",
    }
    last_used = registry.used_at.get(model.name)
    if last_used is not None:
        entry |= {"last_used": last_used, "idle_time": max(0.0, time.time() - last_used)}
    return entry


def suite_entry_of(model: ModelInfo, registry: Registry) -> dict[str, Any]:
    """A model as `list_models` of ModelManagerSuite tells it: the entry, its status, what its file says, the whole path."""
    return {
        **entry_of(model, registry),
        "model_path": model.path,
        "status": state_of(model),
        "type": model.format,
        "quantization": model.quantisation,
        "use_case": model.description,
        "file_size_gb": round(model.size_bytes / 1024**3, 3),
        "context_length": model.context_tokens,
    }


def status_object(name: str, registry: Registry) -> dict[str, Any]:
    """What `get_model_status` and `GET /models/{id}` of phase 1 answer; `status` says `not_found` of unknown ones."""
    model = registry.find(name)
    if model is None:
        return {"status": "not_found", "model_info": {}, "state": {}, "vram_usage": usage_object(registry.vram)}
    is_loaded = model.state == "loaded"
    return {
        "status": "loaded" if is_loaded else "available_not_loaded" if model.state != "unusable" else "error",
        "model_info": entry_of(model, registry),
        "state": {
            "loaded": is_loaded,
            "vram_mb": vram_mb(model),
            "loaded_at": model.loaded_at,
            "last_used": registry.last_used(model),
        },
        "vram_usage": usage_object(registry.vram),
    }


def loaded_object(model: ModelInfo, registry: Registry) -> dict[str, Any]:
    """A loaded model as ModelManagerAgent tells it. `device` is the machine there; `accelerator` is ours, as `gpu0`."""
    return {
        "vram_usage_mb": vram_mb(model),
        "device": "MainPC",
        "last_used": registry.last_used(model),
        "is_active": model.in_flight > 0,
        "quantization": model.quantisation or "none",
        "accelerator": model.device,
        "memory_mb": mb(model.memory_bytes),
    }


def info_object(model: ModelInfo, registry: Registry) -> dict[str, Any]:
    """A model of the registry as ModelManagerAgent tells it."""
    return {
        **suite_entry_of(model, registry),
        "serving_method": "custom_api"
        if model.format == "remote"
        else "gguf_direct"
        if model.format == "gguf"
        else "huggingface",
        "error": model.error or "",
    }


def select(registry: Registry, task_type: str, context_tokens: int) -> ModelInfo | None:
    """The model for a task, in the order of the old agent: able, large enough, loaded, fitting, small.

    Where none is able any will do, where none is large enough the largest. None: there is no model that can be used.
    """
    usable = registry.usable()
    wanted = task_type.strip().lower().replace("_", "-")
    able = [one for one in usable if wanted in capabilities_of(one)] or usable
    largest = max((one.context_tokens for one in able), default=0)
    enough = [one for one in able if one.context_tokens >= min(context_tokens, largest)]

    def place(model: ModelInfo) -> tuple[int, float]:
        fits = registry.vram.total_mb == 0 or mb(model.memory_bytes) <= registry.vram.free_mb
        return (0 if model.state == "loaded" else 1 if fits else 2), mb(model.memory_bytes)

    return min(enough, key=place, default=None)


def is_model_name(text: str) -> bool:
    """True for what could be the name of a model or a profile here."""
    try:
        msgspec.convert(text, ModelName)
    except msgspec.ValidationError:
        return False
    return True


def _window(model: ModelInfo, settings: ModelSettings) -> int:
    """Tokens of the window that it is loaded with where neither request nor rule says otherwise."""
    return settings.context_tokens or min(model.context_tokens, settings.max_context_tokens)


def _path_in(settings: Settings, path: str) -> str:
    """A path below the first models folder that holds it; just the file's name elsewhere, "" for a model without one."""
    if not path:
        return ""
    file = PurePath(path)
    for root in settings.models.roots:
        folder = settings.path(root)
        if file.is_relative_to(folder):
            return str(file.relative_to(folder))
    return file.name
