"""Bodies of `model.*`. Sizes are bytes, times are seconds, instants are Unix epoch seconds."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from schemas.bodies.base import Empty, Reply, Request, Unit

ModelName = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._:/+-]+$")]


class ModelList(Empty, frozen=True, kw_only=True):
    pass


class ModelShow(Request, frozen=True, kw_only=True):
    model: ModelName


class ModelInfo(Reply, frozen=True, kw_only=True):
    """One catalogue entry. `state` is about this installation, `error` says why a file cannot be used."""

    name: str
    family: str
    format: str
    quantisation: str
    parameters: int
    size_bytes: int
    context_tokens: int
    state: Literal["available", "loading", "loaded", "unusable"]
    capabilities: list[str] = []
    path: str = ""
    sha256: str | None = None
    description: str = ""
    license: str = ""
    chat_template: str | None = None
    instance: str | None = None
    loaded_at: float | None = None
    error: str | None = None


class Models(Reply, frozen=True, kw_only=True):
    models: list[ModelInfo]
    default: str | None = None


class ModelLoad(Request, frozen=True, kw_only=True):
    """`keep_alive_s` is how long the model stays after its last request; None uses the setting, -1 keeps it for good."""

    model: ModelName
    context_tokens: Annotated[int, Meta(ge=16, le=16_777_216)] | None = None
    keep_alive_s: Annotated[float, Meta(ge=-1)] | None = None


class ModelUnload(Request, frozen=True, kw_only=True):
    """Waits for answers in flight unless `force`, which cancels them."""

    model: ModelName
    force: bool = False


class ModelState(Reply, frozen=True, kw_only=True):
    """`took_s` is 0 when nothing had to be done."""

    model: str
    state: Literal["loaded", "available"]
    took_s: float
    instance: str | None = None
    pid: int | None = None
    context_tokens: int | None = None


class Sampling(Request, frozen=True, kw_only=True):
    """Options of a generation; None takes the model's own default, then the setting. Temperature 0 is greedy."""

    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=10)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    min_p: Unit | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    seed: Annotated[int, Meta(ge=0, le=4_294_967_295)] | None = None
    stop: list[Annotated[str, Meta(min_length=1, max_length=256)]] = []


class Generate(Sampling, frozen=True, kw_only=True):
    """Continue `prompt` as it stands. Without `model` the default one answers."""

    prompt: Annotated[str, Meta(min_length=1)]
    model: ModelName | None = None


class ChatMessage(Request, frozen=True, kw_only=True):
    role: Literal["system", "user", "assistant", "tool"]
    content: str


class Chat(Sampling, frozen=True, kw_only=True):
    """Answer a conversation, rendered through the model's own chat template."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=4096)]
    model: ModelName | None = None


class GenerationPart(Reply, frozen=True, kw_only=True):
    """A partial reply: the next text and the tokens it came from (text waits for whole characters)."""

    text: str
    token_ids: list[int] = []


class Usage(Reply, frozen=True, kw_only=True):
    prompt_tokens: int
    completion_tokens: int


class Timings(Reply, frozen=True, kw_only=True):
    """`load_s` is the time this request waited for its model to be loaded, 0 when it already was."""

    prompt_s: float
    generate_s: float
    first_token_s: float
    tokens_per_s: float
    load_s: float = 0.0


class Generation(Reply, frozen=True, kw_only=True):
    """The final reply: the whole text again, and what it cost."""

    model: str
    text: str
    token_ids: list[int]
    finish_reason: Literal["stop", "length"]
    usage: Usage
    timings: Timings


class ModelEvent(Reply, frozen=True, kw_only=True):
    """Events `model.loading|loaded|unloaded|evicted|failed`: what happened and why."""

    model: str
    reason: str
    instance: str | None = None
    took_s: float | None = None
    size_bytes: int | None = None


class UsageEvent(Reply, frozen=True, kw_only=True):
    """Event `model.usage`: one finished generation."""

    model: str
    operation: str
    usage: Usage
    timings: Timings
    finish_reason: str


class ModelTokenize(Request, frozen=True, kw_only=True):
    """Count the tokens of each text as the model's tokenizer cuts it, nothing added; the model is not loaded for it.

    The text of a control token stays plain text, as it does in a chat.
    """

    texts: Annotated[list[str], Meta(min_length=1, max_length=1_000)]
    model: ModelName | None = None
    with_tokens: bool = False


class TokenCounts(Reply, frozen=True, kw_only=True):
    """`counts` and, where asked for, `tokens` have an entry for each text."""

    model: str
    counts: list[int]
    tokens: list[list[int]] | None = None
