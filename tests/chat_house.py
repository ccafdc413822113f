"""A house for tests of the chat: a real broker, the real memory service and a scripted model, on ports of their own.

    with ChatHouse(tmp_path / "home") as house:
        house.answer("Hello", " there.")                  # the next answer, piece by piece
        house.answer(Say(calls=[("recall", "{}")]), "Done.")   # one answer for each argument after the first Say
        async with Client(house.settings) as client: ...
        house.asked[-1].messages                          # what the model was shown

Without a script the model answers by the question itself, which is what a program in a terminal needs (see `reply_to`).
As a program, `python -m tests.chat_house HOME`, it prints a line of JSON with its ports and `flags` for the command,
then takes one JSON object a line on stdin, `{"do": "answer", "pieces": [...]}`, `{"do": "stop_broker"}`,
`{"do": "asked"}` ..., answers each with a line, and ends with its stdin.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import msgspec

from broker.server import Broker
from bus.client import Client
from bus.settings import Settings, load_settings
from bus.worker import Call, Worker
from schemas.bodies.learning import Feedback, FeedbackTaken
from schemas.bodies.model import (
    Chat,
    Generation,
    GenerationPart,
    ModelInfo,
    ModelKeep,
    ModelKept,
    ModelList,
    ModelLoad,
    Models,
    ModelShow,
    ModelState,
    ModelUnload,
    Timings,
    ToolCall,
    Usage,
)
from schemas.bodies.model_trials import Profile, ProfileList, Profiles, Route, Routed
from schemas.bodies.resource import DeviceStatus, GpuStatus, GpuStatusReply
from schemas.errors import BY_CODE, NotFound
from tests.conftest import settings_of

# What a test waits for is there by then, seconds.
WAIT_S: Final = 20.0

_PORTS: Final = ("request_port", "publish_port", "subscribe_port", "sequenced_port")

_GIB: Final = 2**30

# The scripted models: the default, one that takes no tools, and one that is not loaded.
MODELS: Final = (
    ModelInfo(
        name="tiny",
        family="llama",
        format="gguf",
        quantisation="F16",
        parameters=2_700_000,
        size_bytes=5_500_000,
        context_tokens=4096,
        state="loaded",
        capabilities=["generate", "chat", "tools"],
        memory_bytes=64 * 2**20,
        device="gpu0",
    ),
    ModelInfo(
        name="plain",
        family="llama",
        format="gguf",
        quantisation="Q4_K_M",
        parameters=1_000_000_000,
        size_bytes=800_000_000,
        context_tokens=2048,
        state="loaded",
        capabilities=["generate", "chat"],
        memory_bytes=_GIB,
        device="gpu0",
    ),
    ModelInfo(
        name="big",
        family="qwen",
        format="gguf",
        quantisation="Q4_K_M",
        parameters=8_000_000_000,
        size_bytes=5 * _GIB,
        context_tokens=32_768,
        state="available",
        capabilities=["generate", "chat", "tools", "code"],
    ),
)

# Routing profiles of the scripted models: name -> the model that it chooses.
PROFILES: Final = {"general": "tiny", "code": "big", "fast": "plain"}

MARKDOWN: Final = """\
# A heading

Some **bold** and *slanted* words, and `code`.

- one
- two

```python
print("hello")
```

| a | b |
|---|---|
| 1 | 2 |

