"""`olympus learn feedback`, `opportunities`, `dismiss`, `exchanges`, `forget` and `schedule`."""

from __future__ import annotations

import argparse
import time
from typing import Final, get_args

from bus.cli import exits
from bus.cli.action import Action, configure_json
from bus.cli.confirming import confirm
from bus.cli.connection import run_with_client
from bus.cli.durations import amount
from bus.cli.failures import UsageError, say
from bus.cli.output import (
    day_and_time,
    duration,
    fit,
    one_line,
    plural,
    print_json,
    printable,
    table,
    terminal_width,
    write_line,
)
from bus.client import Client
from schemas.bodies.learning import (
    Exchange,
    ExchangeDelete,
    ExchangeList,
    Exchanges,
    ExchangesDeleted,
    Feedback,
    FeedbackTaken,
    Opportunities,
    Opportunity,
    OpportunityDismiss,
    OpportunityKind,
    OpportunityList,
    OpportunityState,
    PriorityTerms,
)
from schemas.bodies.learning_jobs import Schedule, ScheduleGet, ScheduleSet

# feedback ---------------------------------------------------------------------------------------------------------


def _configure_feedback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reply_id", metavar="REPLY", help="reply_id of the answer; olympus learn exchanges lists them")
    parser.add_argument("--good", action="store_true", help="the answer was good")
    parser.add_argument("--bad", action="store_true", help="the answer was bad")
    parser.add_argument("--rating", type=float, metavar="0..1", help="how good it was")
    parser.add_argument("--fix", metavar="TEXT", help="what should have been answered")
    parser.add_argument("--prefer", metavar="TEXT", help="an answer that is better than the one given")
    parser.add_argument("--comment", default="", metavar="TEXT")
    configure_json(parser)


def _run_feedback(args: argparse.Namespace) -> int:
    if args.good and args.bad:
        raise UsageError("an answer is --good or --bad, not both")
    rating = 1.0 if args.good else 0.0 if args.bad else args.rating
    if rating is None and args.fix is None and args.prefer is None:
        raise UsageError("say what you think of the answer: --good, --bad, --rating, --fix TEXT or --prefer TEXT")
    body = Feedback(
        reply_id=args.reply_id, rating=rating, correction=args.fix, preferred=args.prefer, comment=args.comment
    )

    async def ask(client: Client) -> int:
        taken: FeedbackTaken = await client.request("learning.feedback", body)
        if args.json:
            print_json(taken, indent=2)
        else:
            counts = f", counts towards {taken.opportunity_id}" if taken.opportunity_id else ""
            say(f"kept {taken.feedback_id}{counts}" + (f"; {printable(taken.note)}" if taken.note else ""))
        return exits.OK

    return run_with_client(args, ask)


# opportunities ----------------------------------------------------------------------------------------------------


def _configure_opportunities(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="only of this model")
    parser.add_argument("--kind", choices=get_args(OpportunityKind), help="only of this kind")
    parser.add_argument("--state", choices=get_args(OpportunityState), help="only in this state (open and training)")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="at most (50)")
    parser.add_argument("--long", action="store_true", help="with evidence and what the priority is made of")
    configure_json(parser)


def _run_opportunities(args: argparse.Namespace) -> int:
    body = OpportunityList(model=args.model, kind=args.kind, state=args.state, limit=args.limit)

    async def ask(client: Client) -> int:
        found: Opportunities = await client.request("learning.opportunity.list", body)
        if args.json:
            print_json(found, indent=2)
            return exits.OK
        width = terminal_width()
        now = time.time()
        lines = [line for one in found.opportunities for line in long_lines(one, now)] if args.long else None
        if lines:
            lines += formula_lines(found.opportunities[0].terms)
        for line in lines or opportunity_lines(found.opportunities, now):
            write_line(fit(line, width))
        return exits.OK

    return run_with_client(args, ask)


def opportunity_lines(opportunities: list[Opportunity], now: float) -> list[str]:
    """A row for each opportunity. now: epoch seconds."""
    if not opportunities:
        return ["nothing to learn was noticed yet: olympus learn feedback REPLY --fix TEXT tells of something"]
    rows = [
        (
            one.opportunity_id,
            f"{one.priority:.2f}",
            one.state,
            str(one.count),
            str(one.examples),
            one_line(one.title, 60) + (f" (needs {printable(one.needs)})" if one.needs else ""),
            one.kind,
            duration(max(now - one.last_seen_at, 0)),
            printable(one.model),
        )
        for one in opportunities
    ]
    return table(("ID", "PRIORITY", "STATE", "SEEN", "EXAMPLES", "WHAT", "KIND", "LAST", "MODEL"), rows)


