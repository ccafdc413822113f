"""The gate can fail: what harms is refused, what is useless is refused, what helps passes, and too little data is said."""

from __future__ import annotations

import msgspec
import pytest

from workers.learning.gate.pairs import Pair
from workers.learning.gate.verdict import Terms, Verdict, decide

TERMS = Terms(alpha=0.05, min_gain=0.1, margin=0.03, min_target_items=60, min_retention_items=600)


def a_set(name: str, *, better: int = 0, worse: int = 0, right: int = 0, wrong: int = 0, facts: int = 0) -> list[Pair]:
    """Items whose answers turned right, turned wrong, stayed right, stayed wrong; spread over so many facts, else alone."""
    turned = [(0.0, 1.0)] * better + [(1.0, 0.0)] * worse + [(1.0, 1.0)] * right + [(0.0, 0.0)] * wrong
    return [
        Pair(item_id=f"{name}-{number}", cluster=f"{number % (facts or len(turned))}", before=before, after=after)
        for number, (before, after) in enumerate(turned)
    ]


KEPT = a_set("kept", better=5, worse=5, right=640)
LEARNED = a_set("learned", better=40, worse=5, right=30, wrong=45)


def first_reason(verdict: Verdict) -> str:
    """The one that decided."""
    return verdict.reasons[0]


def test_a_good_adapter_passes_with_its_figures() -> None:
    """A clear gain without loss passes, and the figures are those of the items."""
    verdict = decide(LEARNED, KEPT, {}, TERMS)

    assert verdict.verdict == "passed"
    assert verdict.target is not None
    assert verdict.retention is not None
    assert verdict.target.difference == pytest.approx(35 / 120)
    assert (verdict.target.better, verdict.target.worse) == (40, 5)
    assert verdict.target.p_value is not None
    assert verdict.target.p_value <= verdict.corrected_alpha == 0.025
    assert verdict.target.low < verdict.target.difference < verdict.target.high
    assert verdict.retention.bound is not None
    assert verdict.retention.bound > -0.03
    assert verdict.backward_transfer is None


def test_a_harmful_adapter_is_refused_however_much_it_gains() -> None:
    """A loss of 10 points on what was known refuses it, in words."""
    verdict = decide(LEARNED, a_set("kept", worse=65, right=585), {}, TERMS)

    assert verdict.verdict == "refused"
    assert "the retention set fell by 10.0 points, 3.0 may be lost" in first_reason(verdict)


def test_a_useless_adapter_is_refused() -> None:
    """As many answers turned wrong as right: no gain."""
    verdict = decide(a_set("learned", better=20, worse=20, right=130, wrong=130), KEPT, {}, TERMS)

    assert verdict.verdict == "refused"
    assert first_reason(verdict) == "the target changed by 0.0 points, p = 1: no gain"


def test_a_gain_that_chance_explains_is_refused_where_a_real_one_would_have_been_seen() -> None:
    """300 items, 3 points up: a gain of 10 would have been seen."""
    verdict = decide(a_set("learned", better=29, worse=20, right=130, wrong=121), KEPT, {}, TERMS)

    assert verdict.verdict == "refused"
    assert "a gain of 10.0 points would have been seen with a chance of" in first_reason(verdict)


def test_a_gain_that_few_items_cannot_show_is_underpowered() -> None:
    """70 items, 7 points up: not shown, and not refuted either."""
    verdict = decide(a_set("learned", better=12, worse=7, right=30, wrong=21), KEPT, {}, TERMS)

    assert verdict.verdict == "underpowered"
    assert "with these items a gain of 10.0 points is seen with a chance of" in first_reason(verdict)
    assert verdict.power < 0.8 < verdict.detectable_gain * 10


@pytest.mark.parametrize("items", [0, 1, 59])
def test_too_few_target_items_never_pass(items: int) -> None:
    """Even when all of them turned right."""
    verdict = decide(a_set("learned", better=items), KEPT, {}, TERMS)

    assert verdict.verdict == "underpowered"
    assert f"the target has {items} held-out items, the gate wants 60" in first_reason(verdict)


@pytest.mark.parametrize(("items", "said"), [(0, "there is no retention set"), (599, "the gate wants 600 at least")])
def test_too_few_retention_items_never_pass(items: int, said: str) -> None:
    """Even when none of them changed."""
    verdict = decide(LEARNED, a_set("kept", right=items), {}, TERMS)

    assert verdict.verdict == "underpowered"
    assert said in first_reason(verdict)


def test_what_speaks_against_an_adapter_needs_no_more_data() -> None:
    """Few target items, and a retention set that fell apart: refused, not underpowered."""
    assert decide(a_set("learned", better=20), a_set("kept", worse=300, right=350), {}, TERMS).verdict == "refused"


def test_many_items_about_few_facts_do_not_pass() -> None:
    """120 items that all turned right, about three facts: nobody can tell it from luck."""
    verdict = decide(a_set("learned", better=120, facts=3), KEPT, {}, TERMS)

    assert verdict.verdict == "underpowered"
    assert verdict.target is not None
    assert verdict.target.p_value == pytest.approx(1 / 8, abs=0.02)


def test_flips_that_hide_a_loss_are_underpowered() -> None:
    """No mean loss, but so many answers turned that a loss of the margin cannot be ruled out."""
    verdict = decide(LEARNED, a_set("kept", better=150, worse=150, right=300), {}, TERMS)

    assert verdict.verdict == "underpowered"
    assert "so few items show no loss with a chance of" in first_reason(verdict)


def test_the_tenth_attempt_needs_more_than_the_first() -> None:
    """What passes at first is not enough after nine other attempts on the same items."""
    target = a_set("learned", better=34, worse=16, right=35, wrong=35)

    first = decide(target, KEPT, {}, TERMS)
    tenth = decide(target, KEPT, {}, msgspec.structs.replace(TERMS, attempt=10))

    assert first.verdict == "passed"
    assert tenth.verdict != "passed"
    assert tenth.corrected_alpha == pytest.approx(0.05 / 110)
    assert tenth.power < first.power


def test_forgetting_what_an_earlier_adapter_learned_is_refused() -> None:
    """Each earlier set is told by name with its transfer, and one that collapsed refuses the adapter."""
    earlier = {"ports": a_set("ports", worse=40, right=30), "names": a_set("names", better=7, right=63)}

    verdict = decide(LEARNED, KEPT, earlier, TERMS)

    assert verdict.verdict == "refused"
    assert "what was learned from ports fell by 57.1 points" in first_reason(verdict)
    assert [one.name for one in verdict.earlier] == ["names", "ports"]
    assert verdict.backward_transfer == pytest.approx((0.1 - 40 / 70) / 2)


def test_a_small_earlier_set_that_held_lets_pass() -> None:
    """One item of 30 turned wrong: no sign of harm, and together with the retention set nothing is lost."""
    assert decide(LEARNED, KEPT, {"ports": a_set("ports", worse=1, right=29), "gone": []}, TERMS).verdict == "passed"


def test_small_losses_of_many_earlier_sets_add_up() -> None:
    """No set alone shows harm, all together fell by more than the margin."""
    earlier = {f"set {number}": a_set(str(number), worse=4, right=46) for number in range(20)}

    verdict = decide(LEARNED, a_set("kept", worse=5, right=645), earlier, TERMS)

    assert verdict.verdict == "refused"
    assert "together" in first_reason(verdict)


def test_order_of_items_changes_nothing() -> None:
    """The same items in another order get the same figures."""
    assert decide(LEARNED, KEPT, {}, TERMS) == decide(LEARNED[::-1], KEPT[::-1], {}, TERMS)
