"""One file of a template: read within bounds, its keys checked; it knows nothing of the other templates it names."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from bus import template_text
from bus.near_names import hint
from bus.template_text import Part, Text, TextError, shown

if TYPE_CHECKING:
    from bus.yaml_lines import Node

# Bytes of a file. The longest of those shipped has 1 KB; of the worst YAML PyYAML reads 25 KB in a second.
FILE_MAX: Final = 64 * 1024

SUFFIXES: Final = (".yaml", ".yml")

_KEYS: Final = ("name", "description", "prompt", "system", "model", "options", "variables", "extends")
_OF_VARIABLES: Final = ("description", "default", "required", "choices", "multiline")

# Choices of one variable: more than a terminal shows.
_CHOICES_MAX: Final = 100


class TemplateError(Exception):
    """A template that cannot be used; the message names file and line, what is wrong, and what is allowed."""

    def __init__(self, path: Path | None, line: int | None, why: str) -> None:
        where = "" if path is None else f"{path}: " if line is None else f"{path}:{line}: "
        super().__init__(f"{where}{why}")
        self.path = path
        self.line = line
        self.why = why


class WrongValue(TemplateError):
    """The template is right, and what was given for its variables is not."""


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """A variable as the file declares it. default None: there is none; line: of its key in the file `path`."""

    name: str
    path: Path
    line: int
    description: str = ""
    default: Text | None = None
    choices: tuple[str, ...] = ()
    is_multiline: bool = False


class TemplateFile(msgspec.Struct, frozen=True, kw_only=True):
    """What one file says. lines: of its keys."""

    path: Path
    description: str
    prompt: Text | None
    system: Text | None
    model: str | None
    options: dict[str, Any]
    variables: dict[str, Declared]
    extends: str | None
    lines: dict[str, int]


def name_of(path: Path) -> str:
    """The template that a file holds. Raises TemplateError where its name cannot be one."""
    if not re.fullmatch(template_text.TEMPLATE_NAME, path.stem):
        raise TemplateError(path, None, f"{shown(path.stem)} cannot be the name of a template; {NAMES}")
    return path.stem


NAMES: Final = "allowed: 1 to 64 letters a-z, digits, -, _ and ., a letter or digit first"


def load(path: Path, within: Path | None) -> TemplateFile:
    """The template at `path`, which together with whatever it links to must lie below `within`. Raises TemplateError."""
    return parse(read(path, within), path)


def parse(text: str, path: Path) -> TemplateFile:
    """The template that `text` describes; `path` is for its name and for errors. Raises TemplateError."""
    from bus import yaml_lines

    if len(text) > FILE_MAX:
        raise TemplateError(path, None, f"the file is larger than {FILE_MAX:,} bytes")
    try:
        tree = yaml_lines.parse(text)
    except yaml_lines.YamlError as error:
        raise TemplateError(path, error.line, f"{error.name + ' ' if error.name else ''}{error.why}") from error
    return _File(path).template(tree)


def read(path: Path, within: Path | None) -> str:
    """The text of a file. Raises TemplateError for what is no file, leads out of `within`, is too large or not UTF-8."""
    try:
        real = path.resolve(strict=True)
        if within is not None and not real.is_relative_to(within.resolve()):
            raise TemplateError(path, None, "it is a link that leads out of the project, where no template is read")
        if real.suffix not in SUFFIXES:
            raise TemplateError(path, None, f"it is a link to what is no {' or '.join(SUFFIXES)} file")
        content = _content(real)
    except FileNotFoundError as error:
        raise TemplateError(path, None, "there is no such file, or it is a link to none") from error
    # RuntimeError: links that lead in a circle.
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or "its links lead in a circle"
        raise TemplateError(path, None, f"it cannot be read: {why}") from error
    if len(content) > FILE_MAX:
        raise TemplateError(path, None, f"the file is larger than {FILE_MAX:,} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise TemplateError(path, line, f"it is not UTF-8 text (byte {error.start})") from error


def _content(path: Path) -> bytes:
    """The beginning of a regular file. Without blocking: a pipe put there would hold whoever opens it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "it is no regular file")
        return file.read(FILE_MAX + 1)


