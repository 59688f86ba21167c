"""The generator is the package's, and what is generated to train on is no test sample."""

from pathlib import Path

import numpy as np
import pytest

from natten_zoo.data.arrays import mnist1d_source
from natten_zoo.data.mnist1d import fresh_mnist1d, mnist1d
from natten_zoo.data.preprocess import SequencePreprocess

REFERENCE = np.load(Path(__file__).parents[1] / "fixtures" / "training" / "mnist1d.npz")


def test_the_standard_data_set_is_the_packages():
    (train, train_labels), (test, test_labels) = mnist1d("train"), mnist1d("test")
    assert train.shape == (4000, 40) and test.shape == (1000, 40)
    curves = np.concatenate([train, test])
    np.testing.assert_array_equal(np.concatenate([train_labels, test_labels]), REFERENCE["labels"])
    np.testing.assert_allclose(curves[::50], REFERENCE["curves"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(curves.sum(0), REFERENCE["sums"], rtol=0, atol=1e-9)


def test_fresh_samples_are_like_the_standard_ones_and_none_of_them():
    fresh, labels = fresh_mnist1d(3000, seed=1)
    standard = np.concatenate([mnist1d("train")[0], mnist1d("test")[0]])
    assert np.bincount(labels).tolist() == [300] * 10
    # Not even nearly: the nearest two are further apart than the noise of one sample.
    products = fresh @ standard.T
    squares = (fresh**2).sum(1)[:, None] + (standard**2).sum(1) - 2 * products
    assert np.sqrt(squares.min()) > 0.3
    np.testing.assert_allclose(fresh.mean(0), standard.mean(0), atol=0.12)
    np.testing.assert_allclose(fresh.std(0), standard.std(0), atol=0.12)
    again, _ = fresh_mnist1d(3000, seed=1)
    other, _ = fresh_mnist1d(3000, seed=2)
    assert np.array_equal(fresh, again) and not np.array_equal(fresh, other)


def test_what_the_trainer_gets():
    source = mnist1d_source(fresh=50)
    assert (source.size, source.val_size, source.classes) == (50, 1000, tuple("0123456789"))
    sequences, labels, _ = next(source.train_batches([np.arange(8)]))
    assert sequences.shape == (8, 40, 1) and labels.tolist() == fresh_mnist1d(50, 1)[1][:8].tolist()
    held, _ = next(source.val_batches(7))
    np.testing.assert_allclose(np.array(held)[..., 0], mnist1d("test")[0][:7], atol=1e-6)
    assert mnist1d_source().size == 4000


def test_bad_arguments():
    with pytest.raises(ValueError, match="'split' must be 'train' or 'test' but got 'val'"):
        mnist1d("val")
    with pytest.raises(ValueError, match="'seed' must not be the standard one"):
        fresh_mnist1d(50, seed=42)
    with pytest.raises(ValueError, match="a multiple of ten, but got 1 and 55"):
        fresh_mnist1d(55, seed=1)


def test_sequences_are_standardised_per_channel():
    prepare = SequencePreprocess(mean=(1.0, 2.0), std=(2.0, 4.0))
    assert prepare(np.array([[1, 2], [3, 6]])).tolist() == [[0, 0], [1, 1]]
    assert SequencePreprocess()(np.arange(3)).tolist() == [[0], [1], [2]]
