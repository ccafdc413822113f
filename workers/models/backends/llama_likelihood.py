"""How likely each token of an answer was, at a cost that is not felt: one pass of ggml's own soft-max over the logits.

Every answer tells its mean and lowest log-probability, whether anybody asked for them or not. llama.cpp's samplers keep
their probabilities to themselves, and laying the candidates out in this process takes 80 microseconds for 4,000 tokens of
vocabulary; ggml's vectorised loop takes 2 (46 for 152,000), of a model whose fastest step takes 450.
"""

from __future__ import annotations

import ctypes
import logging
import math
from typing import Any, Final

log = logging.getLogger("olympus.models.llama")

# Below this nothing is told apart: exp() of single precision has no more room.
LOWEST: Final = -88.0

# Largest sum in single precision that is a number.
_SUM_MAX: Final = 1e38

_FLOAT_BYTES: Final = 4


class Likelihood:
    """Natural log-probabilities of single tokens under the model itself. For the decode thread alone."""

    def __init__(self, sum_exp: Any, logits_of: Any, vocab_tokens: int) -> None:
        self._sum_exp = sum_exp
        self._logits_of = logits_of
        self._size = vocab_tokens
        # The function writes every exponential, which nobody reads.
        self._written = (ctypes.c_float * vocab_tokens)()
        self._written_at = ctypes.addressof(self._written)
        self._float_at = ctypes.c_float.from_address

    def logprob(self, context: Any, row: int, token: int) -> float:
        """Of `token` by the logits of a row of the last decode, LOWEST at least.

        log p(t) = -log(sum over v of exp(x_v - x_t)).
        """
        logits_at = self._logits_of(context, row)
        if not logits_at:
            return LOWEST
        total = self._sum_exp(
            self._size, self._written_at, logits_at, self._float_at(logits_at + _FLOAT_BYTES * token).value
        )
        # Not a number where the logits are none.
        return -math.log(total) if 0.0 < total < _SUM_MAX else LOWEST


def likelihood_of(library: Any, vocab_tokens: int) -> Likelihood | None:
    """None where this build of llama.cpp does not offer the function, or it does not compute what is expected."""
    try:
        native = library._lib
        sum_exp, logits_of = native["ggml_vec_soft_max_f32"], native["llama_get_logits_ith"]
    except AttributeError:
        log.info("answers tell no log-probabilities", extra={"action": "model.logprobs.missing"})
        return None
    sum_exp.restype = ctypes.c_double
    sum_exp.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_float]
    logits_of.restype = ctypes.c_void_p
    logits_of.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    if not _is_as_expected(sum_exp):
        log.warning("answers tell no log-probabilities", extra={"action": "model.logprobs.unexpected"})
        return None
    return Likelihood(sum_exp, logits_of, vocab_tokens)


def _is_as_expected(sum_exp: Any) -> bool:
    """The function is ggml's own business and may change: tried once on numbers whose sum is known."""
    values = [0.5, -1.0, 2.0, 0.0, 3.5, -2.0, 1.0, 0.25, -0.75]
    size = len(values)
    given, written = (ctypes.c_float * size)(*values), (ctypes.c_float * size)()
    found = sum_exp(size, ctypes.addressof(written), ctypes.addressof(given), 2.0)
    return math.isclose(found, sum(math.exp(value - 2.0) for value in values), rel_tol=1e-4)
