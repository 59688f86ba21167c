"""MNIST-1D: ten digits as curves of 40 points, padded, moved, scaled, sheared and noisy.

The data set is its generator: a seed gives the samples. Greydanus and Kobak, Scaling down deep
learning with MNIST-1D, https://arxiv.org/abs/2011.14439.
"""

from __future__ import annotations

from functools import cache

import numpy as np

CLASSES = tuple("0123456789")
LENGTH = 40
STANDARD_SEED, STANDARD_COUNT, STANDARD_TRAIN = 42, 5000, 4000

# Height of each digit's pen at 12 moments, from start to end.
_PENS = np.array(
    [
        [5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5],
        [5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5],
        [5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5],
        [5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5],
        [5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5],
        [5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5],
        [5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5],
        [5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5],
        [5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5],
        [5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5],
    ]
)
_PADDING = (36, 60)
_CANVAS = _PENS.shape[1] + _PADDING[1]
_MAX_SHIFT = 48
_SCALE, _SHEAR, _WAVES, _NOISE = 0.4, 0.75, 0.25, 0.02
_EPS = 1e-8  # tells the pen's zeros from the padding's


def mnist1d(split: str = "test") -> tuple[np.ndarray, np.ndarray]:
    """Makes a split of the standard data set, bit for bit that of the package `mnist1d`.

    Args:
        split: `train` (4,000 samples) or `test` (1,000).

    Returns:
        Curves `[N, 40]` of float64, whose mean is 0 and standard deviation 1 over both splits,
        and labels `[N]` of int64.
    """
    if split not in ("train", "test"):
        raise ValueError(f"[mnist1d] 'split' must be 'train' or 'test' but got '{split}'.")
    curves, labels = _standard()
    chosen = slice(STANDARD_TRAIN) if split == "train" else slice(STANDARD_TRAIN, None)
    return _standardize(curves)[chosen], labels[chosen]


def fresh_mnist1d(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Makes new samples by the standard parameters, on the standard data set's scale.

    None of them is a sample of the standard data set.

    Args:
        count: How many, a multiple of ten.
        seed: Any but 42, which would give the standard samples again.
    """
    if seed == STANDARD_SEED or count % len(CLASSES):
        raise ValueError(
            "[fresh_mnist1d] 'seed' must not be the standard one, 42, and 'count' must be a "
            f"multiple of ten, but got {seed} and {count}."
        )
    curves, labels = _generate(count, seed)
    known = {curve.tobytes() for curve in _standard()[0]}
    if not known.isdisjoint(curve.tobytes() for curve in curves):
        raise ValueError(f"[fresh_mnist1d] seed {seed} repeats a sample of the standard data set.")
    return _standardize(curves), labels


@cache
def _standard() -> tuple[np.ndarray, np.ndarray]:
    return _generate(STANDARD_COUNT, STANDARD_SEED)


def _standardize(curves: np.ndarray) -> np.ndarray:
    standard = _standard()[0]
    return (curves - standard.mean()) / standard.std()


def _generate(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Curves `[count, 40]` before standardization, and labels, in the generator's order."""
    random = np.random.RandomState(seed)
    labels = np.repeat(np.arange(len(CLASSES)), count // len(CLASSES))
    templates = _templates()
    curves = np.empty((count, _CANVAS))
    waves, noise = np.empty_like(curves), np.empty_like(curves)
    shear = np.empty((count, 1))
    for row, label in enumerate(labels):  # one sample after the other draws
        low, high = _PADDING
        padding = low + int(random.rand() * (high - low + 1))
        padded = np.append(templates[label] + _EPS, np.zeros(padding))
        curve = _resample(padded, _CANVAS) * (1 + _SCALE * (random.rand() - 0.5))
        curves[row] = np.roll(curve, random.choice(_MAX_SHIFT))
        waves[row] = _WAVES * random.randn(_CANVAS)
        noise[row] = _NOISE * random.randn(_CANVAS)
        shear[row] = _SHEAR * (random.rand() - 0.5)
    # Beside the digit, where the curve is exactly zero, there are waves instead.
    curves = np.where(curves != 0, curves, _smooth(waves)) + noise
    curves -= shear * np.linspace(-0.5, 0.5, _CANVAS)
    order = random.permutation(count)
    return np.stack([_resample(curve, LENGTH) for curve in curves])[order], labels[order]


def _templates() -> np.ndarray:
    """The digits' curves `[10, 12]`, from zero to about zero."""
    pens = _PENS - _PENS.mean(1, keepdims=True)
    pens /= pens.std(1, keepdims=True)
    return (pens - pens[:, :1]) / 6.0


def _resample(curve: np.ndarray, length: int) -> np.ndarray:
    return np.interp(np.linspace(0, 1, length), np.linspace(0, 1, len(curve)), curve)


def _smooth(signals: np.ndarray, sigma: int = 2) -> np.ndarray:
    """Gaussian filter along the last axis, cut at four deviations, mirrored at the ends.

    The order of its sums is that of `scipy.ndimage.gaussian_filter`, for the same bits.
    """
    radius = 4 * sigma
    weights = np.exp(-0.5 / sigma**2 * np.arange(-radius, radius + 1) ** 2)
    weights /= weights.sum()
    length = signals.shape[-1]
    padded = np.pad(signals, [(0, 0), (radius, radius)], mode="symmetric")
    result = padded[:, radius : radius + length] * weights[radius]
    for offset in range(radius, 0, -1):
        left = padded[:, radius - offset : radius - offset + length]
        right = padded[:, radius + offset : radius + offset + length]
        result = result + (left + right) * weights[radius - offset]
    return result
