"""What project files, profiles and preferences may say, read with the file and line of each mistake.

Three kinds of file say the same things with few differences. It knows no folder tree and decides no precedence.

    model: qwen2.5-coder            # a model, or a routing profile
    system: You know this project.  # or system_append, behind what the profile says
    tools: [recall, read_file]      # [] for none
    routing: {default: code, review: deepseek-r1}
    options: {temperature: 0.2}
    memory: {prompt: true, context: true, prompt_tokens: 256, context_tokens: 512}   # false for no memory at all
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from bus.near_names import hint
from bus.yaml_lines import Node, YamlError, parse

# Tools that a model may be given: memory's own (memory.tool.schemas), and those that read the project.
MEMORY_TOOLS: Final = ("remember", "recall", "search_memory", "forget")
FILE_TOOLS: Final = ("read_file", "list_files")
TOOLS: Final = (*MEMORY_TOOLS, *FILE_TOOLS)

# Bytes of a file of this sort; a long system prompt has a few thousand.
MAX_BYTES: Final = 65_536

# Sampling options that belong to one question and not to every one of a chat.
_OF_ONE_QUESTION: Final = ("grammar", "json_schema", "logprobs", "truncate")

# As `schemas.bodies.model.ModelName`, which is not imported for the sake of a quick start.
_MODEL: Final = re.compile(r"[A-Za-z0-9._:/+-]{1,128}")
_PROFILE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_TASK: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TOKENS_MAX: Final = 1_000_000

Kind = Literal["project", "foreign", "profile", "preferences"]


class ProjectError(Exception):
    """A file that cannot be used; the message names file, line, value and what is allowed."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"{where}: {why}")


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a file asks for; None and empty: it says nothing about that.

    routing: a routing profile. routes: names of this project's own, and the model or routing profile behind each.
    memory False: none at all. folder: of templates, below the project. templates: names that a profile suggests.
    markers: files that a profile of the person's own is detected by. user: whose memory it is. origins: file and line by
    name, of options one by one. notes: what was passed over, for people.
    """

    name: str = ""
    description: str = ""
    profile: str = ""
    model: str | None = None
    system: str | None = None
    system_append: str = ""
    tools: tuple[str, ...] | None = None
    routing: str | None = None
    routes: dict[str, str] = {}
    options: dict[str, Any] = {}
    memory: bool | None = None
    memory_prompt: bool | None = None
    memory_context: bool | None = None
    prompt_tokens: int | None = None
    context_tokens: int | None = None
    folder: str = ""
    templates: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()
    user: str | None = None
    origins: dict[str, str] = {}
    notes: tuple[str, ...] = ()


def read(file: Path, kind: Kind, *, within: Path | None = None) -> Asked:
    """What `file` says. Raises ProjectError, also for a file that leads out of the folder `within`."""
    return parse_file(read_text(file, within=within), file, kind)


def read_text(file: Path, *, within: Path | None = None) -> str:
    """The text of a file of this sort. Raises ProjectError for one that is too large, no plain file or elsewhere."""
    if within is not None and not is_within(file, within):
        # It would be read for whoever wrote the link, and its words shown in an error.
        raise ProjectError(str(file), f"it is a link that leads out of {within}")
    try:
        with open(file, "rb", opener=_without_waiting) as opened:
            found = os.fstat(opened.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ProjectError(str(file), "it is no plain file")
            content = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise ProjectError(str(file), f"it cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise ProjectError(str(file), f"it has {found.st_size:,} bytes; allowed: {MAX_BYTES:,}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ProjectError(place(file, line), f"it is not UTF-8 text (byte {error.start})") from error


def _without_waiting(path: str, flags: int) -> int:
    """A named pipe of that name would else stop everything until somebody writes into it."""
    return os.open(path, flags | os.O_NONBLOCK)


def place(file: Path, line: int) -> str:
    """A line of a file, as origins and errors name it."""
    return f"{file} line {line}"


def is_within(path: Path, folder: Path) -> bool:
    """True where `path` lies in `folder` once every link is followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def parse_file(text: str, file: Path, kind: Kind) -> Asked:
    """What `text`, the content of `file`, says. Raises ProjectError."""
    try:
        tree = parse(text)
    except YamlError as error:
        raise ProjectError(place(file, error.line), f"{error.name + ' ' if error.name else ''}{error.why}") from error
    return _Reader(file, kind).whole(tree)


