"""Notifications of errors: to HTTP servers that answer, fail and hang, and to a desktop; and the two commands."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bus.cli import app, exits
from bus.client import Client
from bus.settings import Settings
from bus.worker import Call, Worker
from schemas.bodies.control import ErrorReport, WorkerList
from schemas.bodies.errors import ErrorList
from schemas.bodies.memory import KvEntry, KvGet
from schemas.errors import BusError
from tests.conftest import Serve
from workers.errors import telling
from workers.errors.posting import NotPosted, post
from workers.errors.service import ErrorService
from workers.errors.wording import Post

WAIT_S = 20.0
SECRET = "T0PSECRET"


class Hook:
    """A webhook's server: keeps what is posted and answers with the statuses it was given, the last one for ever."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.posts: asyncio.Queue[tuple[str, dict[str, str], bytes]] = asyncio.Queue()
        self.asked = 0
        self.port = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Its address, with a secret in it."""
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield f"http://127.0.0.1:{self.port}/hook/{SECRET}?key={SECRET}"
        finally:
            server.close()
            await server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lines = head.split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
            body = await reader.readexactly(int(headers["content-length"]))
            self.asked += 1
            status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
            if status == 0:
                # Hangs until the other side goes.
                await reader.read()
                return
            if status < 300:
                self.posts.put_nowait((lines[0], headers, body))
            writer.write(f"HTTP/1.1 {status} Word\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            # Whoever asked has left.
            return
        finally:
            writer.close()


@asynccontextmanager
async def serving(settings: Settings, **errors: Any) -> AsyncIterator[tuple[ErrorService, Client]]:
    """The service in this process, with `settings.errors` changed, and a client."""
    service = ErrorService(msgspec.structs.replace(settings, errors=msgspec.structs.replace(settings.errors, **errors)))
    await service.start()
    try:
        async with Client(settings, name="test") as client:
            yield service, client
    finally:
        await service.stop()


async def fail(client: Client, message: str = "no row 1", **more: Any) -> None:
    plain = {"service": "memory", "severity": "error", "kind": "KeyError", "message": message}
    await client.publish("error.memory.error", ErrorReport(**{**plain, **more}))
    await client.flush()


async def until(found: Callable[[], Any], what: str) -> Any:
    """What `found` gives, awaited where it has to be, once that is something."""
    try:
        async with asyncio.timeout(WAIT_S):
            while True:
                value = found()
                if asyncio.iscoroutine(value):
                    value = await value
                if value:
                    return value
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"within {WAIT_S} s: {what}")


# Webhooks


async def test_a_post_that_is_not_taken_names_the_host_alone() -> None:
    """Whatever goes wrong: the address may hold a secret."""
    what = Post(b"{}", {"Content-Type": "application/json"})
    for status, words in ((500, "answered 500"), (301, "sends elsewhere"), (404, "answered 404"), (0, "within 0.2 s")):
        async with Hook(status).serving() as url:
            with pytest.raises(NotPosted, match=words) as raised:
                await post(url, what, 0.2)
            assert SECRET not in str(raised.value)
            assert "127.0.0.1:" in str(raised.value)
    with pytest.raises(NotPosted, match="cannot be reached") as raised:
        await post(url, what, 1)
    assert SECRET not in str(raised.value)


async def test_a_server_that_speaks_no_http_is_not_taken_for_one() -> None:
    """Nor one that ends the connection, or says endless nonsense."""

    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * 100_000)
        writer.close()

    server = await asyncio.start_server(nonsense, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(NotPosted, match="cannot be reached"):
            await post(f"http://127.0.0.1:{port}/", Post(b"", {}), 2)


async def test_an_error_is_posted_once_and_tried_again_where_the_server_fails(
    serve_broker: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The group with a headline; 503 and 429 pass; nothing of the address is logged or told."""
    monkeypatch.setattr(telling, "_BACKOFF_S", 0.01)
    caplog.set_level(logging.DEBUG)
    hook = Hook(503, 429, 204)
    async with (
        hook.serving() as url,
        serve_broker() as settings,
        serving(settings, webhooks=(url,)) as (service, client),
    ):
        for number in range(3):
            await fail(client, f"no row {number}")
        line, headers, body = await asyncio.wait_for(hook.posts.get(), WAIT_S)

        def counted() -> dict[tuple[str, ...], float]:
            series = service.worker.figures.series()["olympus_error_notifications_total"]
            return {one.labels: one.value for one in series}

        told = json.loads(body)
        assert line.startswith("POST /hook/")
        assert headers["content-type"] == "application/json"
        assert (told["headline"], told["service"]) == ("error in memory: KeyError; no row 0", "memory")
        assert hook.asked == 3
        assert hook.posts.empty()
        await until(lambda: counted() == {("webhook", "ok"): 1, ("webhook", "failed"): 0}, "it is counted")
        assert service.degraded() == {}
    assert SECRET not in caplog.text


