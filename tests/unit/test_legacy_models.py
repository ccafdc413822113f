"""Models in the words of the replaced agents: entries, choices, figures, and what cannot run is an error."""

from __future__ import annotations

import time
from typing import Any

import pytest

from bus.settings import LegacySettings, Settings
from schemas.bodies.model import (
    Chat,
    Generate,
    Generation,
    ModelInfo,
    Models,
    ModelStatsReply,
    Timings,
    Usage,
)
from schemas.bodies.model_trials import Evaluation, MetricEntry, MetricScore, Routed
from schemas.bodies.resource import DeviceStatus, GpuStatusReply
from schemas.errors import BusError, NotFound, NoWorker, Overloaded, Unprocessable
from workers.gateway.legacy.agent import Agent, Fields, Refused
from workers.gateway.legacy.agents import (
    evaluation_framework,
    gguf_models,
    model_manager,
    model_suite,
    predictive_loader,
)
from workers.gateway.legacy.agents.generation import generated, is_rendered, joined, options_of
from workers.gateway.legacy.agents.host import MIB, Memory
from workers.gateway.legacy.agents.model_entries import (
    Registry,
    capabilities_of,
    entry_of,
    is_model_name,
    loaded_object,
    select,
    status_object,
    suite_entry_of,
    vram_of,
)
from workers.gateway.legacy.agents.model_tally import Tally
from workers.gateway.ports import plan

AGENTS = (
    gguf_models.AGENT,
    model_manager.AGENT,
    predictive_loader.AGENT,
    evaluation_framework.AGENT,
    model_suite.AGENT,
)


def model(name: str = "small", **more: Any) -> ModelInfo:
    given: dict[str, Any] = {
        "name": name,
        "family": "llama",
        "format": "gguf",
        "quantisation": "Q4_0",
        "parameters": 1_000_000,
        "size_bytes": 600 * MIB,
        "context_tokens": 4096,
        "state": "available",
        "capabilities": ["generate", "chat"],
        "backend": "llama.cpp",
        "memory_bytes": 700 * MIB,
        **more,
    }
    return ModelInfo(**given)


def registry(*models: ModelInfo, memory: Memory = Memory(), used_at: dict[str, float] | None = None) -> Registry:  # noqa: B008
    return Registry(models, used_at or {}, vram_of(memory), Settings())


GPU = DeviceStatus(
    device="gpu0",
    name="a card",
    source="declared",
    state="ok",
    total_bytes=8_000 * MIB,
    used_bytes=1_000 * MIB,
    reserved_bytes=0,
    free_bytes=7_000 * MIB,
)


class StubHouse:
    """Answers operations from a table; an exception in it is raised. Notes what was asked."""

    def __init__(self, **replies: Any) -> None:
        self.replies = {
            "model_list": Models(models=[model()], default="small"),
            "model_stats": ModelStatsReply(models=[]),
            "gpu_status": GpuStatusReply(devices=[]),
            **replies,
        }
        self.asked: list[tuple[str, Any]] = []
        self.agents = {agent.name: agent for agent in AGENTS}
        self.settings = Settings()
        self.started_at = time.time()
        self._state: Any = None
        self.published: list[bytes] = []
        self.outcomes: list[str] = []

    async def ask(self, subject: str, body: Any = None, *, timeout_s: float | None = None) -> Any:
        self.asked.append((subject, body))
        reply = self.replies[subject.replace(".", "_")]
        reply = reply(body) if callable(reply) else reply
        if isinstance(reply, BusError):
            raise reply
        return reply

    async def is_up(self, service: str) -> bool:
        return False

    def state(self, name: str, make: Any) -> Any:
        self._state = self._state or make()
        return self._state

    def requests_of(self, name: str) -> int:
        return 7

    def note(self, name: str, outcome: str) -> None:
        self.outcomes.append(outcome)

    def on_failure(self, agent: Agent, error: Exception) -> None:
        raise error


async def answer(agent: Agent, request: Any, **replies: Any) -> Any:
    return await agent.answer(request, StubHouse(**replies))  # type: ignore[arg-type]


def generation(body: Any) -> Generation:
    timings = Timings(prompt_s=0.1, generate_s=0.1, first_token_s=0.1, tokens_per_s=10.0)
    usage = Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=2)
    return Generation(model="small", text="Hi.", token_ids=[1, 2], finish_reason="stop", usage=usage, timings=timings)


