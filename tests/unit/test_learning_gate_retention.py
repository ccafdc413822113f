"""Retention suites are files of cases by model; a broken one is refused by line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bus.settings import Settings, SettingsError, load_settings
from schemas.bodies.model import ChatMessage
from schemas.errors import Unprocessable
from workers.learning.gate.items import at_most, question_key
from workers.learning.gate.retention import RetentionSuites, read_cases


def settings_with(home: Path, *entries: str) -> Settings:
    """Settings that name these files."""
    return load_settings(overrides={"home": str(home), "learning.retention": json.dumps(entries)})


def test_the_demo_model_brings_a_suite_that_is_large_enough() -> None:
    """More cases than the gate wants, all different questions, most about facts of their own."""
    cases = RetentionSuites(Settings()).cases("olympus-demo")

    assert len(cases) >= Settings().learning.min_retention_items
    assert len({question_key(case.messages, case.prompt) for case in cases}) == len(cases)
    assert len({case.cluster for case in cases}) > 0.8 * len(cases)
    assert RetentionSuites(Settings()).cases("another") == []


def test_a_file_of_the_settings_takes_the_place_of_the_shipped_one(tmp_path: Path) -> None:
    """Several files of a model are taken together; both ways of writing cases are understood."""
    (tmp_path / "lines.jsonl").write_text(
        '{"metrics": ["exact_match"], "system": "Be brief.", "max_tokens": 9}\n'
        '{"id": "1", "prompt": "What is 7 + 5?", "expect": ["12", "twelve"], "pattern": "12"}\n\n'
        '{"id": "2", "messages": [{"role": "user", "content": "Hello"}], "reference": "Hi!", "cluster": "greeting"}\n'
    )
    (tmp_path / "array.json").write_text('[{"id": "1", "prompt": "Opposite of hot?", "expect": "cold"}]')

    suites = RetentionSuites(settings_with(tmp_path, "olympus-demo=lines.jsonl", "olympus-demo=array.json"))
    sums, greeting, opposite = suites.cases("olympus-demo")

    assert [message.content for message in sums.messages] == ["Be brief.", "What is 7 + 5?"]
    assert (sums.reference, sums.metric, sums.question) == ("12", "exact", "What is 7 + 5?")
    assert greeting.cluster == "case.greeting"
    assert opposite.messages == [ChatMessage(role="user", content="Opposite of hot?")]


def test_prompts_may_be_texts_to_continue(tmp_path: Path) -> None:
    """With `as_chat` false a prompt stays one, behind what every case begins with."""
    path = tmp_path / "cases.jsonl"
    path.write_text(
        '{"metrics": [], "as_chat": false, "system": "Q: "}\n{"id": "1", "prompt": "7 + 5 =", "expect": "12"}\n'
    )

    (case,) = read_cases(path)

    assert (case.prompt, case.messages) == ("Q: 7 + 5 =", [])
    assert case.request("m", "").max_tokens == 18


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "line 1"),
        (
            '{"id": "1", "prompt": "a", "expect": "b"}\n{"id": "1", "prompt": "c", "expect": "d"}',
            "line 2: id '1' was there",
        ),
        ('{"id": "1", "prompt": "a"}', "line 1: a case has an answer"),
        ('{"id": "1", "expect": "b"}', "line 1: a case has an answer in 'expect', and either"),
        ('{"id": 7, "prompt": "a", "expect": "b"}', r"line 1: Expected `str`, got `int`"),
        ('[{"id": "1", "prompt": "a", "expect": "b"}, 3]', "line 2: Expected `object`"),
        ("\x00\xff", "line 1"),
    ],
)
def test_a_broken_suite_is_refused_by_line(tmp_path: Path, text: str, said: str) -> None:
    """The file and the line are named, and what is wrong there."""
    path = tmp_path / "cases.jsonl"
    path.write_text(text)

    with pytest.raises(Unprocessable, match=said):
        read_cases(path)


def test_a_suite_that_is_not_there_is_refused_with_its_path(tmp_path: Path) -> None:
    """As is one that is no text."""
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")

    for name in ("nowhere.jsonl", "bytes"):
        with pytest.raises(Unprocessable, match=f"{name} cannot be read"):
            read_cases(tmp_path / name)


@pytest.mark.parametrize("entry", ["cases.jsonl", "=cases.jsonl", "olympus-demo="])
def test_a_setting_that_is_no_model_and_file_is_refused_at_start(tmp_path: Path, entry: str) -> None:
    """The setting is named, and how it is written."""
    with pytest.raises(SettingsError, match=r"learning.retention.*MODEL=FILE"):
        settings_with(tmp_path, entry)


def test_of_a_large_set_the_same_part_is_asked_each_time() -> None:
    """Whatever the order; and most of it stays when others join."""
    cases = RetentionSuites(Settings()).cases("olympus-demo")

    part = at_most(cases, 100)

    assert part == at_most(cases[::-1], 100)
    assert len({case.item_id for case in part} - {case.item_id for case in at_most(cases[:800], 100)}) < 20
