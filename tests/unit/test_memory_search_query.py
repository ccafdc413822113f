"""Queries, understood."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.memory.search import query as query_module
from workers.memory.search.query import Query, Tokenizer, Word, understand

REFERENCE = 1_700_000_000.0
TOKENIZER = Tokenizer()


def read(text: str) -> Query:
    return understand(text, REFERENCE, TOKENIZER)


def labels(text: str) -> list[str]:
    return [term.label for term in read(text).terms]


def topics(text: str) -> list[str]:
    return [term.label for term in read(text).terms if term.is_topic]


def test_function_words_are_left_out_where_others_are_left() -> None:
    """They stand in every text."""
    assert labels("Where is the key of the shed?") == ["key", "shed"]


def test_query_of_function_words_keeps_them() -> None:
    """There is nothing else to look for."""
    assert labels("who are you") == ["who", "are", "you"]
    assert topics("who are you") == []


def test_words_of_one_stem_are_looked_for_once() -> None:
    """As the index sees them."""
    assert labels("dance dancing dances") == ["dance"]


def test_quoted_words_are_a_phrase_beside_their_words() -> None:
    """Straight and curly quotes alike."""
    query = read('who said "blue door" or \u201cold  barn\u201d')

    assert query.phrases == ["blue door", "old barn"]
    assert [term.match for term in query.terms if " " in term.match] == ['"blue door"', '"old barn"']


def test_capitals_inside_a_sentence_are_names() -> None:
    """The first word of a sentence tells nothing."""
    query = read("Does Rhubarb grow in Norway? Gardens may.")

    assert [term.label for term in query.terms if term.is_name] == ["rhubarb", "norway"]


def test_question_for_a_time_is_recognised() -> None:
    """By its question words."""
    assert read("When did the roof leak?").asks_when
    assert read("In which year was it built?").asks_when
    assert not read("Who built it?").asks_when


def test_topic_is_what_remains_without_times_and_generic_words() -> None:
    """ "What happened last week?" has none."""
    assert topics("What happened last week?") == []
    assert topics("What happened to the roof last week?") == ["roof"]


def test_words_are_bounded() -> None:
    """A page of text costs no more than a long sentence."""
    assert len(read(" ".join(f"word{number}" for number in range(500))).terms) == 32


@given(st.text(max_size=300))
def test_any_text_gives_quoted_words_only(text: str) -> None:
    """Nothing of the query's own syntax reaches the index."""
    for term in read(text).terms:
        assert term.match[0] == term.match[-1] == '"'
        assert '"' not in term.match[1:-1]


def test_name_of_a_speaker_is_cut_into_words_and_a_role_has_none() -> None:
    """ "user" in a query means the thing."""
    assert TOKENIZER.name_words("Mary-Ann O'Neil") == {"mary", "ann", "o", "neil"}
    assert TOKENIZER.name_words("Assistant") == frozenset()


def by_the_index(text: str) -> list[Word]:
    """The words of a text as a full-text index has them."""
    connection = sqlite3.connect(":memory:")
    columns = []
    for name, tokenizer in (("plain", "unicode61"), ("stems", "porter unicode61")):
        connection.executescript(
            f"CREATE VIRTUAL TABLE {name} USING fts5 (text, tokenize = '{tokenizer} remove_diacritics 2');"
            f"CREATE VIRTUAL TABLE {name}_words USING fts5vocab ({name}, instance);"
        )
        connection.execute(f"INSERT INTO {name} (text) VALUES (?)", (text,))
        columns.append([term for (term,) in connection.execute(f"SELECT term FROM {name}_words ORDER BY offset")])
    connection.close()
    return [Word(plain, stem) for plain, stem in zip(*columns, strict=True)]


@given(
    st.one_of(
        st.text(st.characters(max_codepoint=127), max_size=60),
        st.lists(
            st.sampled_from("running Runs ran_off it's 12 1st cafe\u0301 \u00fcber CARESSES sky\0skies".split(" "))
        ).map(" ".join),
    )
)
def test_text_is_cut_as_the_full_text_index_cuts_it(text: str) -> None:
    """Plain ASCII too, which is cut without it, and with stems that were remembered."""
    assert TOKENIZER.words(text) == by_the_index(text)


def test_forgotten_stems_are_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text may hold more words than are remembered."""
    monkeypatch.setattr(query_module, "KEPT_STEMS", 2)
    tokenizer = Tokenizer()

    for text in ("walking talked sleeps", "sleeps", "talked walking talked"):
        assert tokenizer.words(text) == by_the_index(text)
