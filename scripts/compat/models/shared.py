"""The one ModelManager of a process, and its calls as functions."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from models.config import ModelConfig
from models.model import Model
from models.model_manager import Callback, ModelManager

_lock: Final = threading.Lock()
_shared: list[ModelManager] = []


def get_model_manager(config: Any = None, **options: Any) -> ModelManager:
    """The ModelManager of this process, made at the first call. `config` is added to what it knows."""
    return initialize_model_manager(config, **options)


def initialize_model_manager(config: Any = None, memory_limit_mb: Any = None, **options: Any) -> ModelManager:
    """The same, with a configuration and a memory limit; options are those of ModelManager."""
    with _lock:
        if not _shared:
            _shared.append(ModelManager(config, memory_limit_mb, **options))
            return _shared[0]
        manager = _shared[0]
    manager.configure(config, memory_limit_mb, **{name: value for name, value in options.items() if name != "settings"})
    return manager


def shutdown() -> None:
    """See `ModelManager.shutdown`; the next call makes a new one."""
    with _lock:
        managers = list(_shared)
        _shared.clear()
    for manager in managers:
        manager.shutdown()


def add_model_config(config: Any = None, fields: Any = None, /, **more: Any) -> ModelConfig:
    """See `ModelManager.add_model_config`."""
    return get_model_manager().add_model_config(config, fields, **more)


def load_config(source: str | Path | Mapping[str, Any] | Iterable[Any]) -> list[ModelConfig]:
    """See `ModelManager.load_config`."""
    return get_model_manager().load_config(source)


def get_model(name: str | None = None, **options: Any) -> Model:
    """See `ModelManager.get_model`."""
    return get_model_manager().get_model(name, **options)


def unload_model(name: str, force: bool = False) -> bool:
    """See `ModelManager.unload_model`."""
    return get_model_manager().unload_model(name, force)


def list_available_models() -> list[str]:
    """See `ModelManager.list_available_models`."""
    return get_model_manager().list_available_models()


def list_loaded_models() -> list[str]:
    """See `ModelManager.list_loaded_models`."""
    return get_model_manager().list_loaded_models()


def get_memory_usage() -> dict[str, Any]:
    """See `ModelManager.get_memory_usage`."""
    return get_model_manager().get_memory_usage()


def set_memory_limit(limit_mb: float | str | None) -> None:
    """See `ModelManager.set_memory_limit`."""
    get_model_manager().set_memory_limit(limit_mb)


def get_model_stats(name: str | None = None) -> dict[str, Any]:
    """See `ModelManager.get_model_stats`."""
    return get_model_manager().get_model_stats(name)


def register_callback(event: str, callback: Callback) -> None:
    """See `ModelManager.register_callback`."""
    get_model_manager().register_callback(event, callback)
