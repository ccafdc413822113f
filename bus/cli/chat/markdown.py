"""Draws a block of an answer as lines of a terminal: markdown by markdown-it, code coloured by Pygments.

Imported when the first answer begins. It knows neither what is finished nor where on the screen the lines go.
"""

from __future__ import annotations

from functools import cache
from typing import Final, Literal

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.style import Style
from rich.syntax import ANSISyntaxTheme, Syntax
from rich.table import Table
from rich.text import Text

from bus.cli.chat.blocks import Block

# The terminal's own sixteen colours and weights alone: they are chosen to be read on its background, light or dark.
_BOLD: Final = Style(bold=True)
_DIM: Final = Style(dim=True)
_CODE: Final = Style(color="cyan")
_INLINE: Final = {"strong": _BOLD, "em": Style(italic=True), "s": Style(strike=True)}
_HEADINGS: Final = {"h1": Style(bold=True, underline=True), "h2": _BOLD, "h3": _BOLD}
_SMALL_HEADING: Final = Style(bold=True, italic=True)
_COLOURS: Final = ANSISyntaxTheme(
    {
        ("Comment",): Style(dim=True, italic=True),
        ("Keyword",): Style(color="magenta"),
        ("Literal", "String"): Style(color="green"),
        ("Literal", "Number"): Style(color="cyan"),
        ("Name", "Function"): _BOLD,
        ("Name", "Class"): _BOLD,
        ("Name", "Decorator"): Style(color="magenta"),
    }
)

# Columns before a line of code.
_INDENT: Final = 2

# A longer block is not read as markdown, which would take seconds. Characters.
_PARSED: Final = 65_536

# Code with a longer line is not coloured: some lexers take time with the square of it, and nothing interrupts them.
# 8,000 brackets in a line of a makefile took 1.7 s. Characters.
_COLOURED_LINE: Final = 500

# Columns below which a table is drawn as one line a cell.
_COLUMN: Final = 6

# Lists and quotes that would leave less for their text stand without their marks and indentation, columns.
_INNER: Final = 4

# Longest rule, columns.
_RULE: Final = 40


def draw(block: Block, width: int, console: Console) -> list[Text]:
    """The lines of a block, none wider than `width` columns, without the empty line that may stand before it."""
    lines = _drawn(block, width, console)
    for line in lines:
        line.rstrip()
    return lines


def _drawn(block: Block, width: int, console: Console) -> list[Text]:
    if block.is_code:
        return _code(block.text, block.language, width, console, before=block.before)
    if len(block.text) > _PARSED:
        return list(Text(block.text).wrap(console, width, overflow="fold"))
    return _blocks(SyntaxTreeNode(_parser().parse(block.text)), width, console)


@cache
def _parser() -> MarkdownIt:
    # Tags are shown as they were written: a model that writes one means the reader to see it.
    return MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])


def _blocks(parent: SyntaxTreeNode, width: int, console: Console, *, is_tight: bool = False) -> list[Text]:
    lines: list[Text] = []
    for node in parent.children:
        drawn = _block(node, max(width, 1), console)
        if lines and drawn and not is_tight:
            lines.append(Text())
        lines += drawn
    return lines


def _block(node: SyntaxTreeNode, width: int, console: Console) -> list[Text]:
    match node.type:
        case "heading":
            return _wrapped(_inline(node, _HEADINGS.get(node.tag, _SMALL_HEADING)), width, console)
        case "bullet_list" | "ordered_list":
            return _list(node, width, console)
        case "blockquote":
            mark = "│ " if width >= _INNER + 2 else ""
            quoted = _blocks(node, width - len(mark), console)
            return [Text.assemble((mark, _DIM), line) for line in quoted]
        case "fence" | "code_block":
            return _code(node.content.rstrip("\n"), node.info.split()[0] if node.info.strip() else "", width, console)
        case "hr":
            return [Text("─" * min(width, _RULE), _DIM)]
        case "table":
            return _table(node, width, console)
        case _:
            return _wrapped(_inline(node, Style.null()), width, console)


def _list(node: SyntaxTreeNode, width: int, console: Console) -> list[Text]:
    lines: list[Text] = []
    number = int(node.attrs.get("start", 1))
    is_tight = all(child.hidden for item in node.children for child in item.children if child.type == "paragraph")
    for item in node.children:
        mark = "• " if node.type == "bullet_list" else f"{number}. "
        number += 1
        indent = len(mark) if width >= _INNER + len(mark) else 0
        body = _blocks(item, width - indent, console, is_tight=is_tight) or [Text()]
        if lines and not is_tight:
            lines.append(Text())
        for at, line in enumerate(body):
            lead = mark if at == 0 else " " * indent
            lines.append(Text.assemble((lead, _DIM if at == 0 else ""), line) if indent else line)
    return lines


