"""The error for vectors that cannot be had now: search goes on without them, and what waits to be embedded waits."""

from __future__ import annotations

from schemas.errors import Unsupported


class VectorsUnavailable(Unsupported):
    """The encoder or the index cannot be used now; the message says why and what helps, and holds no secret."""


class EncoderUnavailable(VectorsUnavailable):
    """No vector can be made: the model is missing, still loading, or its process keeps dying."""


class TextsNotEncoded(EncoderUnavailable):
    """These texts were not encoded although the model was loaded: it refused them, died or hung. Others may fare better."""


class IndexUnavailable(VectorsUnavailable):
    """No vector can be stored or found: the engine is missing, its files are unusable, its server does not answer."""


class IndexTaken(IndexUnavailable):
    """The index on the server holds the vectors of another database."""


class IndexBusy(IndexUnavailable):
    """The index does something else just now and may not be waited for here."""
