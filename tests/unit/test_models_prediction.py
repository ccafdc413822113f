"""Prediction: regular usage is foreseen, irregular usage is not, and neither a clock nor a crowd does any harm."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.models.prediction import MAX_CONTEXTS, MAX_MODELS, Forecast, Predictor

# A Monday, midnight.
BEGIN = 1_767_571_200.0
HOUR = 3_600.0


def taught(requests: list[tuple[float, str]]) -> Predictor:
    """A Predictor that has seen these."""
    predictor = Predictor()
    for at, model in sorted(requests):
        predictor.record(model, at)
    return predictor


def forecast(predictor: Predictor, now: float, horizon_s: float = 60.0) -> dict[str, Forecast]:
    """Forecasts by model."""
    return {one.model: one for one in predictor.predict(now, horizon_s)}


def test_nothing_is_foretold_of_nothing() -> None:
    """Who has seen no request expects none."""
    assert Predictor().predict(BEGIN, 60) == []


def test_regular_job_is_expected_when_it_is_due() -> None:
    """A model used every half hour is likely just before, and unlikely just after."""
    predictor = taught([(BEGIN + number * 1_800, "job") for number in range(60)])
    last = BEGIN + 59 * 1_800

    assert forecast(predictor, last + 1_770)["job"].probability > 0.8
    assert forecast(predictor, last + 600)["job"].probability < 0.1
    assert last + 1_770 < forecast(predictor, last + 1_770)["job"].expected_at < last + 1_900


def test_daily_use_is_expected_at_its_time_of_day() -> None:
    """A model of the morning, whose days differ in length, is expected in the morning and not in the evening."""
    rng = random.Random(1)
    requests = []
    for day in range(10):
        at = BEGIN + day * 24 * HOUR + 9 * HOUR
        for _ in range(rng.randint(3, 9)):
            requests.append((at, "news"))
            at += rng.uniform(60, 1_200)
        requests += [(BEGIN + day * 24 * HOUR + hour * HOUR, "other") for hour in range(24)]
    predictor = taught(sorted(requests))
    next_day = BEGIN + 10 * 24 * HOUR

    morning = forecast(predictor, next_day + 9 * HOUR - 30, 300)["news"]
    evening = forecast(predictor, next_day + 20 * HOUR, 300)["news"]
    assert morning.probability > 3 * evening.probability
    assert morning.probability > 0.2
    assert morning.why == "used at this time of the day before"


def pipeline(rng: random.Random, steps: str, times: int) -> list[tuple[float, str]]:
    """Models named by letters, one after the other, begun at random instants."""
    requests, at = [], BEGIN
    for _ in range(times):
        at += rng.expovariate(1 / 900) + 300
        for number, step in enumerate(steps):
            requests.append((at + number * 20 + rng.uniform(0, 3), step))
    return requests


def test_what_follows_is_learned() -> None:
    """After the first step the second is expected, and the reason says after what."""
    predictor = taught(pipeline(random.Random(2), "abc", 40))
    now = BEGIN + 1_000_000
    predictor.record("a", now)

    soon = forecast(predictor, now + 5)
    assert soon["b"].probability > 0.8
    assert soon["b"].value > soon["a"].value
    assert soon["b"].why == "often follows a"
    assert forecast(predictor, now + 600)["b"].probability < 0.2


def test_repeated_step_promises_as_much_as_one_asked_for_once() -> None:
    """Two steps go on as often, one of them asked for up to five times: a repetition is no case of nothing following."""
    rng = random.Random(10)
    requests, at = [], BEGIN
    for number in range(200):
        at += rng.expovariate(1 / 900) + 300
        step = ("repeated", "single")[number % 2]
        for _ in range(rng.randint(2, 5) if step == "repeated" else 1):
            at += 5
            requests.append((at, step))
        if rng.random() < 0.6:
            requests.append((at + 30 + rng.uniform(0, 5), "next"))

    chances = {}
    for step in ("repeated", "single"):
        predictor = taught(requests)
        predictor.record(step, at + 1_000)
        chances[step] = forecast(predictor, at + 1_010)["next"].probability

    assert chances["repeated"] == pytest.approx(chances["single"], abs=0.1)


def test_two_models_in_order_tell_pipelines_apart() -> None:
    """The same step goes on differently after different ones."""
    rng = random.Random(3)
    requests = []
    for number in range(60):
        at = BEGIN + number * 1_000 + rng.uniform(0, 300)
        for place, step in enumerate("amx" if rng.random() < 0.5 else "bmy"):
            requests.append((at + place * 20 + rng.uniform(0, 2), step))
    predictor = taught(requests)
    now = BEGIN + 1_000_000

    predictor.record("a", now)
    predictor.record("m", now + 20)
    after_a = forecast(predictor, now + 25)
    predictor.record("b", now + 5_000)
    predictor.record("m", now + 5_020)
    after_b = forecast(predictor, now + 5_025)

    assert after_a["x"].probability > after_a["y"].probability + 0.3
    assert after_b["y"].probability > after_b["x"].probability + 0.3


def test_callers_do_not_get_in_each_others_way() -> None:
    """Two people at a time, each going round in their own order: what one asks for does not follow the other's use."""
    rng = random.Random(9)
    people = {"ann": "abc", "ben": "xyz"}
    requests = sorted(
        (BEGIN + number * 30 + rng.uniform(0, 25), models[number % 3], name)
        for name, models in people.items()
        for number in range(300)
    )
    predictor = Predictor()
    for at, model, name in requests:
        predictor.record(model, at, name)
    now = BEGIN + 1_000_000

    predictor.record("a", now, "ann")
    soon = forecast(predictor, now + 5)

    assert soon["b"].why == "often follows a"
    assert soon["b"].probability > 0.8
    assert all(soon[other].probability < 0.3 for other in "xyz")


