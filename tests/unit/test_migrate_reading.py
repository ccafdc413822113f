"""What old rows become, and what of them cannot: the readers of the migration, without a bus."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas.bodies.accounts import TrustOutcome, TrustScore
from schemas.bodies.upkeep import ExportPart, ExportRecord, NewRecord
from schemas.errors import Conflict
from tests import old_project
from tests.old_project import database, fingerprint, json_file, module, old_memory

BODY_BYTES = 16 * 1024 * 1024


def read(part: str, root: Path, *more: Any) -> list[Any]:
    """Every row of the stores that a part finds."""
    return [row for store in module(f"migrate_parts.{part}").stores(root, *more) for row in store.rows()]


def dry(part: str, root: Path) -> Any:
    """The report of a dry run."""
    moving = module("migrate_parts.moving")
    mover = moving.Mover(
        module(f"migrate_parts.{part}").stores(root), root / "mark.json", max_body_bytes=BODY_BYTES, is_quiet=True
    )
    mover.dry_run()
    return mover.report


def reasons(report: Any) -> dict[str, str]:
    """Why rows are rejected, by key."""
    return {reject.key: reject.reason for reject in report.rejects}


@pytest.mark.parametrize(
    ("value", "is_utc", "expected"),
    [
        (1_700_000_000, False, 1_700_000_000.0),
        ("1700000000.5", False, 1_700_000_000.5),
        ("2023-11-14T22:13:20Z", False, 1_700_000_000.0),
        ("2023-11-14 22:13:20", True, 1_700_000_000.0),
        ("2023-11-14T22:13:20+00:00", False, 1_700_000_000.0),
        ("yesterday", False, None),
        ("", False, None),
        (None, False, None),
        (float("nan"), False, None),
        (-5, False, None),
        (True, False, None),
        ("9999-99-99", False, None),
        (1e300, False, None),
    ],
)
def test_a_time_is_read_in_every_form_and_nonsense_is_none(value: Any, is_utc: bool, expected: float | None) -> None:
    """Numbers, ISO with T or a space, UTC where the column's default wrote it."""
    assert module("migrate_parts.times").epoch(value, is_utc=is_utc) == expected


def test_a_default_time_is_utc_and_a_bound_one_is_local() -> None:
    """`YYYY-MM-DD HH:MM:SS` is what CURRENT_TIMESTAMP writes; with microseconds a program wrote it."""
    times = module("migrate_parts.times")

    assert times.default_epoch("2023-11-14 22:13:20") == 1_700_000_000.0
    assert times.default_epoch("2023-11-14 22:13:20.000000") == times.epoch("2023-11-14T22:13:20")


def test_bad_memories_are_rejected_one_by_one_and_good_ones_beside_them_are_not(tmp_path: Path) -> None:
    """Broken JSON, wrong types, deep nesting, empty ids and contents, huge numbers; each with a reason of its own."""
    deep = "[" * 200 + "]" * 200
    database(
        tmp_path / "data" / "unified_memory.db",
        old_project.UNIFIED,
        memories=[
            old_memory("good"),
            old_memory("json", metadata="{broken"),
            old_memory("list", metadata="[1]"),
            old_memory("deep", metadata=f'{{"x": {deep}}}'),
            old_memory("very deep", metadata='{"x":' * 100_000),
            old_memory("number", metadata='{"x": 123456789012345678901234567890}'),
            old_memory("half", metadata='{"x": "\\ud800"}'),
            old_memory("blob", content=b"\x00\xff"),
            old_memory("empty", content=""),
            old_memory(""),
            old_memory("huge", content="x" * (BODY_BYTES + 1)),
        ],
    )

    found = reasons(dry("unified", tmp_path))

    assert set(found) == {"json", "list", "deep", "very deep", "number", "half", "blob", "empty", "", "huge"}
    assert "JSON" in found["json"] or "Expecting" in found["json"]
    assert "dict" in found["list"] and "201" in found["deep"] and "content" in found["blob"]


