"""The HTTP edge over real sockets, a real broker and the real memory service."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest

from bus.settings import Settings
from bus.tokens import local_token_path
from bus.worker import Call, Worker
from schemas import catalog
from schemas.bodies.memory import KvGet
from schemas.errors import NotFound, Overloaded
from tests.rest_house import House, rest_house
from workers.gateway.rest import server
from workers.gateway.rest.operations import OperationRoute, operation_routes, port_of
from workers.gateway.rest.request import RestRequest
from workers.gateway.rest.response import Response, json_response
from workers.gateway.rest.routes import Route
from workers.memory.service import service

Serve = Callable[..., AbstractAsyncContextManager[Settings]]
Wire = tuple[asyncio.StreamReader, asyncio.StreamWriter]

# Longest wait of any one step, seconds.
WITHIN_S = 10.0


@asynccontextmanager
async def memory(settings: Settings, **rest: Any) -> AsyncIterator[House]:
    """The edge over the memory service."""
    async with service(settings) as worker, rest_house(settings, **rest) as house:
        await worker.start(10)
        try:
            yield house
        finally:
            await worker.stop(drain_s=0)


@asynccontextmanager
async def stub(settings: Settings, **handlers: Any) -> AsyncIterator[Worker]:
    """A worker that serves subjects, written with _ for the dots."""
    worker = Worker("stub", settings)
    for name, handler in handlers.items():
        worker.handle(name.replace("_", "."), handler)
    await worker.start(10)
    try:
        yield worker
    finally:
        await worker.stop(drain_s=0)


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The body of an error, checked to be one."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    body: dict[str, Any] = response.json()
    assert (response.status_code, body["status"], body["code"]) == (status, status, code), body
    assert isinstance(body["detail"], str) and body["type"] == "about:blank" and body["title"]
    return body


# Operations -----------------------------------------------------------------------------------------------------


async def test_memory_is_written_read_searched_and_deleted_over_http(serve_broker: Serve) -> None:
    """Entries, memories, documents, sessions and search, each as its operation declares it."""
    async with serve_broker() as settings, memory(settings) as house:
        key = "/kv/a%2Fb%20%25%F0%9F%90%99"
        assert (await house.ask("POST", key, json={"value": {"n": [1, None]}})).json()["version"] == 1
        entry = (await house.ask("GET", key)).json()
        assert (entry["key"], entry["value"]) == ("a/b %🐙", {"n": [1, None]})
        assert [each["key"] for each in (await house.ask("GET", "/kv?limit=5&prefix=a")).json()["entries"]] == [
            "a/b %🐙"
        ]
        assert (await house.ask("DELETE", f"{key}?if_version=1")).json()["deleted"]
        problem(await house.ask("GET", key), 404, "not_found")

        added = (await house.ask("POST", "/memory", json={"content": "The kettle is red", "tags": ["kitchen"]})).json()
        assert (await house.ask("GET", f"/memory/{added['id']}")).json()["content"] == "The kettle is red"
        changed = await house.ask("PATCH", f"/memory/{added['id']}", json={"importance": 0.9})
        assert changed.json()["importance"] == 0.9
        await house.ask("POST", "/doc/manual", json={"title": "Manual", "content": "Fill the kettle with water"})
        assert (await house.ask("GET", "/doc/manual")).json()["title"] == "Manual"
        hits = await house.ask("POST", "/embedding/search", json={"query": "kettle", "mode": "text", "k": 5})
        assert "The kettle is red" in {hit["text"] for hit in hits.json()["hits"]}
        assert (await house.ask("GET", "/embedding/kettle?mode=text&k=1")).json()["hits"]

        await house.ask("POST", "/session/s1", json={"user_id": "ada"})
        turns = {"turns": [{"role": "user", "content": "hello"}]}
        assert (await house.ask("POST", "/session/s1/append", json=turns)).status_code == 200
        assert [turn["content"] for turn in (await house.ask("GET", "/session/s1/history")).json()["turns"]] == [
            "hello"
        ]
        assert (await house.ask("DELETE", "/session/s1")).status_code == 200


def example(kind: Any, name: str = "") -> Any:
    """A value of a type, as small as its limits allow."""
    inspect = msgspec.inspect
    match kind:
        case inspect.Metadata(type=inner):
            return example(inner, name)
        case inspect.UnionType(types=types):
            return example(next(each for each in types if not isinstance(each, inspect.NoneType)), name)
        case inspect.StrType():
            texts = ("a" * max(kind.min_length or 0, 1), "0" * 32, "")
            return next(text for text in texts if kind.pattern is None or re.search(kind.pattern, text))
        case inspect.IntType() | inspect.FloatType():
            low = kind.ge if kind.ge is not None else (kind.gt + 1 if kind.gt is not None else 1)
            return int(low) or (1 if kind.le is None or kind.le >= 1 else 0)
        case inspect.BoolType():
            return True
        case inspect.LiteralType(values=values):
            return values[0]
        case inspect.ListType(item_type=item):
            return [example(item, name)] * max(kind.min_length or 0, 1)
        case inspect.DictType():
            return {"a": example(kind.value_type, name)}
        case inspect.StructType(fields=fields):
            return {each.encode_name: example(each.type, each.encode_name) for each in fields if each.required}
    return "a"


def call_of(route: OperationRoute) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """A path, the rest of a request for `httpx`, and the fields the operation should get."""
    fields = {each.encode_name: each for each in msgspec.inspect.type_info(route.operation.request).fields}  # type: ignore[attr-defined]
    wanted = {name: example(each.type, name) for name, each in fields.items() if each.required or name in route.names}
    if not wanted and fields:
        name, each = next(iter(fields.items()))
        wanted = {name: example(each.type, name)}
    path = route.template
    for name in route.names:
        value = wanted[name][0] if isinstance(wanted[name], list) else wanted[name]
        path = path.replace("{" + name + "}", str(value))
    rest = {name: value for name, value in wanted.items() if name not in route.names}
    if route.takes_body:
        return path, {"json": rest}, wanted
    plain = (str, int, float, bool, list)
    texts = {
        name: value if isinstance(value, plain) and not isinstance(value, bool) else json.dumps(value)
        for name, value in rest.items()
    }
    return path, {"params": texts}, wanted


async def test_every_route_of_the_catalogue_brings_its_fields_to_its_operation(serve_broker: Serve) -> None:
    """Each declared route is called once; the worker behind it gets what path, query and body held."""
    got: dict[str, Any] = {}
    own = ("bus", "deadletter")
    async with serve_broker() as settings:
        worker = Worker("stub", settings)
        for subject, operation in catalog.OPERATIONS.items():
            if operation.family not in own:

                async def answer(request: Any, call: Call) -> Any:
                    got[call.subject] = json.loads(msgspec.json.encode(request))
                    return {"subject": call.subject}

                worker.handle(subject, answer)
        await worker.start(10)
        try:
            async with rest_house(settings) as house:
                for route in operation_routes():
                    path, more, wanted = call_of(route)
                    response = await house.ask(route.method, path, port_of(route.operation), **more)
                    subject = route.operation.subject
                    if route.operation.family in own:
                        assert "nearest" not in response.json().get("details", {}), response.text
                        continue
                    assert response.json() == {"subject": subject}, (route.method, route.template, response.text)
                    sent = msgspec.json.decode(msgspec.json.encode(wanted), type=route.operation.request)
                    assert got.pop(subject) == json.loads(msgspec.json.encode(sent))
        finally:
            await worker.stop(drain_s=0)


async def test_a_key_makes_a_repeated_write_the_same_write(serve_broker: Serve) -> None:
    """The second answer tells the version of the first; another key writes again."""
    async with serve_broker() as settings, memory(settings) as house:
        versions = [
            (await house.ask("POST", "/kv/k", json={"value": 1}, headers={"idempotency-key": key})).json()["version"]
            for key in ("first", "first", "second")
        ]

        assert versions == [1, 1, 2]


async def test_a_key_that_is_in_use_is_a_conflict(serve_broker: Serve) -> None:
    """Two requests under one id would take each other's answer."""
    began, may_end = asyncio.Event(), asyncio.Event()

    async def slow(request: Any, call: Call) -> Any:
        began.set()
        await may_end.wait()
        return {"id": call.id.hex()}

    headers = {"idempotency-key": "ab" * 16}
    async with serve_broker() as settings, stub(settings, memory_kv_set=slow), rest_house(settings) as house:
        first = asyncio.create_task(house.ask("POST", "/kv/k", json={"value": 1}, headers=headers))
        await asyncio.wait_for(began.wait(), WITHIN_S)
        problem(await house.ask("POST", "/kv/k", json={"value": 1}, headers=headers), 409, "conflict")
        may_end.set()
        assert (await first).json() == {"id": "ab" * 16}


