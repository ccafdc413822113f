"""How partial replies become one."""

from __future__ import annotations

from typing import Any

import pytest

from bus.worker import gather
from schemas.bodies.control import EventBatch, EventsPage, LoggedEvent


@pytest.mark.parametrize(
    ("final", "partials", "whole"),
    [
        (None, ["a", "b"], "ab"),
        (None, [[1], [2, 3]], [1, 2, 3]),
        (None, [1, 2], 2),
        ("end", ["a", "b"], "end"),
        ({"n": 2}, [{"text": "a"}, {"text": "b"}], {"n": 2, "text": "ab"}),
        ({"text": ""}, [{"text": "a", "ids": [1]}, {"text": "b", "ids": [2]}], {"text": "ab", "ids": [1, 2]}),
        ({"text": "whole"}, [{"text": "a"}], {"text": "whole"}),
        (None, [{"a": "x"}, {"b": 1}], {"a": "x", "b": 1}),
    ],
)
def test_partials_fill_what_the_final_leaves_empty(final: Any, partials: list[Any], whole: Any) -> None:
    """Text is joined, lists are chained, of anything else the last counts."""
    assert gather(final, partials) == whole


def test_structs_are_gathered_by_field() -> None:
    """The read of the event log is the example that ships."""
    events = [LoggedEvent(seq=n, at=0.0, subject="a", source="s", id="i", body=None) for n in (1, 2, 3)]
    final = EventsPage(count=3, oldest_seq=1, last_seq=3)

    whole = gather(final, [EventBatch(events=events[:2]), EventBatch(events=events[2:])])

    assert whole.events == events
    assert whole.count == 3
