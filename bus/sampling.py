"""Sampling options as people write them: checked as requests are, by errors that name what is allowed instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Final

import msgspec
from msgspec import inspect as types

from bus.near_names import hint
from schemas.bodies.model import Sampling

# A value of an option is shown up to here, in characters.
_SHOWN: Final = 60

# A conversation names itself: who asks sets this one, never a person.
_NOT_OPTIONS: Final = frozenset({"conversation_id"})


class OptionError(ValueError):
    """An option is unknown, malformed or out of range; the message names option, value and what is allowed."""


def option_names() -> tuple[str, ...]:
    """Every option that a person may set, in the order of `schemas.bodies.model.Sampling`."""
    return tuple(_fields())


def allowed(name: str) -> str:
    """What an option may be, in words: `a number from 0 to 10`. Raises OptionError for one that there is not."""
    _known(name)
    return _words(_fields()[name])


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as a request would hold them. Raises OptionError for the first that a request may not hold."""
    whole: dict[str, Any] = {}
    for name, value in options.items():
        _known(name)
        try:
            one = msgspec.convert({name: value}, Sampling)
        except (msgspec.ValidationError, UnicodeEncodeError) as error:
            raise OptionError(f"{name} = {_shown(value)} is not allowed: it is {allowed(name)}") from error
        whole[name] = getattr(one, name)
    if whole.get("json_schema") is not None and whole.get("grammar") is not None:
        raise OptionError("json_schema and grammar are both given: an answer follows one of them")
    return whole


def from_words(words: Iterable[str]) -> dict[str, Any]:
    """Options written as `name=value`. Raises OptionError."""
    options: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise OptionError(f"{_shown(word)} is not name=value, such as temperature=0.2")
        _known(name)
        options[name] = _value(name, text)
    return checked(options)


def _known(name: str) -> None:
    if name in _fields():
        return
    if name in _NOT_OPTIONS:
        raise OptionError(f"{name} is no option: each chat has its own")
    raise OptionError(f"there is no option {_shown(name)}; {hint(name, _fields())}")


@cache
def _fields() -> dict[str, types.Type]:
    info = types.type_info(Sampling)
    assert isinstance(info, types.StructType)
    return {each.encode_name: _plain(each.type) for each in info.fields if each.encode_name not in _NOT_OPTIONS}


def _plain(kind: types.Type) -> types.Type:
    """The type without `| None` and without what documents alone."""
    if isinstance(kind, types.UnionType):
        return next(_plain(each) for each in kind.types if not isinstance(each, types.NoneType))
    return _plain(kind.type) if isinstance(kind, types.Metadata) else kind


def _value(name: str, text: str) -> Any:
    kind = _fields()[name]
    if isinstance(kind, (types.StrType, types.LiteralType)):
        return text
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError):
        # One text stands for a list of one; elsewhere the check says what a text is not.
        return [text] if isinstance(kind, types.ListType) else text


def _words(kind: types.Type) -> str:
    if isinstance(kind, (types.IntType, types.FloatType)):
        noun = "a whole number" if isinstance(kind, types.IntType) else "a number"
        low = f"above {_short(kind.gt)} and" if kind.gt is not None else f"from {_short(kind.ge)}"
        return f"{noun} {low} {'to' if kind.gt is None else 'up to'} {_short(kind.le)}"
    if isinstance(kind, types.LiteralType):
        return "one of " + ", ".join(map(str, kind.values))
    if isinstance(kind, types.ListType):
        return f"a list of at most {kind.max_length} items, each {_words(_plain(kind.item_type))}"
    if isinstance(kind, types.StrType):
        limit = f"{kind.min_length}..{kind.max_length:,}" if kind.min_length else f"at most {kind.max_length:,}"
        return f"a text of {limit} characters" + (f" that matches {kind.pattern}" if kind.pattern else "")
    return "a JSON object"


def _short(bound: float | None) -> str:
    assert bound is not None
    return f"{bound:,.0f}" if float(bound).is_integer() else str(bound)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
