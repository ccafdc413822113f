"""What the peers of encrypted connections may do: decided by their keys' permissions, remembered by subject; no I/O."""

from __future__ import annotations

from typing import Final

from bus.permissions import Action, Permissions
from schemas.errors import Forbidden

# Decisions remembered for each key; bounded because a peer may invent any number of subjects.
_DECIDED_MAX: Final = 10_000

# Patterns named in a refusal.
_NAMED_MAX: Final = 8


class Rights:
    """Those of one trusted key, shared by all its connections. `allowed`: every list must allow; none is everything."""

    __slots__ = ("_decided", "allowed", "name")

    def __init__(self, name: str, allowed: tuple[Permissions, ...]) -> None:
        self.name = name
        self.allowed = allowed
        self._decided: dict[tuple[Action, str], bool] = {}

    def change(self, name: str, allowed: tuple[Permissions, ...]) -> bool:
        """Go by other permissions from now on; False where they are the same."""
        if (name, allowed) == (self.name, self.allowed):
            return False
        self.name, self.allowed = name, allowed
        self._decided.clear()
        return True

    def may(self, action: Action, subject: str) -> bool:
        """True when that subject is allowed."""
        if not self.allowed:
            return True
        decided = self._decided.get((action, subject))
        if decided is None:
            decided = all(each.may(action, subject) for each in self.allowed)
            if len(self._decided) >= _DECIDED_MAX:
                self._decided.clear()
            self._decided[action, subject] = decided
        return decided

    def may_all(self, action: Action, pattern: str) -> bool:
        """True when everything that falls under the pattern is allowed."""
        return all(each.may_all(action, pattern) for each in self.allowed)

    def may_some(self, action: Action, pattern: str) -> bool:
        """False when nothing that falls under the pattern is allowed."""
        return all(each.may_some(action, pattern) for each in self.allowed)

    def refusal(self, action: Action, subject: str) -> Forbidden:
        """What the peer is told."""
        # Of one that forbids it; with a single list that is the one, and a flood of refusals costs no more search.
        one = self.allowed[0] if len(self.allowed) == 1 else None
        patterns = (one or next(each for each in self.allowed if not each.may_all(action, subject))).of(action)
        named = " ".join(patterns[:_NAMED_MAX]) or "nothing"
        more = f" and {len(patterns) - _NAMED_MAX} more" if len(patterns) > _NAMED_MAX else ""
        return Forbidden(
            f"the key of {self.name} may not {action} {subject}; it may {action} {named}{more}",
            subject=subject,
            identity=self.name,
            action=action,
            allowed=list(patterns[:_NAMED_MAX]),
        )


class Guard:
    """One encrypted connection: whose it is, and where it comes from."""

    __slots__ = ("address", "rights")

    def __init__(self, rights: Rights, address: str) -> None:
        self.rights = rights
        self.address = address
