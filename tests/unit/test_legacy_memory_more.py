"""Rules of the legacy agents around memory: importance, windows, summaries, fading, scores, names."""

from __future__ import annotations

from datetime import datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from schemas.bodies.accounts import TrustOutcome
from schemas.bodies.items import Experience
from schemas.errors import QuotaExceeded
from workers.gateway.legacy.agent import Agent, Refused
from workers.gateway.legacy.agents import (
    authentication,
    cache_manager,
    context_manager,
    experience_tracker,
    experiences,
    proactive_monitor,
    reasoning,
    reasoning_commands,
    trust_scorer,
    utils_agent,
)
from workers.gateway.legacy.agents.pattern_search import TEXT_CHARACTERS, PatternSearch
from workers.gateway.legacy.agents.sealed import record_key, seal, unseal
from workers.gateway.legacy.house import House

NOW = 1_800_000_000.0
DAY = reasoning_commands.IDLE_S

PORTS = [
    (reasoning.AGENT, (7105, 5596), (8105, 7106), 7),
    (context_manager.AGENT, (7111,), (8111, 7112), 5),
    (experience_tracker.AGENT, (7112,), (8112, 7113), 7),
    (cache_manager.AGENT, (7102,), (8102,), 7),
    (proactive_monitor.AGENT, (7119,), (8119,), 3),
    (utils_agent.AGENT, (7118,), (8118,), 6),
    (authentication.AGENT, (7116,), (8116,), 4),
    (trust_scorer.AGENT, (7122, 5626), (8122, 5627, 8626), 3),
]


@pytest.mark.parametrize(("agent", "ports", "health_ports", "actions"), PORTS, ids=lambda value: str(value)[:20])
def test_each_agent_has_its_ports_and_actions(
    agent: Agent, ports: tuple[int, ...], health_ports: tuple[int, ...], actions: int
) -> None:
    """The seed's number comes first."""
    assert (agent.ports, agent.health_ports, len(agent.actions)) == (ports, health_ports, actions)


# ContextManager


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the sky is blue", 0.5),
        ("Remember the milk", 0.7),
        ("tandaan mo ito", 0.7),
        ("is it late?", 0.6),
        ("could you come", 0.6),
        ("paki abot", 0.6),
        ("pakisama is a word", 0.5),
        ("i would like tea", 0.6),
        ("word " * 16, 0.6),
        ("word " * 15, 0.5),
        ("please remember: " + "word " * 15 + "?", 1.0),
    ],
)
def test_importance_rises_with_weighty_words_questions_requests_and_length(text: str, expected: float) -> None:
    """Each adds its own share to a half."""
    assert context_manager.importance(text) == pytest.approx(expected)


def filled(*texts: str, speaker: str | None = None) -> context_manager.Window:
    """A window in which these were said, a second apart."""
    window = context_manager.Window()
    for number, text in enumerate(texts):
        window.add(text, speaker, {}, NOW + number)
    return window


def test_the_window_gives_the_important_first_and_the_newest_among_equals() -> None:
    """A limit below 1 gives all."""
    window = filled("one", "is it important?", "two")

    assert [item["text"] for item in window.items(None, 0)] == ["is it important?", "two", "one"]
    assert [item["text"] for item in window.items(None, 1)] == ["is it important?"]
    assert len(window.items(None, -3)) == 3


def test_the_window_grows_while_what_is_said_matters_up_to_twenty() -> None:
    """By two for each that leaves the mean above 0.7; what does not fit goes, the oldest first."""
    window = filled(*("please remember this?" for _ in range(30)))

    assert window.size == 20
    assert len(window.items(None, 0)) == 20
    assert filled("so so").size == context_manager.FIRST_SIZE


def test_a_speaker_has_a_window_of_its_own() -> None:
    """Clearing one leaves the other; a stranger has the window of all."""
    window = filled(*(f"line {number}" for number in range(25)), speaker="bo")

    assert len(window.items("bo", 0)) == context_manager.SPEAKER_SIZE
    assert len(window.items("stranger", 0)) == context_manager.FIRST_SIZE
    window.clear(None)
    assert (len(window.items(None, 0)), len(window.items("bo", 0))) == (0, context_manager.SPEAKER_SIZE)
    window.clear("bo")
    assert window.items("bo", 0) == []


def test_speakers_without_end_do_not_fill_the_memory() -> None:
    """The one who was silent longest loses its window."""
    window = context_manager.Window()
    for number in range(context_manager.SPEAKERS_MAX + 1):
        window.add("x", f"speaker {number}", {}, NOW)

    assert [item["speaker"] for item in window.items("speaker 0", 1)] == [f"speaker {context_manager.SPEAKERS_MAX}"]
    assert [item["speaker"] for item in window.items("speaker 1", 1)] == ["speaker 1"]


