"""The first model service's paths, all of which the catalogue has too: its answers with the old fields added.

Where an old field has the name of one of ours, as `state` of a model, ours stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import msgspec

from workers.gateway.legacy.house import House
from workers.gateway.phase1.agents import asked, raw_routes
from workers.gateway.phase1.answers import has_failed, joined, native_value, superset
from workers.gateway.rest.request import RestRequest
from workers.gateway.rest.response import Response
from workers.gateway.rest.routes import Route

MODELS: Final = "GGUFModelManager"

_SUCCESS: Final = {"status": "success"}


def model_routes(house: House) -> Iterator[Route]:
    """The routes of the models port."""
    yield Route("GET", "/models", partial(list_models, house))
    yield Route("GET", "/models/{model}", partial(show_model, house))
    yield Route("GET", "/models/{model}/stats", partial(show_model, house))
    yield Route("POST", "/models/{model}/load", told)
    yield Route("POST", "/models/{model}/unload", told)
    yield from raw_routes(house, {"/gguf/raw": MODELS})


async def list_models(house: House, request: RestRequest) -> Response:
    """Each entry is ours with the keys of the old one."""
    native = await request.native()
    reply = await asked(house, request, MODELS, "list_models", {})
    if has_failed(reply) or not isinstance(native.body, bytes):
        return native
    old = {entry["model_id"]: entry for entry in reply["models"]}
    own = native_value(native)
    entries: list[dict[str, Any]] = own["models"]
    own["models"] = [{**old.get(entry["name"], {}), **entry} for entry in entries]
    return msgspec.structs.replace(native, body=msgspec.json.encode({**_SUCCESS, **own}))


async def show_model(house: House, request: RestRequest) -> Response:
    """A model, or its figures, with the old status object beside."""
    native = await request.native()
    reply = await asked(house, request, MODELS, "get_model_status", {"model_id": request.params["model"]})
    return joined(native, reply)


async def told(request: RestRequest) -> Response:
    """What was asked for is done, or there is an error."""
    return superset(await request.native(), _SUCCESS)
