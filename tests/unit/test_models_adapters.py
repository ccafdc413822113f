"""The registry of adapters: versions, champions, what is told to the runner, and what a refusal leaves behind."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from bus.settings import Settings
from bus.worker import Call
from schemas.bodies.model import Chat, ChatMessage, ModelInfo
from schemas.bodies.model_files import (
    AdapterAttach,
    AdapterChange,
    AdapterDetach,
    AdapterList,
    AdapterPromote,
    AdapterRollback,
)
from schemas.errors import BadRequest, BusError, Conflict, Internal, NotFound, Unprocessable
from tests.peft_adapter import lora_weights, write_adapter
from workers.models.adapters.canary import Canary, InUse
from workers.models.adapters.convert import Converted, convert
from workers.models.adapters.registry import AdapterRegistry
from workers.models.catalogue import SHIPPED_ROOT
from workers.models.gguf_header import UnusableFile
from workers.models.records import model_records
from workers.models.relay import CALLER
from workers.models.runner import Runner

pytest.importorskip("gguf", reason="gguf is not installed")

GGUF = SHIPPED_ROOT / "olympus-demo.gguf"
HF = SHIPPED_ROOT / "hf"


def info(name: str = "demo", path: Path = GGUF, format: str = "gguf") -> ModelInfo:
    return ModelInfo(
        name=name,
        family="llama",
        format=format,
        quantisation="F16",
        parameters=1,
        size_bytes=1,
        context_tokens=1,
        state="available",
        path=str(path),
    )


class FakeRunners:
    """Notes what it is told; refuses the adapters named in `refused`."""

    def __init__(self) -> None:
        self.told: list[tuple[list[str], str | None]] = []
        self.refused: set[str] = set()
        self.canary: Canary | None = None

    async def set_adapters(self, name: str, use: InUse) -> None:
        if self.refused & {file.name for file in use.files}:
            raise Unprocessable("does not fit")
        self.told.append((sorted(file.name for file in use.files), use.champion))
        self.canary = use.canary

    def loaded(self) -> list[str]:
        return ["demo"]


class House:
    """A registry on its records, with a fake converter: the content is what the source is called."""

    def __init__(self, settings: Settings) -> None:
        self.runners = FakeRunners()
        self.events: list[tuple[str, AdapterChange]] = []
        self.records = model_records(settings.path("models.db"))
        self.registry = AdapterRegistry(settings, self.records, self.find, self.runners, self.publish)

    def find(self, name: str) -> ModelInfo:
        if name not in ("demo", "alias"):
            raise NotFound(f"no model {name}")
        return info()

    async def publish(self, subject: str, change: AdapterChange) -> None:
        self.events.append((subject, change))

    async def attach(self, adapter: str = "tone", **more: Any) -> str:
        attached = await self.registry.attach(AdapterAttach(model="demo", adapter=adapter, **more))
        return f"{attached.adapter}:{attached.version}"

    async def aliases(self) -> dict[str, str]:
        found = (await self.registry.list(AdapterList())).adapters
        return {f"{one.adapter}:{one.version}": one.alias or ("used" if one.is_attached else "") for one in found}

    def files(self, settings: Settings) -> set[str]:
        return {path.name for path in settings.path("adapters").iterdir()}


@pytest.fixture
def house(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`async with house() as house:`; a second one in the same home is the service after a restart."""

    async def fake(source: str, base: str, target: Path) -> Converted:
        if source == "/broken":
            raise Unprocessable("cannot be used as an adapter")
        await asyncio.to_thread(target.write_text, source)
        return Converted(sha256=source.strip("/") * 64, size_bytes=1, rank=4)

    monkeypatch.setattr("workers.models.adapters.registry.convert_apart", fake)

    @asynccontextmanager
    async def opened() -> AsyncIterator[House]:
        one = House(settings)
        await one.records.open()
        try:
            await one.registry.open()
            yield one
        finally:
            await one.records.close()

    return opened


