"""The rules of the old learning agents: scores, pools, words for states, topics, and what is suggested of an agent."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.bodies.accounts import TrustOutcome
from schemas.bodies.learning_jobs import JobInfo, JobProgress, JobState
from schemas.bodies.learning_tuning import Advice, MetricTrend, Parameter, SessionEvent
from workers.gateway.legacy.agent import Fields, Refused
from workers.gateway.legacy.agents import (
    active_learning,
    fine_tuner,
    learning_adjuster,
    learning_manager,
    opportunity_detector,
    self_training,
    trainings,
)
from workers.gateway.legacy.agents.asked import given as asked_for
from workers.gateway.legacy.agents.asked import iso, iso_utc, learning_id
from workers.gateway.legacy.agents.interactions import WEIGHTS, worth_of
from workers.gateway.legacy.agents.learning_adjuster import Load
from workers.gateway.legacy.agents.learning_manager import Manager
from workers.gateway.legacy.agents.learning_orchestration import cycle_key

# Scores ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "answer", "detector", "score"),
    [
        ("No, that's not it", "", "explicit_correction", 0.6),
        ("no, incorrect, wrong, that's not, actually", "", "explicit_correction", 1.0),
        ("Nothing of it", "", "explicit_correction", 0.0),
        ("but however", "", "implicit_correction", 0.4),
        ("although", "", "implicit_correction", 0.4),
        ("one two three four five six seven eight nine ten eleven", "", "implicit_correction", 0.1),
        ("one two three four five six seven eight nine ten", "", "implicit_correction", 0.0),
        ("that is incorrect", "", "positive_reinforcement", 0.2),
        ("Yes, exactly right", "", "positive_reinforcement", 0.6),
        ("Where is it?", "here", "question_answer", 0.1),
        ("where is it", "word " * 21, "question_answer", 0.2),
        ("Could you say it", "word " * 51, "question_answer", 0.3),
        ("say it", "word " * 51, "question_answer", 0.0),
        ("explain and compare", "a\n\nb\n\nc", "complex_reasoning", 0.4),
        ("explain", "```x```", "complex_reasoning", 0.3),
        ("explain", "a\n\nb", "complex_reasoning", 0.1),
    ],
)
def test_each_detector_counts_its_words(user: str, answer: str, detector: str, score: float) -> None:
    """As the table of the old detector says, quirks of its substrings among them."""
    assert worth_of(user, answer).scores[detector] == pytest.approx(score)


def test_the_highest_detector_names_the_category_and_the_first_of_equals_wins() -> None:
    """Also where nothing scored at all."""
    assert worth_of("", "").category == "explicit_correction"
    assert worth_of("explain, compare, analyze", "a\n\nb\n\nc").category == "complex_reasoning"
    assert worth_of("wrong, instead, rather: but yes", "").category == "implicit_correction"


@given(st.text(max_size=200), st.text(max_size=200))
def test_a_score_is_the_weighted_sum_and_never_past_one(user: str, answer: str) -> None:
    """Whatever is said."""
    worth = worth_of(user, answer)

    assert 0.0 <= worth.score <= 1.0
    assert worth.score == pytest.approx(sum(WEIGHTS[name] * score for name, score in worth.scores.items()))


@pytest.mark.parametrize(
    ("frames", "waiting"),
    [
        ([b'{"type": "interaction", "user_input": "no, wrong"}'], 1),
        ([b'{"type": "heartbeat"}'], 0),
        ([b'["interaction"]'], 0),
        ([b"\xff"], 0),
        ([b"{"], 0),
        ([b"topic", b'{"type": "interaction"}'], 0),
    ],
)
def test_only_interactions_wait_to_be_looked_at(frames: list[bytes], waiting: int) -> None:
    """Whatever else a publisher says is passed over."""
    desk = opportunity_detector._Desk()

    opportunity_detector.hear(frames, desk)

    assert len(desk.waiting) == waiting


def test_of_too_many_interactions_the_oldest_go() -> None:
    """A thousand wait at most."""
    desk = opportunity_detector._Desk()
    for number in range(1_002):
        opportunity_detector.hear([b'{"type": "interaction", "number": %d}' % number], desk)

    assert (len(desk.waiting), desk.waiting[0]["number"], desk.heard) == (1_000, 2, 1_002)


# Cycles and jobs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "resources",
    [
        None,
        {},
        [],
        {"ram": 1},
        {"cpu": 0},
        {"cpu": -1},
        {"cpu": 101},
        {"memory": 17},
        {"network": 1001},
        {"cpu": "10"},
        {"cpu": True},
        {"cpu": float("nan")},
        {"cpu": 10, "tea": 1},
    ],
)
def test_resources_no_pool_has_are_refused(resources: Any) -> None:
    """Unknown kinds, nothing, and amounts past a pool, in the agent's words."""
    with pytest.raises(Refused, match=r"^Invalid resource requirements$"):
        self_training.resources_of({"resources": resources})


