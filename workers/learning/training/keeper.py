"""Writes and reads what a training keeps: checkpoints that resume bit for bit, the best weights so far, the adapter.

    checkpoint   adapter_config.json, adapter_model.safetensors, optimizer.safetensors, schedule.json, rng-N.safetensors,
                 trainer_state.json (the step), watch.json and best.safetensors (early stopping)
    adapter      adapter_config.json, adapter_model.safetensors, manifest.json, and nothing else

No file is a pickle. When to write is the loop's business.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load, save

from schemas.errors import Unprocessable
from workers.learning.training import checkpoints, state
from workers.learning.training.checkpoints import Checkpoint, Sealing
from workers.learning.training.spec import ADAPTER, CHECKPOINTS, TrainSpec

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
# The name under which transformers looks for the step to go on from.
_TRAINER_STATE: Final = "trainer_state.json"
_WATCH: Final = "watch.json"
_BEST: Final = "best.safetensors"

Tensors = dict[str, torch.Tensor]


class Best(msgspec.Struct, kw_only=True):
    """What evaluation has shown so far. bad: evaluations in a row without a better one."""

    step: int | None = None
    loss: float | None = None
    bad: int = 0


class Keeper:
    """Keeps the state of one training in its job's folder. rank, processes: of this process among all."""

    def __init__(self, folder: Path, spec: TrainSpec, base_sha256: str, *, rank: int = 0, processes: int = 1) -> None:
        self._folder = folder
        self._spec = spec
        self._base_sha256 = base_sha256
        self._rank = rank
        self._processes = processes
        self.best = Best()
        self._best_weights: Tensors | None = None

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self._folder / CHECKPOINTS

    # Writing

    def save(self, trainer: Any, rng: Tensors | None = None) -> tuple[Checkpoint, tuple[str, ...]] | None:
        """Write a checkpoint of the step that was taken last; returns it and the names of older ones that went.

        rng: random numbers as of the end of that step, where others were drawn since. None in every process but the
        first. Raises OSError; nothing is left behind then, and nothing older is touched.
        """
        step = trainer.state.global_step
        numbers = save(state.rng_state() if rng is None else rng)
        target = self.checkpoints / checkpoints.name_of(step)
        if self._processes > 1:
            return self._save_together(trainer, target, step, numbers)
        return self._save_alone(trainer, target, step, {state.rng_name(0): numbers})

    def _save_alone(
        self, trainer: Any, target: Path, step: int, others: dict[str, bytes]
    ) -> tuple[Checkpoint, tuple[str, ...]]:
        sealing = Sealing(target, job_id=self._spec.job_id, step=step)
        try:
            self._write_adapter(sealing, trainer, weights_of(trainer))
            sealing.write(state.OPTIMIZER, state.optimizer_bytes(trainer.optimizer, trainer.model))
            sealing.write(state.SCHEDULE, state.schedule_bytes(trainer.lr_scheduler))
            # Logs of all steps would make it grow for ever; the service keeps them.
            plain = dataclasses.replace(trainer.state, log_history=[], stateful_callbacks={})
            sealing.write(_TRAINER_STATE, json.dumps(dataclasses.asdict(plain)).encode())
            sealing.write(_WATCH, msgspec.json.encode(self.best))
            if self._best_weights is not None:
                sealing.write(_BEST, save(self._best_weights))
            for name, data in others.items():
                sealing.write(name, data)
            sealed = sealing.seal({"rung": self._spec.rung.level, "base_sha256": self._base_sha256})
        except BaseException:
            sealing.abandon()
            raise
        gone = checkpoints.prune(
            self.checkpoints, kept=self._spec.checkpoints_kept, limit_bytes=self._spec.checkpoints_bytes
        )
        return sealed, tuple(one.name for one in gone)

    def _save_together(
        self, trainer: Any, target: Path, step: int, numbers: bytes
    ) -> tuple[Checkpoint, tuple[str, ...]] | None:
        """The first process writes; the others' random numbers come to it, the rest they share."""
        mine = torch.frombuffer(bytearray(numbers), dtype=torch.uint8).to(trainer.args.device)
        everyone = [torch.empty_like(mine) for _ in range(self._processes)]
        torch.distributed.all_gather(everyone, mine)
        kept = None
        problem: list[str | None] = [None]
        if self._rank == 0:
            others = {state.rng_name(rank): data.cpu().numpy().tobytes() for rank, data in enumerate(everyone)}
            try:
                kept = self._save_alone(trainer, target, step, others)
            except OSError as error:
                problem = [error.strerror or str(error)]
        # Nobody goes on, or exits, before it is on disk; and all hear when it is not.
        torch.distributed.broadcast_object_list(problem, src=0)
        if problem[0] is not None:
            raise OSError(problem[0])
        return kept

    def finish(self, trainer: Any) -> tuple[Path, str]:
        """Write the adapter: of the best evaluation where there was one. Returns its folder and its weights' sha256."""
        weights = self._best_weights if self._best_weights is not None else weights_of(trainer)
        step = self.best.step if self._best_weights is not None and self.best.step else trainer.state.global_step
        target = self._folder / ADAPTER
        checkpoints.sweep(self._folder)
        sealing = Sealing(target, job_id=self._spec.job_id, step=step)
        try:
            self._write_adapter(sealing, trainer, weights)
            sealing.seal({"base": self._spec.base_name, "base_sha256": self._base_sha256, "seed": self._spec.seed})
        except BaseException:
            sealing.abandon()
            raise
        return target, sealing.sha256_of(WEIGHTS)

    def _write_adapter(self, sealing: Sealing, trainer: Any, weights: Tensors) -> None:
        config = trainer.model.peft_config["default"]
        plain = {
            **config.to_dict(),
            # Where the weights lie on this machine is nobody's business.
            "base_model_name_or_path": self._spec.base_name or Path(self._spec.base).name,
            "inference_mode": True,
            "revision": None,
        }
        sealing.write(CONFIG, json.dumps(plain, indent=2, sort_keys=True, default=_plain).encode() + b"\n")
        sealing.write(WEIGHTS, save(weights, metadata={"format": "pt"}))

    # Reading

    def newest_good(self) -> tuple[Checkpoint | None, list[Checkpoint]]:
        """The checkpoint to go on from, and newer ones that are not whole."""
        skipped: list[Checkpoint] = []
        return checkpoints.newest_good(self.checkpoints, skipped.append), skipped

    def load_weights(self, checkpoint: Path, trainer: Any) -> None:
        """Put back the adapter, and what evaluation had shown."""
        load_adapter(trainer.model, load((checkpoint / WEIGHTS).read_bytes()), checkpoint)
        self.best = msgspec.json.decode((checkpoint / _WATCH).read_bytes(), type=Best)
        if (checkpoint / _BEST).exists():
            self._best_weights = load((checkpoint / _BEST).read_bytes())

    def load_optimizer(self, checkpoint: Path, trainer: Any) -> None:
        """Put back moments, step counts and the schedule."""
        state.load_optimizer((checkpoint / state.OPTIMIZER).read_bytes(), trainer.optimizer, trainer.model)
        state.load_schedule((checkpoint / state.SCHEDULE).read_bytes(), trainer.lr_scheduler)

    def load_rng(self, checkpoint: Path) -> None:
        """Put back the random numbers of this process, if as many processes wrote them."""
        path = checkpoint / state.rng_name(self._rank)
        if path.exists():
            state.set_rng_state(load(path.read_bytes()))

    # Evaluation

    def judge(self, step: int, loss: float, weights: Tensors) -> bool:
        """Take note of an evaluation; True when it is time to end early."""
        rules = self._spec.stop
        if self.best.loss is None or loss < self.best.loss - rules.min_delta:
            self.best = Best(step=step, loss=loss)
            self._best_weights = weights
            return False
        self.best.bad += 1
        return self.best.bad >= rules.patience


def weights_of(trainer: Any) -> Tensors:
    """The adapter's matrices, copied to main memory."""
    model = trainer.model
    tensors = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def load_adapter(model: Any, tensors: Tensors, source: Path) -> None:
    """Put `tensors` into the model's adapter. Raises Unprocessable when they are of another base or another shape."""
    wanted = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    lacking, surplus = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if lacking or surplus:
        what = f"lacks {lacking[0]}" if lacking else f"has {surplus[0]}, which the base has not"
        raise Unprocessable(f"the adapter in {source} is for another base: it {what}")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            shapes = f"{tuple(tensor.shape)}, the base wants {tuple(wanted[name].shape)}"
            raise Unprocessable(f"the adapter in {source} is for another base: {name} has the shape {shapes}")
    set_peft_model_state_dict(model, tensors, adapter_name="default")


def _plain(value: object) -> object:
    if isinstance(value, set | frozenset):
        return sorted(value)
    return getattr(value, "value", str(value))
