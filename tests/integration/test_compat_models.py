"""Agents written for the old `models` package, run as their user would: own processes, PYTHONPATH, an old config.json."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import shutil
import socket
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bus.client import Client
from bus.settings import Settings, environment_name
from schemas.bodies.model import Generate, ModelInfo, ModelLoad, ModelShow, ModelUnload
from tests.openai_server import OpenAIServer, chat_piece, last_piece, sse
from workers.gateway.service import Gateway
from workers.models.catalogue import SHIPPED_ROOT
from workers.models.service import ModelService

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

ROOT = Path(__file__).resolve().parents[2]
COMPAT = ROOT / "scripts" / "compat"
DOCUMENT = (ROOT / "docs" / "drop-in-models.md").read_text()
DEMO = SHIPPED_ROOT / "olympus-demo.gguf"
GREETING = "Hello! I am the Olympus demo model"
WAIT_S = 40.0


@asynccontextmanager
async def models_of(settings: Settings, **changes: Any) -> AsyncIterator[Client]:
    """The model service, with `settings.models` changed, and a client."""
    models = msgspec.structs.replace(settings.models, default="none", predict=False, **changes)
    service = ModelService(msgspec.structs.replace(settings, models=models))
    await service.start()
    try:
        async with Client(settings, name="test") as client:
            yield client
    finally:
        await service.stop()


@asynccontextmanager
async def serving(serve_broker: Any, **changes: Any) -> AsyncIterator[tuple[Settings, Client]]:
    """A broker and the model service; the settings an agent needs, and a client."""
    async with serve_broker() as settings, models_of(settings, **changes) as client:
        yield settings, client


@asynccontextmanager
async def agent(script: str, folder: Path, settings: Settings, **variables: str) -> AsyncIterator[Any]:
    """A process that runs `script` in `folder`, ended with the block whatever happens."""
    ports = ("request_port", "publish_port", "subscribe_port", "sequenced_port")
    environment = {
        **os.environ,
        **{environment_name(f"bus.{port}"): str(getattr(settings.bus, port)) for port in ports},
        "OLYMPUS_HOME": settings.home,
        "PYTHONPATH": os.pathsep.join([str(COMPAT), str(ROOT)]),
        **variables,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(script), env=environment, cwd=folder,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def output(script: str, folder: Path, settings: Settings, **variables: str) -> tuple[list[str], str]:
    """What the agent prints, and what it complains of; it must end well."""
    async with agent(script, folder, settings, **variables) as process:
        said, complained = await asyncio.wait_for(process.communicate(), WAIT_S)
        assert process.returncode == 0, complained.decode()
        return said.decode().splitlines(), complained.decode()


def weights(path: Path, change: int = 0) -> Path:
    """The demo model with another content, so that nothing else is the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = bytearray(DEMO.read_bytes())
    content[-1 - change] ^= 1
    path.write_bytes(content)
    return path


def old_config(folder: Path, *models: dict[str, Any], **more: Any) -> None:
    """config.json in the agent's folder."""
    (folder / "config.json").write_text(json.dumps({"models": list(models), **more}))


def documented(marker: str) -> str:
    """The Python block of the document that holds `marker`."""
    return next(block for block in re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL) if marker in block)


OLD_AGENT = """
    import json, sys
    from models import ModelManager, get_model_manager, initialize_model_manager
    from models.integration import ModelManagerAdapter, create_model_adapter, get_agent_model

    manager = initialize_model_manager("config.json")
    assert get_model_manager() is manager and isinstance(manager, ModelManager)
    model = manager.get_model("My Phi")
    again = manager.get_model("My Phi")
    prompt = "<|user|>Hello<|end|><|assistant|>"
    messages = [{"role": "user", "content": "Hello"}]
    adapter = create_model_adapter("Planner")
    told = {
        "same": model is again and get_agent_model("Planner") is model and adapter.model is model,
        "generated": model.generate(prompt, temperature=0),
        "cut": model.generate(prompt, temperature=0, max_new_tokens=1, stop=None, num_beams=4),
        "pieces": list(model.generate(messages, temperature=0, stream=True)),
        "completion": model.create_completion(prompt, temperature=0, max_tokens=2, echo=True, logprobs=1),
        "called": model(prompt, temperature=0, max_tokens=2)["choices"][0]["text"],
        "chat": model.create_chat_completion(messages, temperature=0, max_tokens=-1),
        "chat_pieces": list(model.create_chat_completion(messages, temperature=0, stream=True)),
        "completion_pieces": list(model.create_completion(prompt, max_tokens=2, stream=True)),
        "one_vector": len(model.embed("bees")),
        "vectors": [len(one) for one in model.embed(["bees", "honey"])],
        "adapter": [adapter.agent_name, adapter.generate(messages, temperature=0, max_tokens=1)],
        "available": manager.list_available_models(),
        "loaded": manager.list_loaded_models(),
        "memory": manager.get_memory_usage(),
        "stats": manager.get_model_stats("My Phi"),
        "unloaded": [manager.unload_model("My Phi"), manager.unload_model("My Phi", force=True)],
        "left": manager.list_loaded_models(),
        "asked_anew": model.generate(prompt, temperature=0),
        "heavy": [one for one in ("torch", "numpy", "llama_cpp", "httpx", "zmq") if one in sys.modules],
    }
    manager.shutdown()
    print(json.dumps(told))
"""


