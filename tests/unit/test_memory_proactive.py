"""The proactive monitor: what it notices, with which evidence, how often, and how it is silenced."""

from __future__ import annotations

import asyncio
import itertools
import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.authorize import Caller
from schemas.bodies.items import DocDelete, DocPut, MemoryAdd, MemoryDelete, MemoryUpdate
from schemas.bodies.memory import Forget, Remember
from schemas.bodies.sessions import SuggestDismiss, Suggestion, SuggestList, SuggestSwitch
from schemas.bodies.upkeep import ExportPart, ExportRecord, MemoryExport, MemoryImport, NewRecord
from schemas.errors import NotFound
from tests.sessions_bench import START_S, Bench, GivenFinder, bench, hit
from workers.memory.items.documents import Documents
from workers.memory.items.memories import Memories
from workers.memory.outcome import Outcome
from workers.memory.sessions import proactive_policy as policy
from workers.memory.sessions import said
from workers.memory.sessions.proactive import PER_HOUR, PROMISES_EVERY_S
from workers.memory.upkeep.export import export
from workers.memory.upkeep.importing import import_records

DAY_S = 86_400.0
HOUR_S = 3_600.0


async def look(at: Bench, session_id: str = "s", ns: str = "session") -> list[Suggestion]:
    return await at.parts.monitor.look(ns, session_id)


async def listed(at: Bench, **fields: Any) -> list[Suggestion]:
    return (await at.parts.monitor.listing(SuggestList(**fields))).suggestions


async def switch(at: Bench, is_on: bool, user_id: str | None = None) -> bool:
    reply = await at.parts.monitor.switch(SuggestSwitch(is_on=is_on, user_id=user_id), os.urandom(16))
    return reply.is_on


def kinds(made: Sequence[Suggestion]) -> list[str]:
    return [suggestion.kind for suggestion in made]


# What it notices ----------------------------------------------------------------------------------------------------


async def test_a_stated_preference_is_suggested_to_be_remembered(tmp_path: Path) -> None:
    """With the sentence as evidence, as an event, and never again."""
    async with bench(tmp_path) as at:
        await at.session(user_id="ada")
        await at.say("Hello. I prefer trains over planes, because of the view. How about you?")
        at.heard("")
        (made,) = await look(at)
        assert (made.kind, made.text) == (
            "remember",
            'Remember "prefers trains over planes: trains over planes" (preference)?',
        )
        (evidence,) = made.evidence
        assert (evidence.kind, evidence.id) == ("turn", "s/1")
        assert evidence.text == "I prefer trains over planes, because of the view."
        assert made.reason
        assert 0 < made.confidence <= 1
        assert at.heard("memory.suggestion.made") == [made]
        assert await listed(at) == [made]

        await at.say("As I said, I prefer trains over planes.")
        assert await look(at) == []


async def test_what_is_known_already_is_not_suggested(tmp_path: Path) -> None:
    """A fact that holds the value is enough; what others than the user say is not theirs."""
    async with bench(tmp_path) as at:
        await at.store.remember(Remember(key="travels by", value="Trains over planes"), os.urandom(16))
        await at.session()
        await at.say("I prefer trains over planes.")
        await at.say("I prefer tea.", role="assistant")
        assert await look(at) == []


@pytest.mark.parametrize(
    ("key", "value", "said", "is_known"),
    [
        ("home", "Århus", "I live in Århus.", True),
        ("home", "A\u030arhus, at the harbour", "I live in Århus.", True),
        ("street", "Hauptstraße 5", "I live in Hauptstraße 5.", True),
        ("home", "Aarhus", "I live in Århus.", False),
        ("birthday party", "the final guest list", "My name is Al.", False),
        ("name", "Al Green", "My name is Al.", True),
        ("nickname", "ÉLODIE", "My name is Élodie.", True),
        ("dislikes mornings", "yes", "I hate mornings.", True),
        ("likes \U0001f355", "\U0001f355", "I love \U0001f355.", True),
        ("food", "bread", "I love \U0001f355.", False),
        ("drinks", 'tea "with" milk', 'I prefer tea "with" milk.', True),
    ],
)
async def test_known_is_what_a_fact_holds_in_whole_words(
    tmp_path: Path, key: str, value: str, said: str, is_known: bool
) -> None:
    """Whatever their case and alphabet; a part of a word is another one."""
    async with bench(tmp_path) as at:
        await at.store.remember(Remember(key=key, value=value), os.urandom(16))
        await at.session()
        await at.say(said)
        assert kinds(await look(at)) == ([] if is_known else ["remember"])


