"""What `olympus train` and `olympus learn` print, and the curves they draw."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.cli import curves, learn_data, learn_found, learn_gate, train_jobs, train_view
from bus.cli.durations import amount
from bus.cli.failures import UsageError
from schemas.bodies.learning import Evidence, Opportunity, PriorityTerms
from schemas.bodies.learning_data import DatasetInfo, LineProblem
from schemas.bodies.learning_gate import GateItem, GateResult, SetResult, WatchArm
from schemas.bodies.learning_jobs import CurvePoint, JobInfo, JobProgress, LogEntry, Schedule


def a_job(**changes: Any) -> JobInfo:
    """A job in the middle of its training."""
    values: dict[str, Any] = {
        "job_id": "job-1",
        "model": "olympus-demo",
        "dataset": "ahoy",
        "version": 2,
        "state": "training",
        "reason": "",
        "priority": 3,
        "created_at": 1_000.0,
        "started_at": 1_001.0,
        "finished_at": None,
        "spent_s": 61.0,
        "attempts": 1,
        "rung": 0,
        "device": "cpu",
        "config": {},
        "progress": JobProgress(
            job_id="job-1",
            model="olympus-demo",
            phase="training",
            step=40,
            steps=100,
            loss=1.2345,
            learning_rate=2e-4,
            tokens_per_s=1234.5,
            eta_s=90.0,
            memory_bytes=400 * 2**20,
        ),
        "adapter": "",
        "adapter_path": "",
        "verdict": "",
        "opportunities": [],
        "promote": "auto",
        "power": "a gain of 10 points is seen with power 0.97",
    }
    return JobInfo(**{**values, **changes})


def points(losses: list[float]) -> list[CurvePoint]:
    """A curve with these losses, one a step."""
    return [
        CurvePoint(step=at, at=float(at), loss=loss, eval_loss=None, learning_rate=1e-4)
        for at, loss in enumerate(losses, 1)
    ]


def test_a_status_tells_every_known_fact_of_a_job() -> None:
    """What is known has a line, what is not has none."""
    lines = train_jobs.status_lines(a_job(), now=1_060.0)

    assert "dataset        ahoy version 2" in lines
    assert "step           40 of 100" in lines
    assert "trained        1 min 1 s in 1 try" in lines
    assert "memory         400 MiB on cpu" in lines
    assert "left           1 min 30 s" in lines
    assert not any(line.startswith(("ladder", "verdict", "adapter")) for line in lines)


def test_a_list_of_jobs_shows_what_stands_in_the_way() -> None:
    """The reason of a waiting job is in its row."""
    waiting = a_job(state="waiting", reason="the machine is busy", progress=None)

    head, row = train_jobs.list_lines([waiting])

    assert head.split()[:3] == ["JOB", "STATE", "DATASET"]
    assert row.endswith("the machine is busy")
    assert train_jobs.list_lines([])[0].startswith("there is no job yet")


def test_start_wants_a_dataset_or_an_opportunity() -> None:
    """Neither and both are a mistake, found before anything is asked."""
    parser = argparse.ArgumentParser()
    train_jobs.ACTIONS[0].configure(parser)

    for words in ([], ["ahoy", "--opportunity", "opp-1"]):
        with pytest.raises(UsageError, match="either a DATASET or --opportunity"):
            train_jobs.ACTIONS[0].run(parser.parse_args(words))
    with pytest.raises(UsageError, match="--memory"):
        train_jobs.ACTIONS[0].run(parser.parse_args(["ahoy", "--memory", "much"]))


@given(
    st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=80),
    st.integers(20, 200),
    st.integers(1, 20),
)
def test_a_chart_stays_within_its_size(losses: list[float], width: int, height: int) -> None:
    """Whatever the values and the terminal, no line is longer and there are no more lines."""
    (curve, _) = curves.curves_of(points(losses))

    head, *rows = curves.chart(curve, width, height)

    assert len(head) <= width
    assert len(rows) == height
    assert all(len(row) <= max(width, 20) for row in rows)
    assert any(character >= "\u2801" for row in rows for character in row)


def test_a_falling_loss_is_drawn_from_the_upper_left_to_the_lower_right() -> None:
    """The first dots are in the first line, the last in the last."""
    (curve, _) = curves.curves_of(points([4.0, 3.0, 2.0, 1.0]))

    _, *rows = curves.chart(curve, 40, 4)
    ends = [max((at for at, character in enumerate(row) if character >= "\u2801"), default=0) for row in rows]

    assert ends == sorted(ends)
    assert rows[0].lstrip().startswith("4 |")
    assert rows[-1].lstrip().startswith("1 |")


def test_values_that_are_no_numbers_are_left_out_of_a_curve() -> None:
    """A diverged training has infinite losses; the rest can still be seen."""
    (loss, _) = curves.curves_of(points([1.0, float("inf"), float("nan"), 2.0]))

    assert [y for _, y in loss.points] == [1.0, 2.0]


@pytest.mark.parametrize("suffix", curves.PLOT_SUFFIXES)
def test_a_plot_is_written_as_its_name_says(tmp_path: Path, suffix: str) -> None:
    """A PNG begins with its signature, an SVG is XML."""
    path = tmp_path / f"curve{suffix}"

    curves.check_plot(path)
    curves.write_plot(path, "job-1", points([2.0, 1.0]))

    assert path.read_bytes().startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")


def test_a_plot_to_nowhere_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    """A wrong ending and a missing folder are named; a job without a curve has nothing to plot."""
    with pytest.raises(UsageError, match=r"\.png or \.svg"):
        curves.check_plot(tmp_path / "curve.pdf")
    with pytest.raises(UsageError, match="no folder"):
        curves.check_plot(tmp_path / "missing" / "curve.png")
    with pytest.raises(UsageError, match="no curve yet"):
        curves.write_plot(tmp_path / "curve.png", "job-1", [])


@pytest.mark.parametrize(("columns", "rows"), [(20, 8), (80, 24), (200, 60)])
def test_the_live_view_fits_any_terminal(columns: int, rows: int) -> None:
    """A small one loses the curves first, never the head and the last line."""
    entry = LogEntry(number=1, at=1_000.0, event="started", message="first\x1b[31m step")

    lines = train_view.frame(a_job(), points([3.0, 2.0, 1.0]), [entry] * 9, columns, rows, now=1_060.0)

    assert lines[0].startswith("job-1  olympus-demo  ahoy:2  training")
    assert "40/100" in lines[1]
    assert "q leaves" in lines[-1]
    assert "\x1b" not in "".join(lines)
    assert len(lines) <= max(rows + 2, 9)


def test_the_view_of_an_ended_job_tells_its_reason_and_its_steps() -> None:
    """Its progress is over, its curve is not: a job of three steps did not take none."""
    ended = a_job(state="refused", reason="the retention set fell by 5.7 points", progress=None)

    lines = train_view.frame(ended, points([3.0, 2.0, 1.0]), [], 80, 40, now=1_060.0)

    assert lines[1:3] == ["the retention set fell by 5.7 points", "3 steps taken, trained 1 min 1 s"]
    assert "no step yet" in train_view.frame(ended, [], [], 80, 40, now=1_060.0)


def an_opportunity(**changes: Any) -> Opportunity:
    """One correction that came twice."""
    values: dict[str, Any] = {
        "opportunity_id": "opp-1",
        "model": "olympus-demo",
        "kind": "correction",
        "title": "Say ahoy\nto Ada.",
        "state": "open",
        "priority": 0.5,
        "terms": PriorityTerms(
            expected_gain=0.5, frequency=0.25, recency=1.0, cost=0.1, cost_s=30.0, formula="gain x frequency"
        ),
        "evidence": [Evidence(kind="feedback", id="fb-1", at=1_000.0, note="should say ahoy")],
        "count": 2,
        "examples": 2,
        "created_at": 1_000.0,
        "last_seen_at": 1_000.0,
        "expires_at": 2_000.0,
        "needs": "98 more examples",
    }
    return Opportunity(**{**values, **changes})


def test_opportunities_show_what_is_missing_and_what_the_priority_is_made_of() -> None:
    """In a row the need, in the long form the terms and the evidence."""
    row = learn_found.opportunity_lines([an_opportunity()], now=1_060.0)[1]
    long = "\n".join(learn_found.long_lines(an_opportunity(), now=1_060.0))

    assert "Say ahoy to Ada. (needs 98 more examples)" in row
    assert "gain 0.50, frequency 0.25, recency 1.00, cost 0.10 (30 s)" in long
    assert learn_found.formula_lines(an_opportunity().terms)[0].startswith("priority = ")
    assert "1 min ago  feedback  fb-1  should say ahoy" in long


def test_a_version_that_repeats_nothing_says_what_helps() -> None:
    """Such an adapter is likely to be refused, so it is said before one is trained."""
    info = DatasetInfo(
        dataset="ahoy",
        version=1,
        model="olympus-demo",
        model_sha256="",
        sha256="abc",
        created_at=1_000.0,
        rows={"train": 9},
        kinds={"import": 9},
        clusters={"train": 9},
        quarantined={},
        metric="auto",
        opportunities=[],
        is_stale="",
        note="",
    )
    repeats = msgspec.structs.replace(info, rows={"train": 9, "replay": 9})

    assert "may forget" in learn_data.shown_lines(info)[-1]
    assert "may forget" not in "".join(learn_data.shown_lines(repeats))


def test_feedback_needs_an_opinion() -> None:
    """No option says nothing; good and bad contradict."""
    parser = argparse.ArgumentParser()
    learn_found.ACTIONS[0].configure(parser)

    with pytest.raises(UsageError, match="--good"):
        learn_found.ACTIONS[0].run(parser.parse_args(["reply"]))
    with pytest.raises(UsageError, match="not both"):
        learn_found.ACTIONS[0].run(parser.parse_args(["reply", "--good", "--bad"]))


def test_a_closed_schedule_says_why_and_until_when() -> None:
    """Both are what somebody who waits for a training wants to know."""
    schedule = Schedule(
        hours="22:00-06:00",
        days=[],
        budget_s=3_600.0,
        idle_s=0.0,
        is_paused=False,
        is_automatic=True,
        spent_s=60.0,
        is_open=False,
        reason="outside 22:00-06:00",
        opens_at=None,
        running=[],
        queued=["job-1"],
    )

    lines = learn_found.schedule_lines(schedule)

    assert "now           closed: outside 22:00-06:00" in lines
    assert "budget today  1 min of 1 h" in lines
    assert "queued        job-1" in lines


def test_a_schedule_that_opens_on_another_day_says_on_which() -> None:
    """An hour alone would be taken for today's; a reason that names the day already is enough."""
    at = datetime.fromisoformat("2026-11-28 02:00").timestamp()
    closed = Schedule(
        hours="",
        days=[],
        budget_s=3_600.0,
        idle_s=0.0,
        is_paused=False,
        is_automatic=True,
        spent_s=3_600.0,
        is_open=False,
        reason="today's seconds are used up",
        opens_at=at,
        running=[],
        queued=[],
    )

    lines = learn_found.schedule_lines(closed)
    named = learn_found.schedule_lines(msgspec.structs.replace(closed, reason="begins at 2026-11-28 02:00"))

    assert lines[0] == "now           closed: today's seconds are used up; opens 2026-11-28 02:00"
    assert named[0] == "now           closed: begins at 2026-11-28 02:00"


