"""Poison kept out, and the choice of rows for a version: caps, contradictions, control tokens, replay and retention."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workers.learning.curation import guards
from workers.learning.curation.guards import Claim, contradicted, control_token, is_flood, person_caps
from workers.learning.curation.selection import OVER_MAX, PERSON_CAP, REPLAY_ROWS, Candidate, content_hash, select


def claim(number: int, answer: str, kind: str = "feedback", **weights: float) -> Claim:
    return Claim(number=number, answer=answer, kind=kind, weights=weights or {"": 0.5})


def test_two_people_with_different_answers_both_wait() -> None:
    """Neither is known to be right."""
    assert set(contradicted([claim(1, "Paris", a=0.5), claim(2, "Lyon", b=0.5)])) == {1, 2}


def test_a_majority_counts() -> None:
    """Twice the weight of each opposing answer, over all who say the same."""
    claims = [claim(1, "Paris", a=0.5), claim(2, "Lyon", b=0.5), claim(3, "paris", c=0.5)]
    assert set(contradicted(claims)) == {2}
    assert "others" in contradicted(claims)[2]


def test_trust_decides_between_two() -> None:
    """Somebody who was right before against somebody who was wrong."""
    assert set(contradicted([claim(1, "Paris", a=0.9), claim(2, "Lyon", b=0.2)])) == {2}


def test_what_an_operator_confirmed_stands_against_one_person_and_not_against_many() -> None:
    """An import or an evaluation has a reference; several people may still know better."""
    imported = claim(1, "Paris", "import")
    assert set(contradicted([imported, claim(2, "Lyon", a=0.5)])) == {2}
    assert set(contradicted([imported, claim(2, "Lyon", a=0.5, b=0.5, c=0.5)])) == {1, 2}


def test_a_person_who_answers_otherwise_later_replaces_the_own_answer() -> None:
    """The newest counts, and says nothing against the others."""
    claims = [claim(1, "Paris", a=0.5), claim(2, "Lyon", a=0.5)]
    assert contradicted(claims) == {1: "the same person answered otherwise later"}


def test_corrections_without_a_name_replace_each_other_and_give_way_to_a_reference() -> None:
    """In a house where nobody signs in the last word counts, but not against what was imported."""
    claims = [claim(1, "Paris"), claim(2, "Lyon"), claim(3, "Nice")]
    assert set(contradicted(claims)) == {1, 2}
    assert set(contradicted([claim(1, "Paris", "import"), claim(2, "Lyon")])) == {2}


def test_answers_that_say_the_same_or_are_long_do_not_contradict() -> None:
    """Nor do several answers of one import: a dataset may hold more than one good answer."""
    assert contradicted([claim(1, "It is Paris", a=0.5), claim(2, "it is paris", b=0.5)]) == {}
    story, tale = "once upon a time " * 10, "far away there was " * 10
    assert contradicted([claim(1, story, a=0.5), claim(2, tale, b=0.5)]) == {}
    assert contradicted([claim(1, "Hello!", "import"), claim(2, "Good day!", "import")]) == {}


def test_what_the_model_answered_gives_way_to_what_was_taught() -> None:
    """However many were content with it, and whenever it came in."""
    taught = claim(1, "Paris", a=0.5)
    assert set(contradicted([taught, claim(2, "Lyon", "exchange", a=0.5, b=0.9, c=0.9)])) == {2}
    assert contradicted([taught, claim(2, "paris", "exchange", b=0.9)]) == {}


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from("abcd"), st.floats(0, 1)), max_size=8))
@example([("x", "a", 0.0), ("y", "b", 0.0)])
def test_of_answers_by_different_people_at_most_one_is_left(rows: list[tuple[str, str, float]]) -> None:
    """Whatever the weights: two people's different answers to one question are never both learned."""
    claims = [
        Claim(number=index, answer=answer, kind="feedback", weights={user: w})
        for index, (answer, user, w) in enumerate(rows)
    ]
    wrong = contradicted(claims)
    left = [one for one in claims if one.number not in wrong]
    for one in left:
        for other in left:
            assert one.answer == other.answer or set(one.weights) == set(other.weights)


@pytest.mark.parametrize(
    "text",
    [
        "hi <|im_start|>system",
        "x [INST] y",
        "a </s>",
        "<start_of_turn>model",
        "<｜Assistant｜>",
        "\U000e0041",
        "a\u202eb",
        "<<SYS>>",
    ],
)
def test_control_tokens_within_a_text_are_named(text: str) -> None:
    """Field and place are told; what cannot be shown is told by its code."""
    assert control_token({"answer": "fine"}) == ""
    assert control_token({"answer": "fine", "prompt": text}).startswith("prompt holds the control token")


def test_ordinary_angle_brackets_are_no_control_tokens() -> None:
    """Markup, comparisons and pipes are text."""
    for text in ("a < b and c > d", "<div>x</div>", "ls | grep x", "|a|b|", "[1]", "List<String>", "<s3://bucket>"):
        assert control_token({"answer": text}) == ""


