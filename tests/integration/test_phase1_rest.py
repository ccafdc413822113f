"""Every row of the first HTTP services over a real gateway, broker, memory and model service: success and failure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bus.client import Client
from bus.settings import Settings
from bus.tokens import token_source
from tests.edge_house import EdgeHouse
from workers.gateway.legacy.agents.roster import roster
from workers.gateway.legacy.house import House
from workers.gateway.phase1.agents import RAW, ROWS
from workers.gateway.phase1.routes import phase1_routes
from workers.gateway.rest.routes import Table, segments

httpx = pytest.importorskip("httpx")
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

MODEL = "olympus-demo"
# A number that JSON can hold and nothing else here.
BIG = b'{"content": %d, "text": 1, "a": %d}' % (10**30, 10**30)
MEMORY_KEYS = {
    "memory_id",
    "content",
    "memory_type",
    "memory_tier",
    "importance",
    "access_count",
    "last_accessed_at",
    "created_at",
    "expires_at",
    "metadata",
    "tags",
    "relationships",
    "parent_id",
}


def phase1(settings: Settings, client: Client) -> Any:
    return phase1_routes(House(settings, client, roster()))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeHouse]:
    """Memory and models behind their ports."""
    with EdgeHouse(tmp_path_factory.mktemp("phase1"), services=("memory", "models"), routes=phase1) as house:
        yield house


# Service, method, path and whether it was answered well, of every request of this module.
SEEN: set[tuple[str, str, str, bool]] = set()


def client_of(house: EdgeHouse, service: str) -> Any:
    """A client that notes what it asked and how that ended."""

    def note(answer: Any) -> None:
        path = answer.request.url.raw_path.decode().partition("?")[0]
        SEEN.add((service, answer.request.method, path, answer.status_code == 200))

    return httpx.Client(base_url=house.url(service), timeout=30, event_hooks={"response": [note]})


@pytest.fixture(scope="module")
def rest(house: EdgeHouse) -> Iterator[Any]:
    """A client of the memory port."""
    with client_of(house, "memory") as client:
        yield client


@pytest.fixture(scope="module")
def models(house: EdgeHouse) -> Iterator[Any]:
    """A client of the models port."""
    with client_of(house, "models") as client:
        yield client


def ok(answer: Any, *keys: str, status: str = "success") -> dict[str, Any]:
    """The reply: 200, its status word, exactly these other keys."""
    assert answer.status_code == 200, answer.text
    reply: dict[str, Any] = answer.json()
    assert reply["status"] == status
    assert set(reply) == {"status", *keys}, reply
    return reply


def more(answer: Any, *keys: str) -> dict[str, Any]:
    """A reply with these keys among others: ours with the old fields beside."""
    assert answer.status_code == 200, answer.text
    reply: dict[str, Any] = answer.json()
    assert {"status", *keys} <= set(reply), reply
    assert reply["status"] == "success"
    return reply


def failed(answer: Any, status: int) -> str:
    """The text of a failure."""
    assert answer.status_code == status, answer.text
    found = answer.json()
    assert set(found) == {"detail"}
    assert isinstance(found["detail"], str)
    return str(found["detail"])


def problem(answer: Any, status: int) -> str:
    """The text of a failure on a path that the catalogue has too."""
    assert answer.status_code == status, answer.text
    found = answer.json()
    assert {"detail", "code", "status"} <= set(found)
    return str(found["detail"])


def invalid(answer: Any, *names: str) -> None:
    """A refusal that names these places."""
    assert answer.status_code == 422, answer.text
    entries = answer.json()["detail"]
    assert [entry["loc"][-1] for entry in entries] == list(names)
    assert all(set(entry) == {"loc", "msg", "type"} for entry in entries)


def send(rest: Any, method: str, path: str, body: Any = ...) -> Any:
    return rest.request(method, path) if body is ... else rest.request(method, path, json=body)


# Memories


def test_memories_are_added_read_changed_and_deleted(rest: Any) -> None:
    """With keys of the old service as it did it, with ours as ours with the old ones beside."""
    added = ok(rest.post("/memory", json={"content": "old tea", "memory_type": "note"}), "memory_id")
    read = more(rest.get(f"/memory/{added['memory_id']}"), "memory", "id", "version", "type")
    assert set(read["memory"]) == MEMORY_KEYS
    assert (read["memory"]["content"], read["memory"]["importance"], read["type"]) == ("old tea", 1.0, "note")
    ours = more(rest.post("/memory", json={"content": "new tea", "importance": 0.2}), "memory_id", "id", "version")
    assert ours["memory_id"] == ours["id"]
    ok(rest.put(f"/memory/{added['memory_id']}", json={"content": "older tea"}))
    assert rest.get(f"/memory/{added['memory_id']}").json()["memory"]["content"] == "older tea"
    more(rest.delete(f"/memory/{added['memory_id']}?cascade=true"), "id", "deleted")
    problem(rest.get(f"/memory/{added['memory_id']}"), 404)
    problem(rest.delete(f"/memory/{added['memory_id']}"), 404)
    failed(rest.put(f"/memory/{added['memory_id']}", json={"content": "a"}), 500)
    failed(rest.post("/memory", json={"memory_type": "note"}), 400)
    failed(rest.post("/memory", json={"content": 5, "memory_type": "note"}), 400)
    problem(rest.post("/memory", json={"tags": []}), 400)
    invalid(rest.put("/memory/x", json=[1]), "body")


def test_memories_are_searched(rest: Any) -> None:
    """By text and by meaning; without a query they are refused."""
    rest.post("/memory", json={"memory_id": "s1", "content": "the zebra crosses", "memory_type": "animal"})
    found = ok(rest.post("/memory/search", json={"query": "ZEBRA", "limit": "5"}), "results", "count")
    assert [set(one) for one in found["results"]] == [MEMORY_KEYS]
    assert more(rest.post("/memory/semantic_search", json={"query": "zebra", "k": 1}), "results")["results"]
    for path in ("/memory/search", "/memory/semantic_search"):
        failed(rest.post(path, json={"query": ""}), 400)
        failed(rest.post(path, json={}), 400)
        invalid(rest.post(path, json=[]), "body")
    invalid(rest.post("/memory/search", json={"query": "a", "limit": "many"}), "limit")


def test_literal_paths_of_the_catalogue_are_still_there(rest: Any, models: Any) -> None:
    """A name in an old path does not hide them."""
    assert "status" not in rest.get("/memory/stats").json()
    assert "status" not in models.get("/models/predictions").json()
    assert "status" not in rest.get("/experience/stats").json()


def test_old_paths_stay_out_of_the_page(rest: Any) -> None:
    """It describes the catalogue's routes, also where their answers have more in them."""
    paths = rest.get("/openapi.json").json()["paths"]
    assert "/memory/{id}" in paths
    assert not {"/twin/{user_id}", "/kb/search", "/utils/raw"} & set(paths)


