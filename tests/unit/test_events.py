"""Who hears what: the book of subscriptions."""

from __future__ import annotations

import pytest

from broker.events import EventHub


def test_prefixes_and_patterns_are_counted() -> None:
    """Twice subscribed needs twice cancelled, as in ZeroMQ."""
    hub = EventHub()
    hub.add("peer", is_sequenced=False)
    for topic in (b"a", b"a", b"b.*", b"b.*"):
        assert hub.change("peer", b"\x01" + topic)
    for _ in range(2):
        assert [one.peer for one in hub.match("a.x")[0]] == ["peer"]
        assert [one.peer for one in hub.match("b.x")[0]] == ["peer"]
        hub.change("peer", b"\x00a")
        hub.change("peer", b"\x00b.*")
    assert hub.match("a.x") == hub.match("b.x") == ([], [])


def test_event_reaches_a_subscriber_once_however_often_it_matches() -> None:
    """Two subscriptions, one delivery; each port has its own list."""
    hub = EventHub()
    for name, is_sequenced in (("plain", False), ("sequenced", True)):
        hub.add(name, is_sequenced=is_sequenced)
        for topic in (b"", b"a", b"a.*", b">"):
            hub.change(name, b"\x01" + topic)

    plain, sequenced = hub.match("a.b")

    assert ([one.peer for one in plain], [one.peer for one in sequenced]) == (["plain"], ["sequenced"])


@pytest.mark.parametrize(
    "message", [b"", b"\x02a", b"a", b"\x01" + b"x" * 256, b"\x01a.>.*", b"\x01" + b">." * 100 + b">", b"\x01*a"]
)
def test_what_is_no_subscription_is_refused(message: bytes) -> None:
    """Wrong first byte, too long, a pattern outside the grammar."""
    hub = EventHub()
    hub.add("peer", is_sequenced=False)
    assert not hub.change("peer", message)
    assert hub.match("a.b") == ([], [])


def test_subscriptions_of_one_peer_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that asks for ever more is refused; it can still cancel."""
    monkeypatch.setattr("broker.events._SUBSCRIPTIONS_MAX", 3)
    hub = EventHub()
    hub.add("peer", is_sequenced=False)
    assert [hub.change("peer", b"\x01t%d" % index) for index in range(5)] == [True, True, True, False, False]
    assert hub.change("peer", b"\x00t1")
    assert hub.change("peer", b"\x01t9")


def test_lost_events_are_told_with_both_ends() -> None:
    """What a slow subscriber missed is one range of numbers."""
    hub = EventHub(last_seq=41)
    hub.add("slow", is_sequenced=True)
    subscriber = hub.subscribers["slow"]
    for _ in range(3):
        subscriber.miss(hub.next_seq())

    assert (subscriber.missed_first, subscriber.missed_last, subscriber.dropped) == (42, 44, 3)


def test_only_a_subscription_that_names_them_asks_for_traces() -> None:
    """Everything (`>` or an empty prefix) does not: it would double the traffic of every request."""
    hub = EventHub()
    hub.add("peer", is_sequenced=True)
    for topic, does in ((b"", False), (b">", False), (b"bus.stats", False), (b"bus.trace.>", True)):
        hub.change("peer", b"\x01" + topic)
        assert hub.is_asked_for("bus.trace.") is does
