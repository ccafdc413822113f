"""What a front end says about the events of an answer, in words; it knows no terminal."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

from bus.cli.chat.events import (
    Answered,
    Away,
    Back,
    ContextUsed,
    Event,
    Failed,
    Notice,
    Stopped,
    ToolAnswered,
    ToolCalled,
)
from bus.cli.chat.session_keeper import Resumed
from bus.cli.output import duration, number, one_line, plural
from bus.projects import Project
from schemas.bodies.model import Generation

# Characters of a tool's arguments and of its answer that a line of talk shows.
_SHOWN: Final = 200

# Characters of a tool's name that it shows: ours have a dozen, and a model may write anything there.
_NAME: Final = 40

# Turns of a session that goes on that are shown, and the characters of each.
_RESUMED_TURNS: Final = 2
_RESUMED_CHARACTERS: Final = 300

# What a person can do about an error, by its code, where the conversation's own message does not say it.
_ADVICE: Final = {
    "overloaded": "the queue is full; /retry asks again",
    "worker_lost": "the service broke down over it; /retry asks again",
    "deadline_exceeded": "/retry asks again, /model use NAME chooses another model",
    "forbidden": "'olympus auth' shows what this key may do",
    "quota_exceeded": "the quota fills again with time; /retry asks again",
    "unsupported": "/model use NAME chooses a model that can",
    "bad_request": "/options shows what is sent along",
    "internal": "/retry asks again, 'olympus errors' shows what went wrong",
}


class Tone(StrEnum):
    """How much a line of talk wants to be seen."""

    QUIET = "quiet"
    WARNING = "warning"
    WRONG = "wrong"


class Talk(NamedTuple):
    """Words about the conversation, which are no part of it."""

    text: str
    tone: Tone = Tone.QUIET


def talk_of(event: Event) -> list[Talk]:
    """What is said about an event; nothing about text."""
    match event:
        case ContextUsed():
            return _context(event)
        case ToolCalled():
            return [Talk(f"→ {one_line(event.name, _NAME)} {one_line(event.arguments, _SHOWN)}")]
        case ToolAnswered(ok=True):
            return [Talk(f"← {one_line(event.content, _SHOWN)}")]
        case ToolAnswered():
            name = one_line(event.name, _NAME)
            return [Talk(f"← {name} refused: {one_line(event.content, _SHOWN)}", Tone.WARNING)]
        case Notice():
            return [Talk(f"note: {event.text}")]
        case Away():
            return [Talk(f"away: {event.reason}; waiting for it, Ctrl-C gives up", Tone.WARNING)]
        case Back():
            return [Talk(f"back after {duration(event.away_s)}; asking again", Tone.WARNING)]
        case Answered():
            return [Talk(" · ".join(filter(None, (figures(event.generation), cut_off(event)))))]
        case Stopped():
            return [Talk("stopped; what had come is kept" if event.text else "stopped", Tone.WARNING)]
        case Failed():
            advice = [Talk(_ADVICE[event.code])] if event.code in _ADVICE else []
            return [Talk(f"{event.code}: {event.message}", Tone.WRONG), *advice]
        case _:
            return []


def greeting(project: Project | None) -> list[Talk]:
    """What a chat begins with."""
    where = []
    if project is not None:
        where.append(Talk(f"project {project.name}{f' ({project.profile})' if project.profile else ''}"))
    return [*where, Talk("/help shows the commands, Ctrl-D ends")]


def going_on(resumed: Resumed) -> list[Talk]:
    """Where a session that goes on had come to."""
    session = resumed.session
    title = one_line(str(session.metadata.get("title", "")), _RESUMED_CHARACTERS)
    about = f" · {title}" if title else ""
    head = Talk(f"going on with session {session.session_id}{about} · {plural(session.turns, 'turn')}")
    turns = (
        Talk(f"{'›' if turn.role == 'user' else ' '} {one_line(turn.content, _RESUMED_CHARACTERS)}")
        for turn in resumed.turns[-_RESUMED_TURNS:]
    )
    return [head, *turns]


def parting(session_id: str) -> Talk:
    """How to go on another time."""
    return Talk(f"next time: olympus chat --session {session_id} goes on with this, --resume with the last one")


def cut_off(answered: Answered, way: str = "/options max_tokens=...") -> str:
    """Why there is no more of an answer that was not at its end, and the way to more; "" for one that was."""
    if answered.generation.finish_reason != "length":
        return ""
    if answered.window:
        return f"cut off: the window of {number(answered.window)} tokens is full"
    return f"cut off at its limit of tokens ({way})"


def figures(generation: Generation) -> str:
    """What an answer cost: `57 tokens · 40.1 tok/s · first after 0.2 s`, and what is special about it."""
    timings = generation.timings
    parts = [plural(generation.usage.completion_tokens, "token")]
    if timings.tokens_per_s > 0:
        parts.append(f"{timings.tokens_per_s:.1f} tok/s")
    parts.append(f"first after {timings.first_token_s:.1f} s")
    if timings.load_s >= 1:
        parts.append(f"loaded in {duration(timings.load_s)}")
    if generation.adapter:
        parts.append(f"adapter {generation.adapter}")
    return " · ".join(parts)


def _context(event: ContextUsed) -> list[Talk]:
    if not event.included and not event.degraded:
        return []
    if not event.included:
        return [Talk(f"memory: nothing; {event.degraded}")]
    pieces = f"memory: {plural(len(event.included), 'piece')}, {number(event.tokens)} tokens"
    left_out = f", {number(len(event.left_out))} left out" if event.left_out else ""
    degraded = f"; {event.degraded}" if event.degraded else ""
    return [Talk(f"{pieces}{left_out}{degraded} (/memory show-context)")]
