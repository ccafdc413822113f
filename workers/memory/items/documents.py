"""Documents: texts kept under a name of the caller's, with versions, found chunk by chunk. Knows no bus."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from schemas.bodies.items import DocDelete, DocDeleted, DocGet, DocInfo, DocList, DocPage, DocPut, Document
from schemas.errors import Conflict, NotFound
from workers.memory import chunks
from workers.memory.chunks import Piece
from workers.memory.items.chunking import titled
from workers.memory.items.drafts import check_size, pieces_of, time_of
from workers.memory.items.floors import floor, raise_floor
from workers.memory.items.once import once_then_read
from workers.memory.items.rows import OVERHEAD_BYTES, Page, encode_tags, tags_of
from workers.memory.outcome import Event, Outcome, changed
from workers.memory.records import Records
from workers.memory.sessions import suggestions
from workers.memory.text import check_texts, end_of_prefix
from workers.memory.values import pack, unpack

_INFO: Final = "doc_id, ns, title, version, characters, chunks, created_at, updated_at, at, tags, metadata"


class Documents:
    """The documents of one database. Writes happen once per request id, as those of `Memories` do.

    A `put` that comes again answers the document as it is by then.
    """

    def __init__(self, records: Records) -> None:
        self._records = records

    async def put(self, request: DocPut, request_id: bytes) -> DocInfo:
        """Keep a document, new or in the place of what it was. Raises BadRequest, Conflict, TooLarge."""
        check_texts(request)
        max_bytes = self._records.max_body_bytes
        tags = encode_tags(list(dict.fromkeys(request.tags)))
        metadata = pack(request.metadata, max_bytes=max_bytes, field="metadata")
        texts = (request.ns, request.doc_id, request.title, request.content, tags)
        check_size(texts, len(metadata), max_bytes)
        ready = _Ready(request, tags, metadata, titled(await pieces_of(request.content), request.title))
        # Its metadata may be long, so they are not kept with the request id.
        return await once_then_read(
            self._records,
            "memory.doc.put",
            request_id,
            lambda connection, now: _put(connection, ready, now),
            lambda connection, _: _read_info(connection, request.ns, request.doc_id),
        )

    async def get(self, request: DocGet) -> Document:
        """A document, or a part of it. Raises NotFound."""
        check_texts(request)
        return await self._records.read(lambda connection: _get(connection, request))

    async def list(self, request: DocList) -> DocPage:
        """A page of documents, without their contents, in the order of their names."""
        check_texts(request)
        page_bytes = self._records.page_bytes
        return await self._records.read(lambda connection: _list(connection, request, page_bytes))

    async def delete(self, request: DocDelete, request_id: bytes) -> DocDeleted:
        """Delete a document if it is there."""
        check_texts(request)
        return await self._records.write_once(
            "memory.doc.delete", request_id, DocDeleted, lambda connection, now: _delete(connection, request)
        )


class _Ready(NamedTuple):
    """A document checked, packed and cut before its write's turn comes."""

    request: DocPut
    tags: str
    metadata: bytes
    pieces: Sequence[Piece]


class _Before(NamedTuple):
    version: int
    created_at: float
    at: float
    title: str
    content: str


def _put(connection: sqlite3.Connection, ready: _Ready, now: float) -> Sequence[Event]:
    request = ready.request
    before = _before(connection, request)
    _require_version(request, before)
    at = request.at if request.at is not None else time_of(request.metadata)
    if before is None:
        version, created_at = floor(connection, request.ns, "document") + 1, now
    else:
        version, created_at = before.version + 1, before.created_at
    if at is None:
        at = created_at if before is None else before.at
    connection.execute(
        "INSERT OR REPLACE INTO knowledge_base (ns, doc_id, title, characters, chunks, version, created_at, updated_at,"
        " at, tags, metadata, content) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            request.ns,
            request.doc_id,
            request.title,
            len(request.content),
            len(ready.pieces),
            version,
            created_at,
            now,
            at,
            ready.tags,
            ready.metadata,
            request.content,
        ),
    )
    # What search finds stays as it is where only tags or metadata are new: nothing has to be embedded again.
    if before is not None and before.content != request.content:
        suggestions.forget_source(connection, request.ns, "document", request.doc_id)
    if before is None or (before.title, before.content, before.at) != (request.title, request.content, at):
        chunks.put(
            connection,
            ns=request.ns,
            kind="document",
            source_id=request.doc_id,
            pieces=ready.pieces,
            at=at,
            stream=request.doc_id,
        )
    return [changed(request.ns, request.doc_id, "doc_put", version)]


