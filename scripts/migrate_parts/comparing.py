"""What is there now, to compare records with: exports of the memory service, read once by namespace and kind."""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from bus.sync import SyncClient
from schemas.bodies.upkeep import MemoryExport, NewRecord
from workers.memory.upkeep.kinds import KINDS

_TIMEOUT_S: Final = 1_200.0

# Seconds within which two ends of a life are the same: Redis tells what is left, in whole seconds.
_SAME_END_S: Final = 2.0

# Fields that live on: reading counts, the life cycle ages, importing gives versions. No difference of a migration.
_LIVING: Final[dict[str, frozenset[str]]] = {
    "memory": frozenset({"access_count", "last_accessed_at", "decayed_at", "updated_at", "version"}),
    "kv": frozenset({"version", "created_at", "updated_at"}),
    "document": frozenset({"version"}),
    "experience": frozenset({"access_count", "last_accessed_at"}),
    "session": frozenset({"last_used_at"}),
}


_pack: Final = msgspec.msgpack.Encoder().encode
_unpack: Final = msgspec.msgpack.Decoder(dict[str, Any]).decode


class Exported:
    """Records as they are now."""

    def __init__(self, client: SyncClient) -> None:
        self._client = client
        # Packed: a hundred thousand memories as objects take four times the room.
        self._known: dict[tuple[str, str], dict[tuple[Any, ...], bytes]] = {}

    def difference(self, record: NewRecord) -> str | None:
        """None where the record is there as it should be, else what differs."""
        found = self._of(record.ns, record.kind).get(_key(record.kind, record.data))
        if found is None:
            return "not there"
        there = _unpack(found)
        living = _LIVING.get(record.kind, frozenset())
        for name, value in record.data.items():
            if name not in living and not _is_same(name, there.get(name), value):
                return f"{name} is {_short(there.get(name))}, in the old store {_short(value)}"
        return None

    def _of(self, ns: str, kind: str) -> dict[tuple[Any, ...], bytes]:
        known = self._known.get((ns, kind))
        if known is None:
            known = self._known[ns, kind] = {}
            export = MemoryExport(ns=ns, kinds=[kind])  # type: ignore[list-item]
            with self._client.stream("memory.export", export, timeout_s=_TIMEOUT_S) as parts:
                for part in parts:
                    for record in part.records:
                        _take(known, kind, record.data)
        return known


def _take(known: dict[tuple[Any, ...], bytes], kind: str, data: dict[str, Any]) -> None:
    """Keep a record, or put the parts that go on to it."""
    key, parts = _key(kind, data), KINDS[kind].parts
    if parts is not None and data.get("continues") and key in known:
        whole = _unpack(known[key])
        data = {**whole, parts.field: [*whole[parts.field], *data[parts.field]]}
    known[key] = _pack(data)


def _key(kind: str, data: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(data.get(name) for name in KINDS[kind].key)


def _is_same(name: str, there: Any, wanted: Any) -> bool:
    if name == "expires_at" and isinstance(there, float | int) and isinstance(wanted, float | int):
        return abs(there - wanted) <= _SAME_END_S
    return bool(there == wanted) or _is_same_value(there, wanted)


def _is_same_value(there: Any, wanted: Any) -> bool:
    """As `==`, but a NaN is itself."""
    if isinstance(there, float) and isinstance(wanted, float):
        return there == wanted or (math.isnan(there) and math.isnan(wanted))
    if isinstance(there, dict) and isinstance(wanted, dict):
        return there.keys() == wanted.keys() and all(_is_same_value(there[key], wanted[key]) for key in there)
    if isinstance(there, list) and isinstance(wanted, list):
        return len(there) == len(wanted) and all(map(_is_same_value, there, wanted))
    return bool(there == wanted)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
