"""What earlier sessions of a user hold that matters to this one, as a text within a token budget."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from msgspec.structs import replace

from schemas.bodies.search import Filters, Search, SearchHit
from schemas.bodies.sessions import Bridge, BridgedTurn, Session, SessionBridge, Turn
from workers.memory.records import Records
from workers.memory.sessions import sessions, turns
from workers.memory.sessions.budget import Part, choose
from workers.memory.sessions.finder import Finder
from workers.memory.sessions.tokens import Counted, TokenCounter
from workers.memory.sessions.turns import speaker_of
from workers.memory.text import check_texts

# Turns shown on each side of one that was found: an answer is often in the next one.
WINDOW_TURNS: Final = 1

# Of a query made of the latest turns: how many of them, and characters of each.
QUERY_TURNS: Final = 3
QUERY_TURN_CHARACTERS: Final = 600

# Earlier sessions whose summaries are offered where nothing is asked for and the search names none.
RECENT_SUMMARIES: Final = 2

# Characters of one turn as it is shown; the rest of a longer one is not what was found.
SHOWN_CHARACTERS: Final = 1_200

# Characters of one turn that are read and replied with: white space goes before it is shown.
READ_CHARACTERS: Final = 2 * SHOWN_CHARACTERS

# Bytes of the turns that make a query, at most.
_QUERY_BYTES: Final = 1_000_000


class Passage(NamedTuple):
    """A piece of an earlier session: its summary (no turns), or a stretch of its turns.

    excerpts: the numbers of the turns of which `turns` holds the part that was found, not the beginning.
    """

    session: Session
    turns: list[Turn]
    score: float
    text: str
    excerpts: frozenset[int] = frozenset()

    @property
    def id(self) -> str:
        """Which session, and which of its turns."""
        if not self.turns:
            return f"{self.session.session_id}/summary"
        first, last = self.turns[0].number, self.turns[-1].number
        return f"{self.session.session_id}/{first}" + (f"-{last}" if last > first else "")


class Bridger:
    """Looks through a user's earlier sessions. Never shows one of another user or namespace."""

    def __init__(self, records: Records, finder: Finder, counter: TokenCounter) -> None:
        self._records = records
        self._finder = finder
        self._counter = counter

    async def bridge(self, request: SessionBridge) -> Bridge:
        """`memory.session.bridge`. Raises NotFound for a session that does not exist."""
        check_texts(request)
        now = self._records.now()
        session = await self._records.read(
            lambda connection: sessions.read(connection, request.ns, request.session_id, now)
        )
        query = request.query or await self.query_of(session)
        passages, _ = await self.passages(session, query, request.k, or_latest=not (request.query or "").strip())
        counted = await self._counter.count([passage.text for passage in passages], request.model)
        room = choose(request.max_tokens, [Part("bridge", counted.counts, 1.0)])["bridge"]
        return await self._reply(request, passages, room, counted)

    async def query_of(self, session: Session) -> str:
        """What a session is about just now: its latest turns in which somebody speaks."""
        latest = await self._records.read(
            lambda connection: turns.newest(
                connection,
                session.ns,
                session.session_id,
                before=None,
                limit=QUERY_TURNS,
                max_bytes=_QUERY_BYTES,
            )
        )
        spoken = [turn for turn in latest if speaker_of(turn.role, turn.speaker, turn.metadata) is not None]
        return "\n".join(turn.content[:QUERY_TURN_CHARACTERS] for turn in reversed(spoken))

    async def passages(self, session: Session, query: str, k: int, *, or_latest: bool) -> tuple[list[Passage], str]:
        """Passages of the user's other sessions, best first, and why the search could do less than it should.

        or_latest: where there are none, the summaries of the latest sessions, with a score of 0. For who asks for
        nothing in particular; a query is not answered with what it is not about.
        """
        hits: Sequence[SearchHit] = ()
        degraded = ""
        if query.strip() and k:
            found = await self._finder.search(
                Search(
                    query=query[:8192],
                    ns=session.ns,
                    k=k,
                    filters=Filters(kinds=["turn"], user_id=session.user_id, not_session_id=session.session_id),
                )
            )
            hits, degraded = found.hits, found.degraded
        now = self._records.now()
        return await self._records.read(
            lambda connection: _passages(connection, session, hits, now, or_latest)
        ), degraded

    async def _reply(self, request: SessionBridge, passages: list[Passage], room: int, counted: Counted) -> Bridge:
        """The best `room` passages, or fewer where together they cost more than they do one by one."""
        while True:
            text = render(passages[:room])
            whole = await self._counter.count([text], request.model)
            # Where the tokenizer has just gone away, what it said of the pieces stands.
            tokens = whole.counts[0] if whole.by == counted.by else sum(counted.counts[:room])
            if tokens <= request.max_tokens or room == 0:
                break
            room -= 1
        kept = passages[:room]
        return Bridge(
            session_id=request.session_id,
            text=text,
            tokens=tokens if kept else 0,
            turns=[_bridged(passage, turn) for passage in kept for turn in passage.turns],
            left_out=len(passages) - len(kept),
            counted_by=counted.by,
            sessions=list(dict.fromkeys(passage.session.session_id for passage in kept)),
        )


