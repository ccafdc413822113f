"""Entry point of the `olympus` command: one table of subcommands, each imported only when it is called."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast

from bus.cli import exits
from bus.cli.action import action_parsers
from bus.cli.model_flags import add_model_flags
from bus.near_names import nearest
from bus.version import VERSION


class Command(NamedTuple):
    """A subcommand: its name, the module that holds it, and its line in `olympus --help`; another's alias has none there."""

    name: str
    module: str
    help: str
    is_alias: bool = False


class CommandModule(Protocol):
    """What a command module holds."""

    HELP: str

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's own arguments, and its examples as epilog."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it and return an exit code."""


COMMANDS: tuple[Command, ...] = (
    Command("up", "bus.cli.up", "start everything: the broker and every service"),
    Command("chat", "bus.cli.chat.command", "talk with a model, in a terminal or a pipe"),
    Command("status", "bus.cli.status", "services, load and latency at one look"),
    Command("tap", "bus.cli.tap", "print events, or requests with their replies, as they pass"),
    Command("req", "bus.cli.req", "send one request and print its reply as it comes"),
    Command("pub", "bus.cli.pub", "publish an event"),
    Command("memory", "bus.cli.memory", "keep, find and look after memories"),
    Command("session", "bus.cli.session_command", "conversations that are kept: read, go on with, delete"),
    Command("feedback", "bus.cli.feedback", "say what the last answer was worth"),
    Command("models", "bus.cli.models", "fetch, load, look at and compare models"),
    Command("model", "bus.cli.models", "the same as models", is_alias=True),
    Command("route", "bus.cli.route", "which model a profile or a task gets, and why"),
    Command("options", "bus.cli.options", "temperature and the like, that your chats begin with"),
    Command("template", "bus.cli.template", "ask with templates of questions, and write them"),
    Command("compare", "bus.cli.compare", "the same question to several models, side by side, and pick the best"),
    Command("learn", "bus.cli.learn", "what there is to learn, and whether it helped"),
    Command("train", "bus.cli.train", "train adapters, and see how they do"),
    Command("project", "bus.cli.project", "what kind of project this folder is, and what a chat in it runs with"),
    Command("trace", "bus.cli.trace", "one request's way through the bus with timings, or the newest"),
    Command("errors", "bus.cli.errors", "what failed, how often, and whether it was seen"),
    Command("deadletters", "bus.cli.deadletters", "requests that could not be finished: look, send again, drop"),
    Command("ports", "bus.cli.ports", "what HTTP and the replaced agents are bound to"),
    Command("top", "bus.cli.top.command", "live view of services, models, jobs and errors; act on them by keys"),
    Command("bench", "bus.cli.bench", "measure the bus beside other brokers"),
    Command("doctor", "bus.cli.doctor", "say what is missing and how to get it"),
    Command("auth", "bus.cli.auth", "users, signing in, and keys"),
    Command("keys", "bus.cli.keys", "keys of encrypted connections between machines"),
    Command("audit", "bus.cli.audit", "who signed in, was refused, deleted or promoted what"),
    Command("backup", "bus.cli.backup", "back up everything that home holds, while it serves"),
    Command("restore", "bus.cli.restore", "put a backup of everything in its place"),
    Command("config", "bus.cli.config", "show the effective settings"),
    Command("completion", "bus.cli.completion", "print a completion script for bash, zsh or fish"),
    Command("broker", "bus.cli.broker", "run the broker alone"),
    Command("worker", "bus.cli.worker", "run one worker, supervised"),
)

_OUR_PACKAGES = frozenset({"bus", "broker", "schemas", "workers"})

