"""Fixtures every test may use: free ports, a real broker, an event loop per async test, and no silent skips in CI."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker.server import Broker
from bus.settings import Settings, load_settings

# A run in the background of a script may inherit an ignored SIGINT, and so would every process that a test stops with it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# An async test that takes longer hangs; the failure then says so instead of blocking the whole run.
ASYNC_TEST_S = 120.0


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run `async def` tests in a loop of their own, with a limit on their time."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}

    async def run() -> None:
        async with asyncio.timeout(ASYNC_TEST_S):
            await pyfuncitem.obj(**arguments)

    asyncio.run(run())
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Where nothing may be missing (OLYMPUS_TEST_NO_SKIP, set by CI) a skipped test is a failed one."""
    report: Any = yield
    if report.skipped and os.environ.get("OLYMPUS_TEST_NO_SKIP") and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be skipped: {reason}"
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A thread that a test leaves running fails the run: the interpreter would wait for it for ever."""
    left = _threads_left()
    if left and not exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        # Where tests run side by side, the process that counts is another one: it is told with what this one found.
        if (output := getattr(session.config, "workeroutput", None)) is not None:
            output["threads_left"] = left


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """One of several test processes has ended: what it left running fails the whole run."""
    left = getattr(node, "workeroutput", {}).get("threads_left")
    if left:
        print(f"threads left running by a test: {', '.join(left)}", file=sys.stderr)
        node.config.pluginmanager.get_plugin("dsession").shouldstop = "a test left threads running"


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends without waiting for threads that were left running, and names them."""
    left = _threads_left()
    session = config.pluginmanager.get_plugin("session")
    if left and session is not None:
        print(f"threads left running by a test: {', '.join(left)}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(session.exitstatus))


def _threads_left() -> list[str]:
    alive = (thread for thread in threading.enumerate() if thread is not threading.main_thread())
    return [thread.name for thread in alive if not thread.daemon]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Defaults with a home of this test's own and any free port."""
    for name in [name for name in os.environ if name.startswith("OLYMPUS_") and not name.startswith("OLYMPUS_TEST_")]:
        monkeypatch.delenv(name)
    ports = ("request_port", "publish_port", "subscribe_port", "sequenced_port")
    return load_settings(overrides={"home": str(tmp_path / "home"), **{f"bus.{name}": 0 for name in ports}})


def settings_of(broker: Broker) -> Settings:
    """The broker's settings with the ports it got."""
    bus = msgspec.structs.replace(
        broker.settings.bus, **{f"{name}_port": port for name, port in broker.ports._asdict().items()}
    )
    return msgspec.structs.replace(broker.settings, bus=bus)


Serve = Callable[..., AbstractAsyncContextManager[Settings]]


@pytest.fixture
def serve_broker(settings: Settings) -> Serve:
    """`async with serve_broker() as settings:` runs a real broker on free ports; keywords change broker settings."""

    @asynccontextmanager
    async def serve(**broker_changes: Any) -> AsyncIterator[Settings]:
        changed = msgspec.structs.replace(settings, broker=msgspec.structs.replace(settings.broker, **broker_changes))
        broker = Broker(changed)
        await broker.start()
        try:
            yield settings_of(broker)
        finally:
            await broker.stop()

    return serve