async def test_an_earlier_conversation_on_the_same_topic_is_brought_up(tmp_path: Path) -> None:
    """Found by the real search: who opens a session on a topic hears when it was spoken of."""
    async with bench(tmp_path) as at:
        await at.session("old", user_id="ada")
        await at.say("The greenhouse needs new glass before the rhubarb freezes", session_id="old")
        at.wait(3 * DAY_S)
        await at.session(user_id="ada")
        await at.say("Which glass would you take for a greenhouse with rhubarb?")
        (made,) = await look(at)
        assert made.kind == "related"
        assert made.text.startswith('You spoke about this on 2023-11-14: "The greenhouse needs')
        assert "greenhouse" in made.reason
        assert [(evidence.kind, evidence.id) for evidence in made.evidence] == [("turn", "old/1")]


async def test_only_ones_own_sessions_are_brought_up(tmp_path: Path) -> None:
    """Whatever the search finds, and nothing of just now."""
    finder = GivenFinder(
        hit("bobs/1", "greenhouse rhubarb glass", "turn", at=START_S - DAY_S),
        hit("s/1", "greenhouse rhubarb glass", "turn", at=START_S - DAY_S),
        hit("now", "greenhouse rhubarb glass", at=START_S),
    )
    async with bench(tmp_path, finder=finder) as at:
        await at.session("bobs", user_id="bob")
        await at.say("greenhouse rhubarb glass", session_id="bobs")
        await at.session(user_id="ada")
        await at.say("greenhouse rhubarb glass")
        assert await look(at) == []


async def test_a_memory_that_only_shares_a_word_is_not_brought_up(tmp_path: Path) -> None:
    """A hit is not yet a reason."""
    finder = GivenFinder(hit("m", "glass of water", at=START_S - DAY_S))
    async with bench(tmp_path, finder=finder) as at:
        await at.session()
        await at.say("which glass for the greenhouse with rhubarb")
        assert await look(at) == []


async def test_a_turn_of_the_topic_is_seen_within_a_session(tmp_path: Path) -> None:
    """While the talk stays where it is nothing is looked for."""
    finder = GivenFinder()
    garden = [
        "the greenhouse needs glass for the rhubarb beds",
        "rhubarb beds in the greenhouse want compost and glass",
        "compost for rhubarb, glass for the greenhouse roof",
        "the greenhouse roof glass keeps rhubarb compost warm",
    ]
    async with bench(tmp_path, finder=finder) as at:
        await at.session()
        await at.say(garden[0])
        await look(at)
        finder.asked.clear()
        for line in garden[1:]:
            await at.say(line)
            await look(at)
        assert finder.asked == []
        await at.say("sailing across the harbour with a broken mast")
        await look(at)
        await at.say("the mast snapped while sailing past the harbour lighthouse")
        await look(at)
        assert len(finder.asked) == 3


async def test_vectors_decide_where_there_is_an_encoder(tmp_path: Path) -> None:
    """The same words in other clothes are no new topic; each text is encoded once."""

    class Encoder:
        def __init__(self) -> None:
            self.encoded: list[str] = []

        async def encode(self, texts: Sequence[str]) -> list[bytes]:
            self.encoded += texts
            return [array("f", [0.0, 1.0] if "mast" in text else [1.0, 0.0]).tobytes() for text in texts]

    finder = GivenFinder(hit("m", "nothing in common", at=START_S - DAY_S))
    async with bench(tmp_path, finder=finder) as at:
        at.encoder = Encoder()
        await at.session()
        lines = ["wooden boat planks", "greenhouse glass beds", "compost rhubarb soil", "autumn evening lantern"]
        for line in lines:
            await at.say(line)
            await look(at)
        before = len(finder.asked)
        await at.say("mast splinters everywhere", "mast repair costs money")
        made = await look(at)
        assert before == 3
        assert len(finder.asked) == 6
        assert len(at.encoder.encoded) == len(set(at.encoder.encoded))
        assert made == []