# Entries


def test_an_entry_has_every_key_of_the_old_registry() -> None:
    """Clients index them without asking."""
    entry = entry_of(model(keep_alive_s=60.0), registry())
    assert set(entry) == {
        "model_id", "display_name", "model_path", "n_ctx", "n_gpu_layers", "n_threads", "verbose",
        "estimated_vram_mb", "capabilities", "idle_timeout_seconds", "loaded",
    }  # fmt: skip
    assert (entry["estimated_vram_mb"], entry["idle_timeout_seconds"], entry["loaded"]) == (700.0, 60.0, False)


def test_an_entry_of_a_used_model_says_when() -> None:
    """`last_used` and `idle_time` are there once it was used."""
    entry = entry_of(model(), registry(used_at={"small": time.time() - 5}))
    assert 5 <= entry["idle_time"] < 60
    assert entry["last_used"] < time.time()


def test_the_path_of_an_entry_is_relative_to_the_models_folder_and_absolute_for_the_suite() -> None:
    """A file elsewhere is told by its name, a model of an endpoint by nothing."""
    folder = Settings().path("models")
    inside = model(path=str(folder / "gguf" / "a.gguf"))
    assert entry_of(inside, registry())["model_path"] == "gguf/a.gguf"
    assert suite_entry_of(inside, registry())["model_path"] == str(folder / "gguf" / "a.gguf")
    assert entry_of(model(path="/elsewhere/b.gguf"), registry())["model_path"] == "b.gguf"
    assert entry_of(model(path=""), registry())["model_path"] == ""


@pytest.mark.parametrize(
    ("state", "word"),
    [
        ("loaded", "online"),
        ("available", "available_not_loaded"),
        ("loading", "available_not_loaded"),
        ("unusable", "error"),
    ],
)
def test_the_suite_words_each_state(state: str, word: str) -> None:
    """Four states of ours are three old words."""
    assert suite_entry_of(model(state=state), registry())["status"] == word


def test_abilities_are_told_in_both_words() -> None:
    """Old clients look for text-generation and code-generation."""
    assert capabilities_of(model(capabilities=["generate", "code"])) == [
        "generate",
        "code",
        "text-generation",
        "code-generation",
    ]


@pytest.mark.parametrize(
    ("name", "status"),
    [("small", "available_not_loaded"), ("up", "loaded"), ("also", "loaded"), ("broken", "error"), ("no", "not_found")],
)
def test_the_status_object_of_each_kind_of_model(name: str, status: str) -> None:
    """By name or alias; unknown ones are told as such, not refused."""
    models = registry(
        model(), model("up", state="loaded", aliases=["also"], loaded_at=5.0), model("broken", state="unusable")
    )
    told = status_object(name, models)
    assert told["status"] == status
    assert set(told) == {"status", "model_info", "state", "vram_usage"}


def test_a_model_in_main_memory_takes_no_video_memory() -> None:
    """Video memory is what a GPU has; what it takes in main memory stands beside."""
    in_ram = loaded_object(model(state="loaded", device="cpu"), registry())
    on_gpu = loaded_object(model(state="loaded", device="gpu0"), registry())
    assert (in_ram["vram_usage_mb"], in_ram["memory_mb"]) == (0.0, 700.0)
    assert on_gpu["vram_usage_mb"] == 700.0
    assert in_ram["device"] == on_gpu["device"] == "MainPC"


def test_video_memory_is_in_mb_and_adds_up() -> None:
    """Used is what is not free, whoever has it."""
    assert vram_of(Memory(8_000 * MIB, 1_000 * MIB, 3_000 * MIB)) == (8_000.0, 3_000.0, 5_000.0)
    assert vram_of(Memory()) == (0.0, 0.0, 0.0)


# Choosing


def test_selection_goes_able_then_large_enough_then_loaded_then_small() -> None:
    """The order of the old agent, one step after the other."""
    code = model("code", capabilities=["generate", "code"], context_tokens=2048)
    tiny = model("tiny", memory_bytes=MIB)
    up = model("up", state="loaded", memory_bytes=900 * MIB)
    wide = model("wide", context_tokens=32_768, memory_bytes=5_000 * MIB)
    models = registry(code, tiny, up, wide)
    assert [
        (select(models, task, context) or model("none")).name
        for task, context in [
            ("code-generation", 0),
            ("CODE_GENERATION", 99_999),
            ("chat", 0),
            ("chat", 8_000),
            ("poetry", 0),
            ("poetry", 99_999),
        ]
    ] == ["code", "code", "up", "wide", "up", "wide"]