_EXAMPLES = """\
examples:
  olympus up
  olympus status
  olympus req memory.kv.set key=greeting value=hello
  olympus tap 'memory.>'
  olympus --set bus.request_port=7400 status
  olympus --model olympus-demo --temperature 0.2 up
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `olympus` command and return its exit code (see `bus.cli.exits`)."""
    try:
        _open_streams()
        code = _dispatch(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in _OUR_PACKAGES:
            raise
        print(f"olympus: the package {error.name} is not installed; scripts/start installs it", file=sys.stderr)
        return exits.FAILED
    except BrokenPipeError:
        # The interpreter flushes stdout once more on its way out; give it somewhere to write.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.BROKEN_PIPE
    finally:
        if argv is None:
            # One more Ctrl-C, while the interpreter ends, is not worth a traceback.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    return code


def _open_streams() -> None:
    """Streams that whoever started this has closed lead nowhere; else the next file or connection would be one of them."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != descriptor:
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
            setattr(sys, name, os.fdopen(descriptor, "r" if descriptor == 0 else "w", encoding="utf-8"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal or a pipe that knows fewer characters gets a question mark for the others, and no traceback.
        sys.stdout.reconfigure(errors="replace")


def root_parser() -> argparse.ArgumentParser:
    """The parser of what stands before the command, and of `olympus --help`."""
    listed = [command for command in COMMANDS if not command.is_alias]
    width = max(len(command.name) for command in listed)
    commands = "\n".join(f"  {command.name:<{width}}  {command.help}" for command in listed)
    parser = argparse.ArgumentParser(
        prog="olympus",
        usage="olympus [--config FILE] [--set KEY=VALUE]... COMMAND ...",
        description=f"Olympus: one bus, its services, and real models.\n\ncommands:\n{commands}",
        epilog=f"exit codes:\n{exits.table()}\n\n{_EXAMPLES}\nolympus COMMAND --help tells more about one command",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", nargs="?", metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"olympus {VERSION}", help="show the version and exit")
    _add_global_options(parser)
    add_model_flags(parser)
    return parser


def command_parser(command: Command) -> argparse.ArgumentParser:
    """The complete parser of one command; imports its module."""
    module = _load(command)
    parser = argparse.ArgumentParser(
        prog=f"olympus {command.name}",
        description=module.HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.configure(parser)
    _add_global_options(parser)
    for below in action_parsers(parser):
        _add_global_options(below, is_action=True)
    return parser


def find(name: str) -> Command | None:
    """The command called `name`."""
    return next((command for command in COMMANDS if command.name == name), None)


def _dispatch(argv: Sequence[str]) -> int:
    root = root_parser()
    before = root.parse_args(argv)
    if before.command is None:
        root.print_help()
        return exits.USAGE
    command = find(before.command)
    if command is None:
        root.error(_unknown(before.command))
    args = command_parser(command).parse_args(before.rest)
    args.config = args.config or before.config
    args.set = [*before.set, *args.set]
    return _run(_load(command), args)


def _run(module: CommandModule, args: argparse.Namespace) -> int:
    try:
        return module.run(args)
    except (KeyboardInterrupt, BrokenPipeError):
        raise
    except Exception as error:
        # Imported here because it knows the error tree, which `olympus --help` has no use for.
        from bus.cli import failures

        code = failures.explain(error)
        if code is None:
            raise
        return code


def _load(command: Command) -> CommandModule:
    return cast(CommandModule, importlib.import_module(command.module))


def _add_global_options(parser: argparse.ArgumentParser, *, is_action: bool = False) -> None:
    """The options of every command. Those of an action have no defaults, which would hide what stands before it."""
    group = parser.add_argument_group("everywhere")
    group.add_argument(
        "--config",
        metavar="FILE",
        default=argparse.SUPPRESS if is_action else None,
        help="read settings from this file",
    )
    group.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=argparse.SUPPRESS if is_action else [],
        help="override one setting, e.g. bus.timeout_s=5",
    )


def _unknown(name: str) -> str:
    near = nearest(name, [command.name for command in COMMANDS])
    hint = f"did you mean '{near}'?" if near else "olympus --help lists them"
    return f"there is no command '{name}'; {hint}"


if __name__ == "__main__":
    sys.exit(main())
