"""The requests of one trace as a tree with a waterfall: pure, from what the broker tells to lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from bus.cli.output import clock, columns_of, fit, milliseconds, plural
from schemas.bodies.telling import Span

# Columns where there is no terminal to ask, and the least that the figures need.
_COLUMNS: Final = 100
_NARROWEST: Final = 60

# Columns of a time in milliseconds, and of the waterfall.
_TIME: Final = 9
_BAR_MIN: Final = 12

# Deeper than this the tree is drawn no further to the right; a handler that asks itself has no end.
_DEEPEST: Final = 12

# Digits of an id that are shown: enough to ask for it.
ID_DIGITS: Final = 12


class Node(msgspec.Struct):
    """A request with those that its handler made. own_s: of its time, what none of them covers, the queue included."""

    span: Span
    children: list[Node]
    own_s: float = 0.0


def took_s(span: Span) -> float:
    """Seconds from the broker's receipt of a request to its answer."""
    return max(span.ended_at - span.received_at, 0.0)


def queued_s(span: Span) -> float:
    """Seconds until a worker had it; of a request that several had, until the last; of one that none had, all."""
    until = span.ended_at if span.dispatched_at is None else span.dispatched_at
    return max(until - span.received_at, 0.0)


def tree(spans: Sequence[Span]) -> list[Node]:
    """The roots, oldest first: requests whose parent is not among `spans`. What claims to be its own ancestor is one."""
    nodes = [Node(span, []) for span in sorted(spans, key=lambda span: (span.received_at, span.number))]
    by_key: dict[str, Node] = {}
    for node in nodes:
        by_key.setdefault(node.span.id[:16], node)
    parents: dict[int, Node] = {}
    for node in nodes:
        parent = by_key.get(node.span.parent)
        if parent is not None and not _is_above(node, parent, parents):
            parents[id(node)] = parent
            parent.children.append(node)
    for node in nodes:
        node.own_s = took_s(node.span) - _covered_s(node)
    return [node for node in nodes if id(node) not in parents]


def _is_above(node: Node, other: Node, parents: dict[int, Node]) -> bool:
    """True where `node` is `other`, or an ancestor of it."""
    above: Node | None = other
    while above is not None:
        if above is node:
            return True
        above = parents.get(id(above))
    return False


def _covered_s(node: Node) -> float:
    """Seconds of a request's time in which at least one of its children ran."""
    covered_s, until = 0.0, node.span.received_at
    for child in node.children:
        begin = max(child.span.received_at, until)
        end = min(child.span.ended_at, node.span.ended_at)
        covered_s += max(end - begin, 0.0)
        until = max(until, end)
    return covered_s


def walk(roots: Sequence[Node]) -> Iterator[tuple[Node, str, str]]:
    """Every request with what stands before its name, and before what is said below it."""
    waiting = [(node, "", "") for node in reversed(roots)]
    while waiting:
        node, head, below = waiting.pop()
        yield node, head, below + ("│ " if node.children and _depth(below) < _DEEPEST else "  ")
        last = len(node.children) - 1
        for index in range(last, -1, -1):
            if _depth(below) >= _DEEPEST:
                waiting.append((node.children[index], below, below))
                continue
            is_last = index == last
            branch = below + ("└ " if is_last else "├ ")
            waiting.append((node.children[index], branch, below + ("  " if is_last else "│ ")))


def _depth(prefix: str) -> int:
    return len(prefix) // 2


def lines(spans: Sequence[Span], *, width: int | None, asked: str) -> list[str]:
    """What `olympus trace ID` shows. asked: the start of an id, whose request is marked where the trace has others."""
    roots = tree(spans)
    began = min(span.received_at for span in spans)
    whole_s = max(max(span.ended_at for span in spans) - began, 1e-9)
    columns = max(width or _COLUMNS, _NARROWEST)
    name_columns = max((columns - 3 * _TIME - _BAR_MIN) * 2 // 3, 12)
    bar_columns = columns - name_columns - 3 * _TIME - 1
    shown = [
        f"trace {spans[0].trace}",
        f"{plural(len(spans), 'request')}, {milliseconds(whole_s)} ms, from {clock(began)}",
        "",
        _row("REQUEST", "AT ms", "TOOK ms", "OWN ms", "", name_columns),
    ]
    for node, head, below in walk(roots):
        span = node.span
        is_asked = len(spans) > 1 and span.trace != span.id and span.id.startswith(asked)
        name = fit(f"{head}{span.subject}", name_columns)
        times = (milliseconds(span.received_at - began), milliseconds(took_s(span)), milliseconds(node.own_s))
        shown.append(_row(name, *times, _bar(span, began, whole_s, bar_columns), name_columns))
        shown += [fit(f"{below}{text}", width) for text in _said(span, is_asked=is_asked)]
    return shown


def _row(name: str, at: str, took: str, own: str, bar: str, name_columns: int) -> str:
    padded = name + " " * max(name_columns - columns_of(name), 0)
    return f"{padded}{at:>{_TIME}}{took:>{_TIME}}{own:>{_TIME}} {bar}".rstrip()


def _bar(span: Span, began: float, whole_s: float, columns: int) -> str:
    """When it waited (·) and when a worker had it (█), against the time of the whole trace."""
    first = min(int((span.received_at - began) / whole_s * columns), columns - 1)
    last = max(round((span.ended_at - began) / whole_s * columns), first + 1)
    had = min(first + round(queued_s(span) / whole_s * columns), last)
    if span.dispatched_at is not None:
        had = min(had, last - 1)
    return " " * first + "·" * (had - first) + "█" * (last - had)


def _said(span: Span, *, is_asked: bool) -> Iterator[str]:
    """What else there is to say of a request, in lines short enough for a narrow terminal."""
    where = f"{span.service} {span.worker}" if span.worker else "no worker had it"
    yield f"{where}, asked by {span.caller or 'somebody'}"
    words = [span.outcome, f"queued {milliseconds(queued_s(span))} ms"]
    if span.attempts > 1:
        words.append(f"{span.attempts} attempts")
    words.append(f"id {span.id[:ID_DIGITS]}")
    if is_asked:
        words.append("<- asked for")
    yield ", ".join(words)


def as_json(spans: Sequence[Span]) -> dict[str, object]:
    """The same for programs: times in seconds, requests in the order in which they are drawn."""
    roots = tree(spans)
    began = min(span.received_at for span in spans)
    return {
        "trace": spans[0].trace,
        "began_at": began,
        "took_s": max(span.ended_at for span in spans) - began,
        "requests": [
            {
                **msgspec.to_builtins(node.span),
                "depth": _depth(head),
                "offset_s": node.span.received_at - began,
                "took_s": took_s(node.span),
                "queued_s": queued_s(node.span),
                "own_s": node.own_s,
            }
            for node, head, _ in walk(roots)
        ],
    }
