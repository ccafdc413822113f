"""What one training is to do, written as `spec.json` into the job's folder; it knows neither the service nor the trainer.

JOB/spec.json        this          JOB/train.jsonl     one example a line
JOB/trainer.log      stderr        JOB/checkpoints/    see checkpoints.py         JOB/adapter/    what came of it
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from schemas.errors import BadRequest

SPEC: Final = "spec.json"
LOG: Final = "trainer.log"
PID: Final = "trainer.pid"
CHECKPOINTS: Final = "checkpoints"
ADAPTER: Final = "adapter"
# Begins the name of the folder in which several processes find each other.
MEETING: Final = "meeting-"

ALL_LINEAR: Final = "all-linear"

# Tokens of a row where neither the spec nor a smaller window of the base says so: TRL's `max_length` is 1024, and rows
# made of conversations here were seldom half as long.
MAX_LENGTH: Final = 1_024

# Learning rates where the spec names none. SFT: QLoRA, arXiv:2305.14314, table 9 (models up to 13 B). DPO: ten times the
# 5e-7 of Zephyr (arXiv:2310.16944, section 4.2), since LoRA wants about ten times the rate of whole weights ("LoRA
# Without Regret", Thinking Machines 2025).
_SFT_RATE: Final = 2e-4
_DPO_RATE: Final = 5e-6

Method = Literal["sft", "dpo"]
Text = Annotated[str, Meta(min_length=1)]


class Lora(msgspec.Struct, frozen=True, kw_only=True):
    """Shape of the adapter: an update of rank `rank`, scaled by alpha / rank (LoRA, arXiv:2106.09685, section 4.1).

    targets: names of modules, or ("all-linear",) for every linear layer but the output. A run that goes on from an
    earlier adapter takes that one's shape.
    """

    rank: Annotated[int, Meta(ge=1, le=1_024)] = 8
    alpha: Annotated[float, Meta(gt=0, le=4_096)] = 32.0
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    targets: Annotated[tuple[Text, ...], Meta(min_length=1)] = (ALL_LINEAR,)


class Rung(msgspec.Struct, frozen=True, kw_only=True):
    """Step of the ladder for too little memory (ladder.py). None: as the dry step finds, or as the spec says."""

    level: Annotated[int, Meta(ge=0)] = 0
    micro_batch: Annotated[int, Meta(ge=1)] | None = None
    activation_checkpointing: bool = False
    max_length: Annotated[int, Meta(ge=8)] | None = None


class StopRules(msgspec.Struct, frozen=True, kw_only=True):
    """When to end early: after `patience` evaluations in a row without a loss lower by `min_delta` than the best.

    patience 0: never, and no row is set aside. evaluation_share: part of the training rows set aside for it, never the
    gate's. The adapter of the best evaluation is the one that is kept.
    Source: L. Prechelt, "Early Stopping - But When?", 1998, criterion UP.
    """

    patience: Annotated[int, Meta(ge=0, le=10_000)] = 0
    min_delta: Annotated[float, Meta(ge=0, le=100)] = 0.0
    evaluate_every_steps: Annotated[int, Meta(ge=1)] = 25
    evaluation_share: Annotated[float, Meta(gt=0, le=0.5)] = 0.1


class TrainSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a training needs.

    base: folder of safetensors. base_name: what to call it. base_sha256: `base.fingerprint` of it, "" to take it as it is.
    previous: folder of the PEFT adapter to go on from. rows: JSON Lines, below the job's folder unless absolute.
    method "auto": DPO where every row has a rejected answer, else SFT. learning_rate None: `default_learning_rate`.
    warmup_ratio: part of all steps in which the rate rises. max_steps None: as many as `epochs` make. effective_batch:
    rows per step, over all processes. max_length: tokens of a row; longer rows are left out. memory_budget_bytes: of the
    process on a CPU, of the device's memory on a GPU, per process; None for no limit. device: "cpu", or the first GPU of
    as many as there are processes. threads None: as many as torch chooses. save_every_s and save_every_steps: whichever
    comes first. checkpoints_bytes: of all that are kept, two stay however large. locks: folder of the device locks, None
    to take none. lock_wait_s: how long to wait for the device.
    """

    job_id: Text
    base: Text
    base_name: str = ""
    base_sha256: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?$")] = ""
    previous: str | None = None
    rows: Annotated[tuple[Text, ...], Meta(min_length=1)] = ("train.jsonl",)
    method: Literal["auto", "sft", "dpo"] = "auto"
    lora: Lora = Lora()
    learning_rate: Annotated[float, Meta(gt=0, le=1)] | None = None
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: Annotated[float, Meta(ge=0, lt=1)] = 0.03
    weight_decay: Annotated[float, Meta(ge=0, le=1)] = 0.0
    epochs: Annotated[float, Meta(gt=0, le=1_000)] = 3.0
    max_steps: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    effective_batch: Annotated[int, Meta(ge=1, le=65_536)] = 8
    max_length: Annotated[int, Meta(ge=8, le=1_048_576)] | None = None
    seed: Annotated[int, Meta(ge=0, le=4_294_967_295)] = 0
    memory_budget_bytes: Annotated[int, Meta(ge=1)] | None = None
    device: Annotated[str, Meta(pattern=r"^(cpu|gpu[0-9]{1,3})$")] = "cpu"
    processes: Annotated[int, Meta(ge=1, le=64)] = 1
    threads: Annotated[int, Meta(ge=1, le=1_024)] | None = None
    save_every_steps: Annotated[int, Meta(ge=1)] | None = None
    save_every_s: Annotated[float, Meta(gt=0)] = 60.0
    checkpoints_kept: Annotated[int, Meta(ge=2, le=1_000)] = 2
    checkpoints_bytes: Annotated[int, Meta(ge=1)] | None = None
    stop: StopRules = StopRules()
    rung: Rung = Rung()
    locks: str | None = None
    lock_wait_s: Annotated[float, Meta(gt=0)] = 600.0

    def __post_init__(self) -> None:
        if self.effective_batch % self.processes:
            raise ValueError(
                f"effective_batch is {self.effective_batch}, it must be a multiple of processes ({self.processes})"
            )

    @property
    def devices(self) -> tuple[str, ...]:
        """Devices the training takes, one lock each."""
        if self.device == "cpu":
            return ("cpu",)
        first = int(self.device.removeprefix("gpu"))
        return tuple(f"gpu{first + number}" for number in range(self.processes))


class Said(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: Text
    content: str


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the rows. Either messages (written out by the base's chat template) or prompt (as it stands)."""

    messages: Annotated[tuple[Said, ...], Meta(min_length=1)] | None = None
    prompt: str | None = None
    answer: str
    rejected: str | None = None

    def __post_init__(self) -> None:
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("one of messages and prompt must be given, and not both")


def default_learning_rate(method: Method) -> float:
    """Peak learning rate where the spec names none: 2e-4 for SFT, 5e-6 for DPO."""
    return _DPO_RATE if method == "dpo" else _SFT_RATE


def write_spec(folder: Path, spec: TrainSpec) -> None:
    """Write it into the job's folder, which is made when missing; never half. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{SPEC}.{os.getpid()}"
    with aside.open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(spec), indent=2) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    aside.rename(folder / SPEC)


def read_spec(folder: Path) -> TrainSpec:
    """The job's spec. Raises BadRequest naming the field that is wrong, OSError."""
    try:
        return msgspec.json.decode((folder / SPEC).read_bytes(), type=TrainSpec)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"{folder / SPEC}: {error}", field=SPEC) from error
