"""Evaluation suites as files: JSON Lines, a first line about the suite and a line for each case; asks no model.

    {"metrics": ["exact_match"], "max_tokens": 32, "description": "Sums."}
    {"id": "sum-1", "prompt": "What is 7 + 5?", "expect": "7 + 5 = 12."}

A suite is found by its name, the path below a folder without `.jsonl`: the folder of the settings first, then the one
that ships with Olympus. Every error names file and line.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

import msgspec
from msgspec import Meta

from schemas.bodies.base import Request
from schemas.bodies.model import ChatMessage, ModelName
from schemas.errors import BadRequest, NotFound, Unprocessable
from workers.models.trials.asking import names
from workers.models.trials.json_schema import check_schema

SHIPPED: Final = Path(__file__).parent / "suites"
SUFFIX: Final = ".jsonl"

# Bytes of a suite file: a hundred thousand cases of a page each; it is read whole.
_BYTES_MAX: Final = 256 * 2**20

# Cases of a suite: as many as an evaluation may run. A line of a few bytes takes a hundred times as many in memory.
_CASES_MAX: Final = 200_000

# Suite files a folder is searched for, for the message that lists them.
_LISTED_MAX: Final = 1_000

MetricName = Literal["exact_match", "contains", "regex", "json", "perplexity", "similarity", "judge"]
METRICS: Final[tuple[str, ...]] = get_args(MetricName)

# What a case must have for a metric; any of them is enough. `json` needs nothing.
_NEEDS: Final[dict[str, tuple[str, ...]]] = {
    "exact_match": ("expect",),
    "contains": ("contains", "expect"),
    "regex": ("pattern",),
    "perplexity": ("text", "expect"),
    "similarity": ("reference", "expect"),
    "judge": ("prompt", "messages"),
}


class JudgeRules(Request, frozen=True, kw_only=True):
    """How answers are judged. model: the judge, unless the request names one.

    template: what it is asked; {prompt}, {answer}, {reference} stand for the case. is_pairwise: it says which of two
    answers is better, the model's or the reference, asked twice with their places swapped; {first} and {second} then
    stand for them. scale: marks are 0 to 1, or 1 to 10.
    """

    model: ModelName | None = None
    template: Annotated[str, Meta(min_length=1, max_length=65_536)] | None = None
    is_pairwise: bool = False
    scale: Literal[1, 10] = 10
    max_tokens: Annotated[int, Meta(ge=1, le=100_000)] = 256


class Rules(Request, frozen=True, kw_only=True):
    """The first line: what holds for every case.

    as_chat: prompts are a user's message, else text to continue. ignore_case: of exact and contains. json_schema: of the
    metric json. embedder: the model of similarity, else the first that can embed.
    """

    metrics: Annotated[list[MetricName], Meta(min_length=1, max_length=7)]
    description: Annotated[str, Meta(max_length=4_096)] = ""
    as_chat: bool = True
    system: str | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] = 256
    temperature: Annotated[float, Meta(ge=0, le=10)] = 0.0
    stop: Annotated[list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(max_length=64)] = []
    ignore_case: bool = False
    json_schema: dict[str, Any] | None = None
    embedder: ModelName | None = None
    judge: JudgeRules = JudgeRules()


class Case(Request, frozen=True, kw_only=True):
    """One line: what is asked, and what is known of the answer.

    expect: the right answer, or several. contains: texts that must all be in it. pattern: a regular expression to be
    found in it. text: what perplexity is measured of, after the prompt. reference: what similarity and the judge compare
    with. Where these are missing, `expect` stands in.
    """

    id: Annotated[str, Meta(min_length=1, max_length=128)]
    prompt: Annotated[str, Meta(min_length=1)] | None = None
    messages: Annotated[list[ChatMessage], Meta(max_length=4_096)] = []
    expect: str | list[str] | None = None
    contains: str | list[str] | None = None
    pattern: Annotated[str, Meta(min_length=1, max_length=4_096)] | None = None
    json_schema: dict[str, Any] | None = None
    text: Annotated[str, Meta(min_length=1)] | None = None
    reference: Annotated[str, Meta(min_length=1)] | None = None

    def fits_metric(self, metric: str) -> bool:
        """True when the case has what the metric needs."""
        return metric not in _NEEDS or any(getattr(self, name) for name in _NEEDS[metric])

    @property
    def expected(self) -> list[str]:
        """The right answers."""
        return _listed(self.expect)

    @property
    def parts(self) -> list[str]:
        """Texts that the answer must contain; of several right answers any one is enough, and they are not here."""
        return _listed(self.contains)

    @property
    def best(self) -> str:
        """The answer to compare with."""
        return self.reference or next(iter(self.expected), "")


class Suite(msgspec.Struct, frozen=True):
    """A suite as it was read. sha256: of the file's bytes."""

    name: str
    sha256: str
    rules: Rules
    cases: tuple[Case, ...]


