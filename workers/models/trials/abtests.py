"""`model.abtest.*`: who gets which variant, what came of it, and what is certain by now.

A unit's variant follows from the test and the unit alone, and is kept when it is first asked for: the kept one counts,
so nobody ever moves, and a test that has ended still knows who has what. A unit counts once, with its first outcome:
more outcomes of the same unit depend on each other, and averages that change later would break "at any time".
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from typing import Final

import msgspec

from bus.records import Records
from schemas.bodies.model_trials import (
    AbTestAssign,
    AbTestAssigned,
    AbTestGet,
    AbTestList,
    AbTestRecord,
    AbTestResult,
    AbTests,
    AbTestStart,
    AbTestStop,
    Variant,
)
from schemas.errors import BadRequest, Conflict, NotFound
from workers.models.trials import verdict as verdicts
from workers.models.trials.assignment import variant_of
from workers.models.trials.sequential import Kind, Outcomes

# Tests kept: the newest. A test of 10^5 units takes some 20 MB.
_KEPT: Final = 200

_variants = msgspec.json.Decoder(list[Variant]).decode


class _Kept(msgspec.Struct, frozen=True):
    """A row of `abtests`."""

    number: int
    id: str
    name: str
    variants: list[Variant]
    outcome: Kind
    alpha: float
    min_effect: float
    started_at: float
    stopped_at: float | None
    winner: str | None
    verdict: str | None

    @property
    def terms(self) -> verdicts.Terms:
        return verdicts.Terms(tuple(variant.name for variant in self.variants), self.alpha, self.min_effect)


class AbTesting:
    """The A/B tests of one file of records."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def start(self, request: AbTestStart, id: bytes) -> AbTestResult:
        """Start a test. Raises BadRequest for names given twice, Conflict while one of its name runs."""
        names = [variant.name for variant in request.variants]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise BadRequest(f"field 'variants': {', '.join(twice)} is there more than once", field="variants")

        def statements(connection: sqlite3.Connection) -> AbTestResult:
            test_id = id.hex()
            if not connection.execute("SELECT 1 FROM abtests WHERE id = ?", (test_id,)).fetchone():
                _insert(connection, test_id, request)
            return _result(connection, _find(connection, test_id))

        return await self._records.run(statements)

    async def assign(self, request: AbTestAssign) -> AbTestAssigned:
        """The unit's variant. Raises NotFound, and Conflict for a new unit of a test that has ended."""

        def statements(connection: sqlite3.Connection) -> AbTestAssigned:
            kept = _find(connection, request.test_id)
            index = _variant_of_unit(connection, kept, request.unit)
            if index is None:
                if kept.stopped_at is not None:
                    raise Conflict(
                        f"test {kept.id} has ended and takes no new units; its winner: {kept.winner or 'none'}",
                        test_id=kept.id,
                        winner=kept.winner,
                    )
                index = variant_of(kept.id, request.unit, [variant.weight for variant in kept.variants])
                connection.execute(
                    "INSERT INTO abtest_units (test, unit, variant) VALUES (?, ?, ?)",
                    (kept.number, request.unit, index),
                )
            variant = kept.variants[index]
            return AbTestAssigned(
                test_id=kept.id, unit=request.unit, variant=variant.name, model=variant.model, adapter=variant.adapter
            )

        return await self._records.run(statements)

    async def record(self, request: AbTestRecord, id: bytes) -> AbTestResult:
        """Take in an outcome; late ones of a test that has ended still count.

        Raises NotFound for a test or a unit that has no variant in it, BadRequest for a value that is not of the test's
        kind, Conflict for an outcome_id that said something else before.
        """
        outcome_id = f"={request.outcome_id}" if request.outcome_id is not None else id.hex()

        def statements(connection: sqlite3.Connection) -> AbTestResult:
            kept = _find(connection, request.test_id)
            if kept.outcome == "binary" and request.value not in (0.0, 1.0):
                raise BadRequest(
                    f"field 'value' is {request.value:g}, an outcome of this test is 0 or 1", field="value"
                )
            index = _variant_of_unit(connection, kept, request.unit)
            if index is None:
                raise NotFound(
                    f"unit {request.unit!r} has no variant in test {kept.id}: ask model.abtest.assign first",
                    unit=request.unit,
                )
            if _is_new(connection, kept, outcome_id, request):
                _take_in(connection, kept, index, request)
                if kept.verdict is None:
                    kept = _end_if_certain(connection, kept)
            return _result(connection, kept)

        return await self._records.run(statements)

    async def result(self, request: AbTestGet) -> AbTestResult:
        """What a test shows. Raises NotFound."""
        return await self._records.run(lambda connection: _result(connection, _find(connection, request.test_id)))

    async def stop(self, request: AbTestStop) -> AbTestResult:
        """End a test; nothing happens to one that has ended. Raises NotFound."""

        def statements(connection: sqlite3.Connection) -> AbTestResult:
            connection.execute(
                "UPDATE abtests SET stopped_at = ? WHERE id = ? AND stopped_at IS NULL", (time.time(), request.test_id)
            )
            return _result(connection, _find(connection, request.test_id))

        return await self._records.run(statements)

    async def list(self, request: AbTestList) -> AbTests:
        """The tests, the newest first."""

        def statements(connection: sqlite3.Connection) -> list[tuple[_Kept, list[Outcomes], list[int]]]:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM abtests ORDER BY number DESC").fetchall()
            return [(kept, *_sums(connection, kept)) for kept in map(_from_row, rows)]

        found = await self._records.run(statements)
        # Up to 70 ms a test, which nobody else who needs the records has to wait for.
        return AbTests(tests=await asyncio.to_thread(lambda: [_shown(*one) for one in found]))


