"""Pulling over a real bus from a server on loopback that cuts, lies, forgets and changes its mind."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import http.server
import json
import os
import shutil
import sys
import textwrap
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import msgspec
import pytest

from bus.client import Client
from bus.settings import Settings, child_environment
from bus.worker import Worker
from schemas.bodies.model import ModelInfo, ModelList, Models, ModelShow
from schemas.bodies.model_files import ModelPull, ModelPulled, PullProgress
from schemas.errors import (
    BadRequest,
    BusError,
    Cancelled,
    Conflict,
    Forbidden,
    Internal,
    NotFound,
    QuotaExceeded,
    Unprocessable,
    Unsupported,
    WorkerLost,
)
from tests.gguf_files import write_parts
from workers.models.catalogue import SHIPPED_ROOT, Catalogue
from workers.models.files.files import Files
from workers.models.pull.download import SPARE_BYTES
from workers.models.pull.handlers import register
from workers.models.pull.pulls import Pulls, _lock
from workers.models.pull.web import Patience
from workers.models.records import model_records

pytest.importorskip("httpx", reason="httpx is not installed")

MODEL = (SHIPPED_ROOT / "olympus-demo.gguf").read_bytes()
SHA = hashlib.sha256(MODEL).hexdigest()
HALF = len(MODEL) // 2
TOKEN = "hf_secret_of_the_test"
COMMIT = "c" * 40
WAIT_S = 20.0

# Waits of milliseconds, so that six failures in a row are soon over.
HURRIED = Patience(attempts=4, first_s=0.001, longest_s=0.005)


# The server ------------------------------------------------------------------------------------------------------------


class Asked(NamedTuple):
    """One request as the server got it; headers in lower case."""

    path: str
    headers: dict[str, str]


Act = Callable[["Answering"], None]


class Server(http.server.ThreadingHTTPServer):
    """Honest about `files`, except where an act stands in the queue of a path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.files: dict[str, bytes] = {"/m.gguf": MODEL}
        self.acts: dict[str, deque[Act]] = {}
        self.asked: list[Asked] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.is_closing = threading.Event()

    def then(self, path: str, *acts: Act) -> None:
        self.acts.setdefault(path, deque()).extend(acts)

    def ranges(self, path: str) -> list[str | None]:
        return [one.headers.get("range") for one in self.asked if one.path == path]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is part of the tests."""


class Answering(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server
    has_etag: ClassVar[bool] = True

    def log_message(self, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(Asked(path, {name.lower(): value for name, value in self.headers.items()}))
        acts = self.server.acts.get(path)
        if acts:
            acts.popleft()(self)
        elif path in self.server.files:
            self.honest()
        else:
            self.plain(404, b"")

    @property
    def content(self) -> bytes:
        return self.server.files[self.path.partition("?")[0]]

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:12]}"'

    def start(self) -> int:
        """First byte that is wanted: 0 without a Range, or where If-Range names another content."""
        wanted = self.headers.get("range", "")
        if not wanted or self.headers.get("if-range", self.etag) != self.etag:
            return 0
        return int(wanted.removeprefix("bytes=").removesuffix("-"))

    def head(self, start: int, **more: str) -> None:
        length = len(self.content)
        if start >= length:
            self.plain(416, b"", **{"content-range": f"bytes */{length}"})
            return
        self.send_response(206 if start else 200)
        headers = {"content-length": str(length - start), "etag": self.etag, **more}
        if start:
            headers.setdefault("content-range", f"bytes {start}-{length - 1}/{length}")
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()

    def honest(self) -> None:
        start = self.start()
        self.head(start)
        self.wfile.write(self.content[start:])

    def plain(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def cut_after(count: int) -> Act:
    """The connection breaks after `count` bytes of the body."""

    def act(answer: Answering) -> None:
        start = answer.start()
        answer.head(start)
        answer.wfile.write(answer.content[start : start + count])
        answer.close_connection = True

    return act


def ignore_range(answer: Answering) -> None:
    """200 and everything, whatever was asked for."""
    answer.head(0)
    answer.wfile.write(answer.content)


def announce(length: str, *, sent: slice = slice(None)) -> Act:
    """A Content-Length of its own choosing; "" for none."""

    def act(answer: Answering) -> None:
        answer.close_connection = True
        answer.head(0, **{"content-length": length, "connection": "close"})
        answer.wfile.write(answer.content[sent])

    return act


def say(status: int, body: bytes = b"", **headers: str) -> Act:
    return lambda answer: answer.plain(
        status, body, **{name.replace("_", "-"): value for name, value in headers.items()}
    )


def hold_after(count: int, held: threading.Event, go: threading.Event) -> Act:
    """Sends `count` bytes, says so, and goes on when told to."""

    def act(answer: Answering) -> None:
        start = answer.start()
        answer.head(start)
        answer.wfile.write(answer.content[start : start + count])
        answer.wfile.flush()
        held.set()
        while not go.wait(0.05) and not answer.server.is_closing.is_set():
            pass
        answer.wfile.write(answer.content[start + count :])

    return act


@pytest.fixture
def web() -> Iterator[Server]:
    """A server on a free port of loopback."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.is_closing.set()
        server.shutdown()
        server.server_close()
        thread.join(WAIT_S)


