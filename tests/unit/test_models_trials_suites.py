"""Suite files as they are read, and what an answer is worth: marks, JSON, judges."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import BadRequest, NotFound, Unprocessable
from workers.models.trials import scoring, suites
from workers.models.trials.json_schema import UnusableSchema, check_schema, fits
from workers.models.trials.matcher_process import MatcherProcess
from workers.models.trials.prompts import exact_prompts
from workers.models.trials.scoring import NoMark, Scored, choice_of, mark_of, per_case, summary
from workers.models.trials.suites import SHIPPED, Case, JudgeRules, Rules, find_suite, read_suite

EXACT: dict[str, Any] = {"metrics": ["exact_match"]}
SUM: dict[str, Any] = {"id": "sum", "prompt": "1 + 1?", "expect": "2"}


def written(folder: Path, *lines: dict[str, Any] | str) -> Path:
    path = folder / "suite.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.jsonl")), ids=lambda path: path.stem)
def test_every_shipped_suite_is_readable(path: Path) -> None:
    """Found by its name, with a description and cases."""
    suite = read_suite(find_suite([Path("/nowhere"), SHIPPED], path.stem), path.stem)

    assert suite.name == path.stem
    assert suite.rules.description
    assert len(suite.cases) >= 10


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([EXACT], "this has no cases"),
        (['{"metrics": ["exact_match"]', SUM], "line 1: Input data was truncated"),
        ([{"metrics": []}, SUM], "line 1: .*metrics"),
        ([{"metrics": ["bleu"]}, SUM], "line 1: Invalid enum value 'bleu'"),
        ([{**EXACT, "temprature": 1}, SUM], "line 1: .*temprature"),
        ([{"metrics": ["exact_match", "exact_match"]}, SUM], "line 1: field 'metrics' names one twice"),
        ([{"metrics": ["exact_match", "regex"]}, SUM], "line 1: metric 'regex' needs pattern, which no case has"),
        ([EXACT, SUM, "", "not json"], "line 4: "),
        ([EXACT, SUM, SUM], "line 3: id 'sum' is that of line 2 too"),
        ([EXACT, {**SUM, "answer": "2"}], "line 2: .*answer"),
        ([EXACT, {**SUM, "messages": [{"role": "user"}]}], "line 2: 'prompt' and 'messages' exclude each other"),
        ([EXACT, {"id": "1", "expect": "2"}], "line 2: there is no 'prompt' and there are no 'messages'"),
        ([EXACT, SUM, {"id": "1", "prompt": "x"}], "line 3: no metric of exact_match can say anything about this case"),
        ([{"metrics": ["regex"]}, {"id": "1", "prompt": "x", "pattern": "("}], "line 2: .*unterminated subpattern"),
        ([{"metrics": ["regex"]}, {"id": "1", "prompt": "x", "pattern": "a{99999999999}"}], "line 2: .*too large"),
        (
            [{"metrics": ["regex"]}, {"id": "1", "prompt": "x", "pattern": "(" * 2000 + ")" * 2000}],
            "line 2: .*recursion",
        ),
        ([{"metrics": ["json"], "json_schema": {"typ": 1}}, SUM], "line 1: #: unknown keyword 'typ'"),
        ([{"metrics": ["json"]}, {**SUM, "json_schema": {"type": "text"}}], "line 2: #/type: 'text' is none of"),
        ([{**EXACT, "as_chat": False}, {"id": "1", "messages": [{"role": "user"}], "expect": "x"}], "need as_chat"),
    ],
)
def test_a_broken_suite_is_refused_with_file_and_line(tmp_path: Path, lines: list[Any], message: str) -> None:
    """Nothing of it runs."""
    path = written(tmp_path, *lines)

    with pytest.raises(Unprocessable, match=message) as raised:
        read_suite(path, "suite")
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../outside", "nul\0", "link"])
def test_a_suite_outside_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    """By its path or by a link."""
    folder = tmp_path / "suites"
    folder.mkdir()
    (tmp_path / "outside.jsonl").write_text("{}")
    (folder / "link.jsonl").symlink_to(tmp_path / "outside.jsonl")

    with pytest.raises(BadRequest, match="suite"):
        find_suite([folder], name)


def test_a_suite_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    """Names are paths below the folders; the first folder goes before the second."""
    own, shipped = tmp_path / "own", tmp_path / "shipped"
    for path in (own / "a.jsonl", own / "deep" / "b.jsonl", shipped / "a.jsonl", shipped / "c.jsonl"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")

    assert find_suite([own, shipped], "a") == own / "a.jsonl"
    assert find_suite([own, shipped], "deep/b.jsonl") == own / "deep" / "b.jsonl"
    for missing in ("d", "d" * 256):
        with pytest.raises(NotFound, match=r"there are: a, c, deep/b$"):
            find_suite([own, shipped], missing)


def test_a_suite_of_endless_lines_is_refused_before_it_takes_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line of a few bytes takes a hundred times as many once it is read."""
    monkeypatch.setattr(suites, "_CASES_MAX", 3)
    path = written(tmp_path, EXACT, SUM, "", "")

    with pytest.raises(Unprocessable, match="has 4 lines, a suite at most 3"):
        read_suite(path, "suite")


