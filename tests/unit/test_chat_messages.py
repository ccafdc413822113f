"""Messages of a chat: what the bus takes of a text, a session as messages, and what goes when the window is full."""

from __future__ import annotations

import pytest

from bus.cli.chat.messages import clean, messages_of, outgrown, reply_id_of
from bus.cli.chat.session_keeper import new_session_id, title_of
from schemas.bodies.model import ChatMessage
from schemas.bodies.sessions import Turn


def turn(role: str, content: str, **metadata: str | bool) -> Turn:
    """A turn as memory gives it."""
    return Turn(number=1, role=role, content=content, at=0.0, metadata=dict(metadata))


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("plain", "plain"),
        ("a\0b", "a\ufffdb"),
        ("a\ud800b", "a\ufffdb"),
        ("\udcff", "\ufffd"),
        ("\ud83d\ude00", "\U0001f600"),
    ],
)
def test_a_text_is_made_one_that_the_bus_takes(text: str, cleaned: str) -> None:
    """Nulls and lone surrogates become U+FFFD, pairs of them the character they stand for."""
    assert clean(text) == cleaned


def test_a_session_becomes_questions_and_answers_in_turn() -> None:
    """Two of one side in a row are joined, other roles are left out, and a question without an answer is no beginning."""
    turns = [
        turn("assistant", "cut off by paging"),
        turn("user", "one"),
        turn("user", "two"),
        turn("tool", "result"),
        turn("ai", "answer"),
        turn("user", "never answered"),
    ]

    assert messages_of(turns) == [
        ChatMessage(role="user", content="one\n\ntwo"),
        ChatMessage(role="assistant", content="answer"),
    ]


def test_an_answer_asked_for_again_stands_for_the_one_before() -> None:
    """A resumed conversation is what was on the screen, not both answers in one."""
    turns = [turn("user", "q"), turn("assistant", "cut o", cut_off="stopped"), turn("assistant", "whole", again=True)]

    assert messages_of(turns) == [
        ChatMessage(role="user", content="q"),
        ChatMessage(role="assistant", content="whole"),
    ]


def test_the_last_answer_of_a_session_can_still_be_judged() -> None:
    """Its reply id is in the turn."""
    assert reply_id_of([turn("user", "q"), turn("assistant", "a", reply_id="ab12")]) == "ab12"
    assert reply_id_of([turn("assistant", "a")]) == ""
    assert reply_id_of([]) == ""


def test_a_conversation_is_shortened_by_whole_questions() -> None:
    """What stays begins with a question and has about the share asked for; the last question always stays."""
    messages = [ChatMessage(role=role, content="x" * 100) for _ in range(4) for role in ("user", "assistant")]

    assert outgrown(messages, 0.5) == 4
    assert outgrown(messages, 0.99) == 2
    assert outgrown(messages, 0.0) == 6
    assert outgrown(messages[:2], 0.1) == 0


def test_a_title_is_one_line_of_the_first_words() -> None:
    """Long and many-lined questions are cut."""
    assert title_of("What is\n  a lease?") == "What is a lease?"
    assert len(title_of("word " * 1_000_000)) == 80


def test_session_ids_differ_within_a_second() -> None:
    """Two chats begun together are two sessions."""
    assert len({new_session_id() for _ in range(50)}) == 50
