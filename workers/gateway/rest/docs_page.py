"""The page for people: what a port answers, written from its OpenAPI document as plain HTML.

Made here rather than by a bundle of scripts: it is a few kilobytes, needs no network, runs nothing in the browser.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import Any, Final

_STYLE: Final = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881}
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.1rem;margin:2rem 0 .5rem;text-transform:capitalize}
details{border:1px solid var(--line);border-radius:6px;margin:.3rem 0}
summary{padding:.4rem .7rem;cursor:pointer}summary:hover{background:var(--soft)}
.in{padding:0 .9rem .7rem}b.m{display:inline-block;min-width:4.2rem;font:600 .8rem ui-monospace,monospace}
code,pre{font:.88rem ui-monospace,monospace}pre{background:var(--soft);padding:.6rem;overflow:auto;border-radius:6px}
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.2rem .5rem;border-bottom:1px solid var(--line)}
.s{opacity:.75}
"""


_CONSOLE: Final = ', <a href="/console/">the console</a>'


def page(document: dict[str, Any], address: str, *, has_console: bool = False) -> str:
    """The whole page. address: HOST:PORT as the reader's browser knows this server. has_console: that is here too."""
    info = document["info"]
    groups: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            group = next(iter(operation.get("tags", [])), "more")
            groups.setdefault(group, []).append("".join(_operation(method, path, operation, document, address)))
    parts = "".join(f"<h2>{escape(name)}</h2>{''.join(operations)}" for name, operations in groups.items())
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(info["title"])}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>{escape(info['title'])} <span class=s>{escape(info['version'])}</span></h1>"
        '<p>For programs: <a href="/openapi.json">openapi.json</a>. Also here: <a href="/health">health</a>,'
        f' <a href="/metrics">metrics</a>{_CONSOLE if has_console else ""}.</p>'
        f"{parts}</body></html>"
    )


def _operation(
    method: str, path: str, operation: dict[str, Any], document: dict[str, Any], address: str
) -> Iterator[str]:
    yield f"<details><summary><b class=m>{method.upper()}</b><code>{escape(path)}</code>"
    yield f" <span class=s>{escape(operation.get('summary', ''))}</span></summary><div class=in>"
    rows = list(_rows(operation))
    if rows:
        yield f"<table><tr><th>name<th>in<th>type<th></tr>{''.join(rows)}</table>"
    scopes = [scope for each in operation.get("security", []) for scopes in each.values() for scope in scopes]
    if scopes:
        yield f"<p>Scope where sign-in is required: <code>{escape(', '.join(scopes))}</code>.</p>"
    yield f"<pre>{escape(_curl(method, path, operation, address))}</pre>"
    reply = operation["responses"].get("200", {}).get("content", {}).get("application/json", {}).get("schema", {})
    name = str(reply.get("$ref", "")).rpartition("/")[2]
    if name:
        fields = ", ".join(document["components"]["schemas"][name].get("properties", {}))
        yield f"<p>Replies <code>{escape(name)}</code>: {escape(fields)}.</p>"
    yield "</div></details>"


def _rows(operation: dict[str, Any]) -> Iterator[str]:
    for each in operation.get("parameters", []):
        if each["in"] != "header":
            yield _row(each["name"], each["in"], each["schema"], is_required=each.get("required", False))
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    for name, schema in body.get("properties", {}).items():
        yield _row(name, "body", schema, is_required=name in body.get("required", ()))


def _row(name: str, where: str, schema: dict[str, Any], *, is_required: bool) -> str:
    note = "required" if is_required else f"default {json.dumps(schema['default'])}" if "default" in schema else ""
    return f"<tr><td><code>{escape(name)}</code><td>{where}<td>{escape(_type(schema))}<td>{escape(note)}</tr>"


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    kind = str(schema.get("type", "any"))
    if kind == "array" and isinstance(schema.get("items"), dict):
        return f"array of {_type(schema['items'])}"
    limits = [
        f"{sign} {schema[key]}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("maxLength", "up to"))
        if key in schema
    ]
    return f"{kind} {', '.join(limits)}".strip()


def _curl(method: str, path: str, operation: dict[str, Any], address: str) -> str:
    where = f"http://{address}{path}"
    if "requestBody" not in operation:
        return f"curl '{where}'" if method == "get" else f"curl -X {method.upper()} '{where}'"
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    body = {name: _sample(schema["properties"].get(name, {})) for name in schema.get("required", [])}
    return f"curl -X {method.upper()} '{where}' -H 'content-type: application/json' -d '{json.dumps(body)}'"


def _sample(schema: dict[str, Any]) -> Any:
    """A value of the right kind, to be replaced by whoever copies the command."""
    if "anyOf" in schema:
        return _sample(schema["anyOf"][0])
    if "enum" in schema:
        return schema["enum"][0]
    kinds = {"integer": 1, "number": 1, "boolean": True, "array": [], "object": {}, "null": None}
    return {} if "$ref" in schema else kinds.get(str(schema.get("type")), "...")
