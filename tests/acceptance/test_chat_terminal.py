"""`olympus chat` in a real terminal: keys go in through tmux, and what stands on the screen is looked at."""

from __future__ import annotations

import os
import re
import shlex
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chat_house import ChatHouse, Say
from tests.tmux import Tmux

GOLDEN = Path(__file__).parents[1] / "golden" / "terminal"

# What differs from run to run, and what stands for it in a golden screen.
MASKS = (
    (r"^memory: nothing;.*\n(\S.*\n)*\n", ""),
    (r"chat-\d{8}-\d{6}-[0-9a-f]{6}", "chat-ID"),
    (r"session [0-9a-f]{6}\b", "session ID"),
    (r"\d+(\.\d+)? tok/s", "N tok/s"),
    (r"first after \d+\.\d s", "first after N s"),
    (r" · \d+ s · ", " · N s · "),
)

# Everything is there that a prompt has: the line, and below it the bar with what the model service said.
READY = r"^›\n.*tiny"
DONE = r"first after"

Chat = Callable[..., Tmux]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatHouse]:
    """A broker with memory and a scripted model, for all tests of this file."""
    with ChatHouse(tmp_path_factory.mktemp("house") / "home") as house:
        yield house


@pytest.fixture
def chat(house: ChatHouse, tmp_path: Path) -> Iterator[Chat]:
    """`chat("--flag", columns=80, rows=24)` starts `olympus chat` in a terminal, in a folder that is no project.

    Each test is a person of its own, whose memory holds nothing of the other tests.
    """
    started: list[Tmux] = []

    def start(*flags: str, columns: int = 80, rows: int = 24, before: str = "", **environment: str) -> Tmux:
        command = [sys.executable, "-m", "bus.cli.app", "chat", *house.flags, "--user", tmp_path.name, *flags]
        if before:
            command = ["sh", "-c", before.replace("CHAT", shlex.join(command))]
        screen = Tmux(
            command,
            columns=columns,
            rows=rows,
            environment={"PYTHONPATH": house.environment["PYTHONPATH"], "HOME": str(house.home), **environment},
            folder=tmp_path,
        )
        started.append(screen)
        return screen

    yield start
    for screen in started:
        screen.close()


def ask(screen: Tmux, question: str) -> str:
    """Ask, and give the screen when the answer is complete and the prompt is there again."""
    screen.keys(question, "Enter")
    return screen.wait_for(rf"^› {re.escape(question)}(\n.*)*{DONE}[^›]*\n›")


def masked(screen: str) -> str:
    """A screen without what differs from run to run."""
    for pattern, instead in MASKS:
        screen = re.sub(pattern, instead, screen, flags=re.MULTILINE)
    return screen + "\n"


def check_golden(name: str, screen: str) -> None:
    """Compare with the screen that is kept; OLYMPUS_TEST_WRITE_GOLDEN=1 keeps this one instead."""
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("OLYMPUS_TEST_WRITE_GOLDEN"):
        file.write_text(masked(screen))
    assert masked(screen) == file.read_text()


def test_first_question_looks_as_it_should(chat: Chat) -> None:
    """Who speaks is clear, the figures stand below, the bar says what the chat runs with."""
    screen = chat()
    screen.wait_for(READY)

    answered = ask(screen, "What is tea?")

    assert "You said: What is tea?" in answered
    check_golden("first_question", screen.wait_for(r"^›\n.*50 tok/s"))


def test_markdown_is_drawn(chat: Chat) -> None:
    """Headings, emphasis, lists, code and tables, in the colours of the terminal's own palette."""
    screen = chat()
    screen.wait_for(READY)

    ask(screen, "markdown")

    check_golden("markdown", screen.wait_for(r"^›\n.*50 tok/s"))
    styled = screen.screen(has_styles=True)
    assert "\x1b[1mbold" in styled and '\x1b[32m"hello"' in styled
    assert not re.search(r"\x1b\[[0-9;]*[34]8;[25]", styled), "a colour that is not the terminal's own"


def test_a_window_of_20_columns_is_enough(chat: Chat) -> None:
    """Everything is wrapped or cut, nothing runs over the edge."""
    screen = chat(columns=20, rows=40)
    screen.wait_for(READY)

    ask(screen, "markdown")

    check_golden("narrow", screen.wait_for(r"^›\n.*tiny"))
    assert all(len(line) < 20 for line in screen.screen().splitlines())


def test_ctrl_c_stops_the_answer_and_stays(house: ChatHouse, chat: Chat) -> None:
    """The generation is cancelled, what came stays, and the next question is answered."""
    cancelled = house.cancelled
    screen = chat()
    screen.wait_for(READY)

    screen.keys("endless", "Enter")
    screen.wait_for("word5 .*\n.*Ctrl-C stops")
    screen.keys("C-c")

    screen.wait_for(r"word5(.*\n)+stopped; what had come is kept\n\n›")
    house.until(lambda: house.cancelled > cancelled, "the cancelled generation")
    assert "You said: go on" in ask(screen, "go on")


