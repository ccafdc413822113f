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
from workers.models.catalogue import SHIPPED_ROOT
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


async def test_what_is_attached_while_the_model_loads_answers_from_the_first_request_on(
    serve_broker: Any, tmp_path: Path
) -> None:
    """The model is in memory without it, and must not be asked before it has it."""
    source = write_adapter(tmp_path).path
    async with serve_broker() as settings:
        folder = settings.path("locks")
        first, second = DeviceLock(folder, "cpu"), DeviceLock(folder, "cpu")
        await first.acquire(model="trainer", purpose="train", timeout_s=WAIT_S)
        async with serving(settings) as client, asyncio.timeout(WAIT_S):
            while not read_lock(folder, "cpu")[1]:
                await asyncio.sleep(0.01)
            # The next in the queue after the load: no adapter is changed before it has had its turn.
            taking = asyncio.create_task(second.acquire(model="trainer", purpose="train", timeout_s=WAIT_S))
            while len(read_lock(folder, "cpu")[1]) < 2:
                await asyncio.sleep(0.01)
            shown = await client.request("model.show", ModelShow(model=NAME), timeout_s=WAIT_S)
            assert shown.state == "loading"
            attached = await change(client, "attach", AdapterAttach(model=NAME, adapter="tone", path=source))
            assert not attached.is_attached
            first.release()
            await taking
            asking = asyncio.create_task(chat(client, adapter="tone"))
            await asyncio.wait({asking}, timeout=0.5)
            assert not asking.done()
            second.release()
            assert (await asking).adapter == "tone"