def render(passages: Sequence[Passage]) -> str:
    """The passages in the order of time, under a line for each session."""
    lines: list[str] = []
    current = ""
    for passage in sorted(passages, key=lambda one: (one.session.created_at, one.session.session_id, _first(one))):
        if passage.session.session_id != current:
            current = passage.session.session_id
            lines.append(_heading(passage.session))
        lines += _lines(passage)
    return "\n".join(lines)


def _passages(
    connection: sqlite3.Connection, session: Session, hits: Sequence[SearchHit], now: float, or_latest: bool
) -> list[Passage]:
    """The windows around the hits, best first, each turn in one of them only; summaries of their sessions before."""
    passages: list[Passage] = []
    others: dict[str, Session | None] = {}
    shown: set[tuple[str, int]] = set()
    # Of each turn the best hit, also where the window of another turn shows it first.
    found: dict[tuple[str, int], SearchHit] = {}
    for hit in hits:
        if (place := _place(hit)) is not None:
            found.setdefault(place, hit)
    for place, hit in found.items():
        session_id, number = place
        if session_id not in others:
            other = others[session_id] = _earlier(connection, session, session_id, now)
            if other is not None and other.summary:
                passages.append(_passage(other, [], hit.score))
        other = others[session_id]
        if other is None or place in shown:
            continue
        window = turns.between(
            connection,
            session.ns,
            session_id,
            number - WINDOW_TURNS,
            number + WINDOW_TURNS,
            # One more, so that a longer turn is known as such.
            max_characters=READ_CHARACTERS + 1,
        )
        fresh = [turn for turn in window if (session_id, turn.number) not in shown]
        shown.update((session_id, turn.number) for turn in fresh)
        if fresh:
            excerpts = {turn.number: _excerpt(found.get((session_id, turn.number))) for turn in fresh}
            fresh = [replace(turn, content=excerpts[turn.number] or turn.content) for turn in fresh]
            cut = frozenset(turn.number for turn in fresh if excerpts[turn.number])
            passages.append(_passage(other, fresh, hit.score, cut))
    if or_latest and not any(others.values()):
        passages += [_passage(other, [], 0.0) for other in _recent(connection, session, now)]
    return passages


def _excerpt(hit: SearchHit | None) -> str:
    """What was found further on in a long turn, which would not be shown with its beginning; "" for the beginning."""
    return f"... {hit.text} ..." if hit is not None and hit.end > SHOWN_CHARACTERS else ""


def _place(hit: SearchHit) -> tuple[str, int] | None:
    session_id, slash, number = hit.id.rpartition("/")
    return (session_id, int(number)) if hit.kind == "turn" and slash and number.isdecimal() else None


def _earlier(connection: sqlite3.Connection, session: Session, session_id: str, now: float) -> Session | None:
    """The other session, if it is there and of the same user; whatever search may have said."""
    row = connection.execute(
        "SELECT 1 FROM sessions WHERE ns = ? AND session_id = ? AND user_id = ? AND state != 'deleting'",
        (session.ns, session_id, session.user_id),
    ).fetchone()
    if row is None or session_id == session.session_id:
        return None
    return sessions.read(connection, session.ns, session_id, now)


def _recent(connection: sqlite3.Connection, session: Session, now: float) -> list[Session]:
    rows = connection.execute(
        "SELECT session_id FROM sessions WHERE ns = ? AND user_id = ? AND session_id != ? AND summary != ''"
        " AND state != 'deleting' ORDER BY last_used_at DESC LIMIT ?",
        (session.ns, session.user_id, session.session_id, RECENT_SUMMARIES),
    ).fetchall()
    return [sessions.read(connection, session.ns, session_id, now) for (session_id,) in rows]


def _passage(session: Session, found: list[Turn], score: float, excerpts: frozenset[int] = frozenset()) -> Passage:
    passage = Passage(session, found, score, "", excerpts)
    # Its cost includes the line of its session, which passages of one session share in the end.
    return passage._replace(text="\n".join([_heading(session), *_lines(passage)]) + "\n")


def _heading(session: Session) -> str:
    return f"[{day(session.created_at)}, session {session.session_id}]"


def _lines(passage: Passage) -> list[str]:
    if not passage.turns:
        return [f"Summary: {one_line(passage.session.summary)}"]
    return [f"{_who(turn)}: {one_line(turn.content)}" for turn in passage.turns]


def _who(turn: Turn) -> str:
    return one_line(speaker_of(turn.role, turn.speaker, turn.metadata) or turn.role)


def _first(passage: Passage) -> int:
    return passage.turns[0].number if passage.turns else 0


def _bridged(passage: Passage, turn: Turn) -> BridgedTurn:
    return BridgedTurn(
        session_id=passage.session.session_id,
        number=turn.number,
        role=turn.role,
        content=turn.content[:READ_CHARACTERS],
        at=turn.at,
        score=passage.score,
        speaker=turn.speaker,
        is_cut=len(turn.content) > READ_CHARACTERS or turn.number in passage.excerpts,
    )


def one_line(text: str) -> str:
    """`text` on one line, cut where it is long: a line break inside it would read as another speaker's turn."""
    line = " ".join(text[:READ_CHARACTERS].split())
    return line if len(line) <= SHOWN_CHARACTERS else line[:SHOWN_CHARACTERS].rstrip() + " ..."


def day(at: float) -> str:
    """The day of an instant in this machine's time zone."""
    return time.strftime("%Y-%m-%d", time.localtime(min(at, 1e11)))
