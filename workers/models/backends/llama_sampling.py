"""Chooses the next token of one answer with llama.cpp's samplers: penalties, cuts, draw, grammar, log-probabilities.

The usual answer takes llama.cpp's own path, all of it native. Grammars and log-probabilities need the candidates between
the steps; they are laid out in a buffer of this process by strided copies, which costs some 20 ns per vocabulary entry.
"""

from __future__ import annotations

import ctypes
import math
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from schemas.bodies.model import TokenChoice, TokenLogprob
from schemas.errors import Unprocessable
from workers.models.backends.backend import Options

# Tokens the penalties look back on; llama.cpp's own default.
PENALTY_TOKENS: Final = 64

# Seconds that the grammar may take for one token. Usual ones take under 10 ms with 150,000 tokens of vocabulary; one
# that multiplies takes as long as all tokens before together, so this ends it before it is felt by others.
_GRAMMAR_S: Final = 1.0


class Picked(msgspec.Struct):
    """The next token; `choice` where log-probabilities are reported."""

    token: int
    choice: TokenChoice | None = None


class Candidates:
    """Room for every token of a vocabulary as llama.cpp's samplers see them; one for a context, used by one thread."""

    def __init__(self, library: Any, vocab_tokens: int) -> None:
        self._lib = library
        self._size = vocab_tokens
        self._cells = (library.llama_token_data * vocab_tokens)()
        flat = memoryview(self._cells).cast("B")
        # Each cell is an id, a logit and a probability of 4 bytes.
        self._floats, self._ints = flat.cast("f"), flat.cast("i")
        self._ids = memoryview(array("i", range(vocab_tokens)))
        self._normal = library.llama_sampler_init_dist(0)
        self._tops: dict[int, Any] = {}
        self.array = library.llama_token_data_array()

    def logits(self, context: Any, row: int) -> memoryview[float]:
        """The model's own logits of a row, valid until the next decode."""
        found = self._lib.llama_get_logits_ith(context, row)
        address = ctypes.addressof(found.contents)
        return memoryview((ctypes.c_float * self._size).from_address(address)).cast("B").cast("f")

    def fill(self, logits: memoryview[float]) -> Any:
        """The array with every token; samplers sort and shorten it."""
        self._floats[1::3] = logits
        self._ints[0::3] = self._ids
        array = self.array
        array.data = ctypes.cast(self._cells, ctypes.POINTER(self._lib.llama_token_data))
        array.size, array.selected, array.sorted = self._size, -1, False
        return array

    def likeliest(self, logits: memoryview[float], count: int) -> tuple[float, list[tuple[int, float]]]:
        """log(sum(exp(logits))), and the `count` likeliest tokens with their log-probabilities, the first one first."""
        array = self.fill(logits)
        lib = self._lib
        lib.llama_sampler_apply(self._normal, ctypes.byref(array))
        size = max(count, 1)
        if size not in self._tops:
            self._tops[size] = lib.llama_sampler_init_top_k(size)
        lib.llama_sampler_apply(self._tops[size], ctypes.byref(array))
        best = array.data[0]
        # The best one's probability is never small, so its logarithm is exact to some 1e-7.
        total = best.logit - math.log(best.p)
        return total, [(array.data[at].id, array.data[at].logit - total) for at in range(count)]

    def close(self) -> None:
        """Free what llama.cpp holds."""
        for sampler in (self._normal, *self._tops.values()):
            self._lib.llama_sampler_free(sampler)


