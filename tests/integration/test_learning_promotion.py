"""Promotion on the real model service and the real PEFT: compared, tried on a share of the conversations, kept or taken back."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bus.client import Client
from bus.settings import Settings
from schemas.bodies.learning_gate import Deployment, LearnedAdapters, Rollback, WatchShow
from schemas.bodies.model import Chat, ChatMessage, Generation, ModelUnload
from schemas.bodies.model_files import AdapterInfo, AdapterList
from schemas.errors import Unprocessable
from tests.learning_promotion import MODEL, Job, Others, documented_rows, learning_records, verdict
from tests.peft_adapter import lora_weights, write_adapter
from tests.training_rows import BASE
from workers.learning.promotion.promotion import Promotion
from workers.learning.promotion.reference import Task, Text
from workers.learning.promotion.reference_process import ask_peft
from workers.learning.training.training import Nest
from workers.models.service import ModelService

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
pytest.importorskip("gguf", reason="gguf is not installed")
pytest.importorskip("peft", reason="peft is not installed")

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 30.0


class House:
    """The learning service's promotion beside a model service."""

    def __init__(self, settings: Settings, client: Client, promotion: Promotion, others: Others) -> None:
        self.settings, self.client, self.promotion, self.others = settings, client, promotion, others

    async def adapters(self) -> dict[str, AdapterInfo]:
        found = await self.client.request("model.adapter.list", AdapterList(model=MODEL), timeout_s=WAIT_S)
        return {one.adapter: one for one in found.adapters}

    async def chat(self, **more: Any) -> Generation:
        request = Chat(
            messages=[ChatMessage(role="user", content="Hello")], temperature=0.0, max_tokens=10, seed=1, **more
        )
        reply = await self.client.request("model.chat", request, timeout_s=WAIT_S)
        assert isinstance(reply, Generation)
        return reply

    async def answered_by(self, conversations: int) -> dict[str, str]:
        """Who answers each conversation that names no adapter."""
        keys = [f"conversation {number}" for number in range(conversations)]
        replies = await asyncio.gather(*(self.chat(conversation_id=key) for key in keys))
        return {key: reply.adapter or "" for key, reply in zip(keys, replies, strict=True)}


@asynccontextmanager
async def running(settings: Settings, others: Others, told: list[str]) -> AsyncIterator[House]:
    """Both services on a broker that runs; a second time is their restart."""
    models = ModelService(settings)
    await models.start()
    records = learning_records(settings)
    await records.open()
    try:
        async with Client(settings, name="learning") as client:

            async def publish(subject: str, body: Deployment) -> None:
                told.append(f"{subject} {body.state}")
                await client.publish(subject, body)

            promotion = Promotion(
                settings,
                client,
                records,
                jobs=others,
                verdicts=others,
                rows=others,
                live=others,
                publish=publish,
                nest=Nest(),
            )
            yield House(settings, client, promotion, others)
    finally:
        await records.close()
        await models.stop()


async def test_an_adapter_is_compared_tried_restarted_and_decided_by_outcomes(
    serve_broker: Any, tmp_path: Path
) -> None:
    """PEFT and the running model agree; the same conversations get the canary, also after a restart; then the best stays."""
    others, told = Others(), []  # type: ignore[var-annotated]
    others.rows = documented_rows()[:4]
    job = Job("job-1", write_adapter(tmp_path, "good", seed=1).path)
    async with serve_broker() as settings:
        async with running(settings, others, told) as house:
            prepared = await house.promotion.prepare(job)
            assert prepared.difference < 0.03
            assert prepared.bare_difference < 0.01
            assert (await house.adapters())[prepared.adapter].alias == "challenger"
            others.verdicts["job-1"] = verdict(prepared.adapter)
            deployed = await house.promotion.promote(job)
            assert (deployed.state, deployed.share) == ("canary", 0.5)
            bare, tone = await house.chat(adapter=""), await house.chat(adapter=prepared.adapter)
            assert bare.token_ids != tone.token_ids
            before = await house.answered_by(16)
            assert set(Counter(before.values())) == {"", f"{prepared.adapter}:1"}
            await house.client.request("model.unload", ModelUnload(model=MODEL), timeout_s=WAIT_S)
            assert await house.answered_by(16) == before
        async with running(settings, others, told) as house:
            await house.promotion.reconcile()
            assert await house.answered_by(16) == before
            # A conversation that both sides have read is never continued from the other's state.
            theirs = next(key for key, adapter in before.items() if adapter)
            assert (await house.chat(conversation_id=theirs, adapter="")).token_ids == bare.token_ids
            assert (await house.chat(conversation_id=theirs)).token_ids == tone.token_ids
            for _ in range(20):
                others.settle("", 1.0)
                others.settle(f"{prepared.adapter}:1", 0.0)
            (watched,) = (await house.promotion.watch(WatchShow())).watches
            assert watched.state == "rolled_back"
            assert set((await house.answered_by(16)).values()) == {""}
            assert await house.adapters() == {}
            (last,) = (await house.promotion.adapters(LearnedAdapters())).deployments
            assert last.reason.startswith("worse than the bare model")
    assert told == ["learning.promoted canary", "learning.rolled_back rolled_back"]


