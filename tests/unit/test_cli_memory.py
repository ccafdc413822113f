"""`olympus memory` without a service: its lines, tables and arguments."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import shlex
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.cli import app, exits
from bus.cli import progress as progress_module
from bus.cli.action import action_parsers
from bus.cli.completion import vocabulary
from bus.cli.memory_export import _at_line
from bus.cli.memory_items import _metadata
from bus.cli.memory_lines import MAX_LINE_BYTES, BadLine, Line, Lines, end, from_plain, header, line, to_plain
from bus.cli.memory_search import excerpt, hit_lines, merged, understood_lines
from bus.cli.memory_upkeep import stats_lines, verified_lines
from bus.cli.progress import Progress, progress_line
from schemas.bodies.search import SearchHit, SearchReply, Signal, Understood
from schemas.bodies.upkeep import NamespaceStats, StatsReply, Verified
from schemas.errors import BadRequest, Conflict

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.datetimes(timezones=st.just(UTC))
    | st.builds(msgspec.msgpack.Ext, st.integers(0, 127), st.binary())
)
keys = st.text() | st.sampled_from(["$bytes", "$map", "$"]) | st.integers(-(2**63), 2**63 - 1) | st.binary()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(keys, inner), max_leaves=20)


@given(values)
def test_every_value_survives_a_line(value: Any) -> None:
    """Bytes, times, extension values, infinities and maps with any keys: through JSON and back they are the same."""
    text = line("kv", "n", {"value": value})

    (read,) = Lines(io.BytesIO(header(1) + text))

    assert text.count(b"\n") == 1
    assert msgspec.msgpack.encode(read.record["data"]["value"]) == msgspec.msgpack.encode(value)


def test_what_is_no_number_survives_a_line() -> None:
    """NaN equals nothing, so it is looked at by itself."""
    assert math.isnan(from_plain(json.loads(json.dumps(to_plain(math.nan)))))


def test_lines_are_readable_text() -> None:
    """Plain values stand as they are; the rest says what it is."""
    at = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)

    written = line("kv", "n", {"key": "café", "value": [1, b"\x00", at, {1: 2}, {"$x": 0}, math.inf]})

    assert json.loads(written) == {
        "kind": "kv",
        "ns": "n",
        "data": {
            "key": "café",
            "value": [
                1,
                {"$bytes": "AA=="},
                {"$time": "2030-01-02T03:04:05+00:00"},
                {"$map": [[1, 2]]},
                {"$map": [["$x", 0]]},
                {"$float": "inf"},
            ],
        },
    }


GOOD = line("fact", "user", {"key": "city"})


@pytest.mark.parametrize(
    ("text", "number", "words"),
    [
        (b"", 1, "the file is empty"),
        (b"{", 1, "not the header of an export"),
        (b"\x1f\x8b\x08\x00\n", 1, "not the header of an export"),
        (GOOD, 1, "not the header of an export"),
        (b'{"format": "other", "version": 1}\n', 1, "the format is 'other'"),
        (b'{"format": "olympus-memory", "version": 2}\n', 1, "version of the format is 2"),
        (b'{"format": "olympus-memory", "version": "1"}\n', 1, "not the header"),
        (header(1) + GOOD + b'{"kind": "fact", "ns"\n', 3, "it is not JSON"),
        (header(1) + b"\n" + GOOD + b"[1, 2]\n", 4, "not a JSON object"),
        (header(1) + b'{"kind": 7, "ns": "n", "data": {}}\n', 2, "kind has to be text, it is '7'"),
        (header(1) + b'{"kind": "kv", "ns": "n"}\n', 2, "data has to be an object"),
        (header(1) + b'{"kind": "kv", "ns": "n", "data": {"value": {"$bytes": "!"}}}\n', 2, "data.value"),
        (header(1) + b'{"kind": "kv", "ns": "n", "data": {"value": {"$bytes": "", "a": 1}}}\n', 2, "may hold nothing"),
        (header(1) + b'{"kind": "kv", "ns": "n", "data": {"value": {"$what": 1}}}\n', 2, "data.value"),
        (header(1) + b'{"kind": "kv", "ns": "n", "data": {"value": {"$map": [[{}, 1]]}}}\n', 2, "data.value"),
        (header(1) + b'{"kind": "\xff"}\n', 2, "it is not JSON"),
        (header(1) + end({}) + GOOD, 3, "after the end"),
        (header(1) + b"[" * 5_000 + b"]" * 5_000 + b"\n", 2, "it is not JSON"),
        (header(1) + b'{"kind": "kv", "ns": "n", "data": {"value": "' + b"x" * 10_000_000, 2, "it is not JSON"),
    ],
)
def test_a_line_that_does_not_fit_is_named(text: bytes, number: int, words: str) -> None:
    """The number of the line, counted from 1, what is wrong with it, and no more of it than fits a screen."""
    with pytest.raises(BadLine) as caught:
        list(Lines(io.BytesIO(text)))

    assert str(caught.value).startswith(f"line {number}: ")
    assert words in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_line_without_end_is_not_read_whole() -> None:
    """A file that is one line of gigabytes does not fill the memory."""
    read: list[int] = []

    class Endless(io.BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            read.append(size or 0)
            return header(1) if len(read) == 1 else b" " * MAX_LINE_BYTES

    with pytest.raises(BadLine, match="more than"):
        list(Lines(Endless()))

    assert read == [MAX_LINE_BYTES, MAX_LINE_BYTES]


def test_a_whole_export_has_its_end() -> None:
    """Only where the last line was read is the file known to be whole."""
    whole, cut = (Lines(io.BytesIO(header(1) + GOOD + last)) for last in (end({"fact": 1}), b""))

    assert [one.number for one in whole] == [2] and [one.number for one in cut] == [2]
    assert (whole.total, whole.is_whole, cut.is_whole) == (1, True, False)


def test_an_error_of_the_service_names_the_line_of_the_file() -> None:
    """Its record, counted within a batch, means nothing to a person."""
    batch = [Line(number, {}, 1) for number in (10, 12)]

    of_field = _at_line(BadRequest("record 1 (kv): key is empty", record=1, field="key"), batch)
    of_shape = _at_line(BadRequest("Invalid enum value 'x' (field 'records[0].kind')", field="records[0].kind"), batch)
    of_nothing = _at_line(Conflict("something else"), batch)

    assert (of_field.message, of_field.details) == ("line 12: key is empty", {"field": "key"})
    assert of_shape.message.startswith("line 10: Invalid enum value") and of_shape.details == {"field": "kind"}
    assert of_nothing.message == "something else"


def test_metadata_is_json_where_it_reads_as_such() -> None:
    """`n=1` is a number, `name=Ada` a text."""
    assert _metadata(["n=1", "name=Ada", "on=true", "url=a=b"]) == {"n": 1, "name": "Ada", "on": True, "url": "a=b"}


def test_a_hit_says_what_it_is_and_why_it_is_here() -> None:
    """Score, time, kind, id and speaker, the text, and the signals in a table; nothing of it can drive a terminal."""
    hit = SearchHit(
        id="m1",
        kind="memory",
        score=0.8731,
        text="Ada\nkeeps \x1b[31mbees",
        start=0,
        end=9,
        at=0.0,
        chunk=1,
        speaker="Ada",
        signals=[Signal(name="text", share=0.6, value=3.25, note="bees"), Signal(name="dense", share=0.4, value=0.5)],
    )

    about, text, *signals = hit_lines(hit, None)

    assert about.split("  ") == ["0.873", about.split("  ")[1], "memory", "m1", "Ada"]
    assert text == "    Ada keeps \\x1b[31mbees"
    assert [one.split() for one in signals] == [
        ["SIGNAL", "SHARE", "VALUE", "WHY"],
        ["text", "0.600", "3.250", "bees"],
        ["dense", "0.400", "0.500"],
    ]


def test_a_long_hit_takes_a_few_lines_of_a_terminal() -> None:
    """A pipe gets all of it."""
    hit = SearchHit(id="m", kind="memory", score=1.0, text="word " * 500, start=0, end=9, at=0.0, chunk=1)

    lines = hit_lines(hit, 60)

    assert len(lines) == 4 and all(len(one) <= 60 for one in lines) and lines[-1].endswith("...")
    assert len(hit_lines(hit, None)[1]) > 2_000


def test_a_long_hit_is_shown_from_where_the_words_of_the_query_stand() -> None:
    """The place with the most of them, in any form; a short text, or one without any, is shown from its beginning."""
    text = f"{'The keys of the sea. ' * 30}The spare key of the boathouse hangs behind a can. {'Wind and tide. ' * 30}"

    shown = excerpt(text, "where are the boathouses' spare keys?", 200)

    assert shown.startswith("... ") and "The spare key of the boathouse hangs" in shown[:200]
    assert excerpt(text, "chromodynamics", 200) == excerpt(text, "", 200) == text
    assert excerpt("The spare key.", "spare", 200) == "The spare key."


def test_how_the_query_was_read_is_told() -> None:
    """Words, names and the time it speaks of."""
    lines = understood_lines(Understood(terms=["bee"], speakers=["Ada"], since=0.0, until=86_400.0, time_words="today"))

    assert lines[:2] == ["words: bee", "speakers: Ada"]
    assert lines[2].startswith("time: ") and lines[2].endswith("(today)")


def test_stats_are_a_table_and_the_state_of_each_part() -> None:
    """What is wrong comes last, marked."""
    stats = StatsReply(
        namespaces=[NamespaceStats(ns="kv", kind="kv", count=1234), NamespaceStats(ns="a", kind="kv", count=1)],
        database_bytes=2048,
        vectors=10,
        waiting=2,
        encoder="mini",
        encoder_state="loading",
        vector_engine="edge",
        hot_tier="",
        schema_version=4,
        degraded=["no redis"],
        unencodable=1,
    )

    lines = stats_lines(stats)

    assert [one.split() for one in lines[:3]] == [
        ["NAMESPACE", "KIND", "COUNT"],
        ["a", "kv", "1"],
        ["kv", "kv", "1,234"],
    ]
    assert "database  2.0 KiB, schema version 4" in lines
    assert "vectors   10 in edge, 2 texts waiting, 1 text that cannot be encoded" in lines
    assert "hot tier  none" in lines
    assert lines[-1] == "! no redis"


def test_what_differs_is_named_with_what_to_do() -> None:
    """The ids of each kind of difference, the first of them at least."""
    told = Verified(agrees=False, chunks=20, vectors=19, waiting=0, missing=list(range(12)), surplus=[], outdated=[7])

    text = "\n".join(verified_lines(told))

    assert "differ" in text and "without their vector: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ..." in text
    assert "another encoder: 7" in text
    assert "verify --repair" in text


def test_vectors_of_another_database_are_told_although_no_id_differs() -> None:
    """With what waits beside them too, which alone would be no difference."""
    problems = ["8 chunks wait to be encoded", "the vectors are those of another database"]
    told = Verified(
        agrees=False, chunks=20, vectors=12, waiting=8, missing=[], surplus=[], outdated=[], problems=problems
    )

    text = "\n".join(verified_lines(told))

    assert "differ" in text and "another database" in text and "--repair" in text


def test_text_that_cannot_be_encoded_is_named() -> None:
    """Whoever reads it can look the text up."""
    problems = ["1 chunks cannot be encoded by this model"]
    told = Verified(
        agrees=False,
        chunks=20,
        vectors=11,
        waiting=8,
        missing=[],
        surplus=[],
        outdated=[],
        problems=problems,
        unencodable=[7],
    )

    assert "  cannot be encoded: 7" in verified_lines(told)


def test_verify_offers_no_repair_for_what_only_waits() -> None:
    """It is embedded without anybody's doing."""
    told = Verified(agrees=False, chunks=20, vectors=12, waiting=8, missing=[], surplus=[], outdated=[])

    text = "\n".join(verified_lines(told))

    assert "8 waiting" in text and "look again later" in text
    assert "differ" not in text and "--repair" not in text