# Keys


def test_a_key_is_an_entry_or_a_memory(rest: Any) -> None:
    """`value` writes an entry, `content` a memory; an entry is read first."""
    assert rest.post("/kv/a", json={"value": {"content": 1}}).json()["version"] == 1
    assert rest.get("/kv/a").json()["value"] == {"content": 1}
    assert ok(rest.post("/kv/b", json={"content": "kept"}), "memory_id")["memory_id"] == "b"
    memory = ok(rest.get("/kv/b"), "memory")["memory"]
    assert (memory["content"], memory["memory_type"], memory["importance"]) == ("kept", "kv", 0.5)
    ok(rest.post("/kv/b", json={"content": "kept again", "importance": 0.9}))
    memory = ok(rest.get("/kv/b"), "memory")["memory"]
    assert (memory["content"], memory["importance"], memory["memory_type"]) == ("kept again", 0.9, "kv")
    rest.post("/kv/b", json={"value": 1})
    assert rest.get("/kv/b").json()["value"] == 1
    problem(rest.get("/kv/none"), 404)
    problem(rest.get("/kv/b?ns=other"), 404)
    failed(rest.post("/kv/c", json={"content": ""}), 400)
    failed(rest.post("/kv/c", json={"content": [1]}), 400)
    problem(rest.post("/kv/c", json={}), 400)


# Sessions


