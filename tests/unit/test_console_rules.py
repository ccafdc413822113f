"""What a tap of the console shows to whom, and how two looks at the bus become rates: pure rules."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from bus.authorize import Caller
from bus.settings import Settings
from bus.subscription import EventMeta, Missed, ReceivedEvent
from schemas import catalog
from schemas.bodies.control import BrokerStats, ServiceInfo, Trace, WorkerInfo
from schemas.bodies.sessions import Suggestion
from schemas.errors import Forbidden
from workers.gateway.console.feeds import Requests, item_of, namespaces_of
from workers.gateway.console.sight import RULES, Sight, scope_of
from workers.gateway.console.topology import Look, drawn, earlier

EVERYTHING = ("*",)


def sight(*scopes: str, namespaces: tuple[str, ...] = EVERYTHING) -> Sight:
    """That of a user."""
    return Sight(Caller("ada", scopes, namespaces))


def test_every_event_of_the_catalogue_has_a_rule_and_only_those_of_the_bus_itself_take_no_scope() -> None:
    """A new family must say who may see it; the scopes are such that operations take, or `admin`."""
    known = {operation.scope for operation in catalog.OPERATIONS.values()} | {"admin"}
    for event in catalog.EVENTS:
        subject = event.pattern.replace("*", "x")
        assert any(subject.startswith(rule.removesuffix(">")) for rule, _ in RULES), subject
        scope = scope_of(subject)
        assert scope in known and (scope or subject.startswith("bus.")), subject


def test_what_nobody_keeps_is_not_shown_to_everybody() -> None:
    """Events that hold texts of people, and what passes between others, take the scope of whoever may read those."""
    assert scope_of("model.answered") == "admin"
    assert scope_of("bus.trace.request") == "bus:read"
    assert scope_of("audit.sign_in") == "audit:read"
    assert scope_of("kitchen.a.b") == "kitchen:read"


@pytest.mark.parametrize(
    ("pattern", "scopes", "is_allowed"),
    [
        (">", (), True),
        ("*.changed.*", (), True),
        ("bus.>", (), True),
        ("bus.trace.>", (), False),
        ("bus.trace.*", ("bus:read",), True),
        ("memory.>", ("model:read",), False),
        ("memory.changed.kv", ("memory:*",), True),
        ("model.answered", ("model:read",), False),
        ("model.*", ("model:read",), True),
        ("kitchen.*", ("memory:read",), False),
        ("kitchen.*", ("kitchen:read",), True),
        ("audit.x@pc2", ("memory:read",), False),
        ("audit.>", ("admin",), True),
    ],
)
def test_a_pattern_is_refused_where_nothing_of_it_may_be_seen(
    pattern: str, scopes: tuple[str, ...], is_allowed: bool
) -> None:
    """Of one that reaches further comes what is allowed."""
    if is_allowed:
        sight(*scopes).check([pattern], has_traces=False)
    else:
        with pytest.raises(Forbidden, match="takes the scope"):
            sight(*scopes).check([pattern], has_traces=False)


def test_traces_take_their_own_right() -> None:
    """As `bus.trace.read` does."""
    with pytest.raises(Forbidden, match="bus:read"):
        sight("memory:read").check([">"], has_traces=True)
    sight("bus:read").check([">"], has_traces=True)
    Sight(None).check([">"], has_traces=True)


def test_what_is_hidden_is_named() -> None:
    """Family by family, of those that were asked for."""
    assert sight("memory:read").hidden(["memory.>", "model.loaded"]) == ["model.>"]
    assert "others" in sight("memory:read").hidden([">"]) and "memory.>" not in sight("memory:read").hidden([">"])
    assert Sight(None).hidden([">"]) == [] and sight("admin").hidden([">"]) == []


def test_events_of_the_memory_are_for_those_whose_namespaces_they_name() -> None:
    """All that an event names must be the caller's; one that names none is about all."""
    ada = sight("memory:read", namespaces=("user.ada", "user.ada.*"))
    for body, is_shown in (
        ({"ns": "user.ada"}, True),
        ({"ns": "user.ada.notes"}, True),
        ({"ns": "user.bob"}, False),
        ({"ns": "user.ada", "target_ns": "user.bob"}, False),
        ({"ns": ["user.ada", "user.bob"]}, False),
        ({"ns": None}, False),
        ({"key": "a"}, False),
        ("text", False),
        (None, False),
    ):
        assert ada.shows("memory:read", namespaces_of(body)) is is_shown, body
    assert sight("memory:read").shows("memory:read", ())
    assert not sight("model:read").shows("memory:read", namespaces_of({"ns": "kv"}))
    assert ada.shows("", None)


def test_a_suggestion_is_for_those_who_may_read_what_it_quotes() -> None:
    """It says where that is kept, beside where it was made."""
    kiosk = sight("memory:read", namespaces=("session",))
    made = Suggestion(
        suggestion_id="s", ns="session", kind="related", text="t", reason="r", evidence=[], confidence=1.0, made_at=0.0
    )
    for evidence_ns, is_shown in (("session", True), ("kb", False), ("", False)):
        body = msgspec.to_builtins(msgspec.structs.replace(made, evidence_ns=evidence_ns))
        assert kiosk.shows("memory:read", namespaces_of(body)) is is_shown, evidence_ns


def received(subject: str, raw: bytes, missed: Missed | None = None) -> ReceivedEvent:
    """An event as the bus gives it."""
    return ReceivedEvent(subject, EventMeta(7, 1.5, "pub", "i", missed), raw)


