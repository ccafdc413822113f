"""`olympus models` without a service: its lines, tables and arguments."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bus.cli import app, exits, models_loaded
from bus.cli.compare import comparison_lines
from bus.cli.models_files import converted_lines, list_lines, show_lines, verified_lines
from bus.cli.models_loaded import (
    device_lines,
    in_memory,
    kept_line,
    profile_lines,
    ps_lines,
    routed_lines,
    state_line,
)
from bus.cli.models_trials import bench_lines, evaluation_lines
from bus.cli.progress import progress_line
from schemas.bodies.model import LatencyFigures, ModelInfo, ModelKept, Models, ModelState, ModelVersion, Timings, Usage
from schemas.bodies.model_files import ModelConverted, ModelVerified
from schemas.bodies.model_trials import (
    BenchmarkRow,
    CompareAnswer,
    Comparison,
    Evaluation,
    MetricScore,
    Profile,
    ProfileList,
    Routed,
    RoutePassed,
)
from schemas.bodies.resource import DeviceStatus, GpuStatusReply, LockHolder, LockWaiter
from schemas.errors import Overloaded

MIB = 1024 * 1024


def info(name: str = "small", **more: Any) -> ModelInfo:
    """A catalogue entry."""
    facts = {
        "family": "llama",
        "format": "gguf",
        "quantisation": "Q8_0",
        "parameters": 2_700_000,
        "size_bytes": 5 * MIB,
        "context_tokens": 512,
        "state": "available",
    }
    return ModelInfo(name=name, **{**facts, **more})


def device(**more: Any) -> DeviceStatus:
    """A GPU that is well."""
    facts = {
        "device": "gpu0",
        "name": "A card",
        "source": "nvml",
        "state": "ok",
        "total_bytes": 24 * 1024 * MIB,
        "used_bytes": 2048 * MIB,
        "reserved_bytes": 1024 * MIB,
        "free_bytes": 20 * 1024 * MIB,
    }
    return DeviceStatus(**{**facts, **more})


def test_the_list_marks_the_default_and_says_why_a_file_cannot_be_used() -> None:
    """One row each, sizes and counts as people write them."""
    models = Models(models=[info(), info("broken", state="unusable", error="cut short\x1b[2J")], default="small")

    lines = list_lines(models)

    assert lines[1].split() == ["small*", "5.0", "MiB", "Q8_0", "2.7M", "512", "available"]
    assert "cut short\\x1b[2J" in lines[2]


def test_an_empty_catalogue_says_how_to_get_a_model() -> None:
    """Nobody is left with an empty table."""
    assert "olympus models pull" in list_lines(Models(models=[]))[0]


def test_show_leaves_out_what_is_not_known() -> None:
    """Facts that are empty make no line; versions and the template follow."""
    versions = [ModelVersion(sha256=letter * 64, size_bytes=MIB, added_at=0.0, source="hub") for letter in "ab"]

    lines = show_lines(info(keep_alive_s=-1.0, versions=versions, chat_template="{{ a }}\n{{ b }}"))

    assert not any(line.startswith(("error", "sha256", "license")) for line in lines)
    assert any("for good, priority 3" in line for line in lines)
    assert lines[-3:] == ["chat template:", "  {{ a }}", "  {{ b }}"]
    assert any(line.startswith("  aaaaaaaaaaaa") for line in lines)


def test_ps_shows_how_long_a_model_stays() -> None:
    """Pinned, for good, or so long when idle."""
    held = [
        info("a", state="loaded", device="gpu0", memory_bytes=MIB, is_pinned=True, loaded_at=100.0),
        info("b", state="loading", keep_alive_s=-1.0),
        info("c", state="loaded", keep_alive_s=300.0, in_flight=2, adapters=["terse"]),
    ]

    lines = ps_lines(held, 160.0)

    assert "pinned" in lines[1] and "1 min" in lines[1]
    assert "for good" in lines[2]
    assert "5 min" in lines[3] and lines[3].endswith("terse")
    assert ps_lines([], 0.0) == ["no model is in memory"]


def test_devices_say_who_holds_their_lock_and_who_waits() -> None:
    """The holder with its pid, and how many wait behind it."""
    holder = LockHolder(pid=7, host="pc", model="m", purpose="load", since=0.0)
    waiter = LockWaiter(pid=8, host="pc", model="n", purpose="load", since=0.0)

    lines = device_lines(
        GpuStatusReply(
            devices=[
                device(lock=holder, waiting=[waiter]),
                device(device="gpu1", state="lost", problem="fell off the bus", used_bytes=None),
            ],
            problem="",
        )
    )

    assert lines[1].endswith("load m by 7 on pc, 1 process waiting")
    assert lines[2].endswith("free")
    assert lines[3] == "! gpu1 is lost: fell off the bus"
    assert "does not run" in device_lines(None)[0]


def test_the_status_line_names_models_and_reservations() -> None:
    """What is in memory and how much of each device is promised, in one line."""
    models = Models(models=[info(state="loaded", device="cpu", memory_bytes=53 * MIB), info("other")])

    assert in_memory(models, GpuStatusReply(devices=[device()])) == (
        "in memory: small 53 MiB on cpu; gpu0 1.0 GiB of 24 GiB reserved"
    )
    assert in_memory(Models(models=[]), None) == "in memory: nothing"


@pytest.mark.parametrize(
    ("state", "took_s", "words"),
    [
        ("loaded", 1.234, "m is in memory after 1.23 s"),
        ("loaded", 0.0, "m is in memory already"),
        ("available", 0.02, "m is out of memory again after 0.02 s"),
        ("available", 0.0, "m was not in memory"),
    ],
)
def test_load_and_unload_say_what_was_done(state: Any, took_s: float, words: str) -> None:
    """What was so already took no time."""
    assert state_line(ModelState(model="m", state=state, took_s=took_s)) == words


def test_a_load_that_finds_no_room_is_answered_while_somebody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for the load's own limit and a little for room; an unload waits for answers, however long they are."""
    waits: dict[str, float] = {}

    class Asked:
        async def request(self, subject: str, body: Any, *, timeout_s: float) -> Any:
            waits[subject] = timeout_s
            raise Overloaded("no room")

    def run(args: Any, work: Any) -> int:
        return asyncio.run(work(Asked()))

    monkeypatch.setattr(models_loaded, "run_with_client", run)
    for action in ("load", "unload"):
        assert app.main(["--set", "models.load_timeout_s=7", "models", action, "m"]) == exits.FAILED

    assert 7 < waits["model.load"] < 60
    assert waits["model.unload"] > 3_600


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        (ModelKept(model="m", is_pinned=True, priority=1, keep_alive_s=300.0), "is pinned"),
        (ModelKept(model="m", is_pinned=False, priority=3, keep_alive_s=-1.0), "for good"),
        (ModelKept(model="m", is_pinned=False, priority=3, keep_alive_s=90.0), "1 min 30 s after"),
    ],
)
def test_keep_says_in_words_what_holds_now(kept: ModelKept, words: str) -> None:
    """Each way of being kept has its own sentence."""
    assert words in kept_line(kept)


