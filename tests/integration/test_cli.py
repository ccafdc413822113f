"""The `olympus` command against a real broker with a small worker."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.server import Broker
from bus.cli import app, exits
from bus.client import Client
from bus.settings import Settings, load_settings
from bus.worker import Call, Worker
from schemas.bodies.control import BusStats
from schemas.bodies.memory import KvEntry, KvGet
from schemas.bodies.model import Chat, Generation, GenerationPart, Timings, Usage
from schemas.errors import NotFound

WAIT_S = 20.0


async def kv_get(request: KvGet, call: Call) -> KvEntry:
    """The key itself as the value; "absent" is absent, and "slow" never answers."""
    if request.key == "absent":
        raise NotFound("there is no key 'absent'", field="key")
    if request.key == "slow":
        await asyncio.Event().wait()
    return KvEntry(key=request.key, value=request.key, ns=request.ns, version=1, created_at=0, updated_at=0)


async def chat(request: Chat, call: Call) -> Generation:
    """The last message, word by word."""
    words = request.messages[-1].content.split(" ")
    for word in words:
        await call.partial(GenerationPart(text=f"{word} ", token_ids=[1]))
    return Generation(
        model=call.subject,
        text="".join(f"{word} " for word in words),
        token_ids=[1] * len(words),
        finish_reason="stop",
        usage=Usage(prompt_tokens=1, completion_tokens=len(words)),
        timings=Timings(prompt_s=0, generate_s=0, first_token_s=0, tokens_per_s=0),
    )


class LiveBus:
    """A broker and a worker in a thread with a loop of its own; the command runs in the test's thread."""

    def __init__(self, home: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self._home = home

    async def start(self) -> None:
        """Bring everything up on free ports."""
        ports = {f"bus.{name}_port": 0 for name in ("request", "publish", "subscribe", "sequenced")}
        self.broker = Broker(load_settings(overrides={"home": str(self._home), **ports}))
        await self.broker.start()
        self.settings = self.settings_with_ports()
        self.worker = Worker("memory", self.settings, capacity=8, instance="pc-1")
        self.worker.handle("memory.kv.get", kv_get)
        self.models = Worker("model", self.settings, capacity=8, instance="pc-2")
        self.models.handle("model.chat", chat)
        await self.worker.start()
        await self.models.start()
        self.client = Client(self.settings, name="test")

    def settings_with_ports(self) -> Settings:
        """Settings that name the ports the broker got."""
        return load_settings(overrides={"home": str(self._home), **self.port_overrides()})

    def port_overrides(self) -> dict[str, Any]:
        """The broker's ports as settings."""
        return {f"bus.{name}_port": port for name, port in self.broker.ports._asdict().items()}

    async def stop(self) -> None:
        """End everything."""
        await self.client.close()
        await self.models.stop()
        await self.worker.stop()
        await self.broker.stop()

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of a coroutine run beside the broker."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(WAIT_S)

    def close(self) -> None:
        """End the thread."""
        self.call(self.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(WAIT_S)
        self.loop.close()

    @property
    def flags(self) -> list[str]:
        """The global options that lead the command to this broker."""
        overrides = {"home": str(self._home), **self.port_overrides()}
        return [part for key, value in overrides.items() for part in ("--set", f"{key}={value}")]

    def publish(self, subject: str, body: Any) -> None:
        """Publish and wait until the broker has it."""

        async def send() -> None:
            await self.client.publish(subject, body)
            await self.client.flush()

        self.call(send())

    def wait_for_subscriber(self, pattern: str) -> None:
        """Return when somebody subscribes to `pattern`."""

        async def wait() -> None:
            while True:
                stats = await self.client.request("bus.stats", BusStats())
                if any(pattern in reader.patterns for reader in stats.subscribers):
                    return

        self.call(asyncio.wait_for(wait(), WAIT_S))


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveBus]:
    """A running bus."""
    live = LiveBus(tmp_path_factory.mktemp("home"))
    live.call(live.start())
    yield live
    live.close()


Olympus = Callable[..., int]


@pytest.fixture
def olympus(bus: LiveBus) -> Olympus:
    """Runs the command against the bus and returns its exit code."""
    return lambda *argv: app.main([*bus.flags, *argv])


@pytest.fixture
def beside(bus: LiveBus) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command as a process of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(*argv: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "bus.cli.app", *bus.flags, *argv]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=WAIT_S)