def test_the_whole_of_each_pool_is_a_valid_amount() -> None:
    """The limits themselves are allowed."""
    assert self_training.resources_of({"resources": dict(self_training.POOLS)}) == self_training.POOLS


def test_running_cycles_take_from_the_pools() -> None:
    """What is left decides, pool by pool."""
    held = {"first": {"cpu": 80, "memory": 4}, "second": {"gpu": 100}}

    assert self_training.fits({"cpu": 20, "memory": 12}, held)
    assert not self_training.fits({"cpu": 20.5}, held)
    assert not self_training.fits({"cpu": 1, "gpu": 1}, held)
    assert self_training.fits({"storage": 100}, held)


def job(state: JobState, **changes: Any) -> JobInfo:
    """A training in a state."""
    values: dict[str, Any] = {
        "job_id": "job-1",
        "model": "m",
        "dataset": "d",
        "version": 1,
        "state": state,
        "reason": "why",
        "priority": 3,
        "created_at": 1.0,
        "started_at": 2.0,
        "finished_at": None,
        "spent_s": 0.0,
        "attempts": 1,
        "rung": 0,
        "device": "cpu",
        "config": {},
        "progress": None,
        "adapter": "",
        "adapter_path": "",
        "verdict": "",
        "opportunities": [],
        "promote": "ask",
    }
    return JobInfo(**{**values, **changes})


@pytest.mark.parametrize(
    ("state", "cycle", "tuning"),
    [
        ("queued", "pending", "pending"),
        ("waiting", "pending", "pending"),
        ("training", "running", "running"),
        ("evaluating", "running", "running"),
        ("promoting", "running", "running"),
        ("passed", "completed", "completed"),
        ("promoted", "completed", "completed"),
        ("stopped", "paused", "cancelled"),
        ("failed", "failed", "failed"),
        ("refused", "failed", "failed"),
        ("underpowered", "failed", "failed"),
    ],
)
def test_trainings_are_told_of_in_the_old_words(state: JobState, cycle: str, tuning: str) -> None:
    """What the gate refused has failed, with its reason."""
    stand = self_training.stand_of(job(state))

    assert (stand.status, fine_tuner.status_of(job(state))) == (cycle, tuning)
    assert (stand.error is not None) == (cycle == "failed")


def test_progress_is_that_of_the_steps_and_full_only_at_the_end() -> None:
    """The gate comes after the last step."""
    told = JobProgress(job_id="job-1", model="m", phase="training", step=3, steps=4, loss=0.5)

    assert trainings.progress_of(job("queued")) == 0.0
    assert trainings.progress_of(job("training", progress=told)) == 0.75
    assert trainings.progress_of(job("evaluating", progress=msgspec.structs.replace(told, step=4))) < 1.0
    assert trainings.progress_of(job("promoted")) == 1.0
    assert trainings.progress_of(job("refused", adapter_path="adapter")) < 1.0


def test_a_config_is_read_by_our_names_and_by_those_of_peft() -> None:
    """Only what it names is asked for; the few-shot routine brings its own shape."""
    target = trainings.named_target({"dataset_name": "ahoy", "dataset_version": 2})
    assert target is not None
    config = {"lr": 0.001, "num_train_epochs": "2", "batch_size": 4, "few_shot": True, "lora": {"lora_alpha": 8}}

    start = trainings.start_of("job-1", target, config)

    assert (start.dataset, start.version, start.opportunity_id) == ("ahoy", 2, None)
    assert (start.learning_rate, start.epochs, start.batch_size, start.is_now) == (0.001, 2.0, 4, True)
    assert (start.lora.rank, start.lora.alpha) == (4, 8.0)
    assert trainings.start_of("job-1", target, {}).lora.rank == 8
    assert trainings.named_target({"epochs": 3}) is None


