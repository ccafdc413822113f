"""Adapters through the model service: attached, promoted and rolled back on the bus, while the model is in memory or not."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bus.client import Client
from bus.device_lock import DeviceLock, read_lock
from bus.settings import Settings
from schemas.bodies.model import Chat, ChatMessage, ModelShow, ModelUnload
from schemas.bodies.model_files import AdapterAttach, AdapterDetach, AdapterList, AdapterPromote, AdapterRollback
from schemas.errors import Conflict, NotFound, Unprocessable
from tests.peft_adapter import write_adapter
from workers.models.adapters.canary import InUse
from workers.models.adapters.convert import convert
from workers.models.backends.backend import AdapterFile
from workers.models.catalogue import SHIPPED_ROOT
from workers.models.control import Command, ServeModel
from workers.models.runner_process import RunnerProcess
from workers.models.service import ModelService

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
pytest.importorskip("gguf", reason="gguf is not installed")

NAME = "olympus-demo"
DOCUMENTED = json.loads((SHIPPED_ROOT / "documented.json").read_text())
WAIT_S = 20.0


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Client]:
    service = ModelService(settings)
    await service.start()
    try:
        async with Client(settings, name="test") as client:
            yield client
    finally:
        await service.stop()


async def chat(client: Client, **more: Any) -> Any:
    messages = [ChatMessage(**message) for message in DOCUMENTED[0]["messages"]]
    return await client.request("model.chat", Chat(messages=messages, temperature=0.0, **more), timeout_s=WAIT_S)


async def change(client: Client, verb: str, request: Any) -> Any:
    return await client.request(f"model.adapter.{verb}", request, timeout_s=WAIT_S)


async def test_an_adapter_from_its_file_to_champion_and_back(serve_broker: Any, tmp_path: Path) -> None:
    """Its source may vanish, the service may restart, the model may be loaded anew: the champion answers."""
    source = Path(write_adapter(tmp_path).path)
    async with serve_broker() as settings:
        async with serving(settings) as client, client.subscribe("model.adapter.*") as events:
            bare = await chat(client)
            attached = await change(client, "attach", AdapterAttach(model=NAME, adapter="tone", path=str(source)))
            assert (attached.version, attached.rank, attached.is_attached) == (1, 8, True)
            shutil.rmtree(source)
            tone = await chat(client, adapter="tone")
            assert tone.adapter == "tone"
            assert tone.token_ids != bare.token_ids
            assert (await chat(client)).token_ids == bare.token_ids

            await change(client, "promote", AdapterPromote(model=NAME, adapter="tone", reason="better"))
            event = await asyncio.wait_for(anext(events), WAIT_S)
            assert (event.subject, event.body["reason"]) == ("model.adapter.promoted", "better")
            champion = await chat(client)
            assert (champion.adapter, champion.token_ids) == ("tone:1", tone.token_ids)
            with pytest.raises(Conflict, match="champion"):
                await change(client, "detach", AdapterDetach(model=NAME, adapter="tone"))

            await client.request("model.unload", ModelUnload(model=NAME), timeout_s=WAIT_S)
            assert (await chat(client)).token_ids == tone.token_ids
        async with serving(settings) as client:
            assert (await chat(client)).token_ids == tone.token_ids
            state = await change(client, "rollback", AdapterRollback(model=NAME))
            assert (state.champion, state.previous.adapter) == (None, "tone")
            assert (await chat(client)).token_ids == bare.token_ids
            await change(client, "detach", AdapterDetach(model=NAME, adapter="tone"))
            with pytest.raises(NotFound, match="attached are: none"):
                await chat(client, adapter="tone")
            (known,) = (await change(client, "list", AdapterList(model=NAME))).adapters
            assert (known.alias, known.is_attached) == ("", False)


async def test_an_adapter_that_does_not_fit_is_refused_and_nothing_changes(serve_broker: Any, tmp_path: Path) -> None:
    """The runner says why; the model goes on answering, and loads again."""
    import numpy as np
    from safetensors.numpy import save_file

    wrong = Path(write_adapter(tmp_path, "wrong", seed=3).path)
    name = "base_model.model.model.layers.0.self_attn.v_proj"
    save_file(
        {
            f"{name}.lora_A.weight": np.ones((8, 64), np.float32),
            f"{name}.lora_B.weight": np.ones((64, 8), np.float32),
        },
        wrong / "adapter_model.safetensors",
    )
    async with serve_broker() as settings, serving(settings) as client:
        bare = await chat(client)
        with pytest.raises(Unprocessable, match="does not fit"):
            await change(client, "attach", AdapterAttach(model=NAME, adapter="wrong", path=str(wrong)))
        assert (await change(client, "list", AdapterList())).adapters == []
        assert (await chat(client)).token_ids == bare.token_ids
        await client.request("model.unload", ModelUnload(model=NAME), timeout_s=WAIT_S)
        assert (await chat(client)).token_ids == bare.token_ids


@asynccontextmanager
async def loading(settings: Settings) -> AsyncIterator[tuple[Client, DeviceLock]]:
    """The service with its default model on the way into memory: it waits for the lock that the caller may give back."""
    lock = DeviceLock(settings.path("locks"), "cpu")
    await lock.acquire(model="trainer", purpose="train", timeout_s=WAIT_S)
    async with serving(settings) as client, asyncio.timeout(WAIT_S):
        while not read_lock(settings.path("locks"), "cpu")[1]:
            await asyncio.sleep(0.01)
        shown = await client.request("model.show", ModelShow(model=NAME), timeout_s=WAIT_S)
        assert shown.state == "loading"
        yield client, lock


async def test_what_is_attached_while_the_model_loads_answers_from_the_first_request_on(
    serve_broker: Any, tmp_path: Path
) -> None:
    """And what is detached meanwhile is not missed, though its file is gone."""
    source = write_adapter(tmp_path).path
    async with serve_broker() as settings:
        async with loading(settings) as (client, lock):
            attached = await change(client, "attach", AdapterAttach(model=NAME, adapter="tone", path=source))
            assert not attached.is_attached
            # The next in the queue after the load: an adapter that is not attached by then is not there for long.
            behind = DeviceLock(settings.path("locks"), "cpu")
            taking = asyncio.create_task(behind.acquire(model="trainer", purpose="train", timeout_s=WAIT_S))
            while len(read_lock(settings.path("locks"), "cpu")[1]) < 2:
                await asyncio.sleep(0.01)
            lock.release()
            await taking
            assert (await chat(client, adapter="tone")).adapter == "tone"
            behind.release()
        async with loading(settings) as (client, lock):
            await change(client, "detach", AdapterDetach(model=NAME, adapter="tone", forget=True))
            lock.release()
            assert (await chat(client)).adapter is None


async def test_a_change_waits_for_a_model_that_is_about_to_answer(
    serve_broker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its adapters were told to it already, so the change is told next; if it leaves instead, nothing is missing."""
    source = Path(write_adapter(tmp_path).path)
    converted = convert(source, SHIPPED_ROOT / f"{NAME}.gguf", tmp_path / "tone.gguf")
    tone = InUse((AdapterFile(name="tone", path=str(tmp_path / "tone.gguf"), sha256=converted.sha256),))
    send, held = RunnerProcess.send, list[tuple[RunnerProcess, Command]]()

    def hold(process: RunnerProcess, command: Command) -> None:
        if isinstance(command, ServeModel):
            held.append((process, command))
        else:
            send(process, command)

    async def changing() -> asyncio.Task[None]:
        while not held:
            await asyncio.sleep(0.01)
        task = asyncio.create_task(service._loading.set_adapters(NAME, tone))
        await asyncio.wait({task}, timeout=0.1)
        assert not task.done()
        return task

    monkeypatch.setattr(RunnerProcess, "send", hold)
    async with serve_broker() as settings, Client(settings, name="test") as client, asyncio.timeout(WAIT_S):
        service = ModelService(settings)
        await service.start()
        try:
            change = await changing()
            await client.request("model.unload", ModelUnload(model=NAME), timeout_s=WAIT_S)
            await change
            held.clear()
            asking = asyncio.create_task(chat(client))
            change = await changing()
            send(*held.pop())
            await change
            assert (await asking).adapter is None
            assert (await chat(client, adapter="tone")).adapter == "tone"
        finally:
            await service.stop()
