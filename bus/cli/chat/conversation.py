"""One conversation with a model: questions, answers with tools, memory before each question, a session behind them.

Front ends drive it through `Conversation` and draw the events of `bus.cli.chat.events`; it prints and reads nothing.

What the model is shown stays the same from question to question, so that it reads only what is new: the system message
changes with what it is made of and not otherwise, and what memory found for a question stays where it was sent.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Any, Final

import msgspec

from bus.cli.chat.choices import Choices
from bus.cli.chat.events import (
    Answered,
    ContextUsed,
    Event,
    Failed,
    Notice,
    Stopped,
    ToolAnswered,
    ToolCalled,
)
from bus.cli.chat.generating import LIST_S, Generating, ended
from bus.cli.chat.memory_loop import Found, MemoryLoop, block_of
from bus.cli.chat.messages import AGAIN, clean, messages_of, outgrown, reply_id_of
from bus.cli.chat.session_keeper import Resumed, SessionKeeper
from bus.cli.chat.tools import Toolbox
from bus.client import Client
from bus.settings import Settings
from schemas.bodies.model import ChatMessage, Generation, ModelInfo, ModelList, ModelPreload, Models, Tool, ToolCall
from schemas.bodies.model_trials import Route, Routed
from schemas.bodies.sessions import Bridge, Session
from schemas.errors import BusError, NotFound, TooLarge

# A model that is in memory sooner than that needs no words about it, seconds.
_LOADING_S: Final = 1.0

# Rounds of tool calls for one question; the next answer has to do without.
ROUNDS_MAX: Final = 8

# Calls of one round that are done; a model that asks for more has lost its way.
_CALLS_MAX: Final = 16

# Messages of one request (schemas.bodies.model.Chat), less what a question may add.
_MESSAGES_MAX: Final = 3_900

# Of a conversation that has outgrown its window, the part that is still sent: cut to the brim, each further question
# would cut again, and the model would read everything anew each time.
_KEPT_PART: Final = 0.5

# Of the answer of `memory.session.bridge` on request, tokens.
_BRIDGE_TOKENS: Final = 512

Settle = Callable[[Choices, Client], Awaitable[Choices]]


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Of the last answer. context_used: tokens that prompt and answer take together; context_limit: the model's window."""

    model: str = ""
    tokens_per_s: float | None = None
    first_token_s: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    context_used: int = 0
    context_limit: int | None = None


class _Answer:
    """An answer in the making. began_at: messages before it. text: all that came, over every round of tools.

    is_again: it takes the place of the last one.
    """

    def __init__(self, question: str, attached: str, *, is_again: bool = False) -> None:
        self.question = question
        self.attached = attached
        self.is_again = is_again
        self.began_at = 0
        self.rounds: list[str] = []
        self.pieces: list[str] = []
        self.called: list[str] = []

    @property
    def asked(self) -> str:
        """All that the model is asked, as it is kept."""
        return "\n\n".join(part for part in (self.question, self.attached) if part)

    @property
    def text(self) -> str:
        return "".join([*self.rounds, *self.pieces])

    def kept_with(self, metadata: dict[str, Any]) -> dict[str, Any]:
        """`metadata` of its turn, and whether it stands for the answer before."""
        return {**metadata, AGAIN: True} if self.is_again else metadata

    def end_round(self) -> None:
        """What the model writes after its tools begins on a new line."""
        text = "".join(self.pieces)
        self.rounds.append(f"{text}\n\n" if text.strip() else "")
        self.pieces = []


