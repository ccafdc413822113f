"""`olympus template`: templates of questions: which there are, what they need, asking with them, writing them."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from bus import projects, template_file
from bus.cli import exits
from bus.cli.action import Action, add_actions, configure_json, run_action
from bus.cli.arguments import settings_from
from bus.cli.chat.template_use import filled, question, values_of
from bus.cli.confirming import confirm, says_yes
from bus.cli.connection import run_with_client
from bus.cli.durations import duration
from bus.cli.failures import UsageError, say
from bus.cli.hosting import hosted
from bus.cli.output import fit, one_line, print_json, printable, table, terminal_width, write_line
from bus.cli.req import JsonPrinter, TextPrinter, address
from bus.client import Client
from bus.project_file import ProjectError
from bus.settings import Settings, editor
from bus.template_file import NAMES, SUFFIXES
from bus.template_text import TEMPLATE_NAME, escaped, looks_like_default
from bus.templates import (
    Folder,
    Listed,
    Rendered,
    Shelf,
    Template,
    TemplateError,
    Variable,
    WrongValue,
    home_folder,
    project_folder,
    shelf_for,
)
from bus.whole_file import write_whole
from bus.yaml_blocks import dump
from schemas.bodies.model import Chat, ChatMessage
from schemas.errors import NotFound

HELP = "Ask with templates of questions, and write them; docs/templates.md tells how."

EXAMPLES = """\
examples:
  olympus template list
  olympus template show review
  git diff | olympus template use review diff=-
  olympus template use translate text=@letter.txt language=French
  olympus template create standup --prompt 'What did I do? {notes}'

olympus template ACTION --help tells more about one action.
"""

# What an editor opens for a new template.
_NEW: Final = """\
description: {name} in one line
# {{variable}} must be given, {{variable:default}} may be, {{{{ is a brace, {{> other}} takes in another template.
prompt: |
  Explain {{topic}} to somebody who knows {{level:nothing}} about it.
