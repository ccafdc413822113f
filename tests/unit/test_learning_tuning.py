"""Learning rates that follow from earlier jobs, sessions that are followed, and parameters that are tuned."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.records import Records
from schemas.bodies.learning_gate import GateResult, SetResult
from schemas.bodies.learning_tuning import (
    ParameterAdjust,
    ParameterList,
    ParameterOptimize,
    ParameterRegister,
    PerformanceRecord,
    RateGet,
    SessionCreate,
    SessionEnd,
    SessionGet,
    SessionsList,
    SessionUpdate,
)
from schemas.errors import BadRequest, NotFound
from workers.learning.records import learning_records
from workers.learning.tuning import rates, trends
from workers.learning.tuning import sessions as sessions_module
from workers.learning.tuning.parameters import ParameterStore
from workers.learning.tuning.rates import JobOutcome, choose
from workers.learning.tuning.sessions import Sessions
from workers.learning.tuning.tuning import Tuning


def a_set(difference: float, *, margin: float | None = None) -> SetResult:
    """A set on which the adapter differs so much."""
    return SetResult(
        name="target",
        items=300,
        clusters=300,
        score=0.5 + difference,
        score_before=0.5,
        difference=difference,
        low=difference - 0.05,
        high=difference + 0.05,
        confidence=0.95,
        margin=margin,
    )


def ended(gain: float, loss: float = 0.0, verdict: str = "refused", **changes: Any) -> JobOutcome:
    """A job whose adapter gained and lost so much, trained with 2e-4 for 3 epochs."""
    result = GateResult(
        evaluation_id="eval-1",
        job_id="job-1",
        model="m",
        model_sha256="",
        adapter="a",
        against="",
        dataset="d",
        version=1,
        at=0.0,
        verdict=verdict,  # type: ignore[arg-type]
        reasons=[],
        target=a_set(gain),
        retention=a_set(-loss, margin=0.03),
        earlier=[],
        backward_transfer=None,
        alpha=0.05,
        corrected_alpha=0.05,
        attempt=1,
        min_gain=0.1,
        power=0.9,
        detectable_gain=0.05,
        metric="exact",
        took_s=1.0,
    )
    values = {"job_id": "job-1", "model": "m", "learning_rate": 2e-4, "epochs": 3.0, "result": result, **changes}
    return JobOutcome(**values)


def test_the_first_training_begins_with_the_documented_rate() -> None:
    """Nothing is known before the first job."""
    chosen = choose([])

    assert (chosen.learning_rate, chosen.epochs) == (2e-4, 3.0)
    assert "nothing was trained" in chosen.reason


@pytest.mark.parametrize(
    ("outcome", "rate", "epochs", "words"),
    [
        (ended(0.3, 0.1), 1e-4, 3.0, "forgot 10.0 points"),
        (ended(0.0), 4e-4, 3.0, "gained nothing"),
        (ended(0.3, verdict="passed"), 2.2e-4, 3.0, "passed with 30.0 points"),
        (ended(0.04), 2e-4, 4.5, "gained only 4.0 points"),
        (ended(0.3, failure="loss", result=None), 2e-5, 3.0, "no number"),
        (ended(0.3, verdict="passed", steps=100, best_step=40), 2.2e-4, 1.5, "passed"),
        (ended(0.3, verdict="passed", steps=100, best_step=90), 2.2e-4, 3.0, "passed"),
        (ended(0.3, failure="disk", result=None), 2e-4, 3.0, "nothing was trained yet"),
    ],
)
def test_each_end_of_a_job_moves_rate_and_length_as_the_formula_says(
    outcome: JobOutcome, rate: float, epochs: float, words: str
) -> None:
    """Every branch of the formula, one after another."""
    chosen = choose([outcome])

    assert chosen.learning_rate == pytest.approx(rate)
    assert chosen.epochs == pytest.approx(epochs)
    assert words in chosen.reason


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1), st.integers(0, 100)), max_size=60))
def test_the_choice_never_leaves_its_range(history: list[tuple[float, float, int]]) -> None:
    """Whatever jobs end like, and however often, rate and length stay usable."""
    chosen = choose([])
    outcomes: list[JobOutcome] = []
    for gain, loss, best in history:
        outcomes.append(
            ended(gain, loss, learning_rate=chosen.learning_rate, epochs=chosen.epochs, steps=100, best_step=best)
        )
        chosen = choose(outcomes)

    assert rates.LEAST_RATE <= chosen.learning_rate <= rates.MOST_RATE
    assert rates.LEAST_EPOCHS <= chosen.epochs <= rates.MOST_EPOCHS


def test_a_trend_needs_three_earlier_values() -> None:
    """Two points always lie on a line."""
    assert trends.trend_of("loss", [3.0, 2.0, 1.0]).trend == "insufficient_data"
    assert trends.trend_of("loss", [4.0, 3.0, 2.0, 1.0]).trend == "improving"


@pytest.mark.parametrize(
    ("metric", "values", "trend"),
    [
        ("accuracy", [0.1, 0.2, 0.3, 0.4], "improving"),
        ("accuracy", [0.4, 0.3, 0.2, 0.1], "declining"),
        ("loss", [0.1, 0.2, 0.3, 0.4], "declining"),
        ("loss", [0.5, 0.5004, 0.5, 0.5003], "stable"),
    ],
)
def test_whether_more_is_better_depends_on_the_metric(metric: str, values: list[float], trend: str) -> None:
    """A growing loss is bad, a growing accuracy good."""
    assert trends.trend_of(metric, values).trend == trend


def test_only_the_last_values_make_the_trend() -> None:
    """A session that learned long ago and stands still now is stable."""
    assert trends.trend_of("loss", [9.0, 5.0, 3.0, *[1.0] * 11]).trend == "stable"


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50))
def test_correlation_is_a_number_between_minus_one_and_one(values: list[float]) -> None:
    """Also of series that hardly vary, and never not-a-number."""
    found = trends.correlation(values, [float(at) for at in range(len(values))])

    assert found is None or -1 <= found <= 1
    assert trends.correlation([2.0] * len(values), values) is None


def test_a_correlation_past_the_largest_float_is_none() -> None:
    """It is no error either."""
    assert trends.correlation([1e200, -1e200, 3.0], [1.0, 2.0, 3.0]) is None


@pytest.mark.parametrize(("hidden", "rate"), [(0, 2e-4), (192, 7.5e-4), (2_000, 5e-4), (4_096, 2.857e-4)])
def test_wider_models_begin_slower(hidden: int, rate: float) -> None:
    """The published fit, never more than small models bear, and a fixed rate where the width is not known."""
    assert rates.first_rate(hidden) == pytest.approx(rate, rel=1e-3)
    assert choose([], rates.first_rate(hidden)).learning_rate == pytest.approx(rate, rel=1e-3)


async def no_width(model: str) -> int:
    """Nobody knows."""
    return 0


class Told:
    """Keeps what is published."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    async def __call__(self, subject: str, body: Any) -> None:
        self.events.append((subject, body))

    def subjects(self) -> list[str]:
        """What was published, in order."""
        return [subject.removeprefix("learning.session.") for subject, _ in self.events]


