"""The web console in a real browser, against a real gateway, memory and error service: what a person sees and does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.browser import Browser
from tests.chat_house import Say
from tests.console_house import ConsoleHouse

MARKUP = "<script>document.title = 'taken over'</script><img src=x onerror=\"document.title = 'taken over'\">"

VIEWS = {
    "overview": "Overview",
    "tap": "Tap",
    "models": "Models",
    "learning": "Learning",
    "learning/tone-7": "Learning",
    "memory": "Memory",
    "memory/facts": "Memory",
    "errors": "Errors",
    "ask": "Ask",
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One window for all tests of this file."""
    with Browser(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleHouse]:
    """One house for all tests that leave it running."""
    with ConsoleHouse(tmp_path_factory.mktemp("console") / "home") as running:
        yield running


@pytest.fixture
def page(house: ConsoleHouse, browser: Browser) -> Iterator[Browser]:
    """The console, loaded anew; whatever a test did, the page had no fault and spoke to nobody else."""
    browser.size(1280)
    browser.open("about:blank")
    browser.complaints()
    browser.asked()
    browser.open(house.url)
    browser.wait_text("#link", "Connected")
    yield browser
    assert browser.complaints() == []
    elsewhere = [url for url in browser.asked() if not url.startswith((house.origin, "about:"))]
    assert elsewhere == []


def go(page: Browser, house: ConsoleHouse, view: str) -> None:
    """Follow a deep link."""
    page.open(f"{house.url}#/{view}")


def test_overview_draws_the_services_around_the_broker(house: ConsoleHouse, page: Browser) -> None:
    """Each service is a node with its state in words; what is missing says so, and a click tells more."""
    page.wait_text("h1", "Overview")
    page.wait_text(".map .node", "memory")
    nodes = page.wait(lambda: {text.split("\n")[0] for text in page.texts(".map .node .title")}, "nodes")
    assert {"Broker", "memory", "model", "learning", "resource", "error", "gateway"} <= nodes
    labels = [each.get_attribute("aria-label") for each in page.all(".map .node")]
    assert any(label.startswith("model, serving, 1 worker") for label in labels), labels
    assert any(label.startswith("memory, degraded, 1 worker") for label in labels), labels
    assert any(label.startswith("exporter, away, no worker") for label in labels), labels

    page.wait(lambda: "/s" in page.texts(".tile dd")[0], "a rate of requests")
    node = next(each for each in page.all(".map .node") if each.get_attribute("aria-label").startswith("memory"))
    node.click()

    page.wait_text("section[aria-label=Details] h2", "memory")
    page.wait_text("section[aria-label=Details] dd", "process")
    page.wait_text("section[aria-label=Details] .note", "none-here")
    assert page.driver.current_url.endswith("#/overview/memory")
    assert node.get_attribute("aria-pressed") == "true"


def test_overview_is_reached_by_the_keyboard_alone(house: ConsoleHouse, page: Browser) -> None:
    """A node of the picture takes the focus, shows it otherwise than that it is chosen, and Enter chooses it."""
    page.wait_text(".map .node", "model")
    page.script("document.querySelector('.map .hub').focus()")
    page.keys("\ue004")  # Tab
    chosen = page.script("return document.activeElement.getAttribute('aria-label')").split(",")[0]
    outline = page.script("return getComputedStyle(document.activeElement.querySelector('.box')).strokeWidth")
    page.keys("\ue007")  # Enter

    page.wait_text("section[aria-label=Details] h2", chosen)
    assert outline == "5px"


def test_tap_shows_events_as_they_pass_and_their_bodies_on_demand(house: ConsoleHouse, page: Browser) -> None:
    """Patterns choose, the filter narrows, a pause holds back, and a click shows a whole body as text."""
    go(page, house, "tap?patterns=kitchen.%3E")
    page.wait_text("header.head p", "0 passed")
    page.wait(lambda: "connecting" not in page.texts("header.head p")[0], "the stream")
    house.publish("garden.gate.open", {"n": 1})
    house.publish("kitchen.lamp.on", {"room": "hall", "html": MARKUP})
    house.publish("kitchen.kettle.hot", {"n": 2})
    page.wait(lambda: page.texts(".taps .subject") == ["kitchen.kettle.hot", "kitchen.lamp.on"], "both, newest first")

    page.write("input[type=search]", "hall lamp")
    page.wait(
        lambda: [each.text for each in page.all(".taps .subject") if each.is_displayed()] == ["kitchen.lamp.on"], "one"
    )
    page.all(".taps li:not([hidden]) button")[0].click()
    page.wait_text("dialog pre", "onerror=")
    page.click("Close", "dialog")

    page.click("Pause")
    house.publish("kitchen.lamp.off", {"n": 3})
    page.wait_text("header.head p", "1 held back")
    page.click("Go on")
    page.write("input[type=search]", "")
    page.keys(" ", "\ue003")
    page.wait_text(".taps .subject", "kitchen.lamp.off")
    assert page.driver.title == "Tap · Olympus"