def test_a_config_that_cannot_be_trained_with_is_named() -> None:
    """The field and what it should be."""
    with pytest.raises(Refused, match=r"config cannot be trained with.*learning_rate"):
        trainings.start_of("job-1", trainings.Target(dataset="d"), {"learning_rate": "fast"})


# Names and times ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["s", "session-1", "a.b:c_d-e", "x" * 128])
def test_ids_of_ours_stay_as_they_are(text: str) -> None:
    """So that a session is found under its own name on the bus."""
    assert learning_id(text) == text


@given(st.text(min_size=1, max_size=300), st.text(min_size=1, max_size=300))
def test_any_text_has_an_id_of_its_own(first: str, second: str) -> None:
    """The same for the same text, another for another."""
    assert learning_id(first) == learning_id(first)
    assert (learning_id(first) == learning_id(second)) == (first == second)
    assert len(learning_id(first)) <= 128


def test_a_missing_field_is_told_in_quotes_and_a_null_one_is_there() -> None:
    """As a Python dictionary names a missing key."""
    with pytest.raises(Refused, match=r"^'agent_id'$"):
        asked_for(Fields(), "agent_id")
    assert asked_for(Fields(agent_id=None), "agent_id") is None


def test_times_have_no_zone() -> None:
    """Local for cycles and jobs, UTC for opportunities."""
    assert iso(None) is None
    assert iso_utc(0.0) == "1970-01-01T00:00:00"


def test_later_cycles_sort_first_whatever_zone_they_name() -> None:
    """A time without one is UTC."""
    keys = [cycle_key(at, "c") for at in ("2025-08-19T12:00:00", "2025-08-19T13:30:00+02:00", "2025-08-19T11:00:00Z")]

    assert keys == sorted(keys)


# Sessions -------------------------------------------------------------------------------------------------------------


def test_the_eleventh_session_evicts_the_oldest() -> None:
    """By when it was created; one that begins anew is young again, and evicts nobody."""
    manager = Manager()
    for number in range(10):
        assert manager.begin(f"s{number}", float(number)) == []

    assert manager.begin("s0", 20.0) == []
    assert manager.begin("s10", 21.0) == ["s1"]
    assert len(manager.sessions) == learning_manager.MOST_SESSIONS


def test_the_rate_falls_where_a_loss_is_worse_than_the_last_deleted_sessions() -> None:
    """By a tenth each time, and never without a loss to compare with."""
    manager = Manager()
    manager.measured({"loss": 9.0})
    assert manager.learning_rate == learning_manager.FIRST_RATE

    manager.archived = {"loss": 1.0}
    for metrics in ({"loss": 1.5}, {"loss": 1.0}, {"accuracy": 0.5}, {"loss": 2.0}):
        manager.measured(metrics)

    assert manager.learning_rate == pytest.approx(0.01 * 0.9 * 0.9)


def test_sessions_of_yesterday_are_not_active() -> None:
    """The learning service has ended them."""
    manager = Manager(sessions={"old": 0.0, "new": 90_000.0})

    assert manager.active(100_000.0) == 1


ADVICE = Advice(parameter="learning_rate", value=0.01, factor=0.5, reason="loss got worse")
TREND = MetricTrend(metric="loss", trend="improving", slope=-1.0, initial=3.0, latest=1.0, best=1.0, average=2.0)


