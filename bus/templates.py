"""Templates of questions: the shelf they are found on, what they still need, and what they become.

A template of the project hides one of the user's of the same name, and that a shipped one. `bus.template_file` reads
the files, `bus.template_text` the placeholders in their texts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec

from bus import template_file
from bus.near_names import hint
from bus.projects import TEMPLATES, Project
from bus.settings import Settings
from bus.template_file import Declared, TemplateError, TemplateFile, WrongValue
from bus.template_text import Filling, Part, Text, TooLong, shown

__all__ = [
    "Folder",
    "Listed",
    "Origin",
    "Rendered",
    "Shelf",
    "Template",
    "TemplateError",
    "Variable",
    "WrongValue",
    "home_folder",
    "project_folder",
    "shelf_for",
]

Origin: TypeAlias = Literal["project", "user", "shipped"]

SHIPPED: Final = Path(__file__).resolve().parents[1] / "config" / "templates"

# Bounds on what somebody else's folder can make us do. Templates of one folder; bytes of all that are read for one list
# or one template; templates that extend one another; templates that one includes, directly or not, and the variables of
# all of them.
_FILES_MAX: Final = 500
_READ_MAX: Final = 1024 * 1024
_EXTENDS_MAX: Final = 16
_INCLUDED_MAX: Final = 64
VARIABLES_MAX: Final = 100

# Characters of a prompt with its values: 16 MiB at 4 bytes each, a quarter of what a message may have.
RENDERED_MAX: Final = 4 * 1024 * 1024


class Folder(NamedTuple):
    """A folder of templates. Nothing that leads out of `within` is read; None trusts its links."""

    path: Path
    origin: Origin
    within: Path | None = None


class Variable(msgspec.Struct, frozen=True, kw_only=True):
    """A variable of a template. default: as it is written; None where a value must be given, or stands in the text."""

    name: str
    description: str = ""
    default: str | None = None
    is_required: bool = False
    choices: tuple[str, ...] = ()
    is_multiline: bool = False


class Rendered(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked, and with what; None and empty: the template says nothing about that."""

    prompt: str
    system: str | None = None
    model: str | None = None
    options: dict[str, Any] = {}


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A template of a shelf. error: why it cannot be used. shadows: of the same name, hidden by it, where they are from.

    A folder that cannot be read is listed too, without a name.
    """

    name: str
    origin: Origin
    path: Path
    description: str = ""
    error: str = ""
    shadows: tuple[Origin, ...] = ()


class Template(msgspec.Struct, frozen=True, kw_only=True):
    """A template with everything that it extends and includes. Nothing in it leads back to itself.

    line: of its prompt. names: of all its variables. unused: of those that its own file declares and no text holds.
    shadows: of the same name, hidden by it, where they are from.
    """

    name: str
    description: str
    origin: Origin
    path: Path
    line: int
    prompt: Text
    system: Text | None
    model: str | None
    options: dict[str, Any]
    declared: dict[str, Declared]
    names: tuple[str, ...]
    unused: tuple[str, ...]
    shadows: tuple[Origin, ...]
    included: dict[str, tuple[Part, ...]]

    def notice(self) -> str:
        """What to tell whoever uses it: that it is the project's, where there is one of their own; "" otherwise."""
        if self.origin != "project" or "user" not in self.shadows:
            return ""
        return f"this is the project's {self.name} ({self.path}), not yours"

    def variables(self) -> list[Variable]:
        """All of them: those declared in their order, then those that only stand in a text."""
        required = self._missing({})
        return [self._variable(name, name in required) for name in self.names]

    def asked(self, values: Mapping[str, str]) -> list[Variable]:
        """What still needs a value when those are given, in the order of the text. Raises TemplateError."""
        return [self._variable(name, True) for name in self._missing(values)]

    def check(self, values: Mapping[str, str]) -> None:
        """Raise WrongValue for a value of what is no variable, one that is not among the choices, and one that is no text."""
        for name, value in values.items():
            if name not in self.names:
                why = f"{self.name} has no variable {shown(name)}; {hint(name, self.names)}"
                raise WrongValue(self.path, None, why)
            try:
                value.encode()
            except UnicodeEncodeError as error:
                why = f"the value of {name} is no UTF-8 text (character {error.start})"
                raise WrongValue(self.path, None, why) from error
            self._accept(name, value)

    def render(self, values: Mapping[str, str]) -> Rendered:
        """The question with those values put in, which stay as they are: `{other}` in a value is text.

        Raises WrongValue as `check` does and for missing values, TemplateError for what becomes too long.
        """
        self.check(values)
        if missing := self._missing(values):
            raise WrongValue(self.path, None, f"{self.name} needs a value for: {', '.join(missing)}")
        filling = self._filling(values, is_checked=True)
        prompt = self._filled(filling, self.prompt)
        if not prompt.strip():
            raise WrongValue(self.path, None, f"{self.name} has an empty prompt with these values")
        system = None if self.system is None else self._filled(filling, self.system)
        return Rendered(prompt=prompt, system=system, model=self.model, options=self.options)

    def _missing(self, values: Mapping[str, str]) -> list[str]:
        filling = self._filling(values, is_checked=False)
        for text in (self.prompt, self.system):
            if text is not None:
                self._filled(filling, text)
        return filling.missing

    def _filling(self, values: Mapping[str, str], *, is_checked: bool) -> Filling:
        defaults = {name: one.default.parts for name, one in self.declared.items() if one.default is not None}
        accept = self._accept if is_checked else _accept_any
        return Filling(values, defaults, self.included, accept, RENDERED_MAX)

    def _filled(self, filling: Filling, text: Text) -> str:
        try:
            return filling.text(text.parts)
        except TooLong:
            why = f"{self.name} becomes longer than {RENDERED_MAX:,} characters"
            raise WrongValue(self.path, self.line, why) from None

    def _accept(self, name: str, value: str) -> None:
        one = self.declared.get(name)
        if one is not None and one.choices and value not in one.choices:
            raise WrongValue(one.path, one.line, f"{name} is {shown(value)}; allowed: {', '.join(one.choices)}")

    def _variable(self, name: str, is_required: bool) -> Variable:
        one = self.declared.get(name)
        if one is None:
            return Variable(name=name, is_required=is_required)
        return Variable(
            name=name,
            description=one.description,
            default=one.default.source if one.default is not None else None,
            is_required=is_required,
            choices=one.choices,
            is_multiline=one.is_multiline,
        )


