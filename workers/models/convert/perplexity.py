"""Measures how well a model foretells a text, over the bus: the same question to a model and to a copy of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bus.client import Client
from schemas.bodies.model import Score, Scores
from schemas.errors import BusError

log = logging.getLogger("olympus.models")

# English prose of several kinds, written for this: what is compared is a model with its copy, so any text does.
TEXT: Final = Path(__file__).parent / "perplexity.txt"

# Seconds for one model: it may have to be loaded, and other models leave for it.
_SCORE_S: Final = 900.0

# Bytes of a piece of text at most. A token is a byte or more, so a piece fits a window of as many tokens.
_PIECE_BYTES: Final = 2048

# Tokens of the window left for what a model puts around a text.
_SPARE_TOKENS: Final = 16

# Beyond this exp() overflows; a model that is as bad as this is broken anyway.
_LOG_MAX: Final = 700.0

# Texts of one request at most, as `Score` has it.
_TEXTS: Final = 1024


async def perplexity(client: Client, model: str, text: str, context_tokens: int) -> float | None:
    """exp of the mean negative log-probability of a token; None, and a warning, where it cannot be measured."""
    logprob, tokens = 0.0, 0
    pieces = list(pieces_of(text, max(min(_PIECE_BYTES, context_tokens - _SPARE_TOKENS), _SPARE_TOKENS)))
    try:
        for first in range(0, len(pieces), _TEXTS):
            scores: Scores = await client.request(
                "model.score", Score(model=model, texts=pieces[first : first + _TEXTS]), timeout_s=_SCORE_S
            )
            logprob += sum(scores.logprobs)
            tokens += sum(scores.tokens)
    except BusError as error:
        log.warning(
            "perplexity not measured",
            extra={"action": "model.perplexity.none", "model": model, "error": error.message},
        )
        return None
    if not math.isfinite(logprob) or not tokens:
        log.warning(
            "perplexity not measured",
            extra={"action": "model.perplexity.none", "model": model, "error": f"{logprob} over {tokens} tokens"},
        )
        return None
    return math.exp(min(-logprob / tokens, _LOG_MAX))


def pieces_of(text: str, size_bytes: int) -> Iterator[str]:
    """`text` in pieces of at most `size_bytes` bytes of UTF-8, cut between characters."""
    data = text.encode("utf-8", "replace")
    start = 0
    while start < len(data):
        end = min(start + size_bytes, len(data))
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        yield data[start:end].decode("utf-8")
        start = end
