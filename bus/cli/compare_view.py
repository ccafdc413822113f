"""What a comparison looks like while it is made and until one answer is picked: keys and parts in, frames out.

Knows neither terminal nor bus: `bus.cli.compare` feeds it and draws what it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from bus.cli.output import columns_of, fit, milliseconds, number, one_line, printable
from bus.cli.screen import Cell, Pasted, Row, Style, line
from bus.cli.wrapping import Flow, wrap
from schemas.bodies.model_trials import CompareAnswer, ComparePart, Comparison

# Whoever says that no answer was better says this.
TIE: Final = "tie"

# A narrower column breaks most lines after three words; models that do not fit side by side stand below each other.
_COLUMN_MIN: Final = 24

# Head, two lines of text and figures: what a model takes at least where several stand below each other.
_CELL_LINES_MIN: Final = 4

# A cell this high has room for figures on two lines.
_ROOMY_LINES: Final = 8

_NOTE_MAX: Final = 4_096

# What stands between two columns.
_BETWEEN: Final = " │ "


class Pick(NamedTuple):
    """The person's word: display number of the best from 0 on, or None for a tie."""

    column: int | None


Intent = Pick | Literal["leave"] | None


class Column:
    """One model's answer so far. top: first line shown, None follows the end."""

    def __init__(self, index: int, model: str) -> None:
        self.index = index
        self.model = model
        self.flow = Flow()
        self.pieces = 0
        self.first_s: float | None = None
        self.last_s = 0.0
        self.answer: CompareAnswer | None = None
        self.top: int | None = None
        # First line of the last frame, from where scrolling goes on.
        self.drawn_top = 0

    @property
    def state(self) -> str:
        """waiting, writing, done or failed."""
        if self.answer is not None:
            return "failed" if self.answer.error else "done"
        return "writing" if self.pieces else "waiting"

    def end(self, answer: CompareAnswer) -> None:
        """What the service says of the whole answer; its text counts where it is not the one that streamed."""
        if answer.text and answer.text != self.flow.text:
            self.flow = Flow(answer.text)
        self.answer = answer

    def figures(self, now_s: float) -> list[str]:
        """State, tokens, rate and time to the first token. What is not told yet is counted here and marked with a ~."""
        answer = self.answer
        if answer is None:
            if self.first_s is None:
                return [f"waiting {now_s:.0f} s"]
            writing_s = self.last_s - self.first_s
            rate = [f"~{(self.pieces - 1) / writing_s:,.1f} tok/s"] if writing_s > 0 else []
            return ["writing", f"~{self.pieces:,} tok", *rate, f"first {milliseconds(self.first_s)} ms"]
        ended = "failed" if answer.error else "done" if answer.finish_reason == "stop" else answer.finish_reason
        figures = [ended or "done"]
        if answer.usage is not None:
            figures.append(f"{number(answer.usage.completion_tokens)} tok")
        if answer.timings is not None:
            figures.append(f"{answer.timings.tokens_per_s:,.1f} tok/s")
            figures.append(f"first {milliseconds(answer.timings.first_token_s)} ms")
        return figures