def _accept_any(name: str, value: str) -> None:
    """While it is found out what is missing, texts are incomplete."""


class Shelf:
    """The templates of some folders, of which an earlier one goes first. Reads the files anew at each call."""

    def __init__(self, folders: Sequence[Folder]) -> None:
        self._folders = tuple(folders)

    def names(self) -> Sequence[str]:
        """The names of all templates, sorted, whether or not they can be used; reads no file."""
        return sorted(self.files())

    def list(self) -> Sequence[Listed]:
        """All templates by name, with those that cannot be used and why."""
        reading = _Reading(self)
        return [*self._unreadable(), *(_listed(name, reading) for name in sorted(reading.files))]

    def get(self, name: str) -> Template:
        """The template of that name, with all that it extends and includes. Raises TemplateError."""
        return _Reading(self).template(name)

    def check(self, path: Path) -> Template:
        """The template in the file `path`, which need not lie on the shelf, as if it did. Raises TemplateError."""
        reading = _Reading(self)
        name = template_file.name_of(path)
        reading.files[name] = [(Folder(path.parent, "user"), path)]
        return reading.template(name)

    def files(self) -> dict[str, Sequence[tuple[Folder, Path]]]:
        """The files by the name of their template; the first is used, and hides the others."""
        found: dict[str, Sequence[tuple[Folder, Path]]] = {}
        for folder in self._folders:
            try:
                paths = _files_of(folder)
            except TemplateError:
                # Told by `list`; the other folders are as good as before.
                continue
            for path in paths:
                found[path.stem] = [*found.get(path.stem, ()), (folder, path)]
        return found

    def _unreadable(self) -> Iterator[Listed]:
        for folder in self._folders:
            try:
                _files_of(folder)
            except TemplateError as error:
                yield Listed(name="", origin=folder.origin, path=folder.path, error=str(error))


def _listed(name: str, reading: _Reading) -> Listed:
    folder, path = reading.files[name][0]
    try:
        template_file.name_of(path)
        description, error = reading.template(name).description, ""
    except TemplateError as wrong:
        description, error = "", str(wrong)
    return Listed(
        name=name, origin=folder.origin, path=path, description=description, error=error, shadows=reading.shadows(name)
    )


