"""Slash commands of a chat: each is the `olympus` sub-command of its name, run here on the chat's own connection.

A few mean more inside a chat, where there is a conversation to act on (`bus.cli.chat.slash_actions`). It draws nothing:
a front end hands it what was typed, and shows what it says.
"""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Iterable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Final, NamedTuple

from bus.cli import app, exits
from bus.cli.action import action_parsers, described_actions
from bus.cli.chat import slash_actions as actions
from bus.cli.chat.slash_actions import At, Here, Outcome, Voice
from bus.cli.chat.slash_known import Known
from bus.cli.chat.slash_words import first_word, is_command, parts, words
from bus.cli.failures import told
from bus.cli.host import Host, run_hosted
from bus.cli.output import one_line, printable
from bus.near_names import nearest
from bus.settings import Settings

if TYPE_CHECKING:
    from bus.cli.chat.conversation import Conversation


class Command(NamedTuple):
    """A slash command.

    sub: the sub-command of `olympus` that it is, "" for one that only makes sense in a chat. whole: what it does with all
    that follows. here: actions that the chat does itself; "" is the one without a name. values: what sort of names
    follow, by action, for completion.
    """

    name: str
    help: str
    sub: str = ""
    whole: Here | None = None
    here: dict[str, Here] = {}
    values: dict[str, str] = {}


COMMANDS: Final = (
    Command(
        "memory",
        "what is kept, and what of it takes part in this chat",
        sub="memory",
        here={
            "": Here("", "what takes part now", actions.memory_state),
            "on": Here("[prompt|context|tools]", "let memory take part", actions.memory_on),
            "off": Here("[prompt|context|tools]", "leave memory out", actions.memory_off),
            "list": Here("", "facts and the newest memories", actions.memory_list),
            "add": Here("TEXT [--tag TAG ...]", "keep a memory, a document or a fact", actions.memory_add),
            "show-context": Here("", "what memory put before the model with the last question", actions.memory_shown),
        },
        values={"on": "part", "off": "part"},
    ),
    Command(
        "model",
        "which model answers; what there is, and what is in memory",
        sub="models",
        here={
            "": Here("", "which model answers, and why", actions.route),
            "use": Here("NAME [--save]", "a model or routing profile that answers from now on", actions.model_use),
        },
        values={
            "use": "chosen",
            **dict.fromkeys(("show", "info", "load", "unload", "keep", "rm", "verify", "quantize"), "model"),
        },
    ),
    Command(
        "compare",
        "one question to several models, side by side",
        sub="compare",
        whole=Here("[QUESTION] MODEL MODEL ...", "", actions.compare),
        values={"": "model"},
    ),
    Command(
        "template",
        "questions with blanks",
        sub="template",
        here={"use": Here("NAME [key=value ...]", "fill it and ask it here", actions.template_use)},
        values=dict.fromkeys(("use", "show", "rm", "check"), "template"),
    ),
    Command(
        "project",
        "what this folder asks for",
        sub="project",
        here={
            "use": Here("[NAME] [--save]", "a profile for this chat, or none", actions.project_use),
            "show": Here("", "what this chat runs with: every value and who said so", actions.project_shown),
        },
        values={"use": "profile"},
    ),
    Command(
        "session",
        "this conversation, and earlier ones",
        sub="session",
        here={
            "": Here("", "which session this is", actions.session_state),
            "new": Here("", "begin anew", actions.session_new),
            "resume": Here("[ID]", "go on with an earlier one, the last without ID", actions.session_resume),
            "bridge": Here("[ABOUT]", "take in what earlier ones say about something", actions.session_bridge),
        },
        values=dict.fromkeys(("resume", "show", "delete"), "session"),
    ),
    Command(
        "feedback",
        "what the last answer was worth; learning takes it up",
        sub="feedback",
        whole=Here("good|bad [WHY], fix TEXT", "", actions.feedback),
        values={"": "verdict"},
    ),
    Command(
        "route",
        "which model answers, or would answer a profile or task, and why",
        sub="route",
        whole=Here("[PROFILE] [--task NAME]", "", actions.route),
        values={"": "routing"},
    ),
    Command(
        "options",
        "temperature and the like, for this chat",
        sub="options",
        whole=Here("[NAME=VALUE ...] [reset [NAME ...]] [--save]", "", actions.options),
        values={"": "option"},
    ),
    Command(
        "tools",
        "which tools the model may use",
        whole=Here("[on|off [NAME ...]]", "", actions.tools),
        values={"": "switch", "on": "tool", "off": "tool"},
    ),
    Command("retry", "ask the last question again, in place of its answer"),
    Command("help", "the commands, or one of them"),
    Command("quit", "end the chat; so does Ctrl-D"),
)

