"""Between llama-cpp-python's words and the bus': options, messages, tools, and the dicts of its replies. No I/O."""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final
from uuid import uuid4

from schemas.bodies.model import (
    Chat,
    ChatMessage,
    Generate,
    Generation,
    GenerationPart,
    Sampling,
    TokenChoice,
    Tool,
    ToolCall,
    Usage,
)

log = logging.getLogger("models")

Options = Mapping[str, Any]
Reply = dict[str, Any]
# Partial replies of a generation; the generator's value is the final one.
Parts = Generator[GenerationPart, None, Generation]

# Other names of the bus' options.
_RENAMED: Final[Mapping[str, str]] = {
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "repetition_penalty": "repeat_penalty",
    "stop_sequences": "stop",
    "stop_words": "stop",
}
_SAMPLING: Final = frozenset(Sampling.__struct_fields__)

# The bus' largest number of tokens: llama-cpp-python's "as many as the window holds".
_MAX_TOKENS: Final = 1_000_000


def sampling_of(options: Options) -> dict[str, Any]:
    """Fields of `Sampling`; None means the default. Options that Olympus has no word for are ignored, with a warning."""
    fields: dict[str, Any] = {}
    ignored = []
    for key, value in options.items():
        ours = _RENAMED.get(key, key)
        if ours in _SAMPLING:
            if value is not None:
                fields.setdefault(ours, value)
        elif key not in ("do_sample", "model"):
            ignored.append(key)
    if ignored:
        log.warning("options of a generation: ignored, as Olympus has none like them: %s", ", ".join(sorted(ignored)))
    if options.get("do_sample") is False:
        fields["temperature"] = 0.0
    return _in_range(fields)


def _in_range(fields: dict[str, Any]) -> dict[str, Any]:
    """What llama-cpp-python takes and the bus words differently: no limit, greedy, any seed, one stop text."""
    if fields.get("max_tokens", 1) <= 0:
        fields["max_tokens"] = _MAX_TOKENS
    for key in ("temperature", "top_k"):
        if fields.get(key, 0) < 0:
            fields[key] = 0
    if fields.get("seed", 0) < 0:
        del fields["seed"]
    if isinstance(fields.get("stop"), str):
        fields["stop"] = [fields["stop"]]
    if fields.get("logprobs") is False:
        del fields["logprobs"]
    return fields


def generate_body(model: str, prompt: str, options: Options) -> Generate:
    """What `create_completion` asks of `model.generate`."""
    return Generate(model=model, prompt=prompt, **sampling_of(options))


def chat_body(model: str, messages: Iterable[Mapping[str, Any]], options: Options) -> Chat:
    """What `create_chat_completion` asks of `model.chat`. Raises ValueError for messages of no known shape."""
    rest = dict(options)
    tools = [_tool(one) for one in rest.pop("tools", None) or rest.pop("functions", None) or []]
    choice: Any = rest.pop("tool_choice", None) or rest.pop("function_call", None) or "auto"
    if isinstance(choice, Mapping):
        # A certain tool: the only one, and required.
        wanted = choice.get("function", choice)["name"]
        tools = [one for one in tools if one.name == wanted]
        choice = "required"
    shape = _shape(rest.pop("response_format", None))
    top = rest.pop("top_logprobs", None)
    if rest.get("logprobs") is True:
        rest["logprobs"] = top or 0
    return Chat(
        model=model,
        messages=[_message(one) for one in messages],
        tools=tools,
        tool_choice=choice,
        **{**sampling_of(rest), **shape},
    )


def _shape(response_format: Any) -> dict[str, Any]:
    if not isinstance(response_format, Mapping):
        return {}
    schema = response_format.get("schema") or (response_format.get("json_schema") or {}).get("schema")
    if schema is not None:
        return {"json_schema": schema}
    return {"response_format": "json"} if response_format.get("type") == "json_object" else {}


def _tool(tool: Mapping[str, Any]) -> Tool:
    function = tool.get("function", tool)
    return Tool(
        name=function["name"],
        description=function.get("description") or "",
        parameters=function.get("parameters") or {},
    )


def _message(message: Mapping[str, Any]) -> ChatMessage:
    role = message.get("role")
    role = {"developer": "system", "function": "tool"}.get(str(role), role)
    calls = [
        ToolCall(id=call.get("id") or "", name=call["function"]["name"], arguments=call["function"]["arguments"])
        for call in message.get("tool_calls") or []
    ]
    return ChatMessage(
        role=role,  # type: ignore[arg-type]  # the service refuses others, and names what is allowed
        content=_text(message.get("content")),
        tool_calls=calls,
        tool_call_id=message.get("tool_call_id"),
        name=message.get("name"),
    )


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) != len(parts):
        raise ValueError("a message's content holds something else than text, which Olympus' models do not take")
    return "".join(texts)


