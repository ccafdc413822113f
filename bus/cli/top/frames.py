"""Frames of `olympus top`: the board and a window's size in, rows out. Asks nothing and changes only where one looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bus.cli.output import columns_of, duration, fit, number, table
from bus.cli.screen import Cell, Row, Style, line
from bus.cli.top.board import Board
from bus.cli.top.details import detail_lines
from bus.cli.top.looking import ERRORS_OVER_S, Rates, Sample
from bus.cli.top.tables import VIEWS, Entry, View, overview
from bus.cli.wrapping import wrap

# Below this many lines there is no room for the line of views.
_TABS_LINES: Final = 8

# Below this many lines of its own the overview begins with the services.
_BRIEF_LINES: Final = 12

# A column that is cut to fewer columns says nothing.
_CUT_MIN: Final = 8

_HELP: Final = """\
1-5, Tab, left and right: another view
up, down, PgUp, PgDn, Home, End: another row
Enter: all that is known of it, and back
/: only rows with a text in them; Esc shows all
s: sort by the next column; r: the other way round
Space: stand still, and go on
models: l load, u unload, k pin or unpin
jobs: x stop
errors: a acknowledge
q: end

What changes something is asked once more before it is done."""

_ACTIONS: Final[dict[View, tuple[str, ...]]] = {
    "overview": (),
    "services": ("Enter more",),
    "models": ("l load", "u unload", "k pin", "Enter more"),
    "jobs": ("x stop", "Enter more"),
    "errors": ("a acknowledge", "Enter more"),
}


def frame(board: Board, width: int, height: int, now: float) -> tuple[list[Row], tuple[int, int] | None]:
    """Rows, none wider than `width` and no more than `height`, and the cursor, (column, line). now: seconds, monotonic."""
    foot, cursor_at = _foot(board, width)
    if height < 3:
        return [line(fit(_head(board, now, width), width), "bold"), line(foot)][
            -max(height, 0) :
        ] if height > 0 else [], None
    has_tabs = height >= _TABS_LINES
    rows: list[Row] = [
        line(fit(_head(board, now, width), width), "reverse" if board.away_since is not None else "bold")
    ]
    if has_tabs:
        rows.append(_tabs(board.view, width))
    room = height - len(rows) - 1
    body = _body(board, width, room)[:room]
    rows += [*body, *([()] * (room - len(body))), line(foot, "reverse" if board.asked is not None else "dim")]
    return rows, None if cursor_at is None else (cursor_at, height - 1)


def overview_lines(now: Sample, rate: Rates | None, width: int | None, *, is_brief: bool = False) -> list[str]:
    """The overview, whole; no line wider than `width`, None for as wide as they are. is_brief: above the tables only what is wrong."""
    lines, sections = overview(now, rate)
    shown = [each for each in lines if each.startswith("! ")] if is_brief else lines
    for section in sections:
        shown += [*([""] if shown else []), *tabulated(section.header, section.rows, width)]
    return [fit(each, width) for each in shown]


def tabulated(header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """A table of as many of the columns as the window has room for, the first ones first."""
    if width is None:
        return table(header, rows)
    first = max(_CUT_MIN, width * 3 // 5)
    rows = [(fit(row[0], first), *row[1:]) for row in rows]
    used = kept = 0
    for cells in zip(header, *rows, strict=True):
        wide, room = max(map(columns_of, cells)), width - used
        # Half a number is a wrong one; half a text is still one.
        if kept and wide > room and (room < _CUT_MIN or not _is_text(cells)):
            break
        used += wide + 2
        kept += 1
        if wide > room:
            break
    return [fit(each, width) for each in table(header[:kept], [row[:kept] for row in rows])]


def _is_text(cells: Sequence[str]) -> bool:
    return any(each.strip("-0123456789.,%/ ") for each in cells[1:])


# Head and foot --------------------------------------------------------------------------------------------------------


def _head(board: Board, now: float, width: int) -> str:
    """What matters most, as much of it as fits."""
    if board.away_since is not None:
        return f"! no broker for {duration(max(now - board.away_since, 0))}, asking again: {board.away_why}"
    sample = board.sample
    if sample is None:
        return "olympus · asking ..."
    parts = ["olympus"]
    if board.is_paused:
        parts += ["paused", "Space goes on"]
    if board.rate is not None:
        parts.append(f"{number(board.rate.requests)} req/s")
    if sample.stats.queued:
        parts.append(f"{number(sample.stats.queued)} queued")
    if sample.errors is not None:
        parts.append(f"{sample.errors.count / (ERRORS_OVER_S / 60):.2g} errors a minute")
    parts.append(f"up {duration(sample.stats.uptime_s)}")
    return _as_many(parts, width)


def _as_many(parts: Sequence[str], width: int) -> str:
    """The parts that fit, the first ones first."""
    shown = fit(parts[0], width)
    for part in parts[1:]:
        longer = f"{shown} · {part}"
        if columns_of(longer) > width:
            break
        shown = longer
    return shown


def _tabs(view: View, width: int) -> Row:
    """All views with their keys, or where they do not fit the one that is shown and its neighbours' digits."""
    for shown in (VIEWS, (view,), ()):
        cells: list[Cell] = []
        at = 0
        for place, name in enumerate(VIEWS, 1):
            text = f"{place} {name}" if name in shown else str(place)
            cells.append(Cell(text, "reverse" if name == view else "", at))
            at += columns_of(text) + 2
        if at - 2 <= width:
            return tuple(cells)
    return line(fit(view, width), "reverse")


