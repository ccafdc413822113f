"""`olympus chat` in pipes and in plain lines: the real command against a real broker and memory, and a scripted model."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bus.cli import exits
from tests.chat_house import WAIT_S, ChatHouse, Say


@pytest.fixture
def house(tmp_path: Path) -> Iterator[ChatHouse]:
    """A house of its own."""
    with ChatHouse(tmp_path / "home") as house:
        yield house


def command(house: ChatHouse, *words: str) -> list[str]:
    """`olympus chat` for this house."""
    return [sys.executable, "-m", "bus.cli.app", *house.flags, "chat", *words]


def surroundings(house: ChatHouse) -> dict[str, Any]:
    """Where the command runs: in a folder of no project."""
    folder = house.home.parent / "somewhere"
    folder.mkdir(exist_ok=True)
    return {"env": {**house.environment, "TERM": "xterm"}, "cwd": folder}


def chat(house: ChatHouse, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """One run of `olympus chat`."""
    return subprocess.run(
        command(house, *words), input=stdin, capture_output=True, timeout=60, check=False, **surroundings(house)
    )


@contextlib.contextmanager
def running(house: ChatHouse, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A run that the test talks to; it is ended when it takes too long, so that whoever reads it hears of the end."""
    process = subprocess.Popen(
        command(house, *words),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **surroundings(house),
    )
    watch = threading.Timer(2 * WAIT_S, process.kill)
    watch.start()
    try:
        yield process
    finally:
        watch.cancel()
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=30)


def last_question(house: ChatHouse) -> str:
    """What the model was asked last."""
    return house.asked[-1].messages[-1].content


def only_session(house: ChatHouse) -> str:
    """The id of the one session there is."""
    (session,) = house.request("memory.session.list", {}).sessions
    return str(session.session_id)


# Pipes


def test_a_question_is_answered_on_stdout_and_nothing_else_is(house: ChatHouse) -> None:
    """The answer alone, with a line end; a question that goes well says nothing on stderr."""
    done = chat(house, "hello", "world")

    assert (done.returncode, done.stdout, done.stderr) == (exits.OK, b"You said: hello world\n", b"")


def test_stdin_is_the_question_or_stands_below_it(house: ChatHouse) -> None:
    """`echo q | olympus chat` and `git diff | olympus chat 'review this'`."""
    chat(house, stdin=b"what is it?\n")
    assert last_question(house) == "what is it?\n"

    chat(house, "review this", stdin=b"- old\n+ new\n")
    assert last_question(house) == "review this\n\n- old\n+ new\n"


def test_an_answer_can_be_one_json_document(house: ChatHouse) -> None:
    """The generation as the catalogue has it, with text and usage."""
    done = chat(house, "--json", "hello")

    generation = json.loads(done.stdout)
    assert generation["text"] == "You said: hello"
    assert generation["usage"]["completion_tokens"] == 3


def test_an_answer_that_is_cut_off_says_so(house: ChatHouse) -> None:
    """The limit of tokens, or a window that is full; unless only failures are wanted."""
    house.answer(Say(pieces=["Half an"], finish_reason="length"))
    assert chat(house, "hello").stderr == b"olympus: cut off at its limit of tokens (--option max_tokens=...)\n"
    house.answer(Say(pieces=["word " * 5_000], finish_reason="length"))
    assert chat(house, "hello").stderr == b"olympus: cut off: the window of 4,096 tokens is full\n"
    house.answer(Say(pieces=["Half an"], finish_reason="length"))
    assert chat(house, "-q", "hello").stderr == b""


def test_nothing_to_ask_is_a_wrong_command_line(house: ChatHouse) -> None:
    """An empty stdin and --json without a question say what to do."""
    assert chat(house, stdin=b" \n").returncode == exits.USAGE
    assert b"'olympus chat QUESTION' asks" in chat(house).stderr
    assert house.asked == []


