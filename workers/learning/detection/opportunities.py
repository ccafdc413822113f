"""Opportunities: what a model could learn, from which evidence, and what is to be done first; notices nothing itself."""

from __future__ import annotations

import asyncio
import logging
import secrets
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Literal

from bus.records import Records
from bus.settings import LearningSettings
from schemas.bodies import learning as bodies
from schemas.bodies.learning import Opportunity
from schemas.errors import BusError, Conflict, NotFound
from workers.learning.detection import store
from workers.learning.detection.calibration import MANUAL
from workers.learning.detection.found import Found
from workers.learning.detection.priority import S_PER_EXAMPLE, priority_of, terms_of
from workers.learning.detection.store import Row, Sums
from workers.learning.detection.topics import ANSWERS, Known, Topic, features_of, match
from workers.learning.exchanges.words import question_of, words_of

log = logging.getLogger("olympus.learning")

# Sum of the chances that something was wrong from which an opportunity is told of: what one person says once is not
# enough, what is said twice is.
_WORTHWHILE: Final = 1.0

# Open opportunities of one model; past it those seen longest ago expire. Each new evidence is compared with all of them.
_OPEN_MAX: Final = 2_000

# Seconds between two looks at what is too old and what nobody was told of yet.
_UPKEEP_S: Final = 30.0

_DAY_S: Final = 86_400.0

# Kinds whose words are about a title, not a question.
_OWN_FAMILIES: Final = ("error", "drift")

Examples = Callable[[Sequence[str]], Awaitable[dict[str, int]]]
Publish = Callable[[str, Any], Awaitable[None]]