def test_tap_shows_requests_with_how_they_ended(house: ConsoleHouse, page: Browser) -> None:
    """On demand, requests pass by as well, each once with its outcome."""
    go(page, house, "tap?patterns=memory.kv.%3E")
    page.wait(lambda: "connecting" not in page.texts("header.head p")[0], "the stream")
    page.all("label.check")[0].click()

    def is_traced() -> bool:
        house.chat.request("memory.kv.list", {"prefix": "x"})
        return any("memory.kv.list" in text and "request: ok" in text for text in page.texts(".taps li"))

    page.wait(is_traced, "a request with its outcome")
    assert "requests=1" in page.driver.current_url


def test_tap_keeps_so_many_rows_and_tells_a_wrong_pattern(house: ConsoleHouse, page: Browser) -> None:
    """A storm costs the page no more than its cap of rows; a pattern that is none is an error in words."""
    go(page, house, "tap?patterns=storm.%3E")
    page.wait(lambda: "connecting" not in page.texts("header.head p")[0], "the stream")

    async def storm() -> None:
        for number in range(700):
            await house.chat._client.publish("storm.drop", {"n": number})

    house.chat.run(storm)
    page.wait_text("header.head p", "700 passed")
    page.wait(lambda: len(page.all(".taps > li")) == 500, "the cap of rows")

    page.write("input.mono", "not..a pattern!")
    page.click("Watch")
    page.wait_text("[role=alert].problem", "pattern")


def test_models_load_and_unload_with_a_question_before_and_progress(house: ConsoleHouse, page: Browser) -> None:
    """A load asks first, shows that it runs, then what it took; memory of devices stands above."""
    go(page, house, "models")
    page.wait_text(".meter", "VRAM")
    page.wait_text(".meter", "RAM")
    page.click("Load big")
    page.wait_text("dialog h2", "Load big?")
    page.click("Load", "dialog")
    row = "tr:has([aria-label$=' big'])"
    page.wait_text(f"{row} .chip", "loading")
    assert page.all(f"{row} progress")[0].is_displayed()

    house.let_load()
    page.wait_text(f"{row} .chip", "loaded")
    page.wait_text(".toast", "big is loaded on gpu0")
    page.click("Pin big")
    page.click("Pin", "dialog")
    page.wait_text(row, "pinned")
    page.click("Unload big")
    page.click("Unload", "dialog")
    page.wait_text(f"{row} .chip", "available")


def test_models_say_why_a_load_failed(house: ConsoleHouse, page: Browser) -> None:
    """The reason stays in the model's row."""
    go(page, house, "models")
    page.click("Load broken")
    page.click("Load", "dialog")
    page.wait_text("tr:has([aria-label='Load broken']) .problem", "ends after 12 bytes")


def test_learning_draws_the_curve_of_a_job(house: ConsoleHouse, page: Browser) -> None:
    """Loss and evaluation loss over steps, with axes; arrow keys and the pointer read the values."""
    go(page, house, "learning/tone-7")
    page.wait_text("#job-title", "tone-7")
    page.wait(lambda: len(page.all(".chart path.line")) == 2, "two lines")
    lengths = page.script(
        "return [...document.querySelectorAll('.chart path.line')].map((each) => each.getTotalLength())"
    )
    assert min(lengths) > 100
    assert len(page.texts(".chart text")) > 6
    page.script("document.querySelector('.chart').focus()")
    page.keys("\ue011", "\ue014")  # Home, right
    page.wait_text(".readout", "step 2, training loss")
    page.keys("\ue010")  # End
    page.wait_text(".readout", "step 240, training loss")
    page.wait_text(".log", "checkpoint step-00000200 was kept")

    page.click("Stop")
    page.write("dialog input", "enough for now")
    page.click("Stop", "dialog")
    page.wait_text("section[aria-labelledby=job-title] .chip", "stopped")
    page.wait_text("section[aria-labelledby=job-title] .note", "enough for now")