async def test_new_content_is_the_next_version_and_known_content_is_itself(house: Any) -> None:
    """A name means the version attached last; every version in use has its exact name too."""
    async with house() as one:
        assert await one.attach(path="/a") == "tone:1"
        assert await one.attach(path="/b") == "tone:2"
        assert await one.attach(path="/a") == "tone:1"
        assert await one.attach("other", path="/a") == "other:1"
        assert await one.attach(version=2) == "tone:2"
        assert one.runners.told[-1] == (["other", "other:1", "tone", "tone:2"], None)
        assert await one.aliases() == {"other:1": "used", "tone:1": "", "tone:2": "used"}


async def test_champions_are_promoted_and_rolled_back_in_turn(house: Any) -> None:
    """Each change is told to the runner, then to everybody; at the bottom is the bare model."""
    async with house() as one:
        await one.attach(path="/a")
        await one.attach(path="/b")
        await one.registry.promote(AdapterPromote(model="alias", adapter="tone", version=1))
        state = await one.registry.promote(AdapterPromote(model="demo", adapter="tone", version=2, reason="better"))
        assert (state.champion.version, state.previous.version) == (2, 1)
        again = await one.registry.promote(AdapterPromote(model="demo", adapter="tone", version=2))
        assert again.champion.version == 2
        state = await one.registry.rollback(AdapterRollback(model="demo", reason="worse"))
        assert (state.champion.version, state.previous.version) == (1, 2)
        assert one.registry.of("demo")[1] == "tone:1"
        assert one.runners.told[-1][1] == "tone:1"
        state = await one.registry.rollback(AdapterRollback(model="demo"))
        assert (state.champion, one.registry.of("demo")[1]) == (None, None)
        with pytest.raises(Conflict, match="no champion"):
            await one.registry.rollback(AdapterRollback(model="demo"))
        assert [subject.rpartition(".")[2] for subject, _ in one.events] == ["promoted"] * 2 + ["rolled_back"] * 2
        assert [change.reason for _, change in one.events] == ["", "better", "worse", ""]


async def test_a_challenger_beside_the_champion_of_the_same_name(house: Any) -> None:
    """The name stays the champion's, the challenger has its exact name, and there is one challenger at most."""
    async with house() as one:
        await one.attach(path="/a")
        await one.registry.promote(AdapterPromote(model="demo", adapter="tone"))
        await one.attach(path="/b", alias="challenger")
        files = {file.name: file.sha256[0] for file in one.registry.of("demo")[0]}
        assert files == {"tone": "a", "tone:1": "a", "tone:2": "b"}
        assert await one.aliases() == {"tone:1": "champion", "tone:2": "challenger"}
        await one.attach("other", path="/c", alias="challenger")
        assert await one.aliases() == {"other:1": "challenger", "tone:1": "champion", "tone:2": "used"}


async def test_everything_is_there_after_a_restart_and_half_made_files_are_not(house: Any, settings: Settings) -> None:
    """The source may have vanished long ago."""
    async with house() as one:
        await one.attach(path="/a", note="first")
        await one.registry.promote(AdapterPromote(model="demo", adapter="tone"))
        before = one.registry.of("demo")
        (settings.path("adapters") / ".new-left").mkdir()
    async with house() as one:
        assert one.registry.of("demo") == before
        assert one.files(settings) == {f"{'a' * 64}.gguf"}
        await one.registry.use("demo", "tone")
        assert one.runners.told == []
        assert settings.path("adapters").stat().st_mode & 0o077 == 0, "of its owner alone"


async def test_what_the_runner_refuses_changes_nothing(house: Any, settings: Settings) -> None:
    """No version, no file, no champion; the next attempt with a good one works."""
    async with house() as one:
        await one.attach(path="/a")
        before = one.registry.of("demo"), one.files(settings)
        one.runners.refused = {"tone:2"}
        with pytest.raises(Unprocessable, match="does not fit"):
            await one.attach(path="/b")
        with pytest.raises(Unprocessable, match="cannot be used"):
            await one.attach(path="/broken")
        assert (one.registry.of("demo"), one.files(settings)) == before
        one.runners.refused = {"tone:1"}
        with pytest.raises(Unprocessable):
            await one.registry.promote(AdapterPromote(model="demo", adapter="tone"))
        assert (one.registry.of("demo")[1], one.events) == (None, [])
        assert await one.attach("tone", path="/c") == "tone:2"


