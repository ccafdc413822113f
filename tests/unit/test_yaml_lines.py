"""YAML with lines: what is read, on which line it stands, and what is refused."""

from __future__ import annotations

import pytest

from bus.yaml_lines import Node, YamlError, parse


def line_of(text: str, *keys: str) -> tuple[int, int]:
    """The lines of an entry's key and of its value."""
    node: Node = parse(text)
    for key in keys:
        node = node.value[key]
    return node.line, node.starts


def test_every_entry_knows_the_line_of_its_key_and_of_its_value() -> None:
    """Blocks, nested mappings, flow mappings and aliases."""
    text = "# first\na: 1\nb:\n  c: |\n    text\n    more\n  d:\n    - x\n    - y\ne: {f:\n  2}\n"

    assert line_of(text, "a") == (2, 2)
    assert line_of(text, "b") == (3, 4)
    assert line_of(text, "b", "c") == (4, 4)
    assert [one.line for one in parse(text).value["b"].value["d"].value] == [8, 9]
    assert line_of(text, "e", "f") == (10, 11)


def test_values_are_plain_and_dates_are_texts() -> None:
    """Numbers, booleans and nothing as YAML's safe loader reads them; everything else is text."""
    tree = parse("a: 1\nb: 0.5\nc: yes\nd: ~\ne: 2026-13-45\nf: '1'\ng: [1, {h: x}]\n").plain()

    assert tree == {"a": 1, "b": 0.5, "c": True, "d": None, "e": "2026-13-45", "f": "1", "g": [1, {"h": "x"}]}


def test_an_empty_document_holds_nothing() -> None:
    """No text, and comments alone."""
    assert parse("").value is None
    assert parse("# words\n").value is None


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("a: b\n\x07", 2, "a control character"),
        ("a: [1", 1, "not valid YAML"),
        ("a: 1\nb: *x\n", 2, "undefined alias"),
        ("a: 1\n---\nb: 2\n", 2, "not valid YAML"),
        ("a: 1\nb: 2\na: 3\n", 3, "a is already set at line 1"),
        ("a:\n  b: 1\n  b: 2\n", 3, "a.b is already set at line 2"),
        ("a: 1\n? [x]\n: y\n", 2, "a key that is no plain text"),
        ("a: &x\n  - *x\n", 1, "a holds itself"),
        ("a: !!python/object/apply:os.system [id]\n", 1, "a is not a plain value: it is tagged 'python/object"),
        ("a: !!binary aGk=\n", 1, "a is not a plain value"),
        ("\na: !!int x\n", 2, "a is not a plain value: it cannot be read as int"),
        ("a: !!bool x\n", 1, "cannot be read as bool"),
        (f"a: {'9' * 5000}\n", 1, "cannot be read as int"),
        ("{" * 5_000, 1, "nested too deeply"),
        ('a: "\\UFFFFFFFF"\n', 1, "not valid YAML"),
    ],
)
def test_what_is_no_plain_document_is_refused_with_its_line(text: str, line: int, why: str) -> None:
    """Each with the line, the key where there is one, and never the text of the line, which may be a secret."""
    with pytest.raises(YamlError) as caught:
        parse(text)

    assert caught.value.line == line
    assert why in str(caught.value)


def test_errors_do_not_show_what_stands_on_the_line() -> None:
    """A password may stand in a file with a mistake."""
    with pytest.raises(YamlError) as caught:
        parse("token: hunter2: x\n")

    assert "hunter2" not in str(caught.value)
