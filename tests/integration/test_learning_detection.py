"""Detection on a real broker: what is said of answers becomes examples and opportunities, and is forgotten when asked."""

from __future__ import annotations

import asyncio
import contextlib
import math
import shutil
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import msgspec
import pytest

from broker.server import Broker
from bus.authorize import Caller
from bus.client import Client
from bus.settings import Settings
from bus.worker import Call, Worker
from schemas.bodies.learning import (
    AnswerEvent,
    Example,
    Exchange,
    ExchangeDelete,
    ExchangeList,
    ExchangesDeleted,
    Feedback,
    FeedbackTaken,
    Opportunities,
    Opportunity,
    OpportunityAdd,
    OpportunityClose,
    OpportunityDismiss,
    OpportunityGet,
    OpportunityList,
)
from schemas.bodies.model import Chat, ChatMessage, Generation, ModelUnload, Timings, Usage
from schemas.bodies.model_trials import CaseResult, Evaluation, EvaluationReply, Evaluations
from schemas.bodies.sessions import SessionEvent
from schemas.errors import BadRequest, BusError, Conflict, Forbidden, Internal, NotFound, Unsupported
from schemas.purpose import OWN_PURPOSE, UNOBSERVED
from tests.conftest import settings_of
from workers.learning.curation.drafts import Draft, Taken
from workers.learning.detection import feedback
from workers.learning.detection.detection import Detection
from workers.learning.detection.handlers import register
from workers.learning.exchanges import exchanges
from workers.learning.records import learning_records

Serve = Callable[..., AbstractAsyncContextManager[Settings]]

WAIT_S = 20.0
MODEL = "base"


class Rows:
    """Curation that keeps what it is given."""

    def __init__(self) -> None:
        self.drafts: list[Draft] = []
        self.complaints: list[str] = []
        self.error: BusError | None = None

    async def add(self, drafts: Sequence[Draft]) -> list[Taken]:
        if self.error is not None:
            raise self.error
        taken = []
        for draft in drafts:
            is_known = any(
                (one.messages, one.prompt, one.answer) == (draft.messages, draft.prompt, draft.answer)
                for one in self.drafts
            )
            if not is_known:
                self.drafts.append(draft)
            taken.append(Taken(outcome="duplicate" if is_known else "added", row_id=f"row-{len(self.drafts)}"))
        return taken

    async def examples(self, opportunity_ids: Sequence[str]) -> dict[str, int]:
        return {id: sum(draft.opportunity_id == id for draft in self.drafts) for id in opportunity_ids}

    async def forget(self, *, user: str = "", session_id: str = "", evidence: Sequence[str] = ()) -> int:
        before = len(self.drafts)
        self.drafts = [
            one for one in self.drafts if not (set(one.evidence) & set(evidence)) and not (user and one.user == user)
        ]
        return before - len(self.drafts)

    async def complained(self, reply_id: str) -> None:
        self.complaints.append(reply_id)


class House:
    """What a test works with."""

    def __init__(self, client: Client, detection: Detection, rows: Rows, settings: Settings) -> None:
        self.client = client
        self.detection = detection
        self.rows = rows
        self.settings = settings

    async def ask(self, subject: str, body: Any) -> Any:
        return await self.client.request(f"learning.{subject}", body, timeout_s=WAIT_S)

    async def opportunities(self, **more: Any) -> list[Opportunity]:
        found: Opportunities = await self.ask("opportunity.list", OpportunityList(**more))
        return list(found.opportunities)

    async def tell(self, reply_id: str, question: str, text: str = "an answer", **more: Any) -> None:
        """Publish an answer and wait until it is kept."""
        messages = more.pop("messages", [ChatMessage(role="user", content=question)])
        values = {"model": MODEL, "operation": "chat", "at": 1_000.0, **more}
        await self.client.publish(
            "model.answered", AnswerEvent(reply_id=reply_id, messages=messages, text=text, **values)
        )
        await until(lambda: self.is_kept(reply_id), f"{reply_id} is kept")

    async def is_kept(self, reply_id: str) -> bool:
        return bool(await self.detection.exchanges.known([reply_id]))


async def until(holds: Callable[[], Awaitable[bool]], what: str) -> None:
    try:
        async with asyncio.timeout(WAIT_S):
            while not await holds():
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"not within {WAIT_S} s: {what}")


