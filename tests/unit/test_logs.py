"""Log lines: their fields, storms, secrets, and streams that are full, slow or gone."""

from __future__ import annotations

import io
import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from typing import Any

import pytest

from bus.context import Asked, current
from bus.logs import JsonFormatter, LineHandler, Sink, TextFormatter, configure_logging, counts
from bus.procfile import Output
from bus.settings import LogSettings

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJlLW9m"
TRACE = "0af7651916cd43dd8448eb211c80319c"


class Lines:
    """A logger of its own with a handler that writes to a string."""

    def __init__(self, formatter: logging.Formatter | None = None, clock: Callable[[], float] = lambda: 100.0) -> None:
        self.stream = io.StringIO()
        self.handler = LineHandler(self.stream, clock)
        self.handler.setFormatter(formatter or TextFormatter())
        self.log = logging.getLogger("olympus.test.logs")
        self.log.propagate = False
        self.log.setLevel(logging.DEBUG)
        self.log.addHandler(self.handler)

    def end(self) -> list[str]:
        self.log.removeHandler(self.handler)
        self.handler.close()
        return self.stream.getvalue().splitlines()


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Text lines."""
    made = Lines()
    yield made
    made.end()


@pytest.fixture
def json_lines() -> Iterator[Lines]:
    """JSON lines."""
    made = Lines(JsonFormatter())
    yield made
    made.end()


def within(asked: Asked, log: logging.Logger, message: str) -> None:
    """Log in the context of a request."""

    def tell() -> None:
        current.set(asked)
        log.info(message)

    copy_context().run(tell)


def test_a_line_of_a_handler_names_its_request_and_trace(json_lines: Lines) -> None:
    """Every line that is written while a request is served says so; one outside does not."""
    id = bytes(range(16))

    within(Asked(id, f"00-{TRACE}-00f067aa0ba902b7-01"), json_lines.log, "inside")
    within(Asked(id, "nonsense"), json_lines.log, "alone")
    json_lines.log.info("outside")

    inside, alone, outside = map(json.loads, json_lines.end())
    assert (inside["request"], inside["trace"]) == (id.hex(), TRACE)
    assert (alone["request"], alone["trace"]) == (id.hex(), id.hex())
    assert "request" not in outside
    assert "trace" not in outside


def test_a_text_line_leaves_away_a_trace_that_is_the_request_itself(lines: Lines) -> None:
    """One search finds both."""
    id = bytes(range(16))

    within(Asked(id), lines.log, "first")
    within(Asked(id, f"00-{TRACE}-00f067aa0ba902b7-01"), lines.log, "second")

    first, second = lines.end()
    assert first.endswith(f"first  request={id.hex()}")
    assert second.endswith(f"second  request={id.hex()} trace={TRACE}")


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ("signed in", {"password": "hunter2-secret"}),
        ("signed in", {"access_token": "hunter2-secret"}),
        ("signed in", {"request_body": {"api_key": "hunter2-secret"}}),
        ("signed in", {"headers": f"authorization: Bearer {JWT}"}),
        ("signed in", {"url": "https://a:hunter2-secret@host/x"}),
        ("signed in with password='hunter2-secret'", {}),
        (f"signed in with {JWT}", {}),
        ("signed in", {"error": ValueError("no user at redis://:hunter2-secret@host")}),
    ],
)
@pytest.mark.parametrize("formatter", [TextFormatter, JsonFormatter])
def test_no_line_shows_a_secret(message: str, fields: dict[str, Any], formatter: type[logging.Formatter]) -> None:
    """Whether by its name or by its shape, in the message or in a field."""
    lines = Lines(formatter())

    lines.log.info(message, extra=fields)

    (line,) = lines.end()
    assert "hunter2" not in line
    assert JWT[:20] not in line
    assert "(hidden)" in line


def test_no_traceback_shows_a_secret(lines: Lines) -> None:
    """Neither the message of the exception, nor that of its cause; locals are never printed."""
    try:
        try:
            raise KeyError(f"token={JWT}")
        except KeyError as cause:
            raise ValueError("redis://user:hunter2-secret@host is away") from cause
    except ValueError:
        lines.log.exception("failed")

    text = "\n".join(lines.end())
    assert "Traceback (most recent call last)" in text
    assert "test_no_traceback_shows_a_secret" in text
    assert "direct cause" in text
    assert "hunter2-secret@host is away" not in text.partition("ValueError:")[2]
    assert JWT not in text


def test_a_storm_of_one_line_is_damped(lines: Lines) -> None:
    """The first pass, then one line tells how many were left out; other lines pass all the while."""
    before = counts.dropped

    for number in range(10_000):
        lines.log.warning("refused", extra={"number": number})
    lines.log.warning("another")

    told = lines.end()
    assert sum("  refused  number" in line for line in told) == 20
    assert sum("another" in line for line in told) == 1
    assert "like lines left out  action=log.left_out line=refused count=9980" in told[-1]
    assert len(told) == 22
    assert counts.dropped - before == 9980


def test_what_was_left_out_is_told_though_nothing_else_is_logged() -> None:
    """A timer tells it when the window has ended."""
    lines = Lines(clock=time.monotonic)
    told = threading.Event()
    write = lines.stream.write

    def written(text: str) -> int:
        if "left out" in text:
            told.set()
        return write(text)

    lines.stream.write = written  # type: ignore[method-assign]
    for _ in range(21):
        lines.log.warning("refused")

    assert told.wait(10), "the number of lines left out was never told"
    assert len(lines.end()) == 21


def test_debug_lines_are_never_damped(lines: Lines) -> None:
    """Whoever asks for them wants them all."""
    for _ in range(100):
        lines.log.debug("message")

    assert len(lines.end()) == 100


def test_lines_are_counted_by_level(lines: Lines) -> None:
    """What the figures tell."""
    before = dict(counts.by_level)

    lines.log.warning("one")
    lines.log.error("two")
    lines.log.error("three")

    assert counts.by_level["warning"] - before["warning"] == 1
    assert counts.by_level["error"] - before["error"] == 2


class Unspeakable:
    """Cannot be told."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    "value", [Unspeakable(), "half a \ud800 character", 2**70, b"\xff", float("nan"), {1: {2: object()}}, "x" * 100_000]
)
@pytest.mark.parametrize("formatter", [TextFormatter, JsonFormatter])
def test_a_line_with_any_field_is_told(value: object, formatter: type[logging.Formatter]) -> None:
    """No value of a field can suppress the line, or make it endless."""
    lines = Lines(formatter())

    lines.log.error("odd thing", extra={"value": value})

    (line,) = lines.end()
    assert "odd thing" in line
    assert len(line) < 10_000


