"""Slash commands: how they are read, which there are, what completes them, and how sub-commands run under a chat."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import sampling
from bus.cli import app, exits
from bus.cli.action import described_actions
from bus.cli.arguments import settings_from
from bus.cli.chat.choices import Choices
from bus.cli.chat.conversation import Conversation
from bus.cli.chat.slash import COMMANDS, Outcome, Slash
from bus.cli.chat.slash_words import first_word, is_command, meant, parts, words
from bus.cli.connection import run_with_client
from bus.cli.host import Host, run_hosted
from bus.cli.hosting import hosted
from bus.cli.models_files import list_lines
from bus.cli.options import changed_options
from bus.cli.session_command import session_lines
from bus.client import Client
from bus.near_names import nearest
from bus.settings import Settings, SettingsError
from schemas.bodies.model import ModelInfo, Models
from schemas.bodies.sessions import Session

# What issue 8 promises: each is a slash command and a sub-command.
PROMISED = {
    "memory": ("list", "add", "forget", "clear", "search"),
    "model": ("list", "use", "keep", "unload", "info", "pull"),
    "compare": (),
    "template": ("list", "use", "create", "show"),
    "project": ("detect", "use", "init"),
    "session": ("list", "resume", "bridge"),
    "feedback": (),
    "route": (),
    "options": (),
}

# A chat's own affairs, which mean nothing outside of one.
OF_THE_CHAT = {"tools", "retry", "help", "quit"}


class Person:
    """A front end that notes what is said and types nothing."""

    is_plain = True

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        """Note it."""
        self.said.append(text)

    async def ask(self, question: str) -> str:
        """Nobody is there."""
        return ""


def conversation() -> Conversation:
    """What slash commands look at of a conversation that has not begun."""
    fake = SimpleNamespace(
        client=SimpleNamespace(is_connected=True),
        choices=Choices(),
        session_id="s",
        last_reply_id="",
        last_question="",
        last_context=None,
        last_addition="",
        last_block="",
        messages=[],
    )
    return cast(Conversation, fake)


async def said(line: str) -> str:
    """What a command that needs no bus says."""
    person = Person()
    assert await Slash(conversation(), Settings()).run(line, person) == Outcome()
    return "\n".join(person.said)


# Reading ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's blue, isn't it", ["It's", "blue,", "isn't", "it"]),
        ("'tis the season", ["'tis", "the", "season"]),
        ("a 'b c' d", ["a", "b c", "d"]),
        ('a "b \'c" d', ["a", "b 'c", "d"]),
        (r'say "he said \"x\" \\" now', ["say", 'he said "x" \\', "now"]),
        ("file='my file.py' x=\"1 2\"", ["file=my file.py", "x=1 2"]),
        ('5" disk and 3" disk', ['5"', "disk", "and", '3"', "disk"]),
        ("'' x", ["", "x"]),
        ("C:\\path\\file", ["C:\\path\\file"]),
        ("one\ntwo", ["one", "two"]),
        ("", []),
    ],
)
def test_quotes_hold_words_together_and_apostrophes_do_not(text: str, expected: list[str]) -> None:
    """People may write as they speak: only a quote around whole words is one."""
    assert words(text) == expected


@given(st.text(max_size=200))
def test_every_text_has_words(text: str) -> None:
    """Nothing that is typed is an error, and without quotes words are what stands between blanks."""
    found = words(text)

    if not {"'", '"'} & set(text):
        assert found == text.split()


@pytest.mark.parametrize("line", ["/help", "/", "/?", "/memory list", "/feedback fix a\nb", "/nonsense"])
def test_a_word_behind_a_slash_is_a_command(line: str) -> None:
    """Also an unknown one, which is then told."""
    assert is_command(line)


@pytest.mark.parametrize("line", ["/usr/bin is full", " /help", "//", "/5", "text /help", "", "/a.b", "/ x"])
def test_a_path_or_a_text_is_no_command(line: str) -> None:
    """It goes to the model as it stands."""
    assert not is_command(line)


def test_a_command_is_its_name_and_the_rest_as_it_stands() -> None:
    """Names in any case, blanks within the rest kept."""
    assert parts("/Feedback  fix It's  blue ") == ("feedback", "fix It's  blue")
    assert parts("/") == ("", "")
    assert first_word("fix It's  blue") == ("fix", "It's  blue")
    assert first_word("") == ("", "")


def test_the_nearest_name_is_the_one_begun_or_the_most_alike() -> None:
    """Nothing is named where nothing is near."""
    names = ["memory", "model", "template"]

    assert nearest("mem", names) == "memory"
    assert nearest("tempalte", names) == "template"
    assert nearest("zzz", names) is None


# The table ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_slash_command_is_a_sub_command_of_the_same_name(command: Any) -> None:
    """Those about the chat itself alone are not."""
    assert (app.find(command.name) is None) == (command.name in OF_THE_CHAT)
    assert bool(command.sub) == (command.name not in OF_THE_CHAT)
    if command.sub:
        own, sub = app.find(command.name), app.find(command.sub)
        assert own is not None
        assert sub is not None
        assert own.module == sub.module


@pytest.mark.parametrize("name", PROMISED)
def test_every_promised_action_is_there_in_and_outside_of_a_chat(name: str) -> None:
    """The slash command offers it, and so does `olympus NAME`."""
    command = app.find(name)
    assert command is not None
    outside = {action for action, _ in described_actions(app.command_parser(command))}
    inside = {word for word, _ in completions(f"/{name} ")}

    assert set(PROMISED[name]) <= outside
    assert set(PROMISED[name]) <= inside


def completions(before: str) -> list[tuple[str, str]]:
    """What completes `before` while no name of a model or session is known."""

    async def ask() -> list[tuple[str, str]]:
        slash = Slash(conversation(), Settings())
        # Nothing is looked up: there is no bus.
        slash._known.refresh = lambda: None  # type: ignore[method-assign]
        return slash.completions(before)

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("before", "found"),
    [
        ("/mem", {"/memory"}),
        ("/mo", {"/model"}),
        ("/memory cl", {"clear"}),
        ("/memory show", {"show", "show-context"}),
        ("/memory off c", {"context"}),
        ("/session r", {"resume"}),
        ("/feedback ", {"good", "bad", "fix"}),
        ("/options te", {"temperature="}),
        ("/options seed=1 top", {"top_k=", "top_p="}),
        ("/tools o", {"on", "off"}),
        ("/tools off rec", {"recall"}),
        ("/model load x --co", {"--context"}),
        ("/help opt", {"options"}),
        ("/nonsense x", set()),
        ("hello /mem", set()),
    ],
)
def test_completion_follows_what_stands_before(before: str, found: set[str]) -> None:
    """Commands, then actions, then their values and options."""
    assert {word for word, _ in completions(before)} == found


def test_every_completed_command_and_action_says_what_it_is() -> None:
    """The menu of a front end has a line for each."""
    for command in COMMANDS:
        assert command.help
        if command.sub and command.whole is None:
            assert all(about for _, about in completions(f"/{command.name} ")), command.name


async def test_unknown_commands_and_actions_name_the_nearest() -> None:
    """A typing error is answered with what was probably meant, or with what there is."""
    assert "did you mean /options?" in await said("/optoins temperature=1")
    assert "/help lists the commands" in await said("/xyzzy")
    assert "did you mean 'resume'?" in await said("/session resum x")
    assert "/project has no 'xyzzy'; there are: use, show, detect, init" in await said("/project xyzzy")
    assert "/memory has no '\\x1b[31mred'" in await said("/memory \x1b[31mred")
    assert "did you mean /memory?" in await said("/help memroy")


async def test_help_names_every_command_and_its_actions() -> None:
    """`/help` has a line for each, `/help COMMAND` one for each action."""
    whole = await said("/help")
    assert all(f"/{command.name} " in whole for command in COMMANDS)
    assert "/memory clear" in await said("/help memory")
    assert "/template create" in await said("/help /template")
    assert "good|bad" in await said("/help feedback")


async def test_a_fault_in_the_program_ends_no_chat() -> None:
    """Its traceback is shown, and the next command works."""
    slash = Slash(conversation(), Settings())
    person = Person()

    assert await slash.run("/session new", person) == Outcome()

    assert "AttributeError" in person.said[0]
    assert "the chat goes on" in person.said[0]


async def test_a_fault_in_a_sub_command_ends_no_chat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its traceback is shown before the chat goes on."""

    def main(argv: Any) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(app, "main", main)

    assert await said("/model list") == ""
    assert "ZeroDivisionError" in capsys.readouterr().err


