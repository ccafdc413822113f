"""One connection to Olympus, opened when first needed: requests, streams, and the events that a listener follows."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable, Generator
from typing import Any, Final

from bus.settings import Settings
from bus.sync import SyncClient
from models.errors import ModelError, in_our_words
from schemas.errors import BusError, Cancelled

log = logging.getLogger("models")

# Events that say a model came into memory or left it.
FOLLOWED: Final = ("model.loaded", "model.evicted", "model.unloaded")

# Seconds a first registration waits for the subscription; a broker on this machine confirms one in milliseconds.
_SUBSCRIBED_S: Final = 2.0

# Seconds before a listener whose broker refused it tries again.
_AGAIN_S: Final = 1.0

# Seconds that the end of the process waits for a callback that runs.
_LAST_CALL_S: Final = 1.0

Followed = Callable[[str, str], None]


class House:
    """Threads may share it. Errors are this package's; an absent broker is one after `bus.timeout_s` seconds."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._client: SyncClient | None = None
        self._pid = os.getpid()
        # Clients of a process that this one was forked from: its threads are not here, its connections are still its own.
        self._of_parent: list[SyncClient] = []
        self._is_closed = threading.Event()
        self._telling = threading.Lock()

    def ask(self, subject: str, body: Any = None, *, timeout_s: float | None = None) -> Any:
        """The reply to a request; without `timeout_s` within `bus.timeout_s` seconds."""
        with in_our_words():
            return self._connected().request(subject, body, timeout_s=timeout_s)

    def stream(self, subject: str, body: Any, *, timeout_s: float) -> Generator[Any, None, Any]:
        """The partial replies; the generator's value is the final one. Leaving it takes the request back."""
        with in_our_words(), self._connected().stream(subject, body, timeout_s=timeout_s) as parts:
            yield from parts
            return parts.final

    def follow(self, tell: Followed) -> None:
        """Call `tell(event, model)` for each of the events FOLLOWED, in a thread of its own, until `close`.

        At the end of the process the call that runs is waited for, for a second at most, and no other one begins.
        """
        subscribed = threading.Event()
        atexit.register(self._tell_no_more, os.getpid())
        threading.Thread(target=self._listen, args=(tell, subscribed), name="models-events", daemon=True).start()
        if not subscribed.wait(min(_SUBSCRIBED_S, self.settings.bus.timeout_s)):
            log.warning("callbacks wait for Olympus, which cannot be reached yet; what happens till then is not told")

    def close(self) -> None:
        """End the connection; calls that still wait raise ModelError."""
        self._is_closed.set()
        with self._lock:
            client, self._client = self._client, None
        if client is not None and self._pid == os.getpid():
            client.close()

    def _connected(self) -> SyncClient:
        """The client, once there is a broker: a request with a long deadline must not wait that long for one."""
        client = self._opened()
        client.connect(self.settings.bus.timeout_s)
        return client

    def _opened(self) -> SyncClient:
        with self._lock:
            if self._is_closed.is_set():
                raise ModelError("this ModelManager was shut down; get_model_manager() makes a new one")
            if self._client is not None and self._pid != os.getpid():
                self._of_parent.append(self._client)
                self._client = None
            if self._client is None:
                self._pid = os.getpid()
                self._client = SyncClient(self.settings, name="models").__enter__()
            return self._client

    def _listen(self, tell: Followed, subscribed: threading.Event) -> None:
        while not self._is_closed.is_set():
            try:
                with self._opened().subscribe(*FOLLOWED) as events:
                    subscribed.set()
                    for event in events:
                        # Anybody may publish anything under any subject.
                        if isinstance(event.body, dict) and isinstance(model := event.body.get("model"), str):
                            with self._telling:
                                tell(event.subject, model)
            except (Cancelled, ModelError):
                return
            except (BusError, ConnectionError) as error:
                with self._telling:
                    log.warning("callbacks are not told what happens: %s", error)
                self._is_closed.wait(_AGAIN_S)

    def _tell_no_more(self, pid: int) -> None:
        # A thread that is cut off in the middle of a print keeps the lock of stdout, and Python aborts the process.
        if pid == os.getpid():
            self._telling.acquire(timeout=_LAST_CALL_S)
