"""Requests in OpenAI's shape as requests to the model service; pure, it knows no HTTP and no bus.

Source: OpenAI's API reference (chat/completions, completions, embeddings). What is not supported is refused by name;
`IGNORED` lists the fields whose absence nobody can notice in an answer. Beside OpenAI's own fields those of
`schemas.bodies.model.Sampling` are taken, which the `openai` package sends as `extra_body`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from schemas.bodies.model import Chat, ChatMessage, Embed, Generate, Tool, ToolCall
from schemas.errors import BadRequest

# Hints, names for billing and abuse desks, and what OpenAI does behind the answer.
IGNORED: Final = frozenset(
    {
        "user",
        "safety_identifier",
        "prediction",
        "reasoning_effort",
        "verbosity",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
    }
)

# Fields that would change the answer and are not supported. null, false and what is empty ask for nothing.
REFUSED: Final[Mapping[str, str]] = {
    "logit_bias": "weights of single tokens are not supported; a grammar or a JSON Schema can bind an answer",
    "audio": "answers are text",
    "functions": "it was replaced by tools",
    "function_call": "it was replaced by tool_choice",
    "moderation": "nothing is moderated here",
    "web_search_options": "no search of the web is built in; offer it as a tool",
    "store": "answers are not kept under their id; learning keeps what it may (docs/learning.md)",
    "suffix": "text cannot be filled in before a suffix",
    "echo": "the prompt is not repeated",
}

# Choices of one request, prompts times n: each is a generation of its own and holds a place in the model's queue.
MAX_CHOICES: Final = 64

# Seeds of the model service have 32 bits, OpenAI's are any integer.
_SEEDS: Final = 1 << 32

_Request = TypeVar("_Request", bound="_Shape")


class _Shape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what is read of a request after `IGNORED` and `REFUSED` are out."""


class _StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Others, as include_obfuscation, change nothing in the answer."""

    include_usage: bool | None = None


class _JsonSchema(msgspec.Struct, frozen=True, kw_only=True):
    name: str = ""
    schema: dict[str, Any] | None = None


class _ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    type: str
    json_schema: _JsonSchema | None = None


class _Generating(_Shape, frozen=True, kw_only=True):
    """What chats and completions have in common."""

    model: str | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    response_format: _ResponseFormat | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    # Not OpenAI's.
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    grammar: str | None = None
    adapter: str | None = None
    truncate: str | None = None
    conversation_id: str | None = None


class _ChatRequest(_Generating, frozen=True, kw_only=True):
    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    modalities: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None


class _CompletionRequest(_Generating, frozen=True, kw_only=True):
    prompt: str | list[Any]
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    best_of: int | None = None


class _EmbeddingRequest(_Shape, frozen=True, kw_only=True):
    input: str | list[Any]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    truncate: str | None = None


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What one request asks of the model service: a body for each choice, those of one prompt side by side.

    choices_each: choices of each prompt. is_single_call: no more than one call of a tool may be answered.
    """

    subject: Literal["model.chat", "model.generate"]
    bodies: Sequence[Chat | Generate]
    choices_each: int
    model: str
    is_streamed: bool
    with_usage: bool
    with_logprobs: bool
    is_single_call: bool = False
    is_batch: bool = False


class WantedVectors(msgspec.Struct, frozen=True, kw_only=True):
    """dimensions: what the vectors must have, None for what the model makes."""

    body: Embed
    model: str
    is_base64: bool
    dimensions: int | None


def chat_of(value: Any) -> Wanted:
    """A request to /v1/chat/completions. Raises BadRequest naming the field."""
    request = _read(value, _ChatRequest)
    if request.modalities and request.modalities != ["text"]:
        raise _refused("modalities", 'answers are text: only ["text"] can be asked for')
    if request.top_logprobs is not None and not request.logprobs:
        raise BadRequest("top_logprobs needs logprobs to be true", field="top_logprobs")
    if None not in (request.max_tokens, request.max_completion_tokens):
        raise BadRequest(
            "max_tokens and max_completion_tokens are the same limit: give one of them", field="max_tokens"
        )
    limit = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    tools, choice = _tools(request.tools or [], request.tool_choice)
    is_json, schema = _format(request.response_format)
    first = Chat(
        messages=[_message(message, f"messages[{at}]") for at, message in enumerate(request.messages)],
        tools=tools,
        tool_choice=choice,
        response_format="json" if is_json else "text",
        json_schema=schema,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        **_sampling(request, limit),
    )
    return _wanted(
        "model.chat",
        [first],
        request,
        with_logprobs=bool(request.logprobs),
        is_single_call=request.parallel_tool_calls is False,
    )


def completion_of(value: Any) -> Wanted:
    """A request to /v1/completions. Raises BadRequest naming the field."""
    request = _read(value, _CompletionRequest)
    if request.best_of is not None and request.best_of > (request.n or 1):
        raise _refused("best_of", "every choice that is made is answered")
    is_json, schema = _format(request.response_format)
    if is_json:
        schema = {"type": "object"}
    sampling = _sampling(request, request.max_tokens)
    bodies = [
        Generate(prompt=prompt, json_schema=schema, logprobs=request.logprobs, **sampling)
        for prompt in _texts(request.prompt, "prompt")
    ]
    return _wanted("model.generate", bodies, request, with_logprobs=request.logprobs is not None)