def test_sessions_of_the_first_service(rest: Any) -> None:
    """Opened, spoken in, read, searched, deleted."""
    session = ok(rest.post("/session", json={"user_id": "u"}), "session_id")["session_id"]
    for role, content in (("user", "What about giraffes?"), ("assistant", "They are tall.")):
        said = {"role": role, "content": content}
        ok(rest.post(f"/session/{session}/interaction", json=said), "message", "interaction_id")
    context = ok(rest.get(f"/session/{session}/context?limit=1"), "context")["context"]
    assert context == [{"role": "assistant", "content": "They are tall."}]
    assert len(ok(rest.get(f"/session/{session}/context"), "context")["context"]) == 2
    assert ok(rest.get("/session/nobody/context"), "context")["context"] == []
    found = ok(rest.get(f"/session/{session}/search?query=giraffes"), "results")["results"]
    assert found[0]["content"] == "What about giraffes?"
    invalid(rest.get(f"/session/{session}/search"), "query")
    invalid(rest.get(f"/session/{session}/context?limit=few"), "limit")
    invalid(rest.post("/session", json={}), "user_id")
    invalid(rest.post("/session", json={"user_id": 5, "metadata": []}), "user_id", "metadata")
    invalid(rest.post(f"/session/{session}/interaction", json={"role": "user"}), "content")
    failed(rest.post(f"/session/{session}/interaction", json={"role": "user", "content": ""}), 500)
    ok(rest.delete(f"/session/{session}"), "message")
    problem(rest.delete(f"/session/{session}"), 404)


def test_sessions_of_ours_keep_their_routes(rest: Any) -> None:
    """Among them those whose last segment an old path has as a name."""
    rest.post("/session/mine", json={"user_id": "u"})
    turn = {"turns": [{"role": "user", "content": "hello"}]}
    assert rest.post("/session/mine/append", json=turn).status_code == 200
    assert rest.get("/session/mine/history").json()["turns"][0]["content"] == "hello"
    assert more(rest.delete("/session/mine"), "session_id")["session_id"] == "mine"


# Facts and documents


def test_facts_and_documents(rest: Any) -> None:
    """A document is read before the fact of the same name; a body is the text itself, or an object around it."""
    added = ok(rest.post("/doc", json={"topic": "okapi", "content": "lives in forests"}), "memory_id")
    fact = ok(rest.get("/doc/okapi"), "fact")["fact"]
    assert (fact["content"], set(fact)) == ("lives in forests", MEMORY_KEYS)
    more(rest.put(f"/doc/{added['memory_id']}", json="lives in dense forests"), "message")
    more(rest.put(f"/doc/{added['memory_id']}", json={"content": "lives in rain forests"}), "message")
    assert rest.get("/doc/okapi").json()["fact"]["content"] == "lives in rain forests"
    assert ok(rest.get("/kb/search?query=rain%20forests&limit=3"), "results")["results"][0]["tags"] == ["okapi"]
    rest.post("/doc/okapi", json={"content": "A document."})
    assert rest.get("/doc/okapi").json()["content"] == "A document."
    failed(rest.put("/doc/none", json="text"), 500)
    failed(rest.get("/kb/search"), 500)
    invalid(rest.put(f"/doc/{added['memory_id']}", json=5), "body")
    invalid(rest.post("/doc", json={"topic": "a"}), "content")
    invalid(rest.post("/doc", json={}), "topic", "content")


def test_no_document_and_no_fact_is_not_found(rest: Any) -> None:
    """In the words of the catalogue's route."""
    problem(rest.get("/doc/qwertyuiop-nothing-near-it"), 404)


# Twins, interactions, errors


def test_twins_interactions_and_solutions(rest: Any) -> None:
    """The agent whose status word is ok."""
    ok(rest.post("/twin/u1", json={"mood": "good"}), status="ok")
    assert ok(rest.get("/twin/u1"), "twin", status="ok")["twin"] == {"mood": "good"}
    assert ok(rest.get("/twin/u2"), "twin", status="ok")["twin"] == {}
    ok(rest.delete("/twin/u1"), status="ok")
    failed(rest.delete("/twin/u1"), 404)
    failed(rest.post("/twin/u1", json={}), 500)
    invalid(rest.post("/twin/u1", json="good"), "body")
    said = {"session_id": "r1", "interaction_type": "user_query", "content": "hi"}
    ok(rest.post("/interaction", json=said), status="ok")
    failed(rest.post("/interaction", json={**said, "content": ""}), 400)
    failed(rest.post("/interaction", json={"session_id": "r1"}), 400)
    assert "solution" in ok(rest.post("/error_solution", json={"error_message": "x"}), "solution", status="ok")
    failed(rest.post("/error_solution", json={}), 400)


