"""Stored contexts, and what a model is shown: everything within the budget, everything accounted for."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas.bodies.memory import Prompt, Recall, Remember
from schemas.bodies.sessions import (
    BuiltContext,
    Context,
    ContextBuild,
    ContextDelete,
    ContextGet,
    ContextList,
    ContextPut,
    SessionUpdate,
)
from schemas.errors import BadRequest, Conflict, NotFound, Unprocessable
from tests.sessions_bench import START_S, Bench, GivenFinder, bench, hit
from workers.memory.facts import prompt_addition, prompt_candidates
from workers.memory.outcome import Outcome
from workers.memory.sessions.build import BRIDGE_HEADING, MEMORIES_HEADING
from workers.memory.sessions.tokens import MESSAGE_TOKENS, Counted, Estimator, estimate


async def put(at: Bench, context_id: str = "c", **fields: Any) -> Context:
    return await at.contexts.put(ContextPut(context_id=context_id, **fields), os.urandom(16))


async def build(at: Bench, **fields: Any) -> BuiltContext:
    return await at.parts.builder.build(ContextBuild(**fields))


async def remember(at: Bench, key: str, value: str) -> None:
    await at.store.remember(Remember(key=key, value=value), os.urandom(16))


# Stored contexts ----------------------------------------------------------------------------------------------------


async def test_a_context_comes_back_as_written_with_a_new_version_each_time(tmp_path: Path) -> None:
    """And every write is an event."""
    async with bench(tmp_path) as at:
        first = await put(at, data={"step": [1, b"\x00"]}, system_prompt="Be kind.", session_id="s", user_id="ada")
        second = await put(at, metadata={"m": 1}, if_version=1)
        assert (first.version, second.version, second.created_at) == (1, 2, first.created_at)
        assert await at.contexts.get(ContextGet(context_id="c")) == second
        assert (first.data, first.system_prompt) == ({"step": [1, b"\x00"]}, "Be kind.")
        events = at.heard("memory.context.changed")
        assert [(event.action, event.version) for event in events] == [("put", 1), ("put", 2)]


async def test_a_context_is_only_written_over_the_version_last_seen(tmp_path: Path) -> None:
    """0 means that it must not exist; a version seen before a delete never fits what came after."""
    async with bench(tmp_path) as at:
        await put(at, if_version=0)
        with pytest.raises(Conflict, match="context 'c' is at version 1, if_version is 0"):
            await put(at, if_version=0)
        assert (await at.contexts.delete(ContextDelete(context_id="c"), os.urandom(16))).deleted
        assert not (await at.contexts.delete(ContextDelete(context_id="c"), os.urandom(16))).deleted
        assert (await put(at)).version == 2


async def test_a_context_expires_and_says_so_once(tmp_path: Path) -> None:
    """Invisible at its time, removed by the sweep."""
    async with bench(tmp_path) as at:
        await put(at, ttl_s=10)
        await put(at, "lasting")
        at.heard("")
        at.wait(10)
        with pytest.raises(NotFound, match="no context 'c' in namespace 'context'"):
            await at.contexts.get(ContextGet(context_id="c"))
        await at.sweep()
        await at.sweep()
        assert [(event.action, event.context_id) for event in at.heard("memory.context")] == [("expire", "c")]
        assert (await put(at)).version == 2


async def test_contexts_are_listed_page_by_page(tmp_path: Path) -> None:
    """In the order of their ids, of one user where asked."""
    async with bench(tmp_path) as at:
        for name in ("b", "a", "c"):
            await put(at, name, user_id="ada" if name != "c" else "bob")
        page = await at.contexts.listing(ContextList(limit=2))
        rest = await at.contexts.listing(ContextList(after=page.next_after))
        assert [context.context_id for context in (*page.contexts, *rest.contexts)] == ["a", "b", "c"]
        bobs = await at.contexts.listing(ContextList(user_id="bob"))
        assert [context.context_id for context in bobs.contexts] == ["c"]


# Building -----------------------------------------------------------------------------------------------------------


async def test_everything_that_fits_is_shown_and_accounted_for(tmp_path: Path) -> None:
    """System prompt, facts, memories and earlier sessions in one system message, then the history."""
    finder = GivenFinder(hit("m1", "tea is kept in the blue tin"), hit("old/1", "I bought tea", "turn"))
    async with bench(tmp_path, finder=finder) as at:
        await remember(at, "name", "Ada")
        await at.session("old", user_id="ada")
        await at.say("I bought tea", session_id="old", speaker="Ada")
        await at.session(user_id="ada")
        await at.say("Hello")
        await at.say("Hi.", role="assistant")
        await at.say("Where is the tea?")
        built = await build(at, session_id="s", system_prompt="Be kind.", model="demo", max_tokens=500)

    assert [message.role for message in built.messages] == ["system", "user", "assistant", "user"]
    system = built.messages[0].content
    assert system.startswith("Be kind.\n\nKnown facts about the user:\n- name: Ada\n\n" + BRIDGE_HEADING)
    assert "Ada: I bought tea" in system
    assert system.endswith(f"{MEMORIES_HEADING}\n- [2023-11-14] tea is kept in the blue tin")
    assert [(part.part, part.id) for part in built.included] == [
        ("system", "request"),
        ("facts", "user"),
        ("bridge", "old/1"),
        ("memory", "memory/m1"),
        ("history", "s/3"),
        ("history", "s/2"),
        ("history", "s/1"),
    ]
    words = sum(len(message.content.split()) for message in built.messages)
    assert built.tokens == words + MESSAGE_TOKENS * 4
    assert built.counted_by == "demo"


@pytest.mark.parametrize("max_tokens", [*range(20, 200, 7), 1_000])
async def test_a_context_never_passes_its_budget_and_loses_nothing(tmp_path: Path, max_tokens: int) -> None:
    """Whatever the budget, every piece is either in or named with the reason why not."""
    hits = [hit(f"m{number}", f"memory {number} " + "word " * number) for number in range(6)]
    async with bench(tmp_path, finder=GivenFinder(*hits)) as at:
        for number in range(5):
            await remember(at, f"key {number}", "value " * (number + 1))
        await at.session()
        await at.say(*(f"turn {number} " + "said " * number for number in range(8)))
        built = await build(
            at, session_id="s", system_prompt="one two three", model="demo", max_tokens=max_tokens, search_ns=["memory"]
        )
        again = await build(
            at, session_id="s", system_prompt="one two three", model="demo", max_tokens=max_tokens, search_ns=["memory"]
        )

    assert built == again
    words = sum(len(message.content.split()) for message in built.messages)
    assert words + MESSAGE_TOKENS * len(built.messages) == built.tokens <= max_tokens
    both = [*built.included, *built.left_out]
    for part, ids in (
        ("history", [f"s/{number}" for number in range(1, 9)]),
        ("memory", [f"memory/m{number}" for number in range(6)]),
    ):
        assert sorted(piece.id for piece in both if piece.part == part) == ids
    facts = next((piece.why for piece in built.included if piece.part == "facts"), "")
    unused = [piece.id for piece in built.left_out if piece.part == "facts"]
    assert all((f"key {number}" in facts) != (f"user/key {number}" in unused) for number in range(5))
    assert all(piece.why for piece in built.left_out)
    kept = [int(piece.id.partition("/")[2]) for piece in built.included if piece.part == "history"]
    assert kept == list(range(8, 8 - len(kept), -1))


async def test_the_newest_turn_comes_before_everything_else(tmp_path: Path) -> None:
    """It is the question; a budget that holds it and the prompt shows just these."""
    async with bench(tmp_path, finder=GivenFinder(hit("m", "a memory"))) as at:
        await at.session()
        await at.say("an older turn", "the question of six words here")
        built = await build(
            at, session_id="s", system_prompt="Be kind.", model="demo", max_tokens=8 + 2 * MESSAGE_TOKENS
        )
    assert [message.content for message in built.messages] == ["Be kind.", "the question of six words here"]


async def test_a_system_prompt_is_never_cut(tmp_path: Path) -> None:
    """Where it alone passes the budget the error names the field and both numbers."""
    async with bench(tmp_path) as at:
        with pytest.raises(
            Unprocessable, match=r"the system prompt alone has 26 tokens .*, the budget is 20 "
        ) as raised:
            await build(at, system_prompt="word " * 20, model="demo", max_tokens=30, reserve_tokens=10)
        assert raised.value.details == {"field": "system_prompt", "system_tokens": 26, "budget_tokens": 20}
        with pytest.raises(Unprocessable, match="an empty system message alone has 6 tokens") as raised:
            await build(at, max_tokens=5)
        assert raised.value.details["field"] == "max_tokens"


@pytest.mark.parametrize("reserve_tokens", [30, 100])
async def test_a_reserve_that_leaves_nothing_is_named(tmp_path: Path, reserve_tokens: int) -> None:
    """With its value and its range; whatever else the request holds is not looked at."""
    finder = GivenFinder()
    async with bench(tmp_path, finder=finder) as at:
        with pytest.raises(
            BadRequest, match=f"reserve_tokens = {reserve_tokens} is not allowed; allowed: 0 to 29, fewer than max_tok"
        ) as raised:
            await build(at, query="x", max_tokens=30, reserve_tokens=reserve_tokens)
    assert raised.value.details == {"field": "reserve_tokens", "reserve_tokens": reserve_tokens, "max_tokens": 30}
    assert finder.asked == []


async def test_a_stored_context_gives_what_the_request_leaves_out(tmp_path: Path) -> None:
    """System prompt and session; a context that does not exist is empty; a session that is gone is said to be."""
    async with bench(tmp_path) as at:
        await at.session()
        await at.say("hello")
        await put(at, system_prompt="Stored.", session_id="s")
        built = await build(at, context_id="c")
        assert [message.content for message in built.messages] == ["Stored.", "hello"]
        assert built.included[0].id == "c"
        own = await build(at, context_id="c", system_prompt="Own.")
        assert own.messages[0].content == "Own."
        assert (await build(at, context_id="nowhere")).messages == []

        await at.end(delete=True)
        gone = await build(at, context_id="c")
        assert [message.content for message in gone.messages] == ["Stored."]
        assert gone.degraded == "session 's' of the context is gone"
        with pytest.raises(NotFound, match="no session 's'"):
            await build(at, session_id="s")


async def test_without_a_query_the_last_turns_are_looked_for(tmp_path: Path) -> None:
    """What a tool said is not; `now` and `k` go along to the search; k 0 searches nothing."""
    finder = GivenFinder(degraded="no encoder")
    async with bench(tmp_path, finder=finder) as at:
        await at.session()
        await at.say("where is the tea")
        await at.say("raw result", role="tool")
        built = await build(at, session_id="s", k=3, now=5.0, bridge=False)
        assert [(search.query, search.ns, search.k, search.now) for search in finder.asked] == [
            ("where is the tea", "memory", 3, 5.0),
            ("where is the tea", "kb", 3, 5.0),
        ]
        assert built.degraded == "no encoder"
        finder.asked.clear()
        await build(at, session_id="s", query="own words", k=3, bridge=False, search_ns=["x"])
        assert [(search.query, search.ns) for search in finder.asked] == [("own words", "x")]
        finder.asked.clear()
        await build(at, session_id="s", k=0)
        assert finder.asked == []


async def test_the_same_text_is_shown_once_and_facts_not_twice(tmp_path: Path) -> None:
    """What was found twice is named as such."""
    finder = GivenFinder(
        hit("a", "the same", score=2.0), hit("b", "the  same"), hit("name", "name: Ada", "fact", score=0.5)
    )
    async with bench(tmp_path, finder=finder) as at:
        await remember(at, "name", "Ada")
        built = await build(at, query="x", search_ns=["memory", "user"])
    reasons = {piece.id: piece.why for piece in built.left_out}
    assert reasons["memory/b"] == "the same text as memory/a"
    assert reasons["user/name"] == "a fact, and facts have a part of their own"
    assert sum(piece.part == "memory" for piece in built.included) == 2


async def test_roles_become_those_that_a_chat_knows(tmp_path: Path) -> None:
    """Any other role speaks as a user, by name."""
    async with bench(tmp_path) as at:
        await at.session()
        for role in ("Human", "AI", "developer", "customer"):
            await at.say("hello", role=role)
        built = await build(at, session_id="s")
    assert [(message.role, message.content) for message in built.messages] == [
        ("user", "hello"),
        ("assistant", "hello"),
        ("system", "hello"),
        ("user", "customer: hello"),
    ]


async def test_pieces_that_cost_more_together_are_fewer(tmp_path: Path) -> None:
    """The finished messages are counted once more, and what they cost too much is taken out again."""

    class Growing:
        """Counts three tokens more for every line break inside a text."""

        async def count(self, texts: Any, model: str | None) -> Counted:
            return Counted([len(text.split()) + 3 * text.strip().count("\n") for text in texts], "demo")

    hits = [hit(f"m{number}", f"memory {number}") for number in range(10)]
    async with bench(tmp_path, finder=GivenFinder(*hits), counter=Growing()) as at:
        built = await build(at, query="x", max_tokens=60, search_ns=["memory"])
    assert 0 < sum(piece.part == "memory" for piece in built.included) < 10
    assert built.tokens <= 60


async def test_estimates_are_kept_too(tmp_path: Path) -> None:
    """Without a tokenizer the bytes of the messages decide."""
    async with bench(tmp_path, counter=Estimator()) as at:
        await remember(at, "name", "Ada")
        await at.session()
        await at.say(*(f"turn number {number}" for number in range(100)))
        built = await build(at, session_id="s", system_prompt="Be kind.", max_tokens=200, model="nowhere")
    assert built.counted_by == "estimate"
    assert sum(estimate(message.content) + MESSAGE_TOKENS for message in built.messages) == built.tokens <= 200


# Facts --------------------------------------------------------------------------------------------------------------


async def test_a_prompt_for_a_model_is_counted_by_its_tokenizer(tmp_path: Path) -> None:
    """The budget is in its tokens; what does not fit is left out."""
    async with bench(tmp_path) as at:
        await remember(at, "name", "Ada")
        await remember(at, "story", "once upon a time " * 20)
        prompt = await at.store.prompt(Prompt(max_tokens=9, model="demo"))
        assert prompt.text == "Known facts about the user:\n- name: Ada"
        assert (prompt.tokens, prompt.counted_by) == (8, "demo")
        assert (prompt.included, prompt.left_out) == (["name"], ["story"])
        assert (await at.store.prompt(Prompt(max_tokens=200, model="demo"))).left_out == []


async def test_a_long_fact_keeps_no_shorter_one_from_the_tokenizer(tmp_path: Path) -> None:
    """A value longer than the whole budget takes none of it."""
    async with bench(tmp_path) as at:
        await remember(at, "name", "Ada")
        await remember(at, "zoo", "lion " * 100)
        await at.store.recall(Recall(key="zoo"), os.urandom(16))
        prompt = await at.store.prompt(Prompt(max_tokens=20, model="demo"))
    assert (prompt.included, prompt.left_out, prompt.left_out_count) == (["name"], ["zoo"], 1)


async def keep_many(at: Bench, count: int) -> None:
    """Facts with keys from k0000 on and the value "vv", all of the same use."""

    def write(connection: sqlite3.Connection, now: float) -> Outcome:
        connection.executemany(
            "INSERT INTO facts (ns, key, value, category, source, created_at, updated_at)"
            " VALUES ('user', ?, 'vv', 'fact', 'user', ?, ?)",
            [(f"k{number:04}", now, now) for number in range(count)],
        )
        return Outcome(None, [])

    await at.records.write(write)


@pytest.mark.parametrize(("model", "fitting"), [(None, 2), ("demo", 5)])
async def test_many_facts_make_no_long_answer(tmp_path: Path, model: str | None, fitting: int) -> None:
    """What does not fit is named as far as 1,000 keys go, and counted."""
    async with bench(tmp_path) as at:
        await keep_many(at, 5_000)
        prompt = await at.store.prompt(Prompt(max_tokens=20, model=model))
        built = await build(at, model=model, max_tokens=400)
    keys = [f"k{number:04}" for number in range(5_000)]
    assert (prompt.included, prompt.left_out) == (keys[:fitting], keys[fitting : fitting + 1_000])
    assert prompt.left_out_count == 5_000 - fitting
    (included,) = (piece for piece in built.included if piece.part == "facts")
    *named, others = (piece for piece in built.left_out if piece.part == "facts")
    assert len(named) == 100
    assert int(included.why.split()[0]) + 100 + int(others.why.split()[0]) == 5_000


@pytest.mark.parametrize("collect", [prompt_addition, prompt_candidates])
async def test_a_small_budget_has_few_facts_read(tmp_path: Path, collect: Callable[..., Any]) -> None:
    """However many there are: a thousand that do not fit are enough to leave out the others unread."""
    read: list[str] = []

    def traced(connection: sqlite3.Connection) -> None:
        connection.set_trace_callback(lambda statement: read.append(statement) if "WHERE id = " in statement else None)
        try:
            collect(connection, Prompt(max_tokens=20), START_S)
        finally:
            connection.set_trace_callback(None)

    async with bench(tmp_path) as at:
        await keep_many(at, 5_000)
        await at.records.read(traced)
    assert 1_000 < len(read) < 1_100


class GreedyCounter:
    """Words, and one token more for every line break between them."""

    async def count(self, texts: Sequence[str], model: str | None) -> Counted:
        """More for a text than for its lines together."""
        return Counted([len(text.split()) + text.strip().count("\n") for text in texts], model or "estimate")


async def test_a_prompt_never_costs_more_than_its_budget(tmp_path: Path) -> None:
    """Also with a tokenizer that counts more for the whole text than for its lines."""
    async with bench(tmp_path, counter=GreedyCounter()) as at:
        for number in range(9):
            await remember(at, f"key{number}", "value")
        for budget in range(1, 45):
            prompt = await at.store.prompt(Prompt(max_tokens=budget, model="demo"))
            (tokens,), _ = await GreedyCounter().count([prompt.text], "demo")
            assert prompt.tokens == tokens <= budget
            assert len(prompt.included) + len(prompt.left_out) == 9
        # The heading has 5 tokens, each line 3 and its line break.
        assert len(prompt.included) == 9


async def test_pieces_of_a_document_are_told_apart_in_the_account(tmp_path: Path) -> None:
    """Each is named with the characters it covers."""
    pieces = [
        msgspec.structs.replace(hit("logbook", f"piece {number}", "document"), start=100 * number, end=100 * number + 7)
        for number in range(3)
    ]
    later = msgspec.structs.replace(hit("bees", "a later piece"), start=50, end=63)
    finder = GivenFinder(*pieces, hit("wax", "whole"), later)
    async with bench(tmp_path, finder=finder) as at:
        built = await build(at, query="x", search_ns=["kb"], k=5, max_tokens=600)
    assert sorted(piece.id for piece in built.included if piece.part == "memory") == [
        "kb/bees/50-63",
        "kb/logbook/0-7",
        "kb/logbook/100-107",
        "kb/logbook/200-207",
        "kb/wax",
    ]


async def test_a_query_is_not_answered_with_sessions_it_is_not_about(tmp_path: Path) -> None:
    """Their summaries would only use up the budget."""
    async with bench(tmp_path, finder=GivenFinder()) as at:
        await at.session("old", user_id="ada")
        await at.sessions.update(SessionUpdate(session_id="old", summary="Tea was bought."), os.urandom(16))
        await at.session(user_id="ada")
        await at.say("hello")
        built = await build(at, session_id="s", query="what is a mast")
    assert [piece.part for piece in (*built.included, *built.left_out)] == ["history"]


async def test_a_session_summary_reaches_the_next_session(tmp_path: Path) -> None:
    """Also where the search finds nothing."""
    async with bench(tmp_path, finder=GivenFinder()) as at:
        await at.session("old", user_id="ada")
        await at.sessions.update(SessionUpdate(session_id="old", summary="Tea was bought."), os.urandom(16))
        await at.session(user_id="ada")
        await at.say("hello")
        built = await build(at, session_id="s")
    assert "Summary: Tea was bought." in built.messages[0].content
    assert START_S > 0


async def test_a_context_put_again_by_its_id_is_written_once_and_kept_once(tmp_path: Path) -> None:
    """The reply is made anew: kept with the id, a large context would take its place on the disk twice."""
    async with bench(tmp_path) as at:
        request, request_id = ContextPut(context_id="c", data="x" * 100_000), os.urandom(16)
        first = await at.contexts.put(request, request_id)
        at.heard("")

        assert await at.contexts.put(request, request_id) == first
        assert at.heard("memory.context") == []

        def kept_bytes(connection: sqlite3.Connection) -> int:
            (size,) = connection.execute("SELECT sum(length(reply)) FROM applied_requests").fetchone()
            return int(size)

        assert await at.records.read(kept_bytes) < 1_000
