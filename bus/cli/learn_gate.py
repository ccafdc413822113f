"""`olympus learn evaluate`, `why`, `power`, `promote`, `rollback`, `adapters` and `watch`: whether it helped, and what serves."""

from __future__ import annotations

import argparse
from typing import Final

from bus.cli import exits
from bus.cli.action import Action, configure_json
from bus.cli.connection import run_with_client
from bus.cli.failures import UsageError, say
from bus.cli.memory_upkeep import LONG_S
from bus.cli.output import day_and_time, fit, number, one_line, print_json, printable, table, terminal_width, write_line
from bus.cli.progress import Progress
from bus.client import Client
from schemas.bodies.learning_gate import (
    Deployment,
    Deployments,
    GateItem,
    GateResult,
    GateShow,
    GateShown,
    LearnedAdapters,
    LearningEvaluate,
    PowerShow,
    PowerStatement,
    Promote,
    Rollback,
    SetResult,
    WatchArm,
    Watched,
    Watches,
    WatchShow,
)

# evaluate and why -------------------------------------------------------------------------------------------------


def _configure_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job_id", nargs="?", metavar="JOB", help="(or --model, --adapter and --dataset)")
    parser.add_argument("--model", help="base model")
    parser.add_argument("--adapter", metavar="NAME", help="the adapter to measure")
    parser.add_argument("--dataset", metavar="NAME", help="whose held-out rows it has to answer")
    parser.add_argument("--version", type=int, metavar="N", help="of the dataset (the newest)")
    parser.add_argument("--against", metavar="ADAPTER", help="compare with this one; '' for none (what serves now)")
    configure_json(parser)


def _run_evaluate(args: argparse.Namespace) -> int:
    if args.job_id is None and not (args.model and args.adapter and args.dataset):
        raise UsageError("evaluate needs a JOB, or --model, --adapter and --dataset")
    body = LearningEvaluate(
        job_id=args.job_id,
        model=args.model,
        adapter=args.adapter,
        dataset=args.dataset,
        version=args.version,
        against=args.against,
    )

    async def ask(client: Client) -> int:
        with Progress(is_shown=not args.json) as progress:
            async with client.stream("learning.evaluate", body, timeout_s=LONG_S) as parts:
                async for part in parts:
                    progress.show(part.phase, part.done, part.total)
                result: GateResult = parts.final
        if args.json:
            print_json(result, indent=2)
        else:
            write_line("\n".join(result_lines(result)))
        return exits.OK if result.verdict == "passed" else exits.FAILED

    return run_with_client(args, ask)


def result_lines(result: GateResult) -> list[str]:
    """The verdict, its reasons, and the figures they rest on. Scores and differences are in points of 100."""
    against = result.against or "the bare model"
    lines = [
        f"{result.verdict}: {result.adapter} against {against} on {result.dataset}:{result.version}"
        f" ({result.metric}, attempt {result.attempt})",
        *(f"  {printable(reason)}" for reason in result.reasons),
        "",
    ]
    sets = [each for each in (result.target, result.retention, *result.earlier) if each is not None]
    if sets:
        lines += table(
            ("SET", "ITEMS", "FACTS", "BEFORE", "AFTER", "BETTER", "WORSE", "CHANGE", "INTERVAL"),
            [_set_row(each) for each in sets],
        )
        lines += [line for each in sets if (line := _decided(each, result.corrected_alpha))]
    transfer = result.backward_transfer
    return [
        *lines,
        "",
        f"power {result.power:.2f} to see {result.min_gain * 100:.0f} points;"
        f" smallest gain seen with power 0.8: {result.detectable_gain * 100:.1f}",
        *([] if transfer is None else [f"backward transfer {transfer * 100:+.1f}"]),
    ]


def _decided(each: SetResult, alpha: float) -> str:
    """What the figure that decides is, and what it has to be."""
    if each.p_value is not None:
        return f"{printable(each.name)}: p is {each.p_value:.4f}, at most {alpha:.4f} passes"
    if each.bound is not None:
        least = -(each.margin or 0) * 100
        return f"{printable(each.name)}: the change is {each.bound * 100:+.1f} at worst, at least {least:+.1f} passes"
    return ""


