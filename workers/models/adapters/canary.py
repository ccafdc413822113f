"""Which requests a canary answers: always the same conversations, and a part of them. Knows no runner and no file."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import msgspec

from workers.models.backends.backend import AdapterFile


class Canary(msgspec.Struct, frozen=True):
    """An adapter that answers a part of the conversations beside the champion. share: of them, above 0 to below 1."""

    adapter: str
    share: float

    def takes(self, key: str) -> bool:
        """Whether it answers the conversation `key`: the same at all times, and no other one at a larger share.

        The adapter's name is hashed with it, so that the next canary gets other conversations.
        """
        drawn = hashlib.blake2b(f"{self.adapter}\0{key}".encode(), digest_size=8).digest()
        return int.from_bytes(drawn, "big") < self.share * 2**64


class InUse(NamedTuple):
    """Adapters a model has, and what answers requests that name none: the champion (None: the bare model), the canary."""

    files: tuple[AdapterFile, ...] = ()
    champion: str | None = None
    canary: Canary | None = None
