"""Renders a conversation through a model's chat template and turns it into tokens that a user's text cannot forge.

Templates come from the model file, so they are strangers' code: they run in jinja2's immutable sandbox, with the
options and names that template authors rely on (trim_blocks, lstrip_blocks, `raise_exception`, `strftime_now`,
`tojson`, bos and eos text, `tools`; documented in the Hugging Face transformers guide on chat templates). For a template
that knows nothing of tools, their description, calls and answers are written into the messages, as Hermes models do it.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Sequence
from typing import Any, Final, NoReturn

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from schemas.bodies.model import ChatMessage, Tool, ToolCall
from schemas.errors import Unprocessable
from workers.models.backends.backend import Tokenizer

# Used when the model brings no template: ChatML, which most instruction-tuned models read at least tolerably.
FALLBACK_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Without a template the model may not know ChatML's end token, so its text ends the answer too.
FALLBACK_STOP: Final = ("<|im_end|>",)

# What a template that takes tools has to mention.
_TOOLS_NAME: Final = "tools"

_TOOLS_TEXT: Final = (
    "You may call functions. Each of these lines describes one:\n{tools}\n"
    'To call one, answer with <tool_call>{{"name": NAME, "arguments": OBJECT}}</tool_call>, once for each call.'
)

# Written here, not by a caller, so there is nothing to look for in them.
_OWN_KEYS: Final = frozenset({"role", "content", "name", "tool_calls", "id", "type", "function", "arguments"})

_PRIVATE_USE: Final = range(0xE000, 0xF8FF)


class ChatTemplate:
    """A compiled chat template; `source` None takes the fallback. Raises Unprocessable when it does not compile."""

    def __init__(self, source: str | None, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.stop = FALLBACK_STOP if source is None else ()
        self.takes_tools = source is not None and _TOOLS_NAME in source
        try:
            self._template = _compile(FALLBACK_TEMPLATE if source is None else source)
        except TemplateError as error:
            raise Unprocessable(f"the model's chat template does not compile: {error}") from error

    def render(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> str:
        """The conversation as one text that ends where the assistant's answer begins.

        Raises Unprocessable with the template's own words when it refuses the conversation or fails.
        """
        return self._render(*self._values(messages, tools))

    def tokens(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> list[int]:
        """Token ids of the rendered conversation. Control tokens come from the template only.

        Content that spells a control token ("<|im_end|>") is cut inside that spelling by a character that occurs
        nowhere in the conversation; the parts are tokenized one by one, so the spelling stays plain text.
        """
        tokenizer = self._tokenizer
        values = self._values(messages, tools)
        guard = _unused_character(values)
        text = self._render(*(_defused(value, tokenizer, guard) for value in values))
        parts = [tokenizer.tokenize(part, with_special=True) for part in text.split(guard) if part]
        return tokenizer.begin([token for part in parts for token in part])

    def _values(self, messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> tuple[Any, Any]:
        """Messages and tools as templates expect them."""
        if not self.takes_tools:
            messages, tools = _written_out(messages, tools), ()
        return [_message(message) for message in messages], [_tool(tool) for tool in tools]

    def _render(self, messages: Any, tools: Any) -> str:
        try:
            return self._template.render(
                messages=messages,
                # Templates ask whether there are tools by comparing with none, or by truth.
                tools=tools or None,
                add_generation_prompt=True,
                bos_token=self._tokenizer.bos_text,
                eos_token=self._tokenizer.eos_text,
            )
        # A template is code: whatever it raises (a wrong type, a division, its own refusal) is the request's answer.
        except Exception as error:
            raise Unprocessable(f"the model's chat template refused the conversation: {error}") from error


def _message(message: ChatMessage) -> dict[str, Any]:
    value: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        value["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": _arguments(call)}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        value["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        value["name"] = message.name
    return value


def _arguments(call: ToolCall) -> Any:
    """Templates write arguments out with `tojson`, so they want them decoded; what is no JSON stays text."""
    try:
        return json.loads(call.arguments)
    except (ValueError, RecursionError):
        return call.arguments


def _tool(tool: Tool) -> dict[str, Any]:
    parameters = tool.parameters or {"type": "object", "properties": {}}
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def _written_out(messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> list[ChatMessage]:
    """The conversation with its tools as text, in the roles that every template knows."""
    plain = [_without_calls(message) for message in messages]
    if tools:
        text = _TOOLS_TEXT.format(tools="\n".join(_to_json(_tool(tool)["function"]) for tool in tools))
        if plain and plain[0].role == "system":
            plain[0] = ChatMessage(role="system", content=f"{plain[0].content}\n\n{text}")
        else:
            plain.insert(0, ChatMessage(role="system", content=text))
    return plain


def _without_calls(message: ChatMessage) -> ChatMessage:
    if message.role == "tool":
        return ChatMessage(role="user", content=f"<tool_response>{message.content}</tool_response>")
    if not message.tool_calls:
        return message
    calls = [
        f"<tool_call>{_to_json({'name': call.name, 'arguments': _arguments(call)})}</tool_call>"
        for call in message.tool_calls
    ]
    return ChatMessage(role=message.role, content="\n".join([message.content, *calls]).lstrip())


def _defused(value: Any, tokenizer: Tokenizer, guard: str) -> Any:
    """`value` with every spelling of a control token in its texts cut by `guard`."""
    if isinstance(value, str):
        return _defused_text(value, tokenizer, guard)
    if isinstance(value, list):
        return [_defused(one, tokenizer, guard) for one in value]
    if isinstance(value, dict):
        return {
            key if key in _OWN_KEYS else _defused(key, tokenizer, guard): (
                one if key == "role" else _defused(one, tokenizer, guard)
            )
            for key, one in value.items()
        }
    return value


def _defused_text(text: str, tokenizer: Tokenizer, guard: str) -> str:
    while True:
        forged = {one for part in text.split(guard) for one in tokenizer.control_texts(part) if len(one) > 1}
        forged = {one for one in forged if one in text}
        if not forged:
            return text
        for one in sorted(forged, key=len, reverse=True):
            text = text.replace(one, one[0] + guard + one[1:])


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _texts(key)
            yield from _texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


def _unused_character(values: Any) -> str:
    used = {character for text in _texts(values) for character in text if ord(character) in _PRIVATE_USE}
    return next((chr(code) for code in _PRIVATE_USE if chr(code) not in used), "\uf8ff")


def _compile(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(source)


def _to_json(value: Any, indent: int | None = None) -> str:
    """jinja2's own filter escapes for HTML, which models were not trained on."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)