async def test_a_promise_is_brought_up_when_its_day_is_near(tmp_path: Path) -> None:
    """Not when it is made, not long before, not after."""
    async with bench(tmp_path) as at:
        await at.session("old", user_id="ada", ttl_s=365 * DAY_S)
        # Said on a Tuesday.
        await at.say("I'll call the plumber on Friday. Nice weather.", session_id="old")
        assert await look(at, "old") == []
        at.wait(HOUR_S)
        await at.session("wednesday", user_id="ada")
        await at.say("morning", session_id="wednesday")
        early = await look(at, "wednesday")
        at.wait(2 * DAY_S)
        await at.session("thursday", user_id="ada")
        await at.say("morning", session_id="thursday")
        (due,) = [made for made in [*early, *await look(at, "thursday")] if made.kind == "due"]
        assert due.text == 'Due 2023-11-17: "I\'ll call the plumber on Friday."'
        assert due.evidence[0].id == "old/1"
        at.wait(5 * DAY_S)
        await at.session("later", user_id="ada")
        await at.say("morning", session_id="later")
        assert kinds(await look(at, "later")) == []


async def test_promises_are_not_searched_for_at_every_turn(tmp_path: Path) -> None:
    """Once an hour per user is enough for a day that draws near."""
    async with bench(tmp_path, finder=GivenFinder()) as at:
        await at.session("old")
        await at.say("I will water the plants tomorrow.", session_id="old")
        await at.session()
        await at.say("hi")
        assert await look(at) == []
        at.wait(PROMISES_EVERY_S - 1)
        await at.say("hi again")
        assert await look(at) == []
        at.wait(2)
        await at.say("and again")
        assert kinds(await look(at)) == ["due"]


async def test_a_question_nobody_answered_is_brought_up_in_the_next_session(tmp_path: Path) -> None:
    """An answered one is not."""
    async with bench(tmp_path, finder=GivenFinder()) as at:
        await at.session("answered", user_id="ada")
        await at.say("How tall is the tower?", session_id="answered")
        await at.say("90 metres.", session_id="answered", role="assistant")
        at.wait(HOUR_S)
        await at.session("open", user_id="ada")
        await at.say("Thanks. Who built the tower?", session_id="open")
        assert kinds(await look(at, "open")) == []
        at.wait(HOUR_S)
        await at.session(user_id="ada")
        await at.say("hello")
        (made,) = await look(at)
        assert (made.kind, made.text) == ("open_question", 'Still open since 2023-11-14: "Who built the tower?"')


# How often, and off -------------------------------------------------------------------------------------------------


async def test_a_suggestion_is_never_made_twice(tmp_path: Path) -> None:
    """Not after a dismissal, a restart, or in another session; another user hears it for themselves."""
    async with bench(tmp_path, finder=GivenFinder()) as at:
        await at.session(user_id="ada")
        await at.say("I prefer trains.")
        (made,) = await look(at)
        dismissal = SuggestDismiss(suggestion_id=made.suggestion_id)
        assert (await at.parts.monitor.dismiss(dismissal, os.urandom(16))).dismissed
        assert not (await at.parts.monitor.dismiss(dismissal, os.urandom(16))).dismissed
        assert await listed(at) == []
        assert [one.dismissed_at for one in await listed(at, include_dismissed=True)] == [START_S]
        await at.close()
        await at.open()
        assert await look(at) == []
        await at.session("next", user_id="ada")
        await at.say("I prefer  TRAINS!", session_id="next")
        assert await look(at, "next") == []
        await at.session("bobs", user_id="bob")
        await at.say("I prefer trains.", session_id="bobs")
        assert kinds(await look(at, "bobs")) == ["remember"]
        with pytest.raises(NotFound, match="no suggestion 'x'"):
            await at.parts.monitor.dismiss(SuggestDismiss(suggestion_id="x"), os.urandom(16))


async def test_a_session_gets_only_so_many_an_hour_and_the_surest_first(tmp_path: Path) -> None:
    """Nobody reads a flood."""
    async with bench(tmp_path, finder=GivenFinder()) as at:
        await at.session()
        await at.say("My name is Ada. " + " ".join(f"I like thing{number}." for number in range(20)))
        made = await look(at)
        assert len(made) == PER_HOUR
        assert made[0].text.startswith('Remember "name: Ada"')
        await at.say("I like more.")
        assert await look(at) == []
        at.wait(HOUR_S + 1)
        await at.say("I like cake.", reopen=True)
        assert len(await look(at)) == 1