def test_learning_lists_adapters_and_takes_one_back(house: ConsoleHouse, page: Browser) -> None:
    """What serves is listed with its state, and can be rolled back after a question."""
    go(page, house, "learning")
    page.wait_text("section[aria-labelledby=adapters-title] .chip", "champion")
    page.click("Roll back tone-6")
    page.click("Roll back", "dialog")
    page.wait_text(".toast", "out of service")
    page.wait(lambda: page.texts("section[aria-labelledby=adapters-title] .chip") == ["rolled back"] * 2, "both")


def test_memory_is_searched_with_the_reasons_for_each_hit(house: ConsoleHouse, page: Browser) -> None:
    """A hit shows score, text and signals; markup in a memory is text."""
    house.chat.request(
        "memory.add", {"content": f"The boat is at the quay. {MARKUP}", "tags": ["boat"], "speaker": "Ada"}
    )
    go(page, house, "memory?q=boat")
    page.wait_text(".hits .text", "onerror=")
    page.all(".hits summary")[0].click()
    page.wait_text(".hits table", "text")
    assert page.all(".hits .text img, .hits .text script") == []
    assert page.driver.title == "Memory · Olympus"

    page.click("Add a memory")
    page.write("dialog textarea", "The rope of the boat is new")
    page.click("Add", "dialog")
    page.wait_text(".toast", "Kept as")
    page.write("input[type=search]", "rope")
    page.click("Search")
    page.wait_text(".hits .text", "The rope of the boat is new")


def test_facts_are_added_and_forgotten(house: ConsoleHouse, page: Browser) -> None:
    """A fact is kept, found, and goes after a question."""
    go(page, house, "memory/facts")
    page.wait_text("section[aria-label=Facts]", "No facts are kept here yet")
    page.click("Add a fact")
    page.write("dialog input", "tea")
    page.write("dialog textarea", MARKUP)
    page.click("Add", "dialog")
    page.wait_text("section[aria-label=Facts] .text", "onerror=")
    page.click("Forget tea")
    page.click("Forget", "dialog")
    page.wait_text("section[aria-label=Facts]", "No facts are kept here yet")
    assert page.driver.title == "Memory · Olympus"


def test_errors_are_shown_acknowledged_and_muted(house: ConsoleHouse, page: Browser) -> None:
    """A group shows its reports; once seen or muted it leaves the list. Markup in an error is text."""
    for number in range(3):
        house.chat.request("error.report", {"service": "stove", "message": f"sensor {number} {MARKUP}", "kind": "Cold"})
    house.chat.request(
        "error.report", {"service": "lamp", "message": "it is dark", "kind": "Dark", "severity": "warning"}
    )
    go(page, house, "errors")
    page.wait_text("tbody", "onerror=")
    page.wait_text("tbody td[data-label=Times]", "3")
    page.wait(lambda: next((each for each in page.all("tbody a") if each.text == "Cold"), None), "Cold").click()
    page.wait_text("#group-title", "Cold")
    page.wait_text("section[aria-labelledby=group-title] summary", "sensor 2")

    page.click("Acknowledge Cold", "tbody")
    page.write("dialog input", "a cold day")
    page.click("Acknowledge", "dialog")
    page.wait(lambda: "Cold" not in page.texts("tbody a"), "Cold gone")
    page.click("Mute Dark", "tbody")
    page.click("Mute", "dialog")
    page.wait(lambda: "Dark" not in page.texts("tbody a"), "Dark gone")
    assert page.driver.title == "Errors · Olympus"


def test_ask_streams_an_answer_and_stops_at_will(house: ConsoleHouse, page: Browser) -> None:
    """Text comes piece by piece with its figures at the end; Stop cancels the generation on the bus."""
    go(page, house, "ask")
    house.chat.answer("Twelve, ", MARKUP)
    page.write("textarea", "What is 7 + 5?")
    page.keys("\ue007")
    page.wait_text(".said.assistant", "Twelve, <script>")
    page.wait_text(".said.assistant .hint", "tiny")

    house.chat.answer(Say(pieces=["It was "], waits=True))
    page.write("textarea", "Tell me a long story")
    page.click("Ask")
    page.wait_text(".said.assistant", "It was")
    cancelled = house.chat.cancelled
    page.click("Stop")
    page.wait_text(".said.assistant .hint", "stopped")
    house.chat.until(lambda: house.chat.cancelled == cancelled + 1, "a cancelled generation")
    assert page.driver.title == "Ask · Olympus"


@pytest.mark.parametrize("width", [360, 768, 2560])
def test_every_view_fits_the_width(house: ConsoleHouse, page: Browser, width: int) -> None:
    """Nothing sticks out sideways, each view has one heading, and every control a name."""
    page.size(width)
    for view, heading in VIEWS.items():
        go(page, house, view)
        page.wait_text("h1", heading)
        page.wait_gone(".busy")
        assert page.script("return document.documentElement.scrollWidth") <= width, view
        assert page.script(_NAMELESS) == [], view


