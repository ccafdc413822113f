"""Every metric of Olympus, declared once: what processes count under, what the exporter serves, what dashboards draw.

Names, units and kinds follow the Prometheus guidelines (prometheus.io/docs/practices/naming): base units, `_total` for
counters. The exporter adds the labels `service` and `worker` to whatever a process tells. A label's values come from
small closed sets (operations of the catalogue, models of the catalogue, states), never from ids or what people write.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

Kind = Literal["counter", "gauge", "histogram"]

# Seconds. From a value read over the bus (a tenth of a millisecond) to a generation of minutes.
DURATIONS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)  # fmt: skip

# Seconds: 64 microseconds, doubled up to 268 s. The broker counts in buckets that divide these, so that none is cut.
DOUBLING_EXPONENTS: Final = range(6, 29)
DOUBLINGS: Final = tuple(2**exponent / 1e6 for exponent in DOUBLING_EXPONENTS)


class Metric(msgspec.Struct, frozen=True):
    """One metric. labels: names of its labels beside `service` and `worker`. buckets: upper bounds of a histogram."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_known: dict[str, Metric] = {}


def _declare(kind: Kind, name: str, help: str, labels: tuple[str, ...], buckets: tuple[float, ...] = ()) -> Metric:
    metric = Metric(f"olympus_{name}", kind, help, labels, buckets)
    if _known.setdefault(metric.name, metric) is not metric:
        raise ValueError(f"{metric.name} is declared twice")
    return metric


def _counter(name: str, help: str, *labels: str) -> Metric:
    return _declare("counter", f"{name}_total", help, labels)


def _gauge(name: str, help: str, *labels: str) -> Metric:
    return _declare("gauge", name, help, labels)


def _histogram(name: str, help: str, *labels: str, buckets: tuple[float, ...] = DURATIONS) -> Metric:
    return _declare("histogram", name, help, labels, buckets)


# Every process --------------------------------------------------------------------------------------------------

BUILD_INFO = _gauge("build_info", "1, for the version that runs.", "version", "python")
PROCESS_CPU = _counter("process_cpu_seconds", "Seconds of processor time, user and system.")
PROCESS_RSS = _gauge("process_resident_memory_bytes", "Resident memory.")
PROCESS_FDS = _gauge("process_open_fds", "Open files and sockets.")
PROCESS_MAX_FDS = _gauge("process_max_fds", "Files and sockets it may have open.")
PROCESS_THREADS = _gauge("process_threads", "Threads.")
PROCESS_STARTED = _gauge("process_start_time_seconds", "When it started, Unix epoch.")
PROCESS_RESTARTS = _counter("process_restarts", "Times its supervisor has started it again.")
LOOP_LAG = _gauge("event_loop_lag_seconds", "How much later than wanted the loop ran, at worst since the last telling.")
LOG_LINES = _counter("log_lines", "Lines logged, by level.", "level")
LOG_DROPPED = _counter("log_lines_dropped", "Lines not written: repeated in a storm, or there was no room on the disk.")
METRICS_DROPPED = _counter("metrics_dropped", "Values counted under `other`, for a label had too many different ones.")

# Every worker ---------------------------------------------------------------------------------------------------

WORKER_REQUESTS = _counter("worker_requests", "Requests answered; outcome is ok or an error's code.", "operation", "outcome")  # fmt: skip
WORKER_SECONDS = _histogram("worker_request_duration_seconds", "From a request's receipt to its answer.", "operation")
WORKER_IN_FLIGHT = _gauge("worker_requests_in_flight", "Requests being answered.")
WORKER_CAPACITY = _gauge("worker_capacity_requests", "Requests it takes at once.")
WORKER_DEGRADED = _gauge("worker_degraded", "1 while it does without this dependency.", "dependency")
ERROR_REPORTS = _counter("error_reports", "Failures told to the error service, or counted in a later report.")
ERROR_REPORTS_DAMPED = _counter("error_reports_damped", "Failures that were counted in a later report, in a storm.")
REFUSALS = _counter("refusals", "Requests refused for who asked; reason is missing, invalid, forbidden or rate.", "reason")  # fmt: skip

# Broker ---------------------------------------------------------------------------------------------------------

