"""Says in words and in JSON what an operation takes and answers, read from its declared types."""

from __future__ import annotations

import inspect
import json
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect as types

from bus.cli.output import table
from schemas.catalog import Operation


class Field(NamedTuple):
    """One field of a body; `default` is "" for a required one, `limits` holds its range or pattern in words."""

    name: str
    type: str
    default: str
    limits: str
    is_required: bool


def fields_of(body_type: type[Any]) -> list[Field]:
    """The fields of a declared body, in order."""
    info = types.type_info(body_type)
    if not isinstance(info, types.StructType):
        return []
    return [
        Field(
            name=field.encode_name,
            type=type_name(field.type),
            default="" if field.required else _default(field),
            limits=limits_of(field.type),
            is_required=field.required,
        )
        for field in info.fields
    ]


def marks(operation: Operation) -> str:
    """I for an operation that may be repeated, S for one that streams."""
    return ("I" if operation.is_idempotent else "") + ("S" if operation.is_streaming else "")


def request_line(operation: Operation) -> str:
    """The request's field names on one line, required ones with an asterisk."""
    return " ".join(field.name + "*" * field.is_required for field in fields_of(operation.request))


def describe(operation: Operation) -> list[str]:
    """What `olympus req SUBJECT --describe` prints."""
    lines = [f"{operation.subject}  {operation.summary}"]
    if operation.is_idempotent:
        lines.append("repeating it is harmless")
    for title, body_type in _bodies(operation):
        lines += ["", f"{title}: {body_type.__name__}"]
        if (doc := summary_of(body_type)) is not None:
            lines.append(f"  {doc}")
        lines += [f"  {line}" for line in _field_lines(body_type, is_request=title == "request")]
        for part in parts_of(body_type):
            lines += [f"  {part.__name__}:"]
            lines += [f"    {line}" for line in _field_lines(part, is_request=title == "request")]
    return lines


def describe_json(operation: Operation, *, with_schema: bool) -> dict[str, Any]:
    """The operation as one JSON value; `with_schema` adds JSON Schema 2020-12 of its bodies under `$defs`."""
    value: dict[str, Any] = {
        "subject": operation.subject,
        "summary": operation.summary,
        "is_idempotent": operation.is_idempotent,
        "is_streaming": operation.is_streaming,
        "http": operation.http,
        "scope": operation.scope,
    }
    bodies = _bodies(operation)
    if not with_schema:
        return {**value, "fields": [field._asdict() for field in fields_of(operation.request)]}
    references, definitions = msgspec.json.schema_components(
        [body_type for _, body_type in bodies], ref_template="#/$defs/{name}"
    )
    value |= {title.replace(" ", "_"): reference for (title, _), reference in zip(bodies, references, strict=True)}
    return {**value, "$defs": definitions}


def type_name(kind: types.Type) -> str:
    """A type in words that someone who writes JSON understands."""
    if isinstance(kind, types.Metadata):
        return type_name(kind.type)
    if isinstance(kind, types.UnionType):
        return " or ".join(type_name(member) for member in kind.types)
    if isinstance(kind, types.LiteralType):
        return " | ".join(json.dumps(value) for value in kind.values)
    if isinstance(kind, (types.ListType, types.VarTupleType, types.SetType)):
        return f"list of {type_name(kind.item_type)}"
    if isinstance(kind, types.DictType):
        return f"map of {type_name(kind.value_type)}"
    if isinstance(kind, types.StructType):
        return kind.cls.__name__
    return _PLAIN.get(type(kind), type(kind).__name__.removesuffix("Type").lower())


def limits_of(kind: types.Type) -> str:
    """The range, length or pattern a type is held to; empty without one."""
    if isinstance(kind, types.UnionType):
        return ", ".join(filter(None, map(limits_of, kind.types)))
    if isinstance(kind, types.ListType):
        own, inner = _length(kind.min_length, kind.max_length, "items"), limits_of(kind.item_type)
        return ", ".join(filter(None, (own, inner and f"each {inner}")))
    if isinstance(kind, types.StrType):
        pattern = f"matches {kind.pattern}" if kind.pattern else ""
        return ", ".join(filter(None, (_length(kind.min_length, kind.max_length, "characters"), pattern)))
    if isinstance(kind, (types.IntType, types.FloatType)):
        bounds = ((kind.ge, ">="), (kind.gt, ">"), (kind.le, "<="), (kind.lt, "<"))
        return ", ".join(f"{sign} {_short(bound)}" for bound, sign in bounds if bound is not None)
    return ""


def parts_of(body_type: type[Any]) -> list[type[Any]]:
    """The Structs that a body's fields hold, at any depth, each once."""
    found: dict[type[Any], None] = {}

    def visit(kind: types.Type) -> None:
        if isinstance(kind, types.UnionType):
            for member in kind.types:
                visit(member)
        elif isinstance(kind, (types.ListType, types.VarTupleType, types.SetType)):
            visit(kind.item_type)
        elif isinstance(kind, types.DictType):
            visit(kind.value_type)
        elif isinstance(kind, types.StructType) and kind.cls not in found:
            found[kind.cls] = None
            for field in kind.fields:
                visit(field.type)

    visit(types.type_info(body_type))
    return [part for part in found if part is not body_type]


def summary_of(body_type: type[Any]) -> str | None:
    """The first paragraph of a body's own docstring, on one line; None without one."""
    doc = body_type.__dict__.get("__doc__")
    return " ".join(inspect.cleandoc(doc).split("\n\n")[0].split()) if doc else None


_PLAIN: dict[type[types.Type], str] = {
    types.AnyType: "any value",
    types.NoneType: "null",
    types.BoolType: "true or false",
    types.IntType: "integer",
    types.FloatType: "number",
    types.StrType: "text",
    types.BytesType: "bytes",
}


def _field_lines(body_type: type[Any], *, is_request: bool) -> list[str]:
    rows = [(f.name, f.type, "required" if f.is_required else f.default, f.limits) for f in fields_of(body_type)]
    if not rows:
        return ["no fields"]
    if is_request:
        return table(("FIELD", "TYPE", "DEFAULT", "LIMITS"), rows)
    return table(("FIELD", "TYPE"), [row[:2] for row in rows])


def _bodies(operation: Operation) -> list[tuple[str, type[Any]]]:
    bodies: list[tuple[str, type[Any]]] = [("request", operation.request)]
    if operation.partial is not None:
        bodies.append(("partial reply", operation.partial))
    return [*bodies, ("reply", operation.reply)]


def _default(field: types.Field) -> str:
    if field.default_factory is not msgspec.NODEFAULT:
        return json.dumps(msgspec.to_builtins(field.default_factory()))
    return json.dumps(msgspec.to_builtins(field.default))


def _length(low: int | None, high: int | None, noun: str) -> str:
    if low is None and high is None:
        return ""
    if high is None:
        return f"at least {low:,} {noun}"
    return f"{low or 0:,}..{high:,} {noun}"


def _short(bound: float) -> str:
    return f"{bound:,.0f}" if float(bound).is_integer() else str(bound)