# Options ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("temperature=hot", "temperature = 'hot' is not allowed: it is a number from 0 to 10"),
        ("temperature=10.5", "temperature = 10.5 is not allowed: it is a number from 0 to 10"),
        ("top_p=0", "top_p = 0 is not allowed: it is a number above 0 and up to 1"),
        ("max_tokens=1.5", "a whole number from 1 to 1,000,000"),
        ("seed=true", "seed = True is not allowed"),
        ("truncate=end", "one of middle, refuse, start"),
        ("stop=[1]", "a list of at most 64 items, each a text of 1..256 characters"),
        ("json_schema=[]", "a JSON object"),
        ("tempreature=1", "did you mean 'temperature'?"),
        ("xyzzy=1", "there are: max_tokens"),
        ("conversation_id=x", "no option"),
        ("temperature", "is not name=value"),
    ],
)
def test_a_wrong_option_is_named_with_value_and_range(word: str, says: str) -> None:
    """As requests are checked, with what is allowed instead."""
    with pytest.raises(sampling.OptionError) as error:
        sampling.from_words([word])

    assert says in str(error.value)


def test_options_are_read_as_their_types() -> None:
    """Texts stay texts, one stop text is a list of one, and two ways to bind the form exclude each other."""
    given_words = ["temperature=0", "stop=END", "grammar=123", "top_k=4"]

    assert sampling.from_words(given_words) == {"temperature": 0, "stop": ["END"], "grammar": "123", "top_k": 4}
    with pytest.raises(sampling.OptionError, match="both given"):
        sampling.from_words(["json_schema={}", "grammar=x"])


