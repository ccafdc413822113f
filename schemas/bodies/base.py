"""What every body shares: strict requests, tolerant replies, and the constrained field types used across services."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of request bodies. A field the operation does not know is an error, so that a typo is never ignored."""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """Base of replies and events. Unknown fields are ignored, so that an older client reads a newer worker."""


class SecretRequest(Request, frozen=True, kw_only=True):
    """A request that holds a password or a token: it is never kept with a dead letter, and its repr shows no field."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"


class SecretReply(Reply, frozen=True, kw_only=True):
    """A reply that holds a token; its repr shows no field."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"


class Empty(Request, frozen=True):
    """A request without arguments."""


Key = Annotated[str, Meta(min_length=1, max_length=1024)]
Namespace = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.:-]+$(?!\n)")]
Seconds = Annotated[float, Meta(ge=0)]
PositiveSeconds = Annotated[float, Meta(gt=0, le=10 * 366 * 86_400)]
PageSize = Annotated[int, Meta(ge=1, le=1_000)]
# Up to 2**53: what JSON carries exactly everywhere (RFC 8259, section 6), and SQLite and sums of two of them hold.
Whole = Annotated[int, Meta(ge=0, le=2**53)]
Ordinal = Annotated[int, Meta(ge=1, le=2**53)]
Unit = Annotated[float, Meta(ge=0, le=1)]
