"""Slash commands of a chat against a real broker, a real memory and scripted models."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bus import preferences
from bus.cli import app, exits
from bus.cli.chat.choices import Choices
from bus.cli.chat.conversation import Conversation
from bus.cli.chat.slash import Outcome, Slash
from bus.client import Client
from bus.projects import Project
from bus.worker import Call
from schemas.bodies.learning import Exchange, ExchangeList, Exchanges
from schemas.errors import NotFound
from tests.chat_house import WAIT_S, ChatHouse
from tests.conftest import Serve

# What a pull that nobody lets go on has come to.
pulls: dict[str, int] = {"begun": 0, "cancelled": 0}


async def pull(request: Any, call: Call) -> Any:
    """Never ends by itself."""
    pulls["begun"] += 1
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        pulls["cancelled"] += 1
        raise


async def exchanges(request: ExchangeList, call: Call) -> Exchanges:
    """One answer is kept, of the session `kept`."""
    if request.session_id not in (None, "kept"):
        return Exchanges(exchanges=[], total=0)
    one = Exchange(
        reply_id="abc123",
        model="tiny",
        at=0.0,
        messages=[],
        prompt="what is it?",
        text="it is that",
        adapter=None,
        user="",
        session_id="kept",
        mean_logprob=None,
        error="",
    )
    return Exchanges(exchanges=[one], total=1)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatHouse]:
    """One house for all tests of this file."""
    home = tmp_path_factory.mktemp("house")
    with ChatHouse(home, extra={"model.pull": pull, "learning.exchange.list": exchanges}) as house:
        yield house


@pytest.fixture
def house(shared: ChatHouse) -> ChatHouse:
    """The house, with nothing remembered and nothing preferred."""
    shared.request("memory.forget", {"everything": True})
    for memory in shared.request("memory.list").memories:
        shared.request("memory.delete", {"id": memory.id})
    (shared.home / "chat.yaml").unlink(missing_ok=True)
    shared.feedback.clear()
    return shared


class Person:
    """A front end: it notes what is said, and answers questions as scripted, then with nothing."""

    is_plain = True

    def __init__(self, *answers: str) -> None:
        self.said: list[str] = []
        self.questions: list[str] = []
        self.answers = list(answers)

    def say(self, text: str) -> None:
        """Note it."""
        self.said.append(text)

    async def ask(self, question: str) -> str:
        """The next scripted answer."""
        self.questions.append(question)
        return self.answers.pop(0) if self.answers else ""


class Chat:
    """A conversation with its slash commands."""

    def __init__(self, conversation: Conversation, house: ChatHouse, capsys: pytest.CaptureFixture[str]) -> None:
        self.conversation = conversation
        self.slash = Slash(conversation, house.settings)
        self.outcome = Outcome()
        self._capsys = capsys

    async def do(self, line: str, *answers: str) -> str:
        """Everything that a slash command shows, in the order of its places: said, stdout, stderr."""
        person = Person(*answers)
        self.outcome = await self.slash.run(line, person)
        shown = self._capsys.readouterr()
        return "\n".join([*person.said, *person.questions, shown.out, shown.err])

    async def ask(self, question: str) -> None:
        """Ask the model, and hear it out."""
        async for _ in self.conversation.ask(question):
            pass


@asynccontextmanager
async def chat_in(house: ChatHouse, capsys: pytest.CaptureFixture[str], **choices: Any) -> AsyncIterator[Chat]:
    """A chat in that house."""
    async with Client(house.settings, name="chat") as client:
        await client.connect(WAIT_S)
        conversation = Conversation(client, house.settings, Choices(**choices))
        try:
            yield Chat(conversation, house, capsys)
        finally:
            await conversation.close()


Capture = pytest.CaptureFixture[str]


async def until_kept(house: ChatHouse, session_id: str, turns: int) -> None:
    """Return once memory has that many turns; the session itself may not be there yet."""

    def is_kept() -> bool:
        try:
            return len(house.turns(session_id)) == turns
        except NotFound:
            return False

    await house.reached(is_kept, f"{turns} turns of {session_id}")


# Memory -----------------------------------------------------------------------------------------------------------


async def test_memories_are_added_found_listed_and_forgotten(house: ChatHouse, capsys: Capture) -> None:
    """`/memory add`, `list`, `search` and `forget`, with an apostrophe and without quotes."""
    async with chat_in(house, capsys) as chat:
        memory_id = (await chat.do("/memory add It's Ada who keeps bees --tag bees")).strip()
        assert house.request("memory.get", {"id": memory_id}).content == "It's Ada who keeps bees"

        lines_id = (await chat.do("/memory add two  spaces\nand a second line")).strip()
        assert house.request("memory.get", {"id": lines_id}).content == "two  spaces\nand a second line"
        house.request("memory.delete", {"id": lines_id})

        house.request("memory.remember", {"key": "city", "value": "Porto"})
        listed = await chat.do("/memory list")
        assert "Porto" in listed
        assert memory_id in listed
        assert memory_id in await chat.do("/memory search who keeps bees")

        assert "it is a fact: --fact forgets it" in await chat.do("/memory forget city")
        assert "forgotten" in await chat.do(f"/memory forget {memory_id}")
        assert house.request("memory.list").memories == []


async def test_several_are_forgotten_only_after_a_yes(house: ChatHouse, capsys: Capture) -> None:
    """What is destructive asks through the front end, and anything but yes changes nothing."""
    ids = [house.request("memory.add", {"content": text}).id for text in ("one", "two")]
    async with chat_in(house, capsys) as chat:
        shown = await chat.do(f"/memory forget {' '.join(ids)}", "no")
        assert "Forget 2 memories" in shown
        assert "nothing was changed" in shown
        assert len(house.request("memory.list").memories) == 2

        await chat.do(f"/memory forget {' '.join(ids)}", "yes")
        assert house.request("memory.list").memories == []


async def test_clear_forgets_all_facts_after_a_yes(house: ChatHouse, capsys: Capture) -> None:
    """`/memory clear` counts what would go, asks, and forgets it."""
    for key in ("city", "colour"):
        house.request("memory.remember", {"key": key, "value": "x"})
    async with chat_in(house, capsys) as chat:
        assert "Forget all 2 facts of namespace user for good? [y/N]" in await chat.do("/memory clear")
        assert len(house.request("memory.all").facts) == 2

        assert "forgot 2 facts" in await chat.do("/memory clear", "y")
        assert house.request("memory.all").facts == []


async def test_clear_goes_past_the_first_page_and_takes_any_kind(
    house: ChatHouse, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memories, documents and sessions of a namespace are cleared, however many pages they fill, and others stay."""
    monkeypatch.setattr("bus.cli.memory_clear._PAGE", 2)
    for number in range(5):
        house.request("memory.add", {"content": f"m{number}", "ns": "scratch"})
        house.request("memory.doc.put", {"doc_id": f"d{number}", "content": "text", "ns": "scratch"})
        house.request("memory.session.create", {"session_id": f"s{number}", "ns": "scratch"})
    house.request("memory.add", {"content": "mine"})
    async with chat_in(house, capsys) as chat:
        for what in ("memories", "documents", "sessions"):
            assert f"forgot 5 {what}" in await chat.do(f"/memory clear {what} --ns scratch --yes")

    assert house.request("memory.list", {"ns": "scratch"}).memories == []
    assert house.request("memory.doc.list", {"ns": "scratch"}).documents == []
    assert house.request("memory.session.list", {"ns": "scratch"}).sessions == []
    assert len(house.request("memory.list").memories) == 1