async def test_an_old_agent_runs_unchanged(serve_broker: Any, tmp_path: Path) -> None:
    """Every call of the old ModelManager on a GGUF file anywhere, named as Olympus could not, with the old options."""
    weights(tmp_path / "weights" / "any where.gguf")
    fields = {"priority": 1, "max_idle_time": 600, "n_ctx": 4096, "n_gpu_layers": -1, "flavour": "plum"}
    phi = {"name": "My Phi", "type": "gguf", "path": "weights/any where.gguf", **fields}
    old_config(tmp_path, phi, default_model="My Phi", memory_limit_mb=4096, agents={"Planner": {"model": "My Phi"}})
    async with serving(serve_broker) as (settings, client):
        lines, complaints = await output(OLD_AGENT, tmp_path, settings)
        shown: ModelInfo = await client.request("model.show", ModelShow(model="My-Phi"))
    told = json.loads(lines[0])
    assert told["same"] is True
    assert told["generated"].startswith(GREETING)
    assert told["generated"] == told["asked_anew"] == told["chat"]["choices"][0]["message"]["content"]
    assert told["cut"] == "Hello"
    assert len(told["pieces"]) > 1 and "".join(told["pieces"]) == told["generated"]
    completion = told["completion"]
    assert completion["object"] == "text_completion"
    assert completion["choices"][0]["text"] == "<|user|>Hello<|end|><|assistant|>Hello!"
    assert completion["choices"][0]["finish_reason"] == "length"
    assert completion["choices"][0]["logprobs"]["tokens"] == ["Hello", "!"]
    assert completion["usage"] == {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}
    assert told["called"] == "Hello!"
    assert told["chat"]["object"] == "chat.completion"
    assert told["chat"]["choices"][0]["finish_reason"] == "stop"
    deltas = [piece["choices"][0]["delta"] for piece in told["chat_pieces"]]
    assert deltas[0] == {"role": "assistant"} and deltas[-1] == {}
    assert "".join(delta.get("content", "") for delta in deltas) == told["generated"]
    assert len({piece["id"] for piece in told["chat_pieces"]}) == 1
    assert [one["choices"][0]["finish_reason"] for one in told["completion_pieces"]][-1] == "length"
    assert told["vectors"] == [told["one_vector"]] * 2
    assert told["adapter"] == ["Planner", "Hello"]
    assert told["available"] == ["My Phi", "olympus-demo", "demo-hf"]
    assert (told["loaded"], told["left"], told["unloaded"]) == (["My Phi"], [], [True, False])
    assert told["memory"]["limit_mb"] == 4096
    assert told["memory"]["loaded_models"] == {"My Phi": told["memory"]["total_mb"]}
    assert told["stats"]["access_count"] == 4
    assert told["stats"]["memory_usage_mb"] == told["memory"]["total_mb"] > 0
    assert (told["stats"]["priority"], shown.priority, shown.keep_alive_s) == (1, 1, 600)
    assert told["heavy"] == []
    assert "flavour" in complaints and "num_beams" in complaints
    assert (tmp_path / "weights" / "any where.gguf").samefile(shown.path)


