"""What using a template takes beside the template: values from words, and questions for those that are missing."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from bus.cli.failures import UsageError
from bus.template_text import VARIABLE_NAME
from bus.templates import RENDERED_MAX, Rendered, Template, Variable, WrongValue

# The value of a variable, as the person gives it; None gives up. The text says what was wrong with the last one, or is "".
Ask: TypeAlias = Callable[[Variable, str], Awaitable[str | None]]


def values_of(words: Sequence[str], stdin: Callable[[], bytes] | None = None) -> dict[str, str]:
    """Values from `name=value`, `name=@FILE`, `name=-` (stdin, where there is one) and `name=@@text` for a text with @.

    Raises UsageError.
    """
    values: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not re.fullmatch(VARIABLE_NAME, name):
            raise UsageError(f"{word[:60]!r} is not name=value; name=@FILE takes a file, name=- stdin")
        if name in values:
            raise UsageError(f"{name} is given twice")
        values[name] = _value(name, value, stdin)
        if value == "-":
            stdin = None
    return values


def question(variable: Variable) -> str:
    """What to ask a person for: `language (to write it in; de, en): `."""
    about = "; ".join(part for part in (variable.description, ", ".join(variable.choices)) if part)
    return f"{variable.name} ({about}): " if about else f"{variable.name}: "


async def filled(template: Template, values: Mapping[str, str], ask: Ask) -> Rendered | None:
    """The template with those values and with what is asked for; None when the person gives up. Raises TemplateError."""
    known = dict(values)
    template.check(known)
    while missing := template.asked(known):
        value = await _acceptable(template, missing[0], ask)
        if value is None:
            return None
        known[missing[0].name] = value
    return template.render(known)


async def _acceptable(template: Template, variable: Variable, ask: Ask) -> str | None:
    problem = ""
    while (value := await ask(variable, problem)) is not None:
        if not value.strip():
            problem = f"{variable.name} must be given; the end of input (Ctrl-D) gives up"
            continue
        try:
            template.check({variable.name: value})
        except WrongValue as error:
            problem = error.why
        else:
            return value
    return None


def _value(name: str, value: str, stdin: Callable[[], bytes] | None) -> str:
    if value == "-":
        if stdin is None:
            raise UsageError(f"{name}=-: stdin is not there to be read, or is read already; name=@FILE takes a file")
        return _decoded(stdin(), "stdin")
    if value.startswith("@@"):
        return value[1:]
    if not value.startswith("@"):
        return value
    path = Path(value[1:]).expanduser()
    try:
        # Pipes too, as of <(git diff).
        with open(path, "rb") as file:
            content = file.read(RENDERED_MAX * 4 + 1)
    except OSError as error:
        raise UsageError(f"{name}: cannot read {path}: {error.strerror}") from error
    return _decoded(content, str(path))


def _decoded(content: bytes, where: str) -> str:
    if len(content) > RENDERED_MAX * 4:
        raise UsageError(f"{where} is longer than {RENDERED_MAX * 4:,} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} is not UTF-8 text (byte {error.start})") from error
