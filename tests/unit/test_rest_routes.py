"""Routes of the HTTP edge: where the catalogue's are served, how paths are matched, how parts become a request."""

from __future__ import annotations

import json
import socket
from collections import Counter
from typing import Any

import pytest

from bus.client import Client
from bus.settings import load_settings
from schemas import catalog
from schemas.errors import BY_CODE, BadRequest, BusError, Forbidden, Overloaded, QuotaExceeded, Unauthenticated
from workers.gateway.rest.browsers import Browsers, names_of_house
from workers.gateway.rest.operations import SERVICES, OperationRoute, operation_routes, port_of
from workers.gateway.rest.request import BodyRoom, RestRequest
from workers.gateway.rest.response import WrongHost, json_response, problem_response
from workers.gateway.rest.routes import Table, nearest, segments
from workers.gateway.rest.streaming import form_of

BY_ROUTE = {(route.method, route.template): route for route in operation_routes()}


def tables() -> dict[str, Table[OperationRoute]]:
    """The routes of every port."""
    made: dict[str, Table[OperationRoute]] = {service: Table() for service in SERVICES}
    for route in operation_routes():
        made[port_of(route.operation)].add(route.method, route.template, route)
    return made


def request(headers: dict[str, str] | None = None, query: str = "") -> RestRequest:
    """A request whose body nobody reads."""
    scope = {
        "method": "GET",
        "raw_path": b"/kv/a",
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in (headers or {}).items()],
    }

    async def receive() -> Any:
        raise AssertionError("the body is not read")

    return RestRequest(scope, receive, service="memory", client=Client(), max_body_bytes=1024, room=BodyRoom(4096))


def test_every_route_of_the_catalogue_is_served_once_on_the_port_of_its_service() -> None:
    """Each declared method and path leads to its own operation, and to nothing on the other ports."""
    declared = [
        (operation.subject, port_of(operation), *route.split(" "))
        for operation in catalog.OPERATIONS.values()
        for route in operation.http.split(", ")
        if route
    ]
    made = tables()

    assert len(declared) > 150
    for subject, port, method, template in declared:
        found = made[port].find(method, segments(template))
        assert found is not None and found.target.operation.subject == subject
        assert found.template == template
    assert max(Counter((port, method, template) for _, port, method, template in declared).values()) == 1
    assert {port_of(catalog.OPERATIONS[name]) for name in ("gpu.status", "model.list", "resource.lease.list")} == {
        "models"
    }
    assert {port_of(catalog.OPERATIONS[name]) for name in ("auth.login", "trust.get", "bus.ping")} == {"memory"}


def test_a_literal_segment_wins_and_a_name_takes_what_is_left() -> None:
    """`/memory/batch` is no memory called batch; where the literal leads nowhere, the name is tried."""
    made = tables()["models"]

    assert made.find("PUT", ["models", "aliases", "a"]).target.operation.subject == "model.alias"  # type: ignore[union-attr]
    found = made.find("GET", ["models", "aliases", "stats"])
    assert found is not None and found.target.operation.subject == "model.stats"
    assert found.params == {"model": "aliases"}
    assert made.find("GET", ["models", ""]) is None
    assert tables()["memory"].find("POST", ["memory", "batch"]).target.operation.subject == "memory.add_many"  # type: ignore[union-attr]


def test_escapes_are_read_after_the_path_is_split() -> None:
    """A slash, a per cent and any letter may stand in a name; a plus is a plus."""
    assert segments("/kv/a%2Fb%25+%C3%BC%F0%9F%90%99") == ["kv", "a/b%+ü🐙"]
    assert segments("/kv/a/b") == ["kv", "a", "b"]
    with pytest.raises(BadRequest, match="not UTF-8"):
        segments("/kv/%FF")


def test_a_route_that_is_there_already_is_refused() -> None:
    """Two templates of one shape would hide each other."""
    table: Table[int] = Table()
    table.add("GET", "/a/{b}", 1)

    with pytest.raises(ValueError, match=r"GET /a/\{c\} is already GET /a/\{b\}"):
        table.add("GET", "/a/{c}", 2)
    assert table.methods(["a", "x"]) == ["GET"]
    assert nearest("/a/c", table.templates()) == ["/a/{b}"]


def made_of(method: str, template: str, params: dict[str, str], query: str = "", body: bytes = b"") -> Any:
    """The request an operation gets, decoded."""
    return json.loads(BY_ROUTE[method, template].request(params, request(query=query).query, body))


