"""Arithmetic of a transfer's progress."""

from __future__ import annotations

from workers.models.pull.progress import Meter


def test_the_rate_is_of_the_last_seconds() -> None:
    """A line that slows down shows it, however fast it was before."""
    meter = Meter(0.0)
    for second in range(1, 11):
        meter.reach(second * 1000, float(second))
    assert meter.rate_bytes_per_s(10.0) == 1000.0
    for second in range(11, 21):
        meter.reach(10_000 + (second - 10) * 10, float(second))
    assert meter.rate_bytes_per_s(20.0) == 10.0


def test_the_rate_falls_while_nothing_comes() -> None:
    """A silent line has no eta of a minute ago."""
    meter = Meter(0.0)
    meter.reach(1000, 1.0)
    assert meter.rate_bytes_per_s(10.0) == 100.0


def test_what_was_here_before_counts_for_no_rate() -> None:
    """Going on at 900 of 1000 bytes is no burst of 900."""
    meter = Meter(0.0)
    meter.total_bytes = 1000
    meter.start_at(900, 5.0)
    assert meter.rate_bytes_per_s(6.0) == 0.0
    assert meter.eta_s(6.0) is None
    meter.reach(910, 6.0)
    assert meter.rate_bytes_per_s(6.0) == 10.0
    assert meter.eta_s(6.0) == 9.0


def test_beginning_anew_begins_the_rate_anew() -> None:
    """A rate is never negative."""
    meter = Meter(0.0)
    meter.reach(1000, 1.0)
    meter.reach(0, 2.0)
    assert meter.rate_bytes_per_s(3.0) == 0.0
    assert meter.done_bytes == 0


def test_without_a_total_there_is_no_eta() -> None:
    """The rate is known all the same."""
    meter = Meter(0.0)
    meter.reach(10, 1.0)
    assert meter.rate_bytes_per_s(1.0) == 10.0
    assert meter.eta_s(1.0) is None


def test_samples_stay_few() -> None:
    """A fast line with a piece every microsecond keeps no history of them all."""
    meter = Meter(0.0)
    for piece in range(1, 100_000):
        meter.reach(piece, piece / 1_000)
    assert len(meter._samples) <= 60
    assert meter.rate_bytes_per_s(99.999) > 900
