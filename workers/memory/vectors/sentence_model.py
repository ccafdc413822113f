"""Runs any other encoder through the sentence-transformers package. Encoder process only: it imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from workers.memory.vectors.bert import Floats

# Texts run at once: whoever comes next waits for the whole batch.
_BATCH_TEXTS: Final = 16


class SentenceModel:
    """A loaded sentence-transformers model. Raises ImportError where the package is missing."""

    # torch spreads one batch over the cores by itself.
    workers = 1

    def __init__(self, folder: Path, *, threads: int) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        if threads:
            torch.set_num_threads(threads)
        self._model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        self.dimension = self._model.get_embedding_dimension() or 0

    def encode(self, texts: Sequence[str]) -> Floats:
        """Vectors of length 1, (texts, dimension), in the order of the texts."""
        return self._encode(texts, _BATCH_TEXTS)

    def encode_queries(self, texts: Sequence[str]) -> Floats:
        """As `encode`, one text after the other."""
        return self._encode(texts, 1)

    def _encode(self, texts: Sequence[str], size: int) -> Floats:
        vectors = self._model.encode(
            list(texts), batch_size=size, normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True
        )
        return np.asarray(vectors, np.float32)
