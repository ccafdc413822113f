"""The migration of models against a running model service: weights without copying, old names, measurements, routing."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.bodies.model import ModelShow
from schemas.bodies.model_files import ModelAlias
from schemas.bodies.model_trials import MetricRecord
from tests import gguf_files, old_project
from tests.legacy_house import LegacyHouse
from tests.old_project import database, fingerprint, json_file, module
from workers.gateway.legacy.agents import evaluation_framework, gguf_models

STAMP = "2025-03-01T10:00:00"
EVALUATION_DB = "data/model_evaluation.db"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LegacyHouse]:
    """The old ports of models over a real model service."""
    home = tmp_path_factory.mktemp("house")
    agents = [evaluation_framework.AGENT, gguf_models.AGENT]
    overrides = {"resources.nvml": "off", "models.default": "none-of-these"}
    with LegacyHouse(home, agents, services=("memory", "resources", "models"), **overrides) as opened:
        yield opened


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An old project with weights, registries, a database and a configuration."""
    root = tmp_path_factory.mktemp("old") / "project"
    (root / "models" / "gguf").mkdir(parents=True)
    (root / "models" / "phi-2.Q4_0.gguf").write_bytes(gguf_files.gguf())
    (root / "models" / "gguf" / "odd name!.gguf").write_bytes(gguf_files.gguf(data_bytes=256))
    (root / "models" / "broken.gguf").write_bytes(b"GGUF but no more")
    json_file(
        root / "main_pc_code" / "config" / "system_config.json",
        {
            "main_pc_settings": {
                "model_configs": {
                    "old-phi": {
                        "serving_method": "gguf_direct",
                        "model_path": "phi-2.Q4_0.gguf",
                        "context_length": 1024,
                    },
                    "odd": {"model_path": "gguf/odd name!.gguf", "idle_timeout_seconds": 60},
                    "lost": {"model_path": "lost.gguf"},
                    "far": {"serving_method": "zmq_service_remote"},
                    "bad id!": {"model_path": "phi-2.Q4_0.gguf"},
                }
            },
            "whisper_model_config": {"models": {"whisper": {"model_path": "whisper.bin"}}},
        },
    )
    (root / "main_pc_code" / "config" / "llm_config.yaml").write_text("load_policy: {fast: old-phi, tts: xtts}\n")
    database(
        root / "data" / "model_evaluation.db",
        old_project.EVALUATION,
        performance_metrics=[
            {"metric_id": f"m-{at}", "agent_name": "Ear", "metric_name": "latency", "value": float(at), "timestamp": STAMP,
             "context": '{"run": 1}'}
            for at in range(3)
        ] + [{"metric_id": "m-bad", "agent_name": "", "metric_name": "x", "value": 1.0, "timestamp": STAMP}],
        model_evaluation_scores=[
            {"evaluation_id": "e-1", "model_name": "old-phi", "cycle_id": "c 1", "trust_score": 0.8, "accuracy": 0.9,
             "avg_latency_ms": 12.0, "evaluation_timestamp": STAMP, "comparison_data": '{"before": 0.7}'},
        ],
    )  # fmt: skip
    return root


@pytest.fixture(scope="module")
def moved(house: LegacyHouse, project: Path) -> dict[str, Any]:
    """The report of the first run, which left the project as it was."""
    before = fingerprint(project)
    status, report = migrate(house, project)

    assert (status, report["differs"], report["unreadable"]) == (3, [], [])
    assert fingerprint(project) == before
    return report


