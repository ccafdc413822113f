"""Dates and relative times in English text, resolved against a reference time. Knows no store and no clock.

What it knows, with 17 May 2024, a Friday, as the reference:

    2024-05-03 · 3 May 2024 · May 3rd, 2024 · 3rd of May      that day; without a year the nearest one that has passed
    May 2024 · in May · last May · early/mid/late May 2024 · the first week of May · the end of 2023
    in 2023 · summer 2023 · last winter
    today, tonight, this morning · yesterday, last night · the day before yesterday · tomorrow
    two days ago · a week ago · a couple of months ago · a few years ago · in three weeks · two weeks from now
    last/this/next week, month, year, weekend, Friday · on Friday · the past 3 days · recently
    before/after/since/until any of them · between A and B · from A to B

Days begin at midnight of this machine's time zone, weeks on Monday. Seasons are those of the northern hemisphere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Final, NamedTuple

# Calendar words mean the days of the person who says them, so the dates here are naive: those of this machine's zone.
# ruff: noqa: DTZ001


class Span(NamedTuple):
    """A stretch of time that a text speaks of: `since` <= t < `until`, epoch seconds, either may be infinite.

    start, end: the characters that say so. confidence: 0 to 1, how surely the words mean this stretch.
    """

    since: float
    until: float
    start: int
    end: int
    confidence: float


_Range = tuple[datetime, datetime]

_MONTHS: Final = {
    name: number
    for number, names in enumerate(
        (
            ("january", "jan"),
            ("february", "feb"),
            ("march", "mar"),
            ("april", "apr"),
            ("may",),
            ("june", "jun"),
            ("july", "jul"),
            ("august", "aug"),
            ("september", "sept", "sep"),
            ("october", "oct"),
            ("november", "nov"),
            ("december", "dec"),
        ),
        start=1,
    )
    for name in names
}
_WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
# First month of each season; a winter ends in the year after the one it begins in.
_SEASONS: Final = {"spring": 3, "summer": 6, "autumn": 9, "fall": 9, "winter": 12}
_NUMBERS: Final = {
    word: number
    for number, word in enumerate(
        "one two three four five six seven eight nine ten eleven twelve".split(),
        start=1,
    )
} | {"a": 1, "an": 1, "couple": 2, "few": 3, "several": 4}
_VAGUE: Final = frozenset(("couple", "few", "several"))

_MONTH: Final = r"(?P<month>" + "|".join(sorted(_MONTHS, key=len, reverse=True)) + r")\b\.?"
_YEAR: Final = r"(?P<year>(?:19|20)\d\d)\b"
_DAY: Final = r"(?P<day>[0-3]?\d)(?:st|nd|rd|th)?\b"
_WEEKDAY: Final = r"(?P<weekday>" + "|".join(_WEEKDAYS) + r")\b"
_SEASON: Final = r"(?P<season>spring|summer|autumn|fall|winter)\b"
_NUMBER: Final = r"(?:a\s+)?(?P<number>\d{1,4}|" + "|".join(_NUMBERS) + r")(?:\s+of)?(?:\s+more)?"
_UNIT: Final = r"(?P<unit>minute|hour|day|week|weekend|month|year|decade)s?\b"
_PART: Final = (
    r"(?:(?:the\s+)?(?P<part>early|mid|late|beginning|start|middle|end|(?:first|second|third|fourth|last)\s+week)"
    r"(?:\s+(?:of|in)|\s*-)?\s+(?:the\s+)?|(?P<mid>mid)-)?"
)
_WHICH: Final = r"(?P<which>last|this|next|past|previous|coming)"

# What a text must hold for the patterns of a family to be tried: most texts hold none, few more than one, and trying
# all patterns takes ten times as long as this.
_HINT: Final = re.compile(
    r"\b(?:(?P<day>yesterday|today|tonight|tomorrow|last\s+night|this\s+(?:morning|afternoon|evening))"
    r"|(?P<ago>ago|back|before\s+now|earlier)"
    r"|(?P<ahead>(?:in|within)\s+(?:the\s+next\s+)?\w+\s+(?:of\s+)?(?:minute|hour|day|week|month|year)s?"
    r"|from\s+(?:now|today))"
    r"|(?P<which>(?:last|this|next|past|previous|coming)\s+(?:week|weekend|month|year|decade|\w+day|spring|summer|autumn|fall"
    r"|winter|(?:\w+\s+){1,3}?(?:minute|hour|day|week|month|year)s))"
    r"|(?P<year>(?:19|20)\d\d)"
    r"|(?P<weekday>(?:mon|tues|wednes|thurs|fri|satur|sun)day)"
    r"|(?P<month>(?:jan|feb|mar|apr|may|june?|july?|aug|sept?|oct|nov|dec)(?:uary|ruary|ch|il|ust|ember|tember|ober)?)"
    r"|(?P<recent>recently|lately))\b",
    re.IGNORECASE,
)

# One of these words, a word ending in "day" or a year stands in whatever _HINT finds. To look for them takes a sixth of
# the time, and most texts hold none.
_HINT_WORDS: Final = (
    frozenset(
        "tonight tomorrow night morning afternoon evening ago back now earlier recently lately spring summer autumn fall winter"
        " minute minutes hour hours week weeks weekend month months year years decade decades".split()
    )
    | _MONTHS.keys()
)
_HINT_PARTS: Final = re.compile("day|19|20")
_LETTERS: Final = re.compile("[a-z]+")


def has_time(text: str) -> bool:
    """True where `text` seems to speak of a time. Cheap, and right most of the time."""
    return _may_have_time(text) and _HINT.search(text) is not None


def _may_have_time(text: str) -> bool:
    small = text.casefold()
    return _HINT_PARTS.search(small) is not None or not _HINT_WORDS.isdisjoint(_LETTERS.findall(small))


def find_times(text: str, reference: float) -> list[Span]:
    """The times that `text`, written at `reference` (epoch seconds), speaks of, in the order of the text."""
    hints = {hint.lastgroup for hint in _HINT.finditer(text)} if _may_have_time(text) else None
    if not hints:
        return []
    try:
        now = datetime.fromtimestamp(reference)
    except (OverflowError, OSError, ValueError):
        return []
    found: list[Span] = []
    for families, pattern, resolve, confidence in _PATTERNS:
        if hints.isdisjoint(families):
            continue
        for match in pattern.finditer(text):
            if any(match.start() < span.end and span.start < match.end() for span in found):
                continue
            try:
                resolved = resolve(match, now)
                if resolved is not None:
                    since, until = (moment.timestamp() for moment in resolved)
                    found.append(Span(since, until, _start_of(match), match.end(), confidence))
            except (OverflowError, OSError, ValueError):
                continue  # 31 February, the year 0: not a date
    found.sort(key=lambda span: span.start)
    return list(_bounded(text, found, reference))


def _start_of(match: re.Match[str]) -> int:
    """Where the time itself begins, behind a word such as `since` that says how to read it."""
    return max(match.start(), match.end("before") if "before" in match.re.groupindex else -1)


def closeness(moment: float, span: Span, slack_s: float) -> float:
    """How well `moment` fits `span`: 1 inside, falling by half for each `slack_s` of distance outside."""
    if span.since <= moment < span.until:
        return 1.0
    distance = span.since - moment if moment < span.since else moment - span.until
    return math.pow(0.5, min(distance / slack_s, 60.0))


_BOUND: Final = re.compile(r"\b(before|after|since|until|till|by)\s+(?:the\s+|early\s+|late\s+)?$", re.IGNORECASE)
_FROM: Final = re.compile(r"\b(between|from)\s+(?:the\s+)?$", re.IGNORECASE)
_TO: Final = re.compile(r"^\s*(?:and|to|until|till|through|-|\u2013)\s*(?:the\s+)?$", re.IGNORECASE)


def _bounded(text: str, spans: list[Span], reference: float) -> Iterator[Span]:
    """The spans with the words before them read: before and after make open ends, from A to B makes one of two."""
    index = 0
    while index < len(spans):
        span = spans[index]
        following = spans[index + 1] if index + 1 < len(spans) else None
        index += 1
        if following and _FROM.search(text[: span.start]) and _TO.match(text[span.end : following.start]):
            low, high = sorted((span, following))
            confidence = min(span.confidence, following.confidence)
            yield Span(low.since, max(low.until, high.until), span.start, following.end, confidence)
            index += 1
            continue
        bound = _BOUND.search(text[: span.start])
        match bound[1].lower() if bound else "":
            case "before" | "by":
                yield span._replace(since=-math.inf, until=span.since)
            case "until" | "till":
                yield span._replace(since=-math.inf)
            case "after":
                yield span._replace(since=span.until, until=math.inf)
            case "since":
                yield span._replace(until=max(reference, span.until))
            case _:
                yield span


# Calendar -------------------------------------------------------------------------------------------------------


def _midnight(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


def _days(first: datetime, count: float = 1) -> _Range:
    start = _midnight(first)
    return start, start + timedelta(days=count)


def _month(year: int, month: int, count: int = 1) -> _Range:
    return _first_of(year, month), _first_of(year, month + count)


def _first_of(year: int, month: int) -> datetime:
    """Midnight of the first of a month; months past 12 and below 1 run into the years beside."""
    return datetime(year + (month - 1) // 12, (month - 1) % 12 + 1, 1)


def _week(moment: datetime, offset: int = 0) -> _Range:
    return _days(moment - timedelta(days=moment.weekday() - 7 * offset), 7)


def _weekend(moment: datetime, offset: int = 0) -> _Range:
    saturday = _week(moment, offset)[0] + timedelta(days=5)
    return _days(saturday, 2)


def _part_of(whole: _Range, part: str | None) -> _Range:
    since, until = whole
    if not part:
        return whole
    third = (until - since) / 3
    word = part.lower().split()
    if word[-1] == "week":
        count = ("first", "second", "third", "fourth").index(word[0]) if word[0] != "last" else -1
        return (until - timedelta(days=7), until) if count < 0 else _days(since + timedelta(days=7 * count), 7)
    if word[0] in ("early", "beginning", "start"):
        return since, since + third
    if word[0] in ("late", "end"):
        return until - third, until
    return since + third, until - third


# Resolvers: what a match means beside `now` ------------------------------------------------------------------------


def _iso_day(match: re.Match[str], now: datetime) -> _Range:
    return _days(datetime(int(match["year"]), int(match["number"]), int(match["day"])))


def _month_day(match: re.Match[str], now: datetime) -> _Range:
    month, day = _MONTHS[match["month"].lower()], int(match["day"])
    if match["year"]:
        return _days(datetime(int(match["year"]), month, day))
    this_year = datetime(now.year, month, day)
    return _days(this_year if this_year <= now else datetime(now.year - 1, month, day))


def _month_of_year(match: re.Match[str], now: datetime) -> _Range:
    whole = _month(int(match["year"]), _MONTHS[match["month"].lower()])
    return _part_of(whole, match["part"] or match["mid"])


def _month_alone(match: re.Match[str], now: datetime) -> _Range | None:
    which = (match["which"] or "").lower()
    # "may" and "march" are also other words: in lower case they need a word before that only a month can follow.
    if match["month"] in ("may", "march", "mar", "sep", "dec") and not (which or match["part"]):
        return None
    month = _MONTHS[match["month"].lower()]
    year = now.year if month <= now.month else now.year - 1
    if which in ("next", "coming"):
        year += 1
    elif which in ("last", "past", "previous") and month == now.month:
        year -= 1
    return _part_of(_month(year, month), match["part"] or match["mid"])


def _season(match: re.Match[str], now: datetime) -> _Range | None:
    first = _SEASONS[match["season"].lower()]
    which = (match["which"] or "").lower()
    if match["year"]:
        year = int(match["year"])
    elif not which:
        return None
    else:
        year = now.year if _first_of(now.year, first) <= now else now.year - 1
        is_running = now < _month(year, first, 3)[1]
        if which in ("last", "past", "previous") and is_running:
            year -= 1
        elif which in ("next", "coming") or (which == "this" and not is_running):
            year += 1
    return _part_of(_month(year, first, 3), match["part"] or match["mid"])


def _year(match: re.Match[str], now: datetime) -> _Range:
    return _part_of(_month(int(match["year"]), 1, 12), match["part"] or match["mid"])


def _day_word(match: re.Match[str], now: datetime) -> _Range:
    words = " ".join(match[0].lower().split())
    offset = {"yesterday": -1, "last night": -1, "tomorrow": 1}.get(words, 0)
    if words.endswith("before yesterday"):
        offset = -2
    elif words.endswith("after tomorrow"):
        offset = 2
    elif words.startswith("yesterday"):
        offset = -1
    elif words.startswith("tomorrow"):
        offset = 1
    return _days(now + timedelta(days=offset))


def _counted(match: re.Match[str], now: datetime) -> tuple[int, str]:
    word = match["number"].lower()
    return int(word) if word.isdigit() else _NUMBERS[word], match["unit"].lower()


def _shifted(match: re.Match[str], now: datetime, sign: int) -> _Range:
    """The day, week, month or year that many units away; wider for "a few" and the like."""
    count, unit = _counted(match, now)
    if match["number"].lower() in _VAGUE:
        near, far = _unit_at(now, unit, sign * max(1, count - 1)), _unit_at(now, unit, sign * (count + 2))
        return min(near[0], far[0]), max(near[1], far[1])
    return _unit_at(now, unit, sign * count)


def _unit_at(now: datetime, unit: str, offset: int) -> _Range:
    match unit:
        case "minute" | "hour":
            moment = now + timedelta(**{f"{unit}s": offset})
            half = timedelta(**{f"{unit}s": 1}) / 2
            return moment - half, moment + half
        case "day":
            return _days(now + timedelta(days=offset))
        case "week":
            # Said of a day about that long ago, not of a calendar week: four days to each side.
            return _days(now + timedelta(days=7 * offset - 4), 9)
        case "weekend":
            return _weekend(now, offset)
        case "month":
            return _month(now.year, now.month + offset)
        case "year":
            return _month(now.year + offset, 1, 12)
    return _month(now.year + 10 * offset - 2, 1, 60)


def _ago(match: re.Match[str], now: datetime) -> _Range:
    return _shifted(match, now, -1)


def _ahead(match: re.Match[str], now: datetime) -> _Range:
    return _shifted(match, now, 1)


def _past(match: re.Match[str], now: datetime) -> _Range:
    count, unit = _counted(match, now)
    return _unit_at(now, unit, -count)[0], now


def _which_unit(match: re.Match[str], now: datetime) -> _Range:
    which, unit = match["which"].lower(), match["unit"].lower()
    offset = {"last": -1, "past": -1, "previous": -1, "this": 0}.get(which, 1)
    if unit == "week":
        return _week(now, offset)
    if unit == "weekend":
        # A weekend that has not begun is not the last one; on one, the last is the one before.
        return _weekend(now, offset)
    return _unit_at(now, unit, offset)


def _weekday(match: re.Match[str], now: datetime) -> _Range:
    behind = (now.weekday() - _WEEKDAYS.index(match["weekday"].lower())) % 7
    which = (match["which"] or "").lower()
    if which in ("next", "coming"):
        return _days(now + timedelta(days=(-behind) % 7 or 7))
    if which == "this":
        return _days(_week(now)[0] + timedelta(days=_WEEKDAYS.index(match["weekday"].lower())))
    if which:
        return _days(now - timedelta(days=behind or 7))
    return _days(now - timedelta(days=behind))


def _recently(match: re.Match[str], now: datetime) -> _Range:
    return now - timedelta(days=14), now


_Resolve = Callable[[re.Match[str], datetime], _Range | None]


def _pattern(
    families: str, text: str, resolve: _Resolve, confidence: float
) -> tuple[frozenset[str], re.Pattern[str], _Resolve, float]:
    return frozenset(families.split()), re.compile(rf"\b{text}", re.IGNORECASE), resolve, confidence


_DATE_WORD: Final = (
    r"(?P<before>(?:in|during|since|until|till|before|after|by|of|from|to|through|between|and|around)\s+)"
)

# The surest first: where two overlap the earlier one is taken.
_PATTERNS: Final = [
    _pattern("year", r"(?P<year>(?:19|20)\d\d)-(?P<number>[01]?\d)-(?P<day>[0-3]?\d)\b", _iso_day, 1.0),
    _pattern("month", rf"{_DAY}\s+(?:of\s+)?{_MONTH}(?:,?\s+{_YEAR})?", _month_day, 1.0),
    _pattern("month", rf"{_MONTH}\s+(?:the\s+)?{_DAY}(?!\d)(?:,?\s+{_YEAR})?", _month_day, 1.0),
    _pattern("month", rf"{_PART}{_MONTH},?\s+(?:of\s+)?{_YEAR}", _month_of_year, 1.0),
    _pattern("year which", rf"{_PART}(?:{_WHICH}\s+)?{_SEASON}(?:\s+(?:of\s+|in\s+)?{_YEAR})?", _season, 0.9),
    _pattern("ago", rf"(?:the\s+)?{_NUMBER}\s+{_UNIT}\s+(?:ago|back|before now|earlier)\b", _ago, 0.9),
    _pattern("ahead", rf"(?:in|within)\s+(?:the\s+next\s+)?{_NUMBER}\s+{_UNIT}", _ahead, 0.6),
    _pattern("ahead", rf"{_NUMBER}\s+{_UNIT}\s+(?:from\s+now|from\s+today)\b", _ahead, 0.9),
    _pattern("which", rf"(?:the\s+)?(?:last|past|previous)\s+{_NUMBER}\s+{_UNIT}", _past, 0.9),
    _pattern("day", r"(?:the\s+)?day\s+(?:before\s+yesterday|after\s+tomorrow)\b", _day_word, 1.0),
    _pattern(
        "day",
        r"(?:(?:yesterday|tomorrow)(?:\s+(?:morning|afternoon|evening|night))?|today|tonight|last\s+night"
        r"|this\s+(?:morning|afternoon|evening))\b",
        _day_word,
        1.0,
    ),
    _pattern("weekday which", rf"{_WHICH}\s+{_WEEKDAY}", _weekday, 0.9),
    _pattern("which", rf"{_WHICH}\s+(?P<unit>weekend|week|month|year|decade)\b", _which_unit, 0.9),
    _pattern("month", rf"{_PART}(?P<which>last|this|next|past|previous|coming)\s+{_MONTH}", _month_alone, 0.9),
    _pattern("month", rf"{_DATE_WORD}(?P<which>)?{_PART}{_MONTH}(?!\s+[a-z])", _month_alone, 0.8),
    _pattern("month", rf"(?P<which>)?{_PART}{_MONTH}(?!\w)", _month_alone, 0.5),
    _pattern("year", rf"{_DATE_WORD}?{_PART}{_YEAR}(?![\w-])", _year, 0.8),
    _pattern("weekday", rf"(?:on\s+)?(?P<which>)?{_WEEKDAY}", _weekday, 0.6),
    _pattern("recent", r"(?:recently|lately)\b", _recently, 0.4),
]
