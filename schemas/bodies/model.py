"""Bodies of `model.*`. Sizes are bytes, times are seconds, instants are Unix epoch seconds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from schemas.bodies.base import Empty, Reply, Request, Unit

ModelName = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._:/+-]+$")]


# A device is "cpu" (main memory) or "gpu0", "gpu1" ... in the order of the driver.
Device = Annotated[str, Meta(max_length=16, pattern=r"^(cpu|gpu[0-9]{1,3})$(?!\n)")]
AdapterName = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:+-]*$(?!\n)")]
ContextTokens = Annotated[int, Meta(ge=16, le=16_777_216)]
KeepAlive = Annotated[float, Meta(ge=-1, le=36_500 * 86_400)]
# 1 is evicted last, 5 first.
Priority = Annotated[int, Meta(ge=1, le=5)]
Capability = Literal["generate", "chat", "embed", "tools", "json_schema", "grammar", "vision", "adapters", "code"]


class ModelList(Empty, frozen=True, kw_only=True):
    pass


class ModelShow(Request, frozen=True, kw_only=True):
    model: ModelName


class ModelVersion(Reply, frozen=True, kw_only=True):
    """One content that a name has had. `source` says where it came from; `path` is empty when it is no longer here."""

    sha256: str
    size_bytes: int
    added_at: float
    source: str = ""
    path: str = ""


class ModelInfo(Reply, frozen=True, kw_only=True):
    """One catalogue entry. `state` is about this installation, `error` says why a file cannot be used.

    memory_bytes: what loading it is expected to take, 0 when unknown. backend: what would run it. device, in_flight,
    is_pinned, priority and keep_alive_s are about a loaded model, or how it would be loaded. sha256 is None until it
    has been computed. chat_template is left out of lists. versions: the newest ones. weights: folder of safetensors that
    an adapter for it can be trained from, "" where there is none.
    """

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
    aliases: list[str] = []
    versions: list[ModelVersion] = []
    backend: str = ""
    source: str = ""
    device: str | None = None
    memory_bytes: int = 0
    in_flight: int = 0
    is_pinned: bool = False
    priority: int = 3
    keep_alive_s: float | None = None
    adapters: list[str] = []
    weights: str = ""


class Models(Reply, frozen=True, kw_only=True):
    models: list[ModelInfo]
    default: str | None = None


class ModelLoad(Request, frozen=True, kw_only=True):
    """`keep_alive_s` is how long the model stays after its last request; None uses the setting, -1 keeps it for good.

    `device` None lets the scheduler choose. `adapter` is attached before the model serves.
    """

    model: ModelName
    context_tokens: ContextTokens | None = None
    keep_alive_s: KeepAlive | None = None
    device: Device | None = None
    adapter: AdapterName | None = None


class ModelPreload(Request, frozen=True, kw_only=True):
    """Load models ahead of need, into memory that is free or idle; answers at once, and nothing waits for them."""

    models: Annotated[list[ModelName], Meta(min_length=1, max_length=16)]


class Preloading(Reply, frozen=True, kw_only=True):
    """What became of each: `is_started` False with the reason (already loaded, no free memory, unusable)."""

    model: str
    is_started: bool
    reason: str


class Preloadings(Reply, frozen=True, kw_only=True):
    models: list[Preloading]


class ModelKeep(Request, frozen=True, kw_only=True):
    """How a model is held in memory from now on, also after a restart; None leaves a field as it is.

    is_pinned: never evicted, loaded at start, loaded again when its runner dies. priority: 1 is evicted last, 5 first.
    keep_alive_s: seconds it stays idle, -1 for good. is_reset: forget what was asked, and go back to the settings.
    """

    model: ModelName
    is_pinned: bool | None = None
    priority: Priority | None = None
    keep_alive_s: KeepAlive | None = None
    is_reset: bool = False


class ModelKept(Reply, frozen=True, kw_only=True):
    model: str
    is_pinned: bool
    priority: int
    keep_alive_s: float


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
    device: str | None = None
    memory_bytes: int | None = None


class Sampling(Request, frozen=True, kw_only=True):
    """Options of a generation; None takes the model's own default, then the setting. Temperature 0 is greedy.

    frequency_penalty, presence_penalty: as in OpenAI's API, over the last 64 tokens. json_schema: a JSON Schema that
    the answer fulfils. grammar: the same as a GBNF grammar of llama.cpp; not both. logprobs: likeliest tokens to report
    with each token; None reports nothing, 0 the chosen one. adapter: a LoRA adapter of the model, "" for none; None
    takes the champion, if there is one. truncate: what to drop of a prompt longer than the window: nothing (refused),
    its beginning (of a chat: the oldest messages after the system's), or its middle. conversation_id: turns of one
    conversation find their state again, so that a follow-up does not read the prompt anew.
    """

    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=10)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    min_p: Unit | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    seed: Annotated[int, Meta(ge=0, le=4_294_967_295)] | None = None
    stop: Annotated[list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(max_length=64)] = []
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    json_schema: dict[str, Any] | None = None
    grammar: Annotated[str, Meta(min_length=1, max_length=65_536)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    adapter: Annotated[str, Meta(max_length=128, pattern=r"^([A-Za-z0-9][A-Za-z0-9._:+-]*)?$(?!\n)")] | None = None
    truncate: Literal["refuse", "start", "middle"] = "refuse"
    conversation_id: Annotated[str, Meta(min_length=1, max_length=256)] | None = None


class Generate(Sampling, frozen=True, kw_only=True):
    """Continue `prompt` as it stands. Without `model` the default one answers."""

    prompt: Annotated[str, Meta(min_length=1)]
    model: ModelName | None = None


class ToolCall(Request, frozen=True, kw_only=True):
    """A call that the model asked for. `arguments` is JSON text, as the model wrote it."""

    id: Annotated[str, Meta(max_length=256)]
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    arguments: str


class ChatMessage(Request, frozen=True, kw_only=True):
    """`tool_calls` belong to the assistant's messages; `tool_call_id` and `name` to a tool's, which answers one."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    tool_calls: Annotated[list[ToolCall], Meta(max_length=128)] = []
    tool_call_id: Annotated[str, Meta(max_length=256)] | None = None
    name: Annotated[str, Meta(max_length=128)] | None = None


class Tool(Request, frozen=True, kw_only=True):
    """A function that the model may ask for. `parameters` is a JSON Schema."""

    name: Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.-]+$(?!\n)")]
    description: Annotated[str, Meta(max_length=65_536)] = ""
    parameters: dict[str, Any] = {}


