#!/usr/bin/env python3
"""Measure the memory service beside a bare echo, plain SQLite and the raw encoder, in one run. See docs/benchmarks.md."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import sqlite3
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from pydoc_data import topics
from typing import Final

# The bench reads the tree it stands in, wherever it is called from.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil
import uvloop

from bench_bus_parts import load
from bench_bus_parts.processes import Process, ProcessFailed, Stage, ended_by_signals, free_port
from bus.client import Client
from bus.settings import Settings, load_settings
from workers.memory.search.query import STOP_WORDS
from workers.memory.vectors.edge import QUIET_S
from workers.memory.vectors.encoder import Encoder, ProcessEncoder
from workers.memory.vectors.model_files import find_model

Figures = dict[str, float]

PORTS: Final = ("request_port", "publish_port", "subscribe_port", "sequenced_port")

# Callers at once where many are asked for.
IN_FLIGHT: Final = 64

# Items of one `memory.add_many`, and queries of one round.
BATCH_ITEMS: Final = 500
QUERIES_PER_ROUND: Final = 100

# Searches before any is measured: the pages of the database and of the index come into memory, 100,000 texts take 200 MB.
WARM_UP_QUERIES: Final = 200

# Texts of one round of the ingestion at least: fewer take no longer than the looks at how far it is.
SHARE_TEXTS: Final = 2_500

# Bytes of the values and of the echoed bodies.
VALUE_BYTES: Final = 100

# How the questions begin, and what stands between their words.
_OPENINGS: Final = ("What did we say about", "When was", "How did", "Why is the", "Where was my", "Who had", "What can")
_JOINTS: Final = ("and", "of the", "in", "with", "for a", "to", "or", "on")

EPILOG = """examples:
  scripts/bench_memory.py                       everything; embedding 100,000 texts takes minutes
  scripts/bench_memory.py --quick --json        a tenth of it
  scripts/bench_memory.py --only kv,writes