def test_a_context_is_ours_or_that_of_a_session(rest: Any) -> None:
    """max_tokens means a session; without it ours comes first, then a session that was heard of."""
    rest.post("/interaction", json={"session_id": "r2", "interaction_type": "code", "content": "x = 1"})
    assert ok(rest.get("/context/r2?max_tokens=100"), "context", status="ok")["context"]["session_id"] == "r2"
    assert ok(rest.get("/context/r2"), "context", status="ok")["context"]["session_id"] == "r2"
    rest.post("/context/r2", json={"data": {"a": 1}})
    assert rest.get("/context/r2").json()["data"] == {"a": 1}
    assert ok(rest.get("/context/new?max_tokens=9"), "context", status="ok")["context"]["context"]
    problem(rest.get("/context/new"), 404)


# The window of what was said


def test_the_window_of_what_was_said(rest: Any) -> None:
    """Added, read as items and as lines, cleared, pruned; the list of contexts of ours has it beside."""
    ok(rest.post("/context/clear"))
    ok(rest.post("/context/add", json={"text": "remember the milk", "speaker": "ann"}))
    ok(rest.post("/context/add", json={"text": "fine"}))
    listed = more(rest.get("/context?max_items=1"), "context", "contexts")
    assert [item["text"] for item in listed["context"]] == ["remember the milk"]
    assert len(more(rest.get("/context?speaker=ann"), "context", "contexts")["context"]) == 1
    assert ok(rest.get("/context/text"), "context_text")["context_text"] == "[ann]: remember the milk\nfine"
    ok(rest.post("/context/prune"))
    ok(rest.post("/context/clear", json="ann"))
    ok(rest.post("/context/clear", json={"speaker": "ann"}))
    ok(rest.post("/context/clear"))
    assert ok(rest.get("/context/text"), "context_text")["context_text"] == ""
    invalid(rest.post("/context/add", json={"speaker": "ann"}), "text")
    invalid(rest.get("/context?max_items=all"), "max_items")
    invalid(rest.get("/context/text?max_items=all"), "max_items")
    invalid(rest.post("/context/clear", json=5), "body")
    problem(rest.get("/context?limits=2"), 400)


# Experiences, cache, proactive


def test_experiences(rest: Any) -> None:
    """Recorded in the old words, listed in both."""
    ok(rest.post("/experience", json={"content": "fell", "importance_score": "0.9"}), "memory_id", "message")
    listed = more(rest.get("/experience?limit=5"), "memories", "count", "experiences")
    assert listed["count"] == 1
    assert listed["memories"][0]["content"] == listed["experiences"][0]["action"] == "fell"
    invalid(rest.post("/experience", json={}), "content")
    failed(rest.post("/experience", json={"content": "a", "expires_at": "soon"}), 500)
    problem(rest.get("/experience?limit=all"), 400)


def test_the_cache(rest: Any) -> None:
    """By type and key, and memories by id."""
    ok(rest.post("/cache/nlu_results/k", json={"value": [0], "ttl": 60}), "message")
    ok(rest.post("/cache/nlu_results/zero", json={"value": 0}), "message")
    assert ok(rest.get("/cache/nlu_results/k"), "data")["data"] == [0]
    ok(rest.delete("/cache/nlu_results/k"), "message")
    ok(rest.delete("/cache/nlu_results/k"), "message")
    assert failed(rest.get("/cache/nlu_results/k"), 404) == "Cache miss"
    assert ok(rest.post("/cache/nlu_results/flush"), "message")["message"] == "Flushed 1 cache entries"
    invalid(rest.post("/cache/nlu_results/k", json={"ttl": 5}), "value")
    failed(rest.post("/cache/nlu_results/k", json={"value": None}), 500)
    failed(rest.post("/cache/nlu_results/k", json={"value": 1, "ttl": 0}), 500)
    ok(rest.post("/memory_cache/m", json={"data": {"a": 1}}), "message")
    assert ok(rest.get("/memory_cache/m"), "data")["data"] == {"a": 1}
    ok(rest.delete("/memory_cache/m"), "message")
    failed(rest.get("/memory_cache/m"), 404)
    invalid(rest.post("/memory_cache/m", json={"data": []}), "data")


