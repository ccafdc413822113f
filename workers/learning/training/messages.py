"""What a training process says to the service: one JSON object a line."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from workers.learning.training.spec import Method, Rung

# Exit statuses of a trainer. What it knew it has said in a message before; of the rest the status tells.
EXIT_FINISHED: Final = 0
EXIT_FAILED: Final = 1
EXIT_STOPPED: Final = 75  # EX_TEMPFAIL of sysexits.h: start it again and it goes on
EXIT_OUT_OF_MEMORY: Final = 77

FailureKind = Literal["spec", "rows", "base", "adapter", "loss", "memory", "disk", "device", "internal"]


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """Anything a trainer says."""


class Warming(Message, frozen=True, kw_only=True, tag="warming"):
    """Before the first step. detail: who holds the device, say."""

    stage: Literal["importing", "loading", "waiting", "measuring"]
    detail: str = ""


class Prepared(Message, frozen=True, kw_only=True, tag="prepared"):
    """The rows are read. left_out: one sentence for each reason for which rows were left out or changed."""

    method: Method
    rows: int
    evaluation_rows: int
    longest_tokens: int
    left_out: tuple[str, ...]


class Planned(Message, frozen=True, kw_only=True, tag="planned"):
    """How the steps will be taken: micro_batch x accumulation x processes rows each.

    peak_bytes: what the dry step took, None where no budget is set and so none was taken. from_step: of the checkpoint
    it goes on from, 0 for a new training. wrapped: class that spreads the model over the processes, "" for one process.
    """

    micro_batch: int
    accumulation: int
    processes: int
    max_length: int
    activation_checkpointing: bool
    peak_bytes: int | None
    budget_bytes: int | None
    steps: int
    from_step: int
    learning_rate: float
    trainable_parameters: int
    wrapped: str = ""


class Progress(Message, frozen=True, kw_only=True, tag="progress"):
    """Step `step` of `steps` is done.

    loss: mean since the last message. memory_bytes: resident on a CPU, reserved on a GPU. tokens_per_s: of all
    processes, padding not counted; tokens: so many since the last message. seq_length: of the longest batch since the last
    message, with padding.
    """

    step: int
    steps: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_s: float
    tokens: int
    eta_s: float
    memory_bytes: int
    seq_length: int
    micro_batch: int
    accumulation: int


class Evaluated(Message, frozen=True, kw_only=True, tag="evaluated"):
    """Mean loss over the rows set aside, and the best one so far."""

    step: int
    loss: float
    best_step: int
    best_loss: float


class CheckpointSaved(Message, frozen=True, kw_only=True, tag="checkpoint_saved"):
    """A checkpoint is whole and on disk. sha256: of its manifest. removed: older ones that went."""

    step: int
    name: str
    size_bytes: int
    sha256: str
    took_s: float
    removed: tuple[str, ...]


class CheckpointFailed(Message, frozen=True, kw_only=True, tag="checkpoint_failed"):
    """No checkpoint could be written; the training goes on, and the earlier ones stand."""

    step: int
    reason: str


class Skipped(Message, frozen=True, kw_only=True, tag="skipped"):
    """A checkpoint was passed over when the newest good one was looked for."""

    name: str
    reason: str


class Waited(Message, frozen=True, kw_only=True, tag="waited"):
    """The device was lent to `holder` between two steps, "" where it was not seen who took it."""

    step: int
    waited_s: float
    holder: str


class Stopped(Message, frozen=True, kw_only=True, tag="stopped"):
    """It ended because it was asked to. checkpoint: name of the one to go on from, None when there is none yet."""

    step: int
    checkpoint: str | None


class Finished(Message, frozen=True, kw_only=True, tag="finished"):
    """The adapter is whole. adapter: its folder; sha256: of its weights file. loss: mean over the last steps' message.

    why "early_stop": the evaluation loss no longer fell. best_step: whose weights the adapter has, None without
    evaluation (then those of the last step).
    """

    step: int
    steps: int
    why: Literal["steps", "early_stop"]
    adapter: str
    sha256: str
    base_sha256: str
    loss: float | None
    best_step: int | None
    best_loss: float | None
    took_s: float


class Failed(Message, frozen=True, kw_only=True, tag="failed"):
    """It cannot go on. kind "memory" is followed by another attempt on the next rung. checkpoint: the last good one.

    micro_batch, max_length: with which it was tried, None where it did not come so far.
    """

    kind: FailureKind
    reason: str
    step: int = 0
    checkpoint: str | None = None
    micro_batch: int | None = None
    max_length: int | None = None


class Climbed(Message, frozen=True, kw_only=True, tag="climbed"):
    """Said by the service's end: the memory did not suffice, a new process tries with less."""

    rung: Rung
    reason: str


AnyMessage = (
    Warming
    | Prepared
    | Planned
    | Progress
    | Evaluated
    | CheckpointSaved
    | CheckpointFailed
    | Skipped
    | Waited
    | Stopped
    | Finished
    | Failed
    | Climbed
)

_decoder = msgspec.json.Decoder(AnyMessage)


def encode(message: Message) -> bytes:
    """One line, with its end."""
    return msgspec.json.encode(message) + b"\n"


def decode(line: bytes) -> AnyMessage:
    """What a line says. Raises DecodeError."""
    said: AnyMessage = _decoder.decode(line)
    return said