@pytest.mark.parametrize(
    ("what", "topic", "event_type", "more"),
    [
        ("started", "LEARNING_SESSION_START", "session_start", {"parameters": {"batch_size": 8}}),
        (
            "measured",
            "LEARNING_METRIC",
            "metric_update",
            {"metric_type": "loss", "value": 1.0, "trend": "improving", "phase": "evaluation"},
        ),
        (
            "converged",
            "LEARNING_CONVERGENCE",
            "convergence_detected",
            {"recommendation": "prepare_for_consolidation"},
        ),
        ("stagnated", "LEARNING_STAGNATION", "stagnation_detected", {"metric_type": "loss", "recommendations": None}),
        (
            "declined",
            "LEARNING_DECLINE",
            "performance_decline",
            {"metric_type": "loss", "current_value": 1.0, "recommendations": None},
        ),
        (
            "phase",
            "LEARNING_PHASE_TRANSITION",
            "phase_transition",
            {"old_phase": "active_learning", "new_phase": "evaluation"},
        ),
        ("ended", "LEARNING_SESSION_END", "session_end", {"status": "completed", "summary": None}),
    ],
)
def test_every_event_has_its_topic_and_fields(what: str, topic: str, event_type: str, more: dict[str, Any]) -> None:
    """As subscribers of the monitor read them."""
    event = SessionEvent(
        session_id="s",
        model="m",
        at=5.0,
        metric="loss",
        value=1.0,
        trend="improving",
        phase="evaluation",
        old_phase="active_learning",
        status="completed",
        advice=[ADVICE],
        parameters={"batch_size": 8},
        took_s=7.0,
        values=3,
        trends=[TREND],
    )

    told = active_learning.told_of(what, event)

    assert told is not None
    assert told[0] == topic
    fields = told[1]
    nested: dict[str, Any] = {name: None for name in ("recommendations", "summary") if name in fields}
    assert {**fields, **nested} == {
        "timestamp": 5.0,
        "event_type": event_type,
        "session_id": "s",
        **more,
    }
    if "recommendations" in fields:
        assert [one["type"] for one in fields["recommendations"]] == ["learning_rate"]
    if "summary" in fields:
        assert fields["summary"] == {
            "session_id": "s",
            "duration": 7.0,
            "status": "completed",
            "total_metrics": 3,
            "final_phase": "active_learning",
            "performance_summary": {
                "loss": {"initial": 3.0, "final": 1.0, "best": 1.0, "average": 2.0, "improvement": 2.0}
            },
        }


def test_what_the_monitor_did_not_know_is_not_told() -> None:
    """Somebody may publish anything under these subjects."""
    assert active_learning.told_of("renamed", SessionEvent(session_id="s", model="m", at=1.0)) is None


# Agents ---------------------------------------------------------------------------------------------------------------


def outcome(at: float, *, success: bool = True, response_s: float | None = None) -> TrustOutcome:
    """One report of an agent."""
    return TrustOutcome(success=success, weight=1.0, response_time_s=response_s, note="", reported_by="", at=at)


def test_only_the_last_day_is_looked_at() -> None:
    """What was reported before says nothing of today, and neither does the trust that came of it."""
    now = 1_000_000.0
    old, new = now - 90_000, now - 60
    reported = [outcome(new, response_s=3.0), outcome(new, success=False), outcome(old, success=False, response_s=9.0)]

    assert learning_adjuster.load_of(reported, 0.5, now) == Load(response_s=3.0, errors=0.5, trust=0.5)
    assert learning_adjuster.load_of([outcome(old)], 0.9, now) == Load()


@pytest.mark.parametrize(
    ("load", "found"),
    [
        (Load(response_s=1.0, errors=0.05, cpu=0.8, memory=0.8, trust=0.7), []),
        (Load(), []),
        (Load(response_s=1.5), [("performance", "medium", "decrease")]),
        (Load(response_s=2.5), [("performance", "high", "decrease")]),
        (Load(errors=0.06), [("reliability", "medium", "decrease")]),
        (Load(cpu=0.9), [("resource", "medium", "decrease")]),
        (Load(memory=0.97), [("resource", "high", "decrease")]),
        (Load(trust=0.6), [("trust", "medium", "increase")]),
        (Load(trust=0.1), [("trust", "high", "increase")]),
        (Load(response_s=9.0, trust=0.6), [("performance", "high", "decrease"), ("trust", "medium", "increase")]),
    ],
)
def test_suggestions_follow_the_thresholds(load: Load, found: list[tuple[str, str, str]]) -> None:
    """The limits themselves are still fine."""
    suggestions = learning_adjuster.suggestions_of(load)

    assert [(one["type"], one["severity"], one["adjustment"]["suggested_value"]) for one in suggestions] == found
    for one in suggestions:
        assert set(one) == {"type", "severity", "message", "adjustment"}
        assert one["adjustment"]["current_value"] is None


@pytest.mark.parametrize(
    ("suggested", "value"),
    [
        ("increase", 0.6),
        ("decrease", 0.4),
        (0.9, 0.9),
        (7, 1.0),
        ("down", None),
        (None, None),
        (True, None),
        ([], None),
    ],
)
def test_an_adjustment_is_one_step_or_a_value_within_the_range(suggested: object, value: float | None) -> None:
    """What says neither changes nothing."""
    parameter = Parameter(
        name="p",
        kind="custom",
        min_value=0.0,
        max_value=1.0,
        current_value=0.5,
        step_size=0.1,
        description="",
        metadata={},
        changed_at=1.0,
    )

    assert learning_adjuster.moved(parameter, suggested) == (None if value is None else pytest.approx(value))
