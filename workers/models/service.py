"""The model service: answers the plain subjects `model.*`, carries out what the scheduler decides, hands requests on.

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
from collections.abc import Callable
from typing import Final, cast

import msgspec

from bus.settings import Settings
from bus.worker import Call, Worker
from schemas.bodies.model import (
    Chat,
    Generate,
    Generation,
    ModelEvent,
    ModelInfo,
    ModelList,
    ModelLoad,
    Models,
    ModelShow,
    ModelState,
    ModelTokenize,
    ModelUnload,
    TokenCounts,
)
from schemas.envelope import Headers
from schemas.errors import BY_CODE, BadRequest, BusError, NotFound, NoWorker, Unprocessable, WorkerLost
from schemas.subjects import split_instance
from workers.models import scheduler as core
from workers.models.catalogue import SHIPPED_ROOT, Catalogue, with_state
from workers.models.control import DrainRunner, LoadModel, News, RunnerBusy, RunnerFailed, RunnerLoaded
from workers.models.runner_process import RunnerProcess
from workers.models.tokenizer_process import TokenizerProcess

log = logging.getLogger("olympus.models")

# Requests held at once. They cost a task each while they wait or are relayed; the scheduler bounds what they start.
CAPACITY: Final = 1024

# Marks a request this service passed on, so that it is not passed on again when its runner has just vanished and the
# broker brings it back to the plain subject.
_RELAYED: Final = "models-relayed"

# The end of a runner's process is often heard before its last words, which come through the broker.
_LAST_WORDS_S: Final = 1.0

# Of the time to leave, kept for what remains to be done when the runners are gone.
_LEAVE_S: Final = 0.5

# Deadline of a request passed on for a caller who named none.
_NO_DEADLINE_S: Final = 86_400.0


class _Ticket:
    """A request's place in the scheduler: what became of it, as a future that is renewed when it is placed again."""

    def __init__(self) -> None:
        self.future: asyncio.Future[core.Forward | core.Done] = asyncio.get_running_loop().create_future()

    def renew(self) -> None:
        self.future = asyncio.get_running_loop().create_future()


