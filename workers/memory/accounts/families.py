"""Sign-ins and their refresh tokens: the statements, each inside a transaction that its caller owns.

A sign-in begins a family. Its refresh token is traded, once, for the next one; a token that comes a second time was
stolen or its thief was faster, nobody can tell which, so the whole family ends (RFC 9700, section 4.14.2). The access
tokens of a family name it and end with it.
"""

from __future__ import annotations

import sqlite3
from typing import Final, NamedTuple

from schemas.bodies.accounts import AuthRevoked
from workers.memory.outcome import Event, Outcome

# Rows of the record of sign-ins kept, the newest. A flood of failures must not fill the disk.
SIGN_INS_MAX: Final = 100_000

# Seconds an ended family is kept, so that a stolen token used late is still told from one that never was.
ENDED_S: Final = 7 * 86_400.0


class Family(NamedTuple):
    """One sign-in; `expires_at` moves on with each refresh."""

    family: str
    user: str
    expires_at: float
    is_revoked: bool


class Refreshed(NamedTuple):
    """What became of a refresh token: the family it goes on with, or why it does not."""

    family: Family | None
    problem: str = ""


def begin(connection: sqlite3.Connection, family: Family, kid: str, token_hash: bytes | None, now: float) -> None:
    """Begin a family, with its first refresh token if it gets one."""
    connection.execute(
        "INSERT INTO token_families (family, user, kid, created_at, expires_at) VALUES (?, ?, ?, ?, ?)",
        (family.family, family.user, kid, now, family.expires_at),
    )
    if token_hash is not None:
        connection.execute(
            "INSERT INTO tokens (hash, family, issued_at) VALUES (?, ?, ?)", (token_hash, family.family, now)
        )


def find(connection: sqlite3.Connection, family: str) -> Family | None:
    """The family called so."""
    row = connection.execute(
        "SELECT family, user, expires_at, revoked_at IS NOT NULL FROM token_families WHERE family = ?", (family,)
    ).fetchone()
    return None if row is None else Family(row[0], row[1], row[2], bool(row[3]))


def family_of(connection: sqlite3.Connection, token_hash: bytes) -> Family | None:
    """The family of a refresh token."""
    row = connection.execute("SELECT family FROM tokens WHERE hash = ?", (token_hash,)).fetchone()
    return None if row is None else find(connection, row[0])


def is_traded(connection: sqlite3.Connection, token_hash: bytes) -> bool:
    """True for a refresh token in whose place there is another one."""
    row = connection.execute("SELECT used_at FROM tokens WHERE hash = ?", (token_hash,)).fetchone()
    return row is not None and row[0] is not None


def ended(family: Family, now: float) -> str:
    """Why a sign-in is over, "revoked" or "expired"; "" while it lasts."""
    if family.is_revoked:
        return "revoked"
    return "expired" if family.expires_at <= now else ""


class Trade(NamedTuple):
    """One refresh: the hashes of the old and the new token, who asks, and how long the family then lasts."""

    old_hash: bytes
    new_hash: bytes
    request_id: bytes
    expires_at: float
    kid: str


def refresh(connection: sqlite3.Connection, trade: Trade, source: str, now: float) -> Outcome:
    """Trade a refresh token for the next; the reply is Refreshed, also for a refusal, so that what it did is kept.

    The same request again, its reply lost, gets another successor in the place of the first one.
    """
    row = connection.execute("SELECT family, used_at, used_by FROM tokens WHERE hash = ?", (trade.old_hash,)).fetchone()
    family = None if row is None else find(connection, row[0])
    if row is None or family is None:
        return Outcome(Refreshed(None, "unknown"), [])
    if problem := ended(family, now):
        return Outcome(Refreshed(None, problem), [])
    if row[1] is not None and not _may_repeat(connection, trade, row[2]):
        note(connection, family.user, source, "reused", now)
        return Outcome(Refreshed(None, "reused"), revoke(connection, family.family, "refresh token reused", now))
    connection.execute(
        "UPDATE tokens SET used_at = ?, used_by = ? WHERE hash = ?", (now, trade.request_id, trade.old_hash)
    )
    connection.execute(
        "INSERT INTO tokens (hash, family, parent, issued_at) VALUES (?, ?, ?, ?)",
        (trade.new_hash, family.family, trade.old_hash, now),
    )
    connection.execute(
        "UPDATE token_families SET expires_at = ?, kid = ? WHERE family = ?",
        (trade.expires_at, trade.kid, family.family),
    )
    note(connection, family.user, source, "refreshed", now)
    return Outcome(Refreshed(family._replace(expires_at=trade.expires_at)), [])


