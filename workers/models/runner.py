"""A runner: a process that holds one model and answers for it on the bus, `python -m workers.models.runner --parent PID`.

Started by the model service, which tells it its model over stdin (see `control`); until then it waits, imports done.
Native code that crashes or hangs takes this process with it and nothing else. The process never outlives the service:
the kernel kills it when the service dies, and the end of stdin ends it too.

It holds the lock of its device while it loads, while adapters change, and from when it begins to free its memory until
the kernel has taken all of it back.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Final

from bus.device_lock import DeviceLock
from bus.logs import configure_logging
from bus.parent import die_with_parent
from bus.settings import ModelSettings
from bus.transport import install_fast_loop
from bus.worker import Call, Worker
from schemas.bodies.model import (
    Chat,
    ConversationClear,
    ConversationCleared,
    Embed,
    Embeddings,
    Generate,
    Generation,
    GenerationPart,
    Sampling,
    Score,
    Scores,
    Timings,
    Usage,
    UsageEvent,
)
from schemas.bodies.resource import LockHolder
from schemas.errors import BadRequest, BusError, Cancelled, Internal, NotFound, Unprocessable, Unsupported
from schemas.metrics import MODEL_FIRST_TOKEN, MODEL_GENERATIONS, MODEL_SECONDS, MODEL_TOKENS
from schemas.purpose import PURPOSE
from schemas.values import require_json
from workers.models.adapters.canary import InUse
from workers.models.answered import Answers
from workers.models.backends import llama_cpp
from workers.models.backends.backend import AdapterFile, Backend, Chunk, LoadFailed, Options, Outcome, Question
from workers.models.backends.choose import open_backend, own_words
from workers.models.backends.llama_library import LibraryMissing
from workers.models.control import (
    AdaptersSet,
    Command,
    DrainRunner,
    LoadModel,
    News,
    RunnerBusy,
    RunnerFailed,
    RunnerLoaded,
    RunnerReady,
    RunnerUsed,
    RunnerWaiting,
    ServeModel,
    SetAdapters,
    decode_command,
    encode_line,
)
from workers.models.footprint import ram_bytes, vram_bytes
from workers.models.gguf_header import UnusableFile
from workers.models.relay import caller_of, is_relayed, reply_id_of

log = logging.getLogger("olympus.models.runner")

# Answers waiting for a free sequence inside the runner, per sequence: the next one starts without a round trip.
_QUEUED_PER_SEQUENCE: Final = 1

# Of the time to leave on SIGTERM, kept for what remains when the last answer is done.
_LEAVE_S: Final = 1.0

# A drain on request lasts as long as its longest answer; deadlines end those.
_DRAIN_S: Final = 86_400.0

# Defaults of llama.cpp's own sampling (common_params_sampling), used where request, rule and model say nothing.
_DEFAULTS: Final[dict[str, Any]] = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.05,
    "repeat_penalty": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
}


class Runner:
    """One loaded model as a bus worker. `own_sampling`: what the model's files advise."""

    def __init__(
        self,
        command: LoadModel,
        backend: Backend,
        own_sampling: Mapping[str, Any],
        lock: DeviceLock | None,
        pipe: BinaryIO,
    ) -> None:
        settings = command.settings
        self._name = command.name
        self._backend = backend
        self.lost = backend.lost
        self._models = settings.models
        self._sampling = {**own_sampling, **command.sampling}
        self._lock = lock
        self._pipe = pipe
        self._in_flight = 0
        self._publishing: set[asyncio.Task[None]] = set()
        self._use = InUse()
        # By the names that requests give them; and what the backend holds, by content.
        self._adapters: dict[str, AdapterFile] = {}
        self._held: dict[str, AdapterFile] = {}
        # Answers under way with each adapter, by its content.
        self._using: Counter[str] = Counter()
        self._used_less = asyncio.Event()
        self._changing = asyncio.Lock()
        parallel = command.parallel or settings.models.parallel
        name = command.name
        self.worker = Worker("model.runner", settings, capacity=parallel * (1 + _QUEUED_PER_SEQUENCE), instance=name)
        self._answers = Answers(self.worker.publish, observe=settings.learning.observe)
        figures = self.worker.figures
        self._generations = figures.counter(MODEL_GENERATIONS)
        self._tokens = figures.counter(MODEL_TOKENS)
        self._answer_s = figures.histogram(MODEL_SECONDS)
        self._first_token_s = figures.histogram(MODEL_FIRST_TOKEN)
        self._generations.add(name, "ok", by=0)
        self._count_tokens(Usage(prompt_tokens=0, completion_tokens=0))
        self.worker.handle(f"model.generate@{name}", self.generate)
        self.worker.handle(f"model.chat@{name}", self.chat)
        self.worker.handle(f"model.embed@{name}", self.embed)
        self.worker.handle(f"model.score@{name}", self.score)
        self.worker.handle(f"model.conversation.clear@{name}", self.clear_conversation)

    # Operations -----------------------------------------------------------------------------------------------------

    async def generate(self, request: Generate, call: Call) -> Generation:
        """Continue a prompt as it stands; control tokens may be written out in it."""
        with self._counted(request.model, call), self._adapter(self._meant(request, call)) as adapter:
            options = self._options(request, adapter)
            question = Question(options=options, text=request.prompt, truncate=request.truncate)
            return await self._answer(request, question, adapter, call)

    async def chat(self, request: Chat, call: Call) -> Generation:
        """Answer a conversation through the model's chat template."""
        with self._counted(request.model, call), self._adapter(self._meant(request, call)) as adapter:
            is_json = request.response_format == "json"
            for index, tool in enumerate(request.tools):
                require_json(tool.parameters, f"tools[{index}].parameters")
            if request.tool_choice == "required" and not request.tools:
                raise BadRequest("tool_choice is 'required', and there are no tools", field="tools")
            if request.tools and request.tool_choice == "required":
                shaped = is_json or request.json_schema is not None or request.grammar is not None
                if shaped:
                    raise BadRequest(
                        "tool_choice is 'required', so no other shape can be asked for", field="tool_choice"
                    )
            question = Question(
                options=self._options(request, adapter),
                messages=tuple(request.messages),
                tools=tuple(request.tools),
                tool_choice=request.tool_choice,
                is_json=is_json,
                truncate=request.truncate,
            )
            return await self._answer(request, question, adapter, call)

    async def embed(self, request: Embed, call: Call) -> Embeddings:
        """Vectors of texts."""
        with self._counted(request.model, call):
            started_at = time.perf_counter()
            vectors, tokens = await self._backend.embed(request.texts, request.truncate)
            usage = Usage(prompt_tokens=tokens, completion_tokens=0)
            self._tell_used("embed", usage, time.perf_counter() - started_at, None)
            return Embeddings(model=self._name, dimension=len(vectors[0]) // 4, vectors=vectors, usage=usage)

    async def score(self, request: Score, call: Call) -> Scores:
        """Log-probability of texts after their prompts. A measurement, so it never goes to a canary unasked."""
        asked = self._use.champion if request.adapter is None else request.adapter
        with self._counted(request.model, call), self._adapter(asked) as adapter:
            if request.prompts and len(request.prompts) != len(request.texts):
                raise BadRequest(
                    f"there are {len(request.prompts)} prompts for {len(request.texts)} texts", field="prompts"
                )
            started_at = time.perf_counter()
            sha256 = adapter.sha256 if adapter is not None else None
            found = await self._backend.score(request.prompts or [""] * len(request.texts), request.texts, sha256)
            tokens = [count for _, count in found]
            usage = Usage(prompt_tokens=sum(tokens), completion_tokens=0)
            self._tell_used("score", usage, time.perf_counter() - started_at, adapter)
            return Scores(model=self._name, logprobs=[value for value, _ in found], tokens=tokens)

    async def clear_conversation(self, request: ConversationClear, call: Call) -> ConversationCleared:
        """Drop the state kept for a conversation."""
        was_kept = self._backend.forget(request.conversation_id)
        return ConversationCleared(conversation_id=request.conversation_id, was_kept=was_kept)

    # An answer ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _counted(self, model: str | None, call: Call) -> Iterator[None]:
        """Tell the service how many answers are in flight, so that it does not send this model away under them."""
        self._in_flight += 1
        tell(self._pipe, RunnerBusy(self._in_flight, caller_of(call)))
        try:
            if model is not None and model != self._name:
                raise BadRequest(f"addressed to @{self._name}, but field 'model' is {model!r}", field="model")
            yield
        except Exception:
            tell(self._pipe, RunnerUsed())
            raise
        finally:
            self._in_flight -= 1
            tell(self._pipe, RunnerBusy(self._in_flight))

    def _meant(self, request: Sampling, call: Call) -> str | None:
        """Name of the adapter that a request means. A conversation, or a caller, stays on one side of the canary."""
        if request.adapter is not None:
            return request.adapter
        champion, canary = self._use.champion, self._use.canary
        if canary is None:
            return champion
        key = request.conversation_id or caller_of(call) or secrets.token_hex(8)
        return canary.adapter if canary.takes(key) else champion

    @contextlib.contextmanager
    def _adapter(self, name: str | None) -> Iterator[AdapterFile | None]:
        """An adapter by its name, held as long as it is being answered with. Raises NotFound."""
        if not name:
            yield None
            return
        adapter = self._adapters.get(name)
        if adapter is None:
            there = ", ".join(sorted(self._adapters)) or "none"
            raise NotFound(f"{self._name} has no adapter {name!r} attached; attached are: {there}", adapter=name)
        self._using[adapter.sha256] += 1
        try:
            yield adapter
        finally:
            self._using[adapter.sha256] -= 1
            self._used_less.set()

    def _options(self, request: Sampling, adapter: AdapterFile | None) -> Options:
        if request.grammar is not None and request.json_schema is not None:
            raise BadRequest("both 'grammar' and 'json_schema' are given, an answer has one shape", field="grammar")
        require_json(request.json_schema, "json_schema")
        return sampling_options(request, self._sampling, self._models, adapter.sha256 if adapter is not None else None)

    async def _answer(
        self, request: Generate | Chat, question: Question, adapter: AdapterFile | None, call: Call
    ) -> Generation:
        name = adapter.name if adapter is not None else ""
        began = time.perf_counter()
        try:
            outcome = await self._outcome(question, call)
        except BusError as error:
            self._generations.add(self._name, error.code)
            # The service tells of what it passed on itself: it may yet find another way.
            if not is_relayed(call):
                self._answers.failed(request, self._name, error, call, name)
            raise
        except asyncio.CancelledError:
            self._generations.add(self._name, Cancelled.code)
            if not is_relayed(call):
                self._answers.late(request, self._name, call, name)
            raise
        except Exception:
            self._generations.add(self._name, Internal.code)
            raise
        generation = _generation(self._name, outcome, name or None, reply_id_of(call))
        self._generations.add(self._name, "ok")
        self._answer_s.observe(time.perf_counter() - began, self._name)
        if generation.usage.completion_tokens:
            self._first_token_s.observe(outcome.first_token_s, self._name)
        self._count_tokens(generation.usage)
        event = UsageEvent(
            model=self._name,
            operation="chat" if isinstance(request, Chat) else "generate",
            usage=generation.usage,
            timings=generation.timings,
            finish_reason=generation.finish_reason,
            adapter=generation.adapter,
            mean_logprob=outcome.mean_logprob,
            purpose=str(call.headers.get(PURPOSE, "")),
        )
        tell(self._pipe, RunnerUsed(event))
        self._publish_usage(event)
        self._answers.finished(request, generation, outcome, call)
        return generation

    async def _outcome(self, question: Question, call: Call) -> Outcome:
        """Stream the answer to the caller; how it ended."""
        outcome: Outcome | None = None
        async with contextlib.aclosing(self._backend.answer(question)) as parts:
            async for part in parts:
                if isinstance(part, Chunk):
                    await call.partial(GenerationPart(text=part.text, token_ids=part.token_ids, logprobs=part.logprobs))
                else:
                    outcome = part
        if outcome is None:
            raise Internal("the backend ended without an outcome")
        return outcome

    def _tell_used(self, operation: str, usage: Usage, took_s: float, adapter: AdapterFile | None) -> None:
        """Tell the service of something that read texts and wrote none."""
        timings = Timings(prompt_s=took_s, generate_s=0.0, first_token_s=took_s, tokens_per_s=0.0)
        event = UsageEvent(
            model=self._name,
            operation=operation,
            usage=usage,
            timings=timings,
            finish_reason="stop",
            adapter=adapter.name if adapter is not None else None,
        )
        tell(self._pipe, RunnerUsed(event))
        self._count_tokens(usage)

    def _count_tokens(self, usage: Usage) -> None:
        self._tokens.add(self._name, "prompt", by=usage.prompt_tokens)
        self._tokens.add(self._name, "cached", by=usage.cached_tokens)
        self._tokens.add(self._name, "completion", by=usage.completion_tokens)

    def _publish_usage(self, event: UsageEvent) -> None:
        """Publish `model.usage` without making the caller wait for it."""
        task = asyncio.get_running_loop().create_task(self._publish(event))
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)

    async def _publish(self, event: UsageEvent) -> None:
        try:
            await self.worker.publish("model.usage", event)
        except BusError as error:
            log.warning("usage not published", extra={"action": "model.usage.unpublished", "error": str(error)})

    # Adapters -------------------------------------------------------------------------------------------------------

    async def attach_first(self, use: InUse) -> None:
        """Attach what the model begins with, under the lock of the load. Raises LoadFailed."""
        if use.files:
            self._require_adapters()
            await self._hold({file.sha256: file for file in use.files})
        self._turn_to(use)

    async def set_adapters(self, use: InUse) -> None:
        """Have exactly these attached. Raises LoadFailed for one that does not fit, and then nothing has changed.

        The new ones come first, then requests turn to them, then the old ones go: at no moment a name is missing.
        Answers under way with an old one are finished with it.
        """
        async with self._changing:
            if use.files:
                self._require_adapters()
            wanted = {file.sha256: file for file in use.files}
            if wanted.keys() - self._held.keys():
                async with self._locked("change adapters"):
                    await self._hold(self._held | wanted)
            self._turn_to(use)
            gone = self._held.keys() - wanted.keys()
            if not gone:
                return
            while any(self._using[sha256] for sha256 in gone):
                self._used_less.clear()
                await self._used_less.wait()
            async with self._locked("change adapters"):
                await self._hold(wanted)

    def _turn_to(self, use: InUse) -> None:
        self._use = use
        self._adapters = {file.name: file for file in use.files}

    async def _hold(self, files: dict[str, AdapterFile]) -> None:
        await self._backend.set_adapters(list(files.values()))
        self._held = files

    def _require_adapters(self) -> None:
        if "adapters" not in self._backend.capabilities:
            raise LoadFailed(f"{self._name} takes no adapters")

    @contextlib.asynccontextmanager
    async def _locked(self, purpose: str) -> AsyncGenerator[None, None]:
        if self._lock is None:
            yield
            return
        await self._lock.acquire(model=self._name, purpose=purpose, timeout_s=self._models.load_timeout_s)
        try:
            yield
        finally:
            self._lock.release()

    # The end --------------------------------------------------------------------------------------------------------

    async def drain(self, limit_s: float) -> None:
        """Take nothing new, finish what is in flight within `limit_s`, leave the bus, free the model under its lock."""
        self.worker.set_capacity(0)
        await self.worker.stop(limit_s)
        if self._publishing:
            await asyncio.wait(set(self._publishing), timeout=1.0)
        await self._answers.flush(1.0)
        if self._lock is not None and not self._lock.is_held:
            # Never released: the kernel does it when the process, and with it all memory, is gone.
            try:
                await self._lock.acquire(model=self._name, purpose="unload", timeout_s=_LEAVE_S)
            except BusError as error:
                # Leaving is better than waiting: it gives memory back to whoever holds the lock.
                log.warning("leaves without the lock", extra={"action": "model.unload.unlocked", "error": str(error)})
        await self._backend.close()


