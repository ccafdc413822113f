"""The proactive monitor: looks at sessions that were just spoken in and suggests what it can give evidence for.

A coroutine that sleeps until a turn is committed. What it decides by is in `proactive_policy` and `said`; here is what
it reads. A suggestion is kept under a fingerprint of what it is about, so the same one is never made again: not after
a restart, not after it was dismissed, not in another session of the user.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple, Protocol, TypeVar

from schemas.bodies import sessions as bodies
from schemas.bodies.search import Filters, Search, SearchHit
from schemas.errors import BusError, NotFound
from workers.memory.outcome import Outcome
from workers.memory.records import Records
from workers.memory.sessions import proactive_policy as policy
from workers.memory.sessions import said, sessions, suggestions, turns
from workers.memory.sessions.bridge import day, one_line
from workers.memory.sessions.finder import Finder
from workers.memory.sessions.proactive_policy import Idea
from workers.memory.sessions.suggestions import SHARED_FACTS_NS, SHARED_NS
from workers.memory.sessions.turns import speaker_of
from workers.memory.text import check_texts

log = logging.getLogger("olympus.memory.proactive")

K = TypeVar("K")
V = TypeVar("V")

# Suggestions per session and hour: more than anybody wants to read.
PER_HOUR: Final = 6

# Turns of a session that are looked at, and bytes of them, at most.
LOOKED_AT_TURNS: Final = 16
LOOKED_AT_BYTES: Final = 200_000

# Characters of a turn that make its topic.
TOPIC_CHARACTERS: Final = 600

# Sessions waiting to be looked at, and sessions and vectors remembered, at most.
SESSIONS_KEPT: Final = 2_000
VECTORS_KEPT: Final = 2_000

# Seconds after the first turn of a burst before it is looked at, so that a burst is looked at once.
SETTLE_S: Final = 0.2

# A promise is brought up within this many seconds before it is due, not sooner than this many after it was made, and
# looked for in so many sessions and turns of each.
REMIND_BEFORE_S: Final = 2 * 86_400.0
REMIND_NOT_BEFORE_S: Final = 3_600.0
PROMISE_SESSIONS: Final = 20
PROMISE_TURNS: Final = 200

# Seconds between two looks for promises of one user.
PROMISES_EVERY_S: Final = 3_600.0

# What was said before counts as earlier only when it is this many seconds old.
EARLIER_S: Final = 600.0

# Below this an idea is not worth anybody's attention.
MIN_CONFIDENCE: Final = 0.5

# Words named as a reason, at most.
SHARED_WORDS: Final = 5

# Hits that are judged.
HITS: Final = 5

# Where memories and documents are that name no namespace, for the sessions that name none; what quotes them is listed
# for those only who may read them. A session kept elsewhere has all of them beside it.
SHARED_SPACES: Final = ("memory", "kb")

_USER_ROLES: Final = frozenset({"user", "human"})


class TopicEncoder(Protocol):
    """What turns texts into vectors of length 1."""

    async def encode(self, texts: Sequence[str]) -> list[bytes]:
        """A float32 vector for each text."""


class Marks(Protocol):
    """Where the monitor keeps how far it has looked, beyond this process. Never raises; a lost mark costs one look."""

    async def get(self, key: str) -> bytes | None:
        """What was set, None when it is not there."""

    async def set(self, key: str, value: bytes) -> None:
        """Keep the value for a while."""


class _Scene(NamedTuple):
    """A session and its newest turns, oldest first."""

    session: bodies.Session
    turns: list[bodies.Turn]


class Monitor:
    """Watches sessions for changes of context. `heard` is told of appends; `watch_forever` looks at them.

    encoder: the encoder if it is there already; the monitor never loads one. is_enabled: the setting memory.proactive.
    made: suggestions made since it began.
    """

    def __init__(
        self,
        records: Records,
        finder: Finder,
        encoder: Callable[[], TopicEncoder | None],
        *,
        is_enabled: bool,
        marks: Marks | None = None,
    ) -> None:
        self.made = 0
        self._records = records
        self._finder = finder
        self._encoder = encoder
        self._is_enabled = is_enabled
        self._marks = marks
        self._waiting: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._woken = asyncio.Event()
        self._looked_to: OrderedDict[str, int] = OrderedDict()
        self._promises_at: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._vectors: OrderedDict[str, bytes] = OrderedDict()

    # Operations -------------------------------------------------------------------------------------------------

    async def listing(
        self, request: bodies.SuggestList, may_touch: Callable[[str], bool] = lambda _: True
    ) -> bodies.Suggestions:
        """`memory.suggest.list`. may_touch: of which namespaces the caller may read what a suggestion quotes."""
        check_texts(request)
        return await self._records.read(
            lambda connection: suggestions.list_made(
                connection, request, is_enabled=self._is_enabled, may_touch=may_touch
            )
        )

    async def dismiss(self, request: bodies.SuggestDismiss, request_id: bytes) -> bodies.SuggestionDismissed:
        """`memory.suggest.dismiss`. Raises NotFound."""
        check_texts(request)
        return await self._records.write_once(
            "memory.suggest.dismiss",
            request_id,
            bodies.SuggestionDismissed,
            lambda connection, now: suggestions.dismiss(connection, request, now),
        )

    async def switch(self, request: bodies.SuggestSwitch, request_id: bytes) -> bodies.SuggestSwitched:
        """`memory.suggest.switch`."""
        check_texts(request)
        return await self._records.write_once(
            "memory.suggest.switch",
            request_id,
            bodies.SuggestSwitched,
            lambda connection, _: suggestions.switch(connection, request, is_enabled=self._is_enabled),
        )

    # Watching ---------------------------------------------------------------------------------------------------

    def heard(self, ns: str, session_id: str) -> None:
        """Turns of this session were committed."""
        if not self._is_enabled:
            return
        _keep(self._waiting, (ns, session_id), None, SESSIONS_KEPT)
        self._woken.set()

    async def watch_forever(self) -> None:
        """Look at each session that was spoken in, until cancelled. A look that fails is logged; the next one counts."""
        while True:
            await self._woken.wait()
            await asyncio.sleep(SETTLE_S)
            self._woken.clear()
            while self._waiting:
                (ns, session_id), _ = self._waiting.popitem(last=False)
                try:
                    await self.look(ns, session_id)
                except BusError as error:
                    log.warning(
                        "look failed", extra={"action": "memory.proactive.failed", "reason": error.message, "ns": ns}
                    )

    async def look(self, ns: str, session_id: str) -> list[bodies.Suggestion]:
        """What is worth suggesting in a session now; empty where that is nothing new, or it is switched off."""
        now = self._records.now()
        scene = await self._records.read(lambda connection: _scene(connection, ns, session_id, now))
        if scene is None or not self._is_enabled or not scene.turns:
            return []
        newest = scene.turns[-1].number
        looked_to = await self._mark_of(scene.session, newest)
        if newest <= looked_to:
            return []
        ideas = await self._ideas(scene, looked_to, now)
        await self._mark(scene.session, newest)
        if not ideas:
            return []
        made: list[bodies.Suggestion] = await self._records.write(
            lambda connection, now: _make(connection, scene.session, ideas, now)
        )
        self.made += len(made)
        return made

    async def _mark_of(self, session: bodies.Session, newest: int) -> int:
        """The turn up to which the session was looked at; 0 where that is not known."""
        place = _mark_key(session)
        looked_to = self._looked_to.get(place)
        if looked_to is None and self._marks is not None:
            kept = await self._marks.get(place)
            looked_to = int(kept) if kept is not None and kept.isdigit() else None
        # A mark behind the end is of turns that a restored backup does not have.
        return looked_to if looked_to is not None and looked_to <= newest else 0

    async def _mark(self, session: bodies.Session, newest: int) -> None:
        place = _mark_key(session)
        _keep(self._looked_to, place, newest, SESSIONS_KEPT)
        if self._marks is not None:
            await self._marks.set(place, b"%d" % newest)

    async def _ideas(self, scene: _Scene, looked_to: int, now: float) -> list[Idea]:
        session = scene.session
        fresh = [turn for turn in scene.turns if turn.number > looked_to]
        ideas = await self._records.read(lambda connection: _to_remember(connection, session, fresh))
        last_looked_at = self._promises_at.get((session.ns, session.user_id))
        if last_looked_at is None or now - last_looked_at >= PROMISES_EVERY_S:
            ideas += await self._records.read(lambda connection: _due(connection, session, now))
            _keep(self._promises_at, (session.ns, session.user_id), now, SESSIONS_KEPT)
        if looked_to == 0:
            ideas += await self._records.read(lambda connection: _unanswered(connection, session, now))
        if await self._has_turned(scene, looked_to):
            try:
                ideas += await self._related(scene, now)
            except BusError as error:
                # The other ideas do not depend on the search.
                log.warning("search failed", extra={"action": "memory.proactive.no_search", "reason": error.message})
        return [idea for idea in ideas if idea.confidence >= MIN_CONFIDENCE]

    # The topic --------------------------------------------------------------------------------------------------

    async def _has_turned(self, scene: _Scene, looked_to: int) -> bool:
        """True where the turns since the last look begin another topic; the first turns of a session always do."""
        if looked_to == 0:
            return True
        spoken = [turn for turn in scene.turns if _speaks(turn)]
        vectors = await self._encoded([turn.content[:TOPIC_CHARACTERS] for turn in spoken])
        if vectors is not None:
            places = policy.turned_at(policy.vector_distances(vectors), policy.VECTOR_THRESHOLDS)
        else:
            distances = policy.term_distances([policy.terms(turn.content[:TOPIC_CHARACTERS]) for turn in spoken])
            places = policy.turned_at(distances, policy.TERM_THRESHOLDS)
        return any(spoken[place].number > looked_to for place in places)

    async def _encoded(self, texts: Sequence[str]) -> list[bytes] | None:
        """Vectors of the texts; None while there is no encoder."""
        encoder = self._encoder()
        if encoder is None:
            return None
        missing = list(dict.fromkeys(text for text in texts if text not in self._vectors))
        try:
            made = dict(zip(missing, await encoder.encode(missing), strict=True)) if missing else {}
        except BusError as error:
            log.info("no vectors", extra={"action": "memory.proactive.no_vectors", "reason": error.message})
            return None
        known = {**{text: self._vectors[text] for text in texts if text in self._vectors}, **made}
        for text, vector in known.items():
            _keep(self._vectors, text, vector, VECTORS_KEPT)
        return [known[text] for text in texts]

    async def _related(self, scene: _Scene, now: float) -> list[Idea]:
        """What earlier sessions, memories and documents hold about the topic that has just come up."""
        spoken = [turn for turn in scene.turns if _speaks(turn)][-policy.CURRENT_TURNS :]
        topic_text = "\n".join(turn.content[:TOPIC_CHARACTERS] for turn in spoken)
        topic = policy.terms(topic_text)
        if len(topic) < 2:
            return []
        session = scene.session
        searches = [
            Search(
                query=topic_text,
                ns=session.ns,
                k=HITS,
                filters=Filters(kinds=["turn"], user_id=session.user_id, not_session_id=session.session_id),
            ),
            *(
                Search(query=topic_text, ns=ns, k=HITS, filters=Filters(kinds=["memory", "document"]))
                for ns in (SHARED_SPACES if session.ns == SHARED_NS else (session.ns,))
            ),
        ]
        ideas: list[Idea] = []
        for search in searches:
            found = (await self._finder.search(search)).hits
            earlier = [hit for hit in found if hit.at < now - EARLIER_S]
            if search.filters.user_id is not None:
                earlier = await self._records.read(partial(_owned, session=session, hits=earlier))
            best = await self._best(search.ns, topic_text, topic, earlier)
            if best is not None:
                ideas.append(best)
        return ideas

    async def _best(self, ns: str, topic_text: str, topic: frozenset[str], hits: Sequence[SearchHit]) -> Idea | None:
        vectors = await self._encoded([topic_text, *(hit.text for hit in hits)]) if hits else None
        judged = []
        for number, hit in enumerate(hits, 1):
            shared = policy.shared_terms(topic, hit.text)
            cosine = policy.similarity(vectors[0], vectors[number]) if vectors is not None else None
            judged.append((policy.relatedness(topic, shared, cosine), hit, shared))
        if not judged:
            return None
        confidence, hit, shared = max(judged, key=lambda one: (one[0], -one[1].chunk))
        return _related_idea(ns, hit, confidence, shared) if confidence > 0 else None


def _mark_key(session: bodies.Session) -> str:
    # With its beginning: a session deleted and made anew under the same id is another one.
    return f"looked:{session.ns}/{session.session_id}/{session.created_at!r}"


def _make(connection: sqlite3.Connection, session: bodies.Session, ideas: list[Idea], now: float) -> Outcome:
    # The switch may have been turned and the session deleted since the look began.
    if not suggestions.is_switched_on(connection, session.ns, session.user_id) or not _exists(connection, session):
        return Outcome([], [])
    return suggestions.make(connection, session, ideas, PER_HOUR, now)


def _scene(connection: sqlite3.Connection, ns: str, session_id: str, now: float) -> _Scene | None:
    try:
        session = sessions.read(connection, ns, session_id, now)
    except NotFound:
        return None
    if not suggestions.is_switched_on(connection, ns, session.user_id):
        return None
    newest = turns.newest(connection, ns, session_id, before=None, limit=LOOKED_AT_TURNS, max_bytes=LOOKED_AT_BYTES)
    return _Scene(session, newest[::-1])


def _exists(connection: sqlite3.Connection, session: bodies.Session) -> bool:
    row = connection.execute(
        "SELECT 1 FROM sessions WHERE ns = ? AND session_id = ? AND state != 'deleting'",
        (session.ns, session.session_id),
    ).fetchone()
    return row is not None


def _owned(connection: sqlite3.Connection, session: bodies.Session, hits: Sequence[SearchHit]) -> list[SearchHit]:
    """The hits that are turns of this user's other sessions, whatever search may have found."""
    owned = []
    for hit in hits:
        session_id = hit.id.rpartition("/")[0]
        row = connection.execute(
            "SELECT 1 FROM sessions WHERE ns = ? AND session_id = ? AND user_id = ? AND state != 'deleting'",
            (session.ns, session_id, session.user_id),
        ).fetchone()
        if row is not None and hit.kind == "turn" and session_id != session.session_id:
            owned.append(hit)
    return owned


