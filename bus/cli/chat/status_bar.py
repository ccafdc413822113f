"""The bar below the prompt: which model, what is loaded, memory of the GPUs, speed, session, project; looked up aside."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import msgspec

from bus.cli.chat.conversation import Conversation
from bus.cli.output import columns_of, fit, number, one_line
from schemas.bodies.model import ModelList, Models
from schemas.bodies.resource import GpuStatus, GpuStatusReply
from schemas.errors import BusError

# Between two looks, what one may take, and between two drawings of what is known anyway, seconds.
_EVERY_S: Final = 2.0
_LOOK_S: Final = 1.5
_DRAW_S: Final = 0.25

_GIB: Final = 2**30
_SEPARATOR: Final = " · "

# Characters of a name that are worth the room.
_NAME_CHARACTERS: Final = 32


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What the bar shows; None and empty are left out. wanted: the profile that chose the model, when one did.

    vram: bytes in use and in all. context: tokens in use, and the model's window.
    """

    is_away: bool = False
    wanted: str = ""
    model: str = ""
    loaded: tuple[str, ...] = ()
    vram: tuple[int, int] | None = None
    tokens_per_s: float | None = None
    context: tuple[int, int] | None = None
    session: str = ""
    project: str = ""
    memory: bool = True
    trouble: str = ""


class Part(NamedTuple):
    """A part of the bar. Where there is no room the one with the highest rank goes first."""

    text: str
    rank: int
    is_warning: bool = False


def parts(status: Status) -> Iterator[Part]:
    """The parts from left to right."""
    if status.is_away:
        yield Part("bus away", 0, is_warning=True)
    elif status.trouble:
        yield Part(status.trouble, 0, is_warning=True)
    model = one_line(status.model or status.wanted or "no model", _NAME_CHARACTERS)
    is_routed = status.wanted and status.model and status.wanted != status.model
    yield Part(f"{one_line(status.wanted, _NAME_CHARACTERS)} → {model}" if is_routed else model, 1)
    others = [one_line(name, _NAME_CHARACTERS) for name in status.loaded if name != status.model]
    if others:
        yield Part(f"loaded {', '.join(others)}" if len(others) <= 2 else f"{len(others)} more loaded", 8)
    if status.vram is not None:
        used, total = status.vram
        yield Part(f"VRAM {used / _GIB:.1f}/{total / _GIB:.0f} GiB", 4)
    if status.tokens_per_s is not None:
        yield Part(f"{status.tokens_per_s:.0f} tok/s", 3)
    if status.context is not None:
        used, limit = status.context
        yield Part(f"{number(used)}/{number(limit)} tokens", 6)
    if status.session:
        # Of an id that was made, the part by which it differs from others of the day.
        end = status.session.rpartition("-")[2] if status.session.startswith("chat-") else status.session
        yield Part(f"session {one_line(end, _NAME_CHARACTERS)}", 7)
    if status.project:
        yield Part(one_line(status.project, _NAME_CHARACTERS), 5)
    yield Part(f"memory {'on' if status.memory else 'off'}", 2)


def fitted(status: Status, width: int) -> list[Part]:
    """The parts that fit into `width` columns with what stands between them; the most important one, cut, where none does."""
    shown = list(parts(status))
    while len(shown) > 1 and columns_of(_SEPARATOR.join(part.text for part in shown)) > width:
        shown.remove(max(shown, key=lambda part: part.rank))
    return [part._replace(text=fit(part.text, width)) for part in shown] if len(shown) == 1 else shown


class StatusBar:
    """Keeps the bar of a conversation up to date; `changed` is called when it may look different."""

    def __init__(self, conversation: Conversation, changed: Callable[[], None]) -> None:
        self._conversation = conversation
        self._changed = changed
        self._models: Models | None = None
        self._vram: tuple[int, int] | None = None
        self._trouble = ""

    async def watch(self) -> None:
        """Look again and again, until cancelled. That the bus is away is known without a look, and shown at once."""
        shown = self.status()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look(), name="status bar")
            while True:
                await asyncio.sleep(_DRAW_S)
                if (now := self.status()) != shown:
                    shown = now
                    self._changed()

    async def _look(self) -> None:
        while True:
            await asyncio.gather(self._look_at_models(), self._look_at_gpus())
            await asyncio.sleep(_EVERY_S)

    def status(self) -> Status:
        """What is known by now; asks nothing."""
        conversation = self._conversation
        choices, figures = conversation.choices, conversation.figures
        names = [model.name for model in self._models.models] if self._models is not None else []
        default = (self._models.default or "") if self._models is not None else ""
        wanted = choices.model or ""
        model = wanted if wanted in names else figures.model or ("" if wanted else default)
        limit = figures.context_limit
        return Status(
            is_away=not conversation.is_connected,
            trouble=self._trouble,
            wanted=wanted,
            model=model,
            loaded=tuple(model.name for model in self._models.models if model.state == "loaded")
            if self._models
            else (),
            vram=self._vram,
            tokens_per_s=figures.tokens_per_s,
            context=(figures.context_used, limit) if limit else None,
            session=conversation.session_id if conversation.is_kept else "",
            project=choices.project.name if choices.project is not None else "",
            memory=choices.memory_prompt or choices.memory_context,
        )

    def fragments(self, width: int) -> list[tuple[str, str]]:
        """The bar as styled text for prompt_toolkit."""
        shown: list[tuple[str, str]] = []
        for part in fitted(self.status(), width):
            if shown:
                shown.append(("class:status", _SEPARATOR))
            shown.append(("class:status.away" if part.is_warning else "class:status", part.text))
        return shown

    async def _look_at_models(self) -> None:
        try:
            self._models = await self._conversation.client.request("model.list", ModelList(), timeout_s=_LOOK_S)
            self._trouble = ""
        except BusError as error:
            self._trouble = "no model service" if error.code == "no_worker" else "models do not answer"

    async def _look_at_gpus(self) -> None:
        try:
            reply: GpuStatusReply = await self._conversation.client.request(
                "gpu.status", GpuStatus(), timeout_s=_LOOK_S
            )
        except BusError:
            # Without the resource service the bar says nothing about memory; everything else goes on.
            self._vram = None
            return
        gpus = [device for device in reply.devices if device.source != "host" and device.state == "ok"]
        used = sum(device.reserved_bytes if device.used_bytes is None else device.used_bytes for device in gpus)
        self._vram = (used, sum(device.total_bytes for device in gpus)) if gpus else None
