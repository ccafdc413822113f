"""Counting tokens: by the model's tokenizer where it answers, by the estimate where it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from schemas.bodies.model import ModelTokenize, TokenCounts
from schemas.errors import NotFound
from workers.memory.sessions.tokens import (
    ESTIMATE,
    FAILED_S,
    REQUEST_BYTES,
    REQUEST_TEXTS,
    BusTokenCounter,
    Estimator,
    estimate,
)


class Bus:
    """`model.tokenize` that counts characters, fails on request, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[ModelTokenize] = []
        self.fails = False

    async def request(self, subject: str, body: ModelTokenize, *, timeout_s: float) -> TokenCounts:
        assert subject == "model.tokenize"
        assert timeout_s > 0
        self.asked.append(body)
        if self.fails:
            raise NotFound("there is no such model")
        return TokenCounts(model=str(body.model), counts=[len(text) for text in body.texts])


def counter_on(bus: Bus, clock: Callable[[], float] = lambda: 0.0) -> BusTokenCounter:
    ask: Any = bus.request
    return BusTokenCounter(ask, clock)


async def test_the_models_tokenizer_counts_all_texts_in_one_request() -> None:
    """And the answer says so."""
    bus = Bus()
    counted = await counter_on(bus).count(["one", "three", ""], "demo")
    assert counted == ([3, 5, 0], "demo")
    assert len(bus.asked) == 1


async def test_a_text_is_counted_once_per_model() -> None:
    """The second time it is remembered; another model counts for itself."""
    bus = Bus()
    counter = counter_on(bus)
    await counter.count(["same", "same"], "demo")
    assert await counter.count(["same", "new"], "demo") == ([4, 3], "demo")
    assert [request.texts for request in bus.asked] == [["same"], ["new"]]
    await counter.count(["same"], "other")
    assert bus.asked[-1].model == "other"


async def test_without_a_model_nobody_is_asked() -> None:
    """Bytes / 3, rounded up."""
    bus = Bus()
    assert await counter_on(bus).count(["abcd", ""], None) == ([2, 0], ESTIMATE)
    assert not bus.asked
    assert await Estimator().count(["abcd"], "demo") == ([2], ESTIMATE)
    assert estimate("ä" * 3) == 2


async def test_a_model_that_fails_is_estimated_and_left_alone_for_a_while() -> None:
    """A service that is away does not cost every caller the timeout."""
    bus, now_s = Bus(), [0.0]
    counter = counter_on(bus, lambda: now_s[0])
    bus.fails = True
    assert await counter.count(["abcdef"], "demo") == ([2], ESTIMATE)
    bus.fails = False
    assert (await counter.count(["abcdef"], "demo")).by == ESTIMATE
    assert len(bus.asked) == 1
    now_s[0] = FAILED_S
    assert await counter.count(["abcdef"], "demo") == ([6], "demo")


async def test_many_or_long_texts_go_in_several_requests() -> None:
    """No request passes the limits of the operation."""
    bus = Bus()
    texts = [str(number) for number in range(REQUEST_TEXTS + 1)] + ["x" * REQUEST_BYTES, "y" * REQUEST_BYTES]
    counted = await counter_on(bus).count(texts, "demo")
    assert counted.counts == [len(text) for text in texts]
    assert all(len(request.texts) <= REQUEST_TEXTS for request in bus.asked)
    assert len(bus.asked) == 4


async def test_a_lone_surrogate_costs_something_and_breaks_nothing() -> None:
    """Counting never fails."""
    assert (await counter_on(Bus()).count(["\ud800"], None)).counts == [1]
