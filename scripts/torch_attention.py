"""Neighborhood attention in PyTorch, for `scripts/torch_nat.py` and `scripts/torch_models.py`.

Either `scaled_dot_product_attention` with the neighborhood and its bias as one dense mask per
layer, for inference built once: the fastest of what torch has on a CPU for maps of these sizes (no
release of NATTEN runs these models on a current torch). Or compiled `flex_attention` with the bias
as its `score_mod`, over the blocks of 128 x 128 tokens in which some query sees some key.
"""

from __future__ import annotations

import math
import os
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import flex_attention as flex

from natten_zoo.ops import Neighborhood

# Each size, batch and mode is a compilation. After the default of eight torch would go on without,
# as if the scores of all pairs were wanted; so one too many is an error.
torch._dynamo.config.recompile_limit = 256
torch._dynamo.config.accumulated_recompile_limit = 1024
torch._dynamo.config.fail_on_recompile_limit_hit = True
BLOCK = 128  # flex_attention's default
# The gradient of the bias is a sum by atomic additions. By so many rows of it, taken in turn by the
# queries, these do not wait for each other.
ROWS = 1024

flex_attention = torch.compile(flex.flex_attention, dynamic=False)
Size = tuple[int, ...]


class Attention(nn.Module):
    """`[B, *S, C] -> [B, *S, C]`; windows shrink to maps that are smaller."""

    def __init__(
        self, dim: int, heads: int, kernel_size: Any, dilation: Any, how: str, rank: int = 2
    ) -> None:
        super().__init__()
        self.heads, self.how = heads, how
        self.hood = Neighborhood.of(rank, kernel_size, dilation=dilation)
        self.rpb = nn.Parameter(torch.zeros(heads, *self.hood.bias_shape))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.places: dict[Size, Any] = {}
        self.masks: dict[Size, Any] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = tuple(x.shape[1:-1])
        if size not in self.masks:
            self.prepare(size)
        qkv = self.qkv(x).reshape(x.shape[0], math.prod(size), 3, self.heads, -1)
        attend = self.flex if self.how == "flex" else self.dense
        y = attend(*qkv.permute(2, 0, 3, 1, 4), size)  # [B, heads, tokens, head_dim]
        return self.proj(y.transpose(1, 2).reshape(x.shape))

    @torch.inference_mode(False)  # what is built for inference is trained with, too
    @torch.no_grad()
    def prepare(self, size: Size) -> None:
        """Builds what depends on a map's size alone, and for inference the mask with its bias."""
        device = self.rpb.device
        if self.how == "flex":
            self.masks[size] = block_mask(self.hood, size, device)
        else:
            self.places[size] = places(self.hood, size, device)
            self.masks[size] = self.dense_mask(size)

    def dense(self, q: Any, k: Any, v: Any, size: Size) -> torch.Tensor:
        """By a mask of all pairs."""
        mask = self.dense_mask(size) if self.training else self.masks[size]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def dense_mask(self, size: Size) -> torch.Tensor:
        """`[heads, tokens, tokens]`: the bias where a query sees a key, -inf elsewhere."""
        entry, hidden = self.places[size]
        # Not [:, entry], whose gradient is sorted: it takes ten times as long.
        bias = self.rpb.flatten(1).index_select(1, entry.flatten()).unflatten(1, entry.shape)
        return bias.masked_fill(hidden, -math.inf)

    def flex(self, q: Any, k: Any, v: Any, size: Size) -> torch.Tensor:
        """By blocks."""
        hood, rows, dim = self.hood, ROWS if self.training else 1, q.shape[-1]
        table = self.rpb.flatten(1)[:, None].expand(-1, rows, -1)

        def bias(score: Any, b: Any, h: Any, query: Any, key: Any) -> Any:
            return score + table[h, query % rows, bias_entry(hood, size, query, key)]

        if dim < 16:  # the fewest channels that flex_attention has
            q, k, v = (F.pad(x, (0, 16 - dim)) for x in (q, k, v))
        y = flex_attention(q, k, v, bias, self.masks[size], scale=dim**-0.5)
        return y[..., :dim]