@pytest.mark.parametrize(
    ("template", "params", "query", "expected"),
    [
        ("/kv/{key}", {"key": "7"}, "", {"key": "7"}),
        ("/kv/{key}", {"key": "a"}, "ns=x%2By+z", {"key": "a", "ns": "x+y z"}),
        ("/kv", {}, "limit=3&prefix=", {"limit": 3, "prefix": ""}),
        ("/kv", {}, "limit=x&made_up=1", {"limit": "x", "made_up": "1"}),
        ("/kv", {}, "limit=" + "9" * 31, {"limit": "9" * 31}),
        ("/kv/{key}", {"key": "a"}, "key=a", {"key": "a"}),
        ("/memory/export", {}, "kinds=kv,fact", {"kinds": ["kv", "fact"]}),
        ("/memory/export", {}, "kinds=kv&kinds=fact", {"kinds": ["kv", "fact"]}),
        ("/embedding/{query}", {"query": "tea"}, "k=2&explain=true", {"query": "tea", "k": 2, "explain": True}),
        ("/embedding/{query}", {"query": "tea"}, "explain=perhaps", {"query": "tea", "explain": "perhaps"}),
        ("/embedding/{query}", {"query": "t"}, 'filters={"tags":["a"]}', {"query": "t", "filters": {"tags": ["a"]}}),
    ],
)
def test_parameters_become_what_their_fields_hold(
    template: str, params: dict[str, str], query: str, expected: dict[str, Any]
) -> None:
    """By the type of the field; what does not fit stays as it was, for the worker to refuse."""
    assert made_of("GET", template, params, query) == expected


@pytest.mark.parametrize(
    ("method", "template", "params", "query", "body", "words"),
    [
        ("GET", "/kv/{key}", {"key": "a"}, "key=b", b"", "'b' in the query and 'a' in the path"),
        ("GET", "/kv", {}, "limit=1&limit=2", b"", "'limit' is given 2 times"),
        ("GET", "/kv", {}, "limit=%FF", b"", "not UTF-8"),
        ("GET", "/kv", {}, "", b"{}", "in the query, as"),
        ("POST", "/kv/{key}", {"key": "a"}, "", b'{"key":"b"}', "'b' in the body and 'a' in the path"),
        ("POST", "/kv/{key}", {"key": "a"}, "", b'{"value":1,"value":2}', "the field 'value' twice"),
        ("POST", "/kv/{key}", {"key": "a"}, "ttl_s=1", b'{"value":1}', "in the body, not in the query"),
        ("POST", "/kv/{key}", {"key": "a"}, "", b"[1]", "not one JSON object"),
        ("POST", "/kv/{key}", {"key": "a"}, "", b'{"value":NaN}', "not one JSON object"),
        ("POST", "/kv/{key}", {"key": "a"}, "", b'\xef\xbb\xbf{"value":1}', "not one JSON object"),
        ("POST", "/kv/{key}", {"key": "a"}, "", b'{"value":' + b"[" * 100_000, "not one JSON object"),
        ("POST", "/kv/{key}", {"key": "a"}, "", b'{"value":1} {}', "not one JSON object"),
    ],
)
def test_parts_that_contradict_or_do_not_decode_are_refused(
    method: str, template: str, params: dict[str, str], query: str, body: bytes, words: str
) -> None:
    """The error says which field, and what it was."""
    with pytest.raises(BadRequest, match=words):
        made_of(method, template, params, query, body)


def test_a_body_and_the_names_of_its_path_become_one_request() -> None:
    """The body's own text is kept as it was; of a list field the path gives the one item."""
    route = BY_ROUTE["POST", "/kv/{key}"]

    assert route.request({"key": 'a"/b'}, [], b' {"value": 1.0e3}') == b'{"key":"a\\"/b","value": 1.0e3}'
    assert route.request({"key": "a"}, [], b"{}") == b'{"key":"a"}'
    assert route.request({"key": "a"}, [], b"") == b'{"key":"a"}'
    assert route.request({"key": "a"}, [], b'{"key":"a","value":1}') == b'{"key":"a","value":1}'
    assert BY_ROUTE["POST", "/memory"].request({}, [], b'{ "content":"x"}') == b'{ "content":"x"}'
    assert made_of("POST", "/models/{models}/preload", {"models": "a,b"}) == {"models": ["a,b"]}


