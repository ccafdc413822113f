"""Judges a GBNF grammar before llama.cpp sees it, so that one from a stranger can neither stop nor break the decoding.

llama.cpp refuses bad syntax and left recursion by itself. Left to this module: nesting that would overflow its stack,
repetitions that would fill the memory, a grammar that no text can ever finish, and grammars that are read in so many
ways at once that each character takes longer than all before it together.

    rule         name "::=" alternatives              alternatives   sequence ("|" sequence)*
    item         "text" | [a-z] | [^a-z] | . | name | ( alternatives )         followed by * + ? {m} {m,} {m,n}

Source: llama.cpp, grammars/README.md and src/llama-grammar.cpp. Grammars are kept as alternatives of items, an item
being a rule's name or a set of characters; groups and repetitions become rules of their own, x{m,n} as if it were x+ or x*.
"""

from __future__ import annotations

import contextlib
import graphlib
import re
from collections.abc import Callable, Iterator
from typing import Final, NoReturn

import msgspec

# Nested groups; llama.cpp's parser descends for each. Grammars of real schemas nest a handful.
MAX_DEPTH: Final = 64
# Rules, groups among them, and elements of all repetitions written out. Large schemas make some hundred rules.
MAX_RULES: Final = 4_096
MAX_ELEMENTS: Final = 50_000
# llama.cpp's own limit of one repetition.
MAX_REPEAT: Final = 2_000
# Places at which a grammar may stand at the same time. A JSON grammar has less than ten.
MAX_PLACES: Final = 1_000
# Places looked at in all while judging; a schema of a hundred properties needs some 100,000, in a tenth of a second.
MAX_LOOKS: Final = 500_000
# Copies of a character fed to see whether the places multiply: doubling each time makes 4,096 of one.
_PROBE: Final = 12

_NAME: Final = re.compile(r"[A-Za-z0-9-]+")
_COUNT: Final = re.compile(r"\{\s*(\d*)\s*(,?)\s*(\d*)\s*\}")
_ESCAPED: Final = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]"}
_HEX_DIGITS: Final = {"x": 2, "u": 4, "U": 8}
_LAST: Final = 0x10FFFF


class BadGrammar(Exception):
    """The grammar cannot be used; the message says why, for a person."""


class Characters(msgspec.Struct, frozen=True):
    """A set of characters: code points between two ends, or all others."""

    ranges: tuple[tuple[int, int], ...]
    is_negated: bool = False

    def has(self, code: int) -> bool:
        """Whether the character is in the set."""
        return any(low <= code <= high for low, high in self.ranges) != self.is_negated

    def example(self) -> int | None:
        """A character of the set, None if there is none."""
        if not self.is_negated:
            return next((low for low, high in self.ranges if low <= high), None)
        tried = [0x61, 0x20, *(high + 1 for _, high in self.ranges), 0]
        return next((code for code in tried if code <= _LAST and self.has(code)), None)


Item = str | Characters
Sequence = tuple[Item, ...]
Rules = dict[str, list[Sequence]]


def check_grammar(text: str) -> None:
    """Raises BadGrammar for a grammar that is wrong, endless or too costly."""
    rules = _Parser(text).rules()
    if "root" not in rules:
        raise BadGrammar("it has no rule 'root', where every answer begins")
    for name, alternatives in rules.items():
        for sequence in alternatives:
            for item in sequence:
                if isinstance(item, str) and item not in rules:
                    raise BadGrammar(f"rule {_shown(name)} names {item!r}, which is no rule")
    nullable = _closed(rules, lambda item, known: isinstance(item, str) and item in known)
    _check_left_recursion(rules, nullable)
    ending = _closed(rules, lambda item, known: item in known if isinstance(item, str) else item.example() is not None)
    if "root" not in ending:
        raise BadGrammar("no text can ever fulfil it: every way from 'root' goes on for ever")
    _Places(rules).check()


