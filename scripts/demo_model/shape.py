"""The sizes of the demo model's network, shared by training and export; knows neither torch nor GGUF."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama network. The defaults give 2.7 million parameters, 5.5 MB as float16."""

    vocab_size: int = 1536
    width: int = 192
    layers: int = 6
    heads: int = 6
    kv_heads: int = 3
    feed_forward: int = 512
    context_tokens: int = 512
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-5

    @property
    def head_width(self) -> int:
        """Numbers per attention head."""
        return self.width // self.heads