def test_odd_values_are_brought_into_range_and_orphans_are_kept(tmp_path: Path) -> None:
    """Texts in number columns, an unknown tier, times that are none, a NaN in metadata, a parent that is gone."""
    path = database(
        tmp_path / "data" / "unified_memory.db",
        old_project.UNIFIED,
        memories=[
            old_memory(
                "odd",
                importance="a lot",
                access_count="many",
                memory_tier="eternal",
                memory_type="t" * 100,
                created_at="never",
                last_accessed_at=-1,
                metadata='{"n": NaN}',
                tags='["a", "a", 7, ""]',
                parent_id="gone",
                expires_at=5.0,
            ),
        ],
        memory_relationships=[
            {"source_memory_id": "odd", "target_memory_id": "gone", "relationship_type": "r"},
            {"source_memory_id": "odd", "target_memory_id": "odd", "relationship_type": "r", "strength": "x"},
        ],
        context_groups=[{"name": "g"}],
        memory_group_mappings=[{"memory_id": "gone", "group_id": 1}, {"memory_id": "odd", "group_id": 9}],
    )

    rows = {(row.table, row.key): row.becomes for row in read("unified", tmp_path)}
    report = dry("unified", tmp_path)

    data = rows["memories", "odd"].data
    assert (data["importance"], data["access_count"], data["tier"], data["type"]) == (0.5, 0, "short", "t" * 64)
    assert (data["created_at"], data["tags"], data["expires_at"]) == (path.stat().st_mtime, ["a", "7"], None)
    assert (data["parent_id"], data["metadata"]["legacy.parent_id"]) == (None, "gone")
    assert rows["memory_relationships", "2"].data["strength"] == 1.0
    assert [(reject.table, reject.reason) for reject in report.rejects] == [
        ("memory_relationships", "the memory 'gone' does not exist"),
        ("memory_group_mappings", "the memory 'gone' does not exist"),
        ("memory_group_mappings", "the group 9 does not exist"),
    ]


def test_missing_columns_empty_tables_and_foreign_tables_are_tolerated(tmp_path: Path) -> None:
    """A store with half of its columns, one without a table, one that is nothing but another program's."""
    database(
        tmp_path / "data" / "unified_memory.db",
        "CREATE TABLE memories (memory_id TEXT PRIMARY KEY, content TEXT); CREATE TABLE other (x);",
        memories=[{"memory_id": "m", "content": "c"}],
    )
    database(tmp_path / "data" / "memory_store.db", "CREATE TABLE memory_entries (memory_id INTEGER PRIMARY KEY)")
    database(tmp_path / "episodic_memory.db", "CREATE TABLE other (x)")

    assert [row.key for row in read("unified", tmp_path)] == ["m"]
    assert read("numbered", tmp_path) == [] and read("episodes", tmp_path) == []


