"""Marks requests to a model that are no live traffic, so that nobody learns from their answers."""

from __future__ import annotations

from typing import Final

from schemas.envelope import Headers

# Header with a word for why a model is asked; live traffic has none.
PURPOSE: Final = "purpose"

# Of trials and probes: what a test asks says nothing about what people ask.
UNOBSERVED: Final[Headers] = {PURPOSE: "trial"}

# Of what the learning service asks itself: evaluations, comparisons, teachers. Nobody is there who would have to wait.
OWN_PURPOSE: Final = "learning"
OWN: Final[Headers] = {PURPOSE: OWN_PURPOSE}


def is_observed(headers: Headers) -> bool:
    """True for a request whose answer counts as live traffic."""
    return not headers.get(PURPOSE)
