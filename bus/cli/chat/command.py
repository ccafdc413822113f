"""`olympus chat`: talk with a model in a terminal, or ask it one question in a pipe."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from bus.cli.arguments import settings_from
from bus.cli.chat.choices import Choices, choose, configure_choices, settle
from bus.cli.chat.conversation import Conversation
from bus.cli.chat.generating import ended
from bus.cli.connection import check_listening
from bus.cli.failures import UsageError, say
from bus.cli.hosting import hosted
from bus.cli.output import printable, size
from bus.cli.session import SignIn
from bus.client import Client
from bus.settings import Settings

if TYPE_CHECKING:
    from bus.templates import Rendered

HELP = "Talk with a model, which knows this project and what memory holds; a pipe gets the answer to one question."

EXAMPLES = """\
examples:
  olympus chat
  olympus chat 'What is a lease?'
  git diff | olympus chat 'Review this.'
  olympus chat --resume
  olympus chat --session notes 'And what was the second point?'
  olympus chat --model fast --option temperature=0 --no-memory --json 'Name a colour.'
  git diff | olympus chat --template review --var diff=-

In a chat, /help lists the commands, Ctrl-C stops an answer, Ctrl-D ends the chat; docs/chat.md tells more.
"""

# A broker on the same machine accepts at once and one in the same network within milliseconds. Seconds.
_CONNECT_S: Final = 3.0

# After so long without a byte on stdin the person is told what is waited for, seconds.
_PATIENCE_S: Final = 2.0

# Characters of a session's name (schemas.bodies.model.Sampling.conversation_id).
_SESSION_CHARACTERS: Final = 256

_READ_BYTES: Final = 1 << 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `olympus chat`."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "question", nargs="*", metavar="QUESTION", help="ask this and end; what comes on stdin is added below it"
    )
    session = parser.add_mutually_exclusive_group()
    session.add_argument("--resume", action="store_true", help="go on with the last session of this project")
    session.add_argument("--session", metavar="ID", help="go on with this session, or begin it under this name")
    parser.add_argument("--template", metavar="NAME", help="ask this template (docs/templates.md)")
    parser.add_argument(
        "--var",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a value of the template; @FILE and - (stdin) too",
    )
    configure_choices(parser)
    shape = parser.add_argument_group("how it is shown")
    shape.add_argument("--plain", action="store_true", help="lines only: no colours, no status bar, no editing")
    shape.add_argument("--json", action="store_true", help="the answer to one question as one JSON document")
    talk = shape.add_mutually_exclusive_group()
    talk.add_argument("-q", "--quiet", action="store_true", help="on stderr only what went wrong")
    talk.add_argument("-v", "--verbose", action="store_true", help="on stderr also memory and figures")


def run(args: argparse.Namespace) -> int:
    """Chat until the person leaves, or answer one question."""
    if hosted() is not None:
        raise UsageError("this is a chat already")
    settings = settings_from(args)
    _check(args)
    choices = choose(settings, args, Path.cwd())
    question, choices = _question(args, settings, choices)
    if question is None and args.json:
        raise UsageError("--json needs a question, as an argument or on stdin")
    ended_by: list[int] = []
    try:
        return asyncio.run(_chat(args, settings, choices, question, ended_by))
    except asyncio.CancelledError:
        # What came is kept; now the process ends as the signal wants it.
        if ended_by:
            signal.signal(ended_by[0], signal.SIG_DFL)
            os.kill(os.getpid(), ended_by[0])
        raise


def _check(args: argparse.Namespace) -> None:
    if args.session is not None and not 1 <= len(args.session) <= _SESSION_CHARACTERS:
        raise UsageError(f"--session has {len(args.session)} characters, allowed are 1 to {_SESSION_CHARACTERS}")
    if args.var and args.template is None:
        raise UsageError("--var gives a value to a template; --template NAME says which")


class Question(NamedTuple):
    """What a person asks, and what comes along from elsewhere."""

    text: str
    attached: str


# What is asked ------------------------------------------------------------------------------------------------------


def _question(args: argparse.Namespace, settings: Settings, choices: Choices) -> tuple[Question | None, Choices]:
    """What to ask, None for a conversation; and the choices, as a template may change them."""
    words = " ".join(args.question)
    limit_bytes = settings.bus.max_body_bytes
    is_piped = not sys.stdin.isatty()
    if args.template is not None:
        rendered = _rendered(args, settings, choices, is_piped, limit_bytes)
        is_read = any(value.partition("=")[2] == "-" for value in args.var)
        piped = _read_stdin(limit_bytes) if is_piped and not is_read else ""
        text = "\n\n".join(part for part in (rendered.prompt, words) if part.strip())
        return Question(text, piped), _as_template_asks(choices, rendered, args.template)
    piped = _read_stdin(limit_bytes) if is_piped else ""
    if is_piped and not words and not piped.strip():
        raise UsageError("nothing was asked: stdin is empty; 'olympus chat QUESTION' asks")
    if words:
        return Question(words, piped), choices
    return Question(piped, "") if is_piped else None, choices


def _rendered(
    args: argparse.Namespace, settings: Settings, choices: Choices, is_piped: bool, limit_bytes: int
) -> Rendered:
    from bus.cli.chat.template_use import filled, values_of
    from bus.cli.template import ask_here
    from bus.templates import TemplateError, shelf_for

    shelf = shelf_for(settings, choices.project)
    read = (lambda: _read_stdin(limit_bytes).encode()) if is_piped else None
    try:
        template = shelf.get(args.template)
        if notice := template.notice():
            say(printable(notice))
        values = values_of(args.var, read)
        rendered = template.render(values) if is_piped else asyncio.run(filled(template, values, ask_here))
    except TemplateError as error:
        raise UsageError(printable(str(error))) from error
    if rendered is None:
        raise UsageError("given up: nothing was asked")
    return rendered


def _as_template_asks(choices: Choices, rendered: Rendered, name: str) -> Choices:
    """What the template says counts more than the project and the preferences, and less than the flags."""
    said = {
        "model": rendered.model,
        "system": rendered.system,
    }
    changes: dict[str, Any] = {
        field: value
        for field, value in said.items()
        if value is not None and not choices.origins.get(field, "").startswith("flag")
    }
    options = {
        option: value
        for option, value in rendered.options.items()
        if not choices.origins.get(f"options.{option}", "").startswith("flag")
    }
    origins = dict.fromkeys([*changes, *(f"options.{option}" for option in options)], f"template {name}")
    return msgspec.structs.replace(
        choices, **changes, options={**choices.options, **options}, origins={**choices.origins, **origins}
    )


def _read_stdin(limit_bytes: int) -> str:
    """All of stdin as text; bytes that are no UTF-8 become U+FFFD, and that is said. Raises UsageError for too much."""
    descriptor = sys.stdin.fileno()
    if not select.select([descriptor], [], [], _PATIENCE_S)[0]:
        say("reading stdin, which has not ended; Ctrl-D ends it, '< /dev/null' goes without")
    data = bytearray()
    while part := os.read(descriptor, _READ_BYTES):
        data += part
        if len(data) > limit_bytes:
            raise UsageError(
                f"stdin holds more than {size(limit_bytes)}, which is all that a request may hold (bus.max_body_bytes)"
            )
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        say(f"stdin is not UTF-8 text (byte {error.start}); what is none is shown to the model as U+FFFD")
        return data.decode(errors="replace")


# The chat -----------------------------------------------------------------------------------------------------------


async def _chat(
    args: argparse.Namespace, settings: Settings, choices: Choices, question: Question | None, ended_by: list[int]
) -> int:
    await check_listening(settings)
    sign_in = SignIn(settings)
    await sign_in.begin()
    async with Client(settings, name="olympus", token=sign_in.token) as client:
        await client.connect(_CONNECT_S)
        keeping = asyncio.get_running_loop().create_task(sign_in.keep(), name="sign-in")
        conversation = Conversation(client, settings, choices, settle=settle, is_kept=not args.no_memory)
        conversation.begin(resume=args.resume, session_id=args.session, warms=question is None)
        try:
            return await _front_end(args, settings, conversation, question, ended_by)
        finally:
            await ended(keeping)
            for line in await conversation.close():
                say(printable(line))


async def _front_end(
    args: argparse.Namespace,
    settings: Settings,
    conversation: Conversation,
    question: Question | None,
    ended_by: list[int],
) -> int:
    # Each is imported only where it is used: the terminal's libraries take longer to import than all the rest.
    if question is not None:
        from bus.cli.chat.plain import answer_once

        with _ending_on_signals(ended_by):
            events = conversation.ask(question.text, attached=question.attached)
            return await answer_once(events, is_json=args.json, is_quiet=args.quiet, is_full=args.verbose)
    from bus.cli.chat.slash import Slash

    slash = Slash(conversation, settings)
    if args.plain or not is_full_terminal():
        from bus.cli.chat.plain import PlainChat

        with _ending_on_signals(ended_by):
            return await PlainChat(conversation, slash, is_quiet=args.quiet).run()
    from bus.cli.chat.terminal import Terminal

    with _ending_on_signals(ended_by):
        return await Terminal(conversation, slash, settings).run()


def is_full_terminal() -> bool:
    """True where keys can be read and the cursor moved."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


@contextlib.contextmanager
def _ending_on_signals(ended_by: list[int]) -> Iterator[None]:
    """A terminal that is closed, or SIGTERM, ends the chat in good order: what came of an answer is kept first."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def end(number: int) -> None:
        ended_by.append(number)
        if task is not None:
            task.cancel()

    numbers = (signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, end, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