def _files_of(folder: Folder) -> list[Path]:
    """Files that may hold templates, sorted; none where there is no such folder. Raises TemplateError."""
    try:
        if folder.within is not None and not folder.path.resolve().is_relative_to(folder.within.resolve()):
            raise TemplateError(
                folder.path, None, "it is a link that leads out of the project, where no template is read"
            )
        names = sorted(os.listdir(folder.path))
    except FileNotFoundError:
        return []
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or "its links lead in a circle"
        raise TemplateError(folder.path, None, f"the folder cannot be read: {why}") from error
    paths = [folder.path / name for name in names if name.endswith(template_file.SUFFIXES) and name[0] != "."]
    if len(paths) > _FILES_MAX:
        why = f"the folder holds {len(paths):,} templates; allowed: {_FILES_MAX}"
        raise TemplateError(folder.path, None, why)
    return paths


class _Whole(NamedTuple):
    """A template with what it extends: the texts with the file each is from, nearest first."""

    files: tuple[TemplateFile, ...]
    prompt: Text
    prompt_file: TemplateFile
    declared: dict[str, Declared]


class _Reading:
    """Puts templates together; each file is read once."""

    def __init__(self, shelf: Shelf) -> None:
        self.files = shelf.files()
        self._loaded: dict[str, TemplateFile | TemplateError] = {}
        self._bytes = 0

    def template(self, name: str) -> Template:
        """The template of that name. Raises TemplateError."""
        folder, path = self._place(name)
        whole = self._whole(name)
        collected = _Collected(self, name)
        collected.add_template(name, whole)
        system = next(((one.system, one.path) for one in whole.files if one.system is not None), None)
        if system is not None:
            collected.add(f"{{> {name}}}", *system)
        collected.refuse_circles()
        first = whole.files[0]
        template = Template(
            name=name,
            description=next((one.description for one in whole.files if one.description), ""),
            origin=folder.origin,
            path=path,
            line=first.lines.get("prompt", 1),
            prompt=whole.prompt,
            system=system[0] if system is not None else None,
            model=next((one.model for one in whole.files if one.model is not None), None),
            options=_options(whole.files),
            declared=collected.declared,
            names=tuple(collected.names),
            unused=tuple(name for name in first.variables if name not in collected.used),
            shadows=self.shadows(name),
            included=collected.included,
        )
        # Ten templates that include each other twice stand for 1,024 times the last one.
        template.asked({})
        return template

    def shadows(self, name: str) -> tuple[Origin, ...]:
        """Where the templates are from that the first of that name hides."""
        return tuple(folder.origin for folder, _ in self.files[name][1:])

    def _place(self, name: str) -> tuple[Folder, Path]:
        if name not in self.files:
            raise TemplateError(None, None, f"there is no template {shown(name)}; {hint(name, self.files)}")
        return self.files[name][0]

    def _load(self, name: str) -> TemplateFile:
        if name not in self._loaded:
            try:
                self._loaded[name] = self._read(*self._place(name))
            except TemplateError as error:
                self._loaded[name] = error
        loaded = self._loaded[name]
        if isinstance(loaded, TemplateError):
            raise loaded
        return loaded

    def _read(self, folder: Folder, path: Path) -> TemplateFile:
        if self._bytes > _READ_MAX:
            raise TemplateError(path, None, f"it is not read: those before it have more than {_READ_MAX:,} bytes")
        with suppress(OSError):
            self._bytes += min(path.stat().st_size, template_file.FILE_MAX)
        return template_file.load(path, folder.within)

    def whole(self, name: str, path: Path, line: int) -> _Whole:
        """As `_whole`, for an include at that place."""
        try:
            return self._whole(name)
        except TemplateError as error:
            raise TemplateError(path, line, f"includes {name}: {error}") from error

    def _whole(self, name: str) -> _Whole:
        files: list[TemplateFile] = []
        chain = [name]
        while True:
            try:
                one = self._load(chain[-1])
            except TemplateError as error:
                if not files:
                    raise
                line = files[-1].lines["extends"]
                raise TemplateError(files[-1].path, line, f"extends {chain[-1]}: {error}") from error
            files.append(one)
            if one.extends is None:
                break
            if one.extends in chain:
                circle = " -> ".join([*chain[chain.index(one.extends) :], one.extends])
                raise TemplateError(one.path, one.lines["extends"], f"a template may not extend itself: {circle}")
            if len(chain) == _EXTENDS_MAX:
                why = f"templates extend one another more than {_EXTENDS_MAX} deep: {' -> '.join(chain)}"
                raise TemplateError(one.path, one.lines["extends"], why)
            chain.append(one.extends)
        declared: dict[str, Declared] = {}
        for one in files:
            for variable in one.variables.values():
                declared.setdefault(variable.name, variable)
        # The last one extends none, and has a prompt then.
        prompt, owner = next((one.prompt, one) for one in files if one.prompt is not None)
        return _Whole(tuple(files), prompt, owner, declared)


