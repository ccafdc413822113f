"""What a job takes from the other parts of the learning service, and what it gives them. Knows none of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from schemas.bodies.learning import Opportunity
from schemas.bodies.learning_data import DatasetBuild, DatasetInfo
from schemas.bodies.learning_gate import Deployment, GateResult, LearningEvaluateProgress, PowerShow, PowerStatement
from schemas.bodies.learning_tuning import LearningRate, RateGet
from workers.learning.curation.drafts import TrainFile
from workers.learning.gate.gate import Judged
from workers.learning.promotion.deployments import Prepared
from workers.learning.promotion.seams import Previous
from workers.learning.tuning.rates import JobOutcome

OnProgress = Callable[[LearningEvaluateProgress], Awaitable[None]]


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter that a job trained.

    base: folder of the weights it was trained on, base_sha256: their fingerprint; model_sha256: content of the served model
    then, "" unknown. adapter_path: its PEFT folder; adapter_sha256: of the weights in it. previous: the adapter it went on
    from, "" for none. adapter: the name it serves under, "" before it is attached. verdict: the gate's, "" before.
    """

    job_id: str
    model: str
    base: str
    base_sha256: str
    model_sha256: str
    dataset: str
    version: int
    adapter_path: str
    adapter_sha256: str
    previous: str
    adapter: str = ""
    verdict: str = ""


class Datasets(Protocol):
    """Frozen versions of datasets."""

    async def build(self, request: DatasetBuild) -> DatasetInfo:
        """Raises Unprocessable where there is nothing to freeze."""

    async def info(self, dataset: str, version: int | None = None) -> DatasetInfo:
        """Raises NotFound."""

    async def check(self, dataset: str, version: int) -> str:
        """Why it may not be trained on now; "" when it may."""

    async def write_train(self, dataset: str, version: int, path: Path) -> TrainFile:
        """Write the rows to train on. Raises Conflict with `check`'s reason."""


class Judge(Protocol):
    """The gate."""

    async def power(self, request: PowerShow) -> PowerStatement:
        """What gain could be seen."""

    async def decide(self, judged: Judged, *, on_progress: OnProgress | None = None) -> GateResult:
        """The verdict, kept before this returns. May be cancelled and repeated."""

    async def verdict_of(self, job_id: str) -> GateResult | None:
        """The newest verdict of a job."""


class Promoter(Protocol):
    """Puts adapters to work."""

    async def previous(self, model: str, adapter: str | None) -> Previous | None:
        """What to go on from: the adapter of that name, with None what serves. Raises NotFound."""

    async def prepare(self, trained: Trained) -> Prepared:
        """Attach it as challenger, and make sure it computes what was trained. May be repeated."""

    async def promote(self, trained: Trained) -> Deployment:
        """Put it to work. May be repeated."""

    async def discard(self, trained: Trained) -> None:
        """Detach it, and delete what was made of it. May be repeated."""


class Tuner(Protocol):
    """Learning rates, from how earlier jobs ended."""

    async def rate(self, request: RateGet) -> LearningRate:
        """What the next training begins with."""

    async def learned(self, outcome: JobOutcome) -> None:
        """How a job ended."""

    async def follow(self, job_id: str, model: str, *, progress: float, metrics: Mapping[str, float]) -> None:
        """A training got on."""

    async def followed(self, job_id: str, status: str) -> None:
        """It ended."""


class Needs(Protocol):
    """Opportunities: what there is to learn."""

    async def get(self, opportunity_id: str) -> Opportunity:
        """Raises NotFound."""

    async def together(self, min_examples: int) -> list[list[Opportunity]]:
        """Groups of one model each that have examples enough to be trained."""

    async def mark(
        self,
        opportunity_ids: Sequence[str],
        state: Literal["training", "learned", "open"],
        *,
        job_id: str,
        reason: str,
    ) -> None:
        """What became of them."""

    async def note_cost(self, model: str, examples: int, took_s: float) -> None:
        """Seconds that a training took."""
