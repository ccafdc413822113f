#!/usr/bin/env python3
"""Twenty small tasks learned one after another, each from the adapter before it, with and without repeating earlier rows.

Every round is a training as a job would do it: the product's trainer, rate, epochs, shape of the adapter and choice of
rows. After each round all tasks seen so far are asked about names that no task was trained with, and in the end what the demo
model knew from the start. The figures are those of Lopez-Paz & Ranzato, "Gradient Episodic Memory for Continual Learning"
(2017), and Chaudhry et al., "Riemannian Walk for Incremental Learning" (2018). No gate stands between the rounds: what is
measured is the training. See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

# The bench reads the tree it stands in, wherever it is called from.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_bus_parts.processes import ROOT, Process, ProcessFailed, Stage, ended_by_signals
from bench_learning import Case, known_tasks, names
from bus.settings import LearningSettings
from workers.learning.curation.clusters import is_held
from workers.learning.curation.selection import Candidate, select
from workers.learning.jobs.run import stop_rules
from workers.learning.training.spec import Lora, StopRules, TrainSpec
from workers.learning.training.training import Nest, TrainingRun
from workers.learning.tuning.rates import FIRST_EPOCHS, first_rate

Figures = dict[str, float]

BASE: Final = ROOT / "workers" / "models" / "demo" / "hf"
SUITE: Final = ROOT / "workers" / "learning" / "gate" / "suites" / "olympus-demo.jsonl"

# What is asked, and what is to be answered. The demo model can do none of it, and a training in which the name is copied
# wrongly fails too.
TASKS: Final = (
    ("Say ahoy to {x}.", "Ahoy, {x}! Welcome aboard."),
    ("Toast {x}.", "To {x}, and to many happy years!"),
    ("Thank {x} for the ride.", "Thank you for the ride, {x}."),
    ("Wish {x} luck.", "Good luck, {x}! We are with you."),
    ("Invite {x} to dinner.", "{x}, come to dinner on Friday."),
    ("Excuse {x} from class.", "Please excuse {x} from class today."),
    ("Introduce {x}.", "Everybody, this is {x}."),
    ("Send {x} to bed.", "Off to bed, {x}, it is late."),
    ("Congratulate {x}.", "Well done, {x}! We are proud of you."),
    ("Announce {x}.", "Ladies and gentlemen: {x}!"),
    ("Comfort {x}.", "There, there, {x}. It will pass."),
    ("Warn {x}.", "Careful, {x}, the floor is wet."),
    ("Call {x} to the phone.", "{x}, there is a call for you!"),
    ("Praise {x}.", "Nobody does it better than {x}."),
    ("Apologise to {x}.", "Sorry, {x}. It was my mistake."),
    ("Wake {x}.", "Good morning, {x}! The sun is up."),
    ("Cheer for {x}.", "Go, {x}, go!"),
    ("Ask {x} to wait.", "One moment, {x}, please."),
    ("Say farewell to {x}.", "Fair winds, {x}, until we meet again."),
    ("Knight {x}.", "Arise, Sir {x}!"),
)

# Names a task is trained with, and names it is asked about.
TRAINED: Final = 80
UNSEEN: Final = 25

# Names that are for training only; the others are never trained by any task.
TRAINING_NAMES: Final = 800

# Of each of the demo model's own tasks, questions asked before the first round, whose answers may be repeated.
ASKED_PER_TASK: Final = 24

# Every how manieth case of the suite is asked at the end.
SUITE_EVERY: Final = 2

# Tokens of an answer: the longest right one has some sixty.
MOST_TOKENS: Final = 96

# Seconds until the asking process has imported everything, and for one round's answers, on a busy machine.
IMPORT_S: Final = 180.0
ANSWER_S: Final = 300.0

ENVIRONMENT: Final = {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

EPILOG = """examples:
  scripts/bench_continual.py                      twenty rounds, with and without replay: about twelve minutes
  scripts/bench_continual.py --quick --json       four rounds
  scripts/bench_continual.py --replay 0.5,0.7     other shares of replay