def test_options_are_changed_emptied_and_reset() -> None:
    """What is not named stays, and a name alone changes nothing."""
    now = {"temperature": 0.5, "seed": 1}

    assert changed_options(now, ["seed=2", "top_k=3"]) == {"temperature": 0.5, "seed": 2, "top_k": 3}
    assert changed_options(now, ["seed="]) == {"temperature": 0.5}
    assert changed_options(now, ["reset", "seed"]) == {"temperature": 0.5}
    assert changed_options(now, ["reset"]) == {}
    assert changed_options(now, ["seed"]) is None
    for wrong in (["sed="], ["reset", "sed"], ["sed"]):
        with pytest.raises(sampling.OptionError, match="did you mean 'seed'"):
            changed_options(now, wrong)


# Views --------------------------------------------------------------------------------------------------------------


def test_the_model_in_use_is_marked_beside_the_default() -> None:
    """`>` before the one that answers here, `*` behind the default."""
    infos = [
        ModelInfo(
            name=name,
            family="",
            format="gguf",
            quantisation="",
            parameters=0,
            size_bytes=0,
            context_tokens=0,
            state="available",
        )
        for name in ("a", "b")
    ]
    models = Models(models=infos, default="a")

    assert [line.split()[0] for line in list_lines(models)[1:]] == ["a*", "b"]
    assert [line.split("  ")[0] for line in list_lines(models, "b")[1:]] == ["a*", "> b"]


