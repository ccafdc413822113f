"""The error tree: one class per stable wire code, branched by what the caller should do about it.

    BusError
    +-- Retryable                     the same request may succeed later
    |   +-- NoWorker            no_worker          503
    |   +-- Overloaded          overloaded         503
    |   +-- WorkerLost          worker_lost        502
    |   +-- DeadlineExceeded    deadline_exceeded  504
    +-- Rejected                      the request itself has to change
    |   +-- BadRequest          bad_request        400
    |   +-- Unauthenticated     unauthenticated    401
    |   +-- Forbidden           forbidden          403
    |   +-- NotFound            not_found          404
    |   +-- Conflict            conflict           409
    |   +-- TooLarge            too_large          413
    |   +-- Unprocessable       unprocessable      422
    |   +-- QuotaExceeded       quota_exceeded     429
    |   +-- Cancelled           cancelled          499
    |   +-- Unsupported         unsupported        501
    +-- RemoteError                   the handler failed
        +-- Internal            internal           500

Every error travels as the body `{code, message, details}` and is rebuilt from it by `from_body`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

Details = dict[str, Any]


class ErrorBody(msgspec.Struct, frozen=True):
    """What an error reply carries on the wire."""

    code: str
    message: str
    details: Details = {}


class BusError(Exception):
    """Root of every error a request can end with.

    `details` holds the numbers and names behind the message (`limit_bytes`, `field`, `queued`, ...).
    """

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details: Details = details

    def body(self) -> ErrorBody:
        """The wire form of this error."""
        return ErrorBody(self.code, self.message, self.details)


class Retryable(BusError):
    """The same request may succeed later."""


class NoWorker(Retryable):
    """Nobody serves the subject."""

    code, http_status = "no_worker", 503


class Overloaded(Retryable):
    """A bounded queue is full; details hold its length and its limit."""

    code, http_status = "overloaded", 503


class WorkerLost(Retryable):
    """The worker died while it held the request, and the request may already have had an effect."""

    code, http_status = "worker_lost", 502


class DeadlineExceeded(Retryable):
    """No answer came before the request's deadline."""

    code, http_status = "deadline_exceeded", 504


class Rejected(BusError):
    """The request itself has to change before it can succeed."""


class BadRequest(Rejected):
    """The message does not decode or does not fit the operation's declared type."""

    code, http_status = "bad_request", 400


class Unauthenticated(Rejected):
    """A token is missing, expired or forged."""

    code, http_status = "unauthenticated", 401


class Forbidden(Rejected):
    """The caller is known and not allowed."""

    code, http_status = "forbidden", 403


class NotFound(Rejected):
    """The thing named in the request does not exist."""

    code, http_status = "not_found", 404


class Conflict(Rejected):
    """The state changed under the caller: a stale version, or an id that is already in use."""

    code, http_status = "conflict", 409


class TooLarge(Rejected):
    """A body, header block or subject is over its limit; details hold size and limit in bytes."""

    code, http_status = "too_large", 413


class Unprocessable(Rejected):
    """Well-formed, but cannot be done: a file that is no model, a prompt longer than the context window."""

    code, http_status = "unprocessable", 422


class QuotaExceeded(Rejected):
    """A cap charged to the caller is used up."""

    code, http_status = "quota_exceeded", 429


class Cancelled(Rejected):
    """The caller took the request back."""

    code, http_status = "cancelled", 499


class Unsupported(Rejected):
    """The operation exists, this installation cannot do it (a missing extra, a backend without the feature)."""

    code, http_status = "unsupported", 501


class RemoteError(BusError):
    """The handler failed; the fault is not the caller's."""


class Internal(RemoteError):
    """The handler raised something it did not declare."""

    code, http_status = "internal", 500


def _leaves(root: type[BusError]) -> list[type[BusError]]:
    below = [leaf for child in root.__subclasses__() for leaf in _leaves(child)]
    return below or [root]


BY_CODE: dict[str, type[BusError]] = {leaf.code: leaf for leaf in _leaves(BusError)}


def from_body(body: ErrorBody) -> BusError:
    """The error an `error` reply stands for; an unknown code becomes `Internal` and keeps the code in its details."""
    kind = BY_CODE.get(body.code)
    if kind is None:
        return Internal(body.message, **{**body.details, "code": body.code})
    error = kind(body.message)
    error.details = dict(body.details)
    return error
