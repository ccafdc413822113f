"""What a local backend makes of a token model: windows and what is dropped for them, shapes, calls of tools."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import msgspec
import pytest

from schemas.bodies.model import ChatMessage, Tool
from schemas.errors import Unprocessable, Unsupported
from workers.models.backends.backend import AdapterFile, Chunk, Options, Outcome, Question
from workers.models.backends.local import LocalBackend

OPTIONS = Options(max_tokens=10, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0, seed=1)
# One token for each character; "^" begins every text.
TEMPLATE = "{% for m in messages %}[{{ m.role[0] }}{{ m.content }}]{% endfor %}"


class Letters:
    """A model whose tokens are characters, which answers with `says` and notes what it was asked."""

    bos_text = "^"
    eos_text = ""
    context_tokens = 40

    def __init__(self, says: str = "fine", *capabilities: str) -> None:
        self.says = says
        self.capabilities = frozenset(capabilities or ("generate",))
        self.read = ""
        self.options = OPTIONS

    def tokenize(self, text: str, *, with_special: bool) -> list[int]:
        return [ord(character) for character in text]

    def begin(self, tokens: list[int]) -> list[int]:
        return tokens if tokens[:1] == [ord("^")] else [ord("^"), *tokens]

    def control_texts(self, text: str) -> set[str]:
        return set()

    async def generate(self, prompt: Sequence[int], options: Options) -> AsyncGenerator[Chunk | Outcome, None]:
        self.read, self.options = "".join(map(chr, prompt)), options
        for character in self.says:
            yield Chunk(character, [ord(character)])
        yield Outcome(
            text=self.says,
            token_ids=[ord(character) for character in self.says],
            finish_reason="stop",
            prompt_tokens=len(prompt),
            prompt_s=0.0,
            generate_s=0.0,
            first_token_s=0.0,
        )

    async def embed(self, prompts: Sequence[Sequence[int]]) -> list[bytes]:
        self.read = "|".join("".join(map(chr, prompt)) for prompt in prompts)
        return [b"" for _ in prompts]

    async def score(self, prompt: Sequence[int], tokens: Sequence[int], adapter: str | None) -> list[float]:
        return [-1.0 for _ in tokens]

    async def set_adapters(self, adapters: Sequence[AdapterFile]) -> None:
        raise AssertionError("not asked for")

    def forget(self, conversation_id: str) -> bool:
        return False

    def close(self) -> None:
        pass


async def ask(model: Letters, question: Question) -> Outcome:
    shown = ""
    async for part in LocalBackend(model, TEMPLATE).answer(question):
        if isinstance(part, Outcome):
            assert part.text == shown
            return part
        shown += part.text
    raise AssertionError("no outcome")


def talk(*messages: str, **more: Any) -> Question:
    """A question of messages like "s:be kind" and "u:hello"."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    made = [ChatMessage(role=roles[message[0]], content=message[2:]) for message in messages]  # type: ignore[arg-type]
    return Question(options=OPTIONS, messages=tuple(made), **more)


LONG = ("s:be", "u:first", "a:answer", "u:second", "a:another", "u:third", "a:more", "u:last")


@pytest.mark.parametrize(
    ("truncate", "read"),
    [("start", "^[sbe][uthird][amore][ulast]"), ("middle", "^[sbe][ufirst][aanswer][ulast]")],
)
async def test_a_chat_loses_whole_turns_and_keeps_system_and_last(truncate: Any, read: str) -> None:
    """The oldest, or those after the first question; what stays begins with a user's message and leaves room."""
    model = Letters()
    outcome = await ask(model, talk(*LONG, truncate=truncate))
    assert model.read == read
    assert len(read) <= 30
    assert outcome.truncated_tokens == 64 - len(read)


async def test_a_tool_s_answer_is_not_left_without_its_call() -> None:
    """The first message that stays is a user's."""
    model = Letters()
    await ask(model, talk("u:first question", "a:call it", "t:the result", "a:so it is", "u:last", truncate="start"))
    assert model.read == "^[ulast]"


