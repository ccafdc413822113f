"""The chat in a terminal: a prompt with a status bar, answers drawn as they come, Ctrl-C that stops and stays."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator
from typing import Final

from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.data_structures import Size
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.input.typeahead import store_typeahead
from prompt_toolkit.key_binding import KeyPress
from prompt_toolkit.keys import Keys
from prompt_toolkit.output.color_depth import ColorDepth
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.shortcuts import PromptSession

from bus.cli import exits
from bus.cli.chat.conversation import Conversation
from bus.cli.chat.editing import STYLE, PasteInput, Pastes, prompt_session
from bus.cli.chat.events import Event, Notice
from bus.cli.chat.live import LiveAnswer
from bus.cli.chat.rendering import Painter
from bus.cli.chat.slash import Slash
from bus.cli.chat.slash_actions import Outcome
from bus.cli.chat.slash_words import is_command, meant
from bus.cli.chat.status_bar import StatusBar
from bus.cli.chat.wording import Talk, Tone, going_on, greeting, parting
from bus.cli.output import printable
from bus.cli.wrapping import wrap_hanging
from bus.settings import Settings

# A terminal whose size cannot be told.
_SIZE: Final = os.terminal_size((80, 24))

_MARK: Final = FormattedText([("class:mark", "› ")])

_PASTES_MARKED: Final = "\x1b[?2004h"
_PASTES_UNMARKED: Final = "\x1b[?2004l"


class _Screen(Vt100_Output):
    """The screen as prompt_toolkit sees it. Where the cursor stands is never asked: the answer would come among the keys."""

    def get_rows_below_cursor_position(self) -> int:
        """The one row that is there for sure; what needs more makes the terminal scroll."""
        return 1


class Terminal:
    """The front end of one conversation, which has begun already. Lives in the loop of its client, in the main thread."""

    is_plain = False

    def __init__(self, conversation: Conversation, slash: Slash, settings: Settings) -> None:
        self._conversation = conversation
        self._slash = slash
        self._input = PasteInput(sys.stdin)
        self._output = _Screen(
            sys.stdout,
            lambda: Size(rows=_window().lines, columns=_window().columns),
            default_color_depth=ColorDepth.from_env(),
            enable_cpr=False,
        )
        self._painter = Painter(_window().columns)
        self._pastes = Pastes()
        self._bar = StatusBar(conversation, self._redraw_bar)
        self._prompt = prompt_session(
            self._input,
            self._output,
            slash,
            self._pastes,
            settings.path("chat", "history"),
            lambda: FormattedText(self._bar.fragments(_window().columns - 1)),
        )
        self._live: LiveAnswer | None = None
        # What the next prompt begins with.
        self._draft = ""

    async def run(self) -> int:
        """Talk until the person leaves; the exit code. The terminal is as before afterwards, whatever happens."""
        self._conversation.tell = self._tell
        self._greet()
        aside = [asyncio.create_task(self._bar.watch()), asyncio.create_task(self._tell_beginning())]
        try:
            # One raw mode over everything: between a prompt and an answer nothing that is typed is echoed or lost.
            with self._input.raw_mode():
                code = await self._talk()
            self._part()
            return code
        finally:
            self._conversation.tell = None
            for task in aside:
                task.cancel()
            await asyncio.gather(*aside, return_exceptions=True)

    async def _talk(self) -> int:
        is_leaving = False
        while True:
            try:
                line = await self._line()
            except EOFError:
                return exits.OK
            except KeyboardInterrupt:
                if is_leaving:
                    return exits.OK
                is_leaving = True
                self._show([Talk("Ctrl-C again ends the chat, and so does Ctrl-D")])
                continue
            is_leaving = False
            if line.strip() and await self._do(line):
                return exits.OK

    async def _do(self, line: str) -> bool:
        """Answer what was typed; True when the chat is to end."""
        if self._pastes.is_gone(line):
            self._show([Talk("what that label stood for is no longer here: paste it again", Tone.WARNING)])
            self._draft = line
            return False
        text = meant(self._pastes.whole(line))
        if not is_command(text):
            await self._answer(self._conversation.ask(text))
            return False
        outcome = await self._command(text)
        if outcome is None:
            return False
        if outcome.is_retry:
            await self._answer(self._conversation.retry())
        elif outcome.question is not None:
            await self._answer(self._conversation.ask(outcome.question))
        return outcome.is_quit

    async def _line(self) -> str:
        """What the person types. Raises KeyboardInterrupt, EOFError."""
        draft, self._draft = self._draft, ""
        self._write("\n")
        return await self._prompt.prompt_async(_MARK, default=draft)

    async def _answer(self, events: AsyncGenerator[Event, None]) -> None:
        """Draw an answer. Ctrl-C stops it; every other key is kept for the next prompt."""
        self._live = LiveAnswer(self._painter, self._speaker(), self._write, _window)
        ahead: list[KeyPress] = []

        def take_keys() -> None:
            for press in self._input.read_keys():
                if press.key == Keys.ControlC:
                    self._conversation.stop()
                else:
                    ahead.append(press)
            if self._input.closed:
                # The terminal is gone, and the prompt will find that out.
                self._conversation.stop()

        self._write(_PASTES_MARKED)
        try:
            with self._input.attach(take_keys):
                await self._live.run(events)
        finally:
            self._live = None
            self._write(_PASTES_UNMARKED)
            store_typeahead(self._input, ahead)

    def _speaker(self) -> str:
        status = self._bar.status()
        return status.model or status.wanted or "answer"

    async def _command(self, line: str) -> Outcome | None:
        """Run a slash command in the terminal's ordinary state, which sub-commands count on; None when it was stopped."""
        running = asyncio.create_task(self._slash.run(line, self))
        loop = asyncio.get_running_loop()
        with self._input.cooked_mode():
            loop.add_signal_handler(signal.SIGINT, running.cancel)
            try:
                return await running
            except asyncio.CancelledError:
                if not running.cancelled() or _is_cancelled():
                    running.cancel()
                    raise
                self._show([Talk("stopped", Tone.WARNING)])
                return None
            finally:
                loop.remove_signal_handler(signal.SIGINT)

    # What slash commands ask of a front end

    def say(self, text: str) -> None:
        """Show one or more whole lines, which are printable; wide ones go on below, broken at words."""
        self._write("".join(f"{line}\n" for line in wrap_hanging(text, _window().columns)))

    async def ask(self, question: str) -> str:
        """A line that the person types; "" at the end of input. Ctrl-C stops the command that asks."""
        prompt: PromptSession[str] = PromptSession(input=self._input, output=self._output, style=STYLE)
        try:
            return await prompt.prompt_async(FormattedText([("class:mark", f"{printable(question).rstrip()} ")]))
        except EOFError:
            return ""
        except KeyboardInterrupt:
            raise asyncio.CancelledError from None

    # Talk

    def _greet(self) -> None:
        self._show(greeting(self._conversation.choices.project))

    def _part(self) -> None:
        """How to go on another time, where there is something to go on with."""
        if self._conversation.is_kept and self._conversation.messages:
            self._show([parting(self._conversation.session_id)])

    async def _tell_beginning(self) -> None:
        resumed = await self._conversation.ready()
        if resumed is not None:
            self._show_aside(going_on(resumed))

    def _tell(self, text: str) -> None:
        """A line about the conversation that belongs to no answer; it may come at any time."""
        if self._live is not None:
            self._live.take(Notice(text=text))
        else:
            self._show_aside([Talk(f"note: {text}")])

    def _show_aside(self, talk: list[Talk]) -> None:
        """Show lines above the prompt, where there is one."""
        if self._prompt.app.is_running:
            run_in_terminal(lambda: self._show(talk))
        else:
            self._show(talk)

    def _show(self, talk: list[Talk]) -> None:
        self._painter.columns = _window().columns
        self._write("".join(f"{line.text}\n" for each in talk for line in self._painter.talk(each)))

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def _redraw_bar(self) -> None:
        if self._prompt.app.is_running:
            self._prompt.app.invalidate()


def _window() -> os.terminal_size:
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
    except OSError:
        return _SIZE
    # A terminal that nobody has told its size says 0.
    return size if size.columns > 0 and size.lines > 0 else _SIZE


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
