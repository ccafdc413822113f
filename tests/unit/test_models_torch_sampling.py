"""The sampler of the transformers backend: each step against its definition, and the same draws for the same seed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the extra 'learning' is not installed")

from workers.models.backends.backend import Options  # noqa: E402
from workers.models.backends.torch_sampling import Sampler  # noqa: E402

LOGITS = [2.0, 1.0, 0.0, -1.0, -2.0]


def options(**changes: Any) -> Options:
    """Nothing is cut, nothing penalised."""
    plain: dict[str, Any] = {
        "max_tokens": 1,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
        "seed": 1,
    }
    return Options(**{**plain, **changes})


def drawn(count: int = 400, prompt: tuple[int, ...] = (), **changes: Any) -> Counter[int]:
    """How often each token is drawn from LOGITS, each time by a sampler of its own."""
    return Counter(Sampler(options(seed=seed, **changes), prompt).choose(torch.tensor(LOGITS)) for seed in range(count))


def test_temperature_zero_takes_the_likeliest() -> None:
    """Whatever the seed."""
    assert drawn(20, temperature=0.0) == {0: 20}


def test_draws_follow_the_probabilities() -> None:
    """Chi-square of 2,000 draws against the softmax; 18.5 is passed once in a thousand."""
    counts = drawn(2_000)
    expected = torch.tensor(LOGITS).softmax(0) * 2_000
    assert sum((counts[token] - float(want)) ** 2 / float(want) for token, want in enumerate(expected)) < 18.5


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 1_000}, {0, 1, 2, 3, 4}),
        # Probabilities: 0.64, 0.23, 0.09, 0.03, 0.01.
        ({"top_p": 0.6}, {0}),
        ({"top_p": 0.7}, {0, 1}),
        ({"top_p": 0.9}, {0, 1, 2}),
        ({"min_p": 0.3}, {0, 1}),
        ({"min_p": 1.0}, {0}),
        # top-p counts among what top-k left: 0.73 and 0.27.
        ({"top_k": 2, "top_p": 0.7}, {0}),
        # The cuts come before the temperature, which would level everything.
        ({"top_p": 0.7, "temperature": 100.0}, {0, 1}),
    ],
)
def test_cuts_leave_what_llama_cpp_leaves(changes: dict[str, Any], left: set[int]) -> None:
    """top-k, then top-p, then min-p, then the temperature."""
    assert set(drawn(**{"temperature": 3.0, **changes})) == left


def test_penalties_look_back_on_the_last_tokens() -> None:
    """Repeated tokens lose: divided where positive, multiplied where negative, and less by their number."""

    def penalised(prompt: tuple[int, ...], **changes: Any) -> list[float]:
        logits = torch.tensor(LOGITS)
        Sampler(options(temperature=0.0, **changes), prompt).choose(logits)
        found: list[float] = logits.tolist()
        return found

    assert penalised((0, 4), repeat_penalty=2.0) == [1.0, 1.0, 0.0, -1.0, -4.0]
    assert penalised((0, 0, 1), frequency_penalty=0.5) == [1.0, 0.5, 0.0, -1.0, -2.0]
    assert penalised((0, 0, 1), presence_penalty=0.5) == [1.5, 0.5, 0.0, -1.0, -2.0]
    assert penalised((0, *[3] * 64), presence_penalty=1.0) == [2.0, 1.0, 0.0, -2.0, -2.0]


def test_own_tokens_are_penalised_too() -> None:
    """What was drawn counts from then on."""
    sampler = Sampler(options(temperature=0.0, presence_penalty=1.5), ())
    assert [sampler.choose(torch.tensor(LOGITS)) for _ in range(4)] == [0, 1, 0, 0]


def test_same_seed_draws_the_same() -> None:
    """And another one, another sequence."""

    def sequence(seed: int) -> list[int]:
        sampler = Sampler(options(seed=seed), ())
        return [sampler.choose(torch.tensor(LOGITS)) for _ in range(30)]

    assert sequence(4_294_967_295) == sequence(4_294_967_295)
    assert sequence(1) != sequence(2)