async def test_memory_is_switched_off_and_on_for_this_chat(house: ChatHouse, capsys: Capture) -> None:
    """`/memory off` takes prompt, context and tools; `/memory on context` gives one part back."""
    async with chat_in(house, capsys) as chat:
        await chat.do("/memory off")
        choices = chat.conversation.choices
        assert (choices.memory_prompt, choices.memory_context, choices.tools) == (False, False, ())

        await chat.do("/memory on context")
        choices = chat.conversation.choices
        assert (choices.memory_prompt, choices.memory_context, choices.tools) == (False, True, ())

        await chat.do("/memory on")
        assert chat.conversation.choices.tools == ("remember", "recall", "search_memory")
        assert "did you mean 'context'?" in await chat.do("/memory off contxt")
        assert "on" in await chat.do("/memory")


async def test_what_memory_put_before_the_model_is_shown(house: ChatHouse, capsys: Capture) -> None:
    """`/memory show-context` shows what is known and what was found word for word, and says so when there was nothing."""
    house.request("memory.add", {"content": "Ada keeps bees in the garden", "id": "bees"})
    house.request("memory.remember", {"key": "pet", "value": "Rex"})
    async with chat_in(house, capsys, tools=()) as chat:
        assert "nothing before the model" in await chat.do("/memory show-context")

        await chat.ask("who keeps bees in the garden?")

        shown = await chat.do("/memory show-context")
        assert "pet: Rex" in shown.partition("before the question:")[0]
        assert "Ada keeps bees in the garden" in shown
        assert "memory/bees" in shown
        assert "counted by" in shown

        await chat.do("/memory off")
        await chat.ask("and now?")
        assert "nothing before the model" in await chat.do("/memory show-context")