async def test_a_server_that_hangs_stops_neither_errors_nor_other_webhooks(
    serve_broker: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said which one does not answer, by its host; the service leaves at once."""
    monkeypatch.setattr(telling, "_POST_S", 0.1)
    monkeypatch.setattr(telling, "_ATTEMPTS", 2)
    monkeypatch.setattr(telling, "_BACKOFF_S", 0.01)
    hanging, good = Hook(0), Hook(200)
    async with hanging.serving() as bad_url, good.serving() as url, serve_broker() as settings:
        changes = {"webhooks": (bad_url, url), "webhook_format": "ntfy"}
        async with serving(settings, **changes) as (_, client):
            await fail(client)
            _, headers, body = await asyncio.wait_for(good.posts.get(), WAIT_S)
            assert (headers["title"], headers["priority"]) == ("error in memory: KeyError; no row 1", "4")
            assert b"olympus errors show" in body

            async def reasons() -> dict[str, str]:
                workers: WorkerList = await client.request("bus.workers", {"service": "error"})
                return workers.workers[0].degraded

            assert await until(reasons, "it is told with the heartbeat") == {
                f"webhook 127.0.0.1:{hanging.port}": f"127.0.0.1:{hanging.port} did not answer within 0.1 s"
            }
            page = await client.request("error.list", ErrorList())
            assert page.total == 1
    assert SECRET not in caplog.text


async def test_a_dead_letter_is_told_and_a_flood_of_kinds_is_capped(serve_broker: Serve) -> None:
    """Twenty posts, then no more within the minute."""
    hook = Hook(200)
    async with (
        hook.serving() as url,
        serve_broker() as settings,
        serving(settings, webhooks=(url,)) as (service, client),
    ):
        await client.publish("error.deadletter", {"id": "ab" * 16, "subject": "memory.kv.get", "reason": "worker_lost", "message": "gone", "attempts": 3, "at": 1.0})  # fmt: skip
        for number in range(60):
            await fail(client, "".join(chr(97 + int(digit)) for digit in str(number)), severity="critical")
        await until(lambda: hook.posts.qsize() >= 20, "twenty are posted")
        await until(lambda: len(service._ledger.groups) == 61, "all are counted")

        first = json.loads(hook.posts.get_nowait()[2])
        assert (first["kind"], first["subject"]) == ("dead letter", "memory.kv.get")
        assert hook.posts.qsize() == 19
        assert service._notices._held_back == 41


async def test_a_notification_on_the_desktop(
    serve_broker: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through notify-send, as words and never as markup or options; without the program it says so."""
    said = tmp_path / "said"
    program = tmp_path / "notify-send"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {said}.new && mv {said}.new {said}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    async with serve_broker() as settings, serving(settings, desktop=True) as (service, client):
        await fail(client, "<b>bold</b>", severity="critical")
        words = (await until(lambda: said.exists() and said.read_text(), "it is said")).splitlines()

        assert words[:4] == [
            "--app-name=Olympus",
            "--urgency=critical",
            "--",
            "critical in memory: KeyError; <b>bold</b>",
        ]
        assert words[4] == "&lt;b&gt;bold&lt;/b&gt;"
        program.unlink()
        await fail(client, "another")
        assert "not installed" in (await until(service.degraded, "it says so"))["desktop"]


# The commands


@asynccontextmanager
async def commands(settings: Settings) -> AsyncIterator[Callable[..., Any]]:
    """Runs the command in a thread and gives its exit code."""
    ports = ("request_port", "publish_port", "subscribe_port", "sequenced_port")
    values = {"home": settings.home, **{f"bus.{name}": str(getattr(settings.bus, name)) for name in ports}}
    flags = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]

    async def run(*argv: str) -> int:
        return await asyncio.to_thread(app.main, [*flags, *argv])

    yield run


