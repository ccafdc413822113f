"""Messages of a conversation: texts as the bus takes them, a session's turns, and what goes when there are too many; pure."""

from __future__ import annotations

from typing import Final

import msgspec

from schemas.bodies.model import ChatMessage
from schemas.bodies.sessions import Turn

_ROLES: Final = {"user": "user", "human": "user", "assistant": "assistant", "ai": "assistant", "model": "assistant"}

# In the metadata of an answer's turn: it was asked for once more, and stands in the place of the answer before it.
AGAIN: Final = "again"


def clean(text: str) -> str:
    """`text` as the bus and the memory take it: bytes that are no UTF-8, lone surrogates and nulls become U+FFFD."""
    if "\0" in text:
        text = text.replace("\0", "\ufffd")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def messages_of(turns: list[Turn]) -> list[ChatMessage]:
    """A session's turns as messages: those of people and models, in turns, since templates refuse two users in a row."""
    messages: list[ChatMessage] = []
    for turn in turns:
        role = _ROLES.get(turn.role)
        if role is None:
            continue
        if messages and messages[-1].role == role and turn.metadata.get(AGAIN) is True:
            messages[-1] = ChatMessage(role=messages[-1].role, content=turn.content)
        elif messages and messages[-1].role == role:
            messages[-1] = ChatMessage(role=messages[-1].role, content=f"{messages[-1].content}\n\n{turn.content}")
        else:
            messages.append(msgspec.convert({"role": role, "content": turn.content}, ChatMessage))
    while messages and messages[0].role != "user":
        del messages[0]
    if messages and messages[-1].role == "user":
        # A question that was never answered: the next one would follow it directly.
        del messages[-1]
    return messages


def reply_id_of(turns: list[Turn]) -> str:
    """The reply id of the last answer, "" where it has none."""
    last = turns[-1].metadata.get("reply_id") if turns else None
    return last if isinstance(last, str) else ""


def outgrown(messages: list[ChatMessage], share: float) -> int:
    """How many of the oldest messages go so that `share` of the characters stay; whole questions, never the last one."""
    sizes = [len(message.content) + sum(len(call.arguments) for call in message.tool_calls) for message in messages]
    excess = sum(sizes) * (1 - share)
    dropped = gone = 0
    for index, message in enumerate(messages):
        if message.role == "user" and index:
            dropped = index
            if gone >= excess:
                break
        gone += sizes[index]
    return dropped
