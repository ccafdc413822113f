"""Keys out of what a terminal sends, and rows as they are written to it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.cli import screen
from bus.cli.output import columns_of
from bus.cli.screen import Cell, Keys, Pasted, plain


@pytest.mark.parametrize(
    ("sent", "keys"),
    [
        (b"q", ["q"]),
        ("é日".encode(), ["é", "日"]),
        (b"\x1b[A\x1bOB\x1b[1;5C\x1b[5~\x1b[6~", ["up", "down", "right", "page-up", "page-down"]),
        (b"\x1b[H\x1b[1~\x1bOF\x1b[8~\x1b[Z\x1b[3~", ["home", "home", "end", "end", "back-tab", "delete"]),
        (b"\r\n\t\x7f\x08", ["enter", "enter", "tab", "backspace", "backspace"]),
        (b"\x03\x1a\x04\x0c\x15", ["ctrl-c", "ctrl-z", "ctrl-d", "ctrl-l", "ctrl-u"]),
        (b"\x1b\x1b[A", ["esc", "up"]),
        (b"\x1b[200~q y\r\x1b[A\x1b[201~n", ["q y\r\x1b[A", "n"]),
        (b"\x01\x1b[25~\x1b[?1;2cz", ["z"]),
        (b"\x1bq", ["esc", "q"]),
        (b"\xff\xfea", ["\ufffd", "\ufffd", "a"]),
    ],
)
def test_what_a_terminal_sends_becomes_keys(sent: bytes, keys: list[str]) -> None:
    """Sequences of several terminals have one name; unknown ones are nothing; a paste is one key."""
    assert Keys().feed(sent) == keys


def test_a_paste_steers_nothing() -> None:
    """It is told from keys by its type, however it reads."""
    (pasted,) = Keys().feed(b"\x1b[200~q\x1b[201~")

    assert isinstance(pasted, Pasted)


def test_an_escape_alone_is_a_key_once_nothing_follows() -> None:
    """Until then it waits; with what follows it is another key."""
    keys = Keys()
    assert keys.feed(b"\x1b") == []
    assert keys.is_waiting
    assert keys.flush() == ["esc"]
    assert (keys.is_waiting, keys.flush()) == (False, [])
    assert keys.feed(b"\x1b") + keys.feed(b"[A") == ["up"]


@given(
    st.lists(st.sampled_from([b"a", "日".encode(), b"\x1b[A", b"\x1bOF", b"\x1b[5~", b"\r", b"\x1b[200~x y\x1b[201~"])),
    st.data(),
)
def test_how_the_bytes_are_cut_makes_no_difference(parts: list[bytes], data: st.DataObject) -> None:
    """A slow line brings sequences and characters in pieces."""
    whole = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    keys = Keys()
    pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]

    assert [key for piece in pieces for key in keys.feed(piece)] == Keys().feed(whole)


@given(st.binary(max_size=200))
def test_no_bytes_are_too_strange(sent: bytes) -> None:
    """Keys are names or single characters that steer no terminal, and nothing raises."""
    keys = Keys()
    for key in [*keys.feed(sent), *keys.flush()]:
        assert isinstance(key, Pasted) or len(key) > 1 or key >= " "


def test_a_paste_of_megabytes_is_cut_and_ends() -> None:
    """What is too much of it is dropped, and the keys after it count."""
    keys = Keys()
    got = keys.feed(b"\x1b[200~")
    for _ in range(40):
        got += keys.feed(b"x" * 65_536)
    got += keys.feed(b"\x1b[201~q")

    assert [len(key) for key in got] == [65_536, 1]


@given(
    st.lists(st.tuples(st.text(max_size=30), st.sampled_from(["", "bold", "reverse"]), st.integers(0, 60)), max_size=4),
    st.integers(1, 60),
)
def test_a_row_cannot_steer_the_terminal_or_leave_its_window(cells: list[tuple[str, str, int]], columns: int) -> None:
    """Only our own sequences are in it, and each cell ends within the window."""
    row = [Cell(text, style, at) for text, style, at in sorted(cells, key=lambda cell: cell[2])]  # type: ignore[arg-type]

    written = screen._drawn(row, columns)

    rest = re.sub(r"\x1b\[[0-9]*[mG]", "", written)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", rest)
    for place, text in re.findall(r"(?:\x1b\[([0-9]+)G)?(?:\x1b\[[17]m)?([^\x1b]*)(?:\x1b\[0m)?", written):
        assert int(place or 1) - 1 + columns_of(text) <= columns or not place


def test_a_row_reads_as_it_is_shown() -> None:
    """Cells stand at their columns, also after wide characters."""
    assert plain((Cell("日本"), Cell("|", "dim", 6), Cell("b", "", 8))) == "日本  | b"
