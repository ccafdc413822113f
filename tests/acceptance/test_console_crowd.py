"""The web console before many workers, long words and texts that mean to deceive, in a real browser."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bus.worker import Worker
from tests.browser import Browser
from tests.console_house import ConsoleHouse
from workers.gateway.console import routes

# More than the page tells of one by one.
CROWD = 20

# Turns what stands behind it from right to left, to the end of its paragraph.
TURN = "\u202e"

LONG = "wordswithoutanyplacetobreakthem" * 5


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleHouse]:
    """A house with a crowd of workers, of which the last one is without something."""
    with ConsoleHouse(tmp_path_factory.mktemp("crowd") / "home") as running:
        crowd: list[Worker] = []

        async def join() -> None:
            for number in range(CROWD):
                worker = Worker("crowd", running.chat.settings, instance=f"node-{number:02}")
                worker.handle("crowd.nod", _nod)
                crowd.append(worker)
            crowd[-1].degraded_by(lambda: {"eyes": f"abc{TURN}gnp.exe {LONG}"})
            await asyncio.gather(*(worker.start() for worker in crowd))

        async def leave() -> None:
            await asyncio.gather(*(worker.stop() for worker in crowd))

        running.chat.run(join)
        yield running
        running.chat.run(leave)


@pytest.fixture(scope="module")
def page(house: ConsoleHouse, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The console, open."""
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        browser.size(1280)
        browser.open(house.url)
        browser.wait_text("#link", "Connected")
        yield browser
        assert browser.complaints() == []


async def _nod(request: Any, call: Any) -> dict[str, bool]:
    return {"nods": True}


def test_of_many_workers_the_troubled_ones_are_told_and_the_rest_counted(house: ConsoleHouse, page: Browser) -> None:
    """The details stay short, the dots of the picture leave room for the words beside them, and nothing is turned."""
    page.open(f"{house.url}#/overview/crowd")
    page.wait_text("section[aria-label=Details] h3", f"node-{CROWD - 1}")
    page.wait_text("section[aria-label=Details]", "12 more workers")
    assert page.texts("section[aria-label=Details] h3")[0].startswith(f"node-{CROWD - 1}")
    assert len(page.texts("section[aria-label=Details] h3")) == 8
    page.wait_text("section[aria-label=Details]", "abc\ufffdgnp.exe")
    assert TURN not in page.script("return document.body.innerText")

    gaps = page.script(
        "return [...document.querySelectorAll('.map .node:not(.hub)')].filter((each) => each.querySelector('circle'))"
        ".map((each) => each.querySelector('.small').getBBox().x"
        " - Math.max(...[...each.querySelectorAll('circle')].map((dot) => dot.getBBox().x + dot.getBBox().width)))"
    )
    assert gaps and min(gaps) > 0, gaps


def test_long_words_stay_within_a_narrow_page(house: ConsoleHouse, page: Browser) -> None:
    """Neither the details of a worker nor those of an error make the page wider than the screen."""
    group = house.chat.request(
        "error.report", {"service": "kitchen", "kind": "Burnt", "message": LONG, "traceback": f"at {LONG * 3}"}
    )
    page.size(360, 780)
    for view, words in ((f"errors/{group.fingerprint}", LONG[:60]), ("overview/crowd", LONG[:60])):
        page.open(f"{house.url}#/{view}")
        page.wait_text("main", words)
        wider = page.script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wider == 0, view
        inside = page.script(
            "return [...document.querySelectorAll('main pre, main summary, main .note')]"
            ".map((each) => innerWidth - each.getBoundingClientRect().right)"
        )
        assert inside and min(inside) >= 0, (view, inside)
    page.size(1280)


def test_a_tap_that_finds_no_place_says_why(
    house: ConsoleHouse, page: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on trying, tells what the gateway said, and takes that back once it watches."""
    monkeypatch.setattr(routes, "MAX_TAPS", 0)
    page.open(f"{house.url}#/tap")
    page.wait_text("main .problem", "taps are open, as many as may be")
    monkeypatch.setattr(routes, "MAX_TAPS", 64)
    page.wait_gone("main .problem")


def test_ages_are_told_by_the_clock_of_the_house(house: ConsoleHouse, page: Browser) -> None:
    """A machine whose clock is two hours ahead does not make everything two hours older."""
    house.chat.request("error.report", {"service": "kitchen", "kind": "Spilt", "message": "milk"})
    script = "const now = Date.now; Date.now = () => now() + 7200000;"
    wrong = page.command("Page.addScriptToEvaluateOnNewDocument", source=script)["identifier"]
    page.open("about:blank")
    page.open(f"{house.url}#/errors")
    page.wait_text("tbody", "Spilt")
    page.wait(
        lambda: not any("1 h" in text or "2 h" in text for text in page.texts("tbody")), "ages by the house's clock"
    )
    page.command("Page.removeScriptToEvaluateOnNewDocument", identifier=wrong)
    page.open("about:blank")
    page.open(house.url)


def test_what_one_person_said_and_searched_is_not_there_for_the_next(tmp_path: Path, page: Browser) -> None:
    """Another one who signs in to the same tab sees neither conversation nor question, and a late answer stays away."""
    with ConsoleHouse(tmp_path / "home", **{"auth.required": True}) as house:
        for name in ("ada", "bob"):
            house.chat.request("auth.user.add", {"user_id": name, "password": "correct horse", "admin": True})
        page.open(f"{house.url}#/ask")
        sign_in(page, "ada")
        page.wait_text("h1", "Ask")
        page.write("textarea", "where is my boat")
        page.click("Ask", "form")
        page.wait_text(".said.assistant .hint", "tokens")
        page.open(f"{house.url}#/memory?q=boat")
        page.wait_text("h1", "Memory")

        page.click("Sign out")
        page.wait_text("h1", "Sign in")
        assert "boat" not in page.script("return location.href")
        sign_in(page, "bob")
        page.wait_text("h1", "Overview")
        page.open(f"{house.url}#/ask")
        page.wait_text("h1", "Ask")
        assert page.texts(".said") == []


def test_who_has_namespaces_of_their_own_begins_there(tmp_path: Path, page: Browser) -> None:
    """An account as it is made may not use the house's, and is not refused before it did anything."""
    with ConsoleHouse(tmp_path / "home", **{"auth.required": True}) as house:
        house.chat.request("auth.user.add", {"user_id": "kiosk", "password": "correct horse"})
        page.open(f"{house.url}#/memory/facts")
        sign_in(page, "kiosk")
        page.wait_text("[role=status]", "fact")
        assert page.script("return document.querySelector('input[list]').value") == "user.kiosk"
        assert [each for each in page.texts(".problem") if each] == []


def test_an_address_of_no_view_shows_the_overview(house: ConsoleHouse, page: Browser) -> None:
    """Also where it is called as something that every object of the language has."""
    for name in ("constructor", "__proto__", "toString/x", "nowhere"):
        page.open(f"{house.url}#/models")
        page.wait_text("h1", "Models")
        page.open(f"{house.url}#/{name}")
        page.wait_text("h1", "Overview")


def sign_in(page: Browser, name: str) -> None:
    """Fill in the form and send it."""
    page.wait_text("h1", "Sign in")
    page.write("input[name=user]", name)
    page.write("input[name=password]", "correct horse")
    page.click("Sign in", "form")
