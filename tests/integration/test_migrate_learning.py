"""What old learning agents kept is found again by their old clients, over sockets, after the migration."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.legacy_house import LegacyHouse
from workers.gateway.legacy.agents import (
    fine_tuner,
    learning_adjuster,
    learning_orchestration,
    opportunity_detector,
    self_training,
)

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

OPEN_ID = "5a1f0c1e-1111-4a4a-8a8a-000000000001"
DONE_ID = "5a1f0c1e-1111-4a4a-8a8a-000000000002"
CYCLE_ID = "0b8e2f66-2222-4b4b-9b9b-000000000001"
OLDER_CYCLE_ID = "0b8e2f66-2222-4b4b-9b9b-000000000002"

TABLES: dict[str, dict[str, tuple[str, list[tuple[Any, ...]]]]] = {
    "self_training.db": {
        "training_cycles": (
            "id TEXT PRIMARY KEY, agent_id TEXT, config TEXT, status TEXT, priority INTEGER, resources TEXT,"
            " start_time, end_time, progress REAL DEFAULT 0, error TEXT, created_at",
            [
                (
                    "cycle_1700000000_Chat",
                    "Chat",
                    '{"epochs": 3}',
                    "completed",
                    5,
                    '{"cpu": 20}',
                    "2025-08-01 10:00:00.250000",
                    "2025-08-01 11:00:00.000000",
                    1.0,
                    None,
                    "2025-08-01 09:00:00",
                ),
                (
                    "cycle_1700000001_Chat",
                    "Chat",
                    "{}",
                    "running",
                    1,
                    '{"gpu": 100, "memory": 16}',
                    "2025-08-02 10:00:00.000000",
                    None,
                    0.4,
                    None,
                    None,
                ),
                ("cycle_bad", "Chat", "{not json", "pending", 1, "{}", None, None, 0, None, None),
            ],
        ),
        "cycle_metrics": (
            "id INTEGER PRIMARY KEY, cycle_id TEXT, metric_name TEXT, value REAL, timestamp",
            [
                (1, "cycle_1700000000_Chat", "loss", 0.9, "2025-08-01 10:10:00.000000"),
                (2, "cycle_1700000000_Chat", "loss", 0.3, "2025-08-01 10:50:00.000000"),
                (3, "cycle_gone", "loss", 0.1, None),
            ],
        ),
    },
    "local_fine_tuner.db": {
        "tuning_jobs": (
            "id TEXT PRIMARY KEY, model_id TEXT, config TEXT, status TEXT, artifacts TEXT, start_time, end_time,"
            " error TEXT, created_at",
            [
                (
                    "job_1700000000_phi",
                    "phi",
                    '{"rank": 4}',
                    "running",
                    "[]",
                    "2025-08-01 10:00:00.000000",
                    None,
                    None,
                    None,
                )
            ],
        ),
        "artifacts": (
            "id INTEGER PRIMARY KEY, job_id TEXT, type TEXT, path TEXT, metadata TEXT, created_at",
            [(1, "job_1700000000_phi", "model", "artifacts/job_1700000000_phi/model.json", None, None)],
        ),
        "tuning_metrics": (
            "id INTEGER PRIMARY KEY, job_id TEXT, metric_name TEXT, value REAL, step INTEGER, timestamp",
            [(1, "job_1700000000_phi", "accuracy", 0.9, 1, None)],
        ),
    },
    "coordinator.db": {
        "learning_jobs": (
            "job_id TEXT PRIMARY KEY, job_type TEXT, model_name TEXT, dataset_path TEXT, parameters TEXT, status TEXT,"
            " progress REAL, error_message TEXT, result_path TEXT",
            [("job-7", "lora", "phi", "data/x.json", '{"lr": 0.1}', "queued", 0.0, None, None)],
        )
    },
    "training_cycles.db": {
        "training_cycles": (
            "id TEXT PRIMARY KEY, model_name TEXT, learning_opportunities TEXT, status TEXT, start_time, end_time,"
            " resource_allocation TEXT, hyperparameters TEXT, training_logs TEXT",
            [
                (
                    OLDER_CYCLE_ID,
                    "ChitChatLLM_v2",
                    "[]",
                    "running",
                    "2025-07-01T10:00:00",
                    None,
                    "",
                    "",
                    "step 1",
                ),
                (
                    CYCLE_ID,
                    "ChitChatLLM_v2",
                    json.dumps([OPEN_ID]),
                    "scheduled",
                    "2025-08-01T10:00:00",
                    None,
                    None,
                    '{"epochs": 3}',
                    None,
                ),
            ],
        ),
        "resource_allocation": (
            "id INTEGER PRIMARY KEY, cycle_id TEXT, resource_type TEXT, amount REAL, timestamp",
            [(1, OLDER_CYCLE_ID, "vram_mb", 8192.0, None)],
        ),
    },
    "learning_opportunities.db": {
        "learning_opportunities": (
            "id TEXT PRIMARY KEY, source_agent TEXT, opportunity_type TEXT, priority_score REAL, status TEXT,"
            " created_at, interaction_data TEXT",
            [
                (
                    OPEN_ID,
                    "learning_opportunity_detector",
                    "explicit_correction",
                    0.9,
                    "pending",
                    "2025-08-01T09:00:00",
                    json.dumps({"source": "umra", "data": {"user_input": "No, the kettle is in the pantry."}}),
                ),
                (
                    DONE_ID,
                    "learning_opportunity_detector",
                    "question_answer",
                    0.8,
                    "processed",
                    None,
                    json.dumps({"source": "umra", "data": {"user_input": "No, the kettle is in the pantry."}}),
                ),
                ("not an id", "detector", "x", 0.5, "pending", None, None),
            ],
        )
    },
    "learning_adjuster.db": {
        "parameter_configs": (
            "name TEXT PRIMARY KEY, type TEXT, min_value REAL, max_value REAL, current_value REAL, step_size REAL,"
            " description TEXT, metadata TEXT",
            [
                ("lr", "ParameterType.LEARNING_RATE", 0.0, 1.0, 0.5, 0.1, "rate", None),
                ("upside_down", "custom", 2.0, 1.0, 1.5, 0.1, "", None),
            ],
        ),
        "performance_metrics": (
            "id INTEGER PRIMARY KEY, metric_name TEXT, value REAL, timestamp, parameters TEXT, metadata TEXT",
            [
                (number, "accuracy", 0.1 * number, "2025-08-01 10:00:00.000000", json.dumps({"lr": 0.1 * number}), None)
                for number in range(1, 4)
            ]
            + [(4, "accuracy", None, None, None, None)],
        ),
    },
}

AGENTS = (
    self_training.AGENT,
    fine_tuner.AGENT,
    learning_orchestration.AGENT,
    opportunity_detector.AGENT,
    learning_adjuster.AGENT,
)


def write_old_project(root: Path) -> None:
    """Every learning store, with good rows and bad ones."""
    (root / "data").mkdir(parents=True)
    for name, tables in TABLES.items():
        connection = sqlite3.connect(root / "data" / name)
        for table, (columns, rows) in tables.items():
            connection.execute(f"CREATE TABLE {table} ({columns})")
            marks = ", ".join("?" for _ in rows[0])
            connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
        connection.commit()
        connection.close()
    adapter = root / "fine_tuned_models" / "tone"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "microsoft/phi-2"}')
    (adapter / "adapter_model.safetensors").write_bytes(b"x")
    (root / "training_data").mkdir()
    candidates = [
        {"user_input": "Where is the kettle?", "assistant_response": "In the pantry."},
        {"user_input": "Where is the cat?"},
    ]
    (root / "training_data" / "training_data_20250801.json").write_text(json.dumps(candidates))


def contents(root: Path) -> dict[str, bytes]:
    """Every file with its bytes."""
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


class Migration:
    """A house, an old project, and the script between them."""

    def __init__(self, script: ModuleType, house: LegacyHouse, root: Path) -> None:
        self.script, self.house, self.root = script, house, root

    def run(self, *arguments: str) -> int:
        """Its exit code."""
        settings = self.house.settings
        ports = ("request_port", "publish_port", "subscribe_port", "sequenced_port")
        sets = {"home": settings.home, **{f"bus.{name}": getattr(settings.bus, name) for name in ports}}
        flags = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
        status: int = self.script.main([str(self.root), *flags, *arguments])
        return status

    def told(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
        """Its exit code and what --json told."""
        capsys.readouterr()
        status = self.run("--json", *arguments)
        return status, json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script as a module, with its parts beside it."""
    before = list(sys.path)
    sys.path.insert(0, str(SCRIPTS))
    try:
        yield import_module("migrate_learning_data")
    finally:
        sys.path[:] = before


