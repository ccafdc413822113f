"""Loads, uses and unloads models: carries out what the scheduler decides, with processes, leases, events and figures.

A request for a loaded model goes straight to its runner (`model.chat@NAME`). What comes here names no instance, or one
nobody serves: the scheduler makes room and loads, then the request is passed on over the bus, its parts passed back.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol, cast

import msgspec

from bus.client import Client
from bus.metrics import Figures, Labels, by_label, only
from bus.records import Records
from bus.settings import Settings
from bus.worker import Call, Worker
from schemas.bodies.model import (
    ConversationClear,
    ConversationCleared,
    Generation,
    ModelEvent,
    ModelInfo,
    ModelKeep,
    ModelKept,
    ModelLoad,
    ModelPredict,
    ModelPreload,
    ModelState,
    ModelStats,
    ModelStatsReply,
    ModelUnload,
    ModelUsage,
    ModelUsageReply,
    Prediction,
    Predictions,
    Preloading,
    Preloadings,
)
from schemas.errors import (
    BY_CODE,
    BadRequest,
    BusError,
    Conflict,
    NotFound,
    NoWorker,
    Unprocessable,
    Unsupported,
    WorkerLost,
)
from schemas.metrics import (
    MODEL_BYTES,
    MODEL_IN_FLIGHT,
    MODEL_QUARANTINED,
    MODEL_WAITING,
    MODELS_KNOWN,
    MODELS_LOADED,
)
from schemas.subjects import split_instance
from workers.models import decisions as say
from workers.models.adapters.canary import InUse
from workers.models.catalogue import Catalogue, Entry
from workers.models.control import (
    AdaptersSet,
    DrainRunner,
    News,
    RunnerBusy,
    RunnerFailed,
    RunnerLoaded,
    RunnerReady,
    RunnerUsed,
    RunnerWaiting,
    ServeModel,
    SetAdapters,
)
from workers.models.figures import LoadFigures
from workers.models.holding import Phase, State
from workers.models.leasing import Leasing
from workers.models.prediction import Predictor
from workers.models.relay import RELAYED, Relay, Relays, caller_of
from workers.models.routing.rules import Rules
from workers.models.runner_process import RunnerProcess
from workers.models.scheduler import Scheduler
from workers.models.stats import Stats
from workers.models.terms import CPU, Keep, Wish, load_command, terms_of

log = logging.getLogger("olympus.models")

# How far prediction looks ahead, and how long a model that it loaded stays unused after it was last predicted.
HORIZON_S: Final = 60.0
# Between two looks ahead without a request, and from a request to the look ahead that counts it.
_PREDICT_S: Final = 5.0
_PREDICT_SOON_S: Final = 0.5

# Uses of one model this close teach nothing more, and a lesson takes a millisecond.
_BURST_S: Final = 1.0

# Between two writes of figures, and of what prediction learned (up to 10 kB a model); a service that is killed loses so
# much of them.
_SAVE_S: Final = 15.0
_SAVE_LEARNED_S: Final = 300.0

# Of the time to leave, for giving leases back.
_RELEASE_S: Final = 0.3

# How figures name what a model in memory is at.
_STATES: Final = {Phase.LOADING: "loading", Phase.LOADED: "serving", Phase.DRAINING: "unloading"}


class AdapterSource(Protocol):
    """The adapters that models answer with."""

    def of(self, model: str, /) -> InUse:
        """Those attached to `model`, with champion and canary."""

    async def use(self, model: str, adapter: str, /) -> None:
        """Have `adapter` attached to `model` from now on. Raises NotFound."""


class _Ticket:
    """A request's place in the scheduler: what became of it, as a future that is renewed when it is placed again."""

    def __init__(self) -> None:
        self.future: asyncio.Future[say.Forward | say.Done] = asyncio.get_running_loop().create_future()

    def renew(self) -> None:
        self.future = asyncio.get_running_loop().create_future()