# Replies ------------------------------------------------------------------------------------------------------------


def usage_of(usage: Usage) -> Reply:
    """OpenAI's count of tokens."""
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def completion(reply: Generation, name: str, before: str = "", after: str = "") -> Reply:
    """The dict of `create_completion`; `before` and `after` are put around the text."""
    choice = _completion_choice(before + reply.text + after, _old_logprobs(reply.logprobs), reply.finish_reason)
    return {**_head("cmpl", "text_completion", name), "choices": [choice], "usage": usage_of(reply.usage)}


def completion_pieces(parts: Parts, name: str, before: str = "", after: str = "") -> Iterator[Reply]:
    """The pieces of a streamed completion; the last one says why it ended."""
    head = _head("cmpl", "text_completion", name)
    if before:
        yield {**head, "choices": [_completion_choice(before, None, None)]}
    final = yield from _told(
        parts, lambda part: {**head, "choices": [_completion_choice(part.text, _old_logprobs(part.logprobs), None)]}
    )
    yield {**head, "choices": [_completion_choice(after, None, final.finish_reason)]}


def chat_completion(reply: Generation, name: str) -> Reply:
    """The dict of `create_chat_completion`."""
    message: Reply = {"role": "assistant", "content": reply.text}
    if reply.tool_calls:
        message["content"] = reply.text or None
        message["tool_calls"] = _calls(reply.tool_calls)
    choice = {
        "index": 0,
        "message": message,
        "logprobs": _new_logprobs(reply.logprobs),
        "finish_reason": reply.finish_reason,
    }
    return {**_head("chatcmpl", "chat.completion", name), "choices": [choice], "usage": usage_of(reply.usage)}


def chat_pieces(parts: Parts, name: str) -> Iterator[Reply]:
    """The pieces of a streamed chat: the role, the text, and last tool calls and why it ended."""
    head = _head("chatcmpl", "chat.completion.chunk", name)
    yield {**head, "choices": [_delta({"role": "assistant"})]}
    final = yield from _told(
        parts,
        lambda part: {**head, "choices": [_delta({"content": part.text}, logprobs=_new_logprobs(part.logprobs))]},
    )
    calls = [{"index": index, **call} for index, call in enumerate(_calls(final.tool_calls))]
    yield {**head, "choices": [_delta({"tool_calls": calls} if calls else {}, finish_reason=final.finish_reason)]}


def _told(parts: Parts, piece: Callable[[GenerationPart], Reply]) -> Generator[Reply, None, Generation]:
    """A piece for each part; the value is the final reply. Leaving it ends the parts."""
    try:
        while True:
            yield piece(next(parts))
    except StopIteration as ended:
        final: Generation = ended.value
        return final
    finally:
        parts.close()


def embedding(vectors: Sequence[Sequence[float]], usage: Usage, name: str) -> Reply:
    """The dict of `create_embedding`."""
    data = [{"object": "embedding", "index": index, "embedding": list(one)} for index, one in enumerate(vectors)]
    return {"object": "list", "data": data, "model": name, "usage": usage_of(usage)}


def vector_of(packed: bytes) -> list[float]:
    """The numbers of a vector from its float32, little-endian bytes."""
    return array("f", packed).tolist()


def text_of(reply: Reply) -> str:
    """What was answered, of a dict that a completion, a chat, or a piece of either is."""
    choice = (reply.get("choices") or [{}])[0]
    said = choice.get("message") or choice.get("delta") or choice
    return said.get("content") or said.get("text") or ""


def _head(prefix: str, kind: str, name: str) -> Reply:
    return {"id": f"{prefix}-{uuid4()}", "object": kind, "created": int(time.time()), "model": name}


def _completion_choice(text: str, logprobs: Reply | None, finish_reason: str | None) -> Reply:
    return {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": finish_reason}


def _delta(delta: Reply, logprobs: Reply | None = None, finish_reason: str | None = None) -> Reply:
    return {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _calls(calls: Sequence[ToolCall]) -> list[Reply]:
    return [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in calls
    ]


def _old_logprobs(choices: Sequence[TokenChoice]) -> Reply | None:
    if not choices:
        return None
    offsets = [0]
    for choice in choices:
        offsets.append(offsets[-1] + len(choice.text))
    return {
        "tokens": [choice.text for choice in choices],
        "token_logprobs": [choice.logprob for choice in choices],
        "top_logprobs": [{one.text: one.logprob for one in choice.top} for choice in choices],
        "text_offset": offsets[:-1],
    }


def _new_logprobs(choices: Sequence[TokenChoice]) -> Reply | None:
    if not choices:
        return None
    return {"content": [{**_token(choice), "top_logprobs": [_token(one) for one in choice.top]} for choice in choices]}


def _token(token: Any) -> Reply:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.text.encode())}
