"""The dashboard Memory: what is kept, how it is found, and how the disk and the vectors keep up."""

from __future__ import annotations

from dashboard_parts.panels import (
    OK,
    Dashboard,
    Row,
    Variable,
    above,
    areas,
    bad_above,
    heat,
    lines,
    quantiles,
    stat,
)

_W = 'worker=~"$worker"'

_NOW = Row(
    "Now",
    (
        stat("Memories", f"sum(olympus_memory_items{{{_W}}})", "short", "Kept, over all tiers.", steps=OK, width=4),
        stat("Vectors", f"sum(olympus_memory_vectors{{{_W}}})", "short", "Texts found by meaning.", steps=OK, width=4),
        stat(
            "Database",
            f"sum(olympus_memory_database_bytes{{{_W}}})",
            "bytes",
            "The file and its write-ahead log.",
            steps=OK,
            width=4,
        ),
        stat(
            "Waiting for the vectors",
            f"sum(olympus_memory_outbox_entries{{{_W}}})",
            "short",
            "Changes that the vectors do not hold yet; found by their words meanwhile.",
            steps=above(50, 5000),
            width=4,
        ),
        stat(
            "Redis away",
            f"max(olympus_memory_hot_tier_away{{{_W}}})",
            "bool_yes_no",
            "A configured Redis that does not answer; SQLite stands in for it.",
            steps=bad_above(1),
            width=4,
        ),
        stat(
            "Sessions open",
            f"sum(olympus_memory_sessions_open{{{_W}}})",
            "short",
            "Conversations that go on.",
            steps=OK,
            width=4,
        ),
    ),
)

_SEARCH = Row(
    "Search",
    (
        lines(
            "Searches",
            f"sum by (outcome) (rate(olympus_memory_searches_total{{{_W}}}[$__rate_interval])) -> {{{{outcome}}}}",
            "reqps",
            "Empty ones found nothing.",
        ),
        lines(
            "Time of a search",
            quantiles(f"olympus_memory_search_duration_seconds_bucket{{{_W}}}"),
            "s",
            "The encoding of the query included.",
            steps=above(1),
            has_line_at_steps=True,
        ),
        heat("Time of searches", f"olympus_memory_search_duration_seconds_bucket{{{_W}}}", "Darker is more."),
        lines(
            "Texts encoded",
            f"sum(rate(olympus_memory_encoded_texts_total{{{_W}}}[$__rate_interval])) -> texts",
            "ops",
            "Texts made into vectors, of queries and of what is kept.",
        ),
        lines(
            "Time of encoding a batch",
            quantiles(f"olympus_memory_encode_duration_seconds_bucket{{{_W}}}", which=(0.5, 0.95)),
            "s",
            "A batch is up to some hundred texts.",
        ),
        lines(
            "Encoder in memory",
            f"max(olympus_memory_encoder_loaded{{{_W}}}) -> loaded",
            "bool_yes_no",
            "It leaves when nobody needs it for memory.encoder_idle_s; that is no fault.",
            most=1,
        ),
    ),
)

_KEPT = Row(
    "What is kept",
    (
        areas(
            "Memories by tier",
            f"sum by (tier) (olympus_memory_items{{{_W}}}) -> {{{{tier}}}}",
            "short",
            "Short ones fade or become long ones.",
            width=6,
        ),
        lines(
            "Other records",
            f"sum by (kind) (olympus_memory_records{{{_W}}}) -> {{{{kind}}}}",
            "short",
            "Documents, sessions, contexts, experiences, facts and others.",
            width=6,
        ),
        lines(
            "Waiting for the vectors",
            (
                f"sum(olympus_memory_outbox_entries{{{_W}}}) -> waiting",
                f"sum(olympus_memory_vectors{{{_W}}}) -> vectors",
            ),
            "short",
            "Waiting should fall again soon after something was written.",
            width=6,
        ),
        lines(
            "Suggestions",
            f"sum(increase(olympus_memory_suggestions_total{{{_W}}}[$__rate_interval])) -> suggestions",
            "short",
            "What the proactive monitor noticed.",
            width=6,
        ),
    ),
)

_DISK = Row(
    "Disk and cache",
    (
        lines(
            "Writes and commits",
            (
                f"sum(rate(olympus_memory_writes_total{{{_W}}}[$__rate_interval])) -> writes",
                f"sum(rate(olympus_memory_commits_total{{{_W}}}[$__rate_interval])) -> commits",
            ),
            "ops",
            "Writes that come together share a commit: the more there are, the further apart the curves.",
            width=6,
        ),
        lines(
            "Time of a commit",
            quantiles(f"olympus_memory_commit_duration_seconds_bucket{{{_W}}}"),
            "s",
            "From a commit's first write until the disk has it. A slow disk shows here first.",
            width=6,
        ),
        lines(
            "Writes waiting",
            f"sum(olympus_memory_writes_waiting{{{_W}}}) -> waiting",
            "short",
            "For the one writer.",
            width=4,
        ),
        areas(
            "Cache reads",
            f"sum by (outcome) (rate(olympus_memory_cache_reads_total{{{_W}}}[$__rate_interval])) -> {{{{outcome}}}}",
            "ops",
            "Of the cache that clients use (memory.cache.*).",
            width=4,
        ),
        lines(
            "Size of the database",
            f"sum(olympus_memory_database_bytes{{{_W}}}) -> size",
            "bytes",
            "With the write-ahead log, which is folded in now and then.",
            width=4,
        ),
    ),
)

_ACCOUNTS = Row(
    "Signing in",
    (
        lines(
            "Sign-ins",
            f"sum by (outcome) (rate(olympus_auth_sign_ins_total{{{_W}}}[$__rate_interval])) -> {{{{outcome}}}}",
            "ops",
            "Slowed: refused for a while after too many that failed.",
            width=24,
            height=6,
            link="olympus-errors",
        ),
    ),
)

DASHBOARD = Dashboard(
    "olympus-memory",
    "Olympus: Memory",
    "What is kept, how it is found, and how disk and vectors keep up.",
    (_NOW, _SEARCH, _KEPT, _DISK, _ACCOUNTS),
    (Variable("worker", "Process", 'label_values(olympus_build_info{service="memory"}, worker)'),),
)
