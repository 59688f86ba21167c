"""The peers of benchmark_ops.py that need torch; on a GPU where torch finds one.

Their arrays are `[batch, heads, tokens, head_dim]`, the layout that they compute in.
"""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from benchmark_contestants import Attention, Case, Contestant
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# As many threads as the compiled tier takes: by itself torch takes one per core, not per processor.
PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
torch.set_num_threads(int(os.environ.get("NATTEN_ZOO_THREADS") or PROCESSORS or 1))


def seen(case: Case) -> torch.Tensor:
    """The mask of a case, where it is needed."""
    return torch.from_numpy(case.mask()).to(DEVICE)


def dense_mask(case: Case) -> Attention:
    """Dense attention with the neighborhood as a mask."""
    mask = seen(case)
    dense = torch.nn.functional.scaled_dot_product_attention
    return lambda q, k, v: dense(q, k, v, attn_mask=mask)


def flex(case: Case) -> Attention:
    """flex_attention, compiled for one shape, over the blocks in which some query sees a key.

    On a CPU it is fastest with blocks of 16 (torch's default is 128) and with a mask that is looked
    up: computing it takes integer divisions.
    """
    torch.compiler.reset()  # after eight shapes torch would go on without compiling
    mask, n = seen(case), math.prod(case.spatial)
    size = 16 if DEVICE == "cpu" else 128
    block = create_block_mask(lambda b, h, q, k: mask[q, k], None, None, n, n, DEVICE, size)
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, block_mask=block)


def natten(case: Case) -> Attention:
    """NATTEN's own kernels for a CPU, which its releases have until 0.17.5; odd kernels only."""
    if DEVICE != "cpu":
        raise ImportError("it takes part on a CPU only")
    from natten import __version__, functional

    if __version__ != "0.17.5":
        raise ImportError(f"the natten that is installed is {__version__}")
    rank = len(case.spatial)
    window = (case.kernel_size, case.dilation)
    qk, av = (getattr(functional, f"na{rank}d_{name}") for name in ("qk", "av"))

    def attention(*arrays: Any) -> Any:
        q, k, v = (x.unflatten(2, case.spatial) for x in arrays)
        logits = qk(q * case.head_dim**-0.5, k, *window, is_causal=case.is_causal)
        return av(logits.softmax(-1), v, *window, is_causal=case.is_causal).flatten(2, -2)

    return attention


PEERS = {"torch dense mask": dense_mask, "torch flex": flex, "natten 0.17.5": natten}


def torch_contestant(name: str, case: Case, batch: int, dtype: str) -> Contestant:
    """A contestant of one of `PEERS`, whose gradients are torch's autograd."""
    attention = PEERS[name](case)

    def wait() -> None:
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    def forward(*arrays: Any) -> None:
        with torch.no_grad():
            attention(*(x.requires_grad_(False) for x in arrays[:3]))
        wait()

    def backward(*arrays: Any) -> None:
        leaves = [x.requires_grad_() for x in arrays[:3]]
        try:
            torch.autograd.grad(attention(*leaves), leaves, arrays[3])
        except NotImplementedError:
            torch.compiler.reset()  # else the forward would stay uncompiled, too
            raise
        wait()

    shape = (batch, case.heads, math.prod(case.spatial), case.head_dim)
    arrays = [torch.randn(shape, device=DEVICE, dtype=getattr(torch, dtype)) for _ in range(4)]
    return Contestant(name, forward, backward, arrays).prepare()
