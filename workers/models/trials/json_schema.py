"""Says whether a JSON value fits a JSON Schema, of the keywords that suites need; knows no suite and no model.

Source: JSON Schema draft 2020-12, core and validation. A keyword that is not in the table is refused when the schema is
read, so that nothing is ever checked less than it looks. `pattern` is left out: it could run for ever on a bad answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

# Say something about a schema, and nothing about values.
_NOTES: Final = frozenset({"$schema", "$id", "$comment", "title", "description", "default", "examples", "$defs"})

_TYPES: Final[dict[str, Callable[[Any], bool]]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: (
        (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and value.is_integer())
    ),
}

# Local references followed one into the other before it is called a circle.
_REFERENCES_MAX: Final = 64


class UnusableSchema(ValueError):
    """The schema is none, or holds what is not known here; the message says where."""


def check_schema(schema: Any, place: str = "#") -> None:
    """Refuse what `fits` could not judge. Raises UnusableSchema."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise UnusableSchema(f"{place}: a schema is an object, true or false")
    unknown = sorted(schema.keys() - _CHECKS.keys() - _NOTES)
    if unknown:
        raise UnusableSchema(f"{place}: unknown keyword {unknown[0]!r}; known: {', '.join(sorted(_CHECKS))}")
    for keyword, kinds in _SHAPES.items():
        if keyword in schema and (not isinstance(schema[keyword], kinds) or isinstance(schema[keyword], bool)):
            raise UnusableSchema(f"{place}/{keyword}: {schema[keyword]!r} has not the form of this keyword")
    for name in [schema["type"]] if isinstance(schema.get("type"), str) else schema.get("type", []):
        if name not in _TYPES:
            raise UnusableSchema(f"{place}/type: {name!r} is none of {', '.join(_TYPES)}")
    if schema.get("multipleOf", 1) <= 0:
        raise UnusableSchema(f"{place}/multipleOf: {schema['multipleOf']!r} is not above 0")
    for keyword in ("properties", "$defs"):
        for name, inner in schema.get(keyword, {}).items():
            check_schema(inner, f"{place}/{keyword}/{name}")
    for keyword in ("items", "additionalProperties", "not"):
        if keyword in schema:
            check_schema(schema[keyword], f"{place}/{keyword}")
    for keyword in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for index, inner in enumerate(schema.get(keyword, [])):
            check_schema(inner, f"{place}/{keyword}/{index}")


def fits(value: Any, schema: Any, root: Any = None, depth: int = 0) -> bool:
    """True when `value` fulfils the schema, which `check_schema` has passed. Raises UnusableSchema for a lost `$ref`."""
    if isinstance(schema, bool):
        return schema
    whole = schema if root is None else root
    if "$ref" in schema:
        if depth > _REFERENCES_MAX:
            raise UnusableSchema(f"{schema['$ref']}: refers to itself")
        if not fits(value, _referred(whole, schema["$ref"]), whole, depth + 1):
            return False
    return all(check(value, schema, whole) for keyword, check in _CHECKS.items() if keyword in schema)


def _referred(root: Any, reference: str) -> Any:
    if not reference.startswith("#"):
        raise UnusableSchema(f"$ref {reference!r}: only references within the schema are followed")
    found = root
    for step in reference.removeprefix("#").split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or name not in found:
            raise UnusableSchema(f"$ref {reference!r} leads nowhere")
        found = found[name]
    return found


def _same(first: Any, second: Any) -> bool:
    """Equal as JSON: true is not 1, 1.0 is 1."""
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_same, first, second))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_same(first[name], second[name]) for name in first)
    return bool(first == second)


def _has_type(value: Any, schema: Any, root: Any) -> bool:
    names = schema["type"]
    return any(_TYPES[name](value) for name in ([names] if isinstance(names, str) else names))


def _properties(value: Any, schema: Any, root: Any) -> bool:
    return not isinstance(value, dict) or all(
        fits(value[name], inner, root) for name, inner in schema["properties"].items() if name in value
    )