def test_a_body_that_is_left_out_belongs_to_all_namespaces() -> None:
    """Nobody has looked what it names."""
    item = item_of(received("memory.changed.kv", msgspec.msgpack.encode({"ns": "user.ada", "text": "x" * 40_000})))

    assert b'"cut":true' in item.text and b"xxx" not in item.text and item.namespaces == ()


@pytest.mark.parametrize(
    "raw",
    [
        b"\xc1",
        b"\x92\x01",
        b"\x91" * 5000 + b"\x00",
        b"[" * 5000,
        b'{"a":' * 3000,
        b"\xff\xff",
        b"",
        b'"\n\nevent: end"',
    ],
)
def test_whatever_somebody_publishes_is_one_event(raw: bytes) -> None:
    """No body breaks the stream or forges another event."""
    text = item_of(received("a.b", raw)).text

    assert text.startswith(b"event: event\ndata: {") and text.count(b"\n") == 3 and text.endswith(b"}\n\n")
    assert msgspec.json.decode(text[len(b"event: event\ndata: ") :])["body_bytes"] == len(raw)


def test_requests_that_were_under_way_in_a_gap_are_not_told_as_unanswered() -> None:
    """Their replies may have been in it; rubbish under the subject of traces is nothing."""

    def step(phase: Any, missed: Missed | None = None) -> Any:
        trace = Trace(phase=phase, id="a", subject="memory.kv.get", at=1.0, body_bytes=3, took_s=None)
        return requests(received("bus.trace.x", msgspec.msgpack.encode(trace), missed))

    requests = Requests()
    assert step("request") is None
    told = step("final", Missed(1, 2))
    assert b'"request_bytes":null' in told.text and told.subject == "memory.kv.get"
    assert requests(received("bus.trace.x", b"\x01")) is None


def look(at: float, boot: str = "b", **changed: Any) -> Look:
    """A look at a small bus."""
    counters = {
        field.name: changed.get(field.name, 0)
        for field in msgspec.structs.fields(BrokerStats)
        if field.name not in ("boot", "subscribers")
    }
    stats = BrokerStats(boot=boot, subscribers=[], **counters)
    service = ServiceInfo(
        service="memory", instances=1, capacity=4, in_flight=0, queued=0, answered=changed.get("answered", 0),
        failed=0, p50_s=None, p99_s=None, subjects=[],
    )  # fmt: skip
    worker = WorkerInfo(
        service="memory", instance="m", subjects=[], capacity=4, in_flight=0, state="serving", version="", host="pc1",
        pid=1, joined_at=0, heard_s=0, answered=changed.get("answered", 0), failed=0, cpu_s=changed.get("cpu_s", 0.0),
        degraded=changed.get("degraded", {}),
    )  # fmt: skip
    return Look(at, stats, [service], [worker])


def test_rates_are_differences_over_the_time_between() -> None:
    """Per second; cores; nothing where a counter began anew."""
    settings = Settings()
    picture = drawn(look(10.0, requests=100, answered=50), look(12.0, requests=300, answered=70, cpu_s=1.0), settings)

    assert picture.window_s == 2.0 and picture.broker.rates is not None and picture.broker.rates.requests == 100.0
    memory = next(one for one in picture.services if one.service == "memory")
    assert (memory.rate, memory.state, memory.machines) == (10.0, "ok", ["pc1"])
    assert (picture.workers[0].rate, picture.workers[0].cpu, picture.machines[0].cpu) == (10.0, 0.5, 0.5)
    assert drawn(look(10.0, answered=50), look(12.0, answered=5), settings).workers[0].rate == 0.0
    assert drawn(None, look(12.0), settings).broker.rates is None


def test_a_service_says_what_it_lacks_and_what_is_away_is_shown() -> None:
    """What it does without, what it waits for by the settings, and services of the catalogue that nobody serves."""
    machine = msgspec.structs.replace(
        Settings().machine, services=("broker", "memory=broker", "learning=broker+memory+models@pc2")
    )
    picture = drawn(
        None, look(1.0, degraded={"encoder": "no model"}), msgspec.structs.replace(Settings(), machine=machine)
    )

    found = {one.service: one for one in picture.services}
    assert (found["memory"].state, found["memory"].degraded) == ("degraded", {"encoder": "no model"})
    assert (found["learning"].state, found["learning"].needs) == ("away", ["broker", "memory", "models on pc2"])
    assert found["learning"].missing == ["models on pc2"]


def test_a_rate_takes_a_look_that_is_neither_too_young_nor_too_old_and_of_the_same_broker() -> None:
    """The newest of those."""
    known = [look(1.0), look(7.0), look(8.0), look(9.5)]

    assert earlier(known, look(10.0)) is known[2]
    assert earlier(known[:1], look(30.0)) is None
    assert earlier(known, look(10.0, boot="another")) is None


def test_a_part_of_a_service_that_has_no_worker_now_is_not_shown_as_away() -> None:
    """model.runner is there while a model is loaded; a program of its own, or what is waited for, is missed."""
    seen = look(1.0)
    gone = msgspec.structs.replace(seen.services[0], instances=0)
    services = [
        *(msgspec.structs.replace(gone, service=name) for name in ("model", "model.runner", "kitchen", "kitchen.oven")),
        msgspec.structs.replace(gone, service="kitchen.sink", queued=2),
        msgspec.structs.replace(gone, service="garden.shed"),
    ]
    picture = drawn(None, msgspec.structs.replace(seen, services=services), Settings())

    away = {one.service for one in picture.services if one.state == "away"}
    assert {"model", "kitchen", "kitchen.sink", "garden.shed", "memory"} <= away
    assert not {"model.runner", "kitchen.oven"} & {one.service for one in picture.services}
