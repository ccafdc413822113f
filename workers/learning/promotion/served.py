"""The model service as promotion sees it: adapters attached, promoted and taken away, texts scored. Over the bus."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from bus.client import Client
from schemas.bodies.model import ModelInfo, ModelShow, Score, Scores
from schemas.bodies.model_files import (
    AdapterAttach,
    AdapterDetach,
    AdapterInfo,
    AdapterList,
    AdapterPromote,
    AdapterRollback,
    Adapters,
)
from schemas.errors import BadRequest, BusError, Conflict, Forbidden, NotFound, Unprocessable, Unsupported
from schemas.purpose import OWN

log = logging.getLogger("olympus.learning.promotion")

# Errors after which the model service has changed nothing. After any other nobody knows: what serves has to be asked.
REFUSED: Final = (BadRequest, NotFound, Conflict, Unprocessable, Unsupported, Forbidden)

# Seconds: an adapter of some GB is converted, a model that is not loaded is loaded first.
_CHANGE_S: Final = 660.0
_SCORE_S: Final = 900.0


class Served:
    """One method for each request. Raises what the model service answers with."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def model(self, name: str) -> ModelInfo:
        """The catalogue entry."""
        info = await self._client.request("model.show", ModelShow(model=name))
        assert isinstance(info, ModelInfo)
        return info

    async def adapters(self, model: str) -> list[AdapterInfo]:
        """Every known version."""
        found = await self._client.request("model.adapter.list", AdapterList(model=model))
        assert isinstance(found, Adapters)
        return found.adapters

    async def attach(self, model: str, adapter: str, path: str, note: str, *, is_challenger: bool) -> AdapterInfo:
        """Attach a PEFT folder."""
        request = AdapterAttach(
            model=model, adapter=adapter, path=path, note=note, alias="challenger" if is_challenger else ""
        )
        attached = await self._client.request("model.adapter.attach", request, timeout_s=_CHANGE_S)
        assert isinstance(attached, AdapterInfo)
        return attached

    async def detach(self, model: str, adapter: str, *, forget: bool) -> None:
        """Detach it; with `forget` its file goes, too."""
        request = AdapterDetach(model=model, adapter=adapter, forget=forget)
        await self._client.request("model.adapter.detach", request, timeout_s=_CHANGE_S)

    async def promote(self, model: str, adapter: str, version: int, share: float, reason: str) -> None:
        """Let it answer a share of the requests that name none, with 1 all."""
        request = AdapterPromote(model=model, adapter=adapter, version=version, share=share, reason=reason)
        await self._client.request("model.adapter.promote", request, timeout_s=_CHANGE_S)

    async def roll_back(self, model: str, adapter: str, reason: str) -> None:
        """Take this one away, which must be the newest promotion."""
        request = AdapterRollback(model=model, adapter=adapter, reason=reason)
        await self._client.request("model.adapter.rollback", request, timeout_s=_CHANGE_S)

    async def score(self, model: str, adapter: str, prompts: Sequence[str], texts: Sequence[str]) -> Scores:
        """Log-probabilities of the texts with an adapter, "" for none."""
        request = Score(model=model, adapter=adapter, prompts=list(prompts), texts=list(texts))
        scores = await self._client.request("model.score", request, timeout_s=_SCORE_S, priority="batch", headers=OWN)
        assert isinstance(scores, Scores)
        return scores


def exact_name(info: AdapterInfo) -> str:
    """Name with version, as answers tell it."""
    return f"{info.adapter}:{info.version}"


async def release(served: Served, model: str, adapter: str, *, forget: bool) -> None:
    """Detach it. One that serves after all, or that a rollback may come back to, stays; so does one that is not there."""
    try:
        await served.detach(model, adapter, forget=forget)
    except Conflict:
        if forget:
            await release(served, model, adapter, forget=False)
    except NotFound:
        return
    except BusError as error:
        log.warning("adapter not detached", extra={"action": "learning.detach.failed", "error": error.message})
