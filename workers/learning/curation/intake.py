"""Takes examples in: filters them, finds their fact and its side, and decides whether they may be learned from."""

from __future__ import annotations

import logging
import secrets
import sqlite3
import time
from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple

from bus.client import Client
from bus.records import Records
from bus.settings import LearningSettings
from schemas.bodies.accounts import TrustGet
from schemas.bodies.learning_data import RowEdit, RowInfo
from schemas.errors import BadRequest, BusError, Conflict
from workers.learning.curation import clusters, guards, store
from workers.learning.curation.drafts import UNRATED, UNTAUGHT, Draft, Taken, fault_of, texts_of
from workers.learning.curation.finder_process import FinderProcess
from workers.learning.curation.privacy import Cleaned, clean
from workers.learning.curation.references import MemoryHub, Presence, Reference, of_row

log = logging.getLogger("olympus.learning")

# Drafts filtered and written together: a transaction of them takes some 0.1 s, and others wait for the file meanwhile.
_TOGETHER: Final = 100

# Seconds to wait for somebody's trust: an answer takes a millisecond, and without one everybody is neutral.
_TRUST_S: Final = 0.5

# Seconds a trust is remembered for, and for which nobody is asked for after a question that was not answered.
_TRUST_KEPT_S: Final = 60.0

# People whose trust is remembered.
_PEOPLE_MAX: Final = 10_000


class _Ready(NamedTuple):
    """A draft with all that is known of it before the file is asked."""

    cleaned: Cleaned
    cause: str
    reason: str
    trust: float
    references: dict[Reference, str]


