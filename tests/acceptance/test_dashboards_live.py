"""Every query of every panel and rule, asked of a real Prometheus that scrapes a real house under load."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import re
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import pytest
import yaml
import zmq
import zmq.asyncio

from bus.client import Client
from bus.device_lock import DeviceLock
from bus.settings import Settings
from schemas import metrics
from schemas.bodies.telling import Figures, Series
from schemas.errors import BusError
from tests.fake_nvml import Card, FakeNvml
from tests.prometheus_process import ROOT, RULES, program, promtool
from workers.gateway.legacy.agents.roster import roster
from workers.resources.nvml import Nvml
from workers.resources.service import ResourceService

sys.path.insert(0, str(ROOT / "scripts"))
from bench_bus_parts.processes import Stage, free_port
from chaos_parts.house import House
from chaos_parts.prometheus import Prometheus

LEGACY = "KnowledgeBase"

# Queries are asked again until all have data; this long at most, while the load goes on, seconds.
WITHIN_S = 60.0

# What a house does not tell of within seconds, told as figures by this test through the real exporter, and why.
TOLD_HERE: dict[metrics.Metric, str] = {
    metrics.LEARNING_LOSS: "only while a training runs, which takes minutes",
    metrics.LEARNING_PROGRESS: "only while a training runs",
    metrics.SPANS_EXPORTED: "only with an OpenTelemetry collector",
}

# Selectors of rules that find something only while something is wrong, and why it is not here.
ONLY_WHEN_WRONG = {
    'olympus_model_generations_total{outcome!~"ok|cancelled|bad_request|unprocessable|too_large"}': "none fails",
    'olympus_worker_degraded{dependency=~"encoder|vectors"}': "memory has both",
}


class WarmNvml(FakeNvml):
    """A card that is working."""

    def nvmlDeviceGetUtilizationRates(self, card: Card) -> Any:  # noqa: N802 - the library's own name
        return type("Rates", (), {"gpu": 42})()


async def own_gpu(settings: Settings, folder: Path, stack: contextlib.AsyncExitStack) -> None:
    """The real resource service over a card that is none, with its lock held and wanted: another machine of the house."""
    elsewhere = msgspec.structs.replace(settings, home=str(folder))
    service = ResourceService(elsewhere, Nvml(lambda: WarmNvml(Card("GPU-1", used=5 * 2**30))))
    service.worker.instance = "other-machine"
    # It tells what it sees and is asked nothing: leases are kept in one book, that of the house.
    service.worker.capacity = 0
    await service.start()
    stack.push_async_callback(service.stop)
    lock = DeviceLock(folder / "locks", "gpu0")
    await lock.acquire(model="a-model", purpose="load", timeout_s=5)
    stack.callback(lock.release)


async def told_here(client: Client) -> None:
    """One telling of what this house does not do."""
    told = {metric.name: [Series(tuple("ok" for _ in metric.labels), time.monotonic() % 1000)] for metric in TOLD_HERE}
    body = Figures(
        service="learning",
        instance="other-machine",
        host="other-machine",
        pid=1,
        started_at=time.time(),
        at=time.time(),
        every_s=30.0,
        metrics=told,
    )
    await client.publish("metrics.learning", body)


async def load(client: Client, ports: dict[tuple[str, str], int], number: int) -> None:
    """One round of everything that people do, and of some things that they should not."""

    async def refused(work: Coroutine[Any, Any, Any]) -> None:
        with contextlib.suppress(BusError):
            await work

    ask = client.request
    await ask("memory.kv.set", {"key": f"k{number}", "value": number})
    await ask("memory.kv.get", {"key": f"k{number}"})
    await refused(ask("memory.kv.get", {"key": "nothing is here"}))
    await ask("memory.add", {"content": f"Ada keeps {number} bees", "tags": ["bees"]})
    await ask("memory.search", {"query": "who keeps bees"})
    await ask("memory.cache.set", {"key": "c", "value": 1})
    await ask("memory.cache.get", {"key": "c"})
    session = await ask("memory.session.create", {"user_id": "ada"})
    await ask("memory.session.append", {"session_id": session.session_id, "turns": [{"role": "user", "content": "hi"}]})
    for prompt in ("Hello", f"What is {number % 20} + 1?"):
        messages = [{"role": "user", "content": prompt}]
        await ask("model.chat", {"messages": messages, "max_tokens": 4}, timeout_s=30)
    await refused(ask("nobody.serves.this", {}, timeout_s=2))
    report = {"service": "test", "message": f"broken {'abcdefghij'[number % 10]}", "severity": "error"}
    await ask("error.report", report)
    await refused(ask("auth.login", {"user_id": "mallory", "password": "wrong wrong wrong"}))
    async with httpx.AsyncClient(timeout=20, trust_env=False) as http:
        await http.get(f"http://127.0.0.1:{ports['memory', 'rest']}/kv/k{number}")
        await http.get(f"http://127.0.0.1:{ports['memory', 'rest']}/kv/nothing")
    await hang_up(ports["models", "rest"])
    if number % 3 == 2:
        await ask("model.unload", {"model": "olympus-demo"}, timeout_s=30)
    with zmq.asyncio.Context() as context, context.socket(zmq.REQ) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, 10_000)
        socket.connect(f"tcp://127.0.0.1:{ports[LEGACY, 'requests']}")
        await socket.send(json.dumps({"action": "search_facts", "query": "bees"}).encode())
        await socket.recv()


async def hang_up(port: int) -> None:
    """Ask for a story over HTTP, and do not wait for it."""
    body = json.dumps(
        {"model": "olympus-demo", "messages": [{"role": "user", "content": "Tell me a story about a fox."}]}
    )
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.close()
    await writer.wait_closed()


class Scene(NamedTuple):
    """What was seen. missing: where a query stands that had no data -> the query."""

    missing: dict[str, str]
    no_series: set[str]
    rules: list[dict[str, Any]]
    page: str
    told: set[str]
    choices: dict[str, list[str]]


def substituted(expression: str) -> str:
    """As Grafana asks it, with every choice at its widest."""
    expression = expression.replace("$__rate_interval", "1m").replace("$__range", "1m")
    return re.sub(r"\$\w+", ".*", expression)


def dashboards() -> dict[str, dict[str, Any]]:
    """As Grafana reads them."""
    return {path.stem: json.loads(path.read_text()) for path in (ROOT / "config/grafana/dashboards").glob("*.json")}


def panel_queries() -> dict[str, str]:
    """Where each query of a panel or a mark stands -> what is asked."""
    found: dict[str, str] = {}
    for name, dashboard in dashboards().items():
        panels = [inner for panel in dashboard["panels"] for inner in (panel, *panel.get("panels", []))]
        for panel in panels:
            for target in panel.get("targets", []):
                found[f"{name}: {panel['title']}: {target['refId']}"] = substituted(target["expr"])
        for marks in dashboard["annotations"]["list"]:
            if "expr" in marks:
                found[f"{name}: marks {marks['name']}"] = marks["expr"]
    return found


def variable_queries() -> dict[str, tuple[str, str]]:
    """Where each variable stands -> the label whose values it shows, and of which series."""
    found = {}
    for name, dashboard in dashboards().items():
        for variable in dashboard["templating"]["list"]:
            selector, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
            found[f"{name}: {variable['name']}"] = (label, selector)
    return found


def rule_selectors() -> set[str]:
    """Every selector that a rule holds. An alert's whole expression has data only while it fires."""
    rules = [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]
    pattern = r"(?:[a-z]+:)?olympus_[a-z0-9_]+(?::[a-z0-9_]+)?(?:\{[^}]*\})?"
    found = {found for rule in rules for found in re.findall(pattern, rule["expr"])}
    assert set(ONLY_WHEN_WRONG) <= found, "the list names what no rule asks for"
    return found - set(ONLY_WHEN_WRONG) | {'up{job="olympus"}'}


