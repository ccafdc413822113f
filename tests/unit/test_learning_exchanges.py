"""Kept exchanges: sessions, what the next question says of an answer, outcomes that are counted once, forgetting."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.bodies.learning import AnswerEvent, ExchangeDelete, ExchangeList
from schemas.bodies.model import ChatMessage
from workers.learning.exchanges import kept
from workers.learning.exchanges.kept import Usuals

SCHEMA = Path(kept.__file__).parent.parent / "schema" / "0001_exchanges.sql"


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    """Records without a file."""
    opened = sqlite3.connect(":memory:")
    opened.executescript(SCHEMA.read_text())
    yield opened
    opened.close()


def answer(reply_id: str, question: str = "", text: str = "an answer", at: float = 1_000.0, **more: Any) -> AnswerEvent:
    messages = more.pop("messages", None) or [ChatMessage(role="user", content=question or f"question {reply_id}")]
    return AnswerEvent(reply_id=reply_id, model="m", operation="chat", at=at, messages=messages, text=text, **more)


def take(connection: sqlite3.Connection, *events: AnswerEvent, usuals: Usuals | None = None) -> int:
    return kept.take_in(connection, usuals or Usuals(), events)


def outcomes(connection: sqlite3.Connection) -> list[tuple[str, float, str]]:
    found = kept.outcomes(connection, "number > ? ORDER BY number", (0,), 1_000)
    return [(one.reply_id, one.outcome, one.outcome_from) for one in found]


def test_an_answer_is_kept_once(connection: sqlite3.Connection) -> None:
    """The same event again, or another one under its id, changes nothing."""
    assert take(connection, answer("a", "Who?"), answer("a", "Who else?")) == 1
    ((found,), _) = kept.listed(connection, ExchangeList())
    assert (found.messages[0].content, found.text, found.outcome) == ("Who?", "an answer", None)


def test_asking_the_same_in_other_words_counts_against_the_answer(connection: sqlite3.Connection) -> None:
    """In one session, shortly after, and not the very same text; others' questions say nothing."""
    take(
        connection,
        answer("a", "What is the capital of Peru?", caller="ann", at=1_000),
        answer("x", "What is the capital of Peru again?", caller="ben", at=1_010),
        answer("b", "Tell me the capital city of Peru", caller="ann", at=1_020),
        answer("c", "Tell me the capital city of Peru", caller="ann", at=1_030),
    )
    assert outcomes(connection) == [("a", 0.0, "rephrased")]
    found = kept.find(connection, "a")
    assert found is not None and found.signals["rephrased"] >= 0.5
    assert [one.reply_id for one in kept.unnoticed(connection, 10)] == ["a"]


def test_after_a_pause_the_same_question_is_a_new_one(connection: sqlite3.Connection) -> None:
    """Who asks again an hour later does not complain."""
    take(connection, answer("a", "the capital of Peru", caller="ann", at=1_000))
    take(connection, answer("b", "capital of Peru please", caller="ann", at=5_000))
    assert outcomes(connection) == []
    (first, second), _ = kept.listed(connection, ExchangeList())
    assert first.session_id != second.session_id


def test_a_conversation_is_one_session_even_where_nobody_signs_in(connection: sqlite3.Connection) -> None:
    """What was said before tells; the words of the next message count towards the answer before."""
    begun = [ChatMessage(role="user", content="Which sea is it?")]
    then = [
        *begun,
        ChatMessage(role="assistant", content="The North Sea."),
        ChatMessage(role="user", content="No, that's wrong"),
    ]
    take(connection, answer("a", messages=begun, text="The North Sea."), answer("b", messages=then, at=1_005))
    (second, first), _ = kept.listed(connection, ExchangeList())
    assert first.session_id == second.session_id == "reply:a"
    assert first.signals["explicit_correction"] == pytest.approx(0.6)


def test_nobody_speaks_against_what_another_was_answered(connection: sqlite3.Connection) -> None:
    """Also where both name the same conversation."""
    take(
        connection,
        answer("a", "the capital of Peru", caller="ann", conversation_id="c"),
        answer("b", "No, wrong: the capital of Peru", caller="ben", conversation_id="c", at=1_001),
    )
    found = kept.find(connection, "a")
    assert found is not None and found.outcome is None and "explicit_correction" not in found.signals