def test_a_wrong_number_of_arguments_is_told(lines: Lines) -> None:
    """The defect of a log call must not hide what it wanted to say."""
    lines.handler.handle(logging.LogRecord("olympus.test", logging.ERROR, "", 0, "%s of %s", ("one",), None))

    assert "%s of %s" in lines.end()[0]


def test_a_full_disk_neither_raises_nor_stops_anything() -> None:
    """Lines are counted as lost, and told once there is room again."""
    with open("/dev/full", "w", encoding="utf-8") as full:
        sink = Sink(full)

        assert not sink.write("a line")
        assert not sink.write("another")

        assert sink.lost == 2


def test_lost_lines_are_told_when_there_is_room_again(tmp_path: Any) -> None:
    """The first line after the disk was full says how many are missing."""
    path = tmp_path / "log"
    with path.open("w", encoding="utf-8") as file, open("/dev/full", "wb", buffering=0) as full:
        handler = LineHandler(file)
        handler.setFormatter(TextFormatter())
        room = os.dup(file.fileno())
        os.dup2(full.fileno(), file.fileno())
        for _ in range(3):
            handler.handle(logging.LogRecord("olympus.test", logging.INFO, "", 0, "into the void", (), None))
        os.dup2(room, file.fileno())
        os.close(room)
        handler.handle(logging.LogRecord("olympus.test", logging.INFO, "", 0, "heard", (), None))
        handler.close()

    lost, heard = path.read_text().splitlines()
    assert "log lines lost  action=log.lost count=3" in lost
    assert "heard" in heard