def test_selection_prefers_what_fits_into_the_gpu() -> None:
    """Of two that are not loaded the one that fits, though it is not the smaller in name."""
    big, fits = model("big", memory_bytes=500 * MIB, context_tokens=4096), model("fits", memory_bytes=90 * MIB)
    assert select(registry(big, fits, memory=Memory(1_000 * MIB, 900 * MIB, 0)), "chat", 0) == fits


def test_nothing_is_selected_where_no_model_can_be_used() -> None:
    """An unusable file is no candidate."""
    assert select(registry(model(state="unusable")), "chat", 0) is None
    assert select(registry(), "chat", 0) is None


@pytest.mark.parametrize(("name", "is_one"), [("a/b:c", True), ("", False), ("two words", False), ("x" * 129, False)])
def test_what_may_be_a_model_name(name: str, is_one: bool) -> None:
    """What the operations would refuse is an unknown model to old clients."""
    assert is_model_name(name) is is_one


# Asking


@pytest.mark.parametrize(
    ("prompt", "is_one"),
    [
        ("What is 7 + 5?", False),
        ("User: hi\nAssistant:", False),
        ("# a title\n\nand text", False),
        ("<|user|>hi<|end|><|assistant|>", True),
        ("[INST] hi [/INST]", True),
        ("<start_of_turn>user\nhi", True),
        ("Below is a task.\n\n### Instruction:\nsay hi", True),
    ],
)
def test_prompts_with_template_marks_are_rendered_already(prompt: str, is_one: bool) -> None:
    """Those go to the model as they stand."""
    assert is_rendered(prompt) is is_one


def test_system_prompt_and_prompt_are_parted_by_an_empty_line() -> None:
    """With labels only where the old suite put them."""
    assert joined("", "b", is_labelled=True) == "b"
    assert joined("a", "b", is_labelled=False) == "a\n\nb"
    assert joined("a", "b", is_labelled=True) == "System: a\n\nUser: b\n\nAssistant:"


def test_options_are_brought_into_range() -> None:
    """What old clients sent and a backend clamped is no error."""
    options = options_of(
        Fields(max_tokens=0, temperature=-1, top_p="0", stop=["", "x" * 500], conversation_id=5, foo=1), max_tokens=256
    )
    assert (options.max_tokens, options.temperature, options.top_p) == (1, 0.0, 1e-6)
    assert (options.stop, options.conversation_id) == (["x" * 256], "5")
    assert options_of(Fields(stop="END"), max_tokens=256) == (256, 0.7, 0.95, ["END"], None)


@pytest.mark.parametrize("bad", [{"max_tokens": "many"}, {"temperature": "hot"}, {"stop": 7}])
def test_options_that_are_no_numbers_are_refused_by_name(bad: dict[str, Any]) -> None:
    """The text names the field."""
    with pytest.raises(Refused, match=next(iter(bad))):
        options_of(Fields(bad), max_tokens=1)


async def ask_model(names: list[str], prompt: str = "hi", **replies: Any) -> list[tuple[str, Any]]:
    """What was asked of the bus for one answer."""
    house = StubHouse(model_chat=generation, model_generate=generation, **replies)
    await generated(house, names, prompt, options_of(Fields(), max_tokens=9), system="be kind")  # type: ignore[arg-type]
    return [(subject, body) for subject, body in house.asked if subject in ("model.chat", "model.generate")]


async def test_a_model_with_a_template_is_asked_as_a_chat() -> None:
    """Its own template, the system prompt as a message."""
    [(subject, body)] = await ask_model(["small"])
    assert isinstance(body, Chat)
    assert (subject, body.model) == ("model.chat", "small")
    assert [message.role for message in body.messages] == ["system", "user"]