@asynccontextmanager
async def house(settings: Settings, rows: Rows | None = None, **learning: Any) -> AsyncIterator[House]:
    """Detection as a worker, and a client."""
    values = {"keep_days": 36_500.0, "min_examples": 5, "silence_s": 86_400.0, **learning}
    changed = msgspec.structs.replace(settings, learning=msgspec.structs.replace(settings.learning, **values))
    rows = rows or Rows()
    records = learning_records(changed.path("learning.db"))
    await records.open()
    worker = Worker("learning", changed)
    detection = Detection(changed, records, worker.client, curation=rows, publish=worker.publish)
    register(worker, detection)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(records.close)
        client = await stack.enter_async_context(Client(changed, name="test"))
        await detection.start()
        stack.push_async_callback(detection.stop)
        await worker.start(10)
        stack.push_async_callback(worker.stop)
        # Published from now on, an answer arrives: the subscription is there.
        await until(lambda: probed(client, detection), "answers are heard")
        yield House(client, detection, rows, changed)


async def probed(client: Client, detection: Detection) -> bool:
    event = AnswerEvent(reply_id="probe", model="probe", operation="generate", at=1.0, prompt="?", text="!")
    await client.publish("model.answered", event)
    return bool(await detection.exchanges.known(["probe"]))


# Feedback -----------------------------------------------------------------------------------------------------------


async def test_corrections_become_examples_and_one_opportunity_that_is_told_of_once(serve_broker: Serve) -> None:
    """Each with its question, counted towards what it resembles; told when it is worthwhile, and not for each."""
    async with (
        serve_broker() as settings,
        house(settings) as at,
        at.client.subscribe("learning.opportunity.found") as found,
    ):
        for number in range(6):
            await at.tell(f"r{number}", f"What is the access code of station{number}?", adapter="tone:1")
            taken: FeedbackTaken = await at.ask(
                "feedback", Feedback(reply_id=f"r{number}", correction=f"code {number}", user="ann", memory_ids=["m1"])
            )
            assert taken.row_id and taken.opportunity_id
        (told,) = [await asyncio.wait_for(anext(found), WAIT_S)]
        (opportunity,) = await at.opportunities()

        assert msgspec.convert(told.body, Opportunity).opportunity_id == opportunity.opportunity_id
        assert (opportunity.kind, opportunity.count, opportunity.examples, opportunity.needs) == (
            "correction",
            6,
            6,
            "",
        )
        assert 0 < opportunity.priority < 1 and opportunity.terms.expected_gain == pytest.approx(0.95)
        draft = at.rows.drafts[0]
        assert (draft.kind, draft.answer, draft.user, draft.memory_ids) == ("feedback", "code 0", "ann", ["m1"])
        assert draft.messages[0].content == "What is the access code of station0?" and "r0" in draft.evidence
        ((ready,),) = await at.detection.opportunities.together(5)
        assert ready.opportunity_id == opportunity.opportunity_id
        assert await at.detection.opportunities.together(7) == []
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(found), 0.2)


async def test_feedback_told_twice_counts_once_also_after_a_restart(serve_broker: Serve) -> None:
    """The same id is the same feedback, and its answer is the answer it had."""
    rows = Rows()
    async with serve_broker() as settings:
        async with house(settings, rows) as at:
            await at.tell("r", "the code of Kelpo")
            said = Feedback(reply_id="r", correction="42", feedback_id="fb-1")
            first = await at.ask("feedback", said)
            assert await at.ask("feedback", said) == first
        async with house(settings, rows) as at:
            assert await at.ask("feedback", said) == first
            (opportunity,) = await at.opportunities()
            assert (opportunity.count, len(rows.drafts)) == (1, 1)
            assert await at.detection.exchanges.newest(MODEL) > 0


async def test_one_person_is_one_piece_of_evidence_however_often_they_say_it(serve_broker: Serve) -> None:
    """Another person is another one, and the last rating of each is what counts."""
    async with serve_broker() as settings, house(settings) as at:
        await at.tell("r", "Who wrote the anthem?")
        for number in range(5):
            await at.ask("feedback", Feedback(reply_id="r", rating=0.1 * number, user="ann"))
        (opportunity,) = await at.opportunities()
        assert opportunity.count == 1
        await at.ask("feedback", Feedback(reply_id="r", rating=0.0, user="ben"))
        (opportunity,) = await at.opportunities()
        assert opportunity.count == 2
        (exchange,) = (await at.ask("exchange.list", ExchangeList(model=MODEL))).exchanges
        assert exchange.outcome == pytest.approx(0.2)


async def test_what_could_not_be_carried_out_is_so_at_the_next_start(serve_broker: Serve) -> None:
    """Acknowledged means on disk: curation that is away loses nothing."""
    rows = Rows()
    async with serve_broker() as settings:
        async with house(settings, rows) as at:
            await at.tell("r", "the code of Kelpo")
            rows.error = Unsupported("no filter is installed")
            taken = await at.ask("feedback", Feedback(reply_id="r", correction="42"))
            assert "carried out later" in taken.note and not rows.drafts
        rows.error = None
        async with house(settings, rows) as at:

            async def is_there() -> bool:
                return [draft.answer for draft in rows.drafts] == ["42"]

            await until(is_there, "the example")