exit codes: 0 measured, 1 a process failed, 2 wrong arguments"""


class House:
    """A broker, an echo and the memory service as processes of their own, and a client here."""

    def __init__(self, stage: Stage, name: str, **memory: object) -> None:
        self.home = stage.home / name
        ports = {f"bus.{name}": free_port() for name in PORTS}
        chosen = {**ports, "home": str(self.home), **{f"memory.{key}": value for key, value in memory.items()}}
        environment = {f"OLYMPUS_{key.replace('.', '_').upper()}": str(value) for key, value in chosen.items()}
        self.settings: Settings = load_settings(overrides=chosen)
        broker = stage.start("broker", [sys.executable, "-m", "broker"], environment)
        for port in ports.values():
            broker.wait_for_port(port)
        stage.role("ours", "role_ours", "worker", settings=ports, service="bench")
        self.memory: Process = stage.start("memory", [sys.executable, "-m", "workers.memory"], environment)

    async def wait(self, client: Client) -> None:
        """Return once the memory service answers. Raises ProcessFailed."""
        deadline = time.monotonic() + 20
        while True:
            reply = await client.request("bus.services")
            if any(info.service == "memory" for info in reply.services):
                return
            if self.memory.child.poll() is not None or time.monotonic() > deadline:
                raise ProcessFailed("the memory service does not come up")
            await asyncio.sleep(0.05)


class Plan(argparse.Namespace):
    """What was asked for."""

    rounds: int
    seconds: float
    memories: int


async def kv(house: House, client: Client, plan: Plan) -> Figures:
    """kv get beside a bare echo of a body of the same size: single calls, and 64 in flight."""
    value = b"x" * VALUE_BYTES
    for number in range(100):
        await client.request("memory.kv.set", {"key": f"k{number}", "value": value})
    request = client.request
    # As long as the entry that a get answers.
    body = {"data": b"x" * (VALUE_BYTES + 60)}

    def echo() -> Awaitable[object]:
        return request("bench.echo", body)

    def get() -> Awaitable[object]:
        return request("memory.kv.get", {"key": "k7"})

    samples: dict[str, list[float]] = {name: [] for name in ("echo_us", "get_us", "echo_per_s", "get_per_s")}
    for _ in range(plan.rounds):
        for name, call in (("echo", echo), ("get", get)):
            one = await load.latency(call, seconds=plan.seconds / 2, requests=0)
            many = await load.throughput(call, seconds=plan.seconds, requests=0, in_flight=IN_FLIGHT)
            samples[f"{name}_us"].append(float(one["p50_us"]))
            samples[f"{name}_per_s"].append(float(many["per_s"]))
    figures = {f"kv_{name}": statistics.median(values) for name, values in samples.items()}
    # Of the same round: the machine is another in the next.
    ratios = {
        "latency": zip(samples["get_us"], samples["echo_us"], strict=True),
        "time": zip(samples["echo_per_s"], samples["get_per_s"], strict=True),
    }
    return figures | {
        f"kv_get_to_echo_{name}_ratio": statistics.median(over / under for over, under in pairs)
        for name, pairs in ratios.items()
    }


async def writes(house: House, client: Client, plan: Plan) -> Figures:
    """Durable writes by 64 callers at once, beside the same service with a commit of its own for every write.

    And beside SQLite alone, without a bus, a service or request ids: one synced commit per write in the same folder.
    """
    value = os.urandom(VALUE_BYTES)
    samples: dict[str, list[float]] = {name: [] for name in ("grouped", "single", "plain")}
    with Stage() as other:
        lone = House(other, "single", writes_per_commit=1)
        async with Client(lone.settings, name="bench single") as lone_client:
            await lone.wait(lone_client)
            for number in range(plan.rounds):
                for name, caller in (("grouped", client), ("single", lone_client)):
                    samples[name].append(await _writes_per_s(caller, value, plan.seconds))
                samples["plain"].append(_commits_per_s(house.home / f"plain-{number}.db", value, plan.seconds))
    grouped, single, plain = (statistics.median(values) for values in samples.values())
    return {
        "writes_per_s": grouped,
        "single_commit_writes_per_s": single,
        "plain_commits_per_s": plain,
        "writes_to_single_commit_ratio": grouped / single,
        "writes_to_plain_commits_ratio": grouped / plain,
    }


async def _writes_per_s(client: Client, value: bytes, seconds: float) -> float:
    written = 0

    def write() -> Awaitable[object]:
        nonlocal written
        written += 1
        return client.request("memory.kv.set", {"key": f"w{written}", "value": value})

    many = await load.throughput(write, seconds=seconds, requests=0, in_flight=IN_FLIGHT)
    return float(many["per_s"])


def _commits_per_s(path: Path, value: bytes, seconds: float) -> float:
    with sqlite3.connect(path, isolation_level=None) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE kv (key TEXT PRIMARY KEY, value BLOB)")
        written, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            connection.execute("INSERT INTO kv VALUES (?, ?)", (f"w{written}", value))
            written += 1
        return written / (time.perf_counter() - began)


async def ingest(house: House, client: Client, plan: Plan) -> Figures:
    """Texts a second from the first `memory.add_many` until every text has its vector, beside the encoder alone.

    In shares, and the encoder alone encodes a part of each share before it and another after it.
    """
    texts = _texts(plan.memories)
    size = -(-len(texts) // max(1, min(plan.rounds, len(texts) // SHARE_TEXTS)))
    samples: dict[str, list[float]] = {name: [] for name in ("stored", "raw", "ingested", "ratio")}
    async with opened_encoder(house.settings) as encoder:
        await encoder.encode(texts[:64])
        await _ingested(client, texts[:1])
        for start in range(0, len(texts), size):
            share = texts[start : start + size]
            part = min(SHARE_TEXTS, len(share) // 2)
            before = await _encoded_s(encoder, share[:part])
            stored_s, ingested_s = await _ingested(client, share)
            after = await _encoded_s(encoder, share[-part:])
            raw = 2 * part / (before + after)
            samples["stored"].append(len(share) / stored_s)
            samples["raw"].append(raw)
            samples["ingested"].append(len(share) / ingested_s)
            samples["ratio"].append(len(share) / ingested_s / raw)
    stored, raw, ingested, ratio = (statistics.median(values) for values in samples.values())
    return {
        "memories": float(len(texts)),
        "stored_per_s": stored,
        "encoder_texts_per_s": raw,
        "ingested_per_s": ingested,
        "ingest_to_encoder_ratio": ratio,
    }


async def _ingested(client: Client, texts: Sequence[str], ns: str = "bench") -> tuple[float, float]:
    """Seconds until every text is stored, and until it has its vector too."""
    began = time.perf_counter()
    for start in range(0, len(texts), BATCH_ITEMS):
        items = [{"content": text} for text in texts[start : start + BATCH_ITEMS]]
        await client.request("memory.add_many", {"items": items, "ns": ns}, timeout_s=120)
    stored_s = time.perf_counter() - began
    while (await client.request("memory.stats")).waiting:  # noqa: ASYNC110 - another process counts
        await asyncio.sleep(0.05)
    return stored_s, time.perf_counter() - began


async def _encoded_s(encoder: Encoder, texts: Sequence[str]) -> float:
    began = time.perf_counter()
    await encoder.encode(texts)
    return time.perf_counter() - began


@asynccontextmanager
async def opened_encoder(settings: Settings) -> AsyncIterator[Encoder]:
    """The same encoder as the service's, in a process of its own, loaded."""
    cache = settings.path("cache", "encoder")
    encoder = ProcessEncoder(find_model(settings.memory.encoder, cache), cache, threads=0, idle_s=-1)
    try:
        await encoder.load()
        yield encoder
    finally:
        await encoder.close()