async def test_it_is_switched_off_for_one_and_for_all_and_stays_off(tmp_path: Path) -> None:
    """Kept over a restart; on again, what was said meanwhile is not held against anybody."""
    async with bench(tmp_path, finder=GivenFinder()) as at:
        for user_id in ("ada", "bob"):
            await at.session(user_id, user_id=user_id)
            await at.say("I prefer trains.", session_id=user_id)
        assert await switch(at, False, "ada") is False
        await at.close()
        await at.open()
        assert await look(at, "ada") == []
        assert not (await at.parts.monitor.listing(SuggestList(user_id="ada"))).is_on
        assert (await at.parts.monitor.listing(SuggestList(user_id="bob"))).is_on
        assert await switch(at, False) is False
        assert await look(at, "bob") == []
        assert await switch(at, True) is True
        assert kinds(await look(at, "bob")) == ["remember"]
        assert await look(at, "ada") == []
        assert await switch(at, True, "ada") is True
        assert kinds(await look(at, "ada")) == ["remember"]


async def test_the_setting_switches_everything_off(tmp_path: Path) -> None:
    """No switch turns it on then, and no append wakes it."""
    async with bench(tmp_path, proactive=False) as at:
        await at.session()
        await at.say("I prefer trains.")
        assert await look(at) == []
        assert await switch(at, True) is False
        assert not at.parts.monitor._woken.is_set()


async def test_it_wakes_by_itself_and_survives_a_search_that_fails(tmp_path: Path) -> None:
    """A committed turn is enough; one session's trouble does not end the watch."""

    class Failing(GivenFinder):
        async def search(self, request: Any) -> Any:
            raise NotFound("no search today")

    async with bench(tmp_path, finder=Failing()) as at:
        watch = asyncio.create_task(at.parts.monitor.watch_forever())
        try:
            await at.session("bad")
            await at.say("greenhouse rhubarb glass", session_id="bad")
            await at.session("good")
            await at.say("I prefer trains.", session_id="good")
            async with asyncio.timeout(10):
                while not await listed(at):
                    await asyncio.sleep(0.01)
        finally:
            watch.cancel()
        assert kinds(await listed(at)) == ["remember"]


async def test_deleting_a_session_deletes_what_was_suggested_from_it(tmp_path: Path) -> None:
    """Its words stand nowhere any more, neither as a suggestion nor as evidence of one."""
    async with bench(tmp_path) as at:
        await at.session("old", user_id="ada")
        await at.say("The greenhouse needs new glass before the rhubarb freezes", session_id="old")
        at.wait(DAY_S)
        await at.session(user_id="ada")
        await at.say("Which glass would you take for a greenhouse with rhubarb?")
        assert kinds(await look(at)) == ["related"]
        await at.end("old", delete=True)
        assert await listed(at, include_dismissed=True) == []
        assert await kept_words(at) == []


GREENHOUSE = "The greenhouse needs new glass before the rhubarb freezes"


async def kept_words(at: Bench) -> list[Any]:
    """Suggestions of which the database still holds a text or a quotation."""
    return await at.rows(
        "SELECT text, reason, evidence FROM suggestions WHERE text || reason != '' OR evidence != x'90'"
    )


async def suggested_memory(at: Bench) -> Memories:
    """A memory and a document that a session has brought up."""
    memories = Memories(at.records)
    await memories.add(MemoryAdd(id="m", content=GREENHOUSE), os.urandom(16))
    await Documents(at.records).put(DocPut(doc_id="d", content=f"{GREENHOUSE}, says the manual"), os.urandom(16))
    at.wait(DAY_S)
    await at.session(user_id="ada")
    await at.say("Which glass would you take for a greenhouse with rhubarb?")
    assert kinds(await look(at)) == ["related", "related"]
    return memories