def test_a_route_must_name_fields_of_its_request() -> None:
    """A declaration that cannot be served is found when the edge is made, not when somebody calls."""
    with pytest.raises(ValueError, match=r"names 'keey', which the request lacks"):
        OperationRoute(catalog.OPERATIONS["memory.kv.get"], "GET", "/kv/{keey}")


def test_headers_travel_on_where_they_are_good() -> None:
    """A Bearer token and a trace; a malformed trace is ignored, as its standard says."""
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"

    assert request({"authorization": "bearer T", "traceparent": trace}).bus_headers() == {
        "token": "T",
        "traceparent": trace,
    }
    assert request({"traceparent": "x"}).bus_headers() == {}
    for bad in ("Basic x", "Bearer", "Bearer ", "Bearer " + "x" * 5000, "Bearer \xff"):
        with pytest.raises(Unauthenticated, match="Bearer TOKEN"):
            request({"authorization": bad}).bus_headers()
    assert request({"x-timeout-s": "0.5"}).timeout_s == 0.5
    for bad in ("0", "-1", "nan", "inf", "1e9", "soon", ""):
        with pytest.raises(BadRequest, match="X-Timeout-S"):
            _ = request({"x-timeout-s": bad}).timeout_s


def test_an_idempotency_key_is_a_request_id_or_becomes_one_of_its_caller() -> None:
    """Ids stand for themselves; any other text means another request for another caller."""
    id = "0123456789abcdef0123456789ABCDEF"
    uuid = "01234567-89ab-cdef-0123-456789abcdef"

    assert request({"idempotency-key": id}).request_id == bytes.fromhex(id)
    assert request({"idempotency-key": uuid}).request_id == bytes.fromhex(id)
    mine, yours = (
        request({"idempotency-key": "once", "authorization": f"Bearer {token}"}).request_id for token in ("a", "b")
    )
    assert mine is not None and len(mine) == 16 and mine != yours
    assert mine == request({"idempotency-key": '"once"', "authorization": "Bearer a"}).request_id
    assert request().request_id is None
    with pytest.raises(BadRequest, match="1 to 255"):
        _ = request({"idempotency-key": "x" * 256}).request_id


@pytest.mark.parametrize("kind", BY_CODE.values(), ids=lambda kind: kind.code)
def test_every_error_is_a_problem_with_its_status_and_code(kind: type[BusError]) -> None:
    """RFC 9457, with our code and details beside; the detail is text."""
    response = problem_response(kind("it is so", field="x", raw=b"\xff"))
    body = json.loads(response.body)  # type: ignore[arg-type]

    assert (response.status, response.media_type) == (kind.http_status, "application/problem+json")
    assert body.pop("title")
    assert body == {
        "type": "about:blank",
        "status": kind.http_status,
        "detail": "it is so",
        "code": kind.code,
        "details": {"field": "x", "raw": "/w=="},
    }
    assert (("www-authenticate", "Bearer") in response.headers) == (kind.http_status == 401)


def test_a_known_wait_is_told_in_whole_seconds() -> None:
    """Rounded up: whoever comes back at that time is not sent away again."""
    assert problem_response(QuotaExceeded("slow down", retry_after_s=0.2)).headers == (("retry-after", "1"),)
    assert problem_response(QuotaExceeded("slow down", retry_after_s=2.1)).headers == (("retry-after", "3"),)
    assert problem_response(QuotaExceeded("slow down", retry_after_s="soon")).headers == ()
    assert json_response({"a": 1}).body == b'{"a":1}'


def test_a_port_on_loopback_answers_to_its_own_names_alone() -> None:
    """A foreign name that was pointed here belongs to somebody's page."""
    here = Browsers("127.0.0.1", ())
    for host in ("localhost", "LOCALHOST:7010", "127.0.0.1:1", "[::1]:7010", "127.9.9.9"):
        here.check("GET", {b"host": host.encode()}, "1.1", is_page=False)
    for host in ("evil.example", "evil.example:7010", "127.0.0.1.evil.example", "10.0.0.1", ""):
        with pytest.raises(WrongHost):
            here.check("GET", {b"host": host.encode()}, "1.1", is_page=True)
    with pytest.raises(BadRequest, match="Host"):
        here.check("GET", {}, "1.1", is_page=False)
    here.check("GET", {}, "1.0", is_page=False)


