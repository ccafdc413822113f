"""What an answer is worth beside its reference, 0..1; asks no model.

exact      1 when both are the same text, but for blanks, quotes around it, and a full stop at its end. Case counts: an
           answer in capitals may be exactly what was asked for
contains   1 when the reference is in the answer, whatever their case
token_f1   harmonic mean of precision and recall over words, without articles, punctuation and case (Rajpurkar et al.,
           SQuAD, arXiv:1606.05250, section 6.1); scripts without spaces are compared by characters
json       1 when both are JSON of equal value, however written; 1 and 1.0 are equal, 1 and true are not
auto       json for a reference that is a JSON object or array, exact for a short one, token_f1 for a long one
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import Any, Final, Literal

import msgspec

from schemas.bodies.learning_data import Metric

Scored = Literal["exact", "contains", "token_f1", "json"]

# A reference up to so many words is short: a name, a number, a phrase, which is right or wrong as a whole.
_SHORT_WORDS: Final = 12

# Characters compared of an answer or a reference, at most.
_CHARACTERS: Final = 65_536

_ARTICLES: Final = frozenset({"a", "an", "the"})
_QUOTES: Final = "\"'`“”‘’«»"

# Runs of letters and digits; characters of Chinese, Japanese and Korean one by one.
_WORDS: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


def metric_for(metric: Metric, reference: str) -> Scored:
    """The metric of one item."""
    if metric != "auto":
        return metric
    if reference.lstrip()[:1] in ("{", "[") and isinstance(_json(reference), dict | list):
        return "json"
    return "exact" if len(reference.split()) <= _SHORT_WORDS else "token_f1"


def score(metric: Scored, answer: str, reference: str) -> float:
    """What an answer is worth."""
    answer, reference = answer[:_CHARACTERS], reference[:_CHARACTERS]
    match metric:
        case "exact":
            return float(_plain(answer) == _plain(reference))
        case "contains":
            return float(_plain(reference).casefold() in _plain(answer).casefold())
        case "json":
            return float(_same(_json(answer), _json(reference)))
        case "token_f1":
            return _token_f1(_words(answer), _words(reference))


def _plain(text: str) -> str:
    collapsed = " ".join(unicodedata.normalize("NFC", text).split())
    return collapsed.strip(_QUOTES).removesuffix(".").strip()


def _words(text: str) -> list[str]:
    return [word for word in _WORDS.findall(unicodedata.normalize("NFC", text).casefold()) if word not in _ARTICLES]


def _token_f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    shared = (Counter(answer) & Counter(reference)).total()
    return 2 * shared / (len(answer) + len(reference))


_NO_JSON: Final = object()


def _json(text: str) -> Any:
    try:
        return msgspec.json.decode(text.strip())
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return _NO_JSON


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON values; what is no JSON equals nothing."""
    if one is _NO_JSON or isinstance(one, bool) != isinstance(other, bool):
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_same(*pair) for pair in zip(one, other, strict=True))
    return bool(one == other)