def has_data(prometheus: Prometheus, expression: str) -> bool:
    """True where something comes that is a number."""
    return any(not math.isnan(float(one["value"][1])) for one in prometheus.query(expression))


async def watch(stage: Stage, folder: Path) -> Scene:
    """Run the house under load until every query has data, or the time is over."""
    off = [
        f"{agent.name}{suffix}=off" for agent in roster() for suffix in ("", ".health", ".events", ".errors", ".http")
    ]
    house = House(
        stage,
        {
            "legacy.enabled": True,
            "legacy.ports": json.dumps([one for one in off if one != f"{LEGACY}=off"] + [f"{LEGACY}=0"]),
            # Nobody listens on either: what cannot be reached is shown, too.
            "memory.redis_url": f"unix://{folder}/no-redis",
            "errors.webhooks": json.dumps([f"http://127.0.0.1:{free_port()}/"]),
            # It is asked of while the words of a query are encoded; a test need not wait for the first download.
            "memory.encoder_preload": True,
        },
    )
    await house.start()
    prometheus = Prometheus(stage, house.exporter)
    queries, selectors = panel_queries(), rule_selectors()
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client(house.settings, name="load"))
        await own_gpu(house.settings, folder, stack)
        listed = await client.request("gateway.ports")
        ports = {(info.owner, info.purpose): info.port for info in listed.ports if info.state == "bound"}
        deadline = time.monotonic() + WITHIN_S
        page, told = "", set[str]()
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=20, trust_env=False))
        for number in itertools.count():
            await told_here(client)
            await load(client, ports, number)
            if number % 4 == 3:
                queries = await asyncio.to_thread(without_data, prometheus, queries)
                selectors = set(await asyncio.to_thread(without_data, prometheus, {one: one for one in selectors}))
                # Some are told while a model is loaded, and the load takes it out now and then.
                page = (await http.get(f"http://{house.exporter}/metrics")).text
                told |= set(re.findall(r"^# TYPE (\w+) ", page, re.MULTILINE))
            if not (queries or selectors or set(metrics.METRICS) - told) or time.monotonic() > deadline:
                break
        choices = {
            where: prometheus.label_values(label, selector) for where, (label, selector) in variable_queries().items()
        }
        return Scene(queries, selectors, prometheus.rules(), page, told, choices)


