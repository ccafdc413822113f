"""What of the known facts goes into a system prompt, and how it reads. Decides only; reads nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from schemas.bodies.memory import PromptAddition

# The demo model was trained on exactly this form; change both or neither.
HEADING: Final = "Known facts about the user:"

# Upper estimate of tokens without asking a tokenizer: bytes per token.
BYTES_PER_TOKEN: Final = 3

# No text is looked at that is longer than this per token of the budget: long runs of one character make such tokens.
BYTES_PER_TOKEN_MAX: Final = 16

# Facts that may fail to fit before the others are left out unread: no budget is worth reading 100,000 values for.
PASSED_OVER_MAX: Final = 1_000

# Keys of facts left out that an addition names; it counts them all.
LEFT_OUT_KEYS_MAX: Final = 1_000

# Bytes of the shortest line that a fact can have, of white space alone, with the line break before it.
SHORTEST_LINE_BYTES: Final = len("\n- : ")

Recount = Callable[[str], Awaitable[int | None]]


class Candidates(NamedTuple):
    """Facts that may be in an addition, most useful first: keys and values.

    The value is empty where it is too long for the budget in any tokenizer. unread: keys of the next facts, which were
    not read. others: how many more there are.
    """

    facts: Sequence[tuple[str, str]]
    unread: Sequence[str]
    others: int


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
        self._shortest = SHORTEST_LINE_BYTES if count is None else 1
        self._lines = [HEADING]
        self._included: list[str] = []
        self._left_out: list[str] = []
        self._left_out_count = 0

    @property
    def is_full(self) -> bool:
        """True where no further fact is worth reading: none can fit, or many in which nothing did were read."""
        return self._room < self._shortest or self._left_out_count >= PASSED_OVER_MAX

    def offer(self, key: str, value: str) -> None:
        """Take the fact in if its line fits into what is left of the budget."""
        line = prompt_line(key, value)
        cost = self._cost(f"\n{line}")
        if cost > self._room:
            self.leave_out([key])
            return
        self._room -= cost
        self._tokens += cost
        self._lines.append(line)
        self._included.append(key)

    def leave_out(self, keys: Sequence[str], others: int = 0) -> None:
        """Note facts that are not in it; `others` of them are counted and never named."""
        self._left_out += keys[: LEFT_OUT_KEYS_MAX - len(self._left_out)]
        self._left_out_count += len(keys) + others

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
            left_out_count=self._left_out_count,
        )

    def _cost(self, text: str) -> int:
        return len(text.encode()) if self._count is None else self._count(text)


def counted_addition(
    max_tokens: int, candidates: Candidates, costs: Mapping[str, int], counted_by: str
) -> PromptAddition:
    """The addition made of `candidates`.

    costs: tokens of the heading and of each line with the line break before it.
    """
    text = PromptText(max_tokens, costs.__getitem__, counted_by)
    for key, value in candidates.facts:
        if value:
            text.offer(key, value)
        else:
            text.leave_out([key])
    text.leave_out(candidates.unread, candidates.others)
    return text.addition()


async def fitting_addition(
    max_tokens: int, candidates: Candidates, costs: Mapping[str, int], counted_by: str, count: Recount
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