@pytest.mark.parametrize("why", ["base model", "rendered prompt"])
async def test_what_has_no_template_to_apply_goes_as_it_stands(why: str) -> None:
    """A base model, and a prompt that its client rendered."""
    listed = Models(models=[model(capabilities=["generate"] if why == "base model" else ["generate", "chat"])])
    prompt = "hi" if why == "base model" else "<|user|>hi"
    [(_, body)] = await ask_model(["small"], prompt, model_list=listed)
    assert isinstance(body, Generate)
    assert body.prompt == f"be kind\n\n{prompt}"


async def test_an_unknown_preference_means_fast_and_without_one_the_default() -> None:
    """The old agent's rule, then the setting models.default."""

    def route(body: Any) -> Any:
        if body.profile != "fast":
            return NotFound("no profile")
        return Routed(model="small", profile="fast", reason="", is_loaded=True, passed_over=[])

    [(_, body)] = await ask_model(["my favourite", "fast"], model_route=route)
    assert body.model == "fast"
    [(_, body)] = await ask_model(["nobody", "fast"], model_route=NotFound("no profile"))
    assert body.model is None


async def test_a_model_that_cannot_run_is_an_error_and_no_placeholder() -> None:
    """Also for `generate`, where the old agent made up a text."""
    for agent, request in [
        (gguf_models.AGENT, {"action": "generate_text", "model_id": "small", "prompt": "hi"}),
        (model_manager.AGENT, {"action": "generate", "prompt": "hi", "model_pref": "small"}),
        (model_suite.AGENT, {"action": "generate_text", "model_id": "small", "prompt": "hi"}),
    ]:
        reply = await answer(agent, request, model_chat=Unprocessable("small cannot be loaded: broken"))
        assert reply["status"] == "error"
        assert reply["error"] == reply["message"] == "small cannot be loaded: broken"
        assert "text" not in reply and "response_text" not in reply


async def test_the_preference_for_which_no_model_will_do_is_an_error() -> None:
    """It does not quietly become another one."""
    reply = await answer(
        model_manager.AGENT,
        {"action": "generate", "prompt": "hi", "model_pref": "quality"},
        model_route=Unprocessable("no model will do for the profile quality"),
    )
    assert (reply["status"], reply["message"]) == ("error", "no model will do for the profile quality")


# Batches of sounds


async def test_a_batch_of_sounds_fails_with_an_error_for_each() -> None:
    """Nothing here hears, and an empty text is not passed off as one that was heard."""
    params = {"batch_mode": True, "batch_data": [{"audio_data": [0.1, 0.2]}, {}]}
    reply = await answer(model_manager.AGENT, {"action": "generate", "params": params})
    assert reply["status"] == "error"
    assert "no" in reply["message"] and "speech model" in reply["message"]
    assert [(one["text"], one["confidence"]) for one in reply["partial_results"]] == [("", 0.0)] * 2
    assert all(one["error"] for one in reply["results"])


async def test_items_without_a_sound_have_their_own_error_in_a_batch_that_was_done() -> None:
    """As the old agent answered them."""
    reply = await answer(
        model_manager.AGENT, {"action": "generate", "params": {"batch_mode": True, "batch_data": [{}, "x"]}}
    )
    assert (reply["status"], reply["batch_size"]) == ("success", 2)
    assert set(reply) == {"status", "results", "batch_size", "processing_time", "model_used"}
    assert all(one["error"] for one in reply["results"])


@pytest.mark.parametrize(
    "request_",
    [
        {"action": "generate_text", "model_id": "whisper", "audio_data": [0.1]},
        {"action": "generate_speech", "model_id": "xtts", "text": "hello"},
    ],
)
async def test_speech_is_refused_in_words(request_: dict[str, Any]) -> None:
    """The speech services read the text of the error."""
    reply = await answer(model_manager.AGENT, request_)
    assert (reply["status"], "speech model" in reply["message"]) == ("error", True)


# The bare request


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFound("no such model"), "MODEL_NOT_FOUND"),
        (Overloaded("no room", needed_bytes=5, free_bytes=1), "INSUFFICIENT_VRAM"),
        (Unprocessable("too big", needed_bytes=9, limit_bytes=1), "INSUFFICIENT_VRAM"),
        (Unprocessable("broken"), "PROCESSING_ERROR"),
        (NoWorker("nobody"), "PROCESSING_ERROR"),
    ],
)
async def test_a_load_that_fails_has_its_code(error: BusError, code: str) -> None:
    """Speech agents decide by it; the request's number comes back."""
    reply = await answer(model_manager.AGENT, {"model_id": "whisper", "request_id": "r1"}, model_load=error)
    assert (reply["status"], reply["error_code"]) == ("ERROR_LOADING_MODEL", code)
    assert (reply["request_id"], reply["model_id"], reply["error_message"]) == ("r1", "whisper", error.message)


