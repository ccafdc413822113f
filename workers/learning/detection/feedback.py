"""What people say of answers: kept before it is acknowledged, then made into examples and evidence; asks no model."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from bus.ratelimit import TokenBucket
from bus.records import Records
from bus.settings import LearningSettings
from bus.worker import Call
from schemas.bodies.learning import Exchange, Feedback, FeedbackTaken
from schemas.errors import BadRequest, BusError, Conflict, Forbidden, NotFound, QuotaExceeded
from workers.learning.curation.drafts import Draft, Taken
from workers.learning.detection import calibration
from workers.learning.detection.found import Found, about
from workers.learning.detection.opportunities import Opportunities
from workers.learning.exchanges.exchanges import Exchanges
from workers.learning.exchanges.sessions import named_session

log = logging.getLogger("olympus.learning")

# Rating from which an answer was good.
GOOD: Final = 0.5

# Feedbacks a second that one signed-in person may give over time, twice as many at once. Files of corrections come in as
# datasets; nobody reads and rates faster.
_RATE_PER_S: Final = 50.0

# People whose rate is followed at once.
_PEOPLE_MAX: Final = 10_000

# Seconds between two attempts to carry out what could not be.
_RETRY_S: Final = 30.0

_DAY_S: Final = 86_400.0


class Curating(Protocol):
    """What detection needs of curation."""

    async def add(self, drafts: Sequence[Draft], /) -> list[Taken]:
        """Hand in examples; what became of each."""

    async def examples(self, opportunity_ids: Sequence[str], /) -> dict[str, int]:
        """Rows of each opportunity that are ready to learn from."""

    async def forget(self, *, user: str = "", session_id: str = "", evidence: Sequence[str] = ()) -> int:
        """Erase rows by any of these; how many."""

    async def complained(self, reply_id: str, /) -> None:
        """Somebody called an answer bad: it is nothing to repeat or to measure by."""


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    feedback_id: str
    user: str
    request: Feedback
    exchange: Exchange


class FeedbackBook:
    """`start` when records, exchanges and opportunities are there."""

    def __init__(
        self,
        settings: LearningSettings,
        records: Records,
        exchanges: Exchanges,
        opportunities: Opportunities,
        curation: Curating,
    ) -> None:
        self._settings = settings
        self._records = records
        self._exchanges = exchanges
        self._opportunities = opportunities
        self._curation = curation
        self._rates: dict[str, TokenBucket] = {}
        self._at_work: dict[str, asyncio.Lock] = {}
        self._retrying: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Carry out, in the background, what was acknowledged and not finished."""
        self._retrying = asyncio.ensure_future(self._retry())

    async def stop(self) -> None:
        """What is not carried out by now is so at the next start."""
        if self._retrying is not None:
            self._retrying.cancel()
            await asyncio.gather(self._retrying, return_exceptions=True)

    async def take(self, request: Feedback, call: Call) -> FeedbackTaken:
        """Keep a feedback and carry it out.

        Raises BadRequest where it says nothing or names no answer, NotFound for an answer that is not known here,
        Forbidden for another person's name, Conflict for a feedback_id under which something else was said, QuotaExceeded.
        """
        _check(request)
        user = self._person(request, call)
        feedback_id = request.feedback_id or f"fb-{call.id.hex()}"
        done = await self._records.run(lambda c: _told(c, feedback_id, user, request))
        if done is not None:
            return done
        exchange = await self._exchange(request, user)
        if request.correction is not None and request.correction.strip() == exchange.text.strip() and exchange.text:
            raise BadRequest("correction is the answer itself; rating says that it was good", field="correction")
        kept = _Kept(feedback_id=feedback_id, user=user, request=request, exchange=exchange)
        await self._records.run(lambda c: _keep(c, kept, time.time()))
        try:
            return await self._carry_out(kept)
        except BusError as error:
            # It is on disk, and the next look tries again.
            log.warning("feedback waits", extra={"action": "learning.feedback.waits", "error": str(error)})
            return FeedbackTaken(
                feedback_id=feedback_id,
                reply_id=exchange.reply_id,
                note=f"kept; it is carried out later ({error.code}: {error.message})",
            )

    async def exchange_of(self, feedback_id: str) -> Exchange | None:
        """The exchange that a feedback is about, as it was kept with it."""
        return await self._records.run(lambda c: _exchange(c, feedback_id))

    async def forget(self, reply_ids: Sequence[str], *, user: str = "", session_id: str = "") -> list[str]:
        """Delete what was said of these answers, by this person, or in this session; the ids of it."""
        return await self._records.run(lambda c: _forget(c, reply_ids, user, session_id))

    # Inside ---------------------------------------------------------------------------------------------------------

    def _person(self, request: Feedback, call: Call) -> str:
        caller = call.caller
        if caller is None:
            return request.user
        if request.user and request.user != caller.user_id and not caller.is_admin:
            raise Forbidden(
                f"user is {request.user!r}, and {caller.user_id} signed in; to speak for others takes the scope admin",
                field="user",
            )
        if not caller.is_admin:
            self._count(caller.user_id)
        return request.user or caller.user_id

    def _count(self, user: str) -> None:
        now = time.monotonic()
        if user not in self._rates and len(self._rates) >= _PEOPLE_MAX:
            self._rates.clear()
        wait_s = self._rates.setdefault(user, TokenBucket(now)).take(_RATE_PER_S, now)
        if wait_s:
            raise QuotaExceeded(
                f"{user} gives more than {_RATE_PER_S:g} feedbacks a second; again in {wait_s:.2f} s",
                retry_after_s=wait_s,
            )

    async def _exchange(self, request: Feedback, user: str) -> Exchange:
        """The answer that is meant: the one that was seen, or the one that is given."""
        if request.reply_id:
            found = await self._exchanges.find(request.reply_id)
            if found is not None:
                return found
        has_question = bool(request.messages) or request.prompt is not None
        if request.model is None or not has_question or request.answer is None:
            if not request.reply_id:
                raise BadRequest(
                    "neither reply_id nor the answer itself is given: model, messages or prompt, and answer",
                    field="reply_id",
                )
            raise NotFound(
                f"no answer {request.reply_id} is known here (any more); give it itself: model, messages or prompt, and"
                " answer",
                reply_id=request.reply_id,
            )
        if request.messages and request.prompt is not None:
            raise BadRequest("both messages and prompt are given, an answer has one question", field="prompt")
        return Exchange(
            reply_id=request.reply_id,
            model=request.model,
            at=time.time(),
            messages=request.messages,
            prompt=request.prompt,
            text=request.answer,
            adapter=None,
            user=user,
            session_id=request.session_id,
            mean_logprob=None,
            error="",
        )

    async def _carry_out(self, kept: _Kept) -> FeedbackTaken:
        """All that follows from a feedback; each step may have been done before and is then the same again."""
        lock = self._at_work.setdefault(kept.feedback_id, asyncio.Lock())
        try:
            async with lock:
                done = await self._records.run(lambda c: _done(c, kept.feedback_id))
                return done or await self._work(kept)
        finally:
            self._at_work.pop(kept.feedback_id, None)

    async def _work(self, kept: _Kept) -> FeedbackTaken:
        request, exchange = kept.request, kept.exchange
        outcome = await self._records.run(lambda c: _outcome(c, kept))
        if outcome is not None and exchange.reply_id:
            outcome_from = "correction" if request.correction is not None else "rating"
            await self._exchanges.judge(exchange.reply_id, outcome, outcome_from)
            if outcome < GOOD:
                await self._curation.complained(exchange.reply_id)
        found = _found(kept, await self._records.run(lambda c: _first_id(c, kept)))
        opportunity_id = (await self._opportunities.note([found]))[0] if found is not None else ""
        if request.correction is not None or request.preferred is not None:
            await self._opportunities.answered([id for id in (exchange.reply_id, kept.feedback_id) if id])
        drafts = _drafts(kept, opportunity_id)
        taken = await self._curation.add(drafts) if drafts else []
        reasons = [f"{one.outcome}: {one.reason}" for one in taken if one.reason]
        if found is not None and not opportunity_id:
            reasons.append("resembles what was dismissed")
        reply = FeedbackTaken(
            feedback_id=kept.feedback_id,
            reply_id=exchange.reply_id,
            opportunity_id=opportunity_id,
            row_id=next((one.row_id for one in taken if one.row_id), ""),
            note="; ".join(reasons),
        )
        if not await self._records.run(lambda c: _finish(c, reply)):
            # Forgotten while it was worked on; curation takes nothing in any more that was made of it.
            ids = [kept.feedback_id, *([found.id] if found is not None else [])]
            await self._opportunities.forget(await self._records.run(lambda c: _unknown(c, ids)))
        return reply

    async def _retry(self) -> None:
        while True:
            try:
                for kept in await self._records.run(_undone):
                    await self._try_again(kept)
                before = time.time() - self._settings.keep_days * _DAY_S
                await self._records.run(lambda c, before=before: _prune(c, before))  # type: ignore[misc]
            except BusError as error:
                log.error("no upkeep of feedback", extra={"action": "learning.feedback.upkeep", "error": str(error)})
            await asyncio.sleep(_RETRY_S)

    async def _try_again(self, kept: _Kept) -> None:
        try:
            await self._carry_out(kept)
        except BusError as error:
            log.warning("feedback waits", extra={"action": "learning.feedback.waits", "error": str(error)})


