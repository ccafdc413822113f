"""OpenAPI 3.1 of one port, made from the catalogue and the types it names."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from bus.version import VERSION
from workers.gateway.rest.health import HealthReport
from workers.gateway.rest.operations import OperationRoute
from workers.gateway.rest.response import JSON, PROBLEM
from workers.gateway.rest.routes import Route

_REF: Final = "#/components/schemas/{name}"

_TITLES: Final = {"memory": "Olympus memory", "models": "Olympus models", "learning": "Olympus learning"}

_TEXT: Final = {"type": "string"}

_PROBLEM_SCHEMA: Final = {
    "type": "object",
    "description": "RFC 9457, with the code and the details of the error.",
    "required": ["type", "title", "status", "detail", "code", "details"],
    "properties": {
        "type": _TEXT,
        "title": _TEXT,
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What is wrong, for people."},
        "code": {"type": "string", "description": "What is wrong, for programs; it never changes its meaning."},
        "details": {"type": "object"},
    },
}

# Headers that every operation reads.
_HEADERS: Final[list[dict[str, Any]]] = [
    {
        "name": "X-Timeout-S",
        "in": "header",
        "description": "Seconds to wait for the reply.",
        "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": 86400},
    },
    {
        "name": "traceparent",
        "in": "header",
        "description": "W3C Trace Context, passed on.",
        "schema": _TEXT,
    },
]
_IDEMPOTENCY: Final[dict[str, Any]] = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same request under the same key happens once.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}


def document(service: str, routes: Iterable[OperationRoute], added: Iterable[Route]) -> dict[str, Any]:
    """The description of one port."""
    added = [each for each in added if each.summary]
    routes = [route for route in routes if not _is_hidden(route, added)]
    types = {kind for route in routes for kind in _types_of(route)}
    schemas, components = msgspec.json.schema_components(sorted([*types, HealthReport], key=repr), ref_template=_REF)
    named = dict(zip(sorted([*types, HealthReport], key=repr), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.template, {})[route.method.lower()] = _operation(route, named, components)
    for each in added:
        paths.setdefault(each.template, {})[each.method.lower()] = _added(each)
    paths["/health"] = {"get": _health(named[HealthReport])}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": _TITLES[service],
            "version": VERSION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": {**components, "Problem": _PROBLEM_SCHEMA},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
            "responses": {
                "Problem": {
                    "description": "The error.",
                    "content": {PROBLEM: {"schema": {"$ref": _REF.format(name="Problem")}}},
                }
            },
        },
    }


def _is_hidden(route: OperationRoute, added: Iterable[Route]) -> bool:
    """True where an added route answers instead."""
    return any((each.method, _shape(each.template)) == (route.method, _shape(route.template)) for each in added)


def _shape(template: str) -> str:
    return re.sub(r"{\w+}", "{}", template)


def _types_of(route: OperationRoute) -> list[Any]:
    operation = route.operation
    return [operation.request, operation.reply, *([operation.partial] if operation.partial is not None else [])]


def _operation(route: OperationRoute, named: dict[Any, Any], components: dict[str, Any]) -> dict[str, Any]:
    operation = route.operation
    request = components[_name(named[operation.request])]
    parameters = [_parameter(name, "path", request) for name in route.names]
    described: dict[str, Any] = {
        "operationId": f"{operation.subject}:{route.method.lower()}:{route.template}",
        "summary": operation.summary,
        "description": f"The operation `{operation.subject}`.",
        "tags": [operation.family],
    }
    if route.takes_body:
        parameters.append(_IDEMPOTENCY)
        body = _without(request, route.names)
        described["requestBody"] = {"required": bool(body.get("required")), "content": {JSON: {"schema": body}}}
    else:
        parameters += [_parameter(name, "query", request) for name in request["properties"] if name not in route.names]
    described["parameters"] = parameters + _HEADERS
    described["responses"] = _responses(operation, named)
    # Who need not sign in may leave the token out; where auth.required is off nobody needs one.
    described["security"] = [{"bearer": [operation.scope]}, {}] if operation.scope else [{}]
    return described


def _responses(operation: Any, named: dict[Any, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {JSON: {"schema": named[operation.reply]}}
    if operation.is_streaming:
        partial, final = _name(named[operation.partial]), _name(named[operation.reply])
        said = f"Events `partial` ({partial}), then `final` ({final}) or `error` (Problem)."
        content["text/event-stream"] = {"schema": {"type": "string", "description": said}}
        content["application/x-ndjson"] = {
            "schema": {"type": "string", "description": f"{said} Each a line with `event` and `data`."}
        }
    return {
        "200": {"description": "The reply.", "content": content},
        "default": {"$ref": "#/components/responses/Problem"},
    }


def _name(reference: Any) -> str:
    """The component that a schema refers to."""
    return str(reference.get("$ref", "")).rpartition("/")[2] or "the value"


def _parameter(name: str, where: str, request: dict[str, Any]) -> dict[str, Any]:
    schema = copy.deepcopy(request["properties"][name])
    if where == "path" and schema.get("type") == "array":
        schema = schema["items"]
    parameter: dict[str, Any] = {"name": name, "in": where, "schema": schema}
    if where == "path" or name in request.get("required", ()):
        parameter["required"] = True
    if schema.get("type") == "array":
        parameter |= {"style": "form", "explode": True}
    return parameter


def _without(request: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """A request's schema without the fields that the path gives."""
    left = {key: value for key, value in request["properties"].items() if key not in names}
    required = [name for name in request.get("required", ()) if name not in names]
    return {**request, "properties": left, "required": required}


def _added(route: Route) -> dict[str, Any]:
    names = re.findall(r"{(\w+)}", route.template)
    parameters = [{"name": name, "in": "path", "required": True, "schema": _TEXT} for name in names]
    described: dict[str, Any] = {
        "operationId": f"{route.method.lower()}:{route.template}",
        "summary": route.summary,
        "parameters": parameters,
        "responses": {"200": {"description": "The reply."}, "default": {"$ref": "#/components/responses/Problem"}},
    }
    return {**described, **(route.describe or {})}


def _health(schema: dict[str, Any]) -> dict[str, Any]:
    content = {JSON: {"schema": schema}}
    return {
        "operationId": "health",
        "summary": "Whether the service can do its work, and what keeps it from that.",
        "responses": {
            "200": {"description": "It can, perhaps not all of it.", "content": content},
            "503": {"description": "It cannot.", "content": content},
        },
    }