async def test_a_preferred_answer_becomes_a_preference_and_a_rating_alone_a_question(serve_broker: Serve) -> None:
    """Better beside given; a bad rating waits for somebody who knows; a good one asks for nothing."""
    async with serve_broker() as settings, house(settings) as at:
        await at.tell("r1", "Tell me of the sea", "It is wet.")
        await at.tell("r2", "Who wrote the anthem?")
        await at.tell("r3", "How tall is the tower?")
        await at.ask("feedback", Feedback(reply_id="r1", preferred="It is deep and blue."))
        bad = await at.ask("feedback", Feedback(reply_id="r2", rating=0.0))
        good = await at.ask("feedback", Feedback(reply_id="r3", rating=1.0))

        (draft,) = at.rows.drafts
        assert (draft.answer, draft.rejected) == ("It is deep and blue.", "It is wet.")
        assert (good.opportunity_id, bad.row_id) == ("", "")
        (rated,) = [one for one in await at.opportunities() if one.opportunity_id == bad.opportunity_id]
        assert "correct them, or set learning.teacher" in rated.needs
        outcomes = await at.detection.exchanges.outcomes(MODEL, 0)
        assert [(one.reply_id, one.outcome, one.outcome_from) for one in outcomes] == [
            ("r2", 0.0, "rating"),
            ("r3", 1.0, "rating"),
        ]


async def test_feedback_that_says_or_names_nothing_is_refused_with_what_to_give(serve_broker: Serve) -> None:
    """Empty, unknown, incomplete; an answer nobody saw can be given itself."""
    async with serve_broker() as settings, house(settings) as at:
        await at.tell("r", "Who?", "Ann.")
        for kind, body, word in [
            (BadRequest, Feedback(reply_id="r"), "one is needed"),
            (BadRequest, Feedback(rating=0.0), "neither reply_id"),
            (BadRequest, Feedback(reply_id="r", correction=" "), "correction is empty"),
            (BadRequest, Feedback(reply_id="r", correction="Ann."), "the answer itself"),
        ]:
            with pytest.raises(kind, match=word):
                await at.ask("feedback", body)
        unknown = Feedback(reply_id="gone", correction="Ben.")
        with pytest.raises(NotFound, match="model, messages or prompt"):
            await at.ask("feedback", unknown)
        given = msgspec.structs.replace(unknown, model=MODEL, prompt="Who wrote it?", answer="Ann.")
        assert (await at.ask("feedback", given)).row_id
        assert at.rows.drafts[0].prompt == "Who wrote it?"


async def test_who_signed_in_speaks_for_themselves(serve_broker: Serve) -> None:
    """Another's name takes the scope admin."""
    async with serve_broker() as settings, house(settings) as at:
        await at.tell("r", "Who wrote the anthem?")

        async def say(caller: Caller, user: str) -> None:
            call: Any = type("Signed", (), {"caller": caller, "id": bytes(16), "headers": {}})()
            said = Feedback(reply_id="r", correction=f"{caller.user_id} for {user}", user=user, feedback_id=f"f-{user}")
            await at.detection.take_feedback(said, call)

        ann = Caller(user_id="ann", scopes=("learning:feedback",), namespaces=())
        await say(ann, "")
        with pytest.raises(Forbidden, match="speak for others"):
            await say(ann, "ben")
        await say(Caller(user_id="root", scopes=("admin",), namespaces=("*",)), "ben")
        assert [draft.user for draft in at.rows.drafts] == ["ann", "ben"]


# Opportunities ------------------------------------------------------------------------------------------------------


async def test_signals_of_live_traffic_become_opportunities(serve_broker: Serve) -> None:
    """Errors by their code, empty answers, and doubt beside what is usual."""
    async with serve_broker() as settings, house(settings) as at:
        for number in range(40):
            await at.client.publish(
                "model.answered",
                AnswerEvent(
                    reply_id=f"u{number}",
                    model=MODEL,
                    operation="chat",
                    at=1_000.0,
                    messages=[ChatMessage(role="user", content=f"usual thing{number}")],
                    text="sure",
                    mean_logprob=-0.1 - 0.001 * (number % 5),
                ),
            )
        for number in range(3):
            await at.tell(f"e{number}", f"anything{number}", "", error="internal: it broke", adapter="")
        await at.tell("d1", "the orbit of Halley", mean_logprob=-4.0)
        await at.tell("d2", "orbit of Halley again", "", mean_logprob=None)

        async def both() -> bool:
            return sorted(one.count for one in await at.opportunities()) == [2, 3]

        await until(both, "two opportunities with all their evidence")
        other, errors = sorted(await at.opportunities(), key=lambda one: one.count)
        assert (errors.kind, "internal" in errors.title) == ("error", True) and errors.needs.startswith("a person")
        assert {(one.id, one.kind) for one in other.evidence} == {("d1", "low_confidence"), ("d2", "error")}


