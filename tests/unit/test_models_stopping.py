"""Stop strings and unfinished characters never reach the reader."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.models.stopping import TextAssembler


def shown(pieces: list[bytes], stop: list[str]) -> tuple[str, list[str], bool]:
    """The whole text, what each piece brought, and whether a stop string ended it."""
    assembler = TextAssembler(stop)
    parts = []
    for piece in pieces:
        parts.append(assembler.feed(piece))
        if assembler.is_stopped:
            return "".join(parts), parts, True
    parts.append(assembler.finish())
    return "".join(parts), parts, assembler.is_stopped


def test_text_flows_through_at_once_without_stop_strings() -> None:
    """Nothing is held for no reason."""
    assert shown([b"Hel", b"lo"], [])[1] == ["Hel", "lo", ""]


def test_a_character_is_shown_when_its_last_byte_came() -> None:
    """Byte-level tokens cut characters anywhere."""
    euro = "€".encode()
    assert shown([b"1 ", euro[:1], euro[1:2], euro[2:] + b"!"], [])[1] == ["1 ", "", "", "€!", ""]


def test_an_unfinished_character_at_the_end_becomes_a_replacement() -> None:
    """A length limit may fall inside a character."""
    assert shown([b"a\xe2\x82"], [])[0] == "a\ufffd"


def test_a_stop_string_across_tokens_is_never_shown_in_part() -> None:
    """What may become a stop string is held until it is certain."""
    text, parts, is_stopped = shown([b"yes", b" <", b"|e", b"nd|>", b"more"], ["<|end|>"])
    assert (text, is_stopped) == ("yes ", True)
    assert parts == ["yes", " ", "", ""]


def test_held_text_is_shown_when_it_was_no_stop_string_after_all() -> None:
    """A beginning that leads nowhere comes out whole."""
    assert shown([b"a<", b"|", b"b"], ["<|end|>"]) == ("a<|b", ["a", "", "<|b", ""], False)
    assert shown([b"a<|en"], ["<|end|>"])[0] == "a<|en"


def test_the_earliest_of_several_stop_strings_wins() -> None:
    """Order of the list does not matter, place in the text does."""
    assert shown([b"one. two\nthree"], ["\n", "."])[0] == "one"


@given(st.text("ab<|é", max_size=30), st.lists(st.text("ab<|é", min_size=1, max_size=4), max_size=3), st.data())
def test_any_cut_of_a_text_shows_what_stands_before_the_first_stop_string(
    text: str, stop: list[str], data: st.DataObject
) -> None:
    """However tokens cut the bytes, the result is that of looking at the whole text."""
    encoded = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(encoded)), max_size=8)))
    pieces = [encoded[start:end] for start, end in zip([0, *cuts], [*cuts, len(encoded)], strict=True)]
    ends = [text.find(one) for one in stop if one in text]
    result, _, is_stopped = shown(pieces, stop)
    assert is_stopped == bool(ends)
    if not ends:
        assert result == text
    else:
        # A long stop string may be complete only after a shorter, later one: the first to be complete ends the text.
        assert text.startswith(result)
        assert any(text[len(result) :].startswith(one) for one in stop)