# system: You are ...
# model: a model or a routing profile
# options: {{temperature: 0.2}}
variables:
  topic: what to explain
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `olympus template`."""
    parser.epilog = EXAMPLES
    add_actions(parser, ACTIONS)


def run(args: argparse.Namespace) -> int:
    """Do the action."""
    try:
        return run_action(args)
    except WrongValue as error:
        raise UsageError(printable(str(error))) from error
    except TemplateError as error:
        say(printable(str(error)))
        return exits.FAILED


def _shelf(settings: Settings) -> Shelf:
    return shelf_for(settings, _project(settings))


def _project(settings: Settings) -> projects.Project | None:
    """The project of this folder; one whose file cannot be used is told, and goes by its looks."""
    try:
        return projects.find(Path.cwd(), settings)
    except ProjectError as error:
        say(printable(f"the project file is passed over: {error}"))
        return projects.find(Path.cwd(), settings, reads_file=False)


# list and show ------------------------------------------------------------------------------------------------------


def _run_list(args: argparse.Namespace) -> int:
    listed = _shelf(settings_from(args)).list()
    if args.json:
        entries = [{**msgspec.structs.asdict(one), "path": str(one.path)} for one in listed]
        print_json({"templates": entries}, indent=2)
        return exits.OK
    width = terminal_width()
    for line in list_lines(listed):
        write_line(fit(line, width))
    for one in listed:
        if one.error:
            say(printable(f"{one.name or 'a folder'} cannot be used: {one.error}"))
    return exits.OK


def list_lines(listed: Sequence[Listed]) -> list[str]:
    """A row for each template, with what it hides; those that cannot be used are named in it too."""
    if not listed:
        return ["no templates; `olympus template create NAME` writes one"]
    rows = [
        (one_line(one.name, 64), _origin(one), "cannot be used" if one.error else one_line(one.description, 200))
        for one in listed
        if one.name
    ]
    return table(("NAME", "FROM", "WHAT IT ASKS"), rows)


def _origin(one: Listed) -> str:
    hidden = [{"user": "yours", "shipped": "shipped", "project": "project"}[origin] for origin in one.shadows]
    return f"{one.origin}, hides {' and '.join(hidden)}" if hidden else one.origin


def _configure_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="which one")
    configure_json(parser)


def _run_show(args: argparse.Namespace) -> int:
    template = _shelf(settings_from(args)).get(args.name)
    if args.json:
        about = {
            "name": template.name,
            "description": template.description,
            "origin": template.origin,
            "path": str(template.path),
            "prompt": template.prompt.source,
            "system": None if template.system is None else template.system.source,
            "model": template.model,
            "options": template.options,
            "variables": template.variables(),
        }
        print_json(about, indent=2)
        return exits.OK
    write_line(printable("\n".join(show_lines(template))))
    return exits.OK


def show_lines(template: Template) -> list[str]:
    """What a template asks, with what, and what it needs."""
    lines = [f"{template.name}: {template.description}" if template.description else template.name]
    lines.append(f"from: {template.path} ({template.origin})")
    if template.model is not None:
        lines.append(f"model: {template.model}")
    if template.options:
        lines.append("options: " + ", ".join(f"{name}={value}" for name, value in template.options.items()))
    variables = template.variables()
    if variables:
        lines += ["variables:", *(f"  {variable_line(one)}" for one in variables)]
    if template.system is not None:
        lines += ["system:", *_indented(template.system.source)]
    return [*lines, "prompt:", *_indented(template.prompt.source)]


def variable_line(variable: Variable) -> str:
    """`language: to write it in (de, en; "en" without)`."""
    about = [", ".join(variable.choices)] if variable.choices else []
    if variable.is_required:
        about.append("must be given")
    elif variable.default is not None:
        about.append(f'"{one_line(variable.default, 60)}" without')
    else:
        about.append("may be left out")
    said = f"{variable.name}: {variable.description}" if variable.description else variable.name
    return f"{said} ({'; '.join(about)})" if about else said


def _indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]


# use ----------------------------------------------------------------------------------------------------------------


def _configure_use(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="which one")
    parser.add_argument("values", nargs="*", metavar="NAME=VALUE", help="values; NAME=@FILE and NAME=- (stdin) too")
    parser.add_argument("--model", metavar="NAME", help="model or routing profile, instead of the template's")
    parser.add_argument("--timeout", type=duration, metavar="TIME", help="give up after this long (30s, 2m)")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--print", action="store_true", help="print the prompt, and ask nobody")
    shape.add_argument("--json", action="store_true", help="one JSON line per reply")
    shape.add_argument("--raw", action="store_true", help="the answer alone, without its figures")


def _run_use(args: argparse.Namespace) -> int:
    template = _shelf(settings_from(args)).get(args.name)
    if notice := template.notice():
        say(printable(notice))
    rendered = _rendered(template, args.values)
    if rendered is None:
        say("given up: nothing was asked")
        return exits.INTERRUPTED
    if args.print:
        write_line(printable(rendered.prompt) if sys.stdout.isatty() else rendered.prompt)
        return exits.OK
    printer = JsonPrinter() if args.json else TextPrinter(is_raw=args.raw)

    async def ask(client: Client) -> int:
        model = args.model or rendered.model
        try:
            await _answer(client, rendered, model, args.timeout, printer)
        except NotFound as error:
            # Named on the command line it was meant; a template may come from a house with other models.
            if args.model or model is None:
                raise
            say(printable(f"{error.message}; the default model answers instead of the template's"))
            await _answer(client, rendered, None, args.timeout, printer)
        return exits.OK

    try:
        return run_with_client(args, ask)
    finally:
        printer.close()


def _rendered(template: Template, words: list[str]) -> Rendered | None:
    """The template with the values of the command line and, on a terminal, those that are asked for; None: given up."""
    if not sys.stdin.isatty():
        return template.render(values_of(words, sys.stdin.buffer.read))
    return asyncio.run(filled(template, values_of(words), ask_here))


async def ask_here(variable: Variable, problem: str) -> str | None:
    """The person's answer on the terminal. Nothing else runs in this loop, so it may wait."""
    if problem:
        say(printable(problem))
    if not variable.is_multiline:
        return _typed(printable(question(variable)))
    say("several lines; a line with a single . ends them")
    lines = []
    line = _typed(printable(question(variable)))
    if line is None:
        return None
    while line is not None and line != ".":
        lines.append(line)
        line = _typed("")
    return "\n".join(lines)


