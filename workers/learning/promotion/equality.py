"""Whether the served adapter computes what PEFT computes: log-probabilities of the same texts, with and without it. Pure.

The difference of two sides is |sum of log-probabilities here - there| / tokens of a text, in nats per token, as a mean
over the texts. What is allowed:

    base not quantised    without the adapter TOLERANCE, with it TOLERANCE or a hundredth of what the adapter changes
    base quantised        without the adapter QUANTISED_BARE; with it TOLERANCE, twice the difference without it, or a fifth
                          of what the adapter changes: quantising moves every text, by an amount that only the bare
                          model can tell, and an adapter that changes much moves the errors with it

A wide tolerance could hide a wrong conversion, so what the adapter changes (with - without) is compared, too: the two sides'
changes may differ by a part of the change itself, since the error of quantising is in both and mostly cancels.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

import msgspec

# Nats per token. Demo model against PEFT in float32, random adapters that change 0.01, 0.1 and 3 nats per token:
#             without adapter   with, change 0.01   0.1        3          0.1 or 3, scaled wrongly by 1.3
#   F16       0.0001            0.0001              0.0001     0.005      0.06, 1.2
#   Q8_0      0.001             0.004               0.009      0.10       0.05, 1.2
#   Q4_K_M    0.02              -                   0.02       0.32       0.05, 1.0
#   Q4_0      0.05              0.06                0.09       0.42       0.13, 1.1
TOLERANCE: Final = 0.01
QUANTISED_BARE: Final = 0.5
_QUANTISED_FACTOR: Final = 2.0

# Of what the adapter changes.
_PART: Final = 0.01
_QUANTISED_PART: Final = 0.2

# Of what the adapter changes, in which the two sides may differ; once the change is larger than this many tolerances.
_CHANGE_SHARE: Final = 0.25
_QUANTISED_CHANGE_SHARE: Final = 0.5
_CHANGE_TOLERANCES: Final = 4

_NOT_QUANTISED: Final = frozenset({"F32", "F16", "BF16", "F64"})


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """Log-probability of a text's `tokens` after its prompt: PEFT's and the served model's, without and with the adapter."""

    tokens: int
    peft_bare: float
    peft: float
    served_bare: float
    served: float


class Equality(msgspec.Struct, frozen=True, kw_only=True):
    """Means in nats per token. change: what the adapter does in PEFT. problem: why it may not serve, "" when it may."""

    probes: int
    difference: float
    bare_difference: float
    change: float
    tolerance: float
    problem: str
    words: str


def is_quantised(quantisation: str) -> bool:
    """Whether weights of this type were rounded further than to half precision. "" is a folder of weights as they are."""
    return quantisation.upper() not in _NOT_QUANTISED and quantisation != ""


def compare(probes: Sequence[Probe], *, quantised: bool) -> Equality:
    """What the probes (at least one, each of at least one token) say."""
    bare = statistics.fmean(abs(one.served_bare - one.peft_bare) / one.tokens for one in probes)
    difference = statistics.fmean(abs(one.served - one.peft) / one.tokens for one in probes)
    change = statistics.fmean(abs(one.peft - one.peft_bare) / one.tokens for one in probes)
    changed = statistics.fmean(
        abs((one.served - one.served_bare) - (one.peft - one.peft_bare)) / one.tokens for one in probes
    )
    tolerance = max(TOLERANCE, _PART * change)
    if quantised:
        tolerance = max(TOLERANCE, _QUANTISED_FACTOR * bare, _QUANTISED_PART * change)
    bare_limit = QUANTISED_BARE if quantised else TOLERANCE
    share = _QUANTISED_CHANGE_SHARE if quantised else _CHANGE_SHARE
    problem = ""
    if not bare <= bare_limit:
        problem = (
            f"the served model is not the adapter's base: without the adapter the two differ by {bare:.4f} nats per"
            f" token, allowed are {bare_limit:g}"
        )
    elif not difference <= tolerance:
        problem = (
            f"it does not compute what PEFT computes: with the adapter the two differ by {difference:.4f} nats per token,"
            f" allowed are {tolerance:.4f} (without it they differ by {bare:.4f})"
        )
    elif change > _CHANGE_TOLERANCES * TOLERANCE and not changed <= share * change:
        problem = (
            f"it does not change what it changes in PEFT: the changes differ by {changed:.4f} nats per token of"
            f" {change:.4f}, allowed are {share * change:.4f}"
        )
    words = (
        f"on {len(probes)} texts it differs from PEFT by {difference:.4f} nats per token, {bare:.4f} without the adapter;"
        f" allowed are {tolerance:.4f}"
    )
    return Equality(
        probes=len(probes),
        difference=difference,
        bare_difference=bare,
        change=change,
        tolerance=tolerance,
        problem=problem,
        words=words,
    )