def test_route_tells_what_was_passed_over() -> None:
    """The reason of the choice, then every candidate before it."""
    routed = Routed(
        model="b",
        profile="fast",
        reason="profile fast: first that fits",
        is_loaded=True,
        passed_over=[RoutePassed(model="a", reason="window of 512 tokens")],
    )

    assert routed_lines(routed) == [
        "profile fast: first that fits (in memory)",
        "  passed over a: window of 512 tokens",
    ]


def test_profiles_say_what_they_are_for_and_list_their_candidates() -> None:
    """Name and purpose, and below them the candidates in order."""
    profile = Profile(
        name="fast", description="quick words", models=["a", "b"], capabilities=[], options={}, origin="x"
    )

    assert profile_lines(ProfileList(profiles=[profile])) == ["fast  quick words", "      a, b"]


def test_a_changed_file_is_told_from_a_first_hash() -> None:
    """Three outcomes of verify, three sentences."""
    facts = {"model": "m", "sha256": "a" * 64, "size_bytes": MIB, "took_s": 0.1}

    assert verified_lines(ModelVerified(**facts, is_intact=True, expected=None))[1].startswith("hashed for the first")
    assert verified_lines(ModelVerified(**facts, is_intact=True, expected="a" * 64))[1] == "unchanged"
    assert "damaged" in verified_lines(ModelVerified(**facts, is_intact=False, expected="b" * 64))[1]


