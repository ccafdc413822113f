"""The board of a comparison: parts and keys in, frames and picks out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.cli.compare import comparison_lines, picked_line
from bus.cli.compare_view import Board, Pick, layout
from bus.cli.output import columns_of
from bus.cli.screen import Pasted, plain
from schemas.bodies.model import Timings, Usage
from schemas.bodies.model_trials import CompareAnswer, ComparePart, Comparison


def answer(model: str, text: str = "yes", **more: Any) -> CompareAnswer:
    """A whole answer with round figures."""
    plain_figures = {
        "usage": Usage(prompt_tokens=3, completion_tokens=12),
        "timings": Timings(prompt_s=0.1, generate_s=0.2, first_token_s=0.02, tokens_per_s=45.25),
        "finish_reason": "stop",
    }
    return CompareAnswer(model=model, text=text, **{**plain_figures, **more})


def failed(model: str, error: str) -> CompareAnswer:
    """An answer that did not come."""
    return CompareAnswer(model=model, error=error)


def board_of(*answers: CompareAnswer, question: str = "What is 2 + 2?", **more: Any) -> Board:
    """A board on which every answer is there."""
    board = Board(question, [each.model for each in answers], **more)
    board.ended(Comparison(comparison_id="c", answers=list(answers)))
    return board


def shown(board: Board, width: int = 80, height: int = 12) -> list[str]:
    """A frame as text."""
    return [plain(row).rstrip() for row in board.frame(width, height, 3.0)[0]]


def test_answers_stand_side_by_side_with_their_figures_below() -> None:
    """Each under its number and name; the figures of all begin on one line."""
    lines = shown(board_of(answer("small", "four, as ever"), answer("large", "It is 4.")), 80, 9)

    assert lines[0] == "2 answers · What is 2 + 2?"
    assert lines[1].split() == ["1", "small", "│", "2", "large"]
    assert lines[2].split(" │ ")[0].strip() == "four, as ever"
    assert lines[-2].count("done · 12 tok · 45.2 tok/s") + lines[-3].count("done · 12 tok · 45.2 tok/s") == 2
    assert lines[-1].startswith("1-2 best · t tie · q none · n note")


def test_while_it_streams_the_end_of_a_long_answer_is_in_view() -> None:
    """The figures so far are counted here and marked as such."""
    board = Board("q", ["a", "b"])
    for number in range(100):
        board.part(ComparePart(index=0, model="a", text=f"line {number}\n"), 1.0 + number / 10)

    lines = shown(board)

    assert any(line.startswith("line 99") for line in lines)
    assert not any(line.startswith("line 0 ") for line in lines)
    assert "~100 tok" in "".join(lines)
    assert "waiting 3 s" in "".join(lines)
    assert lines[0].startswith("0 of 2 done, 3 s")


def test_a_model_that_ends_or_fails_is_seen_at_once_and_no_other_is_disturbed() -> None:
    """The reason stands in its own column, below what had come of it."""
    board = Board("q", ["a", "b", "c"])
    board.part(ComparePart(index=1, model="b", text="half"), 1.0)
    board.part(ComparePart(index=1, model="b", text="", ended=failed("b", "internal: \x1b[31mit fell over")), 1.5)
    board.part(ComparePart(index=2, model="c", text="all"), 1.0)
    board.part(ComparePart(index=2, model="c", text="", ended=answer("c", "")), 2.0)

    text = "\n".join(shown(board))

    assert "2 of 3 done" in text
    assert "half" in text
    assert "failed: internal" in text
    assert "\x1b" not in text
    assert "12 tok" in text
    assert [column.state for column in board.columns] == ["waiting", "failed", "done"]


def test_what_was_scrolled_up_stays_while_more_comes_and_the_end_follows_again() -> None:
    """Up leaves the end, End comes back to it."""
    board = Board("q", ["a", "b"])
    board.part(ComparePart(index=0, model="a", text="".join(f"line {n}\n" for n in range(50))), 1.0)
    shown(board)
    board.press("page-up")
    before = shown(board)[2:9]
    board.part(ComparePart(index=0, model="a", text="more\nand more\n"), 2.0)

    assert shown(board)[2:9] == before
    board.press("home")
    assert shown(board)[2].startswith("line 0")
    board.press("end")
    assert any(line.startswith("and more") for line in shown(board))
    for _ in range(3):
        board.press("down")
    assert any(line.startswith("and more") for line in shown(board))


def test_one_of_those_that_answered_can_be_picked_once_all_is_there() -> None:
    """Before that, and for one that failed or is not there, the foot says why not."""
    board = Board("q", ["a", "b"])
    assert board.press("1") is None
    assert "once every answer is there" in board.said
    board.ended(Comparison(comparison_id="c", answers=[answer("a"), failed("b", "internal: no")]))

    assert board.press("2") is None
    assert "failed" in board.said
    assert board.press("3") is None
    assert "1 to 2" in board.said
    assert board.press("1") == Pick(0)
    assert board.press("t") == Pick(None)


@pytest.mark.parametrize("key", ["q", "esc", "ctrl-c", "ctrl-d", "eof"])
def test_leaving_needs_one_key(key: str) -> None:
    """None of them picks anything."""
    assert board_of(answer("a"), answer("b")).press(key) == "leave"


def test_a_note_is_typed_and_its_letters_steer_nothing() -> None:
    """Enter keeps it, Esc keeps the one before; a paste is one line of it."""
    board = board_of(answer("a"), answer("b"))
    board.press("n")
    for key in ["q", "1", " ", "é", "x", "backspace", Pasted("two\nlines")]:
        assert board.press(key) is None
    rows, cursor = board.frame(40, 10, 0.0)
    assert plain(rows[-1]) == "note: q1 étwo lines"
    assert cursor == (len("note: q1 étwo lines"), 9)
    board.press("enter")
    board.press("n")
    board.press("z")
    board.press("esc")

    assert board.note == "q1 étwo lines"
    assert board.press(Pasted("1")) is None


def test_blind_columns_have_neither_names_nor_their_order() -> None:
    """Nor does the error of one tell its name; the pick is of the column as it stands."""
    answers = [answer("alpha", "one"), failed("beta", "not_found: no model 'beta'")]
    board = board_of(*answers, order=[1, 0], is_blind=True)

    text = "\n".join(shown(board))

    assert "alpha" not in text
    assert "beta" not in text
    assert [column.model for column in board.columns] == ["beta", "alpha"]
    assert board.press("2") == Pick(1)
    printed = comparison_lines(Comparison(comparison_id="c", answers=answers), [1, 0])
    assert printed[0] == "--- 1. beta"


def test_narrow_windows_stack_and_tab_goes_through_all() -> None:
    """At 20 columns the models stand below each other; those that have no room come into view with their focus."""
    board = board_of(*(answer(name, f"from {name}") for name in "abcdefgh"))

    seen = []
    for _ in range(8):
        seen.append("\n".join(shown(board, 20, 12)))
        board.press("tab")

    assert "from a" in seen[0]
    assert "from h" not in seen[0]
    assert all(f"from {name}" in seen[place] for place, name in enumerate("abcdefgh"))
    assert seen[0] == "\n".join(shown(board, 20, 12))


def test_one_answer_can_have_the_whole_window() -> None:
    """Enter shows the one in focus alone, and all of them again."""
    board = board_of(answer("a", "x" * 60), answer("b", "other"))
    board.press("enter")
    assert "x" * 60 in shown(board)
    assert "other" not in "\n".join(shown(board))
    assert board.press("esc") is None
    assert "other" in "\n".join(shown(board))


@pytest.mark.parametrize(
    ("count", "width", "height", "expected"),
    [
        (2, 80, 20, (2, 1)),
        (3, 78, 20, (3, 1)),
        (3, 77, 20, (2, 2)),
        (8, 200, 20, (4, 2)),
        (8, 20, 20, (1, 5)),
        (4, 80, 5, (2, 1)),
    ],
)
def test_cells_are_no_narrower_than_can_be_read(count: int, width: int, height: int, expected: tuple[int, int]) -> None:
    """Rows that have no room are scrolled to."""
    assert layout(count, width, height) == expected


TEXTS = st.text(st.sampled_from("ab c\n\té日́\x1b\u202ex"), max_size=200)
KEYS = st.sampled_from(
    [
        "up",
        "down",
        "page-up",
        "page-down",
        "home",
        "end",
        "left",
        "right",
        "tab",
        "enter",
        "n",
        "x",
        "esc",
        "1",
        "t",
        "z",
    ]
)


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(TEXTS, min_size=2, max_size=8),
    keys=st.lists(KEYS, max_size=10),
    width=st.one_of(st.sampled_from([20, 40, 80, 200]), st.integers(1, 220)),
    height=st.one_of(st.integers(5, 50), st.integers(1, 4)),
    is_over=st.booleans(),
    is_blind=st.booleans(),
)
def test_no_frame_is_wider_or_higher_than_its_window(
    texts: list[str], keys: list[str], width: int, height: int, is_over: bool, is_blind: bool
) -> None:
    """Whatever the models write and whichever keys are pressed; the cursor is within it, too."""
    names = [f"model-{place}-日本" * 3 for place in range(len(texts))]
    board = Board("A question?\n" * 5, names, is_blind=is_blind)
    for index, text in enumerate(texts):
        board.part(ComparePart(index=index, model=names[index], text=text), 0.5)
    if is_over:
        answers = [
            failed(name, text or "x") if place % 3 == 0 else answer(name, text)
            for place, (name, text) in enumerate(zip(names, texts, strict=True))
        ]
        board.ended(Comparison(comparison_id="c", answers=answers))

    for key in ["", *keys]:
        board.press(key)
        rows, cursor = board.frame(width, height, 12.5)
        assert len(rows) == height
        for row in rows:
            assert columns_of(plain(row)) <= width, plain(row)
            places = [cell.at for cell in row]
            assert places == sorted(places)
        assert cursor is None or (0 <= cursor[0] < max(width, 1) and cursor[1] == height - 1)


def test_the_printed_comparison_says_what_was_picked() -> None:
    """With the note, in one line."""
    result = Comparison(comparison_id="c1", answers=[answer("a"), answer("b")], picked="a", note="short\nand sweet")

    assert comparison_lines(result)[-2:] == ["id c1", "picked: a is the best (short and sweet)"]
    assert picked_line(Comparison(comparison_id="c1", answers=[], picked="tie")) == "picked: a tie"
