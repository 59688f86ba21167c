"""Attention in fixed windows, which every other layer shifts by half a window (Swin)."""

from __future__ import annotations

import mlx.core as mx
import numpy as np


def window_attention(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    window_size: int,
    shift: int = 0,
    *,
    scale: float | None = None,
    bias: mx.array | None = None,
) -> mx.array:
    r"""Attention among the tokens of one window of a grid that begins `shift` before the map.

    Tokens $i$ and $j$ see each other where $\lfloor (i + s) / w \rfloor = \lfloor (j + s) / w
    \rfloor$ on both axes, so that the windows at the borders of a shifted grid are smaller. Source:
    Liu et al., Swin Transformer, https://arxiv.org/abs/2103.14030, whose roll by `-w / 2` makes
    the same windows.

    Args:
        query: `[batch, height, width, heads, head_dim]`, and so `key` and `value`.
        key: The keys.
        value: The values.
        window_size: Side of a window; must divide height and width.
        shift: By how many tokens the grid begins before the map.
        scale: Factor of the logits. Default: `head_dim ** -0.5`.
        bias: `[heads, window_size ** 2, window_size ** 2]`, added to the logits.

    Raises:
        ValueError: The window does not divide the map.

    Examples:
        >>> x = mx.random.normal((1, 8, 12, 2, 16))
        >>> window_attention(x, x, x, 4, shift=2).shape
        (1, 8, 12, 2, 16)
    """
    batch, height, width, heads, dim = query.shape
    if height % window_size or width % window_size:
        raise ValueError(
            f"[window_attention] 'window_size' must divide the map but got {window_size} and "
            f"{height}x{width} tokens."
        )
    parts = [_windows(_roll(x, shift), window_size) for x in (query, key, value)]
    mask = None if bias is None else bias[None]
    if shift:
        seams = _seams(height, width, window_size, shift)[None, :, None]  # [1, windows, 1, n, n]
        mask = seams if mask is None else seams + mask
        mask = mx.broadcast_to(mask, (batch, seams.shape[1], heads, *seams.shape[-2:]))
        mask = mask.flatten(0, 1)
    out = mx.fast.scaled_dot_product_attention(
        *parts,
        scale=dim**-0.5 if scale is None else scale,
        mask=None if mask is None else mask.astype(query.dtype),
    )  # [B * windows, heads, n, d]
    grid = (batch, height // window_size, width // window_size, heads, window_size, window_size, -1)
    out = out.reshape(grid).transpose(0, 1, 4, 2, 5, 3, 6)
    return _roll(out.reshape(query.shape), -shift)


def _roll(x: mx.array, shift: int) -> mx.array:
    return mx.roll(mx.roll(x, shift, 1), shift, 2) if shift else x


def _windows(x: mx.array, size: int) -> mx.array:
    """`[B, H, W, heads, d]` as `[B * windows, heads, size ** 2, d]`."""
    batch, height, width, heads, dim = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, heads, dim)
    return x.transpose(0, 1, 3, 5, 2, 4, 6).reshape(-1, heads, size * size, dim)


def _seams(height: int, width: int, size: int, shift: int) -> mx.array:
    """0 where two tokens of a rolled window were neighbors before, else -inf: `[windows, n, n]`.

    Only what was rolled over an end lies before `shift`.
    """
    over = np.add.outer(2 * (np.arange(height) < shift), np.arange(width) < shift)
    pieces = over.reshape(height // size, size, width // size, size).swapaxes(1, 2)
    pieces = pieces.reshape(-1, size * size)
    together = pieces[:, :, None] == pieces[:, None]
    return mx.where(mx.array(together), 0.0, -mx.inf)