# The service -----------------------------------------------------------------------------------------------------------


class Root:
    """Adopts by renaming into a folder, as the catalogue's part does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models: dict[str, ModelInfo] = {}
        self.refusal: BusError | None = None

    async def adopt(self, staged: Path, name: str, source: str, sha256: str | None = None) -> ModelInfo:
        if self.refusal is not None:
            raise self.refusal
        is_folder = await asyncio.to_thread(staged.is_dir)
        target = self.folder / (name if is_folder else f"{name}.gguf")
        os.replace(staged, target)
        info = ModelInfo(
            name=name,
            family="llama",
            format="safetensors" if is_folder else "gguf",
            quantisation="",
            parameters=0,
            size_bytes=0 if is_folder else target.stat().st_size,
            context_tokens=0,
            state="available",
            path=str(target),
            sha256=sha256,
            source=source,
        )
        self.models[name] = info
        return info

    async def list_models(self, request: ModelList) -> Models:
        return Models(models=list(self.models.values()))

    async def show(self, request: ModelShow) -> ModelInfo:
        try:
            return self.models[request.model]
        except KeyError:
            raise NotFound(f"there is no model {request.model!r}") from None


class Rig(NamedTuple):
    client: Client
    settings: Settings
    root: Root
    pulls: Pulls

    async def pull(self, source: str, **more: Any) -> ModelPulled:
        return await self.client.request("model.pull", ModelPull(source=source, **more), timeout_s=WAIT_S)

    @property
    def pulls_folder(self) -> Path:
        return self.settings.path("pulls")

    def parts(self) -> list[Path]:
        return sorted(self.pulls_folder.glob("*/*.part"))


@asynccontextmanager
async def pulling(settings: Settings, web: Server, **models: Any) -> AsyncIterator[Rig]:
    changed = msgspec.structs.replace(
        settings,
        models=msgspec.structs.replace(settings.models, registry_url=web.url, hub_url=web.url, **models),
    )
    folder = changed.path(changed.models.roots[0])
    folder.mkdir(parents=True, exist_ok=True)
    worker = Worker("model", changed)
    root = Root(folder)
    pulls = Pulls(worker, root, patience=HURRIED)
    register(worker, pulls)
    await worker.start(WAIT_S)
    try:
        async with Client(changed, name="test") as client:
            yield Rig(client, changed, root, pulls)
    finally:
        await pulls.stop()
        await worker.stop()


Pulling = Callable[..., Any]


@pytest.fixture
def rig(serve_broker: Any, web: Server) -> Pulling:
    """`async with rig() as it:` runs broker and service; keywords change settings.models."""

    @asynccontextmanager
    async def run(**models: Any) -> AsyncIterator[Rig]:
        async with serve_broker() as settings, pulling(settings, web, **models) as it:
            yield it

    return run


def is_whole(rig: Rig, name: str = "m") -> bool:
    """Adopted byte for byte, and nothing left behind."""
    return (rig.root.folder / f"{name}.gguf").read_bytes() == MODEL and not list(rig.pulls_folder.iterdir())


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until `condition()`; fails naming what did not come about."""
    for _ in range(int(WAIT_S / 0.02)):
        if condition():
            return
        await asyncio.sleep(0.02)
    pytest.fail(f"did not come about: {what}")


def written_bytes(settings: Settings) -> int:
    """What lies in parts."""
    return sum(part.stat().st_size for part in settings.path("pulls").glob("*/*.part"))


def is_put_away(settings: Settings) -> bool:
    """A pull that ends has its part synced, and says so; one that goes on has not, within two seconds."""
    states = [json.loads(state.read_bytes()) for state in settings.path("pulls").glob("*/*.state")]
    return bool(states) and all(state["synced_bytes"] for state in states)


async def occurs(event: threading.Event, what: str) -> None:
    assert await asyncio.to_thread(event.wait, WAIT_S), f"did not come about: {what}"


# Plain URLs ------------------------------------------------------------------------------------------------------------


async def test_a_url_is_fetched_checked_and_adopted(rig: Pulling, web: Server) -> None:
    """The caller sees every phase, the answer has the true size and digest, and an event tells everybody."""
    async with rig() as it, it.client.subscribe("model.pulled") as events:
        async with it.client.stream("model.pull", ModelPull(source=f"{web.url}/m.gguf"), timeout_s=WAIT_S) as parts:
            seen = [part async for part in parts]
        pulled = parts.final
        event = await asyncio.wait_for(anext(aiter(events)), WAIT_S)
        assert is_whole(it)
    assert (pulled.model, pulled.size_bytes, pulled.sha256) == ("m", len(MODEL), SHA)
    assert pulled.transferred_bytes == len(MODEL)
    assert all(isinstance(part, PullProgress) for part in seen)
    assert (seen[-1].phase, seen[-1].done_bytes, seen[-1].total_bytes) == ("finishing", len(MODEL), len(MODEL))
    assert event.body["sha256"] == SHA


