"""The catalogue's routes: which port serves each, and how path, query and body become the operation's request as JSON.

Values are turned into what their fields hold where that is possible; what does not fit is left as the text it was, so
that the worker refuses it in the same words as everywhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import msgspec

from bus.settings import REST_SERVICES
from schemas import catalog
from schemas.catalog import Operation
from schemas.errors import BadRequest

# The services that have a port of their own, by the service of an operation; the first port has everything else.
SERVICES: Final = REST_SERVICES
_PORT_OF: Final = {"model": "models", "resource": "models", "learning": "learning"}

_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})
_JSON_SPACE: Final = b" \t\r\n"

# Turns the text of a parameter into a field's value; gives the text itself back where it cannot.
Reader = Callable[[str], Any]


def port_of(operation: Operation) -> str:
    """Which of SERVICES answers for an operation."""
    return _PORT_OF.get(operation.service, SERVICES[0])


class OperationRoute:
    """One route of one operation."""

    def __init__(self, operation: Operation, method: str, template: str) -> None:
        self.operation = operation
        self.method = method
        self.template = template
        self.takes_body = method in _WITH_BODY
        self.may_load_a_model = operation.service in ("model", "learning")
        self.names: tuple[str, ...] = tuple(re.findall(r"{(\w+)}", template))
        fields = {field.encode_name: field for field in msgspec.structs.fields(operation.request)}
        unknown = [name for name in self.names if name not in fields]
        if unknown:
            raise ValueError(f"{operation.subject}: {method} {template} names {unknown[0]!r}, which the request lacks")
        kinds = {name: msgspec.inspect.type_info(field.type) for name, field in fields.items()}
        self._lists = {name for name, kind in kinds.items() if _is_list(kind)}
        self._readers = {name: reader_of(_item(kind) if name in self._lists else kind) for name, kind in kinds.items()}

    def request(self, params: dict[str, str], query: list[tuple[str, str]], body: bytes) -> bytes:
        """The operation's request as JSON. Raises BadRequest for parts that contradict each other."""
        given = {name: self._from_path(name, text) for name, text in params.items()}
        if self.takes_body:
            if query:
                raise BadRequest(
                    f"{self.method} {self.template} takes its fields in the body, not in the query (?{query[0][0][:80]}=)",
                    field=query[0][0][:80],
                )
            return self._merged(given, body)
        if body:
            raise BadRequest(
                f"{self.method} {self.template} takes its fields in the query, as ?NAME=VALUE, and no body",
                field="body",
            )
        if query:
            self._add_query(given, query)
        return msgspec.json.encode(given)

    def _from_path(self, name: str, text: str) -> Any:
        value = self._readers[name](text)
        return [value] if name in self._lists else value

    def _add_query(self, given: dict[str, Any], query: list[tuple[str, str]]) -> None:
        told: dict[str, list[str]] = {}
        for name, text in query:
            told.setdefault(name, []).append(text)
        for name, texts in told.items():
            value = self._from_query(name, texts)
            if name in given and given[name] != value:
                raise _contradiction(name, value, "query", given[name])
            given[name] = value

    def _from_query(self, name: str, texts: list[str]) -> Any:
        reader = self._readers.get(name)
        if name in self._lists and reader is not None:
            items = texts if len(texts) > 1 else [text for text in texts[0].split(",") if text]
            return [reader(item) for item in items]
        if len(texts) > 1:
            raise BadRequest(f"parameter {name[:80]!r} is given {len(texts)} times", field=name[:80])
        # A name the operation does not know goes on to the worker, which says so.
        return texts[0] if reader is None else reader(texts[0])

    def _merged(self, given: dict[str, Any], body: bytes) -> bytes:
        if not body:
            return msgspec.json.encode(given)
        members = members_of(body)
        added = []
        for name, value in given.items():
            if name not in members:
                added.append((name, value))
            elif (told := _value(members[name])) != value:
                raise _contradiction(name, told, "body", value)
        if not added:
            return body
        head = msgspec.json.encode(dict(added))[:-1]
        rest = body.lstrip(_JSON_SPACE)[1:]
        return head + (b"," if members else b"") + rest


