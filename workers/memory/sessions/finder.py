"""What sessions need of search."""

from __future__ import annotations

from typing import Protocol

from schemas.bodies.search import Search, SearchReply


class Finder(Protocol):
    """Search over everything that is kept."""

    async def search(self, request: Search) -> SearchReply:
        """What matters for the request's query, best first."""