def test_an_error_is_an_outcome_of_the_adapter_that_was_to_answer(connection: sqlite3.Connection) -> None:
    """Where nobody knows which one that was, and where the request named it, nobody's record suffers."""
    take(
        connection,
        answer("a", error="internal: it broke", text="", adapter="tone:1"),
        answer("b", error="internal: it broke", text="", adapter=""),
        answer("c", error="worker_lost: it left", text=""),
        answer("d", error="internal: it broke", text="", adapter="tone:1", is_adapter_asked=True),
    )
    found = kept.outcomes(connection, "number > ? ORDER BY number", (0,), 10)
    assert [(one.reply_id, one.adapter, one.outcome) for one in found] == [("a", "tone:1", 0.0), ("b", "", 0.0)]
    listed, _ = kept.listed(connection, ExchangeList(signal="error"))
    assert len(listed) == 4 and {one.outcome for one in listed} == {0.0}


def test_silence_is_consent_and_the_first_word_is_what_counts(connection: sqlite3.Connection) -> None:
    """A rating after the silence changes the exchange; what the watch has counted stays counted."""
    take(connection, answer("a", at=100), answer("b", at=200), answer("c", at=900))
    kept.settle(connection, "b", 0.0, "rating", 300)
    assert kept.settle_silent(connection, 500, 1_000, 10) == 1
    kept.settle(connection, "a", 0.0, "correction", 1_100)
    assert outcomes(connection) == [("b", 0.0, "rating"), ("a", 1.0, "silence")]
    found = kept.find(connection, "a")
    assert found is not None and (found.outcome, found.outcome_from) == (0.0, "correction")


def test_an_outcome_outlives_its_exchange_and_its_number_is_never_used_again(connection: sqlite3.Connection) -> None:
    """Texts go after their time or past their number, figures stay; who is forgotten is forgotten whole."""
    take(connection, *(answer(f"r{number}", at=float(number)) for number in range(10)))
    kept.settle_silent(connection, 100, 100, 100)
    assert kept.prune(connection, before=2.0, keep=5, outcomes_before=0.0) == 5
    assert [one.reply_id for one in kept.listed(connection, ExchangeList())[0]] == ["r9", "r8", "r7", "r6", "r5"]
    assert len(outcomes(connection)) == 10
    kept.delete(connection, ["r9"])
    take(connection, answer("new", at=50))
    kept.settle(connection, "new", 1.0, "rating", 60)
    numbers = [one.number for one in kept.outcomes(connection, "number > ? ORDER BY number", (0,), 100)]
    assert len(numbers) == 10 and numbers[-1] == 11


def test_what_is_usual_is_learned_again_from_what_is_kept(connection: sqlite3.Connection) -> None:
    """After a restart an unsure answer is noticed as before."""
    usuals = Usuals()
    take(
        connection,
        *(answer(f"r{n}", at=float(n), mean_logprob=-0.1 - 0.001 * (n % 7)) for n in range(60)),
        usuals=usuals,
    )
    take(connection, answer("odd", at=99.0, mean_logprob=-3.0), usuals=kept.relearn(connection))
    found = kept.find(connection, "odd")
    assert found is not None and found.signals["low_confidence"] == 1.0


def test_who_is_to_be_forgotten_is_found_by_any_of_their_names(connection: sqlite3.Connection) -> None:
    """By answer, by person, by session; several at once narrow it down."""
    take(connection, answer("a", caller="ann"), answer("b", caller="ann", conversation_id="c"), answer("x"))
    assert kept.matching(connection, ExchangeDelete(reply_id="x")) == ["x"]
    assert sorted(kept.matching(connection, ExchangeDelete(user="ann"))) == ["a", "b"]
    assert kept.matching(connection, ExchangeDelete(user="ann", session_id="c")) == ["b"]


def test_what_was_noticed_meanwhile_is_looked_at_again(connection: sqlite3.Connection) -> None:
    """An exchange whose signals changed since it was read is not marked as looked at."""
    take(connection, answer("a", text="", caller="ann", at=1_000))
    (read,) = kept.unnoticed(connection, 10)
    take(connection, answer("b", "No, wrong", caller="ann", at=1_001))
    kept.mark_noticed(connection, [read])
    (again,) = kept.unnoticed(connection, 10)
    assert "explicit_correction" in again.signals
    kept.mark_noticed(connection, [again])
    assert kept.unnoticed(connection, 10) == []