def test_the_proactive_monitor(rest: Any) -> None:
    """Contexts in, history out."""
    ok(rest.post("/proactive/clear"), "message")
    ok(rest.post("/proactive/context", json={"a": 1}), "message")
    history = ok(rest.get("/proactive/history?limit=5"), "history", "count", "total")
    assert [entry["data"] for entry in history["history"]] == [{"a": 1}]
    failed(rest.post("/proactive/context", json={}), 400)
    invalid(rest.post("/proactive/context", json="a"), "body")
    invalid(rest.get("/proactive/history?limit=x"), "limit")


# Utilities, accounts, trust


def test_utilities(rest: Any) -> None:
    """The catalogue's with the old result beside; the others as they were; anything else is not found."""
    for what in ("temp_files", "logs", "cache"):
        cleaned = more(rest.post(f"/utils/cleanup_{what}"), "result", "files_removed")
        assert cleaned["result"]["files_removed"] == cleaned["files_removed"]
    system = more(rest.post("/utils/cleanup_system", json={}), "result", "logs")["result"]
    assert set(system) == {"temp_files", "logs", "cache", "browser_cache"}
    assert ok(rest.post("/utils/cleanup_browser_cache"), "result")["result"]["browsers_cleaned"] == []
    assert ok(rest.post("/utils/run_windows_disk_cleanup", json={}), "result")["result"]["status"] == "error"
    failed(rest.post("/utils/format_disk"), 404)
    problem(rest.post("/utils/cleanup_logs", json={"what": 1}), 400)


def test_accounts(rest: Any) -> None:
    """Registered, signed in, asked about, signed out: bare tokens and objects, names and passwords of both."""
    account = {"user_id": "bob", "password": "correct horse"}
    more(rest.post("/auth/register", json=account), "message", "user_id")
    problem(rest.post("/auth/register", json=account), 409)
    signed_in = more(rest.post("/auth/login", json=account), "message", "session", "access_token")
    token = signed_in["session"]["token"]
    assert token == signed_in["access_token"]
    problem(rest.post("/auth/login", json={**account, "password": "wrong battery"}), 401)
    assert ok(rest.post("/auth/verify", json=token), "valid")["valid"] is True
    assert more(rest.post("/auth/verify", json={"token": token}), "valid", "user_id")["user_id"] == "bob"
    ok(rest.post("/auth/logout", json=token), "message")
    failed(rest.post("/auth/logout", json=token), 400)
    for nothing in (token, "nothing", ""):
        assert ok(rest.post("/auth/verify", json=nothing), "valid")["valid"] is False
    token = rest.post("/auth/login", json=account).json()["session"]["token"]
    more(rest.post("/auth/logout", json={"token": token}), "message", "sessions")
    problem(rest.post("/auth/register", json={"user_id": "eve"}), 400)
    problem(rest.post("/auth/verify", json={}), 400)


def test_names_and_passwords_that_only_the_old_service_took(rest: Any) -> None:
    """They sign up and in as they did; the old agent knows the same account."""
    account = {"user_id": "ann@home", "password": "pw"}
    more(rest.post("/auth/register", json=account), "message", "user_id")
    problem(rest.post("/auth/register", json=account), 409)
    token = more(rest.post("/auth/login", json=account), "message", "session")["session"]["token"]
    assert ok(rest.post("/auth/verify", json=token), "valid")["valid"] is True
    ok(rest.post("/auth/logout", json=token), "message")
    problem(rest.post("/auth/login", json={**account, "password": "p"}), 401)
    problem(rest.post("/auth/register", json={"user_id": "", "password": "short"}), 400)
    old = rest.post("/auth/raw", json={"action": "login", **account}).json()["session"]["token"]
    assert len(old) == 64
    assert ok(rest.post("/auth/verify", json={"token": old}), "valid")["valid"] is True
    ok(rest.post("/auth/logout", json={"token": old}), "message")