class Board:
    """All columns, what is picked and noted, and where one looks. order: which model stands in each column.

    question: what was asked. Times are seconds since the question was sent.
    """

    def __init__(
        self, question: str, models: Sequence[str], *, order: Sequence[int] | None = None, is_blind: bool = False
    ) -> None:
        self.columns = [Column(index, models[index]) for index in order or range(len(models))]
        self._by_index = {column.index: column for column in self.columns}
        self._question = one_line(question, 1_000)
        self._is_blind = is_blind
        self._focus = 0
        self._is_zoomed = False
        self._editing: str | None = None
        # Lines that one page of the column in focus showed last.
        self._page = 1
        self._is_over = False
        self._now_s = 0.0
        self.note = ""
        self.said = ""

    # What comes

    def part(self, part: ComparePart, now_s: float) -> None:
        """A piece of an answer, or its end."""
        column = self._by_index.get(part.index)
        if column is None:
            return
        if part.text:
            if column.first_s is None:
                column.first_s = now_s
            column.last_s = now_s
            column.pieces += 1
            column.flow.add(part.text)
        if part.ended is not None:
            column.end(part.ended)

    def ended(self, comparison: Comparison) -> None:
        """Every answer is there, and the whole is kept."""
        for index, answer in enumerate(comparison.answers):
            if index in self._by_index:
                self._by_index[index].end(answer)
        self._is_over = True
        self.said = ""

    def name(self, column: Column) -> str:
        """What a column may be called now."""
        return "" if self._is_blind else printable(column.model)

    # Keys

    def press(self, key: str) -> Intent:
        """What a key asks for; everything that is about looking is done here."""
        self.said = ""
        if key in ("eof", "ctrl-c"):
            return "leave"
        if self._editing is not None:
            self._edit(key)
            return None
        if isinstance(key, Pasted):
            return None
        if key in ("q", "esc", "ctrl-d"):
            if key == "esc" and self._is_zoomed:
                self._is_zoomed = False
                return None
            return "leave"
        if key == "n":
            self._editing = self.note
        elif key == "t" or (key.isdecimal() and key.isascii()):
            return self._pick(key)
        else:
            self._look(key)
        return None

    def _pick(self, key: str) -> Intent:
        if not self._is_over:
            self.said = "still answering: pick once every answer is there"
            return None
        if key == "t":
            return Pick(None)
        chosen = int(key) - 1
        if not 0 <= chosen < len(self.columns):
            self.said = f"there is no answer {key}: 1 to {len(self.columns)}, or t for a tie"
        elif self.columns[chosen].state == "failed":
            self.said = f"answer {key} failed: it cannot be the best"
        else:
            return Pick(chosen)
        return None

    def _edit(self, key: str) -> None:
        assert self._editing is not None
        match key:
            case Pasted():
                self._editing = (self._editing + " ".join(key.split()))[:_NOTE_MAX]
            case "enter":
                self.note, self._editing = self._editing.strip(), None
            case "esc":
                self._editing = None
            case "backspace":
                self._editing = self._editing[:-1]
            case "ctrl-u":
                self._editing = ""
            case _ if len(key) == 1:
                self._editing = (self._editing + key)[:_NOTE_MAX]

    def _look(self, key: str) -> None:
        column = self.columns[self._focus]
        match key:
            case "right" | "tab":
                self._focus = (self._focus + 1) % len(self.columns)
            case "left" | "back-tab":
                self._focus = (self._focus - 1) % len(self.columns)
            case "enter" | "z":
                self._is_zoomed = not self._is_zoomed
            case "home" | "g":
                column.top = 0
            case "end" | "G":
                column.top = None
            case "up" | "k":
                self._scroll(column, -1)
            case "down" | "j":
                self._scroll(column, 1)
            case "page-up" | "b":
                self._scroll(column, -self._page)
            case "page-down" | " ":
                self._scroll(column, self._page)

    def _scroll(self, column: Column, by: int) -> None:
        # Beyond the end means the end: the next frame, which knows how many lines there are, sees to that.
        column.top = max(column.drawn_top + by, 0)

    # Frames

    def frame(self, width: int, height: int, now_s: float) -> tuple[list[Row], tuple[int, int] | None]:
        """The rows, none wider than `width` and no more than `height`, and where the cursor stands, (column, line)."""
        self._now_s = now_s
        foot, cursor_at = self._foot(width)
        if height <= 1:
            return [line(foot)], None if cursor_at is None else (cursor_at, 0)
        head = line(fit(self._head(), width), "bold")
        body = self._body(width, height - 2)
        rows: list[Row] = [head, *body, *([()] * (height - 2 - len(body))), line(foot)]
        return rows, None if cursor_at is None else (cursor_at, height - 1)

    def _head(self) -> str:
        done = sum(column.answer is not None for column in self.columns)
        count = len(self.columns)
        state = f"{count} answers" if self._is_over else f"{done} of {count} done, {self._now_s:.0f} s"
        return f"{state} · {self._question}"

    def _foot(self, width: int) -> tuple[str, int | None]:
        """The last line, and the cursor's column while a note is written."""
        if self._editing is not None:
            room = max(width - 7, 1)
            shown = _tail(printable(self._editing), room)
            text = fit(f"note: {shown}", width)
            return text, min(columns_of(text), width - 1)
        if self.said:
            return fit(f"! {self.said}", width), None
        count = len(self.columns)
        if self._is_over:
            hints = [f"1-{count} best", "t tie", "q none", "n note" if not self.note else "n note ✓"]
        else:
            hints = ["Ctrl-C stops", "n note"]
        looks = ["↑↓ PgUp PgDn scroll", "←→ answer", "Enter zoom"]
        kept = ""
        for hint in [*hints, *looks]:
            longer = f"{kept} · {hint}" if kept else hint
            if columns_of(longer) > width:
                break
            kept = longer
        return kept or fit(hints[0], width), None

    def _body(self, width: int, height: int) -> list[Row]:
        if height < 1:
            return []
        if self._is_zoomed:
            return [line(text, style) for text, style in self._cell(self._focus, width, height)]
        across, below = layout(len(self.columns), width, height)
        lines_each = height // below
        # Whole screens of rows; the last one is filled with rows of the one before it.
        all_rows = -(-len(self.columns) // across)
        first_row = min(self._focus // across // below * below, all_rows - below)
        rows: list[Row] = []
        for band in range(below):
            start = (first_row + band) * across
            shown = range(start, min(start + across, len(self.columns)))
            # What is left over goes to the last.
            high = lines_each if band < below - 1 else height - lines_each * (below - 1)
            if shown:
                rows += self._band(shown, across, width, high)
        return rows

    def _band(self, shown: range, across: int, width: int, height: int) -> list[Row]:
        """Cells side by side, each `across`th of the width and a line between them."""
        gap = columns_of(_BETWEEN)
        each = (width - gap * (across - 1)) // across
        widths = [each] * (across - 1) + [width - (each + gap) * (across - 1)]
        cells = [self._cell(number, widths[place], height) for place, number in enumerate(shown)]
        rows: list[Row] = []
        for at in range(height):
            row: list[Cell] = []
            for place, cell in enumerate(cells):
                left = place * (each + gap)
                if place:
                    row.append(Cell(_BETWEEN, "dim", left - gap))
                text, style = cell[at]
                if text:
                    row.append(Cell(text, style, left))
            rows.append(tuple(row))
        return rows

    def _cell(self, number: int, width: int, height: int) -> list[tuple[str, Style]]:
        """A model's head, text and figures: exactly `height` lines of at most `width` columns."""
        column = self.columns[number]
        figures = self._figures(column, width, height)
        lines = column.flow.lines(width)
        if not lines[-1]:
            lines = lines[:-1]
        if column.answer is not None and column.answer.error:
            lines += [*([""] if lines else []), *wrap(f"failed: {self._error(column)}", width)]
        room = max(height - 1 - len(figures), 0)
        top = self._top(column, len(lines), room)
        if number == self._focus:
            self._page = max(room - 1, 1)
        shown = lines[top : top + room]
        name = self.name(column)
        head = f"{number + 1}{' ' + name if name else ''}"
        if height == 1:
            head = f"{head}: {column.state}"
        elif len(lines) > room and room:
            head = _justified(head, f"{top + 1}-{top + len(shown)}/{len(lines)}", width)
        is_focus = number == self._focus and len(self.columns) > 1
        cell: list[tuple[str, Style]] = [
            (fit(head, width), "reverse" if is_focus else "bold"),
            *((text, "") for text in shown),
            *(("", "") for _ in range(room - len(shown))),
            *((text, "dim") for text in figures),
        ]
        return cell[:height]

    def _error(self, column: Column) -> str:
        assert column.answer is not None
        error = column.answer.error.strip()
        return error.replace(column.model, "this model") if self._is_blind else error

    def _figures(self, column: Column, width: int, height: int) -> list[str]:
        if height < 2:
            return []
        most = 2 if height >= _ROOMY_LINES else 1
        lines: list[str] = []
        for figure in column.figures(self._now_s):
            if lines and columns_of(f"{lines[-1]} · {figure}") <= width:
                lines[-1] += f" · {figure}"
            elif len(lines) < most:
                lines.append(fit(figure, width))
        # Those of all columns begin on the same line.
        return lines + [""] * (most - len(lines))

    def _top(self, column: Column, count: int, room: int) -> int:
        """The first line shown. Scrolled down to the end, a column follows it again."""
        last = max(count - room, 0)
        if column.top is not None and column.top >= last:
            column.top = None
        column.drawn_top = last if column.top is None else column.top
        return column.drawn_top


def layout(count: int, width: int, height: int) -> tuple[int, int]:
    """How many cells stand side by side, and how many rows of them are in view at once."""
    gap = columns_of(_BETWEEN)
    across = max(1, min(count, (width + gap) // (_COLUMN_MIN + gap)))
    rows = -(-count // across)
    across = -(-count // rows)
    return across, max(1, min(rows, height // _CELL_LINES_MIN))


def _tail(text: str, width: int) -> str:
    """The end of a text that has room in `width` columns."""
    while columns_of(text) > width:
        text = text[1:]
    return text


def _justified(left: str, right: str, width: int) -> str:
    """Both at their ends of a line; the left one alone where they do not fit."""
    gap = width - columns_of(left) - columns_of(right)
    return f"{left}{' ' * gap}{right}" if gap >= 1 else left
