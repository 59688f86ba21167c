"""What the APIs of NATTEN 0.20 and 0.21 share."""

from __future__ import annotations

import mlx.core as mx

from .. import layers
from ..ops import dense
from ..ops.functional import Result, attend
from ..ops.neighborhood import WHOLE, BoolOrBools, IntOrInts, Neighborhood, per_axis


def fused(
    rank: int,
    query: mx.array,
    key: mx.array,
    value: mx.array,
    kernel_size: IntOrInts,
    stride: IntOrInts | None,
    dilation: IntOrInts | None,
    is_causal: BoolOrBools | None,
    scale: float | None,
    additional_keys: mx.array | None,
    additional_values: mx.array | None,
    return_lse: bool,
) -> Result:
    """Attention with upstream's defaults: None is 1 or False, a scale of 0 the default scale."""
    op = f"na{rank}d"
    check_kernel(op, rank, kernel_size)
    hood = Neighborhood.of(
        rank,
        kernel_size,
        dilation=1 if dilation is None else dilation,
        window_stride=1 if stride is None else stride,
        is_causal=False if is_causal is None else is_causal,
        op=op,
    )
    return attend(
        hood,
        query,
        key,
        value,
        scale=scale or None,
        additional_keys=additional_keys,
        additional_values=additional_values,
        return_lse=return_lse,
    )


def merge(outputs: list[mx.array], lse_tensors: list[mx.array]) -> tuple[mx.array, mx.array]:
    """Merges attentions, at least two and of rank 4 as upstream requires."""
    if len(outputs) < 2:
        raise ValueError(
            f"[merge_attentions] 'outputs' must be at least 2 arrays but got {len(outputs)}."
        )
    if any(out.ndim != 4 for out in outputs):
        raise ValueError(
            "[merge_attentions] 'outputs' must be [batch, tokens, heads, head_dim] but got "
            f"{[out.shape for out in outputs]}."
        )
    return dense.merge_attentions(outputs, lse_tensors)


def check_kernel(op: str, rank: int, kernel_size: IntOrInts) -> None:
    """Raises a `ValueError` if the kernel is 1 or -1 on an axis, which these releases refuse.

    Cosmos' configurations have -1 for a whole axis, but its code counts the tokens before it calls.
    """
    sizes = per_axis(op, "kernel_size", kernel_size, rank, or_whole=True)
    if min(sizes) < 2:
        whole = f" ({WHOLE} for a whole axis is natten_zoo.ops')" if WHOLE in sizes else ""
        raise ValueError(f"[{op}] 'kernel_size' must be at least 2 but got {kernel_size}{whole}.")


class Layer(layers.NeighborhoodAttention):
    """The layers of NATTEN 0.20 and 0.21: no bias table, no dropout of attention weights."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kernel_size: IntOrInts,
        stride: IntOrInts = 1,
        dilation: IntOrInts = 1,
        is_causal: BoolOrBools = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
    ) -> None:
        check_kernel(type(self).__name__, self.rank, kernel_size)
        super().__init__(
            embed_dim,
            num_heads,
            kernel_size,
            dilation=dilation,
            is_causal=is_causal,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale or None,
            proj_drop=proj_drop,
            window_stride=stride,
        )

    @property
    def stride(self) -> tuple[int, ...]:
        """What these releases call so: our `window_stride`, per axis."""
        return self.neighborhood.window_stride