@pytest.mark.parametrize("by", ["delete", "update", "replace", "expire", "import"])
async def test_a_memory_that_is_forgotten_is_quoted_nowhere(tmp_path: Path, by: str) -> None:
    """Nor when it says something else; and what was quoted is not suggested again should it come back."""
    async with bench(tmp_path) as at:
        memories = await suggested_memory(at)
        if by == "delete":
            await memories.delete(MemoryDelete(id="m"), os.urandom(16))
        elif by == "update":
            await memories.update(MemoryUpdate(id="m", content="gone"), os.urandom(16))
        elif by == "replace":
            await memories.add(MemoryAdd(id="m", content="gone", replace=True), os.urandom(16))
        elif by == "expire":
            await memories.update(MemoryUpdate(id="m", ttl_s=1.0), os.urandom(16))
            at.wait(2.0)
            await memories.sweep(at.records.now())
        else:
            data = {**await exported(at, "memory"), "content": "gone"}
            request = MemoryImport(records=[NewRecord(kind="memory", ns="memory", data=data)], on_conflict="replace")
            await import_records(at.records, request, os.urandom(16))

        (left,) = await listed(at, include_dismissed=True)
        assert left.evidence[0].id == "d"
        assert len(await kept_words(at)) == 1

        await memories.add(MemoryAdd(id="again", content=GREENHOUSE), os.urandom(16))
        at.wait(DAY_S)
        await at.session("later", user_id="ada")
        await at.say("Which glass would you take for a greenhouse with rhubarb?", session_id="later")
        assert sorted(one.evidence[0].kind for one in await look(at, "later")) == ["turn", "turn"]


async def exported(at: Bench, kind: str) -> dict[str, Any]:
    """The fields of the only record of a kind."""
    found: list[ExportRecord] = []

    async def keep(part: ExportPart) -> None:
        found.extend(part.records)

    await export(at.records, MemoryExport(kinds=[kind]), keep)  # type: ignore[list-item]
    (record,) = found
    return record.data


@pytest.mark.parametrize("by", ["delete", "put"])
async def test_a_document_that_is_forgotten_is_quoted_nowhere(tmp_path: Path, by: str) -> None:
    """As a memory; other tags alone change nothing."""
    async with bench(tmp_path) as at:
        await suggested_memory(at)
        documents = Documents(at.records)
        same = DocPut(doc_id="d", content=f"{GREENHOUSE}, says the manual", tags=["glass"])
        await documents.put(same, os.urandom(16))
        assert len(await listed(at)) == 2
        if by == "delete":
            await documents.delete(DocDelete(doc_id="d"), os.urandom(16))
        else:
            await documents.put(DocPut(doc_id="d", content="gone"), os.urandom(16))

        (left,) = await listed(at, include_dismissed=True)
        assert left.evidence[0].id == "m"
        assert len(await kept_words(at)) == 1


async def test_a_fact_that_is_forgotten_is_not_offered_again(tmp_path: Path) -> None:
    """The offer to remember it goes along."""
    async with bench(tmp_path) as at:
        await at.session(user_id="ada")
        await at.say("My name is Ada Byron and I write.", "I live in Turin.")
        made = {suggestion.text: suggestion for suggestion in await look(at)}
        assert len(made) == 2
        await at.store.remember(Remember(key="name", value="Ada Byron"), os.urandom(16))

        await at.store.forget(Forget(key="name"), os.urandom(16))

        (left,) = await listed(at, include_dismissed=True)
        assert "Turin" in left.text
        await at.say("My name is Ada Byron, as I said.")
        assert await look(at) == []


async def test_what_was_suggested_in_a_deleted_session_is_not_suggested_in_the_next(tmp_path: Path) -> None:
    """Deleting forgets words, not that the user has seen them."""
    async with bench(tmp_path) as at:
        await suggested_memory(at)
        await at.end("s", delete=True)
        assert await kept_words(at) == []

        await at.session("later", user_id="ada")
        await at.say("Which glass would you take for a greenhouse with rhubarb?", session_id="later")
        assert await look(at, "later") == []


async def test_what_is_deleted_during_a_look_is_not_suggested(tmp_path: Path) -> None:
    """The words would come back after they were gone."""
    finder = GivenFinder(hit("m", GREENHOUSE, at=START_S - DAY_S))
    async with bench(tmp_path, finder=finder) as at:
        await at.session(user_id="ada")
        await at.say("Which glass would you take for a greenhouse with rhubarb?")
        # The search still finds what is no longer there.
        assert await look(at) == []
        assert await at.rows("SELECT 1 FROM suggestions") == []


