"""Errors and their wire form."""

from __future__ import annotations

import pytest

from schemas import errors
from schemas.errors import BY_CODE, BusError, ErrorBody, Internal, from_body

STATUS = {
    "bad_request": 400, "unauthenticated": 401, "forbidden": 403, "not_found": 404, "conflict": 409, "too_large": 413,
    "unprocessable": 422, "quota_exceeded": 429, "cancelled": 499, "internal": 500, "unsupported": 501,
    "worker_lost": 502, "overloaded": 503, "no_worker": 503, "deadline_exceeded": 504,
}  # fmt: skip


def test_codes_and_statuses_are_those_of_the_contract() -> None:
    """They are stable: programs outside depend on them."""
    assert {code: kind.http_status for code, kind in BY_CODE.items()} == STATUS


@pytest.mark.parametrize("code", STATUS)
def test_error_comes_back_as_itself(code: str) -> None:
    """Class, message and details; the branch says what the caller should do."""
    error = BY_CODE[code]("why", field="x", size_bytes=3)

    again = from_body(error.body())

    assert type(again) is BY_CODE[code]
    assert (again.message, again.details) == ("why", {"field": "x", "size_bytes": 3})
    assert isinstance(again, errors.Retryable | errors.Rejected | errors.RemoteError)


def test_unknown_code_becomes_internal_and_keeps_the_code() -> None:
    """A newer broker may have codes that this program does not know."""
    error = from_body(ErrorBody("brand_new", "why", {"a": 1}))

    assert type(error) is Internal
    assert error.details == {"a": 1, "code": "brand_new"}
    assert isinstance(error, BusError)
