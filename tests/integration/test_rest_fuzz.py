"""Requests made from the OpenAPI documents, right and wrong ones, against a running edge: no failure of ours.

OLYMPUS_TEST_FUZZ_EXAMPLES sets how many of each kind every operation gets.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from bus.settings import Settings
from schemas.errors import BY_CODE
from tests.rest_house import SERVICES, rest_house
from workers.memory.service import service

Serve = Callable[..., AbstractAsyncContextManager[Settings]]

EXAMPLES = int(os.environ.get("OLYMPUS_TEST_FUZZ_EXAMPLES", "2"))

# Statuses from 500 on that tell of somebody else: a worker that is absent, a time that the request itself made short.
NOT_OURS = {501, 502, 503, 504}


def fuzz(address: str) -> Counter[int]:
    """Every operation of one port, with requests that fit its document and with ones that do not. Counts the statuses."""
    counted: Counter[int] = Counter()
    document = schemathesis.openapi.from_url(f"{address}/openapi.json")
    document.validate()
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        for found in document.get_all_operations():
            operation = found.ok()
            if operation.label != "GET /health":
                check(operation, mode, counted)
    return counted


def check(operation: Any, mode: GenerationMode, counted: Counter[int]) -> None:
    """Send some requests; each answer must fit the document, each error be a problem."""

    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def one(case: Any) -> None:
        response = case.call(timeout=20)
        status = response.status_code
        counted[status] += 1
        assert status < 500 or status in NOT_OURS, response.text[:500]
        if status >= 400:
            assert response.headers["content-type"] == ["application/problem+json"]
            assert BY_CODE[response.json()["code"]]
        case.validate_response(response, checks=[response_schema_conformance, content_type_conformance])

    one()


# The services run beside the strategies, in this process, and roll dice of their own.
@pytest.mark.filterwarnings("ignore:Do not use the .random. module inside strategies")
@pytest.mark.parametrize("port", SERVICES)
def test_no_request_that_a_document_leads_to_makes_the_edge_fail(serve_broker: Serve, port: str) -> None:
    """Memory is there and answers as its document says; models and learning are absent, and that is what is said."""

    async def run() -> Counter[int]:
        async with serve_broker() as settings, rest_house(settings) as house:
            address = house.url("", port)
            if port != "memory":
                return await asyncio.to_thread(fuzz, address)
            async with service(settings) as worker:
                await worker.start(10)
                try:
                    return await asyncio.to_thread(fuzz, address)
                finally:
                    await worker.stop(drain_s=0)

    counted = asyncio.run(run())

    assert counted[400] > 20
    assert counted[200 if port == "memory" else 503] > 20
