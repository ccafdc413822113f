"""Who may come in from other machines, and what they may do: the owners of trusted keys, by the keys folder. No sockets."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from broker.rights import Rights
from bus.keys import Keys, UnusableKey
from bus.permissions import NOTHING, Permissions
from bus.settings import Settings

log = logging.getLogger("olympus.broker")

# How often the same refusal is worth a line, seconds: a machine whose key is not trusted tries again every 2 s.
_SAY_EVERY_S: Final = 60.0

# Lines in that time, at most: anybody can make keys, and the log is no place for all of them.
_SAID_MAX: Final = 100

# What this machine itself is called where it connects to its own encrypted port.
_OWN: Final = "this-machine"


class Admission:
    """Trusts the keys in this home's folder as it is at the moment of asking, and this machine's own."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = Keys(settings)
        self._clock = clock
        self._said: dict[str, float] = {}
        self._rights: dict[bytes, Rights] = {}
        # True when a new connection found other permissions than its older ones go by.
        self._is_changed = False
        # As `changes` found it last; None before.
        self._trusted: dict[str, tuple[bytes, Permissions | None]] | None = None

    def admits(self, public: bytes) -> bool:
        """True for a key that is trusted now."""
        try:
            return public in self._keys.trusted().values() or public == self._keys.own().public
        except UnusableKey as error:
            self._complain(error)
            return False

    def rights_of(self, public: bytes) -> Rights:
        """What the owner of that key may do, read now and kept up to date by `refresh`."""
        name, allowed = self._read(public)
        rights = self._rights.get(public)
        if rights is None:
            rights = self._rights[public] = Rights(name, allowed)
        elif rights.change(name, allowed):
            self._is_changed = True
        return rights

    def refresh(self) -> bool:
        """Read the permissions again; True when any changed. Keys that are trusted no more have no rights left."""
        changed = [rights.change(*self._read(public)) for public, rights in self._rights.items()]
        was_changed, self._is_changed = self._is_changed, False
        return was_changed or any(changed)

    def changes(self) -> list[tuple[str, str]]:
        """Names of keys that were trusted, replaced, untrusted or allowed something else since the last call."""
        try:
            trusted = {name: (key, self._allowed(name)) for name, key in self._keys.trusted().items()}
        except UnusableKey as error:
            self._complain(error)
            return []
        before, self._trusted = self._trusted, trusted
        if before is None:
            return []
        told = [(name, "keys.untrust") for name in before if name not in trusted]
        for name, now in trusted.items():
            if name not in before or before[name][0] != now[0]:
                told.append((name, "keys.trust"))
            elif before[name] != now:
                told.append((name, "keys.allow"))
        return told

    def on_refused(self, public: bytes, address: str) -> str:
        """Say that a key was not let in, once a minute; returns its fingerprint."""
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
        return mark

    def _read(self, public: bytes) -> tuple[str, tuple[Permissions, ...]]:
        """Name and permissions of a key. One that two names trust may do what both allow; an unreadable file nothing."""
        try:
            names = [name for name, key in self._keys.trusted().items() if key == public]
            if not names:
                is_own = public == self._keys.own().public
                return (_OWN, ()) if is_own else ("?", (NOTHING,))
        except UnusableKey as error:
            self._complain(error)
            return "?", (NOTHING,)
        allowed = [self._allowed(name) for name in names]
        return "+".join(names), tuple(each for each in allowed if each is not None)

    def _allowed(self, name: str) -> Permissions | None:
        try:
            return self._keys.permissions(name)
        except UnusableKey as error:
            self._complain(error)
            return NOTHING

    def _complain(self, error: UnusableKey) -> None:
        if self._is_news(str(error)):
            log.error("keys unusable", extra={"action": "broker.keys_unusable", "reason": str(error)})

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