# Marks --------------------------------------------------------------------------------------------------------------


def test_exact_ignores_blanks_around_and_case_only_where_asked() -> None:
    """Any of several right answers will do."""
    case = Case(id="1", prompt="x", expect=["Oslo", "in Oslo"])
    plain, folding = Rules(metrics=["exact_match"]), Rules(metrics=["exact_match"], ignore_case=True)

    assert scoring.exact(" in Oslo\n", case, plain) == 1
    assert scoring.exact("oslo", case, plain) == 0
    assert scoring.exact("oslo", case, folding) == 1
    assert scoring.exact("Oslo.", case, folding) == 0


def test_contains_wants_all_parts_or_any_right_answer() -> None:
    """`contains` lists what must all be there, `expect` alternatives."""
    rules = Rules(metrics=["contains"])

    assert scoring.contains("red and blue", Case(id="1", prompt="x", contains=["red", "blue"]), rules) == 1
    assert scoring.contains("red", Case(id="1", prompt="x", contains=["red", "blue"]), rules) == 0
    assert scoring.contains("red", Case(id="1", prompt="x", expect=["red", "blue"]), rules) == 1


@pytest.mark.parametrize(
    ("answer", "worth"),
    [
        ('{"a": 1}', 1),
        (' {"a": 1} \n', 1),
        ('{"a": "1"}', 0),
        ('{"a": 1} and more', 0),
        ("no", 0),
        ("[" * 100_000, 0),
        ('{"a": NaN}', 0),
    ],
)
def test_json_is_the_whole_answer_and_fits_its_schema(answer: str, worth: float) -> None:
    """A remark around it is not JSON; an answer that cannot be read is worth nothing and breaks nothing."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    case = Case(id="1", prompt="x", json_schema=schema)

    assert scoring.is_json(answer, case, Rules(metrics=["json"])) == worth


@pytest.mark.parametrize(
    ("reply", "scale", "mark"),
    [
        ("Mark: 10", 10, 1.0),
        ("Mark: 1", 10, 0.0),
        ("**Score:** 5,5 because 2 of 3 points are there", 10, 0.5),
        ("I first thought 3/10, but it is 10/10.", 10, 1.0),
        ("7 out of 10", 1, 0.7),
        ("80/100", 10, 0.8),
        ("0.25", 1, 0.25),
        ("The answer is right.\n1", 1, 1.0),
        ("Rating = 5.5/10", 10, 0.5),
    ],
)
def test_a_mark_is_found_however_the_judge_words_it(reply: str, scale: int, mark: float) -> None:
    """On the scale it was asked for, or on one it names."""
    assert mark_of(reply, scale) == pytest.approx(mark)


@pytest.mark.parametrize(("reply", "scale"), [("great", 10), ("", 1), ("11", 10), ("0", 10), ("2", 1), ("3/7", 10)])
def test_a_reply_without_a_usable_mark_is_no_mark(reply: str, scale: int) -> None:
    """Never taken for 0."""
    with pytest.raises(NoMark):
        mark_of(reply, scale)


@pytest.mark.parametrize(
    ("reply", "choice"),
    [("A", 1.0), (" b\n", 0.0), ("TIE", 0.5), ("tie.", 0.5), ("Answer A is poor, B is right. Verdict: B", 0.0)],
)
def test_a_choice_is_found(reply: str, choice: float) -> None:
    """One word, or the last one that is called the verdict."""
    assert choice_of(reply) == choice


@pytest.mark.parametrize("reply", ["both", "", "A beats B here"])
def test_a_choice_that_stays_open_is_none(reply: str) -> None:
    """Two letters and no verdict."""
    with pytest.raises(NoMark):
        choice_of(reply)


def test_a_placeholder_within_an_answer_stays_text() -> None:
    """An answer cannot put the reference into the judge's question."""
    case = Case(id="1", prompt="x", expect="secret")
    asked = scoring.judge_question(case, "{reference}", JudgeRules(template="{answer} of {prompt}"))

    assert asked == "{reference} of x"


