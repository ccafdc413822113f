"""The catalogue: every operation and event this system knows, each declared once.

The broker learns from it what may be re-dispatched, the client its reply types, the worker runtime its validation,
`olympus req` its completion and the tap its pretty-printing.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

import msgspec

from schemas import subjects
from schemas.bodies import (
    accounts,
    control,
    errors,
    gateway,
    items,
    learning,
    learning_data,
    learning_gate,
    learning_jobs,
    learning_tuning,
    memory,
    model,
    model_files,
    model_trials,
    resource,
    search,
    sessions,
    telling,
    upkeep,
)
from schemas.bodies.base import Request, SecretReply, SecretRequest


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One operation: a subject, what it asks and answers, and how it may be treated.

    http: its REST route, "METHOD /path", on the port of its service; several are separated by ", ". `{name}` in it is the
    request's field of that name; of a field that holds a list it is the one item.
    is_idempotent: running it twice under one id equals running it once, so it may be re-dispatched.
    partial: type of the streamed partial replies, for operations that stream.
    scope: what a signed-in caller needs; empty for none.
    audit: what the audit log calls it, for operations that are written down there whoever asks; empty for none.
    """

    subject: str
    request: type[Request]
    reply: type[Any]
    summary: str
    partial: type[Any] | None = None
    http: str = ""
    is_idempotent: bool = False
    scope: str = ""
    audit: Literal["", "sign_in", "account", "deletion", "promotion", "export", "settings"] = ""

    @property
    def is_streaming(self) -> bool:
        """True when the reply may come in pieces."""
        return self.partial is not None

    @property
    def is_secret(self) -> bool:
        """True when request or reply hold a password or a token: nothing keeps or shows their bodies."""
        return issubclass(self.request, SecretRequest) or issubclass(self.reply, SecretReply)

    @property
    def family(self) -> str:
        """First token of the subject."""
        return self.subject.partition(".")[0]

    @property
    def service(self) -> str:
        """The service that serves it: the memory service has more families than its own."""
        return _SERVICE_OF_FAMILY.get(self.family, self.family)


