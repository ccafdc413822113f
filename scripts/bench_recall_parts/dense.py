"""Vectors alone: the turns whose bare text is nearest to the question, found exactly."""

from __future__ import annotations

from bench_recall_parts.collection import Conversation
from workers.memory.vectors.encoder import Encoder


class BareVectors:
    """A conversation's turns by the vectors of what was said, without speaker and time."""

    def __init__(self, conversation: Conversation, vectors: list[bytes]) -> None:
        import numpy as np

        self._ids = [turn.id for turn in conversation.turns]
        self._matrix = np.frombuffer(b"".join(vectors), dtype="<f4").reshape(len(vectors), -1)

    @classmethod
    async def of(cls, conversation: Conversation, encoder: Encoder) -> BareVectors:
        """Encode the turns. Raises EncoderUnavailable."""
        return cls(conversation, await encoder.encode([turn.content for turn in conversation.turns]))

    def nearest(self, vector: bytes, count: int) -> list[str]:
        """The ids of the turns nearest to the query's vector, best first."""
        import numpy as np

        cosines = self._matrix @ np.frombuffer(vector, dtype="<f4")
        return [self._ids[number] for number in np.argsort(-cosines)[:count]]
