"""The bounded queue against a plain model of it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.queues import Priority, SubjectQueue


class Item:
    """Something that waits."""

    def __init__(self, priority: Priority, size_bytes: int) -> None:
        self.priority = priority
        self.size_bytes = size_bytes
        self.is_done = False


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["append", "first", "pop", "end", "drain"]),
        st.sampled_from(list(Priority)),
        st.integers(0, 1_000),
    ),
    max_size=80,
)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
def test_queue_behaves_as_two_lists(steps: list[tuple[str, Priority, int]]) -> None:
    """Order, counters and bounds, whatever ends while it waits; and ended items do not pile up."""
    queue: SubjectQueue[Item] = SubjectQueue(10, 3_000)
    model: dict[Priority, list[Item]] = {priority: [] for priority in Priority}
    for what, priority, number in steps:
        waiting = [item for lane in model.values() for item in lane]
        size = sum(item.size_bytes for item in waiting)
        assert queue.accepts(number) is (len(waiting) < 10 and size + number <= 3_000)
        if what in ("append", "first") and queue.accepts(number):
            item = Item(priority, number)
            if what == "append":
                queue.append(item)
                model[priority].append(item)
            else:
                queue.append_first(item)
                model[priority].insert(0, item)
        elif what == "pop":
            assert queue.pop(priority) is (model[priority].pop(0) if model[priority] else None)
        elif what == "end" and waiting:
            item = waiting[number % len(waiting)]
            item.is_done = True
            queue.forget(item)
            model[item.priority].remove(item)
        elif what == "drain" and number < 50:
            assert queue.drain() == [item for lane in model.values() for item in lane]
            model = {one: [] for one in Priority}

        waiting = [item for lane in model.values() for item in lane]
        assert queue.count == len(waiting)
        assert queue.size_bytes == sum(item.size_bytes for item in waiting)
        for one in Priority:
            assert queue.has(one) is bool(model[one])
            assert len(queue._lanes[one]) <= 2 * len(model[one])