async def test_a_cut_is_gone_on_from_where_it_was(rig: Pulling, web: Server) -> None:
    """Each try asks for the rest, and nothing is fetched twice."""
    web.then("/m.gguf", cut_after(1_000_000), cut_after(2_000_000))
    async with rig() as it:
        pulled = await it.pull(f"{web.url}/m.gguf", sha256=SHA)
        assert is_whole(it)
    assert web.ranges("/m.gguf") == [None, "bytes=1000000-", "bytes=3000000-"]
    assert pulled.transferred_bytes == len(MODEL)


async def test_progress_between_cuts_earns_more_patience(rig: Pulling, web: Server) -> None:
    """More cuts than tries in a row are no end while something comes each time."""
    web.then("/m.gguf", *(cut_after(100_000) for _ in range(10)))
    async with rig() as it:
        await it.pull(f"{web.url}/m.gguf")
        assert is_whole(it)


async def test_a_server_that_ignores_ranges_is_read_from_the_start(rig: Pulling, web: Server) -> None:
    """A 200 is never appended to what is here."""
    web.then("/m.gguf", cut_after(1_000_000), ignore_range)
    async with rig() as it:
        await it.pull(f"{web.url}/m.gguf")
        assert is_whole(it)


async def test_a_content_that_changed_in_between_is_not_mixed(rig: Pulling, web: Server) -> None:
    """If-Range makes the server send the new content whole."""
    other = MODEL.replace(b"olympus-demo", b"sumpylo-demo", 1)
    assert other != MODEL

    def change(answer: Answering) -> None:
        answer.server.files["/m.gguf"] = other
        answer.honest()

    web.then("/m.gguf", cut_after(1_000_000), change)
    async with rig() as it:
        await it.pull(f"{web.url}/m.gguf")
        assert (it.root.folder / "m.gguf").read_bytes() == other


async def test_a_server_that_ignores_if_range_does_not_mix_contents_either(rig: Pulling, web: Server) -> None:
    """A 206 of another ETag is thrown away and everything fetched anew."""
    other = MODEL.replace(b"olympus-demo", b"sumpylo-demo", 1)

    def careless(answer: Answering) -> None:
        answer.server.files["/m.gguf"] = other
        answer.head(1_000_000)
        answer.wfile.write(other[1_000_000:])

    web.then("/m.gguf", cut_after(1_000_000), careless)
    async with rig() as it:
        await it.pull(f"{web.url}/m.gguf")
        assert (it.root.folder / "m.gguf").read_bytes() == other


async def test_a_range_at_another_place_is_not_appended(rig: Pulling, web: Server) -> None:
    """A Content-Range that does not continue what is here begins anew."""

    def elsewhere(answer: Answering) -> None:
        answer.head(1_000_000, **{"content-range": f"bytes 5-{len(MODEL) - 1}/{len(MODEL)}"})
        answer.wfile.write(answer.content[1_000_000:])

    web.then("/m.gguf", cut_after(1_000_000), elsewhere)
    async with rig() as it:
        await it.pull(f"{web.url}/m.gguf")
        assert is_whole(it)


async def test_without_a_validator_or_checksum_a_cut_begins_anew(rig: Pulling, web: Server) -> None:
    """Nothing tells whether the rest is of the same content."""

    def cut_without_etag(answer: Answering) -> None:
        answer.head(0, etag="")
        answer.wfile.write(answer.content[:1_000_000])
        answer.close_connection = True

    web.then("/m.gguf", cut_without_etag)
    async with rig() as it:
        await it.pull(f"{web.url}/m.gguf")
        assert is_whole(it)
    assert web.ranges("/m.gguf") == [None, None]


async def test_a_length_that_is_too_long_ends_with_both_numbers(rig: Pulling, web: Server) -> None:
    """The server never sends what it announces: after some tries the caller hears how much came."""
    size = str(len(MODEL) + 1000)
    web.then("/m.gguf", *(announce(size) for _ in range(4)))
    async with rig() as it:
        with pytest.raises(Internal, match=f"received {len(MODEL)} bytes, expected {size}.*tried 4 times"):
            await it.pull(f"{web.url}/m.gguf")
        assert not (it.root.folder / "m.gguf").exists()


async def test_a_length_that_is_too_short_gives_no_model(rig: Pulling, web: Server) -> None:
    """What was announced came, but the file ends before its tensors do."""
    web.then("/m.gguf", announce(str(HALF), sent=slice(HALF)))
    async with rig() as it:
        with pytest.raises(Unprocessable, match="truncated"):
            await it.pull(f"{web.url}/m.gguf")
        assert not list(it.pulls_folder.iterdir())
        assert not (it.root.folder / "m.gguf").exists()


async def test_a_file_without_a_length_is_read_to_its_end(rig: Pulling, web: Server) -> None:
    """The total is not known before."""
    web.then("/m.gguf", announce(""))
    async with rig() as it:
        await it.pull(f"{web.url}/m.gguf")
        assert is_whole(it)


async def test_a_wrong_checksum_is_told_and_nothing_kept(rig: Pulling, web: Server) -> None:
    """Both digests are named, and the next pull does not build on what was wrong."""
    async with rig() as it:
        with pytest.raises(Unprocessable, match="wrong checksum") as caught:
            await it.pull(f"{web.url}/m.gguf", sha256="0" * 64)
        assert caught.value.details == {"sha256": SHA, "expected": "0" * 64}
        assert [part.stat().st_size for part in it.parts()] == [0]
        assert not (it.root.folder / "m.gguf").exists()


