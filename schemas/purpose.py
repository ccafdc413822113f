"""Marks requests to a model that are no live traffic, so that nobody learns from their answers."""

from __future__ import annotations

from typing import Final

from schemas.envelope import Headers

# Header with a word for why a model is asked; live traffic has none.
PURPOSE: Final = "purpose"

# Of evaluations, comparisons, probes and teachers: what a test asks says nothing about what people ask.
UNOBSERVED: Final[Headers] = {PURPOSE: "trial"}


def is_observed(headers: Headers) -> bool:
    """True for a request whose answer counts as live traffic."""
    return not headers.get(PURPOSE)
