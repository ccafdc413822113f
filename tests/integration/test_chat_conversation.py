"""A conversation over a real broker and the real memory, with a scripted model: memory, tools, sessions, outages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from bus.cli.chat.choices import Choices, settle
from bus.cli.chat.conversation import ROUNDS_MAX, Conversation
from bus.cli.chat.events import (
    Answered,
    Away,
    Back,
    ContextUsed,
    Event,
    Failed,
    Notice,
    Stopped,
    Text,
    ToolAnswered,
    ToolCalled,
)
from bus.cli.chat.session_keeper import KEPT_CHARACTERS
from bus.client import Client
from bus.projects import Project
from schemas.errors import BadRequest, Forbidden, NotFound
from tests.chat_house import ChatHouse, Say

E = TypeVar("E", bound=Event)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[ChatHouse]:
    """A house of its own."""
    with ChatHouse(tmp_path / "home") as house:
        yield house


@asynccontextmanager
async def talking(house: ChatHouse, choices: Choices | None = None, **more: Any) -> AsyncIterator[Conversation]:
    """A conversation that has begun."""
    async with Client(house.settings, name="chat") as client:
        conversation = Conversation(client, house.settings, choices or Choices(), **more)
        conversation.begin()
        try:
            yield conversation
        finally:
            await conversation.close()


async def asked(conversation: Conversation, question: str, **more: Any) -> list[Event]:
    """Everything that happens over a question."""
    return [event async for event in conversation.ask(question, **more)]


def of(kind: type[E], events: list[Event]) -> list[E]:
    """The events of one kind."""
    return [event for event in events if isinstance(event, kind)]


def text_of(events: list[Event]) -> str:
    """All text that came."""
    return "".join(event.text for event in of(Text, events))


# Answers, and what is kept of them


async def test_an_answer_comes_in_pieces_and_both_sides_are_kept(house: ChatHouse) -> None:
    """Text events, then the figures; the session in memory has the question and the answer."""
    house.answer("Hello", " there.")

    async with talking(house) as conversation:
        events = await asked(conversation, "Good morning")

        assert [type(event) for event in events] == [Text, Text, Answered]
        assert conversation.messages[-1].content == "Hello there."
        assert conversation.last_reply_id == events[-1].generation.reply_id  # type: ignore[attr-defined]
        assert conversation.figures.model == "tiny"
        assert conversation.figures.context_limit == 4096
        assert await conversation.close() == []
        assert house.turns(conversation.session_id) == [("user", "Good morning"), ("assistant", "Hello there.")]


async def test_the_model_is_shown_the_same_beginning_with_every_question(house: ChatHouse) -> None:
    """Its state is found by the session's id and grows, so that a follow-up reads only what is new."""
    house.request("memory.remember", {"key": "name", "value": "Ada"})
    cached = []

    async with talking(house, Choices(system="Be kind.")) as conversation:
        for number in range(3):
            await asked(conversation, f"question {number}")
            cached.append(conversation.figures.cached_tokens)

    shown = [[(message.role, message.content) for message in chat.messages] for chat in house.asked]
    assert shown[0][0] == ("system", "Be kind.\n\nKnown facts about the user:\n- name: Ada")
    assert shown[1][: len(shown[0])] == shown[0]
    assert shown[2][: len(shown[1])] == shown[1]
    assert {chat.conversation_id for chat in house.asked} == {conversation.session_id}
    assert cached[0] == 0 < cached[1] < cached[2]


async def test_a_fact_that_is_forgotten_is_shown_no_more(house: ChatHouse) -> None:
    """The system message follows what is known."""
    house.request("memory.remember", {"key": "name", "value": "Ada"})

    async with talking(house) as conversation:
        await asked(conversation, "one")
        await asyncio.to_thread(house.request, "memory.forget", {"key": "name"})
        await asked(conversation, "two")

    assert "Ada" in house.asked[0].messages[0].content
    assert all("Ada" not in message.content for message in house.asked[1].messages)


