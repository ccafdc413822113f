"""What an answer is worth by each metric, and how a judge is asked and understood; asks no model and reads no file."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from workers.models.trials.json_schema import fits
from workers.models.trials.statistics import Interval, mean_interval, ratio_interval
from workers.models.trials.suites import Case, JudgeRules, Rules

# Name under which a case keeps how many tokens its perplexity is about.
TOKENS: Final = "perplexity_tokens"

# What a score can be; None has no upper end. Similarity is a cosine.
BOUNDS: Final[dict[str, tuple[float, float] | None]] = {
    "exact_match": (0.0, 1.0),
    "contains": (0.0, 1.0),
    "regex": (0.0, 1.0),
    "json": (0.0, 1.0),
    "judge": (0.0, 1.0),
    "similarity": (-1.0, 1.0),
    "perplexity": None,
}

# An answer beyond this exponent is impossible for the model, and exp() would overflow; below its negative it would be 0.
_LOG_PERPLEXITY_MAX: Final = 700.0

_MARK_TEMPLATE: Final = """You mark the answer to a question.

Question:
{prompt}

Reference answer (may be empty):
{reference}

Answer to mark:
{answer}

How good is the answer? {scale} Reply with the mark alone, as: Mark: <number>"""

_PAIR_TEMPLATE: Final = """Two assistants answered a question.

Question:
{prompt}

Answer A:
{first}

Answer B:
{second}

Which answer is better? Reply with one word alone: A, B or TIE"""

_SCALES: Final = {
    1: "Give 0 for useless, 1 for perfect, or a decimal between.",
    10: "Give 1 for useless, 10 for perfect, or a number between.",
}

# Scales that a judge may mark on in spite of what it was told.
_WHOLES: Final = (1.0, 5.0, 10.0, 100.0)

_NUMBER: Final = r"(-?\d+(?:[.,]\d+)?)"
_WHOLE: Final = r"\s*(?:/|out of)\s*(\d+)"
_MARKED: Final = re.compile(rf"(?:mark|score|rating|grade)\W{{0,12}}{_NUMBER}(?:{_WHOLE})?", re.IGNORECASE)
_OUT_OF: Final = re.compile(rf"{_NUMBER}{_WHOLE}", re.IGNORECASE)
_ALONE: Final = re.compile(rf"(?<![\w.,]){_NUMBER}(?![\w%]|[.,]\d)()")

_CHOICE: Final = re.compile(r"(?<![A-Za-z])(A|B|TIE)(?![A-Za-z])")
_CHOSEN: Final = re.compile(r"(?:answer|verdict|winner|better|best)\W+(?:is\W+)?(A|B|TIE)(?![A-Za-z])", re.IGNORECASE)


class NoMark(ValueError):
    """A judge's reply holds no mark; the message shows its beginning."""


def exact(answer: str, case: Case, rules: Rules) -> float:
    """1 when the answer, blanks around it aside, is one of those expected."""
    return float(_folded(answer, rules) in [_folded(text, rules) for text in case.expected])


def contains(answer: str, case: Case, rules: Rules) -> float:
    """1 when every text of `contains` is in the answer; without that, when one of those expected is."""
    whole = _folded(answer, rules)
    if case.parts:
        return float(all(_folded(part, rules) in whole for part in case.parts))
    return float(any(_folded(text, rules) in whole for text in case.expected))


def is_json(answer: str, case: Case, rules: Rules) -> float:
    """1 when the whole answer is one JSON value (RFC 8259) that fits the schema, if there is one."""
    schema = case.json_schema if case.json_schema is not None else rules.json_schema
    try:
        value = msgspec.json.decode(answer.strip())
        return float(schema is None or fits(value, schema))
    except (msgspec.MsgspecError, RecursionError, OverflowError):
        # Nested too deep, or with numbers too large, to be checked: no answer anybody could use.
        return 0.0


class NoNumber(ValueError):
    """A model answered with numbers that are none, as broken weights do."""


def perplexity(logprob: float, tokens: int) -> float:
    """exp(-logprob / tokens), of at least one token. Raises NoNumber."""
    if math.isnan(logprob):
        raise NoNumber(f"the log-probability is {logprob}")
    return math.exp(max(min(-logprob / tokens, _LOG_PERPLEXITY_MAX), -_LOG_PERPLEXITY_MAX))


def cosine(first: Sequence[float], second: Sequence[float]) -> float:
    """Cosine of two vectors of one length; 0 where one of them is nothing. Raises NoNumber."""
    norm = math.sqrt(sum(x * x for x in first)) * math.sqrt(sum(x * x for x in second))
    if not math.isfinite(norm):
        raise NoNumber(f"the product of the vectors' lengths is {norm}")
    return max(-1.0, min(sum(x * y for x, y in zip(first, second, strict=True)) / norm, 1.0)) if norm else 0.0