class ModelService:
    """The plain subjects of `model.*` on one worker."""

    def __init__(self, settings: Settings) -> None:
        models = settings.models
        self._settings = settings
        self._catalogue = Catalogue([*(settings.path(root) for root in models.roots), SHIPPED_ROOT])
        self._scheduler = core.Scheduler(
            core.Policy(
                max_loaded=models.max_loaded,
                keep_alive_s=models.keep_alive_s,
                spare_runners=models.spare_runners,
                load_timeout_s=models.load_timeout_s,
            )
        )
        self._processes: dict[int, RunnerProcess] = {}
        self._relays: dict[int, set[asyncio.Timeout]] = {}
        self._tickets: dict[int, _Ticket] = {}
        self._ids = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None
        self._events: asyncio.Queue[tuple[str, ModelEvent]] = asyncio.Queue()
        self._publisher: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._tokenizer = TokenizerProcess()
        self.worker = Worker("model", settings, capacity=CAPACITY)
        self.worker.handle("model.list", self.list)
        self.worker.handle("model.show", self.show)
        self.worker.handle("model.load", self.load)
        self.worker.handle("model.unload", self.unload)
        self.worker.handle("model.tokenize", self.tokenize)
        self.worker.handle("model.generate", self.use)
        self.worker.handle("model.chat", self.use)

    async def start(self) -> None:
        """Read the catalogue, start the first runner, register. The default model loads in the background."""
        await asyncio.to_thread(self._catalogue.scan)
        self._publisher = asyncio.get_running_loop().create_task(self._publish_events(), name="model events")
        default = self._settings.models.default
        with contextlib.suppress(NotFound):
            entry = self._catalogue.find(default)
            self._feed(core.Started(default if entry.state == "available" else None))
        if not self._processes:
            self._feed(core.Started())
        await self.worker.start()

    async def stop(self) -> None:
        """Leave within `supervisor.stop_s`: runners and this worker drain side by side; who stays is killed."""
        self._is_stopping = True
        self._feed(core.Leaving())
        limit_s = self._settings.supervisor.stop_s - _LEAVE_S
        processes = list(self._processes.values())
        for process in processes:
            process.signal(signal.SIGTERM)
        await asyncio.gather(self.worker.stop(limit_s), self._wait_for(processes, limit_s))
        await self._tokenizer.stop()
        for process in self._processes.values():
            process.signal(signal.SIGKILL)
        await self._wait_for(list(self._processes.values()), _LEAVE_S)
        if self._publisher is not None:
            self._publisher.cancel()
            await asyncio.gather(self._publisher, return_exceptions=True)

    async def _wait_for(self, processes: list[RunnerProcess], limit_s: float) -> None:
        if processes:
            await asyncio.wait([asyncio.ensure_future(one.ended()) for one in processes], timeout=limit_s)

    # Operations

    async def list(self, request: ModelList, call: Call) -> Models:
        """Every file of the catalogue, usable or not, with what is loaded."""
        await asyncio.to_thread(self._catalogue.scan)
        entries = [self._with_state(entry) for entry in self._catalogue.entries()]
        return Models(models=entries, default=self._settings.models.default)

    async def show(self, request: ModelShow, call: Call) -> ModelInfo:
        """One entry of the catalogue."""
        return self._with_state(await self._entry(request.model))

    async def load(self, request: ModelLoad, call: Call) -> ModelState:
        """Load a model, unless it is; answered when it serves."""
        await asyncio.to_thread(self._catalogue.scan)
        await self._usable(request.model)
        took_s = await self._await_done(
            lambda id: core.Arrived(
                request=id,
                model=request.model,
                deadline=_deadline(call),
                is_load=True,
                context_tokens=request.context_tokens,
                keep_alive_s=request.keep_alive_s,
            )
        )
        process = self._process_of(request.model)
        return ModelState(
            model=request.model,
            state="loaded",
            took_s=took_s,
            instance=request.model,
            pid=process.pid if process else None,
            context_tokens=process.context_tokens if process else None,
        )

    async def unload(self, request: ModelUnload, call: Call) -> ModelState:
        """Take a model out of memory; answered when its process has ended."""
        if self._scheduler.state_of(request.model) is None:
            await self._entry(request.model)
        took_s = await self._await_done(
            lambda id: core.UnloadAsked(request=id, model=request.model, is_forced=request.force)
        )
        return ModelState(model=request.model, state="available", took_s=took_s)

    async def tokenize(self, request: ModelTokenize, call: Call) -> TokenCounts:
        """Count tokens with the model's vocabulary alone: nothing is loaded for it and nothing evicted."""
        name = self._name_of(request, call)
        entry = await self._usable(name)
        answer = await self._tokenizer.tokenize(name, entry.path, request.texts, with_tokens=request.with_tokens)
        return TokenCounts(model=name, counts=answer.counts, tokens=answer.tokens)

    async def use(self, request: Generate | Chat, call: Call) -> Generation:
        """`model.generate` and `model.chat`: wait until the model is there, then pass the request on."""
        name = self._name_of(request, call)
        if call.headers.get(_RELAYED):
            raise NoWorker(f"nobody serves {name} any more", model=name)
        if self._scheduler.state_of(name) is None:
            await self._usable(name)
        subject = f"{split_instance(call.subject)[0]}@{name}"
        id, ticket = self._open_ticket()
        load_s = 0.0
        try:
            self._feed(core.Arrived(request=id, model=name, deadline=_deadline(call)))
            while True:
                forward = await ticket.future
                assert isinstance(forward, core.Forward)
                load_s = load_s or forward.waited_s
                ticket.renew()
                relay = _Relay(subject, request, call)
                try:
                    generation = await self._relay(relay, forward.runner)
                except (WorkerLost, NoWorker) as error:
                    self._feed(core.Lost(id, relay.is_fresh, error))
                    continue
                timings = msgspec.structs.replace(generation.timings, load_s=load_s)
                return msgspec.structs.replace(generation, timings=timings)
        finally:
            self._close_ticket(id)

    def _name_of(self, request: Generate | Chat | ModelTokenize, call: Call) -> str:
        _, instance = split_instance(call.subject)
        if instance and instance != self.worker.instance:
            if request.model is not None and request.model != instance:
                raise BadRequest(f"addressed to @{instance}, but field 'model' is {request.model!r}", field="model")
            return instance
        return request.model or self._settings.models.default

    async def _relay(self, relay: _Relay, runner: int) -> Generation:
        """Pass a request on and its parts back. Raises WorkerLost also when the runner's process ends under it."""
        gates = self._relays.setdefault(runner, set())
        gate = asyncio.timeout(None)
        gates.add(gate)
        try:
            async with gate:
                return await relay.run(self.worker)
        except TimeoutError as error:
            raise WorkerLost("the model's process ended while it worked on the request") from error
        finally:
            gates.discard(gate)
            if not gates and self._relays.get(runner) is gates:
                del self._relays[runner]

    # Names and entries

    async def _entry(self, name: str) -> ModelInfo:
        """The catalogue's entry; the folders are read again for a name that is not known. Raises NotFound."""
        try:
            return self._catalogue.find(name)
        except NotFound:
            await asyncio.to_thread(self._catalogue.scan)
            return self._catalogue.find(name)

    async def _usable(self, name: str) -> ModelInfo:
        entry = await self._entry(name)
        if entry.state == "unusable":
            raise Unprocessable(f"{name} cannot be loaded: {entry.error}", model=name)
        return entry

    def _with_state(self, entry: ModelInfo) -> ModelInfo:
        state = self._scheduler.state_of(entry.name)
        if state is None or state[0] is core.Phase.DRAINING:
            return entry
        is_loaded = state[0] is core.Phase.LOADED
        process = self._processes.get(state[1])
        return with_state(
            entry,
            "loaded" if is_loaded else "loading",
            entry.name if is_loaded else None,
            process.loaded_at if process is not None else None,
        )

    def _process_of(self, name: str) -> RunnerProcess | None:
        state = self._scheduler.state_of(name)
        return self._processes.get(state[1]) if state is not None else None

    # Tickets

    def _open_ticket(self) -> tuple[int, _Ticket]:
        id = next(self._ids)
        ticket = self._tickets[id] = _Ticket()
        return id, ticket

    def _close_ticket(self, id: int) -> None:
        ticket = self._tickets.pop(id)
        ticket.future.cancel()
        self._feed(core.Ended(id))

    async def _await_done(self, event: Callable[[int], core.Event]) -> float:
        id, ticket = self._open_ticket()
        try:
            self._feed(event(id))
            done = await ticket.future
            return cast(core.Done, done).took_s
        finally:
            self._close_ticket(id)

    # The scheduler's events and effects

    def _feed(self, event: core.Event) -> None:
        """Tell the scheduler, carry out what it wants, and set the clock for its next look."""
        loop = asyncio.get_running_loop()
        for effect in self._scheduler.handle(event, loop.time()):
            self._carry_out(effect)
        if self._timer is not None:
            self._timer.cancel()
        wakeup = self._scheduler.next_wakeup()
        self._timer = loop.call_at(wakeup, self._feed, core.Tick()) if wakeup is not None else None

    def _carry_out(self, effect: core.Effect) -> None:
        match effect:
            case core.Spawn(runner):
                self._processes[runner] = RunnerProcess(runner, self._on_news, self._on_exit)
            case core.Load(runner, model, context_tokens):
                self._tell_load(runner, model, context_tokens)
            case core.Drain(runner):
                self._with_process(runner, lambda process: process.send(DrainRunner()))
            case core.Kill(runner):
                self._with_process(runner, lambda process: process.signal(signal.SIGKILL))
            case core.Forward(request) | core.Done(request):
                self._settle(request, effect)
            case core.Refuse(request, error):
                self._settle(request, error)
            case core.Announce():
                self._announce(effect)

    def _with_process(self, runner: int, act: Callable[[RunnerProcess], None]) -> None:
        process = self._processes.get(runner)
        if process is not None:
            act(process)

    def _tell_load(self, runner: int, model: str, context_tokens: int | None) -> None:
        process = self._processes.get(runner)
        try:
            entry = self._catalogue.find(model)
        except NotFound as error:
            # Its file went away while the model waited for room. Told later: effects never feed the scheduler.
            asyncio.get_running_loop().call_soon(self._feed, core.LoadFailed(runner, error))
            return
        if process is not None:
            process.send(LoadModel(name=model, path=entry.path, settings=self._settings, context_tokens=context_tokens))

    def _settle(self, request: int, result: core.Forward | core.Done | BusError) -> None:
        ticket = self._tickets.get(request)
        if ticket is None or ticket.future.done():
            return
        if isinstance(result, BusError):
            ticket.future.set_exception(result)
        else:
            ticket.future.set_result(result)

    def _on_news(self, runner: int, news: News) -> None:
        match news:
            case RunnerLoaded():
                self._feed(core.Loaded(runner))
            case RunnerFailed(code, message):
                kind = BY_CODE.get(code, Unprocessable)
                self._feed(core.LoadFailed(runner, kind(message)))
            case RunnerBusy(in_flight):
                self._feed(core.Busy(runner, in_flight))

    def _on_exit(self, runner: int, how: str) -> None:
        self._processes.pop(runner, None)
        at = asyncio.get_running_loop().time() + _LAST_WORDS_S
        for gate in self._relays.pop(runner, ()):
            gate.reschedule(at)
        self._feed(core.Exited(runner, how))

    # Events on the bus

    def _announce(self, effect: core.Announce) -> None:
        process = self._processes.get(effect.runner) if effect.runner is not None else None
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
            size_bytes = self._catalogue.find(effect.model).size_bytes
            event = ModelEvent(
                model=effect.model,
                reason=effect.reason,
                instance=effect.model if effect.what == "loaded" else None,
                took_s=effect.took_s,
                size_bytes=size_bytes,
            )
            self._events.put_nowait((f"model.{effect.what}", event))

    async def _publish_events(self) -> None:
        """Publish in the order of the decisions, whatever the bus is doing meanwhile."""
        while True:
            subject, event = await self._events.get()
            try:
                await self.worker.publish(subject, event)
            except BusError as error:
                log.warning("event not published", extra={"action": "model.event.lost", "error": str(error)})


