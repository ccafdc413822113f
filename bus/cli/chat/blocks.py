"""Cuts an answer that is still coming into blocks: those that are finished, and the one that may still change.

It knows just enough markdown to say where a block ends; how one looks is `markdown`'s. A block is finished when nothing
that may follow can change it, so what was drawn of it stays drawn.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

_FENCE: Final = re.compile(r" {0,3}(`{3,}|~{3,})[ \t]*([^`]*)$")
_HEADING: Final = re.compile(r" {0,3}#{1,6}(\s|$)")
_RULE: Final = re.compile(r" {0,3}([-*_])[ \t]*(\1[ \t]*){2,}$")
_UNDERLINE: Final = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_ITEM: Final = re.compile(r" {0,3}([-*+]|\d{1,9}[.)])(\s+|$)")
_QUOTE: Final = re.compile(r" {0,3}>")

# The beginning of a mark whose meaning the next characters decide; it is shown when they are there.
_UNDECIDED: Final = re.compile(r"\s*(#{1,6}|[-*+_>|=~`]+|\d{1,3}[.)])?\s*$")

# Spaces that make a line belong to the list item above it. CommonMark asks for as many as the item's own text has, models
# write two under "1." as well.
_BELONGS: Final = 2

# Lines of a code block kept for the highlighting of those after them: enough for any string or comment that spans lines.
_CONTEXT_LINES: Final = 200


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of an answer that is drawn on its own.

    text: markdown, or with `is_code` lines of a fence without its marks. before: the lines of the same fence above them.
    has_gap: an empty line stands before it.
    """

    text: str
    is_code: bool = False
    language: str = ""
    before: str = ""
    has_gap: bool = False