@asynccontextmanager
async def opened(tmp_path: Path) -> AsyncIterator[Records]:
    """An open file of records."""
    records = learning_records(tmp_path / "learning.db")
    await records.open()
    try:
        yield records
    finally:
        await records.close()


async def test_a_session_keeps_measurements_trends_and_its_rate(tmp_path: Path) -> None:
    """What is told comes back, merged, with what follows from it."""
    told = Told()
    async with opened(tmp_path) as records:
        sessions = Sessions(records, told)
        begun = await sessions.create(SessionCreate(model="m", session_id="s", parameters={"learning_rate": 0.02}))
        for loss in (1.0, 2.0, 3.0, 4.0):
            session = await sessions.update(SessionUpdate(session_id="s", status="running", metrics={"loss": loss}))
        listed = await sessions.list(SessionsList(model="m"))

    assert (begun.status, begun.progress, begun.phase, begun.learning_rate) == (
        "initialized",
        0.0,
        "initialization",
        0.02,
    )
    assert [one.metrics["loss"] for one in session.history] == [1.0, 2.0, 3.0, 4.0]
    assert session.trends[0].trend == "declining"
    assert [advice.parameter for advice in session.advice] == ["max_grad_norm", "learning_rate"]
    assert session.advice[1].value == pytest.approx(0.01)
    assert listed.total == 1
    assert listed.sessions[0].history == []
    assert told.subjects() == ["started", *["measured"] * 4, "declined"]
    assert told.events[0][1].parameters == {"learning_rate": 0.02}


