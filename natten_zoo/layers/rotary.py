"""Rotary position embedding on several axes."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx


def axial_split(head_dim: int) -> tuple[int, int, int]:
    """How a head's channels are shared out among time, height and width, as LTX-2.5 does.

    About a quarter goes to time; height and width get the same, an even number.

    Examples:
        >>> axial_split(64), axial_split(24), axial_split(16)
        ((16, 24, 24), (4, 10, 10), (4, 6, 6))
    """
    time = head_dim // 4 // 2 * 2
    time -= (head_dim - time) // 2 % 2 * 2
    return time, (head_dim - time) // 2, (head_dim - time) // 2


def rotate_axes(x: mx.array, split: Sequence[int], base: float = 10_000.0) -> mx.array:
    r"""Turn neighboring channels by angles that grow along an axis each.

    Of the $d$ channels of an axis, the pair $(2 j, 2 j + 1)$ of token $i$ turns by
    $i \cdot \mathrm{base}^{-2 j / d}$. The product of a query and a key then depends on
    how far they are apart and on nothing else, so that a part of a map may count its tokens from 0.
    Source: Su et al., RoFormer, https://arxiv.org/abs/2104.09864, one axis after the other.

    Args:
        x: ``[batch, *spatial, heads, head_dim]``.
        split: Channels of each axis, even numbers; their sum is ``head_dim``.
        base: Longest period, divided by $2 \pi$.

    Returns:
        The same in the dtype of ``x``; computed in float32.
    """
    ends = [sum(split[:axis]) for axis in range(1, len(split))]
    parts = []
    for axis, part in enumerate(mx.split(x, ends, axis=-1), start=1):
        pairs = part.shape[-1] // 2
        turns = base ** (-mx.arange(pairs) / pairs)
        angles = mx.arange(x.shape[axis])[:, None] * turns  # [tokens, pairs]
        angles = mx.expand_dims(angles, [*range(axis - 1), *range(axis, x.ndim - 2)])
        cos, sin = mx.cos(angles), mx.sin(angles)
        even, odd = part[..., ::2], part[..., 1::2]
        turned = mx.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
        parts.append(turned.flatten(-2).astype(x.dtype))
    return mx.concatenate(parts, axis=-1)
