"""What of the known facts goes into a system prompt, in which order, and how it reads. Decides only; reads nothing."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from schemas.bodies.memory import PromptAddition

# The demo model was trained on exactly this form; change both or neither.
HEADING: Final = "Known facts about the user:"

# Categories that stay true: one of these, never used, ranks with anything else written this moment.
LASTING_CATEGORIES: Final = frozenset({"preference", "fact"})

# Days after which a fact nobody touches counts half as recent.
RECENCY_HALF_LIFE_DAYS: Final = 30.0

# Uses past this many add nothing more.
FULL_USE_COUNT: Final = 1_023

# Upper estimate of tokens without asking a tokenizer: bytes per token.
BYTES_PER_TOKEN: Final = 3

# No text is looked at that is longer than this per token of the budget: long runs of one character make such tokens.
BYTES_PER_TOKEN_MAX: Final = 16

Recount = Callable[[str], Awaitable[int | None]]


def usefulness(
    *, category: str, updated_at: float, last_accessed_at: float | None, access_count: int, now: float
) -> float:
    """Rank of a fact, 0 to 3: lasting + recency + use.

    lasting: 1 for a preference or a fact, else 0. recency: 2 ** (-days / 30) since the last write or recall.
    use: log2(1 + recalls) / 10, at most 1.
    """
    touched_at = max(updated_at, last_accessed_at or 0.0)
    days = max(0.0, now - touched_at) / 86_400
    lasting = 1.0 if category in LASTING_CATEGORIES else 0.0
    recency = math.exp2(-days / RECENCY_HALF_LIFE_DAYS)
    use = math.log2(1 + min(access_count, FULL_USE_COUNT)) / 10
    return lasting + recency + use


class PromptText:
    """The addition in the making: facts are offered most useful first, and one that does not fit is left out.

    count: tokens of a text by a tokenizer, and `counted_by` whose it is; without, the estimate counts.
    """

    def __init__(
        self, max_tokens: int, count: Callable[[str], int] | None = None, counted_by: str = "estimate"
    ) -> None:
        self._count = count
        self._counted_by = counted_by
        # Bytes for the estimate, which rounds up once for the whole text; tokens for a tokenizer.
        self._room = max_tokens * (BYTES_PER_TOKEN if count is None else 1) - self._cost(HEADING)
        self._tokens = self._cost(HEADING)
        self._lines = [HEADING]
        self._included: list[str] = []
        self._left_out: list[str] = []

    def offer(self, key: str, value: str) -> None:
        """Take the fact in if its line fits into what is left of the budget."""
        line = prompt_line(key, value)
        cost = self._cost(f"\n{line}")
        if cost > self._room:
            self.leave_out(key)
            return
        self._room -= cost
        self._tokens += cost
        self._lines.append(line)
        self._included.append(key)

    def leave_out(self, key: str) -> None:
        """Note a fact that cannot fit."""
        self._left_out.append(key)

    def addition(self) -> PromptAddition:
        """The text and its account; the text is empty when no fact is in it."""
        text = "\n".join(self._lines) if self._included else ""
        tokens = self._tokens if self._count is not None and text else -(-len(text.encode()) // BYTES_PER_TOKEN)
        return PromptAddition(
            text=text,
            tokens=tokens,
            included=self._included,
            left_out=self._left_out,
            counted_by=self._counted_by,
        )

    def _cost(self, text: str) -> int:
        return len(text.encode()) if self._count is None else self._count(text)


def counted_addition(
    max_tokens: int, candidates: Iterable[tuple[str, str]], costs: Mapping[str, int], counted_by: str
) -> PromptAddition:
    """The addition made of `candidates`, keys and values; those without a value are too long for the budget.

    costs: tokens of the heading and of each line with the line break before it.
    """
    text = PromptText(max_tokens, costs.__getitem__, counted_by)
    for key, value in candidates:
        if value:
            text.offer(key, value)
        else:
            text.leave_out(key)
    return text.addition()


async def fitting_addition(
    max_tokens: int, candidates: Sequence[tuple[str, str]], costs: Mapping[str, int], counted_by: str, count: Recount
) -> PromptAddition:
    """The `counted_addition`, counted once more as a whole, with fewer facts while that is too much.

    Lines joined may cost more than one by one, by a token or two. count: tokens of a text by the same tokenizer, None
    where it has just gone away; then what it said of the lines stands.
    """
    room = max_tokens
    while True:
        addition = counted_addition(room, candidates, costs, counted_by)
        tokens = await count(addition.text) if addition.text else None
        if tokens is None:
            return addition
        if tokens <= max_tokens:
            return msgspec.structs.replace(addition, tokens=tokens)
        room = min(room, addition.tokens) - (tokens - max_tokens)


def prompt_line(key: str, value: str) -> str:
    """One fact as it reads in the addition."""
    return f"- {_one_line(key)}: {_one_line(value)}"


def _one_line(text: str) -> str:
    # A line break inside a value would read as another fact, or as an instruction. `split` knows every Unicode one.
    return " ".join(text.split())