def test_what_each_caller_asks_for_next_is_worth_most() -> None:
    """Three people who wander between three models each: three times in four, the next one is among the three worth most.

    Without the pace and the steps of each caller it is two times in three.
    """
    rng = random.Random(0)
    requests = []
    for name in ("ann", "ben", "cat"):
        models, at, turn = rng.sample("abcdefghijkl", 3), BEGIN, 0
        for _ in range(200):
            requests.append((at, models[turn], name))
            at += rng.lognormvariate(math.log(45), 0.6)
            turn = (turn + rng.choices((0, 1, 2), (0.2, 0.7, 0.1))[0]) % 3
    predictor, foreseen = Predictor(), []
    for number, (at, model, name) in enumerate(sorted(requests)):
        if number > 300:
            by_value = sorted(predictor.predict(at, 60), key=lambda one: -one.value)
            foreseen.append(model in [one.model for one in by_value[:3]])
        predictor.record(model, at, name)

    assert sum(foreseen) / len(foreseen) > 0.75


def test_memory_is_bounded_for_any_number_of_callers() -> None:
    """Who signs in under ever new names leaves no more behind than a few do."""
    predictor = Predictor()
    for number in range(3_000):
        predictor.record("ab"[number % 2], BEGIN + number * 30, f"caller {number // 3}")

    assert len(predictor.to_bytes()) < 500 * MAX_CONTEXTS
    assert len(predictor._callers) <= 64


def test_random_requests_are_foretold_at_their_rate() -> None:
    """Chances fit what happens: over many forecasts of any size, as many requests come as were promised."""
    rng = random.Random(4)
    predictor, at = Predictor(), BEGIN
    promised, came, due = 0.0, 0, []
    for number in range(2_000):
        at += rng.expovariate(1 / 40)
        model = f"m{rng.randrange(8)}"
        if number > 500:
            came += sum(one == model and at <= until for one, until in due)
            due = [(one, until) for one, until in due if until >= at and one != model]
        predictor.record(model, at)
        if number > 500 and number % 7 == 0 and not due:
            for name, one in forecast(predictor, at).items():
                promised += one.probability
                due.append((name, at + 60))

    assert came / promised == pytest.approx(1.0, abs=0.25)


