"""The learning service as a whole: how long it may take to leave."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bus.settings import Settings
from workers.learning import service as services
from workers.learning.service import LearningService


async def test_trainers_and_requests_share_the_time_to_leave(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What sealing a checkpoint takes is missing for requests: both together stay within `supervisor.stop_s`."""
    service = LearningService(settings)
    await service._records.open()
    now = [100.0]
    limits = []
    monkeypatch.setattr(services, "time", SimpleNamespace(monotonic=lambda: now[0]))

    async def seal(limit_s: float) -> None:
        limits.append(limit_s)
        now[0] += limit_s - 0.5

    async def drain(limit_s: float) -> None:
        limits.append(limit_s)

    monkeypatch.setattr(service._training, "stop", seal)
    monkeypatch.setattr(service.worker, "stop", drain)
    await service.stop()

    assert limits == [settings.supervisor.stop_s - 1.0, 0.5]
