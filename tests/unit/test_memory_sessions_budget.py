"""Which pieces go into a context of limited size."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.memory.sessions.budget import Part, choose, fair_allowances, guaranteed

costs = st.lists(st.integers(1, 400), max_size=12)
budgets = st.integers(-50, 3_000)


@st.composite
def some_parts(draw: st.DrawFn) -> list[Part]:
    """Two to four parts whose shares sum to 1 at most."""
    weights = draw(st.lists(st.integers(0, 10), min_size=2, max_size=4))
    total = max(1, sum(weights))
    return [Part(f"part {number}", draw(costs), weight / total) for number, weight in enumerate(weights)]


def used(parts: list[Part], taken: dict[str, int]) -> int:
    return sum(sum(part.costs[: taken[part.name]]) for part in parts)


@given(budgets, some_parts())
def test_the_choice_never_costs_more_than_the_budget(budget: int, parts: list[Part]) -> None:
    """Whatever the pieces and shares; a budget below nothing takes nothing."""
    assert used(parts, choose(budget, parts)) <= max(0, budget)


@given(budgets, st.integers(0, 500), some_parts())
def test_a_greater_budget_guarantees_no_fewer_pieces_of_any_part(budget: int, more: int, parts: list[Part]) -> None:
    """What a share is good for never shrinks when there is more to share."""
    before, after = guaranteed(budget, parts), guaranteed(budget + more, parts)
    assert all(after[part.name] >= before[part.name] for part in parts)


@given(budgets, some_parts())
def test_the_choice_holds_at_least_what_is_guaranteed(budget: int, parts: list[Part]) -> None:
    """What is left over is only ever added."""
    taken, least = choose(budget, parts), guaranteed(budget, parts)
    assert all(taken[part.name] >= least[part.name] for part in parts)


@given(some_parts())
def test_a_budget_that_holds_everything_takes_everything(parts: list[Part]) -> None:
    """Shares leave nothing out that has room."""
    everything = sum(sum(part.costs) for part in parts)
    assert choose(everything, parts) == {part.name: len(part.costs) for part in parts}


@given(budgets, some_parts())
def test_no_piece_is_left_out_for_which_there_is_room(budget: int, parts: list[Part]) -> None:
    """What stays outside does not fit into what is left."""
    taken = choose(budget, parts)
    room = budget - used(parts, taken)
    following = [part.costs[taken[part.name]] for part in parts if taken[part.name] < len(part.costs)]
    assert all(cost > room for cost in following)


@given(st.integers(0, 3_000), some_parts())
def test_a_part_gets_its_share_or_all_it_asks_for(budget: int, parts: list[Part]) -> None:
    """The others cannot push it below that."""
    demands = {part.name: sum(part.costs) for part in parts}
    allowances = fair_allowances(budget, demands, {part.name: part.share for part in parts})
    for part in parts:
        assert allowances[part.name] >= min(demands[part.name], part.share * budget) - 1e-6
    assert sum(allowances.values()) <= budget + 1e-6


def test_what_one_part_does_not_need_goes_to_the_others_by_their_shares() -> None:
    """100 tokens, shares 1/2, 1/4, 1/4: the first needs 10 only."""
    allowances = fair_allowances(100, {"a": 10, "b": 1_000, "c": 1_000}, {"a": 0.5, "b": 0.25, "c": 0.25})
    assert allowances == {"a": 10.0, "b": 45.0, "c": 45.0}


def test_a_part_ends_at_its_first_piece_that_does_not_fit() -> None:
    """A conversation with a turn missing in its middle would be another conversation."""
    assert choose(100, [Part("history", [10, 200, 10], 1.0)]) == {"history": 1}
