"""What a model's files say about its size and shape: what an estimate of its memory rests on.

It knows neither the files nor the formula: `catalogue.py` fills it, `estimate.py` reads it.
"""

from __future__ import annotations

import msgspec


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Size and shape of one model; 0 where its files do not say.

    weights_bytes: tensor data, over all parts. layers: blocks of the network. heads: query heads of a layer. kv_heads:
    its key/value heads; where layers differ the mean, rounded up, with 0 for the recurrent ones. head_dim_k, head_dim_v:
    elements of a key and of a value of one head. embedding: width of the residual stream. feed_forward: width of the
    feed-forward part (of one expert). vocabulary: tokens. context_tokens: window it was trained for. parameters:
    elements of all tensors. sliding_window: tokens that the layers with a window look back, None when no layer has one;
    sliding_layers: how many layers those are, 0 when it is not known. recurrent: has layers whose state does not grow
    with the text.
    """

    weights_bytes: int
    layers: int = 0
    heads: int = 0
    kv_heads: int = 0
    head_dim_k: int = 0
    head_dim_v: int = 0
    embedding: int = 0
    feed_forward: int = 0
    vocabulary: int = 0
    context_tokens: int = 0
    parameters: int = 0
    sliding_window: int | None = None
    sliding_layers: int = 0
    recurrent: bool = False
