"""Errors: what a service or an old publisher reports becomes an event, is heard and can be read back."""

from __future__ import annotations

import json
import time
from typing import Any

from verify_parts.checklist import Check, Group
from verify_parts.plain import PlainSocket
from verify_parts.probe import Probe, first, told


def _service(probe: Probe) -> str:
    return probe.ns.replace(".", "-")


def native(probe: Probe) -> None:
    service = _service(probe)
    report = {"service": service, "severity": "info", "kind": "Verification", "message": "scripts/verify.py was here"}
    since_at = time.time() - 60
    with probe.client.subscribe(f"error.{service}.*", timeout_s=probe.timeout_s) as heard:
        began_at = time.monotonic()
        probe.client.publish(f"error.{service}.info", report)
        event = first(heard, "no subscriber heard it")
        probe.note(f"error.{service}.info -> {told(event)} ({(time.monotonic() - began_at) * 1e3:.1f} ms)")
    if not any(subject.startswith("error.") or subject == ">" for subject in probe.settings.broker.log_subjects):
        return
    _logged(probe, service, since_at)


def _logged(probe: Probe, service: str, since_at: float) -> None:
    query = {"subject": f"error.{service}.*", "since_at": since_at, "limit": 100}
    probe.until(lambda: probe.ask("bus.events.read", query)["events"] or None, "the event log does not have it")


def old_publisher(probe: Probe) -> None:
    port = probe.port("ErrorBus", "errors", "zeromq")
    service = f"{_service(probe)}-old"
    report = {
        "agent": service,
        "severity": "low",
        "error_type": "Verification",
        "message": "scripts/verify.py was here",
    }
    frames = [b"ERROR:", json.dumps(report).encode()]
    with (
        probe.client.subscribe(f"error.{service}.*", timeout_s=probe.timeout_s) as heard,
        PlainSocket("SUB", port.host, port.port, timeout_s=probe.timeout_s) as subscriber,
        PlainSocket("PUB", port.host, port.port, timeout_s=probe.timeout_s) as publisher,
    ):
        began_at = time.monotonic()
        publisher.publish(frames)
        event = first(heard, "it became no event")
        probe.note(f"PUB {frames} -> {told(event)} ({(time.monotonic() - began_at) * 1e3:.1f} ms)")
        passed_on = _heard(subscriber, service, probe)
    probe.note(f"SUB ERROR: <- {passed_on}")
    probe.expect(passed_on["message"] == report["message"], "another message was passed on")


def _heard(subscriber: PlainSocket, service: str, probe: Probe) -> dict[str, Any]:
    """The error of one agent among those of the house."""
    ends_at = time.monotonic() + probe.timeout_s
    while True:
        topic, body = subscriber.receive()
        passed_on: dict[str, Any] = json.loads(body)
        if topic == b"ERROR:" and passed_on["agent"] == service:
            return passed_on
        probe.expect(time.monotonic() < ends_at, "an old subscriber did not hear it")


def old_asker(probe: Probe) -> None:
    port = probe.port("ErrorBus", "errors", "zeromq")
    reply = probe.legacy(port, {"action": "get_recent_errors", "data": {"limit": 5}})
    probe.expect(reply["status"] == "success" and isinstance(reply["data"], list), "no list")
    reply = probe.legacy(port, {"action": "health_check"})
    probe.expect(reply["status"] == "success", f"its health is {reply['status']}")


GROUP = Group(
    "errors",
    "error events, and the old error bus with its publishers, subscribers and askers",
    (
        Check("a reported error is heard and logged", native),
        Check("an old ERROR: publisher becomes an event, and old subscribers hear it", old_publisher),
        Check("an old asker is told of recent errors", old_asker),
    ),
)
