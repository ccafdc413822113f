"""What keeps poison out of what is learned: hidden control tokens, floods by one person, answers others contradict; pure.

One person may be wrong, or mean harm; several people, or one who was right before, count for more. Nothing here deletes:
what is kept out stays to be looked at, and a person may let it through.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from workers.learning.curation.drafts import UNTAUGHT
from workers.learning.curation.likeness import normalise

# Trust in somebody nobody reported on: the mean of the prior of `trust.get`.
NEUTRAL_TRUST: Final = 0.5

# Examples of one person in FLOOD_S seconds where others teach, too: by hand one takes twenty seconds or more.
FLOOD_ROWS: Final = 200
FLOOD_S: Final = 3_600.0

# Examples that one person may give to a version however few others give.
PERSON_ROWS: Final = 100

# Part of a cap that is left to somebody without any trust.
_LEAST_FACTOR: Final = 0.2

# How many times the weight of an opposing answer one must have to count as right.
_MAJORITY: Final = 2.0

# Words up to which two answers to one question can contradict each other; longer ones may both be good. Of the words of
# two answers this part is shared when they say the same (token F1).
_FACT_WORDS: Final = 30
_SAME_F1: Final = 0.5

# Kinds that an operator brings in or that were compared with a reference: as good as confirmed.
_CONFIRMED: Final = frozenset({"evaluation", "import", "manual"})

# Tokens of chat templates (ChatML, Llama, Mistral, Gemma, Phi, DeepSeek, T5) and invisible characters (tags, direction)
# that can hide an instruction in a text.
_CONTROL: Final = re.compile(
    r"<[|｜][^<>|｜\s]{1,48}[|｜]>|</?s>|\[/?INST\]|<</?SYS>>|</?(?:start|end)_of_turn>|<(?:bos|eos|pad|unk|mask|endoftext)>"
    r"|[\U000E0000-\U000E007F\u202A-\u202E\u2066-\u2069]"
)


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """One answer to one question. weights: by person, 0..1; of a row without a person the key is ""."""

    number: int
    answer: str
    kind: str
    weights: Mapping[str, float]


def control_token(texts: Mapping[str, str]) -> str:
    """Where a text holds what only a chat template may put there, as a sentence; "" where none does."""
    for field, text in texts.items():
        found = _CONTROL.search(text)
        if found:
            shown = found[0] if found[0].isprintable() else f"U+{ord(found[0][0]):04X}"
            return f"{field} holds the control token {shown!r} at {found.start()}"
    return ""


def trust_factor(trust: float) -> float:
    """What is left of a cap to somebody trusted so far, 0.2 to 1: all of it from neutral on."""
    return min(1.0, max(_LEAST_FACTOR, trust / NEUTRAL_TRUST))


def is_flood(recent: int, *, trust: float, has_others: bool) -> bool:
    """True when one person gave `recent` examples within FLOOD_S. In a house of one person nothing is a flood."""
    return has_others and recent >= FLOOD_ROWS * trust_factor(trust)


def person_caps(counts: Mapping[str, int], trust: Mapping[str, float], *, share: float) -> dict[str, int]:
    """Rows each person may give to a version, at most.

    counts: rows by person, "" for those of nobody. share: of the whole, where there are several people. Nobody is capped
    below PERSON_ROWS (less where trust is low), and one person alone is not capped.
    """
    people = [user for user, count in counts.items() if user and count]
    whole = sum(counts.values())
    caps = {}
    for user in people:
        factor = trust_factor(trust.get(user, NEUTRAL_TRUST))
        if len(people) == 1:
            caps[user] = counts[user] if factor == 1.0 else int(counts[user] * factor)
            continue
        own = share * factor
        # The share of what the version has in the end, not of what was there before.
        fair = int(own / (1 - own) * (whole - counts[user])) if own < 1 else counts[user]
        caps[user] = max(fair, int(PERSON_ROWS * factor))
    return caps


def contradicted(claims: Sequence[Claim]) -> dict[int, str]:
    """The rows among answers to one question that others contradict, with the reason; the rest may be learned.

    Answers of one person do not contradict each other but replace: the newest counts. Of answers by different people one
    counts that has any weight, and twice that of each opposing one. Where none has, all of them wait. What a model answered
    once and nobody complained of gives way to anything that was taught.
    """
    wrong: dict[int, str] = {}
    newest = sorted((claim for claim in claims if claim.kind not in UNTAUGHT), key=lambda claim: claim.number)
    for claim in claims:
        if claim.kind in UNTAUGHT and any(not _is_same_answer(claim.answer, other.answer) for other in newest):
            wrong[claim.number] = "another answer was taught"
    for index, claim in enumerate(newest):
        if _is_replaced(claim, newest[index + 1 :]):
            wrong[claim.number] = "the same person answered otherwise later"
    standing = [claim for claim in newest if claim.number not in wrong]
    for claim in standing:
        opponents = [other for other in standing if _is_against(claim, other)]
        if not opponents:
            continue
        support = _weight(claim, standing)
        strongest = max(_weight(other, standing) for other in opponents)
        if support < _MAJORITY * strongest or not support:
            others = len({user for other in opponents for user in other.weights})
            said = "one other" if others == 1 else f"{others} others"
            wrong[claim.number] = (
                f"{said} answered this question otherwise (weight {support:.2f} against {strongest:.2f})"
            )
    return wrong


def _is_replaced(claim: Claim, later: Sequence[Claim]) -> bool:
    # Without names, corrections are taken for one person's; an import may hold several good answers.
    people = set(claim.weights) if claim.kind == "feedback" else set(claim.weights) - {""}
    return bool(people) and any(
        people <= set(other.weights) and not _is_same_answer(claim.answer, other.answer) and _is_short(claim, other)
        for other in later
    )


def _is_against(claim: Claim, other: Claim) -> bool:
    is_one_person = set(claim.weights) == set(other.weights)
    if is_one_person and (claim.kind in _CONFIRMED) == (other.kind in _CONFIRMED):
        return False
    if not _is_short(claim, other):
        return False
    return not _is_same_answer(claim.answer, other.answer)


def _is_short(*claims: Claim) -> bool:
    return all(len(claim.answer.split()) <= _FACT_WORDS for claim in claims)


def _weight(claim: Claim, claims: Sequence[Claim]) -> float:
    agreeing = [other for other in claims if other is claim or _is_same_answer(claim.answer, other.answer)]
    people: dict[str, float] = {}
    for other in agreeing:
        for user, weight in other.weights.items():
            if not user and other.kind in _CONFIRMED:
                weight = 1.0
            people[user] = max(people.get(user, 0.0), weight)
    return sum(people.values())


def _is_same_answer(one: str, other: str) -> bool:
    words, others = Counter(normalise(one).split()), Counter(normalise(other).split())
    common = (words & others).total()
    whole = words.total() + others.total()
    return 2 * common >= _SAME_F1 * whole if whole else True
