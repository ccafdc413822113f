"""How the command prints."""

from __future__ import annotations

import json

import msgspec
import pytest

from bus.cli import output


def test_json_takes_bytes_and_extension_values() -> None:
    """Values of msgpack that JSON has no form for do not stop the output."""
    value = {"data": b"\x00\x01", "odd": msgspec.msgpack.Ext(5, b"x")}

    assert json.loads(output.to_json(value)) == {"data": "AAE=", "odd": {"ext_code": 5, "ext_data": "eA=="}}


def test_a_table_aligns_text_left_and_numbers_right() -> None:
    """Columns line up under their header."""
    assert output.table(("NAME", "COUNT"), [("a", "1,000"), ("longer", "-")]) == [
        "NAME    COUNT",
        "a       1,000",
        "longer      -",
    ]


def test_a_table_without_rows_is_its_header() -> None:
    """Nothing to show is no error."""
    assert output.table(("NAME", "COUNT"), []) == ["NAME  COUNT"]


def test_lines_are_cut_only_where_there_is_a_width() -> None:
    """A pipe gets the whole line, a terminal what fits, counted in columns."""
    assert output.fit("x" * 500, None) == "x" * 500
    assert output.fit("abcdef", 4) == "abc…"
    assert output.fit("日本語日本語", 6) == "日本…"
    assert output.fit("abcd", 4) == "abcd"


def test_control_characters_cannot_reach_the_terminal() -> None:
    """Escape sequences in data are spelt out, line breaks stay."""
    assert output.printable("a\x1b[2Jb\nc\x9b") == "a\\x1b[2Jb\nc\\x9b"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (61, "1 min 1 s"), (3600, "1 h"), (7_260, "2 h 1 min"), (90_000, "1 d 1 h")]
)
def test_durations_show_their_two_largest_units(seconds: float, text: str) -> None:
    """Long times stay readable."""
    assert output.duration(seconds) == text


def test_sizes_and_latencies_keep_useful_digits() -> None:
    """Small values keep decimals, large ones lose them, absent ones are a dash."""
    assert [output.size(value) for value in (None, 512, 1536, 50 * 1024**2)] == ["-", "512 B", "1.5 KiB", "50 MiB"]
    assert [output.milliseconds(value) for value in (None, 0.00042, 0.0123, 1.5)] == ["-", "0.42", "12.3", "1,500"]
