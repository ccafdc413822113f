"""Writes a JSON Schema as a GBNF grammar: every text of the grammar is JSON that fulfils the schema.

Not the other way round: properties come in the order of the schema, and where a schema names properties no others are
made. A keyword that a grammar cannot keep is refused by name instead of being passed over. oneOf is taken as anyOf.

Source: JSON Schema 2020-12, core and validation; GBNF: see `gbnf`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from workers.models.backends.gbnf import MAX_REPEAT, BadGrammar

# Keywords that say more than a grammar can hold.
_REFUSED: Final = frozenset(
    {
        *("not", "if", "then", "else", "multipleOf", "uniqueItems", "contains", "minContains", "maxContains"),
        *("patternProperties", "propertyNames", "dependentRequired", "dependentSchemas", "dependencies"),
        *("unevaluatedProperties", "unevaluatedItems", "minProperties", "maxProperties", "pattern"),
        *("$dynamicRef", "$recursiveRef"),
    }
)

# Integers between two bounds are written out one by one; this many at most.
_MAX_INTEGERS: Final = 1_000

# Schemas are walked by recursion.
_MAX_DEPTH: Final = 64

_TYPES: Final = ("object", "array", "string", "number", "integer", "boolean", "null")

_BASE: Final = {
    # Blanks as models write them: none, one, or a line break with an indent. Without a limit a model may write on and on.
    "ws": r'| " " | "\n" [ \t]{0,20}',
    "value": "object | array | string | number | boolean | null",
    "object": '"{" ws ( string ":" ws value ( "," ws string ":" ws value )* ws )? "}"',
    "array": '"[" ws ( value ( "," ws value )* ws )? "]"',
    "char": r'[^"\\\x00-\x1F\x7F] | "\\" (["\\bfnrt/] | "u" hex hex hex hex)',
    "hex": "[0-9a-fA-F]",
    "string": r'"\"" char* "\""',
    "natural": '( "0" | [1-9] [0-9]{0,15} )',
    "number": '"-"? natural ( "." [0-9]{1,16} )? ( [eE] [-+]? [0-9]{1,3} )?',
    "integer": '"-"? natural',
    "boolean": '"true" | "false"',
    "null": '"null"',
}

_FORMATS: Final = {
    "date": r'"\"" date "\""',
    "time": r'"\"" time "\""',
    "date-time": r'"\"" date "T" time "\""',
    "uuid": r'"\"" hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12} "\""',
}
_DATE: Final = '[0-9]{4} "-" ( "0" [1-9] | "1" [0-2] ) "-" ( "0" [1-9] | "1" [0-9] | "2" [0-8] )'
_TIME: Final = (
    '( [01] [0-9] | "2" [0-3] ) ":" [0-5] [0-9] ":" [0-5] [0-9] ( "." [0-9]{1,6} )? '
    '( "Z" | [-+] ( [01] [0-9] | "2" [0-3] ) ":" [0-5] [0-9] )'
)


def schema_grammar(schema: Mapping[str, Any]) -> str:
    """The grammar of answers that fulfil `schema`. Raises BadGrammar naming what cannot be kept."""
    writer = _Writer(schema)
    writer.rules["root"] = writer.rule(schema, "#", 0)
    return "\n".join(f"{name} ::= {rule}" for name, rule in writer.rules.items())


class _Writer:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self.rules: dict[str, str] = dict(_BASE)
        self._root = root
        self._references: dict[str, str] = {}

    def rule(self, schema: Any, place: str, depth: int) -> str:
        """What fulfils `schema`, as one item of a sequence. `place` is a JSON pointer for messages."""
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, dict):
            raise BadGrammar(
                f"json_schema: {place} is {json.dumps(schema)[:60]}: nothing fulfils it, or it is no schema"
            )
        if depth > _MAX_DEPTH:
            raise BadGrammar(f"json_schema: nested deeper than {_MAX_DEPTH}")
        refused = sorted(_REFUSED.intersection(schema))
        if refused:
            raise BadGrammar(f"json_schema: {place} has {refused[0]!r}, which a grammar cannot keep")
        if "$ref" in schema:
            return self._reference(schema["$ref"], place, depth)
        if "const" in schema:
            return self._constants([schema["const"]])
        if "enum" in schema:
            values = _list(schema["enum"], f"{place}/enum")
            if not values:
                raise BadGrammar(f"json_schema: {place}/enum is empty, nothing fulfils it")
            return self._constants(values)
        if "allOf" in schema:
            return self.rule(self._merged(schema, place), place, depth + 1)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                # What stands beside the alternatives holds for each of them.
                common = {key: value for key, value in schema.items() if key not in ("anyOf", "oneOf")}
                found = _list(schema[keyword], f"{place}/{keyword}")
                parts = [_together(common, one, f"{place}/{keyword}/{at}") for at, one in enumerate(found)]
                return self._either([self.rule(one, f"{place}/{keyword}", depth + 1) for one in parts])
        types = schema.get("type", _implied(schema))
        names = _list(types, f"{place}/type") if isinstance(types, list) else [types]
        return self._either([self._of_type(name, schema, place, depth) for name in names])

    def _of_type(self, name: Any, schema: Mapping[str, Any], place: str, depth: int) -> str:
        match name:
            case "object":
                return self._object(schema, place, depth)
            case "array":
                return self._array(schema, place, depth)
            case "string":
                return self._string(schema, place)
            case "integer":
                return self._integer(schema, place)
            case "number":
                bounds = [key for key in _BOUNDS if key in schema]
                if bounds:
                    raise BadGrammar(f"json_schema: {place} has {bounds[0]!r} of a number, which a grammar cannot keep")
                return "number"
            case "boolean" | "null" | "value":
                return str(name)
        raise BadGrammar(f"json_schema: {place}/type is {name!r}, allowed are {', '.join(_TYPES)}")

    def _put(self, rule: str) -> str:
        name = f"r{len(self.rules)}"
        self.rules[name] = rule
        return name

    def _either(self, items: list[str]) -> str:
        return items[0] if len(items) == 1 else self._put(" | ".join(items))

    def _constants(self, values: list[Any]) -> str:
        texts = [json.dumps(value, ensure_ascii=False, separators=(",", ":")) for value in values]
        return self._put(" | ".join(map(_quoted, texts)))

    def _reference(self, target: Any, place: str, depth: int) -> str:
        if target not in self._references:
            # Named before it is written: it may refer to itself.
            name = self._references[target] = self._put("")
            self.rules[name] = self.rule(self._at(target, place), target, depth + 1)
        return self._references[target]

    def _at(self, target: Any, place: str) -> Any:
        """What a reference means."""
        if not isinstance(target, str) or not re.match(r"#(/|$)", target):
            raise BadGrammar(f"json_schema: {place}/$ref is {target!r}, only places of the same schema can be meant")
        value: Any = self._root
        for step in target[2:].split("/") if len(target) > 1 else ():
            value = _step(value, step.replace("~1", "/").replace("~0", "~"), target)
        return value

    def _object(self, schema: Mapping[str, Any], place: str, depth: int) -> str:
        properties = _mapping(schema.get("properties", {}), f"{place}/properties")
        required = set(_list(schema.get("required", []), f"{place}/required"))
        properties = {**properties, **{name: True for name in required if name not in properties}}
        if not properties:
            further = schema.get("additionalProperties", True)
            if further is False:
                return self._put('"{" ws "}"')
            member = f'string ":" ws {self.rule(further, f"{place}/additionalProperties", depth + 1)}'
            return self._put(f'"{{" ws ( {member} ( "," ws {member} )* ws )? "}}"')
        members = []
        for name, value in properties.items():
            text = _quoted(json.dumps(name, ensure_ascii=False))
            rule = f'{text} ":" ws {self.rule(value, f"{place}/properties/{name}", depth + 1)}'
            members.append((self._put(rule), name in required))
        return self._put(f'"{{" ws {self._members(members)} ws "}}"')

    def _members(self, members: list[tuple[str, bool]]) -> str:
        """The properties in their order, those not required left out or not."""
        first = after = self._put('""')
        for member, is_required in reversed(members):
            first = self._put(f"{member} {after}" if is_required else f"{member} {after} | {first}")
            after = self._put(f'"," ws {member} {after}' if is_required else f'"," ws {member} {after} | {after}')
        return first

    def _array(self, schema: Mapping[str, Any], place: str, depth: int) -> str:
        least, most = _range(schema, "minItems", "maxItems", place)
        fixed = _list(schema.get("prefixItems", []), f"{place}/prefixItems")
        if fixed:
            items = [self.rule(one, f"{place}/prefixItems", depth + 1) for one in fixed]
            if least > len(items) or (most is not None and most < len(items)):
                raise BadGrammar(f"json_schema: {place} asks for another number of items than prefixItems has")
            inner = ' "," ws '.join(items)
            return self._put(f'"[" ws {inner} ws "]"')
        item = self.rule(schema.get("items", True), f"{place}/items", depth + 1)
        if most == 0:
            return self._put('"[" ws "]"')
        more = f"{{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
        inner = f'{item} ( "," ws {item} ){more}'
        return self._put(f'"[" ws {f"{inner} ws" if least else f"( {inner} ws )?"} "]"')

    def _string(self, schema: Mapping[str, Any], place: str) -> str:
        least, most = _range(schema, "minLength", "maxLength", place)
        if least or most is not None:
            return self._put(f'"\\"" char{{{least},{"" if most is None else most}}} "\\""')
        form = _FORMATS.get(str(schema.get("format")))
        if form is None:
            # Other formats are notes to the reader, as the standard has it.
            return "string"
        self.rules |= {"date": _DATE, "time": _TIME}
        return self._put(form)

    def _integer(self, schema: Mapping[str, Any], place: str) -> str:
        low, high = _integer_bounds(schema, place)
        if low is None and high is None:
            return "integer"
        if high is None and low in (0, 1):
            return self._put("natural" if low == 0 else "[1-9] [0-9]{0,15}")
        if low is not None and high is not None and low <= high < low + _MAX_INTEGERS:
            return self._constants(list(range(low, high + 1)))
        raise BadGrammar(
            f"json_schema: {place} is an integer from {low} to {high}; a grammar keeps a minimum of 0 or 1, or up to"
            f" {_MAX_INTEGERS} values between two bounds"
        )

    def _merged(self, schema: Mapping[str, Any], place: str) -> dict[str, Any]:
        """allOf and what stands beside it as one schema."""
        merged = {key: value for key, value in schema.items() if key != "allOf"}
        for at, one in enumerate(_list(schema["allOf"], f"{place}/allOf")):
            part, seen = one, 0
            while isinstance(part, dict) and "$ref" in part and seen < _MAX_DEPTH:
                part, seen = self._at(part["$ref"], f"{place}/allOf/{at}"), seen + 1
            merged = _together(merged, part, f"{place}/allOf/{at}")
        return merged


_BOUNDS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")

# Keywords that only describe: whichever stands first is as good.
_NOTES: Final = frozenset({"title", "description", "default", "examples", "$comment", "$defs", "definitions", "$id"})


def _together(left: Mapping[str, Any], right: Any, place: str) -> dict[str, Any]:
    """A schema that demands what both do. Raises BadGrammar where they say different things of the same."""
    if right is True:
        return dict(left)
    both = dict(left)
    for key, value in _mapping(right, place).items():
        if key == "required":
            both[key] = [*both.get(key, []), *_list(value, f"{place}/required")]
        elif key == "properties":
            mine = _mapping(both.get(key, {}), place)
            theirs = _mapping(value, f"{place}/properties")
            clash = [name for name in theirs if name in mine and mine[name] != theirs[name]]
            if clash:
                raise BadGrammar(
                    f"json_schema: {place} says something else of property {clash[0]!r} than its neighbour"
                )
            both[key] = {**mine, **theirs}
        elif key not in both:
            both[key] = value
        elif key not in _NOTES and both[key] != value:
            raise BadGrammar(f"json_schema: {place} says something else of {key!r} than its neighbour")
    return both


def _implied(schema: Mapping[str, Any]) -> str:
    """The type that a schema without one means by its keywords."""
    if {"properties", "required", "additionalProperties"} & schema.keys():
        return "object"
    if {"items", "prefixItems", "minItems", "maxItems"} & schema.keys():
        return "array"
    if {"minLength", "maxLength", "format"} & schema.keys():
        return "string"
    if set(_BOUNDS) & schema.keys():
        return "number"
    return "value"


def _integer_bounds(schema: Mapping[str, Any], place: str) -> tuple[int | None, int | None]:
    bounds = {key: schema[key] for key in _BOUNDS if key in schema}
    for key, value in bounds.items():
        if type(value) is not int:
            raise BadGrammar(f"json_schema: {place}/{key} is {value!r}, for an integer it must be one")
    lows = [bounds["minimum"]] if "minimum" in bounds else []
    highs = [bounds["maximum"]] if "maximum" in bounds else []
    lows += [bounds["exclusiveMinimum"] + 1] if "exclusiveMinimum" in bounds else []
    highs += [bounds["exclusiveMaximum"] - 1] if "exclusiveMaximum" in bounds else []
    return max(lows, default=None), min(highs, default=None)


def _range(schema: Mapping[str, Any], low: str, high: str, place: str) -> tuple[int, int | None]:
    least, most = schema.get(low, 0), schema.get(high)
    for key, value in ((low, least), (high, most)):
        if value is not None and (type(value) is not int or not 0 <= value <= MAX_REPEAT):
            raise BadGrammar(f"json_schema: {place}/{key} is {value!r}, allowed are 0 to {MAX_REPEAT}")
    if most is not None and most < least:
        raise BadGrammar(f"json_schema: {place}/{high} is {most}, below {low} {least}")
    return least, most


def _step(value: Any, step: str, target: str) -> Any:
    if isinstance(value, dict) and step in value:
        return value[step]
    if isinstance(value, list) and step.isdecimal() and int(step) < len(value):
        return value[int(step)]
    raise BadGrammar(f"json_schema: nothing is at {target!r}")


def _list(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadGrammar(f"json_schema: {place} is no list")
    return value


def _mapping(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadGrammar(f"json_schema: {place} is no object")
    return value


def _quoted(text: str) -> str:
    """A text of GBNF."""
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(one, one) for one in text) + '"'
