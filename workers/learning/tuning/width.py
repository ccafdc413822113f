"""How wide a model is, asked of the model service and read from its weights."""

from __future__ import annotations

import asyncio
from pathlib import Path

from bus.client import Client
from schemas.bodies.model import ModelInfo, ModelShow
from schemas.errors import BusError
from workers.learning.training.base import shape_of


async def width_of(client: Client, model: str) -> int:
    """Hidden size of `model`, 0 where it has no weights here that tell."""
    try:
        info: ModelInfo = await client.request("model.show", ModelShow(model=model))
        if not info.weights:
            return 0
        shape = await asyncio.to_thread(shape_of, Path(info.weights))
    except (BusError, OSError):
        return 0
    return shape.hidden