async def test_a_spoilt_part_is_fetched_once_more(rig: Pulling, web: Server) -> None:
    """A checksum that fails over what was here before is no reason to give up."""
    bad = b"x" * 1_000_000 + MODEL[1_000_000:]

    def spoilt(answer: Answering) -> None:
        answer.head(0)
        answer.wfile.write(bad[:1_500_000])
        answer.close_connection = True

    web.then("/m.gguf", spoilt, say(404))
    async with rig() as it:
        with pytest.raises(NotFound):
            await it.pull(f"{web.url}/m.gguf", sha256=SHA)
        assert [part.stat().st_size for part in it.parts()] == [1_500_000]
        await it.pull(f"{web.url}/m.gguf", sha256=SHA)
        assert is_whole(it)
    assert web.ranges("/m.gguf") == [None, "bytes=1500000-", "bytes=1500000-", None]


async def test_a_page_in_place_of_a_model_is_refused(rig: Pulling, web: Server) -> None:
    """A sign-in page with status 200 is not adopted."""
    web.files["/m.gguf"] = b"<!doctype html>" + b" " * 1000
    async with rig() as it:
        with pytest.raises(Unprocessable, match="not a GGUF file"):
            await it.pull(f"{web.url}/m.gguf")
        assert not list(it.pulls_folder.iterdir())


async def test_compression_that_nobody_asked_for_is_refused(rig: Pulling, web: Server) -> None:
    """Sizes and ranges would be those of another file."""
    web.then("/m.gguf", say(200, b"zip", content_encoding="gzip"))
    async with rig() as it:
        with pytest.raises(Unprocessable, match="gzip"):
            await it.pull(f"{web.url}/m.gguf")


@pytest.mark.parametrize(
    ("status", "error"), [(404, NotFound), (401, Forbidden), (403, Forbidden), (418, Unprocessable)]
)
async def test_answers_that_stay_are_not_asked_for_again(
    rig: Pulling, web: Server, status: int, error: type[BusError]
) -> None:
    """One request, one clear error."""
    web.then("/m.gguf", say(status))
    async with rig() as it:
        with pytest.raises(error, match=str(status)):
            await it.pull(f"{web.url}/m.gguf")
    assert len(web.asked) == 1


@pytest.mark.parametrize(("status", "error"), [(500, Internal), (503, Internal), (429, QuotaExceeded)])
async def test_answers_that_pass_are_asked_for_again(
    rig: Pulling, web: Server, status: int, error: type[BusError]
) -> None:
    """Some tries, then the model; always, then an error that says how often."""
    web.then("/m.gguf", say(status), say(status, retry_after="0"))
    async with rig() as it:
        await it.pull(f"{web.url}/m.gguf")
        assert is_whole(it)
        web.then("/m.gguf", *(say(status) for _ in range(4)))
        with pytest.raises(error, match=f"{status}.*tried 4 times"):
            await it.pull(f"{web.url}/m.gguf", name="again")


async def test_a_server_that_asks_for_a_long_wait_is_not_waited_for(rig: Pulling, web: Server) -> None:
    """Hours of silence are no service; the caller hears at once."""
    web.then("/m.gguf", say(429, retry_after="7200"))
    async with rig() as it:
        with pytest.raises(QuotaExceeded):
            await it.pull(f"{web.url}/m.gguf")
    assert len(web.asked) == 1


async def test_redirects_are_followed_but_not_for_ever(rig: Pulling, web: Server) -> None:
    """A loop ends with an error."""
    web.then("/here", say(302, location="/m.gguf"))
    async with rig() as it:
        await it.pull(f"{web.url}/here")
        assert is_whole(it, "here")
        web.then("/loop", *(say(302, location="/loop") for _ in range(12)))
        with pytest.raises(Unprocessable, match="redirects more than 10 times"):
            await it.pull(f"{web.url}/loop")


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("file:///etc/passwd", "neither http nor https"),
        ("http://[broken/x", "no URL"),
        ("http://127.0.0.1:99999/x", "no URL"),
    ],
)
async def test_a_redirect_to_something_else_than_http_is_refused(
    rig: Pulling, web: Server, location: str, why: str
) -> None:
    """A server cannot make the service read its own files, nor stumble over what is no URL."""
    web.then("/m.gguf", say(302, location=location))
    async with rig() as it:
        with pytest.raises(Unprocessable, match=why):
            await it.pull(f"{web.url}/m.gguf")


@pytest.mark.parametrize(
    "range_", ["bytes 1000000-5/*", "bytes */5", "", "bytes " + "9" * 5000 + "-9/9", "bytes x-y/z"]
)
async def test_senseless_ranges_begin_anew(rig: Pulling, web: Server, range_: str) -> None:
    """A 206 that does not say where it begins is believed nothing."""

    def senseless(answer: Answering) -> None:
        answer.head(1_000_000, **{"content-range": range_, "etag": ""})
        answer.wfile.write(answer.content[1_000_000:])

    web.then("/m.gguf", cut_after(1_000_000), senseless)
    async with rig() as it:
        await it.pull(f"{web.url}/m.gguf")
        assert is_whole(it)