def test_the_best_hits_of_several_namespaces_are_shown_together() -> None:
    """By score; what is missing in one of them is told once, and what waits is counted once."""

    def reply(*scores: float, degraded: str = "") -> SearchReply:
        hits = [
            SearchHit(id=str(score), kind="memory", score=score, text="t", start=0, end=1, at=0.0, chunk=1)
            for score in scores
        ]
        words = Understood(terms=[str(len(hits))])
        return SearchReply(hits=hits, mode="hybrid", took_ms=1.0, degraded=degraded, waiting=3, understood=words)

    both = merged([reply(), reply(0.9, 0.2, degraded="no encoder"), reply(0.5, degraded="no encoder")], 2)

    assert [hit.score for hit in both.hits] == [0.9, 0.5]
    assert (both.degraded, both.waiting) == ("no encoder", 3)
    assert both.understood is not None and both.understood.terms == ["2"]


def test_progress_is_a_bar_with_figures() -> None:
    """Where the total is unknown only the stage is told."""
    assert (
        progress_line("copy", 250, 1_000, 12.0)
        == "copy  [#######.......................]  25 %  250 of 1,000, 12 s left"
    )
    assert progress_line("copy", 1_000, 1_000, 0.0).endswith("100 %  1,000 of 1,000")
    assert progress_line("check", 0, 0) == "check ..."


