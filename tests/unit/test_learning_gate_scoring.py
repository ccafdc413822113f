"""Answers are marked beside their references, each metric by its own rule."""

from __future__ import annotations

import pytest

from workers.learning.gate.scoring import Scored, metric_for, score


@pytest.mark.parametrize(
    ("metric", "answer", "reference", "worth"),
    [
        ("exact", "Oslo", "Oslo", 1.0),
        ("exact", "  Oslo.\n", '"Oslo"', 1.0),
        ("exact", "oslo", "Oslo", 0.0),
        ("exact", "r-i-v-e-r", "river", 0.0),
        ("exact", "Oslo, I think", "Oslo", 0.0),
        ("exact", "cafe\u0301", "caf\u00e9", 1.0),
        ("exact", "", "Oslo", 0.0),
        ("contains", "It is OSLO, I think.", "Oslo", 1.0),
        ("contains", "It is Bergen", "Oslo", 0.0),
        ("token_f1", "The broker hands each request on.", "the broker hands a request on", 8 / 9),
        ("token_f1", "Nothing alike", "the broker", 0.0),
        ("token_f1", "", "the broker", 0.0),
        ("token_f1", "", "", 1.0),
        ("token_f1", "中文字", "中文", 0.8),
        ("json", '{"b": [1, 2.0], "a": null}', '{"a":null,"b":[1.0,2]}', 1.0),
        ("json", '{"a": 1}', '{"a": true}', 0.0),
        ("json", '{"a": 1', '{"a": 1}', 0.0),
        ("json", "[1, 2]", "[2, 1]", 0.0),
        ("json", "[" * 5_000, "[" * 5_000, 0.0),
    ],
)
def test_an_answer_is_worth_what_its_metric_says(metric: Scored, answer: str, reference: str, worth: float) -> None:
    """Right, wrong and in between, as the rules of the module say."""
    assert score(metric, answer, reference) == pytest.approx(worth)


@pytest.mark.parametrize(
    ("reference", "metric"),
    [
        ("Oslo", "exact"),
        ("one two three four five six seven eight nine ten eleven twelve", "exact"),
        ("one two three four five six seven eight nine ten eleven twelve thirteen", "token_f1"),
        (' {"a": 1}', "json"),
        ("[1, 2]", "json"),
        ("{not json}", "exact"),
        ('"a text"', "exact"),
    ],
)
def test_auto_takes_the_metric_that_fits_the_reference(reference: str, metric: str) -> None:
    """JSON for JSON, exact for short texts, token F1 for long ones; a metric that was set stays."""
    assert metric_for("auto", reference) == metric
    assert metric_for("contains", reference) == "contains"
