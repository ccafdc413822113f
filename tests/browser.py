"""A headless Chromium for tests of pages: found and driven through chromedriver, or the test is skipped with the reason.

with Browser(tmp_path) as browser:
    browser.open("http://127.0.0.1:7010/console/")
    browser.wait_text("h1", "Overview")
    assert browser.complaints() == []
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import pytest

# What a page is to show is there by then, seconds: a machine that is busy with other tests is slow.
SOON_S: Final = 20.0

# No account, no sandbox of its own (CI runs as root in a container), and nothing that asks the network by itself.
_FLAGS: Final = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


def program(*names: str) -> str:
    """The path of the first of these programs that is installed."""
    for name in names:
        found = shutil.which(name)
        if found is not None:
            return found
    pytest.skip(f"{names[0]} is not installed (Debian packages chromium and chromium-driver)")


class Browser:
    """One window, with a profile that is gone afterwards. flags: more of Chromium's."""

    def __init__(self, folder: Path, *flags: str) -> None:
        selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
        from selenium.webdriver.chrome.service import Service

        options = selenium.ChromeOptions()
        options.binary_location = program("chromium", "chromium-browser", "google-chrome")
        self._profile = folder / "chromium"
        for flag in (*_FLAGS, f"--user-data-dir={self._profile}", *flags):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        # The path is named, so selenium looks for no driver on the network.
        service = Service(executable_path=program("chromedriver"))
        self.driver: Any = selenium.Chrome(service=service, options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.driver.quit()
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, url: str) -> None:
        """Go to a page; of one that is open already only the part behind # changes."""
        self.driver.get(url)

    def size(self, width: int, height: int = 900) -> None:
        """Give the page this many pixels."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )

    def prefer(self, **features: str) -> None:
        """What the person prefers, as CSS media features: `prefers_color_scheme="dark"`."""
        told = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.command("Emulation.setEmulatedMedia", features=told)

    def command(self, name: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(name, parameters)

    def script(self, code: str, *arguments: Any) -> Any:
        """What a function with this body answers in the page; it runs beside the page's own rules."""
        return self.driver.execute_script(code, *arguments)

    def all(self, selector: str) -> list[Any]:
        """The elements of a CSS selector."""
        found: list[Any] = self.driver.find_elements("css selector", selector)
        return found

    def texts(self, selector: str) -> list[str]:
        """Their visible texts, read at one moment."""
        found: list[str] = self.script(
            "return [...document.querySelectorAll(arguments[0])].map((each) => each.innerText ?? each.textContent)",
            selector,
        )
        return found

    def wait(self, is_true: Callable[[], Any], what: str) -> Any:
        """What `is_true` answers, once that is true; fails with `what` was missing, and what the page shows."""
        from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
        from selenium.webdriver.support.ui import WebDriverWait

        waiting = WebDriverWait(
            self.driver, SOON_S, poll_frequency=0.05, ignored_exceptions=[StaleElementReferenceException]
        )
        try:
            return waiting.until(lambda _: is_true())
        except TimeoutException:
            shown = self.script("return document.body.innerText")
            pytest.fail(f"not seen within {SOON_S:g} s: {what}. The page shows:\n{shown[:3000]}\n{self.complaints()}")

    def wait_text(self, selector: str, text: str) -> None:
        """Return once an element of the selector shows the text."""
        self.wait(lambda: any(text in each for each in self.texts(selector)), f"{text!r} in {selector}")

    def wait_gone(self, selector: str) -> None:
        """Return once no element of the selector can be seen."""
        self.wait(lambda: not any(each.is_displayed() for each in self.all(selector)), f"{selector} gone")

    def button(self, name: str, within: str = "body") -> Any:
        """The button that can be seen and has this name, for people or for readers of screens."""

        def find() -> Any:
            named = (each for each in self.all(f"{within} button") if each.is_displayed())
            return next((each for each in named if name in (each.text, each.get_attribute("aria-label"))), None)

        return self.wait(find, f"a button {name!r} in {within}")

    def click(self, name: str, within: str = "body") -> None:
        """Press a button, wherever it lies on the page."""
        button = self.button(name, within)
        self.script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()

    def write(self, selector: str, text: str) -> None:
        """Replace what stands in a field."""
        field = self.wait(lambda: next(iter(self.all(selector)), None), selector)
        field.clear()
        field.send_keys(text)

    def keys(self, *keys: str) -> None:
        """Press keys where the focus is."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def complaints(self) -> list[str]:
        """What the browser's console said since the last look: uncaught errors, and what the security policy stopped.

        An answer of HTTP that is an error, and a server that is away, are no fault of a page.
        """
        said = (f"{entry['level']} {entry['message']}" for entry in self.driver.get_log("browser"))
        return [line for line in said if "Failed to load resource" not in line]

    def asked(self) -> list[str]:
        """Addresses that pages of this window asked since the last look."""
        messages = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if urlsplit(url).scheme not in ("data", "blob", "chrome")]

    def picture(self, path: Path) -> None:
        """Save what the window shows as PNG."""
        self.driver.save_screenshot(str(path))
