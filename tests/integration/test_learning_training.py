"""Trainings of the shipped model in real processes: what is kept, what goes on, what is refused."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="training needs the packages of the extra 'learning'")

from bus.device_lock import DeviceLock
from bus.supervisor import process_stat
from tests.training_rows import BASE, Trainers, rows, spec_of, write_rows
from workers.learning.training.base import fingerprint
from workers.learning.training.checkpoints import list_checkpoints
from workers.learning.training.messages import (
    AnyMessage,
    CheckpointFailed,
    CheckpointSaved,
    Climbed,
    Evaluated,
    Finished,
    Planned,
    Prepared,
    Progress,
    Skipped,
    Stopped,
    Waited,
)
from workers.learning.training.spec import Lora, Rung, StopRules, TrainSpec
from workers.learning.training.training import TrainingRun

WAIT_S = 60.0


@pytest.fixture(scope="module")
def trainers() -> Iterator[Trainers]:
    """One warm parent for all tests of this file."""
    made = Trainers()
    try:
        yield made
    finally:
        made.close()


def of_kind(said: list[AnyMessage], kind: type) -> list[Any]:
    return [message for message in said if isinstance(message, kind)]


def exact(folder: Path, **changes: Any) -> TrainSpec:
    """A training in which everything that may drift would show: dropout, accumulation, more than one epoch."""
    changes = {"lora": Lora(dropout=0.1), "max_steps": 7, "rung": Rung(micro_batch=2), "save_every_steps": 2, **changes}
    return spec_of(folder, **changes)


@pytest.fixture(scope="module")
def undisturbed(
    trainers: Trainers, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Finished, list[AnyMessage], Path]:
    """The exact training from its beginning to its end."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_rows(folder, rows(12))
    ended, said = trainers.train(exact(folder), folder)
    assert ended.how == "finished", ended
    assert ended.finished is not None
    return ended.finished, said, folder