def long_lines(one: Opportunity, now: float) -> list[str]:
    """An opportunity with its evidence and the terms of its priority. now: epoch seconds."""
    terms = one.terms
    return [
        f"{one.opportunity_id}  {one.kind}  {one.state}  {one_line(one.title, 200)}",
        f"  priority {one.priority:.3f}: gain {terms.expected_gain:.2f}, frequency {terms.frequency:.2f},"
        f" recency {terms.recency:.2f}, cost {terms.cost:.2f} ({duration(terms.cost_s)})",
        *([f"  needs {printable(one.needs)}"] if one.needs else []),
        *([f"  {printable(one.reason)}"] if one.reason else []),
        *(
            f"  {duration(max(now - each.at, 0))} ago  {each.kind}  {printable(each.id)}  {one_line(each.note, 60)}".rstrip()
            for each in one.evidence
        ),
        "",
    ]


def formula_lines(terms: PriorityTerms) -> list[str]:
    """What priorities are made of, a term a line."""
    first, *others = printable(terms.formula).split("; ")
    return [f"priority = {first}", *(f"  {term}" for term in others)]


def _configure_dismiss(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("opportunity_id", metavar="ID")
    parser.add_argument("--reason", default="")
    configure_json(parser)


def _run_dismiss(args: argparse.Namespace) -> int:
    body = OpportunityDismiss(opportunity_id=args.opportunity_id, reason=args.reason)

    async def ask(client: Client) -> int:
        found: Opportunity = await client.request("learning.opportunity.dismiss", body)
        if args.json:
            print_json(found, indent=2)
        else:
            say(f"{found.opportunity_id} is off the list and stays off: {one_line(found.title, 60)}")
        return exits.OK

    return run_with_client(args, ask)


# exchanges --------------------------------------------------------------------------------------------------------


def _configure_exchanges(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="only of this model")
    parser.add_argument("--user", help="only of this person")
    parser.add_argument("--session", help="only of this session")
    parser.add_argument("--signal", help="only those with this signal, as low_confidence")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="at most (20)")
    configure_json(parser)


def _run_exchanges(args: argparse.Namespace) -> int:
    body = ExchangeList(model=args.model, user=args.user, session_id=args.session, signal=args.signal, limit=args.limit)

    async def ask(client: Client) -> int:
        found: Exchanges = await client.request("learning.exchange.list", body)
        if args.json:
            print_json(found, indent=2)
            return exits.OK
        width = terminal_width()
        for line in exchange_lines(found.exchanges):
            write_line(fit(line, width))
        return exits.OK

    return run_with_client(args, ask)


def exchange_lines(exchanges: list[Exchange]) -> list[str]:
    """A row for each kept answer."""
    if not exchanges:
        return ["no such answer is kept"]
    rows = [
        (
            one.reply_id,
            day_and_time(one.at),
            one_line(one.messages[-1].content if one.messages else one.prompt or "", 40),
            one_line(one.error or one.text, 40),
            "-" if one.outcome is None else f"{one.outcome:.2f}",
            printable(one.outcome_from) or "-",
            ", ".join(f"{printable(name)} {value:.2f}" for name, value in sorted(one.signals.items())) or "-",
            printable(one.model),
        )
        for one in exchanges
    ]
    return table(("REPLY", "AT", "QUESTION", "ANSWER", "OUTCOME", "FROM", "SIGNALS", "MODEL"), rows)