# What turns say -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("My name is Ada Byron and I write.", [("name", "Ada Byron")]),
        ("my favourite colour is dark blue, always was", [("favourite colour", "dark blue")]),
        ("I'm allergic to peanuts.", [("allergic to peanuts", "peanuts")]),
        ("I live in Turin. I work as a baker!", [("home", "Turin"), ("work", "a baker")]),
        ("I really don't like loud rooms", [("dislikes loud rooms", "loud rooms")]),
        ("Please call me Al.", [("name to use", "Al")]),
        ("My name is Élodie Ångström and I write.", [("name", "Élodie Ångström")]),
        ("My name is E\u0301lodie.", [("name", "Élodie")]),
        ("My name is Łukasz żaden.", [("name", "Łukasz")]),
        ("My name is Seán O\u2019Brien.", [("name", "Seán O\u2019Brien")]),
        ("Please call me 美咲.", [("name to use", "美咲")]),
        ("My name is önly.", []),
        ("Do I like tea?", []),
        ("I would like tea.", []),
        ("If I prefer tea, what then.", []),
        ("He said I like tea.", []),
        ("I like it.", []),
        ("Call me tomorrow.", []),
        ("I like " + "very " * 40 + "long things", []),
        ("", []),
    ],
)
def test_facts_are_read_from_plain_statements_only(text: str, facts: list[tuple[str, str]]) -> None:
    """Questions, wishes, conditions and what others said state nothing."""
    assert [(stated.key, stated.value) for stated in said.stated_facts(text)] == facts


@pytest.mark.parametrize(
    ("text", "days_ahead"),
    [
        ("I'll call the plumber tomorrow.", 1),
        ("I have to hand it in on Friday.", 3),
        ("Remind me to pay in 5 days.", 5),
        ("The deadline is 2023-11-20.", 6),
        ("We need to leave by Friday.", 3),
        ("I called the plumber yesterday.", None),
        ("I'll call the plumber.", None),
        ("It rains on Friday.", None),
        ("Will I call the plumber tomorrow?", None),
        ("I promised to do it on 2023-11-01.", None),
    ],
)
def test_promises_need_an_intent_and_a_day_to_come(text: str, days_ahead: int | None) -> None:
    """Said on Tuesday, 14 November 2023."""
    found = said.promises(text, START_S)
    if days_ahead is None:
        assert found == []
    else:
        (promise,) = found
        assert promise.since - DAY_S < START_S + days_ahead * DAY_S < promise.until + DAY_S
        assert promise.until > START_S


@given(st.text(max_size=300), st.floats(0, 4e9))
def test_no_text_breaks_the_reading(text: str, at: float) -> None:
    """Whatever people type."""
    said.stated_facts(text)
    assert all(promise.until > at for promise in said.promises(text, at))


# The policy ---------------------------------------------------------------------------------------------------------


def test_a_change_of_topic_counts_once_until_the_talk_has_settled() -> None:
    """The distance must fall before it may rise again."""
    thresholds = policy.Thresholds(turned=0.8, settled=0.5)
    distances = [None, 0.1, 0.9, 0.95, 0.7, 0.9, 0.4, 0.85]
    assert policy.turned_at(distances, thresholds) == [2, 7]


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=40))
def test_between_two_changes_the_talk_settles(distances: list[float | None]) -> None:
    """Never two in a row, never one below the threshold."""
    thresholds = policy.Thresholds(turned=0.8, settled=0.5)
    places = policy.turned_at(distances, thresholds)
    assert all((distances[place] or 0) >= 0.8 for place in places)
    for first, second in itertools.pairwise(places):
        assert any(distance is not None and distance < 0.5 for distance in distances[first:second])


def test_relatedness_wants_more_than_one_word() -> None:
    """And no vector that speaks against it."""
    topic = policy.terms("greenhouse glass for rhubarb")
    assert policy.relatedness(topic, ["glass"], None) == 0
    assert policy.relatedness(topic, ["glass", "rhubarb"], None) > 0.5
    assert policy.relatedness(topic, ["glass", "rhubarb"], 0.1) == 0
    assert policy.relatedness(topic, [], 0.7) >= 0.7


