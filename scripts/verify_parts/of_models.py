"""ModelManagerSuite: the catalogue, a swap under the device lock, answers in every shape, leases.

No model that somebody had loaded is unloaded: what a check loads it takes away again, and it loads only where that makes
nobody leave.
"""

from __future__ import annotations

import json
import threading
from typing import Any, Final

from schemas.errors import NoWorker
from verify_parts.checklist import Check, Group, Skipped, Wrong
from verify_parts.probe import Probe

# Seconds that a load, and an answer of a large model, may take.
_LOAD_S: Final = 180.0
_ANSWER_S: Final = 120.0

# Free memory wanted before a model is loaded, as a multiple of what it is expected to take.
_ROOM: Final = 2.0

# Seconds until the learning service has heard of an answer.
_HEARD_S: Final = 2.0

_LEASED_BYTES: Final = 1024 * 1024


def _models(probe: Probe) -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = probe.ask("model.list")["models"]
    return models


def loaded_for(probe: Probe, capability: str) -> str:
    """A model that is loaded and can do this, loaded until the end where none is. Raises Skipped."""
    able = [one for one in _models(probe) if capability in one["capabilities"] and one["state"] != "unusable"]
    loaded = [one for one in able if one["state"] == "loaded"]
    if loaded:
        return str(loaded[0]["name"])
    model = _with_room(probe, able, capability)
    probe.at_the_end(lambda: probe.ask("model.unload", {"model": model}, timeout_s=_LOAD_S))
    probe.ask("model.load", {"model": model}, timeout_s=_LOAD_S)
    return model


def _with_room(probe: Probe, models: list[dict[str, Any]], wanted: str) -> str:
    """The smallest of the models that are not loaded, where loading it makes nobody leave."""
    candidates = sorted((one for one in models if one["state"] == "available"), key=lambda one: one["size_bytes"])
    if not candidates:
        raise Skipped(f"no model in the catalogue can be loaded for {wanted}")
    model = candidates[0]
    loaded = [one["name"] for one in _models(probe) if one["state"] in ("loaded", "loading")]
    if len(loaded) >= probe.settings.models.max_loaded:
        raise Skipped(f"loading {model['name']} would make another leave: models.max_loaded is {len(loaded)}")
    needed = _ROOM * max(model["memory_bytes"], model["size_bytes"])
    free = max(device["free_bytes"] for device in probe.ask("gpu.status")["devices"])
    if free < needed:
        raise Skipped(f"loading {model['name']} could make another model leave: {free:,} bytes are free")
    return str(model["name"])


def forgotten_at_the_end(probe: Probe, reply_id: str) -> None:
    """An answer of this run must not become something to learn from."""
    if probe.settings.learning.observe:
        probe.at_the_end(lambda: _forget(probe, reply_id))


def _forget(probe: Probe, reply_id: str) -> None:
    def look() -> bool | None:
        kept = probe.ask("learning.exchange.list", {"limit": 100})["exchanges"]
        return any(one["reply_id"] == reply_id for one in kept) or None

    try:
        # The learning service hears of an answer a moment after its asker, if it is there at all.
        probe.until(look, "the learning service never heard of it", within_s=_HEARD_S)
        probe.ask("learning.exchange.delete", {"reply_id": reply_id})
    except Wrong as late:
        probe.note(f"answer {reply_id}: {late}")
    except NoWorker:
        probe.note(f"answer {reply_id}: no learning service keeps it")


def listed(probe: Probe) -> None:
    models = _models(probe)
    probe.expect(models, "the catalogue is empty")
    probe.note(", ".join(f"{one['name']} {one['size_bytes']:,} bytes {one['state']}" for one in models))
    unusable = [f"{one['name']}: {one['error']}" for one in models if one["state"] == "unusable"]
    probe.expect(not unusable, f"unusable: {'; '.join(unusable)}")


def checksums(probe: Probe) -> None:
    models = _models(probe)
    without = [one["name"] for one in models if not one["sha256"]]
    probe.note(", ".join(f"{one['name']} {str(one['sha256'])[:16]}" for one in models))
    probe.expect(not without, f"no checksum yet: {', '.join(without)}; `olympus models verify NAME` computes it")


