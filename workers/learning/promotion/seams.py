"""What promotion takes from the other parts of the learning service. Knows none of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from schemas.bodies.learning_data import RowInfo
from schemas.bodies.learning_gate import GateResult


class Trained(Protocol):
    """A job's adapter. base: folder of the weights it was trained on; adapter_path: its PEFT folder.

    base_sha256: fingerprint of the base then; model_sha256: of the served model then; "" where nobody knows.
    """

    @property
    def job_id(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def base(self) -> str: ...
    @property
    def base_sha256(self) -> str: ...
    @property
    def model_sha256(self) -> str: ...
    @property
    def dataset(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def adapter_path(self) -> str: ...


class Jobs(Protocol):
    """What trains."""

    async def trained(self, job_id: str) -> Trained:
        """Raises NotFound, Conflict while the job has no adapter."""

    async def promoted(self, job_id: str) -> None:
        """A job's adapter was put to work by `learning.promote`. May be repeated."""

    async def taken_back(self, job_id: str, reason: str) -> None:
        """A job's adapter was rolled back. May be repeated."""


class Verdicts(Protocol):
    """The gate."""

    async def verdict_of(self, job_id: str) -> GateResult | None:
        """The newest verdict of a job."""


class Rows(Protocol):
    """The examples of a dataset that nothing was trained on."""

    async def held_out(self, dataset: str, version: int | None = None) -> list[RowInfo]:
        """Those of the target. Raises NotFound."""

    async def retention(self, dataset: str, version: int | None = None) -> list[RowInfo]:
        """Those of what must not be forgotten. Raises NotFound."""


class Outcome(Protocol):
    """What an answer was worth, 0..1, by a number that grows and is never used again. adapter: with its version, "" for none."""

    @property
    def number(self) -> int: ...
    @property
    def adapter(self) -> str: ...
    @property
    def outcome(self) -> float: ...


class Live(Protocol):
    """Outcomes of answers to requests that named no adapter, each told once."""

    async def outcomes(self, model: str, after: int, limit: int = 1000) -> Sequence[Outcome]:
        """Those numbered above `after`, the oldest first."""

    async def outcomes_before(self, model: str, number: int, adapter: str, limit: int) -> Sequence[Outcome]:
        """The newest `limit` of one adapter numbered up to `number`, the oldest first."""

    async def newest(self, model: str) -> int:
        """Number of the newest outcome, 0 for none."""


class Earlier(NamedTuple):
    """An adapter that was put to work, and the dataset whose held-out rows show what it taught."""

    adapter: str
    dataset: str
    version: int


class Previous(NamedTuple):
    """An adapter to go on from, and its PEFT folder."""

    adapter: str
    path: str
