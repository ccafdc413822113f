"""Grammars and schemas from strangers: what may reach llama.cpp, what is refused, and why."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.models.backends.gbnf import BadGrammar, check_grammar
from workers.models.backends.json_grammar import schema_grammar

DOUBLING = "\n".join(f"{chr(code)} ::= {chr(code + 1)} {chr(code + 1)}" for code in range(97, 122))


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= "yes" | "no"',
        "root ::= [^\\x00-\\x1F]+ # a comment\n",
        'root ::= word ( "," ws word )*\nword ::= [a-z]{2,8}\nws ::= | " "',
        'root ::= "(" root ")" | "x"',
        'root ::= (\n  "a" |\n  "b"\n)',
        'root ::= ""',
        "root ::= .{0,2000}",
    ],
)
def test_usual_grammars_pass(grammar: str) -> None:
    """Recursion with an end, sets, repetitions, comments, alternatives over several lines."""
    check_grammar(grammar)


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ("", "no rule 'root'"),
        ('root ::= "a', "does not end"),
        ('root ::= "a" )', "expected the end of the line"),
        ("root ::= [a-", "does not end"),
        ('root ::= "\\q"', "backslash"),
        ("root ::= other", "'other', which is no rule"),
        ('root ::= root "a" | "b"', "begins with itself"),
        ('root ::= empty root "a" | "b"\nempty ::= ""', "begins with itself"),
        ('a ::= b "x"\nb ::= a "y"\nroot ::= a', "begins with itself"),
        ('root ::= "a" root', "no text can ever fulfil it"),
        ("root ::= []", "no text can ever fulfil it"),
        ('root ::= "a"{2001}', "the limit is 2000"),
        ("root ::= " + ('("' + "a" * 1000 + '"){1000} ') * 60, "more than 50000 elements"),
        ("root ::= " + "(" * 300 + '"a"' + ")" * 300, "nested deeper than 64"),
        ("root ::= " + "(" * 60_000, "nested deeper than 64"),
        (f'root ::= a\n{DOUBLING}\nz ::= "x"?', "more than 1000 ways"),
        ('root ::= "x" root "b" | "x" root "d" | "y"', "more than 1000 ways"),
    ],
)
def test_wrong_endless_and_costly_grammars_say_what_is_wrong(grammar: str, words: str) -> None:
    """Each of the last would overflow a stack, fill the memory, or take twice as long with each character."""
    with pytest.raises(BadGrammar, match=words):
        check_grammar(grammar)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='root:= "[]()|*+?{}0129,-^\\x\nab', max_size=80))
def test_any_text_is_judged(text: str) -> None:
    """Nothing else than BadGrammar comes out."""
    try:
        check_grammar("root ::= " + text)
    except BadGrammar as error:
        assert str(error)


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["b"]},
        {"type": "object", "additionalProperties": {"type": "number"}},
        {"type": "array", "items": {"$ref": "#"}, "maxItems": 3},
        {"anyOf": [{"type": "null"}, {"enum": ["a", 1, {"x": [True]}]}]},
        {"allOf": [{"$ref": "#/$defs/p"}, {"properties": {"b": {}}}], "$defs": {"p": {"properties": {"a": {}}}}},
        {"type": ["string", "null"], "maxLength": 5},
        {"type": "string", "format": "date-time"},
        {"type": "integer", "minimum": 3, "exclusiveMaximum": 7},
        {"type": "array", "prefixItems": [{"const": "x"}, {"type": "boolean"}]},
    ],
)
def test_schemas_become_grammars_that_pass(schema: dict[str, Any]) -> None:
    """Every kind of value, references to itself, alternatives, parts put together."""
    check_grammar(schema_grammar(schema))


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"not": {}}, "'not', which a grammar cannot keep"),
        ({"type": "string", "pattern": "a+"}, "'pattern'"),
        ({"type": "objekt"}, "type is 'objekt'"),
        ({"$ref": "https://example.org/schema"}, "only places of the same schema"),
        ({"$ref": "#/$defs/none"}, "nothing is at"),
        ({"enum": []}, "enum is empty"),
        ({"type": "number", "minimum": 0}, "'minimum' of a number"),
        ({"type": "integer", "minimum": 5}, "a grammar keeps a minimum of 0 or 1"),
        ({"type": "array", "minItems": 5, "maxItems": 2}, "maxItems is 2, below"),
        ({"type": "string", "maxLength": -1}, "maxLength is -1"),
        ({"allOf": [{"type": "null"}, {"type": "string"}]}, "something else of 'type'"),
        ({"allOf": [{"$ref": "#"}]}, "nested deeper"),
        ({"properties": 3}, "is no object"),
    ],
)
def test_schemas_that_cannot_be_kept_say_where(schema: dict[str, Any], words: str) -> None:
    """Nothing is passed over in silence."""
    with pytest.raises(BadGrammar, match=words):
        schema_grammar(schema)


def test_a_schema_that_nothing_fulfils_is_refused() -> None:
    """One that only means itself, and lists of at least one list of at least one list."""
    with pytest.raises(BadGrammar, match="begins with itself"):
        check_grammar(schema_grammar({"$ref": "#"}))
    with pytest.raises(BadGrammar, match="no text can ever fulfil it"):
        check_grammar(schema_grammar({"type": "array", "items": {"$ref": "#"}, "minItems": 1}))