def test_runs_of_one_case_with_several_seeds_are_one_observation() -> None:
    """So that more seeds do not feign more cases."""
    results = [
        Scored("a", {"exact_match": 1.0}),
        Scored("a", {"exact_match": 0.0}),
        Scored("b", {"exact_match": 1.0}),
        Scored("c", {}),
    ]
    interval = summary(results, "exact_match", 0.95)

    assert per_case(results, "exact_match") == {"a": 0.5, "b": 1.0}
    assert interval is not None
    assert (interval.mean, interval.n, interval.method) == (0.75, 2, "Student t")
    assert summary(results, "json", 0.95) is None


def test_perplexity_is_that_of_all_texts_together() -> None:
    """exp of nats over tokens: a long text counts as much as it is long."""
    results = [
        Scored("a", {"perplexity": math.e, scoring.TOKENS: 10.0}),
        Scored("b", {"perplexity": math.e**2, scoring.TOKENS: 30.0}),
    ]
    interval = summary(results, "perplexity", 0.95)

    assert interval is not None
    assert interval.mean == pytest.approx(math.exp(70 / 40))
    assert interval.low < interval.mean < interval.high
    assert scoring.perplexity(-math.inf, 1) < math.inf
    assert scoring.perplexity(math.inf, 1) > 0


def test_numbers_that_are_none_give_no_score() -> None:
    """Broken weights answer so; a score made of it would be a lie, and not readable where results are kept."""
    with pytest.raises(scoring.NoNumber, match="nan"):
        scoring.perplexity(math.nan, 3)
    for vector in ([math.nan, 1.0], [math.inf, 1.0]):
        with pytest.raises(scoring.NoNumber, match="vectors"):
            scoring.cosine(vector, [1.0, 1.0])


def test_a_cosine_of_nothing_is_zero() -> None:
    """And rounding does not leave -1..1."""
    assert scoring.cosine([1.0, 0.0], [0.0, 2.0]) == 0
    assert scoring.cosine([0.1] * 7, [0.3] * 7) == pytest.approx(1.0)
    assert scoring.cosine([0.1] * 7, [0.3] * 7) <= 1.0
    assert scoring.cosine([0.0], [1.0]) == 0