def test_adapter_folder_holds_safetensors_and_no_pickle(undisturbed: tuple[Finished, list[AnyMessage], Path]) -> None:
    """What leaves the job is configuration, weights and a manifest, and no checkpoint holds a pickle either."""
    finished, said, folder = undisturbed

    assert sorted(path.name for path in Path(finished.adapter).iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    ]
    config = json.loads((Path(finished.adapter) / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "olympus-demo"
    assert config["r"] == 8
    assert not [path for path in folder.rglob("*") if path.suffix in (".pt", ".pth", ".bin", ".pkl")]
    assert finished.base_sha256 == fingerprint(BASE)
    planned = of_kind(said, Planned)[0]
    assert (planned.micro_batch, planned.accumulation, planned.processes, planned.steps) == (2, 2, 1, 7)
    progress = of_kind(said, Progress)
    assert progress[-1].step == 7
    assert progress[-1].tokens_per_s > 0
    assert all(one.tokens > 0 for one in progress)
    assert progress[-1].memory_bytes > 100 * 2**20
    assert len(list_checkpoints(folder / "checkpoints")) == 2


def test_stopped_training_goes_on_bit_for_bit(
    trainers: Trainers, undisturbed: tuple[Finished, list[AnyMessage], Path], tmp_path: Path
) -> None:
    """A training stopped wherever it was ends with the very adapter of one that was not."""
    write_rows(tmp_path, rows(12))
    spec = exact(tmp_path, save_every_steps=None, job_id=undisturbed[2].name)
    stops = 0

    def stop_soon(run: TrainingRun, message: AnyMessage) -> None:
        if isinstance(message, Progress):
            run.stop()

    ended, said = trainers.train(spec, tmp_path, stop_soon)
    while ended.how == "stopped":
        stops += 1
        assert of_kind(said, Stopped)[0].checkpoint == ended.checkpoint is not None
        ended, said = trainers.train(spec, tmp_path, stop_soon if stops < 3 else lambda run, message: None)
        assert of_kind(said, Planned)[0].from_step > 0

    assert stops >= 1
    assert ended.finished is not None
    assert ended.finished.sha256 == undisturbed[0].sha256


def test_kill_and_torn_checkpoint_lose_steps_and_nothing_else(
    trainers: Trainers, undisturbed: tuple[Finished, list[AnyMessage], Path], tmp_path: Path
) -> None:
    """After kill -9 a torn checkpoint is passed over with the reason, and the end is the same."""
    write_rows(tmp_path, rows(12))
    spec = exact(tmp_path)

    def kill_at_4(run: TrainingRun, message: AnyMessage) -> None:
        if isinstance(message, CheckpointSaved) and message.step == 4:
            run.kill()

    ended, _ = trainers.train(spec, tmp_path, kill_at_4)
    assert ended.how == "lost"
    newest = list_checkpoints(tmp_path / "checkpoints")[-1]
    weights = newest.path / "optimizer.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)

    ended, said = trainers.train(spec, tmp_path)

    assert [(message.name, "changed" in message.reason) for message in of_kind(said, Skipped)] == [(newest.name, True)]
    assert of_kind(said, Planned)[0].from_step == newest.step - 2
    assert ended.finished is not None
    assert ended.finished.sha256 == undisturbed[0].sha256


def test_training_that_was_killed_after_its_last_step_trains_no_step_more(
    trainers: Trainers, undisturbed: tuple[Finished, list[AnyMessage], Path], tmp_path: Path
) -> None:
    """With a checkpoint of the last step only the adapter is written."""
    write_rows(tmp_path, rows(12))
    spec = exact(tmp_path, save_every_steps=7)
    trainers.train(spec, tmp_path)
    shutil.rmtree(tmp_path / "adapter")

    ended, said = trainers.train(spec, tmp_path)

    assert not of_kind(said, Progress)
    assert ended.finished is not None
    assert ended.finished.sha256 == undisturbed[0].sha256


def test_preferences_are_trained_with_dpo_from_an_earlier_adapter(
    trainers: Trainers, undisturbed: tuple[Finished, list[AnyMessage], Path], tmp_path: Path
) -> None:
    """Where every row has a rejected answer DPO goes on from the adapter before, and keeps the best evaluation."""
    write_rows(tmp_path, rows(20, preferences=True))
    spec = spec_of(
        tmp_path,
        previous=undisturbed[0].adapter,
        max_steps=4,
        stop=StopRules(patience=3, evaluate_every_steps=2, evaluation_share=0.2),
        memory_budget_bytes=4 * 2**30,
    )

    ended, said = trainers.train(spec, tmp_path)

    assert ended.finished is not None, ended
    prepared = of_kind(said, Prepared)[0]
    assert (prepared.method, prepared.rows, prepared.evaluation_rows) == ("dpo", 16, 4)
    losses = {message.step: message.loss for message in of_kind(said, Evaluated)}
    assert ended.finished.best_loss == min(losses.values())
    assert losses[4] < 0.69
    planned = of_kind(said, Planned)[0]
    assert planned.peak_bytes is not None
    assert 0 < planned.peak_bytes < spec.memory_budget_bytes  # type: ignore[operator]


def test_budget_that_is_too_small_climbs_the_ladder_to_its_end(trainers: Trainers, tmp_path: Path) -> None:
    """Each rung is tried in a process of its own, and then the job needs a larger budget."""
    write_rows(tmp_path, rows(8))
    spec = spec_of(tmp_path, max_length=64, memory_budget_bytes=100 * 2**20)

    ended, said = trainers.train(spec, tmp_path)

    assert (ended.how, ended.kind) == ("out_of_memory", "memory")
    assert "the budget is 100.0 MiB" in ended.reason
    assert [message.rung for message in of_kind(said, Climbed)] == [
        Rung(level=1, micro_batch=1, activation_checkpointing=True)
    ]
    assert ended.spec.rung.level == 1


def test_memory_chooses_the_micro_batch(trainers: Trainers, tmp_path: Path) -> None:
    """With little more than one row takes, steps are made of fewer rows at a time, and are the same steps."""
    long = [{"prompt": "sea " * 150, "answer": "wind " * 30} for _ in range(8)]
    write_rows(tmp_path, long)
    roomy = trainers.train(spec_of(tmp_path, max_steps=1, memory_budget_bytes=8 * 2**30), tmp_path)[1]
    wide = of_kind(roomy, Planned)[0]

    tight = trainers.train(spec_of(tmp_path, max_steps=1, memory_budget_bytes=wide.peak_bytes), tmp_path)[1]

    narrow = of_kind(tight, Planned)[0]
    assert wide.micro_batch == 4
    assert narrow.micro_batch < 4
    assert narrow.micro_batch * narrow.accumulation == 4
    assert narrow.peak_bytes < wide.peak_bytes


def test_memory_that_runs_out_in_mid_training_goes_on_with_less(trainers: Trainers, tmp_path: Path) -> None:
    """An allocation that fails after some steps leads to the next rung, from the last checkpoint."""
    write_rows(tmp_path, [{"prompt": "sea " * 150, "answer": f"wind {number}"} for number in range(8)])
    spec = spec_of(tmp_path, max_steps=4, save_every_steps=1, rung=Rung(micro_batch=4))

    def take_memory(run: TrainingRun, message: AnyMessage) -> None:
        if isinstance(message, CheckpointSaved) and message.step == 1 and not limited:
            assert run.pid is not None
            limited.append(run.pid)
            size = int(Path(f"/proc/{run.pid}/statm").read_text().split()[0]) * resource.getpagesize()
            resource.prlimit(run.pid, resource.RLIMIT_AS, (size // 2, size // 2))

    limited: list[int] = []
    ended, said = trainers.train(spec, tmp_path, take_memory)

    assert ended.how == "finished", ended
    assert of_kind(said, Climbed)[0].rung.micro_batch == 2
    assert [message.from_step > 0 for message in of_kind(said, Planned)] == [False, True]


def test_loss_that_is_no_number_ends_with_the_reason(trainers: Trainers, tmp_path: Path) -> None:
    """Weights that give no number are told of at the first step, and nothing is kept of it."""
    from safetensors.numpy import load_file, save_file

    base = tmp_path / "base"
    shutil.copytree(BASE, base)
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * float("nan")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    job = tmp_path / "job"
    write_rows(job, rows(8))

    ended, _ = trainers.train(spec_of(job, base=str(base), save_every_steps=1), job)

    assert (ended.how, ended.kind) == ("failed", "loss")
    assert "step 1" in ended.reason
    assert not list_checkpoints(job / "checkpoints")


def test_full_disk_costs_a_checkpoint_and_then_says_so(trainers: Trainers, tmp_path: Path) -> None:
    """A checkpoint that cannot be written is told of and leaves nothing; an adapter that cannot be is a failure."""
    write_rows(tmp_path, rows(8))

    def fill(run: TrainingRun, message: AnyMessage) -> None:
        if isinstance(message, CheckpointSaved):
            assert run.pid is not None
            resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))

    ended, said = trainers.train(spec_of(tmp_path, save_every_steps=1), tmp_path, fill)

    assert of_kind(said, CheckpointFailed)
    assert (ended.how, ended.kind) == ("failed", "disk")
    assert all(one.is_good for one in list_checkpoints(tmp_path / "checkpoints"))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [ended.checkpoint]


def test_device_is_lent_to_who_waits_between_two_steps(trainers: Trainers, tmp_path: Path) -> None:
    """A load that waits for the device gets it within a step, and the training takes its turn behind."""
    write_rows(tmp_path, rows(12))
    locks = tmp_path / "locks"
    lock = DeviceLock(locks, "cpu")
    held_s: list[float] = []
    threads: list[threading.Thread] = []

    def load() -> None:
        lock.acquire_blocking(model="other", purpose="load", timeout_s=WAIT_S)
        held_at = time.monotonic()
        while time.monotonic() - held_at < 0.1:
            time.sleep(0.01)
        lock.release()
        held_s.append(time.monotonic() - held_at)

    def come(run: TrainingRun, message: AnyMessage) -> None:
        if isinstance(message, Progress) and not threads:
            threads.append(threading.Thread(target=load))
            threads[0].start()

    ended, said = trainers.train(spec_of(tmp_path, max_steps=30, locks=str(locks)), tmp_path, come)
    threads[0].join(WAIT_S)

    assert ended.how == "finished", ended
    waited = of_kind(said, Waited)
    assert len(waited) == 1
    assert waited[0].waited_s >= 0.09
    assert waited[0].holder == "load of other"
    assert len(held_s) == 1


def test_second_start_of_a_job_is_refused(trainers: Trainers, tmp_path: Path) -> None:
    """While a process trains a job another one leaves it alone."""
    write_rows(tmp_path, rows(12))
    spec = spec_of(tmp_path, max_steps=2_000)
    seconds: list[threading.Thread] = []
    results: list[tuple[str, str]] = []

    def again(run: TrainingRun) -> None:
        try:
            ended, _ = trainers.train(spec, tmp_path)
            results.append((ended.how, ended.reason))
        finally:
            trainers.loop.call_soon_threadsafe(run.stop)

    def once(run: TrainingRun, message: AnyMessage) -> None:
        if isinstance(message, Progress) and not seconds:
            seconds.append(threading.Thread(target=again, args=(run,)))
            seconds[0].start()

    ended, _ = trainers.train(spec, tmp_path, once)
    seconds[0].join(WAIT_S)

    assert ended.how == "stopped"
    assert results[0][0] == "failed"
    assert "trains this job already" in results[0][1]


def test_bad_jobs_are_refused_with_the_reason(trainers: Trainers, tmp_path: Path) -> None:
    """Rows, bases and adapters that cannot be used are named, each in a sentence."""
    ours = tmp_path / "adapter"
    ours.mkdir()
    (ours / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}')
    (ours / "adapter_model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    gguf = BASE.parent / "olympus-demo.gguf"
    good = rows(4)
    cases: list[tuple[list[dict[str, Any]], dict[str, Any], str, str]] = [
        ([], {}, "rows", "no rows to train on"),
        ([{"answer": 5, "prompt": "a"}], {}, "rows", "line 1: Expected `str`, got `int`"),
        ([{"answer": "  ", "prompt": "a"}], {}, "rows", "1 of 1 rows have an empty answer"),
        (good, {"max_length": 8}, "rows", "longer than 8 tokens"),
        (good, {"base": str(gguf)}, "base", "GGUF"),
        (good, {"base": str(tmp_path / "none")}, "base", "is no folder"),
        (good, {"base_sha256": "0" * 64}, "base", "has changed"),
        (good, {"previous": str(ours)}, "adapter", "for another base"),
        (good, {"previous": str(tmp_path)}, "adapter", "adapter_config.json"),
        (good, {"lora": Lora(targets=("nothing",))}, "spec", "lora.targets"),
        (good, {"method": "dpo"}, "rows", "4 of 4 rows have no rejected answer"),
    ]
    for number, (made, changes, kind, words) in enumerate(cases):
        job = tmp_path / f"job{number}"
        write_rows(job, made)

        ended, _ = trainers.train(spec_of(job, **changes), job)

        assert (ended.how, ended.kind) == ("failed", kind), (number, ended)
        assert words in ended.reason, (number, ended.reason)


def test_one_row_is_enough_to_train(trainers: Trainers, tmp_path: Path) -> None:
    """The smallest dataset trains; nothing is set aside of it, and nothing a killed trainer left beside the adapter stays."""
    write_rows(tmp_path, rows(1))
    (tmp_path / ".step-00000002.1.aside").mkdir()

    ended, said = trainers.train(spec_of(tmp_path, max_steps=2, stop=StopRules(patience=1)), tmp_path)

    assert ended.how == "finished", ended
    assert of_kind(said, Prepared)[0].evaluation_rows == 0
    assert [path.name for path in tmp_path.glob(".*")] == []


def open_ports(root: int) -> set[str]:
    """Addresses that a process and its children listen on, as the kernel writes them."""
    parents = {int(path.name): process_stat(int(path.name)) for path in Path("/proc").iterdir() if path.name.isdigit()}
    family = {root}
    for _ in range(4):
        family |= {pid for pid, stat in parents.items() if stat is not None and stat.parent in family}
    sockets = set()
    for pid in family:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                sockets.add(os.readlink(descriptor))
            except FileNotFoundError:
                continue
    tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}


def test_two_processes_train_as_one_does(
    trainers: Trainers, undisturbed: tuple[Finished, list[AnyMessage], Path], tmp_path: Path
) -> None:
    """Spread over two processes the losses are those of one, and so are the checkpoints; no port is open to others."""
    for name in ("one", "two"):
        write_rows(tmp_path / name, rows(12))
    changes = {"max_steps": 3, "save_every_steps": 2}
    alone, said_alone = trainers.train(spec_of(tmp_path / "one", **changes), tmp_path / "one")

    listening: list[set[str]] = []

    def look(run: TrainingRun, message: AnyMessage) -> None:
        if isinstance(message, Planned):
            assert run.pid is not None
            listening.append(open_ports(run.pid))

    together, said = trainers.train(
        spec_of(tmp_path / "two", processes=2, **changes), tmp_path / "two", look, timeout_s=2 * WAIT_S
    )

    assert (alone.how, together.how) == ("finished", "finished"), together
    assert of_kind(said, Planned)[0].wrapped == "DistributedDataParallel"
    # 127.0.0.1, and no other address.
    assert listening[0] <= {"0100007F"}
    assert together.finished is not None
    assert alone.finished is not None
    assert together.finished.loss == pytest.approx(alone.finished.loss, rel=1e-4)
    names = [[one.name for one in list_checkpoints(tmp_path / job / "checkpoints")] for job in ("one", "two")]
    assert names[0] == names[1] == ["step-00000002"]
    assert of_kind(said, Progress)[0].loss == pytest.approx(of_kind(said_alone, Progress)[0].loss, rel=1e-4)


_SERVICE = """
import asyncio, os, sys
from pathlib import Path
from tests.training_rows import spec_of
from workers.learning.training.training import Nest, TrainingProcess
from workers.learning.training.spec import write_spec

async def main():
    folder = Path(sys.argv[1])
    spec = spec_of(folder)
    write_spec(folder, spec)
    nest = Nest()
    await nest.open()
    process = TrainingProcess(None, lambda message: print(nest.pid, process.pid, flush=True))
    await process.run(spec, folder)

asyncio.run(main())
"""


def test_trainers_end_with_the_service(tmp_path: Path) -> None:
    """When the service is killed its warm parent and its cold trainer are gone, too."""
    write_rows(tmp_path, rows(4))
    root = Path(__file__).resolve().parent.parent.parent
    service = subprocess.Popen(
        [sys.executable, "-c", _SERVICE, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    try:
        assert service.stdout is not None
        pids = [int(word) for word in service.stdout.readline().split()]
        assert len(pids) == 2
    finally:
        service.send_signal(signal.SIGKILL)
        service.wait()
        assert service.stdout is not None
        service.stdout.close()
    deadline = time.monotonic() + WAIT_S
    while any((stat := process_stat(pid)) is not None and stat.state != "Z" for pid in pids):
        assert time.monotonic() < deadline, f"still there: {pids}"
        time.sleep(0.02)