# Models -----------------------------------------------------------------------------------------------------------


async def test_a_model_is_used_in_this_chat_and_kept_when_asked_to(house: ChatHouse, capsys: Capture) -> None:
    """`/model use` counts from the next question; `--save` writes the preference; absent ones name the nearest."""
    async with chat_in(house, capsys) as chat:
        await chat.do("/model use plain")
        await chat.ask("hello")
        assert house.asked[-1].model == "plain"
        assert chat.conversation.choices.origins["model"] == "said in this chat"
        assert preferences.load(house.settings).model is None

        await chat.do("/model use big --save")
        assert preferences.load(house.settings).model == "big"

        assert "did you mean 'plain'?" in await chat.do("/model use plian")
        assert chat.conversation.choices.model == "big"


async def test_a_comparison_of_too_few_models_says_how_to_ask_for_one(house: ChatHouse, capsys: Capture) -> None:
    """The words of a question without quotes are not taken for models."""
    async with chat_in(house, capsys) as chat:
        for line in ("/compare", "/compare what is 7 + 5? tiny", "/compare tiny plain"):
            assert "/compare [QUESTION] MODEL MODEL" in await chat.do(line)
        assert "'plian' is none, did you mean 'plain'?" in await chat.do("/compare what is 7 + 5? tiny plian")
        assert "'plian'" in await chat.do("/compare 'what is 7 + 5?' tiny plian")


async def test_the_model_in_use_is_marked_and_described(house: ChatHouse, capsys: Capture) -> None:
    """`/model list` marks the model that answers, `/model info` without a name describes it; a profile counts as its model."""
    async with chat_in(house, capsys, model="code") as chat:
        lines = (await chat.do("/model list")).splitlines()
        assert [line.split()[1] for line in lines if line.startswith("> ")] == ["big"]
        assert any(line.startswith("tiny*") for line in lines)
        assert "32,768 tokens" in await chat.do("/model info")
        assert "4,096 tokens" in await chat.do("/model info tiny")
        assert "big answers: profile code: the first candidate" in await chat.do("/model")


async def test_models_are_loaded_kept_and_unloaded(house: ChatHouse, capsys: Capture) -> None:
    """`/model keep` and `/model unload` are those of `olympus models`."""
    async with chat_in(house, capsys) as chat:
        assert "is pinned" in await chat.do("/model keep tiny --pin")
        assert "plain" in await chat.do("/model unload plain")
        assert house.request("model.list").models[1].state == "available"
        await chat.do("/models load plain")
        assert house.request("model.list").models[1].state == "loaded"


async def test_a_pull_that_is_stopped_is_cancelled_on_the_bus_and_the_chat_goes_on(
    house: ChatHouse, capsys: Capture
) -> None:
    """Ctrl-C during a sub-command ends its request; the connection and the next command work."""
    async with chat_in(house, capsys) as chat:
        began, cancelled = pulls["begun"], pulls["cancelled"]
        running = asyncio.create_task(chat.slash.run("/model pull ollama:x", Person()))
        await house.reached(lambda: pulls["begun"] > began, "the pull begins")

        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(running, WAIT_S)

        await house.reached(lambda: pulls["cancelled"] > cancelled, "the pull is cancelled")
        assert "tiny" in await chat.do("/model list")


