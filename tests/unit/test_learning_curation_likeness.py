"""Which examples are about one fact, and that no fact is ever on both sides of the split."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import workers.learning
from schemas.bodies.model import ChatMessage
from workers.learning.curation import clusters, store
from workers.learning.curation.drafts import Draft
from workers.learning.curation.likeness import Likeness, content_of, is_same_fact, keys, likeness_of, normalise

SCHEMA = Path(workers.learning.__file__).parent / "schema" / "0003_rows.sql"


def texts(question: str, answer: str = "yes", *, system: str = "") -> dict[str, Any]:
    messages = [{"role": "system", "content": system}] if system else []
    return {
        "messages": [*messages, {"role": "user", "content": question}],
        "prompt": None,
        "answer": answer,
        "rejected": None,
    }


def alike(one: tuple[str, str], other: tuple[str, str]) -> bool:
    return is_same_fact(likeness_of(texts(*one)), likeness_of(texts(*other)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("What is the capital of France?", "Paris"), ("WHAT is the  capital of france", "Lyon")),
        (("What is the capital of France?", "Paris"), ("Tell me the capital city of France.", "Paris.")),
        (("whats the captial of France", "Paris"), ("What is the capital of France?", "Paris")),
        (("Who wrote Faust?", "Goethe"), ("Please tell me who wrote Faust", "Schiller")),
        (("Where do I keep the spare key?", "In the shed"), ("Where is the spare key kept?", "Shed")),
        (("What is 3 + 4?", "7"), ("what is 4 + 3", "7")),
        (("naïve café", "x"), ("nai\u0308ve cafe\u0301", "y")),
        (("Tell me about the blue house in our street", "a"), ("Tell me about the old blue house in our street", "b")),
    ],
)
def test_paraphrases_are_one_fact(one: tuple[str, str], other: tuple[str, str]) -> None:
    """Case, punctuation, order, filler words, slips, inflection, and the same answer to half of the words."""
    assert alike(one, other)
    assert alike(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("What is the capital of France?", "Paris"), ("What is the capital of Germany?", "Berlin")),
        (("Spell: river", "r-i-v-e-r"), ("Spell: stone", "s-t-o-n-e")),
        (("What is 3 + 4?", "7"), ("What is 5 + 2?", "7")),
        (("How many legs has a dog?", "four"), ("How many legs has a cat?", "four")),
        (("Uppercase: river", "RIVER"), ("Uppercase: lake", "LAKE")),
    ],
)
def test_questions_of_one_template_are_different_facts(one: tuple[str, str], other: tuple[str, str]) -> None:
    """What differs in one word of content is another fact, or one template would be a single cluster."""
    assert not alike(one, other)


def test_a_short_question_is_read_with_the_one_before_it_and_without_the_system_prompt() -> None:
    """Follow-ups are told apart by what they follow; one long system prompt does not make all questions alike."""
    first = likeness_of(
        texts("Is it far to Rome?", "1", system="You are a travel guide with a very long introduction. " * 20)
    )
    other = likeness_of(
        texts("Is it far to Oslo?", "2", system="You are a travel guide with a very long introduction. " * 20)
    )
    assert not is_same_fact(first, other)
    talk = texts("Who is the mayor of Rome?")
    talk["messages"] += [{"role": "assistant", "content": "No idea"}, {"role": "user", "content": "And why?"}]
    assert "mayor" in likeness_of(talk).words


def test_of_a_prompt_the_last_paragraph_counts() -> None:
    """A prompt of many worked examples asks its last paragraph only."""
    shots = "Q: two and two\nA: four\n\n" * 30
    one = likeness_of(
        {"messages": None, "prompt": f"{shots}Q: colour of grass\nA:", "answer": "green", "rejected": None}
    )
    other = likeness_of(
        {"messages": None, "prompt": f"{shots}Q: colour of blood\nA:", "answer": "red", "rejected": None}
    )
    assert one.words != other.words
    assert not is_same_fact(one, other)


def test_a_long_text_with_a_few_words_changed_is_found_by_its_bands() -> None:
    """Long questions are compared as texts, and share a band of hashes when they are nearly equal."""
    words = [f"word{index}" for index in range(200)]
    changed = [*words[:60], "other", *words[61:150], "another", *words[151:]]
    one, other = (likeness_of(texts(" ".join(some), some[1])) for some in (words, changed))
    assert is_same_fact(one, other)
    assert set(keys(one)[0]) & set(keys(other)[1])
    apart = likeness_of(texts(" ".join(f"thing{index}" for index in range(200))))
    assert not is_same_fact(one, apart)


def test_a_common_answer_tells_nothing() -> None:
    """ "yes" to two questions with half of their words in common does not make them one."""
    one, other = likeness_of(texts("Is the red car fast?", "yes")), likeness_of(texts("Is the red car old?", "yes"))
    assert is_same_fact(one, other)
    assert not is_same_fact(one, other, answer_tells=False)


@given(st.text(max_size=60))
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    """Hashes of contents do not depend on how often a text went through."""
    assert normalise(normalise(text)) == normalise(text)


def test_exact_duplicates_differ_in_nothing_that_is_read() -> None:
    """White space, case and forms of letters do not count; a word does."""
    assert content_of(texts("A  b", "C")) == content_of(texts("a b\n", "c "))
    assert content_of(texts("a b", "c")) != content_of(texts("a b", "d"))


SUBJECTS = st.sampled_from(["capital", "river", "mayor", "colour", "height"])
PLACES = st.sampled_from(["France", "Rome", "Oslo", "Berlin"])
TEMPLATES = st.sampled_from(
    [
        "What is the {s} of {p}?",
        "tell me the {s} of {p}",
        "{p}: {s}",
        "Which {s} has {p}",
        "Say the great {s} of {p}",
        "{s} {p} {p} now",
    ]
)
QUESTIONS = st.builds(lambda t, s, p: t.format(s=s, p=p), TEMPLATES, SUBJECTS, PLACES)
ROWS = st.lists(st.tuples(QUESTIONS, st.sampled_from(["Seine", "Tiber", "blue", "yes"]), st.booleans()), max_size=25)


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    found = sqlite3.connect(":memory:", isolation_level=None)
    found.executescript(SCHEMA.read_text(encoding="utf-8"))
    yield found
    found.close()


def put(connection: sqlite3.Connection, question: str, answer: str, *, must_be_held: bool = False) -> clusters.Place:
    draft = Draft(model="m", kind="feedback", answer=answer, messages=[ChatMessage(role="user", content=question)])
    number, kept = store.next_number(connection), store.texts_of(draft)
    place = clusters.place(connection, number, kept.likeness, held_share=0.5, must_be_held=must_be_held)
    new = store.New(
        row_id=f"r{number}",
        draft=draft,
        split="held_out" if place.is_held else "train",
        cluster=place.cluster,
        state="quarantined" if place.conflict else "ready",
        cause="",
        reason="",
        created_at=0.0,
        weight=0.5,
        references={},
    )
    kept = store.Texts(kept.json, str(number), kept.context, kept.answer, kept.sha256, kept.likeness)
    store.insert(connection, number, new, kept)
    if not place.conflict:
        clusters.keep(connection, number, kept.likeness)
    return place


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS)
def test_no_two_ready_rows_of_one_fact_are_ever_on_both_sides(rows: list[tuple[str, str, bool]]) -> None:
    """Whatever comes in whatever order: paraphrases never cross the split, and no row ever changes its side."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(SCHEMA.read_text(encoding="utf-8"))
    sides: dict[str, int] = {}
    for question, answer, must_be_held in rows:
        put(connection, question, answer, must_be_held=must_be_held)
        now = connection.execute(
            "SELECT row_id, is_held, split FROM examples JOIN clusters USING (cluster) WHERE state = 'ready'"
        ).fetchall()
        for row_id, is_held, split in now:
            assert sides.setdefault(row_id, is_held) == is_held
            assert (split == "held_out") == bool(is_held)
    kept = [
        (msgspec.msgpack.decode(blob, type=Likeness), cluster, side)
        for blob, cluster, side in connection.execute(
            "SELECT likeness, cluster, is_held FROM example_likeness JOIN examples USING (number) JOIN clusters USING (cluster)"
        )
    ]
    for index, (one, cluster, side) in enumerate(kept):
        for other, other_cluster, other_side in kept[:index]:
            if is_same_fact(one, other):
                assert side == other_side
                assert cluster == other_cluster
    connection.close()