@pytest.fixture(scope="module")
def migration(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Migration]:
    """Everything moved once, after a dry run that changed nothing."""
    root = tmp_path_factory.mktemp("old") / "project"
    write_old_project(root)
    home = tmp_path_factory.mktemp("home")
    with LegacyHouse(home, AGENTS, services=("memory", "resources", "models", "learning")) as house:
        moved = Migration(script, house, root)
        before = contents(root)
        assert moved.run("--dry-run") == 3
        assert house.ask("SelfTrainingOrchestrator", cycle("cycle_1700000000_Chat"))["status"] == "error"
        assert moved.run() == 3
        assert contents(root) == before
        yield moved


def cycle(cycle_id: str) -> dict[str, Any]:
    """The old client's question."""
    return {"action": "get_status", "cycle_id": cycle_id}


def test_a_cycle_is_told_of_with_its_newest_metrics(migration: Migration) -> None:
    """Row by row as the old agent would have told it."""
    told = migration.house.ask("SelfTrainingOrchestrator", cycle("cycle_1700000000_Chat"))["cycle"]

    assert told == {
        "id": "cycle_1700000000_Chat",
        "agent_id": "Chat",
        "status": "completed",
        "progress": 1.0,
        "start_time": "2025-08-01T10:00:00.250000",
        "end_time": "2025-08-01T11:00:00",
        "error": None,
        "metrics": {"loss": 0.3},
    }