async def test_the_end_of_a_session_is_told_with_what_it_came_to(tmp_path: Path) -> None:
    """The phase before, how long it took, how much was told, and where each metric went."""
    told = Told()
    async with opened(tmp_path) as records:
        sessions = Sessions(records, told)
        await sessions.create(SessionCreate(model="m", session_id="s"))
        for loss in (3.0, 2.0):
            await sessions.update(SessionUpdate(session_id="s", metrics={"loss": loss, "accuracy": 0.9}))
        await sessions.end(SessionEnd(session_id="s"))

    ended = told.events[-1][1]
    assert (ended.status, ended.old_phase, ended.phase, ended.values) == ("completed", "evaluation", "idle", 4)
    assert [(trend.metric, trend.initial, trend.latest) for trend in ended.trends] == [
        ("loss", 3.0, 2.0),
        ("accuracy", 0.9, 0.9),
    ]
    assert ended.took_s >= 0.0


async def test_a_loss_worse_than_the_last_sessions_slows_the_next(tmp_path: Path) -> None:
    """Each such measurement takes a tenth of the rate away, as LearningManager did."""
    async with opened(tmp_path) as records:
        sessions = Sessions(records, Told())
        await sessions.create(SessionCreate(model="m", session_id="old"))
        await sessions.update(SessionUpdate(session_id="old", metrics={"loss": 1.0}))
        await sessions.end(SessionEnd(session_id="old"))
        await sessions.create(SessionCreate(model="m", session_id="new"))
        worse = await sessions.update(SessionUpdate(session_id="new", metrics={"loss": 1.5}))
        better = await sessions.update(SessionUpdate(session_id="new", metrics={"loss": 0.5}))

    assert worse.learning_rate == pytest.approx(0.009)
    assert better.learning_rate == pytest.approx(0.009)


async def test_a_known_session_begins_anew_and_an_unknown_one_is_named(tmp_path: Path) -> None:
    """Creating replaces; everything else needs a session."""
    async with opened(tmp_path) as records:
        sessions = Sessions(records, Told())
        await sessions.create(SessionCreate(model="m", session_id="s"))
        await sessions.update(SessionUpdate(session_id="s", metrics={"loss": 1.0}))
        again = await sessions.create(SessionCreate(model="n", session_id="s"))
        with pytest.raises(NotFound, match="'other'"):
            await sessions.get(SessionGet(session_id="other"))

    assert (again.model, again.history) == ("n", [])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308])
async def test_a_measurement_that_is_no_number_is_refused(tmp_path: Path, value: float) -> None:
    """It would poison every trend after it; nothing of the update is kept."""
    async with opened(tmp_path) as records:
        sessions = Sessions(records, Told())
        await sessions.create(SessionCreate(model="m", session_id="s"))
        with pytest.raises(BadRequest, match=r"'loss'.*finite"):
            await sessions.update(SessionUpdate(session_id="s", progress=0.5, metrics={"loss": value}))
        session = await sessions.get(SessionGet(session_id="s"))

    assert (session.progress, session.history) == (0.0, [])