async def test_outcomes_that_fall_are_an_opportunity_of_their_own(serve_broker: Serve) -> None:
    """Silence is consent; then errors come; followed from where it was left off after a restart, and told of once."""
    async with serve_broker() as settings:

        async def publish(at: House, name: str, **more: Any) -> None:
            for number in range(100):
                reply_id, now = f"{name}{number}", 1_000.0 + number
                event = AnswerEvent(
                    reply_id=reply_id, model=MODEL, operation="generate", at=now, prompt=f"thing{number}", **more
                )
                await at.client.publish("model.answered", event)

        async def is_followed() -> bool:
            return await at.detection.exchanges.newest(MODEL) >= 100

        async with house(settings, silence_s=1.0) as at:
            await publish(at, "good", text="fine")
            await until(is_followed, "silence is consent")
            assert await at.opportunities() == []
        async with house(settings, silence_s=1.0) as at:
            await publish(at, "bad", error="internal: it broke", adapter="")

            async def is_noticed() -> bool:
                return {one.kind for one in await at.opportunities()} == {"error", "drift"}

            await until(is_noticed, "errors and drift")
            (drift,) = await at.opportunities(kind="drift")
            assert drift.evidence and {one.id[:3] for one in drift.evidence} == {"bad"}


async def test_a_dismissed_opportunity_is_not_brought_up_again(serve_broker: Serve) -> None:
    """Nearly the same again counts for nothing, after a restart too; others are not touched."""
    async with serve_broker() as settings:
        async with house(settings) as at:
            await at.tell("r1", "Who wrote the anthem?")
            first = await at.ask("feedback", Feedback(reply_id="r1", rating=0.0))
            gone = await at.ask(
                "opportunity.dismiss", OpportunityDismiss(opportunity_id=first.opportunity_id, reason="known")
            )
            assert (gone.state, gone.reason) == ("dismissed", "known")
        async with house(settings) as at:
            await at.tell("r2", "who wrote that anthem")
            again = await at.ask("feedback", Feedback(reply_id="r2", rating=0.0))
            assert again.opportunity_id == "" and "dismissed" in again.note
            assert await at.opportunities() == []
            told = await at.ask("opportunity.add", OpportunityAdd(title="wrote the anthem", model=MODEL))
            assert told.opportunity_id == first.opportunity_id
            await at.tell("r3", "How tall is the tower?")
            assert (await at.ask("feedback", Feedback(reply_id="r3", rating=0.0))).opportunity_id
            (shown,) = await at.opportunities(state="dismissed")
            assert shown.opportunity_id == first.opportunity_id


async def test_what_somebody_dealt_with_counts_as_learned_and_its_like_opens_a_new_one(serve_broker: Serve) -> None:
    """Unlike what was dismissed; it is still shown by its id and by a name it was told of under."""
    async with serve_broker() as settings, house(settings) as at:
        told = OpportunityAdd(title="Codes of stations", model=MODEL, opportunity_id="told-1")
        await at.ask("opportunity.add", told)
        await at.ask("opportunity.add", msgspec.structs.replace(told, opportunity_id="told-2"))

        closed = await at.ask(
            "opportunity.close", OpportunityClose(opportunity_id="told-2", reason="in the prompt now")
        )
        shown = await at.ask("opportunity.get", OpportunityGet(opportunity_id="told-2"))
        again = await at.ask("opportunity.add", msgspec.structs.replace(told, opportunity_id="told-3"))

        assert (closed.opportunity_id, closed.state, closed.reason) == ("told-1", "learned", "in the prompt now")
        assert shown == closed
        assert (again.opportunity_id, again.state) == ("told-3", "open")
        for name in ("opportunity.get", "opportunity.close"):
            with pytest.raises(NotFound, match="nobody"):
                await at.ask(name, {"opportunity_id": "nobody"})
        await at.detection.opportunities.mark(["told-3"], "training", job_id="job-1")
        with pytest.raises(Conflict, match="job-1"):
            await at.ask("opportunity.close", OpportunityClose(opportunity_id="told-3"))


async def test_exchanges_are_counted_past_what_is_shown(serve_broker: Serve) -> None:
    """Of those that match."""
    async with serve_broker() as settings, house(settings) as at:
        for number in range(3):
            await at.tell(f"r{number}", "How tall is the tower?")

        page = await at.ask("exchange.list", ExchangeList(model=MODEL, limit=1))
        others = await at.ask("exchange.list", ExchangeList(model="another"))

        assert (len(page.exchanges), page.total) == (1, 3)
        assert (others.exchanges, others.total) == ([], 0)