def test_a_time_without_a_limit_is_nought() -> None:
    """A budget is typed as any duration; 0 is no limit, and less than that is refused."""
    assert [amount(text) for text in ("0", "2h", "7200", "90s")] == [0.0, 7_200.0, 7_200.0, 90.0]
    with pytest.raises(argparse.ArgumentTypeError, match="not a duration"):
        amount("-1")


def test_a_file_of_another_kind_names_its_first_bad_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """A terminal full of the same sentence hides the count below it."""
    problems = [LineProblem(line=line, reason="JSON is malformed") for line in range(1, 51)]
    counts = {"added": 0, "duplicates": 0, "quarantined": 0, "refused": 50}

    code = learn_data._say_imported(counts, problems, is_json=False)

    said = capsys.readouterr().err.splitlines()
    assert code == 1
    assert said[19].endswith("line 20: JSON is malformed")
    assert said[20].endswith("30 more lines of this kind; --json names every one")
    assert said[21].endswith("refused 50")


def a_set(name: str, **changes: Any) -> SetResult:
    """A set with a gain of ten points."""
    values: dict[str, Any] = {
        "items": 300,
        "clusters": 250,
        "score": 0.6,
        "score_before": 0.5,
        "difference": 0.1,
        "low": 0.05,
        "high": 0.15,
        "confidence": 0.95,
        "better": 40,
        "worse": 10,
    }
    return SetResult(name=name, **{**values, **changes})


