"""What opportunities are about: evidence on similar questions belongs together; pure."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, Self

# Cosine from which a question is about a topic. Two questions of one template ("Say ahoy to ...") that differ in the last of
# four words have 0.6, in the last two of five 0.43; about one thing, but asking another of it, they have 0.4.
_SAME_TOPIC: Final = 0.42

# From which, of the words of content alone, it is so like something dismissed that it is not brought up again.
_SAME_AS_DISMISSED: Final = 0.7

# Words of a question, the last ones, whose pairs count: what is asked stands at the end of a long text.
_PAIRED_WORDS: Final = 40

# Features kept of a topic, the most frequent.
_WORDS_MAX: Final = 200

_WORD: Final = re.compile(r"[^\W_]+")

# Characters of a question without a word of content that stand for it.
_BARE_CHARACTERS: Final = 40


class Topic:
    """How often each feature is in the questions of an opportunity: words of content, and pairs of words (with a space)."""

    def __init__(self, counts: dict[str, int] | None = None) -> None:
        self._counts = Counter(counts or {})
        self._norm = _norm(self._counts)

    @classmethod
    def of(cls, questions: Iterable[Sequence[str]]) -> Self:
        """The topic of these questions, each as its features."""
        topic = cls()
        for words in questions:
            topic.add(words)
        return topic

    @classmethod
    def from_json(cls, text: str) -> Self:
        """As `to_json` wrote it."""
        return cls(json.loads(text))

    def to_json(self) -> str:
        """The most frequent features with their counts."""
        return json.dumps(dict(self._counts.most_common(_WORDS_MAX)), ensure_ascii=False)

    def add(self, features: Sequence[str]) -> None:
        """Count one more question."""
        self._counts.update(set(features))
        self._norm = _norm(self._counts)

    def likeness(self, other: Topic) -> float:
        """Cosine of two topics, 0..1. Source: Salton, Wong & Yang, "A vector space model", CACM 1975."""
        return _cosine(self._counts, self._norm, other._counts, other._norm)

    def likeness_of_content(self, other: Topic) -> float:
        """The same of their words of content alone."""
        ours, theirs = _content(self._counts), _content(other._counts)
        return _cosine(ours, _norm(ours), theirs, _norm(theirs))


class Known(NamedTuple):
    """An opportunity that evidence may join. family: "answers", or what else keeps kinds apart that nobody can compare."""

    opportunity_id: str
    model: str
    family: str
    is_dismissed: bool
    topic: Topic


def match(known: Iterable[Known], model: str, family: str, topic: Topic) -> Known | None:
    """The opportunity that a topic belongs to: the likest one, and a dismissed one only where it is nearly the same.

    Where a family has no topics (an error code, a drift), the family alone decides.
    """
    best: Known | None = None
    best_likeness = 0.0
    for one in known:
        if one.model != model or one.family != family:
            continue
        likeness = _likeness(one, topic) if family == ANSWERS else 1.0
        least = _SAME_AS_DISMISSED if one.is_dismissed else _SAME_TOPIC
        if likeness >= least and (likeness, one.is_dismissed) > (best_likeness, best.is_dismissed if best else False):
            best, best_likeness = one, likeness
    return best


# The family of what is about questions.
ANSWERS: Final = "answers"


def features_of(words: Sequence[str], question: str) -> tuple[str, ...]:
    """What a question is grouped by: its words of content (all of it in one, where it has none), and its pairs of words."""
    said = _WORD.findall(question.casefold())
    content = tuple(words[:_WORDS_MAX]) or ("_".join(said)[:_BARE_CHARACTERS],)
    last = said[-_PAIRED_WORDS:]
    return (*content, *(f"{one} {two}" for one, two in itertools.pairwise(last)))


def _likeness(known: Known, topic: Topic) -> float:
    return known.topic.likeness_of_content(topic) if known.is_dismissed else known.topic.likeness(topic)


def _content(counts: Counter[str]) -> Counter[str]:
    return Counter({feature: count for feature, count in counts.items() if " " not in feature})


def _norm(counts: Counter[str]) -> float:
    return math.sqrt(sum(count * count for count in counts.values()))


def _cosine(one: Counter[str], one_norm: float, other: Counter[str], other_norm: float) -> float:
    if not one_norm or not other_norm:
        return 0.0
    less, more = sorted((one, other), key=len)
    return sum(count * more[feature] for feature, count in less.items()) / (one_norm * other_norm)
