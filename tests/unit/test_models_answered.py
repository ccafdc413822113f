"""What is told of an answer: never more text than an event may carry, wherever in the request it stands."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from schemas.bodies.model import Chat, ChatMessage, ToolCall
from workers.models.answered import event_of

CALL: Any = SimpleNamespace(id=b"\x01" * 16, caller=None, headers={})


def chat(*messages: ChatMessage) -> Chat:
    return Chat(messages=[ChatMessage(role="user", content="Hello"), *messages])


@pytest.mark.parametrize(
    "message",
    [
        ChatMessage(role="user", content="x" * 70_000),
        ChatMessage(role="user", content="ä" * 40_000),
        ChatMessage(role="assistant", tool_calls=[ToolCall(id="a", name="f", arguments="x" * 70_000)]),
    ],
)
def test_texts_that_are_too_long_together_are_left_out(message: ChatMessage) -> None:
    """Counted in bytes, arguments of calls among them; the rest of the event is told."""
    event = event_of(chat(message), CALL, model="m", text="an answer", tokens=2)
    assert (event.is_cut, event.messages, event.text, event.tokens) == (True, [], "", 2)


def test_texts_that_fit_are_told() -> None:
    """With everything that was said."""
    event = event_of(chat(), CALL, model="m", text="an answer")
    assert (event.is_cut, event.messages, event.text) == (False, chat().messages, "an answer")