def test_a_verdict_shows_its_reason_and_each_set_with_what_decided() -> None:
    """The target by its p-value, what must not be forgotten by its bound, all in points."""
    result = GateResult(
        evaluation_id="eval-1",
        job_id="job-1",
        model="olympus-demo",
        model_sha256="",
        adapter="ahoy-1",
        against="",
        dataset="ahoy",
        version=2,
        at=0.0,
        verdict="refused",
        reasons=["forgot too much"],
        target=a_set("target", p_value=0.001),
        retention=a_set("retention", difference=-0.06, bound=-0.08, margin=0.03),
        earlier=[],
        backward_transfer=-0.06,
        alpha=0.05,
        corrected_alpha=0.025,
        attempt=2,
        min_gain=0.1,
        power=0.97,
        detectable_gain=0.06,
        metric="exact",
        took_s=3.0,
    )

    lines = learn_gate.result_lines(result)

    assert lines[0] == "refused: ahoy-1 against the bare model on ahoy:2 (exact, attempt 2)"
    assert lines[1] == "  forgot too much"
    assert "target: p is 0.0010, at most 0.0250 passes" in lines
    assert "retention: the change is -8.0 at worst, at least -3.0 passes" in lines
    assert max(map(len, lines)) <= 80
    assert lines[-1].endswith("backward transfer -6.0")