def test_pruning_touches_only_a_full_window_and_what_is_below_a_half() -> None:
    """No text scores that low by itself."""
    window = filled(*("x" for _ in range(context_manager.FIRST_SIZE)))
    assert window.prune() == 0
    for item in window.items(None, 5):
        item["importance"] = 0.4

    assert window.prune() == context_manager.FIRST_SIZE // 4
    assert window.prune() == 0


# UnifiedMemoryReasoningAgent


def told(kind: str, content: Any, number: int = 0) -> dict[str, Any]:
    """One interaction."""
    return {"timestamp": NOW + number, "type": kind, "content": content}


def test_a_session_gets_its_summary_with_the_fifty_first_interaction() -> None:
    """Fifty stay, newest first."""
    session: dict[str, Any] = {}
    for number in range(reasoning.INTERACTIONS_MAX):
        session = reasoning.with_interaction(session, told("user_query", f"q{number}", number), NOW)
    assert "summary" not in session

    session = reasoning.with_interaction(session, told("code", "print(1)"), NOW)

    assert [one["content"] for one in session["interactions"][:2]] == ["print(1)", "q49"]
    assert len(session["interactions"]) == reasoning.INTERACTIONS_MAX
    summary = session["summary"]
    assert summary["last_updated"] == NOW
    assert summary["code_context"] == "print(1)"
    assert summary["conversation_summary"].startswith("User: q0\nUser: q1\n")
    assert summary["errors_encountered"] == []


def test_a_summary_keeps_earlier_errors_and_what_it_does_not_know() -> None:
    """An error that comes again is named once."""
    earlier = {
        "key_decisions": ["a"],
        "errors_encountered": [{"type": "other", "message": "old"}, {"type": "timeout", "message": "timed out"}],
    }

    summary = reasoning.summarised([told("error", "timed out"), told("error", {"code": 5})], earlier, NOW)

    assert summary["key_decisions"] == ["a"]
    assert [error["message"] for error in summary["errors_encountered"]] == ["old", "timed out", '{"code": 5}']
    assert "code_context" not in summary
    assert "conversation_summary" not in summary


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("Request TIMED OUT", "timeout"),
        ("connection refused", "connection"),
        ("Permission denied", "permission"),
        ("no such key", "other"),
    ],
)
def test_errors_are_of_four_kinds(message: str, kind: str) -> None:
    """By their words."""
    assert reasoning.error_kind(message) == kind


async def test_the_search_gives_the_first_pattern_that_is_anywhere_whatever_the_case() -> None:
    """One that is no pattern matches nothing."""
    search = PatternSearch()
    try:
        found = await search.first(["(", "zzz", "b+c", "."], "xxBBCxx")
        nothing = await search.first(["zzz"], "xx\nyy \ud800")
    finally:
        await search.close()

    assert (found.place, found.slow) == (2, [])
    assert nothing.place is None


async def test_a_catastrophic_pattern_is_passed_over_and_named() -> None:
    """Also one whose compilation asks for all memory, or that is slow on a long text only."""
    search = PatternSearch()
    try:
        found = await search.first([r"(a+)+$", r"(?:x{60000}){60000}", "a!$"], "a" * 40 + "!")
        quadratic = await search.first([r"(.*a){12}b", "z"], "a" * TEXT_CHARACTERS + "z")
    finally:
        await search.close()

    assert (found.place, found.slow) == (2, [0])
    assert quadratic.slow == [0]


async def test_a_search_after_its_process_died_starts_another() -> None:
    """The one that met the death is refused in words."""
    search = PatternSearch()
    try:
        await search.first(["a"], "a")
        assert search._process is not None
        search._process.kill()
        await search._process.wait()

        with pytest.raises(Refused):
            await search.first(["a"], "a")
        assert (await search.first(["a"], "a")).place == 0
    finally:
        await search.close()
    with pytest.raises(Refused, match="stopping"):
        await search.first(["a"], "a")


# Its older form


def record(strength: float = 1.0, *, idle_s: float = 0.0, **fields: Any) -> dict[str, Any]:
    """A stored memory that was asked for `idle_s` seconds before NOW."""
    stored = reasoning_commands.stored({"id": "m", "content": "c", "strength": strength, **fields}, NOW - idle_s)
    stored["memory"]["last_accessed"] = NOW - idle_s
    return stored


