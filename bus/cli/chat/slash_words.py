"""How a slash command is read: what is one, and its words."""

from __future__ import annotations

import re
from typing import Final

_COMMAND: Final = re.compile(r"/([A-Za-z][A-Za-z-]*|\?)(?=\s|$)|/\s*$")

# A quoted part: the quote is the first of its word or follows "=", and what closes it ends the word. An apostrophe is
# neither, so that people may write as they speak.
_QUOTED: Final = re.compile(r"""(?s)("(?:\\.|[^"\\])*"|'[^']*')(?=\s|$)""")

_ESCAPED: Final = re.compile(r'\\(["\\])')


def meant(line: str) -> str:
    """What is typed out of habit as the command that it means: `exit` and `quit` alone are `/quit`."""
    return "/quit" if line.strip().lower() in ("exit", "quit") else line


def is_command(line: str) -> bool:
    """Whether a line is meant as a command: `/word` at its very beginning. `/usr/bin is full` is none, nor is ` /help`."""
    return _COMMAND.match(line) is not None


def parts(line: str) -> tuple[str, str]:
    """Name and rest of a command: `/memory add tea` is `memory` and `add tea`."""
    found = _COMMAND.match(line)
    assert found is not None
    return (found[1] or "").lower(), line[found.end() :].strip()


def first_word(text: str) -> tuple[str, str]:
    """The first word of a text, and what follows it as it stands."""
    word, *rest = text.split(None, 1) or [""]
    return word, rest[0] if rest else ""


def words(text: str) -> list[str]:
    """The words of a text. Quotes hold one together where they open and close it; `It's` and `5" disk` stay as they are.

    Between double quotes `\\"` and `\\\\` stand for the second character. Nothing is an error: what opens and is never
    closed is a character like any other.
    """
    found: list[str] = []
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        word, at = _word(text, at)
        found.append(word)
    return found


def _word(text: str, at: int) -> tuple[str, int]:
    start = at
    while at < len(text) and not text[at].isspace():
        if at == start or text[at - 1] == "=":
            quoted = _QUOTED.match(text, at)
            if quoted is not None:
                return text[start:at] + _inner(quoted[1]), quoted.end()
        at += 1
    return text[start:at], at


def _inner(quoted: str) -> str:
    inner = quoted[1:-1]
    return _ESCAPED.sub(r"\1", inner) if quoted[0] == '"' else inner
