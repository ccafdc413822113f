"""How models are held: terms, figures, uses, the order of eviction, and what a refused lease tells the scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.settings import ModelSettings
from schemas.bodies.model import ModelInfo, Timings, Usage, UsageEvent
from schemas.bodies.resource import DeviceStatus, LeaseInfo
from schemas.errors import Internal
from workers.models.backends.backend import Remote
from workers.models.catalogue import Entry
from workers.models.decisions import Room
from workers.models.eviction import Candidate, enough_for, in_order
from workers.models.facts import Facts
from workers.models.leasing import holders, rooms_for
from workers.models.records import model_records
from workers.models.routing.rules import ModelRules, RemoteModel
from workers.models.stats import RECENT, Stats
from workers.models.terms import Keep, Wish, terms_of, window

GIB = 1024**3


def entry(name: str = "m", *, backend: str = "llama.cpp", remote: RemoteModel | None = None) -> Entry:
    info = ModelInfo(
        name=name,
        family="llama",
        format="gguf",
        quantisation="F16",
        parameters=10**9,
        size_bytes=2 * GIB,
        context_tokens=4096,
        state="available",
        backend=backend,
    )
    facts = Facts(weights_bytes=2 * GIB, layers=16, kv_heads=8, head_dim_k=64, head_dim_v=64, parameters=10**9)
    return Entry(info=info, facts=facts, remote=remote)


def terms(rules: ModelRules | None = None, **more: Any) -> Any:
    values = {"keep": Keep(), "wish": Wish(), "gpus": (), "models": ModelSettings(), "entry": entry(), **more}
    return terms_of(
        values["entry"], rules or ModelRules(), values["models"], values["keep"], values["wish"], values["gpus"]
    )


def test_what_was_asked_goes_before_the_rules_and_they_before_the_settings() -> None:
    """model.keep, then the rules file, then the settings, field by field."""
    models = ModelSettings(keep_alive_s=100.0, max_idle_s=7.0, pinned=("m",))
    held = terms(models=models)
    assert (held.keep_alive_s, held.max_idle_s, held.is_pinned, held.priority) == (100.0, 7.0, True, 3)
    rules = ModelRules(priority=2, keep_alive_s=50.0, max_idle_s=0.0, is_swappable=False)
    held = terms(rules, models=models)
    assert (held.keep_alive_s, held.max_idle_s, held.priority, held.is_swappable) == (50.0, 0.0, 2, False)
    held = terms(rules, models=models, keep=Keep(is_pinned=False, priority=5))
    assert (held.keep_alive_s, held.is_pinned, held.priority) == (50.0, False, 5)


def test_a_model_goes_to_the_gpu_where_there_is_one() -> None:
    """One GPU is named, several are left to who grants the memory; the wish and the rule go first, no layers mean none."""
    assert terms().device == "cpu"
    assert terms(gpus=("gpu0",)).device == "gpu0"
    assert terms(gpus=("gpu0", "gpu1")).device is None
    assert terms(ModelRules(device="gpu1"), gpus=("gpu0", "gpu1")).device == "gpu1"
    assert terms(ModelRules(device="gpu1"), gpus=("gpu0",), wish=Wish(device="cpu")).device == "cpu"
    assert terms(ModelRules(gpu_layers=0), gpus=("gpu0",)).device == "cpu"


def test_memory_follows_device_and_window() -> None:
    """On a GPU the weights are there and something stays beside; a larger window takes more."""
    on_cpu, on_gpu = terms(), terms(gpus=("gpu0",))
    assert on_cpu.memory_bytes > 2 * GIB and on_cpu.beside_bytes == 0
    assert on_gpu.memory_bytes > 2 * GIB > on_gpu.beside_bytes > 0
    assert terms(wish=Wish(context_tokens=1024)).memory_bytes < on_cpu.memory_bytes


def test_a_remote_model_takes_nothing() -> None:
    """No device and no memory."""
    remote = RemoteModel(name="m", remote=Remote(base_url="http://127.0.0.1:1/v1", model="m"))
    held = terms(entry=entry(backend="openai", remote=remote), gpus=("gpu0",))
    assert (held.is_remote, held.device, held.memory_bytes, held.beside_bytes) == (True, None, 0, 0)


def test_the_window_is_the_models_own_up_to_the_limit() -> None:
    """Wish, rule, setting, else what it was trained for, but not more than max_context_tokens."""
    models = ModelSettings(max_context_tokens=2048)
    assert window(entry(), ModelRules(), models, Wish()) == 2048
    assert window(entry(), ModelRules(), ModelSettings(), Wish()) == 4096
    assert window(entry(), ModelRules(context_tokens=100), models, Wish()) == 100
    assert window(entry(), ModelRules(context_tokens=100), models, Wish(context_tokens=200)) == 200


candidates = st.lists(
    st.builds(
        Candidate,
        runner=st.integers(0, 99),
        priority=st.integers(1, 5),
        last_used=st.floats(0, 100),
        memory_bytes=st.integers(0, 50),
    ),
    max_size=8,
    unique_by=lambda one: one.runner,
)


@given(candidates, st.integers(1, 200))
def test_evictions_are_enough_and_none_of_them_could_stay(may_go: list[Candidate], need: int) -> None:
    """None when all together are not enough; otherwise enough, and without any one of them it would not be."""
    chosen = enough_for(need, may_go)
    if chosen is None:
        assert sum(one.memory_bytes for one in may_go) < need
        return
    freed = sum(one.memory_bytes for one in chosen)
    assert freed >= need
    assert all(freed - one.memory_bytes < need for one in chosen)


def test_the_least_important_leaves_first_and_then_the_longest_unused() -> None:
    """Priority 5 before 1, then by last use."""
    order = in_order(
        [
            Candidate(runner=1, priority=1, last_used=0.0, memory_bytes=1),
            Candidate(runner=2, priority=5, last_used=9.0, memory_bytes=1),
            Candidate(runner=3, priority=5, last_used=3.0, memory_bytes=1),
        ]
    )
    assert [one.runner for one in order] == [3, 2, 1]


def device(name: str, total: int, free: int, *holders: LeaseInfo) -> DeviceStatus:
    return DeviceStatus(
        device=name,
        name=name,
        source="declared",
        state="ok",
        total_bytes=total,
        used_bytes=None,
        reserved_bytes=total - free,
        free_bytes=free,
        leases=list(holders),
    )


def test_a_refusal_tells_of_every_device_that_could_have_done() -> None:
    """Any GPU for a model that named none; the main memory where the GPU has enough and it has not."""
    devices = [device("cpu", 100, 10), device("gpu0", 50, 20), device("gpu1", 80, 5)]
    assert rooms_for(None, 40, 0, devices) == (Room("gpu0", 50, 20, 40), Room("gpu1", 80, 5, 40))
    assert rooms_for("gpu1", 40, 0, devices) == (Room("gpu1", 80, 5, 40),)
    assert rooms_for("gpu0", 20, 30, devices) == (Room("cpu", 100, 10, 30),)
    assert rooms_for("cpu", 0, 30, devices) == (Room("cpu", 100, 10, 30),)
    assert rooms_for("gpu7", 30, 0, devices) == ()


def test_holders_are_named_with_what_they_hold() -> None:
    """Service, purpose and bytes of those on the devices in question."""
    held = LeaseInfo(
        lease_id="1",
        service="learning",
        device="cpu",
        vram_bytes=0,
        ram_bytes=90,
        priority=3,
        purpose="train",
        granted_at=0.0,
        expires_at=1.0,
        is_preemptible=False,
    )
    assert holders([device("cpu", 100, 10, held), device("gpu0", 9, 9)], {"cpu"}) == "learning (train): 90 bytes"


def answer(tokens: int, first_token_s: float, generate_s: float) -> UsageEvent:
    return UsageEvent(
        model="m",
        operation="chat",
        usage=Usage(prompt_tokens=10, completion_tokens=tokens, cached_tokens=4),
        timings=Timings(prompt_s=0.0, generate_s=generate_s, first_token_s=first_token_s, tokens_per_s=0.0),
        finish_reason="stop",
    )


async def test_figures_uses_and_keeps_survive_and_stay_bounded(tmp_path: Path) -> None:
    """What was counted is there again, of latencies the last thousand; an empty keep is forgotten."""
    records = model_records(tmp_path / "models.db")
    await records.open()
    try:
        stats = Stats(records)
        await stats.load()
        for number in range(RECENT + 50):
            stats.on_answer("m", answer(11, number / 1000, 2.0))
        stats.on_answer("m", None)
        stats.on_event("loading", "m", None, 70)
        stats.on_event("loaded", "m", 1.5, 70)
        stats.on_measured("m", 60)
        stats.on_judged("m", is_hit=False, idle_s=12.0)
        for at in (10.0, 7_000.0, 7_005.0, 7_200.0):
            stats.on_use("m", at)
        stats.on_use("other", 7_100.0)
        await stats.keep("m", Keep(priority=1))
        await stats.keep("other", Keep(is_pinned=True))
        await stats.keep("other", Keep())
        await stats.save(7_300.0, b"learned")

        again = Stats(records)
        await again.load()
        (figures,) = again.figures("m")
        uses = await again.uses(7_300.0, 3_600.0)
        assert again.figures("never")[0].requests == 0
    finally:
        await records.close()
    assert (figures.requests, figures.errors, figures.cached_tokens) == (RECENT + 51, 1, 4 * (RECENT + 50))
    assert figures.first_token_s is not None and figures.load_s is not None
    assert figures.first_token_s.max_s == pytest.approx((RECENT + 49) / 1000)
    assert figures.first_token_s.p50_s == pytest.approx(0.5495, abs=0.001)
    assert figures.tokens_per_s == pytest.approx(5.0)
    assert (figures.estimated_bytes, figures.measured_bytes, figures.preload_wasted_s) == (70, 60, 12.0)
    assert [(one.model, one.uses, one.last_used_at) for one in uses] == [("m", 3, 7_200.0), ("other", 1, 7_100.0)]
    assert again.keeps == {"m": Keep(priority=1)}
    assert again.learned == b"learned"


async def test_figures_that_cannot_be_written_are_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk costs no count and no use."""
    records = model_records(tmp_path / "models.db")
    await records.open()
    try:
        stats = Stats(records)
        stats.on_use("m", 10.0)
        stats.on_answer("m", None)

        async def fails(statements: Any) -> None:
            raise Internal("disk full")

        with monkeypatch.context() as patch:
            patch.setattr(records, "run", fails)
            with pytest.raises(Internal):
                await stats.save(20.0)
        await stats.save(30.0)

        again = Stats(records)
        await again.load()
        assert again.figures("m")[0].errors == 1
        assert [one.uses for one in await again.uses(40.0, 60.0)] == [1]
    finally:
        await records.close()
