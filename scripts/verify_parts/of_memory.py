"""MemoryHub: what is written is found again, over the bus and over HTTP, in a namespace of this run."""

from __future__ import annotations

import secrets
import time
from typing import Any, Final

from schemas.errors import BusError
from verify_parts.checklist import Check, Group, Skipped, Wrong
from verify_parts.probe import Probe

# Chunks up to which records and vectors are compared: more than this takes longer than a checklist should.
_VERIFIED: Final = 50_000

# Seconds after which what a check cannot delete is gone by itself.
_GONE_S: Final = 60

# Seconds until what was written can be found by meaning: the encoder is started when it is first needed.
_FOUND_WITHIN_S: Final = 60.0


def healthy(probe: Probe) -> None:
    stats = probe.ask("memory.stats")
    probe.note(
        f"{stats['vectors']} vectors ({stats['vector_engine']}), {stats['waiting']} waiting, hot tier {stats['hot_tier']},"
        f" encoder {stats['encoder']} {stats['encoder_state']}"
    )
    probe.expect(not stats["degraded"], f"degraded: {'; '.join(stats['degraded'])}")


def kv(probe: Probe) -> None:
    entry = {"key": "colour", "ns": probe.ns}
    probe.afterwards(lambda: probe.ask("memory.kv.delete", entry))
    first = probe.ask("memory.kv.set", {**entry, "value": {"name": "blue", "rgb": [0, 0, 255]}})
    probe.expect(probe.ask("memory.kv.get", entry)["value"] == {"name": "blue", "rgb": [0, 0, 255]}, "another value")
    probe.refused("memory.kv.set", {**entry, "value": 1, "if_version": first["version"] + 7}, "conflict")
    listed = probe.ask("memory.kv.list", {"ns": probe.ns, "prefix": "col"})
    probe.expect([one["key"] for one in listed["entries"]] == ["colour"], "the list does not have it alone")
    probe.expect(probe.ask("memory.kv.delete", entry)["deleted"], "it was not deleted")
    probe.refused("memory.kv.get", entry, "not_found")


def kv_rest(probe: Probe) -> None:
    port = probe.port("memory", "rest", "http")
    path = f"/kv/colour?ns={probe.ns}"
    probe.afterwards(lambda: probe.ask("memory.kv.delete", {"key": "colour", "ns": probe.ns}))
    posted = probe.http("POST", port, "/kv/colour", {"value": "green", "ns": probe.ns})
    probe.expect(posted.status == 200, f"POST answered {posted.status}")
    probe.expect(probe.http("GET", port, path).body["value"] == "green", "GET answered another value")
    seen = probe.ask("memory.kv.get", {"key": "colour", "ns": probe.ns})
    probe.expect(seen["value"] == "green", "the bus has another value")
    probe.expect(probe.http("DELETE", port, path).status == 200, "DELETE failed")
    gone = probe.http("GET", port, path)
    probe.expect(gone.status == 404 and gone.body["code"] == "not_found", "what was deleted is answered")


def documents(probe: Probe) -> None:
    document = {"doc_id": "lighthouse", "ns": probe.ns}
    probe.afterwards(lambda: probe.ask("memory.doc.delete", document))
    content = "The keeper of the lighthouse on Kestrel Rock lights the lamp at dusk and logs every passing ship."
    probe.ask("memory.doc.put", {**document, "title": "Kestrel Rock", "content": content})
    probe.expect(probe.ask("memory.doc.get", document)["content"] == content, "the content is another")
    hit = _found(probe, "who lights the lamp at the lighthouse", "hybrid")
    probe.expect("lighthouse" in str(hit), "the first hit is another")


def embedding(probe: Probe) -> None:
    memory = {"id": f"{probe.ns}.soup", "ns": probe.ns}
    probe.afterwards(lambda: probe.ask("memory.delete", memory))
    probe.ask("memory.add", {**memory, "content": "Grandmother simmers tomato soup with basil on Sundays."})
    hit = _found(probe, "what does she cook at the weekend", "dense")
    probe.expect(memory["id"] in str(hit), "the first hit is another")
    port = probe.port("memory", "rest", "http")
    asked = {"query": "cooking at the weekend", "ns": probe.ns, "mode": "dense"}
    answer = probe.http("POST", port, "/embedding/search", asked)
    probe.expect(answer.status == 200 and memory["id"] in str(answer.body["hits"]), "HTTP does not find it")