def _inline(node: SyntaxTreeNode, style: Style) -> Text:
    text = Text(style=style)
    for child in node.children:
        _append(text, child, Style.null())
    return text


def _append(text: Text, node: SyntaxTreeNode, style: Style) -> None:
    match node.type:
        case "text" | "text_special":
            text.append(node.content, style)
        case "code_inline":
            text.append(node.content, style + _CODE)
        case "softbreak" | "hardbreak":
            # A model that ends a line means it to end there.
            text.append("\n")
        case "image":
            text.append(f"[image: {node.content}] ", style)
            text.append(f"({node.attrs.get('src', '')})", style + _DIM)
        case "link":
            before = len(text)
            for child in node.children:
                _append(text, child, style + Style(underline=True))
            target = str(node.attrs.get("href", ""))
            if text.plain[before:] != target:
                text.append(f" ({target})", style + _DIM)
        case "inline":
            for child in node.children:
                _append(text, child, style)
        case kind:
            for child in node.children:
                _append(text, child, style + _INLINE.get(kind, Style.null()))


def _wrapped(text: Text, width: int, console: Console) -> list[Text]:
    return list(text.wrap(console, width, overflow="fold"))


def _table(node: SyntaxTreeNode, width: int, console: Console) -> list[Text]:
    rows = [list(row.children) for part in node.children for row in part.children]
    cells = [[_inline(cell, _BOLD if at == 0 else Style.null()) for cell in row] for at, row in enumerate(rows)]
    head, body = cells[0], cells[1:]
    if width < len(head) * (_COLUMN + 2):
        return _stacked(head, body, width, console)
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, border_style=_DIM)
    for cell, title in zip(rows[0], head, strict=True):
        table.add_column(title, justify=_justified(str(cell.attrs.get("style", ""))), overflow="fold")
    for row in body:
        table.add_row(*row)
    drawn = console.render_lines(table, console.options.update(width=width), pad=False)
    return [Text.assemble(*((segment.text, segment.style or "") for segment in line)) for line in drawn]


def _justified(style: str) -> Literal["left", "center", "right"]:
    return "right" if "right" in style else "center" if "center" in style else "left"


def _stacked(head: list[Text], body: list[list[Text]], width: int, console: Console) -> list[Text]:
    """A table in a window too narrow for its columns: each cell with the name of its column."""
    lines: list[Text] = []
    for row in body or [head]:
        if lines:
            lines.append(Text())
        for title, cell in zip(head, row, strict=False):
            lines += _wrapped(title if row is head else Text.assemble(title, ": ", cell), width, console)
    return lines


def _code(code: str, language: str, width: int, console: Console, *, before: str = "") -> list[Text]:
    """Coloured lines, indented; `before` is read for what it leaves open, a string over several lines, and not drawn."""
    indent = _INDENT if width > 4 * _INDENT else 0
    lines = list(Text(code).split("\n", allow_blank=True))
    above = f"{before}\n" if before else ""
    if language and _may_be_coloured(above + code):
        coloured = _syntax(language).highlight(above + code).split("\n", allow_blank=True)
        found = list(coloured[above.count("\n") :][: len(lines)])
        # What is drawn is what was written, whatever a lexer makes of it.
        if "\n".join(line.plain for line in found) == code:
            lines = found
    drawn: list[Text] = []
    for line in lines:
        line.expand_tabs(4)
        folded = _folded(line, max(width - indent, 1))
        drawn += [Text.assemble(" " * indent, part) for part in folded]
    return drawn


def _may_be_coloured(code: str) -> bool:
    return len(code) <= _PARSED and max(map(len, code.split("\n"))) <= _COLOURED_LINE


def _folded(line: Text, width: int) -> list[Text]:
    """A line of code cut at the window's edge, not between words: every character keeps its place."""
    cuts, used = [], 0
    for at, character in enumerate(line.plain):
        columns = cell_len(character)
        if used + columns > width:
            cuts.append(at)
            used = 0
        used += columns
    return list(line.divide(cuts)) if cuts else [line]


@cache
def _syntax(language: str) -> Syntax:
    return Syntax("", language, theme=_COLOURS)