def sampling_options(
    request: Sampling, advised: Mapping[str, Any], settings: ModelSettings, adapter: str | None = None
) -> Options:
    """The options of a generation: what the request says, else what is advised for the model, else llama.cpp's.

    A missing seed is drawn, so that two requests without one differ.
    """

    def choose(field: str) -> Any:
        asked = getattr(request, field)
        return advised.get(field, _DEFAULTS.get(field)) if asked is None else asked

    seed = choose("seed")
    return Options(
        max_tokens=choose("max_tokens") or settings.max_tokens,
        temperature=choose("temperature"),
        top_k=int(choose("top_k")),
        top_p=choose("top_p"),
        min_p=choose("min_p"),
        repeat_penalty=choose("repeat_penalty"),
        frequency_penalty=choose("frequency_penalty"),
        presence_penalty=choose("presence_penalty"),
        seed=secrets.randbits(32) if seed is None else seed,
        stop=tuple(request.stop or advised.get("stop", ())),
        logprobs=request.logprobs,
        grammar=request.grammar,
        json_schema=request.json_schema,
        adapter=adapter,
        conversation_id=request.conversation_id,
    )


def _generation(model: str, outcome: Outcome, adapter: str | None, reply_id: str) -> Generation:
    completion = len(outcome.token_ids) if outcome.completion_tokens is None else outcome.completion_tokens
    # The first token belongs to the reading of the prompt; the rate is that of the others.
    rate = (completion - 1) / outcome.generate_s if completion > 1 and outcome.generate_s > 0 else 0.0
    return Generation(
        model=model,
        text=outcome.text,
        token_ids=outcome.token_ids,
        finish_reason=outcome.finish_reason,
        usage=Usage(
            prompt_tokens=outcome.prompt_tokens,
            completion_tokens=completion,
            cached_tokens=outcome.cached_tokens,
        ),
        timings=Timings(
            prompt_s=outcome.prompt_s,
            generate_s=outcome.generate_s,
            first_token_s=outcome.first_token_s,
            tokens_per_s=rate,
        ),
        tool_calls=list(outcome.tool_calls),
        logprobs=list(outcome.logprobs),
        adapter=adapter,
        truncated_tokens=outcome.truncated_tokens,
        reply_id=reply_id,
    )


