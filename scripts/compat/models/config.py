"""Reads what the old ModelManager was configured with; it knows files, and nothing of the bus.

    {"memory_limit_mb": 8192,
     "models": [{"name": "phi", "type": "gguf", "path": "phi-2.Q4_K_M.gguf", "priority": 1, "max_idle_time": 600,
                 "preload": true}]}

`models` may be a list or a mapping by name, or be the whole file. Fields go by several names: `_FIELDS`. What nobody
here reads is ignored with a warning that names it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from bus.sizes import parse_size

log = logging.getLogger("models")

MIB: Final = 1024 * 1024

# Our name of a field <- what configurations call it. The first one that is there counts.
_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "type": ("type", "model_type", "backend", "framework", "format", "serving_method", "provider"),
    "path": (
        "path",
        "model_path",
        "model_file",
        "file_path",
        "local_path",
        "model_path_or_name",
        "model_name_or_path",
        "repo_id",
        "hf_model",
        "model_name",
        "model",
        "model_id",
    ),
    "filename": ("filename", "file_name", "file"),
    "priority": ("priority",),
    "idle_s": (
        "max_idle_time",
        "max_idle_time_s",
        "max_idle_seconds",
        "max_idle_s",
        "max_idle",
        "idle",
        "idle_s",
        "idle_time",
        "idle_timeout",
        "idle_timeout_s",
        "idle_timeout_seconds",
        "idle_seconds",
        "keep_alive",
        "keep_alive_s",
    ),
    "is_preloaded": ("preload", "is_preloaded", "auto_load", "autoload", "load_on_start", "load_on_startup"),
    "is_pinned": ("pinned", "pin", "is_pinned", "keep_loaded", "always_loaded"),
    "memory_limit_mb": ("memory_limit_mb", "memory_limit", "max_memory_mb", "max_memory"),
    "context_tokens": ("n_ctx", "context_length", "context_size", "context_window", "context_tokens", "max_context"),
    "base_url": ("base_url", "api_base", "api_url", "endpoint", "url"),
    "api_key": ("api_key",),
    "key_env": ("api_key_env", "key_env", "api_key_env_var", "api_key_variable"),
    "options": ("parameters", "params", "options", "generation", "generation_config", "generation_params"),
}

# Options of a generation that stand among the fields of a model.
_OPTIONS: Final = ("temperature", "max_tokens", "max_new_tokens", "top_p", "top_k", "min_p", "repeat_penalty", "stop")

# What the old ModelManager had to be told and Olympus' model service finds out or decides itself.
_DECIDED_ELSEWHERE: Final = frozenset(
    """
    batch_size capabilities description device device_map display_name estimated_memory_mb estimated_vram_mb gpu_layers
    load_in_4bit load_in_8bit low_cpu_mem_usage memory_mb n_batch n_gpu_layers n_threads quantization size_mb task threads
    torch_dtype trust_remote_code use_mlock use_mmap verbose vram_mb
    """.split()
)

_TYPES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("gguf", "ggml", "llama", "llama.cpp", "llama_cpp", "llamacpp", "gguf_direct"), "gguf"),
    **dict.fromkeys(("huggingface", "hf", "transformers", "safetensors", "huggingface_transformers"), "huggingface"),
    **dict.fromkeys(("openai", "openai_api", "openai-compatible", "custom_api", "api", "remote"), "openai"),
}

# 1 leaves memory last, as in Olympus.
_PRIORITIES: Final[Mapping[str, int]] = {"critical": 1, "high": 2, "normal": 3, "medium": 3, "low": 4, "background": 5}

_LIMIT: Final = ("memory_limit_mb", "memory_limit", "max_memory_mb", "max_memory", "limit_mb", "total_memory_limit_mb")
_LIMIT_GB: Final = ("memory_limit_gb", "max_memory_gb")
_DEFAULT: Final = ("default_model", "default")
_AGENTS: Final = ("agents", "agent_models", "agent_model_mapping")
_IDLE: Final = tuple(name for name in _FIELDS["idle_s"] if "idle" in name)

# Sections that hold any of these, the first one that of the old system's own configuration.
_SECTIONS: Final = ("main_pc_settings", "model_manager", "manager", "settings", "global", "global_settings")

# A model on a hub: OWNER/NAME.
_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class ModelConfig:
    """One model as an old configuration describes it: `ModelConfig("phi", "gguf", "phi-2.gguf", priority=1)`.

    Fields may go by any of the names that a configuration file may use. type: gguf, huggingface, openai, or "" for a
    model that Olympus knows. priority: 1 leaves memory last, 5 first. idle_s: seconds it stays unused, -1 for good.
    None stands for what Olympus' settings say. extra: fields that nothing reads. Raises ValueError naming the field.
    """

    def __init__(self, name: str = "", type: Any = None, path: Any = None, **fields: Any) -> None:
        given = {key: value for key, value in fields.items() if value is not None}
        if type is not None:
            given = {"type": type, **given}
        if path is not None:
            given = {"path": path, **given}
        taken: dict[str, Any] = {}
        for ours, names in _FIELDS.items():
            found = [one for one in names if one in given]
            if found:
                taken[ours] = given[found[0]]
        own_names = (given.get(key) for key in ("id", "model_name", "model_id"))
        self.name = str(name or next(filter(None, own_names), None) or _called_by(taken.get("path")))
        if not self.name:
            raise ValueError("a model's configuration names no model: 'name' is missing")
        self.path = str(taken.get("path", "") or "")
        self.filename = str(taken.get("filename", "") or "")
        self.base_url = str(taken.get("base_url", "") or "").rstrip("/")
        self.type = self._type(taken.get("type"))
        self.priority = self._priority(taken.get("priority"))
        self.idle_s = self._idle(taken.get("idle_s"))
        self.is_preloaded = _is_true(taken.get("is_preloaded"))
        self.is_pinned = _is_true(taken.get("is_pinned"))
        self.memory_limit_mb = self._megabytes(taken.get("memory_limit_mb"))
        self.context_tokens = self._context(taken.get("context_tokens"))
        self.api_key = str(taken.get("api_key", "") or "")
        self.key_env = str(taken.get("key_env", "") or "")
        self.options: dict[str, Any] = {key: given[key] for key in _OPTIONS if key in given}
        if isinstance(inner := taken.get("options"), Mapping):
            self.options |= inner
        known = {*(one for names in _FIELDS.values() for one in names), *_OPTIONS, "name", "id", "enabled"}
        self.extra = {key: value for key, value in given.items() if key not in known | _DECIDED_ELSEWHERE}
        if self.extra:
            log.warning("model %s: ignored, as nothing reads them: %s", self.name, ", ".join(sorted(self.extra)))

    def __repr__(self) -> str:
        return f"ModelConfig(name={self.name!r}, type={self.type!r}, path={self.path!r})"

    @property
    def model_type(self) -> str:
        """The same as `type`."""
        return self.type

    @property
    def model_path(self) -> str:
        """The same as `path`."""
        return self.path

    @property
    def max_idle_time(self) -> float | None:
        """The same as `idle_s`."""
        return self.idle_s

    @property
    def preload(self) -> bool:
        """The same as `is_preloaded`."""
        return self.is_preloaded

    @property
    def is_hub_name(self) -> bool:
        """True for a path that may name a model of a hub, as OWNER/NAME; `weights/phi.gguf` is a file that is missing."""
        is_file = self.path.lower().endswith((".gguf", ".safetensors", ".bin"))
        return self.type != "openai" and not is_file and _HUB_NAME.fullmatch(self.path) is not None

    def _type(self, value: Any) -> str:
        text = str(getattr(value, "value", value) or "").lower()
        if not text:
            return "openai" if self.base_url else "gguf" if self.path.endswith(".gguf") else ""
        if text not in _TYPES:
            raise ValueError(f"model {self.name}: type is {text!r}, it must be gguf, huggingface or openai")
        return _TYPES[text]

    def _priority(self, value: Any) -> int | None:
        value = getattr(value, "value", value)
        if value is None:
            return None
        if isinstance(value, str) and value.lower() in _PRIORITIES:
            return _PRIORITIES[value.lower()]
        number = round(self._number("priority", value))
        if not 1 <= number <= 5:
            log.warning("model %s: priority %s is taken as the nearest of 1 to 5", self.name, number)
        return min(max(number, 1), 5)

    def _idle(self, value: Any) -> float | None:
        if value is None:
            return None
        seconds = self._number("idle time", value)
        return seconds if seconds > 0 else -1.0

    def _megabytes(self, value: Any) -> float | None:
        return None if value is None else megabytes(f"model {self.name}: memory_limit_mb", value)

    def _context(self, value: Any) -> int | None:
        number = 0 if value is None else round(self._number("n_ctx", value))
        return number if number > 0 else None

    def _number(self, what: str, value: Any) -> float:
        try:
            return float(value)
        except (TypeError, ValueError):
            raise ValueError(f"model {self.name}: {what} is {value!r}, it must be a number") from None


@dataclass(frozen=True, kw_only=True)
class Household:
    """A whole configuration. agents: which model an agent uses."""

    models: list[ModelConfig]
    memory_limit_mb: float | None = None
    default: str | None = None
    agents: dict[str, str] = field(default_factory=dict)


def read_config(source: str | Path | Mapping[str, Any] | Iterable[Any]) -> Household:
    """A configuration from a JSON or YAML file, or from what such a file holds.

    Relative paths of models are those below the working folder if they exist there, else those beside the file.
    Raises FileNotFoundError, and ValueError naming the file and what is wrong in it.
    """
    if not isinstance(source, str | Path):
        return _household(source, Path.cwd())
    path = Path(source).expanduser()
    try:
        return _household(_parsed(path), path.absolute().parent)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def megabytes(what: str, value: Any) -> float:
    """A size in MiB: a number of them, or text such as `8GB`. Raises ValueError naming `what`."""
    try:
        return float(value)
    except (TypeError, ValueError):
        pass
    try:
        return parse_size(str(value)) / MIB
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def _parsed(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    if path.suffix.lower() in (".yaml", ".yml"):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"not valid YAML: {error}") from None
    return json.loads(text)


def _household(tree: Any, folder: Path) -> Household:
    if not isinstance(tree, Mapping):
        if not isinstance(tree, list | tuple):
            raise ValueError(f"it holds {type(tree).__name__}, not a list or mapping of models")
        return Household(models=_models(tree, folder, {}))
    tree = {**_inner(tree), **tree}
    key = next((key for key in ("models", "model_configs") if isinstance(tree.get(key), Mapping | list)), "models")
    read = {key, *_LIMIT, *_LIMIT_GB, *_DEFAULT, *_AGENTS, *_IDLE, *_SECTIONS, "defaults"}
    # Without either the models stand in the file itself.
    alone = {name: value for name, value in tree.items() if name not in read and isinstance(value, Mapping)}
    entries = tree.get(key, alone)
    if ignored := sorted(name for name in tree if name not in read and not (entries is alone and name in alone)):
        log.warning("the configuration of models: ignored, as nothing reads them: %s", ", ".join(ignored))
    limits = [tree[one] for one in _LIMIT if tree.get(one) is not None]
    limits += [f"{tree[one]}GiB" for one in _LIMIT_GB if tree.get(one) is not None]
    agents: Mapping[Any, Any] = next((tree[one] for one in _AGENTS if isinstance(tree.get(one), Mapping)), {})
    return Household(
        models=_models(entries, folder, _defaults(tree)),
        memory_limit_mb=megabytes("memory_limit_mb", limits[0]) if limits else None,
        default=next((str(tree[one]) for one in _DEFAULT if isinstance(tree.get(one), str)), None),
        agents={str(agent): _agents_model(model) for agent, model in agents.items()},
    )


def _inner(tree: Mapping[str, Any]) -> dict[str, Any]:
    """What sections hold that may as well stand beside the models."""
    sections = [tree[name] for name in _SECTIONS if isinstance(tree.get(name), Mapping)]
    return {str(key): value for section in sections for key, value in section.items()}


def _defaults(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that every model has unless it has its own."""
    defaults = tree.get("defaults")
    idle = [tree[name] for name in _IDLE if tree.get(name) is not None]
    common = {"idle_s": idle[0]} if idle else {}
    return {**common, **(defaults if isinstance(defaults, Mapping) else {})}


