"""TRL's trainers with checkpoints of our own, and the callback that watches every step.

It decides when to save, evaluate, lend the device and stop; what is kept is keeper.py's business, what is said
speaker.py's. transformers does the stepping.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from transformers import TrainerCallback
from trl import DPOTrainer, SFTTrainer

from workers.learning.training import state
from workers.learning.training.device import Devices, Interrupted, memory_bytes
from workers.learning.training.keeper import Keeper, Tensors, weights_of
from workers.learning.training.messages import (
    CheckpointFailed,
    CheckpointSaved,
    Evaluated,
    Planned,
    Progress,
    Waited,
)
from workers.learning.training.speaker import Speaker
from workers.learning.training.spec import TrainSpec

# Seconds between two messages of progress at least: a curve of a minute has 300 points, and saying one takes 50
# microseconds.
_SAY_S: Final = 0.2


class StopNow(Exception):
    """The training was asked to stop in the middle of a step. rng: random numbers as of the end of the last one."""

    def __init__(self, rng: Tensors) -> None:
        super().__init__()
        self.rng = rng


class AllDone(Exception):
    """The checkpoint it went on from was that of the last step."""


class LossNotFinite(Exception):
    """The loss is no number any more."""


class OverBudget(Exception):
    """The process holds more memory than it may."""


class _Kept:
    """What both trainers do otherwise than TRL: rows come as token ids, and checkpoints go through the keeper."""

    keeper: Keeper
    on_saved: Callable[[], None]
    longest: int = 0

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        self.longest = max(self.longest, inputs["input_ids"].shape[-1])
        return super().training_step(model, inputs, *rest, **named)  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.on_saved()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.keeper.load_weights(Path(resume_from_checkpoint), self)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.keeper.load_optimizer(Path(checkpoint), self)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.keeper.load_rng(Path(checkpoint))

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Half precision with a scaler is not used."""


class KeptSft(_Kept, SFTTrainer):  # type: ignore[misc]
    """SFT on rows of token ids."""


class KeptDpo(_Kept, DPOTrainer):  # type: ignore[misc]
    """DPO on rows of token ids."""