async def test_the_loop_goes_on_while_a_sub_command_waits(house: ChatHouse, capsys: Capture) -> None:
    """A command that waits for an answer of the person leaves the chat's loop to others."""
    house.request("memory.remember", {"key": "city", "value": "Porto"})
    asked = asyncio.Event()
    answered: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    class Slow(Person):
        async def ask(self, question: str) -> str:
            asked.set()
            return await answered

    async with chat_in(house, capsys) as chat:
        running = asyncio.create_task(chat.slash.run("/memory clear", Slow()))
        await asyncio.wait_for(asked.wait(), WAIT_S)

        await chat.conversation.client.request("memory.all", {})
        answered.set_result("y")

        assert await asyncio.wait_for(running, WAIT_S) == Outcome()
    assert house.request("memory.all").facts == []


# Routing, options, tools -------------------------------------------------------------------------------------------


async def test_the_route_is_explained(house: ChatHouse, capsys: Capture) -> None:
    """`/route` says what answers here; with a profile it is `olympus route`."""
    async with chat_in(house, capsys) as chat:
        assert "tiny answers" in await chat.do("/route")
        assert "big" in await chat.do("/route code")
        assert "there is no profile" in await chat.do("/route nonsense")


async def test_options_of_this_chat_are_checked_as_requests_are(house: ChatHouse, capsys: Capture) -> None:
    """A right value is sent with the next question; a wrong one is refused by name, value and range."""
    async with chat_in(house, capsys) as chat:
        await chat.do("/options temperature=0.25 max_tokens=7")
        await chat.ask("hello")
        assert (house.asked[-1].temperature, house.asked[-1].max_tokens) == (0.25, 7)

        wrong = await chat.do("/options temperature=11")
        assert "temperature = 11 is not allowed: it is a number from 0 to 10" in wrong
        assert "did you mean 'temperature'?" in await chat.do("/options temprature=1")
        assert chat.conversation.choices.options == {"temperature": 0.25, "max_tokens": 7}

        await chat.do("/options temperature=")
        assert chat.conversation.choices.options == {"max_tokens": 7}
        assert "said in this chat" in await chat.do("/options")
        await chat.do("/options reset")
        assert chat.conversation.choices.options == {}
        await chat.do("/options seed=3 --save")
    assert preferences.load(house.settings).options == {"seed": 3}


async def test_tools_are_given_and_taken(house: ChatHouse, capsys: Capture) -> None:
    """`/tools off remember` takes one, `/tools on forget` adds one; without names all go, and the usual ones come."""
    async with chat_in(house, capsys) as chat:
        await chat.do("/tools off remember")
        assert list(chat.conversation.choices.tools) == ["recall", "search_memory"]
        await chat.do("/tools on forget")
        assert list(chat.conversation.choices.tools) == ["recall", "search_memory", "forget"]
        await chat.do("/tools off")
        assert list(chat.conversation.choices.tools) == []
        await chat.do("/tools on")
        assert list(chat.conversation.choices.tools) == ["remember", "recall", "search_memory"]
        assert "did you mean 'recall'?" in await chat.do("/tools on recal")
        assert "forget" in await chat.do("/tools")


# Sessions, feedback, templates, projects ---------------------------------------------------------------------------


async def test_an_earlier_session_is_gone_on_with(house: ChatHouse, capsys: Capture) -> None:
    """`/session new`, `list` and `resume` by the beginning of an id; the model is shown what was said there."""
    async with chat_in(house, capsys, tools=()) as chat:
        await chat.ask("my bees are well")
        first = chat.conversation.session_id
        await until_kept(house, first, 2)
        await chat.do("/session new")
        assert chat.conversation.session_id != first
        assert chat.conversation.messages == []
        assert first in await chat.do("/session list")

        shown = await chat.do(f"/session resume {first[:-1]}")
        assert "my bees are well" in shown
        assert chat.conversation.session_id == first
        assert f"{first}*" in await chat.do("/session list")
        assert first in await chat.do("/session")
        assert "that is the session of this chat" in await chat.do(f"/session delete {first}", "y")
        assert len(house.turns(first)) == 2
        assert "not_found" in await chat.do("/session resume no-such-session")


