"""How memories age: the numbers of the life cycle, as a function of time alone.

    short   loses 10 % of its importance per day of age at each pass, becomes medium below 0.4
    medium  loses  5 % of its importance per day of age at each pass, becomes long   below 0.2
    long    does not change

A pass falls on every full hour of the epoch: `importance *= 1 - rate * age_days`, the age counted from the creation,
the result kept within 0 and 1, one change of tier at the most. Passes that nobody made (the service was down) are made
up for one by one, so the outcome does not depend on when the service ran; one made again changes nothing.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from schemas.bodies.items import Tier

# Seconds between two passes. Part of the rule and no setting: the rates below are per pass.
PASS_S: Final = 3_600.0
DAY_S: Final = 86_400.0

# Share of the importance lost per day of age, at each pass.
RATES: Final[dict[str, float]] = {"short": 0.1, "medium": 0.05}

# Importance below which a memory leaves its tier, and the one it goes to.
THRESHOLDS: Final[dict[str, float]] = {"short": 0.4, "medium": 0.2}
NEXT_TIER: Final[dict[str, Tier]] = {"short": "medium", "medium": "long"}

# The tier in which nothing is lost any more.
RESTING: Final[Tier] = "long"

# Related memories from which a memory that leaves the short tier is consolidated with them.
CONSOLIDATE_FROM: Final = 3
CONSOLIDATED_IMPORTANCE: Final = 0.7


class Aged(NamedTuple):
    """What a memory has become, and whether it left the short tier on the way."""

    tier: str
    importance: float
    left_short: bool = False


def latest_pass(now: float) -> float:
    """Epoch seconds of the last pass that was due by `now`."""
    return math.floor(now / PASS_S) * PASS_S


def age(tier: str, importance: float, *, created_at: float, since: float, until: float) -> Aged:
    """A memory after every pass in (since, until]; as it was where none lies there. All times are epoch seconds.

    At most some 500 passes are made however long the time: past 10 days of age a short memory, past 20 a medium one has
    nothing left, and long ones rest.
    """
    left_short = False
    # A pass before the creation does nothing; without this a memory of the future would be counted up to hour by hour.
    first = math.floor(max(since, created_at) / PASS_S) + 1
    for number in range(first, math.floor(until / PASS_S) + 1):
        if tier not in RATES:
            break
        age_days = (number * PASS_S - created_at) / DAY_S
        importance = min(1.0, max(0.0, importance * (1.0 - RATES[tier] * age_days)))
        if importance < THRESHOLDS[tier]:
            left_short = left_short or tier == "short"
            tier = NEXT_TIER[tier]
    return Aged(tier, importance, left_short)
