"""Subject grammar: NATS tokens (`memory.kv.get`), patterns (`*` one token, trailing `>` the rest), `@instance`."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from schemas.errors import BadRequest
from schemas.limits import MAX_SUBJECT_BYTES

_TOKEN = r"[A-Za-z0-9_-]+"
_SUBJECT = re.compile(rf"{_TOKEN}(?:\.{_TOKEN})*(?:@[A-Za-z0-9._:/+-]+)?", re.ASCII)
_PATTERN = re.compile(rf"(?:>|(?:{_TOKEN}|\*)(?:\.(?:{_TOKEN}|\*))*(?:\.>)?)(?:@[A-Za-z0-9._:/+-]+)?", re.ASCII)


def validate(subject: str) -> str:
    """Return `subject` if it is one; raise BadRequest naming it and the grammar otherwise."""
    if len(subject) > MAX_SUBJECT_BYTES:
        raise BadRequest(
            f"subject is {len(subject)} bytes long, the limit is {MAX_SUBJECT_BYTES}",
            field="subject",
            size_bytes=len(subject),
            limit_bytes=MAX_SUBJECT_BYTES,
        )
    if not _SUBJECT.fullmatch(subject):
        raise BadRequest(
            f"subject {subject[:80]!r} is not dot-separated tokens of letters, digits, '_' and '-'"
            " with an optional '@instance'",
            field="subject",
        )
    return subject


def validate_pattern(pattern: str) -> str:
    """Return `pattern` if it is a subject that may hold `*` and a trailing `>`; raise BadRequest otherwise."""
    if len(pattern) > MAX_SUBJECT_BYTES or not _PATTERN.fullmatch(pattern):
        raise BadRequest(
            f"pattern {pattern[:80]!r} is not a subject with '*' for one token and a trailing '>' for the rest"
            f" (at most {MAX_SUBJECT_BYTES} bytes)",
            field="pattern",
        )
    return pattern


def split_instance(subject: str) -> tuple[str, str]:
    """`model.chat@demo` -> (`model.chat`, `demo`); the second is empty for a plain subject."""
    plain, _, instance = subject.partition("@")
    return plain, instance


def is_pattern(text: str) -> bool:
    """True when `text` holds a wildcard."""
    return "*" in text or text.endswith(">")


@lru_cache(maxsize=4096)
def matcher(pattern: str) -> Callable[[str], object]:
    """A predicate for `pattern`, compiled once. A pattern without `@` also matches any instance of its subjects."""
    plain, at, instance = pattern.partition("@")
    tokens = [
        r"[^.@]+" if token == "*" else r"[^@]+" if token == ">" else re.escape(token) for token in plain.split(".")
    ]
    tail = re.escape(at + instance) if at else r"(?:@.+)?"
    return re.compile(r"\.".join(tokens) + tail).fullmatch


def matches(pattern: str, subject: str) -> bool:
    """True when `subject` falls under `pattern`."""
    return matcher(pattern)(subject) is not None


def covers(pattern: str, other: str) -> bool:
    """True when every subject that falls under `other`, a subject or a pattern, falls under `pattern`."""
    plain, instance = split_instance(pattern)
    other_plain, other_instance = split_instance(other)
    if instance and instance != other_instance:
        return False
    tokens, others = plain.split("."), other_plain.split(".")
    for index, token in enumerate(tokens):
        if token == ">":
            return len(others) > index
        if index >= len(others) or others[index] == ">" or token not in ("*", others[index]):
            return False
    return len(others) == len(tokens)


def overlaps(pattern: str, other: str) -> bool:
    """True when some subject falls under both."""
    plain, instance = split_instance(pattern)
    other_plain, other_instance = split_instance(other)
    if instance and other_instance and instance != other_instance:
        return False
    tokens, others = plain.split("."), other_plain.split(".")
    for token, its in zip(tokens, others, strict=False):
        if ">" in (token, its):
            return True
        if token != its and "*" not in (token, its):
            return False
    return len(others) == len(tokens)
