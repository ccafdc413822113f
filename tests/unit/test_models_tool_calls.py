"""Tool calls in answers: every known format, cut anywhere, and text that only looks like one."""

from __future__ import annotations

import json

import pytest

from schemas.bodies.model import Tool
from workers.models.tool_calls import ToolCallReader, call_schema

TOOLS = (Tool(name="add", parameters={"type": "object"}), Tool(name="say"))


def read(answer: str, size: int) -> tuple[str, list[tuple[str, object]]]:
    """The shown text and the calls of an answer that comes in pieces of `size` characters."""
    reader = ToolCallReader(TOOLS)
    shown = "".join(reader.feed(answer[at : at + size]) for at in range(0, len(answer), size))
    rest, calls = reader.finish()
    return shown + rest, [(call.name, json.loads(call.arguments)) for call in calls]


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ('Well.<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>', "Well."),
        ('[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}]', ""),
        ('[TOOL_CALLS]add[ARGS]{"a": 1}', ""),
        ('[TOOL_CALLS]add[CALL_ID]123456789[ARGS]{"a": 1}', ""),
        ('<|python_tag|>{"name": "add", "parameters": {"a": 1}}', ""),
        ('{"name": "add", "parameters": {"a": 1}}', ""),
        ('\n {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}', ""),
        ('<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}', ""),
    ],
)
def test_a_call_is_found_in_every_format(answer: str, text: str, size: int) -> None:
    """However the pieces are cut, nothing of the call is shown."""
    assert read(answer, size) == (text, [("add", {"a": 1})])


@pytest.mark.parametrize("size", [1, 1000])
def test_several_calls_are_found(size: int) -> None:
    """One mark each, one list, or one after another."""
    both = [("add", {"a": 1}), ("say", {})]
    first, second = '{"name": "add", "arguments": {"a": 1}}', '{"name": "say"}'
    assert read(f"<tool_call>{first}</tool_call>\n<tool_call>{second}</tool_call>", size) == ("", both)
    assert read(f"[TOOL_CALLS] [{first}, {second}]", size) == ("", both)
    assert read(f"{first}; {second}", size) == ("", both)


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize(
    "answer",
    [
        "plain text with < and [TOOL and {braces}",
        '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "add", "arg',
        '{"answer": 42}',
        "[TOOL_CALLS]add",
        "<tool_cal",
        '{"name": ["add"]}',
        "{" * 5000,
    ],
)
def test_what_is_no_call_is_text(answer: str, size: int) -> None:
    """Unfinished, of a tool that nobody offered, or something else: all of it is shown."""
    assert read(answer, size) == (answer, [])


def test_ids_differ_and_fit_every_template() -> None:
    """Nine letters and digits: some templates refuse anything else."""
    reader = ToolCallReader(TOOLS)
    reader.feed('[TOOL_CALLS][{"name": "add"}, {"name": "say"}]')
    _, calls = reader.finish()
    assert len({call.id for call in calls}) == 2
    assert all(len(call.id) == 9 and call.id.isalnum() for call in calls)


def test_the_schema_of_a_call_keeps_references_of_its_parameters() -> None:
    """A reference to its own root leads to where the parameters now stand."""
    parameters = {"properties": {"a": {"$ref": "#/$defs/x"}, "b": {"$ref": "#"}}, "$defs": {"x": {"type": "null"}}}
    moved = call_schema([Tool(name="add", parameters=parameters)])["$defs"]["tool0"]["properties"]
    assert moved == {"a": {"$ref": "#/$defs/tool0/$defs/x"}, "b": {"$ref": "#/$defs/tool0"}}
