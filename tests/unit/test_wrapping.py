"""Text in lines of so many columns, whole and while it grows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.cli.output import columns_of
from bus.cli.wrapping import Flow, wrap, wrap_hanging

# Wide, combining, blank and steering characters among plain ones.
TEXTS = st.text(st.sampled_from("ab c\n\té日́\x1b\r\u200bx"), max_size=120)


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("one two three", 7, ["one two", "three"]),
        ("one two three", 6, ["one", "two", "three"]),
        ("abcdefgh ij", 3, ["abc", "def", "gh", "ij"]),
        ("a\n\n  b c\n", 3, ["a", "", "  b", "c", ""]),
        ("日本語日本", 5, ["日本", "語日", "本"]),
        ("", 5, [""]),
        ("日", 1, ["?"]),
        ("a\r\nb\x1b[2J", 20, ["a", "b\\x1b[2J"]),
        ("\tx", 10, ["    x"]),
    ],
)
def test_lines_break_at_words(text: str, width: int, lines: list[str]) -> None:
    """Indentation and empty lines stay; a word that is too long is cut; a control character is spelt out."""
    assert wrap(text, width) == lines


@given(TEXTS, st.integers(1, 30))
def test_no_line_is_too_wide_and_nothing_but_blanks_is_lost(text: str, width: int) -> None:
    """Every character that is no blank is there, in order."""
    lines = wrap(text, width)

    assert all(columns_of(line) <= width for line in lines)
    if width > 1:
        shown = "".join("".join(lines).split())
        assert shown == "".join("".join(wrap(text, 10_000)).split())


@given(st.lists(st.tuples(TEXTS, st.integers(1, 20)), max_size=8))
def test_a_text_that_grows_reads_as_if_it_had_come_at_once(parts: list[tuple[str, int]]) -> None:
    """Also when the window changes in between."""
    flow = Flow()
    for text, width in parts:
        flow.add(text)
        flow.lines(width)

    whole = "".join(text for text, _ in parts)
    assert flow.text == whole.replace("\r\n", "\n")
    assert flow.lines(17) == wrap(whole, 17)


def test_a_wide_row_goes_on_below_its_last_column() -> None:
    """A line of columns hangs below the last one; where that leaves no room for words, four in."""
    row = "/memory    what is kept, and what of it takes part"
    assert wrap_hanging(row, 36) == ["/memory    what is kept, and what of", " " * 11 + "it takes part"]
    assert wrap_hanging(row, 20)[1] == "    kept, and what"
    assert wrap_hanging("a sentence that is wide\nshort", 12) == ["a sentence", "that is wide", "short"]
