"""What the model service and its runner processes tell each other: one JSON object per line on the runner's stdio.

    service -> runner   load, serve, adapters, drain                                 stdin
    runner -> service   waiting, ready, loaded, failed, busy, used, adapters_set     stdout

The bus carries the work; this pipe carries only what is between the two, and its end tells each that the other is gone.
"""

from __future__ import annotations

from typing import Any

import msgspec

from bus.settings import Settings
from schemas.bodies.model import UsageEvent
from workers.models.adapters.canary import InUse
from workers.models.backends.backend import Remote


class LoadModel(msgspec.Struct, frozen=True, kw_only=True, tag="load"):
    """Load the file, to serve it under `name` when told to.

    format, backend: as the catalogue says. What is None is left to the settings. sampling: the options that requests
    take where they name none (field names of schemas.bodies.model.Sampling). The runner holds the lock of `device` while
    it loads, and from the beginning of its end to the end.
    """

    name: str
    path: str
    settings: Settings
    format: str = "gguf"
    backend: str = "llama.cpp"
    device: str = "cpu"
    context_tokens: int | None = None
    parallel: int | None = None
    threads: int | None = None
    gpu_layers: int | None = None
    sampling: dict[str, Any] = {}
    remote: Remote | None = None
    # More arguments for a backend that is a program of its own.
    arguments: tuple[str, ...] = ()


class ServeModel(msgspec.Struct, frozen=True, kw_only=True, tag="serve"):
    """Answer on the bus from now on, with these adapters, which are attached under the lock of the load."""

    use: InUse = InUse()


class SetAdapters(msgspec.Struct, frozen=True, kw_only=True, tag="adapters"):
    """Have exactly these adapters attached from now on, under the lock of the device. `id` comes back in AdaptersSet."""

    id: int
    use: InUse


class DrainRunner(msgspec.Struct, frozen=True, tag="drain"):
    """Take nothing new, finish what is in flight however long it takes, and end."""


class RunnerWaiting(msgspec.Struct, frozen=True, tag="waiting"):
    """The load waits for its turn. `reason` says for whom, for a person."""

    reason: str


class RunnerReady(msgspec.Struct, frozen=True, tag="ready"):
    """The model is in memory, and waits for ServeModel."""


class RunnerLoaded(msgspec.Struct, frozen=True, kw_only=True, tag="loaded"):
    """The model is registered on the bus. The bytes are measured: 0 where nothing measures them."""

    context_tokens: int
    capabilities: tuple[str, ...] = ()
    ram_bytes: int = 0
    vram_bytes: int = 0


class RunnerFailed(msgspec.Struct, frozen=True, tag="failed"):
    """The model cannot be loaded. `code` is one of schemas.errors."""

    code: str
    message: str


class RunnerBusy(msgspec.Struct, frozen=True, tag="busy"):
    """The number of answers in flight changed. caller: for whom the one that begins is, "" where nobody signs in."""

    in_flight: int
    caller: str = ""


class RunnerUsed(msgspec.Struct, frozen=True, tag="used"):
    """An answer ended: with its figures, or (`usage` None) with an error."""

    usage: UsageEvent | None = None


class AdaptersSet(msgspec.Struct, frozen=True, kw_only=True, tag="adapters_set"):
    """The end of SetAdapters. `error` "" when it is done; otherwise nothing has changed."""

    id: int
    error: str = ""


Command = LoadModel | ServeModel | SetAdapters | DrainRunner
News = RunnerWaiting | RunnerReady | RunnerLoaded | RunnerFailed | RunnerBusy | RunnerUsed | AdaptersSet

decode_command = msgspec.json.Decoder(Command).decode
decode_news = msgspec.json.Decoder(News).decode


def encode_line(message: Command | News) -> bytes:
    """One message as a line. JSON escapes line breaks, so a line is always a whole message."""
    return msgspec.json.encode(message) + b"\n"
