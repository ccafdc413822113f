"""What a request can end with: replies, errors, streams, cancellation, deadlines, conflicts."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from bus.client import Client
from bus.worker import Call
from schemas import errors
from schemas.bodies.memory import KvEntry, KvGet
from schemas.bodies.model import Generate, Generation, GenerationPart, Timings, Usage
from schemas.envelope import Kind, encode, new_id
from schemas.errors import (
    BadRequest,
    Cancelled,
    Conflict,
    DeadlineExceeded,
    Internal,
    NotFound,
    NoWorker,
    TooLarge,
)
from tests.contract.conftest import OpenBus, soon


async def echo(request: Any, call: Call) -> Any:
    """Answer with the request."""
    return request


async def entry(request: KvGet, call: Call) -> KvEntry:
    """An entry that every key has."""
    return KvEntry(key=request.key, value=[1, {"a": b"b"}], ns=request.ns, version=1, created_at=1.0, updated_at=2.0)


def generation(text: str = "") -> Generation:
    """The final reply of a generation."""
    return Generation(
        model="demo",
        text=text,
        token_ids=[],
        finish_reason="stop",
        usage=Usage(prompt_tokens=1, completion_tokens=2),
        timings=Timings(prompt_s=0.1, generate_s=0.1, first_token_s=0.1, tokens_per_s=10.0),
    )


async def generate(request: Generate, call: Call) -> Generation:
    """Two pieces and an end that repeats none of them."""
    for index, word in enumerate(request.prompt.split()):
        await call.partial(GenerationPart(text=word, token_ids=[index]))
    return generation()


async def test_request_gets_the_typed_reply_of_its_operation(open_bus: OpenBus) -> None:
    """A Struct goes in, is validated at the worker, and the catalogue's Struct comes out."""
    async with open_bus() as bus:
        await bus.serve("memory", {"memory.kv.get": entry})

        reply = await bus.client().request("memory.kv.get", KvGet(key="colour"))

        assert isinstance(reply, KvEntry)
        assert (reply.key, reply.value) == ("colour", [1, {"a": b"b"}])


async def test_raw_request_gets_builtin_values(open_bus: OpenBus) -> None:
    """With `raw` the same reply comes as a map."""
    async with open_bus() as bus:
        await bus.serve("memory", {"memory.kv.get": entry})

        reply = await bus.client().request("memory.kv.get", {"key": "colour"}, raw=True)

        assert reply["key"] == "colour"


async def test_unknown_subject_fails_fast_with_what_was_meant(open_bus: OpenBus) -> None:
    """A typo is answered at once and names the nearest known subjects."""
    async with open_bus() as bus:
        await bus.serve("memory", {"memory.kv.get": entry})
        client = bus.client()

        with pytest.raises(NoWorker, match=r"memory\.kv\.get") as failure:
            await client.request("memory.kv.gt", {"key": "a"})

        assert failure.value.details["is_known"] is False
        assert "memory.kv.get" in failure.value.details["nearest"]
        assert (await client.request("memory.kv.get", {"key": "a"})).key == "a"


async def test_an_operation_that_nobody_serves_names_the_service_that_would(open_bus: OpenBus) -> None:
    """Which is not always what its subject begins with: the resources serve gpu.status."""
    async with open_bus() as bus:
        with pytest.raises(NoWorker, match="is the 'resource' service running") as failure:
            await bus.client().request("gpu.status", {})

        assert failure.value.details["is_known"] is True


@pytest.mark.parametrize(
    ("subject", "field"), [("a b", "subject"), ("", "subject"), ("x" * 300, "subject"), ("a..b", "subject")]
)
async def test_bad_subject_is_refused_at_once(open_bus: OpenBus, subject: str, field: str) -> None:
    """Neither a malformed nor an endless subject leaves its caller waiting for the deadline."""
    async with open_bus() as bus:
        with pytest.raises((BadRequest, TooLarge)) as failure:
            await soon(bus.client().request(subject, {}), "the refusal")

        assert failure.value.details["field"] == field


async def test_headers_over_their_limit_are_refused_at_once(open_bus: OpenBus) -> None:
    """The error names size and limit."""
    async with open_bus() as bus:
        with pytest.raises(TooLarge) as failure:
            await soon(bus.client().request("a.b", {}, headers={"token": "x" * 10_000}), "the refusal")

        assert failure.value.details["limit_bytes"] == 8192


