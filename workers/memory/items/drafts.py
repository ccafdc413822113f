"""What a memory becomes before it is written: checked, packed and cut, outside the writer's thread."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from schemas.bodies.items import MemoryUpdate, NewMemory
from schemas.errors import TooLarge
from workers.memory.chunks import Piece
from workers.memory.items.chunking import cut
from workers.memory.items.rows import OVERHEAD_BYTES, encode_tags
from workers.memory.values import pack

# Texts longer than this are cut in a thread: it takes some 2 ms per 100,000 characters.
CUT_HERE_CHARACTERS: Final = 50_000

# Seconds a memory may be about, as in the field `at` of the requests.
LATEST_AT: Final = 1e11


class Draft(NamedTuple):
    """A memory ready to be written. `at` and `speaker`: what the request or its metadata says."""

    id: str
    is_id_given: bool
    request: NewMemory
    tags: Sequence[str]
    tags_text: str
    metadata: bytes
    pieces: Sequence[Piece]
    at: float | None
    speaker: str | None


class Revision(NamedTuple):
    """The parts of an update that are worked out beforehand."""

    request: MemoryUpdate
    pieces: Sequence[Piece] | None


def id_of(request_id: bytes, number: int | None = None) -> str:
    """The id of what a request makes: the same for the same request. `number`: where it makes several."""
    made = f"mem-{uuid.UUID(bytes=request_id)}"
    return made if number is None else f"{made}-{number}"


def draft(
    request: NewMemory, pieces: Sequence[Piece], *, ns: str, made_id: str, max_bytes: int, path: str = ""
) -> Draft:
    """`request` ready to be written, with `made_id` unless it names its own.

    `path` stands before the names of its fields in errors. Raises BadRequest, TooLarge.
    """
    memory_id = made_id if request.id is None else request.id
    tags = list(dict.fromkeys(request.tags))
    tags_text = encode_tags(tags)
    metadata = pack(request.metadata, max_bytes=max_bytes, field=f"{path}metadata")
    speaker = request.speaker or _text_of(request.metadata, "speaker")
    texts = (ns, memory_id, request.content, request.type, request.parent_id, speaker, tags_text)
    check_size(texts, len(metadata), max_bytes, path)
    return Draft(
        id=memory_id,
        is_id_given=request.id is not None,
        request=request,
        tags=tags,
        tags_text=tags_text,
        metadata=metadata,
        pieces=pieces,
        at=time_of(request.metadata) if request.at is None else request.at,
        speaker=speaker,
    )


async def pieces_of(text: str) -> Sequence[Piece]:
    """The pieces of a content, cut in a thread where it is long."""
    (pieces,) = await pieces_of_each([text])
    return pieces


async def pieces_of_each(texts: Sequence[str]) -> list[Sequence[Piece]]:
    """The pieces of several contents, cut in a thread where they are long together."""
    if sum(map(len, texts)) <= CUT_HERE_CHARACTERS:
        return [cut(text) for text in texts]
    return await asyncio.to_thread(lambda: [cut(text) for text in texts])


def check_size(texts: Sequence[str | None], more_bytes: int, max_bytes: int, path: str = "") -> None:
    """Raise TooLarge for a memory or document of these texts that no reply could carry."""
    size_bytes = OVERHEAD_BYTES + more_bytes + sum(len(text.encode()) for text in texts if text)
    if size_bytes > max_bytes:
        raise TooLarge(
            f"content, metadata and tags take {size_bytes} bytes, the limit is {max_bytes}, so that a reply can carry"
            " them",
            field=f"{path}content",
            size_bytes=size_bytes,
            limit_bytes=max_bytes,
        )


def time_of(metadata: Mapping[str, Any]) -> float | None:
    """Epoch seconds from `time` or `timestamp` of the metadata: a number, a time or ISO 8601; None without such."""
    for key in ("time", "timestamp"):
        at = _epoch(metadata.get(key))
        if at is not None and 0 <= at <= LATEST_AT:
            return float(at)
    return None


def _epoch(value: Any) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    # Without a zone it is UTC, so that it means the same wherever the service runs.
    return (value if value.tzinfo is not None else value.replace(tzinfo=UTC)).timestamp()


def _text_of(metadata: Mapping[str, Any], key: str) -> str | None:
    value = metadata.get(key)
    return value if isinstance(value, str) and 0 < len(value) <= 256 else None