async def test_earlier_sessions_are_bridged_into_this_one(house: ChatHouse, capsys: Capture) -> None:
    """`/session bridge` shows what they hold, and the next question carries it."""
    async with chat_in(house, capsys, tools=(), memory_context=False, user="bridger") as chat:
        await chat.ask("the release is planned for the ninth of May")
        first = chat.conversation.session_id
        await until_kept(house, first, 2)
        await chat.do("/session new")

        assert "ninth of May" in await chat.do("/session bridge when is the release")

        await chat.ask("and who knows?")
        assert "ninth of May" in house.asked[-1].messages[-1].content


async def test_feedback_is_about_the_last_answer_and_takes_free_text(house: ChatHouse, capsys: Capture) -> None:
    """An apostrophe needs no quotes, a text may begin with a dash, and without an answer there is none to judge."""
    async with chat_in(house, capsys) as chat:
        assert "no whole answer" in await chat.do("/feedback good")
        await chat.ask("what colour is it?")
        reply_id = chat.conversation.last_reply_id

        await chat.do("/feedback fix It's blue,  isn't it?")
        await chat.do("/feedback bad -- no: wrong")
        await chat.do("/feedback good")
        assert "did you mean 'good'?" in await chat.do("/feedback goood")
        await chat.ask("fail overloaded")
        assert "no whole answer" in await chat.do("/feedback good")

    assert [(each.correction, each.rating, each.comment) for each in house.feedback] == [
        ("It's blue,  isn't it?", None, ""),
        (None, 0.0, "-- no: wrong"),
        (None, 1.0, ""),
    ]
    assert {(each.reply_id, each.session_id) for each in house.feedback} == {(reply_id, chat.conversation.session_id)}


def test_feedback_outside_a_chat_is_about_the_last_answer_that_is_kept(house: ChatHouse, capsys: Capture) -> None:
    """`olympus feedback` shows which answer it is about, and takes one by its id or by its session."""
    assert app.main(["feedback", "good", *house.flags]) == exits.OK
    assert "what is it?" in capsys.readouterr().err
    assert app.main(["feedback", "fix", "so", "it", "is", "--reply", "named", *house.flags]) == exits.OK
    assert app.main(["feedback", "bad", "--session", "other", *house.flags]) == exits.FAILED
    assert "no answer is kept" in capsys.readouterr().err
    assert app.main(["feedback", "fix", *house.flags]) == exits.USAGE

    assert [(each.reply_id, each.correction) for each in house.feedback] == [("abc123", None), ("named", "so it is")]


async def test_a_template_is_filled_and_asked(house: ChatHouse, capsys: Capture, tmp_path: Path) -> None:
    """`/template use` asks for what is missing, and its prompt becomes the question; a wrong one is told."""
    folder = tmp_path / ".olympus" / "templates"
    folder.mkdir(parents=True)
    (folder / "greet.yaml").write_text("prompt: Greet {name} in {language:English}.\noptions: {temperature: 0.5}\n")
    project = Project(root=tmp_path, name="p", templates=(folder,))
    async with chat_in(house, capsys, project=project) as chat:
        assert "name" in await chat.do("/template use greet", "O'Hara")
        assert chat.outcome.question == "Greet O'Hara in English."
        assert chat.conversation.choices.options == {"temperature": 0.5}

        await chat.do("/template use greet language=French name='Ada L'")
        assert chat.outcome.question == "Greet Ada L in French."

        # What the person said counts more than what a template asks for.
        await chat.do("/options temperature=1")
        await chat.do("/template use greet name=Bo")
        assert chat.conversation.choices.options == {"temperature": 1}

        assert "given up" in await chat.do("/template use greet")
        assert chat.outcome == Outcome()
        assert "greet" in await chat.do("/template use gret")
        assert chat.outcome == Outcome()