def _configure_forget(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reply", metavar="ID", help="this answer")
    parser.add_argument("--user", help="everything of this person")
    parser.add_argument("--session", help="everything of this session")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    configure_json(parser)


def _run_forget(args: argparse.Namespace) -> int:
    if sum(each is not None for each in (args.reply, args.user, args.session)) != 1:
        raise UsageError("forget needs one of --reply, --user and --session")
    if not args.yes:
        confirm("forget these answers and the examples made of them")
    body = ExchangeDelete(reply_id=args.reply, user=args.user, session_id=args.session)

    async def ask(client: Client) -> int:
        deleted: ExchangesDeleted = await client.request("learning.exchange.delete", body)
        if args.json:
            print_json(deleted, indent=2)
        else:
            say(f"forgot {plural(deleted.exchanges, 'answer')} and {plural(deleted.rows, 'example')}")
        return exits.OK

    return run_with_client(args, ask)


# schedule ---------------------------------------------------------------------------------------------------------


def _configure_schedule(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hours", metavar="HH:MM-HH:MM,...", help="local hours in which training may run; '' for always"
    )
    parser.add_argument("--days", metavar="mon,tue,...", help="days on which a window begins; '' for all")
    parser.add_argument("--budget", type=amount, metavar="TIME", help="training a day, as 2h; 0 for no limit")
    parser.add_argument("--idle", type=amount, metavar="TIME", help="without a request before a training starts, as 5m")
    parser.add_argument("--pause", action="store_true", help="start nothing, stop what runs at a checkpoint")
    parser.add_argument("--unpause", action="store_true", help="go on")
    parser.add_argument("--automatic", choices=("on", "off"), help="train open opportunities unasked")
    parser.add_argument("--reset", action="store_true", help="back to the settings")
    configure_json(parser)


def _run_schedule(args: argparse.Namespace) -> int:
    if args.pause and args.unpause:
        raise UsageError("--pause and --unpause are opposites")
    change = ScheduleSet(
        hours=args.hours,
        days=args.days.split(",") if args.days else ([] if args.days is not None else None),
        budget_s=args.budget,
        idle_s=args.idle,
        is_paused=True if args.pause else False if args.unpause else None,
        is_automatic=None if args.automatic is None else args.automatic == "on",
        is_reset=args.reset,
    )

    async def ask(client: Client) -> int:
        schedule: Schedule = (
            await client.request("learning.schedule.get", ScheduleGet())
            if change == ScheduleSet()
            else await client.request("learning.schedule.set", change)
        )
        if args.json:
            print_json(schedule, indent=2)
        else:
            write_line("\n".join(schedule_lines(schedule)))
        return exits.OK

    return run_with_client(args, ask)


def schedule_lines(schedule: Schedule) -> list[str]:
    """When training may run, and what waits."""
    budget = f"{duration(schedule.spent_s)} of {duration(schedule.budget_s)}" if schedule.budget_s else "no limit"
    opens = "" if schedule.opens_at is None else day_and_time(schedule.opens_at)
    opens = f"; opens {opens}" if opens and opens not in schedule.reason else ""
    facts = (
        ("now", "open" if schedule.is_open else f"closed: {printable(schedule.reason)}{opens}"),
        ("hours", schedule.hours or "always"),
        ("days", ", ".join(schedule.days) or "all"),
        ("budget today", budget),
        ("idle for", duration(schedule.idle_s) if schedule.idle_s else "not needed"),
        ("automatic", "on" if schedule.is_automatic else "off"),
        ("paused", "yes" if schedule.is_paused else "no"),
        ("running", ", ".join(schedule.running) or "-"),
        ("queued", ", ".join(schedule.queued) or "-"),
    )
    width = max(len(name) for name, _ in facts)
    return [f"{name:<{width}}  {value}" for name, value in facts]


ACTIONS: Final = (
    Action(
        "feedback",
        "say what an answer was worth, and what it should have been",
        _configure_feedback,
        _run_feedback,
        "olympus learn feedback 9f0c2b66a1d04e55b1f2 --good\nolympus learn feedback 9f0c2b66a1d04e55b1f2 --fix Paris",
    ),
    Action(
        "opportunities",
        "what the models could learn, the most worthwhile first",
        _configure_opportunities,
        _run_opportunities,
        "olympus learn opportunities\nolympus learn opportunities --long",
    ),
    Action(
        "dismiss",
        "take an opportunity off the list for good",
        _configure_dismiss,
        _run_dismiss,
        "olympus learn dismiss opp-1c9e4a77b0d2 --reason 'a joke'",
    ),
    Action(
        "exchanges",
        "answers that are kept for a while, and what was noticed about them",
        _configure_exchanges,
        _run_exchanges,
        "olympus learn exchanges --signal low_confidence",
    ),
    Action(
        "forget",
        "forget kept answers and the examples made of them",
        _configure_forget,
        _run_forget,
        "olympus learn forget --user anna --yes",
    ),
    Action(
        "schedule",
        "when training may run",
        _configure_schedule,
        _run_schedule,
        "olympus learn schedule\nolympus learn schedule --hours 22:00-06:00 --budget 2h",
    ),
)
