"""What to learn first: gain, frequency, recency and cost, weighed where everybody can see it; pure."""

from __future__ import annotations

from typing import Final

from schemas.bodies.learning import PriorityTerms

# Weights of the terms; their sum is 1, so that the priority is 0..1.
_GAIN: Final = 0.45
_FREQUENCY: Final = 0.25
_RECENCY: Final = 0.15
_CHEAPNESS: Final = 0.15

# Pieces of evidence, and seconds of training, that count half.
_HALF_COUNT: Final = 10.0
_HALF_COST_S: Final = 600.0

_HALF_LIFE_DAYS: Final = 7.0
_DAY_S: Final = 86_400.0

# Seconds of training for one example where no job has shown it yet, and of what a job takes besides: the demo model with
# 400 examples and the standard number of epochs on two CPU cores.
S_PER_EXAMPLE: Final = 0.1
_BESIDES_S: Final = 30.0

FORMULA: Final = (
    f"{_GAIN} expected_gain + {_FREQUENCY} frequency + {_RECENCY} recency + {_CHEAPNESS} (1 - cost);"
    " expected_gain: mean chance that an answer was wrong, by what each signal proved to be worth;"
    f" frequency: n / (n + {_HALF_COUNT:g}) of n pieces of evidence;"
    f" recency: halves every {_HALF_LIFE_DAYS:g} days since the last one;"
    f" cost: t / (t + {_HALF_COST_S:g}) of t estimated seconds of training"
)


def terms_of(*, weight: float, count: int, age_s: float, examples: int, s_per_example: float) -> PriorityTerms:
    """The terms of one opportunity.

    weight: sum over its evidence of the chance that something was wrong, 0..1 each. age_s: since its last evidence.
    examples: that a training would have.
    """
    cost_s = _BESIDES_S + examples * s_per_example
    return PriorityTerms(
        expected_gain=round(min(weight / count, 1.0) if count else 0.0, 4),
        frequency=round(count / (count + _HALF_COUNT), 4),
        recency=round(0.5 ** (max(age_s, 0.0) / (_HALF_LIFE_DAYS * _DAY_S)), 4),
        cost=round(cost_s / (cost_s + _HALF_COST_S), 4),
        cost_s=round(cost_s, 1),
        formula=FORMULA,
    )


def priority_of(terms: PriorityTerms) -> float:
    """0.45 expected_gain + 0.25 frequency + 0.15 recency + 0.15 (1 - cost): 0..1, the highest first."""
    return round(
        _GAIN * terms.expected_gain
        + _FREQUENCY * terms.frequency
        + _RECENCY * terms.recency
        + _CHEAPNESS * (1.0 - terms.cost),
        4,
    )
