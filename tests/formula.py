"""Weights as a formula of their name and shape, so that full-size tests need no weight files.

The reference outputs in `data/models/full` come from upstream's model code filled by these very
functions; changing them invalidates the outputs.
"""

import zlib

import numpy as np

GAINS = ("gamma1", "gamma2", "layer_scale_parameters")


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 values of upstream's parameter `name`."""
    random = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    leaf = name.rpartition(".")[2]
    if leaf in GAINS:
        values = 0.3 + 0.4 * random.random_sample(shape)
    elif leaf == "running_var":
        values = 0.5 + random.random_sample(shape)
    else:
        values = _offset(leaf, shape) + _spread(leaf, shape) * random.standard_normal(shape)
    return values.astype(np.float32)


def image(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """A float32 input."""
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def _offset(leaf: str, shape: tuple[int, ...]) -> float:
    is_norm_gain = len(shape) <= 1 and not _is_bias(leaf) and leaf not in ("rpb", "running_mean")
    return 1.0 if is_norm_gain else 0.0


def _spread(leaf: str, shape: tuple[int, ...]) -> float:
    if leaf == "rpb":
        return 0.5
    if _is_bias(leaf):
        return 0.05
    if leaf == "running_mean" or len(shape) <= 1:
        return 0.1
    return 1.0 / np.sqrt(np.prod(shape[1:]))


def _is_bias(leaf: str) -> bool:
    return leaf.endswith("bias")
