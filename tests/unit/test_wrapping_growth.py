"""A text that grows is shown as the whole text would be, and a long paragraph is not made anew for each piece."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.cli import wrapping
from bus.cli.output import one_line, printable
from bus.cli.wrapping import Flow, wrap

LETTERS = st.text(alphabet="ab  漢e\u0301\t\n\r\x1b\x9b\u202e-", max_size=12)


@pytest.fixture(autouse=True)
def _settles_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """With few lines, so that short texts show it."""
    monkeypatch.setattr(wrapping, "_SETTLED_LINES", 2)


@given(st.lists(LETTERS, max_size=14), st.integers(1, 9), st.integers(1, 9))
def test_pieces_make_the_lines_of_the_whole(pieces: list[str], width: int, other: int) -> None:
    """Looked at after each piece, and at another width in between."""
    flow = Flow()
    for number, piece in enumerate(pieces):
        flow.add(piece)
        if number % 5 == 4:
            flow.lines(other)
        whole = Flow()
        for each in pieces[: number + 1]:
            whole.add(each)
        assert flow.lines(width) == whole.lines(width)
        if "\r" not in whole.text:
            assert flow.lines(width) == wrap(whole.text, width)


def test_a_tab_counts_from_the_beginning_of_its_paragraph() -> None:
    """Also where the lines before it had settled."""
    flow = Flow("abc de fgh ij klm")
    flow.lines(3)
    flow.add("n\to")
    assert flow.lines(3) == wrap("abc de fgh ij klmn\to", 3)
    assert flow.lines(9) == wrap("abc de fgh ij klmn\to", 9)


def test_a_long_paragraph_is_wrapped_at_its_end_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred kilobytes without a line break are not gone through for one more word."""
    flow = Flow("word " * 20_000)
    flow.lines(40)
    gone_through: list[int] = []

    def watched(text: str, width: int) -> list[str]:
        gone_through.append(len(text))
        return wrap(text, width)

    monkeypatch.setattr(wrapping, "wrap", watched)
    flow.add("more ")
    assert flow.lines(40)[-1].endswith("more")
    assert sum(gone_through) < 200


@given(st.text(alphabet="a \n\x1b\x9b漢", max_size=40), st.integers(2, 30))
def test_one_line_is_the_beginning_of_the_whole_line(text: str, limit: int) -> None:
    """What is not shown need not be spelt out first."""
    whole = printable(" ".join(text.split()))
    assert one_line(text, limit) == (whole if len(whole) <= limit else whole[: limit - 1] + "…")
