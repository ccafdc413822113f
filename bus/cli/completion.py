"""`olympus completion`: a completion script for bash, zsh or fish, generated from the commands' own parsers."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from typing import Final, NamedTuple

from bus.cli import clone, exits
from bus.cli.action import action_parsers
from bus.cli.output import write_line
from bus.cli.worker import known_workers
from bus.settings import every_key
from schemas import catalog, subjects

HELP = "Print a script that completes commands, options, subjects and settings in your shell."

EXAMPLES = """\
examples:
  source <(olympus completion bash)
  olympus completion bash > ~/.local/share/bash-completion/completions/olympus
  olympus completion zsh > "${fpath[1]}/_olympus"
  olympus completion fish > ~/.config/fish/completions/olympus.fish
"""

_FILE_OPTIONS: Final = ("--config",)


class Option(NamedTuple):
    """One option: its longest name, its help, whether a value follows, and what values are known."""

    name: str
    help: str
    takes_value: bool
    choices: tuple[str, ...]


class Words(NamedTuple):
    """What may follow one command: options, and words that are no options."""

    command: str
    help: str
    options: tuple[Option, ...]
    words: tuple[str, ...]


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `olympus completion`."""
    parser.epilog = EXAMPLES
    parser.add_argument("shell", choices=tuple(_SHELLS), help="which shell the script is for")


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    write_line(_SHELLS[args.shell](list(vocabulary())).rstrip("\n"))
    return exits.OK


def vocabulary() -> Iterator[Words]:
    """Every command with what may follow it, read from its parser and from the catalogue."""
    # Imported here: app finds this module through its table, so the two would otherwise import each other.
    from bus.cli import app

    known = _known_words()
    for command in app.COMMANDS:
        parser = app.command_parser(command)
        options: dict[str, Option] = {}
        words = list(known.get(command.name, ()))
        for below in (parser, *action_parsers(parser)):
            for argument in below._actions:
                choices = tuple(map(str, argument.choices or ()))
                if not argument.option_strings:
                    words += choices
                elif argument.help != argparse.SUPPRESS:
                    option = _option(
                        argument, choices or (known["tap"] if "--ignore" in argument.option_strings else ())
                    )
                    options[option.name] = _merged(options.get(option.name, option), option)
        yield Words(command.name, command.help, tuple(options.values()), tuple(words))


def _option(argument: argparse.Action, choices: tuple[str, ...]) -> Option:
    name = max(argument.option_strings, key=len)
    return Option(name, argument.help or "", argument.nargs != 0, choices)


def _merged(first: Option, second: Option) -> Option:
    """An option that several actions have, each with values of its own."""
    return first._replace(choices=tuple(dict.fromkeys((*first.choices, *second.choices))))


def _event_patterns() -> tuple[str, ...]:
    patterns = {event.pattern for event in catalog.EVENTS}
    families = {f"{operation.family}.>" for operation in catalog.OPERATIONS.values()}
    return tuple(sorted(patterns | families | {"error.>"}))


def _known_words() -> dict[str, tuple[str, ...]]:
    """What commands take beside their options, where no parser says it."""
    return {
        "req": tuple(catalog.OPERATIONS),
        "tap": _event_patterns(),
        "pub": tuple(event.pattern for event in catalog.EVENTS if not subjects.is_pattern(event.pattern)),
        "worker": tuple(known_workers()),
        "bench": tuple(clone.benches()),
    }