@pytest.mark.parametrize("request_", [{"request_id": "r1"}, {"model_id": "", "request_id": "r1"}, {"context": {}}])
async def test_a_bare_request_without_a_model_says_so(request_: dict[str, Any]) -> None:
    """And has no `model_id` then."""
    reply = await answer(model_manager.AGENT, request_)
    assert (reply["error_code"], reply["request_id"]) == ("MISSING_MODEL_ID", request_.get("request_id"))
    assert "model_id" not in reply


async def test_what_has_no_verb_at_all_is_an_unknown_command() -> None:
    """The last of the four dialects."""
    reply = await answer(model_manager.AGENT, {"hello": 1})
    assert (reply["status"], bool(reply["message"])) == ("ERROR", True)


# GPUs


async def test_process_tells_the_memory_of_the_gpus() -> None:
    """All figures of the old reply, from the devices."""
    loaded = Models(models=[model(state="loaded", device="gpu0")])
    reply = await answer(
        model_manager.AGENT,
        {"command": "PROCESS", "type": "get_memory_status"},
        gpu_status=GpuStatusReply(devices=[GPU]),
        model_list=loaded,
    )
    assert reply == {
        "status": "success",
        "device": "cuda",
        "total_gpu_memory_mb": 8_000.0,
        "vram_budget_mb": 8_000.0,
        "mma_estimated_used_vram_mb": 1_000.0,
        "mma_estimated_free_vram_mb_in_budget": 7_000.0,
        "torch_allocated_vram_mb": 700.0,
        "torch_free_total_vram_mb": 7_000.0,
        "usage_percent_of_budget": 12.5,
        "loaded_model_instances": ["small"],
    }


def test_a_broadcast_is_one_object_with_what_is_loaded() -> None:
    """The keys that subscribers of 5572 read."""
    memory = Memory(8_000 * MIB, 1_000 * MIB, 0)
    update = model_manager.update_of(registry(model(state="loaded"), model("other"), memory=memory))
    assert (update["event"], update["loaded_models"], set(update["models"])) == (
        "model_status_update",
        ["small"],
        {"small", "other"},
    )
    assert update["vram_usage"] == {"total_budget_mb": 8_000.0, "used_mb": 1_000.0, "remaining_mb": 7_000.0}


async def test_health_says_when_no_model_service_is_there() -> None:
    """Each agent in its own word, with the text."""
    away = NoWorker("nobody serves model.list")
    gguf = await gguf_models.health(StubHouse(model_list=away))  # type: ignore[arg-type]
    assert (gguf["status"], gguf["error"]) == ("unhealthy", away.message)
    suite = await answer(model_suite.AGENT, {"action": "health_check"}, model_list=away)
    assert (suite["status"], suite["error"]) == ("degraded", away.message)
    command = await answer(model_manager.AGENT, {"command": "HEALTH_CHECK"}, model_list=away)
    assert command["status"] == "ERROR"
    socket = await model_suite.health_socket({}, StubHouse(model_list=away))  # type: ignore[arg-type]
    assert socket["status"] == "error"
    own = await model_manager.health_socket({}, StubHouse())  # type: ignore[arg-type]
    assert (own["status"], set(own["details"])) == ("error", {"status_message", "uptime_seconds"})


# Measurements and marks


def test_times_are_local_where_they_have_no_zone() -> None:
    """What a client writes it reads again, and a zone is understood."""
    text = "2025-08-19T12:30:00.250000"
    at = evaluation_framework.instant(text, "timestamp")
    assert at is not None and evaluation_framework.iso(at) == text
    assert evaluation_framework.instant("2025-08-19T12:30:00Z", "timestamp") == 1755606600.0
    assert evaluation_framework.instant(1755606600, "timestamp") == 1755606600.0
    assert evaluation_framework.instant(None, "timestamp") is None


@pytest.mark.parametrize("value", ["yesterday", True, [1], 1e20])
def test_what_is_no_time_is_refused_by_name(value: Any) -> None:
    """The text names field and value."""
    with pytest.raises(Refused, match="start_time"):
        evaluation_framework.instant(value, "start_time")


