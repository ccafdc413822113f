"""Keeps a conversation's turns as a session in memory: in order, in the background, each once, through outages.

It knows nothing of models, and no answer waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from bus.client import Client
from schemas.bodies.sessions import (
    NewTurn,
    Session,
    SessionAppend,
    SessionCreate,
    SessionGet,
    SessionHistory,
    SessionList,
    Sessions,
    SessionTurns,
    Turn,
)
from schemas.envelope import new_id
from schemas.errors import BusError, Conflict, Forbidden, NotFound, Retryable, Unauthenticated

# What kind of session a chat is, so that it goes on with its own and not with an agent's.
TYPE: Final = "chat"

# Memory writes in milliseconds, seconds.
_WRITE_S: Final = 3.0

# Pauses between two tries while memory is away, the shortest and the longest, seconds.
_PAUSE_S: Final = (0.2, 5.0)

# Characters of one turn that are kept; of a longer one the beginning. Every turn is cut up and searched later.
KEPT_CHARACTERS: Final = 65_536

# Turns that are taken up again with a session: more fit no window, and nobody scrolls back further.
RESUMED_TURNS: Final = 500

# Sessions looked through for the last one of a project.
_LOOKED_THROUGH: Final = 200

_TITLE_CHARACTERS: Final = 80


class Resumed(msgspec.Struct, frozen=True, kw_only=True):
    """A session to go on with, and its newest turns, oldest first."""

    session: Session
    turns: list[Turn]


class SessionKeeper:
    """The session of one conversation. `tell` is called once when memory goes away, and when it is back.

    is_kept False keeps nothing at all.
    """

    def __init__(self, client: Client, *, tell: Callable[[str], None], is_kept: bool = True) -> None:
        self._client = client
        self._user = "default"
        self._project = ""
        self._tell = tell
        self._is_kept = is_kept
        self._waiting: deque[tuple[bytes, str, NewTurn]] = deque()
        self._lost: list[str] = []
        self._known: set[str] = set()
        self._titles: dict[str, str] = {}
        self._creating: dict[str, bytes] = {}
        self._making = asyncio.Lock()
        self._model = ""
        self._writer: asyncio.Task[None] | None = None
        self._is_away = False
        self.session_id = new_session_id()

    @property
    def is_kept(self) -> bool:
        """False where nothing of this conversation goes to memory."""
        return self._is_kept

    def belongs_to(self, user: str, project: str) -> None:
        """Whose sessions these are, and the root of the project they are about, "" outside of one."""
        self._user, self._project = user, project

    def begin(self, session_id: str | None = None) -> str:
        """Go on in another session: a new one, or one to be made under this id. What waits is still kept in its own."""
        self.session_id = session_id or new_session_id()
        return self.session_id

    def keep(self, role: str, content: str, metadata: dict[str, Any], *, model: str = "") -> None:
        """Keep a turn; returns at once. An empty one is none."""
        if not self._is_kept or not content.strip():
            return
        self._model = model or self._model
        text = content
        if len(content) > KEPT_CHARACTERS:
            metadata = {**metadata, "characters": len(content)}
            text = f"{content[:KEPT_CHARACTERS]}\n[{len(content) - KEPT_CHARACTERS:,} more characters are not kept]"
        if role == "user":
            self._titles.setdefault(self.session_id, title_of(content))
        turn = NewTurn(role=role, content=text, at=time.time(), metadata=metadata)
        self._waiting.append((new_id(), self.session_id, turn))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.get_running_loop().create_task(self._write(), name="session keeper")

    async def ensure(self) -> str | None:
        """The session's id once memory has it, made now where need be; None where memory does not do it."""
        if not self._is_kept:
            return None
        try:
            await self._create(self.session_id)
        except BusError:
            return None
        return self.session_id

    async def close(self, timeout_s: float) -> list[str]:
        """Wait for what is not kept yet, `timeout_s` at most; lines that name what could not be."""
        writer = self._writer
        if writer is not None and not writer.done():
            await asyncio.wait({writer}, timeout=timeout_s)
            writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await writer
        lines = list(self._lost)
        if self._waiting:
            count = len(self._waiting)
            turns = "1 turn is" if count == 1 else f"{count} turns are"
            shown = "; ".join(f"{turn.role}: {title_of(turn.content, 40)}" for _, _, turn in list(self._waiting)[:4])
            lines.append(f"{turns} not in session {self.session_id}, memory does not answer ({shown})")
        return lines

    # Reading

    async def resume(self, session_id: str) -> Resumed:
        """Go on with a session. Raises NotFound, BusError."""
        session: Session = await self._client.request(
            "memory.session.get", SessionGet(session_id=session_id), timeout_s=_WRITE_S
        )
        reply: SessionTurns = await self._client.request(
            "memory.session.history",
            SessionHistory(session_id=session_id, limit=RESUMED_TURNS, touch=False),
            timeout_s=_WRITE_S,
        )
        self._known.add(session_id)
        self.session_id = session_id
        return Resumed(session=session, turns=reply.turns)

    async def sessions(self, limit: int) -> list[Session]:
        """Chats of this user, the one used last first, those of this project before all others. Raises BusError."""
        listed: Sessions = await self._client.request(
            "memory.session.list", SessionList(user_id=self._user, limit=_LOOKED_THROUGH), timeout_s=_WRITE_S
        )
        chats = [session for session in listed.sessions if session.type == TYPE and session.turns]
        return sorted(chats, key=lambda session: not self.is_here(session))[:limit]

    async def last(self) -> str | None:
        """The chat that was used last in this project, or outside of every project; None without. Raises BusError."""
        here = [session for session in await self.sessions(_LOOKED_THROUGH) if self.is_here(session)]
        return here[0].session_id if here else None

    def is_here(self, session: Session) -> bool:
        """True for a session of this project; outside of every project for one of none."""
        return bool(session.metadata.get("project", "") == self._project)

    # Writing

    async def _write(self) -> None:
        """Write what waits, oldest first; ends when nothing does."""
        pause_s = _PAUSE_S[0]
        while self._waiting:
            request_id, session_id, turn = self._waiting[0]
            try:
                await self._append(request_id, session_id, turn)
            except Retryable as error:
                self._say_away(error)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _PAUSE_S[1])
                continue
            except (Forbidden, Unauthenticated) as error:
                self._is_kept = False
                self._waiting.clear()
                self._lost.append(f"this conversation is kept nowhere: {error.message}")
                self._tell(self._lost[-1])
                return
            except BusError as error:
                self._lost.append(f"a turn ({turn.role}: {title_of(turn.content, 40)}) was not kept: {error.message}")
                self._tell(self._lost[-1])
            self._waiting.popleft()
            pause_s = _PAUSE_S[0]
            self._say_back()

    async def _append(self, request_id: bytes, session_id: str, turn: NewTurn) -> None:
        await self._create(session_id)
        asked = SessionAppend(session_id=session_id, turns=[turn], reopen=True)
        try:
            await self._client.request("memory.session.append", asked, id=request_id, timeout_s=_WRITE_S)
        except NotFound:
            # Deleted by somebody else meanwhile: what is said from here on begins it anew.
            self._known.discard(session_id)
            self._creating.pop(session_id, None)
            await self._create(session_id)
            await self._client.request("memory.session.append", asked, timeout_s=_WRITE_S)

    async def _create(self, session_id: str) -> None:
        """Make the session unless it is there. Raises BusError."""
        # One at a time: the client tells requests apart by their ids, and every try has the same.
        async with self._making:
            if session_id in self._known:
                return
            metadata = {"project": self._project, "title": self._titles.get(session_id, ""), "model": self._model}
            asked = SessionCreate(session_id=session_id, user_id=self._user, type=TYPE, metadata=metadata)
            # Under one id all the time: a try whose answer was lost has made it already.
            request_id = self._creating.setdefault(session_id, new_id())
            # A conflict: it is there, made by a try that this process knows nothing of, or by somebody else.
            with contextlib.suppress(Conflict):
                await self._client.request("memory.session.create", asked, id=request_id, timeout_s=_WRITE_S)
            self._known.add(session_id)

    def _say_away(self, error: BusError) -> None:
        if not self._is_away:
            self._is_away = True
            self._tell(f"memory does not answer ({error.message}); what is said waits here until it does")

    def _say_back(self) -> None:
        if self._is_away:
            self._is_away = False
            self._tell("memory is back, everything said is kept")


def new_session_id() -> str:
    """An id that sorts by time and that a person can type: chat-20260131-142233-a1b2c3."""
    return f"chat-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(3).hex()}"


def title_of(text: str, characters: int = _TITLE_CHARACTERS) -> str:
    """The first words of a text, on one line."""
    line = " ".join(text[: characters * 8].split())
    return line if len(line) <= characters else f"{line[: characters - 1]}…"
