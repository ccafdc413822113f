"""What level an attempt on one held-out set may use, so that trying often does not find luck; knows no test."""

from __future__ import annotations


def corrected_alpha(alpha: float, attempt: int) -> float:
    """Level of the `attempt`-th verdict (from 1) on one set: alpha / (k (k + 1)).

    1/2 + 1/6 + 1/12 + ... = 1, so by Boole's inequality all attempts together, however many there will be, pass anything
    wrongly with a chance of alpha at most. It spends the level as Foster and Stine's alpha-spending does (J. R. Statist.
    Soc. B 70 (2008) 429-444), with a series that is known before the first attempt. Raises ValueError.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}, it must be within 0..1, without the ends")
    if attempt < 1:
        raise ValueError(f"attempt is {attempt}, the first is 1")
    return alpha / (attempt * (attempt + 1))