def test_garbage_instead_of_a_store_is_told_and_stops_no_other(tmp_path: Path) -> None:
    """Bytes that are no database, JSON that is cut off, JSON of another kind."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "unified_memory.db").write_bytes(b"\x00garbage" * 1000)
    (tmp_path / "memory_store.json").write_text('{"sessions": ')
    (tmp_path / "contextual_memory_store.json").write_text("[]")
    json_file(tmp_path / "context_store.json", {"sessions": {"s": []}})

    unified, files = dry("unified", tmp_path), dry("reasoning_files", tmp_path)

    assert len(unified.unreadable) == 1 and "unified_memory.db" in unified.unreadable[0]
    assert len(files.unreadable) == 2 and files.read == {"context_store.json:sessions": 1}


def test_a_store_is_read_with_the_log_beside_it_and_nothing_is_written(tmp_path: Path) -> None:
    """What only the write-ahead log holds is seen; the folder is as it was, also where nothing may be written to it."""
    root = tmp_path / "old"
    path = database(root / "data" / "unified_memory.db", old_project.UNIFIED, memories=[old_memory("before")])
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA journal_mode = wal")
    writer.execute(
        "INSERT INTO memories (memory_id, content, memory_type, memory_tier) VALUES ('in log', 'c', 't', 'short')"
    )
    writer.commit()
    kept = {part: (root / "data" / part).read_bytes() for part in ("unified_memory.db", "unified_memory.db-wal")}
    writer.close()
    for name, content in kept.items():
        (root / "data" / name).write_bytes(content)
    os.chmod(root / "data", 0o555)
    before = fingerprint(root)
    try:
        keys = [row.key for row in read("unified", root)]

        assert keys == ["before", "in log"]
        assert fingerprint(root) == before
    finally:
        os.chmod(root / "data", 0o755)


def test_a_store_is_found_below_the_folders_that_programs_were_started_in(tmp_path: Path) -> None:
    """`data/X.db`, the folder joined twice, and below pc2_code; a file itself too; the same file once."""
    find = module("migrate_parts.stores").find
    for folder in ("data", "data/data", "pc2_code/data"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.db").write_bytes(b"")
    (tmp_path / "main_pc_code").symlink_to(tmp_path / "pc2_code")

    assert [found.name for found in find(tmp_path, "data/x.db")] == [
        "data/x.db",
        "data/data/x.db",
        "pc2_code/data/x.db",
    ]
    assert [found.path for found in find(tmp_path / "data" / "x.db", "data/x.db")] == [tmp_path / "data" / "x.db"]
    assert find(tmp_path / "data" / "x.db", "data/y.db") == []


def test_reasoning_files_tolerate_what_copies_of_them_hold(tmp_path: Path) -> None:
    """No keys, foreign keys, interactions and summaries that are none, errors that are text."""
    json_file(tmp_path / "memory_store.json", {})
    json_file(
        tmp_path / "pc2_code" / "contextual_memory_store.json",
        {
            "sessions": {
                "ann_2025-05-01": [{"timestamp": 1_700_000_000.0, "type": "note", "content": {"x": 1}}, "broken"],
                "wrong": "text",
                "": [],
            },
            "summaries": {
                "ann_2025-05-01": {"last_updated": 1_700_000_100.0, "errors_encountered": ["boom"]},
                "only summary": {"code_context": "x = 1"},
                "bad": 7,
            },
            "memories": {"m1": {"content": "kept", "timestamp": 1_700_000_000.0}, "m2": {"timestamp": 1}},
            "notes": [{"timestamp": "x", "task": "t", "tag": "n", "note": "remember"}, 3],
        },
    )
    json_file(tmp_path / "error_patterns.json", {"patterns": {"e": {"pattern": "x+"}, "f": {}, "g": 1}, "history": "x"})
    json_file(tmp_path / "digital_twin_store.json", {"ann": {"likes": "bees"}, "bob": [1]})

    rows = {(row.table, row.key): row.becomes for row in read("reasoning_files", tmp_path)}
    rejected = {(reject.table, reject.key) for reject in dry("reasoning_files", tmp_path).rejects}

    session = rows["sessions", "ann_2025-05-01"]
    assert (session.ns, session.data["created_at"]) == ("legacy.umra.sessions", 1_700_000_100.0)
    assert session.data["value"]["summary"]["errors_encountered"] == [{"type": "other", "message": "boom"}]
    assert rows["patterns", "e"].data["value"]["order"] == 0
    assert rejected == {
        ("interactions", "ann_2025-05-01/1"), ("sessions", "wrong"), ("sessions", ""), ("sessions", "bad"),
        ("memories", "m2"), ("notes", "1"), ("patterns", "f"), ("patterns", "g"), ("history", "0"), ("twins", "bob"),
    }  # fmt: skip


def test_a_session_that_two_files_hold_is_that_of_the_first(tmp_path: Path) -> None:
    """The other one is listed where it is another, and passes where it is the same."""
    session = [{"timestamp": 1.0, "type": "t", "content": "c"}]
    json_file(tmp_path / "memory_store.json", {"sessions": {"same": session, "other": session}})
    json_file(tmp_path / "context_store.json", {"sessions": {"same": session, "other": []}})
    for name in ("memory_store.json", "context_store.json"):
        os.utime(tmp_path / name, (1_700_000_000, 1_700_000_000))

    report = dry("reasoning_files", tmp_path)

    assert [(reject.store, reject.key) for reject in report.rejects] == [("context_store.json", "other")]


def test_expired_and_deleted_things_of_the_old_system_stay_behind(tmp_path: Path) -> None:
    """Numbered memories and sessions of the hub say why; a deleted embedding, and the one of a document, say nothing."""
    database(
        tmp_path / "data" / "memory_store.db",
        old_project.NUMBERED,
        memory_entries=[{"content": "old", "expires_at": "2001-01-01T00:00:00"}, {"content": "new"}],
    )
    database(
        tmp_path / "memory_hub.db",
        old_project.HUB,
        documents=[{"namespace": "knowledge_base", "doc_id": "d", "content": "text"}],
        sessions=[{"namespace": "s", "session_id": "x", "user_id": "u", "data": "{}", "expires_at": "2001-01-01"}],
    )
    json_file(
        tmp_path / "embeddings_metadata.json",
        [
            {"id": "1", "namespace": "n", "content": "kept", "metadata": {}},
            {"id": "2", "namespace": "n", "content": "gone", "metadata": {"_deleted": True}},
            {"id": "3", "namespace": "knowledge_base", "content": "text", "doc_id": "d", "metadata": {}},
            "broken",
        ],
    )

    assert reasons(dry("numbered", tmp_path)) == {"1": "it has expired, on 2001-01-01T00:00:00"}
    hub = dry("hub", tmp_path)
    assert reasons(hub) == {"s/x": "it has expired, on 2001-01-01", "3": "is str, no object"}
    assert hub.read["embeddings_metadata.json:embeddings"] == 2


def test_our_own_database_is_not_taken_for_the_one_of_fusion(tmp_path: Path) -> None:
    """Both are called memory.db; the tables tell them apart."""
    database(tmp_path / "memory.db", "CREATE TABLE memories (id TEXT)")
    assert module("migrate_parts.hub").stores(tmp_path) == []

    database(
        tmp_path / "data" / "memory.db", old_project.FUSION, memory_items=[{"key": "k", "data": '{"content": "c"}'}]
    )
    (row,) = read("hub", tmp_path)
    assert isinstance(row.becomes, NewRecord) and row.becomes.ns == "legacy.fusion"


def test_a_counter_without_a_log_is_made_up_for_and_its_score_comes_out_the_same(tmp_path: Path) -> None:
    """Four of five succeeded, the last answer took 2 s: 0.7 x 0.8 + 0.3 x 0.6 = 0.74."""
    database(
        tmp_path / "cache" / "agent_trust_scores.db",
        old_project.TRUST,
        model_scores=[
            {"model_id": "m", "trust_score": 0.74, "total_interactions": 5, "successful_interactions": 4},
            {"model_id": "absurd", "trust_score": 1, "total_interactions": 10**9, "successful_interactions": 1},
        ],
        performance_logs=[{"model_id": "n", "success": None}],
    )

    rows = read("trust", tmp_path)
    made = [row.becomes.body for row in rows if row.table == "model_scores (not in the log)"]

    assert [body.success for body in made] == [True] * 4 + [False]
    assert made[-1].response_time_s == pytest.approx(2.0)
    assert {row.key for row in rows if isinstance(row.becomes, str)} == {"absurd", "1"}


def test_marks_of_models_without_numbers_are_rejected(tmp_path: Path) -> None:
    """A value that is text, a trust out of range, an id that ours cannot have."""
    database(
        tmp_path / "data" / "model_evaluation.db",
        old_project.EVALUATION,
        performance_metrics=[
            {"metric_id": "a b/c", "agent_name": "x", "metric_name": "y", "value": 1.5, "timestamp": "2025-01-01T00:00:00"},
            {"metric_id": "bad", "agent_name": "x", "metric_name": "y", "value": "fast", "timestamp": ""},
        ],
        model_evaluation_scores=[
            {"evaluation_id": "e", "model_name": "m", "cycle_id": "any text", "trust_score": 7.0, "avg_latency_ms": 1.0,
             "evaluation_timestamp": "2025-01-01T00:00:00"},
        ],
    )  # fmt: skip

    rows = {row.key: row.becomes for row in read("evaluations", tmp_path)}

    assert rows["bad"] == "value is 'fast', no number"
    assert "trust_score is 7.0" in rows["e"]
    assert rows["a b/c"].body.metric_id.startswith("legacy-") and rows["a b/c"].body.value == 1.5


def test_load_policy_and_entries_become_a_piece_of_the_rules_that_can_be_read(tmp_path: Path) -> None:
    """`quality` is a name of a shipped profile and becomes one of its own; what is out of range is a comment."""
    (tmp_path / "main_pc_code" / "config").mkdir(parents=True)
    (tmp_path / "main_pc_code" / "config" / "llm_config.yaml").write_text(
        "load_policy: {fast: phi-2, quality: mistral, stt: whisper-large-v3, fallback: phi-2, odd one!: x}\n"
        "models:\n  phi-2: {repo_id: org/phi-2, type: gguf, filename: phi-2.Q4_0.gguf}\n  broken: 7\n"
        "kv_cache_config: {enabled: true}\n"
    )
    entry = {"model_path": "p.gguf", "n_ctx": 2048, "n_threads": 4, "idle_timeout_seconds": 300, "n_gpu_layers": -7}
    json_file(tmp_path / "config" / "gguf_models.json", {"old-phi": entry})
    rules = module("migrate_parts.model_rules")
    settings = module("bus.settings").load_settings(overrides={"home": str(tmp_path / "home")})

    text = rules.fragment(tmp_path, settings)
    (tmp_path / "piece.toml").write_text(text)

    assert rules.flaw(tmp_path / "piece.toml") == ""
    routing = module("workers.models.routing.rules")
    read_back = routing.read_rules([tmp_path / "piece.toml", routing.SHIPPED_RULES])
    assert read_back.profile("quality").models == ("mistral", "mistral*")
    assert read_back.profile("quality").fallbacks == ("general",)
    assert read_back.profile("fast").models[:3] == ("phi-2.Q4_0", "phi-2", "phi-2*")
    assert read_back.profile("smart").name == "general"
    assert (read_back.of("old-phi").context_tokens, read_back.of("old-phi").threads) == (2048, 4)
    assert "# gpu_layers = -7" in text and "# stt: whisper-large-v3" in text and "# kv_cache_config" in text


@pytest.mark.parametrize("content", ["load_policy: [", "- a list", "\x00"])
def test_a_configuration_that_cannot_be_read_is_told(content: str, tmp_path: Path) -> None:
    """Not YAML, not an object."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "llm_config.yaml").write_text(content)
    unusable = module("migrate_parts.stores").UnusableStore

    with pytest.raises(unusable, match="llm_config"):
        module("migrate_parts.model_rules").fragment(tmp_path, None)


