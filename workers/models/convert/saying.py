"""What a converting child says to the service: one JSON object a line on its stdout."""

from __future__ import annotations

import msgspec


class Step(msgspec.Struct, frozen=True, tag="step"):
    """How far it is. step: "quantising", "writing" or "hashing"."""

    step: str
    done_bytes: int
    total_bytes: int


class Refusal(msgspec.Struct, frozen=True, tag="refusal"):
    """Why it cannot be done; code: as in `schemas.errors`."""

    code: str
    message: str


class Made(msgspec.Struct, frozen=True, tag="made"):
    """It is whole; sha256: of the file."""

    sha256: str


Said = Step | Refusal | Made

_decoder = msgspec.json.Decoder(Said)


def encode(said: Said) -> bytes:
    """One line, with its end."""
    return msgspec.json.encode(said) + b"\n"


def decode(line: bytes) -> Said:
    """What a line says. Raises DecodeError."""
    said: Said = _decoder.decode(line)
    return said