_COLUMNS: Final = "number, id, name, variants, outcome, alpha, min_effect, started_at, stopped_at, winner, verdict"


def _from_row(row: tuple[object, ...]) -> _Kept:
    fields = dict(zip(_Kept.__struct_fields__, row, strict=True))
    return msgspec.convert({**fields, "variants": _variants(str(fields["variants"]))}, _Kept)


def _find(connection: sqlite3.Connection, test_id: str) -> _Kept:
    row = connection.execute(f"SELECT {_COLUMNS} FROM abtests WHERE id = ?", (test_id,)).fetchone()
    if row is None:
        running = connection.execute("SELECT id, name FROM abtests WHERE stopped_at IS NULL ORDER BY number").fetchall()
        known = ", ".join(f"{id} ({name})" for id, name in running[:20]) or "none"
        raise NotFound(f"no A/B test {test_id}; running: {known}", test_id=test_id)
    return _from_row(row)


def _insert(connection: sqlite3.Connection, test_id: str, request: AbTestStart) -> None:
    running = connection.execute(
        "SELECT id FROM abtests WHERE name = ? AND stopped_at IS NULL", (request.name,)
    ).fetchone()
    if running is not None:
        raise Conflict(f"a test named {request.name!r} runs already: {running[0]}", test_id=running[0])
    number = connection.execute(
        "INSERT INTO abtests (id, name, variants, outcome, alpha, min_effect, started_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            test_id,
            request.name,
            msgspec.json.encode(request.variants).decode(),
            request.outcome,
            request.alpha,
            request.min_effect,
            time.time(),
        ),
    ).lastrowid
    assert number is not None
    connection.executemany(
        "INSERT INTO abtest_variants (test, variant) VALUES (?, ?)",
        [(number, index) for index in range(len(request.variants))],
    )
    connection.execute(
        "DELETE FROM abtests WHERE stopped_at IS NOT NULL AND number <= (SELECT max(number) FROM abtests) - ?", (_KEPT,)
    )


def _variant_of_unit(connection: sqlite3.Connection, kept: _Kept, unit: str) -> int | None:
    row = connection.execute(
        "SELECT variant FROM abtest_units WHERE test = ? AND unit = ?", (kept.number, unit)
    ).fetchone()
    return None if row is None else int(row[0])


def _is_new(connection: sqlite3.Connection, kept: _Kept, outcome_id: str, request: AbTestRecord) -> bool:
    """Keep the outcome's id; False when it was told before."""
    told = connection.execute(
        "SELECT unit, value FROM abtest_outcomes WHERE test = ? AND id = ?", (kept.number, outcome_id)
    ).fetchone()
    if told is None:
        connection.execute(
            "INSERT INTO abtest_outcomes (test, id, unit, value) VALUES (?, ?, ?, ?)",
            (kept.number, outcome_id, request.unit, request.value),
        )
        return True
    if told != (request.unit, request.value):
        raise Conflict(
            f"outcome_id {request.outcome_id!r} was told before, of unit {told[0]!r} with value {told[1]:g}",
            outcome_id=request.outcome_id,
        )
    return False


def _take_in(connection: sqlite3.Connection, kept: _Kept, index: int, request: AbTestRecord) -> None:
    connection.execute(
        "UPDATE abtest_variants SET outcomes = outcomes + 1 WHERE test = ? AND variant = ?", (kept.number, index)
    )
    is_first = connection.execute(
        "UPDATE abtest_units SET has_outcome = 1 WHERE test = ? AND unit = ? AND has_outcome = 0",
        (kept.number, request.unit),
    ).rowcount
    if is_first:
        after = _sums(connection, kept)[0][index].plus(request.value)
        connection.execute(
            "UPDATE abtest_variants SET n = ?, total = ?, surprise = ? WHERE test = ? AND variant = ?",
            (after.n, after.total, after.surprise, kept.number, index),
        )


def _end_if_certain(connection: sqlite3.Connection, kept: _Kept) -> _Kept:
    end = verdicts.ending(kept.terms, _sums(connection, kept)[0])
    if end is None:
        return kept
    now = time.time()
    connection.execute(
        "UPDATE abtests SET stopped_at = coalesce(stopped_at, ?), winner = ?, verdict = ? WHERE number = ?",
        (now, end.winner, end.verdict, kept.number),
    )
    return msgspec.structs.replace(kept, stopped_at=kept.stopped_at or now, winner=end.winner, verdict=end.verdict)


def _sums(connection: sqlite3.Connection, kept: _Kept) -> tuple[list[Outcomes], list[int]]:
    """What the variants' units said, and how many outcomes were told of each."""
    rows = connection.execute(
        "SELECT n, total, surprise, outcomes FROM abtest_variants WHERE test = ? ORDER BY variant", (kept.number,)
    ).fetchall()
    return [Outcomes(kept.outcome, *row[:3]) for row in rows], [row[3] for row in rows]


def _result(connection: sqlite3.Connection, kept: _Kept) -> AbTestResult:
    return _shown(kept, *_sums(connection, kept))


def _shown(kept: _Kept, sums: list[Outcomes], counts: list[int]) -> AbTestResult:
    return AbTestResult(
        test_id=kept.id,
        name=kept.name,
        status="running" if kept.stopped_at is None else "stopped",
        started_at=kept.started_at,
        stopped_at=kept.stopped_at,
        alpha=kept.alpha,
        variants=verdicts.variant_results(kept.terms, sums, counts),
        differences=verdicts.differences(kept.terms, sums),
        winner=kept.winner,
        verdict=kept.verdict or verdicts.words(kept.terms, sums),
    )
