"""What the reasoning agent has at hand as long as the process lives; what lasts longer is in its records."""

from __future__ import annotations

from typing import Final

from workers.gateway.legacy.agents.pattern_search import PatternSearch
from workers.gateway.legacy.agents.turns import Turns
from workers.gateway.legacy.house import House

NAME: Final = "UnifiedMemoryReasoningAgent"

_COUNTERS: Final = (
    "error_count",
    "health_check_count",
    "update_count",
    "get_count",
    "delete_count",
    "successful_updates",
    "failed_updates",
)


class Desk:
    """Turns at its records, the search, the patterns that are too slow to be tried again, and what is counted."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.search = PatternSearch()
        self.slow: set[str] = set()
        self.counts = dict.fromkeys(_COUNTERS, 0)


def desk(house: House) -> Desk:
    """The one of this house."""
    return house.state(NAME, Desk)
