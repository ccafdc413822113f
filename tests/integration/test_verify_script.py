"""The checklist against a whole house: every line passes, nothing is left behind, and what is broken fails."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from bus.settings import Settings
from tests.legacy_house import LegacyHouse
from workers.gateway.legacy.agents.roster import roster
from workers.gateway.service import Gateway

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

SERVICES = ("memory", "resources", "models", "learning")


@pytest.fixture(scope="module")
def verify() -> Iterator[ModuleType]:
    """The script as a module, with its parts beside it."""
    before = list(sys.path)
    sys.path.insert(0, str(SCRIPTS))
    try:
        yield import_module("verify")
    finally:
        sys.path[:] = before


def with_free_ports(settings: Settings) -> Settings:
    """For a gateway whose every port takes any free number."""
    kinds = (("", "ports"), (".health", "health_ports"), (".events", "event_ports"), (".errors", "intake_ports"))
    ports = [
        f"{agent.name}{suffix}={'0' if getattr(agent, field) else 'off'}"
        for agent in roster()
        for suffix, field in kinds
    ]
    ports += [f"{agent.name}.http=off" for agent in roster()]
    names = [f"{service}{kind}_port" for service in ("memory", "models", "learning") for kind in ("", "_health")]
    return msgspec.structs.replace(
        settings,
        legacy=msgspec.structs.replace(settings.legacy, enabled=True, ports=tuple(ports)),
        rest=msgspec.structs.replace(settings.rest, **dict.fromkeys(names, 0)),
    )


class Checked:
    """A house with a gateway, and the script asked about it."""

    def __init__(self, verify: ModuleType, house: LegacyHouse) -> None:
        self.verify, self.house = verify, house

    def run(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
        """Exit code, and what --json told."""
        settings = self.house.settings
        ports = ("request_port", "publish_port", "subscribe_port", "sequenced_port")
        sets = {
            "home": settings.home,
            "models.max_loaded": settings.models.max_loaded,
            "auth.required": str(settings.auth.required).lower(),
            **{f"bus.{name}": getattr(settings.bus, name) for name in ports},
        }
        flags = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
        capsys.readouterr()
        status = self.verify.main(["--json", *flags, *arguments])
        return status, json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def checked(verify: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checked]:
    """Everything, on free ports."""
    alone = {"models.max_loaded": 1, "models.predict": False}
    with LegacyHouse(tmp_path_factory.mktemp("home"), (), services=SERVICES, **alone) as house:
        gateway = Gateway(with_free_ports(house.settings))
        house.run(gateway.start)
        try:
            yield Checked(verify, house)
        finally:
            house.run(gateway.stop)


def kept_by(house: LegacyHouse) -> set[tuple[str, str]]:
    """Namespaces and kinds that hold anything."""
    return {(one.ns, one.kind) for one in house.bus("memory.stats").namespaces if one.count}


def loaded_in(house: LegacyHouse) -> set[str | None]:
    """Processes that serve a model."""
    return {model.instance for model in house.bus("model.list").models if model.state == "loaded"}


def test_every_line_passes_and_nothing_is_left(checked: Checked, capsys: pytest.CaptureFixture[str]) -> None:
    """Skipped are only what this house does not have; what cannot be deleted ends by itself."""
    house = checked.house
    house.bus("model.load", {"model": "olympus-demo"})
    house.bus("model.unload", {"model": "olympus-demo"})
    before, loaded = kept_by(house), loaded_in(house)

    status, told = checked.run(capsys)

    failed = [line for line in told["lines"] if line["verdict"] == "FAIL"]
    assert failed == []
    assert status == 0
    skipped = {line["name"]: line["reason"] for line in told["lines"] if line["verdict"] == "SKIP"}
    assert set(skipped) == {
        "without a token nothing is served",
        "without a good token nothing is served",
        "/v1/embeddings answers",
    }
    assert all(line["evidence"] for line in told["lines"] if line["verdict"] == "PASS" and line["group"] != "end")
    assert {kind for ns, kind in kept_by(house) - before if ns.startswith("verify.")} <= {"experience"}
    assert loaded_in(house) == loaded
    assert house.bus("resource.lease.list", {"service": "verify"}).leases == []
    assert house.bus("learning.exchange.list").exchanges == []


def test_a_model_that_was_loaded_stays_loaded(checked: Checked, capsys: pytest.CaptureFixture[str]) -> None:
    """The same process serves it before and after; where one model has room nothing is swapped."""
    house = checked.house
    pid = house.bus("model.load", {"model": "olympus-demo"}).pid

    status, told = checked.run(capsys, "--only", "models", "--only", "learning")

    assert status == 0
    swap = next(line for line in told["lines"] if "device lock" in line["name"])
    assert (swap["verdict"], "models.max_loaded is 1" in swap["reason"]) == ("SKIP", True)
    assert house.bus("model.load", {"model": "olympus-demo"}).pid == pid
    house.bus("model.unload", {"model": "olympus-demo"})


def test_only_the_groups_that_were_named_are_run(checked: Checked, capsys: pytest.CaptureFixture[str]) -> None:
    """As text, with a verdict, a name and evidence a line."""
    _, told = checked.run(capsys, "--only", "errors")

    assert {line["group"] for line in told["lines"]} == {"errors", "end"}
    assert (told["failed"], told["skipped"]) == (0, 0)


def test_without_services_it_fails_and_ends(
    verify: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bus alone: what must be there fails, what nobody opened is skipped with the reason."""
    with LegacyHouse(tmp_path, (), services=()) as house:
        status, told = Checked(verify, house).run(capsys, "--timeout", "0.5")

    by_name = {line["name"]: line for line in told["lines"]}
    assert status == 1
    assert by_name["every service has joined"]["reason"] == "not on the bus: memory, model, resource, learning, gateway"
    assert by_name["a plain REQ socket is answered in JSON"]["verdict"] == "PASS"
    assert by_name["kv over the bus: set, get, compare, list, delete"]["reason"].startswith("no_worker")
    assert by_name["memory: /health says ok"]["verdict"] == "SKIP"
    assert "legacy.enabled" in by_name["KnowledgeBase is well and answers"]["reason"]


def test_where_everybody_signs_in_that_is_checked(
    verify: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over the bus and over HTTP, with the secret of the home."""
    with LegacyHouse(tmp_path, (), services=("memory",), **{"auth.required": True, "legacy.user": "old"}) as house:
        gateway = Gateway(with_free_ports(house.settings))
        house.run(gateway.start)
        try:
            _, told = Checked(verify, house).run(capsys, "--only", "bus", "--only", "rest", "--only", "memory")
        finally:
            house.run(gateway.stop)

    by_name = {f"{line['group']}: {line['name']}": line for line in told["lines"]}
    for name in (
        "bus: without a token nothing is served",
        "rest: without a good token nothing is served",
        "memory: kv over HTTP is the same kv",
        "memory: an account signs in, is verified and signs out",
    ):
        assert by_name[name]["verdict"] == "PASS", by_name[name]
    assert "secret" not in json.dumps(told)


def test_without_a_broker_it_says_so(verify: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line, with the address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    status = verify.main(["--set", f"home={tmp_path}", "--set", f"bus.request_port={port}"])

    assert status == 1
    assert f"no broker at 127.0.0.1:{port} (refused)" in capsys.readouterr().out