def _additional(value: Any, schema: Any, root: Any) -> bool:
    declared = schema.get("properties", {})
    return not isinstance(value, dict) or all(
        fits(inner, schema["additionalProperties"], root) for name, inner in value.items() if name not in declared
    )


def _items(value: Any, schema: Any, root: Any) -> bool:
    rest = value[len(schema.get("prefixItems", [])) :] if isinstance(value, list) else []
    return all(fits(item, schema["items"], root) for item in rest)


def _prefix(value: Any, schema: Any, root: Any) -> bool:
    return not isinstance(value, list) or all(
        fits(item, inner, root) for item, inner in zip(value, schema["prefixItems"], strict=False)
    )


def _is_unique(value: Any, schema: Any, root: Any) -> bool:
    if not schema["uniqueItems"] or not isinstance(value, list):
        return True
    return not any(_same(one, other) for index, one in enumerate(value) for other in value[:index])


def _is_multiple(value: Any, schema: Any, root: Any) -> bool:
    parts = value / schema["multipleOf"] if _TYPES["number"](value) else 0
    return math.isfinite(parts) and math.isclose(parts, round(parts), abs_tol=1e-9)


def _number(is_fine: Callable[[Any, Any], bool], keyword: str) -> Callable[[Any, Any, Any], bool]:
    return lambda value, schema, root: not _TYPES["number"](value) or is_fine(value, schema[keyword])


def _length(
    kind: type[dict[str, Any]] | type[list[Any]] | type[str], is_fine: Callable[[int, Any], bool], keyword: str
) -> Callable[[Any, Any, Any], bool]:
    return lambda value, schema, root: not isinstance(value, kind) or is_fine(len(value), schema[keyword])


def _at_least(value: Any, limit: Any) -> bool:
    return bool(value >= limit)


def _at_most(value: Any, limit: Any) -> bool:
    return bool(value <= limit)


_CHECKS: Final[dict[str, Callable[[Any, Any, Any], bool]]] = {
    "$ref": lambda value, schema, root: True,  # followed by `fits`, which counts
    "type": _has_type,
    "enum": lambda value, schema, root: any(_same(value, one) for one in schema["enum"]),
    "const": lambda value, schema, root: _same(value, schema["const"]),
    "properties": _properties,
    "required": lambda value, schema, root: not isinstance(value, dict) or all(n in value for n in schema["required"]),
    "additionalProperties": _additional,
    "minProperties": _length(dict, _at_least, "minProperties"),
    "maxProperties": _length(dict, _at_most, "maxProperties"),
    "items": _items,
    "prefixItems": _prefix,
    "minItems": _length(list, _at_least, "minItems"),
    "maxItems": _length(list, _at_most, "maxItems"),
    "uniqueItems": _is_unique,
    "minLength": _length(str, _at_least, "minLength"),
    "maxLength": _length(str, _at_most, "maxLength"),
    "minimum": _number(_at_least, "minimum"),
    "maximum": _number(_at_most, "maximum"),
    "exclusiveMinimum": _number(lambda value, limit: bool(value > limit), "exclusiveMinimum"),
    "exclusiveMaximum": _number(lambda value, limit: bool(value < limit), "exclusiveMaximum"),
    "multipleOf": _is_multiple,
    "anyOf": lambda value, schema, root: any(fits(value, inner, root) for inner in schema["anyOf"]),
    "oneOf": lambda value, schema, root: sum(fits(value, inner, root) for inner in schema["oneOf"]) == 1,
    "allOf": lambda value, schema, root: all(fits(value, inner, root) for inner in schema["allOf"]),
    "not": lambda value, schema, root: not fits(value, schema["not"], root),
}

_SHAPES: Final[dict[str, Any]] = {
    **{name: int | float for name in _CHECKS if name.startswith(("min", "max", "exclusive", "multiple"))},
    **dict.fromkeys(("required", "enum", "anyOf", "oneOf", "allOf", "prefixItems"), list),
    **dict.fromkeys(("properties", "$defs"), dict),
    "type": str | list,
    "$ref": str,
}
