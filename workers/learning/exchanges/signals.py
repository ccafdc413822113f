"""What an exchange, or the message after it, says about an answer; pure. A signal has a name and a strength, 0..1.

    low_confidence          the model was less sure than it usually is (`confidence`)
    error, empty, length    there is no answer, an empty one, or one that was cut off
    rephrased               the same was asked again in other words
    explicit_correction, implicit_correction, positive_reinforcement
                            words of the user's next message
    question_answer, complex_reasoning
                            how much there is to learn from the exchange itself

The last five are the detectors of the learning opportunity detector that this service takes over; its weights are kept.
Which signals are worth something is measured, not believed: see `detection.calibration`.
"""

from __future__ import annotations

import re
from typing import Final

# Likeness of two questions from which the later one asks the same again. Two questions of one template that share four of
# their five words are below it also before the words of the template are known.
REPHRASED: Final = 0.85

# Strength from which a signal is evidence that something was wrong. One hit of an explicit correction is 0.3.
NOTEWORTHY: Final[dict[str, float]] = {
    "rephrased": REPHRASED,
    "explicit_correction": 0.3,
    "low_confidence": 0.5,
    "error": 0.5,
    "empty": 0.5,
}

# An answer that was cut off is often one that was asked to be short.
_LENGTH_STRENGTH: Final = 0.3

_EXPLICIT: Final = ("no,", "incorrect", "wrong", "that's not", "actually", "not true")
_IMPLICIT: Final = ("but", "however", "although", "though", "rather", "instead")
_POSITIVE: Final = ("yes,", "correct", "right", "exactly", "perfect", "good job", "well done")
_QUESTIONS: Final = ("what", "how", "why", "when", "where", "who", "which", "can you", "could you")
_REASONING: Final = ("explain", "analyze", "compare", "evaluate", "synthesize", "why", "how does")

_WORD: Final = re.compile(r"\S+")
_PARAGRAPH: Final = re.compile(r"\n\s*\n")


def of_answer(text: str, finish_reason: str, error: str, *, has_calls: bool, is_cut: bool) -> dict[str, float]:
    """What is wrong with an answer by itself."""
    if error:
        return {"error": 1.0}
    if not text.strip() and not is_cut and not has_calls:
        return {"empty": 1.0}
    return {"length": _LENGTH_STRENGTH} if finish_reason == "length" else {}


def of_next_message(text: str) -> dict[str, float]:
    """What a user's message says of the answer before it.

    Per hit: 0.3 for an explicit correction, 0.2 for an implicit one or praise; 0.1 more for an implicit one of over ten
    words. "incorrect" is no praise, though it holds "correct".
    """
    low = text.casefold()
    praised = low.replace("incorrect", "").replace("not true", "").replace("not right", "")
    found = {
        "explicit_correction": 0.3 * _hits(low, _EXPLICIT),
        "implicit_correction": 0.2 * _hits(low, _IMPLICIT),
        "positive_reinforcement": 0.2 * _hits(praised, _POSITIVE),
    }
    if found["implicit_correction"] and len(_WORD.findall(low)) > 10:
        found["implicit_correction"] += 0.1
    return _strengths(found)


def of_exchange(question: str, answer: str) -> dict[str, float]:
    """How much there is to learn from a question with its answer."""
    low = question.casefold()
    found = {"question_answer": 0.0, "complex_reasoning": 0.1 * _hits(low, _REASONING)}
    if "?" in low or _hits(low, _QUESTIONS):
        words = len(_WORD.findall(answer))
        found["question_answer"] = 0.3 if words > 50 else 0.2 if words > 20 else 0.1
    if len([part for part in _PARAGRAPH.split(answer) if part.strip()]) > 2:
        found["complex_reasoning"] += 0.2
    if "```" in answer:
        found["complex_reasoning"] += 0.2
    return _strengths(found)


def is_noteworthy(signals: dict[str, float]) -> bool:
    """True when one of them is evidence."""
    return any(signals.get(name, 0.0) >= least for name, least in NOTEWORTHY.items())


def _hits(text: str, words: tuple[str, ...]) -> int:
    return sum(word in text for word in words)


def _strengths(found: dict[str, float]) -> dict[str, float]:
    return {name: round(min(value, 1.0), 3) for name, value in found.items() if value > 0.0}
