"""Convolutions with strides, whose gradients a CPU computes nearly as fast as themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from ..ops.exports import export_target
from ..ops.gpu.device import on_gpu

Sizes = tuple[int, ...]


def convolve(
    x: mx.array,
    weight: mx.array,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> mx.array:
    """A convolution of any rank, as `mx.conv_general`.

    With strides, MLX's gradient of the input is one number at a time on a CPU; here it is a matrix
    product there, unless there are a dilation or groups as well. MLX has no derivatives in forward
    mode of any convolution, nor has this.

    Args:
        x: `[batch, *spatial, in_channels]`.
        weight: `[out_channels, *kernel_size, in_channels / groups]`.
        stride: Per spatial axis.
        padding: Zeros before and after each.
        dilation: Step between taps, per spatial axis.
        groups: Of channels that are convolved apart.

    Returns:
        `[batch, *spatial, out_channels]`.
    """
    is_ours = max(stride) > 1 and max(dilation) == groups == 1
    if not is_ours or on_gpu() or export_target():
        return mx.conv_general(x, weight, stride, padding, dilation, groups=groups)
    dtype = mx.result_type(x, weight)
    return _strided(tuple(stride), tuple(padding))(x.astype(dtype), weight.astype(dtype))


@cache
def _strided(stride: Sizes, padding: Sizes) -> Callable[[mx.array, mx.array], mx.array]:
    @mx.custom_function
    def strided(x: mx.array, weight: mx.array) -> mx.array:
        return mx.conv_general(x, weight, stride, padding)

    @strided.vjp
    def gradients(
        primals: tuple[mx.array, mx.array], d_out: mx.array, _: mx.array
    ) -> tuple[mx.array, mx.array]:
        x, weight = primals
        d_x = input_gradient(d_out, weight, x.shape[1:-1], stride, padding)
        if x.size == 0:  # of which MLX has no gradient
            return d_x, mx.zeros_like(weight)
        of_weight = partial(mx.conv_general, x, stride=stride, padding=padding)
        return d_x, mx.vjp(of_weight, [weight], [d_out])[1][0]

    return cast(Callable[[mx.array, mx.array], mx.array], strided)


def input_gradient(
    d_out: mx.array, weight: mx.array, spatial: Sizes, stride: Sizes, padding: Sizes
) -> mx.array:
    r"""The gradient of a convolution's input, by a convolution without strides.

    Input `i` of an axis meets tap `k` of output `o` where `i + padding = stride * o + k`: with
    `k = stride * j + r`, those of one remainder `r` are a convolution of `d_out` with every
    `stride`-th tap. All remainders are channels of one, and then lie side by side
    (https://arxiv.org/abs/1609.05158).
    """
    rank = len(stride)
    channels, *kernel, in_channels = weight.shape
    taps = [math.ceil(k / s) for k, s in zip(kernel, stride, strict=True)]  # of one remainder

    missing = [(0, t * s - k) for t, s, k in zip(taps, stride, kernel, strict=True)]
    weight = mx.pad(weight, [(0, 0), *missing, (0, 0)])
    weight = weight.reshape(channels, *_paired(taps, stride), in_channels)
    tap_axes, remainder_axes = range(1, 2 * rank, 2), range(2, 2 * rank + 1, 2)
    weight = weight.transpose(*remainder_axes, 2 * rank + 1, *tap_axes, 0)
    weight = weight.reshape(math.prod(stride) * in_channels, *taps, channels)

    steps = mx.conv_general(d_out, weight, padding=[t - 1 for t in taps], flip=True)
    batch, *counts, _ = steps.shape
    steps = steps.reshape(batch, *counts, *stride, in_channels)
    steps = steps.transpose(0, *_paired(range(1, rank + 1), range(rank + 1, 2 * rank + 1)), -1)
    lengths = [n * s for n, s in zip(counts, stride, strict=True)]
    padded = steps.reshape(batch, *lengths, in_channels)

    ends = [p + length for p, length in zip(padding, spatial, strict=True)]
    unseen = [max(0, e - n) for e, n in zip(ends, lengths, strict=True)]
    padded = mx.pad(padded, [(0, 0), *((0, n) for n in unseen), (0, 0)])
    return padded[(slice(None), *map(slice, padding, ends))]


def _paired(first: Sequence[int], second: Sequence[int]) -> list[int]:
    return [n for pair in zip(first, second, strict=True) for n in pair]


class _Convolution:
    """What is called in place of MLX's layer of the same name, which has the parameters."""

    def __call__(self: Any, x: mx.array) -> mx.array:
        stride, padding, dilation = (
            (n,) * (x.ndim - 2) if isinstance(n, int) else n
            for n in (self.stride, self.padding, self.dilation)
        )
        groups = getattr(self, "groups", 1)  # in 3-D there are none
        y = convolve(x, self.weight, stride, padding, dilation, groups)
        return y + self.bias if "bias" in self else y

    def macs(self: Any, output: mx.array, *_: object) -> int:
        """Multiply-adds of a call."""
        return output.size * math.prod(self.weight.shape[1:])


class Conv1d(_Convolution, nn.Conv1d):
    """`mlx.nn.Conv1d` by [`convolve`][]."""


class Conv2d(_Convolution, nn.Conv2d):
    """`mlx.nn.Conv2d` by [`convolve`][]."""


class Conv3d(_Convolution, nn.Conv3d):
    """`mlx.nn.Conv3d` by [`convolve`][]."""