class Conversation:
    """A conversation; every method belongs to the loop of its client.

    settle: checks choices against what there is, and changes them. is_kept False leaves no session in memory.
    tell: takes lines about the conversation that belong to no answer; without, they come with the next one.
    """

    def __init__(
        self,
        client: Client,
        settings: Settings,
        choices: Choices,
        *,
        settle: Settle | None = None,
        is_kept: bool = True,
    ) -> None:
        self.client = client
        self.settings = settings
        self.choices: Choices
        self.messages: list[ChatMessage] = []
        self.system = ""
        self.figures = Figures()
        self.last_question = ""
        self.last_reply_id = ""
        self.last_context: ContextUsed | None = None
        # What memory put into the system message and before the last question, word for word.
        self.last_addition = ""
        self.last_block = ""
        self.tell: Callable[[str], None] | None = None
        self._settle = settle
        self._untold: list[str] = []
        self._told_once: set[str] = set()
        self._staged = ""
        self._last_attached = ""
        # Messages at the end that are the last question with its answer.
        self._last_length = 0
        self._memory = MemoryLoop(client)
        self._generating = Generating(client, self._emit)
        self._keeper = SessionKeeper(client, tell=self._notice, is_kept=is_kept)
        self._take(choices)
        self._beginning: asyncio.Task[Resumed | None] | None = None
        self._warming: asyncio.Task[None] | None = None
        self._answering: asyncio.Task[None] | None = None
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()

    # What it is

    @property
    def session_id(self) -> str:
        """Of the session that it is kept in; also what the model knows the conversation by."""
        return self._keeper.session_id

    @property
    def is_kept(self) -> bool:
        """False where no session is kept of it."""
        return self._keeper.is_kept

    @property
    def is_answering(self) -> bool:
        """True between the beginning and the end of `ask`."""
        return self._answering is not None

    @property
    def is_connected(self) -> bool:
        """False while the bus is away."""
        return self.client.is_connected

    def choose(self, **changes: Any) -> None:
        """Change choices, from the next question on. Raises TypeError for a field that there is not."""
        self._take(msgspec.structs.replace(self.choices, **changes))

    def _take(self, choices: Choices) -> None:
        root = choices.project.root if choices.project is not None else None
        self.choices = choices
        self._toolbox = Toolbox(self.client, root, [self.settings.home_path])
        self._keeper.belongs_to(choices.user, clean(str(root or "")))

    # Beginning, and going on

    def begin(self, *, resume: bool = False, session_id: str | None = None, warms: bool = False) -> None:
        """Settle the choices and take up the session in the background.

        session_id: this one; resume: the last one. warms: have model and memory get ready while the person still types.
        """
        loop = asyncio.get_running_loop()
        self._beginning = loop.create_task(self._begin(resume, session_id), name="chat begins")
        if warms:
            self._warming = loop.create_task(self._warm(), name="chat warms up")

    async def ready(self) -> Resumed | None:
        """Wait for `begin`; the session that the conversation goes on with, None for a new one."""
        return await asyncio.shield(self._beginning) if self._beginning is not None else None

    async def resume(self, session_id: str) -> Resumed:
        """Go on with another session. Raises NotFound, BusError."""
        resumed = await self._keeper.resume(session_id)
        self._forget()
        self.messages = messages_of(resumed.turns)
        if self.messages:
            self._last_length = 2
            self.last_question = self.messages[-2].content
            self.last_reply_id = reply_id_of(resumed.turns)
        return resumed

    def new_session(self, session_id: str | None = None) -> str:
        """Begin anew; the id of the new session."""
        self._forget()
        return self._keeper.begin(session_id)

    async def sessions(self, limit: int = 20) -> list[Session]:
        """Chats of this user, those of this project first. Raises BusError."""
        return await self._keeper.sessions(limit)

    async def bridge(self, query: str | None = None) -> Bridge:
        """What earlier sessions hold; it goes in with the next question. Raises BusError."""
        await self._keeper.ensure()
        found = await self._memory.bridge(self.session_id, query, _BRIDGE_TOKENS)
        self._staged = found.text
        return found

    async def close(self, timeout_s: float = 2.0) -> list[str]:
        """End what runs and keep what is not kept yet, `timeout_s` at most; lines about what could not be."""
        for task in (self._answering, self._beginning, self._warming):
            if task is not None:
                await ended(task)
        return await self._keeper.close(timeout_s)

    async def _begin(self, resume: bool, session_id: str | None) -> Resumed | None:
        if self._settle is not None:
            try:
                self._take(await self._settle(self.choices, self.client))
            except BusError as error:
                self._notice(f"the models could not be looked at: {error.message}")
        for note in self.choices.notes:
            self._notice(note)
        if resume or session_id is not None:
            return await self._take_up(session_id)
        return None

    async def _warm(self) -> None:
        """Whatever is wrong with this, the first question will tell."""
        await self.ready()
        with contextlib.suppress(BusError):
            info = await self._model()
            if info is not None and info.state == "available":
                await self.client.request("model.preload", ModelPreload(models=[info.name]), timeout_s=LIST_S)
        if self.choices.memory_context:
            await self._memory.warm()

    async def _take_up(self, session_id: str | None) -> Resumed | None:
        """The session that was asked for, or the last one. That there is none is told, and a new one begins."""
        try:
            wanted = session_id or await self._keeper.last()
            if wanted is None:
                self._notice("there is no earlier session here; this is a new one")
                return None
            return await self.resume(wanted)
        except NotFound:
            self._notice(f"there is no session {session_id!r} yet; it begins now")
            self.new_session(session_id)
        except BusError as error:
            self._notice(f"the session could not be read ({error.message}); this is a new one")
        return None

    def _forget(self) -> None:
        self.messages = []
        self.last_question = self.last_reply_id = self._last_attached = ""
        self.last_context = None
        self.last_addition = self.last_block = ""
        self._staged = ""
        self._last_length = 0

    # Asking

    async def ask(self, text: str, *, attached: str = "") -> AsyncGenerator[Event, None]:
        """The answer to a question as it comes; the last event is Answered, Stopped or Failed.

        attached: what the question is about, put below it; memory is not searched for it.
        Leaving the iteration early, or being cancelled in it, cancels the generation and keeps what came of it.
        Raises RuntimeError while another answer is under way.
        """
        async with contextlib.aclosing(self._asked(clean(text), clean(attached), is_retry=False)) as events:
            async for event in events:
                yield event

    async def retry(self) -> AsyncGenerator[Event, None]:
        """The last question once more, in place of its answer. Raises ValueError where there is none."""
        if not self.last_question:
            raise ValueError("nothing was asked yet")
        question, attached = self.last_question, self._last_attached
        async with contextlib.aclosing(self._asked(question, attached, is_retry=True)) as events:
            async for event in events:
                yield event

    def stop(self) -> None:
        """End the answer that is under way; nothing happens without one."""
        if self._answering is not None:
            self._answering.cancel()

    async def _asked(self, text: str, attached: str, *, is_retry: bool) -> AsyncGenerator[Event, None]:
        if self._answering is not None:
            raise RuntimeError("an answer is under way already")
        self._events = asyncio.Queue()
        run = self._run(_Answer(text, attached, is_again=is_retry))
        task = self._answering = asyncio.get_running_loop().create_task(run, name="answer")
        task.add_done_callback(lambda _: self._events.put_nowait(None))
        try:
            while (event := await self._events.get()) is not None:
                yield event
            if task.cancelled():
                # Before it had begun; else it says so itself.
                yield Stopped(text="")
            else:
                task.result()
        finally:
            self._answering = None
            await ended(task)

    async def _run(self, answer: _Answer) -> None:
        """Answer one question, and leave the conversation in order however that ends."""
        try:
            await self.ready()
            if answer.is_again and self._last_length:
                del self.messages[-self._last_length :]
            # Now, because `ready` may have taken up a session.
            answer.began_at = len(self.messages)
            self.last_question, self._last_attached, self._last_length = answer.question, answer.attached, 0
            generation = await self._answer(answer)
        except asyncio.CancelledError:
            self._cut_off(answer, "stopped")
            self._emit(Stopped(text=answer.text))
        except BusError as error:
            self._cut_off(answer, error.code)
            self._emit(Failed(code=error.code, message=error.message))
        else:
            self._end(answer, generation)
            limit = self.figures.context_limit or 0
            window = limit if self.figures.context_used >= limit else 0
            self._emit(Answered(generation=msgspec.structs.replace(generation, text=answer.text), window=window))

    async def _answer(self, answer: _Answer) -> Generation:
        """Raises BusError."""
        if not answer.is_again:
            self._keeper.keep("user", answer.asked, {}, model=self.choices.model or "")
        self._tell_untold()
        info = await self._model()
        # The look at memory and the tools' descriptions take the time of the slowest, not of all.
        found, tools = await asyncio.gather(self._context(answer.question, info), self._tools(info))
        content = f"{found.block}\n\n{answer.asked}" if found.block else answer.asked
        self.messages.append(ChatMessage(role="user", content=content))
        with self._loading_told(answer, info):
            return await self._rounds(answer, tools, info)

    @contextlib.contextmanager
    def _loading_told(self, answer: _Answer, info: ModelInfo | None) -> Iterator[None]:
        """Say that the model is being loaded, where that takes so long that the person wonders."""

        def tell(name: str) -> None:
            if not answer.text:
                self._emit(Notice(text=f"{name} is being loaded"))

        telling = None
        if info is not None and info.state == "available":
            telling = asyncio.get_running_loop().call_later(_LOADING_S, tell, info.name)
        try:
            yield
        finally:
            if telling is not None:
                telling.cancel()

    async def _rounds(self, answer: _Answer, tools: list[Tool], info: ModelInfo | None) -> Generation:
        """The model's answer, after as many rounds of tools as it wants. Raises BusError."""
        for number in range(ROUNDS_MAX + 1):
            is_last = number == ROUNDS_MAX
            if is_last:
                self._emit(Notice(text=f"{ROUNDS_MAX} rounds of tools are enough; the model answers with what it has"))
            generation = await self._fitting(answer, tools, may_call=not is_last)
            self._note(generation, info)
            if not generation.tool_calls or is_last:
                break
            await self._call_tools(answer, generation)
        return generation

    async def _fitting(self, answer: _Answer, tools: list[Tool], *, may_call: bool) -> Generation:
        """One round of the model; of a conversation that no message of the bus holds any more, this question alone."""
        try:
            return await self._generating.generation(self._body(tools, may_call), answer.pieces)
        except TooLarge:
            if not answer.began_at:
                raise
            self._emit(
                Notice(
                    text="the conversation is larger than a request may be; what was said before is not sent any more"
                )
            )
            del self.messages[: answer.began_at]
            answer.began_at = 0
            return await self._generating.generation(self._body(tools, may_call), answer.pieces)

    def _body(self, tools: list[Tool], may_call: bool) -> dict[str, Any]:
        """The request. A map, because options that the model service does not know are its to refuse, by their names."""
        messages = [ChatMessage(role="system", content=self.system)] if self.system else []
        body: dict[str, Any] = {
            "truncate": "start",
            **self.choices.options,
            "messages": [*messages, *self.messages],
            "conversation_id": self.session_id,
        }
        if self.choices.model:
            body["model"] = self.choices.model
        if tools:
            body["tools"] = tools
            body["tool_choice"] = "auto" if may_call else "none"
        return body

    # What goes in before a question

    async def _model(self) -> ModelInfo | None:
        """What the catalogue says of the model that will answer; None where it cannot be asked, or knows none."""
        try:
            listed: Models = await self.client.request("model.list", ModelList(), timeout_s=LIST_S)
            known = {name: info for info in listed.models for name in (*info.aliases, info.name)}
            name = self.choices.model or listed.default
            if name is not None and name not in known:
                routed: Routed = await self.client.request("model.route", Route(profile=name), timeout_s=LIST_S)
                name = routed.model
        except BusError:
            # Whatever is wrong, asking the model will tell.
            return None
        return known.get(name) if name is not None else None

    async def _context(self, question: str, info: ModelInfo | None) -> Found:
        """What memory adds to this question, and the system message made anew; what is missing is told once."""
        choices, memory = self.choices, self._memory
        window = info.context_tokens or None if info is not None else None
        name = info.name if info is not None else None
        addition, found = await asyncio.gather(
            memory.addition(choices, name, window),
            memory.found(choices, question, name, window, self._keeper.ensure),
        )
        self.system = "\n\n".join(text for text in (clean(choices.system).strip(), addition) if text)
        if memory.trouble:
            self._once("memory", f"memory does not answer, so this goes without it: {memory.trouble}")
        else:
            self._told_once.discard("memory")
        self.last_context = found.used
        if found.used is not None and found.used.included:
            self._emit(found.used)
        staged, self._staged = self._staged, ""
        if staged:
            found = found._replace(block="\n\n".join([block_of([staged]), *filter(None, [found.block])]))
        self.last_addition, self.last_block = addition, found.block
        return found

    async def _tools(self, info: ModelInfo | None) -> list[Tool]:
        wanted = self.choices.tools
        if not wanted:
            return []
        if info is not None and "tools" not in info.capabilities:
            text = f"{info.name} takes no tools, so it is given none"
            # Whoever names tools on the command line wants to hear it each time; files stay as they are.
            is_asked = self.choices.origins.get("tools", "").startswith("flag")
            self._once(f"tools {info.name}", text, is_minor=not is_asked)
            return []
        tools = await self._toolbox.tools(wanted)
        missing = [name for name in wanted if name not in {tool.name for tool in tools}]
        if missing:
            self._once(f"missing {missing}", f"not there now, and not given to the model: {', '.join(missing)}")
        return tools

    async def _call_tools(self, answer: _Answer, generation: Generation) -> None:
        """Do what the model asked for, one after the other, and put the results before it."""
        text = "".join(answer.pieces)
        answer.end_round()
        calls = generation.tool_calls[:_CALLS_MAX]
        if len(calls) < len(generation.tool_calls):
            self._emit(Notice(text=f"{len(generation.tool_calls):,} calls at once; the first {_CALLS_MAX} are done"))
        self.messages.append(ChatMessage(role="assistant", content=text, tool_calls=calls))
        for call in calls:
            self._emit(ToolCalled(name=call.name, arguments=call.arguments))
            ok, content = await self._tool_result(call)
            answer.called.append(call.name)
            self._emit(ToolAnswered(name=call.name, ok=ok, content=content))
            self.messages.append(ChatMessage(role="tool", content=clean(content), tool_call_id=call.id, name=call.name))

    async def _tool_result(self, call: ToolCall) -> tuple[bool, str]:
        if call.name not in self.choices.tools:
            return False, f"There is no tool {call.name!r}. There are: {', '.join(self.choices.tools)}."
        return await self._toolbox.call(call)

    # How it ends

    def _end(self, answer: _Answer, generation: Generation) -> None:
        text = "".join(answer.pieces)
        self.messages.append(ChatMessage(role="assistant", content=text))
        self._last_length = len(self.messages) - answer.began_at
        self.last_reply_id = generation.reply_id
        metadata: dict[str, Any] = {"model": generation.model, "reply_id": generation.reply_id}
        if answer.called:
            metadata["tools"] = answer.called[:_CALLS_MAX]
        self._keeper.keep("assistant", answer.text, answer.kept_with(metadata), model=generation.model)
        if generation.truncated_tokens:
            self._shorten(generation)
        elif len(self.messages) > _MESSAGES_MAX:
            dropped = self._drop(_KEPT_PART)
            self._emit(Notice(text=f"the conversation is long: its first {dropped} messages are not sent any more"))

    def _cut_off(self, answer: _Answer, why: str) -> None:
        """What came is the answer, without the tools around it; where nothing came, nothing was asked."""
        asked = self.messages[answer.began_at : answer.began_at + 1]
        del self.messages[answer.began_at :]
        # Feedback is about the answer that is seen last, and nobody keeps this one by an id.
        self.last_reply_id = ""
        text = answer.text
        if asked and text.strip():
            self.messages += [*asked, ChatMessage(role="assistant", content=text)]
            self._last_length = 2
        self._keeper.keep("assistant", text, answer.kept_with({"cut_off": why}))

    def _note(self, generation: Generation, info: ModelInfo | None) -> None:
        usage, timings = generation.usage, generation.timings
        self.figures = Figures(
            model=generation.model,
            tokens_per_s=timings.tokens_per_s,
            first_token_s=timings.first_token_s,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            context_used=usage.prompt_tokens + usage.completion_tokens,
            context_limit=info.context_tokens or None if info is not None and info.name == generation.model else None,
        )

    def _drop(self, share: float) -> int:
        """Keep about this share of what is sent, the newest; how many messages went."""
        dropped = outgrown(self.messages, share)
        del self.messages[:dropped]
        self._last_length = min(self._last_length, len(self.messages))
        return dropped

    def _shorten(self, generation: Generation) -> None:
        """Send less of the conversation from now on, since the model's window held no more, and say so."""
        sent = generation.usage.prompt_tokens
        share = _KEPT_PART * sent / (sent + generation.truncated_tokens)
        dropped = self._drop(share)
        self._emit(
            Notice(
                text=f"the conversation is longer than the window of {generation.model}: {generation.truncated_tokens:,}"
                f" tokens of its beginning were left out, and its first {dropped} messages are not sent any more"
            )
        )

    # Telling

    def _emit(self, event: Event) -> None:
        self._events.put_nowait(event)

    def _notice(self, text: str) -> None:
        if self.tell is not None:
            self.tell(text)
        else:
            self._untold.append(text)

    def _tell_untold(self) -> None:
        untold, self._untold = self._untold, []
        for text in untold:
            self._emit(Notice(text=text))

    def _once(self, what: str, text: str, *, is_minor: bool = False) -> None:
        if what not in self._told_once:
            self._told_once.add(what)
            self._emit(Notice(text=text, is_minor=is_minor))
