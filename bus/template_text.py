"""The text of templates: `{variable}`, `{variable:default}` and `{> other}` among literal braces; it knows no files.

{name}            the value of the variable
{name:default}    the value, or the default, which may hold placeholders again
{> other}         the prompt of another template
{{  }}            a brace
{ "any": other }  as it stands: what follows the brace is no name, or the colon is followed by a space
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, TypeAlias

import msgspec

# Defaults in defaults: nobody reads more, and the parser recurses.
_DEPTH_MAX: Final = 16

# Included prompts and defaults that are held while a text is made, in times of its limit: each that holds another that
# holds a large value copies it.
_MADE_MAX: Final = 4

# What somebody can be shown of a text, characters.
_SHOWN: Final = 40

VARIABLE_NAME: Final = r"[^\W\d]\w*"
TEMPLATE_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"

_MARK: Final = re.compile(
    rf"(?P<escape>\{{\{{|\}}\}})|\{{>(?P<include>[^{{}}\n]*)\}}|\{{(?P<name>{VARIABLE_NAME})(?P<then>\}}|:(?=\S))|[{{}}]"
)
_LOOKS_LIKE_DEFAULT: Final = re.compile(rf"(?<!\{{)\{{{VARIABLE_NAME}:[ \t][^{{}}\n]*\}}(?!\}})")


class TextError(ValueError):
    """A text of a template that is malformed. at: offset of the fault, in characters."""

    def __init__(self, at: int, why: str) -> None:
        super().__init__(why)
        self.at = at
        self.why = why


class TooLong(Exception):
    """What a text stands for is longer than the limit."""


class Placeholder(NamedTuple):
    """`{name}` (default None) or `{name:default}`. at: where it begins, in characters."""

    name: str
    default: tuple[Part, ...] | None
    at: int


class Include(NamedTuple):
    """`{> name}`. at: where it begins, in characters."""

    name: str
    at: int


Part: TypeAlias = str | Placeholder | Include


def parse(text: str) -> tuple[Part, ...]:
    """The parts of a text; literal text has its braces resolved. Raises TextError."""
    parts, _ = _Parser(text).parts(0, None, 0)
    return parts


def escaped(text: str) -> str:
    """A text that `parse` reads as `text` itself."""
    return text.replace("{", "{{").replace("}", "}}")


def looks_like_default(text: str) -> list[tuple[int, str]]:
    """Where `{name: text}` stands, which is literal and may have been meant as a default: offset and what stands there."""
    return [(found.start(), found.group()) for found in _LOOKS_LIKE_DEFAULT.finditer(text)]


def shown(text: str) -> str:
    """The beginning of a text in quotes, for messages."""
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…")


class _Parser:
    """One pass over a text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def parts(self, at: int, opened: re.Match[str] | None, depth: int) -> tuple[tuple[Part, ...], int]:
        """The parts from `at` on, up to the end or to the brace that closes `opened`, and the offset after them."""
        text, parts, literal = self._text, list[Part](), list[str]()
        # Braces that are open in this text: "{" literal ones, "{{" escaped ones. A literal one is closed by one brace.
        braces: list[str] = []
        while (found := _MARK.search(text, at)) is not None:
            literal.append(text[at : found.start()])
            mark, at = found.group(), found.end()
            if found["name"] is not None or found["include"] is not None:
                _flush(literal, parts)
                part, at = self._part(found, depth)
                parts.append(part)
            elif mark[0] == "{":
                braces.append(mark)
                literal.append("{")
            elif mark == "}}" and (braces[-1:] == ["{{"] or (not braces and opened is None)):
                literal.append("}")
                del braces[-1:]
            else:
                at = found.start() + 1
                if opened is not None and not braces:
                    _flush(literal, parts)
                    return tuple(parts), at
                literal.append("}")
                if braces[-1:] == ["{"]:
                    braces.pop()
        if opened is not None:
            raise TextError(opened.start(), f"{shown(opened.group())} is never closed; write {{{{ for a literal brace")
        literal.append(text[at:])
        _flush(literal, parts)
        return tuple(parts), len(text)

    def _part(self, found: re.Match[str], depth: int) -> tuple[Part, int]:
        if found["include"] is not None:
            name = found["include"].strip()
            if not re.fullmatch(TEMPLATE_NAME, name):
                why = f"{shown(name)} is no name of a template (letters, digits, -, _ and .); write {{{{> for a literal brace"
                raise TextError(found.start(), why)
            return Include(name, found.start()), found.end()
        if found["then"] == "}":
            return Placeholder(found["name"], None, found.start()), found.end()
        if depth == _DEPTH_MAX:
            raise TextError(found.start(), f"defaults are nested deeper than {_DEPTH_MAX}")
        default, after = self.parts(found.end(), found, depth + 1)
        return Placeholder(found["name"], default, found.start()), after


