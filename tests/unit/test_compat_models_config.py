"""The drop-in `models` package apart from the bus: old configurations, llama-cpp-python's shapes, who leaves memory."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from bus.settings import load_settings
from schemas.bodies.model import Generation, GenerationPart, ModelInfo, Timings, TokenChoice, ToolCall, Usage
from schemas.errors import BusError, Conflict, DeadlineExceeded, NotFound, NoWorker

ROOT = Path(__file__).resolve().parents[2]
COMPAT = ROOT / "scripts" / "compat"


def module(name: str) -> Any:
    """A module of the package, whose folder is on the path only while it is imported."""
    before = list(sys.path)
    sys.path.insert(0, str(COMPAT))
    try:
        return import_module(name)
    finally:
        sys.path[:] = before


config = module("models.config")
errors = module("models.errors")
integration = module("models.integration")
manager_module = module("models.model_manager")
places = module("models.places")
room = module("models.room")
shapes = module("models.shapes")

PHI = {"name": "phi", "type": "gguf", "path": "phi.gguf"}


def test_the_package_is_not_importable_from_the_repository_root() -> None:
    """Whoever works in the repository does not get it by accident."""
    result = subprocess.run([sys.executable, "-c", "import models"], cwd=ROOT, capture_output=True, check=False)

    assert b"No module named 'models'" in result.stderr


@pytest.mark.parametrize(
    "tree",
    [
        {"models": [PHI]},
        {"models": {"phi": {"type": "GGUF", "model_path": "phi.gguf"}}},
        {"phi": {"model_type": "llama.cpp", "file_path": "phi.gguf"}, "settings": {"default": "phi"}, "version": 2},
        {"model_configs": {"phi": {"serving_method": "gguf_direct", "model_path": "phi.gguf"}}},
        {"main_pc_settings": {"model_configs": {"phi": {"model_path": "phi.gguf"}}}},
        [{"id": "phi", "backend": "gguf", "model": "phi.gguf"}],
        {"models": [{"path": "phi.gguf"}, {"name": "off", "enabled": False}]},
        {"models": {"phi": "phi.gguf"}},
    ],
)
def test_every_shape_of_a_configuration_is_read(tree: Any) -> None:
    """A list or a mapping, under any of its keys or alone; what is not enabled is left out."""
    read = config.read_config(tree)

    assert [(one.name, one.type, one.path) for one in read.models] == [("phi", "gguf", "phi.gguf")]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"priority": 2}, {"priority": 2}),
        ({"priority": "critical"}, {"priority": 1}),
        ({"priority": 10}, {"priority": 5}),
        ({}, {"priority": None, "idle_s": None, "is_preloaded": False, "context_tokens": None}),
        ({"idle_timeout_seconds": 90}, {"idle_s": 90.0, "max_idle_time": 90.0}),
        ({"max_idle_time": 0}, {"idle_s": -1.0}),
        ({"auto_load": "false", "keep_loaded": "yes"}, {"is_preloaded": False, "is_pinned": True}),
        ({"preload": True}, {"is_preloaded": True, "preload": True}),
        ({"max_memory": "2GiB"}, {"memory_limit_mb": 2048.0}),
        ({"memory_limit_mb": 512}, {"memory_limit_mb": 512.0}),
        ({"n_ctx": 4096}, {"context_tokens": 4096}),
        ({"temperature": 0.1, "parameters": {"top_p": 0.5}}, {"options": {"temperature": 0.1, "top_p": 0.5}}),
        ({"type": "hf", "path": "microsoft/phi-2"}, {"type": "huggingface", "is_hub_name": True}),
        ({"type": "openai", "path": None, "model_name": "o/gpt"}, {"path": "o/gpt", "is_hub_name": False}),
        ({"quantization": {"level": "Q4"}, "n_threads": 4, "verbose": True}, {"extra": {}}),
    ],
)
def test_fields_go_by_their_old_names(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    """Each spelling ends in the one field; what the model service decides itself is taken without a word."""
    made = config.ModelConfig(**{**PHI, **fields})

    assert {name: getattr(made, name) for name in expected} == expected


def test_what_stands_beside_the_models_is_read(caplog: pytest.LogCaptureFixture) -> None:
    """The limit, defaults of all models, the default model, the agents; the rest is named in a warning."""
    tree = {
        "models": [PHI, {**PHI, "name": "own", "max_idle_time": 5, "flavour": "plum"}],
        "memory_limit": "4GiB",
        "idle_timeout": 60,
        "defaults": {"priority": 4},
        "default_model": "phi",
        "settings": {"agents": {"Planner": {"model_name": "own"}, "Writer": "phi"}, "idle_timeout": 7},
        "telemetry": {},
    }

    with caplog.at_level(logging.WARNING):
        read = config.read_config(tree)

    assert [(one.idle_s, one.priority) for one in read.models] == [(60.0, 4), (5.0, 4)]
    assert (read.memory_limit_mb, read.default) == (4096.0, "phi")
    assert read.agents == {"Planner": "own", "Writer": "phi"}
    assert "telemetry" in caplog.text and "flavour" in caplog.text
    assert config.read_config({"models": [], "max_memory_gb": 2}).memory_limit_mb == 2048.0


def test_paths_are_those_of_the_working_folder_or_beside_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the old agents found them; a path that is nowhere stays as it is written."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "one.gguf").touch()
    (tmp_path / "two.gguf").touch()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "config.yaml").write_text("models: {one: one.gguf, two: two.gguf, three: three.gguf}")

    read = config.read_config(tmp_path / "config.yaml")

    assert [one.path for one in read.models] == ["one.gguf", str(tmp_path / "two.gguf"), "three.gguf"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Expecting"),
        ("3", "not a list or mapping"),
        ('{"models": 3}', "'models' is int"),
        ('{"models": [3]}', "model 1 is int"),
        ('{"models": [{"name": "a", "type": "onnx"}]}', "type is 'onnx', it must be gguf, huggingface or openai"),
        ('{"models": [{"name": "a", "priority": "soon"}]}', "model a: priority is 'soon'"),
        ('{"models": [{"name": "a", "idle": []}]}', "idle time is"),
        ('{"models": [{"type": "gguf"}]}', "'name' is missing"),
        ('{"models": [], "memory_limit": "much"}', "memory_limit_mb: 'much' is no size"),
    ],
)
def test_a_mistake_names_file_field_and_what_may_stand_there(tmp_path: Path, text: str, words: str) -> None:
    """Nobody has to guess which of twenty files is wrong."""
    path = tmp_path / "config.json"
    path.write_text(text)

    with pytest.raises(ValueError, match=r"config\.json") as caught:
        config.read_config(path)

    assert words in str(caught.value)


def test_a_missing_file_is_said() -> None:
    """FileNotFoundError, as ever."""
    with pytest.raises(FileNotFoundError):
        config.read_config("nowhere.json")


def test_models_are_added_in_every_way_and_never_two_under_one_name() -> None:
    """A ModelConfig, fields, keywords, a name with either; two that Olympus could not tell apart are refused."""
    manager = manager_module.ModelManager(settings=load_settings(overrides={"home": "/nowhere"}), plum=1)

    added = [
        manager.add_model_config(config.ModelConfig("a", "gguf", "a.gguf")),
        manager.add_model_config({"name": "b", "type": "gguf", "path": "b.gguf"}),
        manager.add_model_config(name="c", model_type="gguf", model_path="c.gguf"),
        manager.add_model_config("d", {"type": "gguf", "path": "d.gguf"}),
        manager.add_model_config("e", type="gguf", path="e.gguf"),
    ]

    assert [(one.name, one.path) for one in added] == [(name, f"{name}.gguf") for name in "abcde"]
    manager.add_model_config("my model", path="x.gguf")
    with pytest.raises(ValueError, match="would both be called my-model"):
        manager.add_model_config("my/model", path="y.gguf")
    with pytest.raises(ValueError, match="'finished', it must be one of loaded, evicted, unloaded"):
        manager.register_callback("finished", print)


def test_names_become_what_olympus_takes() -> None:
    """Letters, digits and . _ : + -, no dot first, never nothing."""
    assert [places.olympus_name(name) for name in ("Phi 3/mini", ".hidden", "日本", "a_b:c+d")] == [
        "Phi-3-mini", "hidden", "-", "a_b:c+d"
    ]  # fmt: skip


# Shapes -------------------------------------------------------------------------------------------------------------


def test_options_are_taken_by_their_old_names(caplog: pytest.LogCaptureFixture) -> None:
    """Renamed, put in range, or named in a warning; None is the default."""
    options = {"max_new_tokens": 5, "repetition_penalty": 1.1, "stop": "END", "seed": -1, "top_k": -1, "top_p": None}

    with caplog.at_level(logging.WARNING):
        fields = shapes.sampling_of({**options, "num_beams": 4, "do_sample": False})

    assert fields == {"max_tokens": 5, "repeat_penalty": 1.1, "stop": ["END"], "top_k": 0, "temperature": 0.0}
    assert "num_beams" in caplog.text
    assert shapes.sampling_of({"max_tokens": -1})["max_tokens"] == 1_000_000


def test_a_chat_is_asked_in_the_bus_words() -> None:
    """Tools, a tool of one's own choice, answers of a shape, parts of text, calls and their answers."""
    tools = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in "ab"]
    call = {"id": "1", "type": "function", "function": {"name": "a", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "7"},
    ]
    choice = {"type": "function", "function": {"name": "b"}}
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}

    body = shapes.chat_body(
        "m",
        messages,
        {"tools": tools, "tool_choice": choice, "response_format": shape, "logprobs": True, "top_logprobs": 2},
    )

    assert [(one.role, one.content) for one in body.messages] == [
        ("system", "Be kind"),
        ("assistant", ""),
        ("tool", "7"),
    ]
    assert body.messages[1].tool_calls == [ToolCall(id="1", name="a", arguments="{}")]
    assert ([one.name for one in body.tools], body.tool_choice) == (["b"], "required")
    assert (body.json_schema, body.logprobs) == ({"type": "object"}, 2)
    assert shapes.chat_body("m", [], {"response_format": {"type": "json_object"}}).response_format == "json"
    with pytest.raises(ValueError, match="something else than text"):
        shapes.chat_body("m", [{"role": "user", "content": [{"type": "image_url"}]}], {})