def _found(probe: Probe, query: str, mode: str) -> Any:
    """The first hit, once there is one."""
    body = {"query": query, "ns": probe.ns, "mode": mode, "k": 3}

    def look() -> Any:
        return next(iter(probe.ask("memory.search", body, timeout_s=_FOUND_WITHIN_S)["hits"]), None)

    return probe.until(look, f"nothing is found for {query!r}", within_s=_FOUND_WITHIN_S)


def memories(probe: Probe) -> None:
    parent, child = ({"id": f"{probe.ns}.{name}", "ns": probe.ns} for name in ("parent", "child"))
    probe.afterwards(lambda: probe.ask("memory.delete", {**parent, "cascade": True}))
    probe.ask("memory.add", {**parent, "content": "Spring cleaning", "type": "goal", "importance": 0.5})
    probe.ask("memory.add", {**child, "content": "Wash the windows", "type": "task", "parent_id": parent["id"]})
    children = probe.ask("memory.children", parent)["memories"]
    probe.expect([one["id"] for one in children] == [child["id"]], "the child is not its parent's")
    ends = {"source_id": child["id"], "target_id": parent["id"]}
    probe.ask("memory.link", {**ends, "kind": "supports", "ns": probe.ns})
    related = probe.ask("memory.related", child)["related"]
    probe.expect(related, "the relation is not there")
    reinforced = probe.ask("memory.reinforce", {**parent, "factor": 1.2})
    probe.expect(0.5 < reinforced["importance"] <= 1, "it is no more important than it was")


def sessions(probe: Probe) -> None:
    session = {"session_id": f"{probe.ns}.talk", "ns": probe.ns}
    probe.afterwards(lambda: probe.ask("memory.session.close", {**session, "delete": True}))
    probe.ask("memory.session.create", {**session, "user_id": probe.ns, "ttl_s": _GONE_S})
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]
    probe.ask("memory.session.append", {**session, "turns": turns})
    history = probe.ask("memory.session.history", session)["turns"]
    probe.expect([turn["content"] for turn in history] == ["Hello", "Good day"], "the turns are others")
    probe.ask("memory.session.bridge", session)


def contexts(probe: Probe) -> None:
    context = {"context_id": f"{probe.ns}.desk", "ns": probe.ns}
    probe.afterwards(lambda: probe.ask("memory.context.delete", context))
    probe.ask("memory.context.put", {**context, "data": {"lamp": "on"}, "system_prompt": "Be brief."})
    probe.expect(probe.ask("memory.context.get", context)["data"] == {"lamp": "on"}, "the data is another")
    built = probe.ask("memory.context.build", {**context, "query": "Is the lamp on?", "max_tokens": 200})
    probe.expect(built["tokens"] <= 200 and built["messages"], "no messages within 200 tokens")


def experiences(probe: Probe) -> None:
    record = {"exp_id": f"{probe.ns}.try", "agent": "verify", "action": "looked", "success": True, "reward": 0.5}
    probe.ask("memory.experience.record", {**record, "ns": probe.ns, "ttl_s": _GONE_S})
    listed = probe.ask("memory.experience.list", {"ns": probe.ns})["experiences"]
    probe.expect([one["exp_id"] for one in listed] == [record["exp_id"]], "it is not listed alone")
    probe.note(f"it expires by itself after {_GONE_S} s")


def facts(probe: Probe) -> None:
    fact = {"key": "home town", "ns": probe.ns}
    probe.afterwards(lambda: probe.ask("memory.forget", fact))
    probe.ask("memory.remember", {**fact, "value": "Porto"})
    probe.expect(probe.ask("memory.recall", fact)["value"] == "Porto", "another value")
    probe.expect("Porto" in probe.ask("memory.prompt", {"ns": probe.ns})["text"], "the prompt does not have it")


