"""What an interaction is worth learning from: the scores of LearningOpportunityDetector, to the letter. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple

# Words that count wherever they stand in the lower-cased text, as in the old code: "incorrect" has "correct" in it.
_EXPLICIT: Final = ("no,", "incorrect", "wrong", "that's not", "actually", "not true")
_IMPLICIT: Final = ("but", "however", "although", "though", "rather", "instead")
_POSITIVE: Final = ("yes,", "correct", "right", "exactly", "perfect", "good job", "well done")
_ASKING: Final = ("?", "what", "how", "why", "when", "where", "who", "which", "can you", "could you")
_REASONING: Final = ("explain", "analyze", "compare", "evaluate", "synthesize", "why", "how does")

WEIGHTS: Final = {
    "explicit_correction": 0.3,
    "implicit_correction": 0.2,
    "positive_reinforcement": 0.15,
    "question_answer": 0.15,
    "complex_reasoning": 0.2,
}


class Worth(NamedTuple):
    """score: 0 to 1. category: the detector that scored highest. scores: of every detector."""

    score: float
    category: str
    scores: dict[str, float]


def worth_of(user_input: str, assistant_response: str) -> Worth:
    """What an interaction is worth."""
    text = user_input.lower()
    scores = {
        "explicit_correction": _hits(text, _EXPLICIT, 0.3),
        "implicit_correction": _implicit(text),
        "positive_reinforcement": _hits(text, _POSITIVE, 0.2),
        "question_answer": _question_answer(text, assistant_response),
        "complex_reasoning": _reasoning(text, assistant_response),
    }
    score = sum(WEIGHTS[name] * value for name, value in scores.items())
    # The first of equals: max keeps the order they are named in.
    return Worth(score, max(scores, key=lambda name: scores[name]), scores)


def _hits(text: str, words: tuple[str, ...], each: float) -> float:
    return min(each * sum(word in text for word in words), 1.0)


def _implicit(text: str) -> float:
    longer = 0.1 if len(text.split()) > 10 else 0.0
    return min(0.2 * sum(word in text for word in _IMPLICIT) + longer, 1.0)


def _question_answer(text: str, answer: str) -> float:
    if not any(word in text for word in _ASKING):
        return 0.0
    words = len(answer.split())
    return 0.3 if words > 50 else 0.2 if words > 20 else 0.1


def _reasoning(text: str, answer: str) -> float:
    paragraphs = sum(bool(part.strip()) for part in answer.split("\n\n"))
    found = 0.1 * sum(word in text for word in _REASONING)
    return min(found + (0.2 if paragraphs > 2 else 0.0) + (0.2 if "```" in answer else 0.0), 1.0)
