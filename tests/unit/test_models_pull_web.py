"""HTTP of pulls without a network: where redirects may lead, where a token goes, and how long to wait between tries."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable

import pytest

from schemas.errors import Internal, Unprocessable
from workers.models.pull.web import Patience, Trouble, Web

httpx = pytest.importorskip("httpx", reason="httpx is not installed")

KEY = "hf_secret"
HUB = "https://hub.example"


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], list[tuple[str, str | None]]]:
    """`answer({url: location})` redirects these and answers all others; returns what was asked, with its authorization."""

    def use(redirects: dict[str, str]) -> list[tuple[str, str | None]]:
        asked: list[tuple[str, str | None]] = []

        def handle(request: httpx.Request) -> httpx.Response:
            url = str(request.url)
            asked.append((url, request.headers.get("authorization")))
            if url in redirects:
                return httpx.Response(302, headers={"location": redirects[url]})
            return httpx.Response(200, content=body())

        transport = httpx.MockTransport(handle)
        monkeypatch.setattr(httpx, "AsyncClient", functools.partial(httpx.AsyncClient, transport=transport))
        return asked

    return use


async def body() -> AsyncIterator[bytes]:
    yield b"x"


async def fetched(url: str) -> bytes:
    web = Web({f"{HUB}:443": KEY}, Patience())
    try:
        async with web.get(url) as response:
            return b"".join([piece async for piece in response.aiter_raw()])
    finally:
        await web.close()


async def test_a_redirect_never_leads_from_https_to_http(answer: Callable[..., list[tuple[str, str | None]]]) -> None:
    """Not at once, and not by way of another host; the key was not sent to where it led."""
    asked = answer({f"{HUB}/a": "https://cdn.example/b", "https://cdn.example/b": "http://cdn.example/b"})
    with pytest.raises(Unprocessable, match="without encryption"):
        await fetched(f"{HUB}/a")
    assert asked == [(f"{HUB}/a", f"Bearer {KEY}"), ("https://cdn.example/b", None)]


async def test_a_redirect_may_lead_from_http_to_https(answer: Callable[..., list[tuple[str, str | None]]]) -> None:
    """To better is allowed."""
    answer({"http://plain.example/a": "https://plain.example/a"})
    assert await fetched("http://plain.example/a") == b"x"


async def test_a_token_goes_to_its_origin_alone(answer: Callable[..., list[tuple[str, str | None]]]) -> None:
    """Also after a redirect within it; another port, scheme or subdomain is another origin."""
    elsewhere = [f"{HUB}:8443/b", "https://sub.hub.example/b", "http://hub.example/b"]
    asked = answer({f"{HUB}/a": "/c", f"{HUB}/c": "../d"})
    await fetched(f"{HUB}/a")
    for url in elsewhere:
        await fetched(url)
    assert [key for _, key in asked] == [f"Bearer {KEY}"] * 3 + [None] * 3


async def test_tries_end_when_nothing_new_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try that brought more begins the count anew; one that brought less than before does not."""
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)
    had = iter([0, 5, 9, 3, 9, 9, 9, 9])
    tries = 0
    with pytest.raises(Trouble):
        async for attempt in Patience(attempts=3).retrying(lambda: next(had)):
            with attempt:
                tries += 1
                raise Trouble(Internal("cut"))
    assert tries == 4


async def test_waits_grow_are_random_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full jitter: anything from nothing to a bound that doubles."""
    bounds: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        bounds.append((low, high))
        return 0.0

    monkeypatch.setattr("random.uniform", uniform)
    with pytest.raises(Trouble):
        async for attempt in Patience(attempts=6, first_s=0.5, longest_s=3.0).retrying(lambda: 0):
            with attempt:
                raise Trouble(Internal("cut"))
    assert bounds[:5] == [(0.0, 0.5), (0.0, 1.0), (0.0, 2.0), (0.0, 3.0), (0.0, 3.0)]
