"""A short text made of the most central sentences of longer ones: no model, the same answer every time.

A sentence is central when its words are those that other sentences use too (the sum-basic idea: Nenkova and
Vanderwende, "The impact of frequency on summarization", 2005); words already said count no more.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heappush
from typing import Final, NamedTuple

# Characters that are looked at, of all texts together: a summary of a few sentences gains nothing from more.
LOOKED_AT_CHARACTERS: Final = 32_768

# Letters below which a word says little about the subject: most articles, prepositions and pronouns are shorter.
WORD_LETTERS: Final = 4

# Added to the number of a sentence's words, so that a short exclamation does not win by its one common word.
LENGTH_DAMPING: Final = 4

# Where a sentence ends: marks before white space, with what closes behind them; marks of which one is no dot, also
# without white space (a dot alone stands in numbers and names); a mark of Chinese and Japanese; a line. No mark is looked
# at twice, or a line of nothing but dots would take the square of its length.
_END: Final = re.compile(
    r"(?<![.!?\u2026])[.!?\u2026]++[\"'\u2019\u201d)\]]*+(?=\s|$)|[!?\u2026][.!?\u2026]*+|[\u3002\uff01\uff1f\n]"
)
_WORD: Final = re.compile(rf"\w{{{WORD_LETTERS},}}")


class _Sentence(NamedTuple):
    place: int
    text: str
    words: frozenset[str]


def share(texts: int) -> int:
    """Characters that are looked at of each of so many texts."""
    return LOOKED_AT_CHARACTERS // max(1, texts)


def summarise(texts: Sequence[str], max_characters: int) -> str:
    """The most central sentences of `texts` in their order, in `max_characters` at most; one of them cut if need be."""
    sentences = _sentences(texts)
    if not sentences:
        return ""
    uses = Counter(word for sentence in sentences for word in sentence.words)
    left = max_characters
    chosen: list[_Sentence] = []
    # The most central one first. Words only ever count less, so a sentence is at most as central as when it was put in:
    # only the one in front has to be looked at again, not all of them for each that is chosen.
    waiting = [(-_centrality(sentence, uses), sentence.place) for sentence in sentences]
    heapify(waiting)
    while waiting:
        known, place = heappop(waiting)
        best = sentences[place]
        if len(best.text) > left:
            continue
        actual = -_centrality(best, uses)
        if actual != known and waiting and (actual, place) > waiting[0]:
            heappush(waiting, (actual, place))
            continue
        chosen.append(best)
        left -= len(best.text) + 1
        for word in best.words:
            uses[word] = 0
    if not chosen:
        return _shortened(sentences[0].text, max_characters)
    return " ".join(sentence.text for sentence in sorted(chosen))


def _sentences(texts: Sequence[str]) -> list[_Sentence]:
    found: list[_Sentence] = []
    seen: set[str] = set()
    for text in texts:
        for part in _parts(text[: share(len(texts))]):
            sentence = " ".join(part.split())
            if sentence and sentence not in seen:
                seen.add(sentence)
                found.append(_Sentence(len(found), sentence, frozenset(_WORD.findall(sentence.casefold()))))
    return found


def _parts(text: str) -> Iterator[str]:
    begin = 0
    for end in _END.finditer(text):
        yield text[begin : end.end()]
        begin = end.end()
    yield text[begin:]


def _centrality(sentence: _Sentence, uses: Counter[str]) -> float:
    return sum(uses[word] for word in sentence.words) / (len(sentence.words) + LENGTH_DAMPING)


def _shortened(text: str, max_characters: int) -> str:
    """`text` up to its last whole word that fits, with an ellipsis."""
    begun = text[: max_characters - 1]
    words, space, _ = begun.rpartition(" ")
    return (words if space else begun).rstrip() + "\u2026"
