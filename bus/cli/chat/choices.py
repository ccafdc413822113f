"""What a chat runs with, and who said so: flags, environment, project, preferences, profile, settings."""

from __future__ import annotations

import argparse
import asyncio
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from bus import known_projects, near_names, preferences, projects
from bus.cli.arguments import overrides_from
from bus.cli.failures import UsageError
from bus.cli.output import printable
from bus.client import Client
from bus.project_file import FILE_TOOLS, MEMORY_TOOLS, Asked, ProjectError, is_model_name
from bus.project_file import TOOLS as _TOOLS
from bus.projects import Project
from bus.settings import Settings, origins_of_this_process
from schemas.bodies.model import ModelList, Models, ModelShow
from schemas.bodies.model_trials import Route
from schemas.errors import BusError, NotFound, Unprocessable

# Tools that a model may be given; the first four are memory's own (memory.tool.schemas), the others read the project.
TOOLS: Final = _TOOLS

# The profile that a chat falls back to before it takes whatever the service's default is.
_GENERAL: Final = "general"

# Seconds that `settle` may take altogether: a chat that waits longer for its own start is broken to whoever sits there.
_SETTLE_S: Final = 3.0

# Settings that are options of a request too. -1 is their way to say nothing.
_OPTIONS_OF_SETTINGS: Final = {"models.temperature": "temperature", "models.max_tokens": "max_tokens"}


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """What one source says. values: fields of `Choices`, and `system_append`, `memory`. origins: where, by name."""

    name: str
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}


class Choices(msgspec.Struct, frozen=True, kw_only=True):
    """Effective values of one chat. `origins` says for each field name where its value is from, in words for people.

    model: a model or a routing profile; None lets the service's default answer. options: sampling options of
    `schemas.bodies.model.Sampling` by name (origins name them one by one, `options.seed`). tools: of TOOLS.
    memory_prompt: put what is known of the person into the system prompt. memory_context: search memory for each
    question. *_tokens: budgets of the two. notes: what was passed over, and why, for people. layers: what the values
    came from, strongest first.
    """

    model: str | None = None
    system: str = ""
    options: dict[str, Any] = {}
    tools: tuple[str, ...] = ("remember", "recall", "search_memory")
    memory_prompt: bool = True
    memory_context: bool = True
    prompt_tokens: int = 256
    context_tokens: int = 512
    user: str = "default"
    project: Project | None = None
    origins: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    layers: tuple[Layer, ...] = ()


_FIELDS: Final = (
    "model",
    "system",
    "tools",
    "memory_prompt",
    "memory_context",
    "prompt_tokens",
    "context_tokens",
    "user",
)


def configure_choices(parser: argparse.ArgumentParser) -> None:
    """The flags that `choose` reads, for every command that asks a model something."""
    group = parser.add_argument_group("what the answer is made with")
    group.add_argument("--model", metavar="NAME", help="model, routing profile, or a name that the project routes")
    group.add_argument("--system", metavar="TEXT", help="system prompt, instead of the project's")
    group.add_argument("--profile", metavar="NAME", help="profile of the project, or none (olympus project detect)")
    group.add_argument(
        "--option", metavar="NAME=VALUE", action="append", help="sampling option, as temperature=0.2; repeatable"
    )
    group.add_argument("--tools", metavar="NAME,...", help=f"tools of the model: {', '.join(TOOLS)}, or none")
    group.add_argument("--no-memory", action="store_true", help="neither read nor write memory for the answers")
    group.add_argument("--no-project", action="store_true", help="as if this folder were no project")
    group.add_argument("--user", metavar="NAME", help="whose memory it is (default)")