async def test_a_profile_is_taken_for_this_chat_and_what_was_said_here_stays(
    house: ChatHouse, capsys: Capture, tmp_path: Path
) -> None:
    """`/project use python` changes the system prompt, and not the model that this chat was told to use."""
    async with chat_in(house, capsys, project=Project(root=tmp_path, name="p")) as chat:
        await chat.do("/model use plain")
        await chat.do("/options seed=3")
        before = chat.conversation.choices.system
        await chat.do("/project use python")
        shown = await chat.do("/project show")
        assert "profile python (asked for)" in shown
        assert "options.seed   said in this chat  3" in re.sub(" {3,}", "   ", shown)
        choices = chat.conversation.choices
        assert choices.system != before
        assert choices.model == "plain"
        assert choices.options["seed"] == 3
        assert choices.origins["options.seed"] == choices.origins["model"] == "said in this chat"
        assert choices.project is not None
        assert choices.project.profile == "python"
        assert "python" in await chat.do("/project use pyton")
        assert chat.conversation.choices.project == choices.project


# What is wrong, and the end ----------------------------------------------------------------------------------------


async def test_mistakes_are_told_and_the_chat_goes_on(house: ChatHouse, capsys: Capture) -> None:
    """Unknown commands and actions name the nearest; usage errors, refusals and help end nothing."""
    async with chat_in(house, capsys) as chat:
        assert "did you mean /memory?" in await chat.do("/memry list")
        assert "did you mean 'search'?" in await chat.do("/memory serch tea")
        assert "unrecognized arguments: --nonsense" in await chat.do("/memory list --nonsense")
        assert "usage:" in await chat.do("/memory search --help")
        assert "not_found" in await chat.do("/memory show no-such-memory")
        assert "--config and --set stand before the chat" in await chat.do("/memory list --type x --set a=b")
        assert "stdin, which is the keyboard" in await chat.do("/memory add -")
        assert "/template" in await chat.do("/help")
        assert "show-context" in await chat.do("/help memory")
        assert chat.outcome == Outcome()


async def test_that_learning_does_not_run_is_told_and_the_chat_goes_on(serve_broker: Serve, capsys: Capture) -> None:
    """Feedback that nobody can take up says so in words; so does every command of a service that is not there."""
    async with serve_broker() as settings, Client(settings) as client:
        await client.connect(WAIT_S)
        conversation = Conversation(client, settings, Choices())
        conversation.last_reply_id = "an answer"
        slash = Slash(conversation, settings)
        for line in ("/feedback good", "/model list", "/model use x", "/session list", "/memory list"):
            person = Person()
            assert await slash.run(line, person) == Outcome()
            shown = "".join(person.said) + capsys.readouterr().err
            assert ("learning does not run" if "feedback" in line else "no_worker") in shown
        await conversation.close()


async def test_that_the_bus_is_away_is_told_at_once_and_commands_work_when_it_is_back(
    tmp_path: Path, capsys: Capture
) -> None:
    """Nobody waits for a request's time to run out; what needs no bus works meanwhile."""
    with ChatHouse(tmp_path, has_memory=False) as house:
        async with chat_in(house, capsys) as chat:
            await chat.do("/model list")
            await asyncio.to_thread(house.stop_broker)
            async with asyncio.timeout(WAIT_S):
                while chat.conversation.is_connected:
                    await asyncio.sleep(0.01)
            for line in ("/model list", "/model use tiny", "/session list", "/session resume x"):
                assert "the bus is away" in await chat.do(line)
            await chat.do("/options seed=1")
            assert chat.conversation.choices.options == {"seed": 1}

            await asyncio.to_thread(house.start_broker)
            await chat.conversation.client.connect(WAIT_S)
            assert "tiny" in await chat.do("/model list")


async def test_the_last_question_is_asked_again_and_the_chat_ends(house: ChatHouse, capsys: Capture) -> None:
    """`/retry` needs a question, `/quit` and `/exit` leave, and what is no command is a question."""
    async with chat_in(house, capsys) as chat:
        assert "nothing was asked yet" in await chat.do("/retry")
        await chat.ask("hello")
        await chat.do("/retry")
        assert chat.outcome == Outcome(is_retry=True)
        for line in ("/quit", "/exit"):
            await chat.do(line)
            assert chat.outcome.is_quit
        await chat.do("/usr/bin is full")
        assert chat.outcome == Outcome(question="/usr/bin is full")