async def test_agents_and_their_threads_share_one_load(serve_broker: Any, tmp_path: Path) -> None:
    """Two agents, eight threads each, get and preload a new file at once: one model, one runner; a forked child asks too."""
    weights(tmp_path / "phi.gguf")
    old_config(tmp_path, {"name": "phi", "type": "gguf", "path": "phi.gguf", "preload": True})
    script = """
        from concurrent.futures import ThreadPoolExecutor
        from multiprocessing import get_context
        from models import ModelManager

        def in_child():
            return models[0].n_ctx(), len(models[0].tokenize("bees"))

        with ModelManager("config.json") as manager, ThreadPoolExecutor(8) as pool:
            models = list(pool.map(manager.get_model, ["phi"] * 8))
            chats = pool.map(lambda one: one.generate([{"role": "user", "content": "Hello"}], temperature=0), models)
            print(len(set(map(id, models))), len(set(chats)), manager.get_model_stats("phi")["access_count"])
            with get_context("fork").Pool(1) as children:
                print(children.apply(in_child))
    """
    async with serving(serve_broker) as (settings, client), client.subscribe("model.loading") as events:
        both = await asyncio.gather(*(output(script, tmp_path, settings) for _ in range(2)))
        await client.publish("model.loading", {"model": "the end"})
        told = [await asyncio.wait_for(anext(events), WAIT_S) for _ in range(2)]
    assert both == [(["1 1 8", "(512, 3)"], "")] * 2
    assert [event.body["model"] for event in told] == ["phi", "the end"]


async def test_callbacks_hear_of_other_processes_and_survive_each_other(serve_broker: Any, tmp_path: Path) -> None:
    """Loads and unloads by anybody are told by the old name; a callback that raises is logged, and the next one called.

    The end of the process waits for the one that runs.
    """
    old_config(tmp_path, {"name": "phi", "type": "gguf", "path": str(DEMO)})
    script = """
        import sys
        import time
        from models import add_model_config, get_model_manager, load_config, register_callback

        def broken(name):
            raise ZeroDivisionError("plum")

        def slow(name, model):
            print("evicted", name, model, flush=True)
            time.sleep(0.3)
            print("kept in mind", flush=True)

        load_config("config.json")
        register_callback("loaded", broken)
        register_callback("on_load", lambda name: print("loaded", name, flush=True))
        register_callback("evicted", slow)
        print("listening", flush=True)
        sys.stdin.readline()
    """

    async with serving(serve_broker) as (settings, client), agent(script, tmp_path, settings) as process:

        async def line() -> str:
            return str((await asyncio.wait_for(process.stdout.readline(), WAIT_S)).decode().strip())

        for before in ("listening", "kept in mind"):
            assert await line() == before
            await client.publish("model.loaded", b"nobody knows")
            await client.request("model.load", ModelLoad(model="olympus-demo"), timeout_s=WAIT_S)
            assert await line() == "loaded phi"
            await client.request("model.unload", ModelUnload(model="olympus-demo"), timeout_s=WAIT_S)
            assert await line() == "evicted phi None"
        # It ends in the middle of a callback.
        told, complained = await asyncio.wait_for(process.communicate(b"\n"), WAIT_S)
        assert (told, process.returncode) == (b"kept in mind\n", 0)
    assert complained.decode().count("ZeroDivisionError: plum") == 2


async def test_the_memory_limit_sends_own_idle_models_away(serve_broker: Any, tmp_path: Path) -> None:
    """The least important leaves for the next one; what fits nowhere is refused with the numbers; others' models stay."""
    names = ("first", "second", "third")
    for number, name in enumerate(names):
        weights(tmp_path / f"{name}.gguf", number)
    priorities = {"first": "high", "second": "low", "third": "normal"}
    old_config(tmp_path, *({"name": one, "path": f"{one}.gguf", "priority": priorities[one]} for one in names))
    script = """
        from models import MemoryLimit, ModelManager

        manager = ModelManager(config_path="config.json")
        first = manager.get_model("first")
        one = manager.get_model_stats("first")["memory_usage_mb"]
        manager.set_memory_limit(2.5 * one)
        manager.get_model("second"), manager.get_model("third")
        print(sorted(manager.list_loaded_models()))
        manager.set_memory_limit(0.5 * one)
        try:
            manager.get_model("second")
        except MemoryError as error:
            print(isinstance(error, MemoryLimit), error)
        first.generate("Hello", max_tokens=1)
        manager.set_memory_limit(None)
        print(manager.get_memory_usage()["limit_mb"] > 2.5 * one)
    """
    async with serving(serve_broker, max_loaded=8) as (settings, client):
        await client.request("model.load", ModelLoad(model="olympus-demo"), timeout_s=WAIT_S)
        lines, complaints = await output(script, tmp_path, settings)
    assert lines[0] == "['first', 'olympus-demo', 'third']"
    assert re.match(r"True \d+ MB do not fit under the limit of \d+ MB", lines[1])
    assert (lines[2], complaints) == ("True", "")