def test_a_stored_memory_has_what_every_memory_has() -> None:
    """What else was given stays as it is."""
    memory = reasoning_commands.stored({"content": "c", "url": "u"}, NOW)["memory"]

    assert memory.pop("id").startswith(f"mem_{int(NOW)}_")
    assert memory == {
        "content": "c",
        "url": "u",
        "created_at": NOW,
        "last_accessed": NOW,
        "strength": 1.0,
        "source": "unknown",
        "forgotten": False,
    }


@pytest.mark.parametrize(
    ("idle_s", "passes"), [(0.0, 0), (DAY - 1, 0), (DAY, 1), (DAY + 299, 1), (DAY + 300, 2), (DAY + 3000, 11)]
)
def test_strength_fades_by_a_tenth_each_five_minutes_after_a_day(idle_s: float, passes: int) -> None:
    """As if somebody had looked every five minutes."""
    settled = reasoning_commands.settled(record(idle_s=idle_s), NOW)

    assert settled["memory"]["strength"] == pytest.approx(0.9**passes)
    assert settled["decays"] == passes
    assert settled["memory"]["last_accessed"] == NOW


def test_what_faded_below_a_tenth_is_forgotten_until_it_is_reinforced() -> None:
    """It is not deleted; reinforcement ends at 5."""
    settled = reasoning_commands.settled(record(idle_s=2 * DAY), NOW)
    assert settled["memory"]["forgotten"] is True

    after = reasoning_commands.reinforced(settled, NOW)
    assert after["memory"]["forgotten"] is False
    assert reasoning_commands.reinforced(record(4.9), NOW)["memory"]["strength"] == reasoning_commands.STRONGEST
    assert reasoning_commands.reinforced(record(1.0), NOW)["reinforcements"] == 1


def test_of_two_copies_the_later_one_stays_with_the_greater_strength() -> None:
    """An older one changes nothing."""
    ours = record(3.0, idle_s=10)

    merged = reasoning_commands.merged(ours, {"id": "m", "content": "new", "strength": 2, "last_accessed": NOW}, NOW)
    assert merged is not None
    assert (merged["memory"]["content"], merged["memory"]["strength"]) == ("new", 3.0)
    assert reasoning_commands.merged(ours, {"id": "m", "last_accessed": NOW - 11}, NOW) is None
    unknown = reasoning_commands.merged(None, {"id": "m"}, NOW)
    assert unknown is not None
    assert unknown["memory"]["strength"] == 1.0


@pytest.mark.parametrize(
    ("keywords", "source", "min_strength", "expected"),
    [
        ([], "", 0.0, True),
        (["WEB", "nowhere"], "", 0.0, True),
        (["nowhere"], "", 0.0, False),
        (["web"], "crawler", 0.0, True),
        (["web"], "other", 0.0, False),
        ([], "", 1.5, False),
    ],
)
def test_a_memory_is_wanted_by_any_keyword_its_source_and_its_strength(
    keywords: list[str], source: str, min_strength: float, expected: bool
) -> None:
    """All three together."""
    memory = {"content": "A Web page", "source": "crawler", "strength": 1.0}

    assert reasoning_commands.is_wanted(memory, keywords, source, min_strength) is expected


# ExperienceTracker


def test_the_time_to_live_of_an_experience_comes_from_its_end() -> None:
    """Without a zone it is local; what is over hardly lasts; no end beyond ten years is one."""
    soon = datetime.fromtimestamp(NOW + 60).isoformat()

    assert experiences.ttl_s(soon, NOW) == pytest.approx(60)
    assert experiences.ttl_s("2000-01-01T00:00:00+00:00", NOW) == pytest.approx(1e-6)
    assert experiences.ttl_s("2999-01-01", NOW) is None
    assert experiences.ttl_s(None, NOW) is None
    assert experiences.ttl_s(5, NOW) is None
    with pytest.raises(Refused, match="expires_at is 'soon'"):
        experiences.ttl_s("soon", NOW)


@pytest.mark.parametrize(
    ("value", "expected"), [(0.3, 0.3), (1, 1.0), (7, 1.0), (-2, 0.0), ("0.3", 0.5), (None, 0.5), (True, 0.5)]
)
def test_importance_of_the_wrong_type_is_the_default(value: Any, expected: float) -> None:
    """And a number beyond the range is brought into it."""
    assert experiences.importance_of(value) == expected