def _foot(board: Board, width: int) -> tuple[str, int | None]:
    """The last line, and the cursor's column while a filter is written."""
    if board.is_filtering:
        text = fit(f"/{board.place.wanted}", width)
        return text, min(columns_of(text), width - 1)
    if board.asked is not None:
        # The answer must be seen, whatever the question's length.
        return f"{fit(board.asked.question, max(width - 6, 1))} [y/n]"[-width:] if width >= 7 else fit(
            "y/n?", width
        ), None
    if board.said:
        return fit(board.said, width), None
    if board.is_help:
        return _as_many(["any key goes back", "arrows scroll"], width), None
    hints = ["q end", "? help"]
    if board.is_detail:
        hints = ["Esc back", *hints]
    place = board.place
    if place.wanted:
        hints = [f"/{place.wanted}", *hints]
    hints += _ACTIONS[board.view]
    if board.view != "overview":
        hints += ["/ filter", "s sort"]
    hints.append("Space pause")
    return _as_many(hints, width), None


# Body -----------------------------------------------------------------------------------------------------------------


def _body(board: Board, width: int, room: int) -> list[Row]:
    if board.is_help:
        lines = wrap(_HELP, width)
        board.help_top = max(min(board.help_top, len(lines) - room), 0)
        board.page = max(room - 1, 1)
        return _pages(lines, board.help_top, room, width)
    if board.sample is None:
        return []
    if board.view == "overview":
        lines = overview_lines(board.sample, board.rate, width, is_brief=room < _BRIEF_LINES)
        place = board.place
        place.top = max(min(place.top, len(lines) - room), 0)
        board.page = max(room - 1, 1)
        return _pages(lines, place.top, room, width)
    if board.is_detail:
        return _detail(board, width, room)
    return _list(board, width, room)


def _pages(lines: list[str], top: int, room: int, width: int) -> list[Row]:
    """Lines from `top` on; the last one says how many more there are."""
    shown = [line(text, _style(text)) for text in lines[top : top + room]]
    hidden = len(lines) - top - room
    if hidden > 0 and room > 1:
        shown[-1] = line(fit(f"… {hidden + 1} more lines: down, PgDn", width), "dim")
    return shown


def _style(text: str) -> Style:
    """Headers of tables and what is wrong stand out."""
    return "bold" if text.startswith("! ") or (text.isupper() and "  " in text) else ""


def _detail(board: Board, width: int, room: int) -> list[Row]:
    assert board.sample is not None
    lines = [
        each
        for text in detail_lines(board.view, board.place.key, board.sample, board.whole)
        for each in wrap(text, width)
    ]
    board.detail_top = max(min(board.detail_top, len(lines) - room), 0)
    board.page = max(room - 1, 1)
    return _pages(lines, board.detail_top, room, width)


def _list(board: Board, width: int, room: int) -> list[Row]:
    """What stands above, as far as it takes no more than a third, then the table around the selected row."""
    found = board.listing()
    assert found is not None
    place = board.place
    entries = board.entries()
    selected = board.selected(entries)
    rows = [line(fit(text, width), _style(text)) for text in found.summary[: room // 3]]
    if not entries:
        text = f"nothing has {place.wanted!r} in it" if place.wanted and found.entries else found.empty
        return [*rows, *(line(each) for each in wrap(text, width))]
    header = _marked(found.header, place.sort, is_reversed=place.is_reversed)
    lines = tabulated(header, [entry.cells for entry in entries], width)
    has_header = room - len(rows) > 1
    if has_header:
        rows.append(line(lines[0], "bold"))
    place.top = _window(place.top, selected, len(entries), room - len(rows))
    board.page = max(room - len(rows) - 1, 1)
    shown = range(place.top, min(place.top + room - len(rows), len(entries)))
    return [*rows, *(_row(entries[index], lines[index + 1], index == selected, width) for index in shown)]


def _row(entry: Entry, text: str, is_selected: bool, width: int) -> Row:
    if is_selected:
        return line(text + " " * (width - columns_of(text)), "reverse")
    return line(text, "dim" if entry.below else "")


def _marked(header: tuple[str, ...], sort: int | None, *, is_reversed: bool) -> tuple[str, ...]:
    """The header with a mark at what is sorted by."""
    if sort is None:
        return header
    return tuple(f"{name}{'^' if is_reversed else 'v'}" if place == sort else name for place, name in enumerate(header))


def _window(top: int, selected: int, count: int, room: int) -> int:
    """The first row shown: as before where the selected row is in view with that, else as little moved as can be."""
    room = max(room, 1)
    top = min(max(top, selected - room + 1), selected)
    return max(min(top, count - room), 0)