def without_data(prometheus: Prometheus, queries: dict[str, str]) -> dict[str, str]:
    """Those that have none yet."""
    return {where: query for where, query in queries.items() if not has_data(prometheus, query)}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """What Prometheus saw of the house."""
    program("prometheus")
    with Stage() as stage:
        return asyncio.run(watch(stage, tmp_path_factory.mktemp("other")))


def test_every_query_of_every_panel_has_data(scene: Scene) -> None:
    """Of panels and of marks; with the variables at All."""
    assert scene.missing == {}


def test_every_choice_of_a_dashboard_has_values(scene: Scene) -> None:
    """Variables find the labels that they offer."""
    assert all(scene.choices.values()), scene.choices
    assert {"bus", "memory", "model", "model.runner", "exporter"} <= set(scene.choices["errors: service"])
    assert scene.choices["models: model"] == ["olympus-demo"]
    assert "gpu0" in scene.choices["models: device"]


def test_every_rule_is_healthy_and_looks_at_series_that_exist(scene: Scene) -> None:
    """Prometheus evaluates each without an error, and every selector in one finds something."""
    assert {rule["name"]: rule.get("lastError") for rule in scene.rules if rule["health"] != "ok"} == {}
    assert scene.no_series == set()


def test_every_declared_metric_is_told_by_the_running_house(scene: Scene) -> None:
    """One that nobody tells is no metric."""
    assert set(metrics.METRICS) - scene.told == set()


def test_promtool_finds_nothing_to_say_of_the_page(scene: Scene) -> None:
    """Names, help and types as Prometheus wants them."""
    said = promtool("check", "metrics", given=scene.page)

    assert said.returncode == 0, said.stdout
