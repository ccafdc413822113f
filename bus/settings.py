"""Every setting of Olympus: one frozen `Settings` that holds all defaults, read from file < environment < flag.

    key                bus.request_port
    file               bus: {request_port: 7000}          config/olympus.yaml shows every key
    environment        OLYMPUS_BUS_REQUEST_PORT=7000      OLYMPUS_<SECTION>_<KEY>; an empty variable counts as unset
                       OLLM_MODEL=olympus-demo            other names of some keys, weaker than OLYMPUS_...: OTHER_VARIABLES
    flag               --set bus.request_port=7000

The file is the one named by `--config`, else by OLYMPUS_CONFIG, else OLYMPUS_HOME/olympus.yaml if it exists; a process
without a file runs on the defaults below. Lists are written in the environment and in flags as JSON or with commas.
No other module reads `os.environ`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, NoReturn

import msgspec
from msgspec import Meta

from bus import z85
from bus.hours import parse_hours
from bus.near_names import nearest
from bus.redaction import HIDDEN, is_secret, shown
from bus.sizes import parse_size, parse_sizes
from schemas.errors import BadRequest
from schemas.limits import MAX_BODY_BYTES
from schemas.subjects import validate_pattern

# Exit status of a process whose settings are wrong (EX_CONFIG of sysexits.h). A supervisor does not restart it.
EX_CONFIG: Final = 78

MIB: Final = 1024 * 1024
GIB: Final = 1024 * MIB
DAY_S: Final = 86_400.0

# Names that a size may be given to: of a device, of a service.
DEVICE_NAME: Final = "cpu|gpu[0-9]{1,3}"
SERVICE_NAME: Final = "[A-Za-z0-9_.-]{1,64}"

# What a machine is called in the settings, in the keys folder and in messages.
MACHINE_NAME: Final = "[a-z][a-z0-9-]{0,31}"


class SettingsError(Exception):
    """A setting is unknown, malformed or out of range; the message names where it was written, key, value and range."""


Port = Annotated[int, Meta(ge=0, le=65_535)]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One group of keys: a section of the file."""


class BusSettings(Section, frozen=True, kw_only=True):
    """Where the bus is and how every client and worker speaks to it."""

    host: Annotated[
        str,
        Meta(
            min_length=1,
            description="address everybody connects to, and the broker binds; past loopback it takes bus.server_key",
        ),
    ] = "127.0.0.1"
    listen: Annotated[
        tuple[str, ...],
        Meta(description="addresses the broker binds beside bus.host for other machines, encrypted (olympus keys)"),
    ] = ()
    server_key: Annotated[
        str,
        Meta(
            description="connect to bus.host encrypted, to the owner of this key alone: a name trusted with `olympus"
            " keys`, or the key"
        ),
    ] = ""
    request_port: Annotated[Port, Meta(description="requests and replies; 0 takes any free port (tests)")] = 7000
    publish_port: Annotated[Port, Meta(description="events in: publishers connect here; 0 takes any free port")] = 7001
    subscribe_port: Annotated[Port, Meta(description="events out, two plain frames; 0 takes any free port")] = 7002
    sequenced_port: Annotated[
        Port, Meta(description="events out with sequence number, time, source and id; 0 takes any free port")
    ] = 7003
    insecure: Annotated[
        bool, Meta(description="allow a host past loopback in clear: anybody in that network reads and writes it all")
    ] = False
    timeout_s: Annotated[
        float, Meta(gt=0, le=86_400, description="seconds a client waits for a reply when the call names no deadline")
    ] = 30.0
    heartbeat_s: Annotated[
        float, Meta(ge=0.05, le=60, description="seconds between two heartbeats; a worker silent for three is lost")
    ] = 1.0
    max_body_bytes: Annotated[int, Meta(ge=1024, le=1024 * MIB, description="bytes of the largest message body")] = (
        MAX_BODY_BYTES
    )
    reconnect_max_s: Annotated[
        float, Meta(ge=0.05, le=60, description="seconds between two attempts to reach the broker, at most")
    ] = 2.0
    metrics_interval_s: Annotated[
        float, Meta(ge=0, le=3600, description="seconds between two tellings of a process's figures; 0 tells none")
    ] = 5.0
    token: Annotated[
        str, Meta(description="token sent with requests that bring none; a secret: set it in the environment")
    ] = ""


class AuthSettings(Section, frozen=True, kw_only=True):
    """Who may ask for what: signing in, tokens and rate limits."""

    required: Annotated[
        bool, Meta(description="refuse requests without a token that allows them; off, the bus is one person's")
    ] = False
    allow_register: Annotated[
        bool, Meta(description="let anybody sign up while auth.required; otherwise an admin adds users")
    ] = False
    algorithm: Annotated[
        Literal["EdDSA", "HS256"], Meta(description="how new tokens are signed; each key keeps its own")
    ] = "EdDSA"
    access_ttl_s: Annotated[
        float, Meta(ge=1, le=DAY_S, description="seconds an access token is good for; then it is refreshed")
    ] = 900.0
    refresh_ttl_s: Annotated[
        float, Meta(ge=1, le=3_660 * DAY_S, description="seconds a sign-in lasts without being used")
    ] = 30 * DAY_S
    sign_ins_at_once: Annotated[
        int, Meta(ge=1, le=64, description="passwords checked at once, each with 64 MiB and 0.2 s of a core")
    ] = 2
    sign_ins_waiting: Annotated[
        int, Meta(ge=1, le=10_000, description="sign-ins that wait for that; past them the caller gets `overloaded`")
    ] = 32
    rate_min_per_s: Annotated[
        float, Meta(gt=0, le=1e6, description="requests per second of a caller who is not trusted at all")
    ] = 20.0
    rate_max_per_s: Annotated[
        float, Meta(gt=0, le=1e6, description="requests per second of a caller who is trusted fully")
    ] = 1000.0


class BrokerSettings(Section, frozen=True, kw_only=True):
    """Bounds of the broker's queues and of what it keeps on disk."""

    queue_max_requests: Annotated[
        int,
        Meta(ge=1, le=10_000_000, description="requests waiting per subject; past that the caller gets `overloaded`"),
    ] = 10_000
    queue_max_bytes: Annotated[
        int,
        Meta(ge=1024, le=1024 * GIB, description="bytes waiting per subject; past that the caller gets `overloaded`"),
    ] = 256 * MIB
    attempts: Annotated[
        int,
        Meta(ge=1, le=100, description="times an idempotent request is given to a worker before it is a dead letter"),
    ] = 3
    default_deadline_s: Annotated[
        float, Meta(gt=0, le=86_400, description="seconds a request may take when its sender names no deadline")
    ] = 60.0
    subscriber_max_bytes: Annotated[
        int,
        Meta(ge=1024, le=64 * GIB, description="bytes waiting for one slow subscriber; past that it loses its events"),
    ] = 64 * MIB
    stats_interval_s: Annotated[float, Meta(ge=0.1, le=3600, description="seconds between two `bus.stats` events")] = (
        5.0
    )
    log_subjects: Annotated[
        tuple[str, ...], Meta(description="patterns of the events kept in the durable log; [] keeps none")
    ] = (
        "memory.>",
        "model.>",
        "learning.>",
        "error.>",
        "bus.worker.>",
        "trust.>",
        "resource.>",
        "audit.>",
    )
    log_max_age_s: Annotated[float, Meta(ge=1, le=36_500 * DAY_S, description="seconds an event is kept, at most")] = (
        7 * DAY_S
    )
    log_max_bytes: Annotated[int, Meta(ge=4096, le=1024 * GIB, description="bytes of the whole event log, at most")] = (
        GIB
    )
    log_segment_bytes: Annotated[
        int, Meta(ge=4096, le=GIB, description="bytes of one file of the event log; whole files are dropped")
    ] = 16 * MIB
    log_sync_s: Annotated[
        float,
        Meta(ge=0, le=60, description="seconds between two syncs of the event log to the disk; 0 syncs each write"),
    ] = 0.05
    traces_max: Annotated[
        int, Meta(ge=0, le=10_000_000, description="ended requests remembered for `olympus trace`; 0 remembers none")
    ] = 20_000
    dead_letters_max: Annotated[
        int, Meta(ge=1, le=10_000_000, description="dead letters kept, at most; the oldest go first")
    ] = 10_000
    dead_letters_max_age_s: Annotated[
        float, Meta(ge=1, le=36_500 * DAY_S, description="seconds a dead letter is kept, at most")
    ] = 30 * DAY_S


