"""Who asks for an answer is known where callers sign in, also behind the model service; prediction learns from it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from bus.authorize import LOCAL, Caller
from bus.worker import Call
from workers.models.relay import CALLER, caller_of

ANN = Caller(user_id="ann", scopes=(), namespaces=())


@pytest.mark.parametrize(
    ("caller", "headers", "name"),
    [
        (None, {}, ""),
        (ANN, {}, "ann"),
        (LOCAL, {CALLER: "ben"}, "ben"),
        (ANN, {CALLER: "ben"}, "ann"),
        (ANN, {CALLER: ""}, "ann"),
        (None, {CALLER: 7}, ""),
        (None, {CALLER: "x" * 1_000}, "x" * 64),
    ],
)
def test_the_caller_is_who_signed_in_or_for_whom_it_is_passed_on(
    caller: Caller | None, headers: dict[str, Any], name: str
) -> None:
    """A header that makes no sense names nobody, a long one takes no more memory than any, and only our own name others."""
    assert caller_of(cast("Call", SimpleNamespace(caller=caller, headers=headers))) == name