def prepare(model: nn.Module, x: torch.Tensor) -> None:
    """Lets all attention see the sizes of its maps: what is compiled shall not build masks."""
    layers = [layer for layer in model.modules() if isinstance(layer, Attention)]

    def prepared(layer: Attention, x: torch.Tensor) -> torch.Tensor:
        layer.prepare(tuple(x.shape[1:-1]))
        return x

    for layer in layers:
        layer.forward = partial(prepared, layer)
    with torch.no_grad():
        model(x)
    for layer in layers:
        del layer.forward


def bias_entry(hood: Neighborhood, size: Size, query: Any, key: Any) -> Any:
    """Where the flat bias of a pair of tokens lies; some entry for a pair that is hidden."""

    def code(token: Any) -> Any:
        sum_ = 0
        for axis, n in enumerate(size):
            place = token // math.prod(size[axis + 1 :]) % n // hood.dilation[axis]
            sum_ = sum_ * hood.bias_shape[axis] + place
        return sum_

    middle = math.prod(hood.bias_shape) // 2
    return (code(key) - code(query) + middle) % math.prod(hood.bias_shape)


def sees(hood: Neighborhood, size: Size, query: Any, key: Any) -> Any:
    """Whether a query's token sees a key's."""
    seen: Any = True
    for axis, n in enumerate(size):
        window, dilation, after = hood.kernel_size[axis], hood.dilation[axis], size[axis + 1 :]
        at, other = (token // math.prod(after) % n for token in (query, key))
        group, ordinal = at % dilation, at // dilation
        count = (n - group + dilation - 1) // dilation  # tokens of the dilation group
        start = (ordinal - window // 2).minimum(count - window).clamp(min=0)
        place = other // dilation - start
        seen = seen & (other % dilation == group) & (place >= 0) & (place < window)
    return seen


@cache
def places(hood: Neighborhood, size: Size, device: torch.device) -> tuple[Any, Any]:
    """Of each query and key the entry of the bias, and whether it is hidden.

    Raises:
        MemoryError: These, what they are computed from and a mask have no room.
    """
    tokens = math.prod(size)
    if 16 * tokens**2 > room(device):
        raise MemoryError(f"no room for dense masks of {tokens} x {tokens} tokens")
    key = torch.arange(tokens, dtype=torch.int32, device=device)
    query = key[:, None]
    return bias_entry(hood, size, query, key), ~sees(hood, size, query, key)


def room(device: torch.device) -> int:
    """Bytes of a device's memory."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@cache
def block_mask(hood: Neighborhood, size: Size, device: torch.device) -> flex.BlockMask:
    """What torch's `create_block_mask` builds, but from the pairs that are seen.

    All pairs, from which that does, are 12 billion where a volume has 48 tokens a side.
    """
    tokens = math.prod(size)
    count = -(-tokens // BLOCK)
    seen = seen_pairs(hood, size)
    query = np.arange(tokens)[:, None] // BLOCK * count
    pairs = np.bincount((query + seen // BLOCK)[seen >= 0], minlength=count**2)
    pairs = torch.from_numpy(pairs.reshape(1, 1, count, count)).to(device)
    full = pairs == BLOCK**2
    lists = []
    for blocks in ((pairs > 0) & ~full, full):
        order = blocks.int().argsort(stable=True, dim=-1, descending=True)
        lists += [blocks.sum(-1, dtype=torch.int32), order.int()]
    mask = lambda b, h, query, key: sees(hood, size, query, key)  # noqa: E731
    return flex.BlockMask.from_kv_blocks(
        *lists, BLOCK_SIZE=BLOCK, mask_mod=mask, seq_lengths=(tokens, tokens)
    )


def seen_pairs(hood: Neighborhood, size: Size) -> np.ndarray:
    """`[tokens, window]`: the keys of each query; -1 where a window has fewer."""
    keys = np.zeros((1, 1), np.int64)
    for axis, n in enumerate(size):
        first, count = hood.windows(axis, n)
        steps = np.arange(hood.kernel_size[axis])
        own = np.where(steps < count[:, None], first[:, None] + steps * hood.dilation[axis], -1)
        both = keys[:, None, :, None], own[None, :, None, :]
        keys = np.where((both[0] >= 0) & (both[1] >= 0), both[0] * n + both[1], -1)
        keys = keys.reshape(keys.shape[0] * n, -1)
    return keys
