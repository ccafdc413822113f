"""All groups: which report belongs to which, what has changed, who goes when there are too many. Pure, in memory.

Groups are bounded by `groups_max`, and a flood of new ones must not push out those that matter. Three rules see to that:
no service holds more than a quarter of them; services beyond those that are known share one quarter; and within a
service go first the groups that came fewer than three times and of which no person has said anything, the one unseen
longest at first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, KeysView
from typing import Final, Literal, NamedTuple

import msgspec

from schemas.bodies.control import ErrorReport, Severity
from schemas.bodies.errors import ErrorGroup, ErrorList, ErrorPage, ErrorStatsReply, ServiceErrors, State
from schemas.errors import BadRequest, NotFound
from workers.errors import fingerprint
from workers.errors.counts import Counts
from workers.errors.group import Group, Now, new
from workers.errors.reading import SEVERITIES, rank

# Reports of a group that are kept whole.
REPORTS: Final = 10

# Services told apart, besides those of the catalogue; what comes past them is counted as OTHER.
SERVICES_MAX: Final = 200
OTHER: Final = "other"

# Of all groups, one in so many may be of one service.
_SHARE: Final = 4

# From this often on a group is no chance visitor.
_SETTLED: Final = 3

# Fingerprints named where the start of one fits several.
_NAMED: Final = 5

Change = Literal["", "opened", "reopened", "worse"]


class Noted(NamedTuple):
    """What a report did: to its group, and under which name its service is counted."""

    group: Group
    change: Change
    reporter: str


class Tally(msgspec.Struct, kw_only=True, gc=False):
    """Everything that one service reported with one severity."""

    service: str
    severity: Severity
    counts: Counts
    last_at: float = 0.0


class _Share:
    """The groups of one service, those unseen longest first."""

    __slots__ = ("passing", "settled")

    def __init__(self) -> None:
        self.passing: OrderedDict[str, None] = OrderedDict()
        self.settled: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self.passing) + len(self.settled)

    def place(self, group: Group) -> None:
        """As the one seen last."""
        is_settled = group.count >= _SETTLED or group.is_marked
        self.drop(group.fingerprint)
        (self.settled if is_settled else self.passing)[group.fingerprint] = None

    def drop(self, named: str) -> None:
        self.passing.pop(named, None)
        self.settled.pop(named, None)

    def first_to_go(self) -> str:
        return next(iter(self.passing or self.settled))


def _by_passing(share: _Share) -> tuple[int, int]:
    return len(share.passing), len(share)


class Groups:
    """The groups and what was counted. `changed`, `gone` and `tallied` say what a store has still to write."""

    def __init__(self, groups_max: int, known_services: Collection[str] = ()) -> None:
        self._max = groups_max
        self._known = frozenset(known_services)
        self._groups: dict[str, Group] = {}
        self._shares: dict[str, _Share] = {}
        self._tallies: dict[tuple[str, Severity], Tally] = {}
        self._strangers: set[str] = set()
        self.changed: dict[str, Group] = {}
        self.gone: set[str] = set()
        self.tallied: dict[tuple[str, Severity], Tally] = {}

    def __len__(self) -> int:
        return len(self._groups)

    def __contains__(self, named: str) -> bool:
        return named in self._groups

    def __iter__(self) -> Iterator[Group]:
        return iter(self._groups.values())

    def names(self) -> KeysView[str]:
        """The fingerprints of all groups."""
        return self._groups.keys()

    def restore(self, groups: Iterable[Group], tallies: Iterable[Tally], now: Now) -> None:
        """Take up what was kept."""
        for tally in tallies:
            self._tallies[tally.service, tally.severity] = tally
            self._reporter(tally.service)
        for group in sorted(groups, key=lambda one: one.last_at):
            group.wake(now)
            self._hold(group, self._reporter(group.service))

    # Reports

    def note(self, report: ErrorReport, at: float, now: Now) -> Noted:
        """Count a report that the broker took in at `at`, epoch seconds."""
        named = fingerprint.of(report.service, report.kind, report.message, report.traceback)
        reporter = self._reporter(report.service)
        self._count(report, reporter, at)
        group = self._groups.get(named)
        if group is None:
            group = new(named, report, at)
            group.take(report, at)
            self._hold(group, reporter)
            self.changed[named] = group
            return Noted(group, "opened", reporter)
        change: Change = ""
        if group.acknowledged_at is not None:
            group.severity = report.severity
            group.reopen(at)
            change = "reopened"
        elif rank(report.severity) > rank(group.severity):
            change = "worse"
        group.take(report, at)
        self._shares[reporter].place(group)
        self.changed[named] = group
        return Noted(group, "" if group.is_muted(now) else change, reporter)

    def _reporter(self, service: str) -> str:
        """The name a service is counted under: its own where it is known or there is room for one more."""
        if service in self._known or service in self._strangers:
            return service
        if len(self._strangers) < SERVICES_MAX:
            self._strangers.add(service)
            return service
        return OTHER

    def _count(self, report: ErrorReport, reporter: str, at: float) -> None:
        key = (reporter, report.severity)
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies[key] = Tally(service=reporter, severity=report.severity, counts=Counts({}, {}, {}))
        tally.counts.add(at, report.count)
        tally.last_at = max(tally.last_at, at)
        self.tallied[key] = tally

    def _hold(self, group: Group, reporter: str) -> None:
        share = self._shares.setdefault(reporter, _Share())
        if len(share) >= max(self._max // _SHARE, 1):
            self._let_go(share.first_to_go())
        elif len(self._groups) >= self._max:
            self._let_go(max(self._shares.values(), key=_by_passing).first_to_go())
        self._groups[group.fingerprint] = group
        self.gone.discard(group.fingerprint)
        share.place(group)

    def _let_go(self, named: str) -> None:
        group = self._groups.pop(named)
        reporter = self._reporter(group.service)
        self._shares[reporter].drop(named)
        self.changed.pop(named, None)
        self.gone.add(named)

    # What is asked

    def get(self, named: str) -> Group | None:
        """The group of that fingerprint."""
        return self._groups.get(named)

    def find(self, start: str) -> Group:
        """The group whose fingerprint begins so. Raises NotFound, BadRequest where there are several."""
        exact = self._groups.get(start)
        if exact is not None:
            return exact
        fitting = sorted(named for named in self._groups if named.startswith(start))
        if not fitting:
            raise NotFound(f"no group of errors has a fingerprint that begins with {start!r}", field="fingerprint")
        if len(fitting) > 1:
            more = f" and {len(fitting) - _NAMED} more" if len(fitting) > _NAMED else ""
            raise BadRequest(
                f"{start!r} begins the fingerprints of {len(fitting)} groups: {', '.join(fitting[:_NAMED])}{more};"
                " give more digits",
                field="fingerprint",
            )
        return self._groups[fitting[0]]

    def list(self, query: ErrorList, now: Now) -> ErrorPage:
        """Groups that fit, the one seen last first."""
        fitting = [group for group in self._groups.values() if _fits(group, query, now)]
        fitting.sort(key=lambda group: (-group.last_at, group.fingerprint))
        shown = [group for group in fitting if query.before_at is None or group.last_at < query.before_at]
        return ErrorPage(groups=[group.told(now) for group in shown[: query.limit]], total=len(fitting))

    def stats(self, over_s: float, now: Now) -> ErrorStatsReply:
        """Counts of the last `over_s` seconds, by service and by severity; groups as they are now."""
        open_groups: dict[str, int] = {}
        for group in self._groups.values():
            if group.state(now) == "open":
                reporter = self._reporter(group.service)
                open_groups[reporter] = open_groups.get(reporter, 0) + 1
        by_severity: dict[str, int] = dict.fromkeys(SEVERITIES, 0)
        by_service: dict[str, list[tuple[Tally, int]]] = {}
        for tally in self._tallies.values():
            count = tally.counts.over(over_s, now.wall)
            if count:
                by_severity[tally.severity] += count
                by_service.setdefault(tally.service, []).append((tally, count))
        services = [
            ServiceErrors(
                service=service,
                count=sum(count for _, count in found),
                per_minute=round(sum(tally.counts.per_minute(now.wall) for tally, _ in found), 3),
                open_groups=open_groups.get(service, 0),
                worst=max((tally.severity for tally, _ in found), key=rank),
                last_at=max(tally.last_at for tally, _ in found),
            )
            for service, found in by_service.items()
        ]
        states = self.states(now)
        return ErrorStatsReply(
            services=sorted(services, key=lambda one: (-one.count, one.service)),
            count=sum(by_severity.values()),
            groups=len(self._groups),
            open_groups=states["open"],
            muted_groups=states["muted"],
            by_severity=by_severity,
        )

    def states(self, now: Now) -> dict[State, int]:
        """How many groups are in each state."""
        found: dict[State, int] = {"open": 0, "acknowledged": 0, "muted": 0}
        for group in self._groups.values():
            found[group.state(now)] += 1
        return found

    # What people say

    def acknowledge(self, start: str, by: str, note: str, now: Now) -> int:
        """One group was seen; 0 where that was said before. Raises NotFound, BadRequest."""
        group = self.find(start)
        was_open = group.acknowledged_at is None
        group.acknowledge(by, note, now)
        self._mark(group)
        return int(was_open)

    def acknowledge_all(self, service: str, by: str, note: str, now: Now) -> int:
        """All of a service's open groups were seen. Raises NotFound where it never reported anything."""
        of_service = [group for group in self._groups.values() if group.service == service]
        if not of_service:
            raise NotFound(f"the service {service!r} has no group of errors", field="service")
        open_groups = [group for group in of_service if group.state(now) == "open"]
        for group in open_groups:
            group.acknowledge(by, note, now)
            self._mark(group)
        return len(open_groups)

    def mute(self, start: str, for_s: float, note: str, now: Now) -> ErrorGroup:
        """Mute a group for so many seconds, 0 to end it. Raises NotFound, BadRequest."""
        group = self.find(start)
        group.mute(for_s, note, now)
        self._mark(group)
        return group.told(now)

    def _mark(self, group: Group) -> None:
        self._shares[self._reporter(group.service)].place(group)
        self.changed[group.fingerprint] = group

    def forget(self, start: str) -> int:
        """Delete one group. Raises NotFound, BadRequest."""
        self._let_go(self.find(start).fingerprint)
        return 1

    def forget_unseen(self, unseen_s: float, now: Now, *, spare_muted: bool = False) -> int:
        """Delete the groups that did not come for so many seconds."""
        old = [
            group.fingerprint
            for group in self._groups.values()
            if group.last_at <= now.wall - unseen_s and not (spare_muted and group.is_muted(now))
        ]
        for named in old:
            self._let_go(named)
        return len(old)

    def change_everything(self) -> None:
        """All of it has to be written: the file is another one."""
        self.changed = dict(self._groups)
        self.tallied = dict(self._tallies)

    def take_marks(self, others: Iterable[Group], now: Now) -> None:
        """What people said of groups that were kept elsewhere meanwhile, where they are known here."""
        for other in others:
            group = self._groups.get(other.fingerprint)
            if group is None or not other.is_marked:
                continue
            group.acknowledged_at, group.acknowledged_by = other.acknowledged_at, other.acknowledged_by
            group.note = other.note or group.note
            group.muted_until_at, group.muted_for_s = other.muted_until_at, other.muted_for_s
            group.wake(now)
            self._mark(group)


def _fits(group: Group, query: ErrorList, now: Now) -> bool:
    return (
        (query.service is None or group.service == query.service)
        and (query.severity is None or rank(group.severity) >= rank(query.severity))
        and (query.state in (None, "any") or group.state(now) == query.state)
        and (query.since_at is None or group.last_at >= query.since_at)
        and (not query.text or query.text.casefold() in f"{group.kind}\n{group.message}".casefold())
    )
