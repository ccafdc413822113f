"""Hours and days of a schedule: over midnight, by weekday, and where the clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.hours import Hours, parse_hours
from bus.settings import SettingsError, load_settings
from workers.learning.jobs.windows import WEEKDAYS, Windows, day_ends_at, local_day

BERLIN = ZoneInfo("Europe/Berlin")
# In Berlin the clocks go from 02:00 to 03:00 on 2026-03-29, and from 03:00 to 02:00 on 2026-10-25; both are Sundays.
SPRING, AUTUMN = "2026-03-29", "2026-10-25"


def at(day: str, time: str, fold: int = 0) -> float:
    return datetime.fromisoformat(f"{day}T{time}").replace(tzinfo=BERLIN, fold=fold).timestamp()


@pytest.mark.parametrize(
    "text", ["25:00-06:00", "22:00-24:01", "24:00-06:00", "22:60-06:00", "9:00-10:00", "22:00-22:00", "x"]
)
def test_hours_that_no_clock_shows_are_refused(text: str) -> None:
    """A window with an impossible time, or without any length, is named in the error."""
    with pytest.raises(ValueError, match=text[:5]):
        parse_hours(text)


def test_settings_refuse_bad_hours_and_sizes_by_name() -> None:
    """What the pattern lets through, the check at load does not; the message names the key."""
    for key, value in {"hours": "25:00-26:00", "memory": "lots", "checkpoints_size": "0B"}.items():
        with pytest.raises(SettingsError, match=f"learning.{key}"):
            load_settings(overrides={f"learning.{key}": value})


def test_a_window_over_midnight_belongs_to_the_day_it_begins_on() -> None:
    """22:00-06:00 on Fridays is open on Saturday morning and not on Friday morning."""
    windows = Windows(parse_hours("22:00-06:00"), frozenset({"fri"}))

    opened = [
        windows.is_open(at(day, time), BERLIN)
        for day, time in (
            ("2026-11-20", "05:00"),
            ("2026-11-20", "22:00"),
            ("2026-11-21", "05:59"),
            ("2026-11-21", "06:00"),
        )
    ]

    assert opened == [False, True, True, False]


def test_no_hours_mean_always_and_days_alone_mean_whole_days() -> None:
    """Without hours only the day counts; without either it is always open."""
    assert Windows().is_open(at("2026-11-20", "05:00"), BERLIN)
    assert Windows((), frozenset({"fri"})).is_open(at("2026-11-20", "23:59"), BERLIN)
    assert not Windows((), frozenset({"fri"})).is_open(at("2026-11-21", "00:00"), BERLIN)


def test_an_hour_that_is_skipped_opens_when_its_rest_begins() -> None:
    """A window that begins in the skipped hour opens at the first minute that the wall shows of it."""
    windows = Windows(parse_hours("02:30-04:00"))

    assert windows.opens_at(at(SPRING, "01:00"), BERLIN) == at(SPRING, "03:00")
    assert Windows(parse_hours("02:10-02:50")).opens_at(at(SPRING, "01:00"), BERLIN) == at("2026-03-30", "02:10")


def test_an_hour_that_comes_twice_is_open_twice() -> None:
    """Between 02:00 and 03:00 of the first and of the second pass it is open, and each pass is found as an opening."""
    windows = Windows(parse_hours("02:15-02:45"))

    assert windows.is_open(at(AUTUMN, "02:20"), BERLIN)
    assert windows.is_open(at(AUTUMN, "02:20", fold=1), BERLIN)
    assert windows.opens_at(at(AUTUMN, "02:50"), BERLIN) == at(AUTUMN, "02:15", fold=1)


def test_the_day_of_a_changed_clock_ends_at_midnight() -> None:
    """The days of the changes have 23 and 25 hours."""
    for day, hours in ((SPRING, 23), (AUTUMN, 25)):
        midnight = at(day, "00:00")
        assert day_ends_at(midnight + 3_600, BERLIN) - midnight == hours * 3_600
        assert local_day(midnight + hours * 3_600 - 1, BERLIN) == day


_minutes = st.integers(0, 24 * 60 - 1)
_hours = st.tuples(_minutes, _minutes).filter(lambda pair: pair[0] != pair[1]).map(lambda pair: Hours(*pair))
_windows = st.builds(
    Windows, st.lists(_hours, min_size=1, max_size=3).map(tuple), st.frozensets(st.sampled_from(WEEKDAYS), max_size=3)
)
_instants = st.integers(0, 366 * 24 * 60).map(lambda minute: at("2026-01-01", "00:00") + 60.0 * minute)


@given(windows=_windows, instant=_instants)
def test_the_next_opening_is_open_and_nothing_before_it_is(windows: Windows, instant: float) -> None:
    """`opens_at` agrees with `is_open` at every quarter of an hour before it, and at the minute before."""
    opens_at = windows.opens_at(instant, BERLIN)

    assert opens_at is not None and windows.is_open(opens_at, BERLIN)
    if opens_at > instant:
        assert not windows.is_open(opens_at - 60, BERLIN)
        first = datetime.fromtimestamp(instant, UTC)
        for step in range(min(int((opens_at - instant) // 900), 200)):
            assert not windows.is_open((first + timedelta(seconds=900 * step)).timestamp(), BERLIN)