def test_a_difference_is_told_and_a_nan_is_none(tmp_path: Path) -> None:
    """Values are compared as they are; only what lives on is passed over."""
    comparing = module("migrate_parts.comparing")
    record = NewRecord(kind="kv", ns="n", data={"key": "k", "value": {"x": [float("nan"), 1]}, "version": 1})

    class Client:
        def stream(self, *_: Any, **__: Any) -> Any:
            data = {"key": "k", "value": json.loads('{"x": [NaN, 1]}'), "version": 9}
            return contextlib.nullcontext(
                [ExportPart(records=[ExportRecord(kind="kv", ns="n", data=data)], done=1, total=1)]
            )

    exported = comparing.Exported(Client())

    assert exported.difference(record) is None
    other = NewRecord(kind="kv", ns="n", data={"key": "k", "value": {"x": [2, 1]}, "version": 1})
    assert "value is" in exported.difference(other)
    assert exported.difference(NewRecord(kind="kv", ns="n", data={"key": "z", "value": 1})) == "not there"


class TrustClient:
    """`trust.get` of one model, whose newest outcomes are these."""

    def __init__(self, *notes: str, more: int = 0) -> None:
        told = [*notes, *[""] * more]
        self.history = [
            TrustOutcome(success=True, weight=1.0, response_time_s=1.0, note=note, reported_by="", at=1.0)
            for note in told
        ]

    def request(self, subject: str, body: Any, **_: Any) -> Any:
        """The newest thousand."""
        return TrustScore(user_id="m", score=0, mean=0, upper=0, outcomes=9, successes=9, history=self.history[:1000])


