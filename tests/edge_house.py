"""A house for tests of the HTTP edges: broker, services and the REST edge in a thread, asked over real connections."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import threading
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from broker.server import Broker
from bus.client import Client
from bus.metrics import Figures
from bus.settings import Settings, load_settings
from tests.conftest import settings_of
from workers.gateway.rest.edge import RestEdge
from workers.gateway.rest.routes import Route

_PORTS = (
    "memory_port",
    "models_port",
    "learning_port",
    "memory_health_port",
    "models_health_port",
    "learning_health_port",
)
_BUS_PORTS = ("request_port", "publish_port", "subscribe_port", "sequenced_port")

Routes = dict[str, list[Route]]


class EdgeHouse:
    """`services`: real ones among memory, models and resources. `routes`: what is served beside the catalogue's.

    with EdgeHouse(home, services=("memory",)) as house: httpx.get(house.url("memory") + "/kv/a")
    """

    def __init__(
        self,
        home: Path,
        *,
        services: Iterable[str] = (),
        routes: Callable[[Settings, Client], Routes] | None = None,
        **overrides: Any,
    ) -> None:
        self._home = home
        self._services = tuple(services)
        self._routes = routes
        self._overrides = overrides
        self._started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="edge house")
        self.ports: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.result(60)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    def url(self, service: str) -> str:
        """Scheme, host and port of a service's port."""
        return f"http://127.0.0.1:{self.ports[service]}"

    def bus(self, subject: str, body: Any = None, **options: Any) -> Any:
        """The reply of an operation, asked by the home itself."""
        return self.run(lambda: self.client.request(subject, body, **options))

    def run(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """The result of a coroutine in the loop of the house."""
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(60)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        try:
            async with contextlib.AsyncExitStack() as stack:
                await self._start(stack)
                self._started.set_result(None)
                await self._stop.wait()
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        free = {**{f"bus.{name}": 0 for name in _BUS_PORTS}, **{f"rest.{name}": 0 for name in _PORTS}}
        wanted = load_settings(overrides={"home": str(self._home), **free, **self._overrides})
        broker = Broker(wanted)
        await broker.start()
        stack.push_async_callback(broker.stop)
        self.settings = settings = settings_of(broker)
        for name in self._services:
            await _serve(name, settings, stack)
        self.client = await stack.enter_async_context(Client(settings, name="test"))
        client = await stack.enter_async_context(Client(settings, name="gateway", signs=False))
        edge = RestEdge(settings, client, Figures())
        for service, routes in (self._routes(settings, client) if self._routes is not None else {}).items():
            edge.add_routes(service, routes)
        stack.push_async_callback(edge.stop, 1.0)
        for info in await edge.start():
            assert info.state == "bound", json.dumps(info.note)
            if info.purpose == "rest":
                self.ports[info.owner] = info.port


async def _serve(name: str, settings: Settings, stack: contextlib.AsyncExitStack) -> None:
    if name == "memory":
        from workers.memory.service import service

        worker = await stack.enter_async_context(service(settings))
        await worker.start(10)
        stack.push_async_callback(worker.stop)
        return
    served: Any
    if name == "models":
        from workers.models.service import ModelService

        served = ModelService(settings)
    else:
        from workers.resources.service import ResourceService

        served = ResourceService(settings)
    await served.start()
    stack.push_async_callback(served.stop)