class ErrorsSettings(Section, frozen=True, kw_only=True):
    """The error service: groups of errors, whom to tell of them, and the audit log."""

    path: Annotated[str, Meta(min_length=1, description="SQLite file, below home unless absolute")] = "errors/errors.db"
    keep_s: Annotated[
        float, Meta(ge=60, le=36_500 * DAY_S, description="seconds a group is kept that does not come again")
    ] = 90 * DAY_S
    groups_max: Annotated[
        int, Meta(ge=10, le=10_000_000, description="groups kept, at most; rare ones unseen longest go first")
    ] = 10_000
    notify_severity: Annotated[
        Literal["warning", "error", "critical"], Meta(description="the least severity somebody is told of")
    ] = "error"
    notify_every_s: Annotated[
        float, Meta(ge=1, le=DAY_S, description="seconds between two notifications of one group, at least")
    ] = 300.0
    webhooks: Annotated[
        tuple[str, ...],
        Meta(
            description="http(s) addresses a notification is posted to; they may hold a secret: set it in the environment"
        ),
    ] = ()
    webhook_format: Annotated[
        Literal["json", "slack", "ntfy"],
        Meta(description="body of that post: ours as JSON, or what Slack or ntfy read"),
    ] = "json"
    desktop: Annotated[bool, Meta(description="show notifications on this machine's desktop (notify-send)")] = False
    audit_keep_s: Annotated[
        float, Meta(ge=60, le=36_500 * DAY_S, description="seconds a line of the audit log is kept")
    ] = 730 * DAY_S


class ExporterSettings(Section, frozen=True, kw_only=True):
    """The one endpoint for Prometheus, and traces for OpenTelemetry."""

    host: Annotated[
        str, Meta(min_length=1, description="address it is bound to; past loopback it takes exporter.insecure")
    ] = "127.0.0.1"
    port: Annotated[Port, Meta(description="GET /metrics and /health; 0 takes any free port (tests)")] = 9464
    insecure: Annotated[
        bool, Meta(description="allow a host past loopback: anybody in that network may read the figures")
    ] = False
    max_series: Annotated[
        int, Meta(ge=1000, le=10_000_000, description="time series served, at most; what comes past it is counted")
    ] = 50_000
    otlp_endpoint: Annotated[
        str, Meta(description="OpenTelemetry collector that gets traces, http://HOST:4318; empty for none (extra otel)")
    ] = ""
    otlp_share: Annotated[
        float, Meta(ge=0, le=1, description="share of the traces that it gets; those with an error are always sent")
    ] = 1.0


class MemorySettings(Section, frozen=True, kw_only=True):
    """The memory service."""

    capacity: Annotated[int, Meta(ge=1, le=100_000, description="requests answered at once")] = 256
    path: Annotated[str, Meta(min_length=1, description="SQLite file, below home unless absolute")] = "memory/memory.db"
    readers: Annotated[int, Meta(ge=1, le=64, description="connections that read while one writes")] = 2
    redis_url: Annotated[
        str,
        Meta(
            description="server for caches, marks and counters, redis://HOST:PORT or unix:///PATH; empty for SQLite"
            " (docs/hot-tier.md)"
        ),
    ] = ""
    redis_timeout_s: Annotated[
        float, Meta(ge=0.01, le=60, description="seconds Redis may take for one request before SQLite takes over")
    ] = 0.5
    cache_max_bytes: Annotated[
        int,
        Meta(ge=65_536, le=1024 * GIB, description="bytes kept in hot.db, at most; what was unused longest goes first"),
    ] = 256 * MIB
    writes_per_commit: Annotated[
        int, Meta(ge=1, le=10_000, description="writes that share one commit and its sync to the disk, at most")
    ] = 128
    cycle_interval_s: Annotated[
        float,
        Meta(
            ge=1, le=DAY_S, description="seconds between two looks for memories to age; a pass falls on every full hour"
        ),
    ] = 3600.0
    session_ttl_s: Annotated[
        float,
        Meta(
            gt=0, le=3_660 * DAY_S, description="seconds without use after which a session ends, where it says nothing"
        ),
    ] = 3600.0
    context_facts: Annotated[
        float, Meta(ge=0, le=1, description="share of a built context kept for known facts, of what the prompt leaves")
    ] = 0.15
    context_bridge: Annotated[
        float, Meta(ge=0, le=1, description="share of a built context kept for earlier sessions; history has the rest")
    ] = 0.15
    context_memories: Annotated[
        float, Meta(ge=0, le=1, description="share of a built context kept for memories that were found")
    ] = 0.3
    proactive: Annotated[bool, Meta(description="watch sessions and suggest what may help, with the evidence")] = True
    encoder: Annotated[
        str,
        Meta(
            min_length=1,
            description="model that makes vectors: all-MiniLM-L6-v2 or a folder of a sentence-transformers model",
        ),
    ] = "all-MiniLM-L6-v2"
    encoder_threads: Annotated[
        int, Meta(ge=0, le=1024, description="CPU threads of the encoder; 0 takes every core")
    ] = 0
    encoder_idle_s: Annotated[
        float,
        Meta(ge=-1, le=36_500 * DAY_S, description="seconds an idle encoder stays loaded; -1 keeps it for ever"),
    ] = 600.0
    encoder_preload: Annotated[
        bool, Meta(description="load the encoder at start instead of with the first text that needs it")
    ] = False
    qdrant_url: Annotated[
        str, Meta(description="server that keeps the vectors, http://HOST:PORT; empty keeps them below home/memory")
    ] = ""
    qdrant_api_key: Annotated[str, Meta(description="key for that server; a secret: set it in the environment")] = ""
    qdrant_prefix: Annotated[
        str,
        Meta(
            min_length=1,
            description="first part of the collection's name; two memories on one server need two",
        ),
    ] = "olympus"


