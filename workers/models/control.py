"""What the model service and its runner processes tell each other: one JSON object per line on the runner's stdio.

    service -> runner   {"type": "load", ...}   {"type": "drain"}                              stdin
    runner -> service   {"type": "loaded", ...} {"type": "failed", ...} {"type": "busy", ...}  stdout

The bus carries the work; this pipe carries only what is between the two, and its end tells each that the other is gone.
"""

from __future__ import annotations

import msgspec

from bus.settings import Settings


class LoadModel(msgspec.Struct, frozen=True, kw_only=True, tag="load"):
    """Load the file and serve it under `name`. `context_tokens` None leaves the length to the settings."""

    name: str
    path: str
    settings: Settings
    context_tokens: int | None = None


class DrainRunner(msgspec.Struct, frozen=True, tag="drain"):
    """Take nothing new, finish what is in flight however long it takes, and end."""


class RunnerLoaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The model is registered on the bus."""

    context_tokens: int


class RunnerFailed(msgspec.Struct, frozen=True, tag="failed"):
    """The model cannot be loaded. `code` is one of schemas.errors."""

    code: str
    message: str


class RunnerBusy(msgspec.Struct, frozen=True, tag="busy"):
    """The number of answers in flight changed."""

    in_flight: int


Command = LoadModel | DrainRunner
News = RunnerLoaded | RunnerFailed | RunnerBusy

decode_command = msgspec.json.Decoder(Command).decode
decode_news = msgspec.json.Decoder(News).decode


def encode_line(message: Command | News) -> bytes:
    """One message as a line. JSON escapes line breaks, so a line is always a whole message."""
    return msgspec.json.encode(message) + b"\n"
