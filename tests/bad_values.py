"""Bad input for operations of the catalogue: every field of a body with every value that is wrong or hostile there."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import inspect

from schemas.catalog import Operation
from schemas.errors import BusError


def nested(levels: int) -> list[Any]:
    """Lists in lists."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


TEXTS: Final = (
    "",
    " ",
    "\0",
    "a\0b",
    "known\n",
    '" OR 1=1; DROP TABLE memories; --',
    "'; DROP TABLE kv; --",
    "NEAR(",
    "NEAR(a b, 99999999999)",
    "*",
    "col:",
    "text: {speaker text}: -speaker: x",
    '"unbalanced',
    '"""',
    "AND OR NOT",
    "a AND (b OR",
    "^a + b",
    "%_\\",
    "../../../etc/passwd",
    "..",
    "-",
    "\ufffe\uffff \U0010ffff",
    "e\u0301" * 40,
    "{}[]$[*]",
)
NO_TEXTS: Final[tuple[Any, ...]] = (7, 1.5, True, None, b"known", ["known"], {"known": 1}, msgspec.msgpack.Ext(9, b"x"))

NUMBERS: Final = (
    math.nan,
    math.inf,
    -math.inf,
    -1,
    -0.5,
    0,
    0.5,
    1e-320,
    1e308,
    -1e308,
    1e12,
    2**31,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
    -(2**63),
)
NO_NUMBERS: Final[tuple[Any, ...]] = (True, False, None, "1", "nan", b"1", [1], {})
MAPS: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"": ""},
    {"\0": "\0"},
    {"k": math.nan},
    {"k": math.inf},
    {"k": 2**64 - 1},
    {"k": -(2**63)},
    {"k": b"\xff"},
    {"k": msgspec.msgpack.Ext(9, b"x")},
    {"time": "no time", "timestamp": 1e308, "speaker": ["x"], "summary": 1},
    {"time": "9999-12-31T23:59:59+23:59", "speaker": ""},
    {"time": -1e300},
    {"time": math.nan},
    {'"; DROP TABLE memories; --': "' OR ''='"},
    {"k": [[[[[[[[{}]]]]]]]]},
    {"k": nested(100)},
)
NO_MAPS: Final[tuple[Any, ...]] = (7, "known", None, ["known"], {1: 2}, {None: None}, {b"k": 1})


class Case(NamedTuple):
    """One bad request: which field is bad, and the bytes of the body."""

    field: str
    what: str
    body: bytes
    is_undecodable: bool = False


def nameless(*values: Any) -> Iterator[tuple[str, Any]]:
    """Values for the field itself."""
    return (("", value) for value in values)


def body_type(operation: Operation) -> inspect.StructType:
    """The request body of an operation."""
    found = inspect.type_info(operation.request)
    assert isinstance(found, inspect.StructType)
    return found


