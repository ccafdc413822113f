"""Latency quantiles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.latency import WINDOW_S, LatencyWindow


@given(seconds=st.lists(st.floats(1e-6, 1e5), min_size=1, max_size=200), share=st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_quantile_is_an_upper_bound_within_a_quarter(seconds: list[float], share: float) -> None:
    """Over eleven orders of magnitude, in constant memory."""
    window = LatencyWindow(0.0)
    for one in seconds:
        window.record(one, 1.0)
    ranked = sorted(seconds)
    true = ranked[max(0, -(-int(share * 1000) * len(ranked) // 1000) - 1)]

    found = window.quantile(share, 1.0)

    assert found is not None
    assert true * 0.999 <= found <= true * 1.26 + 2e-6


def test_old_durations_leave_the_picture() -> None:
    """After one span they fade, after two they are gone."""
    window = LatencyWindow(0.0)
    assert window.quantile(0.5, 0.0) is None
    window.record(10.0, 1.0)
    assert window.quantile(0.5, WINDOW_S) == pytest.approx(10.0, rel=0.3)
    for _ in range(9):
        window.record(0.001, WINDOW_S + 2)
    assert window.quantile(0.5, WINDOW_S + 2) == pytest.approx(0.001, rel=0.3)
    assert window.quantile(0.5, 5 * WINDOW_S) is None


@pytest.mark.parametrize("odd", [0.0, -1.0, 1e30])
def test_odd_durations_do_no_harm(odd: float) -> None:
    """A clock that steps back, or a century."""
    window = LatencyWindow(0.0)
    window.record(odd, 0.0)
    assert window.quantile(1.0, 0.0) is not None
