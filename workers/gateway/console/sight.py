"""What of the bus one caller may see: pure rules over subjects, scopes and namespaces.

An event is shown to whoever may ask for what it tells: the scope is that of the operation that reads the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from bus.authorize import Caller
from schemas import subjects
from schemas.errors import Forbidden

# The scope each event takes, the first pattern that covers it; "" takes a token and no scope, as the operations do that
# tell of the bus itself.
RULES: Final = (
    ("bus.trace.>", "bus:read"),
    ("bus.>", ""),
    ("audit.>", "audit:read"),
    ("auth.>", "auth:admin"),
    ("error.>", "error:read"),
    # Questions and answers of everybody, which no operation hands out whole.
    ("model.answered", "admin"),
    ("model.>", "model:read"),
    ("resource.>", "model:read"),
    ("memory.>", "memory:read"),
    ("trust.>", "trust:read"),
    ("learning.>", "learning:read"),
    ("metrics.>", "bus:read"),
)

# What the requests of others take, as `bus.trace.read` does.
REQUESTS: Final = "bus:read"

# For a family that Olympus does not know, where the first token may be anything.
_UNKNOWN: Final = "admin"


def scope_of(subject: str) -> str:
    """The scope that an event takes."""
    for pattern, scope in RULES:
        if subjects.matches(pattern, subject):
            return scope
    return f"{subject.partition('.')[0]}:read"


class Sight:
    """The rights of one caller. caller None: sees everything, for nobody has to sign in."""

    def __init__(self, caller: Caller | None) -> None:
        self._caller = caller

    def check(self, patterns: Iterable[str], *, has_traces: bool) -> None:
        """Raise Forbidden for a pattern of which nothing may be seen, and for traces without the right to them."""
        if has_traces and not self.may(REQUESTS):
            raise self._refusal("the requests of others", REQUESTS)
        for pattern in patterns:
            scopes = [scope for _, scope in _reached_by(pattern)]
            if not any(map(self.may, scopes)):
                raise self._refusal(f"events of {pattern}", scopes[0])

    def hidden(self, patterns: Iterable[str]) -> list[str]:
        """Of what `patterns` name, the families that are kept back."""
        reached = [(rule, scope) for pattern in patterns for rule, scope in _reached_by(pattern)]
        return list(dict.fromkeys(rule for rule, scope in reached if not self.may(scope)))

    def may(self, scope: str) -> bool:
        """True where the caller holds a scope."""
        return self._caller is None or not scope or self._caller.may(scope)

    def shows(self, scope: str, namespaces: tuple[str, ...] | None) -> bool:
        """True for an event of that scope about these namespaces; None: about none, empty: about all of them."""
        caller = self._caller
        if caller is None:
            return True
        if scope and not caller.may(scope):
            return False
        if namespaces is None or caller.may_touch_all:
            return True
        return bool(namespaces) and all(map(caller.may_touch, namespaces))

    def _refusal(self, what: str, scope: str) -> Forbidden:
        who = self._caller.user_id if self._caller is not None else ""
        return Forbidden(f"{who} may not see {what}: it takes the scope {scope}", scope=scope, user_id=who)


def _reached_by(pattern: str) -> Iterator[tuple[str, str]]:
    """The rules that decide over what falls under a pattern, each with its scope."""
    for rule, scope in RULES:
        if subjects.overlaps(rule, pattern):
            yield rule, scope
        if subjects.covers(rule, pattern):
            return
    family = pattern.partition(".")[0].partition("@")[0]
    yield ("others", _UNKNOWN) if family in ("*", ">") else (f"{family}.>", f"{family}:read")