def test_a_closed_pipe_neither_raises_nor_stops_anything() -> None:
    """The one who read the lines is gone."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        sink = Sink(pipe)

        assert not sink.write("a line")

    assert sink.lost == 1
    assert not sink.write("the stream is closed too")


def test_a_process_without_stderr_loses_its_lines_quietly() -> None:
    """As a daemon may be started."""
    sink = Sink(None)

    assert not sink.write("a line")
    assert sink.lost == 1


def test_a_pipe_that_nobody_reads_holds_nobody_up() -> None:
    """Lines wait in memory up to a limit and are written when the reader goes on; what is past it is counted."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as reader, os.fdopen(writing, "w") as pipe:
        sink = Sink(pipe)
        line = "x" * 1_000
        sent = 2_000

        written = sum(sink.write(f"{number:04} {line}") for number in range(sent))
        assert 1_000 < written < sent
        assert sink.lost == sent - written

        got = b""
        while got.count(b"\n") < written:
            assert select.select([reader], [], [], 10)[0], f"the reader got {len(got.splitlines())} of {written} lines"
            got += os.read(reader.fileno(), 65_536)
        sink.flush(10)

        numbers = [int(one[:4]) for one in got.splitlines()]
        assert numbers == list(range(written))
        assert all(len(one) == 1_005 for one in got.splitlines())
        assert sink.write("again")
        assert select.select([reader], [], [], 10)[0]
        assert os.read(reader.fileno(), 100) == b"again\n"


PROGRAM = """
import logging, sys
from bus.logs import configure_logging
from bus.procfile import Output
from bus.settings import LogSettings
configure_logging(LogSettings(format="json"))
log = logging.getLogger("olympus.test")
for number in range(50_000):
    log.error("storm")
    if number % 10_000 == 0:
        log.error("line %d", number)
print("alive")
raise ValueError("token=hunter2-secret")
"""


def test_a_storm_onto_a_full_disk_ends_in_time() -> None:
    """A process whose stderr has no room does its work to the end."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=full, timeout=60, check=False
        )

    assert done.stdout == b"alive\n"


def test_what_ends_a_process_is_its_last_line() -> None:
    """In the format of all others, and without the secret that its message holds."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)

    lines = [json.loads(line) for line in done.stderr.splitlines()]
    crash = next(line for line in lines if line["message"] == "the process failed")
    assert done.returncode == 1
    assert crash["level"] == "critical"
    assert crash["traceback"].endswith("ValueError: token=(hidden)")
    assert sum(line.get("count", 1) for line in lines if "storm" in (line["message"], line.get("line"))) == 50_000
    assert len(lines) < 60


def test_libraries_speak_from_warning_upwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their info lines would print every message."""
    root = logging.getLogger()
    before, level, hook = root.handlers[:], root.level, sys.excepthook
    stream = io.StringIO()
    try:
        configure_logging(LogSettings(level="debug"), stream)
        logging.getLogger("elsewhere").info("quiet")
        logging.getLogger("elsewhere").warning("loud")
        logging.getLogger("olympus.test").debug("ours")
    finally:
        sys.excepthook = hook
        logging.captureWarnings(False)
        logging.getLogger("olympus").setLevel(logging.NOTSET)
        for handler in root.handlers[:]:
            root.removeHandler(handler)
            handler.close()
        for handler in before:
            root.addHandler(handler)
        root.setLevel(level)

    assert [line.split()[-1] for line in stream.getvalue().splitlines()] == ["loud", "ours"]


def test_what_starts_everything_outlives_a_full_disk(tmp_path: Any) -> None:
    """The lines of all services go through it: those without room are counted, and told once there is room."""
    path = tmp_path / "log"
    with path.open("w", encoding="utf-8") as file, open("/dev/full", "wb", buffering=0) as full:
        output = Output(file)
        room = os.dup(file.fileno())
        os.dup2(full.fileno(), file.fileno())
        print("one", "two", file=output, flush=True)
        print("three", file=output)
        os.dup2(room, file.fileno())
        os.close(room)
        print("four", file=output)
        output.end()

    assert path.read_text().splitlines() == ["[2 lines lost]", "four"]
