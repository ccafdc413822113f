"""When two examples are about one fact: their questions without what does not matter, compared by words; pure.

Paraphrases of one fact must never be on both sides of the split, or a gate measures memory. Questions made from one
template ("What is the capital of ...") are different facts all the same: what tells them apart is a word of content.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

import msgspec

# Words that say nothing about what is asked. Negations are no such words.
_STOP_WORDS: Final = frozenset(
    """
    a about am an and any are as at be been but by can could did do does for from get give had has have hello hey hi how i
    if in into is it its just kindly know let like many me much my of on or please s say shall should so some tell than thank thanks
    that the their them then there these they this those to us was we were what what's whats when where which who whom
    whose why will with would you your
    der die das den dem des ein eine einen einem einer eines ich du er sie es wir ihr und oder ist sind war was wer wie wo
    wann warum welche welcher welches bitte mir mich mein meine dein deine von vom zu zum zur im am auf mit für
    """.split()
)

# Endings of English words that leave the meaning. A stem is at least three letters long.
_ENDINGS: Final = ("'s", "ing", "ies", "ed", "es", "ly", "s")
_STEM_LETTERS: Final = 3

# Words of content a question is looked back for: "And why?" is a question only together with the one before it.
_QUESTION_WORDS: Final = 2

# Characters of a question that are looked at, the last ones: what is asked stands at the end of a long text.
_QUESTION_CHARACTERS: Final = 8_192

# From so many words of content on a question is compared as a text, and not word by word.
_LONG_WORDS: Final = 24

# Jaccard likeness of letter groups from which two short questions with nearly the same words are one; of word pairs from
# which two long ones are. Looked up by eye on paraphrases and on templates with one word more.
_SHORT_LIKENESS: Final = 0.75
_LONG_LIKENESS: Final = 0.8

# Part of all words of content of two questions with the same answer that both must have.
_SHARED_WORDS: Final = 0.5

# Words of content by which a question with the same answer is found, the longest: all of a short one.
_ANSWER_KEY_WORDS: Final = 24

# MinHash of long questions: bands of so many values. At a likeness of 0.8 a pair is missed once in 1,000; at 0.4 it is
# compared once in two. 1 - (1 - s**r)**b; Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4.2.
_BANDS: Final = 10
_BAND_ROWS: Final = 3

# Control and format characters (Unicode categories Cc and Cf) but for white space.
_INVISIBLE: Final = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_SPACE: Final = re.compile(r"\s+")
_WORD: Final = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_PARAGRAPH: Final = re.compile(r"\n\s*\n")


class Likeness(msgspec.Struct, frozen=True, array_like=True):
    """What a row is compared by. question: normalised. words: its stems of content, sorted. answer: hash of the answer."""

    question: str
    words: tuple[str, ...]
    answer: str


def normalise(text: str) -> str:
    """Compatibility forms, case, and white space made one (Unicode NFKC and case folding); control characters gone."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _SPACE.sub(" ", _INVISIBLE.sub("", folded)).strip()