BROKER_REQUESTS = _counter("broker_requests", "Requests taken in.")
BROKER_REPLIES = _counter("broker_replies", "Final replies passed on.")
BROKER_PARTIALS = _counter("broker_partials", "Pieces of streamed replies passed on.")
BROKER_CANCELLED = _counter("broker_cancelled", "Requests their caller took back.")
BROKER_EXPIRED = _counter("broker_expired", "Requests whose deadline passed.")
BROKER_OVERLOADED = _counter("broker_overloaded", "Requests refused because a queue was full.")
BROKER_UNSERVED = _counter("broker_unserved", "Requests that no worker serves.")
BROKER_REDISPATCHED = _counter("broker_redispatched", "Requests given to another worker after a loss.")
BROKER_LOST = _counter("broker_worker_lost", "Requests that ended because their worker was lost.")
BROKER_BURIED = _counter("broker_dead_letters", "Requests that became dead letters.")
BROKER_REJECTED = _counter("broker_rejected_messages", "Messages that could not be read.")
BROKER_REFUSED = _counter("broker_permission_refusals", "Messages refused because the peer's key does not allow them.", "action")  # fmt: skip
BROKER_WORKERS_LOST = _counter("broker_workers_lost", "Workers that vanished without leaving.", "target")
BROKER_EVENTS = _counter("broker_events", "Events taken in.")
BROKER_EVENTS_DROPPED = _counter("broker_events_dropped", "Events that slow subscribers lost.")
BROKER_SUBSCRIBERS = _gauge("broker_subscribers", "Subscribers connected.")
BROKER_SUBSCRIBER_BYTES = _gauge("broker_subscriber_pending_bytes", "Bytes that wait for the slowest subscriber.")
BROKER_PEERS = _gauge("broker_peers", "Connections for requests and events in.")
BROKER_INSTANCES = _gauge("broker_instances", "Workers joined, by the service they are of.", "target")
BROKER_CAPACITY = _gauge("broker_capacity_requests", "Requests that service takes at once.", "target")
BROKER_IN_FLIGHT = _gauge("broker_requests_in_flight", "Requests that service works on.", "target")
BROKER_QUEUED = _gauge("broker_queued_requests", "Requests that wait for that service.", "target")
BROKER_QUEUED_BYTES = _gauge("broker_queued_bytes", "Bytes of the requests that wait for that service.", "target")
BROKER_SECONDS = _histogram("broker_request_duration_seconds", "From the broker's receipt of a request to its final reply.", "target", buckets=DOUBLINGS)  # fmt: skip
EVENT_LOG_BYTES = _gauge("event_log_bytes", "Bytes of the durable event log.")
EVENT_LOG_SEQ = _counter("event_log_events", "Number of the newest event in the log.")
EVENT_LOG_LOST = _counter("event_log_lost", "Events that could not be written.")
EVENT_LOG_FAILED = _gauge("event_log_failed", "1 while the log cannot be written.")
DEAD_LETTERS = _gauge("dead_letters", "Dead letters kept.")

# Errors ---------------------------------------------------------------------------------------------------------

ERRORS = _counter("errors", "Errors taken in, by who reported them and how bad.", "reporter", "severity")
ERROR_GROUPS = _gauge("error_groups", "Groups of like errors; state is open, acknowledged or muted.", "state")
ERRORS_MISSED = _counter("errors_missed", "Error events that were lost before they could be read.")
ERROR_NOTICES = _counter("error_notifications", "Notifications; channel is webhook or desktop, outcome ok or failed.", "channel", "outcome")  # fmt: skip
AUDIT_EVENTS = _counter("audit_events", "What the audit log took in.", "kind", "outcome")

# Memory ---------------------------------------------------------------------------------------------------------

