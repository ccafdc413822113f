"""Carries notifications to webhooks and to the desktop: each channel by itself, tried again, bounded, never in the way."""

from __future__ import annotations

import asyncio
import html
import logging
import shutil
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import tenacity

from bus.metrics import Figures
from bus.settings import ErrorsSettings
from schemas.metrics import ERROR_NOTICES
from workers.errors import wording
from workers.errors.notices import Notice
from workers.errors.posting import NotPosted, host_of, post

log = logging.getLogger("olympus.errors")

# Notifications that wait for one channel; past it the oldest are given up.
_WAITING_MAX: Final = 50

# Seconds for one post, times it is tried, and seconds between: some four minutes of a server that is away.
_POST_S: Final = 10.0
_ATTEMPTS: Final = 6
_BACKOFF_S: Final = 2.0
_BACKOFF_MAX_S: Final = 60.0

# Seconds for notify-send; without a desktop session it may wait for one.
_DESKTOP_S: Final = 5.0

_URGENCY: Final = {"critical": "critical", "error": "normal"}

Send = Callable[[Notice], Awaitable[None]]


class Channel:
    """One place that is told; a queue before it and a task that empties it."""

    def __init__(self, sort: str, name: str, send: Send, figures: Figures) -> None:
        self._sort = sort
        self._send = send
        self._counter = figures.counter(ERROR_NOTICES)
        # Told from the start: a counter that is born with its first failure has no increase that an alert could see.
        for outcome in ("ok", "failed"):
            self._counter.add(sort, outcome, by=0)
        self._waiting: deque[Notice] = deque()
        self._came = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.name = name
        self.failure = ""

    def start(self) -> None:
        """Begin to carry."""
        self._task = asyncio.create_task(self._carry(), name=f"notifications to {self.name}")

    async def stop(self) -> None:
        """End at once; what waits is given up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def put(self, notice: Notice) -> None:
        """Tell it soon."""
        if len(self._waiting) >= _WAITING_MAX:
            self._waiting.popleft()
            self._counter.add(self._sort, "failed")
        self._waiting.append(notice)
        self._came.set()

    async def _carry(self) -> None:
        while True:
            while not self._waiting:
                self._came.clear()
                await self._came.wait()
            notice = self._waiting.popleft()
            try:
                await self._send(notice)
            except NotPosted as error:
                self._counter.add(self._sort, "failed")
                if not self.failure:
                    fields = {"action": "errors.not_told", "channel": self._sort, "error": str(error)}
                    log.warning("notification not delivered", extra=fields)
                self.failure = str(error)
                continue
            self._counter.add(self._sort, "ok")
            self.failure = ""


def channels(settings: ErrorsSettings, figures: Figures) -> list[Channel]:
    """What the settings name."""
    found = [
        Channel("webhook", f"webhook {host_of(url)}", _to_webhook(url, settings.webhook_format), figures)
        for url in settings.webhooks
    ]
    if settings.desktop:
        found.append(Channel("desktop", "desktop", _to_desktop, figures))
    for channel in found:
        if channel.name == "desktop" and shutil.which("notify-send") is None:
            channel.failure = "notify-send is not installed (Debian's libnotify-bin)"
    return found


def _to_webhook(url: str, form: wording.Format) -> Send:
    async def send(notice: Notice) -> None:
        what = wording.post(notice, form)
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(_may_pass),
            wait=tenacity.wait_random_exponential(multiplier=_BACKOFF_S, max=_BACKOFF_MAX_S),
            stop=tenacity.stop_after_attempt(_ATTEMPTS),
            reraise=True,
        )
        await retrying(post, url, what, _POST_S)

    return send


def _may_pass(error: BaseException) -> bool:
    """True where trying again may help: no answer, a fault of the server, too many posts."""
    return isinstance(error, NotPosted) and (error.status in (0, 408, 425, 429) or error.status >= 500)


async def _to_desktop(notice: Notice) -> None:
    program = shutil.which("notify-send")
    if program is None:
        raise NotPosted("notify-send is not installed (Debian's libnotify-bin)")
    urgency = _URGENCY.get(notice.group.severity, "low") if notice.group else "normal"
    # The body is markup to most desktops.
    words = (wording.headline(notice), html.escape(wording.text(notice), quote=False))
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            "--app-name=Olympus",
            f"--urgency={urgency}",
            "--",
            *(word.replace("\0", " ") for word in words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as error:
        raise NotPosted(f"notify-send cannot be run: {error.strerror}") from error
    try:
        async with asyncio.timeout(_DESKTOP_S):
            status = await process.wait()
    except TimeoutError as error:
        raise NotPosted(f"notify-send did not end within {_DESKTOP_S:g} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if status:
        raise NotPosted(f"notify-send ended with {status}: is there a desktop session?")
