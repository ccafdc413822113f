"""What a Retry-After header asks for."""

from __future__ import annotations

import datetime

import pytest

from workers.models.retry_after import retry_after_s

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC).timestamp()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("Thu, 01 Jan 2026 00:00:30 GMT", 30.0),
        ("Thu, 01 Jan 2026 00:00:30", 30.0),
        ("Wed, 31 Dec 2025 23:00:00 GMT", 0.0),
        ("soon", None),
        ("", None),
        (None, None),
        ("\u00b2", None),
        ("9" * 400, None),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", None),
        ("Mon, 01 Jan 2026 00:00:00 +99999999999999999999", None),
    ],
)
def test_it_is_a_number_or_a_date_and_nonsense_asks_for_nothing(value: str | None, seconds: float | None) -> None:
    """Dates in the past ask for no wait; digits of other scripts, and numbers that fit no date, are no error."""
    assert retry_after_s(value, NOW) == seconds
