"""Assembles what a model is shown: system prompt, facts, earlier sessions, memories and history within a token budget."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from schemas.bodies.memory import Prompt, PromptAddition
from schemas.bodies.search import Filters, Search, SearchHit
from schemas.bodies.sessions import BuiltContext, BuiltMessage, ContextBuild, ContextPart, Session, Turn
from schemas.errors import BadRequest, NotFound, Unprocessable
from workers.memory.prompt import BYTES_PER_TOKEN_MAX
from workers.memory.records import Records
from workers.memory.sessions import sessions, turns
from workers.memory.sessions.bridge import Bridger, Passage, day, one_line, render
from workers.memory.sessions.budget import Part, choose
from workers.memory.sessions.contexts import Contexts
from workers.memory.sessions.finder import Finder, search_spaces
from workers.memory.sessions.tokens import MESSAGE_TOKENS, TokenCounter
from workers.memory.text import check_texts

# History that is looked at: no more turns than this, and no more bytes than the budget could ever hold.
HISTORY_TURNS: Final = 1_000
HISTORY_BYTES_MIN: Final = 65_536

# Facts that did not fit and are named one by one; the others are counted.
NAMED_FACTS: Final = 100

MEMORIES_HEADING: Final = "What may matter here:"
BRIDGE_HEADING: Final = "From earlier conversations:"

_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
}


class Shares(NamedTuple):
    """Of the budget that system prompt and newest turn leave: what is kept for each part. History has the rest."""

    facts: float
    bridge: float
    memories: float

    @property
    def history(self) -> float:
        """What the others leave, a little at least."""
        return max(0.01, 1.0 - self.facts - self.bridge - self.memories)


class FactPrompts(Protocol):
    """Where the known facts come from, as a text within a budget."""

    async def prompt(self, request: Prompt) -> PromptAddition:
        """`memory.prompt`."""


class _Memory(NamedTuple):
    """A hit as it may be shown."""

    id: str
    line: str
    score: float


class _Materials(NamedTuple):
    """Everything that was found for a context, most wanted first in each list, with the tokens of each piece."""

    system_prompt: str
    system_tokens: int
    history: list[Turn]
    history_costs: list[int]
    facts: PromptAddition | None
    facts_cost: int
    memories: list[_Memory]
    memory_costs: list[int]
    passages: list[Passage]
    passage_costs: list[int]
    counted_by: str


class ContextBuilder:
    """`memory.context.build`. The same records, request and search results give the same context."""

    def __init__(
        self,
        records: Records,
        contexts: Contexts,
        facts: FactPrompts,
        bridger: Bridger,
        finder: Finder,
        counter: TokenCounter,
        shares: Shares,
    ) -> None:
        self._records = records
        self._contexts = contexts
        self._facts = facts
        self._bridger = bridger
        self._finder = finder
        self._counter = counter
        self._shares = shares

    async def build(self, request: ContextBuild) -> BuiltContext:
        """Raises NotFound for a session that is named and not there, Unprocessable for a budget that is too small.

        Raises BadRequest where `reserve_tokens` leave nothing of `max_tokens`.
        """
        check_texts(request)
        budget = _budget(request)
        stored = await self._contexts.find(request.ns, request.context_id) if request.context_id else None
        system_prompt = request.system_prompt
        if system_prompt is None:
            system_prompt = stored.system_prompt if stored is not None else ""
        notes: list[str] = []
        session = await self._session(request, stored.session_id if stored is not None else None, notes)
        history = await self._history(session, budget)
        query = request.query
        if query is None and session is not None:
            query = await self._bridger.query_of(session)
        (memories, passed_over), passages = await asyncio.gather(
            self._memories(request, query or "", notes), self._passages(request, session, query or "", notes)
        )
        materials = await self._weigh(request, budget, system_prompt, history, memories, passages)
        built = await self._assemble(request, budget, materials, session)
        left_out = [*built.left_out, *passed_over, *_unread(session, history)]
        return BuiltContext(
            messages=built.messages,
            tokens=built.tokens,
            max_tokens=request.max_tokens,
            counted_by=built.counted_by,
            included=built.included,
            left_out=left_out,
            degraded="; ".join(dict.fromkeys(note for note in notes if note)),
        )

    # What there is ----------------------------------------------------------------------------------------------

    async def _session(self, request: ContextBuild, stored_id: str | None, notes: list[str]) -> Session | None:
        session_id = request.session_id or stored_id
        if session_id is None:
            return None
        now = self._records.now()
        try:
            return await self._records.read(
                lambda connection: sessions.read(connection, request.session_ns, session_id, now)
            )
        except NotFound:
            if request.session_id is not None:
                raise
            notes.append(f"session {session_id!r} of the context is gone")
            return None

    async def _history(self, session: Session | None, budget: int) -> list[Turn]:
        if session is None:
            return []
        max_bytes = max(HISTORY_BYTES_MIN, budget * BYTES_PER_TOKEN_MAX)
        return await self._records.read(
            lambda connection: turns.newest(
                connection, session.ns, session.session_id, before=None, limit=HISTORY_TURNS, max_bytes=max_bytes
            )
        )

    async def _memories(
        self, request: ContextBuild, query: str, notes: list[str]
    ) -> tuple[list[_Memory], list[ContextPart]]:
        """What is worth showing, best first, and what was found but is shown elsewhere already."""
        if not query.strip() or request.k == 0:
            return [], []
        # Turns are not asked for: those of this session are the history, those of others come through the bridge,
        # which knows whose they are.
        filters = Filters(kinds=["memory", "document", "fact"])
        asked = Search(query=query[:8192], k=request.k, filters=filters, now=request.now)
        hits, degraded = await search_spaces(self._finder, asked, request.search_ns)
        notes.extend(degraded)
        shown: dict[str, _Memory] = {}
        passed_over: list[ContextPart] = []
        for ns, hit in hits:
            id = _memory_id(ns, hit)
            text = " ".join(hit.text.split())
            if hit.kind == "fact" and ns == request.facts_ns:
                passed_over.append(_part("memory", id, 0, "a fact, and facts have a part of their own", hit.score))
            elif text in shown:
                passed_over.append(_part("memory", id, 0, f"the same text as {shown[text].id}", hit.score))
            else:
                shown[text] = _Memory(id, _memory_line(hit), hit.score)
        best = list(shown.values())
        passed_over += [
            _part("memory", memory.id, 0, f"beyond the best {request.k}", memory.score) for memory in best[request.k :]
        ]
        return best[: request.k], passed_over

    async def _passages(
        self, request: ContextBuild, session: Session | None, query: str, notes: list[str]
    ) -> list[Passage]:
        if not request.bridge or session is None:
            return []
        passages, degraded = await self._bridger.passages(session, query, request.k, or_latest=not request.query)
        notes.append(degraded)
        return passages

    # What it costs ----------------------------------------------------------------------------------------------

    async def _weigh(
        self,
        request: ContextBuild,
        budget: int,
        system_prompt: str,
        history: list[Turn],
        memories: list[_Memory],
        passages: list[Passage],
    ) -> _Materials:
        texts = [
            system_prompt,
            *(_message(turn).content for turn in history),
            # The first piece of a part brings the part's heading along.
            *_headed(MEMORIES_HEADING, [memory.line for memory in memories]),
            *_headed(BRIDGE_HEADING, [passage.text for passage in passages]),
        ]
        counts, by = await self._counter.count(texts, request.model)
        # The system message stands for itself even without a prompt: facts and memories go into it.
        system_tokens = counts[0] + MESSAGE_TOKENS
        if system_tokens > budget:
            what = "the system prompt" if system_prompt else "an empty system message"
            raise Unprocessable(
                f"{what} alone has {system_tokens} tokens (counted by {by}), the budget is {budget}"
                f" (max_tokens {request.max_tokens} less reserve_tokens {request.reserve_tokens})",
                field="system_prompt" if system_prompt else "max_tokens",
                system_tokens=system_tokens,
                budget_tokens=budget,
            )
        costs = iter(counts[1:])
        history_costs = [next(costs) + MESSAGE_TOKENS for _ in history]
        memory_costs = [next(costs) for _ in memories]
        passage_costs = [next(costs) for _ in passages]
        room = budget - system_tokens
        if history_costs and history_costs[0] <= room:
            room -= history_costs[0]
        facts, facts_cost = await self._known_facts(request, int(room * self._shares.facts))
        return _Materials(
            system_prompt,
            system_tokens,
            history,
            history_costs,
            facts,
            facts_cost,
            memories,
            memory_costs,
            passages,
            passage_costs,
            by,
        )

    async def _known_facts(self, request: ContextBuild, room: int) -> tuple[PromptAddition | None, int]:
        if request.facts_ns is None:
            return None, 0
        facts = await self._facts.prompt(Prompt(max_tokens=max(1, room), ns=request.facts_ns, model=request.model))
        # Two tokens for the empty line in front, which no tokenizer makes more of.
        return facts, facts.tokens + 2 if facts.text else 0

    # What is chosen ---------------------------------------------------------------------------------------------

    async def _assemble(
        self, request: ContextBuild, budget: int, materials: _Materials, session: Session | None
    ) -> BuiltContext:
        """The chosen pieces as messages, counted once more as they are, with fewer pieces while that is too much."""
        room = budget - materials.system_tokens
        while True:
            taken = self._choose(room, materials)
            messages = _messages(materials, taken)
            counted = await self._counter.count([message.content for message in messages], request.model)
            tokens = sum(counted.counts) + MESSAGE_TOKENS * len(messages)
            if counted.by != materials.counted_by:
                # The tokenizer has just gone away: what it said of the pieces stands.
                tokens = materials.system_tokens + _cost(materials, taken)
            if tokens <= budget or not any(taken.values()):
                break
            # Pieces joined cost more than one by one: rare, and by a token or two.
            room = min(room, _cost(materials, taken)) - (tokens - budget)
        included, left_out = _account(materials, taken, session, request)
        return BuiltContext(
            messages=messages,
            tokens=tokens,
            max_tokens=request.max_tokens,
            counted_by=materials.counted_by,
            included=included,
            left_out=left_out,
        )

    def _choose(self, room: int, materials: _Materials) -> dict[str, int]:
        """The newest turn first, then every part within its share, then whoever still fits."""
        history = materials.history_costs
        has_newest = bool(history) and history[0] <= room
        if has_newest:
            room -= history[0]
        shares = self._shares
        taken = choose(
            room,
            [
                Part("history", history[1:] if has_newest else [], shares.history),
                Part("facts", [materials.facts_cost] if materials.facts_cost else [], shares.facts),
                Part("memory", materials.memory_costs, shares.memories),
                Part("bridge", materials.passage_costs, shares.bridge),
            ],
        )
        taken["history"] += has_newest
        return taken


def _budget(request: ContextBuild) -> int:
    """Tokens that a context may have. Raises BadRequest where none are left of them."""
    if request.reserve_tokens >= request.max_tokens:
        raise BadRequest(
            f"reserve_tokens = {request.reserve_tokens} is not allowed; allowed: 0 to {request.max_tokens - 1}, fewer"
            f" than max_tokens = {request.max_tokens}",
            field="reserve_tokens",
            reserve_tokens=request.reserve_tokens,
            max_tokens=request.max_tokens,
        )
    return request.max_tokens - request.reserve_tokens


def _cost(materials: _Materials, taken: dict[str, int]) -> int:
    return (
        sum(materials.history_costs[: taken["history"]])
        + materials.facts_cost * taken["facts"]
        + sum(materials.memory_costs[: taken["memory"]])
        + sum(materials.passage_costs[: taken["bridge"]])
    )


def _messages(materials: _Materials, taken: dict[str, int]) -> list[BuiltMessage]:
    blocks = [materials.system_prompt]
    if taken["facts"] and materials.facts is not None:
        blocks.append(materials.facts.text)
    if taken["bridge"]:
        blocks.append(f"{BRIDGE_HEADING}\n{render(materials.passages[: taken['bridge']])}")
    if taken["memory"]:
        lines = [memory.line for memory in materials.memories[: taken["memory"]]]
        blocks.append("\n".join([MEMORIES_HEADING, *lines]))
    system = "\n\n".join(block for block in blocks if block)
    messages = [BuiltMessage(role="system", content=system)] if system else []
    return messages + [_message(turn) for turn in reversed(materials.history[: taken["history"]])]


def _message(turn: Turn) -> BuiltMessage:
    """A turn in the roles that `model.chat` knows; another role speaks as a user and is named."""
    role = _ROLES.get(turn.role.lower())
    if role is None:
        return BuiltMessage(role="user", content=f"{turn.speaker or turn.role}: {turn.content}")
    return BuiltMessage(role=role, content=turn.content)


def _memory_id(ns: str, hit: SearchHit) -> str:
    """Where a hit comes from; of a document, and of a memory behind its first piece, which characters."""
    is_piece = hit.kind == "document" or hit.start > 0
    return f"{ns}/{hit.id}" + (f"/{hit.start}-{hit.end}" if is_piece else "")


def _memory_line(hit: SearchHit) -> str:
    title = f" {one_line(hit.title)}:" if hit.title else ""
    speaker = f" {one_line(hit.speaker)}:" if hit.speaker else ""
    return f"- [{day(hit.at)}]{title}{speaker} {one_line(hit.text)}"


def _headed(heading: str, texts: Sequence[str]) -> list[str]:
    """Each text with its line break; the first under the heading, which an empty line sets apart."""
    return [f"\n\n{heading}\n{text}\n" if number == 0 else f"{text}\n" for number, text in enumerate(texts)]


# The account --------------------------------------------------------------------------------------------------------


def _account(
    materials: _Materials, taken: dict[str, int], session: Session | None, request: ContextBuild
) -> tuple[list[ContextPart], list[ContextPart]]:
    session_id = session.session_id if session is not None else ""
    pieces = {
        "history": [
            _part("history", f"{session_id}/{turn.number}", cost)
            for turn, cost in zip(materials.history, materials.history_costs, strict=True)
        ],
        "bridge": [
            _part("bridge", passage.id, cost, score=passage.score)
            for passage, cost in zip(materials.passages, materials.passage_costs, strict=True)
        ],
        "memory": [
            _part("memory", memory.id, cost, score=memory.score)
            for memory, cost in zip(materials.memories, materials.memory_costs, strict=True)
        ],
    }
    included = []
    if materials.system_prompt:
        included.append(_part("system", request.context_id or "request", materials.system_tokens))
    left_out = []
    if materials.facts is not None:
        kept, not_kept = _facts_account(materials.facts, materials.facts_cost, request.facts_ns or "", taken["facts"])
        included += kept
        left_out += not_kept
    for name in ("bridge", "memory", "history"):
        count = taken[name]
        included += pieces[name][:count]
        left_out += [
            _part(part.part, part.id, part.tokens, _WHY_LEFT_OUT[name], part.score) for part in pieces[name][count:]
        ]
    return included, left_out


_WHY_LEFT_OUT: Final = {
    "bridge": "does not fit, or one that matters more does not",
    "memory": "does not fit, or one that matters more does not",
    "history": "does not fit, or a later turn does not",
}


def _facts_account(
    facts: PromptAddition, cost: int, ns: str, is_taken: int
) -> tuple[list[ContextPart], list[ContextPart]]:
    """The facts that are in the prompt as one piece, and those that are not by their keys."""
    included = []
    keys, count = facts.left_out, facts.left_out_count
    if is_taken:
        why = f"{len(facts.included)} facts: {', '.join(facts.included[:NAMED_FACTS])}"
        included.append(_part("facts", ns, cost, why))
    else:
        keys, count = [*facts.included, *keys], count + len(facts.included)
    left_out = [_part("facts", f"{ns}/{key}", 0, "does not fit its share") for key in keys[:NAMED_FACTS]]
    if count > len(left_out):
        left_out.append(_part("facts", ns, 0, f"{count - len(left_out)} more facts do not fit their share"))
    return included, left_out


def _unread(session: Session | None, history: list[Turn]) -> list[ContextPart]:
    """The turns before those that were looked at, as one piece."""
    if session is None or not history or history[-1].number == 1:
        return []
    last = history[-1].number - 1
    return [_part("history", f"{session.session_id}/1-{last}", 0, f"{last} older turns, not looked at")]


def _part(part: str, id: str, tokens: int, why: str = "", score: float | None = None) -> ContextPart:
    return ContextPart(part=part, id=id, tokens=tokens, why=why, score=score)