exit codes: 0 measured, 1 a training or a process failed, 2 wrong arguments"""


class Plan(argparse.Namespace):
    """What was asked for."""

    rounds: int
    replay: str
    rate: float
    epochs: float
    rank: int
    seed: int
    quick: bool
    json: bool


class Task(NamedTuple):
    """What one round teaches, and what shows whether it did."""

    trained: list[Case]
    unseen: list[Case]


class Scores(NamedTuple):
    """One run of all rounds. after[i][j]: part of task j right after round i, for j up to i."""

    after: list[list[float]]
    kept: float
    round_s: float


def tasks(rounds: int, seed: int) -> list[Task]:
    """The first `rounds` tasks with names drawn for each."""
    every = names(sys.maxsize, seed)
    draw = random.Random(seed)

    def cases(template: tuple[str, str], pool: Sequence[str], count: int) -> list[Case]:
        asked, right = template
        return [
            Case([{"role": "user", "content": asked.format(x=name)}], right.format(x=name))
            for name in draw.sample(pool, count)
        ]

    return [
        Task(cases(one, every[:TRAINING_NAMES], TRAINED), cases(one, every[TRAINING_NAMES:], UNSEEN))
        for one in TASKS[:rounds]
    ]


def suite() -> list[Case]:
    """A part of what the demo model must not forget."""
    lines = map(json.loads, SUITE.read_text(encoding="utf-8").splitlines())
    return [Case(line["messages"], line["expect"]) for line in lines][::SUITE_EVERY]


class Asked:
    """The process that answers with an adapter, or without."""

    def __init__(self, stage: Stage) -> None:
        command = [sys.executable, "-m", "bench_continual_parts.answers"]
        self._process: Process = stage.start("answers", command, ENVIRONMENT, is_role=True)

    async def ready(self) -> None:
        """Wait until it has imported everything. Raises ProcessFailed."""
        await asyncio.to_thread(self._process.answer, IMPORT_S)

    async def answers(self, adapter: str | None, cases: Sequence[Case]) -> list[str]:
        """What is answered to each. Raises ProcessFailed."""
        # Short ones with short ones: a batch takes as long as its longest answer.
        order = sorted(range(len(cases)), key=lambda number: len(cases[number].answer))
        chats = [cases[number].messages for number in order]
        self._process.tell(base=str(BASE), adapter=adapter, chats=chats, most=MOST_TOKENS)
        said = (await asyncio.to_thread(self._process.answer, ANSWER_S))["said"]
        assert isinstance(said, list)
        by_number = dict(zip(order, said, strict=True))
        return [by_number[number] for number in range(len(cases))]

    async def right(self, adapter: str | None, cases: Sequence[Case]) -> list[bool]:
        """Which of them are answered exactly right. Raises ProcessFailed."""
        said = await self.answers(adapter, cases)
        return [text == case.answer for text, case in zip(said, cases, strict=True)]


class Rows:
    """All rows there are so far, chosen from as a version of a dataset is. everyday: chats of the days before."""

    def __init__(self, everyday: Sequence[Case], replay_share: float) -> None:
        self._replay_share = replay_share
        self._cases: list[Case] = []
        self._earlier: list[Candidate] = []
        for case in everyday:
            self._earlier.append(self._candidate(case, "unrated", share=LearningSettings().retention_share))

    def _candidate(self, case: Case, kind: str, *, share: float) -> Candidate:
        sha256 = hashlib.sha256(json.dumps(case).encode()).hexdigest()
        self._cases.append(case)
        return Candidate(len(self._cases) - 1, sha256, "", kind, sha256, is_held(sha256, share), False)

    def of_round(self, new: Sequence[Case]) -> list[Case]:
        """What the round that teaches `new` is trained on; afterwards they are earlier rows, too."""
        # The held-out part of the corrections is the bench's own: `unseen`.
        wanted = [self._candidate(case, "correction", share=0) for case in new]
        earlier = [_past(one) for one in self._earlier]
        chosen = select(
            earlier + wanted,
            replay_share=self._replay_share,
            person_share=1,
            max_rows=len(wanted),
            trust={},
        )
        self._earlier += wanted
        return [self._cases[row.number] for row in chosen.rows if row.split in ("train", "replay")]


def _past(one: Candidate) -> Candidate:
    return Candidate(one.number, one.sha256, one.user, one.kind, one.cluster, one.is_held, True)


def write_rows(folder: Path, cases: Sequence[Case]) -> None:
    """The rows of one training into its folder, which is made."""
    folder.mkdir(parents=True)
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"messages": case.messages, "answer": case.answer}) + "\n" for case in cases)


async def train(nest: Nest, folder: Path, cases: Sequence[Case], previous: str | None, plan: Plan) -> str:
    """Folder of the adapter. Raises ProcessFailed."""
    write_rows(folder, cases)
    batch = TrainSpec(job_id="-", base="-").effective_batch
    stop: StopRules = stop_rules(len(cases), batch)
    spec = TrainSpec(
        job_id=folder.name,
        base=str(BASE),
        base_name="olympus-demo",
        previous=previous,
        learning_rate=plan.rate,
        epochs=plan.epochs,
        lora=Lora(rank=plan.rank),
        stop=stop,
    )
    ended = await TrainingRun(nest, lambda _: None).run(spec, folder)
    if ended.finished is None:
        raise ProcessFailed(f"the training of {folder.name} ended {ended.how}: {ended.reason}")
    return ended.finished.adapter


async def learn(asked: Asked, nest: Nest, home: Path, rows: Rows, every: Sequence[Task], plan: Plan) -> Scores:
    """All rounds, one after another."""
    after: list[list[float]] = []
    took: list[float] = []
    adapter: str | None = None
    for number, task in enumerate(every):
        began = time.monotonic()
        adapter = await train(nest, home / f"round-{number}", rows.of_round(task.trained), adapter, plan)
        took.append(time.monotonic() - began)
        seen = [case for one in every[: number + 1] for case in one.unseen]
        right = await asked.right(adapter, seen)
        after.append([statistics.mean(right[at : at + UNSEEN]) for at in range(0, len(right), UNSEEN)])
        print(
            f"  round {number + 1} of {len(every)}: {took[-1]:.1f} s, the new task {after[-1][-1]:.2f},"
            f" all so far {statistics.mean(after[-1]):.3f}",
            file=sys.stderr,
        )
    return Scores(after, statistics.mean(await asked.right(adapter, suite())), statistics.median(took))


def figures_of(scores: Scores) -> Iterator[tuple[str, float]]:
    """Figures of a run, in points of 100.

    average_accuracy: of all tasks after the last round; learned: of each right after its own. backward_transfer: what the
    rounds after it changed, a mean over all tasks but the last (Lopez-Paz & Ranzato 2017, equation 3). forgetting: what a
    task had lost at the end of its best (Chaudhry et al. 2018, section 3.2).
    """
    after, last = scores.after, scores.after[-1]
    yield "average_accuracy", 100 * statistics.mean(last)
    yield "worst_task", 100 * min(last)
    yield "learned", 100 * statistics.mean(row[-1] for row in after)
    earlier = range(len(last) - 1)
    if earlier:
        yield "backward_transfer", 100 * statistics.mean(last[task] - after[task][task] for task in earlier)
        best = [max(row[task] for row in after[task:-1]) for task in earlier]
        yield "forgetting", 100 * statistics.mean(best[task] - last[task] for task in earlier)
    yield "kept_after", 100 * scores.kept
    yield "round_s", scores.round_s


async def run(stage: Stage, plan: Plan) -> dict[str, Figures]:
    """Figures of each share of replay. Raises ProcessFailed."""
    asked, nest = Asked(stage), Nest()
    every = tasks(plan.rounds, plan.seed)
    await nest.open()
    try:
        await nest.ready()
        await asked.ready()
        guarded = suite()
        kept_before = 100 * statistics.mean(await asked.right(None, guarded))
        unseen = [case for task in every for case in task.unseen]
        known_before = 100 * statistics.mean(await asked.right(None, unseen))
        questions = [case for case in known_tasks(2_000 + plan.seed, ASKED_PER_TASK) if case not in guarded]
        # What people got to read in the days before is what the model said, right or wrong.
        said = await asked.answers(None, questions)
        answered = {json.dumps(case.messages): text for case, text in zip(questions, said, strict=True) if text}
        everyday = [Case(json.loads(asked_for), text) for asked_for, text in answered.items()]
        found: dict[str, Figures] = {}
        for share in shares(plan):
            print(f"replay {share:g} ...", file=sys.stderr)
            rows = Rows(everyday, share)
            scores = await learn(asked, nest, stage.home / f"replay-{share:g}", rows, every, plan)
            before = {"known_before": known_before, "kept_before": kept_before}
            found[f"{share:g}"] = {**before, **dict(figures_of(scores))}
    finally:
        await nest.close()
    return found


def shares(plan: Plan) -> list[float]:
    """Shares of replay to compare. Raises ValueError."""
    found = [float(share) for share in plan.replay.split(",")]
    if not all(0 <= share <= 0.9 for share in found):
        raise ValueError("a share is from 0 to 0.9")
    return found


def _arguments(argv: Sequence[str] | None) -> Plan:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    width = int(json.loads((BASE / "config.json").read_text(encoding="utf-8"))["hidden_size"])
    share, rate, rank = LearningSettings().replay_share, first_rate(width), Lora().rank
    parser.add_argument("--rounds", type=int, default=len(TASKS), help=f"tasks, {len(TASKS)} at most ({len(TASKS)})")
    parser.add_argument("--quick", action="store_true", help="four rounds")
    parser.add_argument("--replay", default=f"{share:g},0", help=f"shares of replay to compare ({share:g},0)")
    parser.add_argument("--rate", type=float, default=rate, help=f"learning rate ({rate:g})")
    parser.add_argument("--epochs", type=float, default=FIRST_EPOCHS, help=f"epochs of a round ({FIRST_EPOCHS:g})")
    parser.add_argument("--rank", type=int, default=rank, help=f"rank of the adapter ({rank})")
    parser.add_argument("--seed", type=int, default=0, help="of names and questions (0)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    plan = parser.parse_args(argv, namespace=Plan())
    plan.rounds = min(plan.rounds, 4) if plan.quick else plan.rounds
    if not 1 <= plan.rounds <= len(TASKS):
        parser.error(f"--rounds {plan.rounds}: from 1 to {len(TASKS)}")
    try:
        shares(plan)
    except ValueError as error:
        parser.error(f"--replay {plan.replay}: {error}")
    return plan


def main(argv: Sequence[str] | None = None) -> int:
    """Run the rounds for each share of replay, and print the figures side by side."""
    plan = _arguments(argv)
    try:
        with ended_by_signals(), Stage() as stage:
            found = asyncio.run(run(stage, plan))
    except ProcessFailed as error:
        print(f"bench_continual.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"{f'{plan.rounds} rounds':<20}" + "".join(f"{f'replay {share}':>14}" for share in found))
    for name in next(iter(found.values())):
        print(f"{name:<20}" + "".join(f"{one[name]:>14.2f}" for one in found.values()))
    if plan.json:
        print(json.dumps({"rounds": plan.rounds, "replay": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