class Splitter:
    """Takes pieces of text as they come, gives blocks as they are finished. Text must be free of carriage returns."""

    def __init__(self) -> None:
        self._partial: list[str] = []
        self._lines: list[str] = []
        # The open block, what stood before it, and the empty lines since the last line of text.
        self._kind = ""
        self._has_gap = False
        self._before = ""
        self._blanks = 0
        # The open fence: its mark, how far it is indented, its lines, and how many of them are handed over.
        self._fence = ""
        self._indent = 0
        self._language = ""
        self._code: list[str] = []
        self._handed = 0

    def feed(self, text: str) -> list[Block]:
        """The blocks that are finished now that `text` has come."""
        *complete, rest = text.split("\n")
        if not complete:
            self._partial.append(rest)
            return []
        complete[0] = "".join((*self._partial, complete[0]))
        self._partial = [rest]
        found: list[Block] = []
        for line in complete:
            self._take(line, found)
        self._hand_code(found)
        return found

    def finish(self) -> list[Block]:
        """What is left, as the end of the answer; nothing may be fed afterwards."""
        last = "".join(self._partial)
        found: list[Block] = []
        if last.strip():
            self._take(last, found)
        self._hand_code(found)
        self._flush(found)
        return found

    def open(self, limit: int) -> Block | None:
        """The block that may still change, for drawing; of a longer one the last `limit` characters as they stand."""
        partial = "".join(self._partial)[-limit:]
        if self._fence:
            is_mark = partial.strip() and not partial.strip().strip(self._fence[0])
            return None if is_mark or not partial else self._code_block([partial], self._code)
        if _UNDECIDED.match(partial) or (not self._is_inside(partial) and _FENCE.match(partial)):
            partial = ""
        lines = [*self._lines, *([partial] if partial else [])]
        text = "\n".join(lines).rstrip()
        if not text:
            return None
        if len(text) > limit:
            return Block(text=text[-limit:], has_gap=self._gap(self._kind))
        kind = self._kind or ("item" if _ITEM.match(text) else "text")
        return Block(text=_closed(text), has_gap=self._gap(kind))

    def _take(self, line: str, found: list[Block]) -> None:
        if self._fence:
            self._take_code(line, found)
        elif not line.strip():
            if self._kind == "item":
                self._lines.append("")
            else:
                self._flush(found)
            self._blanks += 1
        elif self._is_inside(line):
            self._append(line)
        elif fence := _FENCE.match(line):
            self._flush(found)
            self._fence, self._language = fence[1], fence[2].split()[0] if fence[2].strip() else ""
            self._indent = len(line) - len(line.lstrip())
        elif self._kind == "text" and _UNDERLINE.match(line):
            self._append(line)
            self._flush(found, after="heading")
        elif _RULE.match(line) or _HEADING.match(line):
            self._flush(found)
            self._begin("heading", line)
            self._flush(found)
        elif (item := _ITEM.match(line)) and self._may_begin(item):
            self._flush(found)
            self._begin("item", line)
        elif _QUOTE.match(line) and self._kind != "quote":
            self._flush(found)
            self._begin("quote", line)
        elif self._kind and not (self._kind == "item" and self._blanks):
            self._append(line)
        else:
            self._flush(found)
            self._begin("text", line)

    def _is_inside(self, line: str) -> bool:
        """Whether a line belongs to the list item above it by where it begins."""
        return self._kind == "item" and line[:_BELONGS].isspace() and len(line) > _BELONGS

    def _may_begin(self, item: re.Match[str]) -> bool:
        # As CommonMark has it: a year at the beginning of a line of a paragraph is no list.
        return self._kind not in ("text", "quote") or item[1] in ("-", "*", "+", "1.", "1)")

    def _begin(self, kind: str, line: str) -> None:
        self._has_gap = self._gap(kind)
        self._kind, self._lines = kind, [line]
        self._blanks = 0

    def _append(self, line: str) -> None:
        self._lines.append(line)
        self._blanks = 0

    def _flush(self, found: list[Block], after: str = "") -> None:
        """Hand over the open block, if there is one."""
        if not self._kind:
            return
        text = "\n".join(self._lines).rstrip()
        found.append(Block(text=text, has_gap=self._has_gap))
        self._before, self._kind, self._lines = after or self._kind, "", []

    def _gap(self, kind: str) -> bool:
        """Whether an empty line stands before a block of this kind that begins now, or before the open one."""
        if self._kind:
            return self._has_gap
        if not self._before:
            return False
        return self._blanks > 0 or kind != "item" or self._before not in ("item", "text")

    def _take_code(self, line: str, found: list[Block]) -> None:
        if not re.fullmatch(rf" {{0,3}}{self._fence}{self._fence[0]}*[ \t]*", line):
            self._code.append(line)
            return
        self._hand_code(found)
        self._fence, self._code, self._handed, self._blanks, self._before = "", [], 0, 0, "code"

    def _hand_code(self, found: list[Block]) -> None:
        if len(self._code) > self._handed:
            found.append(self._code_block(self._code[self._handed :], self._code[: self._handed]))
            self._code = self._code[-_CONTEXT_LINES:]
            self._handed = len(self._code)

    def _code_block(self, lines: list[str], above: list[str]) -> Block:
        """Lines of the open fence, without the indentation that the fence itself has."""
        indent = re.compile(rf" {{0,{self._indent}}}")
        return Block(
            text="\n".join(indent.sub("", line, count=1) for line in lines),
            is_code=True,
            language=self._language,
            before="\n".join(indent.sub("", line, count=1) for line in above),
            has_gap=not above and bool(self._before),
        )


def _closed(text: str) -> str:
    """An unfinished block as it will probably look: marks that are open are closed, a table's head gets its rule."""
    lines = text.split("\n")
    head = lines[0].strip()
    if (
        len(head) > 1
        and head[0] == head[-1] == "|"
        and (len(lines) == 1 or (len(lines) == 2 and not lines[1].strip("|-: ")))
    ):
        return f"{head}\n|{'---|' * (head.count('|') - 1)}"
    if "```" in text:
        return text
    if text.count("`") % 2:
        return text[:-1] if text.endswith("`") else text + "`"
    if text.count("**") % 2:
        return text[:-2] if text.endswith("**") else text + "**"
    return text
