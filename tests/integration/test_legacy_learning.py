"""The seven old learning agents over real sockets: every action with what it answers, and programs as they were written."""

from __future__ import annotations

import json
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from schemas.bodies.accounts import TrustRecord
from schemas.bodies.learning import Example
from schemas.bodies.learning_data import DatasetBuild, DatasetImport
from schemas.bodies.learning_jobs import ScheduleSet, TrainingStop
from schemas.bodies.learning_tuning import SessionUpdate
from schemas.bodies.model import ChatMessage
from tests.legacy_house import LegacyHouse
from tests.training_rows import rows
from workers.gateway.legacy.agent import Agent
from workers.gateway.legacy.agents import (
    active_learning,
    fine_tuner,
    learning_adjuster,
    learning_manager,
    learning_orchestration,
    opportunity_detector,
    self_training,
)

STO = "SelfTrainingOrchestrator"
LFT = "LocalFineTunerAgent"
MANAGER = "LearningManager"
LOS = "LearningOrchestrationService"
LOD = "LearningOpportunityDetector"
ALM = "ActiveLearningMonitor"
ADJUSTER = "LearningAdjusterAgent"

# Whatever is waited for comes within a second where it comes at all.
WAIT_S = 20.0

# Periods of broadcasts and queues in these tests.
OFTEN_S = 0.05

# Every detector finds something in it: worth 0.895.
WORTHWHILE = (
    "No, incorrect, wrong, that's not it, actually not true, but however although rather instead. Yes, correct, right,"
    " exactly, perfect. Explain, analyze, compare, evaluate, synthesize: why?"
)
LONG_ANSWER = "\n\n".join(["word " * 30] * 3) + "```x```"


def agents(publisher: int) -> list[Agent]:
    """All seven; the detector also listens to a publisher on that port, and takes in those that connect to it."""
    hurried: dict[str, dict[str, Any]] = {
        STO: {"tasks": (self_training.queue_of(OFTEN_S),)},
        LFT: {"tasks": (fine_tuner.queue_of(OFTEN_S),)},
        MANAGER: {"tasks": (learning_manager.broadcast(OFTEN_S),)},
        LOD: {"tasks": (opportunity_detector.look, opportunity_detector.listen_to(publisher)), "intake_ports": (5701,)},
    }
    modules = (
        self_training,
        fine_tuner,
        learning_manager,
        learning_orchestration,
        opportunity_detector,
        active_learning,
        learning_adjuster,
    )
    return [msgspec.structs.replace(one.AGENT, **hurried.get(one.AGENT.name, {})) for one in modules]


@pytest.fixture(scope="module")
def publisher() -> int:
    """A port on which a publisher of interactions will bind."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the module's house."""
    return tmp_path_factory.mktemp("learning")


@pytest.fixture(scope="module")
def house(home: Path, publisher: int) -> Iterator[LegacyHouse]:
    """The seven agents with the services they need; no training is begun, for the schedule is paused."""
    with LegacyHouse(home, agents(publisher), services=("memory", "models", "learning")) as house:
        house.bus("learning.schedule.set", ScheduleSet(is_paused=True))
        yield house


