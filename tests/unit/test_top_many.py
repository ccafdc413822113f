"""`olympus top` says where it shows the newest only: jobs and groups of errors are asked for by the hundred."""

from __future__ import annotations

import msgspec
import pytest

from bus.cli.compare_view import Board
from bus.cli.screen import plain
from bus.cli.top.looking import ROWS
from bus.cli.top.tables import listing
from schemas.bodies.model_trials import CompareAnswer, ComparePart
from tests.unit.test_top_board import group, job, sample


@pytest.mark.parametrize(("total", "is_told"), [(2, False), (1_000, True)])
def test_errors_say_how_many_groups_there_are(total: int, *, is_told: bool) -> None:
    """Of a thousand groups two are not passed off as all."""
    now = msgspec.structs.replace(sample(), groups=[group("aa" * 16), group("bb" * 16)], groups_total=total)
    assert ("the newest 2 of 1,000 open groups" in listing("errors", now, None).summary) is is_told


def test_jobs_say_that_they_are_the_newest() -> None:
    """As many as were asked for may not be all."""
    jobs = [job(f"job-{number}") for number in range(ROWS)]
    now = sample()
    assert listing("jobs", msgspec.structs.replace(now, jobs=jobs), None).summary[0].startswith("the newest 200 jobs")
    assert listing("jobs", msgspec.structs.replace(now, jobs=jobs[1:]), None).summary[0].startswith("199 jobs")


def test_an_error_with_empty_lines_at_its_end_is_seen_in_a_low_cell() -> None:
    """The end of an answer is what a cell follows, and nothing stands there."""
    board = Board("why?", ["a", "b"])
    board.part(ComparePart(index=0, model="a", text="", ended=CompareAnswer(model="a", error="no room\n\n\n\n\n")), 1.0)
    rows, _ = board.frame(60, 6, 2.0)
    assert any("failed: no room" in plain(row) for row in rows)
