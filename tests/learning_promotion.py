"""What promotion needs of the other parts of the learning service, as tests want it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, NamedTuple

from bus.records import Records
from bus.settings import Settings
from schemas.bodies.learning_data import RowInfo
from schemas.bodies.learning_gate import GateResult
from schemas.bodies.model import ChatMessage
from schemas.errors import NotFound
from workers.learning.promotion import promotion
from workers.models.catalogue import SHIPPED_ROOT

SCHEMA = Path(promotion.__file__).parents[1] / "schema"
BASE = SHIPPED_ROOT / "hf"
MODEL = "olympus-demo"


class Job(NamedTuple):
    """A trained job."""

    job_id: str
    adapter_path: str
    dataset: str = "facts"
    version: int = 1
    model: str = MODEL
    base: str = str(BASE)
    base_sha256: str = ""
    model_sha256: str = ""


class Settled(NamedTuple):
    """An outcome."""

    number: int
    adapter: str
    outcome: float


def verdict(adapter: str, word: Literal["passed", "refused"] = "passed") -> GateResult:
    """A verdict of the gate, without figures."""
    return GateResult(
        evaluation_id="eval-1",
        job_id="",
        model=MODEL,
        model_sha256="",
        adapter=adapter,
        against="",
        dataset="facts",
        version=1,
        at=0.0,
        verdict=word,
        reasons=["no gain was shown"],
        target=None,
        retention=None,
        earlier=[],
        backward_transfer=None,
        alpha=0.05,
        corrected_alpha=0.05,
        attempt=1,
        min_gain=0.1,
        power=0.9,
        detectable_gain=0.1,
        metric="exact",
        took_s=0.0,
    )


class Others:
    """Jobs, verdicts, rows and outcomes, given by the test."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.verdicts: dict[str, GateResult] = {}
        self.told_promoted: list[str] = []
        self.told_taken_back: list[tuple[str, str]] = []
        self.rows: list[RowInfo] = []
        self.settled: list[Settled] = []

    async def trained(self, job_id: str) -> Job:
        if job_id not in self.jobs:
            raise NotFound(f"no job {job_id}")
        return self.jobs[job_id]

    async def promoted(self, job_id: str) -> None:
        self.told_promoted.append(job_id)

    async def taken_back(self, job_id: str, reason: str) -> None:
        self.told_taken_back.append((job_id, reason))

    async def verdict_of(self, job_id: str) -> GateResult | None:
        return self.verdicts.get(job_id)

    async def held_out(self, dataset: str, version: int | None = None) -> list[RowInfo]:
        return self.rows

    async def retention(self, dataset: str, version: int | None = None) -> list[RowInfo]:
        return []

    async def outcomes(self, model: str, after: int, limit: int = 1000) -> list[Settled]:
        return [one for one in self.settled if one.number > after][:limit]

    async def outcomes_before(self, model: str, number: int, adapter: str, limit: int) -> list[Settled]:
        return [one for one in self.settled if one.number <= number and one.adapter == adapter][-limit:]

    async def newest(self, model: str) -> int:
        return self.settled[-1].number if self.settled else 0

    def settle(self, adapter: str, *values: float) -> None:
        """Outcomes of an adapter, in this order."""
        for value in values:
            self.settled.append(Settled(len(self.settled) + 1, adapter, value))


def row(question: str, answer: str) -> RowInfo:
    """A held-out row."""
    return RowInfo(
        row_id="row-1",
        model=MODEL,
        kind="feedback",
        messages=[ChatMessage(role="user", content=question)],
        prompt=None,
        answer=answer,
        rejected=None,
        user="",
        session_id="",
        memory_ids=[],
        evidence=[],
        opportunity_id="",
        cluster="c",
        split="held_out",
        state="ready",
        reason="",
        created_at=0.0,
        sha256="",
    )


def documented_rows() -> list[RowInfo]:
    """Questions that the demo model answers."""
    known = json.loads((SHIPPED_ROOT / "documented.json").read_text())
    return [row(one["messages"][-1]["content"], one["answer"]) for one in known if len(one["messages"]) == 1]


def learning_records(settings: Settings) -> Records:
    """The learning service's file."""
    return Records(settings.path("learning.db"), SCHEMA, "a test")
