"""Users: the statements behind `auth.user.*`, each inside a transaction that its caller owns. Passwords come hashed."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from typing import Final, NamedTuple

from schemas.bodies.accounts import AuthRevoked, User, UserDeleted, UserUpdate
from schemas.errors import Conflict, Forbidden, NotFound
from workers.memory.accounts import families, scores
from workers.memory.outcome import Event, Outcome
from workers.memory.upkeep.kinds import KINDS

# Names that stand for something else: whoever holds the secret of the home.
RESERVED: Final = frozenset({"local"})

# What somebody who signs up may do, in namespaces of their own.
USER_SCOPES: Final = ("memory:read", "memory:write", "model:read", "model:use", "trust:read")


# Raises where a user may not be added under a name.
NameCheck = Callable[[sqlite3.Connection, str], None]


class Account(NamedTuple):
    """One row of `users`."""

    name: str
    password_hash: str
    scopes: tuple[str, ...]
    namespaces: tuple[str, ...]
    is_disabled: bool


def own_namespaces(name: str) -> tuple[str, ...]:
    """The namespaces that belong to one user."""
    return (f"user.{name}", f"user.{name}.*")


def find(connection: sqlite3.Connection, name: str) -> Account | None:
    """The account called `name`."""
    row = connection.execute(
        "SELECT name, password_hash, scopes, namespaces, is_disabled FROM users WHERE name = ?", (name,)
    ).fetchone()
    if row is None:
        return None
    return Account(row[0], row[1], tuple(json.loads(row[2])), tuple(json.loads(row[3])), bool(row[4]))


def check_sign_up(connection: sqlite3.Connection, name: str) -> None:
    """Refuse a name by which something is kept: whoever signs up would get it, and nobody knows who that is.

    Raises Conflict where the name is not free, Forbidden where it is reserved.
    """
    _check_free(connection, name)
    if _deleted_at(connection, name) is not None or _is_stored(connection, name):
        raise Conflict(
            f"the name {name!r} is not free: what somebody stored goes by it; take another one, or ask an admin",
            field="user_id",
            user_id=name,
        )


def check_added(connection: sqlite3.Connection, name: str, *, takes_over: bool) -> None:
    """Refuse the name of a deleted user, and one by which something is kept, unless it is taken over knowingly.

    Raises Conflict where the name is not free, Forbidden where it is reserved.
    """
    _check_free(connection, name)
    if takes_over:
        return
    deleted_at = _deleted_at(connection, name)
    if deleted_at is not None:
        raise Conflict(
            f"a user {name!r} was deleted, and what they stored goes by that name still: take_over has to be true to"
            " hand it to the new user",
            field="take_over",
            user_id=name,
            deleted_at=deleted_at,
        )
    # Users deleted before their names were noted down left nothing else to tell them by.
    if _is_stored(connection, name):
        raise Conflict(
            f"something is stored in the namespaces of {name!r} already: take_over has to be true to hand it to the new"
            " user",
            field="take_over",
            user_id=name,
        )


def add(connection: sqlite3.Connection, account: Account, now: float) -> Outcome:
    """Add a user whose name a NameCheck has passed in the same transaction."""
    connection.execute(
        "INSERT INTO users (name, password_hash, scopes, namespaces, is_disabled, created_at, updated_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            account.name,
            account.password_hash,
            json.dumps(account.scopes),
            json.dumps(account.namespaces),
            account.is_disabled,
            now,
            now,
        ),
    )
    connection.execute("DELETE FROM deleted_users WHERE name = ?", (account.name,))
    return Outcome(show(connection, account.name, now), [])


def update(connection: sqlite3.Connection, request: UserUpdate, password_hash: str | None, now: float) -> Outcome:
    """Change what is given. A new password and disabling revoke every token of the user. Raises NotFound."""
    _require(connection, request.user_id)
    changes: dict[str, object] = {"updated_at": now}
    if password_hash is not None:
        changes["password_hash"] = password_hash
    if request.scopes is not None:
        changes["scopes"] = json.dumps(request.scopes)
    if request.namespaces is not None:
        changes["namespaces"] = json.dumps(request.namespaces)
    if request.disabled is not None:
        changes["is_disabled"] = request.disabled
    assignments = ", ".join(f"{column} = ?" for column in changes)
    connection.execute(f"UPDATE users SET {assignments} WHERE name = ?", (*changes.values(), request.user_id))
    reason = "password changed" if password_hash is not None else "disabled" if request.disabled else ""
    if reason:
        families.revoke_all(connection, request.user_id, reason, now)
    # Access tokens are believed for a while without asking, with the scopes of then.
    event = Event("auth.revoked", AuthRevoked(user_id=request.user_id, reason=reason or "rights changed"))
    return Outcome(show(connection, request.user_id, now), [event])


def set_password_hash(connection: sqlite3.Connection, account: Account, password_hash: str) -> Outcome:
    """Keep the same password under newer parameters, unless another one was set meanwhile."""
    connection.execute(
        "UPDATE users SET password_hash = ? WHERE name = ? AND password_hash = ?",
        (password_hash, account.name, account.password_hash),
    )
    return Outcome(None, [])


def as_checked(connection: sqlite3.Connection, account: Account) -> Account | None:
    """The account as it stands; None where the password that was checked is no longer its own, or it may not sign in."""
    current = find(connection, account.name)
    if current is None or current.is_disabled or current.password_hash != account.password_hash:
        return None
    return current


def delete(connection: sqlite3.Connection, name: str, now: float) -> Outcome:
    """Delete a user with all tokens and trust. What the user stored stays, so the name is not free afterwards."""
    if connection.execute("DELETE FROM users WHERE name = ?", (name,)).rowcount == 0:
        return Outcome(UserDeleted(user_id=name, deleted=False), [])
    connection.execute("INSERT OR REPLACE INTO deleted_users (name, deleted_at) VALUES (?, ?)", (name, now))
    scores.forget(connection, name)
    event = Event("auth.revoked", AuthRevoked(user_id=name, reason="deleted"))
    return Outcome(UserDeleted(user_id=name, deleted=True), [event])


def show(connection: sqlite3.Connection, name: str, now: float) -> User:
    """What an admin sees of a user. Raises NotFound."""
    _require(connection, name)
    return next(user for user in _shown(connection, "WHERE name = ?", (name,), now))


def list_users(connection: sqlite3.Connection, now: float) -> list[User]:
    """Every user, by name."""
    return _shown(connection, "ORDER BY name", (), now)


def _check_free(connection: sqlite3.Connection, name: str) -> None:
    if name in RESERVED:
        raise Forbidden(f"the name {name!r} is reserved", field="user_id")
    if _is_there(connection, name):
        raise Conflict(f"there is a user {name!r} already", field="user_id", user_id=name)


def _is_there(connection: sqlite3.Connection, name: str) -> bool:
    return connection.execute("SELECT 1 FROM users WHERE name = ?", (name,)).fetchone() is not None


def _deleted_at(connection: sqlite3.Connection, name: str) -> float | None:
    row = connection.execute("SELECT deleted_at FROM deleted_users WHERE name = ?", (name,)).fetchone()
    return None if row is None else row[0]


def _is_stored(connection: sqlite3.Connection, name: str) -> bool:
    """True where a namespace of the name holds anything that an export would."""
    own, below = own_namespaces(name)
    first = below.removesuffix("*")
    # The character after the dot: the namespaces between the two are those that begin with `first`.
    end = f"{first[:-1]}/"
    return any(
        connection.execute(
            f"SELECT 1 FROM {kind.table} WHERE ns = ? OR (ns >= ? AND ns < ?) LIMIT 1", (own, first, end)
        ).fetchone()
        for kind in KINDS.values()
    )


def _require(connection: sqlite3.Connection, name: str) -> None:
    if not _is_there(connection, name):
        raise NotFound(f"there is no user {name!r}", user_id=name)


def _shown(connection: sqlite3.Connection, rest: str, values: tuple[str, ...], now: float) -> list[User]:
    rows = connection.execute(
        f"SELECT name, scopes, namespaces, is_disabled, created_at, updated_at FROM users {rest}", values
    ).fetchall()
    return [
        User(
            user_id=name,
            scopes=json.loads(scopes),
            namespaces=json.loads(namespaces),
            disabled=bool(is_disabled),
            created_at=created_at,
            updated_at=updated_at,
            last_sign_in_at=families.last_sign_in(connection, name),
            failed_sign_ins=families.failures_since_success(connection, name),
            sessions=families.count_live(connection, name, now),
        )
        for name, scopes, namespaces, is_disabled, created_at, updated_at in rows
    ]
