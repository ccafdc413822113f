"""What each signal is worth: how often people called an answer bad about which it spoke; pure but for two statements."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Final

# Precision believed before anybody has judged. Measured on a tiny model, an easy case: its own uncertainty separates right
# from wrong almost perfectly, thumbs with AUROC 0.64; real traffic is harder. Single words are weak evidence.
_BELIEVED: Final[Mapping[str, float]] = {
    "low_confidence": 0.6,
    "rephrased": 0.6,
    "explicit_correction": 0.5,
    "implicit_correction": 0.2,
    "positive_reinforcement": 0.1,
    "error": 1.0,
    "empty": 0.9,
    "length": 0.2,
}
_UNKNOWN: Final = 0.2

# Judgements that the belief above is worth.
_BELIEF_WEIGHT: Final = 10.0

# Strength from which a signal has spoken.
_SPOKE: Final = 0.3

# What a person or a test says of an answer needs no calibration: the chance that they are right.
CORRECTION: Final = 0.95
EVALUATION: Final = 0.9
RATING: Final = 0.8
MANUAL: Final = 0.8
PREFERENCE: Final = 0.6
DRIFT: Final = 0.7


def precision(signal: str, bad: int, judged: int) -> float:
    """(bad + 10 b) / (judged + 10): the posterior mean of a Beta prior of weight 10 around the belief b."""
    return (bad + _BELIEF_WEIGHT * _BELIEVED.get(signal, _UNKNOWN)) / (judged + _BELIEF_WEIGHT)


def note_judgement(
    connection: sqlite3.Connection, reply_id: str, signals: Mapping[str, float], *, is_bad: bool
) -> None:
    """A person judged an answer about which signals had spoken; what they say later of the same answer replaces it."""
    connection.executemany(
        "INSERT OR REPLACE INTO signal_judgements VALUES (?, ?, ?)",
        [(name, reply_id, is_bad) for name, strength in signals.items() if strength >= _SPOKE],
    )


def precisions(connection: sqlite3.Connection) -> dict[str, float]:
    """What every signal that has been judged, or is believed in, is worth, 0..1."""
    found = {
        name: precision(name, bad, judged)
        for name, bad, judged in connection.execute(
            "SELECT signal, sum(is_bad), count(*) FROM signal_judgements GROUP BY signal"
        )
    }
    return {name: precision(name, 0, 0) for name in _BELIEVED} | found