def test_what_ties_a_trained_fact_to_a_held_one_is_kept_out(connection: sqlite3.Connection) -> None:
    """A bridge is quarantined, nothing moves, and the bridge draws nothing after it."""
    trained = next(
        (question, place)
        for question in (f"Where is the {word} parrot kept" for word in ("green", "yellow", "purple", "brown", "grey"))
        if not (place := put(connection, question, f"answer {question}")).is_held
    )
    word = trained[0].split()[3]
    held = put(connection, f"Where is the {word} parrot of Anna", "in Rome", must_be_held=True)
    assert held.is_held

    bridge = put(connection, f"Where is the {word} parrot kept of Anna", "in Rome")

    assert "both sides" in bridge.conflict
    sides = dict(connection.execute("SELECT cluster, is_held FROM clusters").fetchall())
    assert (sides[trained[1].cluster], sides[held.cluster]) == (0, 1)
    assert (
        connection.execute("SELECT count(*) FROM example_likeness").fetchone()[0]
        == (connection.execute("SELECT count(*) FROM examples WHERE state = 'ready'").fetchone()[0])
    )


def test_clusters_of_one_side_that_prove_to_be_one_fact_are_joined(connection: sqlite3.Connection) -> None:
    """The older id stays, and the newer cluster's rows follow it."""
    one = put(connection, "garden gate code", "4711", must_be_held=True)
    two = put(connection, "entry code cellar", "4711", must_be_held=True)
    assert one.cluster != two.cluster
    both = put(connection, "garden gate entry code cellar", "4711", must_be_held=True)
    assert both == (one.cluster, True, "")
    assert {row[0] for row in connection.execute("SELECT cluster FROM examples")} == {one.cluster}


def test_the_side_of_a_fact_is_the_same_everywhere_and_near_its_share() -> None:
    """By hash alone: known values, and a quarter of many."""
    assert [clusters.is_held(f"fact {index}", 0.25) for index in range(8)] == [
        clusters.is_held(f"fact {index}", 0.25) for index in range(8)
    ]
    held = sum(clusters.is_held(f"fact {index}", 0.25) for index in range(4_000))
    assert 900 < held < 1_100
    assert clusters.is_held("x", 1.0)
    assert not clusters.is_held("x", 0.0)