# The process --------------------------------------------------------------------------------------------------------


def tell(pipe: BinaryIO, news: News) -> None:
    """Write one line to the service. A service that is gone ends this process through stdin, not through here."""
    with contextlib.suppress(BrokenPipeError):
        pipe.write(encode_line(news))


async def serve(pipe: BinaryIO) -> int:
    """Wait for the model, load it, serve it until told to leave. The exit code: 1 when what runs it ended by itself."""
    commands = await _read_commands()
    command = await anext(commands, None)
    if not isinstance(command, LoadModel):
        return 0
    configure_logging(command.settings.log)
    try:
        runner = await _load(command, commands, pipe)
    except BusError as error:
        tell(pipe, RunnerFailed(error.code, error.message))
        # The service ends this process; what a failed load left behind goes with it.
        await anext(commands, None)
        return 0
    if runner is None:
        return 0
    with runner.worker.reports.hooks():
        return await _serve_until_told(runner, command, commands, pipe)


async def _serve_until_told(
    runner: Runner, command: LoadModel, commands: AsyncGenerator[Command, None], pipe: BinaryIO
) -> int:
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    signalled = asyncio.ensure_future(told.wait())
    obeying = asyncio.ensure_future(_obey(runner, commands, pipe))
    losing = asyncio.ensure_future(runner.lost.wait())
    await asyncio.wait({signalled, obeying, losing}, return_when=asyncio.FIRST_COMPLETED)
    if losing.done() and not obeying.done() and not signalled.done():
        # Gone at once, as in a crash: the callers hear of a lost worker, and the service loads the model anew.
        log.error("what runs the model has ended", extra={"action": "model.runner.lost", "model": command.name})
        return 1
    is_asked = obeying.done() and obeying.result()
    draining = asyncio.ensure_future(
        runner.drain(_DRAIN_S if is_asked else max(command.settings.supervisor.stop_s - _LEAVE_S, 0.0))
    )
    # A drain on request is cut short by SIGTERM: then the whole house is leaving.
    await asyncio.wait({draining, signalled}, return_when=asyncio.FIRST_COMPLETED)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(command.settings.supervisor.stop_s):
            await draining
    return 0


