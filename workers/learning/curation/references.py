"""What of MemoryHub an example rests on, and whether it is still there: asked over the bus; keeps nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple

from bus.client import Client
from schemas.bodies.items import DocGet, MemoryGetMany
from schemas.bodies.memory import AllFacts
from schemas.bodies.sessions import SessionGet
from schemas.errors import BadRequest, BusError, NotFound

log = logging.getLogger("olympus.learning")

Kind = Literal["memory", "fact", "doc", "session"]

_KINDS: Final[tuple[Kind, ...]] = ("memory", "fact", "doc")

# Where a bare id and a session are looked for.
_MEMORY_NS: Final = "memory"
SESSION_NS: Final = "session"

# Seconds one question to MemoryHub may take.
_ASK_S: Final = 5.0

# Ids in one `memory.get_many`, facts in a page: what their bodies allow. Their texts travel, too, so not more at once.
_PAGE: Final = 500

# Sessions and documents asked for side by side.
_AT_ONCE: Final = 16

# What a committed write did, by the `action` of `memory.changed.*`, to which kind of thing.
_GONE_BY_ACTION: Final[dict[str, Kind]] = {
    "delete": "memory",
    "expire": "memory",
    "forget": "fact",
    "doc_delete": "doc",
}


class Reference(NamedTuple):
    """One thing of MemoryHub."""

    kind: Kind
    ns: str
    id: str

    def __str__(self) -> str:
        return f"session {self.id}" if self.kind == "session" else f"{self.kind}/{self.ns}/{self.id}"


class Presence(NamedTuple):
    """missing: MemoryHub does not know them. unasked: it could not be asked."""

    missing: frozenset[Reference]
    unasked: frozenset[Reference]


def parse(memory_id: str) -> Reference:
    """`memory/NS/ID`, `fact/NS/KEY`, `doc/NS/ID`, or the bare id of a memory. Raises BadRequest naming what is wrong."""
    for kind in _KINDS:
        if memory_id.startswith(f"{kind}/"):
            ns, slash, name = memory_id.removeprefix(f"{kind}/").partition("/")
            if not (ns and slash and name):
                raise BadRequest(f"memory_ids holds {memory_id!r}, it must be {kind}/NS/ID", field="memory_ids")
            return Reference(kind, ns, name)
    return Reference("memory", _MEMORY_NS, memory_id)


def of_row(session_id: str, memory_ids: Sequence[str]) -> list[Reference]:
    """All references of one example. Raises BadRequest."""
    references = [parse(memory_id) for memory_id in memory_ids]
    return [*references, Reference("session", SESSION_NS, session_id)] if session_id else references


def gone(subject: str, body: Any) -> Reference | None:
    """What an event of MemoryHub says is gone, None where it says nothing of the kind."""
    if not isinstance(body, dict):
        return None
    if subject == "memory.session.closed":
        return Reference("session", SESSION_NS, str(body.get("session_id"))) if body.get("state") == "deleted" else None
    kind = _GONE_BY_ACTION.get(str(body.get("action")))
    return Reference(kind, str(body.get("ns")), str(body.get("key"))) if kind else None


class MemoryHub:
    """Asks what is there."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def presence(self, references: Collection[Reference]) -> Presence:
        """Which of them are gone, and which could not be asked for."""
        missing: set[Reference] = set()
        unasked: set[Reference] = set()
        for (kind, ns), ids in _grouped(references).items():
            try:
                known = await self._known(kind, ns, ids)
            except BusError as error:
                log.warning(
                    "MemoryHub cannot be asked",
                    extra={"action": "learning.memory.unasked", "kind": kind, "reason": error.message},
                )
                unasked.update(Reference(kind, ns, one) for one in ids)
            else:
                missing.update(Reference(kind, ns, one) for one in ids if one not in known)
        return Presence(frozenset(missing), frozenset(unasked))

    async def _known(self, kind: Kind, ns: str, ids: Sequence[str]) -> set[str]:
        match kind:
            case "memory":
                return await self._memories(ns, ids)
            case "fact":
                return await self._facts(ns, set(ids))
            case "doc":
                return await self._one_by_one(
                    "memory.doc.get", [(one, DocGet(doc_id=one, ns=ns, length=1)) for one in ids]
                )
            case "session":
                return await self._one_by_one(
                    "memory.session.get", [(one, SessionGet(session_id=one, ns=ns)) for one in ids]
                )

    async def _memories(self, ns: str, ids: Sequence[str]) -> set[str]:
        known: set[str] = set()
        at = 0
        while at < len(ids):
            part = list(ids[at : at + _PAGE])
            reply = await self._client.request(
                "memory.get_many", MemoryGetMany(ids=part, ns=ns, touch=False), timeout_s=_ASK_S
            )
            covered = part[: reply.next_after] if reply.next_after else part
            known.update(set(covered) - set(reply.missing))
            at += len(covered)
        return known

    async def _facts(self, ns: str, keys: set[str]) -> set[str]:
        known: set[str] = set()
        after: str | None = None
        while True:
            page = await self._client.request("memory.all", AllFacts(ns=ns, limit=_PAGE, after=after), timeout_s=_ASK_S)
            known.update(fact.key for fact in page.facts if fact.key in keys)
            after = page.next_after
            if after is None:
                return known

    async def _one_by_one(self, subject: str, questions: Sequence[tuple[str, Any]]) -> set[str]:
        known: set[str] = set()
        for start in range(0, len(questions), _AT_ONCE):
            part = questions[start : start + _AT_ONCE]
            answers = await asyncio.gather(*(self._is_there(subject, question) for _, question in part))
            known.update(one for (one, _), is_there in zip(part, answers, strict=True) if is_there)
        return known

    async def _is_there(self, subject: str, question: Any) -> bool:
        try:
            await self._client.request(subject, question, timeout_s=_ASK_S)
        except NotFound:
            return False
        return True


def _grouped(references: Iterable[Reference]) -> dict[tuple[Kind, str], list[str]]:
    grouped: dict[tuple[Kind, str], dict[str, None]] = {}
    for kind, ns, one in references:
        grouped.setdefault((kind, ns), {})[one] = None
    return {group: list(ids) for group, ids in grouped.items()}