async def test_a_last_message_that_is_too_long_alone_is_refused_with_both_numbers() -> None:
    """Nothing of a single message is dropped."""
    with pytest.raises(Unprocessable) as caught:
        await ask(Letters(), talk("u:first", "a:answer", "u:" + "x" * 50, truncate="start"))
    assert caught.value.details == {"prompt_tokens": 54, "context_tokens": 40}


@pytest.mark.parametrize(
    ("truncate", "read"),
    [("start", "^" + "0123456789" * 2 + "012345678"), ("middle", "^90123456789012" + "456789012345678")],
)
async def test_a_text_loses_its_beginning_or_its_middle(truncate: Any, read: str) -> None:
    """The begin-of-text token stays, and the answer gets the room it asked for."""
    model = Letters()
    text = "9" + "0123456789" * 5 + "012345678"
    outcome = await ask(model, Question(options=OPTIONS, text=text, truncate=truncate))
    assert (model.read, len(model.read)) == (read, 30)
    assert outcome.truncated_tokens == 1 + len(text) - 30


async def test_what_fits_is_left_as_it_is() -> None:
    """One token short of the window."""
    model = Letters()
    outcome = await ask(model, Question(options=OPTIONS, text="x" * 38, truncate="start"))
    assert (len(model.read), outcome.truncated_tokens) == (39, 0)
    with pytest.raises(Unprocessable):
        await ask(model, Question(options=OPTIONS, text="x" * 39))


async def test_shapes_are_refused_where_the_model_cannot_keep_them() -> None:
    """JSON, a schema, a grammar, a required call; and text from a model that only makes vectors."""
    tools = (Tool(name="add"),)
    shaped = [
        talk("u:x", is_json=True),
        talk("u:x", tools=tools, tool_choice="required"),
        msgspec.structs.replace(talk("u:x"), options=msgspec.structs.replace(OPTIONS, json_schema={})),
        msgspec.structs.replace(talk("u:x"), options=msgspec.structs.replace(OPTIONS, grammar="root ::= .")),
    ]
    for question in shaped:
        with pytest.raises(Unsupported):
            await ask(Letters(), question)
        able = Letters("fine", "generate", "json_schema", "grammar")
        able.context_tokens = 1000
        await ask(able, question)
    with pytest.raises(Unsupported):
        await ask(Letters("fine", "embed"), talk("u:x"))
    with pytest.raises(Unsupported):
        await LocalBackend(Letters(), None).embed(["x"], "refuse")


async def test_a_call_comes_in_the_outcome_and_not_in_the_text() -> None:
    """Text before it is streamed; without tools, or with tool_choice none, the same is text."""
    says = 'Well <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    tools = (Tool(name="add"),)
    model = Letters(says)
    model.context_tokens = 1000
    outcome = await ask(model, talk("u:x", tools=tools))
    assert (outcome.text, outcome.finish_reason) == ("Well ", "tool_calls")
    assert [(call.name, call.arguments) for call in outcome.tool_calls] == [("add", '{"a": 1}')]
    assert len(outcome.token_ids) == len(says)
    assert "add" in model.read
    for question in (talk("u:x"), talk("u:x", tools=tools, tool_choice="none")):
        plain = await ask(model, question)
        assert (plain.text, plain.finish_reason, plain.tool_calls) == (says, "stop", ())
        assert "add" not in model.read


async def test_texts_for_vectors_are_cut_like_prompts() -> None:
    """One place stays free for an end token."""
    model = Letters("", "embed")
    backend = LocalBackend(model, None)
    _, tokens = await backend.embed(["abc", "x" * 30 + "y" * 30], "start")
    assert model.read == "^abc|^" + "x" * 8 + "y" * 30
    assert tokens == 4 + 39
    with pytest.raises(Unprocessable):
        await backend.embed(["x" * 60], "refuse")
