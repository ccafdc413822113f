"""The line that a person writes on: pasted texts, keys that come in pieces, history, what goes on."""

from __future__ import annotations

import os
import pty
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.keys import Keys

from bus.cli.chat.editing import PasteInput, Pastes, PrivateHistory, SlashCompleter, goes_on, is_burst


class Typing:
    """A terminal that a test types to."""

    def __init__(self) -> None:
        self._keyboard, self._end = pty.openpty()
        self._file = os.fdopen(self._end, encoding="utf-8")
        self.input = PasteInput(self._file)
        self._raw = self.input.raw_mode()
        self._raw.__enter__()

    def keys(self, text: str) -> list[tuple[str, str]]:
        """(key, data) of what was read after typing `text`."""
        os.write(self._keyboard, text.encode())
        return [(str(getattr(press.key, "value", press.key)), press.data) for press in self.input.read_keys()]

    def close(self) -> None:
        """Close both ends."""
        self._file.close()
        os.close(self._keyboard)


@pytest.fixture
def typing() -> Iterator[Typing]:
    """A terminal, closed afterwards."""
    terminal = Typing()
    yield terminal
    terminal.close()


PASTE = Keys.BracketedPaste.value


def test_a_pasted_text_is_one_key(typing: Typing) -> None:
    """With what is typed before and after it."""
    assert typing.keys("a\x1b[200~one\rtwo\x1b[201~b") == [("a", "a"), (PASTE, "one\rtwo"), ("b", "b")]


def test_a_pasted_text_may_come_in_any_pieces(typing: Typing) -> None:
    """Its marks too may be cut anywhere."""
    whole = "\x1b[200~one\x1btwo\x1b[201~."
    for cut in range(1, len(whole)):
        assert typing.keys(whole[:cut]) + typing.keys(whole[cut:]) == [(PASTE, "one\x1btwo"), (".", ".")]


def test_escape_alone_is_a_key_when_nothing_follows(typing: Typing) -> None:
    """It may be the beginning of a mark, and is held only until the line is flushed."""
    assert typing.keys("\x1b") == []

    assert [press.key for press in typing.input.flush_keys()] == [Keys.Escape]
    assert typing.keys("\x1b[A") == [("up", "\x1b[A")]


def test_a_burst_without_marks_is_a_pasted_text(typing: Typing) -> None:
    """Line ends in it do not send anything."""
    text = "a line of text\r" * 50

    assert typing.keys(text) == [(PASTE, text)]


@pytest.mark.parametrize("text", ["hello\r", "one\rtwo\r", "x" * 5_000, "x" * 5_000 + "\r", "\x1b[A\r" * 500])
def test_what_may_have_been_typed_is_no_burst(text: str) -> None:
    """Fast typing, one long line with its Enter, keys that repeat."""
    assert not is_burst(text)


def test_short_pasted_texts_stand_as_they_are() -> None:
    """They can be read and edited on the line."""
    assert Pastes().shown("one\ntwo") == "one\ntwo"


def test_long_pasted_texts_stand_as_labels_and_are_sent_whole() -> None:
    """Two different ones of the same size have different labels; the same one twice has the same."""
    pastes = Pastes()
    first, second = "a\n" * 3_000, "b\n" * 3_000

    line = f"compare {pastes.shown(first)} with {pastes.shown(second)} and {pastes.shown(first)}"

    label = "pasted 5.9 KiB, 3,001 lines"
    assert line == f"compare [{label}] with [{label} #2] and [{label}]"
    assert pastes.whole(line) == f"compare {first} with {second} and {first}"


def test_a_text_that_looks_like_a_label_is_not_replaced_within_a_pasted_one() -> None:
    """What was pasted is sent as it is, whatever stands in it."""
    pastes = Pastes()
    label = pastes.shown("a\n" * 3_000)
    other = f"{label} stands here\n" * 200

    assert pastes.whole(pastes.shown(other)) == other


def test_a_label_is_deleted_as_one() -> None:
    """At the cursor; anything else is not."""
    pastes = Pastes()
    label = pastes.shown("a\n" * 3_000)

    assert pastes.label_before(f"see {label}") == label
    assert pastes.label_before(f"see {label} ") == ""
    assert pastes.label_before("") == ""