async def test_a_session_nobody_ends_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A day after its beginning it is over, once."""
    told = Told()
    async with opened(tmp_path) as records:
        sessions = Sessions(records, told)
        await sessions.create(SessionCreate(model="m", session_id="s"))
        await sessions.expire()
        now = time.time()
        monkeypatch.setattr(sessions_module.time, "time", lambda: now + sessions_module.TIMEOUT_S + 1)
        await sessions.expire()
        await sessions.expire()
        session = await sessions.get(SessionGet(session_id="s"))

    assert (session.status, session.phase) == ("timeout", "idle")
    assert told.subjects() == ["started", "ended"]


async def test_the_sessions_of_a_training_follow_it(tmp_path: Path) -> None:
    """The first word of a job begins its session, its end ends it, and a job without one is passed over."""
    async with opened(tmp_path) as records:
        sessions = Sessions(records, Told())
        tuning = Tuning(records, sessions, "default", no_width)
        await tuning.follow("job-1", "m", progress=0.25, metrics={"loss": 2.0})
        await tuning.follow("job-1", "m", progress=0.5, metrics={"loss": 1.0})
        await tuning.followed("job-1", "finished")
        await tuning.followed("job-2", "failed")
        session = await sessions.get(SessionGet(session_id="job-1"))

    assert (session.status, session.progress, len(session.history)) == ("finished", 0.5, 2)


async def test_the_rate_of_a_model_comes_from_its_own_jobs(tmp_path: Path) -> None:
    """What happened to another model says nothing; a second word on a job replaces the first."""
    async with opened(tmp_path) as records:
        tuning = Tuning(records, Sessions(records, Told()), "m", no_width)
        await tuning.learned(ended(0.3, 0.1, job_id="job-1"))
        await tuning.learned(ended(0.0, job_id="job-1"))
        await tuning.learned(ended(0.3, 0.1, job_id="job-2", model="other"))
        found = await tuning.rate(RateGet())

    assert (found.model, found.evidence) == ("m", ["job-1"])
    assert found.learning_rate == pytest.approx(4e-4)
    assert "retention below -margin" in found.formula


def a_parameter(**changes: Any) -> ParameterRegister:
    """A temperature from 0 to 1, now 0.5, in steps of 0.1."""
    values = {"name": "temperature", "min_value": 0.0, "max_value": 1.0, "current_value": 0.5, "step_size": 0.1}
    return ParameterRegister(**{**values, **changes})


async def test_parameters_move_by_the_sign_of_their_correlation(tmp_path: Path) -> None:
    """One that goes along with the metric goes up, one that goes against it down, an unrelated one stays."""
    async with opened(tmp_path) as records:
        parameters = ParameterStore(records)
        await parameters.register(a_parameter())
        await parameters.register(a_parameter(name="noise", current_value=0.05))
        await parameters.register(a_parameter(name="still"))
        for at in range(10):
            values = {"temperature": at / 10, "noise": 1 - at / 10, "still": 0.5}
            await parameters.record(PerformanceRecord(metric="score", value=float(at), parameters=values))
        found = await parameters.optimize(ParameterOptimize(metric="score"))

    assert found.adjustments.keys() == {"temperature", "noise"}
    assert found.adjustments["temperature"].suggested_value == pytest.approx(0.6)
    assert found.adjustments["temperature"].confidence == pytest.approx(1.0)
    assert found.adjustments["noise"].suggested_value == 0.0


async def test_parameters_stay_within_their_range(tmp_path: Path) -> None:
    """A value outside is refused with the range, and a range that holds nothing is none."""
    async with opened(tmp_path) as records:
        parameters = ParameterStore(records)
        await parameters.register(a_parameter())
        with pytest.raises(BadRequest, match="0 to 1"):
            await parameters.adjust(ParameterAdjust(name="temperature", value=1.5))
        with pytest.raises(BadRequest, match="min_value"):
            await parameters.register(a_parameter(min_value=2.0))
        with pytest.raises(BadRequest, match="finite"):
            await parameters.register(a_parameter(max_value=math.inf))
        with pytest.raises(NotFound, match="'unknown'"):
            await parameters.adjust(ParameterAdjust(name="unknown", value=0.5))
        adjusted = await parameters.adjust(ParameterAdjust(name="temperature", value=0.75))
        (listed,) = (await parameters.list(ParameterList())).parameters

    assert listed == adjusted
    assert listed.current_value == 0.75


async def test_performance_needs_numbers_and_a_known_metric(tmp_path: Path) -> None:
    """Not-a-number is refused wherever it hides, and nothing follows from nothing."""
    async with opened(tmp_path) as records:
        parameters = ParameterStore(records)
        with pytest.raises(BadRequest, match="finite"):
            await parameters.record(PerformanceRecord(metric="score", value=math.nan))
        with pytest.raises(BadRequest, match="'a'"):
            await parameters.record(PerformanceRecord(metric="score", value=1.0, parameters={"a": math.inf}))
        with pytest.raises(NotFound, match="'score'"):
            await parameters.optimize(ParameterOptimize(metric="score"))