def reply(**changes: Any) -> Generation:
    fields: dict[str, Any] = {
        "model": "m",
        "text": "Hi",
        "token_ids": [1],
        "finish_reason": "stop",
        "usage": Usage(prompt_tokens=3, completion_tokens=1),
        "timings": Timings(prompt_s=0, generate_s=0, first_token_s=0, tokens_per_s=0),
    }
    return Generation(**{**fields, **changes})


def test_tool_calls_are_told_whole_and_in_pieces() -> None:
    """In OpenAI's shape, with no content beside them; a stream that is left ends its parts."""
    called = reply(text="", finish_reason="tool_calls", tool_calls=[ToolCall(id="1", name="a", arguments="{}")])
    told = {"id": "1", "type": "function", "function": {"name": "a", "arguments": "{}"}}
    left = []

    def parts() -> Any:
        try:
            yield GenerationPart(text="x", logprobs=[TokenChoice(token_id=1, text="x", logprob=-0.5)])
            return called
        finally:
            left.append(True)

    choice = shapes.chat_completion(called, "m")["choices"][0]
    pieces = [one["choices"][0] for one in shapes.chat_pieces(parts(), "m")]
    begun = shapes.chat_pieces(parts(), "m")
    next(begun), next(begun)
    begun.close()

    assert choice["message"] == {"role": "assistant", "content": None, "tool_calls": [told]}
    assert [one["delta"] for one in pieces] == [
        {"role": "assistant"}, {"content": "x"}, {"tool_calls": [{"index": 0, **told}]}
    ]  # fmt: skip
    assert pieces[1]["logprobs"]["content"][0]["bytes"] == [120]
    assert pieces[-1]["finish_reason"] == "tool_calls"
    assert left == [True, True]
    assert json.dumps(shapes.completion(reply(), "m", "<", ">"))
    assert shapes.text_of(shapes.completion(reply(), "m", "<", ">")) == "<Hi>"


