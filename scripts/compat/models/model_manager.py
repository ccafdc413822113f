"""The old ModelManager's face over Olympus' model service: configurations, handles, figures, callbacks. It loads nothing."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from bus.settings import Settings, load_settings
from models.config import MIB, Household, ModelConfig, megabytes, read_config
from models.endpoint import EndpointModel
from models.errors import MemoryLimit, ModelError, OlympusUnreachable, UnknownModel
from models.house import House
from models.model import ANSWER_S, HouseModel, Model
from models.places import find, listed, near_names, olympus_name, place
from models.room import leaving
from schemas.bodies.model import ModelInfo, ModelKeep, ModelLoad, ModelPreload, ModelStats, ModelUnload
from schemas.errors import Conflict, NotFound

log = logging.getLogger("models")

Callback = Callable[..., Any]

# Events of the bus behind each event of `register_callback`. A model that leaves for room, for idling or on request is
# gone all the same.
_EVENTS: Final[Mapping[str, frozenset[str]]] = {
    "loaded": frozenset({"model.loaded"}),
    "evicted": frozenset({"model.evicted", "model.unloaded"}),
    "unloaded": frozenset({"model.evicted", "model.unloaded"}),
}
_LIMITS: Final = ("memory_limit", "max_memory_mb", "max_memory", "limit_mb")
_SOURCES: Final = ("config_path", "config_file", "config_dict")


class ModelManager:
    """Models by the names of an old configuration. Threads may share it.

    config: what `load_config` takes. memory_limit_mb: as `set_memory_limit`. settings: of Olympus; None reads its file
    and OLYMPUS_... variables. Nothing is connected before the first call that needs Olympus; then an absent one raises
    OlympusUnreachable after `bus.timeout_s` seconds.
    """

    def __init__(
        self,
        config: str | Path | Mapping[str, Any] | Iterable[Any] | None = None,
        memory_limit_mb: float | str | None = None,
        *,
        settings: Settings | None = None,
        **others: Any,
    ) -> None:
        self.settings = settings or load_settings()
        self.house = House(self.settings)
        self._lock = threading.Lock()
        self._configs: dict[str, ModelConfig] = {}
        self._agents: dict[str, str] = {}
        self._default: str | None = None
        self._models: dict[str, Model] = {}
        self._busy: dict[str, threading.Lock] = {}
        # Names in Olympus by names in the configurations; those whose `model.keep` was asked.
        self._called: dict[str, str] = {}
        self._kept: set[str] = set()
        self._asked: Counter[str] = Counter()
        self._last_used: dict[str, float] = {}
        self._limit_mb: float | None = None
        self._callbacks: dict[str, list[Callback]] = {event: [] for event in _EVENTS}
        self._is_following = False
        self.configure(config, memory_limit_mb, **others)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    # Configurations

    def configure(self, config: Any = None, memory_limit_mb: float | str | None = None, **others: Any) -> None:
        """`load_config` and `set_memory_limit` with what is given, under any of the names it may have."""
        for source in (config, *(others.pop(name, None) for name in _SOURCES)):
            if source is not None:
                self.load_config(source)
        for limit in (memory_limit_mb, *(others.pop(name, None) for name in _LIMITS)):
            if limit is not None:
                self.set_memory_limit(limit)
        if others:
            log.warning("ModelManager: ignored, as nothing reads them: %s", ", ".join(sorted(others)))

    def add_model_config(self, config: Any = None, fields: Any = None, /, **more: Any) -> ModelConfig:
        """Add or replace a model: a ModelConfig, its fields as a mapping or keywords, or a name and either.

        What is already handed out keeps its configuration. Raises ValueError naming the field.
        """
        if isinstance(config, str):
            more = {"name": config, **more}
            config = fields
        if not isinstance(config, ModelConfig):
            made = ModelConfig(**{**(config or {}), **more})
        else:
            made = config
            made.name = more.get("name", made.name)
        self._add([made])
        return made

    def load_config(self, source: str | Path | Mapping[str, Any] | Iterable[Any]) -> list[ModelConfig]:
        """Add every model of a configuration: a JSON or YAML file, or what such a file holds.

        Models with `preload` are loaded in the background. Raises FileNotFoundError, and ValueError naming the file.
        """
        household: Household = read_config(source)
        self._agents |= household.agents
        self._default = household.default or self._default
        if household.memory_limit_mb is not None:
            self._limit_mb = household.memory_limit_mb or None
        self._add(household.models)
        return household.models

    def model_of_agent(self, agent_name: str) -> str | None:
        """The model that the configuration gives an agent, else its default one; None where it names neither."""
        return self._agents.get(agent_name) or self._default

    def _add(self, configs: list[ModelConfig]) -> None:
        with self._lock:
            for config in configs:
                twin = next((one for one in self._configs.values() if _is_twin(one, config)), None)
                if twin is not None:
                    raise ValueError(
                        f"models {twin.name!r} and {config.name!r} would both be called {olympus_name(config.name)} in Olympus"
                    )
                self._configs[config.name] = config
                self._called.pop(config.name, None)
                self._kept.discard(config.name)
        early = [config for config in configs if config.is_preloaded and config.type != "openai"]
        if early:
            threading.Thread(target=self._preload, args=(early,), name="models-preload", daemon=True).start()

    def _preload(self, configs: list[ModelConfig]) -> None:
        for config in configs:
            try:
                with self._busy_with(config.name):
                    info = self._place(config)
                told = self.house.ask("model.preload", ModelPreload(models=[info.name])).models[0]
                if not told.is_started:
                    log.info("model %s is not preloaded: %s", config.name, told.reason)
            except (ModelError, ValueError) as error:
                log.warning("model %s is not preloaded: %s", config.name, error)

    # Models

    def get_model(self, name: str | None = None, **options: Any) -> Model:
        """The model, loaded; the same object for the same name. Without a name the configuration's default, else Olympus'.

        A name that no configuration has may be one of Olympus' own, or the path of a file. options: of the answers, as
        in a configuration. Raises UnknownModel naming the nearest, MemoryLimit, OlympusUnreachable, and ModelError for
        what cannot be loaded.
        """
        config = self._config_of(name or self._default or self.settings.models.default)
        name = config.name
        with self._busy_with(name):
            model = self._models.get(name)
            if model is None and config.type == "openai" and not self._is_known(name):
                model = EndpointModel(config)
            elif not isinstance(model, EndpointModel):
                model = self._loaded(config, model)
            model.config.options.update(options)
            self._models[name] = model
            self._asked[name] += 1
            self._last_used[self._called.get(name, name)] = time.time()
        return model

    def unload_model(self, name: str, force: bool = False) -> bool:
        """Take a model out of memory, for everybody; True if it was there. `force` cancels answers in flight.

        What was handed out stays good: the next question loads it again. Raises UnknownModel.
        """
        config, model = self._configs.get(name), self._models.get(name)
        if isinstance(model, EndpointModel) or (model is None and config is not None and config.type == "openai"):
            return False
        info = self._entry(name)
        if info is None or info.state not in ("loaded", "loading"):
            return False
        self.house.ask("model.unload", ModelUnload(model=info.name, force=force), timeout_s=ANSWER_S)
        return True

    def list_available_models(self) -> list[str]:
        """Names that `get_model` takes: those of the configurations, then the usable ones of Olympus."""
        others = [one.name for one in self._listed() if one.state != "unusable"]
        return list(dict.fromkeys([*self._configs, *(one for one in others if one not in self._known())]))

    def list_loaded_models(self) -> list[str]:
        """Models in memory, whoever loaded them, by the names of the configurations where they have one."""
        return [self._name_of(one.name) for one in self._in_memory()]

    # Memory

    def get_memory_usage(self) -> dict[str, Any]:
        """total_mb: of all loaded models; limit_mb: that of `set_memory_limit`, else the device's; loaded_models: MB of each."""
        loaded = {self._name_of(one.name): round(one.memory_bytes / MIB, 1) for one in self._in_memory()}
        limit_mb = self._device_mb() if self._limit_mb is None else self._limit_mb
        return {"total_mb": round(sum(loaded.values()), 1), "limit_mb": limit_mb, "loaded_models": loaded}

    def set_memory_limit(self, limit_mb: float | str | None) -> None:
        """What the models of this process may take together, in MB or as `8GB`; None or 0 for no limit of its own.

        Idle ones leave when another one is got. What the machine has is Olympus' own business.
        """
        limit = megabytes("the memory limit", limit_mb or 0)
        if limit < 0:
            raise ValueError(f"the memory limit is {limit_mb!r}, it must be 0 or more MB")
        self._limit_mb = limit or None

    def get_model_stats(self, name: str | None = None) -> dict[str, Any]:
        """Figures of a model, or of every configured one by name.

        access_count: calls of `get_model` here; memory_usage_mb: 0 while it is not loaded; the rest as Olympus counts it
        for everybody. Raises UnknownModel.
        """
        if name is None:
            return {one: self.get_model_stats(one) for one in {**self._configs, **self._models}}
        config, info = self._configs.get(name), self._entry(name)
        is_loaded = info is not None and info.state == "loaded"
        stats: dict[str, Any] = {
            "name": name,
            "type": config.type if config else info.format if info else "",
            "access_count": self._asked[name],
            "last_accessed": self._last_used.get(self._called.get(name, name)),
            "is_loaded": is_loaded,
            "memory_usage_mb": round(info.memory_bytes / MIB, 1) if info and is_loaded else 0.0,
        }
        if info is not None:
            figures = self.house.ask("model.stats", ModelStats(model=info.name)).models
            kept = {"priority": info.priority, "is_pinned": info.is_pinned, "state": info.state}
            counts = ("loads", "evictions", "failures", "requests", "errors", "prompt_tokens", "completion_tokens")
            stats |= kept | {key: getattr(one, key) for one in figures[:1] for key in counts}
        return stats

    # Callbacks

    def register_callback(self, event: str, callback: Callback) -> None:
        """Call `callback(name)` when a model was `loaded` or `evicted`, by whichever process.

        With room for two arguments it also gets the model as `get_model` gave it, or None. It runs in a thread of its own;
        what it raises is logged. The end of the process waits for it, for a second at most. Raises ValueError for other
        events.
        """
        known = _event(event)
        with self._lock:
            self._callbacks[known].append(callback)
            is_first, self._is_following = not self._is_following, True
        if is_first:
            self.house.follow(self._tell)

    def _tell(self, event: str, called: str) -> None:
        if called not in self._known():
            # Another process' doing. What cannot be asked now is told by Olympus' name.
            with contextlib.suppress(ModelError):
                self._listed()
        name = self._name_of(called)
        for known, events in _EVENTS.items():
            for callback in list(self._callbacks[known]) if event in events else []:
                try:
                    callback(*(name, self._models.get(name))[: _room_for(callback)])
                except Exception:  # an agent's own code, which must not end everybody's callbacks
                    log.exception("a callback for %s failed, model %s", known, name)

    def shutdown(self) -> None:
        """End the connection and the callbacks. Models stay in Olympus, which takes idle ones out of memory itself."""
        self.house.close()

    # What Olympus knows

    def _busy_with(self, name: str) -> threading.Lock:
        """One thread at a time finds and loads a model; others get on with theirs."""
        with self._lock:
            return self._busy.setdefault(name, threading.Lock())

    def _config_of(self, name: str) -> ModelConfig:
        """The configuration of a name, or of a path; one is made for what has none."""
        with self._lock:
            known = self._configs.get(name) or next((one for one in self._configs.values() if one.path == name), None)
            if known is None:
                is_path = "/" in name or name.endswith(".gguf")
                made = ModelConfig(path=name) if is_path else ModelConfig(name)
                held = self._models.get(made.name)
                known = made if held is None else held.config
            return known

    def _is_known(self, name: str) -> bool:
        """True for a remote model that Olympus has under this name in its own rules; an endpoint does without Olympus."""
        try:
            return any(name == one.name and one.format == "remote" for one in listed(self.house))
        except OlympusUnreachable:
            return False

    def _entry(self, name: str) -> ModelInfo | None:
        """The catalogue's entry; None for a configured model that Olympus does not have. Raises UnknownModel."""
        there = self._listed()
        called = self._called.get(name)
        info = next((one for one in there if one.name == called), None) or find(self._config_of(name), there)
        if info is None and name not in self._configs:
            known = [*self._configs, *(one.name for one in there)]
            raise UnknownModel(f"there is no model {name!r}, {near_names(name, known)}", NotFound.code, model=name)
        return info

    def _in_memory(self) -> list[ModelInfo]:
        return [one for one in self._listed() if one.state == "loaded"]

    def _listed(self) -> list[ModelInfo]:
        """The catalogue; what the configurations call its models is noted."""
        there = listed(self.house)
        with self._lock:
            new = [config for config in self._configs.values() if config.name not in self._called]
        self._called |= {config.name: info.name for config in new if (info := find(config, there)) is not None}
        return there

    def _name_of(self, called: str) -> str:
        """The name in the configurations of a model that Olympus calls `called`."""
        return next((name for name, one in list(self._called.items()) if one == called), called)

    def _known(self) -> set[str]:
        """Names in Olympus of the models whose configured name is known."""
        return {*self._called.values()}

    def _device_mb(self) -> float:
        """Memory for models: of the GPUs where there are any, else the main memory."""
        try:
            devices = self.house.ask("gpu.status").devices
        except ModelError:
            # Without a resource service models are bounded by their number, in the machine's own memory.
            return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / MIB, 1)
        gpus = [one for one in devices if one.device != "cpu" and one.state == "ok"]
        return float(round(sum(one.total_bytes for one in gpus or devices) / MIB, 1))

    def _place(self, config: ModelConfig) -> ModelInfo:
        """Where Olympus has it, held as the configuration says."""
        info = place(config, self.house, [name for name in self._configs if name != config.name])
        self._called[config.name] = info.name
        if config.name not in self._kept:
            keep = ModelKeep(
                model=info.name,
                priority=config.priority,
                keep_alive_s=config.idle_s,
                is_pinned=True if config.is_pinned else None,
            )
            if not (keep.priority is None and keep.keep_alive_s is None and keep.is_pinned is None):
                self.house.ask("model.keep", keep)
            self._kept.add(config.name)
        return info

    def _loaded(self, config: ModelConfig, model: Model | None) -> HouseModel:
        info = self._place(config)
        if info.state != "loaded":
            self._make_room(config, info)
        window = self._load(config, info)
        if isinstance(model, HouseModel) and model.called == info.name:
            return model
        return HouseModel(config, self.house, info.name, window)

    def _make_room(self, config: ModelConfig, info: ModelInfo) -> None:
        if config.memory_limit_mb and info.memory_bytes > config.memory_limit_mb * MIB:
            raise MemoryLimit(
                f"model {config.name} takes {info.memory_bytes / MIB:.0f} MB, its own limit is {config.memory_limit_mb:.0f} MB",
                needed_bytes=info.memory_bytes,
            )
        if self._limit_mb is None:
            return
        ours = [one for one in self._in_memory() if one.name in self._last_used and one.name != info.name]
        for name in leaving(ours, self._last_used, needed_bytes=info.memory_bytes, limit_bytes=self._limit_mb * MIB):
            log.info("model %s leaves for %s: the limit is %.0f MB", name, info.name, self._limit_mb)
            self.house.ask("model.unload", ModelUnload(model=name), timeout_s=ANSWER_S)

    def _load(self, config: ModelConfig, info: ModelInfo) -> int:
        """Load it if it is not; returns the tokens of its window."""
        timeout_s = self.settings.models.load_timeout_s + self.settings.bus.timeout_s
        # One that is longer than the model's own is refused.
        window = config.context_tokens and min(config.context_tokens, info.context_tokens or config.context_tokens)
        body = ModelLoad(model=info.name, context_tokens=window)
        try:
            state = self.house.ask("model.load", body, timeout_s=timeout_s)
        except ModelError as error:
            if error.code != Conflict.code or window is None:
                raise
            log.warning("model %s: n_ctx does not count, as somebody loaded it already: %s", config.name, error)
            state = self.house.ask("model.load", ModelLoad(model=info.name), timeout_s=timeout_s)
        return int(state.context_tokens or info.context_tokens)


def _is_twin(one: ModelConfig, other: ModelConfig) -> bool:
    """True for two models that differ here and have one name in Olympus."""
    return one.name != other.name and one.path != other.path and olympus_name(one.name) == olympus_name(other.name)


def _event(event: str) -> str:
    """The event that is meant by `loaded`, `on_load`, `model_evicted` and the like."""
    text = str(getattr(event, "value", event)).lower().removeprefix("on_").removeprefix("model_").removeprefix("model.")
    known = next((one for one in _EVENTS if one in (text, f"{text}ed", f"{text}d")), None)
    if known is None:
        raise ValueError(f"event is {event!r}, it must be one of {', '.join(_EVENTS)}")
    return known


def _room_for(callback: Callback) -> int:
    """How many of its two arguments a callback takes."""
    try:
        parameters = inspect.signature(callback).parameters.values()
    except (TypeError, ValueError):
        return 1
    if any(one.kind is one.VAR_POSITIONAL for one in parameters):
        return 2
    return sum(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in parameters)