def outcomes_of(root: Path, count: int) -> list[Any]:
    """What the log of a model becomes."""
    logs = [{"model_id": "m", "success": 1, "response_time": 1.0}] * count
    database(root / "cache" / "agent_trust_scores.db", old_project.TRUST, performance_logs=logs)
    return [row.becomes for row in read("trust", root)]


def test_an_outcome_is_known_by_its_note_and_one_before_it_by_the_order(tmp_path: Path) -> None:
    """The newest of the store tells how far a run got, also where older ones are no longer told."""
    first, second, third = outcomes_of(tmp_path, 3)
    client = TrustClient(*["" for _ in range(5)], second.body.note, more=2_000)

    assert (first.check(client), second.check(client), third.check(client)) == (None, None, "not there")


def test_an_outcome_that_nobody_can_see_any_more_is_not_recorded_twice(tmp_path: Path) -> None:
    """Behind a thousand newer ones of others it is refused, with the reason; before the first thousand it is missing."""
    (one,) = outcomes_of(tmp_path, 1)

    assert one.check(TrustClient(more=999)) == "not there"
    (fresh,) = [row.becomes for row in read("trust", tmp_path)]
    with pytest.raises(Conflict, match="nobody can tell"):
        fresh.check(TrustClient(more=1_000))


def test_outcomes_of_two_machines_are_told_apart_and_those_of_a_longer_log_are_not(tmp_path: Path) -> None:
    """The same row of the same log has the same note, wherever its file lies; another log's first row makes another."""
    first = outcomes_of(tmp_path / "a", 1)[0].body.note
    longer = outcomes_of(tmp_path / "b", 2)[0].body.note
    log = [{"model_id": "m", "success": 0, "response_time": 9.0}]
    database(tmp_path / "c" / "cache" / "agent_trust_scores.db", old_project.TRUST, performance_logs=log)

    assert first == longer
    assert read("trust", tmp_path / "c")[0].becomes.body.note != first


def test_an_outcome_that_was_tampered_with_is_told(tmp_path: Path) -> None:
    """The same row, with another result: it is refused, and not recorded once more."""
    (one,) = outcomes_of(tmp_path, 1)
    client = TrustClient(one.body.note)
    client.history[0] = msgspec.structs.replace(client.history[0], success=False)

    with pytest.raises(Conflict, match=r"there as a failure in 1\.0 s"):
        one.check(client)
