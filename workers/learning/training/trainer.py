"""The process that trains one adapter: `python -m workers.learning.training.trainer --folder JOB --parent PID`.

It reads JOB/spec.json, goes on from the newest whole checkpoint if there is one, says on stdout how far it is, and leaves
with one of the exit statuses of messages.py. SIGTERM makes it stop with a checkpoint. It knows neither bus nor lease, and
ends with the service that started it. Nothing is fetched from anywhere.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NoReturn

from bus.parent import die_with_parent, take_stdout
from schemas.errors import BusError, Retryable, Unprocessable
from workers.learning.training.messages import (
    EXIT_FAILED,
    EXIT_FINISHED,
    EXIT_OUT_OF_MEMORY,
    EXIT_STOPPED,
    Failed,
    FailureKind,
    Finished,
    Planned,
    Prepared,
    Skipped,
    Stopped,
    Warming,
)
from workers.learning.training.speaker import Speaker
from workers.learning.training.spec import MAX_LENGTH, PID, TrainSpec, default_learning_rate, read_spec

if TYPE_CHECKING:
    from workers.learning.training.device import Devices
    from workers.learning.training.examples import Rows, Tokens
    from workers.learning.training.keeper import Keeper
    from workers.learning.training.loop import Watch

# Training waits for those who talk to a model.
_NICENESS: Final = 10

_SCHEDULES: Final = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


class _Refused(Exception):
    """The training cannot be done, for a reason that its owner can do something about."""

    def __init__(self, kind: FailureKind, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Train what `--folder` says, and leave."""
    parser = argparse.ArgumentParser(prog="python -m workers.learning.training.trainer", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="folder of the job")
    parser.add_argument("--parent", type=int, required=True, help="process to end with")
    parser.add_argument("--rank", type=int, default=0, help="number of this process among those of the job")
    parser.add_argument("--meeting", default="", help="file at which the processes of the job find each other")
    args = parser.parse_args(argv)
    die_with_parent(args.parent)
    run(args.folder, take_stdout(), rank=args.rank, meeting=args.meeting)


def run(folder: Path, pipe: BinaryIO, *, rank: int = 0, meeting: str = "") -> NoReturn:
    """Train the job in `folder` and end this process with the status that says how it went."""
    # What libraries leave running, and tearing down torch, would take half a second more.
    status = EXIT_FAILED
    try:
        status = _Training(folder, Speaker(pipe, is_quiet=rank > 0), rank, meeting).run()
    finally:
        sys.stderr.flush()
        os._exit(status)