async def test_paths_that_lead_nowhere_names_that_are_taken_and_unknown_ones(serve_broker: Any, tmp_path: Path) -> None:
    """A gone file is Olympus' model of that name; other content under a taken name gets another; near names are told."""
    weights(tmp_path / "mine.gguf")
    gone = {"name": "elsewhere", "type": "gguf", "model_path": "/another/machine/olympus-demo.gguf"}
    taken = {"name": "olympus-demo", "type": "gguf", "path": "mine.gguf"}
    old_config(tmp_path, gone, taken, {"name": "broken", "type": "gguf", "path": "config.json"})
    script = """
        from models import ModelError, ModelManager, UnknownModel

        with ModelManager("config.json") as manager:
            print(manager.get_model("elsewhere").called)
            print(manager.get_model("olympus-demo").called, manager.get_model("mine.gguf").called)
            for ask in (manager.get_model, manager.unload_model, manager.get_model_stats):
                try:
                    ask("elsewere")
                except UnknownModel as error:
                    print(error)
            try:
                manager.get_model("broken")
            except ModelError as error:
                print(error.code)
        try:
            manager.list_loaded_models()
        except ModelError as error:
            print(error)
    """
    async with serving(serve_broker) as (settings, _):
        lines, _ = await output(script, tmp_path, settings)
    assert lines[0] == "olympus-demo"
    renamed, same = lines[1].split()
    assert re.fullmatch(r"olympus-demo-[0-9a-f]{8}", renamed) and same == renamed
    assert all(re.match("there is no model 'elsewere', nearest: elsewhere", line) for line in lines[2:5])
    assert lines[5] == "unprocessable"
    assert "was shut down" in lines[6]


async def test_an_absent_olympus_is_an_error_in_time(tmp_path: Path, settings: Settings) -> None:
    """Without a broker, and with a broker without a model service, every call says so; nothing hangs."""
    old_config(tmp_path, {"name": "phi", "type": "gguf", "path": str(DEMO), "preload": True})
    script = """
        from models import ModelManager, OlympusUnreachable

        manager = ModelManager("config.json")
        manager.register_callback("evicted", print)
        for ask in (lambda: manager.get_model("phi"), manager.list_loaded_models, manager.get_memory_usage):
            try:
                ask()
            except ConnectionError as error:
                print(isinstance(error, OlympusUnreachable), error)
        manager.shutdown()
    """
    names = ("request_port", "publish_port", "subscribe_port", "sequenced_port")
    with ExitStack() as stack:
        # Bound and not listening: whoever connects is refused, and nobody else gets the port.
        taken = [stack.enter_context(socket.socket()) for _ in names]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        port = taken[0].getsockname()[1]
        bus = msgspec.structs.replace(
            settings.bus, **{name: one.getsockname()[1] for name, one in zip(names, taken, strict=True)}
        )
        closed = msgspec.structs.replace(settings, bus=bus)
        lines, complaints = await output(script, tmp_path, closed, OLYMPUS_BUS_TIMEOUT_S="0.3")
    assert len(lines) == 3
    assert all(f"no connection to the broker at 127.0.0.1:{port}" in line for line in lines)
    assert "callbacks wait for Olympus" in complaints and "Traceback" not in complaints


