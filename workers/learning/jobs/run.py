"""One run of a job, from what it needs to how it ended: the training, or what comes after it. Every phase may be repeated.

    train   data and base checked -> chosen what to train with -> memory leased -> trained
    judge   attached as challenger -> the gate's verdict -> promoted, kept for a person to promote, or discarded

When a run may begin, and what follows from its end, is the scheduler's business.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from bus.client import Client
from bus.settings import Settings
from bus.sizes import parse_size, size_in_words
from schemas.bodies.learning_gate import GateResult, LearningEvaluateProgress, PowerShow
from schemas.bodies.learning_jobs import JobState, LoraSettings
from schemas.bodies.learning_tuning import RateGet
from schemas.bodies.model import ModelInfo, ModelShow
from schemas.errors import BusError, Cancelled, Conflict, NotFound, Rejected, Retryable, Unprocessable
from workers.learning.gate.gate import Judged
from workers.learning.jobs.decisions import How
from workers.learning.jobs.leasing import Held, Lease, Leases, Wanted
from workers.learning.jobs.live import Live
from workers.learning.jobs.seams import Datasets, Judge, Needs, Promoter, Trained, Tuner
from workers.learning.jobs.tally import Tally
from workers.learning.training import checkpoints, messages
from workers.learning.training import spec as specs
from workers.learning.training.base import shape_of
from workers.learning.training.estimate import estimate
from workers.learning.training.training import Ended, Nest, TrainingRun
from workers.learning.tuning.rates import JobOutcome

log = logging.getLogger("olympus.learning.jobs")

ROWS: Final = "train.jsonl"

# Seconds between two tellings of a training's progress: a few a second is more than a person reads.
_TELL_S: Final = 0.5

# Seconds between two looks whether the rows may still be trained on.
_CHECK_S: Final = 5.0

# What the estimate may miss by; the trainer's dry step then finds what fits exactly.
_SPARE: Final = 1.15

# With fewer rows none is set aside to see when the training has learned enough; and never more than so many.
_ROWS_TO_EVALUATE: Final = 200
_EVALUATED_ROWS: Final = 100
# Evaluations of an epoch, and how many in a row without a lower loss end the training: two epochs.
_EVALUATIONS: Final = 2
_PATIENCE: Final = 4

# The least there is to try: one row of so many tokens at a time.
_LEAST_TOKENS: Final = 64


class Parts(NamedTuple):
    """What runs work with."""

    settings: Settings
    client: Client
    leases: Leases
    datasets: Datasets
    judge: Judge
    promoter: Promoter
    tuner: Tuner
    needs: Needs
    tally: Tally


class Over(NamedTuple):
    """How a run ended. state: what became of a job with which nothing is left to do."""

    how: How
    reason: str = ""
    state: JobState = "failed"


class Run:
    """Works on one job. nest: the warm parent of trainers, None to start cold.

    on_training: called when its trainer begins to run. on_lease_lost: called with the reason when its memory goes.
    """

    def __init__(
        self,
        parts: Parts,
        live: Live,
        folder: Path,
        devices: tuple[str, ...],
        nest: Nest | None,
        *,
        on_training: Callable[[], None],
        on_lease_lost: Callable[[str], None],
    ) -> None:
        self._parts = parts
        self._live = live
        self._folder = folder
        self._devices = devices
        self._nest = nest
        self._on_training = on_training
        self._on_lease_lost = on_lease_lost
        self._halted = ""
        self._may_cancel = True
        self._failure = ""
        self._task: asyncio.Task[Over] | None = None
        self._training: TrainingRun | None = None
        self._lease: Lease | None = None
        self._spent_s = 0.0
        self._began_at = 0.0

    # From outside

    async def train(self) -> Over:
        """Everything until there is an adapter."""
        return await self._guarded(self._train())

    async def judge(self) -> Over:
        """Everything after there is one."""
        return await self._guarded(self._judge())

    def halt(self, reason: str) -> None:
        """Stop at a checkpoint, or between two steps of what comes before and after; a promotion is finished first."""
        self._halted = self._halted or reason
        if self._training is not None and self._training.pid is not None:
            self._training.stop()
        elif self._task is not None and self._may_cancel:
            self._task.cancel()

    def kill(self) -> None:
        """Stop at once; the newest checkpoint stands."""
        if self._training is not None:
            self._training.kill()

    def owns(self, lease_id: str) -> bool:
        """Whether that lease is this run's."""
        return self._lease is not None and self._lease.owns(lease_id)

    async def _guarded(self, work: Coroutine[Any, Any, Over]) -> Over:
        self._task = asyncio.get_running_loop().create_task(work)
        if self._halted:
            self._task.cancel()
        try:
            over = await self._task
        except asyncio.CancelledError:
            if not self._halted:
                raise
            over = Over("stopped", self._halted)
        except Held as error:
            over = Over("refused", str(error))
        except Cancelled:
            over = Over("stopped", self._halted or "the service stops")
        except Rejected as error:
            over = Over("failed", error.message)
        except Retryable as error:
            over = Over("away", error.message)
        except BusError as error:
            over = Over("lost", error.message)
        except OSError as error:
            over = Over("failed", f"{error.strerror or error} ({error.filename or self._folder})")
        finally:
            await self._release()
            await asyncio.to_thread((self._folder / ROWS).unlink, missing_ok=True)
        if over.how == "failed":
            await self._tell_failure()
        return over

    async def _release(self) -> None:
        if self._lease is not None:
            await self._lease.release()
            self._lease = None

    async def _tell_failure(self) -> None:
        """What went wrong counts for the choices of the next job."""
        kept = self._live.kept
        if self._failure and not kept.is_trained:
            await self._parts.tuner.learned(self._outcome(failure=self._failure))

    # Training

    async def _train(self) -> Over:
        live, info = self._live, self._live.info
        await self._check_rows()
        model = await self._base()
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = await self._parts.datasets.write_train(info.dataset, info.version, self._folder / ROWS)
        if not file.rows:
            raise Unprocessable(f"{info.dataset} version {info.version} has no rows to train on: every one is held out")
        if not live.kept.is_chosen:
            await self._choose("dpo" if self._is_dpo(file.preferences, file.rows) else "sft")
        live.progress("leasing")
        budget = await self._acquire()
        if self._halted:
            return Over("stopped", self._halted)
        live.change(state="training", reason="", attempts=info.attempts + 1, device=self._devices[0])
        live.say("begun", f"training on {', '.join(self._devices)}", devices=list(self._devices), budget_bytes=budget)
        await live.save()
        ended = await self._run_trainer(self._spec(model, budget, file.rows))
        return await self._after_training(ended, file.rows)

    async def _check_rows(self) -> None:
        """Raises Conflict where the dataset may not be trained on any more."""
        info = self._live.info
        reason = await self._parts.datasets.check(info.dataset, info.version)
        if reason:
            raise Conflict(f"{info.dataset} version {info.version} may not be trained on: {reason}")

    async def _base(self) -> ModelInfo:
        """The model with its weights; what is missing is said in words that help. Raises Unprocessable."""
        live = self._live
        model: ModelInfo = await self._parts.client.request("model.show", ModelShow(model=live.info.model))
        if not model.weights:
            raise Unprocessable(
                f"{model.name} has no weights that can be trained here ({model.format or 'unknown format'}); training"
                f' needs the folder of safetensors it was made from: set weights = "FOLDER" for {model.name} in'
                " models.toml, or train a model that is such a folder",
                model=model.name,
            )
        dataset = await self._parts.datasets.info(live.info.dataset, live.info.version)
        if dataset.model_sha256 and model.sha256 and dataset.model_sha256 != model.sha256:
            raise Unprocessable(
                f"{model.name} has another content than when {dataset.dataset} version {dataset.version} was made"
                f" ({model.sha256[:12]}, then {dataset.model_sha256[:12]}): build the dataset anew",
                model=model.name,
            )
        live.note(base=model.weights, model_sha256=model.sha256 or "")
        return model

    async def _choose(self, method: specs.Method) -> None:
        """Decide once what the job trains with, and say what power its data has."""
        live, request = self._live, self._live.kept.request
        info = live.info
        power = await self._parts.judge.power(PowerShow(dataset=info.dataset, version=info.version))
        live.change(power=power.words)
        live.say("power", power.words, is_enough=power.is_enough, power=power.power)
        rate = await self._parts.tuner.rate(RateGet(model=info.model))
        learning_rate = request.learning_rate or rate.learning_rate * _rate_factor(method)
        epochs = request.epochs or rate.epochs
        live.say("chosen", f"learning rate {learning_rate:g}, {epochs:g} epochs: {rate.reason}", formula=rate.formula)
        previous = None
        if request.previous != "":
            previous = await self._parts.promoter.previous(info.model, request.previous)
        if previous is not None:
            live.say("previous", f"goes on from {previous.adapter}", path=previous.path)
            live.note(previous=previous.adapter, previous_path=previous.path)
        live.change(
            config={
                **info.config,
                "method": method,
                "learning_rate": learning_rate,
                "epochs": epochs,
                "lora": {name: getattr(request.lora, name) for name in request.lora.__struct_fields__},
                "previous": previous.adapter if previous else "",
                "reason": rate.reason,
            }
        )
        live.note(is_chosen=True)
        await live.save()

    def _is_dpo(self, preferences: int, rows: int) -> bool:
        method = self._live.kept.request.method
        return method == "dpo" or (method == "auto" and preferences == rows)

    async def _acquire(self) -> int | None:
        """Memory for it: bytes each process may take, None for no limit. Raises Held, Unprocessable."""
        live, request = self._live, self._live.kept.request
        wanted = await asyncio.to_thread(self._wanted)
        setting = self._parts.settings.learning.memory
        cap = request.budget_bytes or (None if setting == "auto" else parse_size(setting))
        if cap is not None:
            if cap < wanted.least_bytes:
                least = size_in_words(wanted.least_bytes)
                live.say("memory", f"{size_in_words(cap)} may be too little; the least is about {least}")
            wanted = wanted._replace(most_bytes=min(wanted.most_bytes, cap), least_bytes=min(wanted.least_bytes, cap))
        got = await self._hold(wanted)
        if got is None:
            return cap
        live.say("leased", f"{size_in_words(got)} on {', '.join(wanted.devices)}", size_bytes=got)
        return got // (request.processes if wanted.devices == ("cpu",) else 1)

    async def _hold(self, wanted: Wanted) -> int | None:
        info = self._live.info
        self._lease = self._parts.leases.of(info.job_id, info.attempts, info.priority, self._on_lease_lost)
        return await self._lease.acquire(wanted)

    def _wanted(self) -> Wanted:
        """What the base's shape tells. Blocks on the disk."""
        kept = self._live.kept
        shape = shape_of(Path(kept.base))
        request = kept.request
        lora = _lora(request.lora)
        method: specs.Method = "dpo" if kept.info.config["method"] == "dpo" else "sft"
        tokens = request.max_length or specs.MAX_LENGTH
        is_cpu = self._devices == ("cpu",)
        rows = max(
            (request.batch_size or specs.TrainSpec(job_id="-", base="-").effective_batch) // request.processes, 1
        )
        most = estimate(
            shape,
            lora=lora,
            method=method,
            tokens=tokens,
            micro_batch=rows,
            device=self._devices[0],
        )
        least = estimate(
            shape,
            lora=lora,
            method=method,
            tokens=min(tokens, _LEAST_TOKENS),
            activation_checkpointing=True,
            device=self._devices[0],
        )
        times = _SPARE * (request.processes if is_cpu else 1)
        return Wanted(
            self._devices, round(least.device_bytes * times), round(most.device_bytes * times), most.ram_bytes
        )

    def _spec(self, model: ModelInfo, budget: int | None, rows: int) -> specs.TrainSpec:
        kept, settings = self._live.kept, self._parts.settings
        request, learning = kept.request, self._parts.settings.learning
        defaults = specs.TrainSpec(job_id="-", base="-")
        return specs.TrainSpec(
            job_id=kept.info.job_id,
            base=kept.base,
            base_name=model.name,
            base_sha256=kept.base_sha256,
            previous=kept.previous_path or None,
            method=request.method,
            lora=_lora(request.lora),
            learning_rate=float(kept.info.config["learning_rate"]),
            epochs=float(kept.info.config["epochs"]),
            max_steps=request.max_steps,
            effective_batch=request.batch_size or defaults.effective_batch,
            max_length=request.max_length,
            seed=request.seed,
            memory_budget_bytes=budget,
            device=self._devices[0],
            processes=request.processes,
            save_every_s=learning.save_s,
            checkpoints_kept=learning.checkpoints_kept,
            checkpoints_bytes=parse_size(learning.checkpoints_size),
            stop=stop_rules(rows, request.batch_size or defaults.effective_batch),
            rung=msgspec.json.decode(kept.rung, type=specs.Rung) if kept.rung else specs.Rung(),
            locks=str(settings.path("locks")),
        )

    async def _run_trainer(self, spec: specs.TrainSpec) -> Ended:
        training = self._training = TrainingRun(self._nest, self._hear)
        self._on_training()
        self._spent_s, self._began_at = self._live.info.spent_s, time.monotonic()
        beside = [
            asyncio.get_running_loop().create_task(self._tell_forever(), name="training progress"),
            asyncio.get_running_loop().create_task(self._check_forever(), name="training rows"),
        ]
        try:
            return await training.run(spec, self._folder)
        finally:
            self._training = None
            self._count()
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    def _hear(self, message: messages.AnyMessage) -> None:
        if isinstance(message, messages.Progress):
            self._parts.tally.tokens += message.tokens
        self._live.hear(message)

    def _count(self) -> None:
        """The seconds of this training, with those of earlier tries."""
        self._live.change(spent_s=self._spent_s + time.monotonic() - self._began_at)

    async def _tell_forever(self) -> None:
        live, told = self._live, None
        while True:
            await asyncio.sleep(_TELL_S)
            self._count()
            try:
                await live.save()
                progress = live.info.progress
                if progress is None or progress.loss is None or progress.step == told:
                    continue
                told = progress.step
                metrics = {"loss": progress.loss, "learning_rate": progress.learning_rate or 0.0}
                await self._parts.tuner.follow(
                    live.info.job_id, live.info.model, progress=progress.step / max(progress.steps, 1), metrics=metrics
                )
            except BusError as error:
                log.warning("progress not kept", extra={"action": "learning.job.unkept", "error": str(error)})
            # A learning session takes one measurement a second.
            await asyncio.sleep(_TELL_S)

    async def _check_forever(self) -> None:
        """Stop as soon as a row of the dataset was forgotten by its user."""
        info = self._live.info
        while True:
            await asyncio.sleep(_CHECK_S)
            try:
                dataset = await self._parts.datasets.info(info.dataset, info.version)
            except NotFound:
                self.halt(f"{info.dataset} version {info.version} was deleted")
                return
            except BusError as error:
                log.warning("rows not checked", extra={"action": "learning.job.unchecked", "error": str(error)})
                continue
            if dataset.is_stale:
                self.halt(dataset.is_stale)
                return

    async def _after_training(self, ended: Ended, rows: int) -> Over:
        live = self._live
        match ended.how:
            case "finished":
                await self._on_trained(ended, rows)
                return Over("trained")
            case "stopped":
                # What stops for good, like forgotten rows, is found at the next check.
                live.say("sealed", f"stopped at {ended.checkpoint or 'no checkpoint'}", checkpoint=ended.checkpoint)
                return Over("stopped", self._halted or ended.reason)
            case "out_of_memory":
                live.note(rung="")
                live.change(rung=0)
                return Over("memory", f"out of memory with the least there is to try: {ended.reason}")
            case "lost":
                return Over("lost", ended.reason)
        if ended.kind == "device":
            return Over("refused", ended.reason)
        self._failure = ended.kind
        return Over("failed", ended.reason)

    async def _on_trained(self, ended: Ended, rows: int) -> None:
        live, finished = self._live, ended.finished
        assert finished is not None
        live.change(
            adapter_path=finished.adapter, config={**live.info.config, "loss": finished.loss, "steps": finished.step}
        )
        live.note(
            is_trained=True,
            base_sha256=finished.base_sha256,
            adapter_sha256=finished.sha256,
            steps=finished.steps,
            best_step=finished.best_step or 0,
        )
        live.announce("learning.training.finished", live.info)
        await live.save()
        await self._parts.tuner.followed(live.info.job_id, "completed")
        await self._parts.needs.note_cost(live.info.model, rows, finished.took_s)

    # Judging

    async def _judge(self) -> Over:
        live = self._live
        await self._check_rows()
        result = await self._parts.judge.verdict_of(live.info.job_id)
        if result is None:
            result = await self._decide()
        live.change(verdict=result.verdict, adapter=live.info.adapter or result.adapter.split(":")[0])
        live.say(
            "verdict", f"{result.verdict}: {'; '.join(result.reasons)}"[:1_000], evaluation_id=result.evaluation_id
        )
        await live.save()
        await self._parts.tuner.learned(self._outcome(result=result))
        self._may_cancel = False
        return await self._settle(result)

    async def _decide(self) -> GateResult:
        """Attach it and let the gate decide."""
        live = self._live
        live.change(state="evaluating", reason="")
        live.progress("attaching")
        live.say("attaching", "the adapter is attached as challenger, and compared with what was trained")
        await live.save()
        # To compare it, a program computes with the base model in main memory.
        shape = await asyncio.to_thread(shape_of, Path(live.kept.base))
        beside = estimate(shape, lora=_lora(live.kept.request.lora), tokens=_LEAST_TOKENS)
        size = beside.weights_bytes + beside.process_bytes
        await self._hold(Wanted(("cpu",), size, size, 0))
        prepared = await self._parts.promoter.prepare(trained_of(live))
        await self._release()
        live.change(adapter=prepared.adapter)
        live.say("attached", prepared.words, adapter=prepared.adapter)
        await live.save()
        info = live.info
        judged = Judged(
            model=info.model, adapter=prepared.adapter, dataset=info.dataset, version=info.version, job_id=info.job_id
        )
        saving = asyncio.get_running_loop().create_task(self._save_forever(), name="evaluation progress")
        try:
            return await self._parts.judge.decide(judged, on_progress=self._on_evaluated)
        finally:
            saving.cancel()
            await asyncio.gather(saving, return_exceptions=True)

    async def _on_evaluated(self, progress: LearningEvaluateProgress) -> None:
        self._live.progress("evaluating", done=progress.done, total=progress.total, note=progress.phase)

    async def _save_forever(self) -> None:
        while True:
            await asyncio.sleep(_TELL_S)
            try:
                await self._live.save()
            except BusError as error:
                log.warning("progress not kept", extra={"action": "learning.job.unkept", "error": str(error)})

    async def _settle(self, result: GateResult) -> Over:
        """What follows from the verdict."""
        live, mode = self._live, self._live.info.promote
        if result.verdict == "passed" and mode == "auto":
            live.change(state="promoting")
            live.progress("promoting")
            await live.save()
            deployment = await self._parts.promoter.promote(trained_of(live))
            if deployment.state == "rolled_back":
                # Between a promotion and the writing of its job the service was killed, for long enough.
                return Over("done", f"it was promoted and taken back: {deployment.reason}", "passed")
            words = f"{deployment.adapter} is {deployment.state}, with {deployment.share:.0%} of the conversations"
            return Over("done", words, "promoted")
        if result.verdict == "passed" and mode == "ask":
            return Over("done", "the gate passed it; it waits for somebody to promote it", "passed")
        await self._parts.promoter.discard(trained_of(live))
        if result.verdict == "passed":
            return Over("done", "the gate passed it; it is not to be promoted", "passed")
        return Over("done", result.reasons[0] if result.reasons else "", result.verdict)

    def _outcome(self, *, result: GateResult | None = None, failure: str = "") -> JobOutcome:
        kept, config = self._live.kept, self._live.info.config
        factor = _rate_factor("dpo" if config["method"] == "dpo" else "sft")
        return JobOutcome(
            job_id=kept.info.job_id,
            model=kept.info.model,
            learning_rate=float(config["learning_rate"]) / factor,
            epochs=float(config["epochs"]),
            steps=kept.steps,
            best_step=kept.best_step,
            result=result,
            failure=failure,
        )