class _Need(NamedTuple):
    """Something in a text that needs another thing, and where that stands."""

    other: str
    path: Path
    line: int


class _Collected:
    """What the texts of a template lead to: variables, included templates, and what needs what."""

    def __init__(self, reading: _Reading, name: str) -> None:
        self.declared: dict[str, Declared] = {}
        self.names: dict[str, None] = {}
        self.used: set[str] = set()
        self.included: dict[str, tuple[Part, ...]] = {}
        self._reading = reading
        self._root = f"{{> {name}}}"
        self._needs: dict[str, list[_Need]] = {}

    def add_template(self, name: str, whole: _Whole) -> None:
        """A template's prompt and variables; what is declared already stays."""
        self.included[name] = whole.prompt.parts
        if len(self.included) > _INCLUDED_MAX:
            file = whole.files[0]
            raise TemplateError(file.path, None, f"{self._root} includes more than {_INCLUDED_MAX} templates")
        new = {each: one for each, one in whole.declared.items() if each not in self.declared}
        self.declared.update(new)
        self.names.update(dict.fromkeys(new))
        self.add(f"{{> {name}}}", whole.prompt, whole.prompt_file.path)
        for one in new.values():
            if one.default is not None:
                self.add(f"{{{one.name}}}", one.default, one.path)

    def add(self, owner: str, text: Text, path: Path) -> None:
        """A text of `owner` (`{a}` or `{> a}`), and all that it leads to."""
        for inner, others in text.uses().items():
            needs = self._needs.setdefault(inner or owner, [])
            needs += [_Need(other, path, text.line_at(at)) for other, at in others]
            for need in needs[len(needs) - len(others) :]:
                self._note(need)

    def _note(self, need: _Need) -> None:
        if not need.other.startswith("{>"):
            self.names.setdefault(need.other[1:-1])
            self.used.add(need.other[1:-1])
            if len(self.names) > VARIABLES_MAX:
                raise TemplateError(need.path, need.line, f"there are more than {VARIABLES_MAX} variables")
            return
        name = need.other[3:-1]
        if name not in self.included and need.other != self._root:
            self.add_template(name, self._reading.whole(name, need.path, need.line))

    def refuse_circles(self) -> None:
        """Raise TemplateError for a template or a default that leads back to itself."""
        done: set[str] = set()
        for start in list(self._needs):
            self._follow(start, [], done)

    def _follow(self, one: str, way: list[str], done: set[str]) -> None:
        """Variables and included templates are bounded, and with them the depth of this recursion."""
        if one in done:
            return
        for need in self._needs.get(one, ()):
            if need.other == one or need.other in way:
                circle = [*way, one, need.other]
                raise TemplateError(
                    need.path, need.line, f"it leads back to itself: {' -> '.join(circle[circle.index(need.other) :])}"
                )
            self._follow(need.other, [*way, one], done)
        done.add(one)


def _options(files: Sequence[TemplateFile]) -> dict[str, Any]:
    """The options of a template over those of what it extends."""
    from bus import sampling

    merged: dict[str, Any] = {}
    for one in reversed(files):
        merged.update(one.options)
    try:
        return sampling.checked(merged)
    except sampling.OptionError as error:
        first = files[0]
        raise TemplateError(
            first.path, first.lines.get("options", first.lines.get("extends")), f"options: {error}"
        ) from error


def home_folder(settings: Settings) -> Folder:
    """Where the user's own templates lie."""
    return Folder(settings.path("templates"), "user")


def project_folder(root: Path) -> Folder:
    """Where a project's own templates lie."""
    return Folder(root / TEMPLATES[0], "project", root)


def shelf_for(settings: Settings, project: Project | None = None) -> Shelf:
    """The project's templates, the user's, and those that come with Olympus."""
    found: list[Folder] = []
    if project is not None:
        paths = [*project.templates, *(project.root / below for below in TEMPLATES)]
        # The home of Olympus may lie in the project, and be called .olympus.
        own = os.path.realpath(home_folder(settings).path)
        paths = [path for path in dict.fromkeys(paths) if os.path.realpath(path) != own]
        found += [Folder(path, "project", project.root) for path in paths]
    return Shelf([*found, home_folder(settings), Folder(SHIPPED, "shipped")])
