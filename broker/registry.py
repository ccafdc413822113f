"""Who serves what: workers, their free credit, and the route from a subject to the workers behind it."""

from __future__ import annotations

from collections.abc import Hashable
from enum import StrEnum
from typing import Final

from broker.latency import LatencyWindow
from broker.queues import Priority, Queued, SubjectQueue
from schemas import subjects
from schemas.bodies.control import Heartbeat, Ready

Peer = Hashable

# Resolved subjects remembered between registrations; bounded because a caller may invent any number of subjects.
_RESOLVED_MAX: Final = 10_000


# Services whose figures are kept after their last worker left; past it only those with workers stay.
_SERVICES_MAX: Final = 1_000


class WorkerState(StrEnum):
    """SERVING -> DRAINING (said bye; no new requests) -> gone."""

    SERVING = "serving"
    DRAINING = "draining"


class Worker:
    """One registered instance. `free` is its unused credit; `in_flight` maps request ids to what the core keeps."""

    __slots__ = (
        "answered", "beat", "failed", "free", "heard_at", "in_flight", "joined_at", "peer", "pools", "ready", "state",
        "stats",
    )  # fmt: skip

    def __init__(self, peer: Peer, ready: Ready, stats: ServiceStats, now: float) -> None:
        self.peer = peer
        self.ready = ready
        self.stats = stats
        self.free = ready.capacity
        self.in_flight: dict[bytes, object] = {}
        self.pools: list[Pool] = []
        self.state = WorkerState.SERVING
        self.joined_at = now
        self.heard_at = now
        self.beat = Heartbeat()
        self.answered = 0
        self.failed = 0

    @property
    def has_backlog(self) -> bool:
        """True when requests wait that this worker could serve."""
        for pool in self.pools:
            interactive, batch = pool.backlog
            if interactive or batch:
                return True
        return False

    def change_free(self, by: int) -> None:
        """Give credit back, or take it."""
        old = self.free
        self.free = old + by
        for pool in self.pools:
            pool.move(self, old)


class Pool:
    """Workers that serve the same subjects, sorted by free credit so that the freest is found in constant time."""

    __slots__ = ("_best", "_by_free", "_only", "backlog", "routes")

    def __init__(self) -> None:
        # The one worker of a pool of one, which needs no sorting; then `_by_free` is empty.
        self._only: Worker | None = None
        self._by_free: dict[int, dict[Worker, None]] = {}
        self._best = 0
        self.routes: list[Route] = []
        # Routes with waiting requests, per priority, in the order in which they get the next free worker.
        self.backlog: tuple[dict[Route, None], dict[Route, None]] = ({}, {})

    def __bool__(self) -> bool:
        return self._only is not None or bool(self._by_free)

    def add(self, worker: Worker) -> None:
        """Take a worker in."""
        worker.pools.append(self)
        if not self:
            self._only = worker
            return
        if self._only is not None:
            first, self._only = self._only, None
            self._insert(first)
        self._insert(worker)

    def discard(self, worker: Worker) -> None:
        """Let a worker go."""
        worker.pools.remove(self)
        if self._only is worker:
            self._only = None
        else:
            self._remove(worker, worker.free)

    def move(self, worker: Worker, old_free: int) -> None:
        """Sort a worker anew after its credit changed."""
        if self._only is None:
            self._remove(worker, old_free)
            self._insert(worker)

    def best_free(self) -> int:
        """The largest free credit of any worker here."""
        if self._only is not None:
            return self._only.free
        while self._best > 0 and self._best not in self._by_free:
            self._best -= 1
        return self._best

    def freest(self) -> Worker | None:
        """The worker with the most free credit, the one that waited longest among equals; None when all are busy."""
        only = self._only
        if only is not None:
            return only if only.free > 0 else None
        best = self.best_free()
        return next(iter(self._by_free[best])) if best > 0 else None

    def _insert(self, worker: Worker) -> None:
        self._by_free.setdefault(worker.free, {})[worker] = None
        if worker.free > self._best:
            self._best = worker.free

    def _remove(self, worker: Worker, free: int) -> None:
        bucket = self._by_free[free]
        del bucket[worker]
        if not bucket:
            del self._by_free[free]


class ServiceStats:
    """What one service did since the broker started."""

    __slots__ = ("answered", "failed", "latency", "lost")

    def __init__(self, now: float) -> None:
        self.answered = 0
        self.failed = 0
        self.lost = 0
        self.latency = LatencyWindow(now)


class Route:
    """A registered subject or pattern with its bounded queue and the pools that serve it."""

    __slots__ = ("is_instance", "key", "lost_at", "overload_told_at", "pools", "queue", "refused", "service", "stats")

    def __init__(self, key: str, queue: SubjectQueue[Queued], service: str, stats: ServiceStats) -> None:
        self.key = key
        self.queue = queue
        self.service = service
        self.stats = stats
        self.is_instance = "@" in key
        self.pools: list[Pool] = []
        self.lost_at: float | None = None
        self.overload_told_at = float("-inf")
        self.refused = 0

    @property
    def is_served(self) -> bool:
        """True when at least one worker takes new requests."""
        return any(self.pools)

    def freest(self) -> Worker | None:
        """The worker with the most free credit among all pools."""
        if len(self.pools) == 1:
            return self.pools[0].freest()
        pool = max(self.pools, key=Pool.best_free, default=None)
        return pool.freest() if pool else None

    def mark_backlog(self, priority: Priority) -> None:
        """Note in every pool that a request of this priority waits here."""
        for pool in self.pools:
            pool.backlog[priority].setdefault(self)