async def search(house: House, client: Client, plan: Plan) -> Figures:
    """Time of `memory.search` over the bus, each query new, beside the time encoders alone take for the query.

    Ours in a process of its own like the service's, and sentence-transformers with the same model, as it comes.
    """
    texts = _texts(plan.memories)
    await _graph_built(house)
    async with opened_encoder(house.settings) as encoder:
        for query in _queries(texts, WARM_UP_QUERIES, seed=13):
            await encoder.encode([query], is_query=True)
            await client.request("memory.search", {"query": query, "ns": "bench"}, timeout_s=60)
        queries = _queries(texts, plan.rounds * QUERIES_PER_ROUND)
        embedded, found, empty = [], [], 0
        for query in queries:
            before = time.perf_counter()
            await encoder.encode([query], is_query=True)
            between = time.perf_counter()
            reply = await client.request("memory.search", {"query": query, "ns": "bench"})
            found.append((time.perf_counter() - between) * 1e3)
            embedded.append((between - before) * 1e3)
            empty += not reply.hits
    # Of the same round: the machine is another in the next.
    rounds = [slice(at, at + QUERIES_PER_ROUND) for at in range(0, len(queries), QUERIES_PER_ROUND)]
    to_embed = statistics.median(_p95(found[one]) / _p95(embedded[one]) for one in rounds)
    embedded.sort()
    found.sort()
    # Afterwards: its threads take the cores for a while after each query.
    peer = _peer_embedded(house.settings, queries[:QUERIES_PER_ROUND])
    beside_peer = (
        {
            "peer_embed_p50_ms": load.quantile(peer, 0.5),
            "peer_embed_p95_ms": load.quantile(peer, 0.95),
            "search_p95_to_peer_embed_p95_ratio": load.quantile(found, 0.95) / load.quantile(peer, 0.95),
        }
        if peer
        else {}
    )
    return beside_peer | {
        "embed_p50_ms": load.quantile(embedded, 0.5),
        "embed_p95_ms": load.quantile(embedded, 0.95),
        "search_p50_ms": load.quantile(found, 0.5),
        "search_p95_ms": load.quantile(found, 0.95),
        "search_p95_to_embed_p50_ratio": load.quantile(found, 0.95) / load.quantile(embedded, 0.5),
        "search_p95_to_embed_p95_ratio": to_embed,
        "searches_without_hits": float(empty),
    }


def _p95(values: Sequence[float]) -> float:
    return load.quantile(sorted(values), 0.95)


def _peer_embedded(settings: Settings, queries: Sequence[str]) -> list[float]:
    """Milliseconds that sentence-transformers takes for each query, in order of size; none where it is not installed."""
    from workers.memory.vectors.sentence_model import SentenceModel

    try:
        model = SentenceModel(find_model(settings.memory.encoder, settings.path("cache", "encoder")).folder, threads=0)
    except ImportError:
        return []
    model.encode_queries(queries[:20])
    taken = []
    for query in queries:
        began = time.perf_counter()
        model.encode_queries([query])
        taken.append((time.perf_counter() - began) * 1e3)
    return sorted(taken)


async def filtered(house: House, client: Client, plan: Plan) -> Figures:
    """Time of `memory.search` with a filter that every memory fulfils, and with one that none does."""
    figures: Figures = {}
    for name, filters in (("broad", {"kinds": ["memory", "document"]}), ("narrow", {"type": "nothing"})):
        taken = []
        for query in _queries(_texts(plan.memories), WARM_UP_QUERIES + QUERIES_PER_ROUND, seed=17):
            began = time.perf_counter()
            await client.request("memory.search", {"query": query, "ns": "bench", "filters": filters})
            taken.append((time.perf_counter() - began) * 1e3)
        taken = sorted(taken[WARM_UP_QUERIES:])
        figures |= {
            f"{name}_filter_p50_ms": load.quantile(taken, 0.5),
            f"{name}_filter_p95_ms": load.quantile(taken, 0.95),
        }
    return figures