async def test_a_broker_that_dies_under_an_agent_is_an_error_in_time(serve_broker: Any, tmp_path: Path) -> None:
    """A held model raises instead of waiting half an hour; there is a model service's absence in words, too."""
    old_config(tmp_path, {"name": "phi", "type": "gguf", "path": str(DEMO)})
    script = """
        import sys
        from models import ModelManager, OlympusUnreachable

        manager = ModelManager("config.json")
        model = manager.get_model("phi")
        for _ in range(2):
            print("ready", flush=True)
            sys.stdin.readline()
            try:
                model.generate("Hello", max_tokens=1)
            except OlympusUnreachable as error:
                print(error, flush=True)
    """
    async with AsyncExitStack() as broker, AsyncExitStack() as models:
        settings = await broker.enter_async_context(serve_broker())
        await models.enter_async_context(models_of(settings))
        async with agent(script, tmp_path, settings, OLYMPUS_BUS_TIMEOUT_S="0.5") as process:

            async def line() -> str:
                return str((await asyncio.wait_for(process.stdout.readline(), WAIT_S)).decode().strip())

            assert await line() == "ready"
            await models.aclose()
            process.stdin.write(b"\n")
            assert "its model service does not" in await line()
            assert await line() == "ready"
            await broker.aclose()
            process.stdin.write(b"\n")
            assert "no connection to the broker" in await line()