class Registry:
    """Workers by peer, routes by subject. `max_count` and `max_bytes` bound each route's queue."""

    def __init__(self, max_count: int, max_bytes: int) -> None:
        self._max_count = max_count
        self._max_bytes = max_bytes
        self.workers: dict[Peer, Worker] = {}
        self.routes: dict[str, Route] = {}
        self.services: dict[str, ServiceStats] = {}
        self._patterns: list[Route] = []
        self._pools: dict[tuple[str, ...], Pool] = {}
        self._by_instance: dict[str, dict[Worker, None]] = {}
        self._resolved: dict[str, Route] = {}

    def join(self, peer: Peer, ready: Ready, now: float) -> Worker:
        """Register a worker; the routes it brings back to life keep what waits in them."""
        worker = Worker(peer, ready, self._stats(ready.service, now), now)
        self.workers[peer] = worker
        names = tuple(sorted(set(ready.subjects)))
        pool = self._pools.get(names)
        if pool is None:
            pool = self._pools[names] = Pool()
            for name in names:
                self._serve(name, pool, ready.service, now)
        pool.add(worker)
        for route in pool.routes:
            route.lost_at = None
            for priority in Priority:
                if route.queue.has(priority):
                    pool.backlog[priority].setdefault(route)
        self._by_instance.setdefault(ready.instance, {})[worker] = None
        self._resolved.clear()
        return worker

    def leave(self, worker: Worker, now: float, *, is_lost: bool) -> list[Route]:
        """Take a worker out of every route; returns the routes that nobody serves any more."""
        deserted: list[Route] = []
        for pool in list(worker.pools):
            pool.discard(worker)
            if pool:
                continue
            for route in pool.routes:
                route.pools.remove(pool)
                if not route.pools:
                    route.lost_at = now if is_lost else None
                    deserted.append(route)
            for names, known in list(self._pools.items()):
                if known is pool:
                    del self._pools[names]
        siblings = self._by_instance.get(worker.ready.instance, {})
        siblings.pop(worker, None)
        if not siblings:
            self._by_instance.pop(worker.ready.instance, None)
        self._resolved.clear()
        return deserted

    def drop(self, route: Route) -> None:
        """Forget a route that nobody serves and nothing waits in."""
        if self.routes.get(route.key) is route:
            del self.routes[route.key]
        if route in self._patterns:
            self._patterns.remove(route)
        self._resolved.clear()

    def resolve(self, subject: str) -> Route | None:
        """The route for a request: the instance it names when that is served, else its plain subject."""
        route = self._resolved.get(subject)
        if route is None:
            route = self._resolve(subject)
            if route is not None:
                if len(self._resolved) >= _RESOLVED_MAX:
                    self._resolved.clear()
                self._resolved[subject] = route
        return route

    def _resolve(self, subject: str) -> Route | None:
        plain, instance = subjects.split_instance(subject)
        if instance:
            route = self.routes.get(subject)
            if route is not None and route.is_served:
                return route
            for worker in self._by_instance.get(instance, {}):
                for name in worker.ready.subjects:
                    if "@" not in name and subjects.matches(name, plain):
                        # By the name it registered, not by the subject: callers may invent any number of those.
                        return self._instance_route(f"{name}@{instance}", worker)
        route = self.routes.get(plain)
        if route is not None and route.is_served:
            return route
        covering = [known for known in self._patterns if subjects.matches(known.key, plain)]
        # One that lost its last worker counts only where nobody else serves the subject.
        return next((known for known in covering if known.is_served), route or next(iter(covering), None))

    def _instance_route(self, key: str, worker: Worker) -> Route:
        """A route of its own for one worker addressed by name, made when somebody first does so."""
        pool = self._pools.get((key,))
        if pool is None:
            pool = self._pools[(key,)] = Pool()
            self._serve(key, pool, worker.ready.service, worker.joined_at)
        if pool not in worker.pools:
            pool.add(worker)
        return self.routes[key]

    def _serve(self, name: str, pool: Pool, service: str, now: float) -> None:
        stats = self._stats(service, now)
        route = self.routes.get(name)
        if route is None:
            route = self.routes[name] = Route(name, SubjectQueue(self._max_count, self._max_bytes), service, stats)
            if subjects.is_pattern(name):
                self._patterns.append(route)
        route.pools.append(pool)
        pool.routes.append(route)

    def _stats(self, service: str, now: float) -> ServiceStats:
        stats = self.services.get(service)
        if stats is None:
            if len(self.services) >= _SERVICES_MAX:
                present = {worker.ready.service for worker in self.workers.values()}
                self.services = {name: known for name, known in self.services.items() if name in present}
            stats = self.services[service] = ServiceStats(now)
        return stats
