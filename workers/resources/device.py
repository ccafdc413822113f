"""A device as it was last seen. Knows neither who measured it nor who holds its memory."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

# The main memory is a device too.
CPU: Final = "cpu"


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One device at one moment.

    total_bytes: what leases may take of it together. used_bytes: by every program, None where nothing measures it.
    spare_bytes: of those used, what was set aside before `total_bytes` was told. processes: bytes by pid on this host,
    with those of its children, where the driver tells them. is_lost: it was there and answers no more; `problem` says how it failed.
    """

    device: str
    name: str
    source: Literal["nvml", "declared", "host"]
    total_bytes: int
    used_bytes: int | None = None
    spare_bytes: int = 0
    processes: dict[int, int] = {}
    temperature_c: float | None = None
    utilisation: float | None = None
    is_lost: bool = False
    problem: str = ""