def test_a_label_of_an_earlier_chat_is_known_to_be_one() -> None:
    """Its text is gone; sent as it stands it would mean nothing."""
    pastes = Pastes()
    label = pastes.shown("a\n" * 3_000)

    assert not pastes.is_gone(f"see {label}")
    assert Pastes().is_gone(f"see {label}")
    assert not pastes.is_gone("[pasted] things and [pasted 3 apples]")


def test_pasted_texts_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are forgotten when there is more of them than is kept; the newest stays, whatever its size."""
    monkeypatch.setattr("bus.cli.chat.editing._KEPT_CHARACTERS", 10_000)
    pastes = Pastes()
    labels = [pastes.shown(f"{number}" * 4_000) for number in range(4)]
    last = pastes.shown("x" * 20_000)

    assert [pastes.is_gone(label) for label in labels] == [True] * 4
    assert not pastes.is_gone(last)


@pytest.mark.parametrize(
    ("text", "is_open"),
    [
        ("a question", False),
        ("a line\\", True),
        ("```\ncode", True),
        ("```\ncode\n```", False),
        ("text ``` within", False),
        ("~~~ python", True),
        ("", False),
    ],
)
def test_enter_begins_a_line_where_more_must_follow(text: str, is_open: bool) -> None:
    """After a backslash, and within a fence."""
    assert goes_on(text) is is_open


# History


def entries(path: Path) -> list[str]:
    """What a chat that begins now can call up, newest first."""
    return list(PrivateHistory(path).load_history_strings())


def test_history_is_kept_for_this_user_alone(tmp_path: Path) -> None:
    """Also where the file was there with another mode; of two chats at once nothing is lost."""
    path = tmp_path / "chat" / "history"
    one, other = PrivateHistory(path), PrivateHistory(path)

    one.append_string("first")
    path.chmod(0o644)
    other.append_string("second,\nof two lines")
    one.append_string("third")

    assert entries(path) == ["third", "second,\nof two lines", "first"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_history_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeated, empty and huge entries are not written, and of too many the newest stay."""
    monkeypatch.setattr("bus.cli.chat.editing._HISTORY_ENTRIES", 5)
    path = tmp_path / "history"
    history = PrivateHistory(path)

    for text in ("same", "same", "  ", "x" * 100_000, *map(str, range(23))):
        history.append_string(text)

    assert entries(path) == ["22", "21", "20", "19", "18"]
    assert len(path.read_text().splitlines()) <= 10


def test_a_broken_history_costs_its_broken_lines_alone(tmp_path: Path) -> None:
    """And one that cannot be read or written costs nothing else."""
    path = tmp_path / "history"
    path.write_bytes(b'"good"\n{"no": 1}\n\xff\xfe\n"also good\n"better"\n')

    assert entries(path) == ["better", "good"]
    PrivateHistory(path / "no-folder").append_string("lost")
    assert entries(path / "no-folder") == []


def test_what_is_no_unicode_does_not_break_the_history(tmp_path: Path) -> None:
    """Bytes that a terminal sends and that are no UTF-8 come as surrogates."""
    path = tmp_path / "history"

    PrivateHistory(path).append_string("caf\udce9")

    assert entries(path) == ["caf?"]


# Completion


class Names:
    """Names that are known only when they are asked for the second time."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def completions(self, text: str) -> list[tuple[str, str]]:
        """One name, from the second time on."""
        self.asked.append(text)
        return [("plain", "loaded")] if len(self.asked) > 1 else []


async def completed(names: Names, text: str) -> list[Completion]:
    """What the menu holds for `text`."""
    found = SlashCompleter(names).get_completions_async(Document(text), CompleteEvent())
    return [each async for each in found]


async def test_names_that_are_just_being_looked_up_are_waited_for() -> None:
    """The menu opens with them, in place of the last word."""
    (found,) = await completed(Names(), "/model use pl")

    assert (found.text, found.start_position, found.display_meta_text) == ("plain", -2, "loaded")


async def test_plain_text_is_not_completed() -> None:
    """Nobody is asked."""
    names = Names()

    assert await completed(names, "model use pl") == []
    assert names.asked == []