def test_a_failure_ends_the_command_with_its_code(house: ChatHouse) -> None:
    """Nothing on stdout, the reason on stderr."""
    house.answer(Say(error=("deadline_exceeded", "too slow")))
    late = chat(house, "hello", "--quiet")
    absent = chat(house, "hello", "--model", "absent")

    assert (late.returncode, late.stdout) == (exits.TIMED_OUT, b"")
    assert b"deadline_exceeded: too slow" in late.stderr
    assert (absent.returncode, absent.stdout) == (exits.FAILED, b"")
    assert b"absent" in absent.stderr


def test_without_a_broker_it_says_so_at_once(house: ChatHouse) -> None:
    """As every command does."""
    house.stop_broker()

    done = chat(house, "hello")

    assert done.returncode == exits.UNREACHABLE
    assert b"'olympus up' starts one" in done.stderr


def test_megabytes_of_stdin_reach_the_model_whole(house: ChatHouse) -> None:
    """Nothing is cut on the way."""
    text = b"0123456789abcde\n" * 200_000
    house.answer("Read.")

    done = chat(house, "review this", stdin=text)

    assert (done.returncode, done.stdout) == (exits.OK, b"Read.\n")
    assert last_question(house) == f"review this\n\n{text.decode()}"


def test_more_than_a_request_may_hold_is_refused_before_it_is_all_read(house: ChatHouse) -> None:
    """An endless stdin ends with the limit's name."""
    with open("/dev/zero", "rb") as endless:
        done = subprocess.run(
            [*command(house)[:-1], "--set", "bus.max_body_bytes=100000", "chat", "read this"],
            stdin=endless,
            capture_output=True,
            timeout=60,
            check=False,
            **surroundings(house),
        )

    assert done.returncode == exits.USAGE
    assert b"bus.max_body_bytes" in done.stderr


def test_bytes_that_are_no_text_are_asked_as_far_as_they_go(house: ChatHouse) -> None:
    """Nulls, broken UTF-8 and encoded surrogates become U+FFFD, and the person hears of it."""
    done = chat(house, "echo", stdin=b"a\0b\xffc\xed\xa0\x80d")

    assert done.returncode == exits.OK
    assert b"not UTF-8 text (byte 3)" in done.stderr
    text = last_question(house).split("\n\n")[1]
    assert text.replace("\ufffd", "") == "abcd"
    assert text.startswith("a\ufffdb\ufffdc")


