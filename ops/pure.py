"""The tier of MLX operations: runs on every device."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from .problem import Problem

NAME = "pure"


def why_not(problem: Problem) -> str | None:
    return None


def _probabilities(problem, query, key, rpb):
    h = problem.neighborhood
    mask = np.ones((1, 1), bool)
    for a, n in enumerate(problem.spatial):
        mask = np.kron(mask, h.mask(a, n))
    q = query.flatten(1, -3).astype(mx.float32).transpose(0, 2, 1, 3)
    k = (
        mx.repeat(key, problem.group, axis=-2)
        .flatten(1, -3)
        .astype(mx.float32)
        .transpose(0, 2, 1, 3)
    )
    s = problem.scale * (q @ k.mT)
    if rpb is not None:
        index, size = 0, h.bias_shape
        for a, n in enumerate(problem.spatial):
            i = np.arange(0, n, h.stride[a])
            rel = (np.arange(n) - i[:, None]) // h.dilation[a] + h.kernel_size[a] - 1
            rel = np.clip(rel, 0, size[a] - 1)
            index = np.kron(index * np.ones_like(rel[:1, :1]), np.ones_like(rel)) * size[
                a
            ] + np.kron(np.ones(np.shape(index) or (1, 1), int), rel)
        s = s + rpb.astype(mx.float32).flatten(1)[:, mx.array(index.astype(np.int32))]
    s = mx.where(mx.array(mask), s, -1e30)
    return s


def forward(problem, query, key, value, rpb, lengths):
    s = _probabilities(problem, query, key, rpb)
    lse = mx.logsumexp(s, axis=-1)
    v = (
        mx.repeat(value, problem.group, axis=-2)
        .flatten(1, -3)
        .astype(mx.float32)
        .transpose(0, 2, 1, 3)
    )
    out = mx.softmax(s, axis=-1) @ v
    out = out.transpose(0, 2, 1, 3).reshape(*query.shape[:-1], -1).astype(query.dtype)
    return out, lse.transpose(0, 2, 1).reshape(query.shape[:-1])


def backward(problem, query, key, value, rpb, lengths, out, lse, d_out, d_lse):
    arrays = [query, key, value] + ([rpb] if rpb is not None else [])

    def f(*a):
        return list(forward(problem, *a[:3], a[3] if rpb is not None else None, None))

    _, grads = mx.vjp(f, arrays, [d_out, d_lse])
    return grads if rpb is not None else [*grads, None]