async def test_what_is_told_by_hand_joins_its_like_and_keeps_its_name(serve_broker: Serve) -> None:
    """With examples, category and score; told twice it is the same; a name that joined another is found by it."""
    async with serve_broker() as settings, house(settings) as at:
        one = OpportunityAdd(
            title="Codes of stations",
            model=MODEL,
            category="explicit_correction",
            source="detector",
            score=0.9,
            examples=[Example(prompt="code of station Kelpo", answer="42")],
            opportunity_id="told-1",
        )
        first = await at.ask("opportunity.add", one)
        assert (first.opportunity_id, first.kind, first.examples, first.score) == ("told-1", "manual", 1, 0.9)
        assert (await at.ask("opportunity.add", one)).count == 1
        joined = await at.ask(
            "opportunity.add", msgspec.structs.replace(one, title="Another", opportunity_id="told-2", evidence=["e2"])
        )
        assert (joined.opportunity_id, joined.count) == ("told-1", 2)
        assert (await at.detection.opportunities.get("told-2")).opportunity_id == "told-1"
        assert [item.opportunity_id for item in await at.opportunities(category="explicit_correction")] == ["told-1"]
        with pytest.raises(NotFound):
            await at.ask("opportunity.dismiss", OpportunityDismiss(opportunity_id="nobody"))


async def test_scattered_lessons_of_a_model_are_trained_together(serve_broker: Serve) -> None:
    """None has enough by itself, all have; what a job took on is not offered again, and evidence since then is new."""
    questions = ["Who wrote the anthem?", "How tall is the tower?", "What does a barometer measure?"]
    async with serve_broker() as settings, house(settings) as at:
        book = at.detection.opportunities
        for number, question in enumerate(questions):
            await at.tell(f"r{number}", question)
            await at.ask("feedback", Feedback(reply_id=f"r{number}", correction=f"answer {number}"))
        assert await book.ready(3) == [] and await book.together(4) == []
        (group,) = await book.together(3)
        ids = [one.opportunity_id for one in group]
        assert len(ids) == 3

        await book.mark([*ids, "unknown"], "training", job_id="job-1")
        assert await book.together(3) == []
        with pytest.raises(Conflict, match="job-1"):
            await at.ask("opportunity.dismiss", OpportunityDismiss(opportunity_id=ids[0]))
        await at.tell("new", "Who wrote the anthem, please?")
        newer = await at.ask("feedback", Feedback(reply_id="new", correction="Ben"))
        assert newer.opportunity_id not in ids
        await book.mark(ids, "learned", job_id="job-1")
        assert {one.state for one in await at.opportunities(state="learned")} == {"learned"}
        await book.note_cost(MODEL, 100, 1_000.0)
        (left,) = await at.opportunities()
        assert left.terms.cost_s > 50


async def test_who_is_forgotten_leaves_nothing(serve_broker: Serve) -> None:
    """Exchanges, examples, what was said, and every title and topic made of it; what others said stays."""
    async with serve_broker() as settings, house(settings) as at:
        await at.tell("a1", "the secret garden of Ann", caller="ann")
        await at.tell("b1", "the tower of Ben", caller="ben")
        for reply_id in ("a1", "b1"):
            await at.ask("feedback", Feedback(reply_id=reply_id, correction="so it is", user=reply_id[0]))
        with pytest.raises(BadRequest, match="one is needed"):
            await at.ask("exchange.delete", ExchangeDelete())
        gone: ExchangesDeleted = await at.ask("exchange.delete", ExchangeDelete(user="ann"))

        assert (gone.exchanges, gone.rows) == (1, 1)
        left: list[Exchange] = (await at.ask("exchange.list", ExchangeList(model=MODEL))).exchanges
        assert [one.reply_id for one in left] == ["b1"]
        (opportunity,) = await at.opportunities()
        assert "Ben" in opportunity.title
        assert [one.evidence[-1] for one in at.rows.drafts] == ["b1"]
        # With the log of the file, while it is open.
        kept = b"".join(file.read_bytes() for file in at.settings.path("learning.db").parent.glob("learning.db*"))
    assert b"tower of Ben" in kept
    assert b"secret garden" not in kept


async def test_a_name_takes_the_evidence_whose_exchange_is_gone(serve_broker: Serve) -> None:
    """Of exchanges that made room for newer ones, and of what others said of their questions."""
    async with serve_broker() as settings, house(settings) as at:
        await at.tell("a1", "the secret garden of Ann", caller="ann")
        await at.tell("a2", "the hidden orchard of Ann", caller="ann", error="internal: broken")
        await at.ask("feedback", Feedback(reply_id="a1", correction="so it is", user="ben"))
        await until(lambda: found(at, 2), "a correction and an error")
        await at.detection.exchanges.delete(["a1", "a2"])
        await at.ask("exchange.delete", ExchangeDelete(user="ann"))
        assert await at.opportunities() == []
        assert at.rows.drafts == []


async def found(at: House, count: int) -> bool:
    return len(await at.opportunities()) == count