def test_trust(rest: Any) -> None:
    """The old formula's score beside ours; nobody is unknown."""
    logged = ok(rest.post("/trust/m1/log", json={"success": True, "response_time": 1.0}), "new_trust_score")
    assert logged["new_trust_score"] == pytest.approx(0.94)
    ok(rest.post("/trust/m1/log", json={"success": False, "response_time": 9, "error_message": "x"}), "new_trust_score")
    score = more(rest.get("/trust/m1"), "trust_score", "score", "outcomes")
    assert (score["trust_score"], score["outcomes"]) == (pytest.approx(0.35), 2)
    assert more(rest.get("/trust/nobody"), "trust_score")["trust_score"] == 0.5
    history = ok(rest.get("/trust/m1/history?limit=1"), "history")["history"]
    assert [(entry["success"], entry["response_time"]) for entry in history] == [(False, 9.0)]
    invalid(rest.post("/trust/m1/log", json={"response_time": 1}), "success")
    invalid(rest.get("/trust/m1/history?limit=few"), "limit")


# Whole requests of agents


RAW_REQUESTS = {
    "/memory_client/raw": ({"action": "get_memory", "data": {"memory_id": "none"}}, "error"),
    "/session_agent/raw": ({"action": "create_session", "user_id": "u"}, "success"),
    "/knowledge_base/raw": ({"action": "search_facts", "query": "a"}, "success"),
    "/orchestrator/raw": ({"action": "batch_get_memories", "data": {"memory_ids": ["none"]}}, "success"),
    "/umra/raw": ({"action": "get_twin"}, "ok"),
    "/context_manager/raw": ({"action": "add_to_context", "text": "a"}, "success"),
    "/experience_tracker/raw": ({"action": "get_experiences"}, "success"),
    "/cache_manager/raw": ({"action": "get", "cache_type": "a", "key": "b"}, "error"),
    "/proactive/raw": ({"action": "clear_context_history"}, "success"),
    "/utils/raw": ({"action": "run_windows_disk_cleanup"}, "error"),
    "/auth/raw": ({"action": "login", "user_id": "nobody", "password": "x"}, "error"),
    "/trust/raw": ({"action": "get_trust_score", "model_id": "m"}, "success"),
}


def test_every_raw_path_has_a_case() -> None:
    """A path that is added needs one."""
    assert set(RAW_REQUESTS) == set(RAW)


@pytest.mark.parametrize("path", RAW_REQUESTS)
def test_a_raw_path_answers_with_the_reply(rest: Any, path: str) -> None:
    """Always 200, whatever it says; what is no object is refused."""
    asked, status = RAW_REQUESTS[path]
    answer = rest.post(path, json=asked)
    assert (answer.status_code, answer.json()["status"]) == (200, status)
    unknown = rest.post(path, json={"action": "dance"})
    assert (unknown.status_code, unknown.json()["status"]) == (200, "error")
    wrong: list[Any] = [[], "text", None, 5]
    for body in wrong:
        assert rest.post(path, json=body).status_code == 422
    assert rest.post(path, content=b"{").status_code == 422
    assert rest.post(path).status_code == 422


def test_the_raw_context_manager_says_added(rest: Any) -> None:
    """Its router had messages of its own."""
    said = [
        rest.post("/context_manager/raw", json={"action": action}).json()["message"]
        for action in ("add_to_context", "clear_context", "prune_context")
    ]
    assert said == ["Added", "Cleared", "Pruned"]


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.method != "GET"], ids=lambda row: f"{row.method} {row.path}"
)
@pytest.mark.parametrize("body", [b"{", b"\xff", b"[1]", b"5", b'"\\ud800"', b"[" * 3000, b'{"a": NaN}', BIG])
def test_a_body_that_is_none_never_fails_inside(rest: Any, row: Any, body: bytes) -> None:
    """Whatever is sent, the answer is not that the server broke."""
    path = row.path.replace("{", "").replace("}", "")
    answer = rest.request(row.method, path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400, 404, 422, 500), answer.text
    assert "failed:" not in answer.text
    if body in (b"{", b"\xff", b"[" * 3000, b'{"a": NaN}'):
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["type"] == "json_invalid"


# The base


def test_the_root_says_that_somebody_is_there(rest: Any, models: Any) -> None:
    """As text, on both ports; health is where it was."""
    for client in (rest, models):
        answer = client.get("/")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain")
        assert client.get("/health").json()["status"] in ("ok", "degraded")
        assert client.get("/", headers={"accept": "text/html"}).headers["location"] == "/docs"