def test_a_migrated_experience_has_the_number_it_was_known_by() -> None:
    """Others have the place in the order of recording; no words come back as none."""
    known = Experience(
        exp_id="e",
        sequence=7,
        ns="experience",
        agent="a",
        action=experiences.WORDLESS,
        outcome="",
        importance=0.4,
        access_count=2,
        at=NOW,
        created_at=0.0,
        context={experiences.OLD_ID: 3},
    )

    item = experiences.item_of(known)

    assert (item["memory_id"], item["content"], item["created_at"]) == (3, "", "1970-01-01 00:00:00")


# CacheManager


@pytest.mark.parametrize("name", ["nlu_results", "tool.responses-2"])
def test_a_type_that_the_cache_knows_is_taken_as_it_is(name: str) -> None:
    """So programs that read Redis find it."""
    assert cache_manager.type_of(name) == name


@pytest.mark.parametrize("name", ["two words", "a:b", "é", "x" * 65, "\ud800"])
def test_any_other_text_is_a_type_too(name: str) -> None:
    """Each has its own."""
    made = cache_manager.type_of(name)

    assert made.startswith("other-")
    assert made == cache_manager.type_of(name) != cache_manager.type_of(f"{name}.")


def test_a_long_key_is_kept_by_its_hash() -> None:
    """Whole prompts were keys."""
    assert cache_manager.key_of("k" * 1024) == "k" * 1024
    assert len(cache_manager.key_of("k" * 1025)) < 80


# AuthenticationAgent


@pytest.mark.parametrize(("user_id", "is_same"), [("alice", True), ("a-1_B", True), ("al@x.org", False), ("_a", False)])
def test_a_user_id_is_our_name_where_it_can_be_one(user_id: str, is_same: bool) -> None:
    """Else a name of its own, always the same."""
    name = authentication.name_of(user_id)

    assert (name == user_id) is is_same
    assert name == authentication.name_of(user_id)
    assert len(name) <= 48


def test_a_short_password_is_lengthened_only_where_no_rights_hang_on_it() -> None:
    """Where everybody signs in it is refused for its length."""
    assert authentication.password_of("pw", is_strict=False) == "legacy-short:pw"
    assert authentication.password_of("pw", is_strict=True) == "pw"
    assert authentication.password_of("long enough", is_strict=False) == "long enough"


async def test_who_signs_up_too_often_is_told_when_to_try_again() -> None:
    """In the words of the agent, not in those of the bus about a source that the client never heard of."""

    async def refuse(*_: object, **__: object) -> None:
        raise QuotaExceeded("too many sign-ups from 'legacy'; the next one in 4 s", retry_after_s=4.0)

    house = SimpleNamespace(
        settings=SimpleNamespace(auth=SimpleNamespace(required=True)),
        client=SimpleNamespace(request=refuse),
        note=print,
    )
    fields = {"action": "register", "user_id": "ada", "password": "long enough"}

    reply = await authentication.AGENT.answer(fields, cast("House", house))

    assert reply == {
        "status": "error",
        "message": "Too many registrations, try again in 4 s",
        "error": "Too many registrations, try again in 4 s",
        "code": "quota_exceeded",
        "retry_after_s": 4.0,
    }


async def test_what_is_sealed_opens_with_its_token_alone() -> None:
    """Neither the record nor its key tells the token."""
    sealed = await seal("token", {"a": 1})

    assert await unseal("token", sealed) == {"a": 1}
    assert await unseal("other", sealed) is None
    assert "token" not in sealed + record_key("token")


# AgentTrustScorer


@pytest.mark.parametrize(
    ("successes", "outcomes", "response_time_s", "expected"),
    [(0, 0, 0.0, 0.5), (1, 1, 1.0, 0.94), (1, 2, 9.0, 0.35), (3, 3, 0.0, 1.0), (0, 4, 5.0, 0.0)],
)
def test_the_score_is_seven_parts_success_and_three_parts_speed(
    successes: int, outcomes: int, response_time_s: float, expected: float
) -> None:
    """Speed is that of the latest alone."""
    assert trust_scorer.score(successes, outcomes, response_time_s) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("note", "expected"),
    [
        ("", datetime.fromtimestamp(NOW).strftime("%Y-%m-%d %H:%M:%S.%f")),
        (f"{trust_scorer.LOGGED_AT}2025-08-01 12:00:00.000001", "2025-08-01 12:00:00.000001"),
    ],
)
def test_the_history_says_when_an_outcome_was_logged(note: str, expected: str) -> None:
    """In local time; a migrated one by its note."""
    outcome = TrustOutcome(success=True, weight=1.0, response_time_s=None, note=note, reported_by="", at=NOW)

    assert trust_scorer.logged(outcome) == {"success": True, "response_time": 0.0, "timestamp": expected}