class Bodies:
    """Good and bad bodies. by_name: what stands in a good one under a field's name; always: what a subject's body needs.

    large_bytes: of the texts of `large`.
    """

    def __init__(
        self,
        by_name: Mapping[str, Any],
        always: Mapping[str, dict[str, Any]] | None = None,
        large_bytes: int = 10_000_000,
    ) -> None:
        self._by_name = by_name
        self._always = always or {}
        self._large_texts = large_bytes // len("Several megabytes. ")

    def example(self, type_: inspect.Type, name: str = "") -> Any:
        """A value that a type allows."""
        match type_:
            case inspect.Metadata(type=inner) | inspect.UnionType(types=(inner, *_)):
                return self.example(inner, name)
            case inspect.LiteralType(values=values):
                return "relation" if "relation" in values else sorted(values, key=str)[0]
            case inspect.StructType(fields=fields):
                return {field.name: self.example(field.type, field.name) for field in fields if field.required}
            case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
                return self._by_name.get(name) or [self.example(item, name)]
            case _ if name in self._by_name:
                return self._by_name[name]
            case inspect.BoolType():
                return False
            case inspect.IntType() | inspect.FloatType():
                return 1
            case inspect.DictType() | inspect.AnyType():
                return {"k": "v"}
        return "known"

    def bad_values(self, type_: inspect.Type) -> Iterator[tuple[str, Any]]:
        """Path below a field and a value that is bad there, or only just good."""
        match type_:
            case inspect.Metadata(type=inner):
                yield from self.bad_values(inner)
            case inspect.UnionType(types=types):
                for inner in types:
                    if not isinstance(inner, inspect.NoneType):
                        yield from self.bad_values(inner)
            case inspect.StrType():
                yield from nameless(*TEXTS, *NO_TEXTS)
            case inspect.IntType() | inspect.FloatType():
                yield from nameless(*NUMBERS, *NO_NUMBERS)
            case inspect.BoolType():
                yield from nameless(0, 1, "true", None, b"", [], {})
            case inspect.LiteralType():
                yield from nameless("", "nonsense", "a\0", 7, None, b"", [], {})
            case inspect.DictType():
                yield from nameless(*MAPS, *NO_MAPS)
            case inspect.AnyType():
                yield from nameless(*MAPS, *TEXTS, *NUMBERS, None, [[]])
            case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
                yield from nameless([], "known", 7, {}, [None], [[]])
                yield from ((f"[0]{path}", [value]) for path, value in self.bad_values(item))
            case inspect.StructType(fields=fields):
                yield from nameless("known", 7, [], {"nonsense": 1})
                good = self.example(type_)
                for field in fields:
                    for path, value in self.bad_values(field.type):
                        yield f".{field.name}{path}", {**good, field.name: value}
            case _:
                raise AssertionError(f"nothing bad is known for {type_}")

    def texts_in(self, type_: inspect.Type, text: str) -> Iterator[tuple[str, Any]]:
        """Path of every text below a field, and a value that has `text` there."""
        match type_:
            case inspect.Metadata(type=inner):
                yield from self.texts_in(inner, text)
            case inspect.UnionType(types=types):
                for inner in types:
                    yield from self.texts_in(inner, text)
            case inspect.StrType():
                yield "", text
            case inspect.DictType() | inspect.AnyType():
                yield ".k", {"k": [text]}
                yield " (a key)", {text: 1}
            case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
                yield from ((f"[0]{path}", [value]) for path, value in self.texts_in(item, text))
            case inspect.StructType(fields=fields):
                good = self.example(type_)
                for field in fields:
                    for path, value in self.texts_in(field.type, text):
                        yield f".{field.name}{path}", {**good, field.name: value}

    def good(self, operation: Operation) -> dict[str, Any]:
        """A body that the operation understands."""
        return {**self._always.get(operation.subject, {}), **self.example(body_type(operation))}

    def wrong_and_hostile(self, operation: Operation) -> Iterator[Case]:
        """Every field with every bad value, as msgpack."""
        body = body_type(operation)
        for path, value in self.bad_values(body):
            whole = {**self._always.get(operation.subject, {}), **value} if isinstance(value, dict) else value
            yield Case(path.removeprefix("."), repr(value)[:60], msgspec.msgpack.encode(whole))

    def no_text(self, operation: Operation) -> Iterator[Case]:
        """Every text with a lone surrogate: as JSON writes it, and as bytes that are no UTF-8 in msgpack."""
        for path, value in self.texts_in(body_type(operation), "known\ud800"):
            yield Case(path.removeprefix("."), "surrogate in JSON", json.dumps(value).encode(), is_undecodable=True)
        for path, value in self.texts_in(body_type(operation), "known???"):
            raw = msgspec.msgpack.encode(value).replace(b"???", b"\xed\xa0\x80")
            yield Case(path.removeprefix("."), "surrogate in msgpack", raw, is_undecodable=True)

    def large(self, operation: Operation) -> Iterator[Case]:
        """Every text with megabytes."""
        for path, value in self.texts_in(body_type(operation), "Several megabytes. " * self._large_texts):
            field = bare(path.removeprefix(".")).partition(".")[0]
            needed = {name: one for name, one in self._always.get(operation.subject, {}).items() if name != field}
            yield Case(path.removeprefix("."), "megabytes", msgspec.msgpack.encode({**value, **needed}))


def bare(path: str) -> str:
    """A path without places in lists and without keys of maps."""
    return re.sub(r"\[[^\]]*\]| \(a key\)", "", path).removesuffix(".k")


def names_the_field(error: BusError, case: Case) -> bool:
    """Whether the error says what was bad: the field, what it stands in, or what stands in it."""
    named = error.details.get("field")
    if not isinstance(named, str):
        return False
    if "record" in error.details:
        named = f"records.data.{named}".removesuffix(".data")
    named, field = bare(named), bare(case.field)
    if case.is_undecodable or not field:
        return True
    return named == field or named.startswith(f"{field}.") or field.startswith(f"{named}.")
