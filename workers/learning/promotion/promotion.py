"""Puts adapters to work and takes them back. What serves is what `model.adapter.list` says; the records follow it.

    prepare    attached as challenger under the name of its content -> compared with PEFT -> kept in the records
    promote    step "promoting" written -> the model service turns to it -> written as canary or champion -> told
    look       outcomes -> pairs -> rolled back, or kept for good: then it is champion
    roll back  step "rolling_back" written -> the model service turns back -> written -> told -> detached

A step that is written and not finished, because something was killed in between, is settled by asking what serves. One
lock for each model: two promotions come one after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import sqlite3
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from bus.client import Client
from bus.records import Records
from bus.settings import Settings
from schemas.bodies.learning_gate import (
    Deployment,
    Deployments,
    GateResult,
    LearnedAdapters,
    Promote,
    Rollback,
    WatchArm,
    Watched,
    Watches,
    WatchShow,
)
from schemas.bodies.model_files import AdapterInfo
from schemas.errors import BadRequest, BusError, Conflict, NotFound
from workers.learning.gate.sequential import Outcomes, promised_pairs
from workers.learning.promotion import deployments as kept
from workers.learning.promotion.deployments import Deployed, Prepared, WatchState
from workers.learning.promotion.preparing import Preparing
from workers.learning.promotion.seams import Earlier, Jobs, Live, Previous, Rows, Trained, Verdicts
from workers.learning.promotion.served import REFUSED, Served, exact_name, release
from workers.learning.promotion.watching import Progress, Rules, decide, first, with_outcomes
from workers.learning.training.training import Nest

log = logging.getLogger("olympus.learning.promotion")

# Seconds between two looks at the outcomes, and between two comparisons of the records with what serves.
_LOOK_S: Final = 2.0
_COMPARE_S: Final = 30.0

# Outcomes read at once.
_PAGE: Final = 1_000


class Promotion:
    """The operations `learning.promote`, `.rollback`, `.adapter.list` and `.watch`, and what jobs need of them.

    `start` once the records are open. publish: sends an event. nest: the warm parent of trainers, where what compares with
    PEFT is forked while it is open. promotions, rollbacks: done since it was made.
    """

    def __init__(
        self,
        settings: Settings,
        client: Client,
        records: Records,
        *,
        jobs: Jobs,
        verdicts: Verdicts,
        rows: Rows,
        live: Live,
        publish: Callable[[str, Deployment], Awaitable[None]],
        nest: Nest,
    ) -> None:
        learning = settings.learning
        self.promotions = self.rollbacks = 0
        self._default_model = settings.models.default
        self._canary_share = learning.canary_share
        self._rules = Rules(
            alpha=learning.watch_alpha,
            drop=learning.watch_drop,
            pairs=learning.watch_pairs,
            days=learning.watch_days,
        )
        self._served = Served(client)
        self._records = records
        self._jobs = jobs
        self._verdicts = verdicts
        self._preparing = Preparing(self._served, records, rows, nest)
        self._live = live
        self._publish = publish
        self._changing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to watch, and to settle what was cut off; the model service may come later."""
        self._task = asyncio.get_running_loop().create_task(self._watch_forever(), name="promotion")

    async def stop(self) -> None:
        """Stop watching. What is cut off is settled at the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # Before the gate ------------------------------------------------------------------------------------------------

    async def prepare(self, trained: Trained) -> Prepared:
        """Attach a job's adapter as challenger, and make sure that it computes what PEFT computes. See `Preparing`."""
        return await self._preparing.prepare(trained)

    async def discard(self, trained: Trained) -> None:
        """Detach a job's adapter that will not be promoted, and delete the model service's copy. May be repeated."""
        await self._preparing.discard(trained)

    # Promotion ------------------------------------------------------------------------------------------------------

    async def promote(self, trained: Trained) -> Deployment:
        """Put the adapter of a job that the gate passed to work; what became of it where that was done already."""
        done = await self._records.run(partial(kept.deployments, job_id=trained.job_id, limit=1))
        if done and not done[0].step:
            return done[0].shown()
        verdict = await self._passed(trained, is_forced=False)
        deployed = await self._deploy(trained, verdict, None, "the gate passed it", is_forced=False)
        return deployed.shown()

    async def promote_job(self, request: Promote) -> Deployment:
        """`learning.promote`. Raises NotFound, Conflict unless the gate passed it or it is forced, what `prepare` does."""
        if request.is_forced and not request.reason:
            raise BadRequest("is_forced overrules the gate, so a reason is needed", field="reason")
        trained = await self._jobs.trained(request.job_id)
        verdict = await self._passed(trained, is_forced=request.is_forced)
        reason = request.reason or "the gate passed it"
        deployed = await self._deploy(trained, verdict, request.canary_share, reason, is_forced=request.is_forced)
        await self._jobs.promoted(request.job_id)
        return deployed.shown()

    async def _passed(self, trained: Trained, *, is_forced: bool) -> GateResult | None:
        """The gate's verdict. Raises Conflict when it does not let the adapter pass, and nobody forces it."""
        verdict = await self._verdicts.verdict_of(trained.job_id)
        if is_forced:
            return verdict
        if verdict is None:
            raise Conflict(f"the gate has not seen {trained.job_id}; evaluate it first", job_id=trained.job_id)
        if verdict.verdict != "passed":
            reasons = verdict.reasons[0] if verdict.reasons else "no reason is kept"
            raise Conflict(f"the gate says {verdict.verdict}: {reasons}", job_id=trained.job_id)
        return verdict

    async def _deploy(
        self, trained: Trained, verdict: GateResult | None, wanted_share: float | None, reason: str, *, is_forced: bool
    ) -> Deployed:
        prepared = await self.prepare(trained)
        if verdict is not None and not is_forced and verdict.adapter.split(":")[0] != prepared.adapter:
            raise Conflict(
                f"the gate passed {verdict.adapter}, but the adapter of {trained.job_id} is now {prepared.adapter};"
                " evaluate it again",
                job_id=trained.job_id,
            )
        async with self._changing[trained.model]:
            found = await self._records.run(partial(kept.deployments, job_id=trained.job_id, limit=1))
            before = await self._settled(found[0]) if found else None
            if before is not None and before.is_live:
                return await self._widened(before, wanted_share, reason)
            if before is not None and before.state == "rolled_back" and not is_forced:
                raise Conflict(
                    f"{before.adapter} was taken back ({before.reason}); force it to try it again",
                    job_id=trained.job_id,
                )
            share = self._canary_share if wanted_share is None else wanted_share
            deployed = Deployed(
                deployment_id=f"dep-{secrets.token_hex(6)}",
                model=trained.model,
                adapter=prepared.adapter,
                adapter_version=prepared.adapter_version,
                sha256=prepared.sha256,
                job_id=trained.job_id,
                dataset=trained.dataset,
                version=trained.version,
                state="canary" if share < 1 else "champion",
                share=share,
                previous=_champion(await self._served.adapters(trained.model)),
                promoted_at=time.time(),
                ended_at=None,
                reason=reason,
                path=trained.adapter_path,
                verdict=verdict.verdict if verdict is not None else "",
                is_forced=is_forced,
                step="promoting",
            )
            await self._records.run(lambda connection: kept.keep(connection, deployed))
            words = f"{reason} ({trained.job_id}, {deployed.deployment_id})"
            try:
                await self._served.promote(trained.model, prepared.adapter, prepared.adapter_version, share, words)
            except REFUSED:
                await self._records.run(partial(kept.drop, deployment_id=deployed.deployment_id))
                raise
            return await self._promoted(deployed)

    async def _widened(self, live: Deployed, share: float | None, reason: str) -> Deployed:
        """What serves already, for good where it is asked for all. Raises Conflict for another share of a canary."""
        if share is None or live.state != "canary" or share == live.share:
            return live
        if share < 1:
            raise Conflict(
                f"{live.adapter} answers {live.share:g} of the conversations and is watched with that share; 1 keeps it for"
                " good, a rollback takes it back",
                field="canary_share",
                job_id=live.job_id,
            )
        await self._keep(live, reason)
        return await self._find(live.deployment_id, live.model) or live

    async def _promoted(self, deployed: Deployed) -> Deployed:
        """Write down that it serves, and begin to watch it."""
        after = await self._live.newest(deployed.model)
        is_all = deployed.state == "champion"
        history = (
            await self._live.outcomes_before(deployed.model, after, deployed.previous, self._rules.pairs)
            if is_all
            else ()
        )
        progress = first(deployed.exact_name, deployed.previous, after, history, is_historical=is_all)
        done = msgspec.structs.replace(deployed, step="", untold="learning.promoted")

        def write(connection: sqlite3.Connection) -> None:
            kept.keep(connection, done, *_beside(connection, done))
            kept.keep_watch(connection, done.deployment_id, "watching", progress)

        await self._records.run(write)
        self.promotions += 1
        log.info(
            "adapter promoted",
            extra={"action": "learning.promoted", "model": done.model, "adapter": done.adapter, "share": done.share},
        )
        return await self._tell(done)

    # Rollback -------------------------------------------------------------------------------------------------------

    async def rollback(self, request: Rollback) -> Deployment:
        """`learning.rollback`. Raises NotFound, Conflict when no adapter of ours serves or another came on top of it."""
        model = (await self._served.model(request.model or self._default_model)).name
        async with self._changing[model]:
            newest = await self._serving(model)
            if newest is None:
                raise Conflict(f"no learned adapter of {model} serves", model=model)
            reason = request.reason or "asked for"
            return (await self._roll_back(newest, reason)).shown()

    async def _roll_back(self, deployed: Deployed, reason: str) -> Deployed:
        """Take it out of service; its lock is held. Raises what the model service says, and then it still serves."""
        going = msgspec.structs.replace(deployed, step="rolling_back", reason=reason)
        await self._records.run(lambda connection: kept.keep(connection, going))
        try:
            await self._served.roll_back(going.model, going.adapter, reason)
        except REFUSED:
            if await self._share_of(going) > 0:
                still = msgspec.structs.replace(deployed, step="")
                await self._records.run(lambda connection: kept.keep(connection, still))
                raise
        return await self._rolled_back(going)

    async def _rolled_back(self, going: Deployed) -> Deployed:
        """Write down that it is out of service, and that what served before serves again."""
        done = msgspec.structs.replace(
            going, state="rolled_back", share=0.0, ended_at=time.time(), step="", untold="learning.rolled_back"
        )

        def write(connection: sqlite3.Connection) -> list[Deployed]:
            others = [one for one in kept.deployments(connection, model=done.model) if one.exact_name == done.previous]
            back = [
                msgspec.structs.replace(one, state="champion", share=1.0, ended_at=None)
                for one in others[:1]
                if one.state in ("champion", "retired")
            ]
            kept.keep(connection, done, *back)
            kept.end_watch(connection, done.deployment_id, "rolled_back", done.reason)
            for job_id in kept.jobs_with(connection, done.model, done.adapter):
                kept.drop_prepared(connection, job_id)
            return _retired_since(connection, done)

        retired = await self._records.run(write)
        self.rollbacks += 1
        log.warning(
            "adapter rolled back",
            extra={
                "action": "learning.rolled_back",
                "model": done.model,
                "adapter": done.adapter,
                "reason": done.reason,
            },
        )
        done = await self._tell(done)
        await release(self._served, done.model, done.adapter, forget=True)
        for one in retired:
            await release(self._served, one.model, one.adapter, forget=False)
        return done

    # Watching -------------------------------------------------------------------------------------------------------

    async def look(self, model: str | None = None) -> None:
        """Count the outcomes that came since, and decide about what is watched."""
        for deployed in await self._records.run(partial(kept.watched, model=model)):
            with _warned("learning.watch.failed", deployed):
                async with self._changing[deployed.model]:
                    await self._look_at(deployed.deployment_id, deployed.model)

    async def _look_at(self, deployment_id: str, model: str) -> None:
        deployed = await self._find(deployment_id, model)
        watch = await self._records.run(partial(kept.watch_of, deployment_id=deployment_id))
        if deployed is None or deployed.step or not deployed.is_live or watch is None or watch[0] != "watching":
            return
        progress = await self._counted(deployment_id, model, watch[1])
        decision, words = decide(progress, time.time() - deployed.promoted_at, self._rules)
        if decision == "roll_back":
            try:
                await self._roll_back(deployed, words)
            except REFUSED as error:
                # Another adapter was put on top by hand; whoever did that has to take it away.
                words = f"{words}; it could not be taken back: {error.message}"
                decision = "watching"
        elif decision == "keep":
            await self._keep(deployed, words)
        if decision == "watching" and words != progress.words:
            said = msgspec.structs.replace(progress, words=words)
            await self._records.run(lambda connection: kept.keep_watch(connection, deployment_id, "watching", said))

    async def _counted(self, deployment_id: str, model: str, progress: Progress) -> Progress:
        """With the outcomes since; each page is written with the number of its last, so that none counts twice."""
        while True:
            page = await self._live.outcomes(model, progress.after, _PAGE)
            if not page:
                return progress
            progress = with_outcomes(progress, page, self._rules.alpha)
            await self._records.run(
                partial(kept.keep_watch, deployment_id=deployment_id, state="watching", progress=progress)
            )

    async def _keep(self, deployed: Deployed, words: str) -> None:
        """Keep it for good: a canary becomes the champion, and what it replaced is detached."""
        if deployed.state == "canary":
            await self._served.promote(deployed.model, deployed.adapter, deployed.adapter_version, 1.0, words)
        await self._stay(deployed, words)

    async def _stay(self, deployed: Deployed, words: str) -> None:
        """Write down that it is champion and watched no longer."""
        is_change = deployed.state == "canary"
        done = msgspec.structs.replace(
            deployed, state="champion", share=1.0, reason=words, untold="learning.promoted" if is_change else ""
        )

        def write(connection: sqlite3.Connection) -> list[Deployed]:
            kept.keep(connection, done, *_beside(connection, done))
            kept.end_watch(connection, done.deployment_id, "kept", words)
            return _retired_since(connection, done)

        retired = await self._records.run(write)
        await self._tell(done)
        for one in retired:
            await release(self._served, one.model, one.adapter, forget=False)

    async def _watch_forever(self) -> None:
        compared_at: float | None = None
        while True:
            try:
                if compared_at is None or time.monotonic() - compared_at >= _COMPARE_S:
                    await self.reconcile()
                    compared_at = time.monotonic()
                await self.look()
            except BusError as error:
                # The records cannot be read, as on a full disk: later they can.
                log.warning("not watched", extra={"action": "learning.watch.failed", "error": error.message})
            await asyncio.sleep(_LOOK_S)

    # What serves ----------------------------------------------------------------------------------------------------

    async def reconcile(self) -> None:
        """Settle what was cut off, and write down what was changed by hand: the model service says what serves."""
        for deployed in await self._records.run(kept.unfinished):
            with _warned("learning.reconcile.failed", deployed):
                async with self._changing[deployed.model]:
                    await self._reconcile(deployed)

    async def _reconcile(self, deployed: Deployed) -> None:
        present = await self._find(deployed.deployment_id, deployed.model)
        settled = await self._settled(present) if present is not None else None
        if settled is not None and settled.untold:
            settled = await self._tell(settled)
        if settled is not None and settled.is_live:
            await self._agree(settled)

    async def _settled(self, deployed: Deployed) -> Deployed | None:
        """A deployment with its step finished: None where it was never carried out. Its lock is held."""
        if not deployed.step:
            return deployed
        share = await self._share_of(deployed)
        if deployed.step == "promoting":
            if share > 0:
                return await self._promoted(deployed)
            await self._records.run(partial(kept.drop, deployment_id=deployed.deployment_id))
            return None
        if share > 0:
            return await self._roll_back(deployed, deployed.reason)
        return await self._rolled_back(deployed)

    async def _agree(self, deployed: Deployed) -> None:
        """Bring the records of one that gets requests to what the model service says. Its lock is held."""
        try:
            found = await self._served.adapters(deployed.model)
        except NotFound:
            await self._retire(deployed, "its model is gone")
            return
        mine = next((one for one in found if exact_name(one) == deployed.exact_name), None)
        if mine is None or mine.share == 0:
            champion = _champion(found)
            if champion in (deployed.previous, ""):
                await self._rolled_back(msgspec.structs.replace(deployed, reason="taken out of service by hand"))
            else:
                await self._retire(deployed, f"{champion} was put in its place by hand")
        elif not await asyncio.to_thread(Path(mine.path).exists):
            await self._put_back(deployed)
        elif deployed.state == "canary" and mine.alias == "champion":
            await self._stay(deployed, "made champion by hand")
        elif (mine.alias, mine.share) != (deployed.state, deployed.share) and mine.alias in kept.LIVE:
            share = mine.share
            changed = msgspec.structs.replace(deployed, share=share)
            await self._records.run(lambda connection: kept.keep(connection, changed))

    async def _put_back(self, deployed: Deployed) -> None:
        """The model service's copy was deleted by hand: give it another, or take the adapter back while it still can."""
        try:
            await self._served.attach(
                deployed.model, deployed.adapter, deployed.path, "its file was deleted", is_challenger=False
            )
        except REFUSED as error:
            await self._roll_back(deployed, f"its file was deleted, and there is no other: {error.message}")

    async def _retire(self, deployed: Deployed, words: str) -> None:
        done = msgspec.structs.replace(deployed, state="retired", share=0.0, ended_at=time.time(), reason=words)

        def write(connection: sqlite3.Connection) -> None:
            kept.keep(connection, done)
            kept.end_watch(connection, done.deployment_id, "kept", words)

        await self._records.run(write)

    async def _share_of(self, deployed: Deployed) -> float:
        """Part of the conversations that it answers in truth. A model that is gone has none."""
        with contextlib.suppress(NotFound):
            for one in await self._served.adapters(deployed.model):
                if exact_name(one) == deployed.exact_name:
                    return one.share
        return 0.0

    async def _tell(self, deployed: Deployed) -> Deployed:
        """Publish what is untold; told again at the next comparison when nobody takes it now."""
        if not deployed.untold:
            return deployed
        if deployed.untold == "learning.rolled_back":
            await self._jobs.taken_back(deployed.job_id, f"{deployed.adapter} was rolled back: {deployed.reason}")
        try:
            await self._publish(deployed.untold, deployed.shown())
        except BusError as error:
            log.warning("not told", extra={"action": "learning.untold", "error": error.message})
            return deployed
        told = msgspec.structs.replace(deployed, untold="")
        await self._records.run(lambda connection: kept.keep(connection, told))
        return told

    # For others -----------------------------------------------------------------------------------------------------

    async def adapters(self, request: LearnedAdapters) -> Deployments:
        """`learning.adapter.list`."""
        found = await self._records.run(partial(kept.deployments, model=request.model, limit=request.limit))
        return Deployments(deployments=[one.shown() for one in found])

    async def watch(self, request: WatchShow) -> Watches:
        """`learning.watch`: with what came until now."""
        await self.look(request.model)
        found = await self._records.run(partial(kept.watched, model=request.model))
        watches = []
        for deployed in found:
            watch = await self._records.run(partial(kept.watch_of, deployment_id=deployed.deployment_id))
            if watch is not None:
                watches.append(self._shown(deployed, *watch))
        return Watches(watches=watches)

    async def promoted(self, model: str) -> list[Earlier]:
        """Adapters that were put to work and not taken back, the oldest first."""
        found = await self._records.run(partial(kept.deployments, model=model))
        there = [one for one in reversed(found) if one.state != "rolled_back" and one.step != "promoting"]
        return list(dict.fromkeys(Earlier(one.adapter, one.dataset, one.version) for one in there))

    async def serving(self, model: str) -> str:
        """The adapter that a new one is compared with: the canary, else the champion, else "" for the bare model."""
        newest = await self._serving(model)
        return newest.adapter if newest is not None else ""

    async def previous(self, model: str, adapter: str | None) -> Previous | None:
        """What to go on training from: the adapter of this name, with None what serves. None where nothing does.

        Raises NotFound for a name that was never put to work, and when its PEFT folder is gone; where none was named a new
        one is begun instead.
        """
        if adapter is None:
            found = await self._serving(model)
        else:
            name = adapter.split(":")[0]
            every = await self._records.run(partial(kept.deployments, model=model))
            found = next((one for one in every if one.adapter == name), None)
            if found is None:
                raise NotFound(f"{model} was never given the adapter {adapter!r}", model=model, adapter=adapter)
        if found is None:
            return None
        if not await asyncio.to_thread(Path(found.path).is_dir):
            if adapter is None:
                log.warning("folder gone", extra={"action": "learning.previous.gone", "path": found.path})
                return None
            raise NotFound(
                f"the PEFT folder of {found.adapter} is gone: {found.path}", model=model, adapter=found.adapter
            )
        return Previous(found.adapter, found.path)

    async def _serving(self, model: str) -> Deployed | None:
        """The newest one that gets requests."""
        found = await self._records.run(partial(kept.deployments, model=model))
        return next((one for one in found if one.is_live and not one.step), None)

    async def _find(self, deployment_id: str, model: str) -> Deployed | None:
        found = await self._records.run(partial(kept.deployments, model=model))
        return next((one for one in found if one.deployment_id == deployment_id), None)

    def _shown(self, deployed: Deployed, state: WatchState, progress: Progress) -> Watched:
        rules = self._rules
        return Watched(
            model=deployed.model,
            deployment=deployed.shown(),
            new=_arm(deployed.adapter, progress.new, rules.alpha),
            old=_arm(progress.old_name, progress.old, rules.alpha),
            pairs=progress.compared.pairs,
            evidence=progress.compared.evidence,
            needed=1 / rules.alpha,
            drop=rules.drop,
            promised_pairs=promised_pairs(rules.drop, alpha=rules.alpha),
            state=state,
            words=progress.words,
        )


