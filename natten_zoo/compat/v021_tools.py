"""What NATTEN 0.21 keeps in submodules: reference operators, token permutation, packed lengths.

- `natten.backends.reference`: `na1d_reference` and its kin
- `natten.token_permute`: `token_permute_operation` and its kin
- `natten.utils.varlen`: `generate_varlen_parameters`
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import mlx.core as mx

from ..ops.functional import Result
from ..ops.neighborhood import BoolOrBools, IntOrInts, per_axis
from .fused import fused


def _reference(rank: int) -> Callable[..., Result]:
    def reference(
        query: mx.array,
        key: mx.array,
        value: mx.array,
        kernel_size: IntOrInts,
        stride: IntOrInts = 1,
        dilation: IntOrInts = 1,
        is_causal: BoolOrBools | None = False,
        scale: float | None = None,
        additional_keys: mx.array | None = None,
        additional_values: mx.array | None = None,
        return_lse: bool = False,
    ) -> Result:
        """The operator itself, but for grouped heads, which upstream's reference does not have."""
        if query.shape[-2:-1] != key.shape[-2:-1]:
            raise ValueError(
                f"[na{rank}d_reference] 'query' and 'key' must have the same number of heads but "
                f"got {query.shape} and {key.shape}."
            )
        more = additional_keys, additional_values
        hood = kernel_size, stride, dilation, is_causal
        return fused(rank, query, key, value, *hood, scale, *more, return_lse)

    reference.__name__ = reference.__qualname__ = f"na{rank}d_reference"
    return reference


na1d_reference, na2d_reference, na3d_reference = map(_reference, (1, 2, 3))


def token_permute_operation(
    tensor: mx.array,
    tile_shape: Sequence[int],
    dilation: Sequence[int] | None = None,
    flip_tiled_dims: bool = True,
    use_torch: bool = False,
) -> tuple[mx.array, tuple[int, ...], tuple[int, ...]]:
    """Puts the tokens of a tile next to each other, each dilation group in a sample of its own.

    Args:
        tensor: `[B, *spatial, heads, head_dim]`; padded with zeros to whole tiles.
        tile_shape: Tokens of a tile per axis.
        dilation: Per axis; None is 1.
        flip_tiled_dims: Whether the last axis of tiles, and in a tile of tokens, runs slowest.
        use_torch: Ignored; it chose between two implementations.

    Returns:
        `[B * prod(dilation), tokens, heads, head_dim]`, the spatial shape, and that of a padded
        dilation group.
    """
    layout = tensor.shape[1:-2]
    rest, tile, step = _tiles("token_permute_operation", layout, tile_shape, dilation)
    sizes = [r * t * d for r, t, d in zip(rest, tile, step, strict=True)]
    pads = [(0, whole - n) for whole, n in zip(sizes, layout, strict=True)]
    split = [n for triple in zip(rest, tile, step, strict=True) for n in triple]
    batch, *_, heads, dim = tensor.shape
    x = mx.pad(tensor, [(0, 0), *pads, (0, 0), (0, 0)]).reshape(batch, *split, heads, dim)
    x = x.transpose(_order(len(layout), flip_tiled_dims))
    x = x.reshape(batch * math.prod(step), -1, heads, dim)
    return x, layout, tuple(r * t for r, t in zip(rest, tile, strict=True))


def token_unpermute_operation(
    tensor: mx.array,
    token_layout_shape: Sequence[int],
    tile_shape: Sequence[int],
    dilation: Sequence[int] | None = None,
    flip_tiled_dims: bool = True,
    use_torch: bool = False,
) -> mx.array:
    """The inverse of [`token_permute_operation`][], without the padding."""
    layout, rank = tuple(token_layout_shape), len(token_layout_shape)
    rest, tile, step = _tiles("token_unpermute_operation", layout, tile_shape, dilation)
    order = _order(rank, flip_tiled_dims)
    sizes = [n for triple in zip(rest, tile, step, strict=True) for n in triple]
    _, _, heads, dim = tensor.shape
    x = tensor.reshape(-1, *(sizes[i - 1] for i in order[1:-2]), heads, dim)
    x = x.transpose([order.index(i) for i in range(len(order))])
    x = x.reshape(
        len(x), *(r * t * d for r, t, d in zip(rest, tile, step, strict=True)), heads, dim
    )
    return x[(slice(None), *(slice(n) for n in layout))]