def test_a_port_of_the_network_answers_to_names_that_no_stranger_can_own() -> None:
    """Where no token is asked for: addresses, names of a home, this machine's own, and those the settings tell."""
    settings = load_settings(
        "/dev/null",
        {"machine.addresses": "pc2=pc2.office.example", "rest.cors_origins": "https://panel.example:8443"},
    )
    here = Browsers("0.0.0.0", (), names_of_house(settings))
    own = socket.gethostname()
    for host in (
        "house.lan", "192.168.100.16:7010", "[fe80::1]:7010", "pc2:7010", "localhost:7010", "127.0.0.1", "a.local",
        "PC2.office.example:7010", "panel.example", own,
    ):  # fmt: skip
        here.check("GET", {b"host": host.encode()}, "1.1", is_page=False)
    for host in ("evil.example:7010", "192.168.100.16.evil.example", "local.evil.example", "", ":7010"):
        with pytest.raises(WrongHost, match=r"machine\.addresses"):
            here.check("GET", {b"host": host.encode()}, "1.1", is_page=True)

    Browsers("0.0.0.0", (), None).check("GET", {b"host": b"house.example"}, "1.1", is_page=False)


async def test_large_bodies_have_a_room_for_all_and_small_ones_always_fit() -> None:
    """Nobody has signed in when a body comes, so what strangers make this process hold is bounded."""
    room = BodyRoom(300_000)

    def with_body(size: int) -> RestRequest:
        pieces = [b"x" * 50_000] * (size // 50_000) or [b"x" * size]

        async def receive() -> Any:
            return {"type": "http.request", "body": pieces.pop(), "more_body": bool(pieces)}

        scope = {
            "method": "POST", "raw_path": b"/kv/a", "query_string": b"",
            "headers": [(b"transfer-encoding", b"chunked")],
        }  # fmt: skip
        return RestRequest(scope, receive, service="memory", client=Client(), max_body_bytes=10**6, room=room)

    first = with_body(200_000)
    assert len(await first.body()) == 200_000
    assert room.held_bytes == 200_000
    second = with_body(150_000)
    with pytest.raises(Overloaded, match="limit is 300000"):
        await second.body()
    second.end()
    assert len(await with_body(1_000).body()) == 1_000

    first.end()
    first.end()
    assert room.held_bytes == 0


def test_what_another_sites_page_starts_is_refused_unless_its_origin_is_named() -> None:
    """Programs send no Origin and notice nothing; a page of this very server may call."""
    rules = Browsers("127.0.0.1", ("https://good.example",))
    host = {b"host": b"localhost:7010"}
    good = {**host, b"origin": b"https://good.example", b"sec-fetch-site": b"cross-site"}
    evil = {**host, b"origin": b"https://evil.example"}

    rules.check("POST", host, "1.1", is_page=False)
    rules.check("POST", {**host, b"origin": b"http://localhost:7010"}, "1.1", is_page=False)
    rules.check("POST", good, "1.1", is_page=False)
    rules.check("GET", evil, "1.1", is_page=False)
    rules.check("OPTIONS", evil, "1.1", is_page=False)
    rules.check("GET", {**evil, b"sec-fetch-site": b"cross-site"}, "1.1", is_page=True)
    for method, headers in (
        ("POST", evil),
        ("DELETE", {**host, b"origin": b"null"}),
        ("GET", {**evil, b"sec-fetch-site": b"cross-site"}),
        ("GET", {**host, b"sec-fetch-site": b"cross-site"}),
        ("POST", {**host, b"sec-fetch-site": b"cross-site"}),
    ):
        with pytest.raises(Forbidden, match=r"rest\.cors_origins"):
            rules.check(method, headers, "1.1", is_page=False)
    assert dict(rules.headers(b"https://good.example"))["access-control-allow-origin"] == "https://good.example"
    assert dict(rules.headers(b"https://evil.example")) == {"vary": "origin"}
    assert Browsers("127.0.0.1", ("*",)).allows(b"https://evil.example")
    assert rules.preflight(good, ["GET"]) == ()
    assert dict(rules.preflight({**good, b"access-control-request-method": b"POST"}, ["GET", "POST"]))[
        "access-control-allow-methods"
    ] == ("GET, POST")


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (None, None),
        ("*/*", None),
        ("application/json", None),
        ("text/event-stream", "sse"),
        ("application/json, TEXT/event-stream;q=0.5", "sse"),
        ("application/x-ndjson", "ndjson"),
    ],
)
def test_pieces_are_for_whoever_asks_for_them(accept: str | None, form: str | None) -> None:
    """By the Accept header alone."""
    assert form_of(accept) == form