def _read_info(connection: sqlite3.Connection, ns: str, doc_id: str) -> DocInfo:
    row = connection.execute(f"SELECT {_INFO} FROM knowledge_base WHERE ns = ? AND doc_id = ?", (ns, doc_id)).fetchone()
    if row is None:
        raise _not_found(ns, doc_id)
    return _info(row)


def _get(connection: sqlite3.Connection, request: DocGet) -> Document:
    row = connection.execute(
        f"SELECT {_INFO}, content FROM knowledge_base WHERE ns = ? AND doc_id = ?", (request.ns, request.doc_id)
    ).fetchone()
    if row is None:
        raise _not_found(request.ns, request.doc_id)
    end = None if request.length is None else request.start + request.length
    # Cut here and not by SQLite, whose functions for text stop at a null byte.
    return Document(**_fields(row), content=row[-1][request.start : end], start=request.start)


def _list(connection: sqlite3.Connection, request: DocList, page_bytes: int) -> DocPage:
    page: Page[DocInfo] = Page(request.limit, page_bytes)
    for row in _rows_from(connection, request):
        size_bytes = OVERHEAD_BYTES + sum(len(value.encode()) for value in row if isinstance(value, str)) + len(row[-1])
        if not page.has_room_for(size_bytes):
            return DocPage(documents=page.items, next_after=page.items[-1].doc_id)
        info = _info(row)
        if request.tag is None or request.tag in info.tags:
            page.add(info, size_bytes)
    return DocPage(documents=page.items)


def _rows_from(connection: sqlite3.Connection, request: DocList) -> Iterator[tuple[Any, ...]]:
    # A range of names and not LIKE: `%` and `_` mean themselves, and the index answers.
    is_behind = request.after is not None and request.after >= request.prefix
    where = ["ns = ?", "doc_id > ?" if is_behind else "doc_id >= ?"]
    values: list[Any] = [request.ns, request.after if is_behind else request.prefix]
    end = end_of_prefix(request.prefix)
    if end is not None:
        where.append("doc_id < ?")
        values.append(end)
    return connection.execute(f"SELECT {_INFO} FROM knowledge_base WHERE {' AND '.join(where)} ORDER BY doc_id", values)


def _delete(connection: sqlite3.Connection, request: DocDelete) -> Outcome:
    row = connection.execute(
        "DELETE FROM knowledge_base WHERE ns = ? AND doc_id = ? RETURNING version", (request.ns, request.doc_id)
    ).fetchone()
    reply = DocDeleted(doc_id=request.doc_id, ns=request.ns, deleted=row is not None)
    if row is None:
        return Outcome(reply, [])
    chunks.remove(connection, ns=request.ns, kind="document", source_id=request.doc_id)
    suggestions.forget_source(connection, request.ns, "document", request.doc_id)
    raise_floor(connection, request.ns, "document", row[0])
    return Outcome(reply, [changed(request.ns, request.doc_id, "doc_delete", row[0])])


def _before(connection: sqlite3.Connection, request: DocPut) -> _Before | None:
    row = connection.execute(
        "SELECT version, created_at, at, title, content FROM knowledge_base WHERE ns = ? AND doc_id = ?",
        (request.ns, request.doc_id),
    ).fetchone()
    return None if row is None else _Before(*row)


def _require_version(request: DocPut, before: _Before | None) -> None:
    actual = 0 if before is None else before.version
    if request.if_version is None or request.if_version == actual:
        return
    state = f"is at version {actual}" if actual else "does not exist"
    wanted = f"version {request.if_version}" if request.if_version else "no document"
    raise Conflict(
        f"document {request.doc_id!r} in namespace {request.ns!r} {state}, the request asked for {wanted}",
        version=actual,
        if_version=request.if_version,
        ns=request.ns,
        doc_id=request.doc_id,
    )


def _not_found(ns: str, doc_id: str) -> NotFound:
    return NotFound(f"no document {doc_id!r} in namespace {ns!r}", ns=ns, doc_id=doc_id)


def _info(row: tuple[Any, ...]) -> DocInfo:
    return DocInfo(**_fields(row))


def _fields(row: tuple[Any, ...]) -> dict[str, Any]:
    fields = dict(zip(_INFO.split(", "), row, strict=False))
    return {**fields, "tags": tags_of(fields["tags"]), "metadata": unpack(fields["metadata"])}
