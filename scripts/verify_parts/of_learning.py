"""AdaptiveLearningSuite: what it noticed, keeps, may train and serves; an answer of this run is rated and forgotten."""

from __future__ import annotations

from typing import Any

from verify_parts.checklist import Check, Group, Skipped
from verify_parts.of_models import loaded_for
from verify_parts.probe import Probe


def opportunities(probe: Probe) -> None:
    found = probe.ask("learning.opportunity.list", {"limit": 5})
    answer = probe.http("GET", probe.port("learning", "rest", "http"), "/opportunities?limit=5")
    probe.expect(answer.status == 200, f"HTTP answered {answer.status}")
    probe.expect(len(answer.body["opportunities"]) == len(found["opportunities"]), "HTTP lists others")
    probe.refused("learning.opportunity.get", {"opportunity_id": probe.ns}, "not_found")


def schedule(probe: Probe) -> None:
    known = probe.ask("learning.schedule.get")
    probe.note(f"training is {'open' if known['is_open'] else 'closed: ' + known['reason']}")
    answer = probe.http("GET", probe.port("learning", "rest", "http"), "/schedule")
    probe.expect(answer.status == 200 and answer.body["budget_s"] == known["budget_s"], "HTTP tells another budget")


def trainings(probe: Probe) -> None:
    probe.ask("learning.training.list", {"limit": 5})
    port = probe.port("learning", "rest", "http")
    probe.expect(probe.http("GET", port, "/training?limit=5").status == 200, "HTTP does not list trainings")
    unknown = probe.http("GET", port, f"/training/{probe.ns}/status")
    probe.expect(unknown.status == 404, f"a training nobody started is answered {unknown.status}")


def datasets(probe: Probe) -> None:
    probe.ask("learning.dataset.list")
    probe.ask("learning.row.list", {"limit": 1})
    probe.refused("learning.dataset.show", {"dataset": probe.ns}, "not_found")


def feedback(probe: Probe) -> None:
    if not probe.settings.learning.observe:
        raise Skipped("learning.observe is off: no answer is kept")
    model = loaded_for(probe, "generate")
    said = probe.ask("model.generate", {"model": model, "prompt": "Hello", "max_tokens": 4}, timeout_s=60)
    reply = {"reply_id": said["reply_id"]}
    probe.afterwards(lambda: probe.ask("learning.exchange.delete", reply))

    # The learning service hears of an answer a moment after its asker.
    def look() -> Any:
        kept = probe.ask("learning.exchange.list", {"model": model, "limit": 50})["exchanges"]
        return next((one for one in kept if one["reply_id"] == said["reply_id"]), None)

    probe.until(look, "the learning service did not hear of the answer")
    port = probe.port("learning", "rest", "http")
    taken = probe.http("POST", port, "/feedback", {**reply, "rating": 1.0, "comment": "scripts/verify.py"})
    probe.expect(taken.status == 200 and taken.body["reply_id"] == said["reply_id"], "the rating was not taken")


def parameters(probe: Probe) -> None:
    probe.ask("learning.parameter.list", {"limit": 5})
    probe.ask("learning.session.list", {"limit": 5})
    probe.refused("learning.parameter.optimize", {"metric": probe.ns}, "not_found")


def adapters(probe: Probe) -> None:
    probe.ask("learning.adapter.list", {"limit": 5})
    probe.ask("learning.watch")


def evaluate(probe: Probe) -> None:
    asked = {"job_id": probe.ns}
    answer = probe.http("POST", probe.port("learning", "rest", "http"), "/evaluate/performance", asked)
    probe.expect(answer.status == 404, f"a job nobody started is answered {answer.status}")


GROUP = Group(
    "learning",
    "opportunities, schedule, trainings, datasets, feedback, parameters, adapters",
    (
        Check("opportunities are listed", opportunities),
        Check("the schedule is told", schedule),
        Check("trainings are listed", trainings),
        Check("datasets and examples are listed", datasets),
        Check("an answer is rated, and forgotten again", feedback),
        Check("parameters and learning sessions are listed", parameters),
        Check("adapters and what is watched are listed", adapters),
        Check("the evaluation route is there", evaluate),
    ),
)
