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


def rotate_at(
    x: mx.array, places: mx.array, split: Sequence[int], base: float = 10_000.0
) -> mx.array:
    r"""Turn neighboring channels by angles that grow along an axis each.

    Of the $d$ channels of an axis, the pair $(2 j, 2 j + 1)$ of a token at $i$ turns by
    $i \cdot \mathrm{base}^{-2 j / d}$. The product of a query and a key then depends on
    how far they are apart and on nothing else, so that a part of a map may count its tokens from 0.
    Source: Su et al., RoFormer, https://arxiv.org/abs/2104.09864, one axis after the other.

    Args:
        x: `[*tokens, heads, head_dim]`.
        places: `[*tokens, axes]`, where each token is.
        split: Channels of each axis, even numbers; their sum is `head_dim`.
        base: Longest period, divided by $2 \pi$.

    Returns:
        The same in the dtype of `x`; computed in float32.
    """
    turns = [base ** (-mx.arange(part // 2) / (part // 2)) for part in split]
    angles = mx.concatenate([places[..., a : a + 1] * turn for a, turn in enumerate(turns)], -1)
    cos, sin = mx.cos(angles)[..., None, :], mx.sin(angles)[..., None, :]  # the same for all heads
    even, odd = x[..., ::2], x[..., 1::2]
    turned = mx.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.flatten(-2).astype(x.dtype)


def grid_places(index: mx.array, size: Sequence[int]) -> mx.array:
    """Where the tokens of a map are, `[*index, axes]`, of their numbers, row by row.

    Examples:
        >>> grid_places(mx.array([0, 5, 6]), (2, 3)).tolist()
        [[0, 0], [1, 2], [0, 0]]
    """
    places = []
    for length in reversed(size):
        places.append(index % length)
        index = index // length
    return mx.stack(places[::-1], axis=-1)