async def test_an_answer_of_two_people_is_forgotten_for_the_right_one(serve_broker: Serve) -> None:
    """With both an answer and a person nothing is touched that is not both."""
    async with serve_broker() as settings, house(settings) as at:
        await at.tell("b1", "the tower of Ben", caller="ben")
        await at.ask("feedback", Feedback(reply_id="b1", correction="so it is", user="ben"))
        gone = await at.ask("exchange.delete", ExchangeDelete(reply_id="b1", user="ann"))
        assert (gone.exchanges, gone.rows, len(at.rows.drafts)) == (0, 0, 1)
        gone = await at.ask("exchange.delete", ExchangeDelete(reply_id="b1", user="ben"))
        assert (gone.exchanges, gone.rows) == (1, 1)


async def test_what_is_forgotten_while_it_is_worked_on_does_not_come_back(serve_broker: Serve) -> None:
    """The correction of an answer that is deleted before it became evidence is evidence of nothing."""
    async with serve_broker() as settings, house(settings) as at:
        judge = at.detection.exchanges.judge

        async def slow(reply_id: str, outcome: float, outcome_from: str) -> None:
            await judge(reply_id, outcome, outcome_from)
            await at.ask("exchange.delete", ExchangeDelete(reply_id="a1"))

        at.detection.exchanges.judge = slow  # type: ignore[method-assign]
        await at.tell("a1", "the secret garden of Ann")
        await at.ask("feedback", Feedback(reply_id="a1", correction="so it is"))
        assert await at.opportunities() == []


async def test_old_evidence_goes_with_its_words(serve_broker: Serve) -> None:
    """What is learned, expired or still open keeps no question for longer than exchanges are kept."""
    async with serve_broker() as settings, house(settings) as at:
        for reply_id, question in (("a", "the secret garden"), ("b", "the tall tower"), ("c", "the old mill")):
            await at.ask(
                "feedback",
                Feedback(feedback_id=reply_id, model=MODEL, prompt=question, answer="no", correction="yes"),
            )
        book = at.detection.opportunities
        ids = {one.title.rpartition(" ")[2]: one.opportunity_id for one in await at.opportunities()}
        assert set(ids) == {"garden", "tower", "mill"}
        await book.mark([ids["garden"]], "learned", job_id="j")
        await at.ask("opportunity.dismiss", OpportunityDismiss(opportunity_id=ids["mill"]))
        await book._expire(time.time() + 40_000 * 86_400)
        titles = {
            one.state: (one.title, one.count)
            for state in ("learned", "expired", "dismissed")
            for one in await at.opportunities(state=state)
        }
        assert titles == dict.fromkeys(("learned", "expired", "dismissed"), ("Corrected answers", 0))
        again = Feedback(model=MODEL, prompt="the old mill", answer="no", correction="yes")
        assert (await at.ask("feedback", again)).note.endswith("resembles what was dismissed")


async def test_what_is_no_answer_stops_nobody(serve_broker: Serve) -> None:
    """Times and certainties that are no numbers are passed over; one of the future is of now."""
    async with serve_broker() as settings, house(settings) as at:
        for number, wrong in enumerate(({"at": math.inf}, {"at": math.nan}, {"mean_logprob": math.nan})):
            values: dict[str, Any] = {"at": 1_000.0, **wrong}
            event = AnswerEvent(reply_id=f"w{number}", model=MODEL, operation="chat", caller="ann", **values)
            await at.client.publish("model.answered", event)
        await at.tell("future", "when?", at=1e300, caller="ann")
        listed = (await at.ask("exchange.list", ExchangeList(model=MODEL))).exchanges
        assert [one.reply_id for one in listed] == ["future"]
        assert listed[0].at <= time.time()


async def test_one_feedback_id_is_one_feedback(serve_broker: Serve) -> None:
    """What another person, or the same one, says otherwise under it is refused and not lost."""
    async with serve_broker() as settings, house(settings) as at:
        await at.tell("a1", "Who?")
        said = Feedback(reply_id="a1", correction="Ann", user="ann", feedback_id="f")
        first = await at.ask("feedback", said)
        assert await at.ask("feedback", said) == first
        for other in (
            Feedback(reply_id="a1", correction="Ann", user="ben", feedback_id="f"),
            Feedback(reply_id="a1", correction="Ben", user="ann", feedback_id="f"),
        ):
            with pytest.raises(Conflict, match="something else was said under feedback_id 'f'"):
                await at.ask("feedback", other)


async def test_an_answer_that_was_called_bad_is_no_example_to_repeat(serve_broker: Serve) -> None:
    """Curation is told of each, and not of those that are good."""
    async with serve_broker() as settings, house(settings) as at:
        for reply_id, rating in (("good", 1.0), ("bad", 0.0)):
            await at.tell(reply_id, f"Who is {reply_id}?")
            await at.ask("feedback", Feedback(reply_id=reply_id, rating=rating))
        assert at.rows.complaints == ["bad"]


