"""Watching: outcomes are paired once each, and what follows from them. Equality: what is let pass, and what is not."""

from __future__ import annotations

import random

import msgspec
import pytest

from tests.learning_promotion import Settled
from workers.learning.promotion.equality import Probe, compare, is_quantised
from workers.learning.promotion.watching import Progress, Rules, decide, first, with_outcomes

RULES = Rules(alpha=0.05, drop=0.1, pairs=200, days=14)


def settled(*values: tuple[str, float], begin: int = 1) -> list[Settled]:
    return [Settled(number, *value) for number, value in enumerate(values, begin)]


def canary() -> Progress:
    return first("new:1", "old:1", 0, is_historical=False)


def test_the_kth_of_one_side_is_paired_with_the_kth_of_the_other_and_each_counts_once() -> None:
    """Whatever the order and the pages they come in; others and what was counted are passed over."""
    came = settled(("old:1", 1), ("old:1", 0), ("new:1", 0), ("", 1), ("old:1", 1), ("new:1", 0), ("new:2", 0))
    whole = with_outcomes(canary(), came, 0.05)
    assert (whole.compared.pairs, whole.after, whole.waiting_old, whole.waiting_new) == (2, 7, (1.0,), ())
    assert whole.compared.mean_difference == pytest.approx(-0.5)
    assert (whole.new.n, whole.old.n) == (2, 3)
    pages = canary()
    for one in came:
        pages = with_outcomes(pages, [one], 0.05)
    assert pages == whole
    assert with_outcomes(whole, came, 0.05) == whole


def test_progress_survives_being_written_down() -> None:
    """A restart goes on where it was."""
    progress = with_outcomes(canary(), settled(("old:1", 1), ("new:1", 0), ("new:1", 1)), 0.05)
    assert msgspec.json.decode(msgspec.json.encode(progress), type=Progress) == progress


def test_a_worse_adapter_is_rolled_back_and_an_equal_one_is_kept() -> None:
    """The reason names the pairs and the evidence."""
    random.seed(1)
    worse, equal = canary(), canary()
    for number in range(1, 801, 2):
        pair = (number, "old:1", float(random.random() < 0.9)), (number + 1, "new:1", float(random.random() < 0.5))
        worse = with_outcomes(worse, [Settled(*one) for one in pair], RULES.alpha)
        same = (number, "old:1", float(random.random() < 0.8)), (number + 1, "new:1", float(random.random() < 0.8))
        equal = with_outcomes(equal, [Settled(*one) for one in same], RULES.alpha)
    decision, words = decide(worse, 60.0, RULES)
    assert decision == "roll_back"
    assert "worse than old:1" in words
    assert worse.compared.pairs < 200
    assert decide(equal, 60.0, RULES)[0] == "keep"


def test_nothing_is_decided_before_pairs_or_days_are_there() -> None:
    """The words say after how many pairs a drop would be found."""
    decision, words = decide(canary(), 60.0, RULES)
    assert decision == "watching"
    assert "a drop of 0.1 is found after" in words
    decision, words = decide(canary(), 15 * 86_400.0, RULES)
    assert decision == "keep"
    assert "14 days" in words


def test_without_a_canary_the_outcomes_from_before_are_the_other_side() -> None:
    """Later ones of the old side, which are of others' requests, do not count."""
    progress = first("new:1", "", 3, settled(("", 1), ("", 1), ("", 0)), is_historical=True)
    progress = with_outcomes(progress, settled(("", 0), ("new:1", 1), ("new:1", 1), begin=4), 0.05)
    assert (progress.compared.pairs, progress.old.n, progress.waiting_old) == (2, 3, (0.0,))
    assert "from before" in decide(progress, 0.0, RULES)[1]


# Equality -----------------------------------------------------------------------------------------------------------


def probes(bare: float, adapted: float, change: float = 0.5, count: int = 4) -> list[Probe]:
    """Texts of ten tokens on which the served model differs by these nats per token."""
    return [
        Probe(
            tokens=10,
            peft_bare=-20.0,
            peft=-20.0 + 10 * change,
            served_bare=-20.0 + 10 * bare,
            served=-20.0 + 10 * (change + adapted),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("bare", "adapted", "quantised", "problem"),
    [
        (0.001, 0.003, False, ""),
        (0.001, 0.02, False, "does not compute what PEFT computes"),
        (0.05, 0.05, False, "not the adapter's base"),
        (0.05, 0.09, True, ""),
        (0.05, 0.3, True, "does not compute"),
        (0.6, 0.6, True, "not the adapter's base"),
        (0.4, -0.4, True, "does not change what it changes"),
        (float("nan"), 0.0, False, "not the adapter's base"),
        (0.0, float("nan"), True, "does not compute"),
    ],
)
def test_what_differs_from_peft_is_refused_with_the_numbers(
    bare: float, adapted: float, quantised: bool, problem: str
) -> None:
    """A quantised base may differ more, as much as it does without the adapter; not a number passes nothing."""
    found = compare(probes(bare, adapted), quantised=quantised)
    assert problem in found.problem
    assert bool(problem) == bool(found.problem)


def test_half_precision_is_not_quantised() -> None:
    """A folder of safetensors says nothing, and is served as it is."""
    assert not any(is_quantised(name) for name in ("F16", "bf16", "F32", ""))
    assert all(is_quantised(name) for name in ("Q4_0", "Q8_0", "IQ2_XS", "AWQ"))
