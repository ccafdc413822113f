"""What a runner needs from whatever computes the tokens; every backend is one implementation of this."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Literal, Protocol

import msgspec


class LoadFailed(Exception):
    """The backend cannot load this file; the message is the backend's own reason, for a person."""


class LoadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to load a model.

    context_tokens: window of each sequence. parallel: sequences answered at once. threads: 0 for the backend's choice.
    gpu_layers: layers put on the GPU, -1 for all.
    """

    context_tokens: int
    parallel: int
    threads: int
    gpu_layers: int


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Options of one generation, every default already filled in. Temperature 0 is greedy."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    seed: int
    stop: tuple[str, ...] = ()


class Chunk(msgspec.Struct):
    """Text that is ready to be shown and the tokens it came from."""

    text: str
    token_ids: list[int]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a generation ended.

    text and token_ids are the concatenation of the chunks; the end-of-generation token is in neither.
    prompt_s: from the start of its computation to the first token; first_token_s: the same from its submission, so
    with the wait for a free sequence; generate_s: from the first token to the last.
    """

    text: str
    token_ids: list[int]
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    prompt_s: float
    generate_s: float
    first_token_s: float


class Tokenizer(Protocol):
    """Text to tokens, as the model was trained to read it."""

    bos_text: str
    eos_text: str

    def tokenize(self, text: str, *, with_special: bool) -> list[int]:
        """Token ids of `text`, nothing added. With `with_special`, the text of a control token becomes that token."""

    def begin(self, tokens: list[int]) -> list[int]:
        """`tokens` with the begin-of-text token in front, if the model wants one and it is not there yet."""

    def control_texts(self, text: str) -> set[str]:
        """Texts within `text` that would become control tokens."""


class Backend(Tokenizer, Protocol):
    """A loaded model."""

    context_tokens: int

    def generate(self, prompt: Sequence[int], options: Options) -> AsyncGenerator[Chunk | Outcome, None]:
        """Chunks as they come, then one Outcome. Closing the generator stops it before its next token.

        `prompt` must be shorter than `context_tokens`. Raises schemas.errors.Internal when the computation fails.
        """

    def close(self) -> None:
        """Stop every generation and free the model."""
