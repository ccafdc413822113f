"""`model.compare.*`: one prompt, several models side by side, and which answer was the best."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from typing import Final

import msgspec

from bus.client import Client
from bus.records import Records
from bus.worker import Call
from schemas.bodies.model import Chat, Generate, Generation, Sampling
from schemas.bodies.model_trials import Compare, CompareAnswer, CompareGet, ComparePart, ComparePick, Comparison
from schemas.errors import BadRequest, BusError, NotFound
from workers.models.trials.asking import Asking
from workers.models.trials.running import Running

# Comparisons kept: the newest. With answers of 1,000 tokens of two models this is some 100 MB.
_KEPT: Final = 10_000

_TIE: Final = "tie"
_OPTIONS: Final = Sampling.__struct_fields__

_comparison = msgspec.json.Decoder(Comparison).decode


class Comparing:
    """Comparisons, over the bus and in one file of records."""

    def __init__(self, client: Client, records: Records, running: Running) -> None:
        self._client = client
        self._records = records
        self._running = running

    async def compare(self, request: Compare, call: Call) -> Comparison:
        """Ask every model, streaming what each makes. A model that fails gets its error into its answer.

        Raises BadRequest for a model that is there twice, and unless there is either a prompt or messages.
        """
        _check(request)
        asking = Asking(self._client, call, "interactive")
        with self._running.entered():
            if request.at_once:
                answers = await _ask_at_once(asking, call, request)
            else:
                answers = [
                    await _ask(asking, call, index, _question(request, model))
                    for index, model in enumerate(request.models)
                ]
            comparison = Comparison(
                comparison_id=call.id.hex(),
                at=time.time(),
                answers=answers,
                prompt=request.prompt,
                messages=request.messages,
            )
            await self._keep(comparison)
        return comparison

    async def pick(self, request: ComparePick) -> Comparison:
        """Record the winner; a later pick replaces an earlier one. Raises NotFound, BadRequest for another name."""

        def statements(connection: sqlite3.Connection) -> Comparison:
            comparison = _find(connection, request.comparison_id)
            allowed = [*(answer.model for answer in comparison.answers), _TIE]
            if request.model not in allowed:
                raise BadRequest(
                    f"field 'model' is {request.model!r}, this comparison has: {', '.join(allowed)}", field="model"
                )
            picked = msgspec.structs.replace(comparison, picked=request.model, note=request.note)
            connection.execute("UPDATE comparisons SET record = ? WHERE id = ?", (_json(picked), request.comparison_id))
            return picked

        return await self._records.run(statements)

    async def get(self, request: CompareGet) -> Comparison:
        """A comparison that is kept. Raises NotFound."""
        return await self._records.run(lambda connection: _find(connection, request.comparison_id))

    async def _keep(self, comparison: Comparison) -> None:
        def statements(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO comparisons (id, record) VALUES (?, ?)", (comparison.comparison_id, _json(comparison))
            )
            connection.execute(
                "DELETE FROM comparisons WHERE number <= (SELECT max(number) FROM comparisons) - ?", (_KEPT,)
            )

        await self._records.run(statements)


def _check(request: Compare) -> None:
    twice = sorted({model for model in request.models if request.models.count(model) > 1})
    if twice:
        raise BadRequest(f"field 'models': {', '.join(twice)} is there more than once", field="models")
    if (request.prompt is None) == (not request.messages):
        raise BadRequest("either 'prompt' or 'messages' has to be given, and not both", field="prompt")


def _question(request: Compare, model: str) -> Generate | Chat:
    options = {name: getattr(request, name) for name in _OPTIONS}
    if request.prompt is not None:
        return Generate(model=model, prompt=request.prompt, **options)
    return Chat(model=model, messages=request.messages, **options)


async def _ask_at_once(asking: Asking, call: Call, request: Compare) -> list[CompareAnswer]:
    """Every model's answer. Raises WorkerLost where the parts reach nobody any more."""
    try:
        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(_ask(asking, call, index, _question(request, model)))
                for index, model in enumerate(request.models)
            ]
    except ExceptionGroup as errors:
        # The first is what happened; the others were cancelled for it, or say the same.
        raise errors.exceptions[0] from None
    return [task.result() for task in asked]


async def _ask(asking: Asking, call: Call, index: int, question: Generate | Chat) -> CompareAnswer:
    """One model's answer, its parts passed on, and its end told while the others still write."""
    answer = await _answer(asking, call, index, question)
    ended = msgspec.structs.replace(answer, text="")
    await call.partial(ComparePart(index=index, model=answer.model, text="", ended=ended))
    return answer


async def _answer(asking: Asking, call: Call, index: int, question: Generate | Chat) -> CompareAnswer:
    model = str(question.model)
    subject = "model.generate" if isinstance(question, Generate) else "model.chat"
    text = ""
    try:
        async with asking.stream(subject, question) as parts:
            async for part in parts:
                text += part.text
                if part.text:
                    await call.partial(ComparePart(index=index, model=model, text=part.text))
        final: Generation = parts.final
    except BusError as error:
        return CompareAnswer(model=model, text=text, error=f"{error.code}: {error.message}")
    return CompareAnswer(
        model=model, text=final.text, usage=final.usage, timings=final.timings, finish_reason=final.finish_reason
    )


def _find(connection: sqlite3.Connection, comparison_id: str) -> Comparison:
    row = connection.execute("SELECT record FROM comparisons WHERE id = ?", (comparison_id,)).fetchone()
    if row is None:
        raise NotFound(
            f"no comparison {comparison_id}: the newest {_KEPT} are kept", comparison_id=comparison_id, kept=_KEPT
        )
    return _comparison(row[0])


def _json(comparison: Comparison) -> str:
    return msgspec.json.encode(comparison).decode()
