"""Neighborhood attention in float64 NumPy, by brute force from its definition.

The window arithmetic is the published one, a loop over queries, and shares nothing with the
package: every tier is held against it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def axis_keys(i: int, length: int, kernel: int, dilation: int, stride: int, causal: bool) -> list:
    """The tokens that query `i` sees on one axis; `stride` is the stride between windows."""
    group, rank = i % dilation, i // dilation
    n = length // dilation + (1 if group < length % dilation else 0)
    left, right = kernel // 2, kernel // 2 + kernel % 2 - 1
    if causal:
        leader = min(rank // stride * stride + stride - 1, n - 1)
        start, end = max(leader - kernel + 1, 0), min(rank + 1, n)
    else:
        leader = min(rank // stride * stride + stride // 2, n - 1)
        start = max(leader - left, 0)
        if leader + right >= n:
            start += n - right - leader - 1
        start, end = max(start, 0), min(max(start, 0) + kernel, n)
    return [group + dilation * j for j in range(start, end)]


@dataclass
class Reference:
    """One problem in float64; arrays are heads-last as in the operators.

    `query` holds the kept queries only (`stride` downsamples), `lengths` the size of each
    sample. Every result is a method: `forward` and `backward`, `qk`, `av` and theirs.
    """

    spatial: tuple
    kernel_size: tuple
    dilation: tuple
    stride: tuple
    window_stride: tuple
    is_causal: tuple
    scale: float
    lengths: np.ndarray | None = None

    @property
    def out(self) -> tuple:
        return tuple(-(-n // s) for n, s in zip(self.spatial, self.stride, strict=True))

    def tables(self, size: tuple) -> tuple[np.ndarray, np.ndarray]:
        """Key and bias index of each query and slot `[prod(out), prod(kernel)]`, -1 if none."""
        keys, bias, rank = np.zeros(1, int), np.zeros(1, int), len(self.spatial)
        missing = np.zeros(1, bool)
        for a, kernel in enumerate(self.kernel_size):
            key, offset = np.full((2, self.out[a], kernel), -1)
            for o in range(self.out[a]):
                i = o * self.stride[a]
                if i < size[a]:
                    seen = axis_keys(
                        i, size[a], kernel, self.dilation[a], self.window_stride[a],
                        self.is_causal[a],
                    )  # fmt: skip
                    key[o, : len(seen)] = seen
                    offset[o, : len(seen)] = [
                        (j - i) // self.dilation[a] + kernel - 1 for j in seen
                    ]
            shape = [1] * (2 * rank)
            shape[a], shape[rank + a] = key.shape
            key, offset = key.reshape(shape), offset.reshape(shape)
            missing = missing | (key < 0)
            keys = keys * self.spatial[a] + key
            bias = bias * (2 * kernel - 1) + offset
        shape = (np.prod(self.out), np.prod(self.kernel_size))
        return tuple(np.where(missing, -1, x).reshape(shape) for x in (keys, bias))

    def samples(self, batch: int):
        for b in range(batch):
            size = self.spatial if self.lengths is None else tuple(self.lengths[b])
            yield b, *self._tables(size)

    def _tables(self, size: tuple) -> tuple[np.ndarray, np.ndarray]:
        cache = self.__dict__.setdefault("_cache", {})
        if size not in cache:
            cache[size] = self.tables(size)
        return cache[size]

    def qk(self, query, key, rpb=None) -> np.ndarray:
        """Logits `[B, *out, H, prod(kernel)]`, -inf in slots without a key."""
        q, k = flat(query), flat(key)
        group = q.shape[2] // k.shape[2]
        logits = np.full((*q.shape[:3], np.prod(self.kernel_size)), -np.inf)
        for b, keys, bias in self.samples(len(q)):
            near = np.repeat(k[b][keys], group, axis=2)  # [queries, slots, H, D]
            s = self.scale * np.einsum("qhd,qkhd->qhk", q[b], near)
            if rpb is not None:
                s = s + rpb.astype(float).reshape(len(rpb), -1)[:, bias].transpose(1, 0, 2)
            logits[b] = np.where(keys[:, None] >= 0, s, -np.inf)
        return logits.reshape(*query.shape[:-1], -1)

    def qk_backward(self, query, key, rpb, d_logits):
        """`(d_query, d_key, d_rpb)` of `qk`."""
        q, k = flat(query), flat(key)
        group = q.shape[2] // k.shape[2]
        grad = flat(d_logits)
        d_q, d_k = np.zeros_like(q), np.zeros_like(k)
        d_rpb = None if rpb is None else np.zeros((len(rpb), rpb[0].size))
        for b, keys, bias in self.samples(len(q)):
            ds = np.where(keys[:, None] >= 0, grad[b], 0)  # [queries, H, slots]
            near = np.repeat(k[b][keys], group, axis=2)
            d_q[b] = self.scale * np.einsum("qhk,qkhd->qhd", ds, near)
            pairs = self.scale * np.einsum("qhk,qhd->qkhd", ds, q[b])
            np.add.at(d_k[b], keys, by_group(pairs, group))
            if rpb is not None:
                np.add.at(d_rpb.T, bias, ds.transpose(0, 2, 1))
        d_rpb = None if rpb is None else d_rpb.reshape(rpb.shape)
        return d_q.reshape(query.shape), d_k.reshape(key.shape), d_rpb

    def av(self, attn, value) -> np.ndarray:
        """`[B, *out, H, Dv]`; slots without a key are ignored."""
        p, v = flat(attn), flat(value)
        group = p.shape[2] // v.shape[2]
        out = np.zeros((*p.shape[:3], v.shape[-1]))
        for b, keys, _ in self.samples(len(p)):
            near = np.repeat(v[b][keys], group, axis=2)
            out[b] = np.einsum("qhk,qkhd->qhd", np.where(keys[:, None] >= 0, p[b], 0), near)
        return out.reshape(*attn.shape[:-1], -1)

    def av_backward(self, attn, value, d_out):
        """`(d_attn, d_value)` of `av`."""
        p, v, grad = flat(attn), flat(value), flat(d_out)
        group = p.shape[2] // v.shape[2]
        d_p, d_v = np.zeros_like(p), np.zeros_like(v)
        for b, keys, _ in self.samples(len(p)):
            seen = keys[:, None] >= 0
            near = np.repeat(v[b][keys], group, axis=2)
            d_p[b] = np.where(seen, np.einsum("qhd,qkhd->qhk", grad[b], near), 0)
            pairs = np.einsum("qhk,qhd->qkhd", np.where(seen, p[b], 0), grad[b])
            np.add.at(d_v[b], keys, by_group(pairs, group))
        return d_p.reshape(attn.shape), d_v.reshape(value.shape)

    def softmax(self, logits):
        """`(probabilities, lse)`; a query that sees nothing has zeros and -inf."""
        top = np.max(logits, axis=-1, keepdims=True)
        p = np.exp(logits - np.where(np.isfinite(top), top, 0))
        total = p.sum(-1, keepdims=True)
        with np.errstate(divide="ignore"):
            lse = np.log(total) + np.where(np.isfinite(top), top, 0)
        return p / np.where(total == 0, 1, total), lse[..., 0]

    def forward(self, query, key, value, rpb=None):
        """`(out, lse)`."""
        p, lse = self.softmax(self.qk(query, key, rpb))
        return self.av(p, value), lse

    def backward(self, query, key, value, rpb, d_out, d_lse):
        """`(d_query, d_key, d_value, d_rpb)`."""
        p, lse = self.softmax(self.qk(query, key, rpb))
        d_p, d_v = self.av_backward(p, value, d_out)
        d_lse = np.where(np.isfinite(lse), d_lse, 0)[..., None]
        d_s = p * (d_p - (p * d_p).sum(-1, keepdims=True) + d_lse)
        d_q, d_k, d_rpb = self.qk_backward(query, key, rpb, d_s)
        return d_q, d_k, d_v, d_rpb


def flat(x) -> np.ndarray:
    """`[B, *spatial, H, D] -> [B, tokens, H, D]` in float64."""
    x = np.asarray(x, np.float64)
    return x.reshape(x.shape[0], int(np.prod(x.shape[1:-2])), *x.shape[-2:])


def by_group(pairs: np.ndarray, group: int) -> np.ndarray:
    """Sums the query heads that share a key head: `[q, k, H, D] -> [q, k, H / group, D]`."""
    q, k, h, d = pairs.shape
    return pairs.reshape(q, k, h // group, group, d).sum(3)