def stop_rules(rows: int, batch: int) -> specs.StopRules:
    """When a training on so many rows ends early: of a large one a part is set aside, whose loss has to fall."""
    if rows < _ROWS_TO_EVALUATE:
        return specs.StopRules()
    share = min(specs.StopRules().evaluation_share, _EVALUATED_ROWS / rows)
    steps = round(rows * (1 - share) / batch / _EVALUATIONS)
    return specs.StopRules(patience=_PATIENCE, evaluate_every_steps=max(steps, 1), evaluation_share=share)


def trained_of(live: Live) -> Trained:
    """What others need to know of the job's adapter."""
    kept, info = live.kept, live.info
    return Trained(
        job_id=info.job_id,
        model=info.model,
        base=kept.base,
        base_sha256=kept.base_sha256,
        model_sha256=kept.model_sha256,
        dataset=info.dataset,
        version=info.version,
        adapter_path=info.adapter_path,
        adapter_sha256=kept.adapter_sha256,
        previous=kept.previous,
        adapter=info.adapter,
        verdict=info.verdict,
    )


def clear(folder: Path) -> None:
    """Delete what a job that is over needs no more: checkpoints and rows. Its adapter stays. Blocks on the disk."""
    checkpoints.discard(folder / specs.CHECKPOINTS)
    for left in folder.glob(f"{specs.MEETING}*"):
        shutil.rmtree(left, ignore_errors=True)
    (folder / ROWS).unlink(missing_ok=True)


def _rate_factor(method: specs.Method) -> float:
    """What the learning rates of tuning, which are for SFT, are multiplied with."""
    return specs.default_learning_rate(method) / specs.default_learning_rate("sft")


def _lora(asked: LoraSettings) -> specs.Lora:
    return specs.Lora(rank=asked.rank, alpha=asked.alpha, dropout=asked.dropout, targets=tuple(asked.targets))