def _may_repeat(connection: sqlite3.Connection, trade: Trade, used_by: bytes | None) -> bool:
    """True when the same request comes again and what it got has not been used; takes that back."""
    if used_by != trade.request_id:
        return False
    taken_back = connection.execute("DELETE FROM tokens WHERE parent = ? AND used_at IS NULL", (trade.old_hash,))
    return taken_back.rowcount > 0


def revoke(connection: sqlite3.Connection, family: str, reason: str, now: float) -> list[Event]:
    """End one family; the event to tell, none where it had ended."""
    row = connection.execute(
        "UPDATE token_families SET revoked_at = ?, reason = ? WHERE family = ? AND revoked_at IS NULL RETURNING user",
        (now, reason, family),
    ).fetchone()
    return [] if row is None else [Event("auth.revoked", AuthRevoked(user_id=row[0], reason=reason))]


def revoke_all(connection: sqlite3.Connection, user: str, reason: str, now: float) -> int:
    """End every family of a user; how many were alive."""
    return connection.execute(
        "UPDATE token_families SET revoked_at = ?, reason = ? WHERE user = ? AND revoked_at IS NULL AND expires_at > ?",
        (now, reason, user, now),
    ).rowcount


def count_live(connection: sqlite3.Connection, user: str, now: float) -> int:
    """Sign-ins of a user that still last."""
    count: int = connection.execute(
        "SELECT count(*) FROM token_families WHERE user = ? AND revoked_at IS NULL AND expires_at > ?", (user, now)
    ).fetchone()[0]
    return count


def kids_in_use(connection: sqlite3.Connection, now: float) -> set[str]:
    """Keys that signed an access token of a family which still lasts."""
    rows = connection.execute(
        "SELECT DISTINCT kid FROM token_families WHERE revoked_at IS NULL AND expires_at > ?", (now,)
    )
    return {kid for (kid,) in rows}


# The record of sign-ins -----------------------------------------------------------------------------------------


def note(connection: sqlite3.Connection, user: str, source: str, outcome: str, now: float) -> None:
    """Write down a sign-in or what became of one."""
    connection.execute(
        "INSERT INTO sign_ins (at, user, source, outcome) VALUES (?, ?, ?, ?)", (now, user, source, outcome)
    )


def last_sign_in(connection: sqlite3.Connection, user: str) -> float | None:
    """When the user last gave the right password."""
    row = connection.execute(
        "SELECT at FROM sign_ins WHERE user = ? AND outcome = 'ok' ORDER BY sequence DESC LIMIT 1", (user,)
    ).fetchone()
    return None if row is None else row[0]


def failures_since_success(connection: sqlite3.Connection, user: str) -> int:
    """Wrong passwords since the last right one."""
    count: int = connection.execute(
        "SELECT count(*) FROM sign_ins WHERE user = ? AND outcome = 'failed' AND sequence >"
        " (SELECT coalesce(max(sequence), 0) FROM sign_ins WHERE user = ? AND outcome = 'ok')",
        (user, user),
    ).fetchone()[0]
    return count


def newest(connection: sqlite3.Connection) -> float:
    """When the last sign-in was written down; 0.0 when none was. Time never was earlier than that."""
    row = connection.execute("SELECT at FROM sign_ins ORDER BY sequence DESC LIMIT 1").fetchone()
    return 0.0 if row is None else row[0]


def prune(connection: sqlite3.Connection, now: float, *, traded_s: float) -> Outcome:
    """Forget what nobody needs any more; the reply is how many rows went.

    Families that ended long ago, the oldest of too many sign-ins, and refresh tokens traded in more than `traded_s`
    seconds ago: by then they would have expired, and a sign-in that lasts for years must not gather them.
    """
    families = connection.execute(
        "DELETE FROM token_families WHERE expires_at < ? OR revoked_at < ?", (now - ENDED_S, now - ENDED_S)
    ).rowcount
    sign_ins = connection.execute(
        "DELETE FROM sign_ins WHERE sequence <= (SELECT max(sequence) FROM sign_ins) - ?", (SIGN_INS_MAX,)
    ).rowcount
    tokens = connection.execute("DELETE FROM tokens WHERE used_at < ?", (now - traded_s,)).rowcount
    return Outcome(families + sign_ins + tokens, [])
