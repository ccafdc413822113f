"""What is learned from: every operation on examples and datasets, and what detection, jobs and gate ask of them.

Examples come in (intake.py), are forgotten with their origin (forgetting.py), and are frozen into versions (freezing.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Literal

from bus.client import Client
from bus.records import Records
from bus.settings import Settings
from schemas.bodies import learning_data as bodies
from schemas.bodies.learning import Example, Exchange
from schemas.bodies.model import ModelInfo
from schemas.errors import BadRequest, Conflict
from workers.learning.curation import datasets, lines, store
from workers.learning.curation.drafts import Draft, Taken, TrainFile
from workers.learning.curation.finder_process import FinderProcess
from workers.learning.curation.forgetting import Forgetting
from workers.learning.curation.freezing import Case, Freezing
from workers.learning.curation.intake import Intake, Trust
from workers.learning.curation.references import MemoryHub
from workers.learning.exchanges.sessions import named_session

# Rows of one part of an export.
_PART_ROWS: Final = 200

# Exchanges of each kind looked at for one version, the newest: a retention set and as much replay again.
_EXCHANGES_MAX: Final = 4_000

# What a row says when a person let it through.
_RELEASED: Final = "released by hand"


async def _nobody(dataset: str, version: int) -> str:
    return ""


async def _nothing(model: str, limit: int) -> list[Exchange]:
    return []


def _no_cases(model: str) -> Sequence[Case]:
    return ()


async def _unheard(row_ids: Sequence[str]) -> int:
    return 0


class Curation:
    """Examples and datasets.

    job_needing: id of a job that still needs a version of a dataset, "" for none. good: the newest exchanges of a model that
    somebody was content with, a number of them at most. unrated: those nobody said anything about. cases: what a model must
    not forget; read in a thread. on_erased: told the ids of rows that are gone, so that copies of them go, too; again where
    it was not told to the end.
    """

    def __init__(
        self,
        records: Records,
        client: Client,
        settings: Settings,
        *,
        job_needing: Callable[[str, int], Awaitable[str]] = _nobody,
        good: Callable[[str, int], Awaitable[list[Exchange]]] = _nothing,
        unrated: Callable[[str, int], Awaitable[list[Exchange]]] = _nothing,
        cases: Callable[[str], Sequence[Case]] = _no_cases,
        on_erased: Callable[[Sequence[str]], Awaitable[object]] = _unheard,
    ) -> None:
        self._records = records
        self._job_needing = job_needing
        self._good = good
        self._unrated = unrated
        self._on_erased = on_erased
        self._watching: asyncio.Task[None] | None = None
        self._finders = FinderProcess()
        hub = MemoryHub(client)
        trust = Trust(client)
        self._forgetting = Forgetting(records, client, hub, self._tell_erased)
        self._intake = Intake(records, settings.learning, finders=self._finders, hub=hub, trust=trust)
        self._freezing = Freezing(
            records, client, settings.learning, forgetting=self._forgetting, trust=trust, cases=cases
        )

    async def start(self) -> None:
        """Follow what is forgotten in MemoryHub, and tell of what was erased last. The records are open."""
        await self._tell_erased()
        self._watching = asyncio.create_task(self._forgetting.watch_forever())

    async def stop(self) -> None:
        """End what was started, and the process that searches for secrets."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None
        await self._finders.stop()

    # For the other parts of the service

    async def add(self, drafts: Sequence[Draft]) -> list[Taken]:
        """Take examples in; what became of each, in their order."""
        return await self._intake.add(drafts)

    async def examples(self, opportunity_ids: Sequence[str]) -> dict[str, int]:
        """How many rows each opportunity has that may be learned from."""
        return await self._records.run(partial(store.count_ready, opportunity_ids=opportunity_ids))

    async def forget(self, *, user: str = "", session_id: str = "", evidence: Sequence[str] = ()) -> int:
        """Erase the rows of a person, of a session, or made of this evidence; returns how many."""
        forget = partial(store.forget, user=user, session_id=session_id, evidence=evidence, now=time.time())
        erased = await self._records.run(forget)
        if erased:
            await self._tell_erased()
        return len(erased)

    async def complained(self, reply_id: str) -> None:
        """Somebody called an answer bad: rows that would repeat it, or measure by it, are kept out."""
        await self._records.run(partial(store.complain, reply_id=reply_id))

    async def info(self, dataset: str, version: int | None = None) -> bodies.DatasetInfo:
        """A version, the newest by default. Raises NotFound."""
        return await self._records.run(partial(datasets.read, dataset=dataset, version=version))

    async def check(self, dataset: str, version: int) -> str:
        """Why a version may not be trained on now; "" when it may. Raises NotFound."""
        return await self._freezing.check(dataset, version)

    async def write_train(self, dataset: str, version: int, path: Path) -> TrainFile:
        """Write what a trainer reads: the rows of `train` and `replay`. Raises Conflict with the reason of `check`."""
        return await self._freezing.write_train(dataset, version, path)

    async def held_out(self, dataset: str, version: int | None = None) -> list[bodies.RowInfo]:
        """The rows a version is tested on. Raises NotFound."""
        return await self._of_split(dataset, version, "held_out")

    async def retention(self, dataset: str, version: int | None = None) -> list[bodies.RowInfo]:
        """The rows that show whether something was forgotten. Raises NotFound."""
        return await self._of_split(dataset, version, "retention")

    async def _of_split(self, dataset: str, version: int | None, split: str) -> list[bodies.RowInfo]:
        info = await self.info(dataset, version)
        return await self._records.run(partial(datasets.rows, dataset=dataset, version=info.version, split=split))

    # Operations on datasets

    async def list(self, request: bodies.DatasetList) -> bodies.Datasets:
        """The datasets there are."""
        return bodies.Datasets(datasets=await self._records.run(partial(datasets.list_all, request=request)))

    async def show(self, request: bodies.DatasetShow) -> bodies.DatasetShown:
        """A version and a page of its rows. Raises NotFound."""
        info = await self.info(request.dataset, request.version)
        page = await self._records.run(partial(datasets.page, request=request, version=info.version))
        return bodies.DatasetShown(dataset=info, page=page)

    async def build(self, request: bodies.DatasetBuild) -> bodies.DatasetInfo:
        """Freeze a version. Raises NotFound for the model, Unprocessable where there is nothing to train on."""
        await self._take_exchanges(await self._freezing.model(request.model))
        return await self._freezing.build(request)

    async def delete(self, request: bodies.DatasetDelete) -> bodies.DatasetDeleted:
        """Delete versions. Raises NotFound, and Conflict while a job needs one."""
        found = await self._records.run(partial(datasets.versions, dataset=request.dataset, version=request.version))
        for version in found:
            job = await self._job_needing(request.dataset, version)
            if job:
                raise Conflict(f"dataset {request.dataset} version {version} is needed by job {job}", field="dataset")
        await self._records.run(partial(datasets.delete, dataset=request.dataset, found=found))
        return bodies.DatasetDeleted(dataset=request.dataset, versions=len(found))

    async def export(
        self, request: bodies.DatasetExport, part: Callable[[bodies.DatasetPart], Awaitable[None]]
    ) -> bodies.DatasetExported:
        """Hand the rows to `part` as JSON Lines. Raises NotFound."""
        info = await self.info(request.dataset, request.version)
        after = ""
        count = 0
        while True:
            asked = bodies.DatasetShow(dataset=request.dataset, split=request.split, after=after, limit=_PART_ROWS)
            page = await self._records.run(partial(datasets.page, request=asked, version=info.version))
            if page.rows:
                await part(bodies.DatasetPart(lines="".join(map(lines.write, page.rows))))
            count += len(page.rows)
            after = page.next
            if not after:
                return bodies.DatasetExported(
                    dataset=info.dataset, version=info.version, rows=count, sha256=info.sha256
                )

    async def import_(self, request: bodies.DatasetImport) -> bodies.DatasetImported:
        """Take in examples. Raises BadRequest where none is given, TooLarge for too many, NotFound for the model."""
        if bool(request.lines.strip()) == bool(request.examples):
            given = "both" if request.examples else "neither"
            raise BadRequest(f"an import has either lines or examples; this one has {given}", field="lines")
        model = (await self._freezing.model(request.model)).name
        read = lines.read(request.lines, request.first_line)
        numbered = read.examples or list(enumerate(request.examples, request.first_line))
        drafts = [
            _imported(
                example,
                model=model,
                opportunity_id=request.opportunity_id or "",
                is_retention=request.split == "retention",
                source=request.source,
            )
            for _, example in numbered
        ]
        taken = await self._intake.add(drafts)
        problems = [*read.problems]
        for (number, _), one in zip(numbered, taken, strict=True):
            if one.outcome in {"refused", "quarantined"}:
                problems.append(bodies.LineProblem(line=number, reason=one.reason))
        counts = {
            outcome: sum(one.outcome == outcome for one in taken) for outcome in ("added", "duplicate", "quarantined")
        }
        return bodies.DatasetImported(
            added=counts["added"],
            duplicates=counts["duplicate"],
            quarantined=counts["quarantined"],
            refused=read.refused + sum(one.outcome == "refused" for one in taken),
            problems=sorted(problems, key=lambda problem: problem.line)[: lines.PROBLEMS_MAX],
        )

    # Operations on rows

    async def rows(self, request: bodies.RowList) -> bodies.RowPage:
        """A page of the store. Raises NotFound for an `after` that is no row."""
        return await self._records.run(partial(store.page, request=request))

    async def edit(self, request: bodies.RowEdit) -> bodies.RowInfo:
        """Correct an example. Raises NotFound, Conflict, BadRequest."""
        return await self._intake.edit(request)

    async def remove(self, request: bodies.RowRemove) -> bodies.RowInfo:
        """Take an example out for good. Raises NotFound."""
        row = await self._records.run(partial(store.remove, request=request, now=time.time()))
        await self._tell_erased()
        return row

    async def release(self, request: bodies.RowRelease) -> bodies.RowInfo:
        """Let a quarantined example be used. Raises NotFound, Conflict for one that is not quarantined or lacks its words."""
        return await self._records.run(partial(store.release, request=request, why=request.reason or _RELEASED))

    async def _tell_erased(self) -> None:
        """Have copies of erased rows erased, too, and what was written over in the file's log."""
        row_ids = await self._records.run(store.untold)
        if row_ids:
            await self._on_erased(row_ids)
            await self._records.run(partial(store.told, row_ids=row_ids))
            await self._records.empty_log()

    async def _take_exchanges(self, model: ModelInfo) -> None:
        """What the model does already: repeated and guarded, never taught as something new."""
        await self._take(model, "exchange", await self._good(model.name, _EXCHANGES_MAX))
        await self._take(model, "unrated", await self._unrated(model.name, _EXCHANGES_MAX))

    async def _take(
        self, model: ModelInfo, kind: Literal["exchange", "unrated"], exchanges: Sequence[Exchange]
    ) -> None:
        found = [one for one in exchanges if not one.error and one.text.strip()]
        known = await self._records.run(partial(store.known_evidence, ids=[one.reply_id for one in found]))
        await self._intake.add(
            [
                Draft(
                    model=model.name,
                    kind=kind,
                    answer=one.text,
                    messages=one.messages,
                    prompt=one.prompt,
                    user=one.user,
                    session_id=named_session(one.session_id, one.user),
                    evidence=[one.reply_id],
                )
                for one in found
                if one.reply_id not in known
            ]
        )


def _imported(example: Example, *, model: str, opportunity_id: str, is_retention: bool, source: str) -> Draft:
    return Draft(
        model=model,
        kind="import",
        answer=example.answer,
        messages=example.messages,
        prompt=example.prompt,
        rejected=example.rejected,
        user=example.user,
        session_id=example.session_id,
        memory_ids=example.memory_ids,
        opportunity_id=opportunity_id,
        is_retention=is_retention,
        source=source,
    )
