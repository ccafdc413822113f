"""What agents and MemOS take their models from: adapters, and an LLM configuration that leads to Olympus."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, Final

from models.endpoint import EndpointModel
from models.errors import ModelError, OlympusUnreachable
from models.model import Messages, Model
from models.model_manager import ModelManager
from models.shared import get_model_manager

log = logging.getLogger("models")

# Backends of MemOS that speak OpenAI's chat, which is what Olympus answers over HTTP. Others load weights in the agent's own
# process (huggingface), or speak what Olympus does not (ollama, azure, openai_new: OpenAI's responses).
_SPEAK_CHAT: Final = frozenset({"openai", "vllm", "qwen", "deepseek", "minimax"})

# Sent where no token is needed: the openai package refuses an empty key.
_NO_KEY: Final = "olympus"


class ModelManagerAdapter:
    """An agent's hold on its model. model: as `get_model` gave it."""

    def __init__(self, agent_name: str, model: Model, manager: ModelManager) -> None:
        self.agent_name = agent_name
        self.model = model
        self.manager = manager

    def __repr__(self) -> str:
        return f"ModelManagerAdapter(agent_name={self.agent_name!r}, model={self.model.name!r})"

    def generate(self, prompt: str | Messages, **options: Any) -> Any:
        """See `Model.generate`."""
        return self.model.generate(prompt, **options)

    def generate_stream(self, prompt: str | Messages, **options: Any) -> Iterator[str]:
        """The pieces of `generate`."""
        pieces: Iterator[str] = self.model.generate(prompt, stream=True, **options)
        return pieces

    def create_completion(self, prompt: str, **options: Any) -> Any:
        """See `Model.create_completion`."""
        return self.model.create_completion(prompt, **options)

    def create_chat_completion(self, messages: Messages, **options: Any) -> Any:
        """See `Model.create_chat_completion`."""
        return self.model.create_chat_completion(messages, **options)

    def embed(self, input: Any, **options: Any) -> Any:
        """See `Model.embed`."""
        return self.model.embed(input, **options)

    def __call__(self, prompt: str, **options: Any) -> Any:
        """See `Model.__call__`."""
        return self.model(prompt, **options)

    def get_memory_usage(self) -> dict[str, Any]:
        """See `ModelManager.get_memory_usage`."""
        return self.manager.get_memory_usage()

    def get_model_stats(self) -> dict[str, Any]:
        """See `ModelManager.get_model_stats`, of this model."""
        return self.manager.get_model_stats(self.model.name)

    def unload(self, force: bool = False) -> bool:
        """See `ModelManager.unload_model`, of this model."""
        return self.manager.unload_model(self.model.name, force)


def get_agent_model(agent_name: str, model_name: str | None = None, **options: Any) -> Model:
    """The model of an agent: the one named, else the configuration's for it (`agents`), else the default one."""
    manager = get_model_manager()
    return manager.get_model(model_name or manager.model_of_agent(agent_name), **options)


def create_model_adapter(agent_name: str, model: Model | str | None = None, **options: Any) -> ModelManagerAdapter:
    """An adapter for a model, for the one of a name, or for the agent's own as in `get_agent_model`."""
    if not isinstance(model, Model):
        model = get_agent_model(agent_name, model or options.pop("model_name", None), **options)
    return ModelManagerAdapter(agent_name, model, get_model_manager())


def get_llm_for_memos(backend: str = "openai", model_path: str | None = None, **options: Any) -> dict[str, Any]:
    """MemOS' configuration of an LLM, `{"backend": ..., "config": {...}}`, that is answered by Olympus over HTTP.

    model_path: a name, or a file as in a configuration; None takes the default model. A backend that does not speak
    OpenAI's chat becomes `openai`. options: more fields of that backend's configuration, as `temperature`. Raises ModelError.
    """
    manager = get_model_manager()
    if backend not in _SPEAK_CHAT:
        log.info("MemOS' backend %s does not speak OpenAI's chat, so openai is used for it", backend)
        backend = "openai"
    model = manager.get_model(model_path)
    if isinstance(model, EndpointModel):
        base, key = model.base_url, model.key or _NO_KEY
    else:
        base, key = _api_base(manager), options.get("api_key") or _key(manager)
    config = {"model_name_or_path": model.called, "api_base": base, "api_key": key}
    return {"backend": backend, "config": {**config, **options}}


def _key(manager: ModelManager) -> str:
    """What Olympus wants to be shown. Its home's own secret is not for the configuration of another program."""
    settings = manager.settings
    if settings.auth.required and not settings.bus.token:
        raise ModelError("Olympus wants a sign-in (auth.required): give api_key=TOKEN, or set OLYMPUS_BUS_TOKEN")
    return settings.bus.token or _NO_KEY


def _api_base(manager: ModelManager) -> str:
    """Where the gateway answers OpenAI's API; where the settings put it, while no gateway says so itself."""
    rest = manager.settings.rest
    host, port = rest.host, rest.models_port
    try:
        ports = manager.house.ask("gateway.ports").ports
    except OlympusUnreachable:
        log.warning("Olympus' gateway is not running; MemOS is told where the settings put it, port %d", port)
        ports = []
    for one in ports:
        if one.purpose == "rest" and one.owner in ("model", "models") and one.state == "bound":
            host, port = one.host, one.port
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"
