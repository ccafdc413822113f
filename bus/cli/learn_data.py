"""`olympus learn datasets`, `dataset`, `build`, `import`, `export`, `rows` and `row`: what is learned from."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, get_args

from bus.cli import exits
from bus.cli.action import Action, configure_json
from bus.cli.confirming import confirm
from bus.cli.connection import run_with_client
from bus.cli.failures import UsageError, say
from bus.cli.memory_export import written
from bus.cli.memory_upkeep import LONG_S
from bus.cli.output import fit, number, one_line, plural, print_json, printable, table, terminal_width, write_line
from bus.cli.progress import Progress
from bus.client import Client
from schemas.bodies.learning_data import (
    DatasetBuild,
    DatasetDelete,
    DatasetDeleted,
    DatasetExport,
    DatasetExported,
    DatasetImport,
    DatasetImported,
    DatasetInfo,
    DatasetList,
    Datasets,
    DatasetShow,
    DatasetShown,
    LineProblem,
    Metric,
    RowEdit,
    RowInfo,
    RowKind,
    RowList,
    RowPage,
    RowRelease,
    RowRemove,
    RowState,
    Split,
)

# Bad lines of an import that are named: a file of another kind has nothing else.
_PROBLEMS_SHOWN: Final = 20

# Bytes of lines sent at once: a request of the service may hold 16 MiB of them.
_PART_BYTES: Final = 4 * 1024 * 1024


# datasets ---------------------------------------------------------------------------------------------------------


def _configure_datasets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", nargs="?", metavar="DATASET", help="every version of this one")
    parser.add_argument("--model", help="only of this base model")
    configure_json(parser)


def _run_datasets(args: argparse.Namespace) -> int:
    async def ask(client: Client) -> int:
        body = DatasetList(model=args.model, dataset=args.dataset)
        found: Datasets = await client.request("learning.dataset.list", body)
        if args.json:
            print_json(found, indent=2)
            return exits.OK
        width = terminal_width()
        for line in dataset_lines(found.datasets):
            write_line(fit(line, width))
        return exits.OK

    return run_with_client(args, ask)


def dataset_lines(datasets: list[DatasetInfo]) -> list[str]:
    """A row for each version."""
    if not datasets:
        return ["there is no dataset yet: olympus learn build NAME makes one of what is known"]
    rows = [
        (
            f"{one.dataset}:{one.version}",
            printable(one.model),
            *(number(one.rows.get(split, 0)) for split in ("train", "replay", "held_out", "retention")),
            number(sum(one.quarantined.values())),
            printable(one.is_stale or one.note) or "-",
            one.sha256[:12],
        )
        for one in datasets
    ]
    return table(("DATASET", "MODEL", "TRAIN", "REPLAY", "HELD OUT", "RETENTION", "LEFT OUT", "NOTE", "SHA-256"), rows)


def _configure_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("--version", type=int, metavar="N", help="(the newest)")
    parser.add_argument("--split", choices=get_args(Split), help="only rows of this part")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="rows at most (20)")
    parser.add_argument("--delete", action="store_true", help="delete it, or the version given; its rows stay known")
    parser.add_argument("--yes", action="store_true", help="with --delete: do not ask")
    configure_json(parser)


def _run_dataset(args: argparse.Namespace) -> int:
    if args.delete and not args.yes:
        confirm(f"delete {args.dataset}{'' if args.version is None else f' version {args.version}'}")

    async def ask(client: Client) -> int:
        if args.delete:
            body = DatasetDelete(dataset=args.dataset, version=args.version)
            deleted: DatasetDeleted = await client.request("learning.dataset.delete", body)
            say(f"deleted {plural(deleted.versions, 'version')} of {deleted.dataset}")
            return exits.OK
        show = DatasetShow(dataset=args.dataset, version=args.version, split=args.split, limit=args.limit)
        shown: DatasetShown = await client.request("learning.dataset.show", show)
        if args.json:
            print_json(shown, indent=2)
            return exits.OK
        width = terminal_width()
        for line in [*shown_lines(shown.dataset), "", *row_lines(shown.page)]:
            write_line(fit(line, width))
        return exits.OK

    return run_with_client(args, ask)


def shown_lines(info: DatasetInfo) -> list[str]:
    """What a version is made of."""
    counted = (f"{count:,} {split} in {info.clusters.get(split, 0):,} clusters" for split, count in info.rows.items())
    facts = (
        ("dataset", f"{info.dataset} version {info.version}"),
        ("model", f"{info.model} {info.model_sha256[:12]}".rstrip()),
        ("content", info.sha256),
        ("rows", ", ".join(counted)),
        ("kinds", ", ".join(f"{count:,} {kind}" for kind, count in info.kinds.items())),
        ("left out", ", ".join(f"{count:,} {reason}" for reason, count in info.quarantined.items())),
        ("metric", info.metric),
        ("stale", info.is_stale),
        ("note", info.note),
        ("mind", "" if info.rows.get("replay") else _NO_REPLAY),
    )
    width = max(len(name) for name, _ in facts)
    return [f"{name:<{width}}  {printable(value)}" for name, value in facts if value]


def row_lines(page: RowPage) -> list[str]:
    """A row for each example."""
    if not page.rows:
        return ["no rows"]
    rows = [
        (
            one.row_id,
            one.split,
            one.kind,
            one_line(one.messages[-1].content if one.messages else one.prompt or "", 50),
            one_line(one.answer, 50),
            one.state + (f": {printable(one.reason)}" if one.reason else ""),
            printable(one.user) or "-",
            one.cluster[:8],
        )
        for one in page.rows
    ]
    lines = table(("ROW", "PART", "KIND", "QUESTION", "ANSWER", "STATE", "BY", "CLUSTER"), rows)
    left = page.total - len(page.rows)
    return lines + ([f"{left:,} more"] if left > 0 else [])


# What makes the gate refuse most adapters, said before one is trained.
_NO_REPLAY: Final = "no earlier data is repeated, so the model may forget; see 'By hand' in docs/datasets.md"


# build ------------------------------------------------------------------------------------------------------------


def _configure_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("--model", help="base model (the default one)")
    parser.add_argument("--opportunity", action="append", default=[], metavar="ID", help="only of this; repeatable")
    parser.add_argument("--kind", action="append", default=[], choices=get_args(RowKind), help="only these; repeatable")
    parser.add_argument("--replay", type=float, metavar="0..0.9", help="part of the rows that are earlier data")
    parser.add_argument("--max-rows", type=int, default=100_000, metavar="N", help="the newest (100000)")
    parser.add_argument("--metric", choices=get_args(Metric), default="auto", help="how answers are compared (auto)")
    parser.add_argument("--note", default="")
    configure_json(parser)


def _run_build(args: argparse.Namespace) -> int:
    body = DatasetBuild(
        dataset=args.dataset,
        model=args.model,
        opportunities=args.opportunity,
        kinds=args.kind,
        replay_share=args.replay,
        max_rows=args.max_rows,
        metric=args.metric,
        note=args.note,
    )

    async def ask(client: Client) -> int:
        info: DatasetInfo = await client.request("learning.dataset.build", body, timeout_s=LONG_S)
        if args.json:
            print_json(info, indent=2)
        else:
            write_line("\n".join(shown_lines(info)))
        return exits.OK

    return run_with_client(args, ask)


# import and export ------------------------------------------------------------------------------------------------


def _configure_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        metavar="FILE",
        help='JSON Lines: {"messages": [{"role": "user", "content": ...}], "answer": ...} or {"prompt": ..., "answer":'
        " ...}; '-' is stdin",
    )
    parser.add_argument("--model", help="base model they are for (the default one)")
    parser.add_argument("--opportunity", metavar="ID", help="what they count towards")
    parser.add_argument("--retention", action="store_true", help="not to learn, but what must not be forgotten")
    configure_json(parser)


def _run_import(args: argparse.Namespace) -> int:
    with _opened(args.file) as file:
        total = os.fstat(file.fileno()).st_size if file is not sys.stdin.buffer else 0

        async def ask(client: Client) -> int:
            counts = {"added": 0, "duplicates": 0, "quarantined": 0, "refused": 0}
            problems: list[LineProblem] = []
            done = 0
            with Progress(is_shown=not args.json) as progress:
                for first_line, lines in parts(file):
                    body = DatasetImport(
                        model=args.model,
                        lines=lines,
                        first_line=first_line,
                        opportunity_id=args.opportunity,
                        split="retention" if args.retention else "",
                        source=args.file,
                    )
                    taken: DatasetImported = await client.request("learning.dataset.import", body, timeout_s=LONG_S)
                    for name in counts:
                        counts[name] += getattr(taken, name)
                    problems += taken.problems
                    done += len(lines.encode())
                    progress.show("import", done, total)
            return _say_imported(counts, problems, is_json=args.json)

        return run_with_client(args, ask)


def _say_imported(counts: dict[str, int], problems: list[LineProblem], *, is_json: bool) -> int:
    if is_json:
        print_json({**counts, "problems": problems}, indent=2)
    else:
        for problem in problems[:_PROBLEMS_SHOWN]:
            say(f"line {problem.line}: {printable(problem.reason)}")
        if (left := len(problems) - _PROBLEMS_SHOWN) > 0:
            say(f"{plural(left, 'more line')} of this kind; --json names every one")
        say(
            f"took in {plural(counts['added'], 'example')}, knew {counts['duplicates']:,}, quarantined"
            f" {counts['quarantined']:,}, refused {counts['refused']:,}"
        )
    return exits.FAILED if counts["refused"] else exits.OK


def _opened(name: str) -> BinaryIO:
    if name == "-":
        return sys.stdin.buffer
    try:
        return Path(name).open("rb")
    except OSError as error:
        raise UsageError(f"cannot read {name}: {error.strerror}") from error


def parts(file: BinaryIO, limit: int = _PART_BYTES) -> Iterator[tuple[int, str]]:
    """The number of its first line, and lines of up to `limit` bytes together, until the file ends."""
    first_line, part = 1, io.BytesIO()
    for index, line in enumerate(file, 1):
        if part.tell() and part.tell() + len(line) > limit:
            yield first_line, part.getvalue().decode("utf-8", "replace")
            first_line, part = index, io.BytesIO()
        part.write(line)
    if part.tell():
        yield first_line, part.getvalue().decode("utf-8", "replace")


def _configure_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("file", nargs="?", default="-", metavar="FILE", help="('-', stdout)")
    parser.add_argument("--version", type=int, metavar="N", help="(the newest)")
    parser.add_argument("--split", choices=get_args(Split), help="only rows of this part")
    parser.add_argument("--force", action="store_true", help="overwrite FILE")


def _run_export(args: argparse.Namespace) -> int:
    async def ask(client: Client) -> int:
        body = DatasetExport(dataset=args.dataset, version=args.version, split=args.split)
        with written(args.file, args.force) as file:
            async with client.stream("learning.dataset.export", body, timeout_s=LONG_S) as replies:
                async for part in replies:
                    file.write(part.lines.encode())
                exported: DatasetExported = replies.final
        say(f"exported {plural(exported.rows, 'row')} of {exported.dataset} version {exported.version}")
        return exits.OK

    try:
        return run_with_client(args, ask)
    except (BrokenPipeError, ConnectionError):
        raise
    except OSError as error:
        say(f"cannot write {args.file}: {error.strerror}")
        return exits.FAILED


# rows -------------------------------------------------------------------------------------------------------------


def _configure_rows(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="only of this base model")
    parser.add_argument("--state", choices=get_args(RowState), help="only in this state")
    parser.add_argument("--split", choices=get_args(Split), help="only of this part")
    parser.add_argument("--user", help="only of this person")
    parser.add_argument("--opportunity", metavar="ID", help="only of this one")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="at most (50)")
    configure_json(parser)


def _run_rows(args: argparse.Namespace) -> int:
    body = RowList(
        model=args.model,
        state=args.state,
        split=args.split,
        user=args.user,
        opportunity_id=args.opportunity,
        limit=args.limit,
    )

    async def ask(client: Client) -> int:
        page: RowPage = await client.request("learning.row.list", body)
        if args.json:
            print_json(page, indent=2)
            return exits.OK
        width = terminal_width()
        for line in row_lines(page):
            write_line(fit(line, width))
        return exits.OK

    return run_with_client(args, ask)


def _configure_row(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("row_id", metavar="ROW")
    parser.add_argument("--answer", metavar="TEXT", help="correct its answer")
    parser.add_argument("--release", action="store_true", help="let it be used although it was quarantined")
    parser.add_argument("--remove", action="store_true", help="take it out for good")
    parser.add_argument("--reason", default="")
    parser.add_argument("--yes", action="store_true", help="with --remove: do not ask")
    configure_json(parser)


def _run_row(args: argparse.Namespace) -> int:
    if sum((args.answer is not None, args.release, args.remove)) != 1:
        raise UsageError("row needs one of --answer TEXT, --release and --remove")
    if args.remove and not args.yes:
        confirm(f"take {args.row_id} out for good, with its text")

    async def ask(client: Client) -> int:
        row: RowInfo
        if args.answer is not None:
            row = await client.request("learning.row.edit", RowEdit(row_id=args.row_id, answer=args.answer))
        elif args.release:
            row = await client.request("learning.row.release", RowRelease(row_id=args.row_id, reason=args.reason))
        else:
            row = await client.request("learning.row.remove", RowRemove(row_id=args.row_id, reason=args.reason))
        if args.json:
            print_json(row, indent=2)
        else:
            say(f"{row.row_id} is {row.state}" + (f": {printable(row.reason)}" if row.reason else ""))
        return exits.OK

    return run_with_client(args, ask)


ACTIONS: Final = (
    Action(
        "datasets",
        "datasets, and how many rows they have",
        _configure_datasets,
        _run_datasets,
        "olympus learn datasets",
    ),
    Action(
        "dataset",
        "one dataset with its rows; --delete deletes it",
        _configure_dataset,
        _run_dataset,
        "olympus learn dataset greetings --split held_out",
    ),
    Action(
        "build",
        "freeze what is known into a version of a dataset",
        _configure_build,
        _run_build,
        "olympus learn build greetings\nolympus learn build greetings --opportunity opp-1c9e4a77b0d2",
    ),
    Action(
        "import",
        "take in examples from JSON Lines",
        _configure_import,
        _run_import,
        "olympus learn import greetings.jsonl --model olympus-demo",
    ),
    Action("export", "write a dataset as JSON Lines", _configure_export, _run_export, "olympus learn export greetings"),
    Action(
        "rows",
        "examples, with why some are left out",
        _configure_rows,
        _run_rows,
        "olympus learn rows --state quarantined",
    ),
    Action(
        "row",
        "correct, release or remove an example",
        _configure_row,
        _run_row,
        "olympus learn row row-4f2a9c0d1e22 --answer Paris\nolympus learn row row-4f2a9c0d1e22 --release",
    ),
)