def _check(request: Feedback) -> None:
    given = (request.rating, request.correction, request.preferred)
    if all(one is None for one in given):
        raise BadRequest("none of rating, correction and preferred is given; one is needed at least", field="rating")
    for field in ("correction", "preferred"):
        text = getattr(request, field)
        if text is not None and not text.strip():
            raise BadRequest(f"{field} is empty, it must be a text or be left out", field=field)


def _found(kept: _Kept, id: str) -> Found | None:
    """What a feedback is evidence of, under `id`; None where the answer was good."""
    request, exchange = kept.request, kept.exchange
    if request.correction is not None:
        kind, weight = "correction", calibration.CORRECTION
    elif request.preferred is not None:
        kind, weight = "preference", calibration.PREFERENCE
    elif request.rating is not None and request.rating < GOOD:
        kind, weight = "rating", calibration.RATING
    else:
        return None
    note, words = about(exchange)
    return Found(
        model=exchange.model,
        kind=kind,  # type: ignore[arg-type]
        id=id,
        at=time.time(),
        note=note,
        weight=weight,
        words=words,
        wants_answer=kind == "rating" and bool(exchange.messages or exchange.prompt),
        user=exchange.user,
    )


def _drafts(kept: _Kept, opportunity_id: str) -> list[Draft]:
    """The examples in a feedback: the correction, and the preferred answer beside the one given."""
    request, exchange = kept.request, kept.exchange
    if not exchange.messages and exchange.prompt is None:
        # The texts were too long to be kept.
        return []
    drafts = []
    for answer, rejected in ((request.correction, None), (request.preferred, exchange.text or None)):
        if answer is not None:
            drafts.append(
                Draft(
                    model=exchange.model,
                    kind="feedback",
                    messages=exchange.messages,
                    prompt=exchange.prompt,
                    answer=answer,
                    rejected=rejected if rejected and rejected.strip() != answer.strip() else None,
                    user=kept.user,
                    session_id=request.session_id or named_session(exchange.session_id, exchange.user),
                    memory_ids=request.memory_ids,
                    evidence=[id for id in (kept.feedback_id, exchange.reply_id) if id],
                    opportunity_id=opportunity_id,
                )
            )
    return drafts


