"""`olympus models bench`, `eval`, `compare` and `pick`: how fast models are, how good, and which is better."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final

from bus.cli import compare, exits
from bus.cli.action import Action, configure_json
from bus.cli.connection import run_with_client
from bus.cli.failures import UsageError
from bus.cli.memory_upkeep import LONG_S
from bus.cli.output import (
    fit,
    milliseconds,
    number,
    plural,
    print_json,
    printable,
    size,
    table,
    terminal_width,
    write_line,
)
from bus.cli.progress import Progress
from bus.client import Client
from schemas.bodies.model_trials import (
    Benchmark,
    Benchmarked,
    BenchmarkRow,
    ComparePick,
    Comparison,
    Evaluate,
    Evaluation,
    EvaluationList,
    Evaluations,
)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 1,4,8") from None


# bench ------------------------------------------------------------------------------------------------------------


def _configure_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--prompt", type=_numbers, default=[32], metavar="TOKENS,...", help="prompt lengths (32)")
    parser.add_argument("--output", type=int, default=64, metavar="TOKENS", help="length of each answer (64)")
    parser.add_argument("--concurrency", type=_numbers, default=[1, 4], metavar="N,...", help="callers at once (1,4)")
    parser.add_argument("--requests", type=int, default=8, metavar="N", help="answers for each row (8)")
    configure_json(parser)


def _run_bench(args: argparse.Namespace) -> int:
    body = Benchmark(
        model=args.model,
        prompt_tokens=args.prompt,
        output_tokens=args.output,
        concurrency=args.concurrency,
        requests=args.requests,
    )
    total = len(args.prompt) * len(args.concurrency)

    async def ask(client: Client) -> int:
        with Progress(is_shown=not args.json) as progress:
            async with client.stream("model.benchmark", body, timeout_s=LONG_S) as parts:
                done = 0
                progress.show("bench", done, total)
                async for _ in parts:
                    done += 1
                    progress.show("bench", done, total)
                result: Benchmarked = parts.final
        if args.json:
            print_json(result, indent=2)
        else:
            write_line("\n".join(bench_lines(result.rows)))
        return exits.OK

    return run_with_client(args, ask)


def bench_lines(rows: Sequence[BenchmarkRow]) -> list[str]:
    """A row for each prompt length and concurrency. Latencies are milliseconds, the median and what 95 % stay below."""
    return table(
        (
            "PROMPT",
            "CALLERS",
            "TOK/S",
            "PROMPT TOK/S",
            "FIRST MS",
            "P95",
            "WHOLE MS",
            "P95",
            "ERRORS",
            "MEMORY",
        ),
        [
            (
                number(row.prompt_tokens),
                number(row.concurrency),
                f"{row.tokens_per_s:,.1f}",
                f"{row.prompt_tokens_per_s:,.1f}",
                milliseconds(row.first_token.p50_s),
                milliseconds(row.first_token.p95_s),
                milliseconds(row.whole.p50_s),
                milliseconds(row.whole.p95_s),
                number(row.errors),
                size(row.memory_bytes),
            )
            for row in rows
        ],
    )


# eval -------------------------------------------------------------------------------------------------------------


def _configure_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL")
    parser.add_argument("suite", nargs="?", metavar="SUITE", help="a name of the suites folder")
    parser.add_argument("--metric", action="append", default=[], metavar="NAME", help="only this one; repeatable")
    parser.add_argument("--seeds", type=_numbers, default=[0], metavar="N,...", help="run once with each (0)")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="cases at most (all)")
    parser.add_argument("--adapter", metavar="NAME", help="with this adapter; '' for none")
    parser.add_argument("--judge", metavar="MODEL", help="the model that judges, where the suite asks for one")
    parser.add_argument("--list", action="store_true", help="list the results kept, of MODEL and SUITE if given")
    configure_json(parser)


def _run_eval(args: argparse.Namespace) -> int:
    if args.list:
        return _list_evaluations(args)
    if args.model is None or args.suite is None:
        raise UsageError("eval needs a MODEL and a SUITE, or --list")
    body = Evaluate(
        model=args.model,
        suite=args.suite,
        metrics=args.metric,
        seeds=args.seeds,
        limit=args.limit,
        adapter=args.adapter,
        judge=args.judge,
    )

    async def ask(client: Client) -> int:
        with Progress(is_shown=not args.json) as progress:
            async with client.stream("model.evaluate", body, timeout_s=LONG_S) as parts:
                async for part in parts:
                    progress.show(args.suite, part.done, part.total)
                result: Evaluation = parts.final
        if args.json:
            print_json(result, indent=2)
        else:
            write_line("\n".join(evaluation_lines(result)))
        return exits.OK if result.status == "done" else exits.FAILED

    return run_with_client(args, ask)


def evaluation_lines(result: Evaluation) -> list[str]:
    """Each score with its interval."""
    rows = [
        (one.metric, f"{one.mean:.4g}", f"{one.low:.4g}", f"{one.high:.4g}", number(one.n), one.method)
        for one in result.scores
    ]
    lines = [
        f"{result.model} on {result.suite}: {result.status}, {plural(result.cases, 'answer')}, id {result.evaluation_id}"
    ]
    if rows:
        lines += ["", *table(("METRIC", "MEAN", "LOW", "HIGH", "N", f"{result.confidence:.0%} INTERVAL"), rows)]
    if result.errors:
        lines += [
            f"! {plural(result.errors, 'answer')} failed:",
            f"  olympus req model.evaluation.get evaluation_id={result.evaluation_id} with_cases=true shows why",
        ]
    return lines + ([f"! {printable(result.error)}"] if result.error else [])


def _list_evaluations(args: argparse.Namespace) -> int:
    async def ask(client: Client) -> int:
        found: Evaluations = await client.request(
            "model.evaluation.list", EvaluationList(model=args.model, suite=args.suite)
        )
        if args.json:
            print_json(found, indent=2)
            return exits.OK
        rows = [
            (
                one.evaluation_id,
                printable(one.model),
                printable(one.suite),
                one.status,
                ", ".join(f"{score.metric} {score.mean:.3g}" for score in one.scores),
            )
            for one in found.evaluations
        ]
        width = terminal_width()
        for line in table(("ID", "MODEL", "SUITE", "STATUS", "SCORES"), rows) if rows else ["no results yet"]:
            write_line(fit(line, width))
        return exits.OK

    return run_with_client(args, ask)


# pick -----------------------------------------------------------------------------------------------------------------


def _configure_pick(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("comparison", metavar="ID")
    parser.add_argument("model", metavar="MODEL", help="the best one, or 'tie'")
    parser.add_argument("--note", default="", help="why")
    configure_json(parser)


def _run_pick(args: argparse.Namespace) -> int:
    async def ask(client: Client) -> int:
        result: Comparison = await client.request(
            "model.compare.pick", ComparePick(comparison_id=args.comparison, model=args.model, note=args.note)
        )
        if args.json:
            print_json(result, indent=2)
        else:
            write_line(f"recorded: {result.picked}")
        return exits.OK

    return run_with_client(args, ask)


ACTIONS: Final = (
    Action(
        "bench",
        "measure throughput and latency of a model",
        _configure_bench,
        _run_bench,
        """
olympus models bench olympus-demo
olympus models bench qwen3 --prompt 32,2048 --concurrency 1,4,8 --output 128
""",
    ),
    Action(
        "eval",
        "run an evaluation suite on a model, or list the results",
        _configure_eval,
        _run_eval,
        """
olympus models eval olympus-demo demo
olympus models eval qwen3 demo --seeds 1,2,3 --metric exact_match
olympus models eval --list
""",
    ),
    Action(
        "compare",
        "the same question to several models, side by side",
        compare.configure,
        compare.run,
        """
olympus models compare 'What is 7 + 5?' olympus-demo qwen3
olympus models compare - qwen3 llama3 --temperature 0 --one-by-one < question.txt
""",
    ),
    Action(
        "pick",
        "record which answer of a comparison was the best",
        _configure_pick,
        _run_pick,
        """
olympus models pick 0198c0de-0000-7000-8000-000000000000 qwen3
""",
    ),
)