def test_no_bar_is_drawn_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Nor on one that asked for JSON."""
    with Progress() as progress:
        progress.show("copy", 1, 2)

    assert capsys.readouterr() == ("", "")


def test_a_bar_is_drawn_on_a_terminal_and_wiped_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only work that takes long gets one, and what is printed next begins on a clean line."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

        def fileno(self) -> int:
            raise io.UnsupportedOperation("fileno")

    clock = itertools.count(0.0, 0.6)
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=lambda: next(clock)))

    with Progress() as progress:
        progress.show("copy", 1, 4)
        assert terminal.getvalue() == ""
        progress.show("copy", 2, 4)
        progress.show("copy", 4, 4)

    first, *_, last = terminal.getvalue().strip("\r").split("\r")
    assert "50 %" in first and "100 %" in terminal.getvalue()
    assert last.strip() == ""


def test_a_terminal_that_does_not_know_its_size_has_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serial lines say 0 columns, which would leave nothing of the bar."""
    monkeypatch.setattr("os.get_terminal_size", lambda descriptor: os.terminal_size((0, 0)))

    assert progress_module._columns() == 79


@pytest.mark.parametrize(
    "parser",
    action_parsers(app.command_parser(next(one for one in app.COMMANDS if one.name == "memory"))),
    ids=lambda one: one.prog,
)
def test_every_action_has_help_and_examples_that_it_understands(parser: Any) -> None:
    """Each line of the examples that begins with the action parses."""
    assert "examples:" in parser.epilog
    for example in parser.epilog.splitlines()[1:]:
        words = shlex.split(
            example.partition("|")[2] if not example.strip().startswith("olympus") else example.partition(" | ")[0]
        )
        assert words[:2] == ["olympus", "memory"] and f"olympus memory {words[2]}" == parser.prog
        parser.parse_args(words[3:])
    assert all(action.help for action in parser._actions)


