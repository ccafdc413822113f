"""The schedule in force: the settings, and over them what `learning.schedule.set` said. It knows no job."""

from __future__ import annotations

from datetime import tzinfo

import msgspec

from bus.hours import parse_hours
from bus.settings import LearningSettings
from schemas.bodies.learning_jobs import ScheduleSet
from schemas.errors import BadRequest
from workers.learning.jobs.decisions import Policy
from workers.learning.jobs.windows import Windows


class InForce(msgspec.Struct, frozen=True, kw_only=True):
    """What holds now."""

    hours: str
    days: list[str]
    budget_s: float
    idle_s: float
    is_paused: bool
    is_automatic: bool

    def policy(self, devices: tuple[str, ...], zone: tzinfo | None = None) -> Policy:
        """As the scheduler takes it."""
        return Policy(
            windows=Windows(parse_hours(self.hours), frozenset(self.days)),
            budget_s=self.budget_s,
            idle_s=self.idle_s,
            is_paused=self.is_paused,
            devices=devices,
            zone=zone,
        )


def merged(before: ScheduleSet, change: ScheduleSet) -> ScheduleSet:
    """What was set, after one more request. Raises BadRequest for hours that no clock shows."""
    if change.hours is not None:
        try:
            parse_hours(change.hours)
        except ValueError as error:
            raise BadRequest(f"field 'hours': {error}", field="hours") from error
    said = {
        name: value
        for name in change.__struct_fields__
        if name != "is_reset" and (value := getattr(change, name)) is not None
    }
    return msgspec.structs.replace(ScheduleSet() if change.is_reset else before, **said)


def in_force(settings: LearningSettings, said: ScheduleSet) -> InForce:
    """What was set where something was, else the settings."""
    return InForce(
        hours=settings.hours if said.hours is None else said.hours,
        days=list(said.days or []),
        budget_s=settings.budget_s if said.budget_s is None else said.budget_s,
        idle_s=settings.idle_s if said.idle_s is None else said.idle_s,
        is_paused=bool(said.is_paused),
        is_automatic=settings.is_automatic if said.is_automatic is None else said.is_automatic,
    )