def _tiles(
    op: str, layout: Sequence[int], tile_shape: Sequence[int], dilation: Sequence[int] | None
) -> tuple[list[int], tuple[int, ...], tuple[int, ...]]:
    """Tiles per axis, tokens of a tile, dilation."""
    if not 1 <= len(layout) <= 3:
        raise ValueError(f"[{op}] tokens must have 1 to 3 axes but got {tuple(layout)}.")
    tile = per_axis(op, "tile_shape", tile_shape, len(layout))
    step = per_axis(op, "dilation", 1 if dilation is None else dilation, len(layout))
    return [-(-n // (t * d)) for n, t, d in zip(layout, tile, step, strict=True)], tile, step


def _order(rank: int, flip: bool) -> list[int]:
    """Of `[B, (tiles, tile, dilation) per axis, H, D]`: all dilations, all tiles, all tokens."""
    axes = range(rank)[:: -1 if flip else 1]
    inner = [1 + 3 * a + part for part in (2, 0, 1) for a in axes]
    return [0, *inner, 3 * rank + 1, 3 * rank + 2]


def token_permute_varlen_operation(*_: Any, **__: Any) -> mx.array:
    """Refused, as upstream does without its CUDA library."""
    raise NotImplementedError(
        "[token_permute_varlen_operation] prepares tokens for NATTEN's CUDA kernels: "
        "natten_zoo.ops.na2d_varlen takes padded batches with sizes instead."
    )


token_unpermute_varlen_operation = token_permute_varlen_operation


def generate_varlen_parameters(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    seqlens_Q: mx.array | None = None,  # noqa: N803
    seqlens_KV: mx.array | None = None,  # noqa: N803
) -> tuple[mx.array | None, mx.array | None, int, int]:
    """What `attention` takes of packed sequences, from their lengths.

    `(cumulative_seqlen_Q, cumulative_seqlen_KV, max_seqlen_Q, max_seqlen_KV)`, or `(None, None,
    0, 0)` without lengths. Evaluates the lengths, so it does not run inside
    `mx.compile`; `attention` needs no maxima and does.
    """
    if seqlens_Q is None and seqlens_KV is None:
        return None, None, 0, 0
    lengths_q, lengths_kv = (
        _check_lengths(name, x)
        for name, x in (("seqlens_Q", seqlens_Q), ("seqlens_KV", seqlens_KV))
    )
    if lengths_q.shape != lengths_kv.shape:
        raise ValueError(
            "[generate_varlen_parameters] 'seqlens_Q' and 'seqlens_KV' must be equally many but "
            f"got {lengths_q.shape} and {lengths_kv.shape}."
        )
    if not query.shape[0] == key.shape[0] == value.shape[0] == 1:
        raise ValueError(
            "[generate_varlen_parameters] packed sequences must have a batch of 1 but got "
            f"{query.shape[0]}, {key.shape[0]} and {value.shape[0]}."
        )
    longest_q, longest_kv = (max(cast(list[int], x.tolist())) for x in (lengths_q, lengths_kv))
    return cumulative(lengths_q), cumulative(lengths_kv), longest_q, longest_kv


def _check_lengths(name: str, x: Any) -> mx.array:
    if not isinstance(x, mx.array) or x.dtype != mx.int32 or x.ndim != 1 or x.size < 1:
        raise ValueError(
            f"[generate_varlen_parameters] '{name}' must be an int32 mx.array [sequences] but got "
            f"{x!r}."
        )
    return x


def cumulative(lengths: mx.array) -> mx.array:
    """`[sequences + 1]`: the running sums of lengths, starting with 0."""
    return mx.concatenate([mx.zeros(1, mx.int32), mx.cumsum(lengths).astype(mx.int32)])