async def test_what_memory_finds_stands_before_the_question_and_not_in_the_session(house: ChatHouse) -> None:
    """The block goes to the model and stays where it was sent; the session has the person's words."""
    house.request("memory.add", {"content": "The green tea is in the left cupboard of the kitchen."})
    question = "Where in the kitchen is the green tea?"

    async with talking(house) as conversation:
        events = await asked(conversation, question)
        await asked(conversation, "thanks")

        context = of(ContextUsed, events)
        assert [part.part for part in context[0].included] == ["memory"]
        assert conversation.last_context is not None
        sent = house.asked[0].messages[-1].content
        assert "left cupboard" in sent
        assert sent.startswith("<memory>")
        assert sent.endswith(f"</memory>\n\n{question}")
        assert house.asked[1].messages[: len(house.asked[0].messages)] == house.asked[0].messages
        await conversation.close()
        assert house.turns(conversation.session_id)[0] == ("user", question)


async def test_what_an_earlier_conversation_said_is_found(house: ChatHouse) -> None:
    """A new session is shown turns of an old one that fit the question."""
    async with talking(house) as conversation:
        house.answer("Noted.")
        await asked(conversation, "The password of the observatory's telescope is on the blue shelf.")
        await conversation.close()
        first = conversation.session_id

    async with talking(house) as conversation:
        events = await asked(conversation, "On which shelf is the telescope's password?")

        assert [part.id for context in of(ContextUsed, events) for part in context.included] == [first]
        assert "blue shelf" in house.asked[-1].messages[-1].content


async def test_memory_is_left_out_when_it_is_switched_off(house: ChatHouse) -> None:
    """Neither facts nor what was found nor tools are shown, and without a session nothing is kept."""
    house.request("memory.remember", {"key": "tea", "value": "green"})
    house.request("memory.add", {"content": "The green tea is in the kitchen."})
    off = Choices(memory_prompt=False, memory_context=False, tools=())

    async with talking(house, off, is_kept=False) as conversation:
        await asked(conversation, "Where is the green tea?")

    assert [message.content for message in house.asked[0].messages] == ["Where is the green tea?"]
    assert house.asked[0].tools == []
    assert house.request("memory.session.list", {}).sessions == []


async def test_what_comes_along_is_below_the_question_and_kept_in_part(house: ChatHouse) -> None:
    """A pasted or piped text goes to the model whole; the session keeps its beginning and says so."""
    text = "x" * (KEPT_CHARACTERS * 2)

    async with talking(house) as conversation:
        house.answer("Long.")
        await asked(conversation, "Review this.", attached=text)
        await conversation.close()

        assert house.asked[0].messages[-1].content == f"Review this.\n\n{text}"
        kept = house.turns(conversation.session_id)[0][1]
        assert len(kept) < KEPT_CHARACTERS + 100
        assert kept.endswith("more characters are not kept]")


@pytest.mark.parametrize("question", ["a\0b\ud800c", "\udc80"])
async def test_a_question_that_is_no_unicode_text_is_asked_all_the_same(house: ChatHouse, question: str) -> None:
    """What no message can hold is shown as U+FFFD, to the model and in the session."""
    async with talking(house) as conversation:
        await asked(conversation, question)

        assert await conversation.close() == []
        assert "\ufffd" in house.turns(conversation.session_id)[0][1]
        assert "\ufffd" in house.asked[0].messages[-1].content


async def test_options_and_model_go_along_and_can_be_changed(house: ChatHouse) -> None:
    """Choices hold from the next question on; an option that there is not is refused by its name."""
    async with talking(house, Choices(model="plain", options={"temperature": 0.5})) as conversation:
        await asked(conversation, "one")
        conversation.choose(model="tiny", options={"temprature": 1})
        failed = await asked(conversation, "two")

    assert (house.asked[0].model, house.asked[0].temperature, house.asked[0].truncate) == ("plain", 0.5, "start")
    assert isinstance(failed[-1], Failed)
    assert "temprature" in failed[-1].message


async def test_a_model_that_a_file_names_and_that_is_absent_is_replaced_and_told(house: ChatHouse) -> None:
    """The first answer comes from what there is, with a line about it."""
    choices = Choices(model="absent", origins={"model": "the project's file"})

    async with talking(house, choices, settle=settle) as conversation:
        events = await asked(conversation, "hello")

    assert any("absent" in notice.text for notice in of(Notice, events))
    assert isinstance(events[-1], Answered)


# Tools


