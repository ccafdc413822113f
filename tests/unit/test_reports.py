"""Reports of failures: what of them goes out, and that none is lost."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator

import pytest

from bus import reports as module
from bus.context import Asked, current
from bus.reports import REPORTS_PER_S, UNTOLD, Reports
from schemas.bodies.control import ErrorReport
from schemas.errors import DeadlineExceeded


class Bus:
    """Takes what is published; can be away."""

    def __init__(self) -> None:
        self.got: list[tuple[str, ErrorReport]] = []
        self.is_away = False
        self.came = asyncio.Event()

    async def publish(self, subject: str, report: ErrorReport) -> None:
        if self.is_away:
            raise DeadlineExceeded("no broker")
        self.got.append((subject, report))
        self.came.set()

    async def next(self) -> ErrorReport:
        async with asyncio.timeout(10):
            await self.came.wait()
        self.came.clear()
        return self.got[-1][1]

    @property
    def counts(self) -> list[int]:
        return [report.count for _, report in self.got]


class Records(logging.Handler):
    """Keeps log records."""

    def __init__(self) -> None:
        super().__init__()
        self.got: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.got.append(record)


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """The log records of the service `demo.part`."""
    log, handler = logging.getLogger("olympus.demo.part"), Records()
    log.addHandler(handler)
    try:
        yield handler.got
    finally:
        log.removeHandler(handler)


def failure(message: str = "it went wrong", kind: type[Exception] = ValueError) -> Exception:
    """One that was raised, always at the same place."""
    try:
        raise kind(message)
    except kind as error:
        return error


def reports_to(bus: Bus) -> Reports:
    """Bound to the running loop."""
    made = Reports("demo.part", "demo-1", bus.publish)
    made.bind()
    return made


async def test_the_first_of_a_kind_is_told_whole_and_at_once(records: list[logging.LogRecord]) -> None:
    """With its traceback, its request and its trace; on the subject of its service and severity."""
    bus = Bus()
    reports = reports_to(bus)
    current.set(Asked(bytes(range(16))))

    said = reports.failed(failure(), "handler failed", subject="demo.work", operation="demo.*")
    report = await bus.next()

    assert said == "it went wrong"
    assert bus.got[0][0] == "error.demo-part.error"
    assert (report.kind, report.message, report.count, report.subject) == ("ValueError", said, 1, "demo.work")
    assert report.request_id == bytes(range(16)).hex()
    assert report.traceback.startswith("Traceback (most recent call last):\n")
    assert report.traceback.endswith("    raise kind(message)\nValueError: it went wrong\n")
    (record,) = records
    assert record.exc_text == report.traceback
    await reports.close(1)


async def test_a_storm_is_told_as_numbers_that_add_up(records: list[logging.LogRecord]) -> None:
    """20,000 like failures make two reports and two log lines when the worker leaves, and no failure is lost."""
    bus = Bus()
    reports = reports_to(bus)

    for number in range(20_000):
        reports.failed(failure(f"number {number}"), "handler failed", operation="demo.work")
        if number % 100 == 0:
            await asyncio.sleep(0)
    await reports.close(5)

    assert sum(bus.counts) == 20_000
    assert len(bus.got) <= 5
    assert len(records) <= 5
    assert bus.got[-1][1].message == "number 19999"
    assert (reports.failures, reports.damped) == (20_000, 20_000 - len(bus.got))


async def test_a_storm_is_told_while_it_lasts() -> None:
    """What is counted goes out when the window ends, without anybody leaving."""
    bus = Bus()
    reports = reports_to(bus)

    for _ in range(3):
        reports.failed(failure(), "handler failed")
    assert (await bus.next()).count == 1
    assert (await bus.next()).count == 2

    await reports.close(1)


async def test_unlike_failures_are_told_apart() -> None:
    """By type, by place and by operation; not by what they say."""
    bus = Bus()
    reports = reports_to(bus)

    def elsewhere() -> Exception:
        try:
            raise ValueError("it went wrong")
        except ValueError as error:
            return error

    for error, operation in (
        (failure("one"), "a"),
        (failure("two"), "a"),
        (failure("one"), "b"),
        (failure("one", KeyError), "a"),
        (elsewhere(), "a"),
    ):
        reports.failed(error, "handler failed", operation=operation)
    await reports.close(5)

    told = {(report.kind, "elsewhere" in report.traceback): report.count for _, report in bus.got[1:]}
    assert bus.counts == [2, 1, 1, 1]
    assert told == {("ValueError", False): 1, ("KeyError", False): 1, ("ValueError", True): 1}


async def test_a_flood_of_new_kinds_is_bounded(records: list[logging.LogRecord]) -> None:
    """Of 5,000 kinds at once no more than the bound go out before the worker leaves, and all are counted."""
    bus = Bus()
    reports = reports_to(bus)
    error = failure()

    for number in range(5_000):
        reports.failed(error, "handler failed", operation=f"demo.{number}")
    await bus.next()
    for _ in range(100):
        await asyncio.sleep(0)
    at_once = len(bus.got), len(records)
    await reports.close(10)

    assert at_once == (REPORTS_PER_S, REPORTS_PER_S)
    assert sum(bus.counts) == 5_000
    assert len(bus.got) < 300
    assert "too many" in str(max((report for _, report in bus.got), key=lambda report: report.count).context)


@pytest.mark.parametrize("is_away_at_first", [True, False])
async def test_failures_wait_for_a_broker_that_is_away(
    monkeypatch: pytest.MonkeyPatch, records: list[logging.LogRecord], is_away_at_first: bool
) -> None:
    """They are logged at once, counted further, and told when it is back."""
    monkeypatch.setattr(module, "_RETRY_S", 0.01)
    bus = Bus()
    reports = Reports("demo.part", "demo-1", bus.publish)
    if is_away_at_first:
        reports.failed(failure(), "handler failed")
        assert len(records) == 1
        reports.bind()
    else:
        bus.is_away = True
        reports.bind()
        reports.failed(failure(), "handler failed")
        for _ in range(10):
            await asyncio.sleep(0)
        bus.is_away = False

    report = await bus.next()

    assert report.count == 1
    assert len(records) == 1
    await reports.close(1)


async def test_leaving_without_a_broker_says_how_many_were_not_told(records: list[logging.LogRecord]) -> None:
    """It does not wait for the broker for long."""
    bus = Bus()
    bus.is_away = True
    reports = reports_to(bus)

    for _ in range(7):
        reports.failed(failure(), "handler failed")
    await reports.close(0.05)

    assert records[-1].getMessage() == "left with errors unreported"
    assert records[-1].__dict__["count"] == 7


async def test_the_messages_of_secret_operations_are_told_to_nobody(records: list[logging.LogRecord]) -> None:
    """Neither that of the exception nor those that led to it; kinds and places are."""
    bus = Bus()
    reports = reports_to(bus)
    try:
        try:
            raise KeyError("hunter2")
        except KeyError as cause:
            error = ValueError("no user with hunter2")
            error.add_note("hunter2")
            raise error from cause
    except ValueError as error:
        said = reports.failed(error, "handler failed", is_secret=True)
    report = await bus.next()

    assert said == UNTOLD
    assert report.message == UNTOLD
    text = report.traceback.replace(' raise KeyError("hunter2")', "")
    assert "KeyError\n" in text
    assert text.endswith("ValueError\n")
    assert "hunter2'" not in text
    assert "KeyError: " not in text
    assert records[0].exc_text == report.traceback
    await reports.close(1)


class Unspeakable(Exception):
    """Cannot be told."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize("message", ["half a \ud800 character", "x" * 1_000_000, "", "a\nb\x1b[31m"])
async def test_any_message_can_be_told(message: str) -> None:
    """Whatever an exception says, its report is sent and its length bounded."""
    bus = Bus()
    reports = reports_to(bus)

    said = reports.failed(failure(message), "handler failed")
    report = await bus.next()

    assert said == report.message
    assert len(report.message.encode()) <= 10_000
    assert len(report.traceback.encode()) <= 40_000
    await reports.close(1)


async def test_an_exception_that_cannot_be_told_is_named() -> None:
    """Its own `__str__` raises."""
    bus = Bus()
    reports = reports_to(bus)

    said = reports.failed(Unspeakable(), "handler failed")

    assert "RuntimeError" in said
    assert (await bus.next()).kind == "Unspeakable"
    await reports.close(1)


async def test_deep_and_grouped_exceptions_are_told_within_bounds() -> None:
    """A recursion without end and a group of failures both show what is to be known."""
    bus = Bus()
    reports = reports_to(bus)

    def deeper(depth: int) -> None:
        deeper(depth + 1)

    try:
        deeper(0)
    except RecursionError as error:
        reports.failed(error, "handler failed")
    recursion = await bus.next()
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))
            group.create_task(_raise(KeyError("inner")))
    except ExceptionGroup as errors:
        reports.failed(errors, "handler failed")
    grouped = await bus.next()

    assert "more calls]" in recursion.traceback
    assert recursion.traceback.count("deeper(depth + 1)") <= 40
    assert "KeyError: 'inner'" in grouped.traceback
    assert "ExceptionGroup: unhandled errors in a TaskGroup" in grouped.traceback
    await reports.close(1)