def choose(settings: Settings, args: argparse.Namespace, folder: Path) -> Choices:
    """The choices for a chat in `folder`. Of `args` what `configure_choices` adds is read, as far as it is there.

    Reads files and asks nobody. A project file or preferences that cannot be used are named in the notes and passed
    over: they stop nobody from asking. Raises UsageError for flags that cannot be met.
    """
    given = vars(args)
    notes: list[str] = []
    try:
        preferred = preferences.load(settings)
    except ProjectError as error:
        preferred = Asked()
        notes.append(f"your preferences are passed over: {error}")
    no_project = given.get("no_project")
    project = None if no_project else _project(settings, folder, given.get("profile") or "", preferred, notes)
    layers = (
        _flags(given),
        _process(settings, args),
        *_project_layers(project, preferred),
    )
    # They name files and keys of a project that somebody else may have written.
    return _merged(layers, project, tuple(map(printable, notes)))


def with_profile(choices: Choices, name: str, settings: Settings) -> Choices:
    """The same choices with another profile of the project, or with none ("none"). Raises ProjectError for one that is
    not there, UsageError outside of a project."""
    if choices.project is None:
        raise UsageError("this chat began in no project; a new one takes up what is in its folder by then")
    name = "" if name == projects.NO_PROFILE else name
    asked = projects.load_profile(name, settings) if name else Asked()
    project = msgspec.structs.replace(choices.project, profile=name, chosen_by="asked for", profile_asked=asked)
    kept = tuple(layer for layer in choices.layers if layer.name != "profile")
    return _merged((*kept, _layer("profile", asked, f"profile {name}")), project, choices.notes)


def resolved(choices: Choices, name: str) -> str:
    """The model or routing profile behind `name`, which the project or the preferences may route."""
    return _routes(choices.layers).get(name, name)


# Sources ------------------------------------------------------------------------------------------------------------


def _project(settings: Settings, folder: Path, profile: str, preferred: Asked, notes: list[str]) -> Project | None:
    known = known_projects.load(settings)
    project = _allowed(_usable(settings, folder, profile, notes, known_projects.chosen(known)), preferred)
    if project is None:
        if profile not in ("", projects.NO_PROFILE):
            raise UsageError("--profile needs a project, and this folder belongs to none (olympus project init)")
        return None
    if known_projects.is_new(project, known):
        notes.append(_new_file(project))
        # What is told of a file is told once, until it changes; `olympus project show` tells it always.
        notes.extend(project.notes)
    elif project.file is None:
        notes.extend(project.notes)
    return project


def _allowed(project: Project | None, preferred: Asked) -> Project | None:
    """The project without what a cloned file may not grant: the tool that forgets, and memory that its person has off."""
    if project is None:
        return None
    asked, notes = project.asked, list(project.notes)
    if "forget" in (asked.tools or ()):
        notes.append(
            f"{asked.origins['tools']}: tools: forget is passed over; you allow it with --tools or /tools on forget"
        )
        asked = msgspec.structs.replace(asked, tools=tuple(name for name in asked.tools or () if name != "forget"))
    for name in ("memory", "memory_prompt", "memory_context"):
        if getattr(asked, name) and False in (preferred.memory, getattr(preferred, name)):
            notes.append(f"{asked.origins[name]}: {name}: true is passed over; your preferences have it off")
            asked = msgspec.structs.replace(asked, **{name: None})
    return msgspec.structs.replace(project, asked=asked, notes=tuple(notes))


def _usable(
    settings: Settings, folder: Path, profile: str, notes: list[str], kept: Mapping[str, str]
) -> Project | None:
    """The project; where something about it cannot be used, without its profile, or without its file, or both."""
    find = functools.partial(projects.find, folder, settings)
    no_profile = functools.partial(find, profile=projects.NO_PROFILE)
    attempts = [
        functools.partial(find, profile=profile, kept=kept),
        *([] if profile else [no_profile]),
        functools.partial(find, profile=profile, kept=kept, reads_file=False),
        *([] if profile else [functools.partial(no_profile, reads_file=False)]),
    ]
    errors: list[ProjectError] = []
    for attempt in attempts:
        try:
            project = attempt()
        except ProjectError as error:
            errors.append(error)
        else:
            notes.extend(f"passed over: {error}" for error in errors[:1])
            return project
    # Only a profile that a flag names is still there to fail.
    raise UsageError(str(errors[-1]))