async def test_the_model_remembers_by_its_tool(house: ChatHouse) -> None:
    """The call is shown, done, and its result goes back; the next conversation knows it."""
    house.answer(Say(calls=[("remember", '{"key": "tea", "value": "green"}')]), "I will remember.")

    async with talking(house) as conversation:
        events = await asked(conversation, "I like green tea.")
        assert of(ToolCalled, events)[0].name == "remember"
        assert of(ToolAnswered, events)[0].ok
        assert house.asked[1].messages[-1].role == "tool"
        assert house.asked[1].messages[-2].tool_calls[0].name == "remember"
        await conversation.close()
        assert house.turns(conversation.session_id)[-1] == ("assistant", "I will remember.")

    assert house.request("memory.recall", {"key": "tea"}).value == "green"


async def test_the_model_reads_the_project_and_nothing_else(house: ChatHouse, tmp_path: Path) -> None:
    """A file inside is read, one outside is refused, and the model goes on with both answers."""
    root = tmp_path / "project"
    root.mkdir()
    (root / "main.py").write_text("print('hello')\n")
    (tmp_path / "outside").write_text("secret")
    house.answer(
        Say(calls=[("read_file", '{"path": "main.py"}'), ("read_file", '{"path": "../outside"}'), ("forget", "{}")]),
        "Read.",
    )
    choices = Choices(tools=("read_file",), project=Project(root=root, name="project"))

    async with talking(house, choices) as conversation:
        events = await asked(conversation, "What does it do?")

    assert [tool.name for tool in house.asked[0].tools] == ["read_file"]
    answers = of(ToolAnswered, events)
    assert [answer.ok for answer in answers] == [True, False, False]
    assert "hello" in answers[0].content
    assert "outside of the project" in answers[1].content
    assert all("secret" not in message.content for chat in house.asked for message in chat.messages)


async def test_of_thousands_of_calls_at_once_the_first_are_done_and_the_answer_comes(
    house: ChatHouse, tmp_path: Path
) -> None:
    """Their results would be more messages than a request may hold."""
    house.answer(Say(calls=[("list_files", "{}")] * 5_000), "Done.")
    choices = Choices(tools=("list_files",), project=Project(root=tmp_path, name="project"))

    async with talking(house, choices) as conversation:
        events = await asked(conversation, "What is there?")

    assert isinstance(events[-1], Answered)
    assert len(of(ToolAnswered, events)) == 16
    assert "5,000 calls at once; the first 16 are done" in [notice.text for notice in of(Notice, events)]


async def test_a_project_whose_folder_is_no_text_has_its_sessions_too(house: ChatHouse, tmp_path: Path) -> None:
    """A folder may be called any bytes, which no message holds as they are."""
    choices = Choices(project=Project(root=tmp_path / "bad\udcff", name="bad\udcff"))
    async with talking(house, choices) as conversation:
        assert isinstance((await asked(conversation, "Hello"))[-1], Answered)
    async with Client(house.settings, name="chat") as client:
        conversation = Conversation(client, house.settings, choices)
        conversation.begin(resume=True)
        resumed = await conversation.ready()
        assert resumed is not None
        assert resumed.session.turns == 2
        await conversation.close()


async def test_a_text_that_is_no_utf8_is_refused_before_it_is_sent(house: ChatHouse) -> None:
    """Every command hands on what it is given; this is an error of the request, and none of the program."""
    async with Client(house.settings, name="chat") as client:
        with pytest.raises(BadRequest, match=r"memory\.recall: .* it is no UTF-8"):
            await client.request("memory.recall", {"key": "\udcff"})
        with pytest.raises(BadRequest, match="no UTF-8"):
            async with client.stream("model.chat", {"messages": [{"role": "user", "content": "\udcff"}]}) as parts:
                await anext(parts)


@pytest.mark.parametrize("by", ["flag --tools", "profile python"])
async def test_a_model_without_tools_is_given_none_and_that_is_said_once(house: ChatHouse, by: str) -> None:
    """Its capabilities decide; it matters to whoever named tools on the command line, and is a detail to all others."""
    async with talking(house, Choices(model="plain", origins={"tools": by})) as conversation:
        first = await asked(conversation, "one")
        second = await asked(conversation, "two")

    assert of(Notice, first) == [
        Notice(text="plain takes no tools, so it is given none", is_minor=by != "flag --tools")
    ]
    assert of(Notice, second) == []
    assert house.asked[0].tools == []


