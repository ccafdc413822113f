"""Chooses the next token of one answer from its logits, in llama.cpp's order of steps.

    penalties -> top-k -> top-p -> min-p -> temperature -> draw

Source: llama.cpp `src/llama-sampling.cpp` (the samplers of that name) and its chain in `backends/llama_cpp.py`. The same
seed draws the same answer here again; it does not draw llama.cpp's.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from schemas.bodies.model import TokenChoice, TokenLogprob
from workers.models.backends.backend import Options
from workers.models.backends.torch_tokens import TorchTokens

# Tokens that penalties look back on; llama.cpp's own default.
PENALTY_TOKENS: Final = 64


class Sampler:
    """Draws the tokens of one answer. `prompt`: what penalties also look back on."""

    def __init__(self, options: Options, prompt: Sequence[int]) -> None:
        self._options = options
        self._recent = deque(prompt[-PENALTY_TOKENS:], maxlen=PENALTY_TOKENS)
        self._penalises = bool(options.repeat_penalty != 1.0 or options.frequency_penalty or options.presence_penalty)
        # On the CPU wherever the model is, so that a seed means the same on every device.
        self._random = torch.Generator().manual_seed(options.seed)

    def choose(self, logits: Tensor) -> int:
        """The next token. logits: (vocabulary,), float32; changed by this."""
        if self._penalises:
            self._penalise(logits)
        token = int(logits.argmax()) if self._options.temperature == 0 else self._draw(logits)
        self._recent.append(token)
        return token

    def _penalise(self, logits: Tensor) -> None:
        counts = Counter(self._recent)
        if not counts:
            return
        options = self._options
        tokens = torch.tensor(list(counts), device=logits.device)
        values = logits[tokens]
        values = torch.where(values <= 0, values * options.repeat_penalty, values / options.repeat_penalty)
        often = torch.tensor(list(counts.values()), device=logits.device, dtype=logits.dtype)
        logits[tokens] = values - often * options.frequency_penalty - options.presence_penalty

    def _draw(self, logits: Tensor) -> int:
        options = self._options
        count = min(options.top_k or len(logits), len(logits))
        values, tokens = logits.topk(count)
        if options.top_p < 1:
            before = values.softmax(0).cumsum(0)
            values = values[: int((before < options.top_p).sum()) + 1]
        if options.min_p > 0:
            chances = values.softmax(0)
            values = values[: max(int((chances >= options.min_p * chances[0]).sum()), 1)]
        reached = (values / options.temperature).softmax(0).cumsum(0)
        # Up to the last sum, which rounding leaves a little beside 1.
        drawn = torch.rand((), generator=self._random).to(reached.device) * reached[-1]
        at = int(torch.searchsorted(reached, drawn, right=True))
        return int(tokens[min(at, len(values) - 1)])


def report(logits: Tensor, token: int, count: int, tokens: TorchTokens) -> TokenChoice:
    """`token` and the `count` likeliest ones, with their log-probabilities under the model itself.

    logits: (vocabulary,), as the model gave them.
    """
    logprobs = logits.log_softmax(0)
    values, ids = logprobs.topk(min(count, len(logprobs)))
    top = [
        TokenLogprob(token_id=each, text=tokens.text_of(each), logprob=value)
        for each, value in zip(ids.tolist(), values.tolist(), strict=True)
    ]
    return TokenChoice(token_id=token, text=tokens.text_of(token), logprob=float(logprobs[token]), top=top)
