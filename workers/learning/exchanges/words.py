"""How alike two questions are, where some words say more than others; pure.

Questions of one template differ in one word, and that word is the question. So a word counts by how rare it is among the
questions seen lately.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from schemas.bodies.model import ChatMessage
from workers.learning.curation.likeness import likeness_of

# Questions after which what was counted is halved, so that old traffic fades.
_QUESTIONS_MAX: Final = 20_000

# Words of which frequencies are kept; the rarest go first.
_WORDS_MAX: Final = 50_000

# Questions imagined without any of the words, so that the first few do not decide what is rare.
_UNSEEN: Final = 20.0

# Shared groups of three letters from which two words are one, misspelt (Dice coefficient).
_SAME_WORD: Final = 0.6
_LETTERS: Final = 3


def question_of(messages: Sequence[ChatMessage], prompt: str | None) -> str:
    """What was asked last: the last message of a user, or the prompt."""
    if prompt is not None:
        return prompt
    return next((message.content for message in reversed(messages) if message.role == "user"), "")


def words_of(messages: Sequence[ChatMessage], prompt: str | None) -> tuple[str, ...]:
    """Stems of the words of content of the last question, each once, sorted."""
    texts = [{"role": message.role, "content": message.content} for message in messages]
    return likeness_of({"messages": texts if prompt is None else None, "prompt": prompt, "answer": ""}).words


class Frequencies:
    """In how many of the questions seen lately each word was."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._questions = 0

    def add(self, words: Iterable[str]) -> None:
        """Count one question."""
        self._questions += 1
        self._counts.update(words)
        if self._questions > _QUESTIONS_MAX or len(self._counts) > _WORDS_MAX:
            self._questions //= 2
            self._counts = Counter({word: count // 2 for word, count in self._counts.items() if count > 1})

    def weight(self, word: str) -> float:
        """log(1 + (N + 20) / (n + 1)), of N questions and n with the word: one that all have weighs a fraction of a rare one.

        While few questions are known, all words weigh about the same.
        """
        return math.log(1.0 + (self._questions + _UNSEEN) / (self._counts[word] + 1.0))

    def likeness(self, one: Sequence[str], other: Sequence[str]) -> float:
        """What two sets of words share of the one that weighs less, 0..1; 0 where either is empty.

        So a word more is no difference, and a word in the place of another is. Words that differ by a slip of the keyboard
        count as one. Source: overlap coefficient (Szymkiewicz-Simpson), weighted by inverse document frequency (Spärck
        Jones 1972).
        """
        if not one or not other:
            return 0.0
        rest = set(other)
        shared = 0.0
        for word in set(one):
            twin = word if word in rest else next((each for each in rest if _is_misspelt(word, each)), None)
            if twin is not None:
                rest.discard(twin)
                shared += min(self.weight(word), self.weight(twin))
        return shared / min(sum(map(self.weight, set(one))), sum(map(self.weight, set(other))))


def _is_misspelt(one: str, other: str) -> bool:
    """True for two longer words, without digits, that share most of their letters in order."""
    if min(len(one), len(other)) < 5 or not (one.isalpha() and other.isalpha()) or one[0] != other[0]:
        return False
    left, right = _groups(one), _groups(other)
    return 2 * len(left & right) / (len(left) + len(right)) >= _SAME_WORD


def _groups(word: str) -> set[str]:
    return {word[at : at + _LETTERS] for at in range(len(word) - _LETTERS + 1)}