class SearchSettings(Section, frozen=True, kw_only=True):
    """How `memory.search` weighs what it finds; the defaults were chosen with scripts/bench_recall.py (docs/search.md)."""

    text_weight: Annotated[
        float,
        Meta(
            ge=0,
            le=100,
            description="share of the score that the words of the query give, over the chunk and its neighbours",
        ),
    ] = 1.0
    dense_weight: Annotated[
        float,
        Meta(
            ge=0,
            le=100,
            description="share of the score that closeness in meaning gives, over the chunk and its neighbours",
        ),
    ] = 1.6
    speaker_weight: Annotated[
        float, Meta(ge=0, le=100, description="share of the score for a chunk said by whom the query names")
    ] = 0.15
    time_weight: Annotated[
        float,
        Meta(ge=0, le=100, description="share of the score for a chunk of, or about, the time that the query names"),
    ] = 0.3
    dated_weight: Annotated[
        float,
        Meta(ge=0, le=100, description="share of the score for a chunk that tells a time where the query asks when"),
    ] = 0.1
    tag_weight: Annotated[
        float, Meta(ge=0, le=100, description="share of the score for a chunk with a tag that is a word of the query")
    ] = 0.1
    relation_weight: Annotated[
        float,
        Meta(
            ge=0, le=100, description="part of its score that a hit gives to a memory it is related to, at strength 1"
        ),
    ] = 0.1
    recency_weight: Annotated[
        float, Meta(ge=0, le=100, description="share of the score for a chunk of this moment")
    ] = 0.01
    recency_half_life_s: Annotated[
        float, Meta(ge=1, le=36_500 * DAY_S, description="seconds after which the share for recency is half")
    ] = 30 * DAY_S
    importance_weight: Annotated[
        float, Meta(ge=0, le=100, description="share of the score for a memory of importance 1")
    ] = 0.05
    neighbour_asked: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="worth of a word that stands in the question which a chunk answers, beside one in the chunk",
        ),
    ] = 1.0
    neighbour_near: Annotated[
        float,
        Meta(ge=0, le=1, description="worth of a word or meaning next to a chunk in its session, document or parent"),
    ] = 0.5
    neighbour_far: Annotated[float, Meta(ge=0, le=1, description="worth of a word or meaning one chunk further")] = 0.25
    text_floor: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="part of the query's words, by rarity, that a hit must hold, where none is near in meaning either",
        ),
    ] = 0.4
    dense_floor: Annotated[
        float,
        Meta(ge=0, le=1, description="cosine to the query that a hit must reach, where none holds enough words either"),
    ] = 0.33
    stray_floor: Annotated[
        float,
        Meta(ge=0, le=1, description="part of the best hit's score that the others must have, or they are left out"),
    ] = 0.4
    nearest: Annotated[int, Meta(ge=1, le=10_000, description="chunks asked of the vector index for one query")] = 48
    candidates: Annotated[int, Meta(ge=10, le=10_000, description="chunks looked at closely for one query")] = 32
    postings: Annotated[
        int,
        Meta(
            ge=100, le=10_000_000, description="entries read of the full-text index for one query, rarest words first"
        ),
    ] = 6_000


class ModelSettings(Section, frozen=True, kw_only=True):
    """The model service and its runners."""

    roots: Annotated[
        tuple[str, ...],
        Meta(
            description="folders searched for model files, below home unless absolute; the demo folder always is one too"
        ),
    ] = ("models",)
    default: Annotated[str, Meta(min_length=1, description="model used when a request names none")] = "olympus-demo"
    context_tokens: Annotated[
        int,
        Meta(ge=0, le=10_000_000, description="tokens of context; 0 takes the model's own up to max_context_tokens"),
    ] = 0
    max_context_tokens: Annotated[
        int, Meta(ge=32, le=10_000_000, description="tokens of context at most where the model's own length is taken")
    ] = 8192
    threads: Annotated[
        int, Meta(ge=0, le=1024, description="CPU threads of one runner; 0 takes every core, or one for small models")
    ] = 0
    gpu_layers: Annotated[int, Meta(ge=-1, le=10_000, description="layers put on the GPU; -1 puts all there")] = -1
    keep_alive_s: Annotated[
        float, Meta(ge=-1, le=36_500 * DAY_S, description="seconds an idle model stays loaded; -1 keeps it for ever")
    ] = 300.0
    max_idle_s: Annotated[
        float,
        Meta(
            ge=0,
            le=36_500 * DAY_S,
            description="seconds after which an idle model leaves however long it was to be kept, unless pinned; 0 for never",
        ),
    ] = 0.0
    pinned: Annotated[
        tuple[str, ...],
        Meta(description="models that are loaded at start, never evicted and loaded again when they die"),
    ] = ()
    max_loaded: Annotated[int, Meta(ge=1, le=64, description="models loaded at once, however much memory there is")] = 4
    when_full: Annotated[
        Literal["wait", "refuse"],
        Meta(
            description="what becomes of a request for a model there is no room for: it waits for room, or is refused"
        ),
    ] = "wait"
    parallel: Annotated[int, Meta(ge=1, le=256, description="sequences answered at once per model")] = 4
    max_tokens: Annotated[
        int, Meta(ge=1, le=1_000_000, description="tokens of one answer when the request names no limit")
    ] = 256
    temperature: Annotated[
        float,
        Meta(
            ge=-1, le=10, description="temperature where neither request nor rules name one; -1 takes the model's own"
        ),
    ] = -1.0
    provider: Annotated[
        Literal["auto", "llama.cpp", "transformers", "vllm", "ollama", "openai"],
        Meta(description="what runs models where the rules name nothing; an endpoint also gets the names unknown here"),
    ] = "auto"
    host: Annotated[
        str, Meta(description="address of that provider, http://HOST:PORT, where it is a server; empty for its own")
    ] = ""
    spare_runners: Annotated[
        int, Meta(ge=0, le=8, description="runners kept warm with their imports done, so that a load starts at once")
    ] = 1
    load_timeout_s: Annotated[float, Meta(gt=0, le=86_400, description="seconds a model may take to load")] = 120.0
    predict: Annotated[
        bool, Meta(description="load models ahead of need, into memory that is free or idle, as usage predicts")
    ] = True
    rules: Annotated[
        str,
        Meta(
            min_length=1,
            description="file with rules per model, routing profiles and remote endpoints, below home unless absolute",
        ),
    ] = "models.toml"
    rescan_s: Annotated[
        float, Meta(ge=0, le=86_400, description="seconds between looks at the model folders; 0 looks when asked")
    ] = 30.0
    registry_url: Annotated[
        str, Meta(min_length=1, description="where ollama:NAME is fetched from, a registry with Ollama's protocol")
    ] = "https://registry.ollama.ai"
    hub_url: Annotated[str, Meta(min_length=1, description="where hf:OWNER/NAME is fetched from")] = (
        "https://huggingface.co"
    )
    is_offline: Annotated[bool, Meta(description="fetch nothing; say so at once")] = False
    suites: Annotated[
        str, Meta(min_length=1, description="folder with evaluation suites, below home unless absolute")
    ] = "suites"


class ResourceSettings(Section, frozen=True, kw_only=True):
    """Devices and who may hold how much of their memory."""

    nvml: Annotated[
        Literal["auto", "off"], Meta(description="ask the NVIDIA driver for GPUs where there is one, or do not")
    ] = "auto"
    devices: Annotated[
        tuple[str, ...],
        Meta(description="devices declared by hand, as gpu0=24GiB or cpu=16GiB; they go before what is measured"),
    ] = ()
    spare_vram: Annotated[
        str, Meta(min_length=2, description="memory of each GPU left to the desktop and the driver, as 512MiB")
    ] = "512MiB"
    ram_share: Annotated[
        float, Meta(gt=0, le=1, description="part of the main memory that leases may take together")
    ] = 0.8
    quotas: Annotated[
        tuple[str, ...], Meta(description="memory a service may hold on all devices together, as model=20GiB")
    ] = ()
    sample_s: Annotated[float, Meta(ge=0.1, le=3600, description="seconds between looks at the devices")] = 2.0