class _File:
    """Reads the keys of one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def template(self, tree: Node) -> TemplateFile:
        keys = self._entries(tree, "the file")
        self._known(keys, _KEYS, "key")
        extends = self._name(keys.get("extends"), "extends")
        if "prompt" not in keys and extends is None:
            raise self._error(tree.line, "prompt is missing: what is to be asked, as in `prompt: Explain {topic}.`")
        name = self._name(keys.get("name"), "name")
        if name is not None and name != self._path.stem:
            why = f"name is {shown(name)} and the file is called {shown(self._path.stem)}; leave it out, or rename the file"
            raise self._error(keys["name"].line, why)
        prompt = self._template_text(keys.get("prompt"), "prompt")
        if prompt is not None and not prompt.source.strip():
            raise self._error(keys["prompt"].line, "prompt is empty; allowed: a text")
        return TemplateFile(
            path=self._path,
            description=self._text(keys.get("description"), "description"),
            prompt=prompt,
            system=self._template_text(keys.get("system"), "system"),
            model=self._model(keys.get("model")),
            options=self._options(keys.get("options")),
            variables=self._variables(keys.get("variables")),
            extends=extends,
            lines={key: node.line for key, node in keys.items()},
        )

    def _variables(self, node: Node | None) -> dict[str, Declared]:
        if node is None or node.value is None:
            return {}
        declared = {}
        for name, below in self._entries(node, "variables").items():
            if not re.fullmatch(template_text.VARIABLE_NAME, name):
                why = f"{shown(name)} cannot be the name of a variable; allowed: letters, digits and _, no digit first"
                raise self._error(below.line, why)
            declared[name] = self._variable(name, below)
        return declared

    def _variable(self, name: str, node: Node) -> Declared:
        what = f"variables.{name}"
        if isinstance(node.value, str) or node.value is None:
            return Declared(name=name, path=self._path, line=node.line, description=node.value or "")
        keys = self._entries(node, what)
        self._known(keys, _OF_VARIABLES, f"key of {what}")
        default = self._template_text(keys.get("default"), f"{what}.default")
        is_required = self._flag(keys.get("required"), f"{what}.required", default is None)
        if is_required and default is not None:
            why = f"{what} has a default and is required; allowed: one of the two"
            raise self._error(keys["required"].line, why)
        if not is_required and default is None:
            default = Text("", (), node.line)
        return Declared(
            name=name,
            path=self._path,
            line=node.line,
            description=self._text(keys.get("description"), f"{what}.description"),
            default=default,
            choices=self._choices(keys.get("choices"), f"{what}.choices"),
            is_multiline=self._flag(keys.get("multiline"), f"{what}.multiline", False),
        )

    def _choices(self, node: Node | None, what: str) -> tuple[str, ...]:
        if node is None:
            return ()
        if not isinstance(node.value, list) or not 1 <= len(node.value) <= _CHOICES_MAX:
            raise self._error(node.line, f"{what} is no list of 1 to {_CHOICES_MAX} texts, as in [short, long]")
        return tuple(self._text(one, what) for one in node.value)

    def _options(self, node: Node | None) -> dict[str, Any]:
        from bus import sampling

        if node is None or node.value is None:
            return {}
        options: dict[str, Any] = {}
        for name, below in self._entries(node, "options").items():
            options[name] = below.plain()
            try:
                sampling.checked(options)
            except sampling.OptionError as error:
                raise self._error(below.line, f"options: {error}") from error
        return sampling.checked(options)

    def _model(self, node: Node | None) -> str | None:
        from schemas.bodies.model import ModelName

        if node is None or node.value is None:
            return None
        text = self._text(node, "model")
        try:
            return msgspec.convert(text, ModelName)
        except msgspec.ValidationError as error:
            why = f"model is {shown(text)}; allowed: a model or a routing profile, 1 to 128 of A-Z a-z 0-9 . _ : / + -"
            raise self._error(node.line, why) from error

    def _name(self, node: Node | None, what: str) -> str | None:
        if node is None or node.value is None:
            return None
        text = self._text(node, what)
        if not re.fullmatch(template_text.TEMPLATE_NAME, text):
            raise self._error(node.line, f"{what} is {shown(text)}; {NAMES}")
        return text

    def _template_text(self, node: Node | None, what: str) -> Text | None:
        if node is None:
            return None
        source = self._text(node, what)
        is_block = node.style == "|"
        line = node.starts + 1 if is_block else node.starts
        try:
            parts: tuple[Part, ...] = template_text.parse(source)
        except TextError as error:
            raise self._error(Text(source, (), line, is_block).line_at(error.at), f"{what}: {error.why}") from error
        return Text(source, parts, line, is_block)

    def _text(self, node: Node | None, what: str) -> str:
        """A text, without the line end that a block has; "" where the key is missing."""
        if node is None:
            return ""
        if isinstance(node.value, str):
            return node.value.removesuffix("\n") if node.style in ("|", ">") else node.value
        # Numbers and truth values stand for what is written: `default: 5`, `choices: [yes, no]`.
        if node.value is None or not node.written:
            hint = "in quotes where it begins with {" if isinstance(node.value, dict) else '"" for an empty one'
            raise self._error(node.line, f"{what} is {_kind(node)}; allowed: a text, {hint}")
        return node.written

    def _flag(self, node: Node | None, what: str, default: bool) -> bool:
        if node is None:
            return default
        if not isinstance(node.value, bool):
            raise self._error(node.line, f"{what} is {_kind(node)}; allowed: true, false")
        return node.value

    def _entries(self, node: Node, what: str) -> dict[str, Node]:
        if not isinstance(node.value, dict):
            raise self._error(node.line, f"{what} is {_kind(node)}; allowed: lines of `key: value`")
        return node.value

    def _known(self, keys: dict[str, Node], known: tuple[str, ...], what: str) -> None:
        for key, node in keys.items():
            if key not in known:
                raise self._error(node.line, f"there is no {what} {shown(key)}; {hint(key, known)}")

    def _error(self, line: int, why: str) -> TemplateError:
        return TemplateError(self._path, line, why)


def _kind(node: Node) -> str:
    if isinstance(node.value, dict):
        return "a list of keys"
    if isinstance(node.value, list):
        return "a list"
    return "empty" if not node.written else shown(node.written)