def test_without_an_action_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """As for the command as a whole: status 2, and a list of what there is."""
    assert app.main(["memory"]) == exits.USAGE
    assert "olympus memory backup" in capsys.readouterr().out


def test_the_completion_knows_the_actions_and_their_options() -> None:
    """`olympus memory <TAB>` offers them."""
    memory = next(one for one in vocabulary() if one.command == "memory")

    assert {
        "add",
        "search",
        "show",
        "forget",
        "stats",
        "export",
        "import",
        "verify",
        "rebuild",
        "backup",
        "restore",
    } <= set(memory.words)
    assert {"--explain", "--on-conflict", "--json"} <= {option.name for option in memory.options}


def test_settings_may_stand_before_and_behind_the_action() -> None:
    """Neither hides the other's values."""
    parser = app.command_parser(next(one for one in app.COMMANDS if one.name == "memory"))

    before = parser.parse_args(["--config", "a.yaml", "stats"])
    behind = parser.parse_args(["stats", "--set", "bus.timeout_s=5"])

    assert (before.config, before.set) == ("a.yaml", [])
    assert (behind.config, behind.set) == (None, ["bus.timeout_s=5"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["add", "text", "--document"], "needs an --id"),
        (["add", "text", "--document", "--id", "a", "--tier", "long"], "a document has no --tier"),
        (["add", "@/nowhere/at/all"], "cannot read /nowhere/at/all"),
        (["add", "text", "--meta", "novalue"], "is not KEY=VALUE"),
        (["forget", "a", "b"], "--yes"),
        (["forget", "a", "--fact", "--cascade"], "nothing lies under a fact"),
        (["export", "--json"], "needs a FILE"),
        (["import", "/nowhere/at/all"], "cannot read /nowhere/at/all"),
        (["restore", "monday"], "--yes"),
    ],
)
def test_arguments_that_make_no_sense_are_said_before_anything_is_asked(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status 2, one line."""
    monkeypatch.setattr("sys.stdin", io.StringIO())

    assert app.main(["memory", *words]) == exits.USAGE
    assert said in capsys.readouterr().err


def test_a_file_that_is_no_export_is_said_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line is named; no broker is needed to find that out."""
    (tmp_path / "a.jsonl").write_text("hello\n")

    assert app.main(["memory", "import", str(tmp_path / "a.jsonl")]) == exits.FAILED
    assert "line 1: it is not the header" in capsys.readouterr().err


def test_a_dry_run_reads_the_whole_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says whether the export is whole, without a service."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.write_bytes(header(1) + GOOD + end({"fact": 1}))
    cut.write_bytes(header(2) + GOOD)

    assert app.main(["memory", "import", "--dry-run", str(whole)]) == exits.OK
    assert app.main(["memory", "import", "--dry-run", str(cut)]) == exits.FAILED
    assert "1 record, nothing was imported" in capsys.readouterr().err
