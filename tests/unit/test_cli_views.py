"""What status, top, tap and req make of what the broker says."""

from __future__ import annotations

from typing import Any

import pytest

from bus.cli import req, status, tap
from bus.cli.failures import UsageError
from bus.cli.output import columns_of
from bus.cli.screen import plain
from bus.cli.top.board import Board
from bus.cli.top.frames import frame, overview_lines
from bus.cli.top.looking import Sample, rates
from bus.watching import Exchange, subject_filter
from schemas import catalog
from schemas.bodies.control import BrokerStats, LoggedEvent, ServiceInfo, SubscriberStats, WorkerInfo
from schemas.bodies.model import ModelInfo

# Services of the catalogue beside memory and the broker's own, in its order.
OTHERS = ["model", "resource", "learning", "error", "exporter", "gateway"]


def service(name: str = "memory", **more: Any) -> ServiceInfo:
    """A service that serves all of its part of the catalogue."""
    plain = {
        "service": name,
        "instances": 1,
        "capacity": 256,
        "in_flight": 0,
        "queued": 0,
        "answered": 1_000,
        "failed": 0,
        "p50_s": 0.0004,
        "p99_s": 0.0021,
        "subjects": [each.subject for each in catalog.OPERATIONS.values() if each.service == name],
    }
    return ServiceInfo(**{**plain, **more})


def worker(**more: Any) -> WorkerInfo:
    """A healthy memory worker."""
    plain = {
        "service": "memory",
        "instance": "pc-1-4711",
        "subjects": ["memory.>"],
        "capacity": 256,
        "in_flight": 0,
        "state": "serving",
        "version": "0.1.0",
        "host": "pc-1",
        "pid": 4711,
        "joined_at": 0.0,
        "heard_s": 0.2,
        "answered": 1_000,
        "failed": 0,
        "rss_bytes": 40 * 1024**2,
        "cpu_s": 1.0,
    }
    return WorkerInfo(**{**plain, **more})


def stats(**more: Any) -> BrokerStats:
    """A broker with nothing wrong."""
    counters = {
        name: 0
        for name in BrokerStats.__struct_fields__
        if name not in ("boot", "subscribers", "log_failed", "uptime_s")
    }
    return BrokerStats(**{"boot": "b", "uptime_s": 60.0, "subscribers": [], **counters, **more})


def test_services_of_the_catalogue_that_nobody_serves_are_not_running() -> None:
    """The broker's own services are never listed so."""
    services = [service("memory")]

    assert status.not_running(services) == OTHERS
    names = [line.split("  ")[0] for line in status.service_lines(services)[1:]]
    assert names == ["memory", *OTHERS]
    assert "not running" in status.service_lines(services)[2]


def test_a_service_that_serves_only_a_part_is_told() -> None:
    """A missing operation is named; the service counts as running."""
    partly = service("model", subjects=["model.list", "model.c*", "model.chat@demo"])
    services = [service("memory"), partly, *(service(name) for name in OTHERS if name != "model")]

    found = status.problems(services, [], stats())

    assert status.not_running(services) == []
    assert len(found) == 1
    assert "nobody serves" in found[0]
    assert "model.generate" in found[0]


def test_one_look_names_everything_that_is_wrong() -> None:
    """Backlog, stalled loop, slow subscriber, failed log and dead letters each get a sentence."""
    slow = SubscriberStats(peer="1.2.3.4:5", patterns=["memory.>"], delivered=1, dropped=3, pending_bytes=0)
    others = [service(name) for name in OTHERS]
    services = [service("memory", queued=9, in_flight=256), *others]

    found = status.problems(
        services, [worker(loop_lag_s=1.5)], stats(subscribers=[slow], log_failed="disk full", dead_letters=1)
    )

    assert [line.split(":")[0].split(" ")[0] for line in found] == ["memory", "memory", "subscriber", "the", "1"]
    well = [service("memory"), *others]
    assert status.problems(well, [worker()], stats()) == []


def sample(at: float, **more: Any) -> Sample:
    """A look at a bus with one service and one worker."""
    plain: dict[str, Any] = {"stats": stats(), "services": [service()], "workers": [worker()], "models": None}
    return Sample(at=at, **{**plain, **more})