def test_an_argument_that_is_no_text_is_asked_too(house: ChatHouse) -> None:
    """Python hands such bytes on as lone surrogates."""
    words = [os.fsencode(word) for word in command(house)]
    done = subprocess.run(
        [*words, b"caf\xe9"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
        **surroundings(house),
    )

    assert done.returncode == exits.OK
    assert last_question(house) == "caf\ufffd"


def test_control_characters_reach_a_pipe_as_they_are(house: ChatHouse) -> None:
    """Data stays data; only a terminal is protected from it."""
    house.answer("\x1b[31mred\x07")

    assert chat(house, "colour").stdout == b"\x1b[31mred\x07\n"


def test_a_reader_that_stops_reading_ends_the_generation(house: ChatHouse) -> None:
    """`olympus chat ... | head` leaves no model at work."""
    with running(house, "endless") as process:
        assert process.stdout is not None
        assert process.stdout.read(5)
        process.stdout.close()

        assert process.wait(WAIT_S) == exits.BROKEN_PIPE
        process.stdout = None
    house.until(lambda: house.cancelled == 1, "the generation to be cancelled")


def test_a_slow_reader_gets_everything_and_holds_up_nobody(house: ChatHouse) -> None:
    """The answer is complete and kept while most of it has not been read."""
    pieces = [f"{number:08} " for number in range(15_000)]
    house.answer(*pieces)
    with running(house, "much") as process:
        house.until(lambda: len(house.asked) == 1, "the question")
        house.until(lambda: len(house.turns(only_session(house))) == 2, "the answer to be kept")

        output, _ = process.communicate(timeout=60)
    assert output.decode() == "".join(pieces) + "\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, exits.INTERRUPTED), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_signal_ends_the_answer_and_keeps_what_had_come(house: ChatHouse, number: signal.Signals, code: int) -> None:
    """Ctrl-C and SIGTERM cancel the generation; the session has the part that was there."""
    house.answer(Say(pieces=["Half an answer"], waits=True))
    with running(house, "Tell me.") as process:
        assert process.stdout is not None
        assert process.stdout.read(14) == b"Half an answer"
        process.send_signal(number)

        assert process.wait(WAIT_S) == code
    house.until(lambda: house.cancelled == 1, "the generation to be cancelled")
    assert house.turns(only_session(house)) == [("user", "Tell me."), ("assistant", "Half an answer")]


def test_a_broker_that_restarts_in_mid_answer_is_waited_for(house: ChatHouse) -> None:
    """The answer begins again below what had come, and stderr says why."""
    house.answer(Say(pieces=["Half"], waits=True))
    house.answer("A whole answer.")
    with running(house, "Tell me.") as process:
        assert process.stdout is not None
        assert process.stdout.read(4) == b"Half"
        house.stop_broker()
        house.start_broker()
        output, talk = process.communicate(timeout=60)

    assert (process.returncode, output) == (exits.OK, b"\nA whole answer.\n")
    assert b"away" in talk
    assert b"back" in talk


def test_a_named_session_goes_on_from_run_to_run(house: ChatHouse) -> None:
    """Each run is shown what was said before, in order; --resume takes the last one."""
    chat(house, "--session", "notes", "one")
    chat(house, "--session", "notes", "two")
    chat(house, "--resume", "three")

    said = [message.content for message in house.asked[-1].messages if message.role == "user"]
    assert [line.split("\n\n")[-1] for line in said] == ["one", "two", "three"]
    assert [content for role, content in house.turns("notes") if role == "user"] == ["one", "two", "three"]


def test_without_memory_nothing_is_read_and_nothing_is_left(house: ChatHouse) -> None:
    """--no-memory is for what is nobody's business."""
    house.request("memory.remember", {"key": "name", "value": "Ada"})

    chat(house, "--no-memory", "hello")

    assert [message.content for message in house.asked[0].messages] == ["hello"]
    assert house.asked[0].tools == []
    assert house.request("memory.session.list", {}).sessions == []


def test_a_template_asks_with_its_model_and_options_and_flags_count_more(house: ChatHouse) -> None:
    """--template takes values from --var, and stdin where one says so."""
    folder = house.home / "templates"
    folder.mkdir(parents=True)
    (folder / "look.yaml").write_text(
        "prompt: |-\n  Look at this:\n  {what}\nsystem: You look.\nmodel: plain\noptions: {temperature: 0.5}\n"
    )

    done = chat(house, "--template", "look", "--var", "what=-", "--model", "tiny", stdin=b"the sky")
    missing = chat(house, "--template", "look")

    assert done.returncode == exits.OK, done.stderr
    asked = house.asked[-1]
    assert last_question(house) == "Look at this:\nthe sky"
    assert (asked.messages[0].content, asked.model, asked.temperature) == ("You look.", "tiny", 0.5)
    assert missing.returncode == exits.USAGE
    assert b"what" in missing.stderr


# Lines on a terminal


class Typing:
    """`olympus chat --plain` on a terminal of its own."""

    def __init__(self, house: ChatHouse, *words: str) -> None:
        self._ours, theirs = pty.openpty()
        self._seen = ""
        self.process = subprocess.Popen(
            command(house, "--plain", *words),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            **surroundings(house),
        )
        os.close(theirs)

    def __enter__(self) -> Typing:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)
        os.close(self._ours)

    def type(self, text: str) -> None:
        """Type keys."""
        os.write(self._ours, text.encode())

    def interrupt(self) -> None:
        """What the terminal sends for Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def until(self, text: str) -> str:
        """Read on until `text` is shown; everything since the last call."""
        give_up_at = time.monotonic() + WAIT_S
        while text not in self._seen:
            assert time.monotonic() < give_up_at, f"waited for {text!r}, there is {self._seen!r}"
            if select.select([self._ours], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    self._seen += os.read(self._ours, 65_536).decode(errors="replace").replace("\r\n", "\n")
        shown, _, self._seen = self._seen.partition(text)
        return shown + text

    def end(self) -> int:
        """The exit code."""
        return self.process.wait(WAIT_S)


def test_lines_are_asked_one_after_the_other_until_the_end_of_input(house: ChatHouse) -> None:
    """A plain chat greets, answers, joins lines that end with a backslash, and ends with Ctrl-D on a line of its own."""
    with Typing(house) as terminal:
        terminal.until("/help shows the commands")
        terminal.until("> ")
        terminal.type("hello\n")
        terminal.until("You said: hello\n")
        terminal.until("> ")
        terminal.type("one\\\n")
        terminal.until(". ")
        terminal.type("two\n")
        terminal.until("You said: two\n")
        terminal.until("> ")
        terminal.type("\x04")
        assert terminal.until("goes on with this").startswith("\n")
        assert terminal.end() == exits.OK

    assert last_question(house).endswith("one\ntwo")
    assert len(house.asked[-1].messages) == 3


def test_ctrl_c_stops_the_answer_and_stays_and_twice_leaves(house: ChatHouse) -> None:
    """What had come is kept; the next question is answered."""
    house.answer(Say(pieces=["Once upon"], waits=True))
    with Typing(house) as terminal:
        terminal.until("> ")
        terminal.type("Tell a story.\n")
        terminal.until("Once upon")
        terminal.interrupt()
        terminal.until("stopped")
        terminal.until("> ")
        terminal.type("go on\n")
        terminal.until("You said: go on\n")
        terminal.until("> ")
        terminal.interrupt()
        terminal.until("Ctrl-C again")
        terminal.until("> ")
        terminal.interrupt()
        assert terminal.end() == exits.OK

    assert house.cancelled == 1
    assert house.turns(only_session(house))[1] == ("assistant", "Once upon")


def test_slash_commands_work_in_lines(house: ChatHouse) -> None:
    """They act on this chat, are not sent to the model, and /quit ends it."""
    with Typing(house) as terminal:
        terminal.until("> ")
        terminal.type("/model use plain\n")
        terminal.until("> ")
        terminal.type("hello\n")
        terminal.until("You said: hello\n")
        terminal.until("> ")
        terminal.type("/modle\n")
        terminal.until("did you mean /model?")
        terminal.until("> ")
        terminal.type("/quit\n")
        assert terminal.end() == exits.OK

    assert [chat.model for chat in house.asked] == ["plain"]


def test_a_terminal_is_not_driven_by_what_a_model_says(house: ChatHouse) -> None:
    """Escape sequences are spelt out."""
    house.answer("\x1b]0;owned\x07\x1b[2Jgone")
    with Typing(house) as terminal:
        terminal.until("> ")
        terminal.type("hello\n")
        shown = terminal.until("gone")

    assert "\x1b" not in shown
    assert "\\x1b]0;owned\\x07" in shown


def test_a_terminal_that_knows_nothing_gets_lines(house: ChatHouse) -> None:
    """TERM=dumb is plain without being asked to."""
    surrounding = surroundings(house)
    surrounding["env"]["TERM"] = "dumb"
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command(house), stdin=theirs, stdout=theirs, stderr=theirs, **surrounding)
    os.close(theirs)
    try:
        os.write(ours, b"hello\n/quit\n")
        seen = b""
        with contextlib.suppress(OSError):
            while part := os.read(ours, 65_536):
                seen += part
        assert process.wait(WAIT_S) == exits.OK
    finally:
        process.kill()
        process.wait(30)
        os.close(ours)

    assert b"You said: hello" in seen
    assert b"\x1b" not in seen