async def test_what_the_disk_does_not_take_does_not_answer(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner is turned back to what is listed."""
    async with house() as one:
        await one.attach(path="/a")
        told = one.runners.told[-1]

        def full(*_: Any) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        with monkeypatch.context() as patched:
            patched.setattr("workers.models.adapters.registry._write", full)
            with pytest.raises(Internal, match="full"):
                await one.registry.promote(AdapterPromote(model="demo", adapter="tone"))
        assert one.runners.told[-1] == told
        assert await one.aliases() == {"tone:1": "used"}


async def test_a_model_that_loads_during_a_change_takes_what_it_comes_to(house: Any) -> None:
    """Also what is not written down yet; and after a refusal what was before."""
    async with house() as one:
        seen: list[tuple[list[str], str | None]] = []
        told = one.runners.set_adapters

        async def look(name: str, use: InUse) -> None:
            files, champion, _ = one.registry.of(name)
            seen.append((sorted(file.name for file in files), champion))
            await told(name, use)

        one.runners.set_adapters = look
        await one.attach(path="/a")
        one.runners.refused = {"other"}
        with pytest.raises(Unprocessable, match="does not fit"):
            await one.attach("other", path="/b")
        both = ["other", "other:1", "tone", "tone:1"]
        assert seen == [(["tone", "tone:1"], None), (both, None), (["tone", "tone:1"], None)]
        assert [file.name for file in one.registry.of("demo").files] == ["tone:1", "tone"]


async def test_a_change_whose_asker_goes_away_is_a_whole_one(house: Any, settings: Settings) -> None:
    """Runner, list and file agree, whenever the request is cancelled."""
    async with house() as one:
        release = asyncio.Event()
        told = one.runners.set_adapters

        async def held(name: str, use: InUse) -> None:
            await told(name, use)
            asking.cancel()
            await release.wait()

        one.runners.set_adapters = held
        asking = asyncio.create_task(one.attach(path="/a"))
        asyncio.get_running_loop().call_later(0.01, release.set)
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert one.files(settings) == {f"{'a' * 64}.gguf"}
        assert await one.aliases() == {"tone:1": "used"}


async def test_detaching_takes_every_version_out_of_use_but_not_the_champion(house: Any) -> None:
    """It stays known and can be attached again."""
    async with house() as one:
        await one.attach(path="/a")
        await one.registry.promote(AdapterPromote(model="demo", adapter="tone"))
        with pytest.raises(Conflict, match="champion"):
            await one.registry.detach(AdapterDetach(model="demo", adapter="tone"))
        await one.registry.rollback(AdapterRollback(model="demo"))
        detached = await one.registry.detach(AdapterDetach(model="demo", adapter="tone"))
        assert (detached.is_attached, one.runners.told[-1]) == (False, ([], None))
        await one.registry.use("demo", "tone:1")
        assert one.runners.told[-1] == (["tone", "tone:1"], None)


async def test_bad_requests_name_what_is_wrong(house: Any) -> None:
    """Unknown models, names and versions; relative paths; names that look like versions; a version of a file."""
    async with house() as one:
        with pytest.raises(NotFound, match="known are: none"):
            await one.attach()
        await one.attach(path="/a")
        wrong: list[tuple[type[BusError], dict[str, Any]]] = [
            (NotFound, {"version": 7}),
            (BadRequest, {"path": "relative"}),
            (BadRequest, {"path": "/a", "version": 1}),
            (BadRequest, {"adapter": "tone:3", "path": "/a"}),
        ]
        for kind, change in wrong:
            with pytest.raises(kind):
                await one.attach(**change)
        with pytest.raises(NotFound, match="tone:1"):
            await one.registry.promote(AdapterPromote(model="demo", adapter="tune"))
        with pytest.raises(NotFound):
            await one.registry.list(AdapterList(model="nobody"))


# Canary -------------------------------------------------------------------------------------------------------------

KEYS = [f"conversation {number}" for number in range(2_000)]


def test_a_share_of_the_conversations_is_taken_and_always_the_same() -> None:
    """A larger share takes those of the smaller one and more; another canary takes others."""
    small = {key for key in KEYS if Canary("a:1", 0.25).takes(key)}
    large = {key for key in KEYS if Canary("a:1", 0.5).takes(key)}
    other = {key for key in KEYS if Canary("b:1", 0.25).takes(key)}
    assert 430 < len(small) < 570
    assert 930 < len(large) < 1_070
    assert small < large
    assert 80 < len(small & other) < 170


def test_a_conversation_or_else_a_caller_stays_on_one_side_of_the_canary() -> None:
    """Who names an adapter gets that one; who is nobody is drawn anew each time."""
    runner = object.__new__(Runner)
    runner._use = InUse((), "old:1", Canary("new:1", 0.5))

    def meant(caller: str = "", **more: Any) -> str | None:
        call = SimpleNamespace(headers={CALLER: caller}, caller=None)
        return runner._meant(Chat(messages=[ChatMessage(role="user", content="Hello")], **more), cast(Call, call))

    for key in KEYS[:50]:
        assert len({meant(conversation_id=key, caller=caller) for caller in ("", "ann", "bob")}) == 1
        assert len({meant(caller=key) for _ in range(3)}) == 1
    assert {meant(caller=key) for key in KEYS[:50]} == {meant() for _ in range(50)} == {"old:1", "new:1"}
    assert (meant(adapter=""), meant(adapter="other")) == ("", "other")
    runner._use = InUse((), "old:1")
    assert {meant() for _ in range(20)} == {"old:1"}


async def shares(one: Any) -> dict[str, tuple[str, float]]:
    found = (await one.registry.list(AdapterList(model="demo"))).adapters
    return {info.adapter: (info.alias, info.share) for info in found}


async def test_a_canary_stands_beside_the_champion_until_it_is_promoted_or_rolled_back(house: Any) -> None:
    """The champion keeps the rest; a rollback takes the canary first; with share 1 it becomes the champion."""
    async with house() as one:
        for name, path in (("old", "/a"), ("new", "/b")):
            await one.attach(name, path=path)
        await one.registry.promote(AdapterPromote(model="demo", adapter="old"))
        state = await one.registry.promote(AdapterPromote(model="demo", adapter="new", share=0.25))
        assert (state.champion.adapter, state.canary.adapter) == ("old", "new")
        assert one.runners.canary == Canary("new:1", 0.25)
        assert await shares(one) == {"old": ("champion", 0.75), "new": ("canary", 0.25)}
        again = await one.registry.promote(AdapterPromote(model="demo", adapter="new", share=0.25))
        assert (again.canary.adapter, len(one.events)) == ("new", 2)

        with pytest.raises(Conflict, match="not old"):
            await one.registry.rollback(AdapterRollback(model="demo", adapter="old"))
        state = await one.registry.rollback(AdapterRollback(model="demo", adapter="new"))
        assert (state.champion.adapter, state.canary, state.previous.adapter) == ("old", None, "new")
        assert one.runners.canary is None

        await one.registry.promote(AdapterPromote(model="demo", adapter="new", share=0.25))
        await one.registry.promote(AdapterPromote(model="demo", adapter="new"))
        assert await shares(one) == {"old": ("", 0.0), "new": ("champion", 1.0)}
        with pytest.raises(Conflict, match="already"):
            await one.registry.promote(AdapterPromote(model="demo", adapter="new", share=0.5))
        assert [(subject.rpartition(".")[2], change.share) for subject, change in one.events][-2:] == [
            ("promoted", 0.25),
            ("promoted", 1.0),
        ]


async def test_a_canary_survives_a_restart_and_the_next_challenger(house: Any) -> None:
    """It stays in use whatever else is attached, and cannot be detached; without a champion the rest is the bare model."""
    async with house() as one:
        await one.attach("new", path="/b")
        await one.registry.promote(AdapterPromote(model="demo", adapter="new", share=0.5))
        before = one.registry.of("demo")
    async with house() as one:
        assert one.registry.of("demo") == before
        await one.attach("other", path="/c", alias="challenger")
        assert one.registry.of("demo").canary == Canary("new:1", 0.5)
        assert await shares(one) == {"new": ("canary", 0.5), "other": ("challenger", 0.0)}
        with pytest.raises(Conflict, match="roll it back"):
            await one.registry.detach(AdapterDetach(model="demo", adapter="new"))
        await one.registry.promote(AdapterPromote(model="demo", adapter="other", share=0.1))
        assert await shares(one) == {"new": ("", 0.0), "other": ("canary", 0.1)}


async def test_what_is_forgotten_leaves_no_file_unless_another_needs_it(house: Any, settings: Settings) -> None:
    """A champion of the past stays, for a rollback may come back to it."""
    async with house() as one:
        await one.attach("one", path="/a")
        await one.attach("same", path="/a")
        await one.attach("two", path="/b")
        await one.registry.detach(AdapterDetach(model="demo", adapter="one", forget=True))
        await one.registry.detach(AdapterDetach(model="demo", adapter="two", forget=True))
        assert one.files(settings) == {f"{'a' * 64}.gguf"}
        with pytest.raises(NotFound):
            await one.registry.promote(AdapterPromote(model="demo", adapter="two"))
        await one.attach("new", path="/c")
        await one.registry.promote(AdapterPromote(model="demo", adapter="same"))
        await one.registry.promote(AdapterPromote(model="demo", adapter="new"))
        with pytest.raises(Conflict, match="was a champion"):
            await one.registry.detach(AdapterDetach(model="demo", adapter="same", forget=True))
        assert f"{'a' * 64}.gguf" in one.files(settings)


# Conversion ---------------------------------------------------------------------------------------------------------


def changed(folder: Path, weights: dict[str, Any] | None = None, **config: Any) -> Path:
    """An adapter's folder with its configuration or its weights changed."""
    source = Path(write_adapter(folder).path)
    told = source / "adapter_config.json"
    told.write_text(json.dumps({**json.loads(told.read_text()), **config}))
    if weights is not None:
        from safetensors.numpy import save_file

        save_file(weights, source / "adapter_model.safetensors")
    return source


def test_a_peft_folder_becomes_a_gguf_with_permuted_rows(tmp_path: Path) -> None:
    """Names, shapes, scale; the rows of each head go from halves to pairs."""
    from gguf import GGUFReader

    source = Path(write_adapter(tmp_path, rank=4).path)
    converted = convert(source, GGUF, tmp_path / "out.gguf")
    reader = GGUFReader(tmp_path / "out.gguf")
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    weights = lora_weights(1, 4)
    name = "base_model.model.model.layers.5.self_attn.q_proj"
    b = weights[f"{name}.lora_B.weight"]
    assert converted.rank == 4
    alpha = reader.get_field("adapter.lora.alpha")
    assert alpha is not None
    assert alpha.contents() == 8.0
    assert np.array_equal(tensors["blk.5.attn_q.weight.lora_a"], weights[f"{name}.lora_A.weight"])
    made = tensors["blk.5.attn_q.weight.lora_b"]
    # The demo model's heads have 32 rows: row 1 of a head was row 16, row 2 was row 1.
    assert np.array_equal(made[[0, 1, 2, 33]], b[[0, 16, 1, 48]])
    again = convert(source, GGUF, tmp_path / "again.gguf")
    assert again.sha256 == converted.sha256


def test_a_finished_gguf_and_a_folder_for_a_folder_are_copied(tmp_path: Path) -> None:
    """The copy is what was there, and its hash that of the content."""
    source = Path(write_adapter(tmp_path).path)
    first = convert(source, GGUF, tmp_path / "one.gguf")
    second = convert(tmp_path / "one.gguf", GGUF, tmp_path / "two.gguf")
    assert (first.sha256, first.rank) == (second.sha256, second.rank)
    kept = convert(source, HF, tmp_path / "kept")
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert kept.rank == 8


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type LORA"),
        ({"r": 0}, "r is 0"),
        ({"lora_alpha": "much"}, "lora_alpha"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa_niter_16"}, "changed the base"),
        ({"use_rslora": True, "r": 4}, "its rank is 8"),
    ],
)
def test_configurations_that_cannot_be_carried_over_are_refused(
    tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    """An adapter that computes something else is worse than none."""
    with pytest.raises(UnusableFile, match=words):
        convert(changed(tmp_path, **config), GGUF, tmp_path / "out.gguf")


def test_weights_that_are_no_adapter_of_this_kind_are_refused(tmp_path: Path) -> None:
    """Foreign names, half a pair, shapes that do not belong together, a file cut short, no folder of PEFT's."""
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    a, b = np.zeros((2, 192), np.float32), np.zeros((192, 2), np.float32)
    for number, (weights, words) in enumerate(
        [
            ({f"{name}.weight": a}, "no part of a LoRA"),
            ({f"{name}.lora_A.weight": a}, "only one"),
            ({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b[:, :1].copy()}, "do not belong together"),
            ({f"{name}x.lora_A.weight": a, f"{name}x.lora_B.weight": b}, "no part of a model"),
            ({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b[:7].copy()}, "7 rows"),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(UnusableFile, match=words):
            convert(changed(folder, weights), GGUF, folder / "out.gguf")
    source = Path(write_adapter(tmp_path).path)
    weights_file = source / "adapter_model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-10])
    with pytest.raises(UnusableFile):
        convert(source, GGUF, tmp_path / "out.gguf")
    with pytest.raises(UnusableFile, match="PEFT did not write it"):
        convert(tmp_path / "0", GGUF, tmp_path / "out.gguf")
    with pytest.raises(UnusableFile, match="no LoRA adapter"):
        convert(GGUF, GGUF, tmp_path / "out.gguf")


def test_bfloat16_weights_are_read(tmp_path: Path) -> None:
    """Their bits are the upper half of a float32."""
    from workers.models.adapters.convert import _tensors

    values = np.array([[1.0, -2.5, 0.15625]], np.float32)
    raw = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    header = json.dumps({"x": {"dtype": "BF16", "shape": [1, 3], "data_offsets": [0, 6]}}).encode()
    file = tmp_path / "x.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + raw)
    assert np.array_equal(_tensors(file)["x"], values)


_LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_GATED = (*_LINEARS, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_PARTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@pytest.mark.parametrize(
    ("family", "modules", "parts", "is_permuted"),
    [
        ("llama", _GATED, _PARTS, True),
        ("mistral3", _GATED, _PARTS, True),
        *((family, _GATED, _PARTS, False) for family in ("qwen2", "qwen3", "gemma", "gemma2", "gemma3", "olmo2")),
        ("starcoder2", (*_LINEARS, "mlp.c_fc", "mlp.c_proj"), (*_PARTS[:4], "ffn_up", "ffn_down"), False),
    ],
)
def test_every_known_architecture_has_all_its_linear_layers_by_their_names(
    tmp_path: Path, family: str, modules: tuple[str, ...], parts: tuple[str, ...], is_permuted: bool
) -> None:
    """Of grouped heads, too: the key's rows are permuted by the number of its own heads."""
    import gguf

    base = tmp_path / "base.gguf"
    writer = gguf.GGUFWriter(base, family)
    writer.add_block_count(1)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    draw = np.random.default_rng(1)
    weights = {}
    for module in modules:
        rows = 16 if module.endswith("k_proj") else 32
        name = f"base_model.model.model.layers.0.{module}"
        weights[f"{name}.lora_A.weight"] = draw.normal(size=(2, 8)).astype(np.float32)
        weights[f"{name}.lora_B.weight"] = draw.normal(size=(rows, 2)).astype(np.float32)
    source = changed(tmp_path, weights, r=2)
    convert(source, base, tmp_path / "out.gguf")
    made = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    assert set(made) == {f"blk.0.{part}.weight.lora_{side}" for part in parts for side in "ab"}
    for module, part in zip(modules, parts, strict=True):
        b = weights[f"base_model.model.model.layers.0.{module}.lora_B.weight"]
        moved = is_permuted and part in ("attn_q", "attn_k")
        # Heads of eight rows: row 1 of a head was its row 4.
        order = [row // 8 * 8 + (row % 8 // 2 + (row % 2) * 4) for row in range(len(b))] if moved else range(len(b))
        assert np.array_equal(made[f"blk.0.{part}.weight.lora_b"], b[list(order)])
        assert np.array_equal(
            made[f"blk.0.{part}.weight.lora_a"], weights[f"base_model.model.model.layers.0.{module}.lora_A.weight"]
        )


def test_an_architecture_that_is_not_known_is_refused_with_those_that_are(tmp_path: Path) -> None:
    """Its tensors may lie in another order, which nobody would notice."""
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "base.gguf", "falcon")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnusableFile, match=r"'falcon' cannot be converted here \(llama, mistral3"):
        convert(Path(write_adapter(tmp_path).path), tmp_path / "base.gguf", tmp_path / "out.gguf")