# The second service


def test_keys_of_the_second_service(rest: Any) -> None:
    """By namespace; that there is none is an answer; a list only with a pattern."""
    ok(rest.post("/kv", json={"key": "a1", "value": "x", "namespace": "n2", "expire": 60}), "key", "namespace")
    ok(rest.post("/kv", json={"key": "b1", "value": "y", "namespace": "n2"}), "key", "namespace")
    assert rest.get("/kv/n2/a1").json() == {"key": "a1", "value": "x", "namespace": "n2", "exists": True}
    assert rest.get("/kv/n2/c1").json() == {"key": "c1", "value": None, "namespace": "n2", "exists": False}
    assert rest.get("/kv/n2?pattern=*1").json()["keys"] == ["a1", "b1"]
    assert rest.get("/kv/n2?pattern=a*").json() == {"namespace": "n2", "pattern": "a*", "keys": ["a1"], "count": 1}
    assert ok(rest.delete("/kv/n2/a1"), "key", "namespace", "deleted")["deleted"] is True
    assert ok(rest.delete("/kv/n2/a1"), "key", "namespace", "deleted")["deleted"] is False
    invalid(rest.post("/kv", json={"key": "a", "value": 5}), "value")
    failed(rest.get("/kv/bad%20name/a"), 400)


def test_documents_embeddings_and_sessions_of_the_second_service(rest: Any) -> None:
    """Told apart from those of the first by `doc_id` and by `data`."""
    document = {"doc_id": "d", "title": "T", "content": "C", "metadata": {"a": 1}}
    kept = ok(rest.post("/doc", json=document), "doc_id", "namespace", "embedding_id", "storage_id")
    assert kept["namespace"] == "knowledge_base"
    read = rest.get("/doc/knowledge_base/d").json()
    assert (read["title"], read["content"], read["metadata"]) == ("T", "C", {"a": 1})
    assert failed(rest.get("/doc/knowledge_base/none"), 404) == "Document not found"
    invalid(rest.post("/doc", json={"doc_id": "d"}), "title", "content")
    embedded = ok(rest.post("/embedding", json={"content": "a lynx", "namespace": "e2"}), "embedding_id", "namespace")
    invalid(rest.post("/embedding", json={}), "content")
    hits = rest.post("/embedding/search", json={"query": "lynx", "ns": "e2"}).json()["hits"]
    assert [hit["id"] for hit in hits] == [embedded["embedding_id"]]
    session = {"session_id": "s2", "user_id": "u", "data": {"a": 1}}
    ok(rest.post("/session", json=session), "session_id", "namespace", "storage_id")
    ok(rest.post("/session", json={**session, "data": {"b": 2}}), "session_id", "namespace", "storage_id")
    assert rest.get("/session/session_memory/s2").json()["data"] == {"b": 2}
    failed(rest.get("/session/session_memory/none"), 404)
    invalid(rest.post("/session", json={"session_id": "s2", "user_id": "u"}), "data")


def test_sign_ins_of_the_second_service_check_the_password(rest: Any) -> None:
    """Who says that it is an agent is none by that, and without a token nobody is anybody."""
    rest.post("/auth/register", json={"user_id": "carl", "password": "correct horse"})
    asked = {"username": "carl", "password": "correct horse", "agent_name": "CoreOrchestrator"}
    signed_in = rest.post("/auth/token", json=asked).json()
    assert signed_in["token_type"] == "bearer"
    assert signed_in["user"]["roles"] == ["user"]
    head = {"authorization": f"Bearer {signed_in['access_token']}"}
    assert rest.get("/auth/me", headers=head).json()["user_id"] == "carl"
    failed(rest.get("/auth/me"), 401)
    failed(rest.get("/auth/me", headers={"authorization": "Bearer no"}), 401)
    failed(rest.post("/auth/token", json={**asked, "password": "wrong"}), 401)
    failed(rest.post("/auth/token", json={**asked, "username": "no such name!"}), 401)
    failed(rest.post("/auth/token", json={"username": "carl"}), 400)
    failed(rest.post("/auth/agent-token", json="carl", headers=head), 403)


# Models