def _new_file(project: Project) -> str:
    """One line about a file that somebody else may have written."""
    asked = project.asked
    says = [
        *([f"model {asked.model or asked.routing}"] if asked.model or asked.routing else []),
        *([f"a system prompt of {len(asked.system):,} characters"] if asked.system else []),
        *([f"{len(asked.system_append):,} characters more of system prompt"] if asked.system_append else []),
        *([f"tools {', '.join(asked.tools) or 'none'}"] if asked.tools is not None else []),
        *([f"options {', '.join(asked.options)}"] if asked.options else []),
    ]
    return f"new here: {project.file} sets {', '.join(says) or 'nothing'}; `olympus project show` shows it whole"


def _flags(given: dict[str, Any]) -> Layer:
    values: dict[str, Any] = {name: given[name] for name in ("model", "system", "user") if given.get(name)}
    if (model := values.get("model")) and not is_model_name(model):
        raise UsageError(f"--model {model!r} names no model: letters, digits and . _ : / + - only")
    if given.get("tools") is not None:
        values["tools"] = _tools(given["tools"])
    if given.get("no_memory"):
        values["memory"] = False
    origins = {name: f"flag --{'no-memory' if name == 'memory' else name}" for name in values}
    if given.get("option"):
        from bus.sampling import OptionError, from_words

        try:
            values["options"] = from_words(given["option"])
        except OptionError as error:
            raise UsageError(f"--option: {error}") from error
        origins |= {f"options.{name}": "flag --option" for name in values["options"]}
    return Layer(name="flags", values=_said(values), origins=origins)