def vectors_of(value: Any) -> WantedVectors:
    """A request to /v1/embeddings. Raises BadRequest naming the field."""
    request = _read(value, _EmbeddingRequest)
    changes: dict[str, Any] = {} if request.truncate is None else {"truncate": request.truncate}
    return WantedVectors(
        body=Embed(texts=_texts(request.input, "input"), model=request.model, **changes),
        model=request.model or "",
        is_base64=request.encoding_format == "base64",
        dimensions=request.dimensions,
    )


def _read(value: Any, shape: type[_Request]) -> _Request:
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object", field="body")
    for name, why in REFUSED.items():
        if value.get(name):
            raise _refused(name, why)
    known = {name: one for name, one in value.items() if name not in IGNORED and name not in REFUSED}
    try:
        return msgspec.convert(known, shape)
    except msgspec.ValidationError as error:
        raise _unreadable(error) from None


def _unreadable(error: msgspec.ValidationError) -> BadRequest:
    text, _, place = str(error).partition(" - at `$")
    place = place.rstrip("`").lstrip(".")
    _, unknown, name = text.partition("unknown field `")
    if unknown:
        name = f"{place}.{name.rstrip('`')}".lstrip(".")
        return BadRequest(f"Unrecognized request argument supplied: {name}", field=name or "body")
    if not place:
        # "Object missing required field `messages`": the place is the object it is missing in.
        place = text.partition("required field `")[2].rstrip("`")
    return BadRequest(f"{text} in '{place}'" if place else text, field=place or "body")


def _refused(name: str, why: str) -> BadRequest:
    return BadRequest(f"'{name}' is not supported: {why}", field=name, reason="unsupported_parameter")


def _wanted(
    subject: Literal["model.chat", "model.generate"],
    prompts: Sequence[Chat | Generate],
    request: _Generating,
    *,
    with_logprobs: bool,
    is_single_call: bool = False,
) -> Wanted:
    each = request.n or 1
    if each * len(prompts) > MAX_CHOICES:
        raise BadRequest(
            f"{len(prompts)} prompts with n={each} are {each * len(prompts)} choices, {MAX_CHOICES} are allowed",
            field="n",
        )
    if request.stream_options is not None and not request.stream:
        raise BadRequest("stream_options is only allowed when stream is true", field="stream_options")
    return Wanted(
        subject=subject,
        bodies=[_varied(body, number) for body in prompts for number in range(each)],
        choices_each=each,
        model=request.model or "",
        is_streamed=bool(request.stream),
        with_usage=request.stream_options is not None and bool(request.stream_options.include_usage),
        with_logprobs=with_logprobs,
        is_single_call=is_single_call,
        # OpenAI's cheap tier is slower when others ask, which is what batch means on the bus.
        is_batch=request.service_tier == "flex",
    )


def _varied(body: Chat | Generate, number: int) -> Chat | Generate:
    """The same request for another choice: with a seed of its own, or all of them would say the same."""
    if body.seed is None or not number:
        return body
    return msgspec.structs.replace(body, seed=(body.seed + number) % _SEEDS)


