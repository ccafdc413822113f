"""What the service and its encoder process say to each other: msgpack with a length before it, over a socket.

    0  length of what follows, 4 bytes, big-endian
    4  one of the structs below, msgpack

Vectors travel as the bytes they are stored as: float32, little-endian, one after the other.
"""

from __future__ import annotations

from typing import Final

import msgspec

LENGTH_BYTES: Final = 4


class EncoderOptions(msgspec.Struct, frozen=True, kw_only=True):
    """First word of the service: which model. folder: its files. cache: where prepared models are kept.

    threads: CPU threads, 0 for all cores.
    """

    folder: str
    sha256: str
    dimension: int
    cache: str
    threads: int


class Encode(msgspec.Struct, frozen=True, kw_only=True):
    """Encode texts. Queries do not wait for other texts."""

    id: int
    is_query: bool
    texts: list[str]


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The model is loaded. backend: what runs it. load_s: seconds since the process began, `prepared` for the first time."""

    backend: str
    dimension: int
    load_s: float
    prepared: bool


class Vectors(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The vectors of one `Encode`, in the order of its texts."""

    id: int
    vectors: bytes


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One `Encode` could not be done; others can."""

    id: int
    reason: str


class Unusable(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The model cannot be loaded, and starting again does not help."""

    reason: str


Said = Ready | Vectors | Failed | Unusable

_encoder: Final = msgspec.msgpack.Encoder()
decode_said: Final = msgspec.msgpack.Decoder(Said).decode
decode_encode: Final = msgspec.msgpack.Decoder(Encode).decode
decode_options: Final = msgspec.msgpack.Decoder(EncoderOptions).decode


def frame(word: msgspec.Struct) -> bytes:
    """`word` as it goes over the socket."""
    body = _encoder.encode(word)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body