async def test_a_model_bigger_than_the_disk_is_refused_with_both_numbers(
    rig: Pulling, web: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before its bytes come."""
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=1000))
    async with rig() as it:
        with pytest.raises(Unprocessable, match="has 1000 free") as caught:
            await it.pull(f"{web.url}/m.gguf")
        assert caught.value.details == {"needed_bytes": len(MODEL), "free_bytes": 1000}
        assert [part.stat().st_size for part in it.parts()] == [0]


async def test_a_file_of_unknown_length_does_not_fill_the_disk(
    rig: Pulling, web: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody says where it ends; before the last of the room is taken the pull does."""
    web.then("/m.gguf", announce(""))
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=SPARE_BYTES + 1000))
    async with rig() as it:
        with pytest.raises(Unprocessable, match="stay free"):
            await it.pull(f"{web.url}/m.gguf")
        assert written_bytes(it.settings) <= 1000


async def test_errors_of_the_disk_name_what_failed(rig: Pulling, web: Server) -> None:
    """A folder that nobody can write to, say, or something else in its place."""
    async with rig() as it:
        it.pulls_folder.parent.mkdir(parents=True, exist_ok=True)
        it.pulls_folder.write_text("in the way")
        with pytest.raises(Unprocessable, match=r"m\.gguf cannot be kept: .*pulls"):
            await it.pull(f"{web.url}/m.gguf")


# Callers ---------------------------------------------------------------------------------------------------------------


async def test_a_lock_on_a_folder_that_was_just_removed_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder finished between our opening of the lock and our taking it; the next one may be in a new folder."""
    real = fcntl.flock

    def finish_first(lock: int, how: int) -> None:
        shutil.rmtree(tmp_path / "pull")
        real(lock, how)

    monkeypatch.setattr(fcntl, "flock", finish_first)
    with pytest.raises(Conflict, match="fetched already"):
        _lock(tmp_path / "pull", "hf:o/n")


async def test_two_callers_of_one_pull_share_it(rig: Pulling, web: Server) -> None:
    """One transfer, two answers; the first one's leaving does not end it."""
    held, go = threading.Event(), threading.Event()
    web.then("/m.gguf", hold_after(HALF, held, go))
    async with rig() as it:
        first = asyncio.create_task(it.pull(f"{web.url}/m.gguf"))
        await occurs(held, "half of the file")
        seen = asyncio.Event()
        second = asyncio.create_task(_watched(it, f"{web.url}/m.gguf", seen))
        await asyncio.wait_for(seen.wait(), WAIT_S)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        go.set()
        pulled = await asyncio.wait_for(second, WAIT_S)
        assert is_whole(it)
    assert pulled.sha256 == SHA
    assert len(web.asked) == 1


async def _watched(it: Rig, source: str, seen: asyncio.Event) -> ModelPulled:
    async with it.client.stream("model.pull", ModelPull(source=source), timeout_s=WAIT_S) as parts:
        async for _ in parts:
            seen.set()
        return parts.final


async def test_a_cancelled_pull_keeps_its_part_and_the_next_goes_on(rig: Pulling, web: Server) -> None:
    """What came is on disk, and the rest is asked for."""
    held, go = threading.Event(), threading.Event()
    web.then("/m.gguf", hold_after(HALF, held, go))
    async with rig() as it:
        seen = asyncio.Event()
        caller = asyncio.create_task(_watched(it, f"{web.url}/m.gguf", seen))
        await occurs(held, "half of the file")
        await asyncio.wait_for(seen.wait(), WAIT_S)
        caller.cancel()
        with suppress(asyncio.CancelledError, Cancelled):
            await caller
        await until(lambda: is_put_away(it.settings), "the part is put away")
        # The first one may still be putting things away; this one waits for that, then goes on with the part.
        pulled = await it.pull(f"{web.url}/m.gguf")
        go.set()
        assert is_whole(it)
    second = web.ranges("/m.gguf")[1]
    assert second is not None
    assert pulled.transferred_bytes == len(MODEL) - int(second.removeprefix("bytes=").removesuffix("-"))
    assert pulled.transferred_bytes < len(MODEL)


async def test_one_source_under_two_names_at_once_is_a_conflict(rig: Pulling, web: Server) -> None:
    """Two writers never share a part."""
    held, go = threading.Event(), threading.Event()
    web.then("/m.gguf", hold_after(HALF, held, go))
    async with rig() as it:
        first = asyncio.create_task(it.pull(f"{web.url}/m.gguf"))
        await occurs(held, "half of the file")
        with pytest.raises(Conflict):
            await it.pull(f"{web.url}/m.gguf", name="other")
        go.set()
        await first
        assert is_whole(it)


async def test_a_service_that_leaves_tells_who_waits(rig: Pulling, web: Server) -> None:
    """The error is one that may be tried again, and the part is kept."""
    held, go = threading.Event(), threading.Event()
    web.then("/m.gguf", hold_after(HALF, held, go))
    async with rig() as it:
        caller = asyncio.create_task(it.pull(f"{web.url}/m.gguf"))
        await occurs(held, "half of the file")
        await it.pulls.stop()
        with pytest.raises(WorkerLost, match="kept"):
            await caller
        assert len(it.parts()) == 1


