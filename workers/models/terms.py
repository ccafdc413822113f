"""How a model is held and loaded, put together from its entry, the rules, the settings and what was asked by model.keep.

Pure: it knows neither what is loaded nor who keeps the books of memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from bus.settings import ModelSettings, Settings
from workers.models.catalogue import Entry
from workers.models.control import LoadModel
from workers.models.decisions import Terms
from workers.models.estimate import Estimate, estimate
from workers.models.routing.rules import ModelRules

CPU = "cpu"

# Backends that put a model on a GPU where there is one.
_ON_GPU = frozenset({"llama.cpp", "transformers", "vllm"})


class Keep(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked of a model by model.keep; None leaves it to the rules and settings."""

    is_pinned: bool | None = None
    priority: int | None = None
    keep_alive_s: float | None = None


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What one load asks for; None leaves it to the rules and settings."""

    context_tokens: int | None = None
    device: str | None = None


def window(entry: Entry, rules: ModelRules, models: ModelSettings, wish: Wish) -> int:
    """Tokens of each sequence's window, as far as it is known before the load."""
    asked = wish.context_tokens or rules.context_tokens or models.context_tokens
    trained = entry.info.context_tokens
    return asked or min(models.max_context_tokens, trained or models.max_context_tokens)


def device_of(entry: Entry, rules: ModelRules, models: ModelSettings, wish: Wish, gpus: Sequence[str]) -> str | None:
    """The device a model goes to; None leaves the choice among the GPUs to whoever grants their memory."""
    layers = models.gpu_layers if rules.gpu_layers is None else rules.gpu_layers
    if wish.device or rules.device:
        return wish.device or rules.device
    if not gpus or layers == 0 or entry.info.backend not in _ON_GPU:
        return CPU
    return gpus[0] if len(gpus) == 1 else None


def sized(entry: Entry, rules: ModelRules, models: ModelSettings, wish: Wish, device: str | None) -> Estimate:
    """What the model is expected to take on `device`, None being any GPU."""
    return estimate(
        entry.facts,
        context_tokens=window(entry, rules, models, wish),
        parallel=rules.parallel or models.parallel,
        device=device or "gpu0",
        gpu_layers=models.gpu_layers if rules.gpu_layers is None else rules.gpu_layers,
        backend=entry.info.backend,
        quantisation=entry.info.quantisation,
    )


def terms_of(
    entry: Entry, rules: ModelRules, models: ModelSettings, keep: Keep, wish: Wish, gpus: Sequence[str]
) -> Terms:
    """How the scheduler holds this model. What model.keep asked goes before the rules, they before the settings."""
    is_remote = entry.remote is not None
    device = None if is_remote else device_of(entry, rules, models, wish, gpus)
    size = sized(entry, rules, models, wish, device)
    is_pinned = entry.info.name in models.pinned or rules.is_pinned if keep.is_pinned is None else keep.is_pinned
    keep_alive_s = models.keep_alive_s if rules.keep_alive_s is None else rules.keep_alive_s
    return Terms(
        memory_bytes=0 if is_remote else size.ram_bytes if device == CPU else size.vram_bytes,
        beside_bytes=0 if is_remote or device == CPU else size.ram_bytes,
        device=device,
        priority=rules.priority if keep.priority is None else keep.priority,
        keep_alive_s=keep_alive_s if keep.keep_alive_s is None else keep.keep_alive_s,
        max_idle_s=models.max_idle_s if rules.max_idle_s is None else rules.max_idle_s,
        is_pinned=is_pinned,
        is_swappable=rules.is_swappable,
        is_remote=is_remote,
    )


def load_command(
    entry: Entry,
    rules: ModelRules,
    settings: Settings,
    *,
    device: str | None,
    context_tokens: int | None,
) -> LoadModel:
    """What a runner is told to load."""
    return LoadModel(
        name=entry.info.name,
        path=entry.info.path,
        settings=settings,
        format=entry.info.format,
        backend=entry.info.backend,
        device=device or CPU,
        context_tokens=context_tokens or rules.context_tokens,
        parallel=rules.parallel,
        threads=rules.threads,
        gpu_layers=rules.gpu_layers,
        sampling=rules.sampling,
        remote=entry.remote.remote if entry.remote is not None else None,
        arguments=rules.arguments,
    )