def _folded(text: str, rules: Rules) -> str:
    return text.strip().casefold() if rules.ignore_case else text.strip()


# The judge ----------------------------------------------------------------------------------------------------------


def judge_question(case: Case, answer: str, rules: JudgeRules) -> str:
    """What the judge is asked about one answer."""
    return _filled(
        rules.template or _MARK_TEMPLATE,
        {"prompt": question_text(case), "answer": answer, "reference": case.best, "scale": _SCALES[rules.scale]},
    )


def judge_pair(case: Case, first: str, second: str, rules: JudgeRules) -> str:
    """What the judge is asked about two answers."""
    return _filled(
        rules.template or _PAIR_TEMPLATE,
        {"prompt": question_text(case), "first": first, "second": second, "reference": case.best},
    )


def question_text(case: Case) -> str:
    """What was asked, as one text."""
    if case.prompt is not None:
        return case.prompt
    return "\n".join(f"{message.role}: {message.content}" for message in case.messages)


def mark_of(reply: str, scale: int) -> float:
    """The mark in a judge's reply, as 0..1. Raises NoMark.

    Looked for in this order: "mark: 7", "7/10" or "7 out of 10", a number that stands alone; of several the last one.
    Marks of 1..10 become (mark - 1) / 9; "7/10" on a scale of 1 becomes 0.7.
    """
    found = _MARKED.findall(reply) or _OUT_OF.findall(reply) or _ALONE.findall(reply)
    if not found:
        raise NoMark(f"the judge's reply holds no mark: {_shown(reply)}")
    value, whole = float(found[-1][0].replace(",", ".")), float(found[-1][1] or scale)
    if whole not in _WHOLES:
        raise NoMark(f"the judge marks out of {whole:g}: {_shown(reply)}")
    if whole != scale:
        return _checked(value / whole, 0.0, 1.0, reply)
    if scale == 1:
        return _checked(value, 0.0, 1.0, reply)
    return (_checked(value, 1.0, 10.0, reply) - 1) / 9


def choice_of(reply: str) -> float:
    """1 when the judge prefers answer A, 0 for B, 0.5 for neither. Raises NoMark for a reply that leaves it open."""
    named = set(_CHOICE.findall(reply)) or set(_CHOICE.findall(reply.strip().upper()[:4]))
    if len(named) > 1:
        named = {choice.upper() for choice in _CHOSEN.findall(reply)[-1:]}
    if not named:
        raise NoMark(f"the judge's reply does not say which of A, B and TIE: {_shown(reply)}")
    return {"A": 1.0, "B": 0.0, "TIE": 0.5}[named.pop()]


def _filled(template: str, values: dict[str, str]) -> str:
    """Placeholders replaced in one pass, so that one within an answer stays text."""
    return re.sub(r"\{(" + "|".join(values) + r")\}", lambda match: values[match[1]], template)


def _checked(value: float, low: float, high: float, reply: str) -> float:
    if not low <= value <= high:
        raise NoMark(f"the judge's mark {value:g} is outside {low:g}..{high:g}: {_shown(reply)}")
    return value


def _shown(reply: str) -> str:
    return repr(reply if len(reply) <= 120 else reply[:120] + "...")


# All cases together -------------------------------------------------------------------------------------------------


class Scored(NamedTuple):
    """One run of one case."""

    case_id: str
    scores: dict[str, float]


def per_case(results: Sequence[Scored], metric: str) -> dict[str, float]:
    """Each case's score, the mean over its seeds; of perplexity the mean logarithm, in nats per token."""
    found: dict[str, list[float]] = {}
    for result in results:
        if metric in result.scores:
            score = result.scores[metric]
            found.setdefault(result.case_id, []).append(math.log(score) if metric == "perplexity" else score)
    return {case_id: math.fsum(scores) / len(scores) for case_id, scores in found.items()}


def summary(results: Sequence[Scored], metric: str, confidence: float) -> Interval | None:
    """The metric over all cases; None where no case has it. Runs of one case with several seeds are one observation.

    Perplexity is that of all texts together, exp(nats / tokens); its interval is that of the ratio, put through exp.
    """
    scores = per_case(results, metric)
    if not scores:
        return None
    if metric != "perplexity":
        return mean_interval(list(scores.values()), confidence, bounds=BOUNDS[metric])
    tokens = {result.case_id: result.scores[TOKENS] for result in results if TOKENS in result.scores}
    nats = [nats * tokens[case_id] for case_id, nats in scores.items()]
    ratio = ratio_interval(nats, [tokens[case_id] for case_id in scores], confidence)
    mean, low, high = (math.exp(min(max(value, 0.0), _LOG_PERPLEXITY_MAX)) for value in ratio[:3])
    return Interval(mean, low, high, ratio.n, ratio.method)
