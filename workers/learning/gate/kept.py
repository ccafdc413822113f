"""What the gate keeps in the records: answers already asked, verdicts with their items, and what was tried on which set."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from bus.records import Records
from schemas.bodies.learning_gate import GateItem, GateResult
from schemas.errors import NotFound
from workers.learning.gate.asking import Answer, Side
from workers.learning.gate.items import Item

# Answers kept, the newest: those of some thirty evaluations. Verdicts kept, and of how many the items with their texts.
_ANSWERS: Final = 50_000
_RESULTS: Final = 10_000
_RESULTS_WITH_ITEMS: Final = 200

# A set is the same set as an earlier one from this share of its items on. Below it hardly a chance is shared.
_SAME_SET: Final = 0.1

_result = msgspec.json.Decoder(GateResult).decode
_item = msgspec.json.Decoder(GateItem).decode

Only = Literal["all", "changed", "better", "worse"]
_CHANGES: Final[dict[Only, str]] = {
    "all": "",
    "changed": "AND change <> 0",
    "better": "AND change = 1",
    "worse": "AND change = -1",
}


class Judgement(NamedTuple):
    """A verdict with what it rests on. spends: it used up part of the level of its set. target: ids of its items."""

    result: GateResult
    adapter_sha256: str
    is_attempt: bool
    spends: bool
    target: Sequence[str]
    items: Sequence[GateItem]


class Kept:
    """The gate's tables."""

    def __init__(self, records: Records) -> None:
        self._records = records
        # Items forgotten since the service started: an evaluation under way may still hold their texts, and would keep
        # them after they were erased. No id is used twice. Read and written in the thread of the records alone.
        self._forgotten: set[str] = set()

    # Answers

    async def answers(self, side: Side, items: Sequence[Item]) -> dict[str, Answer]:
        """Known answers by `Item.key`, of these items."""

        def statements(connection: sqlite3.Connection) -> dict[str, Answer]:
            known: dict[str, Answer] = {}
            for item in items:
                row = connection.execute(
                    "SELECT answer FROM gate_answers"
                    " WHERE model_sha256 = ? AND adapter_sha256 = ? AND item = ? AND question = ?",
                    (side.model_sha256, side.adapter_sha256, item.item_id, item.key),
                ).fetchone()
                if row is not None:
                    known[item.key] = Answer(*row)
            return known

        return await self._records.run(statements)

    async def keep_answers(self, side: Side, answers: Sequence[tuple[Item, Answer]]) -> None:
        """Keep what was answered."""

        def statements(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "INSERT OR REPLACE INTO gate_answers (model_sha256, adapter_sha256, item, question, answer)"
                " VALUES (?, ?, ?, ?, ?)",
                [
                    (side.model_sha256, side.adapter_sha256, item.item_id, item.key, answer.text)
                    for item, answer in answers
                    if item.item_id not in self._forgotten
                ],
            )
            connection.execute(
                "DELETE FROM gate_answers WHERE number <= (SELECT max(number) FROM gate_answers) - ?", (_ANSWERS,)
            )

        await self._records.run(statements)

    # Attempts

    async def attempt(self, model_sha256: str, adapter_sha256: str | None, target: Sequence[str]) -> int:
        """The how-manieth adapter this one is on these items, from 1; None is one that is still to come.

        Earlier ones count when a tenth of the items were theirs, too. One adapter judged twice is one attempt.
        """

        def statements(connection: sqlite3.Connection) -> int:
            shared: dict[int, int] = {}
            for item in target:
                for (number,) in connection.execute("SELECT result FROM gate_targets WHERE item = ?", (item,)):
                    shared[number] = shared.get(number, 0) + 1
            tried: list[str] = []
            for number in sorted(number for number, count in shared.items() if count >= _SAME_SET * len(target)):
                row = connection.execute(
                    "SELECT adapter_sha256 FROM gate_results WHERE number = ? AND model_sha256 = ? AND spends",
                    (number, model_sha256),
                ).fetchone()
                if row is not None and row[0] not in tried:
                    tried.append(row[0])
            return tried.index(adapter_sha256) + 1 if adapter_sha256 in tried else len(tried) + 1

        return await self._records.run(statements)

    # Verdicts

    async def keep(self, judgement: Judgement) -> None:
        """Keep a verdict; the same evaluation again takes its place."""
        result = judgement.result

        def statements(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM gate_results WHERE evaluation_id = ?", (result.evaluation_id,))
            number = connection.execute(
                "INSERT INTO gate_results"
                " (evaluation_id, job_id, model_sha256, adapter_sha256, is_attempt, spends, record)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    result.evaluation_id,
                    result.job_id,
                    result.model_sha256,
                    judgement.adapter_sha256,
                    judgement.is_attempt,
                    judgement.spends,
                    msgspec.json.encode(result).decode(),
                ),
            ).lastrowid
            connection.executemany(
                "INSERT OR IGNORE INTO gate_targets (item, result) VALUES (?, ?)",
                [(item, number) for item in judgement.target],
            )
            connection.executemany(
                "INSERT INTO gate_items (result, position, item, change, record) VALUES (?, ?, ?, ?, ?)",
                [
                    (number, position, one.row_id, _change(one), msgspec.json.encode(self._without(one)).decode())
                    for position, one in enumerate(judgement.items)
                ],
            )
            _prune(connection)

        await self._records.run(statements)

    async def verdict_of(self, job_id: str) -> GateResult | None:
        """The newest verdict on a job's adapter that may let it pass."""

        def statements(connection: sqlite3.Connection) -> GateResult | None:
            row = connection.execute(
                "SELECT record FROM gate_results WHERE job_id = ? AND is_attempt ORDER BY number DESC LIMIT 1",
                (job_id,),
            ).fetchone()
            return None if row is None else _result(row[0])

        return await self._records.run(statements)

    async def shown(
        self, job_id: str | None, evaluation_id: str | None, only: Only, limit: int
    ) -> tuple[GateResult, list[GateItem], int]:
        """A verdict, its items of which `limit` at most, and how many there are. Raises NotFound."""
        where, value = ("evaluation_id = ?", evaluation_id) if evaluation_id else ("job_id = ?", job_id)

        def statements(connection: sqlite3.Connection) -> tuple[GateResult, list[GateItem], int]:
            row = connection.execute(
                f"SELECT number, record FROM gate_results WHERE {where} ORDER BY number DESC LIMIT 1", (value,)
            ).fetchone()
            if row is None:
                what = f"evaluation {evaluation_id}" if evaluation_id else f"job {job_id}"
                raise NotFound(f"the gate has no verdict on {what}", id=value)
            number, record = row
            of = f"FROM gate_items WHERE result = ? {_CHANGES[only]}"
            items = connection.execute(
                f"SELECT record {of} ORDER BY change, position LIMIT ?", (number, limit)
            ).fetchall()
            (total,) = connection.execute(f"SELECT count(*) {of}", (number,)).fetchone()
            return _result(record), [_item(item) for (item,) in items], total

        return await self._records.run(statements)

    async def forget(self, items: Sequence[str]) -> int:
        """Erase the texts of these items, and their answers; figures stay. Answers how many places they were in."""

        def statements(connection: sqlite3.Connection) -> int:
            erased = 0
            self._forgotten.update(items)
            for item in items:
                erased += connection.execute("DELETE FROM gate_answers WHERE item = ?", (item,)).rowcount
                rows = connection.execute(
                    "SELECT result, position, record FROM gate_items WHERE item = ?", (item,)
                ).fetchall()
                for result, position, record in rows:
                    bare = msgspec.json.encode(self._without(_item(record))).decode()
                    connection.execute(
                        "UPDATE gate_items SET record = ? WHERE result = ? AND position = ?", (bare, result, position)
                    )
                erased += len(rows)
            return erased

        return await self._records.run(statements)

    def _without(self, item: GateItem) -> GateItem:
        """An item as it may be kept: without its texts where it was forgotten."""
        if item.row_id not in self._forgotten:
            return item
        return msgspec.structs.replace(item, question="", reference="", answer="", answer_before="")


def _change(item: GateItem) -> int:
    return (item.score > item.score_before) - (item.score < item.score_before)


def _prune(connection: sqlite3.Connection) -> None:
    connection.execute(
        "DELETE FROM gate_results WHERE number <= (SELECT max(number) FROM gate_results) - ?", (_RESULTS,)
    )
    connection.execute(
        "DELETE FROM gate_items WHERE result <= (SELECT max(number) FROM gate_results) - ?", (_RESULTS_WITH_ITEMS,)
    )
