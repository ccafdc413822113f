"""What rows of the old learning stores become, and what is said of those that become nothing."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

Database = Callable[..., Path]


@pytest.fixture(scope="module")
def parts() -> Iterator[dict[str, ModuleType]]:
    """The parts of the migration."""
    before = list(sys.path)
    sys.path.insert(0, str(SCRIPTS))
    try:
        names = ("trainings", "opportunities", "parameters", "candidates", "left_behind")
        yield {name: import_module(f"migrate_parts.{name}") for name in names}
    finally:
        sys.path[:] = before


@pytest.fixture
def database(tmp_path: Path) -> Database:
    """Writes a database with one table; its columns are the keys of the rows."""

    def write(name: str, table: str, *rows: dict[str, Any], columns: str = "") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path)
        connection.execute(f"CREATE TABLE {table} ({columns or ', '.join(rows[0])})")
        for row in rows:
            marks = ", ".join("?" for _ in row)
            connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", list(row.values()))
        connection.commit()
        connection.close()
        return path

    return write


def becomes(part: ModuleType, root: Path) -> list[Any]:
    """What every row becomes."""
    return [row.becomes for store in part.stores(root) for row in store.rows()]


@pytest.mark.parametrize("name", ["trainings", "opportunities", "parameters", "candidates"])
def test_a_project_without_stores_has_none(parts: dict[str, ModuleType], tmp_path: Path, name: str) -> None:
    """No file, no store."""
    assert parts[name].stores(tmp_path) == []


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ("trainings", "self_training.db"),
        ("trainings", "local_fine_tuner.db"),
        ("opportunities", "training_cycles.db"),
        ("opportunities", "learning_opportunities.db"),
        ("parameters", "learning_adjuster.db"),
    ],
)
def test_a_store_without_its_tables_has_no_rows(
    parts: dict[str, ModuleType], database: Database, tmp_path: Path, part: str, file: str
) -> None:
    """An empty database is no error."""
    database(f"data/{file}", "something_else", columns="id")

    (store,) = parts[part].stores(tmp_path)

    assert store.total() == 0
    assert list(store.rows()) == []


@pytest.mark.parametrize(("part", "file"), [("trainings", "self_training.db"), ("parameters", "learning_adjuster.db")])
def test_a_store_that_is_no_database_says_so(
    parts: dict[str, ModuleType], tmp_path: Path, part: str, file: str
) -> None:
    """With its path."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / file).write_text("this is no database at all, and long enough to be one " * 30)

    (store,) = parts[part].stores(tmp_path)

    unusable = import_module("migrate_parts.stores").UnusableStore
    with pytest.raises(unusable, match=file):
        list(store.rows())


def test_the_doubled_data_folder_is_looked_into(
    parts: dict[str, ModuleType], database: Database, tmp_path: Path
) -> None:
    """Some of the old programs joined it twice."""
    database("data/data/self_training.db", "training_cycles", {"id": "cycle_1_A", "agent_id": "A"})

    (store,) = parts["trainings"].stores(tmp_path)

    assert store.name == "data/data/self_training.db"


def test_missing_columns_are_filled(parts: dict[str, ModuleType], database: Database, tmp_path: Path) -> None:
    """A cycle that says no more than who it is is pending."""
    database("data/self_training.db", "training_cycles", {"id": "cycle_1_A", "agent_id": "A"})

    (record,) = becomes(parts["trainings"], tmp_path)

    assert record.ns == "legacy.self_training"
    assert record.data["key"] == "cycle_1_A"
    value = record.data["value"]
    assert (value["status"], value["priority"], value["config"]) == ("pending", 1, {})
    assert value["created_at"] is not None


@pytest.mark.parametrize(
    ("status", "wanted", "error"),
    [
        ("completed", "completed", None),
        ("paused", "paused", None),
        ("running", "paused", "was running when the old service stopped"),
        ("RUNNING", "paused", "was running when the old service stopped"),
        ("exploded", "failed", "had the status 'exploded', which is none"),
        (None, "pending", None),
    ],
)
def test_a_cycle_has_a_status_that_its_agent_knows(
    parts: dict[str, ModuleType], database: Database, tmp_path: Path, status: str | None, wanted: str, error: str | None
) -> None:
    """Nothing is left running."""
    database("data/self_training.db", "training_cycles", {"id": "c", "agent_id": "A", "status": status})

    (record,) = becomes(parts["trainings"], tmp_path)

    assert (record.data["value"]["status"], record.data["value"]["error"]) == (wanted, error)


@pytest.mark.parametrize("config", ["{oops", "[1]", "3", '"text"'])
def test_a_config_that_is_no_object_is_a_reason(
    parts: dict[str, ModuleType], database: Database, tmp_path: Path, config: str
) -> None:
    """The row is listed, not guessed at."""
    database("data/local_fine_tuner.db", "tuning_jobs", {"id": "j", "model_id": "m", "config": config})

    (reason,) = becomes(parts["trainings"], tmp_path)

    assert reason.startswith("cannot be read: ")


@pytest.mark.parametrize("moment", ["soon", "", None, -5.0, "2025-99-01 10:00:00"])
def test_a_time_that_is_none_is_left_out(
    parts: dict[str, ModuleType], database: Database, tmp_path: Path, moment: object
) -> None:
    """The rest of the row is moved."""
    database("data/self_training.db", "training_cycles", {"id": "c", "agent_id": "A", "start_time": moment})

    (record,) = becomes(parts["trainings"], tmp_path)

    assert record.data["value"]["start_time"] is None


