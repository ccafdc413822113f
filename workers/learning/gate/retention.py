"""Suites of what a model must not forget: files of cases, JSON Lines or a JSON array; asks no model.

    {"id": "add-7-5", "prompt": "What is 7 + 5?", "expect": "7 + 5 = 12."}
    {"id": "name", "messages": [{"role": "user", "content": "My name is Ada."}, ...], "expect": "Your name is Ada."}

A case is what it is in a suite of `model.evaluate`: its first line, with `metrics`, may say `system` and `as_chat`. cluster:
cases about one fact share it; without, each stands alone. The demo model's suite comes with Olympus.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from bus.settings import Settings, parse_model_files
from schemas.bodies.model import ChatMessage
from schemas.errors import Unprocessable
from workers.learning.gate.items import Item
from workers.learning.gate.scoring import metric_for

SHIPPED: Final = {"olympus-demo": Path(__file__).parent / "suites" / "olympus-demo.jsonl"}

# Bytes of a file: far more cases than are ever asked.
_BYTES_MAX: Final = 64 * 2**20

# What comes before the id of a case, so that it is no row's.
_PREFIX: Final = "case."


class _Head(msgspec.Struct, frozen=True):
    """A first line about all cases."""

    metrics: list[str]
    system: str | None = None
    as_chat: bool = True


class _Case(msgspec.Struct, frozen=True):
    """One line. Fields of other metrics are passed over."""

    id: Annotated[str, Meta(min_length=1, max_length=128)]
    expect: str | list[str] | None = None
    reference: str | None = None
    prompt: Annotated[str, Meta(min_length=1)] | None = None
    messages: Annotated[list[ChatMessage], Meta(max_length=4_096)] = []
    cluster: str = ""


class RetentionSuites:
    """The suites of the settings by the name of the model."""

    def __init__(self, settings: Settings) -> None:
        self._files = named_files(settings)

    def cases(self, model: str) -> list[Item]:
        """What `model` must not forget, of all its files. Reads them each time. Raises Unprocessable with file and line."""
        return [item for path in self._files.get(model, []) for item in read_cases(path)]


def named_files(settings: Settings) -> dict[str, list[Path]]:
    """The files of `learning.retention`, MODEL=FILE each, by model; the shipped one where none is named."""
    named = parse_model_files(settings.learning.retention)
    return {model: [path] for model, path in SHIPPED.items()} | {
        model: [settings.path(file) for file in files] for model, files in named.items()
    }


def read_cases(path: Path) -> list[Item]:
    """The cases of one file. Raises Unprocessable."""
    try:
        if path.stat().st_size > _BYTES_MAX:
            raise Unprocessable(f"{path} has more than {_BYTES_MAX} bytes: give a part of it", path=str(path))
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Unprocessable(f"the retention suite {path} cannot be read: {error}", path=str(path)) from error
    head, items, seen = _Head(metrics=[]), list[Item](), set[str]()
    for number, value in _values(path, text):
        try:
            if number == 1 and isinstance(value, dict) and "metrics" in value:
                head = msgspec.convert(value, _Head)
                continue
            case = msgspec.convert(value, _Case)
        except msgspec.ValidationError as error:
            raise Unprocessable(f"{path}, line {number}: {error}", path=str(path), line=number) from error
        if case.id in seen:
            raise Unprocessable(f"{path}, line {number}: id {case.id!r} was there before", path=str(path), line=number)
        seen.add(case.id)
        items.append(_item(path, number, case, head))
    return items


def _values(path: Path, text: str) -> Sequence[tuple[int, Any]]:
    """The values of an array, or of the lines, numbered from 1."""
    number = 1
    try:
        if text.lstrip()[:1] == "[":
            whole: list[Any] = msgspec.json.decode(text, type=list[Any])
            return list(enumerate(whole, 1))
        values = []
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                values.append((number, msgspec.json.decode(line)))
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Unprocessable(f"{path}, line {number}: {error}", path=str(path), line=number) from error
    return values


def _item(path: Path, number: int, case: _Case, head: _Head) -> Item:
    expected = [case.expect] if isinstance(case.expect, str) else case.expect or []
    reference = (case.reference or "") if not expected else expected[0]
    if not reference or (case.prompt is None) == (not case.messages):
        raise Unprocessable(
            f"{path}, line {number}: a case has an answer in 'expect', and either 'prompt' or 'messages'",
            path=str(path),
            line=number,
        )
    system = [ChatMessage(role="system", content=head.system)] if head.system else []
    asked = case.messages or [ChatMessage(role="user", content=case.prompt or "")]
    return Item(
        item_id=f"{_PREFIX}{case.id}",
        cluster=f"{_PREFIX}{case.cluster or case.id}",
        reference=reference,
        metric=metric_for("auto", reference),
        messages=[*system, *asked] if head.as_chat or case.messages else [],
        prompt=None if head.as_chat or case.messages else f"{head.system or ''}{case.prompt}",
    )
