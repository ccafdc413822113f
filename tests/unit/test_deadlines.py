"""The wheel of deadlines."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bus.deadlines import SLOT_S, DeadlineWheel

DEADLINES = st.dictionaries(st.integers(0, 50), st.floats(0, 100), max_size=30)


@given(deadlines=DEADLINES, now=st.floats(0, 101), removed=st.sets(st.integers(0, 50)))
def test_every_deadline_fires_once_never_early_and_a_slot_late_at_most(
    deadlines: dict[int, float], now: float, removed: set[int]
) -> None:
    """What was removed never fires."""
    wheel: DeadlineWheel[int] = DeadlineWheel()
    for key, deadline in deadlines.items():
        wheel.add(deadline, key)
    for key in removed & deadlines.keys():
        wheel.remove(deadlines[key], key)

    fired = wheel.expire(now)

    left = {key: deadline for key, deadline in deadlines.items() if key not in removed}
    assert len(fired) == len(set(fired))
    assert set(fired) <= {key for key, deadline in left.items() if deadline <= now}
    assert set(fired) >= {key for key, deadline in left.items() if deadline <= now - 2 * SLOT_S}
    assert wheel.expire(now) == []
    rest = wheel.expire(1_000.0)
    assert sorted([*fired, *rest]) == sorted(left)
    assert not wheel