_NAMELESS = """
const name = (each) => each.getAttribute("aria-label") || each.innerText?.trim() ||
  [...(each.labels ?? [])].map((label) => label.innerText).join("");
return [...document.querySelectorAll("button, a, input, select, textarea")]
  .filter((each) => each.checkVisibility() && !name(each)).map((each) => each.outerHTML);
"""


def test_dark_and_light_have_enough_contrast(house: ConsoleHouse, page: Browser) -> None:
    """The colours of text differ from their ground by 4.5 to 1 (WCAG 2.2, 1.4.3) in both schemes."""
    go(page, house, "errors")
    page.wait_text("h1", "Errors")
    for scheme in ("light", "dark"):
        page.prefer(prefers_color_scheme=scheme)
        low = page.script(_CONTRASTS)
        assert low == [], scheme
    page.prefer(prefers_color_scheme="light")


_CONTRASTS = """
const pairs = [["ink", "page"], ["ink", "card"], ["soft", "page"], ["soft", "card"], ["soft", "well"], ["accent", "card"],
  ["accent", "accent-wash"], ["accent-ink", "accent"], ["ok", "ok-wash"], ["warn", "warn-wash"], ["bad", "bad-wash"], ["bad", "card"]];
const probe = document.createElement("i");
document.body.append(probe);
const light = (name) => {
  probe.style.color = `var(--${name})`;
  const parts = getComputedStyle(probe).color.match(/[0-9.]+/g).slice(0, 3).map((each) => each / 255)
    .map((each) => each <= 0.03928 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
};
const low = pairs.map(([one, two]) => [one, two, light(one), light(two)])
  .map(([one, two, a, b]) => [one, two, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]).filter((each) => each[2] < 4.5);
probe.remove();
return low;
"""


def test_the_policy_stops_what_should_slip_through(house: ConsoleHouse, browser: Browser) -> None:
    """Were markup ever to become part of the page: no script in it runs, and nothing of another site is loaded."""
    browser.open(house.url)
    browser.wait_text("#link", "Connected")
    browser.complaints()
    assert browser.script(_SLIP, MARKUP) == ["TypeError", "TypeError"]
    said: list[str] = []

    def is_stopped() -> bool:
        said.extend(browser.complaints())
        return any("img-src" in line for line in said)

    browser.wait(is_stopped, "a violation of the policy")
    assert browser.driver.title == "Overview · Olympus"


_SLIP = """
const attempts = [
  () => document.body.insertAdjacentHTML("beforeend", arguments[0]),
  () => document.body.append(Object.assign(document.createElement("script"), {textContent: "document.title = 1"})),
];
document.body.append(Object.assign(new Image(), {src: "//127.0.0.9/x.png"}));
return attempts.map((attempt) => { try { attempt(); return "done"; } catch (error) { return error.name; } });
"""


def test_figures_are_told_as_people_read_them(house: ConsoleHouse, page: Browser) -> None:
    """Sizes, times and rates have units that fit; what is too long is cut and says so."""
    told = page.script("""
    return import("./format.js").then((f) => [f.bytes(0), f.bytes(1536), f.bytes(5 * 2 ** 30), f.duration(0.0042), f.duration(75),
      f.duration(200000), f.rate(0), f.rate(0.01), f.rate(12345), f.figure(0.03125), f.figure(null), f.share(0.256), f.cut("abcdef", 4),
      f.line({a: "x\\n y"}), f.holds("LAMP on", "kitchen.lamp", "on"), f.holds("lamp off", "kitchen.lamp", "on")]);
    """)
    assert told == [
        *(
            "0 B",
            "1.5 KiB",
            "5.0 GiB",
            "4.20 ms",
            "1 min",
            "2 d 7 h",
            "0/s",
            "<0.1/s",
            "12,345/s",
            "0.031",
            "–",
            "26 %",
        ),
        *("abcd… (2 more characters)", '{"a":"x\\n y"}', True, False),
    ]


def test_axes_and_places_follow_from_the_numbers(house: ConsoleHouse, page: Browser) -> None:
    """Ticks are round; services stand beside the broker where there is room, below it where not, and never overlap."""
    assert page.script("return import('./chart.js').then((c) => c.ticks(0.3, 2.75))") == [0.5, 1, 1.5, 2, 2.5]
    for width in (300, 650, 1400):
        plan = page.script(
            "return import('./map.js').then((m) => [...m.layout([...'abcdefg'], arguments[0]).boxes.values()])", width
        )
        assert len(plan) == 7
        assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in plan)
        corners = sorted((box["x"], box["y"]) for box in plan)
        same_column = [(one, two) for one, two in pairwise(corners) if one[0] == two[0]]
        assert all(two[1] - one[1] >= plan[0]["height"] for one, two in same_column)
        assert len({x for x, _ in corners}) == (1 if width == 300 else 2)