# Statements ---------------------------------------------------------------------------------------------------------


def _keep(connection: sqlite3.Connection, kept: _Kept, now: float) -> None:
    request = kept.request
    _told(connection, kept.feedback_id, kept.user, request)
    connection.execute(
        "INSERT OR IGNORE INTO feedback VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)",
        (
            kept.feedback_id,
            kept.exchange.reply_id,
            now,
            kept.user,
            request.session_id,
            request.rating,
            request.correction is not None,
            msgspec.msgpack.encode(request),
            msgspec.msgpack.encode(kept.exchange),
        ),
    )


def _told(connection: sqlite3.Connection, feedback_id: str, user: str, request: Feedback) -> FeedbackTaken | None:
    """What the same was answered before, None where it is new or not carried out. Raises Conflict for something else."""
    row = connection.execute("SELECT user, request FROM feedback WHERE feedback_id = ?", (feedback_id,)).fetchone()
    if row is not None and (row[0], msgspec.msgpack.decode(row[1], type=Feedback)) != (user, request):
        raise Conflict(
            f"something else was said under feedback_id {feedback_id!r}; choose another", field="feedback_id"
        )
    return _done(connection, feedback_id)


def _done(connection: sqlite3.Connection, feedback_id: str) -> FeedbackTaken | None:
    row = connection.execute("SELECT done FROM feedback WHERE feedback_id = ?", (feedback_id,)).fetchone()
    return msgspec.msgpack.decode(row[0], type=FeedbackTaken) if row and row[0] is not None else None