MEMORY_ITEMS = _gauge("memory_items", "Memories kept, by tier.", "tier")
MEMORY_RECORDS = _gauge("memory_records", "Rows kept: documents, sessions, contexts, experiences, facts and others.", "kind")  # fmt: skip
MEMORY_DB_BYTES = _gauge("memory_database_bytes", "Bytes of the database and its write-ahead log.")
MEMORY_COMMITS = _counter("memory_commits", "Commits of the one writer.")
MEMORY_WRITES = _counter("memory_writes", "Writes, of which several may share a commit.")
MEMORY_COMMIT_SECONDS = _histogram(
    "memory_commit_duration_seconds", "A commit, from the hand-over of its writes to its sync."
)
MEMORY_WRITES_WAITING = _gauge("memory_writes_waiting", "Writes that wait for the writer.")
MEMORY_OUTBOX = _gauge("memory_outbox_entries", "Changes that the vectors do not hold yet.")
MEMORY_VECTORS = _gauge("memory_vectors", "Vectors kept.")
MEMORY_SEARCHES = _counter("memory_searches", "Searches; outcome is found or empty.", "outcome")
MEMORY_SEARCH_SECONDS = _histogram("memory_search_duration_seconds", "A search, the encoding of its query included.")
MEMORY_ENCODED = _counter("memory_encoded_texts", "Texts made into vectors.")
MEMORY_ENCODE_SECONDS = _histogram("memory_encode_duration_seconds", "A batch of texts made into vectors.")
MEMORY_ENCODER_LOADED = _gauge("memory_encoder_loaded", "1 while the encoder is in memory.")
MEMORY_CACHE = _counter("memory_cache_reads", "Reads of the cache; outcome is hit or miss.", "outcome")
MEMORY_HOT_AWAY = _gauge("memory_hot_tier_away", "1 while the configured Redis does not answer.")
MEMORY_SESSIONS = _gauge("memory_sessions_open", "Sessions that are open.")
MEMORY_SUGGESTIONS = _counter("memory_suggestions", "Suggestions made.")
SIGN_INS = _counter("auth_sign_ins", "Passwords given; outcome is ok, failed or slowed.", "outcome")

# Models ---------------------------------------------------------------------------------------------------------

MODELS_KNOWN = _gauge("models_known", "Models in the catalogue.")
MODELS_LOADED = _gauge("models_loaded", "Models in memory; state is loading, serving or unloading.", "state")
MODEL_BYTES = _gauge("model_memory_bytes", "Memory reserved for a loaded model.", "model", "device")
MODEL_IN_FLIGHT = _gauge("model_requests_in_flight", "Requests a loaded model works on.", "model")
MODEL_LOADS = _counter("model_loads", "Loads ended; outcome is ok or failed.", "outcome")
MODEL_LOAD_SECONDS = _histogram(
    "model_load_duration_seconds", "From when a runner is told to load to a model that serves."
)
MODEL_UNLOADS = _counter("model_unloads", "Models that left memory; reason is asked, room, idle or crash.", "reason")
MODEL_CRASHES = _counter("model_runner_crashes", "Runners that died.")
MODEL_WAITING = _gauge("model_requests_waiting", "Requests that wait for a model to be loaded.")
MODEL_GENERATIONS = _counter("model_generations", "Generations ended; outcome is ok or an error's code.", "model", "outcome")  # fmt: skip
MODEL_TOKENS = _counter("model_tokens", "Tokens; direction is prompt, cached (of the prompt, not computed again) or completion.", "model", "direction")  # fmt: skip
MODEL_SECONDS = _histogram("model_generation_duration_seconds", "A whole generation.", "model")
MODEL_FIRST_TOKEN = _histogram("model_first_token_seconds", "From a request to its first token.", "model")
MODEL_PRELOADS = _counter("model_preloads", "Models loaded ahead of need; outcome is hit, wasted or cancelled.", "outcome")  # fmt: skip
MODEL_ADAPTERS = _gauge("model_adapters", "Adapters; state is attached or champion.", "state")
MODEL_QUARANTINED = _gauge("models_quarantined", "Models that are not loaded any more, for their runners kept dying.")

# Resources ------------------------------------------------------------------------------------------------------

DEVICE_TOTAL = _gauge("device_memory_total_bytes", "Memory of a device.", "device")
DEVICE_USED = _gauge("device_memory_used_bytes", "Memory of a device in use by anybody.", "device")
DEVICE_RESERVED = _gauge("device_memory_reserved_bytes", "Memory of a device that leases hold.", "device")
DEVICE_LOAD = _gauge("device_utilisation_ratio", "Share of time a GPU computed, 0 to 1.", "device")
DEVICE_HEAT = _gauge("device_temperature_celsius", "Temperature of a GPU.", "device")
DEVICE_LOCKED = _gauge("device_locked", "1 while somebody holds the lock of a device.", "device", "purpose")
DEVICE_LOCK_WAITING = _gauge("device_lock_waiting", "Processes that wait for the lock of a device.", "device")
LEASES = _gauge("leases", "Leases held, by who holds them.", "device", "holder")
LEASE_EVENTS = _counter("lease_events", "What happened to leases: granted, released, expired, preempting, refused.", "event")  # fmt: skip

