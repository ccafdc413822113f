"""What a turn says that is worth coming back to: facts about its speaker, promises with a date. English; pure."""

from __future__ import annotations

import math
import re
import unicodedata
from datetime import datetime
from typing import Final, NamedTuple

from workers.memory.search.times import Span, find_times, has_time

# Characters of a turn that are read: what people say of themselves stands in short turns, pasted text in long ones.
READ_CHARACTERS: Final = 2_000

# Characters of a value, and of a sentence that is quoted.
VALUE_CHARACTERS: Final = 80
SENTENCE_CHARACTERS: Final = 240

_DAY_S: Final = 86_400.0


class Stated(NamedTuple):
    """A fact that somebody states about themselves, as `memory.remember` would take it, and the sentence that does."""

    key: str
    value: str
    category: str
    confidence: float
    sentence: str


class Promise(NamedTuple):
    """Something to be done at a time: `since` <= due < `until`, epoch seconds."""

    sentence: str
    since: float
    until: float
    confidence: float


_SENTENCE: Final = re.compile(r"[^.!?\n]+(?:\.(?=\S)[^.!?\n]*)*[.!?]*")

_WORD: Final = re.compile(r"[^\W_]+")

# What goes before, within the sentence, and makes it no statement.
_UNSURE: Final = re.compile(
    r"\b(?:if|whether|when|unless|suppose|imagine|pretend|should|would|could|might|used to|did|does|do|says?|said|wish)\b",
    re.I,
)
_END_OF_VALUE: Final = re.compile(
    r"[,;:()\"]|\s-\s|\s+(?:but|because|since|so|which|who|when|while|though|and I|and my)\b", re.I
)
_NO_VALUE: Final = re.compile(
    r"(?:it|that|this|these|those|them|him|her|you|how|what|when|where|to know|the idea)\b", re.I
)

# Small letters, which begin no name; a letter of a script that has no capitals may. They lie below U+0590 and in
# Latin Extended Additional and Greek Extended.
_SMALL: Final = "".join(chr(code) for code in (*range(0x590), *range(0x1E00, 0x2000)) if chr(code).islower())
_NAME_WORD: Final = rf"[^\W\d_{_SMALL}][\w'\u2019-]*"
_NAME: Final = rf"(?P<value>{_NAME_WORD}(?:\s+{_NAME_WORD}){{0,3}})"
_I_AM: Final = r"\bI(?:'m|\u2019m| am)"


class _Pattern(NamedTuple):
    form: re.Pattern[str]
    key: str
    category: str
    confidence: float


# `{what}` and `{value}` in a key are filled in, so that two preferences have two keys.
_PATTERNS: Final = [
    _Pattern(re.compile(form), key, category, confidence)
    for form, key, category, confidence in (
        (rf"\b[Mm]y name(?:'s|\u2019s| is) {_NAME}", "name", "fact", 0.9),
        (rf"\b(?:[Pp]lease |[Jj]ust |[Yy]ou can )call me {_NAME}", "name to use", "preference", 0.8),
        (r"\b[Mm]y birthday is (?:on )?(?P<value>.+)", "birthday", "fact", 0.85),
        (
            r"\b[Mm]y favou?rite (?P<what>[A-Za-z][A-Za-z -]{1,30}?) (?:is|are) (?P<value>.+)",
            "favourite {what}",
            "preference",
            0.85,
        ),
        (rf"{_I_AM} allergic to (?P<value>.+)", "allergic to {value}", "fact", 0.85),
        (rf"{_I_AM} (?:a )?(?P<value>vegetarian|vegan|pescatarian)\b", "diet", "preference", 0.8),
        (r"\bI live in (?P<value>.+)", "home", "fact", 0.8),
        (r"\bI work (?:as|at|for) (?P<value>.+)", "work", "fact", 0.75),
        (
            r"\bI (?:really |much |strongly |always |usually )?prefer (?P<value>.+)",
            "prefers {value}",
            "preference",
            0.75,
        ),
        (
            r"\bI (?:really |absolutely )?(?:hate|dislike|can't stand|cannot stand|don't like|do not like) (?P<value>.+)",
            "dislikes {value}",
            "preference",
            0.6,
        ),
        (r"\bI (?:really |absolutely )?(?:like|love|enjoy) (?P<value>.+)", "likes {value}", "preference", 0.55),
    )
]

