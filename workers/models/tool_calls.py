"""Finds the calls of tools in a model's answer while it is being made; knows the formats models are trained to write.

    <tool_call>{"name": ..., "arguments": {...}}</tool_call> ...      Hermes, Qwen
    [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]              Mistral, until 2024
    [TOOL_CALLS]NAME[ARGS]{...} ...                                   Mistral, later
    <|python_tag|>{"name": ..., "parameters": {...}}; ...             Llama 3.1; the mark may be missing
    {"name": ..., "arguments": {...}}                                 the answer to tool_choice "required"

Source: the chat templates that come with these models. What does not parse, or names a tool nobody offered, is text.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Iterator
from typing import Any, Final

from schemas.bodies.model import Tool, ToolCall
from workers.models.stopping import overlap

_TAG: Final = "<tool_call>"
_END_TAG: Final = "</tool_call>"
_MISTRAL: Final = "[TOOL_CALLS]"
_ARGS: Final = "[ARGS]"
_CALL_ID: Final = "[CALL_ID]"
_PYTHON: Final = "<|python_tag|>"

_MARKS: Final = (_TAG, _MISTRAL, _PYTHON)

# Control tokens whose text a backend has to show, because the beginning of a call is told by them.
SHOWN_CONTROL_TEXTS: Final = frozenset({_TAG, _END_TAG, _MISTRAL, _ARGS, _CALL_ID, _PYTHON})

# Mistral's templates refuse ids of another length; all others take any.
_ID_CHARACTERS: Final = 9


class ToolCallReader:
    """Splits one answer into text to be shown and calls. Text that may be the beginning of a call is held back."""

    def __init__(self, tools: Collection[Tool]) -> None:
        self._names = {tool.name for tool in tools}
        self._held = ""
        self._is_call = False
        self._is_begun = False

    def feed(self, text: str) -> str:
        """Add text; return what is certainly none of a call."""
        text = self._held + text
        if not self._is_call and not self._is_begun:
            bare = text.lstrip()
            self._is_call = bare.startswith("{")
            self._is_begun = bool(bare)
        if self._is_call or not self._is_begun:
            self._held = text
            return ""
        found = [at for at in map(text.find, _MARKS) if at >= 0]
        self._is_call = bool(found)
        shown = min(found) if found else len(text) - max(overlap(text, mark) for mark in _MARKS)
        self._held = text[shown:]
        return text[:shown]

    def finish(self) -> tuple[str, tuple[ToolCall, ...]]:
        """What is left at the end of the answer: text, or calls."""
        calls = parse_calls(self._held, self._names) if self._is_call else ()
        return ("" if calls else self._held), calls


def parse_calls(text: str, names: Collection[str]) -> tuple[ToolCall, ...]:
    """The calls in `text`, which begins with a mark or a brace; none where one of them is not right."""
    try:
        wanted = [_call(found, names) for found in _found(text)]
    except (ValueError, RecursionError):
        return ()
    return tuple(wanted)


def _found(text: str) -> Iterator[Any]:
    """Everything in `text` that should be a call, decoded. Raises ValueError."""
    if _TAG in text:
        for part in text.split(_TAG)[1:]:
            yield _decode(part.partition(_END_TAG)[0])
    elif _MISTRAL in text:
        for part in text.split(_MISTRAL)[1:]:
            if part.lstrip().startswith("["):
                yield from _decode(part)
            else:
                name, mark, arguments = part.partition(_ARGS)
                if not mark:
                    raise ValueError("neither a list nor a name")
                yield {"name": name.partition(_CALL_ID)[0].strip(), "arguments": _decode(arguments)}
    else:
        rest = text.removeprefix(_PYTHON).strip()
        while rest:
            value, end = _DECODER.raw_decode(rest)
            yield value
            rest = rest[end:].lstrip().removeprefix(";").lstrip()


_DECODER: Final = json.JSONDecoder()


def _decode(text: str) -> Any:
    value, _ = _DECODER.raw_decode(text.strip())
    return value


def _call(found: Any, names: Collection[str]) -> ToolCall:
    if not isinstance(found, dict):
        raise ValueError("a call is an object")
    # Some write {"type": "function", "function": {...}} around it, as the API does.
    if isinstance(found.get("function"), dict):
        found = found["function"]
    name = found.get("name")
    if not isinstance(name, str) or name not in names:
        raise ValueError("nobody offered this tool")
    arguments = found.get("arguments", found.get("parameters", {}))
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return ToolCall(id=secrets.token_hex(_ID_CHARACTERS)[:_ID_CHARACTERS], name=name, arguments=arguments)


def call_schema(tools: Collection[Tool]) -> dict[str, Any]:
    """The JSON Schema of a call of one of `tools`, for an answer that must be one."""
    definitions: dict[str, Any] = {}
    for number, tool in enumerate(tools):
        place = f"tool{number}"
        definitions[place] = _moved(tool.parameters or {"type": "object"}, f"#/$defs/{place}")
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool.name}, "arguments": {"$ref": f"#/$defs/tool{number}"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for number, tool in enumerate(tools)
    ]
    return {"anyOf": calls, "$defs": definitions}


def _moved(schema: Any, place: str) -> Any:
    """`schema` with its references to itself leading to where it now stands."""
    if isinstance(schema, list):
        return [_moved(one, place) for one in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, place) for key, value in schema.items()}
    target = schema.get("$ref")
    if isinstance(target, str) and target.startswith("#"):
        moved["$ref"] = place + target[1:]
    return moved