class LearningSettings(Section, frozen=True, kw_only=True):
    """What is learned from, when training runs, and what an adapter has to show."""

    observe: Annotated[bool, Meta(description="keep answers of models for a while, and notice what they get wrong")] = (
        True
    )
    keep_exchanges: Annotated[
        int, Meta(ge=100, le=10_000_000, description="questions with their answers kept, the newest")
    ] = 20_000
    keep_days: Annotated[
        float,
        Meta(gt=0, le=3_660, description="days after which a kept exchange is deleted, and an opportunity expires"),
    ] = 30.0
    silence_s: Annotated[
        float,
        Meta(ge=1, le=30 * DAY_S, description="seconds after which an answer that nobody complained of counts as good"),
    ] = 600.0
    is_automatic: Annotated[bool, Meta(description="train open opportunities unasked, when the schedule allows")] = True
    promote: Annotated[
        Literal["auto", "ask", "never"],
        Meta(description="what becomes of an adapter that passed the gate, where its job says nothing"),
    ] = "auto"
    hours: Annotated[
        str,
        Meta(
            pattern=r"^(\d\d:\d\d-\d\d:\d\d(,\d\d:\d\d-\d\d:\d\d)*)?$",
            description="local hours in which training may run, as 22:00-06:00,12:00-13:00; empty for always",
        ),
    ] = ""
    budget_s: Annotated[
        float, Meta(ge=0, le=DAY_S, description="seconds of training a day at most; 0 for no limit")
    ] = 14_400.0
    idle_s: Annotated[
        float,
        Meta(ge=0, le=DAY_S, description="seconds without a request to a model before a training starts by itself"),
    ] = 30.0
    min_examples: Annotated[
        int, Meta(ge=1, le=1_000_000, description="examples an opportunity needs before it is trained unasked")
    ] = 100
    teacher: Annotated[
        str, Meta(description="model that writes the answers where only questions are known; empty for none")
    ] = ""
    memory: Annotated[
        str, Meta(min_length=2, description="memory one training may take, as 4GiB; auto for what a lease can get")
    ] = "auto"
    checkpoints_kept: Annotated[int, Meta(ge=2, le=1_000, description="checkpoints kept per job")] = 2
    checkpoints_size: Annotated[
        str, Meta(min_length=2, description="size of all checkpoints of a job, as 8GiB; two stay however large")
    ] = "8GiB"
    save_s: Annotated[float, Meta(ge=1, le=DAY_S, description="seconds between two checkpoints")] = 60.0
    warm_s: Annotated[
        float,
        Meta(
            ge=0,
            le=30 * DAY_S,
            description="seconds the trainer's imports stay in memory after a job; 0 for not at all",
        ),
    ] = 300.0
    held_out_share: Annotated[
        float, Meta(ge=0.05, le=0.5, description="part of the examples that are never trained on, for the gate")
    ] = 0.25
    retention_share: Annotated[
        float, Meta(ge=0, le=0.9, description="part of the good exchanges kept to show that nothing is forgotten")
    ] = 0.5
    replay_share: Annotated[
        float, Meta(ge=0, le=0.9, description="part of the training rows that are earlier data, against forgetting")
    ] = 0.65
    person_share: Annotated[
        float, Meta(gt=0, le=1, description="part of a dataset that one person may give where there are several")
    ] = 0.5
    retention: Annotated[
        tuple[str, ...],
        Meta(description="files of cases that must not be forgotten, as MODEL=FILE, below home unless absolute"),
    ] = ()
    alpha: Annotated[
        float, Meta(gt=0, le=0.5, description="chance of passing an adapter without gain, over all attempts on one set")
    ] = 0.05
    min_gain: Annotated[
        float, Meta(gt=0, le=1, description="gain of the score, 0 to 1, that the gate has to be able to see")
    ] = 0.1
    margin: Annotated[
        float, Meta(gt=0, le=1, description="loss of the score, 0 to 1, on what was known before that is let pass")
    ] = 0.03
    min_target_items: Annotated[
        int, Meta(ge=10, le=1_000_000, description="held-out items below which the gate says underpowered")
    ] = 60
    min_retention_items: Annotated[
        int, Meta(ge=10, le=1_000_000, description="retention items below which the gate says underpowered")
    ] = 600
    canary_share: Annotated[
        float, Meta(gt=0, le=1, description="part of the conversations a new adapter answers while it is watched")
    ] = 0.5
    watch_drop: Annotated[
        float, Meta(gt=0, le=1, description="drop of the outcomes, 0 to 1, the watch is laid out to find")
    ] = 0.1
    watch_alpha: Annotated[
        float,
        Meta(gt=0, le=0.5, description="chance of taking back an adapter that is no worse, however long one looks"),
    ] = 0.05
    watch_pairs: Annotated[
        int, Meta(ge=10, le=10_000_000, description="pairs of outcomes after which a new adapter is kept for good")
    ] = 500
    watch_days: Annotated[
        float, Meta(gt=0, le=3_660, description="days after which a new adapter is kept for good")
    ] = 14.0


# Services that have an HTTP port of their own.
REST_SERVICES: Final = ("memory", "models", "learning")


class RestSettings(Section, frozen=True, kw_only=True):
    """The HTTP edge: one port per service with its operations, the OpenAI shapes, health and metrics."""

    host: Annotated[
        str, Meta(min_length=1, description="address the HTTP ports are bound to; past loopback see rest.insecure")
    ] = "127.0.0.1"
    insecure: Annotated[
        bool, Meta(description="allow a host past loopback although nobody has to sign in, or passwords pass in clear")
    ] = False
    services: Annotated[
        tuple[str, ...], Meta(description="which ports are opened, of memory, models and learning; [] opens none")
    ] = REST_SERVICES
    memory_port: Annotated[Port, Meta(description="memory over HTTP; 0 takes any free port (tests)")] = 7010
    models_port: Annotated[Port, Meta(description="models and /v1 over HTTP; 0 takes any free port")] = 7011
    learning_port: Annotated[Port, Meta(description="learning over HTTP; 0 takes any free port")] = 7012
    memory_health_port: Annotated[Port, Meta(description="health of memory, alone on a port; 0 takes any free one")] = (
        7110
    )
    models_health_port: Annotated[Port, Meta(description="health of models, alone on a port; 0 takes any free one")] = (
        7111
    )
    learning_health_port: Annotated[
        Port, Meta(description="health of learning, alone on a port; 0 takes any free one")
    ] = 7112
    phase1: Annotated[
        bool, Meta(description="also answer the paths and shapes of the first HTTP service (docs/rest-phase1.md)")
    ] = True
    console: Annotated[bool, Meta(description="serve the web console at /console on every port (docs/console.md)")] = (
        True
    )
    cors_origins: Annotated[
        tuple[str, ...],
        Meta(description="web pages whose scripts may call, as https://HOST[:PORT]; * for any, [] for none"),
    ] = ()
    max_body_bytes: Annotated[int, Meta(ge=1024, le=GIB, description="bytes of the largest request body")] = (
        MAX_BODY_BYTES
    )
    max_connections: Annotated[
        int, Meta(ge=1, le=1_000_000, description="connections open at once on all ports; more are refused")
    ] = 4096
    read_timeout_s: Annotated[
        float, Meta(ge=0.1, le=3600, description="seconds a client may take to send the head, and each piece of a body")
    ] = 15.0
    idle_s: Annotated[
        float,
        Meta(
            ge=0.1,
            le=DAY_S,
            description="seconds a connection may wait between two requests, and leave what it is answered unread",
        ),
    ] = 75.0


