"""The bus: who has joined, requests and events with and without our client, the event log and dead letters."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any, Final

import msgspec

from verify_parts.checklist import Check, Group, Skipped, Wrong
from verify_parts.probe import Probe, first, told

# What a whole house has on its bus.
SERVICES: Final = ("memory", "model", "resource", "learning", "gateway")


def ping(probe: Probe) -> None:
    reply = probe.ask("bus.ping", {"payload": probe.ns})
    probe.expect(reply["payload"] == probe.ns, "the payload did not come back")


def joined(probe: Probe) -> None:
    services = {each["service"]: each["instances"] for each in probe.ask("bus.services")["services"]}
    probe.note(", ".join(f"{name}: {services.get(name, 0)}" for name in SERVICES))
    missing = [name for name in SERVICES if not services.get(name)]
    probe.expect(not missing, f"not on the bus: {', '.join(missing)}")


def alive(probe: Probe) -> None:
    heard = {each["service"]: each["heard_s"] for each in probe.ask("bus.workers")["workers"]}
    limit_s = 3 * probe.settings.bus.heartbeat_s
    silent = [f"{name} for {age:.1f} s" for name, age in heard.items() if age > limit_s]
    probe.expect(not silent, f"silent: {', '.join(silent)}")


def _on_requests(probe: Probe) -> Any:
    return probe.plain("REQ", probe.settings.bus.host, probe.settings.bus.request_port)


def plain_json(probe: Probe) -> None:
    with _on_requests(probe) as peer:
        word, body = probe.said(peer, [b"bus.ping", b'{"payload": "plain"}'])
    probe.expect(word == b"ok" and json.loads(body)["payload"] == "plain", "no [ok, body] in JSON")


def plain_msgpack(probe: Probe) -> None:
    with _on_requests(probe) as peer:
        request = [b"bus.ping", msgspec.msgpack.encode({"payload": "plain"})]
        word, body = probe.said(peer, request, shown="[bus.ping, msgpack of {payload: plain}]")
    probe.expect(word == b"ok" and msgspec.msgpack.decode(body)["payload"] == "plain", "no [ok, body] in msgpack")


def one_frame(probe: Probe) -> None:
    with _on_requests(probe) as peer:
        (frame,) = probe.said(peer, [b'{"subject": "bus.ping", "body": {"payload": "one frame"}}'])
    reply = json.loads(frame)
    probe.expect(reply["status"] == "ok" and reply["body"]["payload"] == "one frame", "no status ok")


def nonsense(probe: Probe) -> None:
    with _on_requests(probe) as peer:
        word, body = probe.said(peer, [b"bus.ping", b'{"payload": '])
    probe.expect(word == b"error" and json.loads(body)["code"] == "bad_request", "no error with code bad_request")


def nobody(probe: Probe) -> None:
    began_at = time.monotonic()
    probe.refused(f"verify.x{secrets.token_hex(4)}", {}, "no_worker")
    probe.expect(time.monotonic() - began_at < probe.timeout_s, "it was waited for")


def events(probe: Probe) -> None:
    bus, subject = probe.settings.bus, f"verify.x{secrets.token_hex(4)}"
    with (
        probe.client.subscribe(subject, timeout_s=probe.timeout_s) as heard,
        probe.plain("SUB", bus.host, bus.subscribe_port) as plain,
        probe.plain("PUB", bus.host, bus.publish_port) as publisher,
    ):
        began_at = time.monotonic()
        publisher.publish([subject.encode(), b'{"n": 1}'])
        # The plain port carries everybody's events.
        while (frames := plain.receive())[0] != subject.encode():
            if time.monotonic() - began_at > probe.timeout_s:
                raise Wrong("the plain subscriber did not hear it")
        event = first(heard, "the subscriber with sequence numbers did not hear it")
        took_ms = (time.monotonic() - began_at) * 1e3
        probe.note(f"PUB [{subject}, {{n: 1}}] -> SUB {frames}, client {told(event)} ({took_ms:.1f} ms)")
    probe.expect(json.loads(frames[1]) == {"n": 1}, "the plain body is another")


def event_log(probe: Probe) -> None:
    if not any(subject.startswith("memory.") or subject == ">" for subject in probe.settings.broker.log_subjects):
        raise Skipped("broker.log_subjects has nothing of memory")
    key, since_at = f"logged-{secrets.token_hex(4)}", time.time() - 1.0
    probe.afterwards(lambda: probe.ask("memory.kv.delete", {"key": key, "ns": probe.ns}))
    probe.ask("memory.kv.set", {"key": key, "ns": probe.ns, "value": 1})
    query = {"subject": "memory.changed.*", "since_at": since_at, "limit": 100_000}

    def look() -> Any:
        events = probe.ask("bus.events.read", query)["events"]
        return next((event for event in events if event["body"].get("key") == key), None)

    event = probe.until(look, f"the log does not have the change of {key}")
    probe.note(f"number {event['seq']}: {event['subject']} {event['body']}")


def dead_letters(probe: Probe) -> None:
    page = probe.ask("deadletter.list", {"limit": 5})
    probe.note(f"{page['total']} dead letters")
    if page["dead_letters"]:
        probe.ask("deadletter.show", {"id": page["dead_letters"][0]["id"]})
    probe.refused("deadletter.show", {"id": "0" * 32}, "not_found")


def stats(probe: Probe) -> None:
    reply = probe.ask("bus.stats")
    probe.expect(reply["log_failed"] is None, f"the event log fails: {reply['log_failed']}")
    probe.note(f"{reply['requests']} requests, {reply['events']} events, {reply['events_dropped']} dropped")


def signing(probe: Probe) -> None:
    if not probe.settings.auth.required:
        raise Skipped("auth.required is off: nobody has to sign in")
    subject, body = b"memory.kv.get", json.dumps({"key": "x", "ns": probe.ns}).encode()
    with _on_requests(probe) as peer:
        word, text = probe.said(peer, [subject, body])
        probe.expect(word == b"error" and json.loads(text)["code"] == "unauthenticated", "served without a token")
        word, text = probe.said(peer, [subject, body, b'{"token": "verify"}'])
    probe.expect(word == b"error" and json.loads(text)["code"] == "unauthenticated", "served with a token of no one")


def metrics_of_services(probe: Probe) -> None:
    for service in probe.ask("bus.services")["services"]:
        p99_s = service["p99_s"]
        shown = "nothing answered yet" if p99_s is None else f"p99 {p99_s * 1e3:.1f} ms"
        probe.note(f"{service['service']}: {service['answered']} answered, {service['failed']} failed, {shown}")


GROUP = Group(
    "bus",
    "who has joined, requests and events in every form, the event log, dead letters",
    (
        Check("the broker answers", ping),
        Check("every service has joined", joined),
        Check("every worker is heard", alive),
        Check("a plain REQ socket is answered in JSON", plain_json),
        Check("a plain REQ socket is answered in msgpack", plain_msgpack),
        Check("one frame of JSON is answered with one", one_frame),
        Check("a malformed request is answered with an error", nonsense),
        Check("a subject nobody serves is refused at once", nobody),
        Check("an event of a plain PUB reaches a plain SUB and a client", events),
        Check("the event log can be read back", event_log),
        Check("dead letters can be looked at", dead_letters),
        Check("the broker counts, and its log works", stats),
        Check("the broker measures every service", metrics_of_services),
        Check("without a token nothing is served", signing),
    ),
)