def test_words_that_say_nothing_are_not_terms() -> None:
    """What is left is stemmed, so that forms of a word meet."""
    assert policy.terms("I really think that was great, thanks!") == frozenset()
    assert policy.terms("Gardens, gardening and a garden's gardener") == {"garden", "gardener"}


# Whose it is --------------------------------------------------------------------------------------------------------


async def test_sessions_of_a_namespace_of_their_own_see_nothing_beside_it(tmp_path: Path) -> None:
    """Who may read its suggestions need not have the right to read what others keep."""
    finder = GivenFinder(hit("m", "greenhouse rhubarb glass", at=START_S - DAY_S))
    async with bench(tmp_path, finder=finder) as at:
        for ns in ("session", "user.bob"):
            finder.asked.clear()
            await at.session(ns=ns)
            await at.say("greenhouse rhubarb glass", ns=ns)
            await look(at, ns=ns)
            expected = ["session", "memory", "kb"] if ns == "session" else ["user.bob", "user.bob"]
            assert [search.ns for search in finder.asked] == expected


async def test_a_suggestion_is_listed_for_those_only_who_may_read_what_it_quotes(tmp_path: Path) -> None:
    """Whoever may read the sessions need not have the right to the memories beside them; a page is full all the same."""
    async with bench(tmp_path) as at:
        memories, documents = Memories(at.records), Documents(at.records)
        await memories.add(MemoryAdd(content="The payroll of greenhouse gardeners is late"), os.urandom(16))
        await documents.put(DocPut(doc_id="d", content="Payroll for greenhouse gardeners by quarter"), os.urandom(16))
        at.wait(DAY_S)
        await at.session(user_id="ada")
        await at.say("My name is Ada.")
        at.wait(1)
        await at.say("Which gardeners of the greenhouse are on the payroll?")
        made = await look(at)
        found = {one.evidence_ns for one in made}
        assert found == {"session", "memory", "kb"}

        for allowed in (found, {"session", "kb"}, {"session"}):
            may_touch = allowed.__contains__
            page = await at.parts.monitor.listing(SuggestList(), may_touch)
            assert {one.evidence_ns for one in page.suggestions} == allowed
            one = await at.parts.monitor.listing(SuggestList(limit=1), may_touch)
            assert one.suggestions == page.suggestions[:1]


async def test_a_suggestion_of_which_nobody_knows_what_it_quotes_is_for_those_who_may_read_everything(
    tmp_path: Path,
) -> None:
    """As one that was imported without saying so."""
    async with bench(tmp_path, finder=GivenFinder()) as at:
        await at.session()
        await at.say("I prefer trains.")
        (made,) = await look(at)
        evidence = [msgspec.structs.replace(made.evidence[0], kind="memory", id="m")]
        packed = msgspec.msgpack.encode(evidence)
        await at.records.write(
            lambda connection, _: Outcome(
                connection.execute("UPDATE suggestions SET evidence = ?, evidence_from = NULL", (packed,)).rowcount, []
            )
        )

        assert [one.evidence_ns for one in await listed(at)] == [""]
        kiosk = Caller("kiosk", ("memory:read",), ("session", "memory"))
        assert (await at.parts.monitor.listing(SuggestList(), kiosk.may_touch)).suggestions == []
        everybody = Caller("boss", ("memory:read",), ("*",))
        assert len((await at.parts.monitor.listing(SuggestList(), everybody.may_touch)).suggestions) == 1


async def test_the_facts_of_a_namespace_are_what_its_sessions_need_not_suggest(tmp_path: Path) -> None:
    """Known to others is not known to Bob."""
    async with bench(tmp_path) as at:
        await at.store.remember(Remember(key="travels by", value="Trains over planes"), os.urandom(16))
        await at.session(ns="user.bob")
        await at.say("I prefer trains over planes.", ns="user.bob")
        assert kinds(await look(at, ns="user.bob")) == ["remember"]

        await at.store.remember(Remember(key="drinks", value="Tea", ns="user.bob"), os.urandom(16))
        await at.say("I prefer tea.", ns="user.bob")
        assert await look(at, ns="user.bob") == []