def test_a_smaller_copy_says_how_much_worse_it_is() -> None:
    """Sizes and perplexity before and after; or that there was no measure."""
    made = ModelConverted(
        model=info(size_bytes=MIB), source_bytes=4 * MIB, perplexity_before=10.0, perplexity_after=10.5, took_s=2.0
    )

    assert converted_lines(made) == [
        "4.0 MiB became 1.0 MiB (25%) in 2 s",
        "perplexity 10.000 before, 10.500 after (+5.00 %)",
    ]


def test_benchmark_and_evaluation_print_their_figures() -> None:
    """Milliseconds in the one, intervals in the other."""
    latency = LatencyFigures(p50_s=0.002, p95_s=0.004, max_s=0.005)
    row = BenchmarkRow(
        prompt_tokens=32,
        output_tokens=8,
        concurrency=4,
        requests=8,
        errors=0,
        tokens_per_s=1234.5,
        prompt_tokens_per_s=9000.0,
        first_token=latency,
        whole=latency,
    )
    result = Evaluation(
        evaluation_id="e",
        model="m",
        suite="s",
        status="done",
        started_at=0.0,
        finished_at=1.0,
        scores=[MetricScore(metric="exact_match", mean=0.5, low=0.4, high=0.6, n=100, method="Wilson")],
        cases=100,
        errors=1,
        suite_sha256="a" * 64,
        model_sha256=None,
        adapter=None,
        seeds=[0],
        confidence=0.95,
    )

    assert bench_lines([row])[1].split()[:6] == ["32", "4", "1,234.5", "9,000.0", "2.00", "4.00"]
    lines = evaluation_lines(result)
    assert lines[3].split() == ["exact_match", "0.5", "0.4", "0.6", "100", "Wilson"]
    assert lines[0] == "m on s: done, 100 answers, id e"
    assert lines[-2:] == [
        "! 1 answer failed:",
        "  olympus req model.evaluation.get evaluation_id=e with_cases=true shows why",
    ]


def test_a_comparison_shows_answers_then_figures() -> None:
    """The text of each, and a row with its tokens and times; a failed one says why."""
    timings = Timings(prompt_s=0.0, generate_s=0.1, first_token_s=0.012, tokens_per_s=80.0)
    usage = Usage(prompt_tokens=3, completion_tokens=9)
    result = Comparison(
        comparison_id="c",
        answers=[
            CompareAnswer(model="a", text="twelve", usage=usage, timings=timings, finish_reason="stop"),
            CompareAnswer(model="b", error="there is no model 'b'"),
        ],
    )

    lines = comparison_lines(result)

    assert lines[:2] == ["--- 1. a", "twelve"]
    assert "there is no model 'b'" in lines
    assert lines[-3].split() == ["1.", "a", "9", "80.0", "12.0", "stop"]
    assert lines[-2].endswith("failed")


def test_a_bar_in_bytes_shows_the_rate() -> None:
    """Sizes in binary units and how much comes in a second."""
    line = progress_line("downloading", 512 * MIB, 1024 * MIB, 10.0, bytes_per_s=55.0 * MIB)

    assert line.endswith("50 %  512 MiB of 1.0 GiB, 55 MiB/s, 10 s left")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["models", "eval", "only-a-model"], "needs a MODEL and a SUITE"),
        (["models", "route", "fast", "--list"], "--list lists every profile"),
    ],
)
def test_arguments_that_make_no_sense_together_are_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is asked of a service, with the way out."""
    assert app.main(arguments) == exits.USAGE
    assert words in capsys.readouterr().err


def test_lists_of_numbers_are_checked_by_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    """A word among the numbers is named."""
    with pytest.raises(SystemExit) as left:
        app.main(["models", "bench", "m", "--prompt", "32,many"])

    assert left.value.code == exits.USAGE
    assert "'32,many' is not a list of whole numbers" in capsys.readouterr().err
