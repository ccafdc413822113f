"""Freezes versions of datasets, says whether one may still be trained on, and writes what a trainer reads."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import msgspec

from bus.client import Client
from bus.records import Records
from bus.settings import LearningSettings
from schemas.bodies.learning_data import DatasetBuild, DatasetInfo
from schemas.bodies.model import ChatMessage, ModelInfo, ModelList, ModelShow
from schemas.bodies.model_files import ModelVerify
from schemas.errors import BusError, Conflict, NotFound, Unprocessable
from workers.learning.curation import clusters, datasets, lines, selection, store
from workers.learning.curation.drafts import TrainFile
from workers.learning.curation.forgetting import Asked, Forgetting
from workers.learning.curation.intake import Trust
from workers.learning.curation.likeness import Likeness, likeness_of

log = logging.getLogger("olympus.learning")

# Seconds to wait for facts about a model, and for its hash where nobody computed it yet: 100 GB at 0.5 GB a second.
_MODEL_S: Final = 10.0
_HASH_S: Final = 300.0

# Rows read and written together: they may have a megabyte each, and others wait for the file of records meanwhile.
_TOGETHER: Final = 100

# Why a row was left out of a version although it is ready.
_UNSURE: Final = "MemoryHub could not be asked"
_GUARDED: Final = "its fact is in a retention suite"


class Case(Protocol):
    """One question that a model must not forget how to answer."""

    @property
    def messages(self) -> Sequence[ChatMessage]:
        """Of a chat; empty for a prompt."""

    @property
    def prompt(self) -> str | None:
        """Of a raw continuation."""

    @property
    def reference(self) -> str:
        """The right answer."""


class Freezing:
    """Versions of datasets, and the files made of them."""

    def __init__(
        self,
        records: Records,
        client: Client,
        settings: LearningSettings,
        *,
        forgetting: Forgetting,
        trust: Trust,
        cases: Callable[[str], Sequence[Case]],
    ) -> None:
        self._records = records
        self._client = client
        self._settings = settings
        self._forgetting = forgetting
        self._trust = trust
        self._cases = cases

    async def model(self, name: str | None) -> ModelInfo:
        """The base model of that name or alias, the default one for None. Raises NotFound."""
        if name is None:
            models = await self._client.request("model.list", ModelList(), timeout_s=_MODEL_S)
            if models.default is None:
                raise NotFound("there is no default model; name one", field="model")
            name = models.default
        return await self._client.request("model.show", ModelShow(model=name), timeout_s=_MODEL_S)  # type: ignore[no-any-return]

    async def build(self, request: DatasetBuild) -> DatasetInfo:
        """Freeze a version. Raises Unprocessable where there is nothing to train on, saying what there is."""
        model = await self.model(request.model)
        sha256 = model.sha256 or await self._hashed(model.name)
        guarded = await asyncio.to_thread(self._likenesses, model.name)
        asked = await self._forgetting.ask(model=model.name)
        people = await self._records.run(partial(store.people, model=model.name))
        trust = {user: await self._trust.of(user) for user in people}
        share = self._settings.replay_share if request.replay_share is None else request.replay_share
        freeze = partial(
            self._freeze,
            request=request,
            model=model.name,
            model_sha256=sha256,
            asked=asked,
            trust=trust,
            share=share,
            guarded=guarded,
        )
        info = await self._records.run(freeze)
        log.info(
            "dataset frozen",
            extra={"action": "learning.dataset.frozen", "dataset": f"{info.dataset}:{info.version}", "rows": info.rows},
        )
        return info

    async def check(self, dataset: str, version: int) -> str:
        """Why a version may not be trained on now; "" when it may. Raises NotFound."""
        info = await self._records.run(partial(datasets.read, dataset=dataset, version=version))
        if info.is_stale:
            return f"{info.is_stale} after version {version} was built; build it anew"
        try:
            model = await self.model(info.model)
        except NotFound:
            return f"its base model {info.model!r} is not here any more"
        except BusError as error:
            return f"its base model {info.model!r} could not be asked for: {error.message}"
        sha256 = model.sha256 or await self._hashed(model.name)
        if sha256 != info.model_sha256:
            return (
                f"its base model {info.model!r} has changed since: sha256 {sha256[:12]} instead of {info.model_sha256[:12]};"
                " build it anew"
            )
        asked = await self._forgetting.ask(dataset=dataset, version=version)
        if asked.erased:
            return f"{len(asked.erased)} of its examples were forgotten; build it anew"
        if asked.unsure:
            return f"MemoryHub could not be asked whether {len(asked.unsure)} of its examples were forgotten"
        return ""

    async def write_train(self, dataset: str, version: int, path: Path) -> TrainFile:
        """Write the training rows, synced. Raises Conflict with the reason of `check`, Unprocessable when disk or file fail."""
        reason = await self.check(dataset, version)
        if reason:
            raise Conflict(f"dataset {dataset} version {version} cannot be trained on: {reason}", field="dataset")
        numbers = await self._records.run(
            partial(datasets.numbers, dataset=dataset, version=version, splits=("train", "replay"))
        )
        whole = hashlib.sha256()
        rows = preferences = size = 0
        try:
            with path.open("wb") as file:
                for start in range(0, len(numbers), _TOGETHER):
                    part = await self._records.run(partial(store.texts, numbers=numbers[start : start + _TOGETHER]))
                    data = b"".join(map(lines.train_line, part))
                    file.write(data)
                    whole.update(data)
                    rows += len(part)
                    preferences += sum(texts["rejected"] is not None for texts in part)
                    size += len(data)
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
        except OSError as error:
            raise Unprocessable(f"{path.name} cannot be written: {error.strerror}", field="path") from error
        return TrainFile(rows=rows, preferences=preferences, sha256=whole.hexdigest(), size_bytes=size)

    def _likenesses(self, model: str) -> list[Likeness]:
        return [
            likeness_of(
                {
                    "messages": msgspec.to_builtins(list(case.messages)) if case.messages else None,
                    "prompt": case.prompt,
                    "answer": case.reference,
                    "rejected": None,
                }
            )
            for case in self._cases(model)
        ]

    async def _hashed(self, model: str) -> str:
        verified = await self._client.request("model.verify", ModelVerify(model=model), timeout_s=_HASH_S)
        return str(verified.sha256)

    def _freeze(
        self,
        connection: sqlite3.Connection,
        request: DatasetBuild,
        model: str,
        model_sha256: str,
        asked: Asked,
        trust: dict[str, float],
        share: float,
        guarded: Sequence[Likeness],
    ) -> DatasetInfo:
        candidates = datasets.candidates(connection, request, model)
        sure = [row for row in candidates if row.number not in asked.unsure]
        known = clusters.resembling(connection, guarded)
        free = [row for row in sure if row.is_held or row.cluster not in known]
        chosen = selection.select(
            free, replay_share=share, person_share=self._settings.person_share, max_rows=request.max_rows, trust=trust
        )
        left_out = Counter(datasets.quarantined(connection, request, model))
        left_out.update(chosen.left_out)
        left_out[_GUARDED] += len(sure) - len(free)
        left_out[_UNSURE] += len(candidates) - len(sure)
        if not any(row.split == "train" for row in chosen.rows):
            raise Unprocessable(_nothing(request, model, chosen.rows, left_out), field="dataset")
        return datasets.freeze(
            connection,
            request,
            model=model,
            model_sha256=model_sha256,
            sha256=selection.content_hash(chosen.rows, model_sha256, request.metric),
            selection=chosen,
            left_out={reason: count for reason, count in left_out.items() if count},
            now=time.time(),
        )


def _nothing(request: DatasetBuild, model: str, rows: Sequence[selection.Chosen], left_out: Counter[str]) -> str:
    counts = Counter(row.split for row in rows)
    there = ", ".join(f"{count} {split}" for split, count in counts.items()) or "no row"
    out = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
    wanted = f" for {', '.join(request.opportunities)}" if request.opportunities else ""
    return (
        f"there is nothing to train {model} on{wanted}: {there} among the examples that are ready"
        + (f"; left out: {out}" if out else "")
        + ". Which facts are trained and which tested is decided by hash, so more examples are needed"
    )
