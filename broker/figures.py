"""The broker's figures: its counters, and for each service what its workers do and what waits for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from broker.exchange import Exchange
from broker.registry import ServiceStats
from bus.metrics import OTHER, Told
from schemas import metrics
from schemas.bodies.telling import Series

# Services told under their own names; whoever may join the bus may call itself anything, so what is past it is told
# under OTHER. The house has nine.
_TARGETS_MAX: Final = 64

# Counters of the core, by their field in `broker.core.Counters`.
_COUNTED: Final = {
    "requests": metrics.BROKER_REQUESTS,
    "replies": metrics.BROKER_REPLIES,
    "partials": metrics.BROKER_PARTIALS,
    "cancelled": metrics.BROKER_CANCELLED,
    "expired": metrics.BROKER_EXPIRED,
    "overloaded": metrics.BROKER_OVERLOADED,
    "unserved": metrics.BROKER_UNSERVED,
    "redispatched": metrics.BROKER_REDISPATCHED,
    "worker_lost": metrics.BROKER_LOST,
    "dead_letters": metrics.BROKER_BURIED,
}


class _Target:
    """What is told of one service, or of all that are told as one."""

    __slots__ = ("capacity", "counts", "in_flight", "instances", "lost", "queued", "queued_bytes", "seconds")

    def __init__(self) -> None:
        self.instances = 0
        self.capacity = 0
        self.in_flight = 0
        self.queued = 0
        self.queued_bytes = 0
        self.lost = 0
        self.seconds = 0.0
        self.counts = (0,) * (len(metrics.DOUBLINGS) + 1)

    def add(self, stats: ServiceStats) -> None:
        """Count a service in."""
        self.lost += stats.lost
        self.seconds += stats.latency.seconds
        self.counts = tuple(map(sum, zip(self.counts, stats.latency.counts(), strict=True)))


def broker_figures(exchange: Exchange) -> Iterator[Told]:
    """Every figure of one exchange now."""
    counters = exchange.core.counters
    for field, metric in _COUNTED.items():
        yield metric, _one(getattr(counters, field))
    for action, count in exchange.refused.items():
        yield metrics.BROKER_REFUSED, Series((action,), float(count))
    hub = exchange.hub
    pending = (subscriber.peer.pending_bytes for subscriber in hub.subscribers.values())
    yield metrics.BROKER_REJECTED, _one(exchange.rejected)
    yield metrics.BROKER_EVENTS, _one(hub.published)
    yield metrics.BROKER_EVENTS_DROPPED, _one(exchange.dropped)
    yield metrics.BROKER_SUBSCRIBERS, _one(len(hub.subscribers))
    yield metrics.BROKER_SUBSCRIBER_BYTES, _one(max(pending, default=0))
    yield metrics.BROKER_PEERS, _one(len(exchange.peers))
    event_log = exchange.event_log
    if event_log is not None:
        yield metrics.EVENT_LOG_BYTES, _one(event_log.size_bytes)
        yield metrics.EVENT_LOG_SEQ, _one(event_log.last_seq)
        yield metrics.EVENT_LOG_LOST, _one(event_log.lost)
        yield metrics.EVENT_LOG_FAILED, _one(event_log.failure is not None)
    if exchange.dead_letters is not None:
        yield metrics.DEAD_LETTERS, _one(exchange.dead_letters.count)
    for name, target in _targets(exchange).items():
        labels = (name,)
        yield metrics.BROKER_INSTANCES, Series(labels, target.instances)
        yield metrics.BROKER_CAPACITY, Series(labels, target.capacity)
        yield metrics.BROKER_IN_FLIGHT, Series(labels, target.in_flight)
        yield metrics.BROKER_QUEUED, Series(labels, target.queued)
        yield metrics.BROKER_QUEUED_BYTES, Series(labels, target.queued_bytes)
        yield metrics.BROKER_WORKERS_LOST, Series(labels, target.lost)
        yield metrics.BROKER_SECONDS, Series(labels, target.seconds, target.counts)


def _targets(exchange: Exchange) -> dict[str, _Target]:
    registry = exchange.core.registry
    names = {name: name if number < _TARGETS_MAX else OTHER for number, name in enumerate(registry.services)}
    targets: dict[str, _Target] = {}
    for service, stats in registry.services.items():
        targets.setdefault(names[service], _Target()).add(stats)
    for worker in registry.workers.values():
        target = targets[names[worker.ready.service]]
        target.instances += 1
        target.capacity += worker.ready.capacity
        target.in_flight += len(worker.in_flight)
    for route in registry.routes.values():
        if route.queue.count:
            target = targets.setdefault(names.get(route.service, OTHER), _Target())
            target.queued += route.queue.count
            target.queued_bytes += route.queue.size_bytes
    return targets


def _one(value: float) -> Series:
    return Series((), float(value))