def test_what_is_typed_during_an_answer_is_kept(house: ChatHouse, chat: Chat) -> None:
    """Nothing is echoed into the answer; the next prompt has it, and an Enter among it sends it."""
    screen = chat()
    screen.wait_for(READY)
    house.answer(Say(pieces=["Wait", " for it."], waits=True))

    screen.keys("slow", "Enter")
    screen.wait_for("Wait for it")
    screen.keys("typed ahead", "Enter", "and more")
    assert "typed" not in screen.screen()
    house.release()

    screen.wait_for(r"› typed ahead(\n.*)*You said: typed ahead(\n.*)*› and more")


def test_resize_in_the_middle_of_an_answer(house: ChatHouse, chat: Chat) -> None:
    """Made narrower and wider while words come, each word is there once, in the end and in the scrollback."""
    screen = chat()
    screen.wait_for(READY)
    screen.keys("story 60", "Enter")

    screen.wait_for("word12 ")
    screen.resize(50, 24)
    screen.wait_for("word30 ")
    screen.resize(100, 30)
    screen.wait_for(DONE)

    words = re.findall(r"word\d+", screen.everything())
    assert words == [f"word{number}" for number in range(60)]
    assert max(map(len, screen.screen().splitlines())) > 90


def test_long_answer_leaves_each_line_once_in_the_scrollback(house: ChatHouse, chat: Chat) -> None:
    """Far more than the window holds: code, a list, a table and a paragraph higher than the window itself."""
    code = "".join(f"code_line_{number} = {number}\n" for number in range(60))
    items = "".join(f"- item_{number} of a list\n" for number in range(40))
    rows = "".join(f"| row_{number} | {number} |\n" for number in range(30))
    words = " ".join(f"longword_{number}" for number in range(150))
    page = f"Intro.\n\n```python\n{code}```\n\n{items}\n| name | value |\n|---|---|\n{rows}\n{words}\n\nOutro."
    house.answer(Say(pieces=[page[at : at + 40] for at in range(0, len(page), 40)], hold_s=0.002))
    screen = chat(rows=12)
    screen.wait_for(READY)

    ask_text = "long"
    screen.keys(ask_text, "Enter")
    screen.wait_for(rf"Outro\.\n\n.*{DONE}")

    everything = screen.everything()
    for name, count in (("code_line", 60), ("item", 40), ("row", 30), ("longword", 150)):
        assert re.findall(rf"\b{name}_(\d+)\b", everything) == [str(number) for number in range(count)]
    assert "Ctrl-C stops" not in everything


def test_pasted_megabytes_stand_as_a_label_and_are_sent_whole(house: ChatHouse, chat: Chat) -> None:
    """The line stays usable at once; the history keeps the label alone, in a file of this user alone."""
    pasted = "\n".join(f"{number}: a line of a large file" for number in range(100_000))
    screen = chat()
    screen.wait_for(READY)

    screen.keys("Look: ")
    screen.paste(pasted)
    screen.wait_for(r"› Look: \[pasted 2\.9 MiB, 100,000 lines\]")
    screen.keys(" What is it?")
    screen.wait_for(r"lines\] What is it\?")
    before = len(house.asked)
    screen.keys("Enter")
    house.wait_asked(before + 1)

    assert house.asked[-1].messages[-1].content.endswith(f"Look: {pasted} What is it?")
    history = house.home / "chat" / "history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert history.stat().st_size < 10_000
    screen.wait_for(DONE)


def test_text_pasted_without_marks_is_not_sent_line_by_line(house: ChatHouse, chat: Chat) -> None:
    """A terminal that marks no pastes sends line ends as Enter; what comes all at once is one text all the same."""
    screen = chat()
    screen.wait_for(READY)
    before = len(house.asked)

    screen.paste("".join(f"{number}: a line of a large file\n" for number in range(5_000)), is_marked=False)

    screen.wait_for(r"› \[pasted .* lines\]")
    assert len(house.asked) == before


def test_bus_away_in_the_middle_of_an_answer_and_back(house: ChatHouse, chat: Chat) -> None:
    """It is said, waited for, and asked again; what is typed meanwhile is there afterwards."""
    screen = chat()
    screen.wait_for(READY)
    house.answer(Say(pieces=["Half an ", "answer"], waits=True))
    house.answer("The whole answer.")

    screen.keys("go", "Enter")
    screen.wait_for("Half an answer")
    house.stop_broker()
    screen.wait_for("^away: .*\n.*waiting for the bus · .*Ctrl-C stops")
    screen.keys("next")
    house.start_broker()

    screen.wait_for(r"^back after .*\n\nThe whole answer\.\n\n.*first after(.*\n)+› next")


def test_keys_work_while_the_bus_is_away(house: ChatHouse, chat: Chat) -> None:
    """The bar says that it is away, then that it is back; the line takes every key meanwhile."""
    screen = chat()
    screen.wait_for(READY)

    house.stop_broker()
    try:
        screen.wait_for("^bus away · ")
        screen.keys("still typing")
        screen.wait_for("^› still typing")
    finally:
        house.start_broker()

    screen.until(lambda shown: "bus away" not in shown and "› still typing" in shown, "the bar without 'bus away'")


