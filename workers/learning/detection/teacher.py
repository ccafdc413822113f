"""A teacher: a model that writes the answers where only the questions are known; what it says is marked as its own."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from typing import Final

from bus.client import Client
from bus.records import Records
from bus.settings import LearningSettings
from schemas.bodies.learning import Exchange
from schemas.bodies.model import Chat, Generate, Generation
from schemas.errors import BusError
from schemas.purpose import OWN
from workers.learning.curation.drafts import Draft
from workers.learning.detection import store
from workers.learning.detection.feedback import Curating, FeedbackBook
from workers.learning.exchanges.exchanges import Exchanges
from workers.learning.exchanges.sessions import named_session

log = logging.getLogger("olympus.learning")

# Questions a teacher is asked in a day: it costs its computer, or money where it is somebody else's.
_PER_DAY: Final = 500

# Questions between two looks at what is most worthwhile, and seconds between two looks.
_BATCH: Final = 16
_LOOK_S: Final = 30.0

# Seconds for one answer: the teacher may have to be loaded first.
_ANSWER_S: Final = 300.0

_DAY_S: Final = 86_400.0


class Teacher:
    """Asks `learning.teacher`, one question at a time, behind everybody else."""

    def __init__(
        self,
        settings: LearningSettings,
        records: Records,
        client: Client,
        exchanges: Exchanges,
        feedback: FeedbackBook,
        curation: Curating,
    ) -> None:
        self._name = settings.teacher
        self._records = records
        self._client = client
        self._exchanges = exchanges
        self._feedback = feedback
        self._curation = curation
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin, where there is a teacher."""
        if self._name:
            self._task = asyncio.ensure_future(self._teach())

    async def stop(self) -> None:
        """End; a question under way is asked again next time."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _teach(self) -> None:
        while True:
            try:
                asked = await self.ask_some()
            except BusError as error:
                asked = 0
                log.warning(
                    "no teacher", extra={"action": "learning.teacher", "model": self._name, "error": str(error)}
                )
            if not asked:
                await asyncio.sleep(_LOOK_S)

    async def ask_some(self) -> int:
        """Ask the questions that are most worthwhile; how many got an answer. Raises what asking the teacher does."""
        left = _PER_DAY - await self._records.run(lambda c: _asked_since(c, time.time() - _DAY_S))
        if left <= 0:
            return 0
        asked = 0
        for opportunity_id, id in await self._records.run(lambda c: store.unanswered(c, min(_BATCH, left))):
            exchange = (await self._exchanges.known([id])).get(id) or await self._feedback.exchange_of(id)
            # Nobody learns from themselves.
            if exchange is not None and exchange.model != self._name and (exchange.messages or exchange.prompt):
                answer = await self._answer(exchange)
                if answer.strip():
                    await self._curation.add([self._draft(exchange, answer, opportunity_id, id)])
                    asked += 1
            await self._records.run(lambda c, id=id: _note_asked(c, id, time.time()))  # type: ignore[misc]
        return asked

    async def _answer(self, exchange: Exchange) -> str:
        request: Chat | Generate
        if exchange.prompt is None:
            request = Chat(model=self._name, messages=exchange.messages, temperature=0.0)
        else:
            request = Generate(model=self._name, prompt=exchange.prompt, temperature=0.0)
        generation: Generation = await self._client.request(
            "model.chat" if isinstance(request, Chat) else "model.generate",
            request,
            timeout_s=_ANSWER_S,
            headers=OWN,
            priority="batch",
        )
        # Half an answer teaches to stop half-way.
        return generation.text if generation.finish_reason == "stop" else ""

    def _draft(self, exchange: Exchange, answer: str, opportunity_id: str, id: str) -> Draft:
        return Draft(
            model=exchange.model,
            kind="teacher",
            messages=exchange.messages,
            prompt=exchange.prompt,
            answer=answer,
            user=exchange.user,
            session_id=named_session(exchange.session_id, exchange.user),
            evidence=sorted({id, exchange.reply_id} - {""}),
            opportunity_id=opportunity_id,
            source=f"teacher {self._name}",
        )


def _asked_since(connection: sqlite3.Connection, since: float) -> int:
    return int(connection.execute("SELECT count(*) FROM teacher_questions WHERE at >= ?", (since,)).fetchone()[0])


def _note_asked(connection: sqlite3.Connection, id: str, now: float) -> None:
    connection.execute("INSERT OR REPLACE INTO teacher_questions VALUES (?, ?)", (id, now))
    store.answered(connection, [id])