def operation_routes(operations: Iterable[Operation] = tuple(catalog.OPERATIONS.values())) -> Iterator[OperationRoute]:
    """Every route that operations declare. Raises ValueError for a route that does not fit its request."""
    for operation in operations:
        for declared in filter(None, operation.http.split(", ")):
            method, _, template = declared.partition(" ")
            yield OperationRoute(operation, method, template)


class _Name:
    """A key of a JSON object that is equal to no other, so that a key given twice is seen twice."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


_decode_members = msgspec.json.Decoder(dict[_Name, msgspec.Raw], dec_hook=lambda kind, text: kind(text)).decode


def members_of(body: bytes) -> dict[str, msgspec.Raw]:
    """The members of a JSON object, their values undecoded. Raises BadRequest for anything else, and for a key twice."""
    try:
        pairs = _decode_members(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        what = str(error).removeprefix("JSON is malformed: ")
        raise BadRequest(f"the body is not one JSON object: {what}", field="body") from error
    members = {name.text: value for name, value in pairs.items()}
    if len(members) != len(pairs):
        seen: set[str] = set()
        twice = next(name.text for name in pairs if name.text in seen or seen.add(name.text))  # type: ignore[func-returns-value]
        raise BadRequest(f"the body holds the field {twice[:80]!r} twice", field=twice[:80])
    return members


def _value(raw: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}", field="body") from error


def _contradiction(name: str, told: Any, where: str, in_path: Any) -> BadRequest:
    return BadRequest(f"field {name!r} is {told!r:.80} in the {where} and {in_path!r:.80} in the path", field=name)


# Texts as values -------------------------------------------------------------------------------------------------


def _parts(kind: Any) -> list[Any]:
    """The types that a value may have, without their limits and without null."""
    while isinstance(kind, msgspec.inspect.Metadata):
        kind = kind.type
    if isinstance(kind, msgspec.inspect.UnionType):
        return [part for inner in kind.types for part in _parts(inner)]
    return [] if isinstance(kind, msgspec.inspect.NoneType) else [kind]


_SEQUENCES: Final = (
    msgspec.inspect.ListType,
    msgspec.inspect.VarTupleType,
    msgspec.inspect.SetType,
    msgspec.inspect.FrozenSetType,
)


def _is_list(kind: Any) -> bool:
    parts = _parts(kind)
    return len(parts) == 1 and isinstance(parts[0], _SEQUENCES)


def _item(kind: Any) -> Any:
    return _parts(kind)[0].item_type


def reader_of(kind: Any) -> Reader:
    """How a parameter's text becomes a value of a type, as `msgspec.inspect` describes it."""
    parts = _parts(kind)
    inspect = msgspec.inspect
    if any(isinstance(part, inspect.StrType | inspect.AnyType | inspect.BytesType) for part in parts):
        return _as_it_is
    for types, read in (
        ((inspect.BoolType,), _as_bool),
        ((inspect.IntType,), _as_int),
        ((inspect.FloatType,), _as_float),
        ((inspect.DictType, inspect.StructType, inspect.TypedDictType), _as_object),
    ):
        if any(isinstance(part, types) for part in parts):
            return read
    if parts and all(isinstance(part, inspect.LiteralType) and isinstance(part.values[0], int) for part in parts):
        return _as_int
    return _as_it_is


def _as_it_is(text: str) -> str:
    return text


def _as_bool(text: str) -> bool | str:
    return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)


def _as_int(text: str) -> int | str:
    # No more digits than any field allows: a number of thousands of them takes long to read.
    return int(text) if re.fullmatch(r"-?[0-9]{1,30}", text) else text


def _as_float(text: str) -> float | str:
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def _as_object(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return text
