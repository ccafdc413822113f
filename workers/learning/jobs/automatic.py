"""What is worth training unasked: groups of opportunities with examples enough, and data that was not tried yet.

It knows neither hours nor devices.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Collection
from typing import Final

from schemas.bodies.learning import Opportunity
from schemas.bodies.learning_data import DatasetBuild, DatasetInfo
from schemas.bodies.learning_gate import PowerShow
from schemas.errors import Rejected
from workers.learning.jobs.book import Book
from workers.learning.jobs.run import Parts

log = logging.getLogger("olympus.learning.jobs")

# A name of a dataset may be so long.
_NAME_CHARACTERS: Final = 64

_Seen = tuple[tuple[str, int], ...]


class Automatic:
    """Remembers what was looked at, so that nothing is built again before there are more examples."""

    def __init__(self, parts: Parts, book: Book) -> None:
        self._parts = parts
        self._book = book
        self._seen: set[_Seen] = set()

    async def worthwhile(self, busy: Collection[str]) -> list[DatasetInfo]:
        """A dataset for each model that is not busy and has something to learn that the gate could see."""
        found: dict[str, DatasetInfo] = {}
        for group in await self._parts.needs.together(self._parts.settings.learning.min_examples):
            model, seen = group[0].model, tuple(sorted((one.opportunity_id, one.examples) for one in group))
            if model in busy or model in found or seen in self._seen or self._is_still_coming(group):
                continue
            try:
                dataset = await self._dataset(model, group)
            except Rejected as error:
                reason = error.message
            else:
                reason = await self._reason_against(dataset)
                if not reason:
                    found[model] = dataset
                    continue
            self._seen.add(seen)
            log.info(
                "not trained unasked: %s", reason, extra={"action": "learning.automatic.passed_over", "model": model}
            )
        return list(found.values())

    def _is_still_coming(self, group: list[Opportunity]) -> bool:
        """Somebody told of it a moment ago, and may go on: half of a lesson would be trained."""
        quiet_s = time.time() - max(one.last_seen_at for one in group)
        return quiet_s < self._parts.settings.learning.idle_s

    async def _dataset(self, model: str, group: list[Opportunity]) -> DatasetInfo:
        ids = [one.opportunity_id for one in group]
        return await self._parts.datasets.build(
            DatasetBuild(dataset=dataset_name(f"learned-{model}"), model=model, opportunities=ids, note="unasked")
        )

    async def _reason_against(self, dataset: DatasetInfo) -> str:
        """Why it would be of no use; "" when it may be."""
        tried = await self._book.ended_with(dataset.model, dataset.sha256)
        if tried is not None:
            return f"{tried.info.job_id} was trained on the same rows and is {tried.info.state}"
        power = await self._parts.judge.power(PowerShow(dataset=dataset.dataset, version=dataset.version))
        return "" if power.is_enough else power.words


def dataset_name(wish: str) -> str:
    """A name a dataset may have: `learned-org/model:1` -> `learned-org-model-1`."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", wish)[:_NAME_CHARACTERS]