async def test_a_model_that_cannot_be_adopted_is_not_fetched_again(rig: Pulling, web: Server) -> None:
    """Gigabytes are kept for the next try, which asks the server for nothing but whether they are still right."""
    async with rig() as it:
        it.root.refusal = Conflict("m is loaded")
        with pytest.raises(Conflict, match="m is loaded"):
            await it.pull(f"{web.url}/m.gguf")
        it.root.refusal = None
        pulled = await it.pull(f"{web.url}/m.gguf")
        assert is_whole(it)
    assert pulled.transferred_bytes == 0
    assert web.ranges("/m.gguf") == [None, f"bytes={len(MODEL)}-"]


async def test_names_and_checksums_are_checked_before_anything_is_fetched(rig: Pulling, web: Server) -> None:
    """A name that could leave the folder, a source that is none."""
    async with rig() as it:
        for source, name in ((f"{web.url}/m.gguf", "../../evil"), (f"{web.url}/m.gguf", ".hidden"), ("nonsense", None)):
            with pytest.raises(BadRequest):
                await it.pull(source, name=name)
    assert not web.asked


# Offline ---------------------------------------------------------------------------------------------------------------


async def test_offline_the_answer_comes_at_once_and_says_what_is_here(rig: Pulling, web: Server) -> None:
    """By setting, and because nobody answers."""
    async with rig() as it:
        await it.pull(f"{web.url}/m.gguf", name="mine")
    async with rig(is_offline=True) as it:
        it.root.models["mine"] = ModelInfo(
            name="mine", family="", format="gguf", quantisation="", parameters=0, size_bytes=0, context_tokens=0,
            state="available",
        )  # fmt: skip
        with pytest.raises(Unsupported, match=r"is_offline is true.*here are: mine"):
            await it.pull(f"{web.url}/m.gguf")
    web.server_close()
    async with rig() as it:
        with pytest.raises(Unsupported, match=r"cannot be reached.*no model is here"):
            await it.pull(f"{web.url}/m.gguf")


# Registry --------------------------------------------------------------------------------------------------------------


def serve_registry(web: Server, **layer: Any) -> str:
    """A model "tiny:1b" in the registry; returns the path of its blob."""
    digest = f"sha256:{SHA}"
    model = {"mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": len(MODEL), **layer}
    template = {"mediaType": "application/vnd.ollama.image.template", "digest": f"sha256:{'a' * 64}", "size": 3}
    web.files["/v2/library/tiny/manifests/1b"] = json.dumps({"schemaVersion": 2, "layers": [template, model]}).encode()
    path = f"/v2/library/tiny/blobs/{model['digest']}"
    web.files[path] = MODEL
    return path


async def test_a_registry_model_is_found_by_name_and_tag(rig: Pulling, web: Server) -> None:
    """The manifest names the blob, its digest is checked, and the same content is not fetched twice."""
    blob = serve_registry(web)
    web.then(blob, cut_after(1_000_000))
    async with rig() as it:
        pulled = await it.pull("ollama:tiny:1b")
        assert is_whole(it, "tiny:1b")
        again = await it.pull("ollama:tiny:1b")
    assert (pulled.model, pulled.sha256, pulled.source) == ("tiny:1b", SHA, "ollama:tiny:1b")
    assert web.ranges(blob) == [None, "bytes=1000000-"]
    assert (again.transferred_bytes, again.sha256) == (0, SHA)


async def test_a_registry_that_sends_another_blob_is_found_out(rig: Pulling, web: Server) -> None:
    """The digest decides; a size that differs is told before anything comes."""
    blob = serve_registry(web)
    web.files[blob] = MODEL[:-1] + bytes([MODEL[-1] ^ 1])
    async with rig() as it:
        with pytest.raises(Unprocessable, match="wrong checksum"):
            await it.pull("ollama:tiny:1b")
        web.files[blob] = MODEL + b"more"
        with pytest.raises(Unprocessable, match=f"announces {len(MODEL) + 4} bytes, its index says {len(MODEL)}"):
            await it.pull("ollama:tiny:1b")


@pytest.mark.parametrize(
    "manifest",
    [
        b"not json",
        b"{}",
        b'{"layers": []}',
        b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../x", "size": 5}]}',
        b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "md5:1", "size": -5}]}',
    ],
)
async def test_a_manifest_that_is_none_is_refused(rig: Pulling, web: Server, manifest: bytes) -> None:
    """What a registry says is not trusted."""
    web.files["/v2/library/tiny/manifests/latest"] = manifest
    async with rig() as it:
        with pytest.raises(Unprocessable):
            await it.pull("ollama:tiny")


@pytest.mark.parametrize("size", [-5, 10**30, "5"])
async def test_a_size_that_is_none_is_refused_with_its_field(rig: Pulling, web: Server, size: Any) -> None:
    """In the index of a hub as in a manifest."""
    serve_registry(web, size=size)
    index = {"sha": COMMIT, "siblings": [{"rfilename": "m.gguf", "size": size}]}
    web.files["/api/models/o/n/revision/main"] = json.dumps(index).encode()
    async with rig() as it:
        for source in ("ollama:tiny:1b", "hf:o/n"):
            with pytest.raises(Unprocessable, match=r"something else than expected.*size"):
                await it.pull(source)


