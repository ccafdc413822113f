"""The board of `olympus top`: samples and keys in, frames and effects out."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.cli.output import columns_of
from bus.cli.screen import Pasted, plain
from bus.cli.top.board import Board, Effect, Show
from bus.cli.top.frames import frame, overview_lines, tabulated
from bus.cli.top.looking import Sample, rates
from bus.cli.top.tables import VIEWS, arranged, listing
from schemas import catalog
from schemas.bodies.control import BrokerStats, ServiceInfo, WorkerInfo
from schemas.bodies.errors import ErrorGroup, ErrorStatsReply, ErrorWhole, ServiceErrors
from schemas.bodies.learning_jobs import JobInfo, JobProgress
from schemas.bodies.model import ModelInfo, ModelKeep, ModelLoad, ModelUnload
from schemas.bodies.resource import DeviceStatus, GpuStatusReply

GIB = 2**30


def stats(**more: Any) -> BrokerStats:
    """A broker with nothing wrong."""
    counters: dict[str, Any] = dict.fromkeys(BrokerStats.__struct_fields__, 0)
    return BrokerStats(**{**counters, "boot": "b", "uptime_s": 60.0, "subscribers": [], "log_failed": None, **more})


def service(name: str, **more: Any) -> ServiceInfo:
    """A service that serves all of its part of the catalogue."""
    subjects = [each.subject for each in catalog.OPERATIONS.values() if each.service == name]
    facts = {"instances": 1, "capacity": 64, "in_flight": 0, "queued": 0, "answered": 100, "failed": 0}
    return ServiceInfo(**{**facts, "service": name, "p50_s": 0.001, "p99_s": 0.02, "subjects": subjects, **more})


def worker(name: str, **more: Any) -> WorkerInfo:
    """One instance of a service."""
    facts: dict[str, Any] = {
        "service": name,
        "instance": f"{name}-1",
        "subjects": [],
        "capacity": 64,
        "in_flight": 0,
        "state": "serving",
        "version": "1",
        "host": "pc",
        "pid": 4711,
        "joined_at": 0.0,
        "heard_s": 0.1,
        "answered": 100,
        "failed": 0,
    }
    return WorkerInfo(**{**facts, **more})


def model(name: str, **more: Any) -> ModelInfo:
    """A model of the catalogue."""
    facts: dict[str, Any] = {"family": "llama", "format": "gguf", "quantisation": "Q4", "parameters": 1_000_000}
    return ModelInfo(**{**facts, "name": name, "size_bytes": GIB, "context_tokens": 4096, "state": "available", **more})


def job(job_id: str = "job-1", **more: Any) -> JobInfo:
    """A training at work."""
    progress = JobProgress(job_id=job_id, model="tiny", phase="training", step=40, steps=100, loss=1.25, eta_s=90.0)
    facts: dict[str, Any] = dict.fromkeys(("reason", "device", "adapter", "adapter_path", "verdict"), "")
    facts |= {
        "model": "tiny",
        "dataset": "greetings",
        "version": 2,
        "state": "training",
        "priority": 3,
        "promote": "ask",
    }
    facts |= {"created_at": 1.0, "started_at": 2.0, "finished_at": None, "spent_s": 9.0, "attempts": 1, "rung": 0}
    return JobInfo(**{**facts, "job_id": job_id, "config": {}, "opportunities": [], "progress": progress, **more})


def group(fingerprint: str = "5f0c2b66aa", **more: Any) -> ErrorGroup:
    """Errors that nobody has seen."""
    facts: dict[str, Any] = {"service": "memory", "severity": "error", "kind": "DiskFull", "message": "no room"}
    facts |= {"state": "open", "count": 12, "per_minute": 0.4, "first_at": 1.0, "last_at": 90.0}
    return ErrorGroup(**{**facts, "fingerprint": fingerprint, **more})


def errors(**more: Any) -> ErrorStatsReply:
    """Twelve errors in ten minutes."""
    of = ServiceErrors(service="memory", count=12, per_minute=1.2, open_groups=1, worst="error", last_at=90.0)
    facts: dict[str, Any] = {"services": [of], "count": 12, "groups": 2, "open_groups": 1, "muted_groups": 0}
    return ErrorStatsReply(**{**facts, "by_severity": {}, **more})


DEVICES = GpuStatusReply(
    devices=[
        DeviceStatus(
            device="gpu0",
            name="Test GPU",
            source="nvml",
            state="ok",
            total_bytes=8 * GIB,
            used_bytes=2 * GIB,
            reserved_bytes=GIB,
            free_bytes=6 * GIB,
            temperature_c=61.0,
        )
    ]
)

MODELS = [
    model("tiny", state="loaded", device="gpu0", memory_bytes=GIB, in_flight=2),
    model("big"),
    model("broken", state="unusable", error="its file is cut short"),
    model("old", state="loaded", is_pinned=True, device="cpu"),
]


def sample(at: float = 1.0, **more: Any) -> Sample:
    """A look at a bus with everything on it."""
    facts: dict[str, Any] = {
        "stats": stats(),
        "services": [service("memory"), service("model")],
        "workers": [worker("memory"), worker("model")],
        "models": MODELS,
        "devices": DEVICES,
        "jobs": [job()],
        "errors": errors(),
        "groups": [group()],
        "wall": 100.0,
    }
    return Sample(**{**facts, "at": at, **more})


def board_of(view: str = "overview", **more: Any) -> Board:
    """A board that has looked once and shows a view."""
    board = Board()
    board.took(sample(**more), None)
    board.press(str(VIEWS.index(view) + 1))  # type: ignore[arg-type]
    return board


def shown(board: Board, width: int = 100, height: int = 30, now: float = 5.0) -> list[str]:
    """A frame as text."""
    return [plain(row).rstrip() for row in frame(board, width, height, now)[0]]


def test_the_overview_has_something_of_everything() -> None:
    """Traffic, errors, devices, services, models in memory, jobs at work and workers."""
    text = "\n".join(shown(board_of(), 100, 40))

    for part in ("requests -/s", "errors 1.2 a minute", "gpu0  25% [#####", "SERVICE", "tiny", "job-1", "memory-1"):
        assert part in text
    assert "big" not in text
    assert "gateway   not running" in text


def test_in_a_low_window_the_overview_begins_with_what_is_wrong_and_the_services() -> None:
    """And says how much more there is; down goes there."""
    limping = worker("memory", degraded={"encoder": "no model"})
    board = board_of(workers=[limping])

    lines = shown(board, 80, 10)
    assert lines[2] == "! memory memory-1: encoder: no model"
    assert lines[4].startswith("SERVICE")
    assert "more lines" in lines[-2]
    for _ in range(30):
        board.press("page-down")
        lines = shown(board, 80, 10)
    assert lines[-2].endswith("memory-1")
    board.press("home")
    assert shown(board, 80, 10)[2] == "! memory memory-1: encoder: no model"


def test_rates_of_services_come_from_two_looks() -> None:
    """Answers and failures per second; of a restarted broker nothing is compared."""
    before, now = sample(1.0), sample(3.0, services=[service("memory", answered=140, failed=6)])

    rate = rates(before, now)

    assert rate is not None
    assert (rate.answered["memory"], rate.failed["memory"]) == (20.0, 3.0)
    row = next(entry for entry in listing("services", now, rate).entries if entry.key == "memory")
    assert row.cells[:3] == ("memory", "serving", "20")
    assert row.cells[7] == "3.0"


def test_keys_go_through_the_views() -> None:
    """By number, Tab and arrows; where one was in a view is kept."""
    board = board_of("models")
    board.press("down")
    seen = [board.view]
    for key in ("tab", "right", "back-tab", "left", "5", "3"):
        board.press(key)
        seen.append(board.view)

    assert seen == ["models", "jobs", "errors", "jobs", "models", "errors", "models"]
    assert board.selected(board.entries()) == 1


def test_the_selection_stays_with_its_row_when_rows_move() -> None:
    """By sorting or because the next look brings others; when it has gone its neighbour is selected."""
    board = board_of("models")
    board.press("down")
    key = board.entries()[board.selected(board.entries())].key
    board.press("r")
    assert board.entries()[board.selected(board.entries())].key == key
    board.took(sample(2.0, models=[each for each in MODELS if each.name != key]), None)
    assert board.entries()[board.selected(board.entries())].key != key
    board.took(sample(3.0, models=[]), None)
    assert "there is no model" in "\n".join(shown(board))


def test_rows_are_filtered_and_sorted() -> None:
    """A filter is typed after /, and its letters steer nothing; s goes through the columns and back to the first order."""
    board = board_of("models")
    for key in ("/", "q", "backspace", "O", Pasted("l\n"), "enter"):
        assert board.press(key) is None
    assert [entry.key for entry in board.entries()] == ["old"]
    assert "/Ol" in shown(board)[-1]
    board.press("esc")
    assert len(board.entries()) == 4

    orders = []
    for _ in range(10):
        board.press("s")
        orders.append([entry.key for entry in board.entries()])
    assert orders[0] == ["big", "broken", "old", "tiny"]
    assert orders[3][0] == "tiny"
    assert orders[-1] == [entry.key for entry in board_of("models").entries()]


def test_workers_stay_below_their_service() -> None:
    """However services are sorted; a filter for a worker keeps its service, one for a service its workers."""
    entries = listing("services", sample(), None).entries

    keys = [entry.key for entry in arranged(entries, 0, is_reversed=True, wanted="")]
    assert keys[keys.index("memory") + 1] == "memory/memory-1"
    assert [entry.key for entry in arranged(entries, None, is_reversed=False, wanted="model-1")] == [
        "model",
        "model/model-1",
    ]
    assert [entry.key for entry in arranged(entries, None, is_reversed=False, wanted="MEMORY")] == [
        "memory",
        "memory/memory-1",
    ]


@pytest.mark.parametrize(
    ("view", "row", "key", "subject", "body"),
    [
        ("models", "tiny", "u", "model.unload", ModelUnload(model="tiny")),
        ("models", "big", "l", "model.load", ModelLoad(model="big")),
        ("models", "tiny", "k", "model.keep", ModelKeep(model="tiny", is_pinned=True)),
        ("models", "old", "k", "model.keep", ModelKeep(model="old", is_pinned=False)),
        ("jobs", "job-1", "x", "learning.training.stop", None),
        ("errors", "5f0c2b66aa", "a", "error.acknowledge", None),
    ],
)
def test_an_action_is_asked_once_more_before_it_is_done(view: str, row: str, key: str, subject: str, body: Any) -> None:
    """y does it; every other key, a paste of y included, does not."""
    board = board_of(view)
    board.place.key = row

    assert board.press(key) is None
    assert shown(board)[-1].endswith("? [y/n]")
    assert shown(board, 20)[-1].endswith("[y/n]")
    assert board.press(Pasted("y")) is None
    effect = board.press("y")
    assert isinstance(effect, Effect)
    assert effect.subject == subject
    assert body is None or effect.body == body
    msgspec.convert(msgspec.to_builtins(effect.body), catalog.OPERATIONS[effect.subject].request)

    board.press(key)
    assert board.press("q") is None
    assert board.said == "not done"
    assert board.press("y") is None


@pytest.mark.parametrize(
    ("view", "row", "key", "why"),
    [
        ("models", "big", "u", "big is not in memory"),
        ("models", "tiny", "l", "tiny is loaded already"),
        ("models", "broken", "l", "cannot be used: its file is cut short"),
        ("jobs", "job-2", "x", "has ended already"),
    ],
)
def test_what_cannot_be_done_is_said_and_not_asked(view: str, row: str, key: str, why: str) -> None:
    """The foot says why."""
    board = board_of(view, jobs=[job(), job("job-2", state="promoted")])
    board.place.key = row
    board.press(key)

    assert board.asked is None
    assert why in shown(board)[-1]


def test_enter_shows_all_that_is_known_of_a_row() -> None:
    """Of errors it is asked for first; Esc goes back to the list."""
    for view, word in (("services", "serves:"), ("models", "parameters"), ("jobs", "greetings version 2")):
        board = board_of(view)
        assert board.press("enter") is None
        assert any(word in line for line in shown(board)), view
        assert board.press("esc") is None
        assert not any(word in line for line in shown(board)), view

    board = board_of("errors")
    assert board.press("enter") == Show("5f0c2b66aa")
    assert "asking ..." in shown(board)
    board.whole = ErrorWhole(group=group(), reports=[], hours=[0] * 23 + [12])
    assert any("DiskFull" in line or "12, 0.4 a minute" in line for line in shown(board))


def test_a_broker_that_is_away_is_said_over_what_was_seen_last() -> None:
    """And forgotten once it answers again; before the first look there is nothing but that."""
    board = board_of("models")
    board.lost(10.0, "refused")
    board.lost(11.0, "refused again")
    lines = shown(board, now=14.0)
    assert lines[0].startswith("! no broker for 4 s, asking again: refused again")
    assert any("tiny" in line for line in lines)
    board.took(sample(20.0), None)
    assert "no broker" not in "\n".join(shown(board))

    first = Board()
    first.lost(0.0, "refused")
    assert "no broker" in shown(first)[0]


def test_a_service_that_does_not_answer_is_named_in_its_view() -> None:
    """Each of the others goes on."""
    gone = {"models": None, "devices": None, "jobs": None, "errors": None, "groups": None}
    for view, word in (("models", "model service"), ("jobs", "learning service"), ("errors", "error service")):
        assert f"the {word} does not answer" in "\n".join(shown(board_of(view, **gone)))
    assert "SERVICE" in "\n".join(overview_lines(sample(**gone), None, 80))


def test_help_lists_the_keys_and_any_key_leaves_it() -> None:
    """Also one that would do something elsewhere."""
    board = board_of("models")
    board.press("?")
    assert any("l load, u unload" in line for line in shown(board))
    assert board.press("q") is None
    assert not board.is_help
    assert board.press("q") == "quit"


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (None, ["NAME      COUNT  WHAT", "aaaaaaaa  1,234  a long text", "b             5  c"]),
        (26, ["NAME      COUNT  WHAT", "aaaaaaaa  1,234  a long t…", "b             5  c"]),
        (20, ["NAME      COUNT", "aaaaaaaa  1,234", "b             5"]),
        (13, ["NAME", "aaaaaaaa", "b"]),
    ],
)
def test_a_number_is_shown_whole_or_not_at_all(width: int | None, lines: list[str]) -> None:
    """The first columns stay longest; a text may be cut."""
    assert tabulated(("NAME", "COUNT", "WHAT"), [("aaaaaaaa", "1,234", "a long text"), ("b", "5", "c")], width) == lines


NAMES = st.text(st.sampled_from("ab-日é\x1b\n\t "), min_size=1, max_size=40)
KEYS = st.sampled_from(
    [
        "1",
        "2",
        "3",
        "4",
        "5",
        "up",
        "down",
        "page-down",
        "end",
        "enter",
        "esc",
        "/",
        "s",
        "r",
        "?",
        " ",
        "u",
        "l",
        "x",
        "y",
        "a",
    ]
)


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(NAMES, min_size=1, max_size=12, unique=True),
    keys=st.lists(KEYS, max_size=12),
    width=st.one_of(st.sampled_from([20, 40, 80, 200]), st.integers(1, 220)),
    height=st.one_of(st.integers(5, 50), st.integers(1, 4)),
    is_away=st.booleans(),
)
def test_no_frame_is_wider_or_higher_than_its_window(
    names: list[str], keys: list[str], width: int, height: int, is_away: bool
) -> None:
    """Whatever things are called and whichever keys are pressed; the cursor is within it, too."""
    board = Board()
    now = sample(
        2.0,
        services=[service("memory"), *(service(name) for name in names)],
        workers=[worker("memory", instance=name, degraded={name: name}) for name in names],
        models=[model(name, state="loaded") for name in names],
        jobs=[job(name, reason=name) for name in names],
        groups=[group(f"{place:08x}", message=name) for place, name in enumerate(names)],
    )
    board.took(now, rates(sample(1.0), now))
    if is_away:
        board.lost(0.0, "\n".join(names))
    for key in ["", *keys]:
        board.press(key)
        rows, cursor = frame(board, width, height, 9.0)
        assert len(rows) == height
        assert all(columns_of(plain(row)) <= width for row in rows)
        assert cursor is None or (0 <= cursor[0] < width and cursor[1] == height - 1)
        entries = board.entries()
        if entries and board.view != "overview" and not board.is_detail and not board.is_help and height >= 8:
            assert entries[board.selected(entries)].key == board.place.key