# JSON Schema --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": ["string", "null"]}, [None, "x"], [1, []]),
        ({"type": "integer"}, [1, 1.0], [1.5, True, "1"]),
        ({"type": "number"}, [1, 1.5], [False]),
        ({"enum": [1, "a", [True]]}, [1.0, "a", [True]], [True, [1], "b"]),
        ({"const": {"a": 1}}, [{"a": 1.0}], [{"a": True}, {}]),
        ({"properties": {"a": {"minimum": 1}}, "additionalProperties": False}, [{}, {"a": 1}, 3], [{"a": 0}, {"b": 1}]),
        ({"required": ["a"], "maxProperties": 1}, [{"a": None}, "x"], [{}, {"a": 1, "b": 2}]),
        ({"prefixItems": [{"type": "string"}], "items": {"type": "integer"}}, [[], ["a", 1]], [[1], ["a", "b"]]),
        ({"minItems": 1, "uniqueItems": True}, [[1, True], ["a"]], [[], [1, 1.0]]),
        ({"minLength": 2, "maxLength": 3}, ["ab", 1], ["a", "abcd"]),
        ({"exclusiveMinimum": 0, "exclusiveMaximum": 1}, [0.5, "x"], [0, 1]),
        ({"multipleOf": 0.1}, [0.3, 7], [0.25]),
        ({"anyOf": [{"type": "string"}, {"minimum": 5}]}, ["x", 6], [1]),
        ({"oneOf": [{"type": "integer"}, {"minimum": 5}]}, [1, 5.5], [6, 1.5]),
        ({"allOf": [{"minimum": 1}, {"maximum": 2}], "not": {"const": 2}}, [1], [2, 3]),
        (
            {"$ref": "#/$defs/t", "$defs": {"t": {"items": {"$ref": "#/$defs/t"}, "type": "array"}}},
            [[[[]]]],
            [[[1]], 1],
        ),
        (True, [1], []),
        (False, [], [1]),
    ],
)
def test_values_fit_a_schema_or_do_not(schema: Any, good: list[Any], bad: list[Any]) -> None:
    """Each keyword, as the specification has it: those of other types pass."""
    check_schema(schema)

    assert [value for value in good if not fits(value, schema)] == []
    assert [value for value in bad if fits(value, schema)] == []


@pytest.mark.parametrize(
    "schema",
    [
        {"patternProperties": {}},
        {"type": "text"},
        {"type": 3},
        {"minimum": "1"},
        {"minLength": True},
        {"required": "a"},
        {"properties": []},
        {"anyOf": [{"x": 1}]},
        {"items": 3},
        {"multipleOf": 0},
        7,
    ],
)
def test_a_schema_that_could_not_be_checked_whole_is_refused(schema: Any) -> None:
    """Nothing is checked less than it looks."""
    with pytest.raises(UnusableSchema):
        check_schema(schema)


@pytest.mark.parametrize("reference", ["#", "#/lost", "other.json"])
def test_a_reference_to_itself_or_nowhere_is_an_error(reference: str) -> None:
    """Not an endless loop."""
    with pytest.raises(UnusableSchema):
        fits(1, {"$ref": reference})


# Prompts and the matcher --------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(1, 6), st.integers(0, 5))
def test_prompts_have_exactly_the_tokens_asked_for(tokens: int, per_token: int, seed: int) -> None:
    """Whatever the length of a token."""

    async def count(texts: list[str]) -> list[int]:
        return [sum(-(-len(word) // per_token) for word in text.split()) for text in texts]

    coroutine = exact_prompts(count, tokens, 5, seed)
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)
    prompts = done.value.value

    assert [sum(-(-len(word) // per_token) for word in prompt.split()) for prompt in prompts] == [tokens] * 5
    if tokens > 40:
        assert len(set(prompts)) == 5


async def test_a_tokenizer_without_such_a_text_is_an_error() -> None:
    """Every text has an even number of tokens here."""

    async def count(texts: list[str]) -> list[int]:
        return [2 * len(text) for text in texts]

    with pytest.raises(Unprocessable, match="exactly 15 tokens"):
        await exact_prompts(count, 15, 1, 0)


async def test_the_matcher_searches_and_survives_what_never_ends() -> None:
    """A search that hangs is stopped, and the next one gets a new process."""
    matcher = MatcherProcess(limit_s=0.3)
    try:
        assert await matcher.is_in("^b", "a\nb") is False
        assert await matcher.is_in("(?m)^b", "a\nb") is True
        with pytest.raises(Unprocessable, match="was not done after"):
            await matcher.is_in("^(a+)+b$", "a" * 60)
        assert await matcher.is_in("é+", "caféé") is True
    finally:
        await matcher.stop()


def test_a_search_ends_by_itself_when_whoever_asked_is_dead() -> None:
    """Killed at a stroke, the service can end nothing; the process would use a core for ever."""
    program = subprocess.Popen(
        [sys.executable, "-c", "from workers.models.trials import matcher; matcher._LIMIT_S = 1; matcher.main()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    try:
        program.communicate(json.dumps(["^(a+)+b$", "a" * 60]).encode() + b"\n", timeout=20)
        assert program.returncode == -signal.SIGALRM
    finally:
        program.kill()
        program.wait()
