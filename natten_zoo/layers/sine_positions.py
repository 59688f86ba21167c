"""Positions on a map as sines and cosines."""

from __future__ import annotations

import math

import mlx.core as mx


def sine_positions(height: int, width: int, channels: int) -> mx.array:
    r"""What stands for each place of a map: half of the channels for its row, half for its column.

    Row $y$ of $1 \ldots H$ is the angle $2 \pi y / H$; channel $j$ of its
    half is the sine (even $j$) or cosine (odd $j$) of that over
    $10000^{2 \lfloor j / 2 \rfloor / (C / 2)}$. Source: Carion et al., DETR,
    https://arxiv.org/abs/2005.12872.

    Args:
        height: Of the map.
        width: Of the map.
        channels: A multiple of 4.

    Returns:
        `[height, width, channels]` in float32.

    Examples:
        >>> [round(value, 3) for value in sine_positions(1, 4, 4)[0, 0].tolist()]
        [-0.0, 1.0, 1.0, 0.0]
    """
    half = channels // 2
    periods = 10000 ** (2 * (mx.arange(half) // 2) / half)
    rows, columns = (_waves(n, periods) for n in (height, width))
    shape = height, width, half
    rows = mx.broadcast_to(rows[:, None], shape)
    return mx.concatenate([rows, mx.broadcast_to(columns, shape)], axis=-1)


def _waves(size: int, periods: mx.array) -> mx.array:
    """`[size, len(periods)]`: sines and cosines in turn."""
    angles = mx.arange(1, size + 1)[:, None] / (size + 1e-6) * (2 * math.pi) / periods
    pairs = mx.stack([mx.sin(angles[:, ::2]), mx.cos(angles[:, 1::2])], axis=-1)
    return pairs.flatten(-2)