async def test_headers_of_http_become_headers_of_the_bus(serve_broker: Serve) -> None:
    """Token and trace reach the worker; the time is the request's deadline."""
    seen: dict[str, Any] = {}

    async def look(request: Any, call: Call) -> Any:
        seen.update(call.headers)
        await asyncio.Event().wait()

    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    async with serve_broker() as settings, stub(settings, memory_kv_get=look), rest_house(settings) as house:
        headers = {"authorization": "Bearer T", "traceparent": trace, "x-timeout-s": "0.3"}
        problem(await house.ask("GET", "/kv/k", headers=headers), 504, "deadline_exceeded")

        assert (seen["token"], seen["traceparent"]) == ("T", trace)


async def test_errors_of_a_worker_keep_their_status_and_wait(serve_broker: Serve) -> None:
    """Also where nobody serves the operation at all."""

    async def full(request: Any, call: Call) -> Any:
        raise Overloaded("too many", queued=9, attempts=1, retry_after_s=1.2)

    async def broken(request: Any, call: Call) -> Any:
        raise ZeroDivisionError("by zero")

    async with (
        serve_broker() as settings,
        stub(settings, memory_kv_get=full, memory_kv_list=broken),
        rest_house(settings) as house,
    ):
        busy = await house.ask("GET", "/kv/k")
        assert problem(busy, 503, "overloaded")["details"]["queued"] == 9
        assert busy.headers["retry-after"] == "2"
        problem(await house.ask("GET", "/models", "models"), 503, "no_worker")
        problem(await house.ask("GET", "/kv"), 500, "internal")


# Streams --------------------------------------------------------------------------------------------------------


async def export(request: Any, call: Call) -> Any:
    """Two pieces and an end."""
    for number in (1, 2):
        await call.partial({"records": [], "done": number, "total": 2})
    return {"counts": {"kv": 2}, "records": []}


async def test_a_stream_comes_as_events_as_lines_or_whole(serve_broker: Serve) -> None:
    """By the Accept header; each piece is the worker's own JSON."""
    async with serve_broker() as settings, stub(settings, memory_export=export), rest_house(settings) as house:
        events = await house.ask("GET", "/memory/export", headers={"accept": "text/event-stream"})
        lines = await house.ask("GET", "/memory/export", headers={"accept": "application/x-ndjson"})
        whole = await house.ask("GET", "/memory/export")

        assert events.headers["content-type"] == "text/event-stream"
        found = re.findall(r"event: (\w+)\ndata: (.+)\n\n", events.text)
        assert [name for name, _ in found] == ["partial", "partial", "final"]
        assert [json.loads(data).get("done") for _, data in found] == [1, 2, None]
        assert [json.loads(line)["event"] for line in lines.text.splitlines()] == ["partial", "partial", "final"]
        assert json.loads(lines.text.splitlines()[2])["data"] == {"counts": {"kv": 2}, "records": []}
        assert whole.json()["counts"] == {"kv": 2}