def migrate(house: LegacyHouse, source: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Run the script; its exit code and its report."""
    bus = house.settings.bus
    names = ("request_port", "publish_port", "subscribe_port", "sequenced_port")
    pairs = [f"home={house.settings.home}", *(f"bus.{name}={getattr(bus, name)}" for name in names)]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        arguments = [str(source), "--json", *options, *(word for pair in pairs for word in ("--set", pair))]
        status = module("migrate_model_data").main(arguments)
    return status, json.loads(out.getvalue())


def test_a_dry_run_writes_nothing(house: LegacyHouse, project: Path, tmp_path: Path) -> None:
    """Neither to the system nor a file of rules."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = module("migrate_model_data").main([str(project), "--dry-run", "--set", f"home={tmp_path}"])

    assert status == 3 and "models:gguf: 3 rows, 3 can be moved" in out.getvalue()
    assert not (tmp_path / "migrations" / "models.toml").exists()


def test_weights_are_linked_and_known_by_their_old_names(
    house: LegacyHouse, project: Path, moved: dict[str, Any]
) -> None:
    """Not copied; what is no model, lies elsewhere or ran elsewhere says so."""
    shown = house.bus("model.show", ModelShow(model="old-phi"))
    assert shown.name == "phi-2.Q4_0" and os.path.samefile(shown.path, project / "models" / "phi-2.Q4_0.gguf")
    assert house.bus("model.show", ModelShow(model="odd")).name == "odd-name"
    listed = house.ask("GGUFModelManager", {"action": "list_models"})["models"]
    assert {"phi-2.Q4_0", "odd-name"} <= {one["model_id"] for one in listed}

    rejected = {one["key"]: one["reason"] for one in moved["rejected"]}
    assert set(rejected) == {"models/broken.gguf", "lost", "far", "bad id!", "whisper", "m-bad"}
    assert "zmq_service_remote" in rejected["far"] and "lost.gguf" in rejected["lost"]


def test_an_old_client_finds_measurements_and_marks(house: LegacyHouse, moved: dict[str, Any]) -> None:
    """With their ids, times and contexts, over the port of the evaluation framework."""
    mef = "ModelEvaluationFramework"
    metrics = house.ask(mef, {"action": "get_performance_metrics", "agent_name": "Ear"})["metrics"]
    assert {one["metric_id"] for one in metrics} == {"m-0", "m-1", "m-2"}
    assert metrics[0]["timestamp"] == STAMP and metrics[0]["context"] == {"run": 1}
    (marks,) = house.ask(mef, {"action": "get_model_evaluation_scores", "model_name": "old-phi"})["evaluations"]
    assert (marks["evaluation_id"], marks["cycle_id"], marks["trust_score"]) == ("e-1", "c 1", 0.8)
    assert (marks["accuracy"], marks["f1_score"], marks["comparison_data"]) == (0.9, None, {"before": 0.7})


def test_routing_and_rules_are_written_to_take_over(house: LegacyHouse, moved: dict[str, Any]) -> None:
    """To a file below the home, which the model service can read as it is."""
    path = Path(house.settings.home) / "migrations" / "models.toml"
    routing = module("workers.models.routing.rules")

    rules = routing.read_rules([path, routing.SHIPPED_RULES])

    assert str(path) in moved["notes"][0] and len(moved["notes"]) == 1
    assert rules.profile("fast").models[:2] == ("phi-2.Q4_0", "old-phi")
    assert (rules.of("phi-2.Q4_0").context_tokens, rules.of("odd-name").keep_alive_s) == (1024, 60)


def test_a_second_run_changes_nothing(house: LegacyHouse, project: Path, moved: dict[str, Any]) -> None:
    """With and without the marks."""
    for options in ((), ("--again",)):
        status, report = migrate(house, project, *options)

        assert (status, report["differs"], report["agrees"]) == (3, [], moved["agrees"])
        assert {place: count for place, count in report["written"].items() if EVALUATION_DB not in place} == {}
    assert len(house.ask("ModelEvaluationFramework", {"action": "get_performance_metrics"})["metrics"]) == 3


def test_the_comparison_finds_what_is_another_thing_now(house: LegacyHouse, tmp_path: Path) -> None:
    """Other content under a model's name, a measurement of the same id, an alias that was moved."""
    root = tmp_path / "old"
    (root / "models").mkdir(parents=True)
    (root / "models" / "mine.gguf").write_bytes(gguf_files.gguf(data_bytes=512))
    json_file(root / "config" / "gguf_models.json", {"alias": {"model_path": "mine.gguf"}})
    database(
        root / "data" / "model_evaluation.db",
        old_project.EVALUATION,
        performance_metrics=[
            {"metric_id": "taken", "agent_name": "A", "metric_name": "m", "value": 1.0, "timestamp": STAMP},
        ],
    )
    assert migrate(house, root, "--copy")[0] == 0
    (root / "models" / "mine.gguf").write_bytes(gguf_files.gguf(data_bytes=513))
    house.bus("model.alias", ModelAlias(alias="alias", model="olympus-demo"))
    connection = old_project.sqlite3.connect(root / "data" / "model_evaluation.db")
    connection.execute("UPDATE performance_metrics SET value = 2.0")
    connection.commit()
    connection.close()

    status, report = migrate(house, root, "--verify-only")

    differs = {one["key"]: one["reason"] for one in report["differs"]}
    assert status == 3 and set(differs) == {"models/mine.gguf", "alias", "taken"}
    assert "another content" in differs["models/mine.gguf"] and "olympus-demo" in differs["alias"]
    assert differs["taken"] == "value is 1.0, in the old store 2.0"

    # Another run leaves all of it, but with --replace the alias, which can be taken back, means the old model again.
    assert migrate(house, root)[0] == 3
    assert house.bus("model.show", ModelShow(model="alias")).name == "olympus-demo"
    assert migrate(house, root, "--replace")[0] == 3
    assert house.bus("model.show", ModelShow(model="alias")).name == "mine"


def test_a_measurement_whose_id_is_taken_is_rejected(house: LegacyHouse, tmp_path: Path) -> None:
    """The service says by whom, in every run: what was refused is tried again."""
    house.bus("model.metric.record", MetricRecord(agent="Other", metric="m", value=5.0, metric_id="clash"))
    database(
        tmp_path / "data" / "model_evaluation.db",
        old_project.EVALUATION,
        performance_metrics=[
            {"metric_id": "clash", "agent_name": "A", "metric_name": "m", "value": 1.0, "timestamp": STAMP},
        ],
    )

    for _ in range(2):
        status, report = migrate(house, tmp_path)

        assert (status, report["differs"]) == (3, []) and "Other" in report["rejected"][0]["reason"]
