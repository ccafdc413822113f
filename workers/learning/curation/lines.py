"""Examples as JSON Lines: read with every bad line named, written so that they can be read again."""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

import msgspec

from schemas.bodies.learning import Example
from schemas.bodies.learning_data import LineProblem, RowInfo
from schemas.errors import TooLarge

# Lines in one request: as many examples as the body allows as they are.
LINES_MAX: Final = 10_000

# Bytes of one line: an answer and a question of a million characters each, some of them of four bytes.
LINE_BYTES_MAX: Final = 4 * 1_048_576

# Problems told in one reply.
PROBLEMS_MAX: Final = 100

_decode = msgspec.json.Decoder(Example).decode


class Read(NamedTuple):
    """examples: with the number of the line each stood on. refused: bad lines, of which `problems` names the first."""

    examples: list[tuple[int, Example]]
    problems: list[LineProblem]
    refused: int


def read(lines: str, first_line: int = 1) -> Read:
    """The examples of a text. Empty lines count and are passed over. Raises TooLarge for too many lines."""
    split = lines.split("\n")
    if len(split) > LINES_MAX + 1:
        raise TooLarge(
            f"lines holds {len(split)} lines, the limit is {LINES_MAX} in one request; send them in parts",
            field="lines",
            limit=LINES_MAX,
        )
    examples: list[tuple[int, Example]] = []
    problems: list[LineProblem] = []
    refused = 0
    for number, line in enumerate(split, first_line):
        if not line.strip():
            continue
        example = _example(line)
        if isinstance(example, Example):
            examples.append((number, example))
            continue
        refused += 1
        if len(problems) < PROBLEMS_MAX:
            problems.append(LineProblem(line=number, reason=example))
    return Read(examples, problems, refused)


def _example(line: str) -> Example | str:
    try:
        data = line.encode()
    except UnicodeEncodeError as error:
        return f"holds half a surrogate pair at {error.start}, which is no text"
    if len(data) > LINE_BYTES_MAX:
        return f"has {len(data)} bytes, the limit is {LINE_BYTES_MAX}"
    try:
        return _decode(data)
    except (msgspec.MsgspecError, RecursionError) as error:
        return str(error) or "nests too deep"


def write(row: RowInfo) -> str:
    """One line with its line feed; where it comes from stands in `metadata`, which reading passes over."""
    example: dict[str, Any] = (
        {"messages": msgspec.to_builtins(row.messages)} if row.messages else {"prompt": row.prompt}
    )
    example["answer"] = row.answer
    for field in ("rejected", "user", "session_id", "memory_ids"):
        value = getattr(row, field)
        if value:
            example[field] = value
    kept = ("row_id", "model", "kind", "evidence", "opportunity_id", "cluster", "split", "created_at", "sha256")
    example["metadata"] = {field: getattr(row, field) for field in kept}
    return json.dumps(example, ensure_ascii=False) + "\n"


def train_line(texts: dict[str, Any]) -> bytes:
    """What a trainer reads of one row: messages or null, prompt or null, answer, rejected or null."""
    return json.dumps(texts, ensure_ascii=False).encode() + b"\n"
