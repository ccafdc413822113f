"""What is measured: each case on each peer in turn, several rounds, so that a slow second hits all alike."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from bench_bus_parts.line_protocol import Fields
from bench_bus_parts.peers import Peer

BODY_BYTES = 256
IN_FLIGHT = 64
CHUNKS, CHUNK_BYTES = 500, 64
LARGE_BYTES = 16 * 1024 * 1024
EVENT_BYTES = 128


class Plan:
    """How long to measure: rounds, a factor on every duration and count, and an optional number of requests."""

    def __init__(self, *, rounds: int, scale: float, requests: int) -> None:
        self.rounds = rounds
        self.scale = scale
        self.requests = requests

    def span(self, seconds: float) -> Fields:
        """The stop of a timed loop: `seconds` at full length, or a number of requests."""
        if self.requests:
            return {"seconds": 30.0, "requests": self.requests}
        return {"seconds": seconds * self.scale, "requests": 0}

    def warm_up(self, seconds: float = 0.15) -> Fields:
        """A short span before each measurement, not counted."""
        return {"seconds": seconds * self.scale, "requests": self.requests}


class Rounds:
    """What one peer showed in one case, round by round, and the CPU seconds each of its roles spent on it."""

    def __init__(self) -> None:
        self.figures: list[Fields] = []
        self.cpu_s: dict[str, float] = {}

    def median(self, key: str) -> float:
        """Median of one figure over the rounds."""
        return statistics.median(self.values(key))

    def values(self, key: str) -> list[float]:
        """One figure, round by round."""
        return [round_[key] for round_ in self.figures]

    def cpu_us(self) -> dict[str, float]:
        """CPU microseconds per operation of each role, over all rounds."""
        operations = sum(self.values("operations")) or 1
        return {role: seconds / operations * 1e6 for role, seconds in self.cpu_s.items()}


Results = dict[str, Rounds]
Measure = Callable[[Peer], Fields]


@contextmanager
def _metered(peer: Peer, rounds: Rounds) -> Iterator[None]:
    roles = peer.processes()
    before = {role: sum(process.cpu_s() for process in members) for role, members in roles.items()}
    yield
    for role, members in roles.items():
        spent = sum(process.cpu_s() for process in members) - before[role]
        rounds.cpu_s[role] = rounds.cpu_s.get(role, 0.0) + spent


def interleaved(peers: Sequence[Peer], rounds: int, warm_up: Measure, measure: Measure) -> Results:
    """A B C A B C ...: each peer once per round, warmed up before it is measured."""
    results: Results = {peer.name: Rounds() for peer in peers}
    for _ in range(rounds):
        for peer in peers:
            warm_up(peer)
            with _metered(peer, results[peer.name]):
                figures = measure(peer)
            results[peer.name].figures.append(figures)
    return results


def rr(peers: Sequence[Peer], plan: Plan) -> Results:
    """Request/reply, 64 in flight: requests per second."""

    def ask(peer: Peer, span: Fields) -> Fields:
        return peer.client.ask(case="rr", body_bytes=BODY_BYTES, in_flight=IN_FLIGHT, **span)

    return interleaved(
        peers, plan.rounds, lambda peer: ask(peer, plan.warm_up()), lambda peer: ask(peer, plan.span(1.0))
    )


def latency(peers: Sequence[Peer], plan: Plan) -> Results:
    """One request at a time: p50 and p99."""

    def ask(peer: Peer, span: Fields) -> Fields:
        return peer.client.ask(case="latency", body_bytes=BODY_BYTES, **span)

    return interleaved(
        peers, plan.rounds, lambda peer: ask(peer, plan.warm_up(0.05)), lambda peer: ask(peer, plan.span(0.5))
    )


def stream(peers: Sequence[Peer], plan: Plan) -> Results:
    """One stream of 500 chunks after the other: milliseconds per stream, chunks per second."""

    def ask(peer: Peer, span: Fields) -> Fields:
        figures = peer.client.ask(case="stream", chunks=CHUNKS, chunk_bytes=CHUNK_BYTES, **span)
        return figures | {"per_s": CHUNKS * figures["operations"] / figures["elapsed_s"]}

    return interleaved(
        peers, plan.rounds, lambda peer: ask(peer, plan.warm_up(0.05)), lambda peer: ask(peer, plan.span(0.5))
    )


def echo16(peers: Sequence[Peer], plan: Plan) -> Results:
    """A 16 MiB body there and back, one after the other, on a worker of its own."""
    for peer in peers:
        peer.start_bulk()

    def ask(peer: Peer, span: Fields) -> Fields:
        figures = peer.bulk["bulk client"].ask(case="latency", body_bytes=LARGE_BYTES, **span)
        # There and back: twice the body crosses the broker.
        return figures | {"mb_per_s": 2 * LARGE_BYTES / 1e6 / (figures["p50_ms"] / 1e3)}

    try:
        return interleaved(
            peers, plan.rounds, lambda peer: ask(peer, plan.warm_up(0.1)), lambda peer: ask(peer, plan.span(0.6))
        )
    finally:
        _end_extras(peers)


def mixed(peers: Sequence[Peer], plan: Plan) -> Results:
    """Small calls one after the other while 16 MiB bodies go to and fro between another client and worker."""
    for peer in peers:
        peer.start_bulk()

    def quiet(peer: Peer) -> Fields:
        return peer.client.ask(case="latency", body_bytes=BODY_BYTES, **plan.warm_up(0.05))

    def ask(peer: Peer) -> Fields:
        seconds = 0.8 * plan.scale
        client = peer.bulk["bulk client"]
        client.tell(case="latency", body_bytes=LARGE_BYTES, seconds=seconds + 0.2, requests=0)
        # The first large body must be under way when the small calls begin.
        time.sleep(0.1)
        figures = peer.client.ask(case="latency", body_bytes=BODY_BYTES, seconds=seconds, requests=0)
        return figures | {"bulk_per_s": _per_s(client.answer())}

    try:
        return interleaved(peers, plan.rounds, quiet, ask)
    finally:
        _end_extras(peers)


def pubsub(peers: Sequence[Peer], plan: Plan) -> Results:
    """One publisher as fast as it goes, four subscribers: events delivered per second to all together, share lost."""
    for peer in peers:
        peer.start_subscribers()
        _until_heard(peer)
    events = plan.requests or int(30_000 * plan.scale)

    def publish(peer: Peer, events: int) -> Fields:
        for subscriber in peer.subscribers:
            subscriber.ask(case="arm", expected=events)
        for subscriber in peer.subscribers:
            subscriber.tell(case="collect")
        published = peer.client.ask(case="publish", events=events, body_bytes=EVENT_BYTES)
        collected = [subscriber.answer() for subscriber in peer.subscribers]
        received = sum(one["received"] for one in collected)
        elapsed_s = max(one["last_at"] for one in collected) - published["began_at"]
        return {
            "operations": received,
            "elapsed_s": elapsed_s,
            "per_s": received / elapsed_s if elapsed_s > 0 else 0.0,
            "published_per_s": events / published["elapsed_s"],
            "lost_share": 1 - received / (events * len(collected)),
        }

    try:
        return interleaved(
            peers, plan.rounds, lambda peer: publish(peer, max(100, events // 10)), lambda peer: publish(peer, events)
        )
    finally:
        _end_extras(peers)


def _until_heard(peer: Peer) -> None:
    """A subscription takes a moment to reach the publisher: publish until every subscriber hears something."""
    for _ in range(20):
        for subscriber in peer.subscribers:
            subscriber.ask(case="arm", expected=1)
        peer.client.ask(case="publish", events=10, body_bytes=EVENT_BYTES)
        if all(subscriber.ask(case="collect")["received"] for subscriber in peer.subscribers):
            return
    raise RuntimeError(f"{peer.name}: a subscriber hears nothing of what is published")


def _per_s(figures: Fields) -> float:
    return float(figures["operations"] / figures["elapsed_s"]) if figures["elapsed_s"] else 0.0


def _end_extras(peers: Sequence[Peer]) -> None:
    for peer in peers:
        peer.end_extras()


def say(text: str) -> None:
    """Progress, for the person who waits."""
    print(text, file=sys.stderr, flush=True)
