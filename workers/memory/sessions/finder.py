"""What sessions need of search."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import msgspec

from schemas.bodies.search import Search, SearchHit, SearchReply


class Finder(Protocol):
    """Search over everything that is kept."""

    async def search(self, request: Search) -> SearchReply:
        """What matters for the request's query, best first."""


async def search_spaces(
    finder: Finder, request: Search, spaces: Sequence[str]
) -> tuple[list[tuple[str, SearchHit]], list[str]]:
    """Hits of `request` in each of the namespaces, with where they lie, and what made a search do less than it should.

    Best first over all of them: scores are sums of shares, which mean the same in each namespace.
    """
    spaces = list(dict.fromkeys(spaces))
    replies = await asyncio.gather(*(finder.search(msgspec.structs.replace(request, ns=ns)) for ns in spaces))
    hits = [(ns, hit) for ns, reply in zip(spaces, replies, strict=True) for hit in reply.hits]
    hits.sort(key=lambda pair: -pair[1].score)
    return hits, [reply.degraded for reply in replies if reply.degraded]
