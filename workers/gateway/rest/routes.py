"""Which route a method and a path belong to: pure, one tree per method.

A template is `/` and segments; `{name}` stands for one segment. A path is split first and its %-escapes are read then, so
that a name may hold a slash. A literal segment wins over `{name}`.
"""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, Generic, NamedTuple, TypeVar
from urllib.parse import unquote_to_bytes

from schemas.errors import BadRequest, BusError
from workers.gateway.rest.request import RestRequest
from workers.gateway.rest.response import Response, problem_response

Handler = Callable[[RestRequest], Awaitable[Response]]
T = TypeVar("T")


class Route(NamedTuple):
    """A handler for a method and a template. describe: its OpenAPI operation, where `summary` is not enough.

    One without a summary stays out of the OpenAPI page: it is there for programs that know it already.
    """

    method: str
    template: str
    handler: Handler
    summary: str = ""
    describe: dict[str, Any] | None = None
    failed: Callable[[BusError], Response] = problem_response


class Found(NamedTuple, Generic[T]):
    """What a path leads to, and the names in it."""

    template: str
    target: T
    params: dict[str, str]


class _Node(Generic[T]):
    __slots__ = ("leaf", "literals", "names", "variable")

    def __init__(self) -> None:
        self.literals: dict[str, _Node[T]] = {}
        self.variable: _Node[T] | None = None
        self.leaf: tuple[str, T] | None = None
        self.names: tuple[str, ...] = ()


class Table(Generic[T]):
    """Routes of one port."""

    def __init__(self) -> None:
        self._roots: dict[str, _Node[T]] = {}

    def add(self, method: str, template: str, target: T) -> None:
        """Raises ValueError where the method and the same shape of path lead somewhere already."""
        node = self._roots.setdefault(method, _Node())
        names = []
        for segment in segments(template):
            if segment.startswith("{"):
                names.append(segment.strip("{}"))
                node.variable = node.variable or _Node()
                node = node.variable
            else:
                node = node.literals.setdefault(segment, _Node())
        if node.leaf is not None:
            raise ValueError(f"{method} {template} is already {method} {node.leaf[0]}")
        node.leaf = (template, target)
        node.names = tuple(names)

    def find(self, method: str, path: list[str]) -> Found[T] | None:
        """Where the segments of a path lead; None for nowhere."""
        root = self._roots.get(method)
        if root is None:
            return None
        values: list[str] = []
        node = _descend(root, path, 0, values)
        if node is None or node.leaf is None:
            return None
        template, target = node.leaf
        return Found(template, target, dict(zip(node.names, values, strict=True)))

    def methods(self, path: list[str]) -> list[str]:
        """Methods that this path knows."""
        return [method for method in self._roots if self.find(method, path) is not None]

    def templates(self) -> Iterable[str]:
        """Every template, once."""
        return dict.fromkeys(template for root in self._roots.values() for template in _templates(root))


def _descend(node: _Node[T], path: list[str], at: int, values: list[str]) -> _Node[T] | None:
    if at == len(path):
        return node if node.leaf is not None else None
    segment = path[at]
    literal = node.literals.get(segment)
    if literal is not None:
        found = _descend(literal, path, at + 1, values)
        if found is not None:
            return found
    if node.variable is None or not segment:
        return None
    values.append(segment)
    found = _descend(node.variable, path, at + 1, values)
    if found is None:
        values.pop()
    return found


def _templates(node: _Node[T]) -> Iterable[str]:
    if node.leaf is not None:
        yield node.leaf[0]
    for child in (*node.literals.values(), node.variable):
        if child is not None:
            yield from _templates(child)


def segments(path: str) -> list[str]:
    """What stands between the slashes, with %-escapes read. Raises BadRequest for what is not UTF-8 then."""
    parts = path[1:].split("/")
    if "%" not in path:
        return parts
    try:
        return [unquote_to_bytes(part).decode() if "%" in part else part for part in parts]
    except UnicodeDecodeError as error:
        raise BadRequest(f"the path {path[:120]!r} is not UTF-8 once its %-escapes are read", field="path") from error


def is_more_literal(template: str, other: str) -> bool:
    """Of two templates that one path fits: True where the first has a literal at the first place they differ in kind."""
    for one, two in zip(template.split("/"), other.split("/"), strict=True):
        if one.startswith("{") is not two.startswith("{"):
            return two.startswith("{")
    return False


# Paths shown to somebody who asked for one that does not exist.
_NEAREST: Final = 3


def nearest(path: str, templates: Iterable[str]) -> list[str]:
    """Templates that look like a path."""
    return difflib.get_close_matches(path[:200], list(dict.fromkeys(templates)), n=_NEAREST, cutoff=0.5)