def test_what_ran_is_paused_and_holds_nothing(migration: Migration) -> None:
    """Its resources are free: another cycle takes all of them."""
    house = migration.house
    told = house.ask("SelfTrainingOrchestrator", cycle("cycle_1700000001_Chat"))["cycle"]
    resources = {"gpu": 100, "memory": 16}
    created = house.ask(
        "SelfTrainingOrchestrator", {"action": "create_cycle", "agent_id": "New", "config": {"resources": resources}}
    )
    started = house.ask("SelfTrainingOrchestrator", {"action": "start_cycle", "cycle_id": created["cycle_id"]})

    assert (told["status"], told["error"]) == ("paused", "was running when the old service stopped")
    assert started["status"] == "success"


def test_jobs_are_told_of_with_metrics_and_artifacts(migration: Migration) -> None:
    """Those of the coordinator too, under the same action."""
    ours, other = (
        migration.house.ask("LocalFineTunerAgent", {"action": "get_status", "job_id": job_id})["job"]
        for job_id in ("job_1700000000_phi", "job-7")
    )

    assert (ours["status"], ours["error"]) == ("failed", "was running when the old service stopped")
    assert ours["metrics"] == {"accuracy": 0.9}
    assert ours["artifacts"] == {"model": "artifacts/job_1700000000_phi/model.json"}
    assert (other["status"], other["model_id"]) == ("pending", "phi")


def test_training_cycles_are_listed_newest_first(migration: Migration) -> None:
    """With what their tables said of resources."""
    told = migration.house.ask("LearningOrchestrationService", {"action": "get_training_cycles"})["cycles"]

    assert [one["cycle_id"] for one in told] == [CYCLE_ID, OLDER_CYCLE_ID]
    assert told[0]["learning_opportunities"] == [OPEN_ID]
    assert told[0]["start_time"] == "2025-08-01T10:00:00"
    assert told[1]["resource_allocation"] == {"vram_mb": 8192.0}
    assert (told[1]["status"], told[1]["training_logs"]) == (
        "failed",
        "step 1\nwas running when the old service stopped",
    )


def test_opportunities_keep_their_ids_scores_and_state(migration: Migration) -> None:
    """One that was processed closes nothing that resembles it."""
    told = migration.house.ask("LearningOpportunityDetector", {"action": "get_top_opportunities"})["opportunities"]

    shown = {one["id"]: (one["score"], one["category"], one["processed"]) for one in told}
    assert shown == {
        OPEN_ID: (0.9, "explicit_correction", False),
        DONE_ID: (0.8, "question_answer", True),
    }


def test_parameters_are_optimised_from_what_was_measured(migration: Migration) -> None:
    """The parameter and its measurements are there together."""
    told = migration.house.ask("LearningAdjusterAgent", {"action": "optimize_parameters", "metric_name": "accuracy"})[
        "adjustments"
    ]["lr"]

    assert told["current_value"] == 0.5
    assert told["suggested_value"] == pytest.approx(0.6)
    assert told["correlation"] == pytest.approx(1.0)


