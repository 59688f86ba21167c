"""Attention in float64 over whole matrices, and how far from it rounding may take each number.

A fixed tolerance can't tell large logits: float32 rounds a logit of 1e8 to the next multiple of 8,
and weights of keys that tie within that are rightly any. Here each logit's own rounding is followed
into weights, outputs and gradients, so that a bound is wide where keys tie, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.reference import Reference

FLOAT32 = 2.0**-24  # half a unit in the last place, relative
ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
LARGEST = {"float32": 3.4e38, "float16": 65504.0, "bfloat16": 3.38e38}
SMALLEST = {"float32": 1.2e-38, "float16": 6e-8, "bfloat16": 1.2e-38}
FLUSHED = 2.0**-99  # weights below may be zero
LEAST_BIAS = -1e29  # what the operators take for less, so that a row of it is one of equals


@dataclass
class Bounded:
    """Numbers, and how far a computation in float32 may be from each."""

    value: np.ndarray
    error: np.ndarray

    def stored(self, dtype: str) -> Bounded:
        """As an array of `dtype` has them."""
        finite = np.where(np.isinf(self.value), 0, self.value)
        error = self.error + ROUNDING[dtype] * np.abs(finite) + SMALLEST[dtype]
        return Bounded(self.value, error)

    def worst(self, got: np.ndarray, dtype: str) -> float:
        """The largest error over what it may be; infinite if a number is none."""
        without = np.isneginf(self.value)
        with np.errstate(invalid="ignore"):
            sure = ~without & (np.abs(self.value) + self.error < LARGEST[dtype])  # or may overflow
        if not (np.isfinite(got[sure]).all() and np.isneginf(got[without]).all()):
            return np.inf
        return float((np.abs(got[sure] - self.value[sure]) / self.error[sure]).max(initial=0))


def product(a: Bounded, b: Bounded) -> Bounded:
    """Matrix product, whose sums are float32 of so many terms."""
    size = np.abs(a.value) @ np.abs(b.value)
    error = a.error @ np.abs(b.value) + np.abs(a.value) @ b.error + a.error @ b.error
    return Bounded(a.value @ b.value, error + relative(a.value.shape[-1]) * size)


def relative(terms: int) -> float:
    """Relative error of a sum of products: roundings of one sign are not met."""
    return FLOAT32 * (8 + 2 * terms**0.5)


def exactly(x: np.ndarray) -> Bounded:
    return Bounded(x, np.zeros_like(x))


def times(x: Bounded, factor: float) -> Bounded:
    return Bounded(factor * x.value, abs(factor) * (x.error + 2 * FLOAT32 * np.abs(x.value)))


def turned(x: Bounded) -> Bounded:
    return Bounded(x.value.swapaxes(-1, -2), x.error.swapaxes(-1, -2))


@dataclass
class Attention:
    """All results of one problem. Arrays `[B, H, tokens, D]`, queries those that are kept.

    `extra` keys stand behind the others, seen by every query. `dtype` is that of the arrays.
    """

    reference: Reference
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    rpb: np.ndarray | None
    d_out: np.ndarray
    d_lse: np.ndarray
    dtype: str
    extra: int = 0

    def __post_init__(self) -> None:
        self.group = self.query.shape[1] // self.key.shape[1]
        self.seen, self.place = self._who_sees_whom()
        k, v = (np.repeat(x, self.group, axis=1) for x in (self.key, self.value))
        q, self.k, self.v = map(exactly, (self.query, k, v))
        self.q, self.d_o = q, exactly(self.d_out)
        logits = times(product(q, turned(self.k)), self.reference.scale)
        logits.error += FLOAT32 * 4 * np.abs(logits.value)
        if self.rpb is not None:
            bias = np.maximum(self.rpb, LEAST_BIAS).reshape(len(self.rpb), -1)
            bias = np.where(self.place[:, None] < 0, 0, bias[:, self.place].swapaxes(0, 1))
            logits.value = logits.value + bias
            # The compiled tier begins with the bias, and adds the products to it.
            logits.error = logits.error + relative(self.query.shape[-1]) * np.abs(bias)
        self.logits = logits
        self.weights, self.lse = self._softmax()
        # With additional keys two outputs are merged that the dtype has rounded, and so backward.
        self.parts = 2 * ROUNDING[self.dtype] if self.extra and self.dtype != "float32" else 0.0
        self.out = self._rounded(product(self.weights, self.v), self.weights, self.v)

    def _rounded(self, x: Bounded, a: Bounded, b: Bounded) -> Bounded:
        """A product `x` of `a` and `b` whose terms the dtype may have rounded in between."""
        return Bounded(x.value, x.error + self.parts * (np.abs(a.value) @ np.abs(b.value)))

    def _who_sees_whom(self) -> tuple[np.ndarray, np.ndarray]:
        """`[B, 1, Q, K]`: whether a key is seen, and the index of its bias or -1."""
        batch, tokens = len(self.query), self.key.shape[2]
        place = np.full((batch, self.query.shape[2], tokens), -1)
        for b, keys, bias in self.reference.samples(batch):
            row, slot = np.nonzero(keys >= 0)
            place[b, row, keys[row, slot]] = bias[row, slot]
        seen = place >= 0
        seen[..., tokens - self.extra :] = True
        return seen[:, None], place

    def _softmax(self) -> tuple[Bounded, Bounded]:
        value = np.where(self.seen, self.logits.value, -np.inf)
        top = value.max(axis=-1, keepdims=True)
        top = np.where(np.isfinite(top), top, 0)  # apart: beside large logits the sum is lost
        total = log_sum(value - top)
        lse = total + top
        error = self.logits.error + FLOAT32 * (8 + 4 * np.abs(np.where(np.isinf(lse), 0, lse)))
        with np.errstate(invalid="ignore"):
            log = np.where(self.seen, value - top - total, -np.inf)
        # How far the sum of exponentials may be off, by the logits that make it.
        of_sum = np.maximum(log_sum(log + error), -log_sum(log - error))
        of_sum = np.where(np.isinf(lse), 0, of_sum)
        within = error + of_sum
        bound = np.exp(np.minimum(log + within, 0)) * -np.expm1(-within)
        bound = bound + FLUSHED * self.seen
        of_lse = of_sum + 2 * FLOAT32 * np.abs(np.where(np.isinf(lse), 0, lse))
        return Bounded(np.exp(log), bound), Bounded(lse, of_lse)

    def backward(self) -> dict[str, Bounded]:
        """Gradients by name; those of keys and values with the additional ones behind."""
        p, d_o, scale = self.weights, self.d_o, self.reference.scale
        out = self.out.stored(self.dtype)  # the rule has no other
        d_p = self._rounded(product(d_o, turned(self.v)), d_o, turned(self.v))
        d_lse = np.where(np.isinf(self.lse.value[..., 0]), 0, self.d_lse)[..., None]
        mean = (out.value * self.d_out).sum(-1, keepdims=True)
        size = (np.abs(out.value * self.d_out)).sum(-1, keepdims=True)
        of_mean = (out.error * np.abs(self.d_out)).sum(-1, keepdims=True)
        of_mean = of_mean + relative(self.d_out.shape[-1]) * size + FLOAT32 * 4 * np.abs(d_lse)
        inner = d_p.value - mean + d_lse
        of_inner = d_p.error + of_mean + FLOAT32 * 4 * np.abs(inner)
        d_s = Bounded(p.value * inner, p.error * np.abs(inner) + (p.value + p.error) * of_inner)
        if self.parts:  # what a part's output is given may be too small for the dtype
            tiny = 2 * SMALLEST[self.dtype]
            d_s.error = d_s.error + tiny * np.abs(self.v.value).sum(-1)[..., None, :] * self.seen
        found = {
            "query": times(self._rounded(product(d_s, self.k), d_s, self.k), scale),
            "key": times(self._by_group(product(turned(d_s), self.q)), scale),
            "value": self._by_group(self._rounded(product(turned(p), d_o), turned(p), d_o)),
        }
        if self.parts:
            found["value"].error += tiny * self.group * self.query.shape[2]
        if self.rpb is not None:
            found["rpb"] = self._by_place(d_s)
        return found

    def _by_group(self, x: Bounded) -> Bounded:
        """Sums query heads that share a key head."""
        batch, heads, *rest = x.value.shape
        shape = (batch, heads // self.group, self.group, *rest)
        size = relative(self.group) * np.abs(x.value.reshape(shape)).sum(2)
        return Bounded(x.value.reshape(shape).sum(2), x.error.reshape(shape).sum(2) + size)

    def _by_place(self, d_s: Bounded) -> Bounded:
        """Sums gradients of logits by the entry of the bias they have."""
        assert self.rpb is not None
        shape, chosen = self.rpb.shape, self.place >= 0
        place = self.place[chosen]

        def total(x: np.ndarray) -> np.ndarray:
            columns = x.swapaxes(0, 1)[:, chosen]
            return np.stack([np.bincount(place, c, self.rpb[0].size) for c in columns])

        size = relative(place.size) * total(np.abs(d_s.value))
        return Bounded(total(d_s.value).reshape(shape), (total(d_s.error) + size).reshape(shape))


def log_sum(x: np.ndarray) -> np.ndarray:
    """Logarithm of the sum of exponentials over the last axis, which stays."""
    top = x.max(axis=-1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(x - top).sum(axis=-1, keepdims=True)) + top