# Ideas --------------------------------------------------------------------------------------------------------------


def _to_remember(connection: sqlite3.Connection, session: bodies.Session, fresh: list[bodies.Turn]) -> list[Idea]:
    """What the user has just stated about themselves and no fact holds yet."""
    ideas: list[Idea] = []
    for turn in fresh:
        if not _is_users(turn, session):
            continue
        ideas += [
            _remember_idea(session, turn, stated)
            for stated in said.stated_facts(turn.content)
            if not _is_remembered(connection, session, stated)
        ]
    return ideas


def _is_remembered(connection: sqlite3.Connection, session: bodies.Session, stated: said.Stated) -> bool:
    ns = SHARED_FACTS_NS if session.ns == SHARED_NS else session.ns
    same = connection.execute(
        "SELECT 1 FROM facts WHERE ns = ? AND key = ? AND value = ?", (ns, stated.key, stated.value)
    ).fetchone()
    words = said.words_of(stated.value)
    if same is not None or not words:
        # A symbol alone is in no index of words.
        return same is not None
    # The index knows words by their stems and without accents, so what it finds is looked at again.
    found = connection.execute(
        "SELECT facts.key, facts.value FROM facts_text JOIN facts ON facts.id = facts_text.rowid"
        " WHERE facts_text MATCH ? AND facts.ns = ?",
        (f'{{key value}} : "{" ".join(words)}"', ns),
    )
    return any(said.holds(key, stated.value) or said.holds(value, stated.value) for key, value in found)


