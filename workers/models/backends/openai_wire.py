"""OpenAI's API in bytes: the bodies of requests, the events of a streamed answer, and what its errors mean to us.

It knows no socket; `openai.py` moves the bytes. Source: OpenAI's API reference (chat/completions, completions,
embeddings); the additional fields: llama.cpp `tools/server/README.md`, vLLM's "OpenAI-Compatible Server".

Endpoints that take more than OpenAI's own fields are recognised by what they say of themselves (`Flavour`), and only
they are sent more: an unknown field is an error at one hosted endpoint and silently ignored at the next.

    field               llama-server     vllm                 ollama, plain
    top_k               top_k            top_k                not sent
    min_p               min_p            min_p                not sent
    repeat_penalty      repeat_penalty   repetition_penalty   not sent
    grammar             grammar          structured_outputs   Unsupported
    json_schema of      response_format  response_format      Unsupported (of a chat: response_format)
      a plain prompt
    adapter             Unsupported      model                Unsupported
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, Literal

import msgspec

from schemas.bodies.model import ChatMessage, TokenChoice, TokenLogprob, Tool, ToolCall
from schemas.errors import (
    BusError,
    DeadlineExceeded,
    Forbidden,
    Internal,
    NotFound,
    Overloaded,
    QuotaExceeded,
    TooLarge,
    Unauthenticated,
    Unprocessable,
    Unsupported,
)
from workers.models.backends.backend import Chunk, Options, Outcome, Question
from workers.models.backends.unit_vector import unit_vector

# Bytes of one line of a streamed answer. A token with its 20 likeliest takes 2 kB; a tool call may come as one line.
MAX_LINE_BYTES: Final = 1024 * 1024
# Characters of an endpoint's own words in one of our errors.
MAX_EXCERPT: Final = 400
# The token id of a token whose endpoint names only its text.
UNKNOWN_TOKEN: Final = -1

Body = dict[str, Any]

# What is no JSON of the shape that is expected, and what is nested deeper than anybody reads.
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

# Tokens of a window as Ollama writes it.
_WINDOW: Final = re.compile(r"num_ctx\s+(\d{1,9})", re.ASCII)


class Flavour(StrEnum):
    """Which program answers, as far as it matters for the fields it takes."""

    PLAIN = "plain"
    LLAMA_SERVER = "llama-server"
    OLLAMA = "ollama"
    VLLM = "vllm"


# Requests -----------------------------------------------------------------------------------------------------------


def completion_body(question: Question, model: str, flavour: Flavour) -> Body:
    """The body of /completions for a text, or of /chat/completions for messages. Raises Unsupported."""
    options = question.options
    body: Body = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    body |= _sampling(options, flavour)
    if question.text is not None:
        body["prompt"] = question.text
        if options.logprobs is not None:
            body["logprobs"] = options.logprobs
    else:
        body["messages"] = [_message(message) for message in question.messages]
        if options.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": options.logprobs}
        if question.tools:
            body |= {"tools": [_tool(tool) for tool in question.tools], "tool_choice": question.tool_choice}
    return body | _shape(question, flavour)


def _sampling(options: Options, flavour: Flavour) -> Body:
    body: Body = {
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "seed": options.seed,
    }
    if options.stop:
        body["stop"] = list(options.stop)
    if options.frequency_penalty:
        body["frequency_penalty"] = options.frequency_penalty
    if options.presence_penalty:
        body["presence_penalty"] = options.presence_penalty
    if flavour is Flavour.LLAMA_SERVER:
        body |= {"top_k": options.top_k, "min_p": options.min_p, "repeat_penalty": options.repeat_penalty}
    if flavour is Flavour.VLLM:
        # vLLM's penalty looks back on the whole text, ours on the last 64 tokens.
        body |= {"top_k": options.top_k, "min_p": options.min_p, "repetition_penalty": options.repeat_penalty}
        body["return_token_ids"] = True
    return body


def _shape(question: Question, flavour: Flavour) -> Body:
    """Fields that say what the answer has to look like."""
    options = question.options
    if options.grammar is not None:
        if flavour is Flavour.LLAMA_SERVER:
            return {"grammar": options.grammar}
        if flavour is Flavour.VLLM:
            return {"structured_outputs": {"grammar": options.grammar}}
        raise Unsupported("this endpoint takes no grammar; a JSON Schema may do", field="grammar")
    if options.json_schema is None and not question.is_json:
        return {}
    if question.text is not None and flavour in (Flavour.PLAIN, Flavour.OLLAMA):
        raise Unsupported("this endpoint takes a JSON Schema for a chat only, not for a prompt", field="json_schema")
    if options.json_schema is None:
        return {"response_format": {"type": "json_object"}}
    schema = {"name": "answer", "schema": options.json_schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _message(message: ChatMessage) -> Body:
    body: Body = {"role": message.role, "content": message.content}
    if message.tool_calls:
        body["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        body["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        body["name"] = message.name
    return body


def _tool(tool: Tool) -> Body:
    parameters = tool.parameters or {"type": "object", "properties": {}}
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": parameters},
    }


# Answers ------------------------------------------------------------------------------------------------------------


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolDelta(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    tool_calls: list[_ToolDelta] | None = None


class _Alternative(msgspec.Struct):
    token: str
    logprob: float
    id: int = UNKNOWN_TOKEN


class _Token(_Alternative):
    top_logprobs: list[_Alternative] = []


class _Logprobs(msgspec.Struct):
    """The chat's form, and the older one of /completions."""

    content: list[_Token] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[int] | None = None
    stop_reason: str | int | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class Event(msgspec.Struct):
    """One event of a streamed answer."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode_event = msgspec.json.Decoder(Event).decode


class SseLines:
    """Cuts the bytes of a text/event-stream into the payloads of its `data` lines.

    Other fields, comments and lines that are no field at all are passed over, as the standard says (WHATWG HTML, section
    9.2.6). Endpoints send one line per event, so a payload is a line.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """The payloads that `piece` completes. Raises Internal when a line grows beyond MAX_LINE_BYTES."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES or any(len(line) > MAX_LINE_BYTES for line in lines):
            raise Internal(f"the endpoint sent a line of over {MAX_LINE_BYTES} bytes", limit_bytes=MAX_LINE_BYTES)
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]


def decode_event(payload: bytes) -> Event:
    """One event. Raises Internal with an excerpt when it is not what the API says."""
    try:
        return _decode_event(payload)
    except _UNREADABLE as error:
        excerpt = payload[:MAX_EXCERPT].decode("utf-8", "replace")
        raise Internal(f"the endpoint sent an event that is none: {error}: {excerpt!r}") from error


class _Call:
    """A tool call that is being put together from its pieces."""

    def __init__(self, number: int) -> None:
        self.id = f"call_{number}"
        self.name = ""
        self.arguments = ""

    def take(self, delta: _ToolDelta) -> None:
        self.id = delta.id or self.id
        if delta.function is not None:
            self.name += delta.function.name or ""
            self.arguments += delta.function.arguments or ""

    def whole(self) -> ToolCall:
        """All of it. Raises Internal where it is none that could be sent back to a model."""
        call = ToolCall(id=self.id, name=self.name, arguments=self.arguments)
        try:
            return msgspec.convert(msgspec.structs.asdict(call), ToolCall)
        except msgspec.ValidationError as error:
            excerpt = repr(call)[:MAX_EXCERPT]
            raise Internal(f"the endpoint sent a tool call that is none: {error}: {excerpt}") from error


class Answer:
    """One streamed answer: takes its events, gives its chunks and, at the end, its outcome.

    pieces: events that carried text, the nearest thing to a token count where the endpoint counts none.
    """

    def __init__(self) -> None:
        self.pieces = 0
        self.is_finished = False
        self._started_at = time.perf_counter()
        self._first_at = 0.0
        self._last_at = 0.0
        self._reason = ""
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenChoice] = []
        self._calls: dict[int, _Call] = {}
        self._usage: _Usage | None = None

    @property
    def characters(self) -> int:
        """Of text received so far."""
        return sum(len(text) for text in self._text)

    def take(self, event: Event) -> Chunk | None:
        """Add one event; return the chunk it makes, if any."""
        if event.usage is not None:
            self._usage = event.usage
        if not event.choices:
            return None
        choice = event.choices[0]
        if choice.finish_reason:
            self._reason, self.is_finished = choice.finish_reason, True
        text = choice.text or ""
        if choice.delta is not None:
            text += choice.delta.content or ""
            for delta in choice.delta.tool_calls or ():
                self._take_call(delta)
        token_ids, logprobs = choice.token_ids or [], _logprobs(choice)
        if len(token_ids) == len(logprobs):
            pairs = zip(logprobs, token_ids, strict=True)
            logprobs = [msgspec.structs.replace(each, token_id=token) for each, token in pairs]
        if choice.finish_reason == "stop" and not isinstance(choice.stop_reason, str):
            # vLLM reports the token that ended the answer too, which has no text.
            token_ids, logprobs = token_ids[:-1], logprobs[: len(token_ids[:-1])] if token_ids else logprobs
        if not text and not logprobs and not token_ids and not (choice.delta and choice.delta.tool_calls):
            return None
        self._last_at = time.perf_counter()
        self._first_at = self._first_at or self._last_at
        if not text and not logprobs and not token_ids:
            return None
        self.pieces += bool(text)
        self._text.append(text)
        self._token_ids += token_ids
        self._logprobs += logprobs
        return Chunk(text, token_ids, logprobs)

    def _take_call(self, delta: _ToolDelta) -> None:
        # Endpoints that send every call whole leave the index out.
        at = len(self._calls) if delta.index is None else delta.index
        self._calls.setdefault(at, _Call(at)).take(delta)

    def outcome(self) -> Outcome:
        """How it ended, once its last event was taken. Raises Internal where the tool calls are none."""
        now = time.perf_counter()
        first, last = self._first_at or now, self._last_at or now
        usage = self._usage or _Usage()
        calls = tuple(call.whole() for call in self._calls.values())
        reason: Literal["stop", "length", "tool_calls"] = "stop"
        if self._reason == "length":
            reason = "length"
        elif calls:
            reason = "tool_calls"
        counted = usage.completion_tokens
        details = usage.prompt_tokens_details
        return Outcome(
            text="".join(self._text),
            token_ids=self._token_ids,
            finish_reason=reason,
            prompt_tokens=usage.prompt_tokens,
            prompt_s=first - self._started_at,
            generate_s=last - first,
            first_token_s=first - self._started_at,
            cached_tokens=(details.cached_tokens or 0) if details is not None else 0,
            tool_calls=calls,
            logprobs=tuple(self._logprobs),
            mean_logprob=_mean([choice.logprob for choice in self._logprobs]),
            min_logprob=min((choice.logprob for choice in self._logprobs), default=None),
            completion_tokens=self.pieces if counted is None else counted,
        )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _logprobs(choice: _Choice) -> list[TokenChoice]:
    found = choice.logprobs
    if found is None:
        return []
    if found.content is not None:
        return [
            TokenChoice(
                token_id=token.id,
                text=token.token,
                logprob=token.logprob,
                top=[TokenLogprob(token_id=top.id, text=top.token, logprob=top.logprob) for top in token.top_logprobs],
            )
            for token in found.content
        ]
    texts, values = found.tokens or [], found.token_logprobs or []
    tops: Sequence[dict[str, float] | None] = found.top_logprobs or [None] * len(texts)
    return [
        TokenChoice(token_id=UNKNOWN_TOKEN, text=text, logprob=value or 0.0, top=_older_tops(top))
        for text, value, top in zip(texts, values, tops, strict=False)
    ]


def _older_tops(top: Mapping[str, float] | None) -> list[TokenLogprob]:
    pairs = sorted((top or {}).items(), key=lambda pair: -pair[1])
    return [TokenLogprob(token_id=UNKNOWN_TOKEN, text=text, logprob=value) for text, value in pairs]


class _Vector(msgspec.Struct):
    embedding: list[float]
    index: int | None = None


class _Vectors(msgspec.Struct):
    data: list[_Vector]
    usage: _Usage | None = None


def decode_vectors(body: bytes, count: int) -> tuple[list[bytes], int]:
    """Vectors of length 1 as float32 little-endian, in the order of the texts, and the tokens read. Raises Internal."""
    try:
        answer = msgspec.json.decode(body, type=_Vectors)
    except _UNREADABLE as error:
        raise Internal(f"the endpoint's vectors cannot be read: {error}") from error
    order = [entry.index if entry.index is not None else at for at, entry in enumerate(answer.data)]
    if sorted(order) != list(range(count)):
        raise Internal(f"the endpoint sent {len(answer.data)} vectors for {count} texts", texts=count)
    if len({len(entry.embedding) for entry in answer.data}) != 1:
        raise Internal("the endpoint sent vectors of different dimensions")
    vectors = [b""] * count
    for at, entry in zip(order, answer.data, strict=True):
        vectors[at] = unit_vector(entry.embedding)
    return vectors, answer.usage.prompt_tokens if answer.usage is not None else 0


# What the endpoint says of itself ---------------------------------------------------------------------------------------


class _Meta(msgspec.Struct):
    n_ctx: int | None = None
    n_ctx_train: int | None = None


class ListedModel(msgspec.Struct):
    """An entry of /models, with the fields that only some endpoints give."""

    id: str
    owned_by: str | None = None
    max_model_len: int | None = None
    meta: _Meta | None = None

    @property
    def flavour(self) -> Flavour:
        """By the owner that llama-server, vLLM and Ollama write into every entry."""
        owners = {"llamacpp": Flavour.LLAMA_SERVER, "vllm": Flavour.VLLM, "library": Flavour.OLLAMA}
        return owners.get(self.owned_by or "", Flavour.PLAIN)

    @property
    def context_tokens(self) -> int | None:
        """Tokens of the window, where the entry says so."""
        if self.max_model_len is not None:
            return self.max_model_len
        return (self.meta.n_ctx or self.meta.n_ctx_train) if self.meta is not None else None


class _Listed(msgspec.Struct):
    data: list[ListedModel] = []


def decode_models(body: bytes) -> list[ListedModel]:
    """The entries of /models; none where the body is not what the API says, for the list is not needed to answer."""
    try:
        return msgspec.json.decode(body, type=_Listed).data
    except _UNREADABLE:
        return []


class _OllamaShow(msgspec.Struct):
    parameters: str | None = None
    model_info: dict[str, Any] = {}


def ollama_context_tokens(body: bytes) -> int | None:
    """The window in Ollama's /api/show: `num_ctx` of its parameters, else the length the model was trained for."""
    try:
        shown = msgspec.json.decode(body, type=_OllamaShow)
    except _UNREADABLE:
        return None
    for line in (shown.parameters or "").splitlines():
        if written := _WINDOW.fullmatch(line.strip()):
            return int(written[1])
    lengths = [value for key, value in shown.model_info.items() if key.endswith(".context_length")]
    return next((value for value in lengths if type(value) is int and value > 0), None)


