"""Sessions and their turns: opened, used, ended, expired, deleted."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from schemas.bodies import sessions as bodies
from schemas.errors import BadRequest, Conflict, NotFound, TooLarge
from tests.sessions_bench import START_S, bench
from workers.memory.sessions import sessions as module
from workers.memory.sessions.tokens import MESSAGE_TOKENS


async def test_a_session_without_a_name_gets_one_from_its_request(tmp_path: Path) -> None:
    """The same request again answers the same and opens nothing more."""
    request_id = os.urandom(16)
    async with bench(tmp_path, session_ttl_s=60.0) as at:
        request = bodies.SessionCreate(user_id="ada", metadata={"a": 1})
        created = await at.sessions.create(request, request_id)
        again = await at.sessions.create(request, request_id)

        assert created.session_id == f"ses-{uuid.UUID(bytes=request_id)}"
        assert (created.state, created.user_id, created.expires_at) == ("open", "ada", START_S + 60)
        assert again == created == await at.get(created.session_id)
        assert [event.session_id for event in at.heard("memory.session.opened")] == [created.session_id]


@pytest.mark.parametrize(
    ("user_id", "message"),
    [("ada", "session 's' exists, it is open: append to it"), ("eve", "session id 's' is taken")],
)
async def test_an_id_that_is_in_use_is_refused(tmp_path: Path, user_id: str, message: str) -> None:
    """Its user is told how to go on; anybody else only that it is taken."""
    async with bench(tmp_path) as at:
        await at.session(user_id="ada")
        with pytest.raises(Conflict, match=message):
            await at.session(user_id=user_id)
        await at.session(user_id="eve", ns="elsewhere")


async def test_turns_are_numbered_and_come_back_oldest_first(tmp_path: Path) -> None:
    """With role, speaker, time and metadata as they were written."""
    turns = [
        bodies.NewTurn(role="user", content="hi \0 ünï 🙂", speaker="Ada", at=5.0, metadata={"k": [1]}),
        bodies.NewTurn(role="assistant", content="hello"),
    ]
    async with bench(tmp_path) as at:
        await at.session()
        appended = await at.sessions.append(bodies.SessionAppend(session_id="s", turns=turns), os.urandom(16))
        assert (appended.first_number, appended.last_number) == (1, 2)
        assert await at.say("third") == 3

        history = await at.history()
        assert [(turn.number, turn.role, turn.content) for turn in history.turns] == [
            (1, "user", "hi \0 ünï 🙂"),
            (2, "assistant", "hello"),
            (3, "user", "third"),
        ]
        assert (history.turns[0].speaker, history.turns[0].at, history.turns[0].metadata) == ("Ada", 5.0, {"k": [1]})
        assert history.turns[1].at == START_S
        assert (history.next_before, history.left_out, history.tokens) == (None, 0, None)
        assert (await at.get()).turns == 3
        assert [event.version for event in at.heard("memory.changed.session")] == [2, 3]


async def test_an_append_happens_once_for_its_request(tmp_path: Path) -> None:
    """A request that comes again, as after a lost reply, adds nothing."""
    request_id = os.urandom(16)
    request = bodies.SessionAppend(session_id="s", turns=[bodies.NewTurn(role="user", content="once")])
    async with bench(tmp_path) as at:
        await at.session()
        first = await at.sessions.append(request, request_id)
        assert await at.sessions.append(request, request_id) == first
        assert (await at.get()).turns == 1


async def test_all_turns_of_an_append_are_written_or_none(tmp_path: Path) -> None:
    """One bad turn refuses its neighbours too."""
    good = bodies.NewTurn(role="user", content="good")
    async with bench(tmp_path) as at:
        await at.session()
        for bad, error in (
            (bodies.NewTurn(role="user", content="\ud800"), BadRequest),
            (bodies.NewTurn(role="user", content="x", metadata={"x": "y" * 300_000}), TooLarge),
            (bodies.NewTurn(role="user", content="x", metadata={"x": 2**70}), BadRequest),
        ):
            with pytest.raises(error):
                await at.sessions.append(bodies.SessionAppend(session_id="s", turns=[good, bad]), os.urandom(16))
        assert (await at.get()).turns == 0
        assert await at.rows("SELECT 1 FROM turns UNION ALL SELECT 1 FROM chunks") == []


async def test_history_pages_back_to_the_beginning(tmp_path: Path) -> None:
    """Each page ends where the next begins; every turn is on exactly one."""
    async with bench(tmp_path) as at:
        await at.session()
        await at.say(*(str(number) for number in range(1, 26)))
        seen: list[str] = []
        before: int | None = None
        while True:
            page = await at.history(limit=10, before=before)
            seen = [turn.content for turn in page.turns] + seen
            before = page.next_before
            if before is None:
                break
        assert seen == [str(number) for number in range(1, 26)]


async def test_a_token_budget_cuts_history_from_its_oldest_turn(tmp_path: Path) -> None:
    """The newest turns stay, what was cut is counted, and paging back gets past a turn that fits nowhere."""
    async with bench(tmp_path) as at:
        await at.session()
        await at.say("one", "two words", "three more words", "and four more words")
        cost = MESSAGE_TOKENS
        page = await at.history(max_tokens=7 + 2 * cost, model="demo")
        assert [turn.number for turn in page.turns] == [3, 4]
        assert (page.tokens, page.left_out, page.next_before) == (7 + 2 * cost, 2, 3)

        nothing = await at.history(max_tokens=cost)
        assert (nothing.turns, nothing.left_out, nothing.next_before) == ([], 4, 4)


async def test_every_use_puts_the_end_off(tmp_path: Path) -> None:
    """Appending, reading history and a get with touch are uses; a plain get is none."""
    async with bench(tmp_path) as at:
        await at.session(ttl_s=100)
        at.wait(60)
        await at.say("still here")
        at.wait(60)
        await at.history()
        at.wait(60)
        await at.get(touch=True)
        at.wait(60)
        assert (await at.get()).expires_at == START_S + 180 + 100
        assert (await at.history(touch=False)).turns
        at.wait(39)
        assert (await at.get()).state == "open"
        at.wait(1)
        assert (await at.get()).state == "expired"


async def test_a_session_expires_once_and_keeps_its_turns(tmp_path: Path) -> None:
    """For everybody at its time, as an event exactly once, also over a restart."""
    async with bench(tmp_path) as at:
        await at.session(ttl_s=10, user_id="ada")
        await at.say("kept")
        at.heard("")
        at.wait(10)
        with pytest.raises(Conflict, match="session 's' is expired: append with reopen"):
            await at.say("late")
        await at.close()
        await at.open()
        await at.sweep()
        await at.sweep()

        (event,) = at.heard("memory.session.expired")
        assert (event.session_id, event.user_id, event.state, event.turns) == ("s", "ada", "expired", 1)
        session = await at.get()
        assert (session.state, session.ended_at, session.expires_at) == ("expired", START_S + 10, None)
        assert [turn.content for turn in (await at.history()).turns] == ["kept"]


async def test_a_clock_set_back_brings_no_session_back(tmp_path: Path) -> None:
    """What had expired at the last write stays expired after a restart."""
    async with bench(tmp_path) as at:
        await at.session(ttl_s=10)
        at.wait(20)
        await at.session("other")
        await at.close()
        at.wall_s -= 15
        await at.open()
        assert (await at.get()).state == "expired"
        assert len(at.heard("memory.session.expired")) == 1


@pytest.mark.parametrize("is_swept", [True, False])
async def test_an_ended_session_goes_on_only_when_asked_to(tmp_path: Path, is_swept: bool) -> None:
    """`reopen` opens it with a new time; whoever listens hears its end and its new beginning."""
    async with bench(tmp_path) as at:
        await at.session(ttl_s=10)
        at.heard("")
        at.wait(10)
        if is_swept:
            await at.sweep()
        await at.say("again", reopen=True)
        assert [event.subject for event in at.events if event.subject.startswith("memory.session")] == [
            "memory.session.expired",
            "memory.session.opened",
        ]
        session = await at.get()
        assert (session.state, session.ended_at, session.expires_at) == ("open", None, START_S + 20)


async def test_closing_ends_a_session_and_says_so_once(tmp_path: Path) -> None:
    """Closing it again is no error and no event; its id is not free for another."""
    async with bench(tmp_path) as at:
        await at.session(user_id="ada")
        await at.say("a", "b")
        at.heard("")
        assert (await at.end()).turns == 2
        assert not (await at.end()).deleted
        assert [event.state for event in at.heard("memory.session.closed")] == ["closed"]
        with pytest.raises(Conflict, match="session 's' is closed"):
            await at.say("c")
        with pytest.raises(Conflict, match="it is closed: append with reopen"):
            await at.session(user_id="ada")
        assert len((await at.history()).turns) == 2


async def test_a_deleted_session_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns, chunks and suggestions go, in batches, and the vectors are ordered away; the id is free again."""
    monkeypatch.setattr(module, "BATCH_ROWS", 7)
    async with bench(tmp_path) as at:
        await at.session()
        await at.session("other")
        await at.say("other turn", session_id="other")
        await at.say(*(f"turn {number}" for number in range(40)))
        at.heard("")
        closed = await at.end(delete=True)

        assert (closed.deleted, closed.turns) == (True, 40)
        assert [event.state for event in at.heard("memory.session.closed")] == ["deleted"]
        assert await at.rows("SELECT session_id FROM turns") == [("other",)]
        assert await at.rows("SELECT stream FROM chunks") == [("other",)]
        assert await at.rows("SELECT count(*) FROM outbox WHERE action = 'remove'") == [(40,)]
        with pytest.raises(NotFound):
            await at.get()
        await at.session()
        assert (await at.get()).turns == 0