class _Relay:
    """One request on its way to a runner. `is_fresh` until a part of the answer has been passed back."""

    def __init__(self, subject: str, request: Generate | Chat, call: Call) -> None:
        self.is_fresh = True
        self._subject = subject
        self._request = request
        self._call = call

    async def run(self, worker: Worker) -> Generation:
        call = self._call
        timeout_s = call.deadline_at - time.time() if call.deadline_at else _NO_DEADLINE_S
        headers: Headers = {_RELAYED: True}
        headers.update((name, value) for name, value in call.headers.items() if name in ("traceparent", "priority"))
        async with worker.client.stream(
            self._subject, self._request, timeout_s=max(timeout_s, 0.0), headers=headers
        ) as parts:
            async for part in parts:
                self.is_fresh = False
                await call.partial(part)
            return cast(Generation, parts.final)


def _deadline(call: Call) -> float | None:
    """The call's deadline on the loop's clock."""
    if not call.deadline_at:
        return None
    return asyncio.get_running_loop().time() + call.deadline_at - time.time()


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then leave with every runner."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    service = ModelService(settings)
    starting = asyncio.ensure_future(service.start())
    waiting = asyncio.ensure_future(told.wait())
    await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        await starting
        log.info("ready", extra={"action": "worker.ready", "service": "model", "instance": service.worker.instance})
        await waiting
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await service.stop()
