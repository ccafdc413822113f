"""Events: who subscribed to what, and which sequence number comes next. It sends nothing itself."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final

import msgspec

from broker.rights import Rights
from schemas import subjects
from schemas.errors import BadRequest
from schemas.limits import MAX_SUBJECT_BYTES

Peer = Hashable

# Matches remembered per subject; bounded because a publisher may invent any number of subjects.
_MATCHED_MAX: Final = 10_000

# Subscriptions of one peer; a peer with more is broken or hostile.
_SUBSCRIPTIONS_MAX: Final = 10_000


class Subscriber:
    """One subscribed connection with what it asked for and what became of it."""

    __slots__ = (
        "delivered", "dropped", "is_sequenced", "missed_first", "missed_last", "patterns", "peer", "prefixes", "rights",
    )  # fmt: skip

    def __init__(self, peer: Any, *, is_sequenced: bool, rights: Rights | None = None) -> None:
        self.peer = peer
        # None: it may hear everything.
        self.rights = rights
        self.is_sequenced = is_sequenced
        # How often each was subscribed; ZeroMQ counts, so the same prefix twice needs two cancellations.
        self.prefixes: dict[bytes, int] = {}
        self.patterns: dict[str, int] = {}
        self.delivered = 0
        self.dropped = 0
        self.missed_first = 0
        self.missed_last = 0

    def wants(self, subject: str, encoded: bytes) -> bool:
        """True when any prefix or pattern covers the subject, and the subscriber may hear it."""
        if self.rights is not None and not self.rights.may("subscribe", subject):
            return False
        return any(map(encoded.startswith, self.prefixes)) or any(
            subjects.matches(pattern, subject) for pattern in self.patterns
        )

    def miss(self, seq: int) -> None:
        """Count an event that this subscriber was too slow for."""
        self.dropped += 1
        self.missed_first = self.missed_first or seq
        self.missed_last = seq


class Missed(msgspec.Struct, frozen=True):
    """Tells a subscriber which events it lost just before this one; both ends are inclusive."""

    first_seq: int
    last_seq: int


class Meta(msgspec.Struct, frozen=True, omit_defaults=True):
    """Second frame of a sequenced event. `at` is Unix epoch seconds, `source` the publisher's name."""

    seq: int
    at: float
    source: str
    id: str
    missed: Missed | None = None


class EventHub:
    """All subscriptions, and the last sequence number given out."""

    def __init__(self, last_seq: int = 0) -> None:
        self.last_seq = last_seq
        self.published = 0
        self.subscribers: dict[Peer, Subscriber] = {}
        self._matched: dict[str, tuple[list[Subscriber], list[Subscriber]]] = {}

    def add(self, peer: Peer, *, is_sequenced: bool, rights: Rights | None = None) -> None:
        """A subscriber connected; it hears nothing until it subscribes, and of that what its rights allow."""
        self.subscribers[peer] = Subscriber(peer, is_sequenced=is_sequenced, rights=rights)

    def remove(self, peer: Peer) -> None:
        """A subscriber is gone."""
        self.subscribers.pop(peer, None)
        self._matched.clear()

    def forget_matches(self) -> None:
        """Somebody's rights changed."""
        self._matched.clear()

    def change(self, peer: Peer, message: bytes) -> bool:
        """Carry out a subscription message: 1 or 0, then a prefix, or a pattern when it holds a wildcard.

        Returns False for anything else, a pattern outside the grammar, and a subscription that is too long or one too many.
        """
        subscriber = self.subscribers.get(peer)
        topic = message[1:]
        if subscriber is None or message[:1] not in (b"\0", b"\1") or len(topic) > MAX_SUBJECT_BYTES:
            return False
        step = 1 if message[:1] == b"\1" else -1
        if step > 0 and len(subscriber.prefixes) + len(subscriber.patterns) >= _SUBSCRIPTIONS_MAX:
            return False
        pattern = topic.decode("utf-8", "replace")
        if pattern == ">":
            _count(subscriber.prefixes, b"", step)
        elif subjects.is_pattern(pattern):
            # Only the grammar's patterns: matching one with `>` in many places would take exponential time.
            try:
                subjects.validate_pattern(pattern)
            except BadRequest:
                return False
            _count(subscriber.patterns, pattern, step)
        else:
            _count(subscriber.prefixes, topic, step)
        self._matched.clear()
        return True

    def is_wanted(self, subject: str) -> bool:
        """True when anybody would hear this subject."""
        plain, sequenced = self.match(subject)
        return bool(plain or sequenced)

    def is_asked_for(self, prefix: str) -> bool:
        """True when a subscription names subjects below `prefix` itself; a subscription to everything does not."""
        encoded = prefix.encode()
        return any(
            any(one.startswith(encoded) for one in subscriber.prefixes)
            or any(one.startswith(prefix) for one in subscriber.patterns)
            for subscriber in self.subscribers.values()
            if subscriber.rights is None or subscriber.rights.may_some("subscribe", f"{prefix}>")
        )

    def match(self, subject: str) -> tuple[list[Subscriber], list[Subscriber]]:
        """Subscribers of the plain and of the sequenced port that want a subject."""
        matched = self._matched.get(subject)
        if matched is None:
            encoded = subject.encode()
            wanting = [one for one in self.subscribers.values() if one.wants(subject, encoded)]
            matched = ([s for s in wanting if not s.is_sequenced], [s for s in wanting if s.is_sequenced])
            if len(self._matched) >= _MATCHED_MAX:
                self._matched.clear()
            self._matched[subject] = matched
        return matched

    def next_seq(self) -> int:
        """Number one more event."""
        self.last_seq += 1
        self.published += 1
        return self.last_seq


def _count(counts: dict[Any, int], key: Any, step: int) -> None:
    count = counts.get(key, 0) + step
    if count > 0:
        counts[key] = count
    else:
        counts.pop(key, None)
