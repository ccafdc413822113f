"""Trainings: the operations on them, and the loop that has the scheduler decide and carries out what it says.

Everything about a job is on disk before it is acknowledged. After kill -9 every job goes on where its rows and its
checkpoints are: a job that ran is queued again, and each phase of a run may be repeated.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from bus.client import Client
from bus.nvidia import expects_gpus
from bus.records import Records
from bus.settings import Settings
from schemas.bodies import learning_jobs as bodies
from schemas.bodies.learning_data import DatasetBuild, DatasetInfo
from schemas.bodies.model import UsageEvent
from schemas.bodies.resource import GpuStatus, GpuStatusReply, LeaseEvent
from schemas.errors import BadRequest, BusError, Conflict, NotFound
from schemas.purpose import OWN_PURPOSE
from workers.learning.jobs import decisions as say
from workers.learning.jobs.automatic import Automatic, dataset_name
from workers.learning.jobs.book import FINAL, Book, Kept, thinned
from workers.learning.jobs.leasing import SERVICE, Leases
from workers.learning.jobs.live import Live, entry_of
from workers.learning.jobs.run import Over, Parts, Run, clear, trained_of
from workers.learning.jobs.scheduler import Scheduler
from workers.learning.jobs.seams import Datasets, Judge, Needs, Promoter, Trained, Tuner
from workers.learning.jobs.tally import Tally
from workers.learning.jobs.timetable import InForce, in_force, merged
from workers.learning.training import spec as specs
from workers.learning.training.checkpoints import delete, list_checkpoints, verify
from workers.learning.training.training import Nest

log = logging.getLogger("olympus.learning.jobs")

# Seconds between two looks at the clock while there are jobs.
_TICK_S: Final = 1.0

# Seconds between two writings of the day's seconds; so many are lost at most when the service is killed.
_KEEP_DAYS_S: Final = 5.0

# Seconds between two looks for what could be learned unasked, and for left-overs of old jobs.
_LOOK_S: Final = 5.0
_SWEEP_S: Final = 3_600.0

# So long after a lost connection events are listened to again.
_LISTEN_AGAIN_S: Final = 1.0

# Seconds the resource service may take to say which devices there are.
_ANSWER_S: Final = 2.0

# Where GPUs are expected, jobs wait so long to hear of them; and so long passes between two questions.
_GPUS_WITHIN_S: Final = 15.0
_GPUS_AGAIN_S: Final = 0.5

_DAY_S: Final = 86_400.0

# So long after the disk did not take something it is tried again.
_AGAIN_S: Final = 5.0

# Jobs whose left-overs are looked at in one sweep.
_SWEPT: Final = 10_000

Partial = Callable[[Any], Awaitable[None]]


class Training:
    """The operations `learning.training.*`, `learning.checkpoint.*` and `learning.schedule.*`.

    `start` once the records are open, `stop` while the other parts still work.
    """

    def __init__(
        self,
        settings: Settings,
        client: Client,
        records: Records,
        *,
        curation: Datasets,
        gate: Judge,
        promotion: Promoter,
        tuning: Tuner,
        opportunities: Needs,
        nest: Nest,
    ) -> None:
        self._settings = settings
        self._client = client
        self.tally = Tally()
        self._parts = Parts(
            settings, client, Leases(client), curation, gate, promotion, tuning, opportunities, self.tally
        )
        self._book = Book(records)
        self._publish = client.publish
        self._folder = settings.path("learning", "jobs")
        self._nest = nest
        self._near_at = float("-inf")
        self._said = bodies.ScheduleSet()
        self._devices: tuple[str, ...] = () if expects_gpus(settings.resources) else ("cpu",)
        self._scheduler = Scheduler(self._in_force().policy(self._devices), {})
        self._live: dict[str, Live] = {}
        self._runs: dict[str, Run] = {}
        self._starting: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._work: set[asyncio.Task[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self._automatic = Automatic(self._parts, self._book)
        self._is_leaving = False

    # Life

    async def start(self) -> None:
        """Read the jobs back, and go on with them."""
        self._said = await self._book.schedule()
        self._scheduler = Scheduler(self._in_force().policy(self._devices), await self._book.days())
        for kept in await self._book.unfinished():
            live = self._live[kept.info.job_id] = Live(kept, self._book, self._publish)
            if kept.info.state != "queued":
                live.say("restarted", f"the service was started anew; it was {kept.info.state}")
                live.change(state="queued")
            await asyncio.to_thread((self._job_folder(kept) / "train.jsonl").unlink, missing_ok=True)
            await live.save()
        for live in list(self._live.values()):
            self._tell(say.Submitted(_job_of(live.kept), live.info.reason or "the service was started anew"))
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._find_devices(), name="training devices"),
            loop.create_task(self._tick_forever(), name="training clock"),
            loop.create_task(self._listen_forever(), name="training events"),
            loop.create_task(self._look_forever(), name="automatic training"),
            loop.create_task(self._sweep_forever(), name="old trainings"),
        ]

    async def stop(self, limit_s: float) -> None:
        """Trainers seal a checkpoint within `limit_s`, everything else stops where it is; the jobs stay queued."""
        self._is_leaving = True
        await _cancel(self._tasks)
        for run in self._runs.values():
            run.halt("the service stops")
        for live in self._live.values():
            for watcher in live.watchers:
                watcher.set()
        if self._work:
            _, late = await asyncio.wait(set(self._work), timeout=limit_s)
            if late:
                log.warning("trainers killed", extra={"action": "learning.job.killed", "count": len(late)})
                for run in self._runs.values():
                    run.kill()
                for task in late:
                    task.cancel()
                await asyncio.gather(*late, return_exceptions=True)
        await self._book.keep_days(self._scheduler.spent)
        await self._nest.close()

    # Operations on trainings

    async def start_training(self, request: bodies.TrainingStart, call_id: bytes, tell: Partial) -> bodies.JobInfo:
        """Queue a training; the same job_id, or the same request sent again, is the same job.

        Raises BadRequest, NotFound, Conflict for a job_id with another content, and what building a dataset raises.
        """
        if (request.dataset is None) == (request.opportunity_id is None):
            raise BadRequest("name either a dataset or an opportunity_id", field="dataset")
        if request.batch_size is not None and request.batch_size % request.processes:
            raise BadRequest(
                f"field 'batch_size' is {request.batch_size}, it must be a multiple of processes ({request.processes})",
                field="batch_size",
            )
        job_id = request.job_id or f"job-{call_id.hex()[:12]}"
        async with self._starting.setdefault(job_id, asyncio.Lock()):
            kept = await self._find(job_id)
            if kept is None:
                await self._add(job_id, request, await self._dataset_of(request), is_automatic=False)
            elif _content(kept.request) != _content(request):
                raise Conflict(f"job {job_id} exists already and is another one", job_id=job_id)
        if request.wait:
            await self._wait(job_id, tell)
        return await self.status(bodies.TrainingStatus(job_id=job_id))

    async def stop_training(self, request: bodies.TrainingStop) -> bodies.JobInfo:
        """Answers when it is asked to stop, or has; how it ends, its state says. Raises NotFound."""
        await self._known(request.job_id)
        self._tell(say.Withdrawn(request.job_id, request.reason))
        if request.job_id not in self._runs:
            await self._settled()
        return await self.status(bodies.TrainingStatus(job_id=request.job_id))

    async def resume(self, request: bodies.TrainingResume) -> bodies.JobInfo:
        """Raises NotFound, Conflict for a job that has come to its end."""
        kept = await self._known(request.job_id)
        if kept.is_final:
            if kept.info.state not in ("stopped", "failed"):
                raise Conflict(
                    f"job {request.job_id} is {kept.info.state}: there is nothing to resume", state=kept.info.state
                )
            live = self._live.setdefault(request.job_id, Live(kept, self._book, self._publish))
            live.note(is_now=request.is_now or kept.request.is_now, failures=0, budget_from_s=kept.info.spent_s)
            live.change(state="queued", reason="", finished_at=None)
            live.say("resumed", "resumed by request")
            await _to_its_end(self._submit(live, live.save))
        elif request.is_now and not kept.is_now and request.job_id not in self._runs:
            self._live[request.job_id].note(is_now=True)
            await self._live[request.job_id].save()
            self._tell(say.Urgent(request.job_id))
        return await self.status(bodies.TrainingStatus(job_id=request.job_id))

    async def status(self, request: bodies.TrainingStatus) -> bodies.JobInfo:
        """Raises NotFound."""
        return self._shown(await self._known(request.job_id))

    async def list_jobs(self, request: bodies.TrainingList) -> bodies.Jobs:
        """Jobs, the newest first."""
        found = await self._book.newest(model=request.model, state=request.state, limit=request.limit)
        return bodies.Jobs(jobs=[self._shown(kept) for kept in found])

    async def log(self, request: bodies.TrainingLog) -> bodies.JobLog:
        """Raises NotFound."""
        job = await self.status(bodies.TrainingStatus(job_id=request.job_id))
        entries = await self._book.log(request.job_id, request.after, request.limit)
        points = thinned(await self._book.curve(request.job_id), request.points) if request.points else []
        return bodies.JobLog(job=job, entries=entries, points=points)

    # Operations on checkpoints

    async def checkpoints(self, request: bodies.CheckpointList) -> bodies.Checkpoints:
        """Every file of each is hashed. Raises NotFound."""
        kept = await self._known(request.job_id)
        folder = self._job_folder(kept) / specs.CHECKPOINTS
        found = await asyncio.to_thread(lambda: [verify(one.path) for one in list_checkpoints(folder)])
        return bodies.Checkpoints(
            checkpoints=[
                bodies.CheckpointInfo(
                    job_id=request.job_id,
                    checkpoint=one.name,
                    step=one.step,
                    at=one.created_at,
                    size_bytes=one.size_bytes,
                    sha256=one.sha256,
                    problem=one.problem,
                )
                for one in found
            ]
        )

    async def delete_checkpoint(self, request: bodies.CheckpointDelete) -> bodies.CheckpointDeleted:
        """Raises NotFound, Conflict for the newest good one of a job that is not finished."""
        kept = await self._known(request.job_id)
        folder = self._job_folder(kept) / specs.CHECKPOINTS
        is_over = kept.is_final and kept.info.state not in ("stopped", "failed")
        gone = await asyncio.to_thread(delete, folder, request.checkpoint, even_last=is_over)
        return bodies.CheckpointDeleted(job_id=request.job_id, checkpoint=gone.name, freed_bytes=gone.size_bytes)

    # Operations on the schedule

    def schedule(self) -> bodies.Schedule:
        """When training may run, and what waits."""
        now, force = _now(), self._in_force()
        closed = self._scheduler.closed(now)
        return bodies.Schedule(
            hours=force.hours,
            days=force.days,
            budget_s=force.budget_s,
            idle_s=force.idle_s,
            is_paused=force.is_paused,
            is_automatic=force.is_automatic,
            spent_s=self._scheduler.spent_s(now),
            is_open=not closed.reason,
            reason=closed.reason,
            opens_at=closed.opens_at,
            running=self._scheduler.running(),
            queued=self._scheduler.queued(now),
        )

    async def set_schedule(self, request: bodies.ScheduleSet) -> bodies.Schedule:
        """Raises BadRequest for hours that no clock shows."""
        said = merged(self._said, request)
        await self._book.keep_schedule(said)
        self._said = said
        self._tell(say.Changed(self._in_force().policy(self._devices)))
        return self.schedule()

    # For the other parts

    async def job_needing(self, dataset: str, version: int) -> str:
        """A job that is not over and needs that version of a dataset, "" for none."""
        for live in self._live.values():
            if (live.info.dataset, live.info.version) == (dataset, version):
                return live.info.job_id
        return ""

    async def trained(self, job_id: str) -> Trained:
        """What a job trained. Raises NotFound, Conflict while it has no adapter."""
        kept = await self._known(job_id)
        if not kept.is_trained:
            raise Conflict(
                f"job {job_id} has no adapter: it is {kept.info.state}", job_id=job_id, state=kept.info.state
            )
        return trained_of(Live(kept, self._book, self._publish))

    async def promoted(self, job_id: str) -> None:
        """Its adapter was put to work by somebody; nothing where that is known. Raises NotFound."""
        kept = await self._known(job_id)
        if kept.info.state == "promoted":
            return
        live = self._live.get(job_id) or Live(kept, self._book, self._publish)
        live.change(state="promoted", reason="promoted by request")
        live.say("promoted", "promoted by request")
        await live.save()
        await self._mark(live, "learned", "promoted by request")

    async def taken_back(self, job_id: str, reason: str) -> None:
        """Its adapter was rolled back: what it had learned is open again. Nothing for a job that is not known."""
        kept = await self._find(job_id)
        if kept is not None and kept.info.opportunities:
            await self._parts.needs.mark(kept.info.opportunities, "open", job_id=job_id, reason=reason)

    def progress(self) -> bodies.JobProgress | None:
        """How far the training is that runs, the first of several; None where none does."""
        running = (self._live[job_id].info.progress for job_id in self._runs)
        return next((one for one in running if one is not None and one.phase == "training"), None)

    def problems(self) -> dict[str, str]:
        """What keeps trainings from being done, by what is missing; jobs that wait for their turn have no problem."""
        problems = {}
        if not self._devices:
            problems["resource"] = "the resource service does not tell of the GPUs; no training begins before it does"
        failing = [live.info for live in self._live.values() if live.kept.failures and not live.kept.is_final]
        if failing:
            problems["trainings"] = "; ".join(f"{info.job_id} is {info.state}: {info.reason}" for info in failing)
        return problems

    # New jobs

    async def _dataset_of(self, request: bodies.TrainingStart) -> DatasetInfo:
        if request.dataset is not None:
            dataset = await self._parts.datasets.info(request.dataset, request.version)
        else:
            assert request.opportunity_id is not None
            opportunity = await self._parts.needs.get(request.opportunity_id)
            dataset = await self._parts.datasets.build(
                DatasetBuild(
                    dataset=dataset_name(opportunity.opportunity_id),
                    model=opportunity.model,
                    opportunities=[opportunity.opportunity_id],
                )
            )
        if request.model is not None and request.model != dataset.model:
            raise BadRequest(
                f"field 'model' is {request.model!r}, but {dataset.dataset} version {dataset.version} is of"
                f" {dataset.model!r}: an adapter is trained for the model its rows are about",
                field="model",
            )
        return dataset

    async def _add(
        self, job_id: str, request: bodies.TrainingStart, dataset: DatasetInfo, *, is_automatic: bool
    ) -> None:
        """Keep it, then let it be scheduled."""
        info = bodies.JobInfo(
            job_id=job_id,
            model=dataset.model,
            dataset=dataset.dataset,
            version=dataset.version,
            state="queued",
            reason="",
            priority=request.priority,
            created_at=time.time(),
            started_at=None,
            finished_at=None,
            spent_s=0.0,
            attempts=0,
            rung=0,
            device=request.device or "",
            config={"method": request.method},
            progress=None,
            adapter="",
            adapter_path="",
            verdict="",
            opportunities=dataset.opportunities,
            promote=request.promote or self._settings.learning.promote,
        )
        kept = Kept(
            info=info,
            request=request,
            dataset_sha256=dataset.sha256,
            is_automatic=is_automatic,
            is_now=request.is_now,
        )
        whence = "unasked, from what was noticed" if is_automatic else "by request"
        entry = entry_of("created", whence, {"dataset": dataset.dataset, "version": dataset.version})
        live = Live(kept, self._book, self._publish)
        await _to_its_end(self._submit(live, partial(self._book.add, kept, entry)))

    async def _submit(self, live: Live, keep: Callable[[], Awaitable[object]]) -> None:
        """Once it is on disk the scheduler knows of it, whatever comes after."""
        await keep()
        self._live[live.info.job_id] = live
        self._tell(say.Submitted(_job_of(live.kept)))
        self._changed.set()
        await self._mark(live, "training", "")

    async def _wait(self, job_id: str, tell: Partial) -> None:
        """Until the job is over; its progress goes to `tell`."""
        live, told = self._live.get(job_id), None
        news = asyncio.Event()
        if live is not None:
            live.watchers.add(news)
        try:
            while live is not None and not live.kept.is_final and not self._is_leaving:
                news.clear()
                progress = live.info.progress
                if progress is not None and progress != told:
                    told = progress
                    await tell(progress)
                await news.wait()
        finally:
            if live is not None:
                live.watchers.discard(news)

    # Deciding and carrying out

    def _tell(self, event: say.Event) -> None:
        """Have the scheduler decide, and begin what it decided."""
        if self._is_leaving:
            return
        for effect in self._scheduler.handle(event, _now()):
            match effect:
                case say.Run(job_id, devices):
                    run = self._runs[job_id] = self._run_of(job_id, devices)
                    self._begin(partial(self._run, run, job_id, devices), job_id)
                case say.Halt(job_id, reason):
                    self._live[job_id].say("halting", reason)
                    # One that has just ended is still to be written down.
                    if (halted := self._runs.get(job_id)) is not None:
                        halted.halt(reason)
                case say.Queue(job_id, state, reason, failures):
                    self._begin(partial(self._queued, job_id, state, reason, failures), job_id)
                case say.Finish(job_id, state, reason):
                    self._begin(partial(self._finished, job_id, state, reason), job_id)

    def _begin(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        task = asyncio.get_running_loop().create_task(self._surely(work), name=f"training {name}")
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _surely(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """What was decided happens, as soon as the disk takes it."""
        while True:
            try:
                await work()
                return
            except BusError as error:
                log.error("a job cannot be kept", extra={"action": "learning.job.unkept", "error": str(error)})
                if self._is_leaving:
                    return
            await asyncio.sleep(_AGAIN_S)

    async def _settled(self) -> None:
        """Wait until what was decided is on disk."""
        busy = {f"training {name}" for name in self._runs}
        if pending := [task for task in self._work if task.get_name() not in busy]:
            await asyncio.wait(pending)

    def _run_of(self, job_id: str, devices: tuple[str, ...]) -> Run:
        live = self._live[job_id]
        return Run(
            self._parts,
            live,
            self._job_folder(live.kept),
            devices,
            self._nest if self._settings.learning.warm_s else None,
            on_training=lambda: self._on_training(live),
            on_lease_lost=lambda reason: self._tell(say.AskedBack(job_id, reason)),
        )

    async def _run(self, run: Run, job_id: str, devices: tuple[str, ...]) -> None:
        live = self._live[job_id]
        live.has_begun = live.has_checkpoint = False
        if live.info.started_at is None:
            live.change(started_at=time.time())
        try:
            if devices != (say.GATE,):
                await self._open_nest()
            over = await (run.judge() if devices == (say.GATE,) else run.train())
        except Exception as error:
            # The dispatch of jobs: whatever a run raises ends it, and is shown.
            log.exception("training job failed", extra={"action": "learning.job.crashed", "job_id": job_id})
            over = Over("lost", f"{type(error).__name__}: {error}")
        finally:
            del self._runs[job_id]
        await self._ended(live, over)

    def _on_training(self, live: Live) -> None:
        live.has_begun = True
        self._tell(say.Began(live.info.job_id))

    async def _ended(self, live: Live, over: Over) -> None:
        job_id = live.info.job_id
        if over.how == "trained":
            self.tally.ended["finished"] += 1
        if self._is_leaving:
            if not live.kept.is_final:
                live.change(state="queued", reason="the service was stopped; it goes on when it is back")
                live.say("left", "the service stops")
            await live.save()
            return
        try:
            if over.how == "done":
                await self._close(live, over.state, over.reason)
            else:
                await live.save()
        except (BusError, OSError) as error:
            # The scheduler has to hear of its end all the same; what was done is done once more.
            log.error("a job cannot be kept", extra={"action": "learning.job.unkept", "error": str(error)})
            over = Over("lost", str(error)) if over.how == "done" else over
        self._tell(say.Ended(job_id, over.how, over.reason, live.has_checkpoint))

    async def _queued(self, job_id: str, state: bodies.JobState, reason: str, failures: int) -> None:
        live = self._live[job_id]
        if live.info.reason != reason or live.info.state != state:
            live.change(state=state, reason=reason)
            live.note(failures=failures)
            if reason:
                live.say(state, reason)
            if reason and live.has_begun:
                live.announce("learning.training.stopped", live.info)
            await live.save()

    async def _finished(self, job_id: str, state: bodies.JobState, reason: str) -> None:
        await self._parts.tuner.followed(job_id, state)
        await self._close(self._live[job_id], state, reason)

    async def _close(self, live: Live, state: bodies.JobState, reason: str) -> None:
        """It is over: its opportunities are told, and what it needs no more goes."""
        await self._mark(live, "learned" if state == "promoted" else "open", reason)
        live.change(state=state, reason=reason, finished_at=time.time(), progress=None)
        live.say(state, reason)
        if state in ("stopped", "failed"):
            # One that trained was counted when it had.
            self.tally.ended[state] += not live.kept.is_trained
            live.announce(f"learning.training.{state}", live.info)
        else:
            await asyncio.to_thread(clear, self._job_folder(live.kept))
        await live.save()
        # Unless it was resumed meanwhile.
        if live.kept.is_final and self._live.get(live.info.job_id) is live:
            del self._live[live.info.job_id]

    async def _mark(self, live: Live, state: Any, reason: str) -> None:
        if live.info.opportunities:
            await self._parts.needs.mark(live.info.opportunities, state, job_id=live.info.job_id, reason=reason)

    # Reading

    async def _find(self, job_id: str) -> Kept | None:
        live = self._live.get(job_id)
        return live.kept if live is not None else await self._book.get(job_id)

    async def _known(self, job_id: str) -> Kept:
        kept = await self._find(job_id)
        if kept is None:
            raise NotFound(f"there is no training job {job_id!r}", job_id=job_id)
        return kept

    def _shown(self, kept: Kept) -> bodies.JobInfo:
        """The job with why it waits just now."""
        live = self._live.get(kept.info.job_id)
        info = live.info if live is not None else kept.info
        if info.state in FINAL:
            return info
        reason = self._scheduler.reason(info.job_id, _now())
        return msgspec.structs.replace(info, reason=reason) if reason else info

    def _job_folder(self, kept: Kept) -> Path:
        return self._folder / kept.info.job_id

    def _in_force(self) -> InForce:
        return in_force(self._settings.learning, self._said)

    # Background

    async def _tick_forever(self) -> None:
        kept_at = time.monotonic()
        while True:
            if not self._live and not self._nest.is_open:
                self._changed.clear()
                await self._changed.wait()
            await asyncio.sleep(_TICK_S)
            self._tell(say.Tick())
            await self._warm()
            if time.monotonic() - kept_at > _KEEP_DAYS_S and self._scheduler.running():
                kept_at = time.monotonic()
                try:
                    await self._book.keep_days(self._scheduler.spent)
                except BusError as error:
                    log.error("the day is not kept", extra={"action": "learning.job.unkept", "error": str(error)})

    async def _warm(self) -> None:
        """Hold the trainer's libraries while a training is near, and for a while after the last one."""
        now = time.monotonic()
        if self._scheduler.is_near(_now()):
            self._near_at = now
            await self._open_nest()
        elif self._nest.is_open and not self._nest.is_busy and now - self._near_at > self._settings.learning.warm_s:
            await self._nest.close()

    async def _open_nest(self) -> None:
        if self._nest.is_open or not self._settings.learning.warm_s:
            return
        try:
            await self._nest.open()
        except OSError as error:
            log.warning("no warm trainer", extra={"action": "learning.nest.failed", "error": str(error)})

    async def _listen_forever(self) -> None:
        while True:
            try:
                await self._learn_devices()
                async with self._client.subscribe("model.usage", "resource.lease.>") as events:
                    async for event in events:
                        self._hear(event.subject, event.body)
            except (BusError, ConnectionError, msgspec.ValidationError) as error:
                log.info("events lost for a moment", extra={"action": "learning.job.deaf", "error": str(error)})
            await asyncio.sleep(_LISTEN_AGAIN_S)

    def _hear(self, subject: str, body: Any) -> None:
        match subject:
            case "model.usage":
                # What this house asks to learn is nobody who would have to wait.
                if msgspec.convert(body, UsageEvent).purpose != OWN_PURPOSE:
                    self._tell(say.Asked())
            case "resource.lease.released" | "resource.lease.expired":
                # What trainings give back themselves, the scheduler knows of.
                if msgspec.convert(body, LeaseEvent).lease.service != SERVICE:
                    self._tell(say.Freed())
            case "resource.lease.preempting":
                event = msgspec.convert(body, LeaseEvent)
                for job_id, run in list(self._runs.items()):
                    if run.owns(event.lease.lease_id):
                        whose = event.wanted_by or "somebody more important"
                        self._tell(say.AskedBack(job_id, f"{whose} needs its memory"))

    async def _find_devices(self) -> None:
        """Services start side by side, and the driver's first answer takes seconds; then the CPU has to do."""
        began_at = time.monotonic()
        while not await self._learn_devices() and not self._devices:
            if time.monotonic() - began_at > _GPUS_WITHIN_S:
                log.warning("nobody tells of the GPUs; training on the CPU", extra={"action": "learning.gpus.unknown"})
                self._set_devices(("cpu",))
            await asyncio.sleep(_GPUS_AGAIN_S)

    async def _learn_devices(self) -> bool:
        """Where jobs train that name no device: on the GPUs, where there are any. False where nobody says."""
        try:
            status: GpuStatusReply = await self._client.request("gpu.status", GpuStatus(), timeout_s=_ANSWER_S)
        except BusError:
            return False
        gpus = [one for one in status.devices if one.device != "cpu" and one.state == "ok"]
        largest_first = sorted(gpus, key=lambda one: -one.total_bytes)
        self._set_devices(tuple(one.device for one in largest_first) or ("cpu",))
        return True

    def _set_devices(self, devices: tuple[str, ...]) -> None:
        self._devices = devices
        self._tell(say.Changed(self._in_force().policy(devices)))

    async def _look_forever(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await self.look()
            except BusError as error:
                log.info("no automatic training", extra={"action": "learning.automatic.failed", "error": str(error)})

    async def look(self) -> None:
        """Train what is ready to be learned, where the schedule lets it: one job of a model at a time."""
        if not self._in_force().is_automatic or self._scheduler.closed(_now()).reason:
            return
        busy = {live.info.model for live in self._live.values()}
        for dataset in await self._automatic.worthwhile(busy):
            request = bodies.TrainingStart(dataset=dataset.dataset, version=dataset.version)
            await self._add(f"job-{secrets.token_hex(6)}", request, dataset, is_automatic=True)

    async def _sweep_forever(self) -> None:
        while True:
            try:
                await self._sweep()
            except BusError as error:
                log.error("old trainings not swept", extra={"action": "learning.job.unswept", "error": str(error)})
            await asyncio.sleep(_SWEEP_S)

    async def _sweep(self) -> None:
        """What stopped and failed jobs would go on from is kept for `learning.keep_days`, and not for ever."""
        before = time.time() - self._settings.learning.keep_days * _DAY_S
        for state in ("stopped", "failed"):
            for kept in await self._book.newest(state=state, limit=_SWEPT):
                if kept.info.job_id not in self._live and (kept.info.finished_at or 0.0) < before:
                    await asyncio.to_thread(clear, self._job_folder(kept))


def _now() -> say.Instant:
    return say.Instant(time.time(), time.monotonic())


def _job_of(kept: Kept) -> say.Job:
    """What the scheduler knows of it."""
    info, request = kept.info, kept.request
    left = None if request.budget_s is None else request.budget_s - (info.spent_s - kept.budget_from_s)
    return say.Job(
        job_id=info.job_id,
        priority=info.priority,
        created_at=info.created_at,
        device=request.device or "",
        processes=request.processes,
        is_now=kept.is_now,
        is_trained=kept.is_trained,
        budget_left_s=left,
        failures=kept.failures,
    )


def _content(request: bodies.TrainingStart) -> bodies.TrainingStart:
    """What makes two requests the same job."""
    return msgspec.structs.replace(request, job_id=None, wait=False, is_now=False)


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Do it to its end, also where whoever asked for it goes in the middle."""
    await asyncio.shield(asyncio.ensure_future(work))


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