class _Settings(msgspec.Struct):
    n_ctx: int | None = None


class _Props(msgspec.Struct):
    default_generation_settings: _Settings | None = None


def llama_server_context_tokens(body: bytes) -> int | None:
    """The window of one sequence in llama-server's /props: what it was started with, not what the model could do."""
    try:
        props = msgspec.json.decode(body, type=_Props)
    except _UNREADABLE:
        return None
    return props.default_generation_settings.n_ctx if props.default_generation_settings is not None else None


# Errors -------------------------------------------------------------------------------------------------------------


def words_of(error: Any) -> str:
    """What an endpoint's error says, in whichever of the usual places; at most MAX_EXCERPT characters."""
    while isinstance(error, dict):
        error = next((error[key] for key in ("error", "message", "detail") if error.get(key)), "")
    return " ".join(str(error).split())[:MAX_EXCERPT]


def words_of_body(body: bytes) -> str:
    """The same of a body that may be JSON or not."""
    try:
        return words_of(msgspec.json.decode(body))
    except _UNREADABLE:
        return words_of(body.decode("utf-8", "replace"))


_KINDS: Final[Mapping[int, type[BusError]]] = {
    400: Unprocessable,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    408: DeadlineExceeded,
    413: TooLarge,
    422: Unprocessable,
    429: QuotaExceeded,
    500: Internal,
    501: Unsupported,
    502: Overloaded,
    503: Overloaded,
    504: DeadlineExceeded,
    529: Overloaded,
}


def error_of(status: int, words: str, *, host: str, key_env: str, wait_s: float | None = None) -> BusError:
    """What an HTTP status of the endpoint means to whoever asked us; details hold `status` and `retry_after_s`."""
    kind = _KINDS.get(status, Internal if status >= 500 or status < 400 else Unprocessable)
    message = f"{host} answered {status}"
    if words:
        message += f": {words}"
    if status in (401, 403):
        message += f" (the key is taken from {key_env})" if key_env else " (no key_env is named for it)"
    details: dict[str, Any] = {"status": status}
    if wait_s is not None:
        details["retry_after_s"] = wait_s
    return kind(message, **details)
