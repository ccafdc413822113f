"""The attention caches of several sequences as one, so that one pass of the model makes a token of each.

    keys, values of a layer   (sequences, heads, tokens, head dimension), shorter sequences padded on the left
    mask                      (sequences, tokens), 0 where it is padding

Only caches whose every layer keeps all its tokens can be joined; with a sliding window or a recurrent state a sequence
stays a batch of its own. Joining and leaving copy the caches once; a step costs what it costs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer


def can_join(cache: Any) -> bool:
    """Whether the cache of a sequence may be joined with others, cut, and kept for later."""
    return type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)


def tokens_of(cache: Any) -> int:
    """Tokens the cache holds, padding included."""
    return int(cache.get_seq_length())


def join(left: Any, right: Any) -> Any:
    """One cache of both; both are used up."""
    size = max(tokens_of(left), tokens_of(right))
    for mine, other in zip(left.layers, right.layers, strict=True):
        mine.keys = torch.cat([_padded(mine.keys, size), _padded(other.keys, size)])
        mine.values = torch.cat([_padded(mine.values, size), _padded(other.values, size)])
    return left


def select(cache: Any, rows: Sequence[int], size: int) -> None:
    """Keep only these rows, and the last `size` tokens."""
    for layer in cache.layers:
        layer.keys = layer.keys[list(rows), :, -size:, :].contiguous()
        layer.values = layer.values[list(rows), :, -size:, :].contiguous()


def row_of(cache: Any, row: int, size: int) -> Any:
    """A cache of one row's last `size` tokens; the other one stays as it is."""
    single = DynamicCache()
    for at, layer in enumerate(cache.layers):
        single.update(
            layer.keys[row : row + 1, :, -size:, :].clone(), layer.values[row : row + 1, :, -size:, :].clone(), at
        )
    return single


def cut(cache: Any, size: int) -> None:
    """Keep the first `size` tokens of a cache of one row."""
    for layer in cache.layers:
        layer.keys = layer.keys[:, :, :size, :]
        layer.values = layer.values[:, :, :size, :]


def mask_of(sizes: Sequence[int], width: int, device: Any) -> Tensor | None:
    """The mask of rows with this many tokens each, or None where there is no padding."""
    if all(size == width for size in sizes):
        return None
    lengths = torch.tensor(sizes, device=device)
    return (torch.arange(width, device=device)[None, :] >= (width - lengths)[:, None]).long()


def _padded(states: Tensor, size: int) -> Tensor:
    missing = size - states.shape[2]
    return torch.nn.functional.pad(states, (0, 0, missing, 0)) if missing else states
