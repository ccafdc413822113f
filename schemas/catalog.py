"""The catalogue: every operation and event this system knows, each declared once.

The broker learns from it what may be re-dispatched, the client its reply types, the worker runtime its validation,
`olympus req` its completion and the tap its pretty-printing.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import msgspec

from schemas import subjects
from schemas.bodies import control, memory, model
from schemas.bodies.base import Request


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One operation: a subject, what it asks and answers, and how it may be treated.

    http: its REST route, "METHOD /path", on the port of its service; several are separated by ", ".
    is_idempotent: running it twice under one id equals running it once, so it may be re-dispatched.
    partial: type of the streamed partial replies, for operations that stream.
    scope: what a signed-in caller needs; empty for none.
    """

    subject: str
    request: type[Request]
    reply: type[Any]
    summary: str
    partial: type[Any] | None = None
    http: str = ""
    is_idempotent: bool = False
    scope: str = ""

    @property
    def is_streaming(self) -> bool:
        """True when the reply may come in pieces."""
        return self.partial is not None

    @property
    def service(self) -> str:
        """First token of the subject."""
        return self.subject.partition(".")[0]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of event: a subject, or a pattern where a token varies, and its body."""

    pattern: str
    body: type[Any]
    summary: str


def _memory(verb: str, request: type[Request], reply: type[Any], http: str, summary: str) -> Operation:
    access = "read" if verb in _MEMORY_READS else "write"
    return Operation(
        subject=f"memory.{verb}",
        request=request,
        reply=reply,
        http=http,
        summary=summary,
        is_idempotent=True,
        scope=f"memory:{access}",
    )


_MEMORY_READS = frozenset({"kv.get", "kv.list", "recall", "find", "all", "prompt"})

_DECLARED: tuple[Operation, ...] = (
    _memory("kv.get", memory.KvGet, memory.KvEntry, "GET /kv/{key}", "Read an entry with its version."),
    _memory("kv.set", memory.KvSet, memory.KvVersion, "POST /kv/{key}", "Write an entry, or compare and set it."),
    _memory("kv.delete", memory.KvDelete, memory.KvDeleted, "DELETE /kv/{key}", "Delete an entry."),
    _memory("kv.list", memory.KvList, memory.KvPage, "GET /kv", "List entries by key prefix."),
    _memory("remember", memory.Remember, memory.Fact, "", "Keep a fact, preference or piece of context."),
    _memory("recall", memory.Recall, memory.Fact, "", "Read one fact and count the access."),
    _memory("find", memory.Find, memory.FactPage, "", "Find facts by words."),
    _memory("forget", memory.Forget, memory.Forgotten, "", "Forget one fact, a category or everything."),
    _memory("all", memory.AllFacts, memory.FactPage, "", "List every fact."),
    _memory("prompt", memory.Prompt, memory.PromptAddition, "", "Render facts as a system-prompt addition."),
    Operation(
        subject="model.list",
        request=model.ModelList,
        reply=model.Models,
        http="GET /models",
        summary="List the models of the catalogue and what is loaded.",
        is_idempotent=True,
        scope="model:read",
    ),
    Operation(
        subject="model.show",
        request=model.ModelShow,
        reply=model.ModelInfo,
        http="GET /models/{id}",
        summary="Show one model.",
        is_idempotent=True,
        scope="model:read",
    ),
    Operation(
        subject="model.load",
        request=model.ModelLoad,
        reply=model.ModelState,
        http="POST /models/{id}/load",
        summary="Load a model into a runner and wait until it serves.",
        is_idempotent=True,
        scope="model:write",
    ),
    Operation(
        subject="model.unload",
        request=model.ModelUnload,
        reply=model.ModelState,
        http="POST /models/{id}/unload",
        summary="Let a model finish what it answers, then end its runner.",
        is_idempotent=True,
        scope="model:write",
    ),
    Operation(
        subject="model.generate",
        request=model.Generate,
        reply=model.Generation,
        partial=model.GenerationPart,
        http="POST /predict/{model_id}, POST /v1/completions",
        summary="Continue a prompt, streaming text and token ids.",
        scope="model:use",
    ),
    Operation(
        subject="model.chat",
        request=model.Chat,
        reply=model.Generation,
        partial=model.GenerationPart,
        http="POST /v1/chat/completions",
        summary="Answer a conversation, streaming text and token ids.",
        scope="model:use",
    ),
    Operation(
        subject="bus.ping",
        request=control.Ping,
        reply=control.Pong,
        http="GET /bus/ping",
        summary="Ask the broker to answer.",
        is_idempotent=True,
    ),
    Operation(
        subject="bus.services",
        request=control.BusServices,
        reply=control.ServiceList,
        http="GET /bus/services",
        summary="Services with instances, load and latency quantiles.",
        is_idempotent=True,
    ),
    Operation(
        subject="bus.workers",
        request=control.BusWorkers,
        reply=control.WorkerList,
        http="GET /bus/workers",
        summary="Every registered worker instance.",
        is_idempotent=True,
    ),
    Operation(
        subject="bus.stats",
        request=control.BusStats,
        reply=control.BrokerStats,
        http="GET /bus/stats",
        summary="The broker's counters and gauges.",
        is_idempotent=True,
    ),
    Operation(
        subject="bus.events.read",
        request=control.EventsRead,
        reply=control.EventsPage,
        partial=control.EventBatch,
        http="GET /bus/events",
        summary="Read the durable event log by sequence or time.",
        is_idempotent=True,
        scope="bus:read",
    ),
    Operation(
        subject="deadletter.list",
        request=control.DeadLetterList,
        reply=control.DeadLetterPage,
        http="GET /deadletters",
        summary="Requests that no attempt could finish, newest first.",
        is_idempotent=True,
        scope="bus:read",
    ),
    Operation(
        subject="deadletter.show",
        request=control.DeadLetterShow,
        reply=control.DeadLetterWhole,
        http="GET /deadletters/{id}",
        summary="One dead letter with its body.",
        is_idempotent=True,
        scope="bus:read",
    ),
    Operation(
        subject="deadletter.redrive",
        request=control.DeadLetterRedrive,
        reply=control.DeadLetterRedriven,
        http="POST /deadletters/{id}/redrive",
        summary="Send a dead letter again and return its reply.",
        scope="bus:write",
    ),
    Operation(
        subject="deadletter.purge",
        request=control.DeadLetterPurge,
        reply=control.DeadLetterPurged,
        http="POST /deadletters/purge",
        summary="Delete dead letters.",
        is_idempotent=True,
        scope="bus:write",
    ),
)

OPERATIONS: dict[str, Operation] = {operation.subject: operation for operation in _DECLARED}

EVENTS: tuple[Event, ...] = (
    Event(pattern="memory.changed.*", body=memory.Changed, summary="A write was committed."),
    Event(pattern="model.loading", body=model.ModelEvent, summary="A runner is starting for a model."),
    Event(pattern="model.loaded", body=model.ModelEvent, summary="A model serves."),
    Event(pattern="model.unloaded", body=model.ModelEvent, summary="A model left on request."),
    Event(pattern="model.evicted", body=model.ModelEvent, summary="A model was taken out to make room or for idling."),
    Event(pattern="model.failed", body=model.ModelEvent, summary="A model could not be loaded, or its runner died."),
    Event(pattern="model.usage", body=model.UsageEvent, summary="A generation finished."),
    Event(pattern="bus.worker.joined", body=control.WorkerEvent, summary="A worker instance registered."),
    Event(pattern="bus.worker.left", body=control.WorkerEvent, summary="A worker instance drained and left."),
    Event(pattern="bus.worker.lost", body=control.WorkerEvent, summary="A worker instance vanished."),
    Event(pattern="bus.service.overloaded", body=control.ServiceOverloaded, summary="A queue refused requests."),
    Event(pattern="bus.trace.*", body=control.Trace, summary="A step of a request, while somebody subscribes to it."),
    Event(pattern="bus.stats", body=control.BrokerStats, summary="The broker's counters, at a fixed interval."),
    Event(pattern="error.deadletter", body=control.DeadLetter, summary="A request became a dead letter."),
    Event(pattern="error.*.*", body=control.ErrorReport, summary="A service reported an error."),
)


def lookup(subject: str) -> Operation | None:
    """The operation behind a subject, with or without `@instance`; None for one the catalogue does not know."""
    return OPERATIONS.get(subject) or OPERATIONS.get(subject.partition("@")[0])


def event_for(subject: str) -> Event | None:
    """The declared event that a published subject belongs to."""
    return next((event for event in EVENTS if subjects.matches(event.pattern, subject)), None)


def nearest(subject: str, known: Iterable[str] = ()) -> list[str]:
    """Up to three known subjects that look like `subject`, for "did you mean"."""
    plain = subject.partition("@")[0]
    return difflib.get_close_matches(plain, sorted({*OPERATIONS, *known}), n=3, cutoff=0.6)