def _finish(connection: sqlite3.Connection, reply: FeedbackTaken) -> bool:
    """Note that a feedback is carried out; False where it was forgotten meanwhile."""
    done = msgspec.msgpack.encode(reply)
    return bool(
        connection.execute("UPDATE feedback SET done = ? WHERE feedback_id = ?", (done, reply.feedback_id)).rowcount
    )


def _unknown(connection: sqlite3.Connection, ids: Sequence[str]) -> list[str]:
    """Those of these ids that no feedback has any more."""
    found = ((id, connection.execute("SELECT 1 FROM feedback WHERE feedback_id = ?", (id,)).fetchone()) for id in ids)
    return [id for id, row in found if row is None]


def _prune(connection: sqlite3.Connection, before: float) -> None:
    connection.execute("DELETE FROM feedback WHERE at < ? AND done IS NOT NULL", (before,))


def _first_id(connection: sqlite3.Connection, kept: _Kept) -> str:
    """Id of the first thing that this person said of the answer: who says it ten times is one piece of evidence."""
    if not kept.exchange.reply_id:
        return kept.feedback_id
    row = connection.execute(
        "SELECT feedback_id FROM feedback WHERE reply_id = ? AND user = ? ORDER BY at, rowid LIMIT 1",
        (kept.exchange.reply_id, kept.user),
    ).fetchone()
    return str(row[0]) if row else kept.feedback_id


def _undone(connection: sqlite3.Connection) -> list[_Kept]:
    rows = connection.execute(
        "SELECT feedback_id, user, request, exchange FROM feedback WHERE done IS NULL ORDER BY at"
    )
    return [
        _Kept(
            feedback_id=id,
            user=user,
            request=msgspec.msgpack.decode(request, type=Feedback),
            exchange=msgspec.msgpack.decode(exchange, type=Exchange),
        )
        for id, user, request, exchange in rows
    ]


def _exchange(connection: sqlite3.Connection, feedback_id: str) -> Exchange | None:
    row = connection.execute("SELECT exchange FROM feedback WHERE feedback_id = ?", (feedback_id,)).fetchone()
    return msgspec.msgpack.decode(row[0], type=Exchange) if row else None


def _outcome(connection: sqlite3.Connection, kept: _Kept) -> float | None:
    """What the answer was worth by all that was said of it: 0 once somebody corrected it, else the mean of each person's
    last rating; None where nobody rated it. Notes it for the calibration of the signals, too."""
    exchange, request = kept.exchange, kept.request
    if not exchange.reply_id:
        rating = request.rating
        return 0.0 if request.correction is not None else rating
    rows = connection.execute(
        "SELECT user, rating, is_correction FROM feedback WHERE reply_id = ? ORDER BY at", (exchange.reply_id,)
    ).fetchall()
    ratings = {user: rating for user, rating, _ in rows if rating is not None}
    if any(is_correction for _, _, is_correction in rows):
        outcome = 0.0
    elif ratings:
        outcome = sum(ratings.values()) / len(ratings)
    else:
        return None
    calibration.note_judgement(connection, exchange.reply_id, exchange.signals, is_bad=outcome < GOOD)
    return outcome


def _forget(connection: sqlite3.Connection, reply_ids: Sequence[str], user: str, session_id: str) -> list[str]:
    ids = set[str]()
    for field, values in (("reply_id", reply_ids), ("user", [user]), ("session_id", [session_id])):
        for value in values:
            if value:
                found = connection.execute(f"SELECT feedback_id FROM feedback WHERE {field} = ?", (value,))
                ids |= {id for (id,) in found}
    if user:
        # What others said of this person's question quotes it, also when its exchange is no longer kept.
        for id, exchange in connection.execute("SELECT feedback_id, exchange FROM feedback"):
            if msgspec.msgpack.decode(exchange, type=Exchange).user == user:
                ids.add(id)
    connection.executemany("DELETE FROM feedback WHERE feedback_id = ?", [(id,) for id in ids])
    return sorted(ids)
