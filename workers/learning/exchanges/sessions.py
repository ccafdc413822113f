"""Which exchanges belong together: what was said before tells, or who said it when; pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from schemas.bodies.learning import AnswerEvent
from schemas.bodies.model import ChatMessage

# Seconds of silence after which the same person begins something new.
PAUSE_S: Final = 600.0


def thread_of(messages: Sequence[ChatMessage], answer: str) -> str:
    """Names a conversation by all that was said up to and with `answer`."""
    whole = hashlib.blake2b(digest_size=16)
    for role, text in [*((message.role, message.content) for message in messages), ("assistant", answer)]:
        data = text.encode("utf-8", "surrogatepass")
        whole.update(f"{role}:{len(data)}:".encode() + data)
    return whole.hexdigest()


def thread_before(messages: Sequence[ChatMessage]) -> str:
    """The thread that a question goes on with, "" where no answer was given before it."""
    for at in range(len(messages) - 1, -1, -1):
        if messages[at].role == "assistant":
            return thread_of(messages[:at], messages[at].content)
    return ""


def named_session(session_id: str, user: str) -> str:
    """A session that somebody gave a name to, "" for one that is told by its caller or its answer alone."""
    is_made_here = session_id.startswith("reply:") or (bool(user) and session_id.startswith(f"{user}@"))
    return "" if is_made_here else session_id


def session_of(event: AnswerEvent, last_of_caller: tuple[str, float] | None) -> str:
    """The session of an exchange that goes on with no known one: its conversation, else its caller's.

    last_of_caller: session and time of the caller's exchange before. Without a caller each exchange is a session, since
    nobody knows how many people there are.
    """
    if event.conversation_id:
        return event.conversation_id
    if not event.caller:
        return f"reply:{event.reply_id}"
    if last_of_caller is not None and event.at - last_of_caller[1] <= PAUSE_S:
        return last_of_caller[0]
    return f"{event.caller}@{int(event.at)}"
