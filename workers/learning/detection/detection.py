"""Detection, whole: live traffic, feedback and evaluations in, opportunities and examples out; trains nothing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from bus.client import Client
from bus.records import Records
from bus.settings import Settings
from bus.worker import Call
from schemas.bodies import learning as bodies
from schemas.errors import BadRequest, BusError
from workers.learning.curation.drafts import Draft
from workers.learning.detection import calibration, store
from workers.learning.detection.drift import Drift
from workers.learning.detection.evaluations import FailedEvaluations
from workers.learning.detection.feedback import GOOD, Curating, FeedbackBook
from workers.learning.detection.forgotten import ForgottenSessions
from workers.learning.detection.found import Found, found_in
from workers.learning.detection.opportunities import Opportunities
from workers.learning.detection.teacher import Teacher
from workers.learning.exchanges.exchanges import Exchanges

log = logging.getLogger("olympus.learning")

# Exchanges looked at between two writes.
_BATCH: Final = 100

# Bad outcomes shown with a drift, the last ones.
_DRIFT_SHOWN: Final = 20

# Seconds after which a look that failed is tried again, and between looks without anything new.
_RETRY_S: Final = 5.0
_LOOK_S: Final = 30.0

# Name under which it is kept up to where drift was followed.
_FOLLOWED: Final = "drift"


class _Followed(msgspec.Struct):
    """Drift of each model, up to an outcome."""

    number: int = 0
    models: dict[str, Drift] = {}


class Detection:
    """The parts that notice what a model could learn. `start` when records and curation are there."""

    def __init__(
        self,
        settings: Settings,
        records: Records,
        client: Client,
        *,
        curation: Curating,
        publish: Callable[[str, Any], Awaitable[None]],
    ) -> None:
        learning = settings.learning
        self._records = records
        self._curation = curation
        self.exchanges = Exchanges(learning, records, client)
        self.opportunities = Opportunities(
            learning,
            records,
            default_model=settings.models.default,
            examples=curation.examples,
            publish=publish,
        )
        self.feedback = FeedbackBook(learning, records, self.exchanges, self.opportunities, curation)
        self._evaluations = FailedEvaluations(records, client, self.opportunities, curation)
        self._teacher = Teacher(learning, records, client, self.exchanges, self.feedback, curation)
        self._forgotten = ForgottenSessions(client, self._forget_session)
        self._wakes = asyncio.Event()
        # Nothing is made evidence of while something is forgotten: it could be the very same.
        self._noting = asyncio.Lock()
        self._bad: defaultdict[str, deque[str]] = defaultdict(lambda: deque(maxlen=_DRIFT_SHOWN))
        self._looking: asyncio.Task[None] | None = None
        self.exchanges.on_kept = self._wakes.set

    async def start(self) -> None:
        """Read back what is open, go on with what was not finished, begin to listen."""
        await self.opportunities.start()
        await self.exchanges.start()
        await self.feedback.start()
        await self._evaluations.start()
        await self._teacher.start()
        await self._forgotten.start()
        self._wakes.set()
        self._looking = asyncio.ensure_future(self._look())

    async def stop(self) -> None:
        """End, everything that came written."""
        await asyncio.gather(
            self._forgotten.stop(), self._teacher.stop(), self._evaluations.stop(), self.feedback.stop()
        )
        await self.exchanges.stop()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        await self.opportunities.stop()

    # Operations -----------------------------------------------------------------------------------------------------

    async def take_feedback(self, request: bodies.Feedback, call: Call) -> bodies.FeedbackTaken:
        """Keep what somebody says of an answer, and learn from it."""
        return await self.feedback.take(request, call)

    async def delete_exchanges(self, request: bodies.ExchangeDelete) -> bodies.ExchangesDeleted:
        """Forget exchanges with all that was made of them. Raises BadRequest where nothing says which."""
        if request.reply_id is None and not request.user and not request.session_id:
            raise BadRequest("none of reply_id, user and session_id is given; one is needed", field="reply_id")
        async with self._noting:
            return await self._delete(request)

    async def _delete(self, request: bodies.ExchangeDelete) -> bodies.ExchangesDeleted:
        reply_ids = await self.exchanges.matching(request)
        # A whole person or session: also what was said without an exchange of theirs. With both given only what is both.
        user = (request.user or "") if request.reply_id is None and request.session_id is None else ""
        session_id = (request.session_id or "") if request.reply_id is None and request.user is None else ""
        named = [request.reply_id] if request.reply_id and request.user is None and request.session_id is None else []
        about = sorted({*reply_ids, *named})
        feedback_ids = await self.feedback.forget(about, user=user, session_id=session_id)
        ids = [*about, *feedback_ids]
        rows = await self._curation.forget(user=user, session_id=session_id, evidence=ids)
        await self.opportunities.forget(ids, user=user)
        # Last, so that a request that was cut off finds them again.
        await self.exchanges.delete(reply_ids)
        await self._records.empty_log()
        return bodies.ExchangesDeleted(exchanges=len(reply_ids), rows=rows)

    async def _forget_session(self, session_id: str) -> None:
        await self.delete_exchanges(bodies.ExchangeDelete(session_id=session_id))

    async def add_opportunity(self, request: bodies.OpportunityAdd) -> bodies.Opportunity:
        """Note something worth learning, with its examples."""
        for at, one in enumerate(request.examples):
            if bool(one.messages) == (one.prompt is not None):
                raise BadRequest(f"examples[{at}] has either messages or prompt", field=f"examples[{at}]")
        opportunity = await self.opportunities.add(request)
        if not request.examples or opportunity.state == "dismissed":
            return opportunity
        await self._curation.add(
            [
                Draft(
                    model=opportunity.model,
                    kind="manual",
                    messages=one.messages,
                    prompt=one.prompt,
                    answer=one.answer,
                    rejected=one.rejected,
                    user=one.user,
                    session_id=one.session_id,
                    memory_ids=one.memory_ids,
                    evidence=[opportunity.opportunity_id, *request.evidence],
                    opportunity_id=opportunity.opportunity_id,
                    source=request.source,
                )
                for one in request.examples
            ]
        )
        return await self.opportunities.get(opportunity.opportunity_id)

    # Looking --------------------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Make evidence of what was noticed, whenever something came."""
        while True:
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self._wakes.wait()
            except TimeoutError:
                pass
            self._wakes.clear()
            try:
                await self.look()
            except BusError as error:
                log.error("not looked", extra={"action": "learning.look", "error": str(error)})
                await asyncio.sleep(_RETRY_S)
                self._wakes.set()

    async def look(self) -> None:
        """Make evidence of what was noticed, and follow drift, up to now."""
        precisions = await self._records.run(calibration.precisions)
        while await self._note_some(precisions):
            pass
        await self._follow_drift()

    async def _note_some(self, precisions: dict[str, float]) -> bool:
        """Make evidence of some exchanges; False when there are none left."""
        async with self._noting:
            found = await self.exchanges.unnoticed(_BATCH)
            for exchange in found:
                await self.opportunities.note(found_in(exchange, precisions))
            await self.exchanges.mark_noticed(found)
        return bool(found)

    async def _follow_drift(self) -> None:
        state = await self._records.run(lambda c: store.look(c, _FOLLOWED))
        followed = msgspec.json.decode(state, type=_Followed) if state else _Followed()
        while outcomes := await self.exchanges.all_outcomes(followed.number):
            for outcome in outcomes:
                followed.number = outcome.number
                if outcome.outcome < GOOD:
                    self._bad[outcome.model].append(outcome.reply_id)
                drift = followed.models.setdefault(outcome.model, Drift())
                before = drift.mean
                if drift.takes(outcome.outcome):
                    await self._note_drift(outcome.model, outcome.at, before)
            now, said = time.time(), msgspec.json.encode(followed).decode()
            await self._records.run(lambda c, now=now, said=said: store.looked(c, _FOLLOWED, now, said))  # type: ignore[misc]

    async def _note_drift(self, model: str, at: float, before: float) -> None:
        log.warning("outcomes got worse", extra={"action": "learning.drift", "model": model, "mean": round(before, 3)})
        note = f"outcomes fell below their mean of {before:.2f}"
        for reply_id in self._bad[model]:
            found = Found(
                model=model, kind="drift", id=reply_id, at=at, note=note, weight=calibration.DRIFT, family="drift"
            )
            await self.opportunities.note([found])