def _tools(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if names == ("none",):
        return ()
    for name in names:
        if name not in TOOLS:
            raise UsageError(f"--tools: there is no tool {name!r}; {near_names.hint(name, [*TOOLS, 'none'])}")
    return names


def _process(settings: Settings, args: argparse.Namespace) -> Layer:
    """What variables and `--set` say for this process: stronger than files."""
    said = origins_of_this_process(overrides_from(args))
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if origin := said.get("models.default"):
        values["model"], origins["model"] = settings.models.default, origin
    options = {}
    for key, name in _OPTIONS_OF_SETTINGS.items():
        value = getattr(settings.models, key.partition(".")[2])
        if key in said and value >= 0:
            options[name], origins[f"options.{name}"] = value, said[key]
    return Layer(name="environment", values=_said({**values, "options": options}), origins=origins)


def _project_layers(project: Project | None, preferred: Asked) -> tuple[Layer, ...]:
    asked = project.asked if project else Asked()
    profile = project.profile_asked if project else Asked()
    return (
        _layer("project", asked),
        _layer("preferences", preferred),
        _layer("profile", profile, f"profile {project.profile}" if project else ""),
    )


def _layer(name: str, asked: Asked, origin: str = "") -> Layer:
    names = (*_FIELDS, "memory", "routing", "options", "routes", "system_append")
    values = _said({field: getattr(asked, field) for field in names})
    origins = dict.fromkeys(asked.origins, origin) if origin else dict(asked.origins)
    if "model" not in values and "routing" in values:
        values["model"], origins["model"] = values["routing"], origins["routing"]
    return Layer(name=name, values=values, origins=origins)


def _said(values: dict[str, Any]) -> dict[str, Any]:
    """Without what says nothing; an empty system prompt says that there is to be none, and no tools that."""
    return {name: value for name, value in values.items() if value is not None and value != {}}


# Together -----------------------------------------------------------------------------------------------------------


def _merged(layers: Sequence[Layer], project: Project | None, notes: tuple[str, ...]) -> Choices:
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name in (*_FIELDS, "memory"):
        if strongest := next((layer for layer in layers if name in layer.values), None):
            values[name], origins[name] = strongest.values[name], strongest.origins.get(name, strongest.name)
    values["options"] = {}
    for layer in reversed(layers):
        for name, value in layer.values.get("options", {}).items():
            values["options"][name] = value
            origins[f"options.{name}"] = layer.origins.get(f"options.{name}", layer.name)
    for layer in reversed(layers):
        if more := layer.values.get("system_append"):
            values["system"] = f"{values.get('system', '')}\n\n{more}".strip()
            origins["system"] = ", ".join(filter(None, (origins.get("system"), layer.origins.get("system_append"))))
    if (model := values.get("model")) in (routes := _routes(layers)):
        values["model"] = routes[model]
        origins["model"] += f", routed as {model}"
    return _consistent(values, origins, layers, project, notes)


def _routes(layers: Sequence[Layer]) -> dict[str, str]:
    routes: dict[str, str] = {}
    for layer in reversed(layers):
        routes |= layer.values.get("routes", {})
    return routes


def _consistent(
    values: dict[str, Any],
    origins: dict[str, str],
    layers: Sequence[Layer],
    project: Project | None,
    notes: tuple[str, ...],
) -> Choices:
    """Without memory there are no tools of memory, and without a project none that read it."""
    tools: tuple[str, ...] = values.get("tools", Choices().tools)
    if values.pop("memory", True) is False:
        values |= {"memory_prompt": False, "memory_context": False}
        tools = tuple(name for name in tools if name not in MEMORY_TOOLS)
        origins |= dict.fromkeys(("memory_prompt", "memory_context"), origins["memory"])
    origins.pop("memory", None)
    if project is None:
        tools = tuple(name for name in tools if name not in FILE_TOOLS)
    values["tools"] = tools
    return Choices(**values, project=project, origins=origins, notes=notes, layers=tuple(layers))


# With the model service ---------------------------------------------------------------------------------------------


async def settle(choices: Choices, client: Client) -> Choices:
    """The choices with a model that is there: where the one chosen is not, the next that is, and a note that says so.

    One named by a flag is left as it is: whoever asked for it wants to hear that it is missing, from the answer. Without
    a model service, or where it is slow to answer, nothing changes. What is told here of a project's file counts as seen.
    """
    if choices.project is not None:
        await asyncio.to_thread(known_projects.see, choices.project, client.settings)
    if choices.model is None or choices.origins.get("model", "").startswith("flag --model"):
        return choices
    try:
        async with asyncio.timeout(_SETTLE_S):
            missing = await _why_missing(choices.model, client)
            if not missing:
                return choices
            found = None
            for name, _ in (fallbacks := _fallbacks(choices)):
                if not await _why_missing(name, client):
                    found = name
                    break
    except (BusError, TimeoutError):
        # Who asks the first question will hear what is wrong with the service.
        return choices
    instead = f"{found} ({dict(fallbacks)[found]})" if found else "the default model"
    note = f"model {choices.model} ({choices.origins['model']}): {missing}; {instead} answers instead"
    origin = f"{dict(fallbacks)[found] if found else 'default of the model service'}, as {choices.model} is not there"
    return msgspec.structs.replace(
        choices, model=found, origins={**choices.origins, "model": origin}, notes=(*choices.notes, note)
    )


def _fallbacks(choices: Choices) -> list[tuple[str, str]]:
    """What to try instead, with where each is from: what the weaker sources say, then everyday questions' profile."""
    found: dict[str, str] = {}
    for layer in choices.layers:
        for name in ("model", "routing"):
            if value := layer.values.get(name):
                found.setdefault(resolved(choices, value), layer.origins.get(name, layer.name))
    found.setdefault(_GENERAL, "routing profile for everyday questions")
    names = list(found)
    later = names[names.index(choices.model) + 1 :] if choices.model in names else names
    return [(name, found[name]) for name in later]


async def _why_missing(name: str, client: Client) -> str:
    """Why no request can name `name`; "" where one can."""
    models: Models = await client.request("model.list", ModelList())
    for one in models.models:
        if name == one.name or name in one.aliases:
            return f"it cannot be used ({one.error or 'unusable'})" if one.state == "unusable" else ""
    try:
        await client.request("model.route", Route(profile=name))
    except Unprocessable as error:
        return error.message
    except NotFound:
        pass
    else:
        return ""
    try:
        # An endpoint may know names that no list shows.
        await client.request("model.show", ModelShow(model=name))
    except NotFound as error:
        return error.message
    return ""
