"""What the drop-in raises: errors of the bus under the built-in kinds that old agents already catch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bus.client import BrokerUnreachable
from schemas.errors import BusError, DeadlineExceeded, NotFound, NoWorker


class ModelError(RuntimeError):
    """Root of every error of this package. code: Olympus' code for it; details: the numbers and names behind it."""

    def __init__(self, message: str, code: str = "", **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.details = details


class UnknownModel(ModelError, KeyError, ValueError):
    """There is no model of that name; the message names the nearest ones."""

    # A KeyError would show the message in quotes.
    __str__ = Exception.__str__


class MemoryLimit(ModelError, MemoryError):
    """The model does not fit under the limit of `set_memory_limit`, or under its own."""


class OlympusUnreachable(ModelError, ConnectionError):
    """The broker, or the model service behind it, is not there."""


class ModelTimeout(ModelError, TimeoutError):
    """No answer in time."""


@contextmanager
def in_our_words() -> Iterator[None]:
    """Lets errors of the bus out as this package's."""
    try:
        yield
    except BusError as error:
        raise _translated(error) from error


def _translated(error: BusError) -> ModelError:
    # "code" and "message" may be details too, and are said already.
    details = {name: value for name, value in error.details.items() if name not in ("code", "message", "self")}
    match error:
        case BrokerUnreachable():
            return OlympusUnreachable(f"Olympus cannot be reached: {error.message}", error.code, **details)
        case NoWorker():
            message = f"Olympus runs, its model service does not: {error.message}; start it (olympus worker models)"
            return OlympusUnreachable(message, error.code, **details)
        case DeadlineExceeded():
            return ModelTimeout(error.message, error.code, **details)
        case NotFound():
            return UnknownModel(error.message, error.code, **details)
        case _:
            return ModelError(error.message, error.code, **details)
