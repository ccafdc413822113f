"""What the owner of a key may do on the bus: patterns of subjects for each action, and their file. It enforces nothing.

    # What pc2 may do here. olympus keys allow changes it.
    request memory.> !memory.restore
    subscribe memory.> auth.revoked

A line names an action and patterns (`*` one token, trailing `>` the rest); one that begins with `!` takes out again what
another allows. What no line allows is forbidden, whatever the order of lines. A pattern without `@instance` goes for every
instance. A trusted key without such a file may do everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal, get_args

import msgspec

from schemas import catalog, subjects
from schemas.errors import BadRequest

Action = Literal["request", "publish", "subscribe", "serve"]
ACTIONS: Final[tuple[Action, ...]] = get_args(Action)

Role = Literal["client", "worker", "reader", "all"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)

# Of a file and of one list in it: far more than anybody writes, and quick to search.
MAX_BYTES: Final = 256 * 1024
MAX_PATTERNS: Final = 2_000

# What is for whoever looks after the broker's machine: other people's requests, and who did what.
_KEEPERS: Final = ("!deadletter.>", "!bus.trace.read", "!audit.>")

# Events that show what passes between others, or hold what people wrote.
_PRIVATE_EVENTS: Final = (
    "!bus.trace.>", "!audit.>", "!model.answered", "!learning.opportunity.found", "!memory.suggestion.made",
)  # fmt: skip

# What else is kept from workers, and those that cannot do without it.
_NEEDED_BY: Final = {"error": ("!audit.>",), "exporter": ("!bus.trace.read",)}


class BadPermissions(ValueError):
    """A permissions file or list that cannot be followed; names line and field."""


class Permissions(msgspec.Struct, frozen=True):
    """Patterns by action; `!` in front takes out."""

    request: tuple[str, ...] = ()
    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    serve: tuple[str, ...] = ()

    def of(self, action: Action) -> tuple[str, ...]:
        """The patterns of one action."""
        patterns: tuple[str, ...] = getattr(self, action)
        return patterns

    def may(self, action: Action, subject: str) -> bool:
        """True when `subject` is allowed."""
        return _decide(self.of(action), subject, subjects.matches, subjects.matches)

    def may_all(self, action: Action, pattern: str) -> bool:
        """True when every subject that falls under `pattern` is allowed."""
        return _decide(self.of(action), pattern, subjects.covers, subjects.overlaps)

    def may_some(self, action: Action, pattern: str) -> bool:
        """False when surely nothing that falls under `pattern` is allowed."""
        return _decide(self.of(action), pattern, subjects.overlaps, subjects.covers)


NOTHING: Final = Permissions()


def _decide(
    patterns: tuple[str, ...], wanted: str, allows: Callable[[str, str], bool], takes_out: Callable[[str, str], bool]
) -> bool:
    if any(each[0] == "!" and takes_out(each[1:], wanted) for each in patterns):
        return False
    return any(each[0] != "!" and allows(each, wanted) for each in patterns)


def checked(action: Action, patterns: Iterable[str]) -> tuple[str, ...]:
    """`patterns` where each is one. Raises BadPermissions naming action and pattern."""
    kept = tuple(dict.fromkeys(patterns))
    if len(kept) > MAX_PATTERNS:
        raise BadPermissions(f"{action} has {len(kept)} patterns, the most are {MAX_PATTERNS}")
    for pattern in kept:
        try:
            subjects.validate_pattern(pattern.removeprefix("!"))
        except BadRequest as error:
            raise BadPermissions(f"{action}: {error.message}") from error
    if kept and all(pattern[0] == "!" for pattern in kept):
        raise BadPermissions(f"{action}: {' '.join(kept)[:80]} only takes out, and nothing is allowed")
    return kept


def parse(text: str) -> Permissions:
    """What a permissions file says. Raises BadPermissions naming the line and the field."""
    found: dict[Action, list[str]] = {action: [] for action in ACTIONS}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        action = next((one for one in ACTIONS if one == words[0]), None)
        if action is None:
            raise BadPermissions(f"line {number}: {words[0][:40]!r} is no action; one of {', '.join(ACTIONS)}")
        for word in words[1:]:
            try:
                subjects.validate_pattern(word.removeprefix("!"))
            except BadRequest as error:
                raise BadPermissions(f"line {number}, {action}: {error.message}") from error
        found[action] += words[1:]
    return permissions_of(found)


def permissions_of(patterns: Mapping[Action, Iterable[str]]) -> Permissions:
    """Permissions of checked lists. Raises BadPermissions."""
    return Permissions(**{action: checked(action, given) for action, given in patterns.items()})


def render(name: str, permissions: Permissions) -> str:
    """The file that `parse` reads."""
    lines = [f"# What {name} may do on this machine's bus; `olympus keys allow {name}` changes it."]
    for action in ACTIONS:
        lines += [f"{action} {pattern}" for pattern in permissions.of(action)]
    return "\n".join(lines) + "\n"


def of_role(role: Role, services: Iterable[str] = ()) -> Permissions | None:
    """What a role allows; None for everything. A worker serves, and tells the events of, `services`."""
    if role == "client":
        return Permissions(request=(">", *_KEEPERS), subscribe=(">", *_PRIVATE_EVENTS))
    if role == "reader":
        return Permissions(request=_reads(), subscribe=(">", *_PRIVATE_EVENTS))
    if role == "worker":
        named = tuple(services)
        families = sorted({family for service in named for family in _families_of(service)})
        own = tuple(f"{family}.>" for family in families)
        told = tuple(one for name in named for one in (f"metrics.{_token(name)}", f"error.{_token(name)}.*"))
        needed = {pattern for name in named for pattern in _NEEDED_BY.get(name, ())}
        return Permissions(
            request=(">", *(pattern for pattern in _KEEPERS if pattern not in needed)),
            publish=tuple(dict.fromkeys((*own, *told, "audit.*"))),
            subscribe=(">", *(pattern for pattern in ("!bus.trace.>", "!audit.>") if pattern not in needed)),
            serve=own,
        )
    return None


def _reads() -> tuple[str, ...]:
    """Every operation that changes nothing: those whose scope says so, and the broker's answers about itself."""
    open_to_all = ("bus.ping", "bus.services", "bus.workers", "bus.stats", "auth.verify")
    reads = [one.subject for one in catalog.OPERATIONS.values() if one.scope.endswith(":read")]
    kept_back = [pattern.removeprefix("!") for pattern in _KEEPERS]
    return tuple(
        sorted(
            subject
            for subject in (*reads, *open_to_all)
            if not any(subjects.matches(pattern, subject) for pattern in kept_back)
        )
    )


def _families_of(service: str) -> set[str]:
    """First tokens of the subjects that a service serves; its own name where the catalogue does not know it."""
    return {one.family for one in catalog.OPERATIONS.values() if one.service == service} | {service.partition(".")[0]}


def _token(service: str) -> str:
    """A service's name as one token of a subject, as its error reports have it."""
    return service.replace(".", "-")