def test_status_tells_load_and_what_does_not_run(olympus: Olympus, capsys: pytest.CaptureFixture[str]) -> None:
    """Operations without a worker are named; a running service shows its capacity."""
    assert olympus("status", "--workers") == exits.OK
    text = capsys.readouterr().out
    assert olympus("status", "--json") == exits.OK
    document = json.loads(capsys.readouterr().out)

    memory = next(each for each in document["services"] if each["service"] == "memory")
    assert (memory["instances"], memory["capacity"]) == (1, 8)
    assert {worker["instance"] for worker in document["workers"]} >= {"pc-1", "pc-2"}
    assert any("nobody serves" in line and "memory.kv.set" in line for line in document["problems"])
    assert "SERVICE" in text
    assert "pc-1" in text


def test_a_request_prints_its_reply_as_json(olympus: Olympus, capsys: pytest.CaptureFixture[str]) -> None:
    """Indented, on one line, or tagged."""
    assert olympus("req", "memory.kv.get", "key=7") == exits.OK
    assert json.loads(capsys.readouterr().out)["value"] == "7"

    assert olympus("req", "memory.kv.get", "key=a", "--raw") == exits.OK
    assert capsys.readouterr().out.count("\n") == 1

    assert olympus("req", "memory.kv.get", '{"key": "a"}', "--json") == exits.OK
    assert json.loads(capsys.readouterr().out)["kind"] == "final"