async def test_errors_are_looked_at_and_marked_by_the_command(
    serve_broker: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    """List, show, stats, ack, mute, unmute, forget; as tables and as JSON."""
    async with serve_broker() as settings, serving(settings) as (service, client), commands(settings) as olympus:
        assert await olympus("errors") == exits.OK
        assert capsys.readouterr().out == "no open errors\n"
        for number in range(3):
            await fail(
                client, f"no row {number}\x1b[2J", traceback='  File "/o/workers/memory/store.py", line 12, in get\n'
            )
        await fail(client, "slow", severity="warning", service="model")
        await until(lambda: len(service._ledger.groups) == 2, "all are counted")

        assert await olympus("errors", "--severity", "error") == exits.OK
        lines = capsys.readouterr().out.splitlines()
        named = lines[1].split()[0]
        assert lines[0].split() == ["ID", "LAST", "COUNT", "SEVERITY", "SERVICE", "WHAT"]
        assert (len(lines), "\\x1b[2J" in lines[1], len(lines[1]) <= 80) == (2, True, True)

        assert await olympus("errors", "show", named) == exits.OK
        shown = capsys.readouterr().out
        assert "workers/memory/store.py:12 get" in shown
        assert "\x1b" not in shown
        assert await olympus("errors", "stats", "--over", "2h") == exits.OK
        assert "4 errors in the last 2 h: 1 warning, 3 error" in capsys.readouterr().out

        assert await olympus("errors", "mute", named, "--for", "2h", "--note", "known") == exits.OK
        assert "is muted until" in capsys.readouterr().err
        assert await olympus("errors", "--json", "--state", "muted") == exits.OK
        assert [each["note"] for each in json.loads(capsys.readouterr().out)["groups"]] == ["known"]
        assert await olympus("errors", "unmute", named) == exits.OK
        assert await olympus("errors", "ack", "--service", "model") == exits.OK
        assert "1 group acknowledged" in capsys.readouterr().err
        assert await olympus("errors", "forget", named) == exits.OK
        assert await olympus("errors", "--state", "any") == exits.OK
        assert capsys.readouterr().out.splitlines()[1].endswith("[acknowledged] KeyError: slow")

        assert await olympus("errors", "show", named) == exits.FAILED
        assert "no group of errors has a fingerprint that begins with" in capsys.readouterr().err
        assert await olympus("errors", "ack") == exits.USAGE


async def test_new_errors_are_followed_by_the_command(serve_broker: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each that is new, and for no other."""
    async with serve_broker() as settings, serving(settings) as (_, client):
        ports = ("request_port", "publish_port", "subscribe_port", "sequenced_port")
        values = {"home": settings.home, **{f"bus.{name}": str(getattr(settings.bus, name)) for name in ports}}
        flags = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
        following = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bus.cli.app", *flags, "errors", "--follow", "--severity", "error"),
            stdout=asyncio.subprocess.PIPE,
        )
        try:

            async def is_there() -> bool:
                stats = await client.request("bus.stats")
                return any("error.opened" in each.patterns for each in stats.subscribers)

            await until(is_there, "it follows")
            await fail(client, "slow", severity="warning")
            for number in range(2):
                await fail(client, f"no row {number}")
            assert following.stdout is not None
            line = (await asyncio.wait_for(following.stdout.readline(), WAIT_S)).decode()
        finally:
            following.kill()
            await following.communicate()

        assert line.split()[1] == "opened"
        assert line.rstrip().endswith("KeyError: no row 0")


async def test_dead_letters_are_looked_at_sent_again_and_dropped_by_the_command(
    serve_broker: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that fails again does not keep the others, and ends the command with 1."""
    async with serve_broker(attempts=1) as settings, commands(settings) as olympus:
        stuck = Worker("memory", settings, instance="stuck")
        is_stuck = True

        async def get(request: KvGet, call: Call) -> KvEntry:
            if is_stuck or request.key == "bad":
                await asyncio.Event().wait()
            return KvEntry(key=request.key, value="here", ns="kv", version=1, created_at=0, updated_at=0)

        stuck.handle("memory.kv.get", get)
        await stuck.start(WAIT_S)
        async with Client(settings) as client:
            for key in ("bad", "good"):
                with pytest.raises(BusError):
                    await client.request("memory.kv.get", KvGet(key=key), timeout_s=0.2)

            async def all_buried() -> bool:
                return bool((await client.request("deadletter.list")).total == 2)

            await until(all_buried, "both are dead letters")
        is_stuck = False

        assert await olympus("deadletters") == exits.OK
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == ["ID", "AGE", "SUBJECT", "REASON", "MESSAGE"]
        good, bad = (line.split()[0] for line in lines[1:])
        assert await olympus("deadletters", "show", good[:6]) == exits.OK
        assert '"key": "good"' in capsys.readouterr().out

        assert await olympus("deadletters", "redrive", "--all", "--timeout", "500ms") == exits.FAILED
        printed = capsys.readouterr()
        assert [line.split()[0] for line in printed.out.splitlines()] == [bad, good]
        assert "2 dead letters sent again, 1 of them failed again" in printed.err
        assert await olympus("deadletters", "redrive", good) == exits.OK
        assert json.loads(capsys.readouterr().out)["value"] == "here"
        assert await olympus("deadletters") == exits.OK
        assert "[sent again]" in capsys.readouterr().out

        assert await olympus("deadletters", "redrive") == exits.USAGE
        assert await olympus("deadletters", "redrive", "beef" * 3) == exits.FAILED
        assert "begins with 'beefbeefbeef'" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            await olympus("deadletters", "show", "../x")
        assert "is no id" in capsys.readouterr().err
        assert await olympus("deadletters", "purge") == exits.USAGE
        assert await olympus("deadletters", "purge", good) == exits.OK
        assert await olympus("deadletters", "purge", "--yes", "--json") == exits.OK
        assert json.loads(capsys.readouterr().out)["purged"] >= 1
        await stuck.stop(drain_s=0)


@pytest.mark.parametrize("more", [("--since", "10m"), ("--state", "any"), ("--limit", "5")])
def test_following_takes_nothing_that_is_about_the_past(
    more: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said, and not passed over."""
    assert app.main(["errors", "--follow", *more]) == exits.USAGE
    assert "go with the list" in capsys.readouterr().err
