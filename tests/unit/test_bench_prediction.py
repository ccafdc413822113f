"""The bench of prediction reads traces, makes them up, and replays them on every policy."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

TraceFile = Callable[[str], Path]


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    """The script as a module, with its parts beside it."""
    before = list(sys.path)
    sys.path.insert(0, str(SCRIPTS))
    try:
        yield import_module("bench_prediction")
    finally:
        sys.path[:] = before


@pytest.fixture
def traces(bench: ModuleType) -> ModuleType:
    """The part that reads traces and makes them up."""
    return import_module("bench_prediction_parts.traces")


@pytest.fixture
def trace_file(tmp_path: Path) -> TraceFile:
    """Writes a trace."""

    def write(text: str) -> Path:
        path = tmp_path / "requests.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_trace_is_read_in_order_of_time_from_its_first_request(traces: ModuleType, trace_file: TraceFile) -> None:
    """A heading is skipped, a size holds for the other lines of its model, and one never given is a usual one."""
    trace = traces.read_trace(
        trace_file("time,model,size_bytes\n1030, b ,2000\n1000,a\n1010.5,b,\n1020,b,2000\n"),
    )

    assert trace.requests == [(0.0, "a"), (10.5, "b"), (20.0, "b"), (30.0, "b")]
    assert trace.sizes == {"a": traces.UNKNOWN_BYTES, "b": 2_000}


def test_a_trace_may_say_who_asks(traces: ModuleType, trace_file: TraceFile) -> None:
    """Callers stay with their requests when these are put in order."""
    trace = traces.read_trace(trace_file("20,b,2000,ann\n10,a,,ben\n30,b\n"))

    assert trace.requests == [(0.0, "a"), (10.0, "b"), (20.0, "b")]
    assert list(trace.callers) == ["ben", "ann", ""]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no request"),
        ("time,model\n", "holds no request"),
        ("0,a\nnoon,b\n", "line 2: expected time,model"),
        ("0,a\n5\n", "line 2: expected time,model"),
        ("0,a,big\n1,a,big\n", "line 2: expected time,model"),
        ("0,a\ninf,b\n", "line 2: needs a finite time"),
        ("0,a\n1, \n", "line 2: needs a finite time, a name"),
        ("0,a,0\n", "line 1: needs a finite time, a name and a size above 0"),
    ],
)
def test_a_trace_that_makes_no_sense_is_refused_by_line(
    bench: ModuleType, trace_file: TraceFile, capsys: pytest.CaptureFixture[str], text: str, complaint: str
) -> None:
    """The script ends with 1 and says which line is wrong, and how."""
    assert bench.main(["--trace", str(trace_file(text))]) == 1
    assert complaint in capsys.readouterr().err


def test_an_unknown_kind_of_trace_is_refused(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """What there is is named."""
    assert bench.main(["--only", "workflow,weather"]) == 1
    assert "there are workflow, cron, sessions" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["workflow", "cron", "sessions", "phases", "zipf", "uniform", "adversarial"])
def test_a_seed_makes_one_trace(traces: ModuleType, kind: str) -> None:
    """The same seed gives the same requests in order of time, another one others, and models come from the fleet."""
    make = traces.GENERATED[kind]
    one, again, other = (make(random.Random(seed), traces.LARGE) for seed in (5, 5, 6))

    assert one == again != other
    assert one.requests == sorted(one.requests)
    assert {size / traces.GB for size in one.sizes.values()} <= set(traces.LARGE)


def test_what_takes_turns_is_loaded_before_it_is_asked_for(
    bench: ModuleType, trace_file: TraceFile, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three models of which two fit, always in one order: LRU never has the next one, prediction and foresight do."""
    lines = "".join(f"{number * 40},{'abc'[number % 3]},10000000000\n" for number in range(90))

    assert bench.main(["--trace", str(trace_file(lines)), "--json"]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    table = json.loads(last)["requests.csv"]
    assert set(table) == {*bench.POLICIES, "share"}
    assert table["LRU"]["hit_rate"] == 0
    assert table["predicted"]["hit_rate"] > 0.9
    assert table["clairvoyant"]["hit_rate"] == 1
    assert table["share"]["share_hits"] == pytest.approx(table["predicted"]["hit_rate"])