The end.
"""


class Say(msgspec.Struct, kw_only=True):
    """One scripted answer.

    pieces: texts as they stream. hold_s: between two pieces. waits: after the pieces it waits for `ChatHouse.release`.
    calls: tools it asks for, (name, JSON text). error: (code, message) raised after the pieces.
    """

    pieces: list[str] = []
    hold_s: float = 0.0
    waits: bool = False
    calls: list[tuple[str, str]] = []
    error: tuple[str, str] | None = None
    finish_reason: Literal["stop", "length"] = "stop"
    truncated_tokens: int = 0
    tokens_per_s: float = 50.0


class ChatHouse:
    """Everything in a thread of its own; every method may be called from any other thread.

    extra: handlers of more operations, by subject; they replace the scripted ones. overrides: settings by key.
    """

    def __init__(
        self,
        home: Path,
        *,
        extra: Mapping[str, Callable[[Any, Call], Awaitable[Any]]] | None = None,
        has_memory: bool = True,
        **overrides: Any,
    ) -> None:
        self.home = home
        self.models = list(MODELS)
        self.asked: list[Chat] = []
        self.feedback: list[Feedback] = []
        self.cancelled = 0
        self._extra = dict(extra or {})
        self._has_memory = has_memory
        # Without an encoder: loading one takes longer than all else here, and searches would wait for it.
        self._overrides = {"memory.encoder": "none", **overrides}
        self._script: deque[Say] = deque()
        self._cached: dict[str, list[Any]] = {}
        self._started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="chat house")

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.result(60)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)

    # What tests use -----------------------------------------------------------------------------------------------

    def answer(self, *parts: str | Say) -> None:
        """Script answers: texts together are the pieces of one, each `Say` is one of its own."""
        texts = [part for part in parts if isinstance(part, str)]
        if texts and len(texts) == len(parts):
            self._script.append(Say(pieces=texts))
        else:
            self._script.extend(part if isinstance(part, Say) else Say(pieces=[part]) for part in parts)

    def release(self) -> None:
        """Let every answer that waits go on."""
        self._loop.call_soon_threadsafe(self._release)

    def wait_asked(self, count: int) -> None:
        """Return once the model was asked `count` times in all."""
        self.until(lambda: len(self.asked) >= count, f"{count} questions, there are {len(self.asked)}")

    def until(self, is_true: Callable[[], bool], what: str) -> None:
        """Return once `is_true`; fails with `what` was missing."""
        give_up_at = time.monotonic() + WAIT_S
        while not is_true():
            assert time.monotonic() < give_up_at, f"waited {WAIT_S:g} s for {what}"
            time.sleep(0.01)

    async def reached(self, is_true: Callable[[], bool], what: str) -> None:
        """`until` for async tests."""
        await asyncio.to_thread(self.until, is_true, what)

    def request(self, subject: str, body: Any = None) -> Any:
        """The reply of an operation."""
        return self.run(lambda: self._client.request(subject, body))

    def turns(self, session_id: str) -> list[tuple[str, str]]:
        """(role, content) of a session, as the memory has it."""
        reply = self.request("memory.session.history", {"session_id": session_id, "limit": 1000, "touch": False})
        return [(turn.role, turn.content) for turn in reply.turns]

    def run(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """The result of a coroutine in the loop of the house."""
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(60)

    @property
    def flags(self) -> list[str]:
        """`--set` options for the `olympus` command that make it speak to this house."""
        keys = {"home": str(self.home), **{f"bus.{name}": getattr(self.settings.bus, name) for name in _PORTS}}
        keys.update(self._overrides)
        return [part for key, value in keys.items() for part in ("--set", f"{key}={_text(value)}")]

    @property
    def environment(self) -> dict[str, str]:
        """The environment for a program in front of this house: no setting but those of `flags`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OLYMPUS_", "OLLM_"))}
        return kept | {"PYTHONPATH": str(Path(__file__).parents[1]), "HOME": str(self.home)}

    def stop_broker(self) -> None:
        """End the broker; the services stay and look for it."""
        self.run(self._stop_broker)

    def start_broker(self) -> None:
        """A new broker on the old ports, once the services have found it."""
        self.run(self._start_broker)

    def stop_memory(self) -> None:
        """End the memory service; its data stays."""
        self.run(self._stop_memory)

    def start_memory(self) -> None:
        """The memory service anew."""
        self.run(self._start_memory)

    # The thread -----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._released = asyncio.Event()
        self._memory: contextlib.AsyncExitStack | None = None
        try:
            async with contextlib.AsyncExitStack() as stack:
                await self._start(stack)
                self._started.set_result(None)
                await self._stop.wait()
                self._release()
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        ports = {f"bus.{name}": 0 for name in _PORTS}
        wanted = load_settings(overrides={"home": str(self.home), **ports, **self._overrides})
        self._broker: Broker | None = Broker(wanted)
        await self._broker.start()
        stack.push_async_callback(self._stop_broker)
        self.settings: Settings = settings_of(self._broker)
        self._workers = [self._worker(service) for service in ("model", "resource", "learning")]
        for worker in self._workers:
            await worker.start(10)
            stack.push_async_callback(worker.stop, 0)
        self._client = Client(self.settings, name="house")
        stack.push_async_callback(self._client.close)
        stack.push_async_callback(self._stop_memory)
        if self._has_memory:
            await self._start_memory()

    async def _stop_broker(self) -> None:
        broker, self._broker = self._broker, None
        if broker is not None:
            await broker.stop()

    async def _start_broker(self) -> None:
        self._broker = Broker(self.settings)
        await self._broker.start()
        async with asyncio.timeout(WAIT_S):
            while not all(worker.is_welcome for worker in self._all_workers()):
                await asyncio.sleep(0.02)

    def _all_workers(self) -> list[Worker]:
        return [*self._workers, *([self._memory_worker] if self._memory is not None else [])]

    async def _start_memory(self) -> None:
        from workers.memory.service import service

        self._memory = contextlib.AsyncExitStack()
        self._memory_worker = await self._memory.enter_async_context(service(self.settings))
        self._memory.push_async_callback(self._memory_worker.stop, 1)
        await self._memory_worker.start(10)

    async def _stop_memory(self) -> None:
        memory, self._memory = self._memory, None
        if memory is not None:
            await memory.aclose()

    def _release(self) -> None:
        self._released.set()
        self._released = asyncio.Event()

    # The scripted services ------------------------------------------------------------------------------------------

    def _worker(self, service: str) -> Worker:
        scripted: dict[str, Callable[[Any, Call], Awaitable[Any]]] = {
            "model.chat": self._chat,
            "model.list": self._list,
            "model.show": self._show,
            "model.load": self._load,
            "model.unload": self._unload,
            "model.keep": self._keep,
            "model.route": self._route,
            "model.profiles": self._profiles,
            "gpu.status": self._gpu,
            "learning.feedback": self._feedback,
        }
        handlers = {**scripted, **self._extra}
        worker = Worker(service, self.settings, instance=f"{service}-house")
        for subject, handler in handlers.items():
            if _SERVICE_OF.get(subject.partition(".")[0]) == service:
                worker.handle(subject, handler)
        return worker

    async def _chat(self, request: Chat, call: Call) -> Generation:
        self.asked.append(request)
        info = self._find(PROFILES.get(request.model or "general", request.model or "tiny"))
        say = self._script.popleft() if self._script else reply_to(request)
        try:
            for piece in say.pieces:
                await call.partial(GenerationPart(text=piece))
                if say.hold_s:
                    await asyncio.sleep(say.hold_s)
            if say.waits:
                await self._released.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if say.error is not None:
            code, message = say.error
            raise BY_CODE[code](message)
        return self._generation(request, call, say, info)

    def _generation(self, request: Chat, call: Call, say: Say, info: ModelInfo) -> Generation:
        """A token is a word; what was the same in the last request of the conversation is `cached`."""
        text = "".join(say.pieces)
        shown: list[Any] = [(message.role, message.content) for message in request.messages]
        before = self._cached.get(request.conversation_id or "", [])
        same = 0
        while same < min(len(before), len(shown)) and before[same] == shown[same]:
            same += 1
        if request.conversation_id:
            self._cached[request.conversation_id] = [*shown, ("assistant", text)]
        return Generation(
            model=info.name,
            text=text,
            token_ids=[],
            finish_reason="tool_calls" if say.calls else say.finish_reason,
            usage=Usage(
                prompt_tokens=sum(len(content.split()) for _, content in shown),
                completion_tokens=len(text.split()),
                cached_tokens=sum(len(content.split()) for _, content in shown[:same]),
            ),
            timings=Timings(prompt_s=0.01, generate_s=0.1, first_token_s=0.01, tokens_per_s=say.tokens_per_s),
            tool_calls=[
                ToolCall(id=f"call{len(self.asked)}-{number}", name=name, arguments=arguments)
                for number, (name, arguments) in enumerate(say.calls)
            ],
            truncated_tokens=say.truncated_tokens,
            reply_id=call.id.hex(),
        )

    def _find(self, name: str) -> ModelInfo:
        for info in self.models:
            if info.name == name:
                return info
        raise NotFound(f"there is no model {name!r}; there are: {', '.join(info.name for info in self.models)}")

    async def _list(self, request: ModelList, call: Call) -> Models:
        return Models(models=self.models, default="tiny")

    async def _show(self, request: ModelShow, call: Call) -> ModelInfo:
        return self._find(request.model)

    async def _load(self, request: ModelLoad, call: Call) -> ModelState:
        return self._set_state(request.model, "loaded")

    async def _unload(self, request: ModelUnload, call: Call) -> ModelState:
        return self._set_state(request.model, "available")

    def _set_state(self, name: str, state: Any) -> ModelState:
        info = self._find(name)
        self.models = [
            msgspec.structs.replace(each, state=state) if each.name == info.name else each for each in self.models
        ]
        return ModelState(model=name, state=state, took_s=0.0)

    async def _keep(self, request: ModelKeep, call: Call) -> ModelKept:
        self._find(request.model)
        return ModelKept(
            model=request.model,
            is_pinned=bool(request.is_pinned),
            priority=request.priority or 3,
            keep_alive_s=request.keep_alive_s or 300.0,
        )

    async def _route(self, request: Route, call: Call) -> Routed:
        profile = request.profile or request.task or "general"
        if profile not in PROFILES:
            raise NotFound(f"there is no profile {profile!r}; there are: {', '.join(PROFILES)}")
        info = self._find(PROFILES[profile])
        return Routed(
            model=info.name,
            profile=profile,
            reason=f"profile {profile}: the first candidate",
            is_loaded=info.state == "loaded",
            passed_over=[],
        )

    async def _profiles(self, request: Profiles, call: Call) -> ProfileList:
        return ProfileList(
            profiles=[
                Profile(name=name, description="", models=[model], capabilities=[], options={}, origin="house")
                for name, model in PROFILES.items()
            ]
        )

    async def _gpu(self, request: GpuStatus, call: Call) -> GpuStatusReply:
        loaded = sum(info.memory_bytes for info in self.models if info.state == "loaded")
        total = 8 * _GIB
        return GpuStatusReply(
            devices=[
                DeviceStatus(
                    device="gpu0",
                    name="Test GPU",
                    source="declared",
                    state="ok",
                    total_bytes=total,
                    used_bytes=loaded,
                    reserved_bytes=loaded,
                    free_bytes=total - loaded,
                )
            ]
        )

    async def _feedback(self, request: Feedback, call: Call) -> FeedbackTaken:
        self.feedback.append(request)
        return FeedbackTaken(feedback_id=f"fb{len(self.feedback)}", reply_id=request.reply_id)