def test_what_a_worker_does_without_is_named_with_the_reason() -> None:
    """By status among what is wrong and by top above its tables, in one line that cannot drive a terminal."""
    limping = worker(degraded={"encoder": "no model\n\x1b[2J in models/"})

    wrong = status.problems([service(name) for name in ("memory", *OTHERS)], [limping], stats())
    shown = overview_lines(sample(1.0, workers=[limping]), None, 80)

    line = next(line for line in wrong if "encoder" in line)
    assert line == "memory pc-1-4711: encoder: no model \\x1b[2J in models/"
    assert shown.index(f"! {line}") < next(at for at, row in enumerate(shown) if row.startswith("SERVICE"))


def test_rates_are_differences_of_counters_over_time() -> None:
    """Requests, events, answers and CPU count between two looks."""
    before = sample(10.0)
    now = sample(
        12.0,
        stats=stats(requests=20, events=4),
        services=[service(answered=1_100)],
        workers=[worker(answered=1_100, cpu_s=2.0)],
    )

    rate = rates(before, now)

    assert rate is not None
    assert (rate.requests, rate.events, rate.answered) == (10.0, 2.0, {"memory": 50.0})
    assert (rate.worker_answered, rate.worker_cpu) == ({"memory/pc-1-4711": 50.0}, {"memory/pc-1-4711": 50.0})


def test_rates_start_anew_with_a_restarted_broker() -> None:
    """Counters of another boot are not compared."""
    assert rates(None, sample(1.0)) is None
    assert rates(sample(1.0), sample(2.0, stats=stats(boot="other"))) is None


@pytest.mark.parametrize(("width", "height"), [(60, 24), (60, 8), (200, 50)])
def test_a_frame_stays_within_the_terminal(width: int, height: int) -> None:
    """No line is wider and no frame is higher than the window; at 60 columns all figures of a service are visible."""
    model = ModelInfo(
        name="olympus-demo",
        family="llama",
        format="gguf",
        quantisation="F16",
        parameters=1,
        size_bytes=5_000_000,
        context_tokens=512,
        state="loaded",
    )
    now = sample(2.0, models=[model], workers=[worker(instance=f"a-rather-long-host-name-{n}") for n in range(9)])

    board = Board()
    board.took(now, rates(sample(1.0), now))
    lines = [plain(row) for row in frame(board, width, height, 2.0)[0]]

    assert all(columns_of(line) <= width for line in lines)
    assert len(lines) <= height
    assert any(line.startswith("memory") and line.endswith("2.10") for line in lines)


def test_noise_is_hidden_unless_asked_for() -> None:
    """`>` leaves out bus.stats, traces and figures; naming them brings them back; --ignore takes out more."""
    everything = subject_filter([">"], [])
    bus = subject_filter(["bus.>"], ["bus.worker.*"])
    traces = subject_filter(["bus.trace.>"], [])

    shown = [everything(subject) for subject in ("memory.changed.kv", "bus.stats", "bus.trace.final", "metrics.bus")]
    assert shown == [True, False, False, False]
    assert subject_filter(["metrics.>"], [])("metrics.bus")
    assert [bus(subject) for subject in ("bus.stats", "bus.worker.joined", "bus.trace.final")] == [True, False, False]
    assert traces("bus.trace.final")
    assert not traces("memory.changed.kv")


def test_an_event_line_is_whole_in_a_pipe_and_cut_in_a_terminal() -> None:
    """Time, sequence, subject and body stand on one line."""
    event = LoggedEvent(seq=42, at=0.5, subject="memory.changed.kv", source="w", id="i", body={"key": "x" * 300})

    whole = tap.event_line(event, shape="full", width=None)

    assert "42  memory.changed.kv  " in whole
    assert whole.endswith('x"}')
    assert len(tap.event_line(event, shape="full", width=80)) == 80
    assert "xxx" not in tap.event_line(event, shape="headers", width=None)


def test_an_exchange_line_tells_time_outcome_bytes_and_worker() -> None:
    """An unanswered request shows no reply."""
    done = Exchange(
        id="1",
        subject="memory.kv.get",
        at=0,
        outcome="ok",
        took_s=0.0005,
        request_bytes=9,
        reply_bytes=70,
        worker="m/1",
    )
    waiting = Exchange(id="2", subject="memory.kv.get", at=0, request_bytes=9)

    assert "0.50 ms  ok                 9 B -> 70 B  m/1" in tap.exchange_line(done, None)
    assert "unanswered         9 B" in tap.exchange_line(waiting, None)