def _remember_idea(session: bodies.Session, turn: bodies.Turn, stated: said.Stated) -> Idea:
    return Idea(
        kind="remember",
        about=f"{stated.key}: {stated.value}",
        text=suggestions.offer_to_remember(stated.key, stated.value, stated.category),
        reason="It was stated in this conversation and is not among the known facts.",
        confidence=stated.confidence,
        evidence=[_evidence(session.session_id, turn.number, stated.sentence, turn.at, stated.confidence)],
        evidence_from=session.session_id,
    )


def _due(connection: sqlite3.Connection, session: bodies.Session, now: float) -> list[Idea]:
    """Promises of this user that are due soon and were not made just now."""
    ideas: list[Idea] = []
    recent = connection.execute(
        "SELECT session_id FROM sessions WHERE ns = ? AND user_id = ? AND state != 'deleting'"
        " ORDER BY last_used_at DESC LIMIT ?",
        (session.ns, session.user_id, PROMISE_SESSIONS),
    ).fetchall()
    for (session_id,) in recent:
        for turn in turns.newest(
            connection, session.ns, session_id, before=None, limit=PROMISE_TURNS, max_bytes=LOOKED_AT_BYTES
        ):
            if not _is_users(turn, session) or turn.at > now - REMIND_NOT_BEFORE_S:
                continue
            ideas += [
                _due_idea(session_id, turn, promise)
                for promise in said.promises(turn.content, turn.at)
                if promise.since - REMIND_BEFORE_S <= now < promise.until
            ]
    return ideas


