"""What the replaced model agents counted in memory, and nobody expects after a restart: uses, measurements, loads."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from typing import Final

from workers.gateway.legacy.house import House

# The agents that count together; the first of them that this edge answers for keeps the figures.
_AGENTS: Final = (
    "ModelManagerSuite",
    "ModelEvaluationFramework",
    "PredictiveLoader",
    "GGUFModelManager",
    "ModelManagerAgent",
)

# Seconds that uses count, and uses remembered of names that the model service does not know.
WINDOW_S: Final = 3_600.0
_USES: Final = 10_000

# Conversations whose state is taken to be kept, and for how many seconds: as in GGUFModelManager.
_CONVERSATIONS: Final = 50
_CONVERSATION_S: Final = 3_600.0

# Models of evaluations that are told apart.
_MODELS: Final = 10_000


class Tally:
    """Figures since this process started."""

    def __init__(self) -> None:
        self.performance_logs = 0
        self.trust_score_updates = 0
        self.predictions_made = 0
        self.models_loaded = 0
        self.models_unloaded = 0
        self.models: set[str] = set()
        self._uses: deque[tuple[float, str]] = deque(maxlen=_USES)
        self._conversations: OrderedDict[str, float] = OrderedDict()

    def evaluated(self, model: str) -> None:
        """Somebody told how good a model is."""
        self.trust_score_updates += 1
        if len(self.models) < _MODELS:
            self.models.add(model)

    def use(self, name: str, now: float) -> None:
        """A use of a name that the model service does not know, at epoch second `now`."""
        self._uses.append((now, name))

    def uses(self, now: float) -> Counter[str]:
        """Uses of such names in the last WINDOW_S seconds."""
        return Counter(name for at, name in self._uses if at >= now - WINDOW_S)

    def converse(self, conversation_id: str | None, now: float) -> None:
        """A turn of a conversation went by."""
        if conversation_id is not None:
            self._conversations[conversation_id] = now
            self._conversations.move_to_end(conversation_id)
            if len(self._conversations) > _CONVERSATIONS:
                self._conversations.popitem(last=False)

    def forget(self, conversation_id: str) -> None:
        """A conversation was cleared."""
        self._conversations.pop(conversation_id, None)

    def conversations(self, now: float) -> int:
        """Conversations of the last hour."""
        return sum(at >= now - _CONVERSATION_S for at in self._conversations.values())

    def stats(self) -> dict[str, int]:
        """`metrics` of `get_stats`, as ModelEvaluationFramework has them."""
        return {
            "performance_logs": self.performance_logs,
            "trust_score_updates": self.trust_score_updates,
            "models_tracked": len(self.models),
        }


def tally_of(house: House) -> Tally:
    """The one tally of this edge."""
    keeper = next(name for name in _AGENTS if name in house.agents)
    return house.state(keeper, Tally)


def ran_for_s(house: House) -> float:
    """Seconds since the edge started."""
    return time.time() - house.started_at
