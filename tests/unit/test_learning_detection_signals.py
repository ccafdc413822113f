"""What is noticed about answers, and what it is worth: signals, likeness of questions, doubt, drift, calibration."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from schemas.bodies.learning import AnswerEvent, Exchange
from schemas.bodies.model import ChatMessage
from workers.learning.detection import calibration
from workers.learning.detection.drift import Drift
from workers.learning.detection.found import found_in
from workers.learning.detection.priority import priority_of, terms_of
from workers.learning.detection.topics import ANSWERS, Known, Topic, features_of, match
from workers.learning.exchanges import signals
from workers.learning.exchanges.confidence import Confidence
from workers.learning.exchanges.sessions import session_of, thread_before, thread_of
from workers.learning.exchanges.words import Frequencies, words_of

SCHEMA = Path(calibration.__file__).parent.parent / "schema"


def asked(text: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=text)]


def words(text: str) -> tuple[str, ...]:
    return words_of(asked(text), None)


# Signals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason", "error", "expected"),
    [
        ("", "", "internal: it broke", {"error": 1.0}),
        (" \n", "stop", "", {"empty": 1.0}),
        ("so far", "length", "", {"length": 0.3}),
        ("all of it", "stop", "", {}),
    ],
)
def test_an_answer_that_is_none_is_a_signal(text: str, reason: str, error: str, expected: dict[str, float]) -> None:
    """Errors and empty answers fully, one that was cut off a little, a whole one not at all."""
    assert signals.of_answer(text, reason, error, has_calls=False, is_cut=False) == expected


def test_a_tool_call_and_a_text_too_long_to_be_kept_are_no_empty_answers() -> None:
    """Both have no text here, and both are answers."""
    assert signals.of_answer("", "tool_calls", "", has_calls=True, is_cut=False) == {}
    assert signals.of_answer("", "stop", "", has_calls=False, is_cut=True) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No, that's not it", {"explicit_correction": 0.6}),
        ("That is incorrect", {"explicit_correction": 0.3}),
        ("Exactly, well done!", {"positive_reinforcement": 0.4}),
        ("And then?", {}),
        ("wrong wrong no, incorrect, actually that's not true, not true at all", {"explicit_correction": 1.0}),
    ],
)
def test_words_of_the_next_message_tell(text: str, expected: dict[str, float]) -> None:
    """By the weights of the detector before; being called incorrect is no praise for holding "correct"."""
    found = signals.of_next_message(text)
    assert {name: value for name, value in found.items() if name != "implicit_correction"} == pytest.approx(expected)


def test_how_much_there_is_to_learn_follows_length_and_words() -> None:
    """A long answer to a question, reasoning asked for, paragraphs and code."""
    long = "word " * 60
    assert signals.of_exchange("What is it?", long)["question_answer"] == 0.3
    assert signals.of_exchange("Tell me", long) == {}
    assert signals.of_exchange("Explain and compare", "a\n\nb\n\nc\n```x```")["complex_reasoning"] == pytest.approx(0.6)


# Likeness -----------------------------------------------------------------------------------------------------------


def test_a_question_of_the_same_template_is_no_rephrasing_and_the_same_thing_in_other_words_is() -> None:
    """Once it is known which words all questions share, the one that differs decides."""
    frequencies = Frequencies()
    for number in range(200):
        frequencies.add(words(f"What is the access code of station number{number}?"))
    same = frequencies.likeness(
        words("What is the access code of station Kelpo?"), words("access code of Kelpo please")
    )
    other = frequencies.likeness(
        words("What is the access code of station Kelpo?"), words("What is the access code of station Marin?")
    )
    assert same >= signals.REPHRASED > other


def test_two_questions_of_one_template_are_told_apart_from_the_start() -> None:
    """Before anything is known of what is usual, too."""
    frequencies = Frequencies()
    frequencies.add(words("What is the access code of station Kelpo?"))
    assert frequencies.likeness(words("access code of station Kelpo"), words("access code of station Marin")) < (
        signals.REPHRASED
    )


def test_a_slip_of_the_keyboard_is_the_same_word_and_a_number_never_is() -> None:
    """Letters may be wrong; digits are another thing."""
    frequencies = Frequencies()
    assert frequencies.likeness(words("capital of Madagascar"), words("capitol of Madagascar")) == 1.0
    assert frequencies.likeness(words("room 10045"), words("room 10046")) < signals.REPHRASED


def test_questions_without_words_of_content_are_like_nothing() -> None:
    """Nothing shared is not everything shared."""
    assert Frequencies().likeness(words("what is it"), words("who are you")) == 0.0


# Doubt --------------------------------------------------------------------------------------------------------------


def test_doubt_is_measured_against_what_is_usual_for_the_model() -> None:
    """The same number is nothing for a model that is never sure, and remarkable for one that always is."""
    chance = random.Random(1)
    sure, unsure = Confidence(), Confidence()
    for _ in range(200):
        sure.add(chance.gauss(-0.1, 0.02), chance.gauss(-0.5, 0.1))
        unsure.add(chance.gauss(-1.5, 0.4), chance.gauss(-4.0, 1.0))
    assert sure.doubt(-1.2, -3.0) == 1.0
    assert unsure.doubt(-1.2, -3.0) == 0.0
    assert sure.doubt(-0.11, -9.0) == 0.5


def test_nothing_is_unusual_while_little_is_known() -> None:
    """Thirty answers at least."""
    confidence = Confidence()
    for _ in range(29):
        confidence.add(-0.1, None)
    assert confidence.doubt(-9.0, None) == 0.0
    confidence.add(-0.1, None)
    assert confidence.doubt(-9.0, None) == 1.0


# Sessions -----------------------------------------------------------------------------------------------------------


def event(**more: object) -> AnswerEvent:
    values = {"reply_id": "r1", "model": "m", "operation": "chat", "at": 1_000.0, **more}
    return AnswerEvent(**values)  # type: ignore[arg-type]


def test_a_session_is_the_conversation_else_the_callers_last_ten_minutes() -> None:
    """Nobody's exchanges belong to nobody's session."""
    assert session_of(event(conversation_id="c"), None) == "c"
    assert session_of(event(caller="ann"), ("s", 500.0)) == "s"
    assert session_of(event(caller="ann"), ("s", 399.0)) == "ann@1000"
    assert session_of(event(), None) == "reply:r1"


def test_a_conversation_is_recognised_by_what_was_said() -> None:
    """A follow-up carries the answer it follows; one word more is another conversation."""
    first = asked("Hello")
    then = [*first, ChatMessage(role="assistant", content="Hi"), ChatMessage(role="user", content="And?")]
    assert thread_before(then) == thread_of(first, "Hi") != thread_of(first, "Hi!")
    assert thread_before(first) == ""


# Topics and priority ------------------------------------------------------------------------------------------------


def known(id: str, *questions: str, is_dismissed: bool = False, family: str = ANSWERS) -> Known:
    return Known(id, "m", family, is_dismissed, topic_of(*questions))


def topic_of(*questions: str) -> Topic:
    return Topic.of([features_of(words(one), one) for one in questions])


def test_evidence_joins_the_likest_opportunity_of_its_model_and_family() -> None:
    """Similar questions belong together; another model's, and another family's, do not."""
    there = [known("a", "code of Kelpo", "code of Marin"), known("b", "colour of the sea")]
    topic = topic_of("What is the code of Tarun?")
    assert getattr(match(there, "m", ANSWERS, topic), "opportunity_id", None) == "a"
    assert match(there, "other", ANSWERS, topic) is None
    assert match(there, "m", "drift", topic) is None
    assert match(there, "m", ANSWERS, topic_of("Who wrote the anthem?")) is None


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("Say ahoy to Ada.", "Say ahoy to Ben.", True),
        ("Say ahoy to Ada Lovelace.", "Say ahoy to Ben Smith.", True),
        ("What is the capital of Peru?", "What is the colour of the sky?", False),
        ("Hello!", "hello", True),
    ],
)
def test_questions_of_one_template_are_one_topic_and_small_words_make_none(one: str, other: str, is_same: bool) -> None:
    """What a template says counts, also where little else is said; what every question has does not."""
    assert (match([known("a", one)], "m", ANSWERS, topic_of(other)) is not None) is is_same


def test_what_is_dismissed_swallows_only_what_is_nearly_the_same() -> None:
    """An open opportunity takes what resembles it, a dismissed one only its like."""
    dismissed = [known("a", "code of Kelpo", is_dismissed=True)]
    assert match(dismissed, "m", ANSWERS, topic_of("the code of Kelpo?")) is not None
    assert match(dismissed, "m", ANSWERS, topic_of("the code of Marin")) is None


def test_a_topic_is_the_same_after_it_was_kept() -> None:
    """Written and read back, it is as like as before."""
    topic, question = topic_of("code of Kelpo", "code of Marin"), topic_of("code of Tarun")
    assert Topic.from_json(topic.to_json()).likeness(question) == pytest.approx(topic.likeness(question))


def test_each_term_moves_the_priority_its_own_way() -> None:
    """More gain, more often, more recent: up; dearer: down; always within 0..1."""
    base = {"weight": 5.0, "count": 10, "age_s": 86_400.0, "examples": 100, "s_per_example": 0.1}

    def priority(**changes: float) -> float:
        return priority_of(terms_of(**{**base, **changes}))  # type: ignore[arg-type]

    middle = priority()
    assert priority(weight=9.0) > middle > priority(weight=1.0)
    assert priority(count=20, weight=10.0) > middle
    assert priority(age_s=0.0) > middle > priority(age_s=30 * 86_400.0)
    assert priority(s_per_example=100.0) < middle
    assert 0.0 <= priority(weight=0.0, count=0, age_s=1e9, s_per_example=1e9) <= middle <= 1.0


# Calibration and drift ----------------------------------------------------------------------------------------------


def test_a_signal_is_worth_what_people_said_where_it_spoke() -> None:
    """From belief to what was seen; a second word on the same answer replaces the first."""
    connection = sqlite3.connect(":memory:")
    connection.executescript((SCHEMA / "0002_opportunities.sql").read_text())
    before = calibration.precisions(connection)["rephrased"]
    for number in range(90):
        calibration.note_judgement(connection, f"r{number}", {"rephrased": 0.8, "length": 0.1}, is_bad=True)
    assert calibration.precisions(connection)["rephrased"] > 0.9 > before
    for number in range(90):
        calibration.note_judgement(connection, f"r{number}", {"rephrased": 0.8}, is_bad=False)
    assert calibration.precisions(connection)["rephrased"] < 0.1
    assert calibration.precisions(connection)["length"] == calibration.precision("length", 0, 0)
    connection.close()


@pytest.mark.parametrize("good", [0.99, 0.85, 0.6])
def test_drift_is_found_when_outcomes_fall_and_not_when_they_stay(good: float) -> None:
    """Twenty models that stay as they are raise no alarm in 1,000 outcomes; one that falls by 30 points is found soon."""
    for seed in range(20):
        chance, drift = random.Random(seed), Drift()
        assert not any(drift.takes(float(chance.random() < good)) for _ in range(1_000))
        found = next(number for number in range(500) if drift.takes(float(chance.random() < good - 0.3)))
        assert 2 < found < 250


def test_signals_become_evidence_by_their_strength_and_worth() -> None:
    """Errors of a code are one family whatever was asked; a weak word is no evidence."""
    exchange = Exchange(
        reply_id="r",
        model="m",
        at=1.0,
        messages=asked("the code of Kelpo"),
        prompt=None,
        text="",
        adapter=None,
        user="",
        session_id="",
        mean_logprob=None,
        error="internal: it broke",
        signals={"error": 1.0, "low_confidence": 1.0, "explicit_correction": 0.2, "rephrased": 0.9},
    )
    found = {one.kind: one for one in found_in(exchange, {"error": 1.0, "low_confidence": 0.6, "rephrased": 0.5})}
    assert set(found) == {"error", "low_confidence", "rephrasing"}
    assert found["error"].family == "error:internal" and not found["error"].wants_answer
    assert found["rephrasing"].weight == pytest.approx(0.45) and found["rephrasing"].wants_answer