async def test_a_model_that_only_calls_tools_has_to_answer_in_the_end(house: ChatHouse) -> None:
    """After so many rounds it may call no more."""
    house.answer(*(Say(calls=[("recall", '{"key": "x"}')]) for _ in range(ROUNDS_MAX)), "Well.")

    async with talking(house) as conversation:
        events = await asked(conversation, "Loop.")

    assert len(of(ToolCalled, events)) == ROUNDS_MAX
    assert house.asked[-1].tool_choice == "none"
    assert conversation.messages[-1].content.strip() == "Well."


# Stopping and failing


async def test_a_stopped_answer_is_cancelled_at_the_model_and_kept_as_cut_off(house: ChatHouse) -> None:
    """What had come is part of the conversation; the next question works."""
    house.answer(Say(pieces=["Once ", "upon"], waits=True))

    async with talking(house) as conversation:
        events: list[Event] = []
        async for event in conversation.ask("Tell a story."):
            events.append(event)
            if text_of(events) == "Once upon":
                conversation.stop()
        assert events[-1] == Stopped(text="Once upon")
        assert not conversation.is_answering
        await house.reached(lambda: house.cancelled == 1, "the generation to be cancelled")

        await asked(conversation, "Go on.")
        assert [message.content for message in house.asked[-1].messages if message.role != "system"] == [
            "Tell a story.",
            "Once upon",
            "Go on.",
        ]
        await conversation.close()
        turns = house.request("memory.session.history", {"session_id": conversation.session_id}).turns
        assert turns[1].content == "Once upon"
        assert turns[1].metadata == {"cut_off": "stopped"}


async def test_leaving_the_iteration_ends_the_generation_too(house: ChatHouse) -> None:
    """A front end that is cancelled leaves nothing running."""
    async with talking(house) as conversation:
        async with aclosing(conversation.ask("endless")) as events:
            async for event in events:
                if isinstance(event, Text):
                    break

        await house.reached(lambda: house.cancelled == 1, "the generation to be cancelled")
        assert not conversation.is_answering
        assert conversation.messages[-1].content.startswith("word0")


async def test_stopping_before_anything_came_leaves_no_trace(house: ChatHouse) -> None:
    """Nothing was answered, so nothing was asked."""
    house.answer(Say(waits=True))

    async with talking(house) as conversation:
        events = asyncio.ensure_future(asked(conversation, "Hm."))
        await house.reached(lambda: len(house.asked) == 1, "the question")
        conversation.stop()

        assert (await events)[-1] == Stopped(text="")
        assert conversation.messages == []


async def test_a_failure_is_told_and_the_question_can_be_asked_again(house: ChatHouse) -> None:
    """The next question does not carry the failed one; `retry` asks it once more."""
    house.answer(Say(error=("unprocessable", "too long")), "Better.")

    async with talking(house) as conversation:
        events = await asked(conversation, "Why?")
        assert events[-1] == Failed(code="unprocessable", message="too long")
        assert conversation.messages == []

        again = [event async for event in conversation.retry()]
        assert text_of(again) == "Better."
        await conversation.close()
        assert house.turns(conversation.session_id) == [("user", "Why?"), ("assistant", "Better.")]


async def test_a_retry_takes_the_place_of_the_answer(house: ChatHouse) -> None:
    """The model is not shown what it said before."""
    house.answer("First.")
    house.answer("Second.")

    async with talking(house) as conversation:
        await asked(conversation, "Say something.")
        _ = [event async for event in conversation.retry()]

        assert [message.content for message in conversation.messages] == ["Say something.", "Second."]
        assert len(house.asked[1].messages) == len(house.asked[0].messages)


async def test_a_conversation_longer_than_the_window_says_what_was_cut(house: ChatHouse) -> None:
    """The oldest questions are sent no more, and the rest is."""
    async with talking(house) as conversation:
        for number in range(4):
            await asked(conversation, f"question {number} " + "x" * 100)
        house.answer(Say(pieces=["ok"], truncated_tokens=10))
        events = await asked(conversation, "the last question")

        assert "10 tokens of its beginning were left out" in of(Notice, events)[0].text
        assert conversation.messages[-2].content == "the last question"
        assert conversation.messages[0].role == "user"
        assert len(conversation.messages) < 10