# Other names of commands: what people try first.
_ALIASES: Final = {
    "models": "model",
    "templates": "template",
    "sessions": "session",
    "exit": "quit",
    "?": "help",
    "": "help",
}

# What asks for the help of a sub-command, also where the chat takes all other words itself.
_HELP_FLAGS: Final = ("-h", "--help")


class Slash:
    """The slash commands of one conversation. Made and used in the loop of its client."""

    def __init__(self, conversation: Conversation, settings: Settings) -> None:
        self._conversation = conversation
        self._settings = settings
        self._known = Known(conversation, settings)

    async def run(self, line: str, voice: Voice) -> Outcome:
        """Do what `line` says, and tell what comes next. Whatever is wrong with it is said, and the chat goes on.

        Cancelling this cancels what runs, also on the bus. While it runs the terminal is in its ordinary state: the
        sub-commands print for themselves.
        """
        if not is_command(line):
            return Outcome(question=line)
        try:
            return await self._run(line, voice)
        except Exception as error:  # noqa: BLE001 - one command's failure ends no conversation
            code, lines = told(error)
            if code is None:
                # A fault in the program ends a command, and should end no conversation.
                lines = ["".join(traceback.format_exception(error)), "that is a fault in the program; the chat goes on"]
            voice.say(printable("\n".join(lines)))
            return Outcome()

    def completions(self, before: str) -> list[tuple[str, str]]:
        """Words that may stand in the place of the last one of `before`, each with what it is; none for plain text.

        Names of models, templates and sessions are those known by now; asking begins to look for new ones.
        """
        if not before.startswith("/"):
            return []
        *given, begun = before[1:].split(" ")
        self._known.refresh()
        if not given:
            return [(f"/{each.name}", each.help) for each in COMMANDS if each.name.startswith(begun)]
        command = _find(given[0])
        if command is None:
            return []
        return [(word, about) for word, about in self._words(command, given[1:], begun) if word.startswith(begun)]

    async def _run(self, line: str, voice: Voice) -> Outcome:
        name, text = parts(line)
        command = _find(name)
        if command is None:
            near = nearest(name, [each.name for each in COMMANDS])
            voice.say(f"there is no /{name}; " + (f"did you mean /{near}?" if near else "/help lists the commands"))
            return Outcome()
        if command.name in ("quit", "retry", "help"):
            return self._about_the_chat(command.name, text, voice)
        at = At(self._conversation, self._settings, voice, partial(self._sub, voice))
        action, rest = first_word(text)
        if command.whole is not None and action not in _HELP_FLAGS:
            return await command.whole.act(at, text)
        if action in command.here:
            return await command.here[action].act(at, rest)
        known = [each for each, _ in _actions(command)]
        if known and not action.startswith("-") and action not in known:
            near = nearest(action, known) if action else None
            voice.say(
                "\n".join(_help_of(command))
                if not action
                else f"/{command.name} has no '{one_line(action, 40)}'; "
                + (f"did you mean '{near}'?" if near else f"there are: {', '.join(known)}")
            )
            return Outcome()
        await self._sub(voice, [command.sub, *words(text)])
        return Outcome()

    def _about_the_chat(self, name: str, text: str, voice: Voice) -> Outcome:
        if name == "quit":
            return Outcome(is_quit=True)
        if name == "retry":
            if self._conversation.last_question:
                return Outcome(is_retry=True)
            voice.say("nothing was asked yet")
            return Outcome()
        wanted = text.lstrip("/").lower()
        command = _find(wanted) if wanted else None
        if wanted and command is None:
            near = nearest(wanted, [each.name for each in COMMANDS])
            voice.say(f"there is no /{wanted}" + (f"; did you mean /{near}?" if near else ""))
            return Outcome()
        voice.say("\n".join(_help_of(command) if command else help_lines()))
        return Outcome()

    async def _sub(self, voice: Voice, argv: Sequence[str]) -> int:
        """Run an `olympus` sub-command in this process, in a thread, on the chat's connection."""
        host = Host(
            self._conversation.client,
            self._settings,
            voice.ask,
            model=self._conversation.choices.model,
            session_id=self._conversation.session_id,
            reply_id=self._conversation.last_reply_id,
        )
        return await run_hosted(host, partial(_invoke, argv))

    def _words(self, command: Command, given: list[str], begun: str) -> Iterable[tuple[str, str]]:
        action = next((word for word in given if word), "")
        if begun.startswith("-"):
            return _flags(command, action)
        known = _actions(command)
        if known and not action:
            return known
        if command.name == "help":
            return [(each.name, each.help) for each in COMMANDS]
        return self._known.of(command.values.get(action if known or action in command.values else "", ""))


