"""A short text made of the most central sentences of longer ones: no model, the same answer every time.

A sentence is central when its words are those that other sentences use too (the sum-basic idea: Nenkova and
Vanderwende, "The impact of frequency on summarization", 2005); words already said count no more.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

# Characters of each text that are looked at: a summary of a few sentences gains nothing from more.
LOOKED_AT_CHARACTERS: Final = 32_768

# Letters below which a word says little about the subject: most articles, prepositions and pronouns are shorter.
WORD_LETTERS: Final = 4

# Added to the number of a sentence's words, so that a short exclamation does not win by its one common word.
LENGTH_DAMPING: Final = 4

_SENTENCE: Final = re.compile(
    r"[^.!?\u2026\u3002\uff01\uff1f\n]*(?:[.!?\u2026]+[\"'\u2019\u201d)\]]*(?=\s|$)|[\u3002\uff01\uff1f]|[.!?\u2026]+|\n|$)"
)
_WORD: Final = re.compile(rf"\w{{{WORD_LETTERS},}}")


class _Sentence(NamedTuple):
    place: int
    text: str
    words: frozenset[str]


def summarise(texts: Sequence[str], max_characters: int) -> str:
    """The most central sentences of `texts` in their order, in `max_characters` at most; one of them cut if need be."""
    sentences = _sentences(texts)
    if not sentences:
        return ""
    uses = Counter(word for sentence in sentences for word in sentence.words)
    left = max_characters
    chosen: list[_Sentence] = []
    waiting = sentences
    while waiting:
        best = max(waiting, key=lambda sentence: (_centrality(sentence, uses), -sentence.place))
        waiting = [other for other in waiting if other is not best and len(other.text) + 1 <= left]
        if len(best.text) <= left:
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
        for match in _SENTENCE.finditer(text[:LOOKED_AT_CHARACTERS]):
            sentence = " ".join(match.group().split())
            if sentence and sentence not in seen:
                seen.add(sentence)
                found.append(_Sentence(len(found), sentence, frozenset(_WORD.findall(sentence.casefold()))))
    return found


def _centrality(sentence: _Sentence, uses: Counter[str]) -> float:
    return sum(uses[word] for word in sentence.words) / (len(sentence.words) + LENGTH_DAMPING)


def _shortened(text: str, max_characters: int) -> str:
    """`text` up to its last whole word that fits, with an ellipsis."""
    begun = text[: max_characters - 1]
    words, space, _ = begun.rpartition(" ")
    return (words if space else begun).rstrip() + "\u2026"
