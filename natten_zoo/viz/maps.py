"""Attention weights as arrays."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..layers.padding import crop, pad_to
from ..ops.unfused import attend_qk
from .attention import view_layers


def attention_maps(model: nn.Module, x: mx.array) -> dict[str, mx.array]:
    """How every neighborhood attention layer of a model weighs what its queries see.

    Args:
        model: Any module with layers of
            [`NeighborhoodAttention`][natten_zoo.layers.NeighborhoodAttention].
        x: Its input, a batch of any size.

    Returns:
        Per layer, by its path in the model, the weights `[batch, *spatial, heads, window]` in
        float32, in lazy arrays. A window is in the order of
        [`na2d_qk`][natten_zoo.ops.na2d_qk]: row by row, the first key first. Of maps that are
        padded to a window's size the weights of the padding are among them.

    Examples:
        >>> from natten_zoo import attention_maps, create_model
        >>> maps = attention_maps(create_model("nat_mini"), mx.zeros((1, 224, 224, 3)))
        >>> len(maps), maps["levels.0.blocks.1.attn"].shape
        (18, (1, 56, 56, 2, 49))
    """
    maps = {}
    for view in view_layers(model, x):
        layer, hood = view.layer, view.neighborhood
        padded = pad_to(view.input, hood.minimum_size) if layer.pad_small_inputs else view.input
        query, key, _ = layer.project_qkv(padded)
        logits = attend_qk(hood, query, key, scale=layer.scale, rpb=layer.get("rpb"))
        weights = mx.softmax(logits.astype(mx.float32), axis=-1)
        maps[view.name] = crop(weights, hood.output_size(view.input.shape[1:-1]))
    return maps