async def test_names_are_completed_once_they_are_known(house: ChatHouse, capsys: Capture) -> None:
    """Models, profiles and sessions complete; so do actions and their options."""
    async with chat_in(house, capsys) as chat:
        chat.slash.completions("/")
        async with asyncio.timeout(WAIT_S):
            while not chat.slash.completions("/model use t"):
                await asyncio.sleep(0.01)

        def words(before: str) -> set[str]:
            return {word for word, _ in chat.slash.completions(before)}

        assert words("/model use ") >= {"tiny", "plain", "big", "code", "general"}
        assert words("/model info ") == {"tiny", "plain", "big"}
        assert words("/route ") == {"general", "code", "fast"}
        assert words("/compare x ti") == {"tiny"}
        assert "--save" not in words("/memory search --")
        assert words("/memory search --ex") == {"--explain"}


# Outside of a chat --------------------------------------------------------------------------------------------------


def test_sessions_are_managed_from_the_shell(house: ChatHouse, capsys: Capture) -> None:
    """`olympus session list`, `show`, `bridge` and `delete`, by the beginning of an id."""
    for number, text in enumerate(("the key is under the mat", "where is the key?")):
        session_id = f"shell{number}-of-a-session"
        house.request("memory.session.create", {"session_id": session_id, "type": "chat", "user_id": "sheller"})
        house.request("memory.session.append", {"session_id": session_id, "turns": [{"role": "user", "content": text}]})
    house.request("memory.session.create", {"session_id": "shell-agent", "type": "agent", "user_id": "sheller"})

    def run(*words: str) -> tuple[int, str]:
        code = app.main(["session", *words, *house.flags])
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    code, listed = run("list", "--user", "sheller")
    assert code == exits.OK
    assert "shell1-of-a-session" in listed
    assert "shell-agent" not in listed
    assert "shell-agent" in run("list", "--all")[1]
    assert "under the mat" in run("show", "shell0")[1]
    assert "under the mat" in run("bridge", "shell1", "where", "is", "the", "key")[1]
    assert run("show", "shell") == (exits.USAGE, "olympus: 'shell' fits 3 sessions; more of the id tells them apart\n")
    assert run("delete", "shell0")[0] == exits.USAGE
    assert "deleted, with 1 turn" in run("delete", "shell0", "--yes")[1]
    assert run("show", "shell0")[0] == exits.FAILED


def test_preferences_are_kept_from_the_shell(house: ChatHouse, capsys: Capture) -> None:
    """`olympus models use` and `olympus options` write what chats begin with, and refuse what could not be."""

    def run(*words: str) -> tuple[int, str]:
        code = app.main([*words, *house.flags])
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    assert run("model", "use", "code")[0] == exits.OK
    assert run("options", "temperature=0.5", "seed=4")[0] == exits.OK
    assert run("options", "seed=")[0] == exits.OK
    assert run("options", "temperature=hot")[0] == exits.USAGE
    assert "a number from 0 to 10" in run("options", "temperature")[1]
    assert run("model", "use", "cod") == (
        exits.USAGE,
        "olympus: there is no model and no routing profile 'cod'; did you mean 'code'?\n",
    )
    kept = preferences.load(house.settings)
    assert (kept.model, kept.options) == ("code", {"temperature": 0.5})
    assert "32,768" in run("model", "info")[1]

    assert run("models", "use", "--reset")[0] == exits.OK
    assert run("options", "reset")[0] == exits.OK
    kept = preferences.load(house.settings)
    assert (kept.model, kept.options) == (None, {})
    assert run("route", "--task", "code")[1].startswith("big")


def test_a_broken_preferences_file_is_named_with_its_line(house: ChatHouse, capsys: Capture) -> None:
    """Nothing is written over what cannot be read."""
    file = house.home / "chat.yaml"
    file.write_text("model: tiny\noptions: {temperature: 99}\n")

    assert app.main(["options", "seed=1", *house.flags]) == exits.CONFIGURATION
    assert "chat.yaml line 2" in capsys.readouterr().err
    assert "99" in file.read_text()
