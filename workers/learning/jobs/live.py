"""One job while it is being worked on: its state in memory, and how what happens reaches disk, bus and whoever waits.

It knows no phase of a job, only what it is told.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from bus.sizes import size_in_words
from schemas.bodies.learning_jobs import CheckpointInfo, CurvePoint, JobInfo, JobProgress, LogEntry
from schemas.errors import BusError
from workers.learning.jobs.book import Book, Kept
from workers.learning.training import messages

log = logging.getLogger("olympus.learning.jobs")

# Seconds an event waits for the broker.
_PUBLISH_S: Final = 1.0

# Of the texts of a log entry; a trainer's last words may hold a whole traceback.
_MESSAGE_CHARACTERS: Final = 2_000

Publish = Callable[[str, Any], Awaitable[None]]


class Live:
    """A job with what is not on disk yet. Whoever waits for news of it adds an event to `watchers`."""

    def __init__(self, kept: Kept, book: Book, publish: Publish) -> None:
        self.kept = kept
        self.watchers: set[asyncio.Event] = set()
        # Of the run that is under way: its trainer began, and wrote a checkpoint.
        self.has_begun = False
        self.has_checkpoint = False
        self._book = book
        self._publish = publish
        self._saving = asyncio.Lock()
        self._entries: list[LogEntry] = []
        self._points: list[CurvePoint] = []
        self._restart: int | None = None
        self._events: list[tuple[str, Any]] = []
        self._told: JobProgress | None = None

    @property
    def info(self) -> JobInfo:
        """The job as others see it."""
        return self.kept.info

    def change(self, **fields: Any) -> None:
        """Change what others see of it."""
        self.kept = msgspec.structs.replace(self.kept, info=msgspec.structs.replace(self.kept.info, **fields))

    def note(self, **fields: Any) -> None:
        """Change what only jobs themselves need."""
        self.kept = msgspec.structs.replace(self.kept, **fields)

    def say(self, event: str, message: str, **fields: Any) -> None:
        """Add an entry to the log."""
        entry = entry_of(event, message, fields)
        self._entries.append(entry)
        log.info(
            "training job: %s",
            entry.message,
            extra={"action": f"learning.job.{event}", "job_id": self.info.job_id},
        )

    def announce(self, subject: str, body: Any) -> None:
        """Publish an event with the next `save`, when what it says is on disk."""
        self._events.append((subject, body))

    def progress(self, phase: str, **fields: Any) -> None:
        """What is being done; fields that are not given stay as they were within one phase."""
        before = self.info.progress
        if before is None or before.phase != phase:
            before = JobProgress(job_id=self.info.job_id, model=self.info.model, phase=phase, device=self.info.device)
        self.change(progress=msgspec.structs.replace(before, **fields))

    async def save(self) -> None:
        """Bring everything to disk, then tell it. Raises Internal when the disk does not take it; nothing is lost then."""
        async with self._saving:
            entries, points, restart = self._entries, self._points, self._restart
            self._entries, self._points, self._restart = [], [], None
            progress, ready = self.info.progress, len(self._events)
            try:
                # Whoever is cancelled in the middle leaves a whole transaction behind.
                await asyncio.shield(asyncio.ensure_future(self._book.save(self.kept, entries, points, restart)))
            except BusError:
                self._entries, self._points = entries + self._entries, points + self._points
                self._restart = restart if self._restart is None else self._restart
                raise
            for watcher in self.watchers:
                watcher.set()
            for _ in range(ready):
                await self._tell(*self._events[0])
                del self._events[0]
            if progress is not None and progress != self._told:
                self._told = progress
                await self._tell("learning.training.progress", progress)

    async def _tell(self, subject: str, body: Any) -> None:
        """Publish it. What is kept counts: without a broker nobody waits for this."""
        try:
            async with asyncio.timeout(_PUBLISH_S):
                await self._publish(subject, body)
        except (BusError, TimeoutError) as error:
            log.warning("event not published", extra={"action": "learning.job.untold", "error": str(error)})

    # What a trainer says

    def hear(self, message: messages.AnyMessage) -> None:
        """Take one message of the trainer; `save` brings it on its way."""
        match message:
            case messages.Warming():
                self.progress("warming", note=f"{message.stage} {message.detail}".strip())
            case messages.Prepared():
                self.say("prepared", f"{message.rows} rows, {message.method}", **_fields(message))
                self.change(config={**self.info.config, "method": message.method, "rows": message.rows})
            case messages.Planned():
                self._on_planned(message)
            case messages.Progress():
                self._on_progress(message)
            case messages.Evaluated():
                self.say("evaluated", f"loss {message.loss:.4f} on the rows set aside", **_fields(message))
                self.progress("training", eval_loss=message.loss)
                self._points.append(_point(message.step, eval_loss=message.loss))
            case messages.CheckpointSaved():
                self._on_checkpoint(message)
            case messages.CheckpointFailed():
                self.say("checkpoint_failed", message.reason, **_fields(message))
            case messages.Skipped():
                self.say("checkpoint_skipped", f"{message.name}: {message.reason}")
            case messages.Waited():
                self.say(
                    "waited",
                    f"{message.holder or 'another'} had the device for {message.waited_s:.1f} s",
                    **_fields(message),
                )
            case messages.Climbed():
                self.change(rung=message.rung.level)
                self.note(rung=msgspec.json.encode(message.rung).decode())
                self.say("climbed", f"with less memory now: {message.reason}", **_fields(message))
            case messages.Finished():
                self.say("trained", f"the adapter is whole after {message.step} steps", **_fields(message))
            case messages.Stopped() | messages.Failed():
                # How the run ended is told by whoever ran it.
                pass

    def _on_planned(self, message: messages.Planned) -> None:
        plan = {
            "learning_rate": message.learning_rate,
            "micro_batch": message.micro_batch,
            "accumulation": message.accumulation,
            "max_length": message.max_length,
            "activation_checkpointing": message.activation_checkpointing,
            "trainable_parameters": message.trainable_parameters,
        }
        self.change(config={**self.info.config, **plan})
        self._restart = message.from_step
        whence = f"goes on from step {message.from_step}" if message.from_step else "begins"
        self.say("planned", f"{whence}, {message.steps} steps in all", **_fields(message))
        self.progress("training", step=message.from_step, steps=message.steps, note="")
        self.announce("learning.training.started", self.info)

    def _on_progress(self, message: messages.Progress) -> None:
        self.progress(
            "training",
            step=message.step,
            steps=message.steps,
            loss=message.loss,
            learning_rate=message.learning_rate,
            grad_norm=message.grad_norm,
            tokens_per_s=message.tokens_per_s,
            eta_s=message.eta_s,
            memory_bytes=message.memory_bytes,
            done=message.step,
            total=message.steps,
        )
        self._points.append(_point(message.step, loss=message.loss, learning_rate=message.learning_rate))

    def _on_checkpoint(self, message: messages.CheckpointSaved) -> None:
        self.has_checkpoint = True
        self.say("checkpoint", f"{message.name} of {size_in_words(message.size_bytes)}", **_fields(message))
        self.announce(
            "learning.training.checkpoint",
            CheckpointInfo(
                job_id=self.info.job_id,
                checkpoint=message.name,
                step=message.step,
                at=time.time(),
                size_bytes=message.size_bytes,
                sha256=message.sha256,
            ),
        )


def entry_of(event: str, message: str, fields: dict[str, Any]) -> LogEntry:
    """An entry for a log; its number is given when it is kept."""
    return LogEntry(number=0, at=time.time(), event=event, message=message[:_MESSAGE_CHARACTERS], fields=fields)


def _fields(message: messages.Message) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(message)
    return {key: value for key, value in fields.items() if key != "type"}


def _point(step: int, **fields: float | None) -> CurvePoint:
    values = {"loss": None, "eval_loss": None, "learning_rate": None, **fields}
    return CurvePoint(step=step, at=time.time(), **values)