def _agents_model(model: Any) -> str:
    if isinstance(model, Mapping):
        model = model.get("model") or model.get("model_name") or model.get("name") or ""
    return str(model)


def _models(entries: Any, folder: Path, defaults: Mapping[str, Any]) -> list[ModelConfig]:
    if not isinstance(entries, Mapping | list | tuple):
        raise ValueError(f"'models' is {type(entries).__name__}, it must be a list or a mapping of models")
    pairs = entries.items() if isinstance(entries, Mapping) else (("", entry) for entry in entries)
    models = []
    for name, entry in pairs:
        if isinstance(entry, ModelConfig):
            models.append(entry)
            continue
        if isinstance(entry, str):
            entry = {"path": entry} if name else {"name": entry}
        if not isinstance(entry, Mapping):
            raise ValueError(
                f"model {name or len(models) + 1} is {type(entry).__name__}, it must be a mapping of fields"
            )
        if entry.get("enabled") is False:
            continue
        fields = {str(key): value for key, value in entry.items()}
        missing = {key: value for key, value in defaults.items() if not _has(fields, key)}
        model = ModelConfig(name or str(fields.pop("name", "") or ""), **_without_name(fields), **missing)
        if model.type != "openai":
            model.path = _located(model.path, folder)
        models.append(model)
    return models


def _has(fields: Mapping[str, Any], key: str) -> bool:
    names = next((names for names in _FIELDS.values() if key in names), (key,))
    return any(one in fields for one in names)


def _without_name(fields: dict[str, Any]) -> dict[str, Any]:
    """A mapping by name may repeat the name in each model."""
    return {key: value for key, value in fields.items() if key != "name"}


def _located(path: str, folder: Path) -> str:
    """Where the path leads from; hub names, and whatever is nowhere, stay as written."""
    if not path or Path(path).expanduser().exists():
        return path
    beside = folder / path
    return str(beside) if beside.exists() else path


def _is_true(value: Any) -> bool:
    return value.lower() in ("1", "true", "yes", "on") if isinstance(value, str) else bool(value)


def _called_by(path: Any) -> str:
    """The name of a model that has only a path."""
    return Path(str(path)).name.removesuffix(".gguf") if path else ""