# Services that serve more families of subjects than their own.
_SERVICE_OF_FAMILY = {"auth": "memory", "trust": "memory", "utils": "memory", "gpu": "resource", "audit": "error"}


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of event: a subject, or a pattern where a token varies, and its body.

    is_kept: the event log may keep it; False for what holds texts of people, which each service keeps by its own rules.
    """

    pattern: str
    body: type[Any]
    summary: str
    is_kept: bool = True


def _memory(
    verb: str,
    request: type[Request],
    reply: type[Any],
    http: str,
    summary: str,
    *,
    access: str = "",
    partial: type[Any] | None = None,
) -> Operation:
    return Operation(
        subject=f"memory.{verb}",
        request=request,
        reply=reply,
        partial=partial,
        http=http,
        summary=summary,
        # Every write is applied once per request id, so all of them may be given to another worker.
        is_idempotent=True,
        scope=f"memory:{access or ('read' if verb in _MEMORY_READS else 'write')}",
    )


_MEMORY_READS = frozenset(
    """
    kv.get kv.list doc.get doc.list get get_many list children related group.list group.members search
    session.get session.history session.list session.bridge context.get context.list context.build
    experience.get experience.list experience.stats cache.get cache.stats
    recall find all prompt tool.schemas suggest.list stats
    """.split()
)


def _operation(
    family: str,
    verb: str,
    request: type[Request],
    reply: type[Any],
    http: str,
    summary: str,
    *,
    access: str = "read",
    is_idempotent: bool = True,
    partial: type[Any] | None = None,
) -> Operation:
    return Operation(
        subject=f"{family}.{verb}",
        request=request,
        reply=reply,
        partial=partial,
        http=http,
        summary=summary,
        is_idempotent=is_idempotent,
        scope=f"{family}:{access}",
    )


_model = partial(_operation, "model")
_learning = partial(_operation, "learning")


_MODELS: tuple[Operation, ...] = (
    _model(
        "list", model.ModelList, model.Models, "GET /models", "List the models of the catalogue and what is loaded."
    ),
    _model("show", model.ModelShow, model.ModelInfo, "GET /models/{model}", "Show one model."),
    _model(
        "rescan",
        model_files.ModelRescan,
        model.Models,
        "POST /models/rescan",
        "Read the model roots again.",
        access="write",
    ),
    _model(
        "alias",
        model_files.ModelAlias,
        model.ModelInfo,
        "PUT /models/aliases/{alias}",
        "Give a model another name, or take it away.",
        access="write",
    ),
    _model(
        "pull",
        model_files.ModelPull,
        model_files.ModelPulled,
        "POST /models/pull",
        "Fetch a model, going on where an earlier pull was cut off.",
        access="admin",
        partial=model_files.PullProgress,
    ),
    _model(
        "import",
        model_files.ModelImport,
        model.ModelInfo,
        "POST /models/import",
        "Bring a file or folder of this machine into the catalogue.",
        access="admin",
        partial=model_files.FileProgress,
    ),
    _model(
        "delete",
        model_files.ModelDelete,
        model_files.ModelDeleted,
        "DELETE /models/{model}",
        "Delete a model's files; refused while it is loaded.",
        access="admin",
    ),
    _model(
        "verify",
        model_files.ModelVerify,
        model_files.ModelVerified,
        "POST /models/{model}/verify",
        "Hash a model's files again and compare.",
        access="write",
        partial=model_files.FileProgress,
    ),
    _model(
        "load",
        model.ModelLoad,
        model.ModelState,
        "POST /models/{model}/load",
        "Load a model into a runner and wait until it serves.",
        access="write",
    ),
    _model(
        "unload",
        model.ModelUnload,
        model.ModelState,
        "POST /models/{model}/unload",
        "Let a model finish what it answers, then end its runner.",
        access="write",
    ),
    _model(
        "preload",
        model.ModelPreload,
        model.Preloadings,
        "POST /models/{models}/preload",
        "Load models ahead of need, into memory that is free or idle.",
        access="write",
    ),
    _model(
        "keep",
        model.ModelKeep,
        model.ModelKept,
        "POST /models/{model}/keep",
        "Pin a model, or set its priority and how long it stays idle.",
        access="write",
    ),
    _model(
        "tokenize",
        model.ModelTokenize,
        model.TokenCounts,
        "POST /models/{model}/tokenize",
        "Count the tokens of texts without loading the model.",
    ),
    _model(
        "generate",
        model.Generate,
        model.Generation,
        "POST /predict/{model}, POST /v1/completions",
        "Continue a prompt, streaming text and token ids.",
        access="use",
        is_idempotent=False,
        partial=model.GenerationPart,
    ),
    _model(
        "chat",
        model.Chat,
        model.Generation,
        "POST /v1/chat/completions",
        "Answer a conversation, streaming text and token ids.",
        access="use",
        is_idempotent=False,
        partial=model.GenerationPart,
    ),
    _model("embed", model.Embed, model.Embeddings, "POST /v1/embeddings", "Make vectors of texts.", access="use"),
    _model("score", model.Score, model.Scores, "POST /models/{model}/score", "Log-probability of texts.", access="use"),
    _model(
        "conversation.clear",
        model.ConversationClear,
        model.ConversationCleared,
        "DELETE /models/conversations/{conversation_id}",
        "Drop the state kept for a conversation.",
        access="use",
    ),
    _model(
        "stats",
        model.ModelStats,
        model.ModelStatsReply,
        "GET /models/{model}/stats",
        "Loads, evictions, tokens, latencies and preloading of models.",
    ),
    _model(
        "usage",
        model.ModelUsage,
        model.ModelUsageReply,
        "POST /models/usage",
        "Which models were used lately; note a use of one.",
        access="use",
    ),
    _model("predict", model.ModelPredict, model.Predictions, "GET /models/predictions", "Which models come next."),
    _model("route", model_trials.Route, model_trials.Routed, "POST /route", "Choose a model for a profile or a task."),
    _model("profiles", model_trials.Profiles, model_trials.ProfileList, "GET /profiles", "The routing profiles."),
    _model(
        "limits",
        model_trials.ModelLimits,
        model_trials.Limits,
        "GET /models/{model}/limits",
        "Context window, output cap and capabilities of a model, known or guessed.",
    ),
    _model(
        "compare",
        model_trials.Compare,
        model_trials.Comparison,
        "POST /compare",
        "The same prompt to several models, side by side.",
        access="use",
        is_idempotent=False,
        partial=model_trials.ComparePart,
    ),
    _model(
        "compare.pick",
        model_trials.ComparePick,
        model_trials.Comparison,
        "POST /compare/{comparison_id}/pick",
        "Record which answer was the best.",
        access="use",
    ),
    _model(
        "compare.get",
        model_trials.CompareGet,
        model_trials.Comparison,
        "GET /compare/{comparison_id}",
        "A comparison and its pick.",
    ),
    _model(
        "evaluate",
        model_trials.Evaluate,
        model_trials.Evaluation,
        "POST /evaluate/{model}",
        "Run an evaluation suite on a model.",
        access="admin",
        is_idempotent=False,
        partial=model_trials.EvaluateProgress,
    ),
    _model(
        "evaluation.get",
        model_trials.EvaluationGet,
        model_trials.EvaluationReply,
        "GET /evaluate/{evaluation_id}/status, GET /evaluate/{evaluation_id}/results",
        "An evaluation's state and scores.",
    ),
    _model(
        "evaluation.list",
        model_trials.EvaluationList,
        model_trials.Evaluations,
        "GET /evaluate",
        "Evaluations, the newest first.",
    ),
    _model(
        "evaluation.record",
        model_trials.EvaluationRecord,
        model_trials.Evaluation,
        "POST /evaluate",
        "Keep a result found elsewhere.",
        access="write",
    ),
    _model(
        "metric.record",
        model_trials.MetricRecord,
        model_trials.MetricRecorded,
        "POST /metrics/records",
        "Keep one measurement of an agent's work.",
        access="write",
    ),
    _model(
        "metric.list",
        model_trials.MetricList,
        model_trials.Metrics,
        "GET /metrics/records",
        "Measurements, newest first.",
    ),
    _model(
        "benchmark",
        model_trials.Benchmark,
        model_trials.Benchmarked,
        "POST /benchmark/{model}",
        "Measure throughput and latency of a model.",
        access="admin",
        is_idempotent=False,
        partial=model_trials.BenchmarkRow,
    ),
    _model(
        "abtest.start",
        model_trials.AbTestStart,
        model_trials.AbTestResult,
        "POST /abtest",
        "Start a test of variants against each other.",
        access="admin",
    ),
    _model(
        "abtest.assign",
        model_trials.AbTestAssign,
        model_trials.AbTestAssigned,
        "POST /abtest/{test_id}/assign",
        "The variant of a unit, always the same one.",
        access="use",
    ),
    _model(
        "abtest.record",
        model_trials.AbTestRecord,
        model_trials.AbTestResult,
        "POST /abtest/{test_id}/record",
        "Tell a unit's outcome.",
        access="use",
    ),
    _model(
        "abtest.result",
        model_trials.AbTestGet,
        model_trials.AbTestResult,
        "GET /abtest/{test_id}",
        "What a test shows so far, with certainty that holds at any time.",
    ),
    _model(
        "abtest.stop",
        model_trials.AbTestStop,
        model_trials.AbTestResult,
        "POST /abtest/{test_id}/stop",
        "End a test.",
        access="admin",
    ),
    _model("abtest.list", model_trials.AbTestList, model_trials.AbTests, "GET /abtest", "The tests."),
    _model(
        "adapter.list",
        model_files.AdapterList,
        model_files.Adapters,
        "GET /models/{model}/adapters",
        "LoRA adapters of a model.",
    ),
    _model(
        "adapter.attach",
        model_files.AdapterAttach,
        model_files.AdapterInfo,
        "POST /models/{model}/adapters/{adapter}/attach",
        "Make an adapter usable in requests to its model.",
        access="admin",
    ),
    _model(
        "adapter.detach",
        model_files.AdapterDetach,
        model_files.AdapterInfo,
        "POST /models/{model}/adapters/{adapter}/detach",
        "Take an adapter out of use.",
        access="admin",
    ),
    _model(
        "adapter.promote",
        model_files.AdapterPromote,
        model_files.AdapterState,
        "POST /models/{model}/adapters/{adapter}/promote",
        "Let requests that name no adapter use this one.",
        access="admin",
    ),
    _model(
        "adapter.rollback",
        model_files.AdapterRollback,
        model_files.AdapterState,
        "POST /models/{model}/adapters/rollback",
        "Go back to the champion before.",
        access="admin",
        is_idempotent=False,
    ),
    _model(
        "quantize",
        model_files.ModelQuantize,
        model_files.ModelConverted,
        "POST /models/{model}/quantize",
        "Make a smaller copy of a model.",
        access="admin",
        is_idempotent=False,
        partial=model_files.FileProgress,
    ),
    _model(
        "export",
        model_files.ModelExport,
        model_files.ModelConverted,
        "POST /models/{model}/export",
        "Write a safetensors model as GGUF.",
        access="admin",
        is_idempotent=False,
        partial=model_files.FileProgress,
    ),
)

_RESOURCES: tuple[Operation, ...] = (
    Operation(
        subject="gpu.status",
        request=resource.GpuStatus,
        reply=resource.GpuStatusReply,
        http="GET /gpu/status",
        summary="Devices, their memory, who holds locks and leases.",
        is_idempotent=True,
        scope="model:read",
    ),
    Operation(
        subject="resource.lease.acquire",
        request=resource.LeaseAcquire,
        reply=resource.LeaseInfo,
        http="POST /lease",
        summary="Reserve memory of a device.",
        # Without a lease_id the request's id is the lease's.
        is_idempotent=True,
        scope="model:admin",
    ),
    Operation(
        subject="resource.lease.renew",
        request=resource.LeaseRenew,
        reply=resource.LeaseInfo,
        http="POST /lease/{lease_id}/renew",
        summary="Hold a lease longer, or as large as was measured.",
        is_idempotent=True,
        scope="model:admin",
    ),
    Operation(
        subject="resource.lease.release",
        request=resource.LeaseRelease,
        reply=resource.LeaseReleased,
        http="DELETE /lease/{lease_id}",
        summary="Give a lease back.",
        is_idempotent=True,
        scope="model:admin",
    ),
    Operation(
        subject="resource.lease.list",
        request=resource.LeaseList,
        reply=resource.Leases,
        http="GET /lease",
        summary="Who holds which memory.",
        is_idempotent=True,
        scope="model:read",
    ),
)

_HUB: tuple[Operation, ...] = (
    _memory("add", items.MemoryAdd, items.MemoryAdded, "POST /memory", "Keep a memory."),
    _memory("add_many", items.MemoryAddMany, items.MemoriesAdded, "POST /memory/batch", "Keep many, all or none."),
    _memory("get", items.MemoryGet, items.Memory, "GET /memory/{id}", "Read a memory and count the access."),
    _memory("get_many", items.MemoryGetMany, items.Memories, "POST /memory/get", "Read several memories."),
    _memory("update", items.MemoryUpdate, items.Memory, "PATCH /memory/{id}", "Change fields of a memory."),
    _memory("delete", items.MemoryDelete, items.MemoryDeleted, "DELETE /memory/{id}", "Delete a memory."),
    _memory("list", items.MemoryList, items.Memories, "GET /memory", "List memories, by filters, in several orders."),
    _memory(
        "children", items.MemoryChildren, items.Memories, "GET /memory/{id}/children", "List what lies under a memory."
    ),
    _memory("link", items.MemoryLink, items.Linked, "POST /memory/{source_id}/link", "Relate two memories."),
    _memory("unlink", items.MemoryUnlink, items.Unlinked, "POST /memory/{source_id}/unlink", "Take relations back."),
    _memory(
        "related",
        items.MemoryRelated,
        items.RelatedMemories,
        "GET /memory/{id}/related",
        "Follow a memory's relations.",
    ),
    _memory(
        "reinforce", items.MemoryReinforce, items.Memory, "POST /memory/{id}/reinforce", "Raise a memory's importance."
    ),
    _memory("promote", items.MemoryPromote, items.Memory, "POST /memory/{id}/promote", "Move a memory up a tier."),
    _memory("decay", items.MemoryDecay, items.CycleReport, "POST /memory/decay", "Run the life cycle now."),
    _memory("group.create", items.GroupCreate, items.Group, "POST /group", "Make a context group."),
    _memory("group.list", items.GroupList, items.Groups, "GET /group", "List context groups."),
    _memory("group.add", items.GroupAdd, items.GroupChanged, "POST /group/{group_id}/add", "Put a memory in a group."),
    _memory(
        "group.remove",
        items.GroupRemove,
        items.GroupChanged,
        "POST /group/{group_id}/remove",
        "Take a memory out of a group.",
    ),
    _memory("group.members", items.GroupMembers, items.Memories, "GET /group/{group_id}", "Memories of a group."),
    _memory("group.delete", items.GroupDelete, items.GroupChanged, "DELETE /group/{group_id}", "Delete a group."),
    _memory("doc.put", items.DocPut, items.DocInfo, "POST /doc/{doc_id}", "Keep a document."),
    _memory("doc.get", items.DocGet, items.Document, "GET /doc/{doc_id}", "Read a document, or a part of it."),
    _memory("doc.delete", items.DocDelete, items.DocDeleted, "DELETE /doc/{doc_id}", "Delete a document."),
    _memory("doc.list", items.DocList, items.DocPage, "GET /doc", "List documents."),
    _memory(
        "experience.record",
        items.ExperienceRecord,
        items.Experience,
        "POST /experience/{exp_id}",
        "Record what an agent did and what came of it.",
    ),
    _memory("experience.get", items.ExperienceGet, items.Experience, "GET /experience/{exp_id}", "Read an experience."),
    _memory("experience.list", items.ExperienceList, items.Experiences, "GET /experience", "List experiences."),
    _memory(
        "experience.stats",
        items.ExperienceStats,
        items.ExperienceTotals,
        "GET /experience/stats",
        "How often and how well, by agent.",
    ),
    _memory(
        "search",
        search.Search,
        search.SearchReply,
        "POST /embedding/search, GET /embedding/{query}, POST /embedding/{query}",
        "Find what matters for a query.",
    ),
    _memory(
        "session.create", sessions.SessionCreate, sessions.Session, "POST /session/{session_id}", "Open a session."
    ),
    _memory("session.get", sessions.SessionGet, sessions.Session, "GET /session/{session_id}", "Read a session."),
    _memory(
        "session.append",
        sessions.SessionAppend,
        sessions.SessionAppended,
        "POST /session/{session_id}/append",
        "Add turns to a session.",
    ),
    _memory(
        "session.history",
        sessions.SessionHistory,
        sessions.SessionTurns,
        "GET /session/{session_id}/history",
        "Read a session's turns.",
    ),
    _memory(
        "session.update", sessions.SessionUpdate, sessions.Session, "PATCH /session/{session_id}", "Change a session."
    ),
    _memory(
        "session.close",
        sessions.SessionClose,
        sessions.SessionClosed,
        "DELETE /session/{session_id}",
        "End a session, or delete it.",
    ),
    _memory("session.list", sessions.SessionList, sessions.Sessions, "GET /session", "List sessions."),
    _memory(
        "session.bridge",
        sessions.SessionBridge,
        sessions.Bridge,
        "POST /session/{session_id}/bridge",
        "What earlier sessions of this user hold that matters here.",
    ),
    _memory("context.put", sessions.ContextPut, sessions.Context, "POST /context/{context_id}", "Keep a context."),
    _memory("context.get", sessions.ContextGet, sessions.Context, "GET /context/{context_id}", "Read a context."),
    _memory(
        "context.delete",
        sessions.ContextDelete,
        sessions.ContextDeleted,
        "DELETE /context/{context_id}",
        "Delete a context.",
    ),
    _memory("context.list", sessions.ContextList, sessions.Contexts, "GET /context", "List contexts."),
    _memory(
        "context.build",
        sessions.ContextBuild,
        sessions.BuiltContext,
        "POST /context/{context_id}/build",
        "Assemble system prompt, memories and history within a token budget.",
    ),
    _memory(
        "suggest.list", sessions.SuggestList, sessions.Suggestions, "GET /suggestions", "What the monitor noticed."
    ),
    _memory(
        "suggest.dismiss",
        sessions.SuggestDismiss,
        sessions.SuggestionDismissed,
        "POST /suggestions/{suggestion_id}/dismiss",
        "Take a suggestion off the list for good.",
    ),
    _memory(
        "suggest.switch",
        sessions.SuggestSwitch,
        sessions.SuggestSwitched,
        "POST /suggestions/switch",
        "Turn the monitor off or on.",
    ),
    _memory(
        "tool.schemas", sessions.ToolSchemas, sessions.ToolSchemaList, "GET /tools", "The memory as tools of a model."
    ),
    _memory("tool.call", sessions.ToolCall, sessions.ToolResult, "POST /tools/{name}", "Do what a model asked for."),
    _memory(
        "cache.get", memory.CacheGet, memory.CacheEntry, "GET /cache/{key}", "Read a cached value; a miss is no error."
    ),
    _memory("cache.set", memory.CacheSet, memory.CacheStored, "POST /cache/{key}", "Cache a value for a while."),
    _memory("cache.delete", memory.CacheDelete, memory.CacheDeleted, "DELETE /cache/{key}", "Drop a cached value."),
    _memory("cache.flush", memory.CacheFlush, memory.CacheFlushed, "POST /cache/flush", "Drop one type, or all."),
    _memory("cache.stats", memory.CacheStats, memory.CacheFigures, "GET /cache", "Hits, misses and size."),
    _memory("stats", upkeep.MemoryStats, upkeep.StatsReply, "GET /memory/stats", "What the memory holds."),
    _memory(
        "export",
        upkeep.MemoryExport,
        upkeep.Exported,
        "GET /memory/export",
        "Everything as records.",
        access="admin",
        partial=upkeep.ExportPart,
    ),
    _memory(
        "import",
        upkeep.MemoryImport,
        upkeep.Imported,
        "POST /memory/import",
        "Take in records of an export.",
        access="admin",
    ),
    _memory(
        "verify",
        upkeep.MemoryVerify,
        upkeep.Verified,
        "POST /memory/verify",
        "Compare the vectors with the database.",
        access="admin",
        partial=upkeep.UpkeepProgress,
    ),
    _memory(
        "rebuild",
        upkeep.MemoryRebuild,
        upkeep.Rebuilt,
        "POST /memory/rebuild",
        "Make every vector anew.",
        access="admin",
        partial=upkeep.UpkeepProgress,
    ),
    _memory(
        "backup",
        upkeep.MemoryBackup,
        upkeep.BackedUp,
        "POST /memory/backup",
        "Copy the database while it serves.",
        access="admin",
        partial=upkeep.UpkeepProgress,
    ),
    _memory(
        "restore",
        upkeep.MemoryRestore,
        upkeep.Restored,
        "POST /memory/restore",
        "Go back to a backup.",
        access="admin",
        partial=upkeep.UpkeepProgress,
    ),
    *(
        Operation(
            subject=f"utils.{verb}",
            request=upkeep.Cleanup,
            reply=reply,
            http=f"GET /utils/{verb}, POST /utils/{verb}",
            summary=summary,
            is_idempotent=True,
            scope="memory:admin",
        )
        for verb, reply, summary in (
            ("cleanup_temp_files", upkeep.CleanedUp, "Delete old temporary files of Olympus."),
            ("cleanup_logs", upkeep.CleanedUp, "Delete old log files of Olympus."),
            ("cleanup_cache", upkeep.CleanedUp, "Delete old cache files of Olympus."),
            ("cleanup_system", upkeep.CleanedSystem, "All three clean-ups."),
        )
    ),
)


_LEARNING: tuple[Operation, ...] = (
    _learning(
        "feedback",
        learning.Feedback,
        learning.FeedbackTaken,
        "POST /feedback",
        "Say what an answer was worth, and what it should have been.",
        access="feedback",
    ),
    _learning(
        "exchange.list",
        learning.ExchangeList,
        learning.Exchanges,
        "GET /exchanges",
        "What is kept of live traffic, and what was noticed about it.",
    ),
    _learning(
        "exchange.delete",
        learning.ExchangeDelete,
        learning.ExchangesDeleted,
        "DELETE /exchanges",
        "Forget kept exchanges and the examples made of them.",
        access="write",
    ),
    _learning(
        "opportunity.list",
        learning.OpportunityList,
        learning.Opportunities,
        "GET /opportunities",
        "What the model could learn, from which evidence, the most worthwhile first.",
    ),
    _learning(
        "opportunity.add",
        learning.OpportunityAdd,
        learning.Opportunity,
        "POST /opportunities",
        "Tell of something worth learning.",
        access="write",
    ),
    _learning(
        "opportunity.get",
        learning.OpportunityGet,
        learning.Opportunity,
        "GET /opportunities/{opportunity_id}",
        "Show an opportunity, also one that is off the list.",
    ),
    _learning(
        "opportunity.close",
        learning.OpportunityClose,
        learning.Opportunity,
        "POST /opportunities/{opportunity_id}/close",
        "Say that somebody dealt with an opportunity elsewhere.",
        access="write",
    ),
    _learning(
        "opportunity.dismiss",
        learning.OpportunityDismiss,
        learning.Opportunity,
        "POST /opportunities/{opportunity_id}/dismiss",
        "Take an opportunity off the list for good.",
        access="write",
    ),
    _learning("dataset.list", learning_data.DatasetList, learning_data.Datasets, "GET /datasets", "List datasets."),
    _learning(
        "dataset.show",
        learning_data.DatasetShow,
        learning_data.DatasetShown,
        "GET /datasets/{dataset}",
        "Show a dataset with the provenance of its rows.",
    ),
    _learning(
        "dataset.build",
        learning_data.DatasetBuild,
        learning_data.DatasetInfo,
        "POST /datasets",
        "Freeze what is known into a version of a dataset.",
        access="write",
    ),
    _learning(
        "dataset.delete",
        learning_data.DatasetDelete,
        learning_data.DatasetDeleted,
        "DELETE /datasets/{dataset}",
        "Delete a dataset, or one version.",
        access="write",
    ),
    _learning(
        "dataset.export",
        learning_data.DatasetExport,
        learning_data.DatasetExported,
        "GET /datasets/{dataset}/export",
        "The rows as JSON Lines.",
        partial=learning_data.DatasetPart,
    ),
    _learning(
        "dataset.import",
        learning_data.DatasetImport,
        learning_data.DatasetImported,
        "POST /datasets/import",
        "Take in examples.",
        access="write",
    ),
    _learning(
        "row.list", learning_data.RowList, learning_data.RowPage, "GET /rows", "Examples, with why they are left out."
    ),
    _learning(
        "row.edit",
        learning_data.RowEdit,
        learning_data.RowInfo,
        "PATCH /rows/{row_id}",
        "Correct an example.",
        access="write",
    ),
    _learning(
        "row.remove",
        learning_data.RowRemove,
        learning_data.RowInfo,
        "DELETE /rows/{row_id}",
        "Take an example out for good.",
        access="write",
    ),
    _learning(
        "row.release",
        learning_data.RowRelease,
        learning_data.RowInfo,
        "POST /rows/{row_id}/release",
        "Let a quarantined example be used.",
        access="write",
    ),
    _learning(
        "training.start",
        learning_jobs.TrainingStart,
        learning_jobs.JobInfo,
        "POST /training/start",
        "Train an adapter, evaluate it, and let the gate decide.",
        access="train",
        partial=learning_jobs.JobProgress,
    ),
    _learning(
        "training.stop",
        learning_jobs.TrainingStop,
        learning_jobs.JobInfo,
        "POST /training/{job_id}/stop",
        "Stop a job at a checkpoint.",
        access="train",
    ),
    _learning(
        "training.resume",
        learning_jobs.TrainingResume,
        learning_jobs.JobInfo,
        "POST /training/{job_id}/resume",
        "Let a stopped or failed job go on.",
        access="train",
    ),
    _learning(
        "training.status",
        learning_jobs.TrainingStatus,
        learning_jobs.JobInfo,
        "GET /training/{job_id}/status",
        "How a job does.",
    ),
    _learning("training.list", learning_jobs.TrainingList, learning_jobs.Jobs, "GET /training", "List jobs."),
    _learning(
        "training.log",
        learning_jobs.TrainingLog,
        learning_jobs.JobLog,
        "GET /training/{job_id}/log",
        "What happened in a job, and its curve.",
    ),
    _learning(
        "checkpoint.list",
        learning_jobs.CheckpointList,
        learning_jobs.Checkpoints,
        "GET /training/{job_id}/checkpoints",
        "Checkpoints of a job, verified.",
    ),
    _learning(
        "checkpoint.delete",
        learning_jobs.CheckpointDelete,
        learning_jobs.CheckpointDeleted,
        "DELETE /training/{job_id}/checkpoints/{checkpoint}",
        "Delete a checkpoint.",
        access="train",
    ),
    _learning(
        "schedule.get",
        learning_jobs.ScheduleGet,
        learning_jobs.Schedule,
        "GET /schedule",
        "When training may run, and what waits.",
    ),
    _learning(
        "schedule.set",
        learning_jobs.ScheduleSet,
        learning_jobs.Schedule,
        "POST /schedule",
        "Say when training may run.",
        access="train",
    ),
    _learning(
        "evaluate",
        learning_gate.LearningEvaluate,
        learning_gate.GateResult,
        "POST /evaluate/performance",
        "Gain and loss of an adapter, with the gate's verdict.",
        access="train",
        partial=learning_gate.LearningEvaluateProgress,
    ),
    _learning(
        "gate.show",
        learning_gate.GateShow,
        learning_gate.GateShown,
        "GET /gate",
        "Why an adapter passed or not: figures and items.",
    ),
    _learning(
        "gate.power",
        learning_gate.PowerShow,
        learning_gate.PowerStatement,
        "GET /datasets/{dataset}/power",
        "What gain could be seen with a dataset.",
    ),
    _learning(
        "promote",
        learning_gate.Promote,
        learning_gate.Deployment,
        "POST /promote",
        "Put the adapter of a job to work.",
        access="promote",
    ),
    _learning(
        "rollback",
        learning_gate.Rollback,
        learning_gate.Deployment,
        "POST /rollback",
        "Take the newest adapter out of service.",
        access="promote",
        is_idempotent=False,
    ),
    _learning(
        "adapter.list",
        learning_gate.LearnedAdapters,
        learning_gate.Deployments,
        "GET /adapters",
        "Adapters that were put to work.",
    ),
    _learning(
        "watch",
        learning_gate.WatchShow,
        learning_gate.Watches,
        "GET /watch",
        "How new adapters do in live traffic.",
    ),
    _learning(
        "session.create",
        learning_tuning.SessionCreate,
        learning_tuning.LearningSession,
        "POST /learning/sessions",
        "Begin to follow how a model learns.",
        access="write",
    ),
    _learning(
        "session.update",
        learning_tuning.SessionUpdate,
        learning_tuning.LearningSession,
        "PATCH /learning/sessions/{session_id}",
        "Tell of measurements, and hear what to change.",
        access="write",
    ),
    _learning(
        "session.get",
        learning_tuning.SessionGet,
        learning_tuning.LearningSession,
        "GET /learning/sessions/{session_id}",
        "Show a learning session with its trends.",
    ),
    _learning(
        "session.end",
        learning_tuning.SessionEnd,
        learning_tuning.LearningSession,
        "DELETE /learning/sessions/{session_id}",
        "End a learning session.",
        access="write",
    ),
    _learning(
        "session.list",
        learning_tuning.SessionsList,
        learning_tuning.LearningSessions,
        "GET /learning/sessions",
        "List learning sessions.",
    ),
    _learning(
        "rate",
        learning_tuning.RateGet,
        learning_tuning.LearningRate,
        "GET /learning/rate",
        "The learning rate a new training would begin with, and why.",
    ),
    _learning(
        "parameter.register",
        learning_tuning.ParameterRegister,
        learning_tuning.Parameter,
        "POST /parameters",
        "Register a number that may be tuned.",
        access="write",
    ),
    _learning(
        "parameter.adjust",
        learning_tuning.ParameterAdjust,
        learning_tuning.Parameter,
        "POST /parameters/{name}",
        "Change a parameter within its range.",
        access="write",
    ),
    _learning(
        "parameter.list",
        learning_tuning.ParameterList,
        learning_tuning.Parameters,
        "GET /parameters",
        "List parameters.",
    ),
    _learning(
        "parameter.record",
        learning_tuning.PerformanceRecord,
        learning_tuning.PerformanceRecorded,
        "POST /parameters/performance",
        "Keep a measurement with the parameters it was made under.",
        access="write",
        is_idempotent=False,
    ),
    _learning(
        "parameter.optimize",
        learning_tuning.ParameterOptimize,
        learning_tuning.Adjustments,
        "GET /parameters/optimize",
        "Which parameters to move for a metric.",
    ),
)


def _account(
    subject: str,
    request: type[Request],
    reply: type[Any],
    http: str,
    summary: str,
    *,
    scope: str = "",
    is_idempotent: bool = True,
) -> Operation:
    return Operation(
        subject=subject,
        request=request,
        reply=reply,
        http=http,
        summary=summary,
        is_idempotent=is_idempotent,
        scope=scope,
    )


_ACCOUNTS: tuple[Operation, ...] = (
    _account("auth.register", accounts.Register, accounts.User, "POST /auth/register", "Sign oneself up."),
    _account("auth.login", accounts.Login, accounts.Tokens, "POST /auth/login", "Trade name and password for tokens."),
    _account("auth.verify", accounts.Verify, accounts.TokenState, "POST /auth/verify", "Say whose a token is."),
    _account("auth.refresh", accounts.Refresh, accounts.Tokens, "POST /auth/refresh", "Renew an access token."),
    _account("auth.logout", accounts.Logout, accounts.LoggedOut, "POST /auth/logout", "End a sign-in."),
    _account(
        "auth.password", accounts.PasswordChange, accounts.User, "POST /auth/password", "Change one's own password."
    ),
    _account(
        "auth.issue",
        accounts.TokenIssue,
        accounts.Tokens,
        "POST /auth/issue",
        "Make a token for a program.",
        scope="auth:admin",
        is_idempotent=False,
    ),
    _account("auth.user.add", accounts.UserAdd, accounts.User, "POST /auth/user", "Add a user.", scope="auth:admin"),
    _account("auth.user.list", accounts.UserList, accounts.Users, "GET /auth/user", "List users.", scope="auth:admin"),
    _account(
        "auth.user.update",
        accounts.UserUpdate,
        accounts.User,
        "PATCH /auth/user/{user_id}",
        "Change a user.",
        scope="auth:admin",
    ),
    _account(
        "auth.user.delete",
        accounts.UserDelete,
        accounts.UserDeleted,
        "DELETE /auth/user/{user_id}",
        "Delete a user.",
        scope="auth:admin",
    ),
    _account(
        "auth.keys.rotate",
        accounts.KeyRotate,
        accounts.KeyRotated,
        "POST /auth/keys/rotate",
        "Sign tokens with a new key.",
        scope="auth:admin",
        is_idempotent=False,
    ),
    _account(
        "trust.get",
        accounts.TrustGet,
        accounts.TrustScore,
        "GET /trust/{user_id}",
        "How far somebody is trusted, and why.",
        scope="trust:read",
    ),
    _account(
        "trust.record",
        accounts.TrustRecord,
        accounts.TrustScore,
        "POST /trust/{user_id}",
        "Report an outcome.",
        scope="trust:write",
    ),
    _account("trust.list", accounts.TrustList, accounts.TrustPage, "GET /trust", "List scores.", scope="trust:read"),
)

_ERRORS = (
    _operation(
        "error", "report", errors.ReportError, errors.ErrorReported, "POST /errors", "Tell of an error.",
        access="write", is_idempotent=False,
    ),
    _operation(
        "error", "list", errors.ErrorList, errors.ErrorPage, "GET /errors", "Groups of like errors, newest first.",
    ),
    _operation(
        "error", "show", errors.ErrorShow, errors.ErrorWhole, "GET /errors/{fingerprint}",
        "One group with its newest reports.",
    ),
    _operation(
        "error", "stats", errors.ErrorStats, errors.ErrorStatsReply, "GET /errors/stats",
        "How many errors, by service and severity.",
    ),
    _operation(
        "error", "acknowledge", errors.ErrorAcknowledge, errors.ErrorsChanged, "POST /errors/{fingerprint}/acknowledge, POST /errors/acknowledge",
        "Say that errors were seen: they are listed again when they come again.", access="write",
    ),
    _operation(
        "error", "mute", errors.ErrorMute, errors.ErrorGroup, "POST /errors/{fingerprint}/mute",
        "Count a group without listing or telling it, for a time.", access="write",
    ),
    _operation(
        "error", "forget", errors.ErrorForget, errors.ErrorsChanged, "POST /errors/forget",
        "Delete groups.", access="write",
    ),
    _operation(
        "audit", "list", telling.AuditList, telling.AuditPage, "GET /audit",
        "Sign-ins, refusals, deletions and promotions, newest first.",
    ),
    _operation(
        "audit", "verify", telling.AuditVerify, telling.AuditVerdict, "POST /audit/verify",
        "Check that no line of the audit log was changed or taken out.",
    ),
)  # fmt: skip

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
    *_HUB,
    *_ACCOUNTS,
    *_MODELS,
    *_RESOURCES,
    *_LEARNING,
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
    Operation(
        subject="bus.trace.read",
        request=telling.TraceRead,
        reply=telling.Spans,
        http="GET /bus/traces",
        summary="Requests of the last minutes, with their way through the bus and their times.",
        is_idempotent=True,
        scope="bus:read",
    ),
    *_ERRORS,
    Operation(
        subject="exporter.status",
        request=telling.ExporterStatus,
        reply=telling.ExporterStatusReply,
        http="",
        summary="Where the figures are served, and of which processes.",
        is_idempotent=True,
        scope="bus:read",
    ),
    Operation(
        subject="gateway.ports",
        request=gateway.GatewayPorts,
        reply=gateway.PortList,
        http="GET /ports",
        summary="Which ports the edges hold, and which they could not have.",
        is_idempotent=True,
        scope="bus:read",
    ),
)

# What the audit log has a line of, whoever asks: who may do what, what is gone for good, what is put to work, what
# leaves in one piece.
_AUDITED: dict[str, Literal["sign_in", "account", "deletion", "promotion", "export", "settings"]] = {
    "auth.login": "sign_in",
    "auth.refresh": "sign_in",
    "auth.register": "account",
    "auth.logout": "account",
    "auth.password": "account",
    "auth.issue": "account",
    "auth.user.add": "account",
    "auth.user.update": "account",
    "auth.user.delete": "account",
    "auth.keys.rotate": "account",
    "memory.kv.delete": "deletion",
    "memory.forget": "deletion",
    "memory.delete": "deletion",
    "memory.group.delete": "deletion",
    "memory.doc.delete": "deletion",
    "memory.context.delete": "deletion",
    "memory.session.close": "deletion",
    "memory.cache.flush": "deletion",
    "memory.restore": "deletion",
    "memory.rebuild": "deletion",
    "memory.import": "settings",
    "memory.export": "export",
    "memory.backup": "export",
    "utils.cleanup_temp_files": "deletion",
    "utils.cleanup_logs": "deletion",
    "utils.cleanup_cache": "deletion",
    "utils.cleanup_system": "deletion",
    "model.delete": "deletion",
    "model.import": "settings",
    "model.pull": "settings",
    "model.conversation.clear": "deletion",
    "model.adapter.attach": "settings",
    "model.adapter.detach": "deletion",
    "model.adapter.promote": "promotion",
    "model.adapter.rollback": "promotion",
    "learning.exchange.delete": "deletion",
    "learning.dataset.delete": "deletion",
    "learning.dataset.export": "export",
    "learning.row.remove": "deletion",
    "learning.checkpoint.delete": "deletion",
    "learning.schedule.set": "settings",
    "learning.promote": "promotion",
    "learning.rollback": "promotion",
    "deadletter.redrive": "settings",
    "deadletter.purge": "deletion",
    "error.mute": "settings",
    "error.forget": "deletion",
}

OPERATIONS: dict[str, Operation] = {
    operation.subject: msgspec.structs.replace(operation, audit=_AUDITED.pop(operation.subject, ""))
    for operation in _DECLARED
}
if _AUDITED:
    raise ValueError(f"no operations: {', '.join(_AUDITED)}")

EVENTS: tuple[Event, ...] = (
    Event(pattern="memory.changed.*", body=memory.Changed, summary="A write was committed."),
    Event(pattern="memory.session.opened", body=sessions.SessionEvent, summary="A session was opened."),
    Event(pattern="memory.session.closed", body=sessions.SessionEvent, summary="A session was closed or deleted."),
    Event(pattern="memory.session.expired", body=sessions.SessionEvent, summary="A session's time was over."),
    Event(pattern="memory.context.changed", body=sessions.ContextEvent, summary="A context was written or deleted."),
    Event(
        pattern="memory.suggestion.made",
        body=sessions.Suggestion,
        summary="The monitor made a suggestion; not kept, for it quotes what people said.",
        is_kept=False,
    ),
    Event(pattern="auth.revoked", body=accounts.AuthRevoked, summary="Tokens are no good any more."),
    Event(pattern="auth.failed", body=accounts.AuthFailed, summary="A sign-in failed."),
    Event(pattern="trust.changed", body=accounts.TrustChanged, summary="An outcome was reported of somebody."),
    Event(pattern="model.loading", body=model.ModelEvent, summary="A runner is starting for a model."),
    Event(pattern="model.loaded", body=model.ModelEvent, summary="A model serves."),
    Event(pattern="model.unloaded", body=model.ModelEvent, summary="A model left on request."),
    Event(pattern="model.evicted", body=model.ModelEvent, summary="A model was taken out to make room or for idling."),
    Event(pattern="model.failed", body=model.ModelEvent, summary="A model could not be loaded, or its runner died."),
    Event(pattern="model.preloaded", body=model.ModelEvent, summary="A model was loaded ahead of need."),
    Event(pattern="model.usage", body=model.UsageEvent, summary="A generation finished."),
    Event(
        pattern="model.answered",
        body=learning.AnswerEvent,
        summary="A question was answered, or failed; not kept, for it holds what people wrote.",
        is_kept=False,
    ),
    Event(pattern="model.pulled", body=model_files.ModelPulled, summary="A model was fetched."),
    Event(pattern="model.evaluated", body=model_trials.Evaluation, summary="An evaluation ended."),
    Event(pattern="model.adapter.promoted", body=model_files.AdapterChange, summary="An adapter became the champion."),
    Event(pattern="model.adapter.rolled_back", body=model_files.AdapterChange, summary="The champion before is back."),
    Event(
        pattern="learning.opportunity.found",
        body=learning.Opportunity,
        summary="There is something worth learning; not kept, for it shows questions of people.",
        is_kept=False,
    ),
    Event(pattern="learning.training.started", body=learning_jobs.JobInfo, summary="A training runs."),
    Event(pattern="learning.training.progress", body=learning_jobs.JobProgress, summary="A training got on."),
    Event(pattern="learning.training.checkpoint", body=learning_jobs.CheckpointInfo, summary="A checkpoint was kept."),
    Event(pattern="learning.training.finished", body=learning_jobs.JobInfo, summary="An adapter was trained."),
    Event(pattern="learning.training.failed", body=learning_jobs.JobInfo, summary="A training failed."),
    Event(
        pattern="learning.training.stopped", body=learning_jobs.JobInfo, summary="A training stopped at a checkpoint."
    ),
    Event(pattern="learning.gate.passed", body=learning_gate.GateResult, summary="The gate passed an adapter."),
    Event(pattern="learning.gate.failed", body=learning_gate.GateResult, summary="The gate did not pass an adapter."),
    Event(pattern="learning.promoted", body=learning_gate.Deployment, summary="An adapter was put to work."),
    Event(
        pattern="learning.rolled_back", body=learning_gate.Deployment, summary="An adapter was taken out of service."
    ),
    Event(
        pattern="learning.session.*", body=learning_tuning.SessionEvent, summary="Something about a learning session."
    ),
    Event(pattern="resource.lease.granted", body=resource.LeaseEvent, summary="Memory was reserved."),
    Event(pattern="resource.lease.released", body=resource.LeaseEvent, summary="Reserved memory was given back."),
    Event(pattern="resource.lease.expired", body=resource.LeaseEvent, summary="A reservation was not renewed in time."),
    Event(
        pattern="resource.lease.preempting",
        body=resource.LeaseEvent,
        summary="A holder is asked to give its memory to somebody more important.",
    ),
    Event(pattern="bus.worker.joined", body=control.WorkerEvent, summary="A worker instance registered."),
    Event(pattern="bus.worker.left", body=control.WorkerEvent, summary="A worker instance drained and left."),
    Event(pattern="bus.worker.lost", body=control.WorkerEvent, summary="A worker instance vanished."),
    Event(pattern="bus.service.overloaded", body=control.ServiceOverloaded, summary="A queue refused requests."),
    Event(pattern="bus.trace.*", body=control.Trace, summary="A step of a request, while somebody subscribes to it."),
    Event(pattern="bus.stats", body=control.BrokerStats, summary="The broker's counters, at a fixed interval."),
    Event(pattern="error.deadletter", body=control.DeadLetter, summary="A request became a dead letter."),
    Event(pattern="error.opened", body=errors.ErrorGroupEvent, summary="An error of a kind that was not known."),
    Event(pattern="error.reopened", body=errors.ErrorGroupEvent, summary="An acknowledged error came again."),
    Event(pattern="audit.*", body=telling.AuditEvent, summary="A line for the audit log."),
    Event(
        pattern="metrics.*",
        body=telling.Figures,
        summary="The figures of one process, at a fixed interval.",
        is_kept=False,
    ),
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