class _Reader:
    """One reading of one file."""

    def __init__(self, file: Path, kind: Kind) -> None:
        self._file = file
        self._is_foreign = kind == "foreign"
        self._keys = _KEYS[kind]
        self._found: dict[str, Any] = {}
        self._origins: dict[str, str] = {}
        self._notes: list[str] = []

    def whole(self, tree: Node) -> Asked:
        if tree.value is not None:
            for key, node in self._mapping(tree, "the file").items():
                self._entry(key, node)
        return Asked(**self._found, origins=self._origins, notes=tuple(self._notes))

    def _entry(self, key: str, node: Node) -> None:
        name = _FOREIGN_KEYS.get(_snake(key), _snake(key)) if self._is_foreign else key
        if name in self._keys:
            # A key without a value says nothing.
            if node.value is not None:
                self._keys[name](self, name, node)
        elif self._is_foreign:
            self._foreign_entry(key, name, node)
        else:
            raise self._error(node, f"unknown key {_excerpt(key)}; {hint(key, self._keys)}")

    def _foreign_entry(self, key: str, name: str, node: Node) -> None:
        from bus.sampling import option_names

        if name in option_names():
            self._option(name, node)
        elif name not in _SAYS_NOTHING:
            why = _PASSED_OVER.get(name, "nothing here has to do with it")
            self._note(node, f"{_excerpt(key)} is passed over: {why}")

    # What a key holds: each notes what it found.

    def text(self, name: str, node: Node) -> None:
        if not isinstance(node.value, str) or (name != "system" and not node.value.strip()):
            raise self._not_allowed(name, node, "text" if name == "system" else "text, not empty")
        self._set(name, node.value.strip(), node)

    def title(self, name: str, node: Node) -> None:
        # As it is written: a project may be called 2048.
        title = (node.value if isinstance(node.value, str) else node.written).strip()
        if not title.isprintable() or not 0 < len(title) <= 100:
            raise self._not_allowed(name, node, "one line of 1 to 100 characters")
        self._set(name, title, node)

    def profile(self, name: str, node: Node) -> None:
        if not isinstance(node.value, str) or not _PROFILE.fullmatch(node.value):
            raise self._not_allowed(name, node, "the name of a profile (olympus project detect), or none")
        self._set(name, node.value, node)

    def model(self, name: str, node: Node) -> None:
        if self._is_foreign and isinstance(node.value, dict):
            for key, inner in node.value.items():
                if key in ("name", "default", "id"):
                    self.model(name, inner)
                else:
                    self._foreign_entry(f"{name}.{key}", _snake(key), inner)
            return
        self._set(name, self._model_name(name, node), node)

    def tools(self, name: str, node: Node) -> None:
        value = self._foreign_tools(node) if self._is_foreign else self._names(name, node, TOOLS)
        if value is not None:
            self._set(name, value, node)

    def routing(self, name: str, node: Node) -> None:
        """`routing: code`, or a mapping with `default` and names of the project's own."""
        if not isinstance(node.value, dict):
            self._set(name, self._model_name(name, node), node)
            return
        routes: dict[str, str] = {}
        for key, inner in node.value.items():
            if key == "default" or (self._is_foreign and _snake(key) in _FOREIGN_DEFAULT_ROUTES):
                self._set(name, self._model_name(f"{name}.{key}", inner), inner)
            elif self._is_foreign and not isinstance(inner.value, str):
                self._note(inner, f"routing.{_excerpt(key)} is passed over: it names no model")
            elif not _TASK.fullmatch(key):
                raise self._error(inner, f"routing: {_excerpt(key)} is no name of a task: letters, digits and . _ -")
            else:
                routes[key] = self._model_name(f"{name}.{key}", inner)
                self._origins[f"routes.{key}"] = place(self._file, inner.line)
        self._set("routes", routes, node)

    def options(self, name: str, node: Node) -> None:
        for key, inner in self._mapping(node, name).items():
            option = _FOREIGN_OPTIONS.get(_snake(key), _snake(key)) if self._is_foreign else key
            self._option(option, inner)

    def memory(self, name: str, node: Node) -> None:
        if isinstance(node.value, bool):
            self._set(name, node.value, node)
            return
        for key, inner in self._mapping(node, name, " or be true or false").items():
            part = _FOREIGN_MEMORY.get(_snake(key), key) if self._is_foreign else key
            full = f"{name}.{key}"
            if part == "enabled" and self._is_foreign:
                self._set(name, self._boolean(full, inner), inner)
            elif part in ("prompt", "context"):
                self._set(f"memory_{part}", self._boolean(full, inner), inner)
            elif part in ("prompt_tokens", "context_tokens"):
                self._set(part, self._tokens(full, inner), inner)
            elif self._is_foreign:
                self._note(inner, f"{_excerpt(full)} is passed over: nothing here has to do with it")
            else:
                known = ("prompt", "context", "prompt_tokens", "context_tokens")
                raise self._error(inner, f"unknown key {_excerpt(full)}; {hint(key, known)}")

    def folder(self, name: str, node: Node) -> None:
        """A folder of templates: below the project, which `bus.projects` checks once it knows where that is."""
        if self._is_foreign and isinstance(node.value, dict):
            self._note(node, "templates is passed over: it names no folder")
            return
        if not isinstance(node.value, str) or not node.value.strip() or "\0" in node.value:
            raise self._not_allowed(name, node, "a folder below the project")
        self._set("folder", node.value.strip(), node)

    def names(self, name: str, node: Node) -> None:
        self._set(name, self._names(name, node), node)

    # Single values

    def _option(self, name: str, node: Node) -> None:
        from bus.sampling import OptionError, checked

        if name in _OF_ONE_QUESTION:
            raise self._error(node, f"options.{name} belongs to one question, not to every one")
        if self._is_foreign and name in _PASSED_OVER:
            self._note(node, f"options.{name} is passed over: {_PASSED_OVER[name]}")
            return
        try:
            value = checked({name: node.plain()})[name]
        except OptionError as error:
            if self._is_foreign and "there is no option" in str(error):
                self._note(node, f"{_excerpt(f'options.{name}')} is passed over: there is no such option")
                return
            raise self._error(node, f"options: {error}") from error
        self._found.setdefault("options", {})[name] = value
        self._origins[f"options.{name}"] = place(self._file, node.line)

    def _model_name(self, name: str, node: Node) -> str:
        if not isinstance(node.value, str) or not is_model_name(node.value):
            raise self._not_allowed(name, node, "a model or a routing profile, of letters, digits and . _ : / + -")
        return node.value

    def _boolean(self, name: str, node: Node) -> bool:
        if not isinstance(node.value, bool):
            raise self._not_allowed(name, node, "true, false")
        return node.value

    def _tokens(self, name: str, node: Node) -> int:
        value = node.value
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _TOKENS_MAX:
            raise self._not_allowed(name, node, f"1 to {_TOKENS_MAX:,} (whole number)")
        return value

    def _names(self, name: str, node: Node, known: tuple[str, ...] = ()) -> tuple[str, ...]:
        allowed = f"a list of {', '.join(known)}; [] for none" if known else "a list of texts"
        if not isinstance(node.value, list):
            raise self._not_allowed(name, node, allowed)
        for one in node.value:
            if not isinstance(one.value, str) or not one.value or (known and one.value not in known):
                raise self._not_allowed(name, one, allowed)
        return tuple(dict.fromkeys(one.value for one in node.value))

    def _foreign_tools(self, node: Node) -> tuple[str, ...] | None:
        """Ours of the tools that may be used; None where the file says nothing about ours."""
        lists = {"allowed": node} if isinstance(node.value, list) else self._mapping(node, "tools")
        allowed = self._listed(lists, ("allowed", "enabled", "allow"))
        denied = self._listed(lists, ("denied", "disabled", "deny")) or ()
        if unknown := [name for name in allowed or () if name not in TOOLS]:
            there = ", ".join(map(repr, unknown[:8]))
            self._note(node, f"tools: there is no {there} here; known: {', '.join(TOOLS)}")
        if allowed is None and not set(denied) & set(TOOLS):
            return None
        return tuple(name for name in TOOLS if name not in denied and (allowed is None or name in allowed))

    def _listed(self, lists: Mapping[str, Node], keys: tuple[str, ...]) -> tuple[str, ...] | None:
        found = [self._names(f"tools.{key}", node) for key, node in lists.items() if _snake(key) in keys]
        return tuple(name for names in found for name in names) if found else None

    # Noting and refusing

    def _mapping(self, node: Node, name: str, other: str = "") -> Mapping[str, Node]:
        if not isinstance(node.value, dict):
            raise self._error(node, f"{name} must hold 'key: value' lines{other}, not {_excerpt(node.plain())}")
        return node.value

    def _set(self, name: str, value: Any, node: Node) -> None:
        self._found[name] = value
        self._origins[name] = place(self._file, node.line)

    def _note(self, node: Node, text: str) -> None:
        self._notes.append(f"{place(self._file, node.line)}: {text}")

    def _not_allowed(self, name: str, node: Node, allowed: str) -> ProjectError:
        return self._error(node, f"{name} = {_excerpt(node.plain())} is not allowed; allowed: {allowed}")

    def _error(self, node: Node, why: str) -> ProjectError:
        return ProjectError(place(self._file, node.line), why)