def _sampling(request: _Generating, max_tokens: int | None) -> dict[str, Any]:
    """Fields of `Sampling`. Ranges are the worker's to check: it names the field too."""
    stop = [request.stop] if isinstance(request.stop, str) else request.stop
    conversation_id = request.conversation_id
    if conversation_id is None and request.metadata:
        conversation_id = request.metadata.get("conversation_id")
    fields = {
        "model": request.model,
        "max_tokens": max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "min_p": request.min_p,
        "repeat_penalty": request.repeat_penalty,
        "seed": None if request.seed is None else request.seed % _SEEDS,
        "stop": stop,
        "frequency_penalty": request.frequency_penalty,
        "presence_penalty": request.presence_penalty,
        "grammar": request.grammar,
        "adapter": request.adapter,
        "truncate": request.truncate,
        "conversation_id": conversation_id,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _format(wanted: _ResponseFormat | None) -> tuple[bool, dict[str, Any] | None]:
    """Whether any JSON object will do, and the schema it has to fulfil."""
    if wanted is None or wanted.type == "text":
        return False, None
    if wanted.type == "json_object":
        return True, None
    if wanted.type != "json_schema":
        raise BadRequest(
            f"response_format.type is {wanted.type[:40]!r}, it must be text, json_object or json_schema",
            field="response_format.type",
        )
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        raise BadRequest("response_format.json_schema.schema is missing", field="response_format.json_schema.schema")
    return False, wanted.json_schema.schema


def _texts(value: str | list[Any], name: str) -> list[str]:
    if isinstance(value, str):
        return [value]
    if not value:
        raise BadRequest(f"'{name}' is empty", field=name)
    if not all(isinstance(one, str) for one in value):
        raise _refused(name, "tokens cannot be given, only a text or a list of texts")
    return value


# Messages -----------------------------------------------------------------------------------------------------------


class _Function(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    arguments: str = ""


class _Call(msgspec.Struct, frozen=True, kw_only=True):
    function: _Function
    id: str = ""
    type: Literal["function"] = "function"


class _Message(_Shape, frozen=True, kw_only=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None


# Fields of messages that are not supported; null and what is empty ask for nothing.
_REFUSED_OF_MESSAGES: Final = ("audio", "function_call")


def _message(value: dict[str, Any], place: str) -> ChatMessage:
    for name in _REFUSED_OF_MESSAGES:
        if value.get(name):
            raise _refused(f"{place}.{name}", "messages are text and calls of tools")
    if value.get("role") == "assistant":
        # It comes back with whatever its server and its client added to it.
        value = {name: one for name, one in value.items() if name in _Message.__struct_fields__}
    message = _placed({name: one for name, one in value.items() if name not in _REFUSED_OF_MESSAGES}, _Message, place)
    if message.content is None and message.refusal is None and not message.tool_calls:
        raise BadRequest(f"'{place}.content' is missing", field=f"{place}.content")
    return ChatMessage(
        role="system" if message.role == "developer" else message.role,
        content=_text(message.content, message.refusal, f"{place}.content"),
        tool_calls=[
            ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
            for call in message.tool_calls or ()
        ],
        tool_call_id=message.tool_call_id,
        name=message.name,
    )


def _text(content: str | list[dict[str, Any]] | None, refusal: str | None, place: str) -> str:
    if content is None:
        return refusal or ""
    if isinstance(content, str):
        return content
    return "".join(_part(part, f"{place}[{at}]") for at, part in enumerate(content))


def _part(part: dict[str, Any], place: str) -> str:
    kind = part.get("type")
    if kind not in ("text", "refusal"):
        raise _refused(place, f"a part of type {str(kind)[:40]!r} cannot be read, only text")
    text = part.get(kind)
    if not isinstance(text, str):
        raise BadRequest(f"'{place}.{kind}' must be text", field=f"{place}.{kind}")
    return text


# Tools --------------------------------------------------------------------------------------------------------------


class _Offered(msgspec.Struct, frozen=True, kw_only=True):
    """strict, which OpenAI has beside, asks for arguments that fulfil the schema: where a call is required they do."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class _ToolOffer(msgspec.Struct, frozen=True, kw_only=True):
    function: _Offered
    type: Literal["function"] = "function"


class _Named(msgspec.Struct, frozen=True, kw_only=True):
    name: str


class _NamedTool(msgspec.Struct, frozen=True, kw_only=True):
    function: _Named
    type: Literal["function"] = "function"


class _AllowedTools(msgspec.Struct, frozen=True, kw_only=True):
    mode: Literal["auto", "required"]
    tools: list[_NamedTool]


class _AllowedChoice(msgspec.Struct, frozen=True, kw_only=True):
    allowed_tools: _AllowedTools


_Choice = Literal["auto", "none", "required"]
_CHOICES: Final[Mapping[str, _Choice]] = {"auto": "auto", "none": "none", "required": "required"}


def _tools(offers: Sequence[dict[str, Any]], choice: str | dict[str, Any] | None) -> tuple[list[Tool], _Choice]:
    """The tools that may be called, and whether one must be: a choice among them is made by offering no others."""
    tools = [_tool(offer, f"tools[{at}]") for at, offer in enumerate(offers)]
    if choice is None:
        return tools, "auto"
    if isinstance(choice, str):
        if choice not in _CHOICES:
            raise BadRequest(
                f"tool_choice is {choice[:40]!r}, it must be auto, none, required or an object", field="tool_choice"
            )
        mode, names = _CHOICES[choice], None
    elif choice.get("type") == "allowed_tools":
        allowed = _placed(choice, _AllowedChoice, "tool_choice").allowed_tools
        mode, names = _CHOICES[allowed.mode], [tool.function.name for tool in allowed.tools]
    else:
        mode, names = "required", [_placed(choice, _NamedTool, "tool_choice").function.name]
    if names is not None:
        tools = _named(tools, names)
    if mode == "required" and not tools:
        raise BadRequest("tool_choice asks for a call, but there are no tools", field="tool_choice")
    return tools, mode


def _tool(offer: dict[str, Any], place: str) -> Tool:
    function = _placed(offer, _ToolOffer, place).function
    return Tool(name=function.name, description=function.description or "", parameters=function.parameters or {})


def _named(tools: list[Tool], names: list[str]) -> list[Tool]:
    there = {tool.name: tool for tool in tools}
    for name in names:
        if name not in there:
            raise BadRequest(f"tool_choice names {name[:128]!r}, which is none of the tools", field="tool_choice")
    return [there[name] for name in dict.fromkeys(names)]


_Placed = TypeVar("_Placed")


def _placed(value: dict[str, Any], shape: type[_Placed], place: str) -> _Placed:
    """`value` in a shape. Raises BadRequest that names the field from the body's root on."""
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        found = _unreadable(error)
        field = found.details["field"]
        field = place if field == "body" else f"{place}.{field}"
        raise BadRequest(f"{place}: {found.message}", field=field) from None
