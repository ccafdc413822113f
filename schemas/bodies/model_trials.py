"""Bodies of comparing models: `model.compare`, `.evaluate`, `.benchmark`, `.abtest.*`, `.metric.*`, and routing."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, field

from schemas.bodies.base import Empty, Reply, Request, Unit
from schemas.bodies.model import Capability, ChatMessage, LatencyFigures, ModelName, Sampling, Timings, Usage

TrialId = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9-]+$(?!\n)")]
Name = Annotated[str, Meta(min_length=1, max_length=128)]

# Routing and limits -------------------------------------------------------------------------------------------------


class Route(Request, frozen=True, kw_only=True):
    """Which model for a profile or a kind of task. Without both: the profile "general".

    capabilities: what the model must be able to do. prompt_tokens: what must fit its window with the answer.
    """

    profile: Name | None = None
    task: Name | None = None
    capabilities: Annotated[list[Capability], Meta(max_length=16)] = []
    prompt_tokens: Annotated[int, Meta(ge=0, le=16_777_216)] = 0


class RoutePassed(Reply, frozen=True, kw_only=True):
    """A candidate that was passed over, and why."""

    model: str
    reason: str


class Routed(Reply, frozen=True, kw_only=True):
    model: str
    profile: str
    reason: str
    is_loaded: bool
    passed_over: list[RoutePassed]
    options: dict[str, Any] = {}


class Profiles(Empty, frozen=True, kw_only=True):
    pass


class Profile(Reply, frozen=True, kw_only=True):
    """models: candidates in order. options: sampling options its requests take. origin: which file says so."""

    name: str
    description: str
    models: list[str]
    capabilities: list[str]
    options: dict[str, Any]
    origin: str


class ProfileList(Reply, frozen=True, kw_only=True):
    profiles: list[Profile]


class ModelLimits(Request, frozen=True, kw_only=True):
    model: ModelName


class Limits(Reply, frozen=True, kw_only=True):
    """source: "file" (the model's own metadata), "database" with the pattern that matched, or "default": a guess that is
    safe and may be far too small."""

    model: str
    context_tokens: int
    max_output_tokens: int
    capabilities: list[str]
    source: Literal["file", "database", "default"]
    pattern: str | None = None
    note: str = ""


# Side by side -------------------------------------------------------------------------------------------------------


class Compare(Sampling, frozen=True, kw_only=True):
    """The same prompt to several models. Partial replies come as the models make them.

    at_once False asks them one after the other, which times them fairly on one device.
    """

    models: Annotated[list[ModelName], Meta(min_length=2, max_length=8)]
    prompt: Annotated[str, Meta(min_length=1)] | None = None
    messages: Annotated[list[ChatMessage], Meta(max_length=4_096)] = []
    at_once: bool = True


class CompareAnswer(Reply, frozen=True, kw_only=True):
    """One model's answer, or why there is none."""

    model: str
    text: str = ""
    usage: Usage | None = None
    timings: Timings | None = None
    finish_reason: str = ""
    error: str = ""


class ComparePart(Reply, frozen=True, kw_only=True):
    """index: which of the models. ended: its answer is over; told once, without the text, which came before."""

    index: int
    model: str
    text: str
    ended: CompareAnswer | None = None


class Comparison(Reply, frozen=True, kw_only=True):
    """What was asked, what was answered, and what was picked as the best, and why."""

    comparison_id: str
    answers: list[CompareAnswer]
    at: float = 0.0
    prompt: str | None = None
    messages: list[ChatMessage] = []
    picked: str | None = None
    note: str = ""


class ComparePick(Request, frozen=True, kw_only=True):
    """Record which answer was the best; "tie" for none."""

    comparison_id: TrialId
    model: ModelName
    note: Annotated[str, Meta(max_length=4_096)] = ""


class CompareGet(Request, frozen=True, kw_only=True):
    comparison_id: TrialId


# Evaluation ---------------------------------------------------------------------------------------------------------


class Evaluate(Request, frozen=True, kw_only=True):
    """Run a suite (a name of the suites folder, or a path below it) on a model.

    metrics: a selection of the suite's. seeds: the suite runs once with each. limit: cases at most, 0 for all.
    adapter: a LoRA adapter, "" for none. judge: the model that judges, where the suite asks for one.
    """

    model: ModelName
    suite: Annotated[str, Meta(min_length=1, max_length=256)]
    metrics: Annotated[list[Name], Meta(max_length=32)] = []
    seeds: Annotated[list[Annotated[int, Meta(ge=0, le=4_294_967_295)]], Meta(min_length=1, max_length=32)] = field(
        default_factory=lambda: [0]
    )
    limit: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    adapter: Annotated[str, Meta(max_length=128)] | None = None
    judge: ModelName | None = None
    confidence: Annotated[float, Meta(ge=0.5, le=0.9999)] = 0.95


class EvaluateProgress(Reply, frozen=True, kw_only=True):
    """means: of each metric so far."""

    evaluation_id: str
    done: int
    total: int
    errors: int
    means: dict[str, float] = {}


class MetricScore(Reply, frozen=True, kw_only=True):
    """mean with its confidence interval over n cases; which interval `method` says."""

    metric: str
    mean: float
    low: float
    high: float
    n: int
    method: str


class CaseResult(Reply, frozen=True, kw_only=True):
    """prompt, messages, expected: what was asked and the right answer, of a case that failed; left out of long ones."""

    case_id: str
    seed: int
    answer: str
    scores: dict[str, float]
    error: str = ""
    prompt: str | None = None
    messages: list[ChatMessage] = []
    expected: str = ""


class Evaluation(Reply, frozen=True, kw_only=True):
    """suite_sha256, model_sha256: what was run on what, so that results are comparable or said not to be."""

    evaluation_id: str
    model: str
    suite: str
    status: Literal["running", "done", "failed", "cancelled"]
    started_at: float
    finished_at: float | None
    scores: list[MetricScore]
    cases: int
    errors: int
    suite_sha256: str
    model_sha256: str | None
    adapter: str | None
    seeds: list[int]
    confidence: float
    error: str = ""
    usage: Usage | None = None
    latency: LatencyFigures | None = None
    details: dict[str, Any] = {}


class EvaluationGet(Request, frozen=True, kw_only=True):
    """with_cases: every case's answer and scores too. against: another evaluation, to compare this one with."""

    evaluation_id: TrialId
    with_cases: bool = False
    against: TrialId | None = None


class MetricDifference(Reply, frozen=True, kw_only=True):
    """Mean of this evaluation less that of the other, over the n cases that both answered, with its interval."""

    metric: str
    difference: float
    low: float
    high: float
    n: int
    method: str


class EvaluationDifference(Reply, frozen=True, kw_only=True):
    """Where the two cannot be compared, `reasons` says why; else it holds what to bear in mind."""

    against: str
    is_comparable: bool
    reasons: list[str]
    metrics: list[MetricDifference]


class EvaluationReply(Reply, frozen=True, kw_only=True):
    evaluation: Evaluation
    cases: list[CaseResult] = []
    difference: EvaluationDifference | None = None


class EvaluationList(Request, frozen=True, kw_only=True):
    model: ModelName | None = None
    suite: Annotated[str, Meta(max_length=256)] | None = None
    limit: Annotated[int, Meta(ge=1, le=1_000)] = 50


class Evaluations(Reply, frozen=True, kw_only=True):
    evaluations: list[Evaluation]


class EvaluationRecord(Request, frozen=True, kw_only=True):
    """Keep a result that somebody else found. cycle_id: which training it belongs to."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    scores: dict[Name, float]
    cycle_id: Annotated[str, Meta(max_length=256)] = ""
    evaluation_id: TrialId | None = None
    details: dict[str, Any] = {}
    at: float | None = None


class MetricRecord(Request, frozen=True, kw_only=True):
    """Keep one measurement of an agent's work."""

    agent: Annotated[str, Meta(min_length=1, max_length=256)]
    metric: Name
    value: float
    metric_id: TrialId | None = None
    details: dict[str, Any] = {}
    at: float | None = None


class MetricRecorded(Reply, frozen=True, kw_only=True):
    metric_id: str


class MetricList(Request, frozen=True, kw_only=True):
    """Measurements, the newest first. since, until: epoch seconds."""

    agent: Annotated[str, Meta(max_length=256)] | None = None
    metric: Annotated[str, Meta(max_length=128)] | None = None
    since: float | None = None
    until: float | None = None
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 100


class MetricEntry(Reply, frozen=True, kw_only=True):
    metric_id: str
    agent: str
    metric: str
    value: float
    at: float
    details: dict[str, Any] = {}


class Metrics(Reply, frozen=True, kw_only=True):
    metrics: list[MetricEntry]


# Benchmark ----------------------------------------------------------------------------------------------------------


class Benchmark(Request, frozen=True, kw_only=True):
    """Measure a model: every prompt length with every concurrency, each with `requests` answers of output_tokens.

    same_prompt: all requests of a length ask one prompt, so that what the runner keeps of it counts too.
    """

    model: ModelName
    prompt_tokens: Annotated[list[Annotated[int, Meta(ge=1, le=1_000_000)]], Meta(min_length=1, max_length=16)] = field(
        default_factory=lambda: [32]
    )
    output_tokens: Annotated[int, Meta(ge=1, le=100_000)] = 64
    concurrency: Annotated[list[Annotated[int, Meta(ge=1, le=256)]], Meta(min_length=1, max_length=16)] = field(
        default_factory=lambda: [1, 4]
    )
    requests: Annotated[int, Meta(ge=1, le=1_000)] = 8
    same_prompt: bool = False


class BenchmarkRow(Reply, frozen=True, kw_only=True):
    """Partial reply and row of the result: one prompt length with one concurrency.

    tokens_per_s: made by all callers together. memory_bytes: of the runner, None where nothing measures it.
    """

    prompt_tokens: int
    output_tokens: int
    concurrency: int
    requests: int
    errors: int
    tokens_per_s: float
    prompt_tokens_per_s: float
    first_token: LatencyFigures
    whole: LatencyFigures
    memory_bytes: int | None = None


class Benchmarked(Reply, frozen=True, kw_only=True):
    benchmark_id: str
    model: str
    rows: list[BenchmarkRow]
    load_s: float
    took_s: float


# A/B tests ----------------------------------------------------------------------------------------------------------


class Variant(Request, frozen=True, kw_only=True):
    """model may be a base model; adapter names one of its adapters. weight: its share of the traffic."""

    name: Name
    model: ModelName
    adapter: Annotated[str, Meta(max_length=128)] | None = None
    weight: Annotated[float, Meta(gt=0, le=1_000_000)] = 1.0


class AbTestStart(Request, frozen=True, kw_only=True):
    """The first variant is the one the others are compared with.

    alpha: the chance of calling a difference that is none, however often one looks. outcome "binary" takes 0 and 1,
    "bounded" anything from 0 to 1. min_effect: the smallest difference that matters; with it the test also ends when none is
    that large.
    """

    name: Name
    variants: Annotated[list[Variant], Meta(min_length=2, max_length=8)]
    outcome: Literal["binary", "bounded"] = "binary"
    alpha: Annotated[float, Meta(gt=0, lt=0.5)] = 0.05
    min_effect: Annotated[float, Meta(ge=0, lt=1)] = 0.0


class AbTestAssign(Request, frozen=True, kw_only=True):
    """Which variant a unit (a user, a session) gets: always the same one."""

    test_id: TrialId
    unit: Annotated[str, Meta(min_length=1, max_length=256)]


class AbTestAssigned(Reply, frozen=True, kw_only=True):
    test_id: str
    unit: str
    variant: str
    model: str
    adapter: str | None = None


class AbTestRecord(Request, frozen=True, kw_only=True):
    """The outcome of a unit, 0 to 1. outcome_id makes telling it twice harmless."""

    test_id: TrialId
    unit: Annotated[str, Meta(min_length=1, max_length=256)]
    value: Unit
    outcome_id: Annotated[str, Meta(min_length=1, max_length=256)] | None = None


class VariantResult(Reply, frozen=True, kw_only=True):
    """mean with a confidence sequence: an interval that holds at all times at once."""

    variant: str
    units: int
    outcomes: int
    mean: float
    low: float
    high: float


class Difference(Reply, frozen=True, kw_only=True):
    """Of a variant to the first. p_value: valid at any time one looks."""

    variant: str
    difference: float
    low: float
    high: float
    p_value: float


class AbTestResult(Reply, frozen=True, kw_only=True):
    """winner None while nothing is certain; `verdict` says it in words."""

    test_id: str
    name: str
    status: Literal["running", "stopped"]
    started_at: float
    stopped_at: float | None
    alpha: float
    variants: list[VariantResult]
    differences: list[Difference]
    winner: str | None
    verdict: str


class AbTestGet(Request, frozen=True, kw_only=True):
    test_id: TrialId


class AbTestStop(Request, frozen=True, kw_only=True):
    """Assign nobody any more; those who have a variant keep it."""

    test_id: TrialId


class AbTestList(Empty, frozen=True, kw_only=True):
    pass


class AbTests(Reply, frozen=True, kw_only=True):
    tests: list[AbTestResult]
