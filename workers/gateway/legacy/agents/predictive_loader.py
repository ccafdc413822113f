"""PredictiveLoader (5617): which models were used most in the last hour. Loading ahead of need is the model service's."""

from __future__ import annotations

import time
from collections import Counter
from datetime import datetime
from typing import Any

from schemas.bodies.model import ModelUsage, ModelUsageReply
from schemas.errors import NotFound
from workers.gateway.legacy.agent import Action, Agent, Fields, Reply
from workers.gateway.legacy.agents.model_entries import LOOK_S, is_model_name
from workers.gateway.legacy.agents.model_tally import WINDOW_S, ran_for_s, tally_of
from workers.gateway.legacy.house import House

_NAME = "PredictiveLoader"

# Models that a prediction names, at most.
_PREDICTED = 3


async def predict_models(ask: Fields, house: House) -> Reply:
    tally = tally_of(house)
    tally.predictions_made += 1
    usage: ModelUsageReply = await house.ask("model.usage", ModelUsage(window_s=WINDOW_S), timeout_s=LOOK_S)
    uses = Counter({one.model: one.uses for one in usage.models}) + tally.uses(time.time())
    return {"status": "success", "predicted_models": [name for name, _ in uses.most_common(_PREDICTED)]}


async def record_usage(ask: Fields, house: House) -> Reply:
    """A model of ours learns of it, and is loaded ahead of need by it; other names are only counted."""
    model = ask.text("model_id")
    try:
        if not is_model_name(model):
            raise NotFound(f"there is no model {model!r}", model=model)
        await house.ask("model.usage", ModelUsage(record=model), timeout_s=LOOK_S)
    except NotFound:
        tally_of(house).use(model, time.time())
    return {"status": "success", "message": f"Usage of {model} recorded"}


async def health(house: House) -> dict[str, Any]:
    is_up = await house.is_up("model")
    return {
        "status": "HEALTHY" if is_up else "DEGRADED",
        "agent": _NAME,
        "uptime": ran_for_s(house),
        "timestamp": datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
    }


AGENT = Agent(
    name=_NAME,
    service="model",
    kind="predictive_loader",
    ports=(5617,),
    health_ports=(5618,),
    actions={
        "predict_models": Action(predict_models),
        "record_usage": Action(record_usage, required=("model_id",), missing="No model_id provided"),
    },
    health=health,
)