def _set_row(each: SetResult) -> tuple[str, ...]:
    return (
        printable(each.name),
        number(each.items),
        number(each.clusters),
        f"{each.score_before * 100:.1f}",
        f"{each.score * 100:.1f}",
        number(each.better),
        number(each.worse),
        f"{each.difference * 100:+.1f}",
        f"{each.low * 100:+.1f} to {each.high * 100:+.1f}",
    )


def _configure_why(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job_id", metavar="JOB", help="a job, or the id of an evaluation")
    parser.add_argument("--only", choices=("all", "changed", "better", "worse"), default="changed", help="(changed)")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="items at most (20)")
    configure_json(parser)


def _run_why(args: argparse.Namespace) -> int:
    is_evaluation = args.job_id.startswith("eval-")
    body = GateShow(
        job_id=None if is_evaluation else args.job_id,
        evaluation_id=args.job_id if is_evaluation else None,
        only=args.only,
        limit=args.limit,
    )

    async def ask(client: Client) -> int:
        shown: GateShown = await client.request("learning.gate.show", body)
        if args.json:
            print_json(shown, indent=2)
            return exits.OK
        width = terminal_width()
        for line in [*result_lines(shown.result), "", *item_lines(shown.items, shown.total)]:
            write_line(fit(line, width))
        return exits.OK

    return run_with_client(args, ask)


def item_lines(items: list[GateItem], total: int) -> list[str]:
    """Each item with the answer wanted and both answers given, one below the other so that they can be compared."""
    if not total:
        return ["no item of this kind"]
    lines = []
    for one in items:
        turned = "better" if one.score > one.score_before else "worse" if one.score < one.score_before else "same"
        lines += [
            f"{printable(one.set)}, {turned}: {one_line(one.question, 400)}",
            f"  wanted  {one_line(one.reference, 400)}",
            f"  before  {one_line(one.answer_before, 400)}",
            f"  now     {one_line(one.answer, 400)}",
        ]
    left = total - len(items)
    return [*lines, *([f"{left:,} more"] if left > 0 else [])]


def _configure_power(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("--version", type=int, metavar="N", help="(the newest)")
    configure_json(parser)


def _run_power(args: argparse.Namespace) -> int:
    async def ask(client: Client) -> int:
        body = PowerShow(dataset=args.dataset, version=args.version)
        stated: PowerStatement = await client.request("learning.gate.power", body)
        if args.json:
            print_json(stated, indent=2)
        else:
            write_line(printable(stated.words))
        return exits.OK if stated.is_enough else exits.FAILED

    return run_with_client(args, ask)


# promote, rollback, adapters and watch ----------------------------------------------------------------------------


def _configure_promote(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job_id", metavar="JOB")
    parser.add_argument("--share", type=float, metavar="0..1", help="part of the conversations that get it at first")
    parser.add_argument("--force", action="store_true", help="although the gate did not pass it; needs --reason")
    parser.add_argument("--reason", default="")
    configure_json(parser)


def _run_promote(args: argparse.Namespace) -> int:
    body = Promote(job_id=args.job_id, reason=args.reason, is_forced=args.force, canary_share=args.share)

    async def ask(client: Client) -> int:
        deployment: Deployment = await client.request("learning.promote", body, timeout_s=LONG_S)
        return _say_deployment(deployment, is_json=args.json)

    return run_with_client(args, ask)


def _say_deployment(deployment: Deployment, *, is_json: bool) -> int:
    if is_json:
        print_json(deployment, indent=2)
    elif deployment.state == "rolled_back":
        say(f"{deployment.adapter} is out of service; {deployment.previous or 'the bare model'} serves again")
    else:
        say(f"{deployment.adapter} answers {deployment.share:.0%} of the conversations with {deployment.model}")
    return exits.OK


def _configure_rollback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="(the default one)")
    parser.add_argument("--reason", default="")
    configure_json(parser)


def _run_rollback(args: argparse.Namespace) -> int:
    async def ask(client: Client) -> int:
        body = Rollback(model=args.model, reason=args.reason)
        deployment: Deployment = await client.request("learning.rollback", body)
        return _say_deployment(deployment, is_json=args.json)

    return run_with_client(args, ask)


def _configure_adapters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="only of this one")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="at most (50)")
    configure_json(parser)