def swap(probe: Probe) -> None:
    model = _with_room(probe, _models(probe), "a swap")
    probe.afterwards(lambda: _unload_what_is_left(probe, model))
    with _LockWatch(probe) as watch:
        loaded = probe.ask("model.load", {"model": model}, timeout_s=_LOAD_S)
        probe.expect(loaded["state"] == "loaded", f"its state is {loaded['state']}")
        unloaded = probe.ask("model.unload", {"model": model}, timeout_s=_LOAD_S)
        probe.expect(unloaded["state"] == "available", f"its state after that is {unloaded['state']}")
    for holder in watch.seen:
        probe.note(f"gpu.status showed the lock: {holder}")
    probe.expect(watch.seen, "gpu.status never showed the lock held while the model was swapped")


def _unload_what_is_left(probe: Probe, model: str) -> None:
    if any(one["name"] == model and one["state"] == "loaded" for one in _models(probe)):
        probe.ask("model.unload", {"model": model}, timeout_s=_LOAD_S)


class _LockWatch:
    """Looks at the locks of the devices as fast as it is answered, while the block runs."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.seen: list[str] = []

    def __enter__(self) -> _LockWatch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join(self._probe.timeout_s)

    def _look(self) -> None:
        # Beside the check: evidence is written by its own thread alone.
        while not self._is_over.is_set():
            reply = self._probe.client.request("gpu.status", {}, timeout_s=self._probe.timeout_s, raw=True)
            for device in reply["devices"]:
                holder = device["lock"]
                # Between taking the lock and writing its file nobody is named.
                if holder is not None and holder["model"]:
                    shown = f"{device['device']} by pid {holder['pid']}: {holder['purpose']} {holder['model']}"
                    if shown not in self.seen:
                        self.seen.append(shown)


def devices(probe: Probe) -> None:
    status = probe.ask("gpu.status")
    probe.expect(not status["problem"], status["problem"])
    lost = [one["device"] for one in status["devices"] if one["state"] != "ok"]
    probe.expect(not lost, f"lost: {', '.join(lost)}")
    answer = probe.http("GET", probe.port("models", "rest", "http"), "/gpu/status")
    probe.expect(answer.status == 200 and answer.body["devices"], "HTTP tells of no device")


def generates(probe: Probe) -> None:
    model = loaded_for(probe, "generate")
    body = {"model": model, "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0, "seed": 1}
    first = probe.ask("model.generate", body, timeout_s=_ANSWER_S)
    probe.expect(first["usage"]["completion_tokens"] > 0, "no token came")
    again = probe.ask("model.generate", body, timeout_s=_ANSWER_S)
    for said in (first, again):
        forgotten_at_the_end(probe, said["reply_id"])
    probe.expect(again["text"] == first["text"], "temperature 0 gives another text the second time")


def chats(probe: Probe) -> None:
    model, port = loaded_for(probe, "chat"), probe.port("models", "rest", "http")
    messages = [{"role": "user", "content": "Say hello."}]
    body = {"model": model, "messages": messages, "max_tokens": 16, "temperature": 0}
    answer = probe.http("POST", port, "/v1/chat/completions", body, timeout_s=_ANSWER_S)
    probe.expect(answer.status == 200, f"it answered {answer.status}")
    forgotten_at_the_end(probe, answer.body["id"])
    choice = answer.body["choices"][0]
    probe.expect(choice["message"]["role"] == "assistant" and answer.body["usage"]["total_tokens"], "no OpenAI shape")


def streams(probe: Probe) -> None:
    model, port = loaded_for(probe, "chat"), probe.port("models", "rest", "http")
    messages = [{"role": "user", "content": "Say hello."}]
    body = {"model": model, "messages": messages, "max_tokens": 16, "temperature": 0, "stream": True}
    answer = probe.http("POST", port, "/v1/chat/completions", body, timeout_s=_ANSWER_S)
    probe.expect(answer.media_type == "text/event-stream", f"the media type is {answer.media_type}")
    lines = [line[6:] for line in answer.body.splitlines() if line.startswith("data: ")]
    probe.expect(lines and lines[-1] == "[DONE]", "the stream does not end with [DONE]")
    pieces = [json.loads(line) for line in lines[:-1]]
    forgotten_at_the_end(probe, pieces[0]["id"])
    probe.expect(all(one["object"] == "chat.completion.chunk" for one in pieces), "a piece is no chunk")
    probe.note(f"{len(pieces)} pieces")


def openai_models(probe: Probe) -> None:
    answer = probe.http("GET", probe.port("models", "rest", "http"), "/v1/models")
    probe.expect(answer.status == 200 and answer.body["object"] == "list", f"it answered {answer.status}")
    names = {one["id"] for one in answer.body["data"]}
    missing = [one["name"] for one in _models(probe) if one["state"] != "unusable" and one["name"] not in names]
    probe.expect(not missing, f"not in the list: {', '.join(missing)}")


def embeds(probe: Probe) -> None:
    port = probe.port("models", "rest", "http")
    models = [one["name"] for one in _models(probe) if "embed" in one["capabilities"]]
    if not models:
        raise Skipped("no model of the catalogue embeds")
    body = {"model": loaded_for(probe, "embed"), "input": ["one", "two"]}
    answer = probe.http("POST", port, "/v1/embeddings", body, timeout_s=_ANSWER_S)
    probe.expect(answer.status == 200 and len(answer.body["data"]) == 2, f"it answered {answer.status}")


def limits(probe: Probe) -> None:
    model = _models(probe)[0]["name"]
    probe.expect(probe.ask("model.limits", {"model": model})["context_tokens"] > 0, "no context window")
    counts = probe.ask("model.tokenize", {"model": loaded_for(probe, "generate"), "texts": ["Hello"]})["counts"]
    probe.expect(counts[0] > 0, "no token")


def routes(probe: Probe) -> None:
    profiles = probe.ask("model.profiles")["profiles"]
    probe.expect(profiles, "no profile")
    chosen = probe.ask("model.route", {"profile": profiles[0]["name"]})
    probe.expect(chosen["model"] and chosen["reason"], "no model, or no reason")


def leases(probe: Probe) -> None:
    lease = {"lease_id": probe.ns.replace(".", "-")}
    probe.afterwards(lambda: probe.ask("resource.lease.release", lease))
    asked = {**lease, "service": "verify", "device": "cpu", "vram_bytes": 0, "ram_bytes": _LEASED_BYTES, "ttl_s": 30}
    probe.ask("resource.lease.acquire", {**asked, "is_preemptible": True})
    probe.ask("resource.lease.renew", {**lease, "ttl_s": 30})
    held = probe.ask("resource.lease.list", {"service": "verify"})["leases"]
    probe.expect([one["lease_id"] for one in held] == [lease["lease_id"]], "it is not in the list")
    probe.expect(probe.ask("resource.lease.release", lease)["was_held"], "it was not held")
    total = next(one for one in probe.ask("gpu.status")["devices"] if one["device"] == "cpu")["total_bytes"]
    probe.refused("resource.lease.acquire", {**asked, "ram_bytes": total * 2}, "unprocessable")


def evaluations(probe: Probe) -> None:
    port = probe.port("models", "rest", "http")
    probe.expect(probe.http("GET", port, "/evaluate?limit=3").status == 200, "evaluations are not listed")
    unknown = probe.http("GET", port, f"/evaluate/{probe.ns.replace('.', '-')}/status")
    probe.expect(unknown.status == 404, f"an evaluation nobody made is answered {unknown.status}")
    nobody = probe.http("POST", port, f"/evaluate/{probe.ns}", {"suite": "none"})
    probe.expect(nobody.status in (400, 404, 422), f"a model nobody has is answered {nobody.status}")


def usage(probe: Probe) -> None:
    probe.ask("model.stats")
    probe.ask("model.predict", {"limit": 3})
    probe.ask("model.adapter.list")


GROUP = Group(
    "models",
    "catalogue, loading, answers, /v1, device lock, leases, evaluation",
    (
        Check("the catalogue is listed", listed),
        Check("every model has a checksum", checksums),
        Check("devices are told of", devices),
        Check("a model is loaded and unloaded under the device lock", swap),
        Check("a model answers, twice the same at temperature 0", generates),
        Check("/v1/chat/completions answers", chats),
        Check("/v1/chat/completions streams", streams),
        Check("/v1/models lists the catalogue", openai_models),
        Check("/v1/embeddings answers", embeds),
        Check("limits and tokens are told", limits),
        Check("a profile leads to a model, with a reason", routes),
        Check("a lease is taken, renewed, released, and refused past what there is", leases),
        Check("the evaluation routes are there", evaluations),
        Check("use, predictions and adapters are told", usage),
    ),
)