_INTENT: Final = re.compile(
    r"\b(?:(?:I|we)(?:'ll|\u2019ll| will| have to| need to| must| should| promised to| plan to| intend to)"
    r"|(?:I'm|I\u2019m|I am|we're|we are) (?:going to|due to|supposed to)"
    r"|remind me|don't (?:let me )?forget|do not forget|deadline|is due|are due|to-?do:|to do:|appointment|promised)\b",
    re.I,
)
_WEEKDAY: Final = re.compile(r"(?:mon|tues|wednes|thurs|fri|satur|sun)day", re.I)
_YEAR: Final = re.compile(r"\b(?:19|20)\d\d\b")


def sentences(text: str) -> list[str]:
    """The sentences of the beginning of a text."""
    return [found for match in _SENTENCE.finditer(text[:READ_CHARACTERS]) if (found := match[0].strip())]


def stated_facts(text: str) -> list[Stated]:
    """What the speaker of `text` states about themselves; nothing from questions, wishes and what others said."""
    found: dict[str, Stated] = {}
    # Composed, so that an accent typed apart from its letter does not end a name.
    for sentence in sentences(unicodedata.normalize("NFC", text[:READ_CHARACTERS])):
        if sentence.endswith("?"):
            continue
        for pattern in _PATTERNS:
            match = pattern.form.search(sentence)
            if match is None or _UNSURE.search(sentence, 0, match.start()):
                continue
            value = _value(match["value"])
            if value:
                what = " ".join(match.groupdict().get("what", "").lower().split())
                key = pattern.key.format(what=what, value=value.lower())
                stated = Stated(key, value, pattern.category, pattern.confidence, sentence[:SENTENCE_CHARACTERS])
                found.setdefault(key, stated)
                break
    return list(found.values())


def words_of(text: str) -> list[str]:
    """The words of a text, in order, as they are written."""
    return _WORD.findall(text)


def holds(text: str, value: str) -> bool:
    """True where the words of `value` stand in `text` one after the other, in whatever case."""
    return f" {_folded(value)} " in f" {_folded(text)} "


def _folded(text: str) -> str:
    return " ".join(words_of(unicodedata.normalize("NFKC", text).casefold()))


def promises(text: str, at: float) -> list[Promise]:
    """What the speaker of `text`, said at `at` (epoch seconds), is to do at a time after that."""
    if not has_time(text[:READ_CHARACTERS]):
        return []
    found: list[Promise] = []
    for sentence in sentences(text):
        if sentence.endswith("?") or not _INTENT.search(sentence):
            continue
        due = [when for span in find_times(sentence, at) if (when := _ahead(span, sentence, at)) is not None]
        if due:
            since, until, confidence = min(due)
            found.append(Promise(sentence[:SENTENCE_CHARACTERS], since, until, confidence))
    return found


def _value(text: str) -> str:
    """The value up to where the clause ends; empty where it refers to something outside the sentence."""
    end = _END_OF_VALUE.search(text)
    value = " ".join((text[: end.start()] if end else text).strip(" .!").split())
    if not value or len(value) > VALUE_CHARACTERS or _NO_VALUE.match(value):
        return ""
    return value


def _ahead(span: Span, sentence: str, at: float) -> tuple[float, float, float] | None:
    """When a promise made at `at` is due; None for a time that is past, or too long to be a date."""
    since, until = span.since, span.until
    if math.isinf(until):
        return None
    if math.isinf(since):
        since = until - _DAY_S  # "by Friday": due on that day at the latest
    words = sentence[span.start : span.end]
    if until <= at and _WEEKDAY.search(words):
        # Times are read as looking back; a promise looks forward.
        since, until = since + 7 * _DAY_S, until + 7 * _DAY_S
    elif until <= at and not _YEAR.search(words):
        since, until = _year_later(since), _year_later(until)
    if until <= at or until - since > 8 * _DAY_S:
        return None
    # An intent speaks for reading the words as a date, also where they alone might mean something else.
    return since, until, 0.5 + 0.4 * span.confidence


def _year_later(moment: float) -> float:
    then = datetime.fromtimestamp(moment)
    try:
        return then.replace(year=then.year + 1).timestamp()
    except ValueError:
        return moment  # 29 February
