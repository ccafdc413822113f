"""The chat without a terminal's arts: one question of a pipe, or lines on a terminal that knows no more than lines."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import sys
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Final

from bus.cli import exits
from bus.cli.chat.conversation import Conversation
from bus.cli.chat.events import Answered, Away, Back, ContextUsed, Event, Failed, Notice, Stopped, Text
from bus.cli.chat.slash_words import is_command, meant
from bus.cli.chat.wording import Talk, cut_off, going_on, greeting, parting, talk_of
from bus.cli.failures import say
from bus.cli.output import printable, to_json

if TYPE_CHECKING:
    from bus.cli.chat.slash import Slash

_PROMPT: Final = "> "
_CONTINUED: Final = ". "

# Bytes of what is typed that are read at once.
_READ_BYTES: Final = 65_536

# Error codes with an exit code of their own; all others are a request that failed.
_CODES: Final = {"deadline_exceeded": exits.TIMED_OUT}


class Sink:
    """A file that is written in a thread of its own: a reader who takes his time holds up the answer and nothing else.

    The thread is left behind where it waits when the process ends.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting: queue.SimpleQueue[tuple[bytes, Callable[[OSError | None], None]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def write(self, text: str) -> None:
        """Returns once all of it is taken. Raises BrokenPipeError, OSError."""
        loop = asyncio.get_running_loop()
        taken: asyncio.Future[None] = loop.create_future()

        def settle(error: OSError | None) -> None:
            if taken.done():
                return
            if error is None:
                taken.set_result(None)
            else:
                taken.set_exception(error)

        def tell(error: OSError | None) -> None:
            # A loop that is closed belongs to a command that has ended without waiting.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, error)

        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="chat output", daemon=True)
            self._thread.start()
        self._waiting.put((text.encode(errors="replace"), tell))
        await taken

    def _run(self) -> None:
        while True:
            data, tell = self._waiting.get()
            try:
                while data:
                    # Not through sys.stdout: a thread that holds its lock for ever would stop the process from ending.
                    data = data[os.write(self._descriptor, data) :]
            except OSError as error:
                tell(error)
            else:
                tell(None)


class Teller:
    """Answers on stdout, talk on stderr. is_quiet: only what went wrong is said; is_full: also memory and figures.

    is_chat: the person can ask again, and knows slash commands.
    """

    def __init__(
        self, *, is_quiet: bool = False, is_full: bool = False, is_chat: bool = False, sink: Sink | None = None
    ) -> None:
        self._is_chat = is_chat
        self._sink = sink or Sink(sys.stdout.fileno())
        self._is_escaping = sys.stdout.isatty()
        self._is_quiet = is_quiet
        self._is_full = is_full
        self._is_midline = False
        self.failed = ""
        self.answered: Answered | None = None

    async def text(self, text: str) -> None:
        """A piece of the answer."""
        if text:
            self._is_midline = not text.endswith("\n")
            await self._sink.write(printable(text) if self._is_escaping else text)

    async def event(self, event: Event) -> None:
        """Whatever happens, but the text."""
        match event:
            case Answered():
                self.answered = event
            case Failed():
                self.failed = event.code
        if isinstance(event, Answered | Stopped | Failed | Away | Back):
            await self.end_line()
        if not self._is_said(event):
            return
        if isinstance(event, Answered) and not self._is_full:
            say(cut_off(event, "--option max_tokens=..."))
            return
        # What is said after the first line of a failure is advice to somebody who sits in a chat.
        talks = talk_of(event)[:1] if isinstance(event, Failed) and not self._is_chat else talk_of(event)
        for talk in talks:
            say(printable(talk.text))

    def _is_said(self, event: Event) -> bool:
        match event:
            case Failed():
                return True
            case Answered():
                return self._is_full or (not self._is_quiet and bool(cut_off(event)))
            case ContextUsed() | Notice(is_minor=True):
                return self._is_full
        return not self._is_quiet

    async def end_line(self) -> None:
        """End the line that the answer has left open."""
        if self._is_midline:
            await self.text("\n")

    async def whole(self, events: AsyncGenerator[Event, None], *, is_json: bool = False) -> None:
        """Tell everything. is_json: the answer is one JSON document when it is complete, in place of its text."""
        async with contextlib.aclosing(events):
            async for event in events:
                if not isinstance(event, Text):
                    await self.event(event)
                elif not is_json:
                    await self.text(event.text)
        if is_json and self.answered is not None:
            await self.text(to_json(self.answered.generation) + "\n")


async def answer_once(
    events: AsyncGenerator[Event, None], *, is_json: bool = False, is_quiet: bool = False, is_full: bool = False
) -> int:
    """Print the answer to one question and return the exit code. Raises BrokenPipeError when nobody reads it."""
    teller = Teller(is_quiet=is_quiet, is_full=is_full)
    await teller.whole(events, is_json=is_json)
    await teller.end_line()
    return _CODES.get(teller.failed, exits.FAILED) if teller.failed else exits.OK


class Lines:
    """What is typed, line by line; lines that come while nobody waits are kept. For a terminal or a pipe."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._typed = bytearray()
        self._lines: deque[str | None] = deque()
        self._came = asyncio.Event()

    def __enter__(self) -> Lines:
        asyncio.get_running_loop().add_reader(self._descriptor, self._read)
        return self

    def __exit__(self, *error: object) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Leave what is typed to somebody else for a while."""
        asyncio.get_running_loop().remove_reader(self._descriptor)
        try:
            yield
        finally:
            asyncio.get_running_loop().add_reader(self._descriptor, self._read)

    async def next(self) -> str | None:
        """The next line without its end; None at the end of input."""
        while not self._lines:
            self._came.clear()
            await self._came.wait()
        line = self._lines[0]
        if line is not None:
            self._lines.popleft()
        return line

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except OSError:
            # The terminal is gone.
            data = b""
        self._typed += data
        while (at := self._typed.find(b"\n")) >= 0:
            self._lines.append(self._typed[:at].decode(errors="replace"))
            del self._typed[: at + 1]
        if not data:
            if self._typed:
                self._lines.append(self._typed.decode(errors="replace"))
            self._lines.append(None)
            asyncio.get_running_loop().remove_reader(self._descriptor)
        self._came.set()


class PlainChat:
    """A conversation in lines. Ctrl-C stops an answer or a command; twice in a row at the prompt it ends the chat."""

    is_plain = True

    def __init__(self, conversation: Conversation, slash: Slash, *, is_quiet: bool = False) -> None:
        self._conversation = conversation
        self._slash = slash
        self._is_quiet = is_quiet
        self._lines = Lines(sys.stdin.fileno())
        self._sink = Sink(sys.stdout.fileno())
        self._running: asyncio.Task[Any] | None = None
        self._interrupts = 0
        self._left = asyncio.Event()

    async def run(self) -> int:
        """Until the end of input, /quit, or Ctrl-C twice."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._interrupted)
        self._conversation.tell = lambda text: say(printable(text))
        self._talk(greeting(self._conversation.choices.project))
        resuming = loop.create_task(self._tell_resumed(), name="chat greeting")
        try:
            with self._lines:
                while (question := await self._question()) is not None:
                    if not question.strip():
                        continue
                    if await self._do(self._handled(question)):
                        break
                else:
                    # Nobody pressed Enter behind the last prompt.
                    self._show("\n")
            if self._conversation.is_kept and self._conversation.messages:
                self._talk([parting(self._conversation.session_id)])
            return exits.OK
        finally:
            resuming.cancel()
            self._conversation.tell = None
            loop.remove_signal_handler(signal.SIGINT)

    # Voice of slash commands

    def say(self, text: str) -> None:
        """Lines of a slash command."""
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    async def ask(self, question: str) -> str:
        """What the person types as answer to a question of a command."""
        self._show(question)
        with self._lines:
            return await self._lines.next() or ""

    # What happens

    async def _question(self) -> str | None:
        """What is typed next: one line, or several where they end with a backslash; None at the end."""
        self._show(_PROMPT)
        line = await self._next_line()
        lines = [line]
        while line is not None and line.endswith("\\"):
            self._show(_CONTINUED)
            line = await self._next_line()
            lines.append(line)
        self._interrupts = 0
        typed = [each for each in lines if each is not None]
        if not typed:
            return None
        return "\n".join([*(each.removesuffix("\\") for each in typed[:-1]), typed[-1]])

    async def _next_line(self) -> str | None:
        """The next line, None also where the person leaves with Ctrl-C."""
        coming = asyncio.ensure_future(self._lines.next())
        leaving = asyncio.ensure_future(self._left.wait())
        try:
            await asyncio.wait({coming, leaving}, return_when=asyncio.FIRST_COMPLETED)
            return coming.result() if coming.done() and not self._left.is_set() else None
        finally:
            coming.cancel()
            leaving.cancel()

    async def _handled(self, question: str) -> bool:
        """Ask it, or do what it says as a slash command. True: the chat is over."""
        question = meant(question)
        if not is_command(question):
            await self._answer(self._conversation.ask(question))
            return False
        # The keyboard is the command's meanwhile: it may read keys, or start an editor.
        with self._lines.released():
            outcome = await self._slash.run(question, self)
        if outcome.question is not None:
            await self._answer(self._conversation.ask(outcome.question))
        elif outcome.is_retry:
            await self._answer(self._conversation.retry())
        return outcome.is_quit

    async def _answer(self, events: AsyncGenerator[Event, None]) -> None:
        teller = Teller(is_quiet=self._is_quiet, is_full=not self._is_quiet, is_chat=True, sink=self._sink)
        await teller.whole(events)
        await teller.end_line()

    async def _do(self, work: Coroutine[Any, Any, bool]) -> bool:
        """The result of `work`, which Ctrl-C ends; False then."""
        self._running = asyncio.ensure_future(work)
        try:
            return bool(await self._running)
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            return False
        finally:
            self._running.cancel()
            self._running = None

    def _talk(self, talks: list[Talk]) -> None:
        if not self._is_quiet:
            for talk in talks:
                say(printable(talk.text))

    async def _tell_resumed(self) -> None:
        resumed = await self._conversation.ready()
        if resumed is not None:
            self._talk(going_on(resumed))

    def _interrupted(self) -> None:
        if self._conversation.is_answering:
            self._conversation.stop()
        elif self._running is not None:
            self._running.cancel()
        elif self._interrupts:
            self._left.set()
        else:
            self._interrupts += 1
            self._show("\n")
            say("Ctrl-C again, or Ctrl-D, ends the chat")
            self._show(_PROMPT)

    def _show(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()