async def test_a_deletion_that_was_cut_off_is_finished_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first moment nobody sees the session; the sweep of the next start removes the rest."""

    async def cut_off(self: Any, ns: str, session_id: str) -> None:
        raise RuntimeError("killed")

    async with bench(tmp_path) as at:
        await at.session()
        await at.say("secret")
        with monkeypatch.context() as patch:
            patch.setattr(module.Sessions, "_remove", cut_off)
            with pytest.raises(RuntimeError, match="killed"):
                await at.end(delete=True)
        with pytest.raises(NotFound):
            await at.history()
        with pytest.raises(Conflict, match="it is being deleted"):
            await at.session()
        assert (await at.sessions.listing(bodies.SessionList())).sessions == []
        await at.close()
        await at.open()
        assert (
            await at.rows("SELECT 1 FROM turns UNION ALL SELECT 1 FROM chunks UNION ALL SELECT 1 FROM sessions") == []
        )


async def test_metadata_ttl_and_summary_are_changed_alone(tmp_path: Path) -> None:
    """What is not given stays; `merge_metadata` adds keys."""
    async with bench(tmp_path) as at:
        await at.session(ttl_s=10, metadata={"a": 1})

        async def update(**fields: Any) -> bodies.Session:
            return await at.sessions.update(bodies.SessionUpdate(session_id="s", **fields), os.urandom(16))

        assert (await update(metadata={"b": 2}, merge_metadata=True)).metadata == {"a": 1, "b": 2}
        assert (await update(metadata={"c": 3})).metadata == {"c": 3}
        at.wait(5)
        assert (await update(summary="about tea")).expires_at == START_S + 10
        session = await update(ttl_s=100)
        assert (session.summary, session.metadata, session.expires_at) == ("about tea", {"c": 3}, START_S + 105)
        await at.end()
        assert (await update(summary="after the end")).state == "closed"


async def test_sessions_are_listed_by_last_use_with_their_state(tmp_path: Path) -> None:
    """Filters by user and state; one whose time is over counts as expired before any sweep."""
    async with bench(tmp_path) as at:
        for number, user_id in enumerate(("ada", "bob", "ada")):
            await at.session(f"s{number}", user_id=user_id, ttl_s=10 if number == 0 else 1_000)
            at.wait(5)
        await at.say("x", session_id="s1")
        at.wait(5)

        async def listed(**fields: Any) -> list[str]:
            page = await at.sessions.listing(bodies.SessionList(**fields))
            return [session.session_id for session in page.sessions]

        assert await listed() == ["s1", "s2", "s0"]
        assert await listed(user_id="ada") == ["s2", "s0"]
        assert await listed(state="expired") == ["s0"]
        assert await listed(state="open", limit=1, offset=1) == ["s2"]
        assert (await at.sessions.listing(bodies.SessionList(limit=2))).has_more
        assert await listed(ns="elsewhere") == []


async def test_turns_become_chunks_with_their_place_and_speaker(tmp_path: Path) -> None:
    """The speaker's name, else a role in which somebody speaks; a long turn is several chunks of one source."""
    async with bench(tmp_path) as at:
        await at.session()
        await at.say("hello there", speaker="Ada", at=9.0)
        await at.say("an answer", role="assistant")
        await at.say("a result", role="tool")
        await at.say("A sentence of some words. " * 200)
        rows = await at.rows("SELECT source_id, stream, position, speaker, at FROM chunks WHERE kind = 'turn'")
        assert rows[:3] == [
            ("s/1", "s", 1.0, "Ada", 9.0),
            ("s/2", "s", 2.0, "assistant", START_S),
            ("s/3", "s", 3.0, None, START_S),
        ]
        assert len(rows) > 4
        assert {(row[0], row[3]) for row in rows[3:]} == {("s/4", "user")}
        assert all(4 <= row[2] < 5 for row in rows[3:])


async def test_unknown_sessions_and_bad_names_are_refused(tmp_path: Path) -> None:
    """Every operation names what it did not find."""
    async with bench(tmp_path) as at:
        for call in (at.get("x"), at.history("x"), at.say("hi", session_id="x"), at.end("x")):
            with pytest.raises(NotFound, match="no session 'x' in namespace 'session'"):
                await call
        with pytest.raises(BadRequest, match="session_id holds a lone surrogate"):
            await at.session("\udc00")