async def test_wrong_type_names_the_field_by_its_path(open_bus: OpenBus) -> None:
    """Validation errors say where in the body the fault lies; the worker then serves on."""
    async with open_bus() as bus:
        await bus.serve("model", {"model.chat": echo, "memory.kv.get": entry})
        client = bus.client()
        body = {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": 7}]}

        with pytest.raises(BadRequest, match=r"messages\[1\]\.content"):
            await client.request("model.chat", body)
        with pytest.raises(BadRequest, match="colour"):
            await client.request("memory.kv.get", {"key": "a", "colour": 1})

        assert (await client.request("memory.kv.get", {"key": "a"})).key == "a"


async def test_refused_value_is_named(open_bus: OpenBus) -> None:
    """Beside its field and what is allowed there; a password is not shown."""
    async with open_bus() as bus:
        await bus.serve("model", {"model.chat": echo, "memory.kv.get": entry, "auth.login": echo})
        client = bus.client()

        with pytest.raises(BadRequest, match=r"Expected `str`, got `int`, it is 7 \(field 'messages\[0\]\.content'\)"):
            await client.request("model.chat", {"messages": [{"role": "user", "content": 7}]})
        with pytest.raises(BadRequest, match=r"length >= 1, it is '' \(field 'key'\)"):
            await client.request("memory.kv.get", {"key": ""})
        with pytest.raises(BadRequest, match=f"it is '{'x' * 59}"):
            await client.request("memory.kv.get", {"key": "x" * 10_000})
        with pytest.raises(BadRequest) as failure:
            await client.request("auth.login", {"user": "ada", "password": 12345})
        assert "12345" not in failure.value.message


@pytest.mark.parametrize("code", sorted(errors.BY_CODE))
async def test_every_error_of_a_handler_arrives_as_itself(open_bus: OpenBus, code: str) -> None:
    """Class, message and details travel; what a handler raises is what its caller catches."""

    async def fail(request: Any, call: Call) -> Any:
        raise errors.BY_CODE[code]("no such thing", name="x", numbers=[1, 2])

    async with open_bus() as bus:
        await bus.serve("test", {"test.fail": fail})

        with pytest.raises(errors.BY_CODE[code], match="no such thing") as failure:
            await bus.client().request("test.fail")

        assert type(failure.value) is errors.BY_CODE[code]
        assert failure.value.details == {"name": "x", "numbers": [1, 2]}


async def test_undeclared_exception_becomes_internal_and_an_error_event(open_bus: OpenBus) -> None:
    """The caller gets `internal` with the exception's kind; the bus hears `error.{service}.error` with a traceback."""

    async def fail(request: Any, call: Call) -> Any:
        raise ZeroDivisionError("never")

    async with open_bus() as bus:
        await bus.serve("test", {"test.fail": fail, "test.echo": echo})
        client = bus.client()
        async with client.subscribe("error.>") as events:
            with pytest.raises(Internal, match="ZeroDivisionError: never"):
                await client.request("test.fail")
            event = await soon(anext(events), "the error event")

        assert event.subject == "error.test.error"
        assert event.body["kind"] == "ZeroDivisionError"
        assert "never" in event.body["traceback"]
        assert await client.request("test.echo", 1) == 1


async def test_error_with_unsendable_details_is_answered_all_the_same(open_bus: OpenBus) -> None:
    """A handler that puts an object into an error's details costs no credit and no caller's patience."""

    async def fail(request: Any, call: Call) -> Any:
        raise NotFound("gone", thing=object())

    async with open_bus() as bus:
        worker = await bus.serve("test", {"test.fail": fail}, capacity=1)
        client = bus.client()
        for _ in range(2):
            with pytest.raises(Internal, match="not_found: gone"):
                await soon(client.request("test.fail"), "the answer")

        assert worker.in_flight == 0


async def test_unsendable_reply_becomes_internal(open_bus: OpenBus) -> None:
    """What msgpack cannot hold is the worker's fault and is said to be."""

    async def reply(request: Any, call: Call) -> Any:
        return object()

    async with open_bus() as bus:
        await bus.serve("test", {"test.reply": reply})

        with pytest.raises(Internal):
            await soon(bus.client().request("test.reply"), "the answer")


async def test_reply_that_does_not_fit_its_operation_is_internal(open_bus: OpenBus) -> None:
    """A caller sees errors of the bus only, also when a worker answers nonsense."""

    async def nonsense(request: Any, call: Call) -> Any:
        return {"key": 5}

    async with open_bus() as bus:
        await bus.serve("memory", {"memory.kv.get": nonsense})

        with pytest.raises(Internal, match="does not fit"):
            await bus.client().request("memory.kv.get", {"key": "a"})


async def test_stream_brings_every_piece_in_order_and_then_the_final(open_bus: OpenBus) -> None:
    """500 pieces keep their order; `final` stands after the loop and not before."""

    async def count(request: int, call: Call) -> str:
        for index in range(request):
            await call.partial(index)
        return "done"

    async with open_bus() as bus:
        await bus.serve("test", {"test.count": count})
        async with bus.client().stream("test.count", 500) as stream:
            with pytest.raises(RuntimeError):
                _ = stream.final
            assert [part async for part in stream] == list(range(500))
            assert stream.final == "done"


async def test_stream_of_an_operation_is_typed(open_bus: OpenBus) -> None:
    """Pieces and end are the catalogue's Structs."""
    async with open_bus() as bus:
        await bus.serve("model", {"model.generate": generate})
        async with bus.client().stream("model.generate", Generate(prompt="one two")) as stream:
            parts = [part async for part in stream]

        assert parts == [GenerationPart(text="one", token_ids=[0]), GenerationPart(text="two", token_ids=[1])]
        assert isinstance(stream.final, Generation)


async def test_request_gathers_the_pieces_into_its_one_reply(open_bus: OpenBus) -> None:
    """Text is joined and lists are chained where the final reply left them empty."""
    async with open_bus() as bus:
        await bus.serve("model", {"model.generate": generate})

        reply = await bus.client().request("model.generate", Generate(prompt="one two"))

        assert (reply.text, reply.token_ids) == ("onetwo", [0, 1])


async def test_error_after_pieces_ends_the_stream_with_it(open_bus: OpenBus) -> None:
    """Pieces sent before the failure arrive before it."""

    async def half(request: Any, call: Call) -> Any:
        await call.partial("first")
        raise errors.Unprocessable("then nothing")

    async with open_bus() as bus:
        await bus.serve("test", {"test.half": half})
        got = []
        with pytest.raises(errors.Unprocessable):
            async with bus.client().stream("test.half") as stream:
                async for part in stream:
                    got.append(part)

        assert got == ["first"]


class Waiting:
    """A handler that waits until told, and says what became of it."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.gate = asyncio.Event()
        self.calls: list[Call] = []

    async def __call__(self, request: Any, call: Call) -> Any:
        self.calls.append(call)
        self.started.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return request


async def test_cancelled_request_reaches_the_handler(open_bus: OpenBus) -> None:
    """Cancelling the caller's task cancels the handler's, and the credit comes back."""
    waiting = Waiting()
    async with open_bus() as bus:
        await bus.serve("test", {"test.wait": waiting, "test.echo": echo}, capacity=1)
        client = bus.client()
        asking = asyncio.create_task(client.request("test.wait"))
        await soon(waiting.started.wait(), "the handler started")

        asking.cancel()

        await soon(waiting.cancelled.wait(), "the handler was cancelled")
        assert await soon(client.request("test.echo", 5), "the credit came back") == 5


async def test_leaving_a_stream_early_cancels_the_handler(open_bus: OpenBus) -> None:
    """A reader who has enough stops the work behind it."""
    stopped = asyncio.Event()

    async def endless(request: Any, call: Call) -> Any:
        try:
            while True:
                await call.partial("more")
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            stopped.set()
            raise

    async with open_bus() as bus:
        await bus.serve("test", {"test.endless": endless})
        async with bus.client().stream("test.endless") as stream:
            async for _ in stream:
                break

        await soon(stopped.wait(), "the handler was cancelled")


async def test_request_cancelled_in_the_same_breath_costs_no_credit(open_bus: OpenBus) -> None:
    """A cancel that arrives with its request, before the handler took a step, still ends it."""
    async with open_bus() as bus:
        worker = await bus.serve("test", {"test.wait": Waiting(), "test.echo": echo}, capacity=4)
        client = bus.client()
        await client.connect()
        link = client._requests.link
        assert link is not None
        for _ in range(4):
            id = new_id()
            link.send(encode(Kind.REQUEST, id, "test.wait"))
            link.send(encode(Kind.CANCEL, id))

        assert await soon(client.request("test.echo", 5), "a free credit") == 5
        await bus.until(lambda: worker.in_flight == 0 and bus.exchange.core.in_flight == 0, "all credit is back")


async def test_cancel_of_a_queued_request_takes_it_out(open_bus: OpenBus) -> None:
    """It never reaches a worker, and the queue is empty again."""
    waiting = Waiting()
    async with open_bus() as bus:
        await bus.serve("test", {"test.wait": waiting}, capacity=1)
        client = bus.client()
        first = asyncio.create_task(client.request("test.wait", 1))
        await soon(waiting.started.wait(), "the first is in flight")
        second = asyncio.create_task(client.request("test.wait", 2))
        await bus.until(lambda: bus.exchange.core.queued == 1, "the second is queued")

        second.cancel()
        await bus.until(lambda: bus.exchange.core.queued == 0, "the second is out of the queue")
        waiting.gate.set()

        assert await first == 1
        assert len(waiting.calls) == 1


async def test_cancelling_an_unknown_id_does_nothing(open_bus: OpenBus) -> None:
    """As does a foreign one."""
    waiting = Waiting()
    async with open_bus() as bus:
        await bus.serve("test", {"test.wait": waiting})
        client, other = bus.client(), bus.client("other")
        await other.connect()
        asking = asyncio.create_task(client.request("test.wait", 1))
        await soon(waiting.started.wait(), "the handler started")
        link = other._requests.link
        assert link is not None

        link.send(encode(Kind.CANCEL, new_id()))
        link.send(encode(Kind.CANCEL, waiting.calls[0].id))
        with pytest.raises(NoWorker):
            await other.request("test.nothing")
        waiting.gate.set()

        assert await asking == 1


async def test_deadline_in_flight_answers_cancels_and_buries(open_bus: OpenBus) -> None:
    """The caller hears `deadline_exceeded` in time, the handler is cancelled, the request is a dead letter."""
    waiting = Waiting()
    async with open_bus() as bus:
        await bus.serve("test", {"test.wait": waiting})
        client = bus.client()

        with pytest.raises(DeadlineExceeded, match=r"test\.wait was not answered by") as failure:
            await client.request("test.wait", 1, timeout_s=0.2)

        assert failure.value.details["waited_s"] >= 0.2
        await soon(waiting.cancelled.wait(), "the handler was cancelled")
        page = await client.request("deadletter.list")
        assert [(letter.subject, letter.reason) for letter in page.dead_letters] == [("test.wait", "deadline_exceeded")]


async def test_deadline_in_the_queue_is_answered_without_a_worker(open_bus: OpenBus) -> None:
    """A request that waited too long is dropped from the queue and never dispatched."""
    waiting = Waiting()
    async with open_bus() as bus:
        await bus.serve("test", {"test.wait": waiting}, capacity=1)
        client = bus.client()
        first = asyncio.create_task(client.request("test.wait", 1))
        await soon(waiting.started.wait(), "the first is in flight")

        with pytest.raises(DeadlineExceeded, match="in the queue"):
            await client.request("test.wait", 2, timeout_s=0.2)

        waiting.gate.set()
        assert await first == 1
        assert len(waiting.calls) == 1


async def test_deadline_in_the_past_is_refused_without_dispatch(open_bus: OpenBus) -> None:
    """A deadline that has passed on arrival is an error at once, with how late it was."""
    waiting = Waiting()
    async with open_bus() as bus:
        await bus.serve("test", {"test.wait": waiting, "test.echo": echo})
        client = bus.client()
        await client.connect()

        with pytest.raises(DeadlineExceeded):
            await soon(client.request("test.wait", timeout_s=-0.2), "the refusal")

        assert bus.exchange.core.counters.expired == 1
        assert not waiting.calls
        assert await client.request("test.echo", 1) == 1


async def test_handler_learns_deadline_headers_and_attempt(open_bus: OpenBus) -> None:
    """What the caller set is what the handler sees."""
    seen: list[Call] = []

    async def look(request: Any, call: Call) -> Any:
        seen.append(call)

    async with open_bus() as bus:
        await bus.serve("test", {"test.look": look})
        await bus.client().request("test.look", timeout_s=7.0, headers={"traceparent": "00-a-b-01"})

        (call,) = seen
        assert (call.subject, call.attempt, len(call.id)) == ("test.look", 1, 16)
        assert call.headers["traceparent"] == "00-a-b-01"
        assert 0 < call.deadline_at - time.time() < 7.0


async def test_duplicate_id_is_a_conflict_while_the_original_still_answers(open_bus: OpenBus) -> None:
    """A second request under an id in flight is refused; the first gets its reply; afterwards the id is free again."""
    waiting = Waiting()
    id = new_id()
    async with open_bus() as bus:
        await bus.serve("test", {"test.wait": waiting})
        first = asyncio.create_task(bus.client("one").request("test.wait", 1, id=id))
        await soon(waiting.started.wait(), "the handler started")

        with pytest.raises(Conflict, match=id.hex()):
            await bus.client("two").request("test.wait", 2, id=id)
        waiting.gate.set()

        assert await first == 1
        assert await bus.client("three").request("test.wait", 3, id=id) == 3


async def test_id_of_a_wrong_length_is_refused_before_it_is_sent(open_bus: OpenBus) -> None:
    """The broker could not even tell whose it is."""
    async with open_bus() as bus:
        with pytest.raises(BadRequest, match="16"):
            await bus.client().request("test.echo", id=b"short")


@pytest.mark.parametrize("size_bytes", [0, 1, 65_500, 65_536, 70_000, 1 << 20, 16 << 20])
async def test_bodies_of_every_size_come_back_whole(open_bus: OpenBus, size_bytes: int) -> None:
    """Inline, just around the border, and in a frame of their own."""
    async with open_bus() as bus:
        await bus.serve("test", {"test.echo": echo})
        body = b"\xa5" * size_bytes

        assert await bus.client().request("test.echo", body) == body


async def test_body_over_the_limit_is_refused_and_the_next_request_works(open_bus: OpenBus) -> None:
    """Both as a request and as a reply, with size and limit in bytes."""
    limit = 64 << 20

    async def huge(request: Any, call: Call) -> bytes:
        return bytes(limit + 1)

    async with open_bus() as bus:
        await bus.serve("test", {"test.echo": echo, "test.huge": huge})
        client = bus.client()

        with pytest.raises(TooLarge) as asked:
            await client.request("test.echo", bytes(limit + 1))
        with pytest.raises(TooLarge) as answered:
            await client.request("test.huge")

        assert asked.value.details["limit_bytes"] == answered.value.details["limit_bytes"] == limit
        assert await client.request("test.echo", "ok") == "ok"


async def test_ten_thousand_requests_without_a_worker_all_fail_fast(open_bus: OpenBus) -> None:
    """Nothing is queued for a service that nobody runs, known or unknown."""
    async with open_bus() as bus:
        client = bus.client()
        asked = [client.request("memory.kv.get", {"key": "a"}) for _ in range(5_000)]
        asked += [client.request("nobody.home", {}) for _ in range(5_000)]

        ends = await soon(asyncio.gather(*asked, return_exceptions=True), "every request failed")

        assert {type(end) for end in ends} == {NoWorker}
        assert bus.exchange.core.queued == 0


async def test_closing_a_client_ends_its_requests(open_bus: OpenBus) -> None:
    """They raise `Cancelled`, and the handlers are cancelled once the broker gives the client up."""
    waiting = Waiting()
    async with open_bus() as bus:
        await bus.serve("test", {"test.wait": waiting})
        client: Client = bus.client()
        asking = asyncio.create_task(client.request("test.wait"))
        await soon(waiting.started.wait(), "the handler started")

        await client.close()

        with pytest.raises(Cancelled):
            await asking
        with pytest.raises(Cancelled):
            await client.request("test.wait")