async def test_an_error_before_the_first_piece_has_its_status_and_later_is_an_event(serve_broker: Serve) -> None:
    """Whoever asked reads of it either way."""

    async def refuses(request: Any, call: Call) -> Any:
        raise NotFound("no such thing")

    async def breaks(request: Any, call: Call) -> Any:
        await call.partial({"records": [], "done": 1, "total": 2})
        raise NotFound("gone meanwhile")

    accept = {"accept": "text/event-stream"}
    async with (
        serve_broker() as settings,
        stub(settings, memory_export=refuses, memory_verify=breaks),
        rest_house(settings) as house,
    ):
        problem(await house.ask("GET", "/memory/export", headers=accept), 404, "not_found")
        later = await house.ask("POST", "/memory/verify", headers=accept)

        assert later.status_code == 200
        name, data = re.findall(r"event: (\w+)\ndata: (.+)\n\n", later.text)[-1]
        assert (name, json.loads(data)["code"]) == ("error", "not_found")


@pytest.mark.parametrize("accept", ["text/event-stream", "application/json"])
async def test_a_caller_who_hangs_up_takes_the_request_back(serve_broker: Serve, accept: str) -> None:
    """The handler is cancelled on the bus, whether its reply streams or not."""
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def endless(request: Any, call: Call) -> Any:
        await call.partial({"records": [], "done": 0, "total": 1})
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with serve_broker() as settings, stub(settings, memory_export=endless), rest_house(settings) as house:
        _, writer = await asyncio.open_connection("127.0.0.1", house.port())
        writer.write(f"GET /memory/export HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n".encode())
        await asyncio.wait_for(began.wait(), WITHIN_S)
        writer.close()

        await asyncio.wait_for(cancelled.wait(), WITHIN_S)
        await writer.wait_closed()
        assert 'olympus_rest_requests_abandoned_total{api="memory"} 1.0' in (await house.ask("GET", "/metrics")).text