def _due_idea(session_id: str, turn: bodies.Turn, promise: said.Promise) -> Idea:
    return Idea(
        kind="due",
        about=f"{day(promise.since)} {promise.sentence}",
        text=f'Due {day(promise.since)}: "{promise.sentence}"',
        reason=f"Said on {day(turn.at)}; the date it names is near.",
        confidence=promise.confidence,
        evidence=[_evidence(session_id, turn.number, promise.sentence, turn.at, promise.confidence)],
        evidence_from=session_id,
    )


def _unanswered(connection: sqlite3.Connection, session: bodies.Session, now: float) -> list[Idea]:
    """The question with which this user's session before this one broke off."""
    row = connection.execute(
        "SELECT session_id FROM sessions WHERE ns = ? AND user_id = ? AND session_id != ? AND turns > 0"
        " AND last_used_at < ? AND state != 'deleting' ORDER BY last_used_at DESC LIMIT 1",
        (session.ns, session.user_id, session.session_id, now - EARLIER_S),
    ).fetchone()
    if row is None:
        return []
    newest = turns.newest(connection, session.ns, row[0], before=None, limit=1, max_bytes=LOOKED_AT_BYTES)
    if not newest or not _is_users(newest[0], session) or not newest[0].content.rstrip().endswith("?"):
        return []
    turn = newest[0]
    question = (said.sentences(turn.content) or [turn.content])[-1][: said.SENTENCE_CHARACTERS]
    return [
        Idea(
            kind="open_question",
            about=question,
            text=f'Still open since {day(turn.at)}: "{question}"',
            reason="The last conversation ended with this question, and nobody answered it.",
            confidence=0.7,
            evidence=[_evidence(row[0], turn.number, question, turn.at, 0.7)],
            evidence_from=row[0],
        )
    ]


