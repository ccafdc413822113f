"""The model service: answers the subjects `model.*` on one worker, with the parts that do the work.

A request for a loaded model goes straight to its runner (`model.chat@NAME`); what comes here is loaded first.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import msgspec

from bus.metrics import by_label
from bus.serving import serve_until_told
from bus.settings import Settings
from bus.worker import Call, Worker
from schemas.bodies.model import (
    Chat,
    Embed,
    Embeddings,
    Generate,
    Generation,
    ModelShow,
    ModelTokenize,
    Score,
    Scores,
    TokenCounts,
)
from schemas.errors import BadRequest, BusError, Unprocessable, Unsupported
from schemas.metrics import MODEL_ADAPTERS
from schemas.subjects import split_instance
from workers.models import loading_handlers
from workers.models.adapters import handlers as adapter_handlers
from workers.models.adapters.registry import AdapterRegistry
from workers.models.answered import Answers
from workers.models.catalogue import SHIPPED_ROOT, Catalogue
from workers.models.convert import handlers as convert_handlers
from workers.models.convert.conversions import Conversions
from workers.models.files import handlers as files_handlers
from workers.models.files.files import Files
from workers.models.loading import Loading
from workers.models.pull import handlers as pull_handlers
from workers.models.pull.pulls import Pulls
from workers.models.records import model_records
from workers.models.relay import is_relayed
from workers.models.routing import handlers as routing_handlers
from workers.models.routing.routing import Routing, with_options
from workers.models.routing.rules import load_rules
from workers.models.tokenizer_process import TokenizerProcess
from workers.models.trials import handlers as trials_handlers

log = logging.getLogger("olympus.models")

# Requests held at once. They cost a task each while they wait or are relayed; the scheduler bounds what they start.
CAPACITY: Final = 1024

# Of the time to leave, kept for what remains to be done when the runners are gone.
_LEAVE_S: Final = 0.8

# English text has some four characters a token (docs/demo-model.md has fewer). A profile passes over a model whose window
# is surely too small; whether a prompt really fits, the runner counts.
_CHARACTERS_PER_TOKEN: Final = 4

Use = Generate | Chat | Embed | Score


class ModelService:
    """The plain subjects of `model.*` on one worker."""

    def __init__(self, settings: Settings) -> None:
        models = settings.models
        self._settings = settings
        rules = load_rules(settings)
        catalogue = Catalogue([*(settings.path(root) for root in models.roots), SHIPPED_ROOT], rules)
        self._records = model_records(settings.path("models.db"))
        self._tokenizer = TokenizerProcess()
        worker = self.worker = Worker("model", settings, capacity=CAPACITY)
        self._loading = Loading(settings, worker, catalogue, self._records, rules)
        self._files = Files(settings, catalogue, self._records, worker.client, self._loading.with_state)
        self._pulls = Pulls(worker, self._files)
        self._conversions = Conversions(worker, self._files)
        self._adapters = AdapterRegistry(settings, self._records, self._files.find, self._loading, worker.publish)
        self._loading.adapters = self._adapters
        self._routing = Routing(rules, models, self._files.entries)
        self._trials = trials_handlers.Trials(settings, worker, self._records)
        self._answers = Answers(worker.publish, observe=settings.learning.observe)
        loading_handlers.register(worker, self._loading)
        files_handlers.register(worker, self._files)
        pull_handlers.register(worker, self._pulls)
        convert_handlers.register(worker, self._conversions)
        adapter_handlers.register(worker, self._adapters)
        routing_handlers.register(worker, self._routing)
        trials_handlers.register(worker, self._trials)
        worker.handle("model.tokenize", self.tokenize)
        for verb in ("generate", "chat", "embed", "score"):
            worker.handle(f"model.{verb}", self.use)
        worker.figures.read(MODEL_ADAPTERS, lambda: by_label(self._adapters.counts().items()))
        worker.degraded_by(self._loading.degraded)

    async def start(self) -> None:
        """Read the catalogue, start the first runner, register. The default model loads in the background."""
        await self._records.open()
        await self._files.start()
        await self._adapters.open()
        await self._trials.start()
        await self._loading.start()
        await self.worker.start()

    async def stop(self) -> None:
        """Leave within `supervisor.stop_s`: runners and this worker drain side by side."""
        limit_s = self._settings.supervisor.stop_s - _LEAVE_S
        # Trials, pulls and conversions would outlast the drain: their callers hear that they are cut off.
        await asyncio.gather(self._trials.stop(), self._pulls.stop(), self._conversions.stop())
        await asyncio.gather(self.worker.stop(limit_s), self._loading.stop(limit_s))
        await self._files.stop()
        await self._tokenizer.stop()
        await self._records.close()

    # Operations that use a model

    async def tokenize(self, request: ModelTokenize, call: Call) -> TokenCounts:
        """Count tokens with the model's vocabulary alone: nothing is loaded for it and nothing evicted."""
        name = self._instance_of(request, call) or self._routing.resolve(request.model).model
        entry = await self._files.show(ModelShow(model=name))
        if entry.state == "unusable":
            raise Unprocessable(f"{name} cannot be used: {entry.error}", model=name)
        answer = await self._tokenizer.tokenize(entry.name, entry.path, request.texts, with_tokens=request.with_tokens)
        return TokenCounts(model=entry.name, counts=answer.counts, tokens=answer.tokens)

    async def use(self, request: Use, call: Call) -> Generation | Embeddings | Scores:
        """`model.generate`, `chat`, `embed` and `score`: wait until the model is there, then pass the request on.

        The model's name, in the body or as the subject's instance, may be that of a routing profile.
        """
        asked = self._instance_of(request, call) or request.model
        if isinstance(request, Embed) and asked is None:
            asked = self._first_embedding()
        asked = asked or self._settings.models.default
        told = request if isinstance(request, Generate | Chat) and not is_relayed(call) else None
        try:
            return await self._use(asked, request, call)
        except BusError as error:
            if told is not None:
                self._answers.failed(told, asked, error, call)
            raise
        except asyncio.CancelledError:
            if told is not None:
                self._answers.late(told, asked, call)
            raise

    async def _use(self, asked: str, request: Use, call: Call) -> Generation | Embeddings | Scores:
        if not self._routing.is_profile(asked):
            reply = await self._loading.use(asked, request, call)
        else:
            routed = self._routing.resolve(asked, _prompt_tokens(request), _needed(request))
            reply = await self._loading.use(routed.model, with_options(request, routed.options), call)
            if isinstance(reply, Generation):
                reply = msgspec.structs.replace(reply, route=routed.reason)
        assert isinstance(reply, Generation | Embeddings | Scores)
        return reply

    def _first_embedding(self) -> str:
        """The default model if it can embed, else one that is loaded, else the first. Raises Unsupported."""
        able = [one for one in self._files.entries() if "embed" in one.capabilities and one.state != "unusable"]
        if not able:
            raise Unsupported("no model here can make embeddings; olympus models pull fetches one")
        default = self._settings.models.default
        return min(able, key=lambda one: (one.name != default, one.state != "loaded")).name

    def _instance_of(self, request: Use | ModelTokenize, call: Call) -> str | None:
        """The model that the subject names, None for the service itself."""
        _, instance = split_instance(call.subject)
        if not instance or instance == self.worker.instance:
            return None
        if request.model is not None and request.model != instance:
            raise BadRequest(f"addressed to @{instance}, but field 'model' is {request.model!r}", field="model")
        return instance


def _prompt_tokens(request: Use) -> int:
    """About how long the longest prompt of a request is."""
    match request:
        case Generate():
            characters = len(request.prompt)
        case Chat():
            characters = sum(len(message.content) for message in request.messages)
        case _:
            characters = max(map(len, request.texts))
    return characters // _CHARACTERS_PER_TOKEN


def _needed(request: Use) -> list[str]:
    """What a model must be able to do for a request."""
    match request:
        case Embed():
            return ["embed"]
        case Score():
            return []
    asked: dict[str, Any] = {
        "chat": isinstance(request, Chat),
        "tools": isinstance(request, Chat) and request.tools and request.tool_choice != "none",
        "json_schema": request.json_schema is not None,
        "grammar": request.grammar is not None,
    }
    return [capability for capability, is_asked in asked.items() if is_asked]


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then leave with every runner."""
    await serve_until_told(ModelService(settings), log)