def _run_adapters(args: argparse.Namespace) -> int:
    async def ask(client: Client) -> int:
        body = LearnedAdapters(model=args.model, limit=args.limit)
        found: Deployments = await client.request("learning.adapter.list", body)
        if args.json:
            print_json(found, indent=2)
            return exits.OK
        width = terminal_width()
        for line in deployment_lines(found.deployments):
            write_line(fit(line, width))
        return exits.OK

    return run_with_client(args, ask)


def deployment_lines(deployments: list[Deployment]) -> list[str]:
    """A row for each adapter that was put to work."""
    if not deployments:
        return ["no adapter was put to work yet"]
    rows = [
        (
            printable(one.adapter),
            one.state,
            f"{one.share:.0%}",
            day_and_time(one.promoted_at),
            one.job_id,
            one.verdict + (" (forced)" if one.is_forced else ""),
            printable(one.model),
            printable(one.reason),
        )
        for one in deployments
    ]
    return table(("ADAPTER", "STATE", "SHARE", "SINCE", "JOB", "GATE", "MODEL", "REASON"), rows)


def _configure_watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="only this one")
    configure_json(parser)


def _run_watch(args: argparse.Namespace) -> int:
    async def ask(client: Client) -> int:
        found: Watches = await client.request("learning.watch", WatchShow(model=args.model))
        if args.json:
            print_json(found, indent=2)
            return exits.OK
        for each in found.watches:
            write_line("\n".join(watch_lines(each)))
        if not found.watches:
            write_line("no adapter is watched")
        return exits.OK

    return run_with_client(args, ask)


def watch_lines(watched: Watched) -> list[str]:
    """How a new adapter does against what it replaced."""
    promised = (
        "" if watched.promised_pairs is None else f" (a drop of {watched.drop:.0%} in about {watched.promised_pairs:,})"
    )
    return [
        # While it is watched, its words are the figures of the next line.
        f"{watched.model}: {watched.state}" + ("" if watched.state == "watching" else f"; {printable(watched.words)}"),
        f"{watched.pairs:,} pairs{promised}, evidence {watched.evidence:.2f} of {watched.needed:.0f}",
        *table(("ANSWERS BY", "OUTCOMES", "MEAN", "INTERVAL"), [arm_row(watched.new), arm_row(watched.old)]),
    ]


def arm_row(arm: WatchArm) -> tuple[str, str, str, str]:
    """What is known of one of the two that are compared."""
    return (
        printable(arm.adapter) or "bare model",
        number(arm.outcomes),
        "-" if arm.mean is None else f"{arm.mean:.3f}",
        "-" if arm.low is None or arm.high is None else f"{arm.low:.3f} to {arm.high:.3f}",
    )


ACTIONS: Final = (
    Action(
        "evaluate",
        "measure an adapter, and hear what the gate says",
        _configure_evaluate,
        _run_evaluate,
        "olympus learn evaluate job-4f2a9c0d1e22\n"
        "olympus learn evaluate --model olympus-demo --adapter tone --dataset greetings",
    ),
    Action(
        "why",
        "why the gate decided so: figures, and the items that changed",
        _configure_why,
        _run_why,
        "olympus learn why job-4f2a9c0d1e22\nolympus learn why job-4f2a9c0d1e22 --only worse --limit 100",
    ),
    Action(
        "power",
        "what gain could be seen with a dataset, before anything is trained",
        _configure_power,
        _run_power,
        "olympus learn power greetings",
    ),
    Action(
        "promote",
        "put the adapter of a job to work",
        _configure_promote,
        _run_promote,
        "olympus learn promote job-4f2a9c0d1e22 --share 0.1",
    ),
    Action(
        "rollback",
        "take the newest adapter of a model out of service",
        _configure_rollback,
        _run_rollback,
        "olympus learn rollback olympus-demo --reason 'too talkative'",
    ),
    Action(
        "adapters",
        "adapters that were put to work",
        _configure_adapters,
        _run_adapters,
        "olympus learn adapters",
    ),
    Action("watch", "how new adapters do in live traffic", _configure_watch, _run_watch, "olympus learn watch"),
)