def as_tree(asked: Asked) -> dict[str, Any]:
    """What `parse_file` would read as `asked`, for a file of keys that every kind knows."""
    texts = {"model": asked.model, "system": asked.system, "system_append": asked.system_append or None}
    memory = {
        "prompt": asked.memory_prompt,
        "context": asked.memory_context,
        "prompt_tokens": asked.prompt_tokens,
        "context_tokens": asked.context_tokens,
    }
    parts = {key: value for key, value in memory.items() if value is not None}
    tree = {
        **texts,
        "tools": None if asked.tools is None else list(asked.tools),
        "routing": {**({"default": asked.routing} if asked.routing else {}), **asked.routes} or None,
        "options": asked.options or None,
        "memory": asked.memory if asked.memory is False or not parts else parts,
    }
    return {key: value for key, value in tree.items() if value is not None}


def is_model_name(text: str) -> bool:
    """True for what may stand where a request names a model or a routing profile."""
    return _MODEL.fullmatch(text) is not None


def _excerpt(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _snake(key: str) -> str:
    """`systemPrompt` and `system-prompt` as `system_prompt`."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", key).replace("-", "_").lower()


_Read = Callable[[_Reader, str, Node], None]

_EVERYWHERE: Final[Mapping[str, _Read]] = {
    "model": _Reader.model,
    "system": _Reader.text,
    "system_append": _Reader.text,
    "tools": _Reader.tools,
    "routing": _Reader.routing,
    "options": _Reader.options,
    "memory": _Reader.memory,
}
_PROJECT: Final[Mapping[str, _Read]] = {
    "name": _Reader.title,
    "profile": _Reader.profile,
    **_EVERYWHERE,
    "templates": _Reader.folder,
}
_KEYS: Final[Mapping[Kind, Mapping[str, _Read]]] = {
    "project": _PROJECT,
    "foreign": _PROJECT,
    "profile": {
        "description": _Reader.text,
        **_EVERYWHERE,
        "templates": _Reader.names,
        "markers": _Reader.names,
    },
    "preferences": {**_EVERYWHERE, "user": _Reader.title},
}

# How `.ollm/project.yaml` and its like name the same things, in snake case: several programs write such files.
_FOREIGN_KEYS: Final = {
    **dict.fromkeys(("title", "project_name"), "name"),
    **dict.fromkeys(("type", "project_type", "language"), "profile"),
    **dict.fromkeys(("default_model", "model_name"), "model"),
    **dict.fromkeys(("system_prompt", "instructions"), "system"),
    **dict.fromkeys(("models", "model_routing", "task_models"), "routing"),
    **dict.fromkeys(("parameters", "model_options", "sampling"), "options"),
    **dict.fromkeys(("templates_dir", "template_dir", "template_folder"), "templates"),
    "num_predict": "max_tokens",
}
_FOREIGN_OPTIONS: Final = {"num_predict": "max_tokens", "repetition_penalty": "repeat_penalty"}
_FOREIGN_MEMORY: Final = {"system_prompt_budget": "prompt_tokens", "context_budget": "context_tokens"}
_FOREIGN_DEFAULT_ROUTES: Final = ("default_profile", "profile", "default")
_WINDOW: Final = "the length of the window is that of the loaded model (the setting models.context_tokens)"
_PASSED_OVER: Final = {
    **dict.fromkeys(("context_size", "context_length", "context_window", "num_ctx"), _WINDOW),
    **dict.fromkeys(("provider", "host", "endpoint", "base_url"), "where models run is for your own settings to say"),
}
# What tells of the project and asks for nothing.
_SAYS_NOTHING: Final = ("version", "description", "author", "license", "created_at", "updated_at")