# Hub -------------------------------------------------------------------------------------------------------------------


def serve_hub(web: Server, files: dict[str, bytes], revision: str = "main") -> None:
    """A repository o/n of the hub; GGUF and safetensors files are in large-file storage."""
    siblings: list[dict[str, Any]] = []
    for name, content in files.items():
        digest = hashlib.sha256(content).hexdigest()
        lfs = {"sha256": digest, "size": len(content), "pointerSize": 130}
        siblings.append({"rfilename": name, "size": len(content)} | ({} if name.endswith(".json") else {"lfs": lfs}))
        web.files[f"/o/n/resolve/{COMMIT}/{name}"] = content
    index = {"id": "o/n", "sha": COMMIT, "siblings": siblings}
    web.files[f"/api/models/o/n/revision/{revision}"] = json.dumps(index).encode()


async def test_one_file_of_a_hub_is_fetched_by_its_commit(rig: Pulling, web: Server) -> None:
    """A revision that moves while the file comes changes nothing."""
    serve_hub(web, {"n-Q8.gguf": MODEL, "n-Q4.gguf": MODEL[:5]}, revision="v1")
    async with rig() as it:
        pulled = await it.pull("hf:o/n@v1/n-Q8.gguf")
        assert is_whole(it, "n-Q8")
        with pytest.raises(Unprocessable, match=r"name one of them.*n-Q4\.gguf \(0\.0 MB\), n-Q8\.gguf \(5\.5 MB\)"):
            await it.pull("hf:o/n@v1")
    assert (pulled.model, pulled.sha256) == ("n-Q8", SHA)


async def test_a_safetensors_repository_becomes_a_folder(rig: Pulling, web: Server) -> None:
    """Configuration, tokenizer and weights come; a cut in the second file goes on there; code stays where it is."""
    hf = SHIPPED_ROOT / "hf"
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
    files = {name: (hf / name).read_bytes() for name in names}
    header = b'{"a":{"dtype":"F16","shape":[4],"data_offsets":[0,8]}}'
    files["model.safetensors"] = len(header).to_bytes(8, "little") + header + bytes(8)
    serve_hub(web, {**files, "modeling_n.py": b"import os", "pytorch_model.bin": b"pickle"})
    web.then(f"/o/n/resolve/{COMMIT}/tokenizer.json", cut_after(100))
    async with rig() as it:
        pulled = await it.pull("hf:o/n")
        folder = it.root.folder / "n"
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
        assert not list(it.pulls_folder.iterdir())
    assert (pulled.model, pulled.transferred_bytes) == ("n", sum(map(len, files.values())))
    assert web.ranges(f"/o/n/resolve/{COMMIT}/tokenizer.json") == [None, "bytes=100-"]


async def test_broken_safetensors_are_not_adopted(rig: Pulling, web: Server) -> None:
    """A header that points behind the file."""
    header = b'{"a":{"dtype":"F16","shape":[4],"data_offsets":[0,8]}}'
    broken = len(header).to_bytes(8, "little") + header + bytes(7)
    serve_hub(web, {"config.json": b"{}", "model.safetensors": broken})
    async with rig() as it:
        with pytest.raises(Unprocessable, match=r"model\.safetensors: "):
            await it.pull("hf:o/n")
        assert not list(it.root.folder.iterdir())
        assert not list(it.pulls_folder.iterdir())