def test_jobs_of_the_coordinator_are_found_in_any_database(
    parts: dict[str, ModuleType], database: Database, tmp_path: Path
) -> None:
    """No document names its file; the table tells."""
    database("data/whatever.db", "learning_jobs", {"job_id": "j1", "model_name": "phi", "status": "queued"})

    (record,) = becomes(parts["trainings"], tmp_path)

    assert (record.ns, record.data["key"]) == ("legacy.fine_tuner", "j1")
    assert record.data["value"]["status"] == "pending"


def test_a_cycle_of_the_orchestration_is_keyed_by_its_start(
    parts: dict[str, ModuleType], database: Database, tmp_path: Path
) -> None:
    """The newest sorts first, as its agent lists them; times without a zone are UTC."""
    database(
        "data/training_cycles.db",
        "training_cycles",
        {"id": "b", "status": "completed", "start_time": "2025-08-01 10:00:00"},
        {"id": "a", "status": "completed", "start_time": "2025-08-02T10:00:00+02:00"},
    )

    records = sorted(becomes(parts["opportunities"], tmp_path), key=lambda record: str(record.data["key"]))

    assert [record.data["value"]["cycle_id"] for record in records] == ["a", "b"]
    assert [record.data["value"]["start_time"] for record in records] == ["2025-08-02T08:00:00", "2025-08-01T10:00:00"]


def test_what_was_processed_is_told_first_and_closed(
    parts: dict[str, ModuleType], database: Database, tmp_path: Path
) -> None:
    """So it joins nothing that is open."""
    told = json.dumps({"source": "umra", "data": {"user_input": "No, left."}})
    database(
        "data/learning_opportunities.db",
        "learning_opportunities",
        {"id": "one", "opportunity_type": "x", "priority_score": 3.5, "status": "pending", "interaction_data": told},
        {"id": "two", "opportunity_type": "x", "priority_score": 0.5, "status": "processed", "interaction_data": told},
    )

    asked = becomes(parts["opportunities"], tmp_path)

    assert [(one.subject, one.body.opportunity_id) for one in asked] == [
        ("learning.opportunity.add", "two"),
        ("learning.opportunity.close", "two"),
        ("learning.opportunity.add", "one"),
    ]
    assert [asked[0].body.title, asked[2].body.title] == ["x two", "No, left."]
    assert asked[2].body.score == 1.0


def test_a_measurement_that_is_refused_leaves_no_mark(
    parts: dict[str, ModuleType], database: Database, tmp_path: Path
) -> None:
    """Else the comparison would call it taken in."""
    database(
        "data/learning_adjuster.db",
        "performance_metrics",
        {"id": 1, "metric_name": "m" * 200, "value": 0.5, "parameters": None},
        {"id": 2, "metric_name": "loss", "value": "much"},
        {"id": 3, "metric_name": "loss", "value": 0.5, "parameters": '{"lr": 0.1, "mode": "fast"}'},
    )

    first, second, asked, mark = becomes(parts["parameters"], tmp_path)

    assert "200" in first or "128" in first
    assert "much" in second
    assert asked.body.parameters == {"lr": 0.1}
    assert mark.data["key"] == "data/learning_adjuster.db:000000000003"


@pytest.mark.parametrize(
    ("candidate", "question", "answer", "rejected"),
    [
        ({"user_input": "a?", "assistant_response": "b"}, "a?", "b", None),
        ({"prompt": "a?", "completion": "b"}, "a?", "b", None),
        ({"interaction": {"user_input": "a?", "assistant_response": "b"}, "score": 0.9}, "a?", "b", None),
        ({"user_input": "a?", "assistant_response": "b", "correction": "c"}, "a?", "c", "b"),
    ],
)
def test_a_candidate_is_read_under_the_names_in_use(
    parts: dict[str, ModuleType],
    tmp_path: Path,
    candidate: dict[str, Any],
    question: str,
    answer: str,
    rejected: str | None,
) -> None:
    """A correction is what to learn, and the answer it corrects what not to."""
    (tmp_path / "training_data").mkdir()
    (tmp_path / "training_data" / "training_data_1.json").write_text(json.dumps({"candidates": [candidate, 7]}))

    asked, reason = becomes(parts["candidates"], tmp_path)

    (example,) = asked.body.examples
    assert (example.messages[0].content, example.answer, example.rejected) == (question, answer, rejected)
    assert reason == "holds int where an object is expected"


def test_what_a_person_has_to_move_is_told(parts: dict[str, ModuleType], database: Database, tmp_path: Path) -> None:
    """Adapters with their command, the others with what they lack; tables nobody reads with their rows."""
    for name, weights in (("good", "adapter_model.safetensors"), ("pickled", "adapter_model.bin"), ("bare", "")):
        folder = tmp_path / "fine_tuned_models" / name
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/phi-2"}')
        if weights:
            (folder / weights).write_bytes(b"x")
    (tmp_path / "fine_tuned_models" / "empty").mkdir()
    database("data/learning_adjuster.db", "parameter_history", {"id": 1, "parameter_name": "lr"})

    notes = "\n".join(parts["left_behind"].notes(tmp_path))

    assert '"model": "phi-2", "adapter": "good"' in notes
    assert "pickled: its weights are a pickle" in notes
    assert "bare: it holds no weights" in notes
    assert "empty: it holds no adapter" in notes
    assert "data/learning_adjuster.db:parameter_history, 1 rows" in notes
