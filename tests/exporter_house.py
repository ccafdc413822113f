"""A running exporter for tests: in this process, on a free port, over the broker of the settings it gets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec

from bus.settings import Settings
from workers.exporter.service import ExporterService

# Seconds that a test waits for figures to be there, or to be gone.
WAIT_S = 20.0


class ExporterHouse:
    """An exporter and a client that speaks HTTP to it."""

    def __init__(self, service: ExporterService, http: httpx.AsyncClient) -> None:
        self.service = service
        self.http = http
        self.url = f"http://{service.address}"

    async def scrape(self, *, openmetrics: bool = False) -> str:
        """The page of figures."""
        accept = "application/openmetrics-text; version=1.0.0" if openmetrics else "text/plain; version=0.0.4"
        answer = await self.http.get(f"{self.url}/metrics", headers={"accept": accept})
        assert answer.status_code == 200, answer.text
        return answer.text

    async def until(self, is_true: Callable[[str], bool], missing: str = "what the test waits for") -> str:
        """Scrape until the page is as it should be; fails with what is `missing`."""
        text = ""
        try:
            async with asyncio.timeout(WAIT_S):
                while not is_true(text := await self.scrape()):
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"{missing} is not there after {WAIT_S:g} s:\n{text}") from None
        return text


@asynccontextmanager
async def exporter_house(settings: Settings, **exporter: Any) -> AsyncIterator[ExporterHouse]:
    """The exporter as its process runs it; keywords change exporter settings."""
    changed = msgspec.structs.replace(settings.exporter, **{"port": 0, **exporter})
    service = ExporterService(msgspec.structs.replace(settings, exporter=changed))
    await service.start()
    try:
        async with httpx.AsyncClient(timeout=20, trust_env=False) as http:
            yield ExporterHouse(service, http)
    finally:
        await service.stop()