_SERVICE_OF: Final = {"model": "model", "gpu": "resource", "resource": "resource", "learning": "learning"}


def reply_to(request: Chat) -> Say:
    """The answer of a model without a script, by words in the question.

    "markdown": a page of it. "story N": N words, 20 a second. "endless": words until it is cancelled. "remember K=V":
    calls the tool, if it was given. "fail CODE": that error. "system": the system prompt. Else "You said: ...".
    """
    last = request.messages[-1]
    if last.role == "tool":
        return Say(pieces=["The tool said: ", last.content])
    words = last.content.split("\n")[-1].split()
    command, rest = (words[0].lower(), words[1:]) if words else ("", [])
    match command:
        case "markdown":
            return Say(pieces=[MARKDOWN[at : at + 7] for at in range(0, len(MARKDOWN), 7)], hold_s=0.005)
        case "story" | "endless":
            count = int(rest[0]) if rest and rest[0].isdigit() else 100_000
            return Say(pieces=[f"word{number} " for number in range(count)], hold_s=0.05)
        case "remember" if request.tools and rest:
            key, _, value = rest[0].partition("=")
            return Say(calls=[("remember", json.dumps({"key": key, "value": value}))])
        case "fail" if rest and rest[0] in BY_CODE:
            return Say(error=(rest[0], "as it was asked to"))
        case "system":
            first = request.messages[0]
            return Say(pieces=[first.content if first.role == "system" else "there is no system prompt"])
    return Say(pieces=["You said: ", " ".join(words)])


# The program ----------------------------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _obey(house: ChatHouse, order: dict[str, Any]) -> Any:
    what = order.pop("do")
    match what:
        case "answer":
            house.answer(msgspec.convert(order, Say))
        case "asked":
            return [msgspec.to_builtins(chat) for chat in house.asked]
        case "cancelled":
            return house.cancelled
        case "request":
            return msgspec.to_builtins(house.request(order["subject"], order.get("body")))
        case "release" | "stop_broker" | "start_broker" | "stop_memory" | "start_memory":
            getattr(house, what)()
        case _:
            raise ValueError(f"do is {what!r}")
    return None


def main(arguments: Sequence[str]) -> None:
    """Serve until stdin ends. arguments: the home, then KEY=VALUE settings."""
    home, *pairs = arguments
    overrides: dict[str, Any] = dict(pair.split("=", 1) for pair in pairs)
    with ChatHouse(Path(home), **overrides) as house:
        ports = {name: getattr(house.settings.bus, name) for name in _PORTS}
        print(json.dumps({**ports, "flags": house.flags}), flush=True)
        for line in sys.stdin:
            if line.strip():
                print(json.dumps({"reply": _obey(house, json.loads(line))}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