@pytest.mark.parametrize(
    ("subject", "body", "address"),
    [
        ("model.chat", {"model": "demo"}, "model.chat@demo"),
        ("model.generate", {"model": "demo"}, "model.generate@demo"),
        ("model.chat", {"messages": []}, "model.chat"),
        ("model.chat@x", {"model": "demo"}, "model.chat@x"),
        ("model.load", {"model": "demo"}, "model.load"),
    ],
)
def test_a_generation_is_addressed_to_the_model_it_names(subject: str, body: Any, address: str) -> None:
    """Only generations go to a runner, and an address written out stays."""
    assert req.address(subject, body) == address


GENERATION = {
    "model": "demo",
    "text": "Hello, Ada.",
    "token_ids": [1, 2],
    "finish_reason": "stop",
    "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    "timings": {"prompt_s": 0.1, "generate_s": 0.1, "first_token_s": 0.02, "tokens_per_s": 20.0, "load_s": 0.0},
}


def test_streamed_text_runs_on_and_its_figures_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """Pieces are joined without line breaks, and the final's text is not printed a second time."""
    printer = req.TextPrinter(is_raw=False)
    printer.partial({"text": "Hello, ", "token_ids": [1]})
    printer.partial({"text": "Ada.", "token_ids": [2]})
    printer.final(GENERATION)
    printer.close()

    printed = capsys.readouterr()
    assert printed.out == "Hello, Ada.\n"
    assert printed.err == "olympus: demo · 3 + 2 tokens · first after 20 ms · 20 tokens/s · ended by stop\n"


def test_an_answer_that_did_not_stream_is_printed_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """A final reply without partials shows its text; raw leaves the figures out."""
    req.TextPrinter(is_raw=True).final(GENERATION)

    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("Hello, Ada.\n", "")


def test_other_replies_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Indented for people, one line with --raw, one tagged line per reply with --json."""
    req.TextPrinter(is_raw=False).final({"a": 1})
    req.TextPrinter(is_raw=True).final({"a": 1})
    req.JsonPrinter().partial({"a": b"\x01"})

    assert capsys.readouterr().out == '{\n  "a": 1\n}\n{"a":1}\n{"kind":"partial","body":{"a":"AQ=="}}\n'


def test_a_broken_stream_ends_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    """After an error midway the prompt starts on a line of its own."""
    printer = req.TextPrinter(is_raw=False)
    printer.partial({"text": "Hel"})
    printer.close()

    assert capsys.readouterr().out == "Hel\n"


@pytest.mark.parametrize(
    "argv", [["--no-follow"], ["--count", "0"], ["--requests", "--raw"], ["--requests", "--since", "1m"]]
)
def test_tap_refuses_options_that_make_no_sense_together(argv: list[str]) -> None:
    """Each is a usage error before anything is connected."""
    from bus.cli import app

    command = app.find("tap")
    assert command is not None
    with pytest.raises(UsageError):
        tap.run(app.command_parser(command).parse_args(argv))


def test_the_list_holds_every_operation(capsys: pytest.CaptureFixture[str]) -> None:
    """`req --list` is the catalogue."""
    from bus.cli import app

    assert app.main(["req", "--list"]) == 0

    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == list(catalog.OPERATIONS)


def test_describing_an_unknown_operation_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code tells scripts, the text tells people."""
    from bus.cli import app

    assert app.main(["req", "memory.kv.gte", "--describe"]) == 1
    assert "did you mean memory.kv.get" in capsys.readouterr().err


def test_a_description_shows_fields_types_and_limits(capsys: pytest.CaptureFixture[str]) -> None:
    """Nested bodies are spelt out, and --json gives a JSON Schema of all of them."""
    import json

    from bus.cli import app

    assert app.main(["req", "model.chat", "--describe"]) == 0
    text = capsys.readouterr().out
    assert app.main(["req", "model.chat", "--describe", "--json"]) == 0
    schema = json.loads(capsys.readouterr().out)

    assert "temperature" in text
    assert ">= 0, <= 10" in text
    assert "ChatMessage:" in text
    assert {"Chat", "ChatMessage", "GenerationPart", "Generation"} <= set(schema["$defs"])
    assert schema["request"] == {"$ref": "#/$defs/Chat"}
