"""Detectron2's `.pkl`: NumPy's arrays inside of a bare pickle, and nothing beside it."""

import os
import pickle

import numpy as np
import pytest

from natten_zoo.pretrained import CheckpointError, read_checkpoint


def write(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def test_arrays(tmp_path):
    values = np.arange(6, dtype=">f4").reshape(2, 3)
    content = {"model": {"a": values, "b": np.asfortranarray(values)}, "__author__": "x"}
    checkpoint = read_checkpoint(write(tmp_path / "w.pkl", content))
    assert checkpoint.part == "model" and checkpoint.metadata == {"__author__": "x"}
    assert list(checkpoint.weights) == ["a", "b"]
    for value in checkpoint.weights.values():
        np.testing.assert_array_equal(value, values)


def test_it_may_be_larger_than_the_pickle_of_an_archive(tmp_path):
    large = np.zeros(5 << 20, np.float32)
    weights = read_checkpoint(write(tmp_path / "w.pkl", {"a": large})).weights
    assert weights["a"].shape == large.shape


def test_what_it_would_call_stays_inert(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'ran'}",))

    path = write(tmp_path / "w.pkl", {"model": {"a": np.ones(2)}, "x": Evil()})
    assert list(read_checkpoint(path).weights) == ["a"]
    with pytest.raises(CheckpointError):
        read_checkpoint(write(tmp_path / "x.pkl", {"model": {"a": Evil()}}))
    assert not (tmp_path / "ran").exists()


def test_storages_outside_are_refused(tmp_path, torch_zip):
    path = tmp_path / "w.pkl"
    path.write_bytes(b"\x80\x02" + torch_zip.dictionary(a=torch_zip.tensor()) + b".")
    with pytest.raises(CheckpointError, match="storages, which a bare pickle has not"):
        read_checkpoint(path)


def test_damage_is_told(tmp_path):
    whole = pickle.dumps({"model": {"a": np.ones(20, np.float32)}})
    for length in range(2, len(whole), 7):
        (tmp_path / "w.pkl").write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / "w.pkl")


def test_old_files_of_torch_are_still_told(tmp_path):
    path = write(tmp_path / "w.pth", {"a": np.ones(2)})
    with pytest.raises(CheckpointError, match=r"torch's format before 1\.6"):
        read_checkpoint(path)
