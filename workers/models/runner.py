"""A runner: a process that holds one model and answers for it on the bus, `python -m workers.models.runner --parent PID`.

Started by the model service, which tells it its model over stdin (see `control`); until then it waits, imports done.
Native code that crashes or hangs takes this process with it and nothing else. The process never outlives the service:
the kernel kills it when the service dies, and the end of stdin ends it too.
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
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from bus.logs import configure_logging
from bus.settings import ModelSettings, Settings
from bus.transport import install_fast_loop
from bus.worker import Call, Worker
from schemas.bodies.model import Chat, Generate, Generation, GenerationPart, Sampling, Timings, Usage, UsageEvent
from schemas.errors import BadRequest, BusError, Internal, Unprocessable, Unsupported
from workers.models.backends import llama_cpp
from workers.models.backends.backend import Backend, Chunk, LoadFailed, LoadOptions, Options, Outcome
from workers.models.backends.llama_library import LibraryMissing
from workers.models.chat import ChatTemplate
from workers.models.control import (
    DrainRunner,
    LoadModel,
    News,
    RunnerBusy,
    RunnerFailed,
    RunnerLoaded,
    decode_command,
    encode_line,
)
from workers.models.gguf_header import GgufHeader, UnusableFile, read_header
from workers.models.parent import die_with_parent

log = logging.getLogger("olympus.models.runner")

# Longer texts are tokenized in a thread: at some 5 MB/s they would hold up the heartbeats.
_LONG_TEXT: Final = 64 * 1024

# Answers waiting for a free sequence inside the runner, per sequence: the next one starts without a round trip.
_QUEUED_PER_SEQUENCE: Final = 1

# After the runner said that it takes nothing more, requests that were already on their way may come in for this long.
_SETTLE_S: Final = 0.1

# Of the time to leave on SIGTERM, kept for what remains when the last answer is done.
_LEAVE_S: Final = 1.0

# A drain on request lasts as long as its longest answer; deadlines end those.
_DRAIN_S: Final = 86_400.0

# Defaults of llama.cpp's own sampling (common_params_sampling), used where request and model say nothing.
_TEMPERATURE: Final = 0.8
_TOP_K: Final = 40
_TOP_P: Final = 0.95
_MIN_P: Final = 0.05


class Runner:
    """One loaded model as a bus worker."""

    def __init__(self, name: str, backend: Backend, header: GgufHeader, settings: Settings, pipe: BinaryIO) -> None:
        self._name = name
        self._backend = backend
        self._header = header
        self._settings = settings
        self._pipe = pipe
        self._template: ChatTemplate | None = None
        self._in_flight = 0
        self._publishing: set[asyncio.Task[None]] = set()
        parallel = settings.models.parallel
        self.worker = Worker("model.runner", settings, capacity=parallel * (1 + _QUEUED_PER_SEQUENCE), instance=name)
        self.worker.handle(f"model.generate@{name}", self.generate)
        self.worker.handle(f"model.chat@{name}", self.chat)

    async def generate(self, request: Generate, call: Call) -> Generation:
        """Continue a prompt as it stands; control tokens may be written out in it."""
        with self._counted():
            self._check_name(request.model)
            tokens = await _in_thread_if_long(
                len(request.prompt), lambda: self._backend.tokenize(request.prompt, with_special=True)
            )
            return await self._answer("generate", self._backend.begin(tokens), request, (), call)

    async def chat(self, request: Chat, call: Call) -> Generation:
        """Answer a conversation through the model's chat template."""
        with self._counted():
            self._check_name(request.model)
            if self._template is None:
                self._template = ChatTemplate(self._header.text("tokenizer.chat_template") or None, self._backend)
            template = self._template
            size = sum(len(message.content) for message in request.messages)
            tokens = await _in_thread_if_long(size, lambda: template.tokens(request.messages))
            return await self._answer("chat", tokens, request, template.stop, call)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Tell the service how many answers are in flight, so that it does not send this model away under them."""
        self._in_flight += 1
        tell(self._pipe, RunnerBusy(self._in_flight))
        try:
            yield
        finally:
            self._in_flight -= 1
            tell(self._pipe, RunnerBusy(self._in_flight))

    def _check_name(self, model: str | None) -> None:
        if model is not None and model != self._name:
            raise BadRequest(f"addressed to @{self._name}, but field 'model' is {model!r}", field="model")

    async def _answer(
        self, operation: str, prompt: list[int], request: Sampling, stop: tuple[str, ...], call: Call
    ) -> Generation:
        window = self._backend.context_tokens
        if not prompt:
            raise Unprocessable("the prompt has no token at all", prompt_tokens=0, context_tokens=window)
        if len(prompt) >= window:
            raise Unprocessable(
                f"the prompt has {len(prompt)} tokens, the context window of {self._name} has {window}"
                " and must also hold the answer",
                prompt_tokens=len(prompt),
                context_tokens=window,
            )
        options = sampling_options(request, self._header, self._settings.models, stop)
        outcome: Outcome | None = None
        async with contextlib.aclosing(self._backend.generate(prompt, options)) as parts:
            async for part in parts:
                if isinstance(part, Chunk):
                    await call.partial(GenerationPart(text=part.text, token_ids=part.token_ids))
                else:
                    outcome = part
        if outcome is None:
            raise Internal("the backend ended without an outcome")
        generation = _generation(self._name, outcome)
        self._publish_usage(operation, generation)
        return generation

    def _publish_usage(self, operation: str, generation: Generation) -> None:
        """Publish `model.usage` without making the caller wait for it."""
        event = UsageEvent(
            model=self._name,
            operation=operation,
            usage=generation.usage,
            timings=generation.timings,
            finish_reason=generation.finish_reason,
        )
        task = asyncio.get_running_loop().create_task(self._publish(event))
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)

    async def _publish(self, event: UsageEvent) -> None:
        try:
            await self.worker.publish("model.usage", event)
        except BusError as error:
            log.warning("usage not published", extra={"action": "model.usage.unpublished", "error": str(error)})

    async def drain(self, limit_s: float) -> None:
        """Take nothing new, finish what is in flight within `limit_s`, leave the bus."""
        self.worker.set_capacity(0)
        await asyncio.sleep(_SETTLE_S)
        await self.worker.stop(limit_s)
        if self._publishing:
            await asyncio.wait(set(self._publishing), timeout=1.0)
        self._backend.close()


def sampling_options(
    request: Sampling, header: GgufHeader, settings: ModelSettings, stop: tuple[str, ...] = ()
) -> Options:
    """The options of a generation: what the request says, else the model file (`general.sampling.*`), else llama.cpp's.

    A missing seed is drawn, so that two requests without one differ.
    """

    def choose(asked: float | None, key: str, default: float) -> float:
        if asked is not None:
            return asked
        own = header.number(f"general.sampling.{key}")
        return default if own is None else own

    return Options(
        max_tokens=request.max_tokens or settings.max_tokens,
        temperature=choose(request.temperature, "temp", _TEMPERATURE),
        top_k=int(choose(request.top_k, "top_k", _TOP_K)),
        top_p=choose(request.top_p, "top_p", _TOP_P),
        min_p=choose(request.min_p, "min_p", _MIN_P),
        repeat_penalty=choose(request.repeat_penalty, "penalty_repeat", 1.0),
        seed=secrets.randbits(32) if request.seed is None else request.seed,
        stop=(*request.stop, *stop),
    )


def context_length(asked: int | None, trained: int, settings: ModelSettings) -> int:
    """Tokens of each sequence's window. `trained` is the model's own length, 0 when unknown.

    Raises Unprocessable when more is asked for than the model was trained for: beyond it answers are noise.
    """
    if asked is not None:
        if trained and asked > trained:
            raise Unprocessable(
                f"context_tokens is {asked}, the model was trained for {trained}",
                context_tokens=asked,
                limit_tokens=trained,
            )
        return asked
    wanted = settings.context_tokens or settings.max_context_tokens
    return min(wanted, trained) if trained else wanted


def _generation(model: str, outcome: Outcome) -> Generation:
    completion = len(outcome.token_ids)
    # The first token belongs to the reading of the prompt; the rate is that of the others.
    rate = (completion - 1) / outcome.generate_s if completion > 1 and outcome.generate_s > 0 else 0.0
    return Generation(
        model=model,
        text=outcome.text,
        token_ids=outcome.token_ids,
        finish_reason=outcome.finish_reason,
        usage=Usage(prompt_tokens=outcome.prompt_tokens, completion_tokens=completion),
        timings=Timings(
            prompt_s=outcome.prompt_s,
            generate_s=outcome.generate_s,
            first_token_s=outcome.first_token_s,
            tokens_per_s=rate,
        ),
    )


async def _in_thread_if_long(size: int, work: Callable[[], list[int]]) -> list[int]:
    return work() if size < _LONG_TEXT else await asyncio.to_thread(work)


# The process --------------------------------------------------------------------------------------------------------


def tell(pipe: BinaryIO, news: News) -> None:
    """Write one line to the service. A service that is gone ends this process through stdin, not through here."""
    with contextlib.suppress(BrokenPipeError):
        pipe.write(encode_line(news))


async def serve(pipe: BinaryIO) -> None:
    """Wait for the model, load it, serve it until told to leave."""
    commands = await _read_commands()
    command = await anext(commands, None)
    if not isinstance(command, LoadModel):
        return
    configure_logging(command.settings.log)
    try:
        runner = await _load(command, pipe)
    except BusError as error:
        tell(pipe, RunnerFailed(error.code, error.message))
        # The service ends this process; what a failed load left behind goes with it.
        await anext(commands, None)
        return
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    signalled = asyncio.ensure_future(told.wait())
    commanded = asyncio.ensure_future(anext(commands, None))
    await asyncio.wait({signalled, commanded}, return_when=asyncio.FIRST_COMPLETED)
    is_asked = commanded.done() and isinstance(commanded.result(), DrainRunner)
    draining = asyncio.ensure_future(
        runner.drain(_DRAIN_S if is_asked else max(command.settings.supervisor.stop_s - _LEAVE_S, 0.0))
    )
    # A drain on request is cut short by SIGTERM: then the whole house is leaving.
    await asyncio.wait({draining, signalled}, return_when=asyncio.FIRST_COMPLETED)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(command.settings.supervisor.stop_s):
            await draining


async def _load(command: LoadModel, pipe: BinaryIO) -> Runner:
    settings = command.settings
    path = Path(command.path)
    try:
        header = read_header(path)
        context_tokens = context_length(command.context_tokens, header.context_tokens, settings.models)
        backend = llama_cpp.load(
            path,
            LoadOptions(
                context_tokens=context_tokens,
                parallel=settings.models.parallel,
                threads=settings.models.threads,
                gpu_layers=settings.models.gpu_layers,
            ),
        )
    except (UnusableFile, LoadFailed) as error:
        raise Unprocessable(f"{command.name} cannot be loaded: {error}", model=command.name) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise Unprocessable(f"{command.name} cannot be loaded: {reason}", model=command.name) from error
    except LibraryMissing as error:
        raise Unsupported(str(error)) from error
    runner = Runner(command.name, backend, header, settings, pipe)
    await runner.worker.start()
    tell(pipe, RunnerLoaded(context_tokens))
    return runner


async def _read_commands() -> AsyncGenerator[LoadModel | DrainRunner, None]:
    reader = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    async def commands() -> AsyncGenerator[LoadModel | DrainRunner, None]:
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
    asyncio.run(serve(pipe))
    # Taking the interpreter and llama.cpp down in good order costs 0.15 s that a model in waiting could be loading.
    logging.shutdown()
    os._exit(0)


if __name__ == "__main__":
    main()
