"""One call of an operator without its arrays: what tiers choose by, cache by and compute."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mlx.core as mx

from .cross_resolution import times_finer
from .neighborhood import Neighborhood, kept_hash

DTYPES = (mx.float32, mx.float16, mx.bfloat16)
LARGEST_SCALE = 2.3e38  # times log2(e), as the tiers have it, it is a float32


@dataclass(frozen=True)
class Problem:
    """The shapes and parameters of one call; hashable.

    Arrays of a problem, `out` being `neighborhood.output_size(spatial)`:

    - query: `[*queries, head_dim]`, `queries` being `(batch, *out, heads)`: entry `o` of an
      axis is token `o * stride`
    - key: `[batch, *spatial, kv_heads, head_dim]`
    - value: `[batch, *spatial, kv_heads, value_dim]`
    - rpb: `[heads, *neighborhood.bias_shape]` or absent
    - lengths: int32 `[batch, rank]` or absent: tokens of each sample on each axis
    - output: `[*queries, value_dim]` in the dtype of the query
    - LSE: `[*queries]`, float32, natural logarithm; nobody computes it but with `has_lse`
    - stats: `[*queries, 2]`, float32, base 2: a number `r` near a row's largest logit
      and the logarithm of the sum of `2^(logit - r)`. Apart, because one float32 would lose the
      sum of large logits

    With `lengths` sample `b` is the corner `[0, lengths[b])` of the padded array and its
    windows are those of an array of that size. Queries outside it give zeros, an LSE of
    `-inf` and no gradient; keys outside it are never seen.

    With `finer` queries lie on a map so many times finer on each axis (cross_resolution.py), and
    their arrays are `[batch, *(out * finer), heads / prod(finer), ...]`. Of head `h //
    prod(finer)` of these, head `h` of the problem has one query of every cell, that at the place
    `h % prod(finer)` of it, counted row by row.
    """

    neighborhood: Neighborhood
    batch: int
    spatial: tuple[int, ...]
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    scale: float
    dtype: mx.Dtype
    has_rpb: bool = False
    has_lengths: bool = False
    finer: tuple[int, ...] = ()
    has_lse: bool = True

    __hash__ = kept_hash

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.spatial)

    @cached_property
    def out(self) -> tuple[int, ...]:
        """Queries per axis."""
        return self.neighborhood.output_size(self.spatial)

    @cached_property
    def queries(self) -> tuple[int, ...]:
        """Shape of arrays of queries, without channels."""
        if not self.finer:
            return (self.batch, *self.out, self.heads)
        fine = (n * r for n, r in zip(self.out, self.finer, strict=True))
        return (self.batch, *fine, self.heads // math.prod(self.finer))

    @property
    def gqa_factor(self) -> int:
        """Query heads that share one key/value head (grouped-query attention)."""
        return self.heads // self.kv_heads

    @property
    def packed_heads(self) -> int:
        """Of queries, keys and values in one array, in this order."""
        return self.heads + 2 * self.kv_heads

    @property
    def sample_rows(self) -> int:
        """Rows of a sample's keys or queries before it is downsampled: tokens times heads."""
        return self.heads * math.prod(self.spatial)


def check_neighborhood(op: str, hood: Any) -> None:
    """Raises unless `hood` is a `Neighborhood`, which has been validated."""
    if not isinstance(hood, Neighborhood):
        raise TypeError(f"[{op}] 'hood' must be a Neighborhood but got {hood!r}.")


def check_floats(op: str, **arrays: Any) -> None:
    """Raises unless every argument is an `mx.array` of one supported floating dtype."""
    dtypes = {}
    for name, array in arrays.items():
        if not isinstance(array, mx.array):
            raise TypeError(f"[{op}] '{name}' must be an mx.array but got {type(array).__name__}.")
        if array.dtype not in DTYPES:
            raise TypeError(
                f"[{op}] '{name}' must be float32, float16 or bfloat16 but got {array.dtype}."
            )
        dtypes[name] = array.dtype
    if len(set(dtypes.values())) > 1:
        raise TypeError(f"[{op}] arrays must have one dtype but got {dtypes}.")


def checked_scale(op: str, scale: Any, head_dim: int, name: str = "scale") -> float:
    """`scale`, by default `head_dim ** -0.5`.

    Raises:
        TypeError: If it is not a number. An array would be evaluated, and lose its gradient.
        ValueError: If it is not finite as the tiers need it.
    """
    if scale is None:
        default: float = head_dim**-0.5
        return default
    if isinstance(scale, bool) or not isinstance(scale, numbers.Real):
        raise TypeError(f"[{op}] '{name}' must be a number but got {scale!r}.")
    try:
        number = float(scale)
    except OverflowError:  # an integer
        number = math.inf
    if not abs(number) <= LARGEST_SCALE:
        raise ValueError(
            f"[{op}] '{name}' must be finite in float32, at most {LARGEST_SCALE:g}, but got "
            f"{scale!r}."
        )
    return number


def check_not_empty(op: str, name: str, array: mx.array) -> None:
    """Raises if any axis but the batch is empty."""
    if 0 in array.shape[1:]:
        raise ValueError(f"[{op}] '{name}' must not be empty but for its batch, got {array.shape}.")


def check_heads(op: str, heads: int, kv_heads: int) -> None:
    """Raises unless every key/value head serves the same number of query heads."""
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(
            f"[{op}] the number of 'query' heads must be a multiple of the number of 'key' heads "
            f"but got {heads} and {kv_heads}."
        )


