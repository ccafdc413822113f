"""A stand-in for the module `pynvml`: as many cards as a test wants, each of which can fail or go away."""

# ruff: noqa: N802 - the library's own names

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

GIB = 1024**3


class NVMLError(Exception):
    """As the library's own: the message is what counts."""


class Card:
    """One GPU. failing: what every question about it raises. processes: bytes by pid, None for a number not told."""

    def __init__(self, uuid: str, total: int = 24 * GIB, used: int = 0) -> None:
        self.uuid = uuid
        self.total = total
        self.used = used
        self.processes: dict[int, int | None] = {}
        self.failing: str | None = None


class FakeNvml:
    """What `workers.resources.nvml` uses of the library. failing: what initialising and counting raise."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, *cards: Card) -> None:
        self.cards = list(cards)
        self.failing: str | None = None
        self.is_initialised = False
        self.looks = 0

    def nvmlInit(self) -> None:
        self._fail(self.failing)
        self.is_initialised = True

    def nvmlShutdown(self) -> None:
        self.is_initialised = False

    def nvmlDeviceGetCount(self) -> int:
        self.looks += 1
        self._fail(self.failing if self.is_initialised else "Uninitialized")
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:
        card = self.cards[index]
        self._fail(card.failing)
        return card

    def nvmlDeviceGetMemoryInfo(self, card: Card) -> Any:
        self._fail(card.failing)
        return SimpleNamespace(total=card.total, used=card.used, free=card.total - card.used)

    def nvmlDeviceGetUUID(self, card: Card) -> str:
        return card.uuid

    def nvmlDeviceGetName(self, card: Card) -> bytes:
        return b"Fake 3090"

    def nvmlDeviceGetTemperature(self, card: Card, sensor: int) -> int:
        return 41

    def nvmlDeviceGetUtilizationRates(self, card: Card) -> Any:
        raise NVMLError("Not Supported")

    def nvmlDeviceGetComputeRunningProcesses(self, card: Card) -> list[Any]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in card.processes.items()]

    def _fail(self, why: str | None) -> None:
        if why is not None:
            raise NVMLError(why)