def test_control_characters_of_the_model_cannot_drive_the_terminal(house: ChatHouse, chat: Chat) -> None:
    """They are spelt out, in text and in code."""
    screen = chat()
    screen.wait_for(READY)
    house.answer("\x1b[2J\x1b]0;title\x07 red\r\nnext \x9b5A\n\n```\n\x1b[31mcode\x08\n```\n")

    shown = ask(screen, "attack")

    assert "\\x1b[2J\\x1b]0;title\\x07 red\nnext \\x9b5A" in shown
    assert "\\x1b[31mcode\\x08" in shown
    assert "› attack" in shown


def test_no_color_is_heeded(chat: Chat) -> None:
    """NO_COLOR leaves weights and takes colours, of the prompt too."""
    screen = chat(NO_COLOR="1")
    screen.wait_for(READY)

    ask(screen, "markdown")

    styled = screen.screen(has_styles=True)
    assert "\x1b[1mbold" in styled
    assert not re.search(r"\x1b\[(?:\d+;)*(?:3[0-7]|9[0-7]|4[0-7])(?:;\d+)*m", styled)


def test_a_dumb_terminal_gets_plain_lines(chat: Chat) -> None:
    """No prompt that moves the cursor, no bar, and an answer all the same."""
    screen = chat(before="TERM=dumb exec CHAT")
    screen.keys("hello", "Enter")

    shown = screen.wait_for("You said: hello")

    assert "VRAM" not in shown and "›" not in shown


def test_leaving_gives_the_terminal_back(chat: Chat) -> None:
    """Ctrl-C at an empty line hints, clears a line that is not empty, and ends the second time; echo is on again."""
    screen = chat(before="CHAT; echo status $?; stty -a")
    screen.wait_for(READY)

    screen.keys("half a line", "C-c")
    screen.wait_for("^›$")
    screen.keys("C-c")
    screen.wait_for("Ctrl-C again ends")
    screen.keys("C-c")

    shown = screen.wait_for(r"^status 0\n(.*\n)*.* icanon .* echo ")
    assert "half a line" not in shown


@pytest.mark.parametrize("question", ["", "endless"])
def test_sigterm_gives_the_terminal_back(chat: Chat, question: str) -> None:
    """At the prompt and in the middle of an answer."""
    screen = chat(before="sh -c 'echo $$ > pid; exec CHAT'; echo status $?; stty -a")
    screen.wait_for(READY)
    if question:
        screen.keys(question, "Enter")
        screen.wait_for("word3 ")

    os.kill(int((screen.folder / "pid").read_text()), signal.SIGTERM)

    screen.wait_for(r"^status 143\n(.*\n)*.* icanon .* echo ")


def test_several_lines_and_their_keys(house: ChatHouse, chat: Chat) -> None:
    """A backslash, Alt-Enter, Ctrl-J and an open fence begin a new line; Enter sends the rest."""
    screen = chat()
    screen.wait_for(READY)
    before = len(house.asked)

    screen.keys("one\\", "Enter", "two", "M-Enter", "three", "C-j", "```", "Enter", "code", "Enter", "```")
    screen.wait_for("^› one\n· two\n· three\n· ```\n· code\n· ```\n")
    screen.keys("Enter")
    house.wait_asked(before + 1)

    assert house.asked[-1].messages[-1].content.endswith("one\ntwo\nthree\n```\ncode\n```")


def test_slash_commands_are_completed_and_run(chat: Chat) -> None:
    """The menu opens while a command is written; a question that a command asks is answered on a line of its own."""
    screen = chat()
    screen.wait_for(READY)

    screen.keys("/mo")
    screen.wait_for(r"^ +/model +which model answers")
    screen.keys("Tab", " use pl")
    screen.wait_for("^ +plain +loaded")
    screen.keys("Tab")
    screen.wait_for("^› /model use plain")
    screen.keys("Enter")
    screen.wait_for("^› /model use plain\n(.*\n)+›\nplain · ")
    screen.keys("/modle", "Enter")
    screen.wait_for("there is no /modle; did you mean /model")


def test_questions_are_called_up_again_after_a_new_start(chat: Chat) -> None:
    """Up brings the last question, in this chat and in the next one."""
    screen = chat()
    screen.wait_for(READY)
    ask(screen, "What was asked first?")
    screen.keys("C-d")
    assert screen.wait_end() == 0

    again = chat()
    again.wait_for(READY)
    again.keys("Up")

    again.wait_for(r"^› What was asked first\?")


def test_resume_goes_on_where_the_last_chat_ended(chat: Chat) -> None:
    """The end of the session is shown, and the model is given its turns."""
    screen = chat("--session", "about-tea")
    screen.wait_for(READY)
    ask(screen, "Tell me of tea")
    screen.keys("C-d")
    shown = screen.wait_for("olympus chat --session about-tea goes on with this")
    assert "session about-tea" in shown

    again = chat("--resume")

    again.wait_for("^going on with session about-tea · .*2 turns\n› Tell me of tea\n +You said: Tell me of tea")
