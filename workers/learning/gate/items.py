"""One thing to ask, with the answer that is right, and what is needed of the other parts to have some."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, Protocol

import msgspec

from schemas.bodies.learning_data import DatasetInfo, Metric, RowInfo
from schemas.bodies.model import Chat, ChatMessage, Generate
from workers.learning.gate.scoring import Scored, metric_for

# Tokens an answer may have beyond those of its reference, so that one that rambles on is seen to.
_ROOM_TOKENS: Final = 16

# Tokens of an answer at most: a reference longer than this is compared by its beginning.
_TOKENS_MAX: Final = 2_048


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """Either messages or prompt. item_id: of the row, or of the case of a suite."""

    item_id: str
    cluster: str
    reference: str
    metric: Scored
    messages: list[ChatMessage] = []
    prompt: str | None = None

    @property
    def question(self) -> str:
        """What was asked, for people: the last message, or the prompt."""
        return self.prompt if self.prompt is not None else self.messages[-1].content

    @property
    def key(self) -> str:
        """Hash of all that decides the answer but the model and its adapter."""
        return question_key(self.messages, self.prompt, self.max_tokens)

    @property
    def max_tokens(self) -> int:
        """Room for the reference: no tokenizer makes more tokens of a text than it has bytes."""
        return min(len(self.reference.encode()) + _ROOM_TOKENS, _TOKENS_MAX)

    def request(self, model: str, adapter: str) -> Chat | Generate:
        """What is asked of a model with exactly this adapter, "" for none: greedily, so that it answers alike each time."""
        if self.prompt is not None:
            return Generate(
                prompt=self.prompt, model=model, adapter=adapter, max_tokens=self.max_tokens, temperature=0.0, seed=0
            )
        return Chat(
            messages=self.messages, model=model, adapter=adapter, max_tokens=self.max_tokens, temperature=0.0, seed=0
        )


def item_of(row: RowInfo, metric: Metric) -> Item:
    """A row as an item."""
    return Item(
        item_id=row.row_id,
        cluster=row.cluster,
        reference=row.answer,
        metric=metric_for(metric, row.answer),
        messages=row.messages,
        prompt=row.prompt,
    )


def question_key(messages: Sequence[ChatMessage], prompt: str | None, max_tokens: int = 0) -> str:
    """Hash of a question as a whole, so that equal ones are known without their text. Without max_tokens: of any length."""
    return hashlib.sha256(msgspec.json.encode([messages, prompt, max_tokens])).hexdigest()


def at_most(items: Iterable[Item], limit: int) -> list[Item]:
    """So many of them at most, by a hash of their ids: the same ones each time, and mostly so when others join."""
    return sorted(items, key=lambda item: hashlib.sha256(item.item_id.encode()).digest())[:limit]


# What the other parts of the service give -----------------------------------------------------------------------------


class Rows(Protocol):
    """Datasets as curation froze them. Each raises NotFound."""

    async def info(self, dataset: str, version: int | None = None) -> DatasetInfo:
        """A version, None for the newest."""

    async def held_out(self, dataset: str, version: int | None = None) -> list[RowInfo]:
        """Its rows that are never trained on."""

    async def retention(self, dataset: str, version: int | None = None) -> list[RowInfo]:
        """Rows of what the model knew before, none of them trained on."""


# The adapters of a model that were put to work and not taken back, the oldest first: adapter, dataset, version.
Promoted = Callable[[str], Awaitable[Sequence[tuple[str, str, int]]]]