class Chat(Sampling, frozen=True, kw_only=True):
    """Answer a conversation, rendered through the model's own chat template.

    `model` may be a routing profile. response_format: "json" makes any JSON object; see json_schema for a given shape.
    """

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=4096)]
    model: ModelName | None = None
    tools: Annotated[list[Tool], Meta(max_length=128)] = []
    tool_choice: Literal["auto", "none", "required"] = "auto"
    response_format: Literal["text", "json"] = "text"


class TokenLogprob(Reply, frozen=True, kw_only=True):
    """A token with its natural logarithm of probability under the model itself, before temperature and cuts."""

    token_id: int
    text: str
    logprob: float


class TokenChoice(TokenLogprob, frozen=True, kw_only=True):
    """A token of the answer, and the likeliest ones in its place."""

    top: list[TokenLogprob] = []


class GenerationPart(Reply, frozen=True, kw_only=True):
    """A partial reply: the next text and the tokens it came from (text waits for whole characters)."""

    text: str
    token_ids: list[int] = []
    logprobs: list[TokenChoice] = []


class Usage(Reply, frozen=True, kw_only=True):
    """`cached_tokens`: of the prompt's, those whose state was still there."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class Timings(Reply, frozen=True, kw_only=True):
    """`load_s` is the time this request waited for its model to be loaded, 0 when it already was."""

    prompt_s: float
    generate_s: float
    first_token_s: float
    tokens_per_s: float
    load_s: float = 0.0


class Generation(Reply, frozen=True, kw_only=True):
    """The final reply: the whole text again, and what it cost.

    adapter: the LoRA adapter that took part. truncated_tokens: of the prompt's, those dropped as `truncate` asked.
    route: why this model, when a profile was asked for. reply_id: what feedback on this answer names it by.
    """

    model: str
    text: str
    token_ids: list[int]
    finish_reason: Literal["stop", "length", "tool_calls"]
    usage: Usage
    timings: Timings
    tool_calls: list[ToolCall] = []
    logprobs: list[TokenChoice] = []
    adapter: str | None = None
    truncated_tokens: int = 0
    route: str | None = None
    reply_id: str = ""


class Embed(Request, frozen=True, kw_only=True):
    """Vectors of texts, of length 1. Without `model` the first one that can embed answers."""

    texts: Annotated[list[str], Meta(min_length=1, max_length=2_048)]
    model: ModelName | None = None
    truncate: Literal["refuse", "start", "middle"] = "refuse"


class Embeddings(Reply, frozen=True, kw_only=True):
    """`vectors` has an entry of `dimension` float32, little-endian, for each text."""

    model: str
    dimension: int
    vectors: list[bytes]
    usage: Usage


class Score(Request, frozen=True, kw_only=True):
    """Log-probability of texts under a model, each after its own prompt ("" for none)."""

    texts: Annotated[list[str], Meta(min_length=1, max_length=1_024)]
    prompts: Annotated[list[str], Meta(max_length=1_024)] = []
    model: ModelName | None = None
    adapter: Annotated[str, Meta(max_length=128)] | None = None


class Scores(Reply, frozen=True, kw_only=True):
    """Sum of natural log-probabilities and tokens of each text; perplexity is exp(-sum(logprobs) / sum(tokens))."""

    model: str
    logprobs: list[float]
    tokens: list[int]


class ConversationClear(Request, frozen=True, kw_only=True):
    """Drop the state kept for a conversation, in whichever model holds it."""

    conversation_id: Annotated[str, Meta(min_length=1, max_length=256)]


class ConversationCleared(Reply, frozen=True, kw_only=True):
    conversation_id: str
    was_kept: bool


class ModelEvent(Reply, frozen=True, kw_only=True):
    """Events `model.loading|loaded|unloaded|evicted|failed|preloaded`: what happened and why."""

    model: str
    reason: str
    instance: str | None = None
    took_s: float | None = None
    size_bytes: int | None = None
    device: str | None = None
    memory_bytes: int | None = None


class UsageEvent(Reply, frozen=True, kw_only=True):
    """Event `model.usage`: one finished generation.

    adapter: the LoRA adapter that took part. purpose: the request's header of that name, "" for live traffic.
    """

    model: str
    operation: str
    usage: Usage
    timings: Timings
    finish_reason: str
    adapter: str | None = None
    mean_logprob: float | None = None
    purpose: str = ""


class ModelStats(Request, frozen=True, kw_only=True):
    """Figures of one model, or of all without `model`."""

    model: ModelName | None = None


class LatencyFigures(Reply, frozen=True, kw_only=True):
    """Seconds, over the last 1,000 answers."""

    p50_s: float
    p95_s: float
    max_s: float


class ModelFigures(Reply, frozen=True, kw_only=True):
    """Counted since the model was first seen. `load_s` and latencies are None before the first.

    preloads: loads ahead of need; preload_hits: those that a request then used; preload_wasted_s: seconds that unused
    ones lay in memory. estimated_bytes and measured_bytes: of the last load.
    """

    model: str
    loads: int
    evictions: int
    failures: int
    requests: int
    errors: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    last_used_at: float | None = None
    load_s: LatencyFigures | None = None
    first_token_s: LatencyFigures | None = None
    tokens_per_s: float | None = None
    preloads: int = 0
    preload_hits: int = 0
    preload_wasted_s: float = 0.0
    estimated_bytes: int = 0
    measured_bytes: int = 0


class ModelStatsReply(Reply, frozen=True, kw_only=True):
    models: list[ModelFigures]


class ModelUsage(Request, frozen=True, kw_only=True):
    """How often models were used in the last `window_s` seconds, the most used first; and note a use of one, if given."""

    window_s: Annotated[float, Meta(gt=0, le=366 * 86_400)] = 3_600.0
    record: ModelName | None = None


class UsageCount(Reply, frozen=True, kw_only=True):
    model: str
    uses: int
    last_used_at: float


class ModelUsageReply(Reply, frozen=True, kw_only=True):
    models: list[UsageCount]


class ModelPredict(Request, frozen=True, kw_only=True):
    """Which models will be wanted within `horizon_s` seconds, the likeliest first."""

    horizon_s: Annotated[float, Meta(gt=0, le=86_400)] = 300.0
    limit: Annotated[int, Meta(ge=1, le=64)] = 3


class Prediction(Reply, frozen=True, kw_only=True):
    """probability: of a request within the horizon. why: what it rests on."""

    model: str
    probability: float
    why: str


class Predictions(Reply, frozen=True, kw_only=True):
    models: list[Prediction]


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