def _related_idea(ns: str, hit: SearchHit, confidence: float, shared: Sequence[str]) -> Idea:
    where = {"turn": "You spoke about this on", "document": "A document holds something on this, of"}
    quoted = one_line(hit.text)[: said.SENTENCE_CHARACTERS]
    words = f" (shared words: {', '.join(shared[:SHARED_WORDS])})" if shared else ""
    evidence = bodies.Evidence(kind=hit.kind, id=hit.id, text=quoted, score=hit.score, at=hit.at)
    return Idea(
        kind="related",
        about=quoted,
        text=f'{where.get(hit.kind, "There is a memory of this, of")} {day(hit.at)}: "{quoted}"',
        reason=f"The conversation has come to a topic that this is close to{words}.",
        confidence=round(confidence, 3),
        evidence=[evidence],
        evidence_from=(
            hit.id.rpartition("/")[0] if hit.kind == "turn" else suggestions.source_of(ns, hit.kind, hit.id)
        ),
    )


def _evidence(session_id: str, number: int, text: str, at: float, score: float) -> bodies.Evidence:
    return bodies.Evidence(kind="turn", id=f"{session_id}/{number}", text=text, score=score, at=at)


def _speaks(turn: bodies.Turn) -> bool:
    return speaker_of(turn.role, turn.speaker, turn.metadata) is not None


def _is_users(turn: bodies.Turn, session: bodies.Session) -> bool:
    return turn.role.lower() in _USER_ROLES or turn.speaker == session.user_id


def _keep(kept: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    """Remember, and forget what was remembered longest ago."""
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)