class Loading:
    """What is in memory. `start` after the records are open and the catalogue was scanned, `stop` with the worker.

    adapters: set before the first load where there are any.
    """

    def __init__(
        self, settings: Settings, worker: Worker, catalogue: Catalogue, records: Records, rules: Rules
    ) -> None:
        models = settings.models
        self.adapters: AdapterSource | None = None
        self._settings = settings
        self._worker = worker
        self._catalogue = catalogue
        self._rules = rules
        self._scheduler = Scheduler(
            say.Policy(
                max_loaded=models.max_loaded,
                spare_runners=models.spare_runners,
                load_timeout_s=models.load_timeout_s,
                when_full=models.when_full,
            )
        )
        self._stats = Stats(records)
        self._predictor = Predictor()
        self._learned_at: dict[str, float] = {}
        # A connection of its own: leases are given back when the worker has left already.
        self._client = Client(settings, name=f"model.leases/{worker.instance}")
        self._leasing = Leasing(self._client, lambda number, who: self._feed(say.AskedBack(number, who)))
        self._relays = Relays(worker)
        self._processes: dict[int, RunnerProcess] = {}
        self._tickets: dict[int, _Ticket] = {}
        self._swaps: dict[int, tuple[int, asyncio.Future[None]]] = {}
        # Backends that cannot do what they are here for, and why: at all, or on the GPU that is there.
        self._without: dict[str, str] = {}
        self._without_gpu: dict[str, str] = {}
        self._ids = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None
        self._soon: asyncio.TimerHandle | None = None
        self._events: asyncio.Queue[tuple[str, ModelEvent]] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_started = False
        self._is_stopping = False
        self._figures = LoadFigures(worker.figures)
        self._tell_figures(worker.figures)

    async def start(self) -> None:
        """Begin with the pinned models and the default one, which load in the background."""
        await self._stats.load()
        if self._stats.learned is not None:
            self._predictor = Predictor.from_bytes(self._stats.learned)
        self._is_started = True
        await self._leasing.start()
        self._run(self._publish_events())
        self._run(self._save_regularly())
        if self._settings.models.predict:
            self._run(self._predict_regularly())
        # A spare runner starts at once.
        self._feed(say.Tick())
        self._run(self._load_first())

    async def _load_first(self) -> None:
        await self._leasing.gpus_known()
        if self._is_stopping:
            return
        name = self._settings.models.default
        default: Entry | None = None
        with contextlib.suppress(NotFound):
            default = self._catalogue.entry(name)
        if default is None and self._rules.profile(name) is None:
            log.warning("the default model is not there", extra={"action": "model.default.missing", "model": name})
        if default is not None and default.info.state == "available":
            self._feed(say.Started(default.info.name, self._terms(default)))
        else:
            self._feed(say.Started())
        self._load_pinned()

    def _load_pinned(self) -> None:
        for entry in self._catalogue.all():
            if entry.info.state == "available" and (terms := self._terms(entry)).is_pinned:
                self._feed(say.Described(entry.info.name, terms))
        for name in self._settings.models.pinned:
            with contextlib.suppress(NotFound):
                self._catalogue.entry(name)
                continue
            log.warning("a pinned model is not there", extra={"action": "model.pinned.missing", "model": name})

    async def stop(self, limit_s: float) -> None:
        """Leave with every runner within `limit_s`; who stays is killed."""
        self._is_stopping = True
        self._feed(say.Leaving())
        processes = list(self._processes.values())
        for process in processes:
            process.signal(signal.SIGTERM)
        await _wait_for(processes, limit_s)
        for process in self._processes.values():
            process.signal(signal.SIGKILL)
        await _wait_for(list(self._processes.values()), _RELEASE_S)
        for timer in (self._timer, self._soon):
            if timer is not None:
                timer.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._leasing.stop(_RELEASE_S)
        await self._client.close()
        if self._is_started:
            await self._save(self._predictor.to_bytes())

    # Operations

    async def load(self, request: ModelLoad, call: Call) -> ModelState:
        """Load a model, unless it is; answered when it serves."""
        entry = await self._usable(request.model)
        name = entry.info.name
        wish = Wish(context_tokens=request.context_tokens, device=request.device)
        if entry.remote is not None and wish != Wish():
            field = "device" if request.device is not None else "context_tokens"
            raise BadRequest(f"{name} runs elsewhere: {field} cannot be chosen here", field=field)
        if request.adapter is not None:
            if self.adapters is None:
                raise Unprocessable("this service knows no adapters", adapter=request.adapter)
            await self.adapters.use(name, request.adapter)
        took_s = await self._await_done(
            lambda id: say.Arrived(
                request=id,
                model=name,
                deadline=_deadline(call),
                terms=self._terms(entry, wish),
                is_load=True,
                context_tokens=request.context_tokens,
                device=request.device,
                keep_alive_s=request.keep_alive_s,
            )
        )
        state = self._scheduler.state_of(name)
        process = self._processes.get(state.runner) if state is not None else None
        return ModelState(
            model=name,
            state="loaded",
            took_s=took_s,
            instance=name,
            pid=process.pid if process else None,
            context_tokens=process.loaded.context_tokens if process and process.loaded else None,
            device=state.device if state else None,
            memory_bytes=state.memory_bytes if state else None,
        )

    async def unload(self, request: ModelUnload, call: Call) -> ModelState:
        """Take a model out of memory; answered when its process has ended."""
        name = request.model
        if self._scheduler.state_of(name) is None:
            name = (await self._catalogue.current(name)).info.name
        took_s = await self._await_done(lambda id: say.UnloadAsked(request=id, model=name, is_forced=request.force))
        return ModelState(model=name, state="available", took_s=took_s)

    async def preload(self, request: ModelPreload, call: Call) -> Preloadings:
        """Load models ahead of need; answered when it is clear of each whether its load begins."""
        return Preloadings(models=[await self._preload(name) for name in request.models])

    async def _preload(self, name: str) -> Preloading:
        try:
            entry = await self._usable(name)
            name, terms = entry.info.name, self._terms(entry)
            await self._await_done(lambda id: say.Preload(request=id, model=name, terms=terms))
        except BusError as error:
            return Preloading(model=name, is_started=False, reason=error.message)
        return Preloading(model=name, is_started=True, reason="its load has begun")

    async def keep(self, request: ModelKeep, call: Call) -> ModelKept:
        """Hold a model otherwise from now on, also after a restart."""
        entry = await self._catalogue.current(request.model)
        name = entry.info.name
        asked = {field: value for field in Keep.__struct_fields__ if (value := getattr(request, field)) is not None}
        before = Keep() if request.is_reset else self._stats.keeps.get(name, Keep())
        await self._stats.keep(name, msgspec.structs.replace(before, **asked))
        terms = self._terms(entry)
        self._feed(say.Described(name, terms))
        return ModelKept(
            model=name, is_pinned=terms.is_pinned, priority=terms.priority, keep_alive_s=terms.keep_alive_s
        )

    async def stats(self, request: ModelStats, call: Call) -> ModelStatsReply:
        """Figures of a model, or of every one that was ever loaded."""
        name = (await self._catalogue.current(request.model)).info.name if request.model is not None else None
        return ModelStatsReply(models=self._stats.figures(name))

    async def usage(self, request: ModelUsage, call: Call) -> ModelUsageReply:
        """Which models were used lately; notes a use first, if one is given."""
        if request.record is not None:
            self._note_use((await self._catalogue.current(request.record)).info.name, caller_of(call))
        return ModelUsageReply(models=await self._stats.uses(time.time(), request.window_s))

    async def predict(self, request: ModelPredict, call: Call) -> Predictions:
        """Which models will be wanted, the likeliest first."""
        forecasts = self._predictor.predict(time.time(), request.horizon_s)
        return Predictions(
            models=[
                Prediction(model=one.model, probability=one.probability, why=one.why)
                for one in forecasts[: request.limit]
            ]
        )

    async def clear_conversation(self, request: ConversationClear, call: Call) -> ConversationCleared:
        """Drop the state kept for a conversation, in whichever loaded model holds it."""
        answers = await asyncio.gather(
            *(
                self._worker.client.request(f"model.conversation.clear@{name}", request, headers={RELAYED: True})
                for name in self.loaded()
            ),
            return_exceptions=True,
        )
        # A model that left meanwhile has dropped its state by that.
        was_kept = any(isinstance(one, ConversationCleared) and one.was_kept for one in answers)
        return ConversationCleared(conversation_id=request.conversation_id, was_kept=was_kept)

    async def use(self, name: str, request: Any, call: Call) -> Any:
        """Wait until the model is there, then pass the request on to its runner under the same operation.

        `request` has a field `model`. Raises NotFound, Unprocessable for a model that cannot be used, what the
        scheduler refuses with, and what the runner answers.
        """
        if call.headers.get(RELAYED):
            raise NoWorker(f"nobody serves {name} any more", model=name)
        terms = None
        if self._scheduler.state_of(name) is None:
            entry = await self._usable(name)
            name, terms = entry.info.name, self._terms(entry)
        if request.model not in (None, name):
            request = msgspec.structs.replace(request, model=name)
        subject = f"{split_instance(call.subject)[0]}@{name}"
        id, ticket = self._open_ticket()
        load_s = 0.0
        try:
            self._feed(say.Arrived(request=id, model=name, deadline=_deadline(call), terms=terms))
            while True:
                forward = cast(say.Forward, await ticket.future)
                load_s = load_s or forward.waited_s
                ticket.renew()
                relay = Relay(subject, request, call)
                try:
                    reply = await self._relays.run(relay, forward.runner)
                except (WorkerLost, NoWorker) as error:
                    self._feed(say.Lost(id, relay.is_fresh, error))
                    continue
                if isinstance(reply, Generation):
                    timings = msgspec.structs.replace(reply.timings, load_s=load_s)
                    return msgspec.structs.replace(reply, timings=timings)
                return reply
        finally:
            self._close_ticket(id)

    async def set_adapters(self, name: str, use: InUse) -> None:
        """Have a loaded model use these adapters from now on. One that loads is told when it is in memory.

        Counts as use: the model stays meanwhile. Raises Unprocessable when one does not fit (then nothing has changed),
        Conflict when the model leaves under it, DeadlineExceeded when it does not come to answering.
        """
        state = self._scheduler.state_of(name)
        if state is None or state.phase is Phase.DRAINING:
            return
        if state.phase is Phase.LOADING and not self._processes[state.runner].is_told_to_serve:
            return
        id, ticket = self._open_ticket()
        try:
            self._feed(say.Arrived(request=id, model=name))
            try:
                forward = cast(say.Forward, await ticket.future)
            except BusError:
                if self.state_of(name) in (None, Phase.DRAINING):
                    # It did not come to answering, and whatever is loaded next is told.
                    return
                raise
            done = asyncio.get_running_loop().create_future()
            self._swaps[id] = (forward.runner, done)
            process = self._processes.get(forward.runner)
            if process is None:
                raise Conflict(f"the process of {name} ended before its adapters were changed", model=name)
            process.send(SetAdapters(id=id, use=use))
            await done
        finally:
            self._swaps.pop(id, None)
            self._close_ticket(id)

    # What others may know

    def state_of(self, name: str) -> Phase | None:
        """Whether a model is loading, loaded or draining; None when it is absent."""
        state = self._scheduler.state_of(name)
        return state.phase if state is not None else None

    def loaded(self) -> list[str]:
        """Models that serve, in the order in which they were loaded."""
        return [name for name in self._scheduler.present() if self.state_of(name) is Phase.LOADED]

    def with_state(self, info: ModelInfo) -> ModelInfo:
        """A catalogue entry with what is loaded right now, and how it is or would be held."""
        if info.state == "unusable":
            return info
        try:
            terms = self._terms(self._catalogue.entry(info.name))
        except NotFound:
            return info
        held = msgspec.structs.replace(
            info,
            memory_bytes=terms.memory_bytes,
            is_pinned=terms.is_pinned,
            priority=terms.priority,
            keep_alive_s=terms.keep_alive_s,
            adapters=[one.name for one in self._adapters_of(info.name).files],
        )
        state = self._scheduler.state_of(info.name)
        if state is None or state.phase is Phase.DRAINING:
            return held
        process = self._processes.get(state.runner)
        is_loaded = state.phase is Phase.LOADED
        return msgspec.structs.replace(
            held,
            state="loaded" if is_loaded else "loading",
            instance=info.name if is_loaded else None,
            loaded_at=process.loaded_at if process is not None else None,
            device=state.device,
            memory_bytes=state.memory_bytes,
            in_flight=state.in_flight,
            keep_alive_s=state.keep_alive_s,
        )

    def degraded(self) -> dict[str, str]:
        """What this service does without, and why: folders, backends, the GPU, the resource service, single models."""
        default = self._settings.models.default
        is_there = self._rules.profile(default) is not None or self._is_known(default)
        reasons = {
            "catalogue": self._catalogue.problem,
            **self._without_gpu,
            **self._without,
            "resource": self._leasing.problem,
            "default_model": "" if is_there else f"there is no model {default!r}, which models.default names",
            "quarantine": "; ".join(self._scheduler.quarantined(asyncio.get_running_loop().time())),
        }
        return {name: reason for name, reason in reasons.items() if reason}

    def _is_known(self, name: str) -> bool:
        with contextlib.suppress(NotFound):
            self._catalogue.entry(name)
            return True
        return False

    def _tell_figures(self, figures: Figures) -> None:
        def quarantined() -> dict[Labels, float]:
            return only(len(self._scheduler.quarantined(asyncio.get_running_loop().time())))

        figures.read(MODELS_KNOWN, lambda: only(sum(one.info.state != "unusable" for one in self._catalogue.all())))
        figures.read(MODELS_LOADED, self._by_phase)
        figures.read(MODEL_BYTES, self._bytes)
        figures.read(MODEL_IN_FLIGHT, lambda: by_label((name, one.in_flight) for name, one in self._present().items()))
        figures.read(MODEL_WAITING, lambda: only(self._scheduler.waiting()))
        figures.read(MODEL_QUARANTINED, quarantined)

    def _present(self) -> dict[str, State]:
        states = {name: self._scheduler.state_of(name) for name in self._scheduler.present()}
        return {name: state for name, state in states.items() if state is not None}

    def _by_phase(self) -> dict[Labels, float]:
        phases = [state.phase for state in self._present().values()]
        return by_label((state, phases.count(phase)) for phase, state in _STATES.items())

    def _bytes(self) -> dict[Labels, float]:
        return {
            (name, state.device): state.memory_bytes
            for name, state in self._present().items()
            if state.device is not None
        }

    # Names and entries

    async def _usable(self, name: str) -> Entry:
        entry = await self._catalogue.current(name)
        if entry.info.state == "unusable":
            raise Unprocessable(f"{name} cannot be loaded: {entry.info.error}", model=name)
        await self._leasing.gpus_known()
        return entry

    def _terms(self, entry: Entry, wish: Wish = Wish()) -> say.Terms:  # noqa: B008 - frozen
        name = entry.info.name
        keep = self._stats.keeps.get(name, Keep())
        gpus = () if entry.info.backend in self._without_gpu else self._leasing.gpus
        return terms_of(entry, self._rules.of(name), self._settings.models, keep, wish, gpus)

    def _adapters_of(self, name: str) -> InUse:
        return self.adapters.of(name) if self.adapters is not None else InUse()

    # Tickets

    def _open_ticket(self) -> tuple[int, _Ticket]:
        id = next(self._ids)
        ticket = self._tickets[id] = _Ticket()
        return id, ticket

    def _close_ticket(self, id: int) -> None:
        ticket = self._tickets.pop(id)
        ticket.future.cancel()
        self._feed(say.Ended(id))

    async def _await_done(self, event: Callable[[int], say.Event]) -> float:
        id, ticket = self._open_ticket()
        try:
            self._feed(event(id))
            return cast(say.Done, await ticket.future).took_s
        finally:
            self._close_ticket(id)

    # The scheduler's events and effects

    def _feed(self, event: say.Event) -> None:
        """Tell the scheduler, carry out what it wants, and set the clock for its next look."""
        loop = asyncio.get_running_loop()
        for effect in self._scheduler.handle(event, loop.time()):
            self._carry_out(effect)
        if self._timer is not None:
            self._timer.cancel()
        wakeup = self._scheduler.next_wakeup()
        self._timer = loop.call_at(wakeup, self._feed, say.Tick()) if wakeup is not None else None

    def _carry_out(self, effect: say.Effect) -> None:
        match effect:
            case say.Spawn(runner):
                self._processes[runner] = RunnerProcess(runner, self._on_news, self._on_exit)
            case say.Reserve():
                self._run(self._reserve(effect))
            case say.Resize(lease, memory_bytes, beside_bytes):
                self._leasing.resize(lease, memory_bytes, beside_bytes)
            case say.Rank(lease, priority, is_preemptible):
                self._leasing.rank(lease, priority, is_preemptible=is_preemptible)
            case say.Release(lease):
                self._leasing.release(lease)
            case say.Load():
                self._tell_load(effect)
            case say.Drain(runner):
                self._with_process(runner, lambda process: process.send(DrainRunner()))
            case say.Kill(runner):
                self._with_process(runner, lambda process: process.signal(signal.SIGKILL))
            case say.Forward(request) | say.Done(request):
                self._settle(request, effect)
            case say.Refuse(request, error):
                self._settle(request, error)
            case say.Judged(model, is_hit, idle_s):
                self._stats.on_judged(model, is_hit=is_hit, idle_s=idle_s)
                self._figures.on_judged(is_hit=is_hit)
            case say.Announce():
                self._announce(effect)

    async def _reserve(self, effect: say.Reserve) -> None:
        self._feed(await self._leasing.acquire(effect))

    def _with_process(self, runner: int, act: Callable[[RunnerProcess], None]) -> None:
        process = self._processes.get(runner)
        if process is not None:
            act(process)

    def _tell_load(self, effect: say.Load) -> None:
        process = self._processes.get(effect.runner)
        try:
            entry = self._catalogue.entry(effect.model)
        except NotFound as error:
            # Its file went away while the model waited for room. Told later: effects never feed the scheduler.
            asyncio.get_running_loop().call_soon(self._feed, say.LoadFailed(effect.runner, error))
            return
        if process is None:
            return
        process.model = effect.model
        process.send(
            load_command(
                entry,
                self._rules.of(effect.model),
                self._settings,
                device=effect.device,
                context_tokens=effect.context_tokens,
            )
        )

    def _settle(self, request: int, result: say.Forward | say.Done | BusError) -> None:
        ticket = self._tickets.get(request)
        if ticket is None or ticket.future.done():
            return
        if isinstance(result, BusError):
            ticket.future.set_exception(result)
        else:
            ticket.future.set_result(result)

    def _on_news(self, runner: int, news: News) -> None:
        process = self._processes[runner]
        match news:
            case RunnerWaiting(reason):
                self._feed(say.Waiting(runner, reason))
            case RunnerReady():
                process.is_told_to_serve = True
                process.send(ServeModel(use=self._adapters_of(process.model)))
            case RunnerLoaded():
                self._on_loaded(process, news)
            case RunnerFailed(code, message):
                error = BY_CODE.get(code, Unprocessable)(message)
                self._note_backend(process.model, error)
                self._feed(say.LoadFailed(runner, error, self._instead_of(process.model, error)))
            case RunnerBusy(in_flight, caller):
                for _ in range(in_flight - process.in_flight):
                    self._note_use(process.model, caller)
                self._feed(say.Busy(runner, in_flight))
            case RunnerUsed(usage):
                self._stats.on_answer(process.model, usage)
            case AdaptersSet(id=id, error=error):
                self._on_adapters_set(id, error)

    def _on_loaded(self, process: RunnerProcess, news: RunnerLoaded) -> None:
        self._note_backend(process.model, None)
        state = self._scheduler.state_of(process.model)
        is_on_gpu = state is not None and state.device not in (None, CPU)
        expected = state.memory_bytes if state is not None else 0
        # On a GPU all memory is taken at the load. In main memory a buffer is not there before it is first used, so that
        # less than expected says nothing yet.
        memory, beside = (news.vram_bytes, 0) if is_on_gpu else (max(news.ram_bytes, expected), 0)
        self._stats.on_measured(process.model, news.vram_bytes if is_on_gpu else news.ram_bytes)
        self._feed(say.Loaded(process.id, news.context_tokens, memory, beside))

    def _instead_of(self, name: str, error: BusError) -> say.Terms | None:
        """The terms for the main memory, where a backend turns out to have been built without the GPU that is there."""
        state = self._scheduler.state_of(name)
        is_on_gpu = state is not None and state.device not in (None, CPU)
        if not isinstance(error, Unsupported) or not is_on_gpu or self._rules.of(name).device is not None:
            return None
        with contextlib.suppress(NotFound):
            entry = self._catalogue.entry(name)
            self._without_gpu[entry.info.backend] = error.message
            return self._terms(entry)
        return None

    def _on_adapters_set(self, id: int, error: str) -> None:
        _, done = self._swaps.get(id, (0, None))
        if done is None or done.done():
            return
        if error:
            done.set_exception(Unprocessable(error))
        else:
            done.set_result(None)

    def _on_exit(self, runner: int, how: str) -> None:
        process = self._processes.pop(runner, None)
        if process is not None and self._is_death(process):
            self._figures.on_crash()
        self._relays.on_exit(runner)
        for on, done in self._swaps.values():
            if on == runner and not done.done():
                done.set_exception(Conflict(f"the model's process ended ({how}) while its adapters were changed"))
        self._feed(say.Exited(runner, how))

    def _is_death(self, process: RunnerProcess) -> bool:
        """True of the end of a runner that nobody had told to go."""
        state = self._scheduler.state_of(process.model)
        is_told = state is not None and state.runner == process.id and state.phase is Phase.DRAINING
        return not is_told and not self._is_stopping

    def _note_backend(self, name: str, error: BusError | None) -> None:
        """Remember for which backends something is not installed, until a load shows that it is."""
        with contextlib.suppress(NotFound):
            backend = self._catalogue.entry(name).info.backend
            if isinstance(error, Unsupported):
                self._without[backend] = error.message
            elif error is None:
                self._without.pop(backend, None)

    # Prediction

    def _note_use(self, model: str, caller: str) -> None:
        now = time.time()
        self._stats.on_use(model, now)
        if abs(now - self._learned_at.get(model, 0.0)) >= _BURST_S:
            self._learned_at[model] = now
            self._predictor.record(model, now, caller)
        if self._settings.models.predict and self._soon is None:
            self._soon = asyncio.get_running_loop().call_later(_PREDICT_SOON_S, self._look_ahead)

    def _look_ahead(self) -> None:
        self._soon = None
        if self._is_stopping:
            return
        likely = []
        for forecast in self._predictor.predict(time.time(), HORIZON_S):
            with contextlib.suppress(NotFound):
                entry = self._catalogue.entry(forecast.model)
                if entry.info.state == "available":
                    likely.append(
                        say.Likely(
                            model=entry.info.name,
                            probability=forecast.probability,
                            value=forecast.value,
                            terms=self._terms(entry),
                            why=forecast.why,
                        )
                    )
        self._feed(say.Expected(tuple(likely), HORIZON_S))

    async def _predict_regularly(self) -> None:
        while True:
            await asyncio.sleep(_PREDICT_S)
            self._look_ahead()

    async def _save_regularly(self) -> None:
        learned_at = asyncio.get_running_loop().time()
        while True:
            await asyncio.sleep(_SAVE_S)
            now = asyncio.get_running_loop().time()
            is_due = now >= learned_at + _SAVE_LEARNED_S
            learned_at = now if is_due else learned_at
            await self._save(self._predictor.to_bytes() if is_due else None)

    async def _save(self, learned: bytes | None) -> None:
        try:
            await self._stats.save(time.time(), learned)
        except BusError as error:
            log.warning("figures not saved", extra={"action": "model.stats.unsaved", "error": str(error)})

    # Events on the bus

    def _announce(self, effect: say.Announce) -> None:
        process = self._processes.get(effect.runner) if effect.runner is not None else None
        self._stats.on_event(effect.what, effect.model, effect.took_s, effect.memory_bytes)
        self._figures.on_announce(effect)
        log.log(
            logging.WARNING if effect.what == "failed" else logging.INFO,
            f"model {effect.what}",
            extra={
                "action": f"model.{effect.what}",
                "model": effect.model,
                "reason": effect.reason,
                "pid": process.pid if process is not None else None,
            },
        )
        if self._is_stopping:
            # Nobody is left to publish; the broker tells that the runners left.
            return
        with contextlib.suppress(NotFound):
            event = ModelEvent(
                model=effect.model,
                reason=effect.reason,
                instance=effect.model if effect.what == "loaded" else None,
                took_s=effect.took_s,
                size_bytes=self._catalogue.entry(effect.model).info.size_bytes,
                device=effect.device,
                memory_bytes=effect.memory_bytes,
            )
            self._events.put_nowait((f"model.{effect.what}", event))

    async def _publish_events(self) -> None:
        """Publish in the order of the decisions, whatever the bus is doing meanwhile."""
        while True:
            subject, event = await self._events.get()
            try:
                await self._worker.publish(subject, event)
            except BusError as error:
                log.warning("event not published", extra={"action": "model.event.lost", "error": str(error)})

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _wait_for(processes: list[RunnerProcess], limit_s: float) -> None:
    if processes:
        await asyncio.wait([asyncio.ensure_future(one.ended()) for one in processes], timeout=limit_s)


def _deadline(call: Call) -> float | None:
    """The call's deadline on the loop's clock."""
    if not call.deadline_at:
        return None
    return asyncio.get_running_loop().time() + call.deadline_at - time.time()
