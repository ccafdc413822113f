"""The learning rate and length of the next training of a model, from how the earlier ones ended. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from schemas.bodies.learning_gate import GateResult

# Where nothing is known, not even how wide the model is: LoRA takes 1e-4 to 5e-4 (Hu et al. 2021, table 11).
FIRST_RATE: Final = 2e-4
FIRST_EPOCHS: Final = 3.0

# The best rate falls with the width of the model: 5e-4 x (2000 / hidden size) ^ 0.781.
# Source: Schulman and Thinking Machines Lab, "LoRA Without Regret" (2025), fitted to models of 1 B parameters and more.
_RATE_AT: Final = 5e-4
_WIDTH_AT: Final = 2_000
_BY_WIDTH: Final = 0.781
# Smaller ones forget more for little more gain: three rounds of scripts/bench_learning.py passed at 5e-4 and at 7.5e-4, with
# 78 and 85 points gained and 1.3 and 1.4 lost; at 1e-3, with less replay, one of three was refused for losing 1.9.
_FIRST_MOST: Final = 7.5e-4

LEAST_RATE: Final = 1e-6
MOST_RATE: Final = 5e-3
LEAST_EPOCHS: Final = 0.5
MOST_EPOCHS: Final = 20.0

# The bold driver: a little faster after a step that helped, half as fast after one that harmed.
# Source: Battiti, "Accelerated backpropagation learning: two optimization methods", Complex Systems 3 (1989).
_FASTER: Final = 1.1
_SLOWER: Final = 0.5
# A loss that is no number any more was many times too fast.
_MUCH_SLOWER: Final = 0.1
# No gain, and nothing forgotten: the training did too little.
_BOLDER: Final = 2.0

# A training whose best step came before this part of it was too long.
# Source: Prechelt, "Early Stopping - But When?", Neural Networks: Tricks of the Trade (1998).
_EARLY: Final = 0.7
# Room behind the best step, so that the next training can see that it was the best.
_ROOM: Final = 1.25

FORMULA: Final = (
    "start at 5e-4 x (2000 / hidden size)^0.781, 7.5e-4 at most, and 3 epochs; after each job: loss no number: rate x 0.1;"
    " forgot (retention below -margin): rate x 0.5;"
    " no gain: rate x 2; passed: rate x 1.1; best step before 70 % of the steps: epochs x best / steps x 1.25; gain still"
    " too small: epochs x 1.5"
)


class JobOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """How one job ended. result: the gate's, None without one. failure: its kind, "" where the training went through."""

    job_id: str
    model: str
    learning_rate: float
    epochs: float
    steps: int = 0
    best_step: int = 0
    result: GateResult | None = None
    failure: str = ""


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """What the next job begins with. reason: which job's end led to it."""

    learning_rate: float = FIRST_RATE
    epochs: float = FIRST_EPOCHS
    reason: str = "nothing was trained yet"


def first_rate(hidden: int) -> float:
    """Learning rate of a model's first training. hidden: its width, 0 when that is not known."""
    return min(_RATE_AT * (_WIDTH_AT / hidden) ** _BY_WIDTH, _FIRST_MOST) if hidden > 0 else FIRST_RATE


def choose(outcomes: Sequence[JobOutcome], first: float = FIRST_RATE) -> Chosen:
    """What follows from the ends of earlier jobs, the oldest first; `FORMULA` says how. first: rate to begin with."""
    chosen = Chosen(learning_rate=first)
    for outcome in outcomes:
        chosen = _after(outcome, chosen)
    return chosen


def _after(outcome: JobOutcome, before: Chosen) -> Chosen:
    rate, epochs, result = outcome.learning_rate, _shortened(outcome), outcome.result
    if outcome.failure == "loss":
        return _bounded(rate * _MUCH_SLOWER, epochs, f"the loss of {outcome.job_id} was no number any more")
    if result is None or result.target is None:
        # It says nothing about how it was trained.
        return before
    if result.retention is not None and result.retention.difference < -(result.retention.margin or 0.0):
        lost = -result.retention.difference * 100
        return _bounded(rate * _SLOWER, epochs, f"{outcome.job_id} forgot {lost:.1f} points")
    gain = result.target.difference
    if gain <= 0:
        return _bounded(rate * _BOLDER, epochs, f"{outcome.job_id} gained nothing and forgot nothing")
    if result.verdict == "passed":
        return _bounded(rate * _FASTER, epochs, f"{outcome.job_id} passed with {gain * 100:.1f} points")
    return _bounded(rate, epochs * 1.5, f"{outcome.job_id} gained only {gain * 100:.1f} points")


def _shortened(outcome: JobOutcome) -> float:
    if 0 < outcome.best_step < _EARLY * outcome.steps:
        return outcome.epochs * outcome.best_step / outcome.steps * _ROOM
    return outcome.epochs


def _bounded(rate: float, epochs: float, reason: str) -> Chosen:
    return Chosen(
        learning_rate=min(max(rate, LEAST_RATE), MOST_RATE),
        epochs=min(max(epochs, LEAST_EPOCHS), MOST_EPOCHS),
        reason=reason,
    )
