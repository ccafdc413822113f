"""How many tokens a text costs: asked of the target model's own tokenizer where it is known, else estimated."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from schemas.bodies.model import ModelTokenize, TokenCounts
from schemas.errors import BusError
from workers.memory.prompt import BYTES_PER_TOKEN

# Tokens that a chat template spends on the marks of one message; ChatML and Llama 3 spend 5.
MESSAGE_TOKENS: Final = 6

# What an estimate calls itself where a model's name would stand.
ESTIMATE: Final = "estimate"

# Seconds a count may take. A tokenizer that is not in memory yet starts within one.
COUNT_TIMEOUT_S: Final = 3.0

# Seconds for which a model whose tokenizer failed is not asked again, so that not every caller waits for it.
FAILED_S: Final = 15.0

# Counts kept: some 150 bytes each.
KEPT_COUNTS: Final = 20_000

# Texts and bytes in one request, at most.
REQUEST_TEXTS: Final = 1_000
REQUEST_BYTES: Final = 2_000_000

Ask = Callable[..., Awaitable[Any]]


class Counted(NamedTuple):
    """Tokens of each text; `by` is the model whose tokenizer counted, or "estimate"."""

    counts: list[int]
    by: str


class TokenCounter(Protocol):
    """Counts tokens; never fails."""

    async def count(self, texts: Sequence[str], model: str | None) -> Counted:
        """Tokens of each text for `model`; all counted in the same way."""


def estimate(text: str) -> int:
    """Tokens of `text`: its bytes / 3, rounded up. Prose costs fewer; text outside a tokenizer's languages may not."""
    return -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)


class Estimator:
    """Counts without asking anybody."""

    async def count(self, texts: Sequence[str], model: str | None) -> Counted:
        """Estimates, whatever the model."""
        return Counted([estimate(text) for text in texts], ESTIMATE)


class BusTokenCounter:
    """Asks `model.tokenize`, remembers what it counted, and estimates where it gets no answer in time.

    ask: `Client.request`.
    """

    def __init__(self, ask: Ask, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._monotonic = monotonic
        self._kept: OrderedDict[tuple[str, bytes], int] = OrderedDict()
        self._failed_until: dict[str, float] = {}

    async def count(self, texts: Sequence[str], model: str | None) -> Counted:
        """Counts of `model`'s tokenizer, else estimates."""
        if model is not None and self._monotonic() >= self._failed_until.get(model, 0.0):
            try:
                return Counted(await self._counts(texts, model), model)
            except BusError:
                # Unknown model, no model service, too slow: the caller sees by whom the tokens were counted.
                now = self._monotonic()
                self._failed_until = {name: until for name, until in self._failed_until.items() if until > now}
                self._failed_until[model] = now + FAILED_S
        return Counted([estimate(text) for text in texts], ESTIMATE)

    async def _counts(self, texts: Sequence[str], model: str) -> list[int]:
        keys = [(model, hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()) for text in texts]
        known = {key: self._kept[key] for key in keys if key in self._kept}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        for batch in _batches(list(missing.items())):
            request = ModelTokenize(model=model, texts=[text for _, text in batch])
            reply: TokenCounts = await self._ask("model.tokenize", request, timeout_s=COUNT_TIMEOUT_S)
            known.update(zip([key for key, _ in batch], reply.counts, strict=True))
        for key in keys:
            self._kept[key] = known[key]
            self._kept.move_to_end(key)
        while len(self._kept) > KEPT_COUNTS:
            self._kept.popitem(last=False)
        self._failed_until.pop(model, None)
        return [known[key] for key in keys]


_Item = tuple[tuple[str, bytes], str]


def _batches(items: list[_Item]) -> list[list[_Item]]:
    batches: list[list[_Item]] = []
    room_bytes = 0
    for item in items:
        size_bytes = len(item[1].encode("utf-8", "replace"))
        if not batches or len(batches[-1]) == REQUEST_TEXTS or size_bytes > room_bytes:
            batches.append([])
            room_bytes = REQUEST_BYTES
        batches[-1].append(item)
        room_bytes -= size_bytes
    return batches
