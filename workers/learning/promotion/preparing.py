"""From a PEFT folder to a challenger of the running model that is known to compute the same. Knows no deployment."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from functools import partial
from pathlib import Path

from bus.records import Records
from schemas.bodies.model_files import AdapterInfo
from schemas.errors import NotFound, Unprocessable
from workers.learning.promotion import deployments as kept
from workers.learning.promotion.comparing import compare_with_peft, texts_of
from workers.learning.promotion.deployments import Prepared
from workers.learning.promotion.equality import Equality, is_quantised
from workers.learning.promotion.folder import check_base, content_of, name_of
from workers.learning.promotion.seams import Rows, Trained
from workers.learning.promotion.served import REFUSED, Served, exact_name, release
from workers.learning.training.training import Nest


class Preparing:
    """Adapters on their way to the gate. One at a time for each model, beside whatever is promoted or taken back."""

    def __init__(self, served: Served, records: Records, rows: Rows, nest: Nest) -> None:
        self._served = served
        self._nest = nest
        self._records = records
        self._rows = rows
        self._one_at_a_time: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def prepare(self, trained: Trained) -> Prepared:
        """Attach a job's adapter as challenger, and make sure that it computes what PEFT computes. May be repeated.

        Starts a program that holds the base model in main memory. Raises NotFound for a folder or model that is not there,
        Unprocessable for an adapter of another base, one that cannot be converted, and one that differs from PEFT: then it
        is detached; else what the model service answers.
        """
        folder = Path(trained.adapter_path)
        async with self._one_at_a_time[trained.model]:
            sha256 = await asyncio.to_thread(content_of, folder)
            name = name_of(trained.dataset, sha256)
            info = await self._served.model(trained.model)
            if trained.model_sha256 and info.sha256 and info.sha256 != trained.model_sha256:
                raise Unprocessable(
                    f"the adapter is for {trained.model} with content {trained.model_sha256[:12]},"
                    f" but {info.name} has now content {info.sha256[:12]}",
                    model=trained.model,
                )
            known = await self._records.run(partial(kept.prepared, job_id=trained.job_id))
            if known is not None and known.sha256 == sha256 and await self._is_there(known):
                return known
            await asyncio.to_thread(check_base, folder, Path(trained.base), trained.base_sha256, trained.model)
            note = f"{trained.job_id}, {trained.dataset} version {trained.version}"
            attached = await self._served.attach(trained.model, name, str(folder), note, is_challenger=True)
            if known is not None and known.exact_name == exact_name(attached):
                return known
            try:
                equality = await self.compare(trained, attached, is_quantised(info.quantisation))
            except REFUSED:
                await release(self._served, trained.model, name, forget=True)
                raise
            prepared = Prepared(
                job_id=trained.job_id,
                model=trained.model,
                adapter=name,
                adapter_version=attached.version,
                sha256=sha256,
                probes=equality.probes,
                difference=equality.difference,
                bare_difference=equality.bare_difference,
                tolerance=equality.tolerance,
                words=equality.words,
            )
            await self._records.run(partial(kept.keep_prepared, one=prepared))
            return prepared

    async def discard(self, trained: Trained) -> None:
        """Detach a job's adapter that will not be promoted, and delete the model service's copy. May be repeated."""
        known = await self._records.run(partial(kept.prepared, job_id=trained.job_id))
        if known is None:
            # Killed between attaching and writing that down.
            try:
                name = name_of(trained.dataset, await asyncio.to_thread(content_of, Path(trained.adapter_path)))
            except (NotFound, OSError):
                return
        else:
            name = known.adapter
            await self._records.run(partial(kept.drop_prepared, job_id=trained.job_id))
        others = await self._records.run(partial(kept.jobs_with, model=trained.model, adapter=name))
        if not others:
            await release(self._served, trained.model, name, forget=True)

    async def compare(self, trained: Trained, attached: AdapterInfo, quantised: bool) -> Equality:
        """How it differs from PEFT. Raises Unprocessable with the numbers when it differs too much."""
        held_out = await self._rows.held_out(trained.dataset, trained.version)
        retention = await self._rows.retention(trained.dataset, trained.version)
        equality = await compare_with_peft(
            self._served,
            self._nest,
            model=trained.model,
            adapter=exact_name(attached),
            base=trained.base,
            folder=trained.adapter_path,
            texts=texts_of(held_out, retention),
            quantised=quantised,
        )
        if equality.problem:
            raise Unprocessable(f"{attached.adapter} may not serve {trained.model}: {equality.problem}")
        return equality

    async def _is_there(self, one: Prepared) -> bool:
        """Whether it is attached, or will be when its model is loaded."""
        found = {exact_name(info): info for info in await self._served.adapters(one.model)}.get(one.exact_name)
        return found is not None and (found.is_attached or found.alias != "")