def digest(*parts: str) -> str:
    """SHA-256 over the parts, in hexadecimal; each is told apart from the next."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        whole.update(len(data).to_bytes(8, "big") + data)
    return whole.hexdigest()


def likeness_of(texts: dict[str, Any]) -> Likeness:
    """`texts`: messages or prompt, and answer, as `drafts.plain` gives them."""
    question = normalise(_question(texts))[-_QUESTION_CHARACTERS:]
    bare = " ".join(_WORD.findall(question)) or question
    return Likeness(bare, tuple(sorted(set(_stems(question)))), answer_of(texts["answer"]))


def context_of(texts: dict[str, Any]) -> str:
    """Hash of all that was said before the answer: the same for two rows that ask exactly the same."""
    if texts["messages"] is None:
        return digest("prompt", normalise(texts["prompt"]))
    said = [part for message in texts["messages"] for part in (message["role"], normalise(message["content"]))]
    return digest("messages", *said)


def content_of(texts: dict[str, Any]) -> str:
    """Hash of the whole example but for white space, case and forms of letters: exact duplicates share it."""
    return digest(context_of(texts), normalise(texts["answer"]), normalise(texts["rejected"] or ""))


def answer_of(answer: str) -> str:
    """Hash of what an answer says: "In the shed." and "Shed" have the same; of a long one, every word counts."""
    normal = normalise(answer)
    words = sorted(set(_stems(normal)))
    if not words or len(words) > _LONG_WORDS:
        words = _WORD.findall(normal) or [normal]
    return digest(*words)


def _question(texts: dict[str, Any]) -> str:
    if texts["messages"] is None:
        blocks = [block for block in _PARAGRAPH.split(texts["prompt"]) if block.strip()]
    else:
        blocks = [message["content"] for message in texts["messages"] if message["role"] == "user"]
    question = ""
    for block in reversed(blocks):
        question = f"{block} {question}" if question else block
        if len(set(_stems(normalise(question[-_QUESTION_CHARACTERS:])))) >= _QUESTION_WORDS:
            break
    return question


def _stems(text: str) -> Iterator[str]:
    for word in _WORD.findall(text):
        if word not in _STOP_WORDS:
            yield _stem(word)


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= _STEM_LETTERS:
            stem = word[: -len(ending)]
            # "stopped" and "stop", "making" and "make" are one word.
            stem = stem[:-1] if len(stem) > _STEM_LETTERS and stem[-1] == stem[-2] else stem
            return stem.rstrip("e") if len(stem) > _STEM_LETTERS else stem
    return word.rstrip("e") if len(word) > _STEM_LETTERS + 1 else word


def is_same_fact(one: Likeness, other: Likeness, *, answer_tells: bool = True) -> bool:
    """True when one must not be tested on what the other taught.

    The same question; nearly the same words and at most more of them on one side; or the same answer to a question with
    half of its words. `answer_tells` False: the answer is one that many questions have ("yes"), and says nothing.
    """
    if one.question == other.question:
        return True
    if one.words and one.words == other.words:
        return True
    if answer_tells and one.answer == other.answer and _shared(one.words, other.words) >= _SHARED_WORDS:
        return True
    if len(one.words) > _LONG_WORDS and len(other.words) > _LONG_WORDS:
        return _jaccard(_pairs(one.question), _pairs(other.question)) >= _LONG_LIKENESS
    less, more = sorted((set(one.words), set(other.words)), key=len)
    # One word more at most: that is what rows can be looked up by (see `keys`).
    if len(less) < _QUESTION_WORDS or len(more) - len(less) != 1 or not less < more:
        return False
    return _jaccard(_letters(one.question), _letters(other.question)) >= _SHORT_LIKENESS


def keys(row: Likeness, *, answer_tells: bool = True) -> tuple[list[bytes], list[bytes]]:
    """What a row is kept under, and what others of its fact are looked for by.

    Two short questions of one fact meet in at least one key; of two long ones, one pair in 1,000 is missed.
    """
    kept = [_key("q", row.question)]
    sought = list(kept)
    if row.words:
        whole = _key("w", *row.words)
        kept.append(whole)
        sought.append(whole)
    if len(row.words) > _LONG_WORDS:
        bands = [_key("b", str(number), *map(str, band)) for number, band in enumerate(_bands(row.question))]
        kept += bands
        sought += bands
    else:
        lacking = [row.words[:index] + row.words[index + 1 :] for index in range(len(row.words))]
        kept += [_key("l", *words) for words in lacking]
        sought += [_key("w", *words) for words in lacking if words]
        sought.append(_key("l", *row.words))
    by_answer = [_key("a", row.answer, word) for word in _telling(row.words)] if answer_tells else []
    return list(dict.fromkeys((*kept, *by_answer))), list(dict.fromkeys((*sought, *by_answer)))


def _telling(words: Sequence[str]) -> list[str]:
    return sorted(words, key=lambda word: (-len(word), word))[:_ANSWER_KEY_WORDS]


def _key(*parts: str) -> bytes:
    # Eight bytes: of ten million keys two are alike by chance once in 400,000 installations, and compared for nothing.
    return hashlib.blake2b("\x1f".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _shared(one: Sequence[str], other: Sequence[str]) -> float:
    """Jaccard likeness of two sets of words, where words that differ by one slip of the keyboard count as one."""
    rest = set(other) - set(one)
    same = len(other) - len(rest)
    if not same:
        return 0.0  # slips alone are not enough, and nothing to look a row up by
    for word in set(one) - set(other):
        twin = next((candidate for candidate in rest if _is_slip(word, candidate)), None)
        if twin is not None:
            rest.discard(twin)
            same += 1
    return same / (len(one) + len(other) - same)


def _is_slip(one: str, other: str) -> bool:
    """True for two words of at least four letters, without digits, one edit apart or with two neighbours swapped."""
    if min(len(one), len(other)) < 4 or abs(len(one) - len(other)) > 1 or not (one.isalpha() and other.isalpha()):
        return False
    start = next(
        (index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    left, right = one[start:], other[start:]
    if left[1:] == right[1:] or left == right[1:] or left[1:] == right:
        return True
    return left[:2] == right[1::-1] and left[2:] == right[2:]


def _jaccard(one: frozenset[Any], other: frozenset[Any]) -> float:
    return len(one & other) / len(one | other) if one or other else 1.0


@lru_cache(maxsize=2_048)
def _letters(question: str) -> frozenset[str]:
    """Groups of four letters."""
    return frozenset(question[index : index + 4] for index in range(max(len(question) - 3, 1)))


@lru_cache(maxsize=512)
def _pairs(question: str) -> frozenset[tuple[str, str]]:
    words = question.split()
    return frozenset(pairwise(words))


def _bands(question: str) -> list[tuple[int, ...]]:
    """MinHash values of the pairs of words, in bands.

    One permutation hashing: every pair is hashed once and falls into one of the bins, whose smallest value counts. An empty
    bin borrows from one that is not, chosen by its number and a count of attempts, so that two texts borrow alike.
    Source: Shrivastava, "Optimal Densification for Fast and Accurate Minwise Hashing", ICML 2017, algorithm 1.
    """
    bins: list[int | None] = [None] * (_BANDS * _BAND_ROWS)
    for value in map(_hash_of, _pairs(question)):
        number = value % len(bins)
        kept = bins[number]
        bins[number] = value if kept is None else min(kept, value)
    whole = [_borrowed(bins, number) for number in range(len(bins))]
    return [tuple(whole[start : start + _BAND_ROWS]) for start in range(0, len(whole), _BAND_ROWS)]


def _hash_of(pair: Iterable[str]) -> int:
    return int.from_bytes(_key("p", *pair), "big")


def _borrowed(bins: Sequence[int | None], number: int) -> int:
    value = bins[number]
    attempt = 0
    while value is None:
        attempt += 1
        value = bins[int.from_bytes(_key("d", str(number), str(attempt)), "big") % len(bins)]
    return value
