"""What happens while a question is answered, in the words of `Conversation.ask`; front ends draw it, each in its way."""

from __future__ import annotations

import msgspec

from schemas.bodies.model import Generation
from schemas.bodies.sessions import ContextPart


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a front end may show."""


class ContextUsed(Event, frozen=True, kw_only=True):
    """What memory put before the model for this question; tokens counted as `counted_by` says."""

    included: list[ContextPart]
    left_out: list[ContextPart]
    tokens: int
    counted_by: str
    degraded: str = ""


class Text(Event, frozen=True, kw_only=True):
    """The next piece of the answer."""

    text: str


class ToolCalled(Event, frozen=True, kw_only=True):
    """The model asked for a tool. arguments: JSON text as the model wrote it."""

    name: str
    arguments: str


class ToolAnswered(Event, frozen=True, kw_only=True):
    """What the tool said; the model reads it next. ok False: the call was refused or wrong."""

    name: str
    ok: bool
    content: str


class Notice(Event, frozen=True, kw_only=True):
    """A line of talk about the conversation, not of it: a fallback, what was cut off, what could not be kept.

    is_minor: of no use to somebody who asks one question.
    """

    text: str
    is_minor: bool = False


class Away(Event, frozen=True, kw_only=True):
    """The bus or the model went away in the middle; what came of the answer is kept as cut off. `Back` or the end follows."""

    reason: str


class Back(Event, frozen=True, kw_only=True):
    """It is there again after `away_s` seconds, and the question is asked once more: text starts anew."""

    away_s: float


class Answered(Event, frozen=True, kw_only=True):
    """The end of an answer, with its figures. window: of the model, in tokens, where it was full before the end; else 0."""

    generation: Generation
    window: int = 0


class Stopped(Event, frozen=True, kw_only=True):
    """The person cancelled; `text` is what had come, and is kept in the conversation as cut off."""

    text: str


class Failed(Event, frozen=True, kw_only=True):
    """No answer. code: the bus's code of the error."""

    code: str
    message: str