class Trust:
    """How far people are trusted, asked over the bus; neutral where nobody can say."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._known: dict[str, tuple[float, float]] = {}
        self._silent_until = 0.0

    async def of(self, user: str) -> float:
        """The mean of their trust, 0..1."""
        if not user:
            return guards.NEUTRAL_TRUST
        mean, until = self._known.get(user, (guards.NEUTRAL_TRUST, 0.0))
        now = time.monotonic()
        if now < max(until, self._silent_until):
            return mean
        try:
            mean = float(
                (await self._client.request("trust.get", TrustGet(user_id=user, history=0), timeout_s=_TRUST_S)).mean
            )
        except BusError as error:
            self._silent_until = time.monotonic() + _TRUST_KEPT_S
            log.info("trust is not known", extra={"action": "learning.trust.unknown", "reason": error.message})
            return mean
        if len(self._known) >= _PEOPLE_MAX:
            self._known.clear()
        self._known[user] = (mean, now + _TRUST_KEPT_S)
        return mean


class Intake:
    """Examples on their way into the store."""

    def __init__(
        self, records: Records, settings: LearningSettings, *, finders: FinderProcess, hub: MemoryHub, trust: Trust
    ) -> None:
        self._records = records
        self._settings = settings
        self._finders = finders
        self._hub = hub
        self._trust = trust

    async def add(self, drafts: Sequence[Draft]) -> list[Taken]:
        """What became of each, in their order. Nothing is kept before it was searched for secrets."""
        taken: list[Taken] = []
        for start in range(0, len(drafts), _TOGETHER):
            ready = await self._prepare(drafts[start : start + _TOGETHER])
            taken += await self._records.run(partial(self._keep, ready=ready, now=time.time()))
        return taken

    async def edit(self, request: RowEdit) -> RowInfo:
        """Put other texts in the place of an example's; they go through the same filters.

        Raises NotFound, Conflict for a removed one or a text that another example has, BadRequest for what is no example.
        """
        before = await self._records.run(
            lambda connection: store.read(connection, store.number_of(connection, request.row_id))
        )
        if before.state == "removed":
            raise Conflict(f"row {request.row_id!r} was removed, there is nothing left to edit", field="row_id")
        (ready,) = await self._prepare([_edited(before, request)])
        if isinstance(ready, Taken):
            raise BadRequest(ready.reason, field=_field_of(ready.reason))
        return await self._records.run(partial(self._rewrite, before=before, ready=ready))

    async def _prepare(self, drafts: Sequence[Draft]) -> list[_Ready | Taken]:
        references: list[list[Reference] | Taken] = [_references(draft) for draft in drafts]
        presence = await self._hub.presence({one for found in references if isinstance(found, list) for one in found})
        cleaned = await self._cleaned(
            [draft for draft, found in zip(drafts, references, strict=True) if isinstance(found, list)]
        )
        searched = iter(cleaned)
        ready: list[_Ready | Taken] = []
        for draft, found in zip(drafts, references, strict=True):
            if isinstance(found, Taken):
                ready.append(found)
                continue
            one = next(searched)
            forgotten = next((ref for ref in found if ref in presence.missing and ref.kind != "session"), None)
            if isinstance(one, Taken):
                ready.append(one)
            elif forgotten is not None:
                ready.append(Taken(outcome="refused", reason=f"MemoryHub does not know {forgotten} (any more)"))
            else:
                ready.append(await self._judged(one, draft.user, _states(found, presence)))
        return ready

    async def _judged(self, cleaned: Cleaned, user: str, references: dict[Reference, str]) -> _Ready:
        trust = await self._trust.of(user)
        if cleaned.quarantine:
            return _Ready(cleaned, "privacy", cleaned.quarantine, trust, references)
        control = guards.control_token(texts_of(cleaned.draft))
        if control:
            return _Ready(cleaned, "control tokens", control, trust, references)
        return _Ready(cleaned, "", cleaned.note, trust, references)

    async def _cleaned(self, drafts: Sequence[Draft]) -> list[Cleaned | Taken]:
        texts = [list(texts_of(draft).values()) for draft in drafts]
        try:
            found = iter(await self._finders.find([text for some in texts for text in some]) if texts else [])
        except BusError as error:
            # What was not searched must not be kept. Handing it in again is safe.
            log.warning("examples not searched", extra={"action": "learning.rows.unsearched", "reason": error.message})
            return [Taken(outcome="refused", reason=error.message) for _ in drafts]
        return [clean(draft, [next(found) for _ in some]) for draft, some in zip(drafts, texts, strict=True)]

    def _keep(self, connection: sqlite3.Connection, ready: Sequence[_Ready | Taken], now: float) -> list[Taken]:
        return [one if isinstance(one, Taken) else self._keep_one(connection, one, now) for one in ready]

    def _keep_one(self, connection: sqlite3.Connection, ready: _Ready, now: float) -> Taken:
        draft = ready.cleaned.draft
        texts = store.texts_of(draft)
        buried = store.tombstone(connection, texts.content, draft.user) or store.buried_evidence(
            connection, draft.evidence
        )
        if buried:
            return Taken(outcome="refused", reason=f"it was taken out before: {buried}")
        known = store.known(connection, draft.model, texts.content)
        if known is not None:
            number, row_id, split, _ = known
            store.support(connection, number, draft, ready.trust)
            _judge(connection, draft.model, texts.context)
            return Taken(outcome="duplicate", row_id=row_id, split=split)
        number = store.next_number(connection)
        place = clusters.place(
            connection,
            number,
            texts.likeness,
            held_share=self._held_share(draft),
            must_be_held=draft.is_retention,
            evidence=draft.evidence if draft.kind in {"feedback", "exchange"} else (),
        )
        cause, reason = ready.cause, ready.reason
        if not cause and self._is_flood(connection, ready, now):
            cause, reason = "flood", f"more than {guards.FLOOD_ROWS} examples of one person within an hour"
        if place.conflict and not cause:
            cause, reason = store.SPLIT, place.conflict
        new = store.New(
            row_id=f"row-{secrets.token_hex(8)}",
            draft=draft,
            split=_split(draft, is_held=place.is_held),
            cluster=place.cluster,
            state="quarantined" if cause else "ready",
            cause=cause,
            reason=reason,
            created_at=now,
            weight=ready.trust,
            references=ready.references,
        )
        store.insert(connection, number, new, texts)
        if not place.conflict:
            clusters.keep(connection, number, texts.likeness)
        _judge(connection, draft.model, texts.context)
        row = store.read(connection, number)
        return Taken(
            outcome="added" if row.state == "ready" else "quarantined",
            row_id=row.row_id,
            reason=row.reason,
            split=row.split,
        )

    def _rewrite(self, connection: sqlite3.Connection, before: RowInfo, ready: _Ready) -> RowInfo:
        number = store.number_of(connection, before.row_id)
        if store.read(connection, number) != before:
            raise Conflict(f"row {before.row_id!r} was changed or erased meanwhile; look at it again", field="row_id")
        texts = store.texts_of(ready.cleaned.draft)
        if store.tombstone(connection, texts.content, before.user):
            raise Conflict(f"what row {before.row_id!r} would say then was taken out before", field="row_id")
        known = store.known(connection, before.model, texts.content)
        if known is not None and known[0] != number:
            raise Conflict(f"row {known[1]!r} says the same already", field="row_id")
        (context,) = connection.execute("SELECT context FROM examples WHERE number = ?", (number,)).fetchone()
        clusters.drop(connection, number)
        place = clusters.place(
            connection, number, texts.likeness, held_share=self._settings.held_out_share, own=before.cluster
        )
        store.rewrite(connection, number, texts)
        cause, reason = ready.cause, ready.reason
        if place.conflict and not cause:
            cause, reason = store.SPLIT, place.conflict
        store.set_state(connection, number, "quarantined" if cause else "ready", cause, reason)
        if not place.conflict:
            clusters.keep(connection, number, texts.likeness)
        store.mark_stale(connection, [number], "examples in it were edited")
        for asked in {context, texts.context}:
            _judge(connection, before.model, asked)
        return store.read(connection, number)

    def _held_share(self, draft: Draft) -> float:
        if draft.kind == UNRATED:
            return 0.0
        return self._settings.retention_share if draft.kind == "exchange" else self._settings.held_out_share

    def _is_flood(self, connection: sqlite3.Connection, ready: _Ready, now: float) -> bool:
        user = ready.cleaned.draft.user
        if not user:
            return False
        recent, has_others = store.recent_rows(connection, user, now - guards.FLOOD_S)
        return guards.is_flood(recent, trust=ready.trust, has_others=has_others)


def _references(draft: Draft) -> list[Reference] | Taken:
    fault = fault_of(draft) or ("" if draft.model else "model is empty, it must be the name of a base model")
    try:
        return Taken(outcome="refused", reason=fault) if fault else of_row(draft.session_id, draft.memory_ids)
    except BadRequest as error:
        return Taken(outcome="refused", reason=error.message)


def _states(references: Sequence[Reference], presence: Presence) -> dict[Reference, str]:
    # A session that MemoryHub never had cannot be forgotten there; one that it has is looked for again.
    return {
        one: "unasked" if one in presence.unasked else "unknown" if one in presence.missing else "known"
        for one in references
    }


def _split(draft: Draft, *, is_held: bool) -> str:
    if draft.kind in UNTAUGHT or draft.is_retention:
        return "retention" if is_held else "replay"
    return "held_out" if is_held else "train"


def _edited(row: RowInfo, request: RowEdit) -> Draft:
    return Draft(
        model=row.model,
        kind=row.kind,
        answer=row.answer if request.answer is None else request.answer,
        messages=row.messages if request.messages is None else request.messages,
        prompt=row.prompt if request.prompt is None else request.prompt,
        rejected=row.rejected if request.rejected is None else request.rejected or None,
        user=row.user,
    )


def _field_of(reason: str) -> str:
    """The field that a fault begins with, the answer where it is about all of them."""
    named = reason.partition(" ")[0]
    return named if named.partition("[")[0] in ("messages", "prompt", "answer", "rejected") else "answer"


def _judge(connection: sqlite3.Connection, model: str, context: str) -> None:
    """Keep out, or let in again, the answers to one question that others contradict."""
    found = store.claims(connection, model, context)
    if len(found) < 2 and not any(cause == "contradiction" for _, _, cause in found):
        return
    counted = [claim for claim, state, cause in found if state == "ready" or cause == "contradiction"]
    wrong = guards.contradicted(counted)
    causes = {claim.number: cause for claim, _, cause in found}
    for claim in counted:
        if causes[claim.number] == store.RELEASED:
            continue
        if claim.number in wrong:
            store.set_state(connection, claim.number, "quarantined", "contradiction", wrong[claim.number])
        elif causes[claim.number] == "contradiction":
            store.set_state(connection, claim.number, "ready", "", "")