def cache(probe: Probe) -> None:
    entry = {"key": "answer", "ns": probe.ns}
    probe.afterwards(lambda: probe.ask("memory.cache.delete", entry))
    probe.ask("memory.cache.set", {**entry, "value": 42, "ttl_s": _GONE_S})
    probe.expect(probe.ask("memory.cache.get", entry)["value"] == 42, "another value")
    probe.expect(not probe.ask("memory.cache.get", {**entry, "key": "absent"})["hit"], "a hit on what is not there")
    counted = probe.ask("memory.cache.stats", {"ns": probe.ns})
    probe.expect(counted["hits"] >= 1 and counted["misses"] >= 1, "hits and misses are not counted")


def accounts(probe: Probe) -> None:
    user = {"user_id": probe.ns.replace(".", "-"), "password": secrets.token_urlsafe(24)}
    probe.afterwards(lambda: _quietly(probe, "auth.user.delete", {"user_id": user["user_id"]}))
    _quietly(probe, "auth.user.add", user)
    tokens = _quietly(probe, "auth.login", user)
    state = _quietly(probe, "auth.verify", {"token": tokens["access_token"]})
    probe.expect(state["valid"] and state["user_id"] == user["user_id"], "the token is not that user's")
    renewed = _quietly(probe, "auth.refresh", {"refresh_token": tokens["refresh_token"]})
    _quietly(probe, "auth.logout", {"token": renewed["access_token"]})
    ended = _quietly(probe, "auth.verify", {"token": renewed["access_token"]})
    probe.expect(not ended["valid"], "the token is good after the sign-out")
    try:
        _quietly(probe, "auth.login", {**user, "password": "wrong wrong wrong"})
    except BusError as error:
        probe.expect(error.code == "unauthenticated", f"a wrong password is answered {error.code}")
    else:
        raise Wrong("a wrong password signs in")


def _quietly(probe: Probe, subject: str, body: dict[str, Any]) -> Any:
    """Passwords and tokens stay out of the evidence."""
    began_at = time.monotonic()
    came = "no answer"
    try:
        reply = probe.client.request(
            subject, body, timeout_s=probe.timeout_s, raw=True, headers={"token": probe.own_token}
        )
        came = ", ".join(f"{name}: {reply[name]}" for name in ("user_id", "valid") if name in reply) or "ok"
    except BusError as error:
        came = error.code
        raise
    finally:
        probe.note(f"{subject} {sorted(body)} -> {came} ({(time.monotonic() - began_at) * 1e3:.1f} ms)")
    return reply


def trust(probe: Probe) -> None:
    unknown = probe.ask("trust.get", {"user_id": probe.ns})
    probe.expect(unknown["outcomes"] == 0 and 0 <= unknown["score"] <= 1, "a stranger has outcomes")
    probe.ask("trust.list", {"limit": 5})


def suggestions(probe: Probe) -> None:
    reply = probe.ask("memory.suggest.list", {"ns": probe.ns})
    probe.note(f"the proactive monitor is {'on' if reply['is_on'] else 'off'}")


def agrees(probe: Probe) -> None:
    vectors = probe.ask("memory.stats")["vectors"]
    if vectors > _VERIFIED:
        raise Skipped(f"{vectors:,} vectors take a while to compare; `olympus memory verify` does it")
    reply = probe.ask("memory.verify", {}, timeout_s=60)
    probe.expect(reply["agrees"] or reply["waiting"], f"records and vectors differ: {reply}")


GROUP = Group(
    "memory",
    "kv, documents, memories, sessions, search, cache, accounts, trust",
    (
        Check("it is not degraded", healthy),
        Check("kv over the bus: set, get, compare, list, delete", kv),
        Check("kv over HTTP is the same kv", kv_rest),
        Check("a document is found by what it says", documents),
        Check("a memory is found by its meaning", embedding),
        Check("memories have children, relations, importance", memories),
        Check("a session keeps its turns", sessions),
        Check("a context is kept and built within its tokens", contexts),
        Check("experiences are kept", experiences),
        Check("a fact is remembered and stands in the prompt", facts),
        Check("the cache hits, misses and counts", cache),
        Check("an account signs in, is verified and signs out", accounts),
        Check("trust knows no stranger", trust),
        Check("suggestions can be listed", suggestions),
        Check("records and vectors agree", agrees),
    ),
)