# Learning -------------------------------------------------------------------------------------------------------

LEARNING_EXCHANGES = _counter("learning_exchanges", "Questions and answers looked at.")
LEARNING_EXCHANGES_DROPPED = _counter("learning_exchanges_dropped", "Questions and answers that came too fast, or could not be kept.")  # fmt: skip
LEARNING_OPPORTUNITIES = _gauge("learning_opportunities", "Things worth learning, by state.", "state")
LEARNING_JOBS = _gauge("learning_jobs", "Trainings, by state.", "state")
LEARNING_TRAININGS = _counter("learning_trainings", "Trainings ended; outcome is finished, failed or stopped.", "outcome")  # fmt: skip
LEARNING_PROGRESS = _gauge("learning_training_progress_ratio", "How far the running training is, 0 to 1.")
LEARNING_LOSS = _gauge("learning_training_loss", "Loss of the running training's last step.")
LEARNING_TOKENS = _counter("learning_trained_tokens", "Tokens trained on.")
LEARNING_GATES = _counter("learning_gates", "Decisions of the gate; outcome is passed or failed.", "outcome")
LEARNING_PROMOTIONS = _counter("learning_promotions", "Adapters put to work.")
LEARNING_ROLLBACKS = _counter("learning_rollbacks", "Adapters taken out of service.")
LEARNING_WATCHED = _gauge("learning_adapters_watched", "Adapters whose work is watched.")

# Edges ----------------------------------------------------------------------------------------------------------

REST_REQUESTS = _counter("rest_requests", "HTTP requests answered.", "api", "method", "route", "status")
REST_SECONDS = _histogram("rest_request_duration_seconds", "From a request's head to the end of its answer.", "api", "method", "route")  # fmt: skip
REST_IN_FLIGHT = _gauge("rest_requests_in_flight", "HTTP requests being answered.")
REST_CONNECTIONS = _gauge("rest_connections", "Open HTTP connections.")
REST_ABANDONED = _counter("rest_requests_abandoned", "HTTP requests whose caller hung up first.", "api")
LEGACY_REQUESTS = _counter("legacy_requests", "Requests to replaced agents, on their ports or their REST routes; outcome is ok or failed.", "agent", "outcome")  # fmt: skip
LEGACY_PORTS = _gauge("legacy_ports_bound", "Ports of replaced agents that are bound.")
LEGACY_CONNECTIONS = _gauge("legacy_connections", "Open connections to them.")

# Host and exporter ----------------------------------------------------------------------------------------------

HOST_CPU = _counter("host_cpu_seconds", "Processor time of the machine, all cores.", "host", "mode")
HOST_CORES = _gauge("host_cores", "Processors of the machine.", "host")
HOST_LOAD = _gauge("host_load1", "Processes that ran or waited to run, over a minute.", "host")
HOST_MEMORY = _gauge("host_memory_total_bytes", "Memory of the machine.", "host")
HOST_MEMORY_FREE = _gauge("host_memory_available_bytes", "Memory that can be had without swapping.", "host")
HOST_DISK = _gauge("host_disk_total_bytes", "Size of the disk that holds the state.", "host")
HOST_DISK_FREE = _gauge("host_disk_free_bytes", "Room on it.", "host")
EXPORTER_PROCESSES = _gauge("exporter_processes", "Processes whose figures are served.", "reporter")
EXPORTER_AGE = _gauge("exporter_oldest_seconds", "Age of the oldest figures served.")
EXPORTER_SERIES = _gauge("exporter_series", "Time series served.")
EXPORTER_REFUSED = _counter("exporter_refused", "Figures not taken; reason is name, label, series, value or body.", "reason")  # fmt: skip
EXPORTER_SCRAPES = _histogram("exporter_scrape_duration_seconds", "Making one answer for Prometheus.")
SPANS_EXPORTED = _counter("exporter_spans", "Spans for the OpenTelemetry collector; outcome is ok, failed, or missed where the broker had forgotten them.", "outcome")  # fmt: skip

METRICS: Final[dict[str, Metric]] = _known