def check_rpb(op: str, rpb: Any, heads: int, hood: Neighborhood) -> None:
    """Raises unless `rpb` is a bias table `[heads, 2 * kernel_size - 1 per axis]`."""
    check_floats(op, rpb=rpb)
    if rpb.shape != (heads, *hood.bias_shape):
        raise ValueError(
            f"[{op}] 'rpb' must have shape {(heads, *hood.bias_shape)}, heads and 2 * kernel_size "
            f"- 1 per axis, but got {rpb.shape}."
        )


def attention_problem(
    op: str,
    hood: Neighborhood,
    query: mx.array,
    key: mx.array,
    value: mx.array,
    scale: float | None,
    rpb: mx.array | None = None,
    *,
    has_lengths: bool = False,
    may_be_finer: bool = False,
    has_lse: bool = True,
) -> Problem:
    """Validates the arrays of one attention call, the query before it is downsampled.

    Lengths are validated apart: their numbers count. Where queries `may_be_finer` they may lie on
    a finer map than keys.

    Raises:
        TypeError: If an argument is not an array, or of an unsupported or another dtype.
        ValueError: If shapes do not fit together, or a window does not fit into the input.
    """
    check_floats(op, query=query, key=key, value=value)
    finer = times_finer(op, hood, query.shape, key.shape) if may_be_finer else ()
    of_map = {} if finer else {"query": query}
    check_token_arrays(op, hood.rank, **of_map, key=key, value=value)
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"[{op}] 'query' and 'key' must have the same head_dim but got {query.shape[-1]} and "
            f"{key.shape[-1]}."
        )
    if key.shape[-2] != value.shape[-2]:
        raise ValueError(
            f"[{op}] 'key' and 'value' must have the same number of heads but got {key.shape[-2]} "
            f"and {value.shape[-2]}."
        )
    batch, *spatial, _, _ = key.shape
    heads, head_dim = query.shape[-2:]
    check_heads(op, heads, key.shape[-2])
    hood = hood.on(spatial, op)
    hood.check_size(spatial, op)
    if rpb is not None:
        check_rpb(op, rpb, heads, hood)
    return Problem(
        neighborhood=hood,
        batch=batch,
        spatial=tuple(spatial),
        heads=heads * math.prod(finer),
        kv_heads=key.shape[-2],
        head_dim=head_dim,
        value_dim=value.shape[-1],
        scale=checked_scale(op, scale, head_dim),
        dtype=query.dtype,
        has_rpb=rpb is not None,
        has_lengths=has_lengths,
        finer=finer,
        has_lse=has_lse,
    )


def check_token_arrays(op: str, rank: int, **arrays: mx.array) -> None:
    """Raises unless all arrays are `[batch, *spatial, heads, head_dim]` of one batch and size."""
    first, reference = next(iter(arrays.items()))
    axes = ("length",) if rank == 1 else ("depth", "height", "width")[3 - rank :]
    layout = ", ".join(["batch", *axes, "heads", "head_dim"])
    for name, array in arrays.items():
        if array.ndim != rank + 3:
            raise ValueError(
                f"[{op}] '{name}' must have {rank + 3} axes [{layout}] but got {array.shape}."
            )
        if array.shape[:-2] != reference.shape[:-2]:
            raise ValueError(
                f"[{op}] '{first}' and '{name}' must have the same batch and spatial axes but got "
                f"{reference.shape} and {array.shape}."
            )
        check_not_empty(op, name, array)


def inside_samples(tokens: Sequence[mx.array], lengths: mx.array) -> mx.array:
    """Whether tokens lie inside each sample: `[B, *tokens of each axis]` of bools.

    Args:
        tokens: Those that are asked for, one array per axis.
        lengths: `[B, rank]`.
    """
    inside = mx.array(True)
    for axis, token in enumerate(tokens):
        shape = [-1] + [token.size if a == axis else 1 for a in range(len(tokens))]
        inside = inside & (token[None] < lengths[:, axis, None]).reshape(shape)
    return inside


def unpack(problem: Problem, qkv: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Query, key and value of `[B, *spatial, heads + 2 * kv_heads, D]`: views of it."""
    query, key, value = split_heads(qkv, problem.heads)
    return downsample(problem, query), key, value


def split_heads(qkv: mx.array, heads: int) -> list[mx.array]:
    """Views of `[..., heads + 2 * kv_heads, D]`: the heads of queries, of keys and of values."""
    kv_heads = (qkv.shape[-2] - heads) // 2
    return list(mx.split(qkv, [heads, heads + kv_heads], axis=-2))


def pack(problem: Problem, query: mx.array, key: mx.array, value: mx.array) -> mx.array:
    """What `unpack` takes apart, with zeros for the queries that are left out."""
    if problem.out != problem.spatial:
        all_queries = mx.zeros((problem.batch, *problem.spatial, *query.shape[-2:]), query.dtype)
        all_queries[_kept(problem)] = query
        query = all_queries
    return mx.concatenate([query, key, value], axis=-2)


def downsample(problem: Problem, query: mx.array) -> mx.array:
    """Keeps every `stride`-th query: `[B, *spatial, ...] -> [B, *out, ...]`."""
    if problem.out == problem.spatial:
        return query
    return query[_kept(problem)]


def _kept(problem: Problem) -> tuple[slice, ...]:
    return (slice(None), *(slice(None, None, s) for s in problem.neighborhood.stride))
