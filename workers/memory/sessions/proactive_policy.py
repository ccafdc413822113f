"""What the proactive monitor decides: whether the topic has turned, what is close to it, what is worth saying. Pure."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Sequence
from operator import mul
from typing import Final, NamedTuple, TypeVar

from schemas.bodies.sessions import Evidence

T = TypeVar("T")

# Turns on the two sides of a possible change of topic.
CURRENT_TURNS: Final = 2
EARLIER_TURNS: Final = 6

# A letter, then letters, digits and apostrophes: a word long enough to be about something.
_WORD: Final = re.compile(r"[^\W\d_][\w'\u2019]{2,}")

# English words that say nothing about a topic.
_EMPTY_WORDS: Final = frozenset(
    """
    about actually after again all also always and any anything are aren't around ask away back bad because been before
    being best better both bring but came can can't come could couldn't definitely did didn't does doesn't doing don't
    done down each else even ever every everyone everything feel feeling few find first for from gave get getting give
    glad goes going gonna good got great had happy has hasn't have haven't having hear heard hello help her here hers
    hey him his hope how i'd i'll i'm i've isn't its it's just keep kind know last let let's like little long look looking
    lot lots love made make making many may maybe mean might mine more most much must need never new nice not nothing now
    off okay once one only other our ours out over own people please pretty probably put quite really right said same say
    see seem seems she should since some someone something soon sound sounds still such sure take talk tell than thank
    thanks that that's the their them then there there's these they they're thing things think this those thought through
    time today together told too tried try trying until upon use used very wanna want wanted was wasn't way week well
    went were weren't what what's when where which while who why will with without won't work would wouldn't wow yeah
    year years yes yet you you'd you'll you're you've your yours
    """.split()
)


class Idea(NamedTuple):
    """A suggestion before it is known whether it was made already.

    about: what it is about, which tells two ideas of one kind apart. evidence_from: the session of the
    evidence, or its memory or document by `suggestions.source_of`.
    """

    kind: str
    about: str
    text: str
    reason: str
    confidence: float
    evidence: list[Evidence]
    evidence_from: str


class Thresholds(NamedTuple):
    """Distances, 0 to 1: at `turned` the topic is another one; below `settled` a new turn can be seen again."""

    turned: float
    settled: float


# Measured on long conversations between two people, two turns of another conversation after six of one against two of
# the same session: by words 65 % are seen and 6 % are false, by vectors of the default encoder 72 % and 4 %.
TERM_THRESHOLDS: Final = Thresholds(turned=0.92, settled=0.85)
VECTOR_THRESHOLDS: Final = Thresholds(turned=0.65, settled=0.55)


def terms(text: str) -> frozenset[str]:
    """The words of a text that may be about something, without their most common endings."""
    return frozenset(_stem(word) for word in _WORD.findall(text.lower()) if word not in _EMPTY_WORDS)


def turned_at(distances: Sequence[float | None], thresholds: Thresholds) -> list[int]:
    """The places where the topic turned, of the distance at each place; None where it is unknown.

    After a change the distance must fall below `settled` before the next one counts: a topic that is still finding its
    words is one change, not several.
    """
    places = []
    is_settled = True
    for place, distance in enumerate(distances):
        if distance is None:
            continue
        if is_settled and distance >= thresholds.turned:
            places.append(place)
            is_settled = False
        elif distance < thresholds.settled:
            is_settled = True
    return places


def term_distances(turns: Sequence[frozenset[str]]) -> list[float | None]:
    """For each turn: how far the turns up to it are from those before, by the words they share, 0 to 1.

    1 - |current & earlier| / min(|current|, |earlier|); None at the beginning and where too little is said.
    """
    distances: list[float | None] = []
    for place in range(len(turns)):
        earlier, current = _windows(turns, place)
        before, after = frozenset().union(*earlier), frozenset().union(*current)
        smaller = min(len(before), len(after))
        is_enough = len(earlier) >= CURRENT_TURNS and smaller >= 4
        distances.append(1.0 - len(before & after) / smaller if is_enough else None)
    return distances


def vector_distances(turns: Sequence[bytes]) -> list[float | None]:
    """For each turn: the cosine distance between the mean vectors of the turns up to it and of those before, 0 to 1.

    turns: float32 vectors of length 1. None at the beginning.
    """
    vectors = [array("f", turn) for turn in turns]
    distances: list[float | None] = []
    for place in range(len(vectors)):
        earlier, current = _windows(vectors, place)
        is_enough = len(earlier) >= CURRENT_TURNS
        distances.append(max(0.0, 1.0 - _cosine(_sum(earlier), _sum(current))) if is_enough else None)
    return distances


def similarity(one: bytes, other: bytes) -> float:
    """Cosine of two float32 vectors, -1 to 1."""
    return _cosine(array("f", one), array("f", other))


def shared_terms(topic: frozenset[str], text: str) -> list[str]:
    """The words that a topic and a text share, longest first: long words are rarer."""
    return sorted(topic & terms(text), key=lambda word: (-len(word), word))


def relatedness(topic: frozenset[str], shared: Sequence[str], cosine: float | None) -> float:
    """How surely a text belongs to a topic, 0 to 1, by the words they share and, where known, by their vectors.

    Two shared words are the least that counts without a vector; a cosine of 0.35 with one is the least with it.
    """
    coverage = len(shared) / len(topic) if topic else 0.0
    by_terms = min(0.9, 0.25 * len(shared) + 0.5 * coverage) if len(shared) >= 2 else 0.0
    if cosine is None:
        return by_terms
    if cosine < 0.35:
        return 0.0
    return min(0.95, max(0.5 * by_terms + 0.6 * cosine, cosine))


def _windows(turns: Sequence[T], place: int) -> tuple[Sequence[T], Sequence[T]]:
    start = max(0, place + 1 - CURRENT_TURNS)
    return turns[max(0, start - EARLIER_TURNS) : start], turns[start : place + 1]


def _sum(vectors: Sequence[array[float]]) -> array[float]:
    return array("f", map(sum, zip(*vectors, strict=True)))


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    norm = math.sqrt(sum(map(mul, one, one)) * sum(map(mul, other, other)))
    return sum(map(mul, one, other)) / norm if norm else 0.0


def _stem(word: str) -> str:
    word = word.replace("\u2019", "'").removesuffix("'s")
    for ending in ("ing", "ies", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word