# Memory, errors, callbacks ------------------------------------------------------------------------------------------


def info(name: str, mb: int, **more: Any) -> ModelInfo:
    fields = {"family": "", "format": "gguf", "quantisation": "", "parameters": 0, "size_bytes": 0, "context_tokens": 1}
    return ModelInfo(name=name, state="loaded", memory_bytes=mb * config.MIB, **{**fields, **more})


def test_who_leaves_is_the_least_important_then_the_longest_unused() -> None:
    """As few as will do; never who answers or is pinned."""
    there = [info("a", 10, priority=1), info("b", 10), info("c", 10), info("d", 10, priority=5, is_pinned=True)]
    used = {"b": 2.0, "c": 1.0}

    def leaving(needed: int, limit: int) -> Any:
        return room.leaving(there, used, needed_bytes=needed * config.MIB, limit_bytes=limit * config.MIB)

    assert leaving(10, 50) == []
    assert leaving(10, 40) == ["c"]
    assert leaving(10, 25) == ["c", "b", "a"]
    with pytest.raises(errors.MemoryLimit, match=r"10 MB do not fit under the limit of 15 MB.*d 10 MB"):
        leaving(10, 15)
    with pytest.raises(MemoryError):
        leaving(60, 50)


@pytest.mark.parametrize(
    ("error", "kinds"),
    [
        (NoWorker("x", subject="model.list"), (errors.OlympusUnreachable, ConnectionError)),
        (DeadlineExceeded("x"), (errors.ModelTimeout, TimeoutError)),
        (NotFound("x", model="m", code="y"), (errors.UnknownModel, KeyError, ValueError)),
        (Conflict("x"), (errors.ModelError, RuntimeError)),
    ],
)
def test_errors_are_of_the_kinds_that_agents_catch(error: BusError, kinds: tuple[type, ...]) -> None:
    """With Olympus' code, and its words without quotes."""
    with pytest.raises(errors.ModelError) as caught, errors.in_our_words():
        raise error

    assert all(isinstance(caught.value, kind) for kind in kinds)
    assert caught.value.code == error.code
    assert "'" not in str(caught.value) and "x" in str(caught.value)


def test_callbacks_get_as_much_as_they_take() -> None:
    """None, the name, or the name and the model."""
    takers = [lambda: None, lambda name: None, lambda name, model: None, lambda *all: None, print]

    assert [manager_module._room_for(one) for one in takers] == [0, 1, 2, 2, 2]


def test_memos_is_not_given_the_secret_of_the_house() -> None:
    """Where a sign-in is needed and no token is at hand, the error says what to give."""
    settings = load_settings(overrides={"home": "/nowhere", "auth.required": "true"})
    manager = manager_module.ModelManager(settings=settings)

    with pytest.raises(errors.ModelError, match="api_key=TOKEN"):
        integration._key(manager)
