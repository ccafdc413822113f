"""Asks the models on the bus what the gate has to know, again where they were busy; knows no score and no verdict."""

from __future__ import annotations

import asyncio
import random
from typing import Final, NamedTuple

from bus.client import Client
from schemas.bodies.model import Generation, ModelInfo, ModelShow
from schemas.bodies.model_files import AdapterInfo, AdapterList, Adapters, ModelVerified, ModelVerify
from schemas.errors import BadRequest, DeadlineExceeded, NotFound, Retryable, TooLarge, Unprocessable
from schemas.purpose import OWN
from workers.learning.gate.items import Item

# Seconds for one answer: a long one of a slow model, and its loading.
_ANSWER_S: Final = 600.0

# Seconds for hashing a model that never was: some hundred GB from a slow disk.
_HASH_S: Final = 3_600.0

# How often one question is asked in all while nobody can answer, and the first pause between, doubled each time, with
# jitter: half a minute together, which a runner that died needs to come back.
_TRIES: Final = 8
_PAUSE_S: Final = 0.2

# Errors that are about the question: another one may well be answered.
_REFUSED: Final = (BadRequest, TooLarge, Unprocessable)


class Side(NamedTuple):
    """What answers: a model with exactly one adapter, "" for none. Both contents by their hash."""

    model: str
    model_sha256: str
    adapter: str
    adapter_sha256: str


class Answer(NamedTuple):
    """What was answered; error: why nothing was, "" otherwise."""

    text: str
    error: str = ""


class Asking:
    """The models on the bus."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def show(self, model: str) -> ModelInfo:
        """A model's entry. Raises NotFound, and Unprocessable for one that cannot be loaded."""
        shown: ModelInfo = await self._client.request("model.show", ModelShow(model=model))
        if shown.state == "unusable":
            raise Unprocessable(f"{model} cannot be loaded: {shown.error}", model=model)
        return shown

    async def sides(self, model: ModelInfo, candidate: str, against: str | None) -> tuple[Side, Side]:
        """The candidate, and what it is compared with: None is what serves now, "" the model alone. Raises NotFound."""
        listed: Adapters = await self._client.request("model.adapter.list", AdapterList(model=model.name))
        sha256 = model.sha256 or await self._hashed(model.name)
        champion = next((one for one in listed.adapters if one.alias == "champion"), None)
        before = champion if against is None else _named(listed.adapters, model.name, against)
        return (
            _side(model.name, sha256, _named(listed.adapters, model.name, candidate)),
            _side(model.name, sha256, before),
        )

    async def _hashed(self, model: str) -> str:
        """The hash of a model that was never hashed. One that has no files here is known by its name."""
        try:
            verified: ModelVerified = await self._client.request(
                "model.verify", ModelVerify(model=model), timeout_s=_HASH_S, priority="batch"
            )
        except Unprocessable:
            return model
        return verified.sha256

    async def answer(self, side: Side, item: Item) -> Answer:
        """One answer, also where the model refuses the question. Raises every other error; what may pass is tried again."""
        body = item.request(side.model, side.adapter)
        subject = "model.generate" if item.prompt is not None else "model.chat"
        for number in range(_TRIES):
            try:
                reply: Generation = await self._client.request(
                    subject, body, timeout_s=_ANSWER_S, headers=OWN, priority="batch"
                )
            except DeadlineExceeded:
                # It had ten minutes.
                raise
            except Retryable:
                if number == _TRIES - 1:
                    raise
                await asyncio.sleep(_PAUSE_S * 2**number * random.uniform(0.5, 1.0))
            except _REFUSED as error:
                return Answer("", f"{error.code}: {error.message}")
            else:
                return Answer(reply.text)
        raise AssertionError("the last try returns or raises")


def _named(adapters: list[AdapterInfo], model: str, name: str) -> AdapterInfo | None:
    """The version that a name means: NAME:VERSION exactly, NAME its newest; None for "". Raises NotFound."""
    if not name:
        return None
    exact = [one for one in adapters if f"{one.adapter}:{one.version}" == name]
    found = exact or sorted((one for one in adapters if one.adapter == name), key=lambda one: one.version)
    if not found:
        raise NotFound(f"{model} has no adapter {name!r}", model=model, adapter=name)
    return found[-1]


def _side(model: str, model_sha256: str, adapter: AdapterInfo | None) -> Side:
    if adapter is None:
        return Side(model, model_sha256, "", "")
    return Side(model, model_sha256, f"{adapter.adapter}:{adapter.version}", adapter.sha256)