async def test_a_conversation_larger_than_a_request_goes_on_with_the_question_alone(tmp_path: Path) -> None:
    """Pasted megabytes add up; the question that no longer fits beside them is asked without them, and that is told."""
    small: dict[str, Any] = {"bus.max_body_bytes": 200_000}
    with ChatHouse(tmp_path / "home", **small) as house:
        async with talking(house) as conversation:
            await asked(conversation, "one", attached="x" * 150_000)
            events = await asked(conversation, "two", attached="y" * 100_000)
            refused = await asked(conversation, "three", attached="z" * 250_000)

    assert isinstance(events[-1], Answered)
    assert "larger than a request may be" in of(Notice, events)[-1].text
    assert [message.content[:3] for message in house.asked[-1].messages] == ["two"]
    assert isinstance(refused[-1], Failed)
    assert refused[-1].code == "too_large"


async def test_a_conversation_of_thousands_of_messages_stays_within_a_request(
    house: ChatHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest go, and a line says so."""
    monkeypatch.setattr("bus.cli.chat.conversation._MESSAGES_MAX", 5)

    async with talking(house) as conversation:
        for number in range(3):
            events = await asked(conversation, f"question {number}")

        assert "not sent any more" in of(Notice, events)[0].text
        assert conversation.messages[0].role == "user"
        assert conversation.messages[-2].content == "question 2"


# Outages


async def test_a_broker_that_restarts_in_mid_answer_is_waited_for(house: ChatHouse) -> None:
    """The person hears of it, the question is asked again, and the conversation has one answer."""
    house.answer(Say(pieces=["Half an "], waits=True))
    house.answer("A whole answer.")

    async with talking(house) as conversation:
        events: list[Event] = []
        async for event in conversation.ask("Tell me."):
            events.append(event)
            if isinstance(event, Text) and event.text == "Half an ":
                await asyncio.to_thread(house.stop_broker)
            elif isinstance(event, Away):
                await asyncio.to_thread(house.start_broker)

        kinds = [type(event) for event in events if not isinstance(event, Notice)]
        assert kinds == [Text, Away, Back, Text, Answered]
        assert conversation.messages[-1].content == "A whole answer."
        assert await conversation.close(20) == []
        assert house.turns(conversation.session_id) == [("user", "Tell me."), ("assistant", "A whole answer.")]


async def test_an_answer_can_be_stopped_while_the_bus_is_away(house: ChatHouse) -> None:
    """Ctrl-C works also then, and what had come is kept as soon as memory is there again."""
    house.answer(Say(pieces=["Half an "], waits=True))

    async with talking(house) as conversation:
        events: list[Event] = []
        async for event in conversation.ask("Tell me."):
            events.append(event)
            if isinstance(event, Text):
                await asyncio.to_thread(house.stop_broker)
            elif isinstance(event, Away):
                conversation.stop()
        assert events[-1] == Stopped(text="Half an ")
        await asyncio.to_thread(house.start_broker)

        assert await conversation.close(20) == []
        assert house.turns(conversation.session_id) == [("user", "Tell me."), ("assistant", "Half an ")]


async def test_a_model_that_was_lost_is_waited_for_until_it_serves_again(house: ChatHouse) -> None:
    """Its runner is started anew meanwhile, and nobody takes the question until that is done."""
    house.answer(
        Say(pieces=["Beg"], error=("worker_lost", "gone")),
        Say(error=("no_worker", "nobody serves it any more")),
        Say(error=("no_worker", "nobody serves it any more")),
        "Whole.",
    )
    async with talking(house) as conversation:
        events = await asked(conversation, "Hello")
        assert isinstance(events[-1], Answered)
        assert conversation.messages[-1].content == "Whole."


async def test_what_had_come_of_a_lost_answer_is_kept_where_nothing_better_comes(house: ChatHouse) -> None:
    """It was on the screen, and the model shall know it."""
    house.answer(Say(pieces=["Beginning"], error=("worker_lost", "gone")), Say(error=("unprocessable", "too bad")))
    async with talking(house) as conversation:
        events = await asked(conversation, "Hello")
        assert events[-1] == Failed(code="unprocessable", message="too bad")
        assert conversation.messages[-1].content == "Beginning"

    assert house.turns(conversation.session_id)[-1] == ("assistant", "Beginning")


async def test_a_model_that_breaks_down_over_every_try_is_given_up(house: ChatHouse) -> None:
    """It is not asked for ever."""
    house.answer(*(Say(error=("worker_lost", "gone")) for _ in range(5)))

    async with talking(house) as conversation:
        events = await asked(conversation, "Break.")

    assert events[-1] == Failed(code="worker_lost", message="gone")
    assert len(of(Away, events)) == 2


async def test_without_memory_the_chat_answers_and_says_what_is_missing(tmp_path: Path) -> None:
    """Once, and at the end what could not be kept is named."""
    with ChatHouse(tmp_path / "home", has_memory=False) as house:
        async with talking(house) as conversation:
            first = await asked(conversation, "one")
            second = await asked(conversation, "two")
            left = await conversation.close(0.1)

    assert text_of(first) == "You said: one"
    assert text_of(second) == "You said: two"
    assert len([1 for notice in of(Notice, first) if "goes without it" in notice.text]) == 1
    assert len([1 for notice in of(Notice, second) if "goes without it" in notice.text]) == 0
    assert house.asked[0].tools == []
    assert len(left) == 1
    assert "4 turns are not in session" in left[0]


async def test_turns_wait_for_a_memory_that_comes_back_and_keep_their_order(house: ChatHouse) -> None:
    """What was said meanwhile is there afterwards, once and in order."""
    told: list[str] = []

    async with talking(house) as conversation:
        conversation.tell = told.append
        await asked(conversation, "one")
        await asyncio.to_thread(house.stop_memory)
        await asked(conversation, "two")
        await asked(conversation, "three")
        await asyncio.to_thread(house.start_memory)
        assert await conversation.close(20) == []

    assert [content for role, content in house.turns(conversation.session_id) if role == "user"] == [
        "one",
        "two",
        "three",
    ]
    assert len(house.turns(conversation.session_id)) == 6
    assert [line.partition(" (")[0] for line in told] == [
        "memory does not answer",
        "memory is back, everything said is kept",
    ]


async def test_a_memory_that_refuses_this_person_is_asked_to_keep_nothing_more(house: ChatHouse) -> None:
    """The chat goes on, and says once that it is kept nowhere."""
    told: list[str] = []

    async with talking(house) as conversation:
        conversation.tell = told.append
        request = conversation.client.request

        async def refused(subject: str, *body: Any, **options: Any) -> Any:
            if subject.startswith("memory.session."):
                raise Forbidden("ada may not use the namespace 'session'")
            return await request(subject, *body, **options)

        conversation.client.request = refused  # type: ignore[method-assign]
        assert isinstance((await asked(conversation, "one"))[-1], Answered)
        assert isinstance((await asked(conversation, "two"))[-1], Answered)

        kept_nowhere = "this conversation is kept nowhere: ada may not use the namespace 'session'"
        assert await conversation.close() == [kept_nowhere]
        assert told == [kept_nowhere]
        assert not conversation.is_kept


# Sessions


async def test_a_session_is_taken_up_where_it_was(house: ChatHouse) -> None:
    """The model is shown the earlier turns in order, and the last answer can still be judged."""
    async with talking(house) as conversation:
        for number in range(3):
            await asked(conversation, f"question {number}")
        await conversation.close()
        before, reply_id = conversation.session_id, conversation.last_reply_id

    async with talking(house) as conversation:
        resumed = await conversation.resume(before)
        await asked(conversation, "and now?")

        assert [turn.content for turn in resumed.turns][::2] == ["question 0", "question 1", "question 2"]
        assert conversation.session_id == before
        assert reply_id != ""
        said = [message.content for message in house.asked[-1].messages if message.role == "user"]
        assert said == ["question 0", "question 1", "question 2", "and now?"]
        await conversation.close()
        assert len(house.turns(before)) == 8


async def test_an_ended_session_is_reopened(house: ChatHouse) -> None:
    """Resuming one that was closed goes on with it."""
    async with talking(house) as conversation:
        await asked(conversation, "one")
        await conversation.close()
        session_id = conversation.session_id
    house.request("memory.session.close", {"session_id": session_id})

    async with talking(house) as conversation:
        await conversation.resume(session_id)
        await asked(conversation, "two")
        assert await conversation.close() == []

    assert [content for role, content in house.turns(session_id) if role == "user"] == ["one", "two"]


async def test_the_last_session_of_this_project_is_resumed(house: ChatHouse, tmp_path: Path) -> None:
    """Not a newer one of another project, and not an agent's."""
    here, there = (Choices(project=Project(root=tmp_path / name, name=name)) for name in ("here", "there"))
    async with talking(house, here) as conversation:
        await asked(conversation, "here")
        await conversation.close()
        wanted = conversation.session_id
    async with talking(house, there) as conversation:
        await asked(conversation, "there")
        await conversation.close()
    house.request("memory.session.create", {"session_id": "agent", "metadata": {"project": str(tmp_path / "here")}})

    async with talking(house, here) as conversation:
        conversation.begin(resume=True)
        resumed = await conversation.ready()
        sessions = await conversation.sessions()

    assert resumed is not None
    assert resumed.session.session_id == wanted
    assert resumed.session.metadata["title"] == "here"
    assert [session.metadata["title"] for session in sessions] == ["here", "there"]


async def test_a_session_that_is_not_there_begins_under_its_name(house: ChatHouse) -> None:
    """`--session NAME` is for scripts: the first use makes it, and that is said."""
    async with talking(house) as conversation:
        conversation.begin(session_id="notes")
        events = await asked(conversation, "first")
        await conversation.close()

        assert "there is no session 'notes' yet" in of(Notice, events)[0].text
        assert house.turns("notes")[0] == ("user", "first")
        with pytest.raises(NotFound):
            await conversation.resume("nothing")
        assert conversation.session_id == "notes"


async def test_a_bridge_goes_in_with_the_next_question_once(house: ChatHouse) -> None:
    """What earlier sessions hold is taken in on request."""
    async with talking(house) as conversation:
        house.answer("Noted.")
        await asked(conversation, "The launch of the balloon is on Tuesday.")
        await conversation.close()

    off = Choices(memory_context=False)
    async with talking(house, off) as conversation:
        bridge = await conversation.bridge("the launch of the balloon")
        await asked(conversation, "When?")
        await asked(conversation, "Sure?")

        assert "Tuesday" in bridge.text
        assert "Tuesday" in house.asked[-2].messages[-1].content
        assert "Tuesday" not in house.asked[-1].messages[-1].content


async def test_a_new_session_begins_with_nothing(house: ChatHouse) -> None:
    """What was said before is not shown any more."""
    async with talking(house, Choices(memory_context=False)) as conversation:
        await asked(conversation, "one")
        before = conversation.session_id
        conversation.new_session()
        await asked(conversation, "two")

        assert conversation.session_id != before
        assert [message.content for message in house.asked[-1].messages] == ["two"]
        await conversation.close()
        assert len(house.turns(before)) == 2


async def test_a_session_deleted_meanwhile_is_made_again(house: ChatHouse) -> None:
    """What is said from then on is kept."""
    async with talking(house) as conversation:
        await asked(conversation, "one")
        await house.reached(lambda: len(house.turns(conversation.session_id)) == 2, "the turns")
        await asyncio.to_thread(
            house.request, "memory.session.close", {"session_id": conversation.session_id, "delete": True}
        )
        await asked(conversation, "two")
        assert await conversation.close() == []

        assert [content for role, content in house.turns(conversation.session_id) if role == "user"] == ["two"]


async def test_two_questions_at_once_are_refused(house: ChatHouse) -> None:
    """A conversation has one answer under way."""
    house.answer(Say(waits=True))

    async with talking(house) as conversation:
        first = asyncio.ensure_future(asked(conversation, "one"))
        await house.reached(lambda: len(house.asked) == 1, "the question")
        with pytest.raises(RuntimeError, match="under way"):
            await asked(conversation, "two")
        house.release()
        assert isinstance((await first)[-1], Answered)


async def test_loading_a_model_is_told_while_it_is_waited_for(
    house: ChatHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is not in memory takes its time; one that is there at once needs no words."""
    async with talking(house, Choices(model="big")) as conversation:
        assert of(Notice, await asked(conversation, "hello")) == []
        monkeypatch.setattr("bus.cli.chat.conversation._LOADING_S", 0.0)
        house.answer(Say(waits=True, pieces=[]))
        asking = asyncio.ensure_future(asked(conversation, "hello"))
        await house.reached(lambda: len(house.asked) == 2, "the question")
        house.release()
        events = await asking

    assert "big is being loaded" in [notice.text for notice in of(Notice, events)]
    assert msgspec.structs.asdict(conversation.figures)["model"] == "big"
