"""`olympus project`: what kind of project this folder is, what a chat in it runs with, and who said so."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

from bus import known_projects, projects
from bus.cli import exits
from bus.cli.action import Action, add_actions, configure_json, run_action
from bus.cli.arguments import settings_from
from bus.cli.chat.choices import Choices, choose
from bus.cli.failures import UsageError, say
from bus.cli.output import fit, one_line, print_json, printable, table, terminal_width, write_line
from bus.cli.wrapping import wrap_hanging
from bus.project_file import Asked, ProjectError
from bus.project_init import ExistsAlready, ignored_by, init
from bus.projects import NO_PROFILE, Candidate, Project
from bus.settings import Settings

HELP = "What kind of project this folder is, and what a chat in it runs with."

EXAMPLES = """\
examples:
  olympus project detect
  olympus project init
  olympus project show
  olympus project use rust

olympus project ACTION --help tells more about one action. docs/projects.md tells what a project file may say.
"""

# Characters of a value in the table of `show`; the system prompt stands below it whole.
_SHOWN: Final = 60


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `olympus project`."""
    parser.epilog = EXAMPLES
    add_actions(parser, ACTIONS)


def run(args: argparse.Namespace) -> int:
    """Do the action."""
    try:
        return run_action(args)
    except (ProjectError, ExistsAlready) as error:
        say(printable(str(error)))
        return exits.FAILED
    except OSError as error:
        say(printable(f"{error.filename}: {error.strerror}"))
        return exits.FAILED


def _configure_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", default=".", metavar="FOLDER", help="another folder than this one")


def _folder(args: argparse.Namespace) -> Path:
    folder = Path(args.folder).expanduser()
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder")
    return folder


def _find(folder: Path, settings: Settings) -> Project | None:
    return projects.find(folder, settings, kept=known_projects.chosen(known_projects.load(settings)))


# detect -----------------------------------------------------------------------------------------------------------


def _configure_detect(parser: argparse.ArgumentParser) -> None:
    _configure_folder(parser)
    configure_json(parser)


def _run_detect(args: argparse.Namespace) -> int:
    settings, folder = settings_from(args), _folder(args)
    found, project = projects.detect(folder, settings), _find(folder, settings)
    if args.json:
        print_json({"candidates": list(map(_candidate, found)), "project": _told(project)}, indent=2)
    elif found:
        width = terminal_width()
        rows = [(one.profile, ", ".join(one.evidence), str(one.folder)) for one in found]
        for line in table(("PROFILE", "BECAUSE OF", "IN"), rows):
            write_line(fit(printable(line), width))
    for line in about(project):
        say(line)
    return exits.OK if found or project else exits.FAILED


def _candidate(one: Candidate) -> dict[str, Any]:
    return {"profile": one.profile, "folder": str(one.folder), "evidence": list(one.evidence), "score": one.score}


def _told(project: Project | None) -> dict[str, Any] | None:
    if project is None:
        return None
    return {
        "name": project.name,
        "root": str(project.root),
        "profile": project.profile,
        "chosen_by": project.chosen_by,
        "file": str(project.file) if project.file else None,
        "templates": list(map(str, project.templates)),
        "suggested_templates": list(project.profile_asked.templates),
        "notes": list(project.notes),
    }


def about(project: Project | None) -> list[str]:
    """What a project is, in lines for people."""
    if project is None:
        return ["this folder belongs to no project; 'olympus project init' makes it one"]
    kind = f"profile {project.profile} ({project.chosen_by})" if project.profile else "no profile"
    file = f", file {project.file}" if project.file else ""
    return [printable(line) for line in (f"project {project.name} in {project.root}: {kind}{file}", *project.notes)]


# show -------------------------------------------------------------------------------------------------------------


def _run_show(args: argparse.Namespace) -> int:
    settings, folder = settings_from(args), _folder(args)
    # Asked first for its errors: a chat would pass over a broken file, and this is where one looks for the reason.
    project = _find(folder, settings)
    choices = choose(settings, args, folder)
    if args.json:
        print_json({"project": _told(project), "values": _values(choices), "origins": choices.origins}, indent=2)
    else:
        width = terminal_width()
        shown = "\n".join(show_lines(choices))
        write_line(shown if width is None else "\n".join(wrap_hanging(shown, width)))
        for line in about(project):
            say(line)
    if project is not None:
        known_projects.see(project, settings)
    return exits.OK


def _values(choices: Choices) -> dict[str, Any]:
    return {
        "model": choices.model,
        "system": choices.system,
        "tools": list(choices.tools),
        **{f"options.{name}": value for name, value in sorted(choices.options.items())},
        "memory_prompt": choices.memory_prompt,
        "memory_context": choices.memory_context,
        "prompt_tokens": choices.prompt_tokens,
        "context_tokens": choices.context_tokens,
        "user": choices.user,
    }


def show_lines(choices: Choices) -> list[str]:
    """Every value and where it is from, and the system prompt whole."""
    values = {
        **_values(choices),
        "model": choices.model or "default of the model service",
        "system": f"{len(choices.system):,} characters, below" if choices.system else "none",
        "tools": ", ".join(choices.tools) or "none",
    }
    rows = [(name, choices.origins.get(name, "default"), _text(value)) for name, value in values.items()]
    lines = [printable(line) for line in table(("WHAT", "FROM", "VALUE"), rows)]
    return [*lines, *([f"\n{printable(choices.system)}"] if choices.system else [])]


