"""`olympus train start`, `stop`, `resume`, `status`, `log`, `list` and `checkpoints`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Final

from bus.cli import exits
from bus.cli.action import Action, configure_json
from bus.cli.connection import run_with_client
from bus.cli.curves import check_plot, write_plot
from bus.cli.durations import duration as seconds_of
from bus.cli.failures import UsageError, say
from bus.cli.output import (
    clock,
    duration,
    fit,
    number,
    plural,
    print_json,
    printable,
    size,
    table,
    terminal_width,
    write_line,
)
from bus.cli.train_view import TrainingView
from bus.client import Client
from bus.sizes import parse_size
from schemas.bodies.learning_jobs import (
    CheckpointDelete,
    CheckpointDeleted,
    CheckpointInfo,
    CheckpointList,
    Checkpoints,
    JobInfo,
    JobLog,
    Jobs,
    LogEntry,
    LoraSettings,
    TrainingList,
    TrainingLog,
    TrainingResume,
    TrainingStart,
    TrainingStatus,
    TrainingStop,
)

# States a job does not leave by itself.
ENDED: Final = frozenset({"promoted", "passed", "refused", "underpowered", "stopped", "failed"})
# Ends that are not what whoever started the job wanted.
_BAD_ENDS: Final = frozenset({"failed", "stopped"})


def _configure_job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job_id", metavar="JOB")


# start ------------------------------------------------------------------------------------------------------------


def _configure_start(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", nargs="?", metavar="DATASET", help="what to train on (or --opportunity)")
    parser.add_argument("--version", type=int, metavar="N", help="of the dataset (the newest)")
    parser.add_argument("--opportunity", metavar="ID", help="train what this opportunity calls for")
    parser.add_argument("--model", help="base model (the one the dataset is of)")
    parser.add_argument("--rank", type=int, default=8, help="of the adapter (8)")
    parser.add_argument("--alpha", type=float, default=32.0, help="its scale (32)")
    parser.add_argument("--learning-rate", type=float, metavar="RATE", help="(what earlier jobs showed)")
    parser.add_argument("--epochs", type=float, help="passes over the rows (what earlier jobs showed)")
    parser.add_argument("--steps", type=int, metavar="N", help="steps at most")
    parser.add_argument("--batch", type=int, metavar="ROWS", help="rows of one step, whatever fits in memory at once")
    parser.add_argument("--length", type=int, metavar="TOKENS", help="tokens of one row at most")
    parser.add_argument("--method", choices=("auto", "sft", "dpo"), default="auto", help="(auto)")
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    parser.add_argument("--previous", metavar="ADAPTER", help="go on from this adapter; '' for none (the champion)")
    parser.add_argument("--device", help="cpu, gpu0 ... (the one with room)")
    parser.add_argument("--memory", metavar="SIZE", help="memory the training may take, as 4GiB")
    parser.add_argument("--budget", type=seconds_of, metavar="TIME", help="training time at most, as 30m")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="train in several at once (1)")
    parser.add_argument("--priority", type=int, default=3, help="1, the first, to 5 (3)")
    parser.add_argument(
        "--promote", choices=("auto", "ask", "never"), help="what becomes of it once the gate passed it"
    )
    parser.add_argument("--now", action="store_true", help="do not wait for the hours or for an idle machine")
    parser.add_argument("--follow", action="store_true", help="show how it does until it has ended")
    configure_json(parser)


def _run_start(args: argparse.Namespace) -> int:
    if (args.dataset is None) == (args.opportunity is None):
        raise UsageError("start needs either a DATASET or --opportunity ID; olympus learn datasets lists them")
    try:
        budget_bytes = parse_size(args.memory) if args.memory is not None else None
    except ValueError as error:
        raise UsageError(f"--memory: {error}") from error
    body = TrainingStart(
        dataset=args.dataset,
        version=args.version,
        opportunity_id=args.opportunity,
        model=args.model,
        lora=LoraSettings(rank=args.rank, alpha=args.alpha),
        method=args.method,
        learning_rate=args.learning_rate,
        epochs=args.epochs,
        max_steps=args.steps,
        batch_size=args.batch,
        max_length=args.length,
        seed=args.seed,
        previous=args.previous,
        device=args.device,
        budget_bytes=budget_bytes,
        budget_s=args.budget,
        processes=args.processes,
        priority=args.priority,
        promote=args.promote,
        is_now=args.now,
    )

    async def ask(client: Client) -> int:
        job: JobInfo = await client.request("learning.training.start", body)
        if job.power:
            say(job.power)
        if args.follow:
            return await _follow(client, job.job_id, is_json=args.json)
        if args.json:
            print_json(job, indent=2)
        else:
            write_line(job.job_id)
            say(f"{_where(job)}; olympus train status {job.job_id} --follow shows how it does")
        return exits.OK

    return run_with_client(args, ask)


def _where(job: JobInfo) -> str:
    return job.state + (f": {printable(job.reason)}" if job.reason else "")


# stop and resume --------------------------------------------------------------------------------------------------


def _configure_stop(parser: argparse.ArgumentParser) -> None:
    _configure_job(parser)
    parser.add_argument("--reason", default="", help="kept in the job's log")
    configure_json(parser)


def _run_stop(args: argparse.Namespace) -> int:
    async def ask(client: Client) -> int:
        job: JobInfo = await client.request(
            "learning.training.stop", TrainingStop(job_id=args.job_id, reason=args.reason)
        )
        _print_job(job, is_json=args.json)
        return exits.OK

    return run_with_client(args, ask)


def _configure_resume(parser: argparse.ArgumentParser) -> None:
    _configure_job(parser)
    parser.add_argument("--now", action="store_true", help="do not wait for the hours or for an idle machine")
    parser.add_argument("--follow", action="store_true", help="show how it does until it has ended")
    configure_json(parser)


def _run_resume(args: argparse.Namespace) -> int:
    async def ask(client: Client) -> int:
        job: JobInfo = await client.request(
            "learning.training.resume", TrainingResume(job_id=args.job_id, is_now=args.now)
        )
        if args.follow:
            return await _follow(client, job.job_id, is_json=args.json)
        _print_job(job, is_json=args.json)
        return exits.OK

    return run_with_client(args, ask)


def _print_job(job: JobInfo, *, is_json: bool) -> None:
    if is_json:
        print_json(job, indent=2)
    else:
        write_line("\n".join(status_lines(job, time.time())))


# status -----------------------------------------------------------------------------------------------------------


def _configure_status(parser: argparse.ArgumentParser) -> None:
    _configure_job(parser)
    parser.add_argument("--follow", action="store_true", help="live, with its curves, until it has ended; q leaves")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write its curves to a .png or .svg file")
    configure_json(parser)


def _run_status(args: argparse.Namespace) -> int:
    if args.plot is not None:
        check_plot(args.plot)

    async def ask(client: Client) -> int:
        code = exits.OK
        if args.follow:
            code = await _follow(client, args.job_id, is_json=args.json)
        else:
            job: JobInfo = await client.request("learning.training.status", TrainingStatus(job_id=args.job_id))
            _print_job(job, is_json=args.json)
        if args.plot is not None:
            await _plot(client, args.job_id, args.plot)
        return code

    return run_with_client(args, ask)


async def _plot(client: Client, job_id: str, path: Path) -> None:
    log: JobLog = await client.request("learning.training.log", TrainingLog(job_id=job_id, limit=1, points=2_000))
    try:
        write_plot(path, f"{job_id} on {log.job.model}", log.points)
    except OSError as error:
        raise UsageError(f"--plot {path}: {error.strerror or error}") from error
    say(f"wrote {path}")


async def _follow(client: Client, job_id: str, *, is_json: bool) -> int:
    """Show the job until it has ended."""
    job = await TrainingView(client, job_id, is_quiet=is_json).run(ENDED)
    if is_json:
        print_json(job, indent=2)
    elif job.state in ENDED:
        write_line("\n".join(status_lines(job, time.time())))
    return exits.FAILED if job.state in _BAD_ENDS else exits.OK


def status_lines(job: JobInfo, now: float) -> list[str]:
    """Everything known of a job, one fact a line. now: epoch seconds."""
    progress = job.progress
    steps = f"{progress.step:,} of {progress.steps:,}" if progress is not None and progress.steps else ""
    facts = (
        ("job", job.job_id),
        ("state", _where(job)),
        ("model", job.model),
        ("dataset", f"{job.dataset} version {job.version}" if job.dataset else ""),
        ("step", steps),
        ("loss", f"{progress.loss:.4g}" if progress is not None and progress.loss is not None else ""),
        (
            "learning rate",
            f"{progress.learning_rate:.3g}" if progress is not None and progress.learning_rate is not None else "",
        ),
        ("speed", f"{progress.tokens_per_s:,.0f} tokens/s" if progress is not None and progress.tokens_per_s else ""),
        ("left", duration(progress.eta_s) if progress is not None and progress.eta_s is not None else ""),
        (
            "memory",
            f"{size(progress.memory_bytes)} on {job.device}" if progress is not None and progress.memory_bytes else "",
        ),
        ("trained", f"{duration(job.spent_s)} in {plural(job.attempts, 'try').replace('trys', 'tries')}"),
        ("ladder", f"step {job.rung} for too little memory" if job.rung else ""),
        ("adapter", job.adapter),
        ("verdict", job.verdict),
        ("power", job.power),
        ("asked", f"{duration(max(now - job.created_at, 0))} ago"),
    )
    width = max(len(name) for name, _ in facts)
    return [f"{name:<{width}}  {printable(value)}" for name, value in facts if value]


# list, log and checkpoints ----------------------------------------------------------------------------------------


def _configure_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="only of this model")
    parser.add_argument("--state", help="only in this state")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="jobs at most (50)")
    configure_json(parser)


def _run_list(args: argparse.Namespace) -> int:
    async def ask(client: Client) -> int:
        body = TrainingList(model=args.model, state=args.state, limit=args.limit)
        jobs: Jobs = await client.request("learning.training.list", body)
        if args.json:
            print_json(jobs, indent=2)
            return exits.OK
        width = terminal_width()
        for line in list_lines(jobs.jobs):
            write_line(fit(line, width))
        return exits.OK

    return run_with_client(args, ask)


def list_lines(jobs: list[JobInfo]) -> list[str]:
    """A row for each job."""
    if not jobs:
        return ["there is no job yet: olympus train start DATASET begins one"]
    rows = [
        (
            one.job_id,
            one.state,
            f"{one.dataset}:{one.version}",
            f"{one.progress.step}/{one.progress.steps}" if one.progress is not None and one.progress.steps else "-",
            duration(one.spent_s),
            printable(one.reason or one.adapter),
        )
        for one in jobs
    ]
    return table(("JOB", "STATE", "DATASET", "STEP", "TRAINED", "NOTE"), rows)


def _configure_log(parser: argparse.ArgumentParser) -> None:
    _configure_job(parser)
    parser.add_argument("--after", type=int, default=0, metavar="N", help="entries after this number")
    parser.add_argument("--limit", type=int, default=1_000, metavar="N", help="entries at most (1000)")
    configure_json(parser)


def _run_log(args: argparse.Namespace) -> int:
    async def ask(client: Client) -> int:
        body = TrainingLog(job_id=args.job_id, after=args.after, limit=args.limit)
        log: JobLog = await client.request("learning.training.log", body)
        if args.json:
            print_json(log, indent=2)
            return exits.OK
        width = terminal_width()
        for entry in log.entries:
            write_line(fit(log_line(entry), width))
        return exits.OK

    return run_with_client(args, ask)


def log_line(entry: LogEntry) -> str:
    """`12  22:01:07.114  checkpoint  kept step-00000042`."""
    return f"{entry.number:>5}  {clock(entry.at)}  {entry.event:<12}  {printable(entry.message)}"


def _configure_checkpoints(parser: argparse.ArgumentParser) -> None:
    _configure_job(parser)
    parser.add_argument("--delete", metavar="NAME", help="delete this one")
    configure_json(parser)


def _run_checkpoints(args: argparse.Namespace) -> int:
    async def ask(client: Client) -> int:
        if args.delete is not None:
            body = CheckpointDelete(job_id=args.job_id, checkpoint=args.delete)
            deleted: CheckpointDeleted = await client.request("learning.checkpoint.delete", body)
            say(f"deleted {deleted.checkpoint}, {size(deleted.freed_bytes)}")
            return exits.OK
        found: Checkpoints = await client.request("learning.checkpoint.list", CheckpointList(job_id=args.job_id))
        if args.json:
            print_json(found, indent=2)
            return exits.OK
        width = terminal_width()
        for line in checkpoint_lines(found.checkpoints):
            write_line(fit(line, width))
        return exits.OK

    return run_with_client(args, ask)


def checkpoint_lines(checkpoints: list[CheckpointInfo]) -> list[str]:
    """A row for each checkpoint, with why it cannot be resumed from."""
    if not checkpoints:
        return ["there is no checkpoint"]
    rows = [
        (one.checkpoint, number(one.step), clock(one.at), size(one.size_bytes), printable(one.problem) or "good")
        for one in checkpoints
    ]
    return table(("CHECKPOINT", "STEP", "AT", "SIZE", "STATE"), rows)


ACTIONS: Final = (
    Action(
        "start",
        "train an adapter, evaluate it, and let the gate decide",
        _configure_start,
        _run_start,
        "olympus train start greetings --follow\nolympus train start --opportunity opp-1c9e4a77b0d2 --now",
    ),
    Action("stop", "stop a job at its next step", _configure_stop, _run_stop, "olympus train stop job-4f2a9c0d1e22"),
    Action(
        "resume",
        "let a stopped or failed job go on where it was",
        _configure_resume,
        _run_resume,
        "olympus train resume job-4f2a9c0d1e22 --follow",
    ),
    Action(
        "status",
        "how a job does, live with --follow",
        _configure_status,
        _run_status,
        "olympus train status job-4f2a9c0d1e22 --follow\nolympus train status job-4f2a9c0d1e22 --plot curves.svg",
    ),
    Action("log", "what happened in a job", _configure_log, _run_log, "olympus train log job-4f2a9c0d1e22"),
    Action("list", "jobs, the newest first", _configure_list, _run_list, "olympus train list --state training"),
    Action(
        "checkpoints",
        "checkpoints of a job, verified",
        _configure_checkpoints,
        _run_checkpoints,
        "olympus train checkpoints job-4f2a9c0d1e22",
    ),
)