class Watch(TrainerCallback):  # type: ignore[misc]
    """Sees every step of `trainer`, which must be set before the training begins.

    wants_stop is set by a signal; the training then ends at the next step, or within one that is made of several
    micro-batches, which is then taken again.
    """

    def __init__(self, spec: TrainSpec, keeper: Keeper, speaker: Speaker, devices: Devices, *, processes: int) -> None:
        self._spec = spec
        self._keeper = keeper
        self._speaker = speaker
        self._devices = devices
        self._processes = processes
        self.trainer: Any = None
        self.planned: Planned | None = None
        self.wants_stop = False
        self.stopped_early = False
        self.last_loss: float | None = None
        self.checkpoint: str | None = None
        self._saved_step: int | None = None
        self._saved_at = time.monotonic()
        self._said_at = 0.0
        self._said_tokens = 0
        self._losses: list[float] = []
        self._began_at = time.monotonic()
        self._began_step = 0
        self._has_said = False
        self._rng: Tensors = {}
        self._epoch_rng: tuple[int, Tensors] = (-1, {})

    # Called by transformers

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Say how it will be done."""
        assert self.planned is not None
        wrapped = type(self.trainer.model_wrapped).__name__ if self._processes > 1 else ""
        if self._processes > 1 and wrapped != "DistributedDataParallel":
            raise RuntimeError(
                f"the model was to be spread over {self._processes} processes, and is wrapped as {wrapped}"
            )
        changes = {"steps": state.max_steps, "from_step": state.global_step, "wrapped": wrapped}
        self._speaker.say(type(self.planned)(**{**_fields(self.planned), **changes}))
        self._saved_step = state.global_step if state.global_step else None
        self._began_step = state.global_step
        self._saved_at = self._said_at = self._began_at = time.monotonic()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The order of an epoch is drawn after this, so who goes on at its first step has to draw it again."""
        if self._processes == 1:
            self._epoch_rng = (state.global_step, rng_now())

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End where there is nothing left to do; lend the device if somebody waits for it."""
        patience = self._spec.stop.patience
        self.stopped_early = bool(patience) and self._keeper.best.bad >= patience
        if self.stopped_early or state.global_step >= state.max_steps:
            raise AllDone
        if self._devices.is_wanted():
            waited_at = time.monotonic()
            holder = ""
            try:
                holder = self._devices.lend()
            except Interrupted:
                self.wants_stop = True
            self._speaker.say(
                Waited(step=state.global_step, waited_s=round(time.monotonic() - waited_at, 4), holder=holder)
            )
        if self._processes == 1:
            if self.wants_stop or args.gradient_accumulation_steps > 1:
                step, rng = self._epoch_rng
                self._rng = rng if step == state.global_step else rng_now()
            if self.wants_stop:
                raise StopNow(self._rng)

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step of many micro-batches may take long."""
        if self.wants_stop and self._processes == 1:
            raise StopNow(self._rng)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Decide what follows this step; all processes decide the same."""
        stop, save = self._together(self.wants_stop, self._is_save_due(state.global_step))
        control.should_save = save or stop
        control.should_training_stop = control.should_training_stop or stop
        self.wants_stop = stop
        has_rows = self.trainer.eval_dataset is not None
        is_last = state.global_step >= state.max_steps
        control.should_evaluate = has_rows and (is_last or state.global_step % self._every() == 0)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Say how far it is; a loss that is no number ends it before it is saved."""
        if not logs or "loss" not in logs:
            return
        loss, norm = float(logs["loss"]), float(logs.get("grad_norm", 0.0))
        if not math.isfinite(loss) or not math.isfinite(norm):
            what = "loss" if not math.isfinite(loss) else "gradient"
            raise LossNotFinite(
                f"the {what} of step {state.global_step} is {loss if what == 'loss' else norm} "
                f"at a learning rate of {logs.get('learning_rate', 0.0):.3g}: try a lower one"
            )
        self._losses.append(loss)
        self.last_loss = loss
        now = time.monotonic()
        if now - self._said_at >= _SAY_S or state.global_step >= state.max_steps or not self._has_said:
            self._say_progress(now, state, logs, norm)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **_: Any
    ) -> None:
        """Judge an evaluation; without a better one for long enough it is time to end."""
        loss = float((metrics or {}).get("eval_loss", math.nan))
        if not math.isfinite(loss):
            raise LossNotFinite(f"the evaluation loss of step {state.global_step} is {loss}")
        if self._keeper.judge(state.global_step, loss, weights_of(self.trainer)):
            self.stopped_early = True
            control.should_training_stop = True
        best = self._keeper.best
        self._speaker.say(
            Evaluated(step=state.global_step, loss=loss, best_step=best.step or 0, best_loss=best.loss or 0.0)
        )

    # Saving

    def save(self, rng: Tensors | None = None) -> None:
        """Write a checkpoint, unless this step has one. When that fails it is said, and the training goes on."""
        step = self.trainer.state.global_step
        if step in (0, self._saved_step):
            return
        started_at = time.monotonic()
        try:
            kept = self._keeper.save(self.trainer, rng)
        except OSError as error:
            self._saved_at = time.monotonic()
            self._speaker.say(CheckpointFailed(step=step, reason=error.strerror or str(error)))
            return
        self._saved_step, self._saved_at = step, time.monotonic()
        if kept is not None:
            sealed, removed = kept
            self.checkpoint = sealed.name
            self._speaker.say(
                CheckpointSaved(
                    step=step,
                    name=sealed.name,
                    size_bytes=sealed.size_bytes,
                    sha256=sealed.sha256,
                    took_s=round(time.monotonic() - started_at, 4),
                    removed=removed,
                )
            )

    def _is_save_due(self, step: int) -> bool:
        every = self._spec.save_every_steps
        return (every is not None and step % every == 0) or time.monotonic() - self._saved_at >= self._spec.save_every_s

    def _every(self) -> int:
        return self._spec.stop.evaluate_every_steps

    # Telling

    def _say_progress(self, now: float, state: Any, logs: dict[str, float], norm: float) -> None:
        held = memory_bytes(self._devices.is_gpu)
        tokens = self.trainer._total_train_tokens
        passed_s = max(now - self._said_at, 1e-9)
        done = state.global_step - self._began_step
        per_step_s = (now - self._began_at) / max(done, 1)
        self._speaker.say(
            Progress(
                step=state.global_step,
                steps=state.max_steps,
                epoch=round(float(state.epoch or 0.0), 4),
                loss=sum(self._losses) / len(self._losses),
                learning_rate=float(logs.get("learning_rate", 0.0)),
                grad_norm=norm,
                tokens_per_s=round((tokens - self._said_tokens) / passed_s, 1),
                tokens=int(tokens - self._said_tokens),
                eta_s=round(per_step_s * (state.max_steps - state.global_step), 3),
                memory_bytes=held,
                seq_length=self.trainer.longest,
                micro_batch=self.trainer.args.per_device_train_batch_size,
                accumulation=self.trainer.args.gradient_accumulation_steps,
            )
        )
        self._said_at, self._said_tokens = now, tokens
        self._has_said = True
        self._losses.clear()
        self.trainer.longest = 0
        budget = self._spec.memory_budget_bytes
        if budget is not None and held > budget:
            raise OverBudget(f"it holds {held} bytes at step {state.global_step}, its budget is {budget}")

    def _together(self, *flags: bool) -> tuple[bool, ...]:
        if self._processes == 1:
            return flags
        shared = torch.tensor([int(flag) for flag in flags], device=self.trainer.args.device)
        torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
        return tuple(bool(flag) for flag in shared.tolist())


def rng_now() -> Tensors:
    """Random numbers as they stand, copied."""
    return {name: tensor.clone() for name, tensor in state.rng_state().items()}


def _fields(planned: Planned) -> dict[str, Any]:
    return {name: getattr(planned, name) for name in planned.__struct_fields__}