def _text(value: Any) -> str:
    return one_line(value if isinstance(value, str) else json.dumps(value), _SHOWN)


# init -------------------------------------------------------------------------------------------------------------


def _configure_init(parser: argparse.ArgumentParser) -> None:
    _configure_folder(parser)
    parser.add_argument("--profile", metavar="NAME", help="another profile than the one detected, or none")
    parser.add_argument("--force", action="store_true", help="write over a project file that is there")


def _run_init(args: argparse.Namespace) -> int:
    settings, folder = settings_from(args), _folder(args).resolve()
    if folder in projects.never_projects():
        raise UsageError(f"{folder} cannot be a project; make a folder below it one")
    project = _known(folder, settings, is_broken_allowed=args.force)
    profile = args.profile or (project.profile if project else "")
    if profile not in ("", NO_PROFILE):
        projects.load_profile(profile, settings)
    file = init(
        project.root if project else folder,
        name=project.name if project else folder.name,
        profile="" if profile == NO_PROFILE else profile,
        because="" if args.profile or not project or not project.evidence else f"Found: {', '.join(project.evidence)}.",
        asked=project.asked if project else Asked(),
        replace=args.force,
    )
    write_line(str(file))
    for line in _after_init(file, project):
        say(printable(line))
    if (made := _find(folder, settings)) is not None:
        known_projects.see(made, settings)
    return exits.OK


def _known(folder: Path, settings: Settings, *, is_broken_allowed: bool) -> Project | None:
    """The project as it is, without its file where that is broken and is to be written anew."""
    try:
        return _find(folder, settings)
    except ProjectError:
        if not is_broken_allowed:
            raise
        return projects.find(folder, settings, reads_file=False)


def _after_init(file: Path, project: Project | None) -> list[str]:
    root = file.parents[1]
    taken = [f"what {project.file} says was taken over"] if project and project.file not in (None, file) else []
    ignored = ignored_by(root)
    if ignored is None:
        return [
            *taken,
            f"commit it: git add {file.relative_to(root)} (and .olympus/templates, if you put templates there)",
        ]
    where = f"{ignored[0]} line {ignored[1]}"
    return [*taken, f"{where} keeps it out of git: write .olympus/* and !.olympus/project.yaml there, and commit both"]


# use --------------------------------------------------------------------------------------------------------------


def _configure_use(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile", nargs="?", metavar="PROFILE", help="a profile, or none; without it they are listed")
    parser.add_argument("--forget", action="store_true", help="go back to what the project's file or its looks say")
    configure_json(parser)


def _run_use(args: argparse.Namespace) -> int:
    settings = settings_from(args)
    if args.profile and args.forget:
        raise UsageError("--forget goes back to what the project says: leave PROFILE out")
    if not args.profile and not args.forget:
        return _list_profiles(settings, as_json=args.json)
    root = _root_here(settings)
    if args.profile not in (None, NO_PROFILE):
        projects.load_profile(args.profile, settings)
    known_projects.choose(root, args.profile or "", settings)
    project = _find(Path(), settings)
    if args.json:
        print_json(_told(project), indent=2)
    else:
        write_line(project.profile if project and project.profile else NO_PROFILE)
        for line in about(project):
            say(line)
    return exits.OK


def _root_here(settings: Settings) -> Path:
    # Without what was chosen before: it may be a profile that is no more.
    project = projects.find(Path(), settings, profile=NO_PROFILE, reads_file=False)
    if project is None:
        raise UsageError("this folder belongs to no project; 'olympus project init --profile NAME' makes it one")
    return project.root


def _list_profiles(settings: Settings, *, as_json: bool) -> int:
    profiles = projects.profiles(settings)
    if as_json:
        rows = [{"profile": name, "description": what, "file": str(path)} for name, (path, what) in profiles.items()]
        print_json({"profiles": rows}, indent=2)
        return exits.OK
    width = terminal_width()
    for line in table(("PROFILE", "FOR", "FILE"), [(name, what, str(path)) for name, (path, what) in profiles.items()]):
        write_line(fit(printable(line), width))
    return exits.OK


ACTIONS: Final = (
    Action(
        "detect",
        "what kind of project this folder is, and by which files",
        _configure_detect,
        _run_detect,
        """
olympus project detect
olympus project detect ~/src/shop --json
""",
    ),
    Action(
        "init",
        "write .olympus/project.yaml with what was found, and everything else as comments",
        _configure_init,
        _run_init,
        """
olympus project init
olympus project init --profile documentation
""",
    ),
    Action(
        "show",
        "what a chat here runs with: every value and who said so",
        _configure_detect,
        _run_show,
        """
olympus project show
olympus project show --json
""",
    ),
    Action(
        "use",
        "choose a profile for the project of this folder, for you alone; without one they are listed",
        _configure_use,
        _run_use,
        """
olympus project use
olympus project use rust
olympus project use none
olympus project use --forget
""",
    ),
)