async def test_feedback_is_looked_after_also_when_the_records_failed(
    serve_broker: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look that fails is not the last one."""
    monkeypatch.setattr(feedback, "_RETRY_S", 0.01)
    looks = iter([None])
    looked = asyncio.Event()

    def undone(connection: object) -> list[Any]:
        for _ in looks:
            raise Internal("the disk is full")
        looked.set()
        return []

    monkeypatch.setattr(feedback, "_undone", undone)
    async with serve_broker() as settings, house(settings):
        async with asyncio.timeout(WAIT_S):
            await looked.wait()


async def test_a_session_deleted_in_memory_is_forgotten_here(serve_broker: Serve) -> None:
    """One that was only closed is not."""
    async with serve_broker() as settings, house(settings) as at:
        for name in ("kept", "gone"):
            await at.tell(name, f"the tower of {name}", conversation_id=name)
            await at.ask("feedback", Feedback(reply_id=name, correction="tall"))
            assert at.rows.drafts[-1].session_id == name

        async def is_forgotten() -> bool:
            # Told until it is heard: the subscription comes about in the background.
            for name, state in (("kept", "closed"), ("gone", "deleted")):
                body = SessionEvent(session_id=name, ns="session", user_id="", state=state, turns=1, at=1.0)
                await at.client.publish("memory.session.closed", body)
            left = (await at.ask("exchange.list", ExchangeList(model=MODEL))).exchanges
            return [one.reply_id for one in left] == ["kept"]

        await until(is_forgotten, "one exchange is left")
        assert [one.evidence[-1] for one in at.rows.drafts] == ["kept"]


async def test_answers_are_heard_again_after_an_outage_of_the_bus(settings: Settings, tmp_path: Any) -> None:
    """The broker comes back on its ports, and what is answered from then on is kept."""
    broker = Broker(settings)
    await broker.start()
    fixed = settings_of(broker)
    try:
        async with house(fixed) as at:
            await broker.stop()
            broker = Broker(fixed)
            await broker.start()

            async def is_heard() -> bool:
                event = AnswerEvent(reply_id="after", model=MODEL, operation="generate", at=2.0, prompt="?", text="!")
                await at.client.publish("model.answered", event)
                return await at.is_kept("after")

            await until(is_heard, "an answer after the outage")
            assert (await at.ask("feedback", Feedback(reply_id="after", correction="42"))).row_id
    finally:
        await broker.stop()


async def test_a_storm_of_answers_is_bounded_and_what_was_dropped_is_told(
    serve_broker: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the room there is, answers are dropped and counted; the service answers all the while."""
    monkeypatch.setattr(exchanges, "_WAITING_BYTES", 20_000)
    slow = threading.Event()
    async with serve_broker() as settings, house(settings) as at:
        held = asyncio.ensure_future(at.detection._records.run(lambda connection: slow.wait(WAIT_S)))
        try:
            for number in range(500):
                event = AnswerEvent(
                    reply_id=f"s{number}", model=MODEL, operation="generate", at=2.0, prompt="x" * 900, text="!"
                )
                await at.client.publish("model.answered", event)

            async def has_dropped() -> bool:
                return at.detection.exchanges.dropped > 300

            await until(has_dropped, "answers are dropped")
            assert at.detection.exchanges._waiting_bytes <= 20_000
        finally:
            slow.set()
        await held

        async def is_all_accounted_for() -> bool:
            kept = (await at.ask("exchange.list", ExchangeList(model=MODEL, limit=1_000))).exchanges
            return len(kept) + at.detection.exchanges.dropped == 500

        await until(is_all_accounted_for, "every answer is kept or counted")
        dropped = at.detection.exchanges.dropped
    said = [record for record in caplog.records if getattr(record, "action", "") == "learning.dropped"]
    assert sum(getattr(record, "count", 0) for record in said) == dropped > 0


# Teacher and evaluations --------------------------------------------------------------------------------------------


class Models:
    """A model service: a teacher who knows everything, and one evaluation."""

    def __init__(self) -> None:
        self.headers: list[Any] = []

    def bind(self, worker: Worker) -> None:
        worker.handle("model.chat", self.chat)
        worker.handle("model.evaluation.list", self.list)
        worker.handle("model.evaluation.get", self.get)

    async def chat(self, request: Chat, call: Call) -> Generation:
        self.headers.append(call.headers)
        assert request.model == "master"
        return Generation(
            model="master",
            text="Haydn",
            token_ids=[],
            finish_reason="stop",
            usage=Usage(prompt_tokens=1, completion_tokens=1),
            timings=Timings(prompt_s=0.0, generate_s=0.0, first_token_s=0.0, tokens_per_s=0.0),
        )

    def evaluation(self) -> Evaluation:
        return Evaluation(
            evaluation_id="e1",
            model=MODEL,
            suite="sums",
            status="done",
            started_at=1.0,
            finished_at=2.0,
            scores=[],
            cases=2,
            errors=0,
            suite_sha256="",
            model_sha256=None,
            adapter=None,
            seeds=[0, 1],
            confidence=0.95,
        )

    async def list(self, request: Any, call: Call) -> Evaluations:
        return Evaluations(evaluations=[self.evaluation()])

    async def get(self, request: Any, call: Call) -> EvaluationReply:
        right = CaseResult(case_id="right", seed=0, answer="4", scores={"exact_match": 1.0})
        wrong = [
            CaseResult(case_id="w", seed=seed, answer="5", scores={"exact_match": 0.0}, prompt="2 + 3 =", expected="5.")
            for seed in (0, 1)
        ]
        return EvaluationReply(evaluation=self.evaluation(), cases=[right, *wrong])


async def test_failed_cases_and_a_teachers_answers_become_examples(serve_broker: Serve) -> None:
    """A case once, however many seeds, and only once ever; the teacher's rows say whose they are, and ask unobserved."""
    rows = Rows()
    async with serve_broker() as settings:
        worker, models = Worker("model", settings), Models()
        models.bind(worker)
        await worker.start(10)
        try:
            for _ in range(2):
                async with house(settings, rows, teacher="master") as at:

                    async def is_taught() -> bool:
                        return {draft.kind for draft in rows.drafts} == {"evaluation", "teacher"}

                    for number in range(2):
                        await at.tell(f"r{number}", f"Who wrote the anthem in year{number}?")
                        await at.ask("feedback", Feedback(reply_id=f"r{number}", rating=0.0, feedback_id=f"f{number}"))
                    await at.detection._teacher.ask_some()
                    await until(is_taught, "both kinds of examples")
        finally:
            await worker.stop()
    evaluated = [draft for draft in rows.drafts if draft.kind == "evaluation"]
    assert [(draft.prompt, draft.answer, draft.source) for draft in evaluated] == [("2 + 3 =", "5.", "suite sums")]
    taught = [draft for draft in rows.drafts if draft.kind == "teacher"]
    assert [(draft.answer, draft.source) for draft in taught] == [("Haydn", "teacher master")] * 2
    assert len(models.headers) == 2 and all(headers["purpose"] == OWN_PURPOSE for headers in models.headers)


# The real model service ---------------------------------------------------------------------------------------------


async def test_an_answer_of_the_model_service_can_be_rated_by_the_id_its_reply_names(
    serve_broker: Serve, tmp_path: Any
) -> None:
    """Loaded first or asked directly; a failure is told once; trials are not live traffic."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from workers.models.catalogue import SHIPPED_ROOT
    from workers.models.service import ModelService

    name = "olympus-demo"
    async with serve_broker() as settings, house(settings) as at:
        root = settings.path("models")
        root.mkdir(parents=True, exist_ok=True)
        shutil.copy(SHIPPED_ROOT / f"{name}.gguf", root / "twin.gguf")
        values = {"default": "none", "predict": False}
        service = ModelService(
            msgspec.structs.replace(settings, models=msgspec.structs.replace(settings.models, **values))
        )
        await service.start()
        try:

            async def ask(subject: str, **more: Any) -> Generation:
                request = Chat(messages=[ChatMessage(role="user", content="hello")], model=name, max_tokens=4)
                return await at.client.request(subject, request, timeout_s=WAIT_S, **more)  # type: ignore[no-any-return]

            await ask("model.chat", headers=UNOBSERVED)
            relayed = await ask("model.chat")
            direct = await ask(f"model.chat@{name}")
            assert len({relayed.reply_id, direct.reply_id, ""}) == 3
            for reply in (relayed, direct):
                taken = await at.ask("feedback", Feedback(reply_id=reply.reply_id, correction="Good day."))
                assert taken.reply_id == reply.reply_id and taken.row_id
            with pytest.raises(BusError):
                too_long = Chat(messages=[ChatMessage(role="user", content="word " * 3_000)], model=name)
                await at.client.request("model.chat", too_long, timeout_s=WAIT_S)

            async def all_kept() -> bool:
                return len((await at.ask("exchange.list", ExchangeList(model=name))).exchanges) == 3

            await until(all_kept, "three exchanges")
            kept = (await at.ask("exchange.list", ExchangeList(model=name))).exchanges
            assert sorted(one.text for one in kept) == sorted(["", relayed.text, direct.text])
            assert all(one.mean_logprob is not None for one in kept if not one.error)
            await at.client.request("model.unload", ModelUnload(model=name), timeout_s=WAIT_S)
        finally:
            await service.stop()