def test_motion_stops_for_whoever_asks_for_less(house: ConsoleHouse, page: Browser) -> None:
    """With prefers-reduced-motion nothing in the picture moves."""
    page.wait_text(".map .node", "memory")
    moving = "return getComputedStyle(document.querySelector('.map .flow')).animationName"
    assert page.script(moving) == "flow"
    page.prefer(prefers_reduced_motion="reduce")
    page.wait(lambda: page.script(moving) == "none", "stillness")
    page.prefer(prefers_reduced_motion="no-preference")


def test_a_hidden_tab_asks_nothing(house: ConsoleHouse, page: Browser) -> None:
    """Nobody looks, so nothing is polled; what is seen again is fresh at once."""
    page.wait_text(".map .node", "memory")
    page.script(_HIDE, True)
    # What was on its way may still arrive; then there is silence.
    page.wait(lambda: _is_silent(page), "silence")
    page.script(_HIDE, False)
    page.wait(lambda: any(url.endswith("/topology") for url in page.asked()), "a look")


_HIDE = """
Object.defineProperty(document, "hidden", {configurable: true, value: arguments[0]});
document.dispatchEvent(new Event("visibilitychange"));
"""


def _is_silent(page: Browser) -> bool:
    """True where a stretch longer than a pause between two looks passes without a request."""
    page.asked()
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        if page.asked():
            return False
        time.sleep(0.1)
    return True


def test_the_page_says_when_the_bus_or_the_gateway_is_away_and_comes_back(
    house: ConsoleHouse, browser: Browser
) -> None:
    """A banner names who is away; without any doing of a person the page goes on once they are back."""
    browser.open("about:blank")
    browser.open(f"{house.url}#/overview")
    browser.wait_text("#link", "Connected")

    house.chat.stop_broker()
    browser.wait_text("#banner", "the broker does not answer")
    browser.wait_text("#link", "Bus away")
    house.chat.start_broker()
    browser.wait_text("#link", "Connected")
    browser.wait_gone("#banner")

    house.stop_gateway()
    browser.wait_text("#banner", "The gateway does not answer")
    house.start_gateway()
    browser.wait_text("#link", "Connected")
    browser.wait_gone("#banner")
    assert [line for line in browser.complaints() if "Content Security Policy" in line] == []


_ACCESS = "return JSON.parse(sessionStorage.getItem('olympus.session')).access"
_AGE = """
const held = JSON.parse(sessionStorage.getItem("olympus.session"));
sessionStorage.setItem("olympus.session", JSON.stringify({...held, expiresAt: 0}));
location.reload();
"""


def test_a_house_that_asks_who_you_are_gets_a_sign_in(tmp_path: Path, browser: Browser) -> None:
    """Without a token there is the form alone; a wrong password says so; a token is renewed in time; signing out
    ends it."""
    with ConsoleHouse(tmp_path / "home", **{"auth.required": True}) as house:
        house.chat.request("auth.user.add", {"user_id": "ada", "password": "correct horse", "admin": True})
        browser.size(1280)
        browser.open(f"{house.url}#/models")
        browser.wait_text("h1", "Sign in")
        browser.write("input[name=user]", "ada")
        browser.write("input[name=password]", "wrong horse")
        browser.click("Sign in")
        browser.wait_text("[role=alert].problem", "do not belong together")
        browser.write("input[name=password]", "correct horse")
        browser.click("Sign in")

        browser.wait_text("h1", "Models")
        browser.wait_text("tbody", "tiny")
        browser.wait_text("#who", "ada")
        kept = browser.script("return [Object.keys(sessionStorage), Object.keys(localStorage), document.cookie]")
        assert kept == [["olympus.session"], [], ""]
        access = browser.script(_ACCESS)

        browser.script(_AGE)
        browser.wait_text("tbody", "tiny")
        browser.wait(lambda: browser.script(_ACCESS) != access, "a renewed token")

        browser.click("Sign out")
        browser.wait_text("h1", "Sign in")
        assert browser.script("return sessionStorage.length") == 0
        assert {urlsplit(url).netloc for url in browser.asked() if url.startswith(house.origin)} == {
            urlsplit(house.origin).netloc
        }