async def _obey(runner: Runner, commands: AsyncGenerator[Command, None], pipe: BinaryIO) -> bool:
    """Change adapters as told; True when told to drain, False at the end of the service."""
    changes: set[asyncio.Task[None]] = set()
    async for command in commands:
        if isinstance(command, DrainRunner):
            return True
        if isinstance(command, SetAdapters):
            task = asyncio.ensure_future(_change(runner, command, pipe))
            changes.add(task)
            task.add_done_callback(changes.discard)
    return False


async def _change(runner: Runner, command: SetAdapters, pipe: BinaryIO) -> None:
    try:
        await runner.set_adapters(command.use)
    except LoadFailed as error:
        tell(pipe, AdaptersSet(id=command.id, error=str(error)))
    except BusError as error:
        tell(pipe, AdaptersSet(id=command.id, error=error.message))
    else:
        tell(pipe, AdaptersSet(id=command.id))


async def _load(command: LoadModel, commands: AsyncGenerator[Command, None], pipe: BinaryIO) -> Runner | None:
    """The model on the bus, None when the service went away meanwhile. Raises what it cannot be loaded for."""
    # What computes elsewhere takes no memory of a device here.
    lock = DeviceLock(command.settings.path("locks"), command.device) if command.remote is None else None
    if lock is not None:
        await _take(lock, command, pipe)
    before = ram_bytes()
    try:
        own = own_words(command)
        backend = await open_backend(command, own)
        runner = Runner(command, backend, own.sampling, lock, pipe)
        # The adapters of now: while the model was read some may have come and others gone.
        tell(pipe, RunnerReady())
        order = await anext(commands, None)
        if not isinstance(order, ServeModel):
            return None
        await runner.attach_first(order.use)
    except (UnusableFile, LoadFailed) as error:
        raise Unprocessable(f"{command.name} cannot be loaded: {error}", model=command.name) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise Unprocessable(f"{command.name} cannot be loaded: {reason}", model=command.name) from error
    except LibraryMissing as error:
        raise Unsupported(str(error)) from error
    if lock is not None:
        lock.release()
    await runner.worker.start()
    tell(
        pipe,
        RunnerLoaded(
            context_tokens=backend.context_tokens,
            capabilities=tuple(sorted(backend.capabilities)),
            ram_bytes=max(ram_bytes() - before, 0),
            vram_bytes=vram_bytes(command.device),
        ),
    )
    return runner


