"""The `models` package of the old in-process ModelManager, as a thin client of Olympus: see docs/drop-in-models.md.

Put the folder above this one on PYTHONPATH. Nothing here loads a model: models live in Olympus' own processes.
"""

from models.config import ModelConfig
from models.errors import MemoryLimit, ModelError, OlympusUnreachable, UnknownModel
from models.model import Model
from models.model_manager import ModelManager
from models.shared import (
    add_model_config,
    get_memory_usage,
    get_model,
    get_model_manager,
    get_model_stats,
    initialize_model_manager,
    list_available_models,
    list_loaded_models,
    load_config,
    register_callback,
    set_memory_limit,
    shutdown,
    unload_model,
)

__all__ = [
    "MemoryLimit",
    "Model",
    "ModelConfig",
    "ModelError",
    "ModelManager",
    "OlympusUnreachable",
    "UnknownModel",
    "add_model_config",
    "get_memory_usage",
    "get_model",
    "get_model_manager",
    "get_model_stats",
    "initialize_model_manager",
    "list_available_models",
    "list_loaded_models",
    "load_config",
    "register_callback",
    "set_memory_limit",
    "shutdown",
    "unload_model",
]