class Opportunities:
    """`start` when the records are open.

    examples: how many rows of each opportunity are ready to learn from. add_examples: hands examples to curation.
    """

    def __init__(
        self, settings: LearningSettings, records: Records, *, default_model: str, examples: Examples, publish: Publish
    ) -> None:
        self._settings = settings
        self._records = records
        self._default_model = default_model
        self._examples = examples
        self._publish = publish
        self._known: dict[str, Known] = {}
        self._changing = asyncio.Lock()
        self._wakes = asyncio.Event()
        self._upkeep: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read back what is open or dismissed."""
        found = await self._records.run(lambda c: store.rows(c, "state IN ('open', 'dismissed')"))
        self._known = {row.opportunity_id: _known(row) for row in found}
        self._wakes.set()
        self._upkeep = asyncio.ensure_future(self._keep_up())

    async def stop(self) -> None:
        """End the upkeep."""
        if self._upkeep is not None:
            self._upkeep.cancel()
            await asyncio.gather(self._upkeep, return_exceptions=True)

    # Operations -----------------------------------------------------------------------------------------------------

    async def list_all(self, request: bodies.OpportunityList) -> bodies.Opportunities:
        """The highest priority first."""
        where, values = ["state IN ('open', 'training')"], list[object]()
        if request.state is not None:
            where, values = ["state = ?"], [request.state]
        for field in ("model", "kind", "category"):
            value = getattr(request, field)
            if value is not None:
                where.append(f"{field} = ?")
                values.append(value)
        found = await self._shown(await self._records.run(lambda c: store.rows(c, " AND ".join(where), values)))
        return bodies.Opportunities(opportunities=found[: request.limit], total=len(found))

    async def get(self, opportunity_id: str) -> Opportunity:
        """One opportunity, by its id or a name it was told of under. Raises NotFound."""
        return (await self._shown([await self._row(opportunity_id)]))[0]

    async def add(self, request: bodies.OpportunityAdd) -> Opportunity:
        """Note what somebody tells of; what resembles a known one joins it. Its examples are the caller's to hand in.

        The answer may be a dismissed one: what resembles it is not brought up again.
        """
        model = request.model or self._default_model
        if request.opportunity_id is not None:
            known = await self._records.run(lambda c: store.get(c, str(request.opportunity_id)))
            if known is not None:
                return await self.get(known.opportunity_id)
        weight = MANUAL if request.score is None else request.score
        now = time.time()
        asked = [(one.messages, one.prompt) for one in request.examples]
        questions = [features_of(words_of(*one), question_of(*one)) for one in asked]
        questions = questions or [features_of(words_of([], request.title), request.title)]
        evidence = request.evidence or [f"told-{secrets.token_hex(6)}"]
        found = [
            Found(
                model=model,
                kind=request.kind,
                id=id,
                at=now,
                note=request.title,
                weight=weight,
                words=questions[at % len(questions)],
                family=request.kind if request.kind in _OWN_FAMILIES else ANSWERS,
            )
            for at, id in enumerate(evidence)
        ]
        joined = await self._note(found, Topic.of(questions), request)
        return await self.get(joined)

    async def dismiss(self, request: bodies.OpportunityDismiss) -> Opportunity:
        """Take an opportunity off the list for good. Raises NotFound, Conflict for one in training."""
        return await self._settle(request.opportunity_id, "dismissed", request.reason)

    async def close(self, request: bodies.OpportunityClose) -> Opportunity:
        """Note that it was dealt with elsewhere. Raises NotFound, Conflict for one in training."""
        return await self._settle(request.opportunity_id, "learned", request.reason)

    async def _settle(self, name: str, state: Literal["dismissed", "learned"], reason: str) -> Opportunity:
        async with self._changing:
            row = await self._row(name)
            if row.state == "training":
                raise Conflict(
                    f"{row.opportunity_id} is being trained by {row.job_id}; stop that first", job_id=row.job_id
                )
            row.state, row.reason = state, reason
            await self._put(row)
        return await self.get(row.opportunity_id)

    # For the jobs ---------------------------------------------------------------------------------------------------

    async def ready(self, min_examples: int) -> list[Opportunity]:
        """Open opportunities that have so many examples each, the highest priority first."""
        rows = await self._records.run(lambda c: store.rows(c, "state = 'open'"))
        return [one for one in await self._shown(rows) if one.examples >= min_examples]

    async def together(self, min_examples: int) -> list[list[Opportunity]]:
        """What could be trained unasked, the highest priority first: each that has enough examples by itself, and of a
        model the others in one, where they have enough together."""
        rows = await self._records.run(lambda c: store.rows(c, "state = 'open'"))
        alone: list[list[Opportunity]] = []
        rest: dict[str, list[Opportunity]] = {}
        for one in await self._shown(rows):
            if one.examples >= min_examples:
                alone.append([one])
            elif one.examples:
                rest.setdefault(one.model, []).append(one)
        groups = [*alone, *(some for some in rest.values() if sum(one.examples for one in some) >= min_examples)]
        return sorted(groups, key=lambda group: -group[0].priority)

    async def mark(
        self,
        opportunity_ids: Sequence[str],
        state: Literal["training", "learned", "open"],
        *,
        job_id: str,
        reason: str = "",
    ) -> None:
        """Say what became of opportunities; unknown and dismissed ones are passed over."""
        async with self._changing:
            for opportunity_id in opportunity_ids:
                row = await self._records.run(lambda c, id=opportunity_id: store.get(c, id))  # type: ignore[misc]
                if row is None or row.state == "dismissed":
                    continue
                row.state, row.job_id, row.reason = state, job_id, reason
                await self._put(row)

    async def note_cost(self, model: str, examples: int, took_s: float) -> None:
        """A job of so many examples took so long; the cost of those to come is estimated from it."""
        if examples > 0 and took_s > 0:
            await self._records.run(lambda c: store.note_cost(c, model, took_s / examples))

    # For detection --------------------------------------------------------------------------------------------------

    async def note(self, found: Sequence[Found]) -> list[str]:
        """Add pieces of evidence; the opportunity of each, "" where it resembles a dismissed one."""
        return [await self._note([one], Topic.of([one.words]), None) for one in found]

    async def _note(self, found: Sequence[Found], topic: Topic, told: bodies.OpportunityAdd | None) -> str:
        """Add evidence of one topic. Of what is dismissed nothing is noted; who told of it by hand hears its id."""
        first = found[0]
        async with self._changing:
            owner = await self._records.run(lambda c: store.owner_of(c, first.id, first.kind))
            if owner:
                return owner
            known = match(self._known.values(), first.model, first.family, topic)
            if known is not None and known.is_dismissed:
                return known.opportunity_id if told is not None else ""
            row = await self._row(known.opportunity_id) if known is not None else _new(first, told)
            topic_then = Topic.from_json(row.topic)
            for one in found:
                topic_then.add(one.words)
            row.topic = topic_then.to_json()
            row.last_seen_at = max(row.last_seen_at, *(one.at for one in found))
            if known is not None and store.is_more_telling(first.kind, row.kind):
                row.kind, row.title = first.kind, _title(first.kind, first.note)
            await self._records.run(lambda c: _add(c, row, found, told))
            self._known[row.opportunity_id] = _known(row)
        if row.found_at is not None and not row.is_told:
            self._wakes.set()
        return row.opportunity_id

    async def answered(self, ids: Sequence[str]) -> None:
        """Somebody said what is right for these pieces of evidence."""
        await self._records.run(lambda c: store.answered(c, ids))

    async def forget(self, ids: Sequence[str], user: str = "") -> None:
        """Delete pieces of evidence, also all on questions of `user`, with all that was made of their words; an opportunity
        without any goes, too."""
        async with self._changing:
            changed = await self._records.run(lambda c: _forget(c, ids, user))
            for opportunity_id, row in changed.items():
                self._known.pop(opportunity_id, None)
                if row is not None and row.state in ("open", "dismissed"):
                    self._known[opportunity_id] = _known(row)

    # Inside ---------------------------------------------------------------------------------------------------------

    async def _row(self, name: str) -> Row:
        row = await self._records.run(lambda c: store.get(c, name))
        if row is None:
            raise NotFound(f"no opportunity {name!r}; learning.opportunity.list tells those there are", name=name)
        return row

    async def _put(self, row: Row) -> None:
        await self._records.run(lambda c: store.put(c, row))
        self._known.pop(row.opportunity_id, None)
        if row.state in ("open", "dismissed"):
            self._known[row.opportunity_id] = _known(row)

    async def _shown(self, rows: Sequence[Row]) -> list[Opportunity]:
        """As others see them, the highest priority first."""
        ids = [row.opportunity_id for row in rows]
        if not ids:
            return []
        examples = await self._examples(ids)
        sums, costs, evidence = await self._records.run(
            lambda c: (store.sums(c, ids), store.costs(c), {id: store.evidence(c, id) for id in ids})
        )
        shown = [
            self._opportunity(
                row,
                sums[row.opportunity_id],
                evidence[row.opportunity_id],
                examples.get(row.opportunity_id, 0),
                costs.get(row.model, S_PER_EXAMPLE),
            )
            for row in rows
        ]
        return sorted(shown, key=lambda one: (-one.priority, -one.last_seen_at, one.opportunity_id))

    def _opportunity(
        self, row: Row, sums: Sums, evidence: list[bodies.Evidence], examples: int, s_per_example: float
    ) -> Opportunity:
        terms = terms_of(
            weight=sums.weight,
            count=sums.count,
            age_s=time.time() - row.last_seen_at,
            examples=max(examples, self._settings.min_examples),
            s_per_example=s_per_example,
        )
        return Opportunity(
            opportunity_id=row.opportunity_id,
            model=row.model,
            kind=row.kind,
            title=row.title,
            state=row.state,
            priority=priority_of(terms),
            terms=terms,
            evidence=evidence,
            count=sums.count,
            examples=examples,
            created_at=row.created_at,
            last_seen_at=row.last_seen_at,
            expires_at=row.last_seen_at + self._settings.keep_days * _DAY_S,
            needs=self._needs(row, sums, examples) if row.state == "open" else "",
            category=row.category,
            source=row.source,
            score=row.score,
            reason=row.reason,
            job_id=row.job_id,
        )

    def _needs(self, row: Row, sums: Sums, examples: int) -> str:
        """What is missing before a training makes sense."""
        if row.family.startswith("error:") or row.kind == "drift":
            what = "requests fail" if row.kind == "error" else "the model does worse than it did"
            return f"a person: {what}, and that alone says not what to learn"
        enough = self._settings.min_examples
        if examples >= enough:
            return ""
        needs = f"{enough - examples} more examples"
        if sums.unanswered:
            whose = (
                "learning.teacher writes them" if self._settings.teacher else "correct them, or set learning.teacher"
            )
            needs += f"; answers to {sums.unanswered} questions: {whose}"
        return needs

    async def _keep_up(self) -> None:
        """Tell of what became worthwhile, each once; let expire what is old."""
        while True:
            try:
                async with asyncio.timeout(_UPKEEP_S):
                    await self._wakes.wait()
            except TimeoutError:
                pass
            self._wakes.clear()
            try:
                await self._expire(time.time())
                await self._tell()
            except BusError as error:
                # The next look tries again.
                log.warning(
                    "opportunities not told", extra={"action": "learning.opportunity.untold", "error": str(error)}
                )

    async def _tell(self) -> None:
        rows = await self._records.run(
            lambda c: store.rows(c, "state = 'open' AND found_at IS NOT NULL AND is_told = 0")
        )
        for shown in await self._shown(rows):
            await self._publish("learning.opportunity.found", shown)
            # Under the lock: whoever changes an opportunity writes all of it.
            async with self._changing:
                await self._records.run(
                    lambda c, id=shown.opportunity_id: c.execute(  # type: ignore[misc]
                        "UPDATE opportunities SET is_told = 1 WHERE opportunity_id = ?", (id,)
                    )
                )

    async def _expire(self, now: float) -> None:
        before = now - self._settings.keep_days * _DAY_S
        async with self._changing:
            old = await self._records.run(lambda c: _expired(c, before))
            for row in old:
                row.state = "expired"
                await self._put(row)
            for row in await self._records.run(lambda c: _fade(c, before)):
                if row.state == "open":
                    self._known[row.opportunity_id] = _known(row)


def _known(row: Row) -> Known:
    return Known(row.opportunity_id, row.model, row.family, row.state == "dismissed", Topic.from_json(row.topic))


def _new(found: Found, told: bodies.OpportunityAdd | None) -> Row:
    now = time.time()
    row = Row(
        opportunity_id=f"opp-{secrets.token_hex(6)}",
        model=found.model,
        kind=found.kind,
        family=found.family,
        title=_title(found.kind, found.note),
        topic="{}",
        state="open",
        created_at=now,
        last_seen_at=found.at,
    )
    if told is not None:
        row.opportunity_id = told.opportunity_id or row.opportunity_id
        row.title, row.category, row.source, row.score = told.title, told.category, told.source, told.score
    return row


_TITLES: Final[dict[str, str]] = {
    "correction": "Corrected answers",
    "preference": "Answers that could be better",
    "rating": "Answers rated as bad",
    "evaluation": "Cases that failed",
    "rephrasing": "Questions asked again",
    "low_confidence": "Unsure answers",
    "error": "Requests without an answer",
    "drift": "Worse outcomes than before",
    "manual": "Told of",
}


def _title(kind: str, note: str) -> str:
    return f"{_TITLES[kind]}: {note}"


def _add(connection: sqlite3.Connection, row: Row, found: Sequence[Found], told: bodies.OpportunityAdd | None) -> None:
    store.put(connection, row)
    for one in found:
        store.add_evidence(connection, row.opportunity_id, one)
    if told is not None and told.opportunity_id not in (None, row.opportunity_id):
        store.add_name(connection, str(told.opportunity_id), row.opportunity_id)
    if row.found_at is None:
        weight = store.sums(connection, [row.opportunity_id])[row.opportunity_id].weight
        if told is not None or weight >= _WORTHWHILE:
            row.found_at = time.time()
            store.put(connection, row)


def _forget(connection: sqlite3.Connection, ids: Sequence[str], user: str) -> dict[str, Row | None]:
    """Delete evidence; the opportunities it was of as they are now, None for those that went with it."""
    changed: dict[str, Row | None] = {}
    for opportunity_id in store.forget(connection, ids, user):
        row = _told_anew(connection, opportunity_id)
        if row is None:
            store.delete(connection, opportunity_id)
        changed[opportunity_id] = row
    return changed


def _told_anew(connection: sqlite3.Connection, opportunity_id: str) -> Row | None:
    """An opportunity with title and topic of the evidence that is left; None where none is."""
    telling = store.most_telling(connection, opportunity_id)
    row = store.get(connection, opportunity_id)
    if row is None or telling is None:
        return None
    row.kind, row.title = telling[0], _title(*telling)
    row.topic = Topic.of(store.words_of(connection, opportunity_id)).to_json()
    store.put(connection, row)
    return row


def _fade(connection: sqlite3.Connection, before: float) -> list[Row]:
    """Forget the words of old evidence; the opportunities that have newer. What is dismissed keeps its topic, for good."""
    left = []
    for opportunity_id in store.fade(connection, before):
        row = store.get(connection, opportunity_id)
        if row is None:
            continue
        if row.state != "dismissed":
            told = _told_anew(connection, opportunity_id)
            if told is not None:
                left.append(told)
                continue
            row.topic = "{}"
        row.title = _TITLES[row.kind]
        store.put(connection, row)
    return left


def _expired(connection: sqlite3.Connection, before: float) -> list[Row]:
    old = store.rows(connection, "state = 'open' AND last_seen_at < ?", (before,))
    for row in old:
        row.reason = "nothing was seen of it any more"
    for (model,) in connection.execute(
        "SELECT model FROM opportunities WHERE state = 'open' GROUP BY model HAVING count(*) > ?", (_OPEN_MAX,)
    ).fetchall():
        more = store.rows(
            connection, "state = 'open' AND model = ? ORDER BY last_seen_at DESC LIMIT -1 OFFSET ?", (model, _OPEN_MAX)
        )
        for row in more:
            row.reason = f"{model} has more than {_OPEN_MAX} newer ones"
        old += [row for row in more if row.last_seen_at >= before]
    return old
