"""The model service on a real bus: a real broker, the service, and real runner processes with the demo model."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bus.client import Client, Stream
from bus.settings import Settings, child_environment
from schemas.bodies.model import Chat, ChatMessage, Generate, ModelInfo, ModelLoad, ModelShow, ModelUnload
from schemas.errors import (
    BadRequest,
    BusError,
    Conflict,
    NotFound,
    Overloaded,
    Unprocessable,
    WorkerLost,
)
from workers.models.catalogue import SHIPPED_ROOT
from workers.models.service import ModelService

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

NAME = "olympus-demo"
DEMO = SHIPPED_ROOT / f"{NAME}.gguf"
DOCUMENTED = json.loads((SHIPPED_ROOT / "documented.json").read_text())
WAIT_S = 20.0


def chat(number: int = 0, **more: Any) -> Chat:
    messages = [ChatMessage(**message) for message in DOCUMENTED[number]["messages"]]
    return Chat(messages=messages, temperature=0.0, **more)


# Noise at a high temperature goes on for hundreds of tokens.
def endless(**more: Any) -> Generate:
    return Generate(prompt="Tell", max_tokens=480, temperature=5.0, top_k=0, top_p=1.0, min_p=0.0, seed=3, **more)


@asynccontextmanager
async def serving(settings: Settings, **models: Any) -> AsyncIterator[tuple[ModelService, Client]]:
    """The service and a client, with `settings.models` changed."""
    changed = msgspec.structs.replace(settings, models=msgspec.structs.replace(settings.models, **models))
    service = ModelService(changed)
    await service.start()
    try:
        async with Client(changed, name="test") as client:
            yield service, client
    finally:
        await service.stop()


def own_root(settings: Settings) -> Path:
    root = settings.path("models")
    root.mkdir(parents=True, exist_ok=True)
    return root


async def load(client: Client, model: str = NAME, **more: Any) -> int:
    """Load a model; returns the process id of its runner."""
    state = await client.request("model.load", ModelLoad(model=model, **more), timeout_s=WAIT_S)
    assert state.state == "loaded"
    return int(state.pid)


async def until(condition: Any, what: str) -> None:
    """Wait until `condition()`; fails naming what did not come about."""
    for _ in range(int(WAIT_S / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"did not come about: {what}")


async def rest_of(parts: Stream) -> list[Any]:
    """What still comes of a stream."""
    return [part async for part in parts]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_a_chat_without_a_model_name_is_answered_by_the_default(serve_broker: Any) -> None:
    """The first request loads, streams token by token, and its final reply holds the whole and its cost."""
    async with serve_broker() as settings, serving(settings) as (_, client), client.subscribe("model.>") as events:
        async with client.stream("model.chat", chat(), timeout_s=WAIT_S) as parts:
            streamed = [part async for part in parts]
        final = parts.final
        usage = await asyncio.wait_for(anext(event async for event in events if event.subject == "model.usage"), WAIT_S)
    assert final.text == DOCUMENTED[0]["answer"]
    assert "".join(part.text for part in streamed) == final.text
    assert len(streamed) > 1
    assert (final.model, final.finish_reason) == (NAME, "stop")
    assert usage.body["usage"]["completion_tokens"] == final.usage.completion_tokens


async def test_loading_and_unloading_are_told_with_reasons(serve_broker: Any) -> None:
    """Tap shows why a model comes and goes."""
    async with (
        serve_broker() as settings,
        serving(settings, default="none") as (_, client),
        client.subscribe("model.*") as events,
    ):
        await load(client)
        await client.request("model.unload", ModelUnload(model=NAME), timeout_s=WAIT_S)
        seen = [await asyncio.wait_for(anext(events), WAIT_S) for _ in range(3)]
    assert [event.subject for event in seen] == ["model.loading", "model.loaded", "model.unloaded"]
    assert all(event.body["reason"] for event in seen)
    assert seen[1].body["size_bytes"] == DEMO.stat().st_size


async def test_a_loaded_model_is_addressed_without_the_service(serve_broker: Any) -> None:
    """`model.chat@NAME` reaches the runner; list and show say what is loaded."""
    async with serve_broker() as settings, serving(settings, default="none") as (_, client):
        await load(client)
        generation = await client.request(f"model.chat@{NAME}", chat(1), timeout_s=WAIT_S)
        listed = (await client.request("model.list")).models
        shown: ModelInfo = await client.request("model.show", ModelShow(model=NAME))
    assert generation.text == DOCUMENTED[1]["answer"]
    assert generation.timings.load_s == 0
    assert [(one.name, one.instance) for one in listed if one.state == "loaded"] == [(NAME, NAME)]
    assert shown.loaded_at is not None


async def test_an_instance_nobody_serves_is_loaded_by_the_service(serve_broker: Any) -> None:
    """The broker falls back to the plain subject; the answer says how long the load took."""
    async with serve_broker() as settings, serving(settings, default="none") as (_, client):
        generation = await client.request(f"model.chat@{NAME}", chat(), timeout_s=WAIT_S)
    assert generation.text == DOCUMENTED[0]["answer"]
    assert generation.timings.load_s > 0


async def test_callers_of_an_absent_model_share_one_load(serve_broker: Any) -> None:
    """Eight callers at once: one runner, eight right answers."""
    async with (
        serve_broker() as settings,
        serving(settings, default="none") as (_, client),
        client.subscribe("model.loading") as events,
    ):
        answers = await asyncio.gather(
            *(client.request("model.chat", chat(n % 2, model=NAME), timeout_s=WAIT_S) for n in range(8))
        )
        await client.publish("model.loading", {"model": "the end"})
        told = await asyncio.wait_for(anext(events), WAIT_S), await asyncio.wait_for(anext(events), WAIT_S)
    assert [one.text for one in answers] == [DOCUMENTED[n % 2]["answer"] for n in range(8)]
    assert [event.body["model"] for event in told] == [NAME, "the end"]


async def test_bad_requests_get_their_errors_and_the_next_one_works(serve_broker: Any) -> None:
    """Unknown names, options, conflicting names, prompts over the window, windows over the model."""
    async with serve_broker() as settings, serving(settings) as (_, client):

        async def refused(kind: type[BusError], subject: str, body: Any) -> BusError:
            with pytest.raises(kind) as caught:
                await client.request(subject, body, timeout_s=WAIT_S)
            return caught.value

        error = await refused(NotFound, "model.chat", chat(model="olympus-dem"))
        assert NAME in error.message
        await refused(BadRequest, "model.generate", {"prompt": "x", "temprature": 1})
        await refused(BadRequest, f"model.chat@{NAME}", chat(model="another"))
        error = await refused(Unprocessable, "model.generate", Generate(prompt="word " * 2000))
        assert error.details["prompt_tokens"] > error.details["context_tokens"] == 512
        await refused(Conflict, "model.load", ModelLoad(model=NAME, context_tokens=64))
        await client.request("model.unload", ModelUnload(model=NAME), timeout_s=WAIT_S)
        error = await refused(Unprocessable, "model.load", ModelLoad(model=NAME, context_tokens=100_000))
        assert (error.details, "512" in error.message) == (error.details, True)
        generation = await client.request("model.chat", chat(), timeout_s=WAIT_S)
    assert generation.text == DOCUMENTED[0]["answer"]


async def test_a_broken_file_is_listed_and_refused_and_the_good_model_still_answers(serve_broker: Any) -> None:
    """Truncated, foreign and empty files say why; one that only llama.cpp sees through says it in its words."""
    async with serve_broker() as settings, serving(settings, default="none") as (_, client):
        root, whole = own_root(settings), DEMO.read_bytes()
        (root / "cut.gguf").write_bytes(whole[: len(whole) // 2])
        (root / "text.gguf").write_text("no model")
        (root / "empty.gguf").touch()
        (root / "strange.gguf").write_bytes(whole.replace(b"llama", b"wyrms"))
        for model, reason in [("cut", "truncated"), ("text", "not a GGUF"), ("empty", "empty"), ("strange", "wyrms")]:
            with pytest.raises(Unprocessable, match=reason):
                await client.request("model.load", ModelLoad(model=model), timeout_s=WAIT_S)
            with pytest.raises(Unprocessable, match=reason):
                await client.request("model.chat", chat(model=model), timeout_s=WAIT_S)
        states = {one.name: one.state for one in (await client.request("model.list")).models}
        generation = await client.request("model.chat", chat(model=NAME), timeout_s=WAIT_S)
    assert states["cut"] == states["text"] == states["empty"] == "unusable"
    assert generation.text == DOCUMENTED[0]["answer"]


async def test_a_killed_runner_is_told_and_the_next_request_works(serve_broker: Any) -> None:
    """kill -9 in the middle of an answer: `worker_lost`, straight and through the service; then all is well."""
    async with serve_broker() as settings, serving(settings) as (_, client):
        for subject in (f"model.generate@{NAME}", "model.generate"):
            pid = await load(client)
            async with client.stream(subject, endless(), timeout_s=WAIT_S) as parts:
                await anext(parts)
                os.kill(pid, signal.SIGKILL)
                with pytest.raises(WorkerLost):
                    await rest_of(parts)
            generation = await client.request("model.chat", chat(), timeout_s=WAIT_S)
            assert generation.text == DOCUMENTED[0]["answer"]


async def test_a_request_that_saw_nothing_survives_the_death_of_its_runner(serve_broker: Any) -> None:
    """A runner that dies before the first token costs the caller time, not the answer."""
    async with serve_broker() as settings, serving(settings) as (service, client):
        pid = await load(client)
        os.kill(pid, signal.SIGSTOP)
        asking = asyncio.ensure_future(client.request("model.chat", chat(), timeout_s=WAIT_S))
        await until(lambda: any(service._loading._relays._gates.values()), "the request was passed on")
        os.kill(pid, signal.SIGKILL)
        generation = await asking
    assert generation.text == DOCUMENTED[0]["answer"]


async def test_leaving_a_stream_stops_the_generation(serve_broker: Any) -> None:
    """Straight or relayed, the runner has nothing in flight soon after."""
    async with serve_broker() as settings, serving(settings) as (service, client):
        await load(client)
        for subject in (f"model.generate@{NAME}", "model.generate"):
            async with client.stream(subject, endless(), timeout_s=WAIT_S) as parts:
                await anext(parts)
            await until(
                lambda: not any(r.is_in_use for r in service._loading._scheduler._runners.values()), "the runner idle"
            )


async def test_unload_waits_for_the_answer_in_flight(serve_broker: Any) -> None:
    """The answer is whole, then the process is gone; force does not wait."""
    async with serve_broker() as settings, serving(settings) as (_, client):
        pid = await load(client)
        async with client.stream(f"model.generate@{NAME}", endless(), timeout_s=WAIT_S) as parts:
            await anext(parts)
            unloading = asyncio.ensure_future(client.request("model.unload", ModelUnload(model=NAME), timeout_s=WAIT_S))
            rest = [part async for part in parts]
        state = await unloading
        assert len(parts.final.token_ids) > 50
        assert rest
        assert (state.state, is_alive(pid)) == ("available", False)

        pid = await load(client)
        async with client.stream(f"model.generate@{NAME}", endless(), timeout_s=WAIT_S) as parts:
            await anext(parts)
            await client.request("model.unload", ModelUnload(model=NAME, force=True), timeout_s=WAIT_S)
            with pytest.raises(WorkerLost):
                await rest_of(parts)
        assert not is_alive(pid)


async def test_no_request_is_lost_while_the_model_idles_out_again_and_again(serve_broker: Any) -> None:
    """Requests that arrive in the very moment of an idle unload are answered by the next runner."""
    async with serve_broker() as settings, serving(settings, keep_alive_s=0.02, spare_runners=2) as (_, client):
        for number in range(12):
            generation = await client.request(f"model.chat@{NAME}", chat(), timeout_s=WAIT_S)
            assert generation.text == DOCUMENTED[0]["answer"]
            # Pauses around the keep-alive, so that requests fall before, into and after the drain.
            await asyncio.sleep(0.005 * number)


async def test_room_is_made_by_eviction_and_refused_while_all_is_in_use(serve_broker: Any) -> None:
    """With one place, the idle model leaves; a model in use stays and the caller hears who it is."""
    async with serve_broker() as settings, serving(settings, default="none", max_loaded=1) as (_, client):
        shutil.copy(DEMO, own_root(settings) / "twin.gguf")
        pid = await load(client, "twin")
        generation = await client.request("model.chat", chat(model=NAME), timeout_s=WAIT_S)
        assert generation.text == DOCUMENTED[0]["answer"]
        assert not is_alive(pid)

        pid = await load(client)
        async with client.stream(f"model.generate@{NAME}", endless(), timeout_s=WAIT_S) as parts:
            await anext(parts)
            os.kill(pid, signal.SIGSTOP)
            with pytest.raises(Overloaded, match=f"in use are {NAME}"):
                await client.request("model.chat", chat(model="twin"), timeout_s=1.0)
            os.kill(pid, signal.SIGCONT)


def children_of(pid: int) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == pid:
                found.append(int(folder.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_no_runner_outlives_the_service(serve_broker: Any, number: signal.Signals) -> None:
    """SIGTERM ends the service and its runners in good order, kill -9 of the service takes them along."""
    async with (
        serve_broker() as settings,
        Client(settings, name="test") as client,
        client.subscribe("bus.worker.joined") as joined,
    ):
        values = {f"OLYMPUS_BUS_{port.upper()}": str(getattr(settings.bus, port)) for port in PORTS}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "workers.models",
            env=child_environment(None, {}, OLYMPUS_HOME=settings.home, **values),
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(WAIT_S):
                await anext(event async for event in joined if event.body["service"] == "model")
            generation = await client.request("model.chat", chat(), timeout_s=WAIT_S)
            assert generation.text == DOCUMENTED[0]["answer"]
            runners = children_of(process.pid)
            assert runners
        finally:
            process.send_signal(number)
            status = await asyncio.wait_for(process.wait(), WAIT_S)
        assert status == (0 if number is signal.SIGTERM else -signal.SIGKILL)
        await until(lambda: not any(map(is_alive, runners)), "the end of every runner")


PORTS = ("request_port", "publish_port", "subscribe_port", "sequenced_port")


async def test_a_default_that_is_neither_model_nor_profile_is_told_at_the_start(
    serve_broker: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever misspelt `models.default` learns it before the first request does."""

    def told() -> list[str]:
        missing = [one for one in caplog.records if getattr(one, "action", "") == "model.default.missing"]
        return [getattr(one, "model", "") for one in missing]

    async with serve_broker() as settings, serving(settings, default="nobody", spare_runners=0):
        async with asyncio.timeout(WAIT_S):
            while not told():
                await asyncio.sleep(0.01)
    assert told() == ["nobody"]