class _Parser:
    """Reads GBNF as llama.cpp does."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._rules: Rules = {}
        self._elements = 0

    def rules(self) -> Rules:
        self._space(is_line_end=True)
        while self._at < len(self._text):
            name = self._name()
            self._space()
            if not self._text.startswith("::=", self._at):
                self._fail("expected ::=")
            self._at += 3
            self._space(is_line_end=True)
            self._put(name, self._alternatives(0))
            if self._at < len(self._text) and self._text[self._at] not in "\r\n":
                self._fail("expected the end of the line")
            self._space(is_line_end=True)
        return self._rules

    def _put(self, name: str, alternatives: list[Sequence]) -> str:
        self._rules[name] = alternatives
        if len(self._rules) > MAX_RULES:
            raise BadGrammar(f"it has more than {MAX_RULES} rules and groups")
        return name

    def _group(self, alternatives: list[Sequence]) -> str:
        # A name that no grammar can hold.
        return self._put(f"({len(self._rules)}", alternatives)

    def _alternatives(self, depth: int) -> list[Sequence]:
        if depth > MAX_DEPTH:
            raise BadGrammar(f"its groups are nested deeper than {MAX_DEPTH}")
        found = [self._sequence(depth)]
        while self._peek() == "|":
            self._at += 1
            self._space(is_line_end=True)
            found.append(self._sequence(depth))
        return found

    def _sequence(self, depth: int) -> Sequence:
        items: list[Item] = []
        while True:
            last = self._symbol(depth)
            if last is None:
                return tuple(items)
            self._space(is_line_end=depth > 0)
            items += self._repeated(last, depth)

    def _symbol(self, depth: int) -> list[Item] | None:
        """The next thing a repetition can follow; None at the end of the sequence."""
        sign = self._peek()
        if sign == '"':
            return self._literal()
        if sign == "[":
            return [self._set()]
        if sign == ".":
            self._at += 1
            return [Characters(((0, _LAST),))]
        if sign == "(":
            self._at += 1
            self._space(is_line_end=True)
            alternatives = self._alternatives(depth + 1)
            if self._peek() != ")":
                self._fail("expected )")
            self._at += 1
            return [self._group(alternatives)]
        if sign and _NAME.match(sign):
            return [self._name()]
        if sign and sign not in "|)\r\n":
            self._fail(f"unexpected {sign!r}")
        return None

    def _repeated(self, last: list[Item], depth: int) -> list[Item]:
        while (sign := self._peek()) and sign in "*+?{":
            least, most = self._count(sign)
            self._space(is_line_end=depth > 0)
            self._elements += max(least, most or 0, 1) * len(last)
            self._check_elements()
            once = tuple(last)
            if most == 0:
                last = []
            elif (least, most) == (0, 1):
                last = [self._group([once, ()])]
            elif (least, most) != (1, 1):
                name = f"({len(self._rules)}"
                self._put(name, [(*once, name), ()])
                last = [*once, name] if least else [name]
        return last

    def _count(self, sign: str) -> tuple[int, int | None]:
        if sign != "{":
            self._at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        found = _COUNT.match(self._text, self._at)
        if found is None or not (found[1] or found[3]):
            self._fail("expected {m}, {m,} or {m,n}")
        self._at = found.end()
        least = int(found[1] or 0)
        most = int(found[3]) if found[3] else (None if found[2] else least)
        if max(least, most or 0) > MAX_REPEAT:
            raise BadGrammar(f"it repeats something {max(least, most or 0)} times, the limit is {MAX_REPEAT}")
        return least, most

    def _literal(self) -> list[Item]:
        self._at += 1
        items: list[Item] = []
        while self._peek() != '"':
            code = self._character()
            items.append(Characters(((code, code),)))
        self._at += 1
        self._elements += len(items)
        self._check_elements()
        return items

    def _set(self) -> Characters:
        self._at += 1
        is_negated = self._peek() == "^"
        self._at += is_negated
        ranges = []
        while self._peek() != "]":
            low = high = self._character()
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                high = self._character()
            ranges.append((low, high))
        self._at += 1
        return Characters(tuple(ranges), is_negated)

    def _character(self) -> int:
        sign = self._peek()
        if not sign or sign == "\n":
            self._fail("a text or a set does not end")
        self._at += 1
        if sign != "\\":
            return ord(sign)
        kind = self._peek()
        self._at += 1
        if kind in _HEX_DIGITS:
            digits = self._text[self._at : self._at + _HEX_DIGITS[kind]]
            self._at += _HEX_DIGITS[kind]
            if len(digits) != _HEX_DIGITS[kind] or not all(one in "0123456789abcdefABCDEF" for one in digits):
                self._fail("a backslash with too few hex digits behind it")
            return int(digits, 16)
        if kind not in _ESCAPED:
            self._fail("a backslash with nothing known behind it")
        return ord(_ESCAPED[kind])

    def _name(self) -> str:
        found = _NAME.match(self._text, self._at)
        if found is None:
            self._fail("expected a rule's name")
        self._at = found.end()
        return found[0]

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _space(self, *, is_line_end: bool = False) -> None:
        """Skip blanks and comments, and line ends where the grammar goes on behind them."""
        while sign := self._peek():
            if sign == "#":
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end
            elif sign in " \t" or (is_line_end and sign in "\r\n"):
                self._at += 1
            else:
                return

    def _check_elements(self) -> None:
        if self._elements > MAX_ELEMENTS:
            raise BadGrammar(f"its texts and repetitions make more than {MAX_ELEMENTS} elements")

    def _fail(self, what: str) -> NoReturn:
        line = self._text.count("\n", 0, self._at) + 1
        raise BadGrammar(f"line {line}: {what} at {self._text[self._at : self._at + 20]!r}")


def _closed(rules: Rules, counts: Callable[[Item, set[str]], bool]) -> set[str]:
    """The rules with an alternative all of whose items count, given those known to."""
    users: dict[str, set[str]] = {}
    for name, alternatives in rules.items():
        for sequence in alternatives:
            for item in sequence:
                if isinstance(item, str):
                    users.setdefault(item, set()).add(name)
    known: set[str] = set()
    waiting = list(rules)
    while waiting:
        name = waiting.pop()
        if name not in known and any(all(counts(item, known) for item in one) for one in rules[name]):
            known.add(name)
            waiting += users.get(name, ())
    return known


def _check_left_recursion(rules: Rules, nullable: set[str]) -> None:
    """llama.cpp finds it too; here it bounds what follows."""
    first: dict[str, set[str]] = {}
    for name, alternatives in rules.items():
        heads = first.setdefault(name, set())
        for sequence in alternatives:
            for item in sequence:
                if isinstance(item, str):
                    heads.add(item)
                if item not in nullable:
                    break
    done: set[str] = set()
    for name in rules:
        path: dict[str, Iterator[str]] = {}
        waiting = name
        while True:
            if waiting in path:
                raise BadGrammar(f"rule {_shown(waiting)} begins with itself")
            if waiting not in done:
                path[waiting] = iter(first[waiting])
            found = None
            while path and found is None:
                found = next(next(reversed(path.values())), None)
                if found is None:
                    done.add(path.popitem()[0])
            if found is None:
                break
            waiting = found


# A place: the rest of a sequence, and the place after it. `None` is the end of the text.
_Place = tuple[Sequence, "_Place | None"]


class _Places:
    """Counts the places a grammar stands at, as llama.cpp keeps them."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._looks = 0

    def check(self) -> None:
        """Raises BadGrammar when there are too many at the beginning of a rule, or they multiply."""
        codes = self._probes()
        for name in self._rules:
            self._opened([((name,), None)])
        # Without coming back to a rule there is nothing that could multiply.
        for name in _recursive(self._rules):
            begun = self._opened([((name,), None)])
            for code in codes:
                places = begun
                for _ in range(_PROBE):
                    places = self._opened([(rest[1:], after) for rest, after in places if _reads(rest[0], code)])
                    if not places:
                        break

    def _probes(self) -> list[int]:
        sets = {item for alternatives in self._rules.values() for one in alternatives for item in one}
        found = {item.example() for item in sets if isinstance(item, Characters)}
        # The first of each kind are enough: an abundance of different characters is a list of words.
        return sorted(code for code in found if code is not None)[:64]

    def _opened(self, places: list[_Place]) -> set[_Place]:
        """The places at which a character is read next."""
        seen: set[_Place] = set()
        ready: set[_Place] = set()
        while places:
            place = places.pop()
            if place in seen:
                continue
            seen.add(place)
            self._looks += 1
            if self._looks > MAX_LOOKS:
                raise BadGrammar("it is too large, or its rules call each other in too many ways")
            if len(seen) > MAX_PLACES:
                raise BadGrammar(
                    f"it can be read in more than {MAX_PLACES} ways at once; let alternatives differ in their first"
                    " characters"
                )
            rest, after = place
            if not rest:
                if after is not None:
                    places.append(after)
            elif isinstance(rest[0], str):
                behind = (rest[1:], after) if rest[1:] else after
                places += [(sequence, behind) for sequence in self._rules[rest[0]]]
            else:
                ready.add(place)
        return ready


def _recursive(rules: Rules) -> list[str]:
    """The rules that lead back to themselves, and those between two such; not the loop of a repetition."""
    users: dict[str, set[str]] = {name: set() for name in rules}
    parts: dict[str, set[str]] = {name: set() for name in rules}
    for name, alternatives in rules.items():
        for item in (item for sequence in alternatives for item in sequence if isinstance(item, str)):
            if item != name or not name.startswith("("):
                users[item].add(name)
                parts[name].add(item)
    outside = _ordered(users) | _ordered(parts)
    return [name for name in rules if name not in outside]


def _ordered(graph: dict[str, set[str]]) -> set[str]:
    """The nodes that come before any cycle."""
    sorter = graphlib.TopologicalSorter(graph)
    with contextlib.suppress(graphlib.CycleError):
        sorter.prepare()
    found: set[str] = set()
    while ready := sorter.get_ready():
        found.update(ready)
        sorter.done(*ready)
    return found


def _reads(item: Item, code: int) -> bool:
    return isinstance(item, Characters) and item.has(code)


def _shown(name: str) -> str:
    return "of a group" if name.startswith("(") else repr(name)