async def test_a_quiet_stream_is_kept_awake(serve_broker: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head does not wait for the first piece, and a comment comes where no piece does."""
    monkeypatch.setattr("workers.gateway.rest.streaming.HEARTBEAT_S", 0.05)
    monkeypatch.setattr("workers.gateway.rest.streaming._FIRST_S", 0.05)
    may_end = asyncio.Event()

    async def quiet(request: Any, call: Call) -> Any:
        await may_end.wait()
        return {"counts": {}, "records": []}

    async with serve_broker() as settings, stub(settings, memory_export=quiet), rest_house(settings) as house:
        url, accept = house.url("/memory/export"), {"accept": "text/event-stream"}
        async with house.http.stream("GET", url, headers=accept) as response:
            lines = response.aiter_lines()
            assert await anext(lines) == ": waiting"
            may_end.set()
            assert "event: final" in [line async for line in lines]


# Sign-in --------------------------------------------------------------------------------------------------------


async def test_where_sign_in_is_required_tokens_scopes_and_namespaces_count(serve_broker: Serve) -> None:
    """From the first sign-in to what a guest may not do; without a token nothing but signing in works."""
    async with serve_broker() as plain:
        auth = msgspec.structs.replace(plain.auth, required=True)
        settings = msgspec.structs.replace(plain, auth=auth)
        async with memory(settings) as house:
            admin = {"authorization": f"Bearer {local_token_path(settings).read_text().strip()}"}
            person = {"user_id": "ada", "password": "correct horse"}

            refused = await house.ask("GET", "/kv/k")
            problem(refused, 401, "unauthenticated")
            assert refused.headers["www-authenticate"] == "Bearer"
            problem(await house.ask("GET", "/kv/k", headers={"authorization": "Bearer forged"}), 401, "unauthenticated")
            problem(await house.ask("GET", "/kv/k", headers={"authorization": "Basic eDp5"}), 401, "unauthenticated")
            added = await house.ask("POST", "/auth/user", json=person, headers=admin)
            assert added.status_code == 200, added.text
            signed = await house.ask("POST", "/auth/login", json={"user_id": "ada", "password": "correct horse"})
            ada = {"authorization": f"Bearer {signed.json()['access_token']}"}
            problem(await house.ask("GET", "/auth/user", headers=ada), 403, "forbidden")
            problem(await house.ask("GET", "/kv/k?ns=somebody.else", headers=ada), 403, "forbidden")
            assert (await house.ask("POST", "/kv/k", json={"value": 1}, headers=admin)).json()["version"] == 1
            assert (await house.ask("GET", "/health")).json()["dependencies"]["memory"]["status"] == "ok"


# What is no good ------------------------------------------------------------------------------------------------

JSON = {"content-type": "application/json"}


BODIES: list[tuple[bytes, dict[str, str], int]] = [
    (b"", JSON, 400),
    (b"{", JSON, 400),
    (b"[]", JSON, 400),
    (b'"text"', JSON, 400),
    (b"null", JSON, 400),
    (b'{"value":NaN}', JSON, 400),
    (b'{"value":1e999}', JSON, 400),
    (b'{"value":1,"value":2}', JSON, 400),
    (b'\xef\xbb\xbf{"value":1}', JSON, 400),
    (b'{"value":"\xff\xfe"}', JSON, 400),
    (b'{"value":"\\ud800"}', JSON, 400),
    (b'{"value":' + b"[" * 5000 + b"]" * 5000 + b"}", JSON, 400),
    (b'{"value":1,"made_up":2}', JSON, 400),
    (b'{"value":1,"ttl_s":"soon"}', JSON, 400),
    (b"\x81\xa5value\x01", {"content-type": "application/msgpack"}, 415),
    (b"value=1", {"content-type": "application/x-www-form-urlencoded"}, 415),
    (b'--x\r\nContent-Disposition: form-data; name="value"\r\n\r\n1\r\n--x--', {"content-type": "multipart/form-data; boundary=x"}, 415),
    (b"<value>1</value>", {"content-type": "text/xml"}, 415),
]  # fmt: skip


async def test_a_bad_body_is_refused_in_words_and_the_next_good_one_works(serve_broker: Serve) -> None:
    """Never a 500, never silence."""
    async with serve_broker() as settings, memory(settings) as house:
        for number, (body, headers, status) in enumerate(BODIES):
            problem(await house.ask("POST", "/kv/k", content=body, headers=headers), status, "bad_request")
            assert (await house.ask("POST", f"/kv/{number}", json={"value": 1})).json()["version"] == 1


async def test_wrong_paths_and_methods_say_what_there_is(serve_broker: Serve) -> None:
    """404 with what looks like it, 405 with what is allowed, OPTIONS with the same; HEAD is GET without the body."""
    async with serve_broker() as settings, memory(settings) as house:
        assert problem(await house.ask("GET", "/kvv/k"), 404, "not_found")["details"]["nearest"] == ["/kv/{key}", "/kv"]
        assert "%2F" in problem(await house.ask("GET", "/kv/a/b"), 404, "not_found")["detail"]
        wrong = await house.ask("PUT", "/kv/k")
        problem(wrong, 405, "bad_request")
        assert wrong.headers["allow"] == "DELETE, GET, HEAD, OPTIONS, POST"
        asked = await house.ask("OPTIONS", "/kv/k")
        assert (asked.status_code, asked.headers["allow"], asked.content) == (204, wrong.headers["allow"], b"")
        problem(await house.ask("POST", "/health"), 405, "bad_request")
        problem(await house.ask("GET", "/kv/%FF"), 400, "bad_request")
        problem(await house.ask("GET", "/kv?limit=1&limit=2"), 400, "bad_request")
        problem(await house.ask("GET", "/kv?limmit=1"), 400, "bad_request")
        problem(await house.ask("GET", "/kv", content=b"{}", headers=JSON), 400, "bad_request")
        problem(await house.ask("GET", "/kv/k", headers={"host": "evil.example"}), 421, "forbidden")
        await house.ask("POST", "/kv/k", json={"value": 1})
        whole, head = await house.ask("GET", "/kv/k"), await house.ask("HEAD", "/kv/k")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == whole.headers["content-length"]


async def test_a_page_of_a_named_site_may_call_and_any_other_may_not(serve_broker: Serve) -> None:
    """With the browser's question before it, and the headers that let the page read the answer."""
    good = {"origin": "https://good.example"}
    async with serve_broker() as settings, memory(settings, cors_origins=("https://good.example",)) as house:
        ask = {**good, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        before = await house.ask("OPTIONS", "/kv/k", headers=ask)
        assert before.headers["access-control-allow-origin"] == "https://good.example"
        assert "POST" in before.headers["access-control-allow-methods"]
        assert "authorization" in before.headers["access-control-allow-headers"]
        written = await house.ask("POST", "/kv/k", json={"value": 1}, headers=good)
        assert written.headers["access-control-allow-origin"] == "https://good.example"
        assert (await house.ask("GET", "/health", headers=good)).headers["vary"] == "origin"
        evil = {"origin": "https://evil.example"}
        problem(await house.ask("POST", "/kv/k", json={"value": 2}, headers=evil), 403, "forbidden")
        assert "access-control-allow-origin" not in (await house.ask("OPTIONS", "/kv/k", headers=evil)).headers
        assert (await house.ask("GET", "/kv/k")).json()["value"] == 1


# Raw sockets ----------------------------------------------------------------------------------------------------


async def wire(house: House, sent: bytes) -> Wire:
    """A connection over which something was sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port())
    writer.write(sent)
    await writer.drain()
    return reader, writer


async def said(wired: Wire, close: bool = True) -> bytes:
    """Everything until the server says no more."""
    reader, writer = wired
    try:
        return await asyncio.wait_for(reader.read(), WITHIN_S)
    finally:
        if close:
            writer.close()


HEAD = b"Host: localhost\r\nContent-Type: application/json\r\n"


HEADS: list[tuple[bytes, int]] = [
    (b"GET /kv/k HTTP/1.1\r\nHo", 408),
    (b"POST /kv/k HTTP/1.1\r\n" + HEAD + b"Content-Length: 20\r\n\r\n{", 408),
    (b"POST /kv/k HTTP/1.1\r\n" + HEAD + b"Content-Length: 999999\r\n\r\n", 413),
    (b"POST /kv/k HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"800\r\n" + b"x" * 2048 + b"\r\n", 413),
    (b"GET /kv/k HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", 431),
    (b"GET /" + b"y" * 70_000, 431),
    (b"GET /kv/k HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    (b"GET /kv/k HTTP/1.1\r\nHost: evil.example\r\nHost: localhost\r\n\r\n", 400),
    (b"GET /kv/k HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer a\r\nauthorization: Bearer b\r\n\r\n", 400),
    (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (b"POST /kv/k HTTP/1.1\r\n" + HEAD + b"Content-Length: x\r\n\r\n", 400),
    (b"POST /kv/k HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
]  # fmt: skip


async def test_what_is_slow_too_large_or_no_http_is_told_so_and_closed(serve_broker: Serve) -> None:
    """All at once; a caller who behaves notices nothing of it."""

    async def refused(house: House, sent: bytes, status: int) -> None:
        head, _, body = (await said(await wire(house, sent))).partition(b"\r\n\r\n")
        assert head.startswith(f"HTTP/1.1 {status} ".encode()), (sent[:80], head)
        assert json.loads(body)["status"] == status

    async with serve_broker() as settings, memory(settings, read_timeout_s=0.3, max_body_bytes=1024) as house:
        told = asyncio.gather(*(refused(house, sent, status) for sent, status in HEADS))
        assert (await house.ask("GET", "/health")).status_code == 200
        await told


CHUNKED = b"POST /kv/k HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

ENDLESS = {
    "trailers": (CHUNKED + b'e\r\n{"value": "x"}\r\n0\r\n', b"X-Trailer: " + b"y" * 1000 + b"\r\n"),
    "one trailer": (CHUNKED + b'e\r\n{"value": "x"}\r\n0\r\nX: ', b"y" * 1000),
    "an extension of a chunk": (CHUNKED + b"e;x=", b"y" * 1000),
}


@pytest.mark.parametrize("what", ENDLESS)
async def test_what_is_no_content_ends_the_request_before_it_fills_the_memory(serve_broker: Serve, what: str) -> None:
    """It counts neither as head nor as body, and the parser keeps it."""
    begin, more = ENDLESS[what]
    async with serve_broker() as settings, rest_house(settings) as house:
        reader, writer = await wire(house, begin)
        reading = asyncio.ensure_future(reader.read())
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(WITHIN_S):
                while not reading.done():
                    writer.write(more * 100)
                    await writer.drain()
                    await asyncio.sleep(0)
        with contextlib.suppress(ConnectionError):
            assert (await asyncio.wait_for(reading, WITHIN_S)).startswith(b"HTTP/1.1 400 ")
        writer.close()
        assert (await house.ask("GET", "/bus/ping")).status_code == 200


async def test_trailers_are_no_headers(serve_broker: Serve) -> None:
    """Or they would name another caller, or another host, than what was checked in between."""
    async with serve_broker() as settings, memory(settings) as house:
        body = b'e\r\n{"value": "x"}\r\n0\r\nHost: evil.example\r\nAuthorization: Bearer forged\r\n\r\n'
        ahead = CHUNKED + body + b"GET /kv/k HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        answers = (await said(await wire(house, ahead))).split(b"HTTP/1.1 ")[1:]

        assert [answer[:3] for answer in answers] == [b"200", b"200"] and b'"value":"x"' in answers[1]


async def test_a_body_that_trickles_is_given_up(serve_broker: Serve) -> None:
    """Each piece comes in time, and the whole never would."""
    async with serve_broker() as settings, rest_house(settings, read_timeout_s=0.4) as house:
        reader, writer = await wire(house, b"POST /kv/k HTTP/1.1\r\n" + HEAD + b"Content-Length: 60000000\r\n\r\n")
        reading = asyncio.ensure_future(reader.read())
        async with asyncio.timeout(WITHIN_S):
            while not reading.done():
                writer.write(b" ")
                await asyncio.wait({reading}, timeout=0.02)
        assert (await reading).startswith(b"HTTP/1.1 408 ")
        writer.close()


async def test_who_sends_the_whole_body_before_listening_still_hears_that_it_is_too_large(serve_broker: Serve) -> None:
    """Closed at once, the connection would be reset under the answer."""
    async with serve_broker() as settings, rest_house(settings, max_body_bytes=1024) as house:
        length = 16_000_000

        def upload() -> bytes:
            with socket.create_connection(("127.0.0.1", house.port()), timeout=WITHIN_S) as caller:
                caller.sendall(b"POST /kv/k HTTP/1.1\r\n" + HEAD + f"Content-Length: {length}\r\n\r\n".encode())
                for _ in range(16):
                    caller.sendall(b" " * (length // 16))
                    time.sleep(0.01)
                return caller.makefile("rb").read()

        assert (await asyncio.to_thread(upload)).startswith(b"HTTP/1.1 413 ")


async def test_nobody_holds_a_connection_that_was_told_its_last(serve_broker: Serve) -> None:
    async with serve_broker() as settings, rest_house(settings, max_body_bytes=1024, read_timeout_s=0.4) as house:
        reader, writer = await wire(house, b"POST /kv/k HTTP/1.1\r\n" + HEAD + b"Content-Length: 60000000\r\n\r\n")
        assert (await said((reader, writer), close=False)).startswith(b"HTTP/1.1 413 ")
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(WITHIN_S):
                while True:
                    writer.write(b" ")
                    await writer.drain()
                    await asyncio.sleep(0.02)
        writer.close()


async def test_guesses_over_http_slow_down_their_own_address_alone(serve_broker: Serve) -> None:
    """Who checks passwords is told where they come from; nobody else needs to know."""
    heard: list[dict[str, Any]] = []

    async def hear(request: Any, call: Call) -> Any:
        heard.append(dict(call.headers))
        raise NotFound("nobody")

    async with (
        serve_broker() as settings,
        stub(settings, auth_login=hear, memory_kv_get=hear),
        rest_house(settings, phase1=False) as house,
    ):
        await house.ask("POST", "/auth/login", json={"user_id": "ada", "password": "correct horse"})
        await house.ask("GET", "/kv/k")

    assert [headers.get("source") for headers in heard] == ["http 127.0.0.1", None]


async def test_requests_sent_ahead_are_answered_in_turn(serve_broker: Serve) -> None:
    """Pipelining, with a body between, and an upgrade that is not taken."""
    body = b'{"value": "x"}'
    async with serve_broker() as settings, memory(settings) as house:
        ahead = (
            b"POST /kv/k HTTP/1.1\r\n" + HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
            + b"GET /kv/k HTTP/1.1\r\nHost: localhost\r\n\r\n"
            + b"GET /bus/ping HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )  # fmt: skip
        answer = await said(await wire(house, ahead))

        assert [line[:3] for line in answer.split(b"HTTP/1.1 ")[1:]] == [b"200"] * 3
        assert answer.index(b'"version":1') < answer.index(b'"value":"x"') < answer.index(b'"boot"')


GET_K = b"GET /kv/k HTTP/1.1\r\nHost: localhost\r\n\r\n"

BEHIND: dict[str, tuple[int, tuple[bytes, ...]]] = {
    "no HTTP": (400, (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",)),
    "two hosts": (400, (b"GET /kv/k HTTP/1.1\r\nHost: evil.example\r\nHost: localhost\r\n\r\n",)),
    "no chunk": (400, (CHUNKED + b"zz\r\n",)),
    "no chunk, and too much of it": (400, (CHUNKED, b"1;" + b"e" * 65_000, b"e" * 3000 + b"\r\na\r\nzz\r\n")),
    "no body": (408, (b"POST /kv/k HTTP/1.1\r\n" + HEAD + b"Content-Length: 20\r\n\r\n{",)),
    "no head": (408, (b"GET /kv/k HTTP/1.1\r\nHo",)),
}


@pytest.mark.parametrize("what", BEHIND)
async def test_what_is_refused_takes_no_answer_from_the_requests_before_it(serve_broker: Serve, what: str) -> None:
    """Those were whole; theirs come first, then the refusal."""
    status, pieces = BEHIND[what]
    may_answer = asyncio.Event()

    async def slow(request: KvGet, call: Call) -> Any:
        await may_answer.wait()
        return {"key": request.key}

    async with (
        serve_broker() as settings,
        stub(settings, memory_kv_get=slow),
        rest_house(settings, read_timeout_s=0.4) as house,
    ):
        wired = await wire(house, GET_K * 2)
        saying = asyncio.create_task(said(wired))
        for piece in pieces:
            wired[1].write(piece)
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.8)
        assert not saying.done()
        may_answer.set()

        answers = (await saying).split(b"HTTP/1.1 ")[1:]
        assert [int(answer[:3]) for answer in answers] == [200, 200, status]
        assert b"connection: close" in answers[-1]


async def test_who_waits_to_be_told_before_sending_a_body_has_time_from_then_on(serve_broker: Serve) -> None:
    """It is told when its turn comes."""
    may_answer = asyncio.Event()

    async def slow(request: KvGet, call: Call) -> Any:
        await may_answer.wait()
        return {"key": request.key}

    async def take(request: Any, call: Call) -> Any:
        return {"key": request.key, "version": 1}

    async with (
        serve_broker() as settings,
        stub(settings, memory_kv_get=slow, memory_kv_set=take),
        rest_house(settings, read_timeout_s=0.8) as house,
    ):
        body = b'{"value": "x"}'
        asking = b"Content-Length: %d\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n" % len(body)
        reader, writer = await wire(house, GET_K + b"POST /kv/k HTTP/1.1\r\n" + HEAD + asking)
        await asyncio.sleep(1.6)
        may_answer.set()
        told = await asyncio.wait_for(reader.readuntil(b"100 Continue\r\n\r\n"), WITHIN_S)
        assert told.startswith(b"HTTP/1.1 200 ")
        writer.write(body)
        assert (await said((reader, writer))).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("last", [b"close", b"keep-alive"])
async def test_a_long_answer_is_there_as_long_as_it_is_read(serve_broker: Serve, last: bytes) -> None:
    """However slowly; who stops is left, however much came before."""
    length = 48_000_000

    async def long(request: KvGet, call: Call) -> Any:
        return {"key": "x" * length}

    async with (
        serve_broker() as settings,
        stub(settings, memory_kv_get=long),
        rest_house(settings, read_timeout_s=0.8, idle_s=0.8) as house,
    ):

        def read(until: int) -> int:
            """What comes, where nothing is read for a while once `until` bytes were."""
            with socket.create_connection(("127.0.0.1", house.port()), timeout=WITHIN_S) as caller:
                caller.sendall(GET_K[:-2] + b"Connection: " + last + b"\r\n\r\n")
                count, has_paused = 0, False
                with contextlib.suppress(ConnectionError):
                    while count < length and (piece := caller.recv(1 << 20)):
                        count += len(piece)
                        time.sleep(0.04)
                        if count >= until and not has_paused:
                            time.sleep(2.5)
                            has_paused = True
                return count

        assert await asyncio.to_thread(read, 2 * length) > length
        assert await asyncio.to_thread(read, length // 4) < length


async def test_hundreds_of_requests_sent_ahead_are_answered_and_thousands_end_the_connection(
    serve_broker: Serve,
) -> None:
    """What waits for its turn takes memory."""
    ping = b"GET /bus/ping HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with serve_broker() as settings, rest_house(settings) as house:
        reader, writer = await wire(house, ping * 200)
        for _ in range(200):
            await asyncio.wait_for(reader.readuntil(b'"boot"'), WITHIN_S)
        writer.write(ping * 5000)
        with contextlib.suppress(ConnectionError):
            answers = await asyncio.wait_for(reader.read(), WITHIN_S)
            assert answers.count(b'"boot"') < 5000
        writer.close()
        assert (await house.ask("GET", "/bus/ping")).status_code == 200


async def test_who_hangs_up_with_requests_sent_ahead_is_forgotten_in_silence(
    serve_broker: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """The one that runs is taken back, the others never begin; that is no failure of anybody."""
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def endless(request: Any, call: Call) -> Any:
        assert not began.is_set()
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with serve_broker() as settings, stub(settings, memory_kv_get=endless), rest_house(settings) as house:
        _, writer = await wire(house, b"GET /kv/k HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3)
        await asyncio.wait_for(began.wait(), WITHIN_S)
        writer.close()
        await asyncio.wait_for(cancelled.wait(), WITHIN_S)
        assert (await house.ask("GET", "/bus/ping")).status_code == 200

    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


async def test_hundreds_of_idle_connections_keep_nobody_from_being_served(serve_broker: Serve) -> None:
    """They cost a place each, and are closed when their time is over."""
    async with serve_broker() as settings, memory(settings, idle_s=1.5) as house:
        idle = [await wire(house, b"") for _ in range(500)]
        await house.ask("POST", "/kv/k", json={"value": 1})
        answers = await asyncio.gather(*(house.ask("GET", "/kv/k") for _ in range(50)))

        assert {answer.status_code for answer in answers} == {200}
        assert set(await asyncio.gather(*(said(each) for each in idle))) == {b""}


async def test_a_connection_too_many_is_refused(serve_broker: Serve) -> None:
    """With the reason, and only while there are too many."""
    async with serve_broker() as settings, rest_house(settings, max_connections=2) as house:
        first, second = await wire(house, b""), await wire(house, b"")
        assert (await said(await wire(house, b""))).startswith(b"HTTP/1.1 503 ")
        first[1].close()
        await first[1].wait_closed()
        second[1].write(b"GET /bus/ping HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert (await said(second)).startswith(b"HTTP/1.1 200 ")


async def test_one_address_of_the_network_leaves_half_of_the_connections_to_others(
    serve_broker: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine's own programs may have all: a proxy speaks for many."""
    async with serve_broker() as settings, rest_house(settings, max_connections=4) as house:
        held = [await wire(house, b"") for _ in range(3)]
        monkeypatch.setattr(server, "is_loopback", lambda host: False)
        refusal = await said(await wire(house, b""))
        assert refusal.startswith(b"HTTP/1.1 503 ") and b"connections of 127.0.0.1" in refusal
        for _, writer in held[:2]:
            writer.close()
            await writer.wait_closed()
        answer = b""
        async with asyncio.timeout(WITHIN_S):
            # Until the server has seen that they are gone.
            while not answer.startswith(b"HTTP/1.1 200 "):
                request = b"GET /bus/ping HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                with contextlib.suppress(ConnectionError):
                    answer = await said(await wire(house, request))
        held[2][1].close()


# Pages, health, metrics -----------------------------------------------------------------------------------------


async def test_pages_tell_what_a_port_answers_and_how_it_is(serve_broker: Serve) -> None:
    """Docs without a network, the OpenAPI document, counters by route and never by key."""
    async with serve_broker() as settings, memory(settings) as house:
        await house.ask("GET", "/kv/very-secret-key")
        await house.ask("GET", "/made/up/by/somebody")
        counted = (await house.ask("GET", "/metrics")).text
        assert 'olympus_rest_requests_total{api="memory",method="GET",route="/kv/{key}",status="404"} 1.0' in counted
        assert 'route="unknown"' in counted
        assert "secret" not in counted and "somebody" not in counted
        page = (await house.ask("GET", "/docs")).text
        assert "/kv/{key}" in page and "Read an entry with its version." in page and "<script" not in page
        assert (await house.ask("GET", "/")).headers["location"] == "/docs"
        assert (await house.ask("GET", "/openapi.json", "models")).json()["info"]["title"] == "Olympus models"
        assert (await house.ask("HEAD", "/docs")).content == b""


async def test_health_names_what_is_missing_within_a_second(serve_broker: Serve) -> None:
    """On every port; failing where nobody serves, ok with the service key where somebody does, failing without a broker."""
    async with serve_broker() as settings, memory(settings) as house:
        for purpose in ("rest", "health"):
            healthy = await house.http.get(house.url("/health", "memory", purpose))
            assert (healthy.status_code, healthy.json()["status"], healthy.json()["service"]) == (
                200,
                "ok",
                "memory",
            )
            missing = await house.http.get(house.url("/health", "models", purpose))
            assert (missing.status_code, missing.json()["status"]) == (503, "failing")
            assert "'model' has joined" in missing.json()["dependencies"]["model"]["reason"]
        elsewhere = problem(await house.http.get(house.url("/metrics", "memory", "health")), 404, "not_found")
        assert f"port {house.url('', 'memory').rpartition(':')[2]} has it" in elsewhere["detail"]
        assert (await house.http.get(house.url("/kv", "memory", "health"))).status_code == 404
    nobody = msgspec.structs.replace(settings, bus=msgspec.structs.replace(settings.bus, request_port=1))
    async with rest_house(nobody) as house:
        lost = await asyncio.wait_for(house.ask("GET", "/health"), 3)
        assert (lost.status_code, lost.json()["dependencies"]["broker"]["status"]) == (503, "failing")


async def test_degraded_memory_is_degraded_and_still_serves(serve_broker: Serve) -> None:
    """What the service does without is named with the reason, on the ports of whoever needs that service."""

    async def get(request: Any, call: Call) -> None:
        pass

    async with serve_broker() as settings, rest_house(settings) as house:
        worker = Worker("memory", settings)
        worker.handle("memory.kv.get", get)
        worker.degraded_by(lambda: {"encoder": "its model is missing"})
        await worker.start(10)
        try:
            async with asyncio.timeout(WITHIN_S):
                # With its first heartbeat.
                while (await house.ask("GET", "/health")).json()["status"] == "ok":
                    await asyncio.sleep(0.1)
            for api, status, code in (("memory", "degraded", 200), ("learning", "failing", 503)):
                report = await house.ask("GET", "/health", api)
                assert (report.status_code, report.json()["status"]) == (code, status)
                found = report.json()["dependencies"]
                assert found["memory"] == {"status": "ok", "reason": ""}
                assert found["memory.encoder"] == {"status": "degraded", "reason": "its model is missing"}
        finally:
            await worker.stop(drain_s=0)


# What others hang on it -----------------------------------------------------------------------------------------


async def test_an_added_route_goes_first_and_may_ask_the_native_one(serve_broker: Serve) -> None:
    """An older shape of a path: told apart by its fields, its answer more than the native one."""

    async def older(request: RestRequest) -> Response:
        body = await request.json()
        if "content" not in body:
            return await request.native()
        reply = await request.native(body=json.dumps({"value": body["content"]}).encode())
        assert isinstance(reply.body, bytes)
        return json_response({**json.loads(reply.body), "status": "success"})

    async def fails(request: RestRequest) -> Response:
        raise KeyError(request.params["name"])

    def pieces() -> Iterator[bytes]:
        yield from (b"a", b"b")

    async def streams(request: RestRequest) -> Response:
        async def body() -> AsyncIterator[bytes]:
            for piece in pieces():
                yield piece

        return Response(body=body(), media_type="text/plain")  # type: ignore[arg-type]

    routes = [
        Route("POST", "/kv/{key}", older),
        Route("GET", "/old/{name}", fails, "Old."),
        Route("GET", "/streams", streams),
    ]
    async with serve_broker() as settings, memory(settings, routes={"memory": routes}) as house:
        assert (await house.ask("POST", "/kv/k", json={"content": "x"})).json()["status"] == "success"
        native = (await house.ask("POST", "/kv/k", json={"value": 2})).json()
        assert native["version"] == 2 and "status" not in native
        problem(await house.ask("GET", "/old/x"), 500, "internal")
        assert (await house.ask("GET", "/streams")).text == "ab"
        assert "/old/{name}" in (await house.ask("GET", "/openapi.json")).json()["paths"]


async def test_another_port_answers_its_own_routes_alone_and_a_taken_one_is_told(serve_broker: Serve) -> None:
    """Nothing of the catalogue is there; who has a port keeps it."""

    async def hello(request: RestRequest) -> Response:
        return json_response({"from": request.service, "at": request.client_host})

    async with serve_broker() as settings, rest_house(settings, services=("models",)) as house:
        routes = [Route("GET", "/hello", hello)]
        extra = await house.edge.serve_extra(owner="Old", purpose="rest", host="127.0.0.1", port=0, routes=routes)
        assert (await house.http.get(f"http://127.0.0.1:{extra.port}/hello")).json() == {
            "from": "Old",
            "at": "127.0.0.1",
        }
        assert (await house.http.get(f"http://127.0.0.1:{extra.port}/kv")).status_code == 404
        again = await house.edge.serve_extra(
            owner="Older", purpose="rest", host="127.0.0.1", port=extra.port, routes=routes
        )
        assert (again.state, again.port) == ("taken", extra.port) and "another program" in again.note
        assert {info.owner: info.state for info in house.ports} == {
            "memory": "off",
            "models": "bound",
            "learning": "off",
        }


async def test_stopping_lets_what_runs_end_and_closes_the_rest(serve_broker: Serve) -> None:
    """A request in flight gets its answer; the port is free then."""
    began, may_end = asyncio.Event(), asyncio.Event()

    async def slow(request: KvGet, call: Call) -> Any:
        began.set()
        await may_end.wait()
        return {"key": request.key}

    async with serve_broker() as settings, stub(settings, memory_kv_get=slow), rest_house(settings) as house:
        asked = asyncio.create_task(house.ask("GET", "/kv/k"))
        await asyncio.wait_for(began.wait(), WITHIN_S)
        stopping = asyncio.create_task(house.edge.stop(5))
        await asyncio.sleep(0)
        may_end.set()
        assert (await asked).json() == {"key": "k"}
        await asyncio.wait_for(stopping, WITHIN_S)
        with pytest.raises(httpx.ConnectError):
            await house.ask("GET", "/kv/k")


async def test_a_bus_that_is_away_is_told_at_once_and_no_address_with_it(settings: Settings) -> None:
    """503 with a wait, whatever the route; the port's own pages answer all the same."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        bus = msgspec.structs.replace(settings.bus, request_port=unused.getsockname()[1])
    async with rest_house(msgspec.structs.replace(settings, bus=bus)) as house:
        headers = {"x-timeout-s": "0.3"}
        refused = await house.ask("GET", "/kv/k", headers=headers)
        assert "127.0.0.1" not in problem(refused, 503, "no_worker")["detail"]
        assert refused.headers["retry-after"] == "1"
        problem(await house.ask("POST", "/memory", json={"content": "x"}, headers=headers), 503, "no_worker")
        assert (await house.ask("GET", "/health")).status_code == 503
        assert (await house.ask("GET", "/docs")).status_code == 200
