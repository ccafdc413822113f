"""One thing that was noticed, on its way to become evidence of an opportunity."""

from __future__ import annotations

from typing import Final

import msgspec

from schemas.bodies.learning import Exchange, OpportunityKind
from workers.learning.detection.topics import ANSWERS, features_of
from workers.learning.exchanges.signals import NOTEWORTHY
from workers.learning.exchanges.words import question_of, words_of

# Characters of a question shown in a title or a note.
_SHOWN: Final = 100

# What a signal makes an opportunity of.
_KINDS: Final[dict[str, OpportunityKind]] = {
    "rephrased": "rephrasing",
    "explicit_correction": "rephrasing",
    "low_confidence": "low_confidence",
    "error": "error",
    "empty": "error",
}


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """id: of the exchange, feedback or evaluation. weight: chance that something was wrong, 0..1.

    words: of the question. wants_answer: the question could be learned if somebody knew the answer. user: whose question
    it is, "" where nobody signed in.
    """

    model: str
    kind: OpportunityKind
    id: str
    at: float
    note: str
    weight: float
    words: tuple[str, ...] = ()
    family: str = ANSWERS
    wants_answer: bool = False
    user: str = ""


def about(exchange: Exchange) -> tuple[str, tuple[str, ...]]:
    """The question of an exchange as it is shown, and its words."""
    question = question_of(exchange.messages, exchange.prompt)
    return shown(question), features_of(words_of(exchange.messages, exchange.prompt), question)


def shown(text: str) -> str:
    """A text in one line, cut."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 3]}..."


def found_in(exchange: Exchange, precisions: dict[str, float]) -> list[Found]:
    """What the signals of an exchange are evidence of: one for each kind, the strongest signal of it."""
    note, words = about(exchange)
    found: dict[OpportunityKind, Found] = {}
    for signal, least in NOTEWORTHY.items():
        strength = exchange.signals.get(signal, 0.0)
        if strength < least:
            continue
        kind = _KINDS[signal]
        weight = round(precisions.get(signal, 0.0) * max(strength, 0.5), 4)
        if kind in found and found[kind].weight >= weight:
            continue
        is_error = signal == "error"
        code = exchange.error.partition(":")[0]
        found[kind] = Found(
            model=exchange.model,
            kind=kind,
            id=exchange.reply_id,
            at=exchange.at,
            note=exchange.error[:_SHOWN] if is_error else f"{signal} {strength:.2f}: {note}",
            weight=weight,
            words=() if is_error else words,
            # Errors of one code are one thing, whatever was asked.
            family=f"error:{code}" if is_error else ANSWERS,
            wants_answer=not is_error and bool(exchange.messages or exchange.prompt),
            user=exchange.user,
        )
    return list(found.values())