async def _take(lock: DeviceLock, command: LoadModel, pipe: BinaryIO) -> None:
    """Take the lock of the device for the load, telling the service for whom it waits. Raises DeadlineExceeded."""

    def tell_waiting(holder: LockHolder | None) -> None:
        who = f"{holder.model or 'a program'} (pid {holder.pid}, {holder.purpose or 'unnamed'})" if holder else "others"
        tell(pipe, RunnerWaiting(f"the lock of {command.device} is held by {who}"))

    await lock.acquire(
        model=command.name,
        purpose="load",
        timeout_s=command.settings.models.load_timeout_s,
        on_wait=tell_waiting,
    )


async def _read_commands() -> AsyncGenerator[Command, None]:
    reader = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    async def commands() -> AsyncGenerator[Command, None]:
        while line := await reader.readline():
            yield decode_command(line)

    return commands()


def main(argv: Sequence[str] | None = None) -> None:
    """Run one runner until its service is done with it."""
    parser = argparse.ArgumentParser(prog="python -m workers.models.runner", description=__doc__)
    parser.add_argument("--parent", type=int, required=True, help="process id of the model service")
    die_with_parent(parser.parse_args(argv).parent)
    # Whatever a library prints goes to stderr; stdout is the pipe to the service.
    pipe = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    # The decode thread must get the interpreter back quickly after each step; 5 ms is several tokens of a small model.
    sys.setswitchinterval(0.0005)
    with contextlib.suppress(LibraryMissing):
        llama_cpp.prepare()
    install_fast_loop()
    code = asyncio.run(serve(pipe))
    # Taking the interpreter and llama.cpp down in good order costs 0.15 s that a model in waiting could be loading.
    logging.shutdown()
    os._exit(code)


if __name__ == "__main__":
    main()
