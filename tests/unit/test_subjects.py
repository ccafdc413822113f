"""The grammar of subjects and patterns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import subjects
from schemas.errors import BadRequest

TOKENS = st.lists(st.text("abz09_-", min_size=1, max_size=4), min_size=1, max_size=5)


@pytest.mark.parametrize("subject", ["a", "memory.kv.get", "model.chat@demo", "a@x:y/z+1.2", "A_b-9.c", "x" * 255])
def test_subject_is_accepted(subject: str) -> None:
    """Dot-separated tokens, and an instance behind `@`."""
    assert subjects.validate(subject) == subject


@pytest.mark.parametrize(
    "subject", ["", ".", "a.", ".a", "a..b", "a b", "a.*", "a.>", "é", "a@", "@a", "a\n", "a@b@c", "x" * 256]
)
def test_subject_is_refused(subject: str) -> None:
    """Each with the field's name in its details."""
    with pytest.raises(BadRequest) as failure:
        subjects.validate(subject)
    assert failure.value.details["field"] == "subject"


@pytest.mark.parametrize("pattern", [">", "*", "a.*", "a.>", "*.b.*", "a.*.>", "a.b", "a.*@one"])
def test_pattern_is_accepted(pattern: str) -> None:
    """`*` for a token, `>` only at the end."""
    assert subjects.validate_pattern(pattern) == pattern


@pytest.mark.parametrize("pattern", ["", "a.>.b", ">.a", "a*", "a.*b", "a..*", "a.>>", "x" * 256])
def test_pattern_is_refused(pattern: str) -> None:
    """Anything else."""
    with pytest.raises(BadRequest):
        subjects.validate_pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "subject", "does"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.b.c", False),
        ("a.b", "a.bc", False),
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        (">", "a", True),
        ("*", "a", True),
        ("a.b", "a.b@one", True),
        ("a.>", "a.b@one", True),
        ("a.b@one", "a.b", False),
        ("a.b@one", "a.b@two", False),
        ("a.b@one", "a.b@one", True),
        ("a.b", "aXb", False),
    ],
)
def test_pattern_matches(pattern: str, subject: str, does: bool) -> None:
    """A pattern without an instance covers every instance."""
    assert subjects.matches(pattern, subject) is does


@given(tokens=TOKENS, data=st.data())
def test_generalised_subject_still_matches(tokens: list[str], data: st.DataObject) -> None:
    """Any token may become `*`, any tail `>`."""
    subject = ".".join(tokens)
    pattern = [data.draw(st.sampled_from([token, "*"])) for token in tokens]
    cut = data.draw(st.integers(1, len(tokens)))

    assert subjects.matches(".".join(pattern), subject)
    if cut < len(tokens):
        assert subjects.matches(".".join([*pattern[:cut], ">"]), subject)


@given(text=st.text(max_size=30))
def test_any_text_is_a_subject_or_a_bad_request(text: str) -> None:
    """Nothing else is raised, and what is accepted matches itself."""
    try:
        subjects.validate(text)
    except BadRequest:
        return
    assert subjects.matches(text, text)