def help_lines() -> list[str]:
    """What `/help` shows: every command with its arguments."""
    rows = [(f"/{each.name}", each.help) for each in COMMANDS]
    width = max(len(name) for name, _ in rows)
    return [
        *(f"{name:<{width}}  {about}" for name, about in rows),
        "",
        "/help COMMAND tells its actions; each is also an olympus command: olympus memory search tea",
    ]


def _help_of(command: Command) -> list[str]:
    lines = [f"/{command.name}: {command.help}"]
    if command.whole is not None:
        lines.append(f"  /{command.name} {command.whole.usage}")
    rows = [
        (f"/{command.name} {name} {command.here[name].usage if name in command.here else ''}".strip(), about)
        for name, about in _actions(command)
    ]
    width = max((len(usage) for usage, _ in rows), default=0)
    lines += [f"  {usage:<{width}}  {about}" for usage, about in rows]
    return [*lines, *([f"  more of it: /{command.name} --help"] if command.sub else [])]


def _find(name: str) -> Command | None:
    name = _ALIASES.get(name, name)
    return next((each for each in COMMANDS if each.name == name), None)


def _actions(command: Command) -> list[tuple[str, str]]:
    """The actions of a command with their help: the chat's own, then those of the sub-command."""
    if command.whole is not None or not (command.sub or command.here):
        return []
    own = {name: each.help for name, each in command.here.items() if name}
    below = dict(described_actions(_parser(command.sub))) if command.sub else {}
    return list((own | {name: about for name, about in below.items() if name not in own}).items())


def _flags(command: Command, action: str) -> list[tuple[str, str]]:
    """The options that a sub-command, or one action of it, takes."""
    if not command.sub:
        return []
    parser = _parser(command.sub)
    below = {each.prog.rsplit(" ", 1)[-1]: each for each in action_parsers(parser)}
    return [
        (max(each.option_strings, key=len), each.help or "")
        for each in below.get(action, parser)._actions
        if each.option_strings and each.help != argparse.SUPPRESS and each.dest not in ("config", "set")
    ]


@cache
def _parser(name: str) -> argparse.ArgumentParser:
    command = app.find(name)
    assert command is not None
    return app.command_parser(command)


def _invoke(argv: Sequence[str]) -> int:
    """The exit code of a sub-command, which may not end this process."""
    try:
        return app.main(argv)
    except SystemExit as end:
        # argparse has said what is wrong, or has printed the help that was asked for.
        return end.code if isinstance(end.code, int) else exits.OK
    except Exception:  # noqa: BLE001 - a fault in the program ends a sub-command, and should end no conversation
        traceback.print_exc()
        return exits.FAILED