def test_usage_without_a_pattern_gives_no_forecast_any_value() -> None:
    """Where recency knows as much, nothing is to be done on the word of a forecast; where it does not, something is."""
    rng = random.Random(8)
    aimless = taught([(BEGIN + number * 40, f"m{rng.randrange(10)}") for number in range(600)])
    regular = taught(pipeline(rng, "abcdef", 60))

    assert all(one.value == 0 for one in aimless.predict(BEGIN + 600 * 40, 60))
    regular.record("a", BEGIN + 1_000_000)
    soon = forecast(regular, BEGIN + 1_000_005)
    assert max(soon.values(), key=lambda one: one.value).model == "b"
    assert soon["b"].value > 0.5


def test_new_habits_replace_old_ones() -> None:
    """After a change the old follower is no longer expected."""
    rng = random.Random(5)
    predictor = taught(pipeline(rng, "ab", 40))
    for at, model in pipeline(rng, "ac", 40):
        predictor.record(model, at + 1_000_000)
    now = BEGIN + 3_000_000
    predictor.record("a", now)

    soon = forecast(predictor, now + 5)
    assert soon["c"].probability > 0.6
    assert soon["b"].probability < 0.2


def test_longer_horizon_is_never_less_likely() -> None:
    """What comes within a minute comes within an hour."""
    predictor = taught(pipeline(random.Random(6), "abc", 20))

    chances = [
        forecast(predictor, BEGIN + 30_000, horizon)["b"].probability for horizon in (1, 15, 40, 60, 300, 2_000, 86_400)
    ]
    assert chances == sorted(chances)
    assert all(0 <= chance <= 1 for chance in chances)


def test_kept_state_foretells_the_same() -> None:
    """What was learned survives a restart."""
    predictor = taught(pipeline(random.Random(7), "abcd", 30))
    again = Predictor.from_bytes(predictor.to_bytes())
    now = BEGIN + 1_000_000

    # What was open at the end of the process is not kept: it is over after a restart.
    assert forecast(again, now) == forecast(predictor, now)
    assert again.to_bytes() == predictor.to_bytes()


@pytest.mark.parametrize("data", [b"", b"nonsense", b"\x80", Predictor().to_bytes()[:-1]])
def test_damaged_state_begins_anew(data: bytes) -> None:
    """A service starts with whatever was left of its file."""
    assert Predictor.from_bytes(data).predict(BEGIN, 60) == []


def test_memory_is_bounded_for_any_number_of_models() -> None:
    """Four thousand models leave no more behind than a few hundred."""
    predictor = Predictor()
    for number in range(4_000):
        predictor.record(f"m{number}", BEGIN + number * 30)

    assert len(predictor.to_bytes()) < 20_000 * MAX_MODELS
    kept = Predictor.from_bytes(predictor.to_bytes())
    assert len(kept.predict(BEGIN + 200_000, 60)) <= MAX_MODELS
    assert len(predictor.to_bytes()) < 2_000 * (MAX_MODELS + MAX_CONTEXTS)


def test_clock_set_back_keeps_what_was_learned() -> None:
    """A day back, and the job that is due every half hour is still known."""
    predictor = taught([(BEGIN + number * 1_800, "job") for number in range(60)])
    earlier = BEGIN + 59 * 1_800 - 24 * HOUR

    for number in range(1, 4):
        predictor.record("job", earlier + number * 1_800)

    assert forecast(predictor, earlier + 3 * 1_800 + 1_770)["job"].probability > 0.6


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-1e5, 1e5), st.sampled_from("abcd")), max_size=60), st.floats(1e-3, 1e7))
def test_any_clock_and_any_order_is_survived(steps: list[tuple[float, str]], horizon_s: float) -> None:
    """Chances stay chances whatever the clock does."""
    predictor, at = Predictor(), BEGIN
    for step, model in steps:
        at += step
        predictor.record(model, at)
        for one in predictor.predict(at + step, horizon_s):
            assert 0 <= one.probability <= 1 and 0 <= one.value <= 1
            assert one.expected_at >= at - 1e6
    Predictor.from_bytes(predictor.to_bytes()).record("a", at)