async def test_the_hubs_token_goes_to_the_hub_alone(
    rig: Pulling, web: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not to where it redirects, not to another URL, and into no error or log."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    storage = Server()
    thread = threading.Thread(target=storage.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        serve_hub(web, {"n.gguf": MODEL})
        web.then(f"/o/n/resolve/{COMMIT}/n.gguf", say(302, location=f"{storage.url}/m.gguf"))
        async with rig() as it:
            await it.pull("hf:o/n")
            assert is_whole(it, "n")
            await it.pull(f"{storage.url}/m.gguf", name="plain")
            web.then("/api/models/o/n/revision/main", say(401))
            with pytest.raises(Forbidden, match="HF_TOKEN") as caught:
                await it.pull("hf:o/n", name="again")
    finally:
        storage.shutdown()
        storage.server_close()
        thread.join(WAIT_S)
    assert {one.headers.get("authorization") for one in web.asked} == {f"Bearer {TOKEN}"}
    assert [one.headers.get("authorization") for one in storage.asked] == [None, None]
    assert TOKEN not in str(caught.value) + str(caught.value.details) + "".join(capfd.readouterr())


async def test_a_token_that_cannot_be_sent_is_named_and_not_shown(
    rig: Pulling, web: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As left by a file with two lines: the HTTP library would repeat it in its complaint."""
    monkeypatch.setenv("HF_TOKEN", "hf_one\nhf_two")
    async with rig() as it:
        with pytest.raises(BusError) as caught:
            await it.pull("hf:o/n")
    assert caught.value.message == "HF_TOKEN holds characters that no token has"
    assert "hf_one" not in str(caught.value.details) + "".join(capfd.readouterr())


async def test_a_later_part_that_is_cut_short_is_not_adopted(rig: Pulling, web: Server, tmp_path: Path) -> None:
    """Every part is read as what it is, not only the first."""
    write_parts(tmp_path, 2)
    files = {name: (tmp_path / name).read_bytes() for name in ("big-00001-of-00002.gguf", "big-00002-of-00002.gguf")}
    files["big-00002-of-00002.gguf"] = files["big-00002-of-00002.gguf"][:-10]
    serve_hub(web, files)
    async with rig() as it:
        with pytest.raises(Unprocessable, match=r"big-00002-of-00002\.gguf: truncated"):
            await it.pull("hf:o/n")
        assert not list(it.pulls_folder.iterdir())


# Death -----------------------------------------------------------------------------------------------------------------

SERVICE = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from bus.settings import load_settings
    from bus.worker import Worker
    from test_models_pull import Root
    from workers.models.pull.handlers import register
    from workers.models.pull.pulls import Pulls

    async def main():
        settings = load_settings()
        root = Root(settings.path("models"))
        root.folder.mkdir(parents=True, exist_ok=True)
        worker = Worker("model", settings)
        register(worker, Pulls(worker, root))
        await worker.run()

    asyncio.run(main())
    """
)


async def test_a_pull_survives_the_death_of_the_service(serve_broker: Any, web: Server) -> None:
    """Killed in the middle and started again, the very same request goes on from the disk and ends well."""
    held, go = threading.Event(), threading.Event()
    web.then("/m.gguf", hold_after(HALF, held, go))
    async with serve_broker() as settings, Client(settings, name="test") as client:
        service = await start_service(settings, client)
        try:
            request = ModelPull(source=f"{web.url}/m.gguf", sha256=SHA)
            caller = asyncio.create_task(client.request("model.pull", request, timeout_s=WAIT_S))
            await occurs(held, "half of the file")
            await until(lambda: written_bytes(settings) >= 1_000_000, "a good deal of the file is there")
            service.kill()
            await service.wait()
            service = await start_service(settings, client)
            # The broker gave the request up, or to the new process, as it saw the old one go.
            await asyncio.gather(caller, return_exceptions=True)
            pulled = await client.request("model.pull", request, timeout_s=WAIT_S)
        finally:
            go.set()
            if service.returncode is None:
                service.terminate()
            await service.wait()
        assert (settings.path("models") / "m.gguf").read_bytes() == MODEL
    assert pulled.sha256 == SHA
    assert web.ranges("/m.gguf")[1] is not None, "the second process began anew"


async def start_service(settings: Settings, client: Client) -> asyncio.subprocess.Process:
    """A process that serves `model.pull`, once the broker has welcomed it."""
    overrides = {"home": str(settings.home_path)}
    for name in ("request_port", "publish_port", "subscribe_port", "sequenced_port"):
        overrides[f"bus.{name}"] = str(getattr(settings.bus, name))
    environment = child_environment(None, overrides)
    async with client.subscribe("bus.worker.joined") as events:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SERVICE, str(Path(__file__).parent), env=environment, cwd=Path(__file__).parents[2]
        )
        async with asyncio.timeout(WAIT_S):
            await anext(event async for event in events if event.body["service"] == "model")
    return process


# The real catalogue ----------------------------------------------------------------------------------------------------


async def test_what_was_fetched_is_in_the_catalogue_with_its_source(serve_broker: Any, web: Server) -> None:
    """A file and a folder; a second content of the same name is its next version; the same content is not fetched."""
    second = MODEL.replace(b"olympus-demo", b"sumpylo-demo", 1)
    files = {path.name: path.read_bytes() for path in (SHIPPED_ROOT / "hf").iterdir()}
    serve_hub(web, files)
    async with serve_broker() as settings:
        settings = msgspec.structs.replace(settings, models=msgspec.structs.replace(settings.models, hub_url=web.url))
        root = settings.path("models")
        root.mkdir(parents=True)
        records = model_records(settings.path("models.db"))
        await records.open()
        worker = Worker("model", settings)
        catalogue = Files(settings, Catalogue([root]), records, worker.client, lambda info: info)
        register(worker, Pulls(worker, catalogue, patience=HURRIED))
        await catalogue.start()
        await worker.start(WAIT_S)
        try:
            async with Client(settings, name="test") as client:

                async def pull(source: str, **more: Any) -> ModelPulled:
                    return await client.request("model.pull", ModelPull(source=source, **more), timeout_s=WAIT_S)

                await pull(f"{web.url}/m.gguf")
                again = await pull(f"{web.url}/m.gguf", sha256=SHA)
                web.files["/m.gguf"] = second
                await pull(f"{web.url}/m.gguf")
                folder = await pull("hf:o/n")
            shown = await catalogue.show(ModelShow(model="m"))
            folder_shown = await catalogue.show(ModelShow(model="n"))
        finally:
            await catalogue.stop()
            await worker.stop()
            await records.close()
        assert (root / "m.gguf").read_bytes() == second
        assert {path.name for path in (root / "n").iterdir()} == set(files)
        assert not list(settings.path("pulls").iterdir())
    assert again.transferred_bytes == 0
    assert shown.source == f"{web.url}/m.gguf"
    assert {version.sha256 for version in shown.versions} == {SHA, hashlib.sha256(second).hexdigest()}
    assert (folder_shown.format, folder_shown.state) == ("safetensors", "available")
    assert folder.size_bytes == folder_shown.size_bytes
