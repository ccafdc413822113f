"""Bodies of what is noticed: `learning.feedback`, `learning.exchange.*`, `learning.opportunity.*`, and `model.answered`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from schemas.bodies.base import Reply, Request, Unit
from schemas.bodies.model import ChatMessage, ModelName

LearningId = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]*$(?!\n)")]
UserName = Annotated[str, Meta(max_length=256)]
SessionName = Annotated[str, Meta(max_length=256)]
Text = Annotated[str, Meta(max_length=1_048_576)]
MemoryIds = Annotated[list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(max_length=1_000)]


class AnswerEvent(Reply, frozen=True, kw_only=True):
    """Event `model.answered`: one question and its answer, or the error in its place. The event log does not keep it.

    reply_id: id of the request as its caller knows it, in hexadecimal. caller: who signed in, "" for nobody.
    mean_logprob: mean natural logarithm of the probabilities of the answer's tokens; min_logprob: the lowest of them.
    adapter: of an answer None for none; of an error "" for none, None where it is not known.
    is_cut: the texts were longer than an event may carry, and are left out. is_adapter_asked: the request named the adapter,
    or that there be none.
    """

    reply_id: str
    model: str
    operation: str
    at: float
    messages: list[ChatMessage] = []
    prompt: str | None = None
    text: str = ""
    adapter: str | None = None
    finish_reason: str = ""
    tokens: int = 0
    mean_logprob: float | None = None
    min_logprob: float | None = None
    conversation_id: str | None = None
    caller: str = ""
    error: str = ""
    is_cut: bool = False
    is_adapter_asked: bool = False


class Feedback(Request, frozen=True, kw_only=True):
    """What somebody thinks of an answer: at least one of rating, correction and preferred.

    reply_id: the answer's (`reply_id` of a generation). An answer that was not seen here, or is forgotten already, can be
    given itself: model, messages or prompt, and answer. rating: 0 is bad, 1 is good. correction: what should have been
    answered. preferred: an answer that is better than the one given, though that need not be wrong. user: whose opinion it
    is; the signed-in caller where there is one. memory_ids: memories the correction rests on; forgotten with them.
    feedback_id makes telling it twice harmless.
    """

    reply_id: Annotated[str, Meta(max_length=128)] = ""
    rating: Unit | None = None
    correction: Text | None = None
    preferred: Text | None = None
    comment: Annotated[str, Meta(max_length=4_096)] = ""
    user: UserName = ""
    session_id: SessionName = ""
    memory_ids: MemoryIds = []
    model: ModelName | None = None
    messages: Annotated[list[ChatMessage], Meta(max_length=1_024)] = []
    prompt: Text | None = None
    answer: Text | None = None
    feedback_id: LearningId | None = None


class FeedbackTaken(Reply, frozen=True, kw_only=True):
    """opportunity_id: what it counts towards, "" where it asks for no change. row_id: the example it became, if any."""

    feedback_id: str
    reply_id: str
    opportunity_id: str = ""
    row_id: str = ""
    note: str = ""


class Exchange(Reply, frozen=True, kw_only=True):
    """A question with its answer, as it is kept for a while. signals: what was noticed about it, with its strength 0..1.

    outcome: 0 bad to 1 good, None while nothing is known. outcome_from: "rating", "correction", "rephrased", "error",
    "silence" (nobody complained in time).
    """

    reply_id: str
    model: str
    at: float
    messages: list[ChatMessage]
    prompt: str | None
    text: str
    adapter: str | None
    user: str
    session_id: str
    mean_logprob: float | None
    error: str
    signals: dict[str, float] = {}
    outcome: float | None = None
    outcome_from: str = ""


class ExchangeList(Request, frozen=True, kw_only=True):
    """What is kept of live traffic, the newest first."""

    model: ModelName | None = None
    user: UserName | None = None
    session_id: SessionName | None = None
    signal: Annotated[str, Meta(max_length=64)] | None = None
    limit: Annotated[int, Meta(ge=1, le=1_000)] = 50


class Exchanges(Reply, frozen=True, kw_only=True):
    """total: all that match and are still kept."""

    exchanges: list[Exchange]
    total: int


class ExchangeDelete(Request, frozen=True, kw_only=True):
    """Forget kept exchanges and the examples made of them: one, those of a user, or those of a session."""

    reply_id: Annotated[str, Meta(max_length=128)] | None = None
    user: UserName | None = None
    session_id: SessionName | None = None


class ExchangesDeleted(Reply, frozen=True, kw_only=True):
    exchanges: int
    rows: int


OpportunityKind = Literal[
    "correction", "preference", "rating", "evaluation", "rephrasing", "low_confidence", "error", "drift", "manual"
]
OpportunityState = Literal["open", "training", "learned", "dismissed", "expired"]


class Evidence(Reply, frozen=True, kw_only=True):
    """One thing an opportunity rests on. id: of the exchange, feedback or evaluation."""

    kind: str
    id: str
    at: float
    note: str = ""


class PriorityTerms(Reply, frozen=True, kw_only=True):
    """What the priority is made of, each 0..1 but cost_s; `formula` says how."""

    expected_gain: float
    frequency: float
    recency: float
    cost: float
    cost_s: float
    formula: str


class Opportunity(Reply, frozen=True, kw_only=True):
    """Something the model could learn. Event `learning.opportunity.found` carries it, too.

    priority: 0..1, the highest first. examples: rows with an answer to learn from. needs: what is still missing before a
    training makes sense, "" for nothing. category: a word of whoever added it. score: what they gave it.
    """

    opportunity_id: str
    model: str
    kind: OpportunityKind
    title: str
    state: OpportunityState
    priority: float
    terms: PriorityTerms
    evidence: list[Evidence]
    count: int
    examples: int
    created_at: float
    last_seen_at: float
    expires_at: float
    needs: str = ""
    category: str = ""
    source: str = ""
    score: float | None = None
    reason: str = ""
    job_id: str = ""


class OpportunityList(Request, frozen=True, kw_only=True):
    """Opportunities, the highest priority first. state None: open ones and those in training."""

    model: ModelName | None = None
    kind: OpportunityKind | None = None
    state: OpportunityState | None = None
    category: Annotated[str, Meta(max_length=128)] | None = None
    limit: Annotated[int, Meta(ge=1, le=1_000)] = 50


class Opportunities(Reply, frozen=True, kw_only=True):
    opportunities: list[Opportunity]
    total: int


class Example(Request, frozen=True, kw_only=True):
    """A question and the answer to learn. rejected: a worse answer, which makes it a preference. Either messages or prompt."""

    messages: Annotated[list[ChatMessage], Meta(max_length=1_024)] = []
    prompt: Text | None = None
    answer: Annotated[str, Meta(min_length=1, max_length=1_048_576)]
    rejected: Text | None = None
    user: UserName = ""
    session_id: SessionName = ""
    memory_ids: MemoryIds = []
    metadata: dict[str, Any] = {}


class OpportunityAdd(Request, frozen=True, kw_only=True):
    """Tell of something worth learning. What resembles a known one joins it.

    examples: what to learn. score: how sure whoever tells it is. opportunity_id makes telling it twice harmless.
    """

    title: Annotated[str, Meta(min_length=1, max_length=1_024)]
    model: ModelName | None = None
    kind: OpportunityKind = "manual"
    category: Annotated[str, Meta(max_length=128)] = ""
    source: Annotated[str, Meta(max_length=256)] = ""
    score: Unit | None = None
    examples: Annotated[list[Example], Meta(max_length=1_000)] = []
    evidence: Annotated[list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(max_length=1_000)] = []
    opportunity_id: LearningId | None = None


class OpportunityGet(Request, frozen=True, kw_only=True):
    """By its id, or by one it was told of under."""

    opportunity_id: LearningId


class OpportunityClose(Request, frozen=True, kw_only=True):
    """Somebody dealt with an opportunity elsewhere: it counts as learned, and what resembles it opens a new one."""

    opportunity_id: LearningId
    reason: Annotated[str, Meta(max_length=1_024)] = ""


class OpportunityDismiss(Request, frozen=True, kw_only=True):
    """Take an opportunity off the list for good: the same thing is not brought up again."""

    opportunity_id: LearningId
    reason: Annotated[str, Meta(max_length=1_024)] = ""