def test_a_measurement_comes_back_as_it_was_sent() -> None:
    """Its context is our details; without an id it gets a UUID."""
    sent = {
        "agent_name": "A",
        "metric_name": "m",
        "value": "0.5",
        "context": {"a": 1},
        "timestamp": "2025-01-02T03:04:05",
    }
    record = evaluation_framework.metric_record(Fields(sent))
    assert record.metric_id is not None and len(record.metric_id) == 36
    entry = MetricEntry(
        metric_id="i", agent=record.agent, metric=record.metric, value=record.value, at=record.at or 0, details={"a": 1}
    )
    told = evaluation_framework.metric_entry(entry)
    assert told["value"] == 0.5
    assert {key: told[key] for key in ("agent_name", "metric_name", "context", "timestamp")} == {
        key: sent[key] for key in ("agent_name", "metric_name", "context", "timestamp")
    }


def test_marks_become_scores_and_come_back() -> None:
    """Those that were not given stay absent, the comparison is kept whole."""
    record = evaluation_framework.evaluation_record(
        Fields(model_name="m", cycle_id="c", trust_score=0.5, accuracy=1, f1_score=None, comparison_data={"b": [1]})
    )
    assert record.scores == {"avg_latency_ms": 0.0, "trust_score": 0.5, "accuracy": 1.0}
    told = evaluation_framework.evaluation_entry(
        Evaluation(
            evaluation_id="e",
            model="m",
            suite="",
            status="done",
            started_at=1.0,
            finished_at=1.0,
            scores=[
                MetricScore(metric=name, mean=mean, low=mean, high=mean, n=1, method="recorded")
                for name, mean in record.scores.items()
            ],
            cases=0,
            errors=0,
            suite_sha256="",
            model_sha256=None,
            adapter=None,
            seeds=[],
            confidence=0.0,
            details={**record.details, "cycle_id": "c"},
        )
    )
    assert (told["trust_score"], told["accuracy"], told["f1_score"], told["avg_latency_ms"]) == (0.5, 1.0, None, 0.0)
    assert (told["cycle_id"], told["comparison_data"]) == ("c", {"b": [1]})


@pytest.mark.parametrize("trust", [-0.1, 1.1])
def test_a_mark_outside_its_range_is_refused(trust: float) -> None:
    """0 to 1, as the old model of it checked."""
    with pytest.raises(Refused, match="trust_score"):
        evaluation_framework.evaluation_record(Fields(model_name="m", cycle_id="c", trust_score=trust))


# What is counted


def test_uses_and_conversations_are_forgotten_after_an_hour() -> None:
    """And no more than fifty conversations are held."""
    tally = Tally()
    tally.use("a", 0.0)
    tally.use("a", 3_000.0)
    assert tally.uses(3_700.0) == {"a": 1}
    for number in range(60):
        tally.converse(str(number), 10.0 + number)
    tally.converse(None, 10.0)
    assert tally.conversations(70.0) == 50
    tally.forget("59")
    assert tally.conversations(70.0) == 49
    assert tally.conversations(70.0 + 3_600.0) == 0


# Ports


def test_on_7721_the_words_of_the_agent_go_before_those_of_the_suite() -> None:
    """There the two were compared; what only the suite knows it answers still."""
    planned, _ = plan(AGENTS, LegacySettings(enabled=True))
    shared = next(one for one in planned if one.port == 7721)
    assert (shared.agent, shared.sharers) == ("ModelManagerAgent", ("ModelManagerSuite",))
    assert model_manager.AGENT.understands({"action": "health_check"})
    assert not model_manager.AGENT.understands({"action": "predict_models"})


def test_every_port_of_the_model_agents_is_declared() -> None:
    """The numbers that clients have hard-coded."""
    assert {agent.name: (agent.ports, agent.health_ports, agent.event_ports) for agent in AGENTS} == {
        "GGUFModelManager": ((5575,), (5576,), ()),
        "ModelManagerAgent": ((5570, 5555, 7721), (5571,), (5572,)),
        "PredictiveLoader": ((5617,), (5618,), ()),
        "ModelEvaluationFramework": ((7220,), (7221,), ()),
        "ModelManagerSuite": ((7211, 7212, 7721), (8211,), ()),
    }
