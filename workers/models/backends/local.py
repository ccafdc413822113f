"""Makes a Backend of a TokenModel: chat template, the window and what is dropped for it, tool calls, shapes of answers.

Knows nothing of how tokens are computed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Final, TypeVar

import msgspec

from schemas.bodies.model import Capability, ChatMessage, Tool
from schemas.errors import Internal, Unprocessable, Unsupported
from workers.models.backends.backend import AdapterFile, Chunk, Options, Outcome, Question, TokenModel
from workers.models.chat import ChatTemplate
from workers.models.tool_calls import ToolCallReader, call_schema

T = TypeVar("T")

# Longer texts are tokenized in a thread: at some 5 MB/s they would hold up the heartbeats.
_LONG_TEXT: Final = 64 * 1024

# Texts of one request that are given to the model at once; it answers as many together as it can.
_TOGETHER: Final = 32

_ANY_OBJECT: Final[dict[str, Any]] = {"type": "object"}


class _Prompt(msgspec.Struct, frozen=True):
    """Tokens to be continued, how many were dropped for it, and what else ends the answer."""

    tokens: list[int]
    dropped: int
    stop: tuple[str, ...] = ()


class LocalBackend:
    """A model in this process. `template` is the source of its chat template, None takes the fallback."""

    def __init__(self, model: TokenModel, template: str | None) -> None:
        self._model = model
        self._template_source = template
        self._template: ChatTemplate | None = None
        self.context_tokens = model.context_tokens
        # It ends with this process and not before.
        self.lost = asyncio.Event()
        own = set(model.capabilities)
        if "generate" in own:
            own.add("chat")
            if template is not None and "tools" in template:
                own.add("tools")
        self.capabilities = frozenset(own)

    async def answer(self, question: Question) -> AsyncGenerator[Chunk | Outcome, None]:
        """Chunks as they come, then one Outcome. Closing the generator stops the computation.

        Raises Unprocessable with both numbers for what is longer than the window and may not be cut, Unsupported for
        what this model cannot do, Internal when the computation fails.
        """
        options = self._shaped(question)
        prompt = await _in_thread_if_long(_size(question), lambda: self._prompt(question))
        if prompt.stop:
            options = msgspec.structs.replace(options, stop=(*options.stop, *prompt.stop))
        reader = ToolCallReader(question.tools) if question.tools and question.tool_choice != "none" else None
        async with contextlib.aclosing(self._model.generate(prompt.tokens, options)) as parts:
            async for part in parts if reader is None else _with_calls(parts, reader):
                if isinstance(part, Outcome) and prompt.dropped:
                    part = msgspec.structs.replace(part, truncated_tokens=prompt.dropped)
                yield part

    async def embed(self, texts: Sequence[str], truncate: str) -> tuple[list[bytes], int]:
        """A vector of length 1 for each text, float32 little-endian, and the tokens read. Raises Unsupported."""
        self._check("embed", "make vectors of texts")
        model = self._model

        def cut(text: str) -> list[int]:
            tokens = model.begin(model.tokenize(text, with_special=False))
            # One place is left for the end token that some models read.
            return _cut(tokens, self.context_tokens - 1, truncate, model)

        size = sum(map(len, texts))
        prompts = await _in_thread_if_long(size, lambda: [cut(text) for text in texts])
        return await model.embed(prompts), sum(map(len, prompts))

    async def score(self, prompts: Sequence[str], texts: Sequence[str], adapter: str | None) -> list[tuple[float, int]]:
        """Sum of natural log-probabilities and number of tokens of each text after its prompt ("" for none).

        Without a prompt, and where the model has no begin-of-text token, the first token has nothing to be judged by
        and is not counted. Raises Unsupported, Unprocessable with both numbers.
        """
        self._check("generate", "tell how likely a text is")
        pairs = list(zip(prompts or [""] * len(texts), texts, strict=True))
        size = sum(len(prompt) + len(text) for prompt, text in pairs)
        work = await _in_thread_if_long(size, lambda: [self._scored(prompt, text) for prompt, text in pairs])
        room = asyncio.Semaphore(_TOGETHER)

        async def one(prompt: list[int], tokens: list[int]) -> tuple[float, int]:
            if not tokens:
                return 0.0, 0
            async with room:
                return sum(await self._model.score(prompt, tokens, adapter)), len(tokens)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(prompt, tokens)) for prompt, tokens in work]
        return [task.result() for task in tasks]

    async def set_adapters(self, adapters: Sequence[AdapterFile]) -> None:
        """Have exactly these attached. Raises LoadFailed for one that does not fit, and then nothing has changed."""
        await self._model.set_adapters(adapters)

    def forget(self, conversation_id: str) -> bool:
        """Drop what is kept for a conversation; False when there was nothing."""
        return self._model.forget(conversation_id)

    async def close(self) -> None:
        """Stop every generation and free the model."""
        self._model.close()

    # The prompt -----------------------------------------------------------------------------------------------------

    def _check(self, capability: Capability | str, what: str) -> None:
        if capability not in self._model.capabilities:
            raise Unsupported(f"this model cannot {what}", capability=capability)

    def _shaped(self, question: Question) -> Options:
        """The options with the shape that the question's answer must have."""
        options = question.options
        self._check("generate", "continue text")
        if question.tools and question.tool_choice == "required":
            options = msgspec.structs.replace(options, json_schema=call_schema(question.tools))
        elif question.is_json and options.json_schema is None and options.grammar is None:
            options = msgspec.structs.replace(options, json_schema=_ANY_OBJECT)
        if options.json_schema is not None:
            self._check("json_schema", "be held to JSON of a given shape")
        if options.grammar is not None:
            self._check("grammar", "be held to a grammar")
        return options

    def _prompt(self, question: Question) -> _Prompt:
        """What the model reads. Raises Unprocessable with both numbers where it is too long and may not be cut."""
        model, window = self._model, self.context_tokens
        # Once something has to go, the answer gets the room it asked for, up to half the window.
        room = max(window - question.options.max_tokens, window // 2, 1)
        if question.text is not None:
            tokens = model.begin(model.tokenize(question.text, with_special=True))
            if len(tokens) < window:
                return _Prompt(_not_empty(tokens, window), 0)
            kept = _cut(tokens, room, question.truncate, model, window)
            return _Prompt(kept, len(tokens) - len(kept))
        template = self._template = self._template or ChatTemplate(self._template_source, model)
        tools = question.tools if question.tool_choice != "none" else ()
        tokens = template.tokens(question.messages, tools)
        if len(tokens) < window:
            return _Prompt(_not_empty(tokens, window), 0, template.stop)
        if question.truncate == "refuse":
            raise _too_long(len(tokens), window)
        kept = _fitting(template, question, tools, room, window)
        return _Prompt(kept, len(tokens) - len(kept), template.stop)

    def _scored(self, prompt: str, text: str) -> tuple[list[int], list[int]]:
        model = self._model
        before = model.begin(model.tokenize(prompt, with_special=True))
        tokens = model.tokenize(text, with_special=False)
        if not before:
            before, tokens = tokens[:1], tokens[1:]
        if len(before) + len(tokens) > self.context_tokens:
            raise _too_long(len(before) + len(tokens), self.context_tokens)
        return before, tokens


async def _with_calls(
    parts: AsyncGenerator[Chunk | Outcome, None], reader: ToolCallReader
) -> AsyncGenerator[Chunk | Outcome, None]:
    """The parts without the text of calls, which come in the outcome."""
    shown: list[str] = []
    async for part in parts:
        if isinstance(part, Chunk):
            part.text = reader.feed(part.text)
            shown.append(part.text)
            yield part
            continue
        rest, calls = reader.finish()
        if rest:
            shown.append(rest)
            yield Chunk(rest, [])
        reason = "tool_calls" if calls else part.finish_reason
        yield msgspec.structs.replace(part, text="".join(shown), tool_calls=calls, finish_reason=reason)
        return
    raise Internal("the model ended without an outcome")


def _fitting(template: ChatTemplate, question: Question, tools: Sequence[Tool], room: int, window: int) -> list[int]:
    """Tokens of the conversation with as few messages dropped as possible: the oldest, or those in the middle.

    The system's messages at the beginning stay, and the last message; of what is left the first must be a user's, since
    an answer without its question, or a tool's without its call, is refused by many templates.
    """
    messages = question.messages
    system = next((at for at, message in enumerate(messages) if message.role != "system"), len(messages))
    head = system
    if question.truncate == "middle":
        # The first question and its answer stay: they usually say what the conversation is about.
        users = [at for at, message in enumerate(messages) if message.role == "user"]
        head = users[1] if len(users) > 1 else system
    starts = [at for at in range(head + 1, len(messages)) if messages[at].role == "user"] or [len(messages) - 1]

    def kept(start: int) -> list[int]:
        return template.tokens([*messages[:head], *messages[start:]], tools)

    # Fewer messages are fewer tokens, so the first start that fits is found by halving.
    low, high = 0, len(starts) - 1
    best = kept(starts[high])
    if len(best) >= window:
        if head > system:
            return _fitting(template, msgspec.structs.replace(question, truncate="start"), tools, room, window)
        raise _too_long(len(best), window, " even without its earlier messages")
    while low < high:
        middle = (low + high) // 2
        tokens = kept(starts[middle])
        if len(tokens) <= room:
            best, high = tokens, middle
        else:
            low = middle + 1
    return best


def _cut(tokens: list[int], room: int, truncate: str, model: TokenModel, window: int | None = None) -> list[int]:
    """At most `room` of the tokens, the begin-of-text token among them. Raises Unprocessable where it may not be cut."""
    if len(tokens) <= room:
        return tokens
    if truncate == "refuse":
        raise _too_long(len(tokens), window or room)
    first = len(tokens) - len(tokens[1:]) if model.begin(tokens[1:])[:1] == tokens[:1] else 0
    head = first if truncate == "start" else max(first, room // 2)
    return tokens[:head] + tokens[len(tokens) - (room - head) :]


def _not_empty(tokens: list[int], window: int) -> list[int]:
    if not tokens:
        raise Unprocessable("the prompt has no token at all", prompt_tokens=0, context_tokens=window)
    return tokens


def _too_long(tokens: int, window: int, more: str = "") -> Unprocessable:
    return Unprocessable(
        f"the prompt has {tokens} tokens{more}, the context window has {window} and must also hold the answer",
        prompt_tokens=tokens,
        context_tokens=window,
    )


def _size(question: Question) -> int:
    if question.text is not None:
        return len(question.text)
    tools = len(msgspec.json.encode(question.tools)) if question.tools else 0
    return tools + sum(_message_size(message) for message in question.messages)


def _message_size(message: ChatMessage) -> int:
    return len(message.content) + sum(len(call.arguments) for call in message.tool_calls)


async def _in_thread_if_long(size: int, work: Callable[[], T]) -> T:
    return work() if size < _LONG_TEXT else await asyncio.to_thread(work)