class Sampler:
    """The samplers of one answer. Raises Unprocessable for a grammar that llama.cpp does not take; free it at the end.

    text_of: a token's text for reports. candidates: asked for only where they are needed.
    """

    def __init__(
        self,
        library: Any,
        vocab: Any,
        options: Options,
        grammar: str | None,
        prompt: Sequence[int],
        candidates: Callable[[], Candidates],
        text_of: Callable[[int], str],
    ) -> None:
        self._lib = library
        self._options = options
        self._text_of = text_of
        self._grammar: Any = None
        self._candidates: Candidates | None = None
        if grammar is not None:
            self._grammar = library.llama_sampler_init_grammar(vocab, grammar.encode(), b"root")
            if not self._grammar:
                raise Unprocessable("llama.cpp does not take this grammar", field="grammar")
        if grammar is not None or options.logprobs is not None:
            self._candidates = candidates()
        self._chain = self._make_chain(int(library.llama_vocab_n_tokens(vocab)), prompt)

    def _make_chain(self, vocab_tokens: int, prompt: Sequence[int]) -> Any:
        """llama.cpp's order: penalties, top-k, top-p, min-p, temperature, draw."""
        lib, options = self._lib, self._options
        parameters = lib.llama_sampler_chain_default_params()
        parameters.no_perf = True
        chain = lib.llama_sampler_chain_init(parameters)
        links = []
        if options.repeat_penalty != 1.0:
            repeats = lib.llama_sampler_init_penalties(vocab_tokens, PENALTY_TOKENS, options.repeat_penalty, 0.0, 0.0)
            for token in prompt[-PENALTY_TOKENS:]:
                lib.llama_sampler_accept(repeats, token)
            links.append(repeats)
        if options.frequency_penalty or options.presence_penalty:
            # These two look at the answer alone, as in OpenAI's API.
            frequency, presence = options.frequency_penalty, options.presence_penalty
            links.append(lib.llama_sampler_init_penalties(vocab_tokens, PENALTY_TOKENS, 1.0, frequency, presence))
        if options.temperature == 0:
            links.append(lib.llama_sampler_init_greedy())
        else:
            links += [
                lib.llama_sampler_init_top_k(options.top_k),
                lib.llama_sampler_init_top_p(options.top_p, 1),
                lib.llama_sampler_init_min_p(options.min_p, 1),
                lib.llama_sampler_init_temp(options.temperature),
                lib.llama_sampler_init_dist(options.seed),
            ]
        for link in links:
            lib.llama_sampler_chain_add(chain, link)
        return chain

    def next(self, context: Any, row: int) -> Picked:
        """The next token after a row of the last decode.

        Raises Unprocessable when no token goes on as the grammar demands, or the grammar has become too slow.
        """
        candidates = self._candidates
        if candidates is None:
            return Picked(int(self._lib.llama_sampler_sample(self._chain, context, row)))
        logits = candidates.logits(context, row)
        top: list[tuple[int, float]] = []
        total = 0.0
        if self._options.logprobs is not None:
            total, top = candidates.likeliest(logits, self._options.logprobs)
        if self._grammar is None:
            token = int(self._lib.llama_sampler_sample(self._chain, context, row))
        else:
            token = self._allowed(candidates, logits)
        if self._options.logprobs is None:
            return Picked(token)
        others = [TokenLogprob(token_id=id, text=self._text_of(id), logprob=value) for id, value in top]
        return Picked(
            token,
            TokenChoice(token_id=token, text=self._text_of(token), logprob=logits[token] - total, top=others),
        )

    def _allowed(self, candidates: Candidates, logits: memoryview[float]) -> int:
        """A token that the grammar allows: the one drawn without it, if it does; else one drawn among those it does."""
        lib, started = self._lib, time.perf_counter()
        array = candidates.fill(logits)
        lib.llama_sampler_apply(self._chain, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        if not self._allows(token):
            array = candidates.fill(logits)
            lib.llama_sampler_apply(self._grammar, ctypes.byref(array))
            lib.llama_sampler_apply(self._chain, ctypes.byref(array))
            chosen = array.data[array.selected]
            token = int(chosen.id)
            # llama.cpp aborts the process where a token is accepted that the grammar does not allow.
            if math.isinf(chosen.logit) or math.isnan(chosen.logit) or not self._allows(token):
                raise Unprocessable("no token of this model goes on as the grammar demands", field="grammar")
        lib.llama_sampler_accept(self._grammar, token)
        lib.llama_sampler_accept(self._chain, token)
        took_s = time.perf_counter() - started
        if took_s > _GRAMMAR_S:
            raise Unprocessable(
                f"the grammar took {took_s:.1f} s for one token, the limit is {_GRAMMAR_S} s; let its alternatives"
                " differ in their first characters",
                field="grammar",
            )
        return token

    def _allows(self, token: int) -> bool:
        lib = self._lib
        one = lib.llama_token_data(token, 0.0, 0.0)
        array = lib.llama_token_data_array(ctypes.pointer(one), 1, -1, False)
        lib.llama_sampler_apply(self._grammar, ctypes.byref(array))
        return not math.isinf(one.logit)

    def free(self) -> None:
        """Give back what llama.cpp holds."""
        self._lib.llama_sampler_free(self._chain)
        if self._grammar is not None:
            self._lib.llama_sampler_free(self._grammar)
            self._grammar = None