def test_sessions_are_listed_with_what_they_are_about() -> None:
    """A control character of a title reaches no terminal, the session of this chat is marked."""
    one = Session(
        session_id="chat-1",
        ns="session",
        user_id="u",
        type="chat",
        state="open",
        turns=3,
        created_at=0.0,
        last_used_at=90.0,
        metadata={"title": "tea \x1b[31m", "project": "/home/ada/shop"},
    )

    row = session_lines([one], 150.0, here="chat-1")[1]

    assert row.split() == ["chat-1*", "1", "min", "3", "open", "shop", "tea", "\\x1b[31m"]
    assert "olympus chat begins one" in session_lines([], 0.0)[0]


# Hosting ------------------------------------------------------------------------------------------------------------


class Answering:
    """A client of a chat, as far as a sub-command of these tests sees it."""

    is_connected = True


async def nobody(question: str) -> str:
    """Says yes to everything."""
    return f"yes to {question}"


async def test_a_sub_command_runs_on_the_chats_loop_client_and_settings() -> None:
    """Its thread is not the loop's, its coroutine is run by the loop, and it sees the chat's client."""
    client = cast(Client, Answering())
    settings = Settings()
    seen: list[Any] = []

    async def work(given_client: Client) -> int:
        seen.extend([given_client, threading.current_thread()])
        return 7

    def body() -> int:
        args: Any = SimpleNamespace(config=None, set=[])
        seen.append(settings_from(args))
        host = hosted()
        assert host is not None
        seen.append(host.asked("really?"))
        assert threading.current_thread() is not threading.main_thread()
        return run_with_client(args, work)

    assert await run_hosted(Host(client, settings, nobody), body) == 7
    assert seen == [settings, "yes to really?", client, threading.current_thread()]
    assert hosted() is None


async def test_a_sub_command_takes_no_settings_of_its_own_under_a_chat() -> None:
    """They are the chat's, which has read them already."""
    caught: list[Exception] = []

    def body() -> int:
        args: Any = SimpleNamespace(config=None, set=["a=b"])
        try:
            settings_from(args)
        except SettingsError as error:
            caught.append(error)
        return exits.USAGE

    assert await run_hosted(Host(cast(Client, Answering()), Settings(), nobody), body) == exits.USAGE
    assert "before the chat" in str(caught[0])


async def test_cancelling_ends_what_runs_and_lets_nothing_begin() -> None:
    """The sub-command's coroutine is cancelled, and its next one is refused as by Ctrl-C."""
    began = asyncio.Event()
    ends: list[str] = []
    over = threading.Event()

    async def endless(client: Client) -> int:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            # What a sub-command does on its way out is done before its thread goes on.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
            ends.append("cancelled")
        return exits.OK

    def body() -> int:
        args: Any = SimpleNamespace(config=None, set=[])
        for _ in range(2):
            try:
                run_with_client(args, endless)
            except KeyboardInterrupt:
                ends.append("interrupted")
        over.set()
        return exits.INTERRUPTED

    running = asyncio.create_task(run_hosted(Host(cast(Client, Answering()), Settings(), nobody), body))
    await asyncio.wait_for(began.wait(), 10)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 10)

    assert over.is_set()
    assert ends == ["cancelled", "interrupted", "interrupted"]


async def test_a_chat_goes_on_without_a_sub_command_that_cannot_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work outside of the bus is waited for a little, and then left to itself."""
    monkeypatch.setattr("bus.cli.host._LEAVE_S", 0.01)
    let_go = threading.Event()
    began = threading.Event()

    def body() -> int:
        began.set()
        let_go.wait(10)
        return exits.OK

    running = asyncio.create_task(run_hosted(Host(cast(Client, Answering()), Settings(), nobody), body))
    await asyncio.to_thread(began.wait, 10)
    running.cancel()
    try:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(running, 5)
        assert not let_go.is_set()
    finally:
        let_go.set()


@pytest.mark.parametrize(
    ("line", "is_one"), [("exit", True), (" Quit \n", True), ("exit codes?", False), ("/usr/bin is full", False)]
)
def test_a_habit_of_other_shells_ends_the_chat_and_a_question_does_not(line: str, is_one: bool) -> None:
    """The word alone is meant as a command; a path is not."""
    assert is_command(meant(line)) is is_one
