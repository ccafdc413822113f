"""Context groups: named sets of memories.

A memory may be put in before it exists; what does not exist is neither listed nor counted.
"""

from __future__ import annotations

import sqlite3
from typing import Any, Final

from schemas.bodies.items import (
    Group,
    GroupAdd,
    GroupChanged,
    GroupCreate,
    GroupDelete,
    GroupList,
    GroupMembers,
    GroupRemove,
    Groups,
    Memories,
)
from schemas.errors import NotFound
from workers.memory.items import rows
from workers.memory.items.removal import expire_if_due
from workers.memory.outcome import Outcome, changed

# What a reply carries beside the texts of a group. Generous.
_GROUP_OVERHEAD_BYTES: Final = 256

_LIVE_MEMBERS: Final = (
    "FROM group_members JOIN memories ON memories.ns = group_members.ns AND memories.id = group_members.memory_id"
    f" AND {rows.IS_LIVE} WHERE group_members.group_id = "
)


def create(connection: sqlite3.Connection, request: GroupCreate, now: float) -> Outcome:
    """Make a group; several may have one name."""
    group_id = connection.execute(
        "INSERT INTO context_groups (ns, name, description, created_at) VALUES (?, ?, ?, ?)",
        (request.ns, request.name, request.description, now),
    ).lastrowid
    assert group_id is not None
    group = Group(group_id=group_id, ns=request.ns, name=request.name, description=request.description, created_at=now)
    return Outcome(group, [changed(request.ns, str(group_id), "group_create")])


def add(connection: sqlite3.Connection, request: GroupAdd, now: float) -> Outcome:
    """Put a memory in. Raises NotFound for an unknown group."""
    _require(connection, request.ns, request.group_id)
    events = expire_if_due(connection, request.ns, [request.memory_id], now)
    cursor = connection.execute(
        "INSERT INTO group_members (group_id, ns, memory_id) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        (request.group_id, request.ns, request.memory_id),
    )
    if cursor.rowcount:
        events.append(changed(request.ns, request.memory_id, "group_add"))
    return Outcome(GroupChanged(group_id=request.group_id, changed=cursor.rowcount > 0), events)


def remove(connection: sqlite3.Connection, request: GroupRemove, now: float) -> Outcome:
    """Take a memory out. Raises NotFound for an unknown group."""
    _require(connection, request.ns, request.group_id)
    events = expire_if_due(connection, request.ns, [request.memory_id], now)
    cursor = connection.execute(
        "DELETE FROM group_members WHERE group_id = ? AND memory_id = ?", (request.group_id, request.memory_id)
    )
    if cursor.rowcount:
        events.append(changed(request.ns, request.memory_id, "group_remove"))
    return Outcome(GroupChanged(group_id=request.group_id, changed=cursor.rowcount > 0), events)


def delete(connection: sqlite3.Connection, request: GroupDelete) -> Outcome:
    """Delete a group, not its memories."""
    where = (request.ns, request.group_id)
    cursor = connection.execute("DELETE FROM context_groups WHERE ns = ? AND group_id = ?", where)
    connection.execute("DELETE FROM group_members WHERE ns = ? AND group_id = ?", where)
    is_gone = cursor.rowcount > 0
    events = [changed(request.ns, str(request.group_id), "group_delete")] if is_gone else []
    return Outcome(GroupChanged(group_id=request.group_id, changed=is_gone), events)


def members(connection: sqlite3.Connection, request: GroupMembers, now: float, page_bytes: int) -> Memories:
    """A page of a group's memories in the order they were put in. Raises NotFound."""
    _require(connection, request.ns, request.group_id)
    found = connection.execute(
        f"SELECT memories.sequence, group_members.sequence {_LIVE_MEMBERS} ? AND group_members.sequence > ?"
        " ORDER BY group_members.sequence LIMIT ?",
        (now, request.group_id, request.after or 0, request.limit + 1),
    ).fetchall()
    page = rows.by_sequence(connection, (sequence for sequence, _ in found), page_bytes, request.limit)
    is_cut = len(page.items) < len(found)
    return Memories(memories=page.items, next_after=found[len(page.items) - 1][1] if is_cut else None)


def list_groups(connection: sqlite3.Connection, request: GroupList, now: float, page_bytes: int) -> Groups:
    """A page of groups in the order they were made."""
    page: rows.Page[Group] = rows.Page(request.limit, page_bytes)
    found = connection.execute(
        "SELECT group_id, name, description, created_at FROM context_groups WHERE ns = ? AND group_id > ?"
        " ORDER BY group_id LIMIT ?",
        (request.ns, request.after or 0, request.limit + 1),
    )
    for group_id, name, description, created_at in found.fetchall():
        size_bytes = _GROUP_OVERHEAD_BYTES + len(name.encode()) + len(description.encode())
        if not page.has_room_for(size_bytes):
            return Groups(groups=page.items, next_after=page.items[-1].group_id)
        group = Group(
            group_id=group_id,
            ns=request.ns,
            name=name,
            description=description,
            created_at=created_at,
            members=_count(connection, group_id, now),
        )
        page.add(group, size_bytes)
    return Groups(groups=page.items)


def _require(connection: sqlite3.Connection, ns: str, group_id: int) -> None:
    found: Any = connection.execute(
        "SELECT 1 FROM context_groups WHERE ns = ? AND group_id = ?", (ns, group_id)
    ).fetchone()
    if found is None:
        raise NotFound(f"no group {group_id} in namespace {ns!r}", ns=ns, group_id=group_id)


def _count(connection: sqlite3.Connection, group_id: int, now: float) -> int:
    (count,) = connection.execute(f"SELECT count(*) {_LIVE_MEMBERS} ?", (now, group_id)).fetchone()
    return int(count)
