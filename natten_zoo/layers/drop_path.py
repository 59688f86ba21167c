"""Stochastic depth."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn


class DropPath(nn.Module):
    """Drops a residual branch for whole samples while training.

    A sample is kept with probability `1 - rate` and then divided by it, so that the expected
    value stays. Source: Huang et al., Deep Networks with Stochastic Depth,
    https://arxiv.org/abs/1603.09382, in the per-sample form that timm made common.

    Args:
        rate: Probability of dropping a sample, in [0, 1).

    Shape:
        - Input and output: `[batch, ...]`.

    Raises:
        ValueError: `rate` is not in [0, 1).
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"[DropPath] 'rate' must be in [0, 1) but got {rate}.")
        self.rate = rate

    def __call__(self, x: mx.array) -> mx.array:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        kept = mx.random.bernoulli(keep, (x.shape[0], *[1] * (x.ndim - 1)))
        return x * (kept / keep).astype(x.dtype)

    def _extra_repr(self) -> str:
        return f"rate={self.rate}"


def drop_path_schedule(rate: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Rates that grow linearly from 0 to `rate` over all layers, listed per level."""
    total = sum(depths)
    rates = [rate * i / max(total - 1, 1) for i in range(total)]
    starts = [sum(depths[:i]) for i in range(len(depths))]
    return [rates[start : start + depth] for start, depth in zip(starts, depths, strict=True)]