def test_models_are_told_in_both_words(models: Any) -> None:
    """Entries and the status object are ours with the old keys."""
    listed = more(models.get("/models"), "models")["models"]
    entry = next(entry for entry in listed if entry["name"] == MODEL)
    assert {"model_id", "model_path", "n_ctx", "loaded", "size_bytes", "state"} <= set(entry)
    more(models.post(f"/models/{MODEL}/load"), "model", "state")
    shown = models.get(f"/models/{MODEL}").json()
    assert (shown["status"], shown["state"]) == ("loaded", "loaded")
    assert {"model_info", "vram_usage", "name"} <= set(shown)
    assert models.get(f"/models/{MODEL}/stats").json()["status"] == "loaded"
    more(models.post(f"/models/{MODEL}/unload"), "model", "state")
    assert models.get(f"/models/{MODEL}").json()["status"] == "available_not_loaded"
    for method, path in (("GET", ""), ("GET", "/stats"), ("POST", "/load"), ("POST", "/unload")):
        problem(models.request(method, f"/models/none{path}"), 404)
    assert models.post("/gguf/raw", json={"action": "list_models"}).json()["models"]
    assert models.post("/gguf/raw", json=[]).status_code == 422


# Sign-in required


def test_where_everybody_signs_in_no_old_path_is_open(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Neither those behind the bus nor those whose state lies in the gateway."""
    home = tmp_path_factory.mktemp("closed")
    with (
        EdgeHouse(
            home, services=("memory",), routes=phase1, **{"auth.required": True, "auth.allow_register": True}
        ) as house,
        client_of(house, "memory") as rest,
    ):
        account = {"user_id": "dora", "password": "correct horse"}
        rest.post("/auth/register", json=account)
        head = {"authorization": f"Bearer {rest.post('/auth/login', json=account).json()['access_token']}"}
        for method, path, body in (
            ("GET", "/twin/u", ...),
            ("POST", "/context/add", {"text": "a"}),
            ("GET", "/context/text", ...),
            ("GET", "/proactive/history", ...),
            ("POST", "/session", {"user_id": "u"}),
            ("GET", "/kv/n/k", ...),
        ):
            failed(send(rest, method, path, body), 401)
        failed(rest.get("/context/text", headers={"authorization": "Bearer no"}), 401)
        ok(rest.get("/context/text", headers=head), "context_text")
        # Namespaces of others are closed to who signed up alone.
        failed(rest.get("/twin/u", headers=head), 403)
        assert rest.get("/kv/user.dora/k", headers=head).json()["exists"] is False
        source = token_source(house.settings)
        assert source is not None
        issued = rest.post("/auth/agent-token", json="dora", headers={"authorization": f"Bearer {source()}"}).json()
        assert (issued["agent_name"], issued["token_type"]) == ("dora", "bearer")


# All of them

# Routes that have nothing to refuse.
NEVER_FAIL = {
    "GET /twin/{user_id}",
    "GET /models",
    "POST /context/prune",
    "POST /proactive/clear",
    "POST /cache/{cache_type}/flush",
    "DELETE /cache/{cache_type}/{key}",
    "DELETE /memory_cache/{memory_id}",
    "DELETE /kv/{namespace}/{key}",
    "GET /trust/{user_id}",
    "POST /utils/cleanup_temp_files",
    "POST /utils/cleanup_cache",
    "POST /utils/cleanup_system",
}


def test_every_route_was_asked_for_what_it_gives_and_what_it_refuses(
    house: EdgeHouse, request: pytest.FixtureRequest
) -> None:
    """A route that is added needs its cases here."""
    here = {item.originalname for item in request.session.items if item.fspath == request.node.fspath}  # type: ignore[attr-defined]
    if {name for name in globals() if name.startswith("test_")} - here:
        return
    missing = []
    for service, routes in phase1(house.settings, house.client).items():
        table: Table[str] = Table()
        for route in routes:
            table.add(route.method, route.template, f"{route.method} {route.template}")
        seen = {
            (found.target, is_well)
            for asked, method, path, is_well in SEEN
            if asked == service and (found := table.find(method, segments(path))) is not None
        }
        for route in routes:
            name = f"{route.method} {route.template}"
            missing += [f"success of {name}"] if (name, True) not in seen else []
            missing += [f"failure of {name}"] if (name, False) not in seen and name not in NEVER_FAIL else []
    assert not missing, "\n".join(missing)