async def test_an_endpoint_is_asked_straight_with_its_key(serve_broker: Any, tmp_path: Path) -> None:
    """Chat, stream, vectors, refusals; the key goes into no message. One that Olympus has by its own rules is Olympus'."""
    key = "sk-plum-pudding"
    script = """
        from models import ModelError, ModelManager

        with ModelManager("config.json") as manager:
            model = manager.get_model("gpt")
            print(model.generate("Hello", system_prompt="Be kind", temperature=0.5))
            print(list(model.generate("Hello", stream=True)))
            print(model.embed(["a"]), manager.unload_model("gpt"), manager.get_model("gpt") is model)
            print(manager.get_model("lab").create_chat_completion([{"role": "user", "content": "Hello"}])["usage"])
            for name in ("refused", "away"):
                try:
                    manager.get_model(name).generate("Hello")
                except ModelError as error:
                    print(type(error).__name__, error)
    """
    whole = {"choices": [{"message": {"role": "assistant", "content": "Good day"}}]}

    def chat(body: Any) -> Any:
        return (
            sse(chat_piece("Good"), chat_piece(" day"), last_piece()) + b"data: [DONE]\n\n"
            if body.get("stream")
            else whole
        )

    routes = {"/v1/chat/completions": chat, "/v1/embeddings": {"data": [{"embedding": [0.5, 1.0]}]}}
    refusing = OpenAIServer(status=401, error=json.dumps({"error": {"message": f"wrong key {key}"}}).encode())
    async with OpenAIServer(routes=routes).running() as server, refusing.running(), OpenAIServer().running() as remote:
        gpt = {
            "type": "openai",
            "model_name": "gpt-4",
            "api_base": server.base_url,
            "api_key_env": "PLUM_KEY",
            "top_p": 0.9,
        }
        old_config(
            tmp_path,
            {"name": "gpt", **gpt},
            {"name": "refused", "type": "openai", "base_url": refusing.base_url, "api_key": "${PLUM_KEY}"},
            {"name": "away", "type": "openai", "base_url": "http://127.0.0.1:1/v1", "api_key": key},
            {"name": "lab", "type": "openai", "base_url": "http://127.0.0.1:1/v1", "model_name": "gpt-4"},
        )
        rules = f"""
            [provider.lab]
            base_url = "{remote.base_url}"
            [[remote]]
            name = "lab"
            provider = "lab"
            model = "small"
        """
        (tmp_path / "home").mkdir(exist_ok=True)
        (tmp_path / "home" / "models.toml").write_text(textwrap.dedent(rules))
        async with serving(serve_broker) as (settings, _):
            lines, complaints = await output(script, tmp_path, settings, PLUM_KEY=key, OLYMPUS_BUS_TIMEOUT_S="0.5")
        first = server.requests[0]
    assert lines[:3] == ["Good day", "['Good', ' day']", "[[0.5, 1.0]] False True"]
    assert lines[3] == "{'prompt_tokens': 7, 'completion_tokens': 2, 'total_tokens': 9}"
    assert (
        lines[4].startswith("ModelError the endpoint of model refused, http://127.0.0.1:") and "(the key)" in lines[4]
    )
    assert lines[5].startswith("OlympusUnreachable the endpoint of model away")
    assert key not in "".join(lines) + complaints
    assert first[2]["authorization"] == f"Bearer {key}"
    messages = [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hello"}]
    assert first[3] == {"model": "gpt-4", "messages": messages, "temperature": 0.5, "top_p": 0.9}


async def test_a_huggingface_folder_anywhere_is_brought_in(serve_broker: Any, tmp_path: Path) -> None:
    """A folder of safetensors outside the roots becomes a model of Olympus, known by the configuration's name."""
    shutil.copytree(SHIPPED_ROOT / "hf", tmp_path / "weights" / "tiny")
    old_config(
        tmp_path, {"name": "tiny", "type": "huggingface", "path": "weights/tiny", "priority": 5, "preload": True}
    )
    script = """
        import sys
        from models import ModelManager

        manager = ModelManager("config.json")
        manager.register_callback("loaded", lambda name: print("loaded", name, flush=True))
        sys.stdin.readline()
    """
    async with serving(serve_broker) as (settings, client), agent(script, tmp_path, settings) as process:
        told = await asyncio.wait_for(process.stdout.readline(), WAIT_S)
        shown = await client.request("model.show", ModelShow(model="tiny"))
        answer = await client.request(
            "model.generate", Generate(model="tiny", prompt="<|user|>Hello<|end|><|assistant|>", temperature=0.0),
            timeout_s=WAIT_S,
        )  # fmt: skip
    assert told == b"loaded tiny\n"
    assert (shown.format, shown.priority) == ("safetensors", 5)
    assert answer.text.startswith(GREETING)


async def test_the_example_of_the_document_runs(serve_broker: Any, tmp_path: Path) -> None:
    """Its config.json and its agent, as they stand there, with the demo model as the file they name."""
    config = next(re.finditer(r"```json\n(.*?)```", DOCUMENT, re.DOTALL))[1]
    (tmp_path / "config.json").write_text(config)
    weights(tmp_path / "weights" / "phi-2.gguf")
    async with serving(serve_broker) as (settings, _):
        lines, complaints = await output(documented("create_model_adapter"), tmp_path, settings)
    assert complaints == ""
    rest = [line for line in lines if line != "loaded: phi"]
    assert rest[0] == "Hello! I am the"
    assert rest[1] == "7 + 5 = 12."
    assert rest[-2:] == ["Planner True ['limit_mb', 'loaded_models', 'total_mb']", "2 True"]


MEMOS_AGENT = """
    import json
    from memos.configs.llm import LLMConfigFactory
    from memos.llms.factory import LLMFactory
    from models import load_config
    from models.integration import get_llm_for_memos

    load_config("config.json")
    told = {}
    for backend in ("openai", "vllm", "huggingface", "ollama", "qwen", "gguf"):
        config = get_llm_for_memos(backend, "phi", temperature=0.0)
        llm = LLMFactory.from_config(LLMConfigFactory.model_validate(config))
        messages = [{"role": "user", "content": "Hello"}]
        told[backend] = [config, llm.generate(messages), "".join(llm.generate_stream(messages))]
    print(json.dumps(told))
"""


async def test_memos_gets_its_answers_from_olympus(serve_broker: Any, tmp_path: Path) -> None:
    """The real MemOS makes an LLM of each backend's configuration, and that is answered through the gateway."""
    if importlib.util.find_spec("memos") is None:
        pytest.skip("MemoryOS is not installed")
    old_config(tmp_path, {"name": "phi", "type": "gguf", "path": str(DEMO)})
    async with serving(serve_broker) as (settings, _):
        ports = {name: 0 for name in type(settings.rest).__struct_fields__ if name.endswith("_port")}
        gateway = Gateway(msgspec.structs.replace(settings, rest=msgspec.structs.replace(settings.rest, **ports)))
        await gateway.start()
        try:
            script = textwrap.dedent(MEMOS_AGENT) + documented("from memos")
            lines, _ = await output(script, tmp_path, settings, MEMOS_BASE_PATH=str(tmp_path))
            bound = next(one for one in gateway.table if one.owner == "models" and one.purpose == "rest")
        finally:
            await gateway.stop()
    told = json.loads(next(line for line in lines if line.startswith("{")))
    base = f"http://127.0.0.1:{bound.port}/v1"
    for backend, (config, answer, streamed) in told.items():
        assert config["backend"] == (backend if backend in ("vllm", "qwen") else "openai")
        assert config["config"] == {
            "model_name_or_path": "olympus-demo", "api_base": base, "api_key": "olympus", "temperature": 0.0
        }  # fmt: skip
        assert answer.startswith(GREETING)
        assert streamed == answer
    assert lines[-1]