def test_a_flood_needs_others_and_comes_sooner_without_trust() -> None:
    """In a house of one person nothing is a flood."""
    assert not is_flood(10_000, trust=0.5, has_others=False)
    assert is_flood(guards.FLOOD_ROWS, trust=0.5, has_others=True)
    assert not is_flood(guards.FLOOD_ROWS - 1, trust=0.9, has_others=True)
    assert is_flood(guards.FLOOD_ROWS // 2, trust=0.25, has_others=True)


def test_caps_leave_a_person_alone_whole_and_share_among_several() -> None:
    """One person may give all, of several one no more than the share of what the version has in the end."""
    assert person_caps({"a": 500, "": 3}, {}, share=0.5) == {"a": 500}
    caps = person_caps({"a": 5_000, "b": 400, "c": 600}, {}, share=0.5)
    assert caps["a"] == 1_000
    assert person_caps({"a": 5_000, "b": 1}, {}, share=0.5)["a"] == guards.PERSON_ROWS
    assert person_caps({"a": 5_000, "b": 400, "c": 600}, {"a": 0.25}, share=0.5)["a"] == 333


def candidate(
    number: int,
    *,
    user: str = "",
    cluster: str = "",
    held: bool = False,
    earlier: bool = False,
    kind: str = "feedback",
) -> Candidate:
    return Candidate(number, f"sha{number}", user, kind, cluster or f"c{number}", held, earlier)


def chosen(rows: list[Candidate], **changes: object) -> tuple[dict[str, list[int]], dict[str, int]]:
    values: dict[str, object] = {"replay_share": 0.25, "person_share": 0.5, "max_rows": 1_000, "trust": {}, **changes}
    selection = select(rows, **values)  # type: ignore[arg-type]
    by_split: dict[str, list[int]] = {}
    for row in selection.rows:
        by_split.setdefault(row.split, []).append(row.number)
    return by_split, selection.left_out


def test_replay_is_its_share_of_the_training_rows_and_always_the_same() -> None:
    """Half of the whole, drawn without chance, and other rows beside another lesson."""
    earlier = [candidate(index, earlier=True) for index in range(900)]
    lesson = [candidate(index) for index in range(1_000, 1_300)]
    by_split, _ = chosen([*earlier, *lesson], replay_share=0.5)
    assert len(by_split["train"]) == len(by_split["replay"]) == 300
    assert chosen([*earlier, *lesson], replay_share=0.5)[0] == by_split
    assert chosen([*earlier, *lesson[1:]], replay_share=0.5)[0]["replay"] != by_split["replay"]
    assert "replay" not in chosen([*earlier, *lesson], replay_share=0.0)[0]


def test_a_short_lesson_is_taught_beside_enough_of_what_came_before() -> None:
    """A share of few rows would be too few; half of them are what the model answered itself, as far as there are any."""
    taught = [candidate(index, earlier=True) for index in range(300)]
    answered = [candidate(index, earlier=True, kind="unrated") for index in range(300, 600)]
    lesson = [candidate(index) for index in range(1_000, 1_020)]

    def parts(*earlier: Candidate) -> tuple[int, int]:
        replay = chosen([*earlier, *lesson])[0].get("replay", [])
        return sum(number < 300 for number in replay), sum(number >= 300 for number in replay)

    assert parts(*taught, *answered) == (REPLAY_ROWS // 2, REPLAY_ROWS // 2)
    assert parts(*taught[:50], *answered) == (50, REPLAY_ROWS - 50)
    assert parts(*taught, *answered[:50]) == (REPLAY_ROWS - 50, 50)
    assert parts(*taught[:50], *answered[:50]) == (50, 50)


def test_the_newest_rows_stay_and_what_is_left_out_is_counted() -> None:
    """max_rows and the cap of one person."""
    by_split, left_out = chosen([candidate(index) for index in range(10)], max_rows=4)
    assert by_split["train"] == [6, 7, 8, 9]
    assert left_out == {OVER_MAX: 6}
    rows = [candidate(index, user="a") for index in range(300)] + [candidate(300, user="b")]
    by_split, left_out = chosen(rows)
    assert by_split["train"] == [*range(200, 300), 300]
    assert left_out == {PERSON_CAP: 200}


CANDIDATES = st.lists(st.tuples(st.integers(0, 12), st.sampled_from(["", "a", "b"]), st.booleans()), max_size=60)


@given(CANDIDATES, st.floats(0, 0.9), st.integers(1, 60))
def test_no_fact_is_in_two_splits_that_must_not_share_one(
    rows: list[tuple[int, str, bool]], share: float, max_rows: int
) -> None:
    """Trained and tested, repeated and guarded, share no cluster; nothing is in twice."""
    candidates = [
        candidate(index, user=user, cluster=f"c{cluster}", held=cluster % 4 == 0, earlier=earlier)
        for index, (cluster, user, earlier) in enumerate(rows)
    ]
    selection = select(candidates, replay_share=share, person_share=0.5, max_rows=max_rows, trust={})
    clusters: dict[str, set[str]] = {}
    for row in selection.rows:
        clusters.setdefault(row.split, set()).add(row.cluster)
    taught = clusters.get("train", set()) | clusters.get("replay", set())
    tested = clusters.get("held_out", set()) | clusters.get("retention", set())
    assert not taught & tested
    assert not clusters.get("held_out", set()) & clusters.get("retention", set())
    assert max(Counter(row.number for row in selection.rows).values(), default=1) == 1


def test_the_hash_of_a_version_follows_its_content() -> None:
    """The same rows for the same base are the same version; anything else is another."""
    rows = select([candidate(1), candidate(2)], replay_share=0, person_share=1, max_rows=9, trust={}).rows
    same = content_hash(rows, "base", "auto")
    assert content_hash(list(rows), "base", "auto") == same
    assert (
        len(
            {
                same,
                content_hash(rows, "other", "auto"),
                content_hash(rows, "base", "exact"),
                content_hash(rows[:1], "base", "auto"),
            }
        )
        == 4
    )
