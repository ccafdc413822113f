"""A Qdrant server of a few lines on the loopback address: the part of its HTTP interface that the memory calls.

Request bodies are read with the client's own models of them, so what a server would refuse as malformed is refused here.
Source of paths, bodies and replies: Qdrant's OpenAPI description, from which those models are generated.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from operator import mul
from typing import Any

# What a request with this method, path and body is answered: status and result; None for never.
Answer = Callable[[str, str, bytes], tuple[int, Any] | None]

DONE = {"operation_id": 1, "status": "completed"}


@asynccontextmanager
async def answering(answer: Answer, port: int = 0) -> AsyncIterator[tuple[str, list[str]]]:
    """A server that answers as `answer` says; its url, and what it was asked so far as `METHOD path`."""
    asked: list[str] = []
    open_connections: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_connections.add(writer)
        while request := await _read_request(reader):
            method, path, content = request
            asked.append(f"{method} {path}")
            answered = answer(method, path, content)
            if answered is None:
                continue
            status, result = answered
            body = json.dumps({"result": result, "status": "ok", "time": 0.0}).encode()
            start = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(start.encode() + body)
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", asked
    finally:
        listening.close()
        for writer in open_connections:
            writer.close()
        await listening.wait_closed()


async def _read_request(reader: asyncio.StreamReader) -> tuple[str, str, bytes] | None:
    """Method, path and body of the next request; None at the end."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lengths = [line.split(":")[1] for line in head.lower().split("\r\n") if line.startswith("content-length:")]
        body = await reader.readexactly(int(lengths[0]) if lengths else 0)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    method, target, _ = head.split("\r\n")[0].split(" ")
    return method, target.partition("?")[0], body


def described(size: int) -> dict[str, Any]:
    """What `GET /collections/NAME` says of a collection of vectors with `size` components."""
    optimizer = {
        "deleted_threshold": 0.2,
        "vacuum_min_vector_number": 1_000,
        "default_segment_number": 0,
        "flush_interval_sec": 5,
    }
    return {
        "status": "green",
        "optimizer_status": "ok",
        "segments_count": 1,
        "config": {
            "params": {"vectors": {"size": size, "distance": "Dot"}, "shard_number": 1},
            "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000},
            "optimizer_config": optimizer,
        },
        "payload_schema": {},
    }


class QdrantServer:
    """Collections in dicts. `serving` puts them on a port, once or again."""

    def __init__(self) -> None:
        self.collections: dict[str, _Collection] = {}

    @asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[str]:
        """Its url while it is up."""
        async with answering(self.answer, port) as (url, _):
            yield url

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and result of one request."""
        _, _, name, *rest = path.split("/")
        operation = f"{method} {'/'.join(rest)}".strip()
        collection = self.collections.get(name)
        match operation:
            case "GET exists":
                return 200, {"exists": collection is not None}
            case "PUT":
                return self._create(name, json.loads(body))
            case "DELETE":
                return 200, self.collections.pop(name, None) is not None
        if collection is None:
            return 404, None
        try:
            return 200, collection.do(operation, body)
        except ValueError:
            # A body of another form (pydantic's error is one), or a vector of another length.
            return 400, None

    def _create(self, name: str, body: Any) -> tuple[int, Any]:
        from qdrant_client import models

        asked = models.CreateCollection.model_validate(body)
        if name in self.collections or not isinstance(asked.vectors, models.VectorParams):
            return 409, None
        self.collections[name] = _Collection(asked.vectors.size)
        return 200, True


class _Collection:
    """Points by id: vector and payload. Finds by the product, as a collection of distance Dot does."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.points: dict[int, tuple[list[float], dict[str, Any]]] = {}

    def do(self, operation: str, body: bytes) -> Any:
        from qdrant_client import models

        match operation:
            case "GET":
                return described(self.size)
            case "PUT index":
                models.CreateFieldIndex.model_validate_json(body)
                return DONE
            case "PUT points":
                return self._upsert(models.PointsList.model_validate_json(body).points)
            case "POST points/delete":
                for id in models.PointIdsList.model_validate_json(body).points:
                    self.points.pop(int(id), None)
                return DONE
            case "POST points":
                ids = models.PointRequest.model_validate_json(body).ids
                return [{"id": id, "payload": self.points[int(id)][1]} for id in ids if int(id) in self.points]
            case "POST points/count":
                without = models.CountRequest.model_validate_json(body).filter.must_not[0].has_id
                return {"count": len(self.points.keys() - set(without))}
            case "POST points/scroll":
                return self._scroll(models.ScrollRequest.model_validate_json(body))
            case "POST points/query":
                return self._query(models.QueryRequest.model_validate_json(body))
        raise ValueError(operation)

    def _upsert(self, points: Any) -> Any:
        if any(len(point.vector) != self.size for point in points):
            raise ValueError("a vector of another length")
        self.points.update((point.id, (point.vector, point.payload)) for point in points)
        return DONE

    def _scroll(self, asked: Any) -> Any:
        ids = sorted(id for id in self.points if id >= (asked.offset or 0))
        return {
            "points": [{"id": id, "payload": None, "vector": None} for id in ids[: asked.limit]],
            "next_page_offset": ids[asked.limit] if len(ids) > asked.limit else None,
        }

    def _query(self, asked: Any) -> Any:
        query = asked.query.nearest
        found = [
            {"id": id, "version": 0, "score": sum(map(mul, query, vector))}
            for id, (vector, payload) in self.points.items()
            if all(_fits(condition, payload) for condition in asked.filter.must)
        ]
        return {"points": sorted(found, key=lambda point: -point["score"])[: asked.limit]}


def _fits(condition: Any, payload: dict[str, Any]) -> bool:
    held = payload.get(condition.key)
    match = condition.match
    return held in match.any if hasattr(match, "any") else held == match.value