def test_a_failed_request_tells_code_and_field_and_the_next_one_works(
    olympus: Olympus, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, nothing on stdout."""
    assert olympus("req", "memory.kv.get", "key=absent") == exits.FAILED
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "not_found: there is no key 'absent'\n  field: key" in printed.err

    assert olympus("req", "memory.kv.get", "kee=a") == exits.FAILED
    assert "bad_request" in capsys.readouterr().err

    assert olympus("req", "memory.kv.get", "key=a") == exits.OK


def test_a_request_that_takes_too_long_ends_with_its_own_code(
    olympus: Olympus, capsys: pytest.CaptureFixture[str]
) -> None:
    """--timeout is the deadline on the bus too."""
    assert olympus("req", "memory.kv.get", "key=slow", "--timeout", "200ms") == exits.TIMED_OUT
    assert "deadline_exceeded" in capsys.readouterr().err


def test_an_unknown_subject_suggests_the_nearest(olympus: Olympus, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody serves it, and the catalogue knows what may have been meant."""
    assert olympus("req", "memory.kv.gte", "key=a", "--timeout", "5s") == exits.FAILED

    assert "memory.kv.get" in capsys.readouterr().err


MESSAGES = '{"messages": [{"role": "user", "content": "one two three"}]}'


def test_a_chat_streams_its_text(olympus: Olympus, capsys: pytest.CaptureFixture[str]) -> None:
    """Text on stdout, figures on stderr, or a line of JSON for each reply."""
    assert olympus("req", "model.chat", MESSAGES) == exits.OK
    printed = capsys.readouterr()
    assert printed.out == "one two three \n"
    assert "1 + 3 tokens" in printed.err

    assert olympus("req", "model.chat", MESSAGES, "--json") == exits.OK
    kinds = [json.loads(line)["kind"] for line in capsys.readouterr().out.splitlines()]
    assert kinds == ["partial", "partial", "partial", "final"]


def test_a_chat_that_names_a_model_falls_back_to_the_plain_subject(
    olympus: Olympus, capsys: pytest.CaptureFixture[str]
) -> None:
    """The request is addressed to the model's runner, and answered although there is none."""
    body = json.loads(MESSAGES) | {"model": "demo"}

    assert olympus("req", "model.chat", json.dumps(body), "--json") == exits.OK

    assert json.loads(capsys.readouterr().out.splitlines()[-1])["body"]["model"] == "model.chat@demo"


def test_tap_prints_what_pub_publishes(
    bus: LiveBus, olympus: Olympus, beside: Callable[..., subprocess.Popen[str]]
) -> None:
    """Events arrive in order with sequence numbers; --ignore and other subjects stay out."""
    tap = beside("tap", "demo.*", "--ignore", "demo.noise", "--count", "3", "--json", "--for", "20s")
    bus.wait_for_subscriber("demo.*")

    assert olympus("pub", "demo.noise", "n=0") == exits.OK
    assert olympus("pub", "other.subject", "n=0") == exits.OK
    assert olympus("pub", "demo.greeting", "text=hello", "--count", "3") == exits.OK

    out, err = tap.communicate(timeout=WAIT_S)
    lines = [json.loads(line) for line in out.splitlines()]
    assert tap.returncode == exits.OK, err
    assert [line["body"] for line in lines] == [{"text": "hello"}] * 3
    assert [line["seq"] for line in lines] == sorted({line["seq"] for line in lines})
    assert all(line["source"] == "olympus" for line in lines)


def test_tap_leaves_with_a_code_when_too_few_events_came(olympus: Olympus, capsys: pytest.CaptureFixture[str]) -> None:
    """`--for` ends it; a script can tell that `--count` was not reached."""
    assert olympus("tap", "demo.never", "--for", "200ms") == exits.OK
    assert olympus("tap", "demo.never", "--for", "200ms", "--count", "1") == exits.TIMED_OUT
    assert capsys.readouterr().out == ""


def test_tap_since_reads_the_log_and_goes_on_live_without_gap_or_repeat(
    bus: LiveBus, beside: Callable[..., subprocess.Popen[str]]
) -> None:
    """Events from before and from after the start of the tap come once each, in order, while publishing goes on."""
    total = 600
    subject = "memory.changed.since"

    def publish(first: int, last: int) -> None:
        async def send() -> None:
            for number in range(first, last):
                await bus.client.publish(subject, {"ns": "since", "key": str(number), "action": "set"})
            await bus.client.flush()

        bus.call(send())

    publish(0, 200)
    tap = beside("tap", subject, "--since", "10m", "--count", str(total), "--json", "--for", "20s")
    for first in range(200, 400, 10):
        publish(first, first + 10)
    bus.wait_for_subscriber(subject)
    publish(400, total)

    out, err = tap.communicate(timeout=WAIT_S)
    assert tap.returncode == exits.OK, err
    assert [json.loads(line)["body"]["key"] for line in out.splitlines()] == [str(number) for number in range(total)]


def test_tap_since_without_following_ends_with_the_log(
    bus: LiveBus, olympus: Olympus, capsys: pytest.CaptureFixture[str]
) -> None:
    """--raw prints bodies alone; several patterns are read in one order."""
    bus.publish("memory.changed.early", {"ns": "early", "key": "a", "action": "set"})
    bus.publish("error.demo.warning", {"key": "b"})
    bus.publish("memory.changed.early", {"ns": "early", "key": "c", "action": "set"})

    argv = ["memory.changed.early", "error.demo.*", "--since", "1m", "--no-follow", "--raw"]
    assert olympus("tap", *argv) == exits.OK

    assert [json.loads(line)["key"] for line in capsys.readouterr().out.splitlines()] == ["a", "b", "c"]


def test_tap_joins_requests_with_their_replies(
    bus: LiveBus, olympus: Olympus, beside: Callable[..., subprocess.Popen[str]]
) -> None:
    """An answer, an error and a timeout each make one line; other subjects stay out."""
    tap = beside("tap", "--requests", "memory.kv.*", "--count", "3", "--json", "--for", "20s")
    bus.wait_for_subscriber("bus.trace.>")

    olympus("req", "bus.ping")
    olympus("req", "memory.kv.get", "key=a")
    olympus("req", "memory.kv.get", "key=absent")
    olympus("req", "memory.kv.get", "key=slow", "--timeout", "200ms")

    out, err = tap.communicate(timeout=WAIT_S)
    lines = [json.loads(line) for line in out.splitlines()]
    assert tap.returncode == exits.OK, err
    assert [line["outcome"] for line in lines] == ["ok", "not_found", "deadline_exceeded"]
    assert all(line["subject"] == "memory.kv.get" and line["took_s"] >= 0 for line in lines)
    assert all(line["request_bytes"] > 0 for line in lines)
    assert "pc-1" in lines[0]["worker"]


def test_ctrl_c_ends_a_tap_quietly(bus: LiveBus, beside: Callable[..., subprocess.Popen[str]]) -> None:
    """Exit code 130 and not one word."""
    tap = beside("tap", "demo.quiet")
    bus.wait_for_subscriber("demo.quiet")

    tap.send_signal(signal.SIGINT)

    out, err = tap.communicate(timeout=WAIT_S)
    assert (tap.returncode, out, err) == (exits.INTERRUPTED, "", "")


def test_top_prints_one_frame_where_there_is_no_terminal(olympus: Olympus, capsys: pytest.CaptureFixture[str]) -> None:
    """Services, workers and rates; --json holds the same as data."""
    assert olympus("top") == exits.OK
    text = capsys.readouterr().out
    assert olympus("top", "--once", "--json") == exits.OK
    document = json.loads(capsys.readouterr().out)

    assert "SERVICE" in text
    assert "pc-1" in text
    assert "memory/pc-1" in document["rates"]["worker_cpu"]


def test_top_in_a_terminal_fits_60_columns_and_ends_with_q(bus: LiveBus) -> None:
    """Frames are drawn on the alternate screen, which is left again."""
    terminal, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 60, 0, 0))
    before = termios.tcgetattr(theirs)
    command = [sys.executable, "-m", "bus.cli.app", *bus.flags, "top", "--every", "0.1"]
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}

    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env=environment) as process:
        screen = read_until(terminal, b"SERVICE")
        os.write(terminal, b"2")
        screen += read_until(terminal, b"pc-2")
        os.write(terminal, b"q")
        screen += read_until(terminal, b"\x1b[?1049l")
        assert process.wait(WAIT_S) == exits.OK

    after = termios.tcgetattr(theirs)
    os.close(theirs)
    os.close(terminal)
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"\x1b\[[0-9]+;1H", screen.decode())]
    assert screen.startswith(b"\x1b[?1049h")
    assert [line for line in lines if len(line) > 60] == []
    assert before == after


def read_until(terminal: int, *marks: bytes) -> bytes:
    """What the terminal shows up to the last of `marks`, which must come one after the other."""
    seen, searched_to = b"", 0
    for mark in marks:
        while (found := seen.find(mark, searched_to)) < 0:
            assert select.select([terminal], [], [], WAIT_S)[0], f"{mark!r} did not come after {seen[-200:]!r}"
            seen += os.read(terminal, 65_536)
        searched_to = found + len(mark)
    return seen


def test_doctor_knows_our_broker_by_its_answer(olympus: Olympus, capsys: pytest.CaptureFixture[str]) -> None:
    """Its ports count as ours and its services as running."""
    olympus("doctor", "--json")

    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["broker"]["state"] == "ok"
    assert checks["service memory"]["state"] == "ok"
    assert [check["found"] for name, check in checks.items() if name.startswith("port ")] == ["held by Olympus"] * 4


def test_without_a_broker_the_command_says_so_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    """The address is named, and how to start one."""
    assert app.main(["--set", "bus.request_port=1", "status"]) == exits.UNREACHABLE

    assert "no broker at 127.0.0.1:1 (refused); 'olympus up' starts one" in capsys.readouterr().err