async def busy(house: House, client: Client, plan: Plan) -> Figures:
    """Time of `memory.search` over the bus, each query new, while texts are ingested."""
    texts = _texts(2 * SHARE_TEXTS)
    queries = iter(_queries(texts, 100_000))
    await client.request("memory.search", {"query": "warm up", "ns": "busy"}, timeout_s=60)
    ingesting = asyncio.create_task(_ingested(client, texts, ns="busy"))
    taken: list[float] = []
    while not ingesting.done():
        began = time.perf_counter()
        await client.request("memory.search", {"query": next(queries), "ns": "busy"})
        taken.append((time.perf_counter() - began) * 1e3)
        # Some ten a second, so that the searches themselves are not the load.
        await asyncio.sleep(0.1)
    await ingesting
    taken.sort()
    return {
        "search_while_ingesting_p50_ms": load.quantile(taken, 0.5),
        "search_while_ingesting_p95_ms": load.quantile(taken, 0.95),
    }


async def _graph_built(house: House) -> None:
    """Return once the index has been left alone long enough to build its graph, and has built it."""
    await asyncio.sleep(QUIET_S + 1)
    service = psutil.Process(house.memory.child.pid)
    while any(_builds_graph(child) for child in service.children()):  # noqa: ASYNC110 - another process builds
        await asyncio.sleep(0.2)


def _builds_graph(child: psutil.Process) -> bool:
    try:
        return "workers.memory.vectors.edge_optimise" in child.cmdline()
    except psutil.Error:
        # It has just ended.
        return False


def _texts(count: int) -> list[str]:
    """Made-up sentences of 8 to 24 words that Python's own reference uses, as often as it uses them."""
    words = re.findall(r"[A-Za-z]{2,}", " ".join(topics.topics.values()))
    chance = random.Random(7)
    return [f"{' '.join(chance.choices(words, k=chance.randint(8, 24)))} {number}." for number in range(count)]


def _queries(texts: Sequence[str], count: int, seed: int = 11) -> list[str]:
    """Different questions, as long as people's: 10.7 words on average, 5.9 of which are no function words.

    Those of the development set of `bench_recall.py` have 10.7 and 5.8.
    """
    chance = random.Random(seed)
    questions: dict[str, None] = {}
    while len(questions) < count:
        words = [
            word for word in chance.choice(texts).split()[:-1] + chance.choice(texts).split()[:-1] if _is_topic(word)
        ]
        about = words[: chance.choice((3, 4, 5, 5, 6, 6, 6, 7, 7, 9))]
        asked = [f"{chance.choice(_JOINTS)} {word}" if chance.random() < 0.3 else word for word in about]
        questions[f"{chance.choice(_OPENINGS)} {' '.join(asked)}?"] = None
    return list(questions)


def _is_topic(word: str) -> bool:
    return word.lower() not in STOP_WORDS


async def idle(house: House, client: Client, plan: Plan) -> Figures:
    """Resident memory of the service before anything needed the encoder, MiB."""
    return {"idle_rss_mib": house.memory.rss_mb()}


CASES: Final[dict[str, Callable[[House, Client, Plan], Awaitable[Figures]]]] = {
    "idle": idle,
    "kv": kv,
    "writes": writes,
    "ingest": ingest,
    "search": search,
    "filtered": filtered,
    "busy": busy,
}


def _arguments(argv: Sequence[str] | None) -> Plan:
    parser = argparse.ArgumentParser(
        prog="bench_memory.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default=",".join(CASES), metavar="CASES", help=f"of {','.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=5, help="rounds per case, of which the median counts")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds of one measurement")
    parser.add_argument("--memories", type=int, default=100_000, help="memories that are searched")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything: shape right, figures rough")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    plan = parser.parse_args(argv, namespace=Plan())
    plan.only = [name for name in plan.only.split(",") if name]
    unknown = [name for name in plan.only if name not in CASES]
    if unknown:
        parser.error(f"--only {unknown[0]!r} is none of {', '.join(CASES)}")
    if plan.quick:
        plan.rounds, plan.seconds, plan.memories = min(plan.rounds, 3), plan.seconds / 4, plan.memories // 10
    if plan.rounds < 1 or plan.seconds <= 0 or plan.memories < 100:
        parser.error("--rounds must be at least 1, --seconds above 0, --memories at least 100")
    return plan


async def _measure(house: House, plan: Plan) -> Figures:
    figures: Figures = {}
    async with Client(house.settings, name="bench") as client:
        await house.wait(client)
        for name in CASES:
            if name in plan.only:
                print(f"{name} ...", file=sys.stderr)
                figures |= await CASES[name](house, client, plan)
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and with --json the figures."""
    plan = _arguments(argv)
    try:
        with ended_by_signals(), Stage() as stage:
            figures = uvloop.run(_measure(House(stage, "home"), plan))
    except ProcessFailed as error:
        print(f"bench_memory.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    width = max(map(len, figures))
    for name, figure in figures.items():
        print(f"{name:<{width}}  {figure:>12,.2f}")
    if plan.json:
        print(json.dumps({name: round(figure, 4) for name, figure in figures.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
