"""What the gate keeps is bounded, and what counts as an attempt outlives the texts it was made of."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bus.records import Records
from schemas.bodies.learning_gate import GateItem, GateResult
from schemas.errors import NotFound
from workers.learning.gate import kept
from workers.learning.gate.asking import Answer, Side
from workers.learning.gate.items import Item
from workers.learning.gate.kept import Judgement, Kept

SCHEMA = Path(__file__).resolve().parents[2] / "workers" / "learning" / "schema"
SIDE = Side("base", "m", "a:1", "a")


@asynccontextmanager
async def opened(home: Path) -> AsyncIterator[Kept]:
    """The tables in a file of this test's own."""
    records = Records(home / "learning.db", SCHEMA, "test")
    await records.open()
    try:
        yield Kept(records)
    finally:
        await records.close()


def judgement(number: int, adapter: str, target: Sequence[str], *, spends: bool = True) -> Judgement:
    """A verdict on an adapter, on these items."""
    result = GateResult(
        evaluation_id=f"e{number}",
        job_id=f"j{number}",
        model="base",
        model_sha256="m",
        adapter=f"{adapter}:1",
        against="",
        dataset="d",
        version=1,
        at=0.0,
        verdict="refused",
        reasons=[],
        target=None,
        retention=None,
        earlier=[],
        backward_transfer=None,
        alpha=0.05,
        corrected_alpha=0.025,
        attempt=1,
        min_gain=0.1,
        power=0.5,
        detectable_gain=0.2,
        metric="auto",
        took_s=0.0,
    )
    items = [
        GateItem(
            set="target",
            row_id=item,
            cluster=item,
            question="q",
            reference="r",
            answer="a",
            answer_before="b",
            score=float(index % 3) / 2,
            score_before=0.5,
        )
        for index, item in enumerate(target)
    ]
    return Judgement(result, adapter, True, spends, target, items)


async def test_only_new_verdicts_keep_their_items_and_all_count_as_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two kept whole, the first still has its figures and still makes the next attempt harder."""
    monkeypatch.setattr(kept, "_RESULTS_WITH_ITEMS", 2)
    async with opened(tmp_path) as tables:
        for number in range(3):
            await tables.keep(judgement(number, f"a{number}", ["x", "y", "z"]))

        first, items, total = await tables.shown("j0", None, "all", 10)
        assert (first.evaluation_id, items, total) == ("e0", [], 0)
        _, items, total = await tables.shown(None, "e2", "changed", 1)
        assert ([item.row_id for item in items], total) == (["x"], 2)
        assert (await tables.shown("j2", None, "better", 9))[2] == (await tables.shown("j2", None, "worse", 9))[2] == 1
        assert await tables.attempt("m", None, ["x", "y", "z"]) == 4
        assert await tables.attempt("m", "a1", ["x", "y", "z"]) == 2


async def test_the_oldest_verdicts_go_with_all_of_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the number that is kept."""
    monkeypatch.setattr(kept, "_RESULTS", 1)
    async with opened(tmp_path) as tables:
        for number in range(2):
            await tables.keep(judgement(number, f"a{number}", ["x"]))

        with pytest.raises(NotFound, match="no verdict on job j0"):
            await tables.shown("j0", None, "all", 10)
        assert await tables.attempt("m", None, ["x"]) == 2


async def test_an_attempt_is_one_on_the_same_items_of_the_same_model(tmp_path: Path) -> None:
    """A tenth of the items shared is enough; another model, or a verdict that spent nothing, is none."""
    async with opened(tmp_path) as tables:
        await tables.keep(judgement(0, "a0", [str(number) for number in range(20)]))
        await tables.keep(judgement(1, "a1", [str(number) for number in range(20)], spends=False))

        assert await tables.attempt("m", None, ["0", *(f"n{number}" for number in range(9))]) == 2
        assert await tables.attempt("m", None, ["0", *(f"n{number}" for number in range(10))]) == 1
        assert await tables.attempt("other", None, ["0"]) == 1
        assert await tables.attempt("m", None, []) == 1


async def test_the_same_evaluation_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    """So that a repeated request leaves one verdict."""
    async with opened(tmp_path) as tables:
        await tables.keep(judgement(0, "a0", ["x", "y"]))
        await tables.keep(judgement(0, "a0", ["x"]))

        assert (await tables.shown(None, "e0", "all", 10))[2] == 1


async def test_answers_are_kept_by_content_and_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another adapter content nothing is known; a changed question is another one."""
    monkeypatch.setattr(kept, "_ANSWERS", 2)
    items = [Item(item_id=f"i{n}", cluster="c", reference="r", metric="exact", prompt=f"q{n}") for n in range(3)]
    async with opened(tmp_path) as tables:
        await tables.keep_answers(SIDE, [(item, Answer(f"a {item.item_id}")) for item in items])

        known = await tables.answers(SIDE, items)
        assert known == {items[1].key: Answer("a i1"), items[2].key: Answer("a i2")}
        assert await tables.answers(SIDE._replace(adapter_sha256="b"), items) == {}
        edited = Item(item_id="i2", cluster="c", reference="r", metric="exact", prompt="q2!")
        assert await tables.answers(SIDE, [edited]) == {}


async def test_what_got_worse_is_shown_first(tmp_path: Path) -> None:
    """Whoever asks why sees a few items, and those that speak against the adapter matter most."""
    async with opened(tmp_path) as tables:
        await tables.keep(judgement(0, "a0", ["worse", "same", "better", "worse too"]))

        _, items, total = await tables.shown("j0", None, "changed", 10)

    assert ([item.row_id for item in items], total) == (["worse", "worse too", "better"], 3)
