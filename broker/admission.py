"""Who may come in from other machines: the owners of trusted keys. It reads the keys folder and knows no socket."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from bus.keys import Keys, UnusableKey
from bus.settings import Settings

log = logging.getLogger("olympus.broker")

# How often the same refusal is worth a line, seconds: a machine whose key is not trusted tries again every 2 s.
_SAY_EVERY_S: Final = 60.0

# Lines in that time, at most: anybody can make keys, and the log is no place for all of them.
_SAID_MAX: Final = 100


class Admission:
    """Trusts the keys in this home's folder as it is at the moment of asking, and this machine's own."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = Keys(settings)
        self._clock = clock
        self._said: dict[str, float] = {}

    def admits(self, public: bytes) -> bool:
        """True for a key that is trusted now."""
        try:
            return public in self._keys.trusted().values() or public == self._keys.own().public
        except UnusableKey as error:
            if self._is_news(str(error)):
                log.error("keys unusable", extra={"action": "broker.keys_unusable", "reason": str(error)})
            return False

    def on_refused(self, public: bytes, address: str) -> None:
        """Say that a key was not let in, once a minute."""
        from bus.curve import fingerprint

        mark = fingerprint(public)
        if self._is_news(mark):
            log.warning(
                "key refused",
                extra={
                    "action": "broker.key_refused",
                    "fingerprint": mark,
                    "address": address,
                    "advice": "olympus keys trust NAME KEY, with the KEY that `olympus keys export` prints there",
                },
            )

    def _is_news(self, what: str) -> bool:
        now = self._clock()
        if now - self._said.get(what, float("-inf")) < _SAY_EVERY_S:
            return False
        if len(self._said) >= _SAID_MAX:
            self._said = {each: at for each, at in self._said.items() if now - at < _SAY_EVERY_S}
            if len(self._said) >= _SAID_MAX:
                return False
        self._said[what] = now
        return True
