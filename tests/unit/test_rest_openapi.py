"""The OpenAPI documents and the page made from them, the settings of the edge, and its counters."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis

from bus.metrics import Figures
from bus.settings import SettingsError, load_settings
from schemas import catalog
from workers.gateway.rest.docs_page import page
from workers.gateway.rest.health import Dependency, worst
from workers.gateway.rest.metrics import Metrics
from workers.gateway.rest.openapi import document
from workers.gateway.rest.operations import SERVICES, operation_routes, port_of
from workers.gateway.rest.request import RestRequest
from workers.gateway.rest.response import Response
from workers.gateway.rest.routes import Route


async def nothing(request: RestRequest) -> Response:
    """A route of somebody else."""
    return Response()


def document_of(service: str, *added: Route) -> dict[str, Any]:
    """What a port says of itself, as a reader gets it."""
    routes = [route for route in operation_routes() if port_of(route.operation) == service]
    made: dict[str, Any] = json.loads(json.dumps(document(service, routes, added)))
    return made


def references(value: Any) -> Iterator[str]:
    """Every `$ref` in a document."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


@pytest.mark.parametrize("service", SERVICES)
def test_a_document_is_valid_and_has_every_route_of_its_port(service: str) -> None:
    """OpenAPI 3.1, every reference leads somewhere, every id is its own, every name of a path is a parameter."""
    made = document_of(service)
    schemathesis.openapi.from_dict(made).validate()

    assert made["openapi"] == "3.1.0"
    for reference in set(references(made)):
        target: Any = made
        for step in reference.removeprefix("#/").split("/"):
            target = target[step]
    operations = [
        (method.upper(), path, operation)
        for path, methods in made["paths"].items()
        for method, operation in methods.items()
    ]
    ids = [operation["operationId"] for _, _, operation in operations]
    assert len(ids) == len(set(ids))
    declared = {
        tuple(route.split(" "))
        for operation in catalog.OPERATIONS.values()
        if port_of(operation) == service
        for route in operation.http.split(", ")
        if route
    }
    assert {(method, path) for method, path, _ in operations} == declared | {("GET", "/health")}
    for _, path, operation in operations:
        named = {each["name"] for each in operation.get("parameters", []) if each["in"] == "path"}
        assert named == set(re.findall(r"{(\w+)}", path))


def test_a_document_says_what_an_operation_takes_answers_and_needs() -> None:
    """Fields of the path are not in the body; scopes, streams and problems are told."""
    paths = document_of("memory")["paths"]
    write = paths["/kv/{key}"]["post"]
    body = write["requestBody"]["content"]["application/json"]["schema"]

    assert body["required"] == ["value"] and "key" not in body["properties"]
    assert {each["name"] for each in write["parameters"]} >= {"key", "Idempotency-Key", "X-Timeout-S"}
    assert write["security"] == [{"bearer": ["memory:write"]}, {}]
    assert write["responses"]["default"]["$ref"].endswith("/Problem")
    stream = paths["/memory/export"]["get"]["responses"]["200"]["content"]
    assert set(stream) == {"application/json", "text/event-stream", "application/x-ndjson"}
    assert {each["name"]: each["in"] for each in paths["/kv"]["get"]["parameters"]}["limit"] == "query"


def test_an_added_route_is_told_in_place_of_the_native_one() -> None:
    """With its own words; other names of the same path do not matter. One without a summary is not told of."""
    made = document_of(
        "memory",
        Route("GET", "/kv/{name}", nothing, "Older reading."),
        Route("POST", "/older", nothing, "Short.", {"summary": "Told at length.", "tags": ["older"]}),
        Route("POST", "/kv/{key}", nothing),
    )

    assert made["paths"]["/kv/{name}"]["get"]["summary"] == "Older reading."
    assert "get" not in made["paths"]["/kv/{key}"]
    assert made["paths"]["/older"]["post"]["summary"] == "Told at length."
    assert made["paths"]["/kv/{key}"]["post"]["operationId"].startswith("memory.kv.set")


def test_the_page_shows_every_operation_and_runs_nothing() -> None:
    """Texts are escaped, also those that come with a request."""
    made = document_of("models")
    shown = page(made, "<b>host</b>")

    assert all(f"<code>{path}</code>" in shown for path in made["paths"])
    assert "<script" not in shown and "<b>host</b>" not in shown and "&lt;b&gt;host" in shown


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("rest.host", "0.0.0.0", "rest.insecure: true"),
        ("rest.host", "house.lan", "auth.required: true"),
        ("rest.services", "memory,music", "memory, models, learning"),
        ("rest.cors_origins", "app.example", "https://HOST"),
        ("rest.cors_origins", "https://app.example/path", "https://HOST"),
    ],
)
def test_settings_that_open_too_much_or_nothing_are_refused(key: str, value: str, words: str) -> None:
    """At the start, with what is allowed."""
    with pytest.raises(SettingsError, match=re.escape(words)):
        load_settings(None, {key: value})


@pytest.mark.parametrize("also", [{"rest.insecure": "true"}, {"auth.required": "true"}, {"rest.services": "[]"}])
def test_an_address_past_loopback_is_allowed_where_somebody_thought_of_it(also: dict[str, str]) -> None:
    """In words, by sign-in, or because nothing is opened."""
    assert load_settings(None, {"rest.host": "0.0.0.0", **also}).rest.host == "0.0.0.0"
    assert load_settings(None, {"rest.cors_origins": "*,http://localhost:3000"}).rest.cors_origins[0] == "*"


def test_the_worst_dependency_is_the_state_of_the_whole() -> None:
    """Failing before degraded before ok."""
    ok, degraded, failing = (Dependency(status=state) for state in ("ok", "degraded", "failing"))  # type: ignore[arg-type]

    assert worst({"a": ok}) == "ok"
    assert worst({"a": ok, "b": degraded}) == "degraded"
    assert worst({"a": degraded, "b": failing, "c": ok}) == "failing"


def test_counters_are_kept_by_route_and_made_up_methods_share_one_label() -> None:
    """Nobody can fill the memory with names of their own."""
    metrics = Metrics(Figures(), lambda: 3, SERVICES)
    metrics.in_flight = 2
    for method in ("GET", "PROPFIND", "MKCOL"):
        metrics.answered("memory", method, "/kv/{key}", 200, 0.003)
    text = metrics.text().decode()

    assert 'olympus_rest_requests_total{api="memory",method="GET",route="/kv/{key}",status="200"} 1.0' in text
    assert 'olympus_rest_requests_total{api="memory",method="unknown",route="/kv/{key}",status="200"} 2.0' in text
    named = 'olympus_rest_request_duration_seconds_bucket{api="memory",method="GET",route="/kv/{key}",le="0.005"} 1'
    assert named in text
    assert 'olympus_rest_requests_abandoned_total{api="learning"} 0.0' in text
    assert "olympus_rest_connections 3.0" in text and "olympus_rest_requests_in_flight 2.0" in text
