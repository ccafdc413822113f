"""What the first HTTP services took out of a request and how they refused it: 422 with a list of what is wrong, and where.

Values are read as leniently as they did: numbers from text, truth from its usual words. Pure.

Source of the shape of refusals: FastAPI's documentation ("Handling Errors"), pydantic's ("Validation Errors").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple

# No default: the field has to be there.
REQUIRED: Final = object()

_TRUE: Final = frozenset({"true", "1", "yes", "on", "t", "y"})
_FALSE: Final = frozenset({"false", "0", "no", "off", "f", "n"})

_MISSING: Final = ("missing", "Field required")

Query = Sequence[tuple[str, str]]


class Unfit(Exception):
    """A value of another kind."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text


class Invalid(Exception):
    """A request that is refused; `errors` name place and reason."""

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        super().__init__(f"{len(errors)} fields are wrong")
        self.errors = errors


class Missing(Exception):
    """A field is not there, or empty, on a route that says so with 400."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is required")


Read = Callable[[Any], Any]


class Given(NamedTuple):
    """One field of a request."""

    name: str
    read: Read
    default: Any
    place: Literal["body", "query"]

    @property
    def is_required(self) -> bool:
        """True where it has no default."""
        return self.default is REQUIRED


def body(name: str, read: Read, default: Any = REQUIRED) -> Given:
    """A field of the body."""
    return Given(name, read, default, "body")


def query(name: str, read: Read, default: Any = REQUIRED) -> Given:
    """A parameter after the `?`."""
    return Given(name, read, default, "query")


def error_of(place: Sequence[str | int], kind: str, text: str) -> dict[str, Any]:
    """One entry of a refusal."""
    return {"loc": list(place), "msg": text, "type": kind}


# Kinds of values. Each takes the value as it came and raises Unfit.


def text(value: Any) -> str:
    """Text as it is."""
    if not isinstance(value, str):
        raise Unfit("string_type", "Input should be a valid string")
    return value


def number(value: Any) -> float:
    """A finite number, also from text."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise Unfit("float_type", "Input should be a valid number")
    return found


def whole(value: Any) -> int:
    """A whole number, also from text."""
    try:
        found = math.nan if isinstance(value, bool) else number(value)
    except Unfit:
        found = math.nan
    if not found.is_integer() or abs(found) > 2**53:
        raise Unfit("int_type", "Input should be a valid integer")
    return int(found)


def flag(value: Any) -> bool:
    """True or false, also from their usual words and from 1 and 0."""
    word = str(value).lower() if isinstance(value, str | int) else ""
    if word not in _TRUE | _FALSE:
        raise Unfit("bool_type", "Input should be a valid boolean")
    return word in _TRUE


def mapping(value: Any) -> dict[str, Any]:
    """An object."""
    if not isinstance(value, dict):
        raise Unfit("dict_type", "Input should be a valid dictionary")
    return value


def anything(value: Any) -> Any:
    """Any value, null too."""
    return value


# Whole requests


def read_fields(wanted: Iterable[Given], found: Any, parameters: Query) -> dict[str, Any]:
    """The fields of a request. found: its body, None for none. Raises Invalid naming every field that is wrong.

    Where a field has a default, null stands for it, and where that is null itself the field is left out.
    """
    wanted = tuple(wanted)
    errors: list[dict[str, Any]] = []
    fields: dict[str, Any] = {}
    told = dict(parameters)
    if any(one.place == "body" for one in wanted) and not isinstance(found, dict):
        if found is not None or any(one.place == "body" and one.default is REQUIRED for one in wanted):
            raise Invalid([error_of(["body"], *_no_object(found))])
        found = {}
    for one in wanted:
        source = told if one.place == "query" else found
        try:
            value = _read(one, source)
        except Unfit as error:
            errors.append(error_of([one.place, one.name], error.kind, error.text))
            continue
        if value is not None or (one.read is anything and one.name in source):
            fields[one.name] = value
    if errors:
        raise Invalid(errors)
    return fields


def _read(one: Given, source: dict[str, Any]) -> Any:
    value = source.get(one.name)
    if one.name in source and (value is not None or one.read is anything):
        return one.read(value)
    if one.default is REQUIRED:
        raise Unfit(*(_MISSING if one.name not in source else ("type", "Input should not be null")))
    return one.default


def _no_object(found: Any) -> tuple[str, str]:
    return _MISSING if found is None else ("dict_type", "Input should be a valid dictionary")


def read_bare(name: str, read: Read, found: Any, *, is_optional: bool = False) -> Any:
    """A body that is the value itself; for a text also an object that holds it under `name`. Raises Invalid."""
    if read is text and isinstance(found, dict):
        found = found.get(name)
    if found is None and is_optional:
        return None
    try:
        if found is None:
            raise Unfit(*_MISSING)
        return read(found)
    except Unfit as error:
        raise Invalid([error_of(["body"], error.kind, error.text)]) from error