def until(met: Callable[[], Any], what: str) -> Any:
    """The first true answer of `met`."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if found := met():
            return found
        time.sleep(0.01)
    raise AssertionError(f"{what} did not happen within {WAIT_S:g} s")


def failure(words: str, **more: Any) -> dict[str, Any]:
    """A failure whose text stands under both keys."""
    return {"status": "error", "message": words, "error": words, **more}


# Whatever is sent ----------------------------------------------------------------------------------------------------

EVERY = (STO, LFT, MANAGER, LOS, LOD, ALM, ADJUSTER)


@pytest.mark.parametrize("agent", EVERY)
@pytest.mark.parametrize(
    "frames",
    [
        [b"{"],
        [b""],
        [b"\xff\xfe"],
        [b"[1, 2]"],
        [b"12"],
        [b"null"],
        [b'"text"'],
        [b"{}", b"{}"],
        [b"{}"],
        [b"[" * 5_000],
    ],
)
def test_nonsense_is_answered_with_an_error(house: LegacyHouse, agent: str, frames: list[bytes]) -> None:
    """One frame of JSON, whatever came, and the next request is served."""
    (frame,) = house.raw(agent, frames)

    assert json.loads(frame)["status"] == "error"


@pytest.mark.parametrize("agent", EVERY)
@pytest.mark.parametrize("request_", [{"action": "health_check"}, {"action": "ping"}, {"action": "health"}])
def test_every_main_port_answers_pollers(house: LegacyHouse, agent: str, request_: dict[str, Any]) -> None:
    """Also where the agent itself never did."""
    assert house.ask(agent, request_)["status"] == "ok"


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        (STO, "Unknown action"),
        (LFT, "Unknown action"),
        (ADJUSTER, "Unknown action"),
        (LOS, "Unknown action: fly"),
        (LOD, "Unknown action: fly"),
        (ALM, "Unknown action: fly"),
    ],
)
def test_unknown_actions_are_named_where_they_were(house: LegacyHouse, agent: str, words: str) -> None:
    """Three of the agents never named them."""
    assert house.ask(agent, {"action": "fly"}) == failure(words)


@pytest.mark.parametrize("agent", [LOS, LOD, ADJUSTER])
def test_health_ports_answer_anything(house: LegacyHouse, agent: str) -> None:
    """JSON or not."""
    for frame in (b'{"action": "health_check"}', b"ping", b""):
        assert house.health(agent, frame)["status"] == "ok"


@pytest.mark.parametrize(
    ("agent", "keys"),
    [
        (STO, {"service": "self_training_orchestrator", "database_status": "ok"}),
        (LFT, {"service": "local_fine_tuner_agent", "database_status": "ok"}),
        (ADJUSTER, {"service": "learning_adjuster_agent", "agent_type": "learning_adjuster", "database_status": "ok"}),
    ],
)
def test_health_is_told_in_the_agents_own_words(house: LegacyHouse, agent: str, keys: dict[str, Any]) -> None:
    """With the figure each of them had."""
    told = house.ask(agent, {"action": "health_check"})

    assert {name: told[name] for name in keys} == keys
    assert told["ready"] is True and told["initialized"] is True
    figure = {STO: "active_cycles", LFT: "active_jobs", ADJUSTER: "active_parameters"}[agent]
    assert isinstance(told[figure], int)


FIELDS: dict[str, tuple[str, ...]] = {
    STO: ("agent_id", "config", "priority", "cycle_id"),
    LFT: ("model_id", "config", "job_id", "data_source", "model_to_tune", "parameters"),
    MANAGER: ("model_id", "session_id", "parameters", "status", "progress", "metrics", "request_id"),
    LOS: ("opportunity_id", "score", "category", "timestamp", "limit"),
    LOD: ("category", "limit", "opportunity_id"),
    ALM: ("parameters", "session_id", "metric_type", "value", "status"),
    ADJUSTER: ("config", "parameter_name", "new_value", "metric_name", "value", "parameters", "agent", "adjustment"),
}
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    10**400,
    "",
    "x" * 5_000,
    "\ud800",
    "a b/../\x00",
    [],
    ["loss"],
    {},
    {"loss": None},
    {"": [{}]},
)
UUID = "0c7a0f0e-5b5a-4f5c-9a57-a6a4d9a0f2b1"
FINE: dict[str, Any] = {
    "opportunity_id": UUID,
    "config": {"resources": {"cpu": 0.01}},
    "value": 1,
    "metric_type": "loss",
}


@pytest.mark.parametrize("agent", EVERY)
def test_odd_values_are_answered_and_are_no_defect_of_ours(house: LegacyHouse, agent: str) -> None:
    """Every field of every action with every value that is hard to take, the others fine and missing."""
    bound = house.edge.house
    for action in (*bound.agents[agent].actions, None):
        for field in FIELDS[agent]:
            for value in ODD:
                plain = {} if action is None else {"action": action}
                fine = {name: FINE.get(name, "x") for name in FIELDS[agent]}
                for request in ({**plain, field: value}, {**fine, **plain, field: value}):
                    assert isinstance(house.ask(agent, request).get("status"), str)

    assert bound.failures_of(agent) == 0


# SelfTrainingOrchestrator --------------------------------------------------------------------------------------------


def new_cycle(house: LegacyHouse, agent_id: str = "Chat", priority: int | None = None, **config: Any) -> str:
    """Create a cycle that takes 10 of the network unless the config says otherwise."""
    wanted = {"action": "create_cycle", "agent_id": agent_id, "config": {"resources": {"network": 10}, **config}}
    reply = house.ask(STO, wanted if priority is None else {**wanted, "priority": priority})
    assert set(reply) == {"status", "cycle_id"} and reply["status"] == "success"
    cycle_id: str = reply["cycle_id"]
    assert cycle_id.startswith("cycle_") and agent_id in cycle_id
    return cycle_id


def cycle(house: LegacyHouse, cycle_id: str) -> dict[str, Any]:
    """As get_status shows it."""
    reply = house.ask(STO, {"action": "get_status", "cycle_id": cycle_id})
    assert reply["status"] == "success"
    found: dict[str, Any] = reply["cycle"]
    return found


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"action": "create_cycle"}, "'agent_id'"),
        ({"action": "create_cycle", "agent_id": "a"}, "'config'"),
        ({"action": "create_cycle", "agent_id": "a", "config": {}}, "Invalid resource requirements"),
        (
            {"action": "create_cycle", "agent_id": "a", "config": {"resources": {"cpu": 101}}},
            "Invalid resource requirements",
        ),
        ({"action": "start_cycle"}, "'cycle_id'"),
        ({"action": "start_cycle", "cycle_id": "cycle_1_a"}, "Cycle not found"),
        ({"action": "get_status"}, "'cycle_id'"),
        ({"action": "get_status", "cycle_id": "cycle_1_a"}, "Cycle not found"),
        ({"action": "create_cycle", "agent_id": "a", "config": "x"}, "config must be an object, not text"),
    ],
)
def test_cycles_are_refused_in_the_agents_words(house: LegacyHouse, request_: dict[str, Any], words: str) -> None:
    """To the letter."""
    assert house.ask(STO, request_) == failure(words)


def test_a_cycle_goes_from_pending_to_completed_as_its_agent_tells(house: LegacyHouse) -> None:
    """Its progress is what is told of its learning session; nothing else is made up."""
    cycle_id = new_cycle(house)
    assert cycle(house, cycle_id) == {
        "id": cycle_id,
        "agent_id": "Chat",
        "status": "pending",
        "progress": 0.0,
        "start_time": None,
        "end_time": None,
        "error": None,
        "metrics": {},
    }

    started = house.ask(STO, {"action": "start_cycle", "cycle_id": cycle_id})
    running = cycle(house, cycle_id)
    house.bus(
        "learning.session.update",
        SessionUpdate(session_id=cycle_id, progress=0.5, metrics={"loss": 0.7, "accuracy": 0.5}),
    )
    half = cycle(house, cycle_id)
    house.bus("learning.session.update", SessionUpdate(session_id=cycle_id, progress=1.0))
    done = cycle(house, cycle_id)

    assert started["status"] == "success" and started["message"]
    assert (running["status"], running["progress"]) == ("running", 0.0)
    assert "trains itself" in running["reason"] and running["start_time"] is not None
    assert (half["progress"], half["metrics"]) == (0.5, {"loss": 0.7, "accuracy": 0.5})
    assert (done["status"], done["progress"], done["error"]) == ("completed", 1.0, None)
    assert done["end_time"] >= done["start_time"]


def test_running_cycles_hold_their_resources_until_they_end(house: LegacyHouse) -> None:
    """What does not fit is refused; once the other is over it fits."""
    first, second = (new_cycle(house, resources={"gpu": 60}) for _ in range(2))
    assert first != second
    house.ask(STO, {"action": "start_cycle", "cycle_id": first})

    refused = house.ask(STO, {"action": "start_cycle", "cycle_id": second})
    assert refused == failure("Insufficient resources")

    house.bus("learning.session.update", SessionUpdate(session_id=first, progress=1.0))
    # Whether by this request or by the queue, which follows once anything was started.
    house.ask(STO, {"action": "start_cycle", "cycle_id": second})
    assert cycle(house, second)["status"] == "running"
    house.bus("learning.session.update", SessionUpdate(session_id=second, progress=1.0))
    assert cycle(house, second)["status"] == "completed"


def test_queued_cycles_begin_by_priority_as_resources_allow(house: LegacyHouse) -> None:
    """Equal and lower ones wait; nobody has to start them once any was started."""
    holder = new_cycle(house, resources={"storage": 100})
    house.ask(STO, {"action": "start_cycle", "cycle_id": holder})
    low, high = (new_cycle(house, f"p{level}", level, resources={"storage": 60}) for level in (1, 9))
    assert {cycle(house, one)["status"] for one in (low, high)} == {"pending"}

    house.bus("learning.session.update", SessionUpdate(session_id=holder, progress=1.0))

    until(lambda: cycle(house, high)["status"] == "running", "the start of the cycle of high priority")
    assert cycle(house, low)["status"] == "pending"
    for one in (high, low):
        until(lambda one=one: cycle(house, one)["status"] == "running", "the start of a queued cycle")  # type: ignore[misc]
        house.bus("learning.session.update", SessionUpdate(session_id=one, progress=1.0))
        assert cycle(house, one)["status"] == "completed"


@pytest.fixture(scope="module")
def dataset(house: LegacyHouse) -> str:
    """A dataset that the shipped model can be trained on."""
    examples = [
        Example(messages=[ChatMessage(**message) for message in row["messages"]], answer=row["answer"])
        for row in rows(40)
    ]
    house.bus("learning.dataset.import", DatasetImport(model="olympus-demo", examples=examples))
    house.bus("learning.dataset.build", DatasetBuild(dataset="ahoy", model="olympus-demo"))
    return "ahoy"


def test_a_cycle_that_names_a_dataset_is_trained_by_the_learning_service(house: LegacyHouse, dataset: str) -> None:
    """It waits as its job does, is paused when the job is stopped, and goes on when it is started again."""
    cycle_id = new_cycle(house, "Trainer 1", dataset=dataset, epochs=1)
    house.ask(STO, {"action": "start_cycle", "cycle_id": cycle_id})

    waiting = cycle(house, cycle_id)
    (job,) = [one for one in house.bus("learning.training.list").jobs if one.job_id.startswith("cycle_")]
    house.bus("learning.training.stop", TrainingStop(job_id=job.job_id, reason="enough"))
    paused = until(lambda: (now := cycle(house, cycle_id))["status"] == "paused" and now, "the pause")
    again = house.ask(STO, {"action": "start_cycle", "cycle_id": cycle_id})

    assert (waiting["status"], waiting["progress"]) == ("pending", 0.0) and waiting["reason"]
    assert (job.dataset, job.model) == ("ahoy", "olympus-demo")
    assert paused["reason"] == "enough"
    assert again["status"] == "success" and cycle(house, cycle_id)["status"] == "pending"
    house.bus("learning.training.stop", TrainingStop(job_id=job.job_id))


def test_a_cycle_that_cannot_be_trained_fails_with_the_reason(house: LegacyHouse) -> None:
    """And holds nothing."""
    cycle_id = new_cycle(house, dataset="nowhere")

    reply = house.ask(STO, {"action": "start_cycle", "cycle_id": cycle_id})

    assert reply["status"] == "error" and "nowhere" in reply["message"]
    assert (cycle(house, cycle_id)["status"], cycle(house, cycle_id)["error"]) == ("failed", reply["message"])


# LocalFineTunerAgent -------------------------------------------------------------------------------------------------


def new_job(house: LegacyHouse, model_id: str = "phi-2", **config: Any) -> str:
    """Create a job."""
    reply = house.ask(LFT, {"action": "create_job", "model_id": model_id, "config": config})
    assert set(reply) == {"status", "job_id"} and reply["status"] == "success"
    job_id: str = reply["job_id"]
    assert job_id.startswith("job_") and model_id in job_id
    return job_id


def job_of(house: LegacyHouse, job_id: str) -> dict[str, Any]:
    """As get_status shows it."""
    reply = house.ask(LFT, {"action": "get_status", "job_id": job_id})
    assert reply["status"] == "success"
    found: dict[str, Any] = reply["job"]
    return found


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"action": "create_job"}, "'model_id'"),
        ({"action": "create_job", "model_id": "m"}, "'config'"),
        ({"action": "start_job"}, "'job_id'"),
        ({"action": "start_job", "job_id": "job_1_m"}, "Job not found"),
        ({"action": "get_status"}, "'job_id'"),
        ({"action": "get_status", "job_id": "job_1_m"}, "Job not found"),
    ],
)
def test_jobs_are_refused_in_the_agents_words(house: LegacyHouse, request_: dict[str, Any], words: str) -> None:
    """To the letter."""
    assert house.ask(LFT, request_) == failure(words)


def test_a_job_with_nothing_to_train_on_waits_and_says_so(house: LegacyHouse) -> None:
    """It is no success and no progress; another of the same second has another id."""
    job_id = new_job(house)
    assert new_job(house) != job_id

    reply = house.ask(LFT, {"action": "start_job", "job_id": job_id})

    assert reply["status"] == "success" and "waits" in reply["message"]
    shown = job_of(house, job_id)
    assert "no open opportunity" in shown.pop("error")
    assert shown == {
        "id": job_id,
        "model_id": "phi-2",
        "status": "pending",
        "start_time": None,
        "end_time": None,
        "metrics": {},
        "artifacts": {},
    }


def test_a_job_that_names_a_dataset_is_trained_by_the_learning_service(house: LegacyHouse, dataset: str) -> None:
    """Cancelled is what the learning service stopped; a second start resumes it."""
    job_id = new_job(house, "olympus-demo", dataset=dataset, few_shot=True, learning_rate=0.001)
    started = house.ask(LFT, {"action": "start_job", "job_id": job_id})

    shown = job_of(house, job_id)
    house.bus("learning.training.stop", TrainingStop(job_id=job_id))
    until(lambda: job_of(house, job_id)["status"] == "cancelled", "the end of the job")
    again = house.ask(LFT, {"action": "start_job", "job_id": job_id})

    assert started["status"] == again["status"] == "success"
    assert (shown["status"], shown["error"]) == ("pending", None)
    assert job_of(house, job_id)["status"] == "pending"
    house.bus("learning.training.stop", TrainingStop(job_id=job_id))


def test_a_job_whose_model_has_something_to_learn_trains_that(house: LegacyHouse) -> None:
    """Created, and begun by the queue: nobody starts it by name."""
    examples = [{"prompt": f"What is {number} of {number * 7}?", "answer": f"It is {number}."} for number in range(100)]
    known = house.bus("learning.opportunity.add", {"title": "numbers", "model": "olympus-demo", "examples": examples})
    assert known.needs == ""

    job_id = new_job(house, "olympus-demo")
    house.ask(LFT, {"action": "start_job", "job_id": new_job(house)})

    job = until(
        lambda: next((one for one in house.bus("learning.training.list").jobs if one.job_id == job_id), None),
        "the training of the model's opportunity",
    )
    assert job.opportunities == [known.opportunity_id]
    house.bus("learning.training.stop", TrainingStop(job_id=job_id))


def test_the_older_monitors_trigger_starts_a_dataset_and_reads_no_file(house: LegacyHouse, dataset: str) -> None:
    """It reads `started` with a job, or an error."""
    request = {
        "action": "trigger_finetune",
        "model_to_tune": "current_model",
        "parameters": {"epochs": 1, "batch_size": 4},
    }

    started = house.ask(LFT, {**request, "data_source": dataset})
    refused = house.ask(LFT, {**request, "data_source": "training_data/training_data_1.json"})

    assert set(started) == {"status", "job_id"} and started["status"] == "started"
    assert refused["status"] == "error" and "no dataset" in refused["error"]
    house.bus("learning.training.stop", TrainingStop(job_id=started["job_id"]))


# LearningManager -----------------------------------------------------------------------------------------------------


def test_the_managers_table_row_by_row(house: LegacyHouse) -> None:
    """With the request_id of the request in every reply, or an empty one."""

    def ask(**request: Any) -> Any:
        return house.ask(MANAGER, request)

    created = ask(action="create_session", model_id="m", session_id="s 1", parameters={"lr": 1}, request_id="r1")
    plain = ask(action="update_session", session_id="s 1", status="running", progress=0.25)
    measured = ask(action="update_session", session_id="s 1", metrics={"loss": 1.0}, request_id="r2")
    got = ask(action="get_session", session_id="s 1")

    assert created == {"status": "success", "session_id": "s 1", "request_id": "r1"}
    assert plain == {"status": "success", "request_id": ""}
    assert measured == {"status": "success", "learning_rate": 0.01, "request_id": "r2"}
    assert (got["status"], got["request_id"]) == ("success", "")
    session = got["session"]
    assert list(session) == [
        "model_id",
        "created_at",
        "last_active",
        "parameters",
        "status",
        "progress",
        "metrics",
        "history",
    ]
    assert (session["model_id"], session["parameters"], session["status"]) == ("m", {"lr": 1}, "running")
    assert (session["progress"], session["metrics"]) == (0.25, {"loss": 1.0})
    assert [list(one) for one in session["history"]] == [["timestamp", "metrics"]]

    assert ask(action="delete_session", session_id="s 1") == {"status": "success", "request_id": ""}
    assert ask(action="get_session", session_id="s 1", request_id=7) == {
        "status": "error",
        "session": None,
        "request_id": 7,
    }
    for action in ("update_session", "delete_session"):
        assert ask(action=action, session_id="s 1") == {"status": "error", "request_id": ""}
        assert ask(action=action) == failure("Missing session_id", request_id="")
    assert ask(action="get_session") == failure("Missing session_id", request_id="")
    assert ask(action="create_session") == failure("Missing model_id", request_id="")
    assert ask(action="fly", request_id="r3") == failure("Unknown action: fly", request_id="r3")
    assert house.ask(MANAGER, [1])["request_id"] == ""

    ask(action="create_session", model_id="m", session_id="s 2")
    slower = ask(action="update_session", session_id="s 2", metrics={"loss": 2.0})
    assert slower["learning_rate"] == pytest.approx(0.009)
    rate = ask(action="get_learning_rate", model_id="whatever")
    assert rate == {"status": "success", "learning_rate": slower["learning_rate"], "request_id": ""}
    ask(action="delete_session", session_id="s 2")


def test_a_session_takes_what_it_can_of_an_update(house: LegacyHouse) -> None:
    """One measurement that is no number does not cost the others, nor does progress in percent."""
    house.ask(MANAGER, {"action": "create_session", "model_id": "m", "session_id": "odd"})
    metrics = {
        "odd accuracy": 1,
        "stage": "warm-up",
        "flag": True,
        "none": None,
        "": 1,
        "far": float("inf"),
        "x" * 200: 2,
    }
    reply = house.ask(
        MANAGER,
        {"action": "update_session", "session_id": "odd", "metrics": metrics, "progress": "45", "status": "s" * 99},
    )
    session = house.ask(MANAGER, {"action": "get_session", "session_id": "odd"})["session"]
    assert (reply["status"], reply["ignored"]) == ("success", ["stage", "flag", "none", "", "far"])
    assert "learning_rate" in reply
    assert (session["metrics"], session["progress"]) == ({"odd accuracy": 1.0, "x" * 128: 2.0}, 0.45)
    assert session["status"] == "s" * 64
    house.ask(MANAGER, {"action": "update_session", "session_id": "odd", "progress": -3})
    assert house.ask(MANAGER, {"action": "get_session", "session_id": "odd"})["session"]["progress"] == 0
    house.ask(MANAGER, {"action": "delete_session", "session_id": "odd"})


def test_a_session_without_a_name_is_named_after_the_time(house: LegacyHouse) -> None:
    """As text; and a name that is taken begins anew."""
    name = house.ask(MANAGER, {"action": "create_session", "model_id": "m"})["session_id"]
    assert abs(float(name) - time.time()) < 60
    house.ask(MANAGER, {"action": "update_session", "session_id": name, "metrics": {"loss": 1.0}})

    house.ask(MANAGER, {"action": "create_session", "model_id": "n", "session_id": name})

    session = house.ask(MANAGER, {"action": "get_session", "session_id": name})["session"]
    assert (session["model_id"], session["history"], session["status"]) == ("n", [], "initialized")
    house.ask(MANAGER, {"action": "delete_session", "session_id": name})


def test_an_eleventh_session_evicts_the_oldest_and_subscribers_hear_how_many_there_are(house: LegacyHouse) -> None:
    """The broadcast is one JSON frame without a topic."""
    names = [f"many-{number}" for number in range(11)]
    for name in names:
        house.ask(MANAGER, {"action": "create_session", "model_id": "m", "session_id": name})

    gone = house.ask(MANAGER, {"action": "get_session", "session_id": names[0]})
    kept = house.ask(MANAGER, {"action": "get_session", "session_id": names[1]})
    listener = house.socket(zmq.SUB, MANAGER, "events")
    (frame,) = listener.recv_multipart()
    listener.close(0)

    assert (gone["status"], kept["status"]) == ("error", "success")
    told = json.loads(frame)
    assert list(told) == ["component", "status", "timestamp", "metrics"]
    assert (told["component"], told["status"]) == ("learning_manager", "running")
    assert told["metrics"]["active_sessions"] == 10
    assert isinstance(told["metrics"]["learning_rate"], float)
    health = house.ask(MANAGER, {"action": "health_check"})
    assert list(health["initialization_status"]) == ["is_initialized", "error", "progress", "components"]


# LearningOrchestrationService and LearningOpportunityDetector --------------------------------------------------------


def test_an_opportunity_becomes_a_cycle_with_or_without_an_action(house: LegacyHouse) -> None:
    """Acknowledged with a cycle, shown the newest first with texts for ids and times."""
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    named = house.ask(
        LOS,
        {
            "action": "new_learning_opportunity",
            "opportunity_id": first,
            "score": 0.9,
            "category": "tools",
            "timestamp": "2090-01-02T03:04:05",
        },
    )
    typeless = house.ask(LOS, {"opportunity_id": second, "score": 0.8, "category": "explicit_correction"})
    cycles = house.ask(LOS, {"action": "get_training_cycles", "limit": 2})

    assert set(named) == set(typeless) == {"status", "cycle_id"}
    assert named["status"] == typeless["status"] == "acknowledged"
    assert str(uuid.UUID(named["cycle_id"])) == named["cycle_id"]
    assert cycles["status"] == "success"
    assert [one["cycle_id"] for one in cycles["cycles"]] == [named["cycle_id"], typeless["cycle_id"]]
    newest = cycles["cycles"][0]
    assert newest.pop("training_logs")
    assert newest == {
        "cycle_id": named["cycle_id"],
        "model_name": "ChitChatLLM_v2",
        "learning_opportunities": [first],
        "status": "scheduled",
        "start_time": "2090-01-02T03:04:05",
        "end_time": None,
        "resource_allocation": {"gpu_id": 0, "vram_mb": 8192},
        "hyperparameters": {"learning_rate": 0.001, "epochs": 3, "batch_size": 8},
    }

    before = house.ask(LOS, {"action": "get_stats"})["metrics"]
    assert set(before) == {"cycles_created", "cycles_completed", "cycles_failed", "opportunities_received"}
    processed = house.ask(LOD, {"action": "mark_processed", "opportunity_id": first})
    done = house.ask(LOS, {"action": "get_training_cycles", "limit": 1})["cycles"][0]
    after = house.ask(LOS, {"action": "get_stats"})["metrics"]

    assert processed["status"] == "success" and processed["message"]
    assert done["status"] == "completed" and done["end_time"] is not None
    assert after["cycles_completed"] == before["cycles_completed"] + 1
    figures = house.health(LOS)["agent_specific_metrics"]
    assert figures["cycles_created"] == figures["training_cycle_count"] == after["cycles_created"]
    assert figures["opportunities_received"] == after["opportunities_received"] >= 2


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"action": "new_learning_opportunity"}, "Missing opportunity_id"),
        ({"opportunity_id": "seven"}, "opportunity_id 'seven' is no UUID"),
        ({"score": 1}, "Unknown action: None"),
        ({"action": "get_training_cycles", "limit": "many"}, "limit must be a number, not 'many'"),
    ],
)
def test_orchestration_refuses_what_is_no_opportunity(house: LegacyHouse, request_: dict[str, Any], words: str) -> None:
    """With a text."""
    assert house.ask(LOS, request_) == failure(words)


def top(house: LegacyHouse, **more: Any) -> list[dict[str, Any]]:
    """What get_top_opportunities shows."""
    reply = house.ask(LOD, {"action": "get_top_opportunities", **more})
    assert set(reply) == {"status", "opportunities"} and reply["status"] == "success"
    found: list[dict[str, Any]] = reply["opportunities"]
    return found


def test_opportunities_are_listed_by_score_and_can_be_marked_as_processed(house: LegacyHouse) -> None:
    """In six fields each, of one category where it is named."""
    ids = {score: str(uuid.uuid4()) for score in (0.75, 0.95, 0.85)}
    for score, opportunity_id in ids.items():
        house.ask(LOS, {"opportunity_id": opportunity_id, "score": score, "category": "ranking"})

    found = top(house, category="ranking")
    one = found[0]
    marked = house.ask(LOD, {"action": "mark_processed", "opportunity_id": one["id"]})

    assert [each["score"] for each in found] == sorted((each["score"] for each in found), reverse=True)
    assert list(one) == ["id", "source", "score", "category", "created_at", "processed"]
    assert (one["category"], one["processed"]) == ("ranking", False)
    assert marked["status"] == "success"
    assert [each["processed"] for each in top(house, category="ranking") if each["id"] == one["id"]] == [True]
    assert len(top(house, limit=1)) == 1
    assert house.ask(LOD, {"action": "mark_processed"}) == failure("Missing opportunity_id parameter")
    unknown = house.ask(LOD, {"action": "mark_processed", "opportunity_id": "nobody"})
    assert unknown["status"] == "error" and "nobody" in unknown["message"]


def kept_by_the_detector(house: LegacyHouse) -> int:
    """Interactions that it found worthwhile since its start."""
    count: int = house.health(LOD)["agent_specific_metrics"]["valuable_opportunities"]
    return count


def until_heard(house: LegacyHouse, publisher: zmq.Socket[bytes]) -> None:
    """Say a worthwhile interaction, and one that is none, until the detector has kept one more."""
    before = kept_by_the_detector(house)

    def is_heard() -> bool:
        publisher.send_json({"type": "interaction", "user_input": "Hello", "assistant_response": "Hello"})
        publisher.send_json({"type": "interaction", "user_input": WORTHWHILE, "assistant_response": LONG_ANSWER})
        return kept_by_the_detector(house) > before

    until(is_heard, "the interaction to be heard")


def test_a_publisher_that_binds_and_one_that_connects_are_both_heard(house: LegacyHouse, publisher: int) -> None:
    """The one comes late on the port the detector waits for; only what is worthwhile is kept, and told to orchestration."""
    with zmq.Context() as context, context.socket(zmq.PUB) as bound, context.socket(zmq.PUB) as connected:
        for one in (bound, connected):
            one.setsockopt(zmq.LINGER, 0)
        bound.bind(f"tcp://127.0.0.1:{publisher}")
        until_heard(house, bound)
        bound.unbind(f"tcp://127.0.0.1:{publisher}")
        connected.connect(f"tcp://127.0.0.1:{house.port(LOD, 'errors')}")
        until_heard(house, connected)

    # What is said twice is one opportunity.
    (kept,) = [one for one in top(house, limit=1_000) if one["source"] == "learning_opportunity_detector"]
    assert (kept["score"], kept["category"]) == (pytest.approx(0.895), "explicit_correction")
    cycles = house.ask(LOS, {"action": "get_training_cycles", "limit": 100})["cycles"]
    assert kept["id"] in {id for one in cycles for id in one["learning_opportunities"]}
    stats = house.ask(LOD, {"action": "get_stats"})["stats"]
    assert set(stats) == {"monitored_events", "processed_items", "valuable_opportunities", "buffer_size"}
    assert stats["monitored_events"] >= 2 and stats["processed_items"] >= 2 and stats["valuable_opportunities"] >= 1
    assert house.health(LOD)["agent_specific_metrics"]["db_connected"] is True


# ActiveLearningMonitor -----------------------------------------------------------------------------------------------


def subscribed(house: LegacyHouse, prefix: bytes) -> zmq.Socket[bytes]:
    """A subscriber to topics of one beginning that surely hears."""
    listener = house.socket(zmq.SUB, ALM, "events")
    listener.setsockopt(zmq.RCVTIMEO, 100)
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        house.ask(ALM, {"action": "start", "parameters": {}})
        try:
            listener.recv_multipart()
            break
        except zmq.Again:
            continue
    listener.setsockopt(zmq.UNSUBSCRIBE, b"")
    listener.setsockopt(zmq.SUBSCRIBE, prefix)
    listener.setsockopt(zmq.RCVTIMEO, int(WAIT_S * 1000))
    return listener


def test_the_monitors_calls_and_what_subscribers_hear_of_them(house: LegacyHouse) -> None:
    """From the start of a session to its summary, with one frame per event."""
    listener = subscribed(house, b"LEARNING_")

    def ask(**request: Any) -> Any:
        return house.ask(ALM, request)

    started = ask(action="start", parameters={"batch_size": 8})
    session_id = started["session_id"]
    for accuracy in (0.5, 0.6, 0.7, 0.96):
        added = ask(action="add_metric", session_id=session_id, metric_type="accuracy", value=accuracy)
        assert added == {"status": "success", "added": True}
    status = ask(action="status", session_id=session_id)
    ended = ask(action="end", session_id=session_id)

    heard: dict[str, list[dict[str, Any]]] = {}
    while "LEARNING_SESSION_END" not in heard:
        (frame,) = listener.recv_multipart()
        topic, _, text = frame.decode().partition(" ")
        if (told := json.loads(text))["session_id"] == session_id:
            heard.setdefault(topic, []).append(told)
    listener.close(0)

    assert started["status"] == "success"
    name, digits, at = session_id.rsplit("_", 2)
    assert (name, len(digits)) == ("learning_session", 8) and int(at) > 0
    assert {name: type(value) for name, value in status.items()} == {
        "status": str,
        "session_id": str,
        "phase": str,
        "duration": float,
        "metric_count": int,
        "recent_trends": dict,
        "performance_indicators": dict,
    }
    assert (status["phase"], status["metric_count"]) == ("consolidation", 4)
    assert status["performance_indicators"]["session_health"] == "good"
    assert ended["summary"]["performance_summary"]["accuracy"]["improvement"] == pytest.approx(0.46)
    assert (ended["summary"]["total_metrics"], ended["summary"]["final_phase"]) == (4, "consolidation")
    assert {topic: len(told) for topic, told in heard.items()} == {
        "LEARNING_SESSION_START": 1,
        "LEARNING_METRIC": 4,
        "LEARNING_PHASE_TRANSITION": 1,
        "LEARNING_CONVERGENCE": 1,
        "LEARNING_SESSION_END": 1,
    }
    assert heard["LEARNING_SESSION_START"][0]["parameters"] == {"batch_size": 8}
    assert heard["LEARNING_SESSION_END"][0]["summary"] == ended["summary"]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"action": "status", "session_id": "nobody"}, "Session not found"),
        ({"action": "end", "session_id": "nobody"}, "Session not found"),
        ({"action": "end"}, "Missing session_id"),
        ({"action": "status"}, "Missing session_id"),
    ],
)
def test_the_monitor_knows_no_other_sessions(house: LegacyHouse, request_: dict[str, Any], words: str) -> None:
    """In its words."""
    assert house.ask(ALM, request_) == failure(words)


def test_a_measurement_that_cannot_be_taken_is_told(house: LegacyHouse) -> None:
    """Nothing was added."""
    session_id = house.ask(ALM, {"action": "start"})["session_id"]

    for request in (
        {"session_id": session_id, "metric_type": "mood", "value": 1},
        {"session_id": session_id, "metric_type": "loss"},
        {"session_id": session_id, "metric_type": "loss", "value": float("nan")},
        {"session_id": "nobody", "metric_type": "loss", "value": 1},
    ):
        reply = house.ask(ALM, {"action": "add_metric", **request})
        assert reply["status"] == "error"
        assert reply.get("added", False) is False
    figures = house.ask(ALM, {"action": "statistics"})
    assert set(figures) == {
        "status",
        "timestamp",
        "active_sessions",
        "performance_stats",
        "optimization_strategies",
        "metric_history_size",
        "monitoring_config",
    }
    assert figures["monitoring_config"] == {"interval": 30, "history_limit": 1000, "optimization_threshold": 0.95}
    assert set(figures["performance_stats"]) == {
        "total_sessions",
        "successful_sessions",
        "failed_sessions",
        "avg_convergence_time",
        "optimization_interventions",
        "performance_improvements",
    }


# LearningAdjusterAgent -----------------------------------------------------------------------------------------------

CONFIG = {
    "name": "temperature",
    "type": "custom",
    "min_value": 0.0,
    "max_value": 1.0,
    "current_value": 0.5,
    "step_size": 0.1,
    "description": "how bold",
}


def test_parameters_are_registered_adjusted_and_optimized(house: LegacyHouse) -> None:
    """`ok` for three of the actions, `success` for the fourth."""

    def ask(**request: Any) -> Any:
        return house.ask(ADJUSTER, request)

    assert ask(action="optimize_parameters", metric_name="reward") == failure("No performance history available")
    assert ask(action="register_parameter", config={**CONFIG, "metadata": {"a": 1}}) == {"status": "ok"}
    assert ask(action="adjust_parameter", parameter_name="temperature", new_value=0.95) == {"status": "ok"}
    for value in (1.5, -0.1):
        assert ask(action="adjust_parameter", parameter_name="temperature", new_value=value) == {"status": "error"}
    assert ask(action="adjust_parameter", parameter_name="nobody", new_value=0.5) == {"status": "error"}
    for step in range(4):
        recorded = {"temperature": step / 10, "optimizer": "adam", "constant": 1}
        assert ask(action="record_performance", metric_name="reward", value=step, parameters=recorded) == {
            "status": "ok"
        }
    assert ask(action="record_performance", metric_name="reward", value=1) == {"status": "ok"}

    optimized = ask(action="optimize_parameters", metric_name="reward")

    assert optimized["status"] == "success"
    assert optimized["adjustments"] == {
        "temperature": {
            "current_value": 0.95,
            "suggested_value": 1.0,
            "correlation": pytest.approx(1.0),
            "confidence": pytest.approx(1.0),
        }
    }


@pytest.mark.parametrize("key", list(CONFIG))
def test_a_parameter_without_one_of_its_keys_is_refused(house: LegacyHouse, key: str) -> None:
    """The key in quotes."""
    config = {name: value for name, value in CONFIG.items() if name != key}

    assert house.ask(ADJUSTER, {"action": "register_parameter", "config": config}) == failure(f"'{key}'")


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"action": "register_parameter"}, "'config'"),
        ({"action": "register_parameter", "config": {**CONFIG, "type": "mood"}}, "'mood' is not a valid ParameterType"),
        ({"action": "register_parameter", "config": {**CONFIG, "min_value": "low"}}, "min_value must be a number"),
        ({"action": "register_parameter", "config": {**CONFIG, "current_value": 2}}, "current_value"),
        ({"action": "adjust_parameter", "new_value": 1}, "'parameter_name'"),
        ({"action": "adjust_parameter", "parameter_name": "x"}, "'new_value'"),
        ({"action": "record_performance", "value": 1}, "'metric_name'"),
        ({"action": "record_performance", "metric_name": "x"}, "'value'"),
        ({"action": "optimize_parameters"}, "'metric_name'"),
        ({"action": "analyze_agent"}, "Missing required parameters"),
        ({"action": "apply_adjustment", "agent": "x"}, "Missing required parameters"),
        ({"action": "apply_adjustment", "adjustment": {"parameter": "x"}}, "Missing required parameters"),
    ],
)
def test_the_adjuster_says_what_is_wrong(house: LegacyHouse, request_: dict[str, Any], words: str) -> None:
    """The field, or what was wrong with it."""
    reply = house.ask(ADJUSTER, request_)

    assert reply["status"] == "error" and words in reply["message"]


def test_an_agent_that_does_badly_gets_suggestions_and_one_nobody_reported_on_a_warning(house: LegacyHouse) -> None:
    """From the outcomes that were reported of it."""
    for number in range(10):
        reported = TrustRecord(user_id="SlowAgent", success=number % 2 == 0, response_time_s=1.5)
        house.bus("trust.record", reported)

    bad = house.ask(ADJUSTER, {"action": "analyze_agent", "agent": "SlowAgent"})
    unknown = house.ask(ADJUSTER, {"action": "analyze_agent", "agent": "Nobody"})
    own = house.ask(ADJUSTER, {"action": "analyze_agent", "agent": MANAGER})

    assert set(bad) == {"status", "message", "suggestions"} and bad["status"] == "success"
    assert [one["type"] for one in bad["suggestions"]] == ["performance", "reliability", "trust"]
    assert (unknown["status"], unknown["suggestions"]) == ("warning", [])
    assert own["status"] == "success"


def test_an_adjustment_moves_a_registered_parameter_and_says_where_there_is_none(house: LegacyHouse) -> None:
    """Success in either case, as it always was; what was done is in the message."""
    house.ask(ADJUSTER, {"action": "register_parameter", "config": {**CONFIG, "name": "Chat.rate"}})
    request = {"action": "apply_adjustment", "agent": "Chat"}

    moved = house.ask(ADJUSTER, {**request, "adjustment": {"parameter": "rate", "suggested_value": "decrease"}})
    nowhere = house.ask(ADJUSTER, {**request, "adjustment": {"parameter": "mood", "suggested_value": "increase"}})
    senseless = house.ask(ADJUSTER, {**request, "adjustment": {"parameter": "rate", "suggested_value": None}})

    assert moved == {"status": "success", "message": "Chat.rate of Chat is 0.4 now"}
    for reply in (nowhere, senseless):
        assert reply["status"] == "success" and reply["message"].startswith("Nothing was changed")


# Programs as they were written ---------------------------------------------------------------------------------------


class OldTrainingClient:
    """Asks one old port over a REQ socket of its own, in text frames, and gives up after five seconds."""

    def __init__(self, context: zmq.Context[Any], port: int) -> None:
        self._socket = context.socket(zmq.REQ)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVTIMEO, 5_000)
        self._socket.connect(f"tcp://127.0.0.1:{port}")

    def __call__(self, action: str, **fields: Any) -> dict[str, Any]:
        """A reply that must say success."""
        self._socket.send_string(json.dumps({"action": action, **fields}))
        reply: dict[str, Any] = json.loads(self._socket.recv_string())
        assert reply["status"] == "success", reply
        return reply


def test_a_program_that_trains_itself_runs_as_it_did(house: LegacyHouse) -> None:
    """It books a cycle, trains by the rate it is told, and reads where it stands."""
    with zmq.Context() as context:
        cycles = OldTrainingClient(context, house.port(STO))
        manager = OldTrainingClient(context, house.port(MANAGER))
        cycle_id = cycles("create_cycle", agent_id="OldAgent", config={"resources": {"cpu": 20, "memory": 2}})[
            "cycle_id"
        ]
        cycles("start_cycle", cycle_id=cycle_id)
        for step in (1, 2, 3, 4):
            told = manager("update_session", session_id=cycle_id, progress=step / 4, metrics={"loss": 1 / step})
            assert told["learning_rate"] > 0
            at = cycles("get_status", cycle_id=cycle_id)["cycle"]
            assert (at["progress"], at["metrics"]["loss"]) == (step / 4, 1 / step)
        context.destroy(linger=0)

    assert at["status"] == "completed"


# Last: it starts another house in the same home ----------------------------------------------------------------------


def test_what_runs_and_what_was_learned_outlives_a_restart(tmp_path: Path, publisher: int) -> None:
    """Cycles with their resources, jobs, the manager's sessions with the rate, and training cycles."""
    with LegacyHouse(tmp_path, agents(publisher), services=("memory", "models", "learning")) as first:
        first.bus("learning.schedule.set", ScheduleSet(is_paused=True))
        cycle_id = new_cycle(first, resources={"memory": 10})
        first.ask(STO, {"action": "start_cycle", "cycle_id": cycle_id})
        job_id = new_job(first)
        first.ask(MANAGER, {"action": "create_session", "model_id": "m", "session_id": "s"})
        told = first.ask(LOS, {"opportunity_id": str(uuid.uuid4()), "score": 0.8, "category": "c"})
        waiting = new_job(first, "olympus-demo")
        assert "waits" in first.ask(LFT, {"action": "start_job", "job_id": waiting})["message"]
        examples = [{"prompt": f"What is {number} of {number * 7}?", "answer": f"{number}."} for number in range(100)]
        first.bus("learning.opportunity.add", {"title": "n", "model": "olympus-demo", "examples": examples})

    with LegacyHouse(tmp_path, agents(publisher), services=("memory", "models", "learning")) as second:
        until(lambda: second.ask(STO, {"action": "health_check"})["active_cycles"] == 1, "the cycle that still runs")
        # Nobody asks for it again.
        until(
            lambda: [one.job_id for one in second.bus("learning.training.list").jobs] == [waiting],
            "the job that waited",
        )
        second.bus("learning.training.stop", TrainingStop(job_id=waiting))
        assert cycle(second, cycle_id)["status"] == "running"
        other = new_cycle(second, resources={"memory": 10})
        refused = second.ask(STO, {"action": "start_cycle", "cycle_id": other})
        assert refused["message"] == "Insufficient resources"
        assert job_of(second, job_id)["status"] == "pending"
        assert second.ask(MANAGER, {"action": "get_session", "session_id": "s"})["status"] == "success"
        cycles = second.ask(LOS, {"action": "get_training_cycles"})["cycles"]
        assert [one["cycle_id"] for one in cycles] == [told["cycle_id"]]
