"""Binds the operations on trainings, their checkpoints and their schedule to a worker."""

from __future__ import annotations

from bus.worker import Call, Worker
from schemas.bodies import learning_jobs as bodies
from workers.learning.jobs.training import Training


def register(worker: Worker, training: Training) -> None:
    """Make `worker` answer `learning.training.*`, `learning.checkpoint.*` and `learning.schedule.*`."""

    @worker.handles("learning.training.start")
    async def start(request: bodies.TrainingStart, call: Call) -> bodies.JobInfo:
        return await training.start_training(request, call.id, call.partial)

    @worker.handles("learning.training.stop")
    async def stop(request: bodies.TrainingStop, call: Call) -> bodies.JobInfo:
        return await training.stop_training(request)

    @worker.handles("learning.training.resume")
    async def resume(request: bodies.TrainingResume, call: Call) -> bodies.JobInfo:
        return await training.resume(request)

    @worker.handles("learning.training.status")
    async def status(request: bodies.TrainingStatus, call: Call) -> bodies.JobInfo:
        return await training.status(request)

    @worker.handles("learning.training.list")
    async def list_all(request: bodies.TrainingList, call: Call) -> bodies.Jobs:
        return await training.list_jobs(request)

    @worker.handles("learning.training.log")
    async def show_log(request: bodies.TrainingLog, call: Call) -> bodies.JobLog:
        return await training.log(request)

    @worker.handles("learning.checkpoint.list")
    async def checkpoints(request: bodies.CheckpointList, call: Call) -> bodies.Checkpoints:
        return await training.checkpoints(request)

    @worker.handles("learning.checkpoint.delete")
    async def delete_checkpoint(request: bodies.CheckpointDelete, call: Call) -> bodies.CheckpointDeleted:
        return await training.delete_checkpoint(request)

    @worker.handles("learning.schedule.get")
    async def schedule(request: bodies.ScheduleGet, call: Call) -> bodies.Schedule:
        return training.schedule()

    @worker.handles("learning.schedule.set")
    async def set_schedule(request: bodies.ScheduleSet, call: Call) -> bodies.Schedule:
        return await training.set_schedule(request)