def test_items_say_which_way_they_went() -> None:
    """A flip is worth more than a figure to whoever asks why."""
    item = GateItem(
        set="retention",
        row_id="r",
        cluster="c",
        question="2 + 2?",
        reference="4",
        answer="5",
        answer_before="4",
        score=0.0,
        score_before=1.0,
    )

    lines = learn_gate.item_lines([item], total=3)

    assert lines == ["retention, worse: 2 + 2?", "  wanted  4", "  before  4", "  now     5", "2 more"]
    assert learn_gate.item_lines([], total=3) == ["3 more"]
    assert learn_gate.item_lines([], total=0) == ["no item of this kind"]


def test_an_arm_without_outcomes_has_no_mean() -> None:
    """Nothing known is a dash, not a zero."""
    arm = WatchArm(adapter="", outcomes=0, mean=None, low=None, high=None)

    assert learn_gate.arm_row(arm) == ("bare model", "0", "-", "-")


@pytest.mark.parametrize("size", [1, 10, 1_000])
def test_a_file_is_sent_in_parts_with_the_numbers_of_their_lines(tmp_path: Path, size: int) -> None:
    """However it is cut, every line is sent once, and a part says which line it begins with."""
    path = tmp_path / "examples.jsonl"
    lines = [f'{{"prompt": "{number}", "answer": "{"x" * 900}"}}\n' for number in range(size * 10)]
    path.write_text("".join(lines))

    with path.open("rb") as file:
        parts = list(learn_data.parts(file, limit=10_000))

    assert "".join(text for _, text in parts) == "".join(lines)
    for first_line, text in parts:
        assert text.startswith(f'{{"prompt": "{first_line - 1}"')