@contextlib.contextmanager
def _warned(action: str, deployed: Deployed) -> Iterator[None]:
    """What fails for one is said and tried again at the next round; the others go on."""
    try:
        yield
    except BusError as error:
        log.warning(
            "deployment not looked after",
            extra={"action": action, "model": deployed.model, "adapter": deployed.adapter, "error": error.message},
        )


def _beside(connection: sqlite3.Connection, done: Deployed) -> list[Deployed]:
    """The model's others as they are once `done` serves; they are watched no longer."""
    changed = []
    for one in kept.deployments(connection, model=done.model):
        if not one.is_live or one.step or one.deployment_id == done.deployment_id:
            continue
        kept.end_watch(connection, one.deployment_id, "kept", f"its watch ended when {done.adapter} was promoted")
        if one.state == "champion" and done.state == "canary":
            changed.append(msgspec.structs.replace(one, share=1.0 - done.share))
        else:
            changed.append(msgspec.structs.replace(one, state="retired", share=0.0, ended_at=time.time()))
    return changed


def _retired_since(connection: sqlite3.Connection, done: Deployed) -> list[Deployed]:
    """Adapters that stayed attached while it was not certain whether `done` stays."""
    found = kept.deployments(connection, model=done.model)
    live = {one.adapter for one in found if one.is_live}
    return [
        one
        for one in found
        if one.state == "retired" and (one.ended_at or 0.0) >= done.promoted_at and one.adapter not in live
    ]


def _champion(found: list[AdapterInfo]) -> str:
    return next((exact_name(one) for one in found if one.alias == "champion"), "")


def _arm(adapter: str, outcomes: Outcomes, alpha: float) -> WatchArm:
    if not outcomes.n:
        return WatchArm(adapter=adapter, outcomes=0, mean=None, low=None, high=None)
    low, high = outcomes.interval(alpha)
    return WatchArm(adapter=adapter, outcomes=outcomes.n, mean=outcomes.mean, low=low, high=high)