class LegacySettings(Section, frozen=True, kw_only=True):
    """The ports of the agents that Olympus replaces, in their own words (docs/legacy.md)."""

    enabled: Annotated[bool, Meta(description="open the ports of the replaced agents")] = False
    host: Annotated[
        str, Meta(min_length=1, description="address their ports are bound to; past loopback see legacy.insecure")
    ] = "127.0.0.1"
    insecure: Annotated[
        bool, Meta(description="allow a host past loopback although these ports know no encryption and no sign-in")
    ] = False
    agents: Annotated[
        tuple[str, ...], Meta(description="names of the agents that are answered for; * for all (olympus ports)")
    ] = ("*",)
    ports: Annotated[
        tuple[str, ...],
        Meta(
            description="other numbers, as CacheManager=17102, CacheManager.health=off; several with +, 0 takes any free"
        ),
    ] = ()
    announce: Annotated[
        str, Meta(description="address that discovery tells for these agents; empty for the one the caller reached")
    ] = ""
    user: Annotated[
        str,
        Meta(description="account these ports act for; needed where auth.required, since their clients cannot sign in"),
    ] = ""
    opportunity_score: Annotated[
        float, Meta(ge=0, le=1, description="score from which an interaction heard on port 5701 or 5702 is kept")
    ] = 0.7


class MachineSettings(Section, frozen=True, kw_only=True):
    """Which machine this is, where the others are, and what runs here (docs/two-machines.md)."""

    name: Annotated[
        str, Meta(description="name of this machine; `olympus up` then starts Procfile.NAME; empty for Procfile")
    ] = ""
    addresses: Annotated[
        tuple[str, ...],
        Meta(description="addresses by machine, as mainpc=192.168.100.16; settings of a host may then hold the name"),
    ] = ()
    services: Annotated[
        tuple[str, ...],
        Meta(
            description="what `olympus up` starts, in this order, and what each waits for, as"
            " learning=broker+memory@pc2; [] for the whole Procfile"
        ),
    ] = ()


class SupervisorSettings(Section, frozen=True, kw_only=True):
    """When a dead process is started again, and how long a stop may take."""

    backoff_s: Annotated[
        float, Meta(ge=0.01, le=60, description="seconds before the first restart; doubled by each quick death")
    ] = 0.2
    backoff_max_s: Annotated[float, Meta(ge=0.01, le=3600, description="seconds before a restart, at most")] = 5.0
    quick_death_s: Annotated[
        float, Meta(ge=0.1, le=3600, description="a process that dies within this many seconds died quickly")
    ] = 5.0
    give_up_after: Annotated[
        int, Meta(ge=1, le=1000, description="quick deaths in a row after which the supervisor gives up")
    ] = 5
    stop_s: Annotated[
        float,
        Meta(
            ge=0.1,
            le=60,
            description="seconds a process may take to finish and leave; keep it under the 5 honcho allows",
        ),
    ] = 4.0


class LogSettings(Section, frozen=True, kw_only=True):
    """What the processes say on stderr."""

    level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"],
        Meta(description="the least serious line that is written"),
    ] = "info"
    format: Annotated[Literal["text", "json"], Meta(description="text for people, json for one object a line")] = "text"


class Settings(Section, frozen=True, kw_only=True):
    """Everything that can be set, checked once at start."""

    home: Annotated[
        str,
        Meta(min_length=1, description="folder that holds everything Olympus keeps; OLYMPUS_HOME in the environment"),
    ] = "~/.olympus"
    bus: BusSettings = BusSettings()
    auth: AuthSettings = AuthSettings()
    broker: BrokerSettings = BrokerSettings()
    memory: MemorySettings = MemorySettings()
    search: SearchSettings = SearchSettings()
    models: ModelSettings = ModelSettings()
    resources: ResourceSettings = ResourceSettings()
    learning: LearningSettings = LearningSettings()
    rest: RestSettings = RestSettings()
    legacy: LegacySettings = LegacySettings()
    errors: ErrorsSettings = ErrorsSettings()
    exporter: ExporterSettings = ExporterSettings()
    machine: MachineSettings = MachineSettings()
    supervisor: SupervisorSettings = SupervisorSettings()
    log: LogSettings = LogSettings()

    @property
    def home_path(self) -> Path:
        """`home` as an absolute path."""
        return Path(self.home).expanduser().absolute()

    def path(self, *parts: str | Path) -> Path:
        """The path `parts` below home; an absolute part, or one that starts with `~`, stands for itself."""
        return self.home_path.joinpath(*(Path(part).expanduser() for part in parts))


class Key(NamedTuple):
    """One setting, as the configuration file and the error messages describe it."""

    name: str
    default: Any
    allowed: str
    description: str


def every_key() -> list[Key]:
    """All settings in the order they are declared."""
    return [_key(name) for name in _DEFAULTS]