def _listed(value: str | list[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else value


def find_suite(folders: list[Path], name: str) -> Path:
    """The file of a suite. Raises BadRequest for a path that leaves the folders, NotFound that lists what there is."""
    wanted = name if name.endswith(SUFFIX) else name + SUFFIX
    if Path(wanted).is_absolute() or ".." in Path(wanted).parts or "\0" in wanted:
        raise BadRequest(f"field 'suite' is {name!r}: a suite is a path below the suites folder", field="suite")
    for folder in folders:
        path = folder / wanted
        # Not Path.is_file, which fails where a name is longer than a file system has.
        if os.path.isfile(path):
            if not path.resolve().is_relative_to(folder.resolve()):
                raise BadRequest(f"suite {name!r} is a link that leaves {folder}", field="suite")
            return path
    known = {one for folder in folders for one in suite_names(folder)}
    raise NotFound(f"no suite {name!r}; there are: {names(known)}", suite=name)


def suite_names(folder: Path) -> Iterator[str]:
    """Names of the suites below a folder, some thousand at most."""
    for _, path in zip(range(_LISTED_MAX), folder.rglob(f"*{SUFFIX}"), strict=False):
        yield str(path.relative_to(folder)).removesuffix(SUFFIX)


def read_suite(path: Path, name: str) -> Suite:
    """Read and check a suite. Raises Unprocessable naming file and line."""
    try:
        if path.stat().st_size > _BYTES_MAX:
            raise Unprocessable(f"{path} has {path.stat().st_size} bytes, a suite at most {_BYTES_MAX}")
        content = path.read_bytes()
    except OSError as error:
        raise Unprocessable(f"{path} cannot be read: {error.strerror}") from error
    count = content.count(b"\n") + 1
    if count > _CASES_MAX:
        raise Unprocessable(f"{path} has {count} lines, a suite at most {_CASES_MAX}")
    lines = [(number, line) for number, line in enumerate(content.split(b"\n"), 1) if line.strip()]
    if len(lines) < 2:
        raise Unprocessable(
            f"{path}: a suite has a first line about itself and a line for each case; this has no cases"
        )
    rules: Rules = _decoded(path, *lines[0], Rules)
    _check(path, lines[0][0], partial(_check_rules, rules))
    cases: list[Case] = []
    seen: dict[str, int] = {}
    for number, line in lines[1:]:
        case: Case = _decoded(path, number, line, Case)
        if case.id in seen:
            raise Unprocessable(f"{path} line {number}: id {case.id!r} is that of line {seen[case.id]} too")
        seen[case.id] = number
        _check(path, number, partial(_check_case, case, rules))
        cases.append(case)
    for metric in rules.metrics:
        if not any(case.fits_metric(metric) for case in cases):
            needs = " or ".join(_NEEDS[metric])
            raise Unprocessable(f"{path} line {lines[0][0]}: metric {metric!r} needs {needs}, which no case has")
    return Suite(name.removesuffix(SUFFIX), hashlib.sha256(content).hexdigest(), rules, tuple(cases))


def _decoded(path: Path, number: int, line: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Unprocessable(f"{path} line {number}: {error}", line=number) from error


def _check(path: Path, number: int, check: Callable[[], None]) -> None:
    try:
        check()
    except (re.error, ValueError, OverflowError, RecursionError) as error:
        raise Unprocessable(f"{path} line {number}: {error}", line=number) from error


def _check_rules(rules: Rules) -> None:
    if len(set(rules.metrics)) < len(rules.metrics):
        raise ValueError("field 'metrics' names one twice")
    if rules.json_schema is not None:
        check_schema(rules.json_schema)


def _check_case(case: Case, rules: Rules) -> None:
    if case.prompt is not None and case.messages:
        raise ValueError("'prompt' and 'messages' exclude each other")
    if not rules.as_chat and case.messages:
        raise ValueError("'messages' need as_chat")
    if not case.fits_metric("judge") and any(metric != "perplexity" for metric in rules.metrics):
        raise ValueError("there is no 'prompt' and there are no 'messages'")
    if not any(case.fits_metric(metric) for metric in rules.metrics):
        raise ValueError(f"no metric of {', '.join(rules.metrics)} can say anything about this case")
    if case.json_schema is not None:
        check_schema(case.json_schema)
    if case.pattern is not None:
        re.compile(case.pattern)