async def test_a_warm_process_computes_what_a_cold_one_does(tmp_path: Path) -> None:
    """To the last digit; what it refuses it refuses in the same words, and one that nobody waits for any more ends."""
    texts = [Text(prompt="The lamp is in the", answer=" hall."), Text(prompt="Two and two are", answer=" four.")]
    task = Task(base=str(BASE), adapter=write_adapter(tmp_path, "good", seed=1).path, texts=texts)
    nest = Nest()
    await nest.open()
    try:
        cold = await ask_peft(task, Nest())
        warm = await ask_peft(task, nest)
        assert [one.index for one in warm] == [0, 1]
        assert warm == cold
        with pytest.raises(Unprocessable, match="PEFT cannot use the adapter"):
            await ask_peft(Task(base=str(BASE), adapter=str(tmp_path), texts=texts), nest)
        asking = asyncio.create_task(ask_peft(task, nest))
        async with asyncio.timeout(WAIT_S):
            while not nest.is_busy:
                await asyncio.sleep(0.001)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        async with asyncio.timeout(WAIT_S):
            while nest.is_busy:
                await asyncio.sleep(0.001)
    finally:
        await nest.close()


async def test_a_wrong_conversion_and_another_base_are_refused_and_detached(serve_broker: Any, tmp_path: Path) -> None:
    """The file that serves is not what PEFT computes: with both numbers; then a forced rollback finds nothing to do."""
    from safetensors.numpy import save_file

    from workers.models.adapters import convert

    others = Others()
    others.rows = documented_rows()[:4]
    job = Job("job-1", write_adapter(tmp_path, "wrong", seed=1).path)
    async with serve_broker() as settings, running(settings, others, []) as house:
        attach = house.promotion._served.attach

        async def attach_another(model: str, adapter: str, path: str, note: str, *, is_challenger: bool) -> AdapterInfo:
            other = tmp_path / "other"
            other.mkdir()
            (other / convert.CONFIG).write_text((Path(path) / convert.CONFIG).read_text())
            save_file({name: value * 1.2 for name, value in lora_weights(1, 8).items()}, other / convert.WEIGHTS)
            return await attach(model, adapter, str(other), note, is_challenger=is_challenger)

        house.promotion._served.attach = attach_another  # type: ignore[method-assign]
        with pytest.raises(Unprocessable, match=r"differ by \d\.\d+ nats per token, allowed are 0\.\d+ \(without it"):
            await house.promotion.prepare(job)
        assert await house.adapters() == {}
        assert (await house.chat()).adapter is None
        with pytest.raises(Exception, match="no learned adapter"):
            await house.promotion.rollback(Rollback(model=MODEL))


def test_no_answer_is_another_adapters_while_adapters_are_swapped() -> None:
    """The bench on few requests: attach, canary, promote, roll back and detach under concurrent conversations."""
    ran = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "bench_adapter_swaps.py"), "--requests", "200", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    figures = json.loads(ran.stdout.splitlines()[-1])
    assert (figures["wrong_adapter"], figures["wrong_answer"], figures["failed"]) == (0, 0, 0)
    assert figures["swaps"] > 10
