"""The number formats a model can be written in. Knows no library: what a child process is asked for is checked here."""

from __future__ import annotations

from typing import Final, NamedTuple

from schemas.errors import Unprocessable


class FileType(NamedTuple):
    """ftype: `llama_ftype` in llama.h. bits: of one weight on average, rounded up; rows that fit no block take more."""

    ftype: int
    bits: float


# What llama.cpp writes without an importance matrix, which takes hours of running the model to make: the IQ1 and IQ2
# types and Q2_K_S ask for one. MXFP4, NVFP4 and Q1_0 are for models trained that way. Bits: block sizes of
# ggml-common.h, and for mixtures of types the mean over Llama models as llama.cpp reports it.
QUANTISED: Final = {
    "F32": FileType(0, 32.0),
    "F16": FileType(1, 16.0),
    "BF16": FileType(32, 16.0),
    "Q8_0": FileType(7, 8.5),
    "Q6_K": FileType(18, 6.6),
    "Q5_K_M": FileType(17, 5.7),
    "Q5_K_S": FileType(16, 5.6),
    "Q5_1": FileType(9, 6.0),
    "Q5_0": FileType(8, 5.6),
    "Q4_K_M": FileType(15, 4.9),
    "Q4_K_S": FileType(14, 4.6),
    "Q4_1": FileType(3, 5.1),
    "Q4_0": FileType(2, 4.6),
    "IQ4_NL": FileType(25, 4.6),
    "IQ4_XS": FileType(30, 4.4),
    "Q3_K_L": FileType(13, 4.3),
    "Q3_K_M": FileType(12, 4.0),
    "Q3_K_S": FileType(11, 3.6),
    "IQ3_M": FileType(27, 3.7),
    "IQ3_S": FileType(26, 3.6),
    "IQ3_XS": FileType(22, 3.4),
    "IQ3_XXS": FileType(23, 3.3),
    "Q2_K": FileType(10, 3.2),
    "TQ2_0": FileType(37, 2.4),
    "TQ1_0": FileType(36, 2.0),
}

# What the `gguf` package writes at the speed of the disk.
EXPORTED: Final = ("F32", "F16", "BF16", "Q8_0")


def quantised_type(text: str) -> str:
    """The type's own name for `text`, in capitals or not. Raises Unprocessable with the allowed ones."""
    return _one_of(text, tuple(QUANTISED), "quantised to")


def exported_type(text: str) -> str:
    """The same for an export."""
    return _one_of(text, EXPORTED, "exported as")


def _one_of(text: str, allowed: tuple[str, ...], what: str) -> str:
    name = text.upper()
    if name not in allowed:
        raise Unprocessable(
            f"type is {text!r}, a model can be {what}: {', '.join(allowed)}", field="type", allowed=list(allowed)
        )
    return name


def size_of(parameters: int, type: str) -> int:
    """Bytes that a model of so many parameters takes in a type, about."""
    return int(parameters * QUANTISED[type].bits / 8)
