"""What a runner needs from whatever computes the tokens.

Backend      answers prompts and conversations          every backend is one
TokenModel   continues tokens                           llama.cpp and transformers; `local.LocalBackend` makes a
                                                        Backend of one with the model's chat template
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Literal, Protocol

import msgspec

from schemas.bodies.model import ChatMessage, TokenChoice, Tool, ToolCall


class LoadFailed(Exception):
    """The backend cannot load this file; the message is the backend's own reason, for a person."""


class LoadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to load a model.

    context_tokens: window of each sequence. parallel: sequences answered at once. threads: 0 for the backend's choice.
    gpu_layers: layers put on the GPU, -1 for all. device: "cpu", or "gpu0" and so on.
    """

    context_tokens: int
    parallel: int
    threads: int
    gpu_layers: int
    device: str = "cpu"


class Remote(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint that speaks OpenAI's API.

    base_url: up to and with "/v1". model: what it calls the model. key_env: variable of the environment that holds its
    key, "" for none; the key itself is never written anywhere.
    """

    base_url: str
    model: str
    key_env: str = ""
    timeout_s: float = 120.0


class AdapterFile(msgspec.Struct, frozen=True, kw_only=True):
    """A LoRA adapter by the name requests use, and its content: no state is ever shared between two contents."""

    name: str
    path: str
    sha256: str
    scale: float = 1.0


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Options of one generation, every default already filled in. Temperature 0 is greedy.

    logprobs: likeliest tokens to report with each, None for no report. grammar: GBNF; json_schema: JSON Schema; at most
    one of the two. adapter: sha256 of the attached adapter to use, None for the bare model. conversation_id: whose
    state is worth keeping.
    """

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    seed: int
    stop: tuple[str, ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logprobs: int | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    adapter: str | None = None
    conversation_id: str | None = None


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be answered: `text` to be continued as it stands, or `messages` of a conversation.

    is_json: any JSON object will do (with options.json_schema: one of that shape). truncate: what may be dropped of it
    where it is longer than the window.
    """

    options: Options
    text: str | None = None
    messages: tuple[ChatMessage, ...] = ()
    tools: tuple[Tool, ...] = ()
    tool_choice: Literal["auto", "none", "required"] = "auto"
    is_json: bool = False
    truncate: Literal["refuse", "start", "middle"] = "refuse"


class Chunk(msgspec.Struct):
    """Text that is ready to be shown and the tokens it came from."""

    text: str
    token_ids: list[int]
    logprobs: list[TokenChoice] = []


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a generation ended.

    text and token_ids are the concatenation of the chunks; the end-of-generation token is in neither.
    prompt_s: from the start of its computation to the first token; first_token_s: the same from its submission, so
    with the wait for a free sequence; generate_s: from the first token to the last. cached_tokens: of the prompt's,
    those that were not read again. truncated_tokens: of the prompt's, those dropped. mean_logprob, min_logprob: of the
    natural logarithms of the tokens' probabilities under the model itself; None where the backend does not say.
    """

    text: str
    token_ids: list[int]
    finish_reason: Literal["stop", "length", "tool_calls"]
    prompt_tokens: int
    prompt_s: float
    generate_s: float
    first_token_s: float
    cached_tokens: int = 0
    truncated_tokens: int = 0
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenChoice, ...] = ()
    mean_logprob: float | None = None
    min_logprob: float | None = None
    # Where the backend does not say which tokens it made, how many they were.
    completion_tokens: int | None = None


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


class TokenModel(Tokenizer, Protocol):
    """A loaded model that continues tokens."""

    context_tokens: int
    capabilities: frozenset[str]

    def generate(self, prompt: Sequence[int], options: Options) -> AsyncGenerator[Chunk | Outcome, None]:
        """Chunks as they come, then one Outcome. Closing the generator stops it before its next token.

        `prompt` must be shorter than `context_tokens`. Raises schemas.errors.Internal when the computation fails.
        """

    async def embed(self, prompts: Sequence[Sequence[int]]) -> list[bytes]:
        """A vector of length 1 for each, float32 little-endian. Raises schemas.errors.Unsupported."""

    async def score(self, prompt: Sequence[int], tokens: Sequence[int], adapter: str | None) -> list[float]:
        """Natural log-probability of each of `tokens` after `prompt` and those before it."""

    async def set_adapters(self, adapters: Sequence[AdapterFile]) -> None:
        """Have exactly these attached. Raises LoadFailed for one that does not fit, and then nothing has changed."""

    def forget(self, conversation_id: str) -> bool:
        """Drop what is kept for a conversation; False when there was nothing."""

    def close(self) -> None:
        """Stop every generation and free the model."""


class Backend(Protocol):
    """A loaded model, wherever it runs. capabilities: of schemas.bodies.model.Capability.

    lost: set when what runs the model has ended by itself, so that it answers no more.
    """

    context_tokens: int
    capabilities: frozenset[str]
    lost: asyncio.Event

    def answer(self, question: Question) -> AsyncGenerator[Chunk | Outcome, None]:
        """Chunks as they come, then one Outcome. Closing the generator stops the computation.

        Raises Unprocessable with both numbers for what is longer than the window and may not be cut, Unsupported for
        what this model cannot do (its capabilities say so before), Internal when the computation fails.
        """

    async def embed(self, texts: Sequence[str], truncate: str) -> tuple[list[bytes], int]:
        """A vector of length 1 for each text, float32 little-endian, and the tokens read. Raises Unsupported."""

    async def score(self, prompts: Sequence[str], texts: Sequence[str], adapter: str | None) -> list[tuple[float, int]]:
        """Sum of natural log-probabilities and number of tokens of each text after its prompt. Raises Unsupported."""

    async def set_adapters(self, adapters: Sequence[AdapterFile]) -> None:
        """Have exactly these attached. Raises LoadFailed for one that does not fit, and then nothing has changed."""

    def forget(self, conversation_id: str) -> bool:
        """Drop what is kept for a conversation; False when there was nothing."""

    async def close(self) -> None:
        """Stop every generation and free the model."""