def load_settings(path: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Defaults < file < environment < `overrides` (`{"bus.request_port": 7400}`; text is read as a flag's would be).

    `path` names the file; without it the search order in this module's docstring applies.
    Raises SettingsError for an unreadable file and for a key that is unknown, malformed, out of range or unsafe.
    """
    written = _written(path, overrides)
    settings = _with_addresses(_convert(written), written)
    _check_ports(settings, written)
    _check_rates(settings, written)
    _check_shares(settings, written)
    _check_host(settings, written)
    _check_errors(settings, written)
    _check_exporter(settings, written)
    _check_rest(settings, written)
    _check_curve(settings, written)
    _check_machine(settings, written)
    _check_redis_url(settings, written)
    _check_provider(settings, written)
    _check_log_subjects(settings, written)
    _check_sizes(settings, written)
    _check_learning(settings, written)
    _check_legacy(settings, written)
    return settings


def read_origins(path: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Where the value of every key was written: "default", a line of the file, a variable, or a flag."""
    written = _written(path, overrides)
    return {name: _origin(name, written) for name in _DEFAULTS}


def origins_of_this_process(overrides: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Where those values were written that hold for this process alone: a variable, or a flag. Reads no file."""
    written = {**_from_environment(), **_from_overrides(overrides or {})}
    return {name: entry.origin for name, entry in written.items()}


def settings_file(path: str | Path | None = None) -> Path | None:
    """The file that `load_settings(path)` reads, None where there is none."""
    return _file_to_read(path)


def parse_overrides(pairs: Sequence[str]) -> dict[str, str]:
    """`["bus.request_port=7400"]` -> `{"bus.request_port": "7400"}`. Raises SettingsError for a pair without `=`."""
    overrides = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise SettingsError(f"flag --set {pair}: expected SECTION.KEY=VALUE, for example bus.request_port=7400")
        overrides[name.strip()] = value
    return overrides


def settings_of_process(prog: str, description: str, argv: Sequence[str] | None = None) -> Settings:
    """Settings of a service started as `python -m NAME [--config FILE] [--set KEY=VALUE]...`, whose home it now serves from.

    Leaves the process with EX_CONFIG when they are wrong or the home is unusable: its supervisor then does not start it
    again.
    """
    import argparse

    from bus.state import UnusableHome, enter

    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--config", metavar="FILE", help="configuration file")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="one setting; may be repeated")
    args = parser.parse_args(argv)
    try:
        settings = load_settings(args.config, parse_overrides(args.set))
        enter(settings.home_path)
    except (SettingsError, UnusableHome) as error:
        leave_misconfigured(str(error))
    return settings


def leave_misconfigured(message: str) -> NoReturn:
    """Say what is wrong on stderr and leave with EX_CONFIG."""
    sys.stderr.write(f"{message}\n")
    raise SystemExit(EX_CONFIG)


def environment_name(name: str) -> str:
    """`bus.request_port` -> `OLYMPUS_BUS_REQUEST_PORT`."""
    return "OLYMPUS_" + name.upper().replace(".", "_")


def child_environment(config: str | Path | None, overrides: Mapping[str, str], **more: str) -> dict[str, str]:
    """This process's environment with `config` and `overrides` written into it, for a child started elsewhere."""
    environment = {**os.environ, **more}
    # How often this process was started again says nothing of the child.
    environment.pop(_RESTARTS, None)
    if config is not None:
        environment["OLYMPUS_CONFIG"] = str(Path(config).expanduser().absolute())
    environment.update({environment_name(name): value for name, value in overrides.items()})
    if environment.get("OLYMPUS_HOME"):
        environment["OLYMPUS_HOME"] = str(Path(environment["OLYMPUS_HOME"]).expanduser().absolute())
    return environment


def supervised_environment(restarts: int) -> dict[str, str]:
    """This process's environment for a child that it supervises and has started again `restarts` times."""
    return {**os.environ, _RESTARTS: str(restarts)}


def restarts_of_process() -> int:
    """How often its supervisor has started this process again; 0 without one."""
    told = os.environ.get(_RESTARTS, "")
    return int(told) if told.isascii() and told.isdecimal() else 0


def honcho_process_name() -> str | None:
    """`broker.1` in a process that honcho started for a line of the Procfile, None elsewhere."""
    return os.environ.get("HONCHO_PROCESS_NAME") or None


def notify_socket() -> str:
    """Where systemd wants to hear that this process is ready; "" where it did not start it."""
    return os.environ.get("NOTIFY_SOCKET", "")


def editor() -> str:
    """The command that opens a text for this person: VISUAL, else EDITOR, else vi."""
    return os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"


def secret_of_environment(variable: str) -> str:
    """A key for a service elsewhere, such as HF_TOKEN; "" where it is not set. Never write it to a log or an error."""
    return os.environ.get(variable, "").strip()


# Where values come from -----------------------------------------------------------------------------------------


class _Written(NamedTuple):
    """One value and the place it was written in."""

    value: Any
    origin: str


def _written(path: str | Path | None, overrides: Mapping[str, Any] | None) -> dict[str, _Written]:
    return {**_from_file(_file_to_read(path)), **_from_environment(), **_from_overrides(overrides or {})}


def _defaults() -> dict[str, Any]:
    defaults: dict[str, Any] = {}
    whole = Settings()
    for field in whole.__struct_fields__:
        value = getattr(whole, field)
        if isinstance(value, Section):
            defaults.update((f"{field}.{key}", getattr(value, key)) for key in value.__struct_fields__)
        else:
            defaults[field] = value
    return defaults


_DEFAULTS: Final = _defaults()
_SECTIONS: Final = {name.partition(".")[0] for name in _DEFAULTS if "." in name}
# Told by a supervisor to its child; no setting.
_RESTARTS: Final = "OLYMPUS_RESTARTS"

_BY_VARIABLE: Final = {environment_name(name): name for name in _DEFAULTS}

# Variables that other programs for language models use too, and the keys they set.
OTHER_VARIABLES: Final[Mapping[str, str]] = {
    "OLLM_MODEL": "models.default",
    "OLLM_PROVIDER": "models.provider",
    "OLLM_HOST": "models.host",
    "OLLM_TEMPERATURE": "models.temperature",
    "OLLM_MAX_TOKENS": "models.max_tokens",
    "OLLM_CONTEXT_SIZE": "models.context_tokens",
}


def _file_to_read(path: str | Path | None) -> Path | None:
    named = path or os.environ.get("OLYMPUS_CONFIG")
    if named:
        return Path(named).expanduser()
    fallback = Path(os.environ.get("OLYMPUS_HOME") or Settings().home).expanduser() / "olympus.yaml"
    try:
        return fallback if fallback.is_file() else None
    except PermissionError as error:
        raise SettingsError(
            f"{fallback.parent} is closed to this user: be the one whose home it is, or name another with OLYMPUS_HOME"
        ) from error


def _from_file(path: Path | None) -> dict[str, _Written]:
    if path is None:
        return {}
    # Imported here: a process without a file has no use for it.
    from bus import yaml_lines

    try:
        tree = yaml_lines.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: the configuration file cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: the configuration file is not UTF-8 text (byte {error.start})") from error
    except yaml_lines.YamlError as error:
        raise SettingsError(f"{path} {error}") from error
    written: dict[str, _Written] = {}

    def line(number: int) -> str:
        return f"{path} line {number}"

    def walk(node: yaml_lines.Node, above: str) -> None:
        if node.value is None:
            return
        if not isinstance(node.value, dict):
            what = f"section {above!r}" if above else "the file"
            raise SettingsError(
                f"{line(node.starts)}: {what} must hold 'key: value' lines, not {_excerpt(node.plain())}"
            )
        for key, inner in node.value.items():
            name = f"{above}.{key}" if above else key
            if not above and name in _SECTIONS:
                walk(inner, name)
                continue
            if name in written:
                raise SettingsError(f"{line(inner.line)}: {name} is already set at {written[name].origin}")
            if name not in _DEFAULTS:
                raise SettingsError(f"{line(inner.line)}: {_unknown(name)}")
            written[name] = _Written(inner.plain(), line(inner.line))

    walk(tree, "")
    return written


def _from_environment() -> dict[str, _Written]:
    written = {}
    for other, key in OTHER_VARIABLES.items():
        if text := os.environ.get(other):
            written[key] = _Written(_from_text(key, text), f"environment variable {other}")
    for variable in sorted(os.environ):
        value = os.environ[variable]
        if not variable.startswith("OLYMPUS_") or not value:
            continue
        name = _BY_VARIABLE.get(variable)
        if name is not None:
            written[name] = _Written(_from_text(name, value), f"environment variable {variable}")
        elif variable.split("_")[1].lower() in _SECTIONS:
            near = nearest(variable, _BY_VARIABLE)
            hint = f"; did you mean {near}?" if near else ""
            raise SettingsError(f"environment variable {variable}: no setting has this name{hint}")
    return written


def _from_overrides(overrides: Mapping[str, Any]) -> dict[str, _Written]:
    written = {}
    for name, value in overrides.items():
        origin = f"flag --set {name}"
        if name not in _DEFAULTS:
            raise SettingsError(f"{origin}: {_unknown(name)}")
        written[name] = _Written(_from_text(name, value) if isinstance(value, str) else value, origin)
    return written


def _from_text(name: str, text: str) -> Any:
    """Lists as JSON or with commas; everything else is left to the conversion, which reads numbers and booleans."""
    if not isinstance(_DEFAULTS[name], tuple):
        return text
    if not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return msgspec.json.decode(text.encode())
    except msgspec.DecodeError:
        return text


# Checks ---------------------------------------------------------------------------------------------------------

_ERROR_PATH: Final = re.compile(r"`\$\.([a-z_.]+)")


def _convert(written: Mapping[str, _Written]) -> Settings:
    if not written:
        return Settings()
    tree: dict[str, Any] = {}
    for name, entry in written.items():
        section, _, key = name.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[key] = entry.value
    try:
        return msgspec.convert(tree, Settings, strict=False)
    except msgspec.ValidationError as error:
        found = _ERROR_PATH.search(str(error))
        if found is None:
            raise
        name = found[1]
        raise _refusal(name, written[name], f"allowed: {_key(name).allowed}") from error


def _refusal(name: str, entry: _Written, why: str) -> SettingsError:
    value = HIDDEN if is_secret(name) else _excerpt(shown(name, entry.value))
    return SettingsError(f"{entry.origin}: {name} = {value} is not allowed; {why}")


def _excerpt(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _unknown(name: str) -> str:
    field = name.rpartition(".")[2]
    near = nearest(name, _DEFAULTS) or next((known for known in _DEFAULTS if known.endswith(f".{field}")), None)
    return f"unknown setting {name!r}" + (f"; did you mean {near}?" if near else "")


def _origin(name: str, written: Mapping[str, _Written]) -> str:
    return written[name].origin if name in written else "default"


def _check_ports(settings: Settings, written: Mapping[str, _Written]) -> None:
    owner: dict[int, str] = {}
    for key in settings.bus.__struct_fields__:
        if not key.endswith("_port") or (port := getattr(settings.bus, key)) == 0:
            continue
        name = f"bus.{key}"
        other = owner.setdefault(port, name)
        if other != name:
            raise SettingsError(
                f"{other} and {name} are both {port}; give each its own port"
                f" ({other}: {_origin(other, written)}, {name}: {_origin(name, written)})"
            )


def _check_rates(settings: Settings, written: Mapping[str, _Written]) -> None:
    low, high = settings.auth.rate_min_per_s, settings.auth.rate_max_per_s
    if low > high:
        name = "auth.rate_min_per_s" if "auth.rate_min_per_s" in written else "auth.rate_max_per_s"
        raise _refusal(name, written[name], f"auth.rate_min_per_s ({low:g}) is above auth.rate_max_per_s ({high:g})")


def _check_shares(settings: Settings, written: Mapping[str, _Written]) -> None:
    names = [f"memory.context_{part}" for part in ("facts", "bridge", "memories")]
    shares = [getattr(settings.memory, name.partition(".")[2]) for name in names]
    if sum(shares) > 1:
        name = next(name for name in names if name in written)
        raise _refusal(name, written[name], f"{', '.join(names)} are {shares} and together above 1")


def is_loopback(host: str) -> bool:
    """True for `localhost` and for an address of this machine that no other machine can reach."""
    import ipaddress

    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_host(settings: Settings, written: Mapping[str, _Written]) -> None:
    bus = settings.bus
    if bus.insecure or bus.server_key or is_loopback(bus.host):
        return
    why = (
        "it can be reached from other machines, and nothing there would be encrypted: anybody who reaches it may read"
        " and change everything. For a broker on another machine name its key in bus.server_key; for one on this"
        " machine keep bus.host on 127.0.0.1 and put the address into bus.listen, which is encrypted"
        " (docs/two-machines.md). `bus.insecure: true` accepts a bus in clear"
    )
    raise _refusal("bus.host", written["bus.host"], why)


def _check_curve(settings: Settings, written: Mapping[str, _Written]) -> None:
    bus = settings.bus
    for address in bus.listen:
        if address in ("", "*", "0.0.0.0", "::"):
            why = f"{address!r} would take in loopback too, where the bus is plain; name the address of this machine"
            raise _refusal("bus.listen", written["bus.listen"], why)
        if address == bus.host or bus.listen.count(address) > 1:
            raise _refusal("bus.listen", written["bus.listen"], f"{address!r} is bound already")
    if bus.server_key and not re.fullmatch(MACHINE_NAME, bus.server_key):
        try:
            is_key = len(z85.decode(bus.server_key)) == 32
        except ValueError:
            is_key = False
        if not is_key:
            why = "allowed: a name trusted with `olympus keys trust`, a public key of 40 characters, or empty"
            raise _refusal("bus.server_key", written["bus.server_key"], why)


def _check_machine(settings: Settings, written: Mapping[str, _Written]) -> None:
    machine = settings.machine
    checks: dict[str, Callable[[], object]] = {
        "name": lambda: machine.name and _parse_name(machine.name),
        "services": lambda: parse_services(machine.services),
    }
    _check_each("machine", checks, written)


def _with_addresses(settings: Settings, written: Mapping[str, _Written]) -> Settings:
    """Settings with the addresses of machines where their names stood."""
    machine = settings.machine
    if not machine.addresses:
        return settings
    try:
        known = _parse_addresses(machine.addresses)
    except ValueError as error:
        raise _refusal("machine.addresses", written["machine.addresses"], str(error)) from error
    replace = msgspec.structs.replace
    bus, rest, legacy, exporter = settings.bus, settings.rest, settings.legacy, settings.exporter
    return replace(
        settings,
        bus=replace(
            bus,
            host=known.get(bus.host, bus.host),
            listen=tuple(known.get(address, address) for address in bus.listen),
        ),
        rest=replace(rest, host=known.get(rest.host, rest.host)),
        exporter=replace(exporter, host=known.get(exporter.host, exporter.host)),
        legacy=replace(
            legacy,
            host=known.get(legacy.host, legacy.host),
            announce=known.get(legacy.announce, legacy.announce),
        ),
    )


def _parse_addresses(entries: Iterable[str]) -> dict[str, str]:
    known: dict[str, str] = {}
    for entry in entries:
        name, _, address = (part.strip() for part in entry.partition("="))
        if not address:
            raise ValueError(f"{entry[:80]!r} is not NAME=ADDRESS, as in mainpc=192.168.100.16")
        if known.setdefault(_parse_name(name), address) != address:
            raise ValueError(f"{name!r} has two addresses, {known[name]} and {address}")
    return known


def _parse_name(name: str) -> str:
    if not re.fullmatch(MACHINE_NAME, name):
        raise ValueError(f"{name[:40]!r} is no name of a machine: lower-case letters, digits and -, a letter first")
    return name


class Need(NamedTuple):
    """A service that another waits for, and the machine it runs on; "" for this one."""

    service: str
    machine: str


def parse_services(entries: Iterable[str]) -> dict[str, tuple[Need, ...]]:
    """What each service waits for, in the order of start, from NAME=NEED+NEED@MACHINE each. Raises ValueError."""
    services: dict[str, tuple[Need, ...]] = {}
    for entry in entries:
        name, equals, needs = (part.strip() for part in entry.partition("="))
        found = [_SERVICE_NEED.fullmatch(need.strip()) for need in needs.split("+")] if equals else []
        if not _SERVICE_NEED.fullmatch(name) or "@" in name or None in found:
            raise ValueError(f"{entry[:80]!r} is not NAME or NAME=NEED+NEED@MACHINE, as in learning=broker+memory@pc2")
        if name in services:
            raise ValueError(f"{name!r} stands there twice")
        services[name] = tuple(Need(one[1], one[2] or "") for one in found if one is not None)
    for name, needed in services.items():
        missing = [need.service for need in needed if not need.machine and need.service not in services]
        if missing:
            raise ValueError(f"{name!r} waits for {missing[0]!r}, which does not run here; name its machine, as @pc2")
    return services


_SERVICE_NEED: Final = re.compile(f"([a-z][a-z0-9_]*)(?:@({MACHINE_NAME}))?")


def _check_legacy(settings: Settings, written: Mapping[str, _Written]) -> None:
    legacy = settings.legacy
    if not legacy.enabled:
        return
    if not legacy.insecure and not is_loopback(legacy.host):
        why = (
            "it can be reached from other machines, and these ports know neither encryption nor sign-in: anybody who"
            " reaches them may do what the agents could. Keep it on 127.0.0.1, or say `legacy.insecure: true`"
        )
        raise _refusal("legacy.host", written["legacy.host"], why)
    if settings.auth.required and not legacy.user:
        raise SettingsError(
            f"{_origin('legacy.enabled', written)}: legacy.enabled = true needs legacy.user while auth.required is true:"
            " the clients of these ports cannot sign in; name the account they act for (olympus auth add-user)"
        )


def _check_rest(settings: Settings, written: Mapping[str, _Written]) -> None:
    rest = settings.rest
    for service in rest.services:
        if service not in REST_SERVICES:
            raise _refusal("rest.services", written["rest.services"], f"allowed: {', '.join(REST_SERVICES)}")
    for origin in rest.cors_origins:
        if origin != "*" and not (_is_http_url(origin) and origin.rstrip("/").count("/") == 2):
            why = f"{origin[:80]!r} is no origin; allowed: https://HOST[:PORT], http://..., or * for any"
            raise _refusal("rest.cors_origins", written["rest.cors_origins"], why)
    if rest.insecure or settings.auth.required or not rest.services or is_loopback(rest.host):
        return
    why = (
        "it can be reached from other machines, and nobody has to sign in: anybody who reaches it may read and change"
        " everything. Keep it on 127.0.0.1, set `auth.required: true`, or say `rest.insecure: true` to accept that"
    )
    raise _refusal("rest.host", written["rest.host"], why)


def _check_errors(settings: Settings, written: Mapping[str, _Written]) -> None:
    if all(_is_post_url(url) for url in settings.errors.webhooks):
        return
    # Without the value: such addresses often hold a secret.
    raise SettingsError(
        f"{written['errors.webhooks'].origin}: errors.webhooks holds what is no address; allowed: http://HOST[:PORT]/PATH"
        " and https://..., without a user and without spaces"
    )


def _check_exporter(settings: Settings, written: Mapping[str, _Written]) -> None:
    exporter = settings.exporter
    if exporter.otlp_endpoint and not _is_http_url(exporter.otlp_endpoint):
        why = "allowed: http://HOST[:PORT][/PATH], https://..., without user, query and fragment, or empty"
        raise _refusal("exporter.otlp_endpoint", written["exporter.otlp_endpoint"], why)
    if not exporter.insecure and not is_loopback(exporter.host):
        why = (
            "it can be reached from other machines, and nobody has to sign in: anybody who reaches it may read the"
            " figures. Keep it on 127.0.0.1, or say `exporter.insecure: true`"
        )
        raise _refusal("exporter.host", written["exporter.host"], why)


def _is_post_url(url: str) -> bool:
    """An address to post to, as HTTP takes it (ASCII); it may have a query, where some services put their key."""
    plain = url.isascii() and "#" not in url and not any(one.isspace() for one in url)
    return plain and _is_http_url(url.partition("?")[0])


def _check_redis_url(settings: Settings, written: Mapping[str, _Written]) -> None:
    if not settings.memory.redis_url or _is_redis_url(settings.memory.redis_url):
        return
    # Without the value: there may be a password in it.
    raise SettingsError(
        f"{written['memory.redis_url'].origin}: memory.redis_url is not the address of a Redis; allowed:"
        " redis://[USER:PASSWORD@]HOST[:PORT], rediss://... with TLS, unix:///PATH, or empty"
    )


def _is_redis_url(url: str) -> bool:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False
    return parts.path not in ("", "/") if parts.scheme == "unix" else parts.scheme in ("redis", "rediss") and has_host


def _check_provider(settings: Settings, written: Mapping[str, _Written]) -> None:
    host, provider = settings.models.host, settings.models.provider
    if not host:
        return
    if not _is_http_url(host):
        why = "allowed: http://HOST[:PORT][/PATH], https://..., without user, query and fragment, or empty"
        raise SettingsError(f"{written['models.host'].origin}: models.host is not the address of a server; {why}")
    if provider == "transformers":
        why = "models.host names a server and transformers is none; allowed with it: auto, llama.cpp, vllm, ollama, openai"
        raise _refusal("models.provider", written["models.provider"], why)


def _is_http_url(url: str) -> bool:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False
    # A user and password there would be a secret, and those come from the environment alone.
    is_bare = not (parts.query or parts.fragment or "@" in parts.netloc or any(one.isspace() for one in url))
    return parts.scheme in ("http", "https") and has_host and is_bare


def _check_log_subjects(settings: Settings, written: Mapping[str, _Written]) -> None:
    for pattern in settings.broker.log_subjects:
        try:
            validate_pattern(pattern)
        except BadRequest as error:
            raise _refusal("broker.log_subjects", written["broker.log_subjects"], error.message) from error


def _check_sizes(settings: Settings, written: Mapping[str, _Written]) -> None:
    resources = settings.resources
    checks: dict[str, Callable[[], object]] = {
        "devices": lambda: parse_sizes(resources.devices, DEVICE_NAME),
        "spare_vram": lambda: parse_size(resources.spare_vram),
        "quotas": lambda: parse_sizes(resources.quotas, SERVICE_NAME),
    }
    _check_each("resources", checks, written)


def _check_learning(settings: Settings, written: Mapping[str, _Written]) -> None:
    learning = settings.learning
    checks: dict[str, Callable[[], object]] = {
        "hours": lambda: parse_hours(learning.hours),
        "memory": lambda: learning.memory == "auto" or _parse_above_0(learning.memory),
        "checkpoints_size": lambda: _parse_above_0(learning.checkpoints_size),
        "retention": lambda: parse_model_files(learning.retention),
    }
    _check_each("learning", checks, written)


def parse_model_files(entries: Iterable[str]) -> dict[str, list[str]]:
    """Files by the model they belong to, from MODEL=FILE each. Raises ValueError."""
    files: dict[str, list[str]] = {}
    for entry in entries:
        model, _, file = (part.strip() for part in entry.partition("="))
        if not model or not file:
            raise ValueError(f"{entry[:80]!r} is not MODEL=FILE, as in olympus-demo=cases.jsonl")
        files.setdefault(model, []).append(file)
    return files


def _parse_above_0(text: str) -> int:
    size = parse_size(text)
    if not size:
        raise ValueError(f"{text[:40]!r} is a size of 0; allowed: above 0")
    return size


def _check_each(section: str, checks: Mapping[str, Callable[[], object]], written: Mapping[str, _Written]) -> None:
    for key, check in checks.items():
        try:
            check()
        except ValueError as error:
            raise _refusal(f"{section}.{key}", written[f"{section}.{key}"], str(error)) from error


def _key(name: str) -> Key:
    """The declaration behind `name`; only messages and tests need it, so its types are looked at late."""
    import typing

    section, _, field = name.rpartition(".")
    owner = type(getattr(Settings(), section)) if section else Settings
    kind, *notes = typing.get_args(typing.get_type_hints(owner, include_extras=True)[field])
    metas = [note for note in notes if isinstance(note, Meta)]
    description = next(meta.description for meta in reversed(metas) if meta.description)
    return Key(name, _DEFAULTS[name], _allowed(kind, metas), description)


def _allowed(kind: Any, metas: Sequence[Meta]) -> str:
    import typing

    if typing.get_origin(kind) is Literal:
        return ", ".join(typing.get_args(kind))
    if kind is bool:
        return "true, false"
    if kind is str:
        return "text, not empty" if any(meta.min_length for meta in metas) else "text"
    if kind not in (int, float):
        return "a list of texts"
    low = next(f"{meta.ge:g}" if meta.ge is not None else f"above {meta.gt:g}" for meta in metas if _has_low(meta))
    high = next(meta.le for meta in metas if meta.le is not None)
    return f"{low} to {high:.15g}" + (" (whole number)" if kind is int else "")


def _has_low(meta: Meta) -> bool:
    return meta.ge is not None or meta.gt is not None