def bash(commands: list[Words]) -> str:
    """The script for bash 3.2 and later."""
    cases = "\n".join(f"        {each.command}) words={_quoted(each)} ;;" for each in commands)
    values = "\n".join(
        f"        {each.command}:{option.name}) words={shlex.quote(' '.join(option.choices))} ;;"
        for each in commands
        for option in each.options
        if option.takes_value and option.name not in ("--set", *_FILE_OPTIONS)
    )
    return f"""\
# Completion of the olympus command for bash.
_olympus() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} command="" words="" word index
    for ((index = 1; index < COMP_CWORD; index++)); do
        case ${{COMP_WORDS[index]}} in
            --config|--set|=) ((index++)) ;;
            -*) ;;
            *) command=${{COMP_WORDS[index]}}; break ;;
        esac
    done
    COMPREPLY=()
    case $command:$previous in
        *:--config) while IFS= read -r word; do COMPREPLY+=("$word"); done < <(compgen -f -- "$current"); return ;;
        *:--set) compopt -o nospace 2>/dev/null; words={shlex.quote(_settings())} ;;
{values}
        :*) words={shlex.quote(" ".join((*(each.command for each in commands), "--config", "--set", "--help")))} ;;
        *) case $command in
{_indent(cases)}
        esac ;;
    esac
    while IFS= read -r word; do
        case $word in
            *[\\>\\*]*) case $current in \\'*|\\"*) ;; *) word=$(printf '%q' "$word") ;; esac ;;
        esac
        COMPREPLY+=("$word")
    done < <(compgen -W "$words" -- "$current")
}}
complete -o default -F _olympus olympus
"""


def zsh(commands: list[Words]) -> str:
    """The script for zsh; it works as an autoloaded file and when sourced."""
    described = "\n".join(f"        {shlex.quote(f'{each.command}:{each.help}')}" for each in commands)
    cases = "\n".join(f"        {each.command}) compadd -- {_zsh_words(each)} ;;" for each in commands)
    values = "\n".join(
        f"        {each.command}:{option.name}) compadd -- {_zsh_list(option.choices)}; return ;;"
        for each in commands
        for option in each.options
        if option.takes_value and option.name not in ("--set", *_FILE_OPTIONS)
    )
    return f"""\
#compdef olympus
# Completion of the olympus command for zsh.
_olympus() {{
    local command="" previous=${{words[CURRENT-1]}} index
    local -a commands
    commands=(
{described}
    )
    for ((index = 2; index < CURRENT; index++)); do
        case ${{words[index]}} in
            --config|--set) ((index++)) ;;
            -*) ;;
            *) command=${{words[index]}}; break ;;
        esac
    done
    case $command:$previous in
        *:--config) _files; return ;;
        *:--set) compadd -S '' -- {_settings()}; return ;;
{values}
    esac
    case $command in
        "") _describe command commands; compadd -- --config --set --help ;;
{cases}
    esac
}}
if [ "$funcstack[1]" = "_olympus" ]; then
    _olympus "$@"
else
    compdef _olympus olympus
fi
"""


def fish(commands: list[Words]) -> str:
    """The script for fish."""
    names = " ".join(each.command for each in commands)
    lines = [
        "# Completion of the olympus command for fish.",
        "complete -c olympus -f",
        "complete -c olympus -l config -r -F -d 'read settings from this file'",
        f"complete -c olympus -l set -x -a {_fish_quoted(_settings())} -d 'override one setting'",
    ]
    for each in commands:
        lines.append(
            f"complete -c olympus -n {_fish_quoted(f'not __fish_seen_subcommand_from {names}')}"
            f" -a {each.command} -d {_fish_quoted(each.help)}"
        )
        seen = _fish_quoted(f"__fish_seen_subcommand_from {each.command}")
        if each.words:
            lines.append(f"complete -c olympus -n {seen} -a {_fish_quoted(' '.join(map(_fish_word, each.words)))}")
        for option in each.options:
            if option.name in ("--set", *_FILE_OPTIONS):
                continue
            value = f" -x -a {_fish_quoted(' '.join(option.choices))}" if option.takes_value else ""
            lines.append(f"complete -c olympus -n {seen} -l {option.name[2:]}{value} -d {_fish_quoted(option.help)}")
    return "\n".join(lines)


_SHELLS: Final = {"bash": bash, "zsh": zsh, "fish": fish}


def _quoted(each: Words) -> str:
    return shlex.quote(" ".join((*each.words, *(option.name for option in each.options))))


def _zsh_words(each: Words) -> str:
    return _zsh_list((*each.words, *(option.name for option in each.options)))


def _zsh_list(words: tuple[str, ...]) -> str:
    return " ".join(map(shlex.quote, words))


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _fish_word(word: str) -> str:
    """A word of an `-a` list, which fish expands once more."""
    return word.replace("*", "\\*").replace(">", "\\>")


def _settings() -> str:
    return " ".join(f"{key.name}=" for key in every_key())


def _indent(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