class _Training:
    """One training from its spec to its end."""

    def __init__(self, folder: Path, speaker: Speaker, rank: int, meeting: str) -> None:
        self._folder = folder
        self._speaker = speaker
        self._rank = rank
        self._meeting = meeting
        self._watch: Watch | None = None
        self._devices: Devices | None = None
        self._pid_file: BinaryIO | None = None
        self._tried: tuple[int | None, int | None] = (None, None)
        self._started_at = time.monotonic()

    def run(self) -> int:
        """Returns the exit status; whatever goes wrong is said before."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            os.nice(_NICENESS)
            return self._train()
        except _Refused as refused:
            return self._fail(refused.kind, str(refused))
        except Unprocessable as error:
            return self._fail("adapter", error.message)
        except BusError as error:
            return self._fail("device" if isinstance(error, Retryable) else "spec", error.message)
        except ModuleNotFoundError as error:
            return self._fail("spec", f"training needs the packages of the extra 'learning': {error}")
        except Exception as error:  # noqa: BLE001  the service hears of whatever it was
            return self._fail_with(error)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._watch is None:
            # Nothing has been trained yet: what lies on disk is all there is.
            self._say_stopped(0, None)
            os._exit(EXIT_STOPPED)
        self._watch.wants_stop = True
        if self._devices is not None and self._devices.is_waiting:
            from workers.learning.training.device import Interrupted

            raise Interrupted

    # Stages

    def _train(self) -> int:
        spec = read_spec(self._folder)
        self._claim()
        self._speaker.say(Warming(stage="importing"))
        _prepare_environment(spec)
        _import_libraries()
        from workers.learning.training.device import Devices
        from workers.learning.training.keeper import Keeper
        from workers.learning.training.loop import AllDone, StopNow

        self._join(spec)
        self._speaker.say(Warming(stage="loading", detail=spec.base_name))
        base_sha256 = self._check_base(spec)
        tokenizer, window = _open_tokenizer(Path(spec.base))
        limit = min(window, spec.max_length or MAX_LENGTH, spec.rung.max_length or window)
        rows = self._rows(spec, tokenizer, limit)
        self._devices = Devices(spec, is_first=self._rank == 0)
        self._take_devices(spec)
        keeper = Keeper(self._folder, spec, base_sha256, rank=self._rank, processes=spec.processes)
        trainer, watch = self._build(spec, tokenizer, rows, limit, keeper)
        newest = self._newest(keeper)
        self._watch = watch
        if newest is not None:
            watch.checkpoint = newest.name
        # What was made so far stays: the collector need not look through it again and again.
        gc.collect()
        gc.freeze()
        try:
            trainer.train(resume_from_checkpoint=str(newest) if newest is not None else None)
        except AllDone:
            watch.wants_stop = False
        except StopNow as stop:
            watch.save(stop.rng)
        self._devices.release()
        if watch.wants_stop and not watch.stopped_early and trainer.state.global_step < trainer.state.max_steps:
            self._say_stopped(trainer.state.global_step, watch.checkpoint)
            return EXIT_STOPPED
        return self._finish(trainer, watch, keeper, base_sha256)

    def _claim(self) -> None:
        """One process a job: the file is locked for as long as this one lives."""
        if self._rank > 0:
            return
        file = open(self._folder / PID, "r+b" if (self._folder / PID).exists() else "w+b", buffering=0)  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = file.read(32).decode("ascii", "replace").strip()
            raise _Refused("spec", f"process {owner} trains this job already") from None
        file.truncate(0)
        file.seek(0)
        file.write(f"{os.getpid()}\n".encode())
        self._pid_file = file

    def _join(self, spec: TrainSpec) -> None:
        """Meet the other processes of the job at a file, so that no port is opened for it."""
        if spec.processes == 1:
            return
        import torch

        if spec.device != "cpu":
            torch.cuda.set_device(self._rank)
        torch.distributed.init_process_group(
            "gloo" if spec.device == "cpu" else "nccl",
            init_method=f"file://{self._meeting}",
            rank=self._rank,
            world_size=spec.processes,
        )

    def _check_base(self, spec: TrainSpec) -> str:
        from workers.learning.training.base import fingerprint

        try:
            sha256 = fingerprint(Path(spec.base))
        except Unprocessable as error:
            raise _Refused("base", error.message) from error
        except OSError as error:
            raise _Refused("base", f"{error.filename}: {error.strerror}") from error
        if spec.base_sha256 and sha256 != spec.base_sha256:
            raise _Refused(
                "base",
                f"the base in {spec.base} has changed since the job was made: it is {sha256[:12]}, "
                f"the job is for {spec.base_sha256[:12]}",
            )
        return sha256

    def _rows(self, spec: TrainSpec, tokenizer: Any, limit: int) -> Rows:
        from workers.learning.training.examples import read_rows

        try:
            rows = read_rows(self._folder, spec, tokenizer, limit)
        except Unprocessable as error:
            raise _Refused("rows", error.message) from error
        self._speaker.say(
            Prepared(
                method=rows.method,
                rows=len(rows.train),
                evaluation_rows=len(rows.evaluation),
                longest_tokens=max(row.length for row in rows.train),
                left_out=rows.left_out,
            )
        )
        return rows

    def _take_devices(self, spec: TrainSpec) -> None:
        assert self._devices is not None
        if spec.locks is not None:
            self._speaker.say(Warming(stage="waiting", detail=", ".join(spec.devices)))
            self._devices.take()

    def _build(self, spec: TrainSpec, tokenizer: Any, rows: Rows, limit: int, keeper: Keeper) -> tuple[Any, Watch]:
        """The trainer, with the micro-batch that fits."""
        from workers.learning.training import dry_step
        from workers.learning.training.loop import Watch

        assert self._devices is not None
        per_process = spec.effective_batch // spec.processes
        micro = min(spec.rung.micro_batch or per_process, per_process)
        while per_process % micro:
            micro -= 1
        self._tried = (micro, limit)
        model = _open_model(spec)
        watch = Watch(spec, keeper, self._speaker, self._devices, processes=spec.processes)
        trainer = _make_trainer(spec, model, tokenizer, rows, micro, self._folder)
        peak: int | None = None
        if spec.memory_budget_bytes is not None:
            self._speaker.say(Warming(stage="measuring"))
            longest = sorted(rows.train, key=lambda row: row.length, reverse=True)[:per_process]
            try:
                choice = dry_step.choose(
                    trainer,
                    [_columns(row, rows.method) for row in longest],
                    rows_per_process=per_process,
                    limit=micro,
                    budget_bytes=spec.memory_budget_bytes,
                )
            except dry_step.DoesNotFit as error:
                self._tried = (error.micro_batch, limit)
                raise MemoryError(str(error)) from error
            peak = choice.peak_bytes
            if choice.micro_batch != micro:
                micro = choice.micro_batch
                trainer.args.per_device_train_batch_size = trainer._train_batch_size = micro
                trainer.args.per_device_eval_batch_size = micro
                trainer.args.gradient_accumulation_steps = per_process // micro
        self._tried = (micro, limit)
        trainer.keeper, trainer.on_saved = keeper, watch.save
        trainer.add_callback(watch)
        watch.trainer = trainer
        watch.planned = Planned(
            micro_batch=micro,
            accumulation=per_process // micro,
            processes=spec.processes,
            max_length=limit,
            activation_checkpointing=spec.rung.activation_checkpointing,
            peak_bytes=peak,
            budget_bytes=spec.memory_budget_bytes,
            steps=0,
            from_step=0,
            learning_rate=trainer.args.learning_rate,
            trainable_parameters=sum(one.numel() for one in trainer.model.parameters() if one.requires_grad),
        )
        return trainer, watch

    def _newest(self, keeper: Keeper) -> Path | None:
        found, skipped = keeper.newest_good()
        for torn in skipped:
            self._speaker.say(Skipped(name=torn.name, reason=torn.problem))
        return found.path if found is not None else None

    def _finish(self, trainer: Any, watch: Watch, keeper: Keeper, base_sha256: str) -> int:
        if self._rank > 0:
            return EXIT_FINISHED
        folder, sha256 = keeper.finish(trainer)
        best = keeper.best
        self._speaker.say(
            Finished(
                step=trainer.state.global_step,
                steps=trainer.state.max_steps,
                why="early_stop" if watch.stopped_early else "steps",
                adapter=str(folder),
                sha256=sha256,
                base_sha256=base_sha256,
                loss=watch.last_loss,
                best_step=best.step,
                best_loss=best.loss,
                took_s=round(time.monotonic() - self._started_at, 3),
            )
        )
        return EXIT_FINISHED

    # Ends

    def _say_stopped(self, step: int, checkpoint: str | None) -> None:
        self._speaker.say(Stopped(step=step, checkpoint=checkpoint))

    def _fail(self, kind: FailureKind, reason: str) -> int:
        watch = self._watch
        step = watch.trainer.state.global_step if watch is not None and watch.trainer is not None else 0
        micro, limit = self._tried
        self._speaker.say(
            Failed(
                kind=kind,
                reason=reason,
                step=step,
                checkpoint=watch.checkpoint if watch is not None else None,
                micro_batch=micro,
                max_length=limit,
            )
        )
        return EXIT_OUT_OF_MEMORY if kind == "memory" else EXIT_FAILED

    def _fail_with(self, error: Exception) -> int:
        if type(error).__name__ == "LossNotFinite":
            return self._fail("loss", str(error))
        if type(error).__name__ == "OverBudget" or _is_out_of_memory(error):
            return self._fail("memory", str(error).splitlines()[0] if str(error) else "memory could not be had")
        traceback.print_exc()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return self._fail("disk", f"{error.strerror}: {error.filename or self._folder}")
        first = str(error).strip().splitlines()[:1]
        return self._fail("internal", f"{type(error).__name__}: {first[0] if first else 'no words'}")


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    if "torch" not in sys.modules:
        return False
    from workers.learning.training.dry_step import is_out_of_memory

    return is_out_of_memory(error)


# Libraries ------------------------------------------------------------------------------------------------------------


def _prepare_environment(spec: TrainSpec) -> None:
    """What has to be set before torch looks at devices. GPUs are numbered as the driver does it, as the lease does."""
    if spec.device != "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(name.removeprefix("gpu") for name in spec.devices)


def _import_libraries() -> None:
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def _open_tokenizer(base: Path) -> tuple[Any, int]:
    """The base's tokenizer and the tokens of its window."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(base), local_files_only=True)
        config = AutoConfig.from_pretrained(str(base), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise _Refused("base", f"the base in {base} cannot be opened: {str(error).splitlines()[0]}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise _Refused("base", f"the base in {base} has a tokenizer without a padding and without an end token")
    window = getattr(config.get_text_config(), "max_position_embeddings", None) or 2**20
    return tokenizer, int(window)


def _open_model(spec: TrainSpec) -> Any:
    """The base with a trainable adapter on it: a fresh one, or the one to go on from."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, set_seed

    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    dtype = torch.float32 if spec.device == "cpu" else torch.bfloat16
    try:
        model = AutoModelForCausalLM.from_pretrained(
            spec.base, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise _Refused("base", f"the base in {spec.base} cannot be loaded: {str(error).splitlines()[0]}") from error
    except Exception as error:
        if type(error).__name__ == "SafetensorError":
            raise _Refused("base", f"the base in {spec.base} cannot be read: {error}") from error
        raise
    model.config.use_cache = False
    set_seed(spec.seed)
    if spec.previous is not None:
        return _with_previous(model, Path(spec.previous))
    targets, alpha = spec.lora.targets, float(spec.lora.alpha)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.lora.rank,
        # Any number will do; PEFT only says that it is a whole one, and other readers of its file believe that.
        lora_alpha=int(alpha) if alpha.is_integer() else alpha,  # type: ignore[arg-type]
        lora_dropout=spec.lora.dropout,
        target_modules=targets[0] if targets == ("all-linear",) else list(targets),
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise _Refused("spec", f"lora.targets is {', '.join(targets)}: {str(error).splitlines()[0]}") from error


def _with_previous(model: Any, folder: Path) -> Any:
    from peft import LoraConfig, PeftConfig, get_peft_model
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from workers.learning.training.keeper import CONFIG, WEIGHTS, load_adapter

    lacking = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if lacking:
        raise _Refused("adapter", f"the adapter to go on from, {folder}, has no {lacking[0]}")
    try:
        config = PeftConfig.from_pretrained(str(folder))
        if not isinstance(config, LoraConfig):
            raise _Refused("adapter", f"the adapter in {folder} is no LoRA adapter")
        config.inference_mode = False
        adapted = get_peft_model(model, config)
        load_adapter(adapted, load_file(folder / WEIGHTS), folder)
    except Unprocessable as error:
        raise _Refused("adapter", error.message) from error
    except (ValueError, TypeError, KeyError, SafetensorError) as error:
        raise _Refused("adapter", f"the adapter in {folder} cannot be gone on from: {error}") from error
    return adapted


def _make_trainer(spec: TrainSpec, model: Any, tokenizer: Any, rows: Rows, micro: int, folder: Path) -> Any:
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback
    from trl import DPOConfig, SFTConfig

    from workers.learning.training.loop import KeptDpo, KeptSft

    is_gpu = spec.device != "cpu"
    options: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": spec.effective_batch // spec.processes // micro,
        "learning_rate": spec.learning_rate or default_learning_rate(rows.method),
        "lr_scheduler_type": _SCHEDULES[spec.scheduler],
        "warmup_steps": spec.warmup_ratio,
        "weight_decay": spec.weight_decay,
        "num_train_epochs": spec.epochs,
        "max_steps": spec.max_steps or -1,
        "seed": spec.seed,
        "data_seed": spec.seed,
        "bf16": is_gpu,
        "use_cpu": not is_gpu,
        "gradient_checkpointing": spec.rung.activation_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if spec.rung.activation_checkpointing else None,
        "logging_steps": 1,
        # Otherwise the mean of earlier losses stands in for one that is no number.
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": is_gpu,
        "max_length": None,
        # All adapted matrices take part in every step.
        "ddp_find_unused_parameters": False,
    }

    def table(kept: list[Tokens]) -> Any:
        columns = [_columns(row, rows.method) for row in kept]
        return Dataset.from_dict({name: [row[name] for row in columns] for name in columns[0]})

    given = {
        "model": model,
        "processing_class": tokenizer,
        "train_dataset": table(rows.train),
        "eval_dataset": table(rows.evaluation) if rows.evaluation else None,
    }
    if rows.method == "dpo":
        trainer = KeptDpo(args=DPOConfig(**options, disable_dropout=False), **given)
    else:
        trainer = KeptSft(args=SFTConfig(**options), **given)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _columns(row: Tokens, method: str) -> dict[str, list[int]]:
    """One row as the collators of TRL take it."""
    if method == "dpo":
        return {"prompt_ids": row.prompt, "chosen_ids": row.answer, "rejected_ids": row.rejected}
    return {"input_ids": [*row.prompt, *row.answer], "labels": [-100] * len(row.prompt) + row.answer}


if __name__ == "__main__":
    main()