async def _raise(error: Exception) -> None:
    raise error


async def test_a_service_process_reports_what_nobody_catches() -> None:
    """In a task, a callback and a thread; and every exception that is logged as an error."""
    bus = Bus()
    reports = Reports("demo.part", "demo-1", bus.publish)
    loop = asyncio.get_running_loop()
    told: dict[str, ErrorReport] = {}
    before = loop.get_exception_handler(), threading.excepthook, logging.getLogger().handlers[:]

    def fail(kind: type[Exception]) -> None:
        raise kind("in the background")

    def log_one() -> None:
        try:
            fail(KeyError)
        except KeyError:
            logging.getLogger("olympus.elsewhere").exception("job failed", extra={"action": "job", "password": "pw"})

    with reports.hooks():
        loop.call_soon(fail, ValueError)
        await asyncio.wait({asyncio.create_task(_raise(OSError("in a task")))})
        thread = threading.Thread(target=fail, args=(TypeError,), name="computing")
        thread.start()
        await asyncio.to_thread(log_one)
        thread.join()
        async with asyncio.timeout(10):
            while len(told) < 4:
                await bus.came.wait()
                bus.came.clear()
                told = {report.kind: report for _, report in bus.got}
        logging.getLogger("olympus.elsewhere").error("without an exception")
        await reports.close(1)

    assert set(told) == {"ValueError", "OSError", "TypeError", "KeyError"}
    assert told["TypeError"].context == {"action": "worker.uncaught", "thread_ended": "computing"}
    assert told["KeyError"].context == {"action": "job", "password": "(hidden)"}
    assert "in fail" in told["KeyError"].traceback
    assert (loop.get_exception_handler(), threading.excepthook, logging.getLogger().handlers) == before


async def test_a_storm_of_logged_exceptions_is_damped_too() -> None:
    """From another thread, as code that computes logs them; the counts add up."""
    bus = Bus()
    reports = Reports("demo.part", "demo-1", bus.publish)
    quiet = logging.getLogger("olympus.demo.storm")

    def storm() -> None:
        error = failure()
        for _ in range(2_000):
            quiet.error("decoding failed", exc_info=error, extra={"action": "decode"})

    with reports.hooks():
        await asyncio.to_thread(storm)
        await bus.next()
        await reports.close(5)

    assert sum(bus.counts) == 2_000
    assert len(bus.got) <= 5