def _flush(literal: list[str], parts: list[Part]) -> None:
    joined = "".join(literal)
    literal.clear()
    if joined:
        parts.append(joined)


class Text(msgspec.Struct, frozen=True):
    """A parsed text and where it stands. line: of its first character; is_block: its lines are those of the file."""

    source: str
    parts: tuple[Part, ...]
    line: int
    is_block: bool = False

    def line_at(self, at: int) -> int:
        """Line of the file at an offset; of a text that YAML has rearranged the one it begins on."""
        return self.line + (self.source.count("\n", 0, at) if self.is_block else 0)

    def uses(self) -> dict[str, list[tuple[str, int]]]:
        """What each thing in the text needs, by its name as written, `{a}` or `{> a}`; "" is the text itself.

        Each is listed once, with the offset where it stands first.
        """
        needed: dict[str, dict[str, int]] = {"": {}}
        _note_uses(self.parts, "", needed)
        return {name: list(uses.items()) for name, uses in needed.items()}


def written(part: Placeholder | Include) -> str:
    """The part as a text names it, without its default."""
    return f"{{{part.name}}}" if isinstance(part, Placeholder) else f"{{> {part.name}}}"


def _note_uses(parts: tuple[Part, ...], owner: str, needed: dict[str, dict[str, int]]) -> None:
    for part in parts:
        if isinstance(part, str):
            continue
        name = written(part)
        needed[owner].setdefault(name, part.at)
        if isinstance(part, Placeholder) and part.default is not None:
            needed.setdefault(name, {})
            _note_uses(part.default, name, needed)


class Filling:
    """Texts with values put in, which are never read as templates; names without a value are gathered in `missing`.

    defaults: declared ones. included: prompts by the name of their template. Neither may lead back to itself.
    accept(name, text) is told what stands for a variable. Nothing may become longer than `limit` characters.
    """

    def __init__(
        self,
        values: Mapping[str, str],
        defaults: Mapping[str, tuple[Part, ...]],
        included: Mapping[str, tuple[Part, ...]],
        accept: Callable[[str, str], None],
        limit: int,
    ) -> None:
        self.missing: list[str] = []
        self._values = values
        self._defaults = defaults
        self._included = included
        self._accept = accept
        self._limit = limit
        # Each default and each included prompt is made once: ten that hold each other twice would be made 1,024 times.
        self._made: dict[str, str] = {}
        self._made_length = 0

    def text(self, parts: tuple[Part, ...]) -> str:
        """What `parts` stand for. Raises TooLong, and what `accept` raises."""
        pieces, length = [], 0
        for part in parts:
            piece = part if isinstance(part, str) else self._piece(part)
            length += len(piece)
            if length > self._limit:
                raise TooLong
            pieces.append(piece)
        return "".join(pieces)

    def _piece(self, part: Placeholder | Include) -> str:
        if isinstance(part, Include):
            return self._once(written(part), self._included[part.name])
        name = part.name
        if name in self._values:
            text = self._values[name]
        elif part.default is not None:
            text = self.text(part.default)
        elif name in self._defaults:
            text = self._once(written(part), self._defaults[name])
        else:
            if name not in self.missing:
                self.missing.append(name)
            return ""
        self._accept(name, text)
        return text

    def _once(self, name: str, parts: tuple[Part, ...]) -> str:
        if name not in self._made:
            made = self._made[name] = self.text(parts)
            self._made_length += len(made)
            if self._made_length > _MADE_MAX * self._limit:
                raise TooLong
        return self._made[name]