def _typed(prompt: str) -> str | None:
    """A line; None at the end of input. Under a chat it is the chat that asks, and an empty line gives up."""
    host = hosted()
    if host is not None:
        return host.asked(prompt) or None
    print(prompt, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


async def _answer(
    client: Client,
    rendered: Rendered,
    model: str | None,
    timeout_s: float | None,
    printer: JsonPrinter | TextPrinter,
) -> None:
    messages = [ChatMessage(role="user", content=rendered.prompt)]
    if rendered.system:
        messages.insert(0, ChatMessage(role="system", content=rendered.system))
    chat = Chat(messages=messages, model=model, **rendered.options)
    async with client.stream(address("model.chat", {"model": model}), chat, timeout_s=timeout_s, raw=True) as stream:
        async for part in stream:
            printer.partial(part)
        printer.final(stream.final)


# create, check and rm -----------------------------------------------------------------------------------------------


def _configure_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--project", action="store_true", help="in this project's .olympus/templates instead of yours")


def _folder(args: argparse.Namespace, settings: Settings) -> Folder:
    if not args.project:
        return home_folder(settings)
    project = _project(settings)
    if project is None:
        raise UsageError("--project: this folder belongs to no project; `olympus project init` makes it one")
    return project_folder(project.root)


def _configure_create(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="what it is to be called")
    parser.add_argument(
        "--prompt", metavar="TEXT", help="the prompt; '-' reads it from stdin; without it $EDITOR opens"
    )
    parser.add_argument("--description", metavar="TEXT", help="one line for the list")
    parser.add_argument("--system", metavar="TEXT", help="system prompt")
    parser.add_argument("--model", metavar="NAME", help="model or routing profile")
    parser.add_argument("--literal", action="store_true", help="braces in the prompt are text, no variables")
    parser.add_argument("--from", dest="source", metavar="TEMPLATE", help="begin with a copy of this one")
    parser.add_argument("--force", action="store_true", help="replace the one that is there")
    _configure_place(parser)


def _run_create(args: argparse.Namespace) -> int:
    settings = settings_from(args)
    if not re.fullmatch(TEMPLATE_NAME, args.name):
        raise UsageError(f"{args.name[:40]!r} cannot be the name of a template; {NAMES}")
    folder = _folder(args, settings)
    path = folder.path / f"{args.name}.yaml"
    taken = [one for one in (path, path.with_suffix(".yml")) if os.path.lexists(one)]
    if taken and not args.force:
        raise UsageError(f"{taken[0]} is there already; --force replaces it")
    shelf = _shelf(settings)
    if args.prompt is not None:
        text = _checked(shelf, args.name, _from_flags(args))
    else:
        text = _edited(shelf, args.name, _beginning(args, shelf))
    _write(folder, path, text)
    for other in taken:
        if other != path:
            other.unlink()
    say(f"written to {path}; olympus template use {args.name} asks with it")
    return exits.OK


def _beginning(args: argparse.Namespace, shelf: Shelf) -> str:
    if args.source:
        # Found good there already, links and all.
        return template_file.read(shelf.get(args.source).path, None)
    return _NEW.format(name=args.name)


def _from_flags(args: argparse.Namespace) -> str:
    if args.source:
        raise UsageError("--prompt and --from are both given; allowed: one of the two")
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    keys = {
        "description": args.description,
        "system": args.system,
        "model": args.model,
        "prompt": escaped(prompt) if args.literal else prompt,
    }
    return dump({key: value for key, value in keys.items() if value is not None}, width=120)


def _edited(shelf: Shelf, name: str, text: str) -> str:
    """What the person makes of `text` in an editor. Raises TemplateError, saying where the draft is, when it stays wrong."""
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to edit on; --prompt gives the text, --prompt - reads it from stdin")
    # Kept when it could not be used: what was written is not to be lost.
    draft = Path(tempfile.mkdtemp(prefix="olympus-template-")) / f"{name}.yaml"
    draft.write_text(text, encoding="utf-8")
    while True:
        _open_editor(draft)
        try:
            shelf.check(draft)
            written = draft.read_text(encoding="utf-8")
        except TemplateError as error:
            say(printable(str(error)))
            if not says_yes("edit it again"):
                raise TemplateError(draft, None, "nothing was written; the draft is kept there") from error
            continue
        draft.unlink()
        draft.parent.rmdir()
        return written


def _open_editor(path: Path) -> None:
    import shlex
    import subprocess

    try:
        subprocess.run([*shlex.split(editor()), str(path)], check=True)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise UsageError(
            f"the editor {editor()!r} failed ({error}); $EDITOR names another, --prompt needs none; the draft is {path}"
        ) from error


def _checked(shelf: Shelf, name: str, text: str) -> str:
    with tempfile.TemporaryDirectory(prefix="olympus-template-") as folder:
        draft = Path(folder) / f"{name}.yaml"
        draft.write_text(text, encoding="utf-8")
        template = shelf.check(draft)
    for line in remarks(template):
        say(printable(line))
    return text


def _write(folder: Folder, path: Path, text: str) -> None:
    """Put it there whole or not at all. Raises TemplateError where the folder leads out of the project, or is closed."""
    try:
        if folder.within is not None and not path.parent.resolve().is_relative_to(folder.within.resolve()):
            raise TemplateError(path.parent, None, "it is a link that leads out of the project; nothing was written")
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whoever works on the project may read what it has.
        write_whole(path, text.encode(), 0o666 if folder.origin == "project" else 0o600)
    except OSError as error:
        raise TemplateError(path, None, f"it cannot be written: {error.strerror}") from error


def _configure_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME|FILE", help="which ones; all without")


def _run_check(args: argparse.Namespace) -> int:
    shelf = _shelf(settings_from(args))
    if args.names:
        checked = {name: _looked_at(shelf, name, "") for name in args.names}
    else:
        checked = {one.name or str(one.path): _looked_at(shelf, one.name, one.error) for one in shelf.list()}
    for name, (error, lines) in checked.items():
        if error:
            say(printable(error))
        else:
            write_line(printable(f"{name}: good"))
        for line in lines:
            say(printable(line))
    return exits.FAILED if any(error for error, _ in checked.values()) else exits.OK


def _looked_at(shelf: Shelf, name: str, error: str) -> tuple[str, list[str]]:
    """What is wrong with a template, by its name or the path of its file, and what may not be meant."""
    if error:
        return error, []
    is_path = "/" in name or name.endswith(SUFFIXES)
    try:
        return "", remarks(shelf.check(Path(name)) if is_path else shelf.get(name))
    except TemplateError as wrong:
        return str(wrong), []


def remarks(template: Template) -> list[str]:
    """What is right and may not be meant: `{name: text}`, which is no default, and variables that nothing uses."""
    lines = []
    for text in filter(None, (template.prompt, template.system)):
        lines += [
            f"{template.name}: {found} stays as it is; without the space it is a variable with a default"
            for _, found in looks_like_default(text.source)
        ]
    if template.unused:
        lines.append(f"{template.name}: no text uses {', '.join(template.unused)}")
    return lines


def _configure_rm(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="which one")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    _configure_place(parser)


def _run_rm(args: argparse.Namespace) -> int:
    settings = settings_from(args)
    folder = _folder(args, settings)
    found = [path for other, path in _shelf(settings).files().get(args.name, ()) if other.path == folder.path]
    if not found:
        raise UsageError(
            printable(f"there is no template {args.name[:60]!r} in {folder.path}; the list tells where each is from")
        )
    if not args.yes:
        confirm(f"remove {found[0]}")
    found[0].unlink()
    say(printable(f"removed {found[0]}"))
    return exits.OK


ACTIONS: Final = (
    Action(
        "list",
        "which templates there are, where each is from, and what is wrong with those that cannot be used",
        configure_json,
        _run_list,
        "olympus template list\nolympus template list --json",
    ),
    Action(
        "show",
        "what a template asks, and the variables it needs",
        _configure_show,
        _run_show,
        "olympus template show review",
    ),
    Action(
        "use",
        "ask a model with a template; on a terminal values that are missing are asked for",
        _configure_use,
        _run_use,
        "git diff | olympus template use review diff=-\n"
        "olympus template use translate text=@letter.txt language=French\n"
        "olympus template use explain topic=monads --print",
    ),
    Action(
        "create",
        "write a template, in $EDITOR or from --prompt",
        _configure_create,
        _run_create,
        "olympus template create standup --prompt 'What did I do? {notes}'\n"
        "olympus template create review --from review --project",
    ),
    Action(
        "check",
        "say what is wrong with templates, by name or file, and what may not be meant",
        _configure_check,
        _run_check,
        "olympus template check\nolympus template check .olympus/templates/review.yaml",
    ),
    Action(
        "rm",
        "remove a template of yours, or with --project of this project",
        _configure_rm,
        _run_rm,
        "olympus template rm standup\nolympus template rm review --project --yes",
    ),
)