def test_candidates_become_examples(migration: Migration) -> None:
    """The one with an answer."""
    rows = migration.house.bus("learning.row.list", {}).rows

    assert [(row.messages[0].content, row.answer) for row in rows] == [("Where is the kettle?", "In the pantry.")]


def test_a_second_run_changes_nothing_and_tells_the_rejects_again(
    migration: Migration, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also when every row is gone through again; measurements are not counted twice."""
    house = migration.house
    house.ask("LearningAdjusterAgent", {"action": "adjust_parameter", "parameter_name": "lr", "new_value": 0.7})
    status, told = migration.told(capsys, "--again")
    house.ask("LearningAdjusterAgent", {"action": "adjust_parameter", "parameter_name": "lr", "new_value": 0.5})
    found = house.bus("learning.parameter.optimize", {"metric": "accuracy"})

    assert status == 3
    assert found.records == 3
    assert found.adjustments["lr"].current_value == 0.5
    assert [one["reason"] for one in told["differs"]] == ["current_value is 0.7, in the old store 0.5"]
    rejected = {(one["table"], one["key"]): one["reason"] for one in told["rejected"]}
    assert set(rejected) == {
        ("training_cycles", "cycle_bad"),
        ("cycle_metrics", "3"),
        ("learning_opportunities", "not an id"),
        ("parameter_configs", "upside_down"),
        ("performance_metrics", "4"),
        ("candidates", "2"),
    }
    assert all(rejected.values())


def test_adapters_come_with_the_command_that_brings_them_in(
    migration: Migration, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run tells it, too."""
    _, told = migration.told(capsys, "--dry-run")

    (note,) = (note for note in told["notes"] if "fine_tuned_models/tone" in note)
    assert "olympus req model.adapter.attach" in note and '"model": "phi-2"' in note


@pytest.mark.parametrize(
    ("subject", "body", "store"),
    [
        (
            "memory.kv.set",
            {"key": "cycle_1700000000_Chat", "ns": "legacy.self_training", "value": {"id": "x"}},
            "data/self_training.db",
        ),
        ("memory.kv.delete", {"key": "job-7", "ns": "legacy.fine_tuner"}, "data/coordinator.db"),
        ("learning.opportunity.dismiss", {"opportunity_id": DONE_ID}, "data/learning_opportunities.db"),
        (
            "memory.kv.delete",
            {"key": "data/learning_adjuster.db:000000000001", "ns": "legacy.learning_adjuster"},
            "data/learning_adjuster.db",
        ),
    ],
)
def test_a_tampered_record_is_found(
    migration: Migration, capsys: pytest.CaptureFixture[str], subject: str, body: dict[str, Any], store: str
) -> None:
    """By the pass that compares, alone."""
    migration.house.bus(subject, body)

    status, told = migration.told(capsys, "--verify-only")

    assert status == 3
    assert store in {one["store"] for one in told["differs"]}


def test_what_differs_is_written_over_where_that_is_wanted(
    migration: Migration, capsys: pytest.CaptureFixture[str]
) -> None:
    """Records and parameters are as they were in the old store."""
    house = migration.house
    house.bus("memory.kv.set", {"key": "cycle_1700000001_Chat", "ns": "legacy.self_training", "value": {"id": "x"}})
    house.ask("LearningAdjusterAgent", {"action": "adjust_parameter", "parameter_name": "lr", "new_value": 0.9})

    _, told = migration.told(capsys, "--replace")

    assert told["differs"] == []
    assert house.ask("SelfTrainingOrchestrator", cycle("cycle_1700000001_Chat"))["cycle"]["status"] == "paused"


def test_a_run_that_was_cut_off_goes_on_where_it_stopped(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the learning service only what memory keeps is moved; with it, the rest."""
    root = tmp_path / "project"
    write_old_project(root)
    home = tmp_path / "home"
    with LegacyHouse(home, (), services=("memory",)) as house:
        stopped, first = Migration(script, house, root).told(capsys)
    with LegacyHouse(home, (), services=("memory", "resources", "models", "learning")) as house:
        ended, second = Migration(script, house, root).told(capsys)

    assert (stopped, ended) == (1, 3)
    assert first["written"]["data/self_training.db:training_cycles"] == 2
    assert "data/learning_opportunities.db:learning_opportunities" not in first["written"]
    assert second["there"]["data/self_training.db:training_cycles"] == 2
    assert "data/self_training.db:training_cycles" not in second["written"]
    assert second["written"]["data/learning_opportunities.db:learning_opportunities"] == 2
    assert second["differs"] == []
